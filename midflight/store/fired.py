"""What set off a rule about people, in log order: kept by the batch, packed, and made into a firing when it is read.

A row of ``firings`` has ``n`` of them, the last one with the row's number; ``rules`` names those that the packed rows refer to. Two firings
with one id are one firing, which was found a second time: whoever reads knows by the ids what there was already.
"""

from __future__ import annotations

from typing import NamedTuple

import apsw
import msgspec
import numpy as np

from .folding import cause_json, firing_id

# person: as in `people`, below 0 for nobody; campaign: its number in `names`, 0 for none; cause: what names it, see stream/watching.py.
FIRED = np.dtype([("at_us", "<i8"), ("cause_us", "<i8"), ("cause", "<u8"), ("person", "<i8"), ("campaign", "<u4"), ("rule", "<u2")])


class Fired(NamedTuple):
    """A firing. ``cause`` is JSON."""

    number: int
    id: str
    rule: str
    version: int
    recipient: str
    fired_us: int
    cause: bytes


def packed(rows: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Return what was told of rules (watching.TOLD) as FIRED; ``person`` are the numbers in `people`."""
    fired = np.zeros(rows.size, FIRED)
    fired["at_us"], fired["cause_us"], fired["cause"] = rows["at"], rows["cause_at"], rows["cause"]
    fired["person"], fired["campaign"], fired["rule"] = person, rows["campaign"], rows["number"]
    return fired


def add(db: apsw.Connection, fired: np.ndarray, rules: list[tuple[str, int]]) -> None:
    """Write firings [n] of FIRED; their rules are numbers in this list of names and versions."""
    known, fired["rule"] = np.unique(fired["rule"], return_inverse=True)
    last = db.execute("SELECT coalesce(max(number), 0) FROM firings").get
    names = msgspec.json.encode([rules[number] for number in known.tolist()]).decode()
    values = (last + fired.size, int(fired["at_us"].max()), fired.size, names, fired.tobytes())
    db.execute("INSERT INTO firings (number, fired_us, n, rules, rows) VALUES (?, ?, ?, ?, ?)", values)


def fired_after(db: apsw.Connection, number: int, count_max: int) -> list[Fired]:
    """Return the firings after one, in log order."""
    found: list[Fired] = []
    for last, n, rules, rows in db.execute("SELECT number, n, rules, rows FROM firings WHERE number > ? ORDER BY number", (number,)):
        first = last - n + 1
        start = max(0, number + 1 - first)
        part = np.frombuffer(rows, FIRED)[start : start + count_max - len(found)]
        found += _fired(db, part, msgspec.json.decode(rules, type=list[tuple[str, int]]), first + start)
        if len(found) >= count_max:
            break
    return found


def _fired(db: apsw.Connection, rows: np.ndarray, rules: list[tuple[str, int]], first: int) -> list[Fired]:
    people = dict(
        db.execute("SELECT number, recipient FROM carray(?) CROSS JOIN people ON number = value", (apsw.carray(np.unique(rows["person"])),))
    )
    campaigns = {
        number: db.execute("SELECT name FROM names WHERE kind = 'campaign' AND id = ?", (number,)).get or ""
        for number in np.unique(rows["campaign"]).tolist()
    }
    found = []
    for place, (at_us, cause_us, cause, person, campaign, rule) in enumerate(rows.tolist()):
        (name, version), recipient = rules[rule], people.get(person, "")
        id = firing_id(name, version, recipient, cause)
        found.append(Fired(first + place, id, name, version, recipient, at_us, cause_json(cause_us, campaigns[campaign])))
    return found
