"""A batch of events in columns of numbers: what shards take."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Given(NamedTuple):
    """Attributes that rows of a batch give, in the order of the rows."""

    row: np.ndarray  # int64, place in the batch
    name: np.ndarray  # uint32
    number: np.ndarray  # float64, not a number where the value is none
    text: np.ndarray  # uint64, key of the value's text


def no_attributes() -> Given:
    return Given(np.zeros(0, np.int64), np.zeros(0, np.uint32), np.zeros(0), np.zeros(0, np.uint64))


class Batch(NamedTuple):
    """One row per event, all arrays of one length. Text is gone: it is hashed, or interned to the ids of the `names` table."""

    id_hi: np.ndarray  # uint64, key of source and event id
    id_lo: np.ndarray  # uint64
    content: np.ndarray  # uint64, to tell a repetition from a conflict
    day: np.ndarray  # uint16, days since 1970 of receipt
    rcpt: np.ndarray  # uint64, key of the recipient; 0 = nobody in particular
    provider: np.ndarray  # uint16, the recipient's mailbox provider, index into PROVIDERS
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
    order: np.ndarray  # uint64, key of the order id, 0 without; for tracked and paged ones the key of the name
    value: np.ndarray  # int64 micros
    traits: np.ndarray  # uint64, attribute values a byte each, 0 = not given
    row: np.ndarray  # int64, where the row stands in the whole batch (shards get parts of it)
    received: np.ndarray  # int64 us, log time of the row
    given: Given

    def take(self, rows: np.ndarray) -> Batch:
        """Return a part of the batch, rows in ascending order."""
        place = np.full(self.kind.size, -1, np.int64)
        place[rows] = np.arange(rows.size)
        kept = place[self.given.row] >= 0
        given = Given(*(column[kept] for column in self.given))
        return Batch(*(column[rows] for column in self[:-1]), given._replace(row=place[given.row]))
