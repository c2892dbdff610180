"""Letting go of old records: the door owns the log's writer, so it also removes what is older than `retention.log_days`.

Only whole segments go, and none that a restart of the engine or the history still has to read. Who that is is asked in a process of its
own, because the answer is in parts of Midflight that take a second to load.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from ...log import Reader

logger = logging.getLogger("midflight.door")

day_us = 86_400_000_000
ask_s_max = 60.0


def oldest_us(folder: Path) -> int | None:
    """Return when the log's first kept record was appended; None for an empty log."""
    with Reader(folder) as reader:
        found = reader.read(reader.first(), 1)
    return found[0].at_us if found else None


async def needed_from(data: Path) -> int:
    """Return the first position that somebody still has to read; 0 when that cannot be told."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, str(data), stdout=asyncio.subprocess.PIPE)
    try:
        said, _ = await asyncio.wait_for(process.communicate(), ask_s_max)
    except TimeoutError:
        process.kill()
        await process.wait()
        return 0
    return int(said or 0)


def needed_from_now(data: Path) -> int:
    """Read the same from the snapshots' and the history's files."""
    from ...store.history import done_position, folder_of
    from ...store.snapshots import Snapshots

    history = folder_of(data)
    return min(Snapshots(data / "snapshots").oldest_position() or 0, done_position(history))


if __name__ == "__main__":
    sys.stdout.write(str(needed_from_now(Path(sys.argv[1]))))
