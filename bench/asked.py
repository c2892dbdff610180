"""What is asked of people in the measurements: so many segments and rules as a large sender has, as records of the log.

They are of all kinds that there are, over the campaigns and events of the feed: what somebody did, how often, how long ago, never, in one
campaign, nested; who comes into a segment or leaves it; what does not happen within half an hour.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from midflight.log import Record

from .feed import CAMPAIGNS

SPANS = ("10m", "1h", "6h", "1d", "3d", "7d", "30d", "90d")
# Most of what was ever defined is about campaigns that are over; six of forty are being sent.
NAMES = (*CAMPAIGNS, *(f"campaign of month {number}" for number in range(34)))


def segment(number: int) -> dict:
    """Return the condition of one of the segments."""
    campaign, span, plan = NAMES[number % len(NAMES)], SPANS[number // 10 % len(SPANS)], f"plan {number % 7}"
    clicked, opened = {"did": "clicked", "within": span}, {"did": "opened", "within": span}
    return (
        {"did": "clicked", "campaign": campaign},
        {"all": [{"did": "delivered", "campaign": campaign}, {"not": {"did": "opened", "campaign": campaign}}]},
        {"all": [{"attribute": "plan", "is": plan}, opened]},
        {"any": [{"did": "clicked", "campaign": campaign, "within": span}, {"revenue": {"above": 50 + number, "within": span}}]},
        {"all": [{"provider": "Gmail"}, {"did": "clicked", "at_least": 2 + number % 3, "within": span}]},
        {"all": [{"did": "bounced", "campaign": campaign}, {"not": {"did": "delivered", "within": span}}]},
        {"all": [{"did": "sent", "at_least": 3 + number % 5, "within": span}, {"not": clicked}, {"not": {"did": "unsubscribed"}}]},
        {"did": "opened", "campaign": campaign, "at_least": 2, "within": span},
        {"all": [{"attribute": "age", "above": number % 60}, {"not": {"did": "complained"}}, clicked]},
        {"any": [{"all": [opened, {"not": clicked}, {"attribute": "plan", "is": plan}]}, {"score": {"above": 80}}]},
    )[number % 10]


def rule(number: int, segments: int) -> dict:
    """Return one of the rules."""
    campaign, name = NAMES[number % len(NAMES)], f"segment {number * 7 % segments}"
    when = (
        {"kind": "absence", "after": {"did": "clicked", "campaign": campaign}, "no": {"did": "converted"}, "within": "30m"},
        {"kind": "segment", "entered": name},
        {"kind": "event", "did": "clicked", "campaign": campaign},
        {"kind": "segment", "left": name, "stays": "1h"},
        {"kind": "absence", "after": {"did": "delivered", "campaign": campaign}, "no": {"did": "opened"}, "within": "2d"},
    )[number % 5]
    where = {"not": {"did": "unsubscribed"}} if number % 4 else {"segment": f"segment {number * 3 % segments}"}
    limits = {"autonomy": "act" if number // 5 % 4 == 0 else "observe", "holdout": 0.1, "per_recipient": [{"count": 1, "hours": 24}]}
    return {"when": when, "where": where, "action": {"way": "out", "fields": {"type": "rule.fired"}}, "limits": limits}


def definitions(segments: int, rules: int, at_us: int) -> Iterator[Record]:
    """Yield the records that put them into force."""
    for number in range(segments):
        name = f"segment {number}"
        yield record_of(
            {"do": "put_segment", "id": f"s{number}", "name": name, "version": 1, "where": segment(number), "who": "bench"}, at_us
        )
    for number in range(rules):
        one = {"rule": f"rule {number}", "version": 1, "definition": rule(number, segments)}
        yield record_of({"do": "put_rule", "id": f"r{number}", "who": "bench", **one}, at_us)


def record_of(order: dict, at_us: int) -> Record:
    return Record("definition", "rules", at_us, {}, msgspec.json.encode(order))
