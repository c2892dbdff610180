"""Measure how replay speed and memory change with recipients: each size in a process of its own, the log written just ahead of the engine.

``python -m bench.growth RECIPIENTS SENDS LATE_S EXPECTED FOLDER`` folds mailings to so many recipients and prints JSON. The first mailing
fills the memory; the second, which goes to the same people in another order, is the steady part that counts. The log is real, but kept
only as far as the engine still has to read it, so that tens of millions of events need little disk. Making the input is outside of what
is timed.

Reports come equally late at all sizes, as late as the shortest mailing allows: what comes late changes cells of long ago, which has to
do with vendors and not with the number of people. The engine is told how many messages to expect: the first touch of a page of memory can
cost more than all later ones, on virtual machines most. The largest size is measured once more with reports that are late by up to an
hour, and once more with memory that is taken only as it is needed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple

import numpy as np

from midflight.config import config_from
from midflight.kit.clock import VirtualClock
from midflight.log import Reader, Record, Writer
from midflight.store.host_local import Engine, batch_bytes_max, batches_a_commit

from . import machine
from .feed import Feed
from .folding import NoSnapshots, load_code

segment_bytes = 64 << 20
ahead_bytes = batch_bytes_max * 15 // 16 * batches_a_commit  # log written before the engine goes on: one commit, with the records' heads
headers = {"content-type": "application/json"}
late_s, very_late_s = 100, 3600


class Size(NamedTuple):
    points: tuple[tuple[int, int], ...]  # recipients, and how often that is measured
    sends: int = 2


FULL = Size(((100_000, 7), (1_000_000, 3), (10_000_000, 1)))
QUICK = Size(((2_000, 1), (6_000, 1), (20_000, 1)))


class Point(NamedTuple):
    """What one part of the log took."""

    at_us: int
    events: int
    cpu_s: float
    wall_s: float
    recipients: int
    messages: int
    state_bytes: int
    rss_bytes: int
    asked_bytes: int


def fold_ahead(feed: Feed, folder: Path, expected_messages: int = 0, asked: Iterable[Record] = ()) -> list[Point]:
    """Fold a feed to its end, part by part, and return what each took; ``asked`` are definitions that hold from the beginning on."""
    whole = feed.shape.messages * 1400
    part = ahead_bytes if whole > 2 * ahead_bytes else whole // 16
    clock = VirtualClock()
    points: list[Point] = []
    rss_before = machine.rss_bytes()
    with Writer.open(folder / "log", clock=clock, segment_bytes=segment_bytes) as writer:
        settings = machine.settings(folder) | {"expected_messages": expected_messages}
        engine = Engine(config_from(settings), Reader(folder / "log"), clock=NoSnapshots())
        clock.at_us = 1
        for record in asked:
            writer.append([record])
        engine.catch_up()
        waiting, held, events = [], 0, 0

        def go_on() -> None:
            for first in range(0, len(waiting), machine.rows_a_commit):
                rows = waiting[first : first + machine.rows_a_commit]
                clock.at_us = rows[-1].at_us
                writer.append(rows)
            waiting.clear()
            wall, cpu = perf_counter(), process_time()
            engine.catch_up()
            cpu_s, wall_s = process_time() - cpu, perf_counter() - wall
            counts = engine.shards[0].counts()
            rss = machine.rss_bytes() - rss_before - feed.held_bytes
            points.append(
                Point(
                    clock.at_us,
                    events,
                    cpu_s,
                    wall_s,
                    counts["recipients"],
                    counts["messages"],
                    counts["bytes"],
                    rss,
                    counts["asked_bytes"],
                )
            )
            writer.retain(clock.at_us + 1, engine.position)

        for batch in feed:
            waiting.append(Record("webhook", "sendgrid", batch.at_us, headers, batch.body, "/in/sendgrid"))
            held += len(batch.body)
            events += batch.events
            if held >= part:
                go_on()
                held = events = 0
        go_on()
        engine.close()
    return points


def steady(points: list[Point], feed: Feed) -> list[Point]:
    """Return the parts of the second mailing: everybody is known, and messages, opens and clicks come in their usual mix."""
    start = feed.shape.start_s * 1_000_000 + feed.length_us
    return [point for point in points if start < point.at_us <= start + feed.length_us]


def slope(x: list[int], y: list[int]) -> float:
    """Return by how much y grows with each x, by least squares: tables grow in steps, and this looks through them."""
    return float(np.polyfit(np.array(x, float), np.array(y, float), 1)[0]) if len(set(x)) > 1 else 0.0


def summary(points: list[Point], feed: Feed) -> dict:
    """Return speed of the steady part, and memory by recipient (first mailing) and by further message (second)."""
    counted = steady(points, feed)
    filling = [p for p in points if p.messages <= feed.shape.recipients]
    adding = [p for p in points if p.messages > feed.shape.recipients]
    last = points[-1]
    return {
        "events_per_s_core": sum(p.events for p in counted) / sum(p.cpu_s for p in counted),
        "events_per_s_wall": sum(p.events for p in counted) / sum(p.wall_s for p in counted),
        "events": sum(p.events for p in points),
        "steady_events": sum(p.events for p in counted),
        "messages": last.messages,
        "state_bytes": last.state_bytes,
        "rss_bytes": last.rss_bytes,
        "bytes_per_recipient": slope([p.recipients for p in filling], [p.state_bytes for p in filling]),
        "bytes_per_recipient_rss": slope([p.recipients for p in filling], [p.rss_bytes for p in filling]),
        "bytes_per_message": slope([p.messages for p in adding], [p.state_bytes for p in adding]),
        "bytes_per_message_rss": slope([p.messages for p in adding], [p.rss_bytes for p in adding]),
    }


def measure(size: Size, say: Callable[[str], None]) -> dict:
    """Return speed by recipients, the ratio of the largest to the smallest, and the memory that recipients and messages take."""
    runs: dict[int, list[dict]] = {recipients: [] for recipients, _ in size.points}
    for number in range(max(times for _, times in size.points)):
        for recipients, times in size.points:
            if number < times:
                say(f"folding two mailings to {recipients:,} recipients, run {number + 1} of {times}")
                runs[recipients].append(measured(recipients, size.sends))
    most = size.points[-1][0]
    say(f"the same to {most:,} with reports that come an hour late")
    very_late = measured(most, size.sends, late_s=very_late_s)
    say(f"the same to {most:,} with memory that is taken as it is needed")
    unexpected = measured(most, size.sends, expected=False)
    points = []
    for recipients, done in runs.items():
        row = {key: median(run[key] for run in done) for key in done[0]}
        points.append({"recipients": recipients, "runs": len(done), **{key: round(value) for key, value in row.items()}})
    first, last = points[0], points[-1]
    return {
        "growth": points,
        "growth_ratio_10m_to_100k": round(last["events_per_s_core"] / first["events_per_s_core"], 3),
        "growth_ratio_10m_to_100k_wall": round(last["events_per_s_wall"] / first["events_per_s_wall"], 3),
        "growth_ratio_an_hour_late": round(very_late["events_per_s_core"] / first["events_per_s_core"], 3),
        "growth_ratio_unexpected": round(unexpected["events_per_s_core"] / first["events_per_s_core"], 3),
        **{key: round(unexpected[key]) for key in unexpected if key.startswith("bytes_per_")},
    }


def measured(recipients: int, sends: int, *, late_s: int = late_s, expected: bool = True) -> dict:
    with machine.workplace() as folder:
        return machine.run("bench.growth", recipients, sends, late_s, recipients * sends if expected else 0, folder, core=0)


def main() -> None:
    recipients, sends, late_s, expected = map(int, sys.argv[1:5])
    load_code()
    feed = Feed(recipients, sends=sends, late_s=late_s)
    print(json.dumps(summary(fold_ahead(feed, Path(sys.argv[5]), expected), feed)))


if __name__ == "__main__":
    main()
