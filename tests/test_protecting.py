"""What suddenly bounces is held, tried with a few messages and comes back; what is held waits in the outbox; nobody else is stopped."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from test_sender import run, smtp
from test_suspecting import BLOCKED, Life

from midflight.act.audience import Recipient
from midflight.act.campaigns import Campaigns
from midflight.act.gates import Gate
from midflight.act.links import Links
from midflight.act.orders import Guard
from midflight.act.outbox import Outbox
from midflight.act.sender import Sender
from midflight.act.stop_list import StopList
from midflight.decide import blame
from midflight.decide.blame import Pair, blamed
from midflight.kit.errors import NotFound
from midflight.sandbox.inbox import Inbox
from midflight.sandbox.mailbox import Mailbox
from midflight.serve import protecting
from midflight.serve.protecting import Protecting, logged, standings
from midflight.store.experiment import Numbers

PLACES = {"Gmail": "gmail.com", "Yahoo": "yahoo.com", "Microsoft": "outlook.com"}


class Watch:
    """A log with its engine, and the guards of a conductor that look at it once for each step."""

    def __init__(self, folder: Path) -> None:
        self.life = Life(folder)
        self.random = np.random.default_rng(7)
        self.outbox = Outbox(folder / "outbox.db")
        self.numbers = Numbers(self.life.config, self.life.clock)
        self.n = 0
        self.start()

    def start(self) -> None:
        """Begin as a new process does, with what the outbox remembers."""
        campaigns = Campaigns(self.outbox)
        self.sender = Sender(
            campaigns, {}, StopList(), Links(bytes(range(64)), "https://m.example"), self.life.clock, begun=lambda intents: None,
            suppressed=lambda keys: {},
        )  # fmt: skip
        self.protecting = Protecting(self.outbox, self.numbers, self.sender, self.life.clock)

    def pass_by(self, seconds: float) -> None:
        self.life.clock.sleep_s(seconds)

    def answers(self, rates: dict[tuple[str, str], tuple[int, float]], seconds: float = 5.0) -> None:
        """Let providers answer for so many messages of campaigns, of which that share bounces; and look."""
        self.pass_by(seconds)
        for (campaign, provider), (count, rate) in rates.items():
            bounced = int(self.random.binomial(count, rate))
            people = [f"p{self.n + k}@{PLACES.get(provider, provider)}" for k in range(count)]
            self.n += count
            self.life.campaign = campaign
            self.life.tell("delivered", people[bounced:], ip="192.0.2.9")
            if bounced:
                self.life.tell("bounced", people[:bounced], bounce_class="block", code="550 5.7.1", detail=BLOCKED, ip="192.0.2.9")
        self.life.folded()
        self.protecting.look()

    @property
    def stages(self) -> dict[str, str]:
        return {one.name: one.stage for one in standings(self.outbox.db) if one.stage != "normal"}

    def close(self) -> None:
        self.numbers.close()
        self.outbox.close()
        self.life.end()
        self.life.close()


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    made = Watch(tmp_path)
    yield made
    made.close()


def usual(watch: Watch, steps: int = 20, count: int = 100) -> None:
    for _ in range(steps):
        watch.answers({(campaign, provider): (count, 0.015) for campaign in ("spring", "news") for provider in PLACES})


def test_a_provider_that_begins_to_bounce_is_held_and_comes_back(watch: Watch) -> None:
    """Gmail blocks: Gmail alone is held within some seconds; a few messages try it, and step by step all may go again."""
    usual(watch)
    assert watch.stages == {}
    for _ in range(10):
        watch.answers({("spring", "Gmail"): (100, 0.5), ("spring", "Yahoo"): (100, 0.015), ("news", "Microsoft"): (100, 0.015)})
    assert watch.stages == {"Gmail": "held"}
    assert watch.sender.gates.providers[2].ready(0.0, 50) == 0 and list(watch.sender.gates.providers) == [2]
    watch.pass_by(1801)
    watch.protecting.look()
    assert watch.stages == {"Gmail": "probing"}
    gate = watch.sender.gates.providers[2]
    assert gate.ready(0.0, 500) == 100
    gate.took(100)
    watch.protecting.look()
    assert gate.ready(0.0, 500) == 0 and watch.sender.gates.providers[2] is gate
    seen = []
    for _ in range(60):
        watch.answers({("spring", "Gmail"): (50, 0.01)}, seconds=240)
        seen.append(watch.stages.get("Gmail", "normal"))
    assert seen[-1] == "normal" and "returning" in seen and "held" not in seen and watch.sender.gates.providers == {}
    assert [row["stage"] for row in logged(watch.outbox.db)][::-1][:3] == ["held", "probing", "returning"]


def within(gate: Gate, now_s: float, seconds: int, wanted: int) -> int:
    """Return how many messages a gate lets through within some seconds, asked once in each."""
    count = 0
    for second in range(seconds):
        ready = gate.ready(now_s + second, wanted - count)
        gate.took(ready)
        count += ready
    return count


def sent_through(watch: Watch, guarded: bool) -> tuple[int, int, int]:
    """Send 100 messages each three minutes to Gmail, which blocks half of them from the second to the fifth hour; return how many went and
    bounced, and how many of them after the sixth hour."""
    usual(watch, steps=10)
    went = bounced = late = 0
    for minute in range(0, 12 * 60, 3):
        gate = watch.sender.gates.providers.get(2) if guarded else None
        count = 100 if gate is None else within(gate, watch.life.clock.monotonic_s(), 180, 100)
        bad = 120 <= minute < 300
        before = watch.life.number
        watch.answers({("spring", "Gmail"): (count, 0.5 if bad else 0.015), ("news", "Yahoo"): (100, 0.015)}, seconds=180)
        assert watch.life.number - before == count + 100
        went += count
        bounced += count * 0.5 if bad else 0
        late += count if minute >= 360 else 0
    return went, round(bounced), late


def test_a_guard_avoids_most_bounces_of_a_provider_that_blocks(watch: Watch, tmp_path: Path) -> None:
    """Against the same sends without it: nine in ten bounces of the bad hours are avoided, and in the hours after all goes again."""
    went, bounced, late = sent_through(watch, guarded=True)
    bare = Watch(tmp_path / "bare")
    went_bare, bounced_bare, late_bare = sent_through(bare, guarded=False)
    bare.close()
    print(f"bounces {bounced} of {went}, without guards {bounced_bare} of {went_bare}; after the sixth hour {late} of {late_bare}")
    assert bounced < 0.1 * bounced_bare and late > 0.4 * late_bare and watch.stages == {}


def test_a_probe_that_bounces_is_held_for_longer(watch: Watch) -> None:
    """Where the few messages bounce as before, all wait again, twice as long."""
    usual(watch)
    for _ in range(6):
        watch.answers({("spring", "Gmail"): (100, 0.5), ("news", "Yahoo"): (100, 0.015)})
    watch.pass_by(1801)
    watch.protecting.look()
    watch.answers({("spring", "Gmail"): (60, 0.5)})
    (standing,) = [one for one in standings(watch.outbox.db) if one.name == "Gmail"]
    assert (standing.stage, standing.holds) == ("held", 2) and standing.until_us - standing.since_us == 2 * 1800 * 1_000_000
    assert "Time" in standing.waits and "bounced" in standing.text


def test_a_bad_list_holds_its_campaign_and_no_provider(watch: Watch) -> None:
    """One campaign bounces everywhere, beside another that is well: the campaign is held, and whoever else sends goes on."""
    usual(watch)
    for _ in range(10):
        watch.answers({("bad", provider): (60, 0.25) for provider in PLACES} | {("news", provider): (60, 0.015) for provider in PLACES})
    assert watch.stages == {"bad": "held"} and list(watch.sender.gates.campaigns) == ["bad"]


def test_without_blame_a_bad_list_stops_whole_providers(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where every alarm holds what it was seen in, or the blame goes nowhere, providers that are well are held."""
    monkeypatch.setattr(protecting, "blamed", lambda kind, name, pairs, rate: ("provider", "Gmail") if kind == "campaign" else (kind, name))
    usual(watch)
    for _ in range(10):
        watch.answers({("bad", provider): (60, 0.25) for provider in PLACES} | {("news", provider): (60, 0.015) for provider in PLACES})
    assert "Gmail" in watch.stages


