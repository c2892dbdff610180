"""One import: look at the file, say what it is, then put its events into the log chunk by chunk, and go on after a kill."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
from xxhash import xxh3_128

from ..config import Config
from ..events import Event
from ..kit.clock import Clock
from ..kit.counters import Counters
from ..kit.errors import ConfigError, MidflightError
from ..kit.owned import own
from ..log.record import Record
from ..sources import Request, load
from . import REGISTRY
from ._lines import NotImportable, Opened, decoded, lines
from ._rows import Found, Header, Place, Rows, Values, header_of, json_lines
from .export import Export, plain_name

events_max = 1_000  # of one record
body_bytes_max = 2 * 1024 * 1024  # of one record
lines_max = 20_000  # a chunk is closed after so many, also where nearly all are bad
sample_items = 20
alike_min = 0.7  # a new name of a source that is this like a configured one is taken for a mistake

Append = Callable[[list[Record]], None]


class State(msgspec.Struct):
    """How far an import has come; written after each chunk that is safe in the log."""

    file: str
    format: str
    source: str
    offset: int = 0
    line: int = 0
    events: int = 0
    rejected: int = 0
    rejected_bytes: int = 0
    recoded: int = 0
    done: bool = False


class Plan(NamedTuple):
    """What a file is and how it will be read. ``shape``: table, lines or values."""

    path: Path
    format: str
    label: str
    shape: str
    source: str
    header: Header | None
    export: Export
    identity: str


# -- what is it? ---------------------------------------------------------------------------------------------------------


def plan(path: Path, config: Config, *, format_: str = "auto", source: str = "", mapping: dict | None = None, people: bool = False) -> Plan:
    """Look at a file and say how it will be read. Raises NotImportable, NotFound for an unknown format, ConfigError."""
    if format_ == "auto" and mapping:
        format_ = "generic"
    if people:
        format_ = "people"
    if format_ != "auto":
        REGISTRY.get(format_)
    shape, header, sample = look(path)
    name = format_ if format_ != "auto" else recognised(path, header, sample)
    export, source = reader(name, config, source, mapping or {}, path, header.columns if header else [])
    identity = identity_of(path, f"{name} {source} {msgspec.json.encode(mapping or {}, order='sorted').decode()}")
    return Plan(path, name, export.label, shape, source, header, export, identity)


def look(path: Path) -> tuple[str, Header | None, list[dict]]:
    """Return the shape of a file, the header of a table, and the first objects of JSON."""
    with Opened(path) as opened:
        first = next((line for line in lines(opened) if line.raw.strip(b"\xef\xbb\xbf\x00 \t")), None)
    if first is None:
        raise NotImportable(f"{path.name} is empty" if not opened.broken else f"{path.name}: {opened.broken}")
    raw = first.raw.removeprefix(b"\xef\xbb\xbf").strip(b"\x00 \t")
    if raw[:1] not in (b"{", b"["):
        with Opened(path) as opened:
            return "table", header_of(opened), []
    shape = "lines" if first.whole and is_json(raw) else "values"
    with Opened(path) as opened:
        found = json_lines(opened, Place()) if shape == "lines" else Values(opened, Place())
        return shape, None, [item.value for _, item in zip(range(sample_items), found, strict=False) if item.value is not None]


def is_json(raw: bytes) -> bool:
    try:
        msgspec.json.decode(decoded(raw)[0])
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def recognised(path: Path, header: Header | None, sample: list[dict]) -> str:
    """Return the format that fits the columns, or most of the first objects. Raises NotImportable."""
    # The generic one fits much: it is asked last.
    names = sorted(REGISTRY.names(), key=lambda name: name == "generic")
    formats = {name: REGISTRY.get(name) for name in names}
    if header is not None:
        columns = {plain_name(column) for column in header.columns}
        fits = {name: int(kind.fits_columns(columns)) for name, kind in formats.items()}
        got = ", ".join(header.columns)
    else:
        fits = {name: sum(kind.fits_object(item) for item in sample) for name, kind in formats.items()}
        got = ", ".join(sample[0]) if sample else "no objects"
    best = max(names, key=lambda name: fits[name])
    if not fits[best]:
        raise NotImportable(
            f"{path.name} is of no known format",
            expected="an export of " + ", ".join(kind.label for kind in formats.values()),
            got=got,
            todo="Say which with --format, or what its columns mean with --map; a list of people needs --people",
        )
    return best


def reader(name: str, config: Config, source: str, mapping: dict, path: Path, columns: list[str]) -> tuple[Export, str]:
    """Return the format ready to read, and the name of the source its events come from: a configured one wherever there is one."""
    kind = REGISTRY.get(name)
    not_misspelt(source, config)
    free = name in ("generic", "people")  # of no vendor, so no configured source is surely meant
    if not source:
        configured = [known for known, settings in config.sources.items() if settings.get("kind") == kind.source]
        source = configured[0] if len(configured) == 1 and not free else "people" if name == "people" else kind.source
    settings = dict(config.sources.get(source) or {})
    given = settings.pop("kind", kind.source)
    own = given == kind.source and bool(settings) and not mapping
    if settings and given != kind.source and not free:
        raise ConfigError(f"Source `{source}` is of another kind than the file", expected=kind.source, got=given, where="--source")
    reads = load(kind.source, settings if own else kind.settings(mapping, columns), name=source)
    return kind(reads, path.stat().st_mtime_ns // 1000), source


def not_misspelt(source: str, config: Config) -> None:
    """Raise ConfigError for a new name that is nearly a configured one: events under a misspelt name count once more."""
    known = {name.casefold(): name for name in config.sources}
    if not source or source in config.sources:
        return
    close = difflib.get_close_matches(source.casefold(), known, n=1, cutoff=alike_min)
    if close:
        raise ConfigError(
            f"No source is called `{source}`",
            where="--source",
            todo=f"Did you mean `{known[close[0]]}`? If it is another one, add it to `sources` first",
        )


def identity_of(path: Path, how: str) -> str:
    """Return what tells a file, read in one way, from any other: its size, its beginning and its end."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        seen = xxh3_128(file.read(256 * 1024))
        file.seek(max(size - 64 * 1024, 0))
        seen.update(file.read())
    seen.update(f"{size} {how}".encode())
    return seen.hexdigest()


