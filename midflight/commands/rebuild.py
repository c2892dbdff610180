"""Make all numbers anew from the log, for instance after a source's mapping has changed; the system has to be stopped."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..config import load_config
from ..log import Reader
from ..store.host_local import Engine


def command() -> None:
    """Make all numbers anew from the log, for instance after a source's mapping has changed; the system has to be stopped."""
    config = load_config()
    with Reader(config.folder / "log") as reader:
        engine = Engine(config, reader, rebuild=True)
        with Progress(TextColumn("records"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
            bar = progress.add_task("", total=reader.head() - reader.first())
            while done := engine.step():
                progress.advance(bar, done)
        engine.snapshot()
        engine.close()
