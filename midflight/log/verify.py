"""Reads a whole log and names everything in it that is not what was written. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec

from midflight.kit.errors import Damaged

from .disk import Disk, OsDisk
from .errors import unreadable_from
from .format import GAP, RECORDS, SEAL, Epoch, Frame, SegmentHeader, data_offset, no_chain, no_segment, seed_from, segment_of_name
from .record import Record
from .survey import Scanner, read_epoch, read_file, read_head, read_header, segment_names

rounds_max = 20  # how often the end is looked at again because a writer has gone on
tries_max = 5  # how often all is looked at again because a writer has started anew or removed old segments
damage_max = 1_000  # how many places a report names; what is behind them is found after a repair


class Damage(msgspec.Struct, frozen=True):
    """One place where the log is not what was written: bytes ``offset`` to ``end`` of ``file``, and what it means."""

    file: str
    offset: int
    end: int
    reason: str


class Report(msgspec.Struct):
    """What `verify` found. ``notes`` are oddities that the next start mends and that lose nothing."""

    folder: str
    first: int = 0
    end: int = 0
    epoch: int = 0
    segments: int = 0
    frames: int = 0
    records: int = 0
    bytes: int = 0
    given_up: int = 0
    damage: list[Damage] = []
    notes: list[str] = []

    @property
    def sound(self) -> bool:
        return not self.damage


class Bad(NamedTuple):
    """Bytes that are no frame, or not the next one. ``resumes`` is the next frame that can be read, None at the end of the file."""

    offset: int
    end: int
    position: int
    resumes: Frame | None


class Named(NamedTuple):
    """A segment file as far as its header can be read; ``chain`` is None when neither copy can."""

    name: str
    first: int
    header: SegmentHeader | None
    whole: bool

    @property
    def fits_name(self) -> bool:
        return self.header is not None and (self.header.first, self.header.epoch) == segment_of_name(self.name)


def walk(scanner: Scanner, first: int, chain: bytes | None, bound: int | None) -> Iterator[Frame | Bad]:
    """Give a segment's frames in order and the bad places between them; ends with the seal, the bound or a Bad that resumes nowhere.

    Without a known ``chain`` the first frame's own is believed.
    """
    offset, position = data_offset, first
    while True:
        frame = scanner.at(offset)
        if frame is not None and bound is not None and position == bound and frame.kind != SEAL:
            return  # What stands there was abandoned; the next segment has those positions.
        if frame is None or frame.first != position or (chain is not None and frame.chain != chain):
            resumes = frame if frame is not None and frame.first >= position else scanner.next_valid(offset)
            while resumes is not None and resumes.first < position:
                resumes = scanner.next_valid(resumes.offset)
            yield Bad(offset, resumes.offset if resumes else scanner.size, position, resumes)
            if resumes is None:
                return
            offset, position, chain = resumes.offset, resumes.first, resumes.chain
            continue
        yield frame
        if frame.kind == SEAL:
            return
        offset, position, chain = frame.offset + frame.size, frame.end, frame.next_chain


def lost(position: int, until: int) -> str:
    return f"no valid frame where positions {position} to {until - 1} should be" if until > position else "a frame that does not follow"


def chain_before(end: tuple[int, bytes] | None, segment: Named) -> bytes | None:
    """Return the chain a segment without a header has to start with, None when nothing tells."""
    if end is not None and end[0] == segment.first:
        return end[1]
    return no_chain if segment.first == 0 else None


def find_salt(epoch: Epoch | None, segments: list[Named]) -> bytes | None:
    """Return the log's salt from the epoch file or, without it, from the first header that can be read."""
    if epoch is not None:
        return epoch.salt
    return next((s.header.salt for s in segments if s.header is not None), None)


def named_segments(disk: Disk, folder: str) -> list[Named]:
    """Return the segments that count, by position, with their headers."""
    found = []
    for name in segment_names(disk, folder)[0]:
        fd = disk.open(f"{folder}/{name}")
        try:
            header, whole = read_header(disk, fd, f"{folder}/{name}")
        finally:
            disk.close(fd)
        found.append(Named(name, segment_of_name(name)[0], header, whole))
    return found


