"""``python -m bench``: measure this machine, write bench/results.json, and make docs/performance.md of it.

``--quick`` measures everything with tiny sizes, to see that it works; its figures mean nothing, go to build/ and make no page. ``--only
NAME`` (may be repeated) measures a part and leaves the rest of the results as they are. ``--page`` only writes the page again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from . import actions, comparison, conductor, decide, door, end_to_end, folding, freshness, growth, machine, page, replay, restart, rules

RESULTS = Path(__file__).parent / "results.json"
PAGE = machine.PROJECT / "docs" / "performance.md"
Say = Callable[[str], None]
console = Console(stderr=True)


class Measure(NamedTuple):
    """One part of the measurements: its name for ``--only``, how it is run in full, and how quickly."""

    name: str
    full: Callable[[Say], dict]
    quick: Callable[[Say], dict]


def measured_door(say: Say, seconds: float | None = None) -> dict:
    if seconds is not None:
        door.seconds, door.warm_s = seconds, seconds / 4
    say("durable requests, one event each, and signed batches")
    return dict(door.measure())


def of(module) -> tuple[Callable[[Say], dict], Callable[[Say], dict]]:
    return (lambda say: module.measure(module.FULL, say), lambda say: module.measure(module.QUICK, say))


MEASURES = (
    Measure("door", measured_door, lambda say: measured_door(say, 1.0)),
    Measure("replay", *of(replay)),
    Measure("end_to_end", *of(end_to_end)),
    Measure("freshness", *of(freshness)),
    Measure("decide", *of(decide)),
    Measure("conductor", *of(conductor)),
    Measure("restart", *of(restart)),
    Measure("growth", *of(growth)),
    Measure("rules", *of(rules)),
    Measure("actions", *of(actions)),
    Measure("peers", *of(comparison)),
)
NAMES = ", ".join(measure.name for measure in MEASURES)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    quick: bool = typer.Option(False, "--quick", help="Tiny sizes, to see that every measure works; no page is written."),
    only: list[str] = typer.Option([], "--only", metavar="NAME", help=f"Measure this part; may be repeated: {NAMES}."),
    only_page: bool = typer.Option(False, "--page", help="Write docs/performance.md from bench/results.json and measure nothing."),
    out: Path = typer.Option(None, help="Where the results go (default: bench/results.json; with --quick, build/bench-quick.json)."),
) -> None:
    """Measure this machine, write bench/results.json and make docs/performance.md of it."""
    unknown = set(only) - {measure.name for measure in MEASURES}
    if unknown:
        raise typer.BadParameter(f"unknown: {', '.join(sorted(unknown))}; there are {NAMES}")
    out = out or (machine.PROJECT / "build" / "bench-quick.json" if quick else RESULTS)
    if not only_page:
        take([measure for measure in MEASURES if not only or measure.name in only], quick, out)
    if not quick:
        results = json.loads(out.read_bytes()) if out.exists() else {}
        if missing := still_to_measure(results):
            console.print(f"no page yet: still to be measured: {', '.join(missing)}", highlight=False, soft_wrap=True)
            raise typer.Exit(1 if only_page else 0)
        PAGE.write_text(page.page(results))
        console.print(f"wrote {PAGE.relative_to(machine.PROJECT)}")


def still_to_measure(results: dict) -> list[str]:
    """Return the parts that were never measured; until there are none, there is no page."""
    return [measure.name for measure in MEASURES if measure.name not in results.get("measured", {})]


def take(measures: list[Measure], quick: bool, out: Path) -> None:
    """Run measures one after the other; each one's results are saved as soon as they are there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(out.read_bytes()) if out.exists() else {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    with machine.workplace() as folder:
        about = machine.describe(folder)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("loading compiled code", total=len(measures))
        folding.load_code()
        for measure in measures:
            say = lambda text, measure=measure: progress.update(task, description=f"{measure.name}: {text}")  # noqa: E731
            say("")
            began = time.perf_counter()
            found = (measure.quick if quick else measure.full)(say)
            # A part that is measured again replaces all that it said before.
            for key in results.get("measured", {}).get(measure.name, {}).get("keys", ()):
                results.pop(key, None)
            done = {"date": about["date"], "seconds": round(time.perf_counter() - began, 1), "keys": sorted(found)}
            results |= found | {"quick": quick, "machine": about}
            results["measured"] = results.get("measured", {}) | {measure.name: done | {"load_before": about["load_before"]}}
            out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
            progress.advance(task)
            for line in page.lines_of(found):
                progress.console.print(line, highlight=False)


if __name__ == "__main__":
    app()
