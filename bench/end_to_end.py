"""Measure the whole way: signed SendGrid batches over HTTP into a running `midflight up`, until the cells count every event."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from . import live, machine

lag_s_max = 1.0


class Size(NamedTuple):
    events: int
    runs: int
    warm_events: int
    rated_s: float
    shares: tuple[float, ...]


FULL = Size(1_000_000, 3, 100_000, 12.0, (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1))
QUICK = Size(20_000, 2, 4_000, 1.0, (0.8, 0.5, 0.25, 0.1))


def measure(size: Size, say: Callable[[str], None]) -> dict:
    """Return `e2e_events_per_s` from first byte to last event counted, and the highest tried rate that numbers keep up with."""
    with machine.workplace() as folder, live.up(folder) as system, live.Counted(system.folder) as store:
        expected = 0

        def run(events: int, seed: int, events_per_s: float = 0.0) -> dict:
            nonlocal expected
            requests, total, new = live.prepared(events, seed)
            expected += new
            before = system.cpu_s()
            sent = live.send(system.port, requests, events_per_s / live.batch_events)
            live.wait_for(lambda: store.events() >= expected, "the cells do not count what was sent", 120.0, 0.01)
            done_s = time.perf_counter()
            assert store.events() == store.events_in_cells() == expected, "the cells count more than was sent"
            used = {name: round(seconds - before.get(name, 0.0), 2) for name, seconds in system.cpu_s().items()}
            took = done_s - sent.began_s
            return {"events": total, "seconds": took, "per_s": total / took, "lag_s": done_s - sent.ended_s, "cpu_s": used}

        say("warming up")
        run(size.warm_events, 100)
        runs = []
        for number in range(size.runs):
            say(f"as fast as it takes them, run {number + 1} of {size.runs}")
            runs.append(run(size.events, number))
        per_s = median(done["per_s"] for done in runs)
        rates = []
        for number, share in enumerate(size.shares):
            rate = per_s * share
            say(f"at {rate:,.0f} events/s")
            done = run(int(rate * size.rated_s), 200 + number, rate)
            sent_per_s = done["events"] / (done["seconds"] - done["lag_s"])
            rates.append({"asked_per_s": round(rate), "per_s": round(sent_per_s), "lag_s": round(done["lag_s"], 3)})
            # The sender itself must have kept the pace, or the lag says nothing.
            if done["lag_s"] <= lag_s_max and rates[-1]["per_s"] >= 0.95 * rate:
                break
        else:
            raise RuntimeError(f"numbers keep up with none of the rates: {rates}")
    return {
        "e2e_events_per_s": round(per_s),
        "e2e_runs_per_s": [round(done["per_s"]) for done in runs],
        "e2e_lag_s": round(median(done["lag_s"] for done in runs), 3),
        "e2e_keeps_up_events_per_s": rates[-1]["asked_per_s"],
        "e2e_rates": rates,
        "e2e_events": runs[0]["events"],
        "e2e_cpu_s": runs[0]["cpu_s"],
    }
