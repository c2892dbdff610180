"""Segments and rules in the engine: put into force by records of the log, and the same after any death, snapshot or rebuild."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import apsw
import msgspec
import pytest
from system import T0
from test_watching import M, S, an_event

from midflight.config import config_from
from midflight.decide.definitions import BadDefinition, Definitions, PutSegment
from midflight.decide.gauges import MINUTE_US
from midflight.decide.triggers import REGISTRY, trigger_of
from midflight.evaluate.backtest import Backtest, Change
from midflight.events import Event
from midflight.kit.clock import VirtualClock
from midflight.kit.errors import MidflightError
from midflight.log import Reader, Record, Writer
from midflight.store import asking
from midflight.store.attributes import attributes
from midflight.store.fired import Fired, fired_after
from midflight.store.folding import Folding, cause_json
from midflight.store.host_local import Engine
from midflight.store.moves import Move, latest_moves, moves_after
from midflight.stream.explained import person_of
from midflight.stream.hashing import hash_text
from midflight.stream.program import value_of
from midflight.stream.watching import attributes_of_person_max

CLICKED_NOT_BOUGHT = {"kind": "absence", "after": {"did": "clicked"}, "no": {"did": "converted"}, "within": "30m"}


class World:
    """A log, and engines that read it."""

    def __init__(self, folder: Path, shards: int = 1) -> None:
        self.config = config_from({"data": str(folder), "shards": shards})
        self.clock = VirtualClock(T0)
        self.writer = Writer.open(folder / "log", None, self.clock)
        self.versions: Counter[str] = Counter()

    def hear(self, *events: Event) -> None:
        self.writer.append([Record("events", "esp", 0, {}, msgspec.json.encode(events))])

    def wait(self, minutes: float) -> None:
        self.clock.sleep_s(minutes * 60)
        self.writer.append([Record("tick", "", 0, {}, b"")])

    def order(self, **order: object) -> None:
        self.writer.append([Record("definition", "rules", 0, {}, msgspec.json.encode(order))])

    def segment(self, name: str, where: dict) -> None:
        self.versions[name] += 1
        self.order(do="put_segment", id="1", name=name, version=self.versions[name], where=where, who="ada")

    def rule(self, name: str, when: dict, **more: object) -> None:
        self.versions[name] += 1
        definition = {"when": when, "action": {"way": "slack"}, **more}
        self.order(do="put_rule", id="2", rule=name, version=self.versions[name], definition=definition, who="ada")

    def engine(self, **more: bool) -> Engine:
        return Engine(self.config, Reader(self.config.folder / "log"), **more)

    def fold(self, **more: bool) -> None:
        engine = self.engine(**more)
        engine.catch_up()
        engine.commit()
        engine.close()

    def table(self, what: str) -> list[tuple]:
        """Return what SQL says of the store, with each firing a row of its own."""
        with apsw.Connection(str(self.config.folder / "store.db"), flags=apsw.SQLITE_OPEN_READONLY) as db:
            found = fired_after(db, 0, 1_000_000)
            db.execute(f"CREATE TEMP TABLE firings ({', '.join(Fired._fields)}, UNIQUE (id))")
            db.executemany(f"INSERT OR IGNORE INTO temp.firings VALUES ({', '.join('?' * len(Fired._fields))})", found)
            return db.execute(f"SELECT {what}").fetchall()

    def told(self) -> tuple[list, list, list, list]:
        """Return all that the store says of segments and firings, but for numbers that another cut gives otherwise."""
        firings = self.table("id, rule, version, recipient, fired_us, cause FROM firings ORDER BY id")
        moves = sorted(move[1:] for move in self.moves())
        return firings, moves, self.table("name, version, members FROM segments"), self.table("* FROM flows")

    def moves(self) -> list[Move]:
        with apsw.Connection(str(self.config.folder / "store.db"), flags=apsw.SQLITE_OPEN_READONLY) as db:
            return moves_after(db, 0, 1_000_000)


@pytest.fixture
def world(tmp_path: Path):
    found = World(tmp_path)
    yield found
    found.writer.close()


def did(kind: str, number: int, at_us: int, who: str = "ada@x.example", **more: object) -> Event:
    return Event(
        source="esp", event_id=str(number), kind=kind, occurred_at_us=at_us, recipient=who, message_id="m", campaign="spring", **more
    )


def test_who_clicks_and_does_not_buy_is_told_after_half_an_hour(world: World) -> None:
    """The follow-up's firing: to the second, with its cause, and not for somebody who bought."""
    world.rule("follow up", CLICKED_NOT_BOUGHT)
    clicked_us = world.clock.now_us()
    world.hear(did("clicked", 1, clicked_us), did("clicked", 2, clicked_us, "bob@x.example"))
    world.wait(10)
    world.hear(did("converted", 3, world.clock.now_us(), "bob@x.example", value_micros=5_000_000))
    world.wait(19)
    world.fold()
    assert world.table("rule FROM firings") == []
    world.wait(2)
    world.fold()
    ((rule, version, recipient, fired_us, cause),) = world.table("rule, version, recipient, fired_us, cause FROM firings")
    assert (rule, version, recipient) == ("follow up", 1, "ada@x.example")
    assert fired_us == clicked_us + 30 * M and msgspec.json.decode(cause) == {"at_us": clicked_us, "campaign": "spring"}


