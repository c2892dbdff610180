"""The only place that asks the machine for the time. Everything else is handed a clock."""

from __future__ import annotations

import threading
import time

believed_s = 300.0  # for so long a wall clock has to stand elsewhere before that is taken for the truth
near_us = 2_000_000  # what is nearer than this is no jump
slower = 2  # while the wall is behind, time goes on at this part of its pace, so that what waits for it still comes


class Clock:
    """Wall time in microseconds since 1970 UTC, and a monotonic second for waiting."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_s(self) -> float:
        return time.monotonic()

    def elapsed_s(self) -> float:
        """Return a second that goes on also while the machine sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

    def sleep_s(self, seconds: float) -> None:
        time.sleep(seconds)


class SteadyClock(Clock):
    """A wall clock that does not follow every jump of it, and never goes back; for whatever waits for a time and cannot be taken back.

    A machine's clock may be set far off for a moment, by a time server that is wrong or by a person. Who follows it ahead does at once what
    is due in two days, and stands still for two days afterwards. So this one goes on by the second that only goes by. Where the wall
    stands elsewhere, and still does after ``believed_s``, it is believed: one that is ahead is followed at once, one that is behind is
    waited for at half the pace. A machine that slept is no such case: its seconds went by.
    """

    def __init__(self, wall: Clock | None = None) -> None:
        self.wall = wall or Clock()
        self._lock = threading.Lock()
        self._us, self._s = self.wall.now_us(), self.wall.elapsed_s()
        self._off_us = 0  # of the wall, as it was when it began to stand there
        self._off_since_s = 0.0

    def not_before(self, at_us: int) -> None:
        """Go on from there where that is later: time was that late already."""
        with self._lock:
            self._us = max(self._us, at_us)

    def now_us(self) -> int:
        with self._lock:
            wall_us, now_s = self.wall.now_us(), self.wall.elapsed_s()
            passed_us = max(0, round((now_s - self._s) * 1e6))
            self._us, self._s = max(self._us, self._next_us(wall_us, now_s, passed_us)), now_s
            return self._us

    def _next_us(self, wall_us: int, now_s: float, passed_us: int) -> int:
        off_us = wall_us - self._us - passed_us
        if abs(off_us) <= near_us:
            self._off_us = 0
            return wall_us
        if abs(off_us - self._off_us) > near_us:
            self._off_us, self._off_since_s = off_us, now_s
        if now_s - self._off_since_s < believed_s:
            return self._us + passed_us
        if off_us > 0:
            return wall_us
        self._off_us = off_us + passed_us // slower  # as far as it will be then
        return self._us + passed_us // slower

    def monotonic_s(self) -> float:
        return self.wall.monotonic_s()

    def sleep_s(self, seconds: float) -> None:
        self.wall.sleep_s(seconds)


class VirtualClock(Clock):
    """A clock that moves only when told to; for tests and for simulated days."""

    def __init__(self, start_us: int = 1_700_000_000_000_000) -> None:
        self.at_us = start_us

    def now_us(self) -> int:
        return self.at_us

    def monotonic_s(self) -> float:
        return self.at_us / 1e6

    def elapsed_s(self) -> float:
        return self.monotonic_s()

    def sleep_s(self, seconds: float) -> None:
        self.at_us += int(seconds * 1e6)
