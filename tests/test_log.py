"""The log on real files: what it promises to those who append and read, and to those who share or lose a disk."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simdisk import Inode, SimDisk, folder

from midflight.cli import main
from midflight.kit.clock import VirtualClock
from midflight.kit.errors import Damaged, Locked, MidflightError
from midflight.log import Full, GroupCommit, NotKept, Overloaded, Reader, Record, Stored, TooLarge, Unwritable, Writer
from midflight.log.disk import OsDisk
from midflight.log.format import FRAME, RECORDS, data_offset, frame_bytes
from midflight.log.repair import repair
from midflight.log.verify import stats, verify

PROJECT = Path(__file__).parent.parent
small = {"segment_bytes": 24 * 1024, "reserve_bytes": 0}


def record(body: bytes) -> Record:
    return Record("webhook", "sendgrid", 0, {"content-type": "application/json"}, body)


def read_all(log: Path | str, bytes_max: int = 1 << 20, disk: SimDisk | None = None) -> list[Record]:
    found: list[Record] = []
    with Reader(log, disk) as reader:
        position = reader.first()
        while records := reader.read(position, bytes_max):
            found += records
            position = records[-1].position + 1
    return found


def bodies(log: Path | str, disk: SimDisk | None = None) -> dict[int, bytes]:
    return {r.position: r.body for r in read_all(log, disk=disk)}


def filled(log: Path, appends: int = 60, lives: int = 3, clock: VirtualClock | None = None) -> list[bytes]:
    """Write a log of several segments in several lives; returns the bodies in order."""
    rng, written = random.Random(5), []
    for _ in range(lives):
        with Writer.open(log, clock=clock, **small) as writer:
            for _ in range(appends // lives):
                group = [rng.randbytes(rng.choice((5, 300, 900, 2500))) for _ in range(rng.randint(1, 3))]
                assert writer.append([record(b) for b in group]) == (len(written), len(written) + len(group))
                written += group
    return written


# -- append and read


def test_what_was_appended_is_read(tmp_path: Path) -> None:
    """All fields come back, with the position and the append time."""
    clock = VirtualClock(1_000)
    given = Record("track", "site", 77, {"a": "b"}, b"\x00\xff", "/v1/track?x=1", 99)
    with Writer.open(tmp_path / "log", clock=clock) as writer:
        assert writer.append([given, record(b"two")]) == (0, 2)
        one, two = read_all(tmp_path / "log")
    assert one == Record("track", "site", 1_000, {"a": "b"}, b"\x00\xff", "/v1/track?x=1", 0)
    assert (two.position, two.at_us, two.body) == (1, 1_000, b"two")


def test_append_time_never_goes_back(tmp_path: Path) -> None:
    """A clock that steps back, also between two lives of the writer, leaves the append times in order."""
    clock = VirtualClock(10_000)
    for step in (500, -4_000, 100, -9_000, 20_000):
        with Writer.open(tmp_path / "log", clock=clock) as writer:
            for _ in range(3):
                clock.at_us += step // 3
                writer.append([record(b"x")])
    times = [r.at_us for r in read_all(tmp_path / "log")]
    assert times == sorted(times)
    assert times[-1] > 10_500


@pytest.mark.parametrize("bytes_max", [1, 700, 5_000, 1 << 20])
def test_any_piece_size_gives_the_same_records(tmp_path: Path, bytes_max: int) -> None:
    """However much is read at a time, it is the same records in the same order."""
    written = filled(tmp_path / "log")
    found = read_all(tmp_path / "log", bytes_max)
    assert [r.body for r in found] == written
    assert [r.position for r in found] == list(range(len(written)))


def test_jumping_anywhere_finds_the_record(tmp_path: Path) -> None:
    """Reading from any position, in any order, starts exactly there."""
    written = filled(tmp_path / "log")
    order = list(range(len(written))) * 2
    random.Random(1).shuffle(order)
    with Reader(tmp_path / "log") as reader:
        for position in order:
            found = reader.read(position, 1)
            assert (found[0].position, found[0].body) == (position, written[position])
        assert reader.read(len(written)) == []
        assert reader.read(len(written) + 5) == []


def test_a_reader_follows_a_writer(tmp_path: Path) -> None:
    """A reader that was there before the log gets every record once, across segments and lives of the writer."""
    log, expected, found = tmp_path / "log", [], []
    with Reader(log) as reader:
        assert reader.head() == reader.first() == 0
        assert reader.read(0) == []
        for life in range(4):
            with Writer.open(log, **small) as writer:
                for number in range(25):
                    expected.append(b"%d/%d" % (life, number) * 200)
                    writer.append([record(expected[-1])])
                    found += [r.body for r in reader.read(len(found))]
                    assert len(found) == reader.head() == writer.position
    assert found == expected


def test_nothing_undurable_is_served(tmp_path: Path) -> None:
    """While a sync is still on its way, readers do not see its records."""
    seen: list[int] = []

    class Watched(SimDisk):
        def fdatasync(self, fd: int) -> None:
            if watching:
                seen.append(len(bodies(folder, self)))
            super().fdatasync(fd)

    disk, watching = Watched(), False
    writer = Writer.open(folder, disk, **small)
    watching = True
    for _ in range(3):
        writer.append([record(b"x")])
    assert seen == [0, 1, 2]


def test_a_long_append_becomes_several_frames(tmp_path: Path) -> None:
    """Thirty megabytes in one append are stored in order, in frames that a reader can hold."""
    with Writer.open(tmp_path / "log", reserve_bytes=0) as writer:
        assert writer.append([record(b"%02d" % n * 500_000) for n in range(30)]) == (0, 30)
    assert [r.body[:2] for r in read_all(tmp_path / "log")] == [b"%02d" % n for n in range(30)]
    assert verify(tmp_path / "log").frames > 3


def test_a_record_larger_than_a_frame_is_refused(tmp_path: Path) -> None:
    """It is refused before anything is written, and the log goes on."""
    with Writer.open(tmp_path / "log") as writer:
        with pytest.raises(TooLarge):
            writer.append([record(b"ok"), record(bytes(49 * 1024 * 1024))])
        assert writer.append([record(b"next")]) == (0, 1)
        assert writer.append([record(bytes(20 * 1024 * 1024))]) == (1, 2)
    assert [len(r.body) for r in read_all(tmp_path / "log")] == [4, 20 * 1024 * 1024]


def test_nothing_is_appended_by_an_empty_list(tmp_path: Path) -> None:
    """No records, no frame."""
    with Writer.open(tmp_path / "log", **small) as writer:
        assert writer.append([]) == (0, 0)
    assert verify(tmp_path / "log").frames == 0


def test_the_bytes_on_disk_are_version_1() -> None:
    """The format is what it was: the same appends give the same bytes. Whoever changes it raises VERSION and reads the old one."""
    disk, clock = SimDisk(), VirtualClock()
    writer = Writer.open(folder, disk, clock, **small)
    for number in range(20):
        clock.at_us += 10
        writer.append([record(b"%d" % number * 300)])
    writer.close()
    segments = sorted(name for name in disk.names if name.endswith(".seg"))
    digest = hashlib.sha256(b"".join(bytes(disk.names[name].live) for name in segments)).hexdigest()
    assert digest == "45821000a0b60ece3945b2eef8efa1e8aa7825384eba8759312207876b108a56"


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """An older Midflight says in one line that the log is newer, instead of calling it damaged."""
    from xxhash import xxh3_128_digest

    filled(tmp_path / "log", 3, 1)
    path = tmp_path / "log" / "epoch"
    data = bytearray(path.read_bytes())
    data[24] = 9
    data[:16] = xxh3_128_digest(bytes(data[16:512]))
    path.write_bytes(data)
    with pytest.raises(MidflightError, match="newer Midflight: expected format 1, got 9"):
        Writer.open(tmp_path / "log")


# -- retention


def test_retention_removes_whole_old_segments(tmp_path: Path) -> None:
    """Segments go when all of their records are older; what is left is unchanged; what is gone is said to be gone."""
    clock, log = VirtualClock(0), tmp_path / "log"
    with Writer.open(log, clock=clock, **small) as writer:
        for number in range(60):
            clock.at_us = number * 1_000
            writer.append([record(b"%d" % number * 700)])
        before = bodies(log)
        assert writer.retain(older_than_us=0) == 0
        assert writer.retain(older_than_us=40_000, keep_from=12) <= 12
        first = writer.retain(older_than_us=40_000)
        assert 20 < first <= 40
        assert bodies(log) == {p: b for p, b in before.items() if p >= first}
        with Reader(log) as reader, pytest.raises(NotKept, match=f"expected {first} or later, got {first - 1}"):
            reader.read(first - 1)
        # The last segment stays, however old it is.
        last = writer.retain(older_than_us=1 << 60)
        assert bodies(log) == {p: b for p, b in before.items() if p >= last} != {}
    with Writer.open(log, clock=clock, **small) as writer:
        assert writer.first == last
        writer.append([record(b"on")])
    assert verify(log).sound
    assert verify(log).first == last


# -- group commit


class Results:
    """Collects what becomes of submissions."""

    def __init__(self) -> None:
        self.outcomes: dict[int, object] = {}
        self.batches: list[int] = []

    def deliver(self, results: list) -> None:
        self.batches.append(len(results))
        for done, outcome in results:
            done(outcome)

    def note(self, number: int) -> Callable[[object], None]:
        return lambda outcome: self.outcomes.__setitem__(number, outcome)


def test_group_commit_stores_what_waits_together(tmp_path: Path) -> None:
    """Submissions of several threads are all stored, each in one piece, many with one sync."""
    results, log = Results(), tmp_path / "log"
    with Writer.open(log) as writer:
        commit = GroupCommit(writer, results.deliver)

        def submit(thread: int) -> None:
            for number in range(thread * 200, thread * 200 + 200):
                commit.submit([record(b"%d a" % number), record(b"%d b" % number)], results.note(number))

        threads = [threading.Thread(target=submit, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        commit.close()
    found = bodies(log)
    assert sum(results.batches) == len(results.outcomes) == 800
    assert max(results.batches) > 1
    for number, outcome in results.outcomes.items():
        assert isinstance(outcome, Stored)
        assert [found[p] for p in range(outcome.first, outcome.end)] == [b"%d a" % number, b"%d b" % number]


def test_group_commit_reports_failures_and_goes_on() -> None:
    """A refused append fails exactly the submissions in it; the next ones are tried for themselves."""
    disk, results = SimDisk(), Results()
    writer = Writer.open(folder, disk, **small)
    commit = GroupCommit(writer, results.deliver)
    waiting = threading.Event()

    def submit(number: int) -> object:
        waiting.clear()
        commit.submit([record(b"%d" % number)], lambda outcome: (results.note(number)(outcome), waiting.set()))
        assert waiting.wait(10)
        return results.outcomes[number]

    assert isinstance(submit(0), Stored)
    disk.fault = lambda name, path: OSError(28, "full", path) if name == "pwrite" else None
    assert isinstance(submit(1), Full)
    disk.fault = lambda name, path: OSError(5, "bad", path) if name == "fdatasync" else None
    assert isinstance(submit(2), Unwritable)
    disk.fault = None
    assert submit(3) == Stored(1, 2)
    commit.close()
    assert list(bodies(folder, disk).values()) == [b"0", b"3"]
    with pytest.raises(MidflightError, match="closing"):
        commit.submit([record(b"late")], results.note(4))


def test_group_commit_bounds_what_waits() -> None:
    """More than waiting_bytes_max is refused at once, and taken again when the disk has caught up."""
    gate, reached = threading.Event(), threading.Event()

    class Slow(SimDisk):
        def fdatasync(self, fd: int) -> None:
            if self.fault is not None:
                reached.set()
                gate.wait(10)
            super().fdatasync(fd)

    disk, results = Slow(), Results()
    writer = Writer.open(folder, disk, **small)
    disk.fault = lambda name, path: None
    commit = GroupCommit(writer, results.deliver, waiting_bytes_max=10_000)
    commit.submit([record(bytes(6_000))], results.note(0))
    assert reached.wait(10)
    with pytest.raises(Overloaded):
        commit.submit([record(bytes(6_000))], results.note(1))
    gate.set()
    commit.close()
    assert results.outcomes == {0: Stored(0, 1)}


def test_group_commit_survives_a_listener_that_fails() -> None:
    """When results cannot be delivered, as to a loop that has ended, later submissions are stored all the same."""
    disk, delivered = SimDisk(), threading.Event()
    writer = Writer.open(folder, disk, **small)

    def deliver(results: list) -> None:
        if not delivered.is_set():
            delivered.set()
            raise RuntimeError("Event loop is closed")

    commit = GroupCommit(writer, deliver)
    commit.submit([record(b"one")], print)
    assert delivered.wait(10)
    commit.submit([record(b"two")], print)
    commit.close()
    assert list(bodies(folder, disk).values()) == [b"one", b"two"]


def test_the_folders_above_the_log_are_durable_too(tmp_path: Path) -> None:
    """A power cut must not take the folder with the log in it: each new folder's name is synced where it stands."""
    synced: list[str] = []

    class Noted(OsDisk):
        def fsync_folder(self, path: str) -> None:
            synced.append(path)
            super().fsync_folder(path)

    Writer.open(tmp_path / "data" / "log", Noted(), **small).close()
    assert synced[:2] == [str(tmp_path), str(tmp_path / "data")]


