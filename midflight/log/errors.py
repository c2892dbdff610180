"""What the log says when it cannot take, keep or find records."""

from __future__ import annotations

import errno

from midflight.kit.errors import MidflightError

# EFBIG is what a file size limit (RLIMIT_FSIZE) gives; for the sender it is the same as a full disk.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Unwritable(MidflightError):
    """The disk refused a write; the records of that append are not stored. The next append tries again."""

    status = 429
    code = "unwritable"


class Full(Unwritable):
    """No space is left for the log; it goes on by itself once there is."""

    code = "full"


class Unreadable(MidflightError):
    """The disk refused a read; nothing is known to be wrong with the log itself. Try again."""

    status = 500
    code = "unreadable"


class NotKept(MidflightError):
    """A position before the first record that retention has left."""

    status = 404
    code = "not_kept"


class TooLarge(MidflightError):
    """One record that is larger than a frame may be."""

    status = 413
    code = "too_large"


def unreadable_from(error: OSError, path: object) -> Unreadable:
    name = errno.errorcode.get(error.errno or 0, str(error))
    return Unreadable("The log cannot be read", got=name, where=str(path), todo="Look at the disk and at the folder's owner and rights")


def unwritable_from(error: OSError, path: object) -> Unwritable:
    """Return the typed error for a refused write: `Full` when space is what is missing."""
    name = errno.errorcode.get(error.errno or 0, str(error))
    if error.errno in _FULL:
        return Full("No space left for the log", got=name, where=str(path), todo="Free space; the log goes on by itself")
    return Unwritable("The log cannot be written", got=name, where=str(path), todo="Look at the disk and at the folder's owner and rights")
