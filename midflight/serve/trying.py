"""What rules would have done: a backtest's firings, acted on as the conductor acts, by log time and with nobody at the other end.

Firings come from the code that folds (evaluate/backtest.py), and what becomes of them is decided by the conductor's own turns
(serve/acting.py) on a file of actions in memory. The clock is the log's, the kill switch is off, and each call succeeds at once.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import available_timezones

import apsw
import msgspec
import numpy as np

from ..act.action_table import APPROVED, STATES, SUGGESTED, WAITING, Row
from ..act.actions import Actions, Said
from ..act.intake import Cursor, Firing
from ..act.kill_switch import Hold
from ..act.outbox import Outbox
from ..act.rulebook import Rule
from ..act.stop_list import StopList
from ..act.ways.way import Action, Outcome
from ..config import Config
from ..decide.acts import acts_of
from ..decide.dead_addresses import FINE
from ..decide.definitions import Definitions
from ..decide.limits import hour_us, minute_us
from ..evaluate.backtest import Backtest, Change
from ..evaluate.backtest import Firing as Fired
from ..kit.clock import Clock, VirtualClock
from ..kit.errors import MidflightError, nearest
from ..log import Reader, Record
from ..store.folding import cause_json
from ..store.read import WrongQuery, iso
from ..store.schema import SCHEMA
from ..store.suspecting import Suspecting
from ..store.write import Changes
from ..stream.conditions import BadCondition, duration_us
from ..stream.edge import Prepared
from ..stream.program import value_of
from ..stream.shard import Effects
from ..stream.tables import NEVER
from .acting import Acting, decide_max, take_max
from .automation import radius_of

apart_s_max = 60.0  # a longer log is for the command line
drained_every = 5_000  # firings between two looks at what has ended, so that memory does not grow with them
niceness = 10
_one = threading.Lock()


class Asked(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What is tried: ``segments`` as name -> condition, ``rules`` as name -> definition; from when to when, as ISO 8601, unix seconds, or a
    length of time before the log's end. With ``others`` the other rules that are in force stay beside them, and are told of too."""

    rules: dict[str, dict] = {}
    segments: dict[str, dict] = {}
    from_: str = ""
    to: str = ""
    others: bool = False


class Ended(msgspec.Struct, kw_only=True, frozen=True):
    """A firing, and what would have become of it: ``end`` is a state of act/actions.py, ``reason`` one of decide/limits.py. ``acted_us`` is
    when it would have been called, 0 where it never was."""

    id: str
    rule: str
    version: int
    recipient: str
    fired_us: int
    cause_us: int
    end: str
    reason: str
    words: str
    acted_us: int


class OfRule(msgspec.Struct, kw_only=True):
    """Sums of one rule's firings; ``hours`` is how many fired in each, by hours since 1970."""

    rule: str
    fired: int = 0
    people: int = 0
    ends: dict[str, int] = {}
    reasons: dict[str, int] = {}
    hours: dict[int, int] = {}


class Found(msgspec.Struct, kw_only=True):
    """What a backtest found. ``firings`` are the first of them; ``people`` is how many the log knows."""

    rules: list[OfRule]
    firings: list[Ended]
    records: int
    events: int
    people: int
    seconds: float
    from_us: int
    to_us: int


class Busy(MidflightError):
    """A backtest that cannot be run beside the console now."""

    status = 503
    code = "busy"


# -- one run -------------------------------------------------------------------------------------------------------------


def run(
    config: Config, asked: Asked, *, each: Callable[[Ended], None] = lambda ended: None,
    note: Callable[[int, int], None] = lambda records, events: None, firings_max: int = 0, clock: Clock | None = None,
) -> Found:  # fmt: skip
    """Read the log with these rules in force, and call ``each`` with every firing whose end is known.

    ``note`` is told how many records were read more, and how many events in all. Raises MidflightError for what could not be put into
    force, and for a log without records.
    """
    with Reader(config.folder / "log") as log:
        from_us, to_us = span_of(log, asked)
        return asyncio.run(_Run(config, log, asked, from_us, to_us, each, note, firings_max, clock or Clock()).all())


def records_in(config: Config) -> int:
    """Return how many records a backtest reads at most."""
    with Reader(config.folder / "log") as log:
        return log.head() - log.first()


