"""Campaigns on their way: their state with who changed it and why, their people in order, and the waves that were given out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import apsw
import msgspec
import numpy as np

from ..decide.guardrails import Counts
from ..kit.crash import crash_point
from ..kit.errors import MidflightError, NotFound, nearest
from ..stream.providers import providers_of
from .audience import Recipient, held_out, in_order
from .definition import Campaign, Variant
from .outbox import STATES, Outbox, Planned
from .slots import Given
from .standing import Entry, Standing

# From which state a campaign can come to which.
MOVES = {
    "loading": (),
    "draft": ("scheduled", "sending", "stopped"),
    "scheduled": ("draft", "sending", "paused", "stopped"),
    "sending": ("paused", "stopped", "done"),
    "paused": ("sending", "stopped"),
    "stopped": (),
    "done": (),
}
who_chars_max = 200
why_chars_max = 2_000
part_people = 10_000  # are written at a time: meanwhile other campaigns wait
orders_kept_us = 7 * 24 * 3600 * 1_000_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS campaigns (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, state TEXT NOT NULL, definition BLOB NOT NULL,
    started_us INTEGER NOT NULL DEFAULT 0, looked_us INTEGER NOT NULL DEFAULT -1,
    taken INTEGER NOT NULL DEFAULT 0, people INTEGER NOT NULL DEFAULT 0, held INTEGER NOT NULL DEFAULT 0, owed INTEGER NOT NULL DEFAULT 0);
-- place: the order in which waves take people. Who is held out is not among them; the seed says who that is.
CREATE TABLE IF NOT EXISTS people (campaign INTEGER, place INTEGER, recipient TEXT, address TEXT, attributes BLOB,
    PRIMARY KEY (campaign, place)) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS person ON people (campaign, recipient);
CREATE TABLE IF NOT EXISTS arms (campaign INTEGER, variant INTEGER, live INTEGER NOT NULL DEFAULT 1, pinned INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (campaign, variant)) WITHOUT ROWID;
-- shares: what each variant was to get; grounds: the numbers that the decision rested on.
CREATE TABLE IF NOT EXISTS waves (campaign INTEGER, wave INTEGER, at_us INTEGER NOT NULL, recipients INTEGER NOT NULL, shares BLOB NOT NULL,
    grounds BLOB NOT NULL, PRIMARY KEY (campaign, wave)) WITHOUT ROWID;
-- How many of a wave's people in each group got which option of a slot. people_in: the group's values as JSON.
CREATE TABLE IF NOT EXISTS given (campaign INTEGER, slot INTEGER, wave INTEGER, people_in TEXT, option INTEGER, sent INTEGER NOT NULL,
    PRIMARY KEY (campaign, slot, wave, people_in, option)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS standings (campaign INTEGER PRIMARY KEY, body BLOB NOT NULL);
-- The ledger. Nothing is ever taken out of it.
CREATE TABLE IF NOT EXISTS decisions (number INTEGER PRIMARY KEY, campaign INTEGER NOT NULL, at_us INTEGER NOT NULL, kind TEXT NOT NULL,
    who TEXT NOT NULL, text TEXT NOT NULL, why TEXT NOT NULL DEFAULT '', grounds BLOB NOT NULL DEFAULT '{}');
CREATE INDEX IF NOT EXISTS decisions_of ON decisions (campaign, number);
-- Orders that were done, or refused and why.
CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, at_us INTEGER NOT NULL, error TEXT NOT NULL) WITHOUT ROWID;
"""


class NotNow(MidflightError):
    """Something that the campaign's state does not allow."""

    status = 409
    code = "not_now"


class Running(msgspec.Struct, kw_only=True):
    """A campaign as it stands.

    ``looked_us`` is when a wave was last decided, also one of nobody. ``taken`` people of ``people`` are in waves already, ``owed`` more
    were to be in the last wave and are still to be given out; ``held`` are held out. ``speed`` is how many of its hours go by in one: more
    than one in the sandbox.
    """

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
    owed: int = 0
    pinned: int = -1
    speed: float = 1.0

    @property
    def left(self) -> int:
        return self.people - self.taken

    @property
    def names(self) -> list[str]:
        """Return the variants' names, in the order in which they are numbered."""
        return [variant.name for variant in self.definition.variants]

    def number(self, name: str) -> int:
        """Return a variant's number. Raises NotFound with the nearest one."""
        if name not in self.names:
            raise NotFound(f"Unknown variant `{name[:100]}`", where="variant", todo=nearest(name[:100], self.names))
        return self.names.index(name)

    def after_us(self, hours: float) -> int:
        """Return when so many of the campaign's hours have gone by."""
        return self.started_us + int(hours * 3600e6 / self.speed)

    @property
    def ends_us(self) -> int:
        """Return the end of the campaign's hours."""
        return self.after_us(self.definition.waves.hours)


