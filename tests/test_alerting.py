"""When somebody is told: each condition once, again while it lasts, once more when it is over, and never too much at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.decide.alerting import (
    BEGUN,
    LASTS,
    MORE,
    OVER,
    SERIOUS,
    WARNING,
    WORSE,
    Condition,
    Notice,
    Settings,
    State,
    hour_us,
    minute_us,
    parts_max,
    standing_max,
    step,
)  # fmt: skip

Step = Callable[..., tuple[State, list[Notice]]]
KEYS = "abcdef"


def condition(key: str, level: int = WARNING, **more: object) -> Condition:
    return Condition(key=key, origin="o", level=level, text=f"{key} is odd.", **more)


def told(looks: list[tuple], given: Settings | None = None, how: Step = step) -> list[list[tuple[str, str]]]:
    """Return what is told in each look. A look is the minutes since the one before, and what is seen."""
    state, found = State(), []
    for minutes, seen in looks:
        state, notices = how(state, seen if isinstance(seen, dict) else {"o": seen}, int(minutes * minute_us), given)
        found.append([(notice.what, notice.key) for notice in notices])
    return found


def test_a_condition_is_told_when_it_begins_while_it_lasts_and_when_it_is_over() -> None:
    """Once at the beginning, again after twelve hours, and at the end; then it may begin anew."""
    one = [condition("a")]
    looks = [(0, one), (1, one), (719, one), (1, one), (1, []), (1, []), (1, one)]
    assert told(looks) == [[(BEGUN, "a")], [], [(LASTS, "a")], [], [(OVER, "a")], [], [(BEGUN, "a")]]


def test_what_becomes_worse_is_told_once_more() -> None:
    """A warning that becomes serious is news once, and not when it goes back and forth."""
    warns, serious = [condition("a")], [condition("a", SERIOUS)]
    looks = [(0, warns), (1, serious), (1, warns), (1, serious), (1, [])]
    assert told(looks) == [[(BEGUN, "a")], [(WORSE, "a")], [], [], [(OVER, "a")]]


def test_what_passes_before_it_matters_is_not_told() -> None:
    """What is gone before its patience has run out bothers nobody."""
    one = [condition("a", patience_us=2 * minute_us)]
    assert told([(0, one), (1, one), (1, []), (1, one), (1, one), (1, one)]) == [[], [], [], [], [], [(BEGUN, "a")]]


def test_what_comes_and_goes_is_one_and_the_same() -> None:
    """A gap shorter than its quiet time is no end."""
    one = [condition("a", quiet_us=5 * minute_us)]
    looks = [(0, one), (2, []), (2, one), (2, []), (2, []), (1, [])]
    assert told(looks) == [[(BEGUN, "a")], [], [], [], [], [(OVER, "a")]]


def test_where_nobody_can_look_nothing_is_over() -> None:
    """What an origin saw stands on while it cannot be looked at, and is not told again meanwhile."""
    one = {"o": [condition("a")], "p": []}
    looks = [(0, one), (1, {"o": None, "p": []}), (900, {"p": []}), (1, one), (1, {"o": []})]
    assert told(looks) == [[(BEGUN, "a")], [], [], [(LASTS, "a")], [(OVER, "a")]]


def test_of_what_only_happened_no_end_is_told() -> None:
    """Something that happened is told once, however long it is seen."""
    one = [condition("a", lasting=False)]
    assert told([(0, one), (800, one), (1, []), (1, [])]) == [[(BEGUN, "a")], [], [], []]


def test_beyond_what_an_hour_may_hold_the_rest_is_told_together() -> None:
    """The serious ones first and alone; the others in one, after a minute in which more may come; nothing of it again."""
    many = [condition(f"w{n:02}") for n in range(30)] + [condition("s", SERIOUS)]
    state, first = step(State(), {"o": many}, 0, Settings(per_hour=3))
    assert [notice.key for notice in first] == ["s", "w00", "w01"]
    state, none = step(state, {"o": many}, minute_us - 1, Settings(per_hour=3))
    assert not none
    state, (more,) = step(state, {"o": many}, 1, Settings(per_hour=3))
    assert (more.what, more.count, len(more.parts), more.level) == (MORE, 28, parts_max, WARNING)
    state, none = step(state, {"o": many}, 59 * minute_us, Settings(per_hour=3))
    assert not none
    state, over = step(state, {"o": []}, minute_us, Settings(per_hour=3))
    assert [notice.what for notice in over] == [OVER] * 3


def test_a_flood_of_conditions_is_bounded() -> None:
    """What is remembered does not grow with what is seen."""
    state, _ = step(State(), {"o": [condition(f"{n}") for n in range(3 * standing_max)]}, 0)
    assert len(state.standing) == standing_max


def test_a_clock_that_goes_back_changes_nothing() -> None:
    """Time never runs backwards here."""
    state, _ = step(State(), {"o": [condition("a")]}, hour_us)
    assert step(state, {"o": [condition("a")]}, -5 * hour_us) == (state, [])


# -- any history ---------------------------------------------------------------------------------------------------------

SEEN = st.dictionaries(st.sampled_from(KEYS), st.sampled_from((WARNING, SERIOUS)), max_size=len(KEYS))
LOOKS = st.lists(st.tuples(st.sampled_from((0, 1, 3, 20, 61, 400)), st.one_of(st.none(), SEEN)), max_size=60)
PATIENCE = {key: (n % 3) * minute_us for n, key in enumerate(KEYS)}
QUIET = {key: (n % 2) * 10 * minute_us for n, key in enumerate(KEYS)}


def run(looks: list, how: Step, per_hour: int, again: bool) -> list[tuple[int, Notice]]:
    """Return all notices with their times; ``again`` keeps the state as a restart does, between any two looks."""
    state, found = State(), []
    for minutes, seen in looks:
        conditions = None if seen is None else [
            condition(key, level, patience_us=PATIENCE[key], quiet_us=QUIET[key]) for key, level in seen.items()
        ]  # fmt: skip
        state, notices = how(state, {"o": conditions}, minutes * minute_us, Settings(per_hour=per_hour))
        found += [(state.at_us, notice) for notice in notices]
        if again:
            state = msgspec.json.decode(msgspec.json.encode(state), type=State)
    return found


def each_once(notices: list[tuple[int, Notice]]) -> None:
    """Raise AssertionError where something is told twice: of each key what begins is over before it begins again, a level is told
    once between, and what lasts after no less than the time that is set."""
    now: dict[str, tuple[int, int]] = {}
    for at_us, whole in notices:
        for notice in whole.parts or (whole,):
            level, told_us = now.get(notice.key, (0, 0))
            assert (notice.what == BEGUN) == (level == 0), (notice, level)
            if notice.what == WORSE:
                assert notice.about.level > level
            if notice.what == LASTS:
                assert at_us - told_us >= Settings().repeat_us
            if notice.what == OVER:
                del now[notice.key]
            else:
                now[notice.key] = (max(level, notice.about.level), at_us)


@settings(max_examples=150, deadline=None)
@given(LOOKS, st.integers(1, 5), st.booleans())
def test_whatever_happens_each_is_told_once_and_never_too_much(looks: list, per_hour: int, again: bool) -> None:
    """In any history no condition is told twice, no hour holds more than it may, and a restart between any two looks changes nothing."""
    notices = run(looks, step, per_hour, again)
    each_once(notices)
    times = Counter(at_us for at_us, _ in notices)
    for start_us in times:
        assert sum(n for at_us, n in times.items() if start_us <= at_us < start_us + hour_us) <= per_hour + 1
    assert notices == run(looks, step, per_hour, not again)


@settings(max_examples=100, deadline=None)
@given(LOOKS, SEEN)
def test_whatever_stands_long_enough_is_told(looks: list, last: dict) -> None:
    """Also where an hour may hold one notice: after some hours everybody knows of everything that stands."""
    notices = run([*looks, *[(61, last)] * 12], step, 1, False)
    told_of = {part.key for _, notice in notices for part in notice.parts or (notice,)}
    assert set(last) <= told_of


def forgets(state: State, *seen: object) -> tuple[State, list[Notice]]:
    """A build that decides, and remembers nothing of what it has told."""
    after, notices = step(state, *seen)
    fresh = {key: msgspec.structs.replace(one, told_level=0) for key, one in after.standing.items()}
    return msgspec.structs.replace(after, standing=fresh), notices


def test_control_who_forgets_what_was_told_is_caught() -> None:
    """The property above fails for a build that forgets."""
    with pytest.raises(AssertionError):
        each_once(run([(1, {"a": WARNING})] * 5, forgets, 5, False))