def span_of(log: Reader, asked: Asked) -> tuple[int, int]:
    """Return from when to when, in us. Raises WrongQuery."""
    first = log.read(log.first(), 1)
    if not first:
        raise WrongQuery("The log is empty", where="log", todo="A backtest reads what has happened; nothing has yet")
    end_us = log.read(log.head() - 1, 1)[-1].at_us
    from_us = moment_us(asked.from_, end_us, "from") if asked.from_ else first[0].at_us
    to_us = moment_us(asked.to, end_us, "to") if asked.to else end_us + 1
    if from_us >= to_us:
        raise WrongQuery("Nothing lies between", expected="`from` before `to`", got=f"{iso(from_us)} and {iso(to_us)}", where="from")
    return from_us, to_us


def moment_us(text: str, end_us: int, where: str) -> int:
    """Return a time that somebody said: ISO 8601, unix seconds, or `7d` before the log's end. Raises WrongQuery."""
    text = text.strip()
    try:
        if text.isdigit():
            return int(text[:12]) * 1_000_000
        if text and text[-1] in "smhdw":
            return end_us - duration_us(text, where)
        at = datetime.fromisoformat(text)
        return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1e6)
    except (ValueError, OverflowError, BadCondition):
        expected = "a time as 2026-11-27T08:00, or a length before the log's end as 7d"
        raise WrongQuery("Not a time", expected=expected, got=text[:40], where=where) from None


class Folded(Backtest):
    """A backtest that also keeps what limits look at: who must not be written to since when, and people's time zones."""

    def __init__(self, config: Config, log: Reader, change: Change, from_us: int, to_us: int) -> None:
        super().__init__(config, log, change, from_us, to_us)
        self.gone: dict[str, tuple[str, int]] = {}
        db = apsw.Connection(":memory:")
        db.execute(SCHEMA)
        self.addresses = Suspecting(db)
        self.zones: dict[str, dict[str, str]] = {}  # recipient -> attribute -> time zone
        self.zone_attributes: set[str] = set()
        self._zone_of = {value_of(name)[1]: name for name in available_timezones()}

    def apply(self, prepared: Prepared, recent_from_us: int = NEVER) -> list[Effects]:
        effects = super().apply(prepared, recent_from_us)
        self.addresses.hear(prepared, effects)
        self.addresses.write(prepared.log_time_us)
        changes = Changes()
        changes.suppress(prepared, effects)
        for recipient, (why, at_us) in changes.suppressions.items():
            if why:
                self.gone.setdefault(recipient, (why, at_us))
            elif self.gone.get(recipient, ("", 0))[0] == "unsubscribed":
                del self.gone[recipient]
        self._note_zones(prepared)
        return effects

    def suppressed(self, recipient: str, now_us: int) -> str:
        """Return why somebody must not be written to, or nothing."""
        why, at_us = self.gone.get(recipient, ("", 0))
        if why and at_us <= now_us:
            return why
        row = self.addresses.row(recipient)
        return row.address.reason if row and row.address.status != FINE and row.address.until_us > now_us else ""

    def listed(self, record: Record) -> None:
        self.addresses.obey(record)

    def _note_zones(self, prepared: Prepared) -> None:
        given = prepared.batch.given
        for name in self.zone_attributes:
            number = self.names.ids["trait"].get(name, 0)
            found = np.flatnonzero(given.name == number) if number else ()
            if len(found):
                recipients = prepared.recipients(given.row[found])
                for recipient, text in zip(recipients, given.text[found].tolist(), strict=True):
                    if text in self._zone_of:
                        self.zones.setdefault(recipient, {})[name] = self._zone_of[text]


class _Quiet:
    """What Acting needs of the world outside, where there is none."""

    found: set[str] | None = None

    def start(self) -> None: ...

    def note(self, ids: Iterable[str]) -> None: ...

    def tidy(self, ids: Iterable[str]) -> None: ...

    def look(self) -> Hold:
        return Hold()

    def said(self, row: Row, rule: Rule, known: Mapping[str, object], now_us: int) -> Said:
        return Said()

    async def deliver(self, action: Action, begins: Callable[[int], bool]) -> Outcome:
        return Outcome(kind="sent" if begins(0) else "later")

    def can_undo(self, way: str) -> bool:
        return False

    async def undo(self, action: Action, made: Outcome) -> Outcome:
        return Outcome(kind="refused")


