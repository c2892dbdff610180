"""Which events have been here before."""

from __future__ import annotations

import numpy as np
from numba import njit

from ..kit.compiled import entry
from .hashing import ahead, prefetch
from .ordered import following, place

# What a row turned out to be.
FOLDED, DUPLICATE, CONFLICT = 0, 1, 2

# An entry: 64 bits of the event key; 32 more bits, 16 of content, 16 of the day.
words = 2
_UPPER = np.uint64(0xFFFFFFFF00000000)
_CONTENT = np.uint64(0xFFFF0000)
_DAY = np.uint64(0xFFFF)


@njit(inline="always")
def _event_key(id_hi, rcpt):
    """The recipient is part of the key: a fanned-out event is one event per recipient, and all copies meet in one shard."""
    key = id_hi ^ (rcpt * np.uint64(0x9E3779B97F4A7C15))
    return key if key != 0 else np.uint64(1)


@entry
def seen_before(seen, used, id_hi, id_lo, content, rcpt, day, dedup_days, result):
    """Set result[i] to FOLDED for a new event, DUPLICATE for a known one, CONFLICT for a known id with other content.

    ``used[0]`` counts the entries of ``seen``.
    """
    entries, layout = seen.entries, seen.layout
    for i in range(id_hi.size):
        later = min(i + ahead, id_hi.size - 1)
        prefetch(entries, np.int64(np.uint64(words) * place(_event_key(id_hi[later], rcpt[later]), layout)))
        key = _event_key(id_hi[i], rcpt[i])
        tail = id_lo[i] & _UPPER
        body = (content[i] << np.uint64(16)) & _CONTENT
        today = np.int64(day[i])
        at = place(key, layout)
        result[i] = FOLDED
        while True:
            if entries[at, 0] == 0:
                entries[at, 0] = key
                entries[at, 1] = tail | body | np.uint64(today)
                used[0] += 1
                break
            if entries[at, 0] == key and entries[at, 1] & _UPPER == tail:
                if today - np.int64(entries[at, 1] & _DAY) > dedup_days:
                    entries[at, 1] = tail | body | np.uint64(today)
                elif entries[at, 1] & _CONTENT == body:
                    result[i] = DUPLICATE
                else:
                    result[i] = CONFLICT
                break
            at = following(at, layout)
