"""The local host of the shards: reads the log, applies batches, writes effects and position in one transaction, recovers."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import apsw
import msgspec
import numpy as np

from ..config import Config
from ..decide.definitions import Definitions
from ..decide.gauges import Gauges
from ..kit.clock import Clock
from ..kit.collecting import uncollected
from ..kit.crash import crash_point
from ..kit.errors import ConfigError, Damaged, MidflightError
from ..kit.owned import own
from ..kit.reserved import available_bytes
from ..log import NotKept, Reader, Record, Unreadable
from ..sources.source import decode_json, encode_json
from ..stream import people
from ..stream import shard as shard_module
from ..stream.edge import Edge, Prepared
from ..stream.measures import MEASURES
from ..stream.names import Names
from ..stream.parsed import Dead
from ..stream.shard import Effects, Shard
from ..stream.tables import ready_bytes
from .asking import Answering
from .folding import Folding, is_definition, is_list, load_sources
from .recent import Recent
from .schema import ENDED, VERSION
from .snapshots import Header, Snapshots
from .suspecting import Suspecting
from .write import DAMAGE, Changes, StoreWriter, is_damage, set_aside

logger = logging.getLogger("midflight.engine")

batch_bytes_max = 16 << 20
batches_a_commit = 8  # at most, while they are full: a backlog changes the same cells again and again, and most of a commit is pages
wary_bytes_max = 512 << 10  # of a batch after a death, so that few records are under suspicion
commit_every_s = 0.1
snapshot_every_s = 300.0
snapshot_records_min = 1_000
tries_max = 3
snapshot_s_max = 5.0  # how long an engine that ends waits for a snapshot in the making
last_snapshot_bytes_max = 512 << 20
behind_s_max = 30.0
failed_status = 74  # EX_IOERR: the disk, or what is on it; the next start may go better


def run_engine(config: Config) -> None:
    """Run until SIGTERM or SIGINT. Raises MidflightError for what only a person can mend, SystemExit (74) for what may pass."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        Engine(config, Reader(config.folder / "log")).run(stop.is_set)
    except (OSError, apsw.Error, Damaged, Unreadable, NotKept) as error:
        # What is in memory may be ahead of the store by now. A new start takes up where the last commit was.
        logger.error("the engine ends and starts again from its last commit: %s", " ".join(str(error).split()) or type(error).__name__)
        sys.exit(failed_status)


