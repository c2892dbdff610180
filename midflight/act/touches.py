"""What automation has done to whom of late: the counts that limits are held against, noted in one transaction with each intent.

A touch is noted before its call and taken back where the call had no effect, so that a count is never less than what happened. Times are
those of the conductor's clock; counts look a window's length to both sides of now, as `decide/limits.py` says. What is over all people is
by minute: a window then begins up to a minute early, never late.
"""

from __future__ import annotations

import apsw

from ..decide.limits import day_us, hour_us, hours_max, minute_us, radius_max

ALL = ""  # all ways together
SHADOW = "~"  # before the name of a rule that only observes: what it would have done is counted apart
minutes_hour, minutes_day = 60, 24 * 60
trust_us = 7 * day_us  # a clock may jump so far, and come back, without a limit being forgotten
touches_kept_us = hours_max * hour_us + trust_us
minutes_kept_us = day_us + trust_us
trimmed_max = 10_000  # rows of each table at a time
members_max = radius_max + 1  # people who are told apart within an hour; a bound is at most one less
rows_max = 4 * members_max  # that are read to find them
beyond = 1 << 60

_SCHEMA = """
-- What limits are held against. Rows go when no window reaches them any more: see `trim`.
CREATE TABLE IF NOT EXISTS touches (recipient TEXT, rule TEXT, at_us INTEGER, id TEXT,
    PRIMARY KEY (recipient, rule, at_us, id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS touches_at ON touches (at_us);
CREATE TABLE IF NOT EXISTS rule_minutes (rule TEXT, minute INTEGER, n INTEGER NOT NULL, PRIMARY KEY (rule, minute)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS rule_minutes_at ON rule_minutes (minute);
-- Who was touched, by way out; the way '' is all of them.
CREATE TABLE IF NOT EXISTS reached (way TEXT, recipient TEXT, minute INTEGER, n INTEGER NOT NULL,
    PRIMARY KEY (way, recipient, minute)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS reached_at ON reached (minute, way);
"""


