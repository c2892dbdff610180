"""The public page behind a message's link: whoever holds the link may unsubscribe its recipient, by a mailbox's one click or by a button.

RFC 8058: a mailbox posts ``List-Unsubscribe=One-Click``, without cookies and without being redirected. A GET or HEAD changes nothing,
because scanners and prefetchers follow every link. The token is the right, so a forged request from another page needs it too.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from html import escape
from urllib.parse import parse_qsl

import msgspec

from ...act.links import PREFIX, Link, Links
from ...events import Event
from ...kit.crash import crash_point
from ...kit.errors import MidflightError
from ...log import Record, Stored
from .answers import Answer, later
from .http import Exchange
from .stopping import Stopping

SOURCE = "midflight"
LANE = "/u"  # no source can be called so
body_bytes_max = 4096
fields_max = 20
retry_s = 30
ONE_CLICK = b"List-Unsubscribe=One-Click"
FORM = "application/x-www-form-urlencoded"

STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:32rem;margin:12vh auto;padding:0 1.25rem;color:#1c1c1c;background:#fff}"
    "h1{font-size:1.5rem;line-height:1.25}button{font:inherit;padding:.6rem 1.2rem;border:1px solid #1c1c1c;border-radius:.4rem;"
    "background:#1c1c1c;color:#fff;cursor:pointer}button.quiet{background:transparent;color:inherit}.more{margin-top:3rem;color:#555}"
    "button:focus-visible{outline:3px solid #4c8dff;outline-offset:2px}"
    "@media(prefers-color-scheme:dark){body{color:#eee;background:#161616}button{background:#eee;color:#161616;border-color:#eee}"
    ".more{color:#aaa}}"
)
_STYLE_HASH = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = (
    "content-type: text/html; charset=utf-8\r\n"
    f"content-security-policy: default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'\r\n"
    "referrer-policy: no-referrer\r\ncache-control: no-store\r\nx-robots-tag: noindex\r\nx-content-type-options: nosniff\r\n"
).encode()
UNSUBSCRIBE = '<form method="post"><button name="choice" value="unsubscribe">Unsubscribe</button></form>'
SUBSCRIBE = (
    '<form method="post" class="more"><p>{}</p><button class="quiet" name="choice" value="subscribe">Subscribe again</button></form>'
)


def page(title: str, *parts: str) -> bytes:
    """Return a page. ``title`` is text; ``parts`` are HTML."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>{''.join(parts)}</html>"
    ).encode("utf-8", "replace")


def masked(recipient: str) -> str:
    """Return an address as its owner knows it and as nobody else learns it: ``a***@example.com``."""
    local, at, domain = recipient.rpartition("@")
    return f"{local[:1]}***{at}{domain}"


NO_LINK = Answer(
    404,
    page(
        "This link does not work",
        "<p>It is not whole, or it was made elsewhere. Nothing was changed.</p><p>Open the link in the email once more, or copy all of it, "
        "over every line. If it still does not work, answer the email and ask to be taken off the list.</p>",
    ),
    HEADERS,
    "bad_link",
)


