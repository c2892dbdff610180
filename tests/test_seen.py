"""The list of seen events says the same as a dictionary, also while it is moved; a move that cuts a run in two is caught."""

from __future__ import annotations

import random

import numpy as np
import pytest

from midflight.kit.errors import MidflightError
from midflight.stream import ordered
from midflight.stream.ordered import FORMER, MOVED
from midflight.stream.seen import CONFLICT, DUPLICATE, FOLDED, seen_before, words

DAYS = 35


class Seen:
    """A list of seen events that grows as a shard's does."""

    def __init__(self) -> None:
        self.table = ordered.new_table(words)
        self.used = np.zeros(1, np.int64)

    def add(self, keys: list[int], contents: list[int], day: int) -> list[int]:
        self.table, self.used[0] = ordered.with_room(self.table, int(self.used[0]), len(keys), day - DAYS)
        found = np.empty(len(keys), np.uint8)
        hi = np.array(keys, np.uint64)
        zero = np.zeros(len(keys), np.uint64)
        content, days = np.array(contents, np.uint64), np.full(len(keys), day, np.uint16)
        seen_before(self.table, self.used, hi, zero, content, zero, days, DAYS, found)
        return found.tolist()

    def taken(self) -> int:
        return int(self.table.filled.any(axis=1).sum())


class Model:
    """What is said of an event, by a dictionary."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[int, int]] = {}

    def add(self, keys: list[int], contents: list[int], day: int) -> list[int]:
        said = []
        for key, content in zip(keys, contents, strict=True):
            then, before = self.known.get(key, (-1_000, 0))
            if day - then > DAYS:
                self.known[key] = day, content
                said.append(FOLDED)
            else:
                said.append(DUPLICATE if before == content else CONFLICT)
        return said

    def young(self, day: int) -> int:
        return sum(day - then <= DAYS for then, _ in self.known.values())


def keys_of(rng: random.Random, spread: int) -> int:
    """A key; with a small spread many have neighbouring places, so that runs of taken slots are long."""
    return rng.randrange(spread) * (2**64 // spread) + rng.randrange(1, 2**20)


def compared(seed: int, batches: int = 300) -> set[str]:
    """Play a random history to the list and to the model; return what there was to see."""
    rng = random.Random(seed)
    seen, model, known, day, shown = Seen(), Model(), [1], 19_000, set()
    spread, rows_max = rng.choice([50, 1_000, 2**30]), rng.choice([3, 30, 300])
    for _ in range(batches):
        rows = rng.randrange(1, rows_max + 1)
        keys = [keys_of(rng, spread) if rng.random() < 0.8 else rng.choice(known) for _ in range(rows)]
        contents = [rng.randrange(2) for _ in keys]
        known += keys
        said = seen.add(keys, contents, day)
        assert said == model.add(keys, contents, day), f"seed {seed}"
        slots, layout = seen.table.slots, seen.table.layout
        shown |= {("new", "duplicate", "conflict")[result] for result in said}
        if layout[MOVED]:
            shown.add("growing" if layout[FORMER] < slots else "swept")
        assert seen.taken() == seen.used[0]
        assert model.young(day) <= seen.used[0] <= 0.83 * slots
        day += rng.choice([0, 0, 0, 1, 3]) if rng.random() < 0.98 else 40
    seen.used[0] -= ordered.move(seen.table, ordered.slots_max, day - DAYS)
    assert seen.table.layout.tolist() == [seen.table.slots, seen.table.slots, 0]
    everything = list(model.known)
    assert seen.add(everything, [0] * len(everything), day) == model.add(everything, [0] * len(everything), day)
    return shown


@pytest.mark.parametrize("chunk", [16, 1 << 15])
def test_it_says_what_a_dictionary_says(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the batches, the ages and the crowding, and at every stage of a move."""
    monkeypatch.setattr(ordered, "chunk", chunk)
    shown = set().union(*(compared(seed) for seed in range(40)))
    assert shown == {"new", "duplicate", "conflict", "growing", "swept"}


def test_a_move_that_cuts_a_run_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: parts that are cut anywhere leave entries where no search comes by."""
    monkeypatch.setattr(ordered, "chunk", 16)
    monkeypatch.setattr(ordered, "_run", lambda entries, start, end: (start, end))
    with pytest.raises(AssertionError):
        for seed in range(40):
            compared(seed)


def test_a_batch_moves_no_more_than_its_share() -> None:
    """However long the list, a batch waits for a part of it only; and the move ends before the list is full."""
    rng = np.random.default_rng(1)
    seen, rows = Seen(), 2_000
    seen.add(rng.integers(1, 2**64, 200_000, np.uint64).tolist(), [0] * 200_000, 19_000)
    moves, before = 0, seen.table.layout.copy()
    for _ in range(400):
        seen.add(rng.integers(1, 2**64, rows, np.uint64).tolist(), [0] * rows, 19_000)
        after = seen.table.layout.copy()
        if before[MOVED]:
            former = int(before[FORMER])
            there = int(after[MOVED]) if after[MOVED] and after[FORMER] == before[FORMER] else 0
            moved = (int(before[MOVED]) - there) * former >> 32
            assert moved <= rows * ordered.slots_a_row * 1.01
            moves += 1
        before = after
    assert moves > 10
    assert seen.used[0] == 1_000_000


def test_memory_goes_back_when_nearly_all_is_too_old() -> None:
    """A list of which little is still needed becomes a small one."""
    seen = Seen()
    rng = np.random.default_rng(2)
    seen.add(rng.integers(1, 2**64, 700_000, np.uint64).tolist(), [0] * 700_000, 19_000)
    slots, day = seen.table.slots, 19_000 + DAYS + 1
    for _ in range(8):
        keys = rng.integers(1, 2**64, 50_000, np.uint64).tolist()
        assert set(seen.add(keys, [0] * 50_000, day)) == {FOLDED}
    assert seen.table.slots < slots / 2
    assert seen.used[0] == 400_000


def test_more_events_than_places_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that may not grow further says what to do."""
    monkeypatch.setattr(ordered, "slots_max", 50_000)
    seen = Seen()
    with pytest.raises(MidflightError, match="Raise `shards`"):
        for first in range(1, 100_000, 1_000):
            seen.add([key << 40 for key in range(first, first + 1_000)], [0] * 1_000, 19_000)
