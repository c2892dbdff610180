"""Alerts over a real chat service and a real relay: each once, in order, in words that nobody outside can shape, over any restart."""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import apsw
import msgspec
import pytest
from played_ways import LOOPBACK
from sample_store import Stopped, fill

from midflight.act import guarded, kill_switch
from midflight.act.actions import Actions
from midflight.act.alerts import Alerts, alerts_max, late_us, tries_max
from midflight.act.calls import Calls
from midflight.act.campaigns import Campaigns
from midflight.act.channels.channel import Outcome
from midflight.act.definition import campaign_of
from midflight.act.kill_switch import Switch
from midflight.act.links import Links
from midflight.act.outbox import Outbox
from midflight.act.sender import Sender
from midflight.act.stop_list import StopList
from midflight.act.ways import Action
from midflight.act.ways.webhook import example_secret
from midflight.act.ways_out import ways_of
from midflight.config import Config, config_from
from midflight.decide import breaker
from midflight.decide.alerting import BEGUN, OVER, SERIOUS, WARNING, Condition, Notice, State, hour_us
from midflight.decide.breaker import HELD, NORMAL, RETURNING
from midflight.kit.clock import Clock, VirtualClock
from midflight.kit.errors import ConfigError
from midflight.sandbox.inbox import Accepted, Inbox, decoded, mail_headers
from midflight.sandbox.mailbox import Mailbox
from midflight.sandbox.misbehave import Plan
from midflight.sandbox.way_vendors import Receiver, SlackHook, secret_bytes
from midflight.sandbox.ways import Ways
from midflight.serve import under_way
from midflight.serve.alerting import Alerting, check_alerts, fields_of, head_of, text_of
from midflight.serve.noticing import Noticing, duration, named, plain
from midflight.serve.protecting import Protecting
from midflight.store.experiment import Numbers
from tests.system import System, wait_until

NOW_US = 1_764_000_000_000_000
OPS = "ops@shop.example"


class Letters(Mailbox):
    """A relay that keeps what it took, whole."""

    def __init__(self, inbox: Inbox, plan: Plan | None = None) -> None:
        super().__init__(inbox, plan)
        self.raw: list[bytes] = []

    def letters(self, raw: bytes, recipients: list[str], queue_id: str) -> list[Accepted]:
        self.raw.append(raw)
        return super().letters(raw, recipients, queue_id)

    def subjects(self) -> list[str]:
        return [decoded(mail_headers(raw)["subject"]) for raw in self.raw]


def settings(folder: Path, chat: Ways, box: Mailbox, **alerts: object) -> dict:
    return {
        "data": str(folder),
        "channels": {"relay": {"kind": "smtp", "host": "127.0.0.1", "port": box.port, "tls": "none"}},
        "ways": {
            "slack-ops": {"kind": "slack", "url": f"{chat.url}{SlackHook.path}", "per_second": 1000.0},
            "hook": {"kind": "webhook", "url": f"{chat.url}/hook", "secrets": [example_secret], "per_second": 1000.0},
            "site": {"kind": "on_site"},
        },
        "automation": {"allow_networks": list(LOOPBACK), "allow_http": True, "allow_ports": [chat.port]},
        "alerts": {
            "ways": ["slack-ops"], "email": {"channel": "relay", "from_address": "midflight@shop.example", "to": [OPS]},
            "console_url": "https://console.example",
        } | alerts,
    }  # fmt: skip


