"""Salesforce, ESPs' records, campaigns and any REST API over real HTTP: nothing lost, nothing twice, under bad manners and deaths."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from polling_world import NOW_US, Died, World, dies_at, second_us

from midflight.events import Event
from midflight.sandbox.crm import SalesforceFake
from midflight.sandbox.esp_records import MailchimpRecords, MailgunRecords, PostmarkRecords, SendGridRecords
from midflight.sandbox.misbehave import Plan
from midflight.sandbox.systems import Question, System, Systems, json_reply
from midflight.sources import Request, load
from midflight.sources.polls import mailchimp, postmark_events, sendgrid_activity, sendgrid_campaigns
from midflight.sources.polls.poll import iso_of
from midflight.sources.source import iso_us

OAUTH = {"token_url": "salesforce", "client_id": "sf-client", "client_secret": "sf-secret"}
FIELDS = {"plan": "Plan__c", "age": "Age__c", "country": "Country__c"}


@pytest.fixture
def here(tmp_path: Path) -> World:
    return World(tmp_path, {})


# -- Salesforce ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(here: World) -> SalesforceFake:
    """45 contacts, ten of each second, in pages of 20."""
    fake = SalesforceFake(here.clock, page=20)
    for number in range(45):
        at_us = NOW_US - 3600 * second_us + number // 10 * second_us
        fake.put(
            "Contact", f"003{number:012d}AAA", at_us, Email=f"p{number}@example.com", Plan__c="free", Age__c=20 + number, Country__c="NO"
        )
    return fake


def contacts(here: World, systems: Systems, **settings: object) -> None:
    told = {"kind": "salesforce", "url": systems.url, "oauth": OAUTH, "traits": FIELDS, "per_second": 1000}
    here.raw = {"sf": told | settings}


def truth(fake: SalesforceFake) -> dict[str, dict]:
    there = fake.fields["Contact"]
    return {one["Email"]: {t: one[f] for t, f in FIELDS.items() if f in there} for one in fake.records["Contact"].values()}


def test_contacts_come_once_then_what_changes(here: World, fake: SalesforceFake) -> None:
    """Pages by query locator, then only what changed, by a session that is fetched once."""
    with Systems(fake) as systems:
        contacts(here, systems)
        here.turn("sf")
        assert here.log.people() == truth(fake) and len(here.log.events()) == 45
        fake.put("Contact", "003000000000007AAA", Plan__c="pro")
        here.clock.ahead(120)
        here.turn("sf", 2)
    assert here.log.people() == truth(fake) and len(here.log.events()) == 46
    assert here.log.events()[-1].traits == {"plan": "pro"} and fake.sessions.given == 2


@pytest.mark.parametrize("kind", ["session_expired", "503", "bad_json", "accept_and_cut", "html"])
def test_salesforce_may_behave_badly(here: World, fake: SalesforceFake, kind: str) -> None:
    """Sessions that end early, outages, halves and pages for people in the middle of a query cost time and nothing else."""
    script = {2: "429" if kind == "503" else kind, 4: kind if kind != "503" else "500"}
    with Systems(fake, plan=Plan(script)) as systems:
        contacts(here, systems)
        here.turns_until_good("sf")
    assert here.log.people() == truth(fake) and len(here.log.unique()) == 45


@pytest.mark.parametrize("count", [1, 2])
def test_a_death_and_a_query_locator_that_ended_lose_nothing(
    here: World, fake: SalesforceFake, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """The next life goes on behind the last record, although the query it was in is gone, and ten records have one time."""
    with Systems(fake) as systems:
        contacts(here, systems)
        with monkeypatch.context() as patched:
            dies_at(patched, "poll_saved", count)
            with pytest.raises(Died):
                here.turn("sf")
        fake.locators.clear()
        here.turn("sf")
    assert here.log.people() == truth(fake) and len(here.log.unique()) == 45


def test_records_that_change_while_a_query_is_read_are_not_overtaken(here: World, fake: SalesforceFake) -> None:
    """A record that changes between two pages shows its new time; what lies before it in the query is still read after a death."""

    def busy(number: int, _asked: Question) -> None:
        if number == 2:
            here.clock.ahead(5)
            for record in range(38, 40):
                fake.put("Contact", f"003{record:012d}AAA", Plan__c="late")
        if number == 3:
            fake.locators.clear()

    with Systems(fake, before=busy) as systems:
        contacts(here, systems)
        here.turn("sf")
        here.clock.ahead(120)
        here.turn("sf")
    assert here.log.people() == truth(fake)


def test_a_field_that_is_gone_is_named_and_the_others_are_read(here: World, fake: SalesforceFake) -> None:
    """Salesforce refuses a whole query for one field; it is asked without it, and when it is back with it."""
    with Systems(fake) as systems:
        contacts(here, systems)
        here.turn("sf")
        fake.fields["Contact"].remove("Age__c")
        fake.put("Contact", "003000000000007AAA", Plan__c="pro")
        here.clock.ahead(120)
        here.turn("sf")
        state = here.state["polls"]["sf"]
        assert state["state"] == "good" and "`Age__c`" in state["set_aside_why"]
        assert here.log.people()["p7@example.com"]["plan"] == "pro"
        fake.fields["Contact"].add("Age__c")
        fake.put("Contact", "003000000000008AAA", Age__c=99)
        here.clock.ahead(120)
        here.turn("sf")
    assert here.log.people()["p8@example.com"]["age"] == 99


def test_the_orgs_calls_are_left_to_others(here: World, fake: SalesforceFake) -> None:
    """Above its share of the org's daily calls the poll rests; without the rest it would use them up."""
    fake.calls_max = 4
    with Systems(fake) as systems:
        contacts(here, systems, usage_share_max=0.5)
        assert here.turn("sf") == 900.0
        assert fake.calls == 3 and "API calls" in here.state["polls"]["sf"]["error"]["what"]
        contacts(here, systems, usage_share_max=1.0)
        here.turn("sf", 3)
    assert fake.calls > 4 and here.state["polls"]["sf"]["error"]["what"].startswith("Salesforce has no API calls left")


