"""What all services played over HTTP share: the listener, and a kept connection, on which each request meets what the plan says."""

from __future__ import annotations

import asyncio
import ssl
from functools import lru_cache
from http import HTTPStatus

import httptools

from .api_vendors import Asked, Reply
from .misbehave import HTTP, TLS_ALERT, Listener, Plan

body_bytes_max = 64 << 20
ELSEWHERE = "/elsewhere"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
NOT_FOUND = Reply(404, b'{"message": "Not Found"}', (("content-type", "application/json"),))


class HttpListener(Listener):
    """Services on one port. ``requests`` counts what was asked of them, ``followed`` who went where a redirect sent him."""

    known = HTTP

    def __init__(self, plan: Plan | None = None, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(plan, port=port, tls=tls)
        self.requests = 0
        self.followed = 0

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def connection(self) -> asyncio.Protocol:
        return _Connection(self)

    def owner(self, method: str, path: str) -> object | None:
        """Return the service that a request is for; None where it is for none."""
        raise NotImplementedError

    def met(self, kind: str, service: object, asked: Asked) -> Reply | None:
        """Return what a request gets that meets ``kind``; None where it gets nothing."""
        raise NotImplementedError

    def redirect(self, asked: Asked) -> Reply:
        return Reply(307, b"", (("location", f"{self.url}{ELSEWHERE}{asked.path}"),))

    def later(self, reply: Reply) -> Reply:
        """Return an answer with when to ask again, in seconds."""
        return reply._replace(headers=(*reply.headers, ("retry-after", str(self.plan.retry_after_s))))


class _Connection(asyncio.Protocol):
    """One kept connection; its requests are answered in their order."""

    def __init__(self, listener: HttpListener) -> None:
        self.listener = listener
        self.parser = httptools.HttpRequestParser(self)
        self.dead = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.listener.opened(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.dead = True
        self.listener.closed(self.transport)

    def data_received(self, data: bytes) -> None:
        if self.dead:
            return
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self.dead:
                self.write(Reply(400, b"Bad Request", (("content-type", "text/plain"),)), keep=False)

    # -- what the parser finds -------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.target = b""
        self.headers: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.got = 0

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("utf-8", "replace")

    def on_headers_complete(self) -> None:
        self.method = self.parser.get_method().decode()
        self.path, _, self.query = self.target.decode("utf-8", "replace").partition("?")
        self.service = self.listener.owner(self.method, self.path)
        if self.dead or self.service is None:
            return
        self.listener.requests += 1
        self.kind = self.listener.plan.next()
        length = self.headers.get("content-length", "")
        self.cut_at = (int(length) // 2 if length.isdigit() else 1) if self.kind == "cut_in_body" else None
        if self.kind == "cut_before_body":
            self.cut()
        elif self.headers.get("expect", "").lower() == "100-continue":
            self.transport.write(CONTINUE)

    def on_body(self, chunk: bytes) -> None:
        self.got += len(chunk)
        if self.dead:
            return
        if self.got > body_bytes_max:
            self.write(Reply(413), keep=False)
        elif self.service and self.cut_at is not None and self.got >= self.cut_at:
            self.cut()
        else:
            self.chunks.append(chunk)

    def on_message_complete(self) -> None:
        if self.dead:
            return
        if self.service is None:
            self.listener.followed += self.path.startswith(ELSEWHERE)
            return self.write(NOT_FOUND)
        if self.kind == "tls_failure":
            self.transport.write(TLS_ALERT)
            return self.close()
        if self.kind == "cut_in_body":  # of an empty body
            return self.cut()
        body = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        reply = self.listener.met(self.kind, self.service, Asked(self.method, self.path, self.query, self.headers, body))
        if reply is not None:
            self.write(reply, drip=self.kind == "drip")
        elif self.kind == "accept_and_cut":
            self.cut()
        else:
            self.dead = True  # whatever comes is read and never answered

    # -- and what is done about it ---------------------------------------------------------------------------------------

    def write(self, reply: Reply, *, keep: bool | None = None, drip: bool = False) -> None:
        keep = self.parser.should_keep_alive() if keep is None else keep
        bodiless = reply.status == 204
        head = [reason(reply.status)] + ([] if bodiless else [f"content-length: {len(reply.body)}"])
        head += [f"{name}: {value}" for name, value in reply.headers]
        if not keep or drip:
            head.append("connection: close")
        raw = "\r\n".join(head).encode("latin-1", "replace") + b"\r\n\r\n" + (b"" if bodiless else reply.body)
        if drip:
            self.dead = True
            return self.listener.drip(self.transport, raw, self.transport.close)
        self.transport.write(raw)
        if not keep:
            self.close()

    def close(self) -> None:
        self.dead = True
        self.transport.close()

    def cut(self) -> None:
        self.dead = True
        self.transport.abort()


@lru_cache(maxsize=64)
def reason(status: int) -> str:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"
