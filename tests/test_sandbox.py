"""The sandbox: the same seed gives the same world, vendors' own code reads what it writes, and its truth can be trusted."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import msgspec
import pytest
from small_door import SmallDoor
from typer.testing import CliRunner

from midflight.commands import sandbox
from midflight.config import config_from
from midflight.events import Event
from midflight.kit.clock import Clock
from midflight.sandbox.life import human_delay_us
from midflight.sandbox.manners import XSS, Manners
from midflight.sandbox.play import Game, play
from midflight.sandbox.run import Runner
from midflight.sandbox.settings import kinds, sandbox_config, sandbox_sources, sources_from
from midflight.sandbox.truth import minute_us, rows, rule_agents, truth
from midflight.sandbox.vendors import SITE, VENDORS
from midflight.sandbox.verify import verify
from midflight.sandbox.world import Scenario, World, campaign_requests
from midflight.sources import Refused
from midflight.stream.measures import MEASURES

T0 = 1_764_000_000_000_000
S = 1_000_000
VENDOR_NAMES = tuple(k for k in kinds() if k != SITE)
# What a vendor's format does not carry, or carries in its own words.
NOT_CARRIED = {"received_at_us", "name", "event_id", "reason", "detail", "code", "agent_reason", "metadata", "traits", "tags", "message_id"}


def small(seed: int = 7, **settings) -> Scenario:
    defaults = {"recipients": 600, "campaigns": 5, "waves": 3, "vendors": VENDOR_NAMES}
    return Scenario(seed=seed, **(defaults | settings))


# -- the same seed, the same world ------------------------------------------------------------------------------------------


def picture(scenario: Scenario) -> tuple:
    world = World(scenario)
    happenings = world.happenings()
    shipments = [(s.source, s.due_us, s.poison, s.cut, tuple(s.events)) for s in world.shipments(happenings)]
    return [(h.event, h.agent) for h in happenings], shipments, world.truth(happenings)


def test_same_seed_same_events_and_truth():
    """Two worlds of one scenario are equal in every event, request and number."""
    assert picture(small()) == picture(small())


def test_a_live_run_happens_now_and_history_in_the_past():
    """Compressed, everything lies between the start and the end in real time; spread, it lies in the days before the start."""
    for scenario, low, high in ((small(), T0, T0 + 75 * S), (small(spread_days=10.0), T0 - 10 * 24 * 3600 * S, T0)):
        times = [h.event.occurred_at_us for h in World(scenario).happenings()]
        assert low <= min(times) and max(times) <= high and max(times) - min(times) > 0.7 * (high - low)


def test_another_seed_is_another_world():
    """Control: the comparison above can fail."""
    assert picture(small(7)) != picture(small(8))


# -- the vendors' own code reads it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", VENDOR_NAMES)
def test_what_is_written_is_verified_and_read_back(vendor):
    """Every request of a vendor passes its verification and parses to the events that were generated, ids one to one."""
    scenario = small(vendors=(vendor,), recipients=200, manners=Manners(poison=0))
    sources = sandbox_sources(scenario.seed, (vendor,))
    ids: dict[str, str] = {}
    seen = Counter()
    for name, request, events in requests_of(scenario, sources):
        sources[name].verify(request)
        parsed = sources[name].parse(request)
        assert not parsed.bad
        for made, read in zip(events, parsed, strict=True):
            for field in set(Event.__struct_fields__) - NOT_CARRIED:
                assert getattr(read, field) == getattr(made, field), (field, made, read)
            assert ids.setdefault(read.event_id, made.event_id) == made.event_id
            seen[made.kind] += 1
    assert len(set(ids.values())) == len(ids)
    assert seen["delivered"] > 250 and seen["opened"] > 50 and seen["clicked"] > 10


def requests_of(scenario: Scenario, sources: dict):
    return campaign_requests(
        scenario.seed,
        sources=sources,
        recipients=scenario.recipients,
        campaigns=scenario.campaigns,
        waves=scenario.waves,
        vendors=scenario.vendors,
        manners=scenario.manners,
    )


@pytest.mark.parametrize("vendor", VENDOR_NAMES)
def test_a_strangers_request_is_refused(vendor):
    """Control: the same requests signed with another run's keys do not pass."""
    ours, strangers = sandbox_sources(1, (vendor,)), sandbox_sources(2, (vendor,))
    _, request, _ = next(requests_of(small(vendors=(vendor,)), strangers))
    with pytest.raises(Refused):
        ours[vendor].verify(request)


