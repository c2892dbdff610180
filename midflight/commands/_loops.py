"""Plays whole campaigns for `midflight sandbox loop` and prints what they came to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from ..decide.breaker import HELD, NORMAL, PROBING
from ..sandbox.bounce_loop import BounceLoop, trouble_hours
from ..sandbox.follow_up_loop import FollowUpLoop, ToldFollowUps, window_hours
from ..sandbox.loop import Loop, Play, Told
from ..sandbox.verify import Difference

console = Console()
shown_max = 25
USUAL = ("within_limits", "holdout")  # reasons that go without saying
# How it is played where nothing else is said; who gets what is not the question.
FOLLOWED = Play(hours=4.0, after=5.0, speed=300.0, policy="fixed_split")
BOUNCING = Play(hours=8.0, after=1.0, speed=360.0, policy="fixed_split")


def looped(play_: Play, what: str) -> Told:
    with played(what) as (folder, say):
        return Loop(folder, play_, say).run()


@contextmanager
def played(what: str) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """Give a folder to play in, and what is called with how it goes."""
    with TemporaryDirectory(prefix="midflight-loop-") as folder, console.status(what) as status:
        yield Path(folder) / "run", lambda line: status.update(f"{what}: {line}")


def followed_up(play_: Play) -> bool:
    """Play a campaign with follow-ups and print what they came to; return whether nothing was lost, nothing came twice, and all is true."""
    with played("with follow-ups") as (folder, say):
        found = FollowUpLoop(folder, play_, say).follow_ups()
    ok = told_well(found.told, play_.recipients)
    states = found.states
    others = ", ".join(f"{n} {reason}" for reason, n in sorted(found.reasons.items()) if reason not in USUAL) or "none"
    print(
        f"follow-ups: {found.firings:,} firings; {states.get('held_out', 0):,} held out, {states.get('sent', 0):,} sent, "
        f"{states.get('unknown', 0)} unknown, {found.lost} lost, {found.twice} twice, {found.wrong} by a scanner's clicks, "
        f"{found.held_written} held out and written to all the same; other reasons: {others}"
    )
    console.print(earned_table(found))
    print(found.earned.text)
    return ok and found.well


def earned_table(found: ToldFollowUps) -> Table:
    """Return what each side did, what may be said of the difference, and what is true."""
    acted, held, people = found.followed, found.held, found.followed.people
    table = Table(title=f"within {window_hours:.0f} h after the firing", box=None, pad_edge=False)
    for heading in ("", "followed", "held out", "more", "interval", "truth", "in it"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    table.add_row("people", f"{acted.people:,}", f"{held.people:,}")
    buyers, money = found.earned.conversions, found.earned.revenue
    rates = (f"{side.buyers / max(1, side.people):.1%}" for side in (acted, held))
    said = (f"{buyers.difference:+.1%}", f"{buyers.low:+.1%} to {buyers.high:+.1%}", f"{found.conversions:+.1%}")
    table.add_row("buyers", *rates, *said, "yes" if found.inside_conversions else "NO")
    each = (f"{acted.revenue:.2f}", f"{held.revenue:.2f}")
    if money is None:
        table.add_row("revenue each", *each, "too few buyers", "", f"{found.lift:+.2f}")
        return table
    inside = "yes" if found.inside else "NO"
    said = (f"{money.difference:+.2f}", f"{money.low:+.2f} to {money.high:+.2f}", f"{found.lift:+.2f}")
    table.add_row("revenue each", *each, *said, inside)
    low, high = (f"{bound * people:+,.0f}" for bound in (money.low, money.high))
    said = (f"{money.difference * people:+,.0f}", f"{low} to {high}", f"{found.lift * people:+,.0f}")
    table.add_row("revenue", "", "", *said, inside)
    return table


def bounced(play_: Play, provider: str) -> bool:
    """Play a campaign in which a provider bounces, with guards and without; return whether everybody got one message and guards held."""
    found, ok = [], True
    for guards in (True, False):
        with played("with guards" if guards else "without guards") as (folder, say):
            found.append(BounceLoop(folder, play_, say, provider=provider, guards=guards).bounces())
        ok = told_well(found[-1].told, play_.recipients) and ok
    with_, plain = found
    print(f"{provider} turns mail away for {trouble_hours:.1f} h; since it began:")
    for turn in with_.turns:
        why = f": {turn.text}" if turn.stage == HELD else ""
        print(f"{turn.hours:6.2f} h {turn.after:7,} sent {turn.bounced:6,} came back; {turn.kind} {turn.name} is {turn.stage}{why}")
    avoided = plain.bounced - with_.bounced
    print(
        f"bounces of {provider} since then: {with_.bounced:,} with guards, {plain.bounced:,} without; {avoided:,} avoided "
        f"({avoided / max(1, plain.bounced):.0%}). Messages that arrived: {with_.arrived:,} with, {plain.arrived:,} without"
    )
    print(f"held: {with_.said(HELD)}; probed: {with_.said(PROBING)}; as before: {with_.said(NORMAL)}")
    return ok and with_.released and avoided > 0


def told_well(told: Told, recipients: int) -> bool:
    """Print what a run came to; return whether everybody got one message and every number is true."""
    kills = ", ".join(f"{name} {n}" for name, n in sorted(told.kills.items())) or "none"
    shares = ", ".join(f"{name} {share:.0%}" for name, share in told.shares.items())
    print(
        f"{told.sent:,} messages to {recipients:,} people in {told.seconds:.0f} s; {told.lost} lost, {told.twice} twice; kills: {kills}; "
        f"{told.again} sent again by hand; {told.untold} events given up; "
        f"outbox {told.states}; {len(told.differences)} numbers differ from the truth"
    )
    print(f"shares: {shares}. {told.claim}")
    if told.differences:
        console.print(table_of(told.differences))
    return told.lost == told.twice == len(told.differences) == 0


def table_of(found: list[Difference]) -> Table:
    table = Table(title=f"{len(found)} numbers differ" + (f", the first {shown_max} are" if len(found) > shown_max else ""))
    for heading in ("campaign", "of", "measure"):
        table.add_column(heading, overflow="fold")
    table.add_column("true", justify="right")
    table.add_column("shown", justify="right")
    # Whole campaigns first: what differs there tells most.
    for name, row, measure, true, shown in sorted(found, key=lambda difference: difference.row != "all")[:shown_max]:
        table.add_row(name or "(none)", row, measure, str(true), str(shown))
    return table
