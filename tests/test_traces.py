"""Twelve traces of what goes wrong around a sender: nothing forbidden is done, and what is wanted is done within its time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from acting_world import WorldClock
from door_client import OLD_KEY, Running, array, configuration, running, signed
from traces import BLOCKED, BROWSER, BUSY, DAY, GONE, HOUR, LATER, MINUTE, NOTHING, NUMBERS, PLACES, SECOND, START_US, Trace

from midflight.decide import limits
from midflight.decide.dead_addresses import Providers
from midflight.decide.gauges import Gauges
from midflight.decide.triggers.metric import Metric
from midflight.kit.clock import SteadyClock
from midflight.serve import protecting
from midflight.serve.acting import Breakers
from midflight.sources.sendgrid import SendGrid
from midflight.store import answering, suspecting
from midflight.stream.edge import Edge, _Assembly


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Trace]:
    made = Trace(tmp_path)
    yield made
    made.close()


def people(name: str, count: int, *domains: str) -> list[str]:
    domains = domains or tuple(PLACES.values())
    return [f"{name}{n}@{domains[n % len(domains)]}" for n in range(count)]


def say(name: str, **figures: object) -> None:
    """Print the figures of a trace, for who runs with ``-s``."""
    print(f"\n{name:20} " + ", ".join(f"{what.replace('_', ' ')} {figure:,}" for what, figure in figures.items()), end="")


# -- 1: the storm of 14 December 2020 ------------------------------------------------------------------------------------------------------

LIVING, OTHERS = people("p", 400, "gmail.com"), people("p", 400, "yahoo.com")
DEAD = people("gone", 12, "yahoo.com")


def storm(trace: Trace) -> dict[str, int]:
    """Three days of usual life; for two days Gmail calls the living dead, hundreds of them twice; then it knows them again."""
    trace.stand("follow up", "bounces")
    dead = 0
    for day in range(4):
        for hour in (0, 4):
            trace.tell("delivered", [*LIVING[hour:], *OTHERS])
            if hour == 0 and day in (0, 2):
                trace.tell("bounced", DEAD, bounce_class="hard", code="550 5.1.1", detail=GONE)
            trace.pass_by(600, 300)
        trace.tell("clicked", LIVING[:50] if day == 0 else [], user_agent=BROWSER)
        trace.pass_by(2400, 600)
        trace.pass_by(DAY / SECOND - 3600, 6 * 3600)
    said, held_after = 0, 0
    for _ in range(12):
        for part in range(0, 10, 2):
            who = LIVING[part * 40 : part * 40 + 80 : 2]
            trace.tell("bounced", who, bounce_class="hard", code="550 5.1.1", detail=GONE, message_id=trace.name())
            trace.tell("delivered", OTHERS[part * 40 : part * 40 + 80], message_id=trace.name())
            said += len(who)
            trace.pass_by(30, 30)
            dead = max(dead, len([who for who, why in trace.suppressed().items() if why == "dead" and who not in DEAD]))
            if not held_after and "Gmail" in trace.held:
                held_after = said
        trace.pass_by(4 * 3600 - 300, 3600)
    for _ in range(3):
        trace.tell("delivered", [*LIVING[::3], *OTHERS], message_id=trace.name())
        trace.pass_by(600, 300)
        trace.tell("delivered", LIVING[1::3], message_id=trace.name())
        trace.pass_by(DAY / SECOND - 600, 6 * 3600)
    return {"called_dead": said, "lost": dead, "held_after_messages": held_after}


def test_a_false_storm_costs_nobody(trace: Trace) -> None:
    """No living address is suppressed, at no moment; Gmail is held within 100 of its answers; three days later all may be written to."""
    figures = storm(trace)
    say("false 5.1.1 storm", **figures)
    assert trace.broken() == [] and figures["lost"] == 0
    assert 0 < figures["held_after_messages"] <= 100 and "Yahoo" not in trace.held
    assert trace.suppressed() == dict.fromkeys(DEAD, "dead")
    assert len(trace.of("follow up")) == 50 and trace.of("bounces")


def test_who_believes_a_storm_is_caught(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where nobody asks what a provider says of the living, the second answer suppresses them."""
    monkeypatch.setattr(Providers, "add", lambda *arguments, **more: None)
    assert storm(trace)["lost"] > 50


