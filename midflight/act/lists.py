"""Audiences that were handed in, kept as files named by what is in them: an order names one, and nobody can change it afterwards."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from ..kit.errors import NotFound

list_bytes_max = 4 << 30
_NAME = re.compile(r"[0-9a-f]{64}\.csv")


def keep(folder: Path, body: bytes) -> str:
    """Write a list into ``folder/audiences`` and return its name; the same list twice is one file."""
    name = f"{hashlib.sha256(body).hexdigest()}.csv"
    lists = folder / "audiences"
    lists.mkdir(mode=0o700, exist_ok=True)
    path = lists / name
    if not path.exists():
        part = lists / f".{name}.{os.getpid()}"
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    return name


def place_of(folder: Path, name: str) -> Path:
    """Return where a list is. Raises NotFound."""
    path = folder / "audiences" / name
    if not _NAME.fullmatch(name) or not path.exists():
        raise NotFound("There is no such list", got=name[:80], todo="Hand it in again")
    return path
