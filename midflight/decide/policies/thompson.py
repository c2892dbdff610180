"""Policy `thompson`."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
from numpy.random import Generator

from ..evidence import Evidence, Prior, believe
from .policy import Plan, Policy, frequencies, sample_best, steady, with_floor


class Thompson(Policy, kw_only=True):
    label: ClassVar[str] = "Thompson sampling"
    doc: ClassVar[str] = (
        "Equal waves; each arm gets the share of a wave that is the probability of its being the best, with clicks that are still to come "
        "counted in. For campaigns without an end."
    )

    floor: Annotated[float, msgspec.Meta(ge=0, le=0.5)] = 0.01  # least share of a live arm

    def plan(self, evidence: Evidence, prior: Prior, random: Generator) -> Plan:
        best = sample_best(believe(evidence, prior), evidence.live, random)[:, 0]
        shares = with_floor(frequencies(best, evidence.arms), evidence.live, self.floor)
        return Plan(recipients=steady(evidence), shares=shares)
