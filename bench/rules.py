"""Measure what segments and rules cost: the replay with and without them, what they keep of each recipient, and the backtest.

``python -m bench.rules replay LOG DATA`` folds a log whose definitions are in the snapshot already, ``... recipients N FOLDER`` takes so
many recipients into memory, ``... backtest LOG DATA`` tries a rule on a log. Each prints JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple

from midflight.config import config_from
from midflight.evaluate.backtest import Backtest, Change
from midflight.kit.clock import VirtualClock
from midflight.log import Reader, Writer
from midflight.store.host_local import Engine

from . import machine
from .asked import definitions, rule, segment
from .feed import Feed
from .folding import NoSnapshots, load_code, sendgrid_bodies
from .growth import fold_ahead

segments_n, rules_n = 200, 200
FOREVER_US = 1 << 62


class Size(NamedTuple):
    recipients: int
    runs: int
    many: int


FULL = Size(300_000, 5, 10_000_000)
QUICK = Size(4_000, 2, 20_000)


def measure(size: Size, say: Callable[[str], None]) -> dict:
    """Return `replay_with_rules_ratio`, `segment_bytes_per_recipient` and `backtest_events_per_s`."""
    with machine.workplace() as folder:
        say("writing a log")
        for name, asked in (("without", 0), ("with", 1)):
            prepare(folder / name, folder / f"data-{name}", segments_n * asked, rules_n * asked, size.recipients)
        runs: dict[str, list[dict]] = {"without": [], "with": []}
        for number in range(size.runs):
            for name, found in runs.items():
                say(f"replaying {name} {segments_n} segments and {rules_n} rules, run {number + 1} of {size.runs}")
                data = folder / f"data-{name}{number}"
                shutil.copytree(folder / f"data-{name}", data)
                found.append(machine.run("bench.rules", "replay", folder / name, data, core=0))
                shutil.rmtree(data)
        say("trying a rule on the log")
        tried = [machine.run("bench.rules", "backtest", folder / "without", folder / "data", core=0) for _ in range(size.runs)]
    with machine.workplace() as folder:
        say(f"filling memory with {size.many:,} recipients")
        many = machine.run("bench.rules", "recipients", size.many, folder, core=0)
    per_s = {name: median(run["events"] / run["cpu_s"] for run in found) for name, found in runs.items()}
    one = runs["with"][0]
    return {
        "replay_with_rules_ratio": round(median(a["cpu_s"] / b["cpu_s"] for a, b in zip(*runs.values(), strict=True)), 3),
        "replay_with_rules_events_per_s_core": round(per_s["with"]),
        "replay_without_rules_events_per_s_core": round(per_s["without"]),
        "rules_segments": segments_n,
        "rules_rules": rules_n,
        "rules_moves_per_event": round(one["moves"] / one["events"], 3),
        "rules_firings_per_event": round(one["firings"] / one["events"], 4),
        "segment_bytes_per_recipient": round(many["asked_bytes"] / many["recipients"], 1),
        "segment_recipients": many["recipients"],
        "segment_recipients_rss_bytes": many["rss_bytes"],
        "backtest_events_per_s": round(median(run["events"] / run["wall_s"] for run in tried)),
        "backtest_firings": tried[0]["firings"],
    }


def prepare(log: Path, data: Path, segments: int, rules: int, recipients: int) -> None:
    """Write a log that begins with definitions, and a data folder that has folded those."""
    with Writer.open(log, clock=VirtualClock(1)) as writer:
        for record in definitions(segments, rules, 1):
            writer.append([record])
    engine = Engine(config_from(machine.settings(data)), Reader(log), clock=NoSnapshots())
    engine.catch_up()
    engine.snapshot()
    engine.close()
    machine.write_log(log, sendgrid_bodies(Feed(recipients, sends=2)))


def replay(log: Path, data: Path) -> dict:
    engine = Engine(config_from(machine.settings(data)), Reader(log), clock=NoSnapshots())
    cpu = process_time()
    engine.catch_up()
    cpu_s = process_time() - cpu
    db = engine.store.db
    found = {
        "cpu_s": cpu_s,
        "events": db.execute("SELECT coalesce(sum(events), 0) FROM receipts").get,
        "moves": db.execute("SELECT coalesce(sum(n), 0) FROM moves").get,
        "firings": db.execute("SELECT coalesce(sum(n), 0) FROM firings").get,
    }
    engine.close()
    return found


def recipients(n: int, folder: Path) -> dict:
    feed = Feed(n)
    last = fold_ahead(feed, folder, n, definitions(segments_n, rules_n, 1))[-1]
    return {"recipients": last.recipients, "asked_bytes": last.asked_bytes, "rss_bytes": last.rss_bytes}


def backtest(log: Path, data: Path) -> dict:
    change = Change(segments={f"segment {n}": segment(n) for n in range(0, segments_n, 20)}, rules={"tried": rule(2, segments_n)})
    wall = perf_counter()
    with Reader(log) as reader:
        run = Backtest(config_from(machine.settings(data)), reader, change, 0, FOREVER_US)
        firings = sum(1 for _ in run.firings())
    return {"wall_s": perf_counter() - wall, "events": run.sums.events, "firings": firings}


def main() -> None:
    what, *rest = sys.argv[1:]
    load_code()
    if what == "recipients":
        found = recipients(int(rest[0]), Path(rest[1]))
    else:
        found = {"replay": replay, "backtest": backtest}[what](*map(Path, rest))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
