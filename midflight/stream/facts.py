"""What the fold and the conditions of segments both know of a person's events."""

from __future__ import annotations

import numpy as np

from ..events import KINDS
from ..kit.compiled import inner
from .measures import MEASURE
from .tables import NIL

OPEN, CLICK = 100, 101

# Kind -> measure that is counted once per message; -1 for kinds with a way of their own.
measure_of_kind = np.full(len(KINDS), -1, np.int64)
for _kind in "queued sent delivered deferred rejected failed complained unsubscribed subscribed autoresponded".split():
    measure_of_kind[KINDS.index(_kind)] = MEASURE[_kind]
measure_of_bounce = np.array([MEASURE["bounced_soft"], MEASURE["bounced_hard"], MEASURE["bounced_soft"], MEASURE["bounced_block"]])
# What stands in a message's node for each kind that conditions ask about; bounces have several.
what_of_kind = measure_of_kind.copy()
what_of_kind[KINDS.index("opened")], what_of_kind[KINDS.index("clicked")] = OPEN, CLICK
is_bounce = np.isin(np.arange(256), measure_of_bounce)


@inner
def counts(conversions, c):
    """Whether conversion c counts: not if an earlier one has the same order id. The list is latest first."""
    if conversions[c].order == 0:
        return True
    other = conversions[c].next
    while other != NIL:
        if conversions[other].order == conversions[c].order:
            return False
        other = conversions[other].next
    return True
