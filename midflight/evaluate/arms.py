"""Reads a file of past tests and their arms: how many messages each arm had, and how many responses."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from ..kit.errors import MidflightError

# What the columns are called, the likeliest first.
COLUMNS = {
    "test": ("test", "test_id", "clickability_test_id", "experiment", "experiment_id", "campaign"),
    "impressions": ("impressions", "recipients", "sent", "delivered"),
    "clicks": ("clicks", "responses", "successes", "clicked"),
}


class BadArms(MidflightError):
    """A file of arms that cannot be used as it is."""

    code = "bad_arms"


class PastTest(msgspec.Struct, frozen=True):
    """One test of K arms: ``impressions`` and ``clicks``, [K]."""

    name: str
    impressions: np.ndarray
    clicks: np.ndarray

    @property
    def rates(self) -> np.ndarray:
        return self.clicks / self.impressions


def read_arms(path: Path) -> tuple[list[PastTest], int]:
    """Return the tests with at least two arms, in the file's order, and how many others there were. Raises BadArms with the line."""
    arms: dict[str, list[tuple[int, int]]] = {}
    for line, row, (test, impressions, clicks) in _rows(path):
        n, x = (_count(row[column], column, line, path) for column in (impressions, clicks))
        if n == 0 or x > n:
            raise BadArms(
                f"{path.name}: an arm needs messages, and at most as many responses", got=f"{n} and {x}", where=f"line {line}"
            )  # fmt: skip
        arms.setdefault(row[test], []).append((n, x))
    tests = [PastTest(name, *np.array(found, np.int64).T) for name, found in arms.items() if len(found) > 1]
    if not tests:
        raise BadArms(f"{path.name} has no test with two arms", expected="at least two rows with the same test id")
    return tests, len(arms) - len(tests)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str], list[str]]]:
    try:
        packed = path.open("rb").read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(",;\t", key=head.count))
            columns = [_column(wanted, reader.fieldnames or [], path) for wanted in COLUMNS]
            for row in reader:
                if any(row[column] is None for column in columns):
                    raise BadArms(f"{path.name}: the row ends early", where=f"line {reader.line_num}")
                yield reader.line_num, row, columns
    except OSError as error:
        raise BadArms(f"Cannot read {path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, EOFError, zlib.error, csv.Error) as error:
        raise BadArms(f"{path.name} is no CSV file, plain or packed with gzip: {error}") from None


def _column(wanted: str, there: list[str], path: Path) -> str:
    for name in COLUMNS[wanted]:
        if name in there:
            return name
    raise BadArms(
        f"{path.name} has no column for {wanted}", expected=" or ".join(f"`{name}`" for name in COLUMNS[wanted]), got=", ".join(there)[:120]
    )


def _count(text: str, column: str, line: int, path: Path) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise BadArms(f"{path.name}: `{column}`", expected="a whole number from 0 on", got=repr(text[:40]), where=f"line {line}")
    return number
