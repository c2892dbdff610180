"""Who is who: user ids that an `identify` linked to an address, and attributes as small numbers."""

from __future__ import annotations

from itertools import islice

import msgspec

from ..config import Attribute
from ..events import Event
from .names import Names
from .program import value_of

VERSION = 1  # of what `snapshot` gives
given_max = 100  # attributes that one event gives
parked_max = 100_000  # conversions that wait for their person to be identified


class People:
    """What was learnt of people, in log order."""

    def __init__(self, attributes: list[Attribute], names: Names) -> None:
        self.attributes = attributes
        self.names = names
        self.keys: dict[str, str] = {}  # user id -> recipient key
        # user id -> conversions counted under the user id alone, each with its source and time of receipt
        self.parked: dict[str, list[tuple[str, int, Event]]] = {}
        self.parked_count = 0

    def key_of(self, user: str) -> str:
        """Return the recipient key of a user id, or a key of its own for somebody not identified yet."""
        return self.keys.get(user) or "id:" + user

    def learn(self, user: str, key: str) -> list[tuple[str, int, Event]]:
        """Note who a user is; return the conversions that have to move to that recipient."""
        if self.keys.get(user) == key:
            return []
        self.keys[user] = key
        moved = self.parked.pop(user, [])
        self.parked_count -= len(moved)
        return moved

    def park(self, user: str, source: str, received_us: int, event: Event) -> None:
        """Remember a conversion of somebody not identified yet. Beyond the maximum they stay with their user id."""
        if self.parked_count < parked_max:
            self.parked.setdefault(user, []).append((source, received_us, event))
            self.parked_count += 1

    def packed(self, traits: dict) -> int:
        """Return the configured attributes among the traits, a byte each in their order; 0 where none is given."""
        out = 0
        for place, attribute in enumerate(self.attributes):
            label = band_label(traits.get(attribute.trait or attribute.name), attribute.bands)
            if label:
                out |= min(self.names.id(f"attribute:{attribute.name}", label), 255) << (8 * place)
        return out

    def given(self, said: list[tuple[str, object]]) -> list[tuple[int, float, int]]:
        """Return attributes as conditions ask about them: their number, and their value as a number and as the key of its text."""
        return [(self.names.id("trait", name), *value_of(value)) for name, value in said]

    def snapshot(self) -> dict:
        return {"keys": self.keys, "parked": msgspec.to_builtins(self.parked)}

    def load(self, state: dict) -> None:
        self.keys = dict(state["keys"])
        self.parked = msgspec.convert(state["parked"], dict[str, list[tuple[str, int, Event]]])
        self.parked_count = sum(len(rows) for rows in self.parked.values())


def said_of(traits: dict) -> list[tuple[str, object]]:
    """Return what can be asked about among the traits of one event: texts, numbers, yes and no."""
    plain = ((str(name), value) for name, value in traits.items() if isinstance(value, str | int | float | bool) and name)
    return list(islice(plain, given_max))


def band_label(value: object, bands: list[float]) -> str:
    """Return an attribute's value as the name it is counted under; ``""`` where there is none."""
    if value is None or isinstance(value, dict | list):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not bands:
        return str(value).strip()[:100]
    try:
        number = float(value)
    except (TypeError, ValueError):
        return ""
    edges = sorted(bands)
    if number < edges[0]:
        return f"<{edges[0]:g}"
    for low, high in zip(edges, edges[1:], strict=False):
        if number < high:
            return f"{low:g}-{high - 1:g}" if low.is_integer() and high.is_integer() else f"{low:g}-{high:g}"
    return f"{edges[-1]:g}+"
