"""What the conductor tells the door about campaigns, so that the door can say who gets what: a small file, written anew about every second.

The choice is a function of what stands here: who asks twice while nothing changes is told the same, and the log keeps what was told for
when something does.
"""

from __future__ import annotations

import os
from itertools import accumulate
from pathlib import Path

import msgspec

from ..kit.errors import MidflightError
from .audience import luck

NAME = "advice.json"
# Of a campaign in such a state nobody is told anything, and this is why; in `sending` everybody is, in `done` who was told before.
HOLDS = {"draft": "not_started", "scheduled": "not_started", "paused": "paused", "stopped": "stopped"}


class BadAdvice(MidflightError):
    """The file is not what `write` writes."""

    code = "bad_advice"


class Advice(msgspec.Struct, kw_only=True, frozen=True):
    """One campaign that is asked about. ``shares`` are those of ``variants`` in ``wave``, in any unit, all 0 before the first wave;
    ``definition`` is the campaign's, of which ``variants`` and ``footer`` are read here."""

    campaign: str
    state: str
    seed: int = 1
    holdout: float = 0.0
    wave: int = 0
    variants: list[str] = []
    shares: list[float] = []
    definition: dict = {}

    def __post_init__(self) -> None:
        # NaN is not at least 0.
        if len(self.shares) != len(self.variants) or not all(0 <= share < float("inf") for share in self.shares):
            raise ValueError(f"campaign `{self.campaign}`: a share of at least 0 for each variant is expected")

    def choose(self, recipient: str) -> tuple[str, float] | None:
        """Return the variant of a recipient in this wave and how likely it was; None before there is a wave."""
        total = sum(self.shares)
        if not total > 0:
            return None
        at = luck(self.seed, self.campaign, f"decide {self.wave}", recipient) / 2**64 * total
        chosen = None
        for variant, share, until in zip(self.variants, self.shares, accumulate(self.shares), strict=True):
            if share:
                chosen = variant, share / total
                if at < until:
                    break
        return chosen


_decoder = msgspec.json.Decoder(list[Advice])


def write(folder: Path, advices: list[Advice]) -> None:
    """Write what holds now. Also where nothing has changed: an old file says that nobody looks after campaigns any more."""
    fresh = folder / f".{NAME}.{os.getpid()}"
    fresh.write_bytes(msgspec.json.encode(advices))
    # Not synced: what a power cut spoils is written again a second after the next start.
    os.replace(fresh, folder / NAME)


def read(folder: Path) -> list[Advice]:
    """Return what was written last; nothing where nothing was. Raises BadAdvice."""
    try:
        return decoded((folder / NAME).read_bytes())
    except FileNotFoundError:
        return []


def decoded(raw: bytes) -> list[Advice]:
    """Return what a file's bytes say. Raises BadAdvice."""
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadAdvice(f"What is known of campaigns cannot be read: {error}", where=NAME) from None
