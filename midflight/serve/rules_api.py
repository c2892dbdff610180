"""The part of the API about rules: what there is, putting and trying them, what became of their firings, and every way to take over."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Path, Query, Request
from fastapi.routing import APIRouter
from starlette.responses import Response

from ..act import kill_switch
from ..act.actions import Actions
from ..act.rule_orders import Approve, Decline, LetRule, RemoveRule, SettleActions, TryAgain, Undo
from ..decide.acts import acts_of
from ..decide.limits import REASONS
from ..kit.errors import NotFound, nearest
from ..store.read import WrongQuery, iso
from . import models, ruling, trying
from .api import ERRORS, Site, answers, body_of, json, known_parameters, name_chars_max, needs, site_of, takes
from .ordering import new_id

lines_max = 500
actions_shown = 50
firings_shown = 500
LATER = "It is in the log and will be done when the conductor runs."
MORE_ERRORS = ERRORS | {409: {"model": models.Error, "description": "What it is about has changed since"}}
reading = APIRouter(dependencies=[Depends(known_parameters), Depends(needs("read"))], responses=ERRORS, tags=["rules"])
sending = APIRouter(dependencies=[Depends(known_parameters), Depends(needs("send"))], responses=MORE_ERRORS, tags=["rules"])
Name = Annotated[str, Path(max_length=name_chars_max)]
Why = Annotated[str, Query(max_length=2_000, description="Stands in the ledger")]
Before = Annotated[int, Query(ge=1, le=2**62, description="`next` of the page before")]
Limit = Annotated[int, Query(ge=1, le=lines_max)]
ORDERED = {**answers(models.Put), 202: {"model": models.Put, "description": "Taken; the conductor does not run"}}


# -- rules ---------------------------------------------------------------------------------------------------------------


@reading.get("/v1/rules", responses=answers(models.Rules))
def rules(request: Request) -> Response:
    """Every rule in force, how far it may go on its own, and what became of its firings; and whether everything is held."""
    site = site_of(request)
    with site.store.view() as view:
        definitions = ruling.definitions_of(view)
    with ruling.acted(site.config) as actions:
        rows = ruling.rule_rows(definitions, actions)
    return json({"rules": rows, "held": hold_of(site)})


@reading.get("/v1/rules/ledger", responses=answers(models.RuleLedger))
def ledger(
    request: Request,
    rule: Annotated[str, Query(max_length=name_chars_max, description="One rule by name")] = "",
    before: Before = 2**62,
    limit: Limit = 100,
) -> Response:
    """What people did about rules and actions, and the process itself, the newest first."""
    with ruling.acted(site_of(request).config) as actions:
        lines, following = ledger_page(actions, rule, before, limit)
    return json({"lines": [timed(line) for line in lines], "next": following})


def ledger_page(actions: Actions | None, rule: str, before: int, limit: int) -> tuple[list[dict], int | None]:
    """Return lines of the ledger, and from where to go on."""
    found = actions.ledger(rule, before=before, count_max=limit + 1) if actions else []
    return found[:limit], found[limit - 1]["number"] if len(found) > limit else None


def timed(row: dict) -> dict:
    return {key.removesuffix("_us"): iso(value) if key.endswith("_us") else value for key, value in row.items()}


@reading.get("/v1/rules/{name:path}", responses=answers(models.Rule))
def rule(request: Request, name: Name) -> Response:
    """One rule: its definition and its versions, how it stands, and its latest actions."""
    site = site_of(request)
    now = ruling.known_rule(site, name)
    with site.store.view() as view:
        definitions, log_us = ruling.definitions_of(view), view.log_time_us
    with ruling.acted(site.config) as actions:
        totals = actions.totals().get(name, {}) if actions else {}
        found = ruling.rule_row(definitions, actions, name, totals)
        versions = [timed(version) for version in ruling.versions_of(actions, name)]
        listed = [action_row(row) for row in actions.listed("rule", (name,), count_max=actions_shown)] if actions else []
    worth = ruling.earned_of(site.config, name, acts_of(found["definition"]).limits, log_us)
    return json(found | {"earned": worth, "versions": versions, "actions": listed, "removed": bool(now and now.removed)})


@sending.put("/v1/rules/{name:path}", responses=ORDERED, openapi_extra=takes(models.PutRule))
def put(request: Request, name: Name, wanted: Annotated[models.PutRule, Depends(body_of(models.PutRule))]) -> Response:
    """Put a rule into force, or its next version. Its firings are acted on from here on, within its limits."""
    site, who = site_of(request), request.state.who
    return carried_out(not ruling.put_rule(site, name, wanted.definition, wanted.version, wanted.keep, who, wanted.why))


@sending.delete("/v1/rules/{name:path}", responses=ORDERED)
def remove(request: Request, name: Name, why: Why = "") -> Response:
    """Take a rule out of force, with all that waits of it; its versions stay on record."""
    site = site_of(request)
    ruling.known_rule(site, name)
    return carried_out(ruling.ordered_rule(site, RemoveRule(id=new_id(), who=request.state.who, why=why, rule=name)))


@sending.post("/v1/rules/{name:path}/autonomy", responses=ORDERED, openapi_extra=takes(models.LetRule))
def let(request: Request, name: Name, wanted: Annotated[models.LetRule, Depends(body_of(models.LetRule))]) -> Response:
    """Say how far a rule may go on its own: `observe` is shadow mode. It is no new version."""
    site = site_of(request)
    ruling.known_rule(site, name)
    order = LetRule(id=new_id(), who=request.state.who, why=wanted.why, rule=name, autonomy=wanted.autonomy)
    return carried_out(ruling.ordered_rule(site, order))


@reading.post("/v1/rules/backtest", responses=answers(models.TriedRules), openapi_extra=takes(models.TryRules))
def backtest(request: Request, wanted: Annotated[models.TryRules, Depends(body_of(models.TryRules))]) -> Response:
    """What rules would have done: the log is read again with them in force. One at a time; a long log is for `midflight backtest`."""
    site = site_of(request)
    asked = trying.Asked(rules=wanted.rules, segments=wanted.segments, from_=wanted.from_, to=wanted.to, others=wanted.others)
    with site.store.view() as view:
        trying.check_asked(ruling.definitions_of(view), asked)
    return json(tried_row(trying.apart(site.config, asked, firings_shown)))


def tried_row(found: trying.Found) -> dict:
    """Return what a backtest found, as the API tells it."""
    return {
        "rules": [
            {
                "rule": one.rule, "fired": one.fired, "people": one.people, "ends": one.ends, "reasons": one.reasons,
                "hours": [(iso(hour * ruling.hour_us), n) for hour, n in sorted(one.hours.items())],
            }
            for one in found.rules
        ],
        "firings": [trying.told(firing) for firing in found.firings],
        "records": found.records, "events": found.events, "people": found.people, "seconds": round(found.seconds, 3),
        "from": iso(found.from_us), "to": iso(found.to_us),
    }  # fmt: skip


# -- actions -------------------------------------------------------------------------------------------------------------


@reading.get("/v1/actions", responses=answers(models.Actions))
def actions(
    request: Request,
    state: Annotated[
        Literal["", "suggested", "unknown", "refused"],
        Query(description="What waits for approval, what nobody knows the end of, what was given up; all without"),
    ] = "",
    rule: Annotated[str, Query(max_length=name_chars_max)] = "",
    recipient: Annotated[str, Query(max_length=name_chars_max)] = "",
    before: Before = 2**62,
    limit: Limit = 100,
) -> Response:
    """What became of firings, the newest first. Of `state`, `rule` and `recipient` one may be said, or `suggested` of a rule."""
    if sum(map(bool, (state and not (state == "suggested" and rule), rule, recipient))) > 1:
        raise WrongQuery("Too much at once", expected="`state`, `rule` or `recipient`, or `suggested` of a rule", where="state")
    with ruling.acted(site_of(request).config) as found:
        rows = listed(found, state, rule, recipient, before, limit + 1)
    return json(
        {"actions": [action_row(row) for row in rows[:limit]], "next": rows[limit - 1]["number"] if len(rows) > limit else None}
    )  # fmt: skip


def listed(found: Actions | None, state: str, rule: str, recipient: str, before: int, count: int) -> list[dict]:
    """Return rows of actions."""
    if found is None:
        return []
    if rule:
        return found.listed("suggested_of" if state else "rule", (rule,), before=before, count_max=count)
    if recipient:
        return found.listed("recipient", (recipient,), before=before, count_max=count)
    return found.listed(state, before=before, count_max=count)


def action_row(row: dict) -> dict:
    """Return an action as the API tells it."""
    names = ("number", "id", "state", "rule", "version", "recipient", "way", "reason", "words", "detail", "tries")
    times = ("fired", "cause", "expires", "changed")
    found = {name: row[name] for name in names} | {f"{time}_at": iso(row[f"{time}_us"]) for time in times}
    return found | {"approved": bool(row["approved"]), "says": REASONS.get(row["reason"], "")}


def which(wanted: models.Name) -> dict:
    """Return which actions an order is about. Raises WrongQuery where nothing is named, or too much."""
    if bool(wanted.actions) == bool(wanted.rule):
        raise WrongQuery("Which suggestions?", expected="`actions`, or `rule` with `up_to`", where="actions")
    return {"actions": tuple(wanted.actions), "rule": wanted.rule, "up_to": wanted.up_to}


def must_be_known(site: Site, order: Approve | Decline | Undo | SettleActions | TryAgain) -> None:
    """Raise NotFound where none of an order's actions, or its rule, is known."""
    with ruling.acted(site.config) as actions:
        if order.rule and (actions is None or actions.book.known(order.rule) is None):
            raise NotFound(f"Unknown rule `{order.rule}`", where="rule", todo=nearest(order.rule, actions.book.names() if actions else ()))
        if not order.rule and (actions is None or not any(actions.row(id) for id in order.actions)):
            raise NotFound("Unknown action", got=order.actions[0], where="actions", todo="`GET /v1/actions` lists them")


