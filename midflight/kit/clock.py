"""The only place that asks the machine for the time. Everything else is handed a clock."""

from __future__ import annotations

import time


class Clock:
    """Wall time in microseconds since 1970 UTC, and a monotonic second for waiting."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_s(self) -> float:
        return time.monotonic()

    def sleep_s(self, seconds: float) -> None:
        time.sleep(seconds)


class VirtualClock(Clock):
    """A clock that moves only when told to; for tests and for simulated days."""

    def __init__(self, start_us: int = 1_700_000_000_000_000) -> None:
        self.at_us = start_us

    def now_us(self) -> int:
        return self.at_us

    def monotonic_s(self) -> float:
        return self.at_us / 1e6

    def sleep_s(self, seconds: float) -> None:
        self.at_us += int(seconds * 1e6)
