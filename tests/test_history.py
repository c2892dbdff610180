"""The history: every event once, whatever dies; one person's timeline; questions in SQL that only read."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import apsw
import duckdb
import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.commands import load
from midflight.config import Config, config_from
from midflight.events import Event
from midflight.kit.clock import Clock, VirtualClock
from midflight.kit.errors import Damaged, Locked, NotFound
from midflight.log import Reader, Writer
from midflight.log.record import Record
from midflight.serve.history import raw_event, run, status, timeline
from midflight.store import history
from midflight.store.history import (
    DAY_US,
    Exporter,
    Part,
    all_parts,
    chosen,
    day_of,
    done_position,
    folder_of,
    mergeable,
    next_position,
    part_name,
)
from midflight.store.reading import Reading
from midflight.store.schema import SCHEMA
from midflight.store.sql import Questions, WrongSql

START_US = 1_764_000_000_000_000  # 2025-11-24 16:00 UTC


class Given(Clock):
    """The log's clock, set by hand."""

    def __init__(self, at_us: int = START_US) -> None:
        self.at_us = at_us

    def now_us(self) -> int:
        return self.at_us


def settings_of(data: Path) -> Config:
    return config_from({"data": str(data), "sources": {"sendgrid": {"kind": "sendgrid", "unsigned": True}}, "attributes": ["country"]})


def webhook(numbers: range, **more: object) -> Record:
    """Return a request of SendGrid's with one event per number."""
    items = [
        {
            "email": f"person{n % 50}@example.com",
            "timestamp": START_US // 1_000_000 + n,
            "event": "open" if n % 3 else "click",
            "sg_event_id": f"event-{n}",
            "sg_message_id": f"message-{n % 50}.filter",
            "useragent": "Mozilla/5.0" if n % 7 == 0 else "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0",
            "campaign": f"campaign-{n % 4}",
            **more,
        }
        for n in numbers
    ]
    return Record("webhook", "sendgrid", 0, {}, msgspec.json.encode(items))


def imported(events: list[Event]) -> Record:
    return Record("events", "import", 0, {}, msgspec.json.encode(events))


def store(data: Path, position: int, marks: list[tuple[int, int, str]] = ()) -> None:
    """Say what the engine would have said: how far it is, and marks."""
    db = apsw.Connection(str(data / "store.db"))
    db.pragma("journal_mode", "wal")
    db.execute(SCHEMA)
    db.execute("INSERT OR REPLACE INTO meta VALUES ('position', ?)", (position,))
    db.executemany("INSERT OR IGNORE INTO marks VALUES (?, ?, ?)", marks)
    db.close()


def fill(data: Path, batches: list[list[Record]], clock: Clock | None = None, step_us: int = 0) -> int:
    """Append to the log, let the engine's position be its end, and return it."""
    clock = clock or Given()
    with Writer.open(data / "log", clock=clock, segment_bytes=4 * 1024 * 1024, reserve_bytes=0) as log:
        for batch in batches:
            log.append(batch)
            clock.at_us += step_us
        end = log.position
    store(data, end)
    return end


def export(data: Path, now_us: int = START_US, *, tidy: bool = True, **more: object) -> Exporter:
    """Do all there is to do."""
    config = settings_of(data)
    with Reader(data / "log") as log:
        exporter = Exporter(data, log, Reading(config), VirtualClock(now_us), **more)
        with exporter.opened():
            while exporter.follow(committed(data)):
                pass
            while tidy and exporter.tidy():
                pass
            exporter.copy_marks(data / "store.db")
    return exporter


def committed(data: Path) -> int:
    with Reader(data / "log") as log:
        return log.head()


def stored(data: Path, parts: list[Part] | None = None) -> list[tuple]:
    """Return (position, item, event id) of everything in the parts that a reader takes."""
    parts = chosen(all_parts(folder_of(data))) if parts is None else parts
    if not parts:
        return []
    names = [str(part.path) for part in parts]
    return sorted(duckdb.execute("SELECT position, item, event_id FROM read_parquet(?)", [names]).fetchall())


