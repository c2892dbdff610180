"""Metric `complaint_rate`."""

from __future__ import annotations

from .metric import Rate


class ComplaintRate(Rate):
    label = "Complaint rate"
    direction = "down"
    numerator = ("complained",)
    denominator = ("delivered",)
    doc = "Of the delivered messages, how many were reported as spam. Gmail and Yahoo ask for less than 0.1 % and never 0.3 %."
