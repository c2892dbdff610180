"""Reads a file of past tests and their arms: how many messages each arm had, and how many responses."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from ..decide.claims import arms_max
from ..kit.errors import MidflightError

count_max = 10**12  # messages of one arm
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
    for line, (test, *counts) in rows(path, lambda there: [_column(wanted, there, path) for wanted in COLUMNS]):
        n, x = (_count(text, wanted, line, path) for text, wanted in zip(counts, ("impressions", "clicks"), strict=True))
        if n == 0 or x > n:
            raise BadArms(
                f"{path.name}: an arm needs messages, and at most as many responses", got=f"{n} and {x}", where=f"line {line}"
            )  # fmt: skip
        found = arms.setdefault(test, [])
        found.append((n, x))
        if len(found) > arms_max:
            raise BadArms(f"{path.name}: test `{test[:40]}` has too many arms", expected=f"at most {arms_max}", where=f"line {line}")
    tests = [PastTest(name, *np.array(found, np.int64).T) for name, found in arms.items() if len(found) > 1]
    if not tests:
        raise BadArms(f"{path.name} has no test with two arms", expected="at least two rows with the same test id")
    return tests, len(arms) - len(tests)


def rows(path: Path, choose: Callable[[list[str]], list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield each row's line number and its texts in the columns that ``choose`` takes out of the heading's. Raises BadArms."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(",;\t", key=head.count))
            columns = choose(list(reader.fieldnames or []))
            for row in reader:
                if any(row[column] is None for column in columns):
                    raise BadArms(f"{path.name}: the row ends early", where=f"line {reader.line_num}")
                yield reader.line_num, [row[column] for column in columns]
    except OSError as error:
        raise BadArms(f"Cannot read {path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, EOFError, zlib.error, csv.Error) as error:
        raise BadArms(f"{path.name} is no CSV file, plain or packed with gzip: {error}") from None


def _column(wanted: str, there: list[str], path: Path) -> str:
    for name in COLUMNS[wanted]:
        if name in there:
            return name
    raise BadArms(
        f"{path.name} has no column for {wanted}",
        expected=" or ".join(f"`{name}`" for name in COLUMNS[wanted]),
        got=", ".join(there)[:120] or "none",
    )


def _count(text: str, column: str, line: int, path: Path) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number <= count_max:
        raise BadArms(f"{path.name}: {column}", expected="a whole number from 0 on", got=repr(text[:40]), where=f"line {line}")
    return number