# -- 2: greylisting ------------------------------------------------------------------------------------------------------------------------


def greylisting(trace: Trace) -> int:
    """A new IP: for an hour all three providers put off most of what comes first, and take it a few minutes later. Some vendors call that
    deferred, others a soft bounce. Return how many were put off."""
    trace.stand()
    trace.usual(30)
    put_off = 0
    for n in range(12):
        late = people(f"g{n}-", 120)
        trace.tell("deferred", late[:60], code="451 4.7.1", detail=LATER)
        trace.tell("bounced", late[60:], code="451 4.7.1", detail=LATER, bounce_class="soft")
        put_off += len(late)
        trace.pass_by(300)
        trace.tell("delivered", late)
        trace.pass_by(60)
        trace.tell("clicked", late[::10], user_agent=BROWSER)
    trace.pass_by(35 * 60)
    return put_off


def test_greylisting_holds_nothing_and_costs_nobody(trace: Trace) -> None:
    """Nobody is suppressed, no provider or campaign held; who clicks hears half an hour later."""
    put_off = greylisting(trace)
    say("greylisting", put_off=put_off, held=len(trace.held), suppressed=len(trace.suppressed()), followed_up=len(trace.of("follow up")))
    assert trace.broken() == [] and trace.held == {} and trace.suppressed() == {}
    assert len(trace.of("follow up")) == put_off // 10


