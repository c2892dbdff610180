"""What the store knows of deliverability: who answers how, who blocks, which addresses are not written to and why."""

from __future__ import annotations

import msgspec

from ..decide.dead_addresses import Answer
from .read import View
from .suspecting import IMPORTED, Row, for_good_us

shown_max = 500
hour_us = 3_600_000_000
MINUTES_A_WEEK = 7 * 24 * 60
ENDS = {
    "dead": "A year after the last answer, or a click of its owner, or somebody who takes it off the list.",
    "disabled": "A year after the last answer, or a click of its owner, or somebody who takes it off the list.",
    "full": "A year after the last answer, or a click of its owner, or somebody who takes it off the list.",
    "suspected": "Its probation: then it is tried again, and a second answer like this decides.",
    "storm": "The end of the storm at its provider, and a day more: then it is tried again.",
    IMPORTED: "Only somebody who takes it off the list.",
    "unsubscribed": "Only the recipient, who subscribes again.",
    "complained": "Nothing: who complained is not written to any more.",
    "bounced": "Somebody who takes it off the list; a former version put it there.",
}


class Answered(msgspec.Struct, kw_only=True, frozen=True):
    """How a provider answered to a campaign (``pair``: the name is the campaign's), or a domain or for an IP, since the store was made."""

    kind: str
    name: str
    provider: str = ""
    answered: int
    bounced: int
    blocked: int
    last_us: int


class Suppressed(msgspec.Struct, kw_only=True):
    """One who is not written to: why, since when, until when (0: for good), and what ends it."""

    recipient: str
    status: str
    reason: str
    since_us: int
    until_us: int
    evidence: str
    ends: str
    provider: str = ""
    answers: list[Answer] = []


def answers(view: View, since_us: int) -> list[Answered]:
    """Return who answered for messages since a time of the log."""
    found = view.db.execute(
        "SELECT kind, name, answered, bounced, blocked, last_us FROM answers WHERE last_us >= ?", (since_us,)
    ).fetchall()
    made = []
    for kind, name, answered, bounced, blocked, last_us in found:
        provider = ""
        if kind == "pair":
            campaign, _, number = name.partition("/")
            name, provider = view.name("campaign", int(campaign)), view.name("provider", int(number))
        made.append(
            Answered(kind=kind, name=name, provider=provider, answered=answered, bounced=bounced, blocked=blocked, last_us=last_us)
        )  # fmt: skip
    return made


_LISTED = """
SELECT recipient, status, reason, since_us, until_us, evidence, provider, state FROM addresses WHERE status <> 'fine'
UNION ALL SELECT recipient, 'suppressed', why, at_us, 0, '', '', NULL FROM suppressions
"""


def suppressed(view: View, *, search: str = "", reason: str = "", after: str = "", count_max: int = shown_max) -> list[Suppressed]:
    """Return who is not written to, by address, after one address; those whose address or domain begins with ``search``."""
    wanted = search.strip().lower()
    found = view.db.execute(
        f"SELECT * FROM ({_LISTED}) WHERE recipient > :after AND (until_us = 0 OR until_us > :now_us) "
        "AND (:reason = '' OR reason = :reason) "
        "AND (:search = '' OR substr(recipient, 1, length(:search)) = :search OR instr(recipient, '@' || :search) > 0) "
        "ORDER BY recipient LIMIT :count_max",
        {"after": after, "now_us": view.log_time_us, "reason": reason, "search": wanted, "count_max": count_max},
    )  # fmt: skip
    return [_suppressed(*row) for row in found]


def explained(view: View, recipient: str) -> list[Suppressed]:
    """Return all that is said against writing to one recipient, also what is over."""
    found = view.db.execute(f"SELECT * FROM ({_LISTED}) WHERE recipient = ? ORDER BY since_us DESC", (recipient,))
    return [_suppressed(*row) for row in found]