def test_usual_life_holds_nobody(watch: Watch) -> None:
    """Lumpy traffic at its usual rate, over three providers and two campaigns: nothing is held."""
    for _ in range(60):
        watch.answers(
            {
                (campaign, provider): (100, float(watch.random.beta(0.015 * 400, 0.985 * 400)))
                for campaign in ("a", "b")
                for provider in PLACES
            }
        )
    assert watch.stages == {}


def test_a_domain_of_its_own_is_held_by_itself(watch: Watch) -> None:
    """A company's server turns against us: its domain is held, and its people wait."""
    usual(watch, steps=6)
    for _ in range(20):
        watch.answers({("spring", "corp.example"): (40, 0.02), ("spring", "other.example"): (200, 0.015)})
    for _ in range(20):
        watch.answers({("spring", "corp.example"): (40, 0.8), ("spring", "other.example"): (400, 0.015)})
    assert watch.stages.get("corp.example") == "held"
    gates = watch.sender.gates
    assert gates.barred(["a@corp.example", "b@other.example"], 0.0) == {"a@corp.example"}


def test_holds_outlive_the_process(watch: Watch) -> None:
    """A conductor that starts anew holds what was held, and has tried what was tried."""
    usual(watch)
    for _ in range(6):
        watch.answers({("spring", "Gmail"): (100, 0.5), ("news", "Yahoo"): (100, 0.015)})
    watch.pass_by(1801)
    watch.protecting.look()
    watch.sender.gates.providers[2].took(70)
    watch.protecting.look()
    watch.start()
    assert watch.sender.gates.providers[2].ready(0.0, 500) == 30
    watch.answers({("news", "Yahoo"): (100, 0.015)})
    assert watch.stages == {"Gmail": "probing"}


