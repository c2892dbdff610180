"""A running `midflight up` with everything it starts, and a sender of signed SendGrid batches over real HTTP on the same machine."""

from __future__ import annotations

import base64
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import apsw
import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from midflight.config import load_config
from midflight.sandbox.settings import sendgrid_keys
from midflight.serve.auth import Access
from midflight.store.schema import SCHEMA
from midflight.stream.measures import MEASURES

from . import door, machine
from .feed import Batch, Feed, batch_events

connections = 16
counted = (
    "queued sent delivered deferred bounced_hard bounced_soft bounced_block rejected opens clicks complained unsubscribed unknown".split()
)
assert set(counted) <= set(MEASURES) and "CREATE TABLE IF NOT EXISTS campaigns" in SCHEMA


class Sent(NamedTuple):
    """What a sender saw: when the first request went, when the last answer came, and the answers' waits."""

    began_s: float
    ended_s: float
    waits_ms: list[float]


class Up(NamedTuple):
    """A running system: where its parts are, its processes by name, and a token for its API."""

    folder: Path
    port: int
    console: str
    token: str
    supervisor: subprocess.Popen

    def processes(self) -> dict[str, int]:
        """Return the process ids of door, engine, console and history."""
        found = {}
        for line in Path(f"/proc/{self.supervisor.pid}/task/{self.supervisor.pid}/children").read_text().split():
            name = Path(f"/proc/{line}/cmdline").read_bytes().split(b"\0")[-2].decode()
            found[name] = int(line)
        return found

    def cpu_s(self) -> dict[str, float]:
        return {name: cpu_s(pid) for name, pid in self.processes().items()}


@contextmanager
def up(folder: Path, **more: object) -> Iterator[Up]:
    """Run `midflight up` with ``more`` settings over a fresh folder; yield it once the door is ready and the engine has made the store."""
    port, console = door.free_port(), door.free_port()
    path = folder / "midflight.yaml"
    path.write_bytes(msgspec.json.encode(machine.settings(folder / "data", door={"port": port}, console={"port": console}, **more)))
    access = Access(load_config(path))
    _, token = access.make_token("bench", ["read"])
    access.close()
    environment = os.environ | {"MIDFLIGHT_CONFIG": str(path)}
    command = [sys.executable, "-m", "midflight", "up"]
    with (folder / "up.log").open("wb") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
        try:
            door.wait_ready(port, process)
            wait_for(lambda: (folder / "data" / "store.db").exists(), "the engine made no store")
            yield Up(folder / "data", port, f"http://127.0.0.1:{console}", token, process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def wait_for(true, otherwise: str, seconds_max: float = 60.0, every_s: float = 0.05) -> float:
    """Wait until something holds and return how long that took."""
    began = time.perf_counter()
    while not true():
        if time.perf_counter() - began > seconds_max:
            raise RuntimeError(f"after {seconds_max:.0f} s: {otherwise}")
        time.sleep(every_s)
    return time.perf_counter() - began


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Counted:
    """Reads from the store how many events the cells count."""

    def __init__(self, folder: Path) -> None:
        self.db = apsw.Connection(str(folder / "store.db"), flags=apsw.SQLITE_OPEN_READWRITE)
        self.db.set_busy_timeout(5_000)
        self._sum = " + ".join(f"coalesce(sum({name}), 0)" for name in counted)

    def events(self) -> int:
        """Return the sum over the campaigns, which the engine writes with the cells in one transaction."""
        return self.db.execute(f"SELECT {self._sum} FROM campaigns").get

    def events_in_cells(self) -> int:
        return self.db.execute(f"SELECT {self._sum} FROM cells").get

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *_: object) -> None:
        self.db.close()


def signed(batch: Batch, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the HTTP request with which SendGrid would send a batch."""
    signed_at = str(batch.at_us // 1_000_000)
    signature = base64.b64encode(key.sign(signed_at.encode() + batch.body, ec.ECDSA(hashes.SHA256()))).decode()
    name = "X-Twilio-Email-Event-Webhook"
    headers = {"Content-Type": "application/json", f"{name}-Signature": signature, f"{name}-Timestamp": signed_at}
    return door.post("/in/sendgrid", headers, batch.body)


def private_key() -> ec.EllipticCurvePrivateKey:
    """Return the key whose public half `machine.settings` configures."""
    return serialization.load_pem_private_key(sendgrid_keys(1)[0].encode(), None)


def prepared(events: int, seed: int) -> tuple[list[bytes], int, int]:
    """Return signed requests with about so many events, how many events that is, and how many of those are new.

    The feed's times end a minute ago, so that nothing in it lies in the future.
    """
    recipients = max(200, round(events / 3.4))
    feed = Feed(recipients, seed=seed)
    feed = Feed(recipients, seed=seed, start_us=time.time_ns() // 1000 - (feed.end_us - feed.shape.start_s * 1_000_000) - 60_000_000)
    key = private_key()
    batches = list(islice(feed, max(1, events // batch_events)))
    new = sum(batch.events - batch.repeated for batch in batches)
    return [signed(batch, key) for batch in batches], sum(batch.events for batch in batches), new


def send(port: int, requests: list[bytes], per_s: float = 0.0) -> Sent:
    """Send all requests, each connection one at a time; with ``per_s`` at that pace, else as fast as answers come. All have to get 200."""
    poll = select.epoll()
    by_fd: dict[int, door.Client] = {}
    for _ in range(connections):
        client = door.Client(port)
        by_fd[client.socket.fileno()] = client
        poll.register(client.socket, select.EPOLLIN)
    # In turn: the door closes a connection that rests for long.
    resting, waits, sent = deque(by_fd.values()), [], 0
    began_s = time.perf_counter()
    while len(waits) < len(requests):
        now_s = time.perf_counter()
        while resting and sent < len(requests) and (not per_s or sent <= (now_s - began_s) * per_s):
            client = resting.popleft()
            # With a pace, the wait counts from when the request was due, so that a late start is not forgotten.
            client.sent_s = began_s + sent / per_s if per_s else now_s
            if not client.send(requests[sent]):
                poll.modify(client.socket, select.EPOLLIN | select.EPOLLOUT)
            sent += 1
        for fd, happened in poll.poll(0.001 if per_s else 0.1):
            client = by_fd[fd]
            if happened & select.EPOLLOUT and client.send(b""):
                poll.modify(client.socket, select.EPOLLIN)
            if happened & select.EPOLLIN and (status := client.take()):
                if status != 200:
                    raise RuntimeError(f"the door answered {status}")
                waits.append((time.perf_counter() - client.sent_s) * 1000)
                resting.append(client)
    ended_s = time.perf_counter()
    for client in by_fd.values():
        client.socket.close()
    poll.close()
    return Sent(began_s, ended_s, sorted(waits))


def quantile(values: list[float], share: float) -> float:
    """Return a quantile of sorted values."""
    return values[min(len(values) - 1, int(len(values) * share))]
