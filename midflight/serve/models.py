"""The shapes of the API's answers, for OpenAPI; the answers themselves are plain data of the same shape."""

from __future__ import annotations

from typing import Any, Literal

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


class Again(Closed):
    """A range of time that is read once more. ``ended`` says how it ended, and is empty while it has not."""

    why: str
    since: str | None
    until: str | None
    ended: str


class PollRow(Closed):
    """``known_to``: all that happened before this has been read. ``state``: waiting, reading, good, not_now (asked again soon), not_allowed
    (somebody has to look), unreadable, mistaken, or door (what was found waits for the door)."""

    poll: str
    kind: str
    label: str
    source: str
    state: str
    last_good: str | None
    known_to: str | None
    next: str | None
    events: int
    set_aside: int
    set_aside_why: str
    error: str
    todo: str
    again: list[Again]


class Polls(Closed):
    """``runs`` is false where no poller says how it stands."""

    polls: list[PollRow]
    runs: bool


class Backfill(Closed):
    """ISO 8601, or unix seconds; without ``until`` it is now."""

    since: str = Field(min_length=1, max_length=40)
    until: str | None = Field(default=None, max_length=40)


class Backfilled(Closed):
    """What will be read once more, in whole minutes."""

    since: str | None
    until: str | None


class WayBackRow(Closed):
    """``state``: waiting, writing, good, not_now, not_allowed, unreadable or mistaken, as of polls."""

    way: str
    kind: str
    label: str
    state: str
    last_good: str | None
    written: int
    waiting: int
    waiting_since: str | None
    refused: int
    refused_why: str
    error: str
    todo: str


class WaysBack(Closed):
    """``runs`` is false where no poller says how it stands."""

    ways_back: list[WayBackRow]
    runs: bool


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


class ExperimentRow(Closed):
    """A campaign that Midflight sends. ``taken`` people of ``people`` are in waves already; ``held`` get
    nothing, to measure what it is worth."""

    name: str
    state: Literal["draft", "scheduled", "sending", "paused", "stopped", "done"]
    channel: str
    goal: Literal["click", "conversion", "revenue", "open"]
    people: int
    taken: int
    left: int
    held: int
    started_at: str | None
    claim: str


class Experiments(Closed):
    experiments: list[ExperimentRow]
    next: int | None


class WaveRow(Closed):
    """A wave that was given out; ``shares`` are the chances of the variants, in their order, and ``grounds`` what they rested on."""

    wave: int
    at: str | None
    recipients: int
    shares: list[float]
    grounds: dict[str, Any]


class ArmState(Closed):
    name: str
    live: bool
    pinned: bool


class Reason(Closed):
    """Why messages did not go, or why it is not known whether they did."""

    state: Literal["refused", "unknown", "skipped"]
    code: str
    detail: str
    count: int


class Change(Closed):
    at: str | None
    who: str
    what: str
    why: str


class ArmStanding(Closed):
    """What is known of a variant. ``rate`` is responses per message in the end, between ``low`` and ``high`` with 95 %; ``coming`` are
    responses still expected of those who were sent to; ``best`` is the probability that no other is better."""

    name: str
    live: bool
    pinned: bool
    sent: int
    responses: int
    coming: float
    rate: float
    low: float
    high: float
    best: float
    share: float


class Said(Closed):
    """What may be claimed; ``waits_for`` says why it is not more yet."""

    kind: str
    arms: list[str]
    waits_for: str
    more_sends: float | None
    evidence: float | None
    text: str


class Projected(Closed):
    ends_at: str | None
    responses: float
    responses_equal: float


class OptionStanding(Closed):
    """One option of a slot in one group; ``share`` is what the next wave gives it."""

    sent: int
    responses: int
    rate: float
    low: float
    high: float
    share: float


class GroupStanding(Closed):
    group: list[str]
    options: list[OptionStanding]


class SlotStanding(Closed):
    """One slot: what it groups by, its options in order, its largest groups, and how many smaller ones are not listed."""

    name: str
    by: list[str]
    options: list[str]
    groups: list[GroupStanding]
    left_out: int


class StandingRow(Closed):
    """How a campaign stood when it was last looked at. ``curve`` holds (seconds, share of responses that have come by then)."""

    at: str | None
    goal: str
    arms: list[ArmStanding]
    slots: list[SlotStanding]
    curve: list[tuple[float, float]]
    said: Said
    split_broken: bool
    split_text: str
    projected: Projected
    next_at: str | None
    behind_s: float
    held: str


