"""One process alone writes a file: a lock that ends with the process, however it ends, and a SQLite file of such a process."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TextIO

import apsw

from .errors import ConfigError, Locked

busy_ms = 2_000  # who looks into the file from outside may lock it for a moment
journal_bytes_max = 16 << 20


def own(path: Path, what: str, **said: str) -> TextIO:
    """Lock a file until what is returned is closed. Raises Locked with these words where another process has it, ConfigError where the
    file cannot be made."""
    try:
        file = path.open("a+")
    except OSError as error:
        raise ConfigError(f"The folder cannot be written: {error.strerror}", got=path.parent) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise Locked(what, **said) from None
    return file


def database(path: Path, schema: str) -> apsw.Connection:
    """Open a SQLite file that this process alone writes, and make what is not there of its tables. What is committed is on disk."""
    db = apsw.Connection(str(path))
    db.set_busy_timeout(busy_ms)
    for pragma in ("journal_mode = WAL", "synchronous = FULL", f"journal_size_limit = {journal_bytes_max}"):
        db.execute(f"PRAGMA {pragma}")
    with db:
        db.execute(schema)
    return db
