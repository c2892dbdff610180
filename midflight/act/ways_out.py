"""All ways out in operation: what a rule says through one is filled in, and its call is made by whoever makes calls of that kind."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from functools import lru_cache

import msgspec

from ..decide.acts import RuleAction
from ..events import clean
from ..kit.clock import Clock
from ..kit.errors import ConfigError, MidflightError, nearest
from . import guarded
from .action_table import Row
from .actions import Actions, Said
from .calls import Begins, Calls, refused
from .calls import answer_s as answer_s_default
from .follow_up import EmailSays, FollowUps
from .guarded import Guard
from .offer_codes import OfferCodes
from .push_subscriptions import PushSubscriptions
from .rulebook import Rule, follow_up_of
from .sender import Links
from .site_messages import SiteMessages
from .ways import REGISTRY, check_urls, way_of
from .ways._then import Says, Then
from .ways.email import Email
from .ways.offer_code import OfferCode
from .ways.on_site import OnSite
from .ways.way import FOREVER_US, Action, LocalWay, Outcome, Way
from .ways.web_push import WebPush

GONE = "gone"  # what web push says of a browser that takes no notifications any more
EMAIL = "email"  # there is always a way of that name
says_max = 500  # rules' versions whose templates are kept ready
fields_bytes_max = 256 << 10
another_s = 1.0  # until an action is looked at again whose forerunner has no end yet


class NoWay(MidflightError):
    """A way out that is not in the configuration."""

    code = "no_way"


def ways_of(settings: Mapping[str, dict], guard: Guard) -> dict[str, Way]:
    """Return the ways out that a configuration names, and the one for email. Raises ConfigError for one that is wrong."""
    found: dict[str, Way] = {}
    for name, one in ({EMAIL: {"kind": EMAIL}} | dict(settings)).items():
        rest = {key: value for key, value in one.items() if key != "kind"}
        kind, where = one.get("kind"), f"$.ways.{name}"
        if kind not in REGISTRY.names():
            raise ConfigError(f"Unknown kind of way `{kind}`", where=f"{where}.kind", todo=nearest(str(kind), REGISTRY.names()))
        found[name] = way_of(REGISTRY.get(kind), rest, where)
        check_urls(found[name], guard, where)
    return found


def says_of(ways: Mapping[str, Way], action: RuleAction, where: str = "$.action") -> Says:
    """Return what a rule's action says, ready to fill in. Raises NoWay, ConfigError or TemplateError with the place of what is wrong."""
    way = ways.get(action.way)
    if way is None:
        raise NoWay(f"Unknown way out `{action.way[:100]}`", where=f"{where}.way", todo=nearest(action.way[:100], list(ways)))
    if way.reaches_people and not action.to_person:
        raise ConfigError(
            "People read what goes this way, so it goes to nobody who has unsubscribed", expected="`to_person` true, or left out",
            got="false", where=f"{where}.to_person",
        )  # fmt: skip
    inside = f"{where}.fields"
    if isinstance(way, Email):
        return EmailSays(way, dict(action.fields), inside)
    if not isinstance(way, OfferCode):
        return Then(type(way), dict(action.fields), inside)
    inner, say = action.fields.get("way"), action.fields.get("say")
    if not isinstance(inner, str) or not isinstance(say, dict) or isinstance(ways.get(inner), OfferCode):
        raise ConfigError("A code is told by another way", expected="`way`, and `say` with that way's fields", where=inside)
    return Then(
        type(way),
        dict(action.fields),
        inside,
        says_of(ways, RuleAction(way=inner, fields=say, to_person=action.to_person), f"{inside}.say"),
    )


