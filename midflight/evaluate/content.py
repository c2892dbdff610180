"""What content chosen by group is worth: on a randomised experiment that happened, and on made-up groups whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

from ..decide.content import Groups, believe, chances
from ..kit.errors import nearest
from ..metrics.metric import Z_95
from .arms import BadArms, rows

parts = 20  # in which people come, each chosen for by those before it
bands = 4  # of an attribute with more numbers than that
options_max, values_max, groups_max = 20, 100, 2000  # of a column, and of their combinations
reward_max = 1e12
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
    wanted = [option, reward, *attributes]
    read = list(rows(path, lambda there: [_column(name, there, path) for name in wanted]))
    for value in without:
        seen = {texts[0] for _, texts in read}
        if value not in seen:
            raise BadArms(f"{path.name}: no row has `{value}` in column `{option}`", todo=nearest(value, sorted(seen)[:options_max]))
    read = [(line, texts) for line, texts in read if texts[0] not in without]
    rewards = np.array([_amount(texts[1], reward, line, path) for line, texts in read])
    options, chosen = np.unique([texts[0] for _, texts in read], return_inverse=True)
    if not 2 <= options.size <= options_max:
        raise BadArms(f"{path.name}: `{option}` says what each got", expected=f"2 to {options_max} options", got=options.size)
    columns = [_numbered([texts[2 + a] for _, texts in read]) for a in range(len(attributes))]
    for name, column in zip(attributes, columns, strict=True):
        if column.max() >= values_max:
            raise BadArms(f"{path.name}: `{name}` makes too many groups", expected=f"at most {values_max} values", got=column.max() + 1)
    values = np.stack(columns, 1)
    groups = np.unique(values, axis=0).shape[0]
    if groups > groups_max:
        raise BadArms(f"{path.name}: too many groups", expected=f"at most {groups_max}", got=groups, todo="Take fewer columns")
    return Experiment(attributes=attributes, options=options.tolist(), values=values, option=chosen, reward=rewards)


def _column(name: str, there: list[str], path: Path) -> str:
    if name not in there:
        raise BadArms(f"{path.name} has no column `{name}`", todo=nearest(name, there) if there else "It is empty")
    return name


def _amount(text: str, column: str, line: int, path: Path) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not abs(amount) < reward_max:
        raise BadArms(f"{path.name}: `{column}`", expected="a number", got=repr(text[:40]), where=f"line {line}")
    return amount


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


def off_policy(experiment: Experiment, seed: int, done: Callable[[], None] = lambda: None) -> list[Value]:
    """Return the value of each way to choose, had it chosen, and what the groups add to the pooled answer.

    Doubly robust (Dudik, Langford and Li 2011) with known chances. People come in random order, in so many ``parts``, and each is
    chosen for by what the parts before it taught, the first by nothing and therefore left out. Choosing for each part by all others
    (cross-fitting) would use more of the data, but where no option is clearly the best the parts' errors then agree with each other, and
    an interval of 95 % covers some 75 % (Luedtke and van der Laan 2016). ``done`` hears of each part.
    """
    n, options = experiment.option.size, len(experiment.options)
    random = Generator(PCG64(SeedSequence([seed, n])))
    part = random.permutation(n) % parts
    share = np.bincount(experiment.option, minlength=options) / n
    different, group = np.unique(experiment.values, axis=0, return_inverse=True)
    group = group.ravel()
    scores = np.empty((n, options))
    by_group, pooled = np.empty(n, np.int64), np.empty(n, np.int64)
    for f in range(parts):
        test, train = part == f, part < f
        believed = believe(sums(different, group[train], experiment.option[train], experiment.reward[train], options))
        guess = believed.mean[group[test]]
        mine = experiment.option[test]
        scores[test] = guess
        rows = np.flatnonzero(test)
        scores[rows, mine] += (experiment.reward[test] - guess[np.arange(rows.size), mine]) / share[mine]
        by_group[test] = guess.argmax(1)
        pooled[test] = believed.pooled.argmax()
        done()
    every = np.flatnonzero(part > 0)
    of_group, of_pooled = scores[every, by_group[every]], scores[every, pooled[every]]
    found = [_value(f"always {name}", scores[:, k]) for k, name in enumerate(experiment.options)]
    return [*found, _value("pooled", of_pooled), _value("by group", of_group), _value("by group - pooled", of_group - of_pooled)]


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

    campaigns: int
    by_group: float
    pooled: float
    ratio: float | None  # by group / pooled


def regrets(world: World, campaigns: int, seed: int, done: Callable[[], None] = lambda: None) -> Regret:
    """Return the mean regret over campaigns of both ways to choose, each with the same people and truth. ``done`` hears of each."""
    lost = np.empty((campaigns, 2))
    for number in range(campaigns):
        lost[number] = _campaign(world, Generator(PCG64(SeedSequence([seed, number]))))
        done()
    by_group, pooled = lost.mean(0).tolist()
    return Regret(campaigns=campaigns, by_group=by_group, pooled=pooled, ratio=by_group / pooled if pooled else None)


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
