"""What becomes of firings: at most one effect each, no limit broken when a call begins, whatever is killed, made anew, edited or held."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import apsw
import msgspec
import numpy as np
import pytest
from acting_world import DAY, HOUR, MINUTE, PEOPLE, START_US, Broken, World, run, turn_switch
from acting_world import Store as WorldStore

from midflight.act import kill_switch
from midflight.act.actions import Actions, retry_s
from midflight.act.intake import Cursor, Firing
from midflight.act.outbox import Outbox
from midflight.act.rule_orders import Approve, Decline, LetRule, PutRule, Release, RemoveRule, Undo, order_of, record_of
from midflight.act.rule_orders import Hold as HoldOrder
from midflight.act.touches import ALL, Touches
from midflight.act.ways.way import Outcome
from midflight.config import Config
from midflight.decide.limits import REASONS, Limits, Radius, held_out
from midflight.kit.clock import Clock
from midflight.serve.acting import Acting, Breakers
from midflight.store import fired
from midflight.store.firings import Firings
from midflight.store.folding import firing_id
from midflight.store.read import Store
from midflight.store.schema import SCHEMA, VERSION

histories = 120
WHEN = {"kind": "event", "did": "clicked"}
histories_long = 4_000


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder in memory: thousands of histories write the switch and the list of what has begun."""
    place = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Ways out fail by the thousand here, and each failure is logged with its traceback."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# -- random histories ----------------------------------------------------------------------------------------------------


def test_random_histories_break_no_promise(folder: Path) -> None:
    """Over random histories each firing has at most one effect and an end, and no effect is against a limit when it happens."""
    effects = deaths = 0
    reached: set[str] = set()
    for seed in range(histories):
        world = run(folder, seed)
        effects, deaths, reached = effects + len(world.effects), deaths + world.deaths, reached | world.reached
    # Histories in which nothing happens would show nothing.
    assert effects > 2 * histories and deaths > histories
    assert {"before_action_begins", "before_action_call", "after_action_call", "after_action_intent", "before_recovered"} <= reached


@pytest.mark.long
def test_many_random_histories_break_no_promise(folder: Path) -> None:
    """The same over thousands of histories, and longer ones."""
    for seed in range(histories, histories_long):
        run(folder, seed, 30 + seed % 60)


class ChecksOnlyWhenDeciding(Acting):
    """Broken: what was decided is done, whatever is true by then."""

    def _judged_again(self, call, suppressed, attributes, promise_us) -> bool:
        self.begun.note([call.row.id])
        return True


class LooksAtSwitchInTurnsAlone(Acting):
    """Broken: between two turns calls begin that are held."""

    def _begins(self, call, promise_us) -> bool:
        look, self.look_at_switch = self.look_at_switch, lambda: self.hold
        try:
            return super()._begins(call, promise_us)
        finally:
            self.look_at_switch = look


class TriesAgainWhatHadBegun(Actions):
    """Broken: after a death every open call goes again."""

    def recover(self, now_us: int, begun: set[str] | None) -> tuple[int, int]:
        return super().recover(now_us, set())


class KnowsFiringsByNumber(Actions):
    """Broken: no dedup over a store that was made anew."""

    def take(self, firings: Iterable[Firing], cursor: Cursor, now_us: int):
        return super().take([msgspec.structs.replace(f, id=f"{f.id}:{cursor.epoch}") for f in firings], cursor, now_us)


class ReadOnByNumber(WorldStore):
    """Broken: a store that was made anew is read on from the old number."""

    def is_another(self, cursor: Cursor) -> bool:
        return False


class CountsWhatIsBehind(Touches):
    """Broken: counts look only back, so that a clock that ran ahead is forgotten."""

    def times_us(self, recipient: str, rule: str, now_us: int, window_us: int) -> tuple[int, ...]:
        return tuple(at for at in super().times_us(recipient, rule, now_us, window_us) if at <= now_us)


class LooksBackOnly(Actions):
    def __init__(self, outbox: Outbox) -> None:
        super().__init__(outbox)
        self.touches = CountsWhatIsBehind(self.db)


