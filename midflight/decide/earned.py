"""What a rule has earned: conversions and revenue of those it acts on, less those of the people who are held out, whenever one looks; pure.

Who is held out is drawn by a hash of the person, so the two sides differ in nothing but the rule. Everybody is counted on his side from
his first firing on, whether the rule then acted or a limit kept it from it: what limits leave out is part of what the rule is worth. A
person is counted once his time to convert is over; one who is counted sooner would change later.

Conversions: for each side the likelihood of its conversions, integrated over rates (Robbins 1970), by the likelihood at one rate is a
martingale under that rate, and so is the product of the two sides under a pair of rates. A pair is excluded once that product reaches
1 / alpha; a true pair is, at any time at all, with probability at most alpha (Ville). The interval holds the differences of pairs that are
left. It has no least number of people.

Revenue has no largest order, so nothing can be said without many buyers. From `buyers_min` of them on each side, the difference of means
has the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (Annals of Statistics 2024, arXiv 2103.06476). A
side with few buyers has mostly not met its large orders yet and would look surer than it is; so what buyers spend is taken to spread on
each side at least as it does on both together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec
import numpy as np

from .sample_ratio import check

alpha = 0.05  # the chance that any of what is said of one rule is ever wrong
_EACH = alpha / 2  # of conversions and of revenue
buyers_min = 40
people_tuned = 20_000  # the number of people at which the interval for revenue is narrowest
_A, _B = 0.5, 10.0  # rates that are looked for: mostly some percent
_EDGE = 1e-12


class Sums(msgspec.Struct, kw_only=True, frozen=True):
    """One side: how many people, how many of them converted, their revenue and the sum of its squares, person by person."""

    people: Annotated[int, msgspec.Meta(ge=0)] = 0
    converted: Annotated[int, msgspec.Meta(ge=0)] = 0
    revenue: float = 0.0
    squares: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Bounded(msgspec.Struct, kw_only=True, frozen=True):
    """A difference for each person acted on, with the bounds between which it lies."""

    difference: float
    low: float
    high: float


class Earned(msgspec.Struct, kw_only=True, frozen=True):
    """What may be said of a rule. ``says`` is `earns`, `costs`, `not_yet`, or `split_broken` where the sides are not as they were drawn and
    nothing may be said. ``revenue`` is None before there are enough buyers. ``conversions_in_all`` and ``revenue_in_all`` are what those
    acted on brought more than they would have, as far as that is known."""

    says: str
    conversions: Bounded
    revenue: Bounded | None
    conversions_in_all: float
    revenue_in_all: float | None
    text: str


def sums_by_side(
    sides: Iterable[tuple[str, bool, int]], orders: Mapping[str, Iterable[tuple[int, float]]], log_us: int, window_us: int
) -> tuple[Sums, Sums]:
    """Return the sums of those acted on and of those held out.

    ``sides`` are recipient, whether held out, and since when; ``orders`` gives by recipient when he converted, in us, and for how much.
    What counts is within a window from when somebody came to his side; whose window is not over at ``log_us`` is not counted yet.
    """
    found: tuple[list[list[float]], list[list[float]]] = [], []
    for recipient, held, since_us in sides:
        if since_us + window_us <= log_us:
            found[held].append([value for at_us, value in orders.get(recipient, ()) if since_us <= at_us < since_us + window_us])
    acted, out = (sums_of(np.array([len(o) for o in side]), np.array([math.fsum(o) for o in side])) for side in found)
    return acted, out


def sums_of(converted: np.ndarray, revenue: np.ndarray) -> Sums:
    """Return the sums of a side from each person's conversions (0 or more count as one) and revenue."""
    return Sums(
        people=int(converted.size), converted=int((converted > 0).sum()), revenue=float(revenue.sum()), squares=float((revenue**2).sum())
    )


def earned(acted: Sums, held: Sums, share: float) -> Earned:
    """Return what may be said; ``share`` of the people was to be held out. All of it holds together, and at all times, with 1 - alpha."""
    conversions = _conversions(acted, held)
    money = _revenue(acted, held)
    broken = acted.people + held.people > 0 and check(np.array([[acted.people, held.people]]), np.array([[1 - share, share]])).broken
    says = "split_broken" if broken else _says(conversions, money)
    return Earned(
        says=says, conversions=conversions, revenue=money, conversions_in_all=conversions.difference * acted.people,
        revenue_in_all=None if money is None else money.difference * acted.people, text=_text(says, conversions, money, acted, held),
    )  # fmt: skip


