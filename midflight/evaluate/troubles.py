"""What makes real campaigns harder than textbook ones; each trouble by name, so that a policy or a claim can be shown to bear it."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.random import Generator

from ..stream.measures import DELAY_EDGES_S

median_s = 3 * 3600.0
sigma = 2.0  # of the logarithm of delays; with the median of 3 h what is published of clicks (see decide/delays.py)
fast_s, slow_s = 1.5 * 3600.0, 6 * 3600.0
drift = 0.5  # how far the rate swings around its mean
machine_share = 0.05  # of one arm's messages pass a scanner that clicks
seen_through = 0.9  # of such clicks are recognised
late_share, late_mean_s = 0.1, 2 * 3600.0
repeated_share = 0.05

TROUBLES = {
    "none": "",
    "drift": "the rate swings by half of itself within the campaign's hours",
    "adaptive": "nine tenths of each wave go to the arm whose raw rate leads",
    "delays": "each arm's people take their own time: medians from 1.5 to 6 hours",
    "machines": "a scanner clicks in one message of twenty of one arm; nine tenths of its clicks are recognised",
    "late": "a tenth of the events comes hours late, one of twenty comes twice",
    "all": "all of them together",
}


class Responses(msgspec.Struct, kw_only=True):
    """The responses to one wave, one row each: arm, age bucket, when it is known (seconds), whether it looks like a machine."""

    arm: np.ndarray
    bucket: np.ndarray
    known_s: np.ndarray
    suspected: np.ndarray


class Trouble:
    """The troubles of one campaign, drawn once."""

    def __init__(self, name: str, arms: int, hours: float, random: Generator) -> None:
        assert name in TROUBLES
        self.name = name
        self.hours = hours
        self.phase = random.uniform(0.0, 2 * math.pi)
        self.medians = np.full(arms, median_s)
        if self.has("delays"):
            self.medians = fast_s * (slow_s / fast_s) ** random.uniform(0.0, 1.0, arms)
            if arms == 2:
                self.medians = np.array([fast_s, slow_s])
        self.scanned = int(random.integers(arms)) if self.has("machines") else -1

    def has(self, name: str) -> bool:
        return self.name in (name, "all")

    def level(self, at_s: float) -> float:
        """Return how the rate at a time compares with its mean."""
        return 1.0 + drift * math.sin(2 * math.pi * at_s / 3600 / self.hours + self.phase) if self.has("drift") else 1.0

    def respond(self, sent: np.ndarray, rates: np.ndarray, at_s: float, random: Generator) -> Responses:
        """Return how the recipients of a wave respond, ``sent`` [K] of them at ``at_s``."""
        people = random.binomial(sent, np.minimum(1.0, rates * self.level(at_s)))
        arm = np.repeat(np.arange(sent.size), people)
        delay = self.medians[arm] * np.exp(sigma * random.standard_normal(arm.size))
        suspected = np.zeros(arm.size, bool)
        if self.scanned >= 0:
            machines = int(random.binomial(sent[self.scanned], machine_share))
            arm = np.append(arm, np.full(machines, self.scanned))
            delay = np.append(delay, 20.0 * np.exp(1.0 * random.standard_normal(machines)))
            suspected = np.append(suspected, random.uniform(size=machines) < seen_through)
        known = at_s + delay
        if self.has("late"):
            known = known + (random.uniform(size=arm.size) < late_share) * random.exponential(late_mean_s, arm.size)
            # The repetition of an event carries its message; a message's first response is counted and nothing else.
            message = np.arange(arm.size)
            again = np.flatnonzero(random.uniform(size=arm.size) < repeated_share)
            message = np.append(message, again)
            known = np.append(known, known[again] + random.exponential(late_mean_s, again.size))
            _, first = np.unique(message, return_index=True)
            arm, delay, suspected, known = (column[message[first]] for column in (arm, delay, suspected, known[: arm.size]))
        return Responses(arm=arm, bucket=np.searchsorted(DELAY_EDGES_S, delay, side="right"), known_s=known, suspected=suspected)