class Experiment(ExperimentRow):
    definition: dict[str, Any]
    variants: list[ArmState]
    waves: list[WaveRow]
    messages: dict[str, int]
    reasons: list[Reason]
    standing: StandingRow | None
    changes: list[Change]


class LedgerLine(Closed):
    """One decision: by whom, in words, and the numbers that it rested on."""

    number: int
    at: str | None
    campaign: str
    kind: str
    who: str
    text: str
    why: str
    grounds: dict[str, Any]


class Ledger(Closed):
    lines: list[LedgerLine]
    next: int | None


class LeftOut(Closed):
    line: int
    reason: str


class Listed(Closed):
    """What became of a list's rows. ``list`` names it; the list is what is in it, so the same one again has the same name."""

    list: str
    rows: int
    taken: int
    columns: list[str]
    left_out: dict[str, int]
    examples: list[LeftOut]


class Ordered(Closed):
    """``done`` is false where the conductor does not run: the order is in the log, and will be carried out when it does."""

    done: bool
    order: str
    warnings: list[str]
    note: str | None


class PreviewRow(Closed):
    """A variant as one recipient gets it. The preheader is not in ``html``; ``variables`` are those that the variant uses."""

    name: str
    subject: str
    from_name: str
    preheader: str
    html: str
    text: str
    variables: list[str]


class Previews(Closed):
    recipient: str
    warnings: list[str]
    variants: list[PreviewRow]


Why = Field(default="", max_length=2_000, description="Stands in the ledger")


class NewExperiment(Closed):
    """A campaign to put down as a draft. ``list`` is needed where the audience is a list."""

    definition: dict[str, Any]
    list: str = Field(default="", max_length=80, description="As `POST /v1/lists` named it")


class Preview(NewExperiment):
    """A campaign to look at before it is put down."""

    recipient: str = Field(default="", max_length=320, description="An address of the list; its first without")


class Move(Closed):
    to: Literal["draft", "scheduled", "sending", "paused", "stopped"]
    why: str = Why


class Pin(Closed):
    """Which variant gets all further waves; none gives them back to the policy."""

    variant: str = Field(default="", max_length=100)
    why: str = Why


class Drop(Closed):
    variant: str = Field(max_length=100)
    why: str = Why


class MoreVariant(Closed):
    """A variant for all further waves, as in a definition."""

    variant: dict[str, Any]
    why: str = Why


class TestSend(Closed):
    """One variant to an address of one's own, filled in as for one of the campaign's people; it is no part of its numbers."""

    to: str = Field(max_length=320)
    variant: str = Field(max_length=100)
    recipient: str = Field(default="", max_length=320)


class BreakerRow(Closed):
    """One breaker: what it holds and why, since when, and what it waits for."""

    kind: Literal["provider", "domain", "ip", "campaign"]
    name: str
    stage: Literal["normal", "held", "probing", "returning"]
    since: str | None
    until: str | None
    text: str
    waits: str
    by_hand: bool
    sent: int
    answered: int
    bounced: int
    rate_usual: float
    holds: int


class BreakerLine(Closed):
    at: str | None
    kind: str
    name: str
    stage: str
    who: str
    text: str


class SignRow(Closed):
    """Who blocks us: a list of senders, or a provider itself; what it means, and what to do."""

    sign: str
    who: str
    kind: str
    about: str
    what: str
    advice: str
    source: str
    provider: str
    count: int
    first: str | None
    last: str | None
    said: str


class CeilingRow(Closed):
    """A provider's rate that is surely above its ceiling."""

    kind: str
    name: str
    what: str
    days: int
    happened: int
    of: int
    ceiling: float
    evidence: float
    needed: float
    text: str


class ProviderHour(Closed):
    provider: str
    hour: str | None
    delivered: int
    bounced: int


class ProviderWeek(Closed):
    provider: str
    week: str | None
    delivered: int
    bounced: int
    blocked: int
    complained: int
    unsubscribed: int
    opened: int


class Deliverability(Closed):
    breakers: list[BreakerRow]
    log: list[BreakerLine]
    signs: list[SignRow]
    ceilings: list[CeilingRow]
    by_hour: list[ProviderHour]
    by_week: list[ProviderWeek]
    suppressed: dict[str, int]
    freshness: Freshness


class AnswerRow(Closed):
    """One bounce that spoke against an address."""

    kind: str
    at: str | None
    confidence: float
    because: str


