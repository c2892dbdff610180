"""What people do with what was really sent: accepted messages come in, and the vendors' signed webhooks go to a running door.

Everybody's luck depends on the seed and the address alone: neither on the variant, nor on the wave, the time or who else was written to.
So the same people can be sent to twice, with and without somebody who chooses the variants, and whatever differs was chosen. (Through the
same vendor: vendors differ in what they report, and luck is drawn in the order of the story.)
"""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np

from ..events import Event, recipient_key
from ..kit.clock import Clock
from ..sources import Source
from .audience import DIMENSION_NAMES, Audience
from .campaigns import Campaign, Variant
from .fortunes import FollowUp, Trouble, own_luck
from .inbox import Accepted, Inbox
from .life import Happening, Lives, Living, Luck, Timeline, human_delay_us, second_us
from .manners import Manners, Sending, sendings
from .run import Report, Runner
from .truth import Cell, truth
from .vendors import VENDORS
from .wire import Shipment, requests

forever_us = 400 * 24 * 3600 * second_us
settles_us = 15 * second_us  # after the last that can come of a follow-up
tick_s = 0.05
take_max = 500  # messages in one tick: people's lives are computed between two requests
batch_max = 200
LINKS = ("https://shop.example/", "https://shop.example/offer", "https://shop.example/sizes", "https://shop.example/reviews")
# What `React.results` tells apart, besides the attributes.
FIELDS = ("campaign", "variant", "wave", "vendor")


class Effect(msgspec.Struct, frozen=True):
    """Factors on the chance that an opener clicks, and that a clicker buys."""

    clicks: float = 1.0
    conversions: float = 1.0


class Effects(msgspec.Struct, frozen=True, kw_only=True):
    """What is true about the variants: chances of everybody, factors by variant, and by value of an attribute and variant.

    ``groups`` is ``{("region", "north"): {"B": Effect(clicks=1.5)}}``; all factors that fit are multiplied.
    """

    opens: float = 0.42
    clicks: float = 0.16
    buys: float = 0.10
    price: float = 59.0
    variants: dict[str, Effect] = {}
    groups: dict[tuple[str, str], dict[str, Effect]] = {}

    def on(self, variant: str, labels: dict[str, str]) -> Variant:
        """Return what a variant is to somebody with these values."""
        found = [self.variants.get(variant), *(self.groups.get(group, {}).get(variant) for group in labels.items())]
        clicks, buys = self.clicks, self.buys
        for effect in found:
            if effect:
                clicks, buys = clicks * effect.clicks, buys * effect.conversions
        return Variant(variant, self.opens, clicks, buys, self.price)


class _Own(Luck):
    """The luck of one recipient."""

    def __init__(self, seed: int, key: str) -> None:
        uniform, normal = (own_luck(seed, what, key) for what in ("u", "n"))
        self._uniform = iter(uniform.random, None)
        self._normal = iter(lambda: normal.gauss(0, 1), None)


class _Letter(Living):
    """One accepted message, which the vendor reports under the id that it answered, with what was attached to it."""

    def __init__(
        self, lives: Lives, luck: Luck, made: list[Happening], message: Accepted, variant: Variant, vendor: str, person: int
    ) -> None:
        super().__init__(lives, luck, made, Campaign(message.campaign, (vendor,), (variant,), LINKS), variant, message.wave, person)
        self.id = message.message_id
        self.attached = {"intent": message.intent, "propensity": f"{message.propensity:.6g}"} if message.intent else {}

    def add(self, kind: str, at_us: int, by: str = "", **fields) -> None:
        before = len(self.made)
        super().add(kind, at_us, by, **fields)
        if len(self.made) > before:
            self.made[-1].event.metadata = dict(self.attached)

    def turned_away(self, sent_s: float, said: str) -> None:
        """Let the recipient's provider turn it away."""
        at = self.time.at(sent_s)
        if self.vendor.starts:
            self.add(self.vendor.starts, at)
        made_of = "soft" if said[0] == "4" and self.vendor.has("soft") else "block"
        self.add("bounced", at + self.time.span(self.luck.lognormal(4, 1)), bounce_class=made_of, code=said.split()[1], detail=said)


class _FollowedUp(_Letter):
    """A follow-up: who is meant to buy looks at it and buys, nobody else does anything."""

    brings: FollowUp

    def human(self, delivered: int, hidden: bool) -> None:
        luck, brings = self.luck, self.brings
        if not luck.chance(brings.chance):
            return
        click = self.human_click(delivered + human_delay_us + self.time.span(luck.share() * brings.within_s))
        self.human_opens(max(delivered + human_delay_us, click - self.time.span(20)), hidden)
        at = (click + 2 * second_us) // 1000 * 1000
        self.made.append(self.lives.purchase(luck, self.person, at, brings.price))


class Order(msgspec.Struct, gc=False, frozen=True):
    """What somebody bought because of a message."""

    person: int
    campaign: str
    at_us: int
    value: float


