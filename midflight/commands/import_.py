"""Put the events of an export file, or people and their attributes, into the log; a killed import goes on where it was."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import typer

from ..config import Config, load_config
from ..kit.clock import Clock
from ..kit.errors import ConfigError, MidflightError
from ..log.record import Record

retries = 8  # about a minute: a door that is started again is waited for


def command(
    file: Path = typer.Argument(..., help="CSV, JSON or JSON Lines, also gzipped."),
    source: str = typer.Option("", "--source", metavar="NAME", help="The source of the events (default: the configured one of that kind)."),
    format_: str = typer.Option(
        "auto", "--format", metavar="FORMAT", help="sendgrid, mailgun, postmark, ses, generic (default: found out)."
    ),
    mapping: Path = typer.Option(None, "--map", metavar="FILE", help="YAML: `fields`, `kinds`, `time_format`, as for a `generic` source."),
    people: bool = typer.Option(False, "--people", help="The file lists people: an address, and their attributes in the other columns."),
    again: bool = typer.Option(False, "--again", help="Import a file once more; events that are known are not counted twice."),
) -> None:
    """Put the events of an export file, or people and their attributes, into the log; a killed import goes on where it was."""
    from rich.console import Console

    from ..importing._run import Import, plan

    config, clock = load_config(), Clock()
    found = plan(file, config, format_=format_, source=source, mapping=read_mapping(mapping), people=people)
    console = Console(highlight=False, soft_wrap=True)
    # A name that is nearly a configured one has been refused; any other may be meant.
    unknown = " (not in the settings)" if source and source not in config.sources else ""
    console.print(f"{file.name}: {found.label} as {WORDS[found.shape]}, events of source `{found.source}`{unknown}", markup=False)
    with appending(config, clock) as append:
        running = Import(found, config.folder, append, clock, again=again)
        if running.state.done:
            console.print(f"Imported before: {running.state.events:,} events. --again imports it once more.")
            return
        if running.resumed:
            console.print(f"Going on after line {running.state.line:,}; {running.state.events:,} events are in the log.")
        state = with_progress(running, console)
    console.print(f"{state.events:,} events imported, {state.rejected:,} lines or events rejected")
    for kind, n in sorted(running.kinds.snapshot().get("imported_total", {}).items()):
        console.print(f"  {kind} {n:,}")
    if state.recoded:
        console.print(f"{state.recoded:,} lines were not UTF-8 and were read as Windows-1252")
    if state.rejected:
        console.print(f"Why, with the line numbers: {running.rejected_path}", markup=False)
        if not state.events:
            raise typer.Exit(1)


WORDS = {"table": "CSV", "lines": "JSON Lines", "values": "JSON"}


def read_mapping(path: Path | None) -> dict | None:
    if path is None:
        return None
    try:
        found = msgspec.yaml.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"Cannot read the mapping {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is no mapping", expected="`fields:` and what each is called in the file")
    return found


def with_progress(running, console):
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=running.plan.path.stat().st_size)
        return running.run(lambda done: bar.update(task, completed=done))


@contextmanager
def appending(config: Config, clock: Clock) -> Iterator:
    """Give a function that has records safe in the log when it returns: through the door where it runs, else by ourselves."""
    if door_answers(config):
        yield lambda records: through_door(config, records, clock)
        return
    from ..log import Writer

    with Writer.open(config.folder / "log", clock=clock) as writer:
        yield writer.append


def door_answers(config: Config) -> bool:
    """Whether something listens where the door would."""
    host = "127.0.0.1" if config.door.host in ("", "0.0.0.0", "::") else config.door.host
    try:
        with socket.create_connection((host, config.door.port), timeout=2):
            return (config.folder / "internal.token").exists()
    except OSError:
        return False


def through_door(config: Config, records: list[Record], clock: Clock) -> None:
    """Append over loopback. A door that is away for a moment is waited for: a record sent twice is known by its events' ids."""
    from ..serve.doorlink import append

    for attempt in range(retries):
        try:
            append(config, records)
            return
        except MidflightError as error:
            if error.status != 503 or attempt == retries - 1:
                raise
            clock.sleep_s(0.25 * 2**attempt)
