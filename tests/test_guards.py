"""Guards stop what is surely wrong and nothing else, however often one looks: guardrails of rates, and whether a split was kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import PCG64, Generator, SeedSequence

from midflight.decide.guardrails import Counts, Guardrails, above, alpha, trips
from midflight.decide.policies.policy import divide
from midflight.decide.sample_ratio import alarm, check

AT_CEILING = Guardrails(unsubscribe=0.01, complaint=0.002, bounce=0.05)
wave = 250  # messages of an arm between two looks
looks = 40


def random_of(*seed: int) -> Generator:
    return Generator(PCG64(SeedSequence(seed)))


def sends(times: list[float], random: Generator) -> list[list[Counts]]:
    """Return what each arm has had at each look, where arm k's rates are ``times[k]`` of the ceilings."""
    factor = np.array(times)
    shape = (looks, factor.size)
    bounced = random.binomial(wave, AT_CEILING.bounce * factor, shape)
    delivered = wave - bounced
    complained = random.binomial(delivered, AT_CEILING.complaint * factor)
    unsubscribed = random.binomial(delivered, AT_CEILING.unsubscribe * factor)
    sums = [column.cumsum(0).tolist() for column in (delivered, bounced, complained, unsubscribed)]
    return [[Counts(delivered=d, bounced=b, complained=c, unsubscribed=u) for d, b, c, u in zip(*row, strict=True)]
            for row in zip(*sums, strict=True)]  # fmt: skip


def first_stop(times: list[float], random: Generator) -> tuple[int, list] | None:
    """Return the first look at which something trips, and what."""
    for look, arms in enumerate(sends(times, random)):
        found = trips(arms, AT_CEILING)
        if found:
            return look, found
    return None


# -- guardrails ----------------------------------------------------------------------------------------------------------


def test_a_ceiling_of_zero_stops_at_the_first() -> None:
    """Where nothing may happen, one complaint among many messages stops, and none does not."""
    never = Guardrails(complaint=0.0)
    assert trips([Counts(delivered=1_000_000)], never) == []
    (found,) = trips([Counts(delivered=1_000_000, complained=1)], never)
    assert (found.arm, found.what, found.happened, found.of, found.evidence) == (-1, "complaint", 1, 1_000_000, math.inf)


def test_a_ceiling_of_one_never_stops() -> None:
    """Where everything may happen, nothing stops, not even when it always happens."""
    open_to_all = Guardrails(unsubscribe=1.0, complaint=1.0, bounce=1.0)
    everything = Counts(delivered=5000, bounced=5000, complained=5000, unsubscribed=5000)
    assert trips([everything, everything], open_to_all) == []
    assert trips([everything, everything], AT_CEILING) != []


def test_nothing_sent_stops_nothing() -> None:
    """No arms, empty arms and arms that were not sent yet trip nothing, whatever the ceilings."""
    for guardrails in (Guardrails(), Guardrails(unsubscribe=0.0, complaint=0.0, bounce=0.0)):
        assert trips([], guardrails) == trips([Counts()], guardrails) == trips([Counts(), Counts()], guardrails) == []


def test_false_stops_are_rare_while_everybody_looks() -> None:
    """At the ceilings exactly at most one campaign in a hundred is ever stopped, over all rates, arms and looks."""
    campaigns = 300
    stopped = sum(first_stop([1.0, 1.0], random_of(1, n)) is not None for n in range(campaigns))
    assert stopped <= alpha * campaigns


def test_a_plain_test_would_stop_falsely() -> None:
    """Control: the usual test at the same level, looked at as often, stops many times more campaigns at the ceiling."""
    campaigns = 300
    stopped = 0
    for n in range(campaigns):
        unsubscribed = random_of(2, n).binomial(wave, AT_CEILING.unsubscribe, looks).cumsum()
        sent = wave * np.arange(1, looks + 1)
        deviation = np.sqrt(sent * AT_CEILING.unsubscribe * (1 - AT_CEILING.unsubscribe))
        # 2.326 is the normal's 99 % point.
        stopped += bool(((unsubscribed - sent * AT_CEILING.unsubscribe) / deviation > 2.326).any())
    assert stopped > 3 * alpha * campaigns


