"""HTTP/1.1 for senders that may be slow, careless or hostile: one connection, its requests in order, each limit with its answer.

llhttp does the parsing and refuses what two readers could read in two ways (folded headers, two lengths, a length beside chunks,
bad chunk ends). This file holds the limits around it: of headers, bodies, time, unanswered requests, and unread answers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic

import httptools

from ...kit.crash import crash_point
from .answers import CONTINUE, TIMEOUT, Answer, bad_request, later, too_large, wire

headers_max = 100
header_bytes_max = 32 * 1024
pipeline_pause = 16  # unanswered requests of one connection after which it is not read from
pipeline_max = 512  # a single read can bring more than that; beyond this the connection is refused
discard_bytes_max = 64 * 1024  # a refused body up to this size is read and dropped, so that the connection can stay
body_bytes_per_s_min = 64 * 1024  # a body that comes faster than this may take longer than `slow_client_s`
idle_s_max = 75.0
linger_s_max = 2.0
write_buffer_bytes_max = 64 * 1024

TOO_MUCH_HEADER = bad_request("The header is too long", reason="header_limit")
IDLE, HEAD, BODY, DONE, LINGER = range(5)


class Stop(Exception):
    """Ends parsing: the connection has its last answer."""


class Exchange:
    """One request on its way through the door, and its answer."""

    __slots__ = ("answer", "at_s", "at_us", "body", "connection", "headers", "held", "keep_alive", "method", "route", "target")

    def __init__(self, connection: Connection | None, method: bytes = b"", target: bytes = b"") -> None:
        self.connection = connection
        self.method = method
        self.target = target
        self.headers: dict[str, str] = {}
        self.body: bytes | bytearray = b""
        self.route = None
        self.held = 0  # bytes counted as waiting
        self.keep_alive = True
        self.answer: Answer | None = None
        self.at_s = 0.0
        self.at_us = 0

    @property
    def peer(self) -> str:
        return self.connection.peer if self.connection else ""


# Header names as they come, and as we keep them; a bounded memory of what senders use.
_NAMES: dict[bytes, str] = {}
names_max = 1024


def header_name(raw: bytes) -> str:
    name = _NAMES.get(raw)
    if name is None:
        name = raw.decode("latin-1").lower()
        if len(_NAMES) < names_max:
            _NAMES[raw] = name
    return name


class Connection(asyncio.BufferedProtocol):
    """One client. ``door`` routes requests and answers them; nothing here knows what they are about."""

    __slots__ = (
        "body_bytes", "current", "door", "eof", "header_bytes", "header_list", "input_bytes", "parser", "paused", "peer", "queue",
        "since_s", "stage", "target", "transport", "unparsed", "wants_continue", "write_paused_s",
    )  # fmt: skip

    def __init__(self, door, peer: str) -> None:
        self.door = door
        self.peer = peer
        self.transport = None
        self.parser = httptools.HttpRequestParser(self)
        self.queue: deque[Exchange] = deque()
        self.current: Exchange | None = None
        self.stage = IDLE
        self.since_s = monotonic()
        self.paused = self.eof = self.wants_continue = False
        self.write_paused_s = 0.0
        self.header_list: list[tuple[bytes, bytes]] = []
        self.header_bytes = self.body_bytes = self.input_bytes = self.unparsed = 0
        self.target = b""

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def connection_made(self, transport) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=write_buffer_bytes_max)
        self.door.connections[self] = None
        if self.door.stopping:
            transport.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        # One buffer serves all: each read is handled before the next one begins.
        return self.door.buffer

    def buffer_updated(self, length: int) -> None:
        if self.stage >= DONE:
            return
        if self.unparsed:
            self.take_unparsed(self.door.buffer[:length])
            return
        try:
            self.parser.feed_data(self.door.buffer[:length])
        except httptools.HttpParserUpgrade as upgrade:
            # No other protocol is spoken here: the request gets its answer, and then the connection ends.
            if self.unparsed:
                self.take_unparsed(self.door.buffer[upgrade.args[0] : length])
            else:
                self.end_after_queue()
        except httptools.HttpParserError as error:
            if self.stage < DONE:
                self.refuse(bad_request(f"This is no HTTP/1.1 request: {error}"))
            return
        if self.stage == HEAD:
            self.input_bytes += length
            if self.input_bytes > header_bytes_max + len(self.door.buffer):
                self.refuse(TOO_MUCH_HEADER)

    def take_unparsed(self, data: memoryview) -> None:
        """Take body bytes of a request that asks for another protocol: there the parser ends with the header."""
        data = data[: self.unparsed]
        self.unparsed -= len(data)
        try:
            self.on_body(bytes(data))
            if not self.unparsed:
                self.on_message_complete()
        except Stop:
            return  # refused: the last answer is on its way

    def eof_received(self) -> bool:
        """The client sends no more. Its complete requests are answered, an incomplete one is forgotten."""
        self.eof = True
        self.forget_current()
        if self.stage < DONE:
            self.stage = DONE
        return bool(self.queue)

    def connection_lost(self, _error: Exception | None) -> None:
        self.transport = None
        self.stage = DONE
        self.forget_current()
        self.door.disconnected(self)

    def forget_current(self) -> None:
        exchange, self.current = self.current, None
        if exchange is not None:
            self.door.release(exchange)

    def pause_writing(self) -> None:
        self.write_paused_s = monotonic()
        self.pause()

    def resume_writing(self) -> None:
        self.write_paused_s = 0.0
        self.resume()

    def pause(self) -> None:
        if not self.paused and self.transport is not None:
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.paused and self.transport is not None and not self.write_paused_s and len(self.queue) < pipeline_pause:
            self.paused = False
            self.transport.resume_reading()

    # -- what llhttp finds ---------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.stage >= DONE:
            raise Stop
        self.stage = HEAD
        self.since_s = monotonic()
        self.header_list = []
        self.header_bytes = self.body_bytes = self.input_bytes = 0
        self.target = b""

    def on_url(self, url: bytes) -> None:
        self.target += url
        self.header_bytes += len(url)
        if self.header_bytes > header_bytes_max:
            self.refuse_now(TOO_MUCH_HEADER)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Also called for trailers, which count too and are then ignored.
        found = self.header_list
        found.append((name, value))
        self.header_bytes += len(name) + len(value) + 4
        if self.header_bytes > header_bytes_max or len(found) > headers_max:
            self.refuse_now(TOO_MUCH_HEADER)

    def on_headers_complete(self) -> None:
        self.stage = BODY
        exchange = self.current = Exchange(self, self.parser.get_method(), self.target)
        headers = exchange.headers
        names = _NAMES
        for raw, value in self.header_list:
            name = names.get(raw) or header_name(raw)
            said = value.decode("latin-1")
            if said[-1:] in " \t":
                said = said.rstrip(" \t")
            headers[name] = f"{headers[name]}, {said}" if name in headers else said
        coding = headers.get("transfer-encoding")
        if coding is not None and coding.lower() != "chunked":
            self.refuse_now(bad_request("The transfer encoding is not supported"))
        # HTTP/1.1 asks for exactly one host; two would be joined by a comma.
        host = headers.get("host")
        if (host is None and self.parser.get_http_version() == "1.1") or (host is not None and "," in host):
            self.refuse_now(bad_request("The request names no single host"))
        exchange.answer = self.door.before_body(exchange)
        length = int(headers.get("content-length") or 0)
        self.unparsed = length if self.parser.should_upgrade() else 0
        if exchange.answer is not None:
            if coding is not None or length > discard_bytes_max or (length and "expect" in headers) or exchange.answer.close:
                self.refuse_now(exchange.answer)
        elif length > exchange.route.body_bytes_max:
            self.refuse_now(self.body_too_large(exchange))
        elif headers.get("expect", "").lower() == "100-continue" and (length or coding):
            self.wants_continue = True
            self.flush()

    def on_body(self, data: bytes) -> None:
        exchange = self.current
        if exchange.answer is not None:
            return
        self.body_bytes += len(data)
        if self.body_bytes > exchange.route.body_bytes_max:
            self.refuse_now(self.body_too_large(exchange))
        if not self.door.hold(exchange, len(data)):
            self.no_room(exchange)
            return
        if not exchange.body:
            exchange.body = data
        elif isinstance(exchange.body, bytes):
            exchange.body = bytearray(exchange.body)
            exchange.body += data
        else:
            exchange.body += data

    def on_message_complete(self) -> None:
        if self.unparsed:
            return
        exchange, self.current = self.current, None
        self.wants_continue = False
        exchange.keep_alive = self.parser.should_keep_alive() and not self.parser.should_upgrade()
        exchange.at_s = monotonic()
        if len(self.queue) >= pipeline_max:
            self.current = exchange
            self.refuse_now(later("pipelining", "Too many requests of one connection wait for their answers", close=True))
        self.queue.append(exchange)
        self.stage = IDLE if exchange.keep_alive else DONE
        self.since_s = exchange.at_s
        if len(self.queue) >= pipeline_pause:
            self.pause()
        if exchange.answer is not None:
            self.door.refused(exchange)
            return
        if isinstance(exchange.body, bytearray):
            exchange.body = bytes(exchange.body)
        crash_point("body_read")
        self.door.arrived(exchange)

    def no_room(self, exchange: Exchange) -> None:
        """Refuse a body for which there is no room now; the connection stays if little of it is still to come."""
        self.door.release(exchange)
        exchange.body = b""
        exchange.answer = later("overload", "Too much is waiting to be stored")
        if int(exchange.headers.get("content-length") or discard_bytes_max + 1) > discard_bytes_max:
            self.refuse_now(exchange.answer)

    def body_too_large(self, exchange: Exchange) -> Answer:
        return too_large("The body is too large", f"at most {exchange.route.body_bytes_max} bytes")

    # -- answers -------------------------------------------------------------------------------------------------------

    def refuse_now(self, answer: Answer) -> None:
        """Refuse the request being received and stop reading. Raises Stop, which ends the parser's callbacks."""
        self.refuse(answer)
        raise Stop

    def refuse(self, answer: Answer) -> None:
        """Let the connection end with this answer, after those of the requests before."""
        exchange = self.current or Exchange(self)
        self.current = None
        self.door.release(exchange)
        exchange.body = b""
        exchange.keep_alive = False
        exchange.answer = answer
        self.queue.append(exchange)
        self.stage = DONE
        self.flush()

    def end_after_queue(self) -> None:
        """Close when the requests that have arrived are answered."""
        if self.stage < DONE:
            self.stage = DONE
        if self.queue:
            self.queue[-1].keep_alive = False
        elif self.transport is not None:
            self.transport.close()

    def answer(self, exchange: Exchange, answer: Answer) -> None:
        """Answer a request; it goes out when all before it have."""
        exchange.answer = answer
        if self.queue and self.queue[0] is exchange:
            self.flush()

    def becomes_stream(self, exchange: Exchange, head: bytes) -> bool:
        """Let the answer to a request be all that this connection writes from now on, beginning with ``head``; nothing more is read. False
        where answers before it are still owed."""
        if self.transport is None or self.queue[0] is not exchange:
            return False
        self.queue.popleft()
        self.stage = DONE
        self.transport.write(head)
        return True

    def flush(self) -> None:
        queue, door, out, close = self.queue, self.door, [], None
        while queue and queue[0].answer is not None:
            exchange = queue.popleft()
            answer = exchange.answer
            door.count(exchange, answer)
            if answer is door.ok and exchange.keep_alive and not door.stopping:
                out.append(door.ok_wire)
                continue
            ends = answer.close or not exchange.keep_alive or (door.stopping and not queue and self.stage in (IDLE, DONE))
            out.append(wire(answer, door.date, close=ends, head=exchange.method == b"HEAD"))
            if ends:
                close = exchange
                queue.clear()
        if self.wants_continue and not queue and close is None:
            self.wants_continue = False
            out.append(CONTINUE)
        if self.transport is None:
            return
        if out:
            self.since_s = monotonic() if self.stage == IDLE else self.since_s
            self.transport.write(out[0] if len(out) == 1 else b"".join(out))
        if close is not None:
            self.finish(lingering=self.stage == DONE and not self.eof)
        elif self.eof and not queue:
            self.transport.close()
        elif self.paused:
            self.resume()

    def finish(self, *, lingering: bool) -> None:
        """Close; what the client is still sending is read and dropped for a while, so that it gets to see its answer."""
        self.stage = LINGER
        self.since_s = monotonic()
        if not lingering or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        if self.paused:
            self.paused = False
            self.transport.resume_reading()

    # -- time ----------------------------------------------------------------------------------------------------------

    def look_at_time(self, now_s: float, slow_client_s: float) -> None:
        """End what takes too long: called a few times a second."""
        if self.transport is None:
            return
        waited_s = now_s - self.since_s
        if self.write_paused_s and now_s - self.write_paused_s > slow_client_s:
            self.transport.abort()  # it does not read its answers
        elif self.stage == LINGER:
            if waited_s > linger_s_max:
                self.transport.abort()
        elif self.stage == HEAD or (self.stage == BODY and self.current is not None):
            allowed_s = slow_client_s + self.body_bytes / body_bytes_per_s_min
            # While earlier answers are owed we may have paused reading ourselves.
            if waited_s > allowed_s and not self.paused:
                self.refuse(TIMEOUT)
        elif self.stage == IDLE and not self.queue and waited_s > (idle_s_max if self.target else slow_client_s):
            self.transport.close()

    @property
    def idle(self) -> bool:
        return self.stage == IDLE and not self.queue

    @property
    def kept(self) -> bool:
        """Whether the client only keeps the connection for its next request."""
        return self.idle and self.target != b""
