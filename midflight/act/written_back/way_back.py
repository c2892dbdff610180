"""The contract of a way back: the state of some people goes to another system, and of each it is known what became of it.

What is written is how things are, never a change: writing it twice is writing it once, and only the latest state of a person goes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Annotated, ClassVar

import msgspec

from ...kit.errors import ConfigError, nearest
from ...kit.plugins import Registry
from ...sources.polls.poll import Answer, Call

Ask = Callable[[Call], Awaitable[Answer]]
VALUES = ("engagement",)  # what is known of people besides their segments


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """A person's state: the segments he is in, by name, and what else is known under plain names (`engagement` ...)."""

    recipient: str
    segments: list[str] = []
    values: dict[str, object] = {}
    changed_us: int = 0
    version: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one person's state: ``written``; ``missing``: nobody there has this address; ``refused``, for ``why``."""

    kind: str = "written"
    why: str = ""


WRITTEN = Outcome()


class Settings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What every way back can be told. ``segments`` are those that are written; empty: all."""

    segments: list[str] = []
    per_second: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 4.0  # calls
    per_day: Annotated[int, msgspec.Meta(ge=0)] = 0  # calls in a day of UTC; 0 is no bound
    wait_s: Annotated[float, msgspec.Meta(ge=0)] = 5.0  # a change waits so long for others of the same person


class WayBack:
    """One kind of system. A subclass has ``Settings``, ``batch_max`` and `write`."""

    label: ClassVar[str] = ""
    doc: ClassVar[str] = ""
    docs_url: ClassVar[str] = ""
    Settings: ClassVar[type[Settings]] = Settings
    batch_max: int = 100
    rests: ClassVar[bool] = False  # True where it is written at its times only (see `due_us`)

    def __init__(self, settings: Settings, *, name: str) -> None:
        self.settings, self.name = settings, name

    def due_us(self, now_us: int, last_us: int) -> int:
        """Return when it may be written next, for a system that takes one file a night; ``last_us`` is when it was written last."""
        return now_us

    async def write(self, items: list[Item], ask: Ask, now_us: int) -> list[Outcome]:
        """Write the state of some people and return what became of each, in order.

        Raises NotNow and NotAllowed where nothing is known to have been written, Unreadable where the system refuses all of them together.
        """
        raise NotImplementedError

    def wants(self, name: str) -> bool:
        """Return whether something is written that is known of people: `segment:NAME`, or the name of a value."""
        segment = name.removeprefix("segment:")
        if segment == name:
            return name in self.value_names()
        return not self.settings.segments or segment in self.settings.segments

    def value_names(self) -> Collection[str]:
        """Return the names of the values that are written."""
        return VALUES

    def of_interest(self, item: Item) -> list[str]:
        """Return the names of a person's segments that are to be written."""
        wanted = self.settings.segments
        return [name for name in item.segments if not wanted or name in wanted]


def ways_of(raw: dict[str, dict], registry: Registry) -> dict[str, WayBack]:
    """Return the configured ways back: name -> {kind: hubspot, ...its settings}. Raises ConfigError with the path of what is wrong."""
    found = {}
    for name, settings in raw.items():
        where = f"$.ways_back.{name}"
        if not isinstance(settings, dict) or "kind" not in settings:
            raise ConfigError(f"Way back `{name}` says no kind", expected="`kind: hubspot` or another", where=f"{where}.kind")
        settings = dict(settings)
        kind = str(settings.pop("kind"))
        if kind not in registry.names():
            raise ConfigError(f"Unknown kind of way back `{kind}`", where=f"{where}.kind", todo=nearest(kind, registry.names()))
        way = registry.get(kind)
        unknown = sorted(set(settings) - set(way.Settings.__struct_fields__))
        if unknown:
            todo = nearest(unknown[0], way.Settings.__struct_fields__)
            raise ConfigError(f"Way back `{name}`: unknown setting `{unknown[0]}`", where=f"{where}.{unknown[0]}", todo=todo)
        try:
            found[name] = way(msgspec.convert(settings, way.Settings), name=name)
        except msgspec.ValidationError as error:
            raise ConfigError(f"Way back `{name}`: {error}", where=where) from None
    return found
