"""What waits to be written back: of each person and way the latest state, and which version of it has been written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from ...events import recipient_key
from ...kit.owned import database
from .way_back import Item, Outcome

names_max = 500  # segments and values of one person
tries_s_max = 3600.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS person(
    way TEXT, recipient TEXT, state BLOB NOT NULL, changed_us INTEGER NOT NULL, version INTEGER NOT NULL,
    written INTEGER NOT NULL DEFAULT 0, waiting_us INTEGER, how TEXT NOT NULL DEFAULT '', PRIMARY KEY(way, recipient)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS person_waiting ON person(way, waiting_us) WHERE waiting_us IS NOT NULL;
-- How far the store has been read: the number of the last move and its words, by which it is seen whether the store was made anew.
CREATE TABLE IF NOT EXISTS told(number INTEGER NOT NULL, words TEXT NOT NULL);
-- Which members were taken in as a whole: those of a segment in one version, for one way.
CREATE TABLE IF NOT EXISTS filled(way TEXT, segment TEXT, version INTEGER NOT NULL, PRIMARY KEY(way, segment)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS way(
    name TEXT PRIMARY KEY, last_us INTEGER NOT NULL, day INTEGER NOT NULL DEFAULT 0, calls INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""


class Change(NamedTuple):
    """Something that became true of a person at a time: ``segment:NAME`` is true or false, any other name has a value."""

    recipient: str
    name: str
    value: object
    at_us: int


class Waiting:
    """The file, of the process that writes back alone. Each method is one transaction."""

    def __init__(self, path: Path) -> None:
        self.db = database(path, SCHEMA)

    def close(self) -> None:
        self.db.close()

    def note(self, changes: dict[str, list[Change]], now_us: int, told: tuple[int, str] | None = None) -> None:
        """Take in changes by way, which wait from now on. Of each name the latest by time counts, of one time the greater value; what says
        nothing new waits for nothing. ``told``: how far the store has been read with this."""
        with self.db:
            if told is not None:
                self.db.execute("DELETE FROM told")
                self.db.execute("INSERT INTO told VALUES(?, ?)", told)
            for way, changed in changes.items():
                for change in changed:
                    if key := recipient_key(change.recipient):
                        self._note(way, key, change, now_us)

    def _note(self, way: str, key: str, change: Change, now_us: int) -> None:
        row = self.db.execute("SELECT state, changed_us FROM person WHERE way = ? AND recipient = ?", (way, key)).fetchone()
        state: dict[str, list] = msgspec.json.decode(row[0]) if row else {}
        before = state.get(change.name)
        if before and (before[0], _order(before[1])) >= (change.at_us, _order(change.value)):
            return
        same = before is not None and before[1] == change.value
        if before is None and len(state) >= names_max:
            return
        state[change.name] = [change.at_us, change.value]
        changed_us = max(change.at_us, row[1] if row else 0)
        # A newer time of the same value is kept, but is nothing to write.
        self.db.execute(
            "INSERT INTO person(way, recipient, state, changed_us, version, waiting_us) VALUES(?1, ?2, ?3, ?4, 1, ?6)"
            " ON CONFLICT(way, recipient) DO UPDATE SET state = ?3, changed_us = ?4, version = version + ?5,"
            " waiting_us = CASE WHEN ?5 THEN coalesce(waiting_us, ?6) ELSE waiting_us END",
            (way, key, msgspec.json.encode(state), changed_us, int(not same), now_us),
        )

    def told(self) -> tuple[int, str]:
        """Return the number and the words of the last move that was taken in; 0 for none."""
        return self.db.execute("SELECT number, words FROM told").fetchone() or (0, "")

    def filled(self, way: str) -> dict[str, int]:
        """Return the segments that a way has been given whole, each with its version."""
        return dict(self.db.execute("SELECT segment, version FROM filled WHERE way = ?", (way,)))

    def fill(self, way: str, segment: str, version: int) -> None:
        """Note that a way has been given all members of a segment; of version 0 that it has none."""
        with self.db:
            if version:
                self.db.execute("INSERT OR REPLACE INTO filled VALUES(?, ?, ?)", (way, segment, version))
            else:
                self.db.execute("DELETE FROM filled WHERE way = ? AND segment = ?", (way, segment))

    def refill(self) -> None:
        """Have all ways be given all members of all segments once more."""
        with self.db:
            self.db.execute("UPDATE filled SET version = 0")

    def people(self, way: str, after: str, most: int) -> list[tuple[str, dict[str, list]]]:
        """Return people with their states, of each name a time and a value, in the order of their keys."""
        query = "SELECT recipient, state FROM person WHERE way = ? AND recipient > ? ORDER BY recipient LIMIT ?"
        return [(recipient, msgspec.json.decode(state)) for recipient, state in self.db.execute(query, (way, after, most))]

    def batch(self, way: str, most: int, until_us: int) -> list[Item]:
        """Return people whose latest state is not written, those that wait longest first; ``until_us``: who has not waited longer stays."""
        query = "SELECT recipient, state, changed_us, version FROM person WHERE way = ? AND waiting_us <= ? ORDER BY waiting_us, recipient"
        found = []
        for recipient, raw, changed_us, version in self.db.execute(f"{query} LIMIT ?", (way, until_us, most)):
            state = msgspec.json.decode(raw)
            segments = sorted(name[8:] for name, (_, value) in state.items() if name.startswith("segment:") and value is True)
            values = {name: value for name, (_, value) in sorted(state.items()) if not name.startswith("segment:")}
            found.append(Item(recipient=recipient, segments=segments, values=values, changed_us=changed_us, version=version))
        return found

    def settle(self, way: str, items: list[Item], outcomes: list[Outcome], now_us: int) -> None:
        """Note what became of a batch. Whoever has changed meanwhile goes on waiting."""
        with self.db:
            for item, outcome in zip(items, outcomes, strict=True):
                how = "" if outcome.kind == "written" else f"{outcome.kind}: {outcome.why}"[:300]
                self.db.execute(
                    "UPDATE person SET written = ?3, how = ?4, waiting_us = CASE WHEN version = ?3 THEN NULL ELSE waiting_us END"
                    " WHERE way = ?1 AND recipient = ?2",
                    (way, item.recipient, item.version, how),
                )
            self.db.execute(
                "INSERT INTO way(name, last_us) VALUES(?, ?) ON CONFLICT(name) DO UPDATE SET last_us = excluded.last_us", (way, now_us)
            )

    def last_us(self, way: str) -> int:
        row = self.db.execute("SELECT last_us FROM way WHERE name = ?", (way,)).fetchone()
        return row[0] if row else 0

    def forget(self, ways: Iterable[str], before_us: int) -> None:
        """Forget people who are in no segment any more and whose state was written long ago, and ways that are configured no more."""
        ways = list(ways)
        with self.db:
            marks = ",".join("?" * len(ways))
            for table in ("person", "filled"):
                self.db.execute(f"DELETE FROM {table} WHERE way NOT IN ({marks})", ways)
            self.db.execute("DELETE FROM person WHERE waiting_us IS NULL AND changed_us < ? AND state NOT LIKE '%,true]%'", (before_us,))

    def standing(self, way: str) -> dict:
        """Return how many wait, since when, and how many could not be written, with the last reason, for the console."""
        count, since = self.db.execute(
            "SELECT count(*), min(waiting_us) FROM person WHERE way = ? AND waiting_us IS NOT NULL", (way,)
        ).fetchone()
        refused = self.db.execute("SELECT count(*), max(how) FROM person WHERE way = ? AND how != ''", (way,)).fetchone()
        return {"waiting": count, "since_us": since or 0, "refused": refused[0], "refused_why": refused[1] or ""}

    def calls(self, way: str, day: int) -> int:
        row = self.db.execute("SELECT calls FROM way WHERE name = ? AND day = ?", (way, day)).fetchone()
        return row[0] if row else 0

    def called(self, way: str, day: int) -> None:
        with self.db:
            self.db.execute(
                "INSERT INTO way VALUES(?, 0, ?, 1) ON CONFLICT(name) DO UPDATE SET"
                " calls = CASE day WHEN excluded.day THEN calls + 1 ELSE 1 END, day = excluded.day",
                (way, day),
            )


def _order(value: object) -> bytes:
    return msgspec.json.encode(value, order="sorted")
