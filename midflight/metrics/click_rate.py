"""Metric `click_rate`."""

from __future__ import annotations

from .metric import Rate


class ClickRate(Rate):
    label = "Click rate"
    direction = "up"
    numerator = ("clicked_human",)
    numerator_all = ("clicked",)
    denominator = ("delivered",)
    doc = "Of the delivered messages, how many were clicked."
