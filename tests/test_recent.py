"""Short windows slide by the second: what the store answers is what happened in exactly that many seconds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from midflight.config import config_from
from midflight.events import Event
from midflight.kit.clock import VirtualClock
from midflight.log import Reader, Record, Writer
from midflight.store import recent
from midflight.store.host_local import Engine
from midflight.store.read import Query, Store, window_of
from midflight.store.recent import Recent
from midflight.stream.tables import NEVER, in_minutes, in_seconds

START_US = 1_800_000_000_000_000
BUTTON = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/126.0 Safari/537.36"


class Life:
    """An engine over a log, with a clock that is moved by hand, and everything that was told to it."""

    def __init__(self, folder: Path, seed: int = 1, shards: int = 1) -> None:
        self.rng = random.Random(seed)
        self.clock = VirtualClock(START_US)
        self.config = config_from({"data": str(folder), "shards": shards, "sources": {"esp": {"kind": "sendgrid", "unsigned": True}}})
        self.writer = Writer.open(folder / "log", clock=self.clock, segment_bytes=1 << 16)
        self.reader = Reader(folder / "log")
        self.store = Store(self.config, self.clock)
        self.told: list[Event] = []
        self.engine = Engine(self.config, self.reader, clock=self.clock)

    def close(self) -> None:
        self.engine.close()
        self.store.close()
        self.reader.close()
        self.writer.close()

    def engine_cells(self) -> list[tuple]:
        """Return the minutes of a store that no engine has open."""
        with self.store.view() as view:
            return list(view.db.execute("SELECT * FROM cells ORDER BY 1, 2, 3, 4, 5, 6, 7"))

    def log(self, *events: Event) -> None:
        """Append events to the log; the engine is not told."""
        self.writer.append([Record("events", "esp", self.clock.now_us(), {}, msgspec.json.encode(list(events)), "")])
        self.told += events

    def opened(self, ago_s: float = 0.0, n: int = 1) -> list[Event]:
        return [self.event("opened", ago_s) for _ in range(n)]

    def event(self, kind: str, ago_s: float = 0.0) -> Event:
        number = len(self.told) + self.rng.randrange(1 << 60)
        who = f"p{self.rng.randrange(50)}@example.com"
        return Event(
            source="esp",
            event_id=f"e{number}",
            kind=kind,
            occurred_at_us=self.clock.now_us() - int(ago_s * 1_000_000),
            recipient=who,
            message_id=f"m {who}",
            campaign=f"c{len(who) % 2}",
            variant="ab"[len(who) % 2],
            user_agent=BUTTON,
            url=f"https://example.com/{number}" if kind == "clicked" else "",
        )

    def live(self, seconds: int, most_ago_s: float = 40.0) -> None:
        """Let seconds pass in which things happen, some of them told late."""
        for _ in range(seconds):
            self.clock.sleep_s(1)
            events = [
                self.event(self.rng.choice(["delivered", "opened", "clicked"]), self.rng.random() ** 4 * most_ago_s)
                for _ in range(self.rng.randrange(4))
            ]
            if events:
                self.log(*events)
            self.engine.catch_up()

    def asked(self, window: str, **query: object) -> dict:
        with self.store.view() as view:
            return view.numbers(
                Query(window=window_of(window, view.now_us), measures=("opens", "clicks"), metrics=("time_to_open",), **query)
            )

    def happened(self, kind: str, seconds: int, campaign: str | None = None) -> int:
        """Count what happened in the last seconds, the running one included."""
        now_s = self.clock.now_us() // 1_000_000
        since_s = now_s - seconds + 1
        return sum(
            event.kind == kind and since_s <= event.occurred_at_us // 1_000_000 <= now_s and campaign in (None, event.campaign)
            for event in self.told
        )


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    made = Life(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("shards", [1, 3])
def test_a_short_window_has_exactly_its_seconds(tmp_path: Path, shards: int) -> None:
    """At any second, for any length up to a quarter of an hour, for all and for one campaign, with events told late."""
    life = Life(tmp_path, seed=shards, shards=shards)
    life.live(1000)
    cut = 0
    for _ in range(120):
        life.live(life.rng.randrange(1, 7))
        for minutes in (1, 5, 15):
            found = life.asked(f"{minutes}m")
            assert found["total"]["opens"] == life.happened("opened", minutes * 60)
            assert found["total"]["clicks"] == life.happened("clicked", minutes * 60)
            assert found["window"]["to"][-3:-1] == f"{(life.clock.now_us() // 1_000_000 + 1) % 60:02d}"
            of_one = life.asked(f"{minutes}m", campaign="c1", by=("variant",))
            assert sum(row["opens"] for row in of_one["rows"]) == life.happened("opened", minutes * 60, "c1")
            cut += found["total"]["opens"] != life.asked("60m")["total"]["opens"]
    assert cut > 100
    life.close()


def test_windows_by_calendar_minutes_would_be_caught(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: a store that does not know seconds answers with whole minutes, and says so."""
    life.live(600)
    monkeypatch.setattr(Store, "view", calendar_view(Store.view))
    wrong = 0
    for _ in range(60):
        life.live(1)
        found = life.asked("1m")
        wrong += found["total"]["opens"] != life.happened("opened", 60)
        assert found["window"]["from"].endswith(":00Z")
    assert wrong > 30


