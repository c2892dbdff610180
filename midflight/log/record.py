"""One entry of the log: what arrived, when, through which source; never changed once written."""

from __future__ import annotations

import msgspec

# webhook: a vendor's request. track: Segment's format. events: canonical events (imports, polls). definition: a versioned
# definition or an order. replay: parse a dead letter again. tick: time moves on. decision: what was decided. Append, never reorder.
RECORD_KINDS = ("webhook", "track", "events", "definition", "replay", "tick", "decision")


class Record(msgspec.Struct, array_like=True, frozen=True):
    """A record as it is stored. New fields go to the end and have defaults.

    ``at_us`` is the append time, the only clock that anything downstream knows. ``headers`` are only those that parsing
    needs. ``body`` is the sender's bytes after content decoding.
    """

    kind: str
    source: str
    at_us: int
    headers: dict[str, str]
    body: bytes
    url: str = ""
    # Where the record stands in the log; set by the reader, stored as 0.
    position: int = 0
