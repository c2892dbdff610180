"""Which addresses are not written to any more because nobody is there, and which only seem dead; pure.

On 14 December 2020 Gmail answered ``550 5.1.1 no such user`` for hours to living people, and whoever believed the first answer lost them
(bigmailer.io/blog/gmail-outage-erroneous-hard-bounces). Two things protect from that:

- An address is suppressed by two *independent* answers. A second one counts that comes a day or more after the first. Or, for an address
  that has never shown any life, what its provider said meanwhile about people who are surely there: if it took mail for them, it knew its
  users.
- People who were there of late do not die by the dozen. Where a provider calls too many of them dead, by the detector of `spikes`, it is
  *storming*: what it says about anybody counts for nothing from then on until it knows them again, and from a while before.

What was suppressed within a storm that is found later is undone (`undo`). Whoever is suspected rests on probation and is tried again. Every
suppression ends by itself. A block, a full box or a greylisting never makes an address dead.
"""

from __future__ import annotations

import msgspec

from . import spikes
from .bounces import Verdict

VERSION = 1
hour_us = 3_600_000_000
day_us = 24 * hour_us
answers_max = 9
storms_max = 64  # kept for each provider, the latest
FINE, PROBATION, SUPPRESSED = "fine", "probation", "suppressed"
ALIVE, DEAD, DISABLED, FULL, OTHER = "alive", "dead", "disabled", "full", "other"


