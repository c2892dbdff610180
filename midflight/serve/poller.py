"""The poller's process: asks other systems for what they know, tells them what became true of people, and looks whether each source brings
what it should.

Polls and ways back each keep their own files, which nobody else writes. What polls find they hand to the door; what is written back comes
from the store and the engine's memory. Nothing here holds up anything that is sent or counted.
"""

from __future__ import annotations

import asyncio
import signal
import ssl
import threading
from collections.abc import Callable

from ..act.written_back import REGISTRY as WAYS_BACK
from ..act.written_back import WayBack
from ..act.written_back.way_back import ways_of
from ..config import Config
from ..kit.clock import Clock
from ..sources.polls import Poll
from ..sources.polls._configured import polls_of
from ..store.read import Store
from .polling import polling_of
from .reconciling import Reconciling, looked
from .writing_back import WritingBack

reconcile_s = 2.0


def run_poller(config: Config) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    asyncio.run(poll(config, stop.is_set))


def configured(config: Config) -> tuple[dict[str, Poll], dict[str, WayBack]]:
    """Return all polls and ways back of a configuration. Raises ConfigError for one that is wrong."""
    return polls_of(config.polls, config.sources), ways_of(config.ways_back, WAYS_BACK)


async def poll(config: Config, stop: Callable[[], bool], *, clock: Clock | None = None, verify: bool | ssl.SSLContext = True) -> None:
    """Poll and write back for one data folder until told to stop. Raises ConfigError, Locked where another process does."""
    clock, folder = clock or Clock(), config.make_folder()
    polls, ways = configured(config)
    polling = polling_of(config, polls, clock, verify=verify)
    try:
        writing = WritingBack(ways, folder, clock, verify=verify)
        store = Store(config, clock)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(polling.run(stop))
                group.create_task(writing.run(stop))
                group.create_task(reconcile(Reconciling(config, store, polls), stop))
                if ways:
                    # What asks the engine knows all that the engine knows, which costs memory.
                    from .following import Following, follow

                    group.create_task(follow(Following(config, store, writing), stop))
        finally:
            store.close()
            await writing.close()
    finally:
        await polling.close()


async def reconcile(reconciling: Reconciling, stop: Callable[[], bool]) -> None:
    """Look at the sources until told to stop; in a thread, so that a slow store holds up no poll."""
    while not stop():
        await asyncio.to_thread(looked, reconciling)
        await asyncio.sleep(reconcile_s)
