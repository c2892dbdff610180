"""Compare claims of a winner with tests of other libraries on the same simulated campaigns, look by look: ``python -m bench.claims ARMS``.

ARMS is a file of past tests, as for ``midflight evaluate``. Each campaign takes the rates of one of them: its best and worst arm (``--arms
two``), all arms (``all``), or all with the two best made equal (``tied``), where a winner is wrong; with ``--aa`` all arms are equal. Every
test sees the same counts at the same moments, without suspected machines and without responses of the first five minutes, and says that an
arm wins when it is ahead of every other one, at 5 % divided by the number of others (Bonferroni) where a library's test is of two arms.

gbstats            GrowthBook's sequential test (an asymptotic confidence sequence) of the difference, its tuning parameter as it comes.
gbstats-relative   The same of the relative difference, as it comes; the first of two arms is the control.
gbstats-24h        That of the difference, for clicks within 24 hours of messages that are as old: how it is used where speeds may differ.
savvi              Anytime-valid test of clicks against the shares sent (Lindon and Malek), as it comes.
statsmodels        The z-test of two proportions, looked at every time: what no sequential test gives.
midflight-alike    Ours, if all arms are taken to mature alike: what the guard against unequal speeds costs.

Left out: confseq 0.0.11 has no wheel for Python 3.11 and needs a compiler and Boost; spotify-confidence 4.1.0 has group-sequential tests,
which need the final sample size and its share at each look, and the same two proportions as gbstats under it. The libraries are not in the
project's locks, because gbstats asks for numpy 1 (what is used of it works with 2, and ``--check`` holds it against its formula):

    python -m venv --system-site-packages build/claims
    build/claims/bin/pip install savvi==0.3.1 matplotlib statsmodels==0.15.0 'pandas<3' 'pydantic<3'
    build/claims/bin/pip install --no-deps gbstats==0.8.0
"""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import typer
from numpy.random import PCG64, Generator, SeedSequence
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from midflight.decide import claims
from midflight.decide.delays import AGES_S
from midflight.decide.evidence import Belief, Evidence, Prior, believe
from midflight.decide.policies import REGISTRY
from midflight.decide.policies.policy import divide
from midflight.evaluate.arms import PastTest, read_arms
from midflight.evaluate.campaign import Campaign, leader_share, moments
from midflight.evaluate.troubles import TROUBLES, Trouble

alpha = 0.05
window_s = 24 * 3600.0
never = math.inf


class Arms(StrEnum):
    two = "two"
    all = "all"
    tied = "tied"


class Setting(NamedTuple):
    trouble: str
    arms: Arms
    aa: bool
    recipients: int
    hours: float
    seed: int
    policy: str


class Seen(NamedTuple):
    """What a test may look at: our evidence and labels, and the counts [K] that libraries take."""

    evidence: Evidence
    belief: Belief
    people: claims.Labels
    everybody: claims.Labels
    sent: np.ndarray
    clicks: np.ndarray


class Said(NamedTuple):
    """The first claim of a test in one campaign: hours since its start, and whether it is right (nothing was said: never, False)."""

    hours: float
    right: bool


# -- tests: the arm that is said to win, or None ---------------------------------------------------------------------------------


def midflight(seen: Seen) -> int | None:
    said = claims.judge_all(seen.people, seen.everybody, seen.belief, seen.evidence, claims.ClaimSettings(alpha=alpha))
    return said.arms[0] if said.kind == "winner" else None


def midflight_alike(seen: Seen) -> int | None:
    pairs = claims.compare(seen.people, seen.belief.curve, alpha, speeds=False)
    ahead = pairs.ahead + np.diag(np.full(pairs.ahead.shape[0], np.inf))
    return int(ahead.min(1).argmax()) if ahead.min(1).max() >= pairs.enough else None


def winner(sent: np.ndarray, clicks: np.ndarray, differs: Callable[[np.ndarray, np.ndarray, float], bool]) -> int | None:
    """Return the arm with the highest rate, if it differs from every other one."""
    if sent.min() == 0 or clicks.sum() == 0:
        return None
    best = int(np.argmax(clicks / sent))
    others = [arm for arm in range(sent.size) if arm != best]
    # The nearest first: where it does not differ, the rest need not be asked.
    others.sort(key=lambda arm: -clicks[arm] / sent[arm])
    pairs = [sorted((arm, best)) for arm in others]
    return best if all(differs(sent[pair], clicks[pair], alpha / len(others)) for pair in pairs) else None


def gbstats_differs(sent: np.ndarray, clicks: np.ndarray, level: float, of_what: str = "absolute") -> bool:
    from gbstats.frequentist.tests import SequentialConfig, SequentialTwoSidedTTest
    from gbstats.models.statistics import ProportionStatistic

    of = [ProportionStatistic(n=int(n), sum=int(x)) for n, x in zip(sent, clicks, strict=True)]
    config = SequentialConfig(alpha=level, difference_type=of_what)
    # Relative to a rate of 0 there is nothing to say, and without a click an arm has no variance.
    return clicks.min() > 0 and SequentialTwoSidedTTest(*of, config).compute_result().p_value < level


