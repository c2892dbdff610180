"""The process that keeps the history behind the fold, and one person's timeline out of it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import msgspec

from ..config import Config, load_config
from ..events import Event, recipient_key
from ..kit.clock import Clock
from ..kit.errors import MidflightError, NotFound
from ..log.reader import Reader
from ..log.record import Record
from ..store.history import (
    OBJECTS,
    TEXTS,
    Exporter,
    Part,
    Row,
    committed_position,
    done_position,
    folder_of,
    key_hash,
    key_text,
    newest_marks,
    paths_sql,
    store_opened,
    written,
)
from ..store.reading import Reading
from ..store.sql import tail
from ..stream.agents import Action, judge

logger = logging.getLogger(__name__)

flush_s = 3.0  # how long an event may wait to be in a part; until then it is read from the log
retry_s = 10.0
niceness = 10
days_at_a_time = 32
events_default = 500


# -- the process ---------------------------------------------------------------------------------------------------------


def run(config: Config, stop: threading.Event, clock: Clock | None = None) -> None:
    """Follow the log until ``stop`` is set. Raises Locked where another process does; anything else is tried again."""
    clock = clock or Clock()
    reading = Reading(config)
    with Reader(config.folder / "log") as log:
        exporter = Exporter(config.folder, log, reading, clock, days_kept=config.retention.history_days)
        with exporter.opened():
            while not stop.is_set():
                try:
                    more = exporter.follow(committed_position(config.folder))
                    more = more or exporter.tidy()
                    exporter.copy_marks(config.folder / "store.db")
                    wait_s = 0.0 if more else flush_s
                except (OSError, duckdb.Error, MidflightError) as error:
                    # A full disk or a damaged place in the log. Nothing is lost: what is not written stays in the log.
                    logger.warning("the history waits: %s", error)
                    exporter.position = done_position(exporter.folder)
                    wait_s = retry_s
                stop.wait(wait_s)


def run_history(config: Config) -> None:
    """Be the history's process: at low priority, until SIGTERM or SIGINT."""
    os.nice(niceness)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run(config, stop)


# -- one person ----------------------------------------------------------------------------------------------------------


def timeline(data: str | Path, recipient: str, *, limit: int = events_default, config: Config | None = None) -> list[dict]:
    """Return what happened to a recipient, the newest receipt first, at most ``limit`` events; duplicates left out.

    ``recipient`` is an address in any spelling, or the sender's own id. Each event is its fields (times as ISO 8601 in UTC,
    empty ones left out) with ``position`` and ``item``, which `raw_event` takes.
    """
    data, config = Path(data), config or _config(data)
    address = recipient_key(recipient)
    for attempt in range(3):
        parts, position = written(folder_of(data))
        newest = tail(data, config, position)
        try:
            keys = {address} if address else {f"id:{recipient}", *_addresses(recipient, newest, parts)}
            found = _of(keys, newest, parts, limit)
            # What somebody did before or without saying the address stands under the sender's own id for them.
            more = {f"id:{row.event.user_id}" for row in found if _identifies(row.event)} - keys
            if more:
                found = sorted(found + _of(more, newest, parts, limit), key=_place, reverse=True)
            break
        except duckdb.IOException:
            # A merge took a file away between the look at the folder and the reading.
            if attempt == 2:
                raise
    marks = _marks_of(data, [_place(row) for row in found])
    # A mark without a reason is a repetition's.
    kept = [row for row in found if all(":" in mark for mark in marks.get(_place(row), ()))]
    judged(kept)
    return [_marked(_shown(row), marks.get(_place(row), ())) for row in kept][:limit]


def judged(rows: list[Row]) -> None:
    """Set the agents of opens and clicks by what the other events of their message say: timing and bursts."""
    messages: dict[tuple[str, str, str], list[Event]] = defaultdict(list)
    for row in rows:
        event = row.event
        messages[event.source, event.message_id or event.campaign, recipient_key(event.recipient)].append(event)
    for events in messages.values():
        delivered_us = min((_at_us(event) for event in events if event.kind == "delivered"), default=None)
        acts = [event for event in events if event.kind in ("opened", "clicked")]
        actions = [Action(event.kind, _at_us(event), event.url, event.agent, event.agent_reason) for event in acts]
        for event, verdict in zip(acts, judge(actions, delivered_us), strict=True):
            event.agent, event.agent_reason = verdict


def _at_us(event: Event) -> int:
    """Return when an event counts: nothing happens after it was reported."""
    return min(event.occurred_at_us or event.received_at_us, event.received_at_us)


def _config(data: Path) -> Config:
    config = load_config()
    config.data = str(data)
    return config


def _place(row: Row) -> tuple[int, int]:
    return row.position, row.item


def _identifies(event: Event) -> bool:
    return event.kind == "identified" and event.user_id != ""


def _addresses(user_id: str, newest: list[Row], parts: list[Part]) -> set[str]:
    """Return the addresses that identifications have given to a sender's own id."""
    said = {key_text(row.event) for row in newest if row.event.user_id == user_id and _identifies(row.event)}
    if parts:
        with duckdb.connect(":memory:", config={"threads": 1, "memory_limit": "256MB"}) as db:
            files = f"read_parquet({paths_sql(parts)}, hive_partitioning = false, union_by_name = true)"
            found = db.execute(f"SELECT DISTINCT recipient FROM {files} WHERE user_id = ? AND kind = 'identified'", [user_id])
            said |= {recipient_key(address) for (address,) in found.fetchall()}
    return said - {""}


