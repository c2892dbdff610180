"""Bad manners of those who are sent to, on demand: which request meets which, and the listener that both fakes of vendors share."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import uvloop

from ..kit.errors import MidflightError, NotFound, nearest

ANSWER = "answer"
TLS_FAILURE = "tls_failure"
# What a request to an HTTP API can meet.
HTTP = {
    ANSWER: "what the vendor answers",
    "202": "accepted, and answered with 202 whatever the vendor's own status is",
    "accept_and_cut": "accepted, then the connection is cut without an answer",
    "accept_and_hang": "accepted, then never answered",
    "accept_and_500": "accepted, and answered with 500",
    "drip": "accepted, and answered byte by byte",
    "bad_json": "accepted, and answered with 200 and half a JSON text",
    "400": "refused as wrong, with the vendor's status for it (some say 422)",
    "401": "refused for its credentials, with the vendor's status for it (some say 403)",
    "409": "refused as in conflict",
    "429": "refused for now, without Retry-After",
    "429_retry_after": "refused for now, with Retry-After",
    "500": "not accepted, and answered with 500",
    "redirect": "not accepted, and sent elsewhere with 307",
    TLS_FAILURE: "not accepted: the handshake fails, and on a connection that stands already comes a TLS alert in place of an answer",
    "cut_before_body": "not accepted: cut as soon as the headers are there",
    "cut_in_body": "not accepted: cut when half of the body is there",
}
# What a transaction can meet at an SMTP server.
SMTP = {
    ANSWER: "what a server answers",
    "greet_4xx": "421 in place of the greeting",
    "mail_4xx": "451 to MAIL",
    "mail_5xx": "550 to MAIL",
    "rcpt_4xx": "450 to RCPT",
    "rcpt_5xx": "550 to RCPT",
    "data_4xx": "451 to DATA",
    "data_5xx": "554 to DATA",
    "dot_4xx": "not accepted: 451 after the dot",
    "dot_5xx": "not accepted: 554 after the dot",
    "accept_and_4xx": "accepted, and answered with 451 after the dot",
    "cut_before_dot": "not accepted: cut as soon as the first of the message is there",
    "cut_after_dot": "not accepted: cut after the dot",
    "accept_and_cut": "accepted, then cut without an answer",
    "accept_and_hang": "accepted, then never answered",
    "drip": "accepted, and answered byte by byte",
    "garble": "accepted, and answered with what is no SMTP",
    TLS_FAILURE: "not accepted: the handshake after STARTTLS fails, and without STARTTLS comes a TLS alert in place of an answer to MAIL",
}
# What a message that meets these is accepted in spite of, or because of.
ACCEPTS = frozenset((ANSWER, "202", "drip", "bad_json", "garble", *(name for name in (*HTTP, *SMTP) if name.startswith("accept_"))))

TLS_ALERT = bytes.fromhex("15030300020228")  # fatal, handshake_failure
block = 1024
stop_s_max = 5.0
drip_s_min = 0.001  # the loop's clock has milliseconds


class Plan:
    """Which request, counted from 0, meets what: ``script`` by number, all others by ``chances`` with a seed, or what is normal.

    A request's luck depends on the seed and its number alone. Any thread may ask.
    """

    def __init__(
        self,
        script: Mapping[int, str] | None = None,
        chances: Mapping[str, float] | None = None,
        *,
        seed: int = 0,
        drip_s: float = 0.01,
        retry_after_s: int = 1,
    ) -> None:
        self.script = dict(script or {})
        self.chances = dict(chances or {})
        self.drip_s = drip_s
        self.retry_after_s = retry_after_s
        self.happened: Counter[str] = Counter()
        self._names = (*self.chances, ANSWER)
        self._rng = np.random.default_rng(seed)
        self._luck: list[int] = []
        self._count = 0
        self._lock = threading.Lock()
        if min(self.chances.values(), default=0.0) < 0 or sum(self.chances.values()) > 1 + 1e-9:
            raise MidflightError("The chances of misbehaving are none", expected="shares that add up to at most 1", got=self.chances)

    def check(self, known: Iterable[str]) -> None:
        """Raise NotFound for a misbehaviour that a server does not have."""
        unknown = sorted({*self.script.values(), *self.chances} - set(known))
        if unknown:
            raise NotFound(f"Nothing here misbehaves like `{unknown[0]}`", todo=nearest(unknown[0], known))

    def _at(self, number: int) -> str:
        while self.chances and len(self._luck) <= number:
            self._luck += np.searchsorted(np.cumsum(list(self.chances.values())), self._rng.random(block), side="right").tolist()
        return self.script.get(number) or (self._names[self._luck[number]] if self.chances else ANSWER)

    def next(self) -> str:
        """Return what the next request meets."""
        with self._lock:
            met = self._at(self._count)
            self._count += 1
            self.happened[met] += 1
            return met

    def next_if(self, wanted: str) -> bool:
        """Tell whether the next request meets this, and only then count it as met: for what happens before there is a request."""
        with self._lock:
            if self._at(self._count) != wanted:
                return False
            self._count += 1
            self.happened[wanted] += 1
            return True


class Listener:
    """A server on loopback with a thread and a loop of its own: ``with listener:`` or ``start`` and ``stop``."""

    known: Mapping[str, str] = {ANSWER: ""}
    handshake_first = True  # False where TLS begins later, on demand

    def __init__(self, plan: Plan | None = None, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.plan = plan or Plan()
        self.plan.check(self.known)
        self.port = port
        self.tls = tls
        self.open: set[asyncio.BaseTransport] = set()
        self.loop: asyncio.AbstractEventLoop | None = None
        if tls:
            tls.sni_callback = self._handshake

    def connection(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        raise NotImplementedError

    def _handshake(self, *_about: object) -> int | None:
        return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE if self.plan.next_if(TLS_FAILURE) else None

    def start(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._listen(), self.loop).result()
        except OSError:
            self._end()
            raise

    async def _listen(self) -> None:
        self._empty = asyncio.Event()
        self._empty.set()
        tls = self.tls if self.handshake_first else None
        self._server = await self.loop.create_server(self.connection, "127.0.0.1", self.port, ssl=tls, backlog=256)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self.loop).result(stop_s_max)
        self._end()

    async def _close(self) -> None:
        self._server.close()
        for transport in tuple(self.open):
            transport.abort()
        await self._empty.wait()

    def opened(self, transport: asyncio.BaseTransport) -> None:
        """Note a connection; `stop` waits until all of them are lost."""
        self.open.add(transport)
        self._empty.clear()

    def closed(self, transport: asyncio.BaseTransport) -> None:
        self.open.discard(transport)
        if not self.open:
            self._empty.set()

    def _end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def __enter__(self) -> Listener:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def drip(self, transport: asyncio.Transport, answer: bytes, done: Callable[[], None]) -> None:
        """Write an answer byte by byte, then call ``done``."""
        if transport.is_closing():
            return
        transport.write(answer[:1])
        if len(answer) > 1:
            self.loop.call_later(max(self.plan.drip_s, drip_s_min), self.drip, transport, answer[1:], done)
        else:
            done()
