"""Browsers that take notifications, by recipient: written by the conductor, from what pages report and from what push services answer."""

from __future__ import annotations

from typing import NamedTuple

import apsw

browsers_max = 5  # of one recipient; a further one takes the place of the oldest

SCHEMA = """
CREATE TABLE IF NOT EXISTS push_subscriptions (endpoint TEXT PRIMARY KEY, recipient TEXT NOT NULL, p256dh TEXT NOT NULL, auth TEXT NOT NULL,
    changed_at_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS push_by_recipient ON push_subscriptions (recipient, changed_at_us);
"""


class Subscription(NamedTuple):
    """One browser, in the words of `web_push.Fields`."""

    endpoint: str
    p256dh: str
    auth: str


class PushSubscriptions:
    """The table, in a file of the caller's, who owns the transactions. What trims it: `browsers_max`, and `remove` for one that is gone."""

    def __init__(self, db: apsw.Connection) -> None:
        self.db = db
        if not db.readonly("main"):
            db.execute(SCHEMA)

    def put(self, recipient: str, endpoint: str, p256dh: str, auth: str, now_us: int) -> None:
        """Keep a browser; one that somebody else used before is now this recipient's."""
        self.db.execute(
            "INSERT INTO push_subscriptions VALUES (?, ?, ?, ?, ?) ON CONFLICT (endpoint) DO UPDATE SET recipient = excluded.recipient, "
            "p256dh = excluded.p256dh, auth = excluded.auth, changed_at_us = excluded.changed_at_us",
            (endpoint, recipient, p256dh, auth, now_us),
        )
        self.db.execute(
            "DELETE FROM push_subscriptions WHERE recipient = ?1 AND endpoint NOT IN (SELECT endpoint FROM push_subscriptions "
            "WHERE recipient = ?1 ORDER BY changed_at_us DESC, endpoint = ?2 DESC LIMIT ?3)",
            (recipient, endpoint, browsers_max),
        )

    def remove(self, endpoint: str, recipient: str = "") -> bool:
        """Forget a browser, where it is still that recipient's; return whether it was known. For outcomes of web push with code `gone`."""
        self.db.execute("DELETE FROM push_subscriptions WHERE endpoint = ?1 AND (?2 = '' OR recipient = ?2)", (endpoint, recipient))
        return bool(self.db.changes())

    def of(self, recipient: str) -> list[Subscription]:
        """Return a recipient's browsers, the latest first: what `{{ push.endpoint }}` and its keys are filled in from."""
        found = self.db.execute(
            "SELECT endpoint, p256dh, auth FROM push_subscriptions WHERE recipient = ? ORDER BY changed_at_us DESC LIMIT ?",
            (recipient, browsers_max),
        )
        return [Subscription(*row) for row in found]
