"""Does what people ask of campaigns and rules: each order once, in the log's order, with a word under its id of what became of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import msgspec

from ..act.audience import read_audience
from ..act.campaigns import Campaigns, NotNow, Running, check_move, in_waves
from ..act.definition import BadCampaign, Ready, Variant, campaign_of, check_columns
from ..act.lists import place_of
from ..act.orders import Add, AddVariant, AnyOrder, BadOrder, Drop, Guard, Move, Pin, Settle, Test, do_of, order_of
from ..act.outbox import Planned
from ..act.push_subscriptions import PushSubscriptions
from ..act.rule_orders import AnyRuleOrder, Applying
from ..act.rule_orders import obey as obey_rule_order
from ..act.rule_orders import order_of as rule_order_of
from ..act.sender import Job, Sender
from ..act.site_messages import SiteMessages
from ..act.site_orders import AnySiteOrder
from ..act.site_orders import obey as obey_site_order
from ..act.site_orders import order_of as site_order_of
from ..config import Config
from ..events import recipient_key
from ..kit.clock import Clock
from ..kit.errors import MidflightError, NotFound
from ..store.experiment import Numbers
from .guarding import Guarding
from .protecting import Protecting

logger = logging.getLogger("midflight.conductor")

# What our own code may raise where it is wrong.
MISTAKES = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError)
waiting_max = 1000  # orders beside a list that is read; later ones wait in the store
# What else than a campaign's order a record can be, by what it says is to be done.
KINDS = {kind.__struct_config__.tag: rule_order_of for kind in AnyRuleOrder.__args__} | {
    kind.__struct_config__.tag: site_order_of for kind in AnySiteOrder.__args__
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Obeying:
    """The orders that the store has, and who does them. ``ready`` gives a campaign's templates, ``base_url`` is where its links lead."""

    def __init__(
        self, config: Config, campaigns: Campaigns, numbers: Numbers, sender: Sender, guarding: Guarding, rules: Applying,
        ready: Callable[[Running], Ready], base_url: str, clock: Clock, protecting: Protecting | None = None,
    ) -> None:  # fmt: skip
        self.config, self.campaigns, self.numbers, self.sender = config, campaigns, numbers, sender
        self.site, self.browsers = SiteMessages(campaigns.db), PushSubscriptions(campaigns.db)
        self.guarding, self.rules, self.ready, self.base_url, self.clock = guarding, rules, ready, base_url, clock
        self.protecting = protecting
        self.loading: asyncio.Task | None = None  # reads the list of a draft
        self.position = campaigns.orders_position()  # of the last order that was looked at
        self.waiting: list[tuple[int, AnyOrder]] = []  # for a list, or for an order of their campaign that does, in the log's order

    async def obey(self) -> None:
        """Do what was asked since the last one that was done, each campaign's in order: while one's list is read, others need not wait."""
        if self.loading and self.loading.done():
            ended, self.loading = self.loading, None
            ended.result()
        held: set[str] = set()  # campaigns of which an order waits
        for one in list(self.waiting):
            if self._obeyed(*one, held):
                self.waiting.remove(one)
        for position, _, body in self.numbers.orders(self.position) if len(self.waiting) < waiting_max else ():
            order = self._order(position, body)
            if isinstance(order, AnyRuleOrder):
                # No campaign's order waits for it, nor it for one.
                obey_rule_order(order, self.rules, self.clock.now_us())
            elif isinstance(order, AnySiteOrder):
                self._heard_of_site(position, order)
            elif order and not self._obeyed(position, order, held):
                self.waiting.append((position, order))
            self.position = position
        if not self.waiting and self.position > self.campaigns.orders_position():
            self.campaigns.orders_up_to(self.position)

    def _heard_of_site(self, position: int, order: AnySiteOrder) -> None:
        if self.campaigns.order_end(order.id) is None:
            with self._ending(position, order):
                obey_site_order(order, self.site, self.browsers, self.clock.now_us())

    def _order(self, position: int, body: bytes) -> AnyOrder | AnyRuleOrder | AnySiteOrder | None:
        """Return what a record asks for, or None where it is no order, which is said once."""
        try:
            return KINDS.get(do_of(body), order_of)(body)
        except BadOrder as error:
            if self.campaigns.order_end(f"position-{position}") is None:
                logger.error("record %d is no order and is left out: %s", position, error.text())
                self.campaigns.order_done(f"position-{position}", error_json(error), self.clock.now_us())
            return None

    def _obeyed(self, position: int, order: AnyOrder, held: set[str]) -> bool:
        """Do an order, or let it wait with all later ones of its campaign, and return whether it is done."""
        if order.campaign in held:
            return False
        if self.campaigns.order_end(order.id) is not None:
            # It was done before a death, or beside a list; or whoever gave it did not hear that it was taken, and gave it again.
            return True
        if isinstance(order, Add):
            held.add(order.campaign)
            if self.loading is None:
                self.loading = asyncio.create_task(self._add(position, order))
            return False
        with self._ending(position, order):
            self._do(order)
        return True

    @contextmanager
    def _ending(self, position: int, order: AnyOrder | AnySiteOrder) -> Iterator[None]:
        """Note what became of an order, in one transaction with what it does."""
        try:
            with self.campaigns.db:
                yield
                self.campaigns.order_done(order.id, "", self.clock.now_us())
        except MidflightError as error:
            self.campaigns.order_done(order.id, error_json(error), self.clock.now_us())
        except MISTAKES as error:
            # One order must not keep all campaigns from being sent: it would be met again after each start.
            logger.exception("record %d, an order, cannot be done", position)
            said = MidflightError("The order could not be done: a mistake of ours", got=f"{type(error).__name__}: {error}")
            self.campaigns.order_done(order.id, error_json(said), self.clock.now_us())

    async def _add(self, position: int, order: Add) -> None:
        """Put down a draft, beside everything else."""
        loaded, failed = None, None
        try:
            loaded = await self._load(order)
        except (MidflightError, *MISTAKES) as error:
            failed = error
        with self._ending(position, order):
            if failed:
                raise failed
            self.campaigns.drafted(*loaded, order.who, self.clock.now_us())

    async def close(self) -> None:
        """Give up a list that is being read; after the next start it is read again."""
        if self.loading:
            self.loading.cancel()
            await asyncio.wait([self.loading])

    async def _load(self, order: Add) -> tuple[int, int, int]:
        """Put down a draft's definition and people, a part at a time beside the sending; return id, people and held out."""
        ready = campaign_of(order.definition, set(self.config.channels))
        if ready.campaign.audience.segment:
            raise BadCampaign("There are no segments yet", where="$.audience.segment", todo="Hand in a list")
        recipients = []
        if order.audience:
            recipients, report = await asyncio.to_thread(read_audience, place_of(self.config.folder, order.audience))
            check_columns(ready, report.columns)
        ordered = await asyncio.to_thread(in_waves, ready.campaign, recipients)
        number = self.campaigns.begin(ready.campaign)
        for _ in self.campaigns.put_people(number, ordered):
            await asyncio.sleep(0)
        return number, len(ordered), len(recipients) - len(ordered)

    def _do(self, order: AnyOrder) -> None:
        now_us = self.clock.now_us()
        if isinstance(order, Guard):
            assert self.protecting is not None, "a conductor that obeys protects"
            self.protecting.by_hand(order, now_us)
            return
        now = self.campaigns.named(order.campaign)
        if isinstance(order, Move):
            self._move(now, order, now_us)
        elif isinstance(order, Pin):
            self.campaigns.pin(now.id, now.number(order.variant) if order.variant else -1, order.who, order.why, now_us)
        elif isinstance(order, Drop):
            self.campaigns.drop(now.id, now.number(order.variant), order.who, order.why, now_us)
        elif isinstance(order, AddVariant):
            self._add_variant(now, order, now_us)
        elif isinstance(order, Test):
            self._test(now, order, now_us)
        elif isinstance(order, Settle):
            self.campaigns.settle(now.id, order.end, order.who, order.why, now_us)

    def _move(self, now: Running, order: Move, now_us: int) -> None:
        check_move(now, order.to)
        if order.to in ("paused", "stopped", "draft"):
            # First nothing more begins; what is planned again then stays.
            self.sender.withdraw(now.id)
        if order.to == "sending":
            self.may_send(now)
            if now.state == "paused":
                self.guarding.look_past(now)
        self.campaigns.move(now.id, order.to, order.who, order.why, now_us)

    def may_send(self, now: Running) -> None:
        """Raise NotNow where people could not unsubscribe, or there is no way out."""
        if now.definition.channel not in self.config.channels and not now.definition.audience.api:
            raise NotNow(f"Channel `{now.definition.channel}` is not in the configuration", todo="Put it back, or make a new campaign")
        if unsafe_links(self.base_url):
            raise NotNow(
                "People could not unsubscribe safely", expected="an address with https", got=self.base_url, where="$.door.public_url",
                todo="Set it to where the door is reached from outside",
            )  # fmt: skip

    def _add_variant(self, now: Running, order: AddVariant, now_us: int) -> None:
        raw = msgspec.to_builtins(now.definition)
        raw["variants"] = [*raw["variants"], order.variant]
        ready = campaign_of(raw, {*self.config.channels, now.definition.channel})
        ready.templates[-1].check(self.campaigns.columns(now.id))
        self.campaigns.add_variant(now.id, msgspec.convert(order.variant, Variant), order.who, order.why, now_us)

    def _test(self, now: Running, order: Test, now_us: int) -> None:
        """Send one variant to somebody of our own, filled in as for a person of the list; it goes past the outbox and is not repeated."""
        self.may_send(now)
        lane = self.sender.lanes.get(now.definition.channel)
        if lane is None:
            raise NotNow(f"Campaign `{now.name}` has no channel by which a test could go")
        key = recipient_key(order.to)
        if not key:
            raise NotFound("No address", expected="name@domain", got=order.to[:100])
        why = self.sender.suppressed([key]).get(key)
        if why:
            raise NotNow(f"This address must not be written to ({why})", got=order.to[:100], todo="Send the test to another one")
        person = self.campaigns.example(now.id, recipient_key(order.recipient) if order.recipient else "")
        item = Planned(
            recipient=key, wave=0, variant=now.number(order.variant), propensity=1.0, intent=f"test-{order.id[:40]}"
        )  # fmt: skip
        message = self.sender.message(now, self.ready(now), item, msgspec.structs.replace(person, key=key, address=order.to), now_us)
        message.campaign, message.subject = "Test messages", f"[Test] {message.subject}"
        call = lane.carrier.call_of([message])
        lane.offer([Job(campaign=now.id, keys=[key], messages=[message], call=call, tries=0, stale_us=now_us, test=True)])


def unsafe_links(base_url: str) -> str:
    """Return why people could not unsubscribe by links that lead there, or nothing."""
    url = urlsplit(base_url)
    safe = url.scheme == "https" or url.hostname in LOOPBACK
    return "" if safe else "people could not unsubscribe safely: `door.public_url` is no address with https"


def error_json(error: MidflightError) -> str:
    return msgspec.json.encode(error.as_dict()["error"]).decode()
