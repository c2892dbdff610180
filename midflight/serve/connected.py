"""The part of the API about connected systems: how the polls and the ways back stand, and a range of time read once more."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import Depends, Path, Request
from fastapi.routing import APIRouter
from starlette.responses import Response

from ..config import Config
from ..kit.errors import NotFound, nearest
from ..sources.polls._configured import polls_of
from ..store.read import iso, minute_us, window_of
from . import models
from .api import ERRORS, answers, json, known_parameters, name_chars_max, needs, site_of
from .ordering import new_id
from .polling import ask_backfill

late_s = 30.0  # the poller writes down each second how it stands

reading = APIRouter(dependencies=[Depends(known_parameters), Depends(needs("read"))], responses=ERRORS, tags=["connected systems"])
writing = APIRouter(dependencies=[Depends(known_parameters), Depends(needs("write"))], responses=ERRORS, tags=["connected systems"])


@reading.get("/v1/polls", responses=answers(models.Polls))
def polls(request: Request) -> Response:
    """Every configured poll: how far it has read, what it met, what is set aside, what is read again."""
    site = site_of(request)
    return json(polls_now(site.config, site.clock.now_us()))


@reading.get("/v1/ways-back", responses=answers(models.WaysBack))
def ways_back(request: Request) -> Response:
    """Every way back: how many people are written and wait, and who was refused and why."""
    site = site_of(request)
    return json(ways_back_now(site.config, site.clock.now_us()))


@writing.post("/v1/polls/{name}/backfill", responses=answers(models.Backfilled))
def backfill(request: Request, name: Annotated[str, Path(max_length=name_chars_max)], wanted: models.Backfill) -> Response:
    """Have a poll read a range of time once more. What is known already counts nothing twice."""
    site = site_of(request)
    found = polls_of(site.config.polls, site.config.sources)
    if name not in found:
        raise NotFound(f"No poll is called `{name}`", where="name", todo=nearest(name, found) if found else "None is configured")
    window = window_of(None, site.clock.now_us(), wanted.since, wanted.until)
    from_us, to_us = window.first * minute_us, (window.last + 1) * minute_us
    found[name].range_cursor(from_us, to_us)  # raises where this kind cannot be asked for a range
    ask_backfill(site.config.folder, name, from_us, to_us, f"api-{new_id()}")
    return json({"since": iso(from_us), "until": iso(to_us)})


def polls_now(config: Config, now_us: int) -> dict:
    """Return how the configured polls stand; ``runs`` is false where no poller says so."""
    at_us, standings = state_of(config, "polls", "polls", now_us)
    rows = []
    for name, settings in config.polls.items():
        one = standings.get(name, {})
        error = one.get("error") or {}
        rows.append(
            {
                "poll": name, "kind": str(settings.get("kind", "")), "label": one.get("kind", ""), "source": one.get("source", ""),
                "state": one.get("state", "waiting"), "last_good": iso(one.get("last_good_us", 0)), "known_to": iso(one.get("known_us", 0)),
                "next": iso(one.get("next_us", 0)), "events": one.get("events", 0), "set_aside": one.get("set_aside", 0),
                "set_aside_why": one.get("set_aside_why", ""), "error": error.get("what", ""), "todo": error.get("todo") or "",
                "again": [
                    {"why": job["why"], "since": iso(job["from_us"]), "until": iso(job["to_us"]), "ended": job["ended"]}
                    for job in one.get("jobs", [])
                ],
            }
        )  # fmt: skip
    return {"polls": rows, "runs": at_us > 0}


def ways_back_now(config: Config, now_us: int) -> dict:
    """Return how the configured ways back stand."""
    at_us, standings = state_of(config, "written_back", "ways", now_us)
    rows = []
    for name, settings in config.ways_back.items():
        one = standings.get(name, {})
        error = one.get("error") or {}
        rows.append(
            {
                "way": name, "kind": str(settings.get("kind", "")), "label": one.get("kind", ""), "state": one.get("state", "waiting"),
                "last_good": iso(one.get("last_good_us", 0)), "written": one.get("written", 0), "waiting": one.get("waiting", 0),
                "waiting_since": iso(one.get("since_us", 0)), "refused": one.get("refused", 0), "refused_why": one.get("refused_why", ""),
                "error": error.get("what", ""), "todo": error.get("todo") or "",
            }
        )  # fmt: skip
    return {"ways_back": rows, "runs": at_us > 0}


def state_of(config: Config, folder: str, what: str, now_us: int) -> tuple[int, dict[str, dict]]:
    """Return when the poller last said how something stands, and what it said; 0 and nothing where it does not run."""
    try:
        said = msgspec.json.decode((config.folder / folder / "state.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return 0, {}
    return (said["at_us"] if now_us - said["at_us"] < late_s * 1e6 else 0), said[what]
