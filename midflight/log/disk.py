"""The seam between the log and the operating system: every call the log makes goes through a `Disk`."""

from __future__ import annotations

import fcntl
import os
from typing import NamedTuple, Protocol


class Identity(NamedTuple):
    """Which file a path or a descriptor means. While a descriptor is open, no other file can get its number."""

    device: int
    inode: int


class Disk(Protocol):
    """The calls the log needs. All raise OSError; `pwrite` may write less than it was given."""

    def make_folder(self, path: str) -> None: ...
    def listdir(self, path: str) -> list[str]: ...
    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> int: ...
    def close(self, fd: int) -> None: ...
    def pread(self, fd: int, length: int, offset: int) -> bytes: ...
    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int: ...
    def fdatasync(self, fd: int) -> None: ...
    def fsync(self, fd: int) -> None: ...
    def fsync_folder(self, path: str) -> None: ...
    def allocate(self, fd: int, length: int) -> None: ...
    def truncate(self, fd: int, length: int) -> None: ...
    def rename(self, source: str, target: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def lock(self, fd: int) -> bool: ...
    def size(self, fd: int) -> int: ...
    def identity(self, fd: int) -> Identity: ...
    def identity_at(self, path: str) -> Identity | None: ...
    def free_bytes(self, path: str) -> int: ...
    def forget_cache(self, fd: int) -> None: ...
    def random_bytes(self, length: int) -> bytes: ...


class OsDisk:
    """The real one, for Linux."""

    def make_folder(self, path: str) -> None:
        """Make a folder and those above it, and make their names durable; one that is there is only made durable."""
        path = os.path.abspath(path)
        missing = [path]
        while not os.path.isdir(os.path.dirname(missing[-1])):
            missing.append(os.path.dirname(missing[-1]))
        for folder in reversed(missing):
            try:
                os.mkdir(folder, mode=0o700)
            except FileExistsError:
                if not os.path.isdir(folder):
                    raise
            self.fsync_folder(os.path.dirname(folder))

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> int:
        """Open a file; ``exclusive`` refuses one that is already there."""
        flags = (os.O_RDWR if write else os.O_RDONLY) | (os.O_CREAT if create else 0) | (os.O_EXCL if exclusive else 0)
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def fsync_folder(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def allocate(self, fd: int, length: int) -> None:
        os.posix_fallocate(fd, 0, length)

    def truncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def lock(self, fd: int) -> bool:
        """Take the exclusive lock of an open file; False when another process holds it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def identity(self, fd: int) -> Identity:
        found = os.fstat(fd)
        return Identity(found.st_dev, found.st_ino)

    def identity_at(self, path: str) -> Identity | None:
        """Return which file a path means now, None when there is none."""
        try:
            found = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return Identity(found.st_dev, found.st_ino)

    def free_bytes(self, path: str) -> int:
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def forget_cache(self, fd: int) -> None:
        """Ask the kernel to read the file from the disk again, not from memory."""
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def random_bytes(self, length: int) -> bytes:
        return os.urandom(length)


# An interrupted call is repeated, but not for ever.
interruptions_max = 100


def write_all(disk: Disk, fd: int, data: bytes, offset: int) -> None:
    """Write everything or raise; a short write is continued, an interrupted one repeated."""
    rest, interruptions = memoryview(data), 0
    while rest:
        try:
            done = disk.pwrite(fd, rest, offset)
        except InterruptedError:
            interruptions += 1
            if interruptions > interruptions_max:
                raise
            continue
        if done <= 0:
            raise OSError(5, "the disk took nothing of a write")
        rest = rest[done:]
        offset += done


def read_all(disk: Disk, fd: int, length: int, offset: int) -> bytes:
    """Read until the length or the end of the file is reached."""
    parts: list[bytes] = []
    interruptions = 0
    while length > 0:
        try:
            part = disk.pread(fd, length, offset)
        except InterruptedError:
            interruptions += 1
            if interruptions > interruptions_max:
                raise
            continue
        if not part:
            break
        parts.append(part)
        length -= len(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
