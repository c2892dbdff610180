"""What people ask of rules and of their actions, as records of the log: each is done once, in the log's order, and its end is kept.

The kill switch does not wait for the log: see act/kill_switch.py. `Hold` and `Release` here are for those who only have the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from ..decide.definitions import SOURCE, Definitions, DropSegment, PutSegment
from ..decide.limits import Autonomy
from ..kit.errors import MidflightError, NotFound
from ..log.record import Record
from . import kill_switch
from .action_table import NotNow
from .actions import Actions
from .campaigns import Campaigns
from .offer_codes import OfferCodes, pool_chars_max
from .orders import BadOrder

logger = logging.getLogger("midflight.conductor")

actions_max = 1_000  # that one order names
codes_max = 5_000  # that one order brings
# What our own code may raise where it is wrong.
MISTAKES = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)

Ids = Annotated[tuple[Annotated[str, msgspec.Meta(max_length=200)], ...], msgspec.Meta(max_length=actions_max)]


class RuleOrder(msgspec.Struct, kw_only=True, frozen=True, tag_field="do"):
    """What every order says: its own ``id``, ``who`` wants it and ``why``; ``rule`` where it is about one."""

    id: str
    who: str
    why: str = ""
    rule: str = ""


class PutRule(RuleOrder, tag="put_rule"):
    """Put a version of a rule into force, the first or the next. What waits of the versions before is dropped, or with ``keep`` goes on
    as it was put down."""

    version: int
    definition: dict
    keep: bool = False


class RemoveRule(RuleOrder, tag="remove_rule"):
    """Take a rule out of force, with all that waits of it."""


class LetRule(RuleOrder, tag="let_rule"):
    """Say how far a rule may go on its own from now on, what waits included."""

    autonomy: Autonomy


class Approve(RuleOrder, tag="approve"):
    """Let suggestions be acted on: those that are named, or all of ``rule`` with a number up to ``up_to``, which is what somebody saw."""

    actions: Ids = ()
    up_to: int = 0


class Decline(RuleOrder, tag="decline"):
    """Do not act on suggestions, named in the same way."""

    actions: Ids = ()
    up_to: int = 0


class Undo(RuleOrder, tag="undo"):
    """Take actions back. What has gone is said to be undone once its way out has said so."""

    actions: Ids


class SettleActions(RuleOrder, tag="settle_actions"):
    """Say of calls whose end nobody knows whether they went. None is made again."""

    actions: Ids
    went: bool


class TryAgain(RuleOrder, tag="try_again"):
    """Try calls again that were given up, if it is not too late for them."""

    actions: Ids


class AddCodes(RuleOrder, tag="add_codes"):
    """Put codes of offers into a pool."""

    pool: Annotated[str, msgspec.Meta(min_length=1, max_length=pool_chars_max)]
    codes: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=200)], ...], msgspec.Meta(min_length=1, max_length=codes_max)]


class UseCode(RuleOrder, tag="use_code"):
    """Say that somebody has used a code: then it cannot be taken back any more."""

    code: Annotated[str, msgspec.Meta(max_length=200)]


class Hold(RuleOrder, tag="hold"):
    """Hold everything that automation does."""


class Release(RuleOrder, tag="release"):
    """Let everything go on that was held by that turn of the switch, and only by that."""

    number: int


AnyRuleOrder = (
    PutSegment | DropSegment | PutRule | RemoveRule | LetRule | Approve | Decline | Undo | SettleActions | TryAgain | AddCodes | UseCode
    | Hold | Release
)  # fmt: skip
_decoder = msgspec.json.Decoder(AnyRuleOrder)


def record_of(order: RuleOrder) -> Record:
    """Return the record by which the log carries an order; the door puts in the time."""
    return Record("definition", SOURCE, 0, {}, msgspec.json.encode(order))


def order_of(body: bytes) -> AnyRuleOrder:
    """Return the order that a record carries. Raises BadOrder."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadOrder(f"Not an order: {error}") from None


class Applying:
    """What orders are applied to. ``can_undo`` says of a way out whether it can take something back.

    ``definitions`` are those of the log as the engine keeps them too, made by the same code from the same orders, so that both come to the
    same verdict on each: what depends on this conductor's configuration is no part of it.
    """

    def __init__(
        self, actions: Actions, campaigns: Campaigns, folder: Path, can_undo: Callable[[str], bool],
        remarks: Callable[[dict], str] = lambda _: "",
    ) -> None:  # fmt: skip
        self.actions, self.campaigns, self.folder, self.can_undo = actions, campaigns, folder, can_undo
        self.remarks = remarks  # what is wrong with a definition where things stand, such as a way out that is not configured
        self.codes = OfferCodes(actions.db)
        self.load()

    def load(self) -> None:
        """Read anew what definitions were kept."""
        self.definitions = Definitions()
        if kept := self.actions.meta("definitions"):
            self.definitions.load(msgspec.json.decode(kept))

    def keep(self) -> None:
        self.actions.set_meta("definitions", msgspec.json.encode(self.definitions.snapshot()).decode())


def obey(order: AnyRuleOrder, to: Applying, now_us: int) -> None:
    """Do an order once, and note what became of it, in one transaction with what it does. Whatever an order says, it stops no other."""
    if to.campaigns.order_end(order.id) is not None:
        # It was done before a death; or whoever gave it did not hear that it was taken, and gave it again.
        return
    try:
        with to.actions.transaction():
            text = _DO[type(order)](order, to, now_us)
            to.actions.note(getattr(order, "rule", ""), "", type(order).__struct_config__.tag, order.who, text, order.why, now_us)
            to.campaigns.order_done(order.id, "", now_us)
    except MidflightError as error:
        to.load()
        to.campaigns.order_done(order.id, _said(error), now_us)
    except MISTAKES as error:
        logger.exception("order `%s` cannot be done", order.id)
        to.load()
        said = MidflightError("The order could not be done: a mistake of ours", got=f"{type(error).__name__}: {error}")
        to.campaigns.order_done(order.id, _said(said), now_us)
    except BaseException:
        # The disk is full, or something else is away: the order is met again.
        to.load()
        raise


