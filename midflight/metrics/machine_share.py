"""Metric `machine_share`."""

from __future__ import annotations

from .metric import Rate, Sums, Value, share


class MachineShare(Rate):
    label = "Machine share"
    direction = "none"
    numerator = ("opens", "clicks", "opens_human", "clicks_human")
    denominator = ("opens", "clicks")
    formula = "(opens - opens_human + clicks - clicks_human) / (opens + clicks)"
    doc = (
        "Of all opens and clicks, repeats included, how many came from machines: prefetching mail clients, link scanners, bots. It is the "
        "same with and without machines, and every answer carries it."
    )

    @classmethod
    def compute(cls, sums: Sums) -> Value:
        everything = sums.of(cls.denominator)
        return share(everything - sums.of(("opens_human", "clicks_human")), everything)
