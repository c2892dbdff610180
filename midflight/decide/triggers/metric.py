"""A metric crosses a level."""

from __future__ import annotations

from ...metrics import Sums
from ...metrics.metric import Count, Rate
from ._metrics import AboutMetric
from .trigger import BadTrigger


class Metric(AboutMetric):
    """``above`` or ``below`` a level; a rate counts from ``at_least`` messages below its line on."""

    label = "A metric crosses a level"
    doc = (
        "Looked at once a minute, over the last minutes that are over, by when things happened. It fires when the metric comes to be "
        "across the level, and again only after it was back. A rate says nothing while less than `at_least` stands below its line, so an "
        "empty denominator fires nothing; a count that is to be below a level is believed once the whole time has gone by."
    )
    EXAMPLES = (
        (
            {"kind": "metric", "metric": "bounce_rate", "above": 0.05, "over": "15m", "provider": "Gmail"},
            "the bounce rate of all mail to Gmail over the last 15 minutes is above 5 %",
        ),
        (
            {"kind": "metric", "metric": "sent", "below": 1, "over": "2h", "campaign": "welcome"},
            "the sent of campaign `welcome` over the last 2 hours is below 1",
        ),
    )

    above: float | None = None
    below: float | None = None
    at_least: int = 100

    def check(self) -> None:
        super().check()
        if (self.above is None) == (self.below is None):
            raise BadTrigger("Across which level?", expected="`above` or `below`, one of them", where="$.when")
        level, share = self._level(), issubclass(self.of(), Rate)
        if not 0 <= level <= (1 if share else 1e15):
            expected = "0 to 1, as 0.05 for 5 %" if share else "at least 0"
            raise BadTrigger("No such level", expected=expected, got=level, where="$.when.above" if self.below is None else "$.when.below")
        if self.at_least < 1:
            raise BadTrigger("From how many on does the rate count?", expected="at least 1", got=self.at_least, where="$.when.at_least")

    def _level(self) -> float:
        return self.above if self.below is None else self.below

    def words(self) -> str:
        level = self._level()
        said = f"{level * 100:g} %" if issubclass(self.of(), Rate) else f"{level:g}"
        return f"{self.subject()} over the last {self.length()} is {'above' if self.below is None else 'below'} {said}"

    def is_so(self, window: Sums, before: Sums, whole: bool) -> bool | None:
        metric = self.of()
        if issubclass(metric, Count):
            if self.below is not None and not whole:
                return None
        elif window.of(metric.under(machines=False)) < self.at_least:
            return None
        value = metric.compute(window).value
        if value is None:
            return None
        return value > self.above if self.below is None else value < self.below
