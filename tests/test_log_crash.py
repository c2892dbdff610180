"""Power cuts on a simulated disk: no acknowledged record is lost, nothing that was not written is served, the log always opens."""

from __future__ import annotations

import errno
import itertools
import os
import random

import pytest
from simdisk import SimDisk, folder

from midflight.kit.clock import VirtualClock
from midflight.kit.errors import Locked, MidflightError
from midflight.log.format import data_offset
from midflight.log.ownership import Ownership
from midflight.log.reader import Reader
from midflight.log.record import Record
from midflight.log.repair import repair
from midflight.log.writer import Writer

states_wanted = int(os.environ.get("MIDFLIGHT_CRASH_STATES", "100000"))
segment_bytes = 14 * 1024


def open_writer(disk: SimDisk, clock: VirtualClock | None = None) -> Writer:
    return Writer.open(folder, disk, clock or VirtualClock(), segment_bytes=segment_bytes, reserve_bytes=0)


def contents(disk: SimDisk) -> dict[int, bytes]:
    """Return every record a reader is given, by position; they have to stand side by side and in order of time."""
    reader = Reader(folder, disk)
    found: dict[int, bytes] = {}
    at_us = 0
    position = reader.first()
    while records := reader.read(position):
        for record in records:
            assert record.position == position, "a hole or a repetition"
            assert record.at_us >= at_us, "time went back"
            found[position], at_us = record.body, record.at_us
            position += 1
    assert position == reader.head(), "durable records are not served"
    reader.close()
    return found


class Story:
    """A random life of a log on a simulated disk: appends, closes, kills, retention; remembers what was acknowledged."""

    def __init__(self, seed: int, ignored: frozenset[str] = frozenset()) -> None:
        self.rng = random.Random(seed)
        self.disk = SimDisk(ignored)
        self.clock = VirtualClock()
        self.acknowledged: dict[int, bytes] = {}
        self.in_flight: list[bytes] = []
        self.kept_from = self.keep_from_next = 0
        self.writer: Writer | None = None

    def live(self, steps: int) -> None:
        self.writer = open_writer(self.disk, self.clock)
        for _ in range(steps):
            choice = self.rng.random()
            if choice < 0.8:
                self.append()
            elif choice < 0.87:
                self.writer.close()
                self.writer = open_writer(self.disk, self.clock)
            elif choice < 0.93:
                self.disk.kill()
                self.writer = open_writer(self.disk, self.clock)
            else:
                self.retain()
        self.writer.close()

    def append(self) -> None:
        self.clock.at_us += self.rng.randint(-5, 2000)
        bodies = [self.rng.randbytes(self.rng.choice((3, 40, 400, 1500))) for _ in range(self.rng.randint(1, 4))]
        self.in_flight = bodies
        first, end = self.writer.append([Record("webhook", "s", 0, {}, body) for body in bodies])
        assert end - first == len(bodies)
        self.acknowledged.update(zip(range(first, end), bodies, strict=True))
        self.in_flight = []

    def retain(self) -> None:
        self.keep_from_next = self.writer.position
        self.kept_from = self.writer.retain(self.clock.at_us + 1)
        self.keep_from_next = self.kept_from

    def wrong(self, disk: SimDisk) -> str | None:
        """Return what is wrong with a disk after a cut at this moment, None when the promise holds."""
        try:
            open_writer(disk).close()
            found = contents(disk)
        except MidflightError as error:
            return f"does not open: {error}"
        first = max(self.kept_from, self.keep_from_next)
        for position, body in self.acknowledged.items():
            if position >= first and found.get(position) != body:
                return f"record {position} is lost"
        end = max(self.acknowledged, default=-1) + 1
        for position, body in found.items():
            if position < end:
                if self.acknowledged[position] != body:
                    return f"record {position} is not what was written"
            elif position - end >= len(self.in_flight) or self.in_flight[position - end] != body:
                return f"record {position} was never written"
        return None


def explore(seed: int, per_operation: int, steps: int, ignored: frozenset[str] = frozenset()) -> tuple[int, int, list[str]]:
    """Cut the power after every operation of one story; returns states tried, distinct ones, and what was wrong."""
    story = Story(seed, ignored)
    rng = random.Random(seed + 1)
    wrong: list[str] = []
    seen: set[int] = set()
    tried = 0

    def cut(name: str) -> None:
        nonlocal tried
        for _ in range(per_operation):
            tried += 1
            disk = story.disk.crash(rng)
            key = disk.digest()
            if key in seen:
                continue
            seen.add(key)
            if rng.random() < 0.25:
                disk = cut_in_recovery(disk, rng)
            what = story.wrong(disk)
            if what:
                wrong.append(f"seed {seed}, state {tried}, after {name}: {what}")

    story.disk.after = cut
    try:
        story.live(steps)
    except MidflightError as error:
        wrong.append(f"seed {seed}: {error}")
    return tried, len(seen), wrong


