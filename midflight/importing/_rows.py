"""Lines become rows of a table or JSON values, each with its line number; what is neither is said and left behind."""

from __future__ import annotations

import csv
import json
import re
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from ._lines import Line, NotImportable, Opened, chunk_bytes, decoded, line_bytes_max, lines

columns_max = 1_000
cell_chars_max = 256 * 1024
row_lines_max = 100  # a cell with line ends in it; more, and a quote was left open
raw_chars_max = 4_000  # of a rejected line, as it is kept aside
delimiters = ",;\t|"
# Where APIs put their lists.
LISTS = ("items", "events", "data", "Messages", "Opens", "Clicks", "Bounces", "messages", "results", "records")

# What says that an object is an event itself, whatever lists it has.
EVENTS = {"event", "type", "kind", "email", "recipient", "eventType", "notificationType", "RecordType", "event-data", "msg_id", "MessageID"}


class Found(NamedTuple):
    """A row or value, or why there is none. ``place`` is where to go on after it, of the same kind as `Place.offset`."""

    line: int
    place: int
    value: dict | None
    reason: str = ""
    raw: str = ""


class Place(NamedTuple):
    """Where reading goes on: an offset in the unpacked bytes (in `values`: how many values are done), and the line before it."""

    offset: int = 0
    line: int = 0


class Header(NamedTuple):
    """The columns of a table, what separates them, and where the first row begins."""

    columns: list[str]
    delimiter: str
    place: Place


def header_of(opened: Opened) -> Header:
    """Read a table's first line that is not empty. Raises NotImportable."""
    for line in lines(opened):
        text, _ = decoded(line.raw.removeprefix(b"\xef\xbb\xbf"))
        if not text.strip("\x00 \t"):
            continue
        if not line.whole:
            raise NotImportable("The first line is longer than a table's header may be", expected=f"at most {line_bytes_max} bytes")
        bare = re.sub(r'"[^"]*"', "", text)
        delimiter = max(delimiters, key=bare.count)
        columns = next(csv.reader([text], delimiter=delimiter), [])
        if len(columns) > columns_max:
            raise NotImportable("Too many columns", expected=f"at most {columns_max}", got=len(columns))
        return Header(unique([column.strip().replace("\x00", "") for column in columns]), delimiter, Place(line.end, line.number))
    raise NotImportable("The file is empty")


