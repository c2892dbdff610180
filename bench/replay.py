"""Measure the replay: a log of realistic requests into the store, one engine on one core; SendGrid alone, and five vendors mixed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import msgspec

from midflight.sandbox.settings import sandbox_config
from midflight.sandbox.vendors import SITE, VENDORS
from midflight.sandbox.world import campaign_requests

from . import machine
from .feed import Feed
from .folding import sendgrid_bodies


class Size(NamedTuple):
    recipients: int
    mixed_recipients: int
    runs: int


FULL = Size(600_000, 20_000, 5)
QUICK = Size(4_000, 300, 2)


def measure(size: Size, say: Callable[[str], None]) -> dict:
    """Return `replay_events_per_s_core` and its mixed sibling: events by process CPU time, and by wall time."""
    with machine.workplace() as folder:
        say("writing a log of SendGrid batches")
        feed = Feed(size.recipients, sends=2)
        machine.write_log(folder / "log", sendgrid_bodies(feed))
        say("writing a log of five vendors' requests")
        config = folder / "mixed.json"
        config.write_bytes(msgspec.json.encode(sandbox_config()[0]))
        machine.write_log(folder / "mixed", mixed_bodies(size.mixed_recipients))
        runs: dict[str, list[dict]] = {"": [], "_mixed": []}
        for number in range(size.runs):
            for name, log, more in (("", "log", ()), ("_mixed", "mixed", (config,))):
                say(f"replaying{name.replace('_', ' ')}, run {number + 1} of {size.runs}")
                data = folder / f"data{name}{number}"
                runs[name].append(machine.run("bench.folding", folder / log, data, *more, core=0))
                shutil.rmtree(data)
        found = {}
        for name, done in runs.items():
            events = done[0]["events"]
            found |= {
                f"replay_events_per_s_core{name}": round(events / median(run["cpu_s"] for run in done)),
                f"replay_events_per_s_wall{name}": round(events / median(run["wall_s"] for run in done)),
                f"replay_events{name}": events,
                f"replay_dead{name}": done[0]["dead"],
                f"replay_runs_per_s_core{name}": [round(events / run["cpu_s"]) for run in done],
            }
        return found


def mixed_bodies(recipients: int):
    """Yield log entries of a sandbox run with all five vendors and the site, as the door stores them."""
    vendors = tuple(VENDORS)
    for source, request, _ in campaign_requests(1, recipients=recipients, vendors=vendors, campaigns=6, speed=60.0):
        path = f"/in/{source}" if source != SITE else request.url
        yield request.received_at_us, source, request.headers, request.body, path
