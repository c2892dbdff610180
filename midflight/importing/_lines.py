"""Bytes of a file become lines, however it is packed and encoded, one at a time and none longer than a limit."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..kit.errors import MidflightError

line_bytes_max = 1024 * 1024
chunk_bytes = 256 * 1024


class NotImportable(MidflightError):
    """A file that cannot be imported as a whole."""

    code = "not_importable"


class Line(NamedTuple):
    """One line without its end. ``end`` is the offset after it in the unpacked bytes; of a too long one only the beginning is there."""

    number: int
    end: int
    raw: bytes
    whole: bool


class Opened:
    """A file as unpacked UTF-8 bytes. ``done`` says how many of the file's own bytes have been read, for the progress bar."""

    def __init__(self, path: Path) -> None:
        try:
            self._file: BinaryIO = open(path, "rb")  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise NotImportable(f"Cannot read {path}: {error.strerror}") from None
        head = self._file.read(4)
        self._file.seek(0)
        self.broken = ""
        self._seekable = True
        self._stream: BinaryIO = self._file
        if head[:2] == b"\x1f\x8b":
            self._stream, self._seekable = gzip.open(self._file, "rb"), False
            head = self._read_some(4)
            self._stream.seek(0)
        if head[:2] == b"PK":
            self.close()
            raise NotImportable(f"{path.name} is a ZIP archive or an Excel workbook", todo="Unpack it, or save the sheet as CSV")
        if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            self._stream, self._seekable = Utf16(self._stream), False

    def _read_some(self, size: int) -> bytes:
        """Read, and take a packed file that ends early or is damaged for one that ends there; `broken` says so."""
        try:
            return self._stream.read1(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self.broken = f"the compressed file breaks off here: {error}"
            return b""

    def read(self, size: int = chunk_bytes) -> bytes:
        return b"" if self.broken else self._read_some(size)

    def skip(self, offset: int) -> None:
        """Go to an offset of the unpacked bytes."""
        if self._seekable:
            self._file.seek(offset)
            return
        while offset > 0:
            got = self.read(min(offset, chunk_bytes))
            if not got:
                return
            offset -= len(got)

    @property
    def done(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Utf16:
    """UTF-16, as spreadsheets save "Unicode text", read as UTF-8."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-16")("replace")
        self._ready = b""

    def read1(self, size: int) -> bytes:
        while not self._ready:
            got = self._stream.read1(chunk_bytes)
            self._ready = self._decoder.decode(got, final=not got).encode("utf-8", "replace")
            if not got:
                break
        out, self._ready = self._ready[:size], self._ready[size:]
        return out


def lines(opened: Opened, offset: int = 0, number: int = 0) -> Iterator[Line]:
    """Yield the lines from an offset on; ``number`` is that of the line before it."""
    opened.skip(offset)
    rest, dropped = b"", 0  # `dropped` bytes of a too long line have been let go
    while chunk := opened.read():
        parts = (rest + chunk).split(b"\n")
        rest = parts.pop()
        for part in parts:
            number += 1
            offset += dropped + len(part) + 1
            yield Line(number, offset, part.removesuffix(b"\r")[:line_bytes_max], not dropped and len(part) <= line_bytes_max)
            dropped = 0
        if len(rest) > line_bytes_max + chunk_bytes:
            dropped += len(rest) - line_bytes_max
            rest = rest[:line_bytes_max]
    if rest or dropped:
        yield Line(
            number + 1, offset + dropped + len(rest), rest.removesuffix(b"\r")[:line_bytes_max], not dropped and len(rest) <= line_bytes_max
        )


def decoded(raw: bytes) -> tuple[str, bool]:
    """Return a line as text and whether it was UTF-8; else it is taken for Windows-1252, which old exports are."""
    try:
        return raw.decode("utf-8"), True
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace"), False
