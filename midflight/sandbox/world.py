"""One simulated run: people, campaigns, everything that happens, the requests that report it, and the truth about it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain

import numpy as np

from ..events import Event
from ..kit.errors import NotFound, nearest
from ..sources import Request, Source
from .audience import DIMENSION_NAMES, Audience, audience
from .campaigns import Campaign, campaigns
from .life import Happening, Lives, Timeline, hour_s, second_us
from .manners import XSS, Manners, sendings
from .settings import sandbox_sources
from .truth import Cell, truth
from .vendors import SITE, VENDORS
from .wire import Shipment, requests

day_s = 24 * hour_s


@dataclass(frozen=True)
class Scenario:
    """What to simulate. The same scenario gives the same events and the same truth.

    Live (``spread_days`` 0): ``hours`` virtual hours from ``start_us`` on, compressed by ``speed``. Otherwise history: campaigns spread
    over the days before ``start_us``, in real time.
    """

    seed: int = 1
    start_us: int = 1_764_000_000_000_000
    recipients: int = 2_000
    campaigns: int = 3
    waves: int = 4
    vendors: tuple[str, ...] = ("sendgrid",)
    speed: float = 600.0
    hours: float = 10.0
    spread_days: float = 0.0
    batch: int = 200
    manners: Manners = field(default_factory=Manners)

    @property
    def tag(self) -> str:
        """What keeps the ids, addresses and campaigns of two runs apart."""
        return blake2b(f"{self.seed}.{self.start_us}".encode(), digest_size=3).hexdigest()

    @property
    def pace(self) -> float:
        return 1.0 if self.spread_days else self.speed

    @property
    def timeline(self) -> Timeline:
        if self.spread_days:
            return Timeline(self.start_us - round(self.spread_days * day_s * second_us), self.start_us - 60 * second_us, 1.0)
        return Timeline(self.start_us, self.start_us + round(self.hours * hour_s * second_us / self.speed), self.speed)

    @property
    def length_s(self) -> float:
        """Virtual seconds from the first send to the end."""
        return (self.timeline.end_us - self.timeline.start_us) * self.pace / second_us


class World:
    """A scenario come true. ``sent`` is filled by ``requests``: what the door was told, by which the truth is counted."""

    def __init__(self, scenario: Scenario) -> None:
        unknown = sorted(set(scenario.vendors) - set(VENDORS))
        if unknown:
            raise NotFound(f"The sandbox does not play `{unknown[0]}`", todo=nearest(unknown[0], VENDORS))
        self.scenario = scenario
        seeds = np.random.SeedSequence(scenario.seed)
        people, lives, manners = seeds.spawn(3)
        self._manners = int(manners.generate_state(1)[0])
        self._lives = lives.spawn(scenario.campaigns * (scenario.waves + 1) + 1)
        self.people: Audience = audience(np.random.default_rng(people), scenario.recipients, scenario.tag)
        self.campaigns: list[Campaign] = campaigns(scenario.campaigns, scenario.tag, scenario.vendors, scenario.waves)
        if scenario.manners.xss:
            self.campaigns = [_spoiled(c) for c in self.campaigns]

    def identifies(self) -> list[Happening]:
        scenario = self.scenario
        return Lives(self.people, scenario.timeline, f"{scenario.tag}i").identify(scenario.timeline.start_us)

    def waves(self) -> Iterator[list[Happening]]:
        """Return what happens, wave by wave; the last of them are the purchases that nobody asked for."""
        scenario = self.scenario
        seeds = iter(self._lives)
        lives = Lives(
            self.people,
            scenario.timeline,
            scenario.tag,
            unknown=scenario.manners.unknown,
            async_bounces=scenario.manners.async_bounces,
        )
        for number, campaign in enumerate(self.campaigns):
            chosen = np.random.default_rng(next(seeds)).permutation(len(self.people))[: max(1, round(campaign.share * len(self.people)))]
            first_s, gap_s = self._times(number)
            for wave, part in enumerate(np.array_split(chosen, campaign.waves)):
                yield lives.wave(np.random.default_rng(next(seeds)), campaign, wave, part.tolist(), first_s + wave * gap_s, gap_s * 0.4)
        yield lives.strangers(np.random.default_rng(next(seeds)), len(self.people) // 50, scenario.length_s)

    def _times(self, number: int) -> tuple[float, float]:
        """Return when campaign ``number`` starts and how far apart its waves are, in virtual seconds."""
        scenario = self.scenario
        if scenario.spread_days:
            return scenario.length_s * 0.9 * number / len(self.campaigns), min(4 * hour_s, scenario.length_s * 0.05)
        gap_s = scenario.length_s * 0.6 / scenario.waves
        return min(20 * 60 * number, gap_s), gap_s

    def happenings(self) -> list[Happening]:
        return [h for wave in self.waves() for h in wave]

    def shipments(self, happenings: list[Happening], manners: Manners | None = None, part: int = 0) -> list[Shipment]:
        """Return the requests that report these happenings, in the order they are due, with the scenario's or other manners.

        Who does not report everything at once says which ``part`` this is, so that each has luck of its own.
        """
        scenario, rng = self.scenario, np.random.default_rng([self._manners, part])
        manners = manners or scenario.manners
        history = scenario.start_us if scenario.spread_days else 0
        told = sendings(happenings, manners, rng, scenario.pace, history)
        return requests(told, rng, window_us=0 if history else second_us, batch_max=scenario.batch, manners=manners)

    def truth(self, happenings: list[Happening]) -> dict[Cell, Counter[str]]:
        """Return the true cells. Call it after ``shipments``, which may stamp events with wrong clocks."""
        agents = {(h.event.source, h.event.event_id): h.agent for h in happenings}
        return truth((h.event for h in chain(self.identifies(), happenings)), self.people.attributes(), agents=agents)

    def dimensions(self) -> tuple[str, ...]:
        return DIMENSION_NAMES


def _spoiled(campaign: Campaign) -> Campaign:
    variants = tuple(dataclasses.replace(v, name=v.name + XSS) for v in campaign.variants)
    tastes = {group: {name + XSS: factor for name, factor in factors.items()} for group, factors in campaign.tastes.items()}
    return dataclasses.replace(campaign, name=campaign.name + XSS, variants=variants, tastes=tastes)


def campaign_requests(
    seed: int = 1, *, sources: dict[str, Source] | None = None, **settings: object
) -> Iterator[tuple[str, Request, list[Event]]]:
    """Yield (source name, signed request, the events in it) of a run, without any HTTP: for tests and the bench.

    Waves come one after the other, each in the order it is due, so that memory holds one wave however many people there are.
    ``settings`` are those of ``Scenario``; ``sources`` the sources to sign with (default: those of ``sandbox_sources``).
    """
    scenario = Scenario(seed=seed, **settings)
    sources = sources or sandbox_sources(seed, (*scenario.vendors, SITE))
    world = World(scenario)
    for part, happenings in enumerate(chain([world.identifies()], world.waves())):
        for shipment in world.shipments(happenings, part=part):
            if shipment.source in sources:
                yield shipment.source, shipment.signed(sources[shipment.source], shipment.due_us), shipment.events
