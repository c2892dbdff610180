"""Forms as senders post them, urlencoded or multipart, read as pairs in their order; no plugin (the underscore)."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

from .source import Malformed, Request

fields_max = 1000
part_header_bytes_max = 4096

_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;,]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name="([^"]*)"')
_FILE = re.compile(rb"[;\s]filename\*?=")


def form_pairs(request: Request) -> list[tuple[str, str]]:
    """Return the text fields of a form in order, a repeated one repeatedly; files are left out. Raises Malformed."""
    kind = request.header("content-type")
    try:
        if kind.lower().startswith("multipart/form-data"):
            return multipart_pairs(request.body, kind)
        return parse_qsl(request.body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=fields_max)
    except ValueError as error:  # also UnicodeDecodeError
        raise Malformed(f"The form cannot be read: {error}"[:200]) from None


def multipart_pairs(body: bytes, content_type: str) -> list[tuple[str, str]]:
    """Split RFC 7578 form data. Raises ValueError."""
    found = _BOUNDARY.search(content_type)
    if not found:
        raise ValueError("multipart without a boundary")
    delimiter = b"\r\n--" + (found.group(1) or found.group(2)).encode("utf-8", "replace")
    if body.count(delimiter) > fields_max:
        raise ValueError(f"more than {fields_max} fields")
    pairs = []
    for part in (b"\r\n" + body).split(delimiter)[1:]:
        if part.startswith(b"--"):
            return pairs
        head, blank, content = part.partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if not blank or not name or len(head) > part_header_bytes_max:
            raise ValueError("a part has no name")
        if not _FILE.search(head):
            pairs.append((name.group(1).decode("utf-8"), content.decode("utf-8")))
    raise ValueError("the multipart body has no end")


def first(pairs: list[tuple[str, str]], name: str) -> str:
    return next((value for key, value in pairs if key == name), "")


def last(pairs: list[tuple[str, str]], name: str) -> str:
    return next((value for key, value in reversed(pairs) if key == name), "")
