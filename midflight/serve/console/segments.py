"""Segments as people see them: the list with live counts, one with who is in it and why it changes, and the form that makes one."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from ...kit.errors import MidflightError
from ...store import asking
from ...store.moves import latest_moves
from ...stream.conditions import DONE
from .. import api, ruling
from ..auth import Session
from ..segments_api import tried
from . import conditions, words
from .pages import render, since, templates, visitor, written_by_us
from .wizard import said_of

if TYPE_CHECKING:
    from ...decide.definitions import Definitions

members_shown = 20
moves_shown = 20
fields_max = 2_000
why_chars_max = 2_000
LATER = "It is taken. It will be done when the engine runs."
segments = APIRouter(include_in_schema=False)


def link_of(name: str) -> str:
    """Return the address of a segment's page."""
    return "/segment?" + urlencode({"name": name})


templates.globals.update(segment_link=link_of, cond=conditions)


async def big_form(request: Request) -> dict[str, str]:
    """Return the fields of a form that grows with what is defined in it. Its size is bounded around the application."""
    try:
        body = (await request.body()).decode("utf-8", "replace")
        return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=fields_max))
    except ValueError:
        raise MidflightError("Not a form of this console") from None


class Known(msgspec.Struct, kw_only=True):
    """What the form offers to choose from."""

    campaigns: list[str]
    segments: list[str]
    attributes: list[str]


def known_of(site: api.Site, definitions: Definitions) -> Known:
    """Return the names that conditions may want."""
    with site.store.view() as view:
        names = {kind: view.names(kind, 300) if view.present else [] for kind in ("campaign", "trait")}
    return Known(campaigns=names["campaign"], segments=sorted(definitions.segments), attributes=names["trait"])


# -- the list and one segment --------------------------------------------------------------------------------------------


@segments.get("/segments")
def listed(request: Request, session: Session = Depends(visitor)) -> Response:
    """All segments with how many are in each now."""
    site = api.site_of(request)
    with site.store.view() as view:
        definitions, members = ruling.definitions_of(view), ruling.members_of(view)
        rows = [ruling.segment_row(definitions, members, name) for name in sorted(definitions.segments)]
        return render(request, "segments.html", session=session, rows=rows, **since(site.clock.now_us()))


@segments.get("/segment")
def segment(request: Request, name: str = "", note: str = "", session: Session = Depends(visitor)) -> Response:
    """One segment: its condition, how many are in it and how that went, some of them, who came and left."""
    return shown(request, session, name, note=LATER if note else "")


