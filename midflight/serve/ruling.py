"""What the console asks of segments and rules: it reads the store and the conductor's file, and changes anything only by orders in the log.

The kill switch alone is turned here and now, because it has to hold where log and conductor do not answer: see act/kill_switch.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from ..act import rule_orders
from ..act.actions import Actions
from ..act.outbox import as_it_stands
from ..act.rulebook import Now
from ..act.ways_out import says_of
from ..config import Config
from ..decide.acts import acts_of
from ..decide.definitions import SOURCE, BadDefinition, Definitions, DropSegment, PutSegment, rule_of
from ..decide.earned import earned, sums_by_side
from ..decide.limits import Limits, day_us
from ..kit.errors import MidflightError, NotFound, nearest
from ..log.record import Record
from ..store import asking
from ..store.read import View
from ..stream.conditions import condition_of, words
from . import doorlink
from .automation import checked_ways
from .ordering import Refused, new_id, ordered, pause_s, wait_s

if TYPE_CHECKING:
    from .api import Site

history_hours_max = 72
earned_people_max = 20_000  # of a rule's people, whose conversions are looked at
earned_window_us = 3 * day_us  # so long after somebody's first firing what he buys counts
hour_us = 3_600_000_000
OF_A_RULE = ("when", "where", "action", "limits")
TAKEN_NAMES = ("ledger",)  # which is an address of the API
_TABLES = ("actions", "action_totals", "rules", "rules_now", "rule_ledger", "trial", "touches")


# -- reading -------------------------------------------------------------------------------------------------------------


@contextmanager
def acted(config: Config) -> Iterator[Actions | None]:
    """Give what became of firings as it stands at one moment; None where the conductor has never looked at any."""
    with as_it_stands(config.folder / "outbox.db", *_TABLES) as outbox:
        yield Actions(outbox) if outbox else None


def definitions_of(view: View) -> Definitions:
    """Return the segments and rules in force, by what the engine has read of the log."""
    found = Definitions()
    kept = view.db.execute("SELECT value FROM meta WHERE key = 'definitions'").get if view.present else None
    if kept is not None:
        found.load(msgspec.json.decode(kept))
    return found


def kept_segment(definitions: Definitions, name: str):
    """Return a segment's definition. Raises NotFound with the nearest one."""
    if name not in definitions.segments:
        raise NotFound(f"Unknown segment `{name[:100]}`", todo=nearest(name[:100], definitions.segments))
    return definitions.segments[name]


def members_of(view: View) -> dict[str, int]:
    """Return how many are in each segment."""
    return dict(view.db.execute("SELECT name, members FROM segments")) if view.present else {}


def history_of(view: View, segment: str, members: int) -> list[dict]:
    """Return how many came, left and were there at the end of each of the last hours, the earliest first."""
    last = view.log_time_us // hour_us
    sql = "SELECT hour, entered, gone FROM flows WHERE segment = ? ORDER BY hour DESC LIMIT ?"
    rows = {hour: (came, left) for hour, came, left in view.db.execute(sql, (segment, history_hours_max))}
    first = max(min(rows, default=last), last - history_hours_max + 1)
    found = []
    for hour in range(last, first - 1, -1):
        came, left = rows.get(hour, (0, 0))
        found.append({"at_us": hour * hour_us, "entered": came, "left": left, "members": members})
        members = max(0, members - came + left)
    return found[::-1]


def segment_row(definitions: Definitions, members: dict[str, int], name: str) -> dict:
    """Return what a list tells of a segment."""
    kept = definitions.segments[name]
    condition = condition_of(kept.body)
    return {"name": name, "version": kept.version, "words": words(condition), "where": kept.body, "members": members.get(name, 0)}


def sample_of(config: Config, name: str, count: int) -> tuple[list[str], str | None]:
    """Return some members, and a note where these cannot be told."""
    try:
        return asking.members(config.folder, name, count), None
    except asking.NoAnswer as error:
        return [], error.text()