class SuppressionRow(Closed):
    """One reason why somebody is not written to. ``until`` is null where it is for good."""

    recipient: str
    status: str
    reason: str
    since: str | None
    until: str | None
    evidence: str
    ends: str
    provider: str
    answers: list[AnswerRow]


class Suppressions(Closed):
    suppressions: list[SuppressionRow]
    next: str | None
    counts: dict[str, int]


class Explained(Closed):
    recipient: str
    written_to: bool
    reasons: list[SuppressionRow]


class Addresses(Closed):
    addresses: list[str] = Field(max_length=10_000)
    why: str = Why


class Taken(Closed):
    """How many addresses were taken, and how many were none, with some of these."""

    taken: int
    left_out: int
    examples: list[str]


class GuardMove(Closed):
    """What to do with a breaker."""

    kind: Literal["provider", "domain", "campaign"]
    name: str = Field(min_length=1, max_length=200)
    to: Literal["held", "probing", "normal"]
    why: str = Why


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


# -- segments, rules and actions -----------------------------------------------------------------------------------------


class SegmentRow(Closed):
    """``words`` is the condition as a person would say it, ``where`` as it was put."""

    name: str
    version: int
    words: str
    where: dict[str, Any]
    members: int


class Segments(Closed):
    segments: list[SegmentRow]
    log_time: str | None


class SegmentMove(Closed):
    at: str | None
    recipient: str
    entered: bool


class SegmentHour(Closed):
    """How many came and left within the hour, and how many were there at its end."""

    at: str | None
    entered: int
    left: int
    members: int


class Segment(SegmentRow):
    """``note`` says why no members are named, where the engine did not answer."""

    needed_by: list[str]
    moves: list[SegmentMove]
    history: list[SegmentHour]
    sample: list[str]
    note: str | None


class Put(Closed):
    """``done`` is false where whoever has to do it does not run: it is in the log, and will be done then."""

    done: bool
    note: str | None


class PutSegment(Closed):
    """A condition, as in `{"did": "clicked", "within": "30d"}`. ``version`` is one more than the one that was seen; 0 takes the next."""

    where: dict[str, Any]
    version: int = Field(default=0, ge=0, le=2**31)
    why: str = Why


class TrySegment(Closed):
    where: dict[str, Any]
    sample: int = Field(default=20, ge=0, le=500)


class TriedSegment(Closed):
    """``low`` and ``high`` are the ends of a 95 % interval; of ``people`` in all, ``tried`` were looked at."""

    words: str
    people: int
    tried: int
    exact: bool
    members: int
    low: int
    high: int
    sample: list[str]


class RuleRow(Closed):
    """``when`` is in words; ``totals`` is what became of its firings, by state. ``taken_up`` is false while an edit is on its way."""

    name: str
    version: int
    autonomy: str
    when: str
    way: str
    holdout: float
    totals: dict[str, int]
    definition: dict[str, Any]
    taken_up: bool


class HoldState(Closed):
    """The kill switch: ``number`` counts its turns."""

    held: bool
    number: int
    who: str
    why: str
    at: str | None


class Rules(Closed):
    rules: list[RuleRow]
    held: HoldState


class RuleVersion(Closed):
    version: int
    at: str | None
    who: str
    why: str
    definition: dict[str, Any]


class ActionRow(Closed):
    """What became of a firing. ``reason`` is a code, ``says`` the same in words, with ``words`` and ``detail`` of this one."""

    number: int
    id: str
    state: str
    rule: str
    version: int
    recipient: str
    way: str
    fired_at: str | None
    cause_at: str | None
    expires_at: str | None
    changed_at: str | None
    reason: str
    says: str
    words: str
    detail: str
    approved: bool
    tries: int


class RuleEarned(Closed):
    """What a rule has earned, by the people who are held out; ``says`` is `earns`, `costs`, `not_yet` or `split_broken`. How many on each
    side are counted; ``note`` says why nothing can be said."""

    says: str
    text: str
    acted: int
    held_out: int
    note: str | None


class Rule(RuleRow):
    earned: RuleEarned | None
    versions: list[RuleVersion]
    actions: list[ActionRow]
    removed: bool


class PutRule(Closed):
    """A rule: `when`, `where`, `action` and `limits`. What waits of the versions before is dropped, or with ``keep`` goes on."""

    definition: dict[str, Any]
    version: int = Field(default=0, ge=0, le=2**31)
    keep: bool = False
    why: str = Why


