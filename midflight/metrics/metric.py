"""The contract of a metric: a named number made from the sums of cells and delay buckets, with and without machines."""

from __future__ import annotations

import math
from typing import ClassVar

import msgspec

from ..stream.measures import DELAY_EDGES_S

UNITS = ("count", "share", "money_per_thousand", "seconds")
DIRECTIONS = ("up", "down", "none")
Z_95 = 1.959963984540054  # the two-sided 95 % point of the normal distribution


class Sums(msgspec.Struct, kw_only=True):
    """What a metric is computed from: measures by name and, where it asks for them, delay buckets by kind."""

    measures: dict[str, int] = {}
    delays: dict[str, list[int]] = {}
    machines: bool = False
    within_s: int = 0  # conversions at most this long after the click; 0 = every attributed one

    def of(self, names: tuple[str, ...]) -> int:
        """Return the sum of some measures."""
        return sum(self.measures.get(name, 0) for name in names)


class Value(msgspec.Struct, frozen=True):
    """A metric's value; None where its denominator is empty. ``low`` and ``high`` are the ends of the 95 % interval."""

    value: float | None
    low: float | None = None
    high: float | None = None


EMPTY = Value(None)


class Metric:
    """One number. A subclass sets the class variables; ``people`` and ``everybody`` differ where machines count.

    ``numerator`` and ``denominator`` are measures to be summed, counting what people did; ``numerator_all`` and
    ``denominator_all`` count machines too and default to the former.
    """

    label: ClassVar[str] = ""
    doc: ClassVar[str] = ""
    unit: ClassVar[str] = "count"
    # Which way is better: up, down or none.
    direction: ClassVar[str] = "none"
    numerator: ClassVar[tuple[str, ...]] = ()
    numerator_all: ClassVar[tuple[str, ...]] = ()
    denominator: ClassVar[tuple[str, ...]] = ()
    denominator_all: ClassVar[tuple[str, ...]] = ()
    # The kind of delay whose buckets it reads, or "".
    delay: ClassVar[str] = ""
    # How it is made, where the measures above do not say it all.
    formula: ClassVar[str] = ""

    @classmethod
    def over(cls, machines: bool) -> tuple[str, ...]:
        """Return the measures above the line."""
        return (cls.numerator_all or cls.numerator) if machines else cls.numerator

    @classmethod
    def under(cls, machines: bool) -> tuple[str, ...]:
        """Return the measures below the line."""
        return (cls.denominator_all or cls.denominator) if machines else cls.denominator

    @classmethod
    def measures(cls) -> set[str]:
        """Return every measure it can need."""
        return {*cls.numerator, *cls.numerator_all, *cls.denominator, *cls.denominator_all}

    @classmethod
    def compute(cls, sums: Sums) -> Value:
        """Return the value for these sums."""
        raise NotImplementedError


class Count(Metric):
    """A plain sum of measures."""

    unit = "count"

    @classmethod
    def compute(cls, sums: Sums) -> Value:
        return Value(sums.of(cls.over(sums.machines)))


class Rate(Metric):
    """A share of a whole, with its Wilson interval."""

    unit = "share"

    @classmethod
    def compute(cls, sums: Sums) -> Value:
        return share(sums.of(cls.over(sums.machines)), sums.of(cls.under(sums.machines)))


class Delay(Metric):
    """How long it took: the median, from the buckets of one kind of delay; only people's actions have delays."""

    unit = "seconds"
    direction = "down"

    def __init_subclass__(cls) -> None:
        cls.formula = f"median of {cls.delay} delays"

    @classmethod
    def compute(cls, sums: Sums) -> Value:
        return Value(quantile(sums.delays.get(cls.delay, []), 0.5))


