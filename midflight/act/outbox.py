"""What is to be sent and what became of it, one row a message: the intent is on disk before the call, the outcome after it.

A message goes through these states, and never back from a call whose end is unknown::

    planned ──► called ──► sent | refused
       ▲          │  └───► unknown ──(a webhook names its intent)──► sent
       └─ later ──┘
    planned ──► skipped       (unsubscribed, suppressed, held out, campaign stopped)

One process owns the file. What stood at ``called`` when it died may have gone out: it becomes ``unknown`` and is not tried again, unless
the vendor promises that the same call made twice has one effect.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import apsw
import msgspec
import numpy as np

from ..kit.crash import crash_point

VERSION = 1
PLANNED, CALLED, SENT, REFUSED, UNKNOWN, SKIPPED = range(6)
STATES = ("planned", "called", "sent", "refused", "unknown", "skipped")
detail_chars_max = 500

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
-- A recipient has one row in a campaign, whatever the audience's file repeats: the key says so.
-- not_before_us: when a message that was put off may be tried again. idempotent: whether its last call may be made again.
CREATE TABLE IF NOT EXISTS messages (campaign INTEGER, recipient TEXT, wave INTEGER, variant INTEGER, propensity REAL,
    state INTEGER NOT NULL DEFAULT 0, intent TEXT NOT NULL UNIQUE, message_id TEXT NOT NULL DEFAULT '', code TEXT NOT NULL DEFAULT '',
    detail TEXT NOT NULL DEFAULT '', tries INTEGER NOT NULL DEFAULT 0, idempotent INTEGER NOT NULL DEFAULT 0,
    not_before_us INTEGER NOT NULL DEFAULT 0, changed_at_us INTEGER NOT NULL, PRIMARY KEY (campaign, recipient)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS waiting ON messages (campaign, not_before_us) WHERE state = 0;
CREATE INDEX IF NOT EXISTS open_calls ON messages (campaign) WHERE state = 1;
"""


class Planned(msgspec.Struct, kw_only=True, frozen=True):
    """A message that is to go: who gets which variant in which wave, and how likely that was."""

    recipient: str
    wave: int
    variant: int
    propensity: float
    intent: str
    tries: int = 0


class Result(msgspec.Struct, kw_only=True, frozen=True):
    """What became of a call for one intent. ``state`` is one of the numbers above; for PLANNED ``not_before_us`` says when to try again."""

    intent: str
    state: int
    message_id: str = ""
    code: str = ""
    detail: str = ""
    not_before_us: int = 0


