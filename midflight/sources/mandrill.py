"""Mandrill's (Mailchimp Transactional's) webhooks: a form field with a JSON array, signed over the URL as it was registered."""

from __future__ import annotations

import base64
import hmac
import re
from urllib.parse import urlencode

import msgspec

from ..events import Event
from ._form import form_pairs, last
from .source import (
    Malformed,
    Refused,
    Request,
    Response,
    Source,
    SourceConfig,
    as_dict,
    decode_json,
    header_bytes_max,
    number_us,
    same,
    sub,
    text,
    texts,
    with_headers,
)

SIGNATURE = "x-mandrill-signature"
FIELD = "mandrill_events"
# Everybody knows this key: Mandrill signs with it what its "test" button sends, all of it to `example.webhook@mandrillapp.com`.
TEST_KEY = "test-webhook"
TEST_RECIPIENT = re.compile(r"example\.[a-z.]+@mandrillapp\.com", re.IGNORECASE)

KINDS = {
    "send": "sent",
    "delivered": "delivered",
    "deferral": "deferred",
    "hard_bounce": "bounced",
    "soft_bounce": "bounced",
    "reject": "rejected",
    "open": "opened",
    "click": "clicked",
    "spam": "complained",
    "unsub": "unsubscribed",
    "inbound": "inbound",
}


