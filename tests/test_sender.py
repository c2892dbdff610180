"""The sender over a real SMTP server and real APIs: who may be written to is, once, as fast as is allowed, and what ends is noted."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from midflight.act.audience import Recipient
from midflight.act.begun import Begun
from midflight.act.campaigns import Campaigns
from midflight.act.carriers import carriers_of
from midflight.act.definition import campaign_of
from midflight.act.links import Links
from midflight.act.outbox import Outbox
from midflight.act.pace import Pace
from midflight.act.sender import Job, Sender
from midflight.act.stop_list import StopList
from midflight.kit.clock import Clock
from midflight.kit.errors import ConfigError
from midflight.sandbox.api_vendors import KEYS
from midflight.sandbox.apis import Apis
from midflight.sandbox.inbox import Inbox
from midflight.sandbox.mailbox import Mailbox
from midflight.sandbox.misbehave import Plan

TEXT = "Hello {{ attributes.name | default: 'you' }} {{ unsubscribe_url }}"
VARIANTS = [{"name": name, "subject": f"{name} for you", "text": TEXT} for name in "AB"]
KEY = bytes(range(64))
HOUR_US = 3600 * 1_000_000


class Desk:
    """A campaign whose list is given out as one wave, half to each variant; and a sender."""

    def __init__(self, folder: Path, channel: dict, count: int = 100, suppressed: dict[str, str] | None = None, **changes: object) -> None:
        per_day = changes.pop("recipient_per_day", 0)
        self.clock = Clock()
        self.outbox = Outbox(folder / "outbox.db")
        self.campaigns = Campaigns(self.outbox)
        self.stops = StopList()
        self.begun = Begun(folder / "outbox.begun")
        self.recovered = self.outbox.recover(self.clock.now_us(), self.begun.found)
        self.begun.start()
        self.suppressed = suppressed or {}
        raw = {"name": "spring", "channel": "out", "from_address": "news@shop.example", "audience": {"csv": "x"}, "variants": VARIANTS}
        self.ready = campaign_of(raw | changes, {"out"})
        self.sender = Sender(
            self.campaigns, carriers_of({"out": channel}, self.clock), self.stops, Links(KEY, "https://m.example"), self.clock,
            begun=self.begun.note, suppressed=lambda keys: {k: self.suppressed[k] for k in keys if k in self.suppressed},
            recipient_per_day=per_day,
        )  # fmt: skip
        self.id = self.begin("spring", count) if not self.campaigns.in_state("sending", "paused") else 1

    def begin(self, name: str, count: int) -> int:
        """Add a campaign, start it and give out all of it."""
        campaign, now_us = msgspec.structs.replace(self.ready.campaign, name=name), self.clock.now_us()
        people = [Recipient(key=f"p{n}@example.com", address=f"P{n}@example.com", attributes={"name": f"N{n}"}) for n in range(count)]
        number = self.campaigns.add(campaign, people, "ada", now_us)
        self.campaigns.move(number, "sending", "ada", "", now_us)
        counts = np.array([count - count // 2, count // 2])
        self.campaigns.give_out(self.campaigns.get(number), counts, np.array([0.5, 0.5]), np.arange(count), {}, now_us)
        return number

    async def send_until(self, done: Callable[[], bool], seconds: float = 30.0) -> bool:
        """Send until something holds; return whether it does."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not done():
            self.sender.settle()
            self.sender.fill(self.campaigns.get(self.id), self.ready)
            await asyncio.sleep(0.01)
        return done()

    @property
    def counts(self) -> dict[str, int]:
        return {state: n for state, n in self.outbox.counts(self.id).items() if n}

    def over(self) -> bool:
        return not {"planned", "called"} & self.counts.keys()


def run(folder: Path, channel: dict, act: Callable[[Desk], Awaitable[None]], **given: object) -> Desk:
    """Let a desk do something, and close it."""

    async def whole() -> Desk:
        desk = Desk(folder, channel, **given)
        try:
            await act(desk)
        finally:
            await desk.sender.close(5.0)
        return desk

    return asyncio.run(whole())


async def send_all(desk: Desk) -> None:
    assert await desk.send_until(desk.over), desk.counts


def smtp(box: Mailbox, **more: object) -> dict:
    return {"kind": "smtp", "host": "127.0.0.1", "port": box.port, "tls": "none", "per_second": 5000.0, "end_timeout_s": 2.0} | more


