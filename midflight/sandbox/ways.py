"""The services behind the ways out, played on one port of loopback: they check, act, answer, count what they did, and misbehave by plan."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from functools import cache
from typing import NamedTuple

import httptools

from .api_vendors import Refusal, Reply
from .apis import ELSEWHERE, body_bytes_max, reason
from .misbehave import ACCEPTS, HTTP, TLS_ALERT, Listener, Plan

EXTRA = {
    "hang": "not accepted, and never answered",
    "429_date": "refused for now, with a date in Retry-After",
    "503_retry_after": "not accepted, and answered with 503 and Retry-After",
    "error_in_200": "not accepted, and answered with 200 and an error inside",
    "accept_and_oversize": "accepted, and answered with more than anybody should read before it says so",
    "accept_and_bomb": "accepted, and answered with a gzip that inflates to a thousand times its size",
    "accept_and_odd": "accepted, and answered with 200 and JSON of another shape",
}
oversize_bytes = 3 << 20
bomb_bytes = 16 << 20


@cache
def bomb() -> bytes:
    """Return a gzip that inflates to a thousand times its size."""
    return gzip.compress(b" " * bomb_bytes, 1)


class Request(NamedTuple):
    """One complete request; header names are lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


class Effect(NamedTuple):
    """Something that a service did: which action asked for it as far as the request says, and what it was."""

    vendor: str
    key: str
    content: str


class Service:
    """One service. ``take`` checks a request, acts, and returns the answer with what it did; a Refusal did nothing."""

    name = ""
    wrong = 400  # the status of a request that is wrong
    denied = 401  # and of one without the right credentials

    def owns(self, method: str, path: str) -> bool:
        raise NotImplementedError

    def take(self, asked: Request) -> tuple[Reply, list[Effect]]:
        raise NotImplementedError

    def error(self, status: int) -> Reply:
        """Return an error in the service's own shape."""
        raise NotImplementedError

    def error_in_200(self) -> Reply:
        return self.error(500)._replace(status=200)

    def expire(self) -> None:
        """Let the token in use expire."""


