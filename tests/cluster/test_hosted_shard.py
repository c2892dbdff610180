"""Shards hosted by Quix Streams on a real Kafka come back as they were, wherever they are killed: the ground that scaling out stands on."""

from __future__ import annotations

import pickle
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from broker import Broker
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from hosted_shard import AFTER_COMMIT, AT_LEAST_ONCE, BEFORE_COMMIT, BETWEEN, IN_COMMIT, Given, Hosted, Plan, Told, applied, new_shard
from loopback import wait_until
from reading import COMMITTED, UNCOMMITTED, end_offsets, read_all

from bench.feed import Feed
from midflight.log.record import Record
from midflight.sources import load
from midflight.stream.edge import Edge
from midflight.stream.names import Names

pytestmark = pytest.mark.cluster

buckets = 4
recipients = 12_000
bodies_at_once = 5
start_s_max = 120.0
starts_max = 40
Start = Callable[[Plan], Hosted]


@pytest.fixture(scope="module")
def batches() -> list[tuple[bytes, bytes]]:
    """A campaign as (bucket, record) in the order of the log, and for each bucket a question for its state at the end."""
    edge = Edge({"sendgrid": load("sendgrid", {"unsigned": True})}, [], Names())
    records = [
        Record("webhook", "sendgrid", body.at_us, {"content-type": "application/json"}, body.body, "/in/sendgrid", position)
        for position, body in enumerate(Feed(recipients))
    ]
    out = []
    for number, first in enumerate(range(0, len(records), bodies_at_once)):
        prepared = edge.prepare(records[first : first + bodies_at_once])
        assert not prepared.dead
        owner = (prepared.batch.rcpt >> np.uint64(40)) % np.uint64(buckets)
        for bucket in range(buckets):
            part = prepared.batch.take(np.flatnonzero(owner == bucket))
            out.append((bucket_name(bucket), record(number, tuple(part), prepared.log_time_us)))
    return out + [(bucket_name(bucket), record(len(out) // buckets)) for bucket in range(buckets)]


def bucket_name(number: int) -> bytes:
    return f"bucket {number}".encode()


def record(*given: object) -> bytes:
    return pickle.dumps(tuple(Given(*given)))


@pytest.fixture(scope="module")
def alone(batches: list[tuple[bytes, bytes]]) -> dict[bytes, list[Told]]:
    """What one run in memory, without Kafka, tells of each bucket."""
    shards = {bucket_name(number): new_shard() for number in range(buckets)}
    told: dict[bytes, list[Told]] = {bucket: [] for bucket in shards}
    for bucket, value in batches:
        told[bucket].append(applied(shards[bucket], Given(*pickle.loads(value))))
    return told


def make_topics(broker: Broker, name: str) -> None:
    for topic in ("batches", "told"):
        broker.make_topic(f"{name}-{topic}", buckets)


def fill(broker: Broker, name: str, batches: list[tuple[bytes, bytes]]) -> None:
    """Bring batches into the first of a group's topics."""
    producer = Producer({"bootstrap.servers": broker.address, "acks": "all", "enable.idempotence": True, "log_level": 0})
    for bucket, value in batches:
        producer.produce(f"{name}-batches", value, bucket, partition=int(bucket.split()[1]))
        producer.poll(0)
    assert producer.flush(60) == 0


def told_by(broker: Broker, name: str) -> dict[bytes, list[Told]]:
    """Return what a reader of committed records finds about each bucket, in the order in which it stands there."""
    found: dict[bytes, list[Told]] = {bucket_name(number): [] for number in range(buckets)}
    for record in read_all(broker.address, f"{name}-told"):
        bucket, *told = pickle.loads(record.value)
        found[bucket].append(Told(*told))
    return found


def at_the_end(broker: Broker, name: str, batches: list[tuple[bytes, bytes]]) -> bool:
    """Whether every bucket has answered the question at its end."""
    last = Counter(bucket for bucket, _ in batches)
    return all(told and told[-1].number == last[bucket] - 1 for bucket, told in told_by(broker, name).items())


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts workers; none of them is left at the end."""
    started: list[Hosted] = []

    def one(plan: Plan) -> Hosted:
        started.append(Hosted(plan))
        started[-1].process.start()
        return started[-1]

    yield one
    for worker in started:
        worker.kill()


def die(start: Start, plan: Plan) -> None:
    """Let a worker come to the place where it waits, and kill it there."""
    worker = start(plan)
    began = time.monotonic()
    wait_until(lambda: worker.said("restored"), "the worker folds", start_s_max)
    folds_s = time.monotonic() - began
    wait_until(lambda: worker.said("waits"), f"the worker waits {plan.point}", start_s_max)
    worker.kill()
    print(f"killed {plan.point}: folded first after {folds_s:.1f} s, {worker.heard}")


def finish(start: Start, broker: Broker, plan: Plan, batches: list[tuple[bytes, bytes]]) -> int:
    """Let a worker fold what is left, and return of how many buckets it had to restore the first."""
    worker = start(plan)
    wait_until(lambda: worker.said("restored"), "the worker folds", start_s_max)
    wait_until(lambda: worker.said("runs") and at_the_end(broker, plan.name, batches), "all is folded", start_s_max)
    worker.kill()
    return worker.heard["restored"]


@pytest.mark.parametrize("lost", [False, True], ids=["folder-kept", "folder-lost"])
def test_a_shard_that_is_killed_anywhere_tells_what_one_run_tells(
    broker: Broker, start: Start, tmp_path: Path, batches: list[tuple[bytes, bytes]], alone: dict[bytes, list[Told]], lost: bool
) -> None:
    """Killed between checkpoints, before, in and after a commit, with its own disk or without: effects and state are equal."""
    plan = Plan(broker.address, f"lost-{lost}", tmp_path / "state")
    make_topics(broker, plan.name)
    fill(broker, plan.name, batches)
    for point in (BETWEEN, BEFORE_COMMIT, IN_COMMIT, AFTER_COMMIT):
        die(start, plan._replace(point=point))
        if lost:
            shutil.rmtree(plan.folder)
    assert finish(start, broker, plan, batches) > 0
    assert sum(told.duplicates for told in alone[bucket_name(0)]) > 0
    assert told_by(broker, plan.name) == alone


def test_without_transactions_a_killed_shard_tells_twice(
    broker: Broker, start: Start, tmp_path: Path, batches: list[tuple[bytes, bytes]], alone: dict[bytes, list[Told]]
) -> None:
    """The control: at least once, what was told before the kill is told again after it."""
    plan = Plan(broker.address, "twice", tmp_path / "state", AT_LEAST_ONCE)
    make_topics(broker, plan.name)
    fill(broker, plan.name, batches)
    die(start, plan._replace(point=BETWEEN))
    finish(start, broker, plan, batches)
    told = told_by(broker, plan.name)
    assert {bucket: set(all_told) for bucket, all_told in told.items()} == {bucket: set(once) for bucket, once in alone.items()}
    assert sum(map(len, told.values())) > len(batches)


def test_a_shard_that_comes_back_without_its_journal_is_caught(
    broker: Broker, start: Start, tmp_path: Path, batches: list[tuple[bytes, bytes]], alone: dict[bytes, list[Told]]
) -> None:
    """The control: one that goes on from its last snapshot alone tells something else."""
    plan = Plan(broker.address, "forgets", tmp_path / "state", forgets=True)
    make_topics(broker, plan.name)
    fill(broker, plan.name, batches)
    die(start, plan._replace(point=BETWEEN))
    finish(start, broker, plan, batches)
    assert told_by(broker, plan.name) != alone


def shares(broker: Broker, name: str) -> list[int]:
    """Return how many buckets each worker of a group has."""
    admin = broker.admin()
    members = admin.describe_consumer_groups([name])[name].result(timeout=20).members
    return sorted(sum(one.topic == f"{name}-batches" for one in member.assignment.topic_partitions) for member in members)


def test_workers_that_join_and_die_tell_what_one_run_tells(
    broker: Broker, start: Start, tmp_path: Path, batches: list[tuple[bytes, bytes]], alone: dict[bytes, list[Told]]
) -> None:
    """Two workers share the buckets, one is killed and a third joins, all while batches come: effects and state are those of one run."""
    plan = Plan(broker.address, "group", tmp_path / "one")
    make_topics(broker, plan.name)
    one, two = start(plan._replace(point=BETWEEN)), start(plan._replace(folder=tmp_path / "two"))
    wait_until(lambda: one.said("runs") and two.said("runs") and shares(broker, plan.name) == [2, 2], "each has two buckets", start_s_max)
    half = len(batches) // 2
    fill(broker, plan.name, batches[:half])
    wait_until(lambda: one.said("waits"), "one waits", start_s_max)
    one.kill()
    three = start(plan._replace(folder=tmp_path / "three"))
    fill(broker, plan.name, batches[half:])
    took_s = wait_until(lambda: three.said("restored") and at_the_end(broker, plan.name, batches), "all is folded", start_s_max)
    print(f"a killed worker's buckets: folded by others, and all else, {took_s:.1f} s later; two {two.heard}, three {three.heard}")
    assert told_by(broker, plan.name) == alone


def all_committed(broker: Broker, name: str) -> bool:
    """Whether a group's position is the end of its topic, whatever of what it told can be read yet."""
    asked = Consumer({"bootstrap.servers": broker.address, "group.id": name, "log_level": 0})
    try:
        at = asked.committed([TopicPartition(f"{name}-batches", number) for number in range(buckets)], 20)
    except KafkaException:
        # A broker that just came back does not answer for groups yet.
        return False
    finally:
        asked.close()
    return {one.partition: one.offset for one in at} == end_offsets(broker.address, f"{name}-batches")


@pytest.mark.parametrize("transaction_ms_max", [6_000, 120_000], ids=["after-its-transaction", "within-its-transaction"])
def test_a_worker_that_was_replaced_while_it_hung_cannot_commit(
    broker: Broker,
    start: Start,
    tmp_path: Path,
    batches: list[tuple[bytes, bytes]],
    alone: dict[bytes, list[Told]],
    transaction_ms_max: int,
) -> None:
    """A worker hangs in front of its commit until another has folded everything: its commit is refused, and nothing of it is read."""
    plan = Plan(broker.address, f"hung-{transaction_ms_max}", tmp_path / "one", transaction_ms_max=transaction_ms_max)
    make_topics(broker, plan.name)
    fill(broker, plan.name, batches)
    zombie = start(plan._replace(point=BEFORE_COMMIT))
    wait_until(lambda: zombie.said("waits"), "the first worker is in front of its commit", start_s_max)
    zombie.signal(signal.SIGSTOP)
    other = start(plan._replace(folder=tmp_path / "two"))
    took_s = wait_until(lambda: other.said("restored") and all_committed(broker, plan.name), "the other folded all", start_s_max)
    zombie.go_on()
    zombie.signal(signal.SIGCONT)
    wait_until(lambda: zombie.said("refused"), "the first worker's commit is refused", start_s_max)
    zombie.process.join(20)
    print(f"the other took {took_s:.1f} s; the replaced worker ended with {zombie.process.exitcode}: {zombie.heard['refused']}")
    wait_until(lambda: at_the_end(broker, plan.name, batches), "all can be read")
    assert told_by(broker, plan.name) == alone


def all_ended(broker: Broker, name: str) -> bool:
    """Whether no transaction of a group is open any more."""
    return end_offsets(broker.address, f"{name}-told") == end_offsets(broker.address, f"{name}-told", UNCOMMITTED)


@pytest.mark.parametrize("trusts", [False, True], ids=["careful", "control-trusting"])
def test_a_worker_that_comes_back_beside_an_open_transaction_waits_for_its_end(
    broker: Broker, start: Start, tmp_path: Path, batches: list[tuple[bytes, bytes]], alone: dict[bytes, list[Told]], trusts: bool
) -> None:
    """One worker hangs with its transaction open, another folds on and dies with its disk, a third comes back from the changelog.

    The library reads a changelog up to the first open transaction, and the position behind it: what the second committed between the two
    is missing in the state. Whoever compares the number of the record with that of the state ends, and starts again, until the broker
    has ended the open transaction; the control, who does not, loses it.
    """
    plan = Plan(broker.address, f"beside-{trusts}", tmp_path / "one", transaction_ms_max=45_000, trusts=trusts)
    make_topics(broker, plan.name)
    half = len(batches) // 2
    fill(broker, plan.name, batches[:half])
    zombie = start(plan._replace(point=BEFORE_COMMIT))
    wait_until(lambda: zombie.said("waits"), "the first worker is in front of its commit", start_s_max)
    zombie.signal(signal.SIGSTOP)
    other = start(plan._replace(folder=tmp_path / "two"))
    wait_until(lambda: other.said("restored") and all_committed(broker, plan.name), "the other folded all", start_s_max)
    other.kill()
    assert not all_ended(broker, plan.name)
    fill(broker, plan.name, batches[half:])
    third = plan._replace(folder=tmp_path / "three")
    again = supervised(start, broker, third, start(third))
    wait_until(lambda: all_ended(broker, plan.name), "every transaction ended", start_s_max)
    told = told_by(broker, plan.name)
    print(f"started again {again} times: {[(len(told[bucket]), told[bucket] == alone[bucket]) for bucket in alone]}")
    assert (told != alone) if trusts else (told == alone and again > 0)


def supervised(start: Start, broker: Broker, plan: Plan, worker: Hosted) -> int:
    """Let a worker fold what is left, start it again each time it ends, and return how often that was."""
    for again in range(starts_max):
        wait_until(lambda at=worker: not at.process.is_alive() or all_committed(broker, plan.name), "it folded all or ended", start_s_max)
        if worker.process.is_alive():
            return again
        worker = start(plan)
    raise AssertionError(f"it ended {starts_max} times")


def test_workers_outlive_a_killed_broker(
    broker: Broker, start: Start, tmp_path: Path, batches: list[tuple[bytes, bytes]], alone: dict[bytes, list[Told]]
) -> None:
    """The broker is killed between checkpoints and comes back: the worker, started again if it ended, tells what one run tells."""
    plan = Plan(broker.address, "outage", tmp_path / "state")
    make_topics(broker, plan.name)
    fill(broker, plan.name, batches)
    worker = start(plan._replace(point=BETWEEN))
    wait_until(lambda: worker.said("waits"), "the worker is between checkpoints", start_s_max)
    broker.kill()
    worker.go_on()
    broker.start()
    again = supervised(start, broker, plan, worker)
    print(f"after the broker's death the worker was started again {again} times")
    wait_until(lambda: all_ended(broker, plan.name), f"every transaction ended, {ends(broker, plan.name)}", start_s_max)
    wait_until(lambda: at_the_end(broker, plan.name, batches), f"all can be read, {ends(broker, plan.name)}")
    assert told_by(broker, plan.name) == alone


def ends(broker: Broker, name: str) -> str:
    """Say where the topics of a group end for the two kinds of readers, for a failure's message."""
    found = {
        topic: [end_offsets(broker.address, f"{name}-{topic}", kind) for kind in (COMMITTED, UNCOMMITTED)] for topic in ("batches", "told")
    }
    return f"committed and uncommitted ends: {found}"
