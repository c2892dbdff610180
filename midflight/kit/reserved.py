"""Tables that grow where they are: address space for as many rows as there can ever be, memory only for those that were written."""

from __future__ import annotations

import mmap

import numpy as np

# The space counts as used only where it is written, also for the system's own bookkeeping. (Python names the flag from 3.13 on.)
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


def reserved(most: int, least: int, dtype: np.dtype) -> np.ndarray:
    """Return zeroed rows: `most` of them in address space alone, or `least` where the system does not give so much of it.

    So a table never has to be copied to grow, which at gigabytes would take seconds and twice the memory. The system gives memory in
    large pages: among small ones, every access to one of millions of rows would also look up where its page is.
    """
    try:
        space = mmap.mmap(-1, most * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    except OSError:
        return np.zeros(least, dtype)
    space.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(space, dtype, most)


def touch(table: np.ndarray, rows: int) -> None:
    """Make the system give the memory of the first rows now; what they hold stays."""
    pages = table[:rows].view(np.uint8).reshape(-1)[:: mmap.PAGESIZE]
    pages |= 0


def available_bytes() -> int:
    """Return how much memory could be had without swapping, as the system estimates it."""
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