class NotesWhenItHasEnded(Actions):
    """Broken: a touch is noted once its call has ended, so that two at the same time do not see each other."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__(outbox)
        self.touches.note = lambda *_: None

    def settle(self, outcomes: Iterable[tuple[str, Outcome]], now_us: int) -> int:
        for id, outcome in outcomes:
            row = self.row(id)
            if outcome.kind in ("sent", "unknown") and row:
                Touches.note(self.touches, id, row.rule, row.recipient, self.way(id), row.touched_us)
        return super().settle(outcomes, now_us)


class SaysUndoneAtOnce(Actions):
    """Broken: "undone" is said when it is asked for."""

    def undo(self, id: str, can: bool, now_us: int) -> None:
        super().undo(id, can, now_us)
        self.db.execute("UPDATE actions SET state = 12 WHERE id = ? AND state = 4", (id,))


class BelievesForEver(Acting):
    """Broken: a call is made again long after the other end has forgotten that it did it."""

    def _judged(self, row, *rest):
        return super()._judged(msgspec.structs.replace(row, maybe_us=0), *rest)


CONTROLS = {
    "checks only when deciding": ({"acting": ChecksOnlyWhenDeciding}, None),
    "tries again what had begun": ({"actions": TriesAgainWhatHadBegun}, "twice|it happened|cooldown|per_"),
    "knows firings by number": ({"actions": KnowsFiringsByNumber}, "twice"),
    "reads on by number": ({"store": ReadOnByNumber}, "missed"),
    "looks back only": ({"actions": LooksBackOnly}, None),
    "notes when it has ended": ({"actions": NotesWhenItHasEnded}, None),
    "says undone at once": ({"actions": SaysUndoneAtOnce}, "undone"),
    "believes a promise for ever": ({"acting": BelievesForEver}, "twice"),
}
SELDOM = ("looks back only", "believes a promise for ever")


@pytest.mark.parametrize("name", [name for name in CONTROLS if name not in SELDOM])
def test_a_broken_build_is_caught(name: str, folder: Path) -> None:
    """Each build that breaks one promise is found out by the same histories."""
    check_caught(name, folder)


@pytest.mark.long
@pytest.mark.parametrize("name", SELDOM)
def test_a_broken_build_that_shows_seldom_is_caught(name: str, folder: Path) -> None:
    """The same for what only few histories show."""
    check_caught(name, folder)


def check_caught(name: str, folder: Path) -> None:
    kinds, said = CONTROLS[name]
    with pytest.raises(Broken, match=said):
        for seed in range(1_000):
            run(folder, seed, **kinds)


# -- single promises -----------------------------------------------------------------------------------------------------


class Desk:
    """A quiet world: nothing happens that a test does not do."""

    def __init__(self, folder: Path, **kinds: object) -> None:
        self.world = World(folder, 1, radius=kinds.pop("radius", Radius(people_per_hour=0, ceiling_per_hour=0, person_per_day=0)), **kinds)
        self.world.bad_manners = False

    def put(self, rule: str = "cart", *, way: str = "mail", keep: bool = False, **limits: object) -> None:
        self.world.put(rule, {"autonomy": "act", "expires_minutes": 600, **limits}, way=way, keep=keep)

    def fire(self, id: str, recipient: str = PEOPLE[0], *, rule: str = "cart", version: int = 0, **cause: object) -> None:
        version = version or self.world.versions.get(rule, 1)
        self.world.store.fire(
            Firing(
                number=0, id=id, rule=rule, version=version, recipient=recipient, fired_us=self.world.clock.now_us(),
                cause=msgspec.json.encode(cause),
            )
        )  # fmt: skip

    def run(self, turns: int = 3, seconds: float = 1.1) -> None:
        async def turns_() -> None:
            for _ in range(turns):
                await self.world.turn()
                for _ in range(8):
                    await asyncio.sleep(0)
                self.world.clock.at_us += int(seconds * 1e6)

        asyncio.run(turns_())

    def went(self) -> list[str]:
        return [action.id for _, action, _ in self.world.effects]

    def state(self, id: str) -> tuple[str, str]:
        row = next(row for row in self.world.rows() if row["id"] == id)
        return row["state"], row["reason"]

    def order(self, order: object) -> str:
        return self.world.order(order)

    def name(self) -> str:
        return self.world.name()

    def close(self) -> None:
        self.world.begun.close()
        self.world.outbox.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.close()


def test_a_firing_is_acted_on_once(desk: Desk) -> None:
    """It goes out with its rule's way and fields and the chain behind it, also where the store is made anew and says it again."""
    desk.put()
    desk.fire("f1", chain=["other"])
    desk.run()
    desk.world.store.make_anew(desk.world.random)
    desk.world.store.grow(9)
    desk.fire("f2", PEOPLE[1])
    desk.run()
    assert desk.went() == ["f1", "f2"] and desk.state("f1") == ("sent", "within_limits")
    action = desk.world.effects[0][1]
    assert (action.way, action.fields, action.chain) == ("mail", {"text": "hello"}, ("other", "cart"))
    assert action.expires_us == START_US + 600 * MINUTE


def test_when_capped_the_highest_priority_goes_first_then_the_oldest(desk: Desk) -> None:
    """Of what waits at the same time rules of higher priority go first; in a rule who waits longest, of the same age by id."""
    desk.put("low")
    desk.put("high", priority=5, per_hour=2)
    desk.fire("l1", PEOPLE[3], rule="low")
    for id, who in (("h3", PEOPLE[0]), ("h1", PEOPLE[1]), ("h2", PEOPLE[2])):
        desk.fire(id, who, rule="high")
    desk.run(4)
    assert desk.went() == ["h1", "h2", "l1"] and desk.state("h3") == ("waiting", "rule_cap")
    desk.fire("h0", PEOPLE[3], rule="high")
    desk.run(2)
    desk.world.clock.at_us += HOUR + MINUTE
    desk.run(4)
    assert desk.went() == ["h1", "h2", "l1", "h3", "h0"]


def test_a_rule_that_fires_for_a_whole_list_delays_no_other(desk: Desk) -> None:
    """Rules of the same priority take turns: one firing goes with the next calls, however many of another rule are older."""
    desk.put("crowd")
    desk.put("one")
    desk.put("urgent", priority=5)
    now_us = desk.world.clock.now_us()
    crowd = [("crowd", f"c{n:03}") for n in range(300)]
    found = [*crowd, ("one", "alone"), ("urgent", "first")]
    desk.world.actions.take(
        [
            Firing(number=n, id=id, rule=rule, version=1, recipient=f"p{n}@x.example", fired_us=now_us + n, cause=b"{}")
            for n, (rule, id) in enumerate(found, 1)
        ],
        Cursor(number=len(found)), now_us,
    )  # fmt: skip
    assert [row.id for row in desk.world.actions.ready(5)] == ["first", "c000", "alone", "c001", "c002"]


def test_a_call_under_way_lets_no_other_through_a_cap(tmp_path: Path) -> None:
    """Who is about to be reached by a rule without caps counts as reached for others only once that is sure: it may still be refused."""
    desk = Desk(tmp_path, radius=Radius(people_per_hour=1, ceiling_per_hour=0, person_per_day=0))
    deliver = desk.world.deliver

    async def slow(action, begins) -> Outcome:
        if action.rule != "free":
            return await deliver(action, begins)
        assert begins(0)
        for _ in range(30):
            await asyncio.sleep(0)
        return Outcome(kind="refused", detail="no such device")

    desk.world.deliver = slow
    desk.put("free")
    desk.put("capped", autonomy="act_within_caps")
    desk.fire("first", PEOPLE[0], rule="capped")
    desk.run(2)
    desk.fire("free", PEOPLE[1], rule="free")
    desk.fire("second", PEOPLE[1], rule="capped")
    desk.run(8)
    assert desk.went() == ["first"] and desk.state("second") == ("suggested", "blast_radius")
    assert desk.state("free")[0] == "refused"
    desk.close()


