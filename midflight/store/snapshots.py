"""Snapshots of the shards on disk, so that a restart replays little; each is whole and proven, or not used."""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import xxhash

from ..kit.crash import crash_point
from ..stream.shard import Shard

logger = logging.getLogger("midflight.engine")

MAGIC = b"MFSNAP01"
kept_max = 2
_chunk = 16 << 20


class Header(msgspec.Struct):
    """What a snapshot is of."""

    signature: str
    position: int
    shards: int
    edge: dict


class _Summed:
    """A binary file that hashes what passes through."""

    def __init__(self, file) -> None:
        self.file = file
        self.hash = xxhash.xxh3_128()

    def write(self, data) -> None:
        view = memoryview(data).cast("B")
        for at in range(0, len(view), _chunk):
            part = view[at : at + _chunk]
            self.hash.update(part)
            self.file.write(part)

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.hash.update(data)
        return data

    def readinto(self, view: memoryview) -> int:
        done = 0
        while done < len(view):
            got = self.file.readinto(view[done : done + _chunk])
            if not got:
                break
            self.hash.update(view[done : done + got])
            done += got
        return done


class Snapshots:
    """The folder of snapshots, named by the log position they stand at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, header: Header, shards: list[Shard]) -> None:
        """Write a snapshot durably; an interrupted one leaves only a file that is swept later."""
        final = self.folder / f"{header.position:020d}.snap"
        # An engine that was killed may have left a child that still writes one for the same position.
        part = final.with_suffix(f".{os.getpid()}.part")
        with part.open("wb", buffering=0) as file:
            out = _Summed(file)
            head = msgspec.msgpack.encode(header)
            out.write(MAGIC + struct.pack("<Q", len(head)) + head)
            for shard in shards:
                shard.write(out)
                crash_point("during_snapshot")
            file.write(out.hash.digest())
            os.fsync(file.fileno())
        part.rename(final)
        folder = os.open(self.folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        for old in sorted(self.folder.glob("*.snap"))[:-kept_max]:
            old.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what an interrupted writer left."""
        for part in self.folder.glob("*.part"):
            part.unlink(missing_ok=True)

    def clear(self, after: int = -1) -> None:
        """Remove the snapshots beyond a position: a store that is older than they are gives its names other numbers from there on."""
        for path in self.folder.glob("*.snap"):
            if int(path.stem) > after:
                path.unlink()

    def load(self, signature: str, position_max: int, make) -> tuple[Header, list[Shard]] | None:
        """Return the newest snapshot of that fold at or before a position, or None. ``make()`` gives an empty shard."""
        for path in self._newest_first():
            if int(path.stem) > position_max:
                continue
            found = self._read(path, signature, make)
            if found is not None:
                return found
        return None

    def oldest_position(self) -> int | None:
        """Return where the oldest kept snapshot stands: records before it are not needed for a restart."""
        found = sorted(self.folder.glob("*.snap"))
        return int(found[0].stem) if found else None

    def _newest_first(self) -> Iterator[Path]:
        return iter(sorted(self.folder.glob("*.snap"), reverse=True))

    def _read(self, path: Path, signature: str, make) -> tuple[Header, list[Shard]] | None:
        """Return a snapshot if every byte is as written and it is of this fold; a damaged one is set aside by name."""
        try:
            # Nothing that a flipped bit could have made huge is believed before the whole file is proven.
            _prove(path)
            with path.open("rb", buffering=0) as file:
                source = _Summed(file)
                if source.read(len(MAGIC)) != MAGIC:
                    raise ValueError("not a snapshot")
                (size,) = struct.unpack("<Q", source.read(8))
                header = msgspec.msgpack.decode(source.read(size), type=Header)
                if header.signature != signature:
                    return None
                shards = [make() for _ in range(header.shards)]
                for shard in shards:
                    shard.read(source)
                return header, shards
        except (ValueError, msgspec.DecodeError, struct.error, OSError) as error:
            aside = path.with_suffix(".damaged")
            path.rename(aside)
            logger.warning("a snapshot is damaged (%s) and is set aside as %s; the log has all that was in it", error, aside)
            return None


def _prove(path: Path) -> None:
    """Raise ValueError unless a file ends with the checksum of all that is before it."""
    left = path.stat().st_size - 16
    if left < len(MAGIC) + 8:
        raise ValueError("it is cut short")
    with path.open("rb", buffering=0) as file:
        source = _Summed(file)
        while left > 0 and (part := source.read(min(left, _chunk))):
            left -= len(part)
        if file.read(17) != source.hash.digest():
            raise ValueError("its checksum does not fit")
