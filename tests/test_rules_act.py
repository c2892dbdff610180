"""Rules over the real processes: who clicks and does not buy hears once by each way; within limits, held, undone, over a restart."""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator

import apsw
import httpx
import msgspec
import pytest

from midflight.act import kill_switch
from midflight.act.actions import Actions
from midflight.act.campaigns import Campaigns
from midflight.act.follow_up import intent_of
from midflight.act.links import Links, public_key
from midflight.act.lists import keep
from midflight.act.orders import Add, Move
from midflight.act.orders import record_of as campaign_record
from midflight.act.outbox import Outbox
from midflight.act.rule_orders import Approve, DropSegment, PutRule, PutSegment, RemoveRule, RuleOrder, Undo, record_of
from midflight.act.site_messages import SiteMessages
from midflight.act.ways.webhook import example_secret
from midflight.decide.limits import held_out
from midflight.events import Event
from midflight.kit.clock import Clock
from midflight.sandbox.api_vendors import KEYS
from midflight.sandbox.apis import Apis
from midflight.sandbox.inbox import Accepted, Inbox
from midflight.sandbox.mailbox import Mailbox
from midflight.sandbox.misbehave import Plan
from midflight.sandbox.settings import sources_from
from midflight.sandbox.way_vendors import Receiver, secret_bytes
from midflight.sandbox.ways import Ways
from midflight.sandbox.wire import Shipment
from midflight.serve.doorlink import append
from midflight.store import asking
from tests.system import System, wait_until

LIMITS = {"autonomy": "act", "holdout": 0.1, "expires_minutes": 60}
MAIL = {"subject": "Still thinking, {{ attributes.name | default: 'friend' }}?", "text": "Come back.", "channel": "main",
        "from_address": "news@shop.example"}  # fmt: skip
HOOK = {"type": "rule.fired", "data": {"who": "{{ recipient.email }}"}}


