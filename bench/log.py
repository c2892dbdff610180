"""Measure the log alone: durable appends by records a commit, beside the bare disk, and sequential and random reading.

``python -m bench.log [FOLDER]`` writes into a fresh folder on the disk that is asked about and prints what it measured.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from midflight.log import Reader, Record, Writer

body_bytes = 700  # about one SendGrid event
seconds = 3.0
groups = (1, 15, 200)


def record() -> Record:
    headers = {"content-type": "application/json", "x-twilio-email-event-webhook-timestamp": "1700000000"}
    return Record("webhook", "sendgrid", 0, headers, os.urandom(body_bytes // 2).hex().encode(), "/in/sendgrid")


def bare_disk(folder: Path, size: int) -> float:
    """Return milliseconds for one write and fdatasync of a preallocated file: what no log can be faster than."""
    fd = os.open(folder / "bare", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(fd, 0, 64 * 1024 * 1024)
        os.fsync(fd)
        count, offset, start = 0, 0, perf_counter()
        while perf_counter() - start < seconds / 3 and offset + size < 64 * 1024 * 1024:
            os.pwrite(fd, b"x" * size, offset)
            os.fdatasync(fd)
            count, offset = count + 1, offset + size
        return (perf_counter() - start) / count * 1e3
    finally:
        os.close(fd)
        os.unlink(folder / "bare")


def append(folder: Path, group: int) -> tuple[float, float, float, float]:
    """Return records/s, MB/s, and p50 and p99 milliseconds of a commit."""
    records, took, stored = [record() for _ in range(group)], [], 0
    with Writer.open(folder) as writer:
        start = perf_counter()
        while perf_counter() - start < seconds:
            before = perf_counter()
            writer.append(records)
            took.append(perf_counter() - before)
            stored += group
        total = perf_counter() - start
    took.sort()
    size = sum(len(r.body) for r in records) / group
    return stored / total, stored * size / total / 1e6, took[len(took) // 2] * 1e3, took[len(took) * 99 // 100] * 1e3


def read(folder: Path) -> tuple[float, float]:
    """Return records/s and MB/s of bodies, checks and decoding included."""
    with Reader(folder) as reader:
        position, count, size, start = reader.first(), 0, 0, perf_counter()
        while records := reader.read(position):
            position = records[-1].position + 1
            count += len(records)
            size += sum(len(r.body) for r in records)
        total = perf_counter() - start
    return count / total, size / total / 1e6


def jump(folder: Path) -> float:
    """Return milliseconds to read one record somewhere, once the reader has been there."""
    rng = random.Random(1)
    with Reader(folder) as reader:
        head = reader.head()
        for position in range(0, head, max(1, head // 50)):
            reader.read(position, 1)
        start = perf_counter()
        for _ in range(300):
            reader.read(rng.randrange(head), 1)
        return (perf_counter() - start) / 300 * 1e3


def main() -> None:
    base = Path(tempfile.mkdtemp(prefix="bench-log-", dir=sys.argv[1] if len(sys.argv) > 1 else None))
    try:
        for group in groups:
            folder = base / f"log{group}"
            bare = bare_disk(base, -(-group * (body_bytes + 130) // 512) * 512)
            records_s, mb_s, p50, p99 = append(folder, group)
            line = f"{group:4} records a commit: {records_s:10,.0f} records/s {mb_s:7.1f} MB/s  p50 {p50:.2f} ms  p99 {p99:.2f} ms"
            print(f"{line}  (bare write and fdatasync {bare:.2f} ms)")
            records_s, mb_s = read(folder)
            print(f"     read in order: {records_s:14,.0f} records/s {mb_s:7.1f} MB/s; one record anywhere {jump(folder):.2f} ms")
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
