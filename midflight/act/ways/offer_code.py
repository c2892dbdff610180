"""Way `offer_code`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Protocol

import msgspec

from . import way
from .way import EXAMPLE, LocalWay, Text


class Settings(way.Settings, kw_only=True):
    low: Annotated[int, msgspec.Meta(ge=0)] = 100  # a pool with fewer free codes is told of


class Fields(way.Fields, kw_only=True):
    pool: Annotated[str, Text("fixed", 60)]  # which pool of codes
    way: Annotated[str, Text("fixed", 60)]  # the configured way that tells the code
    say: dict[str, object]  # that way's fields, in which `{{ code }}` stands


class OfferCode(LocalWay):
    """A code that nobody else ever gets, handed on to another way.

    The code is taken in the transaction of the action's intent, and what tells it is filled in with ``{{ code }}``. The same action always
    has the same code, and a code has nothing that would have to be escaped anywhere (act/offer_codes.py).
    """

    label: ClassVar[str] = "Offer code"
    doc: ClassVar[str] = (
        "A unique code from a pool, told by another way. A pool that runs low is told of; an empty one makes actions wait till they expire."
    )
    undoes: ClassVar[str] = "a code that was not used is revoked, and never handed out again; what has told it stays told"
    Settings = Settings
    Fields = Fields

    EXAMPLES = (
        {
            "settings": {},
            "actions": [
                msgspec.structs.replace(
                    EXAMPLE,
                    fields={"pool": "spring", "way": "text", "say": {"to": "+447700900123", "body": "Your code: {{ code }}"}},
                )
            ],
            "answers": [],
        },
    )


class Pools(Protocol):
    def pool(self, pool: str) -> dict[str, int]: ...


class Alarm(msgspec.Struct, frozen=True):
    """A pool of which somebody should know: ``kind`` is ``low`` or ``empty``."""

    kind: str
    pool: str
    free: int

    def text(self) -> str:
        if self.kind == "empty":
            return f"No code is left in `{self.pool}`: actions wait for new ones until they expire"
        return f"Only {self.free:,} codes are left in `{self.pool}`"


def alarms(store: Pools, pools: list[str], low: int) -> list[Alarm]:
    """Return what to tell of these pools."""
    left = [(pool, store.pool(pool)["free"]) for pool in pools]
    return [Alarm("empty" if free == 0 else "low", pool, free) for pool, free in left if free == 0 or free < low]


PLUGIN = OfferCode
