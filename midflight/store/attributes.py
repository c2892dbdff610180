"""What was last said of people: their attributes as they were said, for texts and clocks; conditions have them in the engine's memory.

Both know the same of everybody: the latest value of each attribute by the time at which it was said, of two that were said at one time the
one with the larger key of its text, and of one person no more attributes than `attributes_of_person_max`.
"""

from __future__ import annotations

from collections.abc import Iterable

import apsw
import msgspec
import numpy as np

from ..events import clean
from ..stream.edge import Prepared
from ..stream.program import value_of
from ..stream.shard import Effects
from ..stream.watching import attributes_of_person_max

name_chars_max = 200
value_chars_max = 2_000

_PUT = """INSERT INTO attributes SELECT ?1, ?2, ?3, ?4, ?5
    WHERE (SELECT count(*) FROM attributes WHERE recipient = ?1) < ?6
       OR EXISTS (SELECT 1 FROM attributes WHERE recipient = ?1 AND name = ?2)
    ON CONFLICT (recipient, name) DO UPDATE SET value = excluded.value, at_us = excluded.at_us, rank = excluded.rank
    WHERE (excluded.at_us, excluded.rank) > (at_us, rank)"""


class Attributes:
    """What was said since the last commit."""

    def __init__(self) -> None:
        self.said: dict[tuple[str, str], tuple[int, int, str]] = {}  # (recipient, name) -> when, rank, value as JSON

    def hear(self, prepared: Prepared, effects: list[Effects]) -> None:
        """Take in what a batch says of people. What was said before, or contradicts what was, counts for nothing."""
        if not prepared.identified:
            return
        out = np.concatenate([rows for effect in effects for rows in (effect.duplicates, effect.conflicts)])
        rows = np.array([row for row, _ in prepared.identified], np.int64)
        keys = prepared.recipients(rows)
        for (row, traits), recipient, repeated in zip(prepared.identified, keys, np.isin(rows, out).tolist(), strict=True):
            if repeated or not recipient or recipient.startswith("id:"):
                continue
            at_us = int(prepared.batch.at_us[row])
            for name, value in traits:
                # SQLite's integers have a sign.
                rank = value_of(value)[1] - (1 << 63)
                value = clean(value)[:value_chars_max] if isinstance(value, str) else value
                now = (at_us, rank, msgspec.json.encode(value).decode())
                place = (recipient, clean(name)[:name_chars_max])
                self.said[place] = max(self.said.get(place, now), now)

    def write(self, db: apsw.Connection) -> None:
        """Write what was said; within the caller's transaction."""
        db.executemany(
            _PUT,
            [(*place, value, at_us, rank, attributes_of_person_max) for place, (at_us, rank, value) in self.said.items()],
        )


def attributes(db: apsw.Connection, recipients: Iterable[str]) -> dict[str, dict[str, object]]:
    """Return what is known of these people, by attribute; of who is not known, nothing."""
    found: dict[str, dict[str, object]] = {}
    sql = "SELECT recipient, name, value FROM attributes WHERE recipient IN (SELECT value FROM json_each(?))"
    for recipient, name, value in db.execute(sql, (msgspec.json.encode(list(recipients)).decode(),)):
        found.setdefault(recipient, {})[name] = msgspec.json.decode(value)
    return found


def attributes_of(db: apsw.Connection, recipient: str) -> list[tuple[str, object, int]]:
    """Return what is known of a person: attributes by name, with value and when it was said."""
    rows = db.execute("SELECT name, value, at_us FROM attributes WHERE recipient = ? ORDER BY name", (recipient,))
    return [(name, msgspec.json.decode(value), at_us) for name, value, at_us in rows]
