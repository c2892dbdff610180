"""Tells the ways back what the engine finds out about people: who is in which segment, and how engaged they are.

Entries and exits are read from the store in their order. Who was in a segment before anybody asked is taken from the engine's memory,
page by page, once for each version of a segment. Each is said with the time at which it was true, of which the latest counts, so that
nothing has to be said in order or once.

A score is asked for when a person comes into a segment or leaves it, and of everybody who is known here once a day.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import apsw

from ..act.written_back._waiting import Change
from ..config import Config
from ..kit.errors import MidflightError
from ..store import asking
from ..store.moves import Move, last_number, moves_after
from ..store.read import Store, View
from .writing_back import WritingBack

logger = logging.getLogger("midflight.following")

ENGAGEMENT = "engagement"
moves_max = 200  # that are taken in at a time, each with a score
people_max = 500
follow_s = 1.0
day_us = 86_400_000_000


class Following:
    """What has been told is in the ways' own file; `step` goes on from there."""

    def __init__(self, config: Config, store: Store, writing: WritingBack) -> None:
        self.folder, self.store, self.writing = config.folder, store, writing
        self._scored: dict[str, tuple[int, str]] = {}  # way -> the day of the last look at its people's scores, and who was last

    async def step(self) -> bool:
        """Take in some of what is new; return whether there may be more. Raises NoAnswer where the engine is away."""
        with self.store.view() as view:
            if not view.present:
                return False
            moves, segments = self._moves(view), dict(view.db.execute("SELECT name, version FROM segments"))
        if moves:
            await self._tell(moves)
        more = len(moves) == moves_max
        for way in self.writing.ways:
            more |= await self._fill(way, segments) or await self._score(way)
        return more

    # -- entries and exits -------------------------------------------------------------------------------------------------------

    def _moves(self, view: View) -> list[Move]:
        number, words = self.writing.waiting.told()
        known = moves_after(view.db, number - 1, 1) if number else []
        if (known and known[0].number == number and words_of(known[0]) != words) or last_number(view.db) < number:
            # The store was made anew: its moves have other numbers. What was said already says nothing new.
            self.writing.waiting.refill()
            number = 0
        elif number and known and known[0].number > number + 1:
            # Nobody has followed for so long that moves are gone which nobody has read: all members are taken in once more.
            self.writing.waiting.refill()
        return moves_after(view.db, number, moves_max)

    async def _tell(self, moves: list[Move]) -> None:
        changes = [Change(move.recipient, f"segment:{move.segment}", move.entered, move.at_us) for move in moves]
        changes += await self._scores(sorted({move.recipient for move in moves}))
        self.writing.note(changes, told=(moves[-1].number, words_of(moves[-1])))

    async def _scores(self, recipients: list[str]) -> list[Change]:
        if not recipients or not any(way.wants(ENGAGEMENT) for way in self.writing.ways.values()):
            return []
        found = await asyncio.to_thread(asking.scores, self.folder, recipients)
        return [Change(recipient, ENGAGEMENT, score, found.log_time_us) for recipient, score in found.scores.items()]

    # -- who is in a segment already ----------------------------------------------------------------------------------------------

    async def _fill(self, way: str, segments: dict[str, int]) -> bool:
        """Give a way one segment whole that it does not know in this version, or take away one that is gone; return whether it did."""
        filled = self.writing.waiting.filled(way)
        for name in sorted({*segments, *filled}):
            version = segments.get(name, 0)
            if filled.get(name, 0) != version and (name in filled or self.writing.ways[way].wants(f"segment:{name}")):
                await self._fill_one(way, name, version)
                return True
        return False

    async def _fill_one(self, way: str, segment: str, version: int) -> None:
        page = await asyncio.to_thread(asking.page, self.folder, segment)
        from_us = page.log_time_us
        while page.recipients:
            changes = [Change(recipient, f"segment:{segment}", True, page.log_time_us) for recipient in page.recipients]
            for start in range(0, len(page.recipients), asking.scores_max):
                changes += await self._scores(page.recipients[start : start + asking.scores_max])
            self.writing.note(changes, way)
            page = await asyncio.to_thread(asking.page, self.folder, segment, page.after)
        await self._leave(way, segment, from_us)
        self.writing.waiting.fill(way, segment, version)

    async def _leave(self, way: str, segment: str, before_us: int) -> None:
        """Take out of a segment those who were in it when it meant something else."""
        name, after = f"segment:{segment}", ""
        while people := self.writing.waiting.people(way, after, people_max):
            after = people[-1][0]
            gone = [who for who, state in people if name in state and state[name][1] is True and state[name][0] < before_us]
            self.writing.note([Change(who, name, False, before_us) for who in gone], way)
            await asyncio.sleep(0)

    # -- scores change with time alone ----------------------------------------------------------------------------------------------

    async def _score(self, way: str) -> bool:
        """Ask for the scores of some of a way's people; everybody's turn comes once a day."""
        today = self.writing.clock.now_us() // day_us
        day, after = self._scored.get(way, (0, ""))
        if day == today and not after:
            return False
        people = [who for who, _ in self.writing.waiting.people(way, after, asking.scores_max)]
        self.writing.note(await self._scores(people), way)
        self._scored[way] = (today, people[-1] if people else "")
        return bool(people)


def words_of(move: Move) -> str:
    """Return what a move says, without its number."""
    return f"{move.at_us} {int(move.entered)} {move.segment} {move.recipient}"


async def follow(following: Following, stop: Callable[[], bool]) -> None:
    """Take in what is new until told to stop, whatever comes of it."""
    while not stop():
        try:
            more = await following.step()
        except (MidflightError, apsw.Error) as error:
            logger.info("what is written back is taken in later: %s", error)
            more = False
        await asyncio.sleep(0 if more else follow_s)