class PowerCut(Exception):
    """The power goes, in the middle of something."""


def cut_in_recovery(disk: SimDisk, rng: random.Random) -> SimDisk:
    """Return the disk after another cut while the log was being recovered."""
    left = rng.randint(1, 25)

    def count(_: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise PowerCut

    disk.after = count
    try:
        open_writer(disk)
    except (PowerCut, MidflightError):
        # A log that a control has damaged may refuse to open before the second cut comes.
        pass
    disk.after = None
    return disk.crash(rng)


def test_no_power_cut_loses_an_acknowledged_record(capsys: pytest.CaptureFixture[str]) -> None:
    """Cut after every operation, in thousands of disk states, a quarter of them with a second cut during the recovery."""
    shown = explore_until(states_wanted, first_seed=0)
    with capsys.disabled():
        print(f"\npower cuts: {shown}")


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_a_million_power_cuts_lose_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """The same with other stories, for as long as a release is worth."""
    shown = explore_until(int(os.environ.get("MIDFLIGHT_CRASH_STATES_LONG", "1000000")), first_seed=1_000_000)
    with capsys.disabled():
        print(f"\npower cuts: {shown}")


def explore_until(wanted: int, first_seed: int) -> str:
    tried = distinct = stories = 0
    while tried < wanted:
        found = explore(first_seed + stories, per_operation=12, steps=25)
        assert found[2] == [], found[2][:5]
        tried, distinct, stories = tried + found[0], distinct + found[1], stories + 1
    return f"{tried} states, {distinct} distinct, {stories} stories, 0 lost"


def test_a_build_that_does_not_sync_is_caught() -> None:
    """The control: without fdatasync, at least a third of the states lose something."""
    tried = lost = 0
    for seed in range(4):
        states, _, wrong = explore(seed, per_operation=6, steps=25, ignored=frozenset({"fdatasync"}))
        tried, lost = tried + states, lost + len(wrong)
    assert lost >= 0.3 * tried, f"{lost} of {tried}"


def test_a_build_that_forgets_the_folder_is_caught() -> None:
    """The control for names: without syncing the folder after a rename, whole segments are lost."""
    lost = sum(len(explore(seed, 6, 25, frozenset({"fsync_folder"}))[2]) for seed in range(4))
    assert lost > 100


# -- a repair that is cut off


def damaged_disk(kind: str) -> SimDisk:
    """Return a disk with a log of some segments of which one is damaged."""
    disk, clock = SimDisk(), VirtualClock()
    for _ in range(2):
        writer = open_writer(disk, clock)
        for number in range(14):
            writer.append([Record("webhook", "s", 0, {}, b"%d" % number * 300)])
        writer.close()
    segments = sorted(name for name in disk.names if name.endswith(".seg"))
    assert len(segments) > 3
    victim = disk.names[segments[1]]
    if kind == "flip":
        victim.live[data_offset + 700] ^= 1
    elif kind == "header":
        victim.live[:data_offset] = bytes(data_offset)
    elif kind == "cut":
        del victim.live[data_offset + 1_024 :]
    elif kind == "missing":
        del disk.names[segments[1]]
    elif kind == "swapped":
        disk.names[segments[1]], disk.names[segments[2]] = disk.names[segments[2]], disk.names[segments[1]]
    else:
        disk.names[f"{folder}/epoch"].live[30] ^= 1
    for inode in disk.names.values():
        inode.durable = bytearray(inode.live)
    disk.durable_names = dict(disk.names)
    return disk


def kept_bodies(disk: SimDisk) -> dict[int, bytes]:
    reader, found = Reader(folder, disk), {}
    position = reader.first()
    while records := reader.read(position):
        found.update({r.position: r.body for r in records})
        position = records[-1].position + 1
    return found


@pytest.mark.parametrize("kind", ["flip", "header", "cut", "missing", "swapped", "epoch"])
def test_a_repair_may_be_cut_off_anywhere(kind: str) -> None:
    """Power cuts in the middle of a repair, then a repair that ends: it keeps what an undisturbed one keeps."""
    undisturbed = damaged_disk(kind)
    report, _ = repair(folder, disk=undisturbed)
    assert report.sound
    kept = kept_bodies(undisturbed)
    assert len(kept) >= 14
    rng, images = random.Random(4), []
    disk = damaged_disk(kind)
    disk.after = lambda _: images.extend(disk.crash(rng) for _ in range(3))
    repair(folder, disk=disk)
    assert len(images) > 30
    for image in images:
        mended, _ = repair(folder, disk=image)
        assert mended.sound, mended.damage
        open_writer(image).close()
        assert kept_bodies(image) == kept


# -- a writer that was paused while another took over


def takeover_at(number: int) -> bool:
    """Pause a writer after its N-th change of the disk or look at who owns it, let another take over and work, let it go on."""
    patient, changes, taken = Patient(), 0, False
    successor: dict[int, bytes] = {}
    writers: list[Writer] = []

    def succeed(i: int) -> None:
        body = b"successor %d" % i + bytes(900)
        first, _ = writers[0].append([Record("webhook", "s", 0, {}, body)])
        successor[first] = body

    def pause(_: str) -> None:
        nonlocal changes, taken
        changes += 1
        if changes != number or taken:
            return
        taken = True
        patient.disk.after = None
        # Somebody deleted the lock file, which is the only way in while the first process lives.
        patient.disk.names.pop(f"{folder}/lock", None)
        writers.append(open_writer(patient.disk))
        for i in range(4):
            succeed(i)

    patient.disk.after, patient.disk.looks_count = pause, True
    for _ in range(12):
        patient.append()
        if patient.errors:
            break
    if taken:
        # It may have been paused behind its last look; the next append is refused all the same.
        assert not patient.append()
        assert isinstance(patient.errors[-1], Locked), patient.errors
    patient.close()
    patient.disk.after = None
    if taken:
        # Also because the first one's last act may have been to show readers its own, older head.
        succeed(4)
        assert not set(patient.acknowledged) & set(successor), "both were told that they have the same position"
    patient.acknowledged.update(successor)
    patient.attempted.update(successor.values())
    patient.check(patient.disk)
    for image in (patient.disk, patient.disk.crash(random.Random(number)), patient.disk.crash(random.Random(-number))):
        image.kill()
        open_writer(image).close()
        patient.check(image)
    return taken


def test_a_writer_that_lost_the_log_acknowledges_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Paused after every single thing it does, then overtaken: what either acknowledged is there, once, and nothing else."""
    number = 1
    while takeover_at(number):
        number += 1
    with capsys.disabled():
        print(f"\nfenced writers: paused at {number - 1} points", end="")
    assert number > 50


def test_a_writer_that_does_not_look_again_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without looking at lock and epoch, an overtaken writer acknowledges what is not in the log."""
    monkeypatch.setattr(Ownership, "check", lambda self: None)
    monkeypatch.setattr(Ownership, "_check_lock", lambda self: None)
    caught = 0
    for number in range(50, 100):
        try:
            takeover_at(number)
        except (AssertionError, KeyError, MidflightError):
            caught += 1
    assert caught > 20


# -- every call failing, once and for ever

SHORT = "short"
FAULTS: dict[str, tuple[int | str, ...]] = {
    "pwrite": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR, SHORT),
    "fdatasync": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR),
    "fsync": (errno.EIO, errno.ENOSPC),
    "fsync_folder": (errno.EIO, errno.EACCES),
    "allocate": (errno.ENOSPC, errno.EDQUOT, errno.EINTR),
    "truncate": (errno.EIO, errno.EINTR),
    "open": (errno.EMFILE, errno.EACCES, errno.ENOSPC, errno.EROFS),
    "rename": (errno.EIO, errno.ENOSPC),
    "unlink": (errno.EIO, errno.EACCES),
    "pread": (errno.EIO, errno.EINTR),
    "listdir": (errno.EACCES, errno.EMFILE),
    "make_folder": (errno.EACCES,),
    "lock": (errno.EIO,),
    "size": (errno.EIO,),
    "identity": (errno.EIO,),
    "identity_at": (errno.EACCES,),
    "free_bytes": (errno.EIO,),
    "forget_cache": (errno.EIO,),
}


