"""When somebody was last known to be there: an open or a click by a person or a proxy, or a delivery that no bounce took back for a day."""

from __future__ import annotations

import numpy as np

from ..events import KINDS
from ..kit.compiled import inner
from .agents import MACHINE

MINUTE_US = 60_000_000
settled_minutes = 24 * 60  # some servers accept everything and send the bounce later
K_DELIVERED, K_BOUNCED, K_OPENED, K_CLICKED = (KINDS.index(kind) for kind in ("delivered", "bounced", "opened", "clicked"))
is_answer = np.isin(np.arange(256), (K_DELIVERED, K_BOUNCED))
_AGENT = 3  # the bits of an agent without fold.SURE


@inner
def note_life(recipients, r, kind, agent, at_us, alive, i):
    """Take in one event of a person, and say in alive[i] of a delivery or a bounce what was known before it."""
    if kind == K_OPENED or kind == K_CLICKED:
        if agent & _AGENT != MACHINE:
            recipients[r].alive = max(recipients[r].alive, np.uint32(at_us // MINUTE_US))
    elif kind == K_DELIVERED or kind == K_BOUNCED:
        minute = np.uint32(at_us // MINUTE_US)
        reached = recipients[r].reached
        if reached != 0 and minute >= reached + np.uint32(settled_minutes):
            recipients[r].alive = max(recipients[r].alive, reached)
            reached = np.uint32(0)
        if kind == K_DELIVERED:
            if reached == 0:
                reached = minute
        elif minute >= reached:
            reached = np.uint32(0)
        recipients[r].reached = reached
        alive[i] = recipients[r].alive
