"""The way the data goes, on one page. Start here.

    vendors ──HTTP──► door ──► log ──► engine: edge ─► shards ─► store ──► console, API ──orders──► door
       ▲               │        │                                  │
       │          verify the    └──► history (Parquet) ──► sql     ▼
       │          raw bytes                                    conductor: decide ─► outbox ─► channels
       └──────────────────────────── email ────────────────────────────────────────────────────┘

Each function below is one process of ``midflight up``. They share nothing but files in one data folder, each written by one process
alone, so any of them may be killed at any time. Read in this order: ``sources/sendgrid.py`` (bytes become events), ``log/writer.py``
(what was acknowledged stays), ``stream/edge.py`` and ``stream/fold.py`` (events become numbers), ``store/host_local.py`` (the loop that
runs them; cells, names, dead letters and position in one transaction), ``store/read.py`` and ``serve/api.py`` (numbers become answers),
``decide/policies/finite_list.py`` and ``decide/claims.py`` (numbers become decisions), ``act/conductor.py`` and ``act/sender.py``
(decisions become messages, each once).
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


def conductor(config: Config) -> None:
    """Send campaigns wave by wave, each wave by what the numbers say by then; do what people ask of them, and write down why."""
    from .serve.conduct import run_conductor

    run_conductor(config)


def poller(config: Config) -> None:
    """Ask other systems for what they know, as records for the door; write segments and engagement back to them."""
    from .serve.poller import run_poller

    run_poller(config)


# In the order in which they start: whoever sends may send at once, the rest catches up.
PROCESSES = {"door": door, "engine": engine, "console": console, "history": history, "conductor": conductor, "poller": poller}

# Who takes requests, asks or sends ends first; the others go on until nothing is left of what was taken.
FIRST_TO_END = ("door", "console", "conductor", "poller")
