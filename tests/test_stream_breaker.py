"""The breaker holds what bounces, tries it again with little, and comes back step by step; it never flaps."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import PCG64, Generator, SeedSequence

from midflight.decide import breaker
from midflight.decide.breaker import HELD, NORMAL, PROBING, RETURNING, Alarm, Decision, Look, Settings, State, decision, hold, release, step

minute = breaker.minute_us
SETTINGS = Settings()
ALARM = Alarm(why="Gmail bounces")


def random_of(*seed: int) -> Generator:
    return Generator(PCG64(SeedSequence(seed)))


def world(rate_at, minutes: int, seed: int, alarm_at: tuple[int, ...] = (10,), settings: Settings = SETTINGS):
    """Run a breaker over a provider whose bounce rate is ``rate_at(minute)``; 200 messages a minute where all may go.

    Return what it did.
    """
    random = random_of(seed)
    state, stages, sent, bounced = State(), [], 0, 0
    used = 0
    for at in range(minutes):
        allowed = decision(state, settings)
        if allowed.messages_max is None:
            count = int(200 * allowed.share)
        else:
            count = max(0, min(20, allowed.messages_max - used))
        bad = int(random.binomial(count, rate_at(at)))
        sent, bounced = sent + count, bounced + bad
        before = state
        alarm = ALARM if at in alarm_at and state.stage == NORMAL else None
        state, _ = step(state, Look(at_us=at * minute, answered=count, bounced=bad, alarm=alarm), settings)
        used = 0 if state.stage_at_us != before.stage_at_us or state.stage != before.stage else used + count
        if not stages or stages[-1][0] != state.stage:
            stages.append((state.stage, at))
    return state, stages, sent, bounced


def test_a_spike_that_ends_is_held_probed_and_comes_back() -> None:
    """Held at the alarm, a few messages after half an hour, then growing shares, then all; never anything else in between."""
    state, stages, _, _ = world(lambda at: 0.6 if at < 35 else 0.015, 300, 1)
    assert [name for name, _ in stages] == [NORMAL, HELD, PROBING, RETURNING, NORMAL]
    assert state.stage == NORMAL
    held, probing, returning, normal = (at for _, at in stages[1:])
    assert probing - held == 30 and returning - probing <= 65 and normal - returning >= 3 * 30


def lumpy(correlation: float, rate: float, seed: int, hours: int = 48) -> list[str]:
    """Return the stages of a breaker after a spike, where bounces come in lumps: each 100 messages have a rate of their own."""
    random, scale = random_of(seed, 7), 1 / correlation - 1
    alarm = Alarm(why="x", rate_usual=0.015, correlation=correlation)
    state, _ = step(State(), Look(at_us=0, alarm=alarm), SETTINGS)
    stages, used, mine, left = [], 0, 0.0, 0
    for at in range(1, hours * 60):
        before, allowed = state, decision(state, SETTINGS)
        count = int(100 * allowed.share) if allowed.messages_max is None else max(0, min(20, allowed.messages_max - used))
        bad = 0
        for _ in range(count):
            if not left:
                mine, left = float(random.beta(rate * scale, (1 - rate) * scale)), 100
            bad, left = bad + int(random.random() < mine), left - 1
        state, _ = step(state, Look(at_us=at * minute, answered=count, bounced=bad), SETTINGS)
        used = 0 if state.stage_at_us != before.stage_at_us or state.stage != before.stage else used + count
        if not stages or stages[-1] != state.stage:
            stages.append(state.stage)
        if state.stage == NORMAL:
            break
    return stages


def test_what_is_as_usual_comes_back_however_lumpy_it_is() -> None:
    """Within two days nearly every one does, with lumps as those of real providers; what stays four times as bad stays held."""
    for correlation in (0.003, 0.01, 0.02):
        came = sum(lumpy(correlation, 0.015, seed)[-1] == NORMAL for seed in range(40))
        assert came >= 38, (correlation, came)
    assert sum(lumpy(0.02, 0.06, seed)[-1] == NORMAL for seed in range(40)) <= 2


def test_a_breaker_that_takes_all_answers_for_one_lump_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: answers that go on as usual say ever less, and hardly any comes back."""
    monkeypatch.setattr(breaker, "bucket_messages", 1 << 30)
    assert sum(lumpy(0.02, 0.015, seed)[-1] == NORMAL for seed in range(40)) < 20


