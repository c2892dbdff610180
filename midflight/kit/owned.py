"""One process alone writes a file: a lock that ends with the process, however it ends."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TextIO

from .errors import ConfigError, Locked


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