def share_of(members: int, tried: int) -> tuple[float, float]:
    """Return the ends of the 95 % interval of a share (Wilson 1927)."""
    if not tried:
        return 0.0, 1.0
    z, share = 1.96, members / tried
    middle = (share + z * z / (2 * tried)) / (1 + z * z / tried)
    half = z * math.sqrt(share * (1 - share) / tried + z * z / (4 * tried * tried)) / (1 + z * z / tried)
    return max(0.0, middle - half), min(1.0, middle + half)


def rule_rows(definitions: Definitions, actions: Actions | None) -> list[dict]:
    """Return every rule in force with how it stands, by name."""
    totals = actions.totals() if actions else {}
    names = sorted({*definitions.rules, *(actions.book.names() if actions else ())})
    return [rule_row(definitions, actions, name, totals.get(name, {})) for name in names]


def rule_row(definitions: Definitions, actions: Actions | None, name: str, totals: dict[str, int]) -> dict:
    """Return what a list tells of a rule. ``taken_up`` is false while engine and conductor are not at the same version."""
    kept, now = definitions.rules.get(name), actions.book.known(name) if actions else None
    now = None if now and now.removed else now
    body = actions.book.definition(name, now.version) if now else kept.body
    acting = acts_of(body)
    version = max(kept.version if kept else 0, now.version if now else 0)
    return {
        "name": name, "version": version, "autonomy": now.autonomy if now else acting.limits.autonomy, "when": when_words(body),
        "way": acting.action.way, "holdout": acting.limits.holdout, "totals": totals, "definition": body,
        "taken_up": bool(kept and now and kept.version == now.version),
    }  # fmt: skip


def when_words(body: dict) -> str:
    """Return in words when a rule fires."""
    try:
        trigger, where = rule_of(body)
    except MidflightError as error:
        return error.text()
    return trigger.words() + (f", and {words(where)}" if where is not None else "")


def earned_of(config: Config, name: str, limits: Limits, log_us: int) -> dict | None:
    """Return what may be said of a rule's worth; None where nobody is held out. ``note`` says why nothing is known."""
    if not limits.holdout:
        return None
    with acted(config) as actions:
        sides = list(islice(actions.sides(name, limits), earned_people_max)) if actions else []
    try:
        orders = asking.bought(config.folder, [recipient for recipient, _, _ in sides])
    except asking.NoAnswer as error:
        return {"says": "not_yet", "text": "", "acted": 0, "held_out": 0, "note": error.text()}
    taken, out = sums_by_side(sides, orders, log_us, earned_window_us)
    note = f"A person is counted {earned_window_us // day_us} days after his first firing" if not taken.people or not out.people else None
    found = earned(taken, out, limits.holdout)
    return {"says": found.says, "text": found.text, "acted": taken.people, "held_out": out.people, "note": note}


def versions_of(actions: Actions | None, name: str) -> list[dict]:
    """Return a rule's versions as they were put down, the newest first."""
    if actions is None:
        return []
    rows = actions.db.execute(
        "SELECT version, at_us, who, why, definition FROM rules WHERE rule = ? ORDER BY version DESC LIMIT 50", (name,)
    )  # fmt: skip
    return [
        {"version": version, "at_us": at_us, "who": who, "why": why, "definition": msgspec.json.decode(body)}
        for version, at_us, who, why, body in rows
    ]


# -- orders --------------------------------------------------------------------------------------------------------------


def put_segment(site: Site, name: str, where: dict, version: int, who: str, why: str) -> bool:
    """Make a segment, or give it another condition; tell whether the engine has done so. ``version`` 0 is the next one, whatever it is.

    Raises MidflightError for what cannot be put into force, DoorAway, and Refused where somebody was quicker.
    """
    with site.store.view() as view:
        definitions = definitions_of(view)
    version = version or definitions.versions.get(f"segment {name}", 0) + 1
    definitions.put_segment(name, version, where)
    definitions.program(lambda kind, name: 0)
    order = PutSegment(id=new_id(), name=name, version=version, where=where, who=who, why=why)
    return _folded(site, order, lambda now: now.versions.get(f"segment {name}", 0) >= version, lambda now: kept_body(now, name) == where)


