"""The part of the API by which programs send campaigns: what there is, drafts, lists, previews, and every way to take over."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from fastapi import Depends, Path, Query, Request
from fastapi.routing import APIRouter
from starlette.responses import Response

from ..act import orders
from ..act.campaigns import Campaigns, Running
from ..act.standing import Entry, Standing
from ..store.read import WrongQuery, iso
from . import models
from .api import ERRORS, Site, answers, body_of, door_url, json, known_parameters, name_chars_max, needs, site_of, takes
from .ordering import checked, checked_variant, named, new_id, newest, ordered, preview, reasons, somebody
from .ordering import reading as campaigns_of

experiments_max = 200
lines_max = 500
LATER = "It is in the log and will be done when the conductor runs."
MORE_ERRORS = ERRORS | {
    409: {"model": models.Error, "description": "The campaign's state does not allow it"},
    413: {"model": models.Error, "description": "The body is too long"},
}
reading = APIRouter(dependencies=[Depends(known_parameters), Depends(needs("read"))], responses=ERRORS, tags=["experiments"])
sending = APIRouter(dependencies=[Depends(known_parameters), Depends(needs("send"))], responses=MORE_ERRORS, tags=["experiments"])
Name = Annotated[str, Path(max_length=name_chars_max)]
ORDERED = {**answers(models.Ordered), 202: {"model": models.Ordered, "description": "Taken; the conductor does not run"}}


# -- what there is -------------------------------------------------------------------------------------------------------


@reading.get("/v1/experiments", responses=answers(models.Experiments))
def experiments(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=experiments_max)] = 50,
    before: Annotated[int, Query(ge=1, le=2**62, description="`next` of the page before")] = 2**62,
) -> Response:
    """Campaigns that Midflight sends, or sent, or is to send, the newest first."""
    with campaigns_of(site_of(request).config) as campaigns:
        found = newest(campaigns, before, limit + 1)
        rows = [row_of(now, campaigns.standing(now.id)) for now in found[:limit]]
    return json({"experiments": rows, "next": found[limit - 1].id if len(found) > limit else None})


def row_of(now: Running, standing: Standing | None) -> dict:
    """Return what a list tells of a campaign."""
    return {
        "name": now.name, "state": now.state, "channel": now.definition.channel, "goal": now.definition.goal, "people": now.people,
        "taken": now.taken, "left": now.left, "held": now.held, "started_at": iso(now.started_us),
        "claim": standing.said.text if standing else "",
    }  # fmt: skip


@reading.get("/v1/experiments/{name:path}", responses=answers(models.Experiment))
def experiment(request: Request, name: Name) -> Response:
    """One campaign: its definition, its waves, what became of its messages, how it stands, and who changed what."""
    with campaigns_of(site_of(request).config) as campaigns:
        return json(detail_of(campaigns, named(campaigns, name)))


def detail_of(campaigns: Campaigns, now: Running) -> dict:
    """Return everything that is told of a campaign."""
    standing = campaigns.standing(now.id)
    return row_of(now, standing) | {
        "definition": msgspec.to_builtins(now.definition),
        "variants": [
            {"name": variant.name, "live": bool(now.live[n]), "pinned": n == now.pinned}
            for n, variant in enumerate(now.definition.variants)
        ],
        "waves": [timed(msgspec.to_builtins(wave)) for wave in campaigns.waves(now.id)],
        "messages": campaigns.outbox.counts(now.id),
        "reasons": reasons(campaigns, now.id),
        "standing": None if standing is None else standing_row(standing),
        "changes": [timed(change) for change in campaigns.changes(now.id)],
    }


def timed(row: dict) -> dict:
    """Return a row with its times as the API tells them."""
    return {key.removesuffix("_us"): iso(value) if key.endswith("_us") else value for key, value in row.items()}


def standing_row(standing: Standing) -> dict:
    """Return how a campaign stands."""
    found = msgspec.to_builtins(standing)
    for key in ("at", "next"):
        at = iso(found.pop(f"{key}_us"))
        found["at" if key == "at" else "next_at"] = at
    found["projected"]["ends_at"] = iso(found["projected"].pop("ends_us"))
    return found


@reading.get("/v1/ledger", responses=answers(models.Ledger))
def ledger(
    request: Request,
    campaign: Annotated[str | None, Query(description="One campaign by name", max_length=name_chars_max)] = None,
    before: Annotated[int, Query(ge=1, le=2**62, description="`next` of the page before")] = 2**62,
    limit: Annotated[int, Query(ge=1, le=lines_max)] = 100,
) -> Response:
    """Every decision, the newest first: what was decided, by whom, and the numbers that it rested on."""
    with campaigns_of(site_of(request).config) as campaigns:
        lines, following = ledger_page(campaigns, campaign, before, limit)
    return json({"lines": [timed(msgspec.to_builtins(line)) for line in lines], "next": following})


def ledger_page(campaigns: Campaigns | None, name: str | None, before: int, limit: int) -> tuple[list[Entry], int | None]:
    """Return lines of the ledger, and from where to go on. Raises NotFound."""
    number = None if name is None else named(campaigns, name).id
    found = [] if campaigns is None else campaigns.ledger(number, before=before, count_max=limit + 1)
    return found[:limit], found[limit - 1].number if len(found) > limit else None


# -- drafts and lists ----------------------------------------------------------------------------------------------------

CSV = {"requestBody": {"required": True, "content": {"text/csv": {"schema": {"type": "string"}}}}}


@sending.post("/v1/lists", responses=answers(models.Listed), openapi_extra=CSV)
async def take_list(request: Request) -> Response:
    """Hand in a list: CSV with a column `email`. It is kept as it is, and named by what is in it."""
    if "csv" not in request.headers.get("content-type", ""):
        raise WrongQuery("The body is not CSV by its type", expected="`Content-Type: text/csv`", where="body")
    body = await request.body()
    listed = await asyncio.to_thread(site_of(request).lists.take, body)
    return json(listed.told())


@sending.post("/v1/experiments", responses=ORDERED, openapi_extra=takes(models.NewExperiment))
def add(request: Request, wanted: Annotated[models.NewExperiment, Depends(body_of(models.NewExperiment))]) -> Response:
    """Put down a campaign as a draft. Nothing of it is sent before its state is `sending`."""
    site = site_of(request)
    found = checked(site.config, site.lists, wanted.definition, wanted.list)
    definition = msgspec.to_builtins(found.ready.campaign)
    order = orders.Add(id=new_id(), campaign=found.ready.campaign.name, who=who(request), definition=definition, audience=wanted.list)
    return carried_out(site, order, found.ready.warnings)


@sending.post("/v1/preview", responses=answers(models.Previews), openapi_extra=takes(models.Preview))
def show(request: Request, wanted: Annotated[models.Preview, Depends(body_of(models.Preview))]) -> Response:
    """Each variant as one recipient would get it. Nothing is kept and nothing is sent."""
    site = site_of(request)
    found = checked(site.config, site.lists, wanted.definition, wanted.list)
    person = somebody(site.lists, found, wanted.recipient)
    rows = preview(found, person, f"{door_url(site.config)}/u/preview", site.clock.now_us())
    return json({"recipient": person.address, "warnings": found.ready.warnings, "variants": rows})


# -- taking over ---------------------------------------------------------------------------------------------------------


@sending.post("/v1/experiments/{name:path}/state", responses=ORDERED, openapi_extra=takes(models.Move))
def move(request: Request, name: Name, wanted: Annotated[models.Move, Depends(body_of(models.Move))]) -> Response:
    """Start, pause, resume or stop a campaign. A stop is for good; what is under way at that moment still arrives."""
    with campaigns_of(site_of(request).config) as campaigns:
        named(campaigns, name)
    return carried_out(site_of(request), orders.Move(to=wanted.to, **said(request, name, wanted.why)))


@sending.post("/v1/experiments/{name:path}/pin", responses=ORDERED, openapi_extra=takes(models.Pin))
def pin(request: Request, name: Name, wanted: Annotated[models.Pin, Depends(body_of(models.Pin))]) -> Response:
    """Give all further waves to one variant, or back to the policy."""
    with campaigns_of(site_of(request).config) as campaigns:
        now = named(campaigns, name)
        if wanted.variant:
            now.number(wanted.variant)
    return carried_out(site_of(request), orders.Pin(variant=wanted.variant, **said(request, name, wanted.why)))


@sending.post("/v1/experiments/{name:path}/drop", responses=ORDERED, openapi_extra=takes(models.Drop))
def drop(request: Request, name: Name, wanted: Annotated[models.Drop, Depends(body_of(models.Drop))]) -> Response:
    """Take a variant out of all further waves, for good."""
    with campaigns_of(site_of(request).config) as campaigns:
        named(campaigns, name).number(wanted.variant)
    return carried_out(site_of(request), orders.Drop(variant=wanted.variant, **said(request, name, wanted.why)))


@sending.post("/v1/experiments/{name:path}/variants", responses=ORDERED, openapi_extra=takes(models.MoreVariant))
def add_variant(request: Request, name: Name, wanted: Annotated[models.MoreVariant, Depends(body_of(models.MoreVariant))]) -> Response:
    """Put another variant into all further waves."""
    site = site_of(request)
    with campaigns_of(site.config) as campaigns:
        checked_variant(site.config, campaigns, named(campaigns, name), wanted.variant)
    return carried_out(site, orders.AddVariant(variant=wanted.variant, **said(request, name, wanted.why)))


@sending.post("/v1/experiments/{name:path}/test", responses=ORDERED, openapi_extra=takes(models.TestSend))
def test(request: Request, name: Name, wanted: Annotated[models.TestSend, Depends(body_of(models.TestSend))]) -> Response:
    """Send one variant to an address of one's own."""
    with campaigns_of(site_of(request).config) as campaigns:
        named(campaigns, name).number(wanted.variant)
    order = orders.Test(to=wanted.to, variant=wanted.variant, recipient=wanted.recipient, **said(request, name, ""))
    return carried_out(site_of(request), order)


def who(request: Request) -> str:
    """Return by whose token this is asked."""
    return request.state.who


def said(request: Request, name: str, why: str) -> dict[str, str]:
    """Return what every order says."""
    return {"id": new_id(), "campaign": name, "who": who(request), "why": why}


def carried_out(site: Site, order: orders.Order, warnings: list[str] | None = None) -> Response:
    """Hand in an order and answer when it is done, or that it will be."""
    done = ordered(site.config, site.clock, order)
    return json({"done": done, "order": order.id, "warnings": warnings or [], "note": None if done else LATER}, 200 if done else 202)
