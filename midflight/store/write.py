"""The engine's side of the store: what a batch changed, and the log position, in one transaction."""

from __future__ import annotations

import ctypes
import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import apsw
import apsw.sqlite_extra
import msgspec
import numpy as np

from ..events import KINDS
from ..log.record import Record
from ..stream.edge import Prepared
from ..stream.hashing import mix
from ..stream.measures import FRESHNESS_EDGES_MS, MEASURES
from ..stream.names import Names
from ..stream.providers import PROVIDERS
from ..stream.shard import Effects
from ..stream.tables import NIL, starts, summed
from ..stream.watching import ENTERED, FILLED, FIRED
from . import fired, moves
from .attributes import Attributes
from .folding import Asked, shards_max
from .recent import Recent
from .schema import SCHEMA, VERSION
from .suspecting import SOURCE as LISTS
from .suspecting import Suspecting

logger = logging.getLogger("midflight.engine")
_KEY = ("campaign", "minute", "variant", "wave", "provider", "source", "segment")
_HOUR_KEY = ("campaign", "hour", *_KEY[2:])
_SECOND_KEY = ("campaign", "second", *_KEY[2:])
_DERIVED = (
    "meta", "names", "cells", "hours", "delays", "hour_delays", "recent", "recent_delays", "campaigns", "clickers", "dead", "receipts",
    "drops", "freshness", "marks", "suppressions", "addresses", "answers", "signs", "orders", "advised", "people", "segments", "moves",
    "flows", "firings", "attributes",
)  # fmt: skip
# Who must not be written to, and who was told what, outlives the records that said so.
NEVER_LOST = ("suppressions", "addresses", "advised")
_MASK32, _MASK16 = np.uint64(0xFFFFFFFF), np.uint64(0xFFFF)
told_kept_us = 40 * 86_400_000_000  # moves and firings, by log time
flows_kept_us = 400 * 86_400_000_000
trimmed_max = 10_000  # rows at a time
minutes_of_freshness_max = 7 * 24 * 60
checksum_bytes = 8
DAMAGE = (apsw.CorruptError, apsw.NotADBError, apsw.IOError)


@lru_cache(maxsize=256)
def _upsert(table: str, key: tuple[str, ...], sums: tuple[str, ...]) -> str:
    columns = (*key, *sums)
    adds = ", ".join(f"{c} = {c} + excluded.{c}" for c in sums)
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))}) "
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {adds}"
    )


@lru_cache(maxsize=256)
def _upsert_campaign(sums: tuple[str, ...]) -> str:
    adds = ", ".join(f"{c} = {c} + excluded.{c}" for c in sums)
    return (
        f"INSERT INTO campaigns (campaign, first_minute, last_minute, {', '.join(sums)}) VALUES (?, ?, ?{', ?' * len(sums)}) "
        f"ON CONFLICT (campaign) DO UPDATE SET {adds}, "
        "first_minute = min(first_minute, excluded.first_minute), last_minute = max(last_minute, excluded.last_minute)"
    )


_DELAY = _upsert("delays", (*_KEY, "kind", "bucket"), ("n",))
_HOUR_DELAY = _upsert("hour_delays", (*_HOUR_KEY, "kind", "bucket"), ("n",))
_RECENT_DELAY = _upsert("recent_delays", (*_SECOND_KEY, "kind", "bucket"), ("n",))
_RECEIPT = (
    "INSERT INTO receipts (source, minute, records, events, duplicates, bad, last_event_us) VALUES (?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (source, minute) DO UPDATE SET records = records + excluded.records, events = events + excluded.events, "
    "duplicates = duplicates + excluded.duplicates, bad = bad + excluded.bad, last_event_us = max(last_event_us, excluded.last_event_us)"
)


_SUBSCRIBED = KINDS.index("subscribed")
_WHY = {KINDS.index(name): name if name != "subscribed" else "" for name in ("unsubscribed", "complained", "subscribed")}
_SUPPRESSING = np.isin(np.arange(256), list(_WHY))


