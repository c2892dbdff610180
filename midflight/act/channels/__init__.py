"""Ways out for email: one channel, one file. ``REGISTRY.get("sendgrid")`` is the class."""

from __future__ import annotations

from ...kit.plugins import Registry
from .channel import Answer, Call, Channel, Message, Outcome

REGISTRY = Registry(__name__, "channel")

__all__ = ["REGISTRY", "Answer", "Call", "Channel", "Message", "Outcome"]
