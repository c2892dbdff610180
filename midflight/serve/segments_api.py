"""The part of the API about segments: what there is, who is in one and who came and left, making and changing them, trying a condition."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Query, Request
from fastapi.routing import APIRouter
from starlette.responses import Response

from ..store import asking
from ..store.moves import latest_moves
from ..store.read import iso
from ..stream.conditions import condition_of, words
from . import models, ruling
from .api import ERRORS, answers, body_of, json, known_parameters, name_chars_max, needs, site_of, takes

members_shown_max = 500
moves_shown = 50
LATER = "It is in the log and will be done when the engine runs."
MORE_ERRORS = ERRORS | {409: {"model": models.Error, "description": "What it is about has changed since"}}
reading = APIRouter(dependencies=[Depends(known_parameters), Depends(needs("read"))], responses=ERRORS, tags=["segments"])
sending = APIRouter(dependencies=[Depends(known_parameters), Depends(needs("send"))], responses=MORE_ERRORS, tags=["segments"])
Name = Annotated[str, Path(max_length=name_chars_max)]
PUT = {**answers(models.Put), 202: {"model": models.Put, "description": "Taken; the engine does not run"}}


@reading.get("/v1/segments", responses=answers(models.Segments))
def segments(request: Request) -> Response:
    """Every segment with its condition and how many are in it now."""
    with site_of(request).store.view() as view:
        definitions, members = ruling.definitions_of(view), ruling.members_of(view)
        rows = [ruling.segment_row(definitions, members, name) for name in sorted(definitions.segments)]
        return json({"segments": rows, "log_time": iso(view.log_time_us)})


@reading.get("/v1/segments/{name:path}", responses=answers(models.Segment))
def segment(
    request: Request,
    name: Name,
    sample: Annotated[int, Query(ge=0, le=members_shown_max, description="Members to name")] = 20,
) -> Response:
    """One segment: its condition, how many are in it, some of them, who came and left of late, and what is made of it."""
    site = site_of(request)
    with site.store.view() as view:
        definitions, members = ruling.definitions_of(view), ruling.members_of(view)
        ruling.kept_segment(definitions, name)
        found = ruling.segment_row(definitions, members, name) | {
            "needed_by": definitions.needing(name),
            "moves": [
                {"at": iso(move.at_us), "recipient": move.recipient, "entered": move.entered}
                for move in latest_moves(view.db, name, moves_shown)
            ],
            "history": [
                {key.removesuffix("_us"): iso(value) if key == "at_us" else value for key, value in hour.items()}
                for hour in ruling.history_of(view, name, members.get(name, 0))
            ],
        }
    some, note = ruling.sample_of(site.config, name, sample) if sample else ([], None)
    return json(found | {"sample": some, "note": note})


@sending.put("/v1/segments/{name:path}", responses=PUT, openapi_extra=takes(models.PutSegment))
def put(request: Request, name: Name, wanted: Annotated[models.PutSegment, Depends(body_of(models.PutSegment))]) -> Response:
    """Make a segment, or give it another condition. Who belongs to it by what is known is in it at once, and has not come into it."""
    done = ruling.put_segment(site_of(request), name, wanted.where, wanted.version, request.state.who, wanted.why)
    return carried_out(done)


@sending.delete("/v1/segments/{name:path}", responses=PUT)
def drop(
    request: Request, name: Name, why: Annotated[str, Query(max_length=2_000, description="Stands with the order in the log")] = ""
) -> Response:
    """Take a segment away; nothing may be made of it."""
    return carried_out(ruling.drop_segment(site_of(request), name, request.state.who, why))


def carried_out(done: bool) -> Response:
    return json({"done": done, "note": None if done else LATER}, 200 if done else 202)


@reading.post("/v1/segments/preview", responses=answers(models.TriedSegment), openapi_extra=takes(models.TrySegment))
def preview(request: Request, wanted: Annotated[models.TrySegment, Depends(body_of(models.TrySegment))]) -> Response:
    """How many would be in a segment now: counted where there are few people, else estimated from people all over, with a 95 % interval."""
    return json(tried(request, wanted.where, wanted.sample))


def tried(request: Request, where: dict, count: int) -> dict:
    """Return of how many people a condition would hold. Raises MidflightError for one that cannot be understood, NoAnswer."""
    site = site_of(request)
    with site.store.view() as view:
        definitions = ruling.definitions_of(view)
    definitions.put_segment("~tried", 1, where)
    definitions.program(lambda kind, name: 0)
    found = asking.tried(site.config.folder, where, count)
    low, high = ruling.share_of(found.members, found.tried)
    whole = found.tried == found.people
    return {
        "words": words(condition_of(where)), "people": found.people, "tried": found.tried, "exact": whole,
        "members": found.members if whole else round(found.people * found.members / max(1, found.tried)),
        "low": found.members if whole else round(found.people * low), "high": found.members if whole else round(found.people * high),
        "sample": found.recipients,
    }  # fmt: skip
