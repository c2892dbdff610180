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

Where a policy gives whole waves to one arm, labels within waves say little. So waves that are near in time are compared as well: once all
responses of an age are due in a wave, a response of that age is from hour t and arm i with a probability in proportion to

    (how many of arm i were sent in hour t)  *  r, for arm i  *  exp(level of hour t)

and how many have that age is left open: the speed of people in general does not enter. Levels are integrated out over the ways they may
go: hardly at all, like a random walk, or from hour to hour as they like, which leaves what is within an hour alone (an hour is a sixteenth
of the campaign's time where that is less: within it the level is taken to stay). Where levels swing, the likelihood shows it, and what is
far apart counts for little. The bound holds on average over those ways; simulated campaigns whose rates swing by half, under policies that
follow them, are in the tests. Where all waves have the same shares it is the test within waves.

A winner has to be ahead of every other arm with evidence 1 / alpha, and nothing is added for the number of arms: wrong is an arm that is
ahead of all and not the best, and of three or more equal arms the first is less far ahead of the second than of two (Gutmann and Maymin
1987 for one look; over all looks, the lead of the first of several Brownian motions is that of two, reflected at 0, less what the third
pushes the second up). Intervals for all pairs have to hold together and need (K - 1) / alpha.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import msgspec
import numba
import numpy as np

from .delays import AGES_S, BUCKETS, LOG_AGE, log_mean_age, log_spread, published
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

# Waves are compared with each other within blocks of so many parts of the campaign's hours, each at most an hour long.
block_hours = 16
pairs_full = 3  # with more arms only the leader is compared across waves
turns_max = 12  # of Newton's method
gain_min = 0.02  # of a turn, in the logarithm of the likelihood
# Ages are compared across waves in groups of two or three buckets, by a factor of about 2 each.
GROUP = np.where(np.arange(BUCKETS) < bucket_min, -1, (np.clip(np.arange(BUCKETS), bucket_min + 1, BUCKETS - 2) - bucket_min - 1) // 2)
GROUPS = int(GROUP[-1]) + 1
_GROUP_END_S = np.array([AGES_S[1 + np.flatnonzero(group == GROUP)[-1]] for group in range(GROUPS)])
_GROUP_LOG_AGE = np.array([LOG_AGE[group == GROUP].mean() for group in range(GROUPS)])
# How the level may go: hardly, like a random walk, or any way. Columns: share, deviation of the logarithm over a block, and of each hour.
GOINGS = np.array([[0.4, 0.1, 0.02], [0.5, 1.0, 0.05], [0.1, 0.7, 1.0]])


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
    """The likelihoods of all pairs of arms over a grid of ratios. ``log`` has the labels of responses within their waves, which are taken
    in as they come; those of responses that are compared across waves are added up when they are asked for."""

    def __init__(self, arms: int) -> None:
        assert 1 <= arms <= arms_max
        self.arms = arms
        self.log = np.zeros((arms, arms, BETA0.size, BETA1.size))  # [i, j] for i < j alone
        self.counted = np.zeros((0, arms, BUCKETS), np.int64)
        self.sent = np.zeros(arms, np.int64)
        # By block, hour, arm and group of ages: what came, and what was sent long enough ago that all of the group has come.
        self.came, self.due = (np.zeros((0, block_hours, arms, GROUPS)) for _ in range(2))
        self._across: np.ndarray | None = None  # what they say; None where it has to be added up anew

    def update(self, evidence: Evidence, responses: np.ndarray, gone_s: np.ndarray | None = None) -> None:
        """Take in what is new in ``responses`` [W, K, J]; less than before (a verdict that changed) is taken out again.

        ``gone_s`` [W] is when the last message of each wave had gone, infinity for waves on their way; without it waves go all at once.
        """
        waves = responses.shape[0]
        if self.counted.shape[0] < waves:
            grown = np.zeros((max(waves, 2 * self.counted.shape[0]), self.arms, BUCKETS), np.int64)
            grown[: self.counted.shape[0]] = self.counted
            self.counted = grown
        sent = evidence.sent[:waves]
        self.sent = evidence.sent.sum(0)
        hour_s = max(1.0, min(evidence.end_s / block_hours, 3600.0))
        gone_s = evidence.sent_at_s if gone_s is None else gone_s
        # Once an hour is enough, and what a wave's labels say counts meanwhile.
        then_s = math.floor(evidence.now_s / hour_s) * hour_s
        over = (then_s - gone_s)[:waves, None] >= _GROUP_END_S
        # A wave that took long belongs to the hour of its middle; of one that is on its way nothing is compared yet.
        middle_s = (evidence.sent_at_s + np.minimum(gone_s, evidence.now_s))[:waves] / 2
        hour = np.maximum(middle_s / hour_s, 0.0).astype(np.int64)
        # Blocks without a wave take no room, however long a campaign rests.
        used, block = np.unique(hour // block_hours, return_inverse=True)
        came, due = (np.zeros((used.size, block_hours, self.arms, GROUPS)) for _ in range(2))
        _pool(came, due, block, hour % block_hours, over, sent, responses)
        if not (np.array_equal(came, self.came) and np.array_equal(due, self.due)):
            self.came, self.due, self._across = came, due, None
        _take_in(self.log, self.counted, sent, np.where((over[:, GROUP] & (GROUP >= 0))[:, None, :], 0, responses))

    def table(self) -> np.ndarray:
        """Return the log likelihood of each pair over ratios and slopes, [K, K, BETA0, BETA1]; those of i < j alone."""
        if self._across is None:
            self._across = np.zeros_like(self.log)
            lead = int((self.came.sum((0, 1, 3)) / np.maximum(self.due.sum((0, 1, 3)), 1)).argmax())
            few = self.arms <= pairs_full
            for block in range(self.came.shape[0]):
                _add_across(self._across, self.came[block], self.due[block], lead, few, LEVELS)
        return self.log + self._across


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


def _nodes(grid: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Chebyshev's points over a grid, and the weights [grid, count] that make values at the grid of values at the points."""
    at = np.cos(np.pi * (np.arange(count) + 0.5) / count)
    basis = np.polynomial.chebyshev.chebvander(grid / grid[-1], count - 1)
    return grid[-1] * at, basis @ np.linalg.inv(np.polynomial.chebyshev.chebvander(at, count - 1))


_NODE0, _FROM0 = _nodes(BETA0, 9)
_NODE1, _FROM1 = _nodes(BETA1, 5)
_LOG_RATIO_AT = _NODE0[None, :, None] + _NODE1[None, None, :] * (_GROUP_LOG_AGE[:, None, None] - CENTRE)


class Levels(NamedTuple):
    """What is believed of the levels of a block's hours: the ways they may go, S of them."""

    log_share: np.ndarray  # [S]
    precision: np.ndarray  # [S, hours, hours]
    log_determinant: np.ndarray  # [S], of the precision


def levels(goings: np.ndarray) -> Levels:
    """Return normal levels that are a random walk plus what is each hour's own; ``goings`` [S, 3] as in GOINGS."""
    time = (np.arange(block_hours) + 0.5) / block_hours
    covariance = [walk**2 * np.minimum.outer(time, time) + own**2 * np.eye(block_hours) for _, walk, own in goings]
    precision = np.linalg.inv(np.array(covariance))
    return Levels(np.log(goings[:, 0]), precision, np.linalg.slogdet(precision)[1])


LEVELS = levels(GOINGS)


@numba.njit(cache=True)
def _pool(came, due, block, hour, over, sent, responses):
    waves, arms, buckets = responses.shape
    for w in range(waves):
        for k in range(arms):
            if sent[w, k] == 0:
                continue
            for g in range(GROUPS):
                if over[w, g]:
                    due[block[w], hour[w], k, g] += sent[w, k]
            for j in range(bucket_min, buckets):
                if over[w, GROUP[j]]:
                    came[block[w], hour[w], k, GROUP[j]] += responses[w, k, j]


@numba.njit(cache=True)
def _add_across(table, came, due, lead, few, levels):
    """Add the log likelihoods of one block's labels and hours, for all pairs if they are few, else for those of the leader."""
    arms = came.shape[1]
    at = np.empty((levels.log_share.size, _NODE0.size, _NODE1.size))
    for a in range(arms):
        for b in range(a + 1, arms):
            if few or a == lead or b == lead:
                if not _across(came[:, a], came[:, b], due[:, a], due[:, b], levels, at):
                    continue
                _add_mixed(table[a, b], at)


@numba.njit(cache=True)
def _add_mixed(table, at):
    """Add to a pair's table what its nodes say, the ways that levels may go mixed."""
    half = np.zeros((at.shape[0], BETA0.size, _NODE1.size))
    each = np.empty(at.shape[0])
    for s in range(at.shape[0]):
        for g in range(BETA0.size):
            for n in range(_NODE0.size):
                for m in range(_NODE1.size):
                    half[s, g, m] += _FROM0[g, n] * at[s, n, m]
    for g in range(BETA0.size):
        for h in range(BETA1.size):
            for s in range(at.shape[0]):
                each[s] = 0.0
                for m in range(_NODE1.size):
                    each[s] += half[s, g, m] * _FROM1[h, m]
            most = each.max()
            table[g, h] += most + math.log(np.exp(each - most).sum())


@numba.njit(cache=True)
def _across(came_a, came_b, due_a, due_b, levels, at):
    """Write log likelihoods of a pair's responses over ratios and slopes, ``at`` [S, nodes, nodes], if there are any responses.

    A response of an age is from hour t and arm a with a probability in proportion to r due_a[t] exp(level[t]), of arm b without r.
    The levels are integrated out under each way they may go (Laplace).
    """
    came = (came_a + came_b).sum(0)
    used = np.flatnonzero(came > 0)
    if used.size == 0:
        return False
    hours = came_a.shape[0]
    at_hour, from_a = (came_a + came_b).sum(1), came_a.sum(0)
    came, weight = came[used], np.empty((used.size, hours))
    for s in range(at.shape[0]):
        level = np.zeros(hours)
        for g in range(_NODE0.size):
            for turn in range(_NODE1.size):
                # There and back, so that the levels found before are near.
                h = turn if g % 2 == 0 else _NODE1.size - 1 - turn
                at[s, g, h] = levels.log_share[s]
                for n in range(used.size):
                    j = used[n]
                    ratio = math.exp(_LOG_RATIO_AT[j, g, h])
                    at[s, g, h] += from_a[j] * _LOG_RATIO_AT[j, g, h]
                    for t in range(hours):
                        weight[n, t] = due_a[t, j] * ratio + due_b[t, j]
                at[s, g, h] += _integrated_levels(at_hour, came, weight, levels.precision[s], levels.log_determinant[s], level)
    return True


@numba.njit(cache=True)
def _integrated_levels(at_hour, came, weight, precision, log_precision, level):
    """Return the log likelihood of the hours [T] of responses of each age, ``came`` [N], with the levels integrated out; ``level`` is where
    the search for the likeliest begins, and is left there."""
    hours = at_hour.size
    part, pull, step, height, hessian = np.empty(hours), np.empty(hours), np.empty(hours), np.empty(hours), np.empty((hours, hours))
    value = 0.0
    for _ in range(turns_max):
        for t in range(hours):
            pull[t] = 0.0
            for u in range(hours):
                pull[t] += precision[t, u] * level[u]
            step[t] = at_hour[t] - pull[t]
            height[t] = math.exp(level[t])
        value = ((at_hour - 0.5 * pull) * level).sum()
        hessian[:] = precision
        for n in range(came.size):
            total = 0.0
            for t in range(hours):
                part[t] = weight[n, t] * height[t]
                total += part[t]
            value -= came[n] * math.log(total)
            for t in range(hours):
                part[t] /= total
                expected = came[n] * part[t]
                if expected > 0:
                    step[t] -= expected
                    hessian[t, t] += expected
                    for u in range(t + 1):
                        hessian[t, u] -= expected * part[u]
        log_determinant, gain = _solved(hessian, step)
        # Where the search ends, the rest of the way is a parabola's.
        value += 0.5 * (gain + log_precision - log_determinant)
        if gain < gain_min:
            break
        for t in range(hours):
            level[t] += min(max(step[t], -1.0), 1.0)
    return value


@numba.njit(cache=True)
def _solved(matrix, vector):
    """Solve a positive definite system, given by its lower half, in place (Cholesky); return the logarithm of its determinant and the
    product of the vector with the solution."""
    size = vector.size
    log_determinant = 0.0
    gain = 0.0
    for m in range(size):
        for n in range(m + 1):
            rest = matrix[m, n]
            for o in range(n):
                rest -= matrix[m, o] * matrix[n, o]
            matrix[m, n] = math.sqrt(max(rest, 1e-12)) if n == m else rest / matrix[n, n]
        log_determinant += 2.0 * math.log(matrix[m, m])
        rest = vector[m]
        for n in range(m):
            rest -= matrix[m, n] * vector[n]
        vector[m] = rest / matrix[m, m]
        gain += vector[m] ** 2
    for m in range(size - 1, -1, -1):
        rest = vector[m]
        for n in range(m + 1, size):
            rest -= matrix[n, m] * vector[n]
        vector[m] = rest / matrix[m, m]
    return log_determinant, gain


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
        labels.table(), labels.sent, log_mean_age(curve) - CENTRE, log_spread(curve), sought, denied, _WEIGHT, needed,
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
    np.fill_diagonal(low, 0.0)
    np.fill_diagonal(ahead, np.inf)
    # All hold together, so what two pairs say of a third holds as well: few pairs but the leader's are compared across waves.
    through = int(low.min(1).argmax())
    low = np.maximum(low, low[:, through, None] + low[None, through, :])
    np.fill_diagonal(low, np.inf)
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
