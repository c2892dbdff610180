"""A build that commits what the records changed first and the position in a second transaction."""

from __future__ import annotations


def apply() -> None:
    """Split the commit; a crash point named `between` lies between its halves."""
    from midflight.kit.crash import crash_point
    from midflight.store.write import StoreWriter

    whole, note = StoreWriter.commit, StoreWriter._meta

    def commit(self, prepared, effects, *rest) -> None:
        self._meta = lambda values: None
        whole(self, prepared, effects, *rest)
        del self._meta
        if any(effect.cell_value.size for effect in effects):
            crash_point("between")
        with self.db:
            note(self, {"position": prepared.next_position, "log_time_us": prepared.log_time_us})

    StoreWriter.commit = commit
