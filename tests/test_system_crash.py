"""Every process killed under load, at named places and at random: afterwards every number of the API is the sandbox's truth."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from system import NAMES, Playing, System, wait_s_max, wait_until

from midflight.kit.errors import Damaged
from midflight.log import Reader
from midflight.store.history import done_position, folder_of
from midflight.store.sql import Questions

SEED = int(os.environ.get("MIDFLIGHT_SEED", "11"))

DOOR_POINTS = ("body_read", "before_append", "after_append", "after_fsync", "before_200")
ENGINE_POINTS = ("before_fold", "before_commit", "after_commit")
HISTORY_POINTS = ("written", "synced", "renamed", "shown")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """All processes, started once; each test plays a game of its own with them."""
    with System(tmp_path_factory.mktemp("crash") / "system", SEED) as made:
        made.start_all()
        yield made


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system for the controls, each of which is judged by a game of its own."""
    with System(tmp_path_factory.mktemp("broken") / "system", SEED) as made:
        made.start_all("door", "engine", "console")
        yield made


def killed_at(system: System, name: str, *points: tuple[str, int], build: str = "") -> Playing:
    """Play games during which a process dies at the n-th passing of each of these places in turn, and is started again."""
    system.stop(name)
    point, count = points[0]
    process = system.start(name, crash_at=f"{point}:{count}", build=build)
    if name == "engine":
        system.engine_runs()
    going = True
    with Playing(system, lambda: going) as playing:
        try:
            for point, count in points:
                if process.poll() is not None:
                    process = system.start(name, crash_at=f"{point}:{count}", build=build)
                status = process.wait(wait_s_max)
                assert status == -signal.SIGKILL, f"{name} was not killed at {point}: {system.output(name)[-2000:]}"
            system.start(name, build=build)
        finally:
            going = False
    return playing


def count_for(point: str, least: int, most: int) -> int:
    """Return which passing of a place is the last, by the seed."""
    return random.Random(f"{SEED} {point}").randint(least, most)


# -- the door ------------------------------------------------------------------------------------------------------------------


def test_a_door_killed_anywhere_loses_and_doubles_nothing(system: System) -> None:
    """At each of its places in turn: what was answered counts once; what was not comes again and counts once too."""
    playing = killed_at(system, "door", *((point, count_for(point, 20, 120)) for point in DOOR_POINTS))
    found = playing.differences()
    assert not found, playing.shown(found)
    assert sum(told.report["retries"] for told in playing.truths)


def test_a_door_that_answers_before_it_appends_is_caught(broken: System) -> None:
    """Control: killed between the answer and the append, such a door has lost what it answered."""
    assert killed_at(broken, "door", ("before_append", 60), build="answer_first").differences(2.0)


# -- the engine ----------------------------------------------------------------------------------------------------------------


def test_an_engine_killed_anywhere_loses_and_doubles_nothing(system: System) -> None:
    """At each of its places in turn: effects and position are of one transaction, and the shards come back from the log."""
    playing = killed_at(system, "engine", *((point, count_for(point, 4, 8)) for point in ENGINE_POINTS))
    found = playing.differences()
    assert not found, playing.shown(found)


@pytest.mark.parametrize("build", ["position_first", "effects_first"])
def test_an_engine_with_two_transactions_is_caught(broken: System, build: str) -> None:
    """Control: killed between position and effects, the numbers are too small; the other way round, some are too big."""
    playing = killed_at(broken, "engine", ("between", 2), build=build)
    broken.caught_up()
    found = playing.differences(2.0)
    less = [d for d in found if d.shown < d.true]
    assert less if build == "position_first" else len(less) < len(found)


def test_an_engine_without_dedup_is_caught(broken: System) -> None:
    """Control: vendors repeat themselves in these games, and a door that dies makes them repeat more."""
    broken.stop("engine")
    broken.start("engine", build="no_dedup")
    assert broken.differences(broken.play(), 2.0)
    broken.stop("engine")
    broken.start("engine")


def snapshots(system: System) -> set[str]:
    return {path.name for path in (system.data / "snapshots").glob("*.snap")}