class Unsubscribing:
    """``/u/{token}``: the page, and what is posted to it. ``links`` is None while the key of links cannot be read."""

    def __init__(self, door, links: Links | None, stopping: Stopping) -> None:
        self.door, self.links, self.stopping = door, links, stopping

    def link(self, exchange: Exchange) -> Link | None:
        token = exchange.target.partition(b"?")[0][len(PREFIX) :]
        return self.links.read(token.decode("latin-1"))

    def get(self, exchange: Exchange) -> Answer:
        """Show the page. Nothing is changed by it."""
        if self.links is None:
            return self.no_key()
        link = self.link(exchange)
        if link is None:
            return NO_LINK
        shown = f"<p>No more email to <b>{escape(masked(link.recipient))}</b>.</p>"
        return Answer(200, page("Unsubscribe", shown, UNSUBSCRIBE, SUBSCRIBE.format("Unsubscribed by mistake?")), HEADERS)

    def post(self, exchange: Exchange) -> Answer | None:
        """Note what the recipient wants; the answer follows when it is durable and nothing more can be sent."""
        if self.links is None:
            return self.no_key()
        link = self.link(exchange)
        if link is None:
            return NO_LINK
        door = self.door
        if why := door.why_closed():
            return later(why, door.closed_what)
        kind, reason = wanted(exchange)
        try:
            door.submit([record_of(link, kind, reason, exchange)], Noting(self, exchange, link.recipient, kind))
        except MidflightError as error:
            return later(error.code, error.what)
        return None

    @staticmethod
    def no_key() -> Answer:
        return later("no_key", "Links cannot be read now", least_s=30, most_s=60)

    def stopped(self, exchange: Exchange, recipient: str, sure: bool) -> None:
        """Answer an unsubscribe that is durable."""
        door = self.door
        if not sure:
            door.counters.add("door_stops_late_total")
            answer = later("stop_late", "It is noted; a message may be on its way at this moment", least_s=retry_s, most_s=retry_s)
        else:
            answer = self.done(recipient, "unsubscribed")
        door.answer(exchange, answer)

    @staticmethod
    def done(recipient: str, kind: str) -> Answer:
        """Return the page after a change."""
        who = f"<b>{escape(masked(recipient))}</b>"
        if kind == "subscribed":
            return Answer(200, page("You are subscribed again", f"<p>{who} gets email from us as before.</p>"), HEADERS)
        text = f"<p>{who} gets no more email from us.</p>"
        return Answer(200, page("You are unsubscribed", text, SUBSCRIBE.format("Was it a mistake?")), HEADERS)


class Noting:
    """One change on its way to the log; called with what became of it."""

    __slots__ = ("exchange", "kind", "page", "recipient")

    def __init__(self, page: Unsubscribing, exchange: Exchange, recipient: str, kind: str) -> None:
        self.page, self.exchange, self.recipient, self.kind = page, exchange, recipient, kind

    def __call__(self, outcome: Stored | Exception) -> None:
        page, exchange, recipient = self.page, self.exchange, self.recipient
        door = page.door
        door.release(exchange)
        if not isinstance(outcome, Stored):
            door.answer(exchange, door.log_refused(outcome))
            return
        crash_point("before_200")
        door.counters.add("door_stored_total", LANE)
        if self.kind == "subscribed":
            door.answer(exchange, page.done(recipient, self.kind))
            return
        door.unsubscribed(recipient, outcome.first)
        page.stopping.stop(recipient, lambda sure: page.stopped(exchange, recipient, sure))


def wanted(exchange: Exchange) -> tuple[str, str]:
    """Return the kind of event that a body asks for, and by which way it came. An unsubscribe always wins: only the page's own form, with
    one field that says so and nothing that says otherwise, subscribes."""
    body = exchange.body
    if ONE_CLICK in body:
        return "unsubscribed", "one-click"
    if "content-encoding" not in exchange.headers and exchange.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM:
        try:
            fields = parse_qsl(body.decode(), max_num_fields=fields_max)
        except ValueError:
            fields = []
        if fields == [("choice", "subscribe")]:
            return "subscribed", "page"
        if fields and fields[0][0].lower() == "list-unsubscribe":
            return "unsubscribed", "one-click"
    elif b"one-click" in body.lower():
        # As multipart/form-data, name and value stand apart.
        return "unsubscribed", "one-click"
    return "unsubscribed", "page"


def record_of(link: Link, kind: str, reason: str, exchange: Exchange) -> Record:
    """Return the record of one change. Unsubscribes within a minute share an id, so that repeats count once. Each subscription has its own:
    the store takes a repeated one for old news, and would not hear who left in between and came back within the minute."""
    at = exchange.at_us // 60_000_000 if kind == "unsubscribed" else exchange.at_us
    mark = hashlib.blake2b(msgspec.msgpack.encode((*link, kind, at)), digest_size=16).hexdigest()
    event = Event(
        source=SOURCE, event_id=f"u:{mark}", kind=kind, occurred_at_us=exchange.at_us, recipient=link.recipient, campaign=link.campaign,
        variant=link.variant, wave=link.wave, reason=reason,
    )  # fmt: skip
    return Record("events", SOURCE, exchange.at_us, {}, msgspec.json.encode([event]))
