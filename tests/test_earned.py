"""What a rule has earned: intervals that hold whenever one looks, wrong in at most one of twenty rules that do nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from midflight.decide.earned import _EACH, Sums, alpha, buyers_min, earned, half_width, log_evidence, sums_by_side, sums_of

SHARE = 0.1


def counts(random: np.random.Generator, looks: int, people: int, rates: tuple[float, float]) -> np.ndarray:
    """Return people and conversions of both sides at each look, [4, looks]: acted on, of them converted, held out, of them converted."""
    held = random.binomial(people, SHARE, looks)
    acted = people - held
    rows = [acted, random.binomial(acted, rates[0]), held, random.binomial(held, rates[1])]
    return np.cumsum(rows, axis=1)


def ever_wrong(random: np.random.Generator, rates: tuple[float, float], looks: int, people: int, wrong) -> bool:
    """Tell whether the true difference is excluded at any look."""
    found = counts(random, looks, people, rates)
    difference = rates[0] - rates[1]
    return any(wrong(int(a), int(n), int(b), int(m), difference) for n, a, m, b in found.T if n and m)


def anytime(acted: int, of: int, held: int, of_held: int, difference: float) -> bool:
    return log_evidence(acted, of, held, of_held, difference) >= math.log(1 / _EACH)


def naive(acted: int, of: int, held: int, of_held: int, difference: float) -> bool:
    """The usual interval, which holds for one look: the control."""
    p, q = (acted + 0.5) / (of + 1), (held + 0.5) / (of_held + 1)
    return abs(p - q - difference) > 2.24 * math.sqrt(p * (1 - p) / of + q * (1 - q) / of_held)


@pytest.mark.parametrize("rates", [(0.02, 0.02), (0.3, 0.3), (0.05, 0.03)])
def test_the_true_difference_of_conversions_stays_inside_however_often_one_looks(rates: tuple[float, float]) -> None:
    """Over 60 looks it is excluded in at most one of forty experiments, as its half of the chance of being wrong allows."""
    random = np.random.default_rng(1)
    runs = 400
    wrong = sum(ever_wrong(random, rates, 60, 150, anytime) for _ in range(runs))
    # With a true share of 2.5 % there are more with less than 0.1 %.
    assert wrong <= 21


def test_an_interval_for_one_look_is_caught() -> None:
    """Control: the usual interval at the same level, looked at as often, is wrong far more often."""
    random = np.random.default_rng(1)
    wrong = sum(ever_wrong(random, (0.02, 0.02), 60, 150, naive) for _ in range(400))
    assert wrong > 40


def test_a_common_change_of_the_rate_is_no_difference() -> None:
    """Where everybody's rate swings from day to day, on both sides alike, it is not taken for what the rule does."""
    random = np.random.default_rng(4)
    wrong = 0
    for _ in range(100):
        rates = 0.04 * np.exp(0.7 * np.sin(np.arange(60) / 5 + random.uniform(0, 6)))
        held = random.binomial(150, SHARE, 60)
        rows = np.cumsum([150 - held, random.binomial(150 - held, rates), held, random.binomial(held, rates)], axis=1)
        wrong += any(anytime(int(a), int(n), int(b), int(m), 0.0) for n, a, m, b in rows.T)
    assert wrong <= 7


def spent(random: np.random.Generator, looks: int, people: int, share: float) -> list[np.ndarray]:
    """Return people, buyers, revenue and its squares at each look, [looks]: 3 % buy, and a few orders are very large."""
    bought = random.binomial(np.round(np.full(looks, people * share)).astype(int), 0.03)
    values = np.exp(random.normal(3.5, 1.0, int(bought.sum())))
    look = np.repeat(np.arange(looks), bought)
    money, squares = np.bincount(look, values, looks), np.bincount(look, values**2, looks)
    return [np.cumsum(column) for column in (np.full(looks, people * share), bought, money, squares)]


def revenue_wrong(runs: int, width, least: int) -> int:
    """Return how many of these experiments without a difference ever exclude it, over looks with so many buyers on each side."""
    random = np.random.default_rng(2)
    wrong = 0
    for _ in range(runs):
        acted, held = spent(random, 80, 500, 1 - SHARE), spent(random, 80, 500, SHARE)
        people, buyers, money, squares = (np.array(pair) for pair in zip(acted, held, strict=True))
        enough = buyers.min(0) >= least
        off = np.abs(money[0] / people[0] - money[1] / people[1])
        wrong += bool((off > width(people, buyers, money, squares))[enough].any())
    return wrong


