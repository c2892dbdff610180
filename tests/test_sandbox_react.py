"""What people do with what was sent: luck is theirs alone, effects are what is set, and the door hears exactly what happened."""

from __future__ import annotations

from collections import Counter

import httpx
import msgspec
import numpy as np
import pytest
from small_door import SmallDoor

from midflight.decide.bounces import bounce_of, classify
from midflight.kit.clock import Clock, VirtualClock
from midflight.sandbox.api_vendors import KEYS
from midflight.sandbox.apis import Apis
from midflight.sandbox.audience import Audience, audience
from midflight.sandbox.fortunes import TURNED_AWAY, FollowUp, Trouble
from midflight.sandbox.inbox import Accepted, Inbox
from midflight.sandbox.manners import Manners
from midflight.sandbox.react import Effect, Effects, React, Reactor, forever_us
from midflight.sandbox.run import Runner
from midflight.sandbox.settings import sandbox_config, sources_from
from midflight.sandbox.truth import rows, truth
from midflight.sandbox.vendors import VENDORS

T0 = 1_764_000_000_000_000
S = 1_000_000
patience_s = 20.0
PEOPLE = audience(np.random.default_rng(3), 1500, "t")
# Everybody opens and clicks often, so that small groups say something.
OFTEN = Effects(opens=0.9, clicks=0.3, buys=0.4)


def sent(people: Audience, variant: str = "A", vendor: str = "sendgrid", wave: str = "1", at_us: int = T0) -> list[Accepted]:
    """Return one accepted message to each of the people."""
    return [
        Accepted(f"in-{n}", address, "spring", variant, wave, 0.5, vendor, f"m-{vendor}-{n}", at_us)
        for n, address in enumerate(people.addresses)
    ]


def react(effects: Effects = OFTEN, seed: int = 1, **settings) -> React:
    return React(PEOPLE, effects, seed=seed, start_us=T0, **settings)


def per_person(one: React, messages: list[Accepted]) -> list[Counter[str]]:
    return [one.would(message) for message in messages]


def clickers(one: React, variant: str) -> set[int]:
    return {n for n, came in enumerate(per_person(one, sent(PEOPLE, variant))) if came["clicked"]}


# -- luck -------------------------------------------------------------------------------------------------------------------


def test_luck_depends_on_seed_and_recipient_alone() -> None:
    """Whatever the order, the wave, the time and who else was written to: everybody does what he would have done."""
    alone, crowd = react(), react()
    messages = sent(PEOPLE)
    crowd.take([msgspec.structs.replace(m, at_us=T0 + n * S, wave=str(n % 3)) for n, m in enumerate(reversed(messages))])
    alone.take(messages[:100])
    assert crowd.results() == {(): sum(per_person(alone, messages), Counter())}
    assert alone.results() == {(): sum(per_person(crowd, messages[:100]), Counter())}
    assert set(crowd.results("wave")) == {("0",), ("1",), ("2",)}


def test_another_seed_is_another_luck() -> None:
    """Control: the comparison above can fail."""
    assert per_person(react(), sent(PEOPLE)) != per_person(react(seed=2), sent(PEOPLE))


def test_without_effects_a_variant_changes_nothing() -> None:
    """The same person does the same with A and B where nothing says that they differ."""
    one = react()
    assert per_person(one, sent(PEOPLE, "A")) == per_person(one, sent(PEOPLE, "B"))


def test_a_better_variant_loses_nobody() -> None:
    """Who clicks on the worse variant clicks on the better one, so that a comparison on the same people sees the effect alone."""
    one = react(msgspec.structs.replace(OFTEN, variants={"B": Effect(clicks=1.5)}))
    a, b = clickers(one, "A"), clickers(one, "B")
    assert a < b and 1.35 < len(b) / len(a) < 1.65


# -- effects ----------------------------------------------------------------------------------------------------------------


def rate(one: React, variant: str, what: str, of: str, group: tuple[str, str] | None = None) -> float:
    messages = [m for n, m in enumerate(sent(PEOPLE, variant)) if not group or one.labels(n)[group[0]] == group[1]]
    came = sum(per_person(one, messages), Counter())
    return came[what] / came[of]