def test_a_store_that_is_made_anew_raises_no_alarm(watch: Watch) -> None:
    """Sums that begin at nothing again, and grow to what they were, are no answers of now."""
    usual(watch)
    watch.life.end()
    with watch.life.engine() as engine:
        engine.store.db.execute("UPDATE answers SET answered = 10, bounced = 9")
    watch.protecting.look()
    assert watch.stages == {}


def test_a_breaker_of_another_version_stops_nobody(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    """A row that cannot be read, or is about a provider that is not known any more, is left out and said; the rest goes on."""
    usual(watch, steps=2)
    for kind, name, state in (("provider", "Gmail", b"{}x"), ("provider", "Gone Mail", b"{}"), ("domain", "a.example", b'{"version": 99}')):
        watch.outbox.db.execute("INSERT INTO guards VALUES (?, ?, 'held', ?, 0, 0, 0, '')", (kind, name, state))
    watch.start()
    watch.answers({("spring", "Gmail"): (100, 0.01)})
    assert watch.stages.keys() <= {"Gone Mail"} and watch.sender.gates.providers == {} and caplog.text.count("cannot be read") == 3


def test_people_hold_and_release(watch: Watch) -> None:
    """A hold by hand stays until somebody releases it; the reason is kept; an unknown provider is refused."""
    usual(watch, steps=3)
    order = Guard(id="1", campaign="", who="ada", why="they called", kind="provider", name="Yahoo", to="held")
    watch.protecting.by_hand(order, watch.life.clock.now_us())
    watch.pass_by(86_400)
    watch.protecting.look()
    (standing,) = standings(watch.outbox.db)
    assert (standing.stage, standing.until_us, standing.by_hand) == ("held", 0, True) and "they called" in standing.text
    watch.protecting.by_hand(msgspec.structs.replace(order, to="normal"), watch.life.clock.now_us())
    assert watch.stages == {} and watch.sender.gates.providers == {}
    with pytest.raises(NotFound):
        watch.protecting.by_hand(msgspec.structs.replace(order, name="Gmial"), 0)
    assert [row["who"] for row in logged(watch.outbox.db)] == ["ada", "ada"]


def test_what_breakers_did_is_kept_within_bounds(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of breakers keeps the latest; a breaker that was over for long is forgotten."""
    monkeypatch.setattr(protecting, "logged_max", 10)
    order = Guard(id="1", campaign="", who="ada", kind="domain", name="x.example", to="held")
    for n in range(30):
        watch.protecting.by_hand(msgspec.structs.replace(order, to="held" if n % 2 == 0 else "normal"), watch.life.clock.now_us())
    assert len(logged(watch.outbox.db, 100)) == 10
    watch.pass_by(31 * 86_400)
    watch.protecting.by_hand(msgspec.structs.replace(order, name="y.example"), watch.life.clock.now_us())
    assert [one.name for one in standings(watch.outbox.db)] == ["y.example"]


# -- who is to blame ---------------------------------------------------------------------------------------------------------------------


def pairs_of(rates: dict[tuple[str, str], tuple[float, float]]) -> list[Pair]:
    return [Pair(campaign=c, provider=p, answered=n, bounced=n * rate) for (c, p), (n, rate) in rates.items()]


def test_the_blame_goes_to_what_bounces_everywhere() -> None:
    """A provider's spike of one campaign that bounces elsewhere too is the campaign's; one at a single provider of several is theirs."""
    bad_list = pairs_of({("bad", "Gmail"): (200, 0.3), ("bad", "Yahoo"): (200, 0.3), ("news", "Gmail"): (500, 0.015)})
    assert blamed("provider", "Gmail", bad_list, 0.015) == ("campaign", "bad")
    assert blamed("campaign", "bad", bad_list, 0.015) == ("campaign", "bad")
    blocked = pairs_of({("a", "Gmail"): (200, 0.5), ("a", "Yahoo"): (500, 0.015), ("b", "Gmail"): (200, 0.5)})
    assert blamed("provider", "Gmail", blocked, 0.015) == ("provider", "Gmail")
    assert blamed("campaign", "a", blocked, 0.015) == ("provider", "Gmail")


def test_where_nothing_tells_them_apart_the_alarm_is_believed() -> None:
    """One campaign at one provider: whichever was seen is held; nothing at all blames nobody else."""
    alone = pairs_of({("a", "Gmail"): (200, 0.5)})
    assert blamed("provider", "Gmail", alone, 0.015) == ("provider", "Gmail")
    assert blamed("campaign", "a", alone, 0.015) == ("campaign", "a")
    assert blamed("campaign", "a", [], 0.015) == ("campaign", "a") and 0 < blame.most < 1


# -- sending -----------------------------------------------------------------------------------------------------------------------------


def test_what_is_held_waits_and_goes_when_it_is_released(tmp_path: Path) -> None:
    """While Gmail and a domain are held, everybody else gets a message; then a probe of five; then all: each person once."""
    inbox = Inbox()
    box = Mailbox(inbox)

    async def act(desk) -> None:
        people = [
            Recipient(key=f"p{n}@{d}", address=f"p{n}@{d}", attributes={}) for n in range(20) for d in ("gmail.com", "x.com", "y.com")
        ]
        campaign = msgspec.structs.replace(desk.ready.campaign, name="mixed")
        now_us = desk.clock.now_us()
        desk.id = desk.campaigns.add(campaign, people, "ada", now_us)
        desk.campaigns.move(desk.id, "sending", "ada", "", now_us)
        desk.campaigns.give_out(desk.campaigns.get(desk.id), np.array([30, 30]), np.array([0.5, 0.5]), np.arange(60), {}, now_us)
        gates = desk.sender.gates
        gates.providers[2] = Gate(("held",), 0, None, 0.0)
        gates.domains["x.com"] = Gate(("held",), 0, None, 0.0)
        await desk.send_until(lambda: desk.counts.get("sent", 0) == 20)
        await asyncio.sleep(0.2)
        assert went(inbox) == {"y.com": 20} and desk.counts == {"sent": 20, "planned": 40}
        gates.providers[2] = Gate(("probing",), 5, None, 0.0)
        await desk.send_until(lambda: desk.counts.get("sent", 0) == 25)
        await asyncio.sleep(0.2)
        assert went(inbox) == {"y.com": 20, "gmail.com": 5}
        gates.providers.clear()
        gates.domains.clear()
        desk.outbox.db.execute("UPDATE messages SET not_before_us = 0 WHERE state = 0")
        assert await desk.send_until(desk.over)
        assert went(inbox) == dict.fromkeys(("gmail.com", "x.com", "y.com"), 20)

    with box:
        run(tmp_path, smtp(box), act)


def went(inbox: Inbox) -> dict[str, int]:
    return dict(Counter(to[to.rfind("@") + 1 :] for to in (message.recipient for message in inbox.messages())))
