"""Slots: places in a campaign's content that are filled by recipient group, with what works for people like them.

A slot has options, and attributes by which recipients are grouped. Who gets which option is drawn by the chances that
`decide/content.py` gives it in the recipient's group; the draw is the recipient's own, so that a wave that is decided again is the same.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.random import Generator

from ..decide.content import Effects, Groups, believe, chances
from ..kit.errors import MidflightError, nearest
from .audience import luck

options_max = 20
slots_max = 5
by_max = 5
values_max = 24  # of one attribute that are told apart; rarer ones, and what comes later, count as one
floor = 0.02  # least chance of an option in any group
other = "…"
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_USE = re.compile(r"\{\{-?\s*slots\.([A-Za-z0-9_]+)\s*-?\}\}")


class BadSlot(MidflightError):
    """A slot that cannot be filled as it is defined; nothing of the campaign is sent."""

    code = "bad_campaign"


class Option(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One way to fill a slot. ``html`` stands in HTML and MJML, ``text`` in plain text and subjects; both are templates."""

    name: str
    html: str = ""
    text: str = ""


class Slot(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A place in the content, written ``{{ slots.NAME }}``, and the attributes by which recipients are grouped for it."""

    by: list[str]
    options: list[Option]


def check_slots(slots: dict[str, Slot]) -> None:
    """Raise BadSlot for slots that are too many, have no name, or cannot be told apart."""
    if len(slots) > slots_max:
        raise BadSlot("Too many slots", expected=f"at most {slots_max}", got=len(slots), where="$.slots")
    for name, slot in slots.items():
        where = f"$.slots.{name[:60]}"
        if not NAME.fullmatch(name):
            raise BadSlot("A slot's name", expected="small letters, digits and _", got=repr(name[:60]), where="$.slots")
        if not 2 <= len(slot.options) <= options_max:
            raise BadSlot("Options of a slot", expected=f"2 to {options_max}", got=len(slot.options), where=f"{where}.options")
        if not 1 <= len(set(slot.by)) == len(slot.by) <= by_max:
            raise BadSlot(
                "A slot groups by", expected=f"1 to {by_max} different attributes", got=", ".join(slot.by)[:100], where=f"{where}.by"
            )
        names = [option.name for option in slot.options]
        if not all(names) or len(set(names)) < len(names):
            raise BadSlot("Each option needs a name of its own", got=", ".join(names)[:100], where=f"{where}.options")


def filled(text: str, kind: str, slots: dict[str, Slot], chosen: dict[str, int], where: str) -> str:
    """Return a template with its slots filled; ``kind`` is `html` or `text`. Raises BadSlot for a slot that is not there, or is empty."""

    def content(found: re.Match[str]) -> str:
        slot = slots.get(found[1])
        if slot is None:
            raise BadSlot(f"Unknown slot `{found[1][:60]}`", where=where, todo=nearest(found[1], slots))
        option = slot.options[chosen.get(found[1], 0)]
        said = option.html or option.text if kind == "html" else option.text
        if not said.strip():
            raise BadSlot(f"Option `{option.name}` of slot `{found[1]}` has no `{kind}`", where=where, todo="Give it one")
        return said

    return _USE.sub(content, text)


class Given(msgspec.Struct, kw_only=True, frozen=True):
    """So many recipients of a wave and a group who got an option, and what they did: ``reward`` responses."""

    wave: int
    group: tuple[str, ...]
    option: int
    sent: int = 0
    reward: int = 0


class Filling:
    """One slot's groups, as far as they have been seen, and how its options do in each."""

    def __init__(self, name: str, slot: Slot) -> None:
        self.name, self.slot = name, slot
        self._values: list[dict[str, int]] = [{} for _ in slot.by]
        self.groups: dict[tuple[int, ...], int] = {}

    def known_values(self) -> list[dict[str, int]]:
        """Return by attribute the number of each value."""
        return self._values

    def label(self, attributes: dict[str, str]) -> tuple[str, ...]:
        """Return a recipient's group in words: the value of each attribute, and one word for all that are too rare to be told apart."""
        found = []
        for name, known in zip(self.slot.by, self._values, strict=True):
            value = str(attributes.get(name, ""))
            if value not in known and len(known) >= values_max:
                value = other
            known.setdefault(value, len(known))
            found.append(value)
        return tuple(found)

    def number(self, label: tuple[str, ...]) -> int:
        """Return a group's number; a new group gets the next."""
        values = tuple(known.setdefault(value, len(known)) for value, known in zip(label, self._values, strict=True))
        return self.groups.setdefault(values, len(self.groups))

    def believed(self, given: Iterable[Given], share_of: dict[int, float]) -> tuple[Groups, Effects | None]:
        """Return the sums of what was given, by group and option, and what is believed; None before anything was.

        ``share_of`` says by wave which share of its responses can have come by now.
        """
        rows = [(self.number(row.group), row) for row in given]
        shape = (len(self.groups), len(self.slot.options))
        sent, reward = np.zeros(shape), np.zeros(shape, np.int64)
        for group, row in rows:
            sent[group, row.option] += row.sent * share_of.get(row.wave, 0.0)
            reward[group, row.option] += row.reward
        # A response that came sooner than expected is still one of somebody.
        sent = np.maximum(np.rint(sent).astype(np.int64), reward)
        groups = Groups(
            values=np.array(list(self.groups), np.int64).reshape(-1, len(self.slot.by)), sent=sent, reward=reward, squares=reward
        )
        return groups, believe(groups) if sent.any() else None

    def chances(self, effects: Effects | None, random: Generator) -> np.ndarray:
        """Return the chance of each option in each group, [G, K]; alike in a group of which nothing is known when none is known of any."""
        options = len(self.slot.options)
        if effects is None:
            return np.full((len(self.groups), options), 1 / options)
        least = min(floor, 1 / options)
        return least + (1 - least * options) * chances(effects, random)


def chosen_option(seed: int, campaign: str, slot: str, recipient: str, chances_of: np.ndarray) -> int:
    """Return the option that a recipient gets by these chances, [K]; the same whenever it is asked."""
    at = luck(seed, campaign, f"slot {slot}", recipient) / 2**64 * float(chances_of.sum())
    return int(min(np.searchsorted(np.cumsum(chances_of), at, side="right"), chances_of.size - 1))


def summed(rows: Iterable[Given]) -> list[Given]:
    """Return the same with one row for each wave, group and option."""
    sums: dict[tuple, list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        found = sums[row.wave, row.group, row.option]
        found[0] += row.sent
        found[1] += row.reward
    return [Given(wave=w, group=g, option=k, sent=n, reward=r) for (w, g, k), (n, r) in sums.items()]
