"""What stops an arm or a campaign: a rate that is surely above its ceiling, whenever one looks; pure."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import numpy as np

alpha = 0.01  # the chance that a campaign is stopped although every rate is at most at its ceiling
open_from = 1 - 1e-12  # a ceiling that no rate is above
# How many times the ceiling the rate may be, and how likely each is held to be before.
_TIMES = np.exp(np.linspace(math.log(1.1), math.log(30.0), 40))
_LOG_WEIGHT = -math.log(_TIMES.size)

Ceiling = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Guardrails(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Ceilings as shares of delivered messages (bounces: of delivered and bounced ones); a ceiling of 0 stops at the first.

    Gmail and Yahoo ask for complaints below 0.1 % and never 0.3 %; SES reviews a sender at 5 % bounces.
    """

    unsubscribe: Ceiling = 0.01
    complaint: Ceiling = 0.002
    bounce: Ceiling = 0.05


class Counts(msgspec.Struct, kw_only=True):
    """Sums of one arm since the start."""

    delivered: int = 0
    bounced: int = 0
    complained: int = 0
    unsubscribed: int = 0


class Trip(msgspec.Struct, kw_only=True):
    """A rate above its ceiling. ``arm`` is -1 for the campaign as a whole."""

    arm: int
    what: str
    happened: int
    of: int
    ceiling: float
    evidence: float


def trips(arms: list[Counts], guardrails: Guardrails) -> list[Trip]:
    """Return every rate, of an arm or of all together, that is surely above its ceiling; the campaign's first."""
    whole = Counts(**{name: sum(getattr(arm, name) for arm in arms) for name in Counts.__struct_fields__})
    looked_at = [(-1, whole), *(enumerate(arms) if len(arms) > 1 else ())]
    needed = 3 * len(looked_at) / alpha
    found = []
    for arm, counts in looked_at:
        for what, happened, of, ceiling in (
            ("unsubscribe", counts.unsubscribed, counts.delivered, guardrails.unsubscribe),
            ("complaint", counts.complained, counts.delivered, guardrails.complaint),
            ("bounce", counts.bounced, counts.delivered + counts.bounced, guardrails.bounce),
        ):
            evidence = above(happened, max(of, happened), ceiling)
            if evidence >= needed:
                found.append(Trip(arm=arm, what=what, happened=happened, of=of, ceiling=ceiling, evidence=evidence))
    return found


def above(happened: int, of: int, ceiling: float) -> float:
    """Return the evidence against "the rate is at most the ceiling", an e-value at any time.

    The mixture over higher rates of the likelihood ratio to the ceiling; under any lower rate its expectation is at most 1, and
    it exceeds 1 / alpha at any time at all with probability at most alpha (Ville's inequality).
    """
    if ceiling >= open_from:
        return 1.0
    if ceiling <= 0:
        return math.inf if happened else 1.0
    return _mixture(happened, of, ceiling)


def _mixture(happened: int, of: int, ceiling: float) -> float:
    rates = np.minimum(ceiling * _TIMES, 0.5 * (1 + ceiling))
    log = happened * np.log(rates / ceiling) + (of - happened) * (np.log1p(-rates) - math.log1p(-ceiling)) + _LOG_WEIGHT
    most = float(log.max())
    return math.exp(min(700.0, most + math.log(float(np.exp(log - most).sum()))))
