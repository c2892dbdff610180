"""Every policy keeps the contract of a plan, whatever it is shown, and a policy that listens earns."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import PCG64, Generator, SeedSequence

from midflight.decide import policies
from midflight.decide.claims import arms_max
from midflight.decide.delays import BUCKETS, published
from midflight.decide.evidence import Evidence, Prior
from midflight.decide.policies import REGISTRY, Plan, Policy
from midflight.decide.policies.finite_list import FiniteList
from midflight.decide.policies.fixed_split import FixedSplit
from midflight.decide.policies.policy import bounded, divide, with_floor
from midflight.decide.policies.test_cell import TestCell
from midflight.evaluate.campaign import simulate

HOUR = 3600.0
NAMES = REGISTRY.names()
unbounded = 1 << 40


def random_of(*seed: int) -> Generator:
    return Generator(PCG64(SeedSequence(seed)))


def known(
    sent, responses=None, *, left: int = 1000, ahead: int = 10, wave_max: int = unbounded, live=None, now_s: float = HOUR
) -> Evidence:
    """Return evidence of waves ``sent`` [W, K], spread evenly up to now; ``responses`` [W, K] of them came within 20 minutes."""
    sent = np.asarray(sent, np.int64)
    by_age = np.zeros((*sent.shape, BUCKETS), np.int64)
    if responses is not None:
        grown = published()[:18].cumsum() / published()[:18].sum()
        by_age[:, :, :18] = np.diff(np.round(np.asarray(responses)[:, :, None] * grown), axis=2, prepend=0)
    return Evidence(
        now_s=now_s, end_s=8 * HOUR, ahead=ahead, left=left, live=np.ones(sent.shape[1], bool) if live is None else np.asarray(live, bool),
        sent_at_s=np.linspace(0.0, now_s, sent.shape[0], endpoint=False), sent=sent, responses=by_age, wave_max=wave_max,
    )  # fmt: skip


@st.composite
def any_evidence(draw) -> Evidence:
    """Return an experiment at any moment: from its first wave to its last, few or many arms, some of them stopped, young or old."""
    arms, waves = draw(st.sampled_from([1, 2, 3, 5, 20])), draw(st.integers(0, 4))
    random = random_of(draw(st.integers(0, 1 << 30)))
    live = random.random(arms) < draw(st.sampled_from([0.3, 0.7, 1.0]))
    live[random.integers(arms)] = True
    sent = random.integers(0, draw(st.sampled_from([1, 2, 50, 5000])), (waves, arms))
    responses = np.zeros((waves, arms, BUCKETS), np.int64)
    if waves:
        # They need not fit the sends: an answer may be counted before its message is.
        came = draw(st.sampled_from([0, 1, 30]))
        np.add.at(responses, tuple(random.integers(0, n, came) for n in responses.shape), 1)
    now_s = draw(st.sampled_from([0.0, 1.0, 60.0, HOUR, 8 * HOUR]))
    return Evidence(
        now_s=now_s, end_s=8 * HOUR, ahead=draw(st.sampled_from([0, 1, 2, 10, 96])),
        left=draw(st.one_of(st.integers(0, 3), st.integers(0, 10**6))), live=live, sent_at_s=np.linspace(0.0, now_s, waves), sent=sent,
        responses=responses, wave_max=draw(st.sampled_from([1, 7, 1000, unbounded])),
    )  # fmt: skip


def broken_promises(plan: Plan, evidence: Evidence) -> list[str]:
    """Return what of the contract a plan does not keep."""
    least = evidence.left - evidence.wave_max * evidence.ahead
    promises = {
        "whole number": type(plan.recipients) is int,
        "never more than are left or a wave takes": 0 <= plan.recipients <= min(evidence.left, evidence.wave_max),
        "all at the last moment": evidence.ahead > 0 or plan.recipients == min(evidence.left, evidence.wave_max),
        "the rest can still go": plan.recipients >= min(least, evidence.left, evidence.wave_max),
        "one share an arm": plan.shares.shape == (evidence.arms,) and bool(np.isfinite(plan.shares).all()),
        "shares are chances": bool((plan.shares >= 0).all()) and abs(plan.shares.sum() - 1) < 1e-9,
        "nothing to arms that are stopped": not plan.shares[~evidence.live].any(),
    }
    return [promise for promise, kept in promises.items() if not kept]


# -- the contract --------------------------------------------------------------------------------------------------------


def test_the_registry_is_the_folder() -> None:
    """Every file of the folder but the contract is a policy with a label and a text that says what it is for."""
    folder = Path(policies.__file__).parent
    assert NAMES == sorted(path.stem for path in folder.glob("*.py") if path.stem not in ("__init__", "policy"))
    for name in NAMES:
        policy = REGISTRY.get(name)
        assert issubclass(policy, Policy) and policy.label and policy.doc.endswith(".")
        assert policy.__module__ == importlib.import_module(f"{policies.__name__}.{name}").__name__


@pytest.mark.parametrize("name", NAMES)
@given(evidence=any_evidence(), seed=st.integers(0, 1000))
@settings(max_examples=150)
def test_a_plan_keeps_the_contract(name: str, evidence: Evidence, seed: int) -> None:
    """The wave is within its bounds and its shares are chances of live arms, in whatever state the experiment is."""
    assert broken_promises(REGISTRY.get(name)().plan(evidence, Prior(), random_of(seed)), evidence) == []


@pytest.mark.parametrize("name", NAMES)
@given(evidence=any_evidence())
@settings(max_examples=60)
def test_a_floor_keeps_live_arms_alive(name: str, evidence: Evidence) -> None:
    """A policy with a floor gives each live arm at least that much of a wave, but for the last wave of the finite list."""
    policy = REGISTRY.get(name)()
    floor = getattr(policy, "floor", 0.0)
    plan = policy.plan(evidence, Prior(), random_of(1))
    if floor and plan.recipients and (evidence.ahead or name != "finite_list"):
        assert (plan.shares[evidence.live] >= min(floor, 1 / evidence.live.sum()) * (1 - 1e-9)).all()


@pytest.mark.parametrize("name", NAMES)
@given(evidence=any_evidence(), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_a_plan_depends_on_its_arguments_alone(name: str, evidence: Evidence, seed: int) -> None:
    """The same arguments give the same plan, from one object or two and after other questions, and asking changes no argument."""
    arrays = ("live", "sent", "responses", "sent_at_s")
    copy = msgspec.structs.replace(evidence, **{field: getattr(evidence, field).copy() for field in arrays})
    policy, prior = REGISTRY.get(name)(), Prior()
    first = policy.plan(evidence, prior, random_of(seed))
    policy.plan(known([[5, 5], [9, 1]], [[1, 0], [2, 1]]), prior, random_of(77))
    for again in (policy.plan(evidence, prior, random_of(seed)), REGISTRY.get(name)().plan(copy, Prior(), random_of(seed))):
        assert again.recipients == first.recipients and (again.shares == first.shares).all()
    for field in arrays:
        assert (getattr(evidence, field) == getattr(copy, field)).all()


class Greedy(Policy, kw_only=True):
    """A policy that breaks the contract: it gives out whatever is left, each arm what it answered, stopped or not."""

    label: ClassVar[str] = "Greedy"

    def plan(self, evidence: Evidence, prior: Prior, random: Generator) -> Plan:
        came = evidence.responses.sum((0, 2)) + 0.5
        return Plan(recipients=evidence.left, shares=came / came.max())


def test_a_broken_contract_is_caught() -> None:
    """Control: a policy that looks at no bound fails the checks that every policy passes."""
    evidence = known([[10, 10]], [[1, 2]], wave_max=100, live=[True, False])
    assert broken_promises(Greedy().plan(evidence, Prior(), random_of(1)), evidence) == [
        "never more than are left or a wave takes", "shares are chances", "nothing to arms that are stopped",
    ]  # fmt: skip


# -- small and large experiments -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("left", [0, 1, 2])
@pytest.mark.parametrize("ahead", [0, 1, 96])
@pytest.mark.parametrize("sent", [np.zeros((0, 3), int), [[1, 0, 0]], [[400, 400, 400]]])
def test_a_last_recipient_goes(name: str, left: int, ahead: int, sent) -> None:
    """With nobody, one or two left the plan stays whole, and at the last moment they go."""
    evidence = known(sent, left=left, ahead=ahead)
    plan = REGISTRY.get(name)().plan(evidence, Prior(), random_of(1))
    assert broken_promises(plan, evidence) == []
    counts = divide(plan.recipients, plan.shares, random_of(2))
    assert counts.sum() == plan.recipients and (counts >= 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arms", [1, 2, arms_max])
def test_every_number_of_arms(name: str, arms: int) -> None:
    """One arm and as many as there may be get a whole plan, before and after there are answers."""
    for evidence in (known(np.zeros((0, arms), int)), known(np.full((3, arms), 50), np.full((3, arms), 1))):
        plan = REGISTRY.get(name)().plan(evidence, Prior(), random_of(1))
        assert broken_promises(plan, evidence) == []
        if arms == 1:
            assert plan.shares.tolist() == [1.0]


@pytest.mark.parametrize("name", NAMES)
def test_the_last_live_arm_gets_everything(name: str) -> None:
    """Where guards have stopped all but one, it gets each wave, even if it was the worst."""
    evidence = known(np.full((3, 4), 500), [[50, 1, 50, 50]] * 3, live=[False, True, False, False])
    assert REGISTRY.get(name)().plan(evidence, Prior(), random_of(1)).shares.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("name", NAMES)
def test_nobody_has_answered(name: str) -> None:
    """Without a response no live arm is nearly shut out while waves are ahead, but for the test cell, whose test then is over."""
    evidence = known(np.full((4, 3), 300))
    plan = REGISTRY.get(name)().plan(evidence, Prior(), random_of(1))
    assert broken_promises(plan, evidence) == []
    if name not in ("test_cell", "finite_list"):
        assert plan.shares.min() > 0.2


@pytest.mark.parametrize("name", NAMES)
def test_young_answers_are_no_lead(name: str) -> None:
    """A large wave sent ten seconds ago is not held against its arm: its clicks are still to come."""
    sent = np.array([[3000, 3000], [0, 20_000]])
    evidence = known(sent, [[60, 60], [0, 0]])
    evidence = msgspec.structs.replace(evidence, sent_at_s=np.array([0.0, evidence.now_s - 10.0]))
    plan = REGISTRY.get(name)().plan(evidence, Prior(), random_of(1))
    assert broken_promises(plan, evidence) == []
    if name in ("thompson", "top_two"):
        assert plan.shares == pytest.approx([0.5, 0.5], abs=0.1)


@pytest.mark.parametrize("name", ["finite_list", "thompson", "top_two"])
def test_a_bad_arm_loses_its_share(name: str) -> None:
    """An arm with a tenth of the others' clicks goes down to the floor; one that leads widely gets most at the end."""
    evidence = known(np.full((4, 3), 2000), [[40, 4, 40]] * 4)
    policy = REGISTRY.get(name)()
    assert policy.plan(evidence, Prior(), random_of(1)).shares[1] == pytest.approx(policy.floor, abs=0.005)
    clear = known(np.full((4, 3), 2000), [[80, 4, 30]] * 4, ahead=0)
    assert REGISTRY.get(name)().plan(clear, Prior(), random_of(1)).shares.argmax() == 0


