"""The contract of a trigger: what a rule waits for, in a person or in the numbers.

A trigger about people becomes a watch, which the shards keep: it fires with the event, or to the second when time has passed. A trigger
about numbers is looked at beside the numbers, again and again, and fires at most once for one state of things.
"""

from __future__ import annotations

import importlib
from typing import ClassVar, NamedTuple

import msgspec

from ...kit.errors import MidflightError
from ...metrics import Sums
from ...stream.conditions import Condition, duration_us
from ...stream.program import Watch


class BadTrigger(MidflightError):
    """A trigger that cannot be understood."""

    code = "bad_rule"


class Trigger(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Settings of a trigger are its fields, as a rule's ``when`` says them beside ``kind``."""

    label: ClassVar[str] = ""
    doc: ClassVar[str] = ""
    # For the contract test and the documentation: what `when` may be, and how it is said in words.
    EXAMPLES: ClassVar[tuple[tuple[dict, str], ...]] = ()

    def words(self) -> str:
        """Return what it waits for, to be put after "When"."""
        raise NotImplementedError

    def segments(self) -> list[str]:
        """Return the segments that it is made of."""
        return []

    def check(self) -> None:
        """Raise BadTrigger where the fields are each of the right type and do not fit together."""


class AboutPeople(Trigger):
    """Fires for one person."""

    def watch(self, where: Condition | None) -> Watch:
        """Return what the shards have to watch for. ``where`` has to hold of the person when it fires."""
        raise NotImplementedError


class Counted(NamedTuple):
    """What a trigger about numbers counts: measures, by minutes up to ``minutes`` ago, of one campaign or provider or of all."""

    measures: tuple[str, ...]
    minutes: int
    campaign: str = ""
    provider: str = ""


class AboutNumbers(Trigger):
    """Looked at with each minute of the log. It either counts something, or is due at certain times.

    It fires for nobody in particular; one that is due and has a segment fires for everybody in that.
    """

    def counted(self) -> Counted | None:
        """Return what is counted for it, or None for one that is due at certain times."""
        return None

    def is_so(self, window: Sums, before: Sums, whole: bool) -> bool | None:
        """Return whether the numbers of the window are what it waits for; None where they say nothing. ``whole``: since the rule began
        the window has gone by once. It fires when this becomes true."""
        raise NotImplementedError

    def due_us(self, after_us: int, until_us: int) -> int:
        """Return the last time after one and until another at which it is due, or 0."""
        raise NotImplementedError


def trigger_of(when: object, where: str = "$.when") -> Trigger:
    """Return the trigger that plain data says. Raises MidflightError with the place that is wrong."""
    # The folder is read when it is asked for: its files import this one.
    registry = importlib.import_module(__package__).REGISTRY
    if not isinstance(when, dict) or not isinstance(when.get("kind"), str):
        raise BadTrigger("When does the rule fire?", expected=f"`kind` and one of {', '.join(registry.names())}", where=where)
    settings = dict(when)
    kind = registry.get(settings.pop("kind"))
    try:
        found = msgspec.convert(settings, kind)
    except msgspec.ValidationError as error:
        raise BadTrigger(f"`{when['kind']}`: {error}", where=where) from None
    found.check()
    return found


def length_us(raw: str, where: str) -> int:
    """Return a length of time in us; 0 for none. Raises MidflightError."""
    return duration_us(raw, where) if raw else 0
