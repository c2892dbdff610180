"""The shapes of the API's answers, for OpenAPI; the answers themselves are plain data of the same shape."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Interval = tuple[float, float]
Machines = Literal["with", "without"]


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Freshness(Closed):
    """From receipt of a request to its number being readable, in the last minute with data."""

    p50_ms: float | None
    p99_ms: float | None
    minute: str | None
    log_position: int
    log_time: str | None


class WindowSpan(Closed):
    name: str
    from_: str | None = Field(alias="from")
    to: str | None


class Row(BaseModel):
    """The asked dimensions by name, every measure, every metric, and the 95 % intervals of the shares."""

    model_config = ConfigDict(extra="allow")
    intervals: dict[str, Interval]


class Answer(Closed):
    by: list[str]
    machine_share: float | None
    window: WindowSpan
    freshness: Freshness


class Numbers(Answer):
    rows: list[Row]
    total: Row
    left_off: int
    machines: Machines
    within_minutes: float | None


class Line(BaseModel):
    """The asked dimensions by name, and one list a measure or metric, as long as ``times``."""

    model_config = ConfigDict(extra="allow")
    values: dict[str, list[float | None]]


class Series(Answer):
    step_minutes: int
    times: list[str | None]
    series: list[Line]
    machines: Machines


class Curve(BaseModel):
    """``curve`` holds (seconds, share that happened within them)."""

    model_config = ConfigDict(extra="allow")
    n: int
    p50_s: float | None
    p90_s: float | None
    curve: list[tuple[int, float]]


class Delays(Answer):
    kind: Literal["open", "click", "conversion"]
    rows: list[Curve]


class CampaignRow(Closed):
    campaign: str
    first_at: str | None
    last_at: str | None
    measures: dict[str, int]
    metrics: dict[str, float | None]


class Campaigns(Closed):
    campaigns: list[CampaignRow]
    next: str | None
    freshness: Freshness


class CampaignDetail(CampaignRow):
    intervals: dict[str, Interval]
    machines: Machines
    machine_share: float | None
    dimensions: dict[str, list[str]]
    freshness: Freshness


class Waiter(Closed):
    recipient: str
    variant: str
    wave: str
    clicked_at: str | None
    waited_s: int


class Waiting(Closed):
    campaign: str
    minutes: int
    count: int
    count_max: int
    rows: list[Waiter]
    next: str | None
    freshness: Freshness


class Secrets(Closed):
    """Which secrets are set, never what they are."""

    state: Literal["set", "unsigned", "not set"]
    signing: int
    basic_auth: int
    bearer: int
    headers: int
    expires: list[str]


class Day(Closed):
    records: int
    events: int
    duplicates: int
    bad: int


class SourceRow(Closed):
    source: str
    configured: bool
    kind: str
    label: str
    docs_url: str
    webhook_url: str
    secrets: Secrets
    last_event: str | None
    last_day: Day
    last_hour: list[int]
    dropped: dict[str, int]
    dead: int


class Sources(Closed):
    sources: list[SourceRow]
    freshness: Freshness


class Letter(Closed):
    position: int
    item: int
    source: str
    reason: str
    detail: str
    at: str | None
    state: Literal["waiting", "replayed", "still bad"]
    bytes: int
    raw: str
    cut: bool


class Dead(Closed):
    letters: list[Letter]
    next: str | None
    freshness: Freshness


class LetterId(Closed):
    position: int = Field(ge=0, le=2**63 - 1)
    item: int = Field(ge=-1, le=2**31 - 1, description="-1 for a whole request that could not be read")


class Replay(Closed):
    """Which dead letters to parse again: these, or those of a source that are not read yet, at most 1000 at once."""

    letters: list[LetterId] = Field(default=[], max_length=1000)
    source: str | None = Field(default=None, max_length=200)


class Replayed(Closed):
    replayed: int


class Person(Closed):
    address: str
    recipient: str
    events: list[dict]
    note: str | None


class MetricRow(Closed):
    name: str
    label: str
    unit: Literal["count", "share", "money_per_thousand", "seconds"]
    direction: Literal["up", "down", "none"]
    people: str
    everybody: str
    doc: str


class MetricList(Closed):
    metrics: list[MetricRow]
    measures: list[str]
    dimensions: list[str]


class Health(Closed):
    ok: bool
    version: str


class Ready(Health):
    store: Literal["read", "absent"]
    log_position: int


class ErrorDetail(BaseModel):
    model_config = ConfigDict(extra="forbid")
    code: str
    what: str
    expected: str | None = None
    got: str | None = None
    where: str | None = None
    todo: str | None = None


class Error(Closed):
    """The one shape of every error."""

    ok: Literal[False]
    error: ErrorDetail
    status: int
