"""Policy `finite_list`."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import msgspec
import numba
import numpy as np
from numpy.random import Generator

from ..evidence import Belief, Evidence, Prior, believe
from .policy import Plan, Policy, all_to, best_live, bounded, equal, steady, with_floor

parts = 6  # in which a wave is given out, each where it is worth most
candidates_max = 12  # arms that are compared; the others are too far behind to be the best
points = 64  # of the integral over rates


class FiniteList(Policy, kw_only=True):
    """The list ends and the hours end, so learning is worth what the rest of the list gains by it, and nothing afterwards.

    First some people get all arms alike. Then small equal waves go where one more answer changes most who will be the best at the end: each
    part of a wave to the arm that raises most the expected rate of the arm that looks best by then (a one-step lookahead; the knowledge
    gradient of Frazier, Powell and Dayanik 2008 for delayed answers). Most of the list waits for the last wave and gets the best arm.
    """

    label: ClassVar[str] = "Finite list"
    doc: ClassVar[str] = (
        "Knows how many people and hours are left: a small start with all arms, small waves where they teach most, and the larger part of "
        "the list at the end to the best arm. Earns most clicks when a list is sent once within some hours."
    )

    start_scale: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.15  # of the best test size, if one test were all there is
    learning_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.4  # of the list in the small waves
    learning_until: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.95  # of the hours
    floor: Annotated[float, msgspec.Meta(ge=0, le=0.5)] = 0.001  # least share of a live arm in each wave but the last

    def plan(self, evidence: Evidence, prior: Prior, random: Generator) -> Plan:
        if evidence.live.sum() == 1:
            return Plan(recipients=steady(evidence), shares=equal(evidence.live))
        sent = int(evidence.sent.sum())
        recipients = bounded(evidence, self.by_now(evidence, prior) - sent)
        if not sent:
            return Plan(recipients=recipients, shares=equal(evidence.live))
        belief = believe(evidence, prior)
        if evidence.ahead == 0 or not recipients:
            return Plan(recipients=recipients, shares=all_to(best_live(belief.mean, evidence.live), evidence.arms))
        shares = spread_out(belief, evidence, recipients)
        return Plan(recipients=recipients, shares=with_floor(shares, evidence.live, self.floor))

    def by_now(self, evidence: Evidence, prior: Prior) -> float:
        """Return how many should have been sent with this wave: the start, then a steady growth while answers can still come in."""
        if evidence.ahead == 0:
            return evidence.total
        start = self.start(evidence, prior)
        passed = min(1.0, evidence.now_s / (self.learning_until * evidence.end_s))
        return evidence.total * (start + self.learning_share * passed)

    def start(self, evidence: Evidence, prior: Prior) -> float:
        """Return the first wave's share: it follows the square root of the list (Feit and Berman 2019, eq. for small tests)."""
        one_test = 0.5 * math.sqrt((1 - prior.rate) / (prior.rate * prior.spread**2 * max(1, evidence.total)))
        return min(max(self.start_scale * evidence.arms * one_test, 0.02), 0.3)


def spread_out(belief: Belief, evidence: Evidence, recipients: int) -> np.ndarray:
    """Return the shares of a wave, [K], each part of it where it raises the value of the rest most."""
    deviation = np.sqrt(belief.shape) / belief.rate
    reach = np.where(evidence.live, belief.mean + 2 * deviation, -1.0)
    candidates = np.sort(np.argsort(-reach, kind="stable")[: min(candidates_max, int(evidence.live.sum()))])
    given = np.zeros(candidates.size)
    # What a message sent now will have taught by the end.
    taught = belief.curve_share(evidence.end_s - evidence.now_s)
    _spread(
        float(recipients), belief.shape[candidates], belief.rate[candidates], belief.coming[candidates], taught,
        float(evidence.left), given,
    )  # fmt: skip
    shares = np.zeros(evidence.arms)
    shares[candidates] = given / given.sum()
    return shares


@numba.njit(cache=True)
def _below(x, mean, deviation):
    """Return the chance that a gamma with this mean and deviation is below x (the cube root is nearly normal, Wilson and Hilferty)."""
    if deviation <= 0.0:
        return 1.0 if x >= mean else 0.0
    c = deviation / mean
    return 0.5 * math.erfc(-(((x / mean) ** (1.0 / 3.0) - 1.0 + c * c / 9.0) / (c / 3.0)) / math.sqrt(2.0))


@numba.njit(cache=True)
def _moves(shape, rate, exposure):
    """Return how far the mean of a gamma may still move with so much exposure (its pre-posterior deviation)."""
    return math.sqrt(shape * exposure / (rate + exposure)) / rate


@numba.njit(cache=True)
def _spread(recipients, shape, rate, coming, taught, left, given):
    """Write how many of a wave each arm gets into ``given``, part by part.

    The expected best at the end is the integral of one minus the chance that every arm is below; exact rather than drawn, because
    the differences between arms are smaller than the noise of some hundred draws.
    """
    arms = shape.size
    mean = shape / rate
    exposure = coming.copy()
    part = recipients / parts
    low, high = 0.0, 0.0
    for k in range(arms):
        deviation = _moves(shape[k], rate[k], coming[k] + recipients * taught)
        low = max(low, mean[k] - 4.5 * deviation)
        high = max(high, mean[k] + 5.0 * deviation)
    step = (high - low) / (points - 1)
    below = np.empty((arms, points))
    for p in range(parts):
        for k in range(arms):
            deviation = _moves(shape[k], rate[k], exposure[k])
            for i in range(points):
                below[k, i] = _below(low + i * step, mean[k], deviation)
        best = -1.0
        chosen = 0
        for k in range(arms):
            deviation = _moves(shape[k], rate[k], exposure[k] + part * taught)
            above = 0.0
            for i in range(points):
                chance = _below(low + i * step, mean[k], deviation)
                for other in range(arms):
                    if other != k:
                        chance *= below[other, i]
                above += (1.0 - chance) * (0.5 if i == 0 or i == points - 1 else 1.0)
            value = part * mean[k] + (left - (p + 1) * part) * (low + step * above)
            if value > best:
                best = value
                chosen = k
        given[chosen] += part
        exposure[chosen] += part * taught