class Touches:
    """The counts, in the outbox's file. Every method is part of its caller's transaction; after one that failed, `forget` what was read."""

    def __init__(self, db: apsw.Connection) -> None:
        self.db = db
        if not db.readonly("main"):
            db.execute(_SCHEMA)
        # Read once a minute and kept up from then on.
        self._minute = -1
        self._rules: dict[str, list[int]] = {}
        self._reached: dict[str, dict[str, int]] = {}
        self._campaigns = bool(db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'messages'").get)

    def forget(self) -> None:
        """Forget what was read, because a transaction ended that did not keep what it noted."""
        self._minute = -1
        self._rules.clear()
        self._reached.clear()

    def _at(self, now_us: int) -> int:
        minute = now_us // minute_us
        if minute != self._minute:
            self.forget()
            self._minute = minute
        return minute

    # -- counts ----------------------------------------------------------------------------------------------------------------

    def times_us(self, recipient: str, rule: str, now_us: int, window_us: int) -> tuple[int, ...]:
        """Return when a rule touched a recipient, within a window to both sides of now."""
        rows = self.db.execute(
            "SELECT at_us FROM touches WHERE recipient = ? AND rule = ? AND at_us > ? AND at_us < ?",
            (recipient, rule, now_us - window_us, now_us + window_us),
        )
        return tuple(at_us for (at_us,) in rows)

    def person(self, recipient: str, now_us: int) -> int:
        """Return how often all rules and campaigns together touched a recipient within a day."""
        bounds = (recipient, now_us - day_us, now_us + day_us)
        found = self.db.execute(
            "SELECT count(*) FROM touches WHERE recipient = ? AND at_us > ? AND at_us < ? AND substr(rule, 1, 1) <> '~'", bounds
        ).get
        if self._campaigns:
            found += self.db.execute(
                "SELECT count(*) FROM messages WHERE recipient = ? AND changed_at_us > ? AND changed_at_us < ? AND state IN (1, 2, 4)",
                bounds,
            ).get
        return found

    def rule(self, rule: str, now_us: int) -> tuple[int, int]:
        """Return how often a rule acted in an hour and in a day."""
        minute = self._at(now_us)
        if rule not in self._rules:
            self._rules[rule] = list(
                self.db.execute(
                    "SELECT coalesce(sum(n) FILTER (WHERE minute BETWEEN ? AND ?), 0), coalesce(sum(n), 0) FROM rule_minutes "
                    "WHERE rule = ? AND minute BETWEEN ? AND ?",
                    (minute - minutes_hour, minute + minutes_hour, rule, minute - minutes_day, minute + minutes_day),
                ).fetchone()
            )
        hour, day = self._rules[rule]
        return hour, day

    def people(self, way: str, now_us: int) -> int:
        """Return how many people were touched in an hour by a way out, of ALL by any; `beyond` where they are too many to be counted."""
        members = self._members(way, now_us)
        return beyond if len(members) >= members_max else len(members)

    def among(self, way: str, recipient: str, now_us: int, under_way: int = 0) -> bool:
        """Tell whether a recipient was surely touched in an hour by a way out: here a window begins late, never early, and of what is noted
        so many touches are of calls ``under_way``, which may have no effect yet."""
        minute = now_us // minute_us
        found = self.db.execute(
            "SELECT sum(n) FROM reached WHERE way = ? AND recipient = ? AND minute BETWEEN ? AND ?",
            (way, recipient, minute - minutes_hour + 1, minute + minutes_hour - 1),
        )
        return (found.get or 0) > under_way

    def _members(self, way: str, now_us: int) -> dict[str, int]:
        minute = self._at(now_us)
        if way not in self._reached:
            self._reached[way] = found = {}
            rows = self.db.execute(
                "SELECT recipient, n FROM reached WHERE way = ? AND minute BETWEEN ? AND ? LIMIT ?",
                (way, minute - minutes_hour, minute + minutes_hour, rows_max),
            ).fetchall()
            for recipient, n in rows:
                found[recipient] = found.get(recipient, 0) + n
            if len(rows) == rows_max:
                # Whoever they are: so many touches are beyond what can be asked about.
                found.update((f"\0{n}", 1) for n in range(members_max))
        return self._reached[way]

    # -- noting ----------------------------------------------------------------------------------------------------------------

    def note(self, id: str, rule: str, recipient: str, way: str, now_us: int) -> None:
        """Note that a rule is about to touch a recipient; an empty recipient is nobody, and counts for the rule alone."""
        self.db.execute("INSERT OR IGNORE INTO touches VALUES (?, ?, ?, ?)", (recipient, rule, now_us, id))
        if self.db.changes():
            self._count(rule, recipient, way, now_us, 1)

    def take_back(self, id: str, rule: str, recipient: str, way: str, at_us: int) -> None:
        """Note that what was noted at a time had no effect after all."""
        self.db.execute("DELETE FROM touches WHERE recipient = ? AND rule = ? AND at_us = ? AND id = ?", (recipient, rule, at_us, id))
        if self.db.changes():
            self._count(rule, recipient, way, at_us, -1)

    def of(self, id: str, rule: str, recipient: str) -> tuple[int, ...]:
        """Return when one action touched a recipient, or may have: more than once only where its calls may have been made again."""
        rows = self.db.execute("SELECT at_us FROM touches WHERE recipient = ? AND rule = ? AND id = ?", (recipient, rule, id))
        return tuple(at_us for (at_us,) in rows)

    def _count(self, rule: str, recipient: str, way: str, at_us: int, by: int) -> None:
        minute = at_us // minute_us
        self.db.execute("INSERT INTO rule_minutes VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n", (rule, minute, by))
        away = abs(minute - self._minute)
        if away <= minutes_day and rule in self._rules:
            self._rules[rule][0] += by * (away <= minutes_hour)
            self._rules[rule][1] += by
        if not recipient or rule.startswith(SHADOW):
            return
        for which in (ALL, way):
            self.db.execute(
                "INSERT INTO reached VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n", (which, recipient, minute, by)
            )
            members = self._reached.get(which) if away <= minutes_hour else None
            if members is not None and len(members) < members_max:
                members[recipient] = members.get(recipient, 0) + by
                if members[recipient] <= 0:
                    del members[recipient]
        if by < 0:
            ways = (ALL, way, recipient, minute)
            self.db.execute("DELETE FROM reached WHERE way IN (?, ?) AND recipient = ? AND minute = ? AND n <= 0", ways)

    def trim(self, log_us: int) -> int:
        """Take out what no window reaches any more, a part at a time; return how many rows.

        ``log_us`` is log time, which a wrong clock of this process does not move.
        """
        count = 0
        for table, column, before in (
            ("touches", "at_us", log_us - touches_kept_us),
            ("rule_minutes", "minute", (log_us - minutes_kept_us) // minute_us),
            ("reached", "minute", (log_us - minutes_kept_us) // minute_us),
        ):
            key = {"touches": "recipient, rule, at_us, id", "rule_minutes": "rule, minute", "reached": "way, recipient, minute"}[table]
            self.db.execute(
                f"DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {column} < ? LIMIT ?)", (before, trimmed_max)
            )
            count += self.db.changes()
        return count