class Engine(Folding):
    """Folds the log. ``step`` does one read, fold and commit; everything it knows can be made again from the log."""

    def __init__(self, config: Config, reader, clock: Clock | None = None, *, rebuild: bool = False) -> None:
        """Open what is there. ``rebuild`` folds the whole log again, also where that loses numbers older than the log."""
        self.config = config
        self.reader = reader
        self.clock = clock or Clock()
        self.folder = config.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = own(
            self.folder / "engine.lock", f"Another engine runs on {self.folder}", todo="Stop it first: two would count everything twice"
        )
        try:
            self._open(rebuild)
        except BaseException:
            self._lock.close()
            raise

    def _open(self, rebuild: bool) -> None:
        config = self.config
        self.store = self._sound_store()
        self.snapshots = Snapshots(self.folder / "snapshots")
        self.snapshots.sweep()
        if rebuild:
            self.snapshots.clear()
        self.signature = fold_signature(config)
        self.names = Names()
        self.edge = Edge(load_sources(config), config.dimensions(), self.names)
        if not rebuild:
            self._refuse_to_lose_numbers()
        self.committed = self.store.start(self.signature, rebuild=rebuild, whole=self.reader.first() == 0)
        self.store.load_names(self.names)
        self._fold_is = f"{self.signature}/{people.VERSION}/{config.shards}/{self.store.meta('epoch')}"
        self._log_time_us = self.store.meta("log_time_us", 0)
        self.snapshots.clear(after=self.committed)
        self.definitions, self.gauges = Definitions(), Gauges()
        self.shards, self.position = self._recover()
        self.ask(self.definitions.program(self.names.id))
        self._make_ready()
        self.recent = Recent()
        self.changes = Changes()
        self.suspecting = Suspecting(self.store.db)
        self.folding = threading.Lock()  # held while memory changes
        self._received: list[np.ndarray] = []  # when the records whose changes are not committed came in
        self.careful = Careful(self.folder / "engine.trying", self.committed)
        self._snapshot_at = self.clock.monotonic_s() + snapshot_every_s
        self._snapshot_position = self.position
        self._child = 0
        self._behind_since_s = self.clock.monotonic_s()

    def _sound_store(self) -> StoreWriter:
        """Open the store. A damaged one is set aside by name, and a new one is made from the log."""
        path = self.folder / "store.db"
        try:
            store = StoreWriter(path)
            found = store.damage()
            if not found:
                return store
            store.close()
        except DAMAGE as error:
            if not is_damage(error):
                raise
            found = str(error)
        aside = set_aside(path)
        logger.error("store.db is damaged (%s) and is set aside as %s; all numbers are made anew from the log", found, aside.name)
        first = self.reader.first()
        if first:
            logger.error("the log starts at position %d: numbers from before it are only in %s", first, aside.name)
        return StoreWriter(path)

    def _recover(self) -> tuple[list[Shard], int]:
        """Return the shards and their position: from a snapshot not newer than the store, else empty at the log's start."""
        first = self.reader.first()
        found = self.snapshots.load(self._fold_is, self.committed, self.new_shard)
        if found:
            header, shards = found
            self.edge.load(header.edge)
            self.definitions.load(header.edge["definitions"])
            self.gauges.load(header.edge["gauges"])
            return shards, max(header.position, first)
        if self.committed and first > 0:
            logger.error("no usable snapshot, and the log starts at %d: what happened before counts no more for duplicates", first)
        shards = [self.new_shard() for _ in range(self.config.shards)]
        kept = self.store.meta("definitions")
        if first > 0 and kept:
            # What was asked for before the log's beginning still holds.
            self.definitions.load(msgspec.json.decode(kept))
            program = self.definitions.program(self.names.id)
            new = np.full(program.segments, -1, np.int64), np.full(program.watches.size, -1, np.int64)
            for shard in shards:
                shard.define(program, *new)
        return shards, first

    def _make_ready(self) -> None:
        """Take the memory for the messages that are expected, unless that would leave too little of it."""
        messages = self.config.expected_messages
        wanted, there = messages * ready_bytes, available_bytes() if messages else 0
        if wanted > there // 4 * 3:
            logger.warning(
                "`expected_messages` asks for %.1f GB of memory, and %.1f GB are left: it is taken when it is needed",
                wanted / 1e9,
                there / 1e9,
            )
        elif messages:
            for shard in self.shards:
                shard.make_ready(-(-messages // len(self.shards)))

    def _refuse_to_lose_numbers(self) -> None:
        """Raise ConfigError where new settings ask for numbers from a log that does not reach back to their start."""
        made_by = self.store.meta("fold")
        if made_by not in (None, "", self.signature) and self.reader.first() > 0:
            raise ConfigError(
                "All numbers have to be made anew (the settings `attributes`, `attribution` or `dedup_days` have changed, or this version "
                "counts otherwise), and the log no longer reaches back to the first of them",
                todo="Go back to the former settings or version, or run `midflight rebuild` and lose the numbers from before the log",
            )

    # -- going on --------------------------------------------------------------------------------------------------------------

    def step(self, bytes_max: int = batch_bytes_max) -> int:
        """Fold what is there, at most one batch; return how many records that was. A backlog is committed some full batches at a time."""
        with self.folding:
            return self._step(bytes_max)

    def _step(self, bytes_max: int) -> int:
        self._reap()
        again = self.position < self.committed
        one_by_one = self.careful.active and not again
        if self.careful.wary and not again:
            bytes_max = 1 if one_by_one else min(bytes_max, wary_bytes_max)
        records = self.reader.read(self.position, bytes_max)
        if records and again:
            self._fold_again(records)
        elif records and one_by_one:
            records = records[:1]
            self._fold_carefully(records[0])
        elif records:
            self._fold(records)
            full = sum(len(record.body) for record in records) * 2 > bytes_max
            if not full or self.careful.wary or self.recent.start_s or self.changes.batches >= batches_a_commit:
                self.commit()
        else:
            self.commit()
        self._maybe_snapshot()
        return len(records)

    def _fold(self, records: list[Record]) -> None:
        for part in self.parts_of(records):
            self._tell(self.turn(part[0].at_us))
            self._fold_part(part)
            if is_list(part[-1]):
                self.suspecting.obey(part[-1])
            if is_definition(part[-1]) and (defined := self.define(part[-1])):
                fresh, told = defined
                self.changes.redefine(self.asked, fresh, self.definitions.snapshot())
                self._tell(told)

    def _tell(self, told: list[np.ndarray]) -> None:
        for shard, rows in enumerate(told):
            self.changes.tell(shard, rows, self.asked)

    def _fold_part(self, records: list[Record]) -> None:
        with uncollected():
            prepared = self.edge.prepare(records)
            crash_point("before_fold")
            folded_us = max(self._log_time_us, *(shard.log_time_us for shard in self.shards))
            effects = self.apply(prepared, self.recent.wanted_from_us(self.clock.now_us(), prepared.log_time_us, folded_us))
            self.changes.add(prepared, effects, conflict_letters(prepared, effects, records), self.asked)
            self.suspecting.hear(prepared, effects)
        self._received.append(np.array([record.at_us for record in records if record.kind != "tick"], np.int64))
        self.position = prepared.next_position

    def commit(self) -> None:
        """Write what was folded since the last commit."""
        if not self.changes.batches:
            return
        try:
            crash_point("before_commit")
            with uncollected():
                self.store.commit(self.changes, self.names, self.recent, self.suspecting)
            crash_point("after_commit")
            self.committed, self.changes = self.position, Changes()
            self.careful.went_well()
            self._note_freshness()
        except (OSError, apsw.Error):
            # It is the disk's fault and not the records'.
            self.careful.forget()
            raise

    def _fold_again(self, records: list[Record]) -> None:
        """Show the shards what the store has already, and only that.

        A record that was a dead letter then stays unseen, also where the settings have changed and it could be read by now: it counts
        when it is replayed. Records that end the process are among them.
        """
        known = [record for record in records if record.position < self.committed]
        if known and known[-1].at_us > self._log_time_us:
            raise Damaged(
                "This log is not the one that store.db was made from",
                expected=f"nothing newer than {self._log_time_us} before position {self.committed}",
                got=known[-1].at_us,
                where=str(self.folder / "log"),
                todo="Put back what belongs together, or run `midflight rebuild`",
            )
        dead = self.store.dead_between(known[0].position, known[-1].position) if known else set()
        readable = [record for record in known if record.position not in dead]
        for part in self.parts_of(readable):
            self.turn(part[0].at_us)
            self.apply(self.edge.prepare(part))
            if is_definition(part[-1]):
                self.define(part[-1])
        # A repair of the log may have given up what was between.
        self.position = known[-1].position + 1 if known else self.committed

    def _fold_carefully(self, record: Record) -> None:
        """Fold one record and remember the try, or bury the record if it has ended this process several times."""
        if self.careful.is_poison(record.position):
            self._bury(record)
        else:
            self.careful.trying(record.position)
            self._fold([record])
            self.commit()

    def catch_up(self) -> None:
        """Fold everything that the log holds now."""
        while self.step():
            pass

    def run(self, stop) -> None:
        """Fold until ``stop()``, and answer who asks; many small reads go into one commit, so that a busy log costs few of them."""
        answering = Answering(self.folder, self, self.folding)
        while not stop():
            started = self.clock.monotonic_s()
            if not self.step():
                self._look_for_the_end()
                self.clock.sleep_s(0.01)
                continue
            left = commit_every_s - (self.clock.monotonic_s() - started)
            if left > 0:
                self.clock.sleep_s(left)
        answering.close()
        self.commit()
        self._last_snapshot()
        self.close()

    def _look_for_the_end(self) -> None:
        """Raise Damaged where the log ends before what the store has of it: new records would pass for known ones."""
        now, end = self.clock.monotonic_s(), self.reader.head()
        if not 0 < end < self.position:
            self._behind_since_s = now
        elif now - self._behind_since_s > behind_s_max:
            raise Damaged(
                "The log ends before what store.db was made from",
                expected=f"position {self.position} or later",
                got=end,
                where=str(self.folder / "log"),
                todo="Put back what belongs together, or run `midflight rebuild`",
            )

    def close(self) -> None:
        self._end_snapshot()
        self.careful.forget()
        self.store.close()
        self._lock.close()

    # -- snapshots -------------------------------------------------------------------------------------------------------------

    def snapshot(self) -> None:
        """Commit, write a snapshot of now and wait for it."""
        self.commit()
        edge = self.edge.snapshot() | {"definitions": self.definitions.snapshot(), "gauges": self.gauges.snapshot()}
        header = Header(self._fold_is, self.position, len(self.shards), edge)
        self.snapshots.save(header, self.shards)
        self._snapshot_position = self.position

    def _maybe_snapshot(self) -> None:
        due = self.clock.monotonic_s() >= self._snapshot_at and self.position - self._snapshot_position >= snapshot_records_min
        if not due or self._child or self.position < self.committed:
            return
        # Not in the child: the store is this process's.
        self.commit()
        self._snapshot_at = self.clock.monotonic_s() + snapshot_every_s
        self._snapshot_position = self.position
        # The child has a frozen copy of the memory for free and writes it while we go on. It touches nothing but its file.
        self._child = os.fork()
        if self._child == 0:
            code = 1
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                # If the engine is killed meanwhile, its successor must not find the lock taken.
                self._lock.close()
                os.nice(10)
                self.snapshot()
                code = 0
            finally:
                os._exit(code)

    def _last_snapshot(self) -> None:
        """Leave a snapshot of the very end, if that takes no time to speak of: the next start may have other settings for its sources."""
        self._end_snapshot()
        size = sum(shard.counts()["bytes"] for shard in self.shards)
        if self._snapshot_position < self.position == self.committed and size <= last_snapshot_bytes_max:
            try:
                self.snapshot()
            except OSError as error:
                logger.warning("the last snapshot could not be written: %s", error)

    def _reap(self, flags: int = os.WNOHANG) -> None:
        if self._child:
            pid, status = os.waitpid(self._child, flags)
            if pid:
                if status:
                    # The state is safe in the log; only a restart would take longer.
                    logger.warning("a snapshot could not be written (status %d); is the disk full?", status)
                self._child = 0

    def _end_snapshot(self) -> None:
        until = self.clock.monotonic_s() + snapshot_s_max
        self._reap()
        while self._child and self.clock.monotonic_s() < until:
            self.clock.sleep_s(0.02)
            self._reap()
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            self._reap(0)

    # -- what is out of the ordinary -------------------------------------------------------------------------------------------

    def _bury(self, record: Record) -> None:
        """Set a record aside as a dead letter, unread, so that it blocks no other."""
        dead = Dead(record.position, -1, record.source, ENDED, f"tried {tries_max} times", record.body, record.at_us)
        prepared = self.edge.prepare([])._replace(dead=[dead], next_position=record.position + 1, log_time_us=record.at_us)
        self.store.commit(Changes().add(prepared, [], [], self.asked), self.names)
        self.committed = self.position = record.position + 1
        self.careful.went_well()
        logger.error("record %d of source %s ended the engine %d times and is set aside", record.position, record.source, tries_max)

    def _note_freshness(self) -> None:
        now = self.clock.now_us()
        at = np.concatenate(self._received)
        self._received.clear()
        # A backlog that is caught up after a stop says nothing about how fresh numbers are in operation beyond a minute.
        if at.size:
            self.store.fresh(now // 60_000_000, np.maximum(now - at, 0) / 1000)


class Careful:
    """Remembers across crashes of the process which position it is at, to find the record that ends it.

    After a second start at one position batches are small; after several, records are folded one by one, each noted before it is tried.
    """

    def __init__(self, path: Path, position: int) -> None:
        self.path = path
        found = self._noted()
        starts = found.get(f"start {position}", 0) + 1
        self.tries = {f"start {position}": starts, **{k: n for k, n in found.items() if k.startswith("record ")}}
        self.active = starts > tries_max or len(self.tries) > 1
        self.wary = self.active or starts > 1
        self._left = 1000
        self._save()

    def _noted(self) -> dict[str, int]:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=dict[str, int])
        except (FileNotFoundError, msgspec.DecodeError):
            # What a power cut spoiled was only a count.
            return {}

    def trying(self, position: int) -> None:
        self.tries[f"record {position}"] = self.tries.get(f"record {position}", 0) + 1
        self._save()

    def is_poison(self, position: int) -> bool:
        return self.tries.get(f"record {position}", 0) >= tries_max

    def went_well(self) -> None:
        """A commit succeeded: normal speed again, after a while if there had been trouble."""
        if self.wary:
            self._left -= 1
            self.wary = self._left > 0
            self.active &= self.wary
        if self.tries:
            self.forget()

    def forget(self) -> None:
        self.tries = {}
        self.path.unlink(missing_ok=True)

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


def fold_signature(config: Config) -> str:
    """Return what the fold depends on beside the log: if it changes, all numbers are made anew."""
    parts = [VERSION, shard_module.VERSION, list(MEASURES), msgspec.to_builtins(config.dimensions())]
    parts += [msgspec.to_builtins(config.attribution), config.retention.dedup_days]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]
