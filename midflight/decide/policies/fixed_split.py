"""Policy `fixed_split`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.random import Generator

from ..evidence import Evidence, Prior
from .policy import Plan, Policy, equal, steady


class FixedSplit(Policy, kw_only=True):
    label: ClassVar[str] = "Fixed split"
    doc: ClassVar[str] = "Every wave is divided in the same way, whatever happens: for measuring, or where the split was promised."

    weights: list[float] = []  # one for each arm, in their order; equal without

    def plan(self, evidence: Evidence, prior: Prior, random: Generator) -> Plan:
        shares = equal(evidence.live)
        if len(self.weights) == evidence.arms:
            weighted = np.where(evidence.live, self.weights, 0.0)
            shares = weighted / weighted.sum() if weighted.sum() > 0 else shares
        return Plan(recipients=steady(evidence), shares=shares)
