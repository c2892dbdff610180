"""Takes in firings: each once, whatever number it has in a store that was made anew; what cannot be read is set aside."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import msgspec

from ..decide.limits import expires_minutes_max, expires_us, minute_us
from ..events import clean
from ..kit.crash import crash_point
from .action_table import DROPPED, WAITING, ActionTable, chars_max

waiting_max = 200_000  # of one rule; later firings are dropped
cause_bytes_max = 64 * 1024


class Cursor(msgspec.Struct, kw_only=True, frozen=True):
    """Up to where firings were taken in: of which making of the store, the number of the last one and its id."""

    epoch: str = ""
    number: int = 0
    id: str = ""


class Firing(msgspec.Struct, kw_only=True, frozen=True):
    """A firing as the store has it. ``cause`` is JSON; of it ``chain`` and ``at_us`` are known here: the rules that caused it, and when
    what caused it happened."""

    number: int
    id: str
    rule: str
    version: int
    recipient: str
    fired_us: int
    cause: bytes


class _Cause(msgspec.Struct):
    chain: list[str] = []
    at_us: int = 0
    campaign: str = ""


class Taken(msgspec.Struct, kw_only=True):
    """What became of firings that were read: new, known already, from before all that is kept, not readable."""

    new: int = 0
    known: int = 0
    late: int = 0
    bad: int = 0


class Intake(ActionTable):
    """The way in."""

    # -- taking in -------------------------------------------------------------------------------------------------------------

    def cursor(self) -> Cursor:
        """Return up to where firings were taken in."""
        found = self.meta("firings")
        return Cursor() if found is None else msgspec.json.decode(found, type=Cursor)

    def take(self, firings: Iterable[Firing], cursor: Cursor, now_us: int) -> Taken:
        """Take in firings, each once whatever number it has, and note up to where that is, in one transaction."""
        taken = Taken()
        with self.transaction():
            horizon_us = self.meta("horizon_us", 0)
            for firing in firings:
                self._take(firing, horizon_us, now_us, taken)
            if taken.new or cursor != self.cursor():
                self.set_meta("firings", msgspec.json.encode(cursor).decode())
            crash_point("before_firings")
        crash_point("after_firings")
        return taken

    def _take(self, firing: Firing, horizon_us: int, now_us: int, taken: Taken) -> None:
        try:
            firing = msgspec.convert(msgspec.structs.asdict(firing), Firing, builtin_types=(bytes,))
            cause = msgspec.json.decode(firing.cause, type=_Cause)
            bad = "its cause is too long" if len(firing.cause) > cause_bytes_max else ""
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
            bad, cause = clean(error), _Cause()
        if not bad and firing.fired_us <= horizon_us:
            taken.late += 1
            return
        if bad:
            taken.bad += 1
            self._set_aside(firing, bad, now_us)
            return
        cause_us = min(cause.at_us, firing.fired_us) if cause.at_us > 0 else firing.fired_us
        rule = self.book.rule(firing.rule, firing.version)
        expires = expires_us(cause_us, rule.limits) if rule else cause_us + expires_minutes_max * minute_us
        said = firing.cause
        if not cause.chain and (sender := self.book.sender_of(cause.campaign)):
            said = msgspec.json.encode(msgspec.structs.replace(cause, chain=self._chain(sender, firing.recipient)))
        full = self.total(firing.rule, WAITING) >= waiting_max
        state, reason = (DROPPED, "too_many") if full else (WAITING, "")
        self._insert(
            (firing.id, firing.rule, firing.version, firing.recipient, rule.action.way if rule else "", firing.fired_us, cause_us, expires,
             said, state, int(not full), reason, "", now_us)
        )  # fmt: skip
        if self.db.changes():
            taken.new += 1
            self._ready.add(firing.rule)
        else:
            taken.known += 1

    def _chain(self, rule: str, recipient: str) -> list[str]:
        """Return the rules that caused what somebody did with a follow-up: the one that sent it, and what had caused that."""
        sql = "SELECT cause FROM actions WHERE recipient = ? AND rule = ? ORDER BY number DESC LIMIT 1"
        found = self.db.execute(sql, (recipient, rule)).get
        return [*(msgspec.json.decode(found, type=_Cause).chain if found else ()), rule]

    def _insert(self, values: tuple) -> None:
        self.db.execute(
            "INSERT OR IGNORE INTO actions (id, rule, version, recipient, way, fired_us, cause_us, expires_us, cause, state, ready, "
            "reason, words, changed_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )

    def _set_aside(self, firing: Firing, why: str, now_us: int) -> None:
        """Keep a firing that cannot be read, so that somebody can see it; it stops no other."""
        id = firing.id if isinstance(firing.id, str) and firing.id else ""
        id = id or "bad-" + blake2b(repr(firing).encode("utf-8", "replace"), digest_size=12).hexdigest()
        self._insert(
            (clean(id)[:200], clean(firing.rule)[:100], 0, "", "", now_us, now_us, now_us, b"{}", DROPPED, 0, "bad_firing", why[:chars_max],
             now_us)
        )  # fmt: skip
