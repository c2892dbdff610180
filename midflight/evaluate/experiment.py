"""Plays many campaigns with every policy and adds up what they gained and what was claimed."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

from ..decide.claims import ClaimSettings
from ..decide.evidence import Prior
from ..decide.policies import REGISTRY
from ..metrics.metric import Z_95
from .arms import PastTest
from .campaign import Outcome, simulate

chunk = 16  # campaigns in one piece of work


class Setting(msgspec.Struct, frozen=True):
    """One row to be made: which policy, how long a list, how many hours, which trouble."""

    policy: str
    recipients: int
    hours: float
    trouble: str = "none"


class Row(msgspec.Struct, kw_only=True):
    """One line of the table. Shares are of the gap between an equal split and the best arm alone, with the 95 % interval over tests.

    ``claims`` campaigns had a claim of a winner and ``wrong_claims`` of them a wrong one; ``wrong_claim_rate`` is of all campaigns;
    ``median_claim_at`` is in hours since the first wave. Without a gap (A/A) there is no share, without claims no median.
    """

    policy: str
    recipients: int
    hours: float
    trouble: str
    campaigns: int
    share_of_gap: float | None
    share_low: float | None
    share_high: float | None
    claims: int
    wrong_claims: int
    wrong_claim_rate: float
    median_claim_at: float | None


class Work(msgspec.Struct, frozen=True):
    """What a process plays: campaigns ``first`` to ``first + chunk`` of a setting; campaign i takes test i modulo their number."""

    setting: Setting
    first: int
    count: int


class Player:
    """Plays pieces of work. The same seed gives every campaign the same draws, whoever plays it and in whichever order."""

    def __init__(self, tests: list[PastTest], seed: int, aa: bool, claims: bool) -> None:
        self.tests, self.seed, self.aa = tests, seed, aa
        self.settings = ClaimSettings() if claims else None
        self.prior = Prior()

    def __call__(self, work: Work) -> list[Outcome]:
        return [self.one(work.setting, number) for number in range(work.first, work.first + work.count)]

    def one(self, setting: Setting, number: int) -> Outcome:
        test = self.tests[number % len(self.tests)]
        rates = test.rates
        if self.aa:
            rates = np.full(rates.size, test.clicks.sum() / test.impressions.sum())
        random = Generator(PCG64(SeedSequence([self.seed, number])))
        policy = REGISTRY.get(setting.policy)()
        outcome = simulate(rates, setting.recipients, setting.hours, policy, self.prior, self.settings, setting.trouble, random)
        # With equal rates nobody is the winner.
        if outcome.claimed >= 0 and rates[outcome.claimed] == rates.max() and np.count_nonzero(rates == rates.max()) == 1:
            return outcome
        return msgspec.structs.replace(outcome, wrong=outcome.claimed >= 0)


_player: Player | None = None


def _take(player: Player) -> None:
    global _player
    _player = player


def _play(work: Work) -> tuple[Work, list[Outcome]]:
    assert _player is not None
    return work, _player(work)


def play(
    player: Player, settings: list[Setting], campaigns: int, processes: int, done: Callable[[int], None] = lambda n: None
) -> Iterator[Row]:
    """Yield a row for each setting, in their order, as soon as it is complete. ``done`` hears of campaigns that were played."""
    works = [Work(setting, first, min(chunk, campaigns - first)) for setting in settings for first in range(0, campaigns, chunk)]
    found: dict[Setting, list[Outcome]] = {}
    with multiprocessing.get_context("fork").Pool(processes, _take, (player,)) as pool:
        for work, outcomes in pool.imap(_play, works):
            done(work.count)
            rows = found.setdefault(work.setting, [])
            rows += outcomes
            if len(rows) == campaigns:
                yield row(work.setting, found.pop(work.setting))


def row(setting: Setting, outcomes: list[Outcome]) -> Row:
    """Return the sums of a setting's campaigns."""
    gained, gap = (np.array([getattr(outcome, name) for outcome in outcomes]) for name in ("gained", "gap"))
    share = half = None
    # Equal rates may differ in their last digit.
    if gap.sum() > 1e-9 * setting.recipients * len(outcomes):
        share = float(gained.sum() / gap.sum())
        # A ratio of sums over independent tests: the deviation of its linear part.
        half = Z_95 * math.sqrt(float(((gained - share * gap) ** 2).sum())) / float(gap.sum())
    claimed = [outcome.claimed_at_s / 3600 for outcome in outcomes if outcome.claimed >= 0]
    wrong = sum(outcome.wrong for outcome in outcomes)
    return Row(
        policy=setting.policy, recipients=setting.recipients, hours=setting.hours, trouble=setting.trouble, campaigns=len(outcomes),
        share_of_gap=share, share_low=None if share is None else share - half, share_high=None if share is None else share + half,
        claims=len(claimed), wrong_claims=wrong, wrong_claim_rate=wrong / len(outcomes),
        median_claim_at=float(np.median(claimed)) if claimed else None,
    )  # fmt: skip