# -- what each promises by itself ----------------------------------------------------------------------------------------


def test_a_fixed_split_is_fixed() -> None:
    """Weights are kept in their proportion among live arms, whatever the answers; weights that do not fit the arms are left aside."""
    lopsided = known(np.full((4, 3), 2000), [[400, 0, 0]] * 4)
    assert FixedSplit().plan(lopsided, Prior(), random_of(1)).shares == pytest.approx([1 / 3] * 3)
    assert FixedSplit(weights=[1, 1, 2]).plan(lopsided, Prior(), random_of(1)).shares == pytest.approx([0.25, 0.25, 0.5])
    stopped = msgspec.structs.replace(lopsided, live=np.array([True, True, False]))
    assert FixedSplit(weights=[1, 3, 2]).plan(stopped, Prior(), random_of(1)).shares == pytest.approx([0.25, 0.75, 0.0])
    assert FixedSplit(weights=[0, 0, 2]).plan(stopped, Prior(), random_of(1)).shares == pytest.approx([0.5, 0.5, 0.0])
    assert FixedSplit(weights=[1]).plan(lopsided, Prior(), random_of(1)).shares == pytest.approx([1 / 3] * 3)


def test_a_test_cell_waits_and_then_sends() -> None:
    """A fifth goes at once to all arms, nobody until four hours are over, then everybody else gets the arm with the best raw rate."""
    first = TestCell().plan(known(np.zeros((0, 2), int), now_s=0.0), Prior(), random_of(1))
    assert first.recipients == 200 and first.shares.tolist() == [0.5, 0.5]
    for hours, recipients in ((1.0, 0), (3.9, 0), (4.0, 800)):
        later = known([[100, 100]], [[3, 5]], left=800, now_s=hours * HOUR)
        plan = TestCell().plan(later, Prior(), random_of(1))
        assert plan.recipients == recipients and plan.shares.tolist() == [0.0, 1.0]


