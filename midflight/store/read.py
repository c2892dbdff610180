"""Read-only queries over the store: any metric, over any window, by any dimensions, with freshness and machine share."""

from __future__ import annotations

import difflib
import queue
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import apsw
import msgspec

from ..config import Config
from ..kit.clock import Clock
from ..kit.errors import MidflightError, NotFound, nearest
from ..metrics import REGISTRY, Metric, Sums
from ..metrics.metric import curve, quantile
from ..stream.measures import DELAY_EDGES_S, DELAYS, DIMENSIONS, FRESHNESS_EDGES_MS, MEASURES
from .schema import SCHEMA, VERSION

minute_us = 60_000_000
busy_ms = 2_000
connections_max = 16
query_s_max = 10.0
rows_max = 10_000
waiting_count_max = 10_000
points_max = 20_000
window_minutes_max = 366 * 24 * 60
by_max = 6
TIMES = ("minute", "hour")
# Shares of what happened in the log's last minutes that count as "events" of a campaign in sparklines and lists.
ACTIVITY = ("delivered", "opens_human", "clicks_human")
_WINDOW = re.compile(r"^(\d{1,6})([mhd])$")


class Unknown(MidflightError):
    """A name in a query that nothing answers to."""

    code = "unknown_name"


class WrongQuery(MidflightError):
    """A query that cannot be answered as it is put."""

    code = "wrong_query"


class TooSlow(MidflightError):
    """The query took longer than a reader may."""

    status = 503
    code = "too_slow"


class Window(msgspec.Struct, frozen=True):
    """Calendar minutes ``first`` to ``last``, both included; ``all`` has neither bound.

    One that slides begins at the second ``since_s``, at most a minute before ``first``, where the store still knows seconds.
    """

    name: str
    first: int
    last: int
    since_s: int = 0

    @property
    def bounded(self) -> bool:
        return self.name != "all"


class Part(msgspec.Struct, frozen=True):
    """A part of a window: whole hours, minutes or seconds; without bounds where it has all there is."""

    unit: str
    first: int | None = None
    last: int | None = None

    @property
    def time(self) -> str:
        return f"x.{self.unit}"

    @property
    def cells(self) -> str:
        return {"hour": "hours", "minute": "cells", "second": "recent"}[self.unit]

    @property
    def delays(self) -> str:
        return {"hour": "hour_delays", "minute": "delays", "second": "recent_delays"}[self.unit]

    def minutes(self) -> tuple[int, int]:
        """Return the first and last calendar minute that it touches."""
        if self.unit == "second":
            return self.first // 60, self.last // 60
        return self.first, self.last + 59 if self.unit == "hour" else self.last


class Query(msgspec.Struct, kw_only=True):
    """What is asked. ``where`` holds (dimension, name) pairs; several names of one dimension are alternatives."""

    window: Window
    campaign: str | None = None
    by: tuple[str, ...] = ()
    where: tuple[tuple[str, str], ...] = ()
    metrics: tuple[str, ...] | None = None
    measures: tuple[str, ...] = MEASURES
    machines: bool = False
    within_minutes: int = 0
    rows_max: int = rows_max
    # Kinds of delay to read besides those that the metrics need.
    delays: tuple[str, ...] = ()
    # Only what is asked: no machine share, and rows in the order of their names.
    bare: bool = False


