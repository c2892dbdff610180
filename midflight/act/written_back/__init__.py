"""Ways by which what Midflight knows of people goes back to other systems: one way, one file. ``REGISTRY.get("hubspot")`` is the class."""

from __future__ import annotations

from ...kit.plugins import Registry
from .way_back import Ask, Item, Outcome, WayBack

REGISTRY = Registry(__name__, "way_back")

__all__ = ["REGISTRY", "Ask", "Item", "Outcome", "WayBack"]