def check_move(now: Running, to: str) -> None:
    """Raise NotNow where a campaign cannot come into that state from the one that it is in."""
    if to not in MOVES[now.state]:
        raise NotNow(f"Campaign `{now.name}` is {now.state}", expected=" or ".join(MOVES[now.state]) or "no change any more", got=to)


class Wave(msgspec.Struct, kw_only=True):
    """A wave that was given out: how many people, and the planned share of each variant."""

    wave: int
    at_us: int
    recipients: int
    shares: list[float]
    grounds: dict


def in_waves(campaign: Campaign, recipients: list[Recipient]) -> list[Recipient]:
    """Return those of a list whom waves take, in their order: all but who is held out, to measure what the campaign is worth."""
    out = (r for r in recipients if not held_out(campaign.seed, campaign.name, r.key, campaign.holdout))
    return in_order(campaign.seed, campaign.name, out)


class Filled(msgspec.Struct, kw_only=True):
    """What stands in the slots of a wave's messages, person by person in order: options, and the chance by which all of them were chosen.
    ``given`` counts people by slot, group and option."""

    options: list[tuple[int, ...]]
    chances: list[float]
    given: dict[tuple[int, tuple[str, ...], int], int]


class Campaigns:
    """Campaigns in the outbox's file, so that a wave and its messages are one transaction."""

    def __init__(self, outbox: Outbox, speed: float = 1.0) -> None:
        self.outbox = outbox
        self.speed = speed
        self._decoded: dict[int, tuple[bytes, Campaign]] = {}
        self.db: apsw.Connection = outbox.db
        if not self.db.readonly("main"):
            self.db.execute(_SCHEMA)

    # -- definitions and states ----------------------------------------------------------------------------------------------

    def add(self, campaign: Campaign, people: Iterable[Recipient], who: str, now_us: int) -> int:
        """Put down a draft with its people, in place of an earlier draft of that name; return its id. Raises NotNow for a campaign that is
        more than a draft."""
        recipients = list(people)
        ordered = in_waves(campaign, recipients)
        with self.db:
            number = self.begin(campaign)
            for _ in self.put_people(number, ordered):
                continue
            self.drafted(number, len(ordered), len(recipients) - len(ordered), who, now_us)
        return number

    def begin(self, campaign: Campaign) -> int:
        """Begin to put down a draft, whose people come in parts; return its id. What was begun before and not ended is begun anew."""
        with self.db:
            known = self.db.execute("SELECT id, state FROM campaigns WHERE name = ?", (campaign.name,)).fetchone()
            if known and known[1] not in ("draft", "loading"):
                raise NotNow(f"There is a campaign `{campaign.name}` already", todo="Another name; numbers are kept by name")
            if known:
                # Nothing of a draft has gone anywhere.
                (number, _) = known
                for table in ("people", "arms"):
                    self.db.execute(f"DELETE FROM {table} WHERE campaign = ?", (number,))
                values = (msgspec.json.encode(campaign), number)
                self.db.execute("UPDATE campaigns SET state = 'loading', definition = ? WHERE id = ?", values)
            else:
                values = (campaign.name, msgspec.json.encode(campaign))
                self.db.execute("INSERT INTO campaigns (name, state, definition) VALUES (?, 'loading', ?)", values)
                number = self.db.last_insert_rowid()
            self.db.executemany("INSERT INTO arms (campaign, variant) VALUES (?, ?)", ((number, n) for n in range(len(campaign.variants))))
        return number

    def put_people(self, number: int, people: list[Recipient]) -> Iterator[None]:
        """Put in a draft's people, in the order in which waves take them: a part at each step, so that others can go on in between."""
        for start in range(0, len(people), part_people):
            part = enumerate(people[start : start + part_people], start)
            with self.db:
                rows = ((number, place, r.key, r.address, msgspec.json.encode(r.attributes)) for place, r in part)
                self.db.executemany("INSERT INTO people VALUES (?, ?, ?, ?, ?)", rows)
            yield

    def drafted(self, number: int, people: int, held: int, who: str, now_us: int) -> None:
        """Note that all people of a draft are there."""
        with self.db:
            self.db.execute("UPDATE campaigns SET state = 'draft', people = ?, held = ? WHERE id = ?", (people, held, number))
            before = self.db.execute("SELECT 1 FROM decisions WHERE campaign = ?", (number,)).fetchone()
            self._note(number, now_us, who, "changed the draft" if before else "added", "")

    def move(self, number: int, to: str, who: str, why: str, now_us: int) -> None:
        """Bring a campaign into another state. Raises NotNow where there is no way."""
        with self.db:
            now = self.get(number)
            check_move(now, to)
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

    def add_variant(self, number: int, variant: Variant, who: str, why: str, now_us: int) -> None:
        """Put another variant into all further waves. Raises NotNow where there is one of that name."""
        with self.db:
            now = self._with_variant(number, 0)
            if any(known.name == variant.name for known in now.definition.variants):
                raise NotNow(f"There is a variant `{variant.name}` already")
            changed = msgspec.structs.replace(now.definition, variants=[*now.definition.variants, variant])
            self.db.execute("UPDATE campaigns SET definition = ? WHERE id = ?", (msgspec.json.encode(changed), number))
            self.db.execute("INSERT INTO arms (campaign, variant) VALUES (?, ?)", (number, len(now.definition.variants)))
            self._note(number, now_us, who, f"added {variant.name}", why)

    def pin(self, number: int, variant: int, who: str, why: str, now_us: int) -> None:
        """Give all further waves to one variant; -1 gives them back to the policy."""
        with self.db:
            now = self._with_variant(number, max(variant, 0))
            if variant >= 0 and not now.live[variant]:
                raise NotNow("This variant was dropped", got=now.definition.variants[variant].name)
            self.db.execute("UPDATE arms SET pinned = (variant = ?) WHERE campaign = ?", (variant, number))
            what = f"pinned {now.definition.variants[variant].name}" if variant >= 0 else "gave the waves back to the policy"
            self._note(number, now_us, who, what, why)

    def settle(self, number: int, end: str, who: str, why: str, now_us: int) -> int:
        """Let a person say what became of all messages whose end nobody knows: `sent`, or `planned` to send them again; return how many.

        A campaign that is done is on its way again. Raises NotNow where it was stopped.
        """
        now = self.get(number)
        if now.state == "stopped" and end == "planned":
            raise NotNow(f"Campaign `{now.name}` is stopped")
        with self.db:
            count = self.outbox.settled_by_hand(number, STATES.index(end), now_us)
            self._note(
                number,
                now_us,
                who,
                f"said of {count:,} messages whose end nobody knew: {'they went' if end == 'sent' else 'send them again'}",
                why,
            )
            if count and end == "planned" and now.state == "done":
                self.db.execute("UPDATE campaigns SET state = 'sending' WHERE id = ?", (number,))
        return count

    def _with_variant(self, number: int, variant: int) -> Running:
        now = self.get(number)
        if not 0 <= variant < len(now.definition.variants):
            raise NotFound("No such variant", expected=f"0 to {len(now.definition.variants) - 1}", got=variant)
        if now.state in ("stopped", "done"):
            raise NotNow(f"Campaign `{now.name}` is {now.state}")
        return now

    def _note(self, number: int, now_us: int, who: str, what: str, why: str) -> None:
        self.decided(number, now_us, "change", who[:who_chars_max], what, why[:why_chars_max])

    # -- the ledger ----------------------------------------------------------------------------------------------------------

    def decided(self, number: int, now_us: int, kind: str, who: str, text: str, why: str = "", grounds: dict | None = None) -> None:
        """Write a line of the ledger; within a transaction of the caller's it is part of that."""
        self.db.execute(
            "INSERT INTO decisions (campaign, at_us, kind, who, text, why, grounds) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (number, now_us, kind, who, text, why, msgspec.json.encode(grounds or {})),
        )

    def ledger(self, number: int | None = None, *, before: int = 1 << 62, count_max: int = 100) -> list[Entry]:
        """Return lines of the ledger, the newest first: of one campaign or of all, with a number below ``before``."""
        which, values = ("", ()) if number is None else ("d.campaign = ? AND", (number,))
        found = self.db.execute(
            "SELECT d.number, d.at_us, c.name, d.kind, d.who, d.text, d.why, d.grounds "
            f"FROM decisions d JOIN campaigns c ON c.id = d.campaign WHERE {which} d.number < ? ORDER BY d.number DESC LIMIT ?",
            (*values, before, count_max),
        )
        return [
            Entry(number=n, at_us=at, campaign=c, kind=k, who=who, text=text, why=why, grounds=msgspec.json.decode(grounds))
            for n, at, c, k, who, text, why, grounds in found
        ]

    def stands(self, number: int, standing: Standing) -> None:
        """Keep how a campaign stands, for whoever looks."""
        self.db.execute("INSERT OR REPLACE INTO standings VALUES (?, ?)", (number, msgspec.json.encode(standing)))

    def standing(self, number: int) -> Standing | None:
        """Return how a campaign stood when it was last looked at; None before that."""
        found = self.db.execute("SELECT body FROM standings WHERE campaign = ?", (number,)).fetchone()
        return None if found is None else msgspec.json.decode(found[0], type=Standing)

    def guard_from(self, number: int, counts: list[Counts]) -> None:
        """Let guards look only at what happens from now on: somebody has seen the rest and goes on."""
        self.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"guard {number}", msgspec.json.encode(counts)))

    def guard_base(self, number: int) -> list[Counts]:
        """Return what guards do not look at any more, by variant."""
        found = self.db.execute("SELECT value FROM meta WHERE key = ?", (f"guard {number}",)).fetchone()
        return [] if found is None else msgspec.json.decode(found[0], type=list[Counts])

    # -- orders --------------------------------------------------------------------------------------------------------------

    def orders_position(self) -> int:
        """Return the log position up to which all orders are done; -1 before the first."""
        found = self.db.execute("SELECT value FROM meta WHERE key = 'orders'").fetchone()
        return -1 if found is None else found[0]

    def orders_up_to(self, position: int) -> None:
        """Note that no order up to a log position has to be looked at again."""
        self.db.execute("INSERT OR REPLACE INTO meta VALUES ('orders', ?)", (position,))

    def order_done(self, id: str, error: str, now_us: int) -> None:
        """Note, with what an order did and in the same transaction, that it is done, or why it could not be."""
        self.db.execute("INSERT OR REPLACE INTO orders VALUES (?, ?, ?)", (id, now_us, error))
        self.db.execute("DELETE FROM orders WHERE at_us < ?", (now_us - orders_kept_us,))

    def order_end(self, id: str) -> str | None:
        """Return ``""`` for an order that was done, an error as JSON for one that was refused, None for one that is still to come."""
        found = self.db.execute("SELECT error FROM orders WHERE id = ?", (id,)).fetchone()
        return None if found is None else found[0]

    # -- reading -------------------------------------------------------------------------------------------------------------

    def get(self, number: int) -> Running:
        """Return a campaign. Raises NotFound."""
        row = self.db.execute("SELECT * FROM campaigns WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise NotFound("No such campaign", got=number)
        number, name, state, definition, started_us, looked_us, taken, people, held, owed = row
        arms = self.db.execute("SELECT live, pinned FROM arms WHERE campaign = ? ORDER BY variant", (number,)).fetchall()
        return Running(
            id=number, name=name, state=state, definition=self._definition(number, definition), started_us=started_us,
            looked_us=looked_us, taken=taken, people=people, held=held, owed=owed, live=np.array([bool(live) for live, _ in arms]),
            pinned=next((n for n, (_, pinned) in enumerate(arms) if pinned), -1), speed=self.speed,
        )  # fmt: skip

    def named(self, name: str) -> Running:
        """Return a campaign by its name. Raises NotFound with the nearest one."""
        names = dict(self.db.execute("SELECT name, id FROM campaigns"))
        if name not in names:
            raise NotFound(f"Unknown campaign `{name}`", todo=nearest(name, names))
        return self.get(names[name])

    def _definition(self, number: int, raw: bytes) -> Campaign:
        """Return a definition, the same object for as long as it is the same: it can be large, and is asked for many times a second."""
        known = self._decoded.get(number)
        if known is None or known[0] != raw:
            self._decoded[number] = known = (raw, msgspec.json.decode(raw, type=Campaign))
        return known[1]

    def in_state(self, *states: str, since_us: int = 0) -> list[Running]:
        """Return the campaigns in these states; of those that were started, the ones not started before ``since_us``."""
        marks = ", ".join("?" * len(states))
        sql = f"SELECT id FROM campaigns WHERE state IN ({marks}) AND (started_us = 0 OR started_us >= ?) ORDER BY id"
        return [self.get(number) for (number,) in self.db.execute(sql, (*states, since_us)).fetchall()]

    def changes(self, number: int) -> list[dict]:
        """Return who did what to a campaign, when and why, in order."""
        found = self.db.execute(
            "SELECT at_us, who, text, why FROM decisions WHERE campaign = ? AND kind = 'change' ORDER BY number", (number,)
        )
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

    def people(self, number: int, recipients: list[str]) -> dict[str, Recipient]:
        """Return these of the campaign's people by key."""
        found = self.db.execute(
            "SELECT recipient, address, attributes FROM people WHERE campaign = ? AND recipient IN (SELECT value FROM json_each(?))",
            (number, msgspec.json.encode(recipients).decode()),
        )
        return {key: Recipient(key=key, address=address, attributes=msgspec.json.decode(a)) for key, address, a in found}

    def attributes_of(self, recipient: str, lists_max: int) -> dict[str, str]:
        """Return what the newest of the last lists says of somebody; nothing where none of them has him."""
        found = self.db.execute(
            "SELECT p.attributes FROM (SELECT id FROM campaigns ORDER BY id DESC LIMIT ?) AS c "
            "CROSS JOIN people AS p ON p.campaign = c.id AND p.recipient = ? ORDER BY c.id DESC LIMIT 1",
            (lists_max, recipient),
        ).fetchone()
        return {} if found is None else msgspec.json.decode(found[0])

    def columns(self, number: int) -> set[str]:
        """Return the names of the attributes that the campaign's people have."""
        found = self.db.execute("SELECT attributes FROM people WHERE campaign = ? LIMIT 1", (number,)).fetchone()
        return set() if found is None else set(msgspec.json.decode(found[0], type=dict[str, str]))

    def example(self, number: int, recipient: str = "") -> Recipient:
        """Return a person to show the campaign with: the one named, else the first of the list, else nobody in particular."""
        if recipient:
            return self.person(number, recipient)
        found = self.db.execute("SELECT recipient FROM people WHERE campaign = ? ORDER BY place LIMIT 1", (number,)).fetchone()
        return self.person(number, found[0]) if found else Recipient(key="", address="")

    def person(self, number: int, recipient: str) -> Recipient:
        """Return one of the campaign's people. Raises NotFound."""
        found = self.db.execute(
            "SELECT address, attributes FROM people WHERE campaign = ? AND recipient = ?", (number, recipient)
        ).fetchone()  # fmt: skip
        if found is None:
            raise NotFound("Nobody of that address is in this campaign")
        return Recipient(key=recipient, address=found[0], attributes=msgspec.json.decode(found[1]))

    # -- waves ---------------------------------------------------------------------------------------------------------------

    def advise(self, now: Running, shares: np.ndarray, grounds: dict, now_us: int) -> int:
        """Write a wave for which others ask: whoever asks from now on gets a variant by these shares. Return its number."""
        with self.db:
            (last,) = self.db.execute("SELECT coalesce(max(wave), 0) FROM waves WHERE campaign = ?", (now.id,)).fetchone()
            self.db.execute(
                "INSERT INTO waves VALUES (?, ?, ?, 0, ?, ?)",
                (now.id, last + 1, now_us, msgspec.json.encode(shares.tolist()), msgspec.json.encode(grounds)),
            )
            self.db.execute("UPDATE campaigns SET looked_us = ? WHERE id = ?", (now_us, now.id))
            text = wave_text(now, last + 1, None, shares)
            self.decided(now.id, now_us, "wave", grounds.get("policy", ""), text, "", grounds)
        return last + 1

    def slots_given(self, number: int, slots: int) -> list[list[Given]]:
        """Return by slot what was given to which group in which wave."""
        found: list[list[Given]] = [[] for _ in range(slots)]
        rows = self.db.execute(
            "SELECT slot, wave, people_in, option, sent FROM given WHERE campaign = ? ORDER BY wave, slot, people_in, option", (number,)
        )
        for slot, wave, people_in, option, sent in rows:
            group = tuple(msgspec.json.decode(people_in, type=list[str]))
            found[slot].append(Given(wave=wave, group=group, option=option, sent=sent))
        return found

    def answers(self, number: int, recipients: list[str]) -> list[tuple[int, str, dict[str, str]]]:
        """Return wave, options and attributes of those of these recipients who got a message with slots."""
        rows = self.db.execute(
            "SELECT m.wave, m.options, p.attributes FROM messages m JOIN people p ON p.campaign = m.campaign AND p.recipient = m.recipient "
            "WHERE m.campaign = ? AND m.options <> '' AND m.recipient IN (SELECT value FROM json_each(?))",
            (number, msgspec.json.encode(recipients).decode()),
        )
        return [(wave, options, msgspec.json.decode(attributes)) for wave, options, attributes in rows]

    def next_attributes(self, now: Running, count: int) -> list[tuple[str, dict[str, str]]]:
        """Return key and attributes of the next people."""
        rows = self.db.execute(
            "SELECT recipient, attributes FROM people WHERE campaign = ? AND place >= ? ORDER BY place LIMIT ?", (now.id, now.taken, count)
        )
        return [(key, msgspec.json.decode(attributes)) for key, attributes in rows]

    def give_out(
        self,
        now: Running,
        counts: np.ndarray,
        shares: np.ndarray,
        order: np.ndarray,
        grounds: dict,
        now_us: int,
        filled: Filled | None = None,
        owed: int = 0,
    ) -> int:
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
                self.db.execute("UPDATE campaigns SET looked_us = ?, owed = 0 WHERE id = ?", (now_us, now.id))
                return 0
            (last,) = self.db.execute("SELECT coalesce(max(wave), 0) FROM waves WHERE campaign = ?", (now.id,)).fetchone()
            wave = last + 1
            variant = np.empty(total, np.int64)
            variant[order] = np.repeat(np.arange(counts.size), counts)
            people = [key for _, key in self.next_people(now, total)]
            assert len(people) == total
            self.outbox.put(
                now.id,
                (
                    Planned(
                        recipient=key, wave=wave, variant=v, propensity=float(shares[v]) * (filled.chances[n] if filled else 1.0),
                        intent=intent_of(now.name, key), provider=p, options=filled.options[n] if filled else (),
                    )
                    for n, (key, v, p) in enumerate(zip(people, variant.tolist(), providers_of(people), strict=True))
                ),
                now_us,
            )  # fmt: skip
            rows = ((now.id, s, wave, msgspec.json.encode(g).decode(), k, n) for (s, g, k), n in (filled.given if filled else {}).items())
            self.db.executemany("INSERT INTO given VALUES (?, ?, ?, ?, ?, ?)", rows)
            self.db.execute(
                "INSERT INTO waves VALUES (?, ?, ?, ?, ?, ?)",
                (now.id, wave, now_us, total, msgspec.json.encode(shares.tolist()), msgspec.json.encode(grounds)),
            )
            self.db.execute("UPDATE campaigns SET taken = taken + ?, looked_us = ?, owed = ? WHERE id = ?", (total, now_us, owed, now.id))
            self.decided(now.id, now_us, "wave", grounds.get("policy", ""), wave_text(now, wave, counts, shares), "", grounds)
            crash_point("before_wave")
        crash_point("after_wave")
        return wave


def intent_of(campaign: str, recipient: str) -> str:
    """Return the name of one campaign's message to one recipient, the same for ever: what is planned twice is still one message."""
    return "in-" + hashlib.blake2b(f"{campaign}\0{recipient}".encode(), digest_size=15).hexdigest()


def wave_text(now: Running, wave: int, counts: np.ndarray | None, shares: np.ndarray) -> str:
    """Return in words what a wave gives to whom, the largest share first."""
    names = [variant.name for variant in now.definition.variants]
    order = np.argsort(-shares, kind="stable")
    parts = [f"{names[k]} {shares[k]:.0%}" for k in order if shares[k] >= 0.005]
    who = "whoever is asked about" if counts is None else f"{int(counts.sum()):,} people"
    return f"Wave {wave}: {who}; {', '.join(parts)}"