def _of(keys: set[str], newest: list[Row], parts: list[Part], limit: int) -> list[Row]:
    """Return the rows of some keys, the newest first: out of the newest, then day by day until there is enough."""
    found = sorted((row for row in newest if key_text(row.event) in keys), key=_place, reverse=True)
    days = sorted({part.day for part in parts}, reverse=True)
    hashes = [key_hash(key) for key in keys]
    with duckdb.connect(":memory:", config={"threads": 1, "memory_limit": "256MB"}) as db:
        for at in range(0, len(days), days_at_a_time):
            if len(found) >= limit:
                break
            some = set(days[at : at + days_at_a_time])
            files = paths_sql([part for part in parts if part.day in some])
            db.execute(
                f"SELECT * REPLACE (epoch_us(occurred_at) AS occurred_at, epoch_us(received_at) AS received_at)"
                f" FROM read_parquet({files}, hive_partitioning = false, union_by_name = true)"
                f" WHERE recipient_key IN ({', '.join(str(h) for h in hashes)}) ORDER BY position DESC, item DESC LIMIT {int(limit)}"
            )
            names = [column[0] for column in db.description]
            rows = [_row(dict(zip(names, row, strict=True))) for row in db.fetchall()]
            # Two people may share a hash.
            found += [row for row in rows if key_text(row.event) in keys]
    return found


def _row(row: dict) -> Row:
    event = Event(**{name: row[name] or "" for name in TEXTS})
    event.occurred_at_us, event.received_at_us = row["occurred_at"] or 0, row["received_at"]
    event.value_micros = row["value_micros"]
    for name in OBJECTS:
        if row[name]:
            setattr(event, name, msgspec.json.decode(row[name]))
    return Row(row["position"], row["item"], event)


def _shown(row: Row) -> dict:
    """Return an event as plain data for a person or a program."""
    event = row.event
    out = {"position": row.position, "item": row.item, **msgspec.to_builtins(event)}
    out.pop("occurred_at_us", None)
    micros = out.pop("value_micros", 0)
    out["received_at"] = _iso(out.pop("received_at_us", 0))
    out["occurred_at"] = _iso(event.occurred_at_us)
    if micros:
        out["value"] = micros / 1e6
    return out


def _iso(at_us: int) -> str | None:
    try:
        return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if at_us else None
    except (ValueError, OverflowError):
        return None


def _marks_of(data: Path, places: list[tuple[int, int]]) -> dict[tuple[int, int], list[str]]:
    """Return the marks of some events, from the store, else from the history's copy."""
    marks: dict[tuple[int, int], list[str]] = {}
    with store_opened(data / "store.db") as db:
        if db is not None:
            for position, item in places:
                found = [mark for (mark,) in db.execute("SELECT mark FROM marks WHERE position = ? AND item = ?", (position, item))]
                if found:
                    marks[position, item] = found
            return marks
    newest = newest_marks(folder_of(data))
    if newest and places:
        with duckdb.connect(":memory:", config={"threads": 1}) as wanted:
            positions = sorted({position for position, _ in places})
            wanted.execute(f"SELECT * FROM read_parquet({paths_sql([newest[1]])}) WHERE position IN (SELECT unnest(?))", [positions])
            for position, item, mark in wanted.fetchall():
                marks.setdefault((position, item), []).append(mark)
    return marks


def _marked(event: dict, marks: list[str]) -> dict:
    """Apply what was said of an event later."""
    if marks:
        agent, _, reason = max(marks).partition(":")
        event |= {"agent": agent, "agent_reason": reason}
    return event


def raw_event(data: str | Path, position: int, item: int = 0, *, config: Config | None = None) -> dict:
    """Return what the sender sent: the record's kind, source, receipt, headers and body, and the event read from it.

    Raises NotFound where the log no longer has it or the record has no such event.
    """
    data = Path(data)
    with Reader(data / "log") as log:
        records = log.read(position, 1) if log.first() <= position else []
    record: Record | None = next((record for record in records if record.position == position), None)
    if record is None:
        raise NotFound(f"The log has no record at {position}", todo="Requests are kept for `retention.log_days`, events for longer")
    events = dict(Reading(config or _config(data)).events(record))
    if item not in events:
        known = ", ".join(str(number) for number in list(events)[:20])
        raise NotFound(f"The record at {position} has no event {item}", expected=known or "no event at all")
    return {
        "position": position,
        "item": item,
        "kind": record.kind,
        "source": record.source,
        "received_at": _iso(record.at_us),
        "url": record.url,
        "headers": dict(record.headers),
        "body": record.body.decode("utf-8", "replace"),
        "event": _shown(Row(position, item, events[item])),
    }


def status(config: Config) -> dict:
    """Return events, parts and bytes of each day, and how many events wait for their part."""
    parts, position = written(folder_of(config.folder))
    days = Counter(part.day for part in parts)
    sizes: Counter[str] = Counter()
    for part in parts:
        sizes[part.day] += part.bytes
    rows = dict.fromkeys(days, 0)
    if parts:
        with duckdb.connect(":memory:", config={"threads": 1}) as db:
            for name, count in db.execute(f"SELECT file_name, num_rows FROM parquet_file_metadata({paths_sql(parts)})").fetchall():
                rows[Path(name).parent.name.removeprefix("day=")] += count
    return {
        "waiting": len(tail(config.folder, config, position)),
        "days": [{"day": day, "parts": days[day], "events": rows[day], "bytes": sizes[day]} for day in sorted(days)],
    }
