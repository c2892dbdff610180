"""The local host of the shards: reads the log, applies batches, writes effects and position in one transaction, recovers."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import signal
from pathlib import Path

import msgspec
import numpy as np

from ..config import Config
from ..kit.clock import Clock
from ..kit.crash import crash_point
from ..kit.errors import ConfigError, Locked, MidflightError
from ..log.record import Record
from ..sources import Source, load
from ..sources.source import decode_json, encode_json
from ..stream import people
from ..stream import shard as shard_module
from ..stream.edge import Edge, Prepared
from ..stream.measures import MEASURES
from ..stream.names import Names
from ..stream.parsed import Dead
from ..stream.shard import Effects, Shard
from .schema import VERSION
from .snapshots import Header, Snapshots
from .write import StoreWriter

logger = logging.getLogger("midflight.engine")

batch_bytes_max = 8 << 20
commit_every_s = 0.1
snapshot_every_s = 300.0
snapshot_records_min = 1_000
tries_max = 3


class Engine:
    """Folds the log. ``step`` does one read, fold and commit; everything it knows can be made again from the log."""

    def __init__(self, config: Config, reader, clock: Clock | None = None, *, rebuild: bool = False) -> None:
        """Open what is there. ``rebuild`` folds the whole log again, also where that loses numbers older than the log."""
        self.config = config
        self.reader = reader
        self.clock = clock or Clock()
        self.folder = config.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = own(self.folder / "engine.lock")
        self.store = StoreWriter(self.folder / "store.db")
        self.snapshots = Snapshots(self.folder / "snapshots")
        self.snapshots.sweep()
        if rebuild:
            self.snapshots.clear()
        self.signature = fold_signature(config)
        self.names = Names()
        self.edge = Edge(load_sources(config), config.dimensions(), self.names)
        if not rebuild:
            self._refuse_to_lose_numbers()
        self.committed = self.store.start(self.signature, rebuild=rebuild)
        self.store.load_names(self.names)
        self.shards, self.position = self._recover()
        self.careful = Careful(self.folder / "engine.trying", self.committed)
        self._snapshot_at = self.clock.monotonic_s() + snapshot_every_s
        self._snapshot_position = self.position
        self._child = 0

    def new_shard(self) -> Shard:
        return Shard(self.config.attribution.click_window_minutes * 60_000_000, self.config.retention.dedup_days)

    def _recover(self) -> tuple[list[Shard], int]:
        """Return the shards and their position: from a snapshot not newer than the store, else empty at the log's start."""
        first = self.reader.first()
        found = self.snapshots.load(self._fold_and_shards(), self.committed, self.new_shard)
        if found:
            header, shards = found
            self.edge.load(header.edge)
            return shards, max(header.position, first)
        if self.committed and first > 0:
            logger.error("no usable snapshot, and the log starts at %d: what happened before counts no more for duplicates", first)
        return [self.new_shard() for _ in range(self.config.shards)], first

    def _refuse_to_lose_numbers(self) -> None:
        """Raise ConfigError where new settings ask for numbers from a log that does not reach back to their start."""
        made_by = self.store.meta("fold")
        if made_by not in (None, "", self.signature) and self.reader.first() > 0:
            raise ConfigError(
                "The settings `attributes`, `attribution` or `dedup_days` have changed, so all numbers have to be made anew, "
                "and the log no longer reaches back to the first of them",
                todo="Set them back, or run `midflight rebuild` and lose the numbers from before the log",
            )

    def _fold_and_shards(self) -> str:
        return f"{self.signature}/{people.VERSION}/{self.config.shards}"

    # -- going on --------------------------------------------------------------------------------------------------------------

    def step(self, bytes_max: int = batch_bytes_max) -> int:
        """Fold what is there, at most one batch; return how many records that was."""
        self._reap()
        if self.careful.active:
            bytes_max = 1
        records = self.reader.read(self.position, bytes_max)
        if self.position < self.committed:
            # These are in the store already: the shards have to see them, the store has not.
            records = [record for record in records if record.position < self.committed]
        elif self.careful.active:
            records = [record for record in records[:1] if not self._is_poison(record)]
        if records:
            self._fold(records)
        self._maybe_snapshot()
        return len(records)

    def _fold(self, records: list[Record]) -> None:
        if self.careful.active and self.position >= self.committed:
            self.careful.trying(records[0].position)
        prepared = self.edge.prepare(records)
        crash_point("before_fold")
        effects = self.apply(prepared)
        crash_point("before_commit")
        if prepared.next_position > self.committed:
            self.store.commit(prepared, effects, self.names, conflict_letters(prepared, effects, records))
            crash_point("after_commit")
            self.committed = prepared.next_position
            self.careful.went_well()
            self._note_freshness(records)
        self.position = prepared.next_position

    def apply(self, prepared: Prepared) -> list[Effects]:
        """Give every shard its rows; the recipient's key decides which."""
        if len(self.shards) == 1:
            return [self.shards[0].apply(prepared.batch, prepared.log_time_us)]
        # The high bits choose the shard: the low ones choose the place in its tables.
        owner = (prepared.batch.rcpt >> np.uint64(40)) % np.uint64(len(self.shards))
        effects = []
        for number, shard in enumerate(self.shards):
            rows = np.flatnonzero(owner == number)
            effects.append(shard.apply(prepared.batch.take(rows), prepared.log_time_us))
        return effects

    def catch_up(self) -> None:
        """Fold everything that the log holds now."""
        while self.step():
            pass

    def run(self, stop) -> None:
        """Fold until ``stop()``; many small reads go into one commit, so that a busy log costs few of them."""
        while not stop():
            started = self.clock.monotonic_s()
            if not self.step():
                self.clock.sleep_s(0.01)
                continue
            left = commit_every_s - (self.clock.monotonic_s() - started)
            if left > 0:
                self.clock.sleep_s(left)
        self.close()

    def close(self) -> None:
        self._reap(wait=True)
        self.store.close()
        self._lock.close()

    # -- snapshots -------------------------------------------------------------------------------------------------------------

    def snapshot(self) -> None:
        """Write a snapshot of now and wait for it."""
        header = Header(self._fold_and_shards(), self.position, len(self.shards), self.edge.snapshot())
        self.snapshots.save(header, self.shards)
        self._snapshot_position = self.position

    def _maybe_snapshot(self) -> None:
        due = self.clock.monotonic_s() >= self._snapshot_at and self.position - self._snapshot_position >= snapshot_records_min
        if not due or self._child or self.position < self.committed:
            return
        self._snapshot_at = self.clock.monotonic_s() + snapshot_every_s
        self._snapshot_position = self.position
        # The child has a frozen copy of the memory for free and writes it while we go on. It touches nothing but its file.
        self._child = os.fork()
        if self._child == 0:
            code = 1
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.nice(10)
                self.snapshot()
                code = 0
            finally:
                os._exit(code)

    def _reap(self, wait: bool = False) -> None:
        if self._child:
            pid, status = os.waitpid(self._child, 0 if wait else os.WNOHANG)
            if pid:
                if status:
                    # The state is safe in the log; only a restart would take longer.
                    logger.warning("a snapshot could not be written (status %d); is the disk full?", status)
                self._child = 0

    # -- what is out of the ordinary -------------------------------------------------------------------------------------------

    def _is_poison(self, record: Record) -> bool:
        """Bury a record that has ended this process several times, so that it blocks no other."""
        if not self.careful.is_poison(record.position):
            return False
        dead = Dead(record.position, -1, record.source, "ended_the_engine", f"tried {tries_max} times", record.body, record.at_us)
        prepared = self.edge.prepare([])._replace(dead=[dead], next_position=record.position + 1, log_time_us=record.at_us)
        self.store.commit(prepared, [], self.names, [])
        self.committed = self.position = record.position + 1
        logger.error("record %d of source %s ended the engine %d times and is set aside", record.position, record.source, tries_max)
        return True

    def _note_freshness(self, records: list[Record]) -> None:
        now = self.clock.now_us()
        at = np.array([record.at_us for record in records if record.kind != "tick"], np.int64)
        # A backlog that is caught up after a stop says nothing about how fresh numbers are in operation beyond a minute.
        if at.size:
            self.store.fresh(now // 60_000_000, np.maximum(now - at, 0) / 1000)


class Careful:
    """Remembers across crashes of the process which position it is at, to find the record that ends it."""

    def __init__(self, path: Path, position: int) -> None:
        self.path = path
        self.tries: dict[str, int] = {}
        if path.exists():
            try:
                self.tries = msgspec.json.decode(path.read_bytes(), type=dict[str, int])
            except msgspec.DecodeError:
                self.tries = {}
        starts = self.tries.get(f"start {position}", 0) + 1
        self.active = starts > tries_max
        self.tries = {**{k: n for k, n in self.tries.items() if k.startswith("record ")}, f"start {position}": starts}
        self._save()
        self._noted = True
        self._left = 1000

    def trying(self, position: int) -> None:
        self.tries[f"record {position}"] = self.tries.get(f"record {position}", 0) + 1
        self._save()

    def is_poison(self, position: int) -> bool:
        return self.tries.get(f"record {position}", 0) >= tries_max

    def went_well(self) -> None:
        """A commit succeeded: normal speed again, after a while if there had been trouble."""
        if self.active:
            self._left -= 1
            self.tries = {}
            if self._left > 0:
                return
            self.active = False
        if self._noted:
            self.path.unlink(missing_ok=True)
            self._noted = False

    def _save(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(self.tries))
        part.rename(self.path)


def conflict_letters(prepared: Prepared, effects: list[Effects], records: list[Record]) -> list[Dead]:
    """Return dead letters for events whose id was known with other content: the first one stays."""
    rows = [row for effect in effects for row in effect.conflicts.tolist() if prepared.item[row] >= 0]
    if not rows:
        return []
    by_position = {record.position: record for record in records}
    letters = []
    for row in rows:
        record, item = by_position[int(prepared.position[row])], int(prepared.item[row])
        detail = "An event with this id and other content was counted before"
        letters.append(Dead(record.position, item, record.source, "conflict", detail, item_bytes(record, item), record.at_us))
    return letters


def item_bytes(record: Record, item: int) -> bytes:
    """Return the bytes of one event of a record if it is an array, else the whole body."""
    try:
        items = decode_json(record.body)
    except MidflightError:
        return record.body
    return encode_json(items[item]) if isinstance(items, list) and item < len(items) else record.body


def load_sources(config: Config) -> dict[str, Source]:
    """Return the configured sources by name. Raises ConfigError."""
    sources = {}
    for name, settings in config.sources.items():
        settings = dict(settings)
        sources[name] = load(settings.pop("kind"), settings, name=name)
    return sources


def fold_signature(config: Config) -> str:
    """Return what the fold depends on beside the log: if it changes, all numbers are made anew."""
    parts = [VERSION, shard_module.VERSION, list(MEASURES), msgspec.to_builtins(config.dimensions())]
    parts += [msgspec.to_builtins(config.attribution), config.retention.dedup_days]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]


def own(path: Path):
    """Lock a file for this process's life. Raises Locked when another engine has it."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise Locked(f"Another engine runs on {path.parent}", todo="Stop it first: two would count everything twice") from None
    return file
