"""Fills a store with plausible campaigns, for page tests and for looking at pages: `python tests/sample_store.py DATA_FOLDER`."""

from __future__ import annotations

import math
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import uvicorn

from midflight.config import Config, config_from
from midflight.kit.clock import Clock
from midflight.serve.live import listen
from midflight.store.schema import SCHEMA, VERSION
from midflight.stream.measures import DELAY_EDGES_S, FRESHNESS_EDGES_MS, MEASURES

minute_us = 60_000_000
PROVIDERS = {"gmail": 0.42, "microsoft": 0.22, "apple": 0.12, "yahoo": 0.11, "gmx": 0.08, "other": 0.05}
PLANS = {"free": 0.6, "pro": 0.3, "business": 0.1}
AGES = {"<25": 0.2, "25-39": 0.4, "40-59": 0.3, "60+": 0.1}
# What no page may ever run.
PAYLOADS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'-alert(1)-'",
    "<svg/onload=alert(1)>",
    "{{7*7}}${7*7}",
    "javascript:alert(1)",
    "</title></textarea><iframe srcdoc='<script>alert(1)</script>'>",
)


def sample_config(folder: Path, **console) -> Config:
    """Return settings with four sources and two attributes."""
    return config_from(
        {
            "data": str(folder),
            "console": console or {"port": 8401},
            "door": {"public_url": "https://hooks.example.com"},
            "attributes": ["plan", {"name": "age", "bands": [25, 40, 60]}],
            "sources": {
                "sendgrid": {
                    "kind": "sendgrid",
                    "secrets": ["MFkw-not-shown", {"value": "older-not-shown", "until": "2031-01-01T00:00:00Z"}],
                },
                "transactional": {"kind": "sendgrid", "basic_auth": ["user:not-shown"]},
                "staging": {"kind": "sendgrid", "unsigned": True},
            },
        }
    )


@dataclass
class Plan:
    """One campaign: when it starts (minutes ago), how many messages, over how many minutes, how its variants do."""

    name: str
    started: int
    messages: int
    spread: int
    variants: dict[str, tuple[float, float, float]]  # open, click given open, convert given click
    waves: int = 4
    source: str = "sendgrid"
    bounce: float = 0.012
    trouble: str = ""  # a provider that starts bouncing ten minutes ago
    complaints: float = 0.0004


PLANS_OF_CAMPAIGNS = (
    Plan("Spring sale: last days", 190, 60_000, 230, {"A": (0.31, 0.12, 0.09), "B": (0.36, 0.15, 0.10), "C": (0.29, 0.11, 0.08)}),
    Plan("Weekly letter 47", 55, 24_000, 66, {"plain": (0.38, 0.10, 0.04), "pictures": (0.35, 0.13, 0.05)}, trouble="microsoft"),
    Plan(
        "Win-back, quiet for 90 days",
        1300,
        9_000,
        600,
        {"gift": (0.16, 0.09, 0.05), "survey": (0.14, 0.05, 0.02)},
        source="transactional",
        complaints=0.004,
    ),
    Plan("Product news: import from anywhere", 2900, 15_000, 240, {"": (0.27, 0.08, 0.03)}, waves=1),
)


@dataclass
class Book:
    """Everything that is going to be written."""

    now: int
    cells: dict[tuple, list[int]] = field(default_factory=dict)
    delays: Counter = field(default_factory=Counter)
    clickers: list[tuple] = field(default_factory=list)
    names: dict[tuple[str, str], int] = field(default_factory=dict)

    def id(self, kind: str, name: str) -> int:
        if not name:
            return 0
        return self.names.setdefault((kind, name), 1 + sum(1 for k, _ in self.names if k == kind))

    def count(self, key: tuple, minute: int, **measures: int) -> None:
        if minute > self.now:
            return
        cell = self.cells.setdefault((key[0], minute, *key[1:]), [0] * len(MEASURES))
        for name, n in measures.items():
            cell[MEASURES.index(name)] += n

    def delay(self, key: tuple, minute: int, kind: int, seconds: float) -> None:
        if minute <= self.now:
            self.delays[(key[0], minute, *key[1:], kind, sum(1 for edge in DELAY_EDGES_S if seconds >= edge))] += 1


def pick(rng: random.Random, shares: dict[str, float]) -> str:
    return rng.choices(list(shares), list(shares.values()))[0]