class WaysOut:
    """The configured ways out, by name. It belongs to one event loop."""

    def __init__(
        self, ways: dict[str, Way], actions: Actions, follow_ups: FollowUps | None, links: Links | None, clock: Clock, *,
        guard: Guard | None = None, verify: ssl.SSLContext | bool = True, answer_s: float = answer_s_default,
    ) -> None:  # fmt: skip
        self.ways, self.actions, self.follow_ups, self.links, self.clock = ways, actions, follow_ups, links, clock
        self.codes, self.messages, self.browsers = OfferCodes(actions.db), SiteMessages(actions.db), PushSubscriptions(actions.db)
        guard = guard or Guard()
        self.calls = {
            name: Calls(
                name, way, guarded.client(guard, connections=way.settings.connections, answer_s=answer_s, verify=verify), clock,
                answer_s=answer_s,
            )
            for name, way in ways.items()
            if not isinstance(way, LocalWay)
        }  # fmt: skip
        self._says: Callable[[str, int], Says] = lru_cache(says_max)(self._made)

    async def close(self) -> None:
        await asyncio.gather(*(calls.close() for calls in self.calls.values()))

    def mailing(self) -> list[str]:
        """Return the ways by which email goes, also that which tells a code."""
        return [name for name, way in self.ways.items() if isinstance(way, Email | OfferCode)]

    # -- what is said ------------------------------------------------------------------------------------------------------------

    def _made(self, rule: str, version: int) -> Says:
        acting = self.actions.book.version(rule, version)
        if acting is None:
            raise NoWay(f"Rule `{rule}` has no version {version}")
        return says_of(self.ways, acting.action)

    def said(self, row: Row, rule: Rule, known: Mapping[str, object], now_us: int) -> Said:
        """Return what an action says to somebody of whom this is known; a code is taken for it, so it is part of the intent's transaction.

        Raises MidflightError for what cannot be said, PoolEmpty where no code is left, NoWay.
        """
        says = self._says(rule.name, rule.version)
        if (browsers := self.browsers.of(row.recipient)) if row.recipient else ():
            known = {**known, "push": browsers[0]._asdict()}
        way, link = self.ways[rule.action.way], ""
        if self.links and row.recipient:
            link = self.links.url(row.recipient, follow_up_of(rule.name), f"v{rule.version}", "1")
        system = {
            "recipient.email": row.recipient, "unsubscribe_url": link, "preferences_url": link, "campaign": rule.name,
            "variant": f"v{rule.version}", "wave": "1", "now": now_us,
        }  # fmt: skip
        if isinstance(way, OfferCode):
            code = self.codes.take(str(rule.action.fields["pool"]), row.id, now_us)
            fields = says.render(dict(known), system, code)
        else:
            fields = says.render(dict(known), system)
        size = len(msgspec.json.encode(fields))
        if size > fields_bytes_max:
            raise MidflightError("What an action says is too large", expected=f"at most {fields_bytes_max:,} bytes", got=f"{size:,}")
        action = Action(id=row.id, recipient=row.recipient, way=rule.action.way, fields=fields)
        try:
            return Said(fields=fields, subject=way.subject(action))
        except msgspec.ValidationError as error:
            raise MidflightError("What an action says", got=clean(error)[:300]) from None

    # -- the call ----------------------------------------------------------------------------------------------------------------

    async def deliver(self, action: Action, begins: Begins) -> Outcome:
        """Make an action's call once and return what became of it."""
        if action.subject:
            earlier, _ = self.actions.before(action)
            if earlier:
                return Outcome(kind="later", code="after_another", detail="an earlier one about the same is open", retry_s=another_s)
            if self.actions.superseded(action):
                return Outcome(kind="refused", code="superseded", detail="a later one about the same has gone")
        way, says, action = self._told(action)
        if isinstance(way, Email):
            return await self.follow_ups.deliver(action, begins, says, way)
        if isinstance(way, OnSite):
            return self._shown(way, action, begins)
        outcome = await self.calls[action.way].deliver(action, begins)
        if outcome.code == GONE and isinstance(way, WebPush):
            self.browsers.remove(str(action.fields.get("endpoint", "")))
        return outcome

    def _told(self, action: Action) -> tuple[Way, Says | None, Action]:
        """Return the way that an action goes by itself, what it says, and the action as that way sees it: a code goes on by another way."""
        way = self.ways[action.way]
        says = self._says(action.rule, action.version) if isinstance(way, Email | OfferCode) else None
        if isinstance(way, OfferCode):
            action = msgspec.structs.replace(action, way=str(action.fields["way"]), fields=action.fields["say"])
            return self.ways[action.way], says.inner, action
        return way, says, action

    def _shown(self, way: OnSite, action: Action, begins: Begins) -> Outcome:
        """Keep a message for the site. Keeping it twice shows one, whenever."""
        try:
            body = way.body(action)
        except (MidflightError, msgspec.ValidationError) as error:
            return refused(error)
        with self.actions.transaction():
            if not begins(FOREVER_US):
                return Outcome(kind="later", code="withheld")
            self.messages.show(action, body, self.clock.now_us())
        return Outcome(kind="sent", message_id=action.id)

    # -- taking it back ----------------------------------------------------------------------------------------------------------

    def can_undo(self, way: str) -> bool:
        return way in self.ways and bool(self.ways[way].undoes)

    async def undo(self, action: Action, made: Outcome) -> Outcome:
        """Take back what an action did: ``sent`` once it is."""
        way = self.ways.get(action.way)
        if isinstance(way, OfferCode):
            state = self.codes.revoke(action.id, self.clock.now_us())
            used = state == "used"
            return Outcome(kind="refused", code="used", detail="the code was used") if used else Outcome(kind="sent", code="revoked")
        if isinstance(way, OnSite):
            ended = self.messages.end_shown(action.id, "withdrawn", self.clock.now_us())
            if ended in ("", "withdrawn"):
                return Outcome(kind="sent", code="withdrawn")
            return Outcome(kind="refused", code="seen", detail="it has been closed or clicked")
        if action.way not in self.calls:
            return Outcome(kind="refused", code="cannot_undo", detail="its way out cannot take it back")
        if action.subject:
            _, before = self.actions.before(action)
            if self.actions.superseded(action):
                return Outcome(kind="refused", code="superseded", detail="a later action about the same decides")
            if before and way.group(self.actions.action(before)) == way.group(action):
                return Outcome(kind="sent", code="as_before", detail="it was so already before this action")
        return await self.calls[action.way].undo(action, made)
