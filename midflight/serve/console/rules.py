"""Rules as people see them: the list with what became of their firings, one with its versions, and every way to take over."""

from __future__ import annotations

from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from ...act.rule_orders import LetRule, RemoveRule, RuleOrder
from ...decide.acts import acts_of
from ...decide.limits import AUTONOMY, REASONS, Limits
from ...kit.errors import MidflightError
from .. import api, ruling
from ..auth import Session
from ..ordering import ended, new_id, refusal
from . import words
from .pages import form, render, since, templates, visitor, written_by_us

actions_shown = 30
why_chars_max = 2_000
SAYS = {
    "observe": "Shadow: it does nothing, and says what it would do", "suggest": "It asks before it acts",
    "act_within_caps": "It acts within caps, and asks beyond them", "act": "It acts",
}  # fmt: skip
SHORT = {"observe": "shadow", "suggest": "asks", "act_within_caps": "within caps", "act": "acts"}
# What the list counts, of the states of actions.
COUNTED = (("sent", "Acted"), ("held_out", "Held out"), ("suggested", "To approve"), ("waiting", "Waits"), ("refused", "Failed"))
rules = APIRouter(include_in_schema=False)


def link_of(name: str) -> str:
    """Return the address of a rule's page."""
    return "/rule?" + urlencode({"name": name})


templates.globals.update(rule_link=link_of, autonomy_says=SAYS, autonomy_short=SHORT, reason_says=REASONS, counted=COUNTED)


@rules.get("/rules")
def listed(request: Request, session: Session = Depends(visitor)) -> Response:
    """All rules, how far each goes on its own, and what became of their firings."""
    site = api.site_of(request)
    with site.store.view() as view:
        definitions = ruling.definitions_of(view)
    with ruling.acted(site.config) as actions:
        rows = ruling.rule_rows(definitions, actions)
    for row in rows:
        row["fired"] = sum(row["totals"].values())
    return render(request, "rules.html", session=session, rows=rows, **since(site.clock.now_us()))


@rules.get("/rule")
def rule(request: Request, name: str = "", order: str = "", session: Session = Depends(visitor)) -> Response:
    """One rule: when it fires and what it does, what became of it, its versions, and how far it may go."""
    return shown(request, session, name, note=noted(api.site_of(request), order[:64]) if order else None)


def noted(site: api.Site, order: str) -> dict | None:
    """Return what is to be said of an order that was not done at once."""
    said = ended(site.config, order)
    if said is None:
        return {"kind": "notice", "text": "What you asked for is taken. It will be done when the conductor runs."}
    return {"kind": "wrong", "text": refusal(said).text()} if said else None


def shown(
    request: Request, session: Session, name: str, *, note: dict | None = None, trouble: dict | None = None, status: int = 200
) -> Response:
    """Return a rule's page, or what is known of an order for one that is not there. Raises NotFound."""
    site = api.site_of(request)
    try:
        ruling.known_rule(site, name)
    except MidflightError:
        if note is None:
            raise
        return render(request, "later.html", session=session, title=name, note=note["text"], back="/rules", of="Rules")
    with site.store.view() as view:
        definitions, log_us = ruling.definitions_of(view), view.log_time_us
    with ruling.acted(site.config) as actions:
        totals = actions.totals().get(name, {}) if actions else {}
        row = ruling.rule_row(definitions, actions, name, totals)
        versions = ruling.versions_of(actions, name)
        latest = actions.listed("rule", (name,), count_max=actions_shown) if actions else []
    limits = acts_of(row["definition"]).limits
    state = (site.clock.now_us() // 60_000_000, row["version"])
    worth = request.app.state.kept.get(("earned", name), state, lambda: ruling.earned_of(site.config, name, limits, log_us))
    return render(
        request, "rule.html", status, session=session, row=row, limits=limits_of(row["definition"]), versions=versions, latest=latest,
        note=note, trouble=trouble, earned=worth, autonomies=AUTONOMY, fired=sum(totals.values()), undoable=ruling.undoable_of(site.config),
        **since(site.clock.now_us()),
    )  # fmt: skip


def limits_of(definition: dict) -> list[tuple[str, str]]:
    """Return a rule's limits as name and words, without those that bound nothing."""
    limits: Limits = acts_of(definition).limits
    hours = limits.hours
    found = [(f"{cap.count} within {cap.hours:g} h", "for each person") for cap in limits.per_recipient]
    found += [(f"{limits.cooldown_hours:g} h", "between two for one person")] if limits.cooldown_hours else []
    found += [(words.count(n), f"at most {each}") for n, each in ((limits.per_hour, "an hour"), (limits.per_day, "a day")) if n]
    found += [(f"{hours.quiet_from} to {hours.quiet_until}", "quiet, by the person's clock")] if hours.quiet_from else []
    found += [(f"{hours.send_from} to {hours.send_until}", "the hours in which it acts")] if hours.send_from else []
    found += [(", ".join(hours.send_days), "the days on which it acts")] if hours.send_days else []
    found += [(words.percent(limits.holdout), "held out, to see what it is worth")] if limits.holdout else []
    found += [(words.duration(limits.expires_minutes * 60), "after the cause it is too late")]
    return found + ([(str(limits.priority), "priority, where a cap is short")] if limits.priority else [])


# -- taking over ---------------------------------------------------------------------------------------------------------


@rules.post("/rule")
def take_over(request: Request, name: str = "", session: Session = Depends(visitor), fields: dict = Depends(form)) -> Response:
    """A form of the page: hand in its order, and come back when it is done."""
    written_by_us(request, session, fields)
    site = api.site_of(request)
    order = order_of(fields, name, session.user)
    try:
        ruling.known_rule(site, name)
        done = ruling.ordered_rule(site, order)
    except MidflightError as error:
        if error.status == 404:
            raise
        return shown(request, session, name, trouble=error.as_dict()["error"], status=error.status)
    if done and isinstance(order, RemoveRule):
        return RedirectResponse("/rules", 303)
    return RedirectResponse(link_of(name) if done else f"{link_of(name)}&order={order.id}", 303)


def order_of(fields: dict[str, str], name: str, user: str) -> RuleOrder:
    """Return the order of a form. Raises MidflightError for one that is not ours."""
    given = {"id": new_id(), "rule": name, "who": user, "why": fields.get("why", "").strip()[:why_chars_max]}
    if fields.get("do") == "remove":
        return RemoveRule(**given)
    if fields.get("do") == "let" and fields.get("autonomy") in AUTONOMY:
        return LetRule(autonomy=fields["autonomy"], **given)
    raise MidflightError("Not a form of this console", todo="Load the page again and repeat it")
