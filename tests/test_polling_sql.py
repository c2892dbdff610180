"""Databases through SQLAlchemy, for real in SQLite: equal times, late commits, deaths, changes of schema; nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from polling_world import NOW_US, Died, World, dies_at, second_us

from midflight.serve.polling import Polling
from midflight.sources.polls import sql
from midflight.sources.polls.poll import iso_of

pytest.importorskip("sqlalchemy")
TRAITS = ["plan", "age"]


@pytest.fixture
def here(tmp_path: Path) -> World:
    return World(tmp_path, {"db": told(tmp_path)})


def told(folder: Path, **more: object) -> dict:
    database = f"sqlite:///{folder / 'shop.db'}"
    return {
        "kind": "sql",
        "database": database,
        "query": "SELECT * FROM customers",
        "traits": TRAITS,
        "page_rows": 20,
        "per_second": 1000,
    } | more


@pytest.fixture
def shop(here: World) -> Iterator[sqlite3.Connection]:
    """45 customers, 30 of them with one and the same time."""
    db = sqlite3.connect(here.folder / "shop.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE customers(id INTEGER PRIMARY KEY, email TEXT, plan TEXT, age INTEGER, updated_at TEXT)")
    for number in range(45):
        put(db, number, NOW_US - 7200 * second_us + max(number - 29, 0) * second_us)
    yield db
    db.close()


def put(db: sqlite3.Connection, number: int, at_us: int, plan: str = "free", age: object = 30) -> None:
    db.execute("INSERT OR REPLACE INTO customers VALUES(?, ?, ?, ?, ?)", (number, f"p{number}@example.com", plan, age, iso_of(at_us)))


def truth(db: sqlite3.Connection) -> dict[str, dict]:
    return {email: {"plan": plan, "age": age} for email, plan, age in db.execute("SELECT email, plan, age FROM customers")}


def test_all_rows_come_once_then_what_changes(here: World, shop: sqlite3.Connection) -> None:
    """More rows of one time than fit on a page are no trouble; the overlap is read again and not said again."""
    here.turn("db")
    assert here.log.people() == truth(shop) and len(here.log.events()) == 45
    put(shop, 7, NOW_US, plan="pro")
    here.turn("db", 3)
    assert here.log.people() == truth(shop)
    assert [event.traits for event in here.log.events()[45:]] == [{"plan": "pro"}]


@pytest.mark.parametrize("place", ["poll_appended", "poll_saved"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_death_between_two_steps_loses_nothing(
    here: World, shop: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, place: str, count: int
) -> None:
    """Also among rows of one time, and where a row changes before the next life."""
    with monkeypatch.context() as patched:
        dies_at(patched, place, count)
        with pytest.raises(Died):
            here.turn("db")
    put(shop, 3, NOW_US, plan="pro")
    here.turn("db")
    assert here.log.people() == truth(shop)
    assert len({(e.recipient, e.occurred_at_us) for e in here.log.unique()}) == len(here.log.unique())


def test_a_transaction_that_commits_late_is_read(here: World, shop: sqlite3.Connection) -> None:
    """Rows get their time when they are written and are seen when they are committed. With the overlap all are read; the control, without
    it, loses those that commit behind the latest one."""
    lost = []
    for overlap in (300, 0):
        world = World(here.folder / str(overlap), {"db": told(here.folder, overlap=overlap)})
        world.clock.at_us = NOW_US
        world.turn("db")
        slow = sqlite3.connect(here.folder / "shop.db", isolation_level=None)
        number = 100 + overlap
        late_us = world.clock.now_us() + second_us
        world.clock.ahead(100)
        put(shop, number + 1, world.clock.now_us(), plan="quick")
        world.turn("db")
        slow.execute("BEGIN IMMEDIATE")
        put(slow, number, late_us, plan="late")
        slow.execute("COMMIT")
        slow.close()
        world.clock.ahead(100)
        put(shop, number + 2, world.clock.now_us(), plan="quick")
        world.turn("db")
        lost.append(f"p{number}@example.com" not in world.log.people())
    assert lost == [False, True]


def test_a_changed_schema_is_named_and_the_rest_goes_on(here: World, shop: sqlite3.Connection) -> None:
    """Rows of another type are set aside with their reason and taken once that is configured; a column that is gone is named."""
    here.turn("db")
    put(shop, 50, NOW_US, age="fifty")
    put(shop, 51, NOW_US + 1000)
    here.turn("db")
    state = here.state["polls"]["db"]
    assert state["state"] == "good" and state["set_aside"] == 1 and "expected number, got text" in state["set_aside_why"]
    assert "p51@example.com" in here.log.people()
    here.raw = {"db": told(here.folder, types={"age": "text"})}
    here.turn("db")
    assert here.log.people()["p50@example.com"]["age"] == "fifty"
    here.raw = {"db": told(here.folder)}
    shop.execute("ALTER TABLE customers DROP COLUMN plan")
    shop.execute("UPDATE customers SET updated_at = ? WHERE id = 7", (iso_of(NOW_US + 2000),))
    here.turn("db")
    assert "`plan` is not there" in here.state["polls"]["db"]["set_aside_why"] and here.state["polls"]["db"]["state"] == "good"
    shop.execute("ALTER TABLE customers RENAME TO people")
    here.turn("db")
    assert here.state["polls"]["db"]["state"] == "not_allowed" and "schema" in here.state["polls"]["db"]["error"]["what"]


def test_nothing_can_be_written_and_no_file_is_made(here: World, shop: sqlite3.Connection, tmp_path: Path) -> None:
    """A query that would write is refused by the database, and a database that is not there is not made."""
    shop.execute("CREATE TABLE hit(n)")
    here.raw = {"db": told(tmp_path, query="WITH x AS (SELECT ':id 5%' AS y) SELECT * FROM customers WHERE email != ':x'")}
    here.turn("db")
    assert here.state["polls"]["db"]["state"] == "good"
    poll = here.polls()["db"]
    engine = poll._connected()
    with engine.connect() as connection, pytest.raises(Exception, match="readonly|query_only|attempt to write"):
        connection.exec_driver_sql("INSERT INTO hit VALUES(1)")
    here.raw = {"db": told(tmp_path, database=f"sqlite:///{tmp_path / 'none.db'}")}
    here.turn("db")
    assert here.state["polls"]["db"]["state"] == "not_now" and not (tmp_path / "none.db").exists()


def test_orders_become_conversions_once(here: World, shop: sqlite3.Connection) -> None:
    """Rows that are events are said once each, also where the overlap reads them again and again, and are forgotten in time."""
    shop.execute("CREATE TABLE orders(id INTEGER, email TEXT, total REAL, paid_at TEXT)")
    for number in range(45):
        shop.execute("INSERT INTO orders VALUES(?, 'ada@example.com', 9.5, ?)", (number, iso_of(NOW_US - number * second_us)))
    fields = {"kind": "=converted", "occurred_at": "paid_at", "recipient": "email", "event_id": "id", "order_id": "id", "value": "total"}
    here.raw = {"db": told(here.folder, query="SELECT * FROM orders", changed="paid_at", traits=[], events={"fields": fields})}
    here.turn("db", 3)
    assert len(here.log.events()) == 45 and {event.value_micros for event in here.log.events()} == {9_500_000}
    for number in (100, 101):
        here.clock.ahead(100_000)
        shop.execute("INSERT INTO orders VALUES(?, 'ada@example.com', 9.5, ?)", (number, iso_of(here.clock.now_us())))
        here.turn("db")
    assert len(here.log.events()) == 47

    def count(polling) -> int:
        return polling.polled.db.execute("SELECT count(*) FROM said").fetchone()[0]

    assert here.lives(count) == 2, "only what may be read again is remembered"


def test_a_password_is_shown_nowhere(here: World) -> None:
    """A database that cannot be reached is said without its password."""
    here.raw = {"db": told(here.folder, database="sqlite:////nowhere/canary-91/x.db?password=canary-92")}
    here.turn("db")
    assert "canary-92" not in (here.folder / "polls" / "state.json").read_text()
    assert here.state["polls"]["db"]["error"]


def test_a_query_that_does_not_come_back_holds_up_nobody(here: World, shop: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up, no second one is asked beside it, no thread of others is taken; when it has come back all is read."""
    slow = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 3000000) SELECT count(*) FROM c"
    here.raw = {"db": told(here.folder, query=f"SELECT * FROM customers WHERE (SELECT x FROM (SELECT ({slow}) AS x)) > 0")}
    monkeypatch.setattr(sql, "answer_s_max", 0.05)

    async def looks(polling: Polling) -> list[str]:
        said = []
        for _ in range(3):
            await polling.turn("db")
            said.append(polling.standings["db"].error["what"])
        # The threads that everybody shares are all free.
        others = [asyncio.to_thread(threading.current_thread) for _ in range(3)]
        assert not any(thread.name.startswith("poll") for thread in await asyncio.wait_for(asyncio.gather(*others), 5))
        assert sum(thread.name == "poll db" for thread in threading.enumerate()) == 1
        monkeypatch.setattr(sql, "answer_s_max", 60.0)
        for _ in range(200):
            await polling.turn("db")
            if polling.standings["db"].state == "good":
                return said
            await asyncio.sleep(0.1)
        raise AssertionError(polling.standings["db"].error)

    said = here.lives(looks)
    assert "did not answer" in said[0] and all("has not come back" in one for one in said[1:])
    assert here.log.people() == truth(shop)
