"""What becomes of each message: delivery, opens, clicks, purchases; by people, proxies and machines, and we know by whom."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from ..events import Event
from .audience import DIMENSION_NAMES, Audience
from .campaigns import Campaign, Variant
from .vendors import SITE, Vendor, vendor

second_us = 1_000_000
hour_s = 3600
cent_micros = 10_000
# People never act sooner than this after delivery, nor faster than this one after the other, whatever the compression of time and
# the vendor's clock, so that a person cannot be taken for a machine.
human_delay_us = 6 * second_us
human_gap_us = 5 * second_us

GMAIL_PROXY = "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)"
_WINDOWS = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)"
_IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
GMAIL_PREFETCH = f"{_WINDOWS} Chrome/42.0.2311.135 Safari/537.36 Edge/12.246 Mozilla/5.0"
YAHOO_PROXY = "YahooMailProxy; https://help.yahoo.com/kb/yahoo-mail-proxy-SLN28749.html"
APPLE_PREFETCH = "Mozilla/5.0"
SCANNER = "Mozilla/5.0 (compatible; Mimecast URL Protect)"
BROWSERS = {
    "mobile": (
        f"{_IPHONE} Version/17.5 Mobile/15E148 Safari/604.1",
        "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Mobile Safari/537.36",
    ),
    "desktop": (
        f"{_WINDOWS} Chrome/126.0.0.0 Safari/537.36",
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15",
        "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0",
    ),
}


@dataclass(frozen=True)
class Fate:
    """What a mailbox provider does, as chances per message."""

    hard: float
    soft: float
    block: float
    defer: float
    inbox: float = 1.0  # share that people see; the rest lies in the spam folder
    scanned: float = 0.0
    prefetched: float = 0.0


FATES = {
    "Gmail": Fate(0.004, 0.002, 0.001, 0.01, 0.94, 0.0, 0.04),
    "Microsoft": Fate(0.007, 0.003, 0.012, 0.03, 0.85, 0.05),
    "Yahoo": Fate(0.012, 0.004, 0.002, 0.06, 0.9),
    "Apple": Fate(0.004, 0.002, 0.001, 0.01, 0.96, 0.0, 0.8),
    "GMX / WEB.DE": Fate(0.009, 0.012, 0.004, 0.04, 0.92),
    "Other": Fate(0.03, 0.01, 0.006, 0.02, 0.9, 0.35, 0.05),
}
SAID = {
    "hard": ("5.1.1", "550 5.1.1 The email account that you tried to reach does not exist"),
    "soft": ("4.2.2", "452 4.2.2 The recipient's inbox is out of storage space"),
    "block": ("5.7.1", "550 5.7.1 Message blocked due to the sending network's reputation"),
    "deferred": ("4.7.0", "421 4.7.0 Try again later, unusual rate of mail"),
}


class Happening(msgspec.Struct, gc=False):
    """An event and who really caused it."""

    event: Event
    agent: str = ""


class Luck:
    """Seeded draws one at a time, drawn in blocks."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._uniform = _stream(rng.random)
        self._normal = _stream(rng.standard_normal)

    def chance(self, p: float) -> bool:
        return next(self._uniform) < p

    def share(self) -> float:
        return next(self._uniform)

    def pick(self, values):
        return values[int(next(self._uniform) * len(values))]

    def lognormal(self, median: float, sigma: float) -> float:
        return median * math.exp(sigma * next(self._normal))


def _stream(draw: Callable) -> Iterator[float]:
    while True:
        yield from draw(4096).tolist()


@dataclass(frozen=True)
class Timeline:
    """Virtual seconds since the first send become timestamps; what would lie after ``end_us`` has not happened yet."""

    start_us: int
    end_us: int
    speed: float = 1.0

    def at(self, virtual_s: float) -> int:
        return self.start_us + round(virtual_s * second_us / self.speed)

    def span(self, virtual_s: float) -> int:
        return round(virtual_s * second_us / self.speed)


