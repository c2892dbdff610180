"""Reads the firings that the engine wrote into its store, from where the reader stood; what was made anew is read from its start."""

from __future__ import annotations

from ..act.intake import Cursor, Firing
from .fired import fired_after
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
            epoch = str(view.db.execute("SELECT value FROM meta WHERE key = 'epoch'").get or "")
            there = fired_after(view.db, cursor.number - 1, 1) if cursor.number else []
            if epoch != cursor.epoch or (cursor.number and [(one.number, one.id) for one in there] != [(cursor.number, cursor.id)]):
                cursor = Cursor(epoch=epoch)
            found = [Firing(**one._asdict()) for one in fired_after(view.db, cursor.number, count_max)]
        return found, Cursor(epoch=epoch, number=found[-1].number, id=found[-1].id) if found else cursor
