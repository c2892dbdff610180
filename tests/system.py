"""The whole system as real processes in a folder of its own: started, killed at will, played against and compared with the truth."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import httpx
import msgspec

from midflight.config import Config, load_config
from midflight.kit.clock import Clock, VirtualClock
from midflight.log import Reader, Record, Writer
from midflight.sandbox.audience import DIMENSION_NAMES
from midflight.sandbox.manners import Manners
from midflight.sandbox.play import Game, Step, play
from midflight.sandbox.settings import kinds, read_keys, sandbox_config, sandbox_sources, write_files
from midflight.sandbox.truth import Cell
from midflight.sandbox.vendors import SITE
from midflight.sandbox.verify import Difference, Truth, verify
from midflight.sandbox.world import Scenario, campaign_requests
from midflight.serve.auth import Access
from midflight.stream.measures import MEASURES

PROJECT = Path(__file__).parent.parent
CONTROLS = PROJECT / "tests" / "controls"
NAMES = ("door", "engine", "console", "history", "conductor", "poller")
VENDORS = tuple(kind for kind in kinds() if kind != SITE)
wait_s_max = 60.0
games_max = 20
T0 = 1_764_000_000_000_000


def wait_until(true: Callable[[], object], what: str, timeout_s: float = wait_s_max) -> None:
    """Wait until something holds. Raises AssertionError that says what did not."""
    until = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until, f"after {timeout_s:.0f} s still not: {what}"
        time.sleep(0.05)


def free_ports() -> dict[str, int]:
    """Return two ports that nobody listens on."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return {"door": one.getsockname()[1], "console": two.getsockname()[1]}


