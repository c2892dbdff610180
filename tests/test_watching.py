"""Segments and what rules wait for, against a brute-force model: any history, definitions, cuts, shards and restarts tell the same."""

from __future__ import annotations

import os
import random
from collections import Counter, defaultdict

import msgspec
import numpy as np
import pytest

from midflight.events import Event
from midflight.log.record import Record
from midflight.stream import program, watching
from midflight.stream.agents import burst_urls_min, burst_us, too_soon_us
from midflight.stream.conditions import (
    Attribute,
    BadCondition,
    Condition,
    Did,
    Every,
    No,
    Provider,
    Revenue,
    Score,
    Some,
    condition_of,
    words,
)
from midflight.stream.edge import Edge
from midflight.stream.explained import Explaining, person_of
from midflight.stream.hashing import hash_text
from midflight.stream.names import Names
from midflight.stream.program import Watch, compiled, value_of
from midflight.stream.providers import PROVIDERS, providers_of
from midflight.stream.score import TABLE
from midflight.stream.shard import Shard

HISTORIES = int(os.environ.get("MIDFLIGHT_WATCHED", "200"))
START_US = 1_790_000_000_000_000
S = 1_000_000
M = 60 * S
PEOPLE = ["ada@gmail.com", "bob@yahoo.com", "cy@shop.example"]
MACHINE_AGENT, HUMAN_AGENT = "python-requests/2.31", "Mozilla/5.0 (Macintosh) Firefox/130"
Told = tuple[str, str, str, int, int, str]  # what, name, person, at, cause at, campaign of the cause of a firing


# -- the real thing, without files -------------------------------------------------------------------------------------------------


class Host:
    """Shards and edge as the engine runs them."""

    def __init__(self, shards: int) -> None:
        self.names = Names()
        self.edge = Edge({}, [], self.names)
        self.shards = [Shard(7 * 86_400 * S, 40) for _ in range(shards)]
        self.people: list[dict[int, str]] = [{} for _ in range(shards)]
        self.segments: list[str] = []
        self.watches: list[str] = []
        self.program = self.shards[0].program
        self.told: list[Told] = []
        self.filled: list[tuple[str, str, str]] = []

    def define(self, segments: dict[str, Condition], watches: dict[str, Watch], same: set[str]) -> None:
        program = compiled(segments, list(watches.values()), self.names.id)
        of_segments = np.array([self.segments.index(name) if name in self.segments and name in same else -1 for name in segments], np.int64)
        of_watches = np.array([self.watches.index(name) if name in self.watches and name in same else -1 for name in watches], np.int64)
        self.segments, self.watches = list(segments), list(watches)
        for number, shard in enumerate(self.shards):
            self._keep(number, shard.define(program, of_segments, of_watches))
        self.program = program

    def apply(self, records: list[Record]) -> None:
        prepared = self.edge.prepare(records)
        assert not prepared.dead, prepared.dead
        owner = (prepared.batch.rcpt >> np.uint64(40)) % np.uint64(len(self.shards))
        for number, shard in enumerate(self.shards):
            effects = shard.apply(prepared.batch.take(np.flatnonzero(owner == number)), prepared.log_time_us)
            self.people[number].update(zip(effects.new_person.tolist(), prepared.recipients(effects.new_row), strict=True))
            self._keep(number, effects.told)

    def _keep(self, number: int, told: np.ndarray) -> None:
        campaigns = {0: "", **{number: name for name, number in self.names.ids["campaign"].items()}}
        for row in told:
            name = (self.watches if row["what"] == watching.FIRED else self.segments)[row["number"]]
            what = ("enter", "leave", "fire")[row["what"]]
            person = self.people[number][int(row["person"])]
            if row["row"] == -2:
                self.filled.append((what, name, person))
            else:
                campaign = campaigns[int(row["campaign"])] if what == "fire" else ""
                self.told.append((what, name, person, int(row["at"]), int(row["cause_at"]), campaign))

    def crash(self) -> None:
        for number, shard in enumerate(self.shards):
            other = Shard(7 * 86_400 * S, 40)
            other.load(shard.snapshot())
            other.ask(self.program)
            self.shards[number] = other


