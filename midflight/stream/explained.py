"""What is known of one person, in words that explain: every membership with its parts, true or not, and the engagement score.

It reads the same tables as the compiled conditions and is the second implementation of them: a test compares the two.
"""

from __future__ import annotations

from bisect import bisect_left

import msgspec
import numpy as np

from ..events import KINDS
from . import score as scoring
from .agents import MACHINE
from .conditions import Attribute, Condition, Did, Every, No, Provider, Revenue, Score, Some, words
from .facts import CLICK, OPEN, counts, is_bounce, what_of_kind
from .program import name_key, value_of
from .providers import PROVIDERS
from .shard import Shard
from .tables import NIL

_COMPARE = {"above": float.__gt__, "below": float.__lt__, "at_least": float.__ge__, "at_most": float.__le__}
shown_max = 500  # events of one person that are told, the latest


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a person. ``campaign`` is a number of the names, ``name`` the key of a tracked event's name."""

    at_us: int
    kind: str
    campaign: int = 0
    name: int = 0
    human: bool = True
    value_micros: int = 0


class Reason(msgspec.Struct, kw_only=True):
    """A condition in words, whether it is true, what there is to it, and the conditions that it is made of."""

    words: str
    true: bool
    detail: str = ""
    parts: list[Reason] = []


class Person(msgspec.Struct, kw_only=True):
    """All that a shard knows of a recipient. ``attributes`` is number of the name -> (number, key of the text)."""

    happened: list[Happened]
    attributes: dict[int, tuple[float, int]]
    provider: int
    member: np.ndarray  # bool by segment

    def times(self, did: Did, campaign: int = 0) -> list[int]:
        """Return when something happened as conditions count it, the earliest first."""
        name = name_key(did.name)
        return [
            one.at_us
            for one in self.happened
            if one.kind == did.kind and one.human and (not campaign or one.campaign == campaign) and (not name or one.name == name)
        ]


def person_of(shard: Shard, key: int) -> Person | None:
    """Return what a shard knows of the recipient with this key."""
    r = shard.row_of(key)
    return None if r < 0 else person_at(shard, r)


def person_at(shard: Shard, r: int) -> Person:
    """Return what a shard knows of the recipient in a row."""
    state, known = shard.state, shard.known
    row = state.recipients[r]
    happened = [*_of_messages(state, int(row["messages"])), *_conversions(state, int(row["conversions"])), *_acts(known, r)]
    attributes = {}
    a = int(known.persons[r]["attributes"])
    while a:
        one = known.attributes[a - 1]
        attributes[int(one["name"])] = (float(one["number"]), int(one["text"]))
        a = int(one["next"])
    bits = known.bits[r]
    member = np.array([bool(bits[s >> 6] >> np.uint64(s & 63) & np.uint64(1)) for s in range(shard.program.segments)], bool)
    return Person(happened=sorted(happened, key=lambda one: one.at_us), attributes=attributes, provider=int(row["provider"]), member=member)


def _of_messages(state, m: int):
    kinds = {int(what): KINDS[kind] for kind, what in enumerate(what_of_kind) if what >= 0}
    while m != NIL:
        message = state.messages[m]
        campaign = int(message["campaign"])
        for kind in ("sent", "delivered"):
            if message[kind] >= 0:
                yield Happened(at_us=int(message[kind]), kind=kind, campaign=campaign)
        n = int(message["nodes"])
        while n != NIL:
            node = state.nodes[n]
            what = int(node["what"])
            kind = "bounced" if is_bounce[what] else kinds.get(what, "unknown")
            human = what not in (OPEN, CLICK) or int(node["agent"]) != MACHINE
            yield Happened(at_us=int(node["at"]), kind=kind, campaign=campaign, human=human)
            n = int(node["next"])
        m = int(message["next"])


def _conversions(state, c: int):
    while c != NIL:
        one = state.conversions[c]
        if counts.py_func(state.conversions.view(np.recarray), c):
            yield Happened(at_us=int(one["at"]), kind="converted", value_micros=int(one["value"]))
        c = int(one["next"])


def _acts(known, r: int):
    a = int(known.persons[r]["acts"])
    while a:
        act = known.acts[a - 1]
        yield Happened(at_us=int(act["at"]), kind=KINDS[int(act["kind"])], name=int(act["name"]))
        a = int(act["next"])


class Explaining:
    """Explains conditions of one person at one time. ``number(kind, name)`` gives the numbers of campaigns and attributes, 0 for none."""

    def __init__(self, person: Person, now_us: int, number) -> None:
        self.person, self.now_us, self.number = person, now_us, number

    def explain(self, condition: Condition) -> Reason:
        """Return why a condition is true, or why not."""
        match condition:
            case Every(parts) | Some(parts):
                found = [self.explain(part) for part in parts]
                true = (all if isinstance(condition, Every) else any)(part.true for part in found)
                return Reason(words="all of" if isinstance(condition, Every) else "any of", true=true, parts=found)
            case No(part) if isinstance(part, Every | Some):
                found = self.explain(part)
                return Reason(words="not", true=not found.true, parts=[found])
            case No(part):
                found = self.explain(part)
                return Reason(words=words(condition), true=not found.true, detail=found.detail)
        true, detail = self._atom(condition)
        return Reason(words=words(condition), true=true, detail=detail)

    def happened(self, did: Did) -> bool:
        """Return whether a condition about events is true."""
        return self._did(did)[0]

    def score(self) -> tuple[int, list[tuple[int, str]]]:
        """Return the engagement score with its parts, as points and words."""
        return scoring.reasons(self.happened)

    def _did(self, did: Did) -> tuple[bool, list[int]]:
        campaign = self.number("campaign", did.campaign) if did.campaign else 0
        if did.campaign and not campaign:
            return did.at_least <= 0, []
        times = self.person.times(did, campaign)
        if did.within_us:
            times = times[bisect_left(times, self.now_us - did.within_us + 1) :]
        return len(times) >= did.at_least, times

    def _atom(self, condition: Condition) -> tuple[bool, str]:
        match condition:
            case Did():
                true, times = self._did(condition)
                return true, f"{len(times)} times, last {ago(self.now_us - times[-1])}" if times else "never"
            case Revenue(sign, amount, within):
                mine = [one for one in self.person.happened if one.kind == "converted" and (not within or self.now_us < one.at_us + within)]
                total = sum(one.value_micros for one in mine) / 1e6
                return _COMPARE[sign](total, amount), f"{total:,.2f}"
            case Score(sign, amount):
                score, _ = self.score()
                return _COMPARE[sign](float(score), amount), f"{score}"
            case Attribute(name, sign, value):
                found = self.person.attributes.get(self.number("trait", name))
                if found is None:
                    return False, "not known"
                if sign == "known":
                    return True, ""
                number, text = found
                if sign == "is":
                    return (number == value if isinstance(value, float) else text == value_of(value)[1]), ""
                return number == number and _COMPARE[sign](number, float(value)), "" if number != number else f"{number:g}"
            case Provider(name):
                return PROVIDERS[self.person.provider] == name, PROVIDERS[self.person.provider]
        raise AssertionError(condition)


def ago(us: int) -> str:
    """Return how long ago something was, in words."""
    for size, word in ((86_400_000_000, "day"), (3_600_000_000, "hour"), (60_000_000, "minute")):
        if us >= size:
            n = us // size
            return f"{n} {word}{'s' * (n != 1)} ago"
    return "just now"
