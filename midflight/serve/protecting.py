"""Holds what goes to a mailbox provider, to a domain or of a campaign where it suddenly bounces, tries it with a few messages, and lets it
come back step by step; what is held waits in the outbox.

Every second the running sums of the store (`store/answering.py`) are compared with those of the look before: what came since goes to the
spike detector of its stream (`decide/spikes.py`) and to its breaker (`decide/breaker.py`). Everything known is in ``outbox.db``, so that a
restart goes on with the same holds. What comes back within a stage counts as the answer to what was sent in it: while something is held
hardly anything else is under way there, and a message that was sent before and bounces only now makes the return slower, never faster.
"""

from __future__ import annotations

import logging

import msgspec

from ..act.gates import Gate
from ..act.orders import Guard
from ..act.outbox import Outbox
from ..act.sender import Sender
from ..decide import breaker, spikes
from ..decide.blame import Pair, blamed
from ..decide.breaker import HELD, NORMAL, PROBING, Alarm, Decision, Look
from ..kit.clock import Clock
from ..kit.errors import NotFound
from ..store.answering import kept_us as store_forgets_us
from ..store.experiment import Numbers
from ..store.listing import Answered
from ..stream.providers import PROVIDERS

logger = logging.getLogger("midflight.conductor")

deliveries_min = 100  # that name an IP before it is watched
keep_s = 15.0  # between two saves of what is usual; what comes between counts again after a restart
logged_max = 5_000
logged_over_max = 500  # rows that are trimmed at a time
NUMBERS = {name: number for number, name in enumerate(PROVIDERS) if number >= 2}  # of mailbox providers that answer as one
rate_half_life_s = 600.0
pair_messages = 200  # in which what a provider answered to a campaign fades by half
pair_half_life_s = 3600.0  # and where there are no more
forgotten_us = store_forgets_us + 24 * 3600 * 1_000_000
kept_us = 30 * 24 * 3600 * 1_000_000  # after it is over, of a breaker

_SCHEMA = """
-- One row for each breaker that was open of late. state: decide/breaker.py as JSON; sent: messages since the stage began; per_s: what was
-- usual.
CREATE TABLE IF NOT EXISTS guards (kind TEXT, name TEXT, stage TEXT NOT NULL, state BLOB NOT NULL, sent INTEGER NOT NULL,
    per_s REAL NOT NULL, at_us INTEGER NOT NULL, text TEXT NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID;
-- What breakers did, with the reason. The latest are kept.
CREATE TABLE IF NOT EXISTS guard_log (number INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
    stage TEXT NOT NULL, who TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS guard_memory (one INTEGER PRIMARY KEY CHECK (one = 1), body BLOB NOT NULL);
"""


class Memory(msgspec.Struct, kw_only=True):
    """What was counted up to now, what is usual, and how many messages a second each stream gets."""

    since_us: int = 0
    counted: dict[str, dict[str, tuple[int, int, int]]] = {}  # kind -> name -> answered, bounced, when last
    usual: spikes.State = msgspec.field(default_factory=spikes.State)
    per_s: dict[str, dict[str, float]] = {}
    pairs: dict[str, dict[str, tuple[float, float]]] = {}  # campaign -> provider -> answered and bounced of late, fading


class Breaker(msgspec.Struct, kw_only=True):
    """One breaker and what it allows."""

    kind: str
    name: str
    state: breaker.State = msgspec.field(default_factory=breaker.State)
    sent: int = 0
    per_s: float = 0.0
    at_us: int = 0