@sending.post("/v1/actions/approve", responses=ORDERED, openapi_extra=takes(models.Name))
def approve(request: Request, wanted: Annotated[models.Name, Depends(body_of(models.Name))]) -> Response:
    """Let suggestions be acted on; their limits still hold when they are."""
    return ordered(request, Approve(id=new_id(), who=request.state.who, why=wanted.why, **which(wanted)))


@sending.post("/v1/actions/decline", responses=ORDERED, openapi_extra=takes(models.Name))
def decline(request: Request, wanted: Annotated[models.Name, Depends(body_of(models.Name))]) -> Response:
    """Do not act on suggestions."""
    return ordered(request, Decline(id=new_id(), who=request.state.who, why=wanted.why, **which(wanted)))


@sending.post("/v1/actions/undo", responses=ORDERED, openapi_extra=takes(models.UndoActions))
def undo(request: Request, wanted: Annotated[models.UndoActions, Depends(body_of(models.UndoActions))]) -> Response:
    """Take actions back: what waits is dropped, what has gone is undone where its way out can, and says so once it is."""
    return ordered(request, Undo(id=new_id(), who=request.state.who, why=wanted.why, actions=tuple(wanted.actions)))


@sending.post("/v1/actions/settle", responses=ORDERED, openapi_extra=takes(models.SettleActions))
def settle(request: Request, wanted: Annotated[models.SettleActions, Depends(body_of(models.SettleActions))]) -> Response:
    """Say of calls whose end nobody knew whether they went. None is made again."""
    order = SettleActions(id=new_id(), who=request.state.who, why=wanted.why, actions=tuple(wanted.actions), went=wanted.went)
    return ordered(request, order)


