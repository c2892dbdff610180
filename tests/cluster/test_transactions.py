"""What a real broker shows of transactions that nobody ends: to whom, up to which offset, and who may still commit."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest
from broker import Broker
from confluent_kafka import KafkaException, Producer
from reading import COMMITTED, UNCOMMITTED, Read, end_offsets, read_all

pytestmark = pytest.mark.cluster

call_s_max = 60.0


def transactional(address: str, identity: str) -> Producer:
    """Return a producer that took over what another of the same identity left behind."""
    producer = Producer({"bootstrap.servers": address, "transactional.id": identity, "transaction.timeout.ms": 300_000, "log_level": 0})
    producer.init_transactions(call_s_max)
    return producer


def send(producer: Producer, topic: str, values: range) -> None:
    """Begin a transaction and bring its records to the broker, without an end."""
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, str(value).encode())
    assert producer.flush(call_s_max) == 0


def send_and_wait(address: str, topic: str, said: Connection) -> None:
    """Run as a process of its own: commit ten records, send a hundred more, say so, and never commit."""
    producer = transactional(address, f"{topic}-writer")
    send(producer, topic, range(10))
    producer.commit_transaction(call_s_max)
    send(producer, topic, range(10, 110))
    said.send("sent")
    said.recv()


def values(records: list[Read]) -> list[int]:
    return [int(record.value) for record in records]


@pytest.fixture
def left_open(broker: Broker) -> Iterator[str]:
    """A topic with ten committed records and a hundred of a transaction whose producer was killed before it committed."""
    topic = broker.make_topic("left-open")
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=send_and_wait, args=(broker.address, topic, there))
    process.start()
    assert here.poll(call_s_max), "the producer said nothing"
    process.kill()
    process.join()
    yield topic
    here.close()
    there.close()


def test_nobody_reads_what_a_killed_producer_did_not_commit(broker: Broker, left_open: str) -> None:
    """A reader of committed records sees ten and ends there, now, when the broker was killed too, and when the transaction is aborted.

    The control is the reader of uncommitted records, who sees all 110. Every end of a transaction takes one offset.
    """
    for _ in ("as it is", "after the broker was killed"):
        assert values(read_all(broker.address, left_open)) == list(range(10))
        assert values(read_all(broker.address, left_open, UNCOMMITTED)) == list(range(110))
        assert end_offsets(broker.address, left_open, COMMITTED) == {0: 11}
        assert end_offsets(broker.address, left_open, UNCOMMITTED) == {0: 111}
        broker.kill()
        broker.start()
    again = transactional(broker.address, f"{left_open}-writer")
    assert end_offsets(broker.address, left_open, COMMITTED) == {0: 112}
    assert values(read_all(broker.address, left_open)) == list(range(10))
    send(again, left_open, range(200, 205))
    again.commit_transaction(call_s_max)
    assert values(read_all(broker.address, left_open)) == [*range(10), *range(200, 205)]
    assert values(read_all(broker.address, left_open, UNCOMMITTED)) == [*range(110), *range(200, 205)]
    assert end_offsets(broker.address, left_open) == end_offsets(broker.address, left_open, UNCOMMITTED) == {0: 118}


def test_a_producer_that_was_replaced_cannot_commit(broker: Broker) -> None:
    """The older of two producers of one identity is refused when it commits, and what it sent is read by nobody."""
    topic = broker.make_topic("replaced")
    old = transactional(broker.address, "replaced")
    send(old, topic, range(5))
    new = transactional(broker.address, "replaced")
    send(new, topic, range(5, 8))
    with pytest.raises(KafkaException) as refused:
        old.commit_transaction(call_s_max)
    assert refused.value.args[0].fatal(), refused.value
    new.commit_transaction(call_s_max)
    assert values(read_all(broker.address, topic)) == [5, 6, 7]


def test_a_producer_that_was_not_replaced_can_commit(broker: Broker) -> None:
    """The control: two producers of two identities both commit."""
    topic = broker.make_topic("beside")
    one, other = transactional(broker.address, "one"), transactional(broker.address, "other")
    send(one, topic, range(5))
    send(other, topic, range(5, 8))
    one.commit_transaction(call_s_max)
    other.commit_transaction(call_s_max)
    assert sorted(values(read_all(broker.address, topic))) == list(range(8))
