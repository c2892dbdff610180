"""Alerts as people see them: what they were told and whether it arrived, and how to have somebody told."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from .. import api
from ..alerting import targets_of
from ..alerts_api import alerts_page
from ..auth import Session
from .pages import render, since, visitor

rows_shown = 50
alerts = APIRouter(include_in_schema=False)
SETTINGS = """ways:
  slack-ops:
    kind: slack
    url: env:SLACK_OPS_URL
alerts:
  ways: [slack-ops]
  console_url: {url}"""
# What became of a call, as its word and what that means.
STATES = {
    "waiting": ("waits", "It is told as soon as its turn comes"), "called": ("under way", "The call has begun"),
    "sent": ("arrived", "The other end has taken it"), "refused": ("not told", "It was refused, or could not be told for too long"),
    "unknown": ("unknown", "The call had no answer: it may have arrived, and is not made again"),
    "replaced": ("not needed", "Something newer about the same took its place"),
}  # fmt: skip


@alerts.get("/ledger/alerts")
def listed(request: Request, before: str = "", session: Session = Depends(visitor)) -> Response:
    """What those who run this were told, the newest first; and what to write where nobody is told yet."""
    site = api.site_of(request)
    first = int(before) if before.isdigit() and len(before) < 19 else 2**62
    rows, following = alerts_page(site.config, first, rows_shown)
    return render(
        request, "alerts.html", session=session, rows=rows, targets=[named(target) for target in targets_of(site.config)], named=named,
        states=STATES, settings=SETTINGS.format(url=str(request.base_url).rstrip("/")), first=first == 2**62,
        older=f"/ledger/alerts?before={following}" if following else None, **since(site.clock.now_us()),
    )  # fmt: skip


def named(target: str) -> str:
    """Return whom a target means: a way out's name, or an address."""
    return target.partition(":")[2]
