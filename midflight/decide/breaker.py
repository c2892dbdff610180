"""The breaker of a stream of sends: normal, held, probing, returning, normal; a state machine over counts and log time; pure.

    normal ──alarm──► held ──time──► probing ──good──► returning ──good at every step──► normal
                       ▲                │ bad, or not good │ bad
                       └────────────────┴──────────────────┘   each time it is held for twice as long

It never flaps: it goes back only on evidence (a sequential test of the answers to what was sent since the stage began, Wald 1945, over
beta-binomial counts as in `spikes`), each stage lasts for a while, and who is held again is held for longer. In ``T`` of log time a breaker
is held at most ``1 + log2(1 + T / hold_us)`` times until the longest hold is reached, and once in ``hold_us_max`` from then on. A hold by
hand stays until it is released by hand.
"""

from __future__ import annotations

import math

import msgspec

from .spikes import Spike, bucket_messages, log_ratio, spiked

VERSION = 1
minute_us = 60_000_000
NORMAL, HELD, PROBING, RETURNING = "normal", "held", "probing", "returning"


class Settings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """``shares`` are those of the usual rate in the steps of the return. ``doubt`` is the chance that a stage is judged wrongly."""

    hold_us: int = 30 * minute_us
    hold_us_max: int = 24 * 60 * minute_us
    probe_messages: int = 100
    probe_us: int = 30 * minute_us  # after which so many more may go, where the answers to the first were not enough
    probe_messages_max: int = 400
    shares: tuple[float, ...] = (0.1, 0.25, 0.5)
    step_us: int = 30 * minute_us
    doubt: float = 0.05
    forget_us: int = 7 * 24 * 60 * minute_us  # after so long without a hold the next one is as short as the first


class State(msgspec.Struct, kw_only=True, frozen=True):
    """A breaker, as plain data. ``answered`` and ``bounced`` are of messages that were sent since ``stage_at_us``.

    ``evidence`` is of the buckets of them that are full; ``open_answered`` and ``open_bounced`` are in the one that is not.
    """

    version: int = VERSION
    stage: str = NORMAL
    stage_at_us: int = 0
    step: int = 0
    holds: int = 0  # in a row
    held_at_us: int = 0
    answered: int = 0
    bounced: int = 0
    evidence: float = 0.0
    open_answered: int = 0
    open_bounced: int = 0
    rate_usual: float = 0.015
    correlation: float = 0.003
    by_hand: bool = False
    by: str = ""
    why: str = ""


class Alarm(msgspec.Struct, kw_only=True, frozen=True):
    """Why a stream should be held: a spike, the name of a blocklist, a complaint rate.

    ``rate_usual`` is what bounces have to come back to.
    """

    why: str
    rate_usual: float = 0.015
    correlation: float = 0.003


class Look(msgspec.Struct, kw_only=True, frozen=True):
    """What happened since the last look: alarms, and answers to messages that were **sent since the stage began** (`State.stage_at_us`)."""

    at_us: int
    answered: int = 0
    bounced: int = 0
    alarm: Alarm | None = None


class Decision(msgspec.Struct, kw_only=True, frozen=True):
    """What may be sent now: the share of the usual rate; where ``messages_max`` is a number, so many since the stage began and no more."""

    stage: str
    share: float
    messages_max: int | None
    until_us: int  # when it changes by time alone, 0 if it does not
    evidence: float  # logarithm; above 0 speaks for "still bad"
    text: str


def alarm_of(spike: Spike) -> Alarm:
    """Return a spike as an alarm."""
    return Alarm(why=spike.text, rate_usual=spike.rate_usual, correlation=spike.correlation)


def step(state: State, look: Look, settings: Settings | None = None) -> tuple[State, Decision]:
    """Return the next state and what it allows. Log time never goes back; a look at the same time without counts changes nothing."""
    settings = settings or Settings()
    state = _counted(state, look)
    if state.by_hand:
        return state, decision(state, settings)
    if look.alarm is not None and state.stage != HELD:
        state = _held(state, look.alarm, look.at_us, settings)
    elif state.stage == HELD and look.at_us >= state.stage_at_us + _hold_us(state, settings):
        state = _stage(state, PROBING, look.at_us)
    elif state.stage in (PROBING, RETURNING):
        state = _judged(state, look.at_us, settings)
    return state, decision(state, settings)


def hold(state: State, *, by: str, why: str, at_us: int) -> State:
    """Hold by hand, whatever the stage, until `release`."""
    return msgspec.structs.replace(_stage(state, HELD, at_us), by_hand=True, by=by, why=why, held_at_us=at_us)


def release(state: State, *, by: str, at_us: int, at_once: bool = False) -> State:
    """Release by hand, also a breaker that holds by itself: to a probe, or at once to normal."""
    if state.stage == NORMAL:
        return state
    return msgspec.structs.replace(_stage(state, NORMAL if at_once else PROBING, at_us), by_hand=False, by=by, why=f"Released by {by}.")


