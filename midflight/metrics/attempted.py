"""Metric `attempted`."""

from __future__ import annotations

from .metric import Count, Sums, Value

ANSWERED = ("delivered", "bounced_hard", "bounced_soft", "bounced_block")


class Attempted(Count):
    label = "Attempted"
    direction = "none"
    numerator = ("queued", "sent", *ANSWERED)
    formula = "max(sent, queued, delivered + bounced)"
    doc = (
        "Messages handed over for sending: the largest of what was reported as sent, as queued, and as answered by the receiving "
        "server (delivered or bounced), because some vendors report no sending and others no queueing."
    )

    @classmethod
    def compute(cls, sums: Sums) -> Value:
        return Value(max(sums.of(("sent",)), sums.of(("queued",)), sums.of(ANSWERED)))
