"""Who may write: a lock on `log/lock` and an epoch in `log/epoch`, both looked at before and after each commit."""

from __future__ import annotations

import os

from midflight.kit.errors import Locked

from .disk import Disk, Identity, write_all
from .format import Epoch, epoch_bytes
from .survey import read_file

making = ".making"  # how the name of a file ends that is not yet what it will be


class Ownership:
    """Holds the lock file and the epoch file open, so that neither's inode number can come to mean another file.

    The lock keeps a second writer out. The epoch stops a writer that was paused while somebody deleted the lock file and
    another took over: its next look finds another file at the path. It looks once more after its records are durable
    and before it says so, so whoever took over before that look has the records' frame in front of it when it recovers.
    """

    def __init__(self, disk: Disk, folder: str) -> None:
        self._disk, self._folder = disk, folder
        self._lock_fd, self._lock_identity = self._take_lock()
        self._token, self._made = disk.random_bytes(8).hex(), 0
        self._epoch_fd = -1
        self._epoch_identity: Identity | None = None

    def _take_lock(self) -> tuple[int, Identity]:
        path = f"{self._folder}/lock"
        for _ in range(10):
            fd = self._disk.open(path, write=True, create=True)
            try:
                if not self._disk.lock(fd):
                    holder = (read_file(self._disk, path) or b"").rstrip(b"\0\n").decode("ascii", "replace")
                    raise Locked("Another process writes this log", got=holder or None, where=path, todo="Stop it first")
                identity = self._disk.identity(fd)
                if identity == self._disk.identity_at(path):
                    self._note_holder(fd)
                    return fd, identity
            except BaseException:
                self._disk.close(fd)
                raise
            # Somebody replaced the file between our opening and locking it.
            self._disk.close(fd)
        raise Locked("The lock file keeps being replaced", where=path)

    def _note_holder(self, fd: int) -> None:
        """Leave the process id in the lock file, only to be shown to whoever is refused."""
        try:
            write_all(self._disk, fd, f"process {os.getpid()}\n".encode().ljust(32, b"\n"), 0)
        except OSError:
            # It is only for people; the lock itself is held.
            pass

    def write_epoch(self, epoch: Epoch) -> None:
        """Replace the epoch file durably. After an OSError the file may be the old or the new one."""
        path, new = f"{self._folder}/epoch", self.unfinished("epoch")
        fd = self._disk.open(new, write=True, create=True, exclusive=True)
        try:
            write_all(self._disk, fd, epoch_bytes(epoch), 0)
            self._disk.fsync(fd)
            self._check_lock()
            identity = self._disk.identity(fd)
            self._disk.rename(new, path)
        except BaseException:
            self._disk.close(fd)
            raise
        # The name is the new file's from here on, durable or not: else we would take our own file for a stranger's.
        if self._epoch_fd >= 0:
            self._disk.close(self._epoch_fd)
        self._epoch_fd, self._epoch_identity = fd, identity
        self._disk.fsync_folder(self._folder)

    def unfinished(self, what: str) -> str:
        """Return the path of a new file in the making; writers that overlap must never hold the same one."""
        self._made += 1
        return f"{self._folder}/{what}.{self._token}.{self._made}{making}"

    def _check_lock(self) -> None:
        if self._disk.identity_at(f"{self._folder}/lock") != self._lock_identity:
            raise self._lost("lock")

    def check(self) -> None:
        """Raise Locked when the lock file or the epoch file is no longer ours."""
        self._check_lock()
        if self._disk.identity_at(f"{self._folder}/epoch") != self._epoch_identity:
            raise self._lost("epoch")

    def _lost(self, name: str) -> Locked:
        return Locked("Another process has taken this log over", where=f"{self._folder}/{name}", todo="Restart this one")

    def release(self) -> None:
        for fd in (self._epoch_fd, self._lock_fd):
            if fd >= 0:
                self._disk.close(fd)
        self._epoch_fd = self._lock_fd = -1