def expected(data: Path) -> list[tuple]:
    reading = Reading(settings_of(data))
    with Reader(data / "log") as log:
        records = log.read(0, 1 << 30)
    return [(record.position, item, event.event_id) for record in records for item, event in reading.events(record)]


# -- every event, once ---------------------------------------------------------------------------------------------------


def test_every_event_is_in_the_history_once(tmp_path: Path) -> None:
    """Parts hold what the log holds, under days of receipt, each event under its record's position and its own number."""
    fill(tmp_path, [[webhook(range(n, n + 10))] for n in range(0, 300, 10)], step_us=DAY_US // 10)
    export(tmp_path, tidy=False)
    assert stored(tmp_path) == expected(tmp_path)
    assert {part.day for part in all_parts(folder_of(tmp_path))} == {day_of(START_US + n * DAY_US // 10) for n in range(30)}


def test_events_past_the_engines_position_wait(tmp_path: Path) -> None:
    """The history never goes past what the engine has folded, or marks of those events would be missing."""
    fill(tmp_path, [[webhook(range(5))], [webhook(range(5, 10))], [webhook(range(10, 15))]])
    with Reader(tmp_path / "log") as log:
        exporter = Exporter(tmp_path, log, Reading(settings_of(tmp_path)), VirtualClock(START_US))
        with exporter.opened():
            exporter.follow(2)
    assert {position for position, _, _ in stored(tmp_path)} == {0, 1}
    assert next_position(all_parts(folder_of(tmp_path))) == 2


def test_going_on_writes_nothing_twice(tmp_path: Path) -> None:
    """A second exporter starts where the names say that the first one ended."""
    for n in range(0, 60, 10):
        fill(tmp_path, [[webhook(range(n, n + 10))]])
        export(tmp_path, tidy=False)
    assert len(all_parts(folder_of(tmp_path))) == 6
    assert stored(tmp_path) == expected(tmp_path)
    export(tmp_path, tidy=False)
    assert len(all_parts(folder_of(tmp_path))) == 6


def test_only_one_process_writes_a_history(tmp_path: Path) -> None:
    """The second one is refused and harms nothing."""
    fill(tmp_path, [[webhook(range(5))]])
    with Reader(tmp_path / "log") as log:
        first = Exporter(tmp_path, log, Reading(settings_of(tmp_path)), VirtualClock(START_US))
        second = Exporter(tmp_path, log, Reading(settings_of(tmp_path)), VirtualClock(START_US))
        with first.opened(), pytest.raises(Locked), second.opened():
            pass


def test_what_cannot_be_read_gives_no_row(tmp_path: Path) -> None:
    """Broken bodies, unknown sources and events that are none are the engine's dead letters; the numbers of the others stay."""
    body = b'[{"event_id": "a", "kind": "opened", "recipient": "a@example.com"}, {"kind": 7}, {"event_id": "c", "kind": "opened"}]'
    records = [
        Record("webhook", "sendgrid", 0, {}, b"{not json"),
        Record("webhook", "nobody", 0, {}, b"[]"),
        Record("tick", "", 0, {}, b""),
        Record("events", "import", 0, {}, body),
    ]
    fill(tmp_path, [records])
    export(tmp_path)
    assert stored(tmp_path) == [(3, 0, "a"), (3, 2, "c")]


def test_a_dead_letter_that_is_read_again_is_in_the_history_at_its_replay(tmp_path: Path) -> None:
    """One item of a body or a whole body, as of its first receipt."""
    item = b'{"email": "ada@example.com", "event": "open", "sg_event_id": "again", "timestamp": 1764000000}'
    place = {"midflight-position": "0", "midflight-at-us": str(START_US - 1)}
    fill(tmp_path, [[Record("replay", "sendgrid", 0, place | {"midflight-item": "4"}, item)]])
    fill(tmp_path, [[Record("replay", "sendgrid", 0, place | {"midflight-item": "-1"}, b"[" + item.replace(b"again", b"whole") + b"]")]])
    export(tmp_path)
    assert stored(tmp_path) == [(0, 0, "again"), (1, 0, "whole")]


def test_a_night_of_ticks_is_looked_through_once(tmp_path: Path) -> None:
    """Where nothing came, its end is noted: neither the next exporter nor a question reads it again, and nothing is passed over."""
    fill(tmp_path, [[webhook(range(10))]])
    export(tmp_path)
    fill(tmp_path, [[Record("tick", "", 0, {}, b"")] * 1000])
    export(tmp_path)
    folder = folder_of(tmp_path)
    assert next_position(all_parts(folder)) == 1
    assert done_position(folder) == 1001
    fill(tmp_path, [[webhook(range(10, 20))]])
    with Questions(settings_of(tmp_path)) as questions:
        assert list(questions.ask("SELECT count(*) FROM events").rows) == [(20,)]
    export(tmp_path)
    assert stored(tmp_path) == expected(tmp_path)
    (folder / "position").write_text("")
    assert done_position(folder) == next_position(all_parts(folder)) == 1002


def test_a_note_that_comes_while_the_folder_is_read_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part and a note behind it, both written just after a question has listed the parts: its events are read from the log."""
    fill(tmp_path, [[webhook(range(10))]])
    listed = history.all_parts

    def slowly(folder: Path) -> list[Part]:
        parts = listed(folder)
        monkeypatch.setattr(history, "all_parts", listed)
        export(tmp_path)
        fill(tmp_path, [[Record("tick", "", 0, {}, b"")] * 1000])
        export(tmp_path)
        assert (folder / "position").read_text() == "1001"
        return parts

    monkeypatch.setattr(history, "all_parts", slowly)
    with Questions(settings_of(tmp_path)) as questions:
        assert list(questions.ask("SELECT count(*) FROM events").rows) == [(10,)]


def test_a_note_ahead_of_the_parts_loses_events(tmp_path: Path) -> None:
    """Control: were the end of an idle time noted before the parts up to it are on the disk, a death in between would lose them."""
    fill(tmp_path, [[webhook(range(n, n + 10))] for n in range(0, 50, 10)])
    folder_of(tmp_path).mkdir()
    (folder_of(tmp_path) / "position").write_text("3")
    export(tmp_path)
    assert stored(tmp_path) != expected(tmp_path)


# -- whatever dies -------------------------------------------------------------------------------------------------------

# For each argument FOLDER:STEP a child exports, merges, sweeps and copies marks in small steps and dies of SIGKILL at that step;
# a line says how it ended, and how many steps there were.
DIES = """
import os, signal, sys
from pathlib import Path
import midflight.store.history as history
from midflight.config import config_from
from midflight.kit.clock import VirtualClock
from midflight.log import Reader
from midflight.store.reading import Reading
history.events_max, history.fan_in, history.superseded_s = 20, 3, -1e12
SETTINGS = {"sources": {"sendgrid": {"kind": "sendgrid", "unsigned": True}}}
def work(data, at):
    count = 0
    def passed(step):
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
    with Reader(data / "log") as log:
        exporter = history.Exporter(data, log, Reading(config_from(SETTINGS)), VirtualClock(NOW), passed=passed)
        with exporter.opened():
            for end in (12, history.committed_position(data)):
                while exporter.follow(end):
                    pass
            while exporter.tidy():
                pass
            exporter.tidy()
            exporter.copy_marks(data / "store.db")
    print(count, end=" ", flush=True)
for job in sys.argv[1:]:
    data, _, at = job.rpartition(":")
    child = os.fork()
    if not child:
        work(Path(data), int(at))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def dies(jobs: list[tuple[Path, int]]) -> list[str]:
    """Run jobs (folder, step to die at or -1), and return for each what it said."""
    code = DIES.replace("NOW", str(START_US + 3_600_000_000))
    arguments = [f"{data}:{at}" for data, at in jobs]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def spread(data: Path) -> None:
    """Fill a log whose events came on two days, with a mark."""
    clock = Given(START_US - DAY_US)
    fill(data, [[webhook(range(n, n + 10))] for n in range(0, 60, 10)], clock)
    clock.at_us = START_US
    fill(data, [[webhook(range(n, n + 10))] for n in range(60, 120, 10)], clock)
    fill(data, [[Record("tick", "", 0, {}, b"")] * 300], clock)
    store(data, 312, [(3, 1, "duplicate")])


def read_by_a_person(data: Path) -> list[tuple]:
    """Return what a question sees while the process lies dead."""
    with Questions(settings_of(data)) as questions:
        return sorted(questions.ask("SELECT position, item, event_id FROM inside.every_event").rows)


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.long)])
def test_a_kill_at_any_step_loses_and_doubles_nothing(tmp_path: Path, stride: int) -> None:
    """SIGKILL between any two steps of writing, merging, sweeping: readers see each event once, and the next run ends right."""
    whole = tmp_path / "whole"
    spread(whole)
    (said,) = dies([(whole, -1)])
    steps, ended = map(int, said.split())
    assert ended == 0
    assert steps > 40
    wanted = expected(whole)
    assert stored(whole) == wanted
    killed = [(tmp_path / str(at), at) for at in range(1, steps + 1, stride)]
    for data, _ in killed:
        shutil.copytree(whole, data, ignore=shutil.ignore_patterns("history"))
    assert dies(killed) == [str(-signal.SIGKILL)] * len(killed)
    for data, at in killed:
        # What a reader takes is a beginning of all there is, in whole records, and the rest is in the log.
        found = stored(data)
        assert found == wanted[: len(found)], at
        if at % 8 == 1:
            assert read_by_a_person(data) == wanted, at
    assert {line.split()[1] for line in dies([(data, -1) for data, _ in killed])} == {"0"}
    for data, at in killed:
        assert stored(data) == wanted, at
        assert stored(data, all_parts(folder_of(data))) == wanted, f"{at}: what was merged is gone"
        assert not list((folder_of(data) / "tmp").glob("*.parquet"))
        assert len(list((folder_of(data) / "marks").iterdir())) == 1


