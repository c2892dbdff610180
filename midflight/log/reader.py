"""Reads durable records by position, from any process; checks every frame it serves."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import msgspec
from msgspec.structs import force_setattr
from xxhash import xxh3_128_digest

from midflight.kit.collecting import uncollected
from midflight.kit.errors import Damaged, MidflightError

from .disk import Disk, OsDisk, read_all
from .errors import NotKept, unreadable_from
from .format import (
    FRAME,
    FRAME_MAGIC,
    GAP,
    RECORDS,
    Head,
    damaged,
    data_offset,
    frame_bytes_max,
    frame_from,
    head_from,
    sector_bytes,
    seed_from,
    segment_name,
    segment_of_name,
)
from .record import Record
from .survey import read_epoch, read_header, segment_names

read_bytes_min = 64 * 1024
read_bytes_max = 8 * 1024 * 1024
index_bytes = 1024 * 1024  # about how far apart the known places of a segment are


class _Stale(Exception):
    """A frame is not what was expected; look at the folder again before calling it damage."""

    def __init__(self, damage: Damaged) -> None:
        self.damage = damage


class _Place:
    """Where reading goes on: the next position, the file it is in, its offset and the chain it has to carry."""

    __slots__ = ("position", "offset", "chain")

    def __init__(self, position: int, offset: int, chain: bytes) -> None:
        self.position, self.offset, self.chain = position, offset, chain


class Reader:
    """Reads forward fast and jumps anywhere. Needs no lock and writes nothing. One reader is for one thread.

    It never goes past what `log/head` says is durable. Where that file is missing or torn (before the first writer, or
    after a power cut and before the recovery) nothing counts as durable yet and reads give nothing.
    """

    def __init__(self, folder: str | Path, disk: Disk | None = None) -> None:
        self._folder, self._disk = str(folder), disk or OsDisk()
        self._decoder = msgspec.msgpack.Decoder(list[Record])
        self._names: list[str] = []
        self._firsts: list[int] = []
        self._head_fd = self._fd = -1
        self._head = Head(0, 0, 0, 0)
        self._open_name = ""
        self._seed = self._size = 0
        self._place = _Place(-1, 0, b"")
        # By segment name: positions, and for each the (offset, chain) where it starts.
        self._index: dict[str, tuple[list[int], list[tuple[int, bytes]]]] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for fd in (self._fd, self._head_fd):
            if fd >= 0:
                self._disk.close(fd)
        self._fd = self._head_fd = -1
        self._open_name = ""

    def first(self) -> int:
        """Return the first position that is kept; 0 for a log that is not there yet.

        Raises Damaged when the first segment that should be there is missing.
        """
        try:
            # Retention may move on between the two looks; a second round then sees it.
            for _ in range(3):
                noted = self._noted_first()
                self._list()
                if noted is None or not self._firsts:
                    return self._firsts[0] if self._firsts else noted or 0
                if self._firsts[0] <= noted:
                    return noted
            raise damaged(self._folder, 0, f"the segment that starts at position {noted} is missing")
        except OSError as error:
            raise unreadable_from(error, self._folder) from error

    def _noted_first(self) -> int | None:
        try:
            epoch = read_epoch(self._disk, self._folder)
        except Damaged:
            # The next start says so; meanwhile the segments themselves tell.
            return None
        return epoch.first if epoch else None

    def head(self) -> int:
        """Return the position after the last durable record."""
        try:
            return self._read_head().position
        except OSError as error:
            raise unreadable_from(error, self._folder) from error

    def read(self, position: int, bytes_max: int = 8 * 1024 * 1024) -> list[Record]:
        """Return durable records from ``position`` on, with ``position`` and ``at_us`` filled in; [] when there is nothing new.

        At least one frame's records, then as many whole frames as ``bytes_max`` of the files hold. Positions that a repair
        gave up are left out. Raises NotKept before `first()`, Damaged where the bytes are not those that were written.
        """
        if position < 0:
            raise MidflightError("Positions start at 0", got=position)
        try:
            return self._try(position, bytes_max)
        except (_Stale, FileNotFoundError):
            # A recovery or retention may have moved things since we looked.
            self._forget()
        except OSError as error:
            self._forget()
            raise unreadable_from(error, self._folder) from error
        try:
            return self._try(position, bytes_max)
        except _Stale as stale:
            self._forget()
            raise stale.damage from None
        except FileNotFoundError as error:
            self._forget()
            raise damaged(str(error.filename), 0, "a segment is missing") from None
        except OSError as error:
            self._forget()
            raise unreadable_from(error, self._folder) from error

    def _try(self, position: int, bytes_max: int) -> list[Record]:
        head = self._read_head()
        if position >= head.position:
            return []
        with uncollected():
            return self._read(position, bytes_max, head)

    # -- where things are

    def _read_head(self) -> Head:
        try:
            if self._head_fd < 0:
                self._head_fd = self._disk.open(f"{self._folder}/head")
            # A torn read does not fit its check; the next one does.
            for _ in range(5):
                found = head_from(read_all(self._disk, self._head_fd, sector_bytes, 0))
                if found is not None:
                    if found.position >= self._head.position:
                        self._head = found
                    break
        except FileNotFoundError:
            # No writer has been here yet, so nothing is durable yet.
            pass
        return self._head

    def _list(self) -> None:
        try:
            self._names, _ = segment_names(self._disk, self._folder)
        except FileNotFoundError:
            self._names = []
        self._firsts = [segment_of_name(n)[0] for n in self._names]
        kept = set(self._names)
        self._index = {name: places for name, places in self._index.items() if name in kept}

    def _forget(self) -> None:
        """Drop everything remembered about the files, so that the next look is a fresh one."""
        self._place = _Place(-1, 0, b"")
        self._index.clear()
        self._names, self._firsts = [], []
        self.close()

    def _segment_at(self, position: int, head: Head) -> int:
        if segment_name(head.segment, head.epoch) not in self._names:
            self._list()
        at = bisect_right(self._firsts, position) - 1
        if at < 0:
            first = self._firsts[0] if self._firsts else head.position
            raise NotKept("The log no longer has this position", expected=f"{first} or later", got=position, where=self._folder)
        return at

    def _open(self, name: str) -> None:
        path = f"{self._folder}/{name}"
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd, self._open_name = -1, ""
        self._fd = self._disk.open(path)
        header, _ = read_header(self._disk, self._fd, path)
        if header is None or (header.first, header.epoch) != segment_of_name(name):
            raise _Stale(damaged(path, 0, "the segment's header is not whole"))
        self._seed, self._size, self._open_name = seed_from(header.salt), self._disk.size(self._fd), name
        self._index.setdefault(name, ([header.first], [(data_offset, header.chain)]))

    def _go_to(self, position: int, at: int, head: Head) -> None:
        """Open the segment and stand at the nearest known place at or before ``position``."""
        name = self._names[at]
        chain = self._place.chain if self._place.position == position == self._firsts[at] else None
        if name != self._open_name:
            self._open(name)
        positions, places = self._index[name]
        near = bisect_right(positions, position) - 1
        offset, known = places[near]
        if chain is not None and chain != known:
            raise _Stale(damaged(f"{self._folder}/{name}", 0, "the segment does not follow from the one before it"))
        self._place = _Place(positions[near], offset, known)

    # -- reading

    def _read(self, position: int, bytes_max: int, head: Head) -> list[Record]:
        records: list[Record] = []
        budget = max(bytes_max, 1)
        while budget > 0 and position < head.position:
            at = self._segment_at(position, head)
            bound = self._firsts[at + 1] if at + 1 < len(self._names) else head.position
            if self._place.position != position or self._names[at] != self._open_name:
                self._go_to(position, at, head)
            in_head = self._open_name == segment_name(head.segment, head.epoch)
            budget = self._read_segment(records, position, min(bound, head.position), budget, head.offset if in_head else self._size)
            position = max(position, self._place.position)
        return records

    def _read_segment(self, records: list[Record], position: int, end: int, budget: int, end_offset: int) -> int:
        """Read frames of the open segment up to position ``end`` or until the budget is used; returns what is left of it.

        Behind ``end_offset`` there is nothing worth reading.
        """
        place, path = self._place, f"{self._folder}/{self._open_name}"
        want = min(max(budget, read_bytes_min), read_bytes_max, end_offset - place.offset)
        while place.position < end and budget > 0:
            data = memoryview(read_all(self._disk, self._fd, max(want, sector_bytes), place.offset))
            before = place.offset
            budget = self._serve(data, records, position, end, path, budget)
            if place.offset == before:
                # Not even one whole frame: read exactly as much as it says it has, or call it bad.
                length = int.from_bytes(data[24:28], "little")
                whole = -(-(FRAME.size + length) // sector_bytes) * sector_bytes
                if data[16:20] != FRAME_MAGIC or length > frame_bytes_max or whole <= len(data) or len(data) < want:
                    raise _Stale(damaged(path, place.offset, f"no valid frame at position {place.position}"))
                want = whole
                continue
            want = min(max(budget, read_bytes_min), read_bytes_max, end_offset - place.offset)
        return budget

    def _serve(self, data: memoryview, records: list[Record], position: int, end: int, path: str, budget: int) -> int:
        """Take whole frames from ``data`` and leave ``self._place`` behind them; returns what is left of the budget.

        Frames before ``position`` are only passed over and cost nothing.
        """
        place, seed, decode = self._place, self._seed, self._decoder.decode
        positions, places = self._index[self._open_name]
        unpack, header_size, at, length_of_data = FRAME.unpack_from, FRAME.size, 0, len(data)
        while place.position < end and budget > 0 and at + header_size <= length_of_data:
            check, magic, kind, _, _, length, count, first, _, at_us, chain = unpack(data, at)
            stop = at + (header_size + length + sector_bytes - 1) // sector_bytes * sector_bytes
            if stop > length_of_data and magic == FRAME_MAGIC:
                break
            if magic != FRAME_MAGIC or xxh3_128_digest(data[at + 16 : stop], seed) != check:
                raise _Stale(damaged(path, place.offset, f"no valid frame at position {place.position}"))
            if chain != place.chain or first != place.position or kind not in (RECORDS, GAP):
                raise _Stale(damaged(path, place.offset, f"the frame does not follow from the one before it (position {place.position})"))
            if place.offset - places[-1][0] >= index_bytes and first > positions[-1]:
                positions.append(first)
                places.append((place.offset, chain))
            if kind == RECORDS:
                place.chain = check
                if first + count > position:
                    try:
                        found = decode(data[at + header_size : at + header_size + length])
                    except (msgspec.DecodeError, UnicodeDecodeError) as error:
                        raise _Stale(damaged(path, place.offset, f"the records cannot be read: {error}")) from None
                    for record in found:
                        force_setattr(record, "position", first)
                        force_setattr(record, "at_us", at_us)
                        first += 1
                    budget -= stop - at
                    records.extend(found[position - first :] if first - len(found) < position else found)
            else:
                place.chain = frame_from(data, at, place.offset, seed).next_chain
            place.position += count
            place.offset += stop - at
            at = stop
        return budget