@sending.post("/v1/actions/retry", responses=ORDERED, openapi_extra=takes(models.UndoActions))
def retry(request: Request, wanted: Annotated[models.UndoActions, Depends(body_of(models.UndoActions))]) -> Response:
    """Try calls again that were given up, if it is not too late for them."""
    return ordered(request, TryAgain(id=new_id(), who=request.state.who, why=wanted.why, actions=tuple(wanted.actions)))


def ordered(request: Request, order: Approve | Decline | Undo | SettleActions | TryAgain) -> Response:
    must_be_known(site_of(request), order)
    return carried_out(ruling.ordered_rule(site_of(request), order))


def carried_out(done: bool) -> Response:
    return json({"done": done, "note": None if done else LATER}, 200 if done else 202)


# -- the kill switch -----------------------------------------------------------------------------------------------------


def hold_of(site: Site) -> dict:
    now = kill_switch.read(site.config.folder)
    return {"held": now.held, "number": now.number, "who": now.who, "why": now.why, "at": iso(now.at_us)}


@reading.get("/v1/hold", responses=answers(models.HoldState))
def held(request: Request) -> Response:
    """Whether everything that automation does is held."""
    return json(hold_of(site_of(request)))


@sending.post("/v1/hold", responses=answers(models.HoldState), openapi_extra=takes(models.Hold))
def hold(request: Request, wanted: Annotated[models.Hold, Depends(body_of(models.Hold))]) -> Response:
    """Hold all rules and campaigns, within a second, also where log and engine do not answer. What has begun by then ends."""
    site = site_of(request)
    kill_switch.hold(site.config.make_folder(), request.state.who, wanted.why, site.clock.now_us())
    return json(hold_of(site))


@sending.post("/v1/release", responses=answers(models.HoldState), openapi_extra=takes(models.Release))
def release(request: Request, wanted: Annotated[models.Release, Depends(body_of(models.Release))]) -> Response:
    """Let go on what was held with that number; a hold that somebody has made since stays."""
    site = site_of(request)
    kill_switch.release(site.config.folder, request.state.who, wanted.why, site.clock.now_us(), wanted.number)
    return json(hold_of(site))
