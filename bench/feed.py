"""SendGrid's batches of whole campaigns, made by the million: deterministic, in the order of receipt, streamed and never held.

What happens to a message follows from a hash of its number, so that nothing about it is kept but what is still to come. Compiled code
writes the JSON. Whoever asks for ten times the recipients gets a send that takes ten times as long at the same pace, with opens and
clicks spread over that time, so that the numbers of minutes and cells an event touches stay alike and the memory it touches does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numba import njit

batch_events = 200
block_events_aim = 60_000

(PROCESSED, DELIVERED, DEFERRED, FAILED, OPEN, CLICK, LEFT) = (0, 1, 2, 3, 4, 11, 15)  # slots of a message; 7 opens and 4 clicks at most
SLOTS = 16
REPEATED = np.uint64(1) << np.uint64(63)

# Texts that templates point to by a byte above 127.
(PERSON, DOMAIN, AT, EVENT, MESSAGE, CAMPAIGN, VARIANT, WAVE, AGENT, IP, LINK, KIND_OF_BOUNCE) = range(0x80, 0x8C)
_MARK = {name: chr(number) for name, number in globals().items() if isinstance(number, int) and 0x80 <= number < 0x8C}

DOMAINS = (
    ("gmail.com", 34), ("outlook.com", 9), ("hotmail.com", 8), ("yahoo.com", 9), ("icloud.com", 8), ("gmx.de", 4), ("web.de", 4),
    ("aol.com", 2), ("orange.fr", 2), ("t-online.de", 2), ("comcast.net", 2), ("proton.me", 1), ("contoso.example", 5),
    ("fabrikam.example", 5), ("northwind.example", 5),
)  # fmt: skip
FIRST = "ada alan barbara claude donald edsger frances grace hedy john katherine leslie margaret niklaus radia tim".split()
CAMPAIGNS = ("spring-sale", "weekly-letter", "back-in-stock", "members-week", "new-arrivals", "last-call")
_CHROME = "Mozilla/5.0 ({}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{}.0.0.0 {}Safari/537.36"
_SAFARI = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_{} like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.{} Mobile/15E148"
APPLE = "Mozilla/5.0"
BROWSERS = (
    *("Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)",) * 24,
    *("YahooMailProxy; https://help.yahoo.com/kb/yahoo-mail-proxy-SLN28749.html",) * 6,
    *(_CHROME.format("Windows NT 10.0; Win64; x64", n, "") for n in range(110, 132)),
    *(_CHROME.format("Linux; Android 14; Pixel 8", n, "Mobile ") for n in range(110, 130)),
    *(_SAFARI.format(n, n) for n in range(7)),
    *("Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15",) * 4,
    "Mozilla/5.0 (compatible; Mimecast URL Protect)",
)
LINKS = ("hero", "shoes/trail-runner-2?utm_source=mail&utm_medium=email", "shoes", "sale?page=2", "account", "stores", "imprint", "more")

_HEAD = '{"email":"<PERSON>@<DOMAIN>","timestamp":<AT>,"smtp-id":"<<MESSAGE>@geopod-ismtpd-12>","event":"%s","category":["newsletter"],'
_TAIL = '"campaign":"<CAMPAIGN>","variant":"<VARIANT>","wave":"w<WAVE>","sg_event_id":"<EVENT>","sg_message_id":"<MESSAGE>.recvd-7d8c-2.0"}'
_SEEN = '"useragent":"<AGENT>","ip":"<IP>",'
_MACHINE = '"sg_machine_open":%s,"sg_content_type":"html",'
_CLICKED = '"url":"https://shop.example/<LINK>","url_offset":{"index":0,"type":"html"},'
_SAID = '"response":"250 2.0.0 OK  <AT> d2e1a72fcca58-7246b5a6d2bsi1234567b3a.123 - gsmtp","tls":1,'
_REASON = '"reason":"550 5.1.1 The email account that you tried to reach does not exist","status":"5.1.1","type":"<KIND_OF_BOUNCE>",'
TEMPLATES = tuple(
    _HEAD % event + more + _TAIL
    for event, more in (
        ("processed", '"send_at":<AT>,'),
        ("delivered", _SAID),
        ("deferred", '"response":"421 4.7.0 Try again later, unusual rate of mail","attempt":"1","tls":0,'),
        ("bounce", _REASON),
        ("dropped", '"reason":"Bounced Address","status":"5.0.0",'),
        ("open", _SEEN + _MACHINE % "false"),
        ("open", '"useragent":"' + APPLE + '","ip":"<IP>",' + _MACHINE % "true"),
        ("click", _SEEN + _CLICKED),
        ("unsubscribe", ""),
        ("spamreport", ""),
    )
)
(T_PROCESSED, T_DELIVERED, T_DEFERRED, T_BOUNCE, T_DROPPED, T_OPEN, T_APPLE, T_CLICK, T_UNSUBSCRIBE, T_SPAM) = range(len(TEMPLATES))
event_bytes_max = 1200


class Batch(NamedTuple):
    """One request's body: when it is received, how many events it has and how many of them came before."""

    at_us: int
    events: int
    repeated: int
    body: bytes


