"""The conductor's turns for rules: reads new firings, decides what becomes of each, makes the calls, notes how they ended.

One turn, `Acting.step`, waits for nobody; the conductor takes it again and again. The intent of a call is on disk before the call, and what
may keep it from being made is asked twice: when it is decided on, and again in the moment in which the call begins, with what is true then.
So a limit, a hold, an unsubscribe or an edit that comes in between still counts.

The conductor calls `Acting.start` once, `step` from when the engine has read the log to its end, as for campaigns, and `close` at its end.

A way out is given ``begins`` with each action. It calls it right before the first byte leaves that can have an effect, with how long it
promises that the same call made twice has one effect (0: it does not), and makes no call where the answer is no.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import apsw
import msgspec

from ..act.action_table import CALLED, Row
from ..act.actions import Actions, Said
from ..act.begun import Begun
from ..act.intake import Cursor, Firing
from ..act.kill_switch import Hold, Switch
from ..act.rulebook import Rule
from ..act.touches import ALL, SHADOW
from ..act.ways.way import Action, Outcome
from ..decide.limits import Case, Facts, Radius, Verdict, judge
from ..kit.clock import Clock
from ..kit.crash import crash_point
from ..kit.errors import MidflightError
from ..store.read import TooSlow
from ..stream.providers import PROVIDERS, providers_of
from .under_way import UnderWay

logger = logging.getLogger("midflight.conductor")

take_max = 500  # firings in a turn
decide_min, decide_max = 50, 200  # actions in a turn
calls_max = 400  # under way
way_calls_max = 100  # under way by one way out
undo_max = 20  # under way
call_s_max = 120.0  # a way out has bounds of its own; beyond this one nobody knows
wide_s = 1.0  # so long a rule rests whose next action waits for the rule itself
patience_us = 60_000_000  # a firing may be read before the order that put down its rule has been done
empty_us = 60_000_000  # an empty pool of codes is looked at again
house_s = 1.0
trim_s = 60.0
# What our own code may raise where it is wrong, and what a way out that is wrong may raise.
MISTAKES = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError, AssertionError)
AWAY = (TooSlow, apsw.BusyError, apsw.LockedError, apsw.FullError, apsw.IOError, apsw.CantOpenError, OSError)


class Source(Protocol):
    """Where firings come from; see store/firings.py."""

    def read(self, cursor: Cursor, count_max: int) -> tuple[list[Firing], Cursor]: ...


class People(Protocol):
    """What is known of recipients. Both raise TooSlow where it is not known now, and then nobody is touched."""

    def suppressed(self, recipients: Iterable[str]) -> Mapping[str, str]:
        """Return those who must not be written to, and why."""

    def attributes(self, recipients: Iterable[str]) -> Mapping[str, Mapping[str, object]]:
        """Return what is known of these, by attribute."""


class Ways(Protocol):
    """The ways out."""

    def said(self, row: Row, rule: Rule, known: Mapping[str, object], now_us: int) -> Said:
        """Return what an action says to somebody of whom this is known; part of the transaction of its intent. Raises MidflightError."""

    async def deliver(self, action: Action, begins: Callable[[int], bool]) -> Outcome:
        """Make an action's call once and return what became of it."""

    def can_undo(self, way: str) -> bool:
        """Tell whether what has gone this way can be taken back."""

    async def undo(self, action: Action, made: Outcome) -> Outcome:
        """Take back what an action did: ``sent`` once it is. What is taken back already counts as done, so that it may be asked twice."""


class Stops(Protocol):
    """Knows who has just unsubscribed; see act/stop_list.py."""

    def begin(self, recipients: Iterable[str]) -> set[str]: ...

    def end(self, recipients: Iterable[str]) -> None: ...


class Breakers(msgspec.Struct, kw_only=True):
    """What is held besides everything, each with why: rules, ways out and mailbox providers by name, and all that reaches a ``person``.

    ``mailing`` are the ways out by which providers get something; None where all are.
    """

    rules: dict[str, str] = {}
    ways: dict[str, str] = {}
    providers: dict[str, str] = {}
    mailing: frozenset[str] | None = None
    person: str = ""