def test_a_reader_that_takes_every_file_counts_twice(tmp_path: Path) -> None:
    """Control: after a death between a merge and the sweep, only the choice of files keeps events from being seen twice."""
    for n in range(0, 40, 10):
        fill(tmp_path, [[webhook(range(n, n + 10))]])
        export(tmp_path, tidy=False)
    export(tmp_path, START_US + DAY_US)
    parts = all_parts(folder_of(tmp_path))
    assert len(parts) == 5
    assert stored(tmp_path) == expected(tmp_path)
    assert len(stored(tmp_path, parts)) == 2 * len(expected(tmp_path))


def test_a_file_shown_before_it_is_whole_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: writing under the final name at once leaves, after a death, a file that no reader can read."""
    fill(tmp_path, [[webhook(range(50))]])

    def at_once(self: Exporter, query: str, place: str, name: str) -> None:
        (self.folder / place).mkdir()
        self._db.execute(f"COPY ({query}) TO '{self.folder / place / name}' (FORMAT parquet)")
        path = self.folder / place / name
        os.truncate(path, path.stat().st_size // 2)  # as a kill in the middle of the writing

    monkeypatch.setattr(Exporter, "_publish", at_once)
    export(tmp_path, tidy=False)
    with pytest.raises(duckdb.Error):
        stored(tmp_path)


def test_parts_that_overlap_without_containing_are_damage(tmp_path: Path) -> None:
    """Two ranges of which neither holds the other cannot come about, so they are named and not read."""
    parts = [Part("2025-11-24", 0, 10, tmp_path / "a"), Part("2025-11-24", 5, 15, tmp_path / "b")]
    with pytest.raises(Damaged):
        chosen(parts)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_the_chosen_parts_cover_each_position_once(sizes: list[int], chance: random.Random) -> None:
    """After any merges of neighbours, with any of the merged files still there, each position is in one chosen part."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    live = [Part("d", end - size, end, Path(f"{end - size}-{end}")) for size, end in zip(sizes, ends, strict=True)]
    every = list(live)
    for _ in range(chance.randint(0, 10)):
        if len(live) > 1:
            at = chance.randrange(len(live) - 1)
            stop = chance.randint(at + 2, len(live))
            merged = Part("d", live[at].first, live[stop - 1].end, Path(f"{live[at].first}-{live[stop - 1].end}"))
            gone = live[at:stop]
            live[at:stop] = [merged]
            every.append(merged)
            every = [part for part in every if part not in gone or chance.random() < 0.5]
    found = chosen(sorted(every, key=lambda part: (part.day, part.first, -part.end)))
    covered = [position for part in found for position in range(part.first, part.end)]
    assert covered == list(range(ends[-1]))


