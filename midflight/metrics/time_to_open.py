"""Metric `time_to_open`."""

from __future__ import annotations

from .metric import Delay


class TimeToOpen(Delay):
    label = "Time to open"
    delay = "open"
    doc = (
        "Median time from delivery (or from sending, where no delivery is known) to a person's first open of a message. The whole "
        "curve and the 90 % point are at `/v1/delays`."
    )