def kept_body(definitions: Definitions, name: str) -> dict | None:
    return definitions.segments[name].body if name in definitions.segments else None


def drop_segment(site: Site, name: str, who: str, why: str) -> bool:
    """Take a segment away; tell whether the engine has done so. Raises NotFound, BadDefinition where something needs it, DoorAway."""
    with site.store.view() as view:
        definitions_of(view).drop_segment(name)
    order = DropSegment(id=new_id(), name=name, who=who, why=why)
    return _folded(site, order, lambda now: name not in now.segments, lambda now: True)


def _folded(site: Site, order: msgspec.Struct, over, done) -> bool:
    """Hand in an order that the engine alone carries out; tell whether it has. ``over`` and ``done`` are asked of what is then in force."""
    doorlink.append(site.config, [Record("definition", SOURCE, 0, {}, msgspec.json.encode(order))])
    end = site.clock.monotonic_s() + wait_s
    while True:
        with site.store.view() as view:
            now = definitions_of(view)
        if over(now):
            if not done(now):
                raise Refused("Somebody else has changed it meanwhile", todo="Look at it again")
            return True
        if site.clock.monotonic_s() >= end:
            return False
        site.clock.sleep_s(pause_s)


def check_rule(config: Config, definitions: Definitions, name: str, body: dict) -> None:
    """Raise MidflightError for a rule that cannot be put into force as it is."""
    if name in TAKEN_NAMES:
        raise BadDefinition(f"A rule cannot be named `{name}`", todo="Take another name")
    for word in body if isinstance(body, dict) else ():
        if word not in OF_A_RULE:
            raise BadDefinition(f"Unknown word `{str(word)[:60]}`", where=f"$.{str(word)[:60]}", todo=nearest(str(word)[:60], OF_A_RULE))
    definitions.check_rule(name, body)
    if "action" not in body:
        raise BadDefinition("What does the rule do?", expected="`action` with a `way`", where="$.action")
    says_of(checked_ways(config), acts_of(body).action)


def undoable_of(config: Config) -> dict[str, bool]:
    """Return of each way out whether what went by it can be taken back; nothing where the configuration of one is wrong."""
    try:
        return {name: bool(way.undoes) for name, way in checked_ways(config).items()}
    except MidflightError:
        return {}


def put_rule(site: Site, name: str, definition: dict, version: int, keep: bool, who: str, why: str) -> str:
    """Put a version of a rule into force; return the order that is still to be done, or nothing. ``version`` 0 is the next one.

    Raises what is wrong with it.
    """
    with site.store.view() as view:
        definitions = definitions_of(view)
    check_rule(site.config, definitions, name, definition)
    with acted(site.config) as actions:
        now: Now | None = actions.book.known(name) if actions else None
    last = max(definitions.versions.get(f"rule {name}", 0), now.version if now else 0)
    order = rule_orders.PutRule(
        id=new_id(), who=who, why=why, rule=name, version=version or last + 1, definition=definition, keep=keep
    )  # fmt: skip
    return "" if ordered_rule(site, order) else order.id


def ordered_rule(site: Site, order: rule_orders.RuleOrder) -> bool:
    """Hand in an order about rules or actions; tell whether it is done. Raises DoorAway, and Refused with what the conductor said."""
    return ordered(site.config, site.clock, order, rule_orders.record_of)


def known_rule(site: Site, name: str) -> Now | None:
    """Return how a rule in force stands; None where the conductor has not taken it up. Raises NotFound with the nearest one."""
    with site.store.view() as view:
        known = set(definitions_of(view).rules)
    with acted(site.config) as actions:
        known |= set(actions.book.names() if actions else ())
        if name not in known:
            raise NotFound(f"Unknown rule `{name[:100]}`", todo=nearest(name[:100], known))
        return actions.book.known(name) if actions else None