class Settings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How long things last. ``alive_us``: how long somebody who opened, clicked or was delivered to is taken to be there."""

    alive_us: int = 60 * day_us
    settled_us: int = day_us  # a delivery after which no bounce came for so long was one
    apart_us: int = day_us
    probation_us: int = 3 * day_us
    suppressed_us: int = 365 * day_us
    confidence_min: float = 0.85  # of one answer that is believed together with what the provider says of others
    sane_answers: int = 50  # so many living people have to be known to a provider for that
    sane_us: int = day_us  # within this time before
    disabled_answers: int = 3
    disabled_apart_us: int = 7 * day_us
    full_answers: int = 4
    full_apart_us: int = 15 * day_us
    before_storm_us: int = 12 * hour_us  # a storm begins before it is found
    after_storm_us: int = day_us  # and whoever was hit rests until so long after its end
    calm_answers: int = 100  # a storm is over when so many living people in a row
    calm_share: float = 0.02  # are called dead no more often than this


class Answer(msgspec.Struct, kw_only=True, frozen=True):
    """One answer that speaks against an address. ``kind`` is DEAD, DISABLED or FULL."""

    kind: str
    at_us: int
    confidence: float
    because: str = ""


class Address(msgspec.Struct, kw_only=True, frozen=True):
    """What is remembered of one address: a few numbers and its last answers, those of one kind well apart from each other."""

    status: str = FINE
    since_us: int = 0
    until_us: int = 0
    alive_at_us: int = 0
    delivered_at_us: int = 0  # of the last delivery, which a late bounce may still take back
    answers: tuple[Answer, ...] = ()
    reason: str = ""
    evidence: str = ""


class Storm(msgspec.Struct, kw_only=True, frozen=True):
    """A time in which a provider called living people dead. ``ended_us`` is 0 while it lasts."""

    provider: str
    since_us: int
    found_us: int
    ended_us: int = 0
    called_dead: int = 0
    of: int = 0

    def covers(self, at_us: int, settings: Settings) -> bool:
        return self.since_us - settings.before_storm_us <= at_us and (not self.ended_us or at_us <= self.ended_us)


class Provider(msgspec.Struct, kw_only=True):
    """What a provider said of late about people who are surely there, and its storms."""

    storms: tuple[Storm, ...] = ()
    run_answered: int = 0  # living people in the present run of calm_answers, while it storms
    run_dead: int = 0
    hours: dict[int, tuple[int, int]] = {}  # hour of log time -> living people answered, called dead


class State(msgspec.Struct, kw_only=True):
    """A snapshot of what is known of providers."""

    version: int = VERSION
    providers: dict[str, Provider] = {}
    detector: spikes.State = msgspec.field(default_factory=spikes.State)


class Providers:
    """What each provider says about the living. ``add`` counts answers, ``storm`` and ``sane`` say what to make of them.

    A provider is what answers as one: Gmail, or the domain itself where it belongs to nobody bigger.
    """

    def __init__(self, settings: Settings | None = None, state: State | None = None) -> None:
        self.settings = settings or Settings()
        self.state = state if state is not None and state.version == VERSION else State()
        self._spikes = spikes.Spikes(spikes.Settings(kinds=("provider",)), self.state.detector)
        self.state.detector = self._spikes.state

    def add(self, provider: str, *, answered: int, dead: int, at_us: int) -> Storm | None:
        """Count messages to people who were there of late (`was_alive`): all that were answered, and those called dead.

        Return the storm that begins or ends with it.
        """
        known = self._provider(provider)
        hour = at_us // hour_us
        before = known.hours.get(hour, (0, 0))
        known.hours[hour] = (before[0] + answered, before[1] + dead)
        for old in [h for h in known.hours if h < hour - self.settings.sane_us // hour_us]:
            del known.hours[old]
        if self._open(known):
            return self._calmer(provider, known, answered, dead, at_us)
        spike = self._spikes.add("provider", provider, answered=answered, bounced=dead, at_us=at_us)
        if spike is None:
            return None
        storm = Storm(provider=provider, since_us=spike.since_us, found_us=at_us, called_dead=spike.bounced, of=spike.answered)
        known.storms = (*known.storms, storm)[-storms_max:]
        known.run_answered = known.run_dead = 0
        return storm

    def storm(self, provider: str, at_us: int) -> Storm | None:
        """Return the storm that was at a time, as far as it is known by now."""
        known = self.state.providers.get(provider)
        storms = known.storms if known else ()
        return next((storm for storm in reversed(storms) if storm.covers(at_us, self.settings)), None)

    def sane(self, provider: str, at_us: int) -> tuple[int, int] | None:
        """Return how many living people were answered about of late and how many called dead, where that shows that they are known."""
        known = self.state.providers.get(provider)
        if known is None or self._open(known):
            return None
        first = (at_us - self.settings.sane_us) // hour_us
        lately = [counts for hour, counts in known.hours.items() if first <= hour <= at_us // hour_us]
        answered, dead = sum(a for a, _ in lately), sum(d for _, d in lately)
        if answered < self.settings.sane_answers or dead > self.settings.calm_share * answered:
            return None
        return answered, dead

    def _provider(self, name: str) -> Provider:
        known = self.state.providers.get(name)
        if known is None:
            if len(self.state.providers) >= spikes.streams_max:
                self._forget()
            known = self.state.providers[name] = Provider()
        return known

    def _forget(self) -> None:
        """Make room: those without storms and without answers for longest, a tenth at once."""
        every = self.state.providers
        order = sorted(every, key=lambda name: (bool(every[name].storms), max(every[name].hours, default=0), name))
        for name in order[: spikes.streams_max // 10]:
            del every[name]

    @staticmethod
    def _open(known: Provider) -> bool:
        return bool(known.storms) and known.storms[-1].ended_us == 0

    def _calmer(self, name: str, known: Provider, answered: int, dead: int, at_us: int) -> Storm | None:
        storm = known.storms[-1]
        storm = msgspec.structs.replace(storm, called_dead=storm.called_dead + dead, of=storm.of + answered)
        known.run_answered += answered
        known.run_dead += dead
        ends = False
        if known.run_dead > self.settings.calm_share * self.settings.calm_answers:
            # The run is spoilt: only what comes after these can be calm.
            known.run_answered = known.run_dead = 0
        elif known.run_answered >= self.settings.calm_answers:
            storm = msgspec.structs.replace(storm, ended_us=at_us)
            self._spikes.calm("provider", name)
            ends = True
        known.storms = (*known.storms[:-1], storm)
        return storm if ends else None


def was_alive(address: Address, at_us: int, settings: Settings | None = None) -> bool:
    """Whether somebody was surely there of late: their answers are what `Providers.add` counts."""
    settings = settings or Settings()
    address = _settled(address, at_us, settings)
    return address.alive_at_us > 0 and at_us - address.alive_at_us <= settings.alive_us


def kind_of(verdict: Verdict) -> str:
    """Return what a bounce says of its address."""
    if verdict.dead:
        return DEAD
    if verdict.permanent and verdict.reason == "mailbox_disabled":
        return DISABLED
    return FULL if verdict.reason == "mailbox_full" else OTHER


def alive(address: Address, at_us: int) -> Address:
    """Return an address whose owner opened or clicked: nothing that was said before counts any more."""
    at_us = max(at_us, address.alive_at_us)
    if any(answer.at_us >= at_us for answer in address.answers):
        # An open of yesterday that comes late says nothing about the answer of today.
        return msgspec.structs.replace(address, alive_at_us=at_us)
    return Address(alive_at_us=at_us, delivered_at_us=address.delivered_at_us)


def delivered(address: Address, at_us: int, settings: Settings | None = None) -> Address:
    """Return an address that a message was delivered to: a sign of life once no bounce came after it for ``settled_us``.

    Some servers accept everything and send the bounce later, so a delivery alone takes nothing back.
    """
    settings = settings or Settings()
    address = _settled(address, at_us, settings)
    return msgspec.structs.replace(address, delivered_at_us=max(at_us, address.delivered_at_us))


def _settled(address: Address, at_us: int, settings: Settings) -> Address:
    then = address.delivered_at_us
    if then <= address.alive_at_us or at_us - then < settings.settled_us:
        return address
    if any(answer.at_us >= then for answer in address.answers):
        return address
    return alive(address, then)


def against(address: Address, answer: Answer, provider: str, providers: Providers) -> Address:
    """Return an address after an answer that speaks against it: on probation, or suppressed with the reason and the evidence."""
    settings = providers.settings
    address = _settled(address, answer.at_us, settings)
    if answer.kind not in (DEAD, DISABLED, FULL) or answer.at_us < address.alive_at_us:
        return address
    if answer.at_us >= address.delivered_at_us:
        address = msgspec.structs.replace(address, delivered_at_us=0)
    if address.status == SUPPRESSED and (answer.at_us < address.until_us or answer.kind != DEAD):
        return address
    storm = providers.storm(provider, answer.at_us)
    if storm is not None:
        return _rests(address, answer, storm, settings)
    address = _with(address, answer, settings)
    if said := _enough(address, answer, provider, providers):
        return _suppressed(address, answer.at_us, *said, settings)
    if answer.kind == FULL:
        return address
    return msgspec.structs.replace(
        address, status=PROBATION, since_us=answer.at_us, until_us=answer.at_us + settings.probation_us, reason="suspected",
        evidence=f"One answer says that nobody is there ({answer.because}); a second one is waited for.",
    )  # fmt: skip


def undo(address: Address, storm: Storm, settings: Settings | None = None) -> Address:
    """Return an address without what was said of it within a storm that was found later; it is tried again after the storm."""
    settings = settings or Settings()
    left = tuple(answer for answer in address.answers if not storm.covers(answer.at_us, settings))
    if left == address.answers or address.status == FINE:
        return msgspec.structs.replace(address, answers=left)
    at_us = storm.ended_us or storm.found_us
    return msgspec.structs.replace(
        address, answers=left, status=PROBATION, since_us=storm.found_us, until_us=at_us + settings.after_storm_us, reason="storm",
        evidence=_storm_words(storm),
    )  # fmt: skip


def may_send(address: Address, at_us: int, storm: Storm | None = None) -> tuple[bool, str]:
    """Return whether an address may be written to, and why not. ``storm`` is its provider's, if one is on."""
    if address.status == FINE or at_us >= address.until_us > 0:
        if address.status == PROBATION and storm is not None and storm.ended_us == 0:
            return False, _storm_words(storm)
        return True, ""
    return False, f"{address.reason}: {address.evidence}"