def test_the_finite_list_keeps_most_for_the_end() -> None:
    """It starts with a small part, goes on in small waves, and gives more than half of the list to the best arm at the last moment."""
    start = FiniteList().plan(known(np.zeros((0, 2), int), left=100_000, now_s=0.0), Prior(), random_of(1))
    assert 0.02 * 100_000 <= start.recipients <= 0.3 * 100_000 and start.shares.tolist() == [0.5, 0.5]
    late = known([[10_000, 10_000]], [[150, 200]], left=80_000, now_s=7.9 * HOUR, ahead=1)
    wave = FiniteList().plan(late, Prior(), random_of(1))
    assert wave.recipients < 0.4 * 80_000 and wave.shares.min() >= 0.001
    last = FiniteList().plan(msgspec.structs.replace(late, ahead=0), Prior(), random_of(1))
    assert last.recipients == 80_000 and last.shares.tolist() == [0.0, 1.0]


@given(st.integers(0, 10**6), st.integers(0, 100), st.integers(1, 10**5), st.floats(-1e6, 1e7))
def test_a_bounded_wave_leaves_what_can_go(left: int, ahead: int, wave_max: int, wanted: float) -> None:
    """A wave is as wanted where it may be; after it the rest fits into the waves ahead, unless the list never did."""
    evidence = known(np.zeros((0, 2), int), left=left, ahead=ahead, wave_max=wave_max)
    taken = bounded(evidence, wanted)
    assert 0 <= taken <= min(left, wave_max)
    assert left - taken <= wave_max * ahead or taken == min(left, wave_max)
    if ahead and left <= wave_max * ahead and 0 <= wanted <= min(left, wave_max):
        assert taken == round(wanted)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(0, 10**6), st.integers(0, 1 << 30))
