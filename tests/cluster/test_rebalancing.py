"""Two workers of one group on a real broker: each has its share, one is killed at the worst moment, and the other takes over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from broker import Broker
from confluent_kafka import Producer
from copying import AFTER, BEFORE, TOGETHER, Worker
from loopback import wait_until
from reading import read_all

pytestmark = pytest.mark.cluster

partitions = 4
# As many in each partition.
records = 2_000


def fill(broker: Broker, topic: str, values: range) -> None:
    producer = Producer({"bootstrap.servers": broker.address, "acks": "all", "enable.idempotence": True})
    for value in values:
        producer.produce(topic, str(value).encode(), partition=value % partitions)
        producer.poll(0)
    assert producer.flush(60) == 0


def copies(broker: Broker, sink: str) -> Counter[int]:
    return Counter(int(record.value) for record in read_all(broker.address, sink))


def copied_with_one_killed(broker: Broker, order: str) -> Counter[int]:
    """Let two workers copy a topic, kill one between its copies and its position, and return how often each record was copied."""
    source, sink = broker.make_topic(f"in-{order}", partitions), broker.make_topic(f"out-{order}", partitions)
    with ExitStack() as both:
        one = both.enter_context(Worker(broker.address, source, sink, f"{order}-one", order, waits_after=records // 10))
        other = both.enter_context(Worker(broker.address, source, sink, f"{order}-other", order))
        wait_until(lambda: len(one.listen().has) == len(other.listen().has) == partitions // 2, "each has half of the partitions")
        fill(broker, source, range(records))
        wait_until(lambda: one.listen().waits, "the first waits between its copies and its position")
        wait_until(lambda: other.listen().copied >= records // 2, "the second copied all of its own half")
        one.kill()
        wait_until(lambda: other.listen().has == list(range(partitions)), "the second has all partitions")
        fill(broker, source, range(records, records + partitions))
        # What is written last is copied last, partition by partition.
        wait_until(lambda: set(range(records, records + partitions)) <= set(copies(broker, sink)), "all is copied")
        return copies(broker, sink)


def each_once(there: Counter[int]) -> bool:
    return there == Counter(range(records + partitions))


def some_twice(there: Counter[int]) -> bool:
    return set(there) == set(range(records + partitions)) and max(there.values()) == 2


def some_missing(there: Counter[int]) -> bool:
    return set(there) < set(range(records + partitions)) and max(there.values()) == 1


@pytest.mark.parametrize(
    ("order", "right"),
    [
        pytest.param(TOGETHER, each_once, id="position-and-copies-in-one-transaction"),
        pytest.param(AFTER, some_twice, id="control-position-after-copies"),
        pytest.param(BEFORE, some_missing, id="control-position-before-copies"),
    ],
)
def test_a_killed_workers_share_goes_on_with_the_other(broker: Broker, order: str, right: Callable[[Counter[int]], bool]) -> None:
    """Every record is copied once, whoever dies, if copies and position are one transaction; else some are copied twice, or never."""
    there = copied_with_one_killed(broker, order)
    assert right(there), f"{len(there)} records, copied so often: {Counter(there.values())}"
