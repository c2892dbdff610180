"""The job in DuckDB over the finished file, one event a line: no stream, nothing known before the end; a yardstick, not a peer."""

from __future__ import annotations

import time

loaded = time.perf_counter()

import duckdb  # noqa: E402

from bench.peers.job import MEASURES, run  # noqa: E402

counts = ", ".join(f"count(*) FILTER (event = '{name}')" for name in MEASURES[:9])
query = f"""
WITH every AS (
    SELECT DISTINCT ON (sg_event_id) sg_event_id, sg_message_id, event, campaign, variant, timestamp
    FROM read_json(?, format = 'newline_delimited', columns = {{
        sg_event_id: 'VARCHAR', sg_message_id: 'VARCHAR', event: 'VARCHAR', campaign: 'VARCHAR', variant: 'VARCHAR', timestamp: 'BIGINT'}})
), firsts AS (
    SELECT event, min(timestamp) AS timestamp, any_value(campaign) AS campaign, any_value(variant) AS variant
    FROM every WHERE event IN ('open', 'click') GROUP BY sg_message_id, event
), marked AS (
    SELECT campaign, variant, timestamp, event, 0 AS first FROM every
    UNION ALL SELECT campaign, variant, timestamp, 'first_' || event, 1 FROM firsts
)
SELECT campaign, variant, timestamp // 60, {counts},
    count(*) FILTER (event = 'first_open'), count(*) FILTER (event = 'first_click')
FROM marked GROUP BY ALL
"""


def job(path: str, workers: int) -> dict:
    db = duckdb.connect()
    db.execute(f"SET threads = {workers}")
    return {tuple(row[:3]): list(row[3:]) for row in db.execute(query, [path]).fetchall()}


if __name__ == "__main__":
    run(job, loaded)
