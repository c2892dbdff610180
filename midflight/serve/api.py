"""The REST API and the console as one application: numbers out, replays in, every error in one shape."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import re
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Annotated, Literal

import apsw
import msgspec
import uvicorn
from fastapi import Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRouter
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from .. import __version__
from ..config import Config
from ..kit.clock import Clock
from ..kit.counters import Counters
from ..kit.errors import MidflightError, NotFound, nearest
from ..log import NotKept, Reader, Record
from ..metrics.metric import formula
from ..sources import REGISTRY as VENDORS
from ..store.read import Query as Asked
from ..store.read import Store, View, WrongQuery, all_metrics, dimension_keys, iso, minute_us, window_of
from ..stream.measures import MEASURES
from . import doorlink, models
from .auth import Access, Forbidden, WrongCredentials
from .live import Hub, Pulse, StreamResponse, key_rates, listen
from .ordering import Lists
from .shield import HEADERS, Shield, same_origin, session_of

logger = logging.getLogger(__name__)

campaigns_max = 500
waiting_max = 1_000
letters_max = 200
raw_bytes_max = 16 * 1024  # of a letter in a list
replay_max = 1_000
name_chars_max = 1_000
drain_s = 8

Timeline = Callable[[str], list[dict]]
ABOUT = "Live numbers of email campaigns while they are being sent."
STATES = ("waiting", "replayed", "still bad")


class Site:
    """What every request needs: settings, clock, store, access, the live hub."""

    def __init__(self, config: Config, clock: Clock, timeline: Timeline | None) -> None:
        self.config = config
        self.clock = clock
        self.store = Store(config, clock)
        self.access = Access(config, clock, patient=True)
        self.counters = Counters()
        self.pulse = Pulse(self.store, clock)
        self.hub = Hub(self.pulse, self.counters)
        self.lists = Lists(config)
        self._timeline = timeline

    def timeline(self, recipient: str) -> tuple[list[dict], str | None]:
        """Return what happened to a recipient, and a note where that cannot be known."""
        if self._timeline is not None:
            return self._timeline(recipient), None
        try:
            from .history import timeline
        except ImportError:
            return [], "The history is not available in this installation."
        return timeline(self.config.folder, recipient, config=self.config), None


def site_of(request: Request) -> Site:
    return request.app.state.site


# -- who asks ------------------------------------------------------------------------------------------------------------


def scopes_of(request: Request) -> set[str]:
    """Return what the caller may do. Raises WrongCredentials. A console session may only read, and only from our own pages."""
    site = site_of(request)
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme:
        token = site.access.token_named(secret.strip()) if scheme.lower() == "bearer" else None
        if token is None:
            raise WrongCredentials(
                "The token is not known", expected="`Authorization: Bearer TOKEN`", todo="`midflight token make NAME` makes one"
            )
        request.state.who = token[0]
        return token[1]
    if request.method == "GET" and same_origin(request) and session_of(request):
        return {"read"}
    raise WrongCredentials("A token is missing", expected="`Authorization: Bearer TOKEN`", todo="`midflight token make NAME` makes one")


def needs(scope: str) -> Callable:
    """Return the check that the caller has a scope."""

    def check(request: Request) -> None:
        if scope not in scopes_of(request):
            raise Forbidden(f"The token has no scope `{scope}`", todo=f"`midflight token make NAME --scope {scope}` makes one")

    return check


def known_parameters(request: Request) -> None:
    """Refuse query parameters that the route does not have: a misspelt one must not silently change the question."""
    route = request.scope["route"]
    known: set[str] = set()
    waiting = [route.dependant]
    while waiting:
        dependant = waiting.pop()
        known |= {p.alias for p in dependant.query_params}
        waiting += dependant.dependencies
    for name in request.query_params:
        if name not in known:
            todo = nearest(name[:100], known) if known else "It takes none"
            raise WrongQuery(f"Unknown parameter `{name[:100]}`", where=name[:100], todo=todo)


ERRORS = {
    400: {"model": models.Error, "description": "The question is wrong"},
    401: {"model": models.Error, "description": "No token, or an unknown one"},
    403: {"model": models.Error, "description": "The token's scope does not reach"},
    404: {"model": models.Error, "description": "Nothing has that name"},
    503: {"model": models.Error, "description": "Busy; try again"},
}
reading = APIRouter(dependencies=[Depends(known_parameters), Depends(needs("read"))], responses=ERRORS)
writing = APIRouter(dependencies=[Depends(known_parameters), Depends(needs("write"))], responses=ERRORS)
everybody = APIRouter(dependencies=[Depends(known_parameters)], responses={400: ERRORS[400], 503: ERRORS[503]})


def answers(model: type) -> dict:
    return {200: {"model": model}}


BODIES: list[type[BaseModel]] = []


def takes(model: type[BaseModel]) -> dict:
    """Return the description of a body that `body_of` reads."""
    if model not in BODIES:
        BODIES.append(model)
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def body_of(model: type[BaseModel]) -> Callable:
    """Return what reads a body, once it is known who sends it: FastAPI would read it first. Raises RequestValidationError."""

    async def read(request: Request) -> BaseModel:
        request.state.fields = model.model_fields
        try:
            if "json" not in request.headers.get("content-type", ""):
                raise WrongQuery("The body is not JSON by its type", expected="`Content-Type: application/json`", where="body")
            return model.model_validate_json(await request.body())
        except ValidationError as error:
            raise RequestValidationError([{**found, "loc": ("body", *found["loc"])} for found in error.errors()]) from None

    return read


def json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


# -- what is asked -------------------------------------------------------------------------------------------------------

Campaign = Annotated[str | None, Query(description="One campaign by name", max_length=name_chars_max)]
By = Annotated[str, Query(description="Dimensions, separated by commas", max_length=400, examples=["variant,provider"])]
Where = Annotated[
    list[str], Query(description="`dimension:name`, may be repeated; several names of one dimension are alternatives", max_length=32)
]
Limit = Annotated[int, Query(ge=1, le=10_000)]
After = Annotated[str | None, Query(description="`next` of the page before", max_length=64)]


def asked(
    request: Request,
    campaign: Campaign = None,
    window: Annotated[str | None, Query(description="`1m` to `366d`, or `all`", max_length=16)] = None,
    from_: Annotated[str | None, Query(alias="from", description="ISO 8601 or unix seconds", max_length=40)] = None,
    to: Annotated[str | None, Query(description="ISO 8601 or unix seconds; excluded", max_length=40)] = None,
    by: By = "",
    where: Where = (),  # type: ignore[assignment]
    metrics: Annotated[str | None, Query(description="Metrics, separated by commas; all without", max_length=1_000)] = None,
    measures: Annotated[str | None, Query(description="Measures, separated by commas; all without", max_length=1_000)] = None,
    machines: Annotated[models.Machines, Query(description="Count what machines did too?")] = "without",
    within: Annotated[int, Query(description="Minutes after the click in which a conversion counts; 0 = all", ge=0, le=366 * 1440)] = 0,
    limit: Limit = 1_000,
) -> Callable[[int], Asked]:
    """Read the question; the window is fixed later, at the moment of the view. Raises WrongQuery."""
    wanted = MEASURES if measures is None else tuple(words(measures))
    for name in wanted:
        if name not in MEASURES:
            raise WrongQuery(f"Unknown measure `{name[:100]}`", where="measures", todo=nearest(name[:100], MEASURES))

    def at(now_us: int) -> Asked:
        return Asked(
            window=window_of(window, now_us, from_, to),
            campaign=campaign,
            by=tuple(words(by)),
            where=tuple(pair(condition, site_of(request)) for condition in where),
            metrics=None if metrics is None else tuple(words(metrics)),
            measures=wanted,
            machines=machines == "with",
            within_minutes=within,
            rows_max=limit,
        )

    return at


Question = Annotated[Callable[[int], Asked], Depends(asked)]


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def pair(condition: str, site: Site) -> tuple[str, str]:
    """Read ``dimension:name``. An attribute named like a column is ``attribute:NAME:name``."""
    for key in sorted(dimension_keys(site.store.attributes), key=len, reverse=True):
        if condition.startswith(f"{key}:"):
            return key, condition[len(key) + 1 : len(key) + 1 + name_chars_max]
    key, colon, name = condition.partition(":")
    if not colon:
        raise WrongQuery("Not a condition", expected="`dimension:name`", got=condition[:100], where="where")
    return key, name[:name_chars_max]


def moment(text: str) -> float:
    """Return the unix seconds of an ISO 8601 time; 0 where it is none."""
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def same_text(given: str, wanted: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode("utf-8", "replace"))


def cursor(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,18})\.(-?\d{1,19})", text, re.ASCII)
    if not found or abs(int(found[2])) > 2**63 - 1:
        raise WrongQuery("Not a place to go on from", expected="`next` of the page before", got=text, where="after")
    return int(found[1]), int(found[2])


# -- numbers -------------------------------------------------------------------------------------------------------------


@reading.get("/v1/numbers", responses=answers(models.Numbers), tags=["numbers"])
def numbers(request: Request, question: Question) -> Response:
    """Any metric over any window by any dimensions.

    Each row has the dimensions asked for, every measure and every metric. `minute` and `hour` are dimensions too.
    """
    with site_of(request).store.view() as view:
        return json(view.numbers(question(view.now_us)))


@reading.get("/v1/series", responses=answers(models.Series), tags=["numbers"])
def series(
    request: Request,
    question: Question,
    step: Annotated[Literal["minute", "hour", "auto"], Query(description="auto: minutes up to six hours, else hours")] = "auto",
) -> Response:
    """The same numbers as lines over time, one for each combination of dimensions."""
    with site_of(request).store.view() as view:
        query = question(view.now_us)
        if step == "auto":
            step = auto_step(view, query)
        return json(view.series(query, step))


def auto_step(view: View, query: Asked) -> str:
    """Return minute for spans of up to six hours, else hour."""
    first = query.window.first
    if not query.window.bounded or not first:
        first = view.campaign(query.campaign)["first"] if query.campaign is not None else 0
    return "minute" if query.window.last - first < 360 else "hour"


@reading.get("/v1/delays", responses=answers(models.Delays), tags=["numbers"])
def delays(
    request: Request,
    question: Question,
    kind: Annotated[str, Query(description="open, click or conversion", max_length=100)] = "open",
) -> Response:
    """How long people took: open and click since delivery, conversion since the click."""
    with site_of(request).store.view() as view:
        return json(view.delays(question(view.now_us), kind))


@reading.get("/v1/metrics", responses=answers(models.MetricList), tags=["numbers"])
def metrics(request: Request) -> Response:
    """Every metric, what it means and how it is made; every measure and dimension."""
    rows = [
        {
            "name": name,
            "label": metric.label,
            "unit": metric.unit,
            "direction": metric.direction,
            "people": formula(metric, False).strip("`"),
            "everybody": formula(metric, True).strip("`"),
            "doc": metric.doc,
        }
        for name, metric in all_metrics().items()
    ]
    return json({"metrics": rows, "measures": MEASURES, "dimensions": list(dimension_keys(site_of(request).store.attributes))})


# -- campaigns -----------------------------------------------------------------------------------------------------------


@reading.get("/v1/campaigns", responses=answers(models.Campaigns), tags=["campaigns"])
def campaigns(
    request: Request,
    search: Annotated[str, Query(description="Part of the name", max_length=200)] = "",
    limit: Annotated[int, Query(ge=1, le=campaigns_max)] = 50,
    after: After = None,
    machines: models.Machines = "without",
) -> Response:
    """Campaigns with their sums since the start, the last active first."""
    with site_of(request).store.view() as view:
        rows = view.campaigns(search=search, limit=limit + 1, after=cursor(after))
        following = f"{rows[limit - 1]['last']}.{rows[limit - 1]['id']}" if len(rows) > limit else None
        found = [campaign_row(row, machines == "with") for row in rows[:limit]]
        return json({"campaigns": found, "next": following, "freshness": view.freshness()})


def campaign_row(row: dict, machines: bool) -> dict:
    return {
        "campaign": row["name"],
        "first_at": iso(row["first"] * minute_us),
        "last_at": iso(row["last"] * minute_us),
        "measures": row["sums"],
        "metrics": key_rates(row["sums"], machines=machines),
    }


@reading.get("/v1/campaigns/{name:path}", responses=answers(models.CampaignDetail), tags=["campaigns"])
def campaign(request: Request, name: Annotated[str, Path(max_length=name_chars_max)], machines: models.Machines = "without") -> Response:
    """One campaign since its start, with every metric and the names that its dimensions can have."""
    with site_of(request).store.view() as view:
        row = view.campaign(name)
        query = Asked(window=window_of("all", view.now_us), campaign=name, measures=(), machines=machines == "with")
        answer = view.numbers(query)
        total = answer["total"]
        out = campaign_row(row, machines == "with")
        out["intervals"] = total.pop("intervals")
        out["metrics"] = total
        out["machines"] = machines
        out["machine_share"] = answer["machine_share"]
        out["dimensions"] = {key: view.dimension_values(key)[:200] for key in dimension_keys(view.attributes) if key != "campaign"}
        out["freshness"] = answer["freshness"]
        return json(out)


@reading.get("/v1/waiting", responses=answers(models.Waiting), tags=["campaigns"])
def waiting(
    request: Request,
    campaign: Annotated[str, Query(max_length=name_chars_max)],
    minutes: Annotated[int, Query(ge=0, le=366 * 1440)] = 30,
    limit: Annotated[int, Query(ge=1, le=waiting_max)] = 100,
    after: After = None,
) -> Response:
    """Who clicked at least so many minutes ago and has not converted, the latest click first."""
    with site_of(request).store.view() as view:
        found = view.waiting(campaign, minutes, limit, cursor(after))
        return json({**found, "freshness": view.freshness()})


# -- sources -------------------------------------------------------------------------------------------------------------


@reading.get("/v1/sources", responses=answers(models.Sources), tags=["sources"])
def sources(request: Request) -> Response:
    """Every source: where its webhooks go, whether a secret is set, when it last spoke, what was dropped."""
    site = site_of(request)
    with site.store.view() as view:
        return json({"sources": source_rows(site, view), "freshness": view.freshness()})


def source_rows(site: Site, view: View) -> list[dict]:
    """Return all configured sources, then those that only the log knows."""
    minute = view.now_us // minute_us
    dead, drops = view.dead_counts(), view.drops()
    rows = []
    for name in [*site.config.sources, *(n for n in view.source_names() if n not in site.config.sources)]:
        settings = site.config.sources.get(name)
        kind = (settings or {}).get("kind", "")
        vendor = VENDORS.get(kind) if kind in VENDORS.names() else None
        hour = {m: events for m, _, events, _, _ in view.receipts(name, minute - 59, minute)}
        rows.append(
            {
                "source": name,
                "configured": settings is not None,
                "kind": kind,
                "label": vendor.label if vendor else "",
                "docs_url": vendor.docs_url if vendor else "",
                "webhook_url": webhook_url(site.config, name) if settings is not None else "",
                "secrets": secret_state(settings or {}),
                "last_event": iso(view.last_event_us(name)),
                "last_day": view.received(name, minute - 1439, minute),
                "last_hour": [hour.get(m, 0) for m in range(minute - 59, minute + 1)],
                "dropped": drops.get(name, {}),
                "dead": dead.get(name, 0),
            }
        )
    return rows


def door_url(config: Config) -> str:
    """Return where the door is reached from outside."""
    host = f"[{config.door.host}]" if ":" in config.door.host else config.door.host
    return config.door.public_url.rstrip("/") or f"http://{host}:{config.door.port}"


def webhook_url(config: Config, name: str) -> str:
    """Return what a vendor has to be given; Segment's libraries know the rest of the path themselves, `/v1/track` is the first."""
    kind = config.sources.get(name, {}).get("kind")
    return f"{door_url(config)}/v1/track" if kind == "segment" else f"{door_url(config)}/in/{name}"