def test_who_takes_later_for_never_is_caught(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where every bounce says that nobody is there, people are lost; where it is an answer, their campaign is held."""
    monkeypatch.setattr(suspecting.dead_addresses, "kind_of", lambda verdict: "dead")
    monkeypatch.setattr(suspecting.Bounced, "puts_off", False)
    greylisting(trace)
    assert trace.suppressed() and trace.held


# -- 3: one bad segment --------------------------------------------------------------------------------------------------------------------


def bad_segment(trace: Trace, most: int = 1000) -> dict[str, int]:
    """An old list is written to: a quarter of it does not exist, at every provider. Another campaign goes on beside it."""
    trace.stand("follow up", "bounces")
    trace.tell("delivered", LIVING)
    trace.pass_by(DAY / SECOND, 6 * 3600)
    trace.usual(20)
    sent = bounced = 0
    while "winback" not in trace.held and sent < most:
        bounced += trace.answers({("winback", provider): (7, 0.25) for provider in PLACES}, GONE, "hard")
        trace.answers({("news", provider): (30, 0.015) for provider in PLACES}, BUSY, "soft")
        sent += 21
        trace.pass_by(1)
    trace.pass_by(120)
    return {"messages": sent, "bounced": bounced}


def test_one_bad_segment_holds_its_campaign_alone(trace: Trace) -> None:
    """The campaign is held within 315 messages and no provider is; the living stay; nobody is told by a rule that the rest bounces."""
    figures = bad_segment(trace)
    say("one bad segment", **figures)
    assert trace.broken() == [] and trace.held == {"winback": "held"} and figures["messages"] <= 315
    assert not trace.suppressed().keys() & set(LIVING)


def test_blame_that_goes_astray_is_caught(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where a provider is blamed for a list, it is held, and everybody's mail with it."""
    monkeypatch.setattr(protecting, "blamed", lambda kind, name, pairs, rate: ("provider", "Gmail"))
    bad_segment(trace, 200)
    assert "Gmail" in trace.held


def everybody(trace: Trace) -> None:
    """Somebody makes a segment that means everybody: five hundred people enter it within a minute."""
    trace.stand("reader")
    trace.tell("delivered", people("p", 500))
    trace.pass_by(60)
    trace.tell("opened", people("p", 500), user_agent=BROWSER)
    trace.pass_by(600)


def test_a_segment_of_everybody_touches_no_more_than_may_be(tmp_path: Path) -> None:
    """A hundred people may be touched in an hour by automation on its own; it is not more, within a minute, and a person is asked."""
    trace = Trace(tmp_path, automation={"ceiling_per_hour": 100})
    everybody(trace)
    reached = trace.who("reader")
    assert len(reached) == 100 and trace.ends_of("reader")["suggested blast_radius"] == 400 and trace.broken() == []
    trace.close()


def test_a_segment_of_everybody_without_a_ceiling_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where nobody counts whom all rules touch together, all five hundred are."""
    monkeypatch.setattr(limits, "CHECKS", tuple(check for check in limits.CHECKS if check is not limits._blast_radius))
    trace = Trace(tmp_path, automation={"ceiling_per_hour": 100})
    everybody(trace)
    assert len(trace.who("reader")) == 500
    trace.close()


# -- 4: blocklisting -----------------------------------------------------------------------------------------------------------------------


def blocklisting(trace: Trace) -> dict[str, float]:
    """A blocklist names our IP, and Gmail refuses eight of ten messages of every campaign; a hundred people of each provider clicked half
    an hour before."""
    trace.stand("follow up")
    clickers = people("c", 300)
    trace.tell("delivered", clickers)
    trace.usual(20)
    trace.pass_by(600)
    trace.tell("clicked", clickers, user_agent=BROWSER)
    trace.pass_by(28 * 60)
    bounced = answered = 0
    began_us = trace.wall.at_us
    while "Gmail" not in trace.held and answered < 3000:
        trace.answers({("spring", "Yahoo"): (20, 0.015), ("news", "Microsoft"): (20, 0.015)}, BUSY, "soft")
        bounced += trace.answers({("spring", "Gmail"): (2, 0.8), ("news", "Gmail"): (2, 0.8)})
        answered += 4
        trace.pass_by(1)
    seconds = (trace.wall.at_us - began_us) / SECOND
    trace.pass_by(5 * 60)
    return {"messages": answered, "seconds": seconds, "bounced": bounced}


def test_a_blocklist_is_named_and_its_provider_held(trace: Trace) -> None:
    """Gmail alone is held within 100 messages, the list is named with what to do, and follow-ups to Gmail wait while all others go."""
    figures = blocklisting(trace)
    reached = trace.who("follow up")
    say("blocklisting", **figures, followed_up=len(reached))
    assert trace.broken() == [] and trace.held == {"Gmail": "held"} and figures["messages"] <= 100
    (sign,) = trace.signs()
    assert sign["who"] == "Spamhaus" and sign["provider"] == "Gmail" and "check.spamhaus.org" in sign["advice"]
    assert not [who for who in reached if who.endswith("gmail.com")] and len(reached) == 200
    assert trace.ends_of("follow up")["waiting breaker"] == 100
    trace.pass_by(60 * 60)
    # A probe is on its way by then: what goes with it goes in its time, and the rest not at all.
    assert not trace.ends_of("follow up")["waiting breaker"] and trace.broken() == []


def test_follow_ups_that_know_of_no_hold_are_caught(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where rules do not ask what is held, they write to a provider that refuses us."""
    monkeypatch.setattr(trace.automation.acting, "breakers", Breakers)
    blocklisting(trace)
    assert [who for who in trace.who("follow up") if who.endswith("gmail.com")]


# -- 5: forged webhooks --------------------------------------------------------------------------------------------------------------------


def sendgrid_event(number: int, kind: str, who: str, at_us: int) -> dict:
    more = {"url": "https://shop.example/1", "useragent": BROWSER} if kind == "click" else {}
    return {
        "email": who, "event": kind, "timestamp": at_us // SECOND, "sg_event_id": f"id-{number}", "sg_message_id": f"m-{who}.x",
        "campaign": "spring", **more,
    }  # fmt: skip


class Vendor:
    """A vendor that signs what it sends, in the trace's time; and who has its address, and not its key."""

    def __init__(self, door: Running, trace: Trace) -> None:
        self.door, self.trace, self.number = door, trace, 0

    def body(self, kind: str, people: list[str]) -> bytes:
        self.number += len(people)
        now_us = self.trace.clock.now_us()
        return array(*(sendgrid_event(self.number - n, kind, who, now_us) for n, who in enumerate(people)))

    def signed(self, body: bytes, **more: object) -> dict[str, str]:
        return signed(body, at=str(self.trace.clock.now_us() // SECOND), **more)

    def post(self, body: bytes, headers: dict[str, str]) -> int:
        return self.door.post("/in/sendgrid", body, headers).status

    def tell(self, kind: str, people: list[str]) -> tuple[bytes, dict[str, str]]:
        """Hand in the truth, and return the request."""
        body = self.body(kind, people)
        headers = self.signed(body)
        assert self.post(body, headers) == 200
        return body, headers

    def forged(self, kind: str, who: str) -> list[int]:
        """Hand in the same lie with no signature, with somebody else's, with a stolen one and with an empty one; return the answers."""
        lie, truth = self.body(kind, [who]), self.body("open", ["p0@gmail.com"])
        stolen = self.signed(truth)
        headers = ({}, self.signed(lie, key=OLD_KEY), stolen, dict.fromkeys(stolen, ""))
        return [self.post(lie, one) for one in headers]


def forged(trace: Trace, door: Running) -> list[int]:
    """Thirty people click; 360 forged webhooks say that thirty others do, that they bounce, and that they leave; the true
    ones are played again. Return what the forgeries were answered."""
    vendor = Vendor(door, trace)
    trace.stand()
    listed, others = people("p", 30, "gmail.com"), people("victim", 30, "gmail.com")
    vendor.tell("delivered", [*listed, *others])
    trace.pass_by(11 * 60)
    answers = [answer for who in others for kind in ("click", "bounce", "unsubscribe") for answer in vendor.forged(kind, who)]
    body, headers = vendor.tell("click", listed)
    trace.first_clicked = dict.fromkeys(listed, trace.wall.at_us)
    trace.pass_by(10, 1)
    # A true one may come again, by its vendor or by who has overheard it: it is known, and happens once.
    assert vendor.post(body, headers) == 200
    trace.pass_by(1800)
    vendor.post(body, headers)
    trace.pass_by(300)
    return answers


@contextmanager
def with_door(folder: Path) -> Iterator[tuple[Trace, Running]]:
    config, clock = configuration(folder), WorldClock(START_US)
    with running(config, clock=clock) as door:
        config.door.port = door.port
        trace = Trace(folder, config, wall=clock)
        try:
            yield trace, door
        finally:
            trace.close()


def test_forged_webhooks_are_turned_away_at_the_door(tmp_path: Path) -> None:
    """Each is answered with 401 and is nowhere in the numbers; who really clicks is reached within 5 seconds and followed up in time."""
    with with_door(tmp_path) as (trace, door):
        answers = forged(trace, door)
        listed = people("p", 30, "gmail.com")
        say("forged webhooks", forged=len(answers), answered_401=answers.count(401), followed_up=len(trace.of("follow up")))
        assert set(answers) == {401} and len(answers) == 360 and trace.broken() == []
        assert trace.who("follow up") == trace.who("on click") == dict.fromkeys(listed, 1)
        assert trace.sums("clicked", "unsubscribed", "bounced_hard") == {"clicked": 30, "unsubscribed": 0, "bounced_hard": 0}
        assert trace.suppressed() == {}
        assert {record.kind for record in door.records() if record.body != NOTHING.body} == {"definition", "webhook"}


def test_a_door_that_believes_anybody_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where no signature is looked at, the forger's word is in the numbers, and people are suppressed who did nothing."""
    monkeypatch.setattr(SendGrid, "verify", lambda source, request: 0)
    with with_door(tmp_path) as (trace, door):
        assert 200 in forged(trace, door)
        assert trace.suppressed() and trace.sums("clicked")["clicked"] > 30


# -- 6: scanners ---------------------------------------------------------------------------------------------------------------------------

SCANNERS = {"user_agent": "Mozilla/5.0 (compatible; proofpoint-urldefense)"}


def scanners(trace: Trace) -> tuple[list[str], float]:
    """Scanners of companies click in all messages: all links at once, by their own names, from their own networks. Minutes later forty
    people click, ten of them where a scanner has. Return them, and the seconds until the last of them was reached at once."""
    trace.stand()
    burst, named, network, quiet = (people(name, 40, f"{name}.example") for name in ("burst", "named", "network", "quiet"))
    trace.tell("delivered", [*burst, *named, *network, *quiet])
    trace.pass_by(30, 30)
    for link in range(4):
        trace.tell("clicked", burst, url=f"https://shop.example/{link}", user_agent=BOT_AS_BROWSER)
        trace.wall.sleep_s(0.4)
    trace.tell("clicked", named, url="https://shop.example/1", **SCANNERS)
    trace.tell("clicked", network, url="https://shop.example/1", ip="209.222.82.14", user_agent=BOT_AS_BROWSER)
    trace.pass_by(120, 10)
    real = [*burst[:5], *named[:5], *quiet[:30]]
    trace.tell("clicked", real, url="https://shop.example/0", user_agent=BROWSER)
    clicked_us = trace.wall.at_us
    trace.pass_by(10, 1)
    seconds = max(one.true_us - clicked_us for one in trace.of("on click")) / SECOND
    trace.pass_by(40 * 60)
    return real, seconds


# As a browser that no scanner would be told by.
BOT_AS_BROWSER = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36"


def test_scanners_set_nothing_off(trace: Trace) -> None:
    """No rule acts on 240 clicks of scanners; each person who clicks is reached within 5 seconds, and followed up after half an hour."""
    real, seconds = scanners(trace)
    say("scanner clicks", scanner_clicks=240, reached_at_once=len(trace.who("on click")), seconds=seconds)
    assert trace.broken() == [] and trace.who("on click") == trace.who("follow up") == dict.fromkeys(real, 1) and seconds <= 5
    assert trace.sums("clicked_human") == {"clicked_human": len(real)}


def humans_all(assembly: _Assembly) -> np.ndarray:
    """Take everybody for a human, and be sure of it."""
    sure = np.uint8(5)
    return np.full(assembly.columns["kind"].size, sure, np.uint8)


def test_who_takes_scanners_for_people_is_caught(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where every click is a human's, scanners are followed up."""
    monkeypatch.setattr(_Assembly, "_agents", humans_all)
    real, _ = scanners(trace)
    assert trace.who("follow up").keys() - set(real)


# -- 7: prefetched opens -------------------------------------------------------------------------------------------------------------------

GMAIL_PREFETCH = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/42.0.2311.135 Safari/537.36 "
    "Edge/12.246 Mozilla/5.0"
)


def prefetch(trace: Trace) -> list[str]:
    """Every message is opened by machines: Apple's and Gmail's prefetching, and a gateway within a second of delivery. Twenty people open
    one of them minutes later. Return these."""
    trace.stand()
    listed = people("p", 300)
    trace.tell("delivered", listed, campaign="quiet")
    trace.wall.sleep_s(1)
    trace.tell("opened", listed[:100], campaign="quiet", user_agent="Mozilla/5.0")
    trace.tell("opened", listed[100:200], campaign="quiet", user_agent=GMAIL_PREFETCH)
    trace.tell("opened", listed[200:], campaign="quiet", user_agent=BOT_AS_BROWSER)
    trace.pass_by(180)
    real = [*listed[:3], *listed[100:117]]
    trace.tell("opened", real, campaign="quiet", user_agent=BROWSER)
    trace.pass_by(120, 10)
    return real


def test_prefetched_opens_set_nothing_off(trace: Trace) -> None:
    """Nobody is a reader by them, and a rule on few opens sees through them; who really opens is reached within 10 seconds."""
    real = prefetch(trace)
    (few,) = trace.of("few opens")
    seconds = max((one.true_us - one.cause_us) / SECOND for one in trace.of("reader"))
    say("prefetch opens", machine_opens=300, readers=len(trace.who("reader")), seconds=seconds)
    assert trace.broken() == [] and trace.who("reader") == dict.fromkeys(real, 1) and seconds <= 10
    assert trace.sums("opened_human") == {"opened_human": len(real)} and few.rule == "few opens"


def test_who_takes_prefetching_for_reading_is_caught(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where every open is a human's, everybody is a reader."""
    monkeypatch.setattr(_Assembly, "_agents", humans_all)
    prefetch(trace)
    assert len(trace.who("reader")) == 300


# -- 8: everything ten times ---------------------------------------------------------------------------------------------------------------


def tenfold(trace: Trace, clickers: list[str]) -> None:
    """Each webhook comes ten times: three at once, some later, some after a restart, the last an hour later. Gmail bounces a little."""
    trace.stand()
    trace.usual(20)
    told = trace.tell("delivered", clickers)
    trace.pass_by(60)
    told += trace.tell("opened", clickers, user_agent=BROWSER) + trace.tell("clicked", clickers, user_agent=BROWSER)
    bounced = people("b", 20)
    told += trace.tell("bounced", bounced, bounce_class="block", code="550 5.7.1", detail=BLOCKED)
    told += trace.tell("delivered", people("d", 900))
    trace.append(told + told)
    trace.pass_by(5, 5)
    for n in range(6):
        trace.append(told)
        trace.pass_by(300)
        if n == 2:
            trace.ends()
            trace.starts()
    trace.pass_by(20 * 60)
    trace.append(told)
    trace.pass_by(60 * 60)


def test_tenfold_duplicates_happen_once(trace: Trace) -> None:
    """Every firing is one, every number too, over a restart; twenty bounces of a thousand are not two hundred, and hold nobody."""
    clickers = people("c", 40)
    tenfold(trace, clickers)
    say("tenfold duplicates", people=len(clickers), followed_up=len(trace.of("follow up")), held=len(trace.held))
    assert trace.broken() == [] and trace.held == {}
    assert trace.who("follow up") == trace.who("on click") == trace.who("reader") == dict.fromkeys(clickers, 1)
    assert {rule: n for rule, n in trace.firings().items() if rule not in NUMBERS} == dict.fromkeys(("follow up", "on click", "reader"), 40)
    assert trace.sums("clicked", "opened") == {"clicked": 40, "opened": 40}


def test_who_counts_every_delivery_of_a_webhook_is_caught(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where each delivery is an event of its own, rules fire again."""
    prepare, numbers = Edge.prepare, iter(range(1, 1 << 40))

    def afresh(edge: Edge, records: list) -> object:
        prepared = prepare(edge, records)
        ids = np.array([next(numbers) for _ in range(prepared.batch.id_lo.size)], np.uint64)
        return prepared._replace(batch=prepared.batch._replace(id_lo=ids, id_hi=ids * np.uint64(0x9E3779B97F4A7C15)))

    monkeypatch.setattr(Edge, "prepare", afresh)
    tenfold(trace, people("c", 40))
    assert trace.firings()["on click"] > 40


# -- 9: six hours of silence, then all of it -----------------------------------------------------------------------------------------------


def backlog(trace: Trace) -> list[tuple[str, int]]:
    """A vendor is away for six hours and then hands in all at once: clicks of each minute, and a bout of bounces three hours old. Return
    who clicked, and how many minutes before the end."""
    trace.stand()
    trace.usual(30)
    trace.pass_by(6 * 3600, 600)
    clicked = []
    for minute in range(360, 0, -1):
        at_us = trace.clock.now_us() - minute * MINUTE
        listed = people(f"m{minute}-", 20)
        bad = 19 if 150 <= minute < 210 else 0
        trace.tell("bounced", listed[:bad], at_us, bounce_class="block", code="550 5.7.1", detail=BLOCKED)
        trace.tell("delivered", listed[bad:], at_us)
        trace.tell("clicked", listed[-1:], at_us + 5 * SECOND, user_agent=BROWSER)
        clicked.append((listed[-1], minute))
    # Whoever bought is in the backlog too, behind the clicks.
    trace.tell("converted", [who for who, minute in clicked if minute % 5 == 0], trace.clock.now_us())
    trace.pass_by(90 * 60)
    return clicked


def test_a_backlog_sets_off_nothing_that_is_over(trace: Trace) -> None:
    """Only who clicked in the last half hour and did not buy is followed up, only the last ten minutes are reacted to, and no number of
    hours ago is an alarm or holds anything."""
    clicked = backlog(trace)
    say(
        "outage and backlog",
        clicks=len(clicked),
        followed_up=len(trace.of("follow up")),
        expired=trace.ends_of("follow up")["expired expired"],
    )
    assert trace.broken() == [] and trace.of(*NUMBERS) == [] and trace.held == {}
    # A look comes once a minute here, and a click of exactly the last minute in time may go either way.
    wanted = {who for who, minute in clicked if minute < 29 and minute % 5}
    allowed = wanted | {who for who, minute in clicked if minute <= 30 and minute % 5}
    assert wanted <= trace.who("follow up").keys() <= allowed
    at_once = trace.who("on click").keys()
    assert {who for who, minute in clicked if minute < 9} <= at_once <= {who for who, minute in clicked if minute <= 10}
    assert trace.sums("clicked_human") == {"clicked_human": len(clicked)}


def test_follow_ups_that_never_expire_are_caught(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without an expiry a click of six hours ago is followed up."""
    monkeypatch.setattr(limits, "CHECKS", tuple(check for check in limits.CHECKS if check is not limits._expired))
    backlog(trace)
    assert [words for words in trace.broken() if "too late" in words]


def test_numbers_that_count_by_receipt_are_caught(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where what is received now counts as of now, bounces of hours ago are an alarm, and hold a campaign."""
    add = Gauges.add

    def now(gauges: Gauges, key: np.ndarray, value: np.ndarray) -> None:
        key = key.copy()
        key[:, 0] = key[:, 0] & np.uint64(0xFFFFFFFF00000000) | np.uint64(gauges.minute)
        add(gauges, key, value)

    monkeypatch.setattr(Gauges, "add", now)
    monkeypatch.setattr(answering, "late_us", 1 << 60)
    backlog(trace)
    assert trace.of(*NUMBERS) and trace.held


# -- 10: a clock that jumps --------------------------------------------------------------------------------------------------------------


def clock_jump(folder: Path) -> tuple[Trace, list[str]]:
    """The machine's clock is two days ahead for three minutes, right again, and from then on two hours behind. People click before, in
    between and after; of each ten, five buy. A vendor's clock is wrong as well. Return who did not buy."""
    trace = Trace(folder, steady=True)
    trace.stand("follow up", "on click")
    true_us = trace.wall.at_us

    def click(name: str) -> list[str]:
        listed = people(name, 10)
        trace.tell("delivered", listed, trace.wall.at_us - 20 * MINUTE)
        trace.tell("clicked", listed, trace.wall.at_us, user_agent=BROWSER)
        return listed

    clicked = click("before")
    trace.pass_by(5 * 60)
    # Nothing that a vendor says of its time makes anything happen sooner.
    for n, at_us in enumerate((true_us + 2 * HOUR, true_us + 3650 * DAY, 1, 4_102_444_800 * SECOND)):
        trace.tell("opened", people("odd", 1), at_us, message_id=f"odd{n}")
    trace.pass_by(5 * 60)
    trace.wall.ahead_us = 2 * DAY
    trace.pass_by(60)
    clicked += click("during")
    trace.pass_by(120)
    trace.wall.ahead_us = 0
    trace.pass_by(60)
    clicked += click("after")
    trace.pass_by(5 * 60)
    bought = [who for k, who in enumerate(clicked) if k % 2]
    trace.tell("converted", bought, trace.wall.at_us)
    trace.pass_by(30 * 60)
    trace.wall.ahead_us = -2 * HOUR
    behind = click("behind")
    trace.pass_by(5 * 60)
    trace.tell("converted", behind[1::2], trace.wall.at_us)
    trace.pass_by(90 * 60)
    return trace, [who for who in [*clicked, *behind] if who not in bought and who not in behind[1::2]]


def test_a_clock_that_jumps_hurries_and_forgets_nothing(tmp_path: Path) -> None:
    """No follow-up is early or late, nobody is forgotten, and nobody hears who has bought."""
    trace, wanted = clock_jump(tmp_path)
    waited = [(one.true_us - trace.first_clicked[one.recipient]) / MINUTE for one in trace.of("follow up")]
    say("clock jump", followed_up=len(waited), minutes_least=min(waited, default=0), minutes_most=max(waited, default=0))
    assert trace.broken() == [] and trace.who("follow up") == dict.fromkeys(wanted, 1) and len(trace.who("on click")) == 40
    assert min(waited) >= 30 and max(waited) <= 60
    trace.close()


def test_a_clock_that_is_followed_wherever_it_goes_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where the log's time is the wall's, people hear at once, or not at all."""
    monkeypatch.setattr(SteadyClock, "now_us", lambda clock: clock.wall.now_us())
    trace, wanted = clock_jump(tmp_path)
    assert trace.broken() or trace.who("follow up") != dict.fromkeys(wanted, 1)
    trace.close()


# -- 11: nothing below the line ------------------------------------------------------------------------------------------------------------


def empty(trace: Trace) -> int:
    """Opens and clicks without any delivery, one message that bounces, hours of silence: there is no rate. Then two hundred messages are
    delivered and not opened. Return when that was."""
    trace.stand()
    trace.tell("opened", people("o", 50), campaign="quiet", user_agent=BROWSER)
    trace.tell("clicked", people("o", 50), campaign="quiet", user_agent=BROWSER)
    trace.pass_by(20 * 60)
    trace.tell("bounced", ["only@one.example"], campaign="quiet", bounce_class="soft", code="450", detail=BUSY)
    trace.pass_by(20 * 60)
    trace.tell("sent", people("s", 300), campaign="quiet")
    trace.pass_by(2 * 3600)
    assert trace.of(*NUMBERS) == [] and trace.held == {}
    began_us = trace.wall.at_us
    trace.tell("delivered", people("s", 200), campaign="quiet")
    trace.pass_by(5 * 60, 10)
    return began_us


def test_an_empty_denominator_sets_nothing_off(trace: Trace) -> None:
    """No rule about a rate fires before there is one, and once there is, within two minutes."""
    began_us = empty(trace)
    (few,) = trace.of("few opens")
    seconds = (few.true_us - began_us) / SECOND
    say("empty denominator", alarms_before=0, seconds=seconds)
    assert trace.broken() == [] and seconds <= 120 and trace.of(*NUMBERS) == [few]


def test_a_rate_of_nothing_is_caught(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where nothing out of nothing is a rate of 0, a rule fires on silence."""

    def is_so(trigger: Metric, window: object, before: object, whole: bool) -> bool:
        value = trigger.of().compute(window).value or 0.0
        return value > trigger.above if trigger.below is None else value < trigger.below

    monkeypatch.setattr(Metric, "is_so", is_so)
    with pytest.raises(AssertionError):
        empty(trace)


# -- 12: ten thousand events of one person -------------------------------------------------------------------------------------------------

BUSIEST = "busy@gmail.com"


def ten_thousand(trace: Trace, parts: int = 20) -> list[float]:
    """One address clicks in one message, opens others and moves about, ten thousand times in twenty parts; forty others click once.
    Return the engine's time of each part, in seconds of its own."""
    trace.stand()
    others = people("c", 40)
    trace.tell("delivered", [BUSIEST, *others])
    trace.pass_by(11 * 60)
    took = []
    for part in range(parts):
        now_us = trace.clock.now_us()
        for n in range(100):
            same = {"url": f"https://shop.example/{part % 5}", "user_agent": BROWSER}
            acts = [
                ("clicked", {}),
                ("clicked", {}),
                ("clicked", {}),
                ("opened", {"message_id": trace.name()}),
                ("tracked", {"name": "viewed"}),
            ]
            for k, (kind, more) in enumerate(acts):
                trace.tell(kind, [BUSIEST], now_us - (500 - 5 * n - k) * SECOND // 10, **same | more)
        trace.tell("clicked", others[part * 2 : part * 2 + 2], url="https://shop.example/1", user_agent=BROWSER)
        trace.flush()
        began_s = time.process_time()
        trace.engine.catch_up()
        took.append(time.process_time() - began_s)
        trace.pass_by(60)
    trace.pass_by(40 * 60)
    return took


def test_ten_thousand_events_of_one_person_are_bounded(trace: Trace) -> None:
    """One follow-up and two reactions, as for anybody; the others get theirs; the last part costs hardly more than the first ones."""
    took = ten_thousand(trace)
    first, last = sorted(took[1:7])[3], sorted(took[-6:])[3]
    say("10,000 events of one", follow_ups=trace.who("follow up")[BUSIEST], ms_per_part_first=round(first * 1e3, 1),
        ms_per_part_last=round(last * 1e3, 1))  # fmt: skip
    assert trace.broken() == [] and trace.who("follow up")[BUSIEST] == 1 and trace.who("on click")[BUSIEST] == 2
    assert all(trace.who("follow up")[who] == trace.who("on click")[who] == 1 for who in people("c", 40))
    assert last <= 4 * first + 0.05


def test_rules_without_limits_on_one_person_are_caught(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without what bounds one person, one person hears a hundred times."""
    monkeypatch.setattr(limits, "CHECKS", tuple(check for check in limits.CHECKS if check is not limits._person))
    ten_thousand(trace, 3)
    assert trace.who("on click")[BUSIEST] > 100
