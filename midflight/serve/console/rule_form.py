"""The form that makes a rule, or its next version: when it fires, for whom, what it does, within which limits; tried on the log first."""

from __future__ import annotations

import re
from functools import cache

import msgspec
from fastapi import Depends, Request
from starlette.responses import RedirectResponse, Response

from ...act.ways.slack import Slack
from ...act.ways.teams import Teams
from ...act.ways.way import Way
from ...decide.acts import acts_of
from ...decide.limits import AUTONOMY, Limits
from ...decide.triggers import REGISTRY as TRIGGERS
from ...decide.triggers import AboutPeople
from ...kit.errors import MidflightError
from .. import api, ruling, trying
from ..auth import Session
from ..automation import checked_ways
from . import conditions, shapes
from .conditions import text
from .pages import render, visitor, written_by_us
from .rules import link_of, rules
from .segments import big_form, known_of
from .wizard import said_of

firings_shown = 8
bars_max = 48
why_chars_max = 2_000
WINDOWS = {"1d": "the last day", "7d": "the last 7 days", "30d": "the last 30 days", "": "all that the log has"}
TO_NOBODY = (Slack, Teams)  # what one's own team reads
DEFAULTS = {
    "name": "", "version": "0", "kind": "event", "way": "", "to_person": "1", "autonomy": "suggest", "caps": "1 in 24h",
    "cooldown_hours": "", "per_hour": "", "per_day": "", "priority": "", "expires_minutes": "1440", "holdout": "", "seed": "0",
    "quiet_from": "", "quiet_until": "", "send_from": "", "send_until": "", "send_days": "", "zone": "UTC", "zone_attribute": "timezone",
    "only": "", "keep": "", "why": "", "window": "7d",
}  # fmt: skip
NUMBERS = {"cooldown_hours": False, "per_hour": True, "per_day": True, "priority": True, "expires_minutes": False, "seed": True}
_CAP = re.compile(r"\s*(\d{1,4})\s*(?:in|per|/)\s*(\d{1,4}(?:\.\d)?)\s*([hd])\s*")
_PLACE = re.compile(r"\$[\w.\[\]]*")


class Form(msgspec.Struct, kw_only=True):
    """What stands in the form, by field; ``tree`` is whom it is for. ``errors`` is what is wrong, by field."""

    fields: dict[str, str]
    tree: conditions.Node
    errors: dict[str, str] = {}
    focus: str = ""
    trouble: dict | None = None
    places: dict[str, str] = {}

    def value(self, name: str) -> str:
        return self.fields.get(name, "")

    @property
    def version(self) -> int:
        found = self.value("version")
        return int(found) if found.isdigit() and len(found) < 10 else 0

    def wrong(self, field: str, said: str) -> None:
        self.errors.setdefault(field, said)
        self.focus = self.focus or field


# -- what can be chosen --------------------------------------------------------------------------------------------------


@cache
def triggers() -> dict[str, dict]:
    """Return every kind of trigger with its label and fields, those about people first."""
    found = sorted(TRIGGERS.all().items(), key=lambda one: (not issubclass(one[1], AboutPeople), one[1].label))
    return {
        name: {
            "label": kind.label, "doc": " ".join(kind.doc.split()), "fields": shapes.fields_of(kind),
            "people": issubclass(kind, AboutPeople) or name == "schedule",
        }
        for name, kind in found
    }  # fmt: skip


def says(ways: dict[str, Way]) -> dict[str, dict]:
    """Return every way out with what can be said through it."""
    return {
        name: {
            "label": way.label if name == "email" else f"{name}: {way.label}", "fields": shapes.fields_of(type(way).Fields),
            "to_person": not isinstance(way, TO_NOBODY), "undoes": way.undoes,
        }
        for name, way in ways.items()
    }  # fmt: skip


# -- from the form to a definition ---------------------------------------------------------------------------------------


def definition_of(form: Form, ways: dict[str, Way]) -> dict:
    """Return the definition that the form describes; what cannot be read is noted in its errors, and which field each place is."""
    value, places = form.value, form.places
    kind = value("kind") if value("kind") in triggers() else "event"
    asked = triggers()[kind]["fields"]
    places |= {f"$.when.{field.path}": f"w_{kind}_{field.path}" for field in asked} | {"$.when": "kind", "$.action": "way"}
    raw: dict = {"when": {"kind": kind, **shapes.raw_of(asked, lambda path: value(f"w_{kind}_{path}"))}}
    if value("only") and (where := conditions.raw_of(form.tree, "$.where", places)) is not None:
        raw["where"] = where
    way = value("way")
    fields = shapes.fields_of(type(ways[way]).Fields) if way in ways else []
    places |= {f"$.action.fields.{field.path}": f"a_{way}_{field.path}" for field in fields} | {
        "$.action.fields": "way",
        "$.action.way": "way",
    }
    raw["action"] = {
        "way": way,
        "fields": shapes.raw_of(fields, lambda path: value(f"a_{way}_{path}")),
        "to_person": bool(value("to_person")) or (way in ways and ways[way].reaches_people),
    }
    raw["limits"] = limits_of(form)
    return raw


