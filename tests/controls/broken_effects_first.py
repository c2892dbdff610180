"""A build that commits what the records changed first and the position in a second transaction."""

from __future__ import annotations


def apply() -> None:
    """Split the commit; a crash point named `between` lies between its halves."""
    from midflight.kit.crash import crash_point
    from midflight.store.write import StoreWriter

    whole, note = StoreWriter.commit, StoreWriter._meta

    def commit(self, changes, *rest) -> None:
        self._meta = lambda values: None
        whole(self, changes, *rest)
        del self._meta
        if changes.cells:
            crash_point("between")
        with self.db:
            note(self, {"position": changes.next_position, "log_time_us": changes.log_time_us})

    StoreWriter.commit = commit
