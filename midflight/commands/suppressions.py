"""List, explain, export, import and release addresses that are not written to."""

from __future__ import annotations

import getpass
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from ..config import load_config
from ..events import recipient_key
from ..kit.errors import MidflightError
from ..serve.delivering import addresses_in, csv_lines, hand_in, holds
from ..store import listing
from ..store.read import Store, iso

shown_max = 500
app = typer.Typer(no_args_is_help=True, help="List, explain, export, import and release addresses that are not written to.")


def by_whom() -> str:
    """Return who runs this command, for the evidence that stands beside what he did."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "the command line"


@app.command("list")
def list_(
    search: str = typer.Option("", help="The beginning of an address, or of its domain."),
    reason: str = typer.Option("", help="dead, disabled, full, suspected, storm, imported, unsubscribed or complained."),
    limit: int = typer.Option(50, min=1, max=shown_max),
) -> None:
    """Show who is not written to, and how many for each reason."""
    store = Store(load_config())
    with store.view() as view:
        rows, counts = listing.suppressed(view, search=search, reason=reason, count_max=limit), listing.reasons(view)
    store.close()
    table = Table("address", "why", "since", "until", "evidence")
    for row in rows:
        table.add_row(row.recipient, row.reason, (iso(row.since_us) or "")[:16], (iso(row.until_us) or "for good")[:16], row.evidence)
    console = Console()
    console.print(table)
    console.print(", ".join(f"{name}: {count:,}" for name, count in counts.items()) or "Everybody may be written to.", markup=False)


@app.command()
def explain(address: str) -> None:
    """Say why one address is not written to, since when, and what ends it."""
    store = Store(load_config())
    with store.view() as view:
        found = listing.explained(view, recipient_key(address) or address)
        now_us = view.log_time_us
    store.close()
    if not found:
        print(f"{address} may be written to: nothing speaks against it.")
        return
    for row in found:
        over = "" if holds(row, now_us) else " (over)"
        print(f"{row.recipient}: {row.reason}{over}, since {iso(row.since_us)}, until {iso(row.until_us) or 'for good'}")
        print(f"  {row.evidence}")
        for answer in row.answers:
            print(f"  {iso(answer.at_us)}: {answer.because}")
        print(f"  What ends it: {row.ends}")


@app.command()
def export(file: Path = typer.Argument(help="Where the CSV goes.")) -> None:
    """Write everybody who is not written to into a CSV file."""
    store = Store(load_config())
    count = -1
    try:
        with file.open("w", encoding="utf-8", newline="") as out:
            for lines in csv_lines(store):
                out.write(lines)
                count += lines.count("\n")
    except OSError as error:
        raise MidflightError(f"Cannot write {file}: {error.strerror}", todo="Give a place that can be written") from None
    finally:
        store.close()
    print(f"{count} addresses are in {file}.")


@app.command("import")
def import_(
    file: Path = typer.Argument(help="CSV with a column `email`, or one address a line."),
    why: str = typer.Option("", help="Stands beside each address."),
) -> None:
    """Put the addresses of a file on the list; they stay until they are released."""
    _handed_in("suppress", _read(file), why)


@app.command()
def release(
    addresses: list[str] = typer.Argument(help="Addresses, or a file of them after `@`, as in `@back.csv`."),
    why: str = typer.Option("", help="Stands in the log."),
) -> None:
    """Take addresses off the list. Who unsubscribed or complained is still not written to."""
    texts = [text for given in addresses for text in (_read(Path(given[1:])) if given.startswith("@") else [given])]
    _handed_in("release", texts, why)


def _read(file: Path) -> list[str]:
    try:
        return addresses_in(file.read_bytes())
    except OSError as error:
        raise MidflightError(f"Cannot read {file}: {error.strerror}", todo="Give a file of addresses") from None


def _handed_in(do: str, texts: list[str], why: str) -> None:
    taken = hand_in(load_config(), do, texts, by_whom(), why)
    print(f"{taken['taken']} addresses are taken.")
    if taken["left_out"]:
        print(f"{taken['left_out']} are no addresses and are left out, as {taken['examples'][0]!r}.")
