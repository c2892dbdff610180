"""Writes back what is known of people: latest states in batches, each way on its own, until each is written or refused for a reason."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import apsw
import msgspec

from ..act.written_back import Item, Outcome, WayBack
from ..act.written_back._waiting import Change, Waiting
from ..kit.clock import Clock
from ..kit.crash import crash_point
from ..kit.owned import own
from ..sources.polls import Answer, Call
from ..sources.polls.poll import NotAllowed, NotNow, Unreadable
from .asking import Asker, Limits, patience_s
from .polling import said_of, state_of

logger = logging.getLogger("midflight.writing_back")

rest_s, state_s, stop_s, forget_s = 1.0, 1.0, 0.2, 86_400.0
retry_s_first, retry_s_max, denied_s_max = 2.0, 300.0, 3600.0
kept_us = 400 * 86_400_000_000  # a person who is in no segment any more is forgotten after so long


class Standing(msgspec.Struct):
    """How a way back stands, for the console."""

    kind: str
    state: str = "waiting"  # waiting, writing, good, not_now, not_allowed, unreadable, mistaken
    last_good_us: int = 0
    written: int = 0
    waiting: int = 0
    since_us: int = 0
    refused: int = 0
    refused_why: str = ""
    error: dict | None = None
    tries: int = 0


class WritingBack:
    """All ways back of one data folder. `note` says what became true of people; the rest happens by itself."""

    def __init__(
        self, ways: dict[str, WayBack], folder: Path, clock: Clock, *, asker: Asker | None = None, verify: bool | ssl.SSLContext = True
    ):
        self.ways, self.clock = ways, clock
        self.folder = folder / "written_back"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = own(self.folder / "lock", f"Another process writes back for {folder}", todo="Stop it first")
        self.waiting = Waiting(self.folder / "written_back.db")
        self.asker = asker or Asker(verify=verify)
        self.standings = {name: Standing(way.label) for name, way in ways.items()}
        self._limits = {name: self._limits_of(name, way) for name, way in ways.items()}
        for name, way in ways.items():
            if way.rests and not self.waiting.last_us(name):
                # Its first night is the next one.
                self.waiting.settle(name, [], [], clock.now_us())

    def _limits_of(self, name: str, way: WayBack) -> Limits:
        settings = way.settings
        return Limits(
            settings.per_second, settings.per_day, self.clock, lambda day: self.waiting.calls(name, day),
            lambda day: self.waiting.called(name, day),
        )  # fmt: skip

    async def close(self) -> None:
        await self.asker.close()
        self.waiting.close()
        self._lock.close()

    def note(self, changes: list[Change], only: str = "", told: tuple[int, str] | None = None) -> None:
        """Take in what became true of people, for all ways that write it or for one; it is durable when this returns, and may be said
        twice. ``told``: how far the store has been read with this. Raises apsw.Error on a full disk."""
        ways = {name: way for name, way in self.ways.items() if not only or name == only}
        wanted = {name: [change for change in changes if way.wants(change.name)] for name, way in ways.items()}
        self.waiting.note(wanted, self.clock.now_us(), told)

    async def run(self, stop: Callable[[], bool]) -> None:
        """Write back until told to stop. What is under way is given up: it is written again."""
        state_next_s = forget_next_s = 0.0
        tasks = [asyncio.create_task(self._keep_on(name), name=name) for name in self.ways]
        try:
            while not stop():
                now_s = self.clock.monotonic_s()
                if now_s >= forget_next_s:
                    self._forget()
                    forget_next_s = now_s + forget_s
                if now_s >= state_next_s:
                    self.write_state()
                    state_next_s = now_s + state_s
                await asyncio.sleep(stop_s)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.write_state()

    def _forget(self) -> None:
        try:
            self.waiting.forget(self.ways, self.clock.now_us() - kept_us)
        except apsw.Error as error:
            logger.warning("people who are in no segment any more are forgotten later: %s", error)

    async def _keep_on(self, name: str) -> None:
        while True:
            rest = await self.turn(name)
            await asyncio.sleep(rest)

    async def turn(self, name: str) -> float:
        """Write what is due, whatever comes of it, and return in how many seconds to look again."""
        standing = self.standings[name]
        try:
            standing.written += await self.write(name)
        except Exception as error:
            # Whatever it is, the others go on, and this one comes back.
            standing.tries += 1
            standing.state, standing.error = state_of(error), said_of(error)
            if standing.tries == 1:
                logger.warning("way back `%s` goes on later: %s", name, standing.error["what"], exc_info=standing.state == "mistaken")
            if isinstance(error, NotNow) and error.retry_s:
                return error.retry_s
            return patience_s(standing.tries - 1, retry_s_first, denied_s_max if isinstance(error, NotAllowed) else retry_s_max, name)
        standing.state, standing.error, standing.tries = "good", None, 0
        standing.last_good_us = self.clock.now_us()
        return rest_s

    async def write(self, name: str) -> int:
        """Write all who are due, batch by batch, and return how many were written. Raises what it meets."""
        way, written = self.ways[name], 0
        while True:
            now_us = self.clock.now_us()
            if way.due_us(now_us, self.waiting.last_us(name)) > now_us:
                return written
            items = self.waiting.batch(name, way.batch_max, now_us - int(way.settings.wait_s * 1e6))
            if not items:
                if way.rests:
                    # A night without changes is a night: what comes later waits for the next one.
                    self.waiting.settle(name, [], [], now_us)
                return written
            outcomes = await self._written(way, items)
            crash_point("written_back")
            self.waiting.settle(name, items, outcomes, self.clock.now_us())
            crash_point("written_back_settled")
            written += sum(outcome.kind == "written" for outcome in outcomes)

    async def _written(self, way: WayBack, items: list[Item]) -> list[Outcome]:
        """Write a batch; where all are refused together each half goes alone, so that one bad state stops no other."""
        try:
            outcomes = await way.write(items, lambda call: self._ask(way.name, call), self.clock.now_us())
        except Unreadable as error:
            if len(items) == 1:
                return [Outcome(kind="refused", why=error.text()[:200])]
            half = len(items) // 2
            return [*await self._written(way, items[:half]), *await self._written(way, items[half:])]
        assert len(outcomes) == len(items)
        return outcomes

    async def _ask(self, name: str, call: Call) -> Answer:
        await self._limits[name].turn()
        return await self.asker.ask(call)

    def write_state(self) -> None:
        """Write down how all ways stand; that it cannot be written stops nothing."""
        try:
            for name, standing in self.standings.items():
                for field, value in self.waiting.standing(name).items():
                    setattr(standing, field, value)
            fresh = self.folder / ".state.json"
            fresh.write_bytes(msgspec.json.encode({"at_us": self.clock.now_us(), "ways": self.standings}))
            os.replace(fresh, self.folder / "state.json")
        except (OSError, apsw.Error) as error:
            logger.warning("how the ways back stand cannot be written down: %s", error)
