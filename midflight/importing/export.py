"""The contract of an export format: recognise a file by its columns or its first object, and give its rows to the vendor's source.

A row is turned into what the vendor's webhook would have said, and the vendor's source reads that. So an imported event is the
same event as the one that came, or will come, through the webhook, with the same id wherever the export has the vendor's id.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import ClassVar

from ..events import Bad, Event, Parsed
from ..sources import Request, Source
from ..sources.source import Malformed, iso_us, number_us


class Export:
    """One format. A subclass says how to recognise it and turns rows and objects into the vendor's items."""

    label: ClassVar[str] = ""
    # The kind of source that reads the items, and the settings it needs where none is configured.
    source: ClassVar[str] = ""
    EXAMPLES: ClassVar[list[dict]] = []

    def __init__(self, source: Source, file_us: int = 0) -> None:
        self.reads = source
        self.file_us = file_us  # when the file was last written

    @classmethod
    def fits_columns(cls, columns: set[str]) -> bool:
        """Whether a table with these columns, as `plain_name` spells them, is of this format."""
        return False

    @classmethod
    def fits_object(cls, item: dict) -> bool:
        """Whether a JSON object is of this format."""
        return False

    @classmethod
    def settings(cls, mapping: dict, columns: list[str]) -> dict:
        """Return the settings of the source where none is configured; ``columns`` are a table's, as they are written."""
        return {"unsigned": True, **mapping}

    def row(self, row: dict[str, str]) -> list:
        """Turn a row of a table into the vendor's items, or into events. Raises Malformed."""
        raise Malformed(f"{self.label} has no tables", todo="Export JSON, or name another format with --format")

    def object(self, item: dict) -> list:
        """Turn a JSON object into the vendor's items, or into events. Raises Malformed."""
        raise Malformed(f"{self.label} has no JSON", todo="Export CSV, or name another format with --format")

    def read(self, value: dict, request: Request, *, table: bool) -> Parsed:
        """Return the events of a row or an object, and in ``bad`` why there are none."""
        try:
            items = self.row(value) if table else self.object(value)
        except Malformed as error:
            return Parsed(bad=[Bad(0, error.code, error.text(), b"")])
        parsed = Parsed()
        for item in items:
            if isinstance(item, Event):
                parsed.append(self.reads.finish(item, request))
            else:
                found = self.reads.read([item], request)
                parsed.extend(found)
                parsed.bad.extend(found.bad)
        return parsed


@lru_cache(maxsize=10_000)
def plain_name(column: str) -> str:
    """Return a column's name as formats compare it: ``Message ID``, ``message_id`` and ``MessageID`` are one."""
    return re.sub(r"[^a-z0-9@.]", "", column.lower())


def named(row: dict[str, str], *names: str) -> str:
    """Return the first filled cell of the columns with these plain names."""
    for name in names:
        value = row.get(name, "").strip()
        if value:
            return value
    return ""


def plain(row: dict[str, str]) -> dict[str, str]:
    """Return a row under plain names."""
    return {plain_name(name): value for name, value in row.items()}


def time_us(value: str) -> int:
    """Return microseconds for a cell's time. Raises Malformed: an event without its time would count as of today."""
    text = value.strip()
    us = iso_us(text) or number_us(text) or iso_us(text.replace(" UTC", "Z").replace(" +0000", "Z"))
    if not us:
        raise Malformed("No time that can be read", expected="ISO 8601 or unix seconds", got=value[:60] or "nothing")
    return us


def seconds(value: str) -> float | int:
    """Return a cell's time as the unix seconds that vendors send. Raises Malformed."""
    us = time_us(value)
    return us / 1e6 if us % 1_000_000 else us // 1_000_000


def address(value: str) -> str:
    """Return a cell that has to be an address. Raises Malformed."""
    if "@" not in value:
        raise Malformed("No recipient", expected="an email address", got=value[:60] or "nothing")
    return value.strip()
