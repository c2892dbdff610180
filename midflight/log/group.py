"""Group commit: a thread that stores whatever waits with one sync, so that many small appends cost as much as one."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from midflight.kit.errors import MidflightError

from .record import Record
from .writer import Writer

logger = logging.getLogger(__name__)


class Overloaded(MidflightError):
    """More waits for the disk than may wait; try again shortly."""

    status = 429
    code = "overloaded"


class Stored(NamedTuple):
    """The positions that one submission got: the first, and the one after its last."""

    first: int
    end: int


# What became of one submission: its positions, or why it is not stored.
Outcome = Stored | Exception
Done = Callable[[Outcome], None]


def call_each(results: list[tuple[Done, Outcome]]) -> None:
    """Call every submission's callback, in the committing thread."""
    for done, outcome in results:
        done(outcome)


class GroupCommit:
    """Owns a writer's appends. ``deliver`` gets all results of one commit at once, in the order of submission.

    An event loop passes ``lambda results: loop.call_soon_threadsafe(call_each, results)``. Records of one submission
    stand side by side in the log. A failed append fails all submissions in it: none of them is acknowledged.
    """

    def __init__(
        self,
        writer: Writer,
        deliver: Callable[[list[tuple[Done, Outcome]]], None] = call_each,
        *,
        bytes_max: int = 8 * 1024 * 1024,
        waiting_bytes_max: int = 64 * 1024 * 1024,
    ) -> None:
        self._writer, self._deliver = writer, deliver
        self._bytes_max, self._waiting_bytes_max = bytes_max, waiting_bytes_max
        self._waiting: deque[tuple[list[Record], Done, int]] = deque()
        self._waiting_bytes = 0
        self._closing = False
        self._some = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log-commit", daemon=True)
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        return self._waiting_bytes

    def submit(self, records: list[Record], done: Done) -> None:
        """Queue records; ``done`` is called with Stored or an exception. Raises Overloaded when too much waits already.

        Safe to call from any thread.
        """
        size = sum(len(r.body) + len(r.url) + 256 for r in records)
        with self._some:
            if self._closing:
                raise MidflightError("This log is closing")
            if self._waiting_bytes and self._waiting_bytes + size > self._waiting_bytes_max:
                raise Overloaded(
                    "Too much waits for the disk", expected=f"at most {self._waiting_bytes_max} bytes", got=self._waiting_bytes
                )
            self._waiting.append((records, done, size))
            self._waiting_bytes += size
            self._some.notify()

    def close(self) -> None:
        """Store what waits, deliver its results and end the thread. The writer stays open."""
        with self._some:
            self._closing = True
            self._some.notify()
        self._thread.join()

    def _take(self) -> list[tuple[list[Record], Done, int]]:
        with self._some:
            while not self._waiting and not self._closing:
                self._some.wait()
            taken, size = [], 0
            while self._waiting and (not taken or size + self._waiting[0][2] <= self._bytes_max):
                taken.append(self._waiting.popleft())
                size += taken[-1][2]
            return taken

    def _run(self) -> None:
        while taken := self._take():
            results = self._commit(taken)
            with self._some:
                self._waiting_bytes -= sum(size for _, _, size in taken)
            try:
                self._deliver(results)
            except Exception:
                # As when an event loop has ended. The records are stored or refused all the same, and others wait.
                logger.exception("the results of a commit could not be delivered")

    def _commit(self, taken: list[tuple[list[Record], Done, int]]) -> list[tuple[Done, Outcome]]:
        try:
            first, _ = self._writer.append([r for records, _, _ in taken for r in records])
        except Exception as error:  # Whatever it was: these are not stored, and the next ones get their own try.
            return [(done, error) for _, done, _ in taken]
        results: list[tuple[Done, Outcome]] = []
        for records, done, _ in taken:
            results.append((done, Stored(first, first + len(records))))
            first += len(records)
        return results