def test_a_new_segment_fills_from_history_and_follows(world: World) -> None:
    """Who belongs to a segment when it is made is in it at once and has not come into it; after that each change is told."""
    world.hear(did("opened", 1, T0), did("sent", 2, T0, "bob@x.example"))
    world.segment("readers", {"did": "opened", "within": "1h"})
    world.rule("welcome", {"kind": "segment", "entered": "readers"})
    world.fold()
    assert world.table("name, version, members FROM segments") == [("readers", 1, 1)]
    assert world.moves() == [] == world.table("recipient FROM firings")
    world.hear(did("opened", 3, world.clock.now_us(), "bob@x.example"))
    world.wait(61)
    world.fold()
    assert world.table("name, members FROM segments") == [("readers", 0)]
    moves = [
        Move(1, T0, "readers", "bob@x.example", True), Move(2, T0 + 60 * M, "readers", "ada@x.example", False),
        Move(3, T0 + 60 * M, "readers", "bob@x.example", False),
    ]  # fmt: skip
    assert world.moves() == moves
    assert world.table("recipient FROM firings") == [("bob@x.example",)]


def test_an_edit_begins_anew_and_leaves_the_others_alone(world: World) -> None:
    """A segment's new condition is filled again; another segment's members and another rule's waiting stay."""
    world.segment("readers", {"did": "opened"})
    world.segment("buyers", {"did": "converted"})
    world.rule("follow up", CLICKED_NOT_BOUGHT)
    world.hear(did("clicked", 1, T0), did("opened", 2, T0, "bob@x.example"))
    world.wait(20)
    world.segment("readers", {"did": "clicked"})
    world.rule("other", {"kind": "event", "did": "opened"})
    world.wait(11)
    world.fold()
    assert world.table("name, version, members FROM segments") == [("buyers", 1, 0), ("readers", 2, 1)]
    assert world.table("rule, fired_us FROM firings") == [("follow up", T0 + 30 * M)]


