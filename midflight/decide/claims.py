"""What may be said about an experiment while anybody looks at any time: claims with a bound on how often they are wrong; pure.

The test compares two arms by the labels of their responses. Both were sent in the same wave, so under equal rates the next response of the
wave is from arm i with probability sent_i / (sent_i + sent_j), whatever the time of day, the delay that both share, and however the shares
were chosen: they were fixed before the response. For a ratio of rates exp(beta0 + beta1 * log age) the likelihood of the labels is

    L(beta0, beta1) = prod over responses of  r^[from i] / (pi r + 1 - pi),     r = exp(beta0 + beta1 * (log age - log 2 h))

``beta1`` is there because arms whose people answer at different speeds look different early and equal in the end. What is claimed is about
lambda, the logarithm of the ratio in the end: beta0 + beta1 * (mean log age - log 2 h), with the mean of the delays learned on the way
(exact for lognormal delays). The evidence against a lambda is a ratio: the likelihood integrated over ratios and slopes that are sought, by
the likelihood at that lambda integrated over the slopes that it is denied under. It is a martingale under the latter, whatever is sought,
so it exceeds 1 / alpha at any time at all with probability at most alpha (Ville), on average over the slopes denied. Those reach to 0.45:
medians of the delays that differ by a factor of 6.

A winner has to be ahead of every other arm with evidence 1 / alpha, and nothing is added for the number of arms: wrong is an arm that is
ahead of all and not the best, and of three or more equal arms the first is less far ahead of the second than of two (Gutmann and Maymin
1987 for one look; over all looks, the lead of the first of several Brownian motions is that of two, reflected at 0, less what the third
pushes the second up). Intervals for all pairs have to hold together and need (K - 1) / alpha.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import numba
import numpy as np

from .delays import BUCKETS, LOG_AGE, log_mean_age, log_spread, published
from .evidence import Belief, Evidence

arms_max = 100
# Responses within five minutes are mostly machines', whoever they look like; of people's about one in 25 comes so soon.
bucket_min = 13
BETA0 = np.linspace(-1.6, 1.6, 65)
BETA1 = np.linspace(-0.45, 0.45, 13)
LAMBDA = np.linspace(-1.2, 1.2, 49)
CENTRE = math.log(7200.0)
# Medians of 1.5 h and 6 h make a slope of 0.35. What is denied is mostly spread over all slopes, what is sought mostly has none: the spread
# is what keeps arms of different speed from being called different, and evidence is soonest there if it looks for what is usual.
denied_alike = 0.1
sought_alike = 0.9
# The ratios sought. Wider than those of two arms drawn at random (sqrt(2) times 0.29): a winner is the best of several.
ratio_deviation = 0.6
_EVEN = np.eye(BETA1.size)[BETA1.size // 2]
_DENIED = denied_alike * _EVEN + (1 - denied_alike) / BETA1.size
_SOUGHT = sought_alike * _EVEN + (1 - sought_alike) / BETA1.size
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
        self.sent = np.zeros(arms, np.int64)

    def update(self, evidence: Evidence, responses: np.ndarray) -> None:
        """Take in what is new in ``responses`` [W, K, J]; less than before (a verdict that changed) is taken out again."""
        waves = responses.shape[0]
        if self.counted.shape[0] < waves:
            grown = np.zeros((max(waves, 2 * self.counted.shape[0]), self.arms, BUCKETS), np.int64)
            grown[: self.counted.shape[0]] = self.counted
            self.counted = grown
        self.sent = evidence.sent.sum(0)
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
def _integrated(log, odds, shift, spread, sought, denied, seek, deny):
    """Write logs of the likelihood over LAMBDA with beta1 integrated out under each of two priors.

    ``odds`` of the two arms among the messages sent. The delays learned are a mixture, and in the end an arm has its part of the responses
    in it; what is claimed lies halfway between the two, whose mean logarithms of delay are beta1 * spread**2 apart.
    """
    first, step = BETA0[0], BETA0[1] - BETA0[0]
    terms = np.empty(BETA1.size)
    for i in range(LAMBDA.size):
        bend = (0.5 - 1 / (1 + math.exp(-LAMBDA[i]) / odds)) * spread**2
        for h in range(BETA1.size):
            at = (LAMBDA[i] - BETA1[h] * (shift + BETA1[h] * bend) - first) / step
            g = min(max(int(round(at)), 1), BETA0.size - 2)
            d = min(max(at - g, -1.5), 1.5)
            below, here, above = log[g - 1, h], log[g, h], log[g + 1, h]
            # Quadratic between grid points, as a log likelihood nearly is.
            terms[h] = here + d * (above - below) / 2 + d * d * (above - 2 * here + below) / 2
        most = terms.max()
        terms = np.exp(np.maximum(terms - most, -600.0))
        seek[i] = most + math.log((sought * terms).sum())
        deny[i] = most + math.log((denied * terms).sum())


@numba.njit(cache=True)
def _edge(against, kept, side, needed):
    """Return where the evidence crosses what is needed, between the outermost ratio that is kept and its excluded neighbour."""
    beyond = kept + side
    if beyond < 0 or beyond >= LAMBDA.size:
        return side * math.inf
    part = (needed - against[kept]) / (against[beyond] - against[kept])
    return LAMBDA[kept] + side * part * (LAMBDA[1] - LAMBDA[0])


@numba.njit(cache=True)
def _compare(log, sent, shift, spread, sought, denied, weight, needed, low, high, best, ahead, gain):
    arms = log.shape[0]
    seek, deny = np.empty(LAMBDA.size), np.empty(LAMBDA.size)
    zero = LAMBDA.size // 2
    for i in range(arms):
        for j in range(i + 1, arms):
            _integrated(log[i, j], (sent[i] + 1) / (sent[j] + 1), shift, spread, sought, denied, seek, deny)
            most = seek.max()
            against = most + math.log((weight * np.exp(seek - most)).sum()) - deny
            # The likeliest ratio is always kept.
            top = deny.argmax()
            first, last = top, top
            for n in range(LAMBDA.size):
                if against[n] < needed:
                    first, last = min(first, n), max(last, n)
            low[i, j] = _edge(against, first, -1, needed)
            high[i, j] = _edge(against, last, 1, needed)
            low[j, i], high[j, i] = -high[i, j], -low[i, j]
            best[i, j] = LAMBDA[top]
            best[j, i] = -LAMBDA[top]
            ahead[i, j] = against[: zero + 1].min() if top > zero else 0.0
            ahead[j, i] = against[zero:].min() if top < zero else 0.0
            gain[i, j] = gain[j, i] = deny[top] - deny[zero]


class Pairs(msgspec.Struct, kw_only=True):
    """Intervals for the logarithm of the ratio of arm i's rate to arm j's, [K, K], at the level at which all hold together."""

    low: np.ndarray
    high: np.ndarray
    best: np.ndarray  # the likeliest
    ahead: np.ndarray  # the logarithm of the evidence that the ratio is above 1
    log_gain: np.ndarray  # of the likeliest over 1
    needed: float  # logarithm of the evidence against a ratio, for all intervals together
    enough: float  # and for being ahead of all others


_EARLY = published()[:bucket_min]


def without_machines(curve: np.ndarray) -> np.ndarray:
    """Return the curve [J + 1] with its first minutes as published: machines that were not recognised would make people look quick."""
    late = np.diff(curve)[bucket_min:]
    shares = np.concatenate((_EARLY, late * (1 - _EARLY.sum()) / max(late.sum(), 1e-9)))
    return np.concatenate(((0.0,), np.cumsum(shares)))


def compare(labels: Labels, curve: np.ndarray, alpha: float, *, speeds: bool = True) -> Pairs:
    """Return the intervals of all pairs. Without ``speeds`` arms are taken to mature alike.

    A wrong interval that matters is one between an arm and the truly best one; there are K - 1 such pairs.
    """
    arms = labels.arms
    low, high, best, ahead, gain = (np.zeros((arms, arms)) for _ in range(5))
    needed = math.log(max(1, arms - 1) / alpha)
    sought, denied = (_SOUGHT, _DENIED) if speeds else (_EVEN, _EVEN)
    curve = without_machines(curve)
    _compare(
        labels.log, labels.sent, log_mean_age(curve) - CENTRE, log_spread(curve), sought, denied, _WEIGHT, needed,
        low, high, best, ahead, gain,
    )  # fmt: skip
    return Pairs(low=low, high=high, best=best, ahead=ahead, log_gain=gain, needed=needed, enough=math.log(1 / alpha))


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
    low, ahead = (table[np.ix_(live, live)].copy() for table in (pairs.low, pairs.ahead))
    np.fill_diagonal(low, np.inf)
    np.fill_diagonal(ahead, np.inf)
    least, lead = low.min(1), ahead.min(1)
    evidence = math.exp(min(500.0, max(0.0, lead.max())))
    bound = math.log(1 - tolerance)
    if lead.max() >= pairs.enough:
        return Claim(kind="winner", arms=(int(live[lead.argmax()]),), evidence=evidence)
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
    times = (pairs.enough + 1.5) / gain
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
