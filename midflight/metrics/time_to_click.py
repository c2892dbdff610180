"""Metric `time_to_click`."""

from __future__ import annotations

from .metric import Delay


class TimeToClick(Delay):
    label = "Time to click"
    delay = "click"
    doc = (
        "Median time from delivery (or from sending, where no delivery is known) to a person's first click of a message. The whole "
        "curve and the 90 % point are at `/v1/delays`."
    )
