"""What waits for a person: suggestions to approve, calls whose end nobody knows, what was given up; and the ledger of rules, with undo."""

from __future__ import annotations

from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from ...act.rule_orders import Approve, Decline, RuleOrder, SettleActions, TryAgain, Undo
from ...kit.errors import MidflightError
from .. import api, ruling
from ..auth import Session
from ..ordering import new_id
from ..rules_api import ledger_page
from .pages import render, since, visitor, written_by_us
from .rules import noted

suggestions_shown = 30  # of each rule
rows_shown = 100
chosen_max = 1_000
why_chars_max = 2_000
inbox = APIRouter(include_in_schema=False)


async def many(request: Request) -> dict[str, list[str]]:
    """Return a posted form's fields, each with all its values. Its size is bounded around the application."""
    try:
        body = (await request.body()).decode("utf-8", "replace")
        return parse_qs(body, keep_blank_values=True, max_num_fields=chosen_max + 50)
    except ValueError:
        raise MidflightError("Not a form of this console") from None


# -- the inbox -----------------------------------------------------------------------------------------------------------


@inbox.get("/inbox")
def waiting(request: Request, order: str = "", session: Session = Depends(visitor)) -> Response:
    """What waits for a person, the oldest need first."""
    return shown(request, session, note=noted(api.site_of(request), order[:64]) if order else None)


def shown(request: Request, session: Session, *, note: dict | None = None, trouble: dict | None = None, status: int = 200) -> Response:
    site = api.site_of(request)
    with ruling.acted(site.config) as actions:
        suggested, unknown, refused = [], [], []
        if actions:
            for name in sorted(name for name, totals in actions.totals().items() if totals.get("suggested")):
                rows = actions.listed("suggested_of", (name,), count_max=suggestions_shown)
                if rows:
                    total = actions.totals()[name]["suggested"]
                    suggested.append({"rule": name, "rows": rows, "total": total, "up_to": rows[0]["number"]})
            unknown = actions.listed("unknown", count_max=rows_shown)
            refused = actions.listed("refused", count_max=rows_shown)
    return render(
        request, "inbox.html", status, session=session, suggested=suggested, unknown=unknown, refused=refused, note=note, trouble=trouble,
        **since(site.clock.now_us()),
    )  # fmt: skip


@inbox.post("/inbox")
def answer(request: Request, session: Session = Depends(visitor), fields: dict = Depends(many)) -> Response:
    """What somebody decided: approve, decline, settle."""
    return ordered(request, session, fields, "/inbox", shown)


def ordered(request: Request, session: Session, fields: dict[str, list[str]], back: str, otherwise) -> Response:
    """Hand in the order of a form, and come back when it is done; ``otherwise`` makes the page that says why it could not be."""
    written_by_us(request, session, {"csrf": fields.get("csrf", [""])[0]})
    order = order_of(fields, session.user)
    try:
        done = ruling.ordered_rule(api.site_of(request), order)
    except MidflightError as error:
        return otherwise(request, session, trouble=error.as_dict()["error"], status=error.status)
    return RedirectResponse(back if done else f"{back}?order={order.id}", 303)


def order_of(fields: dict[str, list[str]], user: str) -> RuleOrder:
    """Return the order of a form. Raises MidflightError for one that is not ours, or that names nothing."""
    one = {name: values[0] for name, values in fields.items()}
    ids = tuple(id for id in fields.get("id", []) if id)[:chosen_max]
    given = {"id": new_id(), "who": user, "why": one.get("why", "").strip()[:why_chars_max]}
    do, up_to = one.get("do", ""), one.get("up_to", "")
    if do in ("approve-all", "decline-all") and up_to.isdigit() and len(up_to) < 19 and one.get("rule"):
        kind = Approve if do == "approve-all" else Decline
        return kind(rule=one["rule"][:100], up_to=int(up_to), **given)
    if do not in ("approve", "decline", "undo", "retry", "went", "lost"):
        raise MidflightError("Not a form of this console", todo="Load the page again and repeat it")
    if not ids:
        raise MidflightError("Nothing was chosen", todo="Mark the lines that are meant, or take all")
    if do in ("went", "lost"):
        return SettleActions(actions=ids, went=do == "went", **given)
    return {"approve": Approve, "decline": Decline, "undo": Undo, "retry": TryAgain}[do](actions=ids, **given)


# -- the ledger ----------------------------------------------------------------------------------------------------------


@inbox.get("/ledger/rules")
def ledger(request: Request, rule: str = "", before: str = "", order: str = "", session: Session = Depends(visitor)) -> Response:
    """What rules did, each with an undo where there is one, and what people did about them."""
    note = noted(api.site_of(request), order[:64]) if order else None
    return ledger_shown(request, session, rule=rule.strip()[:100], before=before, note=note)


def ledger_shown(
    request: Request, session: Session, *, rule: str = "", before: str = "", note: dict | None = None, trouble: dict | None = None,
    status: int = 200,
) -> Response:  # fmt: skip
    site = api.site_of(request)
    first = int(before) if before.isdigit() and len(before) < 19 else 2**62
    with ruling.acted(site.config) as actions:
        lines, _ = ledger_page(actions, rule, 2**62, rows_shown)
        where = ("rule", (rule,)) if rule else ("", ())
        rows = actions.listed(*where, before=first, count_max=rows_shown + 1) if actions else []
        names = actions.book.names() if actions else []
    more = {"before": rows[rows_shown - 1]["number"]} | ({"rule": rule} if rule else {}) if len(rows) > rows_shown else None
    return render(
        request, "rule_ledger.html", status, session=session, rows=rows[:rows_shown], lines=lines, rule=rule, names=names,
        older="/ledger/rules?" + urlencode(more) if more else None, first=first == 2**62, note=note, trouble=trouble,
        undoable=ruling.undoable_of(site.config), **since(site.clock.now_us()),
    )  # fmt: skip


@inbox.post("/ledger/rules")
def undo(request: Request, session: Session = Depends(visitor), fields: dict = Depends(many)) -> Response:
    """The undo buttons."""
    return ordered(request, session, fields, "/ledger/rules", ledger_shown)
