"""Deliverability as people see it: what is held and why, where messages bounce, who blocks us, and who is not written to."""

from __future__ import annotations

from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from ...act import orders
from ...events import recipient_key
from ...kit.errors import MidflightError
from ...store import listing
from ...store.read import View, WrongQuery
from ...stream.providers import PROVIDERS
from .. import api
from ..auth import Session
from ..delivering import breakers_of, ceilings, hand_in, holds, signs_of, weeks_shown
from ..ordering import new_id, ordered
from . import words
from .pages import form, render, since, visitor, written_by_us

rows_shown = 50
hours_shown = 48
providers_shown = 15
log_shown = 15
typed_max = 1_000  # addresses of one form
why_chars_max = 2_000
told_min = 20  # answers below which a rate says nothing
# From which bounce rate on a field has its shade.
SHADES = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
REASONS = {
    "dead": "Nobody is there",
    "disabled": "Switched off",
    "full": "Full for weeks",
    "suspected": "Suspected",
    "storm": "Storm at its provider",
    "imported": "From a list",
    "unsubscribed": "Unsubscribed",
    "complained": "Complained",
    "bounced": "Bounced (former version)",
}
STAGES = {"held": "Held", "probing": "Tried with a few", "returning": "Coming back", "normal": "Normal"}
DONE = {"held": "is held now", "probing": "is tried with a few messages", "normal": "may go again"}
deliverability = APIRouter(include_in_schema=False)


@deliverability.get("/deliverability")
def page(
    request: Request, search: str = "", reason: str = "", after: str = "", note: str = "", session: Session = Depends(visitor)
) -> Response:
    """The whole page; ``search`` and ``reason`` choose among those who are not written to."""
    return shown(request, session, search=search, reason=reason, after=after, note=NOTES.get(note))


NOTES = {
    "held": {"kind": "fine", "text": "Done: what goes there waits now, and is not lost."},
    "probing": {"kind": "fine", "text": "Done: a few messages try it."},
    "normal": {"kind": "fine", "text": "Done: everything may go."},
    "later": {"kind": "fine", "text": "Taken. It will be done when the conductor runs."},
    "listed": {"kind": "fine", "text": "Taken. The list below follows in a moment."},
}


def shown(
    request: Request, session: Session, *, search: str = "", reason: str = "", after: str = "", note: dict | None = None,
    error: dict | None = None, status: int = 200,
) -> Response:  # fmt: skip
    site = api.site_of(request)
    search, reason = search.strip()[:320], reason if reason in REASONS else ""
    breakers, lines = breakers_of(site.config)
    with site.store.view() as view:
        rows = listing.suppressed(view, search=search, reason=reason, after=after[:400], count_max=rows_shown + 1)
        counts = listing.reasons(view)
        one = explained(view, search)
        asked = {"search": search, "reason": reason}
        following = {**asked, "after": rows[rows_shown - 1].recipient} if len(rows) > rows_shown else None
        return render(
            request,
            "deliverability.html",
            status,
            session=session,
            note=note,
            error=error,
            held=[breaker for breaker in breakers if breaker.stage != "normal"],
            past=[breaker for breaker in breakers if breaker.stage == "normal"][:log_shown],
            lines=lines[:log_shown],
            heat=heat_of(view),
            weeks=weeks_of(view),
            signs=signs_of(view),
            trips=ceilings(view),
            providers=PROVIDERS[2:],
            rows=rows[:rows_shown],
            counts=counts,
            one=one,
            search=search,
            reason=reason,
            older="/deliverability?" + urlencode(following) + "#suppressions" if following else None,
            first=not after and not search and not reason,
            reasons=REASONS,
            stages=STAGES,
            now_us=view.log_time_us,
            **since(view.now_us),
        )


def explained(view: View, search: str) -> dict | None:
    """Return all that is known of one address, where one was asked for."""
    recipient = recipient_key(search)
    if not recipient:
        return None
    found = listing.explained(view, recipient)
    return {"recipient": recipient, "rows": found, "held": any(holds(row, view.log_time_us) for row in found)}


