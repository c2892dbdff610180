"""Each way out beside its played service: how it is set up, and one action whose effect can be told apart from all others."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from midflight.act import guarded, kill_switch
from midflight.act.actions import Actions
from midflight.act.begun import Begun
from midflight.act.calls import Calls
from midflight.act.campaigns import Campaigns
from midflight.act.intake import Cursor, Firing
from midflight.act.outbox import Outbox
from midflight.act.stop_list import StopList
from midflight.act.ways import REGISTRY, Action, Way, way_of
from midflight.act.ways.webhook import example_secret
from midflight.act.ways_out import WaysOut
from midflight.decide.limits import Radius
from midflight.kit.clock import VirtualClock
from midflight.kit.errors import MidflightError
from midflight.sandbox import way_vendors as vendors
from midflight.sandbox.misbehave import Plan
from midflight.sandbox.ways import Service, Ways
from midflight.serve.acting import Acting

START_US = 1_764_000_000_000_000
LOOPBACK = ("127.0.0.0/8",)


@dataclass
class Played:
    """One way, and whether twice is once at its service."""

    kind: str
    service: Callable[[VirtualClock], Service]
    settings: Callable[[str], dict]
    fields: Callable[[str, int], dict]
    idempotent: bool = False


def _webhook(dedups: bool) -> Played:
    return Played(
        "webhook",
        lambda clock: vendors.Receiver(vendors.secret_bytes(example_secret), lambda: clock.now_us() / 1e6, dedups=dedups),
        lambda url: {"url": f"{url}/hook", "secrets": [example_secret], "receiver_dedups": dedups},
        lambda url, n: {"type": "rule.fired", "data": {"n": str(n)}},
        dedups,
    )


def _crm(crm: str, keyed: bool) -> Played:
    service = vendors.HubSpotTasks if crm == "hubspot" else vendors.SalesforceTasks
    key = ("midflight_id" if crm == "hubspot" else "Midflight_Id__c") if keyed else ""

    def settings(url: str) -> dict:
        own = {"token": service.token} if crm == "hubspot" else {"client_id": "c", "client_secret": "s"}
        return {"crm": crm, "url": url, "id_property": key} | own

    return Played("crm_task", lambda clock: service(), settings, lambda url, n: {"subject": f"Call person {n}"}, keyed)


def _push(clock: VirtualClock) -> Service:
    return vendors.PushService(lambda: clock.now_us() / 1e6)


PLAYED: dict[str, Played] = {
    "slack": Played(
        "slack",
        lambda clock: vendors.SlackHook(),
        lambda url: {"url": url + vendors.SlackHook.path},
        lambda url, n: {"text": f"Something happened: {n}"},
    ),
    "teams": Played(
        "teams",
        lambda clock: vendors.TeamsFlow(),
        lambda url: {"url": f"{url}{vendors.TeamsFlow.path}?sig=secret"},
        lambda url, n: {"text": f"Something happened: {n}"},
    ),
    "sms_twilio": Played(
        "sms_twilio",
        lambda clock: vendors.Twilio(),
        lambda url: {
            "account_sid": vendors.account_sid, "auth_token": vendors.Twilio.auth_token, "from_number": "+15005550006", "url": url,
            "status_url": "https://m.example/in/twilio",
        },
        lambda url, n: {"to": f"+44770090{n:04d}", "body": "Two days left"},
    ),
    "web_push": Played(
        "web_push",
        _push,
        lambda url: {"private_key": "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw", "subject": "mailto:ops@shop.example"},
        lambda url, n: vendors.Browser(n).subscription(url, n) | {"title": "Two days left"},
    ),
    "webhook": _webhook(True),
    "webhook_once": _webhook(False),
    "meta_audience": Played(
        "meta_audience",
        lambda clock: vendors.Meta(),
        lambda url: {"access_token": vendors.Meta.token, "url": url},
        lambda url, n: {"audience": "1234"},
        True,
    ),
    "google_audience": Played(
        "google_audience",
        lambda clock: vendors.Google(),
        lambda url: {
            "account_id": "1112223333", "client_id": "c", "client_secret": "s", "refresh_token": "r", "url": url,
            "token_url": f"{url}/token",
        },
        lambda url, n: {"audience": "1234"},
        True,
    ),
    "hubspot": _crm("hubspot", False),
    "hubspot_keyed": _crm("hubspot", True),
    "salesforce": _crm("salesforce", False),
    "salesforce_keyed": _crm("salesforce", True),
}  # fmt: skip


def action(name: str, n: int, url: str, **more: object) -> Action:
    return Action(id=f"ac-{n}", way=name, rule="r", version=1, recipient=f"p{n}@example.com", fields=PLAYED[name].fields(url, n), **more)


def way_at(name: str, url: str, **more: object) -> Way:
    played = PLAYED[name]
    return way_of(REGISTRY.get(played.kind), played.settings(url) | {"per_second": 1e6} | more, name)


class Nobody:
    """People of whom nothing is known and who may all be written to."""

    def suppressed(self, recipients: Iterable[str]) -> dict[str, str]:
        return {}

    def attributes(self, recipients: Iterable[str]) -> dict[str, dict]:
        return {}


class Listed:
    """Firings that a test put down."""

    def __init__(self) -> None:
        self.firings: list[Firing] = []

    def read(self, cursor: Cursor, count_max: int) -> tuple[list[Firing], Cursor]:
        found = self.firings[cursor.number : cursor.number + count_max]
        return found, Cursor(epoch="e", number=cursor.number + len(found))


class Deeds:
    """The conductor's part that acts, with the real ways out: one file of actions, rules that act at once, and a clock of their own."""

    acting: type[Acting] = Acting

    def __init__(self, folder: Path, ways: dict[str, Way], clock: VirtualClock, *, outbox: str = "", answer_s: float = 60) -> None:
        self.folder, self.clock = folder, clock
        self.outbox = Outbox(Path(outbox or folder / "outbox.db"))
        Campaigns(self.outbox)
        self.actions = Actions(self.outbox)
        self.source = Listed()
        guard = guarded.Guard(allow=LOOPBACK, ports=None, http=True)
        self.ways_out = WaysOut(ways, self.actions, None, None, clock, guard=guard, answer_s=answer_s)
        self.begun = Begun(folder / "actions.begun", "boot")
        self.does = self.acting(
            self.actions, self.source, Nobody(), self.ways_out, stops=StopList(), switch=kill_switch.Switch(folder), begun=self.begun,
            clock=clock, radius=Radius(people_per_hour=0, ceiling_per_hour=0, person_per_day=0),
        )  # fmt: skip
        self.started = self.does.start()

    def put(self, actions: list[Action]) -> None:
        """Let rules fire that do these, each a rule of its own; one that was put already fires again, which is known."""
        for one in actions:
            if self.actions.book.known(f"r-{one.id}") is None:
                minutes = (one.expires_us - self.clock.now_us()) / 6e7 if one.expires_us else 10_000
                definition = {
                    "action": {"way": one.way, "fields": one.fields},
                    "limits": {"autonomy": "act", "expires_minutes": minutes},
                }
                with self.actions.transaction():
                    self.actions.book.put(f"r-{one.id}", 1, definition, "ada", "", self.clock.now_us())
            self.source.firings.append(
                Firing(
                    number=0, id=one.id, rule=f"r-{one.id}", version=1, recipient=one.recipient, fired_us=self.clock.now_us(), cause=b"{}"
                )
            )  # fmt: skip

    async def step(self) -> None:
        """Take a turn, and wait for the calls that it makes."""
        await self.does.step()
        while self.does.under_way.tasks:
            await asyncio.wait(set(self.does.under_way.tasks))
            await self.does.step()
        await self.does.step()

    async def until_ended(self, ids: list[str], steps_max: int = 80) -> None:
        """Step, and let time pass to when the next try is due, until all have an end."""
        for _ in range(steps_max):
            await self.step()
            due = [row["until_us"] for row in map(self.row, ids) if row["state"] in ("waiting", "undoing")]
            if not due:
                return
            self.clock.at_us = max(self.clock.at_us + 1_100_000, min(due))

    def row(self, id: str) -> dict:
        return next(row for row in self.actions.listed(count_max=1000) if row["id"] == id)

    def states(self) -> dict[str, int]:
        found = Counter(row["state"] for row in self.actions.listed(count_max=1000))
        return dict(found)

    async def close(self) -> None:
        await self.ways_out.close()
        self.begun.close()
        self.outbox.close()


