"""One function a page: reads the store once, hands the template plain values; the API answers the same numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import jinja2
import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from ... import __version__
from ...act import kill_switch
from ...events import recipient_key
from ...kit.errors import MidflightError, NotFound
from ...metrics import Sums
from ...metrics.metric import formula
from ...sources import REGISTRY as VENDORS
from ...store.read import Query as Asked
from ...store.read import View, add, all_metrics, delay_row, dimension_keys, iso, minute_us, window_of
from .. import api, connected, models, people_api, ruling
from ..auth import Session
from ..ordering import sent_here
from ..reconciling import standing
from ..shield import same_origin, session_of
from . import pictures, words

FOLDER = Path(__file__).parent
THEMES = ("auto", "light", "dark")
THEME_COOKIE = "midflight_theme"
WINDOWS = ("1m", "5m", "15m", "1h", "24h", "all")
FUNNEL = (("attempted", "Sent"), ("delivered", "Delivered"), ("opened", "Opened"), ("clicked", "Clicked"), ("converted", "Converted"))
SHOWN = {"delivered": "Delivered", "opened": "Opened", "clicked": "Clicked", "converted": "Converted", "bounced": "Bounced"}
BOUNCED = ("bounced_hard", "bounced_soft", "bounced_block")
TABLE = ("open_rate", "click_rate", "click_to_open", "conversion_rate", "revenue_per_thousand")
BESIDE = ("bounce_rate", "complaint_rate", "unsubscribe_rate", "click_to_conversion", "revenue_per_thousand", "machine_share")
DELAY_KINDS = {"open": "to open", "click": "to click", "conversion": "click to conversion"}
WAITS = (1, 5, 15, 30, 60, 240, 1440)
CAMPAIGN_MEASURES = ("queued", "sent", "delivered", "opened", "opened_human", "clicked", "clicked_human", "converted", *BOUNCED)
CHART_STEPS = (1, 2, 5, 10, 15, 30, 60, 180, 360, 720, 1440)
chart_minutes_min = 60
chart_young_min = 10
young_minutes = 15
chart_points_max = 150
chart_cells_max = 400_000  # with more in its window, a chart is drawn from hours
whole_min = 10  # a rate over fewer is not told where its interval does not stand beside it
variants_max = 50
lines_max = 6
breakdown_max = 40
waiting_rows = 20
campaign_rows = 50
letter_rows = 30
seconds_us = 1_000_000

templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.filters.update(
    count=words.count,
    percent=words.percent,
    interval=words.interval,
    money=words.money,
    ms=words.ms,
    duration=words.duration,
    hours=lambda hours: words.duration(hours * 3600),
    rate_per_s=words.rate_per_s,
    clock=words.clock,
    day=lambda at_us: (iso(at_us) or "")[:10],
    json=lambda value: msgspec.json.encode(value).decode(),
)
templates.globals.update(
    spark=pictures.spark, scale=pictures.scale, whisker=pictures.whisker, metric_text=words.metric, whole_min=whole_min, version=__version__
)


class LoginFirst(Exception):
    """Nobody is logged in; the page asked for comes after the login."""


def visitor(request: Request) -> Session:
    """Return who looks. Raises LoginFirst."""
    session = session_of(request)
    if session is None:
        raise LoginFirst
    return session


pages = APIRouter(include_in_schema=False)


def render(request: Request, template: str, status: int = 200, **values) -> Response:
    """Return a page. Everything in ``values`` is text to the template and is escaped by it."""
    theme = request.cookies.get(THEME_COOKIE, "auto")
    if values.get("session"):
        values |= switch_of(request)
    text = templates.get_template(template).render(
        theme=theme if theme in THEMES else "auto",
        path=request.url.path,
        asset=asset_url,
        **values,
    )
    return Response(text, status, media_type="text/html")


def switch_of(request: Request) -> dict:
    """Return how the kill switch stands: every page shows it to whoever may press it, which is whoever is logged in."""
    site = api.site_of(request)
    hold = kill_switch.read(site.config.folder)
    # As the browser has written it: in a name, a slash and a question mark are not what they are in an address.
    path = request.scope["raw_path"].decode("ascii", "replace")
    back = path + (f"?{request.url.query}" if request.url.query else "")
    return {"hold": hold, "held_since": words.ago(hold.at_us, site.clock.now_us()) if hold.at_us else "", "back": back}


# -- Pulse ---------------------------------------------------------------------------------------------------------------


@pages.get("/")
def pulse(request: Request, session: Session = Depends(visitor)) -> Response:
    """The live strip of all active campaigns."""
    site = api.site_of(request)
    state = site.pulse.now()
    start = None if state["campaigns"] else first_steps(site)
    return render(request, "pulse.html", session=session, state=state, start=start, tiles=tiles(state), **since(site.clock.now_us()))


def tiles(state: dict) -> dict:
    """Return the sums over the active campaigns that stand above them."""
    total = Sums()
    for row in state["campaigns"]:
        add(total, Sums(measures=row["measures"]))
    young = not any(any(row["spark"][:-young_minutes]) for row in state["campaigns"])
    return {
        # While nothing is older than some minutes, an hour would be a flat line.
        "minutes": young_minutes if young else 60,
        "moving": sum(1 for row in state["campaigns"] if any(row["spark"][-5:])),
        "active": len(state["campaigns"]),
        "machine_share": all_metrics()["machine_share"].compute(total).value,
    }


def told(row: dict, name: str) -> float | None:
    """Return a campaign's rate as lists tell it: none over a few messages, and none of events that belong to no campaign."""
    whole = Sums(measures=row["measures"]).of(all_metrics()[name].under(False))
    return row["metrics"][name] if row["campaign"] and whole >= whole_min else None


