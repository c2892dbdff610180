"""Hours are minutes added up: whatever came late or was taken back, a long window gives what its minutes give."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import apsw
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_store import Stopped, sample_config
from system import sandbox_config, write_log

from midflight.config import config_from
from midflight.log import Reader
from midflight.store import host_local, write
from midflight.store.folding import Asked
from midflight.store.host_local import Engine
from midflight.store.read import Part, Query, Store, View, Window
from midflight.store.schema import VERSION
from midflight.store.write import Changes, StoreWriter
from midflight.stream.edge import Edge
from midflight.stream.measures import DELAY_EDGES_S, DELAYS, MEASURES
from midflight.stream.names import Names
from midflight.stream.shard import Effects

HOUR = 29_000_000 // 60 * 60
MINUTES = 30 * 60
NOW_US = (HOUR + MINUTES) * 60_000_000
DIMENSIONS = ("campaign", "variant", "wave", "provider", "source", "plan", "age", "minute", "hour")
NOTHING = np.zeros(0, np.int64)
Cell = tuple[int, ...]  # campaign, minute, variant, wave, provider, source, segment


class Book:
    """What was written, cell by cell, and the store that it was written to."""

    def __init__(self, folder: Path) -> None:
        self.cells: dict[Cell, Counter[str]] = {}
        self.delays: Counter[tuple[Cell, int, int]] = Counter()
        self.names = Names()
        for kind in ("campaign", "variant", "wave", "source", "attribute:plan", "attribute:age"):
            for number in range(1, 4):
                self.names.id(kind, f"{kind} {number}")
        self.config = sample_config(folder)
        self.writer = StoreWriter(folder / "store.db")
        self.writer.start("a test")
        self.store = Store(self.config, Stopped(NOW_US))

    def close(self) -> None:
        self.store.close()
        self.writer.close()

    def commit(self, cells: dict[Cell, Counter[str]], delays: Counter[tuple[Cell, int, int]]) -> None:
        """Write one batch of changes as a shard tells them."""
        for key, counts in cells.items():
            self.cells.setdefault(key, Counter()).update(counts)
        self.delays.update(delays)
        effects = Effects(
            cell_key=packed(list(cells)),
            cell_value=np.array([[counts[m] for m in MEASURES] for counts in cells.values()], np.int64).reshape(-1, len(MEASURES)),
            delay_key=np.column_stack(
                [packed([key for key, _, _ in delays]), np.array([kind << 32 | bucket for _, kind, bucket in delays], np.uint64)]
            ),
            delay_n=np.array(list(delays.values()), np.int64),
            **dict.fromkeys(Effects._fields[4:], NOTHING),
        )
        self.writer.commit(Changes().add(Edge({}, [], self.names).prepare([]), [effects], [], Asked([], [])), self.names)

    def groups(self, query: Query) -> dict[tuple, tuple]:
        """Return what the store answers: measures and delays by key."""
        with self.store.view() as view:
            return {key: (sums.measures, sums.delays) for key, sums in view.groups(query).items()}

    def added_up(self, query: Query) -> dict[tuple, tuple]:
        """Return the same from every cell by itself."""
        out: dict[tuple, tuple[dict, dict]] = {}

        def place(cell: Cell) -> tuple[dict, dict]:
            key = tuple(value_of(cell, dimension) for dimension in query.by)
            return out.setdefault(key, (dict.fromkeys(MEASURES, 0), {}))

        for cell, counts in self.cells.items():
            if asked_for(cell, query):
                measures = place(cell)[0]
                for name, n in counts.items():
                    measures[name] += n
        for (cell, kind, bucket), n in self.delays.items():
            if asked_for(cell, query):
                curves = place(cell)[1]
                curves.update((k, [0] * (len(DELAY_EDGES_S) + 1)) for k in DELAYS if k not in curves)
                curves[DELAYS[kind]][bucket] += n
        return out


def packed(cells: list[Cell]) -> np.ndarray:
    keys = [
        (campaign << 32 | minute, variant << 48 | wave << 32 | provider << 16 | source, segment)
        for campaign, minute, variant, wave, provider, source, segment in cells
    ]
    return np.array(keys, np.uint64).reshape(-1, 3)


def value_of(cell: Cell, dimension: str) -> int:
    campaign, minute, variant, wave, provider, source, segment = cell
    return {
        "campaign": campaign, "minute": minute, "hour": minute - minute % 60, "variant": variant, "wave": wave, "provider": provider,
        "source": source, "plan": segment % 256, "age": segment // 256,
    }[dimension]  # fmt: skip


def asked_for(cell: Cell, query: Query) -> bool:
    inside = not query.window.bounded or query.window.first <= cell[1] <= query.window.last
    wanted: dict[str, set[int]] = {} if query.campaign is None else {"campaign": {number(query.campaign)}}
    for dimension, name in query.where:
        wanted.setdefault(dimension, set()).add(number(name))
    return inside and all(value_of(cell, dimension) in numbers for dimension, numbers in wanted.items())


def number(name: str) -> int:
    return int(name[-1:] or 0)


def filled(folder: Path, seed: int) -> Book:
    """Write fifty batches: new counts near the present, and what earlier ones counted, taken back and put elsewhere."""
    rng = random.Random(seed)
    book = Book(folder)
    for batch in range(50):
        cells: dict[Cell, Counter[str]] = {}
        delays: Counter[tuple[Cell, int, int]] = Counter()
        for _ in range(rng.randrange(1, 60)):
            # Campaign 0 lives long, 2 for some minutes; many events come at the turn of an hour, some come late.
            campaign = rng.randrange(3)
            minute = HOUR + batch * MINUTES // 50 + rng.choice((0, 1, -1, 59, 60, rng.randrange(70), -rng.randrange(600)))
            if campaign == 2:
                minute = HOUR + 700 + minute % 25
            place = (rng.randrange(3), rng.randrange(3), rng.randrange(1, 4), rng.randrange(1, 3), rng.choice((0, 1, 2, 258, 769)))
            cell = (campaign, minute, *place)
            counts = cells.setdefault(cell, Counter())
            for name in rng.sample(MEASURES, rng.randrange(1, 5)):
                counts[name] += rng.randrange(1, 2_000_000 if name == "revenue_micros" else 5)
            if rng.random() < 0.4:
                delays[cell, rng.randrange(3), rng.randrange(len(DELAY_EDGES_S) + 1)] += 1
        for cell in rng.sample(sorted(book.cells), min(len(book.cells), 8)):
            # A verdict changes, or an earlier event turns out to be the first: the same counts, another minute.
            moved = Counter(book.cells[cell])
            other = (cell[0], cell[1] + (0 if cell[0] == 2 else rng.choice((-61, -1, 1, 30))), *cell[2:])
            cells.setdefault(cell, Counter()).subtract(moved)
            cells.setdefault(other, Counter()).update(moved)
        book.commit(cells, delays)
    return book


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Book]:
    book = filled(tmp_path_factory.mktemp("book"), 5)
    yield book
    book.close()


def window(first: int, minutes: int) -> Window:
    return Window("custom", HOUR + first, HOUR + first + minutes - 1)


EVER = Window("all", 0, HOUR + MINUTES)
windows = st.one_of(
    st.just(EVER),
    st.builds(window, st.integers(-700, MINUTES + 100), st.integers(1, MINUTES + 900)),
    st.builds(window, st.integers(-2, 31).map(lambda hour: 60 * hour), st.sampled_from((59, 60, 61, 119, 120, 180, 1440))),
)
queries = st.builds(
    Query,
    window=windows,
    campaign=st.sampled_from((None, "", "campaign 1", "campaign 2", "campaign 3")),
    by=st.lists(st.sampled_from(DIMENSIONS), unique=True, max_size=3).map(tuple),
    where=st.sampled_from(((), (("variant", "variant 1"),), (("wave", "wave 1"), ("wave", "wave 2"), ("plan", "attribute:plan 1")))),
    metrics=st.just(()),
    delays=st.just(DELAYS),
)


# -- the answers ---------------------------------------------------------------------------------------------------------


@given(query=queries)
def test_any_window_is_its_minutes_added_up(book: Book, query: Query) -> None:
    """Every measure and delay bucket of any window, dimensions and conditions is exactly that of a plain addition of minutes."""
    assert book.groups(query) == book.added_up(query)


@pytest.mark.parametrize("seed", range(3))
def test_other_books_agree_too(tmp_path: Path, seed: int) -> None:
    """The same for books of other seeds, in a few hundred windows each."""
    book = filled(tmp_path, seed)
    assert wrong_answers(book) == 0
    book.close()


def wrong_answers(book: Book, tries: int = 200) -> int:
    """Ask about random windows; return how many answers differ from a plain addition."""
    rng = random.Random(11)
    wrong = 0
    for _ in range(tries):
        query = Query(
            window=rng.choice((EVER, window(rng.randrange(-100, MINUTES), rng.randrange(1, MINUTES)))),
            campaign=rng.choice((None, "", "campaign 1", "campaign 2")),
            by=tuple(rng.sample(DIMENSIONS, rng.randrange(3))),
            metrics=(),
            delays=DELAYS,
        )
        wrong += book.groups(query) != book.added_up(query)
    return wrong


def test_hours_that_are_cut_wrongly_are_caught(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a reader that takes whole hours where the window has a part of them gives other answers."""

    def generous(self: View, query: Query) -> list[Part]:
        return [Part("hour", query.window.first // 60 * 60, query.window.last // 60 * 60)]

    monkeypatch.setattr(View, "_parts", generous)
    query = Query(window=window(30, 200), by=("variant",), metrics=())
    assert book.groups(query) != {key: (measures, {}) for key, (measures, _) in book.added_up(query).items()}
    monkeypatch.undo()
    assert book.groups(query) == {key: (measures, {}) for key, (measures, _) in book.added_up(query).items()}


def only_the_first(key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum nothing: of the minutes of an hour, take one."""
    key = key.copy()
    key[:, 0] -= (key[:, 0] & np.uint64(0xFFFFFFFF)) % np.uint64(60)
    found, first = np.unique(key, axis=0, return_index=True)
    return found, value[first]


def nothing_taken_back(key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave corrections out."""
    return right_way(key, np.maximum(value, 0))


right_way = write.by_hour


@pytest.mark.parametrize("broken", [only_the_first, nothing_taken_back])
def test_hours_that_are_summed_wrongly_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken) -> None:
    """The control: an engine that forgets minutes, or corrections, writes hours that give other answers."""
    monkeypatch.setattr(write, "by_hour", broken)
    book = filled(tmp_path, 5)
    assert wrong_answers(book, tries=40) > 0
    book.close()


@pytest.mark.parametrize("step", ["hour", "minute"])
def test_a_series_is_its_minutes_added_up(book: Book, step: str) -> None:
    """Each point of a line has the sum of its minutes that are in the window; the first and the last hour may be cut."""
    query = Query(window=window(-45, 400), campaign="campaign 1", by=("variant",), measures=("delivered", "opens"), metrics=())
    with book.store.view() as view:
        answer = view.series(query, step)
    asked = Query(window=query.window, campaign="campaign 1", by=("variant", step))
    sums = book.added_up(asked)
    size = 60 if step == "hour" else 1
    ticks = range((HOUR - 45) // size * size, HOUR + 355, size)
    assert len(answer["times"]) == len(ticks)
    for line in answer["series"]:
        for name in ("delivered", "opens"):
            wanted = [sums.get((number(line["variant"]), tick), ({name: 0},))[0][name] for tick in ticks]
            assert line["values"][name] == wanted


def test_a_long_window_reads_no_minute_inside_of_its_hours(tmp_path: Path) -> None:
    """Answers stay the same without the minutes that whole hours stand for; the control, a window of minutes, does not."""
    book = filled(tmp_path, 5)
    inside = (HOUR + 60, HOUR + 60 * 20 - 1)
    whole = Query(window=window(50, 60 * 20), by=("campaign", "provider", "hour"), metrics=(), delays=DELAYS)
    short = Query(window=window(300, 45), by=("campaign",), metrics=())
    before = book.groups(whole), book.groups(short)
    for table in ("cells", "delays"):
        book.writer.db.execute(f"DELETE FROM {table} WHERE minute BETWEEN ? AND ?", inside)
    assert book.groups(whole) == before[0] == book.added_up(whole)
    assert book.groups(short) != before[1]
    book.close()


# -- the engine ----------------------------------------------------------------------------------------------------------

SAME_HOURS = """SELECT campaign, {time} / 60 AS hour, variant, wave, provider, source, segment, {more}
    FROM {table} GROUP BY campaign, hour, variant, wave, provider, source, segment{kind} ORDER BY 1, 2, 3, 4, 5, 6, 7, 8, 9"""


def hours_and_minutes(folder: Path) -> tuple[list, list]:
    """Return what a store has by hour and what its minutes add up to."""
    with apsw.Connection(str(folder / "store.db"), flags=apsw.SQLITE_OPEN_READONLY) as db:
        sums = ", ".join(f"sum({m})" for m in MEASURES)
        found = []
        for time, cells, delays in (("hour", "hours", "hour_delays"), ("minute", "cells", "delays")):
            rows = db.execute(SAME_HOURS.format(time=time, more=sums, table=cells, kind="")).fetchall()
            curves = SAME_HOURS.format(time=time, more="kind, bucket, sum(n)", table=delays, kind=", kind, bucket")
            found.append(rows + db.execute(curves).fetchall())
    db.close()
    return found[0], found[1]


def folded(log: Path, folder: Path, shards: int, bytes_max: int) -> tuple[list, list]:
    config, _ = sandbox_config({}, 3, str(folder))
    with Reader(log) as reader:
        engine = Engine(config_from(config | {"shards": shards}), reader)
        while engine.step(bytes_max):
            pass
        engine.close()
    return hours_and_minutes(folder)


def test_the_engines_hours_are_its_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A game with late, repeated and moved events: hours equal minutes for any cut and any shards; the broken engine's do not."""
    write_log(tmp_path / "log")
    for shards, bytes_max in ((1, 8 << 20), (3, 20_000)):
        hours, minutes = folded(tmp_path / "log", tmp_path / f"data-{shards}", shards, bytes_max)
        assert len(minutes) > 100
        assert hours == minutes
    monkeypatch.setattr(write, "by_hour", nothing_taken_back)
    # What is put in and taken out before one commit never gets there.
    monkeypatch.setattr(host_local, "batches_a_commit", 1)
    hours, minutes = folded(tmp_path / "log", tmp_path / "broken", 1, 20_000)
    assert hours != minutes


def test_a_store_of_another_version_counts_as_none(tmp_path: Path) -> None:
    """Between an update and the engine's first start nobody is told half of the numbers."""
    book = filled(tmp_path, 5)
    with book.store.view() as view:
        assert view.present
    book.writer.db.execute("UPDATE meta SET value = ? WHERE key = 'version'", (VERSION - 1,))
    with Store(book.config, Stopped(NOW_US)).view() as view:
        assert not view.present
        assert view.groups(Query(window=EVER, by=("variant",))) == {}
    book.close()


# -- dead letters --------------------------------------------------------------------------------------------------------


def test_dead_letters_are_found_by_source_and_state(book: Book) -> None:
    """Any filter, page by page, gives what a look at every letter gives; counts are of those that wait."""
    rng = random.Random(2)
    letters = [(rng.randrange(200), item, f"s{rng.randrange(4)}", rng.randrange(3)) for item in range(300)]
    with book.writer.db as db:
        db.executemany("INSERT INTO dead VALUES (?, ?, ?, 'reason', '', x'00', 1, ?)", letters)
    newest = sorted(letters, reverse=True)
    with book.store.view() as view:
        for source in (None, "s1", "nobody"):
            for state in (None, 0, 2):
                wanted = [p[:2] for p in newest if source in (None, p[2]) and state in (None, p[3])]
                found, after = [], None
                while True:
                    page, following = view.dead(source=source, state=state, limit=17, after=after)
                    found += [(letter["position"], letter["item"]) for letter in page]
                    if following is None:
                        break
                    after = tuple(int(n) for n in following.split("."))
                assert found == wanted
        waiting = Counter(source for _, _, source, state in letters if state != 1)
        assert view.dead_counts() == waiting
        assert view.dead_counts(most=5) == dict.fromkeys(waiting, 5)