def api(kind: str, apis: Apis, **more: object) -> dict:
    own = {"mailgun": {"api_key": KEYS[kind], "domain": "m.example"}, "postmark": {"server_token": KEYS[kind]}}
    return {"kind": kind, "url": apis.url, "per_second": 5000.0} | own.get(kind, {"api_key": KEYS[kind]}) | more


# -- everybody, once -----------------------------------------------------------------------------------------------------------


def test_everybody_gets_one_message_by_smtp(tmp_path: Path) -> None:
    """Each of the list gets one message of his variant, with what has to come back attached."""
    inbox = Inbox()
    with Mailbox(inbox) as box:
        desk = run(tmp_path, smtp(box), send_all, count=300)
    assert desk.counts == {"sent": 300} and len(inbox) == 300 and inbox.twice() == {}
    assert {m.recipient for m in inbox.messages()} == {f"P{n}@example.com" for n in range(300)}
    assert Counter(m.variant for m in inbox.messages()) == {"A": 150, "B": 150}
    assert {(m.campaign, m.wave, m.propensity) for m in inbox.messages()} == {("spring", "1", 0.5)}


@pytest.mark.parametrize("kind", ["sendgrid", "postmark", "mailgun", "resend"])
def test_everybody_gets_one_message_by_http(tmp_path: Path, kind: str) -> None:
    """The same holds over a vendor's API, in full calls where it takes them, also when it throttles now and then."""
    inbox = Inbox()
    with Apis(inbox, Plan(chances={"429_retry_after": 0.1}, seed=3)) as apis:
        desk = run(tmp_path, api(kind, apis), send_all, count=150)
    assert desk.counts == {"sent": 150} and len(inbox) == 150 and inbox.twice() == {}
    if kind == "postmark":
        assert apis.requests < 75


@pytest.mark.parametrize("way", ["smtp", "sendgrid"])
def test_whatever_happens_nobody_gets_two(tmp_path: Path, way: str) -> None:
    """With all misbehaviours in a third of the calls nobody gets two messages, and whoever got none is refused or unknown, not sent."""
    bad_smtp = (
        "greet_4xx",
        "mail_4xx",
        "rcpt_4xx",
        "rcpt_5xx",
        "dot_4xx",
        "dot_5xx",
        "cut_before_dot",
        "cut_after_dot",
        "accept_and_cut",
        "garble",
    )
    bad_http = ("accept_and_cut", "accept_and_500", "bad_json", "400", "409", "429", "500", "redirect", "cut_before_body", "cut_in_body")
    bad = bad_smtp if way == "smtp" else bad_http
    inbox, plan = Inbox(), Plan(chances=dict.fromkeys(bad, 0.33 / len(bad)), seed=5)
    with Mailbox(inbox, plan) if way == "smtp" else Apis(inbox, plan) as server:
        desk = run(tmp_path, smtp(server) if way == "smtp" else api(way, server), send_all, count=300)
    states = dict(desk.outbox.db.execute("SELECT intent, state FROM messages"))
    assert inbox.twice() == {} and sum(n for name, n in plan.happened.items() if name in bad) > 40
    got = set(inbox.counts())
    assert {intent for intent, state in states.items() if state == 2} <= got
    assert {intent for intent, state in states.items() if state == 3} & got == set()


# -- who must not be written to ---------------------------------------------------------------------------------------------------


def test_the_suppressed_get_nothing(tmp_path: Path) -> None:
    """Whoever is suppressed when his message is taken is left out, and the outbox says why."""
    inbox, suppressed = Inbox(), {f"p{n}@example.com": why for n, why in enumerate(["unsubscribed", "complained", "bounced"] * 10)}
    with Mailbox(inbox) as box:
        desk = run(tmp_path, smtp(box), send_all, count=100, suppressed=suppressed)
    assert desk.counts == {"sent": 70, "skipped": 30}
    assert {m.recipient.lower() for m in inbox.messages()}.isdisjoint(suppressed)
    assert dict(desk.outbox.db.execute("SELECT recipient, code FROM messages WHERE state = 5")) == suppressed


