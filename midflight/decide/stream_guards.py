"""Ceilings of complaints, unsubscribes and bounces for whatever sends for long: a rule, a provider, a domain, a sending IP; pure.

`guardrails.trips` judges a campaign by its sums since the start. A rule or a provider has no such start: after a good year a bad week would
hardly show in the sums. So each day is a possible beginning, and the evidence is the sum over them,

    R(t) = sum over days s <= t of above(what happened from s to t),

an e-detector: under rates at or below the ceiling its expectation is at most the number of days, so that all streams and rates together
reach ``days * streams * rates / alpha`` with probability at most alpha within those days (Shin, Ramdas and Rinaldo 2022,
arxiv.org/abs/2203.03532).
"""

from __future__ import annotations

import msgspec

from .guardrails import Counts, Guardrails, above, alpha

days_max = 35
RATES = ("unsubscribe", "complaint", "bounce")


class Sends(msgspec.Struct, kw_only=True, frozen=True):
    """One stream's counts by day, the oldest first; ``kind`` is rule, provider, domain, ip or campaign."""

    kind: str
    name: str
    days: tuple[Counts, ...]


class StreamTrip(msgspec.Struct, kw_only=True, frozen=True):
    """A stream's rate that is surely above its ceiling, over the days that say so most clearly."""

    kind: str
    name: str
    what: str
    days: int
    happened: int
    of: int
    ceiling: float
    evidence: float
    needed: float
    text: str


def stream_trips(streams: list[Sends], guardrails: Guardrails, *, ceilings: dict[str, Guardrails] | None = None) -> list[StreamTrip]:
    """Return every rate of every stream that is surely above its ceiling; the clearest first.

    ``ceilings`` gives a stream (by name) its own. In ``days_max`` days any of them trips falsely with probability at most
    ``guardrails.alpha``.
    """
    needed = days_max * len(RATES) * max(1, len(streams)) / alpha
    found = []
    for stream in streams:
        own = (ceilings or {}).get(stream.name, guardrails)
        days = stream.days[-days_max:]
        for what in RATES:
            series = [_of(counts, what) for counts in days]
            trip = _trip(stream, what, series, getattr(own, what), needed)
            if trip is not None:
                found.append(trip)
    return sorted(found, key=lambda trip: (-trip.evidence, trip.kind, trip.name, trip.what))


def rising(series: list[tuple[int, int]], ceiling: float) -> tuple[float, int]:
    """Return the evidence that a rate is above its ceiling from some day on, and since how many days that is most likely so.

    ``series`` is (happened, of) for each day, the oldest first.
    """
    total, most, since = 0.0, 0.0, 0
    happened = of = 0
    for back, (bad, all_of) in enumerate(reversed(series), 1):
        happened += bad
        of += all_of
        if of == 0 and happened == 0:
            continue
        evidence = above(happened, max(of, happened), ceiling)
        total += evidence
        if evidence > most:
            most, since = evidence, back
    return total, since


def _trip(stream: Sends, what: str, series: list[tuple[int, int]], ceiling: float, needed: float) -> StreamTrip | None:
    evidence, since = rising(series, ceiling)
    if evidence < needed:
        return None
    lately = series[-since:]
    happened, of = sum(bad for bad, _ in lately), sum(all_of for _, all_of in lately)
    share = happened / of if of else 1.0
    return StreamTrip(
        kind=stream.kind, name=stream.name, what=what, days=since, happened=happened, of=of, ceiling=ceiling, evidence=evidence,
        needed=needed,
        text=f"{happened} of {of} in {since} {'day' if since == 1 else 'days'} ({100 * share:.2f}%) "
        f"are surely more than {100 * ceiling:g}%: {what}s.",
    )  # fmt: skip


def _of(counts: Counts, what: str) -> tuple[int, int]:
    if what == "bounce":
        return counts.bounced, counts.delivered + counts.bounced
    return (counts.complained if what == "complaint" else counts.unsubscribed), counts.delivered
