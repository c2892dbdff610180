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


def segment(number: int) -> dict:
    """Return the condition of one of the segments."""
    campaign, span = CAMPAIGNS[number % len(CAMPAIGNS)], SPANS[number // 8 % len(SPANS)]
    clicked = {"did": "clicked", "within": span}
    return (
        {"did": "clicked", "campaign": campaign},
        {"all": [{"did": "delivered", "within": span}, {"not": {"did": "opened", "within": span}}]},
        {"did": "opened", "at_least": 1 + number % 5, "within": span},
        {"any": [clicked, {"did": "opened", "campaign": campaign, "within": span}]},
        {"all": [{"provider": "Gmail"}, clicked]},
        {"all": [{"did": "bounced"}, {"not": {"did": "delivered", "within": span}}]},
        {"all": [{"did": "sent", "at_least": 2, "within": span}, {"not": clicked}, {"not": {"did": "unsubscribed"}}]},
        {"did": "clicked", "campaign": campaign, "at_least": 2, "within": span},
    )[number % 8]


def rule(number: int, segments: int) -> dict:
    """Return one of the rules."""
    campaign, name = CAMPAIGNS[number % len(CAMPAIGNS)], f"segment {number * 7 % segments}"
    when = (
        {"kind": "absence", "after": {"did": "clicked", "campaign": campaign}, "no": {"did": "converted"}, "within": "30m"},
        {"kind": "segment", "entered": name},
        {"kind": "event", "did": "clicked", "campaign": campaign},
        {"kind": "segment", "left": name, "stays": "1h"},
        {"kind": "absence", "after": {"did": "delivered", "campaign": campaign}, "no": {"did": "opened"}, "within": "2d"},
    )[number % 5]
    where = {"all": [{"segment": f"segment {number * 3 % segments}"}, {"not": {"did": "unsubscribed"}}]}
    return {"when": when, "where": where, "action": {"way": "out", "fields": {}}}


def definitions(segments: int, rules: int, at_us: int) -> Iterator[Record]:
    """Yield the records that put them into force."""
    for number in range(segments):
        order = {
            "do": "put_segment",
            "id": f"s{number}",
            "name": f"segment {number}",
            "version": 1,
            "where": segment(number),
            "who": "bench",
        }
        yield Record("definition", "rules", at_us, {}, msgspec.json.encode(order))
    for number in range(rules):
        order = {
            "do": "put_rule",
            "id": f"r{number}",
            "rule": f"rule {number}",
            "version": 1,
            "definition": rule(number, segments),
            "who": "bench",
        }
        yield Record("definition", "rules", at_us, {}, msgspec.json.encode(order))
