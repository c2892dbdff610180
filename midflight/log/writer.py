"""The one writer of the log: append, durable before it returns; recover what a crash left; let go of what is old."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import NamedTuple

import msgspec

from midflight.kit.clock import Clock
from midflight.kit.errors import Locked, MidflightError

from .disk import Disk, OsDisk, write_all
from .errors import Full, TooLarge, Unwritable, unwritable_from
from .format import (
    CLOSED,
    RECORDS,
    SEAL,
    Epoch,
    Frame,
    Head,
    SegmentHeader,
    damaged,
    data_offset,
    frame_bytes,
    frame_bytes_max,
    frame_size,
    head_bytes,
    no_chain,
    no_segment,
    sector_bytes,
    seed_from,
    segment_header_bytes,
    segment_name,
    segment_of_name,
)
from .ownership import Ownership, making
from .record import Record
from .survey import Segment, check_head, read_epoch, read_head, segment_names, survey

logger = logging.getLogger(__name__)

# A longer append becomes several frames; a frame is what a reader has to hold at once.
payload_bytes_aim = 8 * 1024 * 1024


class Place(NamedTuple):
    """Where the next record goes: its position, the check it follows, and the time it must not be before."""

    position: int
    chain: bytes
    at_us: int


class Kept(NamedTuple):
    """A segment that is still there: its name, its first position and the time of the last record before it."""

    name: str
    first: int
    at_us: int


class Writer:
    """Appends records to the segments in a folder. Not for several threads at once: see GroupCommit.

    Whatever goes wrong during an append, its records are not acknowledged and the next append starts from the disk again:
    a new epoch, the old segment read and checked, a new segment. Nothing is written to a page whose sync failed.
    """

    def __init__(self, folder: str, disk: Disk, clock: Clock, segment_bytes: int, reserve_bytes: int) -> None:
        self._folder, self._disk, self._clock = folder, disk, clock
        self._segment_bytes, self._reserve_bytes = segment_bytes, reserve_bytes
        self._encoder = msgspec.msgpack.Encoder()
        self._epoch = Epoch(0, 0, no_segment, b"")
        self._seed = 0
        self._place = Place(0, no_chain, 0)
        self._kept: list[Kept] = []
        self._fd = self._head_fd = self._spare_fd = -1
        self._offset = self._capacity = self._spare_capacity = 0
        self._spare_try_at = 0
        self._spare_path = ""
        self._has_reserve = False
        # Why the next append has to begin with a recovery; None while all is well.
        self._suspect: Exception | None = None
        self._lost: Locked | None = None
        self._own: Ownership | None = None

    @classmethod
    def open(
        cls,
        folder: str | Path,
        disk: Disk | None = None,
        clock: Clock | None = None,
        *,
        segment_bytes: int = 64 * 1024 * 1024,
        reserve_bytes: int = 64 * 1024 * 1024,
    ) -> Writer:
        """Lock the log in ``folder``, recover it and get ready to append; the folder is made when it is not there.

        Raises Locked (another writer), Damaged (names file and offset), Full or Unwritable (try again later).
        """
        writer = cls(str(folder), disk or OsDisk(), clock or Clock(), segment_bytes, reserve_bytes)
        try:
            writer._disk.make_folder(writer._folder)
            writer._own = Ownership(writer._disk, writer._folder)
            writer._take_over(None)
        except OSError as error:
            refused = writer._refused(error)
            writer._let_go()
            raise refused from error
        except BaseException:
            writer._let_go()
            raise
        return writer

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def folder(self) -> str:
        return self._folder

    @property
    def at_us(self) -> int:
        """Return when the last record was appended, in us; 0 where there is none."""
        return self._place.at_us

    @property
    def position(self) -> int:
        """Return the position that the next record will get; everything before it is durable."""
        return self._place.position

    @property
    def first(self) -> int:
        """Return the first position that is still kept."""
        return self._epoch.first

    @property
    def epoch(self) -> int:
        return self._epoch.epoch

    # -- append

    def append(self, records: list[Record]) -> tuple[int, int]:
        """Store records and return (first position, position after the last) once they are durable.

        All get the same append time, never earlier than that of the record before. Raises Full or Unwritable when the disk
        refuses (nothing is acknowledged; just call again later), Locked when another process took over, TooLarge.
        """
        if self._own is None:
            raise MidflightError("This log is closed", where=self._folder)
        if self._lost is not None:
            raise self._lost
        payloads = self._encoded(records)
        try:
            if self._suspect is not None:
                self._resume()
            first = self._place.position
            for payload, count in payloads:
                self._commit(payload, count)
        except OSError as error:
            raise self._refused(error) from error
        except Locked as error:
            self._lost = error
            raise
        return first, self._place.position

    def _encoded(self, records: list[Record]) -> list[tuple[bytes, int]]:
        if not records:
            return []
        payload = self._encoder.encode(records)
        if len(payload) <= payload_bytes_aim:
            return [(payload, len(records))]
        if len(records) == 1:
            if frame_size(len(payload)) > frame_bytes_max:
                raise TooLarge("A record is too large", expected=f"at most {frame_bytes_max - 4096} bytes", got=len(payload))
            return [(payload, 1)]
        half = len(records) // 2
        return self._encoded(records[:half]) + self._encoded(records[half:])

    def _commit(self, payload: bytes, count: int) -> None:
        need = frame_size(len(payload))
        if self._offset + need + sector_bytes > self._capacity:
            self._rotate(need)
        position, chain, at_us = self._place
        at_us = max(self._clock.now_us(), at_us)
        frame = frame_bytes(self._seed, RECORDS, payload, count=count, first=position, epoch=self._epoch.epoch, at_us=at_us, chain=chain)
        try:
            self._own.check()
            write_all(self._disk, self._fd, frame, self._offset)
            self._disk.fdatasync(self._fd)
            self._own.check()
        except BaseException as error:
            self._suspect = error if isinstance(error, Exception) else Unwritable("An append was interrupted")
            raise
        self._offset += need
        self._place = Place(position + count, frame[:16], at_us)
        self._show_head()
        if self._spare_fd < 0 and self._offset >= self._spare_try_at:
            self._prepare_early()

    def _refused(self, error: OSError) -> Unwritable:
        refused = unwritable_from(error, self._folder)
        if isinstance(refused, Full):
            self._release_reserve()
        return refused

    def _show_head(self) -> None:
        """Tell readers how far they may go. A failure costs them time only: the next commit tells them again."""
        try:
            write_all(self._disk, self._head_fd, head_bytes(self._head()), 0)
        except OSError as error:
            logger.warning("readers cannot be told of new records: %s", error)

    # -- segments

    def _rotate(self, need: int) -> None:
        """Go on in a new segment: first the new one, then the seal that promises it."""
        self._own.check()
        old_fd, old_offset, old_name = self._fd, self._offset, self._kept[-1].name
        self._start_segment(self._place, None, need)
        self._seal(old_fd, old_name, old_offset, self._place)
        self._disk.close(old_fd)
        self._reserve()

    def _start_segment(self, place: Place, carried: Frame | None, need: int) -> None:
        """Make a new segment for ``place``; ``carried`` is a frame that has to be written again because nobody knows if it is durable."""
        need = max(need, carried.size if carried else 0)
        if self._spare_fd < 0 or self._spare_capacity < data_offset + need + sector_bytes:
            self._make_spare(need)
        header = SegmentHeader(place.position, self._epoch.epoch, place.at_us, self._epoch.salt, place.chain)
        name = segment_name(place.position, self._epoch.epoch)
        data, after = segment_header_bytes(header), place
        if carried is not None:
            frame = self._again(carried)
            data += frame
            after = Place(carried.end, carried.next_chain if carried.next_chain != carried.check else frame[:16], carried.at_us)
        try:
            write_all(self._disk, self._spare_fd, data, 0)
            self._disk.fdatasync(self._spare_fd)
            self._own.check()
            self._disk.rename(self._spare_path, f"{self._folder}/{name}")
            self._disk.fsync_folder(self._folder)
            self._check_or_withdraw(name)
        except BaseException as error:
            self._suspect = error if isinstance(error, Exception) else Unwritable("A new segment was interrupted")
            self._drop_spare()
            raise
        self._fd, self._capacity, self._offset, self._place = self._spare_fd, self._spare_capacity, len(data), after
        self._spare_fd = -1
        self._spare_try_at = self._capacity // 2
        # A segment that was still empty is replaced by one of the same name: it must not be kept, and later removed, as two.
        self._kept = [kept for kept in self._kept if kept.name != name] + [Kept(name, place.position, place.at_us)]

    def _check_or_withdraw(self, name: str) -> None:
        """Take the new segment back when another process took over while it was made; the name is ours alone."""
        try:
            self._own.check()
        except Locked:
            self._disk.unlink(f"{self._folder}/{name}")
            raise

    def _again(self, frame: Frame) -> bytes:
        return frame_bytes(
            self._seed,
            frame.kind,
            frame.payload,
            count=frame.count,
            first=frame.first,
            epoch=self._epoch.epoch,
            at_us=frame.at_us,
            chain=frame.chain,
            flags=frame.flags,
        )

    def _seal(self, fd: int, name: str, offset: int, end: Place, flags: int = 0) -> None:
        """Close a segment with a frame that says where the next one starts, and give back the space behind it.

        A failure loses nothing: the next segment's header proves the same, and the next recovery seals again.
        """
        seal = frame_bytes(
            self._seed, SEAL, b"", count=0, first=end.position, epoch=self._epoch.epoch, at_us=end.at_us, chain=end.chain, flags=flags
        )
        try:
            write_all(self._disk, fd, seal, offset)
            self._disk.fdatasync(fd)
            self._disk.truncate(fd, offset + sector_bytes)
            self._disk.fsync(fd)
        except OSError as error:
            logger.warning("segment %s could not be sealed: %s", name, error)

    # -- space

    def _make_spare(self, need: int) -> None:
        """Set aside the next segment's space. Raises Full when there is none; nothing is then changed."""
        self._drop_spare()
        length = max(self._segment_bytes, data_offset + need + sector_bytes)
        if not self._has_room(length):
            raise OSError(errno.ENOSPC, "no space beside the reserve")
        self._spare_path = self._own.unfinished("spare")
        try:
            self._spare_fd = self._disk.open(self._spare_path, write=True, create=True, exclusive=True)
            self._disk.allocate(self._spare_fd, length)
            self._disk.fsync(self._spare_fd)
        except BaseException:
            self._drop_spare()
            raise
        self._spare_capacity = length

    def _has_room(self, length: int) -> bool:
        """Leave the reserve to others while it is given back: it is not space for more records."""
        return self._has_reserve or self._reserve_bytes <= 0 or self._disk.free_bytes(self._folder) >= length + self._reserve_bytes

    def _drop_spare(self) -> None:
        if self._spare_fd < 0:
            return
        fd, self._spare_fd = self._spare_fd, -1
        try:
            self._disk.close(fd)
            self._disk.unlink(self._spare_path)
        except OSError:
            # It is made anew from nothing when it is needed; what is there is in nobody's way.
            pass

    def _prepare_early(self) -> None:
        """Set the next segment aside while this one still has room, so that a full disk is known before it matters."""
        self._spare_try_at = self._offset + self._segment_bytes // 16
        try:
            self._make_spare(0)
        except OSError as error:
            logger.warning("the next log segment cannot be set aside yet: %s", error)

    def _reserve(self) -> None:
        """Hold space that is given back when the disk is full, so that others can finish what they have begun."""
        if self._has_reserve or self._reserve_bytes <= 0:
            return
        try:
            fd = self._disk.open(f"{self._folder}/reserve", write=True, create=True)
            try:
                self._has_reserve = True
                if self._disk.size(fd) != self._reserve_bytes:
                    self._disk.truncate(fd, 0)
                    self._disk.allocate(fd, self._reserve_bytes)
            finally:
                self._disk.close(fd)
        except OSError as error:
            logger.warning("no space could be reserved: %s", error)
            self._release_reserve()

    def _release_reserve(self) -> None:
        if not self._has_reserve:
            return
        self._has_reserve = False
        try:
            self._disk.unlink(f"{self._folder}/reserve")
        except OSError as error:
            logger.warning("the reserve could not be released: %s", error)

    # -- recovery

    def _resume(self) -> None:
        """Start from the disk again after a failed append, keeping exactly what was acknowledged."""
        self._own.check()
        if self._fd >= 0:
            self._disk.forget_cache(self._fd)
        self._close_files()
        self._take_over(self._place)
        self._suspect = None

    def _take_over(self, acknowledged: Place | None) -> None:
        """Raise the epoch, look at what is there, and start a new segment behind it. The old ones are never written to again
        but for their seal.

        The last frame of a log that was not closed may be only in the kernel's memory, or its sync may have failed there. It
        is carried over: written again as the first frame of the new segment.
        """
        self._raise_epoch()
        self._remove([name for name in self._disk.listdir(self._folder) if name.endswith(making)])
        found = survey(self._disk, self._folder, self._epoch, acknowledged.position if acknowledged else None)
        last = found.segments[-1] if found.segments else None
        place = Place(last.end, last.chain, last.at_us) if last else Place(self._epoch.first, no_chain, 0)
        if acknowledged is not None:
            if place[:2] != acknowledged[:2]:
                raise damaged(f"{self._folder}/{last.name if last else 'epoch'}", 0, "acknowledged records are no longer there")
            place = acknowledged
        check_head(self._folder, found.segments, read_head(self._disk, self._folder), place.position)
        carried = last.last if last and not last.sealed and acknowledged is None else None
        start = Place(carried.first, carried.chain, last.before_us) if carried else place
        before = [s for s in found.segments if s.first < start.position]
        self._kept = [Kept(s.name, s.first, s.header.at_us) for s in before]
        self._has_reserve = self._has_reserve or self._disk.identity_at(f"{self._folder}/reserve") is not None
        self._start_segment(start, carried, 0)
        self._open_head()
        for segment in before:
            end = start if segment is before[-1] else Place(segment.end, segment.chain, segment.at_us)
            self._tidy(segment, end, carried.offset if carried and segment is last else segment.end_offset)
        self._remove([*found.strays, *(s.name for s in found.segments if s.first >= start.position)])
        self._epoch = self._epoch._replace(last=start.position)
        self._own.write_epoch(self._epoch)
        self._reserve()

    def _remove(self, names: list[str]) -> None:
        """Remove files that no longer count; one that stays is known for what it is next time."""
        for name in names:
            try:
                self._disk.unlink(f"{self._folder}/{name}")
            except OSError as error:
                logger.warning("%s could not be removed: %s", name, error)

    def _raise_epoch(self) -> None:
        """Become the writer of a new epoch; from here on an earlier one sees that it is no longer the writer."""
        epoch = read_epoch(self._disk, self._folder)
        names, superseded = segment_names(self._disk, self._folder)
        if epoch is None:
            if names:
                raise damaged(f"{self._folder}/epoch", 0, "the epoch file is missing beside segments")
            epoch = Epoch(0, 0, no_segment, self._disk.random_bytes(8))
        highest = max([epoch.epoch, *(segment_of_name(n)[1] for n in names + superseded)])
        self._epoch = epoch._replace(epoch=highest + 1)
        self._seed = seed_from(epoch.salt)
        self._own.write_epoch(self._epoch)

    def _open_head(self) -> None:
        self._head_fd = self._disk.open(f"{self._folder}/head", write=True, create=True)
        write_all(self._disk, self._head_fd, head_bytes(self._head()), 0)
        self._disk.fsync(self._head_fd)

    def _head(self) -> Head:
        return Head(self._place.position, self._kept[-1].first, self._epoch.epoch, self._offset)

    def _tidy(self, segment: Segment, end: Place, offset: int) -> None:
        """Seal what a crash left unsealed, and cut what it tore off behind it."""
        if segment.sealed and not segment.closed and not segment.untidy:
            return
        fd = self._disk.open(f"{self._folder}/{segment.name}", write=True)
        try:
            self._seal(fd, segment.name, offset, end)
        finally:
            self._disk.close(fd)

    # -- retention and end

    def retain(self, older_than_us: int, keep_from: int | None = None) -> int:
        """Remove whole segments whose records are all older, never the last one, and none with a record at or after
        ``keep_from`` (what somebody still has to read). Returns the first position that is kept.
        """
        if self._own is None:
            raise MidflightError("This log is closed", where=self._folder)
        gone = 0
        for after in self._kept[1:]:
            if after.at_us >= older_than_us or (keep_from is not None and after.first > keep_from):
                break
            gone += 1
        if not gone or self._suspect is not None or self._lost is not None:
            return self._epoch.first
        try:
            self._own.check()
            # First the note of what is kept, then the removal: what a crash leaves is known to be on its way out.
            self._epoch = self._epoch._replace(first=self._kept[gone].first)
            self._own.write_epoch(self._epoch)
            self._remove([segment.name for segment in self._kept[:gone]])
        except OSError as error:
            self._suspect = error
            raise self._refused(error) from error
        except Locked as error:
            self._lost = error
            raise
        self._kept = self._kept[gone:]
        return self._epoch.first

    def close(self) -> None:
        """Seal the last segment, tell readers how far it goes, and let another writer in. Does nothing the second time."""
        if self._own is None:
            return
        try:
            if self._lost is None:
                if self._suspect is not None:
                    # Leave exactly what was acknowledged, without what was refused and may have got to the disk all the same.
                    self._resume()
                self._own.check()
                self._seal(self._fd, self._kept[-1].name, self._offset, self._place, CLOSED)
                self._disk.fsync(self._head_fd)
        except (OSError, MidflightError) as error:
            logger.warning("the log was left as after a crash: %s", error)
        finally:
            self._let_go()

    def _close_files(self) -> None:
        self._drop_spare()
        open_files = [fd for fd in (self._fd, self._head_fd) if fd >= 0]
        self._fd = self._head_fd = -1
        for fd in open_files:
            self._disk.close(fd)

    def _let_go(self) -> None:
        self._close_files()
        if self._own is not None:
            self._own.release()
            self._own = None