class Shape(NamedTuple):
    """What a feed is made of, as compiled code takes it."""

    seed: np.uint64
    recipients: int
    messages: int  # in all: a message to each recipient for each send
    per_s: float  # messages sent a second
    length_s: float  # of one send
    late_s: float  # how late a report may come
    start_s: int


class Feed:
    """Everything that happens to ``sends`` mailings to ``recipients``, one mailing after the other, at ``per_s`` messages a second.

    Three of a hundred reports come later than they should, by up to ``late_s`` or a third of a send's length, and a few come twice.
    The feed starts at ``start_us``; ``end_us`` is when the last event can have been received.
    """

    def __init__(
        self,
        recipients: int,
        *,
        sends: int = 1,
        per_s: float = 300.0,
        seed: int = 1,
        late_s: float = 3600.0,
        start_us: int = 1_764_000_000_000_000,
    ) -> None:
        length_s = recipients / per_s
        late_s = min(late_s, 0.3 * length_s)
        self.shape = Shape(np.uint64(seed), recipients, recipients * sends, per_s, length_s, late_s, start_us // 1_000_000)
        self.sends = sends
        self.block_s = max(1, round(block_events_aim / per_s / 3.4))
        self._waiting: dict[int, list[np.ndarray]] = {}
        self._steps = multipliers(recipients, sends)

    @property
    def length_us(self) -> int:
        """How long one mailing takes to send."""
        return int(self.shape.length_s * 1e6)

    @property
    def end_us(self) -> int:
        return int((self.shape.start_s + (self.sends + 2) * self.shape.length_s + 3 * self.shape.late_s + 3600) * 1e6)

    @property
    def held_bytes(self) -> int:
        """How much memory the events to come take."""
        return sum(part.nbytes for parts in self._waiting.values() for part in parts)

    def __iter__(self) -> Iterator[Batch]:
        self._waiting.clear()
        block, sent = 0, 0
        left = np.zeros((0, 2), np.uint64)
        while sent < self.shape.messages or self._waiting or left.size:
            until = min(self.shape.messages, int((block + 1) * self.block_s * self.shape.per_s))
            if until > sent:
                self._plan(sent, until, block)
                sent = until
            events = np.concatenate([left, *self._waiting.pop(block, [])])
            events = events[np.argsort(events[:, 1], kind="stable")]
            last = sent >= self.shape.messages and not self._waiting
            whole = events.shape[0] if last else events.shape[0] // batch_events * batch_events
            yield from self._written(events[:whole])
            left = events[whole:]
            block += 1

    def _plan(self, first: int, end: int, block: int) -> None:
        """Note all that will happen to these messages in the block of its receipt."""
        out = np.empty(((end - first) * (SLOTS + 2), 2), np.uint64)
        found = out[: plan(self.shape, first, end, out)]
        found = found[np.argsort(found[:, 1], kind="stable")]
        blocks = np.maximum(found[:, 1].astype(np.int64) // self.block_s, block)
        edges = np.flatnonzero(np.diff(blocks)) + 1
        for part, at in zip(np.split(found, edges), blocks[np.r_[0, edges]].tolist() if blocks.size else (), strict=False):
            self._waiting.setdefault(at, []).append(part.copy())

    def _written(self, events: np.ndarray) -> Iterator[Batch]:
        if not events.shape[0]:
            return
        out = np.empty(events.shape[0] * event_bytes_max, np.uint8)
        ends = np.empty(-(-events.shape[0] // batch_events), np.int64)
        write(self.shape, self._steps, TABLES, events[:, 0], ends, out)
        view, start = memoryview(out), 0
        repeated = events[:, 0] >> np.uint64(63)
        for number, end in enumerate(ends.tolist()):
            rows = slice(number * batch_events, min((number + 1) * batch_events, events.shape[0]))
            at_us = (self.shape.start_s + int(events[rows.stop - 1, 1])) * 1_000_000 + 999_999
            yield Batch(at_us, rows.stop - rows.start, int(repeated[rows].sum()), bytes(view[start:end]))
            start = end


def multipliers(recipients: int, sends: int) -> np.ndarray:
    """Return for each send a step that walks over all recipients in an order of its own."""
    steps = []
    step = int(recipients * 0.618) | 1
    while len(steps) < sends:
        while np.gcd(step, recipients) != 1:
            step += 2
        steps.append(step % recipients if recipients > 1 else 0)
        step = int(step * 0.73) | 1
    return np.array(steps, np.int64)


# -- what happens to a message ---------------------------------------------------------------------------------------------------


@njit(cache=True)
def luck(seed, number, salt):
    """Return 64 bits that follow from the seed, a number and what they are for."""
    z = (
        seed * np.uint64(0x9E3779B97F4A7C15)
        + np.uint64(number) * np.uint64(0xBF58476D1CE4E5B9)
        + np.uint64(salt) * np.uint64(0xD6E8FEB86659FD93)
    )
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True)
def share(seed, number, salt):
    return np.float64(luck(seed, number, salt) >> np.uint64(11)) / 9007199254740992.0


@njit(cache=True)
def bell(bits):
    """Return a nearly normal number from 64 bits."""
    total = 0.0
    for k in range(4):
        total += np.float64((bits >> np.uint64(16 * k)) & np.uint64(0xFFFF)) / 65536.0
    return (total - 2.0) * 1.7320508


@njit(cache=True)
def person(steps, recipients, message):
    send = message // recipients
    return (message % recipients) * steps[send] % recipients


@njit(cache=True)
def is_deferred(seed, message):
    return share(seed, message, 2) < 0.02


@njit(cache=True)
def by_machine(seed, message):
    """Whether the recipient's mail program fetches what it may never show."""
    return share(seed, message, 3) < 0.3


@njit(cache=True)
def occurs(shape, message, slot):
    """Return the second after the feed's start at which something happens to a message."""
    seed = shape.seed
    at = message / shape.per_s
    if slot == PROCESSED:
        return np.int64(at)
    if slot == DEFERRED or slot == FAILED:
        return np.int64(at + 2 + 5 * share(seed, message, 4))
    at += 1 + 8 * share(seed, message, 5)
    if is_deferred(seed, message):
        at += 300 + 900 * share(seed, message, 6)
    if slot == DELIVERED:
        return np.int64(at)
    first = min(0.1 * shape.length_s * np.exp(1.2 * bell(luck(seed, message, 7))), shape.length_s)
    if by_machine(seed, message):
        first = min(first, 30 + 600 * share(seed, message, 8))
    at += 6 + first
    if slot > OPEN:
        at += 5 + 0.2 * shape.length_s * share(seed, message, 20 + slot) ** 2
    return np.int64(at)


@njit(cache=True)
def plan(shape, first, end, out):
    """Write (message and slot, second of receipt) of all that happens to some messages; return how many rows."""
    n = 0
    for message in range(first, end):
        seed = shape.seed
        fate = share(seed, message, 1)
        happens = np.uint64(0)
        if fate < 0.003:
            happens |= np.uint64(1) << np.uint64(FAILED)
        elif fate < 0.015:
            happens |= np.uint64(1) << np.uint64(PROCESSED) | np.uint64(1) << np.uint64(FAILED)
        else:
            happens |= np.uint64(1) << np.uint64(PROCESSED) | np.uint64(1) << np.uint64(DELIVERED)
            if is_deferred(seed, message):
                happens |= np.uint64(1) << np.uint64(DEFERRED)
            if share(seed, message, 9) < 0.56:
                opens = 1
                while opens < 7 and share(seed, message, 30 + opens) < 0.56:
                    opens += 1
                happens |= ((np.uint64(1) << np.uint64(opens)) - np.uint64(1)) << np.uint64(OPEN)
                if share(seed, message, 10) < 0.14:
                    clicks = 1
                    while clicks < 4 and share(seed, message, 40 + clicks) < 0.35:
                        clicks += 1
                    happens |= ((np.uint64(1) << np.uint64(clicks)) - np.uint64(1)) << np.uint64(CLICK)
            if share(seed, message, 11) < 0.004:
                happens |= np.uint64(1) << np.uint64(LEFT)
        for slot in range(SLOTS):
            if happens >> np.uint64(slot) & np.uint64(1) == 0:
                continue
            code = np.uint64(message) * np.uint64(SLOTS) + np.uint64(slot)
            bits = luck(seed, code, 50)
            received = occurs(shape, message, slot) + np.int64(bits & np.uint64(1))
            if share(seed, code, 51) < 0.03:
                received += 60 + np.int64(share(seed, code, 52) * shape.late_s)
            out[n, 0], out[n, 1] = code, received
            n += 1
            if share(seed, code, 53) < 0.006:
                out[n, 0] = code | REPEATED
                out[n, 1] = received + np.int64(1 + share(seed, code, 54) * shape.late_s / 3)
                n += 1
    return n


# -- writing ---------------------------------------------------------------------------------------------------------------------


class Texts(NamedTuple):
    """Texts one after the other; number i stands at [start[i], start[i + 1])."""

    raw: np.ndarray
    start: np.ndarray


class Tables(NamedTuple):
    templates: Texts
    domains: Texts
    domain_of: np.ndarray  # 100 numbers of domains, in the shares they have
    first: Texts
    campaigns: Texts
    browsers: Texts
    links: Texts
    bounces: Texts


def texts(words: tuple[str, ...] | list[str]) -> Texts:
    raw = [word.encode("latin-1") for word in words]
    return Texts(np.frombuffer(b"".join(raw), np.uint8), np.cumsum([0, *map(len, raw)]))


def marked(template: str) -> str:
    for name, mark in _MARK.items():
        template = template.replace(f"<{name}>", mark)
    return template


TABLES = Tables(
    texts([marked(t) for t in TEMPLATES]),
    texts([name for name, _ in DOMAINS]),
    np.repeat(np.arange(len(DOMAINS)), [n for _, n in DOMAINS]),
    texts(FIRST),
    texts(CAMPAIGNS),
    texts(BROWSERS),
    texts(LINKS),
    texts(["bounce", "blocked"]),
)


@njit(cache=True)
def put(out, at, words, number):
    start, end = words.start[number], words.start[number + 1]
    for i in range(start, end):
        out[at] = words.raw[i]
        at += 1
    return at


@njit(cache=True)
def put_number(out, at, value, digits):
    for k in range(digits - 1, -1, -1):
        out[at + k] = 48 + value % 10
        value //= 10
    return at + digits


@njit(cache=True)
def put_id(out, at, high, low):
    """Write 22 letters and digits."""
    for k in range(22):
        bits = (high if k < 11 else low) >> np.uint64(5 * (k % 11)) & np.uint64(31)
        out[at + k] = 97 + bits if bits < 26 else 24 + bits
    return at + 22


@njit(cache=True)
def template_of(seed, message, slot):
    if slot <= DEFERRED:
        return slot
    if slot == FAILED:
        return T_DROPPED if share(seed, message, 1) < 0.003 else T_BOUNCE
    if slot < CLICK:
        return T_APPLE if by_machine(seed, message) and slot == OPEN else T_OPEN
    if slot < LEFT:
        return T_CLICK
    return T_SPAM if share(seed, message, 12) < 0.1 else T_UNSUBSCRIBE


@njit(cache=True)
def write(shape, steps, tables, codes, ends, out):
    """Write events as arrays of ``batch_events``; set ends[i] to where body i ends."""
    at = 0
    seed = shape.seed
    for i in range(codes.size):
        out[at] = 91 if i % batch_events == 0 else 44
        at += 1
        code = codes[i] & ~REPEATED
        message, slot = np.int64(code // np.uint64(SLOTS)), np.int64(code % np.uint64(SLOTS))
        recipient = person(steps, shape.recipients, message)
        who = luck(seed, recipient, 60)
        which = luck(seed, message, 61)
        happened = luck(seed, code, 62)
        number = template_of(seed, message, slot)
        words = tables.templates
        for k in range(words.start[number], words.start[number + 1]):
            byte = words.raw[k]
            if byte < 0x80:
                out[at] = byte
                at += 1
            elif byte == PERSON:
                at = put(out, at, tables.first, who % np.uint64(16))
                out[at] = 46
                at = put_number(out, at + 1, recipient, 9)
            elif byte == DOMAIN:
                at = put(out, at, tables.domains, tables.domain_of[(who >> np.uint64(8)) % np.uint64(100)])
            elif byte == AT:
                at = put_number(out, at, shape.start_s + occurs(shape, message, slot), 10)
            elif byte == EVENT:
                at = put_id(out, at, happened, luck(seed, code, 63))
            elif byte == MESSAGE:
                at = put_id(out, at, which, luck(seed, message, 64))
            elif byte == CAMPAIGN:
                at = put(out, at, tables.campaigns, (message // shape.recipients * 3 + np.int64(who >> np.uint64(20)) % 3) % 6)
            elif byte == VARIANT:
                out[at] = 65 + (which >> np.uint64(8)) % np.uint64(3)
                at += 1
            elif byte == WAVE:
                at = put_number(out, at, message % shape.recipients * 4 // shape.recipients + 1, 1)
            elif byte == AGENT:
                at = put(out, at, tables.browsers, (which >> np.uint64(16)) % np.uint64(tables.browsers.start.size - 1))
            elif byte == IP:
                at = put_number(out, at, 11 + np.int64(which >> np.uint64(30)) % 88, 2)
                for part in range(3):
                    out[at] = 46
                    at = put_number(out, at + 1, 100 + np.int64(which >> np.uint64(36 + 7 * part)) % 128, 3)
            elif byte == LINK:
                at = put(out, at, tables.links, happened % np.uint64(8))
            else:
                at = put(out, at, tables.bounces, 1 if which % np.uint64(5) < 2 else 0)
        if (i + 1) % batch_events == 0 or i + 1 == codes.size:
            out[at] = 93
            at += 1
            ends[i // batch_events] = at


def as_lines(body: bytes) -> bytes:
    """Return a batch as one event a line, for engines whose readers know no arrays."""
    return body[1:-1].replace(b'},{"email"', b'}\n{"email"') + b"\n"
