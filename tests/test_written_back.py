"""What is known of people goes back: the latest state of each, once, in batches, whatever the other system or our process does."""

from __future__ import annotations

import asyncio
import base64
import csv
import hmac
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from polling_world import NOW_US, Died, SetClock, second_us

from midflight.act.written_back import REGISTRY
from midflight.act.written_back import way_back as way_back_module
from midflight.act.written_back._waiting import Change, Waiting
from midflight.act.written_back.nightly_file import safe
from midflight.act.written_back.salesforce import quoted
from midflight.act.written_back.way_back import Item, ways_of
from midflight.kit.errors import ConfigError
from midflight.sandbox.crm import HubSpotFake, SalesforceFake
from midflight.sandbox.misbehave import Plan
from midflight.sandbox.systems import Question, System, Systems, json_reply
from midflight.serve import writing_back as writing_back_module
from midflight.serve.writing_back import WritingBack

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
HOUR = 3600 * second_us


class Desk:
    """Ways back over one folder; each call is a whole life of the process that writes back."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, SetClock()
        self.raw: dict[str, dict] = {}
        self.state: dict = {}

    def lives(self, act: Callable[[WritingBack], object]) -> object:
        async def life() -> object:
            writing = WritingBack(ways_of(self.raw, REGISTRY), self.folder, self.clock)
            try:
                found = act(writing)
                return await found if asyncio.iscoroutine(found) else found
            finally:
                with suppress(OSError):
                    writing.write_state()
                    self.state = msgspec.json.decode((self.folder / "written_back" / "state.json").read_bytes())["ways"]
                await writing.close()

        return asyncio.run(life())

    def note(self, *changes: Change) -> None:
        self.lives(lambda writing: writing.note(list(changes)))

    def turn(self, name: str, times: int = 1) -> float:
        async def turns(writing: WritingBack) -> float:
            rest = 0.0
            for _ in range(times):
                rest = await writing.turn(name)
                self.clock.ahead(min(rest, 2))
            return rest

        self.clock.ahead(10)
        return self.lives(turns)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def joined(number: int, segment: str = "vip", value: object = True, at_us: int = NOW_US) -> Change:
    return Change(f"P{number}@example.com", f"segment:{segment}", value, at_us)


def contacts(fake: HubSpotFake, people: int) -> HubSpotFake:
    for number in range(1, people + 1):
        fake.put(number, NOW_US - HOUR, email=f"p{number}@example.com")
    return fake


def hubspot(systems: Systems, **more: object) -> dict:
    return {
        "kind": "hubspot",
        "token": HubSpotFake.key,
        "url": systems.url,
        "per_second": 1000,
        "values": {"engagement": "midflight_engagement"},
    } | more


# -- the contract ----------------------------------------------------------------------------------------------------------------


def test_the_folder_is_the_registry() -> None:
    """Every file of the folder is a way back that says what it is and where that is documented."""
    folder = Path(way_back_module.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "way_back"}
    assert (
        set(REGISTRY.names())
        == {name for name in files if not name.startswith("_")}
        == {"hubspot", "salesforce", "webhook", "nightly_file"}
    )
    for name in REGISTRY.names():
        way = REGISTRY.get(name)
        assert way.label and way.doc and way.docs_url.startswith("https://") and way.__doc__ and way.batch_max


WRONG = [
    ({"w": {}}, "says no kind"),
    ({"w": {"kind": "hubspt"}}, "`hubspot`"),
    ({"w": {"kind": "hubspot"}}, "`token` or `oauth`"),
    ({"w": {"kind": "hubspot", "token": "x", "tokn": "y"}}, "`token`"),
    ({"w": {"kind": "webhook", "url": "https://a.example", "secret": "whsec_short"}}, "whsec_"),
    ({"w": {"kind": "webhook", "url": "http://a.example", "secret": SECRET}}, "https"),
    (
        {"w": {"kind": "salesforce", "url": "https://a.example", "oauth": {"token_url": "x", "client_id": "y"}, "values": {"a": "b c"}}},
        "field",
    ),
    ({"w": {"kind": "nightly_file", "folder": "x", "name": "../y"}}, "$.ways_back.w"),
]


@pytest.mark.parametrize(("raw", "said"), WRONG)
def test_wrong_settings_stop_the_start(raw: dict, said: str) -> None:
    """What cannot work is refused with words about it, and without the secret."""
    with pytest.raises(ConfigError) as caught:
        ways_of(raw, REGISTRY)
    assert said in caught.value.text() and "short" not in caught.value.text()


# -- what waits ----------------------------------------------------------------------------------------------------------------------


def test_changes_of_a_person_become_one_state_in_which_the_latest_wins(tmp_path: Path) -> None:
    """In and out and in again is one write; what comes late loses to what is newer, whatever the order in which it is heard."""
    changes = [
        joined(1, at_us=10), joined(1, value=False, at_us=20), joined(1, value=True, at_us=30), joined(1, "gone", True, 10),
        joined(1, "gone", False, 40), Change("p1@example.com", "engagement", 10, 5), Change("p1@example.com", "engagement", 73, 15),
    ]  # fmt: skip
    for number, order in enumerate((changes, changes[::-1], changes[3:] + changes[:3])):
        waiting = Waiting(tmp_path / f"{number}.db")
        waiting.note({"crm": order}, 100)
        (item,) = waiting.batch("crm", 10, 100)
        assert (item.recipient, item.segments, item.values, item.changed_us) == ("p1@example.com", ["vip"], {"engagement": 73}, 40)
        waiting.close()


def test_what_says_nothing_new_is_not_written_again(tmp_path: Path) -> None:
    """The same state once more, or a later time for it, waits for nothing; another one does; a change during a write goes on waiting."""
    waiting = Waiting(tmp_path / "w.db")
    waiting.note({"crm": [joined(1)]}, 100)
    items = waiting.batch("crm", 10, 100)
    waiting.note({"crm": [joined(1, "late", True, NOW_US)]}, 101)
    waiting.settle("crm", items, [way_back_module.WRITTEN], 102)
    items = waiting.batch("crm", 10, 200)
    assert [item.segments for item in items] == [["late", "vip"]]
    waiting.settle("crm", items, [way_back_module.WRITTEN], 103)
    waiting.note({"crm": [joined(1, at_us=NOW_US + 5), joined(1)]}, 104)
    assert waiting.batch("crm", 10, 200) == []
    waiting.note({"crm": [joined(1, value=False, at_us=NOW_US + 6), joined(1, "late", False, NOW_US + 6)]}, 105)
    (item,) = items = waiting.batch("crm", 10, 200)
    assert item.segments == []
    waiting.settle("crm", items, [way_back_module.WRITTEN], 106)
    waiting.forget(["crm"], NOW_US + HOUR)
    assert waiting.db.execute("SELECT count(*) FROM person").fetchone()[0] == 0, "who is in no segment any more is forgotten in time"
    waiting.close()


# -- HubSpot and Salesforce -----------------------------------------------------------------------------------------------------------


def test_states_are_written_in_batches_and_the_missing_are_named(desk: Desk) -> None:
    """250 people are three calls; who is not there is said and not asked for again until he changes."""
    fake = contacts(HubSpotFake(desk.clock), 249)
    with Systems(fake) as systems:
        desk.raw = {"crm": hubspot(systems)}
        desk.note(*(joined(number) for number in range(1, 251)), Change("p7@example.com", "engagement", 73, NOW_US))
        desk.turn("crm")
        assert len(systems.asked) == 3 and desk.state["crm"]["written"] == 249
        assert fake.now(7)["midflight_segments"] == "vip" and fake.now(7)["midflight_engagement"] == "73"
        assert desk.state["crm"]["refused"] == 1 and "no contact" in desk.state["crm"]["refused_why"]
        desk.turn("crm", 3)
        assert len(systems.asked) == 3
        desk.note(joined(7, value=False, at_us=NOW_US + 1))
        desk.turn("crm")
    assert fake.now(7)["midflight_segments"] == "" and len(systems.asked) == 4


@pytest.mark.parametrize("kind", ["429_retry_after", "500", "accept_and_cut", "accept_and_500", "cut_in_body", "401", "html", "bad_json"])
def test_bad_manners_cost_time_and_nothing_else(desk: Desk, kind: str) -> None:
    """Whatever happens to a call, in the end each has his latest state."""
    fake = contacts(HubSpotFake(desk.clock), 120)
    with Systems(fake, plan=Plan({0: kind, 1: kind, 3: kind})) as systems:
        desk.raw = {"crm": hubspot(systems)}
        desk.note(*(joined(number) for number in range(1, 121)))
        desk.turn("crm", 8)
    assert {fake.now(number).get("midflight_segments") for number in fake.versions} == {"vip"} and desk.state["crm"]["waiting"] == 0


@pytest.mark.parametrize("place", ["written_back", "written_back_settled"])
def test_a_death_between_two_steps_leaves_the_latest_state(desk: Desk, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Killed after a write and before it is noted, the state is written again, as it is by then."""
    fake = contacts(HubSpotFake(desk.clock), 120)
    with Systems(fake) as systems:
        desk.raw = {"crm": hubspot(systems)}
        desk.note(*(joined(number) for number in range(1, 121)))
        with monkeypatch.context() as patched:

            def crash_point(name: str) -> None:
                if name == place:
                    raise Died(name)

            patched.setattr(writing_back_module, "crash_point", crash_point)
            with pytest.raises(Died):
                desk.turn("crm")
        desk.note(joined(1, value=False, at_us=NOW_US + 1))
        desk.turn("crm")
    assert fake.now(1)["midflight_segments"] == "" and {fake.now(n)["midflight_segments"] for n in range(2, 121)} == {"vip"}