def secret_state(settings: dict) -> dict:
    """Return which secrets a source has, how many, and when they expire; never the secrets."""
    lists = {key: settings.get(key) or [] for key in ("secrets", "basic_auth", "bearer", "headers")}
    expires = sorted(
        str(secret["until"])
        for key in ("secrets", "basic_auth", "bearer")
        for secret in lists[key]
        if isinstance(secret, dict) and secret.get("until")
    )
    counts = {("signing" if key == "secrets" else key): len(found) for key, found in lists.items()}
    state = "set" if any(counts.values()) else "unsigned" if settings.get("unsigned") else "not set"
    return {"state": state, **counts, "expires": expires}


@reading.get("/v1/dead", responses=answers(models.Dead), tags=["sources"])
def dead(
    request: Request,
    source: Annotated[str | None, Query(max_length=200)] = None,
    state: Annotated[Literal["waiting", "replayed", "still bad"] | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=letters_max)] = 50,
    after: After = None,
) -> Response:
    """Dead letters: what arrived and could not be read, with its reason and its bytes as text, the newest first."""
    with site_of(request).store.view() as view:
        number = None if state is None else STATES.index(state)
        rows, following = view.dead(source=source, state=number, limit=limit, after=cursor(after), raw_bytes=raw_bytes_max)
        return json({"letters": [letter_row(row) for row in rows], "next": following, "freshness": view.freshness()})


