"""Runs the polls: asks other systems, hands what they say to the door, and then, and only then, notes how far each one is.

Each poll is on its own: what one of them meets, be it an outage, a wrong key or a full disk, holds up no other, and nothing stops one for
good. What it cannot read it goes past; a row is set aside with its reason and read again after the next start, a range of time is noted as
a hole and asked for again later.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import aclosing
from hashlib import blake2b
from pathlib import Path

import apsw
import msgspec

from ..config import Config
from ..events import Event
from ..importing._lines import Opened
from ..importing._rows import Place, Rows, header_of
from ..kit.clock import Clock
from ..kit.crash import crash_point
from ..kit.errors import MidflightError, NotFound, nearest
from ..kit.owned import own
from ..log import Reader
from ..log.record import Record
from ..sources.polls import Answer, Call, Page, Poll
from ..sources.polls.poll import Cursor, NotAllowed, NotNow, Row, Unreadable
from .asking import Asker, Limits, patience_s
from .doorlink import append
from .heard import LogHeard
from .polled import Job, Polled, hole_tries_max, no_news

logger = logging.getLogger("midflight.polling")

events_max = 1_000  # of one record
body_bytes_max = 1024 * 1024  # of one record
retry_s_first, retry_s_max = 2.0, 300.0
door_s_first, door_s_max = 0.5, 30.0
denied_s_max = 3600.0  # who is not let in asks seldom
skip_after = 3  # tries after which something is left out, to be asked for again later
narrow_after = 5  # tries at one place after which a smaller piece is asked for
hole_s_first, hole_s_max = 900.0, 86_400.0
state_s, stop_s = 1.0, 0.2
jobs_s_max = 30.0  # for what is read again, at a time: what is new must not wait for a long backfill
heard_us = 10 * 86_400_000_000  # so far back it is looked what came by webhook, for vendors whose APIs do not give the webhooks' ids
# What our own code may raise where it is wrong, or a vendor's answer is of a shape that nobody thought of.
MISTAKES = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError, ImportError)

Append = Callable[[list[Record]], object]
Known = Callable[[str, list[Event]], list[Event]]


class Standing(msgspec.Struct):
    """How a poll stands, for the console. Times are microseconds; ``behind_s`` is how old what it has read is at least."""

    kind: str
    source: str
    state: str = "waiting"  # waiting, reading, good, not_now, not_allowed, unreadable, mistaken, door
    last_good_us: int = 0
    known_us: int = 0
    behind_s: float = 0.0
    next_us: int = 0
    pages: int = 0
    events: int = 0
    set_aside: int = 0
    set_aside_why: str = ""
    error: dict | None = None
    tries: int = 0
    jobs: list[dict] = []


class Lent:
    """What a poll may use (see `At`)."""

    def __init__(self, polling: Polling, name: str) -> None:
        settings = polling.polls[name].settings
        self._clock, self._asker = polling.clock, polling.asker
        self._limits = Limits(
            settings.per_second, settings.per_day, polling.clock, lambda day: polling.polled.calls(name, day),
            lambda day: polling.polled.called(name, day),
        )  # fmt: skip
        self.folder = polling.folder / "fetched" / name
        self.folder.mkdir(parents=True, exist_ok=True)

    def now_us(self) -> int:
        return self._clock.now_us()

    async def turn(self) -> None:
        await self._limits.turn()

    async def ask(self, call: Call) -> Answer:
        await self.turn()
        return await self._asker.ask(call)

    def rows(self, path: Path, place: int, line: int) -> Iterator[Row]:
        return table_rows(path, place, line)


class Polling:
    """All polls of one data folder. ``append`` has to have the records durable when it returns; it is called in a thread.

    ``known`` takes out of a source's events those that came by webhook already, for vendors whose APIs do not give the webhooks' ids.
    """

    def __init__(
        self, polls: dict[str, Poll], folder: Path, append: Append, clock: Clock, *, known: Known | None = None,
        verify: bool | ssl.SSLContext = True,
    ) -> None:  # fmt: skip
        self.polls, self.append, self.clock, self.known = polls, append, clock, known
        self.folder = folder / "polls"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = own(self.folder / "lock", f"Another process polls for {folder}", todo="Stop it first: two would ask twice")
        self.polled = Polled(self.folder / "polls.db")
        self.asker = Asker(verify=verify)
        self.standings = {name: Standing(poll.label, poll.source, known_us=self.polled.known_us(name)) for name, poll in polls.items()}
        self._lent: dict[str, Lent] = {}

    async def close(self) -> None:
        await self.asker.close()
        self.polled.close()
        self._lock.close()

    # -- for as long as it runs ----------------------------------------------------------------------------------------------

    async def run(self, stop: Callable[[], bool]) -> None:
        """Poll until told to stop. What is under way is given up: it comes again."""
        self.polled.keep_only(self.polls)
        tasks = [asyncio.create_task(self._keep_on(name), name=name) for name in self.polls]
        next_s = 0.0
        try:
            while not stop():
                if self.clock.monotonic_s() >= next_s:
                    self.write_state()
                    next_s = self.clock.monotonic_s() + state_s
                await asyncio.sleep(stop_s)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.write_state()

    async def _keep_on(self, name: str) -> None:
        while True:
            await self._rest(name, await self.turn(name))

    async def _rest(self, name: str, seconds: float) -> None:
        self.standings[name].next_us = self.clock.now_us() + int(seconds * 1e6)
        rest_until = self.clock.monotonic_s() + seconds
        # In pieces: somebody may ask for a backfill meanwhile.
        while (left := rest_until - self.clock.monotonic_s()) > 0 and not self._asked_for(name):  # noqa: ASYNC110
            await asyncio.sleep(min(left, 1.0))

    async def turn(self, name: str) -> float:
        """Look once, whatever comes of it, and return in how many seconds to look again."""
        standing, poll = self.standings[name], self.polls[name]
        standing.state = "reading"
        try:
            await self.look(name)
        except Exception as error:
            # Whatever it is, the poll goes on: it says what it met, and comes back.
            return self._troubled(name, error)
        standing.state, standing.error, standing.tries = "good", None, 0
        standing.last_good_us = self.clock.now_us()
        return 0.0 if next(self.polled.jobs(name, self.clock.now_us()), None) else poll.settings.every_s

    def _troubled(self, name: str, error: Exception) -> float:
        """Note what went wrong and return how long to wait; go past what cannot be read."""
        standing = self.standings[name]
        standing.tries += 1
        standing.state, standing.error = state_of(error), said_of(error)
        if not isinstance(error, NotNow | NotAllowed | Unreadable) and standing.tries == 1:
            logger.warning("poll `%s` goes on later: %s", name, standing.error["what"], exc_info=state_of(error) == "mistaken")
        if isinstance(error, NotNow) and error.retry_s:
            return error.retry_s
        if isinstance(error, (Unreadable, *MISTAKES)) or (isinstance(error, NotNow) and standing.tries % narrow_after == 0):
            self._go_past(name, error, standing.tries)
        most = denied_s_max if isinstance(error, NotAllowed) else retry_s_max
        return patience_s(standing.tries - 1, retry_s_first, most, name)

    def _go_past(self, name: str, error: Exception, tries: int, job: Job | None = None) -> bool:
        """Ask for less, and at last for what comes after it; the range left out is noted, to be asked for again. Return whether it went."""
        now_us = self.clock.now_us()
        try:
            cursor = job.cursor if job else self.polled.cursor(name)
            past = self.polls[name].past(cursor, now_us) if cursor else None
            skips = past is not None and past.to_us
            if past is None or (skips and (isinstance(error, NotNow) or tries < skip_after or (job and job.why.startswith("hole")))):
                # An outage is nothing to go past, however long: there is nothing behind it either. And a hole is not noted twice.
                return False
            if past.to_us:
                why = f"hole: {said_of(error)['what']}"[:200]
                later_us, mark = now_us + int(hole_s_first * 1e6), f"hole {name} {past.from_us} {past.to_us}"
                self.polled.ask(name, why, past.from_us, past.to_us, not_before_us=later_us, name=mark)
                logger.error(
                    "poll `%s` leaves out %d s of changes, to be asked for again: %s", name, (past.to_us - past.from_us) // 1_000_000, why
                )
            self.polled.save(name, past.cursor, 0, no_news, [], now_us, job)
        except (apsw.Error, *MISTAKES):
            logger.exception("poll `%s` cannot go past where it is", name)
            return False
        return True

    # -- one look -------------------------------------------------------------------------------------------------------------

    async def look(self, name: str) -> int:
        """Read all there is, page by page, then what is asked for again; return how many events were said. Raises what it meets."""
        poll, cursor = self.polls[name], self._cursor(name)
        await self._try_aside(name)
        said = await self._read(name, cursor, None)
        self._take_asked(name)
        until_s = self.clock.monotonic_s() + jobs_s_max
        for job in self.polled.jobs(name, self.clock.now_us()):
            if self.clock.monotonic_s() < until_s:
                said += await self._do(poll, job, until_s)
        if poll.repeats_s:
            self.polled.forget_events(name, self.clock.now_us() - int(2e6 * poll.repeats_s))
        return said

    def _cursor(self, name: str) -> Cursor:
        """Return where a poll is. With other settings everything is read once more, of which only what is new will be said."""
        made, cursor = fingerprint(self.polls[name]), self.polled.cursor(name)
        if cursor is None or self.polled.made(name) != made:
            first = self.polls[name].first_cursor(self.clock.now_us())
            if cursor and isinstance(cursor.get("from"), int) and isinstance(first.get("from"), int):
                # It may be further behind than a first look would begin.
                first["from"] = min(cursor["from"], first["from"])
            self.polled.begin(name, first, made)
        return self.polled.cursor(name)

    async def _read(self, name: str, cursor: Cursor, job: Job | None, until_s: float = 0.0) -> int | None:
        """Read pages to the end, and return how many events were said; None where time was up before it."""
        said = 0
        async with aclosing(self.polls[name].pages(cursor, self._lent[name])) as pages:
            async for page in pages:
                said += await self._keep(name, page, job)
                if page.wait_s:
                    raise NotNow(page.why, retry_s=page.wait_s)
                if page.more and until_s and self.clock.monotonic_s() >= until_s:
                    return None
        return said

    async def _keep(self, name: str, page: Page, job: Job | None) -> int:
        """Make a page last: first its events in the log, then where it leaves off."""
        poll, standing = self.polls[name], self.standings[name]
        news = self.polled.news(name, poll.source, page.found, for_good=not poll.repeats_s)
        events = news.events
        if self.known and poll.unknown_ids:
            events = await asyncio.to_thread(self.known, poll.source, events)
        await self._hand_over(name, events)
        crash_point("poll_appended")
        lost = self.polled.save(name, page.cursor, page.known_us, news, page.bad, self.clock.now_us(), job)
        crash_point("poll_saved")
        if lost:
            logger.error("poll `%s` has set aside so many rows that %d are gone: %s", name, lost, page.bad[0].detail)
        standing.pages += 1
        standing.events += len(events)
        standing.state, standing.tries = "reading", 0
        if not job:
            standing.known_us = max(standing.known_us, page.known_us)
        return len(events)

    async def _hand_over(self, name: str, events: list[Event]) -> None:
        """Give events to the door until it has them; the page waits meanwhile, and nothing new is asked for."""
        records = list(records_of(self.polls[name].source, events, self.clock.now_us()))
        tries = 0
        while records:
            try:
                await asyncio.to_thread(self.append, records)
                return
            except (MidflightError, OSError) as error:
                standing = self.standings[name]
                standing.state, standing.error = "door", said_of(error)
                if tries == 0:
                    logger.warning("poll `%s` waits for the door: %s", name, error)
                await asyncio.sleep(patience_s(tries, door_s_first, door_s_max, name))
                tries += 1

    # -- what is read again -------------------------------------------------------------------------------------------------------

    def backfill(self, name: str, from_us: int, to_us: int, ticket: str | None = None) -> None:
        """Have a range of time read once more. Raises NotFound for an unknown poll, MidflightError where it cannot be asked for ranges."""
        if name not in self.polls:
            raise NotFound(f"No poll is called `{name}`", todo=nearest(name, self.polls))
        self.polls[name].range_cursor(from_us, to_us)
        self.polled.ask(name, "backfill", from_us, to_us, name=ticket)

    def _asked_for(self, name: str) -> bool:
        try:
            return any(self.folder.glob(f"ask-{name}.*.json"))
        except OSError:
            return False

    def _take_asked(self, name: str) -> None:
        """Take in what other processes ask for (see `ask_backfill`); each is noted before its file goes."""
        for path in sorted(self.folder.glob(f"ask-{name}.*.json"))[:100]:
            try:
                asked = msgspec.json.decode(path.read_bytes(), type=Asked)
                self.backfill(name, asked.from_us, asked.to_us, path.name)
            except (msgspec.DecodeError, MidflightError) as error:
                logger.error("poll `%s` cannot read a range of time again: %s", name, error)
            path.unlink(missing_ok=True)

    async def _do(self, poll: Poll, job: Job, until_s: float) -> int:
        if job.cursor is None:
            job = job._replace(cursor=poll.range_cursor(job.from_us, job.to_us))
        try:
            said = await self._read(poll.name, job.cursor, job, until_s)
        except (Unreadable, *MISTAKES) as error:
            if job.tries + 1 >= hole_tries_max:
                logger.error("poll `%s` gives up a range of time after %d tries: %s", poll.name, hole_tries_max, error)
                self.polled.job_ended(job, f"given up: {error}")
                return 0
            went = self._go_past(poll.name, error, job.tries + 1, self.polled.job(job.id) or job)
            later_s = patience_s(0 if went else job.tries, retry_s_first if went else hole_s_first, hole_s_max, poll.name)
            self.polled.job_later(job, self.clock.now_us() + int(later_s * 1e6), tried=not went)
            return 0
        if said is None:
            return 0
        self.polled.job_ended(job, "read")
        return said

    async def _try_aside(self, name: str) -> None:
        """Read what was set aside once more after each start: the configuration may have changed, or our code."""
        if name in self._lent:
            return
        self._lent[name] = Lent(self, name)
        poll, after = self.polls[name], 0
        while rows := self.polled.aside(name, after):
            after = rows[-1][0]
            ids, found = [], []
            for number, _, raw in rows:
                try:
                    found += poll.again(raw)
                    ids.append(number)
                except (MidflightError, *MISTAKES):
                    # It stays set aside, with the reason that it has.
                    continue
            news = self.polled.news(name, poll.source, found, for_good=not poll.repeats_s)
            await self._hand_over(name, news.events)
            self.polled.taken_back(name, ids, news, self.clock.now_us())

    # -- how it stands ---------------------------------------------------------------------------------------------------------------

    def write_state(self) -> None:
        """Write down how all polls stand, for whoever looks; that it cannot be written stops nothing."""
        now_us = self.clock.now_us()
        try:
            for name, standing in self.standings.items():
                standing.behind_s = max(0.0, (now_us - standing.known_us) / 1e6) if standing.known_us else 0.0
                standing.set_aside, standing.set_aside_why = self.polled.aside_count(name)
                standing.jobs = self.polled.job_list(name)
            fresh = self.folder / ".state.json"
            fresh.write_bytes(msgspec.json.encode({"at_us": now_us, "polls": self.standings}))
            os.replace(fresh, self.folder / "state.json")
        except (OSError, apsw.Error) as error:
            logger.warning("how the polls stand cannot be written down: %s", error)


def polling_of(config: Config, polls: dict[str, Poll], clock: Clock, *, verify: bool | ssl.SSLContext = True) -> Polling:
    """Return what runs polls over the data folder of a configuration; what they find is handed to the door. Raises Locked."""
    nameless = {poll.source: poll.reads for poll in polls.values() if poll.unknown_ids}
    heard = LogHeard(Reader(config.folder / "log"), nameless, clock.now_us() - heard_us) if nameless else None
    return Polling(
        polls, config.make_folder(), lambda records: append(config, records), clock, known=heard.unheard if heard else None, verify=verify
    )  # fmt: skip


class Asked(msgspec.Struct):
    from_us: int
    to_us: int


def ask_backfill(folder: Path, name: str, from_us: int, to_us: int, ticket: str) -> None:
    """Ask the polling process for a range of time, from any other: a file that it takes. One ``ticket`` is done once."""
    place = folder / "polls"
    place.mkdir(parents=True, exist_ok=True)
    fresh = place / f".ask-{name}.{ticket}"
    fresh.write_bytes(msgspec.json.encode(Asked(from_us, to_us)))
    os.replace(fresh, place / f"ask-{name}.{ticket}.json")


def records_of(source: str, events: list[Event], now_us: int) -> Iterator[Record]:
    """Pack events into records; the door stamps them."""
    body: list[bytes] = []
    size = 0
    for event in events:
        raw = msgspec.json.encode(event)
        if body and (len(body) >= events_max or size + len(raw) > body_bytes_max):
            yield Record("events", source, now_us, {}, b"[" + b",".join(body) + b"]")
            body, size = [], 0
        body.append(raw)
        size += len(raw) + 1
    if body:
        yield Record("events", source, now_us, {}, b"[" + b",".join(body) + b"]")


def table_rows(path: Path, place: int, line: int) -> Iterator[Row]:
    """Read a table's rows from a place on: CSV as people have it, also packed or in UTF-16. Raises MidflightError for what is none."""
    with Opened(path) as opened:
        header = header_of(opened)
    with Opened(path) as opened:
        for found in Rows(opened, header, Place(place, line) if place else header.place):
            yield Row(found.value, found.place, found.line, found.reason, found.raw)


def state_of(error: Exception) -> str:
    if isinstance(error, NotNow | NotAllowed | Unreadable):
        return error.code
    return "not_now" if isinstance(error, MidflightError | OSError | apsw.Error) else "mistaken"


def said_of(error: Exception) -> dict:
    if isinstance(error, MidflightError):
        return error.as_dict()["error"]
    return {"code": "error", "what": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


def fingerprint(poll: Poll) -> str:
    """Return what tells apart what is read: the kind, its source, and what rows mean. No secret of the settings is in it."""
    settings = poll.settings
    mapped = [
        getattr(settings, field, None) for field in ("key", "email", "user_id", "at", "traits", "events", "object", "query", "changed")
    ]
    said = msgspec.json.encode([type(poll).__name__, poll.source, mapped], order="sorted")
    return blake2b(said, digest_size=8).hexdigest()
