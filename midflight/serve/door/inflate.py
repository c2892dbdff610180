"""Content decoding with limits: a body is inflated piece by piece, and no further than it may be."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from ...sources.source import Malformed
from .check import TooLarge

members_max = 16
piece_bytes = 512 * 1024
# zlib's window codes: gzip; zlib; raw deflate, which some senders call `deflate`.
GZIP, ZLIB, RAW = 31, 15, -15

ENCODINGS = ("", "identity", "gzip", "x-gzip", "deflate")


def inflate(body: bytes, encoding: str, bytes_max: int) -> Iterator[bytes]:
    """Yield the decoded pieces of a body, each at most `piece_bytes`. Raises Malformed, TooLarge."""
    if encoding in ("gzip", "x-gzip"):
        return _members(body, bytes_max)
    return _stream(body, ZLIB if looks_like_zlib(body) else RAW, bytes_max)


def looks_like_zlib(body: bytes) -> bool:
    return len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0


def _members(body: bytes, bytes_max: int) -> Iterator[bytes]:
    left = bytes_max
    for count in range(members_max + 1):
        if count and not body:
            return
        if count == members_max:
            raise Malformed("The gzip body has too many members", expected=f"at most {members_max}")
        decoder = zlib.decompressobj(GZIP)
        for piece in _pieces(decoder, body, left, bytes_max):
            left -= len(piece)
            yield piece
        body = decoder.unused_data


def _stream(body: bytes, window: int, bytes_max: int) -> Iterator[bytes]:
    decoder = zlib.decompressobj(window)
    yield from _pieces(decoder, body, bytes_max, bytes_max)
    if decoder.unused_data:
        raise Malformed("Bytes follow the compressed body")


def _pieces(decoder, body: bytes, left: int, bytes_max: int) -> Iterator[bytes]:
    """Yield the pieces of one stream until its end. Raises Malformed when it is cut short or damaged."""
    while not decoder.eof:
        before = len(body)
        try:
            piece = decoder.decompress(body, piece_bytes)
        except zlib.error as error:
            raise Malformed(f"The compressed body is damaged: {error}") from None
        left -= len(piece)
        if left < 0:
            raise TooLarge("The body inflates to too much", expected=f"at most {bytes_max} bytes")
        body = decoder.unconsumed_tail
        if piece:
            yield piece
        elif not decoder.eof and len(body) == before or not (decoder.eof or body):
            raise Malformed("The compressed body is cut short")
