"""The pages that people look at: server-rendered, one small script, no build and nothing from elsewhere."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import urlencode

from fastapi import FastAPI, Request
from starlette.responses import RedirectResponse, Response

from ...kit.errors import MidflightError


def join(app: FastAPI) -> None:
    """Add the pages to the application."""
    from .alerts import alerts
    from .deliverability import deliverability
    from .experiments import experiments
    from .holding import holding
    from .inbox import inbox
    from .kept import Kept
    from .login import entrance
    from .pages import LoginFirst, pages
    from .rule_form import rules
    from .segments import segments
    from .wizard import wizard

    app.state.kept = Kept(app.state.site.clock)
    app.include_router(pages)
    # The form comes first: its address is within those of campaigns.
    app.include_router(wizard)
    for router in (experiments, segments, rules, inbox, holding, deliverability, alerts, entrance):
        app.include_router(router)
    app.add_exception_handler(LoginFirst, _login_first)


async def _login_first(request: Request, error: Exception) -> Response:
    to = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse("/login" + ("" if to == "/" or request.method != "GET" else "?" + urlencode({"to": to})), 303)


def stopped(request: Request, error: MidflightError) -> Response:
    """Return an error as a page."""
    from ..auth import Unkept
    from ..shield import session_of
    from .pages import render

    session = None
    # Who it is cannot be told where that is what went wrong.
    with suppress(Unkept):
        session = session_of(request)
    response = render(request, "stopped.html", error.status, session=session, error=error.as_dict()["error"])
    if error.status == 503:
        response.headers["retry-after"] = "1"
    return response
