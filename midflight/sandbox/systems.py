"""The systems that are polled and written back to, played on one port of loopback: they page, limit, expire and misbehave by plan."""

from __future__ import annotations

import ssl
import threading
from collections import deque
from collections.abc import Callable
from typing import ClassVar, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from ..kit.clock import Clock, VirtualClock
from .api_vendors import Asked, Reply
from .connection import HttpListener
from .misbehave import ACCEPTS, HTTP, Plan

# What a question may meet beside what a request to a vendor's API for sending may.
EXPIRED, HTML, EMPTY = "session_expired", "html", "empty"
SYSTEM_MANNERS = HTTP | {
    EXPIRED: "refused because the session has ended before its time",
    HTML: "answered with 200 and a page for people",
    EMPTY: "answered with 200 and nothing",
}
JSON = (("content-type", "application/json"),)


class Question(NamedTuple):
    """One complete request with its query read; header names are lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict:
        return msgspec.json.decode(self.body)

    def form(self) -> dict[str, str]:
        return dict(parse_qsl(self.body.decode()))


def json_reply(status: int, body: object, *headers: tuple[str, str]) -> Reply:
    return Reply(status, msgspec.json.encode(body), (*JSON, *headers))


class System:
    """One system. ``answer`` is called with the lock held, ``url`` is where it is reached."""

    name: ClassVar[str] = ""
    prefixes: ClassVar[tuple[str, ...]] = ()
    wrong: ClassVar[int] = 400

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.url = ""

    def owns(self, path: str) -> bool:
        return path.startswith(self.prefixes)

    def answer(self, asked: Question) -> Reply:
        raise NotImplementedError

    def error(self, status: int, said: str = "") -> Reply:
        return json_reply(status, {"message": said or "error"})

    def expire(self) -> Reply:
        """End all sessions, and answer as to somebody whose session has ended."""
        return self.error(401)


class Sessions:
    """Access tokens by OAuth 2, each good for so long; a refresh token or the client's credentials give another one."""

    def __init__(self, clock: Clock, client: tuple[str, str], refresh: str, lifetime_s: float) -> None:
        self.clock, self.client, self.refresh, self.lifetime_s = clock, client, refresh, lifetime_s
        self.good: dict[str, int] = {}
        self.given = 0

    def give(self, asked: Question) -> dict | None:
        """Return the fields of a token answer, or None for wrong credentials."""
        form = asked.form()
        if (form.get("client_id"), form.get("client_secret")) != self.client:
            return None
        if form.get("grant_type") == "refresh_token" and form.get("refresh_token") != self.refresh:
            return None
        self.given += 1
        value = f"session-{self.given}"
        self.good = {value: self.clock.now_us() + int(self.lifetime_s * 1e6)}
        return {"access_token": value, "token_type": "bearer", "expires_in": int(self.lifetime_s)}

    def knows(self, asked: Question) -> bool:
        scheme, _, value = asked.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.good.get(value, 0) > self.clock.now_us()

    def end(self) -> None:
        self.good = {}


class Systems(HttpListener):
    """All systems on one port. ``before`` is called with each question's number before it is answered: for changes while paging."""

    known = SYSTEM_MANNERS

    def __init__(
        self, *systems: System, plan: Plan | None = None, per_s: float = 0, port: int = 0, tls: ssl.SSLContext | None = None,
        before: Callable[[int, Question], None] = lambda _number, _asked: None,
    ) -> None:  # fmt: skip
        super().__init__(plan, port=port, tls=tls)
        self.systems, self.per_s, self.before = systems, per_s, before
        self.asked: list[Question] = []
        self.refused_for_pace = 0
        self.lock = threading.RLock()
        self._recent: deque[float] = deque()
        self._clock = Clock()

    def start(self) -> None:
        super().start()
        for system in self.systems:
            system.url = self.url

    def hurry(self) -> None:
        """Let time stand still for the limit of calls a second."""
        self._clock = VirtualClock()

    def owner(self, method: str, path: str) -> System | None:
        return next((system for system in self.systems if system.owns(path)), None)

    def too_fast(self) -> bool:
        if not self.per_s:
            return False
        now_s = self._clock.monotonic_s()
        while self._recent and self._recent[0] < now_s - 1.0:
            self._recent.popleft()
        if len(self._recent) >= self.per_s:
            self.refused_for_pace += 1
            return True
        self._recent.append(now_s)
        return False

    def met(self, kind: str, system: System, raw: Asked) -> Reply | None:
        """Return what a question gets that meets ``kind``; None where it gets nothing."""
        asked = Question(raw.method, raw.path, dict(parse_qsl(raw.query, keep_blank_values=True)), raw.headers, raw.body)
        with self.lock:
            self.before(len(self.asked), asked)
            self.asked.append(asked)
            if self.too_fast():
                return system.error(429)
            if kind in ACCEPTS:
                return self._accepted(kind, system, asked)
            if kind == EXPIRED:
                return system.expire()
            if kind == HTML:
                return Reply(200, b"<html><body>We are back soon</body></html>", (("content-type", "text/html"),))
            if kind == EMPTY:
                return Reply(200, b"", JSON)
            if kind == "redirect":
                return self.redirect(raw)
            if kind == "429_retry_after":
                return self.later(system.error(429))
            return system.error(system.wrong if kind == "400" else int(kind))

    def _accepted(self, kind: str, system: System, asked: Question) -> Reply | None:
        reply = system.answer(asked)
        if kind in ("accept_and_cut", "accept_and_hang"):
            return None
        if reply.status >= 300 or kind in ("answer", "drip", "202"):
            return reply
        return Reply(200, reply.body[: len(reply.body) // 2] or b"{", JSON) if kind == "bad_json" else system.error(500)