class _Run:
    """One backtest. It is also where firings come from, and what is known of people."""

    def __init__(
        self, config: Config, log: Reader, asked: Asked, from_us: int, to_us: int, each: Callable[[Ended], None],
        note: Callable[[int, int], None], firings_max: int, clock: Clock,
    ) -> None:  # fmt: skip
        self.each, self.note, self.firings_max, self.clock = each, note, firings_max, clock
        self.folded = Folded(config, log, Change(segments=asked.segments, rules=asked.rules, alone=not asked.others), from_us, to_us)
        # Whoever is told the zone has said so before the rule is tried, as a rule.
        self.folded.zone_attributes = {zone_attribute(body) for body in asked.rules.values()} | {"timezone"}
        self.log_clock = VirtualClock(from_us)
        self.actions = Actions(Outbox(Path(":memory:")))
        quiet = _Quiet()
        self.acting = Acting(
            self.actions,
            self,
            self,
            quiet,
            stops=StopList(),
            switch=quiet,
            begun=quiet,
            clock=self.log_clock,
            radius=radius_of(config.automation),
        )
        self.known: set[tuple[str, int]] = set()
        self.queue: list[Firing] = []
        self.taken = 0
        self.rules: dict[str, OfRule] = {name: OfRule(rule=name, ends={}, reasons={}, hours={}) for name in asked.rules}
        self.people: dict[str, set[str]] = {}
        self.first: list[Ended] = []

    async def all(self) -> Found:
        started_s = self.clock.monotonic_s()
        batch: list[Fired] = []
        batches = 0

        def read(records: int) -> None:
            nonlocal batches
            batches += 1
            self.note(records, self.folded.sums.events)

        seen = 0
        for fired in self.folded.firings(read):
            if batches != seen:
                await self._take(batch)
                batch, seen = [], batches
            self._put(fired)
            batch.append(fired)
        await self._take(batch)
        await self._pass(min(self.folded.to_us, max(shard.log_time_us for shard in self.folded.shards)))
        self._drain(everything=True)
        sums = self.folded.sums
        for name, people in self.people.items():
            self.rules[name].people = len(people)
        self.first.sort(key=lambda one: (one.fired_us, one.id))
        return Found(
            rules=[self.rules[name] for name in sorted(self.rules)], firings=self.first[: self.firings_max], records=sums.records,
            events=sums.events, people=sums.people, seconds=self.clock.monotonic_s() - started_s, from_us=self.folded.from_us,
            to_us=self.folded.to_us,
        )  # fmt: skip

    def _put(self, fired: Fired) -> None:
        """Put the version of a rule that has fired into the book, once."""
        key = (fired.rule, fired.version)
        if key in self.known:
            return
        self.known.add(key)
        body = self.folded.definitions.rules[fired.rule].body
        limits = body.get("limits")
        autonomy = limits.get("autonomy", "suggest") if isinstance(limits, dict) else "suggest"
        db = self.actions.db
        db.execute("INSERT OR REPLACE INTO rules VALUES (?, ?, ?, 0, '', '')", (*key, msgspec.json.encode(body)))
        db.execute("INSERT OR REPLACE INTO rules_now VALUES (?, ?, 0, ?, 0)", (*key, autonomy))
        self.actions.book.forget()

    async def _take(self, batch: list[Fired]) -> None:
        """Let what has fired be acted on, each at the time at which it fired."""
        batch.sort(key=lambda one: (one.fired_us, one.id))
        for start in range(0, len(batch), drained_every):
            for fired in batch[start : start + drained_every]:
                await self._pass(fired.fired_us)
                self._note(fired)
            await self._turns()
            self._drain()

    def _note(self, fired: Fired) -> None:
        self.queue.append(
            Firing(
                number=self.taken + len(self.queue) + 1, id=fired.id, rule=fired.rule, version=fired.version, recipient=fired.recipient,
                fired_us=fired.fired_us, cause=cause_json(fired.cause_us, fired.campaign),
            )
        )  # fmt: skip
        one = self.rules.setdefault(fired.rule, OfRule(rule=fired.rule, ends={}, reasons={}, hours={}))
        one.fired += 1
        hour = fired.fired_us // hour_us
        one.hours[hour] = one.hours.get(hour, 0) + 1
        self.people.setdefault(fired.rule, set()).add(fired.recipient)

    async def _pass(self, to_us: int) -> None:
        """Let the log's time go by, and look at what waits when its time has come. Within a second everything is taken together."""
        if to_us // 1_000_000 == self.log_clock.at_us // 1_000_000 and len(self.queue) < take_max:
            self.log_clock.at_us = max(self.log_clock.at_us, to_us)
            return
        await self._turns()
        while (next_us := self._next_us()) < to_us:
            self.log_clock.at_us = max(self.log_clock.at_us, next_us)
            await self._turns()
        self.log_clock.at_us = max(self.log_clock.at_us, to_us)

    def _next_us(self) -> int:
        """Return when something that waits has to be looked at. What a rule does is counted by the minute, so a cap opens with one."""
        db = self.actions.db
        until_us = db.execute("SELECT min(until_us) FROM actions WHERE ready = 0 AND state IN (0, 2)").get
        resting = db.execute("SELECT 1 FROM actions WHERE ready = 1 LIMIT 1").get
        found = [until_us] if until_us is not None else []
        found += [(self.log_clock.at_us // minute_us + 1) * minute_us] if resting else []
        return max(min(found, default=NEVER), self.log_clock.at_us + 1)

    async def _turns(self) -> None:
        """Take the conductor's turns until nothing is left to do: a turn that decides on as much as it may leaves more."""
        busy = True
        while busy:
            before = self.actions.db.total_changes()
            await self.acting.step()
            while len(self.acting.calls) > len(self.acting.ended):  # noqa: ASYNC110 (calls here end in the loop's next turns)
                await asyncio.sleep(0)
            busy = bool(self.queue or self.acting.calls) or self.actions.db.total_changes() - before >= decide_max

    def _drain(self, *, everything: bool = False) -> None:
        """Tell of what has ended, and forget it. Nobody approves here, so a suggestion is an end too."""
        which = "" if everything else f" WHERE state >= 5 OR state = {SUGGESTED}"
        columns = "number, id, rule, version, recipient, fired_us, cause_us, state, reason, words, touched_us"
        rows = self.actions.db.execute(f"SELECT {columns} FROM actions{which} ORDER BY fired_us, id").fetchall()
        for _, id, rule, version, recipient, fired_us, cause_us, state, reason, words, touched_us in rows:
            ended = Ended(
                id=id, rule=rule, version=version, recipient=recipient, fired_us=fired_us, cause_us=cause_us, reason=reason, words=words,
                end=STATES[WAITING if state == APPROVED else state], acted_us=touched_us,
            )  # fmt: skip
            one = self.rules[rule]
            one.ends[ended.end] = one.ends.get(ended.end, 0) + 1
            if reason and ended.end != "sent":
                one.reasons[reason] = one.reasons.get(reason, 0) + 1
            if len(self.first) < self.firings_max:
                self.first.append(ended)
            self.each(ended)
        self.actions.db.execute("DELETE FROM actions" + which)
        self.actions.db.execute("DELETE FROM action_totals WHERE state = ?", (SUGGESTED,))

    # -- what Acting asks ------------------------------------------------------------------------------------------------------

    def read(self, cursor: Cursor, count_max: int) -> tuple[list[Firing], Cursor]:
        """Return firings that have not been taken in."""
        found, self.queue = self.queue[:count_max], self.queue[count_max:]
        self.taken += len(found)
        return found, Cursor(epoch="tried", number=self.taken, id=found[-1].id) if found else cursor

    def suppressed(self, recipients: Iterable[str]) -> Mapping[str, str]:
        now_us = self.log_clock.now_us()
        return {one: why for one in recipients if (why := self.folded.suppressed(one, now_us))}

    def attributes(self, recipients: Iterable[str]) -> Mapping[str, Mapping[str, object]]:
        return {one: self.folded.zones[one] for one in recipients if one in self.folded.zones}


def zone_attribute(body: dict) -> str:
    """Return the attribute by which a rule knows a person's time zone."""
    hours = body.get("limits", {}).get("hours", {}) if isinstance(body.get("limits", {}), dict) else {}
    found = hours.get("zone_attribute", "timezone") if isinstance(hours, dict) else "timezone"
    return found if isinstance(found, str) else "timezone"


def told(ended: Ended) -> dict:
    """Return a firing as programs are told it."""
    row = {name: getattr(ended, name) for name in ("id", "rule", "version", "recipient", "end", "reason", "words")}
    return row | {"fired_at": iso(ended.fired_us), "cause_at": iso(ended.cause_us), "acted_at": iso(ended.acted_us)}


def asked_of(raw: object, from_: str, to: str, others: bool) -> Asked:
    """Return what a file of rules asks for. Raises WrongQuery."""
    if not isinstance(raw, dict):
        raise WrongQuery("Not a file of rules", expected="`rules:` and `segments:` by name", got=type(raw).__name__)
    for word, value in raw.items():
        if word not in ("rules", "segments"):
            raise WrongQuery(
                f"Unknown word `{str(word)[:60]}`", where=f"$.{str(word)[:60]}", todo=nearest(str(word)[:60], ("rules", "segments"))
            )
        if not isinstance(value, dict) or not all(isinstance(name, str) and isinstance(body, dict) for name, body in value.items()):
            raise WrongQuery(f"`{word}` has names, each with what it means", expected="a mapping of mappings", where=f"$.{word}")
    if not raw.get("rules"):
        raise WrongQuery("No rule is tried", expected="`rules` by name", where="$.rules")
    return Asked(rules=raw["rules"], segments=raw.get("segments", {}), from_=from_, to=to, others=others)


# -- beside the console --------------------------------------------------------------------------------------------------


class _Handed(msgspec.Struct, kw_only=True):
    """What a process of its own is handed."""

    config: Config
    asked: Asked
    firings_max: int


class _Answer(msgspec.Struct, kw_only=True):
    found: Found | None = None
    error: dict[str, str] = {}


def check_asked(definitions: Definitions, asked: Asked) -> None:
    """Raise MidflightError for what could not be put into force now, before a process is started for it. ``definitions`` is changed."""
    if not asked.rules:
        raise WrongQuery("Which rules?", expected="`rules` by name", where="rules")
    for name, where in asked.segments.items():
        definitions.put_segment(name, definitions.versions.get(f"segment {name}", 0) + 1, where)
    for name, body in asked.rules.items():
        definitions.put_rule(name, definitions.versions.get(f"rule {name}", 0) + 1, body)
        acts_of(body)
    definitions.program(lambda kind, name: 0)


def apart(config: Config, asked: Asked, firings_max: int) -> Found:
    """Run a backtest in a process of its own, one at a time and for so long at most. Raises Busy, and what the backtest raises."""
    if not _one.acquire(blocking=False):
        raise Busy("Another backtest runs", todo="Try again in a moment")
    try:
        handed = msgspec.json.encode(_Handed(config=config, asked=asked, firings_max=firings_max))
        command = [sys.executable, "-m", __name__]
        done = subprocess.run(command, input=handed, capture_output=True, timeout=apart_s_max, check=False)
        answer = msgspec.msgpack.decode(done.stdout, type=_Answer)
    except subprocess.TimeoutExpired:
        todo = "Run `midflight backtest`, or ask for less: it is read from its start in any case"
        raise Busy("The log is too long to be read while you wait", expected=f"{apart_s_max:g} s", todo=todo) from None
    except msgspec.DecodeError:
        raise Busy("The backtest came to no end", got=done.stderr.decode("utf-8", "replace").strip()[-200:]) from None
    finally:
        _one.release()
    if answer.found is None:
        said = dict(answer.error)
        code = said.pop("code", "")
        error = MidflightError(said.pop("what", "The backtest failed"), **said)
        error.code, error.status = code or error.code, 404 if code == "not_found" else 400
        raise error
    return answer.found


def main() -> None:
    """Run what stands in the input, and write what was found."""
    import os

    os.nice(niceness)
    handed = msgspec.json.decode(sys.stdin.buffer.read(), type=_Handed)
    try:
        answer = _Answer(found=run(handed.config, handed.asked, firings_max=handed.firings_max))
    except MidflightError as error:
        answer = _Answer(error=error.as_dict()["error"])
    sys.stdout.buffer.write(msgspec.msgpack.encode(answer))


if __name__ == "__main__":
    main()