def test_a_wave_is_divided_as_planned(weights: list[float], recipients: int, seed: int) -> None:
    """Each arm gets its share to within one recipient, all together get the wave, and who has no share gets nobody."""
    shares = with_floor(np.array([*weights, 1.0]) / (sum(weights) + 1.0), np.ones(len(weights) + 1, bool), 0.0)
    counts = divide(recipients, shares, random_of(seed))
    assert counts.sum() == recipients and (np.abs(counts - shares * recipients) < 1 + 1e-6).all()
    assert not counts[shares == 0].any()


# -- it earns ------------------------------------------------------------------------------------------------------------


class Deaf(FiniteList, kw_only=True):
    """The finite list, which is shown no responses."""

    def plan(self, evidence: Evidence, prior: Prior, random: Generator) -> Plan:
        return FiniteList().plan(msgspec.structs.replace(evidence, responses=np.zeros_like(evidence.responses)), prior, random)


def share_of_gap(policy: Policy, trouble: str = "none", campaigns: int = 36) -> float:
    """Return what a policy gains over an equal split, as a share of what the best arm alone would gain, on made-up campaigns."""
    gained = gap = 0.0
    for n in range(campaigns):
        random = random_of(20, n)
        rates = 0.03 * np.exp(0.3 * random.standard_normal(4))
        outcome = simulate(rates, 30_000, 8.0, policy, Prior(), None, trouble, random)
        gained, gap = gained + outcome.gained, gap + outcome.gap
    return gained / gap


def test_the_finite_list_earns() -> None:
    """Listening earns more than half of the gap between an equal split and the best arm, more than a test cell, and with all troubles
    still a good part."""
    earned = share_of_gap(FiniteList())
    assert earned > 0.65 and earned > share_of_gap(TestCell()) + 0.05
    assert share_of_gap(FiniteList(), "all") > 0.3


def test_who_does_not_listen_does_not_earn() -> None:
    """Control: an equal split gains nothing, and neither does the same policy when it is shown no responses."""
    assert share_of_gap(FixedSplit()) == pytest.approx(0.0, abs=0.01)
    assert abs(share_of_gap(Deaf())) < 0.25 < 0.65
