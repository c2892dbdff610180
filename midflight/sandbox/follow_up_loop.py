"""A campaign with a rule beside it: who clicks and does not buy is followed up, but for a tenth; what that brings is known of everybody.

What the rule has earned is told from what the door took alone, by `decide/earned.py`. The truth is what people bought because of their
follow-ups, in the same time after their firings: without them they would have bought all the rest just the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import closing

import apsw
import msgspec

from ..act.action_table import STATES
from ..act.rule_orders import PutRule
from ..config import Config
from ..decide.earned import Earned, Sums, earned, sums_by_side
from ..events import recipient_key
from ..log import Reader
from ..store.reading import Reading
from .fortunes import FollowUp
from .life import hour_s
from .loop import Loop, Told, order_s_max
from .react import Effects, React

RULE = "remind"
CAMPAIGN = f"Follow-up: {RULE}"
MAIL = {
    "subject": "Still thinking about it?", "text": "Your basket waits.\n{{ unsubscribe_url }}", "channel": "out",
    "from_address": "news@shop.example",
}  # fmt: skip
holdout = 0.1
within_minutes = 30.0  # so long nothing is bought after a click, by the campaign's hours
window_hours = 3.0  # in which what somebody buys after his firing is counted, by the campaign's hours
slack_s = 3.0
read_bytes_max = 4 * 1024 * 1024
OPEN = ("waiting", "suggested", "approved", "called", "undoing")


class Side(msgspec.Struct, kw_only=True):
    """One side of the comparison: people whose time to buy is over, and what each of them spent."""

    people: int
    buyers: int
    revenue: float  # of one person


class ToldFollowUps(msgspec.Struct, kw_only=True):
    """What a run came to. ``lost`` are people who should have been fired for and were not, firings without an end, and follow-ups that are
    noted as sent and never arrived; ``wrong`` are people for whom a scanner's clicks fired, the rest of which came late; ``twice`` is how
    many somebody got too many, and ``held_written`` how many of those held out got one.

    ``lift`` and ``conversions`` are the truth: revenue, and buyers, that follow-ups brought, for each person followed up.
    """

    told: Told
    firings: int
    states: dict[str, int]
    reasons: dict[str, int]
    lost: int
    wrong: int
    twice: int
    held_written: int
    followed: Side
    held: Side
    earned: Earned
    lift: float
    conversions: float

    @property
    def inside(self) -> bool | None:
        """Whether the truth lies within what may be said of revenue, None where nothing may be said yet."""
        found = self.earned.revenue
        return found and found.low <= self.lift <= found.high

    @property
    def inside_conversions(self) -> bool:
        return self.earned.conversions.low <= self.conversions <= self.earned.conversions.high

    @property
    def well(self) -> bool:
        """Whether nothing was lost or came twice, and what is said of the rule is true."""
        return not (self.lost or self.twice or self.held_written) and self.inside is not False and self.inside_conversions


class FollowUpLoop(Loop):
    """One run with the rule."""

    effects = Effects(opens=0.8, clicks=0.6, buys=0.5)
    brings = FollowUp(campaign=CAMPAIGN)

    @property
    def _within_s(self) -> float:
        return within_minutes * 60 / self.play.speed

    def _settings(self) -> dict:
        return {"automation": {"people_per_hour": 0, "ceiling_per_hour": 0, "person_per_day": 2}}

    def _world(self) -> dict:
        return {"follow_up": self.brings, "lasts_s": (self.play.hours + self.play.after) * hour_s}

    def _prepare(self) -> None:
        within = f"{max(1, round(self._within_s))}s"
        limits = {
            "autonomy": "act", "holdout": holdout, "per_recipient": [{"count": 1, "hours": 24}], "per_hour": 1_000_000,
            "expires_minutes": 60.0,
        }  # fmt: skip
        definition = {
            "when": {"kind": "absence", "after": {"did": "clicked", "campaign": "loop"}, "no": {"did": "converted"}, "within": within},
            "action": {"way": "email", "fields": MAIL},
            "limits": limits,
        }
        self._order(PutRule(id="rule", who="sandbox", rule=RULE, version=1, definition=definition))

    def _await(self, react: React) -> None:
        """Wait until every firing has its end, and until everybody has lived who got a follow-up."""
        self._wait(lambda: react.next_us == 0 and self.clock.now_us() > react.end_us, 600, "everybody has lived")
        self.clock.sleep_s(self._within_s + slack_s)
        self._wait(lambda: not self._open() and react.next_us == 0, order_s_max, "every firing has its end")

    def _open(self) -> int:
        with closing(self._outbox()) as db:
            return sum(n for state, n in _states(db).items() if state in OPEN)

    def _outbox(self) -> apsw.Connection:
        db = apsw.Connection(str(self.config.folder / "outbox.db"), flags=apsw.SQLITE_OPEN_READONLY)
        db.set_busy_timeout(5000)
        return db

    # -- what it came to ---------------------------------------------------------------------------------------------------------

    def follow_ups(self) -> ToldFollowUps:
        """Play it, and return what it came to."""
        told = self.run()
        with closing(self._outbox()) as db:
            states = _states(db)
            ends = list(db.execute("SELECT recipient, state FROM actions WHERE rule = ?", (RULE,)))
            reasons = dict(db.execute("SELECT reason, count(*) FROM actions WHERE rule = ? GROUP BY reason", (RULE,)))
            sides = [(who, bool(held), since) for who, held, since in db.execute("SELECT recipient, held_out, since_us FROM trial")]
        got = Counter(recipient_key(message.recipient) for message in self.inbox.messages() if message.campaign == CAMPAIGN)
        orders = orders_of(self.config)
        fired, sent = {who for who, _ in ends}, {who for who, state in ends if STATES[state] == "sent"}
        clicked = self.react.clickers()
        missed = clicked - fired - orders.keys()
        unended = sum(n for state, n in states.items() if state in OPEN)
        window_us = int(window_hours * hour_s * 1e6 / self.play.speed)
        acted, held = sums_by_side(sides, orders, self.react.end_us, window_us)
        lift, conversions = self._truth(sides, window_us)
        return ToldFollowUps(
            told=told, firings=sum(states.values()), states=states, reasons=reasons,
            lost=len(missed) + sum(not got[who] for who in sent) + unended, wrong=len(fired - clicked),
            twice=sum(count - 1 for count in got.values()), held_written=sum(got[who] for who, out, _ in sides if out),
            followed=_side(acted), held=_side(held), earned=earned(acted, held, holdout), lift=lift, conversions=conversions,
        )  # fmt: skip

    def _truth(self, sides: list[tuple[str, bool, int]], window_us: int) -> tuple[float, float]:
        """Return what follow-ups brought within the window, and whom they made buy who would not have, for each person followed up."""
        orders: defaultdict[str, list] = defaultdict(list)
        for order in self.react.orders.values():
            orders[self.people.keys[order.person]].append(order)
        more, buyers, people = 0.0, 0, 0
        for who, out, since_us in sides:
            if out or since_us + window_us > self.react.end_us:
                continue
            people += 1
            found = [order for order in orders[who] if since_us <= order.at_us < since_us + window_us]
            brought = [order.value for order in found if order.campaign == CAMPAIGN]
            more += sum(brought)
            buyers += bool(brought) and len(brought) == len(found)
        return more / max(1, people), buyers / max(1, people)


def orders_of(config: Config) -> dict[str, list[tuple[int, float]]]:
    """Return by person what the door was told that he bought, and when: the log is read once more, without the engine."""
    reading = Reading(config)
    people: dict[str, str] = {}
    orders: dict[str, tuple[int, float, str, str]] = {}
    with Reader(config.folder / "log") as log:
        position = log.first()
        while records := log.read(position, read_bytes_max):
            position = records[-1].position + 1
            for event in (event for record in records for _, event in reading.events(record)):
                who = recipient_key(event.recipient)
                if event.kind == "identified" and event.user_id and who:
                    people[event.user_id] = who
                elif event.kind == "converted":
                    orders.setdefault(event.order_id, (event.occurred_at_us, event.value_micros / 1e6, who, event.user_id))
    found: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for at_us, value, who, user in orders.values():
        found[who or people.get(user, "")].append((at_us, value))
    return dict(found)


def _states(db: apsw.Connection) -> dict[str, int]:
    return {STATES[state]: n for state, n in db.execute("SELECT state, count(*) FROM actions WHERE rule = ? GROUP BY state", (RULE,))}


def _side(sums: Sums) -> Side:
    return Side(people=sums.people, buyers=sums.converted, revenue=sums.revenue / max(1, sums.people))