def test_who_is_held_out_stays_held_out(desk: Desk) -> None:
    """A rule never acts on the held-out, who are the same after edits and more with a larger share; both sides are on record."""
    people = [f"p{n}@x.example" for n in range(200)]
    desk.put(holdout=0.2)
    for n, who in enumerate(people):
        desk.fire(f"a{n}", who)
    desk.run(60, 0.1)
    limits = Limits(holdout=0.2)
    first = {who for who, out, _ in desk.world.actions.sides("cart", limits) if out}
    assert 20 < len(first) < 65 and first == {who for who in people if held_out(0, "cart", who, 0.2)}
    assert len(desk.went()) == 200 - len(first) and len(list(desk.world.actions.sides("cart", limits))) == 200
    desk.put(holdout=0.2, priority=3)
    for n, who in enumerate(people):
        desk.fire(f"b{n}", who)
    desk.run(60, 0.1)
    assert {row["recipient"] for row in desk.world.rows() if row["state"] == "held_out"} == first
    assert first < {who for who in people if held_out(0, "cart", who, 0.5)}
    assert first != {who for who in people if held_out(1, "cart", who, 0.2)} != {who for who in people if held_out(0, "other", who, 0.2)}


def test_a_rule_that_observes_does_nothing_and_says_what_it_would(desk: Desk) -> None:
    """In shadow a rule touches nobody, and its own limits count what it would have done."""
    desk.put(autonomy="observe", per_recipient=[{"count": 1, "hours": 24}])
    desk.fire("f1")
    desk.run()
    desk.fire("f2")
    desk.run()
    assert not desk.went()
    words = {row["id"]: (row["state"], row["words"].split(":")[0]) for row in desk.world.rows()}
    assert words == {"f1": ("observed", "would act"), "f2": ("observed", "would drop")}
    # What it would have done keeps nothing from being done later.
    assert not desk.order(LetRule(id=desk.name(), who="ada", rule="cart", autonomy="act"))
    desk.fire("f3")
    desk.run()
    assert desk.went() == ["f3"]


def test_a_suggestion_waits_for_a_person_and_keeps_its_limits(desk: Desk) -> None:
    """What only suggests goes once somebody has approved it, within its limits; what was declined never goes; who and why are kept."""
    desk.put(autonomy="suggest", per_recipient=[{"count": 1, "hours": 24}])
    for id, who in (("f1", PEOPLE[0]), ("f2", PEOPLE[0]), ("f3", PEOPLE[1])):
        desk.fire(id, who)
    desk.run()
    assert not desk.went() and all(desk.state(id) == ("suggested", "asks") for id in ("f1", "f2", "f3"))
    desk.world.approved.update(("f1", "f2"))
    assert not desk.order(Approve(id=desk.name(), who="ada", why="looks right", actions=("f1", "f2")))
    assert not desk.order(Decline(id=desk.name(), who="bob", actions=("f3",)))
    desk.run()
    assert desk.went() == ["f1"] and desk.state("f2") == ("dropped", "per_recipient") and desk.state("f3") == ("dropped", "declined")
    refused = desk.order(Approve(id=desk.name(), who="ada", actions=("f3",)))
    assert "The action is dropped" in refused and desk.went() == ["f1"]
    lines = [(line["who"], line["kind"], line["why"]) for line in desk.world.actions.ledger()]
    assert ("ada", "approve", "looks right") in lines and ("bob", "decline", "") in lines


def test_all_that_somebody_saw_is_approved_and_nothing_else(desk: Desk) -> None:
    """Approving all suggestions of a rule approves those up to the number that the page had."""
    desk.put(autonomy="suggest")
    desk.fire("f1")
    desk.run()
    seen = max(row["number"] for row in desk.world.rows())
    desk.fire("f2")
    desk.run()
    desk.world.approved.add("f1")
    assert not desk.order(Approve(id=desk.name(), who="ada", rule="cart", up_to=seen))
    desk.run()
    assert desk.went() == ["f1"] and desk.state("f2") == ("suggested", "asks")


def test_beyond_its_radius_automation_asks(tmp_path: Path) -> None:
    """What acts within caps asks from the cap on, what may act from the ceiling on; approved it goes; who was touched is not new."""
    desk = Desk(tmp_path, radius=Radius(people_per_hour=2, ceiling_per_hour=3, person_per_day=0))
    desk.put("within", autonomy="act_within_caps")
    desk.put("beyond")
    for n in range(3):
        desk.fire(f"w{n}", PEOPLE[n], rule="within")
        desk.run(2)
    assert desk.went() == ["w0", "w1"] and desk.state("w2") == ("suggested", "blast_radius")
    desk.fire("again", PEOPLE[0], rule="within")
    desk.fire("b3", PEOPLE[2], rule="beyond")
    desk.run(2)
    desk.fire("b4", PEOPLE[3], rule="beyond")
    desk.run(2)
    assert desk.went() == ["w0", "w1", "again", "b3"] and desk.state("b4") == ("suggested", "blast_radius")
    desk.world.approve(["b4"])
    desk.run(2)
    assert desk.went()[-1] == "b4"
    desk.close()


