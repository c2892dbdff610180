"""Serve the API and the console, without the door and the engine."""

from __future__ import annotations

import os
import sys

from ..config import Config, load_config
from ..serve.api import serve
from ..serve.auth import NoRoom, base_url, setup_url


def command() -> None:
    """Serve the API and the console, without the door and the engine."""
    config = load_config()
    if os.environ.get("MIDFLIGHT_SUPERVISED"):
        # Whoever started us has said all this.
        serve(config)
        return
    link = first_link(config)
    print(f"Console at {base_url(config)}/", flush=True)
    say_first(link)
    serve(config)


def first_link(config: Config) -> str | None:
    """Return the link that makes the first user, where there is none yet. A full disk stops nothing: the console says it too."""
    try:
        return setup_url(config)
    except NoRoom as error:
        print(f"midflight: {error.text()}", file=sys.stderr, flush=True)
        return None


def say_first(link: str | None) -> None:
    if link:
        print(f"There is no user yet. Make the first one here, within a day: {link}", flush=True)
