"""The truth as a file, and the comparison of every number that the API gives with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec

from ..kit.clock import Clock
from ..kit.errors import ConfigError, MidflightError
from .truth import Cell, rows

VERSION = 1
poll_s = 0.5
rows_max = 10_000


class Unreachable(MidflightError):
    """The API does not answer, or answers something else than numbers."""

    code = "unreachable"


class Truth(msgspec.Struct, kw_only=True):
    """What a run's numbers have to be. ``before`` are the unattributed numbers that were there before the run.

    ``minutes_exact`` is False where wrong clocks make the minute of some events unknowable.
    """

    version: int = VERSION
    seed: int
    tag: str
    start_us: int
    dimensions: tuple[str, ...]
    minutes_exact: bool = True
    before: dict[str, int] = {}
    effects: dict[str, dict] = {}
    report: dict[str, object] = {}
    cells: list[tuple[Cell, dict[str, int]]]

    @property
    def measured(self) -> dict[Cell, Counter[str]]:
        return {cell: Counter(counts) for cell, counts in self.cells}

    def campaigns(self) -> list[str]:
        """Return the names of the campaigns, and ``""`` for what belongs to none."""
        return sorted({"", *(cell.campaign for cell, _ in self.cells)})

    def save(self, path: Path) -> None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=0))


def load_truth(path: Path) -> Truth:
    """Read a truth file. Raises ConfigError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Truth)
    except OSError as error:
        raise ConfigError(f"Cannot read the truth: {error.strerror}", got=path) from None
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path} is no truth file: {error}", todo="`midflight sandbox run --truth FILE` writes one") from None


class Difference(NamedTuple):
    campaign: str
    row: str
    measure: str
    true: int
    shown: int


class Numbers:
    """The API as the comparison needs it."""

    def __init__(self, url: str, token: str = "") -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self.client = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=30.0, trust_env=False)

    def close(self) -> None:
        self.client.close()

    def rows(self, campaign: str, by: tuple[str, ...]) -> dict[tuple[str, ...], dict[str, int]]:
        """Return the measures of a campaign (``""``: what belongs to none) by dimensions; none where it is not known yet."""
        query = {"campaign": campaign, "window": "all", "by": ",".join(by), "metrics": "", "machines": "with", "limit": str(rows_max)}
        try:
            answer = self.client.get("/v1/numbers", params=query)
        except httpx.HTTPError as error:
            raise Unreachable(f"The API does not answer: {error}", where=str(self.client.base_url)) from None
        if answer.status_code == 404:
            return {}
        if answer.status_code != 200:
            raise Unreachable(f"The API answers {answer.status_code}", got=answer.text, where="/v1/numbers")
        found = answer.json()
        if found.get("left_off"):
            raise Unreachable("The API has more rows than the comparison can ask for", expected=f"at most {rows_max}", where="/v1/numbers")
        return {tuple(str(row[name]) for name in by): row for row in found["rows"]}


def views(truth: Truth) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield every (campaign, dimensions) that is compared."""
    attributes = truth.dimensions
    for campaign in truth.campaigns():
        yield campaign, ()
        yield campaign, ("variant", "wave", "provider", "source")
        yield campaign, ("variant", *attributes[:5])
        for name in attributes:
            yield campaign, ("provider", name)
        if truth.minutes_exact and campaign:
            yield campaign, ("minute",)


def differences(truth: Truth, numbers: Numbers, measures: tuple[str, ...]) -> list[Difference]:
    """Return every number that the API shows otherwise than it is."""
    cells = truth.measured
    out = []
    for campaign, by in views(truth):
        shown = numbers.rows(campaign, by)
        if not campaign:
            if by:
                continue  # other runs' purchases are among them, and only their sum was noted before
            shown = {(): {m: n - truth.before.get(m, 0) for m, n in shown.get((), {}).items() if m in measures}}
        true = {tuple(_shown(by, key)): counts for key, counts in rows(cells, by, dimensions=truth.dimensions, campaign=campaign).items()}
        for key in sorted({*true, *shown}):
            want, got = true.get(key, Counter()), shown.get(key, {})
            for measure in measures:
                if want.get(measure, 0) != got.get(measure, 0):
                    label = ", ".join(f"{name}={value}" for name, value in zip(by, key, strict=True)) or "all"
                    out.append(Difference(campaign, label, measure, want.get(measure, 0), got.get(measure, 0)))
    return out


def _shown(by: tuple[str, ...], key: tuple) -> Iterator[str]:
    """Return a key as the API spells it: minutes in ISO 8601."""
    for name, value in zip(by, key, strict=True):
        yield _iso_minute(value) if name == "minute" else str(value)


def _iso_minute(minute: int) -> str:
    return datetime.fromtimestamp(minute * 60, UTC).isoformat().replace("+00:00", "Z")


def verify(
    truth: Truth,
    url: str,
    *,
    token: str = "",
    measures: tuple[str, ...],
    timeout_s: float = 60.0,
    clock: Clock | None = None,
    waiting: Callable[[int], None] | None = None,
) -> list[Difference]:
    """Ask the API until all its numbers are true or the time is up; return what still differs. Raises Unreachable."""
    clock = clock or Clock()
    until = clock.monotonic_s() + timeout_s
    numbers = Numbers(url, token)
    try:
        while True:
            try:
                found = differences(truth, numbers, measures)
                if not found or clock.monotonic_s() >= until:
                    return found
            except Unreachable:
                # The console may be starting again.
                if clock.monotonic_s() >= until:
                    raise
                found = []
            if waiting:
                waiting(len(found))
            clock.sleep_s(poll_s)
    finally:
        numbers.close()


def unattributed(url: str, token: str, measures: tuple[str, ...]) -> dict[str, int]:
    """Return the numbers that belong to no campaign, before a run adds its own. Raises Unreachable."""
    numbers = Numbers(url, token)
    try:
        row = numbers.rows("", ()).get((), {})
        return {m: row[m] for m in measures if row.get(m)}
    finally:
        numbers.close()
