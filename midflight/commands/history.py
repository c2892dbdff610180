"""Write every event, once, as Parquet behind the engine; or say how far that is."""

from __future__ import annotations

import typer

from .. import flow
from ..config import load_config


def command(
    status: bool = typer.Option(False, "--status", help="Show what the history holds and how far it is behind, and do nothing."),
    days: int = typer.Option(14, "--days", min=1, help="With --status: how many of the newest days to show."),
) -> None:
    """Write every event, once, as Parquet behind the engine; or say how far that is."""
    if status:
        show(days)
    else:
        flow.history(load_config())


def show(days: int) -> None:
    """Print a table of the newest days and the sums of all."""
    from rich.console import Console
    from rich.table import Table

    from ..serve.history import status

    found = status(load_config())
    table = Table("day", "events", "parts", "MB")
    for column in table.columns[1:]:
        column.justify = "right"
    for day in found["days"][-days:]:
        table.add_row(day["day"], f"{day['events']:,}", str(day["parts"]), f"{day['bytes'] / 1e6:,.1f}")
    console = Console()
    console.print(table)
    events, size = (sum(day[name] for day in found["days"]) for name in ("events", "bytes"))
    console.print(f"{events:,} events of {len(found['days'])} days in {size / 1e6:,.1f} MB")
    console.print(f"{found['waiting']:,} newer events wait for their part; questions see them already")
