"""Keeps what a page computed from many cells for as long as the campaign's own sums stay the same."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

entries_max = 64


class Kept:
    """The last results by key; the one not asked for the longest goes first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, dict] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], dict]) -> dict:
        """Return what was made for this key, or make it."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            self._kept[key] = made
            if len(self._kept) > entries_max:
                self._kept.popitem(last=False)
        return made