def test_an_opportunity_that_is_won_is_one_conversion(here: World, fake: SalesforceFake) -> None:
    """Lost and open ones are nothing, a won one is a conversion with its value, however often it changes afterwards."""
    won = {"IsWon": True, "LastStageChangeDate": iso_of(NOW_US - 60 * second_us)}
    fake.put("Opportunity", "006000000000001AAA", NOW_US - 60 * second_us, Amount=499.5, email="ada@example.com", **won)
    fake.put("Opportunity", "006000000000002AAA", NOW_US - 60 * second_us, Amount=10, IsWon=False, email="bob@example.com")
    fake.put("Opportunity", "006000000000003AAA", NOW_US - 60 * second_us, Amount=7, **won)
    with Systems(fake) as systems:
        contacts(here, systems, object="opportunities", currency="EUR", traits=[])
        here.turn("sf")
        for _ in range(2):
            fake.put("Opportunity", "006000000000001AAA", Amount=600)
            here.clock.ahead(120)
            here.turn("sf")
    (event,) = here.log.events()
    assert (event.kind, event.recipient, event.value_micros, event.currency) == ("converted", "ada@example.com", 499_500_000, "EUR")
    assert event.occurred_at_us == NOW_US - 60 * second_us and "primary contact" in here.state["polls"]["sf"]["set_aside_why"]


# -- ESPs' records: the same events under the ids of the webhooks ------------------------------------------------------------------


def webhook(vendor: str, event: Event) -> Event:
    """Return an event as it comes by webhook."""
    source = load(vendor, {"unsigned": True}, name="esp")
    return source.parse(Request(body=source.write([event]), received_at_us=NOW_US))[0]


def happened(number: int, kind: str, at_us: int, **more: object) -> Event:
    more = {"message_id": f"<m{number}@shop.example>", "campaign": "spring", **more}
    return Event(kind=kind, event_id=f"ev{number}", recipient=f"p{number}@example.com", occurred_at_us=at_us, **more)