def test_who_unsubscribes_after_his_message_was_taken_gets_nothing(tmp_path: Path) -> None:
    """Messages wait for a connection; whoever is put on the stop list meanwhile is left out of the call, also of a full one."""
    inbox = Inbox()
    with Apis(inbox) as apis:

        async def act(desk: Desk) -> None:
            desk.sender.fill(desk.campaigns.get(desk.id), desk.ready)
            assert desk.counts == {"called": 100}
            for n in range(0, 100, 7):
                desk.stops.stop(f"p{n}@example.com", lambda recipient: None)
            await send_all(desk)

        desk = run(tmp_path, api("postmark", apis), act, count=100)
    assert desk.counts == {"sent": 85, "skipped": 15} and len(inbox) == 85
    assert not {m.recipient for m in inbox.messages()} & {f"P{n}@example.com" for n in range(0, 100, 7)}


def test_nobody_gets_more_in_a_day_than_anybody_may(tmp_path: Path) -> None:
    """With a cap of one, a second campaign's message to the same person waits an hour; at the campaign's end it is left out."""
    inbox = Inbox()
    with Mailbox(inbox) as box:

        async def act(desk: Desk) -> None:
            await send_all(desk)
            desk.id = desk.begin("summer", 50)
            assert await desk.send_until(lambda: desk.counts.get("sent", 0) == 20)
            waits = desk.outbox.db.execute("SELECT count(*) FROM messages WHERE campaign = ? AND not_before_us > 0", (desk.id,)).get
            assert waits == 30

        desk = run(tmp_path, smtp(box), act, count=30, recipient_per_day=1)
    assert desk.counts == {"planned": 30, "sent": 20} and len(inbox) == 50


def test_a_message_that_cannot_be_made_stops_no_other(tmp_path: Path) -> None:
    """A subject that comes out empty for one person leaves him out with the reason."""
    variants = [{"name": name, "subject": "{{ attributes.name | remove: 'N7' }}", "text": TEXT} for name in "AB"]
    inbox = Inbox()
    with Mailbox(inbox) as box:
        desk = run(tmp_path, smtp(box), send_all, count=10, variants=variants)
    assert desk.counts == {"sent": 9, "skipped": 1}
    recipient, code, detail = desk.outbox.db.execute("SELECT recipient, code, detail FROM messages WHERE state = 5").fetchone()
    assert (recipient, code) == ("p7@example.com", "content") and "subject" in detail


# -- bounds on speed -----------------------------------------------------------------------------------------------------------


def test_a_pace_gives_what_it_says_and_no_burst() -> None:
    """Over a minute a pace gives its rate, and after a pause not more than a second's worth at once."""
    pace, given = Pace(10.0, 0.0), 0
    for step in range(600):
        count = pace.ready(step / 10, 1000)
        pace.took(count)
        given += count
    assert 590 <= given <= 602
    assert pace.ready(1e6, 1000) == 10
    assert Pace(0.0, 0.0).ready(1.0, 77) == 77
    slow = Pace(1 / 60, 0.0)
    slow.took(slow.ready(0.0, 5))
    assert slow.ready(30.0, 5) == 0 and slow.ready(61.0, 5) == 1


def test_providers_have_their_own_bounds(tmp_path: Path) -> None:
    """A bound for one mailbox provider holds back its messages and no others."""
    inbox = Inbox()
    with Mailbox(inbox) as box:

        async def act(desk: Desk) -> None:
            desk.outbox.db.execute("UPDATE messages SET provider = 2 WHERE recipient LIKE 'p1%'")
            assert await desk.send_until(lambda: desk.counts.get("sent", 0) >= 89)
            await asyncio.sleep(0.3)
            assert not await desk.send_until(desk.over, 0.5)

        desk = run(tmp_path, smtp(box), act, count=100, waves={"per_provider_per_minute": {"gmail": 6}})
    sent = Counter(desk.outbox.db.execute("SELECT provider = 2 FROM messages WHERE state = 2").fetchall())
    assert sent[(0,)] == 89 and sent[(1,)] <= 2