def limits_of(form: Form) -> dict:
    """Return the limits that the form describes."""
    value = form.value
    numbers = {name: number(form, name, whole) for name, whole in NUMBERS.items() if value(name).strip()}
    hours = {name: value(name).strip() for name in ("quiet_from", "quiet_until", "send_from", "send_until", "zone", "zone_attribute")}
    hours = {name: said for name, said in hours.items() if said}
    days = [day.strip().lower() for day in value("send_days").split(",") if day.strip()]
    form.places |= {f"$.limits.{name}": name for name in (*numbers, "autonomy", "holdout")} | {"$.limits.per_recipient": "caps"}
    form.places |= {f"$.limits.hours.{name}": name for name in (*hours, "send_days")} | {"$.limits.hours": "quiet_from", "$.limits": "caps"}
    held = number(form, "holdout", False) / 100 if value("holdout").strip() else 0
    autonomy = value("autonomy") if value("autonomy") in AUTONOMY else "suggest"
    return {
        "autonomy": autonomy, "per_recipient": caps_of(form), **numbers, **({"holdout": held} if held else {}),
        "hours": hours | ({"send_days": days} if days else {}),
    }  # fmt: skip


def number(form: Form, field: str, whole: bool) -> float:
    typed = form.value(field).strip().replace(",", ".")
    if not re.fullmatch(r"-?\d{1,12}" if whole else r"\d{1,9}(\.\d{1,6})?", typed):
        form.wrong(field, "This has to be a whole number." if whole else "This has to be a number, 0 or more.")
        return 1
    return int(typed) if whole else float(typed)


def caps_of(form: Form) -> list[dict]:
    """Return at most how often for each person, as in `1 in 24h, 3 in 7d`."""
    found = []
    for part in form.value("caps").split(","):
        match = _CAP.fullmatch(part)
        if match:
            found.append({"count": int(match[1]), "hours": float(match[2]) * (24 if match[3] == "d" else 1)})
        elif part.strip():
            form.wrong("caps", f"As in 1 in 24h, 3 in 7d; not `{part.strip()[:40]}`.")
    return found


def form_of(name: str, version: int, raw: dict) -> Form:
    """Return the form as it would have to be filled in for a rule."""
    limits: Limits = acts_of(raw).limits
    action, when = raw["action"], raw["when"]
    hours = msgspec.to_builtins(limits.hours)
    fields = DEFAULTS | {
        "name": name, "version": str(version), "kind": when["kind"], "way": action["way"], "to_person": "1" * action.get("to_person", True),
        "autonomy": limits.autonomy, "holdout": text(100 * limits.holdout) if limits.holdout else "", "only": "1" * bool(raw.get("where")),
        "caps": ", ".join(f"{cap.count} in {cap.hours:g}h" for cap in limits.per_recipient), "send_days": ", ".join(limits.hours.send_days),
        **{key: text(getattr(limits, key)) for key in ("cooldown_hours", "per_hour", "per_day", "priority") if getattr(limits, key)},
        **{key: text(getattr(limits, key)) for key in ("expires_minutes", "seed")},
        **{key: hours[key] for key in ("quiet_from", "quiet_until", "send_from", "send_until", "zone", "zone_attribute")},
    }  # fmt: skip
    kind = when["kind"]
    if kind in triggers():
        typed = shapes.typed_of(triggers()[kind]["fields"], when)
        fields |= {f"w_{kind}_{path}": said for path, said in typed.items()}
    fields |= {f"a_{action['way']}_{path}": text(said) for path, said in flat(action.get("fields", {})).items()}
    tree = conditions.form_of(raw["where"]) if raw.get("where") else conditions.empty()
    return Form(fields=fields, tree=tree, errors={}, places={})


def flat(fields: dict) -> dict[str, object]:
    """Return an action's fields by path, others than texts and numbers as JSON."""
    return {name: msgspec.json.encode(value).decode() if isinstance(value, dict | list) else value for name, value in fields.items()}


# -- the page ------------------------------------------------------------------------------------------------------------


@rules.get("/rules/new")
def begin(request: Request, name: str = "", segment: str = "", session: Session = Depends(visitor)) -> Response:
    """The empty form, one for a segment, or one that is filled in as a rule stands."""
    site = api.site_of(request)
    form = Form(fields=dict(DEFAULTS), tree=conditions.empty(), errors={}, places={})
    if segment:
        form.fields |= {"kind": "segment", "w_segment_entered": segment[:100]}
    if name:
        ruling.known_rule(site, name)
        with site.store.view() as view:
            definitions = ruling.definitions_of(view)
        with ruling.acted(site.config) as actions:
            row = ruling.rule_row(definitions, actions, name, {})
        form = form_of(name, row["version"], row["definition"])
        form.fields["autonomy"] = row["autonomy"]
    return page(request, session, form)


