"""The vendors' APIs for sending, played on one port of loopback: they check, accept into the inbox, answer, and misbehave by plan."""

from __future__ import annotations

import asyncio
import ssl
from functools import lru_cache
from hashlib import blake2b
from http import HTTPStatus
from itertools import count

import httptools

from .api_vendors import VENDORS, Asked, Refusal, Reply, Vendor
from .inbox import Inbox, accepted
from .misbehave import ACCEPTS, HTTP, TLS_ALERT, Listener, Plan

body_bytes_max = 64 << 20
ELSEWHERE = "/elsewhere"


class Apis(Listener):
    """All vendors on one port. ``keys`` are other credentials than those of `KEYS`; ``followed`` counts who went where 307 sent him."""

    known = HTTP

    def __init__(
        self,
        inbox: Inbox,
        plan: Plan | None = None,
        *,
        keys: dict[str, str] | None = None,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        vendors: tuple[type[Vendor], ...] = VENDORS,
    ) -> None:
        super().__init__(plan, port=port, tls=tls)
        self.inbox = inbox
        self.requests = 0
        self.followed = 0
        numbers = count(1)
        clock = inbox.clock
        # Two runs against one log have to differ in their message ids.
        tag = blake2b(str(clock.now_us()).encode(), digest_size=4).hexdigest()
        keys = {vendor.name: vendor.key for vendor in vendors} | (keys or {})
        self.vendors = [vendor(keys[vendor.name], numbers.__next__, tag, clock.now_us) for vendor in vendors]
        self._owners: dict[str, Vendor | None] = {}

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def connection(self) -> asyncio.Protocol:
        return _Connection(self)

    def owner(self, path: str) -> Vendor | None:
        if path not in self._owners:
            if len(self._owners) > 1000:
                self._owners.clear()
            self._owners[path] = next((vendor for vendor in self.vendors if vendor.owns(path)), None)
        return self._owners[path]

    def answer(self, vendor: Vendor, asked: Asked) -> Reply:
        """Check a request, put what it sends into the inbox, and return the vendor's answer."""
        try:
            vendor.allow(asked)
            reply, letters = vendor.take(asked)
        except Refusal as refusal:
            return refusal.reply
        now_us = self.inbox.clock.now_us()
        self.inbox.put([accepted(vendor.name, to, custom, message_id, now_us) for to, custom, message_id in letters])
        return reply

    def met(self, kind: str, vendor: Vendor, asked: Asked) -> Reply | None:
        """Return what a request gets that meets ``kind``; None where it gets nothing."""
        if kind in ACCEPTS:
            reply = self.answer(vendor, asked)
            if kind in ("accept_and_cut", "accept_and_hang"):
                return None
            if reply.status >= 300 or kind in ("answer", "drip"):
                return reply
            if kind == "202":
                return reply._replace(status=202)
            if kind == "bad_json":
                half = reply.body[: len(reply.body) // 2] or b'{"message": "succ'
                return Reply(200, half, (("content-type", "application/json"),))
            return vendor.error(500)
        if kind == "redirect":
            return Reply(307, b"", (("location", f"{self.url}{ELSEWHERE}{asked.path}"),))
        if kind == "429_retry_after":
            reply = vendor.error(429)
            return reply._replace(headers=(*reply.headers, ("retry-after", str(self.plan.retry_after_s))))
        return vendor.error({"400": vendor.wrong, "401": vendor.denied}.get(kind) or int(kind))


class _Connection(asyncio.Protocol):
    """One kept connection; its requests are answered in their order."""

    def __init__(self, apis: Apis) -> None:
        self.apis = apis
        self.parser = httptools.HttpRequestParser(self)
        self.dead = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.apis.opened(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.dead = True
        self.apis.closed(self.transport)

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
        self.url = b""
        self.headers: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.got = 0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("utf-8", "replace")

    def on_headers_complete(self) -> None:
        path, _, self.query = self.url.decode("utf-8", "replace").partition("?")
        self.path = path
        self.vendor = self.apis.owner(path) if self.parser.get_method() == b"POST" else None
        if self.dead or self.vendor is None:
            return
        self.apis.requests += 1
        self.kind = self.apis.plan.next()
        length = self.headers.get("content-length", "")
        self.cut_at = (int(length) // 2 if length.isdigit() else 1) if self.kind == "cut_in_body" else None
        if self.kind == "cut_before_body":
            self.cut()
        elif self.headers.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, chunk: bytes) -> None:
        self.got += len(chunk)
        if self.dead:
            return
        if self.got > body_bytes_max:
            self.write(Reply(413), keep=False)
        elif self.vendor and self.cut_at is not None and self.got >= self.cut_at:
            self.cut()
        else:
            self.chunks.append(chunk)

    def on_message_complete(self) -> None:
        if self.dead:
            return
        if self.vendor is None:
            self.apis.followed += self.path.startswith(ELSEWHERE)
            return self.write(Reply(404, b'{"message": "Not Found"}', (("content-type", "application/json"),)))
        kind, body = self.kind, self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        if kind == "tls_failure":
            self.transport.write(TLS_ALERT)
            return self.close()
        if kind == "cut_in_body":  # of an empty body
            return self.cut()
        reply = self.apis.met(kind, self.vendor, Asked(self.path, self.query, self.headers, body))
        if reply is not None:
            self.write(reply, drip=kind == "drip")
        elif kind == "accept_and_cut":
            self.cut()
        else:
            self.dead = True  # whatever comes is read and never answered

    # -- and what is done about it ---------------------------------------------------------------------------------------

    def write(self, reply: Reply, *, keep: bool | None = None, drip: bool = False) -> None:
        keep = self.parser.should_keep_alive() if keep is None else keep
        head = [reason(reply.status), f"content-length: {len(reply.body)}"]
        head += [f"{name}: {value}" for name, value in reply.headers]
        if not keep or drip:
            head.append("connection: close")
        raw = "\r\n".join(head).encode("latin-1", "replace") + b"\r\n\r\n" + reply.body
        if drip:
            self.dead = True
            return self.apis.drip(self.transport, raw, self.transport.close)
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