class Lives:
    """Lives the messages of one run, one wave at a time. ``unknown`` is the chance that a vendor reports a kind nobody knows."""

    def __init__(self, people: Audience, timeline: Timeline, tag: str, *, unknown: float = 0.0, async_bounces: float = 0.0) -> None:
        self.people = people
        self.timeline = timeline
        self.tag = tag
        self.unknown = unknown
        self.async_bounces = async_bounces
        self._count = 0
        self._clicked: dict[int, set[int]] = defaultdict(set)

    def next_id(self) -> str:
        self._count += 1
        return f"{self.tag}{self._count:07x}"

    def identify(self, at_us: int) -> list[Happening]:
        """Return the events that tell everybody's attributes."""
        people = self.people
        made = []
        for i in range(len(people)):
            event = Event(source=SITE, event_id=f"i-{self.next_id()}", kind="identified", occurred_at_us=at_us // 1000 * 1000)
            event.recipient, event.user_id, event.traits = people.addresses[i], people.user_ids[i], people.traits(i)
            made.append(Happening(event))
        return made

    def wave(
        self, rng: np.random.Generator, campaign: Campaign, number: int, recipients: list[int], start_s: float, length_s: float
    ) -> list[Happening]:
        """Return all that happens to the messages of one wave that starts after ``start_s`` virtual seconds and takes ``length_s``."""
        luck = Luck(rng)
        made: list[Happening] = []
        for place, person in enumerate(recipients):
            sent_s = start_s + length_s * place / max(len(recipients), 1)
            Living(self, luck, made, campaign, luck.pick(campaign.variants), f"w{number + 1}", person).live(sent_s)
        return made

    def strangers(self, rng: np.random.Generator, count: int, length_s: float) -> list[Happening]:
        """Return purchases that no campaign caused (some come after a click all the same and are attributed to it)."""
        luck = Luck(rng)
        made: list[Happening] = []
        for _ in range(count):
            person = int(luck.share() * len(self.people))
            at = self.timeline.at(luck.share() * length_s) // 1000 * 1000
            if at <= self.timeline.end_us:
                made.append(self.purchase(luck, person, at, 40))
        return made

    def purchase(self, luck: Luck, person: int, at_us: int, price: float) -> Happening:
        event = Event(source=SITE, event_id=f"o-{self.next_id()}", kind="converted", occurred_at_us=at_us, name="Order Completed")
        event.user_id = self.people.user_ids[person]
        if not luck.chance(0.3):
            event.recipient = self.people.addresses[person]
        event.order_id, event.currency = f"ord-{self.next_id()}", "EUR"
        event.value_micros = round(luck.lognormal(price, 0.4) * 100) * cent_micros
        return Happening(event)


class Living:
    """One email to one recipient, from its sending to the end of its story."""

    def __init__(
        self, lives: Lives, luck: Luck, made: list[Happening], campaign: Campaign, variant: Variant, wave: str, person: int
    ) -> None:
        self.lives, self.luck, self.made = lives, luck, made
        self.campaign, self.variant, self.wave, self.person = campaign, variant, wave, person
        self.source = luck.pick(campaign.sources)
        self.vendor: Vendor = vendor(self.source)
        self.time = lives.timeline
        self.labels = dict(zip(DIMENSION_NAMES, lives.people.labels(person), strict=True))
        self.fate = FATES[lives.people.providers[person]]
        self.id = message_id(self.source, lives.next_id())
        self.busy: tuple[int, int] | None = None  # when a scanner follows many links
        self.moments: set[tuple] = set()

    def floor(self, at_us: int) -> int:
        return at_us // self.vendor.resolution_us * self.vendor.resolution_us

    def add(self, kind: str, at_us: int, by: str = "", **fields) -> None:
        at_us = self.floor(at_us)
        if at_us > self.time.end_us:
            return
        while not self.vendor.has_ids and (kind, at_us, fields.get("url")) in self.moments:
            at_us += self.vendor.resolution_us
        self.moments.add((kind, at_us, fields.get("url")))
        event = Event(
            source=self.source,
            event_id=f"e-{self.lives.next_id()}",
            kind=kind,
            occurred_at_us=at_us,
            recipient=self.lives.people.addresses[self.person],
            message_id=self.id,
            campaign=self.campaign.name,
            variant=self.variant.name,
            wave=self.wave,
            **fields,
        )
        self.made.append(Happening(event, by))

    def live(self, sent_s: float) -> None:
        luck, at = self.luck, self.time.at(sent_s)
        if self.vendor.starts:
            self.add(self.vendor.starts, at)
        if self.vendor.has("rejected") and luck.chance(0.003):
            return self.add("rejected", at + self.time.span(1), detail="Bounced Address")
        at += self.time.span(luck.lognormal(4, 1))
        if self.vendor.has("deferred") and luck.chance(self.fate.defer):
            self.said("deferred", "deferred", at)
            at += self.time.span(luck.lognormal(900, 1))
        for fate in ("hard", "soft", "block"):
            if luck.chance(getattr(self.fate, fate)) and self.vendor.has(fate):
                return self.said("bounced", fate, at, bounce_class=fate)
        delivered = self.floor(at)
        if delivered > self.time.end_us:
            return
        self.add("delivered", delivered)
        if luck.chance(self.lives.async_bounces):
            # The bounce comes back by mail a while later and knows the message, but not what the sender attached to it.
            at = delivered + self.time.span(luck.lognormal(1800, 1))
            return self.said("bounced", "hard", at, bounce_class="hard", bare=True)
        if self.vendor.has("unknown") and luck.chance(self.lives.unknown):
            self.add("unknown", delivered + self.time.span(60), name="mailbox_full_soon")
        if self.vendor.has("autoresponded") and luck.chance(0.004):
            self.add("autoresponded", delivered + self.time.span(30))
        hidden = self.machines(delivered)
        self.human(delivered, hidden)

    def said(self, kind: str, what: str, at_us: int, bare: bool = False, **fields) -> None:
        code, detail = SAID[what]
        before = len(self.made)
        self.add(kind, at_us, code=code, detail=detail, **fields)
        if bare and len(self.made) > before:
            event = self.made[-1].event
            event.campaign = event.variant = event.wave = ""

    # -- machines ----------------------------------------------------------------------------------------------------

    def machines(self, delivered: int) -> bool:
        """Let prefetchers and scanners at the message; return True where people's opens can no longer be seen."""
        luck, provider = self.luck, self.lives.people.providers[self.person]
        if self.vendor.opens_have_agent and luck.chance(self.fate.prefetched):
            at = delivered + human_delay_us + self.time.span(luck.lognormal(600, 1.2))
            if provider == "Gmail":
                self.opened(at, "machine", GMAIL_PREFETCH)
                return False
            self.opened(at, "machine", APPLE_PREFETCH, flagged=self.vendor.flags_apple)
            return True
        if luck.chance(self.fate.scanned):
            self.scan(delivered)
        return False

    def scan(self, delivered: int) -> None:
        luck, browser = self.luck, self.browser()
        # Within the first two seconds as the vendor's clock counts them.
        soon = [delivered + s for s in ((0, second_us) if self.vendor.resolution_us == second_us else (0, 400_000, 900_000, 1_900_000))]
        way = luck.pick(("first link", "all links", "burst", "named", "network", "opens"))
        if way == "opens":
            self.opened(luck.pick(soon), "machine", browser)
        elif way == "first link":
            self.clicked(luck.pick(soon), self.campaign.links[0], "machine", browser)
        elif way == "all links":
            for link in self.campaign.links:
                self.clicked(luck.pick(soon), link, "machine", browser)
        elif way == "burst":
            at = self.floor(delivered + 2 * human_delay_us + self.time.span(luck.lognormal(300, 1)))
            if at + 2 * second_us <= self.time.end_us:
                self.busy = (at - human_delay_us, at + human_delay_us)
                for number, link in enumerate(self.campaign.links):
                    self.clicked(at + number * 300_000, link, "machine", browser)
        elif way == "named" and self.vendor.clicks_have_agent:
            self.clicked(delivered + self.time.span(luck.lognormal(60, 1)), luck.pick(self.campaign.links), "machine", SCANNER)
        elif way == "network" and self.vendor.clicks_have_agent:
            at = delivered + self.time.span(luck.lognormal(60, 1))
            self.clicked(at, self.campaign.links[0], "machine", browser, ip="209.222.82.17")

    # -- people ------------------------------------------------------------------------------------------------------

    def human(self, delivered: int, hidden: bool) -> None:
        luck, variant = self.luck, self.variant
        if not luck.chance(min(0.95, variant.opens * self.fate.inbox)):
            return
        if self.vendor.has("complained") and luck.chance(0.002):
            self.add("complained", delivered + human_delay_us + self.time.span(luck.lognormal(2 * hour_s, 1.5)))
        first = delivered + human_delay_us + self.time.span(luck.lognormal(2 * hour_s, 1.8))
        taste = self.campaign.taste(variant.name, self.labels)
        if not luck.chance(min(0.95, variant.clicks * taste)):
            self.human_opens(first, hidden)
            if self.vendor.has("unsubscribed") and luck.chance(0.006):
                self.add("unsubscribed", first + self.time.span(luck.lognormal(30, 0.5)))
            return
        click = self.human_click(delivered + human_delay_us + self.time.span(luck.lognormal(3 * hour_s, 2)))
        self.human_opens(max(delivered + human_delay_us, click - self.time.span(luck.lognormal(20, 0.7))), hidden)
        while luck.chance(0.25):
            click = self.human_click(click + human_gap_us + self.time.span(luck.lognormal(120, 1.5)))
        if click > self.time.end_us:
            return
        self.site(click, taste)

    def human_opens(self, at: int, hidden: bool) -> None:
        """Add the opens of one person: through the provider's proxy where it has one, unseen behind Apple's."""
        if hidden:
            return
        luck, provider = self.luck, self.lives.people.providers[self.person]
        proxy = {"Gmail": GMAIL_PROXY, "Yahoo": YAHOO_PROXY}.get(provider) if self.vendor.opens_have_agent else None
        agent = "proxied" if proxy else "human"
        self.opened(at, agent, proxy or self.browser())
        while luck.chance(0.3):
            at += human_gap_us + self.time.span(luck.lognormal(5 * hour_s, 1.5))
            self.opened(at, agent, proxy or self.browser())

    def human_click(self, at: int) -> int:
        """Add a click that no scanner's burst swallows and that no other click of the person shares its moment with."""
        at = self.floor(at)
        if self.busy and self.busy[0] <= at <= self.busy[1]:
            at = self.floor(self.busy[1] + second_us)
        taken = self.lives._clicked[self.person]
        while at in taken:
            at += second_us
        taken.add(at)
        self.clicked(at, self.luck.pick(self.campaign.links), "human", self.browser())
        return at

    def site(self, click: int, taste: float) -> None:
        """Add what the person does on the site after the click: looks, buys, and sometimes the order is reported twice."""
        luck, lives, time = self.luck, self.lives, self.time
        seen = (click + 2 * second_us + time.span(luck.lognormal(5, 0.5))) // 1000 * 1000
        if luck.chance(0.5) and seen <= time.end_us:
            event = Event(source=SITE, event_id=f"p-{lives.next_id()}", kind="paged", occurred_at_us=seen, name="Offer")
            event.user_id, event.recipient = lives.people.user_ids[self.person], lives.people.addresses[self.person]
            event.url = self.campaign.links[1]
            self.made.append(Happening(event))
        if not luck.chance(min(0.95, self.variant.buys * taste)):
            return
        delay_s = 8 * 24 * hour_s if luck.chance(0.02) else luck.lognormal(12 * 60, 1.5)
        at = (click + 2 * second_us + time.span(delay_s)) // 1000 * 1000
        if at > time.end_us:
            return
        bought = lives.purchase(luck, self.person, at, self.variant.price)
        self.made.append(bought)
        if luck.chance(0.05):
            again = msgspec.structs.replace(bought.event, event_id=f"o-{lives.next_id()}")
            self.made.append(Happening(again))

    # -- both --------------------------------------------------------------------------------------------------------

    def browser(self) -> str:
        return self.luck.pick(BROWSERS[self.labels["device"]])

    def opened(self, at_us: int, agent: str, user_agent: str, flagged: bool = False) -> None:
        fields = {"user_agent": user_agent, "ip": f"198.51.100.{self.person % 254 + 1}"} if self.vendor.opens_have_agent else {}
        if flagged:
            fields |= {"agent": "machine", "agent_reason": "vendor flag: apple"}
        self.add("opened", at_us, agent, **fields)

    def clicked(self, at_us: int, url: str, agent: str, user_agent: str, ip: str = "") -> None:
        fields = {"user_agent": user_agent, "ip": ip or f"198.51.100.{self.person % 254 + 1}"} if self.vendor.clicks_have_agent else {}
        self.add("clicked", at_us, agent, url=url, **fields)


def message_id(source: str, made_id: str) -> str:
    """Return an id of the vendor's own shape."""
    if source == "postmark":
        number = int(made_id.encode().hex()[-24:].rjust(24, "0"), 16)
        return f"{number:032x}"[:8] + "-0000-4000-8000-" + f"{number:024x}"[-12:]
    if source == "mailgun":
        return f"{made_id}@mail.shop.example"
    if source == "ses":
        return f"0102018f{made_id}-000000"
    return made_id
