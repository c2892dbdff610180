"""Takes from the store what `decide.unusual` judges: each active campaign's last minutes beside what came before."""

from __future__ import annotations

from pathlib import Path

from ..decide.unusual import Campaign, Group, Unusual, find
from ..store.read import View, minute_us
from .reconciling import standing

recent_minutes = 15
before_minutes = 6 * 60  # what a provider usually does; longer ago is another day
campaigns_max = 20


def unusual_in(view: View, rows: list[dict], folder: Path) -> list[Unusual]:
    """Return what is unusual in these campaigns (rows of ``View.campaigns``), and what the poller misses of the sources. Only whole minutes
    are judged."""
    last = view.now_us // minute_us - 1
    return find([campaign_counts(view, row, last) for row in rows[:campaigns_max]], standing(folder, last))


def campaign_counts(view: View, row: dict, last: int) -> Campaign:
    """Return a campaign's counts of the last minutes and of the hours before them, by provider."""
    split = last - recent_minutes + 1
    sql = """SELECT provider, minute >= ?, sum(delivered), sum(bounced_hard + bounced_soft + bounced_block), sum(opens + clicks),
        sum(opens_human + clicks_human) FROM cells WHERE campaign = ? AND minute BETWEEN ? AND ? GROUP BY 1, 2"""
    counts: dict[int, list[int]] = {}
    actions, people = [0, 0], [0, 0]
    if row["last"] < split:
        # Nothing moved in the last minutes: only what holds since the start can be unusual.
        return Campaign(name=row["name"], delivered=row["sums"]["delivered"], complained=row["sums"]["complained"])
    for provider, now, delivered, bounced, acted, human in view.db.execute(sql, (split, row["id"], split - before_minutes, last)):
        group = counts.setdefault(provider, [0, 0, 0, 0])
        group[2 * now] += delivered + bounced
        group[2 * now + 1] += bounced
        actions[now] += acted
        people[now] += human
    return Campaign(
        name=row["name"],
        minutes=recent_minutes,
        providers=tuple(
            Group(name=view.name("provider", id_), answered=g[2], bounced=g[3], answered_before=g[0], bounced_before=g[1])
            for id_, g in counts.items()
        ),
        actions=actions[1],
        machine=min(actions[1], max(0, actions[1] - people[1])),
        actions_before=actions[0],
        machine_before=min(actions[0], max(0, actions[0] - people[0])),
        delivered=row["sums"]["delivered"],
        complained=row["sums"]["complained"],
    )
