"""One staggered send in virtual time: a policy gives out the waves, people respond, claims are looked for all the while."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.random import Generator

from ..decide.claims import ClaimSettings, Labels, judge_all
from ..decide.delays import BUCKETS
from ..decide.evidence import Evidence, Prior, believe
from ..decide.policies import Policy
from ..decide.policies.policy import divide
from .troubles import Trouble

moments = 97  # at which a wave can be sent, evenly over the hours, both ends included
hours_after = 24  # looks for a claim go on hourly
leader_share = 0.9  # of a wave in the trouble `adaptive`


class Outcome(msgspec.Struct, kw_only=True):
    """What became of one campaign. ``gained`` responses are those over an equal split, ``gap`` what the best arm alone would gain."""

    gained: float
    gap: float
    claimed: int = -1  # arm of the first claim of a winner
    claimed_at_s: float = -1.0
    wrong: bool = False


class Campaign:
    """The state of the simulated send. ``rates`` [K] are true; what policies and claims get is Evidence alone."""

    def __init__(self, rates: np.ndarray, recipients: int, hours: float, trouble: Trouble, random: Generator) -> None:
        self.rates, self.recipients, self.trouble, self.random = rates, recipients, trouble, random
        self.end_s = hours * 3600.0
        ends = np.linspace(0.0, self.end_s, moments)
        self.looks_s = np.append(ends, self.end_s + 3600.0 * np.arange(1, hours_after + 1))
        arms = rates.size
        self.sent_at_s = ends
        self.sent = np.zeros((moments, arms), np.int64)
        self.people = np.zeros((moments, arms, BUCKETS), np.int64)
        self.everybody = np.zeros((moments, arms, BUCKETS), np.int64)
        self.coming: list[list[tuple]] = [[] for _ in self.looks_s]
        self.left = recipients

    def evidence(self, look: int) -> Evidence:
        """Return what is known at a look, before its wave."""
        waves = min(look, moments)
        return Evidence(
            now_s=float(self.looks_s[look]), end_s=self.end_s, ahead=max(0, moments - 1 - look), left=self.left,
            live=np.ones(self.rates.size, bool), sent_at_s=self.sent_at_s[:waves], sent=self.sent[:waves], responses=self.people[:waves],
        )  # fmt: skip

    def arrive(self, look: int) -> None:
        for wave, arm, bucket, suspected in self.coming[look]:
            np.add.at(self.everybody[wave], (arm, bucket), 1)
            np.add.at(self.people[wave], (arm[~suspected], bucket[~suspected]), 1)
        self.coming[look] = []

    def send(self, wave: int, counts: np.ndarray) -> None:
        self.sent[wave] = counts
        self.left -= int(counts.sum())
        come = self.trouble.respond(counts, self.rates, float(self.sent_at_s[wave]), self.random)
        look = np.searchsorted(self.looks_s, come.known_s, side="left")
        for at in np.unique(look[look < self.looks_s.size]):
            rows = look == at
            self.coming[at].append((wave, come.arm[rows], come.bucket[rows], come.suspected[rows]))


def simulate(
    rates: np.ndarray, recipients: int, hours: float, policy: Policy, prior: Prior, settings: ClaimSettings | None, trouble: str,
    random: Generator,
) -> Outcome:  # fmt: skip
    """Play one campaign. Without ``settings`` no claims are looked for."""
    campaign = Campaign(rates, recipients, hours, Trouble(trouble, rates.size, hours, random), random)
    people, everybody = Labels(rates.size), Labels(rates.size)
    outcome = Outcome(gained=0.0, gap=recipients * float(rates.max() - rates.mean()))
    for look in range(campaign.looks_s.size):
        campaign.arrive(look)
        evidence = campaign.evidence(look)
        if settings and outcome.claimed < 0:
            people.update(evidence, evidence.responses)
            everybody.update(evidence, campaign.everybody[: evidence.sent.shape[0]])
            said = judge_all(people, everybody, believe(evidence, prior), evidence, settings)
            if said.kind == "winner":
                outcome.claimed, outcome.claimed_at_s = said.arms[0], evidence.now_s
        if look < moments and campaign.left:
            plan = policy.plan(evidence, prior, random)
            shares = plan.shares
            if campaign.trouble.has("adaptive") and look:
                raw = evidence.responses.sum((0, 2)) / evidence.sent.sum(0).clip(1)
                shares = (1 - leader_share) / rates.size + leader_share * (np.arange(rates.size) == raw.argmax())
            campaign.send(look, divide(plan.recipients, shares, random))
        elif not settings:
            break
    assert campaign.left == 0
    outcome.gained = float(campaign.sent.sum(0) @ (rates - rates.mean()))
    return outcome