def test_more_people_than_can_be_told_apart_are_beyond_every_bound(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where too many were touched to be counted, counts err on the side of asking, also after they are read anew."""
    monkeypatch.setattr("midflight.act.touches.members_max", 5)
    monkeypatch.setattr("midflight.act.touches.rows_max", 8)
    touches, now_us = desk.world.actions.touches, desk.world.clock.now_us()
    for n in range(4):
        touches.note(f"t{n}", "cart", f"p{n}", "mail", now_us)
    assert touches.people(ALL, now_us) == 4 and touches.among("mail", "p1", now_us)
    touches.take_back("t3", "cart", "p3", "mail", now_us)
    assert touches.people("mail", now_us) == 3 and not touches.among("mail", "p3", now_us)
    for n in range(10):
        touches.note(f"u{n}", "cart", f"q{n}", "mail", now_us)
    for _ in range(2):
        assert touches.people(ALL, now_us) > 1_000_000 and touches.among("mail", "p1", now_us)
        touches.forget()


@pytest.mark.parametrize("keep", [False, True])
def test_an_edit_drops_what_waits_or_keeps_it_as_it_was(desk: Desk, keep: bool) -> None:
    """What waits of an old version is dropped and says so, or goes on with the action it was put down with; the counts go on too."""
    desk.put(per_hour=1)
    desk.fire("f1")
    desk.fire("f2", PEOPLE[1])
    desk.run()
    assert desk.went() == ["f1"]
    desk.world.put("cart", {"autonomy": "act", "expires_minutes": 600, "per_hour": 1}, way="push", keep=keep)
    desk.fire("f3", PEOPLE[2], version=1)
    desk.run()
    assert desk.went() == ["f1"]
    desk.world.clock.at_us += HOUR + MINUTE
    desk.run()
    desk.world.clock.at_us += HOUR + MINUTE
    desk.run()
    if keep:
        assert desk.went() == ["f1", "f2", "f3"] and [action.way for _, action, _ in desk.world.effects] == ["mail"] * 3
    else:
        assert desk.went() == ["f1"] and desk.state("f2") == desk.state("f3") == ("dropped", "edited")


def test_of_two_edits_of_the_same_version_the_first_counts(desk: Desk) -> None:
    """Who edits what somebody else has edited meanwhile is told so; a rule that is wrong or unknown is refused with its place."""
    desk.put()
    order = PutRule(id="o1", who="bob", rule="cart", version=1, definition={"when": WHEN, "action": {"way": "mail"}})
    assert "Rule `cart` is at version 1" in desk.order(order)
    wrong = {"when": WHEN, "action": {"way": "mail"}, "limits": {"per_hour": -1}}
    assert "$.limits.per_hour" in desk.order(msgspec.structs.replace(order, id="o2", version=2, definition=wrong))
    assert "Did you mean `cart`" in desk.order(RemoveRule(id="o3", who="bob", rule="carts"))
    assert desk.world.actions.book.now("cart").version == 1
    assert not desk.order(RemoveRule(id="o4", who="bob", rule="cart"))
    desk.fire("f1")
    desk.run()
    assert desk.state("f1") == ("dropped", "removed") and not desk.went()


def test_a_firing_may_be_read_before_the_order_that_puts_down_its_rule(desk: Desk) -> None:
    """It waits a minute for its rule, and is dropped where there is none by then."""
    desk.fire("f1", version=1)
    desk.fire("f2", rule="never", version=1)
    desk.run()
    assert desk.state("f1") == ("waiting", "no_rule")
    desk.put()
    desk.run()
    assert desk.went() == ["f1"]
    desk.world.clock.at_us += 2 * MINUTE
    desk.run()
    assert desk.state("f2") == ("dropped", "no_rule")


async def in_between(desk: Desk, change) -> list[str]:
    """Let a call be decided on, do something while it waits for a connection, and return what went."""
    gate, deliver = asyncio.Event(), desk.world.deliver

    async def waiting(action, begins) -> Outcome:
        await gate.wait()
        return await deliver(action, begins)

    desk.world.deliver = waiting
    desk.put(hours={"quiet_from": "21:00", "quiet_until": "08:00"})
    desk.fire("f1")
    while not desk.world.acting.calls:
        await desk.world.turn()
    assert desk.state("f1")[0] == "called"
    change(desk.world)
    gate.set()
    # The call goes on before the process takes its next turn.
    for _ in range(6):
        await asyncio.sleep(0)
    for _ in range(4):
        await desk.world.turn()
    return desk.went()


def leave_now(world: World) -> None:
    world.just_left.add(PEOPLE[0])
    world.stops.stop(PEOPLE[0], lambda _: None)


def breaks(world: World) -> None:
    world.breakers = Breakers(ways={"mail": "it bounces"})


def passes(us: int):
    def change(world: World) -> None:
        world.clock.at_us += us

    return change


CHANGES = {
    "held": (turn_switch, "waiting"),
    "unsubscribed": (leave_now, "dropped"),
    "complained": (lambda world: world.suppressed_now.add(PEOPLE[0]), "dropped"),
    "edited": (lambda world: world.put("cart", {"autonomy": "act"}), "dropped"),
    "removed": (lambda world: world.order(RemoveRule(id="r", who="ada", rule="cart")), "dropped"),
    "in shadow": (lambda world: world.order(LetRule(id="l", who="ada", rule="cart", autonomy="observe")), "observed"),
    "asked about": (lambda world: world.order(LetRule(id="l", who="ada", rule="cart", autonomy="suggest")), "suggested"),
    "broken": (breaks, "waiting"),
    # 16:00 UTC is 17:00 in Berlin, where quiet hours begin at 21:00.
    "quiet": (passes(4 * HOUR), "waiting"),
    "late": (passes(601 * MINUTE), "expired"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_comes_in_between_deciding_and_calling_counts(name: str, desk: Desk) -> None:
    """A hold, an unsubscribe, an edit, a breaker, quiet hours: what is true when the call would begin keeps it from beginning."""
    change, state = CHANGES[name]
    assert asyncio.run(in_between(desk, change)) == []
    assert desk.state("f1")[0] == state


def test_what_nothing_comes_in_between_goes(desk: Desk) -> None:
    """The same call goes where nothing has changed."""
    assert asyncio.run(in_between(desk, lambda world: None)) == ["f1"]


@pytest.mark.parametrize("name", CHANGES)
def test_a_build_that_checks_only_when_deciding_is_caught(name: str, tmp_path: Path) -> None:
    """Control: without the second check each of these changes comes too late."""
    desk = Desk(tmp_path, acting=ChecksOnlyWhenDeciding)
    with pytest.raises(Broken):
        asyncio.run(in_between(desk, CHANGES[name][0]))
    desk.close()


def test_a_switch_that_is_looked_at_in_turns_alone_is_caught(tmp_path: Path) -> None:
    """Control: a call that begins between two turns has to look at the switch itself."""
    desk = Desk(tmp_path, acting=LooksAtSwitchInTurnsAlone)
    with pytest.raises(Broken, match="held"):
        asyncio.run(in_between(desk, turn_switch))
    desk.close()


def test_loops_are_cut(desk: Desk) -> None:
    """A rule that has caused itself is dropped, and so is one at the end of a long chain."""
    desk.put()
    desk.fire("f1", chain=["a", "cart", "b"])
    desk.fire("f2", chain=["a", "b", "c", "d", "e"])
    desk.fire("f3", chain=["a", "b", "c", "d"])
    desk.run()
    assert desk.went() == ["f3"]
    assert desk.state("f1") == ("dropped", "loop") and desk.state("f2") == ("dropped", "too_deep")


def test_what_has_gone_is_undone_only_once_it_is(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoing is asked of the way out until it says so; an email stays sent; what waits is taken back at once."""
    outcomes = [Outcome(kind="later", detail="busy"), Outcome(kind="unknown", detail="no answer"), Outcome(kind="sent")]
    asked: list[str] = []

    async def undo(action, made) -> Outcome:
        asked.append(action.id)
        desk.world.undone.add(action.id)
        return outcomes.pop(0)

    monkeypatch.setattr(desk.world, "undo", undo, raising=False)
    desk.put(way="push")
    desk.put("mails", per_hour=1)
    desk.fire("f1")
    desk.fire("m1", rule="mails")
    desk.fire("m2", rule="mails")
    desk.run()
    refused = desk.order(Undo(id=desk.name(), who="ada", actions=("m1",)))
    assert "cannot be taken back" in refused and desk.state("m1")[0] == "sent"
    assert not desk.order(Undo(id=desk.name(), who="ada", actions=("f1", "m2")))
    assert desk.state("m2") == ("dropped", "undone") and desk.state("f1")[0] == "undoing"
    seen = []
    for _ in range(30):
        desk.run(1)
        seen.append((len(asked), desk.state("f1")[0]))
    assert asked == ["f1"] * 3 and seen[-1] == (3, "undone")
    assert not any(state == "undone" for count, state in seen if count < 3)


def test_what_cannot_be_undone_is_again_what_it_was(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A way out that refuses leaves the action sent, with a word why."""

    async def undo(action, made) -> Outcome:
        return Outcome(kind="refused", detail="gone\r\nfor good")

    monkeypatch.setattr(desk.world, "undo", undo, raising=False)
    desk.put(way="push")
    desk.fire("f1")
    desk.run()
    assert not desk.order(Undo(id=desk.name(), who="ada", actions=("f1",)))
    desk.run()
    row = desk.world.rows()[0]
    assert row["state"] == "sent" and row["detail"].startswith("could not be undone: gone") and "\n" not in row["detail"]


def test_one_bad_firing_stops_no_other(desk: Desk) -> None:
    """What cannot be read is set aside with its reason; the rest goes on."""
    desk.put()
    good = dict(number=0, rule="cart", version=1, recipient=PEOPLE[0], fired_us=START_US)
    for id, changes in (
        ("b1", {"cause": b"not json"}), ("b2", {"cause": b'{"chain": 5}'}), ("b3", {"cause": b"{}", "recipient": 7}),
        ("b4", {"cause": None}), ("b5", {"cause": b"{}", "fired_us": "soon"}), ("b6", {"cause": b"[" * 100_000}),
        ("b7", {"cause": b'{"at_us": 1e400}'}), ("b8", {"cause": b'{"a": "' + b"x" * 100_000 + b'"}'}),
    ):  # fmt: skip
        desk.world.store.fire(Firing(**{**good, "id": id, **changes}))
    desk.world.store.fire(Firing(**{**good, "id": 12, "cause": b"{}"}))
    desk.fire("good")
    desk.run(5)
    assert desk.went() == ["good"]
    aside = [row for row in desk.world.rows() if row["reason"] == "bad_firing"]
    assert len(aside) == 9 and all(row["words"] for row in aside)


def test_a_mistake_in_one_action_costs_that_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where our own code fails over one action, it is dropped and says so; those beside it go."""
    case = Acting._case

    def failing(self, row, *rest):
        if row.id == "f2":
            raise KeyError("ours")
        return case(self, row, *rest)

    monkeypatch.setattr(Acting, "_case", failing)
    desk.put()
    for n in range(4):
        desk.fire(f"f{n}", PEOPLE[n])
    desk.run()
    assert desk.went() == ["f0", "f1", "f3"] and desk.state("f2") == ("dropped", "bad_firing")


def test_a_way_out_that_hangs_or_fails_holds_up_no_other(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of one way are bounded, those of others go; a call that had begun when it failed is unknown, another is tried again."""
    monkeypatch.setattr("midflight.serve.acting.way_calls_max", 2)
    deliver = desk.world.deliver

    async def hanging(action, begins):
        if action.way == "push":
            await asyncio.Event().wait()
        if action.id == "m1":
            begins(0)
            raise RuntimeError("cut off")
        if action.id == "m2" and not desk.world.undone:
            desk.world.undone.add("m2 has failed")
            raise OSError("no route")
        return await deliver(action, begins)

    monkeypatch.setattr(desk.world, "deliver", hanging, raising=False)
    desk.put(way="push")
    desk.put("mails")
    for n in range(4):
        desk.fire(f"p{n}", PEOPLE[n])
    for n in range(4):
        desk.fire(f"m{n}", PEOPLE[n], rule="mails")

    async def turns() -> None:
        for _ in range(10):
            await desk.world.turn()
            for _ in range(8):
                await asyncio.sleep(0)
            desk.world.clock.at_us += 1_100_000
        assert len(desk.world.acting.calls) == 2
        for task in desk.world.acting.under_way.tasks:
            task.cancel()

    asyncio.run(turns())
    assert sorted(desk.went()) == ["m0", "m2", "m3"] and desk.state("m1")[0] == "unknown"
    assert [desk.state(f"p{n}")[0] for n in range(4)] == ["called", "called", "waiting", "waiting"]


def test_retries_are_bounded_and_what_the_other_end_says_is_kept_to(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that never goes is given up after some tries, each later than the last; nothing of it counts against limits."""
    at: list[int] = []

    async def later(action, begins):
        assert begins(0)
        at.append(desk.world.clock.now_us())
        return Outcome(kind="later", detail="503", retry_s=60.0 if len(at) == 1 else 0.0)

    monkeypatch.setattr(desk.world, "deliver", later, raising=False)
    desk.put(per_recipient=[{"count": 1, "hours": 24}], per_hour=1)
    desk.fire("f1")
    desk.run(800)
    assert desk.state("f1") == ("refused", "gave_up") and len(at) == 8
    gaps = [second - first for first, second in zip(at, at[1:], strict=False)]
    assert gaps[0] >= 60_000_000 and gaps[1:] == sorted(gaps[1:]) and gaps[1] > 3_000_000
    assert desk.world.actions.touches.rule("cart", desk.world.clock.now_us()) == (0, 0)
    assert retry_s("a", 1, float("nan")) > 0 and retry_s("a", 1, float("inf")) <= 1.25 * 24 * 3600 and retry_s("a", 99, -5) < 4501


def test_a_full_disk_stops_nothing_for_good(tmp_path: Path) -> None:
    """While nothing can be written no call begins; as soon as there is room it goes on by itself."""
    desk = Desk(tmp_path, outbox=str(tmp_path / "outbox.db"))
    desk.put()
    for n in range(3):
        desk.fire(f"f{n}", PEOPLE[n])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow: to SQLite that is a disk that does not take what is written.
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "outbox.db-wal").stat().st_size, before[1]))
    try:
        desk.run(3)
        assert desk.world.acting._away
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not desk.went()
    desk.run(3)
    assert sorted(desk.went()) == ["f0", "f1", "f2"]
    desk.close()


