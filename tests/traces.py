"""A world for traces: what happens to a sender is written into a real log, folded by a real engine, and acted on by what a conductor has.

Time is virtual. Each second, or each minute, of it the engine folds what has come, guards look, and rules act; what would leave the machine
is recorded with the moment in which it would have. `Trace.broken` looks at every effect by itself and says what no trace may ever do.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import numpy as np
from acting_world import WorldClock

from midflight.act.action_table import Row
from midflight.act.actions import Actions, Said
from midflight.act.campaigns import Campaigns
from midflight.act.kill_switch import Switch
from midflight.act.links import Links
from midflight.act.outbox import Outbox
from midflight.act.rule_orders import PutRule, PutSegment, RuleOrder, obey, record_of
from midflight.act.rulebook import Rule
from midflight.act.sender import Sender
from midflight.act.stop_list import StopList
from midflight.act.ways.way import Action, Outcome
from midflight.config import Config, config_from
from midflight.events import Event
from midflight.kit.clock import Clock, SteadyClock
from midflight.log import Reader, Record
from midflight.serve import doorlink
from midflight.serve.automation import Automation, checked_ways
from midflight.serve.delivering import signs_of
from midflight.serve.door.storing import open_writer
from midflight.serve.protecting import Protecting, standings
from midflight.store import listing
from midflight.store.experiment import Numbers
from midflight.store.fired import fired_after
from midflight.store.host_local import Engine

SECOND, MINUTE, HOUR, DAY = 1_000_000, 60_000_000, 3_600_000_000, 86_400_000_000
START_US = 1_764_064_800_000_000  # 2025-11-25 10:00 UTC
PLACES = {"Gmail": "gmail.com", "Yahoo": "yahoo.com", "Microsoft": "outlook.com"}
GONE = "550-5.1.1 The email account that you tried to reach does not exist. Please try double-checking the address"
BLOCKED = "550 5.7.1 Service unavailable, client host [192.0.2.1] blocked using zen.spamhaus.org"
BUSY = "450 4.2.1 The user is receiving mail at a rate that prevents additional messages from being delivered"
LATER = "451 4.7.1 Greylisting in action, please come back in 5 minutes"
BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
NOTHING = Record("events", "esp", 0, {}, b"[]")  # a tick, where the log is a door's
turns_max = 200  # of the conductor for one look

# The rules that stand in every trace: a follow-up, two that react at once, and three about numbers that tell the team.
MAIL = {"way": "email", "fields": {"subject": "Still thinking?", "text": "Come back.", "channel": "main", "from_address": "a@shop.example"}}
TEAM = {"way": "slack", "fields": {"text": "Look at this"}, "to_person": False}
RULES: dict[str, dict] = {
    "follow up": {
        "when": {"kind": "absence", "after": {"did": "clicked"}, "no": {"did": "converted"}, "within": "30m"}, "action": MAIL,
        "limits": {"autonomy": "act", "per_recipient": [{"count": 1, "hours": 24}], "expires_minutes": 60, "per_hour": 500},
    },
    "on click": {
        "when": {"kind": "event", "did": "clicked"}, "action": {"way": "hook"},
        "limits": {"autonomy": "act", "per_recipient": [{"count": 2, "hours": 24}], "expires_minutes": 10},
    },
    "reader": {
        "when": {"kind": "segment", "entered": "readers"}, "action": {"way": "hook"},
        "limits": {"autonomy": "act", "cooldown_hours": 24, "expires_minutes": 60},
    },
    "bounces": {
        "when": {"kind": "metric", "metric": "bounce_rate", "above": 0.1, "over": "15m", "at_least": 100}, "action": TEAM,
        "limits": {"autonomy": "act"},
    },
    "few opens": {
        "when": {"kind": "metric", "metric": "open_rate", "below": 0.02, "over": "15m", "at_least": 100, "campaign": "quiet"},
        "action": TEAM, "limits": {"autonomy": "act"},
    },
    "odd bounces": {
        "when": {"kind": "unusual", "metric": "bounce_rate", "is": "higher", "over": "15m"}, "action": TEAM, "limits": {"autonomy": "act"},
    },
}  # fmt: skip
SEGMENTS = {"readers": {"did": "opened", "within": "1h"}}
NUMBERS = ("bounces", "few opens", "odd bounces")


class Done(msgspec.Struct, kw_only=True):
    """One effect: when, in time as it truly went by and by the clock on the wall, of which rule, to whom, and when its cause was."""

    true_us: int
    wall_us: int
    cause_us: int
    id: str
    rule: str
    recipient: str


class Recording:
    """Ways out that keep what would have left."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def said(self, row: Row, rule: Rule, known: dict, now_us: int) -> Said:
        return Said(fields=dict(rule.action.fields))

    async def deliver(self, action: Action, begins: Callable[[int], bool]) -> Outcome:
        if not begins(0):
            return Outcome(kind="later", code="withheld")
        self.trace.note(action)
        return Outcome(kind="sent")

    def can_undo(self, way: str) -> bool:
        return False


