"""The arrays that a shard's state is made of, and the hash tables that find rows in them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ..kit.compiled import entry
from ..kit.errors import MidflightError
from ..kit.reserved import reserved, touch
from .hashing import ahead, mix, prefetch
from .measures import MEASURES
from .ordered import Table, following, new_table, place, with_slots
from .ordered import with_room as table_with_room
from .seen import words as seen_words

measures_count = len(MEASURES)
NIL = -1
rows_max = np.iinfo(np.int32).max  # rows refer to each other by int32
NEVER = np.iinfo(np.int64).max
# The time in a cell's key counts minutes since 1970 below this, and seconds since 1970 from this on.
SECONDS_FROM = np.uint64(1 << 27)
_MASK32, _UPPER32 = np.uint64(0xFFFFFFFF), np.uint64(0xFFFFFFFF00000000)

# What a message takes when memory is made ready: places for four events, of which a list that is seldom moved leaves a third free.
seen_a_message, nodes_a_message = 6, 2
ready_bytes = seen_a_message * 16 + 48 + nodes_a_message * 24 + 2 * 8


# Rows, one kind per table, each row together in memory: an event needs all of its message at once, wherever that lies.

# `key` of the recipient, `segment` one byte per attribute; the heads of its lists, NIL where empty. In minutes since 1970, 0 for never:
# when the person was last known to be there (`alive`), and the earliest delivery that a bounce may still take back (`reached`).
RECIPIENT = np.dtype(
    [
        ("key", "u8"),
        ("segment", "u8"),
        ("messages", "i4"),
        ("conversions", "i4"),
        ("traits", "i4"),
        ("alive", "u4"),
        ("reached", "u4"),
        ("provider", "u2"),
    ],
    align=True,
)
# An email to one recipient: `key` of source and message id, when it was `sent` and `delivered` (-1 = not known), `next` the recipient's
# next message, `nodes` the latest node. What happens to nearly every message lies in its row: a node would be one more place in memory.
MESSAGE = np.dtype(
    [
        ("key", "u8"),
        ("sent", "i8"),
        ("delivered", "i8"),
        ("recipient", "i4"),
        ("next", "i4"),
        ("nodes", "i4"),
        ("campaign", "u4"),
        ("variant", "u2"),
        ("wave", "u2"),
        ("source", "u2"),
    ],
    align=True,
)
# What else happened to a message, latest first. `what` is a measure, or OPEN or CLICK; `base` the agent by flag, user agent or network,
# with SURE where timing cannot overrule; `agent` the verdict.
NODE = np.dtype([("at", "i8"), ("next", "i4"), ("url", "u4"), ("what", "u1"), ("base", "u1"), ("agent", "u1")], align=True)
# Conversions of a recipient, latest first. `order` is 0 without an order id.
CONVERSION = np.dtype([("at", "i8"), ("id", "u8"), ("order", "u8"), ("value", "i8"), ("next", "i4"), ("source", "u2")], align=True)
# The latest value of each attribute that a recipient was identified with.
TRAIT = np.dtype([("at", "i8"), ("next", "i4"), ("attribute", "u1"), ("value", "u1")], align=True)


class State(NamedTuple):
    seen: Table
    recipient_slots: Table  # one word: half of the key's hash, and the row + 1
    recipients: np.ndarray
    message_slots: Table
    messages: np.ndarray
    nodes: np.ndarray
    conversions: np.ndarray
    traits: np.ndarray
    used: np.ndarray  # int64 [6]: rows in use of seen, recipients, messages, nodes, conversions, traits


class Cells(NamedTuple):
    """Cell changes under construction: rows in order of first touch, found by a hash of their key."""

    slots: np.ndarray  # int32
    key: np.ndarray  # uint64 [n, 3]: campaign | minute or second, variant | wave | provider | source, segment
    value: np.ndarray  # int64 [n, measures]
    delay_slots: np.ndarray
    delay_key: np.ndarray  # uint64 [n, 4]: as above and kind | bucket
    delay_n: np.ndarray  # int64
    touched: np.ndarray  # int32, messages whose first human click or conversion may have changed
    touched_row: np.ndarray  # int32, the row of the batch that touched each
    touched_before: np.ndarray  # int64 us, when a person had first clicked in each; -1 = nobody had
    used: np.ndarray  # int64 [3]: cells, delays, touched
    recent_from: np.ndarray  # int64 [1], us: what happened from here on is counted by the second


SEEN, RECIPIENTS, MESSAGES, NODES, CONVERSIONS, TRAITS = range(6)


def new_state() -> State:
    return sized(new_table(seen_words), np.zeros(6, np.int64))


def sized(seen: Table, used: np.ndarray) -> State:
    """Return a state whose tables have room for the rows that `used` counts, and count them as used."""
    recipients, messages, nodes, conversions, traits = (
        reserved(rows_max, max(int(rows), 256), dtype)
        for rows, dtype in zip(used[1:], (RECIPIENT, MESSAGE, NODE, CONVERSION, TRAIT), strict=True)
    )
    recipient_slots, message_slots = (new_table(1, int(used[table]) * 2) for table in (RECIPIENTS, MESSAGES))
    return State(seen, recipient_slots, recipients, message_slots, messages, nodes, conversions, traits, used)


def reindex(state: State) -> None:
    """Fill the tables in which rows are found from the rows."""
    _reindex_recipients(state.recipient_slots, state.recipients, int(state.used[RECIPIENTS]))
    _reindex_messages(state.message_slots, state.messages, int(state.used[MESSAGES]))


def new_cells(recent_from_us: int = NEVER, capacity: int = 1024) -> Cells:
    return Cells(
        slots=np.full(capacity * 2, NIL, np.int32),
        key=np.zeros((capacity, 3), np.uint64),
        value=np.zeros((capacity, measures_count), np.int64),
        delay_slots=np.full(capacity * 2, NIL, np.int32),
        delay_key=np.zeros((capacity, 4), np.uint64),
        delay_n=np.zeros(capacity, np.int64),
        touched=np.empty(capacity, np.int32),
        touched_row=np.empty(capacity, np.int32),
        touched_before=np.empty(capacity, np.int64),
        used=np.zeros(3, np.int64),
        recent_from=np.array([recent_from_us], np.int64),
    )


def grown(cells: Cells) -> Cells:
    """Return the same cells with twice the room."""
    size, n, delays, touched = cells.key.shape[0] * 2, *cells.used.tolist()
    out = new_cells(int(cells.recent_from[0]), size)
    out.key[:n], out.value[:n] = cells.key[:n], cells.value[:n]
    out.delay_key[:delays], out.delay_n[:delays] = cells.delay_key[:delays], cells.delay_n[:delays]
    for name in ("touched", "touched_row", "touched_before"):
        getattr(out, name)[:touched] = getattr(cells, name)[:touched]
    out.used[:] = cells.used
    _reindex_cells(out.slots, out.key, n, out.delay_slots, out.delay_key, delays)
    return out


def in_seconds(key: np.ndarray) -> np.ndarray:
    """Return which of these keys [n, 3+] have a second as their time."""
    return key[:, 0] & _MASK32 >= SECONDS_FROM


def in_minutes(key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return keys [n, 3+] by minute, each once, and the sums of their values that are not zero."""
    seconds = in_seconds(key)
    if not seconds.any():
        return key, value
    key = key.copy()
    campaign, second = key[seconds, 0] & ~_MASK32, key[seconds, 0] & _MASK32
    key[seconds, 0] = campaign | second // np.uint64(60)
    key, value = summed(key, value)
    counts = value.reshape(value.shape[0], -1).any(axis=1)
    return key[counts], value[counts]


