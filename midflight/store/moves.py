"""Who came into a segment or left it, in log order: kept by the batch, packed, because there are more of them than of anything else.

A row of ``moves`` has ``n`` of them, the last one with the row's number; ``segments`` names those that the packed rows refer to. Members of
a segment as it was made did not come into it. By hour and segment their numbers stand in ``flows``.
"""

from __future__ import annotations

from typing import NamedTuple

import apsw
import msgspec
import numpy as np

from ..stream.watching import ENTERED

# person: as in `people`.
MOVE = np.dtype([("at_us", "<i8"), ("person", "<i8"), ("segment", "<u2"), ("entered", "u1")])
HOUR_US = 3_600_000_000
looked_at_max = 2_000_000  # of the latest moves, for those of one segment


class Move(NamedTuple):
    number: int
    at_us: int
    segment: str
    recipient: str
    entered: bool


def packed(rows: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Return what was told of segments (watching.TOLD) as MOVE; ``person`` are the numbers in `people`."""
    moves = np.zeros(rows.size, MOVE)
    moves["at_us"], moves["person"], moves["segment"], moves["entered"] = rows["at"], person, rows["number"], rows["what"] == ENTERED
    return moves


def add(db: apsw.Connection, moves: np.ndarray, segments: list[str]) -> None:
    """Write moves [n] of MOVE; their segments are numbers in this list."""
    known, numbers = np.unique(moves["segment"], return_inverse=True)
    moves["segment"] = numbers
    names = [segments[number] for number in known.tolist()]
    last = db.execute("SELECT coalesce(max(number), 0) FROM moves").get
    values = (last + moves.size, int(moves["at_us"].max()), moves.size, msgspec.json.encode(names).decode(), moves.tobytes())
    db.execute("INSERT INTO moves (number, at_us, n, segments, rows) VALUES (?, ?, ?, ?, ?)", values)
    hours, place = np.unique((moves["at_us"] // HOUR_US) * len(names) + numbers, return_inverse=True)
    came = np.bincount(place, moves["entered"])
    went = np.bincount(place, 1 - moves["entered"])
    db.executemany(
        "INSERT INTO flows VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET entered = entered + excluded.entered, gone = gone + excluded.gone",
        [
            (names[key % len(names)], key // len(names), int(entered), int(gone))
            for key, entered, gone in zip(hours.tolist(), came, went, strict=True)
        ],
    )


def last_number(db: apsw.Connection) -> int:
    """Return the number of the last move, 0 for none."""
    return db.execute("SELECT coalesce(max(number), 0) FROM moves").get


def moves_after(db: apsw.Connection, number: int, count_max: int) -> list[Move]:
    """Return the moves after one, in log order."""
    found: list[Move] = []
    for last, n, segments, rows in db.execute("SELECT number, n, segments, rows FROM moves WHERE number > ? ORDER BY number", (number,)):
        first = last - n + 1
        wanted = slice(max(0, number + 1 - first), max(0, number + 1 - first) + count_max - len(found))
        found += _moves(db, np.frombuffer(rows, MOVE), msgspec.json.decode(segments, type=list[str]), first, np.arange(n)[wanted])
        if len(found) >= count_max:
            break
    return found


def latest_moves(db: apsw.Connection, segment: str, count_max: int) -> list[Move]:
    """Return a segment's latest moves, the last one first, from among the last ``looked_at_max`` of all."""
    found: list[Move] = []
    looked_at = 0
    for last, n, segments, rows in db.execute("SELECT number, n, segments, rows FROM moves ORDER BY number DESC"):
        looked_at += n
        names = msgspec.json.decode(segments, type=list[str])
        if segment in names:
            moves = np.frombuffer(rows, MOVE)
            mine = np.flatnonzero(moves["segment"] == names.index(segment))[::-1][: count_max - len(found)]
            found += _moves(db, moves, names, last - n + 1, mine)
        if len(found) >= count_max or looked_at >= looked_at_max:
            break
    return found


def _moves(db: apsw.Connection, moves: np.ndarray, names: list[str], first: int, places: np.ndarray) -> list[Move]:
    found = []
    for place in places.tolist():
        at_us, person, segment, entered = moves[place].item()
        recipient = db.execute("SELECT recipient FROM people WHERE number = ?", (person,)).get or ""
        found.append(Move(first + place, at_us, names[segment], recipient, bool(entered)))
    return found