def send(book: Book, plan: Plan, rng: random.Random) -> None:
    """Play one campaign message by message."""
    campaign = book.id("campaign", plan.name)
    source = book.id("source", plan.source)
    start = book.now - plan.started
    for n in range(plan.messages):
        share = n / plan.messages
        sent = start + int(plan.spread * share**0.8)
        if sent > book.now:
            return
        variant = rng.choice(list(plan.variants))
        provider = pick(rng, PROVIDERS)
        segment = book.id("attribute:plan", pick(rng, PLANS)) | book.id("attribute:age", pick(rng, AGES)) << 8
        wave = book.id("wave", f"wave {1 + int(share * plan.waves)}")
        key = (campaign, book.id("variant", variant), wave, book.id("provider", provider), source, segment)
        play(book, plan, rng, key, sent, variant, provider, n)


def play(book: Book, plan: Plan, rng: random.Random, key: tuple, sent: int, variant: str, provider: str, message: int) -> None:
    """Play one message's life."""
    book.count(key, sent, queued=1, sent=1)
    bounce = 0.3 if provider == plan.trouble and sent > book.now - 11 else plan.bounce
    if rng.random() < bounce:
        book.count(key, sent, **{rng.choice(("bounced_hard", "bounced_soft", "bounced_block")): 1})
        return
    book.count(key, sent, delivered=1)
    if rng.random() < plan.complaints:
        book.count(key, sent + 30, complained=1)
    if rng.random() < (0.5 if provider == "apple" else 0.04):
        book.count(key, sent + rng.randrange(2), opened=1, opens=1)
        if rng.random() < 0.2:
            book.count(key, sent + 1, clicked=1, clicks=2)
    p_open, p_click, p_buy = plan.variants[variant]
    if rng.random() >= p_open:
        return
    wait = rng.lognormvariate(math.log(2400), 1.6)
    at = sent + int(wait / 60)
    more = rng.randrange(3)
    book.count(key, at, opened=1, opened_human=1, opens=1 + more, opens_human=1 + more, opens_proxied=int(provider == "gmail"))
    book.delay(key, at, 0, wait)
    if rng.random() < 0.006:
        book.count(key, at, unsubscribed=1)
    if rng.random() >= p_click:
        return
    pause = rng.lognormvariate(math.log(40), 1.0)
    clicked = at + int(pause / 60)
    book.count(key, clicked, clicked=1, clicked_human=1, clicks=1, clicks_human=1)
    book.delay(key, clicked, 1, wait + pause)
    if clicked > book.now:
        return
    buys = rng.random() < p_buy * 3
    wait = rng.lognormvariate(math.log(900), 1.4)
    bought = clicked + int(wait / 60)
    if buys:
        book.count(key, bought, converted=1, conversions=1, revenue_micros=int(rng.lognormvariate(math.log(42), 0.6) * 1e6))
        book.delay(key, bought, 2, wait)
    converted = bought * minute_us if buys and bought <= book.now else 0
    book.clickers.append(
        (key[0], message, f"reader{message}@example.{provider}", key[1], key[2], clicked * minute_us + rng.randrange(minute_us), converted)
    )


def fill(config: Config, now_us: int, *, seed: int = 7, scale: float = 1.0, hostile: bool = False, old: int = 0) -> None:
    """Write the store as the engine would. ``old`` adds so many finished campaigns of past years."""
    rng = random.Random(seed)
    book = Book(now_us // minute_us)
    for plan in PLANS_OF_CAMPAIGNS:
        send(book, Plan(**{**vars(plan), "messages": int(plan.messages * scale)}), rng)
    if hostile:
        for payload in PAYLOADS:
            send(book, Plan(payload, 50, 60, 40, {payload: (0.9, 0.9, 0.4), "B": (0.5, 0.5, 0.2)}, source=payload), rng)
    config.folder.mkdir(parents=True, exist_ok=True)
    db = apsw.Connection(str(config.folder / "store.db"))
    db.execute("PRAGMA journal_mode=WAL")
    with db:
        db.execute(SCHEMA)
        write(db, book)
        write_receipts(db, book, rng, hostile)
        for n in range(old):
            write_old(db, book, n)
        write_hours(db)
        db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [("position", 184_203), ("log_time_us", now_us), ("version", VERSION)])
        db.executemany("INSERT OR REPLACE INTO names VALUES (?, ?, ?)", [(kind, id_, name) for (kind, name), id_ in book.names.items()])
    db.close()