def letter_row(row: dict) -> dict:
    """Return what is told of a row of ``View.dead``, which holds only the beginning of the letter's bytes."""
    return {
        "position": row["position"],
        "item": row["item"],
        "source": row["source"],
        "reason": row["reason"] or "",
        "detail": row["detail"] or "",
        "at": iso(row["at_us"]),
        "state": STATES[row["state"]],
        "bytes": row["bytes"] or 0,
        "raw": as_bytes(row["raw"]).decode("utf-8", "replace"),
        "cut": (row["bytes"] or 0) > raw_bytes_max,
    }


def as_bytes(raw: object) -> bytes:
    return raw if isinstance(raw, bytes) else str(raw or "").encode()


@writing.post("/v1/dead/replay", responses=answers(models.Replayed), tags=["sources"])
def replay(request: Request, wanted: models.Replay) -> Response:
    """Parse dead letters again, after the parser or the settings were mended. Doing it twice counts nothing twice."""
    return json({"replayed": replay_letters(site_of(request), wanted)})


def replay_letters(site: Site, wanted: models.Replay) -> int:
    """Append one replay record a letter that is not read yet; return how many. Raises WrongQuery, NotFound, DoorAway.

    Which letters is settled first and without their bytes; these are then read as the door takes them, a few MB at a time.
    """
    if not wanted.letters and wanted.source is None:
        raise WrongQuery("Which letters?", expected="`letters` or `source`", where="letters")
    with site.store.view() as view:
        if wanted.letters:
            places = [(letter.position, letter.item) for letter in wanted.letters]
            if not all(view.has_letter(*place) for place in places):
                raise NotFound("No such dead letter", where="letters", todo="`GET /v1/dead` lists them")
        else:
            known = {*site.config.sources, *view.source_names()}
            if wanted.source not in known:
                raise NotFound(f"Unknown source `{wanted.source[:100]}`", where="source", todo=nearest(wanted.source[:100], known))
            # Those never tried come first; those that stayed bad again after a parser or a setting was mended.
            rows = [row for state in (0, 2) for row in view.dead(source=wanted.source, state=state, limit=replay_max)[0]]
            places = [(row["position"], row["item"]) for row in rows[:replay_max]]
    with Reader(site.config.folder / "log") as log:
        count = doorlink.append(site.config, replay_records(site.store, places, log))
    site.counters.add("dead_replayed_total", count=count)
    return count


