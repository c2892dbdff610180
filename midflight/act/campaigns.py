"""Campaigns on their way: their state with who changed it and why, their people in order, and the waves that were given out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import apsw
import msgspec
import numpy as np

from ..kit.crash import crash_point
from ..kit.errors import MidflightError, NotFound, nearest
from .audience import Recipient, held_out, in_order
from .definition import Campaign
from .outbox import Outbox, Planned

# From which state a campaign can come to which.
MOVES = {
    "draft": ("scheduled", "sending", "stopped"),
    "scheduled": ("draft", "sending", "paused", "stopped"),
    "sending": ("paused", "stopped", "done"),
    "paused": ("sending", "stopped"),
    "stopped": (),
    "done": (),
}
who_chars_max = 200
why_chars_max = 2_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS campaigns (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, state TEXT NOT NULL, definition BLOB NOT NULL,
    started_us INTEGER NOT NULL DEFAULT 0, looked_us INTEGER NOT NULL DEFAULT -1,
    taken INTEGER NOT NULL DEFAULT 0, people INTEGER NOT NULL DEFAULT 0, held INTEGER NOT NULL DEFAULT 0);
-- Nothing is ever taken out of it.
CREATE TABLE IF NOT EXISTS changes (number INTEGER PRIMARY KEY, campaign INTEGER NOT NULL, at_us INTEGER NOT NULL, who TEXT NOT NULL,
    what TEXT NOT NULL, why TEXT NOT NULL);
-- place: the order in which waves take people. held: gets nothing, to measure what the campaign is worth.
CREATE TABLE IF NOT EXISTS people (campaign INTEGER, place INTEGER, recipient TEXT, address TEXT, attributes BLOB,
    PRIMARY KEY (campaign, place)) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS person ON people (campaign, recipient);
CREATE TABLE IF NOT EXISTS held (campaign INTEGER, recipient TEXT, PRIMARY KEY (campaign, recipient)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS arms (campaign INTEGER, variant INTEGER, live INTEGER NOT NULL DEFAULT 1, pinned INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (campaign, variant)) WITHOUT ROWID;
-- shares: what each variant was to get; grounds: the numbers that the decision rested on.
CREATE TABLE IF NOT EXISTS waves (campaign INTEGER, wave INTEGER, at_us INTEGER NOT NULL, recipients INTEGER NOT NULL, shares BLOB NOT NULL,
    grounds BLOB NOT NULL, PRIMARY KEY (campaign, wave)) WITHOUT ROWID;
"""


class NotNow(MidflightError):
    """Something that the campaign's state does not allow."""

    status = 409
    code = "not_now"


class Running(msgspec.Struct, kw_only=True):
    """A campaign as it stands. ``looked_us`` is when a wave was last decided, also one of nobody. ``taken`` people of ``people`` are in
    waves already; ``held`` are held out and in neither."""

    id: int
    name: str
    state: str
    definition: Campaign
    started_us: int
    looked_us: int
    taken: int
    people: int
    held: int
    live: np.ndarray
    pinned: int = -1

    @property
    def left(self) -> int:
        return self.people - self.taken


class Wave(msgspec.Struct, kw_only=True):
    """A wave that was given out: how many people, and the planned share of each variant."""

    wave: int
    at_us: int
    recipients: int
    shares: list[float]
    grounds: dict