def test_settling_before_writing_is_caught(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a build that notes the batch as written first loses it when it dies in between."""

    async def settled_first(self, way, items):
        self.waiting.settle(way.name, items, [way_back_module.WRITTEN] * len(items), 0)
        raise Died("between")

    fake = contacts(HubSpotFake(desk.clock), 3)
    with Systems(fake) as systems:
        desk.raw = {"crm": hubspot(systems)}
        desk.note(*(joined(number) for number in range(1, 4)))
        with monkeypatch.context() as patched:
            patched.setattr(WritingBack, "_written", settled_first)
            with pytest.raises(Died):
                desk.turn("crm")
        desk.turn("crm", 3)
    assert not any(fake.now(number).get("midflight_segments") for number in fake.versions)


def test_one_state_that_is_refused_stops_no_other(desk: Desk) -> None:
    """A batch that is refused as a whole is halved until the bad one is alone; it is noted with its reason."""
    fake = contacts(HubSpotFake(desk.clock), 50)
    update = fake.update

    def picky(body: dict):
        bad = any(one["id"] == "p13@example.com" for one in body["inputs"])
        return fake.error(400, "INVALID_EMAIL") if bad else update(body)

    fake.update = picky
    with Systems(fake) as systems:
        desk.raw = {"crm": hubspot(systems)}
        desk.note(*(joined(number) for number in range(1, 51)))
        desk.turn("crm")
    assert [n for n in fake.versions if fake.now(n).get("midflight_segments") != "vip"] == [13]
    assert desk.state["crm"]["refused"] == 1 and desk.state["crm"]["waiting"] == 0


def test_a_property_that_is_not_there_waits_for_somebody(desk: Desk) -> None:
    """Nothing is lost or noted as refused for a mistake in the configuration; once it is mended all is written."""
    fake = contacts(HubSpotFake(desk.clock), 5)
    with Systems(fake) as systems:
        desk.raw = {"crm": hubspot(systems, segments_property="none_such")}
        desk.note(*(joined(number) for number in range(1, 6)))
        desk.turn("crm")
        assert desk.state["crm"]["state"] == "not_allowed" and desk.state["crm"]["waiting"] == 5
        desk.raw = {"crm": hubspot(systems)}
        desk.turn("crm")
    assert {fake.now(number)["midflight_segments"] for number in fake.versions} == {"vip"}


def test_salesforce_gets_all_records_of_an_address(desk: Desk) -> None:
    """Ids by address, updates of many at once, a session that ends in between, a record that is refused on its own."""
    fake = SalesforceFake(desk.clock)
    for number in range(30):
        fake.put("Contact", f"003{number:012d}AAA", NOW_US - HOUR, Email=f"p{number % 29}@example.com")
    fake.put("Contact", "003000000000099AAA", NOW_US - HOUR, Email="o'brien@example.com")
    with Systems(fake, plan=Plan({2: "session_expired", 4: "500"})) as systems:
        oauth = {"token_url": "salesforce", "client_id": "sf-client", "client_secret": "sf-secret"}
        told = {
            "kind": "salesforce",
            "url": systems.url,
            "oauth": oauth,
            "per_second": 1000,
            "values": {"engagement": "Midflight_Engagement__c"},
        }
        desk.raw = {"sf": told}
        desk.note(*(joined(number) for number in range(31)), Change("o'brien@example.com", "engagement", 5, NOW_US))
        desk.turn("sf", 4)
    records = fake.records["Contact"]
    assert {one["Midflight_Segments__c"] for number, one in records.items() if not number.endswith("99AAA")} == {"vip"}
    assert records["003000000000099AAA"]["Midflight_Engagement__c"] == 5
    assert desk.state["sf"]["waiting"] == 0 and desk.state["sf"]["refused"] == 2


def test_a_quote_in_an_address_stays_one() -> None:
    """An address is text in a query, never a part of it."""
    assert quoted("o'brien\\@x") == "o\\'brien\\\\@x"


# -- webhook and file -----------------------------------------------------------------------------------------------------------------


class Listening(System):
    """Takes signed webhooks as Standard Webhooks says, each id once."""

    prefixes: ClassVar[tuple[str, ...]] = ("/hook",)

    def __init__(self, clock) -> None:
        super().__init__(clock)
        self.people: dict[str, dict] = {}
        self.ids: list[str] = []

    def answer(self, asked: Question):
        number, at = asked.headers["webhook-id"], asked.headers["webhook-timestamp"]
        key = base64.b64decode(SECRET.removeprefix("whsec_"))
        wanted = base64.b64encode(hmac.digest(key, f"{number}.{at}.".encode() + asked.body, "sha256")).decode()
        if asked.headers["webhook-signature"] != f"v1,{wanted}" or abs(int(at) - self.clock.now_us() / 1e6) > 300:
            return self.error(401)
        self.ids.append(number)
        self.people |= {one["email"]: one for one in asked.json()["data"]}
        return json_reply(200, {})


def test_a_signed_webhook_has_one_id_however_often_it_is_sent(desk: Desk) -> None:
    """The other side checks the signature; a request that is made again after a lost answer has the same id."""
    hook = Listening(desk.clock)
    with Systems(hook, plan=Plan({0: "accept_and_cut", 1: "500"})) as systems:
        desk.raw = {"hook": {"kind": "webhook", "url": f"{systems.url}/hook", "secret": SECRET, "segments": ["vip"], "per_second": 1000}}
        desk.note(*(joined(number) for number in range(5)), joined(1, "secret"))
        desk.turn("hook", 5)
        first = list(hook.ids)
        desk.note(joined(1, value=False, at_us=NOW_US + 1))
        desk.turn("hook")
    assert len(first) == 2 and len(set(first)) == 1 and len(set(hook.ids)) == 2
    assert hook.people["p2@example.com"]["segments"] == ["vip"] and hook.people["p1@example.com"]["segments"] == []


def test_a_file_comes_each_night_with_who_has_changed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, once a night after its hour, also after a death, without formulas in its cells; nobody who has not changed is in it."""
    folder = desk.folder / "out"
    desk.raw = {"file": {"kind": "nightly_file", "folder": str(folder), "hour": 2, "wait_s": 0}}
    desk.note(joined(1), Change("p1@example.com", "engagement", "=1+1", NOW_US), joined(2))
    desk.turn("file")
    assert not folder.exists(), "16:00 is not the hour"
    desk.clock.at_us = NOW_US + 11 * HOUR
    with monkeypatch.context() as patched:

        def crash_point(name: str) -> None:
            raise Died(name)

        patched.setattr(writing_back_module, "crash_point", crash_point)
        with pytest.raises(Died):
            desk.turn("file")
    desk.note(joined(3))
    desk.turn("file", 3)
    (path,) = folder.iterdir()
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert path.name == "midflight-people-2025-11-25.csv" and [row["email"] for row in table] == [f"p{n}@example.com" for n in (1, 2, 3)]
    assert table[0] == {"email": "p1@example.com", "segments": "vip", "changed_at": "2025-11-24T16:00:00+00:00", "engagement": "'=1+1"}
    desk.note(joined(2, value=False, at_us=NOW_US + 1))
    desk.turn("file")
    assert len(list(folder.iterdir())) == 1, "the next one comes the next night"
    desk.clock.ahead(24 * 3600)
    desk.turn("file")
    with (folder / "midflight-people-2025-11-26.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["email"], row["segments"]) == ("p2@example.com", "")


def test_a_file_goes_to_an_sftp_server_whole(desk: Desk) -> None:
    """It is sent under another name and renamed there, to a server whose key is pinned."""
    from midflight.sandbox.file_server import FileServer

    there = desk.folder / "there"
    there.mkdir()
    with FileServer(there) as server:
        upload = {"host": "127.0.0.1", "port": server.port, "user": "shop", "password": "let-me-in", "host_key": server.host_key}
        desk.raw = {"file": {"kind": "nightly_file", "folder": str(desk.folder / "out"), "hour": 2, "wait_s": 0, "upload": upload}}
        desk.note(joined(1))
        desk.clock.at_us = NOW_US + 11 * HOUR
        desk.turn("file")
    assert [path.name for path in there.iterdir()] == ["midflight-people-2025-11-25.csv"] and desk.state["file"]["state"] == "good"


@pytest.mark.parametrize("cell", ["=cmd()", "+1", "-1", "@x", "\tx", "\rx"])
def test_no_cell_is_a_formula(cell: str) -> None:
    """What a spreadsheet would compute is text."""
    assert safe(cell) == f"'{cell}" and safe("plain\x00") == "plain"


def test_a_state_without_segments_of_interest_says_none() -> None:
    """Only the configured segments are written."""
    way = ways_of({"w": {"kind": "hubspot", "token": "x", "segments": ["vip"]}}, REGISTRY)["w"]
    assert way.of_interest(Item(recipient="a@example.com", segments=["secret", "vip"])) == ["vip"]
