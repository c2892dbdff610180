"""Hashes of names to small numbers, many at once: a table in arrays, asked in compiled code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..kit.compiled import entry


class HashIds:
    """Numbers by 64-bit hash of a text. The empty text (hash 0) is 0. Not more than ``entries_max`` are kept."""

    def __init__(self, entries_max: int) -> None:
        self.entries_max = entries_max
        self.used = 0
        self.key = np.zeros(64, np.uint64)
        self.number = np.zeros(64, np.int64)

    def column(self, hashes: np.ndarray, number_of: Callable[[int], int]) -> np.ndarray:
        """Return the number of each hash. ``number_of(row)`` is asked, in order of rows, about the first of each unknown one."""
        out = np.empty(hashes.size, np.int64)
        unknown = np.empty(hashes.size, np.int64)
        count = _look_up(self.key, self.number, hashes, out, unknown)
        found: dict[int, int] = {}
        for row in unknown[:count].tolist():
            key = int(hashes[row])
            if key not in found:
                found[key] = number_of(row)
                self.add(key, found[key])
            out[row] = found[key]
        return out

    def add(self, key: int, number: int) -> None:
        """Remember a number, unless there are too many already: then it is asked for again each time."""
        if self.used >= self.entries_max:
            return
        if (self.used + 1) * 2 > self.key.size:
            key_then, number_then = self.key, self.number
            self.key = np.zeros(key_then.size * 2, np.uint64)
            self.number = np.zeros(key_then.size * 2, np.int64)
            for place in np.flatnonzero(key_then):
                _insert(self.key, self.number, key_then[place], number_then[place])
        _insert(self.key, self.number, np.uint64(key), number)
        self.used += 1

    def clear(self) -> None:
        self.key[:] = 0
        self.used = 0


@entry
def _look_up(key, number, hashes, out, unknown):
    mask = np.uint64(key.size - 1)
    count = 0
    for row in range(hashes.size):
        wanted = hashes[row]
        out[row] = 0
        if wanted == 0:
            continue
        at = wanted & mask
        while key[at] != 0 and key[at] != wanted:
            at = (at + np.uint64(1)) & mask
        if key[at] == wanted:
            out[row] = number[at]
        else:
            unknown[count] = row
            count += 1
    return count


@entry
def _insert(key, number, wanted, value):
    mask = np.uint64(key.size - 1)
    at = wanted & mask
    while key[at] != 0 and key[at] != wanted:
        at = (at + np.uint64(1)) & mask
    key[at] = wanted
    number[at] = value
