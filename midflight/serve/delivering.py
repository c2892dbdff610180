"""The part of the API about deliverability: breakers, who blocks, rates by provider, and who is not written to and why."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec
from fastapi import Depends, Path, Query, Request
from fastapi.routing import APIRouter
from starlette.responses import Response, StreamingResponse

from ..act import orders
from ..config import Config
from ..decide.guardrails import Counts, Guardrails
from ..decide.signs import SIGNS
from ..decide.stream_guards import Sends, StreamTrip, days_max, stream_trips
from ..events import recipient_key
from ..log import Record
from ..store import listing
from ..store.listing import Suppressed
from ..store.read import Store, View, WrongQuery, iso
from ..store.suspecting import SOURCE, Listed, listed_max
from . import doorlink, models
from .api import Site, answers, body_of, json, known_parameters, name_chars_max, needs, site_of, takes
from .campaigning import LATER, MORE_ERRORS, ORDERED, timed, who
from .ordering import new_id, ordered
from .ordering import reading as campaigns_of
from .protecting import Standing, logged, standings

rows_max = 500
hours_max = 14 * 24
weeks_shown = 8
log_shown = 100
signs_hours = 7 * 24
listed_bytes_max = 64 << 20  # of a file of addresses
export_rows = 5_000  # at a time
RISKY = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet may take for a formula
ADDRESS_COLUMNS = ("email", "address", "recipient", "email_address")
signs_by_id = {sign.id: sign for sign in SIGNS}

reading = APIRouter(dependencies=[Depends(known_parameters), Depends(needs("read"))], responses=MORE_ERRORS, tags=["deliverability"])
writing = APIRouter(dependencies=[Depends(known_parameters), Depends(needs("write"))], responses=MORE_ERRORS, tags=["deliverability"])
sending = APIRouter(dependencies=[Depends(known_parameters), Depends(needs("send"))], responses=MORE_ERRORS, tags=["deliverability"])


# -- how it stands -------------------------------------------------------------------------------------------------------


@reading.get("/v1/deliverability", responses=answers(models.Deliverability))
def deliverability(request: Request, hours: Annotated[int, Query(ge=1, le=hours_max, description="Of the rates by hour")] = 48) -> Response:
    """What is held and why, who blocks us and what to do, bounces by provider and hour, and each provider over weeks."""
    site = site_of(request)
    breakers, lines = breakers_of(site.config)
    with site.store.view() as view:
        return json(
            {
                "breakers": [timed(msgspec.to_builtins(one)) for one in breakers],
                "log": [timed(line) for line in lines],
                "signs": [timed(sign) for sign in signs_of(view)],
                "ceilings": [msgspec.to_builtins(trip) for trip in ceilings(view)],
                "by_hour": [
                    {"provider": provider, "hour": iso(minute * 60_000_000), "delivered": delivered, "bounced": bounced}
                    for provider, minute, delivered, bounced in listing.by_hour(view, hours)
                ],
                "by_week": weeks_of(view),
                "suppressed": listing.reasons(view),
                "freshness": view.freshness(),
            }
        )


def breakers_of(config: Config) -> tuple[list[Standing], list[dict]]:
    """Return how breakers stand, and what they did last."""
    with campaigns_of(config) as campaigns:
        if campaigns is None:
            return [], []
        return standings(campaigns.db, config.sending.speed), logged(campaigns.db, log_shown)


def signs_of(view: View) -> list[dict]:
    """Return who has blocked us of late, by the words of bounces, with what it means and what to do."""
    found = []
    for name, provider, n, first_us, last_us, said in listing.blocking(view, signs_hours):
        sign = signs_by_id.get(name)
        if sign is None:
            # A former version's sign has no words any more.
            continue
        found.append(
            {
                "sign": name, "who": sign.who, "kind": sign.kind, "about": sign.about, "what": sign.what, "advice": sign.advice,
                "source": sign.source, "provider": provider, "count": n, "first_us": first_us, "last_us": last_us, "said": said,
            }
        )  # fmt: skip
    return found


def weeks_of(view: View) -> list[dict]:
    """Return each provider's sums by week, the oldest week first."""
    names = ("delivered", "bounced", "blocked", "complained", "unsubscribed", "opened")
    rows = sorted(listing.by_week(view, weeks_shown), key=lambda row: (row[0], row[1]))
    return [
        {"provider": provider, "week": iso(minute * 60_000_000), **dict(zip(names, counts, strict=True))}
        for provider, minute, *counts in rows
    ]


