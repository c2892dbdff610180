"""Run everything on this machine, supervised: door, engine, console, history, conductor and poller."""

from __future__ import annotations

import sys
from collections.abc import Callable

import apsw

from .. import flow
from ..config import Config, load_config
from ..kit.clock import Clock
from ..kit.errors import MidflightError
from ..log import Reader
from ..serve.auth import base_url
from ..serve.listening import CannotListen, listen
from ..serve.poller import configured
from ..store.folding import load_sources
from ..store.history import committed_position
from ..supervise import Supervisor
from .console import first_link, say_first

ports_s_max = 2.0  # a run that is just ending holds its ports for a moment


def command() -> None:
    """Run everything on this machine, supervised: door, engine, console, history, conductor and poller."""
    config = load_config()
    # A wrong source or poll stops the start, with its own words, before any process runs.
    load_sources(config)
    configured(config)
    link = first_link(config)
    wait_for_ports(config, Clock())
    print(f"webhooks  http://{config.door.host}:{config.door.port}/in/NAME   ({len(config.sources)} sources)", flush=True)
    print(f"console   {base_url(config)}/", flush=True)
    say_first(link)
    sys.exit(supervisor(config, lambda line: print(f"midflight: {line}", file=sys.stderr, flush=True)).run())


def supervisor(config: Config, say: Callable[[str], None]) -> Supervisor:
    """Return what runs all processes and ends them so that no backlog stays: first nothing new comes in, then it is folded."""
    return Supervisor(list(flow.PROCESSES), say, first=flow.FIRST_TO_END, caught_up=all_folded(config))


def all_folded(config: Config) -> Callable[[], bool]:
    """Return the question whether the engine has folded all that the log holds; where nobody can know, there is nothing to wait for."""
    log = Reader(config.folder / "log")

    def answer() -> bool:
        try:
            return committed_position(config.folder) >= log.head()
        except (MidflightError, OSError, apsw.Error):
            return True

    return answer


def wait_for_ports(config: Config, clock: Clock) -> None:
    """Raise CannotListen, once, where a port is taken: the processes would say it again and again."""
    until_s = clock.monotonic_s() + ports_s_max
    for name, place in (("door", config.door), ("console", config.console)):
        while True:
            try:
                listen(place.host, place.port, name).close()
                break
            except CannotListen:
                if clock.monotonic_s() > until_s:
                    raise
                clock.sleep_s(0.1)
