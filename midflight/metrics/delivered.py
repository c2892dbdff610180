"""Metric `delivered`."""

from __future__ import annotations

from .metric import Count


class Delivered(Count):
    label = "Delivered"
    direction = "up"
    numerator = ("delivered",)
    doc = "Messages that the receiving server accepted, each counted once."