def test_a_warm_up_ends_the_day(tmp_path: Path) -> None:
    """With a warm-up of 40 on the first day the rest waits, also after a restart; on the second day more go."""
    inbox = Inbox()
    with Mailbox(inbox) as box:

        async def first_day(desk: Desk) -> None:
            assert await desk.send_until(lambda: desk.counts.get("sent", 0) == 40)
            assert not await desk.send_until(lambda: desk.counts["sent"] > 40, 0.5)

        async def second_day(desk: Desk) -> None:
            assert not await desk.send_until(lambda: desk.counts["sent"] > 40, 0.5)
            desk.outbox.db.execute("UPDATE campaigns SET started_us = started_us - ?", (25 * HOUR_US,))
            desk.outbox.db.execute("UPDATE messages SET changed_at_us = changed_at_us - ?", (25 * HOUR_US,))
            assert await desk.send_until(lambda: desk.counts.get("sent", 0) == 90)
            assert not await desk.send_until(lambda: desk.counts["sent"] > 90, 0.5)

        waves = {"warm_up": [40, 50], "hours": 72, "every_minutes": 60}
        run(tmp_path, smtp(box), first_day, count=100, waves=waves).outbox.close()
        desk = run(tmp_path, smtp(box), second_day, waves=waves)
    assert len(inbox) == 90 and inbox.twice() == {} and desk.counts == {"planned": 10, "sent": 90}


# -- ends ------------------------------------------------------------------------------------------------------------------------


def test_wrong_credentials_hold_the_channel_and_lose_nobody(tmp_path: Path) -> None:
    """After a 401 the channel rests: few calls are made, nobody is refused, and with the right key all go."""
    inbox = Inbox()
    with Apis(inbox) as apis:

        async def turned_away(desk: Desk) -> None:
            await desk.send_until(lambda: bool(desk.sender.lanes["out"].held()), 10)
            assert "401" in desk.sender.lanes["out"].held()
            await desk.send_until(desk.over, 1.0)
            assert apis.requests <= 16

        run(tmp_path, api("sendgrid", apis, api_key="SG.wrong"), turned_away, count=100).outbox.close()

        async def right(desk: Desk) -> None:
            desk.outbox.db.execute("UPDATE messages SET not_before_us = 0")
            await send_all(desk)

        desk = run(tmp_path, api("sendgrid", apis), right)
    assert desk.counts == {"sent": 100} and inbox.twice() == {}


def test_what_waits_is_taken_back_within_a_second(tmp_path: Path) -> None:
    """A pause in the middle of a wave: within a second nothing more begins, and what waited is planned as if never taken."""
    inbox = Inbox()
    with Mailbox(inbox, Plan(chances={"drip": 1.0}, drip_s=0.002)) as box:

        async def act(desk: Desk) -> None:
            assert await desk.send_until(lambda: desk.counts.get("sent", 0) > 20)
            began = time.monotonic()
            desk.sender.withdraw(desk.id)
            desk.campaigns.move(desk.id, "paused", "ada", "", desk.clock.now_us())
            while not desk.sender.idle(desk.campaigns.get(desk.id)):
                desk.sender.settle()
                await asyncio.sleep(0.005)
            assert time.monotonic() - began < 1.0
            seen = len(inbox)
            await asyncio.sleep(0.3)
            assert len(inbox) == seen
            desk.campaigns.move(desk.id, "sending", "ada", "", desk.clock.now_us())
            await send_all(desk)

        desk = run(tmp_path, smtp(box), act, count=400)
    assert desk.counts == {"sent": 400} and inbox.twice() == {}
    assert desk.outbox.db.execute("SELECT max(tries) FROM messages").get == 1


def test_who_leaves_while_a_message_waits_does_not_get_it(tmp_path: Path) -> None:
    """Whoever a vendor reports to have left, when the message is taken already and waits for a connection, is asked about again: batches
    that hold nobody of them stay where they are. A day's bound on a warm-up counts what went, not what was taken back."""
    inbox = Inbox()
    gone = {f"p{n}@example.com": "unsubscribed" for n in (150, 197, 198)}
    with Mailbox(inbox, Plan(chances={"drip": 1.0}, drip_s=0.002)) as box:

        async def act(desk: Desk) -> None:
            assert await desk.send_until(lambda: desk.counts.get("sent", 0) > 5)
            assert desk.sender.holds() >= gone.keys()
            before = len(desk.sender.holds())
            desk.sender.look_again()
            assert len(desk.sender.holds()) == before
            desk.suppressed.update(gone)
            desk.sender.look_again()
            assert len(desk.sender.holds()) == before - len(gone) and not gone.keys() & desk.sender.holds()
            await send_all(desk)

        desk = run(tmp_path, smtp(box), act, count=200, waves={"warm_up": [200]})
    assert desk.counts == {"sent": 197, "skipped": 3} and not gone.keys() & {m.recipient.lower() for m in inbox.messages()}