class Campaigns:
    """Campaigns in the outbox's file, so that a wave and its messages are one transaction."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.db: apsw.Connection = outbox.db
        self.db.execute(_SCHEMA)

    # -- definitions and states ----------------------------------------------------------------------------------------------

    def add(self, campaign: Campaign, people: Iterable[Recipient], who: str, now_us: int) -> int:
        """Put down a draft with its people; return its id. Raises NotNow where there is one of that name."""
        recipients = list(people)
        held = {r.key for r in recipients if held_out(campaign.seed, campaign.name, r.key, campaign.holdout)}
        ordered = in_order(campaign.seed, campaign.name, (r for r in recipients if r.key not in held))
        with self.db:
            if self.db.execute("SELECT 1 FROM campaigns WHERE name = ?", (campaign.name,)).fetchone():
                raise NotNow(f"There is a campaign `{campaign.name}` already", todo="Another name; numbers are kept by name")
            self.db.execute(
                "INSERT INTO campaigns (name, state, definition, people, held) VALUES (?, 'draft', ?, ?, ?)",
                (campaign.name, msgspec.json.encode(campaign), len(ordered), len(held)),
            )
            number = self.db.last_insert_rowid()
            rows = ((number, place, r.key, r.address, msgspec.json.encode(r.attributes)) for place, r in enumerate(ordered))
            self.db.executemany("INSERT INTO people VALUES (?, ?, ?, ?, ?)", rows)
            self.db.executemany("INSERT INTO held VALUES (?, ?)", ((number, key) for key in held))
            self.db.executemany("INSERT INTO arms (campaign, variant) VALUES (?, ?)", ((number, n) for n in range(len(campaign.variants))))
            self._note(number, now_us, who, "added", "")
        return number

    def move(self, number: int, to: str, who: str, why: str, now_us: int) -> None:
        """Bring a campaign into another state. Raises NotNow where there is no way."""
        with self.db:
            now = self.get(number)
            if to not in MOVES[now.state]:
                raise NotNow(
                    f"Campaign `{now.name}` is {now.state}", expected=" or ".join(MOVES[now.state]) or "no change any more", got=to
                )
            started = f", started_us = {now_us}" if to == "sending" and not now.started_us else ""
            self.db.execute(f"UPDATE campaigns SET state = ?{started} WHERE id = ?", (to, number))
            self._note(number, now_us, who, to, why)
            if to == "stopped":
                self.db.execute(
                    "UPDATE messages SET state = 5, detail = 'the campaign was stopped', changed_at_us = ? "
                    "WHERE campaign = ? AND state = 0",
                    (now_us, number),
                )
        crash_point("after_move")

    def drop(self, number: int, variant: int, who: str, why: str, now_us: int) -> None:
        """Take a variant out of all further waves; messages that wait with it stay. Raises NotNow for the last one."""
        with self.db:
            now = self._with_variant(number, variant)
            if not now.live[variant] or now.live.sum() < 2:
                raise NotNow("This variant is out already, or it is the last one", got=now.definition.variants[variant].name)
            self.db.execute("UPDATE arms SET live = 0, pinned = 0 WHERE campaign = ? AND variant = ?", (number, variant))
            self._note(number, now_us, who, f"dropped {now.definition.variants[variant].name}", why)

    def pin(self, number: int, variant: int, who: str, why: str, now_us: int) -> None:
        """Give all further waves to one variant; -1 gives them back to the policy."""
        with self.db:
            now = self._with_variant(number, max(variant, 0))
            if variant >= 0 and not now.live[variant]:
                raise NotNow("This variant was dropped", got=now.definition.variants[variant].name)
            self.db.execute("UPDATE arms SET pinned = (variant = ?) WHERE campaign = ?", (variant, number))
            what = f"pinned {now.definition.variants[variant].name}" if variant >= 0 else "gave the waves back to the policy"
            self._note(number, now_us, who, what, why)

    def _with_variant(self, number: int, variant: int) -> Running:
        now = self.get(number)
        if not 0 <= variant < len(now.definition.variants):
            raise NotFound("No such variant", expected=f"0 to {len(now.definition.variants) - 1}", got=variant)
        if now.state in ("stopped", "done"):
            raise NotNow(f"Campaign `{now.name}` is {now.state}")
        return now

    def _note(self, number: int, now_us: int, who: str, what: str, why: str) -> None:
        self.db.execute(
            "INSERT INTO changes (campaign, at_us, who, what, why) VALUES (?, ?, ?, ?, ?)",
            (number, now_us, who[:who_chars_max], what, why[:why_chars_max]),
        )

    # -- reading -------------------------------------------------------------------------------------------------------------

    def get(self, number: int) -> Running:
        """Return a campaign. Raises NotFound."""
        row = self.db.execute("SELECT * FROM campaigns WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise NotFound("No such campaign", got=number)
        number, name, state, definition, started_us, looked_us, taken, people, held = row
        arms = self.db.execute("SELECT live, pinned FROM arms WHERE campaign = ? ORDER BY variant", (number,)).fetchall()
        return Running(
            id=number, name=name, state=state, definition=msgspec.json.decode(definition, type=Campaign), started_us=started_us,
            looked_us=looked_us, taken=taken, people=people, held=held, live=np.array([bool(live) for live, _ in arms]),
            pinned=next((n for n, (_, pinned) in enumerate(arms) if pinned), -1),
        )  # fmt: skip

    def named(self, name: str) -> Running:
        """Return a campaign by its name. Raises NotFound with the nearest one."""
        names = dict(self.db.execute("SELECT name, id FROM campaigns"))
        if name not in names:
            raise NotFound(f"Unknown campaign `{name}`", todo=nearest(name, names))
        return self.get(names[name])

    def in_state(self, *states: str) -> list[Running]:
        marks = ", ".join("?" * len(states))
        return [self.get(number) for (number,) in self.db.execute(f"SELECT id FROM campaigns WHERE state IN ({marks})", states).fetchall()]

    def changes(self, number: int) -> list[dict]:
        """Return who did what to a campaign, when and why, in order."""
        found = self.db.execute("SELECT at_us, who, what, why FROM changes WHERE campaign = ? ORDER BY number", (number,))
        return [{"at_us": at, "who": who, "what": what, "why": why} for at, who, what, why in found]

    def waves(self, number: int) -> list[Wave]:
        found = self.db.execute("SELECT wave, at_us, recipients, shares, grounds FROM waves WHERE campaign = ? ORDER BY wave", (number,))
        return [
            Wave(wave=w, at_us=at, recipients=n, shares=msgspec.json.decode(shares), grounds=msgspec.json.decode(grounds))
            for w, at, n, shares, grounds in found
        ]

    def next_people(self, now: Running, count: int) -> Iterator[tuple[int, str]]:
        """Yield place and key of the next people."""
        return self.db.execute(
            "SELECT place, recipient FROM people WHERE campaign = ? AND place >= ? ORDER BY place LIMIT ?", (now.id, now.taken, count)
        )

    def person(self, number: int, recipient: str) -> Recipient:
        """Return one of the campaign's people. Raises NotFound."""
        found = self.db.execute(
            "SELECT address, attributes FROM people WHERE campaign = ? AND recipient = ?", (number, recipient)
        ).fetchone()  # fmt: skip
        if found is None:
            raise NotFound("Nobody of that address is in this campaign")
        return Recipient(key=recipient, address=found[0], attributes=msgspec.json.decode(found[1]))

    # -- waves ---------------------------------------------------------------------------------------------------------------

    def give_out(self, now: Running, counts: np.ndarray, shares: np.ndarray, order: np.ndarray, grounds: dict, now_us: int) -> int:
        """Write a wave and its messages, all or nothing, and return the wave's number; 0 for a wave of nobody.

        ``counts`` [K] people get each variant, by chances ``shares`` [K]; ``order`` is a permutation of the wave's people that says who.
        What the policy could not see (a pause, a stop, another wave since) is seen here: then nothing is written. Raises NotNow.
        """
        total = int(counts.sum())
        with self.db:
            state, taken = self.db.execute("SELECT state, taken FROM campaigns WHERE id = ?", (now.id,)).fetchone()
            if state != "sending" or taken != now.taken:
                raise NotNow(f"Campaign `{now.name}` has changed meanwhile")
            if not total:
                self.db.execute("UPDATE campaigns SET looked_us = ? WHERE id = ?", (now_us, now.id))
                return 0
            (last,) = self.db.execute("SELECT coalesce(max(wave), 0) FROM waves WHERE campaign = ?", (now.id,)).fetchone()
            wave = last + 1
            variant = np.empty(total, np.int64)
            variant[order] = np.repeat(np.arange(counts.size), counts)
            people = list(self.next_people(now, total))
            assert len(people) == total
            self.outbox.put(
                now.id,
                (
                    Planned(recipient=key, wave=wave, variant=v, propensity=float(shares[v]), intent=intent_of(now.name, key))
                    for (_, key), v in zip(people, variant.tolist(), strict=True)
                ),
                now_us,
            )
            self.db.execute(
                "INSERT INTO waves VALUES (?, ?, ?, ?, ?, ?)",
                (now.id, wave, now_us, total, msgspec.json.encode(shares.tolist()), msgspec.json.encode(grounds)),
            )
            self.db.execute("UPDATE campaigns SET taken = taken + ?, looked_us = ? WHERE id = ?", (total, now_us, now.id))
            crash_point("before_wave")
        crash_point("after_wave")
        return wave


def intent_of(campaign: str, recipient: str) -> str:
    """Return the name of one campaign's message to one recipient, the same for ever: what is planned twice is still one message."""
    return "in-" + hashlib.blake2b(f"{campaign}\0{recipient}".encode(), digest_size=15).hexdigest()