def replay_records(store: Store, places: list[tuple[int, int]], log: Reader) -> Iterator[Record]:
    """Give the replay records of dead letters one after the other; what has been read in the meantime is passed over."""
    for place in places:
        # A view of its own for each: the door may take its time between two of them.
        with store.view() as view:
            letter = view.letter(*place)
        if letter is not None and letter["state"] != 1:
            yield replay_record(letter, log)


def replay_record(letter: dict, log: Reader) -> Record:
    """Return the record that asks for one dead letter to be parsed again, as it was first received: with the same headers and URL."""
    first = first_receipt(letter["position"], log)
    headers = {
        **(first.headers if first else {}),
        "midflight-position": str(letter["position"]),
        "midflight-item": str(letter["item"]),
        "midflight-at-us": str(letter["at_us"]),
    }
    return Record("replay", letter["source"], 0, headers, as_bytes(letter["raw"]), first.url if first else "")


def first_receipt(position: int, log: Reader) -> Record | None:
    """Return the record at a position; None where the log no longer has it."""
    try:
        records = log.read(position, 1)
    except NotKept:
        return None
    return next((record for record in records if record.position == position), None)


# -- live and about ourselves --------------------------------------------------------------------------------------------


@reading.get(
    "/v1/stream",
    tags=["live"],
    response_class=Response,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Events named `pulse`, one a second"}
    },
)
async def stream(request: Request, campaign: Campaign = None) -> Response:
    """Server-sent events: first the whole pulse, then each second what changed. A slow reader is dropped."""
    site = site_of(request)
    if campaign is not None:
        await asyncio.to_thread(_must_exist, site, campaign)
    return StreamResponse(site.hub, site.hub.join(campaign))