def test_while_it_goes_on_holds_double_and_little_is_lost() -> None:
    """A block of two days: held 1, 2, 4 ... times as long, and no more than a few dozen messages bounce after the alarm."""
    state, stages, _, bounced = world(lambda at: 0.9 if at >= 10 else 0.015, 2 * 24 * 60, 2)
    holds = [at for name, at in stages if name == HELD]
    assert all(later - earlier >= 30 * 2**n for n, (earlier, later) in enumerate(zip(holds, holds[1:], strict=False)))
    assert len(holds) <= 1 + math.log2(1 + 2 * 24 * 60 / 30) + 1
    assert bounced < 200 + 40 * len(holds)
    assert state.stage in (HELD, PROBING)


def test_what_stays_bad_stays_held() -> None:
    """Four times the usual rate, for a day: however the probes turn out, it never comes back to normal."""
    for seed in range(10):
        state, stages, _, _ = world(lambda at: 0.06 if at >= 10 else 0.015, 24 * 60, seed)
        assert NORMAL not in [name for name, _ in stages[1:]]
        assert state.stage != NORMAL


def test_no_answers_change_nothing() -> None:
    """Where nobody answers, a probe stays a probe, and what it may send stays bounded."""
    state = State(stage=PROBING, stage_at_us=0)
    for at in range(0, 10_000 * minute, 37 * minute):
        state, allowed = step(state, Look(at_us=at))
        assert allowed.stage == PROBING and allowed.share == 0 and allowed.messages_max <= SETTINGS.probe_messages_max