def test_orders_that_cannot_be_done_change_nothing(world: World) -> None:
    """Nonsense, old versions, circles and unknown names are left out, and what stands goes on."""
    world.segment("a", {"did": "opened"})
    world.segment("b", {"segment": "a"})
    for order in (
        dict(do="put_segment", id="3", name="a", version=2, where={"segment": "b"}, who="x"),
        dict(do="put_segment", id="3", name="a", version=1, where={"did": "clicked"}, who="x"),
        dict(do="put_segment", id="3", name="c", version=1, where={"segment": "nobody"}, who="x"),
        dict(do="drop_segment", id="3", name="a", who="x"),
        dict(do="put_rule", id="3", rule="r", version=1, definition={"when": {"kind": "no"}}, who="x"),
        dict(do="put_rule", id="3", rule="r", version=7, definition={"when": {"kind": "event", "did": "opened"}}, who="x"),
        dict(do="remove_rule", id="3", rule="r", who="x"),
        dict(do="dance"),
    ):
        world.order(**order)
    world.writer.append([Record("definition", "rules", 0, {}, b"\xff{")])
    world.hear(did("opened", 1, T0))
    world.fold()
    assert world.table("name, version, members FROM segments") == [("a", 1, 1), ("b", 1, 1)]
    assert world.table("COUNT(*) FROM firings") == [(0,)]


@pytest.mark.parametrize("seed", range(12))
def test_deaths_snapshots_and_rebuilds_tell_the_same(tmp_path: Path, seed: int) -> None:
    """Whatever the engine's lives, the store has the same members, moves and firings, each once, with the same ids."""
    rng = random.Random(seed)
    worlds = [World(tmp_path / name, shards) for name, shards in (("whole", 1), ("cut", 3))]
    engine = worlds[1].engine()
    for number in range(60):
        known: list[str] = [name for name in worlds[0].versions if name.startswith("s")]
        roll = rng.random()
        for world in worlds:
            world.clock.sleep_s(0.5)
        if roll < 0.15:
            name, condition = f"s{rng.randrange(4)}", raw_of(rng)
            for world in worlds:
                world.segment(name, condition)
        elif roll < 0.3:
            name, when = f"r{rng.randrange(4)}", when_of(rng, known)
            for world in worlds:
                world.rule(name, when)
        elif roll < 0.4:
            minutes = rng.choice((0.1, 5, 40, 600))
            for world in worlds:
                world.wait(minutes)
        else:
            event = an_event(rng, str(number), worlds[0].clock.now_us())
            for world in worlds:
                world.hear(event)
        if rng.random() < 0.4:
            engine.step()
        if rng.random() < 0.1:
            engine.commit()
        if rng.random() < 0.1:
            engine.catch_up()
            engine.snapshot()
        if rng.random() < 0.15:
            engine.close()  # without a commit: what was not committed is folded again
            engine = worlds[1].engine()
    engine.close()
    for world in worlds:
        world.wait(3 * 24 * 60)
        world.fold()
    assert worlds[0].told() == worlds[1].told()
    before = worlds[1].told()
    worlds[1].fold(rebuild=True)
    assert worlds[1].told() == before
    assert before[0] or before[1] or before[2]
    with apsw.Connection(str(worlds[1].config.folder / "store.db"), flags=apsw.SQLITE_OPEN_READONLY) as db:
        every, pages = worlds[1].moves(), []
        while page := moves_after(db, pages[-1].number if pages else 0, 7):
            pages += page
        assert pages == every and [move.number for move in every] == list(range(1, len(every) + 1))
        for name in {move.segment for move in every}:
            assert latest_moves(db, name, 5) == [move for move in every if move.segment == name][:-6:-1]
    for world in worlds:
        world.writer.close()


