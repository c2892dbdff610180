"""Tells those who run this, by chat and by email, what they should know of now, each thing once, with a link to the page that shows it.

The conductor looks every few seconds (`noticing.py`), decides (`decide/alerting.py`), and what is to be told is on disk before it is told
(`act/alerts.py`). Chats are called as rules call them: at their pace, over guarded connections, with a breaker for each target. Emails go
by a channel's own carrier, beside what campaigns wait for. The kill switch holds none of it: it is told too when that is turned.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

import apsw
import msgspec

from ..act.alerts import REFUSED, UNKNOWN, Alerts, Telling
from ..act.carriers import Carrier, carriers_of
from ..act.channels.channel import Message
from ..act.delivery import Withheld
from ..act.outbox import PLANNED, SENT, promise_us_max
from ..act.outbox import UNKNOWN as MESSAGE_UNKNOWN
from ..act.ways.slack import Slack
from ..act.ways.teams import Teams
from ..act.ways.way import Action, Outcome, Way
from ..act.ways.webhook import Webhook
from ..config import Config
from ..decide.alerting import BEGUN, LASTS, MORE, OVER, SERIOUS, WORSE, Notice, Settings, State, hour_us, step
from ..events import recipient_key
from ..kit.clock import Clock
from ..kit.errors import ConfigError, MidflightError
from .noticing import OWN_CAMPAIGN, Noticing, duration, plain
from .under_way import UnderWay

logger = logging.getLogger("midflight.conductor")

look_s = 2.0
keep_s = 60.0  # between two saves of how much time has passed, where nothing else has changed
call_s_max = 120.0
mail_s_max = 660.0  # a relay may take ten minutes for its last answer
away_us_max = 24 * hour_us  # so much time is believed to have passed while nobody looked
slack_chars_max = 2_900  # of a section, after Slack's escaping
subject_chars_max = 150
KINDS = (Slack, Teams, Webhook)
HEADS = {BEGUN: "", WORSE: "Worse: ", LASTS: "Still, for {}: ", OVER: "Over, after {}: "}
_ESCAPES = {"&": 5, "<": 4, ">": 4}
AWAY = (MidflightError, apsw.Error, OSError)
# What our own code may raise where it is wrong.
MISTAKES = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, AssertionError)

Deliver = Callable[[Action, Callable[[int], bool]], Awaitable[Outcome]]


def targets_of(config: Config) -> list[str]:
    """Return whom alerts are told to."""
    return [f"way:{name}" for name in config.alerts.ways] + [f"mail:{recipient_key(to)}" for to in config.alerts.email.to]


def check_alerts(config: Config, ways: Mapping[str, Way]) -> None:
    """Raise ConfigError where alerts could not be told as it is configured."""
    for index, name in enumerate(config.alerts.ways):
        if not isinstance(ways.get(name), KINDS):
            kinds = " or ".join(kind.__module__.rpartition(".")[2] for kind in KINDS)
            raise ConfigError("Alerts cannot go this way", expected=f"a way of kind {kinds}", got=name, where=f"$.alerts.ways[{index}]")
    mail = config.alerts.email
    for where, address in [("from_address", mail.from_address)] * bool(mail.to) + [(f"to[{n}]", to) for n, to in enumerate(mail.to)]:
        if not recipient_key(address) or "<" in address or not address.isprintable():
            raise ConfigError("Not an address", expected="name@domain", got=address[:100], where=f"$.alerts.email.{where}")


# -- what is said ------------------------------------------------------------------------------------------------------------------------


def head_of(notice: Notice) -> str:
    """Return a notice's first line."""
    if notice.what == MORE:
        return f"{notice.count} more alerts, told together because there were so many within an hour."
    return HEADS[notice.what].format(duration(notice.lasted_us)) + notice.about.text


def text_of(notice: Notice) -> str:
    """Return a notice in words. What stands in it from outside is harmless already."""
    level = "Serious" if notice.level == SERIOUS else "Warning"
    lines = [head_of(notice) if notice.what == OVER else f"{level}: {head_of(notice)}"]
    if notice.what == MORE:
        lines += [f"- {head_of(part)[:200]}" for part in notice.parts]
        left = notice.count - len(notice.parts)
        lines += [f"- and {left} more"] * (left > 0)
    elif notice.what != OVER and notice.about.why:
        lines.append(notice.about.why)
    return "\n".join(lines)


