"""Records become a batch: parse, hash, intern, resolve who a person is. The last place where text is handled."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import msgspec
import numpy as np

from ..config import Attribute
from ..events import AGENTS, BOUNCE_CLASSES, KINDS, Event, recipient_key
from ..kit.errors import MidflightError
from ..log.record import Record
from ..sources.source import Columns, Request, Source, decode_json
from .agents import HUMAN, MACHINE, agent_of_user_agent, scanner_network
from .batch import Batch, empty_batch
from .fold import DAY_US, SURE
from .hashing import hash_text, hash_texts

future_us_max = 5 * 60 * 1_000_000  # a vendor's clock that is ahead of ours by more is told
year_2000_us = 946_684_800_000_000
campaigns_max = 1_000_000
names_max = 60_000  # variants, waves, sources: 16 bits in a cell's key
attribute_values_max = 254
parked_max = 100_000  # conversions waiting for their person to be identified
user_agents_max = 50_000  # cached verdicts
name_chars_max = 200
OTHER = "(other)"

_KIND = {name: code for code, name in enumerate(KINDS)}
_AGENT = {name: code for code, name in enumerate(AGENTS)}
_BOUNCE = {name: code for code, name in enumerate(BOUNCE_CLASSES)}
K_OPENED, K_CLICKED, K_CONVERTED, K_IDENTIFIED = (_KIND[k] for k in ("opened", "clicked", "converted", "identified"))


class Dead(NamedTuple):
    """What could not be read: one item of a record, or the whole record (item -1)."""

    position: int
    item: int
    source: str
    reason: str
    detail: str
    raw: bytes
    at_us: int


class Prepared(NamedTuple):
    """A batch and what is known about it beside its numbers."""

    batch: Batch
    position: list[int]  # of the record, per row
    item: list[int]  # index of the event within its record; -1 for a row that another event caused
    recipient: list[str]  # key, per row
    source: list[str]  # per row
    dead: list[Dead]
    replayed: list[tuple[int, int, bool]]  # (position, item, could be read now) of dead letters that were tried again
    receipts: dict[tuple[str, int], list[int]]  # (source, minute) -> [records, events, bad, latest event us]
    drops: dict[tuple[str, str], int]  # (source, reason) -> n
    log_time_us: int
    next_position: int


class Names:
    """Ids of names, given in log order; 0 is the unknown one. ``new`` collects what the store has not been told yet."""

    def __init__(self) -> None:
        self.ids: dict[str, dict[str, int]] = defaultdict(lambda: {"": 0})
        self.new: list[tuple[str, int, str]] = []

    def id(self, kind: str, name: str) -> int:
        known = self.ids[kind]
        name = name[:name_chars_max]
        found = known.get(name)
        if found is None:
            if len(known) >= self._max(kind):
                if name == OTHER:
                    return known.setdefault(OTHER, len(known))
                return self.id(kind, OTHER) if OTHER in known else self._add(kind, OTHER)
            found = self._add(kind, name)
        return found

    def column(self, kind: str, names: list[str]) -> list[int]:
        known = self.ids[kind]
        try:
            return [known[name] for name in names]
        except KeyError:
            return [self.id(kind, name) for name in names]

    def _add(self, kind: str, name: str) -> int:
        number = self.ids[kind][name] = len(self.ids[kind])
        self.new.append((kind, number, name))
        return number

    @staticmethod
    def _max(kind: str) -> int:
        # One place is left for OTHER.
        return {"campaign": campaigns_max}.get(kind, attribute_values_max if kind.startswith("attribute:") else names_max)


class Edge:
    """Turns records into batches. Its state (names, who is who) is a function of the log."""

    def __init__(self, sources: dict[str, Source], attributes: list[Attribute], names: Names) -> None:
        self.sources = sources
        self.attributes = attributes
        self.names = names
        self.people: dict[str, str] = {}  # user id -> recipient key
        self.parked: dict[str, list[tuple]] = {}  # user id -> conversions folded under the user id alone
        self.parked_count = 0
        self._user_agents: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self._salts: dict[str, int] = {}

    def prepare(self, records: list[Record]) -> Prepared:
        """Turn records, in log order, into one batch. Never raises for what a record holds."""
        rows = _Rows(self)
        for record in records:
            rows.record(record)
        return rows.finish()

    def snapshot(self) -> dict:
        return {"people": self.people, "parked": {user: list(rows) for user, rows in self.parked.items()}}

    def load(self, state: dict) -> None:
        self.people = dict(state["people"])
        self.parked = {user: [tuple(row) for row in rows] for user, rows in state["parked"].items()}
        self.parked_count = sum(len(rows) for rows in self.parked.values())

    # -- used by _Rows ---------------------------------------------------------------------------------------------------

    def salt(self, source: str) -> int:
        """Return the 64 bits that keep equal ids of different sources apart."""
        found = self._salts.get(source)
        if found is None:
            found = self._salts[source] = hash_text("source " + source)[0]
        return found

    def verdicts(self, user_agents: list[str], opened: bool) -> list[int]:
        """Return the base of opens or clicks by user agent: the agent, with SURE where timing has no say."""
        known = self._user_agents[opened]
        try:
            return [known[user_agent] for user_agent in user_agents]
        except KeyError:
            pass
        if len(known) >= user_agents_max:
            known.clear()
        for user_agent in set(user_agents):
            agent, _ = agent_of_user_agent(user_agent, opened)
            known[user_agent] = agent if agent == HUMAN else agent | SURE
        return [known[user_agent] for user_agent in user_agents]

    def packed(self, traits: dict) -> int:
        """Return the configured attributes among the traits, a byte each in their order; 0 where none is given."""
        out = 0
        for place, attribute in enumerate(self.attributes):
            label = band_label(traits.get(attribute.trait or attribute.name), attribute.bands)
            if label:
                out |= min(self.names.id(f"attribute:{attribute.name}", label), 255) << (8 * place)
        return out


def band_label(value: object, bands: list[float]) -> str:
    """Return an attribute's value as the name it is counted under; ``""`` where there is none."""
    if value is None or isinstance(value, dict | list):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if bands:
        try:
            number = float(value)
        except (TypeError, ValueError):
            return ""
        edges = sorted(bands)
        if number < edges[0]:
            return f"<{edges[0]:g}"
        for low, high in zip(edges, edges[1:], strict=False):
            if number < high:
                return f"{low:g}-{high - 1:g}" if low.is_integer() and high.is_integer() else f"{low:g}-{high:g}"
        return f"{edges[-1]:g}+"
    return str(value).strip()[:100]


