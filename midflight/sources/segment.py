"""Segment's tracking format at `/v1/track`, `/v1/identify`, `/v1/page` and `/v1/batch`: what people do on a site or in an app."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from hashlib import blake2b
from urllib.parse import urlsplit

import msgspec

from ..events import Event, recipient_key
from .source import (
    Credential,
    Malformed,
    Request,
    Source,
    SourceConfig,
    as_dict,
    bare_address,
    decode_json,
    int_max,
    iso_us,
    money_micros,
    number_us,
    sub,
    text,
    with_headers,
)

CONVERSIONS = ["Order Completed", "Purchase", "Purchase Completed", "Checkout Completed", "Subscription Started", "Converted"]

CALLS = {"identify": "identified", "page": "paged", "screen": "paged", "track": "tracked"}
# The browser library calls by the first letter: /v1/t, /v1/p, /v1/i.
LETTERS = {"t": "track", "i": "identify", "p": "page", "s": "screen", "g": "group", "a": "alias"}

PRICES = ("revenue", "total", "value")


class SegmentConfig(SourceConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``basic_auth`` holds the write keys, as Segment's libraries send them: the user name of basic credentials without a password.

    ``conversions`` are names of tracked events that count as a conversion, in any case of letters.
    """

    conversions: list[str] = msgspec.field(default_factory=lambda: list(CONVERSIONS))


class Keyed(msgspec.Struct):
    writeKey: str = ""  # noqa: N815 (Segment's name)