class _Verification:
    """One run of `verify`: walks the segments in order and carries the position and chain from each to the next."""

    def __init__(self, disk: Disk, folder: str, progress: Callable[[int, int], None] | None) -> None:
        self.disk, self.folder, self.progress = disk, folder, progress
        self.report = Report(folder)
        self.decoder = msgspec.msgpack.Decoder(list[Record])
        self.head = read_head(disk, folder)
        self.epoch: Epoch | None = None
        self.salt: bytes | None = None
        # How the segment before ended: position, chain, and whether its seal promises another.
        self.end: tuple[int, bytes] | None = None
        self.promised = False

    def bad(self, file: str, offset: int, end: int, reason: str) -> None:
        if len(self.report.damage) < damage_max:
            self.report.damage.append(Damage(f"{self.folder}/{file}", offset, end, reason))

    def run(self) -> Report:
        try:
            self.epoch = read_epoch(self.disk, self.folder)
        except Damaged:
            self.bad("epoch", 0, 512, "the epoch file is not whole")
        segments = self.listed()
        if self.epoch is None and not self.report.damage and segments:
            self.bad("epoch", 0, 0, "the epoch file is missing beside segments")
        self.report.epoch = self.epoch.epoch if self.epoch else 0
        self.salt = find_salt(self.epoch, segments)
        kept_from = segments[0].first if segments else None
        done = 0
        for _ in range(rounds_max):
            for segment, following in pairwise(segments[done:]):
                self.segment(segment, following.first)
                done += 1
                self.show(done, segments)
            before = msgspec.structs.replace(self.report, damage=list(self.report.damage)), self.end, self.promised
            if segments:
                self.segment(segments[-1], None)
            newer = self.listed()
            if not segments or not newer or newer[-1].name == segments[-1].name:
                break
            # A writer has gone on to another segment meanwhile: what was the last one is looked at again, now that its end is known.
            self.report, self.end, self.promised = before
            segments = segments[:done] + [s for s in newer if s.first >= segments[-1].first]
        self.show(len(segments), segments)
        self.ends(kept_from, segments[-1] if segments else None)
        return self.report

    def listed(self) -> list[Named]:
        return [s for s in named_segments(self.disk, self.folder) if self.epoch is None or s.first >= self.epoch.first]

    def show(self, done: int, segments: list[Named]) -> None:
        if self.progress is not None:
            self.progress(done, len(segments))

    def segment(self, segment: Named, bound: int | None) -> None:
        """Check one segment: its header, how it joins the one before, each frame, and where it ends."""
        name, header = segment.name, segment.header
        if header is None or not segment.whole:
            self.bad(name, 0, data_offset, "a copy of the segment's header is not whole" if header else "the segment's header is not whole")
        if header is not None and (not segment.fits_name or header.salt != self.salt):
            self.bad(name, 0, data_offset, "the segment is not the one its name says, or of another log")
        if self.end is not None and (self.end[0] != segment.first or (header is not None and self.end[1] != header.chain)):
            self.bad(name, 0, data_offset, f"the segment does not follow from position {self.end[0]}, where the one before it ends")
        chain = header.chain if header is not None else chain_before(self.end, segment)
        fd = self.disk.open(f"{self.folder}/{name}")
        try:
            scanner = Scanner(self.disk, fd, seed_from(self.salt or b""))
            self.report.segments += 1
            self.report.bytes += scanner.size
            self.frames(name, scanner, segment.first, chain, bound)
        finally:
            self.disk.close(fd)

    def frames(self, name: str, scanner: Scanner, first: int, chain: bytes | None, bound: int | None) -> None:
        position, self.promised = first, False
        for item in walk(scanner, first, chain, bound):
            if isinstance(item, Bad):
                if item.resumes is not None:
                    self.bad(name, item.offset, item.end, lost(item.position, item.resumes.first))
                    chain, position = item.resumes.chain, item.resumes.first
                elif bound is not None and position != bound:
                    self.bad(name, item.offset, item.end, lost(position, bound))
                continue
            if item.kind == SEAL:
                self.promised = not item.flags
                continue
            self.count(name, item)
            position, chain = item.end, item.next_chain
        self.end = (position, chain or no_chain)

    def count(self, name: str, frame: Frame) -> None:
        report = self.report
        report.frames += 1
        if frame.kind == GAP:
            report.given_up += frame.count
        elif frame.kind == RECORDS:
            report.records += frame.count
            try:
                if len(self.decoder.decode(frame.payload)) == frame.count:
                    return
                self.bad(name, frame.offset, frame.offset + frame.size, "the frame does not hold as many records as it says")
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                self.bad(name, frame.offset, frame.offset + frame.size, f"the frame's records cannot be read: {error}")
        else:
            self.bad(name, frame.offset, frame.offset + frame.size, f"a frame of an unknown kind ({frame.kind})")

    def ends(self, first: int | None, last: Named | None) -> None:
        """Check both ends: what retention noted as first, and what was promised or known to be durable behind the last."""
        report, epoch = self.report, self.epoch
        report.first = first if first is not None else epoch.first if epoch else 0
        report.end = self.end[0] if self.end else report.first
        if epoch is not None and first is not None and first != epoch.first:
            self.bad("epoch", 0, 512, f"the segment that starts at position {epoch.first} is missing")
        if epoch is not None and epoch.last != no_segment and (last is None or last.first < epoch.last):
            self.bad("epoch", 0, 512, f"the segment that starts at position {epoch.last} is missing")
        if last is not None and self.promised:
            self.bad(last.name, 0, 0, f"the segment that starts at position {report.end} is missing")
        if self.head is None and (last is not None or epoch is not None):
            report.notes.append("head is missing or not whole; the next start writes it again")
        elif self.head is not None and self.head.position > report.end:
            missing = f"positions {report.end} to {self.head.position - 1} were durable and are missing"
            self.bad(last.name if last else "head", 0, 0, missing)


