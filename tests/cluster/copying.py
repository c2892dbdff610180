"""A worker of a group that copies records from one topic to another, and can be made to wait at the worst moment, where it is killed."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Self

from confluent_kafka import Consumer, Message, Producer

call_s_max = 60.0
batch_max = 50

# When the position in the source is committed: with the copies in one transaction, or, as controls, after them or before them.
TOGETHER, AFTER, BEFORE = "together", "after", "before"


class Copying:
    """The worker inside its process. It says which partitions it has and how many records it copied; `waits` is when it waits for ever."""

    def __init__(self, address: str, source: str, sink: str, name: str, order: str, said: Connection, waits_after: int | None) -> None:
        self.sink, self.order, self.said, self.waits_after = sink, order, said, waits_after
        self.copied = 0
        own = {"transactional.id": name, "transaction.timeout.ms": 6_000} if order == TOGETHER else {"acks": "all"}
        self.producer = Producer({"bootstrap.servers": address, "linger.ms": 0, "log_level": 0} | own)
        if order == TOGETHER:
            self.producer.init_transactions(call_s_max)
        self.consumer = Consumer(
            {
                "bootstrap.servers": address,
                "group.id": source,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "session.timeout.ms": 3_000,
                "heartbeat.interval.ms": 500,
                "partition.assignment.strategy": "range",
                "log_level": 0,
            }
        )
        self.consumer.subscribe([source], on_assign=self.assigned)

    def assigned(self, _: Consumer, partitions: list) -> None:
        self.said.send(("has", sorted(one.partition for one in partitions)))

    def wait_if_asked(self) -> None:
        """Wait for the end of this process once enough was copied."""
        if self.waits_after is not None and self.copied >= self.waits_after:
            self.said.send(("waits", self.copied))
            self.said.recv()

    def write(self, messages: list[Message]) -> None:
        for message in messages:
            self.producer.produce(self.sink, message.value())
        assert self.producer.flush(call_s_max) == 0
        self.copied += len(messages)

    def positions(self) -> list:
        return self.consumer.position(self.consumer.assignment())

    def copy(self, messages: list[Message]) -> None:
        """Write the copies and commit the position, in the order asked for. The wait is between the two."""
        if self.order == TOGETHER:
            self.producer.begin_transaction()
            self.write(messages)
            self.producer.send_offsets_to_transaction(self.positions(), self.consumer.consumer_group_metadata(), call_s_max)
            self.wait_if_asked()
            self.producer.commit_transaction(call_s_max)
        elif self.order == AFTER:
            self.write(messages)
            self.wait_if_asked()
            self.consumer.commit(offsets=self.positions(), asynchronous=False)
        else:
            self.consumer.commit(offsets=self.positions(), asynchronous=False)
            self.copied += len(messages)
            self.wait_if_asked()
            self.copied -= len(messages)
            self.write(messages)

    def run(self) -> None:
        while True:
            messages = [message for message in self.consumer.consume(batch_max, 0.2) if message.error() is None]
            if messages:
                self.copy(messages)
                self.said.send(("copied", self.copied))


def run(*arguments: object) -> None:
    """Run as a process of its own."""
    Copying(*arguments).run()


class Worker:
    """The worker as those see it who started it."""

    def __init__(self, address: str, source: str, sink: str, name: str, order: str, waits_after: int | None = None) -> None:
        self.here, self.there = multiprocessing.Pipe()
        arguments = (address, source, sink, name, order, self.there, waits_after)
        self.process = multiprocessing.get_context("spawn").Process(target=run, args=arguments, daemon=True)
        self.has: list[int] = []
        self.copied = 0
        self.waits = False

    def listen(self) -> Self:
        """Take in what it said."""
        while self.here.poll():
            what, value = self.here.recv()
            if what == "has":
                self.has = value
            else:
                self.copied = value
                self.waits = what == "waits"
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def __enter__(self) -> Self:
        self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.here.close()
        self.there.close()