templates.globals.update(told=told)


def since(now_us: int) -> dict:
    """Return what templates need to say how long ago something was."""
    return {"now": words.clock(now_us), "ago": lambda at: words.ago(_us(at), now_us)}


def _us(at: str | int | None) -> int:
    if not at:
        return 0
    return at if isinstance(at, int) else int(api.moment(at) * seconds_us)


def first_steps(site: api.Site) -> dict:
    """Return what an empty console says to do: where webhooks go, and a line that tries it."""
    urls = [{"source": name, "url": api.webhook_url(site.config, name)} for name in site.config.sources]
    # A GET shows that the door is reached; calls in Segment's format have no such answer.
    answering = [url["url"] for url in urls if "/in/" in url["url"]]
    tried = answering[0] if answering else f"{api.door_url(site.config)}/health"
    return {"urls": urls, "try": f"curl -i {tried}", "settings": SETTINGS}


SETTINGS = """sources:
  sendgrid:
    kind: sendgrid
    secrets: [env:SENDGRID_VERIFICATION_KEY]"""


# -- Campaigns -----------------------------------------------------------------------------------------------------------


@pages.get("/find")
def find(request: Request, q: str = "", session: Session = Depends(visitor)) -> Response:
    """The search box: an address leads to a person, anything else to campaigns."""
    q = q.strip()[:1_000]
    if "@" in q:
        return RedirectResponse("/people?" + urlencode({"address": q}), 303)
    return RedirectResponse("/campaigns?" + urlencode({"search": q}) if q else "/campaigns", 303)


@pages.get("/campaigns")
def campaigns(request: Request, search: str = "", after: str | None = None, session: Session = Depends(visitor)) -> Response:
    """All campaigns, the last active first; ten years of them are pages of fifty."""
    site = api.site_of(request)
    with site.store.view() as view:
        rows = view.campaigns(search=search[:200], limit=campaign_rows + 1, after=api.cursor(after))
        following = f"{rows[campaign_rows - 1]['last']}.{rows[campaign_rows - 1]['id']}" if len(rows) > campaign_rows else None
        return render(
            request,
            "campaigns.html",
            session=session,
            search=search[:200],
            rows=[api.campaign_row(row, machines=False) for row in rows[:campaign_rows]],
            ours=sent_here(site.config, [row["name"] for row in rows[:campaign_rows]]),
            older="/campaigns?" + urlencode({"search": search[:200], "after": following}) if following else None,
            first=after is None,
            **since(view.now_us),
        )