def test_effects_are_factors_on_clicks_and_on_conversions() -> None:
    """Clicks and conversions have factors of their own, each by variant."""
    one = react(msgspec.structs.replace(OFTEN, variants={"B": Effect(clicks=2.0), "C": Effect(conversions=0.25)}))
    opened = [rate(one, v, "opened", "delivered") for v in "ABC"]
    clicked = [rate(one, v, "clicked", "delivered") for v in "ABC"]
    bought = [rate(one, v, "converted", "clicked") for v in "ABC"]
    assert max(opened) - min(opened) < 0.1
    assert clicked[1] / clicked[0] == pytest.approx(2, rel=0.15) and clicked[2] == clicked[0]
    assert bought[2] / bought[0] == pytest.approx(0.25, rel=0.3) and bought[1] == pytest.approx(bought[0], rel=0.25)


def test_effects_on_a_group_are_on_that_group_only() -> None:
    """A factor for a value of an attribute holds for those who have it, and multiplies with that of the variant."""
    groups = {("region", "north"): {"B": Effect(clicks=2.0)}, ("device", "mobile"): {"B": Effect(clicks=0.5)}}
    one = react(msgspec.structs.replace(OFTEN, groups=groups))
    effect = OFTEN.clicks
    for labels, factor in (({"region": "north"}, 2.0), ({"region": "south"}, 1.0), ({"region": "north", "device": "mobile"}, 1.0)):
        assert one.effects.on("B", labels).clicks == pytest.approx(effect * factor) and one.effects.on("A", labels).clicks == effect
    desktop = [n for n in range(len(PEOPLE)) if one.labels(n)["device"] == "desktop"]
    a, b = clickers(one, "A"), clickers(one, "B")
    for region in ("north", "south", "east", "west"):
        here = {n for n in desktop if one.labels(n)["region"] == region}
        assert (a & here < b & here) if region == "north" else (a & here == b & here)


def test_with_and_without_differ_by_the_choice_alone() -> None:
    """Sent to the same people with all on A, at random and with the right choice, sums differ by the people whose variant changed."""
    groups = {("region", "north"): {"A": Effect(clicks=0.5)}, ("region", "south"): {"B": Effect(clicks=0.5)}}
    plain, chosen = react(msgspec.structs.replace(OFTEN, groups=groups)), react(msgspec.structs.replace(OFTEN, groups=groups))
    best = ["B" if plain.labels(n)["region"] == "north" else "A" for n in range(len(PEOPLE))]
    plain.take(sent(PEOPLE, "A"))
    chosen.take([msgspec.structs.replace(m, variant=best[n]) for n, m in enumerate(sent(PEOPLE))])
    without, with_ = plain.results("region"), chosen.results("region")
    assert with_["north",]["clicked"] > without["north",]["clicked"] * 1.5
    assert all(with_[region,] == without[region,] for region in ("south", "east", "west"))


def test_results_are_kept_by_variant_and_group() -> None:
    """Sums by variant, group or both say the same as all of them together."""
    one = react()
    one.take([m for n, m in enumerate(sent(PEOPLE)) if n % 2] + [m for n, m in enumerate(sent(PEOPLE, "B")) if not n % 2])
    ((_, total),) = one.results().items()
    for by in (("variant",), ("variant", "region"), ("campaign", "wave", "vendor", "age_band", "device")):
        assert sum(one.results(*by).values(), Counter()) == total
    assert total["sent"] == len(PEOPLE) and one.results("variant")["A",]["sent"] == len(PEOPLE) // 2


def test_who_is_not_there_does_not_react() -> None:
    """Strangers and messages of a vendor that reports nothing are counted; `through` names the vendor that reports."""
    message = sent(PEOPLE)[0]
    one, relayed = react(), react(through={"smtp": "postmark"})
    for r in (one, relayed):
        r.take([msgspec.structs.replace(message, recipient="nobody@example.com"), msgspec.structs.replace(message, vendor="smtp")])
    assert (one.strangers, one.mute, one.next_us) == (1, 1, 0) and (relayed.strangers, relayed.mute) == (1, 0)
    assert {s.source for s in relayed.due(T0 + forever_us)} >= {"postmark"} and relayed.results("vendor")["smtp",]["sent"] == 1


# -- what the door hears ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files() -> tuple[dict, dict]:
    return sandbox_config(seed=3)


