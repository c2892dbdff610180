"""What becomes of a firing: whether a rule may act now, has to ask, waits, or never acts on it, and why; pure.

The same question is put twice: when a firing is decided on, and again right before the call that has the effect, with what is known then.
Counts are of what was called, so that a limit holds for what is done and not for what was once decided. A count is of the time *around*
now: what a clock noted that ran ahead counts too, and a clock that was wrong by years blocks nothing for years.

CHECKS are made in their order; the first that answers is the answer:

1. ``loop``: the rule is in the chain of rules that caused this, or the chain is too deep. Dropped.
2. ``expired``: its cause is longer ago than the rule acts on it. Dropped.
3. ``suppressed``: the recipient must not be written to. Dropped.
4. ``holdout``: the recipient belongs to those who are held out, so that one can see what the rule is worth.
5. ``per_recipient``, ``cooldown``, ``person_cap``: the recipient has had enough, of this rule or of all. Dropped: it is not saved up.
6. ``asks``: the rule only suggests, and nobody has approved. Suggested.
7. ``held``: everything is held, or the rule, its way out or the mailbox provider is. Waits.
8. ``quiet_hours``, ``send_window``: by the recipient's own clock. Waits.
9. ``rule_cap``: the rule has done what it may in an hour or a day. Waits, and who waits longest goes first.
10. ``blast_radius``: automation as a whole has touched as many people as it may on its own. Suggested.

A rule that only observes is judged as one that acts within caps, and nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from hashlib import blake2b
from typing import Annotated, Literal

import msgspec

from .hours import Hours, closed, opens_us, zone_for

minute_us = 60_000_000
hour_us = 60 * minute_us
day_us = 24 * hour_us
hours_max = 31 * 24  # the longest window of a limit on one person
expires_minutes_max = 7 * 24 * 60
radius_max = 100_000  # people within an hour who can be asked about
chain_max = 5  # rules that may have caused each other
look_again_us = 1_000_000

Autonomy = Literal["observe", "suggest", "act_within_caps", "act"]
AUTONOMY = ("observe", "suggest", "act_within_caps", "act")
KINDS = ("act", "suggest", "wait", "drop", "held_out", "observed")
# Every reason that a firing, or the action that it became, can be given. `REASONS[r]` is what a page says of it.
REASONS = {
    "within_limits": "within its limits",
    "approved": "somebody approved it",
    "asks": "the rule asks before it acts",
    "blast_radius": "automation has touched as many people in this hour as it may on its own",
    "held": "everything is held",
    "breaker": "its way out, its rule or its mailbox provider is held",
    "quiet_hours": "quiet hours of the recipient",
    "send_window": "outside of the hours or days of the rule",
    "rule_cap": "the rule has acted as often as it may in an hour or a day",
    "loop": "the rule has caused itself",
    "too_deep": "too many rules have caused each other",
    "expired": "too late after its cause",
    "suppressed": "the recipient must not be written to",
    "holdout": "held out, to measure what the rule is worth",
    "per_recipient": "the rule has acted on this recipient as often as it may",
    "cooldown": "the rule has acted on this recipient a short time ago",
    "person_cap": "the recipient has got enough from all rules together",
    # Beside the checks below:
    "edited": "the rule was edited since",
    "removed": "the rule was removed",
    "no_rule": "no rule of this name and version is in force",
    "bad_firing": "what the store said of it cannot be read",
    "too_many": "more waits than may",
    "declined": "somebody declined it",
    "retry": "it did not go and is tried again",
    "gave_up": "it did not go, too often",
    "no_answer": "no answer came, and it is too late to ask again",
    "content": "what it says cannot be made for this recipient",
    "no_way": "its way out is not in the configuration",
    "no_code": "no code is left in its pool",
    "undone": "somebody took it back before it went",
}


class Cap(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """At most ``count`` within ``hours``."""

    count: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    hours: Annotated[float, msgspec.Meta(gt=0, le=hours_max)]


class Limits(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What bounds one rule. Bounds of 0 are none.

    ``per_recipient`` and ``cooldown_hours`` are about one person, ``per_hour`` and ``per_day`` about all together: the last 60 minutes and
    the last 24 hours, whenever one looks. ``expires_minutes`` after the cause it is too late. ``holdout`` is the share of people on whom
    the rule never acts; ``seed`` says who, and as long as it stays they are the same people.
    """

    per_recipient: Annotated[tuple[Cap, ...], msgspec.Meta(max_length=4)] = ()
    cooldown_hours: Annotated[float, msgspec.Meta(ge=0, le=hours_max)] = 0.0
    per_hour: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0
    per_day: Annotated[int, msgspec.Meta(ge=0, le=100_000_000)] = 0
    hours: Hours = Hours()
    priority: Annotated[int, msgspec.Meta(ge=-100, le=100)] = 0
    expires_minutes: Annotated[float, msgspec.Meta(gt=0, le=expires_minutes_max)] = 24 * 60.0
    holdout: Annotated[float, msgspec.Meta(ge=0, le=0.9)] = 0.0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    autonomy: Autonomy = "suggest"

    @property
    def window_us(self) -> int:
        """Return how far back touches of one person are looked at."""
        return int(3600e6 * max(self.cooldown_hours, *(cap.hours for cap in self.per_recipient), 0.0))


