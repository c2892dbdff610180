"""A metric is not what it usually is."""

from __future__ import annotations

from typing import Literal

import msgspec

from ...metrics import Sums
from ..unusual import counted as cut_down
from ..unusual import expectation, tail, threshold
from ._metrics import AboutMetric

before_min = 200  # messages that show what is usual


class Unusual(AboutMetric):
    """A rate that is ``higher`` or ``lower`` than its own past explains."""

    label = "A metric is unusual"
    doc = (
        "Looked at once a minute: the last minutes beside all that came before them since the rule began, by a beta-binomial test in which "
        "days differ more than chance says. It tells less than one false alarm in twenty days, and only of changes of at least `points` "
        "(0.02 is two percentage points)."
    )
    EXAMPLES = (
        (
            {"kind": "unusual", "metric": "bounce_rate", "is": "higher"},
            "the bounce rate of all mail over the last 15 minutes is unusually high",
        ),
        (
            {"kind": "unusual", "metric": "click_rate", "is": "lower", "campaign": "spring", "over": "1h"},
            "the click rate of campaign `spring` over the last 1 hour is unusually low",
        ),
    )

    units = ("share",)

    is_: Literal["higher", "lower"] = msgspec.field(name="is", default="higher")
    points: float = 0.02

    def words(self) -> str:
        return f"{self.subject()} over the last {self.length()} is unusually {'high' if self.is_ == 'higher' else 'low'}"

    def is_so(self, window: Sums, before: Sums, whole: bool) -> bool | None:
        above, below = self.of().over(machines=False), self.of().under(machines=False)
        part, n, part_before, n_before = window.of(above), window.of(below), before.of(above), before.of(below)
        if n_before < before_min or n <= 0 or not 0 <= part <= n or not 0 <= part_before <= n_before:
            return None
        if self.is_ == "lower":
            # What did not happen is unusually much.
            part, part_before = n - part, n_before - part_before
        a, b = expectation(part_before, n_before, 0, 0)
        if part / n - a / (a + b) < self.points:
            return False
        return tail(*cut_down(part, n), a, b) <= threshold(1)
