"""The contract of a poll: a system that is asked now and then. What it answers becomes events, and a cursor says how far it has been asked.

A poll keeps nothing and writes nothing. It gives pages: what was found, and the cursor behind it. Whoever runs it makes what was found
durable first and the cursor after it, and only then asks for the next page. So whatever dies, nothing is lost, and what comes again comes
under the same event ids.

Amazon SES has no API by which past events can be asked for (https://docs.aws.amazon.com/ses/latest/dg/monitor-using-event-publishing.html:
events are published as they happen, to a destination that keeps them or does not), so there is no poll for it: keep them in S3 through
Firehose and import the files, or give the SNS subscription a dead-letter queue.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple, Protocol

import msgspec

from ...events import Bad, Event, clean
from ...kit.errors import ConfigError, MidflightError, nearest
from ..source import Source, decode_json

retry_s_min, retry_s_max = 1.0, 3600.0
answer_bytes_max = 32 * 1024 * 1024

Cursor = dict[str, object]  # plain JSON; each kind of poll has its own


class NotNow(MidflightError):
    """The other side cannot answer now: its limits, an outage, a lost connection. It is asked again, after ``retry_s`` where it said so."""

    code = "not_now"

    def __init__(self, what: str, *, retry_s: float = 0.0, **said: object) -> None:
        super().__init__(what, **said)
        self.retry_s = min(max(retry_s, retry_s_min), retry_s_max) if retry_s else 0.0


class NotAllowed(MidflightError):
    """The credentials are not accepted, or may not do this: somebody has to look. It is tried again, seldom."""

    code = "not_allowed"


class Unreadable(MidflightError):
    """An answer that cannot be read as a whole. The poll goes past it and comes back to what was in it."""

    code = "unreadable"


class Settings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What every poll can be told."""

    source: str = ""  # the source under whose name its events count; of an ESP's events, that of its webhooks. Empty: the poll's own name
    every_s: Annotated[float, msgspec.Meta(ge=1)] = 60.0  # between two looks
    since_days: Annotated[int, msgspec.Meta(ge=0, le=36_500)] = 30  # how far back the first look goes
    per_second: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 4.0  # calls
    per_day: Annotated[int, msgspec.Meta(ge=0)] = 0  # calls in a day of UTC; 0 is no bound


class Call(msgspec.Struct, kw_only=True, frozen=True):
    """One HTTP request."""

    method: str = "GET"
    url: str
    headers: dict[str, str] = {}
    body: bytes = b""

    def __repr__(self) -> str:
        return f"Call({self.method} {self.url.partition('?')[0]})"


class Answer(msgspec.Struct, kw_only=True, frozen=True):
    """The complete answer; header names are lower-case."""

    status: int = 200
    headers: dict[str, str] = {}
    body: bytes = b""


class Found(NamedTuple):
    """One event. ``key`` says which row of the other system it is from, in the poll: of such a row only what changed is news.

    ``whole`` where an event about a row has to repeat what did not change.
    """

    event: Event
    key: str = ""
    whole: bool = False


class Page(NamedTuple):
    """What one answer held, and where to go on.

    ``more``: go on, at once or after ``wait_s``. ``known_us``: all that happened before this has been read. ``why``: what makes it wait.
    """

    found: list[Found]
    cursor: Cursor
    more: bool = False
    bad: list[Bad] = []
    known_us: int = 0
    wait_s: float = 0.0
    why: str = ""


class Past(NamedTuple):
    """How to get past an answer that cannot be read: go on here, and come back to this time range where it is not empty."""

    cursor: Cursor
    from_us: int = 0
    to_us: int = 0


class Row(NamedTuple):
    """A row of a file. ``place`` and ``line`` are where to go on after it; ``value`` is None where it cannot be read, for ``reason``."""

    value: dict | None
    place: int
    line: int
    reason: str = ""
    raw: str = ""


