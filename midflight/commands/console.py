"""Serve the API and the console, without the door and the engine."""

from __future__ import annotations

import os

from ..config import load_config
from ..serve.api import serve
from ..serve.auth import base_url, setup_url


def command() -> None:
    """Serve the API and the console, without the door and the engine."""
    config = load_config()
    if os.environ.get("MIDFLIGHT_SUPERVISED"):
        # Whoever started us has said all this.
        serve(config)
        return
    link = setup_url(config)
    print(f"Console at {base_url(config)}/", flush=True)
    if link:
        print(f"There is no user yet. Make the first one here, within a day: {link}", flush=True)
    serve(config)
