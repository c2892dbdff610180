"""What is in a log's folder: which segments belong to it, how they join, and where the last one ends. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .disk import Disk, read_all
from .format import (
    CLOSED,
    FRAME,
    FRAME_MAGIC,
    SEAL,
    Epoch,
    Frame,
    Head,
    SegmentHeader,
    damaged,
    data_offset,
    epoch_from,
    frame_bytes_max,
    frame_from,
    frame_size,
    head_from,
    header_copy_offset,
    no_chain,
    no_segment,
    sector_bytes,
    seed_from,
    segment_header_from,
    segment_name,
    segment_of_name,
)

scan_bytes = 1024 * 1024


class Scanner:
    """Frames of one open file by offset, read in big pieces."""

    def __init__(self, disk: Disk, fd: int, seed: int) -> None:
        self.disk, self.fd, self.seed = disk, fd, seed
        self.size = disk.size(fd)
        self._data, self._start = b"", 0

    def _load(self, offset: int, length: int) -> None:
        if offset < self._start or offset + length > self._start + len(self._data):
            self._data = read_all(self.disk, self.fd, max(length, min(scan_bytes, max(0, self.size - offset))), offset)
            self._start = offset

    def at(self, offset: int) -> Frame | None:
        """Return the valid frame at an offset, None where there is none."""
        self._load(offset, FRAME.size)
        at = offset - self._start
        if len(self._data) - at < FRAME.size:
            return None
        magic, length = self._data[at + 16 : at + 20], int.from_bytes(self._data[at + 24 : at + 28], "little")
        if magic != FRAME_MAGIC or length > frame_bytes_max:
            return None
        self._load(offset, frame_size(length))
        return frame_from(self._data, offset - self._start, offset, self.seed)

    def next_valid(self, offset: int) -> Frame | None:
        """Return the first valid frame that starts in a sector behind ``offset``."""
        offset += sector_bytes
        while offset < self.size:
            self._load(offset, 1)
            at = self._data.find(FRAME_MAGIC, offset - self._start + 16)
            if at < 0:
                # The magic may lie across two pieces; a sector start cannot.
                offset = max(offset + sector_bytes, (self._start + len(self._data)) // sector_bytes * sector_bytes)
                continue
            found, beside = divmod(self._start + at - 16, sector_bytes)
            if beside == 0:
                frame = self.at(found * sector_bytes)
                if frame is not None:
                    return frame
            offset = (found + 1) * sector_bytes
        return None

    def frames(self, offset: int) -> Iterator[Frame]:
        """Give valid frames one behind the other until there is none."""
        while (frame := self.at(offset)) is not None:
            yield frame
            offset += frame.size


@dataclass
class Segment:
    """One segment file and where its records end."""

    name: str
    header: SegmentHeader
    size: int = 0
    end: int = 0
    end_offset: int = data_offset
    chain: bytes = no_chain
    at_us: int = 0
    sealed: bool = False
    closed: bool = False
    # The end was found by reading, because no seal stands where the file ends.
    untidy: bool = False
    # Both copies of the header are as they were written.
    header_whole: bool = True
    # The last frame, and the time of the record before it; known only of a segment that had to be read.
    last: Frame | None = None
    before_us: int = 0

    @property
    def first(self) -> int:
        return self.header.first

    @property
    def empty(self) -> bool:
        return self.end == self.header.first


@dataclass
class Survey:
    """The segments of a log in order. ``strays`` are files that a crash or a fenced writer left and that hold nothing acknowledged."""

    segments: list[Segment] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)


def segment_names(disk: Disk, folder: str) -> tuple[list[str], list[str]]:
    """Return the names of the segments, by position, and those superseded by a newer epoch at the same position."""
    newest: dict[int, int] = {}
    strays = []
    for name in disk.listdir(folder):
        found = segment_of_name(name)
        if found is None:
            continue
        first, epoch = found
        if first in newest:
            strays.append(segment_name(first, min(epoch, newest[first])))
            epoch = max(epoch, newest[first])
        newest[first] = epoch
    return [segment_name(first, newest[first]) for first in sorted(newest)], sorted(strays)


def read_file(disk: Disk, path: str) -> bytes | None:
    """Return the first sector of a small file, None when there is no such file."""
    try:
        fd = disk.open(path)
    except FileNotFoundError:
        return None
    try:
        return read_all(disk, fd, sector_bytes, 0)
    finally:
        disk.close(fd)


def read_epoch(disk: Disk, folder: str) -> Epoch | None:
    """Return the epoch file, None when there is none. Raises Damaged."""
    path = f"{folder}/epoch"
    data = read_file(disk, path)
    if data is None:
        return None
    found = epoch_from(data, path)
    if found is None:
        raise damaged(path, 0, "the epoch file is not whole")
    return found


def read_head(disk: Disk, folder: str) -> Head | None:
    data = read_file(disk, f"{folder}/head")
    return head_from(data) if data else None


def read_header(disk: Disk, fd: int, path: str) -> tuple[SegmentHeader | None, bool]:
    """Return a segment's header from either copy, and whether both copies are whole."""
    one = segment_header_from(read_all(disk, fd, sector_bytes, 0), path)
    two = segment_header_from(read_all(disk, fd, sector_bytes, header_copy_offset), path)
    return one or two, one is not None and one == two


