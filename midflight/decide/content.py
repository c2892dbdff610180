"""Which content each group of recipients gets: options share what is learned about them between groups; pure.

A group is one combination of the values of some attributes. The rate of option k in group g is taken as

    base(values of g) + option k + sum over attributes of (option k with that value) + (option k in g alone)

with a normal prior for every effect, whose variance for each kind is learned from the data themselves (empirical Bayes, by expectation
maximisation): without signs of a difference between groups their own effects stay near zero and everybody gets the best option overall;
with signs in one attribute the groups that share its value move together.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.random import Generator

rounds = 12  # of expectation maximisation
own_groups_max = 256  # the largest groups may differ from what their attributes say
draws = 400


class Groups(msgspec.Struct, kw_only=True):
    """Counts of G groups and K options. ``values`` [G, A] numbers each attribute's value from 0 on; ``sent`` and ``reward`` [G, K] are
    sums, ``squares`` [G, K] the sum of squared rewards (for a response of 0 or 1 the same as ``reward``).
    """

    values: np.ndarray
    sent: np.ndarray
    reward: np.ndarray
    squares: np.ndarray


class Effects(msgspec.Struct, kw_only=True):
    """What is believed: ``mean`` [G, K] and ``covariance`` [G, K, K] of the rates of the options in each group, and of all groups together
    (``pooled`` [K], ``pooled_deviation`` [K])."""

    mean: np.ndarray
    covariance: np.ndarray
    pooled: np.ndarray
    pooled_deviation: np.ndarray


class _Design(msgspec.Struct):
    rows: np.ndarray  # [G * K, P], one row a group and option
    kind: np.ndarray  # [P], which variance a column has


def believe(groups: Groups) -> Effects:
    """Return what is believed of every group and option."""
    count, options = groups.sent.shape
    design = _design(groups)
    sent, reward = groups.sent.ravel().astype(float), groups.reward.ravel().astype(float)
    rate = (reward.sum() + 0.5) / (sent.sum() + 50.0)
    spread = max(float(groups.squares.sum()) / max(1.0, sent.sum()) - rate * rate, rate * (1 - min(rate, 0.999)) * 0.1, 1e-12)
    # The noise of a cell: of a response its rate's, shrunk to all; of money that of all.
    binary = bool((groups.squares == groups.reward).all())
    own = (reward + 50.0 * rate) / (sent + 50.0)
    noise = np.where(sent > 0, (own * (1 - own).clip(1e-3) if binary else spread) / sent.clip(1), 1.0)
    seen = sent > 0
    x, y, precision = design.rows[seen], reward[seen] / sent[seen] - rate, 1.0 / noise[seen]
    mean, covariance = _fit(x, y, precision, design.kind, rate)
    rows = design.rows.reshape(count, options, -1)
    weight = groups.sent.sum(1) / max(1, groups.sent.sum())
    pooled = np.einsum("g,gkp->kp", weight, rows)
    return Effects(
        mean=rate + rows @ mean,
        covariance=np.einsum("gkp,pq,glq->gkl", rows, covariance, rows, optimize=True),
        pooled=rate + pooled @ mean,
        pooled_deviation=np.sqrt(np.einsum("kp,pq,kq->k", pooled, covariance, pooled).clip(0)),
    )


def _design(groups: Groups) -> _Design:
    """Return the columns: a base by value, the options, options by value, and options in the largest groups."""
    count, options = groups.sent.shape
    group = np.repeat(np.arange(count), options)
    option = np.tile(np.arange(options), count)
    columns, kinds = [np.eye(options)[option]], [np.zeros(options, np.int64)]
    for a in range(groups.values.shape[1]):
        value = groups.values[group, a]
        levels = int(groups.values[:, a].max()) + 1
        columns += [np.eye(levels)[value], np.eye(levels * options)[value * options + option]]
        kinds += [np.full(levels, 1 + 2 * a), np.full(levels * options, 2 + 2 * a)]
    if groups.values.shape[1] > 1:
        largest = np.argsort(-groups.sent.sum(1), kind="stable")[:own_groups_max]
        own = np.zeros((count * options, largest.size * options))
        for n, g in enumerate(largest):
            own[g * options + np.arange(options), n * options + np.arange(options)] = 1.0
        columns.append(own)
        kinds.append(np.full(own.shape[1], 1 + 2 * groups.values.shape[1]))
    return _Design(np.hstack(columns), np.concatenate(kinds))


def _fit(x: np.ndarray, y: np.ndarray, precision: np.ndarray, kind: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Return mean [P] and covariance [P, P] of the effects, their variances by kind learned.

    A variance is pulled to its start, a fifth of the rate, by as much as one effect would; so few effects cannot put it to zero.
    """
    start = (0.2 * rate) ** 2
    variance = np.full(int(kind.max()) + 1, start)
    gram, right = (x.T * precision) @ x, (x.T * precision) @ y
    for _ in range(rounds):
        covariance = np.linalg.inv(gram + np.diag(1.0 / variance[kind]))
        mean = covariance @ right
        second = mean**2 + np.diag(covariance)
        sums = np.bincount(kind, second, minlength=variance.size)
        counts = np.bincount(kind, minlength=variance.size)
        variance = (sums + 0.25 * start) / (counts + 1.0)
    return mean, covariance


def chances(effects: Effects, random: Generator) -> np.ndarray:
    """Return the probability of each option being a group's best, [G, K]: what Thompson sampling gives it."""
    groups, options = effects.mean.shape
    values, vectors = np.linalg.eigh(effects.covariance)
    root = vectors * np.sqrt(values.clip(0))[:, None, :]
    drawn = effects.mean[:, None, :] + random.standard_normal((groups, draws, options)) @ root.transpose(0, 2, 1)
    best = drawn.argmax(2)
    return np.stack([(best == k).mean(1) for k in range(options)], 1)
