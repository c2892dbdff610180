"""A clock for what cannot be taken back: jumps of the machine's clock are believed once they last, and time never goes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from acting_world import DAY, HOUR, MINUTE, WorldClock

from midflight.kit.clock import SteadyClock, believed_s, near_us
from midflight.log import Record
from midflight.serve.door.storing import open_writer

TICK = Record("tick", "", 0, {}, b"")


def lived(clock: SteadyClock, seconds: int) -> list[int]:
    """Return what the clock says after each second."""
    said = []
    for _ in range(seconds):
        clock.sleep_s(1)
        said.append(clock.now_us())
    assert said == sorted(said)
    return said


@pytest.mark.parametrize("jump_us", [2 * DAY, -2 * DAY, 10 * MINUTE, -10 * MINUTE])
def test_a_jump_that_passes_changes_nothing(jump_us: int) -> None:
    """For nearly as long as is waited the wall is elsewhere; each second is a second all the same."""
    wall = WorldClock()
    clock = SteadyClock(wall)
    lived(clock, 10)
    wall.ahead_us = jump_us
    during = lived(clock, int(believed_s) - 5)
    wall.ahead_us = 0
    after = lived(clock, 60)
    assert [*during, *after][-1] == wall.at_us and all(b - a == 1_000_000 for a, b in zip(during, during[1:], strict=False))


def test_a_wall_that_stays_ahead_is_followed(tmp_path: Path) -> None:
    """Not before it has lasted, and then at once; a wall that moves about meanwhile is not believed."""
    wall = WorldClock()
    clock = SteadyClock(wall)
    for ahead_us in (HOUR, 2 * HOUR, 3 * HOUR):
        wall.ahead_us = ahead_us
        lived(clock, int(believed_s) - 5)
        assert clock.now_us() == wall.at_us
    lived(clock, 10)
    assert clock.now_us() == wall.at_us + 3 * HOUR


def test_a_wall_that_stays_behind_is_waited_for_at_half_the_pace() -> None:
    """Nothing stands still until the wall has caught up, and nothing goes back; then both go on together."""
    wall = WorldClock()
    clock = SteadyClock(wall)
    wall.ahead_us = -HOUR
    before = lived(clock, int(believed_s))[-1]
    after = lived(clock, 600)[-1]
    assert 299_000_000 <= after - before <= 302_000_000
    lived(clock, 2 * 3600)
    assert abs(clock.now_us() - wall.now_us()) <= near_us
    later = lived(clock, 100)
    assert later[-1] - later[0] == 99_000_000


def test_small_steps_are_followed_at_once() -> None:
    """What a time server corrects day by day is no jump."""
    wall = WorldClock()
    clock = SteadyClock(wall)
    wall.ahead_us = near_us // 2
    clock.sleep_s(1)
    assert clock.now_us() == wall.now_us()


def test_a_log_goes_on_where_a_wrong_clock_left_it(tmp_path: Path) -> None:
    """A log that was written with a clock two days ahead does not stand still for two days after a restart."""
    wall = WorldClock()
    wall.ahead_us = 2 * DAY
    with open_writer(tmp_path, wall) as writer:
        writer.append([TICK])
        ahead_us = writer.at_us
    wall.ahead_us = 0
    with open_writer(tmp_path, wall) as writer:
        for _ in range(20):
            wall.sleep_s(60)
            writer.append([TICK])
        assert ahead_us + 10 * MINUTE <= writer.at_us <= ahead_us + 20 * MINUTE
