"""docs/metrics.md: every campaign number, from the metrics themselves."""

from __future__ import annotations

from ...metrics.metric import markdown


def page() -> str:
    """Return the page."""
    return markdown()
