"""Metric `click_to_conversion`."""

from __future__ import annotations

from .metric import Rate, Sums, Value, share, within


class ClickToConversion(Rate):
    label = "Click to conversion"
    direction = "up"
    denominator = ("clicked_human",)
    delay = "conversion"
    formula = "conversion delays within the window / clicked_human"
    doc = (
        "Of the messages a person clicked, how many led to a conversion within a time after the click (`within`, in minutes; without "
        "it, the attribution window of the configuration). Delays are kept in buckets, so the time is rounded down to a bucket's edge. "
        "Machines neither count as clicks nor convert."
    )

    @classmethod
    def compute(cls, sums: Sums) -> Value:
        buckets = sums.delays.get(cls.delay, [])
        converted = within(buckets, sums.within_s) if sums.within_s else sum(buckets)
        return share(converted, sums.of(cls.denominator))
