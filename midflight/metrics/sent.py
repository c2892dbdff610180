"""Metric `sent`."""

from __future__ import annotations

from .metric import Count


class Sent(Count):
    label = "Sent"
    direction = "none"
    numerator = ("sent",)
    doc = "Messages that a vendor reported as sent, each counted once. Some vendors report none (SendGrid, Mailgun): see `attempted`."
