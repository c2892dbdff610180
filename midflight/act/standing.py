"""How a campaign stands: what is known of its variants, what may be claimed, what comes next. The conductor writes it, pages read it."""

from __future__ import annotations

import msgspec


class Arm(msgspec.Struct, kw_only=True):
    """One variant. ``rate`` is what its people do in the end, responses per message, with the bounds that hold with 95 % by what is known;
    ``sent`` and ``responses`` are counted, ``coming`` responses are still expected of those who were sent to; ``best`` is the probability
    that no other is better, ``share`` what the last wave gave it."""

    name: str
    live: bool = True
    pinned: bool = False
    sent: int = 0
    responses: int = 0
    coming: float = 0.0
    rate: float = 0.0
    low: float = 0.0
    high: float = 0.0
    best: float = 0.0
    share: float = 0.0


class Said(msgspec.Struct, kw_only=True):
    """A claim in words and in figures: ``kind`` is `winner`, `within`, `no_difference` or `not_yet`, and ``waits_for`` says why not."""

    kind: str = "not_yet"
    arms: list[str] = []
    waits_for: str = ""
    more_sends: float | None = None
    evidence: float = 1.0
    text: str = ""


class Projected(msgspec.Struct, kw_only=True):
    """Where it goes from here: when the last wave is, and the responses of the whole list in the end, as it goes and had it been split
    equally; both from the rates believed now."""

    ends_us: int = 0
    responses: float = 0.0
    responses_equal: float = 0.0


class OptionStanding(msgspec.Struct, kw_only=True):
    """One option in one group. ``sent`` counts those whose responses can have come by now; ``rate`` is believed with 95 % to lie between
    ``low`` and ``high``, ``share`` is what the next wave gives it."""

    sent: int = 0
    responses: int = 0
    rate: float = 0.0
    low: float = 0.0
    high: float = 0.0
    share: float = 0.0


class GroupStanding(msgspec.Struct, kw_only=True):
    """One group: its values, and each option in it."""

    group: list[str]
    options: list[OptionStanding]


class SlotStanding(msgspec.Struct, kw_only=True):
    """One slot: what it groups by, its options, its largest groups, and how many smaller ones are not listed."""

    name: str
    by: list[str]
    options: list[str]
    groups: list[GroupStanding]
    left_out: int = 0


class Standing(msgspec.Struct, kw_only=True):
    """A campaign at one moment. ``curve`` are pairs of an age in seconds and the share of responses that have come by then; ``behind_s`` is
    how old the numbers were."""

    at_us: int
    goal: str = "click"
    arms: list[Arm] = []
    slots: list[SlotStanding] = []
    curve: list[tuple[float, float]] = []
    said: Said = msgspec.field(default_factory=Said)
    split_broken: bool = False
    split_text: str = ""
    projected: Projected = msgspec.field(default_factory=Projected)
    next_us: int = 0
    behind_s: float = 0.0
    held: str = ""


class Entry(msgspec.Struct, kw_only=True):
    """One line of the ledger: what was decided, by whom (`policy`, `guard`, `claim` or a person's name), in plain words, and the numbers it
    rested on."""

    number: int
    at_us: int
    campaign: str
    kind: str
    who: str
    text: str
    why: str = ""
    grounds: dict = {}