def test_while_the_store_is_away_nobody_is_touched_and_nothing_is_lost(desk: Desk) -> None:
    """Who must not be written to is not known then, so it waits; the switch still works."""
    desk.put()
    desk.fire("f1")
    desk.world.store.away = True
    desk.run()
    turn_switch(desk.world)
    desk.run()
    assert desk.world.acting.hold.held and not desk.went()
    turn_switch(desk.world)
    desk.world.store.away = False
    desk.run()
    assert desk.went() == ["f1"]


@pytest.mark.parametrize(
    ("breakers", "who"),
    [
        (Breakers(rules={"cart": "odd"}), PEOPLE[0]), (Breakers(ways={"mail": "bounces"}), PEOPLE[0]),
        (Breakers(providers={"Gmail": "blocked"}), "c@gmail.com"), (Breakers(person="numbers are old"), PEOPLE[0]),
    ],
    ids=("rule", "way", "provider", "people"),
)  # fmt: skip
def test_what_is_held_waits_and_says_why(breakers: Breakers, who: str, desk: Desk) -> None:
    """A rule, a way out, a mailbox provider and all that reaches people can be held each; what reaches one's own team goes on."""
    desk.put()
    team = {"when": WHEN, "action": {"way": "chat", "to_person": False}, "limits": {"autonomy": "act"}}
    assert not desk.order(PutRule(id="team", who="ada", rule="team", version=1, definition=team))
    desk.world.breakers = breakers
    desk.fire("f1", who)
    desk.fire("t1", who, rule="team", version=1)
    desk.run(2)
    assert desk.went() == ["t1"] and desk.state("f1") == ("waiting", "breaker")
    desk.world.breakers = Breakers()
    desk.run(4, 2.0)
    assert desk.went() == ["t1", "f1"]