class Desk:
    """The conductor's part that alerts, over real files and services; what stands is what a test says, and the clock is its own."""

    def __init__(self, config: Config, clock: Clock, alerts: type[Alerts] = Alerts) -> None:
        self.config, self.clock = config, clock
        self.outbox = Outbox(config.folder / "outbox.db")
        guard = guarded.Guard(allow=LOOPBACK, ports=None, http=True)
        ways = ways_of(config.ways, guard)
        self.calls = {
            name: Calls(name, ways[name], guarded.client(guard, connections=2, answer_s=10), clock) for name in config.alerts.ways
        }
        self.seen: list[Condition] = []
        deliver = {name: calls.deliver for name, calls in self.calls.items()}
        self.alerting = Alerting(config, ways, deliver, alerts(self.outbox), self, clock)
        self.alerting.start()

    async def look(self) -> dict:
        return {"o": self.seen}

    async def until(self, true: Callable[[], object], seconds: float = 5.0) -> None:
        until_s = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < until_s, self.alerting.alerts.listed()
            await self.alerting.step()
            await asyncio.sleep(0.005)

    async def look_again(self, *seen: Condition, minutes: float = 1.0) -> None:
        """Let time pass, see this, and wait until all have been told that can be."""
        self.clock.sleep_s(60 * minutes)
        self.seen = list(seen)
        await self.alerting.step()
        await self.until(lambda: not self.alerting.under_way.tasks and not self.alerting._ended)

    async def close(self) -> None:
        await self.alerting.close()
        await asyncio.gather(*(calls.close() for calls in self.calls.values()))
        self.outbox.close()

    def told(self) -> list[dict]:
        return [{call["target"]: call["state"] for call in one["told"]} for one in reversed(self.alerting.alerts.listed())]


def run(config: Config, clock: Clock, act: Callable[[Desk], Awaitable[None]], alerts: type[Alerts] = Alerts) -> None:
    """Let a conductor's life go by."""

    async def whole() -> None:
        desk = Desk(config, clock, alerts)
        try:
            await act(desk)
        finally:
            await desk.close()

    asyncio.run(whole())


class Services:
    """A chat, a receiver of webhooks and a relay."""

    def __init__(self, folder: Path, chat: Ways, box: Letters) -> None:
        self.folder, self.chat, self.box = folder, chat, box
        self.clock = VirtualClock(NOW_US)

    def config(self, **alerts: object) -> Config:
        return config_from(settings(self.folder, self.chat, self.box, **alerts))

    def said(self) -> list[str]:
        return [effect.content for effect in self.chat.did if effect.vendor == "slack"]


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    with Ways([SlackHook()]) as chat, Letters(Inbox()) as box:
        yield Services(tmp_path, chat, box)


def condition(key: str = "a", level: int = SERIOUS, **more: object) -> Condition:
    return Condition(key=key, origin="o", level=level, **{"text": f"{key} is odd.", "why": "It is.", "page": "/inbox"} | more)


def test_each_alert_goes_once_to_each_and_links_to_what_shows_it(services: Services) -> None:
    """A chat and a mailbox get the same two alerts, with a button and a link."""

    async def act(desk: Desk) -> None:
        for _ in range(3):
            await desk.look_again(condition())
        await desk.look_again()
        await desk.look_again()
        assert desk.told() == [{"way:slack-ops": "sent", f"mail:{OPS}": "sent"}] * 2

    run(services.config(), services.clock, act)
    assert services.said() == ["Serious: a is odd.\nIt is.", "Over, after 2 minutes: a is odd."]
    assert services.box.subjects() == ["[Midflight] a is odd.", "[Midflight] Over, after 2 minutes: a is odd."]
    assert b"https://console.example/inbox" in services.box.raw[0] and b"Auto-Submitted: auto-generated" in services.box.raw[0]
    button = msgspec.json.decode(services.chat.asked[0].body)["blocks"][1]["elements"][0]
    assert button["url"] == "https://console.example/inbox"


def restarted(services: Services, alerts: type[Alerts] = Alerts) -> Counter[str]:
    """Let three lives of a conductor see the same, and return what was said and how often."""

    async def act(desk: Desk) -> None:
        await desk.look_again(condition("a"), condition("b", WARNING))
        await desk.look_again(condition("a"), condition("b", WARNING))

    for _ in range(3):
        run(services.config(), services.clock, act, alerts)
    return Counter([*services.said(), *services.box.subjects()])


def test_over_a_restart_each_alert_stays_one(services: Services) -> None:
    """Three lives of a conductor tell two alerts to two targets: four messages."""
    said = restarted(services)
    assert len(said) == 4 and set(said.values()) == {1}


class Forgetful(Alerts):
    """A build that does not keep what was told."""

    def remember(self, state: State, *rest: object) -> None:
        super().remember(State(), *rest)


def test_control_who_keeps_nothing_over_a_restart_is_caught(services: Services) -> None:
    """A build that keeps nothing tells everything in each life."""
    assert max(restarted(services, Forgetful).values()) == 3


