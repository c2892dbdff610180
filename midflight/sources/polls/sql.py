"""Poll `sql`: rows of any database by a query."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar
from uuid import UUID

import msgspec

from ...kit.errors import ConfigError
from ..source import iso_us
from ._mapping import MappedSettings, Mapping, plain
from .poll import At, Cursor, Found, NotAllowed, NotNow, Page, Poll, Unreadable

answer_s_max = 300.0
ISO = re.compile(r"(\d{4}-\d\d-\d\d)([T ])(\d\d:\d\d(?::\d\d)?)([.,]\d+)?(\s*)(Z|z|UTC|[+-]\d\d:?\d\d)?", re.ASCII)
COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Settings(MappedSettings, kw_only=True, frozen=True):
    """``database`` is SQLAlchemy's URL: `postgresql+psycopg://user:password@host/name`, `mysql+pymysql://...`, `sqlite:////path`."""

    database: str
    query: str  # one SELECT, without ORDER BY or LIMIT: `SELECT * FROM customers`
    changed: str = "updated_at"  # the column that grows with each change: a time, or a number
    key: str | list[str] = "id"  # the column that tells rows apart
    at: str | list[str] = ""  # empty: `changed`, where it is a time
    overlap: Annotated[float, msgspec.Meta(ge=0)] = 300.0  # seconds (or numbers) that are read again: a transaction may commit so late
    page_rows: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1_000
    tls: dict[str, str] = {}  # further arguments of the driver's connect, such as sslmode


