"""From a checked request to its 200: records go to the log's group commit, and their senders are told when they are durable."""

from __future__ import annotations

import logging
from time import monotonic

from ...kit.clock import SteadyClock
from ...kit.crash import asked, crash_point
from ...kit.errors import Damaged, Locked, MidflightError
from ...log import Full, Record, Writer
from ...log.disk import OsDisk

logger = logging.getLogger("midflight.door")


class CrashingDisk(OsDisk):
    """The real disk with a place to die between a write and its sync; only for tests that ask for it."""

    def fdatasync(self, fd: int) -> None:
        crash_point("after_append")
        super().fdatasync(fd)


def open_writer(folder, clock) -> Writer:
    """Open the log with a clock that does not jump: timers, expiry and numbers by the minute all go by the log's time."""
    steady = SteadyClock(clock)
    writer = Writer.open(folder, CrashingDisk() if asked else OsDisk(), steady)
    steady.not_before(writer.at_us)
    return writer


class Appending:
    """The writer as the group commit sees it: the same appends, with their time and number kept."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.since_s = 0.0  # when the append that is under way began; 0.0 while there is none
        self.last_s = monotonic()
        self.commits = 0
        self.records = 0
        # What `retain` is to be called with after the next append, by the one thread that may.
        self.removal: tuple[int, int] | None = None

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
        if self.removal is not None:
            self._remove()
        return found

    def _remove(self) -> None:
        """Let go of old segments. A failure is nothing to the records just stored; the next append starts from the disk again."""
        (older_than_us, keep_from), self.removal = self.removal, None
        try:
            first = self.writer.retain(older_than_us, keep_from)
        except MidflightError as error:
            logger.error("old records could not be removed: %s", error.text())
        else:
            logger.info("the log now begins at position %d", first)

    def close(self) -> None:
        self.writer.close()


def why_unwritable(error: Exception) -> str:
    """Return one word for why the log refused."""
    return "disk_full" if isinstance(error, Full) else "log_unwritable"


def is_final(error: Exception) -> bool:
    """Tell whether trying again cannot help: another process owns the log, or it is not what was written."""
    return isinstance(error, Locked | Damaged)
