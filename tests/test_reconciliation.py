"""What a source does not say is noticed within minutes, and a normal day is never called anything else."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from normal_life import WORLDS, Life, World, day_minutes, lived

from midflight.decide import dropping
from midflight.decide.dropping import Stream, gained
from midflight.decide.reconciliation import Alarm, Campaign, Reconciliation, State

FULL_DAYS = 2  # that a source is known before it is watched here


def alarms_of(life: Life, until: int | None = None, change: Callable | None = None) -> list[Alarm]:
    """Look at each minute of a life, with what a ``change`` makes of it; return the alarms that began, in minutes of the life."""
    watch, found = Reconciliation(), []
    for minute in range(until or life.received.size):
        received, campaigns = int(life.received[minute]), life.at(minute)
        if change:
            received, campaigns = change(minute, received, campaigns)
        for alarm in watch.look(life.first_minute + minute, {"esp": received}, campaigns):
            alarm.at -= life.first_minute
            found.append(alarm)
    return found


def false_alarms(seeds: range, days: int, worlds: dict[str, World] = WORLDS) -> tuple[list[tuple[str, int, Alarm]], int]:
    found = [
        (name, seed, alarm) for name, world in worlds.items() for seed in seeds for alarm in alarms_of(lived(seed, days, world, seed % 7))
    ]
    return found, len(worlds) * len(seeds) * days


def test_normal_life_is_no_alarm() -> None:
    """49 days of seven kinds of senders, the first ones after the start included: nights, weekends, bursts and their ends."""
    found, days = false_alarms(range(1), 7)
    assert days == 49 and not found, [(name, seed, alarm.kind, alarm.at / 60, alarm.text) for name, seed, alarm in found]


@pytest.mark.long
def test_a_day_of_normal_life_has_a_false_alarm_in_less_than_one_of_a_hundred(capsys: pytest.CaptureFixture) -> None:
    """980 days."""
    found, days = false_alarms(range(1, 11), 14)
    with capsys.disabled():
        kinds = sorted({(name, alarm.kind) for name, _, alarm in found})
        print(f"\n{len(found)} false alarms in {days} days: {100 * len(found) / days:.2f} in 100 days; {kinds}")
    assert len(found) <= days / 100


def test_a_bar_that_is_too_low_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with a fifth of the evidence, ordinary evenings are alarms."""
    monkeypatch.setattr(dropping, "needed_min", dropping.needed_min / 5)
    found, _ = false_alarms(range(1), 3, {"shop": WORLDS["shop"]})
    assert len(found) >= 3


# -- what does not come -----------------------------------------------------------------------------------------------------------------


def noon(life: Life, seed: int, days: int) -> int:
    """Return some minute of the working hours of a day."""
    return days * day_minutes + int(np.random.default_rng(seed).uniform(9, 17) * 60)


def gone(life: Life, at: int, share: float = 0.0) -> Callable:
    """Nothing comes from a minute on, or only a share of it."""
    rng = np.random.default_rng(at)

    def change(minute: int, received: int, campaigns: list[Campaign]) -> tuple[int, list[Campaign]]:
        if minute < at:
            return received, campaigns
        frozen = {one.name: one for one in life.at(at - 1)}
        kept = [less(frozen.get(one.name, Campaign(one.name, one.sources)), one, share) for one in campaigns]
        return int(rng.binomial(received, share)), kept

    return change


def less(before: Campaign, now: Campaign, share: float) -> Campaign:
    return Campaign(now.name, now.sources, *(int(a + share * (b - a)) for a, b in zip(before[2:], now[2:], strict=True)))


def without(field: int, at: int, life: Life) -> Callable:
    """From a minute on one kind of events does not come any more, of any campaign; all others do."""

    def change(minute: int, received: int, campaigns: list[Campaign]) -> tuple[int, list[Campaign]]:
        if minute < at:
            return received, campaigns
        frozen = {one.name: one for one in life.at(at - 1)}
        found = []
        for one in campaigns:
            values = list(one)
            values[field] = frozen.get(one.name, Campaign(one.name))[field]
            if field == 4:
                values[3] = values[4]  # what was heard is mostly deliveries
            found.append(Campaign(*values))
        return received, found

    return change