# -- merging, retention --------------------------------------------------------------------------------------------------


def test_a_day_that_is_over_becomes_one_part(tmp_path: Path) -> None:
    """Its small parts are merged, sorted by recipient, and go after a while."""
    for n in range(0, 60, 10):
        fill(tmp_path, [[webhook(range(n, n + 10))]])
        export(tmp_path, tidy=False)
    export(tmp_path, START_US + DAY_US)
    (part,) = chosen(all_parts(folder_of(tmp_path)))
    assert (part.first, part.end) == (0, 6)
    keys = [key for (key,) in duckdb.execute("SELECT recipient_key FROM read_parquet(?)", [str(part.path)]).fetchall()]
    assert keys == sorted(keys)
    assert len(all_parts(folder_of(tmp_path))) == 7, "a question that has begun may still read them"
    os.utime(part.path, (0, 0))
    export(tmp_path, START_US + DAY_US)
    assert all_parts(folder_of(tmp_path)) == [part]
    assert stored(tmp_path) == expected(tmp_path)


def test_todays_parts_are_merged_by_size(tmp_path: Path) -> None:
    """Sixteen of a size become one, so that a row is rewritten seldom; fewer are left alone."""
    (tmp_path / "x").write_bytes(b"x" * 1000)
    parts = [Part("2025-11-24", n, n + 1, tmp_path / "x") for n in range(20)]
    assert list(mergeable(parts[:15], "2025-11-24")) == []
    assert list(mergeable(parts, "2025-11-24")) == [parts]
    (tmp_path / "y").write_bytes(b"y" * 1_000_000)
    mixed = [*parts[:8], Part("2025-11-24", 8, 9, tmp_path / "y"), *parts[9:]]
    assert list(mergeable(mixed, "2025-11-24")) == [mixed]
    assert [len(group) for group in mergeable(mixed[:16], "2025-11-24")] == [16]


