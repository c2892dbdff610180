"""A whole run from scenario to truth: who is there is told first, then what happens, then what the numbers have to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..stream.measures import MEASURES
from .life import Happening
from .manners import Manners
from .run import Report, Runner
from .settings import sources_from
from .verify import Truth, unattributed
from .wire import Shipment
from .world import Scenario, World

Step = Callable[[str, int], None]


@dataclass(frozen=True)
class Game:
    """A scenario and the door it is played against. ``api`` is asked before the run what belongs to no campaign; empty: nobody is."""

    scenario: Scenario
    door: str
    keys: dict
    rate: float = 0.0
    connections: int = 32
    patience_s: float = 60.0
    prepare: bool = False
    api: str = ""
    token: str = ""


def play(game: Game, step: Step | None = None) -> Truth:
    """Play a run to its end and return the truth about what the door took. Raises Unreachable, MidflightError.

    ``step(what, n)`` is called when a part of n events starts, and ``step("", n)`` when the door has taken n of them.
    """
    step = step or (lambda what, n: None)
    scenario = game.scenario
    before = unattributed(game.api, game.token, MEASURES) if game.api else {}
    world = World(scenario)
    runner = Runner(
        game.door,
        sources_from(game.keys),
        speed=scenario.pace if not scenario.spread_days else 600.0,
        rate=game.rate,
        connections=game.connections,
        patience_s=game.patience_s,
        progress=lambda n: step("", n),
    )
    people = world.shipments(world.identifies(), Manners.good())
    happenings = world.happenings()
    told = world.shipments(happenings)
    runner.live = False
    step("people", sum(len(s.events) for s in people))
    runner.run(people)
    runner.live = not scenario.spread_days
    if game.prepare:
        runner.prepare(told)
    step("campaigns", sum(len(s.events) for s in told))
    report = runner.run(told)
    return Truth(
        seed=scenario.seed,
        tag=scenario.tag,
        start_us=scenario.start_us,
        dimensions=world.dimensions(),
        minutes_exact=scenario.manners.clocks == 0,
        before=before,
        effects={c.name: c.effects() for c in world.campaigns},
        report=report.as_dict(),
        cells=[(cell, dict(counts)) for cell, counts in world.truth(taken(happenings, told, report)).items()],
    )


def taken(happenings: list[Happening], told: list[Shipment], report: Report) -> list[Happening]:
    """Return the happenings of which the door took at least one report."""
    failed = {id(s) for s in [*(s for s, _ in report.refused), *report.lost]}
    if not failed:
        return happenings
    heard = {id(event) for shipment in told if id(shipment) not in failed for event in shipment.events}
    return [h for h in happenings if id(h.event) in heard]
