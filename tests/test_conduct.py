"""The conductor as a process, with door and engine: what people order is done once, and whoever is not to be written to is not."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import httpx
import msgspec
import pytest

from midflight.act import orders
from midflight.act.campaigns import Campaigns
from midflight.act.links import Links, public_key
from midflight.act.lists import keep
from midflight.act.orders import Add, AddVariant, Drop, Move, Order, Pin, Settle, record_of
from midflight.act.outbox import STATES, Outbox
from midflight.act.standing import Entry
from midflight.events import Event
from midflight.kit.clock import Clock
from midflight.log import Record
from midflight.sandbox.api_vendors import KEYS
from midflight.sandbox.apis import Apis
from midflight.sandbox.inbox import Accepted, Inbox, decoded, mail_headers
from midflight.sandbox.mailbox import Mailbox
from midflight.sandbox.misbehave import Plan
from midflight.sandbox.settings import sources_from
from midflight.sandbox.wire import Shipment
from midflight.serve.doorlink import append
from tests.system import System, wait_until

TEXT = "Hello {{ attributes.name | default: 'you' }}\n{{ unsubscribe_url }}"
SPEED = 600.0
AT_ONCE = {"hours": 1 / 60, "every_minutes": 0.5}  # a list that is out in a tenth of a second
LONG = {"hours": 100.0, "every_minutes": 10.0}  # ten minutes, a wave each second
slow_per_s = 60.0
CHANGED = """
from midflight.act.stop_list import StopList
from midflight.config import load_config
from midflight.serve import conduct
{}
conduct.run_conductor(load_config())
"""
OLD_SOON = "conduct.behind_s_max = 3.0"
STOPS_NOBODY = """StopList.begin, StopList.end = lambda self, recipients: set(), lambda self, recipients: None
conduct.Sender.look_again = lambda self: None"""


class Letterbox(Mailbox):
    """A mailbox that keeps subjects, too."""

    def letters(self, raw: bytes, recipients: list[str], queue_id: str) -> list[Accepted]:
        subjects.append(decoded(mail_headers(raw)["subject"]))
        return super().letters(raw, recipients, queue_id)


subjects: list[str] = []


class Site:
    """A system with its ways out: `fast`, `slow` and `dripping` by SMTP, `api` by HTTP. Each test makes campaigns of its own."""

    def __init__(self, system: System, inbox: Inbox, apis: Apis) -> None:
        self.system, self.inbox, self.apis = system, inbox, apis
        self.sources = sources_from({"sources": system.keys["sources"]})
        self.links = Links(public_key(system.data), system.config.door.base_url)
        self.numbers = itertools.count(1)

    # -- orders ----------------------------------------------------------------------------------------------------------------

    def order(self, order: Order) -> dict:
        """Have an order done and return what it was refused for; nothing where it was done."""
        append(self.system.config, [record_of(order)])
        return self.end_of(order.id)

    def end_of(self, id: str) -> dict:
        wait_until(lambda: self.asked(lambda campaigns: campaigns.order_end(id)) is not None, f"order {id} is done\n{self.said()}", 60)
        error = self.asked(lambda campaigns: campaigns.order_end(id))
        return msgspec.json.decode(error) if error else {}

    def id(self) -> str:
        return f"order-{next(self.numbers)}"

    def add(self, name: str, people: list[str] | bytes, **changes: object) -> dict:
        body = people if isinstance(people, bytes) else "".join(["email,name\n", *(f"{who},N\n" for who in people)]).encode()
        return self.order(Add(id=self.id(), campaign=name, who="ada", definition=definition(name, **changes), audience=self.keep(body)))

    def keep(self, body: bytes) -> str:
        return keep(self.system.data, body)

    def move(self, name: str, to: str) -> dict:
        return self.order(Move(id=self.id(), campaign=name, who="ada", to=to))

    def begin(self, name: str, people: list[str], **changes: object) -> None:
        assert self.add(name, people, **changes) == {}
        assert self.move(name, "sending") == {}

    # -- what has become of it --------------------------------------------------------------------------------------------------

    def asked(self, question: Callable[[Campaigns], object]) -> object:
        outbox = Outbox(self.system.data / "outbox.db", reading=True)
        try:
            return question(Campaigns(outbox))
        finally:
            outbox.close()

    def state(self, name: str) -> str:
        return self.asked(lambda campaigns: campaigns.named(name).state)

    def counts(self, name: str) -> dict[str, int]:
        found = self.asked(lambda campaigns: campaigns.outbox.counts(campaigns.named(name).id))
        return {state: n for state, n in found.items() if n}

    def rows(self, name: str) -> dict[str, tuple[str, str]]:
        """Return state and code of a campaign's messages, by recipient."""
        found = self.asked(
            lambda campaigns: campaigns.db.execute(
                "SELECT recipient, m.state, code FROM messages m JOIN campaigns c ON c.id = m.campaign WHERE c.name = ?", (name,)
            ).fetchall()
        )
        return {recipient: (STATES[state], code) for recipient, state, code in found}

    def ledger(self, name: str, kind: str) -> list[Entry]:
        return [entry for entry in self.asked(lambda c: c.ledger(c.named(name).id, count_max=1000)) if entry.kind == kind]

    def got(self, name: str) -> list[Accepted]:
        return [message for message in self.inbox.messages() if message.campaign == name]

    def who(self, name: str) -> Counter[str]:
        return Counter(message.recipient for message in self.got(name))

    def wait(self, name: str, state: str, seconds: float = 20.0) -> None:
        wait_until(lambda: self.state(name) == state, f"`{name}` is {state}\n{self.said()}", seconds)

    def said(self) -> str:
        return self.system.output("conductor")[-1500:]

    # -- what people do ---------------------------------------------------------------------------------------------------------

    def unsubscribe(self, recipient: str, campaign: str) -> int:
        url = self.links.url(recipient, campaign, "A", "1")
        body = b"List-Unsubscribe=One-Click"
        headers = {"content-type": "application/x-www-form-urlencoded"}
        return httpx.post(url, content=body, headers=headers, timeout=10, trust_env=False).status_code

    def report(self, kind: str, messages: list[Accepted], source: str = "sendgrid") -> None:
        """Tell the door, signed by a vendor, what became of messages."""
        now_us = Clock().now_us()
        events = [
            Event(
                source=source, event_id=f"{kind}-{m.intent}", kind=kind, occurred_at_us=now_us, recipient=m.recipient,
                message_id=m.message_id, campaign=m.campaign, variant=m.variant, wave=m.wave, metadata={"intent": m.intent},
            )
            for m in messages
        ]  # fmt: skip
        for batch in [events] if source == "sendgrid" else [[event] for event in events]:
            request = Shipment(source=source, due_us=now_us, events=batch).signed(self.sources[source], now_us, self.system.door)
            answer = httpx.post(request.url, content=request.body, headers=request.headers, timeout=10, trust_env=False)
            assert answer.status_code in (200, 202, 204), answer.text