# -- the model ---------------------------------------------------------------------------------------------------------------------


class Person:
    """Everything that was heard of one person, and what follows from all of it, found out anew each time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.events: list[Event] = []
        self.member: dict[str, bool] = defaultdict(bool)
        self.waits: list[dict] = []

    def campaign(self, message: str) -> str:
        return next((e.campaign for e in self.events if e.message_id == message and e.campaign and about_message(e)), "")

    def actions(self, message: str) -> list[tuple[int, str, bool]]:
        """Return opens and clicks of a message as (time, kind, whether a person did it)."""
        mine = [e for e in self.events if e.message_id == message]
        delivered = min((e.occurred_at_us for e in mine if e.kind == "delivered"), default=None)
        found = [e for e in mine if e.kind in ("opened", "clicked")]
        sure = [e.user_agent == MACHINE_AGENT for e in found]
        machine = list(sure)
        for i, event in enumerate(found):
            if not sure[i] and delivered is not None and abs(event.occurred_at_us - delivered) < too_soon_us:
                machine[i] = True
        for last in found:
            window = [
                i
                for i, e in enumerate(found)
                if e.kind == "clicked" == last.kind and 0 <= last.occurred_at_us - e.occurred_at_us <= burst_us
            ]
            if last.kind == "clicked" and len({found[i].url for i in window}) >= burst_urls_min:
                for i in window:
                    machine[i] = True
        return [(e.occurred_at_us, e.kind, not m) for e, m in zip(found, machine, strict=True)]

    def times(self, kind: str, campaign: str = "", name: str = "", message: str | None = None) -> list[int]:
        """Return when events of a kind happened, as conditions count them."""
        if kind == "converted":
            seen: set[str] = set()
            out = []
            for e in sorted((e for e in self.events if e.kind == kind), key=lambda e: e.occurred_at_us):
                if not e.order_id or e.order_id not in seen:
                    out.append(e.occurred_at_us)
                seen.add(e.order_id)
            return out
        if kind in ("tracked", "paged"):
            return [e.occurred_at_us for e in self.events if e.kind == kind and (not name or e.name == name)]
        out = []
        for one in sorted({e.message_id for e in self.events if about_message(e)}):
            if (message is not None and one != message) or (campaign and self.campaign(one) != campaign):
                continue
            if kind in ("opened", "clicked"):
                out += [at for at, what, human in self.actions(one) if what == kind and human]
            else:
                mine = [e for e in self.events if e.message_id == one and e.kind == kind]
                groups = {e.bounce_class or "soft" for e in mine} if kind == "bounced" else {""}
                out += [min(e.occurred_at_us for e in mine if kind != "bounced" or (e.bounce_class or "soft") == g) for g in groups if mine]
        return out

    def attribute(self, name: str) -> object:
        given = [(e.occurred_at_us, value_of(e.traits[name])[1], e.traits[name]) for e in self.events if name in e.traits]
        return max(given, key=lambda one: one[:2])[2] if given else None

    def score(self, now: int) -> int:
        if self.times("complained") or self.times("unsubscribed"):
            return 0
        best: dict[tuple[str, int], int] = {}
        for kind, n, days, points in TABLE:
            if sum(now < at + days * 86_400 * S for at in self.times(kind)) >= n:
                best[kind, n] = max(best.get((kind, n), 0), points)
        return min(100, sum(best.values()))

    def holds(self, condition: Condition, now: int) -> bool:
        match condition:
            case Every(parts):
                return all(self.holds(part, now) for part in parts)
            case Some(parts):
                return any(self.holds(part, now) for part in parts)
            case No(part):
                return not self.holds(part, now)
            case Did(kind, n, within, campaign, name):
                return sum(not within or now < at + within for at in self.times(kind, campaign, name)) >= n
            case Revenue(sign, amount, within):
                seen: set[str] = set()
                total = 0
                for e in sorted((e for e in self.events if e.kind == "converted"), key=lambda e: e.occurred_at_us):
                    if (not e.order_id or e.order_id not in seen) and (not within or now < e.occurred_at_us + within):
                        total += e.value_micros
                    seen.add(e.order_id)
                return compared(sign, total, amount * 1e6)
            case Score(sign, amount):
                return compared(sign, self.score(now), amount)
            case Attribute(name, sign, value):
                found = self.attribute(name)
                if found is None or sign == "known":
                    return found is not None
                if sign == "is":
                    if isinstance(value, float):
                        return value_of(found)[0] == value
                    return value_of(found)[1] == value_of(value)[1]
                number = value_of(found)[0]
                return number == number and compared(sign, number, value)
            case Provider(name):
                return PROVIDERS[providers_of([self.name])[0]] == name
        raise AssertionError(condition)


def about_message(event: Event) -> bool:
    return event.kind not in ("converted", "tracked", "paged", "identified")


def compared(sign: str, left: float, right: float) -> bool:
    return {"above": left > right, "below": left < right, "at_least": left >= right, "at_most": left <= right}[sign]


class Model:
    """All people, by time: after each event, and at each moment at which time alone may change something."""

    def __init__(self) -> None:
        self.people = {name: Person(name) for name in PEOPLE}
        self.known: set[tuple[str, str]] = set()
        self.segments: dict[str, Condition] = {}
        self.watches: dict[str, Watch] = {}
        self.now = START_US
        self.told: list[Told] = []
        self.filled: list[tuple[str, str, str]] = []

    def define(self, segments: dict[str, Condition], watches: dict[str, Watch], same: set[str]) -> None:
        for person in self.people.values():
            if not person.events:
                continue
            person.member = defaultdict(bool, {n: m for n, m in person.member.items() if n in segments and n in same})
            person.waits = [wait for wait in person.waits if wait["watch"] in watches and wait["watch"] in same]
            for name, condition in segments.items():
                if name not in same or name not in self.segments:
                    person.member[name] = person.holds(condition, self.now)
                    if person.member[name]:
                        self.filled.append(("enter", name, person.name))
        self.segments, self.watches = segments, watches

    def hear(self, event: Event, received: int) -> None:
        self.pass_time(received)
        if (event.event_id, event.recipient) in self.known:
            return
        self.known.add((event.event_id, event.recipient))
        person = self.people[event.recipient]
        person.events.append(event)
        self.look(person, person.campaign(event.message_id) if about_message(event) else "")
        for name, watch in self.watches.items():
            if watch.on == "event" and watch.kind == event.kind:
                self.begin(person, name, watch, event)

    def look(self, person: Person, campaign: str = "") -> None:
        for name, condition in self.segments.items():
            true = person.holds(condition, self.now)
            if true == person.member[name]:
                continue
            person.member[name] = true
            self.told.append(("enter" if true else "leave", name, person.name, self.now, self.now, ""))
            opposite = "leave" if true else "enter"
            person.waits = [w for w in person.waits if (self.watches[w["watch"]].on, self.watches[w["watch"]].segment) != (opposite, name)]
            for rule, watch in self.watches.items():
                if watch.segment == name and watch.on == ("enter" if true else "leave"):
                    if watch.wait_us:
                        person.waits.append({"watch": rule, "due": self.now + watch.wait_us, "at": self.now, "of": campaign})
                    else:
                        self.fire(person, rule, self.now, campaign)

    def fire(self, person: Person, rule: str, cause_at: int, campaign: str) -> None:
        where = self.watches[rule].where
        if where is None or person.holds(where, self.now):
            self.told.append(("fire", rule, person.name, self.now, cause_at, campaign))

    def last_unless(self, person: Person, watch: Watch) -> int:
        if watch.unless is None:
            return -1
        return max(person.times(watch.unless.kind, watch.unless.campaign, watch.unless.name), default=-1)

    def begin(self, person: Person, name: str, watch: Watch, event: Event) -> None:
        at = event.occurred_at_us
        message = event.message_id if about_message(event) else None
        if watch.campaign and (message is None or person.campaign(message) != watch.campaign):
            return
        if watch.name and event.name != watch.name:
            return
        if event.kind in ("opened", "clicked") and (at, event.kind, True) not in person.actions(message):
            return
        if event.kind == "converted" and event.order_id:
            mine = [e for e in person.events if e.kind == "converted" and e.order_id == event.order_id]
            if min(mine, key=lambda e: e.occurred_at_us) is not event:
                return
        if not watch.wait_us:
            delivered = min((e.occurred_at_us for e in person.events if e.message_id == message and e.kind == "delivered"), default=None)
            if event.kind == "clicked" and (delivered is None or at - delivered < watching.settle_within_us):
                person.waits.append({"watch": name, "due": self.now + watching.settle_us, "at": at, "click": message})
            else:
                self.fire(person, name, at, "" if message is None else person.campaign(message))
            return
        after = self.last_unless(person, watch)
        if message is not None:
            mine = [t for t in person.times(event.kind, message=message) if t > after]
            same = any(w["watch"] == name and w.get("message") == message for w in person.waits)
            if mine and min(mine) == at and not same:
                person.waits.append({"watch": name, "due": self.now + watch.wait_us, "at": at, "message": message})
        elif at > after and not any(w["watch"] == name for w in person.waits):
            person.waits.append({"watch": name, "due": self.now + watch.wait_us, "at": at})

    def end(self, person: Person, wait: dict) -> bool:
        """A wait is over: fire, or not. Return False where it goes on."""
        name, at = wait["watch"], wait["at"]
        watch = self.watches[name]
        cause = at
        if "click" in wait:
            if (at, "clicked", True) not in person.actions(wait["click"]):
                return True
        elif watch.on == "event":
            after = self.last_unless(person, watch)
            if "message" in wait:
                mine = [t for t in person.times(watch.kind, message=wait["message"]) if t > after]
                cause = min(mine, default=-1)
            elif after >= at:
                later = [t for t in person.times(watch.kind, "", watch.name) if t > after] if watch.kind in ("tracked", "paged") else []
                cause = min(later, default=-1)
            if cause < 0:
                return True
            if cause + watch.wait_us > self.now:
                wait["due"] = cause + watch.wait_us
                return False
        message = wait.get("click", wait.get("message"))
        self.fire(person, name, cause, wait.get("of", "") if message is None else person.campaign(message))
        return True

    def pass_time(self, to: int) -> None:
        for person in self.people.values():
            start = self.now
            while person.events and (moment := self.moment(person, start, to)) is not None:
                now, self.now = self.now, moment
                self.look(person)
                for wait in [w for w in person.waits if w["due"] <= moment]:
                    if self.end(person, wait):
                        person.waits.remove(wait)
                self.now, start = now, moment
        self.now = max(self.now, to)

    def moment(self, person: Person, after: int, to: int) -> int | None:
        """Return the next time up to `to` at which time alone may change something of a person."""
        windows = {
            part.within_us for c in self.segments.values() for part in parts(c) if isinstance(part, Did | Revenue) and part.within_us
        }
        if any(isinstance(part, Score) for c in self.segments.values() for part in parts(c)):
            windows |= {days * 86_400 * S for _, _, days, _ in TABLE}
        times = {e.occurred_at_us + window for e in person.events for window in windows} | {w["due"] for w in person.waits}
        return min((t for t in times if after < t <= to), default=None)


def parts(condition: Condition):
    yield condition
    for part in getattr(condition, "parts", ()) or ((condition.part,) if isinstance(condition, No) else ()):
        yield from parts(part)


# -- random histories and definitions ------------------------------------------------------------------------------------------------

KINDS = ("sent", "delivered", "opened", "clicked", "clicked", "clicked", "bounced", "unsubscribed", "converted", "tracked", "identified")


def history(rng: random.Random) -> list[tuple[int, list[Event]]]:
    """Return records as (time of receipt, events): some late, some twice, some bursts of scanners, and ticks without events."""
    now = START_US + rng.randrange(60) * S
    events: list[Event] = []
    out: list[tuple[int, list[Event]]] = []
    for number in range(rng.randrange(3, 30)):
        now += rng.choice((0, 1, 300_000, S, 2 * S, 20 * S, M, 5 * M, 30 * M, 6 * 60 * M))
        record = []
        for part in range(rng.choice((0, 1, 1, 1, 1, 2, 4))):
            if events and rng.random() < 0.1:
                record.append(rng.choice(events))
                continue
            event = an_event(rng, f"{number}-{part}", now)
            events.append(event)
            record.append(event)
        out.append((now, record))
    return out


def an_event(rng: random.Random, event_id: str, now: int) -> Event:
    kind = rng.choice(KINDS)
    at = now - rng.choice((0, 0, 1, S // 2, S, 2 * S, 10 * S, M, 3 * M, 15 * M, 60 * M))
    event = Event(source="esp", event_id=event_id, kind=kind, occurred_at_us=at, recipient=rng.choice(PEOPLE))
    if about_message(event):
        event.message_id = rng.choice("mn")
        event.campaign = rng.choice(("", "spring", "spring", "autumn"))
    if kind in ("opened", "clicked"):
        event.url = rng.choice(("", "u1", "u2", "u3", "u4")) if kind == "clicked" else ""
        event.user_agent = rng.choice(("", HUMAN_AGENT, HUMAN_AGENT, MACHINE_AGENT))
    elif kind == "bounced":
        event.bounce_class = rng.choice(("", "hard", "soft", "block"))
    elif kind == "converted":
        event.value_micros = rng.randrange(-20, 100) * S
        event.order_id = rng.choice(("", "", "o1", "o2"))
    elif kind == "tracked":
        event.name = rng.choice(("cart", "video"))
    elif kind == "identified":
        event.traits = {rng.choice(("plan", "age")): rng.choice(("pro", "Pro ", "free", 12, 30.5, "30.5", True))}
    return event


def a_condition(rng: random.Random, depth: int = 0) -> Condition:
    roll = rng.random()
    if depth < 3 and roll < 0.3:
        made = tuple(a_condition(rng, depth + 1) for _ in range(rng.randrange(1, 4)))
        return (Every if rng.random() < 0.5 else Some)(made)
    if depth < 3 and roll < 0.4:
        return No(a_condition(rng, depth + 1))
    within = rng.choice((0, S, 10 * S, M, 10 * M, 60 * M, 24 * 60 * M))
    if roll < 0.75:
        kind = rng.choice(KINDS[:-1])
        campaign = rng.choice(("", "spring", "autumn")) if kind not in ("converted", "tracked") else ""
        return Did(kind, rng.choice((1, 1, 1, 2, 3)), within, campaign, rng.choice(("", "cart")) if kind == "tracked" else "")
    if roll < 0.79:
        return Score(rng.choice(("above", "at_least", "at_most")), float(rng.choice((0, 10, 22, 30, 45, 60))))
    if roll < 0.87:
        return Revenue(rng.choice(("above", "below", "at_least", "at_most")), float(rng.randrange(-10, 120)), within)
    if roll < 0.95:
        sign = rng.choice(("is", "is", "known", "above", "at_most"))
        return Attribute(rng.choice(("plan", "age")), sign, rng.choice(("pro", 12.0, True)) if sign == "is" else 15.0)
    return Provider(rng.choice(("Gmail", "Yahoo")))


def a_watch(rng: random.Random, segments: list[str]) -> Watch:
    where = a_condition(rng, 2) if rng.random() < 0.4 else None
    wait = rng.choice((0, S, M, 30 * M, 5 * 60 * M))
    if segments and rng.random() < 0.3:
        return Watch(on=rng.choice(("enter", "leave")), segment=rng.choice(segments), wait_us=wait, where=where)
    kind = rng.choice(KINDS[:-1])
    unless = Did(rng.choice(("converted", "unsubscribed", "tracked", "clicked"))) if wait and rng.random() < 0.7 else None
    named = kind == "tracked" and rng.random() < 0.5
    campaign = rng.choice(("", "spring")) if kind not in ("converted", "tracked") else ""
    return Watch(on="event", kind=kind, campaign=campaign, name="cart" if named else "", wait_us=wait, unless=unless, where=where)


def definitions(rng: random.Random, tag: str) -> tuple[dict[str, Condition], dict[str, Watch]]:
    segments = {f"s{tag}{n}": a_condition(rng) for n in range(rng.randrange(0, 5))}
    return segments, {f"w{tag}{n}": a_watch(rng, list(segments)) for n in range(rng.randrange(0, 5))}


def play(seed: int, shards: int, cut: bool, crashes: bool) -> tuple[Host, Model]:
    """Play one history through both; definitions change once on the way, and some of them stay."""
    rng, other = random.Random(seed), random.Random(seed * 7 + shards)
    records = history(rng)
    first, second = definitions(rng, "a"), definitions(rng, "b")
    stay = {name for name in (*first[0], *first[1]) if rng.random() < 0.7}
    segments = {name: c for name, c in first[0].items() if name in stay} | second[0]
    watches = {n: w for n, w in first[1].items() if n in stay and (not w.segment or w.segment in segments)} | second[1]
    shuffled = list(segments.items())
    rng.shuffle(shuffled)
    change_at = rng.randrange(len(records))
    host, model = Host(shards), Model()
    begins = rng.choice((0, 0, 0, len(records) // 2))  # nothing is asked before that: the rest is filled from history
    waiting: list[Record] = []

    def flush() -> None:
        if waiting:
            host.apply(list(waiting))
            waiting.clear()
        if crashes and other.random() < 0.3:
            host.crash()

    def define(given: tuple, same: set[str]) -> None:
        flush()
        host.define(*given, same)
        model.define(*given, same)

    for number, (received, events) in enumerate(records):
        if number == begins:
            define(first, set())
        if number == change_at and number > begins:
            define((dict(shuffled), watches), stay)
        waiting.append(Record("events", "esp", received, {}, msgspec.json.encode(events), "", number))
        for event in events:
            model.hear(event, received)
        model.pass_time(received)
        if not cut or other.random() < 0.5:
            flush()
    flush()
    end = records[-1][0] + rng.choice((3, 40, 400)) * 24 * 60 * M
    host.apply([Record("tick", "", end, {}, b"", "", len(records))])
    model.pass_time(end)
    return host, model


@pytest.mark.parametrize("part", range(4))
def test_any_history_tells_what_the_model_tells(part: int) -> None:
    """Entries, exits and firings, each with its time and its cause, whatever the cut into batches, the shards and the restarts."""
    told = Counter()
    for seed in range(part, HISTORIES, 4):
        host, model = play(seed, shards=1 + seed % 3, cut=seed % 2 == 0, crashes=seed % 5 < 2)
        assert sorted(host.told) == sorted(model.told), f"seed {seed}"
        assert sorted(host.filled) == sorted(model.filled), f"seed {seed}"
        told.update(what for what, *_ in host.told)
    assert min(told["enter"], told["leave"], told["fire"]) > HISTORIES // 8, told


def test_the_cut_into_batches_changes_nothing() -> None:
    """One by one, all together, in one shard or three: the same."""
    for seed in range(HISTORIES // 8):
        assert sorted(play(seed, 1, False, False)[0].told) == sorted(play(seed, 3, True, True)[0].told), f"seed {seed}"


def test_what_explains_a_membership_agrees_with_it() -> None:
    """Every membership of everybody is what its explanation says, and so is the score."""
    members = 0
    for seed in range(HISTORIES // 4):
        host, model = play(seed, 1 + seed % 3, True, False)
        for name, person in model.people.items():
            if not person.events:
                continue
            key = hash_text(name)[0]
            found = [(shard, one) for shard in host.shards if (one := person_of(shard, key)) is not None]
            assert len(found) == 1
            ((shard, one),) = found
            explaining = Explaining(one, shard.log_time_us, lambda kind, name, host=host: host.names.ids[kind].get(name, 0))
            said = [explaining.explain(condition).true for condition in model.segments.values()]
            assert said == one.member.tolist() == [person.member[name] for name in model.segments], f"seed {seed}"
            assert explaining.score()[0] == person.score(shard.log_time_us)
            members += sum(said)
    assert members > HISTORIES // 8


@pytest.mark.parametrize("broken", ["settle_us", "holds", "matters"])
def test_a_broken_watch_is_caught(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: a model with one other rule no longer agrees, nor a program by which nobody is looked at when time changes something."""
    if broken == "settle_us":
        monkeypatch.setattr(watching, "settle_us", watching.settle_us + 1)
    elif broken == "matters":
        monkeypatch.setattr(program, "_matters_of", lambda compiler, wholes, timed, rises: [[] for _ in timed])
    else:
        holds = Person.holds
        monkeypatch.setattr(Person, "holds", lambda self, condition, now: holds(self, condition, now + 1))
    differing = 0
    for seed in range(100):
        host, model = play(seed, 1, True, False)
        differing += sorted(host.told) != sorted(model.told)
    assert differing


