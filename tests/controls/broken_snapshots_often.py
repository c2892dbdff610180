"""Not broken: a build that writes a snapshot as often as it can, so that crashes meet one."""

from __future__ import annotations


def apply() -> None:
    """Write snapshots all the time."""
    from midflight.store import host_local

    host_local.snapshot_every_s = 0.2
    host_local.snapshot_records_min = 10
