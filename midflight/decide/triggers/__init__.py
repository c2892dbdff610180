"""What sets a rule off: one kind of trigger, one file. ``REGISTRY.get("event")`` is the class."""

from __future__ import annotations

from ...kit.plugins import Registry
from .trigger import AboutNumbers, AboutPeople, Trigger, trigger_of

REGISTRY = Registry(__name__, "trigger")

__all__ = ["REGISTRY", "AboutNumbers", "AboutPeople", "Trigger", "trigger_of"]