def test_old_rows_go_and_their_firings_are_not_acted_on_again(desk: Desk) -> None:
    """After 35 days of log time what is over is taken out; a store made anew says it again, and nothing happens."""
    desk.put(per_recipient=[{"count": 1, "hours": 24}])
    desk.fire("f1")
    desk.run(2)
    for day in range(60):
        desk.world.clock.at_us += DAY
        desk.fire(f"d{day}", PEOPLE[1 + day % 3])
        desk.run(2, 1.1)
    ids = {row["id"] for row in desk.world.rows()}
    assert "f1" not in ids and "d0" not in ids and {"d59", "d40"} <= ids
    assert desk.world.outbox.db.execute("SELECT count(*) FROM touches").get <= 45
    assert desk.world.outbox.db.execute("SELECT count(*) FROM rule_minutes").get <= 12
    before = len(desk.went())
    desk.world.store.make_anew(desk.world.random)
    desk.world.store.grow(200)
    desk.run(30)
    assert len(desk.went()) == before == 61 and "f1" not in {row["id"] for row in desk.world.rows()}


def test_a_clock_that_jumps_makes_nothing_forgotten(desk: Desk) -> None:
    """A year ahead and back within a minute: nothing was taken out, and whoever was touched an hour ago still counts."""
    desk.put(cooldown_hours=24)
    desk.fire("f1")
    desk.run(2)
    desk.world.clock.ahead_us = 365 * DAY
    desk.fire("jump", PEOPLE[1])
    desk.run(130)
    desk.world.clock.ahead_us = 0
    log_us = desk.world.clock.now_us() + 365 * DAY
    desk.world.store.fire(Firing(number=0, id="f2", rule="cart", version=1, recipient=PEOPLE[0], fired_us=log_us, cause=b"{}"))
    desk.run(3)
    assert desk.state("f2") == ("dropped", "cooldown") and desk.went() == ["f1", "jump"]


def test_every_reason_that_is_given_is_known(folder: Path) -> None:
    """Reasons come from a closed set, so that pages can word each."""
    given = {row["reason"] for seed in range(20) for row in _rows_of(folder, seed)}
    assert given - {""} <= set(REASONS) and len(given) > 8


def _rows_of(folder: Path, seed: int) -> list[dict]:
    rows: list[dict] = []

    class Keeping(Actions):
        def expire(self, now_us: int) -> int:
            rows.extend(self.listed(count_max=1000))
            return super().expire(now_us)

    run(folder, seed, actions=Keeping)
    return rows


# -- the switch ----------------------------------------------------------------------------------------------------------


