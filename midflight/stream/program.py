"""Definitions of segments and rules become arrays of numbers that compiled code runs for each person.

A segment is one expression over atoms in postfix order. An atom asks one thing of a person; its truth may end or begin by time alone.
A watch is what a rule waits for in a person: an event, or coming into a segment or leaving it; then for some time that something else does
not happen; and a condition that has to hold at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
import numpy as np

from ..events import KINDS
from ..kit.errors import MidflightError, nearest
from .conditions import Attribute, Condition, Did, Every, InSegment, No, Provider, Revenue, Score, Some
from .hashing import hash_text
from .providers import PROVIDERS
from .score import ended_kinds, steps_kind

segments_max = 1024
watches_max = 1024
code_max = 200_000
stack_max = 64

# Codes of an expression below 0; from 0 on they are atoms.
AND, OR, NOT, YES, NO = -1, -2, -3, -4, -5
# What an atom asks.
A_DID, A_REVENUE, A_SCORE, A_ATTRIBUTE, A_PROVIDER = range(5)
# How it compares.
ABOVE, BELOW, AT_LEAST, AT_MOST, IS_NUMBER, IS_TEXT, KNOWN = range(7)
_SIGNS = {"above": ABOVE, "below": BELOW, "at_least": AT_LEAST, "at_most": AT_MOST}
# What a watch begins with.
ON_EVENT, ON_ENTER, ON_LEAVE = range(3)

ATOM = np.dtype(
    [
        ("within", "i8"),  # us, 0 = ever
        ("name", "u8"),  # hash of a tracked event's name
        ("text", "u8"),
        ("number", "f8"),
        ("campaign", "u4"),
        ("attribute", "u4"),
        ("n", "i4"),
        ("ask", "u1"),
        ("kind", "u1"),
        ("sign", "u1"),
        ("provider", "u2"),
    ],
    align=True,
)
WATCH = np.dtype(
    [
        ("wait", "i8"),
        ("name", "u8"),
        ("unless_name", "u8"),
        ("campaign", "u4"),
        ("unless_campaign", "u4"),
        ("where", "i4"),  # expression, -1 = none
        ("segment", "i4"),
        ("unless", "i2"),  # kind, -1 = none
        ("on", "u1"),
        ("kind", "u1"),
    ],
    align=True,
)


class Program(NamedTuple):
    """All definitions at one position of the log, ready to run."""

    atoms: np.ndarray  # ATOM [n]
    code: np.ndarray  # int32
    start: np.ndarray  # int32 [expressions + 1]; the first ones are the segments', in their order
    segments: int
    watches: np.ndarray  # WATCH [n]
    kept: int  # so many of the atoms are the segments', the first ones: whether they are true is kept for each person
    # Atoms that ask for the same times have the same query.
    query: np.ndarray  # int32 [atoms]
    # atom -> segments that it is part of: rows from needs[atom] to needs[atom + 1]
    needs: np.ndarray  # int32 [kept + 1]
    needs_segment: np.ndarray  # int32
    # kind -> kept atoms that an event of it may change: rows from of_kind[kind] to of_kind[kind + 1]
    of_kind: np.ndarray  # int32 [kinds + 1]
    of_kind_atom: np.ndarray  # int32
    every: np.ndarray  # int32, all kept atoms
    by_acts: np.ndarray  # int32, kept atoms that ask for what people did
    by_attribute: np.ndarray  # int32, kept atoms that ask for attributes
    by_time: np.ndarray  # int32, kept atoms that time alone may change
    rises: np.ndarray  # bool [kept], whether time alone may make it true
    # segment -> atoms of it that time alone may change: rows from timed[s] to timed[s + 1]
    timed: np.ndarray  # int32 [segments + 1]
    timed_atom: np.ndarray  # int32
    # kept atom -> what has to hold for its change by time to matter to any segment, one row for each place that it has in one, from
    # matters[atom] to matters[atom + 1]: bits of atoms that must not be false, and of atoms that must not be true; see `_matters_of`.
    matters: np.ndarray  # int32 [kept + 1]
    matters_true: np.ndarray  # uint64 [n, words]
    matters_false: np.ndarray  # uint64 [n, words]
    by_provider: np.ndarray  # int32, kept atoms that ask for the mailbox provider
    # Of somebody of whom nothing is known, not even the provider: the bits of the kept atoms, and of the segments that he is in.
    nobody: np.ndarray  # uint64
    nobody_in: np.ndarray  # uint64
    on_kind: np.ndarray  # int32 [kinds + 1]; on_kind_watch: the watches that an event of the kind may begin
    on_kind_watch: np.ndarray
    # segment -> watches that begin with coming into it or leaving it: rows from on_segment[s] to on_segment[s + 1]
    on_segment: np.ndarray  # int32 [segments + 1]
    on_segment_watch: np.ndarray  # int32


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """What a rule waits for in a person."""

    on: str  # "event", "enter", "leave"
    kind: str = ""
    campaign: str = ""
    name: str = ""
    segment: str = ""
    wait_us: int = 0
    unless: Did | None = None
    where: Condition | None = None


class Circle(MidflightError):
    """Segments that are made of each other."""

    code = "bad_condition"


def name_key(name: str) -> int:
    """Return the key of a tracked event's name."""
    return hash_text("name " + name)[0] if name else 0