def test_old_days_go(tmp_path: Path) -> None:
    """Days past retention are dropped, and what is still in the log of them is not written again."""
    fill(tmp_path, [[webhook(range(n, n + 10))] for n in range(0, 100, 10)], step_us=DAY_US)
    export(tmp_path, START_US + 9 * DAY_US)
    export(tmp_path, START_US + 9 * DAY_US, days_kept=3)
    export(tmp_path, START_US + 9 * DAY_US, days_kept=3)
    assert [part.day for part in all_parts(folder_of(tmp_path))] == [day_of(START_US + n * DAY_US) for n in range(6, 10)]


# -- one person ----------------------------------------------------------------------------------------------------------


def test_a_timeline_is_one_persons_events_newest_first(tmp_path: Path) -> None:
    """It reaches from the oldest part to what no part holds yet, in any spelling of the address."""
    fill(tmp_path, [[webhook(range(n, n + 50))] for n in range(0, 200, 50)], step_us=DAY_US)
    export(tmp_path, tidy=False)
    fill(tmp_path, [[webhook(range(200, 250))]], Given(START_US + 5 * DAY_US))
    found = timeline(tmp_path, " Person7@Example.COM ", config=settings_of(tmp_path))
    assert [event["event_id"] for event in found] == [f"event-{n}" for n in (207, 157, 107, 57, 7)]
    assert found[0]["occurred_at"] == "2025-11-24T16:03:27.000Z"
    assert {event["recipient"] for event in found} == {"person7@example.com"}
    assert found[-1]["agent"] == "machine"
    assert found[-1]["agent_reason"] == "Apple Mail privacy prefetch"
    assert [e["event_id"] for e in timeline(tmp_path, "person7@example.com", limit=2, config=settings_of(tmp_path))] == [
        "event-207",
        "event-157",
    ]
    assert timeline(tmp_path, "nobody@example.com", config=settings_of(tmp_path)) == []


