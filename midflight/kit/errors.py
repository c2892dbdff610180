"""One error shape: what is wrong, what was expected, what came, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MidflightError(Exception):
    """An operator's or a client's mistake, worded for the person who can mend it."""

    status = 400
    code = "error"
    # How a command ends that meets this error: 2 is an operator's mistake, which trying again does not mend.
    exit_status = 2

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        got: object = None,
        where: str | None = None,
        todo: str | None = None,
    ) -> None:
        self.what = what
        self.expected = expected
        self.got = None if got is None else str(got)[:200]
        self.where = where
        self.todo = todo
        super().__init__(self.text())

    def text(self) -> str:
        """Return the one-line form: ``what: expected X, got Y - at `where`. What to do.``"""
        line = self.what
        if self.expected:
            line += f": expected {self.expected}"
            if self.got is not None:
                line += f", got {self.got}"
        elif self.got is not None:
            line += f": got {self.got}"
        if self.where:
            line += f" - at `{self.where}`"
        if self.todo:
            line += f". {self.todo}"
        return line

    def as_dict(self) -> dict:
        """Return the JSON error shape that every endpoint answers with."""
        error = {"code": self.code, "what": self.what}
        for name in ("expected", "got", "where", "todo"):
            if getattr(self, name) is not None:
                error[name] = getattr(self, name)
        return {"ok": False, "error": error, "status": self.status}


class ConfigError(MidflightError):
    """The configuration is wrong; the start is refused."""

    code = "config"


class NotFound(MidflightError):
    """A name that nothing answers to."""

    status = 404
    code = "not_found"


class Damaged(MidflightError):
    """Bytes on disk are not what was written. They are named and never served."""

    status = 500
    code = "damaged"
    # Not the start's fault: whoever supervises keeps the rest going, above all the door, until somebody has looked.
    exit_status = 3


class Locked(MidflightError):
    """Another process owns the file, or has taken it over."""

    status = 409
    code = "locked"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean `x`?`` for an unknown name, or the list of the known ones."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean `{close[0]}`?"
    return "Known: " + ", ".join(f"`{k}`" for k in known) if known else "None is defined"
