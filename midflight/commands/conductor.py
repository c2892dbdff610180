"""Send campaigns, without the door, the engine and the console."""

from __future__ import annotations

from .. import flow
from ..config import load_config


def command() -> None:
    """Send campaigns, without the door, the engine and the console."""
    flow.conductor(load_config())
