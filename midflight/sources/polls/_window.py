"""A cursor over time, for systems that can be asked for what changed between two times: window after window, none too late or too early.

What is asked for ends a while before now (``lag_us``), because an index shows a change only after a moment, and begins a while before the
last window's end (``overlap_us``), because some changes show up late. While a window is read its ends stay the same, so what changes
meanwhile leaves it and is in a later one. ``floor`` is the end of what had to be left out: no window reaches back over it, or what could
not be read there would have to be left out again and again.
"""

from __future__ import annotations

from .poll import Cursor, Past

slice_us_max = 366 * 24 * 3600 * 1_000_000
slice_us_min = 1_000


def first(from_us: int, end_us: int = 0) -> Cursor:
    """Return the cursor before the first window; with ``end_us`` it ends there."""
    return {"from": max(from_us, 0), "end": end_us, "to": 0, "slice": slice_us_max}


def opened(cursor: Cursor, now_us: int, lag_us: int, overlap_us: int) -> Cursor:
    """Return the cursor with an open window: ``lo`` to ``to`` is what is asked for."""
    if cursor["to"]:
        return cursor
    from_us = cursor["from"]
    to_us = min(now_us - lag_us, from_us + cursor["slice"], cursor["end"] or now_us)
    lo_us = from_us - (0 if cursor["end"] else overlap_us)
    return cursor | {"to": max(to_us, from_us), "lo": max(lo_us, cursor.get("floor", 0), 0)}


def closed(cursor: Cursor, now_us: int, lag_us: int) -> tuple[Cursor, bool]:
    """Return the cursor behind its window, and whether another one follows at once. What is read well is read in larger pieces again."""
    to_us = cursor["to"]
    after = {"from": to_us, "end": cursor["end"], "to": 0, "slice": min(cursor["slice"] * 2, slice_us_max)} | floor_of(cursor)
    return after, to_us < min(now_us - lag_us - slice_us_min, cursor["end"] or now_us)


def past(cursor: Cursor) -> Past | None:
    """Return how to get past an unreadable answer: a smaller window, and at last past a thousandth of a second, to be asked for later."""
    if not cursor.get("to"):
        return None
    width = cursor["to"] - cursor["from"]
    fresh = {"from": cursor["from"], "end": cursor["end"], "to": 0}
    if width > slice_us_min:
        return Past(fresh | {"slice": max(width // 2, slice_us_min)} | floor_of(cursor))
    to_us = cursor["to"] if width > 0 else cursor["from"] + slice_us_min
    # What reached back into the former window is left out with it.
    return Past(fresh | {"from": to_us, "slice": slice_us_min, "floor": to_us}, cursor["lo"], to_us)


def floor_of(cursor: Cursor) -> Cursor:
    return {"floor": cursor["floor"]} if "floor" in cursor else {}
