"""Questions in SQL over the history, up to the last second: read-only, without files, within a memory limit."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import apsw
import duckdb
import numpy as np

from ..config import Config
from ..kit.errors import MidflightError, nearest
from ..log.reader import Reader
from ..stream.measures import DIMENSIONS, MEASURES
from .history import (
    SELECTED,
    Part,
    Row,
    columns,
    committed_position,
    folder_of,
    marks_columns,
    newest_marks,
    paths_sql,
    store_opened,
    written,
)
from .reading import Reading

memory_default = "2GB"
tail_bytes_max = 32 * 1024 * 1024  # of the log behind the newest part; the exporter is seldom further behind than a few MB
tail_events_max = 200_000
record_bytes = 128  # what a record counts beside its body
sql_chars_max = 100_000
MARK_COLUMNS = "position BIGINT, item INTEGER, mark VARCHAR"
TABLES = ("events", "marks", "cells", "campaigns", "names")


class WrongSql(MidflightError):
    """A question that cannot be answered as it is put."""

    code = "wrong_sql"


class Answer(NamedTuple):
    """The columns' names and the rows."""

    names: list[str]
    rows: Iterator[tuple]


def tail(data: Path, config: Config, position: int, *, reading: Reading | None = None) -> list[Row]:
    """Return the newest events, from ``position`` up to what the engine has folded, which no part holds yet."""
    committed = committed_position(data)
    reading = reading or Reading(config)
    rows: list[Row] = []
    with Reader(data / "log") as log:
        position, left = max(position, log.first()), tail_bytes_max
        while position < committed and left > 0 and len(rows) < tail_events_max:
            records = log.read(position, min(left, 4 * 1024 * 1024))
            if not records:
                break
            for record in records:
                if record.position < committed:
                    rows.extend(Row(record.position, item, event) for item, event in reading.events(record))
                left -= len(record.body) + record_bytes
            position = records[-1].position + 1
    return rows


def recent_marks(data: Path, position: int) -> list[tuple[int, int, str]]:
    """Return the marks of events at ``position`` and after, from the store itself."""
    with store_opened(data / "store.db") as db:
        return list(db.execute("SELECT position, item, mark FROM marks WHERE position >= ?", (position,))) if db else []


