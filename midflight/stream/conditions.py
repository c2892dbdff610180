"""What people say about people: the conditions of segments and rules, checked strictly and put into words.

A condition is a mapping with one of these first words::

    all: [...]   any: [...]   not: {...}
    did: clicked, at_least: 2, at_most: 5, within: 30d, campaign: spring      (opens and clicks are people's, never machines')
    did: tracked, name: added to cart, within: 1h
    attribute: plan, is: pro            (is, is_not, one_of, above, below, at_least, at_most, known)
    revenue: {at_least: 100, within: 90d}
    provider: gmail
    segment: good customers
    score: {at_least: 50}       (0 to 100, see stream/score.py)
    engaged: 30d     unengaged: 180d
"""

from __future__ import annotations

import math
import re
from typing import Literal

import msgspec

from ..events import KINDS
from ..kit.errors import MidflightError, nearest
from .providers import PROVIDERS

depth_max = 8
parts_max = 200  # conditions in one definition
texts_max = 200  # values of `one_of`
text_chars_max = 200
count_max = 100
window_us_max = 1_000 * 86_400_000_000
UNITS_US = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000, "w": 7 * 86_400_000_000}
UNIT_WORDS = {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week"}
# What people can be asked about; kinds that only say something of a vendor's queue are left out.
DONE = tuple(kind for kind in KINDS if kind not in ("unknown", "queued", "identified", "inbound", "autoresponded"))
NAMED = ("tracked", "paged")  # kinds that are told apart by name


class BadCondition(MidflightError):
    """A condition that cannot be understood, with the place where it stands."""

    code = "bad_condition"


class Every(msgspec.Struct, frozen=True):
    parts: tuple


class Some(msgspec.Struct, frozen=True):
    parts: tuple


class No(msgspec.Struct, frozen=True):
    part: object


class Did(msgspec.Struct, frozen=True):
    """At least so many events of a kind within the time before now (0: ever), of one campaign or of one name, where these are given."""

    kind: str
    at_least: int = 1
    within_us: int = 0
    campaign: str = ""
    name: str = ""


class Revenue(msgspec.Struct, frozen=True):
    """Money of conversions that count, in whole units, within the time before now (0: ever)."""

    sign: Literal["above", "below", "at_least", "at_most"]
    amount: float
    within_us: int = 0


class Attribute(msgspec.Struct, frozen=True):
    """The latest value of an attribute. Numbers are compared as numbers, all else as text without regard to case."""

    name: str
    sign: Literal["is", "above", "below", "at_least", "at_most", "known"]
    value: str | float | bool = True


class Score(msgspec.Struct, frozen=True):
    """The engagement score, 0 to 100."""

    sign: Literal["above", "below", "at_least", "at_most"]
    amount: float


class Provider(msgspec.Struct, frozen=True):
    name: str


class InSegment(msgspec.Struct, frozen=True):
    name: str


Condition = Every | Some | No | Did | Revenue | Attribute | Score | Provider | InSegment
COMPARING = ("above", "below", "at_least", "at_most")
WORDS = ("all", "any", "not", "did", "attribute", "revenue", "score", "provider", "segment", "engaged", "unengaged")


def condition_of(raw: object, where: str = "$") -> Condition:
    """Return the condition that plain data says. Raises BadCondition."""
    return _Reading().read(raw, where, 0)


def duration_us(raw: object, where: str) -> int:
    """Return microseconds of `30m`, `1h`, `90d`. Raises BadCondition."""
    found = re.fullmatch(r"\s*(\d{1,9})\s*([smhdw])\s*", raw) if isinstance(raw, str) else None
    us = int(found[1]) * UNITS_US[found[2]] if found else 0
    if not 0 < us <= window_us_max:
        raise BadCondition("Not a length of time", expected="a number with s, m, h, d or w, as `30m`, at most 1000d", got=raw, where=where)
    return us


def duration_words(us: int) -> str:
    """Return a length of time as people say it: `30 minutes`."""
    for unit in ("w", "d", "h", "m", "s"):
        if us % UNITS_US[unit] == 0 and us >= UNITS_US[unit] and not (unit == "w" and us < 2 * UNITS_US["w"]):
            n = us // UNITS_US[unit]
            return f"{n} {UNIT_WORDS[unit]}{'s' * (n != 1)}"
    return f"{us / 1e6:g} seconds"


class _Reading:
    """Reads one definition, and counts its parts."""

    def __init__(self) -> None:
        self.parts = 0

    def read(self, raw: object, where: str, depth: int) -> Condition:
        self.parts += 1
        if depth > depth_max or self.parts > parts_max:
            raise BadCondition("Too much in one definition", expected=f"at most {depth_max} levels and {parts_max} conditions", where=where)
        if not isinstance(raw, dict) or not raw:
            raise BadCondition("Not a condition", expected="a mapping, as `did: clicked`", got=_shown(raw), where=where)
        said = [word for word in WORDS if word in raw]
        if not said:
            first = str(next(iter(raw)))
            raise BadCondition(f"Unknown condition `{first[:60]}`", where=where, todo=nearest(first[:60], WORDS))
        if len(said) > 1:
            raise BadCondition("Two conditions in one", got=" and ".join(said), where=where, todo="Put them below `all:` or `any:`")
        return getattr(self, f"_{said[0]}")(raw, where, depth)

    def _only(self, raw: dict, where: str, *known: str) -> None:
        for key in raw:
            if key not in known:
                raise BadCondition(f"Unknown word `{str(key)[:60]}`", where=f"{where}.{str(key)[:60]}", todo=nearest(str(key)[:60], known))

    def _several(self, raw: dict, word: str, where: str, depth: int) -> tuple:
        self._only(raw, where, word)
        parts = raw[word]
        if not isinstance(parts, list) or not parts:
            raise BadCondition(f"`{word}` needs conditions", expected="a list of them", got=_shown(parts), where=f"{where}.{word}")
        return tuple(self.read(part, f"{where}.{word}[{i}]", depth + 1) for i, part in enumerate(parts))

    def _all(self, raw: dict, where: str, depth: int) -> Condition:
        return Every(self._several(raw, "all", where, depth))

    def _any(self, raw: dict, where: str, depth: int) -> Condition:
        return Some(self._several(raw, "any", where, depth))

    def _not(self, raw: dict, where: str, depth: int) -> Condition:
        self._only(raw, where, "not")
        return No(self.read(raw["not"], f"{where}.not", depth + 1))

    def _did(self, raw: dict, where: str, depth: int) -> Condition:
        self._only(raw, where, "did", "at_least", "at_most", "within", "campaign", "name")
        kind = raw["did"]
        if kind not in DONE:
            raise BadCondition("Nobody does that", got=_shown(kind), where=f"{where}.did", todo=nearest(str(kind)[:60], DONE))
        if kind not in NAMED and "name" in raw:
            raise BadCondition(f"`{kind}` has no name", where=f"{where}.name", todo="A name belongs to `tracked` and `paged`")
        if "campaign" in raw and (kind in NAMED or kind == "converted"):
            raise BadCondition(f"`{kind}` belongs to no campaign", where=f"{where}.campaign", todo="Leave it out")
        within = duration_us(raw["within"], f"{where}.within") if "within" in raw else 0
        campaign, name = (_text(raw.get(key, ""), f"{where}.{key}", empty="key not given") for key in ("campaign", "name"))
        at_least = _count(raw.get("at_least", 0 if "at_most" in raw else 1), f"{where}.at_least")
        parts: list[Condition] = []
        if at_least:
            parts.append(Did(kind, at_least, within, campaign, name))
        if "at_most" in raw:
            at_most = _count(raw["at_most"], f"{where}.at_most")
            if at_most < at_least:
                raise BadCondition("Nobody can", expected=f"at_most of {at_least} or more", got=at_most, where=f"{where}.at_most")
            parts.append(No(Did(kind, at_most + 1, within, campaign, name)))
        if not parts:
            raise BadCondition("Always true", where=where, todo="Say `at_least: 1`, or `at_most`")
        return parts[0] if len(parts) == 1 else Every(tuple(parts))

    def _attribute(self, raw: dict, where: str, depth: int) -> Condition:
        signs = ("is", "is_not", "one_of", *COMPARING, "known")
        self._only(raw, where, "attribute", *signs)
        name = _text(raw["attribute"], f"{where}.attribute")
        said = [sign for sign in signs if sign in raw]
        if not said:
            raise BadCondition("What about the attribute?", expected=", ".join(signs), where=where)
        parts = tuple(self._compared(name, sign, raw[sign], f"{where}.{sign}") for sign in said)
        return parts[0] if len(parts) == 1 else Every(parts)

    def _compared(self, name: str, sign: str, value: object, where: str) -> Condition:
        if sign == "known":
            if not isinstance(value, bool):
                raise BadCondition("Not yes or no", expected="true or false", got=_shown(value), where=where)
            known = Attribute(name, "known")
            return known if value else No(known)
        if sign == "one_of":
            if not isinstance(value, list) or not 0 < len(value) <= texts_max:
                raise BadCondition("Not a list of values", expected=f"1 to {texts_max}", got=_shown(value), where=where)
            return Some(tuple(Attribute(name, "is", _value(one, f"{where}[{i}]")) for i, one in enumerate(value)))
        if sign in COMPARING:
            return Attribute(name, sign, _number(value, where))
        found = Attribute(name, "is", _value(value, where))
        return No(found) if sign == "is_not" else found

    def _revenue(self, raw: dict, where: str, depth: int) -> Condition:
        self._only(raw, where, "revenue")
        said = raw["revenue"]
        if not isinstance(said, dict):
            raise BadCondition("Not about revenue", expected="`{at_least: 100, within: 90d}`", got=_shown(said), where=f"{where}.revenue")
        self._only(said, f"{where}.revenue", *COMPARING, "within")
        within = duration_us(said["within"], f"{where}.revenue.within") if "within" in said else 0
        parts = tuple(Revenue(s, _number(said[s], f"{where}.revenue.{s}"), within) for s in COMPARING if s in said)
        if not parts:
            raise BadCondition("How much revenue?", expected=", ".join(COMPARING), where=f"{where}.revenue")
        return parts[0] if len(parts) == 1 else Every(parts)

    def _score(self, raw: dict, where: str, depth: int) -> Condition:
        self._only(raw, where, "score")
        said = raw["score"]
        if not isinstance(said, dict):
            raise BadCondition("Not about a score", expected="`{at_least: 50}`", got=_shown(said), where=f"{where}.score")
        self._only(said, f"{where}.score", *COMPARING)
        parts = tuple(Score(sign, _number(said[sign], f"{where}.score.{sign}")) for sign in COMPARING if sign in said)
        if not parts:
            raise BadCondition("Which score?", expected=", ".join(COMPARING), where=f"{where}.score")
        return parts[0] if len(parts) == 1 else Every(parts)

    def _provider(self, raw: dict, where: str, depth: int) -> Condition:
        self._only(raw, where, "provider")
        name = raw["provider"]
        known = {provider.lower(): provider for provider in PROVIDERS if provider}
        if not isinstance(name, str) or name.lower() not in known:
            todo = nearest(str(name)[:60], known.values())
            raise BadCondition("Unknown mailbox provider", got=_shown(name), where=f"{where}.provider", todo=todo)
        return Provider(known[name.lower()])

    def _segment(self, raw: dict, where: str, depth: int) -> Condition:
        self._only(raw, where, "segment")
        return InSegment(_text(raw["segment"], f"{where}.segment"))

    def _engaged(self, raw: dict, where: str, depth: int) -> Condition:
        self._only(raw, where, "engaged")
        return _engaged(duration_us(raw["engaged"], f"{where}.engaged"))

    def _unengaged(self, raw: dict, where: str, depth: int) -> Condition:
        """Somebody who was written to and has shown no interest for that long."""
        self._only(raw, where, "unengaged")
        us = duration_us(raw["unengaged"], f"{where}.unengaged")
        return Every((Did("delivered"), No(_engaged(us))))


def _engaged(us: int) -> Condition:
    return Some((Did("clicked", 1, us), Did("opened", 1, us), Did("converted", 1, us)))


def _shown(value: object) -> str:
    return repr(value)[:100]


def _text(value: object, where: str, empty: str = "") -> str:
    if not isinstance(value, str) or (not value.strip() and not (empty and value == "")) or len(value) > text_chars_max:
        raise BadCondition("Not a name", expected=f"1 to {text_chars_max} characters", got=_shown(value), where=where)
    return value.strip()


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 1e12:
        raise BadCondition("Not a number", expected="a number of at most 1e12", got=_shown(value), where=where)
    return float(value)


def _count(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= count_max:
        raise BadCondition("Not a count", expected=f"a whole number from 0 to {count_max}", got=_shown(value), where=where)
    return value


def _value(value: object, where: str) -> str | float | bool:
    if isinstance(value, bool):
        return value
    return _number(value, where) if isinstance(value, int | float) else _text(value, where)


# -- in words ------------------------------------------------------------------------------------------------------------

_SIGNS = {"above": "above", "below": "below", "at_least": "at least", "at_most": "at most", "is": "is"}


def words(condition: Condition, negated: bool = False) -> str:
    """Return a condition as a person would say it."""
    no = "not " if negated else ""
    match condition:
        case No(part):
            return words(part, not negated)
        case Every(parts) | Some(parts):
            word = " and " if isinstance(condition, Every) != negated else " or "
            said = [words(part, negated) for part in parts]
            return word.join(f"({one})" if isinstance(part, Every | Some) else one for one, part in zip(said, parts, strict=True))
        case Did(kind, n, within, campaign, name):
            what = f"{kind} `{name}`" if name else kind
            times = "" if n == 1 else f" at least {n} times" if not negated else f" {n} times"
            of = f" in campaign `{campaign}`" if campaign else ""
            when = f" within {duration_words(within)}" if within else ""
            return f"{'never ' if negated and not within and n == 1 else no}{what}{times}{of}{when}"
        case Revenue(sign, amount, within):
            return f"{no}revenue {_SIGNS[sign]} {amount:g}{f' within {duration_words(within)}' if within else ''}"
        case Score(sign, amount):
            return f"score {no}{_SIGNS[sign]} {amount:g}"
        case Attribute(name, "known", _):
            return f"`{name}` is {no}known"
        case Attribute(name, "is", value):
            return f"`{name}` is {no}{_said(value)}"
        case Attribute(name, sign, value):
            return f"`{name}` {no}{_SIGNS[sign]} {value:g}"
        case Provider(name):
            return f"{no}at {name}"
        case InSegment(name):
            return f"{no}in segment `{name}`"


def _said(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else value


def parts_of(condition: Condition):
    """Yield a condition and all that it is made of."""
    yield condition
    match condition:
        case Every(parts) | Some(parts):
            for part in parts:
                yield from parts_of(part)
        case No(part):
            yield from parts_of(part)
