"""The contract of a policy: from what is known to how many recipients the next wave takes and which share of it each arm gets."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np
from numpy.random import Generator

from ..evidence import Belief, Evidence, Prior


class Plan(msgspec.Struct, kw_only=True):
    """The next wave: ``recipients`` and the probability of each arm, [K], which is what is recorded as the propensity."""

    recipients: int
    shares: np.ndarray


class Policy(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Settings of a policy are its fields. ``plan`` depends on its arguments alone, and gives arms that are not live nothing."""

    label: ClassVar[str] = ""
    doc: ClassVar[str] = ""

    def plan(self, evidence: Evidence, prior: Prior, random: Generator) -> Plan:
        """Return the next wave for an experiment with at least one live arm and somebody left."""
        raise NotImplementedError


def bounded(evidence: Evidence, wanted: float) -> int:
    """Return how many the wave takes: about as many as wanted, all at the last moment, never so few that the rest cannot go."""
    if evidence.ahead == 0:
        return min(evidence.left, evidence.wave_max)
    least = evidence.left - evidence.wave_max * evidence.ahead
    return int(min(max(round(wanted), least, 0), evidence.left, evidence.wave_max))


def steady(evidence: Evidence) -> int:
    """Return an equal share of what is left for each moment that is left."""
    return bounded(evidence, evidence.left / (evidence.ahead + 1))


def equal(live: np.ndarray) -> np.ndarray:
    """Return equal shares of the live arms, [K]."""
    return live / live.sum()


def with_floor(shares: np.ndarray, live: np.ndarray, floor: float) -> np.ndarray:
    """Return shares in which no live arm has less than ``floor``, and no other anything."""
    floor = min(floor, 1.0 / live.sum())
    return np.where(live, floor + (1.0 - floor * live.sum()) * shares, 0.0)


def all_to(arm: int, arms: int) -> np.ndarray:
    shares = np.zeros(arms)
    shares[arm] = 1.0
    return shares


def best_live(means: np.ndarray, live: np.ndarray) -> int:
    """Return the live arm with the highest mean; the first of equals."""
    return int(np.argmax(np.where(live, means, -np.inf)))


draws = 400


def sample_best(belief: Belief, live: np.ndarray, random: Generator) -> np.ndarray:
    """Return draws of the best and the second best live arm under the belief, [draws, 2] (Thompson sampling; the second for top-two)."""
    sampled = random.standard_gamma(belief.shape, size=(draws, live.size)) / belief.rate
    sampled[:, ~live] = -1.0
    if live.size == 1:
        return np.zeros((draws, 2), np.int64)
    return np.argsort(-sampled, axis=1)[:, :2]


def frequencies(arms: np.ndarray, size: int) -> np.ndarray:
    """Return how often each of ``size`` arms occurs, as shares."""
    return np.bincount(arms, minlength=size) / arms.size


def divide(recipients: int, shares: np.ndarray, random: Generator) -> np.ndarray:
    """Return how many of a wave each arm gets, [K]: the shares rounded so that each recipient's chances are exactly they."""
    ends = np.floor(np.cumsum(shares) / shares.sum() * recipients + random.uniform())
    ends[-1] = recipients
    return np.diff(ends.clip(0, recipients), prepend=0).astype(np.int64)