def window_of(text: str | None, now_us: int, from_: str | None = None, to: str | None = None) -> Window:
    """Read a window: ``15m``, ``24h``, ``7d``, ``all``, or from and to. Raises WrongQuery.

    A length ends with the running second. ``from`` and ``to`` are ISO 8601 (UTC where no zone is given) or unix seconds, both cut to
    the minute; ``to`` is excluded and defaults to now.
    """
    now = now_us // minute_us
    if from_ or to:
        if text:
            raise WrongQuery("Give a window or from and to, not both", where="window")
        first = _minute(from_, "from") if from_ else 0
        last = _minute(to, "to") - 1 if to else now
        if last < first:
            raise WrongQuery("The window ends before it starts", expected="`from` before `to`", where="to")
        return Window("custom", first, last)
    text = text or "all"
    if text == "all":
        return Window("all", 0, now)
    found = _WINDOW.match(text)
    minutes = int(found[1]) * {"m": 1, "h": 60, "d": 1440}[found[2]] if found else 0
    if not 1 <= minutes <= window_minutes_max:
        raise WrongQuery("Unknown window", expected="`1m` to `366d`, as in `15m`, `24h`, `7d`, or `all`", got=text, where="window")
    return Window(text, now - minutes + 1, now, since_s=now_us // 1_000_000 - minutes * 60 + 1)


def _minute(text: str, where: str) -> int:
    try:
        if re.fullmatch(r"\d{1,12}", text, re.ASCII):
            return int(text) // 60
        at = datetime.fromisoformat(text)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return max(0, int(at.timestamp()) // 60)
    except (ValueError, OverflowError):
        raise WrongQuery("Not a time", expected="ISO 8601 or unix seconds", got=text, where=where) from None


def iso(at_us: int) -> str | None:
    """Return a time as ISO 8601 UTC to the second; None for 0 and for what no calendar holds."""
    if at_us <= 0:
        return None
    try:
        return datetime.fromtimestamp(at_us // 1_000_000, UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return None


class Store:
    """Connections to the engine's file. The file may be absent, empty or replaced while we run."""

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        self.path = config.folder / "store.db"
        self.clock = clock or Clock()
        self.attributes = tuple(a.name for a in config.dimensions())
        self._idle: queue.LifoQueue[tuple[tuple[int, int], apsw.Connection]] = queue.LifoQueue(connections_max)

    @contextmanager
    def view(self) -> Iterator[View]:
        """Give a view of one moment: every query in it sees the same commit. Raises TooSlow."""
        identity, connection = self._borrow()
        deadline = self.clock.monotonic_s() + query_s_max
        connection.set_progress_handler(lambda: self.clock.monotonic_s() > deadline, 50_000)
        try:
            connection.execute("BEGIN")
            yield View(connection, self.attributes, self.clock.now_us(), identity != _ABSENT)
        except apsw.InterruptError:
            raise TooSlow(f"The query took more than {query_s_max:g} s", todo="Take a shorter window or fewer dimensions") from None
        except apsw.BusyError:
            raise TooSlow("The store is busy", todo="Try again in a second") from None
        finally:
            self._give_back(identity, connection)

    def close(self) -> None:
        while not self._idle.empty():
            self._idle.get_nowait()[1].close()

    def _borrow(self) -> tuple[tuple[int, int], apsw.Connection]:
        identity = _identity(self.path)
        while True:
            try:
                known, connection = self._idle.get_nowait()
            except queue.Empty:
                break
            if known == identity:
                return known, connection
            connection.close()
        if identity != _ABSENT:
            connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
            connection.set_busy_timeout(busy_ms)
            # A store of another version is as good as none: the engine makes it anew.
            if connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'meta'").get:
                if connection.execute("SELECT value FROM meta WHERE key = 'version'").get == VERSION:
                    return identity, connection
            connection.close()
        connection = apsw.Connection(":memory:")
        connection.execute(SCHEMA)
        return _ABSENT, connection

    def _give_back(self, identity: tuple[int, int], connection: apsw.Connection) -> None:
        connection.set_progress_handler(None)
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        try:
            self._idle.put_nowait((identity, connection))
        except queue.Full:
            connection.close()


_ABSENT = (0, 0)


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return _ABSENT
    return (found.st_dev, found.st_ino) if found.st_size else _ABSENT


class View:
    """The store at one moment. ``now_us`` is the wall clock, but never before the log's own time."""

    def __init__(self, connection: apsw.Connection, attributes: tuple[str, ...], now_us: int, present: bool) -> None:
        self.db = connection
        self.attributes = attributes
        self.present = present
        self.log_time_us = int(self._meta("log_time_us") or 0)
        self.position = int(self._meta("position") or 0)
        self.recent_from = int(self._meta("recent_from") or 0)
        self.now_us = max(now_us, self.log_time_us)
        self._names: dict[tuple[str, int], str] = {}
        self._keys = dimension_keys(attributes)

    def _meta(self, key: str) -> object:
        return self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).get

    # -- names -------------------------------------------------------------------------------------------------------

    def name(self, kind: str, id_: int) -> str:
        """Return the name behind an id; ``""`` for 0 and for one that is not known."""
        if not id_:
            return ""
        key = (kind, id_)
        if key not in self._names:
            self._names[key] = self.db.execute("SELECT name FROM names WHERE kind = ? AND id = ?", key).get or ""
        return self._names[key]

    def id(self, kind: str, name: str) -> int | None:
        """Return the id of a name; 0 for ``""``, None where it is unknown."""
        return 0 if name == "" else self.db.execute("SELECT id FROM names WHERE kind = ? AND name = ?", (kind, name)).get

    def names(self, kind: str, most: int = 5_000) -> list[str]:
        """Return the newest names of a kind."""
        return [n for (n,) in self.db.execute("SELECT name FROM names WHERE kind = ? ORDER BY id DESC LIMIT ?", (kind, most))]

    def campaign_id(self, name: str) -> int:
        """Return a campaign's id. Raises NotFound with the nearest known name."""
        found = self.id("campaign", name)
        if found is None:
            raise NotFound(f"Unknown campaign `{name[:100]}`", where="campaign", todo=closest(name[:100], self.names("campaign")))
        return found

    def _dimension(self, key: str) -> str:
        """Return the kind of names behind a dimension's key. Raises Unknown."""
        if key not in self._keys:
            raise Unknown(f"Unknown dimension `{key[:100]}`", where="by", todo=nearest(key[:100], (*self._keys, *TIMES)))
        return self._keys[key]

    def _column(self, key: str, part: Part | None = None) -> str:
        if key == "minute":
            return "x.minute"
        if key == "hour":
            return "x.hour" if part and part.unit == "hour" else "x.minute / 60 * 60"
        kind = self._dimension(key)
        if kind.startswith("attribute:"):
            return f"(x.segment >> {8 * self.attributes.index(kind[10:])}) & 255"
        return f"x.{kind}"

    def dimension_values(self, key: str) -> list[str]:
        """Return the known names of a dimension."""
        return self.names(self._dimension(key))

    # -- numbers -----------------------------------------------------------------------------------------------------

    def numbers(self, query: Query) -> dict:
        """Answer a query: rows by dimensions, their total, freshness, machine share. Raises Unknown, WrongQuery, NotFound."""
        return self.answer(query, self.groups(query))

    def answer(self, query: Query, groups: dict[tuple, Sums]) -> dict:
        """Return the answer to a query from its groups."""
        metrics = self._metrics(query.metrics)
        within_s = snapped_s(query.within_minutes)
        total = Sums(machines=query.machines, within_s=within_s)
        for sums in groups.values():
            add(total, sums)
        if not groups:
            total.measures = dict.fromkeys(self._needed(query, metrics), 0)
        keys = sorted(groups, key=lambda key: (self._time_of(query, key), -weight(groups[key]), key))
        rows = []
        for key in keys[: query.rows_max]:
            groups[key].within_s, groups[key].machines = within_s, query.machines
            rows.append(self._row(query, key, groups[key], metrics))
        return {
            "rows": rows,
            "total": self._row(msgspec.structs.replace(query, by=()), (), total, metrics),
            "left_off": max(0, len(keys) - query.rows_max),
            "by": list(query.by),
            "machines": "with" if query.machines else "without",
            "machine_share": all_metrics()["machine_share"].compute(total).value,
            "within_minutes": within_s / 60 if within_s else None,
            "window": self._window(query),
            "freshness": self.freshness(),
        }

    def series(self, query: Query, step: str) -> dict:
        """Answer a query as one series for each combination of dimensions, at every minute or hour of the window."""
        metrics = self._metrics(query.metrics)
        within_s = snapped_s(query.within_minutes)
        stepped = msgspec.structs.replace(query, by=(*query.by, step))
        groups = self.groups(stepped)
        size = 60 if step == "hour" else 1
        first, last = self._span(query, [key[-1] for key in groups])
        ticks = list(range(first // size * size, last + 1, size))
        lines: dict[tuple, dict[int, Sums]] = {}
        for key, sums in groups.items():
            lines.setdefault(key[:-1], {})[key[-1]] = sums
        if len(ticks) * max(1, len(lines)) > points_max:
            raise WrongQuery(
                "Too many points", expected=f"at most {points_max}", got=len(ticks) * len(lines), todo="Take a shorter window or step=hour"
            )
        out = []
        for key in sorted(lines, key=lambda key: (-sum(weight(s) for s in lines[key].values()), key)):
            values: dict[str, list] = {name: [] for name in (*query.measures, *metrics)}
            for tick in ticks:
                sums = lines[key].get(tick) or Sums(measures={})
                sums.machines, sums.within_s = query.machines, within_s
                for name in query.measures:
                    values[name].append(sums.measures.get(name, 0))
                for name, metric in metrics.items():
                    values[name].append(metric.compute(sums).value)
            out.append({**self._labels(query.by, key), "values": values})
        return {
            "step_minutes": size,
            "times": [iso(tick * minute_us) for tick in ticks],
            "series": out,
            "by": list(query.by),
            "machines": "with" if query.machines else "without",
            "machine_share": self._machine_share(groups),
            "window": self._window(stepped),
            "freshness": self.freshness(),
        }

    def delays(self, query: Query, kind: str) -> dict:
        """Return delay curves: for each combination of dimensions n, p50, p90 and the share that happened within each edge."""
        if kind not in DELAYS:
            raise Unknown(f"Unknown kind of delay `{kind[:100]}`", where="kind", todo=nearest(kind[:100], DELAYS))
        groups = self._delay_groups(query, (kind,))
        rows = []
        for key in sorted(groups, key=lambda key: (-sum(groups[key][kind]), key)):
            buckets = groups[key][kind]
            rows.append({**self._labels(query.by, key), **delay_row(buckets)})
        whole = self.groups(msgspec.structs.replace(query, by=(), measures=(), metrics=()))
        return {
            "kind": kind,
            "rows": rows[: query.rows_max],
            "by": list(query.by),
            "machine_share": self._machine_share(whole),
            "window": self._window(query),
            "freshness": self.freshness(),
        }

    def _metrics(self, names: tuple[str, ...] | None) -> dict[str, type[Metric]]:
        known = all_metrics()
        for name in names or ():
            if name not in known:
                raise Unknown(f"Unknown metric `{name[:100]}`", where="metrics", todo=nearest(name[:100], known))
        return known if names is None else {name: known[name] for name in names}

    def _needed(self, query: Query, metrics: dict[str, type[Metric]]) -> list[str]:
        wanted = {*query.measures}
        if not query.bare:
            wanted |= {"opens", "clicks", "opens_human", "clicks_human", "sent", "queued", "delivered"}
        for metric in metrics.values():
            wanted |= metric.measures()
        return [m for m in MEASURES if m in wanted]

    def groups(self, query: Query) -> dict[tuple, Sums]:
        """Return the sums of each combination of dimensions, by ids. One walk along the cells, one along the delays if needed."""
        metrics = self._metrics(query.metrics)
        if len(query.by) > by_max or len(set(query.by)) < len(query.by):
            raise WrongQuery("Too many dimensions, or one twice", expected=f"at most {by_max} different ones", where="by")
        needed = self._needed(query, metrics)
        out = self._cell_groups(query, needed)
        kinds = tuple(sorted({m.delay for m in metrics.values() if m.delay} | set(query.delays)))
        if kinds:
            for key, delays in self._delay_groups(query, kinds).items():
                if key not in out:
                    out[key] = Sums(measures=dict.fromkeys(needed, 0), machines=query.machines)
                out[key].delays = delays
        return out

    def _cell_groups(self, query: Query, needed: list[str]) -> dict[tuple, Sums]:
        out: dict[tuple, Sums] = {}
        if set(query.by) | {k for k, _ in query.where} <= {"campaign"} and not query.window.bounded:
            self._add_cells(out, query, needed, *self._campaign_source(query))
            return out
        for part in self._parts(query):
            source, values = self._source(query, part.cells, part)
            self._add_cells(out, query, needed, source, values, part)
        return out

    def _add_cells(
        self, out: dict[tuple, Sums], query: Query, needed: list[str], source: str, values: list, part: Part | None = None
    ) -> None:
        columns = [self._column(key, part) for key in query.by]
        if part and query.campaign is not None and set(query.by) <= {"variant", "campaign"}:
            # Along the key's own order no row has to be sorted: less than half of the work, and few rows to add up here.
            columns.append(part.time)
        sums = [f"sum(x.{m})" for m in needed]
        group = f"GROUP BY {', '.join(str(i + 1) for i in range(len(columns)))}" if columns else "HAVING count(*) > 0"
        n, keyed = len(columns), len(query.by)
        for row in self.db.execute(f"SELECT {', '.join([*columns, *sums])} {source} {group}", values):
            found = Sums(measures=dict(zip(needed, row[n:], strict=True)), machines=query.machines)
            before = out.setdefault(row[:keyed], found)
            if before is not found:
                add(before, found)

    def _delay_groups(self, query: Query, kinds: tuple[str, ...]) -> dict[tuple, dict[str, list[int]]]:
        marks = ", ".join("?" for _ in kinds)
        keyed = len(query.by)
        out: dict[tuple, dict[str, list[int]]] = {}
        for part in self._parts(query):
            columns = [*(self._column(key, part) for key in query.by), "x.kind", "x.bucket"]
            group = ", ".join(str(i + 1) for i in range(len(columns)))
            if part.unit == "hour" and query.campaign is not None and set(query.by) <= {"variant", "campaign"}:
                # The same here.
                group = "x.kind, x.hour, x.variant, x.bucket"
            source, values = self._source(query, part.delays, part)
            sql = f"SELECT {', '.join(columns)}, sum(x.n) {source} AND x.kind IN ({marks}) GROUP BY {group}"
            for row in self.db.execute(sql, (*values, *(DELAYS.index(k) for k in kinds))):
                kind, bucket, n = row[keyed:]
                delays = out.setdefault(row[:keyed], {k: [0] * (len(DELAY_EDGES_S) + 1) for k in kinds})
                delays[DELAYS[kind]][min(bucket, len(DELAY_EDGES_S))] += n
        return out

    def _parts(self, query: Query) -> list[Part]:
        """Cut a window into the whole hours that are kept summed, the minutes at its two ends, and the seconds before the first minute."""
        window, minutes = query.window, "minute" in query.by
        if not window.bounded:
            return [Part("minute" if minutes else "hour")]
        if minutes:
            return [Part("minute", window.first, window.last)]
        lived, values = "SELECT min(first_minute), max(last_minute) FROM campaigns", ()
        if query.campaign is not None:
            lived, values = lived + " WHERE campaign = ?", (self.campaign_id(query.campaign),)
        begun, ended = self.db.execute(lived, values).fetchone()
        if begun is None:
            return []
        # An hour is whole where the window has all of it that anything happened in.
        first = window.first if window.first > begun else begun // 60 * 60
        end = window.last + 1 if window.last < ended else (ended // 60 + 1) * 60
        first_hour, end_hour = -(-first // 60) * 60, end // 60 * 60
        parts = [Part("minute", first, end - 1)]
        if first_hour < end_hour:
            parts = [Part("minute", first, first_hour - 1), Part("hour", first_hour, end_hour - 60), Part("minute", end_hour, end - 1)]
        if self._begins_at_a_second(query):
            parts.append(Part("second", window.since_s, window.first * 60 - 1))
        return [part for part in parts if part.first <= part.last]

    def _begins_at_a_second(self, query: Query) -> bool:
        """Tell whether the store knows the seconds that a window begins with; what goes by minute or hour begins with a whole one."""
        return not set(query.by) & set(TIMES) and 0 < self.recent_from <= query.window.since_s

    def _source(self, query: Query, table: str, part: Part) -> tuple[str, list]:
        """Return FROM and WHERE that walk along the primary key (campaign, time), and their values."""
        if query.campaign is not None:
            sql, values = f"FROM {table} x WHERE x.campaign = ?", [self.campaign_id(query.campaign)]
        elif part.first is not None:
            sql = (
                "FROM (SELECT 0 AS campaign UNION SELECT campaign FROM campaigns WHERE last_minute >= ? AND first_minute <= ?) c"
                f" CROSS JOIN {table} x ON x.campaign = c.campaign WHERE 1"
            )
            values = list(part.minutes())
        else:
            sql, values = f"FROM {table} x WHERE 1", []
        if part.first is not None:
            sql += f" AND {part.time} BETWEEN ? AND ?"
            values += [part.first, part.last]
        return self._filtered(query, sql, values)

    def _campaign_source(self, query: Query) -> tuple[str, list]:
        """The same over the kept sums of whole campaigns: no cell is read for a campaign's whole life."""
        if query.campaign is not None:
            return self._filtered(query, "FROM campaigns x WHERE x.campaign = ?", [self.campaign_id(query.campaign)])
        return self._filtered(query, "FROM campaigns x WHERE 1", [])

    def _filtered(self, query: Query, sql: str, values: list) -> tuple[str, list]:
        names: dict[str, list[str]] = {}
        for key, name in query.where:
            names.setdefault(key, []).append(name)
        for key, wanted in names.items():
            kind = self._dimension(key)
            ids = [self.id(kind, name) for name in wanted]
            if None in ids:
                missing = wanted[ids.index(None)][:100]
                raise Unknown(f"Unknown {key}: `{missing}`", where="where", todo=closest(missing, self.names(kind)))
            sql += f" AND {self._column(key)} IN ({', '.join('?' for _ in ids)})"
            values = [*values, *ids]
        return sql, values

    def _labels(self, by: tuple[str, ...], key: tuple) -> dict:
        return {
            dimension: iso(id_ * minute_us) if dimension in TIMES else self.name(self._keys[dimension], id_)
            for dimension, id_ in zip(by, key, strict=True)
        }

    def _row(self, query: Query, key: tuple, sums: Sums, metrics: dict[str, type[Metric]]) -> dict:
        row = self._labels(query.by, key)
        row.update((m, sums.measures.get(m, 0)) for m in query.measures)
        intervals = {}
        for name, metric in metrics.items():
            value = metric.compute(sums)
            row[name] = value.value
            if value.low is not None:
                intervals[name] = [value.low, value.high]
        row["intervals"] = intervals
        return row

    @staticmethod
    def _time_of(query: Query, key: tuple) -> int:
        return next((id_ for dimension, id_ in zip(query.by, key, strict=True) if dimension in TIMES), 0)

    @staticmethod
    def _machine_share(groups: dict[tuple, Sums]) -> float | None:
        total = Sums()
        for sums in groups.values():
            add(total, sums)
        return all_metrics()["machine_share"].compute(total).value

    def _span(self, query: Query, minutes: list[int]) -> tuple[int, int]:
        """Return the first and last minute that a query covers; ``all`` reaches from the first number to now."""
        if query.window.bounded and query.window.first > 0:
            return query.window.first, query.window.last
        first = min(minutes, default=query.window.last)
        return first, max(query.window.last, first)

    def _window(self, query: Query) -> dict:
        first = query.window.first
        if not first and query.campaign is not None:
            sql = "SELECT first_minute FROM campaigns WHERE campaign = ?"
            first = self.db.execute(sql, (self.campaign_id(query.campaign),)).get or 0
        begin, end = first * minute_us, (query.window.last + 1) * minute_us
        if self._begins_at_a_second(query):
            begin, end = query.window.since_s * 1_000_000, (query.window.since_s + 60 * (query.window.last - first + 1)) * 1_000_000
        return {"name": query.window.name, "from": iso(begin), "to": iso(end)}

    # -- freshness ---------------------------------------------------------------------------------------------------

    def freshness(self) -> dict:
        """Return how long a request took to become a readable number, in the last minute with data."""
        buckets = [0] * (len(FRESHNESS_EDGES_MS) + 1)
        minute = self.db.execute("SELECT max(minute) FROM freshness").get
        if minute is not None:
            for bucket, n in self.db.execute("SELECT bucket, n FROM freshness WHERE minute = ?", (minute,)):
                buckets[min(bucket, len(FRESHNESS_EDGES_MS))] += n
        p50, p99 = (quantile(buckets, q, FRESHNESS_EDGES_MS) for q in (0.5, 0.99))
        return {
            "p50_ms": p50,
            "p99_ms": p99,
            "minute": iso((minute or 0) * minute_us),
            "log_position": self.position,
            "log_time": iso(self.log_time_us),
        }

    # -- campaigns ---------------------------------------------------------------------------------------------------

    def campaigns(self, *, search: str = "", limit: int = 50, after: tuple[int, int] | None = None, since_minute: int = 0) -> list[dict]:
        """Return campaigns, the last active first, with their sums; ``after`` is (last_minute, campaign) of the row before."""
        sql, values = "SELECT * FROM campaigns x WHERE last_minute >= ?", [since_minute]
        if after:
            sql += " AND (last_minute, campaign) < (?, ?)"
            values += after
        if search:
            sql += " AND campaign IN (SELECT id FROM names WHERE kind = 'campaign' AND name LIKE ? ESCAPE '!')"
            values.append("%" + re.sub(r"([!%_])", r"!\1", search) + "%")
        sql += " ORDER BY last_minute DESC, campaign DESC LIMIT ?"
        out = []
        for id_, first, last, *sums in self.db.execute(sql, (*values, limit)):
            out.append(
                {
                    "id": id_,
                    "name": self.name("campaign", id_),
                    "first": first,
                    "last": last,
                    "sums": dict(zip(MEASURES, sums, strict=True)),
                }
            )
        return out

    def campaign(self, name: str) -> dict:
        """Return one campaign with its sums. Raises NotFound."""
        id_ = self.campaign_id(name)
        row = self.db.execute("SELECT * FROM campaigns WHERE campaign = ?", (id_,)).fetchone()
        if row is None:
            raise NotFound(f"Nothing has happened yet in campaign `{name[:100]}`", where="campaign")
        return {"id": id_, "name": name, "first": row[1], "last": row[2], "sums": dict(zip(MEASURES, row[3:], strict=True))}

    def activity(self, campaigns: list[int], first: int, last: int) -> dict[int, dict[int, int]]:
        """Return ``{campaign: {minute: deliveries, opens and clicks}}`` for sparklines."""
        out: dict[int, dict[int, int]] = {id_: {} for id_ in campaigns}
        sums = " + ".join(ACTIVITY)
        sql = f"SELECT minute, sum({sums}) FROM cells WHERE campaign = ? AND minute BETWEEN ? AND ? GROUP BY minute"
        for id_ in campaigns:
            out[id_] = dict(self.db.execute(sql, (id_, first, last)))
        return out

    def is_crowded(self, campaign: str, first: int, last: int, cells_max: int) -> bool:
        """Tell whether a campaign has more cells in a span of minutes; they are counted no further."""
        sql = "SELECT 1 FROM cells WHERE campaign = ? AND minute BETWEEN ? AND ? LIMIT 1 OFFSET ?"
        return self.db.execute(sql, (self.campaign_id(campaign), first, last, cells_max)).get is not None

    # -- people ------------------------------------------------------------------------------------------------------

    def waiting(self, campaign: str, minutes: int, limit: int, after: tuple[int, int] | None = None) -> dict:
        """Return who clicked at least ``minutes`` ago and has not converted, the latest click first."""
        id_ = self.campaign_id(campaign)
        until = self.now_us - minutes * minute_us
        sql = "FROM clickers WHERE campaign = ? AND converted_at_us = 0 AND clicked_at_us <= ?"
        page, values = sql, [id_, until]
        if after:
            page += " AND (clicked_at_us, message) < (?, ?)"
            values += after
        found = list(
            self.db.execute(
                f"SELECT message, recipient, variant, wave, clicked_at_us {page} ORDER BY clicked_at_us DESC, message DESC LIMIT ?",
                (*values, limit + 1),
            )
        )
        count = self.db.execute(f"SELECT count(*) FROM (SELECT 1 {sql} LIMIT {waiting_count_max})", (id_, until)).get
        rows = [
            {
                "recipient": recipient,
                "variant": self.name("variant", variant),
                "wave": self.name("wave", wave),
                "clicked_at": iso(at),
                "waited_s": max(0, (self.now_us - at) // 1_000_000),
            }
            for _, recipient, variant, wave, at in found[:limit]
        ]
        following = f"{found[limit - 1][4]}.{found[limit - 1][0]}" if len(found) > limit else None
        return {"campaign": campaign, "minutes": minutes, "count": count, "count_max": waiting_count_max, "rows": rows, "next": following}

    # -- sources -----------------------------------------------------------------------------------------------------

    def source_names(self) -> list[str]:
        """Return every source that ever sent, by jumping along the key instead of reading the table."""
        sql = """WITH RECURSIVE s(name) AS (SELECT min(source) FROM receipts UNION ALL
            SELECT (SELECT min(source) FROM receipts WHERE source > s.name) FROM s WHERE s.name IS NOT NULL)
            SELECT name FROM s WHERE name IS NOT NULL LIMIT 1000"""
        return [n for (n,) in self.db.execute(sql)]

    def receipts(self, source: str, first: int, last: int) -> list[tuple]:
        """Return ``(minute, records, events, duplicates, bad)`` of a source, by minute."""
        sql = "SELECT minute, records, events, duplicates, bad FROM receipts WHERE source = ? AND minute BETWEEN ? AND ? ORDER BY minute"
        return list(self.db.execute(sql, (source, first, last)))

    def received(self, source: str, first: int, last: int) -> dict:
        """Return the sums of a source's receipts in a span of minutes."""
        sql = """SELECT sum(records), sum(events), sum(duplicates), sum(bad) FROM receipts WHERE source = ? AND minute BETWEEN ? AND ?"""
        row = self.db.execute(sql, (source, first, last)).fetchone()
        return dict(zip(("records", "events", "duplicates", "bad"), (n or 0 for n in row), strict=True))

    def last_event_us(self, source: str) -> int:
        """Return when a source's last event was received; 0 for never."""
        sql = "SELECT last_event_us FROM receipts WHERE source = ? AND last_event_us > 0 ORDER BY minute DESC LIMIT 1"
        return self.db.execute(sql, (source,)).get or 0

    def drops(self) -> dict[str, dict[str, int]]:
        """Return ``{source: {reason: n}}`` of all events that were dropped, ever."""
        out: dict[str, dict[str, int]] = {}
        for source, reason, n in self.db.execute("SELECT source, reason, n FROM drops"):
            out.setdefault(source, {})[reason] = n
        return out

    def dead_counts(self, most: int = 10_000) -> dict[str, int]:
        """Return how many dead letters wait for each source; counting ends at ``most`` letters of a source."""
        sql = """WITH RECURSIVE s(name) AS (SELECT min(source) FROM dead UNION ALL
            SELECT (SELECT min(source) FROM dead WHERE source > s.name) FROM s WHERE s.name IS NOT NULL)
            SELECT name, (SELECT count(*) FROM (SELECT 1 FROM dead WHERE source = s.name AND state IN (0, 2) LIMIT ?)) AS n
            FROM s WHERE n > 0 LIMIT 1000"""
        return dict(self.db.execute(sql, (most,)))

    def dead(
        self, *, source: str | None, state: int | None, limit: int, after: tuple[int, int] | None = None, raw_bytes: int = 0
    ) -> tuple[list[dict], str | None]:
        """Return dead letters, the newest first, with the beginning of their bytes and how many there are; and the next page's cursor.

        A letter can be as large as a request, so no list ever holds whole ones: ``letter`` reads one.
        """
        which, values = "FROM dead WHERE 1", []
        if source is not None:
            which, values = which + " AND source = ?", [source]
        if state is not None:
            which, values = which + " AND state = ?", [*values, state]
        if after:
            which, values = which + " AND (position, item) < (?, ?)", [*values, *after]
        order = "ORDER BY position DESC, item DESC"
        if values:
            # Chosen and sorted in the index alone: the letters themselves are read of one page only.
            which = f"FROM dead WHERE (position, item) IN (SELECT position, item {which} {order} LIMIT ?)"
        else:
            order += " LIMIT ?"
        # Without a beginning to show, SQLite takes the length from the row's head and reads no bytes.
        beginning = f"substr(raw, 1, {raw_bytes:d})" if raw_bytes else "x''"
        sql = f"SELECT position, item, source, reason, detail, {beginning}, octet_length(raw), at_us, state {which} {order}"
        found = list(self.db.execute(sql, (*values, limit + 1)))
        names = ("position", "item", "source", "reason", "detail", "raw", "bytes", "at_us", "state")
        rows = [dict(zip(names, row, strict=True)) for row in found[:limit]]
        return rows, f"{rows[-1]['position']}.{rows[-1]['item']}" if len(found) > limit else None

    def has_letter(self, position: int, item: int) -> bool:
        """Tell whether there is such a dead letter, without reading it."""
        return self.db.execute("SELECT 1 FROM dead WHERE position = ? AND item = ?", (position, item)).get is not None

    def letter(self, position: int, item: int) -> dict | None:
        """Return one dead letter with all its bytes."""
        sql = "SELECT position, item, source, reason, detail, raw, at_us, state FROM dead WHERE position = ? AND item = ?"
        row = self.db.execute(sql, (position, item)).fetchone()
        return dict(zip(("position", "item", "source", "reason", "detail", "raw", "at_us", "state"), row, strict=True)) if row else None


def closest(name: str, known: list[str]) -> str:
    """Return the nearest of many names that came from outside; where none is near, a few of them, each cut short."""
    beginnings = [k[:100] for k in known if k[:100].casefold().startswith(name.casefold())]
    close = beginnings[:1] or difflib.get_close_matches(name, [k[:100] for k in known], n=1, cutoff=0.5)
    return nearest(name, close or [k[:100] for k in known[:8]]) if not beginnings else f"Did you mean `{beginnings[0]}`?"


@cache
def all_metrics() -> dict[str, type[Metric]]:
    """Return every metric by name; the folder is read once."""
    return REGISTRY.all()


def dimension_keys(attributes: tuple[str, ...]) -> dict[str, str]:
    """Return ``{key in queries: kind of names}``. An attribute named like a column of the answer is called ``attribute:NAME``."""
    taken = {*DIMENSIONS, *MEASURES, *TIMES, *all_metrics(), "intervals", "values", "n", "curve"}
    keys = {d: d for d in DIMENSIONS}
    for name in attributes:
        keys[f"attribute:{name}" if name in taken else name] = f"attribute:{name}"
    return keys


def delay_row(buckets: list[int]) -> dict:
    """Return what is told of one delay distribution."""
    return {
        "n": sum(buckets),
        "p50_s": quantile(buckets, 0.5),
        "p90_s": quantile(buckets, 0.9),
        "curve": [[edge, share] for edge, share in curve(buckets)],
    }


def snapped_s(minutes: int) -> int:
    """Return the last bucket edge at or before so many minutes, in seconds; 0 for 0. Raises WrongQuery below the first."""
    if minutes <= 0:
        return 0
    return max(edge for edge in DELAY_EDGES_S if edge <= minutes * 60)


def weight(sums: Sums) -> int:
    """Return how much mail a group stands for; the biggest come first."""
    m = sums.measures
    return max(m.get("sent", 0), m.get("queued", 0), m.get("delivered", 0)) or m.get("opens", 0) + m.get("clicks", 0)


def add(total: Sums, sums: Sums) -> None:
    """Add one group to a total."""
    for name, n in sums.measures.items():
        total.measures[name] = total.measures.get(name, 0) + n
    for kind, buckets in sums.delays.items():
        before = total.delays.get(kind)
        total.delays[kind] = [a + b for a, b in zip(before, buckets, strict=True)] if before else list(buckets)
