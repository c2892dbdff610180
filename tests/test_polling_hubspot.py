"""HubSpot over real HTTP: everything that changes is said once, whatever the server, the paging or the process does."""

from __future__ import annotations

from pathlib import Path

import pytest
from polling_world import NOW_US, Died, World, dies_at, second_us

from midflight.sandbox.crm import HubSpotFake
from midflight.sandbox.misbehave import Plan
from midflight.sandbox.systems import Question, Systems
from midflight.sources.polls import hubspot

TRAITS = ["plan", "age", "country"]


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of 20, so that three of them are not many rows."""
    monkeypatch.setattr(hubspot, "limit", 20)


@pytest.fixture
def here(tmp_path: Path) -> World:
    return World(tmp_path, {})


@pytest.fixture
def fake(here: World) -> HubSpotFake:
    """45 contacts of an hour ago."""
    fake = HubSpotFake(here.clock, page_max=20)
    for number in range(1, 46):
        at_us = NOW_US - 3600 * second_us + number * 1000
        fake.put(number, at_us, email=f"p{number}@example.com", plan="free", age=str(20 + number % 50), country="NO")
    return fake


def configure(here: World, systems: Systems, **settings: object) -> None:
    told = {"kind": "hubspot", "url": systems.url, "token": HubSpotFake.key, "traits": TRAITS, "per_second": 1000}
    here.raw = {"crm": told | settings}


def truth(fake: HubSpotFake) -> dict[str, dict]:
    return {fake.now(n)["email"]: {t: fake.now(n).get(t) for t in TRAITS if t in fake.known} for n in fake.versions}


def test_all_contacts_come_once_and_then_only_what_changes(here: World, fake: HubSpotFake) -> None:
    """The first look says everybody, the second nobody, the third who has changed and only what."""
    with Systems(fake) as systems:
        configure(here, systems)
        assert here.turn("crm") == 60
        assert here.log.people() == truth(fake) and len(here.log.events()) == 45
        here.clock.ahead(120)
        here.turn("crm")
        assert len(here.log.events()) == 45
        fake.put(7, plan="pro")
        here.clock.ahead(120)
        here.turn("crm")
    assert [event.traits for event in here.log.events()[45:]] == [{"plan": "pro"}]
    assert here.log.people() == truth(fake)
    assert here.state["polls"]["crm"]["state"] == "good" and here.state["polls"]["crm"]["behind_s"] <= 61


@pytest.mark.parametrize("place", ["poll_appended", "poll_saved"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_death_between_two_steps_loses_nothing_and_counts_nothing_twice(
    here: World, fake: HubSpotFake, monkeypatch: pytest.MonkeyPatch, place: str, count: int
) -> None:
    """Killed after a page is in the log, or after its cursor is, the next life goes on: same ids, nothing missing."""
    with Systems(fake) as systems:
        configure(here, systems)
        with monkeypatch.context() as patched:
            dies_at(patched, place, count)
            with pytest.raises(Died):
                here.turn("crm")
        fake.put(3, plan="pro")
        here.clock.ahead(120)
        here.turn("crm")
    assert here.log.people() == truth(fake)
    assert len(here.log.unique()) == 46


def test_a_cursor_before_its_records_is_caught(here: World, fake: HubSpotFake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a build that notes the cursor first loses a page when it dies in between, and the comparison above sees it."""
    from midflight.serve.polling import Polling

    kept = Polling._hand_over

    async def cursor_first(self, name, events) -> None:
        page = self.seen_page
        self.polled.save(name, page.cursor, 0, self.polled.news(name, "crm", page.found, for_good=True), [], 0)
        raise Died("between")

    async def keep(self, name, page, job) -> int:
        self.seen_page = page
        return await whole(self, name, page, job)

    whole = Polling._keep
    with Systems(fake) as systems:
        configure(here, systems)
        with monkeypatch.context() as patched:
            patched.setattr(Polling, "_keep", keep)
            patched.setattr(Polling, "_hand_over", cursor_first)
            with pytest.raises(Died):
                here.turn("crm")
        assert Polling._hand_over is kept
        here.clock.ahead(120)
        here.turn("crm")
    assert here.log.people() != truth(fake)


