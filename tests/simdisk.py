"""A disk in memory that knows what a power cut may do: every sector not yet synced may be old, new or garbage.

Implements the `Disk` seam of the log. ``crash`` gives one of the disks that may be there after the power came back.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

from midflight.log.disk import Identity

sector_bytes = 512
folder = "/log"


class Inode:
    """A file: what programs see (`live`), what is on the plate (`durable`), and per sector what may have got there since."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.live = bytearray()
        self.durable = bytearray()
        self.pending: dict[int, list[bytes]] = {}
        self.sizes: list[int] = []
        self.locked_by = -1

    def touch(self, start: int, end: int) -> None:
        """Note the sectors of a range as they are now as what may be on the plate after a cut."""
        for sector in range(start // sector_bytes, -(-end // sector_bytes)):
            versions = self.pending.setdefault(sector, [])
            if len(versions) > 2:
                del versions[1]
            versions.append(bytes(self.live[sector * sector_bytes : (sector + 1) * sector_bytes]))

    def resize(self, size: int) -> None:
        if size < len(self.live):
            del self.live[size:]
            self.pending = {s: v for s, v in self.pending.items() if s * sector_bytes < size}
        else:
            self.live.extend(bytes(size - len(self.live)))
        self.sizes.append(size)

    def sync(self, size_too: bool) -> None:
        """Bring the dirty sectors to the plate; those that a failed sync left behind as clean are not among them."""
        if size_too or len(self.live) >= len(self.durable):
            del self.durable[len(self.live) :]
            self.durable.extend(bytes(len(self.live) - len(self.durable)))
            self.sizes.clear()
        for sector in self.pending:
            start, end = sector * sector_bytes, min((sector + 1) * sector_bytes, len(self.live))
            self.durable[start:end] = self.live[start:end]
        self.pending.clear()

    def fail_to_sync(self, rng: random.Random) -> None:
        """Do what Linux does: the pages count as clean from now on, whatever of them reached the plate."""
        for sector in self.pending:
            start, end = sector * sector_bytes, min((sector + 1) * sector_bytes, len(self.durable))
            if rng.random() < 0.5:
                self.durable[start:end] = self.live[start:end]
        self.pending.clear()

    def after_cut(self, rng: random.Random, mode: str) -> bytearray:
        """Return what the file may hold after a power cut."""
        size = len(self.durable)
        if self.sizes and (mode == "kept" or (mode not in ("lost",) and rng.random() < 0.5)):
            size = rng.choice(self.sizes)
        # A data write may have grown the file without a call for it.
        if not self.sizes and len(self.live) > size and mode != "lost" and rng.random() < 0.5:
            size = len(self.live)
        out = self.durable[:size].ljust(size, b"\0")
        for sector, versions in self.pending.items():
            fate = mode if mode in ("lost", "kept", "garbled") else rng.choice(FATES[mode])
            start = sector * sector_bytes
            if fate == "lost" or start >= size:
                continue
            data = rng.choice(versions) if fate == "kept" and mode != "kept" else versions[-1]
            if fate == "garbled":
                data = rng.randbytes(len(data))
            end = min(size, start + len(data))
            out[start:end] = data[: end - start]
        return out


FATES = {"mixed": ("lost", "kept", "garbled"), "torn": ("lost", "kept")}
MODES = ("lost", "kept", "garbled", "mixed", "mixed", "mixed", "torn", "torn")

# A change of the folder: names that go, and a name that comes with its file.
FolderChange = tuple[str | None, str | None, Inode | None]


class SimDisk:
    """One folder of files. ``after`` is called after each operation that changes something, with its name.

    ``fault(name, path)`` may return an OSError to raise instead of doing the operation, or ``"short"`` to write half.
    ``ignored`` are operations that only pretend (a build with relaxed syncing).
    """

    def __init__(self, ignored: frozenset[str] = frozenset()) -> None:
        self.ignored = ignored
        self.names: dict[str, Inode] = {}
        self.durable_names: dict[str, Inode] = {}
        self.folder_changes: list[FolderChange] = []
        self.files: dict[int, tuple[Inode, str]] = {}
        self.next_fd, self.next_inode = 3, 1
        self.after: Callable[[str], None] | None = None
        self.fault: Callable[[str, str], OSError | str | None] | None = None
        self.looks_count = False  # whether `after` is also called for looks at who owns the log
        self.free = 1 << 40
        self.randomness = random.Random(7)

    # -- the cut

    def crash(self, rng: random.Random) -> SimDisk:
        """Return a disk as it may be after a power cut now."""
        found = SimDisk()
        found.randomness = random.Random(rng.random())
        names = dict(self.durable_names)
        kept = rng.choice(("none", "all", "prefix", "some"))
        upto = rng.randint(0, len(self.folder_changes))
        for number, change in enumerate(self.folder_changes):
            if kept == "all" or (kept == "prefix" and number < upto) or (kept == "some" and rng.random() < 0.5):
                _apply(names, change)
        mode = rng.choice(MODES)
        settled: dict[int, Inode] = {}
        for name, inode in names.items():
            if inode.number not in settled:
                copy = settled[inode.number] = Inode(found.next_inode)
                found.next_inode += 1
                copy.live = inode.after_cut(rng, mode)
                copy.durable = bytearray(copy.live)
            found.names[name] = settled[inode.number]
        found.durable_names = dict(found.names)
        return found

    def kill(self) -> None:
        """End every process: descriptors and locks go, what is in the kernel's memory stays."""
        for inode, _ in self.files.values():
            inode.locked_by = -1
        self.files.clear()

    def digest(self) -> int:
        return hash(tuple((name, bytes(inode.live)) for name, inode in sorted(self.names.items())))

    # -- operations

    def _before(self, name: str, path: str = "") -> bool:
        """Raise what the fault plan says; return whether a write is to be short."""
        if self.fault is None:
            return False
        fault = self.fault(name, path)
        if isinstance(fault, OSError):
            raise fault
        return fault == "short"

    def _done(self, name: str) -> None:
        if self.after is not None:
            self.after(name)

    def _change(self, change: FolderChange, name: str) -> None:
        _apply(self.names, change)
        self.folder_changes.append(change)
        self._done(name)

    def make_folder(self, path: str) -> None:
        self._before("make_folder", path)

    def listdir(self, path: str) -> list[str]:
        self._before("listdir", path)
        inside = [name[len(path) + 1 :] for name in self.names if name.startswith(path + "/")]
        return [name for name in inside if "/" not in name]

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> int:
        self._before("open", path)
        new = path not in self.names
        if new and not create:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        if exclusive and not new:
            raise FileExistsError(errno.EEXIST, "the file exists", path)
        fd = self.next_fd
        self.next_fd += 1
        if new:
            inode = Inode(self.next_inode)
            self.next_inode += 1
            self.files[fd] = (inode, path)
            self._change((None, path, inode), "create")
        else:
            self.files[fd] = (self.names[path], path)
        return fd

    def close(self, fd: int) -> None:
        inode, _ = self.files.pop(fd)
        if inode.locked_by == fd:
            inode.locked_by = -1

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        inode, path = self.files[fd]
        self._before("pread", path)
        return bytes(inode.live[offset : offset + length])

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        inode, path = self.files[fd]
        if self._before("pwrite", path):
            data = data[: max(1, len(data) // 2)]
        end = offset + len(data)
        if end > len(inode.live):
            inode.live.extend(bytes(end - len(inode.live)))
        inode.live[offset:end] = data
        inode.touch(offset, end)
        self._done("pwrite")
        return len(data)

    def fdatasync(self, fd: int) -> None:
        self._sync(fd, "fdatasync", False)

    def fsync(self, fd: int) -> None:
        self._sync(fd, "fsync", True)

    def _sync(self, fd: int, name: str, size_too: bool) -> None:
        inode, path = self.files[fd]
        if self.fault is not None:
            fault = self.fault(name, path)
            if isinstance(fault, OSError):
                inode.fail_to_sync(self.randomness)
                raise fault
        if name not in self.ignored:
            inode.sync(size_too)
        self._done(name)

    def fsync_folder(self, path: str) -> None:
        self._before("fsync_folder", path)
        if "fsync_folder" not in self.ignored:
            self.durable_names = dict(self.names)
            self.folder_changes.clear()
        self._done("fsync_folder")

    def allocate(self, fd: int, length: int) -> None:
        inode, path = self.files[fd]
        self._before("allocate", path)
        if length > len(inode.live):
            inode.resize(length)
        self._done("allocate")

    def truncate(self, fd: int, length: int) -> None:
        inode, path = self.files[fd]
        self._before("truncate", path)
        inode.resize(length)
        self._done("truncate")

    def rename(self, source: str, target: str) -> None:
        self._before("rename", source)
        if source not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", source)
        self._change((source, target, self.names[source]), "rename")

    def unlink(self, path: str) -> None:
        self._before("unlink", path)
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        self._change((path, None, None), "unlink")

    def lock(self, fd: int) -> bool:
        inode, path = self.files[fd]
        self._before("lock", path)
        if inode.locked_by not in (-1, fd):
            return False
        inode.locked_by = fd
        return True

    def size(self, fd: int) -> int:
        self._before("size", self.files[fd][1])
        return len(self.files[fd][0].live)

    def identity(self, fd: int) -> Identity:
        self._before("identity", self.files[fd][1])
        return Identity(1, self.files[fd][0].number)

    def identity_at(self, path: str) -> Identity | None:
        self._before("identity_at", path)
        found = Identity(1, self.names[path].number) if path in self.names else None
        if self.looks_count:
            self._done("identity_at")
        return found

    def free_bytes(self, path: str) -> int:
        self._before("free_bytes", path)
        return self.free

    def forget_cache(self, fd: int) -> None:
        """Read from the plate again: clean pages are dropped, as far as their content is known to be there."""
        inode, path = self.files[fd]
        self._before("forget_cache", path)
        for sector in range(-(-len(inode.live) // sector_bytes)):
            if sector not in inode.pending:
                start = sector * sector_bytes
                end = min(len(inode.live), start + sector_bytes)
                inode.live[start:end] = inode.durable[start:end].ljust(end - start, b"\0")

    def random_bytes(self, length: int) -> bytes:
        return self.randomness.randbytes(length)


def _apply(names: dict[str, Inode], change: FolderChange) -> None:
    gone, come, inode = change
    if gone is not None:
        names.pop(gone, None)
    if come is not None and inode is not None:
        names[come] = inode
