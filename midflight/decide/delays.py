"""How long people take to respond: the curve of delays, learned while most of them are still to come; pure."""

from __future__ import annotations

import math

import numba
import numpy as np

from ..stream.measures import DELAY_EDGES_S

# Ends of the age buckets in seconds, [J + 1]. The last is open; responses later than a week are few, and a campaign is judged before.
AGES_S = np.array([0.0, *DELAY_EDGES_S, math.inf])
BUCKETS = len(AGES_S) - 1
# Where a bucket lies for a slope over the logarithm of age, [J].
LOG_AGE = np.array([math.log(0.5), *(0.5 * (math.log(a) + math.log(b)) for a, b in zip(DELAY_EDGES_S, DELAY_EDGES_S[1:], strict=False)),
    math.log(DELAY_EDGES_S[-1] * 2)])  # fmt: skip

# Shares of clicks by hours since sending. Inntopia: 27 % after 1 h, half after 3 h, 61 % after 6 h; a study of ten million sends:
# 91.7 % after two days, 98.1 % after seven. Between and before them as a lognormal with median 3 h and sigma 2 has it.
PUBLISHED = ((1 / 60, 0.005), (0.05, 0.02), (0.1, 0.045), (0.25, 0.107), (0.5, 0.185), (1, 0.28), (3, 0.5), (6, 0.62), (12, 0.75),
    (24, 0.82), (48, 0.917), (168, 0.981))  # fmt: skip
own_clicks = 5.0  # what the published curve counts for, in clicks
# Arms differ in speed by a factor exp(delta), delta normal with this deviation: subject lines that ask for an answer today do.
speed_deviation = 0.35
SPEEDS = np.linspace(-1.2, 1.2, 9)
SPEED_PRIOR = -0.5 * (SPEEDS / speed_deviation) ** 2


def published() -> np.ndarray:
    """Return the share of clicks in each age bucket, [J], from published curves."""
    hours, shares = np.array(PUBLISHED).T
    grown = np.interp(np.log(AGES_S[1:-1] / 3600), np.log(hours), shares, left=0.0)
    first = AGES_S[1:-1] / 60 * PUBLISHED[0][1]
    grown = np.where(AGES_S[1:-1] < 60, first, grown)
    return np.diff(grown, prepend=0.0, append=1.0)


@numba.njit(cache=True)
def share_by(age_s: float, curve: np.ndarray) -> float:
    """Return the share of responses that have come by an age: a curve [J + 1] over AGES_S, logarithmic between its points."""
    if age_s <= 0.0:
        return 0.0
    if age_s < AGES_S[1]:
        return curve[1] * age_s / AGES_S[1]
    if age_s >= AGES_S[-2]:
        # Half of what comes later comes within as long again.
        return curve[-2] + (1.0 - curve[-2]) * (1.0 - AGES_S[-2] / age_s)
    j = np.searchsorted(AGES_S, age_s, side="right") - 1
    part = math.log(age_s / AGES_S[j]) / math.log(AGES_S[j + 1] / AGES_S[j])
    return curve[j] + (curve[j + 1] - curve[j]) * part


@numba.njit(cache=True)
def learn_curve(responses: np.ndarray, age_s: np.ndarray, prior: np.ndarray, weight: float) -> np.ndarray:
    """Return the share of responses by each age, [J + 1], from waves that are still young.

    ``responses`` [W, J] counts by wave and age bucket, ``age_s`` [W]; ``prior`` [J] are shares that count as ``weight`` complete responses.
    The product limit in reversed time (right truncation; Lagakos, Barraj and De Gruttola 1988): a bucket is compared with the ones before
    it, in the waves old enough to have both.
    """
    curve = np.empty(prior.size + 1)
    curve[prior.size] = 1.0
    before = 1.0
    # How much each wave has had by the end of the bucket at hand.
    by = np.zeros(age_s.size)
    for w in range(age_s.size):
        for j in range(prior.size):
            by[w] += responses[w, j]
    for j in range(prior.size - 1, 0, -1):
        came = weight * prior[j]
        of = weight * before
        for w in range(age_s.size):
            if by[w] > 0:
                if age_s[w] >= AGES_S[j + 1]:
                    came += responses[w, j]
                    of += by[w]
                by[w] -= responses[w, j]
        before -= prior[j]
        curve[j] = curve[j + 1] * (1.0 - came / of) if of > 0 else 0.0
    curve[0] = 0.0
    return curve


@numba.njit(cache=True)
def speed_likelihood(responses: np.ndarray, age_s: np.ndarray, curve: np.ndarray, out: np.ndarray) -> None:
    """Write the log likelihood of each of SPEEDS for one arm's responses [W, J] into ``out``, given that they have come by now."""
    waves, buckets = responses.shape
    # Responses in buckets that are over, together; those in a wave's last, unfinished bucket end with the wave's age.
    whole = np.zeros(buckets)
    by_wave = np.zeros(waves)
    cut = np.full(waves, -1)
    for w in range(waves):
        for j in range(buckets):
            if responses[w, j] > 0:
                by_wave[w] += responses[w, j]
                if AGES_S[j + 1] <= age_s[w]:
                    whole[j] += responses[w, j]
                else:
                    cut[w] = j
    for s in range(out.size):
        faster = math.exp(-SPEEDS[s])
        out[s] = 0.0
        before = 0.0
        for j in range(buckets):
            after = share_by(AGES_S[j + 1] * faster, curve) if j < buckets - 1 else 1.0
            if whole[j] > 0:
                out[s] += whole[j] * math.log(max(after - before, 1e-9))
            before = after
        for w in range(waves):
            if by_wave[w] > 0:
                share = share_by(age_s[w] * faster, curve)
                out[s] -= by_wave[w] * math.log(max(share, 1e-9))
                if cut[w] >= 0:
                    start = share_by(AGES_S[cut[w]] * faster, curve)
                    out[s] += responses[w, cut[w]] * math.log(max(share - start, 1e-9))


def log_mean_age(curve: np.ndarray) -> float:
    """Return the mean logarithm of the delay in seconds: where a ratio that changes with log age is the ratio in the end."""
    return float(np.diff(curve) @ LOG_AGE)
