"""The table of actions: one row for what became of each firing, how many are in each state, and the ledger of what people did about them.

What is over is kept for `kept_us` of log time, longer than any rule may act on a cause; a firing from before that is over too, and is not
taken in again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import apsw
import msgspec

from ..decide.limits import Fired, Limits, day_us
from ..events import clean
from ..kit.errors import MidflightError
from .outbox import Outbox
from .rulebook import Rulebook
from .touches import Touches

WAITING, SUGGESTED, APPROVED, CALLED, UNDOING, UNKNOWN, SENT, REFUSED, EXPIRED, DROPPED, HELD_OUT, OBSERVED, UNDONE = range(13)
STATES = (
    "waiting", "suggested", "approved", "called", "undoing", "unknown", "sent", "refused", "expired", "dropped", "held_out", "observed",
    "undone",
)  # fmt: skip

kept_us = 35 * day_us  # of what is over, by log time
trial_kept_us = 90 * day_us
chars_max = 500
trimmed_max = 5_000  # rows at a time
listed_max = 1_000

_SCHEMA = """
-- ready: may be looked at now; else at until_us. touched_us: when its touch was noted, see touches.py. was: the state before it was undone.
-- fields, subject: what the last call said, and what its order matters for; see ways/way.py. promise_us: how long the last call may be made
-- again if nothing is heard of it; maybe_us: when the first such call was made, 0 where nothing can have happened without our knowing.
-- message_id, code: what the other end said. called_at: the log's end at the last call; what a webhook can say of it stands behind.
-- Rows that are over, or unknown, go after 35 days of log time; the others expire before that.
CREATE TABLE IF NOT EXISTS actions (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, rule TEXT NOT NULL, version INTEGER NOT NULL,
    recipient TEXT NOT NULL, way TEXT NOT NULL DEFAULT '', fired_us INTEGER NOT NULL, cause_us INTEGER NOT NULL,
    expires_us INTEGER NOT NULL, cause BLOB NOT NULL, state INTEGER NOT NULL DEFAULT 0, ready INTEGER NOT NULL DEFAULT 0,
    until_us INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '', words TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '',
    approved INTEGER NOT NULL DEFAULT 0, tries INTEGER NOT NULL DEFAULT 0, touched_us INTEGER NOT NULL DEFAULT 0,
    was INTEGER NOT NULL DEFAULT 0, changed_us INTEGER NOT NULL, fields BLOB NOT NULL DEFAULT '{}', subject TEXT NOT NULL DEFAULT '',
    promise_us INTEGER NOT NULL DEFAULT 0, maybe_us INTEGER NOT NULL DEFAULT 0, message_id TEXT NOT NULL DEFAULT '',
    code TEXT NOT NULL DEFAULT '', called_at INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS actions_ready ON actions (rule, fired_us, id) WHERE ready = 1;
CREATE INDEX IF NOT EXISTS actions_waiting ON actions (until_us) WHERE ready = 0 AND state IN (0, 2);
CREATE INDEX IF NOT EXISTS actions_open ON actions (rule, version) WHERE state IN (0, 1, 2);
CREATE INDEX IF NOT EXISTS actions_expiring ON actions (expires_us) WHERE state IN (0, 1, 2);
CREATE INDEX IF NOT EXISTS actions_suggested ON actions (rule, number) WHERE state = 1;
CREATE INDEX IF NOT EXISTS actions_called ON actions (number) WHERE state = 3;
CREATE INDEX IF NOT EXISTS actions_undoing ON actions (until_us) WHERE state = 4;
CREATE INDEX IF NOT EXISTS actions_unknown ON actions (number) WHERE state = 5;
CREATE INDEX IF NOT EXISTS actions_refused ON actions (number) WHERE state = 7;
CREATE INDEX IF NOT EXISTS actions_over ON actions (fired_us) WHERE state >= 5;
CREATE INDEX IF NOT EXISTS actions_of_person ON actions (recipient, number);
CREATE INDEX IF NOT EXISTS actions_of_rule ON actions (rule, number);
CREATE INDEX IF NOT EXISTS actions_of_subject ON actions (way, subject, number) WHERE subject <> '';
CREATE INDEX IF NOT EXISTS actions_given_up ON actions (number) WHERE state = 7 AND reason = 'gave_up';
-- How many actions of a rule are in each state; of those that are over, since the rule began. One row for each rule and state.
CREATE TABLE IF NOT EXISTS action_totals (rule TEXT, state INTEGER, n INTEGER NOT NULL, PRIMARY KEY (rule, state)) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS action_counted AFTER INSERT ON actions BEGIN
    INSERT INTO action_totals VALUES (new.rule, new.state, 1) ON CONFLICT DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER IF NOT EXISTS action_recounted AFTER UPDATE OF state ON actions WHEN old.state <> new.state BEGIN
    INSERT INTO action_totals VALUES (new.rule, new.state, 1) ON CONFLICT DO UPDATE SET n = n + 1;
    UPDATE action_totals SET n = n - 1 WHERE rule = old.rule AND state = old.state;
END;
-- On which side of a rule's holdout somebody is, from his first firing on: what the rule is worth is measured by it. Kept for 90 days.
-- drawn: by which seed and share; with others a new measurement begins.
CREATE TABLE IF NOT EXISTS trial (rule TEXT, drawn TEXT, recipient TEXT, held_out INTEGER NOT NULL, since_us INTEGER NOT NULL,
    PRIMARY KEY (rule, drawn, recipient)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS trial_since ON trial (since_us);
-- What people, and the process itself, did about rules and actions. Nothing is ever taken out of it.
CREATE TABLE IF NOT EXISTS rule_ledger (number INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, rule TEXT NOT NULL, action TEXT NOT NULL,
    kind TEXT NOT NULL, who TEXT NOT NULL, text TEXT NOT NULL, why TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS rule_ledger_of ON rule_ledger (rule, number);
"""


class NotNow(MidflightError):
    """Something that an action's state does not allow."""

    status = 409
    code = "not_now"


class Row(msgspec.Struct, kw_only=True, frozen=True):
    """An action that may be decided on. ``way`` is the one that it goes or went by."""

    id: str
    rule: str
    version: int
    recipient: str
    fired_us: int
    cause_us: int
    expires_us: int
    chain: tuple[str, ...]
    state: int
    approved: bool
    tries: int
    touched_us: int
    way: str = ""
    promise_us: int = 0
    maybe_us: int = 0

    @property
    def fired(self) -> Fired:
        return Fired(
            id=self.id, rule=self.rule, version=self.version, recipient=self.recipient, cause_us=self.cause_us, chain=self.chain
        )  # fmt: skip


COLUMNS = (
    "id, rule, version, recipient, fired_us, cause_us, expires_us, cause, state, approved, tries, touched_us, way, promise_us, maybe_us"
)


class _Cause(msgspec.Struct):
    chain: list[str] = []


def row_of(values: Iterable) -> Row:
    id, rule, version, recipient, fired_us, cause_us, expires, cause, state, approved, tries, touched_us, way, promise_us, maybe_us = values
    chain = tuple(msgspec.json.decode(cause, type=_Cause).chain)
    return Row(
        id=id, rule=rule, version=version, recipient=recipient, fired_us=fired_us, cause_us=cause_us, expires_us=expires, chain=chain,
        state=state, approved=bool(approved), tries=tries, touched_us=touched_us, way=way, promise_us=promise_us, maybe_us=maybe_us,
    )  # fmt: skip


class ActionTable:
    """The rows and how they are read. ``transaction`` puts several methods, and those of ``book`` and ``touches``, into one."""

    def __init__(self, outbox: Outbox) -> None:
        self.db: apsw.Connection = outbox.db
        if not self.db.readonly("main"):
            self.db.execute(_SCHEMA)
        self.touches = Touches(self.db)
        self.book = Rulebook(self.db)
        self._ready: set[str] = {rule for (rule,) in self.db.execute("SELECT DISTINCT rule FROM actions WHERE ready = 1")}

    @contextmanager
    def transaction(self, *, synced: bool = True) -> Iterator[None]:
        """Do all of it or nothing. Without ``synced`` it outlives the process at once, and a power cut only with the next that is."""
        outermost = not self.db.in_transaction
        if outermost and not synced:
            self.db.execute("PRAGMA synchronous = NORMAL")
        try:
            with self.db:
                yield
        except BaseException:
            self.touches.forget()
            self.book.forget()
            self._ready = {rule for (rule,) in self.db.execute("SELECT DISTINCT rule FROM actions WHERE ready = 1")}
            raise
        finally:
            if outermost and not synced:
                self.db.execute("PRAGMA synchronous = FULL")

    def meta(self, key: str, default: object = None) -> object:
        found = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if found is None else found[0]

    def set_meta(self, key: str, value: object) -> None:
        self.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # -- keeping house ---------------------------------------------------------------------------------------------------------

    def expire(self, now_us: int) -> int:
        """End what nobody wants any more, a part at a time; return how many."""
        sql = "SELECT 1 FROM actions WHERE state IN (0, 1, 2) AND expires_us < ? LIMIT 1"
        if self.db.execute(sql, (now_us,)).fetchone() is None:
            return 0
        self.db.execute(
            "UPDATE actions SET state = CASE WHEN maybe_us > 0 THEN 5 ELSE 8 END, ready = 0, words = reason, reason = 'expired', "
            "changed_us = ? WHERE number IN "
            "(SELECT number FROM actions WHERE state IN (0, 1, 2) AND expires_us < ? LIMIT ?)",
            (now_us, now_us, trimmed_max),
        )
        return self.db.changes()

    def trim(self, log_us: int, now_us: int, elapsed_us: int) -> int:
        """Take out what is over and old, a part at a time; return how many rows.

        How old is measured by what both log and clock say, and what they say is believed to move at most twice as fast as the process has
        seen time go by, ``elapsed_us`` since the last call: a clock that jumps must not make anything forgotten.
        """
        with self.transaction():
            believed = min(log_us, now_us, self.meta("believed_us", now_us) + 2 * elapsed_us)
            self.set_meta("believed_us", believed)
            horizon_us = max(self.meta("horizon_us", 0), believed - kept_us)
            self.set_meta("horizon_us", horizon_us)
            self.db.execute(
                "DELETE FROM actions WHERE number IN (SELECT number FROM actions WHERE state >= 5 AND fired_us <= ? LIMIT ?)",
                (horizon_us, trimmed_max),
            )
            count = self.db.changes()
            self.db.execute(
                "DELETE FROM trial WHERE (rule, drawn, recipient) IN (SELECT rule, drawn, recipient FROM trial WHERE since_us < ? LIMIT ?)",
                (believed - trial_kept_us, trimmed_max),
            )
            return count + self.db.changes() + self.touches.trim(believed)

    def note(self, rule: str, action: str, kind: str, who: str, text: str, why: str, now_us: int) -> None:
        """Write a line of the ledger; within a transaction of the caller's it is part of that."""
        values = (now_us, rule, action, kind, clean(who)[:200], text[:chars_max], clean(why)[:2000])
        self.db.execute("INSERT INTO rule_ledger (at_us, rule, action, kind, who, text, why) VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    # -- reading ---------------------------------------------------------------------------------------------------------------

    def total(self, rule: str, state: int) -> int:
        """Return how many actions of a rule are in a state; of those that are over, since it began."""
        return self.db.execute("SELECT n FROM action_totals WHERE rule = ? AND state = ?", (rule, state)).get or 0

    def totals(self) -> dict[str, dict[str, int]]:
        """Return how many actions of each rule are in each state."""
        found: dict[str, dict[str, int]] = {}
        for rule, state, n in self.db.execute("SELECT rule, state, n FROM action_totals WHERE n > 0 ORDER BY rule, state"):
            found.setdefault(rule, {})[STATES[state]] = n
        return found

    def listed(self, where: str = "", values: tuple = (), *, before: int = 1 << 62, count_max: int = 100) -> list[dict]:
        """Return actions as pages show them, the newest first. ``where`` is one of WHERE."""
        rows = self.db.execute(
            f"SELECT {', '.join(LISTED)} FROM actions WHERE {WHERE[where]} number < ? ORDER BY number DESC LIMIT ?",
            (*values, before, min(count_max, listed_max)),
        )
        return [dict(zip(LISTED, row, strict=True)) | {"state": STATES[row[0]]} for row in rows]

    def ledger(self, rule: str = "", *, before: int = 1 << 62, count_max: int = 100) -> list[dict]:
        """Return lines of the ledger, the newest first, of one rule or of all."""
        which, values = ("rule = ? AND", (rule,)) if rule else ("", ())
        rows = self.db.execute(
            f"SELECT number, at_us, rule, action, kind, who, text, why FROM rule_ledger WHERE {which} number < ? "
            "ORDER BY number DESC LIMIT ?",
            (*values, before, count_max),
        )
        return [dict(zip(("number", "at_us", "rule", "action", "kind", "who", "text", "why"), row, strict=True)) for row in rows]

    def sides(self, rule: str, limits: Limits) -> Iterator[tuple[str, bool, int]]:
        """Yield who is on which side of a rule's holdout, drawn as these limits say, and since when: recipient, whether held out, in us."""
        rows = self.db.execute("SELECT recipient, held_out, since_us FROM trial WHERE rule = ? AND drawn = ?", (rule, drawn_by(limits)))
        for recipient, out, since_us in rows:
            yield recipient, bool(out), since_us


LISTED = (
    "state", "number", "id", "rule", "version", "recipient", "way", "fired_us", "cause_us", "expires_us", "until_us", "reason", "words",
    "detail", "message_id", "code", "approved", "tries", "touched_us", "maybe_us", "changed_us", "cause",
)  # fmt: skip
# What lists of actions can be asked for: all, a person's, a rule's, a rule's suggestions, all in a state that is few.
WHERE = {
    "": "", "recipient": "recipient = ? AND", "rule": "rule = ? AND", "suggested": "state = 1 AND", "unknown": "state = 5 AND",
    "given_up": "state = 7 AND reason = 'gave_up' AND", "refused": "state = 7 AND",
    "suggested_of": "rule = ? AND state = 1 AND",
}  # fmt: skip


def drawn_by(limits: Limits) -> str:
    """Return what says who is held out."""
    return f"{limits.seed}/{limits.holdout:.6g}"
