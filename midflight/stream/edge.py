"""Records become a batch: scan or parse, hash, give numbers to names. The last place where text is handled."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..config import Attribute
from ..events import AGENTS, Event
from ..kit.errors import MidflightError
from ..log.record import Record
from ..sources.source import Source, decode_json
from .agents import HUMAN, MACHINE, agent_of_user_agent
from .batch import Batch, Given
from .fold import DAY_US, SURE
from .hashing import hash_text
from .interning import HashIds
from .names import Names
from .parsed import K_CLICKED, K_OPENED, MISTAKES, Dead, ParsedRows, request_of
from .people import People
from .scan import T_CAMPAIGN, T_OBJECT, T_RECIPIENT, T_USER_AGENT, T_VARIANT, T_WAVE, Keys, Scanned, keys_of, new_scanned, scan, spare_bytes

future_us_max = 5 * 60 * 1_000_000  # a vendor's clock that is ahead of ours by more is told
year_2000_us = 946_684_800_000_000
user_agents_max = 50_000  # verdicts that are kept
AS_SCANNED = (
    "item", "id_hi", "id_lo", "rcpt", "provider", "msg", "kind", "url", "user_agent", "scanner", "bounce", "campaign", "variant", "wave",
    "domain", "ip",
)  # fmt: skip


class Prepared(NamedTuple):
    """A batch and what is known about it beside its numbers."""

    batch: Batch
    position: np.ndarray  # int64, of the record, per row
    item: np.ndarray  # int64, index of the event within its record; -1 for a row that another event caused
    received: np.ndarray  # int64 us, when the row's record came in
    recipients: Callable[[np.ndarray], list[str]]  # the keys of these rows' recipients, as text
    source: Callable[[int], str]  # the name of a row's source
    event: Callable[[int], Event | None]  # a row as its vendor's `parse` reads it, for the few rows whose words matter
    identified: list[tuple[int, list[tuple[str, object]]]]  # rows that say something of people, with their attributes as they were said
    domain: np.ndarray  # uint64 per row, hash of the domain of the recipient's address
    ip: np.ndarray  # uint64 per row, hash of the sending IP of deliveries and bounces; 0 = not known
    dead: list[Dead]
    replayed: list[tuple[int, int, bool]]  # (position, item, could be read now) of dead letters that were tried again
    asked: list[Record]  # definitions and the advisor's decisions
    receipts: dict[tuple[str, int], list[int]]  # (source, minute) -> [records, events, bad, time of the last record with events in us]
    drops: dict[tuple[str, str], int]  # (source, reason) -> n
    log_time_us: int
    next_position: int


class Edge:
    """Turns records into batches. Its state (names, who is who) is a function of the log."""

    def __init__(self, sources: dict[str, Source], attributes: list[Attribute], names: Names) -> None:
        self.sources = sources
        self.names = names
        self.people = People(attributes, names)
        self._flat: dict[str, Keys] = {name: keys_of(flat) for name, source in sources.items() if (flat := source.flat()) is not None}
        self._scanned = new_scanned(4096)
        self._verdicts = {K_OPENED: HashIds(user_agents_max), K_CLICKED: HashIds(user_agents_max)}
        self._salts: dict[int, int] = {}

    def prepare(self, records: list[Record]) -> Prepared:
        """Turn records, in log order, into one batch. Never raises for what a record holds."""
        flat = _FlatRows(self, records)
        rows = ParsedRows(self.sources, self.people)
        sources = np.zeros(len(records), np.int64)
        for number, record in enumerate(records):
            span = flat.spans.get(number)
            if span is None:
                rows.read(number, record)
            else:
                sources[number] = self.names.id("source", record.source)
                first, end = span
                rows.receipt(record, end - first)
        return _Assembly(self, records, flat, rows, sources).prepared()

    def flat_keys(self, source: str) -> Keys | None:
        return self._flat.get(source)

    def scanned_room(self, rows: int) -> Scanned:
        """Return the arrays that scanning fills, with at least that much room; what they hold is valid until the next batch."""
        if self._scanned.kind.size < rows:
            then, self._scanned = self._scanned, new_scanned(max(rows, self._scanned.kind.size * 2))
            for old, new in zip(then, self._scanned, strict=True):
                new[: old.shape[0]] = old
        return self._scanned

    def salts(self, sources: np.ndarray, name_of: dict[int, str]) -> np.ndarray:
        """Return per row the 64 bits that keep equal ids of different sources apart."""
        for number in np.unique(sources).tolist():
            if number not in self._salts:
                self._salts[number] = hash_text("source " + name_of[number])[0]
        table = np.zeros(max(self._salts, default=0) + 1, np.uint64)
        table[list(self._salts)] = list(self._salts.values())
        return table[sources]

    def agents(self, kind: int, hashes: np.ndarray, text_of: Callable[[int], str]) -> np.ndarray:
        """Return the base of opens or clicks by user agent: the agent, with SURE where timing has no say."""
        table = self._verdicts[kind]
        if table.used >= user_agents_max:
            table.clear()

        def base(row: int) -> int:
            agent, _ = agent_of_user_agent(text_of(row), kind == K_OPENED)
            return agent if agent == HUMAN else agent | SURE

        found = table.column(hashes, base)
        # No user agent says nothing.
        return np.where(hashes == 0, HUMAN, found)

    def snapshot(self) -> dict:
        return self.people.snapshot()

    def load(self, state: dict) -> None:
        self.people.load(state)


class _FlatRows:
    """The records of a batch that compiled code could read, as rows; ``spans`` gives the rows of each such record."""

    def __init__(self, edge: Edge, records: list[Record]) -> None:
        self.spans: dict[int, tuple[int, int]] = {}
        self.rows = edge.scanned_room(0)
        self.used = 0
        self.buffer = b""
        self.number = np.zeros(0, np.int64)  # scanned row -> number of its record
        candidates: dict[str, list[int]] = {}
        for number, record in enumerate(records):
            if record.kind == "webhook" and edge.flat_keys(record.source) is not None and is_utf8(record.body):
                candidates.setdefault(record.source, []).append(number)
        numbers = [number for found in candidates.values() for number in found]
        if not numbers:
            return
        bodies = [records[number].body for number in numbers]
        self.buffer = b"".join([*bodies, bytes(spare_bytes)])
        ends = np.cumsum([len(body) for body in bodies])
        starts = ends - [len(body) for body in bodies]
        counts = np.zeros(len(numbers), np.int64)
        done = 0
        for source, found in candidates.items():
            self._scan(edge, source, starts, ends, counts, done, done + len(found))
            done += len(found)
        self.number = np.repeat(np.array(numbers), np.maximum(counts, 0))
        row = 0
        for number, count in zip(numbers, counts.tolist(), strict=True):
            if count >= 0:
                self.spans[number] = (row, row + count)
                row += count

    def _scan(self, edge: Edge, source: str, starts, ends, counts, first: int, end: int) -> None:
        buffer = np.frombuffer(self.buffer, np.uint8)
        while first < end:
            part = counts[first:end]
            part[:] = -1
            self.used = scan(buffer, starts[first:end], ends[first:end], edge.flat_keys(source), self.rows, self.used, part)
            full = np.flatnonzero(part == -2)
            if not full.size:
                return
            self.rows = edge.scanned_room(self.rows.kind.size * 2)
            first += int(full[0])

    def text(self, row: int, which: int) -> str:
        start, end = self.rows.text[row, which]
        return self.buffer[start:end].decode()


class _Assembly:
    """Scanned and parsed rows brought together in the order of the log."""

    def __init__(self, edge: Edge, records: list[Record], flat: _FlatRows, parsed: ParsedRows, sources: np.ndarray) -> None:
        self.edge, self.records, self.flat, self.parsed, self.sources = edge, records, flat, parsed, sources
        self.received = np.array([record.at_us for record in records], np.int64)
        self.columns, self.order, self.place = self._joined()

    def _joined(self) -> tuple[dict[str, np.ndarray], np.ndarray | None, np.ndarray | None]:
        """Return all rows as columns in log order; the order that was applied and its inverse, where there was one."""
        scanned, used = self._scanned(), self.flat.used
        if not self.parsed.events:
            return scanned, None, None
        columns = self.parsed.columns()
        columns["source"] = np.array([self.edge.names.id("source", name) for name in self.parsed.source], np.int64)
        if not used:
            return columns, None, None
        columns = {name: np.concatenate([scanned[name], column]) for name, column in columns.items()}
        order = np.argsort(columns["record"], kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        return {name: column[order] for name, column in columns.items()}, order, place

    def _scanned(self) -> dict[str, np.ndarray]:
        rows, used = self.flat.rows, self.flat.used
        number = self.flat.number
        columns = {name: getattr(rows, name)[:used] for name in AS_SCANNED}
        columns |= dict(
            record=number,
            received=self.received[number],
            at_us=rows.at_s[:used] * 1_000_000,
            flag=rows.machine[:used] * np.uint8(AGENTS.index("machine")),
            source=self.sources[number],
        )
        return columns

    def _from(self, row: int) -> tuple[bool, int]:
        """Return whether a row was scanned, and its number among the scanned or the parsed ones."""
        before = row if self.order is None else int(self.order[row])
        used = self.flat.used
        return (True, before) if before < used else (False, before - used)

    def _text(self, which: int, field: str) -> Callable[[int], str]:
        def text(row: int) -> str:
            scanned, number = self._from(row)
            return self.flat.text(number, which) if scanned else getattr(self.parsed.events[number], field)

        return text

    def _recipients(self, rows: np.ndarray) -> list[str]:
        before = rows if self.order is None else self.order[rows]
        used, buffer, keys = self.flat.used, self.flat.buffer, self.parsed.recipient
        if not self.parsed.events:
            spans = self.flat.rows.text[before, T_RECIPIENT].tolist()
            return [buffer[start:end].decode().lower() for start, end in spans]
        return [self.flat.text(row, T_RECIPIENT).lower() if row < used else keys[row - used] for row in before.tolist()]

    def _event(self, row: int) -> Event | None:
        """Return the event of a row with all its words; None where the vendor's own code cannot read what was scanned."""
        scanned, number = self._from(row)
        if not scanned:
            return self.parsed.events[number]
        record = self.records[int(self.flat.number[number])]
        try:
            item = decode_json(self.flat.text(number, T_OBJECT).encode())
            found = self.edge.sources[record.source].read([item], request_of(record))
        except (MidflightError, *MISTAKES):
            return None
        return found[0] if found else None

    def _row(self, parsed_row: int) -> int:
        """Return where a parsed row stands in the batch."""
        return parsed_row if self.place is None else int(self.place[self.flat.used + parsed_row])

    def prepared(self) -> Prepared:
        columns, records = self.columns, self.records
        names = {number: name for name, number in self.edge.names.ids["source"].items()}
        position = np.array([record.position for record in records], np.int64)
        return Prepared(
            batch=self._batch(names),
            position=position[columns["record"]],
            item=columns["item"],
            received=columns["received"],
            recipients=self._recipients,
            source=lambda row: names[int(columns["source"][row])],
            event=self._event,
            identified=[(self._row(row), said) for row, said in self.parsed.identified],
            domain=columns["domain"],
            ip=columns["ip"],
            dead=self.parsed.dead,
            replayed=self.parsed.replayed,
            asked=self.parsed.asked,
            receipts=self.parsed.receipts,
            drops=dict(self.parsed.drops),
            log_time_us=int(self.received.max(initial=0)),
            next_position=records[-1].position + 1 if records else 0,
        )

    def _batch(self, source_names: dict[int, str]) -> Batch:
        columns, edge = self.columns, self.edge
        rows = columns["kind"].size
        salt = edge.salts(columns["source"], source_names)
        id_hi = columns["id_hi"] ^ salt
        at_us = self._times()
        zeros = np.zeros(rows, np.uint64)
        batch = Batch(
            id_hi=id_hi,
            id_lo=columns["id_lo"].copy(),
            content=zeros,
            day=(columns["received"] // DAY_US).astype(np.uint16),
            # Part of a wider array where all rows were parsed: for that, compiled code would have to be compiled once more.
            rcpt=np.ascontiguousarray(columns["rcpt"]),
            provider=columns["provider"],
            msg=columns["msg"] ^ salt,
            kind=columns["kind"],
            at_us=at_us,
            source=columns["source"].astype(np.uint16),
            campaign=edge.names.column("campaign", columns["campaign"], self._text(T_CAMPAIGN, "campaign")).astype(np.uint32),
            variant=edge.names.column("variant", columns["variant"], self._text(T_VARIANT, "variant")).astype(np.uint16),
            wave=edge.names.column("wave", columns["wave"], self._text(T_WAVE, "wave")).astype(np.uint16),
            url=(columns["url"] >> np.uint64(32)).astype(np.uint32),
            agent=self._agents(),
            bounce=columns["bounce"],
            op=np.zeros(rows, np.uint8),
            ident=id_hi,
            order=zeros.copy(),
            value=np.zeros(rows, np.int64),
            traits=zeros.copy(),
            row=np.arange(rows),
            received=self._log_times(),
            given=self._given(),
        )
        for row, value, order in self.parsed.money:
            batch.value[self._row(row)] = value
            batch.order[self._row(row)] = order
        for row, name in self.parsed.named:
            batch.order[self._row(row)] = name
        for row, packed in self.parsed.traits:
            batch.traits[self._row(row)] = packed
        for row in self.parsed.withdrawn:
            batch.op[self._row(row)] = 1
            # A withdrawal is an event of its own: it must not look like a repetition of what it takes out.
            batch.id_lo[self._row(row)] ^= np.uint64(0xFFFFFFFF00000000)
        return batch._replace(content=contents(batch, columns["url"]))

    def _log_times(self) -> np.ndarray:
        """Return per row when its record was appended: what "now" means to it, also where it is a dead letter that is read again."""
        return np.array([record.at_us for record in self.records], np.int64)[self.columns["record"]]

    def _given(self) -> Given:
        rows, names, numbers, texts = zip(*self.parsed.given, strict=True) if self.parsed.given else ((), (), (), ())
        place = np.array([self._row(row) for row in rows], np.int64)
        return Given(place, np.array(names, np.uint32), np.array(numbers, np.float64), np.array(texts, np.uint64))

    def _times(self) -> np.ndarray:
        """Use the vendor's time where it can be true: nothing happens after it was reported, and nobody mailed campaigns in 1970."""
        at, received = self.columns["at_us"], self.columns["received"]
        wrong = (at < year_2000_us) | (at > received + future_us_max)
        for row in np.flatnonzero(wrong & (at != 0)):
            record = self.records[int(self.columns["record"][row])]
            self.parsed.drops[(record.source, "clock: used the time of receipt")] += 1
        return np.where(at < year_2000_us, received, np.minimum(at, received))

    def _agents(self) -> np.ndarray:
        columns = self.columns
        base = np.zeros(columns["kind"].size, np.uint8)
        user_agent = self._text(T_USER_AGENT, "user_agent")
        for kind in (K_OPENED, K_CLICKED):
            rows = np.flatnonzero(columns["kind"] == kind)
            if rows.size:
                base[rows] = self.edge.agents(kind, columns["user_agent"][rows], lambda i, rows=rows: user_agent(int(rows[i])))
        base[(base == HUMAN) & (columns["scanner"] != 0)] = MACHINE | SURE
        return np.where(columns["flag"] != 0, columns["flag"] | SURE, base).astype(np.uint8)


def contents(batch: Batch, urls: np.ndarray) -> np.ndarray:
    """Return a hash of what each event says, to tell a repetition from an id used twice."""
    content = batch.kind.astype(np.uint64) + (batch.bounce.astype(np.uint64) << np.uint64(8))
    content ^= batch.msg ^ batch.order ^ urls ^ batch.value.astype(np.uint64)
    content *= np.uint64(0x9E3779B97F4A7C15)
    return content >> np.uint64(40)


def is_utf8(body: bytes) -> bool:
    if body.isascii():
        return True
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