def test_three_times_the_ceiling_stops_soon() -> None:
    """With every rate at three times its ceiling a campaign is stopped within some thousand messages; nobody runs through."""
    stops = [first_stop([3.0, 3.0], random_of(3, n)) for n in range(50)]
    assert all(stops)
    assert np.median([2 * wave * (look + 1) for look, _ in stops]) <= 1000
    alone = [above(round(0.03 * n), n, 0.01) >= 6 / alpha for n in (200, 1200)]
    assert alone == [False, True]


def test_one_bad_arm_is_named() -> None:
    """An arm at four times its ceilings among nine at a third of theirs trips by itself; the campaign as a whole does not."""
    stops = [first_stop([4.0] + 9 * [1 / 3], random_of(4, n)) for n in range(30)]
    assert all(stops)
    assert {trip.arm for _, found in stops for trip in found} == {0}


def test_many_arms_trip_together_first() -> None:
    """Where all of twenty arms are a little too bad, the campaign trips before enough is known of any arm; it comes first in the list."""
    arms = [Counts(delivered=500, unsubscribed=10) for _ in range(20)]
    assert [(trip.arm, trip.what) for trip in trips(arms, AT_CEILING)] == [(-1, "unsubscribe")]
    worse = trips([Counts(delivered=500, unsubscribed=60) for _ in range(20)], AT_CEILING)
    assert [trip.arm for trip in worse] == [-1, *range(20)]


def test_one_arm_is_the_campaign() -> None:
    """A campaign of one arm is judged once."""
    assert [trip.arm for trip in trips([Counts(delivered=1000, bounced=900)], AT_CEILING)] == [-1]


def test_bounces_are_of_what_was_tried() -> None:
    """A bounced message was not delivered; a send of which all bounced has a rate of one and stops."""
    (found,) = trips([Counts(bounced=40)], AT_CEILING)
    assert (found.what, found.happened, found.of) == ("bounce", 40, 40)
    assert trips([Counts(delivered=40, bounced=2)], AT_CEILING) == []


@given(st.integers(1, 60), st.floats(0.001, 0.999), st.floats(0.0, 1.0))
def test_evidence_is_at_most_one_on_average(of: int, ceiling: float, part: float) -> None:
    """At any rate up to the ceiling the evidence's expectation is at most 1: what makes it safe to look at any time."""
    rate = ceiling * part
    chance = [math.comb(of, n) * rate**n * (1 - rate) ** (of - n) for n in range(of + 1)]
    assert math.fsum(p * above(n, of, ceiling) for n, p in enumerate(chance)) <= 1 + 1e-9


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0.0, 1.0))
def test_more_of_the_bad_is_more_evidence(happened: int, more: int, ceiling: float) -> None:
    """Evidence is never negative, and never falls when more of the same messages went wrong."""
    of = 1000
    assert 0 <= above(happened, of, ceiling) <= above(happened + more, of, ceiling)


@pytest.mark.parametrize("ceiling", [5e-324, 1e-300, 1e-9, 1 - 1e-9, 1 - 1e-15, math.nextafter(1.0, 0.0)])
def test_ceilings_at_the_edges_are_no_trouble(ceiling: float) -> None:
    """The smallest and the largest ceilings that can be written give finite evidence."""
    assert all(0 <= above(happened, 1000, ceiling) < math.inf for happened in (0, 1, 1000))


# -- whether a split was kept --------------------------------------------------------------------------------------------


def adaptive_plan(waves: int, arms: int, random: Generator) -> np.ndarray:
    """Return shares that go from equal to nearly all for one arm, [W, K]."""
    weight = np.linspace(0.0, 0.9, waves)[:, None]
    return (1 - weight) / arms + weight * (np.arange(arms) == random.integers(arms))


