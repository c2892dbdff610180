"""Tables of a shard grow where they are, or by copying where the system gives no address space; both hold the same."""

from __future__ import annotations

import mmap
import random

import msgspec
import numpy as np
import pytest

from midflight.events import Event
from midflight.kit.errors import MidflightError
from midflight.kit.reserved import reserved
from midflight.stream import ordered, tables
from midflight.stream.tables import NODE
from tests.test_fold_model import START_US, Local, history


def crowd(people: int) -> list[Event]:
    """Return what many people do: enough for every table to grow several times."""
    made = [
        Event(source="s", event_id=str(n), kind="opened", occurred_at_us=START_US + n, message_id=f"m{n}", campaign="c")
        for n in range(people)
    ]
    return [msgspec.structs.replace(event, recipient=f"r{n}@x.example") for n, event in enumerate(made)]


def folded(events: list[Event]) -> Local:
    local = Local(1)
    for first in range(0, len(events), 100):
        local.apply(events[first : first + 100], START_US + 90_000_000_000)
    return local


def test_rows_in_address_space_are_zero_and_cost_no_memory() -> None:
    """A table for as many rows as there can ever be takes memory for those that were written."""
    with open("/proc/self/statm") as before:
        pages = int(before.read().split()[1])
    table = reserved(2**31 - 1, 256, NODE)
    table[1_000]["at"], table[2_000_000_000]["at"] = 5, 7
    assert (table.size, table[1_000]["at"], table[2_000_000_000]["at"], table[999]["at"]) == (2**31 - 1, 5, 7, 0)
    with open("/proc/self/statm") as after:
        assert (int(after.read().split()[1]) - pages) * mmap.PAGESIZE < 64 << 20


def test_where_the_system_gives_no_space_there_are_a_few_rows() -> None:
    """A system that refuses so much address space gets a small table, which grows by copying."""
    table = reserved(2**56, 256, NODE)
    assert table.size == 256 and not table["at"].any()


def test_tables_that_grow_by_copying_hold_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without reserved address space the same events give the same cells and the same snapshot."""
    events = crowd(3_000) + [event for seed in range(20) for event in history(random.Random(seed))]
    expected = folded(events)
    for module in (tables, ordered):
        monkeypatch.setattr(module, "reserved", lambda most, least, dtype: np.zeros(least, dtype))
    local = folded(events)
    assert local.shards[0].state.recipients.size < 10_000
    assert local.named_cells() == expected.named_cells()
    assert local.shards[0].snapshot() == expected.shards[0].snapshot()


def test_a_full_shard_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that no number could refer to are refused with what to do."""
    for module in (tables, ordered):
        monkeypatch.setattr(module, "reserved", lambda most, least, dtype: np.zeros(least, dtype))
    monkeypatch.setattr(tables, "rows_max", 1_000)
    with pytest.raises(MidflightError, match="shard is full"):
        folded(crowd(3_000))


def test_memory_that_was_made_ready_is_not_taken_later_and_changes_nothing() -> None:
    """A shard that expects its messages never moves a table; the cells are the same, also when it is told half-way."""
    events = crowd(3_000) + [event for seed in range(20) for event in history(random.Random(seed))]
    expected = folded(events)
    for told_after in (0, 1_500):
        local = Local(1)
        local.apply(events[:told_after], START_US + 90_000_000_000)
        local.shards[0].make_ready(10_000)
        ready = local.shards[0].state
        for first in range(told_after, len(events), 100):
            local.apply(events[first : first + 100], START_US + 90_000_000_000)
        state = local.shards[0].state
        assert local.named_cells() == expected.named_cells()
        assert all(getattr(state, name) is getattr(ready, name) for name in ("messages", "nodes"))
        assert all(getattr(state, name).slots == getattr(ready, name).slots for name in ("seen", "message_slots"))
        assert state.used.tolist() == expected.shards[0].state.used.tolist()


def test_a_snapshot_in_the_middle_of_a_move_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """However far the tables have moved when a shard ends, the next one knows every event, person and message."""
    events = crowd(3_000) + [event for seed in range(20) for event in history(random.Random(seed))]
    expected = folded(events)
    monkeypatch.setattr(ordered, "slots_a_row", 2)
    local, moving = Local(1), 0
    for first in range(0, len(events), 100):
        part = events[first : first + 100]
        local.apply(part, START_US + 90_000_000_000)
        moving += bool(local.shards[0].state.seen.layout[ordered.MOVED])
        local.crash()
        local.apply(part, START_US + 90_000_000_000)
    assert moving > 5
    assert local.named_cells() == expected.named_cells()