def test_a_timeline_holds_what_was_done_under_the_senders_own_id(tmp_path: Path) -> None:
    """Site events know a person by id alone; an identification says whose id it is, and either finds both."""
    events = [
        Event(event_id="page", kind="paged", user_id="u-1"),
        Event(event_id="said", kind="identified", user_id="u-1", recipient="ada@example.com", traits={"country": "NO"}),
        Event(event_id="open", kind="opened", recipient="ada@example.com"),
        Event(event_id="other", kind="paged", user_id="u-2"),
    ]
    fill(tmp_path, [[imported(events)]])
    config = settings_of(tmp_path)
    for _ in range(2):
        for name in ("ada@example.com", "u-1"):
            assert [event["event_id"] for event in timeline(tmp_path, name, config=config)] == ["open", "said", "page"]
        export(tmp_path)


def test_marks_are_applied(tmp_path: Path) -> None:
    """Duplicates are left out and verdicts changed, in a timeline and in SQL, from the store and from the history's copy."""
    fill(tmp_path, [[webhook(range(100))]])
    store(tmp_path, 1, [(0, 7, "duplicate"), (0, 57, "machine:3 or more links within 2 s"), (0, 8, "duplicate")])
    config = settings_of(tmp_path)
    for step in range(3):
        (found,) = timeline(tmp_path, "person7@example.com", config=config)
        assert (found["event_id"], found["agent"], found["agent_reason"]) == ("event-57", "machine", "3 or more links within 2 s")
        with Questions(config) as questions:
            assert list(questions.ask("SELECT count(*) FROM events").rows) == [(98,)]
            asked = "SELECT agent, agent_reason FROM events WHERE recipient = 'person7@example.com'"
            assert list(questions.ask(asked).rows) == [("machine", "3 or more links within 2 s")]
        if step == 0:
            export(tmp_path)
            assert list((folder_of(tmp_path) / "marks").iterdir())
        elif step == 1:
            os.rename(tmp_path / "store.db", tmp_path / "elsewhere")


def test_marks_left_unread_would_count_duplicates(tmp_path: Path) -> None:
    """Control: without marks the same question counts every repetition."""
    fill(tmp_path, [[webhook(range(100))]])
    with Questions(settings_of(tmp_path)) as questions:
        assert list(questions.ask("SELECT count(*) FROM events").rows) == [(100,)]


def test_the_raw_payload_is_reachable_from_an_event(tmp_path: Path) -> None:
    """Position and number lead back to the bytes that came, and what is not there is said."""
    fill(tmp_path, [[webhook(range(10), note="kept")]])
    export(tmp_path)
    config = settings_of(tmp_path)
    (found,) = timeline(tmp_path, "person3@example.com", config=config)
    raw = raw_event(tmp_path, found["position"], found["item"], config=config)
    assert json.loads(raw["body"])[found["item"]]["note"] == "kept"
    assert raw["event"]["event_id"] == found["event_id"] == "event-3"
    with pytest.raises(NotFound):
        raw_event(tmp_path, 0, 99, config=config)
    with pytest.raises(NotFound):
        raw_event(tmp_path, 99, 0, config=config)


# -- SQL -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A data folder with parts, a tail that no part holds, and numbers in the store."""
    fill(tmp_path, [[webhook(range(n, n + 50))] for n in range(0, 200, 50)], step_us=DAY_US)
    export(tmp_path, tidy=False)
    fill(tmp_path, [[webhook(range(200, 250))]], Given(START_US + 5 * DAY_US))
    db = apsw.Connection(str(tmp_path / "store.db"))
    db.executemany(
        "INSERT INTO names VALUES (?, ?, ?)",
        [("campaign", 1, "spring"), ("variant", 1, "B"), ("attribute:country", 1, "NO"), ("attribute:country", 2, "SE")],
    )
    db.execute(
        "INSERT INTO cells (campaign, minute, variant, wave, provider, source, segment, opened) VALUES (1, 29400000, 1, 0, 0, 0, 2, 7)"
    )
    db.execute("INSERT INTO campaigns (campaign, first_minute, last_minute, opened) VALUES (1, 29400000, 29400001, 7)")
    db.close()
    return tmp_path


