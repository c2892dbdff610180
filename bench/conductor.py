"""Measure how fast campaigns are handed over: messages a second to a relay by SMTP and to a vendor's API in batches, on loopback.

The sender is the conductor's own, with its outbox on disk, its stop list and its file of what has begun; it works in a process of its own,
and the server that takes the messages in another. What is counted goes from the first message that is taken out of the outbox until the
last outcome is written there: each message is filled in for its person, as HTML and as text, with a link to unsubscribe. Nobody is
suppressed, and nothing is folded meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from midflight.act.audience import Recipient
from midflight.act.begun import Begun
from midflight.act.campaigns import Campaigns
from midflight.act.carriers import carriers_of
from midflight.act.definition import Ready, campaign_of
from midflight.act.links import Links, public_key
from midflight.act.outbox import Outbox
from midflight.act.sender import Sender
from midflight.act.stop_list import StopList
from midflight.kit.clock import Clock
from midflight.sandbox.api_vendors import KEYS
from midflight.sandbox.apis import Apis
from midflight.sandbox.inbox import Inbox
from midflight.sandbox.mailbox import Mailbox
from midflight.serve.conduct import tick_s

from . import machine

WAYS = ("smtp", "api")
VENDOR = "postmark"
per_second = 100_000.0  # no bound of the way out's own
send_s_max = 120.0
NAMES = ("Ada", "Ben", "Cleo", "Dag", "Edda", "Finn", "Gro")
SUBJECT = "{{ attributes.name }}, two days left for {{ attributes.city }}"
TEXT = (
    "Hello {{ attributes.name | default: 'you' }},\n\nthe garden shop of {{ attributes.city }} is open on Sunday.\n\n{{ unsubscribe_url }}"
)
HTML = (
    "<html><body><h1>Hello {{ attributes.name | default: 'you' }}</h1>{% if attributes.since == 'long' %}<p>As you have known us long:</p>"
    "{% endif %}" + "<p>Some words about spring in {{ attributes.city }}, and about what grows in a garden then.</p>" * 6
    + '<p><a href="https://shop.example/offer?of={{ attributes.city | url_encode }}">Have a look</a></p>'
    '<p><a href="{{ unsubscribe_url }}">Unsubscribe</a></p></body></html>'
)  # fmt: skip


class Size(NamedTuple):
    messages: int
    runs: int


FULL = Size(20_000, 3)
QUICK = Size(400, 1)


def measure(size: Size, say: Callable[[str], None]) -> dict:
    """Return `conductor_smtp_per_s` and `conductor_api_per_s`, medians of the runs, the same by CPU time, and what belongs to them."""
    found: dict = {"conductor_messages": size.messages, "conductor_cores": {}, "conductor_sink_cores": {}}
    for way in WAYS:
        runs = []
        for number in range(size.runs):
            say(f"{size.messages:,} messages by {way}, run {number + 1} of {size.runs}")
            with machine.workplace() as folder:
                runs.append(once(folder, way, size.messages))
        found[f"conductor_{way}_per_s"] = round(median(run["per_s"] for run in runs))
        found[f"conductor_{way}_per_s_core"] = round(median(run["per_s"] / run["cores"] for run in runs))
        found[f"conductor_{way}_runs_per_s"] = [round(run["per_s"]) for run in runs]
        found["conductor_cores"][way] = round(median(run["cores"] for run in runs), 2)
        found["conductor_sink_cores"][way] = round(median(run["sink_cores"] for run in runs), 2)
    return found


def once(folder: Path, way: str, messages: int) -> dict:
    """Send a campaign in processes of its own. Raises RuntimeError where anybody did not get exactly one message."""
    with sink(way) as (port, end):
        run = machine.run("bench.conductor", "send", folder, way, port, messages)
        taken = end()
    if (taken["messages"], taken["twice"]) != (messages, 0):
        raise RuntimeError(f"{messages} messages were to be taken once each, and it was {taken}")
    return run | {"sink_cores": taken["cpu_s"] / run["wall_s"]}


@contextmanager
def sink(way: str) -> Iterator[tuple[int, Callable[[], dict]]]:
    """Run the server that takes messages; yield its port and a function that ends it and returns what it has taken."""
    command = [sys.executable, "-m", "bench.conductor", "sink", way]
    with subprocess.Popen(command, cwd=machine.PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline()), lambda: json.loads(process.communicate(timeout=30)[0])
        finally:
            process.kill()


# -- the two processes -----------------------------------------------------------------------------------------------------------


def take(way: str) -> None:
    """Take messages until the standard input ends, and print how many they were."""
    inbox = Inbox()
    with (Mailbox if way == "smtp" else Apis)(inbox) as server:
        print(server.port, flush=True)
        before_s = time.process_time()
        sys.stdin.read()
        cpu_s = time.process_time() - before_s
    print(json.dumps({"messages": len(inbox), "twice": len(inbox.twice()), "cpu_s": cpu_s}))


async def send(folder: Path, way: str, port: int, messages: int) -> dict:
    """Send a campaign whose list is one wave, as the conductor does, and return how long that took."""
    clock, outbox = Clock(), Outbox(folder / "outbox.db")
    campaigns, begun = Campaigns(outbox), Begun(folder / "outbox.begun")
    begun.start()
    ready = campaign_of(definition(), {"out"})
    number = given_out(campaigns, ready, messages, clock.now_us())
    sender = Sender(
        campaigns, carriers_of({"out": settings(way, port)}, clock), StopList(), Links(public_key(folder), "https://mail.example"), clock,
        begun=begun.note, suppressed=lambda recipients: {},
    )  # fmt: skip
    began_s, cpu_s = time.perf_counter(), time.process_time()
    taken = ended = 0
    while ended < messages and time.perf_counter() - began_s < send_s_max:
        ended += sender.settle()
        taken += sender.fill(campaigns.get(number), ready)
        if ended == taken:
            break  # what is left cannot be made, or waits for another try
        await asyncio.sleep(tick_s)
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    counts = outbox.counts(number)
    await sender.close(5.0)
    begun.close()
    outbox.close()
    if counts["sent"] != messages:
        raise RuntimeError(f"not everything was sent: {counts}")
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"per_s": messages / wall_s, "wall_s": wall_s, "cores": cpu_s / wall_s, "peak_bytes": peak_bytes}


def definition() -> dict:
    """Return a campaign of two variants with a body of a kilobyte."""
    variants = [{"name": name, "subject": f"{name}: {SUBJECT}", "html": HTML, "text": TEXT} for name in "AB"]
    return {"name": "spring", "channel": "out", "from_address": "news@shop.example", "audience": {"csv": "x"}, "variants": variants}


def settings(way: str, port: int) -> dict:
    """Return the way out to a sink."""
    if way == "smtp":
        return {"kind": "smtp", "host": "127.0.0.1", "port": port, "tls": "none", "per_second": per_second}
    return {"kind": VENDOR, "server_token": KEYS[VENDOR], "url": f"http://127.0.0.1:{port}", "per_second": per_second}


def given_out(campaigns: Campaigns, ready: Ready, messages: int, now_us: int) -> int:
    """Add a campaign, start it and give out its whole list, half to each variant; return its number."""
    people = (
        Recipient(
            key=f"reader{n}@example.com", address=f"Reader{n}@example.com",
            attributes={"name": NAMES[n % len(NAMES)], "city": f"Town {n % 500}", "since": ("long", "new")[n % 2]},
        )
        for n in range(messages)
    )  # fmt: skip
    number = campaigns.add(ready.campaign, people, "bench", now_us)
    campaigns.move(number, "sending", "bench", "", now_us)
    half, order = messages // 2, np.random.default_rng(1).permutation(messages)
    campaigns.give_out(campaigns.get(number), np.array([messages - half, half]), np.array([0.5, 0.5]), order, {}, now_us)
    return number


if __name__ == "__main__":
    if sys.argv[1] == "sink":
        take(sys.argv[2])
    else:
        print(json.dumps(asyncio.run(send(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))))