def test_the_switch_holds_and_says_who(desk: Desk, tmp_path: Path) -> None:
    """What is held waits and does not expire early; who, why and when are in the ledger once; it outlives a restart; release goes on."""
    desk.put()
    kill_switch.hold(tmp_path, "ada", "odd\nnumbers", desk.world.clock.now_us())
    desk.world.held = True
    desk.fire("f1")
    desk.run()
    asyncio.run(desk.world.die())
    desk.run()
    assert not desk.went() and desk.state("f1")[0] == "waiting"
    lines = [line for line in desk.world.actions.ledger() if line["kind"] == "hold"]
    assert [(line["who"], line["why"]) for line in lines] == [("ada", "odd numbers")]
    with pytest.raises(kill_switch.NotHeld, match="turned again since"):
        kill_switch.release(tmp_path, "bob", "", 1, 7)
    kill_switch.release(tmp_path, "bob", "mended", 1, 1)
    desk.world.held = False
    desk.run()
    assert desk.went() == ["f1"] and [line["kind"] for line in desk.world.actions.ledger()][:2] == ["release", "hold"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b'{"held": 1}', b"x" * 100_000], ids=range(6))
def test_a_switch_that_cannot_be_read_holds(body: bytes, tmp_path: Path) -> None:
    """Something wanted something: nothing is the safe guess, until somebody holds or releases anew."""
    (tmp_path / kill_switch.FILE).write_bytes(body)
    switch = kill_switch.Switch(tmp_path)
    assert switch.look().held and "cannot be read" in switch.look().text()
    kill_switch.release(tmp_path, "ada", "", 1, -1)
    assert not switch.look().held and not kill_switch.Switch(tmp_path / "nothing there").look().held


def test_an_order_turns_the_switch_too(desk: Desk, tmp_path: Path) -> None:
    """For who only has the log: a hold as an order, and a release of that hold alone."""
    assert not desk.order(HoldOrder(id="h", who="ada", why="odd"))
    number = kill_switch.read(tmp_path).number
    assert kill_switch.read(tmp_path).held and number == 1
    kill_switch.hold(tmp_path, "bob", "", 1)
    assert "turned again since" in desk.order(Release(id="r", who="ada", number=number)) and kill_switch.read(tmp_path).held
    for order in (HoldOrder(id="h", who="ada"), Release(id="r", who="ada", number=2), Approve(id="a", who="x", actions=("y",))):
        assert order_of(record_of(order).body) == order


CHILD = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_acting
asyncio.run(test_acting.{what}(Path({folder!r})))
"""


def child(what: str, folder: Path, crash_at: str = "") -> subprocess.Popen:
    code = CHILD.format(tests=str(Path(__file__).parent), folder=str(folder), what=what)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "MIDFLIGHT_CRASH_AT": crash_at}
    return subprocess.Popen([sys.executable, "-c", code], env=env)


class RealWorld(World):
    """A world on real files and by the real clock, in which each effect is a line in a file: its action, and when that asked to begin."""

    def __init__(self, folder: Path, acting: type[Acting] = Acting) -> None:
        radius = Radius(people_per_hour=0, ceiling_per_hour=0, person_per_day=0)
        self.real = Clock()
        super().__init__(folder, 1, acting=acting, radius=radius, outbox=str(folder / "outbox.db"))
        if self.actions.book.known("cart") is None:
            self.put("cart", {"autonomy": "act"})
        self.versions["cart"] = 1

    def start(self) -> None:
        self.clock = self.real
        super().start()

    def fill(self, count: int) -> None:
        now_us, first = self.clock.now_us(), len(self.store.history)
        for n in range(first, first + count):
            self.store.fire(
                Firing(number=0, id=f"f{n}", rule="cart", version=1, recipient=f"p{n}@x.example", fired_us=now_us, cause=b"{}")
            )  # fmt: skip

    async def deliver(self, action, begins) -> Outcome:
        await asyncio.sleep(0.001)
        asked = time.time()
        if not begins(0):
            return Outcome(kind="later")
        with (self.folder / "effects").open("a") as file:
            file.write(f"{action.id} {asked}\n")
        return Outcome(kind="sent")


def effects_in(folder: Path) -> list[tuple[str, float]]:
    path = folder / "effects"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(id, float(asked)) for id, asked in (line.split() for line in lines)]


async def act_on_fifty(folder: Path) -> None:
    world = RealWorld(folder)
    world.fill(50)
    for _ in range(400):
        await world.acting.step()
        await asyncio.sleep(0.002)
        if len(world.ids("sent")) + len(world.ids("unknown")) == 50 and not world.acting.calls:
            break
    await world.acting.close()


@pytest.mark.parametrize("point", ["after_firings:3", "before_action_call:9", "after_action_call:9"])
def test_killed_each_firing_has_at_most_one_effect(point: str, tmp_path: Path) -> None:
    """A process that is really killed and started again acts on every firing once; only calls that were cut off are unknown."""
    check_killed(point, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(
    "point",
    [
        "before_firings:3", "before_action_intent:3", "after_action_intent:4", "before_action_begins:7", "before_action_outcome:3",
        "after_action_outcome:3",
    ],
)  # fmt: skip
def test_killed_at_any_other_point_too(point: str, tmp_path: Path) -> None:
    """The same wherever else it dies."""
    check_killed(point, tmp_path)


def check_killed(point: str, tmp_path: Path) -> None:
    assert child("act_on_fifty", tmp_path, point).wait(280) == -9
    assert child("act_on_fifty", tmp_path).wait(280) == 0
    went = [id for id, _ in effects_in(tmp_path)]
    assert len(went) == len(set(went))
    outbox = Outbox(tmp_path / "outbox.db", reading=True)
    states = dict(outbox.db.execute("SELECT state, count(*) FROM actions GROUP BY state"))
    unknown = [id for (id,) in outbox.db.execute("SELECT id FROM actions WHERE state = 5")]
    outbox.db.close()
    assert states.get(6, 0) + states.get(5, 0) == 50 and len(set(went) | set(unknown)) == 50
    assert len(unknown) <= 12


class LooksSeldom(Acting):
    """Broken: the switch is looked at twice a minute."""

    looked_s = -99.0

    def look_at_switch(self):
        if self.clock.monotonic_s() - self.looked_s > 30.0:
            self.looked_s = self.clock.monotonic_s()
            return super().look_at_switch()
        return self.hold


async def act_for_ever(folder: Path, kind: type[Acting] = Acting) -> None:
    world = RealWorld(folder, kind)
    for turn in range(20_000):
        world.fill(1)
        # A store that does not answer half of the time.
        world.store.away = turn % 4 > 1
        await world.acting.step()
        await asyncio.sleep(0.01)
        (folder / "turns").write_text(str(turn))
        if (folder / "stop").exists():
            break
    await world.acting.close()


async def act_for_ever_and_look_seldom(folder: Path) -> None:
    await act_for_ever(folder, LooksSeldom)


def seconds_after_hold(what: str, folder: Path) -> float:
    """Let a process act, hold everything, and return for how long after that was said calls still asked to begin, and did."""
    process = child(what, folder)
    try:
        wait_until(lambda: len(effects_in(folder)) >= 10)
        kill_switch.hold(folder, "ada", "stop it", Clock().now_us())
        said, turns = time.time(), int((folder / "turns").read_text() or 0)
        wait_until(lambda: time.time() > said + 2.5 and int((folder / "turns").read_text() or 0) > turns + 30)
    finally:
        (folder / "stop").touch()
        process.wait(60)
    return max(asked for _, asked in effects_in(folder)) - said


def wait_until(holds) -> None:
    until = time.monotonic() + 200
    while not holds():
        assert time.monotonic() < until, "it did not come to it"
        time.sleep(0.02)


def test_everything_is_held_within_a_second_of_being_asked(tmp_path: Path) -> None:
    """From when a hold is said, a process that acts all the time begins no call any more, though its store is half dead."""
    assert seconds_after_hold("act_for_ever", tmp_path) <= 0.0


def test_a_switch_that_is_looked_at_seldom_is_caught(tmp_path: Path) -> None:
    """Control: with a look twice a minute calls go on for more than a second."""
    assert seconds_after_hold("act_for_ever_and_look_seldom", tmp_path) > 1.0


# -- the real store ------------------------------------------------------------------------------------------------------


def make_store(path: Path, epoch: str, people: list[str], first: int = 1) -> list[str]:
    """Make a store, in place of what is there, whose firings are about these people, and return the ids of these."""
    part = path.with_suffix(".new")
    part.unlink(missing_ok=True)
    db = apsw.Connection(str(part))
    db.execute(SCHEMA)
    db.execute("INSERT INTO meta VALUES ('version', ?), ('epoch', ?)", (VERSION, epoch))
    db.executemany("INSERT INTO people VALUES (?, ?)", list(enumerate(people)))
    for number, _ in enumerate(people):
        rows = np.zeros(1, fired.FIRED)
        rows["person"], rows["at_us"], rows["cause_us"], rows["cause"] = number, 5, 4, 7
        fired.add(db, rows, [("other", 3), ("cart", 1)] if number % 2 else [("cart", 1)])
    db.execute("UPDATE firings SET number = -(number + ?)", (first - 1,))
    db.execute("UPDATE firings SET number = -number")
    db.close()
    part.replace(path)
    return [firing_id("other" if number % 2 else "cart", 3 if number % 2 else 1, who, 7) for number, who in enumerate(people)]


def test_firings_are_read_on_and_from_the_start_of_a_store_that_was_made_anew(tmp_path: Path) -> None:
    """By the store's epoch and by the firing at the cursor one sees that it is another store; one that is not there has none."""
    store = Store(Config(), Clock())
    store.path = tmp_path / "store.db"
    firings = Firings(store)
    assert firings.read(Cursor()) == ([], Cursor())
    people = [f"p{n}@x.example" for n in range(6)]
    ids = make_store(tmp_path / "store.db", "one", people[:5])
    found, cursor = firings.read(Cursor(), 3)
    assert [f.id for f in found] == ids[:3] and cursor == Cursor(epoch="one", number=3, id=ids[2])
    assert found[1] == Firing(
        number=2, id=ids[1], rule="other", version=3, recipient="p1@x.example", fired_us=5, cause=b'{"at_us":4}'
    )  # fmt: skip
    found, cursor = firings.read(cursor, 3)
    assert [f.id for f in found] == ids[3:] and firings.read(cursor)[0] == []
    # Another making; and one of the same epoch whose numbers are others.
    ids = make_store(tmp_path / "store.db", "two", people, first=100)
    assert [f.id for f in firings.read(cursor)[0]] == ids
    make_store(tmp_path / "store.db", "one", people, first=2)
    assert len(firings.read(cursor)[0]) == 6
    store.close()