class Outbox:
    """The only writer of ``outbox.db``. Every method is one transaction that is on disk when it returns."""

    def __init__(self, path: Path) -> None:
        self.db = apsw.Connection(str(path))
        try:
            self.db.set_busy_timeout(10_000)
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = FULL")
            self.db.execute(_SCHEMA)
            self.db.execute("INSERT OR IGNORE INTO meta VALUES ('version', ?)", (VERSION,))
        except apsw.Error:
            self.db.close(True)
            raise

    def close(self) -> None:
        self.db.close()

    def plan(self, campaign: int, messages: Iterable[Planned], now_us: int) -> int:
        """Put messages into the outbox; return how many are new."""
        with self.db:
            return self.put(campaign, messages, now_us)

    def put(self, campaign: int, messages: Iterable[Planned], now_us: int) -> int:
        """Do the same within a transaction of the caller's. Whoever has a message of this campaign already gets no other."""
        before = self.db.total_changes()
        self.db.executemany(
            "INSERT INTO messages (campaign, recipient, wave, variant, propensity, intent, changed_at_us) VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (campaign, recipient) DO NOTHING",
            ((campaign, m.recipient, m.wave, m.variant, m.propensity, m.intent, now_us) for m in messages),
        )
        return self.db.total_changes() - before

    def waiting(self, campaign: int, now_us: int, count_max: int) -> list[Planned]:
        """Return messages that may go now, those that wait longest first. They are not taken: `call` does that."""
        found = self.db.execute(
            "SELECT recipient, wave, variant, propensity, intent, tries FROM messages "
            "WHERE campaign = ? AND state = 0 AND not_before_us <= ? ORDER BY not_before_us LIMIT ?",
            (campaign, now_us, count_max),
        )
        return [
            Planned(recipient=r, wave=w, variant=v, propensity=p, intent=i, tries=t) for r, w, v, p, i, t in found
        ]  # fmt: skip

    def call(self, intents: Iterable[str], now_us: int, *, idempotent: bool = False) -> set[str]:
        """Note that these are about to be called, and return those that may be: only what is planned. Nothing else may be sent."""
        allowed = set()
        with self.db:
            for intent in intents:
                self.db.execute(
                    "UPDATE messages SET state = 1, tries = tries + 1, idempotent = ?, changed_at_us = ? WHERE intent = ? AND state = 0",
                    (idempotent, now_us, intent),
                )
                if self.db.changes():
                    allowed.add(intent)
            crash_point("before_intent")
        crash_point("after_intent")
        return allowed

    def settle(self, results: Iterable[Result], now_us: int) -> int:
        """Note what became of calls; return how many rows changed. Only an open call has an end; a known end never changes."""
        rows = [
            (r.state, r.message_id, r.code, r.detail[:detail_chars_max], r.not_before_us, now_us, r.intent) for r in results
        ]  # fmt: skip
        with self.db:
            before = self.db.total_changes()
            self.db.executemany(
                "UPDATE messages SET state = ?, message_id = ?, code = ?, detail = ?, not_before_us = ?, changed_at_us = ? "
                "WHERE intent = ? AND state = 1",
                rows,
            )
            crash_point("before_outcome")
            changed = self.db.total_changes() - before
        crash_point("after_outcome")
        return changed

    def heard_of(self, intents: Iterable[str], now_us: int) -> int:
        """Note that webhooks named these intents: an unknown call had its effect. Return how many were unknown."""
        with self.db:
            before = self.db.total_changes()
            self.db.executemany(
                "UPDATE messages SET state = 2, detail = 'a webhook named it', changed_at_us = ? WHERE intent = ? AND state = 4",
                [(now_us, intent) for intent in intents],
            )
            return self.db.total_changes() - before

    def skip(self, campaign: int, recipients: Iterable[str], why: str, now_us: int) -> int:
        """Take planned messages out, for good; return how many."""
        with self.db:
            before = self.db.total_changes()
            self.db.executemany(
                "UPDATE messages SET state = 5, detail = ?, changed_at_us = ? WHERE campaign = ? AND recipient = ? AND state = 0",
                [(why, now_us, campaign, recipient) for recipient in recipients],
            )
            return self.db.total_changes() - before

    def recover(self, now_us: int) -> tuple[int, int]:
        """After a start: calls that a former process left open. Return how many may be made again, and how many are now unknown."""
        with self.db:
            again = self.db.execute(
                "UPDATE messages SET state = 0, changed_at_us = ? WHERE state = 1 AND idempotent = 1 RETURNING 1", (now_us,)
            ).fetchall()
            unknown = self.db.execute(
                "UPDATE messages SET state = 4, detail = 'the process ended during the call', changed_at_us = ? "
                "WHERE state = 1 RETURNING 1",
                (now_us,),
            ).fetchall()
        return len(again), len(unknown)

    def counts(self, campaign: int) -> dict[str, int]:
        """Return how many messages are in each state."""
        found = dict(self.db.execute("SELECT state, count(*) FROM messages WHERE campaign = ? GROUP BY state", (campaign,)))
        return {name: found.get(state, 0) for state, name in enumerate(STATES)}

    def sent(self, campaign: int, waves: int, variants: int) -> np.ndarray:
        """Return how many messages went, [waves, variants]; those with an unknown end count, as most of them did."""
        found = np.zeros((waves, variants), np.int64)
        for wave, variant, n in self.db.execute(
            "SELECT wave, variant, count(*) FROM messages WHERE campaign = ? AND state IN (2, 4) GROUP BY wave, variant", (campaign,)
        ):
            found[wave - 1, variant] = n
        return found

    def of(self, intent: str) -> dict | None:
        """Return a message's row by name, or None."""
        cursor = self.db.execute("SELECT * FROM messages WHERE intent = ?", (intent,))
        row = cursor.fetchone()
        return None if row is None else dict(zip([c[0] for c in cursor.get_description()], row, strict=True)) | {"state": STATES[row[5]]}
