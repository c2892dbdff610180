"""A SQLite file that another process writes, and may put a new one in place of: open to read, and opened again when it is another one."""

from __future__ import annotations

from pathlib import Path

import apsw

busy_ms = 250  # who makes a file, or mends it after a crash, locks it for a moment


class Renewed:
    """The connection to the file as it is now. All of it is for one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db: apsw.Connection | None = None
        self._identity: tuple[int, int] | None = None

    def get(self) -> apsw.Connection | None:
        """Return the connection; None where there is no file. Raises OSError and apsw.Error."""
        try:
            about = self.path.stat()
        except FileNotFoundError:
            self.close()
            return None
        identity = (about.st_dev, about.st_ino)
        if self._db is None or identity != self._identity:
            self.close()
            self._db, self._identity = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY), identity
            self._db.set_busy_timeout(busy_ms)
        return self._db

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
