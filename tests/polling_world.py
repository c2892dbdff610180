"""A small world for the tests of polling: a clock that is set, a log that is a list, fakes over real HTTP, and deaths between two steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from midflight.events import Event, recipient_key
from midflight.kit.clock import Clock
from midflight.log.record import Record
from midflight.serve import polling as polling_module
from midflight.serve.polling import Polling
from midflight.sources.polls import Poll
from midflight.sources.polls._configured import polls_of

NOW_US = 1_764_000_000_000_000
second_us = 1_000_000


class SetClock(Clock):
    """Wall time that is set; waiting goes by the machine's."""

    def __init__(self, at_us: int = NOW_US) -> None:
        self.at_us = at_us

    def now_us(self) -> int:
        return self.at_us

    def ahead(self, seconds: float) -> None:
        self.at_us += int(seconds * 1e6)


class Log:
    """What the door has taken. ``moods`` are raised in turn by the next appends, after taking the records where ``lost`` says so."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.moods: list[Exception | None] = []
        self.lost = False

    def __call__(self, records: list[Record]) -> None:
        mood = self.moods.pop(0) if self.moods else None
        if mood is None or self.lost:
            self.records += records
        if mood:
            raise mood

    def events(self) -> list[Event]:
        return [event for record in self.records for event in msgspec.json.decode(record.body, type=list[Event])]

    def unique(self) -> list[Event]:
        """Return events as the stream counts them: by source and id, the first one of each."""
        found: dict[tuple[str, str], Event] = {}
        for event in self.events():
            found.setdefault((event.source, event.event_id), event)
        return list(found.values())

    def people(self) -> dict[str, dict[str, object]]:
        """Return who is known with which traits: of each trait what is latest by time, of the same time what is greater."""
        latest: dict[tuple[str, str], tuple[int, str, object]] = {}
        for number, event in enumerate(self.unique()):
            for name, value in event.traits.items():
                key = (recipient_key(event.recipient), name)
                said = (event.occurred_at_us or NOW_US + number, msgspec.json.encode(value).decode(), value)
                latest[key] = max(latest.get(key, (0, "", None)), said, key=lambda one: one[:2])
        people: dict[str, dict[str, object]] = {}
        for (who, name), (_, _, value) in latest.items():
            people.setdefault(who, {})[name] = value
        return people


class Died(BaseException):
    """The process is gone; nobody can catch it."""


class World:
    """Polls over one folder; ``turn`` is a whole life of the polling process that looks once."""

    def __init__(self, folder: Path, polls: dict[str, dict], sources: dict[str, dict] | None = None, clock: SetClock | None = None) -> None:
        self.folder, self.raw, self.sources = folder, polls, sources or {}
        self.clock, self.log = clock or SetClock(), Log()
        self.state: dict = {}
        self.known: Callable | None = None

    def polls(self) -> dict[str, Poll]:
        return polls_of(self.raw, self.sources)

    def lives(self, act: Callable[[Polling], object]) -> object:
        async def life() -> object:
            polling = Polling(self.polls(), self.folder, self.log, self.clock, known=self.known)
            try:
                found = act(polling)
                return await found if asyncio.iscoroutine(found) else found
            finally:
                with suppress(OSError):
                    polling.write_state()
                    self.state = msgspec.json.decode((self.folder / "polls" / "state.json").read_bytes())
                await polling.close()

        return asyncio.run(life())

    def turn(self, name: str, times: int = 1) -> float:
        """Look some times in one life, and return how long the poll wants to rest after the last one."""

        async def turns(polling: Polling) -> float:
            rest = 0.0
            for _ in range(times):
                rest = await polling.turn(name)
            return rest

        return self.lives(turns)

    def turns_until_good(self, name: str, most: int = 60) -> int:
        """Look again and again, each time as soon as it wants to, and return how often it was not good."""

        async def turns(polling: Polling) -> int:
            for number in range(most):
                rest = await polling.turn(name)
                if polling.standings[name].state == "good":
                    return number
                self.clock.ahead(min(rest, 2.0))
            raise AssertionError(f"not good after {most} turns: {polling.standings[name].error}")

        return self.lives(turns)


def dies_at(monkeypatch: pytest.MonkeyPatch, place: str, count: int = 1) -> None:
    """Have the process die when it passes a place for the so-manieth time."""
    left = [count]

    def crash_point(name: str) -> None:
        if name == place:
            left[0] -= 1
            if left[0] == 0:
                raise Died(place)

    monkeypatch.setattr(polling_module, "crash_point", crash_point)