def test_what_lasts_is_told_again_after_hours_also_over_a_restart(services: Services) -> None:
    """The time in which no conductor ran counts."""

    async def act(desk: Desk) -> None:
        await desk.look_again(condition(), minutes=7 * 60)

    for _ in range(3):
        run(services.config(ways=[]), services.clock, act)
    assert services.box.subjects() == ["[Midflight] a is odd.", "[Midflight] Still, for 14 hours: a is odd."]


def test_a_chat_that_is_down_hears_it_later_and_a_call_without_an_answer_is_not_made_again(services: Services) -> None:
    """Who refuses for now hears it later; who may have heard it does not hear it twice."""
    services.chat.plan = Plan({0: "429_retry_after", 1: "answer", 2: "accept_and_500"})

    async def act(desk: Desk) -> None:
        await desk.look_again(condition("a"))
        assert desk.told()[0]["way:slack-ops"] == "waiting"
        await desk.look_again(condition("a"), minutes=30)
        assert desk.told()[0]["way:slack-ops"] == "sent"
        await desk.look_again(condition("a"), condition("b"))
        await desk.look_again(condition("a"), condition("b"), minutes=30)
        assert desk.told()[1] == {"way:slack-ops": "unknown", f"mail:{OPS}": "sent"}

    run(services.config(), services.clock, act)
    assert Counter(services.said()) == {"Serious: a is odd.\nIt is.": 1, "Serious: b is odd.\nIt is.": 1}


def test_what_could_not_be_told_gives_way_to_what_is_newer_about_the_same(services: Services) -> None:
    """When the chat comes back it hears that it is over, and not first that it has begun."""
    services.chat.plan = Plan(chances={"429": 1.0})

    async def act(desk: Desk) -> None:
        await desk.look_again(condition("a"))
        await desk.look_again()
        services.chat.plan = Plan()
        await desk.look_again(minutes=60)
        assert [one["way:slack-ops"] for one in desk.told()] == ["replaced", "sent"]

    run(services.config(), services.clock, act)
    assert services.said() == ["Over, after 0 seconds: a is odd."]


def test_no_alert_is_tried_for_ever(services: Services) -> None:
    """After six hours an alert that nobody took is given up."""
    services.chat.plan = Plan(chances={"429": 1.0})

    async def act(desk: Desk) -> None:
        for _ in range(14):
            await desk.look_again(condition("a"), minutes=30)
        assert desk.told()[0]["way:slack-ops"] == "refused"

    run(services.config(), services.clock, act)
    assert len(services.chat.asked) <= tries_max and services.clock.now_us() - NOW_US > late_us


def test_a_receiver_that_knows_an_id_again_is_called_again(tmp_path: Path) -> None:
    """By a webhook twice is once, so an answer that never came is no reason to give up."""
    receiver = Receiver(secret_bytes(example_secret), lambda: clock.now_us() / 1e6)
    clock = VirtualClock(NOW_US)
    with Ways([receiver], Plan({0: "accept_and_500"})) as chat, Letters(Inbox()) as box:
        services = Services(tmp_path, chat, box)

        async def act(desk: Desk) -> None:
            await desk.look_again(condition("a"))
            await desk.look_again(condition("a"), minutes=5)
            assert desk.told() == [{"way:hook": "sent"}]

        run(services.config(ways=["hook"], email={}), clock, act)
        bodies = [msgspec.json.decode(asked.body) for asked in chat.asked]
        assert len(chat.did) == 1 and len(bodies) == 2 and bodies[0] == bodies[1]
        assert bodies[0]["type"] == "alert.begun" and bodies[0]["data"]["link"] == "https://console.example/inbox"


def cut_off(services: Services, monkeypatch: pytest.MonkeyPatch, alerts: type[Alerts]) -> list[str]:
    """End a conductor while the chat has an alert and has not said so; return what the chat was told by the end of the next one."""
    monkeypatch.setattr(under_way, "stop_s", 0.05)
    services.chat.plan = Plan({0: "accept_and_hang"})

    async def first(desk: Desk) -> None:
        desk.seen = [condition()]
        await desk.until(services.said)

    async def second(desk: Desk) -> None:
        await desk.look_again(condition(), minutes=30)

    run(services.config(email={}), services.clock, first, alerts)
    run(services.config(email={}), services.clock, second, alerts)
    return services.said()


