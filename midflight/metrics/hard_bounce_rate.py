"""Metric `hard_bounce_rate`."""

from __future__ import annotations

from .metric import Rate


class HardBounceRate(Rate):
    label = "Hard bounces"
    direction = "down"
    numerator = ("bounced_hard",)
    denominator = ("delivered", "bounced_hard", "bounced_soft", "bounced_block")
    doc = "Of the answered messages, how many bounced for good: the address does not exist or takes no mail."