def look_at(disk: Disk, folder: str, name: str, bound: int | None, salt: bytes) -> Segment:
    """Return one segment, its end found from its seal or, without one, by reading it. Raises Damaged.

    ``bound`` is the first position of the next segment: frames from there on were abandoned. Without it (the last
    segment) a bad end is torn, and cut, only when nothing valid follows it.
    """
    path = f"{folder}/{name}"
    fd = disk.open(path)
    try:
        header, whole = read_header(disk, fd, path)
        if header is None:
            raise damaged(path, 0, "both copies of the segment's header are not whole")
        if (header.first, header.epoch) != segment_of_name(name) or header.salt != salt:
            raise damaged(path, 0, "the segment is not the one its name says, or of another log")
        segment = Segment(name, header, disk.size(fd), header.first, data_offset, header.chain, header.at_us)
        scanner = Scanner(disk, fd, seed_from(header.salt))
        if not _end_from_seal(segment, scanner, bound):
            _end_from_frames(segment, scanner, bound, path)
        segment.header_whole = whole
        return segment
    finally:
        disk.close(fd)


def _end_from_seal(segment: Segment, scanner: Scanner, bound: int | None) -> bool:
    offset = segment.size - sector_bytes
    if offset < data_offset or offset % sector_bytes:
        return False
    seal = scanner.at(offset)
    if seal is None or seal.kind != SEAL or seal.first < segment.first or (bound is not None and seal.first != bound):
        return False
    segment.end, segment.end_offset, segment.chain, segment.at_us = seal.first, offset, seal.chain, seal.at_us
    segment.sealed, segment.closed = True, bool(seal.flags & CLOSED)
    return True


def _end_from_frames(segment: Segment, scanner: Scanner, bound: int | None, path: str) -> None:
    segment.untidy, segment.before_us = True, segment.header.at_us
    for frame in scanner.frames(data_offset):
        if bound is not None and frame.first >= bound and segment.end == bound and frame.kind != SEAL:
            break
        if frame.chain != segment.chain or frame.first != segment.end:
            raise damaged(path, frame.offset, "a frame does not follow from the one before it")
        if frame.kind == SEAL:
            segment.sealed, segment.closed = True, bool(frame.flags & CLOSED)
            break
        segment.before_us, segment.last = segment.at_us, frame
        segment.end, segment.chain, segment.at_us = frame.end, frame.next_chain, frame.at_us
        segment.end_offset = frame.offset + frame.size
    if bound is None and not segment.sealed and scanner.next_valid(segment.end_offset) is not None:
        raise damaged(path, segment.end_offset, "bytes that are no frame stand before a valid one")


def survey(disk: Disk, folder: str, epoch: Epoch, end: int | None = None) -> Survey:
    """Look at all segments. Raises Damaged with the file and the offset of the first thing that is wrong.

    With ``end``, the records from that position on were never acknowledged and do not count.
    """
    names, strays = segment_names(disk, folder)
    kept = [n for n in names if segment_of_name(n)[0] >= epoch.first]
    # Retention notes first what it will remove, so that what is there below that was on its way out.
    strays += [n for n in names if n not in kept]
    segments: list[Segment] = []
    at = 0
    while at < len(kept):
        bound = segment_of_name(kept[at + 1])[0] if at + 1 < len(kept) else end
        segment = look_at(disk, folder, kept[at], bound, epoch.salt)
        if bound is not None and segment.end != bound:
            if segment.empty and at + 1 < len(kept) and segment.header.epoch < segment_of_name(kept[at + 1])[1]:
                # A fenced writer's new file: it never took a record. The segment before it decides again.
                strays.append(kept.pop(at))
                if segments:
                    segments.pop()
                    at -= 1
                continue
            raise _not_joined(folder, segment, bound)
        if segments and segments[-1].chain != segment.header.chain:
            raise damaged(f"{folder}/{segment.name}", 0, f"the segment does not follow from {segments[-1].name}")
        segments.append(segment)
        at += 1
    _check_ends(folder, segments, epoch)
    return Survey(segments, strays)


def _not_joined(folder: str, segment: Segment, bound: int) -> Exception:
    if segment.sealed:
        return damaged(f"{folder}/{segment.name}", segment.end_offset, f"the segment that starts at position {segment.end} is missing")
    return damaged(
        f"{folder}/{segment.name}", segment.end_offset, f"no valid frame, though positions {segment.end} to {bound - 1} were written"
    )


def _check_ends(folder: str, segments: list[Segment], epoch: Epoch) -> None:
    first = segments[0].first if segments else None
    if first != epoch.first and (first is not None or epoch.last != no_segment):
        raise damaged(f"{folder}/epoch", 0, f"the segment that starts at position {epoch.first} is missing")
    if not segments:
        return
    if epoch.last != no_segment and segments[-1].first < epoch.last:
        raise damaged(f"{folder}/epoch", 0, f"the segment that starts at position {epoch.last} is missing")
    if segments[-1].sealed and not segments[-1].closed:
        last = segments[-1]
        raise damaged(f"{folder}/{last.name}", last.end_offset, f"the segment that starts at position {last.end} is missing")


def check_head(folder: str, segments: list[Segment], head: Head | None, end: int) -> None:
    """Raise Damaged when the head file knows of durable records that are no longer there."""
    if head is not None and head.position > end:
        path = f"{folder}/{segments[-1].name}" if segments else f"{folder}/head"
        offset = segments[-1].end_offset if segments else 0
        raise damaged(path, offset, f"positions {end} to {head.position - 1} were durable and are missing")