def share(part: int, whole: int) -> Value:
    """Return part / whole with its Wilson 95 % interval.

    In a short window the part may exceed the whole (today's clicks on last week's mail), or be negative (a verdict of an earlier
    minute was changed): then there is no interval.
    """
    if whole <= 0:
        return EMPTY
    if not 0 <= part <= whole:
        return Value(part / whole)
    low, high = wilson(part, whole)
    return Value(part / whole, low, high)


def wilson(part: int, whole: int, z: float = Z_95) -> tuple[float, float]:
    """Return the score interval of a proportion (Wilson 1927, eq. 4 of Brown, Cai and DasGupta 2001)."""
    p = part / whole
    scale = 1 + z * z / whole
    middle = (p + z * z / (2 * whole)) / scale
    half = z * math.sqrt(p * (1 - p) / whole + z * z / (4 * whole * whole)) / scale
    return (0.0 if part == 0 else max(0.0, middle - half)), (1.0 if part == whole else min(1.0, middle + half))


def quantile(buckets: list[int], q: float, edges: tuple[int, ...] = DELAY_EDGES_S) -> float | None:
    """Return the q-quantile of bucketed values, spread evenly inside a bucket; the open last bucket gives its lower edge.

    To a thousandth: buckets say nothing finer, and what binary fractions leave behind (289.00000000000006) says nothing at all.
    """
    total = sum(buckets)
    if total <= 0:
        return None
    wanted = q * total
    seen = 0
    for index, n in enumerate(buckets):
        if n and seen + n >= wanted:
            if index >= len(edges):
                return float(edges[-1])
            low = edges[index - 1] if index else 0
            return round(low + (edges[index] - low) * max(0.0, wanted - seen) / n, 3)
        seen += n
    return float(edges[-1])


def curve(buckets: list[int], edges: tuple[int, ...] = DELAY_EDGES_S) -> list[tuple[int, float]]:
    """Return ``(seconds, share that happened within them)`` at every edge; empty where nothing happened."""
    total = sum(buckets)
    if total <= 0:
        return []
    points, seen = [], 0
    for index, edge in enumerate(edges):
        seen += buckets[index] if index < len(buckets) else 0
        points.append((edge, seen / total))
    return points


def within(buckets: list[int], seconds: int, edges: tuple[int, ...] = DELAY_EDGES_S) -> int:
    """Return how many delays are surely below ``seconds``: those in buckets that end at or before it."""
    return sum(n for index, n in enumerate(buckets) if index < len(edges) and edges[index] <= seconds)


def markdown() -> str:
    """Return the reference of all metrics, the text of ``docs/metrics.md``."""
    from . import REGISTRY

    lines = [
        "# Metrics",
        "",
        "Made from the files in `midflight/metrics/` by `midflight docs`; change them, not this page.",
        "",
        "A metric is computed from the sums of cells (one minute, one combination of dimensions) inside a window. Numerator and",
        "denominator are counted in the minute in which they happened, so in a window shorter than the campaign a rate compares what",
        "happened in that window, not what became of the messages sent in it; it may then exceed 100 % and has no interval.",
        "Shares carry the Wilson 95 % interval. `people` leaves machines out (the default), `everybody` counts them.",
        "",
        "| metric | label | unit | better | people | everybody |",
        "|---|---|---|---|---|---|",
    ]
    for name, metric in REGISTRY.all().items():
        lines.append(
            f"| `{name}` | {metric.label} | {metric.unit} | {metric.direction} | {formula(metric, False)} | {formula(metric, True)} |"
        )
    for name, metric in REGISTRY.all().items():
        lines += ["", f"## {name}", "", metric.doc]
    return "\n".join(lines) + "\n"


def formula(metric: type[Metric], machines: bool) -> str:
    """Return how a metric is made, in measures."""
    if metric.formula:
        return f"`{metric.formula}`"
    over = " + ".join(metric.over(machines))
    under = " + ".join(metric.under(machines))
    if not under:
        return f"`{over}`"
    return f"`{'(' + over + ')' if ' ' in over else over} / {'(' + under + ')' if ' ' in under else under}`"