def calendar_view(view):
    @contextmanager
    def without_seconds(self):
        with view(self) as found:
            found.recent_from = 0
            yield found

    return without_seconds


def test_the_first_opening_of_a_message_moves_between_seconds(life: Life) -> None:
    """An earlier opening that is told later takes the distinct count away from the later second."""
    life.live(100)
    first = life.event("opened")
    life.log(first)
    life.engine.catch_up()
    before = life.asked("1m", by=("campaign",))["total"]["opens"]
    life.log(msgspec.structs.replace(first, event_id="earlier", occurred_at_us=first.occurred_at_us - 55_000_000))
    life.engine.catch_up()
    assert life.asked("1m")["total"]["opens"] == before + 1 == life.happened("opened", 60)
    life.clock.sleep_s(20)
    assert life.asked("1m")["total"]["opens"] == life.happened("opened", 60)


def test_after_a_restart_only_full_minutes_until_seconds_are_known_again(life: Life) -> None:
    """What was folded in another life of the engine cannot be told by the second: the answer then covers, and names, whole minutes."""
    life.live(400)
    life.engine.close()
    for _ in range(30):
        life.clock.sleep_s(1)
        life.log(*life.opened())
    life.engine = Engine(life.config, life.reader, clock=life.clock)
    life.live(1)
    assert life.asked("1m")["window"]["from"].endswith(":00Z")
    life.live(65)
    found = life.asked("1m")
    assert found["total"]["opens"] == life.happened("opened", 60)
    assert life.asked("5m")["window"]["from"].endswith(":00Z")
    life.live(300)
    assert life.asked("5m")["total"]["opens"] == life.happened("opened", 300)


def test_catching_up_keeps_no_seconds(life: Life) -> None:
    """An engine that is far behind saves itself the work and forgets what it had; up to date again it begins anew, rightly."""
    life.live(200)
    for _ in range(100):
        life.clock.sleep_s(1)
        life.log(*life.opened(ago_s=life.rng.random() * 30))
    life.clock.sleep_s(60)
    life.engine.catch_up()
    assert life.engine.store.db.execute("SELECT count(*) FROM recent").get == 0
    assert life.engine.store.meta("recent_from") == 0
    life.live(70)
    assert life.asked("1m")["total"]["opens"] == life.happened("opened", 60)
    assert life.engine.store.meta("recent_from") > 0