def ceilings(view: View) -> list[StreamTrip]:
    """Return rates of providers that are surely above what providers tolerate, over the last weeks."""
    days: dict[str, dict[int, Counts]] = {}
    for provider, day, delivered, bounced, complained, unsubscribed in listing.by_day(view, days_max):
        days.setdefault(provider, {})[day] = Counts(
            delivered=delivered, bounced=bounced, complained=complained, unsubscribed=unsubscribed
        )  # fmt: skip
    sends = [
        Sends(kind="provider", name=provider, days=tuple(known.get(day, Counts()) for day in range(min(known), max(known) + 1)))
        for provider, known in days.items()
    ]
    return stream_trips(sends, Guardrails()) if sends else []


# -- who is not written to -----------------------------------------------------------------------------------------------


@reading.get("/v1/suppressions", responses=answers(models.Suppressions))
def suppressions(
    request: Request,
    search: Annotated[str, Query(description="The beginning of an address or of its domain", max_length=320)] = "",
    reason: Annotated[
        str, Query(description="dead, disabled, full, suspected, storm, imported, unsubscribed, complained", max_length=40)
    ] = "",
    after: Annotated[str, Query(description="`next` of the page before", max_length=400)] = "",
    limit: Annotated[int, Query(ge=1, le=rows_max)] = 100,
) -> Response:
    """Who is not written to, by address, with the reason, the evidence, and what ends it."""
    with site_of(request).store.view() as view:
        rows = listing.suppressed(view, search=search, reason=reason, after=after, count_max=limit + 1)
        counts = listing.reasons(view)
    following = rows[limit - 1].recipient if len(rows) > limit else None
    return json({"suppressions": [suppressed_row(row) for row in rows[:limit]], "next": following, "counts": counts})


@reading.get(
    "/v1/suppressions.csv",
    response_class=Response,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}, "description": "One address a line, with a head line"}},
)
def export(request: Request) -> Response:
    """Everybody who is not written to, as CSV that `midflight suppressions import` takes again."""
    name = {"content-disposition": 'attachment; filename="suppressions.csv"'}
    return StreamingResponse(csv_lines(site_of(request).store), media_type="text/csv; charset=utf-8", headers=name)


@reading.get("/v1/suppressions/{address}", responses=answers(models.Explained))
def explain(request: Request, address: Annotated[str, Path(max_length=name_chars_max)]) -> Response:
    """Why one address is not written to, since when, what was said of it, and what ends it."""
    recipient = recipient_key(address) or address
    with site_of(request).store.view() as view:
        found = listing.explained(view, recipient)
        now_us = view.log_time_us
    return json(
        {"recipient": recipient, "written_to": not any(holds(row, now_us) for row in found), "reasons": [suppressed_row(r) for r in found]}
    )


def holds(row: Suppressed, now_us: int) -> bool:
    """Whether a reason holds now."""
    return row.status != "fine" and (row.until_us == 0 or row.until_us > now_us)


def suppressed_row(row: Suppressed) -> dict:
    made = timed(msgspec.to_builtins(row))
    made["answers"] = [timed(answer) for answer in made["answers"]]
    return made


@writing.post("/v1/suppressions", responses=answers(models.Taken), openapi_extra=takes(models.Addresses))
def suppress(request: Request, wanted: Annotated[models.Addresses, Depends(body_of(models.Addresses))]) -> Response:
    """Put addresses on the list: they are not written to until somebody takes them off."""
    return json(hand_in(site_of(request).config, "suppress", wanted.addresses, who(request), wanted.why))


@writing.post("/v1/suppressions/release", responses=answers(models.Taken), openapi_extra=takes(models.Addresses))
def release(request: Request, wanted: Annotated[models.Addresses, Depends(body_of(models.Addresses))]) -> Response:
    """Take addresses off the list. Who unsubscribed or complained is still not written to."""
    return json(hand_in(site_of(request).config, "release", wanted.addresses, who(request), wanted.why))


