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

# How far the level of a campaign's responses swings within its hours (deviation of its logarithm), and how often. Mostly not at all, so
# that where nothing swings nothing is lost; it takes plain totals to be believed.
SWINGS = np.array([0.0, 0.6])
SWING_PRIOR = np.array([0.9, 0.1])
swing_terms = 4  # cosines it is made of
swing_turns = 5  # of Newton's method
swing_max = 3.0  # of the logarithm of a level
least_pivot = 1e-12
day_s = 86400.0


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
    far as its delays say so: the belief is the mixture over speeds, as one Gamma with the mixture's mean and variance. Exposure in hours
    in which people respond more readily counts for more, as far as the waves' totals say that hours differ.
    """
    age = evidence.age_s()
    curve = learn_curve(evidence.responses.sum(1), age, prior.curve, prior.curve_weight)
    shape, rate, seen, coming = (np.empty(evidence.arms) for _ in range(4))
    _believe(
        evidence.sent, evidence.responses, age, evidence.end_s - evidence.now_s, evidence.sent_at_s, evidence.end_s, curve,
        log_spread(curve), prior.rate, prior.rate_weight, prior.spread, shape, rate, seen, coming,
    )  # fmt: skip
    return Belief(shape=shape, rate=rate, seen=seen, coming=coming, curve=curve)


@numba.njit(cache=True)
def _believe(sent, responses, age_s, left_s, sent_at_s, end_s, curve, log_spread, base, base_weight, spread, shape, rate, seen, coming):
    waves, arms = sent.shape
    speeds = SPEEDS.size
    level = _learn_levels(sent, responses, age_s, sent_at_s, end_s, curve, base, base_weight, spread)
    now = np.zeros((arms, speeds))
    then = np.zeros((arms, speeds))
    came = np.zeros(arms)
    for s in range(speeds):
        faster = math.exp(-SPEEDS[s])
        for w in range(waves):
            share_now = level[w] * share_by(age_s[w] * faster, curve)
            share_then = level[w] * share_by((age_s[w] + left_s) * faster, curve)
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
def _learn_levels(sent, responses, age_s, sent_at_s, end_s, curve, base, base_weight, spread):
    """Return how readily each wave's people respond in comparison with all waves, [W].

    People of different hours differ, and arms are concentrated in different waves; an arm is not better for having had the better hours.
    The logarithm of the level is a sum of cosines with normal weights. How far it swings is averaged over SWINGS under the likelihood of
    the waves' totals, with the arms' rates integrated out (empirical Bayes).
    """
    waves, arms = sent.shape
    exposure = np.zeros((waves, arms))
    totals = np.zeros(waves)
    came = np.zeros(arms)
    for w in range(waves):
        share = share_by(age_s[w], curve)
        for k in range(arms):
            exposure[w, k] = sent[w, k] * share
            own = responses[w, k].sum()
            came[k] += own
            # A response may be known before its message is known to have gone.
            totals[w] += own if exposure[w, k] > 0.0 else 0.0
    a0, b0 = _learn_spread(came, exposure.sum(0), base, base_weight, spread)
    basis = _swings(sent_at_s, end_s)
    log_weight = np.log(SWING_PRIOR)
    log_level = np.zeros((SWINGS.size, waves))
    for i in range(SWINGS.size):
        if SWINGS[i] > 0.0:
            log_weight[i] += _fit_levels(exposure, totals, a0 + came, b0, basis, SWINGS[i] ** 2 / swing_terms, log_level[i])
    weight = np.exp(log_weight - log_weight.max())
    level = np.zeros(waves)
    for i in range(SWINGS.size):
        level += weight[i] / weight.sum() * log_level[i]
    level = np.exp(level)
    expected = (exposure.sum(1) * level).sum()
    return level * (exposure.sum() / expected) if expected > 0.0 else level


@numba.njit(cache=True)
def _swings(sent_at_s, end_s):
    """Return the terms of which levels are made, [W, swing_terms]: people have days, and a short campaign sees a part of one."""
    basis = np.empty((sent_at_s.size, swing_terms))
    for w in range(sent_at_s.size):
        for m in range(swing_terms):
            if end_s > day_s:
                basis[w, m] = math.cos(2 * math.pi * (m // 2 + 1) * sent_at_s[w] / day_s - 0.5 * math.pi * (m % 2))
            else:
                basis[w, m] = math.cos(math.pi * (m + 1) * sent_at_s[w] / max(end_s, 1.0))
    return basis


@numba.njit(cache=True)
def _fit_levels(exposure, totals, shape, rate, basis, variance, log_level):
    """Write the likeliest ``log_level`` [W] and return by how much, in logarithms, such levels are likelier than none (Laplace)."""
    terms = basis.shape[1]
    weights = np.zeros(terms)
    gradient = np.empty(terms)
    hessian = np.empty((terms, terms))
    value = before = log_determinant = 0.0
    for turn in range(swing_turns + 1):
        for w in range(basis.shape[0]):
            log_level[w] = min(max((basis[w] * weights).sum(), -swing_max), swing_max)
        value = _slopes(exposure, totals, shape, rate, basis, log_level, gradient, hessian)
        for m in range(terms):
            value -= 0.5 * weights[m] ** 2 / variance
            gradient[m] -= weights[m] / variance
            hessian[m, m] += 1.0 / variance
        if turn == 0:
            before = value
        log_determinant = _solve(hessian, gradient)
        if turn < swing_turns:
            for m in range(terms):
                weights[m] += min(max(gradient[m], -1.0), 1.0)
    return value - before - 0.5 * (log_determinant + terms * math.log(variance))


@numba.njit(cache=True)
def _slopes(exposure, totals, shape, rate, basis, log_level, gradient, hessian):
    """Return the log likelihood of the waves' totals, and write its gradient and its negative curvature in the weights of the cosines.

    With rates integrated out it is sum_w totals_w l_w - sum_k shape_k log(rate + sum_w exposure_wk exp(l_w)), which is concave.
    """
    waves, arms = exposure.shape
    terms = gradient.size
    gradient[:] = 0.0
    hessian[:] = 0.0
    expected = np.zeros(waves)
    moment = np.empty(terms)
    value = (totals * log_level).sum()
    for k in range(arms):
        part = exposure[:, k] * np.exp(log_level)
        seen = rate + part.sum()
        value -= shape[k] * math.log(seen)
        expected += part * shape[k] / seen
        for m in range(terms):
            moment[m] = (part * basis[:, m]).sum() / seen
            for n in range(m + 1):
                hessian[m, n] -= shape[k] * moment[m] * moment[n]
    for m in range(terms):
        gradient[m] = ((totals - expected) * basis[:, m]).sum()
        for n in range(m + 1):
            hessian[m, n] += (expected * basis[:, m] * basis[:, n]).sum()
    return value


@numba.njit(cache=True)
def _solve(matrix, vector):
    """Solve a positive definite system, given by its lower half, in place (Cholesky); return the logarithm of its determinant."""
    size = vector.size
    log_determinant = 0.0
    for m in range(size):
        for n in range(m + 1):
            rest = matrix[m, n] - (matrix[m, :n] * matrix[n, :n]).sum()
            matrix[m, n] = math.sqrt(max(rest, least_pivot)) if n == m else rest / matrix[n, n]
        log_determinant += 2.0 * math.log(matrix[m, m])
        vector[m] = (vector[m] - (matrix[m, :m] * vector[:m]).sum()) / matrix[m, m]
    for m in range(size - 1, -1, -1):
        vector[m] = (vector[m] - (matrix[m + 1 :, m] * vector[m + 1 :]).sum()) / matrix[m, m]
    return log_determinant


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