def summed(key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each key [n, any] once, in order, and the sums of their values."""
    order = np.lexsort(key.T[::-1])
    key = key[order]
    first = starts(key)
    return key[first], np.add.reduceat(value[order], first, axis=0)


def starts(key: np.ndarray) -> np.ndarray:
    """Return where in sorted keys a new one begins."""
    new = key[1:] != key[:-1]
    return np.flatnonzero(np.append(True, new if new.ndim == 1 else new.any(axis=1)))


@njit(inline="always")
def key_hash(k0, k1, k2):
    h = k0 * np.uint64(0x9E3779B97F4A7C15) ^ k1 * np.uint64(0xC2B2AE3D27D4EB4F) ^ k2 * np.uint64(0x165667B19E3779F9)
    return h ^ (h >> np.uint64(29))


@entry
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


# -- growing ------------------------------------------------------------------------------------------------------------


def with_room(state: State, rows: int, traits: int, oldest_day: int) -> State:
    """Return a state in which a batch of that many rows fits whatever it holds."""
    used = state.used
    seen, used[SEEN] = table_with_room(state.seen, int(used[SEEN]), rows, oldest_day)
    return state._replace(
        seen=seen,
        recipient_slots=table_with_room(state.recipient_slots, int(used[RECIPIENTS]), rows)[0],
        recipients=_with_room(state.recipients, used[RECIPIENTS], rows),
        message_slots=table_with_room(state.message_slots, int(used[MESSAGES]), rows)[0],
        messages=_with_room(state.messages, used[MESSAGES], rows),
        nodes=_with_room(state.nodes, used[NODES], rows),
        conversions=_with_room(state.conversions, used[CONVERSIONS], rows),
        traits=_with_room(state.traits, used[TRAITS], traits),
    )


def _with_room(table: np.ndarray, used: int, rows: int) -> np.ndarray:
    """Return a table for that many more rows: the same one, except where the system gave no address space to grow in."""
    if used + rows <= table.size:
        return table
    if used + rows > rows_max:
        raise MidflightError(
            "A shard is full",
            expected=f"at most {rows_max:,} rows in a table",
            got=f"{used + rows:,}",
            todo="Raise `shards` in the settings",
        )
    grown = np.zeros(min(rows_max, max(used + rows, table.size + table.size // 2)), table.dtype)
    grown[:used] = table[:used]
    return grown


def made_ready(state: State, messages: int, oldest_day: int) -> State:
    """Return the same state in tables that have the memory for that many messages, and for what usually happens to them.

    Without it the memory comes page by page while the tables grow.
    """
    used = state.used
    seen, used[SEEN] = with_slots(state.seen, int(used[SEEN]), messages * seen_a_message, oldest_day)
    slots, _ = with_slots(state.message_slots, int(used[MESSAGES]), messages * 2)
    state = state._replace(
        seen=seen,
        message_slots=slots,
        messages=_with_room(state.messages, used[MESSAGES], max(0, messages - int(used[MESSAGES]))),
        nodes=_with_room(state.nodes, used[NODES], max(0, messages * nodes_a_message - int(used[NODES]))),
    )
    for table, rows in (
        (seen.entries, messages * seen_a_message),
        (slots.entries, messages * 2),
        (state.messages, messages),
        (state.nodes, messages * nodes_a_message),
    ):
        touch(table, rows)
    return state


# -- finding rows -------------------------------------------------------------------------------------------------------


@njit(inline="always")
def recipient_tag(key):
    """Return the half of a recipient's key by which its row is found; not the half that tells its shard."""
    return key << np.uint64(32)


@njit(inline="always")
def message_tag(key, recipient_row):
    return mix(key ^ (np.uint64(recipient_row) * np.uint64(0x9E3779B97F4A7C15))) & _UPPER32


@njit(inline="always")
def tagged(tag, row):
    return tag | np.uint64(row + 1)


@njit(inline="always")
def tag_of(word):
    return word & _UPPER32


@njit(inline="always")
def row_of(word):
    return np.int32(np.int64(word & _MASK32) - 1)


@njit(inline="always")
def row_expected(slots, tag):
    """Return the row that is probably the one with this tag, or NIL."""
    at = place(tag, slots.layout)
    while True:
        word = slots.entries[at, 0]
        if word == 0 or tag_of(word) == tag:
            return row_of(word)
        at = following(at, slots.layout)


@entry
def find_recipient(slots, recipients, key):
    """Return the row of a recipient, or NIL."""
    tag = recipient_tag(key)
    at = place(tag, slots.layout)
    while slots.entries[at, 0] != 0:
        row = row_of(slots.entries[at, 0])
        if tag_of(slots.entries[at, 0]) == tag and recipients[row].key == key:
            return row
        at = following(at, slots.layout)
    return np.int32(NIL)


@njit(inline="always")
def _set_slot(slots, tag, row):
    at = place(tag, slots.layout)
    while slots.entries[at, 0] != 0:
        at = following(at, slots.layout)
    slots.entries[at, 0] = tagged(tag, row)


@entry
def _reindex_recipients(slots, recipients, used):
    for row in range(used):
        prefetch(slots.entries, np.int64(place(recipient_tag(recipients[min(row + ahead, used - 1)].key), slots.layout)))
        _set_slot(slots, recipient_tag(recipients[row].key), row)


@entry
def _reindex_messages(slots, messages, used):
    for row in range(used):
        later = min(row + ahead, used - 1)
        prefetch(slots.entries, np.int64(place(message_tag(messages[later].key, messages[later].recipient), slots.layout)))
        _set_slot(slots, message_tag(messages[row].key, messages[row].recipient), row)
