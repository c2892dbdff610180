"""Folds a log as the engine process does and says what that took: ``python -m bench.folding LOG DATA [CONFIG]`` prints it as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import msgspec

from midflight.config import Config, config_from
from midflight.kit.clock import Clock
from midflight.log import Reader
from midflight.store.host_local import Engine

from . import machine
from .feed import Feed


class NoSnapshots(Clock):
    """A clock by which it is never time for a snapshot; wall time goes on."""

    def monotonic_s(self) -> float:
        return 0.0


def load_code() -> None:
    """Fold a small log once, so that compiled code is in memory: what starts only once is no part of a rate."""
    with TemporaryDirectory() as made:
        folder = Path(made)
        machine.write_log(folder / "log", sendgrid_bodies(Feed(2_000)))
        fold(folder / "log", config_from(machine.settings(folder / "data")))


def sendgrid_bodies(feed):
    """Return a feed as log entries of the source `sendgrid`."""
    headers = {"content-type": "application/json"}
    return ((batch.at_us, "sendgrid", headers, batch.body, "/in/sendgrid") for batch in feed)


def fold(log: Path, config: Config) -> dict:
    """Replay a whole log into a new data folder: reader, edge, shards, store commits. Returns seconds, bytes and counts."""
    engine = Engine(config, Reader(log), clock=NoSnapshots())
    rss_before, wall, cpu = machine.rss_bytes(), perf_counter(), process_time()
    engine.catch_up()
    wall_s, cpu_s = perf_counter() - wall, process_time() - cpu
    counts = engine.shards[0].counts()
    found = {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "rss_bytes": machine.rss_bytes() - rss_before,
        "state": counts,
        "events": engine.store.db.execute("SELECT coalesce(sum(events), 0) FROM receipts").get,
        "dead": engine.store.db.execute("SELECT count(*) FROM dead").get,
    }
    engine.close()
    return found


def main() -> None:
    log, data, *rest = sys.argv[1:]
    config = config_from(msgspec.json.decode(Path(rest[0]).read_bytes()) | {"data": data} if rest else machine.settings(Path(data)))
    load_code()
    print(json.dumps(fold(Path(log), config)))


if __name__ == "__main__":
    main()
