"""The job that every engine does, the same for all, and the frame in which it is timed.

Input: SendGrid's batches, one JSON array a line. Result: for each campaign, variant and minute the counts of processed, delivered,
deferred, bounced and dropped messages, all opens and clicks, unsubscribes and complaints, and the messages opened and clicked for the
first time. An event counts in the minute it happened, one that was sent twice counts once, and a message's first open or click is its
earliest one, whenever it was reported: a late report moves it to another minute.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator

MEASURES = (
    "processed", "delivered", "deferred", "bounce", "dropped", "open", "click", "unsubscribe", "spamreport", "first_open", "first_click",
)  # fmt: skip
PLACE = {name: place for place, name in enumerate(MEASURES)}
OPENED, CLICKED = PLACE["first_open"], PLACE["first_click"]
lines_a_read = 10  # batches of 200 that an engine with batch operators takes at a time

Key = tuple[str, str, int]  # campaign, variant, minute


def batches(path: str) -> Iterator[list[bytes]]:
    """Yield the file's lines, some at a time."""
    with open(path, "rb") as file:
        lines: list[bytes] = []
        for line in file:
            lines.append(line)
            if len(lines) == lines_a_read:
                yield lines
                lines = []
        if lines:
            yield lines


class Messages:
    """What is known of messages, and the changes of cells that follow: for engines that keep a Python state for each key."""

    __slots__ = ("firsts", "seen")

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.firsts: dict[str, list[int]] = {}

    def fold(self, events: Iterable[tuple[str, str, str, str, str, int]], cells: dict[Key, list[int]]) -> None:
        """Fold (message, event id, kind, campaign, variant, second) and add to ``cells`` what changes."""
        seen, firsts = self.seen, self.firsts
        for message, event_id, kind, campaign, variant, at in events:
            if event_id in seen:
                continue
            seen.add(event_id)
            minute = at // 60
            cell = cells.get((campaign, variant, minute))
            if cell is None:
                cell = cells[campaign, variant, minute] = [0] * len(MEASURES)
            cell[PLACE[kind]] += 1
            if kind == "open":
                which, measure = 0, OPENED
            elif kind == "click":
                which, measure = 1, CLICKED
            else:
                continue
            first = firsts.get(message)
            if first is None:
                first = firsts[message] = [-1, -1]
            before = first[which]
            if before < 0:
                cell[measure] += 1
                first[which] = at
            elif at < before:
                cells.setdefault((campaign, variant, before // 60), [0] * len(MEASURES))[measure] -= 1
                cell[measure] += 1
                first[which] = at


def add(table: dict[Key, list[int]], cells: Iterable[tuple[Key, list[int]]]) -> None:
    for key, change in cells:
        row = table.get(key)
        if row is None:
            table[key] = list(change)
        else:
            for place, n in enumerate(change):
                row[place] += n


def run(job: Callable[[str, int], dict[Key, list[int]]], loaded: float) -> None:
    """Do a job as ``FILE RESULT WORKERS`` says, write its table, and print what it took as the last line.

    Seconds count from the job's start to its table; loading modules is told apart. CPU time is that of the process and its children.
    """
    path, result, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    cpu, wall = used_s(), time.perf_counter()
    table = job(path, workers)
    took = {"wall_s": time.perf_counter() - wall, "cpu_s": used_s() - cpu, "load_s": wall - loaded}
    save(result, table)
    sys.stdout.flush()
    print("\n" + json.dumps(took | {"rss_bytes": peak_bytes(), "cores": len(os.sched_getaffinity(0))}), flush=True)


def family() -> list[str]:
    """Return this process and all that it has started and that still runs."""
    found = [str(os.getpid())]
    for pid in found:
        for task in os.listdir(f"/proc/{pid}/task"):
            try:
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    found += file.read().split()
            except FileNotFoundError:
                pass  # a thread that has just ended
    return found


def used_s() -> float:
    """Return the CPU seconds of this process, of what it has started, and of what of that has ended."""
    ticks = 0
    for pid in family():
        with open(f"/proc/{pid}/stat") as file:
            ticks += sum(int(n) for n in file.read().rpartition(")")[2].split()[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_bytes() -> int:
    """Return the most memory that these processes have had in use, added up."""
    total = 0
    for pid in family():
        with open(f"/proc/{pid}/status") as file:
            total += sum(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    return total


def save(path: str, table: dict[Key, list[int]]) -> None:
    """Write a table in one form, so that two of them are equal as files."""
    rows = sorted([*key, *counts] for key, counts in table.items() if any(counts))
    with open(path, "w") as file:
        json.dump(rows, file)