class _Call(msgspec.Struct, kw_only=True):
    """A call under way. ``begun`` once its bytes may leave, ``over`` where it was given back and its end does not matter."""

    row: Row
    rule: Rule
    way: str
    begun: bool = False
    over: bool = False
    stopping: bool = False


class Acting:
    """All that acts on firings. It is the only one that changes actions, and belongs to one event loop."""

    def __init__(
        self, actions: Actions, firings: Source, people: People, ways: Ways, *, stops: Stops, switch: Switch, begun: Begun, clock: Clock,
        radius: Radius | None = None, breakers: Callable[[], Breakers] = Breakers, position: Callable[[], int] = lambda: 0,
    ) -> None:  # fmt: skip
        self.actions, self.firings, self.people, self.ways = actions, firings, people, ways
        self.stops, self.switch, self.begun, self.clock = stops, switch, begun, clock
        self.radius, self.breakers, self.position = radius or Radius(), breakers, position
        self.hold, self._noted = Hold(), True
        self.calls: dict[str, _Call] = {}
        self.ended: list[tuple[str, Outcome]] = []
        self._starting: list[tuple[Row, Rule, Action]] = []  # decided on in this turn
        self.under_way = UnderWay()
        self._undoing: set[str] = set()
        self._undone: list[tuple[str, Outcome]] = []
        self._resting: dict[str, float] = {}  # rules whose next action waits for the rule itself, and until when
        self._log_us = 0  # of the last firing
        self._house_s = self._trimmed_s = clock.monotonic_s()
        self._away = False

    def start(self) -> tuple[int, int]:
        """After a start: settle what a former process left open. Return how many calls go again, and how many are unknown."""
        found = self.actions.recover(self.clock.now_us(), self.begun.found)
        self.begun.start()
        return found

    async def step(self) -> None:
        """Do what is due. Nothing in here waits for anybody; where disk or store do not answer, it is tried again next time."""
        self.look_at_switch()
        try:
            self._settle()
            self._keep_house()
            self._take()
            if not self.hold.held:
                self._decide()
            self._undo()
            self._away = False
        except AWAY as error:
            if not self._away:
                logger.warning("actions wait, because something did not answer: %s", error)
            self._away = True

    async def close(self) -> None:
        """Wait for calls under way, as long as patience lasts; who is cut off is unknown, and a next start says so."""
        await self.under_way.end()
        try:
            self._settle()
        except AWAY as error:
            logger.error("what became of %d calls cannot be noted, and is unknown from now on: %s", len(self.ended), error)

    # -- the switch --------------------------------------------------------------------------------------------------------------

    def look_at_switch(self) -> Hold:
        """See whether everything is held, and note each turn of the switch; the hold itself needs no note."""
        now = self.switch.look()
        if now != self.hold or not self._noted:
            self.hold, self._noted = now, False
            try:
                self._note_turn(now)
                self._noted = True
            except AWAY as error:
                logger.warning("a turn of the kill switch is not in the ledger yet: %s", error)
        return now

    def _note_turn(self, now: Hold) -> None:
        with self.actions.transaction():
            noted = self.actions.meta("hold_number", 0)
            if now.number not in (noted, 0):
                self.actions.set_meta("hold_number", now.number)
                text = "held everything" if now.held else "let everything go on"
                self.actions.note("", "", "hold" if now.held else "release", now.who, text, now.why, self.clock.now_us())

    # -- firings -----------------------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        before = self.actions.cursor()
        firings, cursor = self.firings.read(before, take_max)
        if cursor != before:
            taken = self.actions.take(firings, cursor, self.clock.now_us())
            times = [firing.fired_us for firing in firings if isinstance(firing.fired_us, int)]
            self._log_us = max(self._log_us, *times, 0)
            if taken.bad:
                logger.error("%d firings cannot be read and are set aside", taken.bad)

    def _keep_house(self) -> None:
        now_s, now_us = self.clock.monotonic_s(), self.clock.now_us()
        if now_s - self._house_s >= house_s:
            self._house_s = now_s
            self.actions.expire(now_us)
            self.begun.tidy(self.actions.called())
        if now_s - self._trimmed_s >= trim_s and self._log_us:
            elapsed_us = int((now_s - self._trimmed_s) * 1e6)
            self._trimmed_s = now_s
            self.actions.trim(self._log_us, now_us, elapsed_us)

    # -- deciding ----------------------------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Decide on what may be decided on, and start the calls of what may act."""
        now_us, now_s = self.clock.now_us(), self.clock.monotonic_s()
        self.actions.wake(now_us)
        self._resting = {rule: until_s for rule, until_s in self._resting.items() if now_s < until_s <= now_s + wide_s}
        busy = Counter(call.way for call in self.calls.values())
        full = {way for way, count in busy.items() if count >= way_calls_max}
        # Most of what is read is called: so many that have no room are not read again and again.
        room = max(decide_min, sum(way_calls_max - count for count in busy.values())) if busy else decide_max
        rows = self.actions.ready(
            min(decide_max, room, calls_max - len(self.calls)), {*self._resting, *self.actions.book.by_ways(full)}
        )  # fmt: skip
        if not rows:
            return
        keys = {row.recipient for row in rows if row.recipient}
        suppressed, attributes = self.people.suppressed(keys), self.people.attributes(keys)
        self._starting = called = []
        with self.actions.transaction():
            for row in rows:
                if row.rule in self._resting or row.id in self.calls:
                    continue
                rule = self.actions.book.rule(row.rule, row.version)
                if rule and busy[rule.action.way] >= way_calls_max:
                    self._resting[row.rule] = now_s
                    continue
                action = self._decided(row, rule, suppressed, attributes, now_us)
                if action is not None:
                    busy[action.way] += 1
                    called.append((row, rule, action))
            crash_point("before_action_intent")
        crash_point("after_action_intent")
        for row, rule, action in called:
            self._start(msgspec.structs.replace(row, touched_us=now_us), rule, action)
        self._starting = []

    def _decided(self, row: Row, rule: Rule | None, suppressed: Mapping, attributes: Mapping, now_us: int) -> Action | None:
        """Decide on one action; a mistake in it costs this one, and no other."""
        try:
            with self.actions.db:
                return self._noted_decision(row, rule, suppressed, attributes, now_us)
        except MidflightError as error:
            self.actions.touches.forget()
            return self.actions.decide(row, rule, unsayable(error, now_us), now_us)
        except MISTAKES as error:
            logger.exception("action `%s` of rule `%s` cannot be decided on", row.id, row.rule)
            self.actions.touches.forget()
            words = f"a mistake of ours: {type(error).__name__}: {error}"[:300]
            return self.actions.decide(row, rule, Verdict(kind="drop", reason="bad_firing", words=words), now_us)

    def _noted_decision(self, row: Row, rule: Rule | None, suppressed: Mapping, attributes: Mapping, now_us: int) -> Action | None:
        touched = self.actions.step_back(row)
        verdict = self._judged(row, rule, suppressed, attributes, now_us)
        self.actions.put_back(row, touched)
        if verdict.wide:
            self._resting[row.rule] = self.clock.monotonic_s() + wide_s
        said = None
        if verdict.kind == "act" and not row.maybe_us:
            known = {**attributes.get(row.recipient, {}), "event": self.actions.cause(row.id)}
            said = self.ways.said(row, rule, known, now_us)
        return self.actions.decide(row, rule, verdict, now_us, said, self.position())

    def _judged(self, row: Row, rule: Rule | None, suppressed: Mapping, attributes: Mapping, now_us: int) -> Verdict:
        if row.maybe_us and now_us >= row.maybe_us + row.promise_us:
            return Verdict(kind="drop", reason="no_answer")
        if rule is None:
            return self._without_rule(row, now_us)
        return judge(self._case(row, rule, suppressed, attributes, now_us))

    def _without_rule(self, row: Row, now_us: int) -> Verdict:
        """Say what becomes of a firing whose rule is not in force: it may be put down in a moment, or it was edited or removed."""
        now = self.actions.book.known(row.rule)
        if now is not None and row.version < now.oldest:
            return Verdict(kind="drop", reason="removed" if now.removed else "edited")
        if now_us - row.fired_us > patience_us:
            return Verdict(kind="drop", reason="no_rule", words=f"version {row.version}")
        return Verdict(kind="wait", reason="no_rule", until_us=now_us + int(wide_s * 1e6))

    def _case(self, row: Row, rule: Rule, suppressed: Mapping, attributes: Mapping, now_us: int) -> Case:
        """Return all that limits look at, as it is now."""
        touches, way, limits = self.actions.touches, rule.action.way, rule.limits
        counted = (SHADOW if rule.autonomy == "observe" else "") + row.rule
        hour, day = touches.rule(counted, now_us)
        breakers = self.breakers()
        person = row.recipient if rule.action.to_person else ""
        under_way = [by for who, id, by in self.under_way_now() if who == row.recipient and id != row.id] if row.recipient else []
        mailed = person and breakers.providers and (breakers.mailing is None or way in breakers.mailing)
        facts = Facts(
            now_us=now_us, approved=row.approved, suppressed=suppressed.get(row.recipient, ""), held=self.hold.text(),
            breaker=breakers.rules.get(row.rule) or breakers.ways.get(way) or (breakers.person if rule.action.to_person else ""),
            provider=breakers.providers.get(provider_of(person), "") if mailed else "",
            zone=attributes.get(row.recipient, {}).get(limits.hours.zone_attribute, ""),
            times_us=touches.times_us(row.recipient, counted, now_us, limits.window_us) if limits.window_us else (),
            person=touches.person(person, now_us) if person and self.radius.person_per_day else 0,
            rule_hour=hour, rule_day=day, people=touches.people(ALL, now_us), people_way=touches.people(way, now_us),
            among=touches.among(ALL, row.recipient, now_us, len(under_way)),
            among_way=touches.among(way, row.recipient, now_us, under_way.count(way)),
        )  # fmt: skip
        return Case(
            fired=row.fired, limits=limits, way=way, to_person=rule.action.to_person, autonomy=rule.autonomy, radius=self.radius,
            facts=facts,
        )  # fmt: skip

    def under_way_now(self) -> Iterator[tuple[str, str, str]]:
        """Yield whom calls are about whose end is not noted, with action and way out."""
        for id, call in self.calls.items():
            yield call.row.recipient, id, call.way
        for row, _, action in self._starting:
            yield row.recipient, row.id, action.way

    # -- calls -------------------------------------------------------------------------------------------------------------------

    def _start(self, row: Row, rule: Rule, action: Action) -> None:
        call = _Call(row=row, rule=rule, way=action.way)
        self.calls[row.id] = call
        self.under_way.begin(self._call(call, action))

    async def _call(self, call: _Call, action: Action) -> None:
        try:
            outcome = await self._outcome(call, action)
            if not call.over:
                self.ended.append((action.id, outcome))
        finally:
            if call.stopping:
                self.stops.end([action.recipient])
            if call.over:
                del self.calls[action.id]

    async def _outcome(self, call: _Call, action: Action) -> Outcome:
        """Return what became of a call, whatever its way out does: it hangs, it raises, it says what nobody knows."""
        try:
            async with asyncio.timeout(call_s_max):
                outcome = await self.ways.deliver(action, lambda promise_us: self._begins(call, promise_us))
            crash_point("after_action_call")
            if outcome.kind in ("sent", "unknown", "again") and not call.begun and not call.over:
                logger.error("way out `%s` called without asking", action.way)
            return outcome
        except Exception as error:
            # A way out may be anybody's code: whatever it raises costs this action alone.
            logger.exception("way out `%s` failed with action `%s`", action.way, action.id)
            kind = "unknown" if call.begun else "later"
            return Outcome(kind=kind, detail=f"{type(error).__name__}: {error}"[:300])

    def _begins(self, call: _Call, promise_us: int) -> bool:
        """Say whether a call may begin in this moment, and note that it does."""
        if call.over:
            return False
        if call.begun:
            # The same call once more, which did nothing the first time.
            return not self.look_at_switch().held
        row = call.row
        person = [row.recipient] if row.recipient and call.rule.action.to_person else []
        try:
            self.look_at_switch()
            suppressed = dict(self.people.suppressed([row.recipient])) if person else {}
            attributes = self.people.attributes([row.recipient]) if row.recipient else {}
            if person and not call.stopping:
                if self.stops.begin(person):
                    suppressed[row.recipient] = "unsubscribed"
                else:
                    call.stopping = True
            call.begun = self._judged_again(call, suppressed, attributes, promise_us)
            call.over = not call.begun
        except (*AWAY, *MISTAKES) as error:
            # Nothing has left. It stays an open call, which ends as one that is tried again.
            logger.warning("action `%s` does not begin: %s", row.id, error)
            return False
        if call.begun:
            crash_point("before_action_call")
        return call.begun

    def _judged_again(self, call: _Call, suppressed: Mapping, attributes: Mapping, promise_us: int) -> bool:
        """Judge a call with what is true now, and note that it begins, or what becomes of it instead."""
        now_us = self.clock.now_us()
        with self.actions.transaction(synced=False):
            row = self.actions.row(call.row.id)
            assert row is not None and row.state == CALLED, "a call begins that is not open"
            rule = self.actions.book.rule(row.rule, row.version)
            touched = self.actions.step_back(row)
            verdict = self._judged(row, rule, suppressed, attributes, now_us)
            # The intent's own touch was for a call that has not begun.
            self.actions.put_back(row, (at_us for at_us in touched if at_us != row.touched_us))
            if verdict.kind == "act":
                self.actions.begin(row, promise_us, now_us)
            else:
                self.actions.give_back(row, rule, verdict, now_us)
            crash_point("before_action_begins")
        if verdict.kind == "act":
            # Until its name stands there, a call that was cut off has not been made.
            self.begun.note([row.id])
        return verdict.kind == "act"

    def _settle(self) -> None:
        """Note how calls ended. Where it cannot be noted now, it is kept, and noted next time."""
        batch = self.ended[:]
        if batch:
            self.actions.settle(batch, self.clock.now_us())
            del self.ended[: len(batch)]
            for id, _ in batch:
                self.calls.pop(id, None)
        while self._undone:
            self.actions.undo_ended(*self._undone[0], self.clock.now_us())
            self._undoing.discard(self._undone.pop(0)[0])

    # -- undoing -----------------------------------------------------------------------------------------------------------------

    def _undo(self) -> None:
        """Start to take back what somebody wants taken back: a person asked for it, so it goes also while everything is held."""
        room = undo_max - len(self._undoing)
        if room <= 0:
            return
        for row in self.actions.to_undo(self.clock.now_us(), undo_max):
            if row.id not in self._undoing and len(self._undoing) < undo_max:
                self._undoing.add(row.id)
                self.under_way.begin(self._taken_back(row))

    async def _taken_back(self, row: Row) -> None:
        outcome = Outcome(kind="later", detail="cut off")
        try:
            if not self.ways.can_undo(row.way):
                outcome = Outcome(kind="refused", detail="its way out cannot take it back")
                return
            async with asyncio.timeout(call_s_max):
                outcome = await self.ways.undo(self.actions.action(row.id), self.actions.made(row.id))
        except Exception as error:
            logger.exception("action `%s` could not be undone", row.id)
            outcome = Outcome(kind="later", detail=f"{type(error).__name__}: {error}"[:300])
        finally:
            self._undone.append((row.id, outcome))


def unsayable(error: MidflightError, now_us: int) -> Verdict:
    """Return what becomes of an action that cannot be said as it is."""
    if error.code == "pool_empty":
        return Verdict(kind="wait", reason="no_code", words=error.text(), until_us=now_us + empty_us)
    return Verdict(kind="drop", reason="no_way" if error.code == "no_way" else "content", words=error.text())


def provider_of(recipient: str) -> str:
    """Return the name of a recipient's mailbox provider."""
    return PROVIDERS[providers_of([recipient])[0]]
