"""Metric `bounce_rate`."""

from __future__ import annotations

from .metric import Rate


class BounceRate(Rate):
    label = "Bounce rate"
    direction = "down"
    numerator = ("bounced_hard", "bounced_soft", "bounced_block")
    denominator = ("delivered", "bounced_hard", "bounced_soft", "bounced_block")
    doc = (
        "Of the messages that the receiving server answered, how many bounced. The denominator is delivered plus bounced, not "
        "sent, because not every vendor reports sending."
    )