def link_of(notice: Notice, console_url: str) -> str:
    return console_url.rstrip("/") + (notice.about.page if notice.about else "/")


def fields_of(way: Way, notice: Notice, link: str) -> dict[str, object]:
    """Return what a way out says of a notice."""
    if isinstance(way, Webhook):
        data = {"what": notice.what, "level": "serious" if notice.level == SERIOUS else "warning", "key": notice.key[:500]}
        return {"type": f"alert.{notice.what}", "data": data | {"text": text_of(notice), "link": link}}
    text = text_of(notice)
    if isinstance(way, Slack):
        text = fitting(text, slack_chars_max)
    return {"text": text, "link": link, "link_text": "Show me"}


def fitting(text: str, chars_max: int) -> str:
    """Return as much of a text as fits once it is escaped."""
    room = chars_max
    for at, char in enumerate(text):
        room -= _ESCAPES.get(char, 1)
        if room < 0:
            return text[:at]
    return text


def message_of(config: Config, telling: Telling, link: str) -> Message:
    """Return the email that tells an alert."""
    head = head_of(telling.notice)
    return Message(
        intent=telling.id, campaign=OWN_CAMPAIGN, variant="alert", wave="1", propensity=1.0, to=telling.target.partition(":")[2],
        from_address=config.alerts.email.from_address, from_name="Midflight", subject=f"[Midflight] {head}"[:subject_chars_max],
        text=f"{text_of(telling.notice)}\n\n{link}\n", headers={"Auto-Submitted": "auto-generated"},
    )  # fmt: skip


# -- the work ----------------------------------------------------------------------------------------------------------------------------


class _Call(msgspec.Struct, kw_only=True):
    telling: Telling
    begun: bool = False


