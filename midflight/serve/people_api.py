"""The part of the API about one person: what happened, in which segments and why, how engaged, what was sent, what rules did and why."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import Depends, Path, Request
from fastapi.routing import APIRouter
from starlette.responses import Response

from ..act.outbox import STATES
from ..events import recipient_key
from ..store import asking
from ..store.attributes import attributes_of
from ..store.read import iso
from . import models, ruling
from .api import ERRORS, Site, answers, json, known_parameters, name_chars_max, needs, site_of
from .ordering import reading as campaigns_of
from .rules_api import action_row

messages_max = 200
actions_max = 200
reading = APIRouter(dependencies=[Depends(known_parameters), Depends(needs("read"))], responses=ERRORS, tags=["people"])


@reading.get("/v1/people/{address}", responses=answers(models.WholePerson))
def person(request: Request, address: Annotated[str, Path(max_length=name_chars_max)]) -> Response:
    """What happened to one recipient, the newest first, duplicates left out; why somebody is in a segment, and was written to or not."""
    site = site_of(request)
    recipient = recipient_key(address) or address
    events, note = site.timeline(recipient)
    known, segments_note = known_of(site, recipient)
    found = {"address": address, "recipient": recipient, "events": events, "note": note}
    return json(
        found | {
            "attributes": attributes(site, recipient), "segments": [msgspec.to_builtins(one) for one in known.segments] if known else [],
            "engagement": {"score": known.score, "reasons": known.reasons} if known and known.known else None,
            "segments_note": segments_note, "suppressed": suppressed(site, recipient), "messages": messages_of(site, recipient),
            "actions": [action_row(row) for row in actions_of(site, recipient)],
        }
    )  # fmt: skip


def known_of(site: Site, recipient: str) -> tuple[asking.Known | None, str | None]:
    """Return what the engine knows of a person, and a note where it does not answer."""
    try:
        return asking.person(site.config.folder, recipient), None
    except asking.NoAnswer as error:
        return None, error.text()


def attributes(site: Site, recipient: str) -> list[dict]:
    """Return what was last said of a person, with when that was."""
    with site.store.view() as view:
        found = attributes_of(view.db, recipient) if view.present else []
    return [{"name": name, "value": value, "at": iso(at_us)} for name, value, at_us in found]


def suppressed(site: Site, recipient: str) -> str:
    """Return why somebody must not be written to, or nothing."""
    with site.store.view() as view:
        return view.db.execute("SELECT why FROM suppressions WHERE recipient = ?", (recipient,)).get or "" if view.present else ""


def messages_of(site: Site, recipient: str) -> list[dict]:
    """Return the campaign messages to a person, the newest first."""
    with campaigns_of(site.config) as campaigns:
        if campaigns is None:
            return []
        rows = campaigns.db.execute(
            "SELECT campaign, variant, wave, state, changed_at_us, detail FROM messages WHERE recipient = ? "
            "ORDER BY changed_at_us DESC LIMIT ?",
            (recipient, messages_max),
        ).fetchall()
        known = {number: campaigns.get(number) for number in {row[0] for row in rows}}
    return [
        {
            "campaign": known[number].name, "variant": known[number].definition.variants[variant].name, "wave": wave,
            "state": STATES[state], "at": iso(at_us), "detail": detail,
        }
        for number, variant, wave, state, at_us, detail in rows
    ]  # fmt: skip


def actions_of(site: Site, recipient: str) -> list[dict]:
    """Return what became of a person's firings, the newest first."""
    with ruling.acted(site.config) as actions:
        return actions.listed("recipient", (recipient,), count_max=actions_max) if actions else []
