"""How an experiment gives out its next wave: one policy, one file. ``REGISTRY.get("finite_list")`` is the class."""

from __future__ import annotations

from ...kit.plugins import Registry
from .policy import Plan, Policy

REGISTRY = Registry(__name__, "policy")

__all__ = ["REGISTRY", "Plan", "Policy"]
