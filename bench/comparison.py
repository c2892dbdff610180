"""Measure the same job beside other engines: one input file, tables that have to be equal, runs interleaved, medians.

The job is said in ``bench/peers/job.py``. Ours is the whole production path: the log's reader, edge, shard and store commit in one process.
It does more than the job asks (providers, waves, human or machine, delays, who clicked), and its input is read from the durable log.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import apsw

from . import machine
from .feed import Feed, as_lines
from .peers.job import MEASURES, save


class Engine(NamedTuple):
    """One that is compared: its module under bench/peers, its lock, the form of its input, and whether it is a stream at all."""

    name: str
    lock: str
    form: str = "arrays"
    stream: bool = True
    needs_java: bool = False


ENGINES = (
    Engine("bytewax", "requirements-peers.lock"),
    Engine("pathway", "requirements-peers.lock"),
    Engine("flink", "requirements-flink.lock", form="lines", needs_java=True),
    Engine("duckdb", "requirements-peers.lock", form="lines", stream=False),
)
# Which of our measures each of the job's is.
OURS = {
    "processed": "queued",
    "delivered": "delivered",
    "deferred": "deferred",
    "bounce": "bounced_hard + bounced_soft + bounced_block",
    "dropped": "rejected",
    "open": "opens",
    "click": "clicks",
    "unsubscribe": "unsubscribed",
    "spamreport": "complained",
    "first_open": "opened",
    "first_click": "clicked",
}
assert tuple(OURS) == MEASURES


class Size(NamedTuple):
    seconds: float  # how long a run should last
    recipients_first: int  # the size that the speed is first guessed from
    recipients_max: int
    runs: int
    engines: tuple[Engine, ...]


FULL = Size(15.0, 30_000, 1_500_000, 3, ENGINES)
QUICK = Size(0.5, 1_500, 3_000, 1, (ENGINES[0], ENGINES[-1]))  # those that start quickly


class Input(NamedTuple):
    """The same events in each form: a log of ours, arrays a line, and one event a line; and our table of them."""

    folder: Path
    events: int

    def path(self, form: str) -> Path:
        return self.folder / form


def measure(size: Size, say: Callable[[str], None]) -> dict:
    """Return `peer_ratios` (ours by theirs, against the better of one core and all cores) and every engine's own numbers."""
    found: dict[str, dict] = {}
    with machine.workplace() as folder:
        small = make_input(folder / "small", size.recipients_first)
        table_of_ours(small)
        for engine in size.engines:
            say(f"setting up {engine.name}")
            if engine.needs_java and not has_java():
                found[engine.name] = {"left_out": "needs Java, which this machine does not have"}
                continue
            found[engine.name] = compare(engine, small, size, folder, say)
    peers = {name: row for name, row in found.items() if "ratio" in row}
    return {
        "peer_ratios": {name: row["ratio"] for name, row in peers.items() if row["stream"]},
        "peer_yardsticks": {name: row["ratio"] for name, row in peers.items() if not row["stream"]},
        "peers": found,
    }


def compare(engine: Engine, small: Input, size: Size, folder: Path, say: Callable[[str], None]) -> dict:
    """Run one engine and ours in turn, on a small input and on one that takes it about ``size.seconds``; tables have to be equal."""
    python = environment(engine)
    ways: dict[str, Callable[[Input], dict]] = {
        "ours": run_ours,
        "one_core": lambda given: run_peer(engine, python, given, 1, 0),
        "all_cores": lambda given: run_peer(engine, python, given, os.cpu_count() or 1, None),
    }
    say(f"checking {engine.name} on {small.events:,} events")
    first = {name: way(small) for name, way in ways.items()}
    large = sized(engine.name, ways, first, size, folder)
    runs: dict[str, list[tuple[dict, dict]]] = {name: [] for name in ways}
    for number in range(size.runs):
        say(f"{engine.name} on {large.events:,} events, run {number + 1} of {size.runs}")
        for name, way in ways.items():
            runs[name].append((way(small) if number else first[name], way(large)))
    shutil.rmtree(large.folder)
    return {"stream": engine.stream, "version": installed(engine, python)} | summary(runs, small.events, large.events)


def sized(name: str, ways: dict[str, Callable[[Input], dict]], first: dict[str, dict], size: Size, folder: Path) -> Input:
    """Return an input that takes the engine about ``size.seconds`` longer than the small one did."""
    recipients = min(4 * size.recipients_first, size.recipients_max)
    while True:
        large = make_input(folder / name, recipients)
        table_of_ours(large)
        took = min(ways[way](large)["wall_s"] - first[way]["wall_s"] for way in ("one_core", "all_cores"))
        if took >= size.seconds / 2 or recipients == size.recipients_max:
            return large
        shutil.rmtree(large.folder)
        recipients = min(round(recipients * min(max(size.seconds / max(took, 0.1), 2), 8)), size.recipients_max)


