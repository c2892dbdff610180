"""A trial: shards hosted by Quix Streams on Kafka, whose snapshots and journals are its keyed state, and where it can be made to die."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from midflight.stream.batch import Batch
from midflight.stream.shard import Effects, Shard

if TYPE_CHECKING:
    from quixstreams import State

EXACTLY_ONCE, AT_LEAST_ONCE = "exactly-once", "at-least-once"
# Where a worker waits for its end: between two checkpoints; when the state is in the changelog and nothing is committed; when its
# position is part of the transaction too and that is not committed; and when all is committed and the disk does not know it yet.
BETWEEN, BEFORE_COMMIT, IN_COMMIT, AFTER_COMMIT = "between checkpoints", "before the commit", "in the commit", "after the commit"

commit_every = 20  # records, of all buckets
snapshot_every = 8  # records of a bucket; between them stands its journal
# Kafka refuses a record of more than 1 MB unless it is told otherwise.
chunk_bytes_max = 512 * 1024


def new_shard() -> Shard:
    return Shard(7 * 86_400_000_000, 40)


class Told(NamedTuple):
    """What a record made of its bucket: its number there, the digest of its effects, and the rows that it repeated."""

    number: int
    digest: str
    duplicates: int


def digest(effects: Effects) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(column).tobytes() for column in effects)).hexdigest()


class Given(NamedTuple):
    """One record: its number in its bucket from 0, and a batch with its log time, or without one the question what the state is."""

    number: int
    batch: tuple | None = None
    log_time_us: int = 0


def applied(shard: Shard, given: Given) -> Told:
    """Fold the batch of one record, or tell what the state is."""
    if given.batch is None:
        return Told(given.number, hashlib.sha256(shard.snapshot()).hexdigest(), 0)
    effects = shard.apply(Batch(*given.batch), given.log_time_us)
    return Told(given.number, digest(effects), effects.duplicates.size)


class StateBehind(Exception):
    """The library hands out a record and a state that do not belong together; to start again is right."""


class Host:
    """The shards of the buckets that a worker has. What is in memory counts only while the keyed state stands at the same record."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.shards: dict[bytes, tuple[int, Shard]] = {}
        self.restored = 0

    def take(self, value: bytes, key: bytes, _timestamp: int, _headers: object, state: State) -> bytes:
        """Fold a record of the bucket ``key``; what is in memory and in the keyed state go on together.

        Raises StateBehind where the keyed state has not all records before this one.
        """
        given, number = Given(*pickle.loads(value)), state.get("applied", 0)
        if given.number != number and not self.plan.trusts:
            raise StateBehind(f"{key.decode()}: the state has {number} records, and the next is number {given.number}")
        shard = self.shard(key, number, state)
        told = applied(shard, given)
        if given.batch is not None:
            self.keep(number, value, shard, state)
            self.shards[key] = number + 1, shard
        return pickle.dumps((key, *told))

    def shard(self, key: bytes, number: int, state: State) -> Shard:
        """Return the bucket's shard as it was before the record of this number: somebody else may have had it meanwhile."""
        stands_at, shard = self.shards.get(key, (0, None))
        if shard is None or stands_at != number:
            self.restored += number > 0
            shard = restored(number, state, self.plan.forgets)
        return shard

    def keep(self, number: int, value: bytes, shard: Shard, state: State) -> None:
        """Write what it takes to come back here: the record, or now and then the whole state in pieces."""
        state.set("applied", number + 1)
        if (number + 1) % snapshot_every:
            state.set_bytes(f"journal {number % snapshot_every}", value)
            return
        image = shard.snapshot()
        pieces = range(0, len(image), chunk_bytes_max)
        state.set("pieces", len(pieces))
        for piece, start in enumerate(pieces):
            state.set_bytes(f"piece {piece}", image[start : start + chunk_bytes_max])


def restored(number: int, state: State, forgets: bool) -> Shard:
    """Return a shard after its first ``number`` records: the last snapshot, and the journal since, unless it forgets that."""
    shard = new_shard()
    if number >= snapshot_every:
        shard.load(b"".join(state.get_bytes(f"piece {piece}") for piece in range(state.get("pieces"))))
    for place in range(0 if forgets else number % snapshot_every):
        applied(shard, Given(*pickle.loads(state.get_bytes(f"journal {place}"))))
    return shard


