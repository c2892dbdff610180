"""The bytes of the log: segment header, frames, the epoch file and the head file.

Everything is little-endian and starts on a 512-byte sector, so that no write ever touches a sector that holds acknowledged
records: a write torn by a power cut can only hurt what nobody was told is stored. Every check is xxh3-128, seeded with the
log's own random salt; a sender who puts bytes that look like a frame into a webhook cannot make them pass for one.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from xxhash import xxh3_128_digest

from midflight.kit.errors import Damaged, MidflightError

VERSION = 1
sector_bytes = 512
header_copy_offset = 4096
data_offset = 8192
frame_bytes_max = 48 * 1024 * 1024

RECORDS, GAP, SEAL = 1, 2, 3
# A seal written by an orderly close promises no next segment; one written when moving on does.
CLOSED = 1

FRAME_MAGIC = b"MFfr"
FRAME = struct.Struct("<16s4sBBHIIQQQ16s")  # check, magic, kind, flags, spare, length, count, first, epoch, at_us, chain
_SEGMENT = struct.Struct("<16s8sHHIQQQ8s16s")  # check, magic, version, spare, spare, first, epoch, at_us, salt, chain
_EPOCH = struct.Struct("<16s8sHHIQQQ8s")  # check, magic, version, spare, spare, epoch, first, last, salt
_HEAD = struct.Struct("<16s8sQQQQ")  # check, magic, position, segment, epoch, offset
_SEGMENT_MAGIC, _EPOCH_MAGIC, _HEAD_MAGIC = b"MFlogseg", b"MFlogepo", b"MFloghea"

no_chain = bytes(16)


class Frame(NamedTuple):
    """One frame as found at ``offset``; ``size`` includes header and padding, ``end`` is the position after it."""

    offset: int
    size: int
    kind: int
    flags: int
    count: int
    first: int
    epoch: int
    at_us: int
    chain: bytes
    check: bytes
    payload: bytes

    @property
    def end(self) -> int:
        return self.first + self.count

    @property
    def next_chain(self) -> bytes:
        """Return the chain that the frame after this one carries; a gap names the check of what it stands for."""
        if self.kind == GAP and self.payload[:16] != no_chain:
            return self.payload[:16]
        return self.check


class SegmentHeader(NamedTuple):
    """What a segment says about itself; ``chain`` is the check of the last frame before it."""

    first: int
    epoch: int
    at_us: int
    salt: bytes
    chain: bytes


class Epoch(NamedTuple):
    """Who writes now (``epoch``), what retention has left (``first``), and the newest segment known to exist (``last``).

    ``last`` is `no_segment` until the first segment is on the disk.
    """

    epoch: int
    first: int
    last: int
    salt: bytes


class Head(NamedTuple):
    """How far the log is durable: the next position, and the segment and offset where it will stand."""

    position: int
    segment: int
    epoch: int
    offset: int


no_segment = (1 << 64) - 1


def seed_from(salt: bytes) -> int:
    return int.from_bytes(salt, "little")


def padded(length: int) -> int:
    return -(-length // sector_bytes) * sector_bytes


def frame_size(payload_length: int) -> int:
    return padded(FRAME.size + payload_length)


def frame_bytes(
    seed: int, kind: int, payload: bytes, *, count: int, first: int, epoch: int, at_us: int, chain: bytes, flags: int = 0
) -> bytes:
    """Return a whole frame; its first 16 bytes are its check."""
    head = FRAME.pack(no_chain, FRAME_MAGIC, kind, flags, 0, len(payload), count, first, epoch, at_us, chain)[16:]
    body = b"".join((head, payload, bytes(frame_size(len(payload)) - FRAME.size - len(payload))))
    return xxh3_128_digest(body, seed) + body


def frame_from(data: bytes | memoryview, at: int, offset: int, seed: int) -> Frame | None:
    """Return the frame that starts at ``data[at]`` (``offset`` in the file), None when no whole, valid one does."""
    if len(data) - at < FRAME.size:
        return None
    check, magic, kind, flags, _, length, count, first, epoch, at_us, chain = FRAME.unpack_from(data, at)
    size = frame_size(length)
    if magic != FRAME_MAGIC or at + size > len(data) or xxh3_128_digest(data[at + 16 : at + size], seed) != check:
        return None
    start = at + FRAME.size
    return Frame(offset, size, kind, flags, count, first, epoch, at_us, chain, check, bytes(data[start : start + length]))


def _sealed(layout: struct.Struct, *fields: object) -> bytes:
    body = layout.pack(no_chain, *fields)[16:].ljust(sector_bytes - 16, b"\0")
    return xxh3_128_digest(body) + body


def _opened(layout: struct.Struct, magic: bytes, data: bytes, what: str) -> tuple | None:
    if len(data) < sector_bytes or data[16:24] != magic or xxh3_128_digest(data[16:sector_bytes]) != data[:16]:
        return None
    if layout is not _HEAD and int.from_bytes(data[24:26], "little") > VERSION:
        raise MidflightError(
            f"{what} was written by a newer Midflight", expected=f"format {VERSION}", got=int.from_bytes(data[24:26], "little")
        )
    return layout.unpack_from(data)


def segment_header_bytes(header: SegmentHeader) -> bytes:
    """Return the first 8 KiB of a segment: its header, twice, in different blocks."""
    one = _sealed(_SEGMENT, _SEGMENT_MAGIC, VERSION, 0, 0, *header)
    return (one.ljust(header_copy_offset, b"\0") + one).ljust(data_offset, b"\0")


def segment_header_from(data: bytes, what: str) -> SegmentHeader | None:
    """Return the header from its sector, None when it is not whole."""
    found = _opened(_SEGMENT, _SEGMENT_MAGIC, data, what)
    return SegmentHeader(*found[5:]) if found else None


def epoch_bytes(epoch: Epoch) -> bytes:
    return _sealed(_EPOCH, _EPOCH_MAGIC, VERSION, 0, 0, *epoch)


def epoch_from(data: bytes, what: str) -> Epoch | None:
    found = _opened(_EPOCH, _EPOCH_MAGIC, data, what)
    return Epoch(*found[5:]) if found else None


def head_bytes(head: Head) -> bytes:
    return _sealed(_HEAD, _HEAD_MAGIC, *head)


def head_from(data: bytes) -> Head | None:
    found = _opened(_HEAD, _HEAD_MAGIC, data, "log/head")
    return Head(*found[2:]) if found else None


def segment_name(first: int, epoch: int) -> str:
    """Return a segment's file name. The epoch in it keeps a writer that lost its lock from replacing its successor's file."""
    return f"{first:020d}.{epoch}.seg"


def segment_of_name(name: str) -> tuple[int, int] | None:
    """Return (first position, epoch) of a segment's file name, None for any other file."""
    first, _, rest = name.partition(".")
    epoch, _, ending = rest.partition(".")
    if ending != "seg" or len(first) != 20 or not (first.isdigit() and epoch.isdigit()):
        return None
    return int(first), int(epoch)


def damaged(path: str, offset: int, why: str) -> Damaged:
    """Return the error that names where the log is not what was written."""
    return Damaged(f"The log is damaged: {why}", where=f"{path} at byte {offset}", todo="`midflight log repair` keeps the rest")
