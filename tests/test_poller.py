"""The poller beside a real engine: what other systems know moves people into segments, and who is in which is written back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from polling_world import SetClock, second_us
from system import T0, wait_until
from test_definitions import World, did

from midflight.act.campaigns import Campaigns
from midflight.act.outbox import Outbox, Planned
from midflight.act.written_back import REGISTRY
from midflight.act.written_back._waiting import Waiting
from midflight.act.written_back.way_back import ways_of
from midflight.config import config_from
from midflight.decide.reconciliation import Alarm
from midflight.events import Event
from midflight.log import Reader, Record
from midflight.sandbox.crm import HubSpotFake
from midflight.sandbox.esp_records import MailgunRecords
from midflight.sandbox.systems import Systems
from midflight.serve import poller, polling
from midflight.serve.following import Following
from midflight.serve.reconciling import Reconciling
from midflight.serve.watch import unusual_in
from midflight.serve.writing_back import WritingBack
from midflight.sources import load
from midflight.sources.polls.poll import iso_of
from midflight.store import asking, write
from midflight.store.read import Store

PAYING = {"attribute": "plan", "is": "pro"}


class WorldsClock(SetClock):
    """Wall time of the world that is played; waiting goes by the machine's."""

    def __init__(self, world: World) -> None:
        self.world = world

    def now_us(self) -> int:
        return self.world.clock.now_us()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path / "data")
    yield found
    found.writer.close()


@contextlib.contextmanager
def in_threads(*runs: Callable[[Callable[[], bool]], object]) -> Iterator[None]:
    """Let processes live as threads for a while; what one of them raises is raised here."""
    stop, failed = threading.Event(), []

    def life(run: Callable[[Callable[[], bool]], object]) -> None:
        try:
            run(stop.is_set)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=life, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
        assert not failed, failed


