"""Finds where the elements of a JSON array begin and end without reading them, so that one bad element does not spoil the others."""

from __future__ import annotations

import re
from collections.abc import Generator

step_marks = 50_000  # after so many marks a stepwise search lets others run
marks_max = 2_000_000  # strings, brackets and commas; 10,000 ordinary events have a third of that
levels_max = 64

BLANK = b" \t\r\n"
# A string, a bracket or a comma. Escapes have been blanked out.
_MARKS = re.compile(rb'"[^"]*"|[\[\]{},]')


class NoPieces(ValueError):
    """The brackets do not pair, or are nested too deeply: nobody can say where an element ends."""


class TooManyPieces(NoPieces):
    """There are more elements, or more in them, than was allowed."""


def blanked(body: bytes) -> bytes:
    """Return JSON with the escapes in its strings blanked out, at the same length: a quote then always begins or ends a string."""
    return body.replace(b"\\\\", b"__").replace(b'\\"', b"__")


def pieces(body: bytes, pieces_max: int = 10_000) -> list[bytes]:
    """Return the elements of an array as bytes, each JSON or not. Raises NoPieces."""
    steps = pieces_stepwise(body, pieces_max)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def pieces_stepwise(body: bytes, pieces_max: int, brackets: bytes = b"[]") -> Generator[None, None, list[bytes]]:
    """Do what `pieces` does with a rest now and then; ``brackets`` are the outer ones. Raises NoPieces, TooManyPieces."""
    body = body.strip(BLANK)
    if body[:1] != brackets[:1] or body[-1:] != brackets[1:]:
        raise NoPieces("The body is not JSON, or cut short")
    found: list[bytes] = []
    start, depth, inner_end = 1, 0, len(body) - 1
    for count, mark in enumerate(_MARKS.finditer(blanked(body), 1, inner_end)):
        sign = body[mark.start()]
        if sign in b"[{":
            depth += 1
            if depth > levels_max:
                raise NoPieces("The body is nested too deeply")
        elif sign in b"]}":
            depth -= 1
            if depth < 0:
                raise NoPieces("The body is not JSON: its brackets do not pair")
        elif sign == 44 and not depth:  # a comma
            found.append(body[start : mark.start()])
            start = mark.end()
            if len(found) >= pieces_max:
                raise TooManyPieces(f"The body has more than {pieces_max} elements")
        if count % step_marks == step_marks - 1:
            if count > marks_max:
                raise TooManyPieces("The body is not JSON, and too much to find what is in it")
            yield
    if depth:
        raise NoPieces("The body is not JSON, or cut short")
    last = body[start:inner_end]
    return [*found, last] if found or last.strip(BLANK) else []
