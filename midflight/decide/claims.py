"""What may be said about an experiment while anybody looks at any time: claims with a bound on how often they are wrong; pure.

The test compares two arms by the labels of their responses. Both were sent in the same wave, so under equal rates the next response of the
wave is from arm i with probability sent_i / (sent_i + sent_j), whatever the time of day, the delay that both share, and however the shares
were chosen: they were fixed before the response. For a ratio of rates exp(beta0 + beta1 * log age) the likelihood of the labels is

    L(beta0, beta1) = prod over responses of  r^[from i] / (pi r + 1 - pi),     r = exp(beta0 + beta1 * (log age - log 2 h))

``beta1`` is there because arms whose people answer at different speeds look different early and equal in the end. What is claimed is about
lambda, the logarithm of the ratio in the end: beta0 + beta1 * (mean log age - log 2 h), with the mean of the delays learned on the way
(exact for lognormal delays). ``beta1`` is integrated out under its prior; the evidence for a claim about lambda is a ratio of such
integrals, a martingale under the boundary of what it denies, so that it exceeds 1 / alpha at any time at all with probability at most
alpha (Ville).
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import numba
import numpy as np

from .delays import BUCKETS, LOG_AGE, log_mean_age
from .evidence import Belief, Evidence

arms_max = 100
# Responses within two minutes are mostly machines', whoever they look like; of people's about one in a hundred comes so soon.
bucket_min = 11
BETA0 = np.linspace(-1.6, 1.6, 65)
BETA1 = np.linspace(-0.6, 0.6, 9)
LAMBDA = np.linspace(-1.2, 1.2, 49)
CENTRE = math.log(7200.0)
# Half of all pairs of arms are taken to mature alike; slopes of the others are this large: medians of 1.5 h and 6 h make 0.35.
alike = 0.5
slope_deviation = 0.3
ratio_deviation = 0.4  # sqrt(2) times the spread of arms' rates
_EVEN = np.eye(BETA1.size)[BETA1.size // 2]
_ANY = np.exp(-0.5 * (BETA1 / slope_deviation) ** 2)
_SLOPE = alike * _EVEN + (1 - alike) * _ANY / _ANY.sum()
_WEIGHT = np.exp(-0.5 * (LAMBDA / ratio_deviation) ** 2)
_WEIGHT /= _WEIGHT.sum()


class ClaimSettings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How sure a claim has to be, and which difference is worth talking about."""

    alpha: Annotated[float, msgspec.Meta(gt=0, lt=0.5)] = 0.05  # the chance of any wrong claim in one experiment, over all looks
    tolerance: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.1  # arms within this share of the best are as good


class Claim(msgspec.Struct, kw_only=True):
    """What may be said now. ``kind`` is ``winner``, ``within`` (of the best), ``no_difference`` or ``not_yet``.

    ``arms`` are those it is about. ``waits_for`` is empty or ``speeds`` (without regard to them it would be said already), ``machines``
    (with suspected machines counted it would be another) or ``responses``. ``more_sends`` is about how many more are needed, if known.
    """

    kind: str
    arms: tuple[int, ...] = ()
    waits_for: str = ""
    more_sends: float = math.inf
    evidence: float = 1.0  # of a winner: how many times likelier than without a difference; 1 / alpha is enough


class Labels:
    """The likelihoods of all pairs of arms over a grid of ratios; takes in responses as they come and needs them once."""

    def __init__(self, arms: int) -> None:
        assert 1 <= arms <= arms_max
        self.arms = arms
        self.log = np.zeros((arms, arms, BETA0.size, BETA1.size))  # [i, j] for i < j alone
        self.counted = np.zeros((0, arms, BUCKETS), np.int64)

    def update(self, evidence: Evidence, responses: np.ndarray) -> None:
        """Take in what is new in ``responses`` [W, K, J]; less than before (a verdict that changed) is taken out again."""
        waves = responses.shape[0]
        if self.counted.shape[0] < waves:
            grown = np.zeros((max(waves, 2 * self.counted.shape[0]), self.arms, BUCKETS), np.int64)
            grown[: self.counted.shape[0]] = self.counted
            self.counted = grown
        _take_in(self.log, self.counted, evidence.sent, responses)


