"""Systems that are asked instead of telling: one kind of poll, one file. ``REGISTRY.get("hubspot")`` is the class."""

from __future__ import annotations

from ...kit.plugins import Registry
from .poll import Answer, Call, Found, HttpPoll, Page, Poll

REGISTRY = Registry(__name__, "poll")

__all__ = ["REGISTRY", "Answer", "Call", "Found", "HttpPoll", "Page", "Poll"]
