"""What becomes of every firing: the intent is on disk before the call, the outcome after it.

An action goes through these states, and never back from a call whose end is unknown::

    waiting ─────────┬──► called ──► sent | refused | unknown
       │  ▲          │       │
       │  └─ later ──┼───────┘
       ├──► suggested ──► approved (goes on as waiting does)
       └──► expired | dropped | held_out | observed
    sent | unknown ──► undoing ──► undone, or back where it could not be

A call that may have had its effect is made again only by a way out that promises that twice is once, and only as long as the promise holds
(``maybe_us``: since when). Until then it waits and its touch stays; whatever else would end it ends it as unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from heapq import merge
from itertools import islice

import msgspec

from ..decide.limits import REASONS, Verdict, day_us, expires_us
from ..events import clean
from ..kit.crash import crash_point
from ..kit.errors import NotFound
from .action_table import (
    APPROVED,
    CALLED,
    COLUMNS,
    DROPPED,
    EXPIRED,
    HELD_OUT,
    OBSERVED,
    REFUSED,
    SENT,
    STATES,
    SUGGESTED,
    UNDOING,
    UNKNOWN,
    WAITING,
    NotNow,
    Row,
    chars_max,
    drawn_by,
    row_of,
)  # fmt: skip
from .intake import Intake
from .rulebook import Rule
from .touches import SHADOW
from .ways.way import NOT_TRIED, Action, Outcome

suggested_max = 2_000  # of one rule
tries_max = 8
retry_s_first, retry_s_max = 2.0, 3600.0
said_s_max = 24 * 3600.0  # what the other end may ask for
until_us_max = 10 * day_us  # nothing waits longer without being looked at; further off is the word of a clock that was wrong
unsettled_max = 5_000  # that are searched for in webhooks
swept_max = 5_000  # that an edit drops at once; the others are dropped when their turn comes


class Said(msgspec.Struct, kw_only=True, frozen=True):
    """What a call says: its ``fields``, filled in, and the ``subject`` that the order of actions matters for."""

    fields: dict[str, object] = {}
    subject: str = ""


class Actions(Intake):
    """The actions, in the outbox's file."""

    # -- deciding --------------------------------------------------------------------------------------------------------------

    def wake(self, now_us: int) -> int:
        """Let those be looked at again whose time has come; return how many."""
        rows = self.db.execute(
            "UPDATE actions SET ready = 1, until_us = 0 WHERE ready = 0 AND state IN (0, 2) AND (until_us <= ? OR until_us > ?) "
            "RETURNING rule",
            (now_us, now_us + until_us_max),
        ).fetchall()
        self._ready.update(rule for (rule,) in rows)
        return len(rows)

    def ready(self, count_max: int, without: Iterable[str] = ()) -> list[Row]:
        """Return those that may be decided on now: the highest priority first; of the same the rules take turns, each with its oldest, of
        the same age by id. So a rule that fires for a whole list at once delays no other."""
        levels: dict[int, list[str]] = {}
        for rule in self._ready - set(without):
            levels.setdefault(self.book.priority(rule), []).append(rule)
        found: list[tuple] = []
        for priority in sorted(levels, reverse=True):
            lines = [self._line(rule) for rule in levels[priority]]
            turns = merge(*(enumerate(line) for line in lines), key=lambda one: (one[0], one[1][4], one[1][0]))
            found += (values for _, values in islice(turns, count_max - len(found)))
            for line in lines:
                line.close()
            if len(found) >= count_max:
                break
        return [row_of(values) for values in found]

    def _line(self, rule: str) -> Iterator[tuple]:
        empty = True
        for values in self.db.execute(
            f"SELECT {COLUMNS} FROM actions INDEXED BY actions_ready WHERE ready = 1 AND rule = ? ORDER BY fired_us, id", (rule,)
        ):
            empty = False
            yield values
        if empty:
            self._ready.discard(rule)

    def decide(
        self, row: Row, rule: Rule | None, verdict: Verdict, now_us: int, said: Said | None = None, position: int = 0
    ) -> Action | None:  # fmt: skip
        """Note what becomes of an action, and return it where it may be called; part of a transaction. ``rule`` may be None for a drop.

        ``said`` is what a call says, ``position`` the log's end at this moment.
        """
        if verdict.eligible and rule and rule.limits.holdout > 0 and row.recipient:
            values = (row.rule, drawn_by(rule.limits), row.recipient, int(verdict.kind == "held_out"), row.fired_us)
            self.db.execute("INSERT OR IGNORE INTO trial VALUES (?, ?, ?, ?, ?)", values)
        if verdict.kind == "act":
            return self._called(row, rule, verdict, now_us, said or Said(), position)
        # What waits for its rule keeps its place.
        state, ready, reason, words = STATE_OF[verdict.kind], int(verdict.wide), verdict.reason, verdict.words
        if verdict.kind == "drop" and reason == "expired":
            state = EXPIRED
        if verdict.kind == "drop" and reason in ("content", "no_way"):
            state = REFUSED
        if verdict.kind == "wait":
            state = APPROVED if row.approved else WAITING
        if row.maybe_us:
            # It may have happened to somebody, and nobody may say that it has not.
            state = state if verdict.kind == "wait" else UNKNOWN
        elif verdict.kind == "suggest" and self.total(row.rule, SUGGESTED) >= suggested_max:
            state, reason, words = DROPPED, "too_many", f"{suggested_max} suggestions wait already"
        elif verdict.kind == "observed":
            words = f"would {'act' if verdict.would == 'act' else verdict.would.replace('_', ' ')}{': ' + words if words else ''}"
            if verdict.would == "act":
                self.touches.note(row.id, SHADOW + row.rule, row.recipient, rule.action.way, now_us)
        self._change(row.id, state, ready, 0 if verdict.wide else verdict.until_us, reason, words, now_us)
        return None

    def _called(self, row: Row, rule: Rule, verdict: Verdict, now_us: int, said: Said, position: int) -> Action | None:
        # What may have arrived is said again as it was.
        fields = None if row.maybe_us else msgspec.json.encode(said.fields)
        self.db.execute(
            "UPDATE actions SET state = 3, ready = 0, until_us = 0, reason = ?, words = ?, way = ?, tries = tries + 1, touched_us = ?, "
            "expires_us = ?, changed_us = ?, fields = coalesce(?, fields), subject = coalesce(?, subject), called_at = ?, "
            "promise_us = CASE WHEN maybe_us > 0 THEN promise_us ELSE 0 END WHERE id = ? AND state IN (0, 2)",
            (verdict.reason, verdict.words, rule.action.way, self._touch(row, rule.action.way, now_us),
             expires_us(row.cause_us, rule.limits), now_us, fields, None if row.maybe_us else said.subject, position, row.id),
        )  # fmt: skip
        assert self.db.changes(), "what is decided on waits"
        return self.action(row.id)

    def _touch(self, row: Row, way: str, now_us: int) -> int:
        """Note a touch at a time of its own, and return when that is: it can be taken back without those of earlier calls."""
        while now_us in self.touches.of(row.id, row.rule, row.recipient):
            now_us += 1
        self.touches.note(row.id, row.rule, row.recipient, way, now_us)
        return now_us

    def _change(self, id: str, state: int, ready: int, until_us: int, reason: str, words: str, now_us: int) -> None:
        self.db.execute(
            "UPDATE actions SET state = ?, ready = ?, until_us = ?, reason = ?, words = ?, changed_us = ? "
            "WHERE id = ? AND state IN (0, 1, 2, 3)",
            (state, ready, until_us, reason, words[:chars_max], now_us, id),
        )

    def row(self, id: str) -> Row | None:
        found = self.db.execute(f"SELECT {COLUMNS} FROM actions WHERE id = ?", (id,)).fetchone()
        return None if found is None else row_of(found)

    def action(self, id: str) -> Action | None:
        """Return what a way out is handed, as the last call said it."""
        found = self.db.execute(f"SELECT {COLUMNS}, fields, subject FROM actions WHERE id = ?", (id,)).fetchone()
        if found is None:
            return None
        *values, fields, subject = found
        row = row_of(values)
        return Action(
            id=row.id, rule=row.rule, version=row.version, recipient=row.recipient, way=row.way, fields=msgspec.json.decode(fields),
            expires_us=row.expires_us, chain=(*row.chain, row.rule), subject=subject,
        )  # fmt: skip

    def made(self, id: str) -> Outcome:
        """Return what the other end said of an action that went."""
        message_id, code = self.db.execute("SELECT message_id, code FROM actions WHERE id = ?", (id,)).fetchone()
        return Outcome(kind="sent", message_id=message_id, code=code)

    def way(self, id: str) -> str:
        """Return by which way out an action goes or went; nothing where that is not known."""
        return self.db.execute("SELECT way FROM actions WHERE id = ?", (id,)).get or ""

    def cause(self, id: str) -> dict[str, object]:
        """Return what set an action off."""
        found = msgspec.json.decode(self.db.execute("SELECT cause FROM actions WHERE id = ?", (id,)).get or b"{}")
        return found if isinstance(found, dict) else {}

    # -- the order of actions about the same -------------------------------------------------------------------------------------

    def before(self, action: Action) -> tuple[bool, str]:
        """Return whether an earlier action about the same subject has no end yet, and the id of the last one in force, or ``""``."""
        about = "WHERE way = ? AND subject = ? AND subject <> '' AND number < (SELECT number FROM actions WHERE id = ?)"
        values = (action.way, action.subject, action.id)
        open_one = self.db.execute(
            f"SELECT 1 FROM actions {about} AND (state IN (3, 4) OR (state IN (0, 2) AND maybe_us > 0)) LIMIT 1", values
        ).get
        force = self.db.execute(f"SELECT id FROM actions {about} AND state IN (5, 6) ORDER BY number DESC LIMIT 1", values).get
        return bool(open_one), force or ""

    def superseded(self, action: Action) -> bool:
        """Tell whether a later action about the same subject is in force, or may be."""
        sql = (
            "SELECT 1 FROM actions WHERE way = ? AND subject = ? AND subject <> '' AND number > (SELECT number FROM actions WHERE id = ?) "
            "AND (state IN (4, 5, 6) OR maybe_us > 0 OR (state = 3 AND promise_us > 0)) LIMIT 1"
        )
        return bool(self.db.execute(sql, (action.way, action.subject, action.id)).get)

    # -- the call --------------------------------------------------------------------------------------------------------------

    def step_back(self, row: Row) -> tuple[int, ...]:
        """Take back the touches of an action while it is judged: its own count must not speak against it. Return when they were."""
        times_us = self.touches.of(row.id, row.rule, row.recipient)
        for at_us in times_us:
            self.touches.take_back(row.id, row.rule, row.recipient, row.way, at_us)
        return times_us

    def put_back(self, row: Row, times_us: Iterable[int]) -> None:
        """Note touches again that were taken back to judge."""
        for at_us in times_us:
            self.touches.note(row.id, row.rule, row.recipient, row.way, at_us)

    def begin(self, row: Row, promise_us: int, now_us: int) -> None:
        """Note that a call begins now, and how long it may be made again; part of a transaction in which it was judged again."""
        at_us = self._touch(row, row.way, now_us)
        self.db.execute("UPDATE actions SET touched_us = ?, promise_us = ? WHERE id = ? AND state = 3", (at_us, promise_us, row.id))

    def give_back(self, row: Row, rule: Rule | None, verdict: Verdict, now_us: int) -> None:
        """Note that a call does not begin after all, and what becomes of it in its place; it was no try. Its touch was taken back."""
        self.db.execute("UPDATE actions SET tries = tries - 1, touched_us = maybe_us WHERE id = ? AND state = 3", (row.id,))
        self.decide(row, rule, verdict, now_us)
        self._ready.add(row.rule)

    def settle(self, outcomes: Iterable[tuple[str, Outcome]], now_us: int) -> int:
        """Note what became of calls, in one transaction; return how many. Only an open call has an end, and a known end never changes."""
        count = 0
        with self.transaction():
            for id, outcome in outcomes:
                row = self.row(id)
                if row is not None and row.state == CALLED:
                    self._settle(row, outcome, now_us)
                    count += 1
            crash_point("before_action_outcome")
        crash_point("after_action_outcome")
        return count

    def _settle(self, row: Row, outcome: Outcome, now_us: int) -> None:
        state, reason, until_us = {"sent": SENT, "refused": REFUSED}.get(outcome.kind, UNKNOWN), "", 0
        # Since when it may have happened: a promise to do it once must have been there before the call.
        maybe_us = row.maybe_us or (row.touched_us if outcome.kind == "again" and row.promise_us else 0)
        tries = row.tries - (outcome.code in NOT_TRIED)
        if outcome.kind == "later" or (outcome.kind == "again" and maybe_us):
            state = APPROVED if row.approved else WAITING
            reason, until_us = "retry", now_us + int(1e6 * retry_s(row.id, tries, outcome.retry_s))
            if tries >= tries_max:
                state, reason, until_us = REFUSED, "gave_up", 0
            elif maybe_us and until_us >= maybe_us + row.promise_us:
                state, reason, until_us = UNKNOWN, "no_answer", 0
        if maybe_us and state == REFUSED:
            state = UNKNOWN
        touched_us = row.touched_us
        if outcome.kind in ("later", "refused"):
            # By this call nothing has happened to anybody.
            self.touches.take_back(row.id, row.rule, row.recipient, row.way, row.touched_us)
            touched_us = maybe_us
        self.db.execute(
            "UPDATE actions SET state = ?, ready = 0, until_us = ?, reason = CASE WHEN ? <> '' THEN ? ELSE reason END, detail = ?, "
            "touched_us = ?, maybe_us = ?, tries = ?, message_id = ?, code = ?, changed_us = ? WHERE id = ?",
            (state, until_us, reason, reason, clean(outcome.detail)[:chars_max], touched_us, maybe_us, tries,
             clean(outcome.message_id)[:chars_max], clean(outcome.code)[:100], now_us, row.id),
        )  # fmt: skip

    def recover(self, now_us: int, begun: set[str] | None) -> tuple[int, int]:
        """After a start: calls that a former process left open. Return how many go again, and how many are now unknown.

        ``begun`` names those that can have had an effect; None where that is not known.
        """
        again = 0
        with self.transaction():
            # What is believed of the time begins with the first start: see `trim`.
            self.set_meta("believed_us", self.meta("believed_us", now_us))
            rows = self.db.execute(f"SELECT {COLUMNS} FROM actions WHERE state = 3 ORDER BY number").fetchall()
            for row in map(row_of, rows):
                if begun is not None and row.id not in begun:
                    self._go_again(row, now_us)
                    again += 1
                    continue
                if begun is None:
                    # When exactly it went is lost: limits look at the earliest and at the latest that it can have been.
                    self.touches.note(row.id, row.rule, row.recipient, row.way, now_us)
                if row.promise_us and now_us < (row.maybe_us or row.touched_us) + row.promise_us:
                    self._may_be_repeated(row, now_us)
                    again += 1
                    continue
                sql = "UPDATE actions SET state = 5, detail = 'the process ended during the call', changed_us = ? WHERE id = ?"
                self.db.execute(sql, (now_us, row.id))
            crash_point("before_recovered")
        return again, len(rows) - again

    def _go_again(self, row: Row, now_us: int) -> None:
        """Note that a call was never made, and was no try."""
        self.touches.take_back(row.id, row.rule, row.recipient, row.way, row.touched_us)
        self.db.execute(
            "UPDATE actions SET state = ?, ready = 1, touched_us = maybe_us, tries = tries - 1, changed_us = ? WHERE id = ?",
            (APPROVED if row.approved else WAITING, now_us, row.id),
        )
        self._ready.add(row.rule)

    def _may_be_repeated(self, row: Row, now_us: int) -> None:
        """Note that a call may have had its effect, and is made again: the way out promises that twice is once."""
        self.db.execute(
            "UPDATE actions SET state = ?, ready = 1, maybe_us = CASE WHEN maybe_us > 0 THEN maybe_us ELSE touched_us END, "
            "detail = 'the process ended during the call', changed_us = ? WHERE id = ?",
            (APPROVED if row.approved else WAITING, now_us, row.id),
        )
        self._ready.add(row.rule)

    def reached_by(self, ways: list[str], recipients: list[str], since_us: int, without: str = "") -> dict[str, int]:
        """Return how often these recipients were reached by these ways out since then, or may have been, ``without`` one action."""
        return dict(
            self.db.execute(
                "SELECT recipient, count(*) FROM actions WHERE recipient IN (SELECT value FROM json_each(?)) AND state IN (3, 4, 5, 6) "
                "AND touched_us > ? AND id <> ? AND way IN (SELECT value FROM json_each(?)) GROUP BY recipient",
                (msgspec.json.encode(recipients).decode(), since_us, without, msgspec.json.encode(ways).decode()),
            )
        )

    def unsettled(self, ways: list[str]) -> list[tuple[str, int]]:
        """Return calls of these ways out whose end is unknown, the newest: their ids, and the log's end when they were called."""
        return self.db.execute(
            "SELECT id, called_at FROM actions WHERE state = 5 AND way IN (SELECT value FROM json_each(?)) ORDER BY number DESC LIMIT ?",
            (msgspec.json.encode(ways).decode(), unsettled_max),
        ).fetchall()

    def called(self) -> list[str]:
        """Return the ids of open calls."""
        return [id for (id,) in self.db.execute("SELECT id FROM actions WHERE state = 3")]

    def heard_of(self, ids: Iterable[str], now_us: int) -> int:
        """Note that something from outside named these: an unknown call had its effect. Return how many were unknown."""
        with self.transaction():
            rows = [(now_us, id) for id in ids]
            return sum(
                1 for _ in self.db.executemany(
                    "UPDATE actions SET state = 6, ready = 0, detail = 'it was named from outside', changed_us = ? "
                    "WHERE id = ? AND (state = 5 OR (state IN (0, 2) AND maybe_us > 0)) RETURNING 1", rows
                )
            )  # fmt: skip

    # -- what people ask -------------------------------------------------------------------------------------------------------

    def suggested(self, rule: str, up_to: int) -> list[str]:
        """Return the suggestions of a rule that somebody can have seen: those with a number up to one."""
        rows = self.db.execute("SELECT id FROM actions WHERE rule = ? AND state = 1 AND number <= ? ORDER BY number", (rule, up_to))
        return [id for (id,) in rows]

    def approve(self, id: str, now_us: int) -> None:
        """Let a suggestion be acted on; its limits still hold when it is. Raises NotFound, NotNow."""
        row = self._in_state(id, SUGGESTED)
        if self.book.rule(row.rule, row.version) is None:
            raise NotNow("The rule has changed since this was suggested", got=id)
        self.db.execute("UPDATE actions SET state = 2, ready = 1, approved = 1, changed_us = ? WHERE id = ?", (now_us, id))
        self._ready.add(row.rule)

    def decline(self, id: str, now_us: int) -> None:
        """Do not act on a suggestion. Raises NotFound, NotNow."""
        self._in_state(id, SUGGESTED)
        self._change(id, DROPPED, 0, 0, "declined", "", now_us)

    def undo(self, id: str, can: bool, now_us: int) -> None:
        """Take an action back: at once where it has not gone, else it is asked for and said to be undone only once it is.

        ``can`` says whether its way out can take something back. Raises NotFound, NotNow.
        """
        row = self._in_state(id, WAITING, SUGGESTED, APPROVED, SENT, UNKNOWN)
        if row.state in (WAITING, SUGGESTED, APPROVED) and not row.maybe_us:
            self._change(id, DROPPED, 0, 0, "undone", "", now_us)
        elif not can:
            raise NotNow("What has gone this way cannot be taken back", got=id)
        else:
            was = SENT if row.state == SENT else UNKNOWN
            sql = "UPDATE actions SET state = 4, ready = 0, was = ?, until_us = ?, tries = 0, changed_us = ? WHERE id = ?"
            self.db.execute(sql, (was, now_us, now_us, id))

    def try_again(self, id: str, now_us: int) -> None:
        """Let a call that was given up be tried again, if it is not too late. Raises NotFound, NotNow."""
        row = self._in_state(id, REFUSED)
        sql = "UPDATE actions SET state = ?, ready = 1, tries = 0, until_us = 0, changed_us = ? WHERE id = ? AND reason = 'gave_up'"
        self.db.execute(sql, (APPROVED if row.approved else WAITING, now_us, id))
        if not self.db.changes():
            raise NotNow("Only what was given up can be tried again", got=id)
        self._ready.add(row.rule)

    def settled_by_hand(self, id: str, went: bool, now_us: int) -> None:
        """Note what somebody says of a call whose end nobody knew. It is not made again. Raises NotFound, NotNow."""
        row = self._in_state(id, UNKNOWN)
        if not went:
            self.step_back(row)
        state = SENT if went else REFUSED
        sql = "UPDATE actions SET state = ?, maybe_us = 0, detail = 'a person said so', changed_us = ? WHERE id = ?"
        self.db.execute(sql, (state, now_us, id))

    def _in_state(self, id: str, *states: int) -> Row:
        row = self.row(id)
        if row is None:
            raise NotFound("Unknown action", got=id)
        if row.state not in states:
            raise NotNow(f"The action is {STATES[row.state]}", expected=" or ".join(STATES[state] for state in states), got=id)
        return row

    def drop_before(self, rule: str, version: int, reason: str, now_us: int) -> int:
        """Drop what waits of a rule's versions before one; return how many. Beyond `swept_max` the rest is dropped when its turn comes."""
        assert reason in REASONS
        self.db.execute(
            "UPDATE actions SET state = CASE WHEN maybe_us > 0 THEN 5 ELSE 9 END, ready = 0, reason = ?, words = '', changed_us = ? "
            "WHERE number IN "
            "(SELECT number FROM actions WHERE rule = ? AND version < ? AND state IN (0, 1, 2) LIMIT ?)",
            (reason, now_us, rule, version, swept_max),
        )
        return self.db.changes()

    # -- undoing ---------------------------------------------------------------------------------------------------------------

    def to_undo(self, now_us: int, count_max: int) -> list[Row]:
        """Return those that are to be undone now; tried again until it is done or cannot be."""
        sql = f"SELECT {COLUMNS} FROM actions WHERE state = 4 AND (until_us <= ? OR until_us > ?) ORDER BY until_us LIMIT ?"
        return [row_of(values) for values in self.db.execute(sql, (now_us, now_us + until_us_max, count_max))]

    def undo_ended(self, id: str, outcome: Outcome, now_us: int) -> None:
        """Note what became of undoing: done, tried again, or not possible, and then it is again what it was."""
        with self.transaction():
            row = self.row(id)
            if row is None or row.state != UNDOING:
                return
            detail = clean(outcome.detail)[:chars_max]
            if outcome.kind == "sent":
                values = ("state = 12", detail, 0)
            elif outcome.kind != "refused" and (row.tries < tries_max or outcome.code in NOT_TRIED):
                tried = outcome.code not in NOT_TRIED
                values = (f"tries = tries + {int(tried)}", detail, now_us + int(1e6 * retry_s(id, row.tries + 1, outcome.retry_s)))
            else:
                values = ("state = was", f"could not be undone: {detail}"[:chars_max], 0)
            self.db.execute(
                f"UPDATE actions SET {values[0]}, detail = ?, until_us = ?, changed_us = ? WHERE id = ?", (*values[1:], now_us, id)
            )
            crash_point("before_undone")


STATE_OF = {"suggest": SUGGESTED, "wait": WAITING, "drop": DROPPED, "held_out": HELD_OUT, "observed": OBSERVED}


def retry_s(id: str, tries: int, said_s: float) -> float:
    """Return how long a call that did not go waits: what the other end said, within bounds, or longer each time; spread, so that calls that
    failed together do not come back together. The spread is the action's own: a replay has the same."""
    spread = int.from_bytes(blake2b(f"{id}\0{tries}".encode("utf-8", "surrogatepass"), digest_size=4).digest()) / 2**32
    own_s = min(retry_s_max, retry_s_first * 2.0 ** min(max(tries - 1, 0), 20))
    return (min(said_s, said_s_max) if said_s > 0 else own_s) * (1.0 + 0.25 * spread)