class Patient:
    """A user of the log who goes on in spite of errors and keeps account of what was acknowledged."""

    def __init__(self) -> None:
        self.disk = SimDisk()
        self.acknowledged: dict[int, bytes] = {}
        self.attempted: set[bytes] = set()
        self.writer: Writer | None = None
        self.errors: list[MidflightError] = []
        self.number = 0

    def append(self) -> bool:
        self.number += 1
        bodies = [b"%d-%d-" % (self.number, i) + b"x" * 700 for i in range(2)]
        self.attempted.update(bodies)
        try:
            if self.writer is None:
                self.writer = Writer.open(folder, self.disk, VirtualClock(), segment_bytes=segment_bytes, reserve_bytes=4096)
            first, end = self.writer.append([Record("webhook", "s", 0, {}, body) for body in bodies])
        except MidflightError as error:
            self.errors.append(error)
            return False
        assert not any(position in self.acknowledged for position in range(first, end))
        self.acknowledged.update(zip(range(first, end), bodies, strict=True))
        return True

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def work(self) -> None:
        for _ in range(5):
            self.append()
        self.close()
        for _ in range(3):
            self.append()
        try:
            assert set(contents(self.disk).values()) <= self.attempted
        except MidflightError as error:
            self.errors.append(error)
        if self.writer is not None:
            try:
                # `keep_from` 0 keeps everything; the note of what is kept is not written either.
                self.writer.retain(1 << 60, keep_from=0)
            except MidflightError as error:
                self.errors.append(error)

    def check(self, disk: SimDisk) -> None:
        found = contents(disk)
        for position, body in self.acknowledged.items():
            assert found[position] == body, f"record {position} is lost"
        assert set(found.values()) <= self.attempted


