"""Calls under way, each a task of its own: begun without waiting for them, and at the end waited for as long as patience lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

stop_s = 8.0


class UnderWay:
    """The tasks that have not ended. What a call brings, and what goes wrong in it, is for its own coroutine to note."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task] = set()

    def begin(self, work: Coroutine) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def end(self) -> None:
        """Wait for all of them, and cut off those that take longer than ``stop_s``."""
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=stop_s)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
