"""Keeps what a page computed from many cells: for as long as it is still true, or for twice as long as it took to compute."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

from ...kit.clock import Clock

entries_max = 64
share_of_time = 2  # a page that takes a second to make is made at most every three seconds, however many look at it


class Made(NamedTuple):
    """One result: what it was made from, when it was ready, and how long it took."""

    state: object
    ready_s: float
    took_s: float
    result: dict


class Kept:
    """The last results by key; the one not asked for the longest goes first. One at a time is made for each key."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Made] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, state: object, make: Callable[[], dict]) -> dict:
        """Return what was made for this key from this state, or make it."""
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            made = self._fresh(key, state)
            if made is None:
                before = self.clock.monotonic_s()
                result = make()
                now = self.clock.monotonic_s()
                made = Made(state, now, now - before, result)
                with self._lock:
                    self._kept[key] = made
                    self._kept.move_to_end(key)
                    if len(self._kept) > entries_max:
                        self._making.pop(self._kept.popitem(last=False)[0], None)
            return made.result

    def _fresh(self, key: Hashable, state: object) -> Made | None:
        with self._lock:
            made = self._kept.get(key)
            if made is None:
                return None
            self._kept.move_to_end(key)
        if made.state == state or self.clock.monotonic_s() - made.ready_s < share_of_time * made.took_s:
            return made
        return None