def _must_exist(site: Site, campaign: str) -> None:
    with site.store.view() as view:
        view.campaign_id(campaign)


@everybody.get("/health", responses=answers(models.Health), tags=["ourselves"])
def health() -> Response:
    """The process is alive."""
    return json({"ok": True, "version": __version__})


@everybody.get("/ready", responses=answers(models.Ready), tags=["ourselves"])
def ready(request: Request) -> Response:
    """The store can be read, or there is none yet because nothing has happened."""
    with site_of(request).store.view() as view:
        return json({"ok": True, "version": __version__, "store": "read" if view.present else "absent", "log_position": view.position})


@reading.get(
    "/metrics",
    tags=["ourselves"],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "One value a line"}},
)
def prometheus(request: Request) -> Response:
    """Numbers about this system, not about campaigns, in Prometheus' text format."""
    site = site_of(request)
    with site.store.view() as view:
        minute = view.now_us // minute_us
        lines = [*gauge("midflight_log_position", "Next log position to fold.", {"": view.position})]
        lines += gauge("midflight_log_time_seconds", "Append time of the last folded record.", {"": view.log_time_us / 1e6})
        fresh = view.freshness()
        for q in ("p50", "p99"):
            if fresh[f"{q}_ms"] is not None:
                lines += gauge(
                    f"midflight_freshness_{q}_ms", "From receipt to readable number, last minute with data.", {"": fresh[f"{q}_ms"]}
                )
        names = view.source_names()
        received = {name: view.received(name, minute - 1439, minute) for name in names}
        for key in ("records", "events", "duplicates", "bad"):
            lines += gauge(
                f"midflight_source_{key}_last_day",
                f"{key.title()} received in the last 24 hours.",
                {n: received[n][key] for n in names},
                "source",
            )
        lines += gauge("midflight_dead_letters", "Dead letters that wait, counted up to 10000.", view.dead_counts(), "source")
    lines += gauge("midflight_stream_readers", "Open live streams.", {"": len(site.hub.readers)})
    for name, counts in site.counters.snapshot().items():
        lines += [f"# TYPE midflight_{name} counter", *(f"midflight_{name} {n}" for n in counts.values())]
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