class LetRule(Closed):
    """How far a rule may go on its own from now on."""

    autonomy: Literal["observe", "suggest", "act_within_caps", "act"]
    why: str = Why


class Actions(Closed):
    actions: list[ActionRow]
    next: int | None


class Name(Closed):
    """Actions by id, or all suggestions of a rule with a number up to ``up_to``, which is what somebody saw."""

    actions: list[str] = Field(default=[], max_length=1_000)
    rule: str = Field(default="", max_length=100)
    up_to: int = Field(default=0, ge=0, le=2**62)
    why: str = Why


class UndoActions(Closed):
    actions: list[str] = Field(min_length=1, max_length=1_000)
    why: str = Why


class SettleActions(UndoActions):
    """Whether calls whose end nobody knew went. None is made again."""

    went: bool


class Hold(Closed):
    why: str = Why


class Release(Closed):
    """``number`` is the turn that was seen: who releases lifts that hold and no later one."""

    number: int = Field(ge=-1, le=2**62)
    why: str = Why


class RuleLine(Closed):
    number: int
    at: str | None
    rule: str
    action: str
    kind: str
    who: str
    text: str
    why: str


class RuleLedger(Closed):
    lines: list[RuleLine]
    next: int | None


class AlertTold(Closed):
    """What became of it for a target, ``way:NAME`` or ``mail:ADDRESS``. `unknown` may have arrived; `replaced` gave way to a newer one."""

    target: str
    state: Literal["waiting", "called", "sent", "refused", "unknown", "replaced"]
    tries: int
    detail: str
    changed_at: str | None


class AlertPart(Closed):
    """What is told. ``page`` is the console's page with the evidence."""

    what: Literal["begun", "worse", "lasts", "over", "more", "unreadable"]
    level: Literal["warning", "serious", "unknown"]
    text: str
    why: str
    page: str


class Alert(AlertPart):
    """Something that was to be told. `more` tells several together, the first of them in ``parts``."""

    number: int
    id: str
    at: str | None
    parts: list[AlertPart]
    told: list[AlertTold]


class Alerts(Closed):
    """``targets`` are told what comes from now on; where there are none, nobody is told of anything."""

    alerts: list[Alert]
    next: int | None
    targets: list[str]


class TryRules(Closed):
    """Segments by name as conditions, rules by name as definitions. Times are ISO 8601, or a length of time before the log's end: `7d`."""

    rules: dict[str, dict[str, Any]] = {}
    segments: dict[str, dict[str, Any]] = {}
    from_: str = Field(default="7d", alias="from", max_length=40)
    to: str = Field(default="", max_length=40)
    others: bool = Field(default=False, description="Keep the other rules in force beside")


class TriedFiring(Closed):
    """A firing, and what would have become of it: ``end`` and ``reason``."""

    id: str
    rule: str
    version: int
    recipient: str
    fired_at: str
    cause_at: str
    end: str
    reason: str
    words: str
    acted_at: str | None


class TriedRule(Closed):
    """Of one rule: how often it fired for how many people, what became of it, why not, and firings by hour."""

    rule: str
    fired: int
    people: int
    ends: dict[str, int]
    reasons: dict[str, int]
    hours: list[tuple[str, int]]


class TriedRules(Closed):
    rules: list[TriedRule]
    firings: list[TriedFiring]
    records: int
    events: int
    people: int
    seconds: float
    from_: str = Field(alias="from")
    to: str


class WhySegment(Closed):
    """``why`` is a condition in words with `true`, `detail` and the `parts` that it is made of."""

    segment: str
    member: bool
    why: dict[str, Any]


class PersonAttribute(Closed):
    """What was said last of an attribute, by an event or a poll, and when."""

    name: str
    value: str | int | float | bool
    at: str | None


class PersonScore(Closed):
    score: int
    reasons: list[tuple[int, str]]


class PersonMessage(Closed):
    campaign: str
    variant: str
    wave: int
    state: str
    at: str | None
    detail: str


class WholePerson(Person):
    """Beside what happened: attributes, the segments with their reasons, the engagement score, what was sent, what rules did, and why not.

    ``segments_note`` says why segments and score are not told, where the engine did not answer.
    """

    attributes: list[PersonAttribute]
    segments: list[WhySegment]
    engagement: PersonScore | None
    segments_note: str | None
    suppressed: str
    messages: list[PersonMessage]
    actions: list[ActionRow]