def shown(request: Request, session: Session, name: str, *, note: str = "", trouble: dict | None = None, status: int = 200) -> Response:
    site = api.site_of(request)
    with site.store.view() as view:
        definitions, members = ruling.definitions_of(view), ruling.members_of(view)
        if note and name not in definitions.segments:
            return render(request, "later.html", session=session, title=name, note=note, back="/segments", of="Segments")
        ruling.kept_segment(definitions, name)
        row = ruling.segment_row(definitions, members, name)
        moves = latest_moves(view.db, name, moves_shown)
        history = ruling.history_of(view, name, row["members"])
        state = (site.clock.now_us() // 5_000_000, row["version"])
        kept = request.app.state.kept.get(("segment", name), state, lambda: ruling.sample_of(site.config, name, members_shown))
    return render(
        request, "segment.html", status, session=session, row=row, moves=moves, chart=chart_of(history), sample=kept[0],
        sample_note=kept[1], needed=definitions.needing(name), note=note, trouble=trouble, tree=conditions.form_of(row["where"]),
        **since(site.clock.now_us()),
    )  # fmt: skip


def chart_of(history: list[dict]) -> dict | None:
    """Return how many were in it at the end of each hour; none for less than two hours."""
    if len(history) < 2:
        return None
    return {
        "kind": "time", "label": "Members", "start": history[0]["at_us"] // 1_000_000, "step": 3600, "n": len(history), "each": "hour",
        "open": True, "lines": [{"name": "members", "slot": 1, "values": [hour["members"] for hour in history]}],
    }  # fmt: skip


@segments.post("/segment")
def drop(request: Request, name: str = "", session: Session = Depends(visitor), fields: dict = Depends(big_form)) -> Response:
    """The button that takes a segment away."""
    written_by_us(request, session, fields)
    try:
        done = ruling.drop_segment(api.site_of(request), name, session.user, fields.get("why", "").strip()[:why_chars_max])
    except MidflightError as error:
        return shown(request, session, name, trouble=error.as_dict()["error"], status=error.status)
    return RedirectResponse("/segments" if done else f"{link_of(name)}&note=later", 303)


# -- the form ------------------------------------------------------------------------------------------------------------


class Form(msgspec.Struct, kw_only=True):
    """What stands in the form: the segment's ``name``, the ``version`` that was seen (0: it is new), its condition, and what is wrong."""

    name: str = ""
    version: int = 0
    tree: conditions.Node
    why: str = ""
    errors: dict[str, str] = {}
    focus: str = ""
    trouble: dict | None = None


@segments.get("/segments/new")
def begin(request: Request, name: str = "", session: Session = Depends(visitor)) -> Response:
    """The empty form, or one that is filled in as a segment stands."""
    site = api.site_of(request)
    form = Form(tree=conditions.empty(), errors={})
    if name:
        with site.store.view() as view:
            kept = ruling.kept_segment(ruling.definitions_of(view), name)
        form = Form(name=name, version=kept.version, tree=conditions.form_of(kept.body), errors={})
    return page(request, session, form)


def page(request: Request, session: Session, form: Form, status: int = 200, preview: dict | None = None) -> Response:
    site = api.site_of(request)
    with site.store.view() as view:
        definitions = ruling.definitions_of(view)
    return render(
        request, "segment_form.html", status, session=session, form=form, errors=form.errors, preview=preview, events=DONE,
        known=known_of(site, definitions),
    )  # fmt: skip


@segments.post("/segments/new")
def go_on(request: Request, session: Session = Depends(visitor), fields: dict = Depends(big_form)) -> Response:
    """Whatever button was pressed; nothing that was typed is lost by any of them."""
    written_by_us(request, session, fields)
    site = api.site_of(request)
    version = fields.get("version", "")
    form = Form(
        name=fields.get("name", "").strip()[:200], version=int(version) if version.isdigit() and len(version) < 10 else 0,
        tree=conditions.posted(fields), why=fields.get("why", "").strip()[:why_chars_max], errors={},
    )  # fmt: skip
    do = fields.get("do", "preview")
    if "~" in do:
        form.focus = conditions.changed(form.tree, do)
        return page(request, session, form)
    places: dict[str, str] = {}
    where = conditions.raw_of(form.tree, "$.where", places)
    try:
        if where is None:
            raise MidflightError("Who belongs to it?", where="$.where", todo="Add a condition")
        if do != "save":
            return page(request, session, form, preview=preview_of(request, where))
        done = ruling.put_segment(site, form.name, where, form.version + 1, session.user, form.why)
    except MidflightError as error:
        told_beside(form, error, places)
        return page(request, session, form, error.status)
    return RedirectResponse(link_of(form.name) + ("" if done else "&note=later"), 303)


def preview_of(request: Request, where: dict) -> dict:
    """Return who would be in it; ``trouble`` where the engine does not answer."""
    try:
        return tried(request, where, members_shown) | {"trouble": ""}
    except asking.NoAnswer as error:
        return {"trouble": error.text()}


def told_beside(form: Form, error: MidflightError, places: dict[str, str]) -> None:
    """Note an error beside the field that it is about, or at the top."""
    if (error.where or "").startswith("$.where"):
        field = conditions.field_of(places, error.where)
    elif "name" in error.what and not form.name:
        field = "name"
    else:
        form.trouble = error.as_dict()["error"]
        return
    form.errors[field] = said_of(error)
    form.focus = field


templates.filters.update(moment=words.clock)
