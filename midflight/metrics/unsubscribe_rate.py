"""Metric `unsubscribe_rate`."""

from __future__ import annotations

from .metric import Rate


class UnsubscribeRate(Rate):
    label = "Unsubscribe rate"
    direction = "down"
    numerator = ("unsubscribed",)
    denominator = ("delivered",)
    doc = "Of the delivered messages, how many led to an unsubscribe."