def reasons(view: View) -> dict[str, int]:
    """Return how many are not written to, by reason."""
    found = view.db.execute(
        f"SELECT reason, count(*) FROM ({_LISTED}) WHERE until_us = 0 OR until_us > ? GROUP BY reason ORDER BY 2 DESC", (view.log_time_us,)
    )
    return dict(found)


def _suppressed(
    recipient: str, status: str, reason: str, since_us: int, until_us: int, evidence: str, provider: str, state: bytes | None
) -> Suppressed:
    answers = list(msgspec.json.decode(state, type=Row).address.answers) if state else []
    return Suppressed(
        recipient=recipient, status=status, reason=reason, since_us=since_us, until_us=0 if until_us >= for_good_us else until_us,
        evidence=evidence or _SAID.get(reason, ""), ends=ENDS.get(reason, ""), provider=provider, answers=answers,
    )  # fmt: skip


_SAID = {
    "unsubscribed": "The recipient asked for no more.",
    "complained": "The recipient reported a message as spam.",
    "bounced": "A message bounced for good.",
}


def blocking(view: View, hours: int) -> list[tuple[str, str, int, int, int, str]]:
    """Return who blocked us within so many hours of the log: sign, provider, how often, first and last time in us, one text."""
    first = view.log_time_us // hour_us - hours
    found = view.db.execute(
        "SELECT sign, provider, sum(n), min(hour), max(last_us), said FROM signs WHERE hour > ? GROUP BY sign, provider "
        "ORDER BY 5 DESC LIMIT ?",
        (first, shown_max),
    )
    return [(sign, provider, n, first_hour * hour_us, last_us, said) for sign, provider, n, first_hour, last_us, said in found]


_RECENT = "campaign IN (SELECT campaign FROM campaigns WHERE last_minute >= :first) AND hour >= :first"
_BOUNCES = "sum(bounced_hard) + sum(bounced_soft) + sum(bounced_block)"


def by_hour(view: View, hours: int) -> list[tuple[str, int, int, int]]:
    """Return (provider, hour in minutes since 1970, delivered, bounced) of the last hours of the log."""
    first = (view.log_time_us // hour_us - hours + 1) * 60
    found = view.db.execute(
        f"SELECT provider, hour, sum(delivered), {_BOUNCES} FROM hours WHERE {_RECENT} AND provider > 0 GROUP BY provider, hour",
        {"first": first},
    )
    return [(view.name("provider", number), hour, delivered, bounced) for number, hour, delivered, bounced in found]


def by_day(view: View, days: int) -> list[tuple[str, int, int, int, int, int]]:
    """Return (provider, day since 1970, delivered, bounced, complained, unsubscribed) of the last days of the log."""
    first = (view.log_time_us // hour_us // 24 - days + 1) * 24 * 60
    found = view.db.execute(
        f"SELECT provider, hour / 1440, sum(delivered), {_BOUNCES}, sum(complained), sum(unsubscribed) FROM hours "
        f"WHERE {_RECENT} AND provider > 1 GROUP BY 1, 2",
        {"first": first},
    )
    return [(view.name("provider", number), *counts) for number, *counts in found]


def by_week(view: View, weeks: int) -> list[tuple[str, int, int, int, int, int, int, int]]:
    """Return (provider, first minute of the week, delivered, bounced, blocked, complained, unsubscribed, opened) of the last weeks."""
    end = view.log_time_us // 60_000_000 + 1
    first = end - weeks * MINUTES_A_WEEK
    found = view.db.execute(
        f"SELECT provider, (hour - :first) / {MINUTES_A_WEEK}, sum(delivered), {_BOUNCES}, sum(bounced_block), sum(complained), "
        f"sum(unsubscribed), sum(opened_human) FROM hours WHERE {_RECENT} AND provider > 0 GROUP BY 1, 2",
        {"first": first},
    )
    return [(view.name("provider", number), first + week * MINUTES_A_WEEK, *counts) for number, week, *counts in found]
