"""From a checked request to its 200: records go to the log's group commit, and their senders are told when they are durable."""

from __future__ import annotations

from time import monotonic

from ...kit.crash import asked, crash_point
from ...kit.errors import Damaged, Locked
from ...log import Full, Record, Writer
from ...log.disk import OsDisk


class CrashingDisk(OsDisk):
    """The real disk with a place to die between a write and its sync; only for tests that ask for it."""

    def fdatasync(self, fd: int) -> None:
        crash_point("after_append")
        super().fdatasync(fd)


def open_writer(folder, clock) -> Writer:
    return Writer.open(folder, CrashingDisk() if asked else OsDisk(), clock)


class Appending:
    """The writer as the group commit sees it: the same appends, with their time and number kept."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.since_s = 0.0  # when the append that is under way began; 0.0 while there is none
        self.last_s = monotonic()
        self.commits = 0
        self.records = 0

    def append(self, records: list[Record]) -> tuple[int, int]:
        crash_point("before_append")
        self.since_s = monotonic()
        try:
            found = self.writer.append(records)
        finally:
            self.since_s = 0.0
        crash_point("after_fsync")
        self.last_s = monotonic()
        self.commits += 1
        self.records += len(records)
        return found

    def close(self) -> None:
        self.writer.close()


def why_unwritable(error: Exception) -> str:
    """Return one word for why the log refused."""
    return "disk_full" if isinstance(error, Full) else "log_unwritable"


def is_final(error: Exception) -> bool:
    """Tell whether trying again cannot help: another process owns the log, or it is not what was written."""
    return isinstance(error, Locked | Damaged)
