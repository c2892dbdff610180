"""Serve the API and the console, without the door and the engine."""

from __future__ import annotations

from ..config import load_config
from ..serve.api import serve
from ..serve.auth import base_url, setup_url


def command() -> None:
    """Serve the API and the console, without the door and the engine."""
    config = load_config()
    link = setup_url(config)
    print(f"Console at {base_url(config)}/", flush=True)
    if link:
        print(f"There is no user yet. Make the first one here, within a day: {link}", flush=True)
    serve(config)
