"""Rows of events that a vendor's `parse` has read, one object at a time; and who the people in them are."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import msgspec
import numpy as np

from ..events import AGENTS, BOUNCE_CLASSES, KINDS, Event, Parsed, recipient_key
from ..kit.errors import MidflightError
from ..log.record import Record
from ..sources.source import Request, Source, decode_json, encode_json
from .agents import scanner_network
from .hashing import hash_text, hash_texts
from .people import People, said_of
from .program import name_key
from .providers import providers_of

_KIND = {name: code for code, name in enumerate(KINDS)}
_AGENT = {name: code for code, name in enumerate(AGENTS)}
_BOUNCE = {name: code for code, name in enumerate(BOUNCE_CLASSES)}
K_OPENED, K_CLICKED, K_CONVERTED, K_IDENTIFIED, K_TRACKED, K_PAGED = (
    _KIND[kind] for kind in ("opened", "clicked", "converted", "identified", "tracked", "paged")
)

ANSWERS = (_KIND["delivered"], _KIND["bounced"])
ABOUT_MESSAGES = frozenset(KINDS) - {"unknown", "inbound", "converted", "identified", "paged", "tracked"}

# Records of our own that are no events: what people ask for, and what the advisor told.
ASKED = ("definition", "decision")

# What a source's own code may raise for bytes it did not expect. Such a record waits among the dead letters until the file is mended.
MISTAKES = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, OverflowError, MemoryError)


class Dead(NamedTuple):
    """What could not be read: one item of a record, or the whole record (item -1)."""

    position: int
    item: int
    source: str
    reason: str
    detail: str
    raw: bytes
    at_us: int


class ParsedRows:
    """The rows of one batch that came through `parse`, and the book that is kept of all its records."""

    def __init__(self, sources: dict[str, Source], people: People) -> None:
        self.sources = sources
        self.people = people
        self.record: list[int] = []  # number of the record in the batch
        self.item: list[int] = []
        self.source: list[str] = []
        self.received: list[int] = []
        self.recipient: list[str] = []  # keys
        self.events: list[Event] = []
        self.money: list[tuple[int, int, int]] = []  # (row, value, key of the order id)
        self.traits: list[tuple[int, int]] = []
        self.identified: list[tuple[int, list[tuple[str, object]]]] = []  # (row, attributes as they were said)
        self.named: list[tuple[int, int]] = []  # (row, key of the name of a site event)
        self.given: list[tuple[int, int, float, int]] = []  # (row, attribute, number, key of the text)
        self.withdrawn: list[int] = []
        self.dead: list[Dead] = []
        self.replayed: list[tuple[int, int, bool]] = []
        self.asked: list[Record] = []
        self.receipts: dict[tuple[str, int], list[int]] = {}
        self.drops: dict[tuple[str, str], int] = defaultdict(int)

    # -- records -----------------------------------------------------------------------------------------------------------

    def read(self, number: int, record: Record) -> None:
        """Read one record. Never raises for what it holds."""
        if record.kind in ("webhook", "track"):
            self._request(number, record)
        elif record.kind == "events":
            self._canonical(number, record)
        elif record.kind == "replay":
            self._replay(number, record)
        elif record.kind in ASKED:
            self.asked.append(record)
        # Ticks move time and nothing else here.

    def _request(self, number: int, record: Record) -> None:
        source = self.sources.get(record.source)
        if source is None:
            self._bury(record, -1, "unknown_source", f"No source is configured as `{record.source}`", record.body)
            return
        before = len(self.events)
        try:
            parsed = source.parse(request_of(record))
        except MidflightError as error:
            self._bury(record, -1, error.code, error.text()[:300], record.body)
            parsed = Parsed()
        except MISTAKES as error:
            self._bury(record, -1, "unreadable", f"{type(error).__name__}: {error}"[:300], record.body)
            parsed = Parsed()
        for bad in parsed.bad:
            self._bury(record, bad.index, bad.reason, bad.detail, bad.raw)
        for item, event in enumerate(parsed):
            if is_about_nobody(event):
                raw = record.body if len(parsed) == 1 else encode_json(msgspec.to_builtins(event))
                self._bury(record, item, "nobody", "It names neither a recipient nor a campaign", raw)
            else:
                self._add(number, item, record.source, record.at_us, event)
        self.receipt(record, len(self.events) - before)

    def _canonical(self, number: int, record: Record) -> None:
        """Canonical events, from imports and polls. One that is not an event stops no other."""
        before = len(self.events)
        try:
            items = decode_json(record.body)
            if not isinstance(items, list):
                raise ValueError("an array of events is expected")
        except (MidflightError, ValueError) as error:
            self._bury(record, -1, "malformed", str(error)[:300], record.body)
            return
        for item, raw in enumerate(items):
            try:
                event = msgspec.convert(raw, Event)
            except (msgspec.ValidationError, RecursionError) as error:
                self._bury(record, item, "malformed", str(error)[:300], encode_json(raw))
                continue
            self._add(number, item, event.source or record.source, event.received_at_us or record.at_us, event)
        self.receipt(record, len(self.events) - before)

    def _replay(self, number: int, record: Record) -> None:
        """Read a dead letter again, as of its first receipt."""
        position, item, at_us = (int(record.headers[f"midflight-{name}"]) for name in ("position", "item", "at-us"))
        source = self.sources.get(record.source)
        readable = False
        if source is not None:
            request = msgspec.structs.replace(request_of(record), received_at_us=at_us)
            try:
                parsed = source.parse(request) if item < 0 else source.read([decode_json(record.body)], request)
            except (MidflightError, *MISTAKES):
                # It stays a dead letter; its row says that it was tried.
                parsed = None
            if parsed is not None:
                known = [(place, event) for place, event in enumerate(parsed) if not is_about_nobody(event)]
                for place, event in known:
                    self._add(number, place, record.source, at_us, event)
                readable = not parsed.bad and len(known) == len(parsed)
        self.replayed.append((position, item, readable))

    # -- rows --------------------------------------------------------------------------------------------------------------

    def _add(self, number: int, item: int, source: str, received_us: int, event: Event) -> None:
        row = len(self.events)
        kind = _KIND.get(event.kind, 0)
        key = recipient_key(event.recipient) if event.recipient else ""
        user = event.user_id
        self.record.append(number)
        self.item.append(item)
        self.source.append(source)
        self.received.append(received_us)
        self.events.append(event)
        self.recipient.append(key)
        if kind == K_CONVERTED:
            self.money.append((row, event.value_micros, hash_text("order " + event.order_id)[0] if event.order_id else 0))
        elif kind == K_IDENTIFIED and event.traits:
            packed = self.people.packed(event.traits)
            if packed:
                self.traits.append((row, packed))
            said = said_of(event.traits)
            self.identified.append((row, said))
            self.given += [(row, *given) for given in self.people.given(said)]
        elif kind in (K_TRACKED, K_PAGED) and event.name:
            self.named.append((row, name_key(event.name)))
        if user and key and kind == K_IDENTIFIED:
            for parked in self.people.learn(user, key):
                self._move(number, user, key, parked)
        elif user and not key:
            self.recipient[row] = self.people.key_of(user)
            if kind == K_CONVERTED and self.recipient[row].startswith("id:"):
                self.people.park(user, source, received_us, event)

    def _move(self, number: int, user: str, key: str, parked: tuple[str, int, Event]) -> None:
        """Take a conversion from the user id it was counted under and give it to the recipient that the user turned out to be."""
        source, received_us, event = parked
        for owner, withdraw in (("id:" + user, True), (key, False)):
            row = len(self.events)
            self._add(number, -1, source, received_us, msgspec.structs.replace(event, user_id="", recipient=""))
            self.recipient[row] = owner
            if withdraw:
                self.withdrawn.append(row)

    def _bury(self, record: Record, item: int, reason: str, detail: str, raw: bytes) -> None:
        self.dead.append(Dead(record.position, item, record.source, reason, detail, raw, record.at_us))
        self._count(record)[2] += 1

    def receipt(self, record: Record, events: int) -> None:
        """Note that a record of so many events came in."""
        counts = self._count(record)
        counts[0] += 1
        counts[1] += events
        if events:
            counts[3] = max(counts[3], record.at_us)

    def _count(self, record: Record) -> list[int]:
        return self.receipts.setdefault((record.source, record.at_us // 60_000_000), [0, 0, 0, 0])

    # -- columns -------------------------------------------------------------------------------------------------------------

    def columns(self) -> dict[str, np.ndarray]:
        """Return the rows as columns; texts as hashes, as the scanner gives them."""
        events = self.events
        ids = hash_texts([event.event_id for event in events])
        kinds = [_KIND.get(event.kind, 0) for event in events]
        messages = hash_texts([event.message_id for event in events])[:, 0]
        nameless = np.flatnonzero(messages == 0)
        # Without a message id the campaign and the recipient say which message it was.
        messages[nameless] = hash_texts(["campaign " + events[i].campaign for i in nameless])[:, 0]
        actions = [kind in (K_OPENED, K_CLICKED) for kind in kinds]
        return dict(
            record=np.array(self.record, np.int64),
            item=np.array(self.item, np.int64),
            received=np.array(self.received, np.int64),
            id_hi=ids[:, 0],
            id_lo=ids[:, 1],
            rcpt=hash_texts(self.recipient)[:, 0],
            provider=np.array(providers_of(self.recipient), np.uint16),
            msg=messages,
            kind=np.array(kinds, np.uint8),
            at_us=np.array([event.occurred_at_us for event in events], np.int64),
            url=hash_texts([event.url for event in events])[:, 0],
            user_agent=hash_texts([event.user_agent for event in events])[:, 0],
            flag=np.array([_AGENT.get(e.agent, 0) if action else 0 for e, action in zip(events, actions, strict=True)], np.uint8),
            scanner=np.array([action and scanner_network(e.ip) for e, action in zip(events, actions, strict=True)], np.uint8),
            bounce=np.array([_BOUNCE.get(event.bounce_class, 0) for event in events], np.uint8),
            campaign=hash_texts([event.campaign for event in events])[:, 0],
            variant=hash_texts([event.variant for event in events])[:, 0],
            wave=hash_texts([event.wave for event in events])[:, 0],
            domain=hash_texts([key[key.rfind("@") + 1 :] if "@" in key else "" for key in self.recipient])[:, 0],
            ip=hash_texts([event.ip if kind in ANSWERS else "" for event, kind in zip(events, kinds, strict=True)])[:, 0],
        )


def is_about_nobody(event: Event) -> bool:
    """Whether an event about a message names neither a person nor a campaign: it would be counted where nobody looks."""
    return event.kind in ABOUT_MESSAGES and not (event.user_id or event.campaign or recipient_key(event.recipient))


def request_of(record: Record) -> Request:
    return Request(url=record.url, headers=record.headers, body=record.body, received_at_us=record.at_us)
