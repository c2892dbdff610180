"""What those who run this should know of now, from wherever it is kept: numbers, sources, guards, campaigns, rules, the kill switch.

Every origin is looked at by itself: one that cannot be looked at says nothing, and what it saw before stands on. Names come from outside
and stand in text that somebody reads in a chat; `plain` makes them harmless.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlencode

import apsw
import msgspec

from ..act.campaigns import Campaigns
from ..act.kill_switch import Switch
from ..config import Config
from ..decide.alerting import SERIOUS, WARNING, Condition, hour_us, minute_us
from ..decide.breaker import NORMAL, RETURNING
from ..decide.signs import SIGNS
from ..decide.unusual import Unusual
from ..events import clean
from ..kit.clock import Clock
from ..kit.errors import MidflightError
from ..store import listing
from ..store.experiment import Numbers
from ..store.read import View
from .protecting import standings
from .watch import campaigns_max, unusual_in

logger = logging.getLogger("midflight.conductor")

OWN_CAMPAIGN = "Midflight alerts"  # what our own emails belong to
store_s = 30.0  # between two looks at what is found out once a minute
active_minutes = 24 * 60
recent_us = 24 * hour_us  # so long a call that went wrong, or a variant that was dropped, is news
counted_max = 1_000
text_chars_max = 600
key_chars_max = 600
ledger_max = 5_000  # lines of the ledger that are looked through for what guards did of late
signs_hours = 24
signs_min = 3  # bounces within a day that name the same blocker
old_s = 60.0  # older numbers hold everything that is sent
# What may keep one origin from being looked at; the others go on.
TROUBLES = (MidflightError, apsw.Error, OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError)
SIGN_OF = {sign.id: sign for sign in SIGNS}
CAMPAIGN_KINDS = ("bounces", "machines", "complaints")
_LINK = re.compile(r"(?<=[^\W_])\.(?=[^\W\d_])")
_ODD = re.compile("[\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]")

Seen = dict[str, list[Condition] | None]


def plain(text: object, chars_max: int = text_chars_max) -> str:
    """Return text of which no part becomes a link or turns the direction of writing: one line, cut."""
    text = _ODD.sub("", clean(text)).replace("://", ": //")
    text = _LINK.sub(".\u2060", text)
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"


def named(text: object) -> str:
    return f"`{plain(text, 80).replace('`', chr(39))}`"


class Noticing:
    """All that looks. ``channels`` says for each channel why nothing may go by it now, or nothing."""

    def __init__(
        self, config: Config, clock: Clock, numbers: Numbers, campaigns: Campaigns, switch: Switch,
        channels: Callable[[], Mapping[str, str]],
    ) -> None:  # fmt: skip
        self.config, self.clock, self.numbers, self.switch, self.channels = config, clock, numbers, switch, channels
        self.db = campaigns.db
        self._stored: Seen = {}
        self._stored_s = -1e9
        self._away: set[str] = set()

    async def look(self) -> Seen:
        """Return what stands now, by origin; None for one that could not be looked at. Never raises for what is looked at."""
        now_us = self.clock.now_us()
        here = {
            "switch": self._switch, "numbers": lambda: self._numbers(now_us), "channels": self._channels, "breakers": self._breakers,
            "guards": lambda: self._guards(now_us), "rules": lambda: self._rules(now_us),
        }  # fmt: skip
        seen = {origin: self._seen(origin, found) for origin, found in here.items()}
        if self.clock.monotonic_s() - self._stored_s >= store_s:
            self._stored = await asyncio.to_thread(self._from_store)
            self._stored_s = self.clock.monotonic_s()
        return seen | self._stored

    def _seen(self, origin: str, found: Callable[[], Iterator[Condition]]) -> list[Condition] | None:
        try:
            conditions = list(found())
        except TROUBLES as error:
            if origin not in self._away:
                self._away.add(origin)
                logger.warning("alerts: %s cannot be looked at: %s", origin, error)
            return None
        self._away.discard(origin)
        # Keys are made of names, and are kept as JSON.
        return [msgspec.structs.replace(one, key=clean(one.key)[:key_chars_max]) for one in conditions]

    # -- what the store knows ----------------------------------------------------------------------------------------------------

    def _from_store(self) -> Seen:
        """Look at what is judged by the minute; in a thread, because it reads hours of cells."""
        looks = {"unusual": self._unusual, "signs": self._signs, "letters": self._letters}
        return {origin: self._seen(origin, lambda look=look: self._in_view(look)) for origin, look in looks.items()}

    def _in_view(self, look: Callable[[View], Iterator[Condition]]) -> Iterator[Condition]:
        with self.numbers.store.view() as view:
            if not view.present:
                raise MidflightError("there are no numbers yet")
            yield from look(view)

    def _unusual(self, view: View) -> Iterator[Condition]:
        rows = view.campaigns(limit=campaigns_max, since_minute=view.now_us // minute_us - active_minutes)
        for one in unusual_in(view, [row for row in rows if row["name"] != OWN_CAMPAIGN], self.config.folder):
            yield of_unusual(one)

    def _signs(self, view: View) -> Iterator[Condition]:
        for id, provider, n, _, _, _ in listing.blocking(view, signs_hours):
            sign = SIGN_OF.get(id)
            if sign is None or n < signs_min:
                continue
            yield Condition(
                key=f"sign/{id}/{provider}", origin="signs", level=SERIOUS if sign.kind == "list" else WARNING,
                text=plain(f"{sign.who} blocks us, says {provider or 'a provider'}: {n} bounces of the last day name it."),
                why=plain(f"{sign.what} {sign.advice}"), page="/deliverability#signs-title", quiet_us=hour_us,
            )  # fmt: skip

    def _letters(self, view: View) -> Iterator[Condition]:
        for source, n in view.dead_counts(counted_max).items():
            yield Condition(
                key=f"letters/{source}", origin="letters", level=WARNING,
                text=f"{many(n, 'request')} of source {named(source)} could not be read.",
                why="They wait among the dead letters, with the reason. Mend what is wrong, and replay them: nothing counts twice.",
                page="/sources?" + urlencode({"source": source}) + "#letters", quiet_us=10 * minute_us,
            )  # fmt: skip

    # -- what is known here ------------------------------------------------------------------------------------------------------

    def _switch(self) -> Iterator[Condition]:
        hold = self.switch.look()
        if hold.held:
            yield Condition(
                key="switch", origin="switch", level=SERIOUS, text=plain(f"Everything is {hold.text()}."), page="/rules",
                why="No campaign and no rule reaches anybody until somebody lets them go on.",
            )  # fmt: skip

    def _numbers(self, now_us: int) -> Iterator[Condition]:
        try:
            _, log_time_us = self.numbers.position()
        except MidflightError as error:
            why, text = plain(error.text()), "The numbers cannot be read."
        else:
            old_us = now_us - log_time_us if log_time_us else 0
            why, text = "", f"The numbers are {duration(old_us)} old." if old_us > old_s * 1e6 else ""
        if text:
            yield Condition(
                key="numbers", origin="numbers", level=SERIOUS, text=text, page="/sources", patience_us=minute_us, quiet_us=minute_us,
                why=f"{why} Nothing is sent meanwhile: who has unsubscribed is not known. See whether door and engine run.".strip(),
            )  # fmt: skip

    def _channels(self) -> Iterator[Condition]:
        for name, why in self.channels().items():
            if why:
                yield Condition(
                    key=f"channel/{name}", origin="channels", level=SERIOUS, text=f"Nothing can be sent by channel {named(name)}.",
                    why=plain(why), page="/experiments", patience_us=2 * minute_us, quiet_us=5 * minute_us,
                )  # fmt: skip

    def _breakers(self) -> Iterator[Condition]:
        for one in standings(self.db, self.config.sending.speed):
            if one.stage == NORMAL:
                continue
            level = WARNING if one.stage == RETURNING else SERIOUS
            what = "comes back step by step" if one.stage == RETURNING else "is held"
            yield Condition(
                key=f"breaker/{one.kind}/{one.name}", origin="breakers", level=level, page="/deliverability",
                text=f"What {'goes to' if one.kind in ('provider', 'domain') else 'belongs to'} {one.kind} {named(one.name)} {what}.",
                why=plain(f"{one.text.rstrip('.')}. It waits for this: {one.waits}"),
            )  # fmt: skip

    def _guards(self, now_us: int) -> Iterator[Condition]:
        """Campaigns that a guard has paused, and variants that one has taken out."""
        paused = self.db.execute(
            "SELECT c.name, d.why FROM campaigns c JOIN decisions d ON d.number = "
            "(SELECT max(number) FROM decisions WHERE campaign = c.id AND kind = 'change' AND text IN ('paused', 'sending')) "
            "WHERE c.state = 'paused' AND d.who = 'guard' AND d.text = 'paused'"
        ).fetchall()
        for name, why in paused:
            yield Condition(
                key=f"paused/{name}", origin="guards", level=SERIOUS, text=f"A guard has paused campaign {named(name)}.", why=plain(why),
                page=experiment(name),
            )  # fmt: skip
        dropped = self.db.execute(
            "SELECT d.number, c.name, d.text FROM (SELECT * FROM decisions ORDER BY number DESC LIMIT ?) d "
            "JOIN campaigns c ON c.id = d.campaign WHERE d.kind = 'guard' AND d.at_us > ? AND c.state IN ('sending', 'paused', 'done')",
            (ledger_max, now_us - recent_us),
        ).fetchall()
        for number, name, text in dropped:
            if name in dict(paused):
                continue
            yield Condition(
                key=f"guard/{name}/{number}", origin="guards", level=SERIOUS, text=f"A guard has acted on campaign {named(name)}.",
                why=plain(text), page=experiment(name), lasting=False,
            )  # fmt: skip

    def _rules(self, now_us: int) -> Iterator[Condition]:
        """What waits for somebody in the inbox."""
        for rule, n in self.db.execute("SELECT rule, n FROM action_totals WHERE state = 1 AND n > 0 ORDER BY rule LIMIT ?", (counted_max,)):
            yield Condition(
                key=f"suggested/{rule}", origin="rules", level=WARNING, page="/inbox", quiet_us=hour_us,
                text=f"{many(n, 'suggestion')} of rule {named(rule)} {'waits' if n == 1 else 'wait'} for somebody to approve.",
            )  # fmt: skip
        for key, where, text, why in RECENT:
            n = self.db.execute(
                f"SELECT count(*) FROM (SELECT changed_us FROM actions WHERE {where} ORDER BY number DESC LIMIT ?) WHERE changed_us > ?",
                (counted_max, now_us - recent_us),
            ).get
            if n:
                yield Condition(
                    key=key, origin="rules", level=WARNING, text=text.format(many(n, "action")), why=why, page="/inbox",
                    patience_us=10 * minute_us, quiet_us=10 * minute_us,
                )  # fmt: skip


# Of the last day: what says which actions, and what is told of them.
RECENT = (
    ("unknown", "state = 5", "Of {} of the last day nobody knows whether it reached anybody.",
     "A call had no answer, and is not made again. Say in the inbox what became of it."),
    ("given_up", "state = 7 AND reason = 'gave_up'", "{} of the last day could not be told to anybody, and was given up.",
     "The other end did not take it. The inbox shows why, and can try again."),
)  # fmt: skip


def of_unusual(one: Unusual) -> Condition:
    """Return what is unusual as a condition. It is judged anew each minute, so that it comes and goes a little."""
    about_campaign = one.kind in CAMPAIGN_KINDS and one.campaign
    page = "/campaign?" + urlencode({"name": one.campaign}) if about_campaign else "/sources"
    return Condition(
        key=f"{one.kind}/{one.campaign}/{one.subject}", origin="unusual", level=SERIOUS if one.severity == "serious" else WARNING,
        text=plain(one.text), why=plain(one.why), page=page, quiet_us=15 * minute_us,
    )  # fmt: skip


def experiment(name: str) -> str:
    return "/experiment?" + urlencode({"name": name})


def many(n: int, what: str) -> str:
    count = f"{n:,} or more" if n >= counted_max else f"{n:,}"
    return f"{count} {what}{'' if n == 1 else 's'}"


def duration(us: int) -> str:
    """Return a time in words, in its largest fitting unit."""
    seconds = max(0, us) // 1_000_000
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}s"
    return f"{seconds} seconds"