class Trace:
    """One trace as it is lived through. ``clock`` goes by; its wall can be set elsewhere. A door may write the log instead of us."""

    def __init__(
        self, folder: Path, config: Config | None = None, *, wall: WorldClock | None = None, steady: bool = False, **settings: object
    ) -> None:
        self.folder = folder
        self.wall = wall or WorldClock(START_US)
        # As a door and a conductor have it; most traces know no other clock than the one that goes by.
        self.clock: Clock = SteadyClock(self.wall) if steady else self.wall
        settings = {
            "automation": {"people_per_hour": 0, "ceiling_per_hour": 0, "person_per_day": 0} | settings.pop("automation", {})
        } | settings
        self.config = config or config_from({"data": str(folder), **settings})
        self.random = np.random.default_rng(5)
        self.numbers_of = itertools.count(1)
        # Where there is a door, the log is its own.
        self.writer = open_writer(folder / "log", self.wall) if config is None else None
        self.coming: list[Record] = []
        self.done: list[Done] = []
        self.first_clicked: dict[str, int] = {}  # when each first clicked without any doubt, in time as it truly went by
        self.runner = asyncio.Runner()
        self.starts()

    # -- the processes -----------------------------------------------------------------------------------------------------------

    def starts(self) -> None:
        """Begin as new processes do, with what is in the folder."""
        self.reader = Reader(self.folder / "log")
        self.engine = Engine(self.config, self.reader, self.clock)
        self.numbers = Numbers(self.config, self.clock)
        self.outbox = Outbox(self.folder / "outbox.db")
        campaigns = Campaigns(self.outbox)
        stops, links = StopList(), Links(bytes(range(64)), "https://m.example")
        self.sender = Sender(
            campaigns, {}, stops, links, self.clock, begun=lambda intents: None, suppressed=self.numbers.suppressed
        )  # fmt: skip
        self.protecting = Protecting(self.outbox, self.numbers, self.sender, self.clock)
        self.actions = Actions(self.outbox)
        self.automation = Automation(
            self.config, checked_ways(self.config), self.actions, campaigns, self.numbers, self.sender, links, stops, Switch(self.folder),
            self.clock, position=lambda: 0, behind=lambda: "",
        )  # fmt: skip
        self.automation.acting.ways = Recording(self)
        self.automation.acting.start()

    def ends(self) -> None:
        """End the processes without a snapshot or a goodbye."""
        self.runner.run(self.automation.close())
        self.runner.run(self.automation.closed())
        self.numbers.close()
        self.outbox.close()
        self.engine.close()
        self.reader.close()

    def close(self) -> None:
        self.ends()
        self.runner.close()
        if self.writer:
            self.writer.close()

    # -- what is asked of it -----------------------------------------------------------------------------------------------------

    def stand(self, *names: str) -> None:
        """Put the standing segments and rules into force, or those of these names, at the engine and at the conductor."""
        for name, where in SEGMENTS.items():
            self.order(PutSegment(id=self.name(), who="ada", name=name, version=1, where=where))
        for name in names or RULES:
            self.order(PutRule(id=self.name(), who="ada", rule=name, version=1, definition=RULES[name]))

    def order(self, order: RuleOrder) -> None:
        self.append([record_of(order)])
        obey(order, self.automation.applying, self.clock.now_us())
        assert not (error := self.automation.applying.campaigns.order_end(order.id)), error

    def name(self) -> str:
        return f"n{next(self.numbers_of)}"

    def append(self, records: list[Record]) -> None:
        """Hand in records; they are in the log before time goes by or anybody looks."""
        self.coming += records

    def flush(self) -> None:
        coming, self.coming = self.coming, []
        if self.writer:
            self.writer.append(coming)
        else:
            doorlink.append(self.config, coming)

    # -- what happens ------------------------------------------------------------------------------------------------------------

    def tell(self, kind: str, people: Iterable[str], at_us: int | None = None, **more: object) -> list[Record]:
        """Write one event about each of these people into the log, as it happens now or as it happened before; return the records."""
        found = [self.event(kind, who, at_us, **more) for who in people]
        records = [Record("events", "esp", 0, {}, msgspec.json.encode(found[at : at + 2000])) for at in range(0, len(found), 2000)]
        self.append(records)
        return records

    def event(self, kind: str, who: str, at_us: int | None = None, **more: object) -> Event:
        at_us = self.clock.now_us() if at_us is None else at_us
        if kind == "clicked" and not more.get("user_agent", BROWSER) != BROWSER:
            self.first_clicked.setdefault(who, self.wall.at_us)
        given = {"campaign": "spring", "message_id": f"m-{who}"} | more
        if kind == "converted":
            given = {"campaign": "spring", "order_id": f"o-{who}", "value_micros": 5_000_000, "currency": "EUR"} | more
        return Event(source="esp", event_id=self.name(), kind=kind, recipient=who, occurred_at_us=at_us, **given)

    def answers(self, rates: dict[tuple[str, str], tuple[int, float]], detail: str = BLOCKED, bounce_class: str = "block") -> int:
        """Let providers answer now for so many messages of campaigns, of which that share bounces; return how many bounced."""
        all_bounced = 0
        for (campaign, provider), (count, rate) in rates.items():
            bounced = int(self.random.binomial(count, rate))
            domain = PLACES.get(provider, provider)
            people = [f"q{next(self.numbers_of)}@{domain}" for _ in range(count)]
            self.tell("delivered", people[bounced:], campaign=campaign)
            self.tell("bounced", people[:bounced], campaign=campaign, bounce_class=bounce_class, code=detail[:9], detail=detail)
            all_bounced += bounced
        return all_bounced

    def usual(self, steps: int = 20, count: int = 100, seconds: float = 5.0) -> None:
        """Live through usual life: two campaigns at three providers, of which 1.5 % bounce."""
        for _ in range(steps):
            self.answers({(campaign, provider): (count, 0.015) for campaign in ("spring", "news") for provider in PLACES}, BUSY, "soft")
            self.pass_by(seconds)

    # -- time --------------------------------------------------------------------------------------------------------------------

    def pass_by(self, seconds: float, step_s: float = 60.0) -> None:
        """Let time go by and everybody do what is due, step by step."""
        left = seconds
        self.flush()
        while left > 0:
            self.wall.sleep_s(min(step_s, left))
            left -= step_s
            self.turn()

    def turn(self) -> None:
        """Let everybody do now what is due now, with a tick of the log as a door writes one each second."""
        self.append([Record("tick", "", 0, {}, b"") if self.writer else NOTHING])
        self.flush()
        self.engine.catch_up()
        self.engine.commit()
        self.protecting.look()
        self.runner.run(self._act())

    async def _act(self) -> None:
        acting = self.automation.acting
        for _ in range(turns_max):
            before = acting.actions.cursor(), len(self.done)
            await acting.step()
            await asyncio.sleep(0)
            while acting.calls:
                await asyncio.sleep(0)
                acting._settle()
            if before == (acting.actions.cursor(), len(self.done)):
                break

    # -- what has become of it ---------------------------------------------------------------------------------------------------

    def note(self, action: Action) -> None:
        cause = self.actions.cause(action.id)
        self.done.append(
            Done(true_us=self.wall.at_us, wall_us=self.clock.now_us(), cause_us=int(cause.get("at_us", 0)), id=action.id, rule=action.rule,
                 recipient=action.recipient)
        )  # fmt: skip

    def of(self, *rules: str) -> list[Done]:
        return [one for one in self.done if one.rule in rules]

    def who(self, rule: str) -> Counter[str]:
        """Return whom a rule reached, and how often."""
        return Counter(one.recipient for one in self.of(rule))

    def ends_of(self, rule: str) -> Counter[str]:
        """Return how the actions of a rule stand: state and reason."""
        return Counter(f"{row['state']} {row['reason']}" for row in self.actions.listed("rule", (rule,), count_max=100_000))

    @property
    def held(self) -> dict[str, str]:
        """Return what is not sent to as usual, and the stage of each."""
        return {one.name: one.stage for one in standings(self.outbox.db) if one.stage != "normal"}

    def signs(self) -> list[dict]:
        with self.numbers.store.view() as view:
            return signs_of(view)

    def suppressed(self) -> dict[str, str]:
        """Return everybody who must not be written to now, and why."""
        with self.numbers.store.view() as view:
            return {row.recipient: row.reason for row in listing.suppressed(view, count_max=100_000)}

    def firings(self) -> Counter[str]:
        with self.numbers.store.view() as view:
            return Counter(one.rule for one in {one.id: one for one in fired_after(view.db, 0, 1_000_000)}.values())

    def sums(self, *measures: str, campaign: str = "") -> dict[str, int]:
        """Return what was counted of a campaign, or of all."""
        with self.numbers.store.view() as view:
            asked = ", ".join(f"coalesce(sum({name}), 0)" for name in measures)
            where = "WHERE campaign = ?" if campaign else "WHERE ? = ''"
            row = view.db.execute(f"SELECT {asked} FROM hours {where}", (view.id("campaign", campaign) if campaign else "",)).fetchone()
            return dict(zip(measures, row, strict=True))

    def broken(self) -> list[str]:
        """Return what happened that may happen in no trace: twice, too late, too early or too often."""
        found = [f"{id} went {n} times" for id, n in Counter(one.id for one in self.done).items() if n > 1]
        for one in self.done:
            limits = RULES[one.rule]["limits"] if one.rule in RULES else {}
            late_us = one.wall_us - one.cause_us - int(limits.get("expires_minutes", 24 * 60)) * MINUTE
            if late_us > 0 and one.recipient:
                found.append(f"{one.rule} to {one.recipient} {late_us / MINUTE:.0f} minutes too late")
            if one.rule == "follow up" and one.true_us - self.first_clicked.get(one.recipient, 1 << 62) < 30 * MINUTE:
                found.append(f"{one.rule} to {one.recipient} before 30 minutes were over")
        for rule, most in (("follow up", 1), ("on click", 2), ("reader", 1)):
            for who in self.who(rule):
                times = sorted(one.true_us for one in self.of(rule) if one.recipient == who)
                if any(late - early < DAY for early, late in zip(times, times[most:], strict=False)):
                    found.append(f"{rule} to {who} more than {most} times within a day")
        return found
