"""Measure how long it takes from an event to the action that it sets off, over the whole running system, under load.

A steady stream of signed SendGrid batches, 200 segments and 200 rules, and a probe that sends one marked event at a time: from the first
byte of its request until the webhook of its rule has come in at a server beside it. Of the rules one in four acts, the others observe;
all firings are judged, and each call is on disk before it is made.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median
from typing import NamedTuple

import msgspec

from midflight.config import load_config
from midflight.log import Record
from midflight.serve.doorlink import append

from . import door, live, machine
from .asked import definitions, record_of
from .freshness import marked, probe_campaign

segments_n, rules_n = 200, 200
secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
wait_s_max = 30.0


class Size(NamedTuple):
    seconds: float
    events_per_s: int
    warm_s: float


FULL = Size(60.0, 10_000, 10.0)
QUICK = Size(4.0, 2_000, 1.0)


class Sink(ThreadingHTTPServer):
    """Takes webhooks, and notes when those about the probe's people came."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Taker)
        self.came: dict[str, list[float]] = {}
        self.taken = 0


class Taker(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        now_s = time.perf_counter()
        self.send_response(204)
        self.end_headers()
        self.server.taken += 1
        # A call that is held back at its last byte comes without a body.
        recipient = json.loads(body)["data"]["recipient"] if body else ""
        if recipient.startswith("probe"):
            self.server.came.setdefault(recipient, []).append(now_s)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def sink() -> Iterator[Sink]:
    server = Sink()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def measure(size: Size, say: Callable[[str], None]) -> dict:
    """Return `action_p50_ms` and `action_p99_ms`, with what the processes used meanwhile."""
    with machine.workplace() as folder, sink() as taking, live.up(folder, **settings(taking.server_port)) as system:
        say(f"putting {segments_n} segments and {rules_n} rules into force")
        config = load_config(folder / "midflight.yaml")
        append(config, records())
        say("signing events")
        warm, _, new = live.prepared(round(size.events_per_s * size.warm_s), 1)
        steady, events, _ = live.prepared(round(size.events_per_s * size.seconds), 2)
        per_s = size.events_per_s / live.batch_events
        say("warming up")
        live.send(system.port, warm, per_s)
        with live.Counted(system.folder) as store:
            live.wait_for(lambda: store.events() >= new, "the cells do not count what was sent", 120.0)
        probe = Probe(system.port, taking)
        probe.once()  # until the first one has come, the rules are not in force
        taken, cpu = taking.taken, system.cpu_s()
        say(f"{size.events_per_s:,} events/s for {size.seconds:.0f} s")
        thread = threading.Thread(target=probe.run, args=(time.perf_counter() + size.seconds - 1.0,))
        thread.start()
        sent = live.send(system.port, steady, per_s)
        thread.join(wait_s_max + 5)
        took_s = sent.ended_s - sent.began_s
        used = {name: round((seconds - cpu[name]) / took_s, 2) for name, seconds in system.cpu_s().items()}
    waits = sorted(probe.waits_ms)
    return {
        "action_p50_ms": round(live.quantile(waits, 0.5), 1),
        "action_p99_ms": round(live.quantile(waits, 0.99), 1),
        "action_probes": len(waits),
        "action_lost": probe.lost,
        "action_twice": sum(len(times) > 1 for times in taking.came.values()),
        "action_events_per_s": round(events / took_s),
        "action_calls_per_s": round((taking.taken - taken) / took_s, 1),
        "action_answer_p99_ms": round(live.quantile(sent.waits_ms, 0.99), 1),
        "action_answer_p50_ms": round(median(sent.waits_ms), 1),
        "action_cores": used,
    }


def settings(port: int) -> dict:
    """Return the settings of a system whose rules may call a server on this machine as often as they like."""
    way = {"kind": "webhook", "url": f"http://127.0.0.1:{port}/hook", "secrets": [secret], "per_second": 1000, "connections": 8}
    return {
        "ways": {"out": way},
        "automation": {
            "people_per_hour": 100_000, "ceiling_per_hour": 100_000, "person_per_day": 0, "allow_http": True, "allow_ports": [port],
            "allow_networks": ["127.0.0.0/8"],
        },
    }  # fmt: skip


def records() -> list[Record]:
    """Return the definitions: the rules of `asked` and the probe's own."""
    rule = {
        "when": {"kind": "event", "did": "opened", "campaign": probe_campaign},
        "action": {"way": "out", "fields": {"type": "probe"}},
        "limits": {"autonomy": "act"},
    }
    order = {"do": "put_rule", "id": "probe", "rule": "probe", "version": 1, "definition": rule, "who": "bench"}
    return [*definitions(segments_n, rules_n, 0), record_of(order, 0)]


class Probe:
    """Sends marked events one after the other, each by somebody else."""

    def __init__(self, port: int, taking: Sink) -> None:
        self.client, self.taking = door.Client(port), taking
        self.client.socket.setblocking(True)
        self.key = live.private_key()
        self.number, self.lost = 0, 0
        self.waits_ms: list[float] = []

    def once(self) -> float:
        """Send one and wait for its webhook; return how long that took in ms, or -1."""
        self.number += 1
        batch = marked(self.number)
        recipient = msgspec.json.decode(batch.body)[0]["email"]
        request = live.signed(batch, self.key)
        began_s = time.perf_counter()
        self.client.send(request)
        while not (status := self.client.take()):
            pass
        assert status == 200, status
        while recipient not in self.taking.came:
            if time.perf_counter() - began_s > wait_s_max:
                return -1.0
            time.sleep(0.0005)
        return (self.taking.came[recipient][0] - began_s) * 1000

    def run(self, until_s: float) -> None:
        while time.perf_counter() < until_s:
            took_ms = self.once()
            if took_ms < 0:
                self.lost += 1
            else:
                self.waits_ms.append(took_ms)
            time.sleep(0.05 + 0.013 * (self.number % 8))  # not in step with the engine's commits