def definition(name: str, **changes: object) -> dict:
    return {
        "name": name, "channel": "fast", "from_address": "news@shop.example", "audience": {"csv": "list.csv"}, "waves": AT_ONCE,
        "variants": [{"name": v, "subject": f"{v} for you", "text": TEXT} for v in "AB"], "policy": {"kind": "fixed_split"},
    } | changes  # fmt: skip


def people(tag: str, count: int) -> list[str]:
    return [f"{tag}{n}@example.com" for n in range(count)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Door, engine and conductor over one folder, and somewhere to send to."""
    inbox = Inbox()
    dripping = Mailbox(inbox, Plan(chances={"drip": 1.0}, drip_s=0.002))
    with Letterbox(inbox) as box, dripping, Apis(inbox, Plan({0: "accept_and_cut"})) as apis:
        smtp = {"kind": "smtp", "host": "127.0.0.1", "port": box.port, "tls": "none", "end_timeout_s": 5.0}
        channels = {
            "fast": smtp | {"per_second": 2000.0},
            "slow": smtp | {"per_second": slow_per_s},
            "dripping": smtp | {"port": dripping.port, "per_second": 2000.0},
            "api": {"kind": "postmark", "server_token": KEYS["postmark"], "url": apis.url, "per_second": 2000.0},
        }
        with System(tmp_path_factory.mktemp("conduct"), channels=channels, sending={"speed": SPEED}) as system:
            system.start_all("door", "engine", "conductor")
            wait_until(lambda: (system.data / "conductor.sock").exists(), f"a conductor\n{system.output('conductor')}")
            yield Site(system, inbox, apis)


def again(site: Site) -> None:
    """Start the conductor once more."""
    site.system.start("conductor")
    wait_until(lambda: (site.system.data / "conductor.sock").exists(), f"a conductor\n{site.said()}")


def changed(site: Site, lines: str) -> None:
    """Start a conductor in which something is otherwise."""
    with (site.system.folder / "conductor.out").open("a") as out:
        site.system.processes["conductor"] = subprocess.Popen(
            [sys.executable, "-c", CHANGED.format(lines)], env=site.system.environment(), stdout=out, stderr=out
        )
    wait_until(lambda: (site.system.data / "conductor.sock").exists(), f"a conductor\n{site.said()}")


# -- states ----------------------------------------------------------------------------------------------------------------------


def test_a_pause_takes_effect_within_a_second(site: Site) -> None:
    """Nothing arrives later than a second after the order; resumed, the rest goes; stopped, the rest is left out; nobody gets two."""
    site.begin("pause", people("pause", 400), channel="slow")
    wait_until(lambda: len(site.got("pause")) > 30, f"some\n{site.said()}", 60)
    append(site.system.config, [record_of(Move(id="hold", campaign="pause", who="ada", to="paused"))])
    asked_us = Clock().now_us()
    assert site.end_of("hold") == {} and site.state("pause") == "paused"
    time.sleep(1.5)
    got = site.got("pause")
    assert max(message.at_us for message in got) < asked_us + 1_000_000 and len(got) < 300
    assert site.counts("pause").get("called", 0) == 0
    assert site.move("pause", "sending") == {}
    wait_until(lambda: len(site.got("pause")) > len(got) + 30, f"more\n{site.said()}", 60)
    assert site.move("pause", "stopped") == {}
    wait_until(lambda: set(site.counts("pause")) == {"sent", "skipped"}, "an end", 60)
    time.sleep(0.5)
    assert len(site.got("pause")) == site.counts("pause")["sent"] < 400 and max(site.who("pause").values()) == 1


def test_a_scheduled_campaign_starts_at_its_time(site: Site) -> None:
    """Nothing goes before, everything after; taken back to a draft it does not start."""
    start = datetime.now(UTC) + timedelta(seconds=3)
    for name in ("later", "never"):
        assert site.add(name, people(name, 20), waves=AT_ONCE | {"start": start.isoformat()}) == {}
        assert site.move(name, "scheduled") == {}
    assert site.move("never", "draft") == {}
    site.wait("later", "done")
    assert min(message.at_us for message in site.got("later")) >= start.timestamp() * 1e6 and set(site.who("later").values()) == {1}
    assert len(site.got("later")) == 20 and site.got("never") == [] and site.state("never") == "draft"


def test_a_test_message_goes_to_the_tester_alone(site: Site) -> None:
    """It says that it is a test and is in no campaign's numbers; a variant that is not there is refused, and who has unsubscribed."""
    assert site.add("tested", people("tested", 5)) == {}
    assert site.order(orders.Test(id=site.id(), campaign="tested", who="ada", to="eve@shop.example", variant="B")) == {}
    wait_until(lambda: site.who("Test messages"), "a test message", 60)
    assert site.who("Test messages") == {"eve@shop.example": 1} and subjects[-1] == "[Test] B for you"
    assert site.counts("tested") == {} and site.state("tested") == "draft" and site.got("tested") == []
    for to, variant in (("eve@shop.example", "C"), ("nobody", "A")):
        assert site.order(orders.Test(id=site.id(), campaign="tested", who="ada", to=to, variant=variant))["code"] == "not_found"
    # Whoever tries the link of his own test has unsubscribed.
    assert site.unsubscribe("eve@shop.example", "tested") == 200
    again = site.order(orders.Test(id=site.id(), campaign="tested", who="ada", to="eve@shop.example", variant="A"))
    assert again["code"] == "not_now" and "unsubscribed" in again["what"] and again["got"] == "eve@shop.example"
    assert len(site.got("Test messages")) == 1


# -- who is not to be written to ----------------------------------------------------------------------------------------------------


def leave(site: Site, name: str, listed: list[str]) -> dict[str, int]:
    """Unsubscribe some whose messages wait for a connection; return when each of them was told so."""
    rows, got = site.rows(name), site.who(name)
    waiting = [who for who in listed if who not in got and rows.get(who, "")[:1] == ("called",)]
    left: dict[str, int] = {}
    for recipient in waiting[-60::4]:
        assert site.unsubscribe(recipient, name) == 200
        left[recipient] = Clock().now_us()
    assert len(left) > 10
    return left


def after(site: Site, name: str, left: dict[str, int]) -> list[str]:
    """Return those who got a message after they were told that they get none."""
    return [message.recipient for message in site.got(name) if message.at_us > left.get(message.recipient, 1 << 62)]


def test_nothing_goes_to_whoever_has_unsubscribed(site: Site) -> None:
    """After the 200 of a link nothing arrives, within two seconds of a vendor's webhook nothing either; the next campaign knows it too."""
    listed = people("leaves", 500)
    site.begin("leaves", listed, channel="dripping", guardrails={"unsubscribe": 1.0})
    wait_until(lambda: len(site.got("leaves")) > 10, f"some\n{site.said()}", 20)
    left = leave(site, "leaves", listed)
    rows = site.rows("leaves")
    told = [who for who in listed if rows.get(who, "")[:1] == ("planned",) and who not in left][-10:]
    blank = dict(intent="", campaign="leaves", variant="A", wave="1", propensity=0.5, vendor="smtp", at_us=0)
    site.report("unsubscribed", [Accepted(recipient=who, message_id=f"m-{who}", **blank) for who in told], "postmark")
    told_us = Clock().now_us()
    site.wait("leaves", "done", 90)
    arrived = {message.recipient: message.at_us for message in site.got("leaves")}
    assert after(site, "leaves", left) == []
    assert not [who for who in told if arrived.get(who, 0) > told_us + 2_000_000]
    gone = (left.keys() | set(told)) - arrived.keys()
    assert len(gone) > 15 and {site.rows("leaves")[who] for who in gone} == {("skipped", "unsubscribed")}
    assert set(arrived) == set(listed) - gone
    site.begin("leaves again", listed)
    site.wait("leaves again", "done")
    assert set(site.who("leaves again")) == set(listed) - left.keys() - set(told)
    assert {site.rows("leaves again")[who] for who in (*left, *told)} == {("skipped", "unsubscribed")}


def test_a_conductor_without_a_stop_list_is_caught(site: Site) -> None:
    """Control: where nobody asks again who has left since a message was taken, somebody gets it after the 200."""
    assert site.system.stop("conductor") == 0
    changed(site, STOPS_NOBODY)
    listed = people("caught", 200)
    site.begin("caught", listed, channel="dripping", guardrails={"unsubscribe": 1.0})
    wait_until(lambda: len(site.got("caught")) > 10, f"some\n{site.said()}", 20)
    left = leave(site, "caught", listed)
    site.wait("caught", "done", 30)
    assert after(site, "caught", left) != []
    assert site.system.stop("conductor") == 0
    again(site)


def test_complaints_above_the_ceiling_pause_a_campaign(site: Site) -> None:
    """The ledger says which rate was above what; a person lets it go on, and what had happened does not pause it again."""
    site.begin("guarded", people("guarded", 3_000), waves=LONG, policy={"kind": "fixed_split"})
    wait_until(lambda: len(site.got("guarded")) >= 20, f"some\n{site.said()}", 60)
    got = site.got("guarded")
    site.report("delivered", got)
    site.report("complained", got[:10])
    site.wait("guarded", "paused")
    (entry, *_) = site.ledger("guarded", "guard")
    assert "complaint" in entry.grounds["what"].lower() and entry.grounds["happened"] >= 5 and entry.grounds["ceiling"] == 0.002
    assert entry.who == "guard" and entry.grounds["of"] >= entry.grounds["happened"] and entry.grounds["evidence"] > 100
    before = len(site.got("guarded"))
    time.sleep(2.5)
    assert len(site.got("guarded")) == before
    assert site.move("guarded", "sending") == {}
    wait_until(lambda: len(site.got("guarded")) > before, "more", 60)
    time.sleep(2.5)
    assert site.state("guarded") == "sending" and site.move("guarded", "stopped") == {}
    assert max(site.who("guarded").values()) == 1


# -- what nobody knows ----------------------------------------------------------------------------------------------------------------


def test_what_nobody_knows_is_sent_again_by_a_persons_word_alone(site: Site) -> None:
    """A call that was accepted and cut leaves its messages unknown; a webhook settles those it names, an order sends the others again."""
    site.begin("unknown", people("unknown", 40), channel="api", waves={"hours": 1 / 60, "every_minutes": 1.0})
    wait_until(lambda: site.counts("unknown").get("unknown") and site.state("unknown") == "done", f"an end\n{site.said()}", 60)
    unknown = {who for who, (state, _) in site.rows("unknown").items() if state == "unknown"}
    assert len(site.got("unknown")) == 40 and site.inbox.twice() == {} and len(unknown) >= 10
    named = [message for message in site.got("unknown") if message.recipient in unknown][:4]
    site.report("delivered", named, "postmark")
    wait_until(lambda: site.counts("unknown")["unknown"] == len(unknown) - 4, "the named are sent", 60)
    time.sleep(1.0)
    assert len(site.got("unknown")) == 40
    assert site.order(Settle(id=site.id(), campaign="unknown", who="ada", why="the vendor lost them", end="planned")) == {}
    wait_until(lambda: site.counts("unknown") == {"sent": 40}, "the others go", 60)
    site.wait("unknown", "done")
    assert {who for who, n in site.who("unknown").items() if n > 1} == unknown - {message.recipient for message in named}
    assert max(site.who("unknown").values()) == 2


# -- orders ------------------------------------------------------------------------------------------------------------------------


def test_an_order_that_cannot_be_done_says_why_and_does_nothing(site: Site) -> None:
    """Under its id stand code and place of what is wrong, and neither a campaign nor a change is left of it."""
    assert site.move("nowhere", "sending")["code"] == "not_found"
    assert site.add("bad", people("bad", 2), goal="fame")["code"] == "bad_campaign"
    missing = Add(id="missing", campaign="bad", who="ada", definition=definition("bad"), audience="0" * 64 + ".csv")
    assert site.order(missing)["code"] == "not_found"
    away = Add(id="away", campaign="bad", who="ada", definition=definition("bad"), audience="../../midflight.yaml")
    assert site.order(away)["code"] == "not_found"
    append(site.system.config, [Record("definition", "campaigns", 0, {}, b'{"do": "dance"}')])
    assert site.add("bad", people("bad", 2), seed=-1)["code"] == "bad_campaign"
    assert site.asked(lambda campaigns: campaigns.db.execute("SELECT count(*) FROM campaigns WHERE name = 'bad'").get) == 0


def test_variants_are_pinned_dropped_and_added(site: Site) -> None:
    """Each change is in the ledger; the last variant stays, a dropped one is not pinned, one without text or name is not added."""
    assert site.add("arms", people("arms", 10)) == {}

    def said(order: type[Order], **what: object) -> str:
        return site.order(order(id=site.id(), campaign="arms", who="ada", **what)).get("code", "")

    assert said(Pin, variant="B") == "" and site.asked(lambda c: c.named("arms").pinned) == 1
    assert said(Pin) == "" and site.asked(lambda c: c.named("arms").pinned) == -1
    assert said(Drop, variant="A") == "" and (said(Drop, variant="B"), said(Pin, variant="A")) == ("not_now", "not_now")
    assert said(AddVariant, variant={"name": "C", "subject": "C for you", "text": TEXT}) == ""
    for wrong in ({"name": "D"}, {"name": "C", "subject": "x", "text": TEXT}, {"name": "E", "subject": "{{ nope", "text": TEXT}, {}):
        assert said(AddVariant, variant=wrong) != "", wrong
    now = site.asked(lambda c: c.named("arms"))
    assert [v.name for v in now.definition.variants] == ["A", "B", "C"] and now.live.tolist() == [False, True, True]
    whats = [change["what"] for change in site.asked(lambda c: c.changes(now.id))]
    assert whats == ["added", "pinned B", "gave the waves back to the policy", "dropped A", "added C"]
    assert site.move("arms", "sending") == {}
    site.wait("arms", "done")
    assert {message.variant for message in site.got("arms")} == {"B", "C"}


def test_a_long_list_holds_up_its_own_campaign_alone(site: Site) -> None:
    """While a list of 200,000 is read another campaign is paused, however much is asked of the long one before; that is done after it, in
    order. A conductor that is stopped within it reads it again."""
    site.begin("short", people("short", 400), channel="slow")
    listed = "".join(["email,name\n", *(f"r{n}@long.example,N\n" for n in range(200_000))]).encode()
    add = Add(id="long", campaign="long", who="ada", definition=definition("long"), audience=site.keep(listed))
    pins = [orders.Pin(id=f"pin {n}", campaign="long", who="ada") for n in range(150)]
    moves = [Move(id=f"move {name}", campaign=name, who="ada", to=to) for name, to in (("long", "stopped"), ("short", "paused"))]
    append(site.system.config, [record_of(order) for order in (add, *pins, *moves, add)])
    assert site.end_of("move short") == {} and site.state("short") == "paused"
    assert site.asked(lambda campaigns: campaigns.order_end("long")) is None
    assert site.system.stop("conductor") == 0
    assert site.asked(lambda campaigns: campaigns.order_end("long")) is None
    again(site)
    assert [site.end_of(id) for id in ("long", "pin 0", "pin 149", "move long")] == [{}] * 4
    found = site.asked(lambda campaigns: (campaigns.named("long"), campaigns.db.execute("SELECT count(*) FROM people").get))
    assert (found[0].state, found[0].people) == ("stopped", 200_000) and found[1] >= 200_000
    assert site.move("short", "stopped") == {}


def test_an_order_that_comes_twice_is_done_once(site: Site) -> None:
    """A record that was appended again, because nobody heard that it was taken, changes nothing and keeps its first end."""
    assert site.add("twice", people("twice", 3)) == {}
    order = orders.Test(id=site.id(), campaign="twice", who="ada", to="twice@shop.example", variant="A")
    append(site.system.config, [record_of(order), record_of(order)])
    assert site.end_of(order.id) == {} and site.move("twice", "sending") == {}
    site.wait("twice", "done")
    assert site.who("Test messages")["twice@shop.example"] == 1


@pytest.mark.parametrize("crash_at", ["after_move", "after_wave", "after_intent"])
def test_an_order_is_done_once_whatever_dies(site: Site, crash_at: str) -> None:
    """The conductor dies within the order or right after it: the next one finds it done or does it, and nobody gets two."""
    name = f"dies {crash_at}"
    assert site.add(name, people(crash_at, 30)) == {}
    assert site.system.stop("conductor") == 0
    order = Move(id=site.id(), campaign=name, who="ada", to="sending")
    append(site.system.config, [record_of(order)])
    process = site.system.start("conductor", crash_at=crash_at)
    assert process.wait(20) == -9, site.said()
    again(site)
    assert site.end_of(order.id) == {}
    wait_until(lambda: not {"planned", "called"} & site.counts(name).keys() and site.state(name) == "done", f"an end\n{site.said()}", 60)
    whats = [change["what"] for change in site.asked(lambda c: c.changes(c.named(name).id))]
    assert whats == ["added", "sending", "done"]
    assert set(site.who(name).values()) == {1} and len(site.got(name)) + site.counts(name).get("unknown", 0) >= 30


# -- whether it may send at all ----------------------------------------------------------------------------------------------------


def test_with_old_numbers_nothing_goes(site: Site) -> None:
    """A quiet log makes no numbers old. While the engine is away and something has come in nothing goes after the bound, and the ledger
    says so; when the engine is back the rest goes."""
    assert site.system.stop("conductor") == 0
    changed(site, OLD_SOON)
    site.begin("old", people("old", 900), channel="slow")
    wait_until(lambda: len(site.got("old")) > 10, f"some\n{site.said()}", 20)
    time.sleep(4.5)
    assert site.ledger("old", "held") == []
    assert site.system.stop("engine") == 0
    site.report("delivered", site.got("old")[:1])
    told_us = Clock().now_us()
    wait_until(lambda: site.ledger("old", "held"), f"a line\n{site.said()}", 15)
    time.sleep(0.5)
    count = len(site.got("old"))
    time.sleep(1.0)
    got = site.got("old")
    assert len(got) == count < 900 and max(message.at_us for message in got) < told_us + 4_000_000
    assert "numbers" in site.ledger("old", "held")[0].text
    site.system.start("engine")
    wait_until(lambda: len(site.got("old")) > count, f"more\n{site.said()}", 60)
    assert site.move("old", "stopped") == {}
    assert site.system.stop("conductor") == 0
    again(site)


def test_a_second_conductor_is_refused(site: Site) -> None:
    """It ends with one line that says why, and the first goes on."""
    command, environment = site.system.command("conductor"), site.system.environment()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    said = (done.stdout + done.stderr).strip()
    assert done.returncode != 0 and "Another conductor" in said and "Traceback" not in said and len(said.splitlines()) <= 2, said
    assert site.system.processes["conductor"].poll() is None


# -- bad input -----------------------------------------------------------------------------------------------------------------------


def test_lists_of_nobody_of_one_and_with_broken_rows(site: Site) -> None:
    """Nobody: the campaign ends without a message. One: he gets his. Broken rows are left out, too many of them refuse the list."""
    broken = (
        b"email,name\nb1@example.com,Ada\nnothing,Ben\nb2@example.com,Cleo,more\nb3@example.com,D\nB1@example.com,E\nb4@example.com,F\n"
    )
    for name, body, expected in (
        ("nobody", b"email,name\n", set()),
        ("one", b"email,name\nOne@example.com,Ada\n", {"One@example.com"}),
        ("broken", broken, {"b1@example.com", "b3@example.com", "b4@example.com"}),
    ):
        assert site.add(name, body) == {}, name
        assert site.move(name, "sending") == {}, name
        site.wait(name, "done")
        assert set(site.who(name)) == expected and max(site.who(name).values(), default=1) == 1
    assert site.add("rubbish", b"email,name\nx,y\nz,w\na@example.com,b\n")["code"] == "bad_audience"
    assert site.add("rubbish", b"no addresses here\n1\n")["code"] == "bad_audience"
    assert site.add("rubbish", b"\xff\xfe\x00email")["code"] == "bad_audience"
    assert site.move("rubbish", "sending")["code"] == "not_found"


def test_definitions_that_nobody_should_send_are_refused(site: Site) -> None:
    """No text, no variant, a thousand variants, a column that is not there, an unknown channel: an error, and nothing to send."""
    many = [{"name": f"V{n}", "subject": "s", "text": TEXT} for n in range(1000)]
    for changes in (
        {"variants": [{"name": "A", "subject": "A"}]},
        {"variants": [{"name": "A", "subject": "", "text": TEXT}]},
        {"variants": []},
        {"variants": many},
        {"variants": [{"name": "A", "subject": "A", "text": "{{ attributes.nope }} {{ unsubscribe_url }}"}]},
        {"channel": "fats"},
        {"guardrails": {"complaint": -1}},
    ):
        error = site.add("wrong", people("wrong", 2), **changes)
        assert error.get("code") in ("bad_campaign", "template") and error["what"], (changes, error)
    assert site.move("wrong", "sending")["code"] == "not_found"


def test_guards_know_what_was_sent_where_no_delivery_is_reported(site: Site) -> None:
    """By a plain relay nobody is told of deliveries: five of some hundred who unsubscribe stop nothing, a sixth of all people does."""
    site.begin("relay", people("relay", 2_000), waves={"hours": 6.0, "every_minutes": 10.0}, guardrails={"unsubscribe": 0.02})
    wait_until(lambda: len(site.got("relay")) >= 300, f"some\n{site.said()}", 20)
    got = site.got("relay")
    for message in got[:5]:
        assert site.unsubscribe(message.recipient, "relay") == 200
    time.sleep(2.5)
    assert site.ledger("relay", "guard") == []
    for message in got[5:70]:
        assert site.unsubscribe(message.recipient, "relay") == 200
    wait_until(lambda: site.ledger("relay", "guard"), "a guard", 10)
    assert site.ledger("relay", "guard")[0].grounds["of"] >= 150


def test_a_ceiling_of_nothing_stops_at_the_first(site: Site) -> None:
    """With a ceiling of 0 the campaign goes until the first complaint, and then it is paused."""
    site.begin("zero", people("zero", 3_000), waves=LONG, guardrails={"complaint": 0})
    wait_until(lambda: len(site.got("zero")) >= 2, f"some\n{site.said()}", 60)
    time.sleep(2.5)
    assert site.state("zero") == "sending"
    site.report("complained", site.got("zero")[:1], "postmark")
    site.wait("zero", "paused")
    assert site.move("zero", "stopped") == {} and site.ledger("zero", "guard")[0].grounds["happened"] == 1


def test_a_campaign_that_others_send_has_no_test_message(site: Site) -> None:
    """Without a channel a test is refused, and orders after it are done."""
    assert site.add("asked", [], channel="", audience={"api": True}) == {}
    assert site.order(orders.Test(id=site.id(), campaign="asked", who="ada", to="eve@shop.example", variant="A"))["code"] == "not_now"
    assert site.move("asked", "paused")["code"] == "not_now"
    assert site.move("asked", "stopped") == {}