class Protecting:
    """The breakers of everything that is sent."""

    def __init__(self, outbox: Outbox, numbers: Numbers, sender: Sender, clock: Clock, speed: float = 1.0) -> None:
        self.db, self.numbers, self.sender, self.clock = outbox.db, numbers, sender, clock
        self.db.execute(_SCHEMA)
        self.settings = quicker(breaker.Settings(), speed)
        self.memory = self._remembered()
        self.fresh = not self.memory.since_us
        self.spikes = spikes.Spikes(state=self.memory.usual)
        self.memory.usual = self.spikes.state
        self.breakers: dict[tuple[str, str], Breaker] = {}
        self._saved_s = clock.monotonic_s()
        self._looked_s = 0.0
        for kind, name, state, sent, per_s, at_us in self.db.execute("SELECT kind, name, state, sent, per_s, at_us FROM guards"):
            known = state_of(state)
            if known is None or (kind == "provider" and name not in NUMBERS):
                # Another version wrote it. What still bounces is found anew.
                logger.error("the breaker of %s %s cannot be read and is left out", kind, name)
                continue
            self.breakers[kind, name] = Breaker(kind=kind, name=name, state=known, sent=sent, per_s=per_s, at_us=at_us)
        self._open_gates()

    def _remembered(self) -> Memory:
        body = self.db.execute("SELECT body FROM guard_memory").get
        try:
            return msgspec.json.decode(body, type=Memory) if body else Memory()
        except msgspec.DecodeError:
            # Another version wrote it: what is usual is learnt anew.
            return Memory()

    # -- looking ---------------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Take in what came since the last look, and let breakers do what is due."""
        now_us, now_s = self.clock.now_us(), self.clock.monotonic_s()
        log_time_us, rows = self.numbers.answers(self.memory.since_us)
        passed_s = max(0.05, now_s - self._looked_s) if self._looked_s else 1.0
        self._looked_s = now_s
        before = {key: one.state for key, one in self.breakers.items()}
        self._fade(passed_s)
        seen: dict[tuple[str, str], list[int]] = {}
        at_us = 0
        for row in rows:
            answered, bounced = self._since(row)
            at_us = max(at_us, row.last_us)
            if answered > 0:
                for key in self._streams(row, answered, bounced):
                    sums = seen.setdefault(key, [0, 0])
                    sums[0] += answered
                    sums[1] += bounced
        self.fresh = False
        self.memory.since_us = max(self.memory.since_us, log_time_us)
        alarms: dict[tuple[str, str], Alarm] = {}
        for (kind, name), (answered, bounced) in seen.items():
            spike = self.spikes.add(kind, name, answered=answered, bounced=bounced, at_us=at_us)
            self._rate(kind, name, answered, passed_s)
            if spike:
                alarms[self._blamed(spike)] = breaker.alarm_of(spike)
        for key in [key for key in alarms if key[0] == "ip" and self._explained(alarms)]:
            # An IP bounces where a provider turns against it: that is said once, of what can be held.
            del alarms[key]
            self.spikes.calm(*key)
        for key in {*seen, *alarms} | {key for key, one in self.breakers.items() if one.state.stage != NORMAL}:
            answered, bounced = seen.get(key, (0, 0))
            if key in alarms or key in self.breakers:
                self._step(key, Look(at_us=now_us, answered=answered, bounced=bounced, alarm=alarms.get(key)))
        self._note(before, now_us, "guard")
        if now_s - self._saved_s >= keep_s:
            self._keep()

    def _since(self, row: Answered) -> tuple[int, int]:
        """Return what came since the last look. A store that was made anew counts from the beginning, and what it has by then is known."""
        counted = self.memory.counted.setdefault(row.kind, {})
        name = f"{row.name}/{row.provider}" if row.kind == "pair" else row.name
        before = counted.get(name, (0, 0, 0))
        counted[name] = (row.answered, row.bounced, row.last_us)
        if self.fresh or row.answered < before[0]:
            return 0, 0
        return row.answered - before[0], max(0, row.bounced - before[1])

    def _streams(self, row: Answered, answered: int, bounced: int) -> list[tuple[str, str]]:
        """Return the streams that answers belong to: of a provider that is held they say nothing about the campaign, nor the other way."""
        if row.kind == "ip" and row.answered - row.bounced < deliveries_min:
            # Some vendors name the sending IP in bounces alone.
            return []
        if row.kind != "pair":
            return [(row.kind, row.name)]
        pairs = self.memory.pairs.setdefault(row.name, {})
        n, x = pairs.get(row.provider, (0.0, 0.0))
        keeps = 0.5 ** (answered / pair_messages)
        pairs[row.provider] = (n * keeps + answered, x * keeps + bounced)
        provider, campaign = ("provider", row.provider), ("campaign", row.name)
        found = []
        if row.provider in NUMBERS and self._normal(campaign):
            found.append(provider)
        if row.name and self._normal(provider):
            found.append(campaign)
        return found

    def _normal(self, key: tuple[str, str]) -> bool:
        one = self.breakers.get(key)
        return one is None or one.state.stage == NORMAL

    def _blamed(self, spike: spikes.Spike) -> tuple[str, str]:
        """Return what has to be held for a spike; what it is not the fault of begins anew."""
        if spike.kind not in ("provider", "campaign"):
            return spike.kind, spike.name
        pairs = [
            Pair(campaign=campaign, provider=provider, answered=n, bounced=x)
            for campaign, known in self.memory.pairs.items()
            for provider, (n, x) in known.items()
        ]
        key = blamed(spike.kind, spike.name, pairs, (spike.rate_usual + spikes.spiked(spike.rate_usual)) / 2)
        if key[0] == "provider" and key[1] not in NUMBERS:
            # Domains of their own have nothing in common that could be held.
            return spike.kind, spike.name
        if key != (spike.kind, spike.name):
            self.spikes.calm(spike.kind, spike.name)
        return key

    def _explained(self, alarms: dict[tuple[str, str], Alarm]) -> bool:
        """Whether something else than an IP bounces now, or is held for it."""
        held = [key for key, one in self.breakers.items() if one.state.stage != NORMAL]
        return any(kind != "ip" for kind, _ in [*alarms, *held])

    def _fade(self, passed_s: float) -> None:
        """Let what came of late fade, and forget what is hardly left."""
        keeps = 0.5 ** (passed_s / pair_half_life_s)
        for campaign, known in list(self.memory.pairs.items()):
            kept = {provider: (n * keeps, x * keeps) for provider, (n, x) in known.items() if n * keeps >= 0.5}
            self.memory.pairs[campaign] = kept
            if not kept:
                del self.memory.pairs[campaign]

    def _rate(self, kind: str, name: str, answered: int, passed_s: float) -> None:
        rates = self.memory.per_s.setdefault(kind, {})
        keeps = 0.5 ** (passed_s / rate_half_life_s)
        # Seconds without answers fade nothing: what is wanted is the rate while something is sent.
        rates[name] = keeps * rates.get(name, answered / passed_s) + (1 - keeps) * answered / passed_s

    def _step(self, key: tuple[str, str], look: Look) -> None:
        one = self.breakers.setdefault(key, Breaker(kind=key[0], name=key[1]))
        if look.alarm and one.state.stage == NORMAL:
            one.per_s = self.memory.per_s.get(key[0], {}).get(key[1], 0.0)
        one.state, _ = breaker.step(one.state, look, self.settings)

    def by_hand(self, order: Guard, now_us: int) -> None:
        """Do what somebody wants of a breaker. Raises NotFound for a name that nothing goes to."""
        if order.kind == "provider" and order.name not in NUMBERS:
            raise NotFound(f"Unknown mailbox provider `{order.name[:60]}`", expected="one of those of the page Deliverability")
        key = (order.kind, order.name[:200])
        before = {one: known.state for one, known in self.breakers.items()}
        one = self.breakers.setdefault(key, Breaker(kind=key[0], name=key[1]))
        if order.to == "held":
            if one.state.stage == NORMAL:
                one.per_s = self.memory.per_s.get(key[0], {}).get(key[1], 0.0)
            one.state = breaker.hold(one.state, by=order.who, why=order.why or "no reason was given", at_us=now_us)
        else:
            one.state = breaker.release(one.state, by=order.who, at_us=now_us, at_once=order.to == "normal")
        self._note(before, now_us, order.who)

    # -- what follows ----------------------------------------------------------------------------------------------------------

    def _note(self, before: dict[tuple[str, str], breaker.State], now_us: int, who: str) -> None:
        """Write down breakers that have changed, and let gates follow."""
        changed = [one for key, one in self.breakers.items() if before.get(key) != one.state]
        moved = [one for one in changed if _place(before.get((one.kind, one.name))) != _place(one.state)]
        for one in moved:
            one.sent, one.at_us = 0, now_us
            if one.state.stage == NORMAL:
                self.spikes.calm(one.kind, one.name)
        self._open_gates()
        if moved:
            # What waits for a connection was chosen before; and what is held must be known before the next message goes.
            self.sender.withdraw_gated()
        written = {(one.kind, one.name): one for one in changed} | {
            (one.kind, one.name): one for one, gate in self._gated() if gate.sent != one.sent
        }
        for one, gate in self._gated():
            one.sent = gate.sent
        if not written:
            return
        with self.db:
            self.db.executemany(
                "INSERT OR REPLACE INTO guards VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [self._columns(one) for one in written.values()]
            )
            for one in moved:
                text = self.decision(one).text
                self.db.execute(
                    "INSERT INTO guard_log (at_us, kind, name, stage, who, text) VALUES (?, ?, ?, ?, ?, ?)",
                    (now_us, one.kind, one.name, one.state.stage, who[:200], text),
                )
                logger.log(
                    logging.WARNING if one.state.stage == HELD else logging.INFO,
                    "%s %s is %s: %s",
                    one.kind,
                    one.name,
                    one.state.stage,
                    text,
                )
            self._trim(now_us)
            if moved:
                self._keep()

    def _trim(self, now_us: int) -> None:
        self.db.execute(
            "DELETE FROM guard_log WHERE number IN (SELECT number FROM guard_log ORDER BY number LIMIT ?) "
            "AND number <= (SELECT max(number) FROM guard_log) - ?",
            (logged_over_max, logged_max),
        )
        over = [key for key, one in self.breakers.items() if one.state.stage == NORMAL and one.at_us < now_us - kept_us]
        for key in over:
            del self.breakers[key]
            self.db.execute("DELETE FROM guards WHERE kind = ? AND name = ?", key)

    def _columns(self, one: Breaker) -> tuple:
        state = msgspec.json.encode(one.state)
        return one.kind, one.name, one.state.stage, state, one.sent, one.per_s, one.at_us, self.decision(one).text

    def decision(self, one: Breaker) -> Decision:
        return breaker.decision(one.state, self.settings)

    def _gated(self) -> list[tuple[Breaker, Gate]]:
        gates = self.sender.gates
        found = []
        for one in self.breakers.values():
            gate = {
                "provider": lambda name: gates.providers.get(NUMBERS[name]),
                "domain": gates.domains.get,
                "campaign": gates.campaigns.get,
            }.get(one.kind, lambda name: None)(one.name)  # fmt: skip
            if gate is not None:
                found.append((one, gate))
        return found

    def _open_gates(self) -> None:
        """Make gates what breakers allow; one whose stage goes on keeps what it has counted."""
        gates, now_s = self.sender.gates, self.clock.monotonic_s()
        former = {(one.kind, one.name): gate for one, gate in self._gated()}
        providers, domains, campaigns = {}, {}, {}
        for key, one in self.breakers.items():
            if one.state.stage == NORMAL:
                continue
            decided = self.decision(one)
            gate = former.get(key)
            if gate is None or gate.key != _place(one.state):
                per_s = None if decided.messages_max is not None else decided.share * one.per_s
                gate = Gate(_place(one.state), decided.messages_max, per_s, now_s, one.sent)
            gate.left = decided.messages_max
            if one.kind == "provider":
                providers[NUMBERS[one.name]] = gate
            elif one.kind == "domain":
                domains[one.name] = gate
            elif one.kind == "campaign":
                campaigns[one.name] = gate
        gates.providers, gates.domains, gates.campaigns = providers, domains, campaigns

    def _keep(self) -> None:
        self._saved_s = self.clock.monotonic_s()
        # The store forgets these as well, a little earlier: then one that comes back begins with nothing.
        gone_us = self.memory.since_us - forgotten_us
        for counted in self.memory.counted.values():
            for name in [name for name, (_, _, last_us) in counted.items() if last_us < gone_us]:
                del counted[name]
        for kind, rates in self.memory.per_s.items():
            for name in rates.keys() - self.memory.usual.streams.get(kind, {}).keys():
                del rates[name]
        self.db.execute("INSERT OR REPLACE INTO guard_memory VALUES (1, ?)", (msgspec.json.encode(self.memory),))


