"""Policy `test_cell`."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
from numpy.random import Generator

from ..evidence import Evidence, Prior
from .policy import Plan, Policy, all_to, best_live, bounded, equal


class TestCell(Policy, kw_only=True):
    label: ClassVar[str] = "Test cell, then the winner"
    doc: ClassVar[str] = (
        "A share of the list gets all arms equally at once; after some hours the arm with the highest raw rate gets everybody else. "
        "What most senders know as an A/B test."
    )
    __test__: ClassVar[bool] = False  # not a test of ours

    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.2  # of the list in the test
    wait_hours: Annotated[float, msgspec.Meta(ge=0)] = 4.0  # the test's winner is whoever leads by then, or at the last wave

    def plan(self, evidence: Evidence, prior: Prior, random: Generator) -> Plan:
        sent = evidence.sent.sum(0)
        if not sent.sum():
            return Plan(recipients=bounded(evidence, self.share * evidence.left), shares=equal(evidence.live))
        waited = evidence.now_s - evidence.sent_at_s[0] >= self.wait_hours * 3600
        rates = evidence.responses.sum((0, 2)) / sent.clip(1)
        wanted = evidence.left if waited else 0
        return Plan(recipients=bounded(evidence, wanted), shares=all_to(best_live(rates, evidence.live), evidence.arms))
