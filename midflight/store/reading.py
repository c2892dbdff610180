"""Records of the log become events once more, one by one and in full, for the history and for a person's timeline."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from ..config import Config
from ..events import Event
from ..kit.counters import Counters
from ..kit.errors import MidflightError
from ..log.record import Record
from ..sources import Request, Source, load
from ..sources.source import Malformed, content_id, decode_json
from ..stream.agents import classify, scanner_network
from ..stream.parsed import is_about_nobody

Numbered = list[tuple[int, Event]]

# User agents repeat; looking through one costs as much as the rest of the parsing.
verdict = lru_cache(maxsize=50_000)(classify)


class Reading:
    """Parses any record as the engine does, with the same numbers for its events; what the engine buries gives none here."""

    def __init__(self, config: Config, counters: Counters | None = None) -> None:
        self.counters = counters or Counters()
        self.sources: dict[str, Source] = {}
        for name, settings in config.sources.items():
            rest = {key: value for key, value in settings.items() if key != "kind"}
            self.sources[name] = load(settings["kind"], rest, name=name)

    def events(self, record: Record) -> Numbered:
        """Return the record's events, each with its item number. Never raises for what a record holds."""
        try:
            if record.kind in ("webhook", "track"):
                parsed = self._source(record).parse(request_of(record, record.at_us))
                found = [(item, event) for item, event in enumerate(parsed) if not is_about_nobody(event)]
            elif record.kind == "events":
                found = canonical(record)
            elif record.kind == "replay":
                found = self._again(record)
            else:
                return []
        except (MidflightError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, OverflowError):
            self.counters.add("history_unread_total", record.source)
            return []
        for _, event in found:
            # Only a scanner's address has a say.
            ip = event.ip if scanner_network(event.ip) else ""
            event.agent, event.agent_reason = verdict(event.kind, event.agent, event.agent_reason, event.user_agent, ip)
        return found

    def _source(self, record: Record) -> Source:
        if record.source not in self.sources:
            raise Malformed(f"No source is called `{record.source}`")
        return self.sources[record.source]

    def _again(self, record: Record) -> Numbered:
        """Read a dead letter, a whole body or one item of it, as of its first receipt."""
        source = self._source(record)
        said = {name.removeprefix("midflight-"): value for name, value in record.headers.items()}
        request = request_of(record, int(said.get("at-us", record.at_us)))
        whole = int(said["item"]) < 0
        return list(enumerate(source.parse(request) if whole else source.read([decode_json(record.body)], request)))


def request_of(record: Record, received_at_us: int) -> Request:
    return Request(url=record.url, headers=record.headers, body=record.body, received_at_us=received_at_us)


def canonical(record: Record) -> Numbered:
    """Read a body of canonical events; one that is none keeps its number and stops no other."""
    items = decode_json(record.body)
    if not isinstance(items, list):
        raise Malformed("A list of events is expected", got=type(items).__name__)
    found: Numbered = []
    for number, item in enumerate(items):
        try:
            event = msgspec.convert(item, Event)
        except (msgspec.ValidationError, RecursionError):
            continue
        event.source = event.source or record.source
        event.received_at_us = event.received_at_us or record.at_us
        event.event_id = event.event_id or content_id(event)
        found.append((number, event))
    return found
