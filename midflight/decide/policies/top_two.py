"""Policy `top_two`."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import numpy as np
from numpy.random import Generator

from ..evidence import Evidence, Prior, believe
from .policy import Plan, Policy, frequencies, sample_best, steady, with_floor


class TopTwo(Policy, kw_only=True):
    label: ClassVar[str] = "Top two"
    doc: ClassVar[str] = (
        "Equal waves, most of each to the two arms that are likely to be the best, so that which of them is better becomes known soonest "
        "(top-two Thompson sampling, Russo 2016). For learning; others earn more."
    )

    floor: Annotated[float, msgspec.Meta(ge=0, le=0.5)] = 0.01  # least share of a live arm
    leader: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5  # how often the likely best is chosen over the likely second

    def plan(self, evidence: Evidence, prior: Prior, random: Generator) -> Plan:
        belief = believe(evidence, prior)
        best = frequencies(sample_best(belief, evidence.live, random)[:, 0], evidence.arms)
        shares = self.leader * best
        # The second is drawn until it differs from the first: the probability of each, given that the first is not it.
        for first in np.flatnonzero(best):
            others = np.where(np.arange(best.size) == first, 0.0, best)
            if others.sum() > 0:
                shares += (1 - self.leader) * best[first] * others / others.sum()
            else:
                second = np.argsort(np.where(evidence.live, belief.mean, -1.0))[-2:] if evidence.live.sum() > 1 else np.array([first])
                shares[second[0] if second[0] != first else second[-1]] += (1 - self.leader) * best[first]
        return Plan(recipients=steady(evidence), shares=with_floor(shares, evidence.live, self.floor))
