"""The job on Pathway: a Python connector hands over decoded batches, the engine's own incremental group-bys do the rest."""

from __future__ import annotations

import time

loaded = time.perf_counter()

import os  # noqa: E402
import sys  # noqa: E402

os.environ["PATHWAY_THREADS"] = sys.argv[3]  # read once, when the module is loaded

import orjson  # noqa: E402
import pathway as pw  # noqa: E402

from bench.peers.job import CLICKED, MEASURES, OPENED, PLACE, batches, run  # noqa: E402


class Event(pw.Schema):
    event_id: str = pw.column_definition(primary_key=True)  # a second row with the same key replaces the first: that drops repetitions
    message: str
    kind: int
    campaign: str
    variant: str
    at: int


class Lines(pw.io.python.ConnectorSubject):
    def __init__(self, path: str) -> None:
        super().__init__(session_type="upsert")
        self.path = path

    def run(self) -> None:
        for lines in batches(self.path):
            for line in lines:
                for e in orjson.loads(line):
                    self.next(
                        event_id=e["sg_event_id"], message=e["sg_message_id"], kind=PLACE[e["event"]], campaign=e["campaign"],
                        variant=e["variant"], at=e["timestamp"],
                    )  # fmt: skip


def job(path: str, workers: int) -> dict:
    """Run the flow on so many worker threads, as the environment above says, and keep what the last change of each count says."""
    assert os.environ["PATHWAY_THREADS"] == str(workers)
    events = pw.io.python.read(Lines(path), schema=Event, autocommit_duration_ms=200)
    every = events.select(pw.this.campaign, pw.this.variant, pw.this.kind, minute=pw.this.at // 60)
    acts = events.filter((pw.this.kind == PLACE["open"]) | (pw.this.kind == PLACE["click"]))
    firsts = acts.groupby(pw.this.message, pw.this.kind, pw.this.campaign, pw.this.variant).reduce(
        pw.this.kind, pw.this.campaign, pw.this.variant, at=pw.reducers.min(pw.this.at)
    )
    moved = firsts.select(
        pw.this.campaign,
        pw.this.variant,
        kind=pw.if_else(pw.this.kind == PLACE["open"], OPENED, CLICKED),
        minute=pw.this.at // 60,
    )
    counted = every.concat_reindex(moved)
    cells = counted.groupby(pw.this.campaign, pw.this.variant, pw.this.minute, pw.this.kind).reduce(
        pw.this.campaign, pw.this.variant, pw.this.minute, pw.this.kind, n=pw.reducers.count()
    )
    table: dict = {}

    def changed(key, row: dict, time: int, is_addition: bool) -> None:
        cell = table.setdefault((row["campaign"], row["variant"], row["minute"]), [0] * len(MEASURES))
        cell[row["kind"]] += row["n"] if is_addition else -row["n"]

    pw.io.subscribe(cells, on_change=changed)
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)
    return table


if __name__ == "__main__":
    run(job, loaded)