class Choice(msgspec.Struct, kw_only=True):
    """What is chosen on a campaign's page; all of it stands in the address, so a view can be sent to somebody."""

    name: str = ""
    window: str = "all"
    from_: str = msgspec.field(name="from", default="")
    to: str = ""
    machines: str = "without"
    by: str = "provider"
    show: str = "opened"
    delay: str = "open"
    minutes: int = 30
    where: list[str] = []

    def link(self, **changes: object) -> str:
        """Return the address of this page with something chosen differently."""
        return "/campaign?" + urlencode(self.parts(**changes), doseq=True)

    def parts(self, **changes: object) -> dict[str, object]:
        """Return the address' parts, without what is as it would be anyway."""
        values = {f: getattr(self, f) for f in self.__struct_fields__} | changes
        if "window" in changes:
            values |= {"from_": "", "to": ""}
        default = Choice()
        kept = {("from" if f == "from_" else f): v for f, v in values.items() if v != getattr(default, f)}
        return kept

    def without(self, *names: str) -> list[tuple[str, str]]:
        """Return the chosen parts as a form's hidden fields, without some."""
        out = []
        for key, value in self.parts().items():
            if key not in names:
                out += [(key, str(v)) for v in (value if isinstance(value, list) else [value])]
        return out


def choice_of(request: Request, keys: dict[str, str]) -> Choice:
    """Read the address; what is not on the page falls back to what is usual there."""
    given = request.query_params
    choice = Choice(name=given.get("name", ""))
    if given.get("window") in WINDOWS:
        choice.window = given["window"]
    choice.from_, choice.to = given.get("from", "")[:40], given.get("to", "")[:40]
    if choice.from_ or choice.to:
        choice.window = "custom"
    choice.machines = "with" if given.get("machines") == "with" else "without"
    choice.by = given["by"] if given.get("by") in keys and given["by"] != "campaign" else "provider"
    choice.show = given["show"] if given.get("show") in SHOWN else "opened"
    choice.delay = given["delay"] if given.get("delay") in DELAY_KINDS else "open"
    minutes = given.get("minutes", "")
    choice.minutes = int(minutes) if minutes.isdigit() and int(minutes) in WAITS else 30
    choice.where = given.getlist("where")[:32]
    return choice


