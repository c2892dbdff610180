"""Run the door: the process that takes webhooks and tracked calls and makes them durable."""

from __future__ import annotations

import logging

from ..config import load_config


def command() -> None:
    """Run the door: the process that takes webhooks and tracked calls and makes them durable."""
    from ..serve.door import run_door

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    run_door(load_config())
