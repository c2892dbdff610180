"""Measure how old numbers are under a steady load: from receipt to readable, by the store's own table and by a probe from outside.

``python -m bench.freshness DOOR_PORT API TOKEN DATA SECONDS`` is the probe: it sends one marked event at a time, signed, over HTTP, and
asks the store (every second time the API) until the number shows it; it prints the waits as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import apsw
import httpx
import msgspec

from midflight.stream.measures import FRESHNESS_EDGES_MS

from . import door, live, machine
from .feed import Batch

probe_campaign = "bench-probe"


class Size(NamedTuple):
    seconds: float
    events_per_s: int
    warm_s: float


FULL = Size(40.0, 20_000, 5.0)
QUICK = Size(4.0, 5_000, 1.0)


def measure(size: Size, say: Callable[[str], None]) -> dict:
    """Return `freshness_p50_ms` and `freshness_p99_ms` from the store's table, and the same as the probe saw them."""
    with machine.workplace() as folder, live.up(folder) as system:
        say(f"signing {size.events_per_s * (size.seconds + size.warm_s):,.0f} events")
        warm, _, warm_new = live.prepared(round(size.events_per_s * size.warm_s), 1)
        steady, events, _ = live.prepared(round(size.events_per_s * size.seconds), 2)
        per_s = size.events_per_s / live.batch_events
        say("warming up")
        live.send(system.port, warm, per_s)
        with live.Counted(system.folder) as store:
            live.wait_for(lambda: store.events() >= warm_new, "the cells do not count what was sent", 120.0)
        time.sleep(0.5)  # the last of the warm-up's waits are noted after they can be read
        before, cpu_before = buckets(system.folder), system.cpu_s()
        say(f"{size.events_per_s:,} events/s for {size.seconds:.0f} s")
        arguments = [system.port, system.console, system.token, system.folder, size.seconds - 1.0]
        command = [sys.executable, "-m", "bench.freshness", *map(str, arguments)]
        with subprocess.Popen(command, cwd=machine.PROJECT, stdout=subprocess.PIPE, text=True) as probe:
            sent = live.send(system.port, steady, per_s)
            seen = json.loads(probe.communicate(timeout=60)[0])
        time.sleep(0.5)
        took = [after - then for after, then in zip(buckets(system.folder), before, strict=True)]
        took_s = sent.ended_s - sent.began_s
        used = {name: round((seconds - cpu_before[name]) / took_s, 2) for name, seconds in system.cpu_s().items()}
    return {
        "freshness_p50_ms": round(quantile_of(took, 0.5), 1),
        "freshness_p99_ms": round(quantile_of(took, 0.99), 1),
        "freshness_requests": sum(took),
        "freshness_probe_p50_ms": round(live.quantile(seen["store_ms"], 0.5), 1),
        "freshness_probe_p99_ms": round(live.quantile(seen["store_ms"], 0.99), 1),
        "freshness_probe_api_p50_ms": round(live.quantile(seen["api_ms"], 0.5), 1),
        "freshness_probe_api_p99_ms": round(live.quantile(seen["api_ms"], 0.99), 1),
        "freshness_probes": len(seen["store_ms"]) + len(seen["api_ms"]),
        "freshness_events_per_s": round(events / took_s),
        "freshness_seconds": round(took_s, 1),
        "freshness_answer_p99_ms": round(live.quantile(sent.waits_ms, 0.99), 1),
        "freshness_cores": used,
    }


def buckets(folder: Path) -> list[int]:
    """Return how many requests waited how long, in the store's buckets."""
    db = apsw.Connection(str(folder / "store.db"), flags=apsw.SQLITE_OPEN_READWRITE)
    counts = [0] * (len(FRESHNESS_EDGES_MS) + 1)
    for bucket, n in db.execute("SELECT bucket, sum(n) FROM freshness GROUP BY bucket"):
        counts[bucket] += n
    db.close()
    return counts


def quantile_of(counts: list[int], share: float) -> float:
    """Return a quantile from buckets, in a straight line within its bucket."""
    edges = (0, *FRESHNESS_EDGES_MS)
    left = share * sum(counts)
    for number, n in enumerate(counts):
        if n and left <= n:
            upper = edges[number + 1] if number + 1 < len(edges) else edges[number]
            return edges[number] + (upper - edges[number]) * left / n
        left -= n
    return float(edges[-1])


# -- the probe -----------------------------------------------------------------------------------------------------------------


def probe(port: int, api: str, token: str, data: Path, seconds: float) -> dict[str, list[float]]:
    """Send marked events one by one for a while and return how long each took to show, sorted, by who was asked."""
    key, client = live.private_key(), door.Client(port)
    client.socket.setblocking(True)
    db = apsw.Connection(str(data / "store.db"), flags=apsw.SQLITE_OPEN_READWRITE)
    query = "SELECT opens FROM campaigns WHERE campaign = (SELECT id FROM names WHERE kind = 'campaign' AND name = ?)"
    asked = {"campaign": probe_campaign, "window": "all", "measures": "opens", "metrics": "open_rate", "machines": "with"}
    waits: dict[str, list[float]] = {"store_ms": [], "api_ms": []}
    with httpx.Client(base_url=api, headers={"authorization": f"Bearer {token}"}) as http:

        def in_store() -> int:
            return db.execute(query, (probe_campaign,)).get or 0

        def in_api() -> int:
            return http.get("/v1/numbers", params=asked).raise_for_status().json()["total"]["opens"]

        end_s, number = time.monotonic() + seconds, 0
        while time.monotonic() < end_s:
            number += 1
            # The first one makes the campaign known, which the API cannot be asked before.
            name, shown, pause_s = ("api_ms", in_api, 0.005) if number % 2 == 0 else ("store_ms", in_store, 0.001)
            request = live.signed(marked(number), key)
            began = time.perf_counter()
            client.send(request)
            while not (status := client.take()):
                pass
            assert status == 200, status
            live.wait_for(lambda shown=shown, number=number: shown() >= number, "the marked event does not show", 30.0, pause_s)
            if number > 2:
                waits[name].append((time.perf_counter() - began) * 1000)
            time.sleep(0.05 + 0.013 * (number % 8))  # not in step with the engine's commits
    db.close()
    return {name: sorted(found) for name, found in waits.items()}


def marked(number: int) -> Batch:
    now = time.time_ns() // 1000
    event = {
        "email": f"probe{number}@example.com",
        "timestamp": now // 1_000_000,
        "event": "open",
        "sg_event_id": f"probe-{now}-{number}",
        "sg_message_id": f"probe{now}x{number}.recvd-1",
        "useragent": "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0",
        "campaign": probe_campaign,
    }
    return Batch(now, 1, 0, msgspec.json.encode([event]))


def main() -> None:
    port, api, token, data, seconds = sys.argv[1:]
    print(json.dumps(probe(int(port), api, token, Path(data), float(seconds))))


if __name__ == "__main__":
    main()