def test_revenue_that_differs_by_chance_alone_is_seldom_called_a_difference() -> None:
    """With orders that have a long tail, looked at 80 times over 40,000 people, at most one of forty is wrong."""
    # With a true share of 2.5 % there are more with less than 0.1 %.
    assert revenue_wrong(1000, lambda *sides: half_width(*sides, _EACH), buyers_min) <= 41


def test_the_usual_interval_for_revenue_is_caught() -> None:
    """Control: the interval for one look is wrong in many."""

    def usual(people, buyers, money, squares) -> np.ndarray:
        return 2.24 * np.sqrt(((squares / people - (money / people) ** 2) / people).sum(0))

    assert revenue_wrong(1000, usual, 5) > 100


def test_intervals_and_evidence_say_the_same() -> None:
    """The interval holds just the differences against which there is not enough evidence, and what was seen is inside."""
    random = np.random.default_rng(3)
    for _ in range(40):
        n, m = (int(v) for v in random.integers(1, 3000, 2))
        a, b = int(random.binomial(n, random.uniform(0, 0.2))), int(random.binomial(m, random.uniform(0, 0.2)))
        found = earned(Sums(people=n, converted=a), Sums(people=m, converted=b), m / (n + m)).conversions
        assert -1 <= found.low <= found.difference <= found.high <= 1 and found.difference == pytest.approx(a / n - b / m)
        for end, side in ((found.low, -1), (found.high, 1)):
            if -0.99 < end < 0.99:
                assert log_evidence(a, n, b, m, end + side * 1e-6) >= math.log(1 / _EACH) - 0.01
                assert log_evidence(a, n, b, m, end - side * 1e-6) <= math.log(1 / _EACH) + 0.01


def test_a_rule_that_earns_is_said_to() -> None:
    """A plain effect is found with its size; one that costs is called so; too few people say nothing; money speaks first."""
    none = earned(Sums(), Sums(), SHARE)
    assert none.says == "not_yet" and none.conversions.low == -1 and none.conversions.high == 1 and none.revenue is None
    good = earned(Sums(people=18_000, converted=900), Sums(people=2_000, converted=50), SHARE)
    assert good.says == "earns" and good.conversions.low > 0.004 and good.conversions_in_all == pytest.approx(450)
    bad = earned(Sums(people=18_000, converted=450), Sums(people=2_000, converted=100), SHARE)
    assert bad.says == "costs"
    # More orders, at a price that does not pay.
    acted = Sums(people=90_000, converted=4_500, revenue=45_000.0, squares=500_000.0)
    held = Sums(people=10_000, converted=350, revenue=14_000.0, squares=600_000.0)
    discount = earned(acted, held, SHARE)
    assert discount.conversions.low > 0 and discount.revenue.high < 0 and discount.says == "costs"
    assert "conversions in a thousand" in discount.text and discount.revenue_in_all == pytest.approx(90_000 * (0.5 - 1.4))


def test_sides_that_are_not_as_they_were_drawn_say_nothing() -> None:
    """Where more or fewer are held out than were to be, something is broken, and no number is to be believed."""
    found = earned(Sums(people=9_000, converted=900), Sums(people=2_000, converted=50), SHARE)
    assert found.says == "split_broken" and "Nothing can be said" in found.text


def test_sums_are_of_people() -> None:
    """Somebody who buys twice is one person who converted, with the revenue of both."""
    found = sums_of(np.array([0, 2, 1]), np.array([0.0, 30.0, 5.0]))
    assert (found.people, found.converted, found.revenue, found.squares) == (3, 2, 35.0, 925.0) and alpha == 0.05


def test_people_are_counted_on_their_side_once_their_time_is_over() -> None:
    """Orders from before somebody came to his side, or from after his window, are not his rule's; who came of late is not counted yet."""
    sides = [("a", False, 100), ("b", True, 200), ("c", False, 900), ("d", True, 100)]
    orders = {"a": [(99, 7.0), (100, 10.0), (149, 5.0), (150, 9.0)], "c": [(901, 50.0)], "d": [(120, 3.0)]}
    acted, held = sums_by_side(sides, orders, 940, 50)
    assert acted == Sums(people=1, converted=1, revenue=15.0, squares=225.0)
    assert held == Sums(people=2, converted=1, revenue=3.0, squares=9.0)
    assert sums_by_side([], {}, 0, 1) == (Sums(), Sums())
