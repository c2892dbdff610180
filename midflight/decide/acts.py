"""What a rule does once it fires: its action and its limits. Pure; engine, conductor and backtest read the same."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ..kit.errors import MidflightError
from .limits import Limits

name_chars_max = 100


class BadRule(MidflightError):
    """A rule that cannot act as it is put."""

    code = "bad_rule"


class RuleAction(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a rule does: the ``way`` out by its name, and the ``fields`` that it needs. ``to_person`` is False where no recipient is reached
    by it, such as a message to one's own team: then suppressions do not matter."""

    way: Annotated[str, msgspec.Meta(min_length=1, max_length=name_chars_max)]
    fields: dict[str, object] = {}
    to_person: bool = True


class Acts(msgspec.Struct, kw_only=True, frozen=True):
    """The part of a rule's definition that says what becomes of its firings; the rest says when it fires."""

    action: RuleAction
    limits: Limits = Limits()


def acts_of(definition: dict) -> Acts:
    """Return what a definition says of its firings. Raises BadRule with the place that is wrong."""
    try:
        return msgspec.convert({name: definition[name] for name in ("action", "limits") if name in definition}, Acts)
    except msgspec.ValidationError as error:
        raise BadRule(f"The rule: {error}") from None