def decision(state: State, settings: Settings | None = None) -> Decision:
    """Return what a state allows, with its evidence in words."""
    settings = settings or Settings()
    evidence = _evidence(state)
    seen = f"{state.bounced} of {state.answered} messages sent since then bounced; usual are {100 * state.rate_usual:.1f}%."
    if state.stage == HELD:
        until = 0 if state.by_hand else state.stage_at_us + _hold_us(state, settings)
        text = f"Held by {state.by}: {state.why}" if state.by_hand else f"Held: {state.why}"
        return Decision(stage=HELD, share=0.0, messages_max=0, until_us=until, evidence=evidence, text=text)
    if state.stage == PROBING:
        text = f"A few messages go out to see whether it is over: {seen}"
        allowed = min(settings.probe_messages * (1 + state.step), 2 * settings.probe_messages_max)
        return Decision(stage=PROBING, share=0.0, messages_max=allowed, until_us=0, evidence=evidence, text=text)
    if state.stage == RETURNING:
        share = settings.shares[state.step]
        text = f"Back to {100 * share:.0f}% of the usual rate: {seen}"
        return Decision(stage=RETURNING, share=share, messages_max=None, until_us=0, evidence=evidence, text=text)
    return Decision(stage=NORMAL, share=1.0, messages_max=None, until_us=0, evidence=0.0, text="Nothing is held.")


def _counted(state: State, look: Look) -> State:
    if look.answered <= 0 or state.stage == NORMAL:
        return state
    bounced = min(max(0, look.bounced), look.answered)
    state = msgspec.structs.replace(
        state, answered=state.answered + look.answered, bounced=state.bounced + bounced,
        open_answered=state.open_answered + look.answered, open_bounced=state.open_bounced + bounced,
    )  # fmt: skip
    if state.open_answered < bucket_messages:
        return state
    return msgspec.structs.replace(state, evidence=_evidence(state), open_answered=0, open_bounced=0)


def _held(state: State, alarm: Alarm, at_us: int, settings: Settings) -> State:
    forgotten = state.stage == NORMAL and at_us - state.held_at_us > settings.forget_us
    holds = 1 if forgotten else state.holds + 1
    return msgspec.structs.replace(
        _stage(state, HELD, at_us), holds=holds, held_at_us=at_us, why=alarm.why, by="", rate_usual=alarm.rate_usual,
        correlation=alarm.correlation,
    )  # fmt: skip


def _judged(state: State, at_us: int, settings: Settings) -> State:
    """Return the state after what was sent in this stage has been judged: held again, one step on, or as it is."""
    limit = math.log((1 - settings.doubt) / settings.doubt)
    evidence = _evidence(state)
    again = Alarm(why=_again(state), rate_usual=state.rate_usual, correlation=state.correlation)
    if evidence >= limit:
        return _held(state, again, at_us, settings)
    if state.stage == PROBING:
        if evidence <= -limit:
            return _stage(state, RETURNING, at_us)
        if state.answered >= settings.probe_messages_max:
            # Neither good nor bad after all that was allowed: not good.
            return _held(state, again, at_us, settings)
        waited = (at_us - state.stage_at_us) // settings.probe_us
        steps = math.ceil(settings.probe_messages_max / settings.probe_messages)
        if state.answered >= settings.probe_messages_max // 2:
            # Not every message is ever answered: for those that are missing others go, or it would wait for them for ever.
            steps *= 2
        return msgspec.structs.replace(state, step=int(min(steps - 1, waited)))
    if evidence > -limit or at_us < state.stage_at_us + settings.step_us:
        return state
    if state.step + 1 < len(settings.shares):
        return msgspec.structs.replace(_stage(state, RETURNING, at_us), step=state.step + 1)
    return _stage(state, NORMAL, at_us)


def _again(state: State) -> str:
    return f"{state.bounced} of {state.answered} messages sent to try it again bounced; usual are {100 * state.rate_usual:.1f}%."


def _stage(state: State, stage: str, at_us: int) -> State:
    return msgspec.structs.replace(
        state, stage=stage, stage_at_us=at_us, step=0, answered=0, bounced=0, evidence=0.0, open_answered=0, open_bounced=0
    )


def _hold_us(state: State, settings: Settings) -> int:
    return min(settings.hold_us_max, settings.hold_us * 2 ** min(40, max(0, state.holds - 1)))


def _evidence(state: State) -> float:
    """Return the log of the likelihood ratio of "as bad as a spike" to "as usual", by the answers of this stage.

    Bounces come in lumps of a bucket's size, as the detector has learnt them: buckets add up. Taken for one lump, answers that go on and on
    as usual would say less and less, and where lumps are large never enough to come back.
    """
    if state.open_answered == 0:
        return state.evidence
    model = (state.rate_usual, spiked(state.rate_usual), 1 / state.correlation - 1, 1.0, 0.0)
    return state.evidence + log_ratio(state.open_bounced, state.open_answered, model)
