"""What rules about numbers look at: for each a few sums by minute, kept while the log goes by. Pure.

They are looked at when a minute of the log is over, with all that was read before: so batches, restarts and ticks change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np

from ..metrics import Sums
from ..stream.measures import MEASURE
from ..stream.providers import PROVIDERS
from .triggers import AboutNumbers

MINUTE_US = 60_000_000
_MASK32, _MASK16 = np.uint64(0xFFFFFFFF), np.uint64(0xFFFF)


class Fired(NamedTuple):
    """A rule about numbers has fired: its name and version, when, what names the cause, and for whose members ("": for nobody's)."""

    rule: str
    version: int
    at_us: int
    cause: int
    segment: str


class State(msgspec.Struct, kw_only=True):
    """What is kept for one rule: sums by the minute in which things happened, the sums of all minutes before those, and whether what the
    rule waits for was so when it was looked at last."""

    version: int
    since: int  # the minute of the log at which the rule began
    minutes: dict[int, list[int]] = {}
    before: list[int] = []
    so: bool = False


class _Gauge:
    def __init__(self, trigger: AboutNumbers, state: State, campaign: int) -> None:
        self.trigger, self.state, self.campaign = trigger, state, campaign
        counted = trigger.counted()
        self.columns = [MEASURE[name] for name in counted.measures]
        self.measures = counted.measures
        self.minutes = counted.minutes
        self.provider = PROVIDERS.index(counted.provider) if counted.provider else -1

    def add(self, key: np.ndarray, value: np.ndarray, minute: int) -> None:
        """Take in changes of cells. What happened before the window is added to what was before."""
        mine = np.ones(key.shape[0], np.bool_)
        if self.campaign:
            mine &= key[:, 0] >> np.uint64(32) == self.campaign
        if self.provider >= 0:
            mine &= key[:, 1] >> np.uint64(16) & _MASK16 == self.provider
        if not mine.any():
            return
        when = (key[mine, 0] & _MASK32).astype(np.int64)
        sums = value[mine][:, self.columns]
        state = self.state
        for one in np.unique(when).tolist():
            more = sums[when == one].sum(axis=0).tolist()
            if one < minute - self.minutes:
                state.before = _sum(state.before, more)
            else:
                state.minutes[one] = _sum(state.minutes.get(one, []), more)

    def look(self, minute: int) -> bool:
        """Look at the window that ends with a minute's beginning; return whether what the rule waits for has just come to be so."""
        state, window = self.state, []
        for one in sorted(state.minutes):
            if one < minute - self.minutes:
                state.before = _sum(state.before, state.minutes.pop(one))
            elif one < minute:
                window = _sum(window, state.minutes[one])
        whole = minute - state.since >= self.minutes
        so = self.trigger.is_so(self._named(window), self._named(state.before), whole)
        begins = bool(so) and not state.so
        state.so = state.so if so is None else so
        return begins

    def _named(self, sums: list[int]) -> Sums:
        return Sums(measures=dict(zip(self.measures, sums or [0] * len(self.measures), strict=True)))


class Gauges:
    """The rules about numbers that are in force. ``add`` takes changes of cells, ``turn`` lets minutes pass."""

    def __init__(self) -> None:
        self.minute = 0  # of the log
        self.states: dict[str, State] = {}
        self._gauges: dict[str, _Gauge] = {}
        self._triggers: dict[str, AboutNumbers] = {}

    def __bool__(self) -> bool:
        return bool(self._triggers)

    def ask(self, rules: dict[str, tuple[int, AboutNumbers]], number: Callable[[str, str], int]) -> None:
        """Look at these from now on, by name with their versions. The same one goes on; what is new begins with this minute."""
        self._triggers = {name: trigger for name, (_, trigger) in rules.items()}
        known = self.states
        self.states = {
            name: known[name] if name in known and known[name].version == version else State(version=version, since=self.minute)
            for name, (version, _) in rules.items()
        }
        self._gauges = {
            name: _Gauge(trigger, self.states[name], number("campaign", counted.campaign) if counted.campaign else 0)
            for name, trigger in self._triggers.items()
            if (counted := trigger.counted()) is not None
        }

    def add(self, key: np.ndarray, value: np.ndarray) -> None:
        """Take in changes of cells: packed keys [n, 3] and what to add to each measure [n, measures]."""
        if key.shape[0]:
            for gauge in self._gauges.values():
                gauge.add(key, value, self.minute)

    def turn(self, at_us: int) -> list[Fired]:
        """Let log time pass; return what fired with the minute that has begun, in the order of the rules. Where nobody wrote into the log
        for long, the minutes in between were looked at by nobody, and are passed over."""
        minute, before = at_us // MINUTE_US, self.minute
        if minute <= before:
            return []
        self.minute = minute
        fired = []
        for name, trigger in self._triggers.items():
            state = self.states[name]
            if name in self._gauges:
                if self._gauges[name].look(minute):
                    fired.append(Fired(name, state.version, minute * MINUTE_US, minute, ""))
            elif before and (due_us := trigger.due_us(max(before, state.since) * MINUTE_US, minute * MINUTE_US)):
                fired.append(Fired(name, state.version, due_us, due_us, "".join(trigger.segments())))
        return fired

    def snapshot(self) -> dict:
        return {"minute": self.minute, "states": msgspec.to_builtins(self.states, str_keys=True)}

    def load(self, state: dict) -> None:
        """Take over what `snapshot` gave; `ask` has to follow."""
        self.minute = state["minute"]
        self.states = msgspec.convert(state["states"], dict[str, State], strict=False)


def _sum(one: list[int], other: list[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)] if one else list(other)
