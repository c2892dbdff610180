"""Messages that wait for a recipient's next visit to the site, in the conductor's file; the door shows them."""

from __future__ import annotations

from typing import NamedTuple

import apsw
import msgspec

from .ways.way import FOREVER_US, Action

kept_us = 90 * 24 * 3600 * 1_000_000  # one that has ended, for explanations
trimmed_max = 5_000  # rows at a time
shown_max = 100  # of one recipient

_SCHEMA = """
-- What a recipient sees on the site until it ends. seq: what a browser has read up to. What ended or expired goes 90 days later.
CREATE TABLE IF NOT EXISTS on_site (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, recipient TEXT NOT NULL,
    body BLOB NOT NULL, expires_us INTEGER NOT NULL, ended TEXT NOT NULL DEFAULT '', changed_at_us INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS shown_to ON on_site (recipient, seq);
CREATE INDEX IF NOT EXISTS shown_by_change ON on_site (changed_at_us);
"""


class Shown(NamedTuple):
    """One message for the site. ``ended`` is ``""``, or how it ended: ``withdrawn``, ``closed``, ``clicked``."""

    seq: int
    id: str
    body: dict
    expires_us: int
    ended: str


class SiteMessages:
    """The table. Every method is part of its caller's transaction, or one of its own."""

    def __init__(self, db: apsw.Connection) -> None:
        self.db = db
        if not db.readonly("main"):
            db.execute(_SCHEMA)

    def show(self, action: Action, body: dict, now_us: int) -> None:
        """Keep a message for a recipient's next visit. The same action shows one message, however often it is kept."""
        self.db.execute(
            "INSERT INTO on_site (id, recipient, body, expires_us, changed_at_us) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
            (action.id, action.recipient, msgspec.json.encode(body), action.expires_us or FOREVER_US, now_us),
        )

    def end_shown(self, action_id: str, how: str, now_us: int) -> str:
        """Note that a message ended: ``withdrawn``, ``closed`` or ``clicked``. The first end stays; return which that is, ``""`` for
        a message that is not known."""
        with self.db:
            sql = "UPDATE on_site SET ended = ?, changed_at_us = ? WHERE id = ? AND ended = ''"
            self.db.execute(sql, (how, now_us, action_id))
            return self.db.execute("SELECT ended FROM on_site WHERE id = ?", (action_id,)).get or ""

    def shown(self, recipient: str, since_us: int, count_max: int = shown_max) -> list[Shown]:
        """Return a recipient's messages: all that are not ended, and those that ended since then, the oldest first."""
        found = self.db.execute(
            "SELECT seq, id, body, expires_us, ended FROM on_site WHERE recipient = ? AND (ended = '' OR changed_at_us >= ?) "
            "ORDER BY seq LIMIT ?",
            (recipient, since_us, count_max),
        )
        return [Shown(seq, i, msgspec.json.decode(body), expires, ended) for seq, i, body, expires, ended in found]

    def trim(self, now_us: int) -> int:
        """Take out what ended long ago, a part at a time; return how many."""
        before_us = now_us - kept_us
        self.db.execute(
            "DELETE FROM on_site WHERE seq IN (SELECT seq FROM on_site WHERE changed_at_us < ? AND (ended <> '' OR expires_us < ?) "
            "LIMIT ?)",
            (before_us, before_us, trimmed_max),
        )
        return self.db.changes()