def write(db: apsw.Connection, book: Book) -> None:
    marks = ", ".join("?" * (7 + len(MEASURES)))
    db.executemany(f"INSERT INTO cells VALUES ({marks})", [(*key, *values) for key, values in book.cells.items()])
    db.executemany("INSERT INTO delays VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", [(*key, n) for key, n in book.delays.items()])
    db.executemany("INSERT INTO clickers VALUES (?, ?, ?, ?, ?, ?, ?)", book.clickers)
    sums = ", ".join(f"sum({m})" for m in MEASURES)
    db.execute(f"INSERT INTO campaigns SELECT campaign, min(minute), max(minute), {sums} FROM cells GROUP BY campaign")


def write_hours(db: apsw.Connection) -> None:
    """Sum what is there by minute into hours."""
    dimensions = "variant, wave, provider, source, segment"
    sums = ", ".join(f"sum({m})" for m in MEASURES)
    db.execute(f"INSERT INTO hours SELECT campaign, minute / 60 * 60, {dimensions}, {sums} FROM cells GROUP BY 1, 2, {dimensions}")
    db.execute(
        f"INSERT INTO hour_delays SELECT campaign, minute / 60 * 60, {dimensions}, kind, bucket, sum(n) FROM delays"
        f" GROUP BY 1, 2, {dimensions}, kind, bucket"
    )


def write_receipts(db: apsw.Connection, book: Book, rng: random.Random, hostile: bool) -> None:
    for source in ("sendgrid", "transactional"):
        quiet = 0 if source == "sendgrid" else 9
        for minute in range(book.now - 1439, book.now + 1 - quiet):
            events = int((60 + 30 * math.sin(minute / 90)) * (8 if source == "sendgrid" else 1) * rng.uniform(0.8, 1.2))
            last = min(minute * minute_us + 59_000_000, book.now * minute_us + 40_000_000)
            db.execute(
                "INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?, ?)",
                (source, minute, events // 9, events, events // 60, int(minute % 97 == 0), last),
            )
        db.execute("INSERT INTO drops VALUES (?, 'duplicate', ?)", (source, 7_345 if source == "sendgrid" else 402))
    letters = [
        ("sendgrid", "unreadable", "KeyError: 'event'", b'{"email":"ada@example.com","sg_event_id":"abc","timestamp":1790000000}'),
        ("sendgrid", "malformed", "An event has to be an object: got str", b'"delivered"'),
        ("transactional", "malformed", "The body is not JSON: unexpected end of input", b'[{"event":"open","email":"grace@exam'),
    ]
    if hostile:
        letters += [(payload, payload, payload, payload.encode()) for payload in PAYLOADS]
    for n, (source, reason, detail, raw) in enumerate(letters):
        db.execute(
            "INSERT INTO dead VALUES (?, 0, ?, ?, ?, ?, ?, 0)",
            (180_000 + 41 * n, source, reason, detail, raw, (book.now - 7 * n) * minute_us),
        )
    for minute in range(book.now - 5, book.now + 1):
        for _ in range(400):
            ms = rng.lognormvariate(math.log(85), 0.5)
            bucket = sum(1 for edge in FRESHNESS_EDGES_MS if ms >= edge)
            db.execute("INSERT INTO freshness VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET n = n + 1", (minute, bucket))


def write_old(db: apsw.Connection, book: Book, n: int) -> None:
    """A campaign of the past: its sums, and three minutes of cells."""
    id_ = book.id("campaign", f"Letter {n + 1} of the archive")
    first = book.now - 2_880 - 1_440 * (n + 1)
    values = dict.fromkeys(MEASURES, 0)
    for k in range(3):
        cell = values | {"sent": 400, "delivered": 390 - n % 7, "opened": 130, "opened_human": 110, "opens": 160, "opens_human": 130}
        cell |= {"clicked": 20, "clicked_human": 14 + n % 5, "clicks": 24, "clicks_human": 15 + n % 5}
        db.execute(f"INSERT INTO cells VALUES ({', '.join('?' * 34)})", (id_, first + k, 0, 0, 1, 1, 1, *cell.values()))
    sums = ", ".join(f"sum({m})" for m in MEASURES)
    db.execute(f"INSERT INTO campaigns SELECT campaign, min(minute), max(minute), {sums} FROM cells WHERE campaign = ?", (id_,))


class Stopped(Clock):
    """A clock whose wall time stands still, so that two answers are about the same minute; waiting still works."""

    def __init__(self, at_us: int) -> None:
        self.at_us = at_us

    def now_us(self) -> int:
        return self.at_us


@contextmanager
def serving(app) -> Iterator[str]:
    """Serve an application over real HTTP on a free port; give its address."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        app.state.site.hub.close_soon()
        server.should_exit = True
        thread.join(20)
        listener.close()


if __name__ == "__main__":
    fill(sample_config(Path(sys.argv[1])), Clock().now_us(), old=400)