def unique(columns: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    out = []
    for column in columns:
        seen[column] = seen.get(column, 0) + 1
        out.append(column if seen[column] == 1 else f"{column}_{seen[column]}")
    return out


class _OpenQuote(Exception):
    """A cell has gone on for too many lines."""


class Rows:
    """The rows of a table. A row that cannot be read costs one line: the next one is tried as the beginning of a row."""

    def __init__(self, opened: Opened, header: Header, place: Place) -> None:
        self.opened, self.header, self.recoded = opened, header, 0
        self._lines = lines(opened, place.offset, place.line)
        self._again: deque[Line] = deque()
        self._taken: list[Line] = []
        self._texts: list[str] = []
        # The limit is the module's and for all readers; ours is the only one that meets strangers' files.
        csv.field_size_limit(cell_chars_max)

    def __iter__(self) -> Iterator[Found]:
        reader, at = self._reader(), self.header.place
        while True:
            self._taken, self._texts = [], []
            try:
                cells = next(reader)
                why = self._wrong(cells)
            except StopIteration:
                break
            except (csv.Error, _OpenQuote) as error:
                cells, why = [], "a quote is opened and not closed" if isinstance(error, _OpenQuote) else str(error)
                reader = self._reader()
            first, last = self._taken[0], self._taken[-1]
            at = Place(last.end, last.number)
            if why == "empty":
                continue
            if not why:
                yield Found(first.number, last.end, dict(zip(self.header.columns, cells, strict=True)))
                continue
            if not first.whole:
                why = f"the line is longer than {line_bytes_max} bytes"
            if len(self._taken) > 1:
                why += f", over {len(self._taken)} lines: a quote may be left open"
                self._again.extendleft(reversed(self._taken[1:]))
                reader = self._reader()
            yield Found(first.number, first.end, None, why, self._texts[0][:raw_chars_max])
        if self.opened.broken:
            yield Found(at.line + 1, at.offset, None, self.opened.broken)

    def _reader(self):
        return csv.reader(self._feed(), delimiter=self.header.delimiter)

    def _feed(self) -> Iterator[str]:
        """Give lines to the CSV reader. It asks for another one within a row only where a quote is open."""
        while True:
            line = self._again.popleft() if self._again else next(self._lines, None)
            if line is None:
                if self._taken:
                    raise _OpenQuote
                return
            text, was_utf8 = decoded(line.raw)
            self.recoded += not was_utf8
            self._taken.append(line)
            self._texts.append(text)
            if len(self._taken) > row_lines_max or (len(self._taken) > 1 and sum(map(len, self._texts)) > line_bytes_max):
                raise _OpenQuote
            yield text + "\n"

    def _wrong(self, cells: list[str]) -> str:
        if not self._taken[0].whole:
            return "too long"
        if not cells or (len(cells) == 1 and not cells[0].strip("\x00 \t")):
            return "empty"
        if len(cells) != len(self.header.columns):
            return f"{len(cells)} cells, but the table has {len(self.header.columns)} columns"
        return ""


def json_lines(opened: Opened, place: Place) -> Iterator[Found]:
    """Yield the objects of a file with one JSON value a line; a list gives its objects."""
    number, end = place.line, place.offset
    for number, end, raw, whole in lines(opened, place.offset, place.line):  # noqa: B007 (used after the loop)
        raw = raw.removeprefix(b"\xef\xbb\xbf").strip(b"\x00 \t")
        if not raw:
            continue
        if not whole:
            yield Found(number, end, None, f"the line is longer than {line_bytes_max} bytes", decoded(raw[:raw_chars_max])[0])
            continue
        try:
            value = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            text, was_utf8 = decoded(raw)
            try:
                value = None if was_utf8 else msgspec.json.decode(text)
            except (msgspec.DecodeError, RecursionError):
                value = None
            if value is None:
                yield Found(number, end, None, f"not JSON: {error}"[:200], text[:raw_chars_max])
                continue
        yield from (found._replace(place=end) for found in expanded(value, number))
    if opened.broken:
        yield Found(number + 1, end, None, opened.broken)


def expanded(value: object, line: int, place: int = 0) -> Iterator[Found]:
    """Yield the objects in a JSON value: itself, those of a list, or those of the list that an API's answer holds."""
    if isinstance(value, dict):
        inner = next((value[name] for name in LISTS if isinstance(value.get(name), list)), None)
        if inner is None or EVENTS & value.keys() or not all(isinstance(item, dict) for item in inner):
            yield Found(line, place, value)
            return
        value = inner
    if not isinstance(value, list):
        yield Found(line, place, None, f"an object is expected, not {type(value).__name__}", str(value)[:raw_chars_max])
        return
    for item in value:
        if isinstance(item, dict):
            yield Found(line, place, item)
        else:
            yield Found(line, place, None, f"an object is expected, not {type(item).__name__}", str(item)[:raw_chars_max])


class Values:
    """JSON values of a file that is no JSON Lines: one big list, an API's answer, values one after the other.

    Read bit by bit: a list of a gigabyte never stands in memory. Going on means reading again up to where it was.
    """

    def __init__(self, opened: Opened, place: Place) -> None:
        self.opened, self.place = opened, place
        self._decoder = json.JSONDecoder()
        self._utf8 = _Text(opened)
        self._text, self._at, self._line = "", 0, 1
        self._ended = False

    def __iter__(self) -> Iterator[Found]:
        done = 0
        for found in self._all():
            done += 1
            if done > self.place.offset:
                yield found._replace(place=done)
        if self.opened.broken:
            yield Found(self._line, done + 1, None, self.opened.broken)

    def _all(self) -> Iterator[Found]:
        while (sign := self._next()) != "":
            line = self._line
            if sign == "[":
                self._at += 1
                if not (yield from self._list()):
                    return
            elif sign == ",":
                self._at += 1
            else:
                value, why = self._value()
                if why == "long" and sign == "{":
                    if not (yield from self._answer()):
                        return
                elif why:
                    yield self._broken(why)
                    return
                else:
                    yield from expanded(value, line)

    def _list(self) -> Iterator[Found]:
        """Yield the values of a list; returns whether it was closed."""
        while True:
            sign = self._next()
            if sign == "]":
                self._at += 1
                return True
            if sign == ",":
                self._at += 1
                continue
            line = self._line
            value, why = self._value() if sign else (None, "the list is not closed")
            if why:
                yield self._broken(why)
                return False
            yield from expanded(value, line)

    def _answer(self) -> Iterator[Found]:
        """Walk through an object that is too long to be one event, for the list in it; returns whether it was closed."""
        self._at += 1
        while True:
            sign = self._next()
            if sign == "}":
                self._at += 1
                return True
            if sign == ",":
                self._at += 1
                continue
            key, why = self._value()
            if why or self._next() != ":":
                yield self._broken(why or "a colon is expected")
                return False
            self._at += 1
            if self._next() == "[" and key in LISTS:
                self._at += 1
                if not (yield from self._list()):
                    return False
                continue
            _, why = self._value()
            if why:
                yield self._broken(why)
                return False

    def _broken(self, why: str) -> Found:
        said = f"a value is longer than {line_bytes_max} characters" if why == "long" else why
        raw = self._text[self._at : self._at + raw_chars_max]
        return Found(self._line, 0, None, f"{said}; what comes after it cannot be read", raw)

    def _value(self) -> tuple[object, str]:
        """Return the value that begins here, or why there is none."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                # A number that ends where the text does may go on.
                if end < len(self._text) or self._ended or not self._more():
                    self._line += self._text.count("\n", self._at, end)
                    self._at = end
                    return value, ""
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > line_bytes_max:
                    return None, "long" if error.pos >= len(self._text) - chunk_bytes else f"not JSON: {error.msg}"
                if not self._more():
                    return None, f"not JSON: {error.msg}"
            except RecursionError:
                return None, "not JSON: nested too deep"

    def _next(self) -> str:
        """Skip space and return the sign that stands here, ``""`` at the end."""
        while True:
            found = re.compile(r"[^\s\x00\ufeff]").search(self._text, self._at)
            to = found.start() if found else len(self._text)
            self._line += self._text.count("\n", self._at, to)
            self._at = to
            if found:
                return found[0]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Read on, and forget what is done."""
        text = self._utf8.read()
        self._ended = not text
        self._text, self._at = self._text[self._at :] + text, 0
        return bool(text)


class _Text:
    """Bytes become text; what is not UTF-8 becomes replacement characters."""

    def __init__(self, opened: Opened) -> None:
        import codecs

        self._opened, self._decoder = opened, codecs.getincrementaldecoder("utf-8")("replace")

    def read(self) -> str:
        while True:
            raw = self._opened.read()
            text = self._decoder.decode(raw, final=not raw)
            if text or not raw:
                return text
