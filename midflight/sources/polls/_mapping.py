"""Rows of other systems become events by configuration: who it is about, when, and which fields become traits."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Literal, NamedTuple

import msgspec

from ...events import Bad, Event, clean, recipient_key
from ...kit.errors import ConfigError, MidflightError
from ..generic import FIELDS, Fields, Generic, find, paths_of
from ..source import Malformed, Request, as_dict, bare_address, encode_json, iso_us, number_us, text
from . import poll
from .poll import Found

Paths = str | list[str]
traits_max = 100
trait_chars_max = 4_000
row_bytes_max = 256 * 1024


class EventFields(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """For rows that are events and not people: as for the source `generic`."""

    fields: Fields
    kinds: dict[str, str] = {}
    time_format: str = "auto"
    value_unit: Literal["units", "cents", "micros"] = "units"


class MappedSettings(poll.Settings, kw_only=True, frozen=True):
    """How a row becomes an event.

    ``key``, ``email``, ``user_id``, ``at`` are paths as for the source `generic` (names with dots; several: the first that finds
    something). ``traits`` are fields that become traits under their own name, or ``ours: theirs``. A field's type is learnt from the
    first row that has it; a row in which it is of another one is set aside, until ``types`` says what it may be (text, number, bool,
    list, object, any). With ``events`` the rows are events.
    """

    key: Paths = ""
    email: Paths = "email"
    user_id: Paths = ""
    at: Paths = ""
    traits: list[str] | dict[str, Paths] = []
    types: dict[str, Literal["text", "number", "bool", "list", "object", "any"]] = {}
    events: EventFields | None = None


class Read(NamedTuple):
    found: list[Found]
    bad: list[Bad]
    types: dict[str, str]


class Mapping:
    """The settings, ready to read rows. ``strict``: a field that is not there at all is a change of schema, not an empty one."""

    def __init__(self, settings: MappedSettings, name: str, *, strict: bool = True, at_us: int = 0) -> None:
        self.settings, self.name, self.strict, self.at_us = settings, name, strict, at_us
        traits = settings.traits
        self.traits = {t: (t,) for t in traits} if isinstance(traits, list) else {t: paths_of(p) for t, p in traits.items()}
        self.paths = {field: paths_of(getattr(settings, field)) for field in ("key", "email", "user_id", "at")}
        where = f"$.polls.{name}"
        if len(self.traits) > traits_max:
            raise ConfigError(f"Poll `{name}`: too many traits", expected=f"at most {traits_max}", where=f"{where}.traits")
        if not settings.events and not self.paths["email"] and not self.paths["user_id"]:
            raise ConfigError(f"Poll `{name}` does not say who a row is about", expected="`email` or `user_id`", where=where)
        self.generic = _generic(settings, name) if settings.events else None

    def read(self, rows: list, types: dict[str, str], without: list[str] | tuple[str, ...] = ()) -> Read:
        """Turn rows into events; one that cannot be read is set aside and stops no other.

        ``types`` are those learnt so far; ``without`` are fields that were not asked for because the other side has them no more.
        """
        out = Read([], [], types | self.settings.types)
        for index, row in enumerate(rows):
            try:
                out.found.append(self.one(row, out.types, without))
            except MidflightError as error:
                out.bad.append(Bad(index, error.code, error.text()[:500], encode_json(row)[:row_bytes_max]))
            except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError) as error:
                said = f"{type(error).__name__}: {error}"[:300]
                out.bad.append(Bad(index, "unreadable", said, encode_json(row)[:row_bytes_max]))
        # What is configured is not learnt: it ends with the setting.
        learnt = {name: kind for name, kind in out.types.items() if name not in self.settings.types}
        return out._replace(types={name: kind for name, kind in types.items() if name in self.settings.types} | learnt)

    def one(self, row: object, types: dict[str, str], without: list[str] | tuple[str, ...] = ()) -> Found:
        """Turn a row into an event, and learn its types. Raises Malformed."""
        row = as_dict(row)
        if len(encode_json(row)) > row_bytes_max:
            raise Malformed("The row is too large", expected=f"at most {row_bytes_max} bytes")
        key = text(self._get(row, "key"))[:500]
        if self.paths["key"] and not key:
            raise Malformed("No key", expected=f"something at `{self.paths['key'][0]}`", todo=self._there(row))
        if self.generic:
            return self._event(row, key)
        address, user = text(self._get(row, "email")).strip(), text(self._get(row, "user_id"))[:500]
        address = bare_address(address) if "<" in address else address
        if not recipient_key(address) and not user:
            raise Malformed("Nobody it is about", expected="an email address or a user id", got=address[:60] or "nothing")
        at_us = time_us(self._get(row, "at"))
        if self.paths["at"] and not at_us:
            raise Malformed("No time that can be read", expected=f"a time at `{self.paths['at'][0]}`", todo=self._there(row))
        traits = self._traits(row, types, without)
        event = Event(kind="identified", recipient=address, user_id=user, occurred_at_us=at_us or self.at_us, traits=traits)
        return Found(event, key or recipient_key(address) or user)

    def _event(self, row: dict, key: str) -> Found:
        event = self.generic.events(row, Request())
        if event is None:
            raise Malformed("A row that the mapping ignores")
        if not event.occurred_at_us:
            raise Malformed("No time that can be read", expected="something at `events.fields.occurred_at`")
        if not recipient_key(event.recipient) and not event.user_id and not event.campaign:
            raise Malformed("Nobody to whom it happened", expected="an email address, a user id or a campaign")
        event = self.generic.finish(event, Request())
        return Found(msgspec.structs.replace(event, source="", received_at_us=0), key)

    def _traits(self, row: dict, types: dict[str, str], without: list[str] | tuple[str, ...]) -> dict[str, object]:
        out = {}
        for trait, paths in self.traits.items():
            if any(path in without for path in paths):
                continue
            value = next((found for path in paths if (found := find(row, path)) is not None), None)
            if value is None and self.strict and not any(has(row, path) for path in paths):
                raise Malformed(f"Field `{paths[0]}` is not there: the schema has changed", todo="Change `traits`, or bring it back")
            kind = type_of(value)
            if kind and types.setdefault(trait, kind) not in (kind, "any"):
                todo = f"If this is right: `types: {{{trait}: {kind}}}`"
                raise Malformed(f"Field `{paths[0]}` has changed its type", expected=types[trait], got=kind, todo=todo)
            out[clean(trait)] = clean(value)[:trait_chars_max] if isinstance(value, str) else value
        return out

    def _get(self, row: dict, field: str) -> object:
        for path in self.paths[field]:
            found = path[1:] if path.startswith("=") else find(row, path)
            if found is not None and found != "":
                return found
        return None

    def _there(self, row: dict) -> str:
        return "There is: " + ", ".join(clean(str(name))[:40] for name in list(row)[:20])


def _generic(settings: MappedSettings, name: str) -> Generic:
    how = msgspec.to_builtins(settings.events)
    try:
        config = Generic.configure({"unsigned": True, **how, "fields": {k: v for k, v in how["fields"].items() if v}}, name)
    except ConfigError as error:
        where = (error.where or "").replace(f"$.sources.{name}", f"$.polls.{name}.events")
        raise ConfigError(
            error.what.replace("Source", "Poll"), expected=error.expected, got=error.got, where=where, todo=error.todo
        ) from None
    return Generic(config, name=name)


def has(row: object, path: str) -> bool:
    """Whether something stands at a path, be it null. Within what is null everything may stand."""
    if path.startswith("=") or (isinstance(row, dict) and path in row):
        return True
    head, dot, rest = path.partition(".")
    if isinstance(row, dict) and head in row and dot:
        return row[head] is None or has(row[head], rest)
    return isinstance(row, list) and find(row, path) is not None


def type_of(value: object) -> str:
    """Return the type of a value, ``""`` for null."""
    if value is None:
        return ""
    for kind, name in ((bool, "bool"), (int | float, "number"), (str, "text"), (list, "list"), (dict, "object")):
        if isinstance(value, kind):
            return name
    return "text"


def time_us(value: object) -> int:
    """Return microseconds for a time of any usual kind; 0 where it is none."""
    return iso_us(value) or number_us(value)


def plain(value: object) -> object:
    """Return a database's or a table's value as JSON has it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() and abs(value) < 2**53 else float(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)[:1000].hex()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    return str(value)


__all__ = ["FIELDS", "EventFields", "MappedSettings", "Mapping", "Read", "plain", "time_us"]