def story(made: list[Happening]) -> Counter[str]:
    """Return what one message came to: each measure at most once, but for what was bought. Machines do not count."""
    found: Counter[str] = Counter(sent=1)
    orders: dict[str, int] = {}
    for happening in made:
        event = happening.event
        if event.kind == "converted":
            orders[event.order_id] = event.value_micros
        elif happening.agent != "machine":
            found[event.kind] = 1
    if orders:
        found["converted"] = 1
        found["conversions"] = len(orders)
        found["revenue_micros"] = sum(orders.values())
    return found


class React:
    """The people of a sandbox. ``through`` says which vendor's webhooks report messages that came another way: ``{"smtp": "postmark"}``.

    ``follow_up`` says which campaign's messages are follow-ups, and what they bring; ``trouble`` which provider turns mail away. From
    ``lasts_s`` virtual seconds after the first message on nobody does anything any more but because of a follow-up.

    It does no input or output: `take` what was accepted, send what is `due`.
    """

    def __init__(
        self,
        people: Audience,
        effects: Effects | None = None,
        *,
        seed: int = 1,
        start_us: int,
        speed: float = 600.0,
        tag: str = "r",
        through: dict[str, str] | None = None,
        manners: Manners | None = None,
        follow_up: FollowUp | None = None,
        trouble: Trouble | None = None,
        lasts_s: float = 0.0,
    ) -> None:
        self.people = people
        self.effects = effects or Effects()
        self.seed = seed
        self.speed = speed
        self.through = through or {}
        self.manners = manners or Manners.good()
        self.follow_up, self.trouble = follow_up, trouble
        self.orders: dict[str, Order] = {}
        self.bounced: list[tuple[int, str]] = []  # when messages were sent that came back, and to which provider
        self.strangers = 0  # messages to nobody of these people
        self.mute = 0  # messages that no vendor of the sandbox reports about
        self._index = {key: person for person, key in enumerate(people.keys)}
        self._timeline = Timeline(start_us, start_us + forever_us, speed)
        self._lasts_s, self._until_end = lasts_s, self._timeline
        self._lives = Lives(people, self._timeline, tag)
        self._rng = np.random.default_rng([seed, 1])
        self._coming: list[tuple[int, int, Event]] = []
        self._count = 0
        self._told: list[Event] = []
        self._agents: dict[tuple[str, str], str] = {}
        self._results: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)

    def labels(self, person: int) -> dict[str, str]:
        return dict(zip(DIMENSION_NAMES, self.people.labels(person), strict=True))

    def identify(self, now_us: int) -> list[Shipment]:
        """Return the calls of the site that tell who everybody is; they have to be made before anybody buys."""
        return self._shipped([happening.event for happening in self._lives.identify(now_us)], now_us)

    def take(self, messages: list[Accepted]) -> None:
        """Let these messages arrive and live; each at the time it was accepted."""
        made: list[Happening] = []
        if self._lasts_s and messages and self._until_end is self._timeline:
            end_us = messages[0].at_us + self._timeline.span(self._lasts_s)
            self._until_end = replace(self._timeline, end_us=end_us)
        for message in messages:
            person = self._index.get(recipient_key(message.recipient))
            vendor = self.through.get(message.vendor, message.vendor)
            if person is None:
                self.strangers += 1
            elif vendor not in VENDORS:
                self.mute += 1
            else:
                its = self._live(self._lives, message, vendor, person)
                made += its
                self._note(message, person, its)
                self._results[message.campaign, message.variant, message.wave, message.vendor, *self.people.labels(person)].update(
                    story(its)
                )
        self._agents |= {(h.event.source, h.event.event_id): h.agent for h in made}
        for sending in sendings(made, self.manners, self._rng, self.speed):
            self._count += 1
            heapq.heappush(self._coming, (sending.due_us, self._count, sending.event))

    def _live(self, lives: Lives, message: Accepted, vendor: str, person: int) -> list[Happening]:
        made: list[Happening] = []
        key = self.people.keys[person]
        variant = self.effects.on(message.variant, self.labels(person))
        sent_s = (message.at_us - self._timeline.start_us) / second_us * self.speed
        if self.follow_up and message.campaign == self.follow_up.campaign:
            letter = _FollowedUp(lives, _Own(self.seed, f"follow-up {key}"), made, message, variant, vendor, person)
            letter.brings = self.follow_up
            letter.time = replace(self._timeline, end_us=message.at_us + self._timeline.span(self.follow_up.within_s) + settles_us)
        else:
            letter = _Letter(lives, _Own(self.seed, key), made, message, variant, vendor, person)
            letter.time = self._until_end
        said = self.trouble.said(self.seed, key, message.at_us) if self.trouble and self._at(person) else ""
        if said:
            letter.turned_away(sent_s, said)
        else:
            letter.live(sent_s)
        return made

    def _note(self, message: Accepted, person: int, made: list[Happening]) -> None:
        """Note what somebody bought because of a message, and when one was sent that came back."""
        for event in (happening.event for happening in made):
            if event.kind == "converted":
                order = Order(person, message.campaign, event.occurred_at_us, event.value_micros / 1e6)
                self.orders.setdefault(event.order_id, order)
            elif event.kind == "bounced":
                self.bounced.append((message.at_us, self.people.providers[person]))

    def _at(self, person: int) -> bool:
        return self.people.providers[person] == self.trouble.provider

    def due(self, now_us: int) -> list[Shipment]:
        """Return the requests that report what has happened up to now and was not reported."""
        events = []
        while self._coming and self._coming[0][0] <= now_us:
            events.append(heapq.heappop(self._coming)[2])
        return self._shipped(events, now_us)

    def _shipped(self, events: list[Event], now_us: int) -> list[Shipment]:
        self._told += events
        return requests([Sending(now_us, event) for event in events], self._rng, window_us=0, batch_max=batch_max, manners=self.manners)

    def finish(self) -> None:
        """Leave out what is still to come, but for the rest of what scanners have begun: half a burst of clicks looks like a person's."""
        begun = {event.message_id for event in self._told if self._by_machine(event)}
        self._coming = [one for one in self._coming if one[2].message_id in begun and self._by_machine(one[2])]
        heapq.heapify(self._coming)

    def _by_machine(self, event: Event) -> bool:
        return event.kind == "clicked" and self._agents.get((event.source, event.event_id)) == "machine"

    @property
    def next_us(self) -> int:
        """When the next event is due; 0 where none is left."""
        return self._coming[0][0] if self._coming else 0

    @property
    def end_us(self) -> int:
        """When people stop to do anything by themselves."""
        return self._until_end.end_us

    def clickers(self) -> set[str]:
        """Return the keys of people of whom the door was told that they clicked, but for those whom a follow-up made click."""
        followed = self.follow_up.campaign if self.follow_up else ""
        return {
            recipient_key(event.recipient)
            for event in self._told
            if event.kind == "clicked" and event.campaign != followed and not self._by_machine(event)
        }

    # -- the truth -------------------------------------------------------------------------------------------------------

    def results(self, *by: str) -> dict[tuple[str, ...], Counter[str]]:
        """Return what all messages come to in the end, by campaign, variant, wave, vendor and attributes: `story` summed."""
        names = (*FIELDS, *DIMENSION_NAMES)
        places = [names.index(name) for name in by]
        sums: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for key, counts in self._results.items():
            sums[tuple(key[place] for place in places)].update(counts)
        return dict(sums)

    def would(self, message: Accepted) -> Counter[str]:
        """Return what a message comes to, sent or not: the same person with another variant is another message, not another luck."""
        person = self._index[recipient_key(message.recipient)]
        lives = Lives(self.people, self._timeline, "w")
        return story(self._live(lives, message, self.through.get(message.vendor, message.vendor), person))

    def cells(self, report: Report | None = None) -> dict[Cell, Counter[str]]:
        """Return the true cells of what was reported so far, without what the door did not take by the runner's report."""
        untaken = {id(event) for event in report.untold} if report else set()
        told = (event for event in self._told if id(event) not in untaken)
        return truth(told, self.people.attributes(), agents=self._agents)