class Shop:
    """A system with a relay and a service that receives webhooks; rules are put by orders, people act by webhooks of vendors."""

    def __init__(self, system: System, inbox: Inbox, ways: Ways) -> None:
        self.system, self.inbox, self.ways = system, inbox, ways
        self.sources = sources_from({"sources": system.keys["sources"]})
        self.links = Links(public_key(system.data), system.config.door.base_url)
        self.numbers = itertools.count(1)

    # -- orders ----------------------------------------------------------------------------------------------------------------

    def id(self) -> str:
        return f"o-{next(self.numbers)}"

    def order(self, order: RuleOrder) -> str:
        """Have an order done; return why it was refused, or nothing."""
        append(self.system.config, [record_of(order)])
        wait_until(lambda: self.asked(lambda a: Campaigns(a.outbox).order_end(order.id)) is not None, f"{order}\n{self.said()}", 60)
        return self.asked(lambda a: Campaigns(a.outbox).order_end(order.id))

    def put(self, rule: str, when: dict, way: str, fields: dict, **limits: object) -> None:
        definition = {"when": when, "action": {"way": way, "fields": fields}, "limits": LIMITS | limits}
        assert not self.order(PutRule(id=self.id(), who="ada", rule=rule, version=1, definition=definition))

    # -- what people do ---------------------------------------------------------------------------------------------------------

    def event(self, kind: str, who: str, campaign: str, source: str = "sendgrid") -> Event:
        more = {"order_id": f"or-{who}", "value_micros": 5_000_000, "currency": "EUR"} if kind == "converted" else {}
        return Event(
            source=source, event_id=f"{kind}-{campaign}-{who}", kind=kind, occurred_at_us=Clock().now_us(), recipient=who,
            message_id="" if source == "segment" else f"m-{campaign}-{who}", campaign=campaign, variant="A", wave="1", **more,
        )  # fmt: skip

    def tell(self, kind: str, people: list[str], campaign: str, source: str = "sendgrid") -> None:
        self.ship(source, [self.event(kind, who, campaign, source) for who in people])

    def ship(self, source: str, events: list[Event]) -> None:
        now_us = Clock().now_us()
        request = Shipment(source=source, due_us=now_us, events=events).signed(self.sources[source], now_us, self.system.door)
        answer = httpx.post(request.url, content=request.body, headers=request.headers, timeout=10, trust_env=False)
        assert answer.status_code in (200, 202, 204), answer.text

    def identify(self, who: str, traits: dict[str, object], ago_s: int = 0) -> None:
        now_us = Clock().now_us()
        event = Event(
            source="segment", event_id=f"i-{next(self.numbers)}", kind="identified", occurred_at_us=now_us - ago_s * 1_000_000,
            recipient=who, traits=traits,
        )  # fmt: skip
        self.ship("segment", [event])

    def unsubscribe(self, who: str) -> None:
        url = self.links.url(who, "spring", "A", "1")
        headers = {"content-type": "application/x-www-form-urlencoded"}
        answer = httpx.post(url, content=b"List-Unsubscribe=One-Click", headers=headers, timeout=10, trust_env=False)
        assert answer.status_code == 200

    # -- what has become of it --------------------------------------------------------------------------------------------------

    def asked(self, question: Callable[[Actions], object]) -> object:
        outbox = Outbox(self.system.data / "outbox.db", reading=True)
        try:
            actions = Actions(outbox)
            actions.outbox = outbox
            return question(actions)
        finally:
            outbox.close()

    def rows(self, rule: str) -> dict[str, dict]:
        """Return a rule's actions by recipient."""
        found = self.asked(lambda actions: actions.listed("rule", (rule,), count_max=1000))
        return {row["recipient"]: row for row in found}

    def states(self, rule: str) -> Counter[str]:
        return Counter(row["state"] for row in self.rows(rule).values())

    def ended(self, rule: str, count: int, seconds: float = 30.0) -> dict[str, dict]:
        """Wait until a rule has so many actions, each with an end, and return them."""
        over = {"sent", "refused", "held_out", "dropped", "unknown", "expired", "undone"}
        wait_until(
            lambda: len(self.rows(rule)) >= count and set(self.states(rule)) <= over, f"{rule}: {count} ends\n{self.said()}", seconds
        )
        return self.rows(rule)

    def hooks(self, rule: str) -> Counter[str]:
        """Return whom the service heard of by a rule, and how often."""
        bodies = [msgspec.json.decode(effect.content.partition(" ")[2]) for effect in list(self.ways.did)]
        return Counter(body["data"]["recipient"] for body in bodies if body["data"]["rule"] == rule)

    def mails(self, rule: str) -> list[Accepted]:
        return [message for message in self.inbox.messages() if message.campaign == f"Follow-up: {rule}"]

    def said(self) -> str:
        return self.system.output("conductor")[-2000:] + self.system.output("engine")[-1000:]

    def conductor(self, **more: str) -> None:
        self.system.start("conductor", **more)
        wait_until(lambda: (self.system.data / "conductor.sock").exists(), f"a conductor\n{self.said()}")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Door, engine and conductor, with ways out that lead to this machine alone."""
    inbox = Inbox()
    receiver = Receiver(secret_bytes(example_secret), time.time)
    apis = Apis(inbox, Plan({0: "accept_and_cut"}))
    with Mailbox(inbox) as box, apis, Ways([receiver], Plan({0: "accept_and_500", 3: "429"}), now_s=time.time) as ways:
        hook = {"kind": "webhook", "url": f"{ways.url}/hook", "secrets": [example_secret]}
        settings = {
            "channels": {
                "main": {"kind": "smtp", "host": "127.0.0.1", "port": box.port, "tls": "none"},
                "api": {"kind": "postmark", "server_token": KEYS["postmark"], "url": apis.url},
            },
            "ways": {"hook": hook, "slow": hook | {"per_second": 20.0}, "site": {"kind": "on_site"}},
            "automation": {
                "people_per_hour": 0, "ceiling_per_hour": 0, "person_per_day": 0, "allow_networks": ["127.0.0.0/8"], "allow_http": True,
                "allow_ports": [ways.port],
            },
        }  # fmt: skip
        with System(tmp_path_factory.mktemp("rules"), **settings) as system:
            system.start_all("door", "engine", "conductor")
            wait_until(lambda: (system.data / "conductor.sock").exists(), f"a conductor\n{system.output('conductor')}")
            yield Shop(system, inbox, ways)


def absence(campaign: str) -> dict:
    return {"kind": "absence", "after": {"did": "clicked", "campaign": campaign}, "no": {"did": "converted"}, "within": "3s"}


def people(tag: str, count: int) -> list[str]:
    return [f"{tag}{n}@example.com" for n in range(count)]


def out(rule: str, listed: list[str]) -> set[str]:
    return {who for who in listed if held_out(0, rule, who, 0.1)}


def test_who_clicks_and_does_not_buy_hears_once_by_each_way(shop: Shop) -> None:
    """Webhook and email, one effect each, over a death of the conductor in the middle; who bought hears nothing, nor who is held out."""
    shop.put("hook them", absence("spring"), "hook", HOOK)
    shop.put("mail them", absence("spring"), "email", MAIL)
    listed = people("spring", 60)
    shop.tell("sent", listed, "spring")
    shop.tell("clicked", listed, "spring")
    bought = listed[:10]
    for who in bought:
        shop.tell("converted", [who], "spring", "segment")
    wait_until(lambda: len(shop.hooks("hook them")) > 3, f"some\n{shop.said()}")
    shop.system.kill("conductor")
    killed_us = time.time_ns() // 1000
    shop.conductor()
    rows = {rule: shop.ended(rule, 50, 60) for rule in ("hook them", "mail them")}
    left = set(listed) - set(bought)
    for rule, found in rows.items():
        assert set(found) == left
        assert {who for who, row in found.items() if row["state"] == "held_out"} == out(rule, listed) & left
    hooked = shop.hooks("hook them")
    assert set(hooked) == left - out("hook them", listed) and set(hooked.values()) == {1}
    got = shop.mails("mail them")
    # By SMTP nobody promises that twice is once: what was under way when the process died is unknown, and goes no second time.
    unknown = {who for who, row in rows["mail them"].items() if row["state"] == "unknown"}
    assert max(Counter(message.recipient for message in got).values()) == 1
    assert {message.recipient for message in got} | unknown == left - out("mail them", listed)
    assert all(rows["mail them"][who]["touched_us"] <= killed_us for who in unknown)
    assert {(message.variant, message.wave) for message in got} == {("v1", "1")}
    assert all(message.intent == intent_of(rows["mail them"][message.recipient]["id"]) for message in got)


def test_nobody_who_has_left_is_written_to(shop: Shop) -> None:
    """Who unsubscribes between click and follow-up gets none, by whatever way reaches people."""
    shop.put("mail left", absence("left"), "email", MAIL, holdout=0.0)
    shop.put("hook left", absence("left"), "hook", HOOK, holdout=0.0)
    listed = people("left", 12)
    shop.tell("clicked", listed, "left")
    gone = set(listed[:6])
    for who in gone:
        shop.unsubscribe(who)
    mails, hooks = shop.ended("mail left", 12), shop.ended("hook left", 12)
    for found in (mails, hooks):
        assert {who for who, row in found.items() if row["state"] == "dropped" and row["reason"] == "suppressed"} == gone
    assert {message.recipient for message in shop.mails("mail left")} == set(listed) - gone == set(shop.hooks("hook left"))


def test_what_is_known_of_people_is_said_and_sets_their_clock(shop: Shop) -> None:
    """Attributes that came by an event fill in what is said, and say whose night it is; the later word counts."""
    hour = time.gmtime().tm_hour
    noon, midnight = (f"Etc/GMT{(hour - local + 11) % 24 - 11:+d}" for local in (12, 0))
    ada, bob = "ada@known.example", "bob@known.example"
    shop.identify(ada, {"name": "Ada", "timezone": noon})
    shop.identify(ada, {"name": "Old"}, ago_s=60)
    shop.identify(bob, {"name": "Bob", "timezone": midnight})
    said = {"type": "rule.fired", "data": {"name": "{{ attributes.name }}"}}
    hours = {"quiet_from": "21:00", "quiet_until": "06:00", "zone_attribute": "timezone"}
    shop.put("by day", {"kind": "event", "did": "clicked", "campaign": "day"}, "hook", said, holdout=0.0, hours=hours)
    shop.tell("clicked", [ada, bob], "day")
    wait_until(lambda: shop.rows("by day").get(ada, {}).get("state") == "sent", f"by day\n{shop.said()}")
    row = shop.rows("by day")[bob]
    assert (row["state"], row["reason"]) == ("waiting", "quiet_hours")
    bodies = [msgspec.json.decode(effect.content.partition(" ")[2])["data"] for effect in list(shop.ways.did)]
    assert [body["name"] for body in bodies if body["rule"] == "by day"] == ["Ada"]


def test_everything_is_held_within_a_second(shop: Shop) -> None:
    """After the switch is turned nothing more begins; released, the rest goes, each once."""
    shop.put("slow", {"kind": "event", "did": "clicked", "campaign": "held"}, "slow", HOOK, holdout=0.0)
    listed = people("held", 80)
    shop.tell("clicked", listed, "held")
    wait_until(lambda: len(shop.hooks("slow")) > 5, f"some\n{shop.said()}")
    kill_switch.hold(shop.system.data, "ada", "odd", Clock().now_us())
    time.sleep(1.0)
    held = len(shop.hooks("slow"))
    time.sleep(1.0)
    assert len(shop.hooks("slow")) == held < 60
    lines = shop.asked(lambda actions: actions.ledger())
    assert [(line["kind"], line["who"], line["why"]) for line in lines if line["kind"] == "hold"] == [("hold", "ada", "odd")]
    kill_switch.release(shop.system.data, "ada", "seen", Clock().now_us(), kill_switch.read(shop.system.data).number)
    shop.ended("slow", 80)
    assert set(shop.hooks("slow")) == set(listed) and set(shop.hooks("slow").values()) == {1}


def test_the_switch_holds_campaigns_too(shop: Shop) -> None:
    """A campaign that is started while everything is held sends nothing, and its ledger says why, and that it goes on."""
    kill_switch.hold(shop.system.data, "ada", "odd", Clock().now_us())
    listed = people("camp", 5)
    audience = keep(shop.system.data, "".join(["email\n", *(f"{who}\n" for who in listed)]).encode())
    definition = {
        "name": "camp", "channel": "main", "from_address": "news@shop.example", "audience": {"csv": "x"}, "policy": {"kind": "fixed_split"},
        "variants": [{"name": "A", "subject": "Hello", "text": "Hello"}], "waves": {"hours": 1.0, "every_minutes": 0.5},
    }  # fmt: skip
    orders = (
        Add(id="camp-1", campaign="camp", who="ada", definition=definition, audience=audience),
        Move(id="camp-2", campaign="camp", who="ada", to="sending"),
    )
    append(shop.system.config, [campaign_record(order) for order in orders])
    wait_until(lambda: shop.asked(lambda a: Campaigns(a.outbox).order_end("camp-2")) == "", f"started\n{shop.said()}")

    def ledger() -> list[tuple[str, str]]:
        found = shop.asked(lambda a: (c := Campaigns(a.outbox)).ledger(c.named("camp").id, count_max=100))
        return [(entry.kind, entry.text) for entry in found]

    wait_until(lambda: ("held", "held by ada: odd") in ledger(), f"held\n{shop.said()}")
    assert not [message for message in shop.inbox.messages() if message.campaign == "camp"]
    kill_switch.release(shop.system.data, "ada", "seen", Clock().now_us(), kill_switch.read(shop.system.data).number)
    wait_until(lambda: "released" in dict(ledger()), f"released\n{shop.said()}")


def test_what_was_done_is_undone_and_what_cannot_be_says_so(shop: Shop) -> None:
    """A message for the site is withdrawn; an email that has gone stays gone, and the order says why."""
    shop.put("site", {"kind": "event", "did": "clicked", "campaign": "undo"}, "site", {"title": "Hello"}, holdout=0.0)
    shop.put("mail undo", {"kind": "event", "did": "clicked", "campaign": "undo"}, "email", MAIL, holdout=0.0)
    (who,) = people("undo", 1)
    shop.tell("clicked", [who], "undo")
    site, mail = shop.ended("site", 1)[who], shop.ended("mail undo", 1)[who]
    assert not shop.order(Undo(id=shop.id(), who="ada", actions=(site["id"],)))
    wait_until(lambda: shop.rows("site")[who]["state"] == "undone", "undone")
    assert [one.ended for one in shop.asked(lambda actions: SiteMessages(actions.db).shown(who, 0))] == ["withdrawn"]
    assert "cannot be taken back" in shop.order(Undo(id=shop.id(), who="ada", actions=(mail["id"],)))
    assert shop.rows("mail undo")[who]["state"] == "sent"


def test_a_webhook_settles_what_nobody_knew(shop: Shop) -> None:
    """The vendor took a follow-up and did not answer: it is unknown and goes no second time, until a webhook names it."""
    shop.put("api", {"kind": "event", "did": "clicked", "campaign": "api"}, "email", MAIL | {"channel": "api"}, holdout=0.0)
    (who,) = people("api", 1)
    shop.tell("clicked", [who], "api")
    assert shop.ended("api", 1)[who]["state"] == "unknown"
    (message,) = shop.mails("api")
    event = msgspec.structs.replace(shop.event("delivered", who, message.campaign, "postmark"), metadata={"intent": message.intent})
    request = Shipment(source="postmark", due_us=0, events=[event]).signed(shop.sources["postmark"], Clock().now_us(), shop.system.door)
    assert httpx.post(request.url, content=request.body, headers=request.headers, timeout=10, trust_env=False).status_code == 200
    wait_until(lambda: shop.rows("api")[who]["state"] == "sent", f"sent\n{shop.said()}")
    assert len(shop.mails("api")) == 1


def test_a_suggestion_goes_once_somebody_approves(shop: Shop) -> None:
    """A rule that asks does nothing by itself."""
    shop.put("asks", {"kind": "event", "did": "clicked", "campaign": "asks"}, "email", MAIL, holdout=0.0, autonomy="suggest")
    (who,) = people("asks", 1)
    shop.tell("clicked", [who], "asks")
    wait_until(lambda: shop.states("asks") == {"suggested": 1}, f"a suggestion\n{shop.said()}")
    assert not shop.mails("asks")
    assert not shop.order(Approve(id=shop.id(), who="ada", actions=(shop.rows("asks")[who]["id"],)))
    shop.ended("asks", 1)
    assert [message.recipient for message in shop.mails("asks")] == [who]


def test_engine_and_conductor_come_to_the_same_verdict(shop: Shop) -> None:
    """Whatever is put, refused, put again or taken away, both have the same definitions in force, with the same versions."""

    def conductors() -> dict:
        return msgspec.json.decode(shop.asked(lambda actions: actions.meta("definitions")))

    def engines() -> dict:

        with apsw.Connection(str(shop.system.data / "store.db"), flags=apsw.SQLITE_OPEN_READONLY) as db:
            return msgspec.json.decode(db.execute("SELECT value FROM meta WHERE key = 'definitions'").get)

    when, action = {"kind": "event", "did": "opened"}, {"way": "nowhere"}
    good = {"when": when, "action": action}
    orders = [
        PutSegment(id="s1", name="buyers", version=1, where={"did": "converted"}, who="ada"),
        PutSegment(id="s2", name="buyers", version=1, where={"did": "opened"}, who="bob"),
        PutRule(id="r1", who="ada", rule="same", version=1, definition=good),
        PutRule(id="r2", who="bob", rule="same", version=1, definition=good | {"limits": {"per_hour": 3}}),
        PutRule(id="r3", who="bob", rule="same", version=2, definition={"when": when}),
        PutRule(id="r4", who="bob", rule="same", version=2, definition=good | {"limits": {"per_hour": -3}}),
        PutRule(id="r5", who="bob", rule="same", version=2, definition=good | {"where": {"segment": "buyers"}}),
        PutRule(id="r5", who="bob", rule="same", version=2, definition=good | {"where": {"segment": "buyers"}}),
        DropSegment(id="s3", name="buyers", who="ada"),
        PutRule(id="r6", who="bob", rule="other", version=1, definition=good | {"when": {"kind": "no such"}}),
        PutRule(id="r7", who="bob", rule="other", version=1, definition=good),
        RemoveRule(id="r8", who="bob", rule="other"),
        RemoveRule(id="r9", who="bob", rule="other"),
        PutRule(id="r10", who="bob", rule="other", version=2, definition=good | {"limits": {"autonomy": "act"}}),
    ]
    refused = [order.id for order in orders if shop.order(order)]
    assert refused == ["s2", "r2", "r3", "r4", "s3", "r6", "r9"]
    assert conductors() == engines() and conductors()["versions"]["rule other"] == 2
    assert "no such" not in str(conductors()) and "nowhere" in next(
        line["text"] for line in shop.asked(lambda actions: actions.ledger("same"))
    )
    (who,) = people("same", 1)
    shop.tell("opened", [who], "same")
    row = shop.ended("other", 1)[who]
    assert (row["state"], row["reason"]) == ("refused", "no_way") and re.search("Unknown way out `nowhere`", row["words"])
    assert asking.person(shop.system.data, who).known