def gauge(name: str, text: str, values: dict[str, float], label: str = "") -> list[str]:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
    for value, number in values.items():
        escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        lines.append(f'{name}{{{label}="{escaped}"}} {number}' if label else f"{name} {number}")
    return lines


# -- the application -----------------------------------------------------------------------------------------------------


def create_app(config: Config, clock: Clock | None = None, timeline: Timeline | None = None) -> FastAPI:
    """Return the application. ``timeline(recipient)`` gives a person's events; without it the history's own is taken."""
    site = Site(config, clock or Clock(), timeline)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI):
        yield
        site.hub.close()
        site.store.close()
        site.access.close()

    app = FastAPI(
        title="Midflight",
        version=__version__,
        description=ABOUT,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
    )
    app.state.site = site
    for router in routers():
        app.include_router(router)
    description = msgspec.json.encode(openapi())

    @app.get("/v1/openapi.json", include_in_schema=False)
    def openapi_json() -> Response:
        return Response(description, media_type="application/json")

    # The console's pages import this module; they are joined here, when both are complete.
    from .console import join

    join(app)
    app.add_exception_handler(MidflightError, _refused)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(apsw.Error, _unreadable)
    app.add_exception_handler(Exception, _bug)
    app.add_middleware(Shield)
    return app


def routers() -> list[APIRouter]:
    """Return every part of the API. The others import this module, and are joined here, when all are complete."""
    from . import alerts_api, campaigning, connected, delivering, people_api, rules_api, segments_api

    parts = (campaigning, segments_api, rules_api)
    more = (people_api.reading, connected.reading, connected.writing, delivering.reading, delivering.writing, delivering.sending)
    return [reading, writing, alerts_api.reading, *more, *(router for part in parts for router in (part.reading, part.sending)), everybody]


