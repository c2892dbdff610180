"""Measure the way back: an engine that starts over millions of events with a snapshot present, and a door that starts over their log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

import apsw
import msgspec

from midflight.config import config_from
from midflight.log import Reader
from midflight.store.host_local import Engine

from . import door, live, machine
from .feed import Feed
from .folding import NoSnapshots, sendgrid_bodies


class Size(NamedTuple):
    events: int
    after_snapshot: int  # events that came after the snapshot and have to be folded again
    runs: int


FULL = Size(10_000_000, 200_000, 3)
QUICK = Size(40_000, 4_000, 2)


def measure(size: Size, say: Callable[[str], None]) -> dict:
    """Return `restart_s`: from the start of the engine's process until it has folded what the log holds; and the door's, to `/ready`."""
    with machine.workplace() as folder:
        say(f"folding {size.events:,} events")
        settings = machine.settings(folder / "data", door={"port": door.free_port()})
        path = folder / "midflight.yaml"
        path.write_bytes(msgspec.json.encode(settings))
        snapshot_bytes = fill(folder / "data", settings, size)
        say("stopping and starting")
        engines, doors = [], []
        head = Reader(folder / "data" / "log").head()
        for _ in range(size.runs):
            forget_after_snapshot(folder / "data")
            with process("engine", path, folder) as began:
                live.wait_for(lambda: position(folder / "data") >= head, "the engine has not caught up", 300.0, 0.005)
                engines.append(time.perf_counter() - began)
            with process("door", path, folder) as began:
                live.wait_for(lambda: is_ready(settings["door"]["port"]), "the door is not ready", 120.0, 0.005)
                doors.append(time.perf_counter() - began)
    return {
        "restart_s": round(median(engines), 2),
        "restart_runs_s": [round(took, 2) for took in engines],
        "restart_door_s": round(median(doors), 2),
        "restart_events": size.events,
        "restart_events_after_snapshot": size.after_snapshot,
        "restart_snapshot_bytes": snapshot_bytes,
    }


def fill(data: Path, settings: dict, size: Size) -> int:
    """Write the log, fold all but its end, snapshot, and keep the store as it is then; return the snapshot's bytes."""
    feed = iter(Feed(round((size.events + size.after_snapshot) / 3.3)))
    machine.write_log(data / "log", sendgrid_bodies(islice(feed, size.events // 200)))
    engine = Engine(config_from(settings), Reader(data / "log"), clock=NoSnapshots())
    engine.catch_up()
    engine.snapshot()
    engine.close()
    (data / "store.db").rename(data / "store.then")
    machine.write_log(data / "log", sendgrid_bodies(islice(feed, size.after_snapshot // 200)))
    return sum(found.stat().st_size for found in (data / "snapshots").iterdir())


def forget_after_snapshot(data: Path) -> None:
    """Put the store back to the moment of the snapshot, so that every start finds the same work."""
    for name in ("store.db", "store.db-wal", "store.db-shm"):
        (data / name).unlink(missing_ok=True)
    subprocess.run(["cp", data / "store.then", data / "store.db"], check=True)


def position(data: Path) -> int:
    db = apsw.Connection(str(data / "store.db"), flags=apsw.SQLITE_OPEN_READWRITE)
    db.set_busy_timeout(5_000)
    found = db.execute("SELECT value FROM meta WHERE key = 'position'").get
    db.close()
    return found


def is_ready(port: int) -> bool:
    try:
        with door.socket.create_connection(("127.0.0.1", port), 1) as found:
            found.sendall(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return b" 200 " in found.recv(4096)
    except OSError:
        return False


@contextmanager
def process(name: str, config: Path, folder: Path) -> Iterator[float]:
    """Run one process of `midflight up` alone and yield when it was started."""
    environment = os.environ | {"MIDFLIGHT_CONFIG": str(config)}
    with (folder / f"{name}.log").open("ab") as said:
        began = time.perf_counter()
        running = subprocess.Popen([sys.executable, "-m", "midflight", name], env=environment, stdout=said, stderr=said)
        try:
            yield began
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(30)