class _Rows:
    """One batch under construction: lists per column, numbers at the end."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.position: list[int] = []
        self.item: list[int] = []
        self.source: list[str] = []
        self.received: list[int] = []
        self.columns = Columns(*([] for _ in Columns._fields))
        self.identity: list[tuple[int, str]] = []  # (row, recipient key) where it is not the key of the recipient column
        self.money: list[tuple[int, int, str]] = []  # (row, value, order id)
        self.traits: list[tuple[int, int]] = []
        self.withdrawn: list[int] = []
        self.dead: list[Dead] = []
        self.replayed: list[tuple[int, int, bool]] = []
        self.receipts: dict[tuple[str, int], list[int]] = {}
        self.drops: dict[tuple[str, str], int] = defaultdict(int)
        self.log_time_us = 0
        self.next_position = 0

    # -- one record ------------------------------------------------------------------------------------------------------

    def record(self, record: Record) -> None:
        self.log_time_us = max(self.log_time_us, record.at_us)
        self.next_position = record.position + 1
        if record.kind in ("webhook", "track"):
            self._request(record)
        elif record.kind == "events":
            self._events_record(record)
        elif record.kind == "replay":
            self._replay(record)
        # definition and tick records move time and nothing else here.

    def _request(self, record: Record) -> None:
        source = self.edge.sources.get(record.source)
        if source is None:
            self._bury(record, -1, "unknown_source", f"No source is configured as `{record.source}`", record.body)
            return
        request = request_of(record)
        before, latest = len(self.position), 0
        try:
            columns = source.columns(request)
            if columns is not None:
                self._extend(record, columns)
            else:
                parsed = source.parse(request)
                for bad in parsed.bad:
                    self._bury(record, bad.index, bad.reason, bad.detail, bad.raw)
                for item, event in enumerate(parsed):
                    self._append(record.position, item, record.source, record.at_us, event)
        except MidflightError as error:
            self._bury(record, -1, error.code, error.text()[:300], record.body)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, OverflowError, MemoryError) as error:
            # A mistake in a source's file must not stop the stream; the bytes wait until it is mended.
            self._truncate(before)
            self._bury(record, -1, "unreadable", f"{type(error).__name__}: {error}"[:300], record.body)
        if len(self.position) > before:
            latest = max(self.columns.at_us[before:])
        self._receipt(record, len(self.position) - before, latest)

    def _events_record(self, record: Record) -> None:
        """Canonical events: from imports and polls. One that is not an event stops no other."""
        before = len(self.position)
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
                self._bury(record, item, "malformed", str(error)[:300], msgspec.json.encode(raw))
                continue
            self._append(record.position, item, event.source or record.source, event.received_at_us or record.at_us, event)
        self._receipt(record, len(self.position) - before, max(self.columns.at_us[before:], default=0))

    def _replay(self, record: Record) -> None:
        """Read a dead letter again, as of its first receipt."""
        source = self.edge.sources.get(record.source)
        position, item = int(record.headers["midflight-position"]), int(record.headers["midflight-item"])
        at_us = int(record.headers["midflight-at-us"])
        readable = False
        if source is not None:
            request = msgspec.structs.replace(request_of(record), received_at_us=at_us)
            try:
                parsed = source.parse(request) if item < 0 else source.read([decode_json(record.body)], request)
                for number, event in enumerate(parsed):
                    self._append(record.position, number, record.source, at_us, event)
                readable = not parsed.bad
            except (MidflightError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, OverflowError):
                # It stays a dead letter; its row says that it was tried.
                readable = False
        self.replayed.append((position, item, readable))

    # -- rows --------------------------------------------------------------------------------------------------------------

    def _extend(self, record: Record, columns: Columns) -> None:
        count = len(columns.kind)
        first = len(self.position)
        self.position.extend([record.position] * count)
        self.item.extend(range(count))
        self.source.extend([record.source] * count)
        self.received.extend([record.at_us] * count)
        for mine, more in zip(self.columns[:-2], columns[:-2], strict=True):
            mine.extend(more)
        self.columns.agent.extend((first + i, agent) for i, agent in columns.agent)
        self.columns.bounce.extend((first + i, bounce) for i, bounce in columns.bounce)

    def _append(self, position: int, item: int, source: str, received_us: int, event: Event) -> None:
        row = len(self.position)
        self.position.append(position)
        self.item.append(item)
        self.source.append(source)
        self.received.append(received_us)
        kind = _KIND.get(event.kind, 0)
        columns = self.columns
        columns.event_id.append(event.event_id)
        columns.kind.append(kind)
        columns.at_us.append(event.occurred_at_us)
        columns.recipient.append(event.recipient)
        columns.message_id.append(event.message_id)
        columns.campaign.append(event.campaign)
        columns.variant.append(event.variant)
        columns.wave.append(event.wave)
        columns.url.append(event.url)
        columns.user_agent.append(event.user_agent)
        columns.ip.append(event.ip)
        if event.agent and kind in (K_OPENED, K_CLICKED):
            columns.agent.append((row, _AGENT.get(event.agent, 0)))
        if event.bounce_class:
            columns.bounce.append((row, _BOUNCE.get(event.bounce_class, 0)))
        if event.user_id:
            self._person(row, event, kind)
        if kind == K_CONVERTED:
            self.money.append((row, event.value_micros, event.order_id))
        elif kind == K_IDENTIFIED and event.traits:
            packed = self.edge.packed(event.traits)
            if packed:
                self.traits.append((row, packed))

    def _person(self, row: int, event: Event, kind: int) -> None:
        """Find out who a user id is; a conversion of somebody unknown is counted now and moved when we learn who it was."""
        key = recipient_key(event.recipient) if event.recipient else ""
        user = event.user_id
        if key:
            if kind == K_IDENTIFIED and self.edge.people.get(user) != key:
                self.edge.people[user] = key
                self._move_parked(row, user, key)
            return
        key = self.edge.people.get(user, "")
        self.identity.append((row, key or "id:" + user))
        if not key and kind == K_CONVERTED and self.edge.parked_count < parked_max:
            self.edge.parked.setdefault(user, []).append(
                (self.source[row], event.event_id, event.occurred_at_us, self.received[row], event.value_micros, event.order_id)
            )
            self.edge.parked_count += 1

    def _move_parked(self, cause: int, user: str, key: str) -> None:
        for source, event_id, at_us, received_us, value, order in self.edge.parked.pop(user, ()):
            self.edge.parked_count -= 1
            for name, withdraw in (("id:" + user, True), (key, False)):
                row = len(self.position)
                self.position.append(self.position[cause])
                self.item.append(-1)
                self.source.append(source)
                self.received.append(received_us)
                for field, column in zip(Columns._fields[:-2], self.columns[:-2], strict=True):
                    column.append(0 if field in ("kind", "at_us") else "")
                self.columns.event_id[row] = event_id
                self.columns.kind[row] = K_CONVERTED
                self.columns.at_us[row] = at_us
                self.identity.append((row, name))
                self.money.append((row, value, order))
                if withdraw:
                    self.withdrawn.append(row)

    def _truncate(self, rows: int) -> None:
        for column in (self.position, self.item, self.source, self.received, *self.columns[:-2]):
            del column[rows:]
        for sparse in (self.identity, self.money, self.traits, self.columns.agent, self.columns.bounce):
            sparse[:] = [entry for entry in sparse if entry[0] < rows]
        self.withdrawn[:] = [row for row in self.withdrawn if row < rows]

    def _bury(self, record: Record, item: int, reason: str, detail: str, raw: bytes) -> None:
        self.dead.append(Dead(record.position, item, record.source, reason, detail, raw, record.at_us))
        self._count(record, 2, 1)

    def _receipt(self, record: Record, events: int, latest_us: int) -> None:
        counts = self._count(record, 0, 1)
        counts[1] += events
        counts[3] = max(counts[3], min(latest_us, record.at_us))

    def _count(self, record: Record, what: int, n: int) -> list[int]:
        counts = self.receipts.setdefault((record.source, record.at_us // 60_000_000), [0, 0, 0, 0])
        counts[what] += n
        return counts

    # -- numbers -------------------------------------------------------------------------------------------------------------

    def finish(self) -> Prepared:
        rows = len(self.position)
        batch = empty_batch(rows)
        keys = recipient_keys(self.columns.recipient)
        for row, key in self.identity:
            keys[row] = key
        if rows:
            self._fill(batch, keys)
        return Prepared(
            batch, self.position, self.item, keys, self.source, self.dead, self.replayed, self.receipts, dict(self.drops),
            self.log_time_us, self.next_position,
        )  # fmt: skip

    def _fill(self, batch: Batch, keys: list[str]) -> None:
        columns, edge = self.columns, self.edge
        salts = {name: edge.salt(name) for name in set(self.source)}
        one = len(salts) == 1
        salt = np.uint64(salts[self.source[0]]) if one else np.array([salts[name] for name in self.source], np.uint64)
        ids = hash_texts(columns.event_id)
        messages = hash_texts(columns.message_id)[:, 0]
        nameless = np.flatnonzero(messages == 0)
        if nameless.size:
            # No message id: the campaign and the recipient say which message it was.
            messages[nameless] = hash_texts(["campaign " + columns.campaign[i] for i in nameless])[:, 0]
        urls = hash_texts(columns.url)[:, 0]
        batch.row[:] = np.arange(len(keys))
        batch.id_hi[:] = ids[:, 0] ^ salt
        batch.id_lo[:] = ids[:, 1]
        batch.ident[:] = batch.id_hi
        batch.rcpt[:] = hash_texts(keys)[:, 0]
        batch.msg[:] = messages ^ salt
        batch.url[:] = urls >> np.uint64(32)
        batch.kind[:] = columns.kind
        batch.source[:] = edge.names.id("source", self.source[0]) if one else edge.names.column("source", self.source)
        batch.campaign[:] = edge.names.column("campaign", columns.campaign)
        batch.variant[:] = edge.names.column("variant", columns.variant)
        batch.wave[:] = edge.names.column("wave", columns.wave)
        for row, bounce in columns.bounce:
            batch.bounce[row] = bounce
        self._times(batch)
        self._agents(batch)
        batch.content[:] = ids_of_content(batch, urls)
        for row, value, order in self.money:
            batch.value[row] = value
            batch.order[row] = hash_text("order " + order)[0] if order else 0
        for row, packed in self.traits:
            batch.traits[row] = packed
        if self.withdrawn:
            batch.op[self.withdrawn] = 1
            # A withdrawal is an event of its own: it must not look like a repetition of what it takes out.
            batch.id_lo[self.withdrawn] ^= np.uint64(0xFFFFFFFF00000000)

    def _times(self, batch: Batch) -> None:
        """Use the vendor's time where it can be true: nothing happens after it was reported, and nobody mailed campaigns in 1970."""
        at = np.array(self.columns.at_us, np.int64)
        received = np.array(self.received, np.int64)
        batch.at_us[:] = np.where(at < year_2000_us, received, np.minimum(at, received))
        batch.day[:] = np.array(received // DAY_US, np.uint16)
        wrong = (at < year_2000_us) | (at > received + future_us_max)
        for row in np.flatnonzero(wrong & (at != 0)):
            self.drops[(self.source[row], "clock: used the time of receipt")] += 1

    def _agents(self, batch: Batch) -> None:
        columns = self.columns
        for kind in (K_OPENED, K_CLICKED):
            rows = np.flatnonzero(batch.kind == kind)
            if rows.size:
                batch.agent[rows] = self.edge.verdicts([columns.user_agent[i] for i in rows.tolist()], kind == K_OPENED)
                scanned = [i for i in rows.tolist() if scanner_network(columns.ip[i])]
                batch.agent[scanned] = np.where(batch.agent[scanned] == HUMAN, MACHINE | SURE, batch.agent[scanned])
        for row, agent in columns.agent:
            batch.agent[row] = agent | SURE


def ids_of_content(batch: Batch, urls: np.ndarray) -> np.ndarray:
    """Return a hash of what an event says, to tell a repetition from an id used twice."""
    content = batch.kind.astype(np.uint64) + (batch.bounce.astype(np.uint64) << np.uint64(8))
    content ^= batch.msg ^ batch.order ^ urls ^ batch.value.astype(np.uint64)
    content *= np.uint64(0x9E3779B97F4A7C15)
    return content >> np.uint64(40)


def recipient_keys(addresses: list[str]) -> list[str]:
    """Return ``recipient_key`` of each address; ordinary ones all at once."""
    joined = "\n".join(addresses)
    if joined.isascii() and joined.count("@") == len(addresses) and "<" not in joined and " " not in joined and "\t" not in joined:
        keys = joined.lower().split("\n")
        fine = len(keys) == len(addresses) and "\n@" not in joined and "@\n" not in joined
        if fine and joined[0] != "@" and joined[-1] != "@" and max(map(len, keys)) <= 320 and all("@" in key for key in keys):
            return keys
    return [recipient_key(address) for address in addresses]


def request_of(record: Record) -> Request:
    return Request(url=record.url, headers=record.headers, body=record.body, received_at_us=record.at_us)