MANNERS = ["500", "429", "429_retry_after", "bad_json", "html", "empty", "cut_before_body", "accept_and_cut", "401", "redirect", "400"]


@pytest.mark.parametrize("kind", MANNERS)
def test_bad_manners_lose_nothing(here: World, fake: HubSpotFake, kind: str) -> None:
    """Whatever the server does to the second and third question, in the end all is said, and once."""
    with Systems(fake, plan=Plan({1: kind, 2: kind})) as systems:
        configure(here, systems)
        assert here.turns_until_good("crm") >= 1
    assert here.log.people() == truth(fake) and len(here.log.unique()) == 45


def test_what_changes_while_paging_is_in_a_later_look(here: World, fake: HubSpotFake) -> None:
    """Contacts change and come while pages are read: none is lost, none stays as it was."""

    def busy(number: int, _asked: Question) -> None:
        if number < 6:
            here.clock.ahead(1)
            fake.put(number * 7 + 1, plan=f"plan-{number}")
            fake.put(100 + number, email=f"new{number}@example.com", plan="new", age="1", country="SE")

    with Systems(fake, before=busy) as systems:
        configure(here, systems)
        for _ in range(4):
            here.turn("crm")
            here.clock.ahead(120)
    assert here.log.people() == truth(fake)


def test_the_index_lags_and_nothing_is_lost(here: World, fake: HubSpotFake) -> None:
    """A search index that shows changes 50 s late hides none from a poll that looks every second; without lag and overlap it would."""
    lost = []
    for settings in ({}, {"lag_s": 0, "overlap_s": 0}):
        fake.lag_us = 50 * second_us
        here = World(here.folder / str(len(lost)), {}, clock=here.clock)
        with Systems(fake) as systems:
            configure(here, systems, **settings)
            here.turn("crm")
            for number in range(5):
                fake.put(number + 1, plan=f"late-{here.clock.now_us()}")
                here.clock.ahead(13)
                here.turn("crm")
            here.clock.ahead(500)
            here.turn("crm")
        lost.append(here.log.people() != truth(fake))
    assert lost == [False, True]


def test_more_than_ten_thousand_of_one_time_are_read(here: World, fake: HubSpotFake, monkeypatch: pytest.MonkeyPatch) -> None:
    """HubSpot gives 10,000 results for a search, and no page beyond; here a search never gets there."""
    from midflight.sandbox import crm

    monkeypatch.setattr(crm, "results_max", 40)
    for number in range(200, 320):
        fake.put(number, NOW_US - 100 * second_us, email=f"bulk{number}@example.com", plan="free", age="1", country="NO")
    with Systems(fake) as systems:
        configure(here, systems)
        here.turn("crm")
    assert here.log.people() == truth(fake) and len(fake.versions) == 165


def test_an_access_token_is_renewed_when_it_ends_and_when_it_is_ended(here: World, fake: HubSpotFake) -> None:
    """With OAuth a token that ends in its time, or before it, is fetched anew and nothing is lost."""
    oauth = {"token_url": "hubspot", "client_id": "hs-client", "client_secret": "hs-secret", "refresh_token": "hs-refresh"}
    with Systems(fake, plan=Plan({2: "session_expired"})) as systems:
        configure(here, systems, token="", oauth=oauth)
        here.turn("crm")
        assert here.log.people() == truth(fake) and fake.sessions.given == 2
        fake.put(5, plan="pro")
        here.clock.ahead(4000)
        here.turn("crm")
    assert here.log.people() == truth(fake) and fake.sessions.given == 3


def test_wrong_credentials_are_said_and_nothing_of_them_is_shown(here: World, fake: HubSpotFake) -> None:
    """A wrong key stands in the state as what somebody has to mend, without the key."""
    with Systems(fake) as systems:
        configure(here, systems, token="pat-canary-7261")
        here.turn("crm")
    shown = (here.folder / "polls" / "state.json").read_text()
    assert here.state["polls"]["crm"]["state"] == "not_allowed" and here.state["polls"]["crm"]["error"]["todo"]
    assert "canary" not in shown and b"canary" not in (here.folder / "polls" / "polls.db").read_bytes()


