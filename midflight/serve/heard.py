"""What has come by webhook, by what it says: for vendors whose APIs give past events without the webhooks' ids."""

from __future__ import annotations

import threading
from collections import OrderedDict
from hashlib import blake2b

from ..events import Event, recipient_key
from ..kit.errors import MidflightError
from ..log.reader import Reader
from ..log.record import Record
from ..sources import Request, Source

events_max = 1_000_000  # that are remembered, about 150 MB
read_bytes_max = 4 * 1024 * 1024


class Heard:
    """Events of one source, each as a few bytes. Of more than ``most`` those heard first are forgotten, and then nothing is said of their
    time any more: what is missing is better than what counts twice."""

    def __init__(self, most: int = events_max) -> None:
        self._most = most
        self._seen: OrderedDict[bytes, int] = OrderedDict()
        self._horizon_us = 0

    def hear(self, events: list[Event]) -> None:
        for event in events:
            self._seen[said(event)] = event.occurred_at_us
        while len(self._seen) > self._most:
            self._horizon_us = max(self._horizon_us, self._seen.popitem(last=False)[1])

    def unheard(self, events: list[Event]) -> list[Event]:
        return [event for event in events if event.occurred_at_us > self._horizon_us and said(event) not in self._seen]


def said(event: Event) -> bytes:
    """Return what an event says, to the second: kind, message, person, link."""
    parts = (event.kind, event.message_id, recipient_key(event.recipient), str(event.occurred_at_us // 1_000_000), event.url)
    return blake2b("\x1f".join(parts).encode("utf-8", "replace"), digest_size=12).digest()


class LogHeard:
    """What the log has of some sources' webhooks, followed as it grows. ``unheard`` may be called in any thread."""

    def __init__(self, reader: Reader, sources: dict[str, Source], from_us: int) -> None:
        self._reader, self._sources = reader, sources
        self._heard = {name: Heard() for name in sources}
        self._position = position_at(reader, from_us)
        self._lock = threading.Lock()

    def unheard(self, source: str, events: list[Event]) -> list[Event]:
        """Return those of a source's events that no webhook has brought by now."""
        if source not in self._sources:
            return events
        with self._lock:
            self._follow()
            return self._heard[source].unheard(events)

    def _follow(self) -> None:
        # What is kept no longer was read, or is older than what is asked for.
        self._position = max(self._position, self._reader.first())
        while records := self._reader.read(self._position, read_bytes_max):
            for record in records:
                self._hear(record)
            self._position = records[-1].position + 1

    def _hear(self, record: Record) -> None:
        source = self._sources.get(record.source)
        if source is None or record.kind != "webhook":
            return
        try:
            request = Request(url=record.url, headers=record.headers, body=record.body, received_at_us=record.at_us)
            self._heard[record.source].hear(source.parse(request))
        except (MidflightError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError):
            # It is no event of the vendor's for us either; the engine has said so.
            return


def position_at(reader: Reader, at_us: int) -> int:
    """Return the position of the first record that was appended at a time or later."""
    low, high = reader.first(), reader.head()
    while low < high:
        middle = (low + high) // 2
        records = reader.read(middle, 1)
        if records and records[0].at_us < at_us:
            low = middle + 1
        else:
            high = middle
    return low