class At(Protocol):
    """What whoever runs a poll lends it: the time, a way to ask within its limits, a reader of tables, a folder for what it fetches."""

    folder: Path

    def now_us(self) -> int: ...
    async def ask(self, call: Call) -> Answer: ...
    async def turn(self) -> None: ...  # one call's worth of the limits, for what does not go over HTTP
    def rows(self, path: Path, place: int, line: int) -> Iterator[Row]: ...


class Poll:
    """One kind of system. A subclass has ``Settings``, says where to begin and gives pages."""

    label: ClassVar[str] = ""
    doc: ClassVar[str] = ""
    docs_url: ClassVar[str] = ""
    # The kind of source that reads its items and under whose configured name they count, for an ESP's events.
    vendor: ClassVar[str] = ""
    Settings: ClassVar[type[Settings]] = Settings
    # settings, cursor, answer and the events that it means: the contract's test and the documentation.
    EXAMPLES: ClassVar[tuple[dict, ...]] = ()
    # For so long a row may be read again: events that have a key are known for that long. 0: for good.
    repeats_s: float = 0.0
    # True where the vendor's API does not give the ids of its webhooks: whoever runs this leaves out what came by webhook.
    unknown_ids: ClassVar[bool] = False

    def __init__(self, settings: Settings, *, name: str, source: Source | None = None) -> None:
        self.settings, self.name, self.reads = settings, name, source
        self.source = source.name if source else settings.source or name

    def first_cursor(self, now_us: int) -> Cursor:
        """Return where the first look begins."""
        raise NotImplementedError

    def range_cursor(self, from_us: int, to_us: int) -> Cursor:
        """Return a cursor that reads what happened in a range of time once more and ends there. Raises MidflightError where it cannot."""
        raise MidflightError(f"{self.label} cannot be asked for a range of time", todo="Read all of it anew: take the poll's cursor away")

    def pages(self, cursor: Cursor, at: At) -> AsyncIterator[Page]:
        """Give pages from a cursor on. The next one is asked for when the last one and its cursor are durable."""
        raise NotImplementedError

    def past(self, cursor: Cursor, now_us: int) -> Past | None:
        """Return how to get past what cannot be read at a cursor, or None where there is no way."""
        return None

    def again(self, raw: bytes) -> list[Found]:
        """Read a row that was set aside once more. Raises MidflightError where it still cannot be read."""
        raise MidflightError("What was set aside cannot be read again")

    def read_items(self, items: list, now_us: int) -> tuple[list[Found], list[Bad]]:
        """Give a vendor's items to the source that reads its webhooks: the same events with the same ids."""
        from ..source import Request

        parsed = self.reads.read(items, Request(received_at_us=now_us))
        # The receipt is when the log takes them.
        return [Found(msgspec.structs.replace(event, received_at_us=0)) for event in parsed], parsed.bad


class HttpPoll(Poll):
    """A poll over HTTP: two pure steps, the request at a cursor and what its answer means; the rest is the same for all."""

    token = None  # what fetches and renews an access token, where the vendor has those

    def request(self, cursor: Cursor, now_us: int) -> Call:
        raise NotImplementedError

    def read(self, answer: Answer, cursor: Cursor, now_us: int) -> Page:
        raise NotImplementedError

    def trouble(self, answer: Answer) -> MidflightError | None:
        """Return what is wrong with an answer that is not 2xx; None where `read` can make something of it."""
        return trouble_of(answer, self.label)

    def at_cursor(self, cursor: Cursor, now_us: int) -> Cursor:
        """Return the cursor with what has to stay the same until its page is durable, such as where a window ends."""
        return cursor

    async def pages(self, cursor: Cursor, at: At) -> AsyncIterator[Page]:
        while True:
            cursor = self.at_cursor(cursor, at.now_us())
            answer = await self._asked(cursor, at)
            page = self.read(answer, cursor, at.now_us())
            yield page
            cursor = page.cursor
            if not page.more:
                return

    async def _asked(self, cursor: Cursor, at: At) -> Answer:
        for again in (False, True):
            if self.token and (call := self.token.call(at.now_us())):
                self.token.take(await at.ask(call), at.now_us())
            answer = await at.ask(self.request(cursor, at.now_us()))
            if answer.status != 401 or not self.token or not self.token.renews or again:
                break
            # A session may end before its time.
            self.token.forget()
        problem = None if 200 <= answer.status < 300 else self.trouble(answer)
        if problem:
            raise problem
        return answer