def test_an_engine_killed_while_it_writes_snapshots_ends_where_it_should(system: System) -> None:
    """A child killed in the middle of a snapshot is nothing to the engine; an engine killed then starts from an older one."""
    system.stop("engine")
    system.start("engine", crash_at="during_snapshot:1", build="snapshots_often")
    going = True
    with Playing(system, lambda: going) as playing:
        try:
            wait_until(lambda: "a snapshot could not be written" in system.output("engine"), "a snapshot cut off")
            assert system.processes["engine"].poll() is None
            for _ in range(2):
                system.kill("engine")
                before = snapshots(system)
                system.start("engine", build="snapshots_often")
                wait_until(lambda before=before: snapshots(system) - before, "a new snapshot")
            system.kill("engine")
            system.start("engine")
        finally:
            going = False
    found = playing.differences()
    assert not found, playing.shown(found)


# -- the console ---------------------------------------------------------------------------------------------------------------


def test_a_console_killed_under_load_comes_back_with_the_same_numbers(system: System) -> None:
    """The console owns nothing that numbers rest on."""
    with Playing(system) as playing:
        system.kill("console")
        system.start("console")
        system.ready("console")
        system.kill("console")
        system.start("console")
    found = playing.differences()
    assert not found, playing.shown(found)


# -- the history -----------------------------------------------------------------------------------------------------------------


def written_events(system: System) -> int:
    """Return how many events the history holds in its parts, repetitions left out."""
    wait_until(lambda: exported(system), f"all in parts\n{system.output('history')[-2000:]}")
    with Questions(system.config) as questions:
        return next(questions.ask("SELECT count(*) FROM events").rows)[0]


def exported(system: System) -> bool:
    folder = folder_of(system.data)
    # Behind the last event there are only ticks, of which nobody takes note at once.
    return done_position(folder) >= last_event(system)


def last_event(system: System) -> int:
    with Reader(system.data / "log") as reader:
        position = last = reader.first()
        while records := reader.read(position):
            last = max([last, *(r.position for r in records if r.kind != "tick")])
            position = records[-1].position + 1
    return last


def folded_events(system: System) -> int:
    """Return how many events the engine has folded."""
    system.caught_up()
    with apsw.Connection(str(system.data / "store.db")) as db:
        events, duplicates = db.execute("SELECT sum(events), sum(duplicates) FROM receipts").fetchone()
        return events - duplicates


def test_a_history_killed_anywhere_holds_each_event_once(system: System) -> None:
    """After a kill between any two of its steps the history holds the events that the engine has folded."""
    playing = killed_at(system, "history", *((point, 1) for point in HISTORY_POINTS), build="history_points")
    found = playing.differences()
    assert not found, playing.shown(found)
    assert written_events(system) == folded_events(system)


def test_a_history_that_starts_too_early_is_caught(broken: System) -> None:
    """Control: a history that writes some events again after a kill is found to overlap, and answers nothing."""
    broken.start("history")
    assert not killed_at(broken, "history", ("shown", 1), build="history_forgets").differences()
    with pytest.raises(Damaged, match="overlap"):
        written_events(broken)


# -- all of them, supervised -----------------------------------------------------------------------------------------------------


def kill_at_random(system: System, kills: int, seed: int, pause_s: float = 1.5) -> Counter[str]:
    """Play games and kill one of the supervised processes now and then, until so many have been killed; check every number."""
    rng, done = random.Random(seed), Counter()
    while sum(done.values()) < kills:
        with Playing(system, recipients=400) as playing:
            while not playing.over and sum(done.values()) < kills:
                time.sleep(rng.uniform(0.2, pause_s * 2))
                name = rng.choice(NAMES)
                if pid := system.child(name):
                    os.kill(pid, signal.SIGKILL)
                    done[name] += 1
        system.ready()
        found = playing.differences(60.0)
        assert not found, f"seed {seed}, after {dict(done)}: {playing.shown(found)}"
    return done


def test_processes_killed_at_random_lose_and_double_nothing(tmp_path: Path) -> None:
    """The supervisor starts again what dies, and every number is true."""
    with System(tmp_path / "system", SEED + 1) as system:
        up = system.up()
        done = kill_at_random(system, 10, SEED)
        assert up.poll() is None
        said = system.output("up")
        assert sum(said.count(f"{name} ended (killed by SIGKILL) and is started again") for name in NAMES) == sum(done.values())


@pytest.mark.long
def test_many_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    """The same 200 times, or as often as MIDFLIGHT_KILLS says."""
    kills = int(os.environ.get("MIDFLIGHT_KILLS", "200"))
    with System(tmp_path / "system", SEED + 2) as system:
        system.up()
        done = kill_at_random(system, kills, SEED)
        print(f"{sum(done.values())} kills, seed {SEED}: {dict(done)}")