class Alerting:
    """The alerts of one data folder. It belongs to one event loop; ``deliver`` makes the call of a way out, by the way's name."""

    def __init__(
        self, config: Config, ways: Mapping[str, Way], deliver: Mapping[str, Deliver], alerts: Alerts, noticing: Noticing, clock: Clock, *,
        verify=True,
    ) -> None:  # fmt: skip
        self.config, self.ways, self.deliver, self.alerts, self.noticing, self.clock = config, ways, deliver, alerts, noticing, clock
        self.targets = targets_of(config)
        self.settings = Settings(repeat_us=int(config.alerts.repeat_hours * hour_us), per_hour=config.alerts.per_hour)
        self.console_url = config.alerts.console_url or f"http://{config.console.host}:{config.console.port}"
        self.carrier = self._carrier(verify)
        self._mailing = asyncio.Lock()
        self._calls: dict[str, _Call] = {}  # under way, by target
        self._ended: list[tuple[_Call, Outcome]] = []
        self.under_way = UnderWay()
        self._looked_s, self._away = -1e9, False
        self._state, saved_us = alerts.remembered()
        self._passed_us = min(max(0, clock.now_us() - saved_us), away_us_max) if saved_us else 0
        self._passed_s, self._saved_s = clock.monotonic_s(), clock.monotonic_s()

    def _carrier(self, verify) -> Carrier | None:
        mail = self.config.alerts.email
        if not mail.to:
            return None
        settings = self.config.channels[mail.channel] | {"connections": 1}
        return carriers_of({mail.channel: settings}, self.clock, verify=verify)[mail.channel]

    def start(self) -> None:
        """After a start: settle what a former process left open."""
        again, unknown = self.alerts.recover(self.targets, self.clock.now_us())
        if again or unknown:
            logger.warning("%d alerts that a former process left open go again, of %d nobody knows", again, unknown)

    async def step(self) -> None:
        """Do what is due, and wait for nobody whom it tells. Whatever does not answer, it is tried again next time."""
        if not self.targets:
            return
        try:
            self._settle()
            if self.clock.monotonic_s() - self._looked_s >= look_s:
                self._looked_s = self.clock.monotonic_s()
                self._decide(await self.noticing.look())
            self._tell()
            self._away = False
        except AWAY as error:
            if not self._away:
                logger.warning("alerts wait, because something did not answer: %s", error)
            self._away = True
        except MISTAKES:
            # Nobody's campaign stops because of a mistake in what tells about it.
            if not self._away:
                logger.exception("alerts wait, because of a mistake of ours")
            self._away = True

    def _decide(self, seen: dict) -> None:
        now_s = self.clock.monotonic_s()
        passed_us = self._passed_us + int(1e6 * max(0.0, now_s - self._passed_s))
        state, notices = step(self._state, seen, passed_us, self.settings)
        if notices or _changed(self._state, state) or now_s - self._saved_s >= keep_s:
            self.alerts.remember(state, notices, self.targets, self.clock.now_us())
            self._saved_s = now_s
        # Only what is on disk counts: where it could not be written, the same is decided again.
        self._state, self._passed_us, self._passed_s = state, 0, now_s

    def _tell(self) -> None:
        free = [target for target in self.targets if target not in self._calls]
        for telling in self.alerts.due(free, self.clock.now_us()):
            call = self._calls[telling.target] = _Call(telling=telling)
            self.under_way.begin(self._told(call))

    async def _told(self, call: _Call) -> None:
        """Tell one target once, and note what became of it, whatever that is."""
        try:
            async with asyncio.timeout(mail_s_max if call.telling.target.startswith("mail:") else call_s_max):
                outcome = await self._outcome(call)
        except Exception as error:
            logger.exception("alert `%s` could not be told", call.telling.id)
            outcome = Outcome(kind="unknown" if call.begun else "later", detail=f"{type(error).__name__}: {error}"[:300])
        self._ended.append((call, outcome))

    async def _outcome(self, call: _Call) -> Outcome:
        telling = call.telling
        kind, _, name = telling.target.partition(":")
        link = link_of(telling.notice, self.console_url)
        if kind == "mail":
            return await self._mailed(call, message_of(self.config, telling, link))
        action = Action(id=telling.id, rule="alerts", way=name, fields=fields_of(self.ways[name], telling.notice, link))
        return await self.deliver[name](action, lambda promise_us: self._begins(call, promise_us))

    async def _mailed(self, call: _Call, message: Message) -> Outcome:
        async with self._mailing:
            prepared = self.carrier.call_of([message])
            promise_us = promise_us_max if prepared and prepared.idempotent else 0

            def begun(_: list[str]) -> None:
                if not self._begins(call, promise_us):
                    raise Withheld

            (result,) = await self.carrier.carry(0, [message], prepared, call.telling.tries, begun)
        kind = {SENT: "sent", PLANNED: "later", MESSAGE_UNKNOWN: "unknown"}.get(result.state, "refused")
        if kind == "later" and call.begun and promise_us:
            kind = "again"
        wait_s = max(0.0, (result.not_before_us - self.clock.now_us()) / 1e6)
        return Outcome(kind=kind, code=result.code, detail=result.detail, retry_s=wait_s)

    def _begins(self, call: _Call, promise_us: int) -> bool:
        """Note that a call begins in this moment; say whether it may."""
        try:
            call.begun = self.alerts.begin(call.telling, promise_us, self.clock.now_us()) or call.begun
        except AWAY as error:
            logger.warning("alert `%s` does not begin: %s", call.telling.id, error)
            return False
        return call.begun

    def _settle(self) -> None:
        while self._ended:
            call, outcome = self._ended[0]
            state = self.alerts.settle(call.telling, outcome, self.clock.now_us())
            if state in (REFUSED, UNKNOWN):
                what = "was not told to" if state == REFUSED else "may not have reached"
                detail = plain(f"{outcome.code} {outcome.detail}", 200)
                logger.error("alert `%s` %s `%s`: %s", call.telling.id, what, call.telling.target, detail)
            self._ended.pop(0)
            del self._calls[call.telling.target]

    async def close(self) -> None:
        """Wait for calls under way, as long as patience lasts; who is cut off is unknown, and a next start says so."""
        await self.under_way.end()
        try:
            self._settle()
        except AWAY as error:
            logger.error("what became of %d alerts cannot be noted: %s", len(self._ended), error)
        if self.carrier:
            await self.carrier.close()


def _changed(before: State, after: State) -> bool:
    """Whether anything is to be remembered but that time has passed."""
    if before.standing.keys() != after.standing.keys() or (before.waits_us < 0) != (after.waits_us < 0):
        return True
    return any(one.told_us != before.standing[key].told_us for key, one in after.standing.items())
