"""A metric is right, says how sure it is, and what is called unusual is."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.decide.unusual import (
    Campaign,
    Group,
    alarms_a_day,
    binomial_tail,
    find,
    looks_a_day,
    tail,
    threshold,
)
from midflight.metrics import REGISTRY, Sums
from midflight.metrics.metric import DIRECTIONS, UNITS, curve, markdown, quantile, share, wilson, within
from midflight.stream.measures import DELAY_EDGES_S, DELAYS, FRESHNESS_EDGES_MS, MEASURES

WHOLE = {
    "queued": 1000, "sent": 990, "delivered": 950, "bounced_hard": 10, "bounced_soft": 20, "bounced_block": 20, "opened": 500,
    "opened_human": 300, "opens": 900, "opens_human": 450, "clicked": 100, "clicked_human": 40, "clicks": 150, "clicks_human": 60,
    "complained": 2, "unsubscribed": 5, "converted": 8, "revenue_micros": 190_000_000,
}  # fmt: skip


@pytest.mark.parametrize("name", REGISTRY.names())
def test_a_metric_keeps_the_folders_promises(name: str) -> None:
    """Every metric has a label, a unit, a direction, words, and reads only measures that exist."""
    metric = REGISTRY.get(name)
    assert metric.label
    assert metric.doc.endswith(".")
    assert metric.unit in UNITS
    assert metric.direction in DIRECTIONS
    assert metric.measures() <= set(MEASURES)
    assert not metric.delay or metric.delay in DELAYS
    nothing = metric.compute(Sums())
    assert nothing.value in (None, 0), "nothing happened, so there is nothing to tell"
    assert nothing.low is None


@pytest.mark.parametrize(
    ("name", "people", "everybody"),
    [
        ("sent", 990, 990),
        ("delivered", 950, 950),
        ("attempted", 1000, 1000),
        ("open_rate", 300 / 950, 500 / 950),
        ("click_rate", 40 / 950, 100 / 950),
        ("click_to_open", 40 / 300, 100 / 500),
        ("conversion_rate", 8 / 950, 8 / 950),
        ("click_to_conversion", 6 / 40, 6 / 40),
        ("bounce_rate", 50 / 1000, 50 / 1000),
        ("hard_bounce_rate", 10 / 1000, 10 / 1000),
        ("soft_bounce_rate", 20 / 1000, 20 / 1000),
        ("block_bounce_rate", 20 / 1000, 20 / 1000),
        ("complaint_rate", 2 / 950, 2 / 950),
        ("unsubscribe_rate", 5 / 950, 5 / 950),
        ("revenue_per_thousand", 200.0, 200.0),
        ("machine_share", (900 - 450 + 150 - 60) / 1050, (900 - 450 + 150 - 60) / 1050),
        ("time_to_open", 15.0, 15.0),
        ("time_to_click", 1800.0 + 900 / 2, 1800.0 + 900 / 2),
        ("time_to_conversion", 0.5, 0.5),
    ],
)
def test_a_metric_is_the_arithmetic_it_says(name: str, people: float, everybody: float) -> None:
    """Each metric gives the hand-computed value, with machines and without."""
    delays = {kind: [0] * (len(DELAY_EDGES_S) + 1) for kind in DELAYS}
    delays["open"][DELAY_EDGES_S.index(15)] = 4
    delays["open"][DELAY_EDGES_S.index(20)] = 4
    delays["click"][DELAY_EDGES_S.index(2700)] = 7
    delays["conversion"][0] = 6
    for machines, expected in ((False, people), (True, everybody)):
        value = REGISTRY.get(name).compute(Sums(measures=WHOLE, delays=delays, machines=machines)).value
        assert value == pytest.approx(expected), f"machines={machines}"


def test_the_list_above_has_every_metric() -> None:
    """A new metric is not without its arithmetic in the test before."""
    told = {mark.args[1][n][0] for mark in test_a_metric_is_the_arithmetic_it_says.pytestmark for n in range(len(mark.args[1]))}
    assert told == set(REGISTRY.names())


@pytest.mark.parametrize(
    ("part", "whole", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_the_published_interval(part: int, whole: int, low: float, high: float) -> None:
    """The interval is that of a published table (Newcombe 1998, table I, method 3)."""
    assert wilson(part, whole) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 10**9), st.data())
def test_an_interval_holds_its_rate(whole: int, data: st.DataObject) -> None:
    """The interval lies between 0 and 1 and has the rate inside, whatever the counts."""
    part = data.draw(st.integers(0, whole))
    value = share(part, whole)
    assert 0 <= value.low <= value.value <= value.high <= 1


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """The 95 % interval holds a rare rate in 93 to 98 of 100 draws; the control, the usual normal interval, does not."""
    rng = random.Random(11)
    n, p = 400, 0.01
    draws = [sum(rng.random() < p for _ in range(n)) for _ in range(2000)]
    held = sum(low <= p <= high for low, high in (wilson(x, n) for x in draws)) / len(draws)
    normal = [(x / n, 1.96 * (x / n * (1 - x / n) / n) ** 0.5) for x in draws]
    held_normally = sum(abs(rate - p) <= half for rate, half in normal) / len(draws)
    assert 0.93 <= held <= 0.98
    assert held_normally < 0.93, "the control has to fail, or this test cannot tell good from bad"


def test_more_clicks_than_opens_is_a_rate_without_an_interval() -> None:
    """In a short window the part may exceed the whole: the rate is told, an interval would be nonsense."""
    assert share(12, 10).value == 1.2
    assert share(12, 10).low is None


@given(st.lists(st.floats(0.01, 600_000), min_size=1, max_size=200), st.sampled_from([0.5, 0.9]))
def test_a_quantile_is_right_to_the_bucket(delays: list[float], q: float) -> None:
    """The quantile from buckets lies in the bucket of the exact one."""
    buckets = [0] * (len(DELAY_EDGES_S) + 1)
    for seconds in delays:
        buckets[sum(seconds >= edge for edge in DELAY_EDGES_S)] += 1
    rank = max(1, -(-len(delays) * q // 1))
    exact = sorted(delays)[int(rank) - 1]
    bucket = sum(exact >= edge for edge in DELAY_EDGES_S)
    found = quantile(buckets, q)
    assert (DELAY_EDGES_S[bucket - 1] if bucket else 0) <= found <= DELAY_EDGES_S[min(bucket, len(DELAY_EDGES_S) - 1)]
    points = curve(buckets)
    assert [s for _, s in points] == sorted(s for _, s in points)
    assert points[-1][1] == pytest.approx(1 - buckets[-1] / len(delays))


def test_a_quantile_is_told_without_the_dust_of_binary_fractions() -> None:
    """A fraction of a bucket that has no exact binary form is rounded to a thousandth."""
    buckets = [0] * (len(FRESHNESS_EDGES_MS) + 1)
    buckets[0], buckets[FRESHNESS_EDGES_MS.index(300)] = 10, 1
    assert 200 + 100 * (0.99 * 11 - 10) == 289.00000000000006, "the control: this is what comes out unrounded"
    assert str(quantile(buckets, 0.99, FRESHNESS_EDGES_MS)) == "289.0"


def test_a_conversion_counts_within_its_time_only() -> None:
    """`within` takes the buckets that surely ended before, no more."""
    buckets = [0] * (len(DELAY_EDGES_S) + 1)
    buckets[DELAY_EDGES_S.index(1800)] = 3  # 20 to 30 minutes
    buckets[DELAY_EDGES_S.index(2700)] = 2  # 30 to 45 minutes
    assert within(buckets, 1800) == 3
    assert within(buckets, 1799) == 0
    sums = Sums(measures={"clicked_human": 10}, delays={"conversion": buckets}, within_s=1800)
    assert REGISTRY.get("click_to_conversion").compute(sums).value == 0.3


def test_the_reference_page_is_as_the_code_says(project: Path) -> None:
    """docs/metrics.md is what the metrics would write now."""
    assert (project / "docs" / "metrics.md").read_text() == markdown(), "`midflight docs` writes it again"


# -- unusual -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.floats(0.2, 50), st.floats(0.2, 200))
def test_the_tail_is_the_sum_of_the_exact_probabilities(n: int, a: float, b: float) -> None:
    """P(X >= x) goes down from 1, and neighbours differ by a probability computed in another way."""
    from math import comb, exp, lgamma

    def beta(p: float, q: float) -> float:
        return lgamma(p) + lgamma(q) - lgamma(p + q)

    exact = [comb(n, k) * exp(beta(k + a, n - k + b) - beta(a, b)) for k in range(n + 1)]
    for x in range(n + 1):
        assert tail(x, n, a, b) == pytest.approx(sum(exact[x:]), rel=1e-6, abs=1e-9)


def test_the_binomial_tail_is_the_textbooks() -> None:
    """P(X >= 8) for ten throws of a coin is 56/1024; a count at or below the mean is no finding."""
    assert binomial_tail(8, 10, 0.5) == pytest.approx(56 / 1024)
    assert binomial_tail(5, 10, 0.5) == 1.0


def steady(rng: random.Random, groups: int = 8, spread: float = 80.0) -> Campaign:
    """A campaign in which nothing happens: every provider has its own usual rate, and days differ more than chance says."""
    providers = []
    for g in range(groups):
        rate = rng.betavariate(spread * 0.015, spread * 0.985)
        before, now = rng.randrange(50, 2000), rng.randrange(5, 300)
        today = rng.betavariate(400 * rate + 0.01, 400 * (1 - rate) + 0.01)
        providers.append(
            Group(
                name=f"p{g}",
                answered=now,
                bounced=sum(rng.random() < today for _ in range(now)),
                answered_before=before,
                bounced_before=sum(rng.random() < rate for _ in range(before)),
            )
        )
    return Campaign(name="quiet", providers=tuple(providers))


def test_nothing_unusual_is_said_of_ordinary_days() -> None:
    """In 600 looks at campaigns whose providers only vary, at most one alarm comes; the control, "twice the usual", cries often."""
    rng = random.Random(5)
    looks = [steady(rng) for _ in range(600)]
    alarms = sum(bool(find([campaign])) for campaign in looks)

    def twice(group: Group) -> bool:
        return group.bounced / group.answered > 2 * max(0.005, group.bounced_before / group.answered_before)

    cries = sum(any(twice(g) for g in campaign.providers) for campaign in looks)
    assert alarms <= 1, f"{alarms} false alarms in {len(looks)} looks"
    assert cries > 100, "the control has to cry, or these days were too quiet to prove anything"


def test_a_provider_that_begins_to_bounce_is_named() -> None:
    """A jump from 1.5 % to 12 % at one provider is found, told in words, and only that provider is named."""
    providers = tuple(
        Group(name=name, answered=200, bounced=24 if name == "gmx" else 3, answered_before=1500, bounced_before=22)
        for name in ("gmail", "gmx", "yahoo")
    )
    found = find([Campaign(name="Spring", providers=providers)])
    assert [(f.kind, f.severity, f.subject) for f in found] == [("bounces", "serious", "gmx")]
    assert found[0].text == "gmx bounces 12.0% of \N{LEFT DOUBLE QUOTATION MARK}Spring\N{RIGHT DOUBLE QUOTATION MARK}, usually 1.5%."
    assert "24 of 200" in found[0].why


def test_a_small_provider_is_not_judged_by_three_messages() -> None:
    """Two bounces of three messages say nothing yet."""
    providers = (
        Group(name="tiny", answered=3, bounced=2),
        Group(name="gmail", answered=500, bounced=8, answered_before=5000, bounced_before=75),
    )
    assert find([Campaign(name="Spring", providers=providers)]) == []


def test_complaints_above_the_ceiling_are_serious() -> None:
    """Surely above 0.3 % is serious, surely above 0.1 % a warning, three of a thousand is not sure."""
    assert [f.severity for f in find([Campaign(name="c", delivered=20_000, complained=140)])] == ["serious"]
    assert [f.severity for f in find([Campaign(name="c", delivered=20_000, complained=60)])] == ["warning"]
    assert find([Campaign(name="c", delivered=1_000, complained=3)]) == []


def test_a_jump_of_the_machine_share_is_told() -> None:
    """From 20 % to 70 % is told, from 20 % to 25 % is not."""
    usual = {"name": "c", "actions_before": 3000, "machine_before": 600, "actions": 200}
    assert [f.kind for f in find([Campaign(**usual, machine=140)])] == ["machines"]
    assert find([Campaign(**usual, machine=50)]) == []


counts = st.integers(0, 10**7)


@given(st.lists(st.tuples(counts, counts, counts, counts), max_size=4), counts, counts, counts, counts, counts, counts)
def test_no_counts_are_too_strange_to_be_judged(groups, actions, machine, actions_before, machine_before, delivered, complained) -> None:
    """Vendors that leave out deliveries, groups without a past, enormous counts: each gives findings with a chance, or none."""
    campaign = Campaign(
        name="odd",
        providers=tuple(
            Group(name=str(n), answered=a + b, bounced=a, answered_before=c + d, bounced_before=c) for n, (a, b, c, d) in enumerate(groups)
        ),
        actions=actions + machine,
        machine=machine,
        actions_before=actions_before + machine_before,
        machine_before=machine_before,
        delivered=delivered,
        complained=complained,
    )
    for found in find([campaign]):
        assert 0 <= found.p <= threshold(1)
        assert found.text.endswith(".")


def test_the_bound_on_false_alarms_is_the_one_that_is_promised() -> None:
    """All comparisons and looks of a day together stay below the promised rate."""
    for comparisons in (1, 7, 50):
        assert threshold(comparisons) * comparisons * looks_a_day == pytest.approx(alarms_a_day)
