"""Look into the durable log: what is in it, its newest records, whether it is whole, and how to mend it."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import typer

from ..config import load_config
from ..kit.errors import MidflightError

app = typer.Typer(no_args_is_help=True, add_completion=False)

tail_bytes_max = 1024 * 1024
DATA = typer.Option("", "--data", metavar="FOLDER", help="The data folder (default: from midflight.yaml).")


def log_folder(data: str) -> Path:
    """Return where the log is. Raises MidflightError when there is none."""
    folder = (Path(data) if data else load_config().folder) / "log"
    if not folder.is_dir():
        raise MidflightError("There is no log here", where=str(folder), todo="`midflight up` makes one; --data names another folder")
    return folder


@app.command("stats")
def show_stats(data: str = DATA, as_json: bool = typer.Option(False, "--json", help="As one JSON object.")) -> None:
    """Show the log's positions, sizes and times."""
    import msgspec

    from ..log.verify import stats

    found = stats(log_folder(data))
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    print(f"folder    {found.folder}")
    print(f"positions {found.first:,} to {found.head:,} ({found.head - found.first:,} records)")
    print(f"segments  {found.segments:,} ({found.bytes / 1e6:,.1f} MB), writer's epoch {found.epoch}")
    if found.newest_segment_from_us:
        print(f"newest segment since {moment(found.newest_segment_from_us)}")
    if found.oldest_segment_until_us:
        print(f"oldest segment until {moment(found.oldest_segment_until_us)}")


def moment(at_us: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at_us / 1e6))


@app.command("tail")
def tail(
    data: str = DATA,
    count: int = typer.Option(10, "-n", min=0, help="How many of the newest records."),
    start: int = typer.Option(-1, "--from", help="Begin at this position instead."),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on with new records as they come."),
    body_chars: int = typer.Option(2_000, "--body", min=0, help="How much of each body to show; 0 for all of it."),
) -> None:
    """Print records as JSON lines. Control characters are escaped: bodies hold what strangers sent."""
    from ..log import Reader

    with Reader(log_folder(data)) as reader:
        position = start if start >= 0 else max(reader.first(), reader.head() - count)
        try:
            while True:
                records = reader.read(position, tail_bytes_max)
                for record in records:
                    sys.stdout.write(line_of(record, body_chars) + "\n")
                    position = record.position + 1
                if not records:
                    sys.stdout.flush()
                    if not follow:
                        return
                    time.sleep(0.2)
        except BrokenPipeError:
            # The reader, as `head`, has enough. Nothing more may be written, not even at the end.
            sys.stdout = io.StringIO()
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def line_of(record, body_chars: int) -> str:
    """Return one record as one line of ASCII JSON; bytes that are no UTF-8 are shown as \\xNN."""
    body = record.body.decode("utf-8", "backslashreplace")
    shown = {
        "position": record.position,
        "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.at_us // 1_000_000)) + f".{record.at_us % 1_000_000:06d}Z",
        "kind": record.kind,
        "source": record.source,
        "url": record.url,
        "headers": record.headers,
        "body": body if not body_chars or len(body) <= body_chars else body[:body_chars] + "...",
        "body_bytes": len(record.body),
    }
    # DEL is ASCII and JSON lets it pass; a terminal does not.
    return json.dumps(shown, ensure_ascii=True).replace("\x7f", "\\u007f")


@app.command("verify")
def show_verify(data: str = DATA, as_json: bool = typer.Option(False, "--json", help="As one JSON object.")) -> None:
    """Read the whole log and name everything that is not what was written; exit 1 when there is something."""
    import msgspec

    from ..log.verify import verify

    folder = log_folder(data)
    report = with_progress("verifying", lambda progress: verify(folder, progress))
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        print_report(report)
    if not report.sound:
        raise typer.Exit(1)


@app.command("repair")
def show_repair(data: str = DATA) -> None:
    """Mend a damaged log: keep every whole frame, note lost positions as gaps, set the originals aside. Stop `midflight up` first."""
    from ..log.repair import repair

    folder = log_folder(data)
    report, aside = with_progress("repairing", lambda progress: repair(folder, progress))
    for path in aside:
        print(f"the original is kept: {path}")
    print_report(report)
    if not report.sound:
        raise typer.Exit(1)


def print_report(report) -> None:
    print(f"{report.folder}: positions {report.first:,} to {report.end:,}, {report.records:,} records in {report.frames:,} frames,")
    print(f"{report.segments:,} segments, {report.bytes / 1e6:,.1f} MB")
    if report.given_up:
        print(f"{report.given_up:,} positions were given up in a repair")
    for note in report.notes:
        print(f"note: {note}")
    for damage in report.damage:
        print(f"damaged: {damage.file} bytes {damage.offset} to {damage.end}: {damage.reason}")
    print("sound" if report.sound else "DAMAGED: `midflight log repair` keeps the rest")


def with_progress(what: str, work):
    """Run long work with a bar on the error output, where a person may be looking."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("segments"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        return work(lambda done, total: bar.update(task, completed=done, total=total))