_LOG_RATIO = BETA0[None, :, None] + BETA1[None, None, :] * (LOG_AGE[:, None, None] - CENTRE)
_RATIO = np.exp(_LOG_RATIO)


@numba.njit(cache=True)
def _take_in(log, counted, sent, responses):
    waves, arms, buckets = responses.shape
    for w in range(waves):
        for j in range(buckets):
            changed = False
            for k in range(arms):
                if responses[w, k, j] != counted[w, k, j]:
                    changed = True
            if not changed:
                continue
            for a in range(arms):
                for b in range(a + 1, arms):
                    from_a = responses[w, a, j] - counted[w, a, j]
                    from_b = responses[w, b, j] - counted[w, b, j]
                    of = sent[w, a] + sent[w, b]
                    if (from_a or from_b) and sent[w, a] and sent[w, b] and j >= bucket_min:
                        share = sent[w, a] / of
                        for g in range(log.shape[2]):
                            for h in range(log.shape[3]):
                                log[a, b, g, h] += from_a * _LOG_RATIO[j, g, h] - (from_a + from_b) * math.log(
                                    share * _RATIO[j, g, h] + 1 - share
                                )
            for k in range(arms):
                counted[w, k, j] = responses[w, k, j]


@numba.njit(cache=True)
def _integrated(log, shift, slope, out):
    """Write log of the likelihood over LAMBDA with beta1 integrated out."""
    first, step = BETA0[0], BETA0[1] - BETA0[0]
    terms = np.empty(BETA1.size)
    for i in range(LAMBDA.size):
        most = -math.inf
        for h in range(BETA1.size):
            if slope[h] > 0:
                at = (LAMBDA[i] - BETA1[h] * shift - first) / step
                g = min(max(int(round(at)), 1), BETA0.size - 2)
                d = min(max(at - g, -1.5), 1.5)
                below, here, above = log[g - 1, h], log[g, h], log[g + 1, h]
                # Quadratic between grid points, as a log likelihood nearly is.
                terms[h] = here + d * (above - below) / 2 + d * d * (above - 2 * here + below) / 2
                most = max(most, terms[h])
        total = 0.0
        for h in range(BETA1.size):
            if slope[h] > 0 and terms[h] > most - 40:
                total += slope[h] * math.exp(terms[h] - most)
        out[i] = most + math.log(total)


@numba.njit(cache=True)
def _edge(against, kept, side, needed):
    """Return where the evidence crosses what is needed, between the outermost ratio that is kept and its excluded neighbour."""
    beyond = kept + side
    if beyond < 0 or beyond >= LAMBDA.size:
        return side * math.inf
    part = (needed - against[kept]) / (against[beyond] - against[kept])
    return LAMBDA[kept] + side * part * (LAMBDA[1] - LAMBDA[0])


