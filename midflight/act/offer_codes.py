"""The codes of offers, by pool, in the conductor's file: each is handed out once, to one action, and never becomes free again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import apsw

from ..kit.errors import MidflightError

FREE, HANDED, REVOKED, USED = range(4)
CODE_STATES = ("free", "handed", "revoked", "used")
wrong_codes_max = 100  # that are told of one import
pool_chars_max = 60
_CODE = re.compile(r"[A-Za-z0-9_-]{1,64}")  # what needs no escaping anywhere

_SCHEMA = """
-- A code is handed out once, whatever pool names it: the key says so. n: the order in which they came. Codes stay, about a hundred bytes
-- each: one that was forgotten could be handed out again by an import that repeats it.
CREATE TABLE IF NOT EXISTS codes (code TEXT PRIMARY KEY, pool TEXT NOT NULL, n INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0,
    action TEXT UNIQUE, changed_at_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS free_codes ON codes (pool, n) WHERE state = 0;
CREATE INDEX IF NOT EXISTS by_pool ON codes (pool, state);
"""


class PoolEmpty(MidflightError):
    """No code is left in a pool; there may be new ones later."""

    code = "pool_empty"


class Added(NamedTuple):
    """What became of an import of codes: new ones, ones that were there already, and (line, why) of those set aside, the first hundred."""

    new: int
    repeated: int
    wrong: list[tuple[int, str]]


class OfferCodes:
    """The table. Every method is part of its caller's transaction, or one of its own."""

    def __init__(self, db: apsw.Connection) -> None:
        self.db = db
        if not db.readonly("main"):
            db.execute(_SCHEMA)

    def add(self, pool: str, codes: Iterable[str], now_us: int) -> Added:
        """Put codes into a pool. One that is in any pool already, whatever became of it, is not put again; a wrong one is set aside."""
        new, repeated, wrong = 0, 0, []
        with self.db:
            n = self.db.execute("SELECT coalesce(max(n), 0) FROM codes").get
            for line, given in enumerate(codes, 1):
                code = given.strip()
                if not code:
                    continue
                if not _CODE.fullmatch(code):
                    if len(wrong) < wrong_codes_max:
                        wrong.append((line, "a code has 1 to 64 of A-Z a-z 0-9 _ -"))
                    continue
                self.db.execute("INSERT OR IGNORE INTO codes VALUES (?, ?, ?, 0, NULL, ?)", (code, pool, n + line, now_us))
                new, repeated = (new + 1, repeated) if self.db.changes() else (new, repeated + 1)
        return Added(new, repeated, wrong)

    def take(self, pool: str, action_id: str, now_us: int) -> str:
        """Return the code of an action: the one it has, else the next free one, which nobody else ever gets. Raises PoolEmpty."""
        with self.db:
            code = self.db.execute("SELECT code FROM codes WHERE action = ?", (action_id,)).get
            code = (
                code
                or self.db.execute(
                    "UPDATE codes SET state = 1, action = ?, changed_at_us = ? "
                    "WHERE code = (SELECT code FROM codes WHERE pool = ? AND state = 0 ORDER BY n LIMIT 1) RETURNING code",
                    (action_id, now_us, pool),
                ).get
            )
        if code is None:
            raise PoolEmpty(f"No code is left in pool `{pool}`", todo="Put in new ones; what waits goes then, until it expires")
        return code

    def revoke(self, action_id: str, now_us: int) -> str:
        """Take back an action's code unless it was used; return the state that it is in now, ``""`` where it has none.

        It never becomes free again: somebody may have seen it.
        """
        with self.db:
            self.db.execute("UPDATE codes SET state = 2, changed_at_us = ? WHERE action = ? AND state = 1", (now_us, action_id))
            found = self.db.execute("SELECT state FROM codes WHERE action = ?", (action_id,)).get
        return "" if found is None else CODE_STATES[found]

    def use(self, code: str, now_us: int) -> str:
        """Note that somebody used a code; return the action that handed it out, ``""`` for a code of which nothing is known."""
        with self.db:
            self.db.execute("UPDATE codes SET state = 3, changed_at_us = ? WHERE code = ? AND state IN (1, 2)", (now_us, code))
            return self.db.execute("SELECT action FROM codes WHERE code = ?", (code,)).get or ""

    def pool(self, pool: str) -> dict[str, int]:
        """Return how many codes of a pool are in each state."""
        found = dict(self.db.execute("SELECT state, count(*) FROM codes WHERE pool = ? GROUP BY state", (pool,)))
        return {name: found.get(state, 0) for state, name in enumerate(CODE_STATES)}

    def pools(self) -> list[str]:
        """Return the names of the pools that ever had a code."""
        return [pool for (pool,) in self.db.execute("SELECT DISTINCT pool FROM codes ORDER BY pool")]

    def listed(self, pool: str, state: int, count_max: int = 1000) -> list[str]:
        """Return codes of a pool in a state: the revoked ones are for the shop to turn off."""
        sql = "SELECT code FROM codes WHERE pool = ? AND state = ? ORDER BY changed_at_us DESC LIMIT ?"
        return [code for (code,) in self.db.execute(sql, (pool, state, count_max))]
