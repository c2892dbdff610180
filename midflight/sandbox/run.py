"""A run against a real door: sends what is due, tries again as each vendor would, and keeps book of what the door took."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ..events import Event
from ..kit.clock import Clock
from ..sources import Source
from .client import SILENCE, Address, Client
from .vendors import vendor
from .wire import Shipment

retry_s_min = 0.05
retry_s_max = 5.0  # in the run's own time, however long the vendor's schedule is
retry_after_s_max = 60.0
waits_kept_max = 200_000
FINAL = (400, 401, 403, 404, 405, 413)  # trying again cannot help


@dataclass
class Report:
    """What became of a run's requests. ``refused`` and ``lost`` hold requests that the door never took."""

    answers: Counter[int] = field(default_factory=Counter)
    events: int = 0
    requests: int = 0
    retries: int = 0
    cuts: int = 0
    bytes: int = 0
    seconds: float = 0.0
    waits_ms: list[float] = field(default_factory=list)
    refused: list[tuple[Shipment, int]] = field(default_factory=list)
    lost: list[Shipment] = field(default_factory=list)

    def wait_ms(self, share: float) -> float:
        """Return a quantile of the time from sending a request to its answer."""
        waits = sorted(self.waits_ms)
        return waits[min(len(waits) - 1, math.ceil(share * len(waits)) - 1)] if waits else 0.0

    @property
    def untold(self) -> list[Event]:
        return [event for shipment in [*(s for s, _ in self.refused), *self.lost] for event in shipment.events]

    def as_dict(self) -> dict:
        return {
            "events": self.events,
            "requests": self.requests,
            "answers": {str(status or "none"): n for status, n in sorted(self.answers.items())},
            "retries": self.retries,
            "cuts": self.cuts,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "answer_p50_ms": round(self.wait_ms(0.5), 2),
            "answer_p99_ms": round(self.wait_ms(0.99), 2),
            "refused": len(self.refused),
            "lost": len(self.lost),
        }


class Runner:
    """Sends shipments. ``live`` waits until each is due; otherwise they go as fast as ``rate`` events a second (0: no limit) allows."""

    def __init__(
        self,
        door: str,
        sources: dict[str, Source],
        *,
        live: bool = True,
        speed: float = 1.0,
        rate: float = 0.0,
        connections: int = 8,
        patience_s: float = 60.0,
        clock: Clock | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.address = Address.of(door)
        self.sources = sources
        self.live = live
        self.speed = speed
        self.rate = rate
        self.connections = connections
        self.patience_s = patience_s
        self.clock = clock or Clock()
        self.progress = progress or (lambda events: None)
        self.report = Report()

    def prepare(self, shipments: list[Shipment]) -> None:
        """Write and sign all requests ahead, so that a measurement sees only the sending; they have to go within minutes."""
        for shipment in shipments:
            shipment.ready = shipment.signed(self.sources[shipment.source], self.clock.now_us())

    def run(self, shipments: list[Shipment]) -> Report:
        """Send everything, or give up on what the door has not taken after ``patience_s`` beyond its time."""
        asyncio.run(self._run(shipments))
        return self.report

    async def _run(self, shipments: list[Shipment]) -> None:
        start = self.clock.monotonic_s()
        self._began = start
        # (when, order, shipment): a retry comes back with a later time.
        self._waiting = [(s.due_us if self.live else 0, n, s) for n, s in enumerate(shipments)]
        heapq.heapify(self._waiting)
        self._order = len(shipments)
        self._out = 0
        self._spent = 0
        self._first_try: dict[int, float] = {}
        clients = [Client(self.address) for _ in range(self.connections)]
        try:
            async with asyncio.TaskGroup() as group:
                for client in clients:
                    group.create_task(self._work(client))
        finally:
            for client in clients:
                client.close()
            self.report.seconds += self.clock.monotonic_s() - start

    async def _work(self, client: Client) -> None:
        while self._waiting or self._out:
            pause = self._pause_s()
            if pause > 0:
                await asyncio.sleep(min(pause, 0.05))
                continue
            _, order, shipment = heapq.heappop(self._waiting)
            self._out += 1
            try:
                await self._send(client, order, shipment)
            finally:
                self._out -= 1

    def _pause_s(self) -> float:
        """Return how long to wait before the next shipment may go."""
        if not self._waiting:
            return 0.02  # others may bring theirs back
        pause = (self._waiting[0][0] - self.clock.now_us()) / 1e6
        if self.rate:
            pause = max(pause, self._spent / self.rate - (self.clock.monotonic_s() - self._began))
        return pause

    async def _send(self, client: Client, order: int, shipment: Shipment) -> None:
        report, count = self.report, len(shipment.events)
        request = shipment.ready or shipment.signed(self.sources[shipment.source], self.clock.now_us())
        shipment.ready = None  # a retry is signed anew
        cut = shipment.cut and shipment.tries == 0
        self._first_try.setdefault(order, self.clock.monotonic_s())
        self._spent += count
        sent = self.clock.monotonic_s()
        answer = await client.send(request, cut=cut)
        now = self.clock.monotonic_s()
        report.requests += 1
        report.bytes += len(request.body)
        report.cuts += cut
        if not cut:
            report.answers[answer.status] += 1
            if answer.status and len(report.waits_ms) < waits_kept_max:
                report.waits_ms.append((now - sent) * 1000)
        if answer.status == 200:
            report.events += count
            shipment.body = b""
            self._first_try.pop(order)
            self.progress(count)
        elif answer.status in FINAL:
            report.refused.append((shipment, answer.status))
            self.progress(count)
        elif now - self._first_try[order] > self.patience_s:
            report.lost.append(shipment)
            self.progress(count)
        else:
            report.retries += 1
            wait_s = self._wait_s(shipment, answer.retry_after_s if answer is not SILENCE else 0.0)
            shipment.tries += 1
            heapq.heappush(self._waiting, (self.clock.now_us() + round(wait_s * 1e6), order, shipment))

    def _wait_s(self, shipment: Shipment, retry_after_s: float) -> float:
        """Return the vendor's next interval in compressed time, but not less than the door asked for."""
        schedule = vendor(shipment.source).retry_s
        wait = schedule[min(shipment.tries, len(schedule) - 1)] / self.speed
        return max(min(max(wait, retry_s_min), retry_s_max), min(retry_after_s, retry_after_s_max))