def test_sql_sees_parts_and_tail(asked: Path) -> None:
    """`events` reaches to the last second; days, times and numbers have types to compute with."""
    with Questions(settings_of(asked)) as questions:
        assert list(questions.ask("SELECT campaign, count(*) FROM events GROUP BY 1 ORDER BY 1").rows) == [
            ("campaign-0", 63),
            ("campaign-1", 63),
            ("campaign-2", 62),
            ("campaign-3", 62),
        ]
        assert next(questions.ask("SELECT count(DISTINCT day), max(happened_at - occurred_at) FROM events").rows)[0] == 5
        assert list(questions.ask("SELECT count(*) FROM events WHERE day < DATE '2025-11-26'").rows) == [(100,)]
        assert len(next(questions.ask("SELECT now(), now(), 1 AS x").rows)) == 3
        assert list(questions.ask("DESCRIBE events").rows)


def test_sql_has_the_live_numbers_with_names(asked: Path) -> None:
    """Cells and campaigns of the store, ids resolved, attributes under their names."""
    with Questions(settings_of(asked)) as questions:
        found = list(questions.ask("SELECT campaign, variant, wave, country, opened, minute::VARCHAR FROM cells").rows)
        assert found == [("spring", "B", "", "SE", 7, "2025-11-24 16:00:00")]
        assert list(questions.ask("SELECT campaign, opened FROM campaigns").rows) == [("spring", 7)]


def test_sql_of_an_empty_folder_is_empty(tmp_path: Path) -> None:
    """Before the first event there is nothing, and no error."""
    with Questions(settings_of(tmp_path)) as questions:
        for table in ("events", "marks", "cells", "campaigns", "names"):
            assert list(questions.ask(f"SELECT * FROM {table}").rows) == []


ESCAPES = [
    "COPY events TO '{data}/stolen.csv'",
    "COPY (SELECT 1) TO '{data}/history/stolen.csv'",
    "CREATE TABLE t AS SELECT 1",
    "DROP VIEW events",
    "ATTACH '{data}/store.db'",
    "ATTACH '{data}/history/new.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "RESET allowed_directories",
    "PRAGMA database_list",
    "CALL pragma_version()",
    "EXPORT DATABASE '{data}/stolen'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{data}/stolen.csv'",
    "SELECT 1; DROP VIEW events",
    "SELECT * FROM read_text('{data}/secret.txt')",
    "SELECT * FROM read_csv('{data}/secret.txt')",
    "SELECT * FROM '{data}/secret.csv'",
    "SELECT * FROM sniff_csv('{data}/secret.txt')",
    "SELECT * FROM glob('{data}/*')",
    "SELECT * FROM read_text('{data}/history/../secret.txt')",
    "SELECT * FROM read_parquet('http://127.0.0.1:1/x.parquet')",
    "SELECT * FROM secret_of_python",
    "FROM query('COPY (SELECT 1) TO ''{data}/history/stolen.csv''')",
    "",
]


def listed(folder: Path) -> list[str]:
    """Return every file but those that SQLite makes for its readers."""
    return sorted(str(path) for path in folder.rglob("*") if not path.name.startswith("store.db-"))


def test_sql_only_reads_the_history(asked: Path) -> None:
    """Nothing is written, no setting changed, and no file read but the history's."""
    secret_of_python = {"a": [1]}
    (asked / "secret.txt").write_text("secret\n1\n")
    (asked / "secret.csv").write_text("secret\n1\n")
    before = listed(asked)
    answered = []
    with Questions(settings_of(asked)) as questions:
        for sql in ESCAPES:
            try:
                answered.append((sql, list(questions.ask(sql.format(data=asked)).rows)))
            except WrongSql:
                continue
    assert answered == []
    assert listed(asked) == before
    assert secret_of_python


