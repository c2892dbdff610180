"""Live streams: each browser of a site hears its visitor's messages, and what becomes of them, as server-sent events."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice
from time import monotonic

from ...act.ways import _site_queue
from ...kit.errors import MidflightError
from .answers import Answer, bad_request
from .http import Connection, Exchange
from .site_view import SiteView, Waiting
from .site_visitors import BAD_ID, BAD_ORIGIN, Visitors, fields_of

streams_share_max = 0.5  # of the door's connections, so that senders of webhooks find room beside them
streams_per_visitor_max = 20  # tabs of all of a recipient's browsers
stream_s = (1200.0, 1800.0)  # then a browser connects anew: by then its page may have another id, and nothing is kept of who left silently
keep_alive_s = 20.0
retry_s = (2, 10)  # after a stream broke, by luck, so that not all come back at once
full_retry_s = (30, 90)
unread_bytes_max = 64 * 1024  # of frames that a browser has not read; beyond it is dropped
asked_max = 250  # visitors whose messages are read again in one look, which is a quarter of a second

# A proxy that collects answers would keep messages back.
STREAM_HEADERS = b"content-type: text/event-stream\r\ncache-control: no-store\r\nx-accel-buffering: no\r\n"


class Reader:
    """One browser that listens."""

    __slots__ = ("connection", "messages", "recipient", "stream", "until_s", "written_s")

    def __init__(self, connection: Connection, recipient: str, now_s: float) -> None:
        self.connection, self.recipient = connection, recipient
        self.stream = _site_queue.Stream()
        self.messages: list[Waiting] = []
        self.until_s = now_s + random.uniform(*stream_s)
        self.written_s = now_s


class Streams:
    """`GET /v1/site`. ``ended_here`` tells of a message that was closed a moment ago, which the conductor has not read of yet."""

    def __init__(self, door, visitors: Visitors, view: SiteView, ended_here: Callable[[str], bool]) -> None:
        self.door, self.visitors, self.view, self.ended_here = door, visitors, view, ended_here
        self.readers: dict[Connection, Reader] = {}
        self.of: dict[str, dict[Connection, Reader]] = {}  # the same by recipient
        self.waiting: OrderedDict[Connection, None] = OrderedDict()  # readers whose messages have to be read, the longest first
        self.streams_max = max(1, int(door.config.door.connections_max * streams_share_max))
        self.looked_s = 0.0

    def get(self, exchange: Exchange) -> Answer | None:
        """Make a request's connection a live stream of server-sent events; return the answer where it becomes none."""
        allowed = self.visitors.allowed(exchange)
        if allowed is None:
            return BAD_ORIGIN
        recipient = self.visitors.recipient(fields_of(exchange.target.partition(b"?")[2]).get("id", ""))
        if not recipient:
            return BAD_ID._replace(headers=BAD_ID.headers + allowed)
        if self.door.stopping or not self._has_room(recipient):
            # A browser gives up for good on an answer that is no stream. This one is: it ends at once, and says when to come again.
            self.door.counters.add("door_streams_full_total")
            return Answer(200, b"retry: %d\n\n" % (1000 * random.randint(*full_retry_s)), STREAM_HEADERS + allowed, close=True)
        head = b"HTTP/1.1 200 OK\r\n" + self.door.date + STREAM_HEADERS + allowed + b"connection: close\r\n\r\n"
        connection = exchange.connection
        if not connection.becomes_stream(exchange, head + b"retry: %d\n\n" % (1000 * random.randint(*retry_s))):
            return bad_request("A stream is asked for on a connection of its own", close=True)
        self.door.under_way -= 1
        self.door.counters.add("door_requests_total", "200")
        reader = self.readers[connection] = Reader(connection, recipient, monotonic())
        self.of.setdefault(recipient, {})[connection] = reader
        self._read(reader)
        return None

    def look(self, now_s: float) -> None:
        """Tell browsers what changed, or what time changed: called a few times a second."""
        if not self.readers:
            return
        self._forget_gone()
        self._read_again()
        if now_s - self.looked_s < 1:
            return
        self.looked_s = now_s
        for reader in list(self.readers.values()):
            if now_s > reader.until_s:
                self._end(reader)
            elif reader.messages:
                self._tell(reader)
            if now_s - reader.written_s > keep_alive_s:
                self._write(reader, _site_queue.KEEP_ALIVE)

    def _has_room(self, recipient: str) -> bool:
        for _ in range(2):
            if len(self.readers) < self.streams_max and len(self.of.get(recipient, ())) < streams_per_visitor_max:
                return True
            self._forget_gone()
        return False

    def _read_again(self) -> None:
        """Read anew what may have changed, some visitors' at a time. Nobody's is while the file cannot be read."""
        try:
            if self.view.changed():
                self._dirty(self.readers.values())
        except MidflightError:
            return
        for connection in list(islice(self.waiting, asked_max)):
            if not self._read(self.readers[connection]):
                return

    def close(self) -> None:
        """End all streams; browsers come again."""
        for reader in list(self.readers.values()):
            self._end(reader)

    def tell(self, recipient: str) -> None:
        """Tell a recipient's browsers what one of them has just reported."""
        for reader in self.of.get(recipient, {}).values():
            self._tell(reader)

    def _dirty(self, readers: Iterable[Reader]) -> None:
        for reader in readers:
            self.waiting[reader.connection] = None

    def _read(self, reader: Reader) -> bool:
        """Read a visitor's messages, and tell what is new of them. While they cannot be read, which is False, the reader waits."""
        try:
            reader.messages = self.view.open_messages(reader.recipient, self.door.clock.now_us())
        except MidflightError:
            self._dirty([reader])
            return False
        self.waiting.pop(reader.connection, None)
        self._tell(reader)
        return True

    def _tell(self, reader: Reader) -> None:
        # What was closed a moment ago is on its way through the log to the conductor.
        still = [message for message in reader.messages if not self.ended_here(message.id)]
        if frames := reader.stream.told(still, self.door.clock.now_us()):
            self._write(reader, frames)

    def _write(self, reader: Reader, frames: bytes) -> None:
        transport = reader.connection.transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > unread_bytes_max:
            self.door.counters.add("door_streams_dropped_total")
            transport.abort()
            return
        transport.write(frames)
        reader.written_s = monotonic()

    def _end(self, reader: Reader) -> None:
        if reader.connection.transport is not None:
            reader.connection.transport.close()
        self._forget(reader.connection)

    def _forget(self, connection: Connection) -> None:
        reader = self.readers.pop(connection)
        self.waiting.pop(connection, None)
        others = self.of[reader.recipient]
        del others[connection]
        if not others:
            del self.of[reader.recipient]

    def _forget_gone(self) -> None:
        for connection in [connection for connection in self.readers if connection.transport is None]:
            self._forget(connection)
