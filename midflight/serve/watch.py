"""Takes from the store what `decide.unusual` judges: each active campaign's last minutes beside what came before."""

from __future__ import annotations

from ..decide.unusual import Campaign, Group, SourceMinutes, Unusual, find
from ..store.read import View, minute_us

recent_minutes = 15
before_minutes = 6 * 60  # what a provider usually does; longer ago is another day
silent_minutes_max = 24 * 60  # a source that has been silent for longer is not news
watched_minutes = 60
campaigns_max = 20


def unusual_in(view: View, rows: list[dict]) -> list[Unusual]:
    """Return what is unusual in these campaigns (rows of ``View.campaigns``) and in the sources. Only whole minutes are judged."""
    last = view.now_us // minute_us - 1
    return find([campaign_counts(view, row, last) for row in rows[:campaigns_max]], source_minutes(view, last))


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


def source_minutes(view: View, last: int) -> list[SourceMinutes]:
    """Return for each source how long it has been silent and how busy the hour before its last event was."""
    out = []
    for name in view.source_names():
        last_event = view.last_event_us(name) // minute_us
        if not last_event or last - last_event > silent_minutes_max:
            continue
        busy = sum(1 for _, _, events, _, _ in view.receipts(name, last_event - watched_minutes + 1, last_event) if events)
        out.append(SourceMinutes(name=name, silent=max(0, last - last_event), busy=busy, watched=watched_minutes))
    return out
