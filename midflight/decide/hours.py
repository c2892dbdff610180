"""At which hours of a person's own day automation may act: quiet hours, days and windows in the recipient's time zone; pure.

Everything is said by the clock on the wall. When clocks go forward, times that do not exist are passed over; when they go back, the
repeated hour is quiet twice if it is quiet once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

second_us = 1_000_000
days_max = 9  # a week, and a day on each side: by then whatever opens has opened
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+\-]{0,30}(/[A-Za-z0-9_+\-]{1,30}){0,2}")

WallTime = Annotated[str, msgspec.Meta(pattern=r"^$|^([01][0-9]|2[0-3]):[0-5][0-9]$")]


class Hours(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """When a rule may act. ``zone_attribute`` names the recipient's attribute that holds a time zone as in `Europe/Berlin`; ``zone`` is
    taken where it holds none. Quiet hours may go over midnight; the hours of sending are within a day."""

    zone_attribute: Annotated[str, msgspec.Meta(max_length=64)] = "timezone"
    zone: str = "UTC"
    quiet_from: WallTime = ""
    quiet_until: WallTime = ""
    send_from: WallTime = ""
    send_until: WallTime = ""
    send_days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = ()

    def __post_init__(self) -> None:
        if zone_of(self.zone) is None:
            raise ValueError(f"`zone`: expected a time zone as in `Europe/Berlin`, got {self.zone[:60]!r}")
        for first, second in (("quiet_from", "quiet_until"), ("send_from", "send_until")):
            if bool(getattr(self, first)) != bool(getattr(self, second)):
                raise ValueError(f"`{first}` and `{second}` come together, or neither")
        if self.quiet_from and self.quiet_from == self.quiet_until:
            raise ValueError("`quiet_from` and `quiet_until` are the same: leave both out, or turn the rule off")
        if self.send_from and self.send_from >= self.send_until:
            raise ValueError("`send_from` is before `send_until`; for a night, say when it is quiet")
        if not any(_closed(_bounds(self), minute, day) == "" for day in range(7) for minute in range(24 * 60)):
            raise ValueError("no hour of the week is left in which the rule may act")


class _Bounds(msgspec.Struct, frozen=True):
    """The same in minutes of the day; -1 for what is not said."""

    quiet_from: int
    quiet_until: int
    send_from: int
    send_until: int
    days: frozenset[int]


@lru_cache(maxsize=4096)
def _bounds(hours: Hours) -> _Bounds:
    def minute(text: str) -> int:
        return int(text[:2]) * 60 + int(text[3:]) if text else -1

    names = ("quiet_from", "quiet_until", "send_from", "send_until")
    days = frozenset(DAYS.index(name) for name in hours.send_days) or frozenset(range(7))
    return _Bounds(*(minute(getattr(hours, name)) for name in names), days)


@lru_cache(maxsize=2048)
def zone_of(name: str) -> tzinfo | None:
    """Return a time zone by its name, which may be anybody's text; None where there is none of that name."""
    if name == "UTC":
        return UTC
    if not _ZONE.fullmatch(name):
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def zone_for(hours: Hours, said: object) -> tzinfo:
    """Return the zone that a recipient's attribute names, or the rule's own where it names none."""
    zone = zone_of(said.strip()) if isinstance(said, str) and len(said) < 100 else None
    return zone or zone_of(hours.zone) or UTC


def closed(hours: Hours, zone: tzinfo, now_us: int) -> str:
    """Return why a rule may not act at this moment, `quiet_hours` or `send_window`, or nothing."""
    local = datetime.fromtimestamp(now_us // second_us, zone)
    return _closed(_bounds(hours), local.hour * 60 + local.minute, local.weekday())


def _closed(bounds: _Bounds, minute: int, day: int) -> str:
    if bounds.quiet_from >= 0:
        if bounds.quiet_from < bounds.quiet_until:
            quiet = bounds.quiet_from <= minute < bounds.quiet_until
        else:
            quiet = minute >= bounds.quiet_from or minute < bounds.quiet_until
        if quiet:
            return "quiet_hours"
    if day not in bounds.days or (bounds.send_from >= 0 and not bounds.send_from <= minute < bounds.send_until):
        return "send_window"
    return ""


def opens_us(hours: Hours, zone: tzinfo, now_us: int) -> int:
    """Return the first moment from now on at which a rule may act, to the second; now where it may."""
    if not closed(hours, zone, now_us):
        return now_us
    today = datetime.fromtimestamp(now_us // second_us, zone).date()
    found: list[int] = []
    for day in range(-1, days_max + 1):
        last = bool(found)
        turns = _turns(today + timedelta(days=day), _bounds(hours), zone)
        found += [at_us for at_us in turns if at_us > now_us and not closed(hours, zone, at_us)]
        if last:
            # Moments of neighbouring dates may stand in the other order where a zone changes sides of the date line.
            return min(found)
    return min(found, default=now_us + days_max * 86400 * second_us)


def _turns(day: date, bounds: _Bounds, zone: tzinfo) -> Iterator[int]:
    """Yield the moments of a local date at which a closed time can end: where bounds say so, and where clocks are changed."""
    for minute in {0, bounds.quiet_until, bounds.send_from} - {-1}:
        for fold in (0, 1):
            yield _moment_s(datetime.combine(day, time(minute // 60, minute % 60, fold=fold), zone)) * second_us
    start = _moment_s(datetime.combine(day, time(), zone)) - 3 * 3600
    end = start + 30 * 3600
    if _offset_s(zone, start) != _offset_s(zone, end):
        while end - start > 1:
            middle = (start + end) // 2
            if _offset_s(zone, middle) == _offset_s(zone, start):
                start = middle
            else:
                end = middle
        yield end * second_us


def _moment_s(local: datetime) -> int:
    return int(local.timestamp())


def _offset_s(zone: tzinfo, at_s: int) -> float:
    return datetime.fromtimestamp(at_s, zone).utcoffset().total_seconds()
