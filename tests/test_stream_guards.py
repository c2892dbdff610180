"""Ceilings hold for what sends for long: a bad week after a good year is seen, and nothing is tripped that stays below."""

from __future__ import annotations

import math

from numpy.random import PCG64, Generator, SeedSequence

from midflight.decide.guardrails import Counts, Guardrails, above, alpha
from midflight.decide.stream_guards import RATES, Sends, days_max, rising, stream_trips

GUARDRAILS = Guardrails(unsubscribe=0.01, complaint=0.002, bounce=0.05)


def random_of(*seed: int) -> Generator:
    return Generator(PCG64(SeedSequence(seed)))


def days(random: Generator, times: list[float], delivered: int = 2000) -> tuple[Counts, ...]:
    """Return counts by day, at so many times the ceilings on each."""
    return tuple(
        Counts(
            delivered=delivered, bounced=int(random.binomial(delivered, 0.05 * factor)),
            complained=int(random.binomial(delivered, 0.002 * factor)), unsubscribed=int(random.binomial(delivered, 0.01 * factor)),
        )
        for factor in times
    )  # fmt: skip


def test_a_bad_week_after_a_good_year_is_seen() -> None:
    """Thirty good days at half the ceiling do not hide three at three times it; sums since the start do."""
    series = days(random_of(1), [0.5] * 32 + [3.0] * 3)
    found = stream_trips([Sends(kind="rule", name="clicked_not_bought", days=series)], GUARDRAILS)
    assert {trip.what for trip in found} == set(RATES)
    assert all(trip.days in (2, 3, 4) and trip.kind == "rule" for trip in found)
    complaint = next(trip for trip in found if trip.what == "complaint")
    assert complaint.happened / complaint.of > 0.004 and str(complaint.happened) in complaint.text
    happened, of = sum(day.complained for day in series), sum(day.delivered for day in series)
    assert above(happened, of, 0.002) < complaint.needed  # the control: from the start on it does not show


def test_at_the_ceiling_hardly_anything_trips() -> None:
    """Twenty streams at exactly their ceilings, looked at on every day: at most one in a hundred months has a trip."""
    tripped = 0
    for seed in range(20):
        random = random_of(2, seed)
        series = [days(random, [1.0] * days_max) for _ in range(20)]
        tripped += any(
            stream_trips([Sends(kind="provider", name=str(n), days=one[:day]) for n, one in enumerate(series)], GUARDRAILS)
            for day in (1, 5, 10, 20, days_max)
        )
    assert tripped <= max(1, alpha * 20)


def test_the_beginning_that_says_most_is_named() -> None:
    """Evidence is the sum over all beginnings; the days named are those of the clearest one."""
    evidence, since = rising([(0, 1000)] * 10 + [(20, 1000)] * 2, 0.002)
    assert since == 2 and evidence >= above(40, 2000, 0.002)
    assert rising([], 0.002) == (0.0, 0)
    assert rising([(0, 0)] * 5, 0.002) == (0.0, 0)


def test_each_stream_may_have_its_own_ceilings() -> None:
    """Gmail may be held to less than the others; a ceiling of 0 trips at the first, and of 1 never."""
    day = (Counts(delivered=1000, complained=1),)
    streams = [Sends(kind="provider", name=name, days=day) for name in ("Gmail", "Yahoo")]
    found = stream_trips(streams, GUARDRAILS, ceilings={"Gmail": Guardrails(complaint=0.0)})
    assert [(trip.name, trip.what, trip.evidence) for trip in found] == [("Gmail", "complaint", math.inf)]
    everything = (Counts(delivered=10, bounced=10, complained=10, unsubscribed=10),) * 9
    open_to_all = Guardrails(unsubscribe=1.0, complaint=1.0, bounce=1.0)
    assert stream_trips([Sends(kind="ip", name="x", days=everything)], open_to_all) == []


def test_more_complaints_than_deliveries_still_count() -> None:
    """Where deliveries were not reported, complaints alone do not divide by zero."""
    found = stream_trips([Sends(kind="rule", name="r", days=(Counts(complained=50),))], GUARDRAILS)
    assert [trip.what for trip in found] == ["complaint"]
