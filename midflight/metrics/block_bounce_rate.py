"""Metric `block_bounce_rate`."""

from __future__ import annotations

from .metric import Rate


class BlockBounceRate(Rate):
    label = "Block bounces"
    direction = "down"
    numerator = ("bounced_block",)
    denominator = ("delivered", "bounced_hard", "bounced_soft", "bounced_block")
    doc = "Of the answered messages, how many were turned away because of the sender or the content, not the address."
