"""Ask the history in SQL: `midflight sql "select campaign, count(*) from events group by 1"`."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from datetime import datetime

import msgspec
import typer

from ..config import load_config
from ..kit.errors import MidflightError

rows_max = 1_000  # of a table for people; --json and --csv give all
formula_signs = ("=", "+", "-", "@", "\t", "\r")


def command(
    question: str = typer.Argument(
        ..., metavar="SQL", help="One SELECT over events, cells, campaigns, names and marks; `-` reads it from the input."
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object per line."),
    as_csv: bool = typer.Option(False, "--csv", help="CSV; text that a spreadsheet would take for a formula gets a ' in front."),
    memory: str = typer.Option("2GB", "--memory", help="How much memory the question may take."),
) -> None:
    """Ask the history in SQL: `midflight sql "select campaign, count(*) from events group by 1"`."""
    from ..store.sql import Questions

    if as_json and as_csv:
        raise MidflightError("Two formats at once", expected="--json or --csv")
    if question == "-":
        question = sys.stdin.read()
    with Questions(load_config(), memory=memory) as questions:
        answer = questions.ask(question)
        try:
            if as_json:
                write_json(*answer)
            elif as_csv:
                write_csv(*answer)
            else:
                write_table(*answer)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader, as `head`, has enough. Nothing more may be written, not even at the end.
            sys.stdout = io.StringIO()
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def plain(value: object) -> object:
    """Return a value as JSON can hold it; times in ISO 8601 with a Z, as all are UTC."""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "") + "Z"
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value)


def write_json(names: list[str], rows: Iterator[tuple]) -> None:
    for row in rows:
        sys.stdout.write(msgspec.json.encode({name: plain(value) for name, value in zip(names, row, strict=True)}).decode() + "\n")


def write_csv(names: list[str], rows: Iterator[tuple]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([harmless(plain(value)) for value in row])


def harmless(value: object) -> object:
    """Return text as a spreadsheet shows it instead of running it: events hold what strangers wrote."""
    if isinstance(value, dict | list):
        return msgspec.json.encode(value).decode()
    return "'" + value if isinstance(value, str) and value.startswith(formula_signs) else value


def write_table(names: list[str], rows: Iterator[tuple]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table()
    for name in names:
        table.add_column(Text(name))
    shown, more = 0, False
    for row in rows:
        if shown == rows_max:
            more = True
            break
        table.add_row(*(Text(cell(value)) for value in row))
        shown += 1
    console.print(table)
    console.print(f"the first {shown:,} rows; --json and --csv give all" if more else f"{shown:,} row{'s' if shown != 1 else ''}")


def cell(value: object) -> str:
    """Return a value as one printable line: what strangers wrote must not steer the terminal."""
    value = plain(value)
    text = "" if value is None else f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text if text.isprintable() else "".join(sign if sign.isprintable() else " " for sign in text)
