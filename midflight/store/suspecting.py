"""Which addresses must not be written to because nobody is there: what bounces and signs of life say, in the order of the log.

A bounce is read word by word (`decide/bounces.py`), and what it means for its address is decided by `decide/dead_addresses.py`. What is
remembered of addresses stands in the table `addresses`, one row for each that anything was said against; what is remembered of mailbox
providers in one value of `meta`. Both change in the transaction that moves the log position, so that a restart goes on as if there had
been none.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import NamedTuple

import apsw
import msgspec
import numpy as np

from ..decide import dead_addresses
from ..decide.bounces import Verdict, bounce_of, classify
from ..decide.dead_addresses import DEAD, FINE, PROBATION, Address, Answer, Providers, Storm
from ..events import KINDS, Event, recipient_key
from ..log.record import Record
from ..stream.agents import MACHINE
from ..stream.alive import MINUTE_US
from ..stream.edge import Prepared
from ..stream.hashing import hash_texts
from ..stream.providers import OTHER, PROVIDERS
from ..stream.shard import Effects
from .answering import Answers

logger = logging.getLogger("midflight.engine")

SOURCE = "suppressions"  # of records by which people put addresses on the list or take them off
META = "suspecting"
count_step = 100  # living people who were delivered to are counted by so many, and what is left before each bounce
fresh_max = 10_000  # addresses that are new since the sorted ones were sorted
kept_us = 400 * 86_400_000_000  # after the last thing that was said of an address, by log time
trimmed_max = 1_000  # rows at a time
listed_max = 2_000  # addresses in one record
for_good_us = 1 << 60
IMPORTED = "imported"
_DELIVERED, _BOUNCED, _OPENED, _CLICKED = (KINDS.index(kind) for kind in ("delivered", "bounced", "opened", "clicked"))
_ACTED = np.isin(np.arange(256), (_OPENED, _CLICKED))
_AGENT = 3


class State(msgspec.Struct, kw_only=True):
    """What is remembered of providers. ``pending``: living people delivered to who are not counted yet."""

    providers: dead_addresses.State = msgspec.field(default_factory=dead_addresses.State)
    pending: dict[str, int] = {}


class Row(msgspec.Struct, kw_only=True, frozen=True):
    """What the table has of one address. ``provider`` is who answers for it: a mailbox provider, or its own domain."""

    provider: str
    address: Address


class Listed(msgspec.Struct, kw_only=True, frozen=True):
    """A record by which somebody puts addresses on the list (``suppress``) or takes them off (``release``)."""

    do: str
    recipients: list[str]
    who: str = ""
    why: str = ""


class Bounced(NamedTuple):
    """A bounce as it was read."""

    event: Event
    recipient: str
    provider: str
    verdict: Verdict

    @property
    def puts_off(self) -> bool:
        """Whether it says no more than "come again later", as it is said to everybody who is new."""
        return self.verdict.reason == "deferred" and self.verdict.by == "words" and not self.verdict.permanent


class Suspecting:
    """All addresses that anything was said against. ``changed`` holds what the next commit has to write; None for a row that goes."""

    def __init__(self, db: apsw.Connection) -> None:
        self.db = db
        row = db.execute("SELECT value FROM meta WHERE key = ?", (META,)).get
        try:
            self.state = msgspec.json.decode(row, type=State) if row else State()
        except msgspec.DecodeError:
            # Another version wrote it: what is usual for providers is learnt anew.
            self.state = State()
        self.providers = Providers(state=self.state.providers)
        self.state.providers = self.providers.state
        self.changed: dict[str, Row | None] = {}
        self.answers = Answers(db)
        self._sorted = np.sort(_keys([name for (name,) in db.execute("SELECT recipient FROM addresses")]))
        self._fresh: set[int] = set()
        self._fresh_keys = np.zeros(0, np.uint64)  # the same, as of the last look
        self._trimmed_us = 0

    # -- what the log says -----------------------------------------------------------------------------------------------------

    def hear(self, prepared: Prepared, effects: list[Effects]) -> None:
        """Take in a batch that was folded."""
        batch = prepared.batch
        answered, alive = _in_order(effects)
        read: list[tuple[int, Bounced]] = []
        provider, at_us = batch.provider[answered], batch.at_us[answered]
        bounced = batch.kind[answered] == _BOUNCED
        living = (alive > 0) & (at_us // MINUTE_US - alive <= self.providers.settings.alive_us // MINUTE_US) & (provider > OTHER)
        steps, pending = self._steps(provider, living & ~bounced, living & bounced)
        told = [(int(answered[place]), place) for place in steps]
        places = sorted([*told, *self._of_interest(batch, answered, bounced)])
        people = prepared.recipients(np.array([row for row, _ in places], np.int64)) if places else []
        for (row, place), recipient in zip(places, people, strict=True):
            if place >= 0 and bounced[place]:
                if found := self._bounced(prepared, row, recipient, int(alive[place]), pending.get(place, -1)):
                    read.append((row, found))
            elif place in steps:
                self._said(PROVIDERS[provider[place]], count_step, 0, int(at_us[place]))
                steps.discard(place)
            else:
                self._alive(prepared, row, recipient, delivered=place >= 0)
        # Greylisting is no answer: whoever puts everybody off who is new has nothing against us, and is not held for it.
        put_off = [row for row, found in read if found.puts_off]
        self.answers.hear(prepared, answered[~np.isin(answered, put_off)] if put_off else answered)
        for row, found in read:
            self.answers.bounced(*found, int(prepared.received[row]))

    def _steps(self, provider: np.ndarray, delivered: np.ndarray, bounced: np.ndarray) -> tuple[set[int], dict[int, int]]:
        """Count living people to whom providers took mail, by steps that are the same however the log is cut into batches.

        Return the places at which a step is full, and for each bounce how many were taken since the step before it.
        """
        steps: set[int] = set()
        before: dict[int, int] = {}
        for number in np.unique(provider[delivered | bounced]).tolist():
            places = np.flatnonzero(delivered & (provider == number))
            pending, start = self.state.pending.get(PROVIDERS[number], 0), 0
            marks = np.flatnonzero(bounced & (provider == number)).tolist()
            for mark in [*marks, provider.size]:
                end = int(np.searchsorted(places, mark))
                steps.update(places[start + count_step - pending - 1 : end : count_step].tolist())
                pending = (pending + end - start) % count_step
                if mark < provider.size:
                    before[mark], pending = pending, 0
                start = end
            self.state.pending[PROVIDERS[number]] = pending
        return steps, before

    def _of_interest(self, batch, answered: np.ndarray, bounced: np.ndarray) -> list[tuple[int, int]]:
        """Return, in log order, rows of bounces and of signs of life of suspects, with their place in ``answered``, or -1."""
        # Who is suspected from a bounce in this batch on is one of them.
        fresh = np.unique(batch.rcpt[answered[bounced]])
        places = np.flatnonzero(bounced | self._suspected(batch.rcpt[answered], fresh))
        acted = np.flatnonzero(_ACTED[batch.kind] & (batch.agent & _AGENT != MACHINE))
        if acted.size:
            acted = acted[self._suspected(batch.rcpt[acted], fresh)]
        found = [*zip(answered[places].tolist(), places.tolist(), strict=True), *((row, -1) for row in acted.tolist())]
        return sorted(found)

    def _suspected(self, keys: np.ndarray, more: np.ndarray | None = None) -> np.ndarray:
        """Tell of each key whether anything was said against its address, or it is one of ``more``."""
        found = np.isin(keys, more) if more is not None and more.size else np.zeros(keys.size, bool)
        if self._sorted.size:
            at = np.minimum(np.searchsorted(self._sorted, keys), self._sorted.size - 1)
            found |= self._sorted[at] == keys
        if self._fresh_keys.size != len(self._fresh):
            self._fresh_keys = np.fromiter(self._fresh, np.uint64, len(self._fresh))
        if self._fresh:
            found |= np.isin(keys, self._fresh_keys)
        return found

    def _said(self, provider: str, answered: int, dead: int, at_us: int) -> None:
        storm = self.providers.add(provider, answered=answered, dead=dead, at_us=at_us)
        if storm is not None:
            self._storm(storm)

    def _bounced(self, prepared: Prepared, row: int, recipient: str, alive_minute: int, taken: int) -> Bounced | None:
        """Take in a bounce, and return what it says. ``taken``: how many living people its provider took mail for since the last step, -1
        where this one counts not as living."""
        event = prepared.event(row)
        if not recipient or recipient.startswith("id:") or event is None:
            return None
        verdict = verdict_of(event)
        kind, at_us = dead_addresses.kind_of(verdict), int(prepared.batch.at_us[row])
        number = int(prepared.batch.provider[row])
        provider = PROVIDERS[number] if number > OTHER else recipient[recipient.rfind("@") + 1 :]
        found = Bounced(event, recipient, provider, verdict)
        if taken >= 0:
            self._said(provider, taken + 1, int(kind == DEAD), at_us)
        before = self.row(recipient)
        if before is not None and before.address.reason == IMPORTED:
            return found
        address = before.address if before else Address()
        if alive_minute * MINUTE_US > address.alive_at_us:
            address = dead_addresses.alive(address, alive_minute * MINUTE_US)
        answer = Answer(kind=kind, at_us=at_us, confidence=verdict.confidence, because=verdict.because[:100])
        now = dead_addresses.against(address, answer, provider, self.providers)
        if now != address or (before and now != before.address):
            self._write(recipient, provider, now)
        return found

    def _alive(self, prepared: Prepared, row: int, recipient: str, *, delivered: bool) -> None:
        """Take in that a suspect was delivered to, or opened or clicked."""
        known = self.row(recipient) if recipient else None
        if known is None or known.address.reason == IMPORTED:
            return
        change = dead_addresses.delivered if delivered else dead_addresses.alive
        now = change(known.address, int(prepared.batch.at_us[row]))
        if now != known.address:
            self._write(recipient, known.provider, now)

    # -- storms ----------------------------------------------------------------------------------------------------------------

    def _storm(self, storm: Storm) -> None:
        """Undo what was said in a storm that was found; or let those who rest for one that is over be tried again."""
        settings = self.providers.settings
        for recipient, row in self._of(storm.provider, storm.since_us - settings.before_storm_us):
            if row.address.reason == IMPORTED:
                continue
            address = dead_addresses.undo(row.address, storm, settings)
            if address.status == PROBATION and address.reason == "storm" and storm.ended_us:
                address = msgspec.structs.replace(address, until_us=storm.ended_us + settings.after_storm_us)
            if address != row.address:
                self._write(recipient, row.provider, address)
        word = "is over" if storm.ended_us else "has begun"
        logger.warning(
            "%s called %d of %d living people dead, which counts for nothing: the storm %s",
            storm.provider,
            storm.called_dead,
            storm.of,
            word,
        )

    def _of(self, provider: str, since_us: int) -> list[tuple[str, Row]]:
        """Return the addresses of a provider of which something was said since then."""
        found = self.db.execute("SELECT recipient, state FROM addresses WHERE provider = ? AND last_us >= ?", (provider, since_us))
        rows = {recipient: _row(state) for recipient, state in found}
        rows |= {recipient: row for recipient, row in self.changed.items() if row is None or row.provider == provider}
        return [(recipient, row) for recipient, row in sorted(rows.items()) if row is not None]

    # -- what people say -------------------------------------------------------------------------------------------------------

    def obey(self, record: Record) -> None:
        """Put addresses on the list or take them off, as a record asks. Never raises for what it holds."""
        try:
            listed = msgspec.json.decode(record.body, type=Listed)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            logger.error("record %d is no list of addresses and is left out: %s", record.position, error)
            return
        for text in listed.recipients[:listed_max]:
            recipient = recipient_key(text)
            if not recipient:
                continue
            if listed.do == "release":
                self._write(recipient, "", None)
                continue
            evidence = f"{listed.who or 'Somebody'} put it on the list{': ' + listed.why if listed.why else ''}."[:500]
            address = Address(
                status=dead_addresses.SUPPRESSED, since_us=record.at_us, until_us=for_good_us, reason=IMPORTED, evidence=evidence
            )
            self._write(recipient, recipient[recipient.rfind("@") + 1 :], address)

    # -- rows ------------------------------------------------------------------------------------------------------------------

    def row(self, recipient: str) -> Row | None:
        if recipient in self.changed:
            return self.changed[recipient]
        state = self.db.execute("SELECT state FROM addresses WHERE recipient = ?", (recipient,)).get
        return _row(state) if state else None

    def _write(self, recipient: str, provider: str, address: Address | None) -> None:
        if address is None or (address.status == FINE and not address.answers):
            self.changed[recipient] = None
            return
        self.changed[recipient] = Row(provider=provider, address=address)
        key = int(_keys([recipient])[0])
        at = int(np.searchsorted(self._sorted, np.uint64(key)))
        if at == self._sorted.size or int(self._sorted[at]) != key:
            self._fresh.add(key)
            if len(self._fresh) > fresh_max:
                self._sorted = np.sort(np.concatenate([self._sorted, np.fromiter(self._fresh, np.uint64, len(self._fresh))]))
                self._fresh = set()

    def write(self, log_time_us: int) -> None:
        """Write what has changed; within the caller's transaction."""
        gone = [(recipient,) for recipient, row in self.changed.items() if row is None]
        self.db.executemany("DELETE FROM addresses WHERE recipient = ?", gone)
        self.db.executemany(
            "INSERT OR REPLACE INTO addresses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(recipient, *columns(row, self._open(row))) for recipient, row in self.changed.items() if row is not None],
        )
        self.state.pending = dict(sorted(self.state.pending.items()))
        self.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (META, msgspec.json.encode(self.state).decode()))
        if log_time_us >= self._trimmed_us + 3_600_000_000:
            self.db.execute(
                "DELETE FROM addresses WHERE recipient IN (SELECT recipient FROM addresses WHERE last_us < ? AND until_us < ? "
                "ORDER BY last_us LIMIT ?)",
                (log_time_us - kept_us, log_time_us, trimmed_max),
            )
            self._trimmed_us = log_time_us
        self.changed = {}
        self.answers.write(log_time_us)

    def _open(self, row: Row) -> bool:
        """Whether an address rests for a storm that is on."""
        if row.address.reason != "storm":
            return False
        storm = self.providers.storm(row.provider, row.address.since_us)
        return storm is not None and not storm.ended_us