def value_of(value: object) -> tuple[float, int]:
    """Return an attribute's value as (number, key of its text); not a number where it is none. Text is compared without regard to case."""
    if isinstance(value, bool):
        return float("nan"), hash_text("yes" if value else "no")[0]
    if isinstance(value, int | float):
        number = float(value) if abs(value) < 1e300 else float("inf")
        return number, hash_text(f"{number:g}")[0]
    text = str(value).strip().casefold()[:200]
    text = {"true": "yes", "false": "no"}.get(text, text)
    try:
        number = float(text) if text[:1].isdigit() or text[:1] in "+-." else float("nan")
    except ValueError:
        number = float("nan")
    return number, hash_text(text)[0]


def whole(segments: dict[str, Condition], condition: Condition, within: tuple[str, ...] = ()) -> Condition:
    """Return a condition with the segments that it names put in. Raises Circle, or MidflightError for a segment that is not there."""
    match condition:
        case Every(parts):
            return Every(tuple(whole(segments, part, within) for part in parts))
        case Some(parts):
            return Some(tuple(whole(segments, part, within) for part in parts))
        case No(part):
            return No(whole(segments, part, within))
        case InSegment(name):
            if name in within:
                raise Circle("Segments are made of each other", got=" -> ".join((*within, name)), todo="Take one out of the circle")
            if name not in segments:
                raise MidflightError(f"Unknown segment `{name}`", todo=nearest(name, segments))
            return whole(segments, segments[name], (*within, name))
    return condition


class Compiler:
    """Builds a program. ``number(kind, name)`` gives the numbers of campaigns and attributes."""

    def __init__(self, number: Callable[[str, str], int]) -> None:
        self.number = number
        self.atoms: dict[tuple, int] = {}
        self.code: list[int] = []
        self.start: list[int] = [0]

    def expression(self, condition: Condition) -> int:
        """Add an expression; return its number."""
        if self._depth(condition) > stack_max or len(self.code) > code_max:
            raise MidflightError("A definition is too large", expected=f"at most {code_max:,} steps in all")
        self._emit(condition)
        self.start.append(len(self.code))
        return len(self.start) - 2

    def _depth(self, condition: Condition) -> int:
        match condition:
            case Every(parts) | Some(parts):
                return 1 + max(map(self._depth, parts))
            case No(part):
                return self._depth(part)
        return 1

    def _emit(self, condition: Condition) -> None:
        match condition:
            case Every(parts) | Some(parts):
                self._emit(parts[0])
                for part in parts[1:]:
                    self._emit(part)
                    self.code.append(AND if isinstance(condition, Every) else OR)
            case No(part):
                self._emit(part)
                self.code.append(NOT)
            case _:
                self.code.append(self.atoms.setdefault(self._atom(condition), len(self.atoms)))

    def _atom(self, condition: Condition) -> tuple:
        """Return an atom's fields in the order of ATOM."""
        match condition:
            case Did(kind, n, within, campaign, name):
                of = self.number("campaign", campaign) if campaign else 0
                return within, name_key(name), 0, 0.0, of, 0, n, A_DID, KINDS.index(kind), 0, 0
            case Revenue(sign, amount, within):
                return within, 0, 0, amount, 0, 0, 0, A_REVENUE, KINDS.index("converted"), _SIGNS[sign], 0
            case Score(sign, amount):
                return 0, 0, 0, amount, 0, 0, 0, A_SCORE, 0, _SIGNS[sign], 0
            case Attribute(name, sign, value):
                number, text = value_of(value)
                if sign == "is":
                    code = IS_NUMBER if isinstance(value, float) else IS_TEXT
                else:
                    code = _SIGNS.get(sign, KNOWN)
                number = number if code < IS_TEXT else 0.0
                return 0, 0, text if code == IS_TEXT else 0, number, 0, self.number("trait", name), 0, A_ATTRIBUTE, 0, code, 0
            case Provider(name):
                return 0, 0, 0, 0.0, 0, 0, 0, A_PROVIDER, 0, 0, PROVIDERS.index(name)
        raise AssertionError(condition)

    def places(self, condition: Condition) -> Iterator[tuple[int, frozenset[tuple[int, bool]]]]:
        """Yield for each place of an atom in an expression that was added: the atom, and the atoms beside it on its way up with what they
        must be for the expression to change with it. Of what is beside it only plain atoms are given."""
        match condition:
            case Every(parts) | Some(parts):
                for number, part in enumerate(parts):
                    beside = [self._plain(other) for other in parts[:number] + parts[number + 1 :]]
                    wanted = {(atom, is_ == isinstance(condition, Every)) for atom, is_ in filter(None, beside)}
                    for atom, above in self.places(part):
                        yield atom, above | wanted
            case No(part):
                yield from self.places(part)
            case _:
                yield self.atoms[self._atom(condition)], frozenset()

    def _plain(self, condition: Condition) -> tuple[int, bool] | None:
        """Return a condition that is one atom, or not one atom, as (atom, what it is where the condition is true); None for others."""
        if isinstance(condition, No):
            inner = self._plain(condition.part)
            return inner and (inner[0], not inner[1])
        return None if isinstance(condition, Every | Some) else (self.atoms[self._atom(condition)], True)

    def atoms_of(self, expression: int) -> list[int]:
        return sorted({code for code in self.code[self.start[expression] : self.start[expression + 1]] if code >= 0})