@pages.get("/campaign")
def campaign(request: Request, session: Session = Depends(visitor)) -> Response:
    """One campaign: funnel, variants, breakdown, time, delays, who waits."""
    site = api.site_of(request)
    keys = dimension_keys(site.store.attributes)
    choice = choice_of(request, keys)
    with site.store.view() as view:
        row = view.campaign(choice.name)
        asked = Asked(
            window=window_of(None if choice.window == "custom" else choice.window, view.now_us, choice.from_ or None, choice.to or None),
            campaign=choice.name,
            where=tuple(api.pair(condition, site) for condition in choice.where),
            machines=choice.machines == "with",
            measures=CAMPAIGN_MEASURES,
            metrics=tuple({"attempted", *TABLE, *BESIDE}),
            delays=(choice.delay,),
        )
        # As long as the campaign's own sums stay the same, so does everything that is made from its cells.
        key, state = (choice.link(), view.now_us // minute_us), tuple(row["sums"].values())
        return render(
            request,
            "campaign.html",
            session=session,
            choice=choice,
            row=row,
            windows=WINDOWS,
            shown=SHOWN,
            kinds=DELAY_KINDS,
            waits=WAITS,
            table=TABLE,
            beside=BESIDE,
            metrics=all_metrics(),
            keys=[key for key in keys if key not in ("campaign", "variant")],
            freshness=view.freshness(),
            waiting=view.waiting(choice.name, choice.minutes, waiting_rows),
            clicked_since=view.waiting(choice.name, 0, 0)["count"],
            sending=_sending(view, row),
            ours=bool(sent_here(site.config, [choice.name])),
            **request.app.state.kept.get(key, state, lambda: counted(view, asked, choice, row)),
            **since(view.now_us),
        )


def counted(view: View, asked: Asked, choice: Choice, row: dict) -> dict:
    """Return everything on a campaign's page that is made from cells and delays."""
    by_variant = msgspec.structs.replace(asked, by=("variant",), rows_max=variants_max)
    groups = view.groups(by_variant)
    variants = view.answer(by_variant, groups)
    # Rows and colours keep their place while numbers move.
    variants["rows"].sort(key=lambda line: line["variant"])
    slots = {line["variant"]: slot + 1 for slot, line in enumerate(variants["rows"][:lines_max])}
    by_other = msgspec.structs.replace(
        asked, by=(choice.by,), rows_max=breakdown_max, metrics=TABLE, measures=("delivered",), delays=(), bare=True
    )
    return {
        "answer": variants,
        "slots": slots,
        "funnel": funnel(variants["total"], asked.machines),
        "breakdown": view.numbers(by_other),
        "chart": time_chart(view, asked, choice, row, slots),
        "delays": delay_chart(view, groups, choice, slots),
    }


def _sending(view: View, row: dict) -> bool:
    """Whether something was handed over or delivered in the last five minutes."""
    minute = view.now_us // minute_us
    sql = "SELECT 1 FROM cells WHERE campaign = ? AND minute > ? AND (delivered > 0 OR sent > 0 OR queued > 0) LIMIT 1"
    return view.db.execute(sql, (row["id"], minute - 5)).get is not None


def funnel(total: dict, machines: bool) -> list[dict]:
    """Return the steps with their count, their share of the step before and of the first."""
    steps: list[dict] = []
    for key, label in FUNNEL:
        measure = key if machines or key not in ("opened", "clicked") else f"{key}_human"
        n = total[measure]
        before, first = (steps[-1]["n"], steps[0]["n"]) if steps else (0, n)
        of_first = min(1.0, n / first) if first else 0
        steps.append({"key": key, "label": label, "n": n, "of_before": n / before if before else None, "of_first": of_first})
    return steps


def time_chart(view: View, asked: Asked, choice: Choice, row: dict, slots: dict[str, int]) -> dict:
    """Return lines over time, one a variant; short windows show the hour around them, long ones are cut into fewer steps."""
    measures = BOUNCED if choice.show == "bounced" else (choice.show,)
    if not asked.machines and choice.show in ("opened", "clicked"):
        measures = (f"{choice.show}_human",)
    last = asked.window.last
    first = min(asked.window.first or row["first"], last - chart_minutes_min + 1)
    # A young campaign has no hour to show.
    first = min(max(first, row["first"] - 1), last - chart_young_min + 1)
    step = next((s for s in CHART_STEPS if (last - first) / s <= chart_points_max), CHART_STEPS[-1])
    first = max(first, last - step * chart_points_max)
    if 1 < step < 60 and view.is_crowded(choice.name, first, last, chart_cells_max):
        step = 60
    # All steps but the last are whole.
    first = first // step * step
    window = msgspec.structs.replace(asked.window, name="chart", first=first)
    each = "minute" if step % 60 else "hour"
    query = msgspec.structs.replace(asked, window=window, by=("variant", each), measures=measures, metrics=(), delays=(), bare=True)
    start = first // step
    n = last // step - start + 1
    lines = {name: [0] * n for name in slots}
    for (variant, at), sums in view.groups(query).items():
        values = lines.get(view.name("variant", variant))
        if values is not None:
            values[at // step - start] += sum(sums.measures.values())
    return {
        "kind": "time",
        "label": SHOWN[choice.show],
        "start": start * step * 60,
        "step": step * 60,
        "n": n,
        "each": "minute" if step == 1 else f"{step} minutes" if step < 60 else "hour" if step == 60 else f"{step // 60} hours",
        # The last step is still filling up.
        "open": bool(last == view.now_us // minute_us),
        "lines": [{"name": name or "no variant", "slot": slots[name], "values": values} for name, values in lines.items()],
    }


def delay_chart(view: View, by_variant: dict, choice: Choice, slots: dict[str, int]) -> dict:
    """Return the delay curves of the chosen kind, one a variant."""
    lines = []
    for (id_,), sums in by_variant.items():
        name = view.name("variant", id_)
        found = delay_row(sums.delays.get(choice.delay) or [])
        if name in slots and found["n"]:
            lines.append({"name": name or "no variant", "slot": slots[name], "n": found["n"], "p50": found["p50_s"], "p90": found["p90_s"]})
            lines[-1]["points"] = found["curve"]
    return {"kind": "delay", "label": DELAY_KINDS[choice.delay], "lines": sorted(lines, key=lambda line: line["slot"])}


# -- Sources -------------------------------------------------------------------------------------------------------------


@pages.get("/sources")
def sources(
    request: Request, source: str | None = None, after: str | None = None, replayed: str = "", session: Session = Depends(visitor)
) -> Response:
    """Every source, and the dead letters."""
    site = api.site_of(request)
    with site.store.view() as view:
        letters, following = view.dead(source=source, state=None, limit=letter_rows, after=api.cursor(after), raw_bytes=api.raw_bytes_max)
        more = {"after": following} | ({"source": source} if source is not None else {})
        return render(
            request,
            "sources.html",
            session=session,
            rows=api.source_rows(site, view),
            letters=[api.letter_row(letter) for letter in letters],
            source=source,
            older="/sources?" + urlencode(more) if following else None,
            replayed=int(replayed) if replayed.isdigit() and len(replayed) < 6 else None,
            vendors=len(VENDORS.names()),
            missed=standing(site.config.folder, view.now_us // minute_us - 1),
            polls=connected.polls_now(site.config, view.now_us),
            ways_back=connected.ways_back_now(site.config, view.now_us),
            **since(view.now_us),
        )


async def form(request: Request) -> dict[str, str]:
    """Return a posted form's fields. Its size is bounded around the application."""
    try:
        return dict(parse_qsl((await request.body()).decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=50))
    except ValueError:
        raise MidflightError("Not a form of this console") from None


def written_by_us(request: Request, session: Session, fields: dict[str, str]) -> None:
    """Refuse what another site made a browser send. Raises Forbidden."""
    if not same_origin(request) or not api.same_text(fields.get("csrf", ""), session.csrf):
        raise api.Forbidden("This form was not sent from this console", todo="Load the page again and repeat it")


@pages.post("/sources/replay")
def replay(request: Request, session: Session = Depends(visitor), fields: dict = Depends(form)) -> Response:
    """The replay buttons: one letter, or all waiting ones of a source."""
    written_by_us(request, session, fields)
    site = api.site_of(request)
    if "position" in fields:
        try:
            letter = models.LetterId(position=fields["position"], item=fields.get("item", ""))
        except ValueError:
            raise NotFound("No such dead letter") from None
        n = api.replay_letters(site, models.Replay(letters=[letter]))
    else:
        n = api.replay_letters(site, models.Replay(source=fields.get("source")))
    return RedirectResponse(f"/sources?replayed={n}#letters", 303)


# -- People --------------------------------------------------------------------------------------------------------------


@pages.get("/people")
def people(request: Request, address: str = "", session: Session = Depends(visitor)) -> Response:
    """One person's timeline."""
    site = api.site_of(request)
    address = address.strip()[:1_000]
    recipient = recipient_key(address) or address
    events, note = site.timeline(recipient) if address else ([], None)
    return render(
        request,
        "people.html",
        session=session,
        address=address,
        note=note,
        days=by_day(events),
        n=len(events),
        **explained(site, recipient if address else ""),
        **since(site.clock.now_us()),
    )


def explained(site: api.Site, recipient: str) -> dict:
    """Return why somebody is in a segment, and why he was written to or not."""
    if not recipient:
        return {"known": None, "known_note": None, "attributes": [], "suppressed": "", "messages": [], "actions": [], "undoable": {}}
    known, known_note = people_api.known_of(site, recipient)
    return {
        "known": known, "known_note": known_note, "attributes": people_api.attributes(site, recipient),
        "suppressed": people_api.suppressed(site, recipient),
        "messages": people_api.messages_of(site, recipient), "actions": people_api.actions_of(site, recipient),
        "undoable": ruling.undoable_of(site.config),
    }  # fmt: skip


# Told in the event's own line, or of no use to a reader.
TOLD = {"kind", "campaign", "variant", "wave", "recipient", "agent", "url", "value", "currency", "detail", "bounce_class"}
GENERAL = {"tracked", "paged", "converted", "unknown"}
TIMES = {"occurred_at_us", "received_at_us", "occurred_at", "received_at", "at"}


def by_day(events: list[dict]) -> list[dict]:
    """Return a timeline by day, the newest first; each event with its time, its words and the rest as name and value."""
    days: dict[str, list[dict]] = {}
    for event in sorted(events, key=when, reverse=True):
        at = iso(when(event)) or "unknown time"
        rest = [
            (str(key), as_text(value)) for key, value in event.items() if key not in TOLD | TIMES and value not in (None, "", 0, [], {})
        ]
        shown = {key: as_text(event.get(key, "")) for key in ("kind", "campaign", "variant", "wave", "agent")}
        # The vendor's own word says more only where ours is a general one.
        shown["name"] = as_text(event.get("name", "")) if event.get("kind") in GENERAL else ""
        days.setdefault(at[:10], []).append({**shown, "note": note_of(event), "time": at[11:19], "rest": rest})
    return [{"day": day, "events": found} for day, found in days.items()]


def note_of(event: dict) -> str:
    """Return what matters most about an event: where a click went, why a message bounced, what was bought."""
    value = event.get("value") or (event.get("value_micros") or 0) / 1e6
    parts = [
        event.get("url"),
        event.get("bounce_class"),
        event.get("detail"),
        f"{words.money(value)} {event.get('currency', '')}" if value else "",
    ]
    return " \N{MIDDLE DOT} ".join(as_text(part).strip() for part in parts if part)


def when(event: dict) -> int:
    """Return when an event happened, in microseconds: its own time, else that of its receipt."""
    for key in ("occurred_at_us", "received_at_us", "at_us"):
        if event.get(key):
            return int(event[key])
    for key in ("at", "occurred_at", "received_at"):
        if event.get(key):
            return int(api.moment(str(event[key])) * seconds_us)
    return 0


def as_text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode() if isinstance(value, dict | list) else str(value)


@pages.get("/words")
def meanings(request: Request, session: Session = Depends(visitor)) -> Response:
    """What every metric means and how it is made."""
    return render(request, "words.html", session=session, metrics=all_metrics(), formula=formula)


# -- files ---------------------------------------------------------------------------------------------------------------

STATIC = {
    "app.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_files = {name: (FOLDER / "static" / name).read_bytes() for name in STATIC}
_marks = {name: hashlib.sha256(content).hexdigest()[:12] for name, content in _files.items()}


def asset_url(name: str) -> str:
    """Return a file's address with its content's mark: browsers may keep it for ever."""
    return f"/static/{_marks[name]}/{name}"


@pages.get("/static/{mark}/{name}")
def static(mark: str, name: str) -> Response:
    if name not in STATIC:
        raise NotFound("No such file")
    keep = "public, max-age=31536000, immutable" if mark == _marks[name] else "no-store"
    return Response(_files[name], media_type=STATIC[name], headers={"cache-control": keep})


@pages.get("/favicon.ico")
def favicon() -> Response:
    return RedirectResponse(asset_url("icon.svg"), 301)
