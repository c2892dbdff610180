"""Metric `revenue_per_thousand`."""

from __future__ import annotations

from .metric import EMPTY, Metric, Sums, Value


class RevenuePerThousand(Metric):
    label = "Revenue per thousand"
    unit = "money_per_thousand"
    direction = "up"
    numerator = ("revenue_micros",)
    denominator = ("delivered",)
    doc = (
        "Attributed revenue for each thousand delivered messages, in the currency of the events; currencies are not converted. It has no "
        "interval: cells keep sums, and the spread of order values is not in them."
    )

    @classmethod
    def compute(cls, sums: Sums) -> Value:
        delivered = sums.of(cls.denominator)
        return Value(sums.of(cls.numerator) / 1e6 / delivered * 1000) if delivered > 0 else EMPTY