def compiled(segments: dict[str, Condition], watches: list[Watch], number: Callable[[str, str], int]) -> Program:
    """Return the program of segments and watches, in this order. Raises MidflightError."""
    if len(segments) > segments_max or len(watches) > watches_max:
        raise MidflightError("Too many definitions", expected=f"at most {segments_max} segments and {watches_max} rules about people")
    compiler = Compiler(number)
    names = list(segments)
    wholes = [whole(segments, segments[name], (name,)) for name in names]
    for condition in wholes:
        compiler.expression(condition)
    kept = len(compiler.atoms)
    rows = np.zeros(len(watches), WATCH)
    for row, watch in zip(rows, watches, strict=True):
        row["on"] = ("event", "enter", "leave").index(watch.on)
        row["kind"] = KINDS.index(watch.kind) if watch.kind else 0
        row["campaign"] = number("campaign", watch.campaign) if watch.campaign else 0
        row["name"], row["wait"] = name_key(watch.name), watch.wait_us
        row["segment"] = names.index(watch.segment) if watch.segment else -1
        row["where"] = compiler.expression(whole(segments, watch.where)) if watch.where is not None else -1
        row["unless"] = -1
        if watch.unless is not None:
            row["unless"] = KINDS.index(watch.unless.kind)
            row["unless_campaign"] = number("campaign", watch.unless.campaign) if watch.unless.campaign else 0
            row["unless_name"] = name_key(watch.unless.name)
    atoms = np.array(list(compiler.atoms), ATOM) if compiler.atoms else np.zeros(0, ATOM)
    return _indexed(compiler, atoms, kept, wholes, rows)


def _indexed(compiler: Compiler, atoms: np.ndarray, kept: int, wholes: list[Condition], watches: np.ndarray) -> Program:
    segments = len(wholes)
    scores = {*steps_kind.tolist(), *ended_kinds.tolist()}
    of_kind: list[list[int]] = [[] for _ in KINDS]
    needs: list[list[int]] = [[] for _ in range(kept)]
    for segment in range(segments):
        for atom in compiler.atoms_of(segment):
            needs[atom].append(segment)
    for number, atom in enumerate(atoms[:kept]):
        for kind in scores if atom["ask"] == A_SCORE else [int(atom["kind"])] if atom["ask"] <= A_REVENUE else []:
            of_kind[kind].append(number)
    ask, within = atoms["ask"][:kept], atoms["within"][:kept]
    timed = ((ask <= A_REVENUE) & (within > 0)) | (ask == A_SCORE)
    # Revenue becomes more, too, when money that was given back is so long ago.
    rises = (ask == A_REVENUE) & timed | (ask == A_SCORE) & np.isin(atoms["sign"][:kept], (BELOW, AT_MOST))
    matters = _matters_of(compiler, wholes, timed, rises)
    nobody = [_of_nobody(atom) for atom in atoms[:kept]]
    nobody_in = [_held(compiler.code[compiler.start[segment] : compiler.start[segment + 1]], nobody) for segment in range(segments)]
    queries: dict[tuple, int] = {}
    query = [queries.setdefault((a["ask"], a["kind"], a["campaign"], a["name"], a["n"]), len(queries)) for a in atoms]
    on_kind = [[w for w, watch in enumerate(watches) if watch["on"] == ON_EVENT and watch["kind"] == kind] for kind in range(len(KINDS))]
    on_segment = [np.flatnonzero((watches["on"] != ON_EVENT) & (watches["segment"] == segment)).tolist() for segment in range(segments)]
    return Program(
        atoms=atoms,
        code=np.array(compiler.code, np.int32),
        start=np.array(compiler.start, np.int32),
        segments=segments,
        watches=watches,
        kept=kept,
        query=np.array(query, np.int32),
        needs=_starts(needs),
        needs_segment=_joined(needs),
        of_kind=_starts(of_kind),
        of_kind_atom=_joined(of_kind),
        every=np.arange(kept, dtype=np.int32),
        by_acts=np.flatnonzero(ask <= A_SCORE).astype(np.int32),
        by_attribute=np.flatnonzero(ask == A_ATTRIBUTE).astype(np.int32),
        by_time=np.flatnonzero(timed).astype(np.int32),
        rises=rises,
        timed=_starts(timed_of := [[atom for atom in compiler.atoms_of(segment) if timed[atom]] for segment in range(segments)]),
        timed_atom=_joined(timed_of),
        matters=_starts(matters),
        matters_true=_words([true for rows in matters for true, _ in rows], kept),
        matters_false=_words([false for rows in matters for _, false in rows], kept),
        by_provider=np.flatnonzero(ask == A_PROVIDER).astype(np.int32),
        nobody=_bits(nobody),
        nobody_in=_bits(nobody_in),
        on_kind=_starts(on_kind),
        on_kind_watch=_joined(on_kind),
        on_segment=_starts(on_segment),
        on_segment_watch=_joined(on_segment),
    )


