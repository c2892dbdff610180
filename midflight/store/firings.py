"""Reads the firings that the engine wrote into its store, from where the reader stood; what was made anew is read from its start."""

from __future__ import annotations

from ..act.intake import Cursor, Firing
from .read import Store

firings_max = 500  # at a time


class Firings:
    """The conductor's view of the table of firings."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def read(self, cursor: Cursor, count_max: int = firings_max) -> tuple[list[Firing], Cursor]:
        """Return firings behind a cursor, in order, and the cursor behind them. Raises TooSlow.

        A store that was made anew numbers its firings anew: its epoch is another, and at the cursor's number there is another firing or
        none. Then it is read from the start, and whoever reads knows firings by their ids.
        """
        with self.store.view() as view:
            if not view.db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'firings'").get:
                return [], cursor
            epoch = str(view.db.execute("SELECT value FROM meta WHERE key = 'epoch'").get or "")
            there = view.db.execute("SELECT id FROM firings WHERE number = ?", (cursor.number,)).fetchone()
            if epoch != cursor.epoch or (cursor.number and (there is None or str(there[0]) != cursor.id)):
                cursor = Cursor(epoch=epoch)
            rows = view.db.execute(
                "SELECT number, id, rule, version, recipient, fired_us, cause FROM firings WHERE number > ? ORDER BY number LIMIT ?",
                (cursor.number, count_max),
            ).fetchall()
        found = [
            Firing(number=number, id=id, rule=rule, version=version, recipient=recipient, fired_us=fired_us, cause=_bytes(cause))
            for number, id, rule, version, recipient, fired_us, cause in rows
        ]
        return found, Cursor(epoch=epoch, number=found[-1].number, id=str(found[-1].id)) if found else cursor


def _bytes(value: object) -> object:
    return value.encode("utf-8", "replace") if isinstance(value, str) else value