@pytest.mark.parametrize("manners", [Manners.good(), Manners(duplicates=0.2, reorder=0.2, late=0.1, bare=0.1, clocks=0, poison=0, cut=0)])
def test_the_door_hears_what_happened(manners: Manners, files: tuple[dict, dict]) -> None:
    """Signed webhooks of all vendors and the site's calls make at the door exactly the cells that are true, attributes too."""
    config, keys = files
    one = react(manners=manners)
    for vendor in VENDORS:
        one.take(sent(PEOPLE, "AB"[len(vendor) % 2], vendor)[:150])
    with SmallDoor(config) as door:
        runner = Runner(door.url, sources_from(keys), live=False)
        runner.run(one.identify(T0))
        runner.run(one.due(T0 + forever_us))
        assert runner.report.refused == runner.report.lost == [] and one.next_us == 0 and door.bad == 0
        by = ("campaign", "variant", "wave", "source", "age_band", "region", "device")
        true, told = (rows(cells, by, dimensions=by[4:]) for cells in (one.cells(runner.report), door.cells(door.events)))
        assert true == told
        assert sum(c["conversions"] for c in true.values()) > 30 and sum(c["clicked_human"] for c in true.values()) > 100
        kinds = {event.kind for event in door.events}
        assert kinds >= {"delivered", "opened", "clicked", "bounced", "unsubscribed", "converted", "identified"}


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_was_attached_comes_back(vendor: str, files: tuple[dict, dict]) -> None:
    """Every report of a message carries the id that the vendor answered, and the intent that it was sent with."""
    config, keys = files
    message_id = "<m-1@mail.shop.example>" if vendor == "mailgun" else "0000abcd-0000-4000-8000-000000000001"
    one = react()
    one.take([msgspec.structs.replace(m, message_id=message_id) for m in sent(PEOPLE, vendor=vendor)[:20]])
    with SmallDoor(config) as door:
        Runner(door.url, sources_from(keys), live=False).run(one.due(T0 + forever_us))
        told = [e for e in door.events if e.source == vendor]
        assert {e.message_id for e in told} == {message_id}
        wanted = {m.recipient.lower(): m.intent for m in sent(PEOPLE, vendor=vendor)[:20]}
        assert len(told) > 25 and all(
            e.metadata["intent"] == wanted[e.recipient.lower()] and e.metadata["propensity"] == "0.5" for e in told
        )


def test_nothing_is_told_before_it_happens() -> None:
    """What is due comes in parts, each once, never early, and all of it in the end."""
    one, at_once = react(), react()
    for r in (one, at_once):
        r.take(sent(PEOPLE)[:200])
    seen: list[str] = []
    now = T0
    while one.next_us:
        now = max(now + S, one.next_us)
        for shipment in one.due(now):
            assert all(event.occurred_at_us <= now for event in shipment.events)
            seen += [event.event_id for event in shipment.events]
    wanted = [event.event_id for shipment in at_once.due(T0 + forever_us) for event in shipment.events]
    assert len(seen) == len(set(seen)) and sorted(seen) == sorted(wanted)


def test_sent_through_the_apis_heard_at_the_door(files: tuple[dict, dict]) -> None:
    """The whole way, while it runs: accepted by a vendor's API, delivered to people, reported to the door by that vendor."""
    config, keys = files
    clock, inbox = Clock(), Inbox()
    one = React(PEOPLE, start_us=clock.now_us(), speed=60_000.0)
    with Apis(inbox) as apis, SmallDoor(config) as door, Reactor(inbox, one, door.url, sources_from(keys)) as reactor:
        headers = {"x-postmark-server-token": KEYS["postmark"]}
        for n, address in enumerate(PEOPLE.addresses[:30]):
            attached = {"campaign": "spring", "variant": "B", "intent": f"in-{n}"}
            body = {"From": "news@shop.example", "To": address, "Subject": "x", "TextBody": "x", "Metadata": attached}
            assert httpx.post(f"{apis.url}/email", headers=headers, json=body).status_code == 200
        until = clock.monotonic_s() + patience_s
        while sum(e.kind in ("delivered", "bounced", "deferred") for e in list(door.events)) < 25 and clock.monotonic_s() < until:
            clock.sleep_s(0.02)
    assert reactor.seen == 30 and one.results("variant")["B",]["sent"] == 30
    heard = [e for e in door.events if e.source == "postmark"]
    ids = {m.message_id: m.intent for m in inbox.messages()}
    assert len(heard) >= 25 and all(e.campaign == "spring" and ids[e.message_id] == e.metadata["intent"] for e in heard)
    assert sum(e.kind == "identified" for e in door.events) == len(PEOPLE)
    by = ("campaign", "variant", "source")
    assert rows(one.cells(reactor.report), by) == rows(truth(door.events, {}), by)