def test_the_engine_says_why_somebody_is_in_a_segment(world: World) -> None:
    """Over its socket, while it runs: what happened, the score with its parts, every membership with its reasons, some members."""
    world.segment("readers", {"all": [{"did": "opened", "within": "1h"}, {"not": {"did": "converted"}}]})
    world.segment("vips", {"attribute": "plan", "is": "pro"})
    world.hear(did("opened", 1, T0), did("clicked", 2, T0), did("opened", 3, T0, "bob@x.example"))
    world.hear(Event(source="esp", event_id="4", kind="identified", recipient="ada@x.example", traits={"plan": "pro", "age": 41}))
    engine, stop = world.engine(), threading.Event()
    running = threading.Thread(target=engine.run, args=(stop.is_set,))
    running.start()
    try:
        deadline = time.monotonic() + 30
        while not (found := ask(asking.person, world, "ada@x.example")) or not found.known or not found.segments[1].member:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert [(one.segment, one.member) for one in found.segments] == [("readers", True), ("vips", True)]
        opened, bought = found.segments[0].why.parts
        assert (opened.true, opened.words, opened.detail) == (True, "opened within 1 hour", "1 times, last just now")
        assert (bought.true, bought.words) == (True, "never converted")
        assert found.score == 45 and sum(points for points, _ in found.reasons) == 45
        assert {one.kind for one in found.happened} == {"opened", "clicked"} and found.campaigns == {1: "spring"}
        assert asking.members(world.config.folder, "readers") == ["ada@x.example", "bob@x.example"]
        assert asking.members(world.config.folder, "nobody knows") == []
        assert not asking.person(world.config.folder, "cy@x.example").known
        for nonsense in (b"\n", b"{}}\n", b'{"person": 3}\n', b"x" * 100_000):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(world.config.folder / asking.SOCKET))
                with contextlib.suppress(OSError):
                    connection.sendall(nonsense)
        assert asking.person(world.config.folder, "bob@x.example").known
    finally:
        stop.set()
        running.join(60)
    with pytest.raises(asking.NoAnswer):
        asking.person(world.config.folder, "ada@x.example")


def test_what_is_said_of_people_is_kept_as_conditions_know_it(world: World) -> None:
    """The store has each attribute as the engine has it: said late, at one time, twice, contradicting, and beyond the maximum."""
    rng = random.Random(4)
    people, events = ["ada@x.example", "bob@x.example"], []
    for number in range(300):
        name = rng.choice(("plan", "plan", "city", "age", f"a{number}"))
        value = rng.choice(("pro", "Pro ", "free", "", 12, 30.5, True, False, ["no", "value"], None))
        event = Event(
            source="esp", event_id=f"i{rng.randrange(280)}", kind="identified", occurred_at_us=T0 + rng.randrange(40) * S,
            recipient=rng.choice(people), traits={name: value, "many": {"no": "value"}},
        )  # fmt: skip
        events += [event] * rng.choice((1, 1, 2))
    events.append(Event(source="esp", event_id="all", kind="identified", recipient=people[0], occurred_at_us=T0, traits={
        f"b{number}": number for number in range(attributes_of_person_max)
    }))  # fmt: skip
    rest = {f"c{number}": number for number in range(90)} | {"plan": "last"}
    for number in range(3):
        event = Event(
            source="esp", event_id=f"rest{number}", kind="identified", recipient=people[0], occurred_at_us=T0 + 99 * S, traits=rest
        )  # fmt: skip
        events.append(event)
        rest = {f"d{number}-{n}": n for n in range(90)}
    for start in range(0, len(events), 50):
        world.hear(*events[start : start + 50])
    engine = world.engine()
    engine.catch_up()
    engine.commit()
    for who in people:
        kept = {name: value_of(value)[1] for name, value in attributes(engine.store.db, [who]).get(who, {}).items()}
        (person,) = [one for shard in engine.shards if (one := person_of(shard, hash_text(who)[0]))]
        names = {number: name for name, number in engine.names.ids["trait"].items()}
        assert kept == {names[number]: text for number, (_, text) in person.attributes.items()}
        assert len(kept) > 10
    assert len(attributes(engine.store.db, people)[people[0]]) == attributes_of_person_max
    engine.close()


def ask(question, world: World, *arguments: str):
    with contextlib.suppress(asking.NoAnswer):
        return question(world.config.folder, *arguments)


