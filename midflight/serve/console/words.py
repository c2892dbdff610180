"""How numbers, times and intervals are written on pages; the only place that rounds."""

from __future__ import annotations

from ...store.read import iso

NONE = "\N{EN DASH}"


def count(n: int | float | None) -> str:
    """Return a count with its thousands apart."""
    return NONE if n is None else f"{n:,.0f}"


def percent(share: float | None) -> str:
    """Return a share; small ones keep two significant digits, so that a complaint rate does not become 0.0%."""
    if share is None:
        return NONE
    value = share * 100
    if value == 0:
        return "0%"
    if abs(value) < 0.1:
        return f"{value:.3f}%"
    if abs(value) < 1:
        return f"{value:.2f}%"
    return f"{value:.1f}%" if abs(value) < 99.95 or abs(value) >= 100.05 else "100%"


def interval(ends: list[float] | None) -> str:
    """Return the ends of a 95 % interval."""
    return "" if not ends else f"{percent(ends[0]).removesuffix('%')}\N{EN DASH}{percent(ends[1])}"


def money(amount: float | None) -> str:
    """Return money without a currency: cells add what the events said."""
    return NONE if amount is None else f"{amount:,.2f}"


def ms(value: float | None) -> str:
    """Return milliseconds, from a second on as seconds."""
    if value is None:
        return NONE
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.1f} s"


def duration(seconds: float | None) -> str:
    """Return a length of time in its two biggest units."""
    if seconds is None:
        return NONE
    seconds = round(seconds)
    for unit, size, lower, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            rest = seconds % size // part
            return f"{seconds // size} {unit}" + (f" {rest} {lower}" if rest and seconds < 10 * size else "")
    return f"{seconds} s"


def ago(at_us: int, now_us: int) -> str:
    """Return how long ago something was, coarsely."""
    if not at_us:
        return "never"
    seconds = max(0, now_us - at_us) // 1_000_000
    if seconds < 60:
        return "just now"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    raise AssertionError(seconds)


def clock(at_us: int) -> str:
    """Return a time of the day and its date, UTC."""
    text = iso(at_us)
    return NONE if text is None else f"{text[:10]} {text[11:16]}"


def metric(unit: str, value: float | None) -> str:
    """Return a metric's value as its unit asks."""
    return {"count": count, "share": percent, "money_per_thousand": money, "seconds": duration}[unit](value)


def rate_per_s(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
