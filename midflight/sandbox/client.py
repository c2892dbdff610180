"""A small HTTP/1.1 client: few kept connections, ready-made bytes in, status and Retry-After out."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..kit.errors import MidflightError
from ..sources import Request

answer_bytes_max = 1 << 20
answer_s_max = 30.0
connect_s_max = 5.0


@dataclass(frozen=True)
class Answer:
    """What the door said; ``status`` 0 means that nothing was heard."""

    status: int
    retry_after_s: float = 0.0
    body: bytes = b""


SILENCE = Answer(0)


@dataclass(frozen=True)
class Address:
    """Where the door is: ``Address.of("http://127.0.0.1:8400")``."""

    host: str
    port: int
    tls: bool
    prefix: str

    @classmethod
    def of(cls, url: str) -> Address:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise MidflightError("Not a URL of a door", expected="http://HOST:PORT", got=url)
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls, parts.path.rstrip("/"))


def wire_bytes(request: Request, address: Address) -> bytes:
    """Return the request as it goes over the wire."""
    path = address.prefix + urlsplit(request.url).path
    lines = [f"{request.method} {path} HTTP/1.1", f"host: {address.host}:{address.port}", f"content-length: {len(request.body)}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + request.body


class Connection(asyncio.Protocol):
    """One kept connection with one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answer: asyncio.Future[Answer] | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._answer and not self._answer.done():
            self._answer.set_result(SILENCE)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        found = read_answer(self._buffer)
        if found is None and len(self._buffer) <= answer_bytes_max:
            return
        answer, keep = found or (SILENCE, False)
        self._buffer = b""
        if self._answer and not self._answer.done():
            self._answer.set_result(answer)
        if not keep:
            self.close()

    def ask(self, raw: bytes) -> asyncio.Future[Answer]:
        self._answer = asyncio.get_running_loop().create_future()
        if self.closed:
            self._answer.set_result(SILENCE)
        else:
            self.transport.write(raw)
        return self._answer

    def close(self) -> None:
        self.closed = True
        if self.transport:
            self.transport.close()


def read_answer(raw: bytes) -> tuple[Answer, bool] | None:
    """Return (answer, whether the connection stays) of a whole answer, None while it is not whole."""
    end = raw.find(b"\r\n\r\n")
    if end < 0:
        return None
    first, *lines = raw[:end].split(b"\r\n")
    words = first.split(b" ", 2)
    if len(words) < 2 or not words[1].isdigit():
        return SILENCE, False
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    length = headers.get(b"content-length", b"0")
    size = int(length) if length.isdigit() else 0
    if b"chunked" in headers.get(b"transfer-encoding", b"").lower():
        if not raw.endswith(b"0\r\n\r\n"):
            return None
        body = raw[end + 4 :]
    elif len(raw) < end + 4 + size:
        return None
    else:
        body = raw[end + 4 : end + 4 + size]
    wait = headers.get(b"retry-after", b"")
    keep = headers.get(b"connection", b"").lower() != b"close" and words[0] == b"HTTP/1.1"
    return Answer(int(words[1]), float(wait) if wait.isdigit() else 0.0, body), keep


class Client:
    """One sender's connection to the door, made anew when it is lost."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._connection: Connection | None = None
        self._tls = ssl.create_default_context() if address.tls else None

    async def send(self, request: Request, *, cut: bool = False) -> Answer:
        """Send a request and return the answer; with ``cut`` hang up as soon as it is sent, so that nobody knows what became of it."""
        raw = wire_bytes(request, self.address)
        connection = self._connection
        if connection is None or connection.closed:
            try:
                async with asyncio.timeout(connect_s_max):
                    _, connection = await asyncio.get_running_loop().create_connection(
                        Connection, self.address.host, self.address.port, ssl=self._tls
                    )
            except OSError:
                return SILENCE
            self._connection = connection
        answer = connection.ask(raw)
        if cut:
            # Long enough for the bytes to leave, too short for an answer to be waited for.
            await asyncio.sleep(0)
            connection.transport.close()
            connection.closed = True
            return SILENCE
        try:
            async with asyncio.timeout(answer_s_max):
                return await answer
        except TimeoutError:
            connection.close()
            return SILENCE

    def close(self) -> None:
        if self._connection:
            self._connection.close()
