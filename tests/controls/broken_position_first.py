"""A build that commits the position first and what the records changed in a second transaction."""

from __future__ import annotations


def apply() -> None:
    """Split the commit; a crash point named `between` lies between its halves."""
    from midflight.kit.crash import crash_point
    from midflight.store.write import StoreWriter

    whole = StoreWriter.commit

    def commit(self, changes, *rest) -> None:
        with self.db:
            self._meta({"position": changes.next_position, "log_time_us": changes.log_time_us})
        if changes.cells:
            crash_point("between")
        whole(self, changes, *rest)

    StoreWriter.commit = commit