def test_a_clock_of_its_own_is_enough() -> None:
    """Lives begin when a message was accepted by the inbox's clock, and pass at the run's speed."""
    clock = VirtualClock(T0 + 100 * S)
    inbox = Inbox(clock)
    one = react(speed=600.0)
    inbox.put(sent(PEOPLE, at_us=clock.now_us())[:50])
    one.take(inbox.messages())
    assert 0 <= one.next_us - clock.now_us() < S


def test_an_end_cuts_no_scanners_burst() -> None:
    """Whoever stops in the middle hears the rest of the clicks that a scanner has begun, and nothing else; a plain cut leaves halves."""

    def halves(one: React) -> tuple[int, int]:
        told, coming = Counter(e.message_id for e in one._told if one._by_machine(e)), [e for _, _, e in one._coming]
        return sum(told[e.message_id] > 0 for e in coming if one._by_machine(e)), len(coming)

    found = []
    for moment_s in range(1, 40):
        one = react(speed=100.0)
        one.take(sent(PEOPLE, vendor="postmark"))
        one.due(T0 + moment_s * S)
        cut, coming = halves(one)
        one.finish()
        assert halves(one)[1] == cut <= coming
        one.due(T0 + (moment_s + 3) * S)
        assert one.next_us == 0
        found.append(cut)
    assert sum(found) > 3


# -- follow-ups and trouble --------------------------------------------------------------------------------------------------


def followed(one: React, start: int = 0, at_us: int = T0) -> list[Accepted]:
    return [msgspec.structs.replace(m, campaign="more", variant="v1", at_us=at_us) for m in sent(PEOPLE, vendor="postmark")[start:]]


def bought(one: React, campaign: str) -> dict[int, float]:
    return {order.person: order.value for order in one.orders.values() if order.campaign == campaign}


def test_what_a_follow_up_brings_is_known_of_everybody() -> None:
    """Whoever gets one does what he would have done, and what else he does is the same with and without it."""
    brings = FollowUp(campaign="more", chance=0.3)
    with_, without = react(follow_up=brings), react(follow_up=brings)
    for one in (with_, without):
        one.take(sent(PEOPLE, vendor="postmark"))
    messages = followed(with_)[:1000]
    with_.take(messages)
    assert bought(with_, "spring") == bought(without, "spring") and not bought(without, "more")
    would = {n for n, message in enumerate(messages) if without.would(message)["converted"]}
    assert set(bought(with_, "more")) == would and 0.25 < len(would) / 1000 < 0.33
    assert len(would & bought(without, "spring").keys()) < 0.6 * len(would), "luck of its own"


def test_after_the_end_only_follow_ups_do_something() -> None:
    """What people do by themselves ends so long after the first message; a follow-up's life goes on."""
    one = react(follow_up=FollowUp(campaign="more", chance=1.0), lasts_s=1800.0, speed=100.0)
    one.take(sent(PEOPLE, vendor="postmark"))
    end_us = one.end_us
    assert end_us == T0 + 18 * S
    one.take(followed(one, at_us=end_us))
    events = [event for _, _, event in one._coming]
    assert max(e.occurred_at_us for e in events if e.campaign == "spring") <= end_us
    assert sum(e.kind == "converted" and e.occurred_at_us > end_us for e in events) > 1000


def test_trouble_meets_its_provider_and_its_time_alone() -> None:
    """So many of the messages to one provider come back while it lasts, the same people in every run; before and after none."""
    trouble = Trouble(provider="Microsoft", from_us=T0, until_us=T0 + S, share=0.8)
    at = {n for n, provider in enumerate(PEOPLE.providers) if provider == "Microsoft"}

    def back(at_us: int) -> set[int]:
        one, plain = react(trouble=trouble), react()
        messages = sent(PEOPLE, vendor="postmark", at_us=at_us)
        came = [[r.would(m)["bounced"] for m in messages] for r in (one, plain)]
        return {n for n, (with_, without) in enumerate(zip(*came, strict=True)) if with_ and not without}

    met = back(T0)
    assert met == back(T0 + S - 1) and met < at and 0.7 < len(met) / len(at) < 0.85
    assert not back(T0 + S) and not back(T0 - 1)


@pytest.mark.parametrize("text", [text for texts in TURNED_AWAY.values() for text in texts])
def test_what_providers_say_is_read_as_what_it_is(text: str) -> None:
    """A 5xx text is a block and a 4xx one soft, as the truth has it, and no address is dead for it."""
    found = classify(bounce_of("", text, "block" if text[0] == "5" else "soft"))
    assert found.bounce_class == ("block" if text[0] == "5" else "soft") and not found.dead and found.fault != "address"
