"""Run everything on this machine: door, engine, console and history, supervised."""

from __future__ import annotations

import sys

from .. import flow
from ..config import load_config
from ..serve.auth import base_url, setup_url
from ..store.host_local import load_sources
from ..supervise import Supervisor


def command() -> None:
    """Run everything on this machine: door, engine, console and history, supervised."""
    config = load_config()
    load_sources(config)  # a wrong source stops the start, with its own words, before any process runs
    link = setup_url(config)
    print(f"webhooks  http://{config.door.host}:{config.door.port}/in/NAME   ({len(config.sources)} sources)", flush=True)
    print(f"console   {base_url(config)}/", flush=True)
    if link:
        print(f"There is no user yet. Make the first one here, within a day: {link}", flush=True)
    sys.exit(Supervisor(list(flow.PROCESSES), lambda line: print(f"midflight: {line}", file=sys.stderr, flush=True)).run())
