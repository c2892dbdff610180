"""What everybody does who folds a log: events go to the shards that own their people, definitions hold from their place in the log on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np
import xxhash

from ..config import Config
from ..decide.definitions import SOURCE, Definitions, same_as
from ..decide.gauges import MINUTE_US, Gauges
from ..log import Record
from ..sources import Source, load
from ..stream.edge import Edge, Prepared
from ..stream.names import Names
from ..stream.program import Program
from ..stream.shard import Effects, Shard
from ..stream.tables import NEVER, NIL
from ..stream.watching import FIRED, TIMER, TOLD
from .suspecting import SOURCE as LISTS

shards_max = 64


class Asked(NamedTuple):
    """What the numbers of segments and watches mean: the names of segments with their versions, and those of rules, the ones about people
    first."""

    segments: list[tuple[str, int]]
    rules: list[tuple[str, int]]


class Folding:
    """Shards and what they need. ``asked`` is what they are asked now."""

    config: Config
    names: Names
    edge: Edge
    shards: list[Shard]
    definitions: Definitions
    gauges: Gauges
    asked: Asked

    def new_shard(self) -> Shard:
        return Shard(self.config.attribution.click_window_minutes * 60_000_000, self.config.retention.dedup_days)

    def apply(self, prepared: Prepared, recent_from_us: int = NEVER) -> list[Effects]:
        """Give every shard its rows, and the gauges what that changed."""
        effects = self._apply(prepared, recent_from_us)
        if self.gauges:
            for effect in effects:
                self.gauges.add(effect.cell_key, effect.cell_value)
        return effects

    def _apply(self, prepared: Prepared, recent_from_us: int) -> list[Effects]:
        """The recipient's key decides which shard has a row."""
        if len(self.shards) == 1:
            return [self.shards[0].apply(prepared.batch, prepared.log_time_us, recent_from_us)]
        # The high bits choose the shard: the low ones choose the place in its tables.
        owner = (prepared.batch.rcpt >> np.uint64(40)) % np.uint64(len(self.shards))
        effects = []
        for number, shard in enumerate(self.shards):
            rows = np.flatnonzero(owner == number)
            effects.append(shard.apply(prepared.batch.take(rows), prepared.log_time_us, recent_from_us))
        return effects

    def ask(self, program: Program) -> None:
        """Let the shards run a program that they already stand at."""
        for shard in self.shards:
            shard.ask(program)
        numbers = self.definitions.number_rules()
        self.gauges.ask(numbers, self.names.id)
        segments = [(name, kept.version) for name, kept in self.definitions.segments.items()]
        self.asked = Asked(segments, [*self.definitions.keys()[1], *((name, version) for name, (version, _) in numbers.items())])

    def define(self, record: Record) -> tuple[list[str], list[np.ndarray]] | None:
        """Do what a definition says, at its place in the log; return the segments that begin anew, and what each shard tells of them. None
        where it changes nothing."""
        before = self.definitions.keys()
        self.gauges.turn(record.at_us)  # where nobody looked at numbers until now, the minute is not known yet
        if not self.definitions.obey(record.body):
            return None
        now = self.definitions.keys()
        segments, rules = (same_as(*pair) for pair in zip(before, now, strict=True))
        program = self.definitions.program(self.names.id)
        told = [shard.define(program, segments, rules) for shard in self.shards]
        self.ask(program)
        return [name for (name, _), was in zip(self.asked.segments, segments, strict=True) if was < 0], told

    def parts_of(self, records: list[Record]) -> Iterator[list[Record]]:
        """Yield records in parts that end with a definition or a list of addresses, so that it holds from its place in the log on and not
        from that of a batch; and with a minute of the log, where anything looks at numbers by the minute. Before a part `turn` has to be
        called."""
        start = 0
        for end, record in enumerate(records, 1):
            turns = self.gauges and end < len(records) and records[end].at_us // MINUTE_US != record.at_us // MINUTE_US
            if turns or is_definition(record) or is_list(record):
                yield records[start:end]
                start = end
        if start < len(records):
            yield records[start:]

    def turn(self, at_us: int) -> list[np.ndarray]:
        """Let the minutes of the log pass, up to the one of a part's first record; return what each shard tells of that. Who is meant is
        looked up with all that time alone has changed by then."""
        told = [[] for _ in self.shards]
        for fired in self.gauges.turn(at_us):
            rule = self.asked.rules.index((fired.rule, fired.version))
            for number, shard in enumerate(self.shards):
                if fired.segment:
                    told[number].append(shard.advance(fired.at_us))
                    people = shard.members([name for name, _ in self.asked.segments].index(fired.segment))
                else:
                    people = np.full(1 if number == 0 else 0, NIL, np.int32)
                rows = np.zeros(people.size, TOLD)
                rows["at"] = rows["cause_at"] = fired.at_us
                rows["cause"], rows["row"], rows["person"], rows["number"], rows["what"] = fired.cause, TIMER, people, rule, FIRED
                told[number].append(rows)
        return [np.concatenate([np.zeros(0, TOLD), *rows]) for rows in told]


def is_definition(record: Record) -> bool:
    return record.kind == "definition" and record.source == SOURCE


def is_list(record: Record) -> bool:
    return record.kind == "definition" and record.source == LISTS


def firing_id(rule: str, version: int, recipient: str, cause: int) -> str:
    """Return the name of a firing: the same whenever the log is read, and another one for every cause."""
    return xxhash.xxh3_128_hexdigest(msgspec.msgpack.encode((rule, version, recipient, cause)))


def cause_json(at_us: int, campaign: str) -> bytes:
    """Return what is kept of a firing's cause: when it happened, and the campaign of its message if it has one."""
    return msgspec.json.encode({"at_us": at_us, "campaign": campaign}) if campaign else b'{"at_us":%d}' % at_us


def load_sources(config: Config) -> dict[str, Source]:
    """Return the configured sources by name. Raises ConfigError."""
    sources = {}
    for name, settings in config.sources.items():
        settings = dict(settings)
        sources[name] = load(settings.pop("kind"), settings, name=name)
    return sources
