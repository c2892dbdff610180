"""The way the data goes, on one page. Start here.

    vendors ──HTTP──► door ──► log ──► engine: edge ─► shards ─► store ──► console, API
                       │        │                                  ▲
                  verify the    └──► history (Parquet) ──► sql     └── cells, names, dead letters, position: one transaction
                  raw bytes

Each function below is one process of ``midflight up``. They share nothing but files in one data folder, each written by one process
alone, so any of them may be killed at any time. Read in this order: ``sources/sendgrid.py`` (bytes become events), ``log/writer.py``
(what was acknowledged stays), ``stream/edge.py`` and ``stream/fold.py`` (events become numbers), ``store/host_local.py`` (the loop that
runs them), ``store/read.py`` and ``serve/api.py`` (numbers become answers).
"""

from __future__ import annotations

from .config import Config


def door(config: Config) -> None:
    """Take requests, verify them over their raw bytes, append them to the log, and only then answer 200."""
    from .serve.door import run_door

    run_door(config)


def engine(config: Config) -> None:
    """Follow the log: records become events, events fold into shards, shards emit changes of cells, the store keeps them."""
    from .store.host_local import run_engine

    run_engine(config)


def console(config: Config) -> None:
    """Answer people and programs from the store; write nothing of the engine's."""
    from .serve.api import serve

    serve(config)


def history(config: Config) -> None:
    """Follow the log behind the engine and write every event, once, as Parquet."""
    from .serve.history import run_history

    run_history(config)


# In the order in which they start: whoever sends may send at once, the rest catches up.
PROCESSES = {"door": door, "engine": engine, "console": console, "history": history}

# Who takes requests ends first; the others go on until nothing is left of what was taken.
FIRST_TO_END = ("door", "console")