def test_who_may_have_heard_it_is_not_told_again(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a call begins is on disk before its bytes leave, so the next conductor knows that it may have arrived."""
    assert len(cut_off(services, monkeypatch, Alerts)) == 1


class Careless(Alerts):
    """A build that notes no beginning of a call."""

    def begin(self, *_: object) -> bool:
        return True


def test_control_who_notes_no_beginning_is_caught(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that does not note it tells it twice."""
    assert len(cut_off(services, monkeypatch, Careless)) == 2


def test_who_is_not_in_the_configuration_any_more_is_not_told(services: Services) -> None:
    """What waited for a target that was taken out does not go."""
    services.chat.plan = Plan(chances={"429": 1.0})

    async def first(desk: Desk) -> None:
        await desk.look_again(condition("a"))

    async def second(desk: Desk) -> None:
        assert desk.told() == [{"way:slack-ops": "replaced", f"mail:{OPS}": "sent"}]

    run(services.config(), services.clock, first)
    run(services.config(ways=[]), services.clock, second)


def test_what_a_death_left_open_is_settled_at_the_start(tmp_path: Path) -> None:
    """A call that began and whose end nobody noted goes again only where the other end promised that twice is once."""
    outbox = Outbox(tmp_path / "outbox.db")
    alerts = Alerts(outbox)
    alerts.remember(State(), [Notice(what=BEGUN, about=condition())], ["way:x", "way:y", "way:z"], NOW_US)
    x, y, _ = alerts.due(["way:x", "way:y", "way:z"], NOW_US)
    assert alerts.begin(x, 0, NOW_US) and alerts.begin(y, 1_000_000, NOW_US)
    assert alerts.recover(["way:x", "way:y", "way:z"], NOW_US + 1) == (1, 1)
    assert [one.target for one in alerts.due(["way:x", "way:y", "way:z"], NOW_US + 1)] == ["way:y", "way:z"]
    # The promise has run out: nobody knows.
    assert alerts.begin(y, 1_000_000, NOW_US + 500_000)
    assert alerts.recover(["way:x", "way:y", "way:z"], NOW_US + 1_000_001) == (0, 1)
    # And what took somebody's place does not begin.
    (z,) = alerts.due(["way:z"], NOW_US)
    alerts.remember(State(), [Notice(what=OVER, about=condition())], ["way:z"], NOW_US)
    assert not alerts.begin(z, 0, NOW_US) and alerts.settle(z, Outcome(kind="later"), NOW_US) == 5
    outbox.close()


def test_what_is_too_much_for_an_hour_comes_in_one(services: Services) -> None:
    """Beyond `per_hour` one message names the first ten and counts the rest, and chat and relay take it."""

    async def act(desk: Desk) -> None:
        many = [condition(f"{n:02}", WARNING, text=f"{n:02} is odd. {'long ' * 60}") for n in range(14)]
        for _ in range(4):
            await desk.look_again(*many)

    run(services.config(per_hour=1), services.clock, act)
    alone, together = services.said()
    lines = together.splitlines()
    assert alone.startswith("Warning: 00 is odd.") and len(lines) == 12 and lines[1].startswith("- 01 is odd.")
    assert lines[0] == "Warning: 13 more alerts, told together because there were so many within an hour."
    assert lines[-1] == "- and 3 more" and len(services.box.raw) == 2


def test_what_cannot_be_read_stands_in_nobodys_way(tmp_path: Path) -> None:
    """An alert that another version wrote is set aside, and the next one goes."""
    outbox = Outbox(tmp_path / "outbox.db")
    alerts = Alerts(outbox)
    alerts.remember(State(), [Notice(what=BEGUN, about=condition(key)) for key in "ab"], ["way:x"], NOW_US)
    outbox.db.execute("UPDATE alerts SET notice = '{' WHERE number = 1")
    outbox.db.execute("UPDATE alert_memory SET body = '{'")
    assert alerts.due(["way:x"], NOW_US) == [] and [one.number for one in alerts.due(["way:x"], NOW_US)] == [2]
    assert alerts.remembered() == (State(), 0)
    outbox.close()


def test_a_full_disk_delays_alerts_and_ends_nothing(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written down is not told; once there is room it is, once."""

    async def act(desk: Desk) -> None:
        kept = desk.alerting.alerts.remember
        monkeypatch.setattr(desk.alerting.alerts, "remember", full)
        await desk.look_again(condition())
        assert not services.said() and not desk.told()
        monkeypatch.setattr(desk.alerting.alerts, "remember", kept)
        await desk.look_again(condition())
        await desk.look_again(condition())

    def full(*_: object) -> None:
        raise apsw.FullError("database or disk is full")

    run(services.config(), services.clock, act)
    assert services.said() == ["Serious: a is odd.\nIt is."]


def test_only_the_latest_alerts_are_kept(tmp_path: Path) -> None:
    """Old alerts go, with all that is noted of their calls."""
    outbox = Outbox(tmp_path / "outbox.db")
    outbox.db.execute("PRAGMA synchronous = OFF")
    alerts = Alerts(outbox)
    for start in range(0, alerts_max + 300, 100):
        notices = [Notice(what=BEGUN, about=condition(f"{start + n}")) for n in range(100)]
        alerts.remember(State(), notices, ["way:x"], NOW_US)
    assert [outbox.db.execute(f"SELECT count(*) FROM {table}").get for table in ("alerts", "alert_calls")] == [alerts_max] * 2
    outbox.close()


# -- what stands ---------------------------------------------------------------------------------------------------------

HOSTILE = "<!channel> https://evil.example/login `x` \u202etxt.exe\nBcc: all@shop.example"


class Looked:
    """A conductor's files, of which a test says what stands in them, looked at as the conductor does."""

    def __init__(self, folder: Path) -> None:
        self.config = config_from({"data": str(folder)})
        self.clock = Stopped(NOW_US)
        self.outbox = Outbox(folder / "outbox.db")
        self.campaigns, self.actions = Campaigns(self.outbox), Actions(self.outbox)
        self.numbers = Numbers(self.config, self.clock)
        self.held: dict[str, str] = {}
        self.noticing = Noticing(self.config, self.clock, self.numbers, self.campaigns, Switch(folder), lambda: self.held)

    def now(self) -> dict[str, Condition]:
        self.noticing._stored_s = -1e9
        self.seen = asyncio.run(self.noticing.look())
        return {one.key: one for found in self.seen.values() for one in found or ()}

    def store(self, sql: str, *values: object) -> None:
        with apsw.Connection(str(self.config.folder / "store.db")) as db:
            db.execute(sql, values)

    def campaign(self, name: str) -> int:
        variants = [{"name": v, "subject": "Hello", "text": "Hello"} for v in "AB"]
        raw = {"name": name, "channel": "c", "from_address": "a@shop.example", "audience": {"csv": "x"}, "variants": variants}
        number = self.campaigns.begin(campaign_of(raw, {"c"}).campaign)
        self.campaigns.drafted(number, 0, 0, "ada", NOW_US)
        self.campaigns.move(number, "sending", "ada", "", NOW_US)
        return number

    def action(self, id: str, rule: str, state: int, reason: str = "") -> None:
        self.outbox.db.execute(
            "INSERT INTO actions (id, rule, version, recipient, fired_us, cause_us, expires_us, cause, state, reason, changed_us) "
            "VALUES (?, ?, 1, 'a@example.com', ?, ?, ?, '{}', ?, ?, ?)", (id, rule, NOW_US, NOW_US, NOW_US, state, reason, NOW_US),
        )  # fmt: skip

    def close(self) -> None:
        self.numbers.close()
        self.outbox.close()


def sender_of(campaigns: Campaigns, clock: Clock) -> Sender:
    links = Links(bytes(range(64)), "https://m.example")
    return Sender(campaigns, {}, StopList(), links, clock, begun=lambda intents: None, suppressed=lambda keys: {})


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which something is odd."""
    folder = tmp_path_factory.mktemp("filled")
    fill(config_from({"data": str(folder)}), NOW_US, scale=0.2)
    return folder


@pytest.fixture
def looked(filled: Path, tmp_path: Path) -> Iterator[Looked]:
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    found = Looked(tmp_path)
    yield found
    found.close()


def test_what_the_store_shows_is_noticed(looked: Looked) -> None:
    """A provider that bounces, dead letters, and a blocklist that several bounces name; each with the page that shows it."""
    sql = "INSERT INTO signs VALUES (?, ?, 'gmail', ?, ?, 'said')"
    looked.store(sql, NOW_US // hour_us, "spamhaus", 3, NOW_US)
    looked.store(sql, NOW_US // hour_us, "spamcop", 2, NOW_US)
    found = looked.now()
    assert {key for key in found if not key.startswith("numbers")} == {
        "bounces/Weekly letter 47/microsoft", "letters/sendgrid", "letters/transactional",
        "sign/spamhaus/gmail",
    }  # fmt: skip
    assert found["bounces/Weekly letter 47/microsoft"].page == "/campaign?name=Weekly+letter+47"
    assert found["letters/sendgrid"].text == "2 requests of source `sendgrid` could not be read."
    assert found["sign/spamhaus/gmail"].level == SERIOUS and "3 bounces" in found["sign/spamhaus/gmail"].text


def test_what_the_conductor_holds_is_noticed(looked: Looked) -> None:
    """The switch, a channel, breakers, guards and the inbox."""
    before = set(looked.now())
    kill_switch.hold(looked.config.folder, "ada", "odd", NOW_US)
    looked.held = {"relay": "535 wrong password", "fine": ""}
    Protecting(looked.outbox, looked.numbers, sender_of(looked.campaigns, looked.clock), looked.clock)
    for name, stage in (("gmail", HELD), ("yahoo", RETURNING), ("gmx", NORMAL)):
        state = msgspec.json.encode(breaker.State(stage=stage, why="It bounces."))
        looked.outbox.db.execute("INSERT INTO guards VALUES ('provider', ?, ?, ?, 0, 0, 0, '')", (name, stage, state))
    paused, dropped, asked = looked.campaign("paused"), looked.campaign("dropped"), looked.campaign("asked")
    looked.campaigns.decided(paused, NOW_US, "guard", "guard", "Too many complain")
    looked.campaigns.move(paused, "paused", "guard", "Too many complain", NOW_US)
    looked.campaigns.decided(dropped, NOW_US, "guard", "guard", "Variant A is out")
    looked.campaigns.move(asked, "paused", "ada", "lunch", NOW_US)
    for n, (state, reason) in enumerate(((1, ""), (1, ""), (5, ""), (7, "gave_up"), (7, "content"))):
        looked.action(f"a{n}", "win back", state, reason)
    found = looked.now()
    new = {key: (one.level, one.page) for key, one in found.items() if key not in before}
    guard = next(key for key in new if key.startswith("guard/dropped/"))
    assert new == {
        "switch": (SERIOUS, "/rules"), "channel/relay": (SERIOUS, "/experiments"),
        "breaker/provider/gmail": (SERIOUS, "/deliverability"), "breaker/provider/yahoo": (WARNING, "/deliverability"),
        "paused/paused": (SERIOUS, "/experiment?name=paused"), guard: (SERIOUS, "/experiment?name=dropped"),
        "suggested/win back": (WARNING, "/inbox"), "unknown": (WARNING, "/inbox"), "given_up": (WARNING, "/inbox"),
    }  # fmt: skip
    assert found["switch"].text == "Everything is held by ada: odd."
    assert found["suggested/win back"].text == "2 suggestions of rule `win back` wait for somebody to approve."


def test_what_cannot_be_looked_at_is_not_known(looked: Looked) -> None:
    """One broken part says nothing, and keeps no other from being looked at."""
    looked.now()
    looked.outbox.db.execute("DROP TABLE actions")
    looked.store("DROP TABLE dead")
    found = looked.now()
    assert looked.seen["rules"] is None and looked.seen["letters"] is None
    assert looked.seen["switch"] == [] and "bounces/Weekly letter 47/microsoft" in found


def test_numbers_that_are_old_are_noticed(looked: Looked) -> None:
    """Numbers older than a minute are news."""
    looked.store("UPDATE meta SET value = ? WHERE key = 'log_time_us'", NOW_US - 120_000_000)
    assert looked.now()["numbers"].text == "The numbers are 2 minutes old."
    looked.store("UPDATE meta SET value = ? WHERE key = 'log_time_us'", NOW_US - 30_000_000)
    assert "numbers" not in looked.now()


def test_no_text_from_outside_becomes_more_than_text(looked: Looked) -> None:
    """No link, no mention, no header, no turned writing; and what Slack takes, whatever stands in it."""
    one = condition(text=f"Source {named(HOSTILE)} is odd.", why=plain("&<>" * 500, 600))
    notice = Notice(what=BEGUN, about=one)
    text = text_of(notice)
    assert "://" not in text and "evil.example" not in text and "\u202e" not in text and text.count("\n") == 1
    assert named(HOSTILE).count("`") == 2
    slack = ways_of({"s": {"kind": "slack", "url": "https://hooks.slack.com/services/x"}}, guarded.Guard())["s"]
    fields = fields_of(slack, notice, "https://console.example")
    body = msgspec.json.decode(slack.calls([Action(id="a", way="s", fields=fields)], 0).body)
    assert len(body["blocks"][0]["text"]["text"]) <= 3000 and "<!channel>" not in body["text"]
    assert "\n" not in head_of(notice)


def test_a_time_is_said_in_its_largest_unit() -> None:
    """Of two hours nobody wants to read seconds."""
    assert [duration(s * 1_000_000) for s in (0, 119, 120, 7_199, 7_200, 172_800)] == [
        "0 seconds", "119 seconds", "2 minutes", "119 minutes", "2 hours", "2 days",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("alerts", "said"),
    [
        ({"ways": ["slack-op"]}, "slack-ops"),
        ({"ways": ["slack-ops", "slack-ops"]}, "twice"),
        ({"ways": ["site"]}, "slack or teams or webhook"),
        ({"email": {"channel": "relais", "from_address": "a@shop.example", "to": [OPS]}}, "relay"),
        ({"email": {"channel": "relay", "to": [OPS]}}, "name@domain"),
        ({"email": {"channel": "relay", "from_address": "a@shop.example", "to": ["ops"]}}, "name@domain"),
        ({"email": {"channel": "relay", "from_address": "a@shop.example", "to": [OPS, OPS.upper()]}}, "twice"),
        ({"console_url": "console.example"}, "https://"),
        ({"hour": 3}, "per_hour"),
    ],
)
def test_alerts_that_would_reach_nobody_stop_the_start(services: Services, alerts: dict, said: str) -> None:
    """A wrong name, address or kind is said before anything starts."""
    with pytest.raises(ConfigError, match=said):
        config = services.config(**alerts)
        check_alerts(config, ways_of(config.ways, guarded.Guard(allow=LOOPBACK, ports=None, http=True)))


# -- the real processes --------------------------------------------------------------------------------------------------


def test_alerts_of_the_real_conductor_survive_its_deaths(tmp_path: Path) -> None:
    """It dies when an alert was decided, and again when the chat has answered. The switch holds everything and no alert, and that there is
    no engine yet, for which all else waits, keeps none back either."""
    with Ways([SlackHook()]) as chat, Letters(Inbox()) as box:
        given = settings(tmp_path, chat, box)
        del given["data"]
        with System(tmp_path, **given) as system:

            def both(part: str) -> bool:
                return any(part in effect.content for effect in list(chat.did)) and any(part in subject for subject in box.subjects())

            system.start_all("door")
            system.start("conductor", crash_at="after_alerts")
            kill_switch.hold(system.data, "ada", "odd", Clock().now_us())
            assert system.died("conductor") and not chat.did and not box.raw
            system.start("conductor", crash_at="after_answer")
            assert system.died("conductor") and len(chat.did) == 1
            system.start("conductor")
            time.sleep(2.5)
            kill_switch.release(system.data, "ada", "seen", Clock().now_us(), kill_switch.read(system.data).number)
            wait_until(lambda: both("Over, after"), system.output("conductor")[-2000:])
            said = [effect.content.partition("\n")[0] for effect in chat.did]
            assert said[0] == "Serious: Everything is held by ada: odd." and len(said) == 2
            assert re.fullmatch(r"Over, after \d+ (seconds|minutes): Everything is held by ada: odd\.", said[1])
            # By SMTP nobody promises that twice is once: one that was under way at a death is not sent again.
            assert len(set(box.subjects())) == len(box.subjects()) and len(box.subjects()) in (1, 2)