class System:
    """Processes over one data folder. ``settings`` go into midflight.yaml over the sandbox's own.

    Each process is started by itself, without a supervisor, so that a test decides when one comes back; `up` starts them supervised.
    """

    def __init__(self, folder: Path, seed: int = 1, **settings: object) -> None:
        self.folder, self.seed = folder, seed
        config, keys = sandbox_config(free_ports(), seed, str(folder / "data"))
        write_files(folder, config | settings, keys)
        self.path = folder / "midflight.yaml"
        self.config: Config = load_config(self.path)
        self.keys = read_keys(folder / "sandbox.yaml")
        self.data = self.config.folder
        self.door = f"http://127.0.0.1:{self.config.door.port}"
        self.api = f"http://127.0.0.1:{self.config.console.port}"
        self.processes: dict[str, subprocess.Popen] = {}
        self.games = 0
        self._token = ""

    def __enter__(self) -> System:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    # -- processes ---------------------------------------------------------------------------------------------------------

    def environment(self, crash_at: str = "", build: str = "", **more: str) -> dict[str, str]:
        """Return a process's environment: where it crashes, and which deliberately broken build it is."""
        paths = [str(PROJECT), *([str(CONTROLS)] if build else [])]
        out = {name: value for name, value in os.environ.items() if not name.startswith("MIDFLIGHT")}
        out |= {"MIDFLIGHT_CONFIG": str(self.path), "PYTHONPATH": os.pathsep.join(reversed(paths)), **more}
        if crash_at:
            out["MIDFLIGHT_CRASH_AT"] = crash_at
        if build:
            out["MIDFLIGHT_BUILD"] = build
        return out

    @staticmethod
    def command(name: str) -> list[str]:
        return [sys.executable, "-m", "midflight", name]

    def output(self, name: str) -> str:
        """Return what a process has said so far, over all its lives."""
        path = self.folder / f"{name}.out"
        return path.read_text() if path.exists() else ""

    def start(
        self, name: str, *, crash_at: str = "", build: str = "", before: tuple[str, ...] = (), **environment: str
    ) -> subprocess.Popen:
        """Start a process; ``before`` are words in front of the command, as of a tracer."""
        command = [*before, *self.command(name)]
        with (self.folder / f"{name}.out").open("a") as out:
            process = subprocess.Popen(
                command, env=self.environment(crash_at, build, **environment), stdout=out, stderr=out, start_new_session=True
            )
        self.processes[name] = process
        return process

    def start_all(self, *names: str) -> None:
        for name in names or NAMES:
            self.start(name)
        self.ready(*names)

    def ready(self, *names: str) -> None:
        """Wait until door and console answer."""
        for name, url in (("door", f"{self.door}/ready"), ("console", f"{self.api}/health")):
            if not names or name in names:
                wait_until(lambda url=url: self.answers(url), f"an answer at {url}\n{self.output(name)}")

    @staticmethod
    def answers(url: str) -> bool:
        try:
            return httpx.get(url, timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def engine_runs(self) -> None:
        """Wait until the engine that was started last has its folder."""
        words = str(self.processes["engine"].pid)
        wait_until(
            lambda: any(words in line.split() for line in Path("/proc/locks").read_text().splitlines() if "FLOCK" in line),
            f"an engine\n{self.output('engine')[-2000:]}",
        )

    def kill(self, name: str) -> None:
        """Kill a process as hard as there is."""
        self.processes[name].kill()
        self.processes[name].wait()

    def died(self, name: str, timeout_s: float = wait_s_max) -> int:
        """Wait until a process has ended by itself; return its status."""
        return self.processes[name].wait(timeout_s)

    def stop(self, name: str, timeout_s: float = 15.0) -> int:
        """Ask a process to end and wait for it; return its status."""
        self.processes[name].terminate()
        return self.processes[name].wait(timeout_s)

    def end(self) -> None:
        """End everything: with its supervisor what it supervises."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def up(self) -> subprocess.Popen:
        """Start everything, supervised."""
        process = self.start("up", PYTHONUNBUFFERED="1")
        self.ready()
        return process

    def child(self, name: str) -> int:
        """Return the process id of what `up` runs under a name, 0 while there is none."""
        for path in Path(f"/proc/{self.processes['up'].pid}/task/{self.processes['up'].pid}/children").read_text().split():
            try:
                words = Path(f"/proc/{path}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if len(words) > 2 and words[-2].decode() == name:
                return int(path)
        return 0

    # -- games -------------------------------------------------------------------------------------------------------------

    @property
    def token(self) -> str:
        if not self._token:
            access = Access(self.config)
            self._token = access.make_token("test", ["read", "write"])[1]
            access.close()
        return self._token

    def scenario(self, recipients: int = 150, campaigns: int = 2, **manners: float) -> Scenario:
        """Return the next game: some days told at once, with ill manners."""
        self.games += 1
        return Scenario(
            seed=self.seed * 1000 + self.games,
            start_us=Clock().now_us(),
            recipients=recipients,
            campaigns=campaigns,
            vendors=VENDORS,
            spread_days=3.0,
            batch=20,
            manners=Manners(**({"duplicates": 0.1, "reorder": 0.1, "bare": 0.05, "cut": 0.02, "clocks": 0.0} | manners)),
        )

    def play(self, scenario: Scenario | None = None, rate: float = 0.0, step: Step | None = None, ask: bool = True) -> Truth:
        """Play a game against the door and return its truth. Nothing that the door refused for good is right here.

        ``ask`` the API first what belongs to no campaign already.
        """
        api = self.api if ask else ""
        game = Game(scenario or self.scenario(), self.door, self.keys, rate=rate, connections=8, patience_s=600, api=api, token=self.token)
        told = play(game, step)
        report = told.report
        assert not report["refused"] and not report["lost"], f"seed {told.seed}: {report}"
        return told

    def differences(self, told: Truth, timeout_s: float = 30.0) -> list[Difference]:
        """Return every number of the API that is not the truth, after waiting for the engine."""
        return verify(told, self.api, token=self.token, measures=MEASURES, timeout_s=timeout_s)

    def caught_up(self) -> None:
        """Wait until the engine has folded all that the log holds now."""
        with Reader(self.data / "log") as reader:
            head = reader.head()
        wait_until(lambda: position(self.data / "store.db") >= head, f"the engine at {head}\n{self.output('engine')[-2000:]}")

    def client(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.api, headers=headers, timeout=30, trust_env=False)


class Playing:
    """Games in a thread, while the test does harm: one, and another as long as ``again()``. ``begun`` says that people are told."""

    def __init__(self, system: System, again: Callable[[], bool] = lambda: False, *, recipients: int = 150, rate: float = 300.0) -> None:
        self.system, self.again, self.recipients, self.rate = system, again, recipients, rate
        self.truths: list[Truth] = []
        self.error: BaseException | None = None
        self.begun = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while not self.truths or (self.again() and len(self.truths) < games_max):
                scenario = self.system.scenario(self.recipients)
                self.truths.append(self.system.play(scenario, self.rate, lambda what, n: self.begun.set(), not self.truths))
        except BaseException as error:
            self.error = error
        finally:
            self.begun.set()

    def __enter__(self) -> Playing:
        self._thread.start()
        self.begun.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def differences(self, timeout_s: float = 30.0) -> list[Difference]:
        """Wait for the end of the games and return what the API shows otherwise than it is. Raises what went wrong in a game."""
        self._thread.join()
        if self.error:
            raise self.error
        # What belongs to no campaign comes from all games together.
        cells: dict[Cell, Counter[str]] = defaultdict(Counter)
        for cell, counts in (cell for told in self.truths for cell in told.cells):
            cells[cell].update(counts)
        return self.system.differences(msgspec.structs.replace(self.truths[0], cells=list(cells.items())), timeout_s)

    def shown(self, found: list[Difference]) -> str:
        """Return differences and the seeds of the games in words."""
        return f"seeds {[told.seed for told in self.truths]}: {len(found)} numbers differ, such as {found[:3]}"


# -- a log without HTTP ------------------------------------------------------------------------------------------------------


def write_log(folder: Path, seed: int = 3, *, frames: int = 7, **scenario: object) -> int:
    """Fill a log with a game's requests, at most ``frames`` records in a frame; return how many records that is."""
    given = {"recipients": 150, "campaigns": 2, "vendors": VENDORS, "spread_days": 3.0, "start_us": T0, "batch": 20}
    given["manners"] = Manners(duplicates=0.15, reorder=0.2, bare=0.1, poison=0.05)
    clock = VirtualClock(T0)
    records = []
    for source, request, _ in campaign_requests(seed, sources=sandbox_sources(seed, (*VENDORS, SITE)), **(given | scenario)):
        kind = "track" if source == SITE else "webhook"
        records.append(Record(kind, source, 0, dict(request.headers), request.body, request.url))
    with Writer.open(folder, None, clock, segment_bytes=256 * 1024, reserve_bytes=4096) as writer:
        at = 0
        while at < len(records):
            size = at % frames + 1
            writer.append(records[at : at + size])
            at += size
            clock.sleep_s(0.7)
    return len(records)


# -- what the store says -----------------------------------------------------------------------------------------------------


def position(store: Path) -> int:
    """Return the log position up to which a store goes; 0 for none."""
    if not store.exists():
        return 0
    db = apsw.Connection(str(store), flags=apsw.SQLITE_OPEN_READWRITE)
    db.set_busy_timeout(5000)
    try:
        row = db.execute("SELECT value FROM meta WHERE key = 'position'").fetchone()
        return row[0] if row else 0
    except apsw.SQLError:
        return 0  # the engine has not made its tables yet
    finally:
        db.close()


def pictured(store: Path, attributes: tuple[str, ...] = DIMENSION_NAMES) -> dict[str, list]:
    """Return all that a store derived from the log, sorted, with names instead of their numbers.

    Left out are freshness, which is wall time, and rows in which everything is zero. Duplicates are counted at the minute of the batch
    that found them, so they are summed by source.
    """
    db = apsw.Connection(str(store))
    try:
        return Picture(db, attributes).tables()
    finally:
        db.close()


class Picture:
    """One look at a store."""

    def __init__(self, db: apsw.Connection, attributes: tuple[str, ...]) -> None:
        self.db, self.attributes = db, attributes
        self.names = {(kind, number): name for kind, number, name in db.execute("SELECT kind, id, name FROM names")}

    def tables(self) -> dict[str, list]:
        keys = "campaign, minute, variant, wave, provider, source, segment"
        hours = keys.replace("minute", "hour")
        receipts: dict[str, int] = defaultdict(int)
        for source, n in self.db.execute("SELECT source, duplicates FROM receipts"):
            receipts[source] += n
        meta = "SELECT key, value FROM meta WHERE key IN ('position', 'log_time_us', 'version', 'fold')"
        return {
            "meta": sorted(self.db.execute(meta)),
            "names": sorted((kind, name) for (kind, _), name in self.names.items()),
            "cells": sorted(self._cells(f"SELECT {keys}, {', '.join(MEASURES)} FROM cells")),
            "delays": sorted(self._cells(f"SELECT {keys}, n, kind, bucket FROM delays WHERE n")),
            "hours": sorted(self._cells(f"SELECT {hours}, {', '.join(MEASURES)} FROM hours")),
            "hour_delays": sorted(self._cells(f"SELECT {hours}, n, kind, bucket FROM hour_delays WHERE n")),
            "campaigns": sorted((self._name("campaign", row[0]), *row[1:]) for row in self.db.execute("SELECT * FROM campaigns")),
            "clickers": sorted(self._clickers()),
            "dead": sorted(self.db.execute("SELECT * FROM dead")),
            "receipts": sorted(self.db.execute("SELECT source, minute, records, events, bad, last_event_us FROM receipts WHERE records")),
            "duplicates": sorted(receipts.items()),
            "drops": sorted(self.db.execute("SELECT * FROM drops")),
            "marks": sorted(self.db.execute("SELECT * FROM marks")),
            **{name: sorted(self.db.execute(f"SELECT * FROM {name}")) for name in ("suppressions", "addresses", "orders", "advised")},
        }

    def _name(self, kind: str, number: int) -> str:
        return self.names[kind, number] if number else ""

    def _cells(self, sql: str) -> Iterator[tuple]:
        for campaign, minute, variant, wave, provider, source, segment, *rest in self.db.execute(sql):
            if not any(rest):
                continue
            packed = (segment & (1 << 64) - 1).to_bytes(8, "little")
            values = [self._name(f"attribute:{name}", byte) for name, byte in zip(self.attributes, packed, strict=False)]
            numbers = (("campaign", campaign), ("variant", variant), ("wave", wave), ("provider", provider), ("source", source))
            yield (minute, *(self._name(*named) for named in numbers), *values, *rest)

    def _clickers(self) -> Iterator[tuple]:
        for campaign, message, recipient, variant, wave, *times in self.db.execute("SELECT * FROM clickers"):
            names = self._name("campaign", campaign), self._name("variant", variant), self._name("wave", wave)
            # The number of a message comes from its source's name and its own id, and from nothing else.
            yield (*names, recipient, message, *times)


def state_hash(pictured: dict[str, list]) -> str:
    """Return SHA-256 over everything in a picture."""
    return hashlib.sha256(msgspec.msgpack.encode(pictured)).hexdigest()


def unequal(one: dict[str, list], other: dict[str, list]) -> dict[str, list]:
    """Return by table the first rows in which two pictures differ."""
    return {name: sorted(set(one[name]) ^ set(other[name]))[:4] for name in one if one[name] != other[name]}
