"""What content chosen by group is worth: on a randomised experiment that happened, and on made-up groups whose truth is known."""

from __future__ import annotations

import csv
import gzip
import math
from pathlib import Path

import msgspec
import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

from ..decide.content import Groups, believe, chances
from .arms import BadArms

folds = 10
Z_95 = 1.959963984540054
bands = 4  # of an attribute with more numbers than that
floor = 0.02  # least share of an option in the made-up send


class Experiment(msgspec.Struct, kw_only=True):
    """N recipients who got one of K options at random: ``values`` [N, A] number their attributes' values; ``option``, ``reward`` [N]."""

    attributes: list[str]
    options: list[str]
    values: np.ndarray
    option: np.ndarray
    reward: np.ndarray


class Value(msgspec.Struct, kw_only=True):
    """Reward per recipient under a way to choose, with its 95 % interval."""

    policy: str
    value: float
    low: float
    high: float


def read_experiment(path: Path, option: str, reward: str, attributes: list[str], without: list[str]) -> Experiment:
    """Read a CSV, plain or gzip, with one row a recipient. Raises BadArms with what is wrong."""
    try:
        packed = path.open("rb").read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get(option) not in without]
    except OSError as error:
        raise BadArms(f"Cannot read {path}: {error.strerror or error}") from None
    for name in (option, reward, *attributes):
        if not rows or name not in rows[0]:
            raise BadArms(f"{path.name} has no column `{name}`", got=", ".join(rows[0])[:150] if rows else "no rows")
    try:
        rewards = np.array([float(row[reward]) for row in rows])
    except ValueError as error:
        raise BadArms(f"{path.name}: `{reward}` has to be a number", got=str(error)) from None
    options, chosen = np.unique([row[option] for row in rows], return_inverse=True)
    columns = [_numbered([row[name] for row in rows]) for name in attributes]
    return Experiment(
        attributes=attributes, options=options.tolist(), values=np.stack(columns, 1), option=chosen, reward=rewards
    )  # fmt: skip


def _numbered(texts: list[str]) -> np.ndarray:
    """Return each value's number; many different numbers are cut into bands of equal size."""
    values, numbers = np.unique(texts, return_inverse=True)
    if values.size <= 2 * bands:
        return numbers
    try:
        amounts = np.array(texts, float)
    except ValueError:
        return numbers
    return np.searchsorted(np.unique(np.quantile(amounts, np.arange(1, bands) / bands)), amounts, side="right")


def sums(values: np.ndarray, group: np.ndarray, option: np.ndarray, reward: np.ndarray, options: int) -> Groups:
    """Return the sums of recipients by group and option; ``values`` [G, A] are the groups'."""
    place, size = group * options + option, values.shape[0] * options
    count, total, squares = (np.bincount(place, weight, minlength=size).reshape(-1, options) for weight in (None, reward, reward**2))
    return Groups(values=values, sent=count, reward=total, squares=squares)


def off_policy(experiment: Experiment, seed: int) -> list[Value]:
    """Return the value of each way to choose, had it chosen, and what the groups add to the pooled answer.

    Doubly robust (Dudik, Langford and Li 2011) with known chances, cross-fitted: nobody's choice rests on what he did himself.
    """
    n, options = experiment.option.size, len(experiment.options)
    random = Generator(PCG64(SeedSequence([seed, n])))
    fold = random.permutation(n) % folds
    share = np.bincount(experiment.option, minlength=options) / n
    different, group = np.unique(experiment.values, axis=0, return_inverse=True)
    group = group.ravel()
    scores = np.empty((n, options))
    by_group, pooled = np.empty(n, np.int64), np.empty(n, np.int64)
    for f in range(folds):
        test, train = fold == f, fold != f
        believed = believe(sums(different, group[train], experiment.option[train], experiment.reward[train], options))
        guess = believed.mean[group[test]]
        mine = experiment.option[test]
        scores[test] = guess
        rows = np.flatnonzero(test)
        scores[rows, mine] += (experiment.reward[test] - guess[np.arange(rows.size), mine]) / share[mine]
        by_group[test] = guess.argmax(1)
        pooled[test] = believed.pooled.argmax()
    every = np.arange(n)
    found = [_value(f"always {name}", scores[:, k]) for k, name in enumerate(experiment.options)]
    found += [_value("pooled", scores[every, pooled]), _value("by group", scores[every, by_group])]
    return [*found, _value("by group - pooled", scores[every, by_group] - scores[every, pooled])]


def _value(name: str, scores: np.ndarray) -> Value:
    mean, half = float(scores.mean()), Z_95 * float(scores.std()) / math.sqrt(scores.size)
    return Value(policy=name, value=mean, low=mean - half, high=mean + half)


class World(msgspec.Struct, frozen=True):
    """Made-up groups: attributes with so many values each, options, how far options differ overall and by value (of the base rate)."""

    levels: tuple[int, ...] = (4, 3, 2)
    options: int = 3
    rate: float = 0.03
    overall: float = 0.15
    by_value: float = 0.3
    recipients: int = 100_000
    waves: int = 20


class Regret(msgspec.Struct, kw_only=True):
    """Responses lost against knowing every group's best option, per campaign."""

    by_group: float
    pooled: float


def regrets(world: World, campaigns: int, seed: int) -> Regret:
    """Return the mean regret over campaigns of both ways to choose, each with the same people and truth."""
    lost = np.array([_campaign(world, Generator(PCG64(SeedSequence([seed, number])))) for number in range(campaigns)])
    return Regret(by_group=float(lost[:, 0].mean()), pooled=float(lost[:, 1].mean()))


def _campaign(world: World, random: Generator) -> tuple[float, float]:
    values = np.stack([grid.ravel() for grid in np.meshgrid(*(np.arange(n) for n in world.levels), indexing="ij")], 1)
    log = world.overall * random.standard_normal(world.options)[None, :] + np.zeros((values.shape[0], 1))
    for a, levels in enumerate(world.levels):
        log = log + 0.2 * random.standard_normal(levels)[values[:, a], None]
        log = log + world.by_value * random.standard_normal((levels, world.options))[values[:, a]]
    rates = np.minimum(0.9, world.rate * np.exp(log))
    sizes = random.dirichlet(np.full(values.shape[0], 3.0))
    return tuple(_send(world, values, rates, sizes, by_group, random) for by_group in (True, False))


def _send(world: World, values: np.ndarray, rates: np.ndarray, sizes: np.ndarray, by_group: bool, random: Generator) -> float:
    sent, reward = np.zeros(rates.shape, np.int64), np.zeros(rates.shape, np.int64)
    lost = 0.0
    for wave in range(world.waves):
        shares = np.full(rates.shape, 1 / world.options)
        if wave:
            groups = Groups(values=values, sent=sent, reward=reward, squares=reward)
            if not by_group:
                groups = Groups(
                    values=np.zeros((1, 1), np.int64), sent=sent.sum(0)[None], reward=reward.sum(0)[None], squares=reward.sum(0)[None]
                )
            shares = floor + (1 - floor * world.options) * chances(believe(groups), random) + np.zeros(rates.shape)
        people = random.multinomial(world.recipients // world.waves, sizes)
        given = np.stack([random.multinomial(n, share / share.sum()) for n, share in zip(people, shares, strict=True)])
        lost += float((given * (rates.max(1, keepdims=True) - rates)).sum())
        sent += given
        reward += random.binomial(given, rates)
    return lost
