"""Metric `soft_bounce_rate`."""

from __future__ import annotations

from .metric import Rate


class SoftBounceRate(Rate):
    label = "Soft bounces"
    direction = "down"
    numerator = ("bounced_soft",)
    denominator = ("delivered", "bounced_hard", "bounced_soft", "bounced_block")
    doc = "Of the answered messages, how many bounced for now: full boxes, servers that are away."
