"""Campaign numbers: one metric, one file. ``REGISTRY.get("open_rate")`` is the class."""

from __future__ import annotations

from ..kit.plugins import Registry
from .metric import Metric, Sums, Value

REGISTRY = Registry(__name__, "metric")

__all__ = ["REGISTRY", "Metric", "Sums", "Value"]