def _rests(address: Address, answer: Answer, storm: Storm, settings: Settings) -> Address:
    """Return an address that was called dead within a storm: that counts for nothing, and it is tried again afterwards."""
    if answer.kind == FULL:
        return address
    until = max(answer.at_us, storm.ended_us) + settings.after_storm_us
    return msgspec.structs.replace(
        address, status=PROBATION, since_us=answer.at_us, until_us=until, reason="storm", evidence=_storm_words(storm)
    )


def _with(address: Address, answer: Answer, settings: Settings) -> Address:
    """Return an address with one more answer, where it is far enough from the last of its kind to be one of its own."""
    same = [other for other in address.answers if other.kind == answer.kind]
    apart_us = {DEAD: settings.apart_us, DISABLED: settings.disabled_apart_us, FULL: settings.full_apart_us}[answer.kind]
    if any(abs(answer.at_us - other.at_us) < apart_us for other in same):
        return address
    answers = sorted((*address.answers, answer), key=lambda other: other.at_us)
    return msgspec.structs.replace(address, answers=tuple(answers[-answers_max:]))


def _enough(address: Address, answer: Answer, provider: str, providers: Providers) -> tuple[str, str] | None:
    """Return reason and evidence where the answers are enough to suppress."""
    settings = providers.settings
    dead = [other for other in address.answers if other.kind == DEAD]
    if len(dead) >= 2:
        days = (dead[-1].at_us - dead[0].at_us) / day_us
        return "dead", f"{len(dead)} answers, {days:.0f} days apart, say that nobody is there: {dead[-1].because}."
    if dead and answer.kind == DEAD and not address.alive_at_us and answer.confidence >= settings.confidence_min:
        if counts := providers.sane(provider, answer.at_us):
            return "dead", (
                f"{provider} says that nobody is there ({answer.because}), nobody ever was, and it knew {counts[0] - counts[1]} of "
                f"{counts[0]} people who are there."
            )
    for kind, number in ((DISABLED, settings.disabled_answers), (FULL, settings.full_answers)):
        same = [other for other in address.answers if other.kind == kind]
        if len(same) >= number:
            return kind, f"{len(same)} answers over {(same[-1].at_us - same[0].at_us) / day_us:.0f} days: {same[-1].because}."
    return None


def _suppressed(address: Address, at_us: int, reason: str, evidence: str, settings: Settings) -> Address:
    return msgspec.structs.replace(
        address, status=SUPPRESSED, since_us=at_us, until_us=at_us + settings.suppressed_us, reason=reason, evidence=evidence
    )


def _storm_words(storm: Storm) -> str:
    return f"{storm.provider} called {storm.called_dead} of {storm.of} people dead who were there of late; that does not count."