def test_mailgun_events_have_the_ids_of_the_webhooks(here: World) -> None:
    """What comes by webhook and by poll is one event; what reaches the storage late is read all the same."""
    records = MailgunRecords(here.clock, page=10)
    source = load("mailgun", {"unsigned": True}, name="esp")
    begin_us = NOW_US - 1000 * second_us
    all_ids = set()
    for number in range(45):
        at_us = begin_us + number * 17 * second_us
        event = happened(number, "delivered" if number % 3 else "clicked", at_us, url="https://shop.example/")
        records.put(msgspec.json.decode(source.write([event]))["event-data"], at_us + (0 if number % 9 else 1500) * second_us)
        all_ids.add(webhook("mailgun", event).event_id)
    told = {"kind": "mailgun_events", "domain": "mail.shop.example", "api_key": MailgunRecords.key, "per_second": 1000}
    with Systems(records, plan=Plan({2: "500", 4: "bad_json"})) as systems:
        here.raw, here.sources = {"mg": told | {"url": systems.url}}, {"esp": {"kind": "mailgun", "unsigned": True}}
        for _ in range(10):
            here.turns_until_good("mg")
            here.clock.ahead(300)
    assert {event.event_id for event in here.log.events()} == all_ids and len(here.log.unique()) == 45
    assert {event.source for event in here.log.events()} == {"esp"}


def test_mailgun_without_its_lag_loses_what_is_late(here: World) -> None:
    """The control: asking up to now misses events that reach the storage later; the lag is there for that."""
    records = MailgunRecords(here.clock)
    source = load("mailgun", {"unsigned": True}, name="esp")
    event = happened(1, "delivered", NOW_US - 5 * second_us)
    records.put(msgspec.json.decode(source.write([event]))["event-data"], NOW_US + 60 * second_us)
    told = {"kind": "mailgun_events", "domain": "mail.shop.example", "api_key": MailgunRecords.key, "per_second": 1000}
    found = []
    with Systems(records) as systems:
        for lag_s in (0, 1800):
            here = World(here.folder / str(lag_s), {"mg": told | {"url": systems.url, "lag_s": lag_s}}, clock=here.clock)
            here.sources = {"esp": {"kind": "mailgun", "unsigned": True}}
            here.clock.at_us = NOW_US
            for _ in range(5):
                here.turn("mg")
                here.clock.ahead(600)
            found.append(len(here.log.events()))
    assert found == [0, 1]


def postmark_world(here: World, monkeypatch: pytest.MonkeyPatch) -> tuple[PostmarkRecords, set[str]]:
    """25 opens, 25 clicks, 10 bounces and 12 deliveries, in pages of 10; return the ids that their webhooks have."""
    monkeypatch.setattr(postmark_events, "count", 10)
    records, ids = PostmarkRecords(here.clock), set()
    source = load("postmark", {"unsigned": True}, name="esp")
    lists = {"opened": "Opens", "clicked": "Clicks", "bounced": "Bounces", "delivered": "Messages"}
    for number in range(72):
        kind = "opened" if number < 25 else "clicked" if number < 50 else "bounced" if number < 60 else "delivered"
        message = f"00000000-0000-4000-8000-{number:012d}"
        event = happened(
            number,
            kind,
            NOW_US - 3600 * second_us + number * 7_000_003,
            message_id=message,
            url="https://shop.example/" * (kind == "clicked"),
        )
        event.event_id = str(1000 + number) if kind == "bounced" else ""
        event.bounce_class = "hard" if kind == "bounced" else ""
        item = msgspec.json.decode(source.write([event]))
        ids.add(webhook("postmark", event).event_id)
        del item["RecordType"]
        if kind == "delivered":
            at = item.pop("DeliveredAt")
            told = {"Type": "Delivered", "Recipient": item["Recipient"], "ReceivedAt": at, "Details": {"DeliveryMessage": "250 OK"}}
            about = {
                "MessageID": message,
                "Tag": "",
                "Metadata": item["Metadata"],
                "ReceivedAt": iso_of(event.occurred_at_us - 4 * second_us),
            }
            records.lists["Messages"].append(about)
            records.details[message] = about | {"MessageEvents": [told]}
        else:
            records.lists[lists[kind]].append(item)
    return records, ids


