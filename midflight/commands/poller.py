"""Run the poller: the process that asks other systems now and then, and writes segments and engagement back to them."""

from __future__ import annotations

from .. import flow
from ..config import load_config


def command() -> None:
    """Run the poller: the process that asks other systems now and then, and writes segments and engagement back to them."""
    flow.poller(load_config())
