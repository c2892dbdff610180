"""Measure the advisor: how long `POST /v1/decide` takes at 2,000 questions a second while the engine folds what is told.

The whole system runs (`midflight up`), and the load comes from this same machine: an open loop over kept connections, so that a wait counts
from when a question was due, whether or not a connection was free. Most recipients are new when they are asked about.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import apsw
import msgspec

from midflight.act.orders import Add, Move
from midflight.config import load_config
from midflight.kit.clock import Clock
from midflight.serve.auth import Access
from midflight.serve.ordering import ordered

from . import door, live, machine

connections = 64
again_share = 0.2  # of questions about somebody who was asked about before
paragraphs = 40
VARIANTS = ("A", "B", "C")


class Size(NamedTuple):
    seconds: float
    per_s: float
    warm_s: float


FULL = Size(30.0, 2_000.0, 5.0)
QUICK = Size(2.0, 500.0, 1.0)


def measure(size: Size, say: Callable[[str], None]) -> dict:
    """Return `decide_p99_ms` and what belongs to it."""
    with machine.workplace() as folder, up(folder) as (system, token):
        first, *requests = questions(round(size.per_s * (size.warm_s + size.seconds)) + 1, token)
        say("waiting for the engine")
        live.wait_for(lambda: b'"variant"' in ask(system.port, first), "the advisor holds", every_s=0.1)
        warm = round(size.per_s * size.warm_s)
        say("warming up")
        send(system.port, requests[:warm], size.per_s)
        before = system.cpu_s()
        say(f"{size.per_s:,.0f} questions/s for {size.seconds:.0f} s")
        sent = send(system.port, requests[warm:], size.per_s)
        took_s = sent.ended_s - sent.began_s
        used = {name: round((seconds - before[name]) / took_s, 2) for name, seconds in system.cpu_s().items()}
        people = len(set(requests) | {first})
        lag_s = live.wait_for(lambda: folded(system.folder) >= people, "the engine has not folded what was told", 120.0)
    return {
        "decide_p50_ms": round(live.quantile(sent.waits_ms, 0.5), 2),
        "decide_p99_ms": round(live.quantile(sent.waits_ms, 0.99), 2),
        "decide_per_s": round(len(sent.waits_ms) / took_s),
        "decide_lag_s": round(lag_s, 2),
        "decide_questions": len(sent.waits_ms),
        "decide_cores": used,
    }


def questions(count: int, token: str, seed: int = 1) -> list[bytes]:
    """Return requests, the same for a seed: a new recipient each, or one of those before."""
    chance = random.Random(seed)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    made, people = [], 0
    for _ in range(count):
        again = people and chance.random() < again_share
        number = chance.randrange(people) if again else people
        people += not again
        asked = {"campaign": "spring", "recipient": f"reader{number}@example.com", "attributes": {"name": f"Reader {number}"}}
        made.append(door.post("/v1/decide", headers, msgspec.json.encode(asked)))
    return made


def definition() -> dict:
    """Return a campaign of three variants with a body of a few kilobytes."""
    greeting = "{{ name | default: 'you' }}"
    body = f"<h1>Hello {greeting}</h1>" + "<p>Some words about spring, and about what grows in a garden then.</p>" * paragraphs
    variants = [{"name": name, "subject": f"{name}: hello {greeting}", "html": body} for name in VARIANTS]
    return {"name": "spring", "from_address": "news@shop.example", "audience": {"api": True}, "variants": variants}


@contextmanager
def up(folder: Path) -> Iterator[tuple[live.Up, str]]:
    """Run `midflight up` over a fresh folder, with a token for the advisor and a campaign that is asked about."""
    port, console = door.free_port(), door.free_port()
    path, data = folder / "midflight.yaml", folder / "data"
    settings = machine.settings(data, door={"port": port, "public_url": "https://mail.example"}, console={"port": console})
    path.write_bytes(msgspec.json.encode(settings))
    access = Access(load_config(path))
    _, token = access.make_token("bench", ["decide"])
    access.close()
    command = [sys.executable, "-m", "midflight", "up"]
    environment = os.environ | {"MIDFLIGHT_CONFIG": str(path)}
    with (folder / "up.log").open("wb") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
        try:
            door.wait_ready(port, process)
            live.wait_for(lambda: (data / "store.db").exists() and (data / "outbox.db").exists(), "engine and conductor made nothing")
            given = {"campaign": "spring", "who": "bench"}
            for order in (Add(id="add", definition=definition(), **given), Move(id="go", to="sending", **given)):
                ordered(load_config(path), Clock(), order)
            yield live.Up(data, port, f"http://127.0.0.1:{console}", "", process), token
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def folded(data: Path) -> int:
    """Return how many recipients the engine knows to have been told."""
    with apsw.Connection(str(data / "store.db"), flags=apsw.SQLITE_OPEN_READONLY) as db:
        return db.execute("SELECT count(*) FROM advised").get


def ask(port: int, request: bytes) -> bytes:
    """Ask once, on a connection of its own, and return the answer."""
    client = door.Client(port)
    client.socket.setblocking(True)
    client.send(request)
    while not client.take():
        pass
    client.socket.close()
    return client.answer


def send(port: int, requests: list[bytes], per_s: float) -> live.Sent:
    """Send each request when it is due, or as soon after that as a connection is free; each has to be told a variant."""
    poll = select.epoll()
    clients = [door.Client(port) for _ in range(connections)]
    by_fd = {client.socket.fileno(): client for client in clients}
    for client in clients:
        poll.register(client.socket, select.EPOLLIN)
    resting, waits, sent = deque(clients), [], 0
    began_s = time.perf_counter()
    while len(waits) < len(requests):
        due = min(len(requests), int((time.perf_counter() - began_s) * per_s) + 1)
        while resting and sent < due:
            client = resting.popleft()
            client.due_s = began_s + sent / per_s
            if not client.send(requests[sent]):
                raise RuntimeError("the door does not read")
            sent += 1
        for fd, _ in poll.poll(0.0002):
            client = by_fd[fd]
            if status := client.take():
                waits.append((time.perf_counter() - client.due_s) * 1000)
                if status != 200 or b'"variant"' not in client.answer:
                    raise RuntimeError(f"the door answered {client.answer[:500]!r}")
                resting.append(client)
    ended_s = time.perf_counter()
    for client in clients:
        client.socket.close()
    poll.close()
    return live.Sent(began_s, ended_s, sorted(waits))