def test_the_two_files_fit_each_other():
    """What the keys sign, the configuration accepts; the configuration holds no private key."""
    config, keys = sandbox_config({"door": 1, "console": 2}, seed=5)
    assert "PRIVATE" not in str(config) and "PRIVATE" in str(keys)
    readers, signers = sources_from(config), sources_from(keys)
    checked = set()
    for name, request, _ in requests_of(small(recipients=150), signers):
        readers[name].verify(request)
        checked.add(name)
    assert checked >= set(VENDOR_NAMES)


def test_poison_is_one_bad_event_and_the_rest_is_read():
    """A spoiled event in a batch goes to the bad ones; its neighbours do not."""
    scenario = small(vendors=("sendgrid",), manners=Manners(poison=1.0))
    sources = sandbox_sources(scenario.seed, ("sendgrid",))
    spoiled = 0
    for name, request, events in requests_of(scenario, sources):
        parsed = sources[name].parse(request)
        assert len(parsed) >= len(events)
        spoiled += len(parsed.bad) + len(parsed) - len(events)
    assert spoiled > 3


# -- bad manners ------------------------------------------------------------------------------------------------------------


def test_bad_manners_happen_and_good_manners_do_not():
    """Duplicates, reordering, lateness and bare events occur when asked for, and only then."""

    def measure(manners: Manners) -> tuple[int, int, int]:
        world = World(small(manners=manners))
        happenings = world.happenings()
        told = [e for s in world.shipments(happenings) for e in s.events]
        bare = sum(1 for e in told if e.message_id and not e.campaign)
        backwards = sum(
            1 for a, b in zip(told, told[1:], strict=False) if a.source == b.source and b.occurred_at_us < a.occurred_at_us - 2 * S
        )
        return len(told) - len(happenings), bare, backwards

    good = measure(Manners.good())
    bad = measure(Manners(duplicates=0.2, reorder=0.3, late=0.1, bare=0.2))
    assert good == (0, 0, 0)
    assert all(count > 20 for count in bad)


def test_truth_ignores_bad_manners():
    """Except for what a wrong clock moves to another minute, the numbers are the same with and without bad manners."""
    rude = World(small(manners=Manners(duplicates=0.3, reorder=0.5, late=0.2, bare=0.3, async_bounces=0.0, unknown=0.0)))
    polite = World(small(manners=Manners.good()))
    by = ("campaign", "variant", "wave", "provider", "source")
    found = []
    for world in (rude, polite):
        happenings = world.happenings()
        told = [e for s in world.shipments(happenings) for e in s.events]
        agents = {(h.event.source, h.event.event_id): h.agent for h in happenings}
        found.append(rows(truth(told, world.people.attributes(), agents=agents), by))
    assert found[0] == found[1]


def test_xss_payloads_are_in_names_and_texts():
    """With `xss`, campaign names, urls, user agents and bounce texts carry markup, and the truth speaks of the same names."""
    world = World(small(manners=Manners(xss=True)))
    happenings = world.happenings()
    world.shipments(happenings)
    shown = {"campaign", "variant", "url", "user_agent", "detail", "name"}
    assert {field for h in happenings for field in shown if XSS in getattr(h.event, field)} == shown
    assert any(XSS in cell.campaign for cell in world.truth(happenings))


# -- who did it -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [60, 600, 6000])
def test_the_rules_find_the_true_agents(speed):
    """However compressed time is, the rules over flags, agents and timing give exactly the agents that the sandbox played."""
    world = World(small(speed=float(speed), hours=speed / 30, recipients=2000))
    messages = defaultdict(list)
    happenings = world.happenings()
    for happening in happenings:
        if happening.event.message_id and happening.event.kind != "unknown":
            messages[happening.event.message_id].append(happening)
    played = Counter()
    for its in messages.values():
        assert rule_agents([h.event for h in its]) == [h.agent for h in its]
        played.update((h.event.kind, h.agent) for h in its)
    assert min(played[k, a] for k in ("opened", "clicked") for a in ("human", "machine")) > 20


