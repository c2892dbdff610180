"""How engaged a person is, from 0 to 100, with the reasons: points for the latest of each kind of interest, fewer the longer ago.

The recency, frequency and money of Hughes (Strategic Database Marketing, 1994) in steps, so that a score changes at known moments, can be
explained by a sentence for each part, and a segment by score follows to the second. A complaint or an unsubscribe makes it 0.
"""

from __future__ import annotations

import numpy as np

from ..events import KINDS
from .conditions import Did, duration_words

DAY_US = 86_400_000_000
score_max = 100
# kind, how many of them, within days, points: of the rows with one kind and count, the first that is true counts.
TABLE = (
    ("clicked", 1, 7, 30),
    ("clicked", 1, 30, 22),
    ("clicked", 1, 90, 12),
    ("clicked", 1, 365, 4),
    ("clicked", 3, 30, 10),
    ("clicked", 3, 90, 5),
    ("opened", 1, 7, 15),
    ("opened", 1, 30, 10),
    ("opened", 1, 90, 5),
    ("opened", 1, 365, 2),
    ("opened", 5, 90, 10),
    ("converted", 1, 30, 25),
    ("converted", 1, 90, 18),
    ("converted", 1, 365, 8),
    ("converted", 2, 365, 10),
)
ENDED = ("complained", "unsubscribed")

steps_kind = np.array([KINDS.index(kind) for kind, *_ in TABLE], np.int64)
steps_n = np.array([n for _, n, *_ in TABLE], np.int64)
steps_within = np.array([days * DAY_US for _, _, days, _ in TABLE], np.int64)
steps_points = np.array([points for *_, points in TABLE], np.int64)
ended_kinds = np.array([KINDS.index(kind) for kind in ENDED], np.int64)


def reasons(happened) -> tuple[int, list[tuple[int, str]]]:
    """Return a score and its parts, as points and words. ``happened(did)`` tells whether a condition is true of the person now."""
    for kind in ENDED:
        if happened(Did(kind)):
            return 0, [(0, kind)]
    parts, done = [], set()
    for kind, n, days, points in TABLE:
        if (kind, n) not in done and happened(Did(kind, n, days * DAY_US)):
            done.add((kind, n))
            parts.append((points, f"{kind}{'' if n == 1 else f' {n} times'} within {duration_words(days * DAY_US)}"))
    return min(score_max, sum(points for points, _ in parts)), parts
