"""Reads a form with files, `multipart/form-data` as browsers send it (RFC 7578); its size is bounded before it comes here."""

from __future__ import annotations

import re

from ...kit.errors import MidflightError

parts_max = 500
_BOUNDARY = re.compile(r'multipart/form-data\s*;.*?boundary="?([^";,\s]{1,200})"?', re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name="([^"]*)"', re.IGNORECASE)
_FILE = re.compile(rb'[;\s]filename="([^"]*)"', re.IGNORECASE)


def parsed(kind: str, body: bytes) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return a form's fields as text, line ends as ``\\n``, and the files that were chosen, both by name. Raises MidflightError."""
    found = _BOUNDARY.match(kind)
    if not found:
        raise MidflightError("Not a form of this console", expected="`multipart/form-data`", got=kind[:100])
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    pieces = (b"\r\n" + body).split(b"\r\n--" + found[1].encode("latin-1", "replace"), parts_max + 2)
    for piece in pieces[1:]:
        if piece.startswith(b"--"):
            return fields, files
        head, blank, content = piece.partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if not blank or not name:
            break
        key = name[1].decode("utf-8", "replace")
        file = _FILE.search(head)
        if file is None:
            fields[key] = content.decode("utf-8", "replace").replace("\r\n", "\n")
        elif file[1] or content:
            files[key] = content
    raise MidflightError("The form is not whole", expected=f"at most {parts_max} fields and an end", todo="Send it again")
