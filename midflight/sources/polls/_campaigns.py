"""What a vendor knows of its campaigns becomes one event for each, whenever it has changed."""

from __future__ import annotations

from ...events import Event, clean
from .poll import Found

value_chars_max = 1_000


def described(campaign: str, key: str, occurred_at_us: int, about: dict[str, object]) -> Found:
    """Return the event that describes a campaign.

    Its kind is `identified`: it says what something is and not what happened, and counts nowhere. It is about a campaign and no person,
    its name is `campaign described`, and what is known stands in ``metadata``.
    """
    metadata = {
        name: clean(value)[:value_chars_max] if isinstance(value, str) else value
        for name, value in about.items()
        if value not in ("", None)
    }
    event = Event(
        kind="identified", name="campaign described", campaign=clean(campaign)[:500], occurred_at_us=occurred_at_us, metadata=metadata
    )
    return Found(event, f"campaign:{key}", whole=True)