def test_what_is_older_than_the_longest_such_window_is_deleted(life: Life) -> None:
    """The tables of seconds hold a quarter of an hour, however long the engine runs, also of campaigns that have ended."""
    life.live(300)
    campaigns = [name for name, _ in life.engine.store.db.execute("SELECT DISTINCT campaign, 0 FROM recent")]
    assert len(campaigns) >= 2
    for _ in range(4):
        life.clock.sleep_s(500)
        life.log(msgspec.structs.replace(life.event("opened"), campaign="another"))
        life.engine.catch_up()
    now_s = life.clock.now_us() // 1_000_000
    for table in ("recent", "recent_delays"):
        oldest = life.engine.store.db.execute(f"SELECT min(second) FROM {table}").get or now_s
        assert oldest >= now_s - recent.kept_s - recent.cut_every_s


def test_many_dimensions_shorten_what_is_kept(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are bounded: under heavy traffic fewer seconds are kept, and longer windows go back to whole minutes."""
    monkeypatch.setattr(recent, "rows_max", 100)
    life.live(400)
    rows = life.engine.store.db.execute("SELECT count(*) FROM recent").get
    assert rows < 100 + 5 * recent.cut_every_s
    assert life.asked("15m")["window"]["from"].endswith(":00Z")
    since = life.engine.store.meta("recent_from")
    assert since > START_US // 1_000_000 + 200
    exact = life.clock.now_us() // 1_000_000 - since
    assert sum(n for (n,) in life.engine.store.db.execute("SELECT opens FROM recent WHERE second >= ?", (since,))) == life.happened(
        "opened", exact + 1
    )


def test_seconds_begin_after_all_that_the_store_counts(life: Life) -> None:
    """Also where the shards know nothing of before: without a snapshot, and with the log's first part given up."""
    life.live(100)
    folded_us = life.engine.store.meta("log_time_us")
    life.engine.close()
    for path in (life.config.folder / "snapshots").glob("*"):
        path.unlink()
    life.writer.retain(life.clock.now_us() + 1, life.engine.position)
    assert life.reader.first() > 0
    life.clock.sleep_s(1)
    life.log(*life.opened())
    life.engine = Engine(life.config, life.reader, clock=life.clock)
    life.engine.catch_up()
    assert life.engine.store.meta("recent_from") * 1_000_000 > folded_us


def test_a_replay_of_the_log_knows_no_seconds_and_the_same_minutes(life: Life) -> None:
    """Seconds come from being up to date; the minutes do not depend on them."""
    life.live(300)
    life.engine.close()
    minutes = life.engine_cells()
    life.clock.sleep_s(3600)
    life.engine = Engine(life.config, life.reader, clock=life.clock, rebuild=True)
    life.engine.catch_up()
    assert life.engine.store.db.execute("SELECT count(*) FROM recent").get == 0
    life.engine.close()
    assert life.engine_cells() == minutes
    life.engine = Engine(life.config, life.reader, clock=life.clock)


def test_keys_tell_seconds_from_minutes() -> None:
    """A key's time is a minute below 2**27 and a second from there on, for every time from 1974 to 2106."""
    seconds = np.array([[7 << 32 | 1_800_000_059, 1, 2], [7 << 32 | 1_800_000_000, 1, 2], [7 << 32 | 1_799_999_999, 1, 2]], np.uint64)
    minutes = np.array([[7 << 32 | 30_000_000, 1, 2]], np.uint64)
    assert in_seconds(seconds).all() and not in_seconds(minutes).any()
    key, value = in_minutes(np.vstack([seconds, minutes]), np.array([[1, 0], [2, 0], [5, -5], [10, 1]]))
    assert key[:, 0].tolist() == [7 << 32 | 29_999_999, 7 << 32 | 30_000_000]
    assert value.tolist() == [[5, -5], [13, 1]]
    key, value = in_minutes(seconds[:2], np.array([3, -3]))
    assert key.shape[0] == value.size == 0
    assert Recent().wanted_from_us(START_US + 60_000_000, START_US, START_US) == NEVER
