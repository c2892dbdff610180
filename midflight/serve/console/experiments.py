"""Campaigns that Midflight sends, as people see them: the list, one with everything that takes it over, and the ledger."""

from __future__ import annotations

from urllib.parse import quote, urlencode

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from ...act import orders
from ...act.campaigns import MOVES, Campaigns, Running, Wave
from ...act.standing import Entry, Standing
from ...act.standings import GOALS
from ...decide.guardrails import Guardrails
from ...kit.errors import MidflightError, NotFound
from ...store.read import Query as Asked
from ...store.read import View, window_of
from .. import api
from ..auth import Session
from ..campaigning import ledger_page
from ..ordering import ended, guard_acted, named, new_id, newest, ordered, reading, reasons, refusal
from . import words
from .pages import as_text, form, lines_max, render, since, templates, visitor, written_by_us

rows_max = 50
ledger_rows = 50
own_lines = 10
drawn_max = 240  # steps of the chart of waves
why_chars_max = 2_000
RATES = {"unsubscribe": "unsubscribe_rate", "complaint": "complaint_rate", "bounce": "bounce_rate"}
experiments = APIRouter(include_in_schema=False)


def link_of(name: str) -> str:
    """Return the address of a campaign's page. Browsers take some names for places in a path, and one is the form's."""
    return f"/experiment?{urlencode({'name': name})}" if name in ("new", ".", "..") else f"/experiments/{quote(name, safe='')}"


templates.globals.update(experiment_link=link_of, goals=GOALS)


# -- the list ------------------------------------------------------------------------------------------------------------


@experiments.get("/experiments")
def listed(request: Request, before: str = "", session: Session = Depends(visitor)) -> Response:
    """All campaigns that Midflight sends, the newest first."""
    site = api.site_of(request)
    first = int(before) if before.isdigit() and len(before) < 19 else 2**62
    with reading(site.config) as campaigns:
        found = newest(campaigns, first, rows_max + 1)
        rows = [row_of(now, campaigns.standing(now.id)) for now in found[:rows_max]]
    return render(
        request,
        "experiments.html",
        session=session,
        rows=rows,
        older=f"/experiments?before={found[rows_max - 1].id}" if len(found) > rows_max else None,
        first=first == 2**62,
        channels=list(site.config.channels),
        **since(site.clock.now_us()),
    )


def row_of(now: Running, standing: Standing | None) -> dict:
    """Return what the list says of a campaign."""
    return {
        "name": now.name, "state": now.state, "started_us": now.started_us, "people": now.people, "taken": now.taken,
        "variants": len(now.definition.variants), "goal": GOALS[now.definition.goal], "claim": claim_of(now, standing),
    }  # fmt: skip


def claim_of(now: Running, standing: Standing | None) -> str:
    """Return what may be said of a campaign in a sentence."""
    if standing and standing.said.text:
        return standing.said.text
    if len(now.definition.variants) == 1:
        return "There is one variant, and nothing to compare."
    return "Nothing was sent yet." if not now.taken else "It is not known yet which variant is best."


# -- one campaign --------------------------------------------------------------------------------------------------------


@experiments.get("/experiment")
@experiments.get("/experiments/{name:path}")
def experiment(request: Request, name: str, order: str = "", halfway: str = "", session: Session = Depends(visitor)) -> Response:
    """One campaign: how far it is, what is known, what comes next, and every way to take over."""
    note = noted(api.site_of(request), order[:64]) if order else HALFWAY if halfway else None
    return shown(request, session, name, note=note)


HALFWAY = {"kind": "wrong", "text": "The draft is there. What was to follow could not be handed in: do it here."}


class Trouble(msgspec.Struct, kw_only=True):
    """What a form was refused with, and what stood in it."""

    key: str
    error: dict
    fields: dict[str, str]


