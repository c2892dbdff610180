"""A batch of events in columns of numbers: what shards take."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """One row per event, all arrays of one length. Text is gone: it is hashed, or interned to the ids of the `names` table."""

    id_hi: np.ndarray  # uint64, key of source and event id
    id_lo: np.ndarray  # uint64
    content: np.ndarray  # uint64, to tell a repetition from a conflict
    day: np.ndarray  # uint16, days since 1970 of receipt
    rcpt: np.ndarray  # uint64, key of the recipient; 0 = nobody in particular
    msg: np.ndarray  # uint64, key of source and message id
    kind: np.ndarray  # uint8, index into events.KINDS
    at_us: np.ndarray  # int64, when it happened; never after receipt
    source: np.ndarray  # uint16
    campaign: np.ndarray  # uint32
    variant: np.ndarray  # uint16
    wave: np.ndarray  # uint16
    url: np.ndarray  # uint32
    agent: np.ndarray  # uint8: human, proxied, machine, plus fold.SURE where timing cannot overrule
    bounce: np.ndarray  # uint8, index into events.BOUNCE_CLASSES
    op: np.ndarray  # uint8: 0 fold, 1 take a conversion out again
    ident: np.ndarray  # uint64, names a conversion within its recipient
    order: np.ndarray  # uint64, key of the order id, 0 without
    value: np.ndarray  # int64 micros
    traits: np.ndarray  # uint64, attribute values a byte each, 0 = not given
    row: np.ndarray  # int64, where the row stands in the whole batch (shards get parts of it)

    def take(self, rows: np.ndarray) -> Batch:
        return Batch(*(column[rows] for column in self))


DTYPES = dict(
    id_hi=np.uint64, id_lo=np.uint64, content=np.uint64, day=np.uint16, rcpt=np.uint64, msg=np.uint64, kind=np.uint8, at_us=np.int64,
    source=np.uint16, campaign=np.uint32, variant=np.uint16, wave=np.uint16, url=np.uint32, agent=np.uint8, bounce=np.uint8,
    op=np.uint8, ident=np.uint64, order=np.uint64, value=np.int64, traits=np.uint64, row=np.int64,
)  # fmt: skip


def empty_batch(rows: int) -> Batch:
    return Batch(**{name: np.zeros(rows, dtype) for name, dtype in DTYPES.items()})
