"""Play an email service provider and its audience against a running door, and check the numbers against the truth."""

from __future__ import annotations

from pathlib import Path

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..kit.clock import Clock
from ..sandbox.loop import Play, gain
from ..sandbox.manners import Manners
from ..sandbox.play import Game, play
from ..sandbox.settings import kinds, read_keys, sandbox_config, write_files
from ..sandbox.vendors import SITE
from ..sandbox.verify import load_truth, verify
from ..sandbox.world import Scenario
from ..stream.measures import MEASURES
from ._loops import BOUNCING, FOLLOWED, bounced, console, followed_up, looped, table_of, told_well

app = typer.Typer(no_args_is_help=True, help="Play an email service provider and its audience against a running door, with known truth.")


@app.command()
def init(
    folder: Path = typer.Argument(Path("."), help="Where to write midflight.yaml and sandbox.yaml."),
    seed: int = typer.Option(1, help="The keys follow from it."),
    door_port: int = typer.Option(8400, help="Port of the door."),
    console_port: int = typer.Option(8401, help="Port of API and console."),
    data: str = typer.Option("data", help="Midflight's data folder."),
) -> None:
    """Write settings for Midflight with every simulated vendor as a source, and beside them the keys that the sandbox signs with."""
    for path in write_files(folder, *sandbox_config({"door": door_port, "console": console_port}, seed, data)):
        print(f"Wrote {path}")