def test_messages_that_nobody_answers_keep_no_probe_open() -> None:
    """Of what is sent one in three is never answered: it is judged all the same, by as many answers as ever."""
    state, used = State(stage=PROBING, stage_at_us=0, correlation=0.02), 0
    for at in range(0, 12 * 60 * minute, minute):
        count = max(0, min(6, decision(state, SETTINGS).messages_max - used))
        used += count
        state, allowed = step(state, Look(at_us=at, answered=count * 2 // 3, bounced=int(used % 60 == 6)), SETTINGS)
        if allowed.stage != PROBING:
            break
    assert state.stage in (HELD, RETURNING) and used <= 2 * SETTINGS.probe_messages_max


@pytest.mark.parametrize("stage", [NORMAL, HELD, PROBING, RETURNING])
def test_a_hold_by_hand_stays_until_it_is_released(stage: str) -> None:
    """No time, no answers and no alarm end a hold by hand; a release leads to a probe, or to normal if that is said."""
    state = hold(State(stage=stage), by="ann", why="the new list", at_us=5)
    for at in range(0, 90 * 24 * 60 * minute, 24 * 60 * minute):
        state, allowed = step(state, Look(at_us=at, answered=1000, bounced=0, alarm=ALARM))
        assert (allowed.share, allowed.messages_max, allowed.until_us) == (0.0, 0, 0)
        assert "ann" in allowed.text and "the new list" in allowed.text
    assert release(state, by="bob", at_us=6).stage == PROBING
    assert release(state, by="bob", at_us=6, at_once=True).stage == NORMAL


def test_one_hold_a_week_is_no_history() -> None:
    """After a week without a hold the next one is short again; before that it is longer."""
    for days, holds in ((2, 2), (8, 1)):
        state, _ = step(State(), Look(at_us=1, alarm=ALARM))
        state = release(state, by="ann", at_us=2, at_once=True)
        state, _ = step(state, Look(at_us=days * 24 * 60 * minute, alarm=ALARM))
        assert state.holds == holds


LOOKS = st.lists(
    st.tuples(
        st.integers(0, 240), st.integers(0, 400), st.floats(0, 1), st.booleans(), st.sampled_from(("", "", "", "", "hold", "release"))
    ),
    max_size=80,
)


def run(looks) -> list[tuple[int, State, Decision]]:
    state, at, seen = State(), 0, []
    for minutes, answered, share, alarm, hand in looks:
        at += minutes * minute
        if hand == "hold":
            state = hold(state, by="ann", why="x", at_us=at)
        elif hand == "release":
            state = release(state, by="ann", at_us=at)
        state, allowed = step(state, Look(at_us=at, answered=answered, bounced=int(answered * share), alarm=ALARM if alarm else None))
        seen.append((at, state, allowed))
    return seen


@given(LOOKS)
def test_whatever_happens_it_goes_only_the_ways_that_there_are(looks) -> None:
    """From held only to a probe, from a probe to held or returning, back to normal only from the last step; nothing is sent while held."""
    ways = {
        NORMAL: {NORMAL, HELD}, HELD: {HELD, PROBING}, PROBING: {PROBING, HELD, RETURNING}, RETURNING: {RETURNING, HELD, NORMAL},
    }  # fmt: skip
    before = State()
    for (at, state, allowed), (*_, hand) in zip(run(looks), looks, strict=True):
        if not hand:
            assert state.stage in ways[before.stage]
            if before.stage == RETURNING and state.stage == NORMAL:
                assert before.step == len(SETTINGS.shares) - 1
            if before.stage == HELD and state.stage == PROBING:
                assert at >= before.stage_at_us + SETTINGS.hold_us
        assert 0 <= allowed.share <= 1 and (state.stage != HELD or (allowed.share, allowed.messages_max) == (0.0, 0))
        before = state


@given(LOOKS)
def test_it_never_flaps(looks) -> None:
    """Two holds in a row that nobody made by hand are at least a hold's length apart, which doubles as long as they go on."""
    looks = [(*look[:4], "") for look in looks]
    stages = [State(), *(state for _, state, _ in run(looks))]
    begun = [after for before, after in zip(stages, stages[1:], strict=False) if after.stage == HELD != before.stage]
    for first, second in zip(begun, begun[1:], strict=False):
        least = min(SETTINGS.hold_us_max, SETTINGS.hold_us * 2 ** (first.holds - 1))
        assert second.held_at_us - first.held_at_us >= least


@given(LOOKS)
def test_a_breaker_goes_on_from_its_snapshot(looks) -> None:
    """Through JSON and back at every step, everything stays the same."""
    state, at = State(), 0
    for (_, expected, allowed), (minutes, answered, share, alarm, hand) in zip(run(looks), looks, strict=True):
        at += minutes * minute
        state = msgspec.json.decode(msgspec.json.encode(state), type=State)
        if hand == "hold":
            state = hold(state, by="ann", why="x", at_us=at)
        elif hand == "release":
            state = release(state, by="ann", at_us=at)
        state, got = step(state, Look(at_us=at, answered=answered, bounced=int(answered * share), alarm=ALARM if alarm else None))
        assert (state, got) == (expected, allowed)


def flapping(minutes: int) -> int:
    """The control: a breaker with one fixed hold and no test of the answers, against a block that lasts. Return its holds."""
    holds, held_until = 0, 0
    for at in range(10, minutes):
        if at >= held_until:
            holds, held_until = holds + 1, at + 30
    return holds


def test_a_breaker_without_doubling_would_flap() -> None:
    """Over two days of the same block the plain breaker opens and closes many times as often."""
    _, stages, _, _ = world(lambda at: 0.9 if at >= 10 else 0.015, 2 * 24 * 60, 2)
    assert flapping(2 * 24 * 60) > 5 * sum(name == HELD for name, _ in stages)