def shown(
    request: Request, session: Session, name: str, *, note: dict | None = None, trouble: Trouble | None = None, status: int = 200
) -> Response:
    """Return a campaign's page, or what is known of an order for one that is not there. Raises NotFound."""
    site = api.site_of(request)
    now_us = site.clock.now_us()
    with reading(site.config) as campaigns:
        try:
            now = named(campaigns, name)
        except NotFound:
            if note is None:
                raise
            return render(request, "experiment_later.html", session=session, name=name, note=note)
        standing = campaigns.standing(now.id)
        waves = campaigns.waves(now.id)
        lines, more = ledger_page(campaigns, now.name, 2**62, own_lines)
        counted = request.app.state.kept.get(
            ("experiment", now.id), (now_us // 1_000_000, now.state), lambda: counts_of(site, campaigns, now)
        )  # fmt: skip
    return render(
        request,
        "experiment.html",
        status,
        session=session,
        running=now,
        definition=now.definition,
        stands=stands_of(now, standing, now_us),
        arms=arms_of(now, standing),
        claim=claim_of(now, standing),
        shares=shares_chart(now, waves),
        curve=curve_chart(standing),
        wave_count=len(waves),
        lines=[told(line, now) for line in lines],
        more=more,
        actions=[] if now.state in ("stopped", "done") else actions(now, now_us),
        trouble=trouble,
        note=note,
        **counted,
        **since(now_us),
    )


def noted(site: api.Site, order: str) -> dict | None:
    """Return what is to be said of an order that was not done at once."""
    said = ended(site.config, order)
    if said is None:
        return {"kind": "notice", "text": "What you asked for is taken. It will be done when the conductor runs."}
    return {"kind": "wrong", "text": refusal(said).text()} if said else None


def counts_of(site: api.Site, campaigns: Campaigns, now: Running) -> dict:
    """Return what takes reading many rows: what became of the messages, and the rates that the guards watch."""
    with site.store.view() as view:
        rates = guard_rates(view, now) if view.id("campaign", now.name) else None
    return {
        "messages": campaigns.outbox.counts(now.id),
        "reasons": reasons(campaigns, now.id),
        "guards": guards(now, rates),
        "acted": guard_acted(campaigns, now.id),
    }


def guard_rates(view: View, now: Running) -> dict:
    """Return the rates of a campaign as a whole; machines neither bounce nor complain."""
    asked = Asked(window=window_of("all", view.now_us), campaign=now.name, measures=("delivered",), metrics=tuple(RATES.values()))
    return view.numbers(asked)["total"]


def guards(now: Running, rates: dict | None) -> dict:
    """Return each ceiling with the rate that it is held against; ``known`` tells whether any event has come."""
    rows = [
        {"name": name, "ceiling": getattr(now.definition.guardrails, name), "rate": rates[RATES[name]] if rates else None}
        for name in Guardrails.__struct_fields__
    ]
    return {"known": rates is not None, "rows": rows}


def stands_of(now: Running, standing: Standing | None, now_us: int) -> dict:
    """Return what is said of the time and of the end."""
    standing = standing or Standing(at_us=0)
    ends_us = now.ends_us if now.started_us else 0
    until = {"ends": ends_us, "next": standing.next_us}
    return {
        "standing": standing,
        "at": standing.at_us,
        "ends_us": ends_us,
        **{f"{key}_in": max(0, at - now_us) // 1_000_000 if at else None for key, at in until.items()},
        "gain": standing.projected.responses - standing.projected.responses_equal,
    }


def slot(n: int, count: int) -> int:
    """Return a variant's colour. With more variants than colours, the last colour is that of all the rest."""
    return n + 1 if count <= lines_max else min(n + 1, lines_max)


def arms_of(now: Running, standing: Standing | None) -> list[dict]:
    """Return what is known of each variant, in the definition's order; the table's cells are those of the Campaign page."""
    known = {arm.name: arm for arm in standing.arms} if standing else {}
    rows = []
    for n, variant in enumerate(now.definition.variants):
        arm = known.get(variant.name)
        told = arm is not None and (arm.sent > 0 or arm.high > 0)
        rows.append(
            {
                "name": variant.name, "slot": slot(n, len(now.definition.variants)), "live": bool(now.live[n]), "pinned": n == now.pinned,
                "arm": arm, "subject": variant.subject, "rate": arm.rate if told else None,
                "intervals": {"rate": [arm.low, arm.high]} if told else {},
            }
        )  # fmt: skip
    return rows


def shares_chart(now: Running, waves: list[Wave]) -> dict:
    """Return what each wave gave each variant, as shares that add up to one; very many waves are put together in groups."""
    size = max(1, -(-len(waves) // drawn_max))
    groups = [waves[n : n + size] for n in range(0, len(waves), size)]
    people = [sum(wave.recipients for wave in group) for group in groups]
    count = len(now.definition.variants)
    lines = []
    for n, variant in enumerate(now.definition.variants):
        # A variant that came later has no share of the waves before.
        given = [sum(wave.recipients * wave.shares[n] for wave in group if n < len(wave.shares)) for group in groups]
        values = [round(g / total, 4) if total else 0.0 for g, total in zip(given, people, strict=True)]
        lines.append({"name": variant.name, "slot": slot(n, count), "values": values})
    if count > lines_max:
        rest = lines[lines_max - 1 :]
        together = [round(sum(found), 4) for found in zip(*(line["values"] for line in rest), strict=True)]
        lines = [*lines[: lines_max - 1], {"name": f"{len(rest)} more", "slot": lines_max, "values": together}]
    return {
        "kind": "shares",
        "lines": lines,
        "waves": [str(g[0].wave) if len(g) == 1 else f"{g[0].wave}\N{EN DASH}{g[-1].wave}" for g in groups],
        "at": [group[0].at_us // 1_000_000 for group in groups],
        "people": people,
    }


def curve_chart(standing: Standing | None) -> dict | None:
    """Return how responses come in with time; none where too little is known to draw it."""
    points = [(age, share) for age, share in standing.curve if age >= 10] if standing else []
    if len(points) < 2:
        return None
    half = next((age for age, share in points if share >= 0.5), None)
    return {"kind": "delay", "label": GOALS[standing.goal], "half": half, "lines": [{"name": "all variants", "slot": 1, "points": points}]}


# -- taking over ---------------------------------------------------------------------------------------------------------


class Action(msgspec.Struct, kw_only=True):
    """One way to take over: the button that opens it, what happens then in words, and what the order carries."""

    key: str
    label: str
    says: str
    button: str
    fields: dict[str, str]
    serious: bool = False


def actions(now: Running, now_us: int) -> list[Action]:
    """Return what can be done with a campaign in its state, the usual first."""
    left = f"{now.left:,} {'person' if now.left == 1 else 'people'}"
    found = [moved(now, to, left, now_us) for to in MOVES[now.state] if to not in ("stopped", "done") and offered(now, to, now_us)]
    for n, variant in enumerate(now.definition.variants):
        if now.live[n] and n != now.pinned and len(now.definition.variants) > 1:
            says = (
                f"Everybody who is left, {left}, gets {variant.name}, until you give the waves back. Nothing is learned of the others then."
            )
            found.append(Action(key=f"pin {n}", label=f"Pin {variant.name}", says=says, button=f"Pin {variant.name}",
                                fields={"do": "pin", "variant": variant.name}))  # fmt: skip
    if now.pinned >= 0:
        says = f"The policy decides again what the {left} who are left get, by what is known by then."
        found.append(
            Action(key="back", label="Give back to the policy", says=says, button="Give back", fields={"do": "pin", "variant": ""})
        )
    for n, variant in enumerate(now.definition.variants):
        if now.live[n] and now.live.sum() > 1:
            says = f"No further wave has {variant.name}. It cannot be put back. Those who got it still count."
            found.append(Action(key=f"drop {n}", label=f"Drop {variant.name}", says=says, button=f"Drop {variant.name}", serious=True,
                                fields={"do": "drop", "variant": variant.name}))  # fmt: skip
    found.append(moved(now, "stopped", left, now_us))
    return found


def offered(now: Running, to: str, now_us: int) -> bool:
    """Whether a state is worth a button: to wait for a start that is over is not."""
    return to != "scheduled" or now.definition.waves.start_us() > now_us


def moved(now: Running, to: str, left: str, now_us: int) -> Action:
    """Return the button that brings a campaign into another state."""
    waves = now.definition.waves
    if to == "sending" and now.state == "paused":
        label, says = "Resume", f"Waves go out again, to the {left} who are left."
    elif to == "sending":
        label, says = ("Start" if waves.start_us() <= now_us else "Start now"), start_words(now)
    else:
        label, says = {
            "scheduled": ("Schedule", f"{start_words(now)} The first wave goes at {waves.start.replace('T', ' ')} UTC."),
            "draft": ("Back to draft", "It does not start by itself any more."),
            "paused": (
                "Pause",
                f"No further wave goes out, to the {left} who are left, until it is resumed. The end stays when it was.",
            ),
            "stopped": ("Discard" if now.state == "draft" else "Stop", stop_words(now, left)),
        }[to]
    return Action(key=to, label=label, says=says, button=label, fields={"do": "move", "to": to}, serious=to == "stopped")


def start_words(now: Running) -> str:
    """Return what a start means, in numbers."""
    warned = " The goal is opens, which machines reach too." if now.definition.goal == "open" else ""
    variants, hours = len(now.definition.variants), now.definition.waves.hours
    if not now.definition.audience.csv:
        of = "the variant" if variants == 1 else f"one of {variants} variants"
        return f"Whoever is asked about through the API gets {of}, over {words.duration(hours * 3600)}.{warned}"
    return start_sentence(now.people, variants, hours, now.held) + warned


def start_sentence(people: int, variants: int, hours: float, held: int) -> str:
    """Say how many get what over which time, and that it cannot be undone."""
    of = "one variant" if variants == 1 else f"one of {variants} variants each"
    out = f", and {held:,} more get nothing, to measure what it is worth" if held else ""
    who = "1 person gets" if people == 1 else f"{people:,} people get"
    return f"{who} {of}, over {words.duration(hours * 3600)}{out}. What is sent cannot be taken back."


def stop_words(now: Running, left: str) -> str:
    """Return what a stop means."""
    if now.state == "draft":
        return "It is never sent. Its name stays taken, as numbers are kept by name."
    return f"Nothing goes out any more, for good: {left} will not be written to. What is under way at this moment still arrives."


@experiments.post("/experiment")
@experiments.post("/experiments/{name:path}")
def take_over(request: Request, name: str, session: Session = Depends(visitor), fields: dict = Depends(form)) -> Response:
    """A form of the page: hand in its order, and come back when it is done."""
    written_by_us(request, session, fields)
    site = api.site_of(request)
    order = order_of(fields, name, session.user)
    try:
        with reading(site.config) as campaigns:
            named(campaigns, name)
        done = ordered(site.config, site.clock, order)
    except NotFound:
        raise
    except MidflightError as error:
        trouble = Trouble(key=fields.get("key", ""), error=error.as_dict()["error"], fields=fields)
        return shown(request, session, name, trouble=trouble, status=error.status)
    link = link_of(name)
    return RedirectResponse(link if done else f"{link}{'&' if '?' in link else '?'}order={order.id}", 303)


def order_of(fields: dict[str, str], name: str, user: str) -> orders.Order:
    """Return the order of a form. Raises MidflightError for one that is not ours."""
    given = {"id": new_id(), "campaign": name, "who": user, "why": fields.get("why", "").strip()[:why_chars_max]}
    what, variant = fields.get("do"), fields.get("variant", "")
    if what == "move" and fields.get("to") in ("draft", "scheduled", "sending", "paused", "stopped"):
        return orders.Move(to=fields["to"], **given)
    if what == "pin":
        return orders.Pin(variant=variant, **given)
    if what == "drop":
        return orders.Drop(variant=variant, **given)
    if what == "test":
        return orders.Test(to=fields.get("address", "").strip(), variant=variant, recipient=fields.get("recipient", "").strip(), **given)
    raise MidflightError("Not a form of this console", todo="Load the page again and repeat it")


# -- the ledger ----------------------------------------------------------------------------------------------------------


@experiments.get("/ledger")
def ledger(request: Request, campaign: str = "", before: str = "", session: Session = Depends(visitor)) -> Response:
    """Every decision, the newest first, with the numbers that it rested on."""
    site = api.site_of(request)
    campaign = campaign.strip()[:1_000]
    first = int(before) if before.isdigit() and len(before) < 19 else 2**62
    with reading(site.config) as campaigns:
        try:
            lines, following = ledger_page(campaigns, campaign or None, first, ledger_rows)
            unknown = None
        except NotFound as error:
            lines, following, unknown = [], None, error
        known = {line.campaign: campaigns.named(line.campaign) for line in lines}
        names = [now.name for now in newest(campaigns, 2**62, 200)]
    more = {"before": following} | ({"campaign": campaign} if campaign else {})
    return render(
        request,
        "ledger.html",
        session=session,
        lines=[told(line, known[line.campaign]) for line in lines],
        campaign=campaign,
        names=names,
        unknown=unknown,
        older="/ledger?" + urlencode(more) if following else None,
        first=first == 2**62,
        **since(site.clock.now_us()),
    )


# The states, as what somebody did.
DONE = {
    "added": "put down the draft", "draft": "took it back to a draft", "scheduled": "scheduled the start", "sending": "let it send",
    "paused": "paused it", "stopped": "stopped it", "done": "noted that it is done",
}  # fmt: skip


def told(line: Entry, now: Running) -> dict:
    """Return a line of the ledger as pages tell it: in a sentence, with the numbers by variant."""
    names = [variant.name for variant in now.definition.variants]
    text = DONE.get(line.text, line.text) if line.kind == "change" else line.text
    return {
        "number": line.number, "at_us": line.at_us, "campaign": line.campaign, "kind": line.kind, "who": line.who, "text": text,
        "why": line.why, "grounds": [(key.replace("_", " "), ground(value, names)) for key, value in line.grounds.items()],
    }  # fmt: skip


def ground(value: object, names: list[str]) -> list[tuple[str, str]]:
    """Return a number as it is written; a list as long as there are variants has one for each."""
    if isinstance(value, list) and value and len(value) <= len(names) and all(isinstance(x, int | float) for x in value):
        return [(name, figure(x)) for name, x in zip(names, value, strict=False)]
    return [("", figure(value))]


def figure(value: object) -> str:
    """Return a value as text: whole numbers with their thousands apart, others with four digits."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: words.NONE}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else as_text(value)
