"""The job on Bytewax: batches decoded by `orjson`, split by a hash of the message, keyed state per part, deltas added up per worker."""

from __future__ import annotations

import time

loaded = time.perf_counter()

from zlib import crc32  # noqa: E402

import bytewax.operators as op  # noqa: E402
import orjson  # noqa: E402
from bytewax.dataflow import Dataflow  # noqa: E402
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition  # noqa: E402
from bytewax.outputs import DynamicSink, StatelessSinkPartition  # noqa: E402
from bytewax.testing import cluster_main  # noqa: E402

from bench.peers.job import Messages, add, batches, run  # noqa: E402

# State keyed by message would cost an item, a key and a call for each event: a competent user of Bytewax keys by parts of the messages.
parts = 8


class Lines(StatefulSourcePartition):
    def __init__(self, path: str) -> None:
        self.batches = batches(path)

    def next_batch(self) -> list[list[bytes]]:
        return [next(self.batches)]

    def snapshot(self) -> None:
        return None


class File(FixedPartitionedSource):
    def __init__(self, path: str) -> None:
        self.path = path

    def list_parts(self) -> list[str]:
        return ["file"]

    def build_part(self, step_id, for_part, resume_state) -> Lines:
        return Lines(self.path)


class Table(DynamicSink):
    def __init__(self, table: dict) -> None:
        self.table = table

    def build(self, step_id, worker_index, worker_count) -> StatelessSinkPartition:
        table = self.table

        class Adding(StatelessSinkPartition):
            def write_batch(self, items: list) -> None:
                for cells in items:
                    add(table, cells.items())

        return Adding()


def split(lines: list[bytes]) -> list[tuple[str, list[tuple]]]:
    """Decode batches and deal their events out to parts by message."""
    out: list[list[tuple]] = [[] for _ in range(parts)]
    for line in lines:
        for e in orjson.loads(line):
            message = e["sg_message_id"]
            row = (message, e["sg_event_id"], e["event"], e["campaign"], e["variant"], e["timestamp"])
            out[crc32(message.encode()) % parts].append(row)
    return [(str(part), rows) for part, rows in enumerate(out) if rows]


def fold(state: Messages | None, rows: list[tuple]) -> tuple[Messages, dict]:
    state = state or Messages()
    cells: dict = {}
    state.fold(rows, cells)
    return state, cells


def job(path: str, workers: int) -> dict:
    table: dict = {}
    flow = Dataflow("campaigns")
    lines = op.input("read", flow, File(path))
    keyed = op.flat_map("split", lines, split)
    changes = op.stateful_map("fold", keyed, fold)
    op.output("add", op.map("cells", changes, lambda pair: pair[1]), Table(table))
    cluster_main(flow, [], 0, worker_count_per_proc=workers)
    return table


if __name__ == "__main__":
    run(job, loaded)