def heat_of(view: View) -> dict:
    """Return the bounce rate of each provider by hour, as shades: the providers with most answers first."""
    found = listing.by_hour(view, hours_shown)
    end = view.log_time_us // 3_600_000_000
    hours = list(range(end - hours_shown + 1, end + 1))
    known: dict[str, dict[int, tuple[int, int]]] = {}
    for provider, minute, delivered, bounced in found:
        known.setdefault(provider, {})[minute // 60] = (delivered + bounced, bounced)
    order = sorted(known, key=lambda name: (-sum(n for n, _ in known[name].values()), name))
    rows = [
        {
            "provider": name,
            "cells": [cell_of(name, hour, *known[name].get(hour, (0, 0))) for hour in hours],
            "answered": sum(n for n, _ in known[name].values()),
            "bounced": sum(x for _, x in known[name].values()),
        }
        for name in order[:providers_shown]
    ]
    heads = [words.clock(hour * 3_600_000_000)[11:16] if hour % 6 == 0 else "" for hour in hours]
    return {"rows": rows, "heads": heads, "left_off": max(0, len(order) - providers_shown), "shades": SHADES}


def cell_of(provider: str, hour: int, answered: int, bounced: int) -> dict:
    at = words.clock(hour * 3_600_000_000)
    if not answered:
        return {"shade": "", "says": f"{provider}, {at}: nothing"}
    rate = bounced / answered
    shade = "few" if answered < told_min else str(max(n for n, least in enumerate(SHADES) if rate >= least))
    return {"shade": shade, "says": f"{provider}, {at}: {bounced:,} of {answered:,} bounced ({words.percent(rate)})"}


def weeks_of(view: View) -> dict:
    """Return each provider's rates by week: bounces and complaints."""
    known: dict[str, dict[int, tuple[int, ...]]] = {}
    for provider, minute, *counts in listing.by_week(view, weeks_shown):
        known.setdefault(provider, {})[minute] = tuple(counts)
    weeks = sorted({minute for found in known.values() for minute in found})
    rows = []
    for name in sorted(known, key=lambda name: (-sum(counts[0] for counts in known[name].values()), name))[:providers_shown]:
        cells = [week_cell(known[name].get(minute)) for minute in weeks]
        rows.append({"provider": name, "cells": cells, "delivered": sum(counts[0] for counts in known[name].values())})
    return {"rows": rows, "heads": [words.clock(minute * 60_000_000)[:10] for minute in weeks]}


def week_cell(counts: tuple[int, ...] | None) -> dict:
    if counts is None:
        return {"bounces": None, "complaints": None, "delivered": 0}
    delivered, bounced, _, complained, _, _ = counts
    answered = delivered + bounced
    return {
        "bounces": bounced / answered if answered >= told_min else None,
        "complaints": complained / delivered if delivered >= told_min else None, "delivered": delivered,
    }  # fmt: skip


# -- taking over ---------------------------------------------------------------------------------------------------------


@deliverability.post("/deliverability/guard")
def guard(request: Request, session: Session = Depends(visitor), fields: dict = Depends(form)) -> Response:
    """Hold, try or let go what goes to a provider or a domain or of a campaign."""
    written_by_us(request, session, fields)
    site = api.site_of(request)
    kind, name, to = fields.get("kind", ""), fields.get("name", "").strip()[:200], fields.get("to", "")
    try:
        if kind not in ("provider", "domain", "campaign", "ip") or to not in DONE or not name:
            raise WrongQuery("What is to be held?", expected="a provider, a domain or a campaign by its name")
        order = orders.Guard(
            id=new_id(), campaign="", who=session.user, why=fields.get("why", "").strip()[:why_chars_max], kind=kind, name=name, to=to
        )
        done = ordered(site.config, site.clock, order)
    except MidflightError as error:
        return shown(request, session, error=error.as_dict()["error"], status=error.status)
    return RedirectResponse(f"/deliverability?note={to if done else 'later'}", 303)


@deliverability.post("/deliverability/list")
def listed(request: Request, session: Session = Depends(visitor), fields: dict = Depends(form)) -> Response:
    """Put addresses on the list or take them off."""
    written_by_us(request, session, fields)
    do = "release" if fields.get("do") == "release" else "suppress"
    texts = [text for text in fields.get("addresses", "").replace(",", "\n").replace(";", "\n").split("\n") if text.strip()]
    try:
        if not texts:
            raise WrongQuery("No address", expected="one address a line")
        if len(texts) > typed_max:
            raise WrongQuery(
                "Too many addresses",
                expected=f"at most {typed_max}",
                got=len(texts),
                todo="`midflight suppressions import FILE` takes more",
            )
        taken = hand_in(api.site_of(request).config, do, texts, session.user, fields.get("why", "").strip()[:why_chars_max])
        if not taken["taken"]:
            raise WrongQuery("No address", expected="name@domain", got=taken["examples"][0][:100])
    except MidflightError as error:
        return shown(request, session, error=error.as_dict()["error"], status=error.status)
    return RedirectResponse("/deliverability?note=listed#suppressions", 303)