@pytest.mark.parametrize("seed", range(8))
def test_a_backtest_fires_what_fired_live(tmp_path: Path, seed: int) -> None:
    """A rule fires in a backtest as it did when it was in force: the same people, times, causes, and names of firings."""
    rng = random.Random(seed)
    world = World(tmp_path, 1 + seed % 3)
    whens = [
        CLICKED_NOT_BOUGHT, {"kind": "event", "did": "opened"}, {"kind": "segment", "entered": "s"}, {"kind": "segment", "left": "s"},
        {"kind": "schedule", "at": "12:00", "segment": "s"}, {"kind": "metric", "metric": "delivered", "above": 1, "over": "2h"},
    ]  # fmt: skip
    rules, from_us = some_days(world, rng, whens)
    live = world.table("id, rule, version, recipient, fired_us, cause FROM firings ORDER BY id")
    with Reader(world.config.folder / "log") as reader:
        replayed = backtest(world, reader, Change(), 0)
        tried = backtest(world, reader, Change(rules=rules), from_us)
    assert len(live) >= 3 and replayed == live == tried
    world.writer.close()


def some_days(world: World, rng: random.Random, whens: list[dict]) -> tuple[dict[str, dict], int]:
    """Let things happen, then put the segment `s` and a rule for each trigger into force and let more happen for some days.

    Return the rules, and the time from which they were in force.
    """
    for number in range(rng.randrange(30)):
        world.hear(an_event(rng, f"a{number}", world.clock.now_us()))
        world.clock.sleep_s(rng.choice((0.1, 30, 900)))
    world.segment("s", raw_of(rng))
    from_us = world.clock.now_us() + 1
    for number, when in enumerate(whens):
        world.clock.sleep_s(0.001)
        world.rule(f"r{number}", when)
    for number in range(60):
        world.hear(an_event(rng, f"b{number}", world.clock.now_us()))
        world.clock.sleep_s(rng.choice((0.1, 30, 900, 7200)))
    world.wait(60)
    world.fold()
    return {f"r{number}": {"when": when, "action": {"way": "slack"}} for number, when in enumerate(whens)}, from_us


def backtest(world: World, reader: Reader, change: Change, from_us: int) -> list[tuple]:
    run = Backtest(world.config, reader, change, from_us, 1 << 62)
    found = {f.id: (f.id, f.rule, f.version, f.recipient, f.fired_us, cause_json(f.cause_us, f.campaign)) for f in run.firings()}
    return [found[id] for id in sorted(found)]


def raw_of(rng: random.Random) -> dict:
    return rng.choice([
        {"did": "opened", "within": "10m"}, {"any": [{"did": "clicked"}, {"attribute": "plan", "is": "pro"}]},
        {"not": {"did": "delivered", "within": "1h"}}, {"revenue": {"above": 20, "within": "1d"}}, {"did": "clicked", "at_least": 2},
    ])  # fmt: skip


def when_of(rng: random.Random, segments: list[str]) -> dict:
    kinds = [
        CLICKED_NOT_BOUGHT, {"kind": "event", "did": "opened"}, {"kind": "event", "did": "clicked", "campaign": "spring"},
        {"kind": "metric", "metric": "delivered", "above": 2, "over": "10m"}, {"kind": "schedule", "at": "12:00"},
        {"kind": "metric", "metric": "click_rate", "below": 0.5, "over": "1d", "at_least": 1, "campaign": "spring"},
    ]  # fmt: skip
    if segments:
        kinds.append({"kind": "schedule", "at": rng.choice(("00:30", "18:00")), "segment": rng.choice(segments)})
        kinds += [{"kind": "segment", "entered": rng.choice(segments)}, {"kind": "segment", "left": rng.choice(segments), "stays": "5m"}]
    return rng.choice(kinds)