# -- what people write -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"did": "clicked", "within": "30d"}, "clicked within 30 days"),
        ({"not": {"did": "converted"}}, "never converted"),
        ({"all": [{"did": "opened", "at_least": 2, "within": "1h", "campaign": "spring"}, {"attribute": "plan", "is": "pro"}]},
         "opened at least 2 times in campaign `spring` within 1 hour and `plan` is pro"),
        ({"revenue": {"at_least": 100, "within": "90d"}}, "revenue at least 100 within 90 days"),
        ({"did": "tracked", "name": "added to cart", "at_most": 3}, "not tracked `added to cart` 4 times"),
        ({"attribute": "age", "above": 17, "below": 30}, "`age` above 17 and `age` below 30"),
        ({"provider": "gmail"}, "at Gmail"),
        ({"not": {"score": {"at_least": 50}}}, "score not at least 50"),
        ({"segment": "good"}, "in segment `good`"),
        ({"attribute": "city", "one_of": ["Bern", "Basel"]}, "`city` is Bern or `city` is Basel"),
    ],
)  # fmt: skip
def test_a_condition_is_said_in_words(raw: dict, said: str) -> None:
    """Conditions are said as people say them."""
    assert words(condition_of(raw)) == said


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        ({"did": "cliked"}, "$.did"), ({"dit": "clicked"}, "$"), ([], "$"), ({}, "$"), (None, "$"), ({"all": []}, "$.all"),
        ({"all": [{"did": "opened"}, {"did": "opened", "within": "30"}]}, "$.all[1].within"), ({"did": "opened", "any": [1]}, "$"),
        ({"did": "opened", "at_least": -1}, "$.at_least"), ({"did": "opened", "at_least": True}, "$.at_least"),
        ({"did": "opened", "name": "x"}, "$.name"), ({"did": "converted", "campaign": "x"}, "$.campaign"),
        ({"did": "opened", "within": "0d"}, "$.within"), ({"did": "opened", "within": 30}, "$.within"),
        ({"revenue": {"at_least": float("nan")}}, "$.revenue.at_least"), ({"revenue": {}}, "$.revenue"), ({"revenue": 3}, "$.revenue"),
        ({"attribute": "plan"}, "$"), ({"score": {}}, "$.score"), ({"score": 50}, "$.score"),
        ({"attribute": "", "is": "x"}, "$.attribute"), ({"attribute": "x", "one_of": []}, "$.one_of"),
        ({"attribute": "x", "above": "7"}, "$.above"), ({"provider": "gmial"}, "$.provider"), ({"segment": 3}, "$.segment"),
        ({"did": "opened", "at_least": 0}, "$"), ({"did": "opened", "at_least": 3, "at_most": 2}, "$.at_most"),
        ({"did": "opened", "campaign": 7}, "$.campaign"), ({"did": "opened", "within": "9999w"}, "$.within"),
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused_with_its_place(raw: object, where: str) -> None:
    """The error names the place in the definition."""
    with pytest.raises(BadCondition) as caught:
        condition_of(raw)
    assert caught.value.where == where


def test_a_condition_that_is_too_large_is_refused() -> None:
    """Depth and number of parts are bounded."""
    deep: dict = {"did": "opened"}
    for _ in range(20):
        deep = {"not": deep}
    for raw in (deep, {"all": [{"did": "opened"}] * 500}):
        with pytest.raises(BadCondition):
            condition_of(raw)
