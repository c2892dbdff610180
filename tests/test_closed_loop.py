"""The whole loop with real processes: a campaign is sent over real SMTP or HTTP, people react, processes are killed; nobody gets two."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from midflight.decide.breaker import PROBING
from midflight.sandbox.bounce_loop import BounceLoop
from midflight.sandbox.follow_up_loop import FollowUpLoop, holdout
from midflight.sandbox.loop import Loop, Play, Told

CONTROLS = Path(__file__).parent / "controls"
SHORT = Play(recipients=800, hours=2.0, after=1.0, speed=600.0, seed=7)
FOLLOWED = Play(recipients=4_000, hours=2.0, after=5.0, speed=360.0, seed=7, policy="fixed_split")
BOUNCING = Play(recipients=6_000, hours=6.0, after=0.5, speed=360.0, seed=7, policy="fixed_split")


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


@pytest.mark.long
def test_what_a_rule_is_said_to_earn_is_true(tmp_path: Path) -> None:
    """Who clicks and does not buy is followed up once, one in ten never; processes die; what may be said of the rule holds what is true."""
    found = FollowUpLoop(tmp_path / "loop", changed(FOLLOWED, kills=4)).follow_ups()
    assert (found.lost, found.twice, found.held_written, found.told.differences) == (0, 0, 0, []), found
    assert found.firings > 800 and 0.5 * holdout < found.states["held_out"] / found.firings < 1.6 * holdout
    assert found.inside_conversions and found.inside is not False, found
    assert 0.15 < found.conversions < 0.35 and found.followed.revenue > found.held.revenue


@pytest.mark.long
def test_a_conductor_that_follows_up_twice_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: each follow-up is given to its channel twice, and somebody gets two."""
    monkeypatch.setenv("MIDFLIGHT_BUILD", "follows_up_twice")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CONTROLS), str(CONTROLS.parent.parent)]))
    found = FollowUpLoop(tmp_path / "loop", changed(FOLLOWED, recipients=600, hours=1.0, after=2.0, speed=600.0)).follow_ups()
    assert found.twice > 0 and not found.well, found


@pytest.mark.long
def test_a_provider_that_bounces_is_held_and_released(tmp_path: Path) -> None:
    """Held soon, tried, released, and nobody is left out; without guards far more bounces."""
    with_, plain = (BounceLoop(tmp_path / f"{on}", BOUNCING, provider="Microsoft", guards=on).bounces() for on in (True, False))
    for found in (with_, plain):
        assert (found.told.lost, found.told.twice, found.told.differences) == (0, 0, []), found
    assert with_.released and PROBING in [turn.stage for turn in with_.own], with_.turns
    assert with_.own[0].after < 315 and not plain.turns
    assert with_.bounced < plain.bounced and with_.arrived > plain.arrived
