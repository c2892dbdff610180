"""The whole loop with real processes: a campaign is sent over real SMTP or HTTP, people react, processes are killed; nobody gets two."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from midflight.sandbox.loop import Loop, Play, Told

CONTROLS = Path(__file__).parent / "controls"
SHORT = Play(recipients=800, hours=2.0, after=1.0, speed=600.0, seed=7)


def told_of(folder: Path, play: Play) -> Told:
    return Loop(folder / "loop", play).run()


def changed(play: Play, **changes: object) -> Play:
    return Play(**{name: getattr(play, name) for name in Play.__struct_fields__} | changes)


@pytest.mark.parametrize("channel", ["smtp", pytest.param("postmark", marks=pytest.mark.long)])
def test_everybody_gets_one_message_whatever_is_killed(tmp_path: Path, channel: str) -> None:
    """Door, engine and conductor killed five times within a quarter of a minute: each person has one message, and every number is true."""
    told = told_of(tmp_path, changed(SHORT, channel=channel, kills=5))
    assert (told.lost, told.twice, told.differences) == (0, 0, []), told
    assert sum(told.kills.values()) == 5 and told.states["sent"] == 800
    assert sum(told.shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(("build", "what"), [("sends_again", "twice"), pytest.param("forgets_calls", "lost", marks=pytest.mark.long)])
def test_a_conductor_that_recovers_wrongly_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: str, what: str) -> None:
    """Controls: open calls all planned again give somebody two messages, all taken as sent leave somebody without."""
    monkeypatch.setenv("MIDFLIGHT_BUILD", build)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CONTROLS), str(CONTROLS.parent.parent)]))
    told = told_of(tmp_path, changed(SHORT, kills=9, only="conductor", recipients=2_500, slow=True))
    assert getattr(told, what) > 0, told


@pytest.mark.long
def test_fifty_kills_and_a_hundred_thousand_people(tmp_path: Path) -> None:
    """The same with a hundred thousand people, five variants and fifty kills; more click than with an equal split."""
    told = told_of(tmp_path, Play(recipients=100_000, kills=50, speed=120.0, after=4.0))
    assert (told.lost, told.twice, told.differences) == (0, 0, []), told
    assert told.shares["B"] > 0.4, told.shares
