"""Alerts to those who run this: what was decided to be told is on disk together with what is remembered of it, before anybody is told.

Each alert goes once to each of its targets: ``way:NAME`` is a way out, ``mail:ADDRESS`` a person. That a call begins is on disk before its
bytes leave. A call whose end nobody knows is made again only where the other end promises that twice is once; what lasts is told again by
`decide/alerting.py`. These reach nobody but whom the configuration names, so the kill switch does not hold them.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..decide.alerting import Notice, State
from ..events import clean
from ..kit.crash import crash_point
from .actions import retry_s
from .outbox import Outbox
from .ways.way import NOT_TRIED, Outcome

WAITING, CALLED, SENT, REFUSED, UNKNOWN, REPLACED = range(6)
STATES = ("waiting", "called", "sent", "refused", "unknown", "replaced")
tries_max = 20
late_us = 6 * 3600 * 1_000_000  # an alert that could not be told for so long is not told any more
alerts_max = 2_000  # that are kept
trimmed_max = 200  # that are taken out at a time
detail_chars_max = 300

_SCHEMA = """
-- What is remembered between two looks: decide/alerting.py as JSON, and what the wall clock said then.
CREATE TABLE IF NOT EXISTS alert_memory (one INTEGER PRIMARY KEY CHECK (one = 1), body BLOB NOT NULL, at_us INTEGER NOT NULL);
-- What was decided to be told. key: of the condition, empty where several are told together. The latest are kept.
CREATE TABLE IF NOT EXISTS alerts (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, at_us INTEGER NOT NULL, key TEXT NOT NULL,
    notice BLOB NOT NULL);