@pytest.mark.parametrize(("world", "most"), [("shop", 8), ("big", 5), ("transactional", 5), ("business", 5)])
def test_a_source_that_says_nothing_any_more_is_an_alarm_within_five_minutes(world: str, most: int) -> None:
    """Where twenty events and more come a minute, and soon after that where it is ten; the alarm says since when nothing comes."""
    waits = []
    for seed in range(3):
        life = lived(100 + seed, FULL_DAYS + 1, WORLDS[world], 0)
        at = noon(life, seed, FULL_DAYS)
        found = alarms_of(life, at + 30, gone(life, at))
        assert found and found[0].kind == "silence" and found[0].source == "esp" and all(one.at >= at for one in found)
        assert found[0].since - life.first_minute in range(at - 3, at + 1) and "silent for" in found[0].text
        waits.append(found[0].at - at + 1)
    assert max(waits) <= most, waits


def test_opens_and_clicks_that_nearly_stop_are_an_alarm() -> None:
    """Nine of ten events are lost on their way: within ten minutes, most of the time within five."""
    waits = []
    for seed in range(5):
        life = lived(200 + seed, FULL_DAYS + 1, WORLDS["big"], 0)
        at = noon(life, seed, FULL_DAYS)
        found = alarms_of(life, at + 30, gone(life, at, 0.1))
        assert found and found[0].kind == "thin" and all(one.at >= at for one in found)
        waits.append(found[0].at - at + 1)
    assert max(waits) <= 10 and sorted(waits)[2] <= 5, waits


def first_campaign(life: Life, day: int) -> int:
    """Return the minute in which the first campaign of a day begins."""
    return min(one.first for one in life.campaigns if one.name.startswith(f"c{day}.") and one.sums[-1, 0] > 3000)


@pytest.mark.parametrize(("field", "kind"), [(2, "unsent"), (4, "undelivered")])
def test_events_of_one_kind_that_do_not_come_are_an_alarm(field: int, kind: str) -> None:
    """A campaign begins, and sending, or delivery, is not reported any more: within five minutes of the first twenty that tell."""
    for seed in (3, 4, 5):
        life = lived(300 + seed, FULL_DAYS + 2, World(base=5.0, campaigns=4.0), 0)
        at = first_campaign(life, FULL_DAYS)
        found = alarms_of(life, at + 45, without(field, at, life))
        kinds = {one.kind: one for one in reversed(found) if one.at >= at}
        assert kind in kinds or (kind == "undelivered" and "unanswered" in kinds), (seed, found)
        assert not [one for one in found if one.at < at]
        first = min(kinds[name].at for name in (kind, "unanswered") if name in kinds)
        told = next(minute for minute in range(at, at + 45) if amiss(life, at, minute, field))
        assert first - told <= 5, (seed, first - told)


def amiss(life: Life, at: int, minute: int, field: int) -> bool:
    """Whether by a minute at least fifty messages of some campaign have shown within ten minutes that events are missing."""
    follows = {2: 2, 4: 0}[field]
    return any(one.sums[minute, follows] - one.sums[max(at - 1, minute - 10), follows] >= 50 for one in life.campaigns if one.name)


def test_a_day_without_a_word_is_an_alarm_where_each_day_had_some() -> None:
    """A source with three events a day is not missed within minutes, but after a day; one that pauses now and then is not."""
    watch, found = Reconciliation(), []
    for minute in range(12 * day_minutes):
        speaks = minute % 480 == 7 and minute < 9 * day_minutes
        found += [(minute, one) for one in watch.look(29_400_480 + minute, {"esp": int(speaks)}, [])]
    ((minute, alarm),) = found
    assert alarm.kind == "silence" and 9 * day_minutes <= minute + 480 <= 10.5 * day_minutes and "silent for" in alarm.text
    watch = Reconciliation()
    for minute in range(12 * day_minutes):
        speaks = minute % 480 == 7 and minute // day_minutes not in (3, 9, 10, 11)
        assert not watch.look(29_400_480 + minute, {"esp": int(speaks)}, [])


# -- what is no alarm -------------------------------------------------------------------------------------------------------------------