def page(request: Request, session: Session, form: Form, status: int = 200, found: trying.Found | None = None) -> Response:
    """Return the form, with what a backtest found beside it."""
    site = api.site_of(request)
    ways = checked_ways(site.config)
    with site.store.view() as view:
        definitions = ruling.definitions_of(view)
    said = says(ways)
    if form.value("way") not in said:
        form.fields["way"] = next((name for name in said if name != "email"), "email")
    return render(
        request, "rule_form.html", status, session=session, form=form, value=form.value, errors=form.errors, triggers=triggers(), says=said,
        known=known_of(site, definitions), windows=WINDOWS, autonomies=AUTONOMY, tried=None if found is None else told(found),
    )  # fmt: skip


def told(found: trying.Found) -> dict:
    """Return what a backtest found, as the page tells it: sums, why not, a bar for each hour or day, the first firings."""
    one = found.rules[0]
    size = 1 if one.hours and max(one.hours) - min(one.hours) < bars_max else 24
    steps: dict[int, int] = {}
    for hour, n in one.hours.items():
        steps[hour // size] = steps.get(hour // size, 0) + n
    rows = sorted(steps.items())[-bars_max:]
    most = max(steps.values(), default=1)
    spoke = [(reason, n) for reason, n in one.reasons.items() if reason not in ("within_limits", "approved", "asks")]
    return {
        "one": one, "firings": found.firings, "events": found.events, "seconds": found.seconds, "from_us": found.from_us,
        "bars": [(step * size * ruling.hour_us, n, round(100 * n / most, 1)) for step, n in rows], "hourly": size == 1,
        "reasons": sorted(spoke, key=lambda pair: -pair[1]),
    }  # fmt: skip


@rules.post("/rules/new")
def go_on(request: Request, session: Session = Depends(visitor), fields: dict = Depends(big_form)) -> Response:
    """Whatever button was pressed; nothing that was typed is lost by any of them."""
    written_by_us(request, session, fields)
    site = api.site_of(request)
    ways = checked_ways(site.config)
    form = read(fields, ways)
    do = fields.get("do", "try")
    if "~" in do:
        form.focus = conditions.changed(form.tree, do)
        form.fields["only"] = "1"
        return page(request, session, form)
    raw = definition_of(form, ways)
    name = form.value("name").strip()
    if do == "save" and not name:
        form.wrong("name", "The rule needs a name.")
    if form.errors:
        return page(request, session, form, 400)
    try:
        if do != "save":
            return page(request, session, form, found=tried(request, name or "This rule", raw, form.value("window")))
        later = ruling.put_rule(
            site, name, raw, form.version + 1, bool(form.value("keep")), session.user, form.value("why").strip()[:why_chars_max]
        )
    except MidflightError as error:
        told_beside(form, error)
        return page(request, session, form, error.status)
    return RedirectResponse(link_of(name) + (f"&order={later}" if later else ""), 303)


def read(fields: dict[str, str], ways: dict[str, Way]) -> Form:
    """Return a posted form: every field of ours is there, and no other."""
    known = {*DEFAULTS}
    known |= {f"w_{kind}_{field.path}" for kind, trigger in triggers().items() for field in trigger["fields"]}
    known |= {f"a_{name}_{field.path}" for name, way in ways.items() for field in shapes.fields_of(type(way).Fields)}
    return Form(fields={key: fields.get(key, "") for key in known}, tree=conditions.posted(fields), errors={}, places={})


def tried(request: Request, name: str, raw: dict, window: str) -> trying.Found:
    """Return what the rule would have done. Raises what is wrong with it, and Busy."""
    site = api.site_of(request)
    with site.store.view() as view:
        definitions = ruling.definitions_of(view)
    asked = trying.Asked(rules={name: raw}, from_=window if window in WINDOWS else "7d")
    trying.check_asked(definitions, asked)
    return trying.apart(site.config, asked, firings_shown)


def told_beside(form: Form, error: MidflightError) -> None:
    """Note an error beside the field that it is about, or at the top."""
    where = error.where or ""
    if not where.startswith("$") and (match := _PLACE.search(error.what)):
        where = match[0]
    place = where.partition(":")[0]
    while place and place not in form.places:
        place = place[: max(place.rfind("."), place.rfind("["), 0)]
    if place in form.places:
        form.wrong(form.places[place], said_of(error))
    elif "needs a name" in error.what or "cannot be named" in error.what:
        form.wrong("name", said_of(error))
    else:
        form.trouble = error.as_dict()["error"]