class MandrillConfig(SourceConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``url`` is the URL exactly as Mandrill was given it, with its query; without it the URL that the request came to is used.

    A ``user:password@`` in it may be left out: credentials that the request carries are tried in that place. ``secrets`` are
    webhook keys, which Mandrill issues only after the URL has answered; until one is set, nothing but its empty first post is accepted.
    """

    url: str = ""


class Mandrill(Source):
    label = "Mandrill"
    docs_url = "https://mailchimp.com/developer/transactional/guides/track-respond-activity-webhooks/"
    shape = "form"
    signs = True
    headers_kept = ("content-type",)
    Config = MandrillConfig

    @classmethod
    def configure(cls, settings: dict, name: str) -> MandrillConfig:
        # Without a key and without credentials `verify` lets only the empty creation post pass, so that is a safe set-up.
        config = super().configure(settings | {"unsigned": True}, name)
        return msgspec.structs.replace(config, unsigned=bool(settings.get("unsigned")))

    # -- is it from Mandrill? -----------------------------------------------------------------------------------------

    def verify(self, request: Request) -> int:
        used = super().verify(request)
        config = self.config
        if not (config.secrets or config.basic_auth or config.bearer or config.headers or config.unsigned) and not is_empty(request):
            raise Refused(f"{self.label}: no key is set", todo=f"Set `secrets` of source `{self.name}` to the webhook's key")
        return used

    def signature(self, request: Request) -> int:
        given = request.header(SIGNATURE)
        if not given or len(given) > header_bytes_max:
            raise Refused(f"{self.label}: the header `X-Mandrill-Signature` is missing")
        fields = dict(form_pairs(request))
        urls = self.urls(request)

        def fits(secret: str) -> bool:
            hits = [same(given, digest(secret, url, fields)) for url in urls]
            return any(hits)

        try:
            return self.match("signature", self.active(request), fits)
        except Refused as refused:
            if fits(TEST_KEY) and is_harmless(request):
                return 0
            refused.todo = "Compare `url` with the URL in Mandrill, credentials and query included, and the key with that webhook's"
            raise

    def urls(self, request: Request) -> list[str]:
        """Return the URLs that may have been signed: as configured or as asked for, and with the request's credentials in it."""
        url = self.config.url or request.url
        urls = [url]
        scheme, _, encoded = request.header("authorization").partition(" ")
        if scheme.lower() == "basic" and "@" not in url.partition("://")[2].partition("/")[0]:
            try:
                credentials = base64.b64decode(encoded.strip(), validate=True).decode("utf-8")
            except ValueError:
                return urls
            urls.append(url.replace("://", f"://{credentials}@", 1))
        return urls

    def handshake(self, request: Request) -> Response | None:
        """Answer the empty post that Mandrill makes when a webhook is created, and the posts of its test button."""
        return Response() if is_harmless(request) else None

    def sign(self, request: Request) -> Request:
        request = super().sign(request)
        if not self.config.secrets:
            return request
        signed = digest(self.active(request)[0], self.config.url or request.url, dict(form_pairs(request)))
        return with_headers(request, {SIGNATURE: signed})

    # -- what happened? -----------------------------------------------------------------------------------------------

    def items(self, request: Request) -> list:
        return events_of(request)

    def events(self, item: object, request: Request) -> Event | None:
        item = as_dict(item)
        msg, reject = sub(item, "msg"), sub(item, "reject")
        if is_example(item):
            return None  # anybody can sign these, so they must not count for anything
        # Messages have `event`; changes of the allow and deny lists have `type` and `action`.
        name = text(item.get("event")) or ":".join(filter(None, (text(item.get("type")), text(item.get("action")))))
        if not name:
            raise Malformed("An event of Mandrill says what happened in `event` or `type`")
        kind = KINDS.get(name, "unknown")
        return Event(
            kind=kind,
            bounce_class={"hard_bounce": "hard", "soft_bounce": "soft"}.get(name, ""),
            # `_id` is the message's and the same in all its events.
            message_id=text(item.get("_id")) or text(msg.get("_id")),
            occurred_at_us=number_us(item.get("ts")),
            recipient=text(msg.get("email")) or text(reject.get("email")),
            url=text(item.get("url")),
            user_agent=text(item.get("user_agent")),
            ip=text(item.get("ip")),
            detail=next(
                filter(None, map(text, (msg.get("diag"), reject.get("detail"), reject.get("reason"), msg.get("bounce_description")))), ""
            ),
            name=name,
            tags=texts(msg.get("tags")),
            metadata=sub(msg, "metadata"),
        )


def digest(key: str, url: str, fields: dict[str, str]) -> str:
    signed = url + "".join(name + fields[name] for name in sorted(fields))
    return base64.b64encode(hmac.new(key.encode(), signed.encode("utf-8", "replace"), "sha1").digest()).decode()


def events_of(request: Request) -> list:
    """Return the array in the form field. Raises Malformed."""
    given = last(form_pairs(request), FIELD)
    if not given:
        raise Malformed(f"Mandrill sends a form with the field `{FIELD}`")
    items = decode_json(given)
    if not isinstance(items, list):
        raise Malformed(f"`{FIELD}` has to be an array", got=type(items).__name__)
    return items


def is_empty(request: Request) -> bool:
    try:
        return not events_of(request)
    except Malformed:
        return False


def is_example(item: object) -> bool:
    """Tell whether an event is about the recipient of Mandrill's test button."""
    if not isinstance(item, dict):
        return False
    return any(TEST_RECIPIENT.fullmatch(text(sub(item, part).get("email"))) for part in ("msg", "reject"))


def is_harmless(request: Request) -> bool:
    """Tell whether a request consists of nothing but such events, which `events` leaves out."""
    try:
        return all(is_example(item) for item in events_of(request))
    except Malformed:
        return False


PLUGIN = Mandrill


def form(*events: dict) -> str:
    """Return a body as Mandrill posts it, for the examples below."""
    return urlencode({FIELD: msgspec.json.encode(events).decode()})


EXAMPLES = Mandrill.EXAMPLES = [
    {
        "title": "A click, with metadata and tags",
        "headers": {"content-type": "application/x-www-form-urlencoded"},
        "body": form(
            {
                "event": "click",
                "_id": "abc0000000000000000000000000001",
                "ts": 1764000000,
                "url": "https://shop.example/spring?a=1+2",
                "ip": "203.0.113.9",
                "user_agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0",
                "msg": {"email": "ada@example.com", "tags": ["newsletter"], "metadata": {"campaign": "spring", "variant": "B"}},
            }
        ),
        "events": [
            {
                "kind": "clicked",
                "message_id": "abc0000000000000000000000000001",
                "recipient": "ada@example.com",
                "occurred_at_us": 1764000000000000,
                "url": "https://shop.example/spring?a=1+2",
                "campaign": "spring",
                "variant": "B",
                "tags": ["newsletter"],
            }
        ],
    },
    {
        "title": "A soft bounce, and an address that was put on the deny list",
        "headers": {"content-type": "application/x-www-form-urlencoded"},
        "body": form(
            {
                "event": "soft_bounce",
                "_id": "abc2",
                "ts": 1764000000,
                "msg": {"email": "full@example.com", "diag": "smtp;452 full", "metadata": []},
            },
            {"type": "blacklist", "action": "add", "ts": 1764000001, "reject": {"email": "bob@example.com", "reason": "spam"}},
        ),
        "events": [
            {"kind": "bounced", "bounce_class": "soft", "detail": "smtp;452 full"},
            {"kind": "unknown", "name": "blacklist:add", "recipient": "bob@example.com", "detail": "spam"},
        ],
    },
]
