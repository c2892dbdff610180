"""What is believed while most answers are still to come: the curve of delays, the rates, and who is merely faster."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import PCG64, Generator, SeedSequence

from midflight.decide import evidence as evidence_module
from midflight.decide.delays import (
    AGES_S,
    BUCKETS,
    SPEEDS,
    learn_curve,
    log_mean_age,
    log_spread,
    own_clicks,
    published,
    share_by,
)
from midflight.decide.evidence import Belief, Evidence, Prior, believe
from midflight.stream.measures import DELAY_EDGES_S

HOUR = 3600.0
sigma = 2.0


def random_of(*seed: int) -> Generator:
    return Generator(PCG64(SeedSequence(seed)))


def sent_out(sent, rates, at_s, now_s: float, random: Generator, medians_s=3 * HOUR) -> Evidence:
    """Return what is known at ``now_s`` of waves ``sent`` [W, K] at ``at_s`` [W], with lognormal delays of ``medians_s`` [K]."""
    sent, at_s = np.asarray(sent, np.int64), np.asarray(at_s, float)
    rates, medians_s = np.broadcast_to(rates, sent.shape[1]), np.broadcast_to(medians_s, sent.shape[1])
    responses = np.zeros((*sent.shape, BUCKETS), np.int64)
    for w, k in np.ndindex(sent.shape):
        delay = medians_s[k] * np.exp(sigma * random.standard_normal(random.binomial(sent[w, k], rates[k])))
        np.add.at(responses[w, k], np.searchsorted(DELAY_EDGES_S, delay[at_s[w] + delay <= now_s], side="right"), 1)
    return Evidence(
        now_s=now_s, end_s=max(now_s, 8 * HOUR), ahead=10, left=10_000, live=np.ones(sent.shape[1], bool), sent_at_s=at_s, sent=sent,
        responses=responses,
    )  # fmt: skip


def nothing(waves: int, arms: int, sent: int = 0, now_s: float = HOUR) -> Evidence:
    """Return an experiment to which nobody has answered."""
    return sent_out(np.full((waves, arms), sent), 0.0, np.linspace(0, now_s, waves, endpoint=False), now_s, random_of(0))


def lognormal_curve(median_s: float) -> np.ndarray:
    """Return the share of responses by each of AGES_S."""
    inner = [0.5 * math.erfc(-math.log(age / median_s) / sigma / math.sqrt(2)) for age in AGES_S[1:-1]]
    return np.array([0.0, *inner, 1.0])


# -- the curve of delays -------------------------------------------------------------------------------------------------


def test_the_published_curve_is_a_curve() -> None:
    """Published shares add up to one, none is negative, and half of all clicks have come after three hours."""
    shares = published()
    assert shares.shape == (BUCKETS,) and (shares >= 0).all() and shares.sum() == pytest.approx(1.0)
    curve = np.append(0.0, shares.cumsum())
    assert share_by(3 * HOUR, curve) == pytest.approx(0.5, abs=0.01)
    assert share_by(7 * 24 * HOUR, curve) == pytest.approx(0.981, abs=0.001)


@given(st.floats(0.0, 1e8), st.floats(0.0, 1e8))
def test_a_share_grows_with_age(one: float, other: float) -> None:
    """The share that has come by an age lies between 0 and 1 and never falls as time passes, a week and years included."""
    curve = np.append(0.0, published().cumsum())
    younger, older = sorted((one, other))
    assert 0.0 <= share_by(younger, curve) <= share_by(older, curve) + 1e-12 <= 1.0 + 2e-12


@pytest.mark.parametrize("median_hours", [0.5, 3.0, 6.0])
def test_a_curve_is_learned_from_young_waves(median_hours: float) -> None:
    """Within the ages that were seen, the true curve is found although most waves were too young to have had their responses.

    Control: the plain shares of the responses so far are off by several times as much, as young waves have only early ones.
    """
    at_s = np.arange(0.0, 8 * HOUR, 600.0)
    known = sent_out(np.full((at_s.size, 1), 4000), 0.05, at_s, 8 * HOUR, random_of(1), median_hours * HOUR)
    counts = known.responses.sum(1)
    learned = learn_curve(counts, known.age_s(), published(), own_clicks)
    plain = np.append(0.0, counts.sum(0).cumsum() / counts.sum())
    true = lognormal_curve(median_hours * HOUR)
    last = int(np.flatnonzero(AGES_S == 8 * HOUR)[0])
    off, plain_off = (np.abs(curve / curve[last] - true / true[last])[: last + 1].max() for curve in (learned, plain))
    assert off < 0.035 < 2 * 0.035 < plain_off


def test_complete_responses_give_their_own_shares() -> None:
    """Once waves are older than every age, the learned curve is the shares of the responses, but for what the published one counts."""
    known = sent_out([[200_000]], 0.1, [0.0], 60 * 24 * HOUR, random_of(2), HOUR)
    counts = known.responses.sum(1)
    old = np.array([math.inf])
    learned = learn_curve(counts, old, published(), own_clicks)
    assert np.abs(learned[1:] - counts[0].cumsum() / counts.sum()).max() < 2 * own_clicks / counts.sum()


def test_without_responses_the_curve_is_the_prior() -> None:
    """Nobody's response changes nothing: the curve is the published one."""
    empty = np.zeros((3, BUCKETS), np.int64)
    learned = learn_curve(empty, np.array([10.0, 5.0, 0.0]), published(), own_clicks)
    assert learned[1:] == pytest.approx(published().cumsum())
    assert learn_curve(empty[:0], np.zeros(0), published(), own_clicks)[1:] == pytest.approx(published().cumsum())