def test_an_unlocked_connection_would_read_any_file(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without the lock the same question reads the file."""
    (asked / "secret.txt").write_text("secret\n1\n")
    monkeypatch.setattr(Questions, "_lock", lambda self: None)
    with Questions(settings_of(asked)) as questions:
        assert list(questions.ask(f"SELECT * FROM read_csv('{asked}/secret.txt')").rows) == [(1,)]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT campain FROM events", "Unknown column `campain`. Did you mean `campaign`?"),
        ("SELECT e.recipent FROM events e", "Unknown column `recipent`. Did you mean `recipient`?"),
        ("SELECT 1 FROM evnts", "Unknown table `evnts`. Did you mean `events`?"),
        ("SELECT cont(*) FROM events", "Did you mean"),
        ("SELEC 1", "syntax error"),
        ("SELECT 1/0 + 'x'::INT FROM events", "Could not convert"),
    ],
)
def test_sql_errors_name_the_nearest(asked: Path, sql: str, said: str) -> None:
    """A wrong name is answered with the one that was meant."""
    with Questions(settings_of(asked)) as questions, pytest.raises(WrongSql) as error:
        list(questions.ask(sql).rows)
    assert said in error.value.text()


def test_a_question_has_a_memory_limit(asked: Path) -> None:
    """One that needs more is refused in words, and the process lives."""
    with Questions(settings_of(asked), memory="64MB") as questions, pytest.raises(WrongSql) as error:
        list(questions.ask("SELECT list(repeat('x', 1000) || i) FROM range(10000000) t(i)").rows)
    assert "memory" in error.value.text()


def test_the_command_prints_tables_json_and_csv(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables for people; JSON lines and CSV for programs; what strangers wrote stays text."""
    fill(asked, [[imported([Event(event_id="x", kind="opened", recipient="a@example.com", campaign="=cmd|' /C calc'!A0\x1b[31m")])]])
    (asked / "midflight.yaml").write_text(json.dumps({"data": str(asked), "sources": {"sendgrid": {"kind": "sendgrid", "unsigned": True}}}))
    monkeypatch.setenv("MIDFLIGHT_CONFIG", str(asked / "midflight.yaml"))
    asking = ["SELECT campaign, received_at, 1234 AS n FROM events WHERE event_id = 'x'"]
    table = CliRunner().invoke(load("sql"), asking)
    assert "1,234" in table.stdout
    assert "\x1b[31m" not in table.stdout
    (line,) = CliRunner().invoke(load("sql"), [*asking, "--json"]).stdout.splitlines()
    assert json.loads(line)["campaign"].startswith("=cmd")
    assert json.loads(line)["received_at"] == "2025-11-29T16:00:00Z"
    assert CliRunner().invoke(load("sql"), [*asking, "--csv"]).stdout.splitlines()[1].startswith("'=cmd")
    told = CliRunner().invoke(load("history"), ["--status"])
    assert "200 events of 4 days" in told.stdout
    assert "51 newer events wait" in told.stdout


# -- the process ---------------------------------------------------------------------------------------------------------


def test_the_process_follows_and_ends_when_told(tmp_path: Path) -> None:
    """It writes what there is, waits for more, and SIGTERM ends it."""
    fill(tmp_path, [[webhook(range(50))]])
    (tmp_path / "midflight.yaml").write_text(
        json.dumps({"data": str(tmp_path), "sources": {"sendgrid": {"kind": "sendgrid", "unsigned": True}}})
    )
    environment = os.environ | {"MIDFLIGHT_CONFIG": str(tmp_path / "midflight.yaml")}
    process = subprocess.Popen([sys.executable, "-m", "midflight", "history"], env=environment)
    try:
        wait = threading.Event()
        for _ in range(600):
            if stored(tmp_path) == expected(tmp_path):
                break
            wait.wait(0.05)
        assert stored(tmp_path) == expected(tmp_path)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) > os.getpriority(os.PRIO_PROCESS, 0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


def test_a_disk_that_refuses_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk ends nothing; afterwards every event is there once."""
    fill(tmp_path, [[webhook(range(50))]])
    stop, failures = threading.Event(), []
    publish = Exporter._publish

    def refuses(self: Exporter, query: str, place: str, name: str) -> None:
        if len(failures) < 2:
            failures.append(name)
            raise OSError(28, "No space left on device")
        publish(self, query, place, name)
        stop.set()

    monkeypatch.setattr(Exporter, "_publish", refuses)
    monkeypatch.setattr("midflight.serve.history.retry_s", 0.01)
    run(settings_of(tmp_path), stop)
    assert failures == [part_name(0, 1)] * 2
    assert stored(tmp_path) == expected(tmp_path)
    (day,) = status(settings_of(tmp_path))["days"]
    assert (day["day"], day["parts"], day["events"]) == ("2025-11-24", 1, 50)