class Play:
    """One way out against its service, on a clock of their own, with all that acts between."""

    deeds: type[Deeds] = Deeds

    def __init__(self, name: str, plan: Plan | None = None, *, answer_s: float = 60, **more: object) -> None:
        self.name, self.clock = name, VirtualClock(START_US)
        self.service = PLAYED[name].service(self.clock)
        self.ways = Ways([self.service], plan, now_s=lambda: self.clock.now_us() / 1e6)
        self.answer_s, self.more = answer_s, more
        self._folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)

    async def __aenter__(self) -> Play:
        self.ways.start()
        if isinstance(self.service, vendors.PushService):
            self.service.origin = self.ways.url
        self.way = way_at(self.name, self.ways.url, **self.more)
        self.does = self.deeds(Path(self._folder.name), {self.name: self.way}, self.clock, outbox=":memory:", answer_s=self.answer_s)
        self.actions, self.put, self.step = self.does.actions, self.does.put, self.does.step
        self.row, self.states, self.until_ended = self.does.row, self.does.states, self.does.until_ended
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.does.close()
        self.ways.stop()
        self._folder.cleanup()

    @property
    def calls(self) -> Calls:
        return self.does.ways_out.calls[self.name]

    def action(self, n: int, **more: object) -> Action:
        return action(self.name, n, self.ways.url, **more)

    def undo(self, id: str) -> str:
        """Ask to take an action back; return why it cannot be, or nothing."""
        try:
            self.actions.undo(id, self.does.ways_out.can_undo(self.actions.way(id)), self.clock.now_us())
        except MidflightError as error:
            return error.text()
        return ""


def run(coroutine: object) -> object:
    return asyncio.run(coroutine)
