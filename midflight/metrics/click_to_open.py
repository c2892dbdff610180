"""Metric `click_to_open`."""

from __future__ import annotations

from .metric import Rate


class ClickToOpen(Rate):
    label = "Click to open"
    direction = "up"
    numerator = ("clicked_human",)
    numerator_all = ("clicked",)
    denominator = ("opened_human",)
    denominator_all = ("opened",)
    doc = "Of the opened messages, how many were clicked. Clients that block images click without an open, so it can exceed 100 %."
