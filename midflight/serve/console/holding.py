"""The kill switch as people see it: a button on the pages about automation that holds everything at once, and who holds it and why."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from ...act import kill_switch
from .. import api
from ..auth import Session
from .pages import form, visitor, written_by_us

why_chars_max = 2_000
PLACES = ("/experiments", "/segments", "/segment", "/rules", "/rule", "/inbox", "/ledger/rules", "/people")
holding = APIRouter(include_in_schema=False)


def hold_of(request: Request) -> kill_switch.Hold:
    """Return how the switch stands, for a page that shows it."""
    return kill_switch.read(api.site_of(request).config.folder)


@holding.post("/hold")
def hold(request: Request, session: Session = Depends(visitor), fields: dict = Depends(form)) -> Response:
    """Hold everything that automation does, here and now."""
    written_by_us(request, session, fields)
    site = api.site_of(request)
    kill_switch.hold(site.config.make_folder(), session.user, fields.get("why", "").strip()[:why_chars_max], site.clock.now_us())
    return RedirectResponse(back(fields), 303)


@holding.post("/release")
def release(request: Request, session: Session = Depends(visitor), fields: dict = Depends(form)) -> Response:
    """Let go on what the page showed as held; a hold that somebody has made since stays."""
    written_by_us(request, session, fields)
    site = api.site_of(request)
    number = fields.get("number", "")
    seen = int(number) if number.lstrip("-").isdigit() and len(number) < 19 else -2
    why = fields.get("why", "").strip()[:why_chars_max]
    kill_switch.release(site.config.folder, session.user, why, site.clock.now_us(), seen)
    return RedirectResponse(back(fields), 303)


def back(fields: dict[str, str]) -> str:
    """Return the page that a form was on."""
    path = fields.get("back", "")
    return path if path in PLACES else "/rules"
