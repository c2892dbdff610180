"""Ids of names, given in log order: what a cell's key holds instead of text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from .hashing import hash_text
from .interning import HashIds

campaigns_max = 1_000_000
names_max = 60_000  # variants, waves, sources: 16 bits in a cell's key
attribute_values_max = 254
name_chars_max = 200
OTHER = "(other)"


class Names:
    """Numbers of names by kind; 0 is the unknown one. ``new`` collects what the store has not been told yet."""

    def __init__(self) -> None:
        self.ids: dict[str, dict[str, int]] = defaultdict(lambda: {"": 0})
        self.new: list[tuple[str, int, str]] = []
        self._by_hash: dict[str, HashIds] = {}

    def load(self, kind: str, number: int, name: str) -> None:
        """Take over what the store knows."""
        self.ids[kind][name] = number

    def id(self, kind: str, name: str) -> int:
        """Return the number of a name, a new one if it is new; beyond the kind's maximum all new names are one, OTHER."""
        known = self.ids[kind]
        name = name[:name_chars_max]
        found = known.get(name)
        if found is None:
            # One place is left for OTHER.
            if len(known) >= room_for(kind) and name != OTHER:
                return self.id(kind, OTHER)
            found = known[name] = len(known)
            self.new.append((kind, found, name))
        return found

    def column(self, kind: str, hashes: np.ndarray, text_of: Callable[[int], str]) -> np.ndarray:
        """Return the numbers of names given by hash; ``text_of(row)`` is asked for those that are new here."""
        table = self._by_hash.get(kind)
        if table is None:
            table = self._by_hash[kind] = HashIds(room_for(kind) * 2)
            for name, number in self.ids[kind].items():
                if name:
                    table.add(hash_text(name)[0], number)
        return table.column(hashes, lambda row: self.id(kind, text_of(row)))


def room_for(kind: str) -> int:
    if kind == "campaign":
        return campaigns_max
    return attribute_values_max if kind.startswith("attribute:") else names_max