@pytest.mark.parametrize("name", FAULTS)
def test_every_call_may_fail_once_or_for_ever(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The N-th call fails, once or from then on, N counted up until it is no longer reached: a clear error, nothing lost.

    All of it again for calls behind a failed sync, where the writer starts from the disk again.
    """
    runs = refused = 0
    for fault, sticky, after_failed_sync in itertools.product(FAULTS[name], (False, True), (False, True)):
        number = 0
        hit = True
        while hit:
            number += 1
            hit, errors = fail_at(name, fault, number, sticky, after_failed_sync)
            runs, refused = runs + 1, refused + errors
    with capsys.disabled():
        print(f"\n{name}: {runs} runs, {refused} appends refused, 0 lost", end="")


def fail_at(name: str, fault: int | str, number: int, sticky: bool, after_failed_sync: bool) -> tuple[bool, int]:
    """Let one call fail and look what became of everything; returns whether it was reached, and the errors shown."""
    patient = Patient()
    calls = syncs = 0

    def plan(operation: str, path: str) -> OSError | str | None:
        nonlocal calls, syncs
        if after_failed_sync and syncs < 5:
            syncs += operation == "fdatasync"
            return OSError(errno.EIO, os.strerror(errno.EIO), path) if syncs == 5 else None
        if operation != name:
            return None
        calls += 1
        if calls == number or (sticky and calls > number):
            return fault if isinstance(fault, str) else OSError(fault, os.strerror(fault), path)
        return None

    patient.disk.fault = plan
    patient.work()
    patient.disk.fault = None
    reached = calls >= number
    rng = random.Random(number)
    for _ in range(2):
        cut = patient.disk.crash(rng)
        open_writer(cut).close()
        patient.check(cut)
    assert patient.append(), f"does not go on by itself: {patient.errors[-1]}"
    patient.check(patient.disk)
    patient.close()
    patient.check(patient.disk)
    for error in patient.errors:
        assert error.status in (429, 500) and error.where, error
    return reached, len(patient.errors)


def test_a_writer_that_retries_a_failed_sync_is_caught() -> None:
    """The control: repeating fsync on the same pages reports success for what is not on the disk."""

    class Retrying(SimDisk):
        def fdatasync(self, fd: int) -> None:
            try:
                super().fdatasync(fd)
            except OSError:
                super().fdatasync(fd)

    lost = 0
    for number in range(2, 12):
        patient = Patient()
        patient.disk = Retrying()
        calls = 0

        def plan(operation: str, path: str, number: int = number) -> OSError | None:
            nonlocal calls
            calls += operation == "fdatasync"
            return OSError(errno.EIO, "", path) if operation == "fdatasync" and calls == number else None

        patient.disk.fault = plan
        patient.work()
        cut = patient.disk.crash(random.Random(number))
        try:
            open_writer(cut).close()
            patient.check(cut)
        except (AssertionError, KeyError, MidflightError):
            lost += 1
    assert lost >= 3
