"""The kill switch as people see it: a button on every page that holds everything at once, and who holds it and why."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from ...act import kill_switch
from .. import api
from ..auth import Session
from .pages import form, visitor, written_by_us

why_chars_max = 2_000
back_chars_max = 4_000
# The pages that a form of the switch may lead back to, and with those of EXPERIMENTS all there are.
PLACES = frozenset(
    (
        "/", "/campaigns", "/campaign", "/experiments", "/experiment", "/experiments/new", "/segments", "/segment", "/segments/new",
        "/rules", "/rule", "/rules/new", "/inbox", "/deliverability", "/ledger", "/ledger/rules", "/ledger/alerts", "/sources", "/people",
        "/words",
    )
)  # fmt: skip
EXPERIMENTS = "/experiments/"
holding = APIRouter(include_in_schema=False)


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
    """Return the page that a form was on, with what was chosen on it."""
    path, mark, query = fields.get("back", "").partition("?")
    known = path in PLACES or path.startswith(EXPERIMENTS)
    return (path + mark + query)[:back_chars_max] if known else "/"