def test_what_other_systems_know_moves_people_and_goes_back(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A CRM's contact, a database's row and a file's line each bring somebody into a segment; the CRM hears who is in it, and who left."""
    clock = WorldsClock(world)
    fake = HubSpotFake(clock)
    for number, plan in enumerate(("pro", "free", "free", "free"), 1):
        fake.put(number, clock.now_us() - 3600 * second_us, email=f"p{number}@example.com", plan=plan)
    drop = tmp_path / "drop"
    drop.mkdir()
    db = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    db.execute("CREATE TABLE customers(id INTEGER PRIMARY KEY, email TEXT, plan TEXT, updated_at TEXT)")
    monkeypatch.setattr(polling, "append", lambda _config, records: world.writer.append(list(records)))
    world.segment("paying", PAYING)
    world.fold()

    def here(number: int) -> str:
        return fake.now(number).get("midflight_segments") or ""

    with Systems(fake) as systems:
        crm = {"kind": "hubspot", "token": fake.key, "url": systems.url, "per_second": 1000}
        config = config_from(
            {
                "data": str(world.config.folder),
                "polls": {
                    "crm": crm | {"traits": ["plan"], "every_s": 1, "lag_s": 0},
                    "shop": {
                        "kind": "sql", "database": f"sqlite:///{tmp_path / 'shop.db'}", "query": "SELECT * FROM customers",
                        "traits": ["plan"], "every_s": 1, "per_second": 1000,
                    },
                    "files": {"kind": "csv_folder", "folder": str(drop), "traits": ["plan"], "every_s": 1, "settle_s": 0},
                },
                "ways_back": {"crm": crm | {"values": {"engagement": "midflight_engagement"}, "wait_s": 0}},
            }
        )  # fmt: skip
        engine = world.engine()
        with in_threads(engine.run, lambda stop: asyncio.run(poller.poll(config, stop, clock=clock))):
            wait_until(lambda: here(1) == "paying", "the CRM's own contact")
            assert here(2) == ""
            db.execute("INSERT INTO customers VALUES(1, 'p2@example.com', 'pro', ?)", (iso_of(clock.now_us()),))
            (drop / ".p.csv").write_text("email,plan\np3@example.com,pro\n")
            os.utime(drop / ".p.csv", (clock.now_us() / 1e6 - 60,) * 2)
            (drop / ".p.csv").rename(drop / "p.csv")
            wait_until(lambda: (here(2), here(3)) == ("paying", "paying"), "a row of the database and a line of a file")
            world.clock.sleep_s(60)
            fake.put(1, clock.now_us(), plan="free")
            world.clock.sleep_s(60)
            wait_until(lambda: here(1) == "", "who left")
        assert fake.now(2)["midflight_engagement"] == "0" and here(4) == ""
    db.close()


class Desk:
    """A way back that follows an engine, with a life for each call."""

    def __init__(self, world: World, **settings: object) -> None:
        self.world = world
        self.ways = {"file": {"kind": "nightly_file", "folder": str(world.config.folder / "out"), "columns": ["engagement"], **settings}}

    def follows(self, times: int = 50) -> dict[str, dict]:
        """Take in all there is, and return the state of everybody."""

        async def life() -> dict[str, dict]:
            store = Store(self.world.config)
            writing = WritingBack(ways_of(self.ways, REGISTRY), self.world.config.folder, WorldsClock(self.world))
            try:
                following = Following(self.world.config, store, writing)
                for _ in range(times):
                    if not await following.step():
                        break
                people = writing.waiting.people("file", "", 10_000)
                return {who: {name: value for name, (_, value) in state.items()} for who, state in people}
            finally:
                store.close()
                await writing.close()

        with in_threads(self.world.engine().run):
            wait_until(lambda: self.caught_up(), "the engine has read all")
            return asyncio.run(life())

    def caught_up(self) -> bool:
        with contextlib.suppress(asking.NoAnswer):
            asking.members(self.world.config.folder, "x")
            store = Store(self.world.config)
            try:
                with store.view() as view, Reader(self.world.config.folder / "log") as log:
                    return view.position >= log.head()
            finally:
                store.close()
        return False


def test_who_was_there_before_is_told_page_by_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """All members of a segment that filled from history come over, in pages of two, with their scores; nobody else."""
    monkeypatch.setattr(asking, "page_max", 2)
    for number in range(7):
        world.hear(did("opened", number, world.clock.now_us(), f"p{number}@x.example"))
    world.hear(did("sent", 9, world.clock.now_us(), "not@x.example"))
    world.segment("readers", {"did": "opened"})
    told = Desk(world).follows()
    assert told == {f"p{number}@x.example": {"segment:readers": True, "engagement": 15} for number in range(7)}


def test_a_segment_that_means_something_else_leaves_behind_who_is_not_in_it(world: World) -> None:
    """After a new version those who do not belong to it any more are out, though nobody left; after its end all are."""
    desk = Desk(world)
    world.hear(did("opened", 1, world.clock.now_us(), "ada@x.example"), did("clicked", 2, world.clock.now_us(), "bob@x.example"))
    world.segment("active", {"did": "opened"})
    assert segments_of(desk.follows()) == {"ada@x.example": ["active"]}
    world.wait(1)
    world.segment("active", {"did": "clicked"})
    assert segments_of(desk.follows()) == {"ada@x.example": [], "bob@x.example": ["active"]}
    world.wait(1)
    world.order(do="drop_segment", id="3", name="active", version=3, who="ada")
    assert segments_of(desk.follows()) == {"ada@x.example": [], "bob@x.example": []}


def segments_of(told: dict[str, dict]) -> dict[str, list[str]]:
    return {who: sorted(name[8:] for name, value in state.items() if name.startswith("segment:") and value) for who, state in told.items()}


@pytest.mark.parametrize("told", [(2, "another move"), (99, "a move of the former store")])
def test_a_store_that_is_made_anew_loses_no_move(world: World, told: tuple[int, str]) -> None:
    """Where moves have got other numbers, because the store was made again from the log, they are read from the first one on."""
    world.segment("readers", {"did": "opened", "within": "1h"})
    desk = Desk(world)
    world.fold()
    for number in range(3):
        world.hear(did("opened", number, world.clock.now_us(), f"p{number}@x.example"))
        world.wait(1)
    (world.config.folder / "written_back").mkdir()
    with contextlib.closing(Waiting(world.config.folder / "written_back" / "written_back.db")) as waiting:
        waiting.note({}, 0, told)
    assert segments_of(desk.follows()) == {f"p{n}@x.example": ["readers"] for n in range(3)}
    world.wait(120)
    assert segments_of(desk.follows()) == {f"p{n}@x.example": [] for n in range(3)}


def test_who_was_away_for_too_long_takes_in_all_members_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moves are kept for some weeks; where some are gone that nobody has read, nobody stays in a segment that he has left."""
    world.segment("readers", {"did": "opened", "within": "1h"})
    desk = Desk(world)
    world.hear(did("opened", 1, world.clock.now_us(), "p1@x.example"))
    assert segments_of(desk.follows()) == {"p1@x.example": ["readers"]}
    monkeypatch.setattr(write, "told_kept_us", 50 * 60_000_000)
    world.wait(100)
    for number in (2, 3):
        world.fold()
        world.hear(did("opened", number, world.clock.now_us(), f"p{number}@x.example"))
        world.fold()
        world.wait(20)
    assert world.table("number FROM moves") == [(3,), (4,)]
    assert segments_of(desk.follows()) == {"p1@x.example": [], "p2@x.example": ["readers"], "p3@x.example": ["readers"]}


def test_only_what_a_way_writes_wakes_it(world: World) -> None:
    """A segment that is not written, and a score that nobody takes, are no reason to write anybody."""
    world.segment("readers", {"did": "opened"})
    world.segment("buyers", {"did": "converted"})
    world.fold()
    world.hear(did("opened", 1, world.clock.now_us()), did("converted", 2, world.clock.now_us(), "bob@x.example"))
    told = Desk(world, segments=["buyers"], columns=[]).follows()
    assert told == {"bob@x.example": {"segment:buyers": True}}


def test_late_and_conflicting_updates_resolve_by_time(world: World) -> None:
    """What was true later wins, whichever comes first: an old row of another system does not take back a newer one."""
    world.segment("paying", PAYING)
    now_us = world.clock.now_us()
    for number, (plan, at_us) in enumerate((("pro", now_us - 10 * second_us), ("free", now_us - 3600 * second_us))):
        world.hear(
            Event(
                source="crm",
                event_id=f"p:{number}",
                kind="identified",
                occurred_at_us=at_us,
                recipient="ada@x.example",
                traits={"plan": plan},
            )
        )
    assert segments_of(Desk(world).follows()) == {"ada@x.example": ["paying"]}


# -- what a source does not bring ----------------------------------------------------------------------------------------------------------


class Hour:
    """A provider whose webhooks come minute after minute, and whose API knows of all events; an engine counts them."""

    def __init__(self, world: World, records: MailgunRecords, url: str) -> None:
        self.world, self.records = world, records
        self.vendor = load("mailgun", {"unsigned": True}, name="esp")
        told = {"kind": "mailgun_events", "domain": "mail.shop.example", "api_key": MailgunRecords.key, "url": url, "per_second": 1000}
        sources = {"esp": {"kind": "mailgun", "unsigned": True}}
        # Asked once a day only, as where somebody wants few calls.
        polls = {"events": told | {"every_s": 86_400, "lag_s": 0}}
        self.config = world.config = config_from({"data": str(world.config.folder), "sources": sources, "polls": polls})
        self.engine, self.store = world.engine(), Store(self.config, WorldsClock(world))
        self.reconciling = Reconciling(self.config, self.store, poller.configured(self.config)[0])
        self.minute = 0
        self.ids: set[str] = set()

    def pass_by(self, minutes: int, *, webhooks: bool = True) -> list[Alarm]:
        """Let some minutes pass, of twenty events each; return the alarms that begin."""
        begun = []
        for _ in range(minutes):
            heard = [self.happens(f"{self.minute}.{number}") for number in range(20)]
            if webhooks:
                self.world.writer.append(heard)
            self.world.wait(1)
            self.minute += 1
            begun += self.look()
        return begun

    def look(self) -> list[Alarm]:
        self.engine.catch_up()
        self.engine.commit()
        return self.reconciling.step()

    def happens(self, name: str) -> Record:
        """Let something happen that the API knows of; return the webhook that says so."""
        at_us = self.world.clock.now_us()
        event = Event(
            kind="delivered", event_id=name, occurred_at_us=at_us, recipient=f"p{name}@example.com", message_id=f"<m{name}@shop.example>",
            campaign="spring",
        )  # fmt: skip
        body = self.vendor.write([event])
        self.records.put(msgspec.json.decode(body)["event-data"])
        self.ids.add(name)
        return Record("webhook", "esp", 0, {"content-type": "application/json"}, body)

    def shown(self) -> list[str]:
        """Return what the console shows of the sources."""
        with self.store.view() as view:
            return [one.kind for one in unusual_in(view, view.campaigns(), self.config.folder) if one.subject == "esp"]

    def counted(self) -> int:
        with self.store.view() as view:
            return view.campaign("spring")["sums"]["delivered"]

    def __enter__(self) -> Hour:
        return self

    def __exit__(self, *_error: object) -> None:
        self.store.close()
        self.engine.close()


def test_a_silent_source_is_noticed_and_what_is_missing_is_fetched_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Webhooks stop: an alarm within five minutes, shown with what to do next, and a poll that rests is asked for that time. Nothing is
    counted twice, the webhooks that the vendor sends again included; and the alarm goes when events come again."""
    monkeypatch.setattr(polling, "append", lambda _config, records: world.writer.append(list(records)))
    clock = WorldsClock(world)
    records = MailgunRecords(clock)
    with Systems(records) as systems, Hour(world, records, systems.url) as hour:

        async def polled() -> int:
            """A life of the polls that looks where it was asked to."""
            running = polling.polling_of(hour.config, poller.configured(hour.config)[0], clock)
            try:
                if asked := running._asked_for("events"):
                    await running.turn("events")
                    assert running.standings["events"].state == "good", running.standings["events"].error
                return asked
            finally:
                await running.close()

        assert hour.pass_by(90) == [] and not asyncio.run(polled())
        at = hour.minute
        begun = hour.pass_by(5, webhooks=False)
        assert [(one.kind, one.source) for one in begun] == [("silence", "esp")] and hour.shown() == ["silence"]
        assert "Look at the vendor's webhook settings" in begun[0].why
        assert begun[0].since * 60_000_000 == T0 // 60_000_000 * 60_000_000 + at * 60_000_000
        before = hour.counted()
        assert asyncio.run(polled())
        hour.look()
        assert before == at * 20 and hour.counted() == len(hour.ids), "what was missing is there"
        # And the vendor repeats some of it.
        world.writer.append([hour.happens(f"{at}.{number}") for number in range(20)])
        assert hour.pass_by(10) == [] and hour.shown() == [] and hour.counted() == len(hour.ids)
        assert asyncio.run(polled()), "once more when it is over"
        hour.look()
        assert hour.counted() == len(hour.ids) and not asyncio.run(polled())


def test_an_engine_that_was_away_makes_no_alarm(world: World) -> None:
    """Numbers that come late, after an outage of our own, are nobody's silence."""
    records = MailgunRecords(WorldsClock(world))
    with Hour(world, records, "http://127.0.0.1:9") as hour:
        assert hour.pass_by(90) == []
        world.clock.sleep_s(6 * 3600)
        assert hour.pass_by(60) == [] and hour.shown() == []


def test_messages_that_midflight_sent_are_expected_to_be_heard_of(world: World) -> None:
    """Where the vendor reports no sending, our own outbox says what was sent: hardly anything that comes of it is an alarm."""
    with Hour(world, MailgunRecords(WorldsClock(world)), "http://127.0.0.1:9") as hour:
        outbox = Outbox(world.config.folder / "outbox.db")
        Campaigns(outbox, 1.0)
        outbox.db.execute("INSERT INTO campaigns (id, name, state, definition) VALUES (1, 'spring', 'sending', '{}')")

        def sends(minutes: int, webhooks: bool) -> list[Alarm]:
            begun = []
            for _ in range(minutes):
                first = outbox.db.execute("SELECT count(*) FROM messages").get
                outbox.put(
                    1,
                    [Planned(recipient=f"r{first + n}", wave=1, variant=0, propensity=1.0, intent=f"in-{first + n}") for n in range(20)],
                    0,
                )
                outbox.db.execute("UPDATE messages SET state = 2 WHERE state = 0")
                begun += hour.pass_by(1, webhooks=webhooks)
                # Somebody else's mail goes on.
                other = {"recipient": f"q{first}@x.example", "message_id": f"q{first}", "campaign": "other"}
                world.hear(Event(source="esp", event_id=f"q{first}", kind="delivered", occurred_at_us=world.clock.now_us(), **other))
            return begun

        assert sends(30, True) == []
        assert [one.kind for one in sends(6, False)] == ["unanswered"]
    outbox.close()