def sent_as(shares: np.ndarray, recipients: int, random: Generator) -> np.ndarray:
    return np.stack([random.multinomial(recipients, row) for row in shares])


def ever_broken(sent: np.ndarray, planned: np.ndarray) -> bool:
    """Say whether anybody who looked after each wave saw an alarm."""
    return any(check(sent[:n], planned[:n]).broken for n in range(1, len(sent) + 1))


def test_a_right_split_raises_no_alarm() -> None:
    """Over some hundred campaigns of twenty waves with changing shares, looked at after each, nothing is called broken."""
    for n in range(150):
        random = random_of(5, n)
        planned = adaptive_plan(20, int(random.integers(2, 6)), random)
        assert not ever_broken(sent_as(planned, int(random.integers(5, 3000)), random), planned)


def test_rounded_shares_raise_no_alarm() -> None:
    """What the conductor sends, shares rounded to whole recipients, is no broken split, down to waves of a single recipient."""
    for recipients in (0, 1, 2, 7, 100):
        random = random_of(6, recipients)
        planned = adaptive_plan(40, 5, random)
        sent = np.stack([divide(recipients, row, random) for row in planned])
        assert not ever_broken(sent, planned)


def test_five_points_off_raises_an_alarm() -> None:
    """Where one arm gets 55 % instead of 50 % of each wave, every campaign of some ten thousand recipients finds out."""
    planned = np.full((20, 2), 0.5)
    assert all(ever_broken(sent_as(planned + [0.05, -0.05], 500, random_of(7, n)), planned) for n in range(30))


def test_the_wave_and_arm_that_are_off_are_named() -> None:
    """One broken wave among right ones is found, with the arm that is furthest from its share."""
    planned = np.full((10, 4), 0.25)
    sent = sent_as(planned, 1000, random_of(8))
    sent[6] = [250, 250, 100, 400]
    found = check(sent, planned)
    assert found.broken and found.evidence >= alarm and found.wave == 6 and found.arm in (2, 3)


def test_comparing_sums_would_miss_changing_shares() -> None:
    """Control: the sums over waves fit the mean of the shares although each wave is off, so waves have to be tested one by one."""
    planned = np.array([[0.8, 0.2], [0.2, 0.8]])
    sent = np.array([[500, 500], [500, 500]])
    assert check(sent, planned).broken
    assert not check(sent.sum(0)[None], planned.mean(0)[None]).broken


def test_somebody_sent_what_nobody_should_get() -> None:
    """One recipient of an arm whose share was 0 is an alarm at once, and names that arm."""
    planned = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    good = np.array([[5, 5, 0], [10, 0, 0]])
    assert not check(good, planned).broken
    # In a large wave the other arms' chance deviations are larger than one recipient.
    for first in ([5, 4, 1], [5100, 4899, 1]):
        found = check(np.array([first, good[1]]), planned)
        assert found.broken and math.isfinite(found.evidence)
        assert (found.wave, found.arm) == (0, 2)


@pytest.mark.parametrize("sent", [np.zeros((0, 3), np.int64), np.zeros((4, 3), np.int64)])
def test_nobody_sent_is_no_evidence(sent: np.ndarray) -> None:
    """Without a recipient the evidence is 1."""
    found = check(sent, np.full(sent.shape, 1 / 3))
    assert found.evidence == pytest.approx(1.0) and not found.broken and found.wave == found.arm == -1


@given(st.integers(1, 99), st.integers(1, 60))
def test_evidence_against_a_split_is_bounded_on_average(percent: int, recipients: int) -> None:
    """For two arms the expectation of the evidence under the plan is 1, whatever the plan: the chance of a false alarm is bounded."""
    shares = np.array([percent, 100 - percent]) / 100
    planned = shares[None]
    total = 0.0
    for n in range(recipients + 1):
        chance = math.comb(recipients, n) * shares[0] ** n * shares[1] ** (recipients - n)
        total += chance * check(np.array([[n, recipients - n]]), planned).evidence
    assert total == pytest.approx(1.0)
