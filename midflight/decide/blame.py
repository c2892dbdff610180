"""Whose fault a spike of bounces is, a mailbox provider's or a campaign's: by where the bounces beyond the usual ones come from; pure.

A provider that blocks us makes every campaign bounce there, and a bad list makes one campaign bounce everywhere. Either shows in the
sums of the other, and whoever holds the wrong one stops what is well and lets go on what is not.
"""

from __future__ import annotations

import msgspec

most = 0.8  # of the bounces beyond the usual ones have to come from one place, for it to be that place's
well_min = 100.0  # messages elsewhere that show that it is not everywhere
beyond_min = 3.0  # bounces beyond the usual ones that show that it is elsewhere too


class Pair(msgspec.Struct, kw_only=True, frozen=True):
    """What a provider answered to one campaign of late; the numbers may have faded."""

    campaign: str
    provider: str
    answered: float
    bounced: float


def blamed(kind: str, name: str, pairs: list[Pair], usual: float) -> tuple[str, str]:
    """Return kind and name of what has to be held for an alarm of a provider or a campaign: itself, or the other.

    An alarm of a provider is a campaign's where most of what is too much comes of that campaign, which bounces elsewhere as well; and the
    other way round. ``usual`` is the rate up to which nothing is too much.
    """
    other = "campaign" if kind == "provider" else "provider"
    here = [pair for pair in pairs if getattr(pair, kind) == name]
    found = _top(here, other, usual)
    if not found:
        return kind, name
    elsewhere = [pair for pair in pairs if getattr(pair, other) == found and pair not in here]
    beyond = sum(_excess(pair, usual) for pair in elsewhere)
    # What happens in one place alone is told by whoever else is there: others that are well take the blame off this one.
    well = sum(pair.answered for pair in here if getattr(pair, other) != found) >= well_min
    if kind == "campaign":
        return (other, found) if well else (kind, name)
    return (other, found) if beyond > (1 - most) * _excess_of(here, usual) and beyond >= beyond_min else (kind, name)


def _top(pairs: list[Pair], by: str, usual: float) -> str:
    """Return where most of the excess comes from, or ``""``."""
    total = sum(max(0.0, _excess(pair, usual)) for pair in pairs)
    if total <= 0:
        return ""
    top = max(pairs, key=lambda pair: _excess(pair, usual))
    name = getattr(top, by)
    return name if name and _excess(top, usual) >= most * total else ""


def _excess(pair: Pair, usual: float) -> float:
    return pair.bounced - usual * pair.answered


def _excess_of(pairs: list[Pair], usual: float) -> float:
    return sum(max(0.0, _excess(pair, usual)) for pair in pairs)
