"""What rules would have fired: the log is folded as the engine folds it, with other definitions put in at a time of one's choice.

The same code with the same records, so a rule that was in force fires here as it did live, to the microsecond. Nothing is written.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from ..config import Config
from ..decide.definitions import Definitions, PutRule, PutSegment, RemoveRule
from ..decide.gauges import Gauges
from ..log import Reader, Record
from ..store.folding import Folding, firing_id, is_definition, is_list, load_sources
from ..stream.edge import Edge
from ..stream.names import Names
from ..stream.tables import NIL
from ..stream.watching import ENTERED, FILLED, FIRED, LEFT

batch_bytes_max = 8 << 20


class Firing(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that would have fired. ``id`` is the one that it has live."""

    id: str
    rule: str
    version: int
    recipient: str
    fired_us: int
    cause_us: int
    campaign: str = ""  # of the message that caused it


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Definitions to be tried: segments as name -> condition, rules as name -> definition. Those that are in force under the same name are
    replaced; with ``alone`` all other rules are taken out."""

    segments: dict[str, dict] = {}
    rules: dict[str, dict] = {}
    alone: bool = False


class Sums(msgspec.Struct, kw_only=True):
    """What a backtest read: how many records and events, and how many people it came to know; members of each segment at the end."""

    records: int = 0
    events: int = 0
    people: int = 0
    members: dict[str, int] = {}


class Backtest(Folding):
    """One run over a log. ``firings`` yields what would have fired from ``from_us`` on and before ``to_us``."""

    def __init__(self, config: Config, reader: Reader, change: Change, from_us: int, to_us: int) -> None:
        self.config, self.reader, self.change, self.from_us, self.to_us = config, reader, change, from_us, to_us
        self.names = Names()
        self.edge = Edge(load_sources(config), config.dimensions(), self.names)
        self.definitions, self.gauges = Definitions(), Gauges()
        self.shards = [self.new_shard() for _ in range(config.shards)]
        self.ask(self.definitions.program(self.names.id))
        self.texts = [Texts() for _ in self.shards]
        self.sums = Sums()
        self._members: dict[str, int] = {}
        self._campaigns: dict[int, str] = {}

    def firings(self, note: Callable[[int], None] = lambda records: None) -> Iterator[Firing]:
        """Fold the log; ``note`` is told how many records were read."""
        position, changed = self.reader.first(), False
        while records := self.reader.read(position, batch_bytes_max):
            position = records[-1].position + 1
            note(len(records))
            kept = [record for record in records if record.at_us < self.to_us]
            if not changed and records[-1].at_us >= self.from_us:
                before = [record for record in kept if record.at_us < self.from_us]
                yield from self._fold(before)
                yield from self._change()
                kept, changed = kept[len(before) :], True
            yield from self._fold(kept)
            if len(kept) < len(records) and records[-1].at_us >= self.to_us:
                break
        if not changed:
            yield from self._change()
        # What would fire after the log's last record nobody can know yet.
        now_us = max(shard.log_time_us for shard in self.shards)
        for number, shard in enumerate(self.shards):
            yield from self._told(number, shard.advance(now_us))
        self.sums.members = {name: self._members.get(name, 0) for name in self.definitions.segments}
        self.sums.people = sum(len(texts) for texts in self.texts)

    def _fold(self, records: list[Record]) -> Iterator[Firing]:
        for part in self.parts_of(records):
            for number, rows in enumerate(self.turn(part[0].at_us)):
                yield from self._told(number, rows)
            # The orders of the log itself hold until the change, so that what is tried begins from what was.
            prepared = self.edge.prepare(part)
            self.sums.records += len(part)
            self.sums.events += prepared.batch.kind.size
            for number, effect in enumerate(self.apply(prepared)):
                self.texts[number].add(prepared.recipients(effect.new_row))
                yield from self._told(number, effect.told)
            if is_list(part[-1]):
                self.listed(part[-1])
            if is_definition(part[-1]) and not (part[-1].at_us >= self.from_us and self._is_tried(part[-1])):
                yield from self._defined(part[-1])

    def listed(self, record: Record) -> None:
        """Take in that somebody puts addresses on the list of those not to be written to, or takes them off. Firings go by without it."""

    def _is_tried(self, record: Record) -> bool:
        """Whether an order of the log is about a definition that is tried instead of it."""
        try:
            order = msgspec.json.decode(record.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        if not isinstance(order, dict):
            return False
        segment, rule = order.get("name"), order.get("rule")
        return segment in self.change.segments or rule in self.change.rules or (self.change.alone and rule is not None)

    def _change(self) -> Iterator[Firing]:
        """Put in what is to be tried, as orders at this place. Raises MidflightError for what could not be put into force."""
        versions = self.definitions.versions
        for number, rows in enumerate(self.turn(self.from_us)):
            yield from self._told(number, rows)
        for name, where in self.change.segments.items():
            version = versions.get(f"segment {name}", 0) + 1
            self.definitions_checked(lambda d, n=name, v=version, w=where: d.put_segment(n, v, w))
            yield from self._defined(_record(PutSegment(id="", name=name, version=version, where=where, who="")))
        if self.change.alone:
            for name in [name for name in self.definitions.rules if name not in self.change.rules]:
                yield from self._defined(_record(RemoveRule(rule=name)))
        for name, definition in self.change.rules.items():
            version = versions.get(f"rule {name}", 0) + 1
            self.definitions_checked(lambda d, n=name, v=version, r=definition: d.put_rule(n, v, r))
            yield from self._defined(_record(PutRule(rule=name, version=version, definition=definition)))

    def definitions_checked(self, put: Callable[[Definitions], None]) -> None:
        """Raise what putting something into force would raise, and leave everything as it is."""
        tried = Definitions()
        tried.load(self.definitions.snapshot())
        put(tried)

    def _defined(self, record: Record) -> Iterator[Firing]:
        defined = self.define(record)
        if defined is None:
            return
        fresh, told = defined
        for name in fresh:
            self._members[name] = 0
        for number, rows in enumerate(told):
            yield from self._told(number, rows)

    def _told(self, number: int, rows: np.ndarray) -> Iterator[Firing]:
        for what, step in ((ENTERED, 1), (LEFT, -1)):
            for segment, n in zip(*np.unique(rows["number"][rows["what"] == what], return_counts=True), strict=True):
                name = self.asked.segments[segment][0]
                self._members[name] = self._members.get(name, 0) + step * int(n)
        fired = rows[(rows["what"] == FIRED) & (rows["row"] != FILLED) & (rows["at"] >= self.from_us) & (rows["at"] < self.to_us)]
        for row in fired:
            rule, version = self.asked.rules[row["number"]]
            recipient = self.texts[number][int(row["person"])] if row["person"] != NIL else ""
            yield Firing(
                id=firing_id(rule, version, recipient, int(row["cause"])), rule=rule, version=version, recipient=recipient,
                fired_us=int(row["at"]), cause_us=int(row["cause_at"]), campaign=self._campaign(int(row["campaign"])),
            )  # fmt: skip

    def _campaign(self, number: int) -> str:
        """Return a campaign's name."""
        if number not in self._campaigns:
            self._campaigns = {number: name for name, number in self.names.ids["campaign"].items()}
        return self._campaigns[number]


class Texts:
    """Many texts in little memory, by number."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self.ends = array("Q")

    def add(self, texts: list[str]) -> None:
        for text in texts:
            self.bytes += text.encode()
            self.ends.append(len(self.bytes))

    def __getitem__(self, number: int) -> str:
        return self.bytes[self.ends[number - 1] if number else 0 : self.ends[number]].decode()

    def __len__(self) -> int:
        return len(self.ends)


def _record(order: msgspec.Struct) -> Record:
    return Record("definition", "rules", 0, {}, msgspec.json.encode(order))
