"""Whom to bother, and when: what stands now becomes notices, each once, again while it lasts, and once more when it is over; pure.

A condition is told when it begins (once it has stood as long as its patience wants), when it becomes worse, again after ``repeat_us``,
and when it is over. No more than ``per_hour`` notices go out in an hour, the most serious first; what is left over is told together, in
one more.
Time here is only what has passed while somebody looked: a wall clock that jumps makes nothing old, and repeats nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

minute_us = 60_000_000
hour_us = 60 * minute_us
standing_max = 500  # conditions at a time; of more only those are new that take the place of others
gather_us = minute_us  # so long what is told together is gathered
parts_max = 10  # of what is told together, that are named
WARNING, SERIOUS = 1, 2
BEGUN, WORSE, LASTS, OVER, MORE = "begun", "worse", "lasts", "over", "more"
_ORDER = (BEGUN, WORSE, LASTS, OVER)


class Settings(msgspec.Struct, kw_only=True, frozen=True):
    """How often somebody is told."""

    repeat_us: int = 12 * hour_us
    per_hour: int = 20


class Condition(msgspec.Struct, kw_only=True, frozen=True):
    """Something that stands now. ``key`` names it for as long as it does, ``origin`` says who has seen it.

    ``text`` says what, ``why`` what it rests on and what to do; ``page`` is the path of the console's page with the evidence. It is told
    once it has stood for ``patience_us``, and is over once nothing was seen of it for ``quiet_us``. Of one that is not ``lasting``, only
    that it happened is told, and neither that it still stands nor its end.
    """

    key: str
    origin: str
    level: int
    text: str
    why: str = ""
    page: str = "/"
    patience_us: int = 0
    quiet_us: int = 0
    lasting: bool = True


class Standing(msgspec.Struct, kw_only=True, frozen=True):
    """A condition, since when it stands and when it was seen last, and what was told of it: its highest level (0: nothing), and when."""

    condition: Condition
    since_us: int
    seen_us: int
    told_level: int = 0
    told_us: int = 0


class Notice(msgspec.Struct, kw_only=True, frozen=True):
    """Something to tell of one condition; or, with `more`, how many things are told together, and the first of them."""

    what: str
    about: Condition | None = None
    lasted_us: int = 0
    count: int = 1
    parts: tuple[Notice, ...] = ()

    @property
    def key(self) -> str:
        return self.about.key if self.about else ""

    @property
    def level(self) -> int:
        return self.about.level if self.about else max(part.level for part in self.parts)


class State(msgspec.Struct, kw_only=True, frozen=True):
    """All that is remembered: the time that has passed, what stands, when something was told within an hour, and what waits for room."""

    at_us: int = 0
    standing: dict[str, Standing] = {}
    told_us: tuple[int, ...] = ()  # of single notices
    more_us: int = -hour_us  # of the last notice that told several
    waits_us: int = -1  # since when something waits for room; below 0 nothing does


def step(
    state: State, seen: Mapping[str, Iterable[Condition] | None], passed_us: int, settings: Settings | None = None
) -> tuple[State, list[Notice]]:
    """Return the state after a look, and what is to be told now. ``seen`` is what stands by origin; None, or no such origin: it is not
    known now, and what it saw before goes on."""
    settings = settings or Settings()
    now_us = state.at_us + max(0, passed_us)
    present = {one.key: one for found in seen.values() for one in sorted(found or (), key=lambda one: one.level)}
    known = {origin for origin, found in seen.items() if found is not None}
    standing = _looked(state.standing, present, known, now_us)
    due = _due(standing, present, now_us, settings)
    told_us = tuple(at_us for at_us in state.told_us if now_us - at_us < hour_us)
    room = max(0, settings.per_hour - len(told_us))
    alone, rest = due[:room], due[room:]
    more_us, waits_us = state.more_us, -1
    for notice in alone:
        _mark(standing, notice, now_us)
    told_us += (now_us,) * len(alone)
    if rest:
        waits_us = state.waits_us if state.waits_us >= 0 else now_us
        if now_us - waits_us >= gather_us and now_us - more_us >= hour_us:
            for notice in rest:
                _mark(standing, notice, now_us)
            alone = [*alone, Notice(what=MORE, count=len(rest), parts=tuple(rest[:parts_max]))]
            more_us, waits_us = now_us, -1
    return State(at_us=now_us, standing=standing, told_us=told_us, more_us=more_us, waits_us=waits_us), alone


def _looked(before: dict[str, Standing], present: dict[str, Condition], known: set[str], now_us: int) -> dict[str, Standing]:
    """Return what stands after a look; what is gone and nobody was told of is forgotten."""
    standing: dict[str, Standing] = {}
    for key, one in before.items():
        if key in present:
            standing[key] = msgspec.structs.replace(one, condition=present[key], seen_us=now_us)
        elif one.condition.origin not in known:
            # Nobody knows whether it is over.
            standing[key] = msgspec.structs.replace(one, seen_us=now_us)
        elif one.told_level and one.condition.lasting or now_us - one.seen_us < one.condition.quiet_us:
            standing[key] = one
    for key in sorted(present.keys() - before.keys(), key=lambda key: (-present[key].level, key)):
        if len(standing) < standing_max:
            standing[key] = Standing(condition=present[key], since_us=now_us, seen_us=now_us)
    return standing


def _due(standing: dict[str, Standing], present: dict[str, Condition], now_us: int, settings: Settings) -> list[Notice]:
    """Return what could be told now, in the order in which it is."""
    found: list[tuple[tuple, Notice]] = []
    for key, one in standing.items():
        what = _what(one, key in present, now_us, settings)
        if what:
            notice = Notice(what=what, about=one.condition, lasted_us=(one.seen_us if what == OVER else now_us) - one.since_us)
            rank = _ORDER.index(what)
            found.append(((max(rank, 1), -one.condition.level, one.since_us, key), notice))
    return [notice for _, notice in sorted(found, key=lambda pair: pair[0])]


def _what(one: Standing, present: bool, now_us: int, settings: Settings) -> str:
    """Return what is to be told of a condition now, or nothing."""
    condition = one.condition
    if not one.told_level:
        return BEGUN if present and now_us - one.since_us >= condition.patience_us else ""
    if present and condition.level > one.told_level:
        return WORSE
    if not condition.lasting:
        return ""
    if present:
        return LASTS if now_us - one.told_us >= settings.repeat_us else ""
    return OVER if now_us > one.seen_us and now_us - one.seen_us >= condition.quiet_us else ""


def _mark(standing: dict[str, Standing], notice: Notice, now_us: int) -> None:
    """Remember that something was told."""
    one = standing[notice.key]
    if notice.what == OVER:
        del standing[notice.key]
        return
    level = max(one.told_level, one.condition.level)
    standing[notice.key] = msgspec.structs.replace(one, told_level=level, told_us=now_us)
