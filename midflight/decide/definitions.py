"""Segments and rules as they stand at one position of the log, with their versions; what an order makes of them is the same for everybody
who reads the log, so the engine, the conductor and a backtest agree without asking each other. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from ..kit.errors import MidflightError, NotFound, nearest
from ..stream.conditions import Condition, InSegment, condition_of, parts_of
from ..stream.program import Program, Watch, compiled, segments_max, watches_max, whole
from .acts import acts_of
from .triggers import AboutNumbers, AboutPeople, Trigger, trigger_of

name_chars_max = 100
bytes_max = 64 * 1024  # of one definition
rules_max = watches_max
names_max = 20_000  # that were ever given, kept with their versions


class BadDefinition(MidflightError):
    """A segment or a rule that cannot be put into force."""

    code = "bad_definition"


class PutSegment(msgspec.Struct, kw_only=True, frozen=True, tag_field="do", tag="put_segment"):
    """Make a segment, or give it another condition: the version is one more than the last that whoever asks has seen."""

    id: str
    name: str
    version: int
    where: dict
    who: str
    why: str = ""


class DropSegment(msgspec.Struct, kw_only=True, frozen=True, tag_field="do", tag="drop_segment"):
    """Take a segment away, unless something still needs it."""

    id: str
    name: str
    who: str
    why: str = ""


class PutRule(msgspec.Struct, kw_only=True, frozen=True, tag_field="do", tag="put_rule"):
    """What the engine reads of the order that puts a rule into force; act/rule_orders.py has all of it."""

    rule: str
    version: int
    definition: dict


class RemoveRule(msgspec.Struct, kw_only=True, frozen=True, tag_field="do", tag="remove_rule"):
    rule: str


SOURCE = "rules"
_orders = msgspec.json.Decoder(PutSegment | DropSegment | PutRule | RemoveRule)


class Kept(msgspec.Struct, kw_only=True, frozen=True):
    """One definition in force. ``body`` is what was put: a condition, or a whole rule."""

    version: int
    body: dict


class Definitions:
    """All definitions in force. The methods change them, or raise MidflightError and change nothing."""

    def __init__(self) -> None:
        self.segments: dict[str, Kept] = {}
        self.rules: dict[str, Kept] = {}
        self.versions: dict[str, int] = {}  # the last one of every name, also of what is gone: no version comes twice
        self._conditions: dict[str, Condition] = {}
        self._triggers: dict[str, tuple[Trigger, Condition | None]] = {}  # of the rules, with the condition that has to hold

    # -- segments --------------------------------------------------------------------------------------------------------------

    def put_segment(self, name: str, version: int, where: dict) -> None:
        """Put a segment into force."""
        check_name("segment", name)
        check_size(where)
        self._check_version("segment", name, version)
        if name not in self.segments and len(self.segments) >= segments_max:
            raise BadDefinition("There are too many segments", expected=f"at most {segments_max}", todo="Take one away")
        conditions = self._conditions | {name: condition_of(where, "$.where")}
        self._check_together(conditions, self._triggers)
        self._conditions = conditions
        self.segments[name] = Kept(version=version, body=where)
        self.versions[f"segment {name}"] = version

    def drop_segment(self, name: str) -> None:
        """Take a segment away."""
        self._known("segment", name, self.segments)
        if needed := self.needing(name):
            raise BadDefinition(f"Segment `{name}` is needed", got=", ".join(needed[:10]), todo="Take those away first")
        del self.segments[name]
        del self._conditions[name]

    def needing(self, name: str) -> list[str]:
        """Return the segments and rules that are made of a segment."""
        found = [f"segment `{one}`" for one, condition in self._conditions.items() if _names(condition, name)]
        for one, (trigger, where) in self._triggers.items():
            if name in trigger.segments() or (where is not None and _names(where, name)):
                found.append(f"rule `{one}`")
        return found

    # -- rules -----------------------------------------------------------------------------------------------------------------

    def check_rule(self, name: str, body: dict) -> None:
        """Raise MidflightError where a rule cannot fire as it is put."""
        check_name("rule", name)
        if name.startswith("~"):
            raise BadDefinition("A rule needs a name", expected="another sign than `~` first", got=name)
        check_size(body)
        trigger, where = rule_of(body)
        needed = trigger.segments()
        needed += [part.name for part in parts_of(where) if isinstance(part, InSegment)] if where is not None else []
        for segment in needed:
            self._known("segment", segment, self.segments)
        if where is not None and not isinstance(trigger, AboutPeople):
            raise BadDefinition("A rule about numbers has no person to ask", where="$.where", todo="Leave `where` out")
        acts_of(body)
        if name not in self.rules and len(self.rules) >= rules_max:
            raise BadDefinition("There are too many rules", expected=f"at most {rules_max}", todo="Take one away")
        self._check_together(self._conditions, self._triggers | {name: (trigger, where)})

    def _check_together(self, conditions: dict[str, Condition], triggers: dict[str, tuple[Trigger, Condition | None]]) -> None:
        """Raise MidflightError where these would not run: they go in a circle, or are too much in all."""
        compiled(conditions, _watches(triggers), lambda kind, name: 1)

    def put_rule(self, name: str, version: int, body: dict) -> None:
        """Put a rule into force."""
        self.check_rule(name, body)
        self._check_version("rule", name, version)
        self.rules[name], self._triggers[name] = Kept(version=version, body=body), rule_of(body)
        self.versions[f"rule {name}"] = version

    def drop_rule(self, name: str) -> None:
        """Take a rule out of force."""
        self._known("rule", name, self.rules)
        del self.rules[name], self._triggers[name]

    def _check_version(self, kind: str, name: str, version: int) -> None:
        if f"{kind} {name}" not in self.versions and len(self.versions) >= names_max:
            raise BadDefinition("Too many names were given", expected=f"at most {names_max:,}", todo="Give one that was taken away anew")
        last = self.versions.get(f"{kind} {name}", 0)
        if version != last + 1:
            raise BadDefinition(f"{kind.capitalize()} `{name}` is at version {last}", expected=f"version {last + 1}", got=version,
                                todo="Look at it again: somebody has changed it")  # fmt: skip

    @staticmethod
    def _known(kind: str, name: str, known: dict) -> None:
        if name not in known:
            raise NotFound(f"Unknown {kind} `{name[:name_chars_max]}`", todo=nearest(name[:name_chars_max], known))

    def obey(self, body: bytes) -> bool:
        """Do what an order says, if it is about definitions and can be done; return whether anything has changed. Never raises for what it
        holds: whoever asked is told why by whoever keeps the ends of orders."""
        try:
            match _orders.decode(body):
                case PutSegment(name=name, version=version, where=where):
                    self.put_segment(name, version, where)
                case DropSegment(name=name):
                    self.drop_segment(name)
                case PutRule(rule=rule, version=version, definition=definition):
                    self.put_rule(rule, version, definition)
                case RemoveRule(rule=rule):
                    self.drop_rule(rule)
        except (MidflightError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        return True

    # -- what runs ---------------------------------------------------------------------------------------------------------------

    def people_rules(self) -> list[str]:
        """Return the rules that wait for something in people, in the order in which they are numbered."""
        return [name for name, (trigger, _) in self._triggers.items() if isinstance(trigger, AboutPeople)]

    def number_rules(self) -> dict[str, tuple[int, AboutNumbers]]:
        """Return the rules about numbers, with their versions."""
        return {
            name: (self.rules[name].version, trigger) for name, (trigger, _) in self._triggers.items() if isinstance(trigger, AboutNumbers)
        }

    def program(self, number: Callable[[str, str], int]) -> Program:
        """Return what the shards run."""
        return compiled(self._conditions, _watches(self._triggers), number)

    def keys(self) -> tuple[list[tuple[str, int, bytes]], list[tuple[str, int]]]:
        """Return what makes a segment the same one, and a rule about people: name and version, and all that a segment is made of."""
        conditions = self._conditions
        segments = [
            (name, kept.version, msgspec.json.encode(repr(whole(conditions, conditions[name], (name,)))))
            for name, kept in self.segments.items()
        ]
        return segments, [(name, self.rules[name].version) for name in self.people_rules()]

    # -- keeping -----------------------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict:
        return msgspec.to_builtins({"segments": self.segments, "rules": self.rules, "versions": self.versions})

    def load(self, state: dict) -> None:
        self.segments = msgspec.convert(state["segments"], dict[str, Kept])
        self.rules = msgspec.convert(state["rules"], dict[str, Kept])
        self.versions = dict(state["versions"])
        self._conditions = {name: condition_of(kept.body) for name, kept in self.segments.items()}
        self._triggers = {name: rule_of(kept.body) for name, kept in self.rules.items()}


def _watches(triggers: dict[str, tuple[Trigger, Condition | None]]) -> list[Watch]:
    return [trigger.watch(where) for trigger, where in triggers.values() if isinstance(trigger, AboutPeople)]


def rule_of(body: dict) -> tuple[Trigger, Condition | None]:
    """Return a rule's trigger, and the condition that has to hold of the person (None: none). Raises MidflightError."""
    if not isinstance(body, dict):
        raise BadDefinition("Not a rule", expected="a mapping with `when` and `action`", got=type(body).__name__)
    trigger = trigger_of(body.get("when"))
    where = condition_of(body["where"], "$.where") if body.get("where") else None
    return trigger, where


def same_as(before: list, now: list) -> np.ndarray:
    """Return for each key of now its place before, or -1: what is the same goes on, all else begins anew."""
    places = {key: place for place, key in enumerate(before)}
    return np.array([places.get(key, -1) for key in now], np.int64)


def check_name(kind: str, name: str) -> None:
    if not isinstance(name, str) or not name.strip() or name != name.strip() or len(name) > name_chars_max or not name.isprintable():
        raise BadDefinition(f"A {kind} needs a name", expected=f"1 to {name_chars_max} printable characters", got=str(name)[:100])


def check_size(body: dict) -> None:
    try:
        size = len(msgspec.json.encode(body))
    except (TypeError, ValueError, RecursionError):
        raise BadDefinition("The definition is no JSON") from None
    if size > bytes_max:
        raise BadDefinition("The definition is too large", expected=f"at most {bytes_max:,} bytes", got=f"{size:,}")


def _names(condition: Condition, segment: str) -> bool:
    return any(isinstance(part, InSegment) and part.name == segment for part in parts_of(condition))
