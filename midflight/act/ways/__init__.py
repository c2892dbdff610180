"""Ways out for actions that are no campaign email: one way, one file. ``REGISTRY.get("slack")`` is the class."""

from __future__ import annotations

from ...kit.plugins import Registry
from .way import Action, Answer, Call, LocalWay, Outcome, Way, check_urls, way_of

REGISTRY = Registry(__name__, "way")

__all__ = ["REGISTRY", "Action", "Answer", "Call", "LocalWay", "Outcome", "Way", "check_urls", "way_of"]