class Radius(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How far all automation together may reach. Bounds of 0 are none.

    ``people_per_hour``, and ``per_way`` for single ways out, is how many people rules that act within caps may touch in an hour without
    being asked about; ``ceiling_per_hour`` is the same for rules that somebody lets act beyond. ``person_per_day`` is how often one person
    is touched, campaigns counted.
    """

    people_per_hour: Annotated[int, msgspec.Meta(ge=0, le=radius_max)] = 1_000
    per_way: dict[str, Annotated[int, msgspec.Meta(ge=0, le=radius_max)]] = {}
    ceiling_per_hour: Annotated[int, msgspec.Meta(ge=0, le=radius_max)] = 20_000
    person_per_day: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 3


class Fired(msgspec.Struct, kw_only=True, frozen=True):
    """A firing as limits see it: ``recipient`` is empty where it is about nobody, ``cause_us`` when its cause happened, ``chain`` are the
    rules that caused it."""

    id: str
    rule: str
    version: int
    recipient: str
    cause_us: int
    chain: tuple[str, ...] = ()


class Facts(msgspec.Struct, kw_only=True, frozen=True):
    """What is known at the moment. ``times_us`` is when the rule touched this recipient, ``person`` how often anything did within a day.

    ``rule_hour`` and ``rule_day`` count what the rule did. ``people`` were touched in the last hour by all ways, ``people_way`` by the one
    of the rule; ``among`` and ``among_way`` say that the recipient is one of them. ``held`` says why nothing at all may go, ``breaker`` why
    nothing of this rule, ``provider`` why nothing to the recipient's mailbox provider.
    """

    now_us: int
    approved: bool = False
    suppressed: str = ""
    held: str = ""
    breaker: str = ""
    provider: str = ""
    zone: object = ""
    times_us: tuple[int, ...] = ()
    person: int = 0
    rule_hour: int = 0
    rule_day: int = 0
    people: int = 0
    people_way: int = 0
    among: bool = False
    among_way: bool = False


class Verdict(msgspec.Struct, kw_only=True, frozen=True):
    """What becomes of it now. ``reason`` is one of REASONS; ``until_us`` is when a wait is looked at again. ``would`` is what a rule that
    only observes would have done. ``eligible`` where holding out, or not, was decided: the people who are compared are those. ``wide``
    where the same holds for everything of the rule.
    """

    kind: Literal["act", "suggest", "wait", "drop", "held_out", "observed"]
    reason: str
    words: str = ""
    until_us: int = 0
    would: str = ""
    eligible: bool = False
    wide: bool = False


class Case(msgspec.Struct, kw_only=True, frozen=True):
    """All that a check looks at. ``to_person`` is False for a way out that reaches no recipient, such as a message to one's own team."""

    fired: Fired
    limits: Limits
    way: str
    to_person: bool
    autonomy: Autonomy
    radius: Radius
    facts: Facts


def judge(case: Case) -> Verdict:
    """Return what becomes of a firing now: the first check that answers, in the order of CHECKS. The same case has the same answer."""
    if case.autonomy == "observe":
        found = judge(msgspec.structs.replace(case, autonomy="act_within_caps"))
        return msgspec.structs.replace(found, kind="observed", would=found.kind, until_us=0, eligible=False, wide=False)
    eligible = False
    for check in CHECKS:
        found = check(case)
        eligible = eligible or check is _holdout
        if found is not None:
            return msgspec.structs.replace(found, eligible=eligible)
    return Verdict(kind="act", reason="approved" if case.facts.approved else "within_limits", eligible=True)


def held_out(seed: int, rule: str, recipient: str, share: float) -> bool:
    """Tell whether a rule never acts on a recipient. Who is held out at one share is so at every larger one, whatever else is edited."""
    if not recipient or share <= 0:
        return False
    digest = blake2b(f"{seed}\0{rule}\0{recipient}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64


def expires_us(cause_us: int, limits: Limits) -> int:
    """Return the last moment at which a rule acts on what happened then."""
    return cause_us + int(limits.expires_minutes * minute_us)


def around(at_us: int, now_us: int, window_us: int) -> bool:
    """Tell whether a time lies within a window of now, before or after."""
    return abs(at_us - now_us) < window_us


# -- the checks ----------------------------------------------------------------------------------------------------------


def _loop(case: Case) -> Verdict | None:
    if case.fired.rule in case.fired.chain:
        return _drop("loop", " > ".join((*case.fired.chain, case.fired.rule)))
    if len(case.fired.chain) >= chain_max:
        return _drop("too_deep", " > ".join(case.fired.chain))
    return None


def _expired(case: Case) -> Verdict | None:
    late_us = case.facts.now_us - expires_us(case.fired.cause_us, case.limits)
    return _drop("expired", f"{late_us / minute_us:.0f} minutes too late") if late_us > 0 else None


def _suppressed(case: Case) -> Verdict | None:
    return _drop("suppressed", case.facts.suppressed) if case.facts.suppressed and case.to_person else None


def _holdout(case: Case) -> Verdict | None:
    if held_out(case.limits.seed, case.fired.rule, case.fired.recipient, case.limits.holdout):
        return Verdict(kind="held_out", reason="holdout")
    return None


def _person(case: Case) -> Verdict | None:
    limits, facts = case.limits, case.facts
    for cap in limits.per_recipient:
        if sum(around(at, facts.now_us, int(cap.hours * hour_us)) for at in facts.times_us) >= cap.count:
            return _drop("per_recipient", f"{cap.count} within {cap.hours:g} hours")
    if any(around(at, facts.now_us, int(limits.cooldown_hours * hour_us)) for at in facts.times_us):
        return _drop("cooldown", f"within {limits.cooldown_hours:g} hours")
    most = case.radius.person_per_day
    if case.to_person and case.fired.recipient and most and facts.person >= most:
        return _drop("person_cap", f"{most} within a day")
    return None


def _asks(case: Case) -> Verdict | None:
    if case.autonomy == "suggest" and not case.facts.approved:
        return Verdict(kind="suggest", reason="asks")
    return None


def _held(case: Case) -> Verdict | None:
    facts = case.facts
    if facts.held:
        return _wait("held", facts.held, facts.now_us + look_again_us, wide=True)
    if facts.breaker:
        return _wait("breaker", facts.breaker, facts.now_us + look_again_us, wide=True)
    if facts.provider:
        # The longer somebody waits, the more seldom he is asked for: a provider that is held may have many.
        waited_us = max(0, facts.now_us - case.fired.cause_us)
        return _wait("breaker", facts.provider, facts.now_us + min(max(waited_us // 4, look_again_us), minute_us))
    return None


def _hours(case: Case) -> Verdict | None:
    zone = zone_for(case.limits.hours, case.facts.zone)
    why = closed(case.limits.hours, zone, case.facts.now_us)
    if not why:
        return None
    until_us = opens_us(case.limits.hours, zone, case.facts.now_us)
    local = datetime.fromtimestamp(until_us // 1_000_000, zone)
    return _wait(why, f"until {local:%a %H:%M} {getattr(zone, 'key', 'UTC')}", until_us)


def _rule_cap(case: Case) -> Verdict | None:
    limits, facts = case.limits, case.facts
    for most, done, within in ((limits.per_hour, facts.rule_hour, "an hour"), (limits.per_day, facts.rule_day, "a day")):
        if most and done >= most:
            return _wait("rule_cap", f"{most} within {within}", facts.now_us + look_again_us, wide=True)
    return None


def _blast_radius(case: Case) -> Verdict | None:
    if case.facts.approved or not case.fired.recipient:
        return None
    facts, radius = case.facts, case.radius
    if radius.ceiling_per_hour and facts.people >= radius.ceiling_per_hour and not facts.among:
        return Verdict(kind="suggest", reason="blast_radius", words=f"{radius.ceiling_per_hour} people within an hour, the ceiling of all")
    if case.autonomy == "act":
        return None
    if radius.people_per_hour and facts.people >= radius.people_per_hour and not facts.among:
        return Verdict(kind="suggest", reason="blast_radius", words=f"{radius.people_per_hour} people within an hour")
    most = radius.per_way.get(case.way, 0)
    if most and facts.people_way >= most and not facts.among_way:
        return Verdict(kind="suggest", reason="blast_radius", words=f"{most} people within an hour by `{case.way}`")
    return None


CHECKS: tuple[Callable[[Case], Verdict | None], ...] = (
    _loop, _expired, _suppressed, _holdout, _person, _asks, _held, _hours, _rule_cap, _blast_radius,
)  # fmt: skip


def _drop(reason: str, words: str) -> Verdict:
    return Verdict(kind="drop", reason=reason, words=words)


def _wait(reason: str, words: str, until_us: int, *, wide: bool = False) -> Verdict:
    return Verdict(kind="wait", reason=reason, words=words, until_us=until_us, wide=wide)
