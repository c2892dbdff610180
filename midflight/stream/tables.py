"""The arrays that a shard's state is made of, and the hash tables that find rows in them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from .hashing import mix
from .measures import MEASURES

measures_count = len(MEASURES)
NIL = -1


class Recipients(NamedTuple):
    """One row per recipient; `slots` finds the row of a key."""

    slots: np.ndarray  # int32 [power of two], row or NIL
    key: np.ndarray  # uint64
    segment: np.ndarray  # uint64, one byte per attribute
    provider: np.ndarray  # uint16
    messages: np.ndarray  # int32, first message or NIL
    conversions: np.ndarray  # int32, first conversion or NIL
    traits: np.ndarray  # int32, first trait or NIL


class Messages(NamedTuple):
    """One row per message: an email to one recipient."""

    slots: np.ndarray
    key: np.ndarray  # uint64 of source and message id
    recipient: np.ndarray  # int32
    next: np.ndarray  # int32, the recipient's next message
    nodes: np.ndarray  # int32, latest node or NIL
    campaign: np.ndarray  # uint32
    variant: np.ndarray  # uint16
    wave: np.ndarray  # uint16
    source: np.ndarray  # uint16


class Nodes(NamedTuple):
    """What happened to a message: a list per message, latest first. `what` is a measure, or OPEN or CLICK."""

    at: np.ndarray  # int64 us
    next: np.ndarray  # int32
    url: np.ndarray  # uint32 hash
    what: np.ndarray  # uint8
    base: np.ndarray  # uint8, agent by flag, user agent or network; SURE set where timing cannot overrule
    agent: np.ndarray  # uint8, the verdict


class Conversions(NamedTuple):
    """Conversions of a recipient, latest first."""

    at: np.ndarray  # int64 us
    next: np.ndarray  # int32
    id: np.ndarray  # uint64
    order: np.ndarray  # uint64, 0 where there is no order id
    value: np.ndarray  # int64 micros
    source: np.ndarray  # uint16


class Traits(NamedTuple):
    """The latest value of each attribute that a recipient was identified with."""

    at: np.ndarray  # int64 us
    next: np.ndarray  # int32
    attribute: np.ndarray  # uint8
    value: np.ndarray  # uint8


class State(NamedTuple):
    seen: np.ndarray  # uint64 [power of two, 2]: 64 bits of the event key; 32 more bits, 16 of content, 16 of day; 0, 0 is free
    recipients: Recipients
    messages: Messages
    nodes: Nodes
    conversions: Conversions
    traits: Traits
    used: np.ndarray  # int64 [6]: rows in use of seen, recipients, messages, nodes, conversions, traits


class Cells(NamedTuple):
    """Cell changes under construction: rows in order of first touch, found by a hash of their key."""

    slots: np.ndarray  # int32
    key: np.ndarray  # uint64 [n, 3]: campaign | minute, variant | wave | provider | source, segment
    value: np.ndarray  # int64 [n, measures]
    delay_slots: np.ndarray
    delay_key: np.ndarray  # uint64 [n, 4]: as above and kind | bucket
    delay_n: np.ndarray  # int64
    touched: np.ndarray  # int32, messages whose first human click or conversion may have changed
    used: np.ndarray  # int64 [3]: cells, delays, touched


SEEN, RECIPIENTS, MESSAGES, NODES, CONVERSIONS, TRAITS = range(6)


def empty(kind: type, capacity: int):
    """Return a NamedTuple of arrays with room for `capacity` rows and, where it has slots, a table twice as large."""
    dtypes = _DTYPES[kind]
    arrays = {}
    for name in kind._fields:
        if name.endswith("slots"):
            arrays[name] = np.full(slots_for(capacity), NIL, np.int32)
        else:
            arrays[name] = np.zeros(capacity, dtypes[name])
    return kind(**arrays)


def slots_for(rows: int) -> int:
    """Return the table size for that many rows: a power of two at most 2/3 full."""
    return 1 << max(6, int(np.ceil(np.log2(max(rows, 1) * 1.5))))


_DTYPES = {
    Recipients: dict(key=np.uint64, segment=np.uint64, provider=np.uint16, messages=np.int32, conversions=np.int32, traits=np.int32),
    Messages: dict(
        key=np.uint64, recipient=np.int32, next=np.int32, nodes=np.int32, campaign=np.uint32, variant=np.uint16, wave=np.uint16,
        source=np.uint16,
    ),
    Nodes: dict(at=np.int64, next=np.int32, url=np.uint32, what=np.uint8, base=np.uint8, agent=np.uint8),
    Conversions: dict(at=np.int64, next=np.int32, id=np.uint64, order=np.uint64, value=np.int64, source=np.uint16),
    Traits: dict(at=np.int64, next=np.int32, attribute=np.uint8, value=np.uint8),
}  # fmt: skip


def new_state() -> State:
    return State(
        seen=np.zeros((1024, 2), np.uint64),
        recipients=empty(Recipients, 256),
        messages=empty(Messages, 256),
        nodes=empty(Nodes, 512),
        conversions=empty(Conversions, 64),
        traits=empty(Traits, 64),
        used=np.zeros(6, np.int64),
    )


def new_cells(capacity: int = 1024) -> Cells:
    return Cells(
        slots=np.full(capacity * 2, NIL, np.int32),
        key=np.zeros((capacity, 3), np.uint64),
        value=np.zeros((capacity, measures_count), np.int64),
        delay_slots=np.full(capacity * 2, NIL, np.int32),
        delay_key=np.zeros((capacity, 4), np.uint64),
        delay_n=np.zeros(capacity, np.int64),
        touched=np.empty(capacity, np.int32),
        used=np.zeros(3, np.int64),
    )


def grown(cells: Cells) -> Cells:
    """Return the same cells with twice the room."""
    size, n, delays, touched = cells.key.shape[0] * 2, *cells.used.tolist()
    out = new_cells(size)
    out.key[:n], out.value[:n] = cells.key[:n], cells.value[:n]
    out.delay_key[:delays], out.delay_n[:delays] = cells.delay_key[:delays], cells.delay_n[:delays]
    out.touched[:touched] = cells.touched[:touched]
    out.used[:] = cells.used
    _reindex_cells(out.slots, out.key, n, out.delay_slots, out.delay_key, delays)
    return out


@njit(inline="always")
def key_hash(k0, k1, k2):
    h = k0 * np.uint64(0x9E3779B97F4A7C15) ^ k1 * np.uint64(0xC2B2AE3D27D4EB4F) ^ k2 * np.uint64(0x165667B19E3779F9)
    return h ^ (h >> np.uint64(29))


@njit(cache=True)
def _reindex_cells(slots, key, n, delay_slots, delay_key, delays):
    mask = np.uint64(slots.size - 1)
    for row in range(n):
        at = key_hash(key[row, 0], key[row, 1], key[row, 2]) & mask
        while slots[at] != NIL:
            at = (at + np.uint64(1)) & mask
        slots[at] = row
    for row in range(delays):
        k = delay_key[row]
        at = (key_hash(k[0], k[1], k[2]) + k[3] * np.uint64(0x9E3779B97F4A7C15)) & mask
        while delay_slots[at] != NIL:
            at = (at + np.uint64(1)) & mask
        delay_slots[at] = row


def sized(state: State, used: np.ndarray) -> State:
    """Return a state whose tables have room for the rows that `used` counts, and count them as used."""
    kinds = (Recipients, Messages, Nodes, Conversions, Traits)
    return State(state.seen, *(empty(kind, max(int(n), 64)) for kind, n in zip(kinds, used[1:], strict=True)), used)


def reindex(state: State) -> None:
    """Fill the hash tables anew from the columns."""
    _reindex(state.recipients.slots, state.recipients.key, int(state.used[RECIPIENTS]))
    _reindex_messages(state.messages.slots, state.messages.key, state.messages.recipient, int(state.used[MESSAGES]))


# -- growing ------------------------------------------------------------------------------------------------------------


def with_room(state: State, rows: int, traits: int, dedup_days: int, today: int) -> State:
    """Return a state in which a batch of that many rows fits whatever it holds."""
    used = state.used
    seen = state.seen
    if (used[SEEN] + rows) * 3 > seen.shape[0] * 2:
        seen = _regrow_seen(seen, used, rows, dedup_days, today)
    return state._replace(
        seen=seen,
        recipients=_with_room(state.recipients, used[RECIPIENTS], rows),
        messages=_with_room(state.messages, used[MESSAGES], rows),
        nodes=_with_room(state.nodes, used[NODES], rows),
        conversions=_with_room(state.conversions, used[CONVERSIONS], rows),
        traits=_with_room(state.traits, used[TRAITS], traits),
    )


def _with_room(table, used: int, rows: int):
    capacity = table.key.size if hasattr(table, "key") else table.at.size
    if used + rows <= capacity:
        return table
    # By half, in place where the allocator can (realloc): memory stays close to what is used, and large blocks move for free.
    capacity = max(used + rows, capacity + capacity // 2)
    arrays = {}
    for name, array in zip(table._fields, table, strict=True):
        if name == "slots":
            continue
        grown = np.zeros(capacity, array.dtype)
        grown[:used] = array[:used]
        arrays[name] = grown
    if hasattr(table, "slots"):
        size = slots_for(capacity)
        slots = table.slots
        if size != slots.size:
            slots = np.full(size, NIL, np.int32)
            if hasattr(table, "recipient"):
                _reindex_messages(slots, arrays["key"], arrays["recipient"], used)
            else:
                _reindex(slots, arrays["key"], used)
        arrays["slots"] = slots
    return type(table)(**arrays)


def _regrow_seen(seen: np.ndarray, used: np.ndarray, rows: int, dedup_days: int, today: int) -> np.ndarray:
    """Forget what is older than the window, and double only if that does not make room."""
    keep = int(_count_kept(seen, dedup_days, today))
    size = seen.shape[0]
    while (keep + rows) * 3 > size * 2 or keep * 2 > size:
        size *= 2
    grown = np.zeros((size, 2), np.uint64)
    _move_seen(seen, grown, dedup_days, today)
    used[SEEN] = keep
    return grown


@njit(cache=True)
def _count_kept(seen, dedup_days, today):
    kept = 0
    for i in range(seen.shape[0]):
        if seen[i, 0] != 0 or seen[i, 1] != 0:
            if today - np.int64(seen[i, 1] & np.uint64(0xFFFF)) <= dedup_days:
                kept += 1
    return kept


@njit(cache=True)
def _move_seen(seen, grown, dedup_days, today):
    mask = np.uint64(grown.shape[0] - 1)
    for i in range(seen.shape[0]):
        if seen[i, 0] != 0 or seen[i, 1] != 0:
            if today - np.int64(seen[i, 1] & np.uint64(0xFFFF)) <= dedup_days:
                at = seen[i, 0] & mask
                while grown[at, 0] != 0 or grown[at, 1] != 0:
                    at = (at + np.uint64(1)) & mask
                grown[at, 0] = seen[i, 0]
                grown[at, 1] = seen[i, 1]


@njit(cache=True)
def _reindex(slots, key, used):
    mask = np.uint64(slots.size - 1)
    for row in range(used):
        at = key[row] & mask
        while slots[at] != NIL:
            at = (at + np.uint64(1)) & mask
        slots[at] = row


@njit(inline="always")
def message_slot(key, recipient_key_row):
    return mix(key ^ (np.uint64(recipient_key_row) * np.uint64(0x9E3779B97F4A7C15)))


@njit(cache=True)
def _reindex_messages(slots, key, recipient, used):
    mask = np.uint64(slots.size - 1)
    for row in range(used):
        at = message_slot(key[row], recipient[row]) & mask
        while slots[at] != NIL:
            at = (at + np.uint64(1)) & mask
        slots[at] = row