class Sql(Poll):
    """A query, wrapped so that it gives rows from a place on in the order of ``changed`` and ``key``, a page at a time, by SQLAlchemy
    (https://docs.sqlalchemy.org/en/20/core/connections.html#using-server-side-cursors-a-k-a-stream-results).

    Equal times are no trouble, because a page goes on behind time and key. A transaction that gave its rows a time and commits later is
    read as long as it is no later than ``overlap``: each look begins that much before the latest row of the one before, and says
    only what was not said. Rows whose ``changed`` is null are never read, deleted ones not heard of. Where all columns are asked for
    (`SELECT *`) a column that is gone is named and the rest goes on; where the query names it, the database refuses the whole query.
    The connection is read-only where the database knows that (SQLite, PostgreSQL, MySQL), and nothing is ever committed.
    """

    label: ClassVar[str] = "SQL database"
    doc: ClassVar[str] = "Rows of a query as they change: people with columns as traits, or events."
    docs_url: ClassVar[str] = "https://docs.sqlalchemy.org/en/20/core/engines.html"
    Settings = Settings

    def __init__(self, settings: Settings, *, name: str, source=None) -> None:
        super().__init__(settings, name=name, source=source)
        where = f"$.polls.{name}"
        self.key = settings.key if isinstance(settings.key, str) else settings.key[0] if len(settings.key) == 1 else ""
        for field, column in (("changed", settings.changed), ("key", self.key)):
            if not COLUMN.fullmatch(column):
                raise ConfigError(f"Poll `{name}`: `{field}` has to be one column", expected="a name", got=column, where=f"{where}.{field}")
        query = settings.query.strip().rstrip(";").strip()
        if not re.match(r"(?i)(select|with)\b", query) or ";" in query:
            raise ConfigError(f"Poll `{name}`: the query has to be one SELECT", got=query[:60], where=f"{where}.query")
        self.query = query
        self.mapping = Mapping(settings if settings.at or settings.events else msgspec.structs.replace(settings, at=settings.changed), name)
        self.repeats_s = settings.overlap * 2 + 3600 if settings.events else 0.0
        self._engine = None
        self._asking = False  # whether a thread is at a query

    def first_cursor(self, now_us: int) -> Cursor:
        """All rows: who somebody is, is not only what changed of late."""
        return {"high": None, "from": None, "at": None, "types": {}}

    async def pages(self, cursor: Cursor, at: At) -> AsyncIterator[Page]:
        while True:
            if cursor["at"] is None and cursor["high"] is not None:
                cursor = cursor | {"from": saved(stepped_back(loaded(cursor["high"]), self.settings.overlap))}
            await at.turn()
            began_us = at.now_us()
            rows = await self._rows(cursor)
            page = self.page(rows, cursor, began_us)
            yield page
            cursor = page.cursor
            if not page.more:
                return

    def page(self, rows: list[dict], cursor: Cursor, began_us: int) -> Page:
        """Return what some rows mean, and where to go on."""
        read = self.mapping.read([{name: plain(value) for name, value in row.items()} for row in rows], cursor["types"])
        after = cursor | {"types": read.types}
        if rows:
            last = [saved(rows[-1][self.settings.changed]), saved(rows[-1][self.key])]
            # The rows are in order, but those of the overlap are older than what was highest before.
            highest = cursor["high"]
            after |= {"at": last, "high": last[0] if highest is None or loaded(last[0]) > loaded(highest) else highest}
        if len(rows) < self.settings.page_rows:
            return Page(read.found, after | {"at": None, "from": None}, False, read.bad, known_us=began_us)
        return Page(read.found, after, True, read.bad)

    async def _rows(self, cursor: Cursor) -> list[dict]:
        sqlalchemy = imported()
        try:
            async with asyncio.timeout(answer_s_max):
                rows = await self._asked(cursor)
        except TimeoutError:
            raise NotNow("The database did not answer", expected=f"within {answer_s_max:.0f} s", todo="Is `changed` indexed?") from None
        except sqlalchemy.exc.DBAPIError as error:
            raise trouble(error) from None
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise NotAllowed(f"The database cannot be asked: {type(error).__name__}", got=str(error).splitlines()[0][:200]) from None
        missing = {self.settings.changed, self.key} - rows[0].keys() if rows else set()
        if missing:
            raise NotAllowed(f"The query gives no column `{min(missing)}`", got=", ".join(rows[0])[:200], todo="Change `changed` or `key`")
        return rows

    async def _asked(self, cursor: Cursor) -> list[dict]:
        """Ask in a thread of this poll's own: what a driver does not return from must not take the threads of others, nor keep the process
        from ending. Raises NotNow while a query that was given up is still there."""
        if self._asking:
            raise NotNow("The database has not come back from the last query", todo="Is `changed` indexed? Is the database reachable?")
        loop = asyncio.get_running_loop()
        answered: asyncio.Future = loop.create_future()

        def tell(act: Callable[[], None]) -> None:
            if not answered.done():
                act()

        def ask() -> None:
            try:
                rows = self._ask(cursor)
                said = partial(answered.set_result, rows)
            except BaseException as error:
                said = partial(answered.set_exception, error)
            self._asking = False
            # The loop may be gone by now: then nobody waits for this.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(tell, said)

        self._asking = True
        threading.Thread(target=ask, name=f"poll {self.name}", daemon=True).start()
        return await answered

    def _ask(self, cursor: Cursor) -> list[dict]:
        """Read one page: one connection, one query, nothing committed."""
        sqlalchemy = imported()
        engine = self._engine or self._connected()
        changed, key = sqlalchemy.literal_column(self.settings.changed), sqlalchemy.literal_column(self.key)
        # A colon in the query is a colon, and not the name of a parameter.
        rows = sqlalchemy.text(f"({self.query}) AS midflight_rows".replace(":", "\\:"))
        wanted = sqlalchemy.select(sqlalchemy.literal_column("*")).select_from(rows)
        wanted = wanted.where(changed.is_not(None)).order_by(changed, key).limit(self.settings.page_rows)
        if cursor["at"] is not None:
            last, last_key = (sqlalchemy.literal(loaded(one)) for one in cursor["at"])
            wanted = wanted.where(sqlalchemy.or_(changed > last, sqlalchemy.and_(changed == last, key > last_key)))
        elif cursor["from"] is not None:
            wanted = wanted.where(changed >= sqlalchemy.literal(loaded(cursor["from"])))
        with engine.connect() as connection:
            streaming = connection.execution_options(stream_results=True, max_row_buffer=500)
            return [dict(row) for row in streaming.execute(wanted).mappings()]

    def _connected(self):
        sqlalchemy = imported()
        url = sqlalchemy.make_url(self.settings.database)
        backend = url.get_backend_name()
        arguments: dict = dict(self.settings.tls)
        if backend == "sqlite" and url.database and url.database != ":memory:" and not url.database.startswith("file:"):
            # By its plain name a file that is not there would be made.
            url = url.set(database=f"file:{Path(url.database).absolute()}", query={**url.query, "mode": "ro", "uri": "true"})
        options = {"postgresql_readonly": True} if backend == "postgresql" else {}
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool, connect_args=arguments, execution_options=options)

        @sqlalchemy.event.listens_for(engine, "connect")
        def read_only(connection, _record) -> None:
            say = {"sqlite": "PRAGMA query_only = ON", "mysql": "SET SESSION TRANSACTION READ ONLY"}.get(backend)
            if say:
                cursor = connection.cursor()
                cursor.execute(say)
                cursor.close()

        self._engine = engine
        return engine

    def again(self, raw: bytes) -> list[Found]:
        return [self.mapping.one(msgspec.json.decode(raw), dict(self.settings.types))]


def imported():
    """Return SQLAlchemy. Raises NotAllowed with how to get it."""
    try:
        import sqlalchemy
        import sqlalchemy.exc
        import sqlalchemy.pool
    except ImportError:
        raise NotAllowed("Databases are asked by SQLAlchemy, which is not installed", todo="pip install 'midflight[sql]'") from None
    return sqlalchemy