class Plan(NamedTuple):
    """How a worker runs, and where it waits for its end, if anywhere: at this point after that many records."""

    address: str
    name: str  # of the group, and of its topics
    folder: Path
    guarantee: str = EXACTLY_ONCE
    point: str = ""
    after: int = commit_every + commit_every // 2
    # How long a transaction may stay open before the broker ends it.
    transaction_ms_max: int = 6_000
    # Broken builds, for the controls: one comes back without its journal, one takes any record with any state.
    forgets: bool = False
    trusts: bool = False


class Run:
    """One worker inside its process."""

    def __init__(self, plan: Plan, said: Connection) -> None:
        # The tests that start this need nothing of it in their own process.
        from quixstreams import Application

        self.plan, self.said, self.host, self.records = plan, said, Host(plan), 0
        self.app = Application(
            broker_address=plan.address,
            consumer_group=plan.name,
            auto_offset_reset="earliest",
            commit_every=commit_every,
            commit_interval=2.0,
            processing_guarantee=plan.guarantee,
            state_dir=plan.folder,
            loglevel="ERROR",
            on_message_processed=self.processed,
            producer_extra_config={"transaction.timeout.ms": plan.transaction_ms_max} if plan.guarantee == EXACTLY_ONCE else {},
            consumer_extra_config={"session.timeout.ms": 3_000, "heartbeat.interval.ms": 500},
            consumer_poll_timeout=0.2,
        )

    def processed(self, _topic: str, _partition: int, _offset: int) -> None:
        self.records += 1
        self.said.send(("restored", self.host.restored) if self.records == 1 else ("records", self.records))
        if self.plan.point == BETWEEN and self.records >= self.plan.after:
            # What was produced so far goes out, as it does by itself a moment later.
            self.app._producer.flush(10)
            self.wait()

    def wait(self) -> None:
        """Wait for the end of this process, or to be told to go on."""
        self.plan = self.plan._replace(point="")
        self.said.send(("waits", self.records))
        self.said.recv()

    def wait_at(self, point: str) -> None:
        if self.plan.point == point and self.records >= self.plan.after:
            self.wait()

    def wait_in_commit(self) -> None:
        """Put the waits into the library's own commit, and say when that fails."""
        outer, inner = self.app._producer, self.app._producer._producer
        both, last = outer.commit_transaction, inner.commit_transaction

        def commit(*arguments: object, **named: object) -> None:
            self.wait_at(BEFORE_COMMIT)
            try:
                both(*arguments, **named)
            except Exception as error:
                self.said.send(("refused", repr(error)))
                raise
            self.wait_at(AFTER_COMMIT)

        def end(*arguments: object, **named: object) -> None:
            self.wait_at(IN_COMMIT)
            last(*arguments, **named)

        outer.commit_transaction, inner.commit_transaction = commit, end

    def run(self) -> None:
        source = self.app.topic(f"{self.plan.name}-batches", key_deserializer="bytes", value_deserializer="bytes")
        sink = self.app.topic(f"{self.plan.name}-told", key_serializer="bytes", value_serializer="bytes")
        if self.plan.guarantee == EXACTLY_ONCE:
            self.wait_in_commit()
        self.app.dataframe(source).apply(self.host.take, stateful=True, metadata=True).to_topic(sink)
        self.said.send(("runs", 0))
        self.app.run()


def run(plan: Plan, said: Connection) -> None:
    """Run as a process of its own."""
    Run(plan, said).run()


class Hosted:
    """The worker as those see it who started it."""

    def __init__(self, plan: Plan) -> None:
        self.here, self.there = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=run, args=(plan, self.there), daemon=True)
        self.heard: dict[str, object] = {}

    def said(self, what: str) -> bool:
        """Whether it has said something of this kind. Raises AssertionError where it ended by itself."""
        while self.here.poll():
            kind, value = self.here.recv()
            self.heard[kind] = value
        assert self.process.is_alive() or what in self.heard, f"a worker ended by itself with {self.process.exitcode}"
        return what in self.heard

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def go_on(self) -> None:
        self.here.send("go on")

    def kill(self) -> None:
        """End it as a crash does, even where it is stopped."""
        self.process.kill()
        self.process.join()
        self.here.close()
        self.there.close()
