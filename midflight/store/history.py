"""The history on disk: every event once, as Parquet by day of receipt, written behind the fold and safe to kill at any point.

A file covers a range of log positions and says so in its name, ``day=2026-11-24/part-<first>-<end>.parquet`` (``end`` is the position
after the last). It appears under that name only when its bytes are on the disk, so the names alone say what is written: the next
position to write is the greatest ``end`` there is, or, past records that hold no event, what the file ``position`` says. A merged file
covers the ranges of the files it was made from. Until those are gone a reader sees both and takes the larger range, so that nothing is
seen twice and nothing is missing.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import apsw
import duckdb
import msgspec
import numpy as np
from xxhash import xxh3_64_intdigest

from ..events import Event, recipient_key
from ..kit.clock import Clock
from ..kit.errors import Damaged
from ..kit.owned import own
from ..log.errors import NotKept
from ..log.record import Record
from .reading import Reading

FOLDER = "history"
DAY_US = 86_400_000_000

events_max = 50_000  # events of one part as the exporter writes it
read_bytes_max = 4 * 1024 * 1024  # of the log at a time
row_group_rows = 20_480  # a person's rows are found by reading few of these
memory_max = "512MB"
fan_in = 16  # so many neighbours of one size become one part
small_bytes = 64 * 1024
part_bytes_max = 1024 * 1024 * 1024  # larger parts are left as they are
noted_records = 256  # without events, before their end is noted
superseded_s = 600.0  # how long a query that began before a merge may still need the files it was made from
last_us = 253_402_300_799_000_000  # the end of the year 9999; later times are no times

TEXTS = (
    "source", "event_id", "kind", "recipient", "user_id", "message_id", "campaign", "variant", "wave", "url", "agent", "agent_reason",
    "user_agent", "ip", "bounce_class", "code", "reason", "detail", "name", "currency", "order_id",
)  # fmt: skip
OBJECTS = ("tags", "metadata", "traits")
SELECTED = f"""
    position, item, recipient_key,
    CASE WHEN occurred_us > 0 THEN make_timestamp(occurred_us) END AS occurred_at, make_timestamp(received_us) AS received_at,
    {", ".join(TEXTS)}, value_micros, {", ".join(OBJECTS)}
"""

_PART = re.compile(r"part-(\d{1,19})-(\d{1,19})\.parquet")
_MARKS = re.compile(r"marks-(\d{1,19})\.parquet")
_DAY = re.compile(r"day=(\d{4}-\d\d-\d\d)")


class Log(Protocol):
    """What the exporter needs of the log's reader."""

    def read(self, position: int, bytes_max: int) -> list[Record]: ...
    def first(self) -> int: ...


class Row(NamedTuple):
    """An event with its place: the record's position and the event's number in it."""

    position: int
    item: int
    event: Event


class Part(NamedTuple):
    """One file: the events of the records at positions ``first`` to ``end`` (excluded) that were received on ``day``."""

    day: str
    first: int
    end: int
    path: Path

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size


# -- what there is -------------------------------------------------------------------------------------------------------