class Redefined(NamedTuple):
    """Other definitions from here on; ``fresh`` segments begin anew."""

    asked: Asked
    fresh: list[str]


class Told(NamedTuple):
    """What a shard told of its people."""

    shard: int
    rows: np.ndarray  # watching.TOLD
    asked: Asked


class Changes:
    """What batches changed since the last commit, and nothing else of them: many large batches take little room here."""

    def __init__(self) -> None:
        self.batches = 0
        self.cells: list[tuple[np.ndarray, np.ndarray]] = []
        self.delays: list[tuple[np.ndarray, np.ndarray]] = []
        self.recent: list[tuple[np.ndarray, np.ndarray]] = []
        self.recent_delays: list[tuple[np.ndarray, np.ndarray]] = []
        self.clickers: list[tuple[list, list]] = []  # rows that are gone, rows that are there now
        self.marks: list[tuple[int, int, str]] = []
        self.receipts: list[dict] = []
        self.repeated: Counter[tuple[str, int]] = Counter()  # (source, minute of receipt) -> duplicates
        self.drops: Counter[tuple[str, str]] = Counter()
        self.dead: list[tuple] = []
        self.replayed: list[tuple[int, int, bool]] = []
        self.suppressions: dict[str, tuple[str, int]] = {}  # recipient -> why ("" for no longer), when; the last one said
        self.orders: list[tuple[int, int, bytes]] = []
        self.advised: list[tuple] = []
        self.attributes = Attributes()
        self.people: dict[int, str] = {}  # number -> recipient, of those who are new
        self.told: list[Told | Redefined] = []  # in log order
        self.defined: bytes | None = None  # all definitions, where they have changed
        self.next_position = 0
        self.log_time_us = 0

    def add(self, prepared: Prepared, effects: list[Effects], conflicts: list[tuple], asked: Asked) -> Changes:
        """Take in a batch, what it did to each shard, and the dead letters of events that contradict a known one. ``asked`` is what was
        asked of people meanwhile."""
        self.batches += 1
        for shard, effect in enumerate(effects):
            if effect.new_person.size:
                numbers = (effect.new_person.astype(np.int64) * shards_max + shard).tolist()
                self.people.update(zip(numbers, prepared.recipients(effect.new_row), strict=True))
            self.tell(shard, effect.told, asked)
            for held, key, value in (
                (self.cells, effect.cell_key, effect.cell_value),
                (self.delays, effect.delay_key, effect.delay_n),
                (self.recent, effect.recent_key, effect.recent_value),
                (self.recent_delays, effect.recent_delay_key, effect.recent_delay_n),
            ):
                if key.shape[0]:
                    held.append((key, value))
            self._clickers(effect, prepared)
            self.repeated.update((prepared.source(row), int(prepared.received[row]) // 60_000_000) for row in effect.duplicates.tolist())
            for mark, rows in (("duplicate", effect.duplicates), ("conflict", effect.conflicts)):
                marked = rows[prepared.item[rows] >= 0]
                self.marks += [
                    (*place, mark) for place in zip(prepared.position[marked].tolist(), prepared.item[marked].tolist(), strict=True)
                ]
        self.receipts.append(prepared.receipts)
        self.drops.update(prepared.drops)
        self.dead += [*prepared.dead, *conflicts]
        self.replayed += prepared.replayed
        self.suppress(prepared, effects)
        self.attributes.hear(prepared, effects)
        for record in prepared.asked:
            self._asked(record)
        self.next_position, self.log_time_us = prepared.next_position, prepared.log_time_us
        return self

    def redefine(self, asked: Asked, fresh: list[str], definitions: dict) -> None:
        """Take in that other definitions hold from here on."""
        self.told.append(Redefined(asked, fresh))
        self.defined = msgspec.json.encode(definitions)

    def tell(self, shard: int, told: np.ndarray, asked: Asked) -> None:
        """Take in who entered and left segments and what rules fired, of one shard."""
        if told.size:
            self.told.append(Told(shard, told, asked))

    def suppress(self, prepared: Prepared, effects: list[Effects]) -> None:
        """Note who asked for no more or complained; and who subscribed again, later than he asked for no more."""
        kind, batch = prepared.batch.kind, prepared.batch
        found = _SUPPRESSING[kind]
        if not found.any():
            return
        # A repetition takes back nothing, nor a contradiction. Who leaves is always heard: within a minute somebody may do so twice.
        for effect in effects:
            for rows in (effect.duplicates, effect.conflicts):
                found[rows[kind[rows] == _SUBSCRIBED]] = False
        rows = np.flatnonzero(found)
        for row, recipient in zip(rows.tolist(), prepared.recipients(rows), strict=True):
            if not recipient or recipient.startswith("id:"):
                continue
            why, at_us = _WHY[int(kind[row])], int(batch.at_us[row])
            before, before_us = self.suppressions.get(recipient, ("", -1))
            # Somebody who subscribes again has not withdrawn a complaint.
            if why not in ("", "unsubscribed") or before in ("", "unsubscribed"):
                if why == before:
                    at_us = max(at_us, before_us)
                if why or not before or at_us > before_us:
                    self.suppressions[recipient] = (why, at_us)

    def _asked(self, record: Record) -> None:
        if record.kind == "definition" and record.source == LISTS:
            return
        if record.kind == "definition":
            self.orders.append((record.position, record.at_us, record.body))
            return
        try:
            self.advised += msgspec.json.decode(record.body, type=list[tuple[str, str, int, str, float]])
        except (msgspec.DecodeError, UnicodeDecodeError):
            # Only our own door writes these; one that another version wrote differently is no reason to stop.
            self.drops["advice", "unreadable"] += 1

    def _clickers(self, effect: Effects, prepared: Prepared) -> None:
        known = np.flatnonzero(effect.clicker_campaign)
        if not known.size:
            return
        campaign, before, clicked_at = effect.clicker_campaign[known], effect.clicker_before[known], effect.clicker_clicked_at[known]
        message = message_ids(effect.clicker_message[known], effect.clicker_recipient[known])
        moved = (before >= 0) & (before != clicked_at)
        now = clicked_at >= 0
        columns = [
            column[now].tolist()
            for column in (
                campaign,
                message,
                effect.clicker_variant[known],
                effect.clicker_wave[known],
                clicked_at,
                effect.clicker_converted_at[known],
            )
        ]
        names = prepared.recipients(effect.clicker_row[known][now])
        gone = np.column_stack([campaign, before, message])[moved].tolist()
        self.clickers.append((gone, list(zip(*columns, names, strict=True))))


class StoreWriter:
    """The only writer of ``store.db``. A second one is kept out by the engine's lock."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._flows_trimmed = -1  # hour of log time
        self.recent_from = -1  # what `meta` says; -1 before this process has said anything
        self.db = apsw.Connection(str(path), vfs=checking_vfs())
        # The room that each page of a new store leaves for its checksum; an older store stays as it is.
        room = ctypes.c_int(checksum_bytes)
        self.db.file_control("main", apsw.SQLITE_FCNTL_RESERVE_BYTES, ctypes.addressof(room))
        try:
            self.db.set_busy_timeout(10_000)
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = FULL")
            self.db.execute("PRAGMA cache_size = -262144")
            self.db.wal_autocheckpoint(4000)
            self.db.execute(SCHEMA)
        except apsw.Error:
            self.db.close(True)
            raise

    def damage(self) -> str:
        """Look at every page and its checksum; return what is wrong with the first bad one, or nothing."""
        found = self.db.execute("PRAGMA quick_check(1)").fetchone()[0]
        return "" if found == "ok" else " ".join(found.split())

    # -- where we are --------------------------------------------------------------------------------------------------------

    def meta(self, key: str, default=None):
        row = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else row[0]

    def start(self, signature: str, *, rebuild: bool = False, whole: bool = True) -> int:
        """Return the position to go on from; empty everything first if it was made by another fold. 0 for a new store. ``whole`` where the
        log still has everything from the beginning on."""
        if rebuild or self.meta("version") != VERSION or self.meta("fold") != signature:
            self.empty(signature, whole)
        return self.meta("position", 0)

    def empty(self, signature: str, whole: bool = True) -> None:
        """Forget all that is derived, so that it is rebuilt from the log; where that does not reach back, what nobody may forget stays."""
        with self.db:
            new = self.meta("version") is None
            for table in _DERIVED:
                if whole or table not in NEVER_LOST:
                    self.db.execute(f"DROP TABLE IF EXISTS {table}")
            self.db.execute(SCHEMA)
            if new and not whole:
                self._take_over()
            # The numbers of names differ from one making to the next, so snapshots belong to one making: the epoch tells which.
            self._meta({"version": VERSION, "fold": signature, "position": 0, "log_time_us": 0, "epoch": os.urandom(8).hex()})
            providers = [("provider", number, name) for number, name in enumerate(PROVIDERS) if number]
            self.db.executemany("INSERT INTO names VALUES (?, ?, ?)", providers)

    def _take_over(self) -> None:
        """Take over what nobody may forget from the store that was set aside last. Until that is done the new store counts as not made."""
        for aside in asides(self.path)[-1:]:
            taken = 0
            for table in NEVER_LOST:
                for row in readable(aside, table):
                    self.db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(row))})", row)
                    taken += 1
            logger.error("%d rows of what must not be forgotten are taken over from %s", taken, aside.name)

    def load_names(self, names: Names) -> None:
        for kind, number, name in self.db.execute("SELECT kind, id, name FROM names WHERE kind <> 'provider'"):
            names.load(kind, number, name)

    def dead_between(self, first: int, last: int) -> set[int]:
        """Return the positions of those of these records that could not be read at all."""
        found = self.db.execute("SELECT position FROM dead WHERE position BETWEEN ? AND ? AND item = -1", (first, last))
        return {position for (position,) in found}

    # -- one commit ----------------------------------------------------------------------------------------------------------

    def commit(self, changes: Changes, names: Names, recent: Recent | None = None, suspecting: Suspecting | None = None) -> None:
        """Write what some batches changed, with the position behind them."""
        with self.db:
            if names.new:
                self.db.executemany("INSERT INTO names VALUES (?, ?, ?)", names.new)
            self._cells(changes)
            self._clickers(changes)
            if recent is not None:
                self._recent(changes, recent)
            self.db.executemany("INSERT OR IGNORE INTO marks VALUES (?, ?, ?)", changes.marks)
            self._receipts(changes)
            self._dead(changes)
            self._asked(changes)
            self._people(changes)
            if suspecting is not None:
                suspecting.write(changes.log_time_us)
            self._meta({"position": changes.next_position, "log_time_us": changes.log_time_us})
        names.new.clear()

    def fresh(self, minute: int, waited_ms: np.ndarray) -> None:
        """Note how long events took from receipt to readable; outside of what a replay has to reproduce."""
        buckets, counts = np.unique(np.searchsorted(FRESHNESS_EDGES_MS, waited_ms, side="right"), return_counts=True)
        rows = [(minute, int(bucket), int(n)) for bucket, n in zip(buckets, counts, strict=True)]
        with self.db:
            self.db.executemany(_upsert("freshness", ("minute", "bucket"), ("n",)), rows)
            self.db.execute("DELETE FROM freshness WHERE minute < ?", (minute - minutes_of_freshness_max,))

    def _meta(self, values: dict) -> None:
        self.db.executemany("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", list(values.items()))

    def _cells(self, changes: Changes) -> None:
        """Add to minutes and to their hours what has changed."""
        key, value = in_sum(changes.cells)
        if key.shape[0]:
            # Some batches change few measures; the others keep what they are.
            changed = np.flatnonzero(value.any(axis=0))
            measures, value = tuple(MEASURES[i] for i in changed), value[:, changed]
            self.db.executemany(_upsert("cells", _KEY, measures), rows_of(key, value).tolist())
            hours = rows_of(*by_hour(key, value))
            self.db.executemany(_upsert("hours", _HOUR_KEY, measures), hours.tolist())
            self.db.executemany(_upsert_campaign(measures), by_campaign(key, hours).tolist())
        key, n = in_sum(changes.delays)
        if key.shape[0]:
            self.db.executemany(_DELAY, delay_rows(key, n))
            self.db.executemany(_HOUR_DELAY, delay_rows(*by_hour(key, n)))

    def _recent(self, changes: Changes, recent: Recent) -> None:
        """Write the last minutes by the second, and cut off what is too old."""
        if recent.has_to_begin_anew():
            self.db.execute("DELETE FROM recent")
            self.db.execute("DELETE FROM recent_delays")
        for key, value in changes.recent:
            changed = np.flatnonzero(value.any(axis=0))
            rows = rows_of(key, value[:, changed])
            self.db.executemany(_upsert("recent", _SECOND_KEY, tuple(MEASURES[i] for i in changed)), rows.tolist())
            recent.note(rows[:, 0], rows[:, 1])
        for key, n in changes.recent_delays:
            self.db.executemany(_RECENT_DELAY, delay_rows(key, n))
        for campaign in recent.cuts():
            for table in ("recent", "recent_delays"):
                self.db.execute(f"DELETE FROM {table} WHERE campaign = ? AND second < ?", (campaign, recent.start_s))
        if recent.start_s != self.recent_from:
            self._meta({"recent_from": recent.start_s})
            self.recent_from = recent.start_s

    def _clickers(self, changes: Changes) -> None:
        for gone, now in changes.clickers:
            self.db.executemany("DELETE FROM clickers WHERE campaign = ? AND clicked_at_us = ? AND message = ?", gone)
            self.db.executemany(
                "INSERT OR REPLACE INTO clickers (campaign, message, variant, wave, clicked_at_us, converted_at_us, recipient) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                now,
            )

    def _receipts(self, changes: Changes) -> None:
        rows = [(source, at, n[0], n[1], 0, n[2], n[3]) for receipts in changes.receipts for (source, at), n in receipts.items()]
        rows += [(source, minute, 0, 0, n, 0, 0) for (source, minute), n in changes.repeated.items()]
        self.db.executemany(_RECEIPT, rows)
        self.db.executemany(_upsert("drops", ("source", "reason"), ("n",)), [(*key, n) for key, n in changes.drops.items()])

    def _dead(self, changes: Changes) -> None:
        self.db.executemany("INSERT OR IGNORE INTO dead VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [(*dead, 0) for dead in changes.dead])
        tried = [(1 if readable else 2, position, item) for position, item, readable in changes.replayed]
        self.db.executemany("UPDATE dead SET state = ? WHERE position = ? AND item = ?", tried)

    def _asked(self, changes: Changes) -> None:
        """Write who must not be written to, what people asked for, and what the advisor told."""
        self.db.executemany(
            "INSERT INTO suppressions VALUES (?, ?, ?) ON CONFLICT (recipient) DO UPDATE SET why = excluded.why, "
            "at_us = CASE WHEN why = excluded.why THEN max(at_us, excluded.at_us) ELSE excluded.at_us END "
            "WHERE why = 'unsubscribed' OR excluded.why <> 'unsubscribed'",
            [(recipient, why, at_us) for recipient, (why, at_us) in changes.suppressions.items() if why],
        )
        again = [(recipient, at_us) for recipient, (why, at_us) in changes.suppressions.items() if not why]
        self.db.executemany("DELETE FROM suppressions WHERE recipient = ? AND why = 'unsubscribed' AND at_us < ?", again)
        self.db.executemany("INSERT OR IGNORE INTO orders VALUES (?, ?, ?)", changes.orders)
        # The first answer stands: whoever asked twice at once was told the same by the door, or this one is what it told first.
        self.db.executemany("INSERT OR IGNORE INTO advised VALUES (?, ?, ?, ?, ?)", changes.advised)

    def _people(self, changes: Changes) -> None:
        """Write who is new, who is in which segment, and what rules fired."""
        self.db.executemany("INSERT OR REPLACE INTO people VALUES (?, ?)", changes.people.items())
        changes.attributes.write(self.db)
        if changes.defined is not None:
            self._meta({"definitions": changes.defined})
        for one in changes.told:
            if isinstance(one, Redefined):
                self._redefined(one)
            else:
                self._told(one)
        if changes.told:
            self._trim(changes.log_time_us)

    def _trim(self, log_time_us: int) -> None:
        """Take out what is old, a part at a time."""
        before_us = log_time_us - told_kept_us
        for table, at in (("moves", "at_us"), ("firings", "fired_us")):
            first_us = self.db.execute(f"SELECT {at} FROM {table} ORDER BY number LIMIT 1").get
            if first_us is not None and first_us < before_us:
                self.db.execute(
                    f"DELETE FROM {table} WHERE number IN (SELECT number FROM {table} ORDER BY number LIMIT ?) AND {at} < ?",
                    (trimmed_max, before_us),
                )
        hour = log_time_us // moves.HOUR_US
        if hour > self._flows_trimmed:
            # Every row has to be looked at.
            self._flows_trimmed = hour
            self.db.execute("DELETE FROM flows WHERE hour < ?", (hour - flows_kept_us // moves.HOUR_US,))

    def _told(self, told: Told) -> None:
        rows, asked = told.rows, told.asked
        person = np.where(rows["person"] == NIL, -1, rows["person"].astype(np.int64) * shards_max + told.shard)
        of_rule = rows["what"] == FIRED
        if of_rule.any():
            fired.add(self.db, fired.packed(rows[of_rule], person[of_rule]), asked.rules)
        rows, person = rows[~of_rule], person[~of_rule]
        if not rows.size:
            return
        members = np.bincount(rows["number"], np.where(rows["what"] == ENTERED, 1, -1), len(asked.segments))
        changed = [(int(n), name) for (name, _), n in zip(asked.segments, members, strict=True) if n]
        self.db.executemany("UPDATE segments SET members = members + ? WHERE name = ?", changed)
        came = rows["row"] != FILLED
        if came.any():
            moves.add(self.db, moves.packed(rows[came], person[came]), [name for name, _ in asked.segments])

    def _redefined(self, now: Redefined) -> None:
        """Forget the members of segments that are gone or begin anew."""
        known = [name for name, _ in now.asked.segments]
        for table, name in (("segments", "name"), ("flows", "segment")):
            self.db.execute(
                f"DELETE FROM {table} WHERE {name} NOT IN (SELECT value FROM json_each(?))", (msgspec.json.encode(known).decode(),)
            )
        self.db.executemany("INSERT OR REPLACE INTO segments VALUES (?, ?, 0)", [one for one in now.asked.segments if one[0] in now.fresh])

    def close(self) -> None:
        self.db.close()


def rows_of(key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return packed cell keys [n, 3+] and values [n, any] as int64 rows: columns in the order of the tables' keys, then the values."""
    when, place = key[:, 0], key[:, 1]
    rows = np.empty((key.shape[0], 7 + value.shape[1]), np.int64)
    rows[:, 0] = when >> np.uint64(32)
    rows[:, 1] = when & _MASK32
    for column, shift in enumerate((48, 32, 16, 0), 2):
        rows[:, column] = place >> np.uint64(shift) & _MASK16
    rows[:, 6] = key[:, 2].view(np.int64)
    rows[:, 7:] = value
    return rows


def delay_rows(key: np.ndarray, n: np.ndarray) -> list[list[int]]:
    """Return packed delay keys [n, 4] and their counts as rows of the tables of delays."""
    return rows_of(key, np.column_stack([key[:, 3] >> np.uint64(32), key[:, 3] & _MASK32, n.view(np.uint64)])).tolist()


def in_sum(changes: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the packed keys [n, 3+] of these changes, each once, and the sums of their values."""
    if len(changes) == 1:
        return changes[0]
    if not changes:
        return np.zeros((0, 3), np.uint64), np.zeros(0, np.int64)
    keys, values = zip(*changes, strict=True)
    return summed(np.concatenate(keys), np.concatenate(values))


def by_hour(key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return packed keys [n, 3+] with the first minute of their hour instead of the minute, each once, and the sums of their values."""
    key = key.copy()
    key[:, 0] -= (key[:, 0] & _MASK32) % np.uint64(60)
    return summed(key, value)


def by_campaign(key: np.ndarray, hours: np.ndarray) -> np.ndarray:
    """Return a row for each campaign: its id, its first and last minute in these packed keys, and the sums of its rows of hours."""
    when = np.sort(key[:, 0])
    first = starts(when >> np.uint64(32))
    last = np.append(first[1:], when.size) - 1
    span = np.column_stack([when[first] >> np.uint64(32), when[first] & _MASK32, when[last] & _MASK32])
    return np.hstack([span.view(np.int64), np.add.reduceat(hours[:, 7:], starts(hours[:, 0]), axis=0)])


def message_ids(message: np.ndarray, recipient: np.ndarray) -> np.ndarray:
    """Return a signed 64-bit id per message: vendors give one message id to several recipients."""
    with np.errstate(over="ignore"):
        return mix.py_func(message ^ (recipient * np.uint64(0x9E3779B97F4A7C15))).view(np.int64)


@cache
def checking_vfs() -> str | None:
    """Return SQLite's layer that puts a checksum into every page and compares it at each reading; None where it was not built."""
    try:
        with apsw.Connection(":memory:") as db:
            default = apsw.vfs_names()[0]
            apsw.sqlite_extra.load(db, "cksumvfs")
            # Loading makes it everybody's.
            apsw.set_default_vfs(default)
    except apsw.sqlite_extra.NotAvailable:
        return None
    return "cksmvfs"


def is_damage(error: apsw.Error) -> bool:
    """Tell whether an error says that bytes are not as they were written, and not that they cannot be read just now."""
    return not isinstance(error, apsw.IOError) or error.extendedresult in (apsw.SQLITE_IOERR_DATA, apsw.SQLITE_IOERR_SHORT_READ)


def readable(aside: Path, table: str) -> Iterator[tuple]:
    """Yield the rows of a table of a damaged store, as far as they are as they were written. Raises what is no damage."""
    try:
        with closing(apsw.Connection(str(aside), flags=apsw.SQLITE_OPEN_READONLY, vfs=checking_vfs())) as db:
            yield from db.execute(f"SELECT * FROM {table}")
    except DAMAGE as error:
        if not is_damage(error):
            raise
        logger.error("not all of `%s` can be read in %s: %s", table, aside.name, error)


def asides(path: Path) -> list[Path]:
    """Return the stores that were set aside, the oldest first."""
    found = []
    while (aside := path.with_name(f"{path.name}.damaged-{len(found) + 1}")).exists():
        found.append(aside)
    return found


def set_aside(path: Path) -> Path:
    """Rename a store and what belongs to it, so that nothing overwrites it; return its new name."""
    aside = path.with_name(f"{path.name}.damaged-{len(asides(path)) + 1}")
    # The store itself first: nobody opens one that is not there.
    for ending in ("", "-wal", "-shm"):
        if (part := path.with_name(path.name + ending)).exists():
            part.rename(aside.with_name(aside.name + ending))
    return aside
