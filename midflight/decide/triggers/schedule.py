"""It is time: once, daily, on days of the week, or on a day of the month."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from ..hours import DAYS, WallTime, zone_of
from .trigger import AboutNumbers, BadTrigger

days_max = 62  # that are looked at: in two months every day of the month comes


class Schedule(AboutNumbers):
    """``once`` at a date and time, or ``at`` a time of day on ``days`` of the week or a ``day`` of the month, by the clocks of ``zone``."""

    label = "It is time"
    doc = (
        "With `segment` it fires for everybody who is in it at that moment, else for nobody in particular. A time that clocks pass over "
        "when they go forward is an hour later that day, one that comes twice counts once. Times that pass while the machine is off are "
        "made up for once, the last one. Day 31 is the last day of each month."
    )
    EXAMPLES = (
        ({"kind": "schedule", "at": "09:00", "zone": "Europe/Berlin"}, "it is 09:00 (Europe/Berlin)"),
        (
            {"kind": "schedule", "at": "18:30", "days": ["mon", "fri"], "segment": "good customers"},
            "it is 18:30 (UTC) on mon, fri, for everybody in segment `good customers`",
        ),
        ({"kind": "schedule", "once": "2026-12-01T09:00"}, "it is 2026-12-01T09:00 (UTC)"),
    )

    at: WallTime = ""
    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = ()
    day: int = 0
    once: str = ""
    zone: str = "UTC"
    segment: str = ""

    def check(self) -> None:
        if bool(self.at) == bool(self.once):
            raise BadTrigger("When is it time?", expected="`at` as `09:00`, or `once` as `2026-12-01T09:00`", where="$.when")
        if self.once:
            self._once()
        if zone_of(self.zone) is None:
            raise BadTrigger("Unknown time zone", expected="one as `Europe/Berlin`", got=self.zone[:60], where="$.when.zone")
        if not 0 <= self.day <= 31 or (self.day and self.days) or (self.once and (self.day or self.days)):
            expected = "`days` of the week, or one `day` of the month from 1 to 31, and neither with `once`"
            raise BadTrigger("On which days?", expected=expected, where="$.when")

    def _once(self) -> datetime:
        try:
            found = datetime.fromisoformat(self.once)
        except ValueError:
            found = None
        if found is None or found.tzinfo is not None or not 2000 <= found.year <= 2200:
            expected = "a date and a time without a zone, as `2026-12-01T09:00`"
            raise BadTrigger("Not a time", expected=expected, got=self.once[:60], where="$.when.once")
        return found

    def words(self) -> str:
        said = f"it is {self.at or self.once} ({self.zone})"
        if self.days:
            said += f" on {', '.join(self.days)}"
        if self.day:
            said += f" on day {self.day} of the month"
        return said + (f", for everybody in segment `{self.segment}`" if self.segment else "")

    def segments(self) -> list[str]:
        return [self.segment] if self.segment else []

    def due_us(self, after_us: int, until_us: int) -> int:
        zone = zone_of(self.zone)
        if self.once:
            due = _us(self._once(), zone)
            return due if after_us < due <= until_us else 0
        at = time.fromisoformat(self.at)
        today = datetime.fromtimestamp(until_us / 1e6, UTC).astimezone(zone).date()
        for back in range(days_max):
            one = today - timedelta(days=back)
            due = _us(datetime.combine(one, at), zone)
            if due <= after_us:
                return 0
            if due <= until_us and self._on(one):
                return due
        return 0

    def _on(self, one: date) -> bool:
        if self.day:
            return one.day == min(self.day, monthrange(one.year, one.month)[1])
        return not self.days or DAYS[one.weekday()] in self.days


def _us(wall: datetime, zone: ZoneInfo) -> int:
    """Return a time on the wall in us. One that does not exist is read by the clocks of before."""
    return int(wall.replace(tzinfo=zone).timestamp()) * 1_000_000