def columns(row: Row, storming: bool) -> tuple:
    """Return the columns of an address after its name. Who rests for a storm that is on rests until its end is known."""
    address = row.address
    last_us = max([address.since_us, address.alive_at_us, *(answer.at_us for answer in address.answers)])
    until_us = for_good_us if storming else address.until_us
    state = msgspec.json.encode(row)
    return row.provider, address.status, address.since_us, until_us, last_us, address.reason, address.evidence, state


def verdict_of(event: Event) -> Verdict:
    """Return what a bounce says."""
    return _verdict(event.code[:64], event.detail[:2000], event.bounce_class)


@lru_cache(maxsize=4096)
def _verdict(code: str, detail: str, bounce_class: str) -> Verdict:
    return classify(bounce_of(code, detail, bounce_class))


def _row(state: bytes) -> Row:
    return msgspec.json.decode(state, type=Row)


def _keys(recipients: list[str]) -> np.ndarray:
    return hash_texts(recipients)[:, 0] if recipients else np.zeros(0, np.uint64)


def _in_order(effects: list[Effects]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of answers of all shards in log order, and when the person of each was last known to be there."""
    rows = np.concatenate([effect.answered for effect in effects]) if effects else np.zeros(0, np.int64)
    alive = np.concatenate([effect.answered_alive for effect in effects]) if effects else np.zeros(0, np.int64)
    order = np.argsort(rows, kind="stable")
    return rows[order], alive[order].astype(np.int64)
