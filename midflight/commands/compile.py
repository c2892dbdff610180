"""Compile the hot loops now, so that the first start of engine and conductor need not."""

from __future__ import annotations

import tempfile

import msgspec
import numpy as np
from numpy.random import PCG64, Generator

from ..config import config_from
from ..decide.claims import ClaimSettings
from ..decide.definitions import SOURCE, PutSegment
from ..decide.evidence import Prior
from ..decide.policies import REGISTRY
from ..evaluate.campaign import simulate
from ..events import KINDS, Event
from ..kit.clock import Clock
from ..log.record import Record
from ..sources import load
from ..store.host_local import Engine


def command() -> None:
    """Compile the hot loops now, so that the first start of engine and conductor need not."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_from({"data": folder, "sources": {"sendgrid": {"kind": "sendgrid", "unsigned": True}}})
        engine = Engine(config, Once(records()))
        engine.catch_up()
        engine.close()
    # While the conductor compiles it would send nothing: one short campaign needs all that it judges and plans with.
    policy = REGISTRY.get("finite_list")()
    simulate(np.array([0.05, 0.2]), 400, 1.0, policy, Prior(), ClaimSettings(), "none", Generator(PCG64(1)))
    print("Compiled; the next start of the engine takes a second.")


def records() -> list[Record]:
    """Return records that pass through every compiled function: one batch as a vendor sends it, one event of every kind, and a segment of
    who did so, who leave it when time has passed."""
    now = Clock().now_us()
    person = {"recipient": "ada@example.com", "message_id": "m", "campaign": "c", "occurred_at_us": now - 1}
    events = [Event(source="compile", event_id=kind, kind=kind, **person, url=kind) for kind in KINDS]
    events += [Event(source="compile", event_id=f"click {n}", kind="clicked", **person, url=str(n)) for n in range(4)]
    vendor = load("sendgrid", {"unsigned": True})
    batch = vendor.write([msgspec.structs.replace(e, event_id=f"s{i}", variant="A", wave="1") for i, e in enumerate(events)])
    segment = PutSegment(id="1", name="s", version=1, where={"did": "clicked", "within": "1m"}, who="nobody")
    later = msgspec.structs.replace(events[0], event_id="later", recipient="ben@example.com")
    return [
        Record("webhook", "sendgrid", now, {}, batch),
        Record("events", "compile", now, {}, msgspec.json.encode(events), position=1),
        Record("definition", SOURCE, now, {}, msgspec.json.encode(segment), position=2),
        Record("events", "compile", now + 120_000_000, {}, msgspec.json.encode([later]), position=3),
    ]


class Once:
    """A log of a few records in memory."""

    def __init__(self, kept: list[Record]) -> None:
        self.kept = kept

    def first(self) -> int:
        return 0

    def read(self, position: int, bytes_max: int = 0) -> list[Record]:
        return self.kept[position:]