class Ways(Listener):
    """All services on one port. ``did`` is every effect; ``followed`` counts who went where a redirect sent him."""

    known = HTTP | EXTRA

    def __init__(
        self,
        services: list[Service],
        plan: Plan | None = None,
        *,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        now_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        super().__init__(plan, port=port, tls=tls)
        self.services = services
        self.now_s = now_s
        self.did: list[Effect] = []
        self.asked: list[Request] = []
        self.followed = 0
        self.opened_total = 0
        self._changing = threading.Lock()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def connection(self) -> asyncio.Protocol:
        return _Connection(self)

    def opened(self, transport: asyncio.BaseTransport) -> None:
        self.opened_total += 1
        super().opened(transport)

    def twice(self) -> list[str]:
        """Return what was done more than once: by the action that asked for it, and by what it was."""
        keys = Counter((effect.vendor, effect.key) for effect in self.did if effect.key)
        contents = Counter((effect.vendor, effect.content) for effect in self.did)
        return sorted({str(which) for counted in (keys, contents) for which, n in counted.items() if n > 1})

    def answer(self, service: Service, asked: Request) -> Reply:
        with self._changing:
            try:
                reply, effects = service.take(asked)
            except Refusal as refusal:
                return refusal.reply
            self.did += effects
            return reply

    def met(self, kind: str, service: Service, asked: Request) -> Reply | None:
        """Return what a request gets that meets ``kind``; None where it gets nothing."""
        if kind in ACCEPTS or kind.startswith("accept_"):
            return self._accepted(kind, service, self.answer(service, asked))
        if kind == "hang":
            return None
        if kind == "error_in_200":
            return service.error_in_200()
        if kind == "redirect":
            return Reply(307, b"", (("location", f"{self.url}{ELSEWHERE}{asked.path}"),))
        if kind == "401":
            service.expire()
            return service.error(service.denied)
        if kind in ("429_retry_after", "503_retry_after"):
            reply = service.error(int(kind[:3]))
            return reply._replace(headers=(*reply.headers, ("retry-after", str(self.plan.retry_after_s))))
        if kind == "429_date":
            reply = service.error(429)
            at = formatdate(self.now_s() + self.plan.retry_after_s, usegmt=True)
            return reply._replace(headers=(*reply.headers, ("retry-after", at)))
        return service.error({"400": service.wrong}.get(kind) or int(kind))

    def _accepted(self, kind: str, service: Service, reply: Reply) -> Reply | None:
        if kind in ("accept_and_cut", "accept_and_hang"):
            return None
        if reply.status >= 300 or kind in ("answer", "drip"):
            return reply
        if kind == "202":
            return reply._replace(status=202)
        if kind == "bad_json":
            return Reply(200, reply.body[: len(reply.body) // 2] or b'{"message": "succ', (("content-type", "application/json"),))
        if kind == "accept_and_oversize":
            return reply._replace(body=b" " * oversize_bytes + reply.body)
        if kind == "accept_and_bomb":
            return Reply(200, bomb(), (("content-type", "application/json"), ("content-encoding", "gzip")))
        if kind == "accept_and_odd":
            return Reply(200, b'{"status": [1, {"id": null}], "error": [], "sid": {}}', (("content-type", "application/json"),))
        return service.error(500)


class _Connection(asyncio.Protocol):
    """One kept connection; its requests are answered in their order."""

    def __init__(self, ways: Ways) -> None:
        self.ways = ways
        self.parser = httptools.HttpRequestParser(self)
        self.dead = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.ways.opened(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.dead = True
        self.ways.closed(self.transport)

    def data_received(self, data: bytes) -> None:
        if self.dead:
            return
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self.dead:
                self.write(Reply(400, b"Bad Request"), keep=False)

    def on_message_begin(self) -> None:
        self.target, self.headers, self.chunks, self.got = b"", {}, [], 0

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("utf-8", "replace")

    def on_headers_complete(self) -> None:
        self.method = self.parser.get_method().decode()
        self.path, _, self.query = self.target.decode("utf-8", "replace").partition("?")
        self.service = next((service for service in self.ways.services if service.owns(self.method, self.path)), None)
        if self.dead or self.service is None:
            return
        self.kind = self.ways.plan.next()
        length = self.headers.get("content-length", "")
        self.cut_at = (int(length) // 2 if length.isdigit() else 1) if self.kind == "cut_in_body" else None
        if self.kind == "cut_before_body":
            self.cut()

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
            self.ways.followed += self.path.startswith(ELSEWHERE)
            return self.write(Reply(404, b'{"message": "Not Found"}', (("content-type", "application/json"),)))
        if self.kind == "tls_failure":
            self.transport.write(TLS_ALERT)
            return self.close()
        if self.kind == "cut_in_body":
            return self.cut()
        asked = Request(self.method, self.path, self.query, self.headers, b"".join(self.chunks))
        self.ways.asked.append(asked)
        reply = self.ways.met(self.kind, self.service, asked)
        if reply is not None:
            self.write(reply, drip=self.kind == "drip")
        elif self.kind == "accept_and_cut":
            self.cut()
        else:
            self.dead = True  # whatever comes is read and never answered

    def write(self, reply: Reply, *, keep: bool | None = None, drip: bool = False) -> None:
        keep = self.parser.should_keep_alive() if keep is None else keep
        head = [reason(reply.status)] + ([] if reply.status == 204 else [f"content-length: {len(reply.body)}"])
        head += [f"{name}: {value}" for name, value in reply.headers]
        if not keep or drip:
            head.append("connection: close")
        raw = "\r\n".join(head).encode("latin-1", "replace") + b"\r\n\r\n" + (b"" if reply.status == 204 else reply.body)
        if drip:
            self.dead = True
            return self.ways.drip(self.transport, raw, self.transport.close)
        self.transport.write(raw)
        if not keep:
            self.close()

    def close(self) -> None:
        self.dead = True
        self.transport.close()

    def cut(self) -> None:
        self.dead = True
        self.transport.abort()