def _matters_of(
    compiler: Compiler, wholes: list[Condition], timed: np.ndarray, rises: np.ndarray
) -> list[list[tuple[frozenset[int], frozenset[int]]]]:
    """Return for each kept atom when its change by time may matter, once for each of its places: the atoms none of which may be false, and
    those none of which may be true.

    Time alone makes nothing true that somebody did, so an atom of that kind beside it that has to be true and is not keeps the segment
    what it is, whatever else time changes; and so does one that has to be false, is true, and does not end by time. ``rises`` are those
    of the ``timed`` that time can make true; they always matter, because nothing else looks at them.
    """
    found: list[set] = [set() for _ in timed]
    for condition in wholes:
        for atom, beside in compiler.places(condition):
            if rises[atom]:
                found[atom].add((frozenset(), frozenset()))
            elif timed[atom]:
                others = [(other, is_) for other, is_ in beside if other != atom]
                true = frozenset(other for other, is_ in others if is_ and not rises[other])
                false = frozenset(other for other, is_ in others if not is_ and not timed[other])
                found[atom].add((true, false))
    return [sorted(rows, key=lambda row: (len(row[0]) + len(row[1]), sorted(row[0]), sorted(row[1]))) for rows in found]


def _of_nobody(atom: np.void) -> bool:
    """Whether an atom is true of somebody of whom nothing is known."""
    if atom["ask"] not in (A_REVENUE, A_SCORE):
        return False
    number = float(atom["number"])
    return {ABOVE: 0 > number, BELOW: 0 < number, AT_LEAST: 0 >= number, AT_MOST: 0 <= number}[int(atom["sign"])]


def _held(code: list[int], truths: list[bool]) -> bool:
    """Whether an expression is true with these atoms."""
    stack: list[bool] = []
    for one in code:
        if one >= 0:
            stack.append(truths[one])
        elif one == NOT:
            stack.append(not stack.pop())
        else:
            right, left = stack.pop(), stack.pop()
            stack.append((left and right) if one == AND else (left or right))
    return stack[0]


def _bits(truths: list[bool]) -> np.ndarray:
    words = np.zeros((len(truths) >> 6) + 1, np.uint64)
    for number in np.flatnonzero(truths).tolist():
        words[number >> 6] |= np.uint64(1) << np.uint64(number & 63)
    return words


def _words(rows: list[frozenset[int]], kept: int) -> np.ndarray:
    """Return sets of atoms as bits, [sets, words]."""
    words = np.zeros((len(rows), (kept >> 6) + 1), np.uint64)
    for row, atoms in enumerate(rows):
        for atom in atoms:
            words[row, atom >> 6] |= np.uint64(1) << np.uint64(atom & 63)
    return words


def _starts(rows: list[list[int]]) -> np.ndarray:
    return np.cumsum([0, *map(len, rows)]).astype(np.int32)


def _joined(rows: list[list[int]]) -> np.ndarray:
    return np.array([one for row in rows for one in row], np.int32)


def atoms_before(before: Program, now: Program) -> np.ndarray:
    """Return for each kept atom its number among those that were kept before, or -1."""
    places = {atom.item(): number for number, atom in enumerate(before.atoms[: before.kept])}
    return np.array([places.get(atom.item(), -1) for atom in now.atoms[: now.kept]], np.int64)
