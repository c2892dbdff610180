"""What a topic holds, read from its beginning to its end by a reader of its own."""

from __future__ import annotations

import time
from typing import NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

read_s_max = 60.0
answer_s_max = 20.0

COMMITTED, UNCOMMITTED = "read_committed", "read_uncommitted"


class Read(NamedTuple):
    """One record of a topic."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


def reader(address: str, isolation: str = COMMITTED) -> Consumer:
    """Return a consumer that belongs to no group's work."""
    return Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "reader",
            "isolation.level": isolation,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            # It is used while the broker is killed, which is no news.
            "log_level": 0,
        }
    )


def partitions_of(consumer: Consumer, topic: str) -> list[int]:
    return sorted(consumer.list_topics(topic, timeout=answer_s_max).topics[topic].partitions)


def end_offsets(address: str, topic: str, isolation: str = COMMITTED) -> dict[int, int]:
    """Return where each partition ends for a reader: for a committed one, in front of the first transaction that is still open."""
    consumer = reader(address, isolation)
    try:
        ends = {one: consumer.get_watermark_offsets(TopicPartition(topic, one), answer_s_max) for one in partitions_of(consumer, topic)}
        return {partition: high for partition, (_, high) in ends.items()}
    finally:
        consumer.close()


def read_all(address: str, topic: str, isolation: str = COMMITTED) -> list[Read]:
    """Return every record that a topic has now. Raises AssertionError where its end is not reached in time."""
    consumer = reader(address, isolation)
    try:
        waiting = set(partitions_of(consumer, topic))
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in waiting])
        records = []
        until = time.monotonic() + read_s_max
        while waiting:
            assert time.monotonic() < until, f"after {read_s_max:.0f} s the end of {topic} {sorted(waiting)} was not reached"
            for message in consumer.consume(1000, 0.5):
                error = message.error()
                if error is None:
                    records.append(Read(message.partition(), message.offset(), message.key(), message.value()))
                else:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    waiting.discard(message.partition())
        return records
    finally:
        consumer.close()
