"""How fast messages may go: so many a second or a minute, evenly, with no more at once than a second's worth."""

from __future__ import annotations


class Pace:
    """A bucket that fills by ``per_s`` tokens a second. ``take`` gives whole ones; 0 ``per_s`` has no bound."""

    def __init__(self, per_s: float, now_s: float) -> None:
        self.per_s = per_s
        self._most = max(1.0, per_s)
        self._there = 1.0 if per_s < 1.0 else per_s / 10
        self._at_s = now_s

    def ready(self, now_s: float, wanted: int) -> int:
        """Return how many of ``wanted`` may go now; none of them is taken."""
        if not self.per_s:
            return wanted
        self._there = min(self._most, self._there + max(0.0, now_s - self._at_s) * self.per_s)
        self._at_s = now_s
        return min(wanted, int(self._there))

    def took(self, count: int) -> None:
        """Take out what goes; more than `ready` said has to be made up for."""
        if self.per_s:
            self._there -= count