def test_postmark_events_have_the_ids_of_the_webhooks(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounces by their number, the others by what they say: the same in both ways; new ones that shift the pages hide none."""
    records, ids = postmark_world(here, monkeypatch)

    def busy(number: int, _asked: Question) -> None:
        if number in (1, 2, 4, 5):
            here.clock.ahead(1)
            late = dict(records.lists["Opens"][0], Recipient=f"late{number}@example.com", ReceivedAt=iso_of(here.clock.now_us()))
            records.lists["Opens"].append(late)

    told = {"kind": "postmark_events", "server_token": PostmarkRecords.key, "per_second": 1000, "deliveries": True}
    with Systems(records, before=busy, plan=Plan({3: "429", 9: "500"})) as systems:
        here.raw, here.sources = {"pm": told | {"url": systems.url}}, {"esp": {"kind": "postmark", "unsigned": True}}
        for _ in range(3):
            here.turns_until_good("pm")
            here.clock.ahead(300)
    late = {event.recipient for event in here.log.unique() if event.recipient.startswith("late")}
    assert {event.event_id for event in here.log.unique() if event.recipient not in late} == ids
    assert late == {"late1@example.com", "late2@example.com", "late4@example.com", "late5@example.com"}


def test_what_postmark_does_not_show_is_said_to_be_missing(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind 10,000 items there is nothing to be had: the gap is named, and the next look goes on."""
    from midflight.sandbox import esp_records

    records, _ = postmark_world(here, monkeypatch)
    monkeypatch.setattr(postmark_events, "reach_max", 20)
    monkeypatch.setattr(esp_records, "reach_max", 20)
    with Systems(records) as systems:
        here.raw = {"pm": {"kind": "postmark_events", "server_token": PostmarkRecords.key, "per_second": 1000, "url": systems.url}}
        here.sources = {"esp": {"kind": "postmark", "unsigned": True}}
        here.turn("pm")
    assert here.state["polls"]["pm"]["state"] == "good" and "missing" in here.state["polls"]["pm"]["set_aside_why"]


def test_sendgrid_activity_says_what_no_webhook_brought(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows with too many messages are halved; events that came by webhook, under an id that the API does not have, are left out."""
    from midflight.serve.heard import Heard

    monkeypatch.setattr(sendgrid_activity, "limit", 10)
    records, begin_us = SendGridRecords(here.clock, page=10), NOW_US - 40 * 3600 * second_us
    source = load("sendgrid", {"unsigned": True}, name="esp")
    lost = {3, 17, 30}
    body = []
    for number in range(45):
        event = happened(number, "clicked", begin_us + number * 60 * second_us, url="https://shop.example/", message_id=f"msg{number}")
        at = iso_of(event.occurred_at_us, 0)
        records.event(f"msg{number}.filter0001", event.recipient, "click", at, url="https://shop.example/")
        if number not in lost:
            body.append(event)
    request = Request(body=source.write(body), received_at_us=NOW_US)
    heard = Heard()
    heard.hear(source.parse(request))
    told = {"kind": "sendgrid_activity", "api_key": SendGridRecords.key, "per_second": 1000}
    with Systems(records, plan=Plan({4: "429", 20: "500"})) as systems:
        here.raw, here.sources = {"sg": told | {"url": systems.url}}, {"esp": {"kind": "sendgrid", "unsigned": True}}
        here.known = lambda _source, events: heard.unheard(events)
        here.turns_until_good("sg")
        here.clock.ahead(3600)
        here.turn("sg")
    assert {event.recipient for event in here.log.unique()} == {f"p{number}@example.com" for number in lost}
    assert len(here.log.unique()) == 3


# -- campaigns ---------------------------------------------------------------------------------------------------------------------


def test_campaigns_are_said_when_they_change(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each campaign is one event, and one more for each change; new ones while paging hide none."""
    monkeypatch.setattr(mailchimp, "count", 10)
    monkeypatch.setattr(sendgrid_campaigns, "page_size", 10)
    chimp, grid = MailchimpRecords(here.clock), SendGridRecords(here.clock)
    for number in range(25):
        at = iso_of(NOW_US - (100 - number) * 3600 * second_us, 0)
        about = {"id": f"c{number}", "status": "save", "create_time": at, "settings": {"title": f"t{number}"}, "recipients": {}}
        chimp.campaigns.append(about)
        grid.sends.append(
            {"id": f"s{number}", "name": f"n{number}", "status": "draft", "updated_at": at, "created_at": at, "categories": []}
        )

    def busy(number: int, _asked: Question) -> None:
        if number == 1:
            chimp.campaigns.append(chimp.campaigns[0] | {"id": "new", "create_time": iso_of(NOW_US, 0), "settings": {"title": "new"}})

    with Systems(chimp, grid, before=busy) as systems:
        here.raw = {
            "mc": {"kind": "mailchimp", "api_key": MailchimpRecords.key, "url": systems.url, "per_second": 1000},
            "sg": {"kind": "sendgrid_campaigns", "api_key": SendGridRecords.key, "url": systems.url, "per_second": 1000},
        }
        for _ in range(2):
            here.turn("mc")
            here.turn("sg")
        chimp.campaigns[3] |= {"status": "sent", "send_time": iso_of(NOW_US, 0)}
        grid.sends[4] |= {"status": "triggered", "updated_at": iso_of(NOW_US, 0)}
        here.turn("mc")
        here.turn("sg")
    assert len(here.log.events()) == len(here.log.unique()) == 26 + 25 + 2
    assert [(event.campaign, event.metadata["status"]) for event in here.log.events()[-2:]] == [("t3", "sent"), ("n4", "triggered")]
    assert {event.kind for event in here.log.events()} == {"identified"} and not any(event.recipient for event in here.log.events())


# -- any API ------------------------------------------------------------------------------------------------------------------------


class Shop(System):
    """An API of members with every way of paging, in the order of their last change."""

    prefixes: ClassVar[tuple[str, ...]] = ("/members",)
    token: ClassVar[str] = "Bearer t"

    def __init__(self, clock) -> None:
        super().__init__(clock)
        self.members: dict[int, dict] = {}

    def put(self, number: int, at_us: int, **more: object) -> None:
        before = self.members.get(number, {"id": number, "email": f"p{number}@example.com", "level": 1})
        self.members[number] = before | {"updated": iso_of(at_us)} | more

    def answer(self, asked: Question) -> object:
        if asked.headers.get("authorization") != self.token:
            return self.error(401)
        since_us = iso_us(asked.query.get("since", "1970-01-01T00:00:00Z"))
        found = [one for one in self.members.values() if iso_us(one["updated"]) >= since_us]
        found.sort(key=lambda one: (one["updated"], one["id"]))
        size = int(asked.query.get("size", 10))
        start = int(asked.query.get("offset") or 0) or (int(asked.query.get("page") or 1) - 1) * size
        start = int(asked.query.get("token") or start)
        end = start + size
        keep = "&".join(f"{name}={value}" for name, value in asked.query.items() if name != "offset")
        url = f"/members?{keep}&offset={end}" if end < len(found) else ""
        headers = [("link", f'<{self.url}/members?x=1>; rel="first", <{url}>; rel="next"')] if url else []
        return json_reply(200, {"data": found[start:end], "token": end if url else None, "next": url or None}, *headers)


PAGING = {
    "page": {"kind": "page", "param": "page", "size": 10, "size_param": "size"},
    "offset": {"kind": "offset", "param": "offset", "size": 10, "size_param": "size"},
    "cursor": {"kind": "cursor", "param": "token", "path": "token"},
    "next": {"kind": "next", "path": "next"},
    "link": {"kind": "link"},
}


def shop_world(here: World, systems: Systems, paging: str, **more: object) -> None:
    told = {
        "kind": "rest", "url": f"{systems.url}/members", "auth": {"bearer": "t"}, "items": "data", "traits": ["level"], "key": "id",
        "at": "updated", "paging": PAGING[paging], "changed": {"since": "since", "lag_s": 0}, "per_second": 1000,
    }  # fmt: skip
    here.raw = {"shop": told | more}


@pytest.mark.parametrize("paging", list(PAGING))
def test_any_api_is_read_page_by_page(here: World, paging: str) -> None:
    """By page, offset, cursor, next link and Link header: all members, then who has changed; outages in between lose none."""
    shop = Shop(here.clock)
    for number in range(35):
        shop.put(number, NOW_US - 3600 * second_us + number // 12 * second_us)
    with Systems(shop, plan=Plan({1: "500", 3: "bad_json"})) as systems:
        shop_world(here, systems, paging)
        here.turns_until_good("shop")
        shop.put(5, NOW_US, level=2)
        here.clock.ahead(60)
        here.turn("shop")
    assert here.log.people() == {one["email"]: {"level": one["level"]} for one in shop.members.values()} and len(here.log.unique()) == 36


def test_pages_by_number_miss_nobody_when_they_are_walked_by_time(here: World) -> None:
    """Who changes while one reads shifts all behind him over the border of a page: walking by time sees them all, plain paging not."""
    lost = []
    for ascending in (True, False):
        shop = Shop(here.clock)
        for number in range(35):
            shop.put(number, NOW_US - 7200 * second_us + number * second_us)

        def busy(number: int, _asked: Question, shop: Shop = shop) -> None:
            if number == 1:
                shop.put(2, NOW_US - second_us, level=9)

        with Systems(shop, before=busy) as systems:
            here = World(here.folder / str(ascending), {}, clock=here.clock)
            shop_world(here, systems, "page", ascending=ascending)
            here.turn("shop", 3)
        lost.append({one["email"] for one in shop.members.values()} - here.log.people().keys())
    assert lost == [set(), {"p10@example.com"}]


def test_a_next_link_that_leads_elsewhere_is_not_followed(here: World) -> None:
    """Credentials go to the configured address only, whatever an answer says."""

    class Leading(Shop):
        def answer(self, asked: Question) -> object:
            return json_reply(200, {"data": [], "next": "http://127.0.0.2:9/steal"})

    with Systems(Leading(here.clock)) as systems:
        shop_world(here, systems, "next")
        here.turn("shop")
    assert here.state["polls"]["shop"]["state"] == "unreadable" and "elsewhere" in here.state["polls"]["shop"]["error"]["what"]


def test_a_full_disk_or_a_door_that_refuses_stops_nothing_for_good(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused appends are made again, also those that were taken without an answer; a full disk under our own file is tried again."""
    import apsw

    from midflight.kit.errors import MidflightError
    from midflight.serve import polling
    from midflight.serve.polled import Polled

    monkeypatch.setattr(polling, "door_s_first", 0.01)
    shop = Shop(here.clock)
    for number in range(35):
        shop.put(number, NOW_US - 3600 * second_us)
    full, save = [2], Polled.save

    def saving(self, *rest):
        full[0] -= 1
        if full[0] >= 0:
            raise apsw.FullError("database or disk is full")
        return save(self, *rest)

    monkeypatch.setattr(Polled, "save", saving)
    here.log.moods, here.log.lost = [MidflightError("full"), OSError(28, "full"), None, MidflightError("away")], True
    with Systems(shop) as systems:
        shop_world(here, systems, "link")
        assert here.turns_until_good("shop") == 2
    assert len(here.log.events()) > 35 == len(here.log.unique()) == len(here.log.people())