def test_people_are_never_as_fast_as_machines():
    """No human click lies within the vendor's second around delivery, nor do three links of one message within four seconds."""
    world = World(small(speed=6000.0, hours=200.0, recipients=2000))
    delivered = {h.event.message_id: h.event.occurred_at_us for h in world.happenings() if h.event.kind == "delivered"}
    for happening in world.happenings():
        if happening.agent == "human":
            assert happening.event.occurred_at_us - delivered[happening.event.message_id] >= human_delay_us


# -- the model --------------------------------------------------------------------------------------------------------------


def event(kind: str, at_s: float = 0, **fields) -> Event:
    fields = {"source": "sendgrid", "recipient": "ada@gmail.com", "message_id": "m1"} | fields
    if kind in ("converted", "paged"):
        fields |= {"source": "segment", "message_id": ""}
    fields.setdefault("event_id", f"{kind}-{at_s}-{fields['message_id']}-{fields.get('order_id', '')}-{fields.get('url', '')}")
    return Event(kind=kind, occurred_at_us=T0 + int(at_s * S), received_at_us=T0 + int(at_s * S) + S, **fields)


def sums(*events: Event, by=(), **only) -> dict:
    cells = truth(events, {"ada@gmail.com": ("25-39",)})
    return {key: dict(counts) for key, counts in rows(cells, by, dimensions=("age",), **only).items()}


