"""The job on Flink, in SQL with its native operators: JSON source, first row of each event id, earliest act of each message, counts."""

from __future__ import annotations

import time

loaded = time.perf_counter()

import os  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402

from pyflink.table import EnvironmentSettings, TableEnvironment  # noqa: E402

from bench.peers.job import MEASURES, run  # noqa: E402

source = """
CREATE TABLE lines (
    sg_event_id STRING, sg_message_id STRING, event STRING, campaign STRING, `variant` STRING, `timestamp` BIGINT, read_at AS PROCTIME()
) WITH ('connector' = 'filesystem', 'path' = '{path}', 'format' = 'json')
"""
# The first row of each event id, in the order of reading: Flink's own form of deduplication, which keeps one state entry an id.
distinct = """
CREATE TEMPORARY VIEW distinct_events AS SELECT sg_message_id, event, campaign, `variant`, `timestamp` AS happened FROM (
    SELECT *, ROW_NUMBER() OVER (PARTITION BY sg_event_id ORDER BY read_at) AS n FROM lines
) WHERE n = 1
"""
firsts = """
CREATE TEMPORARY VIEW firsts AS SELECT event, campaign, `variant`, MIN(happened) AS happened FROM distinct_events
WHERE event IN ('open', 'click') GROUP BY sg_message_id, event, campaign, `variant`
"""
counts = ", ".join(f"COUNT(*) FILTER (WHERE event = '{name}') AS c{place}" for place, name in enumerate(MEASURES))
cells = f"""
SELECT campaign, `variant`, happened / 60 AS at_minute, {counts} FROM (
    SELECT event, campaign, `variant`, happened FROM distinct_events
    UNION ALL SELECT 'first_' || event, campaign, `variant`, happened FROM firsts
) GROUP BY campaign, `variant`, happened / 60
"""
change = re.compile(rb"([+-][IUD])\[(.*)\]")
settings = {
    "table.exec.mini-batch.enabled": "true",
    "table.exec.mini-batch.allow-latency": "500 ms",
    "table.exec.mini-batch.size": "20000",
    "table.optimizer.agg-phase-strategy": "TWO_PHASE",
    "pipeline.object-reuse": "true",
    "taskmanager.memory.process.size": "4g",
    "state.backend.type": "hashmap",
}


def job(path: str, workers: int) -> dict:
    """Run the query in a JVM of its own, which prints each change of a row, and keep what the last change of each says."""
    with tempfile.TemporaryFile() as printed, stdout_to(printed.fileno()):
        tables = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
        for name, value in (settings | {"parallelism.default": str(workers)}).items():
            tables.get_config().set(name, value)
        columns = ", ".join(f"c{place} BIGINT" for place in range(len(MEASURES)))
        sink = f"CREATE TABLE cells (campaign STRING, `variant` STRING, at_minute BIGINT, {columns}) WITH ('connector' = 'print')"
        for statement in (source.format(path=path), distinct, firsts, sink):
            tables.execute_sql(statement)
        # Reading the changes row by row through the bridge to Python would take longer than all the rest.
        tables.execute_sql(f"INSERT INTO cells {cells}").wait()
        printed.seek(0)
        return last_of(printed)


def last_of(printed) -> dict:
    table: dict = {}
    for line in printed:
        found = change.search(line)
        if found:
            row = found[2].decode().split(", ")
            key = (row[0], row[1], int(row[2]))
            if found[1] in (b"+I", b"+U"):
                table[key] = [int(n) for n in row[3:]]
            elif found[1] == b"-D":
                table.pop(key, None)
    return table


@contextmanager
def stdout_to(file: int) -> Iterator[None]:
    """Let this process and what it starts write its standard output to a file."""
    sys.stdout.flush()
    before = os.dup(1)
    os.dup2(file, 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)


if __name__ == "__main__":
    run(job, loaded)
