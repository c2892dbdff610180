"""What is known of an experiment at one moment, and what is believed before: all that policies and claims may look at; pure."""

from __future__ import annotations

import math

import msgspec
import numba
import numpy as np

from . import delays
from .delays import SPEED_PRIOR, SPEEDS, learn_curve, log_spread, share_by, speed_likelihood

mean_weight = 0.02  # of the rate expected before, in arms
seen_min = 1e-9  # of exposure, in recipients
# How much more or less than usual the arms of one campaign differ, and how often.
SPREADS = np.array([0.4, 0.7, 1.0, 1.45])
SPREAD_PRIOR = np.array([0.15, 0.25, 0.35, 0.25])


class Prior(msgspec.Struct, kw_only=True):
    """What past campaigns say before the first wave.

    ``spread`` is the deviation of arms' rates around their campaign's rate, relative to it; 0.29 in real headline tests
    (Upworthy Research Archive, sampling error taken out). ``rate`` counts as ``rate_weight`` recipients. ``curve`` [J] are the shares of
    responses by age bucket and count as ``curve_weight`` responses.
    """

    rate: float = 0.01
    rate_weight: float = 100.0
    spread: float = 0.29
    curve: np.ndarray = msgspec.field(default_factory=delays.published)
    curve_weight: float = delays.own_clicks


class Evidence(msgspec.Struct, kw_only=True):
    """An experiment with K arms after W waves. Times are seconds since its start.

    ``sent`` [W, K] recipients; ``responses`` [W, K, J] people who reached the goal, by age bucket of their first response (those of
    ``delays.AGES_S``); ``live`` [K] whether an arm may still be sent. ``left`` recipients have no message yet. A wave can be sent now and
    at each of ``ahead`` later moments, the last of them at ``end_s``; each takes at most ``wave_max`` recipients.
    """

    now_s: float
    end_s: float
    ahead: int
    left: int
    live: np.ndarray
    sent_at_s: np.ndarray
    sent: np.ndarray
    responses: np.ndarray
    wave_max: int = 1 << 40

    @property
    def arms(self) -> int:
        return self.live.size

    @property
    def total(self) -> int:
        """Return the length of the list."""
        return self.left + int(self.sent.sum())

    def age_s(self) -> np.ndarray:
        return self.now_s - self.sent_at_s


class Belief(msgspec.Struct, kw_only=True):
    """Rates of the arms: Gamma(shape, rate) each, [K]. ``seen`` is exposure so far, ``coming`` what it still grows by until the end."""

    shape: np.ndarray
    rate: np.ndarray
    seen: np.ndarray
    coming: np.ndarray
    curve: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        return self.shape / self.rate

    def curve_share(self, age_s: float) -> float:
        """Return the share of all responses that have come by an age."""
        return share_by(age_s, self.curve)


def believe(evidence: Evidence, prior: Prior) -> Belief:
    """Return what is believed of the arms' rates, with responses that are still to come counted in.

    Exposure is what was sent times the share of responses that can have come by now (Vernade, Cappe and Perchet 2017); an arm's rate is
    Gamma with the campaign's rate as its mean (empirical Bayes); an arm whose people take longer than all gets its own, slower curve, as
    far as its delays say so: the belief is the mixture over speeds, as one Gamma with the mixture's mean and variance.
    """
    age = evidence.age_s()
    curve = learn_curve(evidence.responses.sum(1), age, prior.curve, prior.curve_weight)
    shape, rate, seen, coming = (np.empty(evidence.arms) for _ in range(4))
    _believe(
        evidence.sent, evidence.responses, age, evidence.end_s - evidence.now_s, curve, log_spread(curve),
        prior.rate, prior.rate_weight, prior.spread, shape, rate, seen, coming,
    )  # fmt: skip
    return Belief(shape=shape, rate=rate, seen=seen, coming=coming, curve=curve)


@numba.njit(cache=True)
def _believe(sent, responses, age_s, left_s, curve, log_spread, base, base_weight, spread, shape, rate, seen, coming):
    waves, arms = sent.shape
    speeds = SPEEDS.size
    now = np.zeros((arms, speeds))
    then = np.zeros((arms, speeds))
    came = np.zeros(arms)
    for s in range(speeds):
        faster = math.exp(-SPEEDS[s])
        for w in range(waves):
            share_now = share_by(age_s[w] * faster, curve)
            share_then = share_by((age_s[w] + left_s) * faster, curve)
            for k in range(arms):
                now[k, s] += sent[w, k] * share_now
                then[k, s] += sent[w, k] * share_then
    for k in range(arms):
        for w in range(waves):
            for j in range(responses.shape[2]):
                came[k] += responses[w, k, j]
    middle = speeds // 2
    a0, b0 = _learn_spread(came, now[:, middle], base, base_weight, spread)
    weight = np.empty(speeds)
    alike = (a0 + came) / (b0 + now[:, middle])
    for k in range(arms):
        speed_likelihood(sent, responses, k, alike, log_spread, weight)
        for s in range(speeds):
            # The chance of so many responses by now, its rate integrated out (a negative binomial).
            weight[s] += SPEED_PRIOR[s] - (a0 + came[k]) * math.log(b0 + now[k, s])
            if came[k] > 0:
                # A response may be known before its message is known to have gone.
                weight[s] += came[k] * math.log(max(now[k, s], seen_min))
        weight -= weight.max()
        total = 0.0
        for s in range(speeds):
            weight[s] = math.exp(weight[s])
            total += weight[s]
        mean = 0.0
        square = 0.0
        seen[k] = 0.0
        coming[k] = 0.0
        for s in range(speeds):
            q = weight[s] / total
            m = (a0 + came[k]) / (b0 + now[k, s])
            mean += q * m
            square += q * (m * m + m / (b0 + now[k, s]))
            seen[k] += q * now[k, s]
            coming[k] += q * (then[k, s] - now[k, s])
        variance = square - mean * mean
        rate[k] = mean / variance
        shape[k] = mean * rate[k]


@numba.njit(cache=True)
def _learn_spread(came, seen, base, base_weight, spread):
    """Return shape and rate of the gamma that the arms' rates are drawn from, for responses and exposures [K].

    Campaigns differ in how much their arms differ; the spread's square is averaged over SPREADS under the likelihood of the responses.
    """
    log_weight = np.empty(SPREADS.size)
    means = np.empty(SPREADS.size)
    for i in range(SPREADS.size):
        shape = 1.0 / (spread * SPREADS[i]) ** 2
        means[i] = _learn_mean(came, seen, base, base_weight, shape)
        rate = shape / means[i]
        log_weight[i] = math.log(SPREAD_PRIOR[i])
        for k in range(came.size):
            log_weight[i] += (
                math.lgamma(shape + came[k]) - math.lgamma(shape) + shape * math.log(rate) - (shape + came[k]) * math.log(rate + seen[k])
            )
    weight = np.exp(log_weight - log_weight.max())
    square = spread**2 * (weight * SPREADS**2).sum() / weight.sum()
    return 1.0 / square, 1.0 / square / _learn_mean(came, seen, base, base_weight, 1.0 / square)


@numba.njit(cache=True)
def _learn_mean(came, seen, base, base_weight, shape):
    """Return the mean of the arms' rates.

    The likeliest is the mean of what is believed of each arm. Adding up their responses would count an arm by how often it was sent.
    """
    mean = (came.sum() + base * base_weight) / (seen.sum() + base_weight)
    for _ in range(8):
        total = base * mean_weight
        for k in range(came.size):
            total += (shape + came[k]) / (shape / mean + seen[k])
        mean = total / (came.size + mean_weight)
    return mean
