"""What the conductor asks of the store: responses by wave, variant and age, what must stop a campaign, who must not be written to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from ..config import Config
from ..decide.delays import BUCKETS
from ..decide.guardrails import Counts
from ..kit.clock import Clock
from ..stream.measures import DELAY_EDGES_S, DELAYS
from .attributes import attributes
from .listing import Answered, answers
from .read import Store, TooSlow, View

# What counts as a response, by goal: the kind of delay by which its age is known, and the measures of all and of people's alone.
RESPONSES = {
    "click": ("click", "clicked", "clicked_human"),
    "open": ("open", "opened", "opened_human"),
    "conversion": ("conversion", "converted", "converted"),
    "revenue": ("conversion", "converted", "converted"),
}
# An age within each bucket of delays, in seconds.
_MIDDLES_S = np.sqrt(np.array([0.5, *DELAY_EDGES_S]) * np.array([*DELAY_EDGES_S, 2 * DELAY_EDGES_S[-1]]))
machine_bucket = 12  # where responses by machines are put: within minutes, as most of them come
orders_max = 100  # at a time
# Who of these must not be written to, and why: for a time where it is about the address, else for good.
SUPPRESSED = """
SELECT recipient, reason FROM addresses
WHERE recipient IN (SELECT value FROM json_each(:asked)) AND status <> 'fine' AND until_us > :now_us
UNION ALL SELECT recipient, why FROM suppressions WHERE recipient IN (SELECT value FROM json_each(:asked))
"""
_COUNTED = ("delivered", "bounced_hard", "bounced_soft", "bounced_block", "complained", "unsubscribed")


class Responses(msgspec.Struct, kw_only=True):
    """Responses to a campaign, [W, K, J]: of people, and with those that machines may have made."""

    people: np.ndarray
    everybody: np.ndarray


class Numbers:
    """The conductor's view of the store. Every method reads one moment."""

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        self.store = Store(config, clock)
        self.reached = 0  # the log position up to which everything was counted once

    def close(self) -> None:
        self.store.close()

    def position(self) -> tuple[int, int]:
        """Return the log position behind what is counted, and the time of the last record, in us."""
        with self.store.view() as view:
            self.reached = max(self.reached, view.position)
            return view.position, view.log_time_us

    def _reach(self, view: View) -> None:
        if view.position < self.reached:
            raise TooSlow(
                "The numbers are made anew: who has unsubscribed is not known yet", expected=f"position {self.reached}", got=view.position
            )
        self.reached = view.position

    def orders(self, after: int) -> list[tuple[int, int, bytes]]:
        """Return orders with a position above ``after``, with position and time, in order."""
        with self.store.view() as view:
            sql = "SELECT position, at_us, body FROM orders WHERE position > ? ORDER BY position LIMIT ?"
            return view.db.execute(sql, (after, orders_max)).fetchall()

    def suppressed(self, recipients: Iterable[str]) -> dict[str, str]:
        """Return those of these recipients who must not be written to, and why. Raises TooSlow while the store is made anew: then it does
        not know them yet."""
        asked = msgspec.json.encode(list(recipients)).decode()
        with self.store.view() as view:
            self._reach(view)
            return dict(view.db.execute(SUPPRESSED, {"asked": asked, "now_us": view.log_time_us}))

    def attributes(self, recipients: Iterable[str]) -> dict[str, dict[str, object]]:
        """Return what was last said of these people, by attribute. Raises TooSlow while the store is made anew."""
        with self.store.view() as view:
            self._reach(view)
            return attributes(view.db, recipients)

    def responses(
        self, campaign: str, variants: list[str], waves: list[str], goal: str, sent_at_s: list[float], speed: float = 1.0
    ) -> Responses:
        """Return the responses to a campaign; nothing where the store has not heard of it yet.

        The age of a conversion is from its wave, whose times are ``sent_at_s``: the store has it from the click. Ages are times ``speed``.
        """
        kind, of_all, of_people = RESPONSES[goal]
        shape = (len(waves), len(variants), BUCKETS)
        found = Responses(people=np.zeros(shape, np.int64), everybody=np.zeros(shape, np.int64))
        with self.store.view() as view:
            number = view.id("campaign", campaign)
            if not number:
                return found
            wave, variant = _places(view, "wave", waves), _places(view, "variant", variants)
            at = np.searchsorted(DELAY_EDGES_S, _MIDDLES_S * speed, side="right")
            if kind == "conversion":
                rows = _by_age(view, number, wave, sent_at_s)
            else:
                rows = view.db.execute(
                    "SELECT wave, variant, bucket, sum(n) FROM hour_delays WHERE campaign = ? AND kind = ? GROUP BY wave, variant, bucket",
                    (number, DELAYS.index(kind)),
                )
            for w, v, bucket, n in rows:
                if w in wave and v in variant:
                    found.people[wave[w], variant[v], at[bucket]] += n
            found.everybody[:] = found.people
            if of_all == of_people:
                return found
            rows = view.db.execute(
                f"SELECT wave, variant, sum({of_all}) - sum({of_people}) FROM hours WHERE campaign = ? GROUP BY wave, variant", (number,)
            )
            for w, v, n in rows:
                if w in wave and v in variant:
                    found.everybody[wave[w], variant[v], machine_bucket] += max(0, n)
        return found

    def responded(self, campaign: str, goal: str) -> list[str]:
        """Return the recipients who reached a campaign's goal; who only opened is not known by name."""
        with self.store.view() as view:
            number = view.id("campaign", campaign)
            if not number:
                return []
            bought = " AND converted_at_us > 0" if goal in ("conversion", "revenue") else ""
            rows = view.db.execute(f"SELECT DISTINCT recipient FROM clickers WHERE campaign = ?{bought} ORDER BY recipient", (number,))
            return [recipient for (recipient,) in rows]

    def counts(self, campaign: str, variants: list[str]) -> list[Counts]:
        """Return what guardrails look at, for each variant."""
        found = [Counts() for _ in variants]
        with self.store.view() as view:
            number = view.id("campaign", campaign)
            if not number:
                return found
            place = _places(view, "variant", variants)
            sums = ", ".join(f"sum({name})" for name in _COUNTED)
            for v, delivered, hard, soft, block, complained, unsubscribed in view.db.execute(
                f"SELECT variant, {sums} FROM hours WHERE campaign = ? GROUP BY variant", (number,)
            ):
                if v in place:
                    found[place[v]] = Counts(
                        delivered=delivered, bounced=hard + soft + block, complained=complained, unsubscribed=unsubscribed
                    )  # fmt: skip
        return found

    def answers(self, since_us: int) -> tuple[int, list[Answered]]:
        """Return the log's time, and whoever answered for messages since a time, with his sums since the store was made."""
        with self.store.view() as view:
            return view.log_time_us, answers(view, since_us)

    def advised(self, campaign: str) -> dict[tuple[int, str], int]:
        """Return how many recipients the advisor gave each variant, by wave."""
        with self.store.view() as view:
            rows = view.db.execute("SELECT wave, variant, count(*) FROM advised WHERE campaign = ? GROUP BY wave, variant", (campaign,))
            return {(wave, variant): n for wave, variant, n in rows}


def _by_age(view: View, campaign: int, wave: dict[int, int], sent_at_s: list[float]) -> Iterator[tuple[int, int, int, int]]:
    """Yield wave, variant, age bucket and number of conversions, by the minute in which they were made."""
    for w, v, minute, n in view.db.execute(
        "SELECT wave, variant, minute, sum(converted) FROM cells WHERE campaign = ? AND converted <> 0 GROUP BY wave, variant, minute",
        (campaign,),
    ):
        if w in wave:
            age_s = max(0.0, minute * 60 + 30 - sent_at_s[wave[w]])
            yield w, v, int(np.searchsorted(DELAY_EDGES_S, age_s, side="right")), n


def _places(view: View, kind: str, names: list[str]) -> dict[int, int]:
    """Return at which place of ``names`` each id of the store belongs."""
    return {number: place for place, name in enumerate(names) if (number := view.id(kind, name))}