@given(st.lists(st.lists(st.integers(0, 1000), min_size=BUCKETS, max_size=BUCKETS), max_size=4), st.floats(0, 1e7))
def test_a_learned_curve_is_a_curve(rows: list[list[int]], now_s: float) -> None:
    """Whatever the counts, the learned curve starts at 0, ends at 1 and never falls; its spread and mean are finite."""
    counts = np.array(rows, np.int64).reshape(-1, BUCKETS)
    curve = learn_curve(counts, np.full(len(counts), now_s), published(), own_clicks)
    assert curve[0] == 0 and curve[-1] == 1 and (np.diff(curve) >= -1e-12).all()
    assert math.isfinite(log_spread(curve)) and math.isfinite(log_mean_age(curve))


# -- the belief ----------------------------------------------------------------------------------------------------------


def finite(belief: Belief) -> bool:
    columns = (belief.shape, belief.rate, belief.seen, belief.coming, belief.curve, belief.mean)
    return all(np.isfinite(column).all() for column in columns) and bool((belief.shape > 0).all() and (belief.rate > 0).all())


@pytest.mark.parametrize(("waves", "arms", "sent", "now_s"), [
    (0, 1, 0, 0.0), (0, 5, 0, 0.0), (1, 1, 1, 1.0), (3, 2, 0, HOUR), (3, 100, 1, HOUR), (2, 3, 10**9, HOUR), (97, 2, 1000, 8 * HOUR),
])  # fmt: skip
def test_zeros_are_no_trouble(waves: int, arms: int, sent: int, now_s: float) -> None:
    """Without waves, sends or responses, at the first second and with huge numbers every belief is finite, and equal between arms."""
    belief = believe(nothing(waves, arms, sent, now_s), Prior())
    assert finite(belief) and np.ptp(belief.mean) <= 1e-12
    if sent * waves < 100:
        assert belief.mean == pytest.approx(0.01, rel=0.5)
    elif sent > 10**6:
        assert (belief.mean < 1e-4).all()


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(0, BUCKETS - 1)), min_size=1, max_size=5),
    st.floats(0.01, 1e6),
    st.floats(0.0001, 0.9),
)  # fmt: skip
def test_any_counts_give_a_belief(waves: list[tuple[int, int, int]], now_s: float, rate: float) -> None:
    """Everybody answered, nobody, only one arm was sent, ages that cannot be: the belief stays finite and positive."""
    known = nothing(len(waves), 3, 0, now_s)
    for w, (sent, came, bucket) in enumerate(waves):
        known.sent[w, w % 2] = sent
        known.responses[w, w % 2, bucket] = min(came, sent)
    assert finite(believe(known, Prior(rate=rate)))


def test_few_answers_move_little() -> None:
    """After fifty messages each, one arm's lead of a factor two in clicks is shrunk to a small part of it."""
    known = nothing(1, 2, 50)
    known.responses[0, 0, 18], known.responses[0, 1, 18] = 2, 1
    mean = believe(known, Prior(rate=0.03)).mean
    assert 1.0 < mean[0] / mean[1] < 1.25


