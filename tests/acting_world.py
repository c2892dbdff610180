"""A world for the tests of what becomes of firings: a store that is made anew, people, ways out with bad manners, a clock that jumps, kills
at any point; and a brute-force judge that looks at each effect in the moment in which it happens, with code of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from random import Random
from zoneinfo import ZoneInfo

import msgspec

from midflight.act import actions as actions_module
from midflight.act import intake as intake_module
from midflight.act import kill_switch
from midflight.act.action_table import Row
from midflight.act.actions import Actions, Said
from midflight.act.begun import Begun
from midflight.act.campaigns import Campaigns
from midflight.act.intake import Cursor, Firing
from midflight.act.outbox import Outbox
from midflight.act.rule_orders import Applying, Approve, Decline, LetRule, PutRule, RemoveRule, RuleOrder, SettleActions, Undo, obey
from midflight.act.rulebook import Rule
from midflight.act.stop_list import StopList
from midflight.act.ways.way import Action, Outcome
from midflight.decide.limits import Radius, held_out
from midflight.kit.clock import VirtualClock
from midflight.serve import acting as acting_module
from midflight.serve.acting import Acting, Breakers
from midflight.store.read import TooSlow

MINUTE, HOUR, DAY = 60_000_000, 3_600_000_000, 86_400_000_000
ANY = 1 << 60  # what a bound of 0 allows
START_US = 1_764_000_000_000_000  # 2025-11-24 16:00 UTC
RULES = ("after", "back", "cart")
PEOPLE = ("a@one.example", "b@two.example", "c@gmail.com", "d@four.example")
ZONES = {"a@one.example": "Europe/Berlin", "b@two.example": "Pacific/Chatham", "c@gmail.com": "no such zone"}


class Killed(BaseException):
    """The process dies here."""


class Broken(AssertionError):
    """A promise is broken."""


class WorldClock(VirtualClock):
    """Time that goes by, and a clock that somebody sets: what is monotonic does not follow it."""

    ahead_us = 0

    def now_us(self) -> int:
        return self.at_us + self.ahead_us


class Store:
    """Firings as the engine keeps them: made anew, they have other numbers, come again bit by bit, and new ones follow them."""

    def __init__(self) -> None:
        self.history: list[Firing] = []
        self.table: dict[int, Firing] = {}
        self.epoch, self.made, self.step, self.away = "e0", 0, 1, False

    def fire(self, firing: Firing) -> None:
        self.history.append(firing)
        if self.made >= len(self.history) - 1:
            self.grow(1)

    def grow(self, count: int) -> None:
        for firing in self.history[self.made : self.made + count]:
            number = max(self.table, default=0) + self.step
            self.table[number] = msgspec.structs.replace(firing, number=number)
            self.made += 1

    def make_anew(self, random: Random) -> None:
        self.epoch, self.table, self.made, self.step = f"e{random.random()}", {}, 0, random.choice((1, 1, 2, 3))
        self.grow(random.randint(0, len(self.history)))

    def read(self, cursor: Cursor, count_max: int) -> tuple[list[Firing], Cursor]:
        if self.away:
            raise TooSlow("the store is away")
        if self.is_another(cursor):
            cursor = Cursor(epoch=self.epoch)
        found = [firing for number, firing in self.table.items() if number > cursor.number][: min(count_max, 4)]
        return found, Cursor(epoch=self.epoch, number=found[-1].number, id=str(found[-1].id)) if found else cursor

    def is_another(self, cursor: Cursor) -> bool:
        there = self.table.get(cursor.number)
        return self.epoch != cursor.epoch or bool(cursor.number and (there is None or str(there.id) != cursor.id))


class World:
    """Everything outside of the conductor's process, and the process itself, which dies and starts again."""

    def __init__(
        self, folder: Path, seed: int, *, acting: type[Acting] = Acting, actions: type[Actions] = Actions, store: type[Store] = Store,
        radius: Radius | None = None, outbox: str = ":memory:",
    ) -> None:  # fmt: skip
        self.folder, self.random = folder, Random(seed)
        self.kinds = (acting, actions)
        self.clock = WorldClock(START_US)
        self.store = store()
        self.outbox = Outbox(Path(outbox))
        self.campaigns = Campaigns(self.outbox)
        self.radius = radius or Radius(people_per_hour=2, per_way={"push": 1}, ceiling_per_hour=3, person_per_day=4)
        self.suppressed_now: set[str] = set()
        self.just_left: set[str] = set()
        self.breakers = Breakers()
        self.held = False
        self.approved: set[str] = set()
        self.effects: list[tuple[int, Action, bool]] = []
        self.lost: list[tuple[int, str, str]] = []  # calls that may have done nothing, and of which the process cannot know that
        self.began_us: dict[str, int] = {}
        self.undone: set[str] = set()
        self.versions: dict[str, int] = {}
        self.bad_manners = True
        self.crash_at: dict[str, int] = {}
        self.boot = "boot"
        self.deaths = 0
        self.reached: set[str] = set()
        self.broken: Broken | None = None
        for file in (*folder.glob("hold*"), *folder.glob("actions*")):
            file.unlink()
        self.start()

    # -- the process -----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        acting, actions = self.kinds
        self.alive = True
        self.actions = actions(self.outbox)
        self.stops = StopList()
        self.suppressed_now |= self.just_left
        self.just_left = set()
        self.begun = Begun(self.folder / "actions.begun", self.boot)
        self.acting = acting(
            self.actions, self.store, self, self, stops=self.stops, switch=kill_switch.Switch(self.folder), begun=self.begun,
            clock=self.clock, radius=self.radius, breakers=lambda: self.breakers,
        )  # fmt: skip
        self.acting.start()

    def crash_point(self, name: str) -> None:
        self.reached.add(name)
        if name in self.crash_at:
            self.crash_at[name] -= 1
            if not self.crash_at[name]:
                del self.crash_at[name]
                self.alive = False
                raise Killed(name)

    def watch_crash_points(self) -> Callable[[], None]:
        """Let crash points of the process kill it in this world; what is returned takes that back."""
        modules = (actions_module, intake_module, acting_module)
        before = [module.crash_point for module in modules]
        for module in modules:
            module.crash_point = self.crash_point

        def take_back() -> None:
            for module, one in zip(modules, before, strict=True):
                module.crash_point = one

        return take_back

    async def die(self) -> None:
        """End the process without any clean-up, and start another; a transaction that was open has been rolled back."""
        self.alive = False
        tasks = list(self.acting.under_way.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.begun.close()
        self.crash_at.clear()
        self.deaths += 1
        if machine := self.random.random() < 0.1:
            self.boot = f"boot {self.random.random()}"
        for who, id, way in self.acting.under_way_now():
            # Of what had begun nobody who comes after knows whether it happened; where the machine went down, too, of what had not.
            if machine or (id in self.acting.calls and self.acting.calls[id].begun):
                self.lost.append((self.began_us.get(id, self.clock.now_us()), who, way))
        self.start()

    async def turn(self, count: int = 1) -> None:
        for _ in range(count):
            try:
                await self.acting.step()
            except Killed:
                self.alive = False
            for _ in range(self.random.randint(0, 4)):
                await asyncio.sleep(0)
            if self.broken:
                raise self.broken
            if not self.alive:
                await self.die()

    # -- people and ways out, as the process sees them ---------------------------------------------------------------------------

    def suppressed(self, recipients: Iterable[str]) -> Mapping[str, str]:
        if self.store.away:
            raise TooSlow("the store is away")
        return {key: "complained" for key in recipients if key in self.suppressed_now}

    def attributes(self, recipients: Iterable[str]) -> Mapping[str, Mapping[str, object]]:
        return {key: {"timezone": ZONES[key]} for key in recipients if key in ZONES}

    def said(self, row: Row, rule: Rule, known: Mapping[str, object], now_us: int) -> Said:
        return Said(fields=rule.action.fields)

    async def deliver(self, action: Action, begins: Callable[[int], bool]) -> Outcome:
        manner = self.random.choice(MANNERS) if self.bad_manners else "sent"
        if manner.startswith("slow"):
            for _ in range(self.random.randint(1, 6)):
                await asyncio.sleep(0)
        if manner == "fails before":
            raise RuntimeError("no connection")
        if manner == "refuses before":
            return Outcome(kind="refused", detail="no such thing")
        # This way promises that twice is once, for a time.
        promised = action.way == "push" and HOUR
        if not self.alive or not begins(promised or 0):
            return Outcome(kind="later", detail="it was not to begin")
        self.began_us[action.id] = self.clock.now_us()
        if manner in ("refused", "later"):
            return Outcome(kind=manner, detail="said so", retry_s=self.random.choice((0.0, 5.0, 900.0)))
        if manner != "lost" and not (promised and self._done_of_late(action)):
            self.effect(action)
        if manner == "lost":
            self.lost.append((self.clock.now_us(), action.recipient, action.way))
        if manner in ("lost", "unknown"):
            return Outcome(kind="again" if promised else "unknown", detail="no answer")
        if manner == "fails after":
            raise ValueError("cannot be read")
        if manner == "slow after":
            await asyncio.sleep(0)
        return Outcome(kind="sent", detail="ok")

    def _done_of_late(self, action: Action) -> bool:
        """Tell whether the other end still knows that it did this already."""
        now = self.clock.now_us()
        return any(other.id == action.id and now - at < HOUR for at, other, _ in self.effects)

    def can_undo(self, way: str) -> bool:
        return way == "push"

    async def undo(self, action: Action, made: Outcome) -> Outcome:
        if self.bad_manners and self.random.random() < 0.4:
            return Outcome(kind=self.random.choice(("later", "unknown", "refused")), detail="not now")
        self.undone.add(action.id)
        return Outcome(kind="sent")

    # -- the judge: brute force over all effects, in the moment of each ----------------------------------------------------------

    def effect(self, action: Action) -> None:
        now = self.clock.now_us()
        firing = next(f for f in self.store.history if f.id == action.id.split(":")[0])
        said = msgspec.json.decode(firing.cause)
        limits = self.actions.book.definition(firing.rule, firing.version)["limits"]
        by_rule = [at for at, other, _ in self.effects if other.rule == action.rule]
        mine = [at for at, other, _ in self.effects if other.rule == action.rule and other.recipient == action.recipient]
        self._must(action.id.split(":")[0] not in {other.id.split(":")[0] for _, other, _ in self.effects}, "twice", action)
        for cap in limits.get("per_recipient", []):
            self._must(sum(abs(at - now) < cap["hours"] * HOUR for at in mine) < cap["count"], "per_recipient", action)
        self._must(all(abs(at - now) >= limits.get("cooldown_hours", 0) * HOUR for at in mine), "cooldown", action)
        for name, window in (("per_hour", HOUR), ("per_day", DAY)):
            self._must(not limits.get(name) or sum(abs(at - now) < window for at in by_rule) < limits[name], name, action)
        cause = min(said.get("at_us") or firing.fired_us, firing.fired_us)
        self._must(now <= cause + limits.get("expires_minutes", 1440) * MINUTE, "expired", action)
        self._must(not self.held, "held", action)
        self._must(firing.rule not in said.get("chain", []) and len(said.get("chain", [])) < 5, "chain", action)
        self._must(not held_out(limits.get("seed", 0), firing.rule, firing.recipient, limits.get("holdout", 0)), "holdout", action)
        self._must(self._awake(action.recipient, limits.get("hours", {}), now), "hours", action)
        self._rule_allows(action, firing)
        if action.recipient:
            self._person_allows(action, now)
        self.effects.append((now, action, action.id in self.approved))

    def _must(self, holds: bool, what: str, action: Action) -> None:
        if not holds:
            # What a way out raises is its own affair: it has to be remembered.
            self.broken = Broken(f"{what}: {action}")
            raise self.broken

    def _awake(self, recipient: str, hours: dict, now: int) -> bool:
        zone = ZONES.get(recipient, "")
        zone = zone if zone and " " not in zone else hours.get("zone", "UTC")
        text = f"{datetime.fromtimestamp(now // 1_000_000, ZoneInfo(zone)):%H:%M}"
        first, second = hours.get("quiet_from"), hours.get("quiet_until")
        quiet = first and (first <= text < second if first < second else text >= first or text < second)
        return not quiet and not (hours.get("send_from") and not hours["send_from"] <= text < hours["send_until"])

    def _rule_allows(self, action: Action, firing: Firing) -> None:
        now = self.actions.book.now(firing.rule)
        self._must(now.oldest <= firing.version <= now.version and not now.removed, "version", action)
        self._must(now.autonomy != "observe", "observe", action)
        self._must(now.autonomy != "suggest" or action.id in self.approved, "asks", action)
        self._must(not self.breakers.rules.get(firing.rule) and not self.breakers.ways.get(action.way), "breaker", action)

    def _person_allows(self, action: Action, now: int) -> None:
        gone = self.suppressed_now | self.just_left
        self._must(action.recipient not in gone, "suppressed", action)
        touched = [at for at, other, _ in self.effects if other.recipient == action.recipient]
        self._must(sum(abs(at - now) < DAY for at in touched) < (self.radius.person_per_day or ANY), "person_cap", action)
        if action.id in self.approved:
            return
        others = {other.recipient for at, other, _ in self.effects if other.recipient and abs(at - now) < HOUR}
        way = {other.recipient for at, other, _ in self.effects if other.recipient and other.way == action.way and abs(at - now) < HOUR}
        # Who was touched already is no one more.
        lost = {(who, by) for at, who, by in self.lost if abs(at - now) < HOUR}
        more = action.recipient not in others | {who for who, _ in lost}
        more_way = action.recipient not in way and (action.recipient, action.way) not in lost
        self._must(not more or len(others) < (self.radius.ceiling_per_hour or ANY), "ceiling", action)
        if self.actions.book.now(action.rule).autonomy == "act":
            return
        self._must(not more or len(others) < (self.radius.people_per_hour or ANY), "blast radius", action)
        self._must(not more_way or len(way) < self.radius.per_way.get(action.way, ANY), "blast radius of the way", action)

    # -- what people do ----------------------------------------------------------------------------------------------------------

    def order(self, order: RuleOrder) -> str:
        """Hand in an order, sometimes twice, and return what became of it: nothing, or an error as JSON."""
        to = Applying(self.actions, self.campaigns, self.folder, self.can_undo)
        for _ in range(self.random.choice((1, 1, 2))):
            obey(order, to, self.clock.now_us())
        return self.campaigns.order_end(order.id)

    def put(self, rule: str, limits: dict, *, way: str = "mail", keep: bool = False) -> str:
        version = self.versions.get(rule, 0) + 1
        when = {"kind": "event", "did": "clicked"}
        definition = {"when": when, "action": {"way": way, "fields": {"text": "hello"}}, "limits": limits}
        error = self.order(PutRule(id=self.name(), who="ada", rule=rule, version=version, definition=definition, keep=keep))
        assert not error, error
        self.versions[rule] = version
        return error

    def name(self) -> str:
        return f"o{self.random.getrandbits(64):x}"

    def rows(self) -> list[dict]:
        return self.actions.listed(count_max=1000)

    def ids(self, state: str) -> list[str]:
        return [row["id"] for row in self.rows() if row["state"] == state]

    def approve(self, ids: list[str]) -> None:
        """Approve; an approval that dies on its way is not one."""
        for id in ids:
            if not self.order(Approve(id=self.name(), who="ada", actions=(id,))):
                self.approved.add(id)


MANNERS = (
    "sent", "sent", "slow", "slow", "slow after", "refused", "refuses before", "later", "unknown", "lost", "fails before", "fails after",
)  # fmt: skip


# -- random histories ----------------------------------------------------------------------------------------------------


def random_limits(random: Random) -> dict:
    """Return limits that are tight enough to be met within a short history."""
    limits: dict = {
        "autonomy": random.choice(("act", "act", "act_within_caps", "act_within_caps", "suggest", "observe")),
        "expires_minutes": random.choice((1, 30, 600, 3000)), "priority": random.choice((0, 0, 5)),
    }  # fmt: skip
    if random.random() < 0.5:
        limits["per_recipient"] = [{"count": random.randint(1, 2), "hours": random.choice((0.5, 24, 200))}]
    if random.random() < 0.4:
        limits["cooldown_hours"] = random.choice((0.1, 2, 50))
    if random.random() < 0.3:
        limits["per_hour"] = random.randint(1, 3)
    if random.random() < 0.3:
        limits["per_day"] = random.randint(1, 4)
    if random.random() < 0.3:
        limits["holdout"] = 0.4
    if random.random() < 0.35:
        limits["hours"] = {"quiet_from": "21:00", "quiet_until": "08:00", "zone": random.choice(("UTC", "America/New_York"))}
    elif random.random() < 0.2:
        limits["hours"] = {"send_from": "09:00", "send_until": "17:30"}
    return limits


def fire(world: World) -> None:
    random = world.random
    rule = random.choice(RULES)
    version = max(1, world.versions.get(rule, 1) + random.choice((0, 0, 0, 0, 0, -1, 1)))
    number, now = len(world.store.history), world.clock.now_us()
    log_us = max(now, world.store.history[-1].fired_us if world.store.history else 0)
    cause: dict = {"event": number}
    if random.random() < 0.15:
        cause["chain"] = random.sample(["x1", "x2", "x3", "x4", "x5", *RULES], random.randint(1, 6))
    if random.random() < 0.2:
        cause["at_us"] = log_us - random.choice((1, 45, 90)) * MINUTE
    recipient = random.choice((*PEOPLE, *PEOPLE, ""))
    firing = Firing(
        number=0, id=f"f{number}", rule=rule, version=version, recipient=recipient, fired_us=log_us, cause=msgspec.json.encode(cause)
    )  # fmt: skip
    world.store.fire(firing)


def move_clock(world: World) -> None:
    """Let time go by, or set the clock."""
    moves = (1, 1000, 1_000_000, 20_000_000, 61_000_000, 10 * MINUTE, HOUR, HOUR - 1, 5 * HOUR, DAY, 3 * DAY)
    if world.random.random() < 0.8:
        world.clock.at_us += world.random.choice(moves)
    else:
        world.clock.ahead_us += world.random.choice((-1, -1, 1)) * world.random.choice(moves)


def leave(world: World) -> None:
    who = world.random.choice(PEOPLE)
    if world.random.random() < 0.5:
        world.suppressed_now.add(who)
    else:
        world.just_left.add(who)
        world.stops.stop(who, lambda _: None)


def turn_switch(world: World) -> None:
    if world.held:
        number = kill_switch.read(world.folder).number
        kill_switch.release(world.folder, "ada", "looked at it", world.clock.now_us(), number)
        world.held = False
    else:
        kill_switch.hold(world.folder, "ada", "odd", world.clock.now_us())
        world.held = True


def break_something(world: World) -> None:
    world.breakers = world.random.choice((Breakers(), Breakers(ways={"mail": "it bounces"}), Breakers(rules={"cart": "odd"})))


def ask(world: World) -> None:
    """Do one of the things that people do to rules and actions, at random, also where it makes no sense."""
    random, rule = world.random, world.random.choice(RULES)
    kind = random.choice(("approve", "approve", "approve", "decline", "undo", "undo", "let", "put", "put", "remove", "settle"))
    ids = [row["id"] for row in world.rows()] or ["nothing"]
    if kind == "approve":
        world.approve(world.ids("suggested") or [random.choice(ids)])
    elif kind == "decline":
        world.order(Decline(id=world.name(), who="bob", actions=(random.choice(ids),)))
    elif kind == "undo":
        world.order(Undo(id=world.name(), who="bob", actions=(random.choice(ids), random.choice(ids))))
    elif kind == "let":
        world.order(
            LetRule(id=world.name(), who="ada", rule=rule, autonomy=random.choice(("observe", "suggest", "act_within_caps", "act")))
        )
    elif kind == "put":
        world.put(rule, random_limits(random), way=random.choice(("mail", "push")), keep=random.random() < 0.5)
    elif kind == "remove":
        world.order(RemoveRule(id=world.name(), who="ada", rule=rule))
    else:
        went = {action.id for _, action, _ in world.effects}
        for id in world.ids("unknown"):
            world.order(SettleActions(id=world.name(), who="ada", actions=(id,), went=id in went))


POINTS = (
    "before_firings", "after_firings", "before_action_intent", "after_action_intent", "before_action_begins", "before_action_call",
    "after_action_call", "before_action_outcome", "after_action_outcome", "before_undone",
)  # fmt: skip


async def history(world: World, length: int) -> None:
    """Live through a random history, and then through its end, in which everything is quiet; raise Broken where a promise is."""
    random = world.random
    for rule in RULES:
        world.put(rule, random_limits(random), way=random.choice(("mail", "push")))
    deeds = (fire, fire, fire, fire, move_clock, move_clock, ask, ask, leave, turn_switch, break_something)
    weights = (6, 6, 6, 6, 5, 5, 4, 4, 0.6, 1, 0.7)
    for _ in range(length):
        random.choices(deeds, weights)[0](world)
        if world.acting.calls and random.random() < 0.3:
            # What comes in while calls are under way is what one forgets.
            random.choice((turn_switch, turn_switch, move_clock, ask, leave))(world)
        elif world.held and random.random() < 0.4:
            turn_switch(world)
        if random.random() < 0.08:
            world.store.make_anew(random)
        world.store.grow(random.randint(0, 4))
        world.store.away = random.random() < 0.04
        if random.random() < 0.12:
            world.crash_at[random.choice(POINTS)] = random.randint(1, 2)
        if random.random() < 0.02:
            await world.die()
        await world.turn(random.randint(0, 3))
    await settle_down(world)


async def settle_down(world: World) -> None:
    """Let everything come to its end, and look whether each firing has one, and one that agrees with what happened outside."""
    world.bad_manners, world.store.away, world.breakers = False, False, Breakers()
    world.crash_at.clear()
    if world.held:
        turn_switch(world)
    world.store.grow(len(world.store.history))
    for _ in range(14):
        await world.turn(3)
        await asyncio.sleep(0)
        world.clock.at_us += 2_000_000
    rows = {row["id"].split(":")[0]: row for row in world.rows()}
    for firing in world.store.history:
        if firing.id not in rows:
            raise Broken(f"missed: {firing}")
    went = {action.id.split(":")[0] for _, action, _ in world.effects}
    for id, row in rows.items():
        assert row["state"] != "called", row
        if id in went and row["state"] not in ("sent", "unknown", "undoing", "undone") and not row["maybe_us"]:
            raise Broken(f"it happened, and is said to be {row['state']}: {row}")
        if row["state"] == "undone" and row["id"] not in world.undone:
            raise Broken(f"said to be undone: {row}")
    last_us = max((firing.fired_us for firing in world.store.history), default=0)
    world.clock.at_us += 8 * DAY + max(0, last_us - world.clock.now_us())
    await world.turn(3)
    world.clock.at_us += 2_000_000
    await world.turn(3)
    still = [row for row in world.rows() if row["state"] in ("waiting", "suggested", "approved", "called")]
    if still:
        raise Broken(f"still open: {still[0]}")


def run(folder: Path, seed: int, length: int = 30, **kinds: object) -> World:
    """Live through one history, whose number says what happens in it; a failure names it."""
    world = World(folder, seed, **kinds)
    take_back = world.watch_crash_points()
    try:
        asyncio.run(history(world, length))
    except Broken as error:
        raise Broken(f"history {seed}: {error}") from None
    finally:
        take_back()
        world.begun.close()
        world.outbox.close()
    return world