def hand_in(config: Config, do: str, texts: Iterable[str], by: str, why: str) -> dict:
    """Append records that put addresses on the list or take them off; say how many, and which are no addresses. Raises DoorAway."""
    left_out: list[str] = []
    count = 0

    def records() -> Iterator[Record]:
        nonlocal count
        part: list[str] = []
        for text in texts:
            recipient = recipient_key(text)
            if not recipient:
                left_out.append(text[:320])
                continue
            part.append(recipient)
            count += 1
            if len(part) == listed_max:
                yield record_of(do, part, by, why)
                part = []
        if part:
            yield record_of(do, part, by, why)

    doorlink.append(config, records())
    return {"taken": count, "left_out": len(left_out), "examples": left_out[:10]}


def record_of(do: str, recipients: list[str], by: str, why: str) -> Record:
    return Record("definition", SOURCE, 0, {}, msgspec.json.encode(Listed(do=do, recipients=recipients, who=by[:200], why=why[:2_000])))


# -- CSV -----------------------------------------------------------------------------------------------------------------

HEAD = ("email", "status", "reason", "since", "until", "evidence")


def csv_lines(store: Store) -> Iterator[str]:
    """Yield the list as CSV, some thousand lines at a time."""
    yield line_of(HEAD)
    after = ""
    while True:
        with store.view() as view:
            rows = listing.suppressed(view, after=after, count_max=export_rows)
        if not rows:
            return
        yield "".join(
            line_of((row.recipient, row.status, row.reason, iso(row.since_us) or "", iso(row.until_us) or "", row.evidence)) for row in rows
        )
        after = rows[-1].recipient


def line_of(cells: Iterable[str]) -> str:
    """Return a line of CSV in which no cell is a formula to a spreadsheet."""
    out = io.StringIO()
    csv.writer(out).writerow([f"'{cell}" if cell.startswith(RISKY) else cell for cell in cells])
    return out.getvalue()


def addresses_in(raw: bytes) -> list[str]:
    """Return the addresses of a file: CSV with a column of addresses, or one address a line. Raises WrongQuery."""
    if len(raw) > listed_bytes_max:
        raise WrongQuery("The list is too long", expected=f"at most {listed_bytes_max >> 20} MB", got=f"{len(raw) >> 20} MB")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise WrongQuery("The list is not UTF-8", todo="Save it as CSV in UTF-8") from None
    lines = text.splitlines()
    head = next(csv.reader(lines[:1]), [])
    columns = [name.strip().lower() for name in head]
    place = next((columns.index(name) for name in ADDRESS_COLUMNS if name in columns), None)
    if place is None and (not head or "@" not in head[0]):
        raise WrongQuery(
            "No column of addresses", expected=" or ".join(f"`{name}`" for name in ADDRESS_COLUMNS), got=", ".join(head)[:100] or "nothing",
            where="line 1", todo="Name the column in the first line, or give one address a line",
        )  # fmt: skip
    try:
        rows = [row for row in csv.reader(lines[0 if place is None else 1 :]) if row]
    except csv.Error as error:
        raise WrongQuery(f"Not CSV: {error}") from None
    cells = [row[place or 0].strip() for row in rows if len(row) > (place or 0)]
    return [cell[1:] if cell.startswith("'") and cell[1:].startswith(RISKY) else cell for cell in cells if cell]


# -- taking over ---------------------------------------------------------------------------------------------------------


@sending.post("/v1/guards", responses=ORDERED, openapi_extra=takes(models.GuardMove))
def guard(request: Request, wanted: Annotated[models.GuardMove, Depends(body_of(models.GuardMove))]) -> Response:
    """Hold what goes to a provider or a domain or of a campaign, try it with a few messages, or let all go."""
    return carried_out(site_of(request), wanted.kind, wanted.name, wanted.to, who(request), wanted.why)


def carried_out(site: Site, kind: str, name: str, to: str, by: str, why: str) -> Response:
    order = orders.Guard(id=new_id(), campaign="", who=by, why=why, kind=kind, name=name, to=to)
    done = ordered(site.config, site.clock, order)
    return json({"done": done, "order": order.id, "warnings": [], "note": None if done else LATER}, 200 if done else 202)