def _says(conversions: Bounded, money: Bounded | None) -> str:
    """Money speaks before conversions: a discount can buy orders at a loss."""
    for bounded in (money, conversions):
        if bounded is not None and bounded.low > 0:
            return "earns"
        if bounded is not None and bounded.high < 0:
            return "costs"
    return "not_yet"


def _text(says: str, conversions: Bounded, money: Bounded | None, acted: Sums, held: Sums) -> str:
    if says == "split_broken":
        return f"The sides are not as they were drawn: {acted.people:,} acted on, {held.people:,} held out. Nothing can be said"
    difference, low, high = (1000 * rate for rate in (conversions.difference, conversions.low, conversions.high))
    rate = f"{difference:+.2f} conversions in a thousand people ({low:+.2f} to {high:+.2f})"
    if money is None:
        return f"{rate}; of revenue nothing can be said before {buyers_min} have bought on each side"
    return f"{rate}; {money.difference:+.2f} of revenue a person ({money.low:+.2f} to {money.high:+.2f})"


# -- conversions ---------------------------------------------------------------------------------------------------------


def _conversions(acted: Sums, held: Sums) -> Bounded:
    counts = (acted.converted, acted.people, held.converted, held.people)
    enough = math.log(1 / _EACH)
    best = _rate(acted) - _rate(held)
    return Bounded(difference=best, low=_end(counts, best, -1.0, enough), high=_end(counts, best, 1.0, enough))


def _rate(side: Sums) -> float:
    return side.converted / side.people if side.people else 0.0


def _end(counts: tuple[int, int, int, int], inside: float, outside: float, enough: float) -> float:
    """Return where the evidence against a difference reaches what is enough, between one that is kept and the outermost there is."""
    for _ in range(60):
        middle = (inside + outside) / 2
        if log_evidence(*counts, middle) < enough:
            inside = middle
        else:
            outside = middle
    return outside


def log_evidence(acted: int, of: int, held: int, of_held: int, difference: float = 0.0) -> float:
    """Return the logarithm of the evidence against one difference of rates: that against the pair of that difference that is left last."""
    low, high = max(_EDGE, _EDGE + difference), min(1 - _EDGE, 1 - _EDGE + difference)
    # The slope of the logarithm grows with the rate, so its zero is found by halving.
    for _ in range(60):
        middle = (low + high) / 2
        if _slope(acted, of, middle) + _slope(held, of_held, middle - difference) < 0:
            low = middle
        else:
            high = middle
    at = min(max((low + high) / 2, _EDGE), 1 - _EDGE)
    other = min(max(at - difference, _EDGE), 1 - _EDGE)
    return _log_ratio(acted, of, at) + _log_ratio(held, of_held, other)


def _slope(happened: int, of: int, rate: float) -> float:
    return (of - happened) / max(1 - rate, _EDGE) - happened / max(rate, _EDGE)


def _log_ratio(happened: int, of: int, rate: float) -> float:
    """Return the logarithm of the likelihood mixed over rates, by that at one rate."""
    mixed = _log_beta(_A + happened, _B + of - happened) - _log_beta(_A, _B)
    return mixed - happened * math.log(rate) - (of - happened) * math.log1p(-rate)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


# -- revenue -------------------------------------------------------------------------------------------------------------


def _revenue(acted: Sums, held: Sums) -> Bounded | None:
    if min(acted.converted, held.converted) < buyers_min:
        return None
    difference = acted.revenue / acted.people - held.revenue / held.people
    half = half_width(
        np.array([acted.people, held.people], float), np.array([acted.converted, held.converted], float),
        np.array([acted.revenue, held.revenue]), np.array([acted.squares, held.squares]), _EACH,
    )  # fmt: skip
    return Bounded(difference=difference, low=difference - float(half), high=difference + float(half))


def half_width(people: np.ndarray, buyers: np.ndarray, revenue: np.ndarray, squares: np.ndarray, alpha: float) -> np.ndarray:
    """Return half the width of the interval for the difference of means; arrays [2, ...], the first side and the second."""
    mean = revenue / people
    pooled = buyers * squares.sum(0) / np.maximum(buyers.sum(0), 1.0)
    variance = np.maximum(np.maximum(squares, pooled) / people - mean**2, 0.0)
    total = people.sum(0)
    tuned = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / people_tuned
    wide = 2 * (total * tuned + 1) / (total * tuned) * np.log(np.sqrt(total * tuned + 1) / alpha)
    return np.sqrt((variance / people).sum(0) * wide)
