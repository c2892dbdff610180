"""Whether a stream of counts, one a minute, has suddenly nearly stopped, although counts come in lumps and nights are quiet; pure.

Evidence for "only a tenth of what is usual comes since some minute" against "as usual" is summed up as it comes (Page's CUSUM, Biometrika
1954), with the negative binomial likelihood of overdispersed counts. What is usual follows the counts: down at once, up slowly and by no
more than half at a time, so that a burst leaves it nearly as it was, and an evening, or the tail of a campaign, takes it along.

How much evidence an alarm needs is at least ``needed_min``, and half as much again as this stream has ever shown without one: a stream that
is used to stop suddenly, as that of somebody who sends one campaign a day, raises the bar for itself. ``tests/test_reconciliation.py``
measures what becomes of it in simulated days. No minute counts for more than a quarter of an alarm, so one takes four.
"""

from __future__ import annotations

import math

import msgspec

day_minutes = 24 * 60
left_share = 0.1  # of what is usual: the drop that is looked for
needed_min = 12.0
margin = 1.5
evidence_times_max = 1.5  # of what an alarm needs: more would only make its end late
minutes_min = 4
learning_minutes = 60
down_minutes, up_minutes = 10.0, 20.0  # in which what is usual follows
few = 12.0  # where less than about one comes in a minute it follows more slowly, by so many counts
up_times = 1.5
hold = 0.3  # and more slowly still while something seems to happen
usual_min = 0.2  # a minute; with less, minutes say nothing
lead_times = 1.5  # of what is usual at this hour: beyond that is a burst, whose end is no outage
spread_first, spread_min, spread_minutes = 0.5, 0.1, 500.0
hour_days = 4
half_life_minutes = 14 * day_minutes


class Stream(msgspec.Struct, kw_only=True):
    """What is remembered of a stream. ``silence``: only minutes without anything are evidence, anything at all ends it."""

    silence: bool = False
    minutes: int = 0
    level: float = 0.0  # what comes in a minute now
    usual: float = 0.0  # and over days, bursts cut off
    hours: list[float] = msgspec.field(default_factory=lambda: [0.0] * 24)  # the same by hour of the day
    hour_minutes: list[int] = msgspec.field(default_factory=lambda: [0] * 24)
    spread: float = spread_first  # the squared coefficient of variation of the rate
    evidence: float = 0.0
    began: int = 0  # the minute in which the evidence began, 0 for none
    missed: float = 0.0  # how many have not come since
    most: float = 0.0  # evidence since it began
    peak: float = 0.0  # the most there ever was without an alarm; fades
    alarmed: bool = False

    @property
    def needed(self) -> float:
        return max(needed_min, margin * self.peak)

    def count(self, minute: int, n: float) -> bool:
        """Take in what came in a minute (minutes since 1970, each once and in order); return whether an alarm stands now."""
        if self.minutes >= learning_minutes and self.usual >= usual_min:
            self._weigh(minute, n)
        self._learn(minute, n)
        return self.alarmed

    def skip(self) -> None:
        """Some minutes were not watched: what seemed to happen before them is not known any more."""
        self.evidence = self.most = self.missed = 0.0
        self.began, self.alarmed = 0, False

    def expected(self, minute: int) -> float:
        """Return what should come in a minute."""
        if not self.silence:
            return self.level
        hour = minute // 60 % 24
        usual = min(self.usual, self.hours[hour]) if self.hour_minutes[hour] >= learning_minutes else self.usual
        return min(self.level, lead_times * usual)

    def _weigh(self, minute: int, n: float) -> None:
        expected, needed = self.expected(minute), self.needed
        gain = min(gained(n, expected, max(self.spread, spread_min)), needed / minutes_min)
        self.evidence = 0.0 if self.silence and n > 0 else min(max(0.0, self.evidence + gain), needed * evidence_times_max)
        if self.evidence > 0.0 and not self.began:
            self.began, self.missed = minute, 0.0
        self.missed += max(0.0, expected - n) if self.began else 0.0
        self.most = max(self.most, self.evidence)
        if self.evidence >= needed:
            self.alarmed = True
        elif self.evidence <= (needed / 4 if self.alarmed else 0.0):
            self._ended(needed)

    def _ended(self, needed: float) -> None:
        # An alarm that nothing came of would come again and again: the bar is a little higher after each one.
        self.peak = max(self.peak * 0.5 ** (1 / half_life_minutes), min(self.most, 1.3 * needed) / (margin if self.alarmed else 1.0))
        self.evidence = self.most = 0.0
        self.began, self.alarmed = 0, False

    def _learn(self, minute: int, n: float) -> None:
        self.minutes += 1
        if self.minutes <= learning_minutes:
            self.level += (n - self.level) / min(self.minutes, up_minutes)
            self.usual += (min(n, 20.0) - self.usual) / self.minutes
            return
        level = self.level
        if level >= 1 and n < level:
            # Below only: a burst says nothing about how far down it goes by chance.
            self.spread += (max(0.0, (n - level) ** 2 - level) / level**2 - self.spread) / spread_minutes
        if n < level:
            share = min(1 / down_minutes, level / few) * (hold if self.evidence > self.needed / 4 else 1.0)
        else:
            share = min(1 / up_minutes, max(level, 0.05) / few / 2)
        self.level += (min(n, up_times * level + 1.0) - level) * share
        hour = minute // 60 % 24
        self.hour_minutes[hour] += 1
        self.hours[hour] += (min(n, 2 * self.hours[hour] + 0.2) - self.hours[hour]) / min(max(self.hour_minutes[hour], 10), 60 * hour_days)
        self.usual += (min(n, 2 * self.usual + 0.2) - self.usual) / day_minutes


def gained(n: float, expected: float, spread: float) -> float:
    """Return the log of the likelihood ratio of a drop to no drop: negative binomial, with means in that proportion and one spread."""
    if expected <= 0:
        return 0.0
    shape = 1 / spread
    ratio = (1 + expected * spread) / (1 + left_share * expected * spread)
    return shape * math.log(ratio) + n * (math.log(left_share) + math.log(ratio))