# -- several processes

WRITER = """
import sys
from midflight.log import Reader, Record, Writer
from midflight.kit.errors import MidflightError
log, run = sys.argv[1:3]
try:
    writer = Writer.open(log, segment_bytes=64 * 1024, reserve_bytes=0)
    number = 0
    while True:
        group = [Record("webhook", "s", 0, {}, f"{run}:{number}:{i}:".encode() + b"x" * 500) for i in range(1 + number % 3)]
        first, end = writer.append(group)
        print(first, *(r.body.decode().rpartition(":")[0] for r in group), flush=True)
        number += 1
except MidflightError as error:
    print(type(error).__name__, flush=True)
"""


def start_writer(log: Path, run: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.Popen([sys.executable, "-c", WRITER, str(log), str(run)], stdout=subprocess.PIPE, text=True, env=environment)


def acknowledged_from(lines: list[str]) -> dict[int, bytes]:
    """Return position -> start of the body, from what a writer process printed."""
    found: dict[int, bytes] = {}
    for line in lines:
        if line.endswith("\n") and line[0].isdigit():
            first, *starts = line.split()
            found.update({int(first) + i: start.encode() for i, start in enumerate(starts)})
    return found


def test_thirty_killed_writers_lose_nothing(tmp_path: Path) -> None:
    """SIGKILL at any moment: every acknowledged record is there, nothing is twice, and the next writer starts."""
    log, rng, acknowledged = tmp_path / "log", random.Random(9), {}
    for run in range(30):
        writer = start_writer(log, run)
        lines = [writer.stdout.readline() for _ in range(rng.randint(1, 60))]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
        writer.wait()
        writer.stdout.close()
        new = acknowledged_from(lines)
        assert new
        assert not set(new) & set(acknowledged)
        acknowledged |= new
    with Writer.open(log, reserve_bytes=0) as writer:
        assert writer.position >= len(acknowledged)
    found = bodies(log)
    assert sorted(found) == list(range(len(found)))
    assert all(found[position].startswith(start + b":") for position, start in acknowledged.items())
    assert verify(log).sound


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """While one process writes, another cannot, and is told which one it is; a reader can."""
    log = tmp_path / "log"
    with Writer.open(log, **small) as writer:
        writer.append([record(b"mine")])
        second = start_writer(log, 1)
        assert second.communicate(timeout=30)[0] == "Locked\n"
        with pytest.raises(Locked, match=f"process {os.getpid()}"):
            Writer.open(log)
        assert list(bodies(log).values()) == [b"mine"]
        writer.append([record(b"still mine")])
    assert list(bodies(log).values()) == [b"mine", b"still mine"]


def test_a_stopped_writer_wakes_up_locked_out(tmp_path: Path) -> None:
    """A paused process keeps its lock; when somebody deletes the lock file and another takes over, it can write no more."""
    log = tmp_path / "log"
    stopped = start_writer(log, 7)
    lines = [stopped.stdout.readline() for _ in range(20)]
    stopped.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(Locked):
            Writer.open(log, **small)
        (log / "lock").unlink()
        with Writer.open(log, **small) as successor:
            mine = successor.append([record(b"successor")])[0]
            stopped.send_signal(signal.SIGCONT)
            lines += stopped.stdout.readlines()
            assert lines[-1] == "Locked\n"
            assert successor.append([record(b"successor")])[0] == mine + 1
    finally:
        stopped.kill()
        stopped.wait()
        stopped.stdout.close()
    found, acknowledged = bodies(log), acknowledged_from(lines)
    assert not {mine, mine + 1} & set(acknowledged)
    assert all(found[position].startswith(start + b":") for position, start in acknowledged.items())
    assert found[mine] == found[mine + 1] == b"successor"
    assert verify(log).sound


def test_a_writer_whose_lock_file_is_deleted_stops(tmp_path: Path) -> None:
    """Without its lock file a writer cannot know that it is alone, so it acknowledges nothing more."""
    log = tmp_path / "log"
    writer = Writer.open(log, **small)
    writer.append([record(b"one")])
    (log / "lock").unlink()
    for _ in range(2):
        with pytest.raises(Locked, match="taken this log over"):
            writer.append([record(b"two")])
    writer.close()
    with Writer.open(log, **small) as writer:
        writer.append([record(b"three")])
    assert list(bodies(log).values()) == [b"one", b"three"]


# -- no space


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of three megabytes."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mount)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("only root may mount a small disk; the next test fills one in another way")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def fill_until_refused(writer: Writer, expected: list[bytes]) -> Full:
    for _ in range(2_000):
        body = b"%d" % len(expected) * 1_000
        try:
            writer.append([record(body)])
        except Full as error:
            return error
        expected.append(body)
    raise AssertionError("the disk never got full")


def test_a_full_disk_refuses_and_goes_on_by_itself(small_disk: Path) -> None:
    """Full is said, not a byte is lost, the reserve is given back to others, and with space the same writer goes on."""
    log, ballast = small_disk / "log", small_disk / "ballast"
    sizes = {"segment_bytes": 256 * 1024, "reserve_bytes": 256 * 1024}
    expected: list[bytes] = []
    with Writer.open(log, **sizes) as writer:
        ballast.write_bytes(bytes(1024 * 1024))
        assert (log / "reserve").stat().st_size == 256 * 1024
        error = fill_until_refused(writer, expected)
        assert error.status == 429
        assert not (log / "reserve").exists()
        (small_disk / "checkpoint").write_bytes(bytes(200 * 1024))
        for _ in range(3):
            with pytest.raises(Full):
                writer.append([record(bytes(4_000))])
        assert list(bodies(log).values()) == expected
        ballast.unlink()
        (small_disk / "checkpoint").unlink()
        for number in range(20):
            expected.append(b"again %d" % number * 500)
            writer.append([record(expected[-1])])
        assert (log / "reserve").exists()
        assert list(bodies(log).values()) == expected
    assert verify(log).sound


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    """What a quota or a limit refuses is refused to the sender; when it is lifted the writer goes on."""
    expected: list[bytes] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Writer.open(tmp_path / "log", segment_bytes=128 * 1024, reserve_bytes=0) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
        try:
            error = fill_until_refused(writer, expected)
            assert "EFBIG" in str(error)
            assert list(bodies(tmp_path / "log").values()) == expected
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        expected.append(b"after")
        writer.append([record(b"after")])
    assert list(bodies(tmp_path / "log").values()) == expected
    assert verify(tmp_path / "log").sound


# -- damage

FLIPS, TRUNCATIONS, BLOCKS = (int(n) for n in os.environ.get("MIDFLIGHT_DAMAGES", "20000,2000,2000").split(","))


def damage_base(closed: bool) -> tuple[dict[str, bytes], dict[int, bytes]]:
    """Return the files of a log of three segments, left in order or as by a kill, and its records."""
    disk, rng, truth = SimDisk(), random.Random(3), {}
    for life in range(2):
        writer = Writer.open(folder, disk, VirtualClock(), segment_bytes=16 * 1024, reserve_bytes=0)
        for _ in range(6):
            group = [rng.randbytes(rng.choice((5, 300, 900))) for _ in range(rng.randint(1, 3))]
            first, _ = writer.append([record(b) for b in group])
            truth.update(enumerate(group, first))
        if closed or life == 0:
            writer.close()
        disk.kill()
    files = {name: bytes(inode.live) for name, inode in disk.names.items() if not name.endswith(("lock", ".making"))}
    return files, truth


def disk_of(files: dict[str, bytes]) -> SimDisk:
    disk = SimDisk()
    for name, data in files.items():
        inode = Inode(disk.next_inode)
        disk.next_inode += 1
        inode.live, inode.durable = bytearray(data), bytearray(data)
        disk.names[name] = disk.durable_names[name] = inode
    return disk


def judge(files: dict[str, bytes], truth: dict[int, bytes]) -> str:
    """Return ``found`` or ``harmless`` for a damaged log; anything else is a failure of the promise."""
    disk = disk_of(files)
    sound = verify(folder, disk=disk).sound
    served: dict[int, bytes] = {}
    refused = False
    try:
        with Reader(folder, disk) as reader:
            position = reader.first()
            while records := reader.read(position):
                served.update({r.position: r.body for r in records})
                position = records[-1].position + 1
    except Damaged:
        refused = True
    assert all(truth[position] == body for position, body in served.items()), "a wrong record was served"
    if not sound:
        return "found"
    assert not refused, "the reader finds what verify does not"
    Writer.open(folder, disk, VirtualClock(), **small).close()
    assert bodies(folder, disk) == truth, "records are lost and nobody says so"
    return "harmless"


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def block_lost(data: bytes, rng: random.Random) -> bytes:
    """Zero one 4 KiB block, or swap two."""
    changed, size = bytearray(data), 4096
    blocks = -(-len(changed) // size)
    one, two = rng.randrange(blocks) * size, rng.randrange(blocks) * size
    if rng.random() < 0.5:
        changed[one : one + size] = bytes(len(changed[one : one + size]))
    else:
        first, second = changed[one : one + size], changed[two : two + size]
        if len(first) == len(second):
            changed[one : one + size], changed[two : two + size] = second, first
    return bytes(changed)


@pytest.mark.parametrize(
    ("change", "count"), [(flipped, FLIPS), (truncated, TRUNCATIONS), (block_lost, BLOCKS)], ids=["bits", "truncations", "blocks"]
)
def test_damage_is_found_or_harmless(change: Callable, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Each damaged log is named by `verify`, or gives exactly the records that were written; a wrong one is never served."""
    rng, verdicts = random.Random(11), {"found": 0, "harmless": 0}
    bases = [damage_base(closed=True), damage_base(closed=False)]
    for number in range(count):
        files, truth = bases[number % 2]
        # Bytes are hit, so a file is as likely as it is long; the small files get a share of their own.
        names = sorted(files)
        name = rng.choice(names) if rng.random() < 0.1 else rng.choices(names, [len(files[n]) for n in names])[0]
        if change is flipped and name.endswith(".seg") and rng.random() < 0.5:
            data = files[name][:data_offset] + flipped(files[name][data_offset:].rstrip(b"\0") or b"\0", rng)
            data += files[name][len(data) :]
        else:
            data = change(files[name], rng)
        verdict = judge({**files, name: data}, truth)
        verdicts[verdict] += 1
    with capsys.disabled():
        print(f"\n{change.__name__}: {verdicts['found']} found, {verdicts['harmless']} harmless, 0 missed", end="")
    assert verdicts["found"] > count // 20


def test_a_reader_that_does_not_check_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without comparing checks, flipped bits are served as records or missed."""
    import midflight.log.format
    import midflight.log.reader

    class Agreeable(bytes):
        """A check that equals any other."""

        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

        __hash__ = bytes.__hash__

    files, truth = damage_base(closed=True)
    monkeypatch.setattr(midflight.log.reader, "xxh3_128_digest", lambda data, seed=0: Agreeable(16))
    monkeypatch.setattr(midflight.log.format, "xxh3_128_digest", lambda data, seed=0: Agreeable(16))
    rng, caught = random.Random(2), 0
    name = sorted(n for n in files if n.endswith(".seg"))[0]
    for _ in range(200):
        data = files[name][:data_offset] + flipped(files[name][data_offset:], rng)
        try:
            judge({**files, name: data}, truth)
        except (AssertionError, KeyError, MidflightError):
            caught += 1
    assert caught > 100


def test_a_forged_frame_in_a_body_is_not_believed(tmp_path: Path) -> None:
    """A sender who knows the format cannot make the recovery take bytes of a torn body for a frame, and so for damage."""
    disk = SimDisk()
    writer = Writer.open(folder, disk, **small)
    writer.append([record(b"kept")])
    forged = frame_bytes(0, RECORDS, b"\x90", count=0, first=1, epoch=1, at_us=1, chain=bytes(16))
    writer.append([record(forged * 20)])
    path, inode = next((p, i) for p, i in disk.names.items() if p.endswith(".seg"))
    start = inode.live.index(b"MFfr", data_offset + 512) - 16
    # The second frame's own header is torn; its body, full of frames, is on the disk, each on a sector.
    aligned = -(-(start + FRAME.size + 60) // 512) * 512
    inode.live[start : start + 512] = bytes(512)
    inode.live[aligned : aligned + len(forged) * 20] = forged * 20
    disk.names.pop(f"{folder}/head")
    disk.kill()
    with Writer.open(folder, disk, **small) as again:
        assert again.position == 1
    assert list(bodies(folder, disk).values()) == [b"kept"], path


def test_damage_in_the_middle_is_named_and_repaired(tmp_path: Path) -> None:
    """Reading stops before it and names file and offset; a repair keeps all the rest at the same positions."""
    log = tmp_path / "log"
    written = filled(log)
    path = sorted(log.glob("*.seg"))[2]
    data = bytearray(path.read_bytes())
    offset = data.index(b"MFfr", data_offset + 512) - 16
    data[offset + 200] ^= 4
    path.write_bytes(data)
    with pytest.raises(Damaged, match=rf"{path.name} at byte {offset}"):
        read_all(log)
    report = verify(log)
    assert [(d.file, d.offset) for d in report.damage] == [(str(path), offset)]
    mended, aside = repair(log)
    assert mended.sound
    assert [Path(p).read_bytes() for p in aside] == [bytes(data)]
    found = bodies(log)
    lost = set(range(len(written))) - set(found)
    assert 0 < len(lost) == mended.given_up <= 3
    assert all(written[p] == body for p, body in found.items())
    with Writer.open(log, **small) as writer:
        assert writer.append([record(b"on")])[0] == len(written)
    assert bodies(log)[len(written)] == b"on"
    assert repair(log)[1] == []


@pytest.mark.parametrize("which", [0, 1, -1], ids=["first", "middle", "last"])
def test_a_missing_segment_is_named_and_repaired(tmp_path: Path, which: int) -> None:
    """A segment that is gone is named by the position it starts at; the others are kept."""
    log = tmp_path / "log"
    written = filled(log)
    segments = sorted(log.glob("*.seg"))
    first = int(segments[which].name[:20])
    segments[which].unlink()
    with pytest.raises(Damaged, match=f"position {first} is missing"):
        Writer.open(log)
    with pytest.raises(Damaged):
        read_all(log)
    assert not verify(log).sound
    assert repair(log)[0].sound
    kept = bodies(log)
    assert all(written[p] == body for p, body in kept.items())
    assert len(kept) > len(written) // 2
    with Writer.open(log, **small) as writer:
        assert writer.append([record(b"on")])[0] >= len(written)


def test_swapped_segments_are_named_and_put_back(tmp_path: Path) -> None:
    """Two files with each other's names are both named, and a repair loses nothing."""
    log = tmp_path / "log"
    written = filled(log)
    one, two = sorted(log.glob("*.seg"))[1:3]
    one.rename(log / "x")
    two.rename(one)
    (log / "x").rename(two)
    assert {d.file for d in verify(log).damage} >= {str(one), str(two)}
    assert repair(log)[0].sound
    assert list(bodies(log).values()) == written


def test_a_lost_epoch_file_is_named_and_made_again(tmp_path: Path) -> None:
    """The log does not open without it, because it cannot know what retention removed; a repair makes it from the segments."""
    log = tmp_path / "log"
    written = filled(log)
    (log / "epoch").unlink()
    with pytest.raises(Damaged, match="epoch file is missing"):
        Writer.open(log)
    assert repair(log)[0].sound
    with Writer.open(log, **small) as writer:
        assert writer.position == len(written)
    assert list(bodies(log).values()) == written


def test_verify_beside_a_writer_raises_no_false_alarm(tmp_path: Path) -> None:
    """While records come in, segments change and old ones go, `verify` finds nothing wrong, and a reader serves all."""
    log, stop = tmp_path / "log", threading.Event()
    clock = VirtualClock()

    def write() -> None:
        number = 0
        while not stop.is_set():
            with Writer.open(log, clock=clock, **small) as writer:
                for _ in range(40):
                    clock.at_us += 1_000
                    writer.append([record(b"%d" % number * 300)])
                    number += 1
                writer.retain(clock.at_us - 100_000)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with Reader(log) as reader:
            while reader.head() < 200:
                stop.wait(0.01)
            position = reader.head()
            for _ in range(40):
                report = verify(log)
                assert report.sound, report.damage
                for found in reader.read(position):
                    assert found.position == position
                    position += 1
    finally:
        stop.set()
        thread.join()


def test_repair_is_refused_beside_a_writer(tmp_path: Path) -> None:
    """A log that somebody writes to is not touched."""
    with Writer.open(tmp_path / "log", **small):
        with pytest.raises(Locked):
            repair(tmp_path / "log")


# -- the command line


def test_the_command_line_shows_verifies_and_repairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`stats`, `tail` with nothing that steers a terminal, `verify` that exits 1 on damage, `repair` that mends it."""

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["log", *arguments, "--data", str(tmp_path)])
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out + (shown.err if ended.value.code == 2 else "")

    written = filled(tmp_path / "log")
    with Writer.open(tmp_path / "log", **small) as writer:
        writer.append([record(b'{"email":"\x1b[31m\x07\x7f\xc2\x9bred\xff"}')])
    found = json.loads(run("stats", "--json")[1])
    assert (found["first"], found["head"]) == (0, len(written) + 1) == (0, stats(tmp_path / "log").head)
    assert f"{len(written) + 1:,} records" in run("stats")[1]
    _, tail = run("tail", "-n", "2")
    assert len(tail.splitlines()) == 2
    assert tail.replace("\n", "").isprintable() and tail.isascii()
    last = json.loads(tail.splitlines()[-1])
    assert (last["position"], last["source"]) == (len(written), "sendgrid")
    assert last["body"] == '{"email":"\x1b[31m\x07\x7f\x9bred\\xff"}'
    assert json.loads(run("tail", "--from", "3", "--body", "4")[1].splitlines()[0])["position"] == 3
    assert run("verify")[0] == 0
    path = sorted((tmp_path / "log").glob("*.seg"))[0]
    broken = bytearray(path.read_bytes())
    broken[data_offset + 30] ^= 1
    path.write_bytes(broken)
    status, shown = run("verify")
    assert status == 1
    assert f"damaged: {path} bytes {data_offset}" in shown
    assert run("tail", "--from", "0")[0] == 3
    status, shown = run("repair")
    assert status == 0
    assert "the original is kept" in shown
    assert run("verify", "--json")[0] == 0
    shutil.rmtree(tmp_path / "log")
    assert run("stats")[0] == 2


# -- any order of everything, against a list


class LogMachine(RuleBasedStateMachine):
    """A log beside a plain list, which it always has to equal."""

    @initialize()
    def start(self) -> None:
        self.disk, self.clock = SimDisk(), VirtualClock()
        self.model: list[tuple[bytes, int]] = []
        self.first = 0
        self.refused = False  # whether the last append was
        self.reader = Reader(folder, self.disk)
        self.followed = 0
        self.open()

    def open(self) -> None:
        self.writer = Writer.open(folder, self.disk, self.clock, segment_bytes=12 * 1024, reserve_bytes=0)

    @rule(sizes=st.lists(st.integers(0, 3_000), min_size=1, max_size=4), step=st.integers(-50, 500))
    def append(self, sizes: list[int], step: int) -> None:
        self.clock.at_us += step
        at_us = max(self.clock.at_us, self.model[-1][1] if self.model else 0)
        group = [bytes([len(self.model) % 251]) * size for size in sizes]
        assert self.writer.append([record(b) for b in group]) == (len(self.model), len(self.model) + len(group))
        self.model += [(b, at_us) for b in group]
        self.refused = False

    @rule()
    def close_and_open(self) -> None:
        self.writer.close()
        self.refused = False
        self.open()

    @rule()
    def kill_and_open(self) -> None:
        self.disk.kill()
        self.after_death()

    @rule(seed=st.integers(0, 1 << 16))
    def cut_and_open(self, seed: int) -> None:
        self.disk = self.disk.crash(random.Random(seed))
        self.after_death()

    def after_death(self) -> None:
        """Start again. A record that was refused just before may be there: nobody was told that it is not."""
        self.reader = Reader(folder, self.disk)
        self.open()
        if self.refused and self.writer.position == len(self.model) + 1:
            (found,) = self.reader.read(len(self.model))
            assert found.body == b"try"
            self.model.append((found.body, found.at_us))
        self.refused = False

    @rule(name=st.sampled_from(["pwrite", "fdatasync", "allocate", "rename", "fsync_folder"]), after=st.integers(0, 6))
    def fail_once(self, name: str, after: int) -> None:
        left = [after]

        def plan(operation: str, path: str) -> OSError | None:
            left[0] -= operation == name
            return OSError(5, "bad", path) if operation == name and left[0] == -1 else None

        self.disk.fault = plan
        try:
            first, end = self.writer.append([record(b"try")])
            self.model.append((b"try", max(self.clock.at_us, self.model[-1][1] if self.model else 0)))
            assert (first, end) == (len(self.model) - 1, len(self.model))
            self.refused = False
        except Unwritable:
            assert self.writer.position == len(self.model)
            self.refused = True
        self.disk.fault = None
        if not self.refused:
            # If it was the note for readers that failed, the next commit makes up for it.
            self.append([3], 0)

    @rule(age=st.integers(0, 3_000), holder=st.one_of(st.none(), st.integers(0, 50)))
    def retain(self, age: int, holder: int | None) -> None:
        first = self.writer.retain(self.clock.at_us - age, holder)
        assert first >= self.first
        assert all(at_us < self.clock.at_us - age for _, at_us in self.model[self.first : first])
        assert holder is None or first <= max(holder, self.first)
        self.first = first

    @precondition(lambda self: len(self.model) > self.first)
    @rule(data=st.data())
    def read_somewhere(self, data: st.DataObject) -> None:
        position = data.draw(st.integers(self.first, len(self.model) - 1))
        found = self.reader.read(position, data.draw(st.sampled_from([1, 2_000, 50_000])))
        assert [(r.body, r.at_us) for r in found] == self.model[position : position + len(found)]
        assert found[0].position == position

    @precondition(lambda self: self.first > 0)
    @rule()
    def read_what_is_gone(self) -> None:
        with pytest.raises(NotKept):
            self.reader.read(self.first - 1)

    @invariant()
    def follows(self) -> None:
        self.followed = max(self.followed, self.first)
        while found := self.reader.read(self.followed):
            assert [(r.body, r.at_us) for r in found] == self.model[self.followed : self.followed + len(found)]
            self.followed += len(found)
        assert self.followed == len(self.model) == self.writer.position
        assert (self.reader.first(), self.reader.head()) == (self.first, len(self.model))

    def teardown(self) -> None:
        self.writer.close()
        assert verify(folder, disk=self.disk).sound


def test_an_empty_segment_that_is_replaced_is_not_removed_as_old():
    """A start after a cut with nothing in the log, a first record that needs more room, retention: the live segment stays."""
    machine = LogMachine()
    machine.start()
    machine.cut_and_open(seed=0)
    machine.append(sizes=[402, 3000], step=0)
    machine.retain(age=0, holder=None)
    machine.append(sizes=[0], step=0)
    machine.follows()
    machine.teardown()


def test_an_epoch_file_whose_sync_failed_is_still_ours():
    """Two failing calls in a row while an append resumes: the writer does not take its own new epoch file for a stranger's."""
    machine = LogMachine()
    machine.start()
    machine.cut_and_open(seed=0)
    machine.append(sizes=[0], step=0)
    machine.cut_and_open(seed=0)
    machine.fail_once(after=0, name="pwrite")
    machine.fail_once(after=0, name="fsync_folder")
    machine.append(sizes=[0], step=0)
    machine.follows()
    machine.teardown()


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(max_examples=80, stateful_step_count=40)
