"""A campaign that Midflight itself sends to people of the sandbox, whose vendor takes it by its API and reports what comes of it.

Who clicks and does not buy gets a second message from a rule (`automated.py`), and some then buy.
"""

from __future__ import annotations

import secrets
from collections import Counter

import numpy as np

from ..act.lists import keep
from ..act.orders import Add, Move
from ..config import Config
from ..kit.clock import Clock
from ..serve.ordering import ordered
from .api_vendors import KEYS
from .apis import Apis
from .audience import audience
from .automated import follow_up_of
from .fortunes import FollowUp
from .inbox import Inbox
from .loop import list_of
from .manners import Manners
from .react import Effect, Effects, React, Reactor
from .settings import sources_from
from .truth import Cell

VENDOR = "postmark"
CHANNEL = "sandbox"
hours = 4.0  # over in less than two minutes of a demonstration
# What is true and nobody is told: how much more often than usual people click, by variant.
VARIANTS = {
    "Plain": ("Our spring collection", 1.0), "Question": ("Ready for spring, {{ attributes.region }}?", 1.6),
    "Loud": ("SPRING SALE!!! 50 % OFF!!!", 0.6), "Last call": ("Two days left", 1.2), "Story": ("How we made the new jacket", 0.8),
}  # fmt: skip
EFFECTS = Effects(opens=0.5, clicks=0.25, variants={name: Effect(clicks=factor) for name, (_, factor) in VARIANTS.items()})
HTML = (
    "<h1>Hello</h1><p>The spring collection is here, also in the {{ attributes.region | default: 'shop near you' }}.</p>"
    '<p><a href="https://shop.example/offer">Have a look</a></p>'
)


def channel(port: int) -> dict:
    """Return the settings of the way out to the sandbox's vendor."""
    return {"kind": VENDOR, "server_token": KEYS[VENDOR], "url": f"http://127.0.0.1:{port}", "per_second": 2000.0}


def definition(name: str, seed: int) -> dict:
    """Return a campaign with subjects that differ in what they do."""
    return {
        "name": name, "channel": CHANNEL, "from_address": "news@shop.example", "audience": {"csv": "spring.csv"}, "seed": seed,
        "variants": [
            {"name": variant, "subject": subject, "from_name": "The Shop", "html": HTML} for variant, (subject, _) in VARIANTS.items()
        ],
        "waves": {"hours": hours, "every_minutes": 5.0}, "holdout": 0.05,
    }  # fmt: skip


class Conducted:
    """One campaign on its way, from ``start`` to ``end``."""

    def __init__(self, config: Config, keys: dict, people: int, seed: int) -> None:
        self.config, self.seed = config, seed
        self.clock = Clock()
        self.name = f"Spring {secrets.token_hex(2)}"
        self.people = audience(np.random.default_rng([seed, 5]), people, f"s{secrets.token_hex(3)}")
        self.inbox = Inbox(self.clock)
        settings = config.channels[CHANNEL]
        self.apis = Apis(self.inbox, port=int(settings["url"].rpartition(":")[2]))
        self.react = React(
            self.people, EFFECTS, seed=seed, start_us=self.clock.now_us(), speed=config.sending.speed, manners=Manners.good(),
            follow_up=FollowUp(campaign=follow_up_of(self.name)),
        )  # fmt: skip
        door = f"http://127.0.0.1:{config.door.port}"
        self.reactor = Reactor(self.inbox, self.react, door, sources_from(keys), clock=self.clock)

    def start(self) -> None:
        """Let the people be there and the campaign begin. Raises MidflightError where the conductor does not take it."""
        self.apis.start()
        self.reactor.__enter__()
        who, id = "sandbox", secrets.token_hex(8)
        listed = keep(self.config.folder, list_of(self.people))
        add = Add(id=f"{id}-add", campaign=self.name, who=who, definition=definition(self.name, self.seed), audience=listed)
        for order in (add, Move(id=f"{id}-go", campaign=self.name, who=who, why="the demonstration", to="sending")):
            ordered(self.config, self.clock, order)

    def end(self) -> dict[Cell, Counter[str]]:
        """Let nothing more happen, and return the true cells of what was reported."""
        self.reactor.__exit__()
        self.apis.stop()
        return self.react.cells(self.reactor.report)
