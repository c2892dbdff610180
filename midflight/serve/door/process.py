"""The door as a process of its own: its event loop, its signals, its limits."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import sys

import uvloop

from ...config import Config
from .door import Door

logger = logging.getLogger("midflight.door")

descriptors_spare = 256
# The log's thread makes several short system calls for each commit and has to get the interpreter back after each: with the usual
# 5 ms a busy event loop would make it wait longer than the disk does.
switch_s = 0.0002
failed_status = 74  # EX_IOERR: the log cannot be written any more


def run_door(config: Config) -> None:
    """Run until SIGTERM or SIGINT; a second one ends the process at once. Raises MidflightError, SystemExit (74: the log is lost)."""
    raise_descriptor_limit(config.door.connections_max + descriptors_spare)
    sys.setswitchinterval(switch_s)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        failed = runner.run(serve(config))
    if failed is not None:
        logger.error("the door ends: %s", failed)
        sys.exit(failed_status)


async def serve(config: Config) -> Exception | None:
    """Serve until a signal or until the log is lost; returns why it is."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def on_signal() -> None:
        if ended.is_set():
            os._exit(128 + signal.SIGTERM)
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    # Looking through the advisor's templates for garbage again and again would hold everybody up. What is frozen is this whole process's.
    door = Door(config, loaded=gc.freeze)
    await door.start()
    logger.info("listening on %s:%d", config.door.host, door.port)
    while not ended.is_set() and door.failed is None:
        try:
            await asyncio.wait_for(ended.wait(), 0.25)
        except TimeoutError:
            continue
    ended.set()
    await door.stop()
    return door.failed


def raise_descriptor_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted and soft != resource.RLIM_INFINITY:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