def test_a_test_message_waits_through_a_pause_and_not_for_who_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It goes though its campaign is paused meanwhile; where its recipient has unsubscribed meanwhile it does not, and the log says so."""
    inbox = Inbox()
    with Mailbox(inbox, Plan(chances={"drip": 1.0}, drip_s=0.002)) as box:

        async def act(desk: Desk) -> None:
            assert await desk.send_until(lambda: desk.counts.get("sent", 0) > 5)
            lane = desk.sender.lanes["out"]
            for who in ("eve", "gone", "quick"):
                message = msgspec.structs.replace(lane._queue[0].messages[0], to=f"{who}@shop.example", intent=f"test-{who}")
                lane.offer([Job(campaign=desk.id, keys=[message.to], messages=[message], call=None, tries=0, stale_us=0, test=True)])
            desk.sender.withdraw(desk.id)
            desk.campaigns.move(desk.id, "paused", "ada", "", desk.clock.now_us())
            assert desk.sender.holds() == {"eve@shop.example", "gone@shop.example", "quick@shop.example"}
            desk.suppressed["gone@shop.example"] = "unsubscribed"
            desk.stops.stopped.add("quick@shop.example")
            desk.sender.look_again()
            assert await desk.send_until(lambda: desk.sender.idle(desk.campaigns.get(desk.id)))

        run(tmp_path, smtp(box), act, count=200)
    got = {m.recipient.lower() for m in inbox.messages()}
    assert "eve@shop.example" in got and not {"gone@shop.example", "quick@shop.example"} & got
    assert caplog.text.count("test messages that waited for a connection of `out` and are not sent: 1") == 2


def test_what_nobody_wants_any_more_is_given_up(tmp_path: Path) -> None:
    """A message that would be tried again a day after the campaign's hours is refused instead."""
    inbox = Inbox()
    with Apis(inbox, Plan(chances={"429": 1.0})) as apis:

        async def act(desk: Desk) -> None:
            desk.outbox.db.execute("UPDATE campaigns SET started_us = started_us - ?", (100 * HOUR_US,))
            await send_all(desk)

        desk = run(tmp_path, api("sendgrid", apis), act, count=5)
    assert desk.counts == {"refused": 5} and len(inbox) == 0
    assert "given up" in desk.outbox.db.execute("SELECT detail FROM messages LIMIT 1").get


# -- what a death leaves ---------------------------------------------------------------------------------------------------------


def test_only_what_has_begun_is_unknown_after_a_death(tmp_path: Path) -> None:
    """Called and waiting for a connection is planned again, what has begun is unknown; without the file or after another boot all are."""
    begun = Begun(tmp_path / "outbox.begun", "boot 1")
    begun.start()
    begun.note(["in-1", "in-2"])
    begun.close()
    assert {"in-1", "in-2"} <= Begun(tmp_path / "outbox.begun", "boot 1").found
    assert Begun(tmp_path / "outbox.begun", "boot 2").found is None and Begun(tmp_path / "none.begun", "boot 1").found is None


def test_the_file_of_what_has_begun_stays_small(tmp_path: Path) -> None:
    """Beyond a megabyte what has ended is left out, and what is under way is kept."""
    begun = Begun(tmp_path / "outbox.begun", "boot")
    begun.start()
    for n in range(40_000):
        begun.note([f"in-{n:030d}"])
    begun.tidy(["in-kept"])
    begun.note(["in-later"])
    begun.close()
    assert (tmp_path / "outbox.begun").stat().st_size < 100 and Begun(tmp_path / "outbox.begun", "boot").found >= {"in-kept", "in-later"}


def test_an_unknown_kind_of_channel_is_named() -> None:
    """A channel of a kind that is not there offers the nearest; settings that are wrong say where."""
    with pytest.raises(ConfigError, match="sendgrid"):
        carriers_of({"out": {"kind": "sendgird"}}, Clock())
    with pytest.raises(ConfigError, match=r"\$\.channels\.out"):
        carriers_of({"out": {"kind": "smtp"}}, Clock())