def gbstats_window(seen: Seen) -> int | None:
    old = seen.evidence.age_s() >= window_s
    within = seen.evidence.responses[old][:, :, claims.bucket_min : int(np.searchsorted(AGES_S, window_s))]
    return winner(seen.evidence.sent[old].sum(0), within.sum((0, 2)), gbstats_differs)


def savvi_differs(sent: np.ndarray, clicks: np.ndarray, level: float) -> bool:
    from savvi.multinomial import Multinomial

    share = sent[0] / sent.sum()
    test = Multinomial(level, np.array([share, 1 - share]))
    test.update(clicks.astype(np.int64))
    return bool(test.calculate_p_value() < level)


def statsmodels_differs(sent: np.ndarray, clicks: np.ndarray, level: float) -> bool:
    from statsmodels.stats.proportion import proportions_ztest

    return bool(proportions_ztest(clicks, sent)[1] < level)


def by_counts(differs: Callable[[np.ndarray, np.ndarray, float], bool]) -> Callable[[Seen], int | None]:
    return lambda seen: winner(seen.sent, seen.clicks, differs)


OURS = {"midflight": midflight, "midflight-alike": midflight_alike}
LIBRARIES = {
    "gbstats": by_counts(gbstats_differs),
    "gbstats-relative": by_counts(partial(gbstats_differs, of_what="relative")),
    "gbstats-24h": gbstats_window,
    "savvi": by_counts(savvi_differs),
    "statsmodels": by_counts(statsmodels_differs),
}


# -- campaigns -------------------------------------------------------------------------------------------------------------------


def rates_of(test: PastTest, setting: Setting, random: Generator) -> np.ndarray:
    """Return the true rates, in any order: which arm is slow or scanned has nothing to do with which is good."""
    rates = np.sort(test.rates)[::-1]
    if setting.arms is Arms.two:
        rates = rates[[0, -1]]
    if setting.arms is Arms.tied:
        rates[:2] = rates[:2].mean()
    return np.full(rates.size, test.clicks.sum() / test.impressions.sum()) if setting.aa else random.permutation(rates)


def next_wave(campaign: Campaign, evidence: Evidence, look: int, policy, prior: Prior) -> np.ndarray:
    """Return the recipients of each arm, as simulate() of midflight/evaluate/campaign.py gives them out."""
    plan, shares = policy.plan(evidence, prior, campaign.random), None
    if look and campaign.trouble.has("adaptive"):
        raw = evidence.responses.sum((0, 2)) / evidence.sent.sum(0).clip(1)
        shares = (1 - leader_share) / raw.size + leader_share * (np.arange(raw.size) == raw.argmax())
    return divide(plan.recipients, plan.shares if shares is None else shares, campaign.random)


def play(past: PastTest, setting: Setting, number: int, tests: dict[str, Callable[[Seen], int | None]]) -> dict[str, Said]:
    """Play one campaign; each test is asked at every look until it says something."""
    random = Generator(PCG64(SeedSequence([setting.seed, number])))
    rates = rates_of(past, setting, random)
    campaign = Campaign(rates, setting.recipients, setting.hours, Trouble(setting.trouble, rates.size, setting.hours, random), random)
    people, everybody, prior = claims.Labels(rates.size), claims.Labels(rates.size), Prior()
    policy = REGISTRY.get(setting.policy)()
    said: dict[str, Said] = {}
    for look in range(campaign.looks_s.size):
        campaign.arrive(look)
        evidence = campaign.evidence(look)
        if look and len(said) < len(tests):
            people.update(evidence, evidence.responses)
            everybody.update(evidence, campaign.everybody[: evidence.sent.shape[0]])
            sent, clicks = evidence.sent.sum(0), evidence.responses[:, :, claims.bucket_min :].sum((0, 2))
            seen = Seen(evidence, believe(evidence, prior), people, everybody, sent, clicks)
            for name in tests.keys() - said.keys():
                arm = tests[name](seen)
                if arm is not None:
                    right = rates[arm] == rates.max() and np.count_nonzero(rates == rates.max()) == 1
                    said[name] = Said(evidence.now_s / 3600, bool(right))
        if look < moments and campaign.left:
            campaign.send(look, next_wave(campaign, evidence, look, policy, prior))
    return said


_work: tuple = ()


def _take(*work) -> None:
    global _work
    _work = work


def _one(number: int) -> dict[str, Said]:
    past, setting, tests = _work
    return play(past[number % len(past)], setting, number, tests)


# -- figures ---------------------------------------------------------------------------------------------------------------------