class Questions:
    """A DuckDB with the views `events`, `marks`, `cells`, `campaigns` and `names`. Use as a context manager."""

    def __init__(self, config: Config, *, memory: str = memory_default) -> None:
        self.config, self.data = config, config.folder
        self._spill = tempfile.TemporaryDirectory(prefix="midflight-sql-")
        try:
            self.db = duckdb.connect(":memory:", config={"memory_limit": memory, "temp_directory": self._spill.name})
        except duckdb.Error as error:
            self._spill.cleanup()
            raise WrongSql("Not an amount of memory", expected="`500MB` or `4GB`", got=memory, where=str(error).splitlines()[0]) from None
        try:
            self._fill()
            self._lock()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Questions:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.db.close()
        self._spill.cleanup()

    def ask(self, sql: str) -> Answer:
        """Start a question and return its answer, whose rows are read as they are wanted. Raises WrongSql, also on the way."""
        self._allow(sql)
        try:
            self.db.execute(self._zoneless(sql))
            return Answer([column[0] for column in self.db.description], self._rows())
        except duckdb.Error as error:
            raise self._worded(error) from None

    def _rows(self) -> Iterator[tuple]:
        try:
            while rows := self.db.fetchmany(1000):
                yield from rows
        except duckdb.Error as error:
            raise self._worded(error) from None

    def _zoneless(self, sql: str) -> str:
        """Return the question with its times without a zone: Python needs another package for zones, and ours is always UTC."""
        if re.match(r"\s*(describe|show|summarize)\b", sql, re.IGNORECASE):
            return sql
        inner = sql.rstrip().rstrip(";")
        found = self.db.execute(f"DESCRIBE {inner}").fetchall()
        if not any(row[1] == "TIMESTAMP WITH TIME ZONE" for row in found):
            return sql
        names = [name.replace('"', '""') for name in unique([row[0] for row in found])]
        shown = [
            f'"{name}"::TIMESTAMP AS "{name}"' if row[1] == "TIMESTAMP WITH TIME ZONE" else f'"{name}"'
            for name, row in zip(names, found, strict=True)
        ]
        aliases = ", ".join(f'"{name}"' for name in names)
        return f"SELECT {', '.join(shown)} FROM ({inner}\n) AS answer({aliases})"

    # -- what can be asked for -----------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        self.db.execute("SET TimeZone = 'UTC'")
        self.db.execute("CREATE SCHEMA inside")
        folder = folder_of(self.data)
        parts, position = written(folder)
        rows = tail(self.data, self.config, position)
        marks = newest_marks(folder)
        recent = recent_marks(self.data, marks[0] if marks else 0)
        self._events(parts, rows)
        self._marks(marks[1] if marks else None, recent)
        with store_opened(self.data / "store.db") as store:
            self._numbers(store)

    def _events(self, parts: list[Part], rows: list[Row]) -> None:
        self.db.register("fresh", columns(rows))
        self.db.execute(f"CREATE TABLE inside.tail AS SELECT {SELECTED}, received_at::DATE AS day FROM fresh")
        self.db.unregister("fresh")
        files = "SELECT * FROM inside.tail"
        if parts:
            read = f"read_parquet({paths_sql(parts)}, hive_partitioning = true, hive_types = {{'day': DATE}}, union_by_name = true)"
            files += f" UNION ALL BY NAME SELECT * FROM {read}"
        self.db.execute(f"CREATE VIEW inside.every_event AS {files}")

    def _marks(self, file: Path | None, recent: list[tuple[int, int, str]]) -> None:
        self.db.execute(f"CREATE TABLE inside.recent_marks ({MARK_COLUMNS})")
        self.db.register("fresh", marks_columns(recent))
        self.db.execute("INSERT INTO inside.recent_marks SELECT * FROM fresh")
        self.db.unregister("fresh")
        stored = f"SELECT * FROM read_parquet({paths_sql([file])}) UNION ALL " if file else ""
        self.db.execute(f"CREATE VIEW marks AS {stored}SELECT * FROM inside.recent_marks")
        # Of several verdicts on one event the last in the alphabet counts, so that it is always the same one: machine over human.
        self.db.execute(
            "CREATE VIEW inside.said AS SELECT position, item, bool_or(mark NOT LIKE '%:%') AS dropped,"
            " max(mark) FILTER (mark LIKE '%:%') AS verdict FROM marks GROUP BY position, item"
        )
        self.db.execute(
            """CREATE VIEW events AS
            SELECT e.* EXCLUDE (agent, agent_reason, recipient_key, value_micros),
                coalesce(split_part(s.verdict, ':', 1), e.agent) AS agent,
                CASE WHEN s.verdict IS NULL THEN e.agent_reason ELSE substr(s.verdict, instr(s.verdict, ':') + 1) END AS agent_reason,
                coalesce(least(e.occurred_at, e.received_at), e.received_at) AS happened_at, e.value_micros / 1e6 AS value
            FROM inside.every_event AS e LEFT JOIN inside.said AS s ON s.position = e.position AND s.item = e.item
            WHERE s.dropped IS NOT TRUE"""
        )

    def _numbers(self, store: apsw.Connection | None) -> None:
        """Copy names, cells and campaigns from the store, with names for ids."""
        attributes = [dimension.name for dimension in self.config.dimensions()]
        measures = ", ".join(f"x.{measure}" for measure in MEASURES)
        names = list(store.execute("SELECT kind, id, name FROM names")) if store else []
        self._table("names", ("kind", "id", "name"), ("VARCHAR", "BIGINT", "VARCHAR"), names)
        ids = (*DIMENSIONS, "minute", "segment", *MEASURES)
        cells = store.execute(f"SELECT {', '.join(ids)} FROM cells") if store else ()
        self._table("inside.cells", ids, ("BIGINT",) * len(ids), cells)
        named = [f"coalesce({key}_.name, '') AS {key}" for key in DIMENSIONS]
        joins = [f"LEFT JOIN names AS {key}_ ON {key}_.kind = '{key}' AND {key}_.id = x.{key}" for key in DIMENSIONS]
        for index, name in enumerate(attributes):
            kind, column = f"attribute:{name}".replace("'", "''"), '"' + name.replace('"', '""') + '"'
            named.append(f"coalesce(attribute{index}.name, '') AS {column}")
            joins.append(
                f"LEFT JOIN names AS attribute{index} ON attribute{index}.kind = '{kind}'"
                f" AND attribute{index}.id = ((x.segment >> {8 * index}) & 255)"
            )
        self.db.execute(
            f"CREATE VIEW cells AS SELECT make_timestamp(x.minute * 60000000) AS minute, {', '.join(named)}, {measures}"
            f" FROM inside.cells AS x {' '.join(joins)}"
        )
        ids = ("campaign", "first_minute", "last_minute", *MEASURES)
        sums = store.execute(f"SELECT {', '.join(ids)} FROM campaigns") if store else ()
        self._table("inside.campaigns", ids, ("BIGINT",) * len(ids), sums)
        self.db.execute(
            f"CREATE VIEW campaigns AS SELECT coalesce(n.name, '') AS campaign, make_timestamp(first_minute * 60000000) AS first_minute,"
            f" make_timestamp(last_minute * 60000000) AS last_minute, {measures} FROM inside.campaigns AS x"
            " LEFT JOIN names AS n ON n.kind = 'campaign' AND n.id = x.campaign"
        )

    def _table(self, table: str, names: tuple[str, ...], types: tuple[str, ...], rows: object) -> None:
        """Make a table of rows from the store, some at a time."""
        self.db.execute(f"CREATE TABLE {table} ({', '.join(f'{n} {t}' for n, t in zip(names, types, strict=True))})")
        rows = iter(rows)
        dtypes = [object if kind == "VARCHAR" else np.int64 for kind in types]
        while some := [row for _, row in zip(range(50_000), rows, strict=False)]:
            found = {name: np.array(column, dtype) for name, column, dtype in zip(names, zip(*some, strict=True), dtypes, strict=True)}
            self.db.register("fresh_rows", found)
            self.db.execute(f"INSERT INTO {table} SELECT * FROM fresh_rows")
            self.db.unregister("fresh_rows")

    def _lock(self) -> None:
        """From here on no file but the history's can be opened, and no setting changed."""
        folder = str(folder_of(self.data)).replace("'", "''")
        self.db.execute(f"SET allowed_directories = ['{folder}/']")
        self.db.execute("SET python_enable_replacements = false")
        self.db.execute("SET enable_external_access = false")
        self.db.execute("SET lock_configuration = true")

    # -- what is refused -----------------------------------------------------------------------------------------------------

    def _allow(self, sql: str) -> None:
        """Raise WrongSql unless this is one SELECT: nothing else only reads."""
        if len(sql) > sql_chars_max:
            raise WrongSql("The question is too long", expected=f"at most {sql_chars_max} characters", got=len(sql))
        try:
            statements = self.db.extract_statements(sql)
        except duckdb.Error as error:
            raise self._worded(error) from None
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
            raise WrongSql("The history can only be read", expected="one SELECT", got=kinds)

    def _worded(self, error: duckdb.Error) -> WrongSql:
        """Say in one line what DuckDB says in many, with the nearest of the names there are."""
        said = str(error)
        first = said.partition("\n")[0]
        unknown = re.search(r'column(?: named)? "([^"]+)" not found|column named "([^"]+)"', first)
        if unknown:
            name = unknown[1] or unknown[2]
            return WrongSql(f"Unknown column `{name}`", todo=nearest(name, self._columns(said)))
        unknown = re.search(r"Table with name (\S+) does not exist", first)
        if unknown:
            return WrongSql(f"Unknown table `{unknown[1]}`", todo=nearest(unknown[1], TABLES))
        if "Did you mean" in said:
            first += ". " + said[said.index("Did you mean") :].partition("\n")[0]
        if isinstance(error, duckdb.PermissionException):
            return WrongSql("A question reads the history and no other file", expected="the tables " + ", ".join(TABLES))
        if isinstance(error, duckdb.OutOfMemoryException):
            return WrongSql("The question needs more memory than it may have", todo="Give it more with --memory, or ask for less")
        return WrongSql(re.sub(r"^\w+ Error: ", "", first)[:500])

    def _columns(self, said: str) -> list[str]:
        """Return the columns an unknown one may have meant: those of the tables the question names, else all."""
        rows = self.db.execute("SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'main'").fetchall()
        near = [name for table, name in rows if re.search(rf"\b{table}\b", said)]
        return sorted(set(near or [name for _, name in rows]))


def unique(names: list[str]) -> list[str]:
    """Return names of which none is there twice, as a question may give two columns one name."""
    out: list[str] = []
    for name in names:
        new, n = name, 1
        while new in out:
            new, n = f"{name}_{n}", n + 1
        out.append(new)
    return out
