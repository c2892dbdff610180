"""Metric `conversion_rate`."""

from __future__ import annotations

from .metric import Rate


class ConversionRate(Rate):
    label = "Conversion rate"
    direction = "up"
    numerator = ("converted",)
    denominator = ("delivered",)
    doc = "Of the delivered messages, how many led to a conversion."
