"""Fields of a form that follow from a struct: those of a trigger, and those of what is said through a way out."""

from __future__ import annotations

import types
import typing

import msgspec

from ...act.ways.way import Text
from ...decide.hours import DAYS
from ...metrics import REGISTRY as METRICS
from .conditions import EVENTS, MAILBOXES, text

long_chars = 1_001  # a text that may be so long is typed into several lines
SPELT = {name: name.upper() for name in ("html", "mjml", "ttl")}  # names that are short for several words
LISTS = {"campaign": "known-campaigns", "segment": "known-segments", "entered": "known-segments", "left": "known-segments"}
CHOICES = {"did": EVENTS, "provider": [("", "any"), *MAILBOXES], "metric": [(name, name) for name in METRICS.names()]}
HINTS = {
    "within": "30m, 12h, 3d", "stays": "2d", "over": "15m", "above": "0.05 for 5 %", "below": "0.05 for 5 %", "days": ", ".join(DAYS),
    "at": "09:00", "once": "2026-12-01T09:00", "zone": "Europe/Berlin", "day": "of the month, 1 to 31",
}  # fmt: skip


class Field(msgspec.Struct, kw_only=True):
    """One field: its ``path`` in the definition, as in `after.did`, and how it is asked for."""

    path: str
    label: str
    needed: bool
    choices: list[tuple[str, str]] = []
    hint: str = ""
    names: str = ""  # a list of names to choose from
    long: bool = False
    number: bool = False
    several: bool = False
    free: bool = False  # neither text nor number: JSON


def fields_of(struct: type[msgspec.Struct], before: str = "", label: str = "", without: tuple[str, ...] = ()) -> list[Field]:
    """Return the fields of a struct, those of structs within it after their names."""
    hints = typing.get_type_hints(struct, include_extras=True)
    found = []
    for one in msgspec.structs.fields(struct):
        if one.name in without:
            continue
        hint = hints[one.name]
        kinds = _kinds(hint)
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, msgspec.Struct)), None)
        name = one.encode_name
        words = f"{label} {name}".strip().replace("_", " ")
        if inner is not None:
            found += fields_of(inner, f"{before}{name}.", words)
            continue
        literal = next((kind for kind in kinds if typing.get_origin(kind) is typing.Literal), None)
        several = any(typing.get_origin(kind) in (tuple, list) for kind in kinds)
        choices = CHOICES.get(one.name) or (
            [(str(a), str(a)) for a in typing.get_args(literal)] if literal is not None and not several else []
        )
        found.append(
            Field(
                path=f"{before}{name}", label=label_of(words), needed=one.required, choices=choices, hint=HINTS.get(name, ""),
                names=LISTS.get(name, ""), long=_chars(hint) >= long_chars, number=bool({int, float} & set(kinds)), several=several,
                free=not several and not choices and not {str, int, float} & set(kinds),
            )
        )  # fmt: skip
    return found


def label_of(words: str) -> str:
    return " ".join(SPELT.get(word.lower(), word) for word in words.capitalize().split())


def _kinds(hint: object) -> list[object]:
    """Return the types that a hint allows, without what is noted of them."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _kinds(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(hint) for kind in _kinds(part)]
    return [hint]


def _chars(hint: object) -> int:
    return max((note.chars_max for note in getattr(hint, "__metadata__", ()) if isinstance(note, Text)), default=0)


def raw_of(fields: list[Field], value: typing.Callable[[str], str]) -> dict:
    """Return what the fields say, as a definition has it; what is left empty is left out. ``value`` gives what is typed by path."""
    raw: dict = {}
    for field in fields:
        typed = value(field.path)
        if not typed.strip():
            continue
        *outer, last = field.path.split(".")
        place = raw
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = _value(field, typed)
    return raw


def _value(field: Field, typed: str) -> object:
    if field.several:
        return [part.strip() for part in typed.split(",") if part.strip()]
    if field.number or field.free:
        # What is none is told by whoever checks the definition.
        try:
            found = msgspec.json.decode(typed.strip().replace(",", ".") if field.number else typed)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return typed.strip()
        return found if not field.number or isinstance(found, int | float) else typed.strip()
    return typed if field.long else typed.strip()


def typed_of(fields: list[Field], raw: dict) -> dict[str, str]:
    """Return what would have to be typed for a definition, by path."""
    found = {}
    for field in fields:
        value: object = raw
        for name in field.path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            several = isinstance(value, list | tuple) and field.several
            found[field.path] = (
                ", ".join(map(text, value))
                if several
                else msgspec.json.encode(value).decode()
                if isinstance(value, dict | list)
                else text(value)
            )
    return found