def verify(folder: str | Path, progress: Callable[[int, int], None] | None = None, disk: Disk | None = None) -> Report:
    """Read every frame of a log and say what is wrong with it. ``progress`` is called with (segments done, of how many).

    May run beside a writer. Raises Unreadable when the disk refuses.
    """
    disk, folder = disk or OsDisk(), str(folder)
    for tries_left in range(tries_max, -1, -1):
        try:
            before = read_file(disk, f"{folder}/epoch")
            report = _Verification(disk, folder, progress).run()
            # Only a start, an end or a retention writes the epoch file; then segments come and go that were being looked at.
            if report.sound or not tries_left or read_file(disk, f"{folder}/epoch") == before:
                return report
        except FileNotFoundError as error:
            if not tries_left:
                raise unreadable_from(error, folder) from error
        except OSError as error:
            raise unreadable_from(error, folder) from error
    raise AssertionError("the last try returns or raises")


class Stats(msgspec.Struct):
    """A log at a glance, from its small files and its segments' headers."""

    folder: str
    first: int
    head: int
    epoch: int
    segments: int
    bytes: int
    # Append time of the last record before the second segment, and before the last one: what retention goes by.
    oldest_segment_until_us: int
    newest_segment_from_us: int


def stats(folder: str | Path, disk: Disk | None = None) -> Stats:
    """Return positions, sizes and times of a log without reading its records. Raises Unreadable or Damaged."""
    disk, folder = disk or OsDisk(), str(folder)
    try:
        epoch, head = read_epoch(disk, folder), read_head(disk, folder)
        segments = [s for s in named_segments(disk, folder) if epoch is None or s.first >= epoch.first]
        size = 0
        for segment in segments:
            fd = disk.open(f"{folder}/{segment.name}")
            try:
                size += disk.size(fd)
            finally:
                disk.close(fd)
    except OSError as error:
        raise unreadable_from(error, folder) from error
    times = [s.header.at_us for s in segments if s.header is not None]
    return Stats(
        folder,
        first=epoch.first if epoch else 0,
        head=head.position if head else 0,
        epoch=epoch.epoch if epoch else 0,
        segments=len(segments),
        bytes=size,
        oldest_segment_until_us=times[1] if len(times) > 1 else 0,
        newest_segment_from_us=times[-1] if times else 0,
    )