def figures(found: list[dict[str, Said]], tests: list[str]) -> dict[str, dict]:
    """Return for each test the shares of right and wrong first claims, when half and a quarter of all campaigns had a right one, and the
    median of our time less theirs where both are right (hours; below 0 ours is earlier)."""
    rows = {}
    nothing = Said(never, False)
    for name in tests:
        said = [one.get(name, nothing) for one in found]
        times = [row.hours if row.right else never for row in said]
        both = [one["midflight"].hours - one[name].hours for one in found if all(one.get(n, nothing).right for n in ("midflight", name))]
        rows[name] = {
            "right": sum(row.right for row in said) / len(found),
            "wrong": sum(row.hours < never and not row.right for row in said) / len(found),
            **{f"by_{part}": float(np.quantile(times, part / 100, method="higher")) for part in (25, 50)},
            "ours_later_h": float(np.median(both)) if both else None,
        }
    return rows


def show(setting: Setting, rows: dict[str, dict], campaigns: int) -> Table:
    kind = "A/A" if setting.aa else setting.arms.value
    how = f"{setting.policy}, {setting.recipients:,} recipients, {setting.hours:g} h"
    table = Table(title=f"{setting.trouble}: {campaigns:,} campaigns, {kind}, {how}")
    for column in ("test", "right %", "wrong %", "quarter right by h", "half right by h", "ours later by h"):
        table.add_column(column, justify="left" if column == "test" else "right")
    for name, row in rows.items():
        later = "-" if row["ours_later_h"] is None else f"{row['ours_later_h']:+.2f}"
        shares = (f"{100 * row[key]:.1f}" for key in ("right", "wrong"))
        table.add_row(name, *shares, *("never" if row[key] == never else f"{row[key]:.2f}" for key in ("by_25", "by_50")), later)
    return table


def check() -> None:
    """Hold gbstats under this numpy against its formula (Waudby-Smith et al. 2023, equation 9) at its default tuning parameter."""
    from gbstats.frequentist.tests import SequentialConfig, SequentialTwoSidedTTest
    from gbstats.models.statistics import ProportionStatistic

    n, x = np.array([4000.0, 5000.0]), np.array([40, 90])
    got = SequentialTwoSidedTTest(*(ProportionStatistic(n=int(a), sum=int(b)) for a, b in zip(n, x, strict=True)), SequentialConfig())
    p = x / n
    variance = p[1] * (1 - p[1]) / (p[0] ** 2 * n[1]) + p[0] * (1 - p[0]) * p[1] ** 2 / (p[0] ** 4 * n[0])
    rho = math.sqrt((-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / 5000)
    grown = n.sum() * rho**2 + 1
    half = math.sqrt(variance * n.sum() * 2 * grown * math.log(math.sqrt(grown) / alpha)) / (n.sum() * rho)
    assert np.allclose(got.confidence_interval, [p[1] / p[0] - 1 - half, p[1] / p[0] - 1 + half], rtol=1e-3), got.confidence_interval


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    past: Path = typer.Argument(..., metavar="ARMS", help="A CSV file of past tests: test id, messages and clicks of each arm."),
    arms: Arms = typer.Option(Arms.two, help="Best and worst of each test, all arms, or all with the two best made equal."),
    aa: bool = typer.Option(False, "--aa", help="All arms equal: every winner is wrong."),
    trouble: list[str] = typer.Option(list(TROUBLES), help="May be repeated; all without."),
    libraries: bool = typer.Option(True, help="Without them only ours is played, which needs nothing installed."),
    campaigns: int = typer.Option(400, min=1),
    recipients: int = typer.Option(50_000, min=100),
    hours: float = typer.Option(8.0, min=0.1),
    seed: int = 1,
    policy: str = typer.Option("fixed_split", help="How waves are given out, where the trouble does not say."),
    processes: int = typer.Option(1, min=1),
    out: Path = typer.Option(None, help="Where the figures go as JSON."),
) -> None:
    """Compare claims of a winner with other libraries' tests on the same simulated campaigns."""
    console = Console(width=120)
    tests = OURS | (LIBRARIES if libraries else {})
    if libraries:
        check()
    usable = [test for test in read_arms(past)[0] if test.clicks.sum() > 0 and (arms is not Arms.tied or test.clicks.size > 2)]
    made = {}
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        for name in trouble:
            setting = Setting(name, arms, aa, recipients, hours, seed, policy)
            task = progress.add_task(name, total=campaigns)
            with multiprocessing.get_context("fork").Pool(processes, _take, (usable, setting, tests)) as pool:
                found = []
                for one in pool.imap(_one, range(campaigns), chunksize=4):
                    found.append(one)
                    progress.advance(task)
            made[name] = figures(found, list(tests))
            console.print(show(setting, made[name], campaigns))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        said = {"campaigns": campaigns, "aa": aa, "arms": arms.value, "policy": policy, "figures": made}
        out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    app()
