"""A hash table in the order of its keys, which grows where it lies, a little with each batch.

Each entry lies at the place that its key has among all possible ones, or soon after. So a table with more places is filled from its end to
its beginning within the same memory: what has moved is always behind what has not. A batch moves no more than some multiple of its own
rows; a table of a hundred million entries is never rebuilt while events wait.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ..kit.compiled import entry
from ..kit.errors import MidflightError
from ..kit.reserved import reserved

every_key = 1 << 32
slots_min, slots_max = 1024, every_key - 1
beyond = 4096  # slots behind the last one, for what finds its place taken there
chunk = 1 << 13  # slots that are moved at once: their entries fit the processor's cache
# A batch moves so many slots for each of its rows. What comes while a table is moved fills it by another sixteenth at most.
slots_a_row = 16
sample = 1 << 20
SLOTS, FORMER, MOVED = range(3)


class Table(NamedTuple):
    """Entries of one or two words. The upper half of the first word is the key; the first word of a free slot is 0.

    The second word, where there is one, ends with the entry's day: entries of days that are past are left out when they are moved.
    """

    entries: np.ndarray  # uint64 [n, words]
    layout: np.ndarray  # uint64 [3]: slots; slots before it grew; the first key that lies where it belongs now (0: all do)

    @property
    def slots(self) -> int:
        return int(self.layout[SLOTS])

    @property
    def filled(self) -> np.ndarray:
        """The part that can have entries."""
        return self.entries[: self.slots + beyond]


def new_table(words: int, slots: int = slots_min) -> Table:
    """Return an empty table of so many slots."""
    slots = max(slots_min, slots)
    entries = reserved((slots_max + beyond) * words, (slots + beyond) * words, np.dtype("u8")).reshape(-1, words)
    return Table(entries, np.array([slots, slots, 0], np.uint64))


def with_room(table: Table, taken: int, rows: int, oldest_day: int = 0) -> tuple[Table, int]:
    """Return a table with room for so many more rows, nearly always the same one, and how many of the taken slots are taken now."""
    taken -= move(table, rows * slots_a_row, oldest_day)
    slots = table.slots
    if table.layout[MOVED] or (taken + rows) * 10 <= slots * 7:
        return table, taken
    # Keys are hashes, so a part of the table is like the whole.
    part = min(sample, slots)
    keep = int(_count_kept(table.entries[:part], oldest_day)) * slots // part + rows
    if keep * 4 < slots:
        smaller = new_table(table.entries.shape[1], keep * 2)
        return smaller, taken - _put(*smaller, table.filled, oldest_day)
    table = _begun(table, max(slots, keep * 2))
    return table, taken - move(table, rows * slots_a_row, oldest_day)


def with_slots(table: Table, taken: int, slots: int, oldest_day: int = 0) -> tuple[Table, int]:
    """Return a table of at least so many slots, with all entries where they belong, and how many slots are taken."""
    taken -= move(table, slots_max, oldest_day)
    if slots > table.slots:
        table = _begun(table, slots)
        taken -= move(table, slots_max, oldest_day)
    return table, taken


def _begun(table: Table, slots: int) -> Table:
    """Let a table have so many slots from now on, not fewer than it has; `move` does the rest."""
    if slots > slots_max:
        raise MidflightError(
            "A shard is full",
            expected=f"at most {slots_max:,} places in a table",
            got=f"{slots:,}",
            todo="Raise `shards` in the settings",
        )
    former = table.slots
    if slots + beyond > table.entries.shape[0]:
        # The system gave no address space to grow in.
        grown = np.zeros((slots + beyond, table.entries.shape[1]), np.uint64)
        grown[: former + beyond] = table.filled
        table = table._replace(entries=grown)
    table.layout[:] = np.array([slots, former, every_key], np.uint64)
    return table


def move(table: Table, slots: int, oldest_day: int = 0) -> int:
    """Move what lies in about that many slots of a table that has grown to where it belongs; return how many were too old to keep."""
    entries, layout = table
    gone = 0
    while slots > 0 and layout[MOVED]:
        former = int(layout[FORMER])
        end = int(layout[MOVED]) * former >> 32
        start = max(0, end - min(chunk, slots))
        slots -= end - start
        # Whole runs of taken slots, so that nothing is cut off from the place where a search for it begins.
        start, end = _run(entries, start, end)
        part = entries[start:end].copy()
        entries[start:end] = 0
        layout[MOVED] = -(-start * every_key // former)
        gone += _put(entries, layout, part, oldest_day)
        if start == 0:
            layout[FORMER] = layout[SLOTS]
    return gone


@njit(inline="always")
def place(word, layout):
    """Return where the search for an entry with this first word begins: the higher the key, the higher."""
    key = word >> np.uint64(32)
    return key * (layout[0] if key >= layout[2] else layout[1]) >> np.uint64(32)


@njit(inline="always")
def following(at, layout):
    """Return where it goes on."""
    return at + np.uint64(1) if at < layout[0] + np.uint64(beyond - 1) else np.uint64(0)


@entry
def _count_kept(entries, oldest_day):
    kept = 0
    for i in range(entries.shape[0]):
        if entries[i, 0] != 0:
            kept += entries.shape[1] == 1 or np.int64(entries[i, 1] & np.uint64(0xFFFF)) >= oldest_day
    return kept


@entry
def _run(entries, start, end):
    """Return start and end, moved apart until a free slot is before the first and behind the last."""
    while start > 0 and entries[start - 1, 0] != 0:
        start -= 1
    while end < entries.shape[0] and entries[end, 0] != 0:
        end += 1
    return start, end


@entry
def _put(entries, layout, part, oldest_day):
    """Put entries into a table, but for those that are too old; return how many were."""
    gone = 0
    words = part.shape[1]
    for i in range(part.shape[0]):
        if part[i, 0] == 0:
            continue
        if words == 2 and np.int64(part[i, 1] & np.uint64(0xFFFF)) < oldest_day:
            gone += 1
            continue
        at = place(part[i, 0], layout)
        while entries[at, 0] != 0:
            at = following(at, layout)
        for word in range(words):
            entries[at, word] = part[i, word]
    return gone