def test_many_answers_are_the_rate() -> None:
    """With half a million messages the belief is the true rate within some percent, with two thirds of the responses still to come."""
    rates = np.array([0.02, 0.03, 0.025])
    known = sent_out(np.full((1, 3), 500_000), rates, [0.0], 1.5 * HOUR, random_of(3))
    came = known.responses.sum((0, 2)) / known.sent[0]
    assert (came < 0.45 * rates).all()
    belief = believe(known, Prior())
    assert belief.mean == pytest.approx(rates, rel=0.06)
    assert (np.sqrt(belief.shape) / belief.rate < 0.03 * rates).all()


def test_a_belief_gets_surer() -> None:
    """The deviation of the belief relative to its mean falls as messages are added."""
    deviations = []
    for sent in (100, 1000, 10_000, 100_000):
        belief = believe(sent_out([[sent, sent]], 0.03, [0.0], 4 * HOUR, random_of(4)), Prior())
        deviations.append(float(1 / np.sqrt(belief.shape).mean()))
    assert deviations == sorted(deviations, reverse=True) and deviations[-1] < 0.05


def test_the_spread_is_learned() -> None:
    """Among arms that plainly differ, an arm with little sent to it is pulled less to the others than among arms that are alike."""
    pulls = []
    for others in ([0.010, 0.020, 0.040, 0.070], [0.033, 0.033, 0.033, 0.033]):
        known = nothing(1, 5, 0, 100 * 24 * HOUR)
        known.sent[0] = [200, *[50_000] * 4]
        known.responses[0, :, 20] = [20, *(np.array(others) * 50_000).astype(int)]
        mean = believe(known, Prior()).mean
        pulls.append((0.1 - mean[0]) / (0.1 - mean[1:].mean()))
    assert pulls[0] < 0.6 * pulls[1] and pulls[1] > 0.5


def test_what_comes_later_is_counted() -> None:
    """An arm that was sent just now and an old one with the same true rate are believed alike, though one has a tenth of the clicks."""
    sent = [[20_000, 0], [0, 20_000]]
    means = np.array([believe(sent_out(sent, 0.03, [0.0, 5.5 * HOUR], 6 * HOUR, random_of(5, n)), Prior()).mean for n in range(20)])
    known = sent_out(sent, 0.03, [0.0, 5.5 * HOUR], 6 * HOUR, random_of(5, 0))
    assert known.responses[1].sum() < 0.35 * known.responses[0].sum()
    assert np.log(means[:, 0] / means[:, 1]).mean() == pytest.approx(0.0, abs=0.12)


def test_exposure_comes_in_the_hours_left() -> None:
    """Exposure is at most what was sent; what is still coming shrinks to nothing at the end."""
    for now_s in (HOUR, 4 * HOUR, 8 * HOUR):
        known = sent_out([[1000, 2000]], 0.03, [0.0], now_s, random_of(6))
        belief = believe(known, Prior())
        assert (belief.seen + belief.coming <= known.sent[0] * (1 + 1e-9)).all() and (belief.coming >= 0).all()
    assert belief.coming == pytest.approx([0.0, 0.0])


# -- hours that differ ---------------------------------------------------------------------------------------------------


def swung(sent, rates, now_s: float, end_s: float, swing: float, period_s: float, random: Generator) -> Evidence:
    """Return waves ``sent`` [W, K], evenly over the time up to ``now_s``; people of different hours respond more or less readily."""
    sent = np.asarray(sent, np.int64)
    at_s = np.linspace(0.0, now_s, sent.shape[0], endpoint=False)
    levels = 1.0 + swing * np.sin(2 * np.pi * at_s / period_s + 0.5)
    rows = [sent_out(sent[w : w + 1], np.asarray(rates) * levels[w], at_s[w : w + 1], now_s, random) for w in range(at_s.size)]
    together = sent_out(sent, 0.0, at_s, now_s, random)
    return msgspec.structs.replace(together, end_s=end_s, responses=np.concatenate([row.responses for row in rows]))


# Both arms begin alike; then one has the better hours and the other the worse ones.
TURNS = np.array([[2500, 2500]] * 6 + [[600, 100]] * 18 + [[100, 600]] * 24)


def lead_by_hours(hours: float, period_hours: float, swing: float = 0.5) -> np.ndarray:
    """Return the believed log ratio of two arms of one rate of which the first had the better hours, of some campaigns."""
    leads = []
    for n in range(24):
        known = swung(TURNS, [0.03, 0.03], 0.95 * hours * HOUR, hours * HOUR, swing, period_hours * HOUR, random_of(10, int(hours), n))
        mean = believe(known, Prior()).mean
        leads.append(math.log(mean[0] / mean[1]))
    return np.array(leads)