def test_a_rate_limit_is_kept_to(here: World, fake: HubSpotFake) -> None:
    """So many calls a second are made, evenly, so a server that counts never has to refuse one; of faster ones it refuses some."""
    refused = []
    for per_second in (10, 1000):
        with Systems(fake, per_s=13) as systems:
            if per_second == 1000:
                # However slow this machine is, to the server all of them are of one second.
                systems.hurry()
            here = World(here.folder / str(per_second), {}, clock=here.clock)
            for number in range(46, 46 + 12 * 20):
                fake.put(number, NOW_US - second_us * 200, email=f"p{number}@example.com", plan="free", age="1", country="NO")
            configure(here, systems, per_second=per_second)
            here.turn("crm")
            refused.append(systems.refused_for_pace > 0)
    assert refused == [False, True]


def test_the_calls_of_a_day_are_bounded_across_lives(here: World, fake: HubSpotFake) -> None:
    """Two calls a day are two, also in two lives; the next day goes on where it was."""
    with Systems(fake) as systems:
        configure(here, systems, per_day=2)
        for _ in range(3):
            here.turn("crm")
        assert len(systems.asked) == 2 and "calls of this day" in here.state["polls"]["crm"]["error"]["what"]
        here.clock.ahead(86_400)
        here.turn("crm")
        here.clock.ahead(86_400)
        here.turn("crm")
    assert here.log.people() == truth(fake)


def test_a_changed_schema_is_named_and_the_rest_goes_on(here: World, fake: HubSpotFake) -> None:
    """A property that is gone sets rows aside with its name; once it is configured otherwise they are read after all."""
    with Systems(fake) as systems:
        configure(here, systems)
        here.turn("crm")
        fake.known.remove("country")
        fake.put(9, plan="pro")
        here.clock.ahead(400)
        here.turn("crm")
        state = here.state["polls"]["crm"]
        assert state["set_aside"] == 1 and "`country`" in state["set_aside_why"] and state["state"] == "good"
        configure(here, systems, traits=["plan", "age"])
        here.turn("crm")
    assert here.state["polls"]["crm"]["set_aside"] == 0
    assert here.log.people()["p9@example.com"]["plan"] == "pro"


def test_a_page_that_can_never_be_read_is_gone_past_and_asked_for_later(here: World, fake: HubSpotFake) -> None:
    """One contact that breaks the server's answer hides those of its millisecond alone; when the server is mended they come too."""
    broken = [True]
    search = fake.search

    def poisoned(body: dict):
        reply = search(body)
        return reply._replace(body=reply.body[:-20]) if broken[0] and b'"p23@example.com"' in reply.body else reply

    fake.search = poisoned
    with Systems(fake) as systems:
        configure(here, systems)
        here.turns_until_good("crm", 300)
        missing = truth(fake).keys() - here.log.people().keys()
        assert missing >= {"p23@example.com"} and len(missing) <= 3
        fake.put(60, email="later@example.com", plan="new", age="1", country="NO")
        here.clock.ahead(120)
        here.turn("crm")
        assert "later@example.com" in here.log.people()
        broken[0] = False
        here.clock.ahead(3600)
        here.turns_until_good("crm")
    assert here.log.people() == truth(fake)


def test_a_range_of_time_is_read_again_on_demand(here: World, fake: HubSpotFake) -> None:
    """Another process asks for a range with a file; what was never said of it is said, what was is not said again, and it is done once."""
    from midflight.serve.polling import ask_backfill

    with Systems(fake) as systems:
        configure(here, systems, since_days=0)
        here.turn("crm")
        assert here.log.events() == []
        ask_backfill(here.folder, "crm", NOW_US - 7200 * second_us, NOW_US, "t-1")
        here.turn("crm")
        assert here.log.people() == truth(fake) and len(here.log.events()) == 45
        ask_backfill(here.folder, "crm", NOW_US - 7200 * second_us, NOW_US, "t-1")
        asked = len(systems.asked)
        here.turn("crm")
        assert len(systems.asked) == asked + 1
    assert len(here.log.events()) == 45 and here.state["polls"]["crm"]["jobs"][0]["ended"] == "read"
