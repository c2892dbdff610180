"""Metric `open_rate`."""

from __future__ import annotations

from .metric import Rate


class OpenRate(Rate):
    label = "Open rate"
    direction = "up"
    numerator = ("opened_human",)
    numerator_all = ("opened",)
    denominator = ("delivered",)
    doc = "Of the delivered messages, how many were opened."