def trouble(error) -> NotNow | NotAllowed | Unreadable:
    """Return what a driver's error means. Its text may hold the query, but no password: that stands in the URL alone."""
    said = " ".join(str(error.orig).split())[:200]
    kind = type(error).__name__
    schema = re.search(r"(?i)no such (table|column)|does not exist|unknown column|undefined|invalid (column|object)|ambiguous", said)
    if schema or kind in ("ProgrammingError", "NotSupportedError"):
        return NotAllowed(
            "The query does not run: the schema may have changed", got=said, todo="Change `query`, or bring back what is gone"
        )
    if re.search(r"(?i)authentication|password|access denied|permission denied|not authorized", said):
        return NotAllowed("The database does not let us in", got=said, todo="Check user, password and rights")
    return NotNow("The database cannot be asked now", got=f"{kind}: {said}")


# -- the values by which rows are ordered ---------------------------------------------------------------------------------


def saved(value: object) -> list:
    """Return a database's value so that JSON keeps its type."""
    if isinstance(value, datetime):
        return ["datetime", value.isoformat()]
    if isinstance(value, date):
        return ["date", value.isoformat()]
    if isinstance(value, Decimal):
        return ["decimal", str(value)]
    if isinstance(value, UUID):
        return ["uuid", str(value)]
    if isinstance(value, bytes | bytearray | memoryview):
        return ["bytes", bytes(value).hex()]
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise NotAllowed("Rows cannot be ordered by such a value", got=type(value).__name__, todo="Name another `changed` or `key`")
    return ["plain", value]


def loaded(one: list) -> object:
    kind, value = one
    known = {
        "datetime": datetime.fromisoformat, "date": date.fromisoformat, "decimal": Decimal, "uuid": UUID, "bytes": bytes.fromhex,
        "plain": lambda given: given,
    }  # fmt: skip
    return known[kind](value)


def stepped_back(value: object, overlap: float) -> object:
    """Return a value so many seconds before; of a number that is no unix time, so many below. Text that is no time stays."""
    if isinstance(value, datetime):
        return value - timedelta(seconds=overlap)
    if isinstance(value, date):
        return value - timedelta(seconds=overlap) - timedelta(days=1)
    if isinstance(value, str):
        return earlier(value, overlap)
    if isinstance(value, int | float | Decimal):
        scale = 1_000_000 if value > 1e14 else 1_000 if value > 1e11 else 1
        back = overlap * scale
        return value - (type(value)(back) if isinstance(value, float) else type(value)(round(back)))
    return value


def earlier(value: str, seconds: float) -> str:
    """Return ISO 8601 text so many seconds before, written in the same way, so that it compares as text as the column does."""
    found = ISO.fullmatch(value.strip())
    us = iso_us(value)
    if not found or not us:
        return value
    _, between, clock, fraction, space, zone = found.groups()
    sign = {"+": 1, "-": -1}.get((zone or " ")[0], 0)
    offset_s = sign * (int(zone[1:3]) * 3600 + int(zone[-2:]) * 60) if sign else 0
    local = datetime(1970, 1, 1) + timedelta(microseconds=max(us - round(seconds * 1e6), 0)) + timedelta(seconds=offset_s)
    digits = len(fraction) - 1 if fraction else 0
    text = local.strftime(f"%Y-%m-%d{between}%H:%M" + (":%S" if len(clock) > 5 else ""))
    if fraction:
        text += fraction[0] + f"{local.microsecond:06d}".ljust(digits, "0")[:digits]
    return text + space + (zone or "")


EXAMPLES = Sql.EXAMPLES = (
    {
        "title": "A table of customers",
        "settings": {"database": "sqlite:///shop.db", "query": "SELECT * FROM customers", "traits": {"plan": "plan", "age": "age"}},
        "rows": [{"id": 1, "email": "ada@example.com", "plan": "pro", "age": 36, "updated_at": "2025-11-24 16:00:00.250"}],
        "events": [
            {"kind": "identified", "recipient": "ada@example.com", "occurred_at_us": 1764000000250000, "traits": {"plan": "pro", "age": 36}}
        ],
    },
    {
        "title": "Orders are conversions",
        "settings": {
            "database": "sqlite:///shop.db",
            "query": "SELECT o.*, c.email FROM orders o JOIN customers c ON c.id = o.customer_id",
            "changed": "paid_at",
            "events": {
                "fields": {
                    "kind": "=converted", "occurred_at": "paid_at", "recipient": "email", "event_id": "id", "order_id": "id",
                    "value": "total", "currency": "=EUR",
                }
            },
        },
        "rows": [{"id": 1001, "email": "ada@example.com", "total": 49.99, "paid_at": "2025-11-24T16:00:00Z"}],
        "events": [
            {
                "kind": "converted", "recipient": "ada@example.com", "event_id": "1001", "order_id": "1001", "value_micros": 49990000,
                "currency": "EUR", "occurred_at_us": 1764000000000000,
            }
        ],
    },
)  # fmt: skip
