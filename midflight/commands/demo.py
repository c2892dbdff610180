"""Show a live campaign on this machine: everything that `up` runs, and the sandbox that feeds it signed webhooks."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import msgspec
import typer

from ..config import Config, load_config
from ..kit.clock import Clock
from ..kit.errors import MidflightError
from ..sandbox.automated import automate
from ..sandbox.conducted import CHANNEL, Conducted, channel
from ..sandbox.manners import Manners
from ..sandbox.play import Game, play
from ..sandbox.settings import kinds, read_keys, sandbox_config, write_files
from ..sandbox.vendors import SITE
from ..sandbox.verify import unattributed, verify
from ..sandbox.world import Scenario
from ..serve.auth import Access, base_url, demo_user
from ..stream.measures import MEASURES
from .up import supervisor

ready_s_max = 60.0
virtual_hours = 10.0  # of a round
spring_times = 5  # as many people get the campaign that Midflight sends as get each of the others


def command(
    folder: Path = typer.Option(Path("midflight-demo"), help="Where the demonstration keeps its settings and data."),
    recipients: int = typer.Option(4_000, min=10, max=2_000_000, help="How many people there are."),
    campaigns: int = typer.Option(5, min=1, max=100, help="How many campaigns are sent at once; one vendor each."),
    minutes: float = typer.Option(4.0, min=0.2, help="Minutes for ten virtual hours; then the next campaigns start."),
    rounds: int = typer.Option(0, min=0, help="Stop after so many rounds; 0 goes on until Ctrl-C."),
    seed: int = typer.Option(1, help="The same seed gives the same people."),
    port: int = typer.Option(8400, help="Port of the door; the console has the next one. Taken ports are passed over."),
) -> None:
    """Show a live campaign on this machine: everything that `up` runs, and the sandbox that feeds it signed webhooks."""
    if not (folder / "midflight.yaml").exists():
        ports = free_ports(port)
        settings, keys = sandbox_config(ports, seed, str(folder.absolute() / "data"))
        settings |= {"channels": {CHANNEL: channel(ports["vendor"])}, "sending": {"speed": virtual_hours * 60 / minutes}}
        # By hours that go by in seconds, a rule reaches more people within an hour of the clock than it usually may.
        settings |= {"automation": {"people_per_hour": 0, "ceiling_per_hour": 0}}
        write_files(folder, settings, keys)
    os.environ["MIDFLIGHT_CONFIG"] = str(folder / "midflight.yaml")
    config = load_config()
    user, password = demo_user(config)
    say(f"open      {base_url(config)}/    user {user}, password {password}")
    if CHANNEL in config.channels:
        say(f"watch     {base_url(config)}/experiments: a campaign that sends what works, while it is being sent")
        say(f"          {base_url(config)}/rules: who clicks and does not buy is followed up; /segments: who that is")
    say(f"webhooks  http://{config.door.host}:{config.door.port}/in/NAME; settings and data are in {folder}")
    show = Show(config, folder, recipients, campaigns, minutes, rounds, seed)
    supervised = supervisor(config, lambda line: say(f"midflight: {line}"))
    show.stopping = lambda: supervised.stopping
    threading.Thread(target=show.run, name="sandbox", daemon=True).start()
    status = supervised.run(while_running=lambda: not show.over)
    sys.exit(status or show.status)


class Show:
    """Rounds of campaigns against the door of this demonstration, each checked against the truth at its end."""

    def __init__(self, config: Config, folder: Path, recipients: int, campaigns: int, minutes: float, rounds: int, seed: int) -> None:
        self.config, self.folder, self.rounds, self.seed = config, folder, rounds, seed
        self.recipients, self.campaigns, self.minutes = recipients, campaigns, minutes
        self.door = f"http://{config.door.host}:{config.door.port}"
        self.over = False
        self.stopping: Callable[[], bool] = lambda: False
        self.status = 0

    def run(self) -> None:
        try:
            self._await_door()
            token = self._token()
            number = 0
            while not self.over:
                self._round(number, token)
                number += 1
                self.over = number == self.rounds
        except MidflightError as error:
            if self.stopping():
                # Of what is being ended nobody expects an answer any more.
                return
            say(f"midflight: {error.text()}")
            self.status, self.over = 1, True

    def _round(self, number: int, token: str) -> None:
        scenario = Scenario(
            seed=self.seed + number,
            start_us=Clock().now_us(),
            recipients=self.recipients,
            campaigns=self.campaigns,
            vendors=tuple(kind for kind in kinds() if kind != SITE),
            speed=virtual_hours * 60 / self.minutes,
            hours=virtual_hours,
            manners=Manners(),
        )
        say(f"sandbox   round {number + 1}: {self.campaigns} campaigns to {self.recipients} people, ten hours in {self.minutes:g} minutes")
        api, keys = base_url(self.config), read_keys(self.folder / "sandbox.yaml")
        before = unattributed(api, token, MEASURES)
        conducted = None
        if CHANNEL in self.config.channels:
            conducted = Conducted(self.config, keys, self.recipients * spring_times, self.seed + number)
            automate(api, token, conducted.name, CHANNEL, self.config.sending.speed)
            conducted.start()
        told = play(Game(scenario, self.door, keys))
        cells = defaultdict(Counter, told.measured)
        for cell, counts in conducted.end().items() if conducted else ():
            cells[cell].update(counts)
        told = msgspec.structs.replace(told, before=before, cells=[(cell, dict(counts)) for cell, counts in cells.items()])
        wrong = verify(told, api, token=token, measures=MEASURES, timeout_s=60.0)
        events = told.report["events"]
        say(f"sandbox   {events} events sent; " + (f"{len(wrong)} numbers differ from the truth" if wrong else "every number is true"))
        self.status = 1 if wrong else self.status

    def _await_door(self) -> None:
        deadline = time.monotonic() + ready_s_max
        for url in (f"{self.door}/ready", f"{base_url(self.config)}/health"):
            while not answers(url):
                if time.monotonic() > deadline:
                    raise MidflightError(f"Nothing answers at {url}", expected=f"an answer within {ready_s_max:.0f} s")
                time.sleep(0.2)

    def _token(self) -> str:
        access = Access(self.config)
        try:
            return access.make_token("demo", ["read", "send"])[1]
        finally:
            access.close()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def free_ports(first: int) -> dict[str, int]:
    """Return ports for door, console and the sandbox's vendor from ``first`` on that nobody listens on."""
    found = []
    for port in range(first, first + 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == 3:
            return dict(zip(("door", "console", "vendor"), found, strict=True))
    raise MidflightError(f"No three free ports from {first} on", todo="Give another `--port`")


def say(line: str) -> None:
    print(line, flush=True)
