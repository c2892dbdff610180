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
# Arms differ in speed by a factor exp(delta), as subject lines that ask for an answer today do: mostly not at all, else normal.
same_speed = 0.9
speed_deviation = 0.5
SPEEDS = np.linspace(-1.2, 1.2, 13)
_NORMAL = np.exp(-0.5 * (SPEEDS / speed_deviation) ** 2)
SPEED_PRIOR = np.log((1 - same_speed) * _NORMAL / _NORMAL.sum() + same_speed * (np.arange(SPEEDS.size) == SPEEDS.size // 2))


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
def speed_likelihood(sent: np.ndarray, responses: np.ndarray, arm: int, rates: np.ndarray, spread: float, out: np.ndarray) -> None:
    """Write the log likelihood of each of SPEEDS for one arm into ``out``, by how its part of the responses changes with their age.

    ``sent`` [W, K], ``responses`` [W, K, J], ``rates`` [K] of all arms as if they were equally fast. A response of a wave and an age is the
    arm's with a probability in proportion to what it was sent and its rate; where its people are slower than all by a factor exp(delta),
    with an added slope of delta / spread**2 / (1 - own part of all) over log age: they are slower than the others by more than
    they are slower than all, of whom they are a part (``spread``: deviation of the logarithm of delays; exact for lognormal ones). The
    curve of all does not enter, so its noise cannot be mistaken for a difference. Quadratic in the slope.
    """
    waves, arms, buckets = responses.shape
    own = responses[:, arm].sum()
    others = max(responses.sum() - own, 0.5) / max(responses.sum(), 1)
    weight = 0.0
    middle = 0.0
    for turn in range(2):
        score = 0.0
        information = 0.0
        for w in range(waves):
            if sent[w, arm] == 0:
                continue
            expected = 0.0
            for k in range(arms):
                expected += sent[w, k] * rates[k]
            part = sent[w, arm] * rates[arm] / expected
            for j in range(buckets):
                came = 0.0
                for k in range(arms):
                    came += responses[w, k, j]
                if came > 0:
                    certain = came * part * (1 - part)
                    if turn == 0:
                        weight += certain
                        middle += certain * LOG_AGE[j]
                    else:
                        off = LOG_AGE[j] - middle
                        score += (responses[w, arm, j] - came * part) * off
                        information += certain * off * off
        if turn == 0:
            middle = middle / weight if weight > 0 else 0.0
    for s in range(out.size):
        slope = SPEEDS[s] / spread**2 / others
        out[s] = score * slope - 0.5 * information * slope * slope


def log_spread(curve: np.ndarray) -> float:
    """Return the deviation of the logarithm of the delay."""
    shares = np.diff(curve)
    return math.sqrt(float(shares @ (LOG_AGE - shares @ LOG_AGE) ** 2))


def log_mean_age(curve: np.ndarray) -> float:
    """Return the mean logarithm of the delay in seconds: where a ratio that changes with log age is the ratio in the end."""
    return float(np.diff(curve) @ LOG_AGE)