def summary(runs: dict[str, list[tuple[dict, dict]]], small: int, large: int) -> dict:
    """Return rates by the difference of the two inputs: what an engine does once, before its first event, is no part of its speed."""

    def rate(name: str, by: str) -> float:
        before, after = (median(pair[place][by] for pair in runs[name]) for place in (0, 1))
        # Where the large input took hardly longer, the difference is noise: then all of the time counts.
        return (large - small) / (after - before) if after - before > after / 5 else large / max(after, 1e-9)

    theirs = {name: rate(name, "wall_s") for name in ("one_core", "all_cores")}
    best = max(theirs, key=lambda name: theirs[name])
    return {
        "events": large,
        "ratio": round(rate("ours", "wall_s") / theirs[best], 2),
        "ratio_by_cpu": round(rate("ours", "cpu_s") / max(rate("one_core", "cpu_s"), rate("all_cores", "cpu_s")), 2),
        "best": best,
        **{f"per_s_{name}": round(rate(name, "wall_s")) for name in runs},
        **{f"per_cpu_s_{name}": round(rate(name, "cpu_s")) for name in runs},
        **{f"rss_bytes_{name}": max(after["rss_bytes"] for _, after in done) for name, done in runs.items()},
        "runs_s": {name: [[round(run["wall_s"], 2) for run in pair] for pair in done] for name, done in runs.items()},
    }


# -- inputs and tables -----------------------------------------------------------------------------------------------------------


def make_input(folder: Path, recipients: int) -> Input:
    """Write the same events as a log, as arrays and as lines."""
    folder.mkdir()
    events = 0
    headers = {"content-type": "application/json"}
    with (folder / "arrays").open("wb") as arrays, (folder / "lines").open("wb") as lines:

        def bodies():
            nonlocal events
            for batch in Feed(recipients):
                arrays.write(batch.body + b"\n")
                lines.write(as_lines(batch.body))
                events += batch.events
                yield batch.at_us, "sendgrid", headers, batch.body, "/in/sendgrid"

        machine.write_log(folder / "log", bodies())
    return Input(folder, events)


def table_of_ours(given: Input) -> None:
    """Fold the input and write the job's table as our store has it, for the others to be held against."""
    data = given.folder / "data"
    machine.run("bench.folding", given.folder / "log", data, core=0)
    save_ours(data / "store.db", given.folder / "table")
    shutil.rmtree(data)


def save_ours(store: Path, path: Path) -> None:
    """Write the job's table as a store of ours has it."""
    sums = ", ".join(f"sum({columns})" for columns in OURS.values())
    name = "(SELECT name FROM names WHERE kind = '{0}' AND id = cells.{0})"
    db = apsw.Connection(str(store))
    query = f"SELECT {name.format('campaign')}, {name.format('variant')}, minute, {sums} FROM cells GROUP BY campaign, variant, minute"
    save(str(path), {tuple(row[:3]): list(row[3:]) for row in db.execute(query)})
    db.close()


def run_ours(given: Input) -> dict:
    """Fold the input's log on one core."""
    data = given.folder / "data"
    done = machine.run("bench.folding", given.folder / "log", data, core=0)
    shutil.rmtree(data)
    return done


def run_peer(engine: Engine, python: str, given: Input, workers: int, core: int | None) -> dict:
    """Run a peer; its table has to be ours."""
    result = given.folder / "theirs"
    done = machine.run(f"bench.peers.{engine.name}_job", given.folder / engine.form, result, workers, core=core, python=python)
    if result.read_bytes() != (given.folder / "table").read_bytes():
        raise RuntimeError(f"{engine.name} and Midflight differ on {given.events:,} events: nothing is compared")
    result.unlink()
    return done


# -- where the others live -------------------------------------------------------------------------------------------------------


def environment(engine: Engine) -> str:
    """Return the Python of an engine's own virtual environment; it is made from its lock, once."""
    lock = Path(__file__).parent / engine.lock
    folder = machine.PROJECT / ".venv-peers" / lock.stem
    python, stamp = folder / "bin" / "python", folder / ".made"
    if not stamp.exists() or stamp.read_bytes() != lock.read_bytes():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
        subprocess.run([*pip, "--require-hashes", "-r", lock], check=True)
        stamp.write_bytes(lock.read_bytes())
    return str(python)


def has_java() -> bool:
    return shutil.which("java") is not None or "JAVA_HOME" in os.environ


def installed(engine: Engine, python: str) -> str:
    package = {"flink": "apache-flink"}.get(engine.name, engine.name)
    command = [python, "-c", f"from importlib.metadata import version; print(version({package!r}))"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
