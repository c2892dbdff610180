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

from .api_vendors import Asked, Refusal, Reply
from .connection import HttpListener
from .misbehave import ACCEPTS, HTTP, Plan

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

    def take(self, asked: Asked) -> tuple[Reply, list[Effect]]:
        raise NotImplementedError

    def error(self, status: int) -> Reply:
        """Return an error in the service's own shape."""
        raise NotImplementedError

    def error_in_200(self) -> Reply:
        return self.error(500)._replace(status=200)

    def expire(self) -> None:
        """Let the token in use expire."""


class Ways(HttpListener):
    """All services on one port. ``did`` is every effect."""

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
        self.asked: list[Asked] = []
        self.opened_total = 0
        self._changing = threading.Lock()

    def opened(self, transport: asyncio.BaseTransport) -> None:
        self.opened_total += 1
        super().opened(transport)

    def owner(self, method: str, path: str) -> Service | None:
        return next((service for service in self.services if service.owns(method, path)), None)

    def twice(self) -> list[str]:
        """Return what was done more than once: by the action that asked for it, and by what it was."""
        keys = Counter((effect.vendor, effect.key) for effect in self.did if effect.key)
        contents = Counter((effect.vendor, effect.content) for effect in self.did)
        return sorted({str(which) for counted in (keys, contents) for which, n in counted.items() if n > 1})

    def answer(self, service: Service, asked: Asked) -> Reply:
        with self._changing:
            try:
                reply, effects = service.take(asked)
            except Refusal as refusal:
                return refusal.reply
            self.did += effects
            return reply

    def met(self, kind: str, service: Service, asked: Asked) -> Reply | None:
        """Return what a request gets that meets ``kind``; None where it gets nothing."""
        self.asked.append(asked)
        if kind in ACCEPTS or kind.startswith("accept_"):
            return self._accepted(kind, service, self.answer(service, asked))
        if kind == "hang":
            return None
        if kind == "error_in_200":
            return service.error_in_200()
        if kind == "redirect":
            return self.redirect(asked)
        if kind == "401":
            service.expire()
            return service.error(service.denied)
        if kind in ("429_retry_after", "503_retry_after"):
            return self.later(service.error(int(kind[:3])))
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
