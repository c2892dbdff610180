"""The engine's side of the store: what a batch changed, and the log position, in one transaction."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import apsw
import apsw.sqlite_extra
import numpy as np

from ..stream.edge import Prepared
from ..stream.hashing import mix
from ..stream.measures import FRESHNESS_EDGES_MS, MEASURES
from ..stream.names import Names
from ..stream.providers import PROVIDERS
from ..stream.shard import Effects
from .schema import ENDED, SCHEMA, VERSION

_KEY = ("campaign", "minute", "variant", "wave", "provider", "source", "segment")
_DERIVED = ("meta", "names", "cells", "delays", "campaigns", "clickers", "dead", "receipts", "drops", "freshness", "marks")
_MASK32, _MASK16 = np.uint64(0xFFFFFFFF), np.uint64(0xFFFF)
minutes_of_freshness_max = 7 * 24 * 60
checksum_bytes = 8
# A schema that no longer reads as one is an SQLError.
DAMAGE = (apsw.CorruptError, apsw.NotADBError, apsw.IOError)


def _upsert(table: str, key: Iterable[str], sums: Iterable[str]) -> str:
    columns = (*key, *sums)
    adds = ", ".join(f"{c} = {c} + excluded.{c}" for c in sums)
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))}) "
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {adds}"
    )


_CELL = _upsert("cells", _KEY, MEASURES)
_DELAY = _upsert("delays", (*_KEY, "kind", "bucket"), ("n",))
_CAMPAIGN = _upsert("campaigns", ("campaign",), MEASURES).replace("(campaign,", "(campaign, first_minute, last_minute,", 1).replace(
    "VALUES (?,", "VALUES (?, ?, ?,", 1
) + (", first_minute = min(first_minute, excluded.first_minute), last_minute = max(last_minute, excluded.last_minute)")  # fmt: skip
_RECEIPT = (
    "INSERT INTO receipts (source, minute, records, events, duplicates, bad, last_event_us) VALUES (?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (source, minute) DO UPDATE SET records = records + excluded.records, events = events + excluded.events, "
    "duplicates = duplicates + excluded.duplicates, bad = bad + excluded.bad, last_event_us = max(last_event_us, excluded.last_event_us)"
)


class StoreWriter:
    """The only writer of ``store.db``. A second one is kept out by the engine's lock."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.db = apsw.Connection(str(path), vfs=checking_vfs())
        # The room that each page of a new store leaves for its checksum; an older store stays as it is.
        room = ctypes.c_int(checksum_bytes)
        self.db.file_control("main", apsw.SQLITE_FCNTL_RESERVE_BYTES, ctypes.addressof(room))
        try:
            self.db.set_busy_timeout(10_000)
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = FULL")
            self.db.execute("PRAGMA cache_size = -65536")
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

    def start(self, signature: str, *, rebuild: bool = False) -> int:
        """Return the position to go on from; empty everything first if it was made by another fold. 0 for a new store."""
        if rebuild or self.meta("version") != VERSION or self.meta("fold") != signature:
            self.empty(signature)
        return self.meta("position", 0)

    def empty(self, signature: str) -> None:
        """Forget all that is derived, so that it is rebuilt from the log."""
        with self.db:
            for table in _DERIVED:
                self.db.execute(f"DROP TABLE IF EXISTS {table}")
            self.db.execute(SCHEMA)
            # The numbers of names differ from one making to the next, so snapshots belong to one making: the epoch tells which.
            self._meta({"version": VERSION, "fold": signature, "position": 0, "log_time_us": 0, "epoch": os.urandom(8).hex()})
            providers = [("provider", number, name) for number, name in enumerate(PROVIDERS) if number]
            self.db.executemany("INSERT INTO names VALUES (?, ?, ?)", providers)

    def load_names(self, names: Names) -> None:
        for kind, number, name in self.db.execute("SELECT kind, id, name FROM names WHERE kind <> 'provider'"):
            names.load(kind, number, name)

    def buried(self) -> set[int]:
        """Return the positions of the records that were never read because they end the process."""
        return {position for (position,) in self.db.execute("SELECT position FROM dead WHERE reason = ?", (ENDED,))}

    # -- one step ------------------------------------------------------------------------------------------------------------

    def commit(self, prepared: Prepared, effects: list[Effects], names: Names, conflicts: list[tuple]) -> None:
        """Write what a batch changed, with the position behind it."""
        with self.db:
            if names.new:
                self.db.executemany("INSERT INTO names VALUES (?, ?, ?)", names.new)
            for effect in effects:
                self._cells(effect)
                self._clickers(effect, prepared)
            self._marks(prepared, effects)
            self._receipts(prepared, effects)
            self._dead(prepared, conflicts)
            self._meta({"position": prepared.next_position, "log_time_us": prepared.log_time_us})
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

    def _cells(self, effect: Effects) -> None:
        if effect.cell_key.shape[0]:
            keys = key_columns(effect.cell_key)
            self.db.executemany(_CELL, np.hstack([keys, effect.cell_value]).tolist())
            self.db.executemany(_CAMPAIGN, by_campaign(keys, effect.cell_value))
        if effect.delay_key.shape[0]:
            kind_bucket = effect.delay_key[:, 3]
            more = [(kind_bucket >> np.uint64(32)).astype(np.int64), (kind_bucket & _MASK32).astype(np.int64), effect.delay_n]
            self.db.executemany(_DELAY, np.column_stack([key_columns(effect.delay_key), *more]).tolist())

    def _clickers(self, effect: Effects, prepared: Prepared) -> None:
        known = np.flatnonzero(effect.clicker_campaign)
        if not known.size:
            return
        campaign, clicked_at = effect.clicker_campaign[known].astype(np.int64), effect.clicker_clicked_at[known]
        message = message_ids(effect.clicker_message[known], effect.clicker_recipient[known])
        gone = clicked_at < 0
        self.db.executemany("DELETE FROM clickers WHERE campaign = ? AND message = ?", np.column_stack([campaign, message])[gone].tolist())
        now = ~gone
        rest = [
            campaign,
            message,
            effect.clicker_variant[known],
            effect.clicker_wave[known],
            clicked_at,
            effect.clicker_converted_at[known],
        ]
        columns = [column[now].tolist() for column in rest]
        names = recipient_names(effect.clicker_recipient[known][now], prepared)
        self.db.executemany(
            "INSERT OR REPLACE INTO clickers (campaign, message, variant, wave, clicked_at_us, converted_at_us, recipient) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            list(zip(*columns, names, strict=True)),
        )

    def _marks(self, prepared: Prepared, effects: list[Effects]) -> None:
        found = [("duplicate", row) for effect in effects for row in effect.duplicates.tolist()]
        found += [("conflict", row) for effect in effects for row in effect.conflicts.tolist()]
        marks = [(int(prepared.position[row]), int(prepared.item[row]), mark) for mark, row in found if prepared.item[row] >= 0]
        self.db.executemany("INSERT OR IGNORE INTO marks VALUES (?, ?, ?)", marks)

    def _receipts(self, prepared: Prepared, effects: list[Effects]) -> None:
        rows = [(source, at, n[0], n[1], 0, n[2], n[3]) for (source, at), n in prepared.receipts.items()]
        repeated = Counter(
            (prepared.source(row), int(prepared.received[row]) // 60_000_000) for effect in effects for row in effect.duplicates.tolist()
        )
        rows += [(source, minute, 0, 0, n, 0, 0) for (source, minute), n in repeated.items()]
        self.db.executemany(_RECEIPT, rows)
        self.db.executemany(_upsert("drops", ("source", "reason"), ("n",)), [(*key, n) for key, n in prepared.drops.items()])

    def _dead(self, prepared: Prepared, conflicts: list[tuple]) -> None:
        rows = [(*dead, 0) for dead in (*prepared.dead, *conflicts)]
        self.db.executemany("INSERT OR IGNORE INTO dead VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        tried = [(1 if readable else 2, position, item) for position, item, readable in prepared.replayed]
        self.db.executemany("UPDATE dead SET state = ? WHERE position = ? AND item = ?", tried)

    def close(self) -> None:
        self.db.close()


def key_columns(key: np.ndarray) -> np.ndarray:
    """Return packed cell keys [n, 3+] as int64 columns in the order of the tables' keys."""
    when, place, segment = key[:, 0], key[:, 1], key[:, 2]
    columns = [
        when >> np.uint64(32),
        when & _MASK32,
        place >> np.uint64(48),
        place >> np.uint64(32) & _MASK16,
        place >> np.uint64(16) & _MASK16,
        place & _MASK16,
    ]
    return np.column_stack([*(c.astype(np.int64) for c in columns), segment.view(np.int64)])


def by_campaign(keys: np.ndarray, values: np.ndarray) -> list[list[int]]:
    """Return one row per campaign: its id, its first and last touched minute, and the sums of the changes."""
    campaigns, place = np.unique(keys[:, 0], return_inverse=True)
    sums = np.zeros((campaigns.size, values.shape[1]), np.int64)
    np.add.at(sums, place, values)
    first = np.full(campaigns.size, np.iinfo(np.int64).max)
    last = np.zeros(campaigns.size, np.int64)
    np.minimum.at(first, place, keys[:, 1])
    np.maximum.at(last, place, keys[:, 1])
    return np.column_stack([campaigns, first, last, sums]).tolist()


def recipient_names(keys: np.ndarray, prepared: Prepared) -> list[str]:
    """Return the recipients of these keys as text; each has a row in the batch that touched it."""
    unique, place = np.unique(keys, return_inverse=True)
    rows = np.flatnonzero(np.isin(prepared.batch.rcpt, unique))
    found, where = np.unique(prepared.batch.rcpt[rows], return_index=True)
    assert found.size == unique.size, "a message changed without an event of its recipient"
    names = prepared.recipients(rows[where])
    return [names[i] for i in place.tolist()]


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


def set_aside(path: Path) -> Path:
    """Rename a store and what belongs to it, so that nothing overwrites it; return its new name."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    # The store itself first: nobody opens one that is not there.
    for ending in ("", "-wal", "-shm"):
        if (part := path.with_name(path.name + ending)).exists():
            part.rename(aside.with_name(aside.name + ending))
    return aside