@app.command()
def run(
    door: str = typer.Option("http://127.0.0.1:8400", help="Where the door is."),
    keys: Path = typer.Option(Path("sandbox.yaml"), help="The keys to sign with; `midflight sandbox init` writes them."),
    campaigns: int = typer.Option(3, min=1, max=100, help="How many campaigns are sent at once."),
    recipients: int = typer.Option(5000, min=10, max=2_000_000, help="How many people there are."),
    waves: int = typer.Option(4, min=1, max=100, help="Waves of each campaign."),
    seed: int = typer.Option(1, help="The same seed and start give the same events."),
    start: int = typer.Option(0, help="Unix seconds of the first send; 0 is now."),
    vendors: str = typer.Option("", help="Which vendors send, separated by commas; all without."),
    speed: float = typer.Option(600.0, min=0.01, help="Virtual seconds in one second: 600 makes ten hours of a minute."),
    hours: float = typer.Option(10.0, min=0.01, help="Virtual hours until the curtain falls."),
    spread: float = typer.Option(0.0, min=0.0, help="Instead, load a history of so many days at full rate."),
    rate: float = typer.Option(0.0, min=0.0, help="At most so many events a second; 0 is no limit."),
    batch: int = typer.Option(200, min=1, max=1000, help="Events in one request of a vendor that batches."),
    connections: int = typer.Option(32, min=1, max=200, help="Kept connections to the door."),
    prepare: bool = typer.Option(False, help="Write and sign all requests before the first is sent, to measure the door alone."),
    patience: float = typer.Option(60.0, min=0.0, help="Seconds for which a refused request is tried again."),
    duplicates: float = typer.Option(0.02, min=0, max=1, help="Share of events that come twice."),
    reorder: float = typer.Option(0.05, min=0, max=1, help="Share of events that later ones overtake."),
    late: float = typer.Option(0.01, min=0, max=1, help="Share of events that come hours late."),
    bare: float = typer.Option(0.03, min=0, max=1, help="Share of events without campaign, variant and wave."),
    clocks: float = typer.Option(
        0.002, min=0, max=1, help="Share of events from a wrong clock: +2 h, +10 years, milliseconds for seconds."
    ),
    async_bounces: float = typer.Option(
        0.002, min=0, max=1, help="Share of deliveries that bounce afterwards, without the sender's metadata."
    ),
    unknown: float = typer.Option(0.002, min=0, max=1, help="Share of messages with an event of an unknown kind."),
    poison: float = typer.Option(0.005, min=0, max=1, help="Share of batches with an unreadable event."),
    cut: float = typer.Option(0.005, min=0, max=1, help="Share of requests whose connection is cut before the answer."),
    good_manners: bool = typer.Option(False, help="None of the above."),
    xss: bool = typer.Option(False, help="Put markup into every text."),
    truth: Path | None = typer.Option(None, help="Write the true numbers to this file."),
    verify: str = typer.Option("", metavar="URL", help="Afterwards compare the API at this URL with the truth; exit with 1 if it differs."),
    token: str = typer.Option("", envvar="MIDFLIGHT_TOKEN", help="Token for the API."),
    verify_timeout: float = typer.Option(60.0, help="Seconds for the numbers to become true."),
) -> None:
    """Send campaigns, let people and machines react, report it to a door as real vendors do, and tell the truth at the end."""
    manners = Manners(duplicates, reorder, late, bare, clocks, async_bounces, unknown, poison, cut)
    scenario = Scenario(
        seed=seed,
        start_us=(start or Clock().now_us() // 1_000_000) * 1_000_000,
        recipients=recipients,
        campaigns=campaigns,
        waves=waves,
        vendors=chosen(vendors),
        speed=speed,
        hours=hours,
        spread_days=spread,
        batch=batch,
        manners=(Manners.good() if good_manners else manners).with_xss(xss),
    )
    game = Game(
        scenario,
        door,
        read_keys(keys),
        rate=rate,
        connections=connections,
        patience_s=patience,
        prepare=prepare,
        api=verify,
        token=token,
    )
    with progress() as bar:
        told = play(game, bar_of(bar))
    report = told.report
    console.print(summary(report), highlight=False, soft_wrap=True)
    if truth:
        told.save(truth)
        print(f"The true numbers are in {truth}")
    if report["refused"] or report["lost"]:
        console.print(
            f"[red]{report['refused']} requests were refused for good and {report['lost']} never taken; the truth leaves them out."
        )
    if verify:
        judge(told, verify, token, verify_timeout)
    if report["refused"] or report["lost"]:
        raise typer.Exit(1)


@app.command("verify")
def verify_(
    truth: Path = typer.Argument(help="A file that `midflight sandbox run --truth` wrote."),
    url: str = typer.Argument("http://127.0.0.1:8401", help="Where the API is."),
    token: str = typer.Option("", envvar="MIDFLIGHT_TOKEN", help="Token for the API."),
    verify_timeout: float = typer.Option(60.0, help="Seconds for the numbers to become true."),
) -> None:
    """Compare the API's numbers with the truth of an earlier run; exit with 1 if any differs."""
    judge(load_truth(truth), url, token, verify_timeout)


@app.command()
def loop(
    recipients: int = typer.Option(20_000, min=10, max=2_000_000, help="How many people there are."),
    factors: str = typer.Option("1,1.3,0.8,1.1,0.9", help="The variants' true factors on clicks; as many variants as factors."),
    channel: str = typer.Option("smtp", help="By which way: smtp, sendgrid, mailgun, postmark, ses or resend."),
    hours: float = typer.Option(0.0, min=0.0, help="Virtual hours of the campaign; 0 is 8, and 4 with `--follow-ups`."),
    after: float = typer.Option(
        -1.0, min=-1.0, help="Virtual hours that people live after it; -1 is 16, 5 with `--follow-ups` and 1 with `--bounces`."
    ),
    speed: float = typer.Option(
        0.0,
        min=0.0,
        help="Virtual seconds in one second; 0 is 240, which makes eight hours of two minutes, "
        "300 with `--follow-ups` and 360 with `--bounces`.",
    ),
    kills: int = typer.Option(0, min=0, help="So often door, engine or conductor is killed on the way and started again."),
    seed: int = typer.Option(1, help="The same seed gives the same people with the same luck."),
    without: bool = typer.Option(False, help="Play it a second time with an equal split, without kills, and compare."),
    follow_ups: bool = typer.Option(
        False, help="Beside it a rule writes to those who click and do not buy, one in ten held out: is what it is said to earn true?"
    ),
    bounces: str = typer.Option(
        "", metavar="PROVIDER", help="In the middle this mailbox provider turns mail away for a while: with guards, and without."
    ),
) -> None:
    """Send a campaign to people of the sandbox by Midflight's own processes, over real SMTP or HTTP, and see what it came to."""
    if (follow_ups, bool(bounces), without).count(True) > 1:
        raise typer.BadParameter("one of --follow-ups, --bounces and --without at a time")
    usual = FOLLOWED if follow_ups else BOUNCING if bounces else Play()
    play_ = msgspec.structs.replace(
        usual, recipients=recipients, factors=tuple(float(factor) for factor in factors.split(",")), channel=channel, kills=kills,
        seed=seed, hours=hours or usual.hours, after=after if after >= 0 else usual.after, speed=speed or usual.speed,
    )  # fmt: skip
    if follow_ups or bounces:
        if not (followed_up(play_) if follow_ups else bounced(play_, bounces)):
            raise typer.Exit(1)
        return
    with_ = looped(play_, "with Midflight")
    ok = told_well(with_, recipients)
    if without:
        plain = looped(msgspec.structs.replace(play_, policy="fixed_split", kills=0), "equal split")
        ok = told_well(plain, recipients) and ok
        for what in ("clicks", "revenue"):
            more, low, high = gain(getattr(with_, what), getattr(plain, what))
            base = float(getattr(plain, what).sum())
            print(f"{what}: {base:,.0f} without, {base + more:,.0f} with; {more:+,.0f} [{low:+,.0f}, {high:+,.0f}], {more / base:+.1%}")
    if not ok:
        raise typer.Exit(1)


def chosen(vendors: str) -> tuple[str, ...]:
    known = tuple(kind for kind in kinds() if kind != SITE)
    names = tuple(name.strip() for name in vendors.split(",") if name.strip())
    return names or known


def summary(report: dict) -> str:
    """Return what became of a run's requests as one line."""
    answers = ", ".join(f"{n:,} of {status}" for status, n in report["answers"].items())
    return (
        f"{report['events']:,} events in {report['requests']:,} requests, {report['seconds']} s; answers: {answers}; "
        f"{report['retries']:,} retries, {report['cuts']:,} cut; p50 {report['answer_p50_ms']} ms, p99 {report['answer_p99_ms']} ms"
    )


def progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("events"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=not console.is_terminal)


def bar_of(bar: Progress):
    """Return what is called with (what is done, how many events) at the start of each part and with (``""``, n) as they are taken."""
    current: list = []

    def step(what: str, count: int) -> None:
        if what:
            current[:] = [bar.add_task(what, total=count)]
        else:
            bar.advance(current[0], count)

    return step


def judge(truth, url: str, token: str, timeout_s: float) -> None:
    """Print what differs and leave with 1, or say that nothing does."""
    with console.status("Waiting for the numbers") as status:
        found = verify(
            truth,
            url,
            token=token,
            measures=MEASURES,
            timeout_s=timeout_s,
            waiting=lambda n: status.update(f"{n} numbers are not true yet"),
        )
    if not found:
        print(f"Every number of {len(truth.campaigns()) - 1} campaigns is true.")
        return
    console.print(table_of(found))
    raise typer.Exit(1)