def test_a_definition_that_holds_from_a_batch_on_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where a definition does not hold from its own place in the log, the cut into batches shows."""
    world = World(tmp_path)
    world.hear(did("opened", 1, T0))
    world.rule("r", {"kind": "event", "did": "opened"})
    world.hear(did("opened", 2, T0 + 1, "bob@x.example"))
    monkeypatch.setattr(Folding, "parts_of", lambda folding, records: iter([records] if records else []))
    world.fold()
    assert world.table("recipient FROM firings") != [("bob@x.example",)]
    monkeypatch.undo()
    world.fold(rebuild=True)
    assert world.table("recipient FROM firings") == [("bob@x.example",)]
    world.writer.close()


# -- rules about numbers -----------------------------------------------------------------------------------------------------------------


def hear_answers(world: World, bounced: int, of: int, minute: int) -> None:
    """Let so many of so many messages bounce in this minute."""
    for number in range(of):
        kind = {"kind": "bounced", "bounce_class": "hard"} if number < bounced else {"kind": "delivered"}
        now_us = world.clock.now_us()
        world.hear(
            Event(
                source="esp",
                event_id=f"{minute}-{number}",
                occurred_at_us=now_us,
                recipient=f"p{number}@gmail.com",
                message_id=f"{minute}-{number}",
                **kind,
            )
        )


def test_a_rate_above_a_level_fires_once_and_again_after_it_was_back(world: World) -> None:
    """Too few messages fire nothing, a rate that stays high fires once, and one that was down in between fires anew."""
    world.rule("bounces", {"kind": "metric", "metric": "bounce_rate", "above": 0.1, "over": "2m", "at_least": 20, "provider": "Gmail"})
    world.rule("elsewhere", {"kind": "metric", "metric": "bounce_rate", "above": 0.1, "over": "2m", "at_least": 20, "provider": "Yahoo"})
    begins = -(-world.clock.now_us() // MINUTE_US)  # the minute from which on each is a whole one
    world.clock.sleep_s(begins * 60 - world.clock.now_us() / 1e6)
    # Too few, few bounces, many, still many, none, nobody answers at all, many.
    for minute, (bounced, of) in enumerate(((10, 10), (0, 100), (30, 100), (30, 100), (0, 100), (0, 100), (0, 0), (0, 0), (0, 0), (9, 30))):
        hear_answers(world, bounced, of, minute)
        world.wait(1)
    world.fold()
    found = world.table("rule, recipient, fired_us FROM firings ORDER BY number")
    assert found == [("bounces", "", (begins + minute) * MINUTE_US) for minute in (3, 10)]


def test_an_empty_denominator_is_no_rate(world: World) -> None:
    """Opens without any delivery are no open rate of 0 or of infinity."""
    world.rule("low", {"kind": "metric", "metric": "open_rate", "below": 0.5, "at_least": 1})
    for number in range(30):
        world.hear(did("opened", number, world.clock.now_us()))
        world.wait(1)
    world.fold()
    assert world.table("* FROM firings") == []


def test_silence_is_believed_once_the_time_has_gone_by(world: World) -> None:
    """A rule that waits for nothing does not fire because it has just begun."""
    world.hear(did("sent", 0, T0))
    world.rule("silent", {"kind": "metric", "metric": "sent", "below": 1, "over": "30m"})
    for _ in range(60):
        world.wait(1)
    world.fold()
    ((fired_us,),) = world.table("fired_us FROM firings")
    assert 30 * MINUTE_US <= fired_us - T0 <= 32 * MINUTE_US


@pytest.mark.parametrize(("is_", "rates", "fires"), [
    ("higher", [0.02] * 20 + [0.2] * 5, True), ("higher", [0.02] * 25, False), ("lower", [0.3] * 20 + [0.02] * 5, True),
    ("lower", [0.02] * 20 + [0.2] * 5, False),
])  # fmt: skip
def test_what_is_unusual_is_told_by_the_past(world: World, is_: str, rates: list[float], fires: bool) -> None:
    """A jump in the asked direction fires, steadiness and the other direction do not."""
    world.rule("odd", {"kind": "unusual", "metric": "bounce_rate", "is": is_, "over": "3m"})
    for minute, rate in enumerate(rates):
        hear_answers(world, round(100 * rate), 100, minute)
        world.wait(1)
    world.fold()
    assert bool(world.table("* FROM firings")) == fires


def test_everybody_in_a_segment_is_meant_when_it_is_time(world: World) -> None:
    """Who has left by time alone is no longer meant, although nothing has been heard of him."""
    world.segment("openers", {"did": "opened", "within": "1h"})
    day_us = 24 * 60 * MINUTE_US
    noon_us = (T0 // day_us + 1) * day_us + day_us // 2
    world.rule("noon", {"kind": "schedule", "at": "12:00", "segment": "openers"})
    world.rule("nobody", {"kind": "schedule", "at": "12:00", "days": ["sat"]})
    for who, before_minutes in (("gone", 61), ("ada", 59), ("bob", 5), ("late", -1)):
        world.clock.sleep_s((noon_us - before_minutes * MINUTE_US - world.clock.now_us()) / 1e6)
        world.hear(did("opened", before_minutes, world.clock.now_us(), f"{who}@x.example"))
    world.wait(2 * 24 * 60)
    world.fold()
    found = world.table("rule, recipient, fired_us FROM firings WHERE rule = 'noon' ORDER BY number")
    assert found[:2] == [("noon", "ada@x.example", noon_us), ("noon", "bob@x.example", noon_us)]
    # Two days of silence are made up for once.
    assert len(found) == 2


@pytest.mark.parametrize(("when", "after", "until", "due"), [
    ({"at": "09:00", "zone": "Europe/Berlin"}, "2026-11-01T00:00", "2026-11-01T23:00", "2026-11-01T08:00"),
    ({"at": "09:00", "zone": "Europe/Berlin"}, "2026-11-01T08:00", "2026-11-01T23:00", ""),
    ({"at": "02:30", "zone": "Europe/Berlin"}, "2026-03-29T00:00", "2026-03-29T12:00", "2026-03-29T01:30"),  # does not exist
    ({"at": "02:30", "zone": "Europe/Berlin"}, "2026-10-25T00:45", "2026-10-25T12:00", ""),  # comes twice, and was at 00:30
    ({"at": "12:00", "days": ["mon"]}, "2026-11-01T00:00", "2026-11-20T00:00", "2026-11-16T12:00"),
    ({"at": "12:00", "day": 31}, "2026-02-01T00:00", "2026-03-15T00:00", "2026-02-28T12:00"),
    ({"at": "12:00", "day": 30}, "2026-01-31T00:00", "2026-02-27T00:00", ""),
    ({"once": "2026-12-01T09:00", "zone": "America/New_York"}, "2026-11-01T00:00", "2027-01-01T00:00", "2026-12-01T14:00"),
    ({"once": "2026-12-01T09:00"}, "2026-12-01T09:00", "2027-01-01T00:00", ""),
])  # fmt: skip
def test_a_schedule_goes_by_the_clocks_on_the_wall(when: dict, after: str, until: str, due: str) -> None:
    """Time zones, hours that do not exist or come twice, days of the week and of the month, once."""

    def us(text: str) -> int:
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1e6) if text else 0

    assert trigger_of({"kind": "schedule", **when}).due_us(us(after), us(until)) == us(due)


@pytest.mark.parametrize("when", [
    {"kind": "metric", "metric": "bounce_rate"}, {"kind": "metric", "metric": "bounce_rate", "above": 0.1, "below": 0.1},
    {"kind": "metric", "metric": "bounce_rate", "above": 5}, {"kind": "metric", "metric": "time_to_click", "above": 5},
    {"kind": "metric", "metric": "nonsense", "above": 5}, {"kind": "metric", "metric": "sent", "above": -1},
    {"kind": "metric", "metric": "sent", "above": 1, "over": "90s"}, {"kind": "metric", "metric": "sent", "above": 1, "over": "8d"},
    {"kind": "metric", "metric": "sent", "above": 1, "provider": "Gmial"}, {"kind": "metric", "metric": "sent", "above": 1, "at_least": 0},
    {"kind": "unusual", "metric": "sent"}, {"kind": "unusual", "metric": "open_rate", "is": "odd"}, {"kind": "schedule"},
    {"kind": "schedule", "at": "24:00"}, {"kind": "schedule", "at": "09:00", "once": "2026-12-01T09:00"},
    {"kind": "schedule", "at": "09:00", "zone": "Mars/Base"}, {"kind": "schedule", "at": "09:00", "day": 32},
    {"kind": "schedule", "at": "09:00", "days": ["mon"], "day": 3}, {"kind": "schedule", "once": "tomorrow"},
    {"kind": "schedule", "once": "2026-12-01T09:00+01:00"}, {"kind": "schedule", "once": "2026-12-01T09:00", "day": 1},
])  # fmt: skip
def test_a_rule_about_numbers_that_cannot_be_understood_is_refused(when: dict) -> None:
    """The error names the place that is wrong."""
    with pytest.raises(MidflightError) as caught:
        trigger_of(when)
    assert caught.value.where.startswith("$.when")


def test_numbers_that_are_looked_at_by_the_batch_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where minutes do not cut batches, a level that was crossed within one is not seen."""
    world = World(tmp_path)
    world.rule("r", {"kind": "metric", "metric": "delivered", "above": 5, "over": "1m"})
    world.wait(1)
    hear_answers(world, 0, 10, 0)
    for _ in range(5):
        world.wait(1)
    monkeypatch.setattr(Folding, "parts_of", lambda folding, records: iter([records[:1], records[1:]] if records else []))
    world.fold()
    assert len(world.table("* FROM firings")) == 0
    monkeypatch.undo()
    world.fold(rebuild=True)
    assert len(world.table("* FROM firings")) == 1
    world.writer.close()