@pytest.mark.parametrize(("hours", "period_hours"), [(8.0, 8.0), (24.0, 24.0)])
def test_an_arm_of_good_hours_is_not_believed_better(hours: float, period_hours: float) -> None:
    """Where the rate swings within the campaign, an arm that was sent in the good hours and one that was not are believed alike."""
    leads = lead_by_hours(hours, period_hours)
    assert abs(leads.mean()) < 0.04


def test_told_that_hours_are_alike_it_believes_the_lucky(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: with the same level for all waves the arm of the good hours is believed to be clearly better."""
    monkeypatch.setattr(evidence_module, "_believe", evidence_module._believe.py_func)
    monkeypatch.setattr(evidence_module, "_learn_levels", lambda sent, *_: np.ones(sent.shape[0]))
    assert lead_by_hours(8.0, 8.0).mean() > 0.12


def test_hours_that_do_not_differ_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a swing the beliefs are nearly those of somebody who knows that there is none."""
    leads = lead_by_hours(8.0, 8.0, 0.0)
    monkeypatch.setattr(evidence_module, "_believe", evidence_module._believe.py_func)
    monkeypatch.setattr(evidence_module, "_learn_levels", lambda sent, *_: np.ones(sent.shape[0]))
    assert np.abs(leads - lead_by_hours(8.0, 8.0, 0.0)).mean() < 0.02


# -- who is merely faster ------------------------------------------------------------------------------------------------


def lead_of_the_faster(hours: float, recipients: int, medians_s: list[float], seed: int) -> np.ndarray:
    """Return the believed log ratio of the first arm, which is the fastest, to the last, the slowest, of some campaigns."""
    leads = []
    for n in range(24):
        sent = np.full((6, len(medians_s)), recipients // 6)
        known = sent_out(sent, 0.03, np.arange(6) * hours * 300, hours * HOUR, random_of(7, seed, n), np.array(medians_s))
        mean = believe(known, Prior()).mean
        leads.append(math.log(mean[0] / mean[-1]))
    return np.array(leads)


@pytest.mark.parametrize("hours", [2.0, 4.0, 8.0])
def test_a_faster_arm_is_not_believed_better(hours: float) -> None:
    """Arms with one rate, whose people take 1.5 and 6 hours, are believed alike once there are responses enough; neither is favoured."""
    leads = lead_of_the_faster(hours, 60_000, [1.5 * HOUR, 6 * HOUR], int(hours))
    assert abs(leads.mean()) < 0.1


def test_speeds_of_several_arms() -> None:
    """Four arms of one rate and three speeds are believed alike too."""
    leads = lead_of_the_faster(4.0, 60_000, [1.5 * HOUR, 3 * HOUR, 3 * HOUR, 6 * HOUR], 9)
    assert abs(leads.mean()) < 0.1


def test_told_that_speeds_are_equal_it_believes_the_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where every arm is taken to be equally fast, the fast one is believed to be better by half, however much is known."""
    # Compiled code has the constants in it; the same function as Python reads the changed one.
    monkeypatch.setattr(evidence_module, "_believe", evidence_module._believe.py_func)
    monkeypatch.setattr(evidence_module, "SPEED_PRIOR", np.where(np.arange(SPEEDS.size) == SPEEDS.size // 2, 0.0, -1e9))
    leads = lead_of_the_faster(4.0, 60_000, [1.5 * HOUR, 6 * HOUR], 4)
    assert leads.min() > 0.3


def test_a_faster_and_better_arm_is_believed_better() -> None:
    """Speed does not excuse everything: an arm that is twice as good is believed so, whether it is the faster or the slower one."""
    for medians in ([1.5 * HOUR, 6 * HOUR], [6 * HOUR, 1.5 * HOUR]):
        known = sent_out(np.full((6, 2), 10_000), [0.06, 0.03], np.arange(6) * 1200.0, 6 * HOUR, random_of(8), np.array(medians))
        mean = believe(known, Prior()).mean
        assert 1.6 < mean[0] / mean[1] < 2.5


def test_a_belief_depends_on_its_arguments_alone() -> None:
    """The same evidence gives the same belief, and is not changed by asking."""
    known = sent_out(np.full((6, 3), 1000), 0.03, np.arange(6) * 1200.0, 6 * HOUR, random_of(9))
    sent, responses = known.sent.copy(), known.responses.copy()
    one, other = believe(known, Prior()), believe(known, Prior())
    assert (one.shape == other.shape).all() and (one.rate == other.rate).all()
    assert (known.sent == sent).all() and (known.responses == responses).all()