def test_firings_of_one_commit_are_read_in_parts(tmp_path: Path) -> None:
    """However they were written, a reader may stop behind any of them; what is about numbers is about nobody."""
    db = apsw.Connection(str(tmp_path / "store.db"))
    db.execute(SCHEMA)
    db.executemany("INSERT INTO people VALUES (?, ?)", [(n, f"p{n}@x.example") for n in range(40)])
    db.execute("INSERT INTO names VALUES ('campaign', 9, 'spring')")
    for size in (1, 30, 9):
        rows = np.zeros(size, fired.FIRED)
        rows["person"], rows["cause"], rows["campaign"] = np.arange(size) - 1, np.arange(size), 9
        fired.add(db, rows, [("cart", 1)])
    every = fired.fired_after(db, 0, 1_000)
    assert [one.number for one in every] == list(range(1, 41)) and every[0].recipient == "" and every[-1].recipient == "p7@x.example"
    assert every[5].cause == b'{"at_us":0,"campaign":"spring"}'
    assert all(fired.fired_after(db, number, 3) == every[number : number + 3] for number in range(41))
    db.close()


def test_orders_that_make_no_sense_are_refused_and_stop_nothing(desk: Desk) -> None:
    """An action that nobody knows, a rule that is not there, a mistake of ours: each order ends with what was wrong."""
    desk.put()
    assert "Unknown action" in desk.order(Approve(id="o1", who="a", actions=("none",)))
    assert "Nothing is suggested" in desk.order(Approve(id="o2", who="a", rule="cart", up_to=9))
    assert "Unknown rule" in desk.order(LetRule(id="o3", who="a", rule="none", autonomy="act"))
    assert "name" in desk.order(PutRule(id="o4", who="a", rule="~x", version=1, definition={"when": WHEN, "action": {"way": "mail"}}))
    desk.world.actions.book.let = None
    assert "a mistake of ours" in desk.order(LetRule(id="o5", who="a", rule="cart", autonomy="act"))
