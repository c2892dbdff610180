"""Files that somebody drops: each is read once by its content, when it is complete, a page of rows at a time."""

from __future__ import annotations

import fnmatch
from collections.abc import AsyncIterator
from hashlib import blake2b
from pathlib import Path
from typing import Annotated

import msgspec

from ...events import Bad, clean
from ...kit.errors import MidflightError
from ._mapping import MappedSettings, Mapping, row_bytes_max
from .poll import At, Cursor, Found, NotNow, Page

page_rows = 1_000
known_max = 10_000  # files whose content is known; of more the oldest are forgotten
file_bytes_max = 4 * 1024**3
UNFINISHED = ("*.part", "*.partial", "*.tmp", "*.filepart", "*.crdownload", ".*", "~*")


class FileSettings(MappedSettings, kw_only=True, frozen=True):
    """``pattern`` is which files; names that programs give to unfinished ones are never taken. ``settle_s``: so long a file has to have
    kept its size and time. What has been read goes to ``done``, what cannot be read to ``failed``, folders beside the file."""

    pattern: str = "*.csv"
    settle_s: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    done: str = "done"
    failed: str = "failed"


class Seen(msgspec.Struct, frozen=True):
    """A file as it lies there."""

    name: str
    size: int
    changed_us: int


def complete(seen: list[Seen], before: dict[str, tuple[Seen, int]], settings: FileSettings, now_us: int) -> list[Seen]:
    """Return files that have not changed for long enough, the oldest first; ``before`` is what was seen at former looks, kept here."""
    settle_us = int(settings.settle_s * 1e6)
    there = {one.name: one for one in seen if wanted(one.name, settings.pattern)}
    for name in before.keys() - there.keys():
        del before[name]
    for name, one in there.items():
        if name not in before or before[name][0] != one:
            before[name] = (one, now_us)
    # By our own observation, because the other machine's clock may be wrong; a file that is old by its own time need not be waited for.
    ready = [one for one, since_us in before.values() if now_us - max(since_us, 0) >= settle_us or now_us - one.changed_us > 2 * settle_us]
    return sorted(ready, key=lambda one: (one.changed_us, one.name))


def wanted(name: str, pattern: str) -> bool:
    return fnmatch.fnmatch(name, pattern) and not any(fnmatch.fnmatch(name, unfinished) for unfinished in UNFINISHED)


def content_of(path: Path) -> str:
    """Return the hash of a file's content. Raises NotNow."""
    seen = blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                seen.update(chunk)
    except OSError as error:
        raise NotNow(f"{path.name} cannot be read", got=error.strerror) from None
    return seen.hexdigest()


class Reading:
    """One file on its way into pages. The cursor is durable behind each of them, so that a big file goes on where it was."""

    def __init__(self, mapping: Mapping, path: Path, one: Seen, content: str) -> None:
        self.mapping, self.path, self.one, self.content = mapping, path, one, content
        # Without a time of their own rows are of when the file was written.
        mapping.at_us = one.changed_us

    def resumes(self, cursor: Cursor) -> tuple[int, int]:
        at = cursor["file"]
        return (at["place"], at["line"]) if at and at["content"] == self.content else (0, 0)

    async def pages(self, cursor: Cursor, at: At) -> AsyncIterator[Page]:
        """Give the file's rows. Raises MidflightError for a file that is no table."""
        place, line = self.resumes(cursor)
        rows: list[tuple[dict, int]] = []
        bad: list[Bad] = []
        for row in at.rows(self.path, place, line):
            if row.value is None:
                bad.append(Bad(row.line, "unreadable", f"{self.one.name} line {row.line}: {row.reason}", msgspec.json.encode(row.raw)))
            else:
                rows.append((row.value, row.line))
            place, line = row.place, row.line
            if len(rows) + len(bad) >= page_rows:
                page = self._page(rows, bad, cursor, place, line)
                yield page
                cursor, rows, bad = page.cursor, [], []
        yield self._page(rows, bad, cursor, place, line)

    def _page(self, rows: list[tuple[dict, int]], bad: list[Bad], cursor: Cursor, place: int, line: int) -> Page:
        # An empty cell says nothing of a type and empties a trait.
        values = [{name: value or None for name, value in row.items()} for row, _ in rows]
        read = self.mapping.read(values, cursor["types"])
        named = []
        for one in read.bad:
            number = rows[one.index][1]
            # With the file's time: read later, it must not pass for something new.
            raw = msgspec.json.encode({"at_us": self.one.changed_us, "row": values[one.index]})
            named.append(Bad(number, one.reason, f"{self.one.name} line {number}: {one.detail}", raw[:row_bytes_max]))
        after = cursor | {"types": read.types, "file": {"content": self.content, "place": place, "line": line}}
        return Page(read.found, after, True, [*bad, *named])


def known(cursor: Cursor, content: str) -> Cursor:
    """Return the cursor with a file's content among those that have been read."""
    return cursor | {"file": None, "known": [*cursor["known"], content][-known_max:]}


def nothing_known() -> Cursor:
    return {"file": None, "known": [], "types": {}}


def not_a_table(one: Seen, error: MidflightError) -> Bad:
    return Bad(0, "unreadable", clean(f"{one.name}: {error.text()}")[:500], msgspec.json.encode({"file": one.name}))


def again(mapping: Mapping, raw: bytes, settings: FileSettings) -> list[Found]:
    """Read a row that was set aside once more. Raises MidflightError for what was no row."""
    kept = msgspec.json.decode(raw)
    mapping.at_us = kept["at_us"]
    return [mapping.one(kept["row"], dict(settings.types))]