class Segment(Source):
    label = "Segment (track, identify, page)"
    docs_url = "https://segment.com/docs/connections/sources/catalog/libraries/server/http-api/"
    shape = "object"
    Config = SegmentConfig
    # A site's page knows the campaign from the link that led to it.
    where = {
        "campaign": ("metadata.utm_campaign", "metadata.campaign"),
        "variant": ("metadata.utm_content", "metadata.variant"),
        "wave": ("metadata.utm_wave", "metadata.wave"),
    }

    def __init__(self, config: SegmentConfig, *, name: str) -> None:
        super().__init__(config, name=name)
        self._conversions = {word.casefold() for word in config.conversions}

    @classmethod
    def configure(cls, settings: dict, name: str) -> SegmentConfig:
        config = super().configure(settings, name)
        return msgspec.structs.replace(config, basic_auth=[with_colon(key) for key in config.basic_auth])

    def verify(self, request: Request) -> int:
        if self.config.basic_auth and not request.header("authorization"):
            # A beacon from a page cannot set headers, so its write key stands in the body.
            try:
                key = msgspec.json.decode(request.body, type=Keyed).writeKey
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                key = ""
            if key:
                token = base64.b64encode(f"{key}:".encode("utf-8", "replace")).decode()
                request = with_headers(request, {"authorization": f"Basic {token}"})
        return super().verify(request)

    def items(self, request: Request) -> list:
        body = as_dict(decode_json(request.body))
        if "batch" not in body:
            return [body]
        batch = body["batch"]
        if not isinstance(batch, list):
            raise Malformed("`batch` has to be a list", got=type(batch).__name__)
        # Context and time of sending stand once for all calls of a batch.
        shared = {key: body[key] for key in ("context", "sentAt") if body.get(key)}
        return [merged(shared, call) if isinstance(call, dict) else call for call in batch]

    def events(self, item: object, request: Request) -> Event | None:
        item = as_dict(item)
        call = text(item.get("type")) or call_of(request.url)
        properties, context = sub(item, "properties"), sub(item, "context")
        traits = sub(item, "traits")
        page = sub(context, "page")
        event = Event(
            # Without an id of the caller's a repetition has to be known by what it says, whenever it was sent.
            event_id=text(item.get("messageId")) or call_id({k: v for k, v in item.items() if k != "sentAt"}),
            kind=CALLS.get(call, "unknown"),
            occurred_at_us=time_of(item, request.received_at_us),
            recipient=address_of(item, traits, context, properties),
            user_id=text(item.get("userId")),
            url=text(properties.get("url")) or text(page.get("url")) if call in ("page", "screen") else text(page.get("url")),
            user_agent=text(context.get("userAgent")),
            ip=text(context.get("ip")),
            name=text(item.get("event")) if call == "track" else text(item.get("name")) or call,
            metadata=properties | labels(item, context),
            traits=traits if call == "identify" else {},
        )
        if call == "track":
            event.order_id = text(properties.get("order_id")) or text(properties.get("orderId"))
            event.currency = text(properties.get("currency")).upper()
            event.value_micros = next((m for name in PRICES if (m := money_micros(properties.get(name)))), 0)
            if not event.name:
                event.kind = "unknown"
            elif event.name.casefold() in self._conversions:
                event.kind = "converted"
        return event

    def write(self, events: list[Event]) -> bytes:
        """Return a batch that says these events: for the sandbox and the tests."""
        return msgspec.json.encode({"batch": [self._call(event) for event in events]})

    def _call(self, event: Event) -> dict:
        call = {"converted": "track", "identified": "identify", "paged": "page"}.get(event.kind, "track")
        utm = {"name": event.campaign, "content": event.variant, "wave": event.wave}
        context = {
            "campaign": {name: value for name, value in utm.items() if value},
            "page": {"url": event.url},
            "userAgent": event.user_agent,
            "ip": event.ip,
        }
        at = datetime.fromtimestamp(event.occurred_at_us // 1000 / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        item: dict = {"type": call, "messageId": event.event_id, "timestamp": at, "context": {k: v for k, v in context.items() if v}}
        if event.user_id:
            item["userId"] = event.user_id
        properties = {k: v for k, v in event.metadata.items() if not k.startswith("utm_")}
        if call == "identify":
            item["traits"] = event.traits | ({"email": event.recipient} if event.recipient else {})
            return item
        if event.recipient:
            context["traits"] = {"email": event.recipient}
            item["context"]["traits"] = context["traits"]
        if call == "track":
            known = event.name.casefold() in self._conversions
            item["event"] = event.name if known == (event.kind == "converted") and event.name else self._name(event.kind)
            money = {"revenue": event.value_micros / 1e6, "currency": event.currency, "order_id": event.order_id}
            properties |= {name: value for name, value in money.items() if value}
        else:
            item["name"] = event.name
        return item | {"properties": properties}

    def _name(self, kind: str) -> str:
        return (self.config.conversions or CONVERSIONS)[0] if kind == "converted" else kind


def with_colon(key: str | Credential) -> str | Credential:
    """Return the credentials of a write key: a bare one is a user name without a password."""
    if isinstance(key, str):
        return key if ":" in key else key + ":"
    return key if ":" in key.value else msgspec.structs.replace(key, value=key.value + ":")


def merged(shared: dict, call: dict) -> dict:
    if "context" in shared and isinstance(call.get("context"), dict) and isinstance(shared["context"], dict):
        return shared | call | {"context": shared["context"] | call["context"]}
    return shared | call


def call_of(url: str) -> str:
    """Return the call that a URL's last part names, or ``""``."""
    last = urlsplit(url).path.rstrip("/").rpartition("/")[2]
    call = LETTERS.get(last, last)
    return call if call in LETTERS.values() else ""


def call_id(item: dict) -> str:
    return "h:" + blake2b(msgspec.json.encode(item, order="deterministic"), digest_size=16).hexdigest()


def time_of(item: dict, received_at_us: int) -> int:
    """Return when it happened, corrected as Segment does for the sender's wrong clock: receipt - (sentAt - timestamp).

    A call that was forwarded carries `originalTimestamp` beside a `timestamp` that is corrected already.
    """
    stated = iso_us(item.get("timestamp")) or number_us(item.get("timestamp"))
    original = iso_us(item.get("originalTimestamp")) or number_us(item.get("originalTimestamp"))
    if stated and original:
        return stated
    at, sent = stated or original, iso_us(item.get("sentAt")) or number_us(item.get("sentAt"))
    if not at or not sent or not received_at_us:
        return at
    corrected = received_at_us - (sent - at)
    return corrected if 0 < corrected <= int_max else at


def address_of(item: dict, traits: dict, context: dict, properties: dict) -> str:
    """Return the first of the usual places that holds an address."""
    for found in (traits.get("email"), sub(context, "traits").get("email"), properties.get("email"), item.get("userId")):
        address = text(found)[:1000].strip()
        if recipient_key(address):
            return bare_address(address) if "<" in address else address
    return ""


def labels(item: dict, context: dict) -> dict:
    """Return what links said (`utm_campaign`, `utm_content` ...) and the browser's anonymous id, as metadata."""
    campaign = sub(context, "campaign")
    found = {f"utm_{'campaign' if name == 'name' else name}": text(value) for name, value in campaign.items() if text(value)}
    anonymous = text(item.get("anonymousId"))
    return found | ({"anonymous_id": anonymous} if anonymous else {})


EXAMPLES = Segment.EXAMPLES = [
    {
        "title": "An order is a conversion",
        "url": "https://events.example/v1/track",
        "settings": {"basic_auth": ["a-write-key:"]},
        "body": {
            "userId": "42",
            "event": "Order Completed",
            "messageId": "ajs-1f2e3d",
            "timestamp": "2025-11-24T16:00:00.250Z",
            "properties": {"order_id": "1001", "revenue": 49.99, "currency": "eur"},
            "context": {
                "traits": {"email": "ada@example.com"},
                "campaign": {"name": "spring", "content": "B", "source": "newsletter"},
                "page": {"url": "https://shop.example/thanks"},
            },
        },
        "events": [
            {
                "kind": "converted",
                "recipient": "ada@example.com",
                "user_id": "42",
                "event_id": "ajs-1f2e3d",
                "occurred_at_us": 1764000000250000,
                "value_micros": 49990000,
                "currency": "EUR",
                "order_id": "1001",
                "campaign": "spring",
                "variant": "B",
                "name": "Order Completed",
                "url": "https://shop.example/thanks",
            }
        ],
    },
    {
        "title": "A batch; the sender's clock is an hour behind",
        "url": "https://events.example/v1/batch",
        "settings": {"basic_auth": ["a-write-key:"], "conversions": ["Signed Up"]},
        "body": {
            "batch": [
                {"type": "identify", "userId": "42", "messageId": "m1", "traits": {"email": "ada@example.com", "plan": "pro"}},
                {"type": "page", "userId": "42", "messageId": "m2", "name": "Home", "properties": {"url": "https://shop.example/"}},
                {"type": "track", "userId": "ada@example.com", "messageId": "m3", "event": "signed up"},
                {"type": "track", "userId": "42", "messageId": "m4", "event": "Product Viewed", "properties": {"sku": "A1"}},
            ],
            "context": {"library": {"name": "analytics-python", "version": "2.3.4"}},
        },
        "events": [
            {"kind": "identified", "recipient": "ada@example.com", "traits": {"email": "ada@example.com", "plan": "pro"}},
            {"kind": "paged", "name": "Home", "url": "https://shop.example/"},
            {"kind": "converted", "recipient": "ada@example.com", "name": "signed up"},
            {"kind": "tracked", "name": "Product Viewed", "metadata": {"sku": "A1"}},
        ],
    },
]
