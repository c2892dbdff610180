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

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import msgspec
import numpy as np

from ..kit.crash import crash_point
from ..kit.errors import ConfigError

VERSION = 2
PLANNED, CALLED, SENT, REFUSED, UNKNOWN, SKIPPED = range(6)
STATES = ("planned", "called", "sent", "refused", "unknown", "skipped")
detail_chars_max = 500
promise_us_max = 23 * 3600 * 1_000_000  # how long a call that a vendor makes once however often it comes may be made again

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
-- A recipient has one row in a campaign, whatever the audience's file repeats: the key says so.
-- not_before_us: when a message that was put off may be tried again. idempotent: whether its last call may be made again.
-- called_at: the log's end when it was called; what a webhook can say of it stands behind. provider: the recipient's mailbox provider.
-- options: which option stands in each slot, as in `0,2`.
CREATE TABLE IF NOT EXISTS messages (campaign INTEGER, recipient TEXT, wave INTEGER, variant INTEGER, propensity REAL,
    state INTEGER NOT NULL DEFAULT 0, intent TEXT NOT NULL UNIQUE, message_id TEXT NOT NULL DEFAULT '', code TEXT NOT NULL DEFAULT '',
    detail TEXT NOT NULL DEFAULT '', tries INTEGER NOT NULL DEFAULT 0, idempotent INTEGER NOT NULL DEFAULT 0,
    not_before_us INTEGER NOT NULL DEFAULT 0, changed_at_us INTEGER NOT NULL, called_at INTEGER NOT NULL DEFAULT 0,
    provider INTEGER NOT NULL DEFAULT 0, options TEXT NOT NULL DEFAULT '', PRIMARY KEY (campaign, recipient)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS waiting ON messages (campaign, not_before_us) WHERE state = 0;
CREATE INDEX IF NOT EXISTS waiting_at ON messages (campaign, provider, not_before_us) WHERE state = 0;
CREATE INDEX IF NOT EXISTS open_calls ON messages (campaign) WHERE state = 1;
CREATE INDEX IF NOT EXISTS unsettled ON messages (called_at) WHERE state = 4;
CREATE INDEX IF NOT EXISTS by_recipient ON messages (recipient, changed_at_us);
-- How many messages of a wave and variant are in each state, asked for every second, of lists of millions; and when the last came to it.
CREATE TABLE IF NOT EXISTS totals (campaign INTEGER, wave INTEGER, variant INTEGER, state INTEGER, n INTEGER NOT NULL,
    last_us INTEGER NOT NULL, PRIMARY KEY (campaign, wave, variant, state)) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS counted AFTER INSERT ON messages BEGIN
    INSERT OR IGNORE INTO totals VALUES (new.campaign, new.wave, new.variant, new.state, 0, 0);
    UPDATE totals SET n = n + 1, last_us = max(last_us, new.changed_at_us)
        WHERE campaign = new.campaign AND wave = new.wave AND variant = new.variant AND state = new.state;
END;
CREATE TRIGGER IF NOT EXISTS recounted AFTER UPDATE OF state ON messages WHEN old.state <> new.state BEGIN
    INSERT OR IGNORE INTO totals VALUES (new.campaign, new.wave, new.variant, new.state, 0, 0);
    UPDATE totals SET n = n + 1, last_us = max(last_us, new.changed_at_us)
        WHERE campaign = new.campaign AND wave = new.wave AND variant = new.variant AND state = new.state;
    UPDATE totals SET n = n - 1 WHERE campaign = old.campaign AND wave = old.wave AND variant = old.variant AND state = old.state;
END;
"""


class Planned(msgspec.Struct, kw_only=True, frozen=True):
    """A message that is to go: who gets which variant in which wave, and how likely that was."""

    recipient: str
    wave: int
    variant: int
    propensity: float
    intent: str
    tries: int = 0
    provider: int = 0
    code: str = ""
    options: tuple[int, ...] = ()


class Result(msgspec.Struct, kw_only=True, frozen=True):
    """What became of a call for one intent. ``state`` is one of the numbers above; for PLANNED ``not_before_us`` says when to try again."""

    intent: str
    state: int
    message_id: str = ""
    code: str = ""
    detail: str = ""
    not_before_us: int = 0


class Outbox:
    """The only writer of ``outbox.db``. Every method is one transaction that is on disk when it returns. Any number may open it to read."""

    def __init__(self, path: Path, *, reading: bool = False) -> None:
        self.db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY) if reading else apsw.Connection(str(path))
        self.db.set_busy_timeout(10_000)
        try:
            self._check_version(path)
            if reading:
                return
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = FULL")
            self.db.execute(_SCHEMA)
            self.db.execute("INSERT OR IGNORE INTO meta VALUES ('version', ?)", (VERSION,))
        except (apsw.Error, ConfigError):
            self.db.close(True)
            raise

    def _check_version(self, path: Path) -> None:
        """Raise ConfigError for a file that another version of Midflight made: its messages must not be guessed at."""
        if self.db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'meta'").get:
            found = self.db.execute("SELECT value FROM meta WHERE key = 'version'").get
            if found not in (None, VERSION):
                todo = "Go on with the version that made it"
                raise ConfigError(f"{path.name} is of another version", expected=str(VERSION), got=found, where=str(path), todo=todo)

    def close(self) -> None:
        self.db.close()

    def put(self, campaign: int, messages: Iterable[Planned], now_us: int) -> int:
        """Put messages into the outbox; return how many are new. Whoever has a message of this campaign already gets no other."""
        return self._changed(
            "INSERT INTO messages (campaign, recipient, wave, variant, propensity, intent, changed_at_us, provider, options) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (campaign, recipient) DO NOTHING",
            (
                (campaign, m.recipient, m.wave, m.variant, m.propensity, m.intent, now_us, m.provider, ",".join(map(str, m.options)))
                for m in messages
            ),
        )

    def _changed(self, sql: str, rows: Iterable[tuple]) -> int:
        """Do the same with each of these rows, in one transaction or within the caller's; return how many messages were changed by it."""
        with self.db:
            return sum(1 for _ in self.db.executemany(f"{sql} RETURNING 1", rows))

    def waiting(self, campaign: int, now_us: int, count_max: int, provider: int = -1) -> list[Planned]:
        """Return messages that may go now, all or those to one mailbox provider, those that wait longest first.

        They are not taken: `call` does that.
        """
        which = "" if provider < 0 else f"AND provider = {int(provider)}"
        found = self.db.execute(
            f"SELECT recipient, wave, variant, propensity, intent, tries, provider, code, options FROM messages "
            f"WHERE campaign = ? AND state = 0 AND not_before_us <= ? {which} ORDER BY not_before_us LIMIT ?",
            (campaign, now_us, count_max),
        )
        return [
            Planned(recipient=r, wave=w, variant=v, propensity=p, intent=i, tries=t, provider=m, code=c, options=options_of(o))
            for r, w, v, p, i, t, m, c, o in found
        ]  # fmt: skip

    def call(self, intents: Iterable[str], now_us: int, *, idempotent: bool = False, position: int = 0) -> set[str]:
        """Note that these are about to be called, and return those that may be: only what is planned. Nothing else may be sent.

        ``position`` is the log's end at this moment.
        """
        allowed = set()
        with self.db:
            for intent in intents:
                self.db.execute(
                    "UPDATE messages SET state = 1, tries = tries + 1, idempotent = ?, changed_at_us = ?, called_at = ? "
                    "WHERE intent = ? AND state = 0",
                    (idempotent, now_us, position, intent),
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
            changed = self._changed(
                "UPDATE messages SET state = ?, message_id = ?, code = ?, detail = ?, not_before_us = ?, changed_at_us = ? "
                "WHERE intent = ? AND state = 1",
                rows,
            )
            crash_point("before_outcome")
        crash_point("after_outcome")
        return changed

    def heard_of(self, intents: Iterable[str], now_us: int) -> int:
        """Note that webhooks named these intents: an unknown call had its effect. Return how many were unknown."""
        return self._changed(
            "UPDATE messages SET state = 2, detail = 'a webhook named it', changed_at_us = ? WHERE intent = ? AND state = 4",
            [(now_us, intent) for intent in intents],
        )

    def unsettled(self) -> list[tuple[str, int]]:
        """Return the intents of calls whose end is unknown, each with the log's end when it was called."""
        return self.db.execute("SELECT intent, called_at FROM messages WHERE state = 4 ORDER BY called_at").fetchall()

    def settled_by_hand(self, campaign: int, state: int, now_us: int) -> int:
        """Note that somebody says of all unknown calls of a campaign that they had their effect (SENT), or had none (PLANNED)."""
        return self._changed(
            "UPDATE messages SET state = ?, detail = 'a person said so', changed_at_us = ? WHERE campaign = ? AND state = 4",
            [(state, now_us, campaign)],
        )

    def give_back(self, intents: Iterable[str], now_us: int) -> int:
        """Note that calls were not begun after all: they are planned again, and it was no try. Return how many."""
        return self._changed(
            "UPDATE messages SET state = 0, tries = tries - 1, changed_at_us = ? WHERE intent = ? AND state = 1",
            [(now_us, intent) for intent in intents],
        )

    def skip(self, campaign: int, recipients: dict[str, tuple[str, str]], now_us: int) -> int:
        """Take planned messages out, for good, each with a word for why and a detail; return how many."""
        return self._changed(
            "UPDATE messages SET state = 5, code = ?, detail = ?, changed_at_us = ? WHERE campaign = ? AND recipient = ? AND state = 0",
            [(why, detail[:detail_chars_max], now_us, campaign, recipient) for recipient, (why, detail) in recipients.items()],
        )

    def put_off(self, campaign: int, recipients: Iterable[str], until_us: int) -> int:
        """Let planned messages wait until then; return how many."""
        return self._changed(
            "UPDATE messages SET not_before_us = ? WHERE campaign = ? AND recipient = ? AND state = 0",
            [(until_us, campaign, recipient) for recipient in recipients],
        )

    def often(self, recipients: list[str], since_us: int, count: int, besides: dict[str, int] | None = None) -> set[str]:
        """Return those who have got ``count`` messages or more since then, all campaigns together, and what they got ``besides``."""
        asked = msgspec.json.encode(recipients).decode()
        got = dict(
            self.db.execute(
                "SELECT recipient, count(*) FROM messages WHERE recipient IN (SELECT value FROM json_each(?)) AND changed_at_us > ? "
                "AND state IN (1, 2, 4) GROUP BY recipient",
                (asked, since_us),
            )
        )
        besides = besides or {}
        return {recipient for recipient in recipients if got.get(recipient, 0) + besides.get(recipient, 0) >= count}

    def recover(self, now_us: int, begun: set[str] | None = None) -> tuple[int, int]:
        """After a start: calls that a former process left open. Return how many go again, and how many are now unknown.

        ``begun`` names those that can have had an effect; None where that is not known. Vendors forget what they promised after a day:
        then a second call would be another message.
        """
        with self.db:
            self.db.execute(
                "UPDATE messages SET state = 4, detail = 'no answer, and too long ago to ask again', changed_at_us = ? "
                "WHERE state = 0 AND idempotent = 1 AND tries > 0 AND changed_at_us <= ?",
                (now_us, now_us - promise_us_max),
            )
            again = self.db.execute(
                "UPDATE messages SET state = 0, changed_at_us = ? WHERE state = 1 AND idempotent = 1 AND changed_at_us > ? RETURNING 1",
                (now_us, now_us - promise_us_max),
            ).fetchall()
            left = [intent for (intent,) in self.db.execute("SELECT intent FROM messages WHERE state = 1")]
            never = [] if begun is None else [intent for intent in left if intent not in begun]
            self.db.executemany(
                "UPDATE messages SET state = 0, tries = tries - 1, changed_at_us = ? WHERE intent = ?", [(now_us, i) for i in never]
            )
            self.db.execute(
                "UPDATE messages SET state = 4, detail = 'the process ended during the call', changed_at_us = ? WHERE state = 1", (now_us,)
            )
        return len(again) + len(never), len(left) - len(never)

    def gone_since(self, campaign: int, since_us: int) -> int:
        """Return how many messages of a campaign went, or may have gone, since then."""
        (found,) = self.db.execute(
            "SELECT count(*) FROM messages WHERE campaign = ? AND state IN (1, 2, 4) AND changed_at_us >= ?", (campaign, since_us)
        ).fetchone()
        return found

    def counts(self, campaign: int) -> dict[str, int]:
        """Return how many messages are in each state."""
        found = dict(self.db.execute("SELECT state, sum(n) FROM totals WHERE campaign = ? GROUP BY state", (campaign,)))
        return {name: found.get(state, 0) for state, name in enumerate(STATES)}

    def sent(self, campaign: int, waves: int, variants: int) -> np.ndarray:
        """Return how many messages went, [waves, variants]; those with an unknown end count, as most of them did."""
        found = np.zeros((waves, variants), np.int64)
        for wave, variant, n in self.db.execute(
            "SELECT wave, variant, sum(n) FROM totals WHERE campaign = ? AND state IN (2, 4) GROUP BY wave, variant", (campaign,)
        ):
            found[wave - 1, variant] = n
        return found

    def gone_us(self, campaign: int, waves: int) -> np.ndarray:
        """Return when the last message of each wave had gone, [waves]; infinity where some still wait or nothing has gone."""
        found = np.full(waves, np.inf)
        for wave, last_us in self.db.execute(
            "SELECT wave, max(last_us) FILTER (WHERE state IN (2, 4)) FROM totals WHERE campaign = ? AND n > 0 GROUP BY wave "
            "HAVING min(state) > 1",
            (campaign,),
        ):
            if last_us is not None:
                found[wave - 1] = last_us
        return found

    def of(self, intent: str) -> dict | None:
        """Return a message's row by name, or None."""
        cursor = self.db.execute("SELECT * FROM messages WHERE intent = ?", (intent,))
        row = cursor.fetchone()
        return None if row is None else dict(zip([c[0] for c in cursor.get_description()], row, strict=True)) | {"state": STATES[row[5]]}


def options_of(text: str) -> tuple[int, ...]:
    """Return the options that a message's row names, in the order of the campaign's slots."""
    return tuple(map(int, text.split(","))) if text else ()


@contextmanager
def as_it_stands(path: Path, *tables: str) -> Iterator[Outbox | None]:
    """Give an outbox as it stands at one moment, to read; None where there is none, or where it does not have all of these tables yet."""
    if not path.exists():
        yield None
        return
    outbox = Outbox(path, reading=True)
    try:
        outbox.db.execute("BEGIN")
        there = {name for (name,) in outbox.db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        yield outbox if there.issuperset(tables) else None
    finally:
        outbox.db.close(True)