def openapi() -> dict:
    """Return the OpenAPI description: errors in our shape, and tokens as the way in. Needs no settings and no files."""
    app = FastAPI()
    for router in routers():
        app.include_router(router)
    schema = get_openapi(title="Midflight", version=__version__, description=ABOUT, routes=app.routes)
    schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for model in BODIES:
        schema["components"]["schemas"][model.__name__] = model.model_json_schema(ref_template="#/components/schemas/{model}")
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"].get("schemas", {}).pop(name, None)
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if "401" in operation["responses"]:
                operation["security"] = [{"token": []}]
    return schema


def error_response(error: MidflightError) -> Response:
    response = json(error.as_dict(), error.status)
    if error.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    if error.status in (429, 503):
        response.headers["retry-after"] = "1"
    return response


async def _refused(request: Request, error: MidflightError) -> Response:
    return answer_error(request, error)


def answer_error(request: Request, error: MidflightError) -> Response:
    """Return an error as JSON, or as a page where somebody looks at the console with a browser."""
    path = request.url.path
    if path.startswith("/v1/") or path in ("/health", "/ready", "/metrics") or "text/html" not in request.headers.get("accept", ""):
        return error_response(error)
    from .console import stopped

    return stopped(request, error)


async def _not_valid(request: Request, error: RequestValidationError) -> Response:
    errors = error.errors()
    # A misspelt field is missing under its right name too; what it is called says more.
    first = next((found for found in errors if found["type"] == "extra_forbidden"), errors[0])
    where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    got = first.get("input")
    if first["type"] == "extra_forbidden":
        known = getattr(request.state, "fields", None) or (models.Replay if len(first["loc"]) == 2 else models.LetterId).model_fields
        name = str(first["loc"][-1])[:100]
        return answer_error(request, WrongQuery(f"Unknown field `{name}`", where=where, todo=nearest(name, known)))
    if where == "body" and "json" not in request.headers.get("content-type", ""):
        wrong = WrongQuery("The body is not JSON by its type", expected="`Content-Type: application/json`", where=where)
        return answer_error(request, wrong)
    return answer_error(request, WrongQuery(first["msg"], got=got if isinstance(got, str | int | float) else None, where=where))


async def _http(request: Request, error: HTTPException) -> Response:
    wrong = MidflightError(str(error.detail), got=request.url.path, todo="`GET /v1/openapi.json` lists what there is")
    wrong.status, wrong.code = error.status_code, "http"
    response = answer_error(request, wrong)
    response.headers.update(error.headers or {})
    return response


async def _unreadable(request: Request, error: apsw.Error) -> Response:
    logger.error("The store cannot be read: %s", error)
    wrong = MidflightError("The numbers cannot be read at the moment", todo="Look at the disk: is it full?")
    wrong.status, wrong.code = 503, "unreadable"
    return answer_error(request, wrong)


async def _bug(request: Request, error: Exception) -> Response:
    wrong = MidflightError("Something went wrong in Midflight itself", todo="The console's own log has the details")
    wrong.status, wrong.code = 500, "bug"
    response = answer_error(request, wrong)
    # This answer is made outside of the shield.
    response.headers.update({name.decode(): value.decode() for name, value in HEADERS.items()} | {"cache-control": "no-store"})
    return response


class _Server(uvicorn.Server):
    """uvicorn, whose stop also ends the live streams: it would wait for them for ever."""

    hub: Hub

    def handle_exit(self, sig: int, frame: object) -> None:
        # uvicorn would raise the signal again after the drain; a stop that was asked for is a success.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self.hub.close_soon()


def serve(config: Config, clock: Clock | None = None) -> None:
    """Serve API and console until SIGTERM or SIGINT; open requests get ``drain_s`` seconds."""
    listener = listen(config.console.host, config.console.port)
    app = create_app(config, clock)
    server_config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_graceful_shutdown=drain_s,
        timeout_keep_alive=30,
        limit_concurrency=500,
        h11_max_incomplete_event_size=32 * 1024,
    )
    try:
        server = _Server(server_config)
        server.hub = app.state.site.hub
        server.run(sockets=[listener])
    finally:
        listener.close()
