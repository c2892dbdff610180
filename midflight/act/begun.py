"""Which calls can have had an effect: noted right before the bytes that make a call complete leave this process.

What the outbox calls open after a death and this file does not name was never sent, and goes again. The file is not synced: a process that
is killed leaves it whole, and after a power cut it belongs to another boot and is not believed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

size_max = 1 << 20  # beyond it, what has ended is left out


def boot_id() -> str:
    """Return what names this start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Begun:
    """The file ``outbox.begun``. ``found`` are the intents that a former process of this boot noted; None where that cannot be known."""

    def __init__(self, path: Path, boot: str = "") -> None:
        self.path = path
        self._boot = boot or boot_id()
        self.found = self._read()
        self._fd = -1
        self._size = 0

    def _read(self) -> set[str] | None:
        try:
            first, *intents = self.path.read_text("ascii", "replace").split("\n")
        except FileNotFoundError:
            return None
        return set(intents) if first == self._boot else None

    def start(self) -> None:
        """Begin a new file; what the former one said has been dealt with."""
        self._write([])

    def note(self, intents: Iterable[str]) -> None:
        """Note calls that are about to be complete."""
        data = "".join(f"{intent}\n" for intent in intents).encode()
        os.write(self._fd, data)
        self._size += len(data)

    def tidy(self, under_way: Iterable[str]) -> None:
        """Leave out what has ended and is noted as such in the outbox, where the file has grown large."""
        if self._size > size_max:
            self._write(under_way)

    def _write(self, intents: Iterable[str]) -> None:
        part = self.path.with_suffix(".begun.part")
        data = "".join(f"{line}\n" for line in (self._boot, *intents)).encode()
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        os.write(fd, data)
        os.replace(part, self.path)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size = fd, len(data)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
