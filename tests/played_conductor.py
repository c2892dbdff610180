"""Plays the conductor for tests of the console: carries out the orders in a real door's log, and gives out waves when told to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from midflight.act.audience import read_audience
from midflight.act.campaigns import Campaigns
from midflight.act.definition import Variant, campaign_of
from midflight.act.lists import place_of
from midflight.act.orders import SOURCE, Add, AddVariant, Drop, Move, Order, Pin, Test, order_of
from midflight.act.outbox import Outbox, Result
from midflight.act.standing import Arm, Projected, Said, Standing
from midflight.kit.errors import MidflightError
from midflight.log import Reader

CHANNELS = {"main"}


class Played:
    """The only writer of ``outbox.db``. Its methods may be called from any thread."""

    def __init__(self, folder: Path, now_us: int) -> None:
        self.folder, self.now_us = folder, now_us
        self.lock = threading.RLock()
        self.outbox = Outbox(folder / "outbox.db")
        self.campaigns = Campaigns(self.outbox)
        self.tests: list[Test] = []
        self.orders: list[Order] = []
        self.away = threading.Event()

    def look(self) -> None:
        """Carry out what has come into the log since the last look."""
        with self.lock, Reader(self.folder / "log") as log:
            position = max(self.campaigns.orders_position() + 1, log.first())
            while not self.away.is_set() and (records := log.read(position)):
                for record in records:
                    if record.kind == "definition" and record.source == SOURCE:
                        self.apply(record.position, order_of(record.body))
                position = records[-1].position + 1

    def apply(self, position: int, order: Order) -> None:
        error = ""
        try:
            self.do(order)
        except MidflightError as wrong:
            error = msgspec.json.encode(wrong.as_dict()["error"]).decode()
        self.orders.append(order)
        self.campaigns.order_done(order.id, error, self.now_us)
        self.campaigns.orders_up_to(position)

    def do(self, order: Order) -> None:
        if isinstance(order, Add):
            ready = campaign_of(order.definition, CHANNELS)
            people = read_audience(place_of(self.folder, order.audience))[0] if order.audience else []
            self.campaigns.add(ready.campaign, people, order.who, self.now_us)
            return
        now = self.campaigns.named(order.campaign)
        names = [variant.name for variant in now.definition.variants]
        if isinstance(order, Move):
            self.campaigns.move(now.id, order.to, order.who, order.why, self.now_us)
        elif isinstance(order, Pin):
            self.campaigns.pin(now.id, names.index(order.variant) if order.variant else -1, order.who, order.why, self.now_us)
        elif isinstance(order, Drop):
            self.campaigns.drop(now.id, names.index(order.variant), order.who, order.why, self.now_us)
        elif isinstance(order, AddVariant):
            self.campaigns.add_variant(now.id, msgspec.convert(order.variant, Variant), order.who, order.why, self.now_us)
        elif isinstance(order, Test):
            self.tests.append(order)

    def wave(self, name: str, counts: list[int], shares: list[float], ends: tuple[int, ...] = (2,)) -> None:
        """Give out a wave, and let its messages end in the given states in turn."""
        with self.lock:
            now = self.campaigns.named(name)
            given, chances = np.array(counts), np.array(shares)
            grounds = {"sent": [1, 2], "responses": [0, 1], "left": now.left, "policy": "finite_list"}
            self.campaigns.give_out(now, given, chances, np.arange(given.sum()), grounds, self.now_us)
            intents = [item.intent for item in self.outbox.waiting(now.id, self.now_us, 1 << 30)]
            self.outbox.call(intents, self.now_us)
            codes = {3: ("550", "no such box <b>x</b>"), 4: ("", "the process ended during the call")}
            results = []
            for n, intent in enumerate(intents):
                state = ends[n % len(ends)]
                code, detail = codes.get(state, ("", ""))
                results.append(Result(intent=intent, state=state, code=code, detail=detail))
            self.outbox.settle(results, self.now_us)

    def stand(self, name: str, **more: object) -> None:
        """Note how a campaign stands, with plausible numbers."""
        with self.lock:
            now = self.campaigns.named(name)
            sent = self.outbox.sent(now.id, len(self.campaigns.waves(now.id)), len(now.definition.variants)).sum(0)
            arms = [
                Arm(
                    name=variant.name, live=bool(now.live[n]), pinned=n == now.pinned, sent=int(sent[n]), responses=int(sent[n]) // 25,
                    coming=3.5, rate=0.04 + 0.01 * n, low=0.03 + 0.01 * n, high=0.055 + 0.01 * n, best=0.1 if n else 0.9, share=0.5,
                )
                for n, variant in enumerate(now.definition.variants)
            ]  # fmt: skip
            curve = [(10.0 * 2.2**k, min(1.0, 0.02 * 1.5**k)) for k in range(12)]
            projected = Projected(ends_us=self.now_us + 3 * 3600 * 1_000_000, responses=412.0, responses_equal=371.0)
            said = Said(waits_for="responses", more_sends=1200.0, text="It is not known yet which variant is best.")
            standing = Standing(
                at_us=self.now_us, arms=arms, curve=curve, said=said, projected=projected, next_us=self.now_us + 240_000_000
            )
            self.campaigns.stands(now.id, msgspec.structs.replace(standing, **more))


@contextmanager
def conducting(folder: Path, now_us: int) -> Iterator[Played]:
    """Look for orders in a thread until the block ends."""
    played, over = Played(folder, now_us), threading.Event()

    def run() -> None:
        while not over.wait(0.02):
            played.look()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield played
    finally:
        over.set()
        thread.join()
        played.outbox.close()