def day_of(at_us: int) -> str:
    """Return the UTC day of a time, as it stands in a folder's name."""
    return str(np.datetime64(at_us // DAY_US, "D"))


def folder_of(data: str | Path) -> Path:
    return Path(data) / FOLDER


def all_parts(folder: Path) -> list[Part]:
    """Return every part on disk, superseded ones too, by day and position."""
    found = []
    for day in _children(folder):
        said = _DAY.fullmatch(day.name)
        for path in _children(day) if said else ():
            name = _PART.fullmatch(path.name)
            if name:
                found.append(Part(said[1], int(name[1]), int(name[2]), path))
    return sorted(found, key=lambda part: (part.day, part.first, -part.end))


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def chosen(parts: list[Part]) -> list[Part]:
    """Return the parts to read: of a day's parts whose ranges contain one another, the largest. Raises Damaged if two only overlap."""
    kept: list[Part] = []
    for part in parts:
        before = kept[-1] if kept and kept[-1].day == part.day else None
        if before is None or part.first >= before.end:
            kept.append(part)
        elif part.end > before.end:
            raise Damaged("Two files of the history overlap", got=f"{before.path.name} and {part.path.name}", where=str(part.path.parent))
    return kept


def next_position(parts: list[Part]) -> int:
    """Return the first log position that no part covers."""
    return max((part.end for part in parts), default=0)


def noted_position(folder: Path) -> int:
    """Return the position up to which there was nothing or all is in parts, as last noted.

    Read it before the parts: a note that comes later may stand behind a part that was not there yet.
    """
    try:
        return int((folder / "position").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def done_position(folder: Path) -> int:
    """Return the first position that may hold an event of no part: after the parts, or after idle times that were noted since."""
    noted = noted_position(folder)
    return max(next_position(all_parts(folder)), noted)


def written(folder: Path) -> tuple[list[Part], int]:
    """Return the parts to read, and the first position that may hold an event of none of them."""
    noted = noted_position(folder)
    parts = chosen(all_parts(folder))
    return parts, max(next_position(parts), noted)


def key_text(event: Event) -> str:
    """Return what makes an event's recipient one person: the normalised address, else the sender's own id for them."""
    return recipient_key(event.recipient) or (f"id:{event.user_id}" if event.user_id else "")


def key_hash(text: str) -> int:
    """Return the hash that rows are sorted by; 0 for nobody in particular."""
    return xxh3_64_intdigest(text.encode("utf-8", "replace")) if text else 0


def columns(rows: list[Row]) -> dict[str, np.ndarray]:
    """Return rows as named columns, as DuckDB takes them."""
    events = [row.event for row in rows]
    encode = msgspec.json.encode
    out = {
        "position": np.array([row.position for row in rows], np.int64),
        "item": np.array([row.item for row in rows], np.int32),
        "recipient_key": np.array([key_hash(key_text(event)) for event in events], np.uint64),
        "occurred_us": np.array([e.occurred_at_us if 0 < e.occurred_at_us <= last_us else 0 for e in events], np.int64),
        "received_us": np.array([min(e.received_at_us, last_us) for e in events], np.int64),
        "value_micros": np.array([e.value_micros for e in events], np.int64),
    }
    for name in TEXTS:
        out[name] = np.array([getattr(event, name) for event in events], object)
    for name in OBJECTS:
        out[name] = np.array([encode(value).decode() if (value := getattr(event, name)) else "" for event in events], object)
    return out


def paths_sql(parts: list[Part] | list[Path]) -> str:
    """Return a list of files as SQL text."""
    paths = [str(part.path if isinstance(part, Part) else part) for part in parts]
    return "[" + ", ".join("'" + path.replace("'", "''") + "'" for path in paths) + "]"


# -- writing -------------------------------------------------------------------------------------------------------------


def nothing(_step: str) -> None:
    """Take note of a step; the tests put a crash here."""


class Exporter:
    """Follows the log and writes parts, merges small ones, drops old ones. One per data folder: `opened` takes the lock.

    ``passed(step)`` is called between any two things that a crash could fall between.
    """

    def __init__(
        self, data: str | Path, log: Log, reading: Reading, clock: Clock, *, days_kept: int = 3650, passed: Callable[[str], None] = nothing
    ) -> None:
        self.data, self.folder = Path(data), folder_of(data)
        self.log, self.reading, self.clock, self.days_kept, self.passed = log, reading, clock, days_kept, passed
        self.temporary = self.folder / "tmp"
        self.position = self.noted = 0
        self.marks_at_s = 0.0
        self._db: duckdb.DuckDBPyConnection | None = None

    @contextmanager
    def opened(self) -> Iterator[Exporter]:
        """Hold the history alone, cleared of what a crash left. Raises Locked."""
        self.temporary.mkdir(parents=True, exist_ok=True)
        with own(self.folder / "lock", "Another process writes this history", where=str(self.folder)):
            shutil.rmtree(self.temporary)
            self.temporary.mkdir()
            self.position = self.noted = done_position(self.folder)
            config = {"threads": 1, "memory_limit": memory_max, "temp_directory": str(self.temporary / "spill")}
            self._db = duckdb.connect(":memory:", config=config)
            try:
                yield self
            finally:
                self._db.close()
                self._db = None

    def follow(self, committed: int) -> bool:
        """Write what the log has from here to the position ``committed``, one part a day at most; True if there may be more."""
        start, runs = self.position, self._gather(committed)
        for number, (day, first, rows) in enumerate(runs):
            end = runs[number + 1][1] if number + 1 < len(runs) else self.position
            if rows:
                self._write_part(day, max(first, start), end, rows)
                self.noted = end
        if self.position - self.noted >= noted_records:
            self._note()
        return start < self.position < committed

    def _gather(self, committed: int) -> list[tuple[str, int, list[Row]]]:
        """Read on, and return (day, first position, rows) for each stretch of records that came on one day."""
        runs: list[tuple[str, int, list[Row]]] = []
        oldest = day_of(max(self.clock.now_us() - self.days_kept * DAY_US, 0))
        rows = 0
        while self.position < committed:
            records = self._read()
            if not records:
                # The reader does not see so far yet.
                return runs
            if records[0].position >= committed:
                # A repair of the log gave up the positions before.
                self.position = committed
            for record in records:
                if record.position >= committed:
                    break
                day = day_of(record.at_us)
                if not runs or runs[-1][0] != day:
                    runs.append((day, record.position, []))
                events = self.reading.events(record) if day >= oldest else []
                runs[-1][2].extend(Row(record.position, item, event) for item, event in events)
                rows += len(events)
                self.position = record.position + 1
                if rows >= events_max:
                    return runs
        return runs

    def _read(self) -> list[Record]:
        try:
            return self.log.read(self.position, read_bytes_max)
        except NotKept:
            self.position = self.log.first()
            return self.log.read(self.position, read_bytes_max)

    def _note(self) -> None:
        """Remember that there is nothing up to here, so that nobody looks through a night of ticks again.

        The parts before are on the disk by now. A note that a power cut spoils is one that is not there.
        """
        temporary = self.temporary / "position"
        temporary.write_text(str(self.position))
        os.rename(temporary, self.folder / "position")
        self.noted = self.position
        self.passed("noted")

    def _write_part(self, day: str, first: int, end: int, rows: list[Row]) -> None:
        self._db.register("fresh", columns(rows))
        try:
            self._publish(f"SELECT {SELECTED} FROM fresh ORDER BY recipient_key, position, item", f"day={day}", part_name(first, end))
        finally:
            self._db.unregister("fresh")

    def _publish(self, query: str, place: str, name: str) -> None:
        """Write a query's rows to a temporary file and show it under its name once it is on the disk."""
        temporary, folder = self.temporary / name, self.folder / place
        quoted = str(temporary).replace("'", "''")
        self._db.execute(f"COPY ({query}) TO '{quoted}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {row_group_rows})")
        self.passed("written")
        sync(temporary)
        self.passed("synced")
        if not folder.is_dir():
            folder.mkdir()
            sync(self.folder)
            self.passed("folder made")
        os.rename(temporary, folder / name)
        self.passed("renamed")
        sync(folder)
        self.passed("shown")

    # -- merging and dropping ------------------------------------------------------------------------------------------------

    def tidy(self) -> bool:
        """Drop what is superseded or too old, then merge one group of small parts; True if there is another."""
        self._sweep()
        group = next(iter(mergeable(chosen(all_parts(self.folder)), day_of(self.clock.now_us()))), None)
        if group is None:
            return False
        files = f"read_parquet({paths_sql(group)}, hive_partitioning = false, union_by_name = true)"
        query = f"SELECT * FROM {files} ORDER BY recipient_key, position, item"
        self._publish(query, f"day={group[0].day}", part_name(group[0].first, group[-1].end))
        return True

    def _sweep(self) -> None:
        parts = all_parts(self.folder)
        kept = chosen(parts)
        now_s = self.clock.now_us() / 1e6
        for part in set(parts) - set(kept):
            merged = next(k for k in kept if k.day == part.day and k.first <= part.first and part.end <= k.end)
            if now_s - merged.path.stat().st_mtime >= superseded_s:
                part.path.unlink()
                self.passed("superseded gone")
        oldest = day_of(max(self.clock.now_us() - self.days_kept * DAY_US, 0))
        for day in {part.day for part in parts if part.day < oldest}:
            shutil.rmtree(self.folder / f"day={day}")
            self.passed("old day gone")

    # -- marks ---------------------------------------------------------------------------------------------------------------

    def copy_marks(self, store: Path) -> bool:
        """Write the store's marks anew if there may be others; False if nothing was to be done.

        Marks may change for events of any age, so the file is always all of them. How long that takes decides how soon it
        is done again; what is newer than the file is read from the store itself.
        """
        before = self.clock.monotonic_s()
        if before < self.marks_at_s:
            return False
        with store_opened(store) as db:
            if db is None:
                return False
            position = int(db.execute("SELECT value FROM meta WHERE key = 'position'").get or 0)
            newest = newest_marks(self.folder)
            if newest and position <= newest[0]:
                return False
            self._db.execute("CREATE OR REPLACE TEMP TABLE fresh_marks (position BIGINT, item INTEGER, mark VARCHAR)")
            found = db.execute("SELECT position, item, mark FROM marks ORDER BY position, item")
            while some := list(_some(found, 100_000)):
                self._db.register("fresh_rows", marks_columns(some))
                self._db.execute("INSERT INTO fresh_marks SELECT * FROM fresh_rows")
                self._db.unregister("fresh_rows")
        self._publish("SELECT * FROM fresh_marks ORDER BY position, item", "marks", f"marks-{position:016d}.parquet")
        self._db.execute("DROP TABLE fresh_marks")
        for path in _children(self.folder / "marks"):
            name = _MARKS.fullmatch(path.name)
            if name and newest and int(name[1]) < newest[0]:
                path.unlink()
                self.passed("old marks gone")
        after = self.clock.monotonic_s()
        self.marks_at_s = after + max(60.0, 50 * (after - before))
        return True


def _some(rows: Iterator, most: int) -> Iterator:
    for _, row in zip(range(most), rows, strict=False):
        yield row


def marks_columns(rows: list[tuple[int, int, str]]) -> dict[str, np.ndarray]:
    return {
        "position": np.array([row[0] for row in rows], np.int64),
        "item": np.array([row[1] for row in rows], np.int32),
        "mark": np.array([row[2] for row in rows], object),
    }


def part_name(first: int, end: int) -> str:
    return f"part-{first:016d}-{end:016d}.parquet"


def mergeable(parts: list[Part], today: str) -> Iterator[list[Part]]:
    """Yield neighbours that should be one part: all of a day that is over; of today, `fan_in` or more of about one size.

    Sizes go up by a factor of `fan_in`, so that a row is rewritten only once per factor.
    """
    days: dict[str, list[Part]] = {}
    for part in parts:
        if part.bytes < part_bytes_max:
            days.setdefault(part.day, []).append(part)
    for day, found in sorted(days.items()):
        if day < today:
            if len(found) > 1 and sum(part.bytes for part in found) <= part_bytes_max:
                yield found
            continue
        sizes = [size_class(part.bytes) for part in found]
        for size in sorted(set(sizes)):
            run: list[Part] = []
            for part, its in zip([*found, None], [*sizes, size + 1], strict=True):
                if its <= size:
                    run.append(part)
                    continue
                if len(run) >= fan_in:
                    yield run
                run = []


def size_class(size: int) -> int:
    """Return how often `small_bytes` has to grow by `fan_in` to reach a size."""
    steps = 0
    while size > small_bytes:
        size //= fan_in
        steps += 1
    return steps


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, last."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# -- what the store says of events ---------------------------------------------------------------------------------------


@contextmanager
def store_opened(path: Path) -> Iterator[apsw.Connection | None]:
    """Open the store read-only at one moment; None where there is none yet."""
    if not path.exists():
        yield None
        return
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        db.set_busy_timeout(2_000)
        with db:
            yield db if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'marks'").get else None
    finally:
        db.close()


def committed_position(data: str | Path) -> int:
    """Return the position up to which the engine has folded; the history never goes past it."""
    with store_opened(Path(data) / "store.db") as db:
        return int(db.execute("SELECT value FROM meta WHERE key = 'position'").get or 0) if db else 0


def newest_marks(folder: Path) -> tuple[int, Path] | None:
    """Return the newest file of marks and the position up to which it is whole."""
    names = [(_MARKS.fullmatch(path.name), path) for path in _children(folder / "marks")]
    return max(((int(name[1]), path) for name, path in names if name), default=None)