def trouble_of(answer: Answer, label: str, said: str = "") -> MidflightError:
    """Return what an answer means that gives nothing, in the same words for all vendors."""
    status, said = answer.status, said or clean(answer.body[:200].decode("utf-8", "replace"))
    if status in (429, 503) or (status == 403 and "retry-after" in answer.headers):
        return NotNow(f"{label} asks for patience ({status})", got=said or None, retry_s=retry_after_s(answer.headers))
    if status in (401, 403):
        return NotAllowed(f"{label} does not accept the credentials ({status})", got=said or None, todo="Check the key and what it may do")
    if status >= 500 or status in (408, 425):
        return NotNow(f"{label} is in trouble ({status})", got=said or None, retry_s=retry_after_s(answer.headers))
    if 300 <= status < 400:
        return NotAllowed(f"{label} answers that it is elsewhere ({status})", todo="Check the address: redirects are not followed")
    return Unreadable(f"{label} refuses the request ({status})", got=said or None)


_DELTA = re.compile(r"\d{1,10}(\.\d*)?")


def retry_after_s(headers: dict[str, str], now_us: int = 0) -> float:
    """Return the seconds that ``Retry-After`` says, as number or as date beside the answer's own ``Date``; 0 where it says nothing."""
    given = headers.get("retry-after", "").strip()
    if _DELTA.fullmatch(given):
        return max(float(given), 0.001)
    try:
        until = parsedate_to_datetime(given)
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.fromtimestamp(now_us / 1e6, UTC)
        return max((until - now).total_seconds(), 0.001) if until.tzinfo and now.tzinfo else 0.0
    except (ValueError, TypeError, OverflowError):
        return 0.0


def decoded(answer: Answer, label: str) -> dict:
    """Return the object that an answer is. Raises Unreadable: half an answer is none."""
    try:
        found = decode_json(answer.body)
    except MidflightError as error:
        raise Unreadable(f"{label}: {error.what}") from None
    if not isinstance(found, dict):
        raise Unreadable(f"{label}: an object is expected", got=type(found).__name__)
    return found


def list_in(found: dict, name: str, label: str) -> list:
    """Return the list at a name. Raises Unreadable where there is none: no list is not an empty one."""
    items = found.get(name)
    if not isinstance(items, list):
        raise Unreadable(f"{label}: no list `{name}` in the answer", got=", ".join(sorted(map(str, found)))[:100])
    return items


def iso_of(us: int, digits: int = 3) -> str:
    """Return a time as ISO 8601 in UTC with so many digits of a second (0, 3 or 6)."""
    at = datetime.fromtimestamp(us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{at}.{us % 1_000_000:06d}"[: 20 + digits] + "Z" if digits else f"{at}Z"


def settings_of(kind: type[Poll], settings: dict, name: str) -> Settings:
    """Return a poll's settings, checked. Raises ConfigError."""
    unknown = sorted(set(settings) - set(kind.Settings.__struct_fields__))
    where = f"$.polls.{name}"
    if unknown:
        todo = nearest(unknown[0], kind.Settings.__struct_fields__)
        raise ConfigError(f"Poll `{name}`: unknown setting `{unknown[0]}`", where=f"{where}.{unknown[0]}", todo=todo)
    try:
        return msgspec.convert(settings, kind.Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"Poll `{name}`: {error}", where=where) from None
