"""A build that hashes text with Python's own hash, which differs from process to process."""

from __future__ import annotations

import numpy as np


def apply() -> None:
    """Replace the hash of parsed text."""
    from midflight.stream import parsed

    def hash_texts(texts: list[str]) -> np.ndarray:
        return np.array([[hash(text) & (1 << 64) - 1 if text else 0, 0] for text in texts], np.uint64).reshape(-1, 2)

    parsed.hash_texts = hash_texts
