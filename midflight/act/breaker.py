"""The circuit breaker of one target, as a state and what changes it: closed, open, half-open. No clock and no tasks of its own.

::

    closed ──(failures_max in a row)──► open ──(time)──► half-open: one probe ──(it succeeds)──► closed
                                         ▲                    │
                                         └──(it fails: twice as long)
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half_open"
second_us = 1_000_000


class Limits(msgspec.Struct, kw_only=True, frozen=True):
    """When a breaker opens, and for how long."""

    failures_max: int = 5
    open_s_first: float = 5.0
    open_s_max: float = 600.0
    probe_s_max: float = 90.0  # a probe of which nothing was heard for so long is given up


class Breaker(msgspec.Struct, kw_only=True, frozen=True):
    """How a target stands. ``until_us``: when an open one lets a probe through, or a probe is given up. ``opened`` counts in a row.

    ``held_us`` is until when the target asked to be left alone. It is no failure, and no success of another call lifts it.
    """

    state: str = CLOSED
    failures: int = 0
    opened: int = 0
    until_us: int = 0
    held_us: int = 0

    def waits_us(self, now_us: int) -> int:
        """Return until when nothing may go to the target; 0 where something may go now."""
        until_us = self.held_us if self.state == CLOSED else max(self.until_us, self.held_us)
        return until_us if now_us < until_us else 0

    def asked(self, now_us: int, limits: Limits) -> Breaker:
        """Return the state after a call was let through: of an open one it is the probe, and the only one."""
        assert not self.waits_us(now_us)
        if self.state == CLOSED:
            return self
        return msgspec.structs.replace(self, state=HALF_OPEN, until_us=now_us + int(limits.probe_s_max * second_us))

    def succeeded(self) -> Breaker:
        """Return the state after an answer, whatever it said: the target is there. A late answer closes an open one too."""
        return Breaker(held_us=self.held_us)

    def failed(self, now_us: int, limits: Limits) -> Breaker:
        """Return the state after no answer, or one that says that the target is not well."""
        failures = self.failures + 1
        if self.state == OPEN or (self.state == CLOSED and failures < limits.failures_max):
            return msgspec.structs.replace(self, failures=failures)
        open_s = min(limits.open_s_max, limits.open_s_first * 2.0 ** min(self.opened, 30))
        until_us = now_us + int(open_s * second_us)
        return Breaker(state=OPEN, failures=failures, opened=self.opened + 1, until_us=until_us, held_us=self.held_us)

    def throttled(self, until_us: int) -> Breaker:
        """Return the state after the target said when to come again. A probe that heard this has had its answer."""
        held = msgspec.structs.replace(self, held_us=max(self.held_us, until_us))
        return msgspec.structs.replace(held, state=OPEN, until_us=until_us) if self.state == HALF_OPEN else held


targets_max = 10_000


class Breakers:
    """A way's breakers by target. Those that are closed and clean are not kept; beyond ``targets_max`` the one unasked for longest goes."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._kept: OrderedDict[str, Breaker] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, target: str) -> Breaker:
        return self._kept.get(target) or Breaker()

    def put(self, target: str, breaker: Breaker) -> None:
        self._kept.pop(target, None)
        if breaker != Breaker():
            self._kept[target] = breaker
            while len(self._kept) > targets_max:
                self._kept.popitem(last=False)

    def open(self) -> dict[str, Breaker]:
        """Return the targets that are not closed, for people to see."""
        return {target: breaker for target, breaker in self._kept.items() if breaker.state != CLOSED}
