"""Holds everything that automation does, within a second, also where neither engine nor store nor door answers.

It is one small file in the data folder. Whoever asks for a hold writes it and may say "held" once it is on the disk; the conductor looks
at it in each of its turns and right before each call, and keeps in its ledger who asked and why. The file stays over restarts. Where it is
there and cannot be read, everything is held: somebody wanted something, and nothing is the safe guess.

What has begun by then ends: nobody can call back what has left this machine. What a person asked to undo is undone also while all is held.

More than one process may write it, whole or not at all, and without a lock: a console that hangs must not keep the command line from
holding. Of two at the same moment the last one counts.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec

from ..events import clean
from ..kit.errors import MidflightError

FILE = "hold.json"
bytes_max = 16 * 1024
who_chars_max = 200
why_chars_max = 2_000


class NotHeld(MidflightError):
    """The switch could not be turned; nothing has changed."""

    status = 503
    code = "not_held"


class TurnedSince(NotHeld):
    """Somebody else has turned the switch since it was looked at."""

    status = 409


class Hold(msgspec.Struct, kw_only=True, frozen=True):
    """How the switch stands: ``number`` counts its turns; who turned it last, when and why."""

    held: bool = False
    number: int = 0
    who: str = ""
    why: str = ""
    at_us: int = 0

    def text(self) -> str:
        """Return why everything is held, or nothing where it is not."""
        return f"held by {self.who}{': ' + self.why if self.why else ''}" if self.held else ""


UNREADABLE = Hold(held=True, number=-1, who="the kill switch", why=f"`{FILE}` cannot be read; hold or release anew to mend it")


def hold(folder: Path, who: str, why: str, now_us: int) -> Hold:
    """Hold everything. What this returns is on the disk. Raises NotHeld."""
    return _turn(folder, True, who, why, now_us)


def release(folder: Path, who: str, why: str, now_us: int, number: int) -> Hold:
    """Let things go on that were held with that number: who releases says what he has seen. What this returns is on the disk.

    Raises NotHeld, also where somebody else has turned the switch since.
    """
    now = read(folder)
    if now.number != number:
        raise TurnedSince(
            "The switch was turned again since", expected=f"number {number}", got=now.number, todo="Look why, and release anew"
        )
    return _turn(folder, False, who, why, now_us)


def _turn(folder: Path, held: bool, who: str, why: str, now_us: int) -> Hold:
    try:
        number = max(read(folder).number, 0) + 1
        now = Hold(held=held, number=number, who=clean(who)[:who_chars_max], why=clean(why)[:why_chars_max], at_us=now_us)
        _write(folder, msgspec.json.encode(now))
        return now
    except OSError as error:
        what = "Everything could not be held" if held else "What is held could not be released"
        todo = "Make room on the disk, or stop the conductor" if held else "Make room on the disk"
        raise NotHeld(what, got=error.strerror, where=str(folder / FILE), todo=todo) from None


def read(folder: Path) -> Hold:
    """Return how the switch stands; a file that cannot be read holds."""
    try:
        with (folder / FILE).open("rb") as file:
            body = file.read(bytes_max + 1)
        return msgspec.json.decode(body, type=Hold) if len(body) <= bytes_max else UNREADABLE
    except FileNotFoundError:
        return Hold()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return UNREADABLE


def _write(folder: Path, body: bytes) -> None:
    """Put the file there, whole and on the disk, or not at all."""
    part = folder / f"{FILE}.{os.getpid()}.part"
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        if os.write(fd, body) != len(body):
            raise OSError(errno.ENOSPC, "the disk is full")
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(part, folder / FILE)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Switch:
    """The conductor's eye on the file: it is read again when it has changed, which costs a look at its status."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: tuple[int, int, int] | None = None
        self._hold = Hold()

    def look(self) -> Hold:
        """Return how the switch stands now."""
        try:
            about = (self.folder / FILE).stat()
            seen = (about.st_ino, about.st_mtime_ns, about.st_size)
        except FileNotFoundError:
            seen = (0, 0, 0)
        except OSError:
            self._seen = None
            return UNREADABLE
        if seen != self._seen or self._hold is UNREADABLE:
            self._hold, self._seen = read(self.folder), seen
        return self._hold
