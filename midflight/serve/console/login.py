"""Coming and going: login, logout and the first user; equal answers for known and unknown names."""

from __future__ import annotations

import secrets

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from ...kit.errors import MidflightError
from .. import api
from ..auth import Session, TooManyTries, WrongCredentials, session_life_s
from ..shield import COOKIE, same_origin, session_of
from .pages import form, render, visitor, written_by_us

FORM_COOKIE = "midflight_form"
entrance = APIRouter(include_in_schema=False)


def local_path(text: str) -> str:
    """Return where to go after the login: a page of ours, never another site."""
    if not text.startswith("/") or text.startswith(("//", "/\\", "/login", "/logout", "/setup")) or any(ord(c) < 33 for c in text):
        return "/"
    return text[:2_000]


def with_form(request: Request, template: str, status: int = 200, **values) -> Response:
    """Return a form's page; the same secret goes into the form and into a cookie, and both have to come back."""
    mark = secrets.token_urlsafe(24)
    response = render(request, template, status, session=None, mark=mark, **values)
    _set(request, response, FORM_COOKIE, mark, 3600)
    return response


def checked_form(request: Request, fields: dict[str, str]) -> None:
    """Refuse a form that was not loaded from here. Raises Forbidden."""
    mark = request.cookies.get(FORM_COOKIE, "")
    if not same_origin(request) or not mark or not api.same_text(fields.get("mark", ""), mark):
        raise api.Forbidden("This form was not sent from this console", todo="Load the page again and repeat it")


def _set(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    response.set_cookie(name, value, max_age=seconds, path="/", httponly=True, samesite="lax", secure=request.url.scheme == "https")


def enter(request: Request, secret: str, to: str) -> Response:
    """Let somebody in with a new session; the one before, if any, ends."""
    access = api.site_of(request).access
    access.close_session(request.cookies.get(COOKIE, ""))
    response = RedirectResponse(to, 303)
    _set(request, response, COOKIE, secret, session_life_s)
    response.delete_cookie(FORM_COOKIE, path="/")
    return response


@entrance.get("/login")
def login_page(request: Request, to: str = "/") -> Response:
    if session_of(request):
        return RedirectResponse(local_path(to), 303)
    first = not api.site_of(request).access.users()
    return with_form(request, "login.html", to=local_path(to), wrong=None, name="", first=first)


@entrance.post("/login")
def login(request: Request, fields: dict = Depends(form)) -> Response:
    checked_form(request, fields)
    site = api.site_of(request)
    to = local_path(fields.get("to", "/"))
    try:
        address = request.client.host if request.client else ""
        secret = site.access.login(fields.get("name", ""), fields.get("password", ""), address)
    except (WrongCredentials, TooManyTries) as error:
        site.counters.add("logins_refused_total")
        wrong = f"{error.what}. {error.todo}." if isinstance(error, TooManyTries) else f"{error.what}."
        response = with_form(request, "login.html", error.status, to=to, wrong=wrong, name=fields.get("name", "")[:64], first=False)
        if isinstance(error, TooManyTries):
            response.headers["retry-after"] = str(error.wait_s)
        return response
    return enter(request, secret, to)


@entrance.post("/logout")
def logout(request: Request, session: Session = Depends(visitor), fields: dict = Depends(form)) -> Response:
    written_by_us(request, session, fields)
    api.site_of(request).access.close_session(request.cookies.get(COOKIE, ""))
    response = RedirectResponse("/login", 303)
    response.delete_cookie(COOKIE, path="/")
    return response


@entrance.get("/setup")
def setup_page(request: Request, key: str = "") -> Response:
    if not api.site_of(request).access.setup_fits(key):
        return render(request, "stopped.html", 403, session=None, error=_outdated().as_dict()["error"])
    return with_form(request, "setup.html", key=key, wrong=None, name="")


@entrance.post("/setup")
def setup(request: Request, fields: dict = Depends(form)) -> Response:
    checked_form(request, fields)
    access = api.site_of(request).access
    key, name = fields.get("key", ""), fields.get("name", "").strip()
    if not access.setup_fits(key):
        return render(request, "stopped.html", 403, session=None, error=_outdated().as_dict()["error"])
    try:
        access.set_user(name, fields.get("password", ""))
    except MidflightError as error:
        return with_form(request, "setup.html", 400, key=key, wrong=error.text(), name=name[:64])
    return enter(request, access.open_session(name), "/")


def _outdated() -> MidflightError:
    return MidflightError("This link has been used or is too old", todo="`midflight console` prints a new one while there is no user")