# -- definitions and triggers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REGISTRY.names())
def test_every_trigger_is_what_its_examples_say(kind: str) -> None:
    """Each trigger's examples are read, and said in the words that stand beside them."""
    trigger = REGISTRY.get(kind)
    assert trigger.label and trigger.doc and trigger.EXAMPLES
    for when, said in trigger.EXAMPLES:
        assert when["kind"] == kind and trigger_of(when).words() == said
    with pytest.raises(MidflightError):
        trigger_of({**trigger.EXAMPLES[0][0], "nonsense": 1})


def test_what_is_put_back_is_what_was_kept() -> None:
    """Definitions come back from their snapshot as they were."""
    definitions = Definitions()
    definitions.put_segment("a", 1, {"did": "opened"})
    definitions.put_segment("b", 1, {"all": [{"segment": "a"}, {"did": "clicked"}]})
    definitions.put_rule("r", 1, {"when": {"kind": "segment", "entered": "b"}, "where": {"segment": "a"}, "action": {"way": "slack"}})
    other = Definitions()
    other.load(msgspec.json.decode(msgspec.json.encode(definitions.snapshot())))
    assert other.keys() == definitions.keys() and other.needing("a") == ["segment `b`", "rule `r`"]
    with pytest.raises(BadDefinition, match="is at version 1"):
        other.put_segment("a", 3, {"did": "opened"})
    other.drop_rule("r")
    other.drop_segment("b")
    with pytest.raises(BadDefinition, match="expected version 2"):
        other.put_segment("b", 1, {"did": "opened"})  # no version comes twice


@pytest.mark.parametrize("name", ["", " a", "a\n", "x" * 101, "\x1b[31m"])
def test_a_name_that_cannot_be_shown_is_refused(name: str) -> None:
    """Names are printable, and neither empty nor too long."""
    with pytest.raises(BadDefinition):
        Definitions().put_segment(name, 1, {"did": "opened"})


def test_an_order_says_what_it_is() -> None:
    """Orders are told apart by what they do."""
    order = PutSegment(id="1", name="a", version=1, where={"did": "opened"}, who="ada")
    definitions = Definitions()
    assert definitions.obey(msgspec.json.encode(order)) and list(definitions.segments) == ["a"]
    assert not definitions.obey(msgspec.json.encode(order))