# -- the import ----------------------------------------------------------------------------------------------------------


class Import:
    """One run over one file. ``append`` has to have the records safe when it returns."""

    def __init__(self, plan: Plan, data: Path, append: Append, clock: Clock, *, again: bool = False) -> None:
        self.plan, self.append, self.clock = plan, append, clock
        self.folder = data / "imports"
        self.state_path = self.folder / f"{plan.identity}.json"
        self.rejected_path = plan.path.with_name(plan.path.name + ".rejected.ndjson")
        self.kinds = Counters()
        self.state = State(str(plan.path), plan.format, plan.source)
        self.resumed = False
        self._read_state(again)

    def _read_state(self, again: bool) -> None:
        try:
            state = msgspec.json.decode(self.state_path.read_bytes(), type=State)
        except (FileNotFoundError, msgspec.DecodeError):
            return
        if not (again and state.done):
            self.state, self.resumed = state, state.offset > 0 and not state.done

    def run(self, progress: Callable[[int], None] = lambda _bytes: None) -> State:
        """Import what is not imported yet and return how it stands. Raises what ``append`` raises; run it again to go on."""
        with self._alone(), Opened(self.plan.path) as opened:
            if self.state.done:
                return self.state
            self._open_rejected()
            found = self._found(opened)
            for chunk in self._chunks(found):
                self._put(chunk)
                progress(opened.done)
            self.state.done = True
            self._save()
            if not self.state.rejected and self.rejected_path.exists():
                self.rejected_path.unlink()
        return self.state

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with own(self.folder / f"{self.plan.identity}.lock", "This file is being imported already", where=str(self.plan.path)):
            yield

    def _found(self, opened: Opened) -> Iterator[Found]:
        place = Place(self.state.offset, self.state.line)
        if self.plan.shape == "table":
            rows = Rows(opened, self.plan.header, place if place.offset else self.plan.header.place)
            before = self.state.recoded
            for found in rows:
                self.state.recoded = before + rows.recoded
                yield found
        elif self.plan.shape == "lines":
            yield from json_lines(opened, place)
        else:
            yield from Values(opened, place)

    def _chunks(self, found: Iterator[Found]) -> Iterator[tuple[Place, list[Event], list[tuple[Found, str]]]]:
        """Yield (where to go on, events, rejected), cut where a chunk is full and a new line begins."""
        events: list[Event] = []
        bad: list[tuple[Found, str]] = []
        place, begun = Place(self.state.offset, self.state.line), self.state.line
        for item in found:
            full = len(events) >= events_max or item.line - begun >= lines_max
            if full and item.place != place.offset:
                yield place, events, bad
                events, bad, begun = [], [], item.line
            if item.value is None:
                bad.append((item, item.reason))
            else:
                self._read(item, events, bad)
            place = Place(item.place, item.line)
        if events or bad:
            yield place, events, bad

    def _read(self, item: Found, events: list[Event], bad: list[tuple[Found, str]]) -> None:
        request = Request(received_at_us=0)
        try:
            parsed = self.plan.export.read(item.value, request, table=self.plan.shape == "table")
        except (MidflightError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError) as error:
            bad.append((item, error.text() if isinstance(error, MidflightError) else f"{type(error).__name__}: {error}"))
            return
        events.extend(parsed)
        bad.extend((item, f"{found.reason}: {found.detail}") for found in parsed.bad)

    def _put(self, chunk: tuple[Place, list[Event], list[tuple[Found, str]]]) -> None:
        """Make a chunk last: first the events in the log, then what was rejected, then how far we are."""
        place, events, bad = chunk
        if events:
            self.append(list(self._records(events)))
        for event in events:
            self.kinds.add("imported_total", event.kind)
        if bad:
            with open(self.rejected_path, "ab") as file:
                for found, reason in bad:
                    raw = found.raw if found.value is None else found.value
                    file.write(msgspec.json.encode({"line": found.line, "reason": reason[:500], "raw": raw}) + b"\n")
                file.flush()
                os.fsync(file.fileno())
                self.state.rejected_bytes = file.tell()
        self.state.offset, self.state.line = place
        self.state.events += len(events)
        self.state.rejected += len(bad)
        self._save()

    def _records(self, events: list[Event]) -> Iterator[Record]:
        """Pack events into records of canonical events; their receipt is when the log takes them."""
        body: list[bytes] = []
        size = 0
        for event in events:
            raw = msgspec.json.encode(event)
            if body and (len(body) >= events_max or size + len(raw) > body_bytes_max):
                yield Record("events", self.plan.source, self.clock.now_us(), {}, b"[" + b",".join(body) + b"]")
                body, size = [], 0
            body.append(raw)
            size += len(raw) + 1
        yield Record("events", self.plan.source, self.clock.now_us(), {}, b"[" + b",".join(body) + b"]")

    def _open_rejected(self) -> None:
        """Take away what was rejected after the last chunk that counts. Raises NotImportable where the folder cannot be written."""
        try:
            with open(self.rejected_path, "ab") as file:
                file.truncate(self.state.rejected_bytes)
        except OSError:
            self.rejected_path = self.folder / f"{self.plan.path.name}.rejected.ndjson"
            with open(self.rejected_path, "ab") as file:
                file.truncate(self.state.rejected_bytes)

    def _save(self) -> None:
        temporary = self.state_path.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(self.state))
        os.replace(temporary, self.state_path)
