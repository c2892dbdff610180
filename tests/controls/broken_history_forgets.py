"""A build whose history does not look where its parts end, and starts again a little before."""

from __future__ import annotations


def apply() -> None:
    """Go on 40 records too early after each start."""
    import broken_history_points

    from midflight.store import history

    broken_history_points.apply()
    done_position = history.done_position
    history.done_position = lambda folder: max(done_position(folder) - 40, 0)