class _Feeding(Runner):
    """A runner whose shipments keep coming until it is told to stop; then it sends what it has."""

    def __init__(self, door: str, sources: dict[str, Source], more: Callable[[int], list[Shipment]], **settings) -> None:
        super().__init__(door, sources, **settings)
        self.more = more
        self.stopping = False
        self._fed = False

    async def _run(self, shipments: list[Shipment]) -> None:
        feeder = asyncio.create_task(self._feed())
        await super()._run(shipments)
        await feeder

    async def _feed(self) -> None:
        while not self.stopping:
            for shipment in self.more(self.clock.now_us()):
                heapq.heappush(self._waiting, (shipment.due_us, self._order, shipment))
                self._order += 1
            await asyncio.sleep(tick_s)
        self._fed = True

    async def _work(self, client) -> None:
        while not self._fed or self._waiting or self._out:
            await super()._work(client)
            await asyncio.sleep(tick_s / 4)


class Reactor:
    """A thread that lets people react to what comes into an inbox, and reports it to a door.

    Stopped, it still takes what is in the inbox and sends what is due; what would happen later is left out, see `React.finish`.
    """

    def __init__(self, inbox: Inbox, react: React, door: str, sources: dict[str, Source], *, clock: Clock | None = None) -> None:
        self.inbox = inbox
        self.react = react
        self.seen = 0
        self._ending = False
        clock = clock or Clock()
        self._runner = _Feeding(door, sources, self._more, speed=react.speed, clock=clock)
        self._first = react.identify(clock.now_us())
        self._thread = threading.Thread(target=self._runner.run, args=(self._first,), daemon=True)

    @property
    def report(self) -> Report:
        return self._runner.report

    def _more(self, now_us: int) -> list[Shipment]:
        new = self.inbox.messages(self.seen, self.seen + take_max)
        self.seen += len(new)
        self.react.take(new)
        told = self.react.due(now_us)
        if self._ending and self.seen >= len(self.inbox):
            self.react.finish()
            self._runner.stopping = not self.react.next_us
        return told

    def __enter__(self) -> Reactor:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ending = True
        self._thread.join()
