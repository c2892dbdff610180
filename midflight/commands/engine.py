"""Fold the log into numbers, without the door and the console."""

from __future__ import annotations

from .. import flow
from ..config import load_config


def command() -> None:
    """Fold the log into numbers, without the door and the console."""
    flow.engine(load_config())