def _said(error: MidflightError) -> str:
    return msgspec.json.encode(error.as_dict()["error"]).decode()


def _put_segment(order: PutSegment, to: Applying, now_us: int) -> str:
    to.definitions.put_segment(order.name, order.version, order.where)
    to.keep()
    return f"put version {order.version} of segment `{order.name}` into force"


def _drop_segment(order: DropSegment, to: Applying, now_us: int) -> str:
    to.definitions.drop_segment(order.name)
    to.keep()
    return f"took segment `{order.name}` away"


def _put(order: PutRule, to: Applying, now_us: int) -> str:
    to.definitions.put_rule(order.rule, order.version, order.definition)
    to.keep()
    to.actions.book.put(order.rule, order.version, order.definition, order.who, order.why, now_us, keep=order.keep)
    oldest = to.actions.book.now(order.rule).oldest
    dropped = to.actions.drop_before(order.rule, oldest, "edited", now_us)
    remarks = to.remarks(order.definition)
    return (
        f"put version {order.version} into force"
        + (f"; {dropped} that waited are dropped" if dropped else "")
        + (f"; as things stand nothing of it can be said: {remarks}" if remarks else "")
    )


def _remove(order: RemoveRule, to: Applying, now_us: int) -> str:
    to.definitions.drop_rule(order.rule)
    to.keep()
    to.actions.book.remove(order.rule)
    dropped = to.actions.drop_before(order.rule, to.actions.book.now(order.rule).oldest, "removed", now_us)
    return "removed the rule" + (f"; {dropped} that waited are dropped" if dropped else "")


def _let(order: LetRule, to: Applying, now_us: int) -> str:
    before = to.actions.book.now(order.rule).autonomy
    to.actions.book.let(order.rule, order.autonomy)
    return f"autonomy: {before} to {order.autonomy}"


def _each(named: tuple[str, ...], act: Callable[[str], None], did: str) -> str:
    """Do something with each action; one with which it cannot be done stops no other. Raises what the first said where all are such."""
    done, first = 0, None
    for id in named:
        try:
            act(id)
            done += 1
        except MidflightError as error:
            first = first or error
    if first is not None and not done:
        raise first
    left = f"; {len(named) - done} not: {first.text()}" if first else ""
    return f"{did} {done} {'action' if done == 1 else 'actions'}{left}"


def _named(order: Approve | Decline, to: Applying) -> tuple[str, ...]:
    named = order.actions or tuple(to.actions.suggested(order.rule, order.up_to)[:actions_max])
    if not named:
        raise NotNow("Nothing is suggested that is meant by this", got=order.rule or None)
    return named


def _approve(order: Approve, to: Applying, now_us: int) -> str:
    return _each(_named(order, to), lambda id: to.actions.approve(id, now_us), "approved")


def _decline(order: Decline, to: Applying, now_us: int) -> str:
    return _each(_named(order, to), lambda id: to.actions.decline(id, now_us), "declined")


def _undo(order: Undo, to: Applying, now_us: int) -> str:
    if not order.actions:
        raise NotNow("No action is named")

    def undo(id: str) -> None:
        to.actions.undo(id, to.can_undo(to.actions.way(id)), now_us)

    return _each(order.actions, undo, "took back, or asked to take back,")


def _settle(order: SettleActions, to: Applying, now_us: int) -> str:
    if not order.actions:
        raise NotNow("No action is named")
    said = "said that they went:" if order.went else "said that they did not go:"
    return _each(order.actions, lambda id: to.actions.settled_by_hand(id, order.went, now_us), said)


def _try_again(order: TryAgain, to: Applying, now_us: int) -> str:
    if not order.actions:
        raise NotNow("No action is named")
    return _each(order.actions, lambda id: to.actions.try_again(id, now_us), "tries again")


def _add_codes(order: AddCodes, to: Applying, now_us: int) -> str:
    added = to.codes.add(order.pool, order.codes, now_us)
    wrong = f"; {len(added.wrong)} are no codes, the first in line {added.wrong[0][0]}: {added.wrong[0][1]}" if added.wrong else ""
    return f"put {added.new} codes into pool `{order.pool}`; {added.repeated} were known{wrong}"


def _use_code(order: UseCode, to: Applying, now_us: int) -> str:
    action = to.codes.use(order.code, now_us)
    if not action:
        raise NotFound("Nobody was given this code", got=order.code)
    return f"said that a code was used: {order.code}"


def _hold(order: Hold, to: Applying, now_us: int) -> str:
    return f"held everything, turn {kill_switch.hold(to.folder, order.who, order.why, now_us).number}"


def _release(order: Release, to: Applying, now_us: int) -> str:
    return f"let everything go on, turn {kill_switch.release(to.folder, order.who, order.why, now_us, order.number).number}"


_DO: dict[type, Callable[[AnyRuleOrder, Applying, int], str]] = {
    PutSegment: _put_segment, DropSegment: _drop_segment, PutRule: _put, RemoveRule: _remove, LetRule: _let, Approve: _approve,
    Decline: _decline, Undo: _undo, SettleActions: _settle, TryAgain: _try_again, AddCodes: _add_codes, UseCode: _use_code, Hold: _hold,
    Release: _release,
}  # fmt: skip
