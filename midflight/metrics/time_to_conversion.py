"""Metric `time_to_conversion`."""

from __future__ import annotations

from .metric import Delay


class TimeToConversion(Delay):
    label = "Time to conversion"
    delay = "conversion"
    doc = "Median time from a person's click to the first conversion that is attributed to it."
