"""Say what rules would have done, had they been in force: the log is read again with them, by the code that runs in production."""

from __future__ import annotations

import csv
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import typer

from ..config import load_config, refuse_repeated
from ..decide.limits import REASONS
from ..kit.errors import MidflightError

file_bytes_max = 4 << 20
shown = 20  # firings in the table for people; --csv and --json have all
bars_max = 72
bar_width = 40
ENDS = {
    "sent": "acts", "suggested": "asks first", "observed": "only observes", "held_out": "held out", "expired": "too late",
    "dropped": "dropped", "waiting": "still waits",
}  # fmt: skip
COLUMNS = ("fired_at", "rule", "version", "recipient", "end", "reason", "words", "acted_at", "cause_at", "id")


def command(
    rules: Path = typer.Argument(..., metavar="RULES", help="YAML or JSON with `rules` by name, and `segments` that they need."),
    from_: str = typer.Option("", "--from", help="From when they are in force: 2026-11-01, 2026-11-01T08:00, or 7d before the log's end."),
    to: str = typer.Option("", "--to", help="Until when, in the same way; the log's end without."),
    others: bool = typer.Option(False, "--others", help="Keep the other rules that are in force beside them, and tell of these too."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object a firing, and a last one with the sums."),
    csv_path: Path | None = typer.Option(None, "--csv", metavar="OUT", help="Write every firing to this file, too."),
) -> None:
    """Say what rules would have done, had they been in force: the log is read again with them, by the code that runs in production.

    What is in force beside them is what the log says. Limits count from the start of the time that is tried, and nobody approves what a
    rule asks about. Nothing is sent and nothing is written but OUT.
    """
    from ..serve import trying

    asked = trying.asked_of(read_file(rules), from_, to, others)
    config = load_config()
    with ExitStack() as stack:
        writer = stack.enter_context(Firings(csv_path)) if csv_path else None

        def each(ended: trying.Ended) -> None:
            row = trying.told(ended)
            if as_json:
                print(msgspec.json.encode(row).decode())
            if writer:
                writer.write(row)

        note = stack.enter_context(Progressing(trying.records_in(config)))
        found = trying.run(config, asked, each=each, note=note.read, firings_max=0 if as_json else shown)
    if as_json:
        print(msgspec.json.encode(sums_of(found)).decode())
    else:
        show(found)


def read_file(path: Path) -> object:
    """Return what a file of rules says. Raises MidflightError."""
    import yaml

    try:
        text = path.read_bytes()
        if len(text) > file_bytes_max:
            raise MidflightError(f"{path.name} is too large", expected=f"at most {file_bytes_max >> 20} MB", got=f"{len(text) >> 20} MB")
        refuse_repeated(yaml.compose(text, yaml.CSafeLoader), "$", str(path))
        return plain_keys(msgspec.yaml.decode(text))
    except OSError as error:
        raise MidflightError(f"Cannot read the rules: {error.strerror}", where=str(path)) from None
    except (msgspec.DecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise MidflightError(f"{path.name} is neither YAML nor JSON: {' '.join(str(error).split())}") from None


def plain_keys(raw: object) -> object:
    """Return data with the word `no` as a name where YAML has read it as false."""
    if isinstance(raw, dict):
        return {"no" if key is False else key: plain_keys(value) for key, value in raw.items()}
    return [plain_keys(value) for value in raw] if isinstance(raw, list) else raw


class Progressing:
    """A bar on the error output, with how many events are read in a second."""

    def __init__(self, records: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("Reading the log"), BarColumn(), MofNCompleteColumn(), TextColumn("records, {task.fields[speed]} events/s"),
            TimeRemainingColumn(),
        )  # fmt: skip
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("", total=max(1, records), speed="0")

    def __enter__(self) -> Progressing:
        self.bar.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self.bar.stop()

    def read(self, records: int, events: int) -> None:
        elapsed_s = self.bar.tasks[0].elapsed or 0
        self.bar.update(self.task, advance=records, speed=f"{events / elapsed_s:,.0f}" if elapsed_s > 0 else "0")


class Firings:
    """The file of all firings."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Firings:
        try:
            self.file = self.path.open("w", newline="")
        except OSError as error:
            raise MidflightError(f"Cannot write the firings: {error.strerror}", where=str(self.path)) from None
        self.writer = csv.writer(self.file, lineterminator="\n")
        self.writer.writerow(COLUMNS)
        return self

    def __exit__(self, *ended: object) -> None:
        self.file.close()

    def write(self, row: dict) -> None:
        from .sql import harmless

        self.writer.writerow([harmless(row[name]) for name in COLUMNS])


def sums_of(found) -> dict:
    """Return the sums as the last line of JSON has them."""
    row = msgspec.to_builtins(found)
    row.pop("firings")
    for key in ("from", "to"):
        row[key] = moment(row.pop(f"{key}_us"))
    for rule in row["rules"]:
        rule["hours"] = {moment(int(hour) * 3_600_000_000): n for hour, n in sorted(rule["hours"].items(), key=lambda pair: int(pair[0]))}
    return row | {"events_per_s": round(found.events / max(found.seconds, 1e-9))}


def moment(at_us: int) -> str:
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- for people ----------------------------------------------------------------------------------------------------------


def show(found) -> None:
    """Print what was found: sums by rule, why not, firings by hour, and the first of them."""
    from rich.console import Console

    console = Console(highlight=False)
    span = f"{moment(found.from_us)} to {moment(found.to_us)}"
    speed = found.events / max(found.seconds, 1e-9)
    read = f"{found.records:,} records, {found.events:,} events, {found.people:,} people"
    console.print(f"{span}. Read {read} in {found.seconds:.1f} s: {speed:,.0f} events/s.", markup=False)
    for table in (sums_table(found), reasons_table(found), firings_table(found)):
        if table.row_count:
            console.print(table)
    for line in hours_chart(found):
        console.print(line, markup=False)


def sums_table(found):
    from rich.table import Table
    from rich.text import Text

    ends = [end for end in ENDS if any(end in one.ends for one in found.rules)]
    table = Table("rule", title="What would have become of it")
    for heading in ("fired", "people", *(ENDS[end] for end in ends)):
        table.add_column(heading, justify="right")
    for one in found.rules:
        table.add_row(Text(printable(one.rule)), f"{one.fired:,}", f"{one.people:,}", *(f"{one.ends.get(end, 0):,}" for end in ends))
    return table


def reasons_table(found):
    from rich.table import Table
    from rich.text import Text

    table = Table("rule", "why it would not have acted", title="Limits that spoke")
    table.add_column("firings", justify="right")
    for one in found.rules:
        for reason, n in sorted(one.reasons.items(), key=lambda pair: (-pair[1], pair[0])):
            if reason not in ("within_limits", "approved"):
                table.add_row(Text(printable(one.rule)), REASONS.get(reason, reason), f"{n:,}")
    return table


def firings_table(found):
    from rich.table import Table
    from rich.text import Text

    table = Table("when", "rule", "to whom", "what", title=f"The first {len(found.firings)}")
    for one in found.firings:
        what = ENDS.get(one.end, one.end) + (f": {one.words}" if one.words else "")
        table.add_row(moment(one.fired_us), *(Text(printable(text)) for text in (one.rule, one.recipient, what)))
    return table


def hours_chart(found) -> list[str]:
    """Return a bar of firings for each hour, or for each day where that is too many."""
    hours: Counter[int] = Counter()
    for one in found.rules:
        hours.update(one.hours)
    if not hours:
        return ["Nothing would have fired."]
    size = 1 if max(hours) - min(hours) < bars_max else 24
    steps: Counter[int] = Counter()
    for hour, n in hours.items():
        steps[hour // size] += n
    most = max(steps.values())
    first, last = min(steps), max(steps)
    lines = [f"Firings by {'hour' if size == 1 else 'day'} (UTC)"]
    for step in range(first, last + 1):
        at = moment(step * size * 3_600_000_000)
        bar = "█" * round(bar_width * steps[step] / most)
        lines.append(f"{at[:10] + ' ' + at[11:16] if size == 1 else at[:10]}  {bar or ('▏' if steps[step] else '')} {steps[step]:,}")
    return lines[: 1 + 10 * bars_max]


def printable(text: str) -> str:
    """Return a text as one printable line: what strangers wrote must not steer the terminal."""
    return text if text.isprintable() else "".join(sign if sign.isprintable() else " " for sign in text)
