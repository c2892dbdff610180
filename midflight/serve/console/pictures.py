"""Small pictures inside tables, as numbers for SVG: sparklines and intervals; drawn by the templates, without any script."""

from __future__ import annotations

points_min = 3


def spark(values: list[int], width: float = 120, height: float = 24) -> dict[str, str]:
    """Return the points of a line and of the area below it, from the first value that is not zero.

    The last value is of the running minute and left out if it can be.
    """
    if any(values[:-1]):
        values = values[:-1]
    begins = next((i for i, v in enumerate(values) if v), 0)
    values = values[max(0, min(begins, len(values) - points_min)) :]
    top = max(values, default=0) or 1
    step = width / max(1, len(values) - 1)
    points = [f"{i * step:.1f},{height - 1 - (height - 3) * v / top:.1f}" for i, v in enumerate(values)]
    line = " ".join(points)
    return {"line": line, "area": f"0,{height} {line} {width:g},{height}", "viewbox": f"0 0 {width:g} {height:g}"}


def scale(rows: list[dict], metric: str) -> tuple[float, float]:
    """Return the ends between which every interval of a column fits, with some room; they tell the rows apart, so not from zero."""
    ends = [row["intervals"][metric] for row in rows if metric in row["intervals"]]
    if not ends:
        return 0.0, 1.0
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    room = max((high - low) * 0.08, 1e-9)
    return low - room, high + room


def whisker(row: dict, metric: str, span: tuple[float, float]) -> dict[str, float] | None:
    """Return an interval and its value on a line from 0 to 100."""
    ends = row["intervals"].get(metric)
    if not ends or row[metric] is None:
        return None
    low, high, value = (round(100 * (x - span[0]) / (span[1] - span[0]), 2) for x in (*ends, row[metric]))
    return {"low": low, "width": max(0.6, round(high - low, 2)), "at": value}
