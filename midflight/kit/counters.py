"""Counters about ourselves (not about campaigns): plain integers with a name that ends in `_total`."""

from __future__ import annotations

from collections import Counter


class Counters:
    """Named counts with at most one label each; cheap enough for the hot path."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, label: str = "", count: int = 1) -> None:
        self._counts[(name, label)] += count

    def get(self, name: str, label: str = "") -> int:
        return self._counts[(name, label)]

    def snapshot(self) -> dict[str, dict[str, int]]:
        """Return ``{name: {label: count}}``; a count without label has the label ``""``."""
        out: dict[str, dict[str, int]] = {}
        for (name, label), count in sorted(self._counts.items()):
            out.setdefault(name, {})[label] = count
        return out
