"""Looks once a minute whether each source brings what it should, and has what is missing asked for where a poll can."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import apsw
import msgspec

from ..act.outbox import as_it_stands
from ..config import Config
from ..decide.reconciliation import Alarm, Campaign, Reconciliation, State, as_unusual
from ..decide.unusual import Unusual
from ..kit.errors import MidflightError
from ..sources.polls import Poll
from ..store.read import Store, View, minute_us
from .polling import ask_backfill

logger = logging.getLogger("midflight.reconciling")

campaigns_max = 200
active_minutes = 24 * 60
source_minutes = 3 * 60  # so far back it is looked which sources a campaign's events come from
before_minutes = 10  # what is asked for again begins so long before something was missed
shown_minutes = 10  # an alarm that nobody has confirmed for longer is not shown
BOUNCED = ("bounced_hard", "bounced_soft", "bounced_block")
ANSWERED = ("delivered", *BOUNCED, "deferred", "rejected", "failed")


class Reconciling:
    """The only writer of ``polls/reconciliation.json``, which holds what is usual and the alarms that stand."""

    def __init__(self, config: Config, store: Store, polls: dict[str, Poll]) -> None:
        self.config, self.store, self.polls = config, store, polls
        self.path = place(config.folder)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.reconciliation = Reconciliation(kept(self.path))

    def step(self) -> list[Alarm]:
        """Look at the minutes of log time that have ended since the last look; return alarms that begin."""
        begun: list[Alarm] = []
        with self.store.view() as view:
            last, done = view.log_time_us // minute_us - 1, self.reconciliation.state.minute
            if not view.present or last <= done:
                return []
            before = {key(one): one for one in self.reconciliation.state.alarms}
            campaigns = list(campaigns_of(view, last, sent_of(self.config.folder)))
            # One minute may have been passed over between two looks; of more nobody knows whether the numbers were there in time.
            for minute in range(last - 1 if done == last - 2 else last, last + 1):
                received = {name: sum(row[2] for row in view.receipts(name, minute, minute)) for name in view.source_names()}
                begun += self.reconciliation.look(minute, received, campaigns)
        self._keep()
        standing_now = {key(one) for one in self.reconciliation.state.alarms}
        for one in begun:
            logger.error("%s %s", one.text, one.why)
            self._ask(one, last, "begun")
        for one in before.values():
            if key(one) not in standing_now:
                logger.info("over: %s", one.text)
                self._ask(one, last, "over")
        return begun

    def _ask(self, alarm: Alarm, last: int, when: str) -> None:
        """Have the polls of a source's events ask for the time in which something was missed; each alarm asks twice at most."""
        from_us, to_us = (alarm.since - before_minutes) * minute_us, (last + 1) * minute_us
        for name, poll in self.polls.items():
            if poll.vendor and poll.source in alarm.source.split(", "):
                ask_backfill(self.config.folder, name, from_us, to_us, f"reconciliation-{alarm.kind}-{alarm.at}-{when}")

    def _keep(self) -> None:
        try:
            fresh = self.path.with_name(f".{self.path.name}")
            fresh.write_bytes(msgspec.json.encode(self.reconciliation.state))
            os.replace(fresh, self.path)
        except OSError as error:
            logger.warning("what is usual for the sources cannot be written down: %s", error)


def looked(reconciling: Reconciling) -> None:
    """Look, whatever comes of it."""
    try:
        reconciling.step()
    except (MidflightError, apsw.Error, OSError) as error:
        logger.warning("the sources are looked at later: %s", error)


def campaigns_of(view: View, last: int, sent: dict[str, int]) -> Iterator[Campaign]:
    """Yield the sums of campaigns in which something happened within a day, with the sources of their last hours."""
    sql = "SELECT DISTINCT source FROM hours WHERE campaign = ? AND hour >= ? LIMIT 20"
    for row in view.campaigns(limit=campaigns_max, since_minute=last - active_minutes):
        sums = row["sums"]
        ids = [source for (source,) in view.db.execute(sql, (row["id"], (last - source_minutes) // 60 * 60))]
        yield Campaign(
            name=row["name"],
            sources=tuple(sorted(filter(None, (view.name("source", source) for source in ids)))),
            sent=max(sums["sent"], sums["queued"]),
            answered=sum(sums[name] for name in ANSWERED),
            delivered=sums["delivered"],
            opened=max(sums["opened"], sums["clicked"]),
            engaged=sums["opens_human"] + sums["clicks_human"],
            handed=sent.get(row["name"], 0),
        )


def sent_of(folder: Path) -> dict[str, int]:
    """Return how many messages Midflight itself has sent of each campaign: what is expected where a vendor reports no sending."""
    with as_it_stands(folder / "outbox.db", "campaigns") as outbox:
        if outbox is None:
            return {}
        sql = "SELECT c.name, sum(t.n) FROM totals t JOIN campaigns c ON c.id = t.campaign WHERE t.state IN (2, 4) GROUP BY c.id"
        return dict(outbox.db.execute(sql))


def key(alarm: Alarm) -> tuple[str, str, str]:
    return alarm.kind, alarm.source, alarm.campaign


def place(folder: Path) -> Path:
    return folder / "polls" / "reconciliation.json"


def kept(path: Path) -> State | None:
    """Return what was kept; None where there is nothing, or nothing that can be read: then it is learnt anew."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=State)
    except (OSError, msgspec.DecodeError):
        return None


def standing(folder: Path, last: int) -> list[Unusual]:
    """Return what the poller misses now, for whoever shows it."""
    state = kept(place(folder))
    return [as_unusual(one) for one in state.alarms] if state and state.minute >= last - shown_minutes else []