def _place(state: breaker.State | None) -> tuple:
    """Return what tells one stage of a breaker from the next. More messages of a probe are the same stage."""
    if state is None or state.stage == NORMAL:
        return (NORMAL,)
    step = 0 if state.stage == PROBING else state.step
    return state.stage, state.stage_at_us, step, state.by_hand


def state_of(raw: bytes) -> breaker.State | None:
    """Return the state of a breaker; None where another version wrote it."""
    try:
        state = msgspec.json.decode(raw, type=breaker.State)
    except msgspec.DecodeError:
        return None
    return state if state.version == breaker.VERSION else None


def quicker(settings: breaker.Settings, speed: float) -> breaker.Settings:
    """Return settings for campaigns whose hours go by faster, as in the sandbox."""
    if speed <= 1:
        return settings
    times = ("hold_us", "hold_us_max", "probe_us", "step_us", "forget_us")
    return msgspec.structs.replace(settings, **{name: max(1, int(getattr(settings, name) / speed)) for name in times})


# -- reading -----------------------------------------------------------------------------------------------------------------------------


class Standing(msgspec.Struct, kw_only=True):
    """How one breaker stands, for whoever looks. ``waits`` says what it waits for."""

    kind: str
    name: str
    stage: str
    since_us: int
    until_us: int
    text: str
    waits: str
    by_hand: bool
    sent: int
    answered: int
    bounced: int
    rate_usual: float
    holds: int


