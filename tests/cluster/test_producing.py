"""What a real broker makes of records that a producer sends while it is killed or hangs: the ground that acknowledged webhooks stand on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import pytest
from broker import Broker
from confluent_kafka import KafkaError, Message, Producer
from loopback import wait_until
from reading import read_all

pytestmark = pytest.mark.cluster

records = 20_000
flush_s_max = 90.0
# What the door sends with.
DURABLE = {"acks": "all", "enable.idempotence": True}


class Sending:
    """A producer of numbered records that knows which of them the broker acknowledged."""

    def __init__(self, broker: Broker, topic: str, settings: dict[str, object]) -> None:
        patience = {"message.timeout.ms": 120_000, "socket.timeout.ms": 1_500, "retry.backoff.ms": 50, "reconnect.backoff.max.ms": 500}
        self.producer = Producer({"bootstrap.servers": broker.address, "linger.ms": 2, "log_level": 0} | patience | settings)
        self.topic = topic
        self.acknowledged: set[int] = set()
        self.refused: list[KafkaError] = []

    def answered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.acknowledged.add(int(message.value()))
        else:
            self.refused.append(error)

    def send(self, first: int, after: int) -> None:
        for number in range(first, after):
            self.producer.produce(self.topic, str(number).encode(), on_delivery=self.answered)
            self.producer.poll(0)

    def flush(self) -> None:
        assert self.producer.flush(flush_s_max) == 0, f"{len(self.producer)} records are still without an answer"


def times_there(broker: Broker, topic: str) -> Counter[int]:
    """Return how often each number is in the topic."""
    return Counter(int(record.value) for record in read_all(broker.address, topic))


def test_every_acknowledged_record_is_there_once_when_the_broker_is_killed(broker: Broker) -> None:
    """The broker is killed while it writes and started again: all records are acknowledged in the end, and each is there once."""
    sending = Sending(broker, broker.make_topic("killed", 3), DURABLE)
    sending.send(0, records // 4)
    wait_until(lambda: sending.producer.poll(0.01) and sending.acknowledged, "the first records are acknowledged")
    sending.send(records // 4, records // 2)
    broker.kill()
    before = len(sending.acknowledged)
    sending.send(records // 2, records)
    assert 0 < before < records
    broker.start()
    sending.flush()
    assert not sending.refused and sending.acknowledged == set(range(records))
    assert times_there(broker, "killed") == Counter(range(records))


def test_records_acknowledged_by_nobody_are_lost_when_the_broker_is_killed(broker: Broker) -> None:
    """The control: with `acks=0` a record counts as acknowledged when it is sent, and a broker that dies before it reads it loses it."""
    sending = Sending(broker, broker.make_topic("unheard"), {"acks": 0})
    sending.send(0, 100)
    sending.flush()
    wait_until(lambda: len(times_there(broker, "unheard")) == 100, "what was sent first is there")
    broker.pause()
    sending.send(100, 200)
    sending.flush()
    broker.kill()
    broker.start()
    assert sending.acknowledged == set(range(200))
    assert set(times_there(broker, "unheard")) == set(range(100))


def hang(broker: Broker, sending: Sending) -> None:
    """Let the broker hang for longer than the producer waits while records are on their way to it."""
    sending.send(0, 100)
    sending.flush()
    broker.pause()
    for first in range(100, 200, 10):
        sending.send(first, first + 10)
        time.sleep(0.05)
    # The producer gives up its first connection and sends all of it again over a second one.
    time.sleep(4)
    broker.resume()
    sending.flush()


def all_once(there: Counter[int]) -> bool:
    return there == Counter(range(200))


def some_twice(there: Counter[int]) -> bool:
    return set(there) == set(range(200)) and max(there.values()) > 1


@pytest.mark.parametrize(
    ("settings", "right"),
    [pytest.param(DURABLE, all_once, id="idempotent"), pytest.param({"acks": "all"}, some_twice, id="control-not-idempotent")],
)
def test_a_record_that_is_sent_again_is_there_once(broker: Broker, settings: dict[str, object], right: Callable[[Counter], bool]) -> None:
    """A broker that hangs reads what was sent before and again after: once with idempotence, and more than once without it."""
    topic = broker.make_topic(f"hung-{right.__name__}")
    sending = Sending(broker, topic, settings)
    hang(broker, sending)
    assert not sending.refused and sending.acknowledged == set(range(200))
    there = times_there(broker, topic)
    assert right(there), [one for one in there.items() if one[1] != 1]
