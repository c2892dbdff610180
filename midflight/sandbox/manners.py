"""Bad manners on demand: events repeated, reordered, late, stripped of their campaign or stamped by a wrong clock."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import msgspec
import numpy as np

from ..events import Event
from .life import Happening, hour_s, second_us

XSS = '"><img src=x onerror="window.midflightXss=1"><script>window.midflightXss=1</script>\''
# What a wrong clock does to the order of things must not change who did them: these events are judged without their time.
CLOCK_KINDS = frozenset(("deferred", "bounced", "complained", "unsubscribed"))
wrong_clocks_us = (2 * hour_s * second_us, 10 * 365 * 24 * hour_s * second_us)


@dataclass(frozen=True)
class Manners:
    """Each a share of events (``cut``, ``poison``: of requests) that this happens to; the defaults are a vendor's bad day."""

    duplicates: float = 0.02
    reorder: float = 0.05
    late: float = 0.01
    bare: float = 0.03
    clocks: float = 0.002
    async_bounces: float = 0.002
    unknown: float = 0.002
    poison: float = 0.005
    cut: float = 0.005
    xss: bool = False

    @classmethod
    def good(cls) -> Manners:
        return cls(**{f.name: 0.0 for f in fields(cls) if f.name != "xss"})

    def with_xss(self, xss: bool) -> Manners:
        return replace(self, xss=xss)


class Sending(msgspec.Struct, gc=False):
    """An event and when the vendor will report it."""

    due_us: int
    event: Event


def sendings(happenings: list[Happening], manners: Manners, rng: np.random.Generator, speed: float, received_us: int = 0) -> list[Sending]:
    """Return when each event is reported, in order; events are changed in place where manners say so.

    ``received_us`` is when all of them arrive if that is not when they are due: history loaded at once.
    """
    out: list[Sending] = []
    told: set[str] = set()
    draws = iter(rng.random((len(happenings), 8)).tolist())
    later_us = 4 * hour_s * second_us / speed
    for happening, (delay, reorder, late, bare, clock, repeat, how_late, how) in zip(happenings, draws, strict=True):
        event = happening.event
        due = event.occurred_at_us + round(delay * 0.3 * second_us)
        if reorder < manners.reorder:
            due += round(how * 5 * second_us)
        if late < manners.late:
            due += round((1 + how_late * 3) / 4 * later_us)
        if event.message_id and event.kind != "unknown":
            # Somebody has to say which campaign a message belongs to: its first event does.
            if event.message_id in told and bare < manners.bare:
                event.campaign = event.variant = event.wave = ""
            told.add(event.message_id)
        event.received_at_us = received_us or due
        if clock < manners.clocks and (event.kind in CLOCK_KINDS or (event.kind == "opened" and happening.agent != "machine")):
            event.occurred_at_us += wrong_clocks_us[int(how * len(wrong_clocks_us))]
        if manners.xss and how < 0.2:
            spoil(happening)
        out.append(Sending(due, event))
        if repeat < manners.duplicates:
            # Half of the repetitions meet their original in one request, the others come later.
            out.append(Sending(due if how < 0.5 else due + round(how_late * later_us), event))
    out.sort(key=lambda sending: (sending.due_us, sending.event.event_id))
    return out


def spoil(happening: Happening) -> None:
    """Put markup where text from outside is shown; a machine keeps the user agent that gives it away."""
    event = happening.event
    if event.user_agent and happening.agent != "machine":
        event.user_agent += XSS
    if event.url:
        event.url += "?q=" + XSS
    if event.detail:
        event.detail += XSS
    if event.kind == "paged":
        event.name += XSS