def test_our_own_outage_is_held_against_nobody() -> None:
    """Minutes in which nothing was heard because nobody listened are left out, whatever comes before and after them."""
    life = lived(7, 4, WORLDS["business"], 0)
    at = noon(life, 1, 2)
    watch, found = Reconciliation(), []
    for minute in [*range(at), *range(at + 360, life.received.size)]:
        backlog = int(life.received[at : at + 361].sum()) if minute == at + 360 else int(life.received[minute])
        found += watch.look(life.first_minute + minute, {"esp": backlog}, life.at(minute))
    assert not found


def test_a_campaign_that_was_under_way_is_not_held_against_its_source() -> None:
    """Its sends were before anybody listened; a source that reports no sending has none missing either."""
    watch = Reconciliation()
    for minute in range(1, 30):
        old = Campaign("old", ("esp",), 0, 5000 + 100 * minute, 5000 + 100 * minute, 1000, 10 * minute)
        assert not watch.look(minute, {"esp": 100}, [old])


def test_an_alarm_ends_when_it_is_over() -> None:
    """It stands while nothing comes, once, and is gone some minutes after events come again."""
    watch = Reconciliation()
    counts = [20] * 300 + [0] * 60 + [20] * 30
    begun = [minute for minute, n in enumerate(counts, 1) if watch.look(minute, {"esp": n}, [])]
    assert len(begun) == 1 and begun[0] - 300 <= 5
    assert not watch.state.alarms


def test_a_sender_that_stops_suddenly_each_day_raises_the_bar() -> None:
    """The first evenings may be an alarm, the tenth is none."""
    watch, begun = Reconciliation(), []
    for minute in range(20 * day_minutes):
        n = 30 if 480 <= minute % day_minutes < 1080 else 0
        begun += [minute // day_minutes for _ in watch.look(minute + 1, {"esp": n}, [])]
    assert len(begun) <= 6 and all(day < 10 for day in begun), begun


# -- the parts --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
def test_the_evidence_is_the_likelihood_ratio(spread: float) -> None:
    """Of negative binomial counts with means in the proportion of the drop, computed in another way."""
    shape = 1 / spread

    def log_chance(n: int, mean: float) -> float:
        p = shape / (shape + mean)
        return math.lgamma(n + shape) - math.lgamma(shape) - math.lgamma(n + 1) + shape * math.log(p) + n * math.log(1 - p)

    for n in (0, 1, 7, 40):
        for mean in (0.3, 5.0, 80.0):
            assert gained(n, mean, spread) == pytest.approx(log_chance(n, dropping.left_share * mean) - log_chance(n, mean))


def test_a_state_that_is_kept_goes_on_as_if_nothing_had_happened() -> None:
    """After any restart the same alarms come in the same minutes."""
    life = lived(8, 3, WORLDS["shop"], 0)
    at = noon(life, 2, 2)
    change = gone(life, at)
    watch, found = Reconciliation(), []
    for minute in range(at + 20):
        received, campaigns = change(minute, int(life.received[minute]), life.at(minute))
        found += [(minute, one.kind) for one in watch.look(life.first_minute + minute, {"esp": received}, campaigns)]
        if minute % 97 == 0:
            watch = Reconciliation(msgspec.json.decode(msgspec.json.encode(watch.state), type=State))
    assert found == [(one.at, one.kind) for one in alarms_of(life, at + 20, change)] and found
    assert Reconciliation(State(version=0, minute=5)).state == State()


def test_a_minute_counts_once() -> None:
    """The same minute, or an older one, changes nothing."""
    watch = Reconciliation()
    watch.look(10, {"esp": 5}, [])
    before = msgspec.json.encode(watch.state)
    assert watch.look(10, {"esp": 99}, []) == [] == watch.look(9, {"esp": 99}, []) and msgspec.json.encode(watch.state) == before


def test_a_stream_learns_before_it_judges() -> None:
    """An hour of counts is needed, and more than a few of them."""
    for n in (0, 0.1):
        stream = Stream(silence=True)
        assert not any(stream.count(minute, n if minute < 600 else 0) for minute in range(1, 1000))
    stream = Stream(silence=True)
    assert not any(stream.count(minute, 50 if minute < 40 else 0) for minute in range(1, 59))
