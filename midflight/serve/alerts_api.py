"""The part of the API about alerts: what those who run this were told, when, by which way, and whether it arrived."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.routing import APIRouter
from starlette.responses import Response

from ..act.alerts import Alerts
from ..act.outbox import Outbox
from ..config import Config
from ..decide.alerting import MORE, OVER, SERIOUS, Notice
from . import models
from .alerting import head_of, targets_of
from .api import ERRORS, answers, json, known_parameters, needs, site_of
from .campaigning import timed

alerts_max = 500
UNREADABLE = {"what": "unreadable", "level": "unknown", "text": "Another version of Midflight wrote this one.", "why": "", "page": ""}
reading = APIRouter(dependencies=[Depends(known_parameters), Depends(needs("read"))], responses=ERRORS, tags=["alerts"])


@reading.get("/v1/alerts", responses=answers(models.Alerts))
def alerts(
    request: Request,
    before: Annotated[int, Query(ge=1, le=2**62, description="`next` of the page before")] = 2**62,
    limit: Annotated[int, Query(ge=1, le=alerts_max)] = 100,
) -> Response:
    """What those who run this were told, the newest first: of each alert what stood, the page that shows it, and what became of it."""
    config = site_of(request).config
    rows, following = alerts_page(config, before, limit)
    told = [timed(row) | {"told": [timed(call) for call in row["told"]]} for row in rows]
    return json({"alerts": told, "next": following, "targets": targets_of(config)})


def alerts_page(config: Config, before: int, limit: int) -> tuple[list[dict], int | None]:
    """Return alerts as they are told, and from where to go on."""
    with kept(config) as found:
        rows = [row_of(one) for one in found.listed(before, limit + 1)] if found else []
    return rows[:limit], rows[limit - 1]["number"] if len(rows) > limit else None


@contextmanager
def kept(config: Config) -> Iterator[Alerts | None]:
    """Give the alerts as they stand at one moment; None where the conductor has never kept any."""
    path = config.folder / "outbox.db"
    if not path.exists():
        yield None
        return
    outbox = Outbox(path, reading=True)
    try:
        outbox.db.execute("BEGIN")
        there = outbox.db.execute("SELECT count(*) FROM sqlite_master WHERE name IN ('alerts', 'alert_calls')").get == 2
        yield Alerts(outbox) if there else None
    finally:
        outbox.db.close(True)


def row_of(one: dict) -> dict:
    """Return an alert as it is told, its times in microseconds."""
    notice = one["notice"]
    parts = [part_of(part) for part in notice.parts] if notice else []
    return {"number": one["number"], "id": one["id"], "at_us": one["at_us"], "parts": parts, "told": one["told"]} | part_of(notice)


def part_of(notice: Notice | None) -> dict:
    """Return what a notice says. Its page is one of the console's own, or none."""
    if notice is None:
        return UNREADABLE
    about = notice.about
    page = about.page if about and about.page.startswith("/") and not about.page.startswith(("//", "/\\")) else ""
    why = about.why if about and notice.what != OVER else ""
    return {
        "what": notice.what, "level": "serious" if notice.level == SERIOUS else "warning", "text": head_of(notice), "why": why,
        "page": "" if notice.what == MORE else page,
    }  # fmt: skip