def test_unique_counts_are_per_message_and_totals_per_event():
    """Three opens of one message are one `opened` in the minute of the earliest, and three `opens`."""
    events = [event("opened", at, user_agent="Mozilla/5.0 (X11)") for at in (130, 70, 3000)]
    cells = truth([*events, events[0]], {})
    by_minute = {c.minute - T0 // minute_us: dict(n) for c, n in cells.items()}
    assert by_minute == {
        1: {"opened": 1, "opened_human": 1, "opens": 1, "opens_human": 1},
        2: {"opens": 1, "opens_human": 1},
        50: {"opens": 1, "opens_human": 1},
    }


def test_a_message_is_known_by_any_of_its_events():
    """A click that says no campaign belongs to the campaign that the delivery said, whatever comes first."""
    events = [event("clicked", 100, url="u"), event("delivered", 0, campaign="spring", variant="B", wave="w1")]
    got = sums(*events, by=("campaign", "variant", "wave", "provider", "age"))
    clicked = {"clicked": 1, "clicked_human": 1, "clicks": 1, "clicks_human": 1}
    assert got == {("spring", "B", "w1", "Gmail", "25-39"): {"delivered": 1} | clicked}


def test_a_conversion_belongs_to_the_latest_human_click_in_the_window():
    """The later of two clicked messages gets the sale; machines' clicks and clicks outside of the window do not."""
    day = 24 * 3600
    clicks = [
        event("clicked", 10, message_id="m1", campaign="one"),
        event("clicked", 500, message_id="m2", campaign="two"),
        event("delivered", 600, message_id="m3", campaign="three"),
        event("clicked", 601, message_id="m3"),
    ]
    sales = [
        event("converted", 700, order_id="a", value_micros=5),
        event("converted", 700, order_id="a", value_micros=5, event_id="again"),
        event("converted", 800, order_id="b", value_micros=7),
        event("converted", 8 * day, order_id="c", value_micros=11),
    ]
    got = sums(*clicks, *sales, by=("campaign",))
    assert got["two",]["conversions"] == 2 and got["two",]["converted"] == 1 and got["two",]["revenue_micros"] == 12
    assert got["",] == {"conversions": 1, "revenue_micros": 11}
    assert "conversions" not in got["one",] and "conversions" not in got["three",]


def test_a_user_id_leads_to_the_recipient():
    """A sale that knows only the user id is the recipient's whom `identify` named."""
    identified = Event(source="segment", event_id="i", kind="identified", user_id="u1", recipient="Ada@GMAIL.com")
    sale = event("converted", 50, recipient="", user_id="u1", order_id="x")
    assert sums(event("clicked", 10, campaign="one"), identified, sale, campaign="one")[()]["converted"] == 1
    assert "converted" not in sums(event("clicked", 10, campaign="one"), sale, campaign="one")[()]


def test_agents_by_rule():
    """Flag, user agent, time since delivery, burst; and people where none of them fits."""
    proxy = "Mozilla/5.0 (via ggpht.com GoogleImageProxy)"
    cases = [
        (event("delivered", 0), ""),
        (event("opened", 900, agent="machine", user_agent="x"), "machine"),
        (event("opened", 901, user_agent="Mozilla/5.0"), "machine"),
        (event("opened", 1, user_agent=proxy), "proxied"),
        (event("opened", 1.5, user_agent="Mozilla/5.0 (X11)"), "machine"),
        (event("clicked", 2, url="a"), "human"),
        (event("clicked", 1.9, url="a"), "machine"),
        (event("clicked", 100, url="a"), "machine"),
        (event("clicked", 101, url="b"), "machine"),
        (event("clicked", 102, url="c"), "machine"),
        (event("clicked", 105, url="d"), "human"),
        (event("clicked", 106, url="d"), "human"),
        (event("clicked", 106.5, url="e"), "human"),
    ]
    assert rule_agents([e for e, _ in cases]) == [agent for _, agent in cases]


def test_bounces_count_by_class_and_clocks_in_the_future_count_at_receipt():
    """A bounce ten years ahead lands in the minute of its receipt, in its class."""
    bounce = event("bounced", 0, bounce_class="block")
    bounce.occurred_at_us += 10 * 365 * 24 * 3600 * S
    ((cell, counts),) = truth([bounce], {}).items()
    assert counts == {"bounced_block": 1} and cell.minute == (T0 + S) // minute_us


# -- over real HTTP ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files() -> tuple[dict, dict]:
    return sandbox_config(seed=3)


def live(**settings) -> Scenario:
    """A few seconds of real time, from now on."""
    defaults = {"recipients": 150, "campaigns": 5, "waves": 2, "vendors": VENDOR_NAMES, "speed": 6000.0, "hours": 6.0}
    return Scenario(seed=3, start_us=Clock().now_us() // S * S, **(defaults | settings))


RUDE = Manners(duplicates=0.1, reorder=0.2, late=0.1, bare=0.1, clocks=0.0, async_bounces=0.02, unknown=0.02, poison=0.5, cut=0.05)


def test_a_run_survives_a_moody_door_and_its_numbers_are_true(files):
    """429, 500, cuts before and after storing, and all bad manners at once: every number is true in the end."""
    config, keys = files
    moods = dict(zip(range(3, 90, 5), [429, "cut", "gone", 500, "gone"] * 4, strict=False))
    with SmallDoor(config, moods) as door:
        told = play(Game(live(manners=RUDE), door.url, keys, api=door.url))
        assert told.report["refused"] == told.report["lost"] == 0
        assert told.report["retries"] >= len(moods) and told.report["cuts"] > 0
        assert told.report["answers"]["429"] > 0 and told.report["answers"]["none"] > 0
        assert set(door.requests) >= {"/v1/track", "/v1/batch", *(f"/in/{name}" for name in VENDOR_NAMES)}
        assert door.bad > 0 and len(door.events) > told.report["events"] - door.bad
        assert verify(told, door.url, measures=MEASURES, timeout_s=5) == []


def test_history_is_loaded_at_full_rate_and_true(files):
    """With `spread` the events lie in the past, are not waited for, and wrong clocks leave all sums true."""
    config, keys = files
    scenario = live(spread_days=30.0, manners=Manners(clocks=0.3, poison=0.0))
    with SmallDoor(config) as door:
        told = play(Game(scenario, door.url, keys))
        assert not told.minutes_exact
        assert all(e.occurred_at_us < scenario.start_us for e in door.events if e.kind in ("delivered", "clicked", "converted"))
        assert verify(told, door.url, measures=MEASURES, timeout_s=5) == []


def test_what_the_door_refuses_is_no_part_of_the_truth(files):
    """A request refused for good is reported, its events are left out, and the rest is true."""
    config, keys = files
    scenario = live(vendors=("sendgrid",), spread_days=5.0, batch=20, manners=Manners.good())
    with SmallDoor(config, {10: 413}) as door:
        told = play(Game(scenario, door.url, keys))
        assert told.report["refused"] == 1 and told.report["lost"] == 0
        assert verify(told, door.url, measures=("queued", "delivered", "deferred", "conversions"), timeout_s=5) == []


def test_a_door_that_never_takes_anything_ends_the_run(files):
    """A door that only says 429 is given up after the patience, and everything is reported as lost."""
    config, keys = files
    with SmallDoor(config, dict.fromkeys(range(100_000), 429)) as door:
        scenario = live(recipients=20, vendors=("sendgrid",), campaigns=1, spread_days=1.0)
        told = play(Game(scenario, door.url, keys, patience_s=0.5))
    assert told.report["events"] == 0 and told.report["lost"] > 0 and told.cells == []


def test_retry_after_is_honoured(files):
    """After a 429 nothing of that request comes before Retry-After has passed."""
    config, keys = files
    shipment = World(live()).shipments(World(live()).identifies(), Manners.good())[0]
    with SmallDoor(config, {0: 429}) as door:
        runner = Runner(door.url, sources_from(keys), live=False, speed=1e9)
        report = runner.run([shipment])
    assert report.answers == {429: 1, 200: 1} and report.retries == 1
    assert report.seconds >= 1


def test_prepared_requests_are_the_same_requests(files):
    """Signing ahead changes nothing but the time it takes: the same events arrive, retries included."""
    config, keys = files
    scenario = live(spread_days=2.0, recipients=60, manners=Manners(poison=0.0))
    arrived = []
    for prepare in (False, True):
        with SmallDoor(config, {2: "gone", 30: 429}) as door:
            play(Game(scenario, door.url, keys, prepare=prepare))
            arrived.append(sorted((e.source, e.event_id, e.kind, e.occurred_at_us) for e in door.events if e.event_id[:2] != "h:"))
    assert set(arrived[0]) == set(arrived[1]) and len(arrived[0]) > 100


def test_the_rate_is_bounded(files):
    """With a rate the events take at least as long as it says."""
    config, keys = files
    world = World(live(recipients=200, batch=10))
    with SmallDoor(config) as door:
        report = Runner(door.url, sources_from(keys), live=False, rate=400).run(world.shipments(world.identifies(), Manners.good()))
    assert report.events == 200 and report.seconds >= 0.4


def sandbox_command(*arguments: object) -> object:
    return CliRunner().invoke(sandbox.app, [str(a) for a in arguments])


def test_the_command_runs_tells_the_truth_and_judges(tmp_path):
    """`init`, `run --truth --verify` and `verify` work together; a single wrong number is shown and exits with 1."""
    assert sandbox_command("init", tmp_path).exit_code == 0
    config = msgspec.yaml.decode((tmp_path / "midflight.yaml").read_bytes())
    with SmallDoor(config_from(config) and config) as door:
        ran = sandbox_command(
            "run", "--door", door.url, "--keys", tmp_path / "sandbox.yaml", "--recipients", 60, "--campaigns", 2, "--spread", 3,
            "--truth", tmp_path / "truth.json", "--verify", door.url, "--verify-timeout", 5,
        )  # fmt: skip
        assert ran.exit_code == 0, ran.output
        assert "is true" in ran.output
        assert re.search(r"events in [\d,]+ requests, .*; answers: [\d,]+ of 200(, [\d,]+ of \w+)*; [\d,]+ retries", ran.output)
        assert "{" not in ran.output, "a line for people, not a dict"
        door.wrong = ("delivered", 1)
        judged = sandbox_command("verify", tmp_path / "truth.json", door.url, "--verify-timeout", 0)
    assert judged.exit_code == 1
    assert "delivered" in judged.output and "differ" in judged.output


def test_verify_finds_one_wrong_number_of_any_measure(files):
    """Control: whichever measure the API shows wrong by one, the comparison says so."""
    config, keys = files
    with SmallDoor(config) as door:
        told = play(Game(live(spread_days=3.0, recipients=250), door.url, keys))
        counted = {measure for _, counts in told.cells for measure in counts}
        assert len(counted) > 20
        for measure in counted - {"site"}:
            door.wrong = (measure, 1)
            assert {d.measure for d in verify(told, door.url, measures=MEASURES, timeout_s=0)} == {measure}


def test_every_vendor_is_played():
    """The sandbox plays at least the five vendors that the demo promises."""
    assert set(VENDORS) >= {"sendgrid", "ses", "postmark", "mailgun", "resend"}