@numba.njit(cache=True)
def _compare(log, shift, slope, weight, needed, low, high, best, against_one, gain):
    arms = log.shape[0]
    integrated = np.empty(LAMBDA.size)
    against = np.empty(LAMBDA.size)
    for i in range(arms):
        for j in range(i + 1, arms):
            _integrated(log[i, j], shift, slope, integrated)
            top = integrated.argmax()
            total = 0.0
            for n in range(LAMBDA.size):
                total += weight[n] * math.exp(integrated[n] - integrated[top])
            against[:] = integrated[top] + math.log(total) - integrated
            # The likeliest ratio is always kept.
            first, last = top, top
            for n in range(LAMBDA.size):
                if against[n] < needed:
                    first, last = min(first, n), max(last, n)
            low[i, j] = _edge(against, first, -1, needed)
            high[i, j] = _edge(against, last, 1, needed)
            low[j, i], high[j, i] = -high[i, j], -low[i, j]
            best[i, j] = LAMBDA[top]
            best[j, i] = -LAMBDA[top]
            against_one[i, j] = against_one[j, i] = against[LAMBDA.size // 2]
            gain[i, j] = gain[j, i] = integrated[top] - integrated[LAMBDA.size // 2]


class Pairs(msgspec.Struct, kw_only=True):
    """Intervals for the logarithm of the ratio of arm i's rate to arm j's, [K, K], at the level at which all hold together."""

    low: np.ndarray
    high: np.ndarray
    best: np.ndarray  # the likeliest
    log_evidence: np.ndarray  # against a ratio of 1
    log_gain: np.ndarray  # of the likeliest over 1
    needed: float


def compare(labels: Labels, curve: np.ndarray, alpha: float, *, speeds: bool = True) -> Pairs:
    """Return the intervals of all pairs. Without ``speeds`` arms are taken to mature alike.

    A wrong statement about an arm needs the interval between it and the truly best arm to miss; there are K - 1 such pairs.
    """
    arms = labels.arms
    low, high, best, against_one, gain = (np.zeros((arms, arms)) for _ in range(5))
    needed = math.log(max(1, arms - 1) / alpha)
    _compare(
        labels.log, log_mean_age(curve) - CENTRE, _SLOPE if speeds else _EVEN, _WEIGHT, needed, low, high, best, against_one, gain
    )  # fmt: skip
    return Pairs(low=low, high=high, best=best, log_evidence=against_one, log_gain=gain, needed=needed)


def judge(labels: Labels, belief: Belief, evidence: Evidence, settings: ClaimSettings) -> Claim:
    """Return what may be said now about the live arms."""
    live = np.flatnonzero(evidence.live)
    if live.size < 2:
        return Claim(kind="not_yet", waits_for="arms")
    return _said(compare(labels, belief.curve, settings.alpha), live, settings.tolerance)


def explain(said: Claim, labels: Labels, belief: Belief, evidence: Evidence, settings: ClaimSettings) -> Claim:
    """Return the same claim with what it waits for."""
    live = np.flatnonzero(evidence.live)
    if said.kind == "winner" or said.waits_for:
        return said
    early = _said(compare(labels, belief.curve, settings.alpha, speeds=False), live, settings.tolerance)
    more = _more_sends(compare(labels, belief.curve, settings.alpha), belief, evidence, live)
    return msgspec.structs.replace(said, waits_for="speeds" if early.kind == "winner" else "responses", more_sends=more)


def _said(pairs: Pairs, live: np.ndarray, tolerance: float) -> Claim:
    low = pairs.low[np.ix_(live, live)].copy()
    np.fill_diagonal(low, np.inf)
    least = low.min(1)
    against = pairs.log_evidence[np.ix_(live, live)] * np.sign(pairs.best[np.ix_(live, live)])
    np.fill_diagonal(against, np.inf)
    evidence = math.exp(min(500.0, max(0.0, against.min(1).max())))
    bound = math.log(1 - tolerance)
    if (least > 0).any():
        return Claim(kind="winner", arms=(int(live[least.argmax()]),), evidence=evidence)
    if (low > bound).all():
        return Claim(kind="no_difference", arms=tuple(live.tolist()), evidence=evidence)
    if (least > bound).any():
        return Claim(kind="within", arms=tuple(live[least > bound].tolist()), evidence=evidence)
    return Claim(kind="not_yet", evidence=evidence)


def _more_sends(pairs: Pairs, belief: Belief, evidence: Evidence, live: np.ndarray) -> float:
    """Return about how many more sends a winner needs, at the differences and shares seen so far; infinity where nothing leads."""
    leader = int(live[np.argmax(belief.mean[live])])
    others = live[live != leader]
    behind = int(others[np.argmin(pairs.log_gain[leader, others])])
    gain = pairs.log_gain[leader, behind]
    if gain < 0.25 or pairs.best[leader, behind] <= 0:
        return math.inf
    # The mixture over ratios costs about half the logarithm of the responses beyond what the likeliest ratio gains.
    times = (pairs.needed + 1.5) / gain
    exposure = belief.seen[live].sum()
    return max(0.0, exposure * (times - 1) - belief.coming[live].sum())


def judge_all(people: Labels, everybody: Labels, belief: Belief, evidence: Evidence, settings: ClaimSettings) -> Claim:
    """Return what may be said whether suspected machines are counted or not; held where the two differ."""
    said = judge(people, belief, evidence, settings)
    if said.kind in ("not_yet", "no_difference"):
        return said
    also = judge(everybody, belief, evidence, settings)
    agrees = also.kind == "winner" and also.arms == said.arms if said.kind == "winner" else also.kind != "not_yet"
    return said if agrees else Claim(kind="not_yet", waits_for="machines", evidence=said.evidence)
