"""Who a campaign goes to: rows of a CSV become recipients, each once, in an order that only the seed knows."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

import msgspec

from ..events import clean, recipient_key
from ..kit.errors import MidflightError

columns_max = 200
cell_chars_max = 10_000
shown_max = 20  # of rows that were left out, with their lines
ADDRESS = ("email", "e-mail", "email_address", "address", "recipient")


class BadAudience(MidflightError):
    """A list that cannot be used as it is."""

    code = "bad_audience"


class Recipient(msgspec.Struct, kw_only=True, frozen=True):
    """One recipient: the key that makes the same person one, the address as it was written, and the row's other columns."""

    key: str
    address: str
    attributes: dict[str, str] = {}


class Report(msgspec.Struct, kw_only=True):
    """What became of a list's rows. ``left_out`` counts reasons, ``examples`` are (line, reason) of the first of them."""

    rows: int = 0
    taken: int = 0
    columns: list[str] = []
    left_out: dict[str, int] = {}
    examples: list[tuple[int, str]] = []


def read_audience(path: Path) -> tuple[list[Recipient], Report]:
    """Read a CSV with a column of addresses. Rows that are broken or repeat an address are left out and counted. Raises BadAudience.

    Half a list is worse than none: where more rows are broken than are good, the list is refused.
    """
    found: dict[str, Recipient] = {}
    reasons: Counter[str] = Counter()
    report = Report()
    for line, row, reason in _rows(path, report):
        report.rows += 1
        key = "" if reason else recipient_key(row.get("", ""))
        reason = reason or ("" if key else "no address") or ("the address stands twice" if key in found else "")
        if reason:
            reasons[reason] += 1
            if len(report.examples) < shown_max:
                report.examples.append((line, reason))
            continue
        address = row.pop("")
        found[key] = Recipient(key=key, address=address.strip(), attributes=row)
    report.taken, report.left_out = len(found), dict(reasons)
    broken = sum(n for reason, n in reasons.items() if reason != "the address stands twice")
    if broken > len(found):
        line, reason = report.examples[0]
        raise BadAudience(
            f"{path.name}: more rows are broken than are good", got=f"{broken} of {report.rows}; the first: {reason}", where=f"line {line}",
            todo="Mend the file; nothing was sent",
        )  # fmt: skip
    return list(found.values()), report


def _rows(path: Path, report: Report) -> Iterator[tuple[int, dict[str, str], str]]:
    """Yield each row with its line: the address under ``""``, the rest by column; or why it cannot be read."""
    csv.field_size_limit(cell_chars_max * 10)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=head.count), strict=True)
            columns = [clean(name).strip() for name in next(reader, [])]
            at = _address_column(columns, path)
            report.columns = [name for n, name in enumerate(columns) if n != at]
            while True:
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield reader.line_num, {}, f"not readable: {error}"
                    continue
                if not any(cells):
                    continue
                yield reader.line_num, *_row(cells, columns, at)
    except OSError as error:
        raise BadAudience(f"Cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadAudience(f"{path.name} is not UTF-8", got=f"byte {error.object[error.start]:#04x}", where=f"byte {error.start}") from None


def _row(cells: list[str], columns: list[str], at: int) -> tuple[dict[str, str], str]:
    if len(cells) != len(columns):
        return {}, f"{len(cells)} cells in place of {len(columns)}"
    if any(len(cell) > cell_chars_max for cell in cells):
        return {}, f"a cell of more than {cell_chars_max} characters"
    row = {name: clean(cell).strip() for name, cell in zip(columns, cells, strict=True)}
    return row | {"": row.pop(columns[at])}, ""


def _address_column(columns: list[str], path: Path) -> int:
    if len(columns) > columns_max:
        raise BadAudience(f"{path.name}: too many columns", expected=f"at most {columns_max}", got=len(columns))
    twice = [name for name, n in Counter(columns).items() if n > 1 or not name]
    if twice:
        raise BadAudience(f"{path.name}: a column has no name of its own", got=", ".join(map(repr, twice))[:100], where="line 1")
    for n, name in enumerate(columns):
        if name.lower().replace(" ", "_") in ADDRESS:
            return n
    got = ", ".join(columns)[:120] or "an empty file"
    raise BadAudience(f"{path.name} has no column of addresses", expected="`email`", got=got, where="line 1")


def luck(seed: int, campaign: str, purpose: str, key: str) -> int:
    """Return a number from 0 to 2**64 - 1 that is a recipient's for one purpose of a campaign; nobody can guess it without the seed."""
    return int.from_bytes(blake2b(f"{seed}\0{campaign}\0{purpose}\0{key}".encode(), digest_size=8).digest())


def held_out(seed: int, campaign: str, key: str, share: float) -> bool:
    """Tell whether a recipient is among those who get nothing, so that it can be seen what the campaign is worth."""
    return luck(seed, campaign, "holdout", key) < share * 2**64


def in_order(seed: int, campaign: str, recipients: Iterable[Recipient]) -> list[Recipient]:
    """Return recipients in the order in which waves take them: random, so that waves compare like with like, and always the same."""
    return sorted(recipients, key=lambda recipient: luck(seed, campaign, "order", recipient.key))
