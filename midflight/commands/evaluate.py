"""Replay past tests in virtual time: what each policy gains, how often a claim is wrong, what content by group is worth."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..decide.policies import REGISTRY
from ..evaluate.arms import read_arms
from ..evaluate.content import Regret, Value, World, off_policy, parts, read_experiment, regrets
from ..evaluate.experiment import Player, Row, Setting, play
from ..evaluate.troubles import TROUBLES
from ..kit.errors import MidflightError, NotFound, nearest

app = typer.Typer(
    no_args_is_help=True, help="Try policies and claims on past data, in virtual time, with the code that runs in production."
)
DEFAULT_POLICY = "finite_list"
SIZES = ((20_000, 8.0), (50_000, 8.0), (50_000, 24.0), (200_000, 8.0))
aa_campaigns = 10_000
hours_max = 1000.0


@app.callback()
def group() -> None:
    """Try policies and claims on past data, in virtual time, with the code that runs in production."""


@app.command()
def experiment(
    arms: Path = typer.Option(..., help="CSV, plain or gzip: one row an arm, with test id, impressions and clicks."),
    policy: list[str] = typer.Option([], help="Which policy; may be repeated. All without, with --aa the default one."),
    recipients: list[int] = typer.Option([], min=10, max=100_000_000, help="Length of the list; may be repeated."),
    hours: list[float] = typer.Option([], min=0.1, help="Hours of the send, one for each --recipients, or one for all."),
    trouble: list[str] = typer.Option([], help=f"One of {', '.join(TROUBLES)}; may be repeated. With --aa all without."),
    aa: bool = typer.Option(False, "--aa", help="Give all arms of a test the same rate: every winner is then a false one."),
    campaigns: int = typer.Option(0, min=0, help="How many campaigns a row has; 0 is one for each test, with --aa 10000."),
    claims: bool = typer.Option(True, help="Look for claims too; without, it is several times faster."),
    seed: int = typer.Option(1, min=0, help="The same seed gives the same table."),
    processes: int = typer.Option(0, min=0, help="How many at once; 0 is one for each processor."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object a row instead of a table."),
) -> None:
    """Replay a file of arms as staggered sends against every policy."""
    tests, alone = read_arms(arms)
    policies = [known(name, REGISTRY.names(), "policy") for name in policy] or ([DEFAULT_POLICY] if aa else REGISTRY.names())
    troubles = [known(name, TROUBLES, "trouble") for name in trouble] or (list(TROUBLES) if aa else ["none"])
    lists = sizes(recipients, hours) or (list(SIZES[1:2]) if aa else list(SIZES))
    settings = [Setting(name, n, h, what) for n, h in lists for what in troubles for name in policies]
    count = campaigns or (aa_campaigns if aa else len(tests))
    note = Console(stderr=True)
    left_out = f" ({alone} with a single arm left out)" if alone else ""
    note.print(f"{len(tests):,} tests{left_out}, {count:,} campaigns a row, {len(settings)} rows", highlight=False)
    table = table_of(aa)
    with progress(note, "campaigns") as bar:
        task = bar.add_task("Sending", total=count * len(settings))
        player = Player(tests, seed, aa, claims)
        for row in play(player, settings, count, processes or os.cpu_count() or 1, lambda n: bar.advance(task, n)):
            if as_json:
                print(msgspec.json.encode(row).decode(), flush=True)
            add(table, row)
    if not as_json:
        Console().print(table)


@app.command()
def content(
    rows: Path = typer.Option(..., help="CSV, plain or gzip: one row a recipient of a send in which everybody got an option at random."),
    option: str = typer.Option(..., help="The column that says which option each got."),
    reward: str = typer.Option(..., help="The column with what came of it: 0 or 1, or an amount."),
    by: list[str] = typer.Option(..., help="A column that makes groups; may be repeated."),
    without: list[str] = typer.Option([], help="Leave out rows with this option; may be repeated."),
    campaigns: int = typer.Option(20, min=1, help="How many campaigns with made-up groups."),
    seed: int = typer.Option(1, min=0, help="The same seed gives the same numbers."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object a row instead of tables."),
) -> None:
    """Say what content chosen by group is worth: on a send that happened, and on made-up groups whose truth is known."""
    experiment = read_experiment(rows, option, reward, by, without)
    note = Console(stderr=True)
    n, groups = experiment.option.size, len({tuple(values) for values in experiment.values.tolist()})
    note.print(f"{n:,} recipients, {len(experiment.options)} options, {groups:,} groups", highlight=False)
    with progress(note, "") as bar:
        past, made_up = bar.add_task("The send", total=parts), bar.add_task("Made-up groups", total=campaigns)
        values = off_policy(experiment, seed, lambda: bar.advance(past))
        regret = regrets(World(), campaigns, seed, lambda: bar.advance(made_up))
    if as_json:
        for row in (*values, regret):
            print(msgspec.json.encode(row).decode())
        return
    console = Console()
    for table in content_tables(values, regret, reward):
        console.print(table)


def content_tables(values: list[Value], regret: Regret, reward: str) -> list[Table]:
    """Return a table of what happened and one of the made-up groups."""
    happened = Table("policy", title=f"Mean `{reward}` per recipient")
    for heading in (reward, "95 %"):
        happened.add_column(heading, justify="right")
    for value in values:
        happened.add_row(value.policy, f"{value.value:.5g}", f"{value.low:.5g} to {value.high:.5g}")
    made_up = Table(title="Made-up groups: responses lost")
    for heading in ("by group", "pooled", "by group / pooled"):
        made_up.add_column(heading, justify="right")
    made_up.add_row(f"{regret.by_group:,.1f}", f"{regret.pooled:,.1f}", "" if regret.ratio is None else f"{regret.ratio:.1%}")
    return [happened, made_up]


def progress(note: Console, unit: str) -> Progress:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=note, transient=True)


def known(name: str, names, kind: str) -> str:
    if name not in names:
        raise NotFound(f"Unknown {kind} `{name}`", todo=nearest(name, names))
    return name


def sizes(recipients: list[int], hours: list[float]) -> list[tuple[int, float]]:
    """Return pairs of list length and hours. Raises MidflightError where they do not pair."""
    if not recipients and not hours:
        return []
    recipients, hours = recipients or [50_000], hours or [8.0]
    for each in hours:
        if not each <= hours_max:
            raise MidflightError("`--hours`", expected=f"at most {hours_max:g}", got=each)
    if len(hours) == 1:
        hours = hours * len(recipients)
    if len(hours) != len(recipients):
        raise MidflightError("`--hours` and `--recipients` do not pair", expected=f"one or {len(recipients)} hours", got=len(hours))
    return list(zip(recipients, hours, strict=True))


def table_of(aa: bool) -> Table:
    table = Table(
        title="A/A: no arm is better" if aa else "Clicks gained, as a share of the gap between an equal split and the best arm alone"
    )
    for heading in ("policy", "trouble"):
        table.add_column(heading)
    for heading in ("recipients", "hours", "share of gap", "95 %", "winners", "wrong", "wrong rate", "median at"):
        table.add_column(heading, justify="right")
    return table


def add(table: Table, row: Row) -> None:
    share, interval = "", ""
    if row.share_of_gap is not None:
        share, interval = f"{row.share_of_gap:.1%}", f"{row.share_low:.1%} to {row.share_high:.1%}"
    at = "" if row.median_claim_at is None else f"{row.median_claim_at:.1f} h"
    table.add_row(
        row.policy, row.trouble, f"{row.recipients:,}", f"{row.hours:g}", share, interval, f"{row.claims:,}", f"{row.wrong_claims:,}",
        f"{row.wrong_claim_rate:.2%}", at,
    )  # fmt: skip
