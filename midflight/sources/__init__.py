"""Vendors' bytes become events: one vendor, one file. ``REGISTRY.get("sendgrid")`` is the class."""

from __future__ import annotations

from ..kit.plugins import Registry
from .source import Refused, Request, Response, Source

REGISTRY = Registry(__name__, "source")

__all__ = ["REGISTRY", "Refused", "Request", "Response", "Source", "load"]


def load(kind: str, settings: dict | None = None, *, name: str | None = None) -> Source:
    """Return a source ready to verify and parse: ``load("postmark", {"basic_auth": ["user:password"]})``.

    ``settings`` is checked strictly against the vendor's ``Config``; a wrong or unknown one is a ConfigError that says
    where. ``name`` is the configured name (default: the kind), the first half of every dedup key.
    """
    vendor = REGISTRY.get(kind)
    return vendor(vendor.configure(settings or {}, name or kind), name=name or kind)