-- To whom. maybe_us: when the first call was made that may have arrived; promise_us: how long it may be made again. They go with alerts.
CREATE TABLE IF NOT EXISTS alert_calls (alert INTEGER, target TEXT, state INTEGER NOT NULL DEFAULT 0, tries INTEGER NOT NULL DEFAULT 0,
    until_us INTEGER NOT NULL DEFAULT 0, promise_us INTEGER NOT NULL DEFAULT 0, maybe_us INTEGER NOT NULL DEFAULT 0,
    detail TEXT NOT NULL DEFAULT '', changed_us INTEGER NOT NULL, PRIMARY KEY (target, alert)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS alert_calls_open ON alert_calls (target, alert) WHERE state <= 1;
CREATE INDEX IF NOT EXISTS alert_calls_of ON alert_calls (alert);
"""


class Telling(msgspec.Struct, kw_only=True, frozen=True):
    """An alert that one target is to be told now."""

    number: int
    id: str
    target: str
    notice: Notice
    at_us: int
    tries: int = 0


class Alerts:
    """The alerts, in the outbox's file. The conductor is the only one that writes them."""

    def __init__(self, outbox: Outbox) -> None:
        self.db = outbox.db
        if not self.db.readonly("main"):
            self.db.execute(_SCHEMA)

    def remembered(self) -> tuple[State, int]:
        """Return what is remembered, and what the wall clock said then."""
        found = self.db.execute("SELECT body, at_us FROM alert_memory").fetchone()
        try:
            return (msgspec.json.decode(found[0], type=State), found[1]) if found else (State(), 0)
        except msgspec.DecodeError:
            # Another version wrote it: what stands is told anew.
            return State(), 0

    def remember(self, state: State, notices: Iterable[Notice], targets: Iterable[str], now_us: int) -> None:
        """Keep what is remembered, and with it, or not at all, what is to be told to these."""
        targets = list(targets)
        with self.db:
            self.db.execute("INSERT OR REPLACE INTO alert_memory VALUES (1, ?, ?)", (msgspec.json.encode(state), now_us))
            for notice in notices:
                self._add(notice, targets, now_us)
            crash_point("before_alerts")
        crash_point("after_alerts")

    def _add(self, notice: Notice, targets: list[str], now_us: int) -> None:
        number = (self.db.execute("SELECT max(number) FROM alerts").get or 0) + 1
        values = (number, f"alert-{now_us:x}-{number}", now_us, notice.key, msgspec.json.encode(notice))
        if notice.key:
            # What was not told yet of the same need not be told any more: this says how it is now.
            self.db.execute(
                "UPDATE alert_calls SET state = 5, changed_us = ? WHERE state = 0 AND maybe_us = 0 AND alert IN "
                "(SELECT number FROM alerts WHERE key = ?)",
                (now_us, notice.key),
            )
        self.db.execute("INSERT INTO alerts VALUES (?, ?, ?, ?, ?)", values)
        rows = [(number, target, now_us) for target in targets]
        self.db.executemany("INSERT INTO alert_calls (alert, target, changed_us) VALUES (?, ?, ?)", rows)
        self._trim(number)

    def _trim(self, newest: int) -> None:
        old = [n for (n,) in self.db.execute("SELECT number FROM alerts WHERE number <= ? LIMIT ?", (newest - alerts_max, trimmed_max))]
        for table, column in (("alert_calls", "alert"), ("alerts", "number")):
            self.db.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(n,) for n in old])

    # -- telling ---------------------------------------------------------------------------------------------------------------

    def due(self, targets: Iterable[str], now_us: int) -> list[Telling]:
        """Return for each of these targets the oldest alert that it has not been told, if it may be told now: they come in order."""
        found: list[Telling] = []
        for target in targets:
            row = self.db.execute(
                "SELECT c.alert, a.id, a.notice, a.at_us, c.tries, c.state, c.until_us FROM alert_calls c JOIN alerts a "
                "ON a.number = c.alert WHERE c.target = ? AND c.state <= 1 ORDER BY c.alert LIMIT 1",
                (target,),
            ).fetchone()
            # A wall clock that went back must not make anything wait longer than it may.
            if row and row[5] == WAITING and not now_us < row[6] <= now_us + late_us:
                found += self._telling(target, *row[:5], now_us)
        return found

    def _telling(self, target: str, number: int, id: str, body: bytes, at_us: int, tries: int, now_us: int) -> list[Telling]:
        notice = _notice(body)
        if notice is None:
            # Another version wrote it: it must not stand in the way of those behind it.
            sql = "UPDATE alert_calls SET state = 3, detail = 'it cannot be read', changed_us = ? WHERE alert = ? AND target = ?"
            self.db.execute(sql, (now_us, number, target))
            return []
        return [Telling(number=number, id=id, target=target, notice=notice, at_us=at_us, tries=tries)]

    def begin(self, telling: Telling, promise_us: int, now_us: int) -> bool:
        """Note that a call begins now, and for how long it may be made again; on disk when this returns. Say whether it may begin."""
        self.db.execute(
            "UPDATE alert_calls SET state = 1, promise_us = ?, changed_us = ? WHERE alert = ? AND target = ? AND state <= 1",
            (promise_us, now_us, telling.number, telling.target),
        )
        return self.db.changes() > 0

    def settle(self, telling: Telling, outcome: Outcome, now_us: int) -> int:
        """Note what became of a call, and return the state that this makes."""
        key = (telling.number, telling.target)
        sql = "SELECT state, tries, promise_us, maybe_us, changed_us FROM alert_calls WHERE alert = ? AND target = ? AND state <= 1"
        row = self.db.execute(sql, key).fetchone()
        if row is None:
            # Something newer about the same took its place before it began.
            return REPLACED
        was, tries, promise_us, maybe_us, called_us = row
        tries += outcome.code not in NOT_TRIED
        if outcome.kind == "again" and was == CALLED and promise_us:
            maybe_us = maybe_us or called_us
        state, until_us = {"sent": SENT, "refused": REFUSED}.get(outcome.kind, UNKNOWN), 0
        if outcome.kind == "later" or (outcome.kind == "again" and maybe_us):
            state, until_us = WAITING, now_us + int(1e6 * retry_s(telling.id, tries, outcome.retry_s))
            promised = not maybe_us or until_us < maybe_us + promise_us
            if tries >= tries_max or until_us > telling.at_us + late_us or not promised:
                state = REFUSED
        if state == REFUSED and maybe_us:
            state = UNKNOWN
        self.db.execute(
            "UPDATE alert_calls SET state = ?, tries = ?, until_us = ?, maybe_us = ?, detail = ?, changed_us = ? "
            "WHERE alert = ? AND target = ?",
            (state, tries, until_us, maybe_us, clean(f"{outcome.code} {outcome.detail}".strip())[:detail_chars_max], now_us, *key),
        )
        return state

    def recover(self, targets: Iterable[str], now_us: int) -> tuple[int, int]:
        """After a start: calls that a former process left open. Return how many go again, and of how many nobody knows the end.

        Alerts for somebody who is not in the configuration any more are not told.
        """
        with self.db:
            # Of an open call `changed_us` is when it began.
            since_us = "CASE WHEN maybe_us > 0 THEN maybe_us ELSE changed_us END"
            self.db.execute(
                f"UPDATE alert_calls SET state = 0, until_us = 0, maybe_us = {since_us} WHERE state = 1 AND ? < {since_us} + promise_us",
                (now_us,),
            )
            count = self.db.changes()
            why = "'the process ended during the call'"
            self.db.execute(f"UPDATE alert_calls SET state = 4, detail = {why}, changed_us = ? WHERE state = 1", (now_us,))
            unknown = self.db.changes()
            self.db.execute(
                "UPDATE alert_calls SET state = 5, detail = 'not in the configuration any more', changed_us = ? "
                "WHERE state = 0 AND target NOT IN (SELECT value FROM json_each(?))",
                (now_us, msgspec.json.encode(list(targets)).decode()),
            )
        return count, unknown

    def listed(self, before: int = 2**62, count_max: int = 100) -> list[dict]:
        """Return the last alerts with a number below ``before``, the newest first, each with what became of it by target.

        ``notice`` is None where another version wrote it.
        """
        sql = "SELECT number, id, at_us, notice FROM alerts WHERE number < ? ORDER BY number DESC LIMIT ?"
        return [
            {"number": number, "id": id, "at_us": at_us, "notice": _notice(body), "told": self._told(number)}
            for number, id, at_us, body in self.db.execute(sql, (before, count_max)).fetchall()
        ]

    def _told(self, number: int) -> list[dict]:
        sql = "SELECT target, state, tries, detail, changed_us FROM alert_calls WHERE alert = ? ORDER BY target"
        return [
            {"target": target, "state": STATES[state], "tries": tries, "detail": detail, "changed_us": changed_us}
            for target, state, tries, detail, changed_us in self.db.execute(sql, (number,))
        ]


def _notice(body: bytes) -> Notice | None:
    try:
        return msgspec.json.decode(body, type=Notice)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
