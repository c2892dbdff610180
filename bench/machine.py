"""What the measurements run on, and what a process has used of it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import midflight
from midflight.kit.clock import VirtualClock
from midflight.log import Record, Writer
from midflight.sandbox.settings import source_settings

from . import log as bench_log

PROJECT = Path(__file__).parent.parent
MEASURED_WITH = ("numpy", "numba", "msgspec", "apsw", "httptools", "uvloop", "fastapi", "uvicorn", "cryptography")
rows_a_commit = 20


def describe(folder: Path) -> dict:
    """Return what machine this is: its parts, its disk's wait for one durable write, its load, and the versions that ran."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "system": " ".join((platform.system(), platform.release().partition("-")[0])),
        "python": platform.python_version(),
        "durable_write_ms": round(bench_log.bare_disk(folder, 4096), 3),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {"midflight": midflight.__version__, **{name: version(name) for name in MEASURED_WITH}},
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def commit() -> str:
    """Return the source's commit, or nothing outside of version control."""
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=False)
    return said.stdout.strip()


def rss_bytes() -> int:
    """Return the memory that this process has in use now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def workplace() -> Iterator[Path]:
    """Give a fresh folder on the project's disk, and remove it."""
    build = PROJECT / "build"
    build.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="bench-", dir=build) as folder:
        yield Path(folder)


def settings(folder: Path, **more: object) -> dict:
    """Return a configuration with one SendGrid source, as plain data."""
    ours, _ = source_settings("sendgrid", 1)
    return {"data": str(folder), "sources": {"sendgrid": ours}, **more}


def run(module: str, *arguments: object, core: int | None = None, python: str = sys.executable) -> dict:
    """Run a module of the bench as a process of its own, on one core if one is given, and return the JSON that it prints last."""
    pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
    command = [python, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, preexec_fn=pin)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def write_log(folder: Path, bodies: Iterator[tuple[int, str, dict[str, str], bytes, str]]) -> None:
    """Write (received us, source, headers, body, url) as the door would: some requests to each commit."""
    clock = VirtualClock()
    waiting: list[Record] = []
    with Writer.open(folder, clock=clock) as writer:

        def flush() -> None:
            if waiting:
                clock.at_us = waiting[-1].at_us
                writer.append(waiting)
                waiting.clear()

        for at_us, source, headers, body, url in bodies:
            waiting.append(Record("webhook" if url.startswith("/in/") else "track", source, at_us, headers, body, url))
            if len(waiting) >= rows_a_commit:
                flush()
        flush()