def standings(db, speed: float = 1.0) -> list[Standing]:
    """Return the breakers of an outbox, those that hold something first. An outbox of before has none."""
    if not db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'guards'").get:
        return []
    settings = quicker(breaker.Settings(), speed)
    found = []
    for kind, name, raw, sent, at_us in db.execute("SELECT kind, name, state, sent, at_us FROM guards"):
        state = state_of(raw)
        if state is None:
            continue
        decided = breaker.decision(state, settings)
        found.append(
            Standing(
                kind=kind, name=name, stage=state.stage, since_us=state.stage_at_us or at_us, until_us=decided.until_us, text=decided.text,
                waits=waits_for(state, decided), by_hand=state.by_hand, sent=sent, answered=state.answered, bounced=state.bounced,
                rate_usual=state.rate_usual, holds=state.holds,
            )
        )  # fmt: skip
    order = (HELD, PROBING, breaker.RETURNING, NORMAL)
    return sorted(found, key=lambda one: (order.index(one.stage), -one.since_us))


def waits_for(state: breaker.State, decided: Decision) -> str:
    """Return in words what has to happen before a breaker goes on."""
    if state.stage == HELD:
        return "Somebody has to release it." if state.by_hand else "Time; then a few messages try it."
    if state.stage == PROBING:
        return f"Answers to the {decided.messages_max} messages that may go."
    if state.stage == breaker.RETURNING:
        return "More good answers, and time; then more may go."
    return "Nothing."


def logged(db, count_max: int = 100) -> list[dict]:
    """Return what breakers did last, the newest first."""
    if not db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'guard_log'").get:
        return []
    rows = db.execute("SELECT at_us, kind, name, stage, who, text FROM guard_log ORDER BY number DESC LIMIT ?", (count_max,))
    return [dict(zip(("at_us", "kind", "name", "stage", "who", "text"), row, strict=True)) for row in rows]
