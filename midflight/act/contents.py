"""What stands in the slots of a wave's messages: chosen by recipient group, from what people of the groups did with the waves before."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
from numpy.random import Generator

from ..decide.content import Effects, Groups
from ..metrics.metric import Z_95
from .campaigns import Campaigns, Filled, Running
from .outbox import options_of
from .slots import Filling, Given, chosen_option, summed
from .standing import GroupStanding, OptionStanding, SlotStanding

groups_shown_max = 40


class Known(msgspec.Struct, kw_only=True):
    """What is known of one slot: its groups with their sums, and what is believed of them; None before anything was sent."""

    filling: Filling
    groups: Groups
    effects: Effects | None


def known_of(
    campaigns: Campaigns, now: Running, responded: list[str], share_of: dict[int, float], more: list[dict[str, str]]
) -> list[Known]:
    """Return what is known of each slot.

    ``responded`` are the recipients who reached the goal, ``share_of`` says by wave which share of its responses can have come by now,
    ``more`` are attributes of people whose groups have to be among those that are known.
    """
    slots = list(now.definition.slots.items())
    given = campaigns.slots_given(now.id, len(slots))
    fillings = [Filling(name, slot) for name, slot in slots]
    # Groups are numbered in the order in which they were given, so that the same waves always make the same numbers.
    for filling, rows in zip(fillings, given, strict=True):
        for row in rows:
            filling.number(row.group)
    for wave, options, attributes in campaigns.answers(now.id, responded):
        for filling, rows, option in zip(fillings, given, options_of(options), strict=True):
            rows.append(Given(wave=wave, group=filling.label(attributes), option=option, reward=1))
    for attributes in more:
        for filling in fillings:
            filling.number(filling.label(attributes))
    return [
        Known(filling=f, groups=g, effects=e)
        for f, rows in zip(fillings, given, strict=True)
        for g, e in [f.believed(summed(rows), share_of)]
    ]


def fill(campaigns: Campaigns, now: Running, count: int, responded: list[str], share_of: dict[int, float], random: Generator) -> Filled:
    """Return what stands in the slots of the next ``count`` people's messages, with the chance by which it was chosen."""
    people = campaigns.next_attributes(now, count)
    known = known_of(campaigns, now, responded, share_of, [attributes for _, attributes in people])
    tables = [one.filling.chances(one.effects, random) for one in known]
    options: list[tuple[int, ...]] = []
    chances: list[float] = []
    given: Counter[tuple[int, tuple[str, ...], int]] = Counter()
    for key, attributes in people:
        chosen, chance = [], 1.0
        for place, (one, table) in enumerate(zip(known, tables, strict=True)):
            label = one.filling.label(attributes)
            row = table[one.filling.number(label)]
            option = chosen_option(now.definition.seed, now.name, one.filling.name, key, row)
            chosen.append(option)
            chance *= float(row[option] / row.sum())
            given[place, label, option] += 1
        options.append(tuple(chosen))
        chances.append(chance)
    return Filled(options=options, chances=chances, given=given)


def standings_of(known: list[Known], random: Generator) -> list[SlotStanding]:
    """Return how each slot stands, group by group, the largest first."""
    found = []
    for one in known:
        table = one.filling.chances(one.effects, random)
        names = [option.name for option in one.filling.slot.options]
        labels = list(one.filling.groups)
        words = [{number: value for value, number in known.items()} for known in one.filling.known_values()]
        groups = []
        for g in np.argsort(-one.groups.sent.sum(1), kind="stable")[:groups_shown_max]:
            mean = one.effects.mean[g] if one.effects else np.zeros(len(names))
            deviation = np.sqrt(np.diag(one.effects.covariance[g]).clip(0)) if one.effects else np.zeros(len(names))
            groups.append(
                GroupStanding(
                    group=[words[a][value] for a, value in enumerate(labels[g])],
                    options=[
                        OptionStanding(
                            sent=int(one.groups.sent[g, k]), responses=int(one.groups.reward[g, k]), rate=float(max(0.0, mean[k])),
                            low=float(max(0.0, mean[k] - Z_95 * deviation[k])), high=float(max(0.0, mean[k] + Z_95 * deviation[k])),
                            share=float(table[g, k]),
                        )
                        for k in range(len(names))
                    ],
                )
            )  # fmt: skip
        found.append(
            SlotStanding(name=one.filling.name, by=one.filling.slot.by, options=names, groups=groups, left_out=len(labels) - len(groups))
        )
    return found
