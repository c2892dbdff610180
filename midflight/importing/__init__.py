"""Files that people have become events: one export format, one file. ``REGISTRY.get("postmark")`` is the class."""

from __future__ import annotations

from ..kit.plugins import Registry

REGISTRY = Registry(__name__, "export")

__all__ = ["REGISTRY"]
