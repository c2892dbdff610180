"""What the polls have to remember: how far each one is, what was said of each row already, what was set aside, what is asked for again.

One SQLite file, ``polls.db``, of the process that polls alone. It never holds anything that is not in the log or can be asked for again:
without it all is read once more, under the same ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import msgspec

from ..events import Bad, Event, recipient_key
from ..kit.owned import database
from ..sources.polls import Found
from ..sources.polls.poll import Cursor

aside_max = 10_000  # rows of one poll that are set aside; of more the oldest go, which is counted
hole_tries_max = 100
jobs_kept = 200  # ended ones
jobs_max = 500  # open ones of a poll; of more the last one grows
SCHEMA = """
CREATE TABLE IF NOT EXISTS poll(name TEXT PRIMARY KEY, cursor TEXT NOT NULL, known_us INTEGER NOT NULL, made TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS said(
    poll TEXT, key TEXT, at_us INTEGER NOT NULL, seen_us INTEGER NOT NULL, times INTEGER NOT NULL, what BLOB NOT NULL,
    PRIMARY KEY(poll, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS said_seen ON said(poll, seen_us) WHERE times = 0;
CREATE TABLE IF NOT EXISTS aside(
    id INTEGER PRIMARY KEY, poll TEXT NOT NULL, at_us INTEGER NOT NULL, reason TEXT NOT NULL, raw BLOB NOT NULL, hash BLOB NOT NULL,
    UNIQUE(poll, hash)
);
CREATE TABLE IF NOT EXISTS job(
    id INTEGER PRIMARY KEY, poll TEXT NOT NULL, why TEXT NOT NULL, from_us INTEGER NOT NULL, to_us INTEGER NOT NULL, cursor TEXT,
    tries INTEGER NOT NULL DEFAULT 0, not_before_us INTEGER NOT NULL DEFAULT 0, ended TEXT NOT NULL DEFAULT '', name TEXT UNIQUE
);
CREATE TABLE IF NOT EXISTS called(poll TEXT PRIMARY KEY, day INTEGER NOT NULL, calls INTEGER NOT NULL) WITHOUT ROWID;
"""


class Job(NamedTuple):
    """A range of time to read once more: a backfill that somebody asked for, or a hole where something could not be read."""

    id: int
    poll: str
    why: str
    from_us: int
    to_us: int
    cursor: Cursor | None
    tries: int


class News(NamedTuple):
    """What of a page is to be said, and what to remember of it once it is durable."""

    events: list[Event]
    said: list[tuple[str, int, int, bytes]]  # key, at_us, times, what


no_news = News([], [])


class Polled:
    """The file. Each method is one transaction."""

    def __init__(self, path: Path) -> None:
        self.db = database(path, SCHEMA)

    def close(self) -> None:
        self.db.close()

    def keep_only(self, names: Iterable[str]) -> None:
        """Forget what belongs to polls that are configured no more."""
        names = list(names)
        marks = ",".join("?" * len(names))
        with self.db:
            for table, column in (("poll", "name"), ("said", "poll"), ("aside", "poll"), ("job", "poll"), ("called", "poll")):
                self.db.execute(f"DELETE FROM {table} WHERE {column} NOT IN ({marks})", names)

    # -- how far each one is -----------------------------------------------------------------------------------------------------

    def cursor(self, name: str) -> Cursor | None:
        row = self.db.execute("SELECT cursor FROM poll WHERE name = ?", (name,)).fetchone()
        return msgspec.json.decode(row[0]) if row else None

    def known_us(self, name: str) -> int:
        row = self.db.execute("SELECT known_us FROM poll WHERE name = ?", (name,)).fetchone()
        return row[0] if row else 0

    def made(self, name: str) -> str:
        """Return the fingerprint of the settings that a poll was last run with."""
        row = self.db.execute("SELECT made FROM poll WHERE name = ?", (name,)).fetchone()
        return row[0] if row else ""

    def begin(self, name: str, cursor: Cursor, made: str) -> None:
        with self.db:
            self.db.execute("INSERT OR REPLACE INTO poll VALUES(?, ?, 0, ?)", (name, _json(cursor), made))

    def save(self, name: str, cursor: Cursor, known_us: int, news: News, bad: list[Bad], now_us: int, job: Job | None = None) -> int:
        """Keep where a page leaves off and what it said: after its events are durable, and all at once. Return how many rows were
        pushed out of those set aside."""
        with self.db:
            if job:
                self.db.execute("UPDATE job SET cursor = ? WHERE id = ?", (_json(cursor), job.id))
            else:
                self.db.execute("UPDATE poll SET cursor = ?, known_us = max(known_us, ?) WHERE name = ?", (_json(cursor), known_us, name))
            self._say(name, news, now_us)
            self.db.executemany(
                "INSERT OR IGNORE INTO aside(poll, at_us, reason, raw, hash) VALUES(?, ?, ?, ?, ?)",
                [(name, now_us, f"{one.reason}: {one.detail}"[:600], one.raw, _hash(one.raw)) for one in bad],
            )
            return self._trim_aside(name) if bad else 0

    def _trim_aside(self, name: str) -> int:
        over = self.db.execute("SELECT count(*) FROM aside WHERE poll = ?", (name,)).fetchone()[0] - aside_max
        if over > 0:
            self.db.execute("DELETE FROM aside WHERE id IN (SELECT id FROM aside WHERE poll = ? ORDER BY id LIMIT ?)", (name, over))
        return max(over, 0)

    # -- what is news ---------------------------------------------------------------------------------------------------------------

    def news(self, name: str, source: str, found: list[Found], *, for_good: bool) -> News:
        """Return the events of a page without what was said before: of a row's attributes those that changed, of events those not known.

        An id depends on nothing but what is said and how often something was said of this row, so a page that is read again after a
        crash says the same under the same ids.
        """
        events: list[Event] = []
        pending: dict[str, tuple[int, int, bytes]] = {}
        for one in found:
            event = one.event
            event.source = source
            if not one.key:
                events.append(event)
                continue
            known = pending.get(one.key) or self._said(name, one.key)
            if event.kind != "identified":
                if known is None:
                    events.append(event)
                pending[one.key] = known or (event.occurred_at_us, 1 if for_good else 0, b"")
                continue
            fresh = changed(event, known[2] if known else b"", one.whole)
            if fresh is None:
                continue
            at_us, times, _ = known or (0, 0, b"")
            what = packed(event)
            event.event_id = said_id(source, one.key, event, fresh, times + 1)
            event.traits = event.traits if one.whole else fresh
            events.append(event)
            if not event.occurred_at_us or event.occurred_at_us >= at_us:
                # Of what is older than what was said already the fold takes only what it has not heard anything newer of.
                pending[one.key] = (event.occurred_at_us, times + 1, what)
        return News(events, [(key, *rest) for key, rest in pending.items()])

    def _said(self, name: str, key: str) -> tuple[int, int, bytes] | None:
        return self.db.execute("SELECT at_us, times, what FROM said WHERE poll = ? AND key = ?", (name, key)).fetchone()

    def _say(self, name: str, news: News, now_us: int) -> None:
        self.db.executemany(
            "INSERT OR REPLACE INTO said(poll, key, at_us, times, what, seen_us) VALUES(?, ?, ?, ?, ?, ?)",
            [(name, *one, now_us) for one in news.said],
        )

    def forget_events(self, name: str, before_us: int) -> None:
        """Forget events that cannot be read again any more. What is known of rows stays, one entry a row of the other system."""
        with self.db:
            self.db.execute("DELETE FROM said WHERE poll = ? AND times = 0 AND seen_us < ?", (name, before_us))

    # -- what was set aside ------------------------------------------------------------------------------------------------------------

    def aside(self, name: str, after: int = 0, most: int = 500) -> list[tuple[int, str, bytes]]:
        query = "SELECT id, reason, raw FROM aside WHERE poll = ? AND id > ? ORDER BY id LIMIT ?"
        return self.db.execute(query, (name, after, most)).fetchall()

    def aside_count(self, name: str) -> tuple[int, str]:
        """Return how many rows are set aside, and why the last one is."""
        count = self.db.execute("SELECT count(*) FROM aside WHERE poll = ?", (name,)).fetchone()[0]
        last = self.db.execute("SELECT reason FROM aside WHERE poll = ? ORDER BY id DESC LIMIT 1", (name,)).fetchone()
        return count, last[0] if last else ""

    def taken_back(self, name: str, ids: list[int], news: News, now_us: int) -> None:
        """Note that rows which were set aside have been read after all."""
        with self.db:
            self.db.executemany("DELETE FROM aside WHERE poll = ? AND id = ?", [(name, one) for one in ids])
            self._say(name, news, now_us)

    # -- what is asked for again ---------------------------------------------------------------------------------------------------------

    def ask(self, poll: str, why: str, from_us: int, to_us: int, *, not_before_us: int = 0, name: str | None = None) -> None:
        """Note a range of time to be read once more; one that has a name is noted once."""
        with self.db:
            count, last = self.db.execute("SELECT count(*), max(id) FROM job WHERE poll = ? AND ended = ''", (poll,)).fetchone()
            if count >= jobs_max:
                query = "UPDATE job SET from_us = min(from_us, ?), to_us = max(to_us, ?), cursor = NULL WHERE id = ?"
                self.db.execute(query, (from_us, to_us, last))
                return
            self.db.execute(
                "INSERT OR IGNORE INTO job(poll, why, from_us, to_us, not_before_us, name) VALUES(?, ?, ?, ?, ?, ?)",
                (poll, why, from_us, to_us, not_before_us, name),
            )
            self.db.execute(
                "DELETE FROM job WHERE ended != '' AND id NOT IN (SELECT id FROM job WHERE ended != '' ORDER BY id DESC LIMIT ?)",
                (jobs_kept,),
            )

    def jobs(self, poll: str, now_us: int) -> Iterator[Job]:
        """Return what is due to be read once more, what was asked for first."""
        due = "poll = ? AND ended = '' AND not_before_us <= ? ORDER BY id LIMIT 100"
        for row in self.db.execute(f"SELECT id, poll, why, from_us, to_us, cursor, tries FROM job WHERE {due}", (poll, now_us)).fetchall():
            yield Job(*row[:5], msgspec.json.decode(row[5]) if row[5] else None, row[6])

    def job_ended(self, job: Job, how: str) -> None:
        with self.db:
            self.db.execute("UPDATE job SET ended = ? WHERE id = ?", (how[:300], job.id))

    def job(self, number: int) -> Job | None:
        """Return a job as far as it has come; None where it has not begun."""
        row = self.db.execute("SELECT id, poll, why, from_us, to_us, cursor, tries FROM job WHERE id = ?", (number,)).fetchone()
        return Job(*row[:5], msgspec.json.decode(row[5]), row[6]) if row and row[5] else None

    def job_later(self, job: Job, not_before_us: int, *, tried: bool) -> None:
        with self.db:
            self.db.execute("UPDATE job SET tries = tries + ?, not_before_us = ? WHERE id = ?", (tried, not_before_us, job.id))

    def job_list(self, poll: str) -> list[dict]:
        """Return open jobs and the last ones that ended, for the console."""
        query = "SELECT why, from_us, to_us, tries, ended FROM job WHERE poll = ? ORDER BY ended != '', id DESC LIMIT 20"
        names = ("why", "from_us", "to_us", "tries", "ended")
        return [dict(zip(names, row, strict=True)) for row in self.db.execute(query, (poll,))]

    # -- how often it was called -------------------------------------------------------------------------------------------------

    def calls(self, poll: str, day: int) -> int:
        row = self.db.execute("SELECT calls FROM called WHERE poll = ? AND day = ?", (poll, day)).fetchone()
        return row[0] if row else 0

    def called(self, poll: str, day: int) -> None:
        """Count a call, before it is made: a bound holds across restarts."""
        with self.db:
            self.db.execute(
                "INSERT INTO called VALUES(?, ?, 1) ON CONFLICT(poll) DO UPDATE SET "
                "calls = CASE day WHEN excluded.day THEN calls + 1 ELSE 1 END, day = excluded.day",
                (poll, day),
            )


# -- what changed --------------------------------------------------------------------------------------------------------------------------

# What was said of a row: eight bytes for each attribute's name, eight for its value; under the empty name who it was said of.


def hashes(event: Event) -> dict[bytes, bytes]:
    about = event.metadata if not event.traits and event.campaign else event.traits
    values = {"": [recipient_key(event.recipient), event.user_id, event.campaign], **about}
    return {_hash(name.encode("utf-8", "replace")): _hash(_encoded(value)) for name, value in values.items()}


def unpacked(what: bytes) -> dict[bytes, bytes]:
    return {what[at : at + 8]: what[at + 8 : at + 16] for at in range(0, len(what), 16)}


def changed(event: Event, what: bytes, whole: bool) -> dict[str, object] | None:
    """Return the traits that are other than what was said, all where it is about somebody else by now, None where nothing changed."""
    before, now = unpacked(what), hashes(event)
    someone = _hash(b"")
    if before.get(someone) != now[someone]:
        return event.traits
    fresh = {name: value for name, value in event.traits.items() if before.get(h := _hash(name.encode("utf-8", "replace"))) != now[h]}
    if whole:
        return event.traits if any(before.get(name) != value for name, value in now.items()) else None
    return fresh or None


def packed(event: Event) -> bytes:
    """Return what has been said by now. Attributes that are asked for no more are forgotten."""
    return b"".join(name + value for name, value in sorted(hashes(event).items()))


def said_id(source: str, key: str, event: Event, fresh: dict[str, object], times: int) -> str:
    about = event.metadata if not event.traits and event.campaign else fresh
    # A time tells what was said at one time from what was said again later; where there is none, their number does.
    when = event.occurred_at_us or f"#{times}"
    said = [source, key, when, recipient_key(event.recipient), event.user_id, event.campaign, about]
    return "p:" + blake2b(_encoded(said), digest_size=16).hexdigest()


def _hash(raw: bytes) -> bytes:
    return blake2b(raw, digest_size=8).digest()


def _encoded(value: object) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def _json(cursor: Cursor) -> str:
    return msgspec.json.encode(cursor).decode()
