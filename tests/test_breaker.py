"""The circuit breaker: what it lets through in each state, by examples and against random histories."""

from __future__ import annotations

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midflight.act.breaker import CLOSED, HALF_OPEN, OPEN, Breaker, Breakers, Limits, second_us

LIMITS = Limits(failures_max=3, open_s_first=5, open_s_max=20, probe_s_max=30)


def failing(breaker: Breaker, now_us: int, times: int) -> Breaker:
    for _ in range(times):
        breaker = breaker.failed(now_us, LIMITS)
    return breaker


def test_it_opens_after_failures_in_a_row() -> None:
    """Fewer failures, or ones with a success between them, do not open it."""
    assert failing(Breaker(), 0, 2).state == CLOSED
    assert failing(failing(Breaker(), 0, 2).succeeded(), 0, 2).state == CLOSED
    opened = failing(Breaker(), 7, 3)
    assert opened.state == OPEN and opened.waits_us(7) == 7 + 5 * second_us and not opened.waits_us(7 + 5 * second_us)


def test_one_probe_decides() -> None:
    """After its time one call goes; until that has an end nothing else does. Success closes it, failure opens it for twice as long."""
    opened = failing(Breaker(), 0, 3)
    now_us = 5 * second_us
    probed = opened.asked(now_us, LIMITS)
    assert probed.state == HALF_OPEN and probed.waits_us(now_us + second_us)
    assert probed.succeeded() == Breaker()
    again = probed.failed(now_us, LIMITS)
    assert again.state == OPEN and again.until_us == now_us + 10 * second_us
    # And it stays bounded.
    for _ in range(40):
        now_us = again.until_us
        again = again.asked(now_us, LIMITS).failed(now_us, LIMITS)
    assert again.until_us - now_us == 20 * second_us


def test_a_probe_that_is_never_heard_of_is_given_up() -> None:
    """A probe whose end got lost does not keep the target closed off for ever."""
    probed = failing(Breaker(), 0, 3).asked(5 * second_us, LIMITS)
    assert not probed.waits_us((5 + 30) * second_us)


def test_being_told_to_wait_is_no_failure() -> None:
    """Throttling holds a target until it said, and the next failure counts from where it was."""
    held = Breaker().throttled(9 * second_us)
    assert held.waits_us(second_us) == 9 * second_us and held.state == CLOSED and not held.waits_us(9 * second_us)
    # Another call that succeeds meanwhile does not lift it.
    assert held.succeeded().waits_us(second_us) == 9 * second_us
    opened = failing(Breaker(), 0, 3)
    assert opened.throttled(1).waits_us(2) == opened.until_us
    assert opened.asked(5 * second_us, LIMITS).throttled(20 * second_us).waits_us(6 * second_us) == 20 * second_us


EVENTS = st.lists(st.tuples(st.sampled_from(["ask", "succeed", "fail", "throttle"]), st.integers(0, 12)), max_size=60)


class Holes(Breaker, frozen=True, kw_only=True):
    """Control: a breaker that lets calls through while it is open."""

    def waits_us(self, now_us: int) -> int:
        return 0


def broken_promise(first: Breaker, events: list[tuple[str, int]]) -> str:
    """Play a history; return which promise did not hold: an open target is not called before its time, and never by two at once."""
    breaker, now_us, out, closed_until, held_until, row = first, 0, 0, 0, 0, 0
    for event, wait_s in events:
        now_us += wait_s * second_us
        if event == "ask" and not breaker.waits_us(now_us):
            if now_us < max(closed_until, held_until):
                return "called before its time"
            if breaker.state == HALF_OPEN and out and now_us < breaker.until_us:
                return "two probes"
            breaker = breaker.asked(now_us, LIMITS) if not isinstance(breaker, Holes) else breaker
            out += 1
        elif event == "throttle":
            breaker = breaker.throttled(now_us + 5 * second_us) if not isinstance(breaker, Holes) else breaker
            held_until = max(held_until, now_us + 5 * second_us)
        elif event in ("succeed", "fail") and out:
            out -= 1
            row = 0 if event == "succeed" else row + 1
            closed_until = 0 if event == "succeed" else closed_until
            before = breaker.state
            breaker = breaker.succeeded() if event == "succeed" else breaker.failed(now_us, LIMITS)
            if isinstance(first, Holes):
                breaker = Holes(**msgspec.structs.asdict(breaker))
            if breaker.state == OPEN and before != OPEN:
                closed_until = max(closed_until, now_us + 5 * second_us)
        if breaker.state == CLOSED and row >= LIMITS.failures_max and not isinstance(first, Holes):
            return "closed after failures in a row"
        if breaker.until_us - now_us > 30 * second_us:
            return "closed for longer than its bound"
    return ""


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(EVENTS)
def test_a_target_that_is_not_well_is_left_alone(events: list[tuple[str, int]]) -> None:
    """Over random histories: no call before its time, one probe at most, and every wait is bounded."""
    assert not broken_promise(Breaker(), events)


def test_a_breaker_with_holes_is_caught() -> None:
    """Control: one that lets calls through while it is open breaks the promise."""
    events = [("ask", 0), ("fail", 0)] * 3 + [("ask", 1)]
    assert broken_promise(Holes(), events) == "called before its time"


def test_breakers_are_bounded(monkeypatch) -> None:
    """Targets that are well are not kept, and of the others only so many."""
    from midflight.act import breaker as module

    monkeypatch.setattr(module, "targets_max", 5)
    kept = Breakers(LIMITS)
    for n in range(20):
        kept.put(f"t{n}", failing(kept.of(f"t{n}"), 0, 3))
    assert len(kept) == 5 and list(kept.open()) == [f"t{n}" for n in range(15, 20)]
    kept.put("t19", kept.of("t19").succeeded())
    assert len(kept) == 4 and kept.of("t0") == Breaker()
