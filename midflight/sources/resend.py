"""Resend's webhooks: one JSON object, signed by Svix (Standard Webhooks) over id, time and raw body."""

from __future__ import annotations

import base64
import binascii
import hmac
from datetime import UTC, datetime
from hashlib import blake2b

import msgspec

from ..events import Event
from ..kit.errors import ConfigError
from .source import (
    Malformed,
    Refused,
    Request,
    Source,
    as_dict,
    bare_address,
    decode_json,
    header_bytes_max,
    iso_us,
    same,
    sub,
    text,
    texts,
    with_headers,
)

tolerance_s = 300  # Standard Webhooks: five minutes either way
recipients_max = 50  # Resend's own limit of `to`

# Svix sends its own header names, newer set-ups those of Standard Webhooks; one request uses one family.
FAMILIES = ("svix", "webhook")

KINDS = {
    "email.scheduled": "queued",
    "email.sent": "sent",
    "email.delivered": "delivered",
    "email.delivery_delayed": "deferred",
    "email.bounced": "bounced",
    "email.suppressed": "rejected",
    "email.failed": "failed",
    "email.opened": "opened",
    "email.clicked": "clicked",
    "email.complained": "complained",
    "email.received": "inbound",
}
NAMES = {kind: name for name, kind in KINDS.items()}

BOUNCE_CLASSES = {"permanent": "hard", "transient": "soft", "undetermined": "soft"}


class Resend(Source):
    """Secrets are ``whsec_...`` as Resend shows them."""

    label = "Resend"
    docs_url = "https://resend.com/docs/dashboard/webhooks/event-types"
    shape = "object"
    signs = True
    headers_kept = ("svix-id", "webhook-id")

    @classmethod
    def configure(cls, settings: dict, name: str):
        config = super().configure(settings, name)
        for secret in config.secrets:
            if not secret_bytes(secret if isinstance(secret, str) else secret.value):
                raise ConfigError(
                    f"Source `{name}`: a secret is not a Resend signing secret",
                    expected="`whsec_` and base64, as Resend shows it",
                    where=f"$.sources.{name}.secrets",
                )
        return config

    def signature(self, request: Request) -> int:
        family = next((f for f in FAMILIES if request.header(f"{f}-signature")), FAMILIES[0])
        id_, signed_at, given = (request.header(f"{family}-{part}") for part in ("id", "timestamp", "signature"))
        if not (id_ and signed_at and given) or len(id_) + len(signed_at) + len(given) > header_bytes_max:
            raise Refused(f"{self.label}: the id, the timestamp or the signature is missing or too long")
        # A comma and a space appear only where a header was sent twice.
        if not (signed_at.isascii() and signed_at.isdigit() and len(signed_at) <= 12) or ", " in given:
            raise Refused(f"{self.label}: the timestamp or the signature has the wrong form")
        self.fresh(request, int(signed_at) * 1_000_000, tolerance_s)
        # While Resend rotates a secret it sends one signature of each in the same header.
        signatures = [s[3:] for s in given.split(" ") if s.startswith("v1,")]

        def fits(secret: str) -> bool:
            wanted = svix_signature(secret, id_, signed_at, request.body)
            return sum(same(signature, wanted) for signature in signatures) > 0  # all are compared, so that time tells nothing

        return self.match("signature", self.active(request), fits)

    def sign(self, request: Request) -> Request:
        """Sign as Svix does; the event's id is the header ``svix-id`` where it is set already, else made from the body."""
        if not self.config.secrets:
            return super().sign(request)
        id_ = request.header("svix-id") or "msg_" + blake2b(request.body, digest_size=14).hexdigest()
        signed_at = str(request.received_at_us // 1_000_000)
        signature = svix_signature(self.active(request)[0], id_, signed_at, request.body)
        return with_headers(request, {"svix-id": id_, "svix-timestamp": signed_at, "svix-signature": f"v1,{signature}"})

    def events(self, item: object, request: Request) -> list[Event] | None:
        item = as_dict(item)
        name = text(item.get("type"))
        data = sub(item, "data")
        if name.startswith("contact."):
            return contact(item, data, request)
        if name and not name.startswith("email."):
            return None  # domain.* and suppression.* are about the account
        click = sub(data, "click") or sub(data, "open")
        metadata, tags = labels(data)
        event = Event(
            event_id=event_id(request),
            kind=KINDS.get(name, "unknown"),
            occurred_at_us=iso_us(item.get("created_at")),  # data.created_at is when the message was made
            message_id=text(data.get("email_id")),
            url=text(click.get("link")),
            user_agent=text(click.get("userAgent")),
            ip=text(click.get("ipAddress")),
            name=name,
            tags=tags,
            metadata=metadata,
            campaign=text(data.get("broadcast_id")),
        )
        explain(event, data)
        # A received mail is an event of the person who wrote it.
        addresses = texts(data.get("from")) if event.kind == "inbound" else texts(data.get("to"))
        return fan_out(event, [bare_address(a) for a in addresses])

    def write(self, events: list[Event]) -> bytes:
        """Return the body that Resend would send for one event; its id travels in the header ``svix-id`` (see `sign`)."""
        if len(events) != 1:
            raise ValueError(f"Resend sends one event in one request, got {len(events)}")
        event = events[0]
        at = datetime.fromtimestamp(event.occurred_at_us // 1000 / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if event.kind == "unsubscribed":
            tags = {k: v for k in ("campaign", "variant", "wave") if (v := getattr(event, k))}
            data = {"email": event.recipient, "unsubscribed": True, "email_id": event.message_id, "tags": tags}
            return msgspec.json.encode({"type": "contact.updated", "created_at": at, "data": data})
        data = {"created_at": at, "email_id": event.message_id, "from": "Shop <shop@example.com>", "to": [event.recipient]}
        data["tags"] = event.metadata | {k: v for k in ("campaign", "variant", "wave") if (v := getattr(event, k))}
        if event.kind in ("opened", "clicked"):
            reader = {"ipAddress": event.ip, "link": event.url, "timestamp": at, "userAgent": event.user_agent}
            data["click" if event.kind == "clicked" else "open"] = {k: v for k, v in reader.items() if v}
        if event.kind == "bounced":
            type_, sub_type = {"soft": ("Transient", "General"), "block": ("Permanent", "Suppressed")}.get(
                event.bounce_class, ("Permanent", "General")
            )
            data["bounce"] = {"message": event.detail, "type": type_, "subType": sub_type}
        elif event.kind in ("failed", "rejected"):
            data["failed" if event.kind == "failed" else "suppressed"] = {"reason": event.detail}
        return msgspec.json.encode({"type": NAMES.get(event.kind, f"email.{event.kind}"), "created_at": at, "data": data})


def secret_bytes(secret: str) -> bytes:
    """Return the key behind ``whsec_...``; empty where it is none."""
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        return b""


def svix_signature(secret: str, id_: str, signed_at: str, body: bytes) -> str:
    message = f"{id_}.{signed_at}.".encode("utf-8", "replace") + body
    return base64.b64encode(hmac.digest(secret_bytes(secret), message, "sha256")).decode()


def event_id(request: Request) -> str:
    """Return Svix's message id: a retry is signed anew and has a new timestamp, but the same id."""
    return next((found for f in FAMILIES if (found := request.header(f"{f}-id"))), "")


def labels(data: dict) -> tuple[dict, list[str]]:
    """Return metadata and tags: Resend's named tags, and the headers ``X-Metadata`` and ``X-Tags`` that some libraries add."""
    named = data.get("tags")
    if isinstance(named, list):  # as they are sent: [{"name": ..., "value": ...}]
        named = {text(t.get("name")): t.get("value") for t in named if isinstance(t, dict)}
    metadata = dict(named) if isinstance(named, dict) else {}
    tags: list[str] = []
    headers = data.get("headers")
    for header in headers if isinstance(headers, list) else ():
        if not isinstance(header, dict):
            continue
        name = text(header.get("name")).lower()
        if name in ("x-metadata", "x-tags"):
            try:
                value = decode_json(text(header.get("value")))
            except Malformed:
                continue
            if name == "x-tags":
                tags = texts(value)
            elif isinstance(value, dict):
                metadata = value | metadata
    return metadata, tags


def explain(event: Event, data: dict) -> None:
    """Set reason, bounce class and detail of what did not arrive."""
    bounce = sub(data, "bounce")
    said = text(bounce.get("message"))
    if event.kind == "bounced":
        event.detail = said
        event.code = text(bounce.get("diagnosticCode"))
        if "suppressed sending" in said or "suppress" in text(bounce.get("subType")).lower():
            # Never left Resend, and does not count as a bounce there.
            event.bounce_class, event.reason = "block", "blocked"
        else:
            type_ = text(bounce.get("type")).lower()
            event.bounce_class = BOUNCE_CLASSES.get(type_, "soft" if "general bounce" in said or "inbox was full" in said else "hard")
            event.reason = "bounced" if type_ or "bounce message" in said else "other"
    elif event.kind == "rejected":
        suppressed = sub(data, "suppressed")
        event.reason, event.detail = "blocked", text(suppressed.get("message")) or text(suppressed.get("reason"))
    elif event.kind == "failed":
        event.reason, event.detail = "other", text(sub(data, "failed").get("reason"))
    elif event.kind == "complained":
        event.reason = "spam"


def fan_out(event: Event, addresses: list[str]) -> list[Event]:
    """Return one event for each recipient: Resend does not say whom of several it means, so each is marked as ambiguous."""
    if len(addresses) > recipients_max:
        raise Malformed("Too many recipients", expected=f"at most {recipients_max}", got=len(addresses))
    if len(addresses) < 2:
        event.recipient = addresses[0] if addresses else ""
        return [event]
    return [
        msgspec.structs.replace(
            event,
            recipient=address,
            event_id=f"{event.event_id}/{index}" if event.event_id else "",
            tags=list(event.tags),
            metadata=event.metadata | {"ambiguous_recipients": len(addresses)},
        )
        for index, address in enumerate(addresses)
    ]


def contact(item: dict, data: dict, request: Request) -> list[Event]:
    """Turn a contact event into an unsubscribe, or into `unknown`.

    ``unsubscribed: false`` is said on every change of a name too, so it never counts as a new subscription.
    """
    gone = data.get("unsubscribed") is True
    event = Event(
        event_id=event_id(request),
        kind="unsubscribed" if gone else "unknown",
        reason="unsubscribed" if gone else "",
        occurred_at_us=iso_us(item.get("created_at")),
        recipient=text(data.get("email")),
        message_id=text(data.get("email_id")),
        name=text(item.get("type")),
        metadata=labels(data)[0],
    )
    return [event]


EXAMPLES = Resend.EXAMPLES = [
    {
        "title": "A click; tags say campaign and variant",
        "headers": {"svix-id": "msg_2resendexampleclick"},
        "body": {
            "type": "email.clicked",
            "created_at": "2025-11-24T16:00:00.250Z",
            "data": {
                "created_at": "2025-11-24T15:55:00.000Z",
                "email_id": "0a4e2c1e-5b7d-4f57-9c3a-2f1d6c0b7e11",
                "from": "Shop <shop@example.com>",
                "to": ["Ada <ada@example.com>"],
                "subject": "Spring",
                "tags": {"campaign": "spring", "variant": "B"},
                "click": {
                    "ipAddress": "203.0.113.9",
                    "link": "https://shop.example/spring",
                    "timestamp": "2025-11-24T16:00:00.250Z",
                    "userAgent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
                },
            },
        },
        "events": [
            {
                "kind": "clicked",
                "recipient": "ada@example.com",
                "event_id": "msg_2resendexampleclick",
                "message_id": "0a4e2c1e-5b7d-4f57-9c3a-2f1d6c0b7e11",
                "occurred_at_us": 1764000000250000,
                "campaign": "spring",
                "variant": "B",
                "url": "https://shop.example/spring",
            }
        ],
    },
    {
        "title": "A hard bounce",
        "headers": {"svix-id": "msg_2resendexamplebounce"},
        "body": {
            "type": "email.bounced",
            "created_at": "2025-11-24T16:00:00.000Z",
            "data": {
                "email_id": "0a4e2c1e-5b7d-4f57-9c3a-2f1d6c0b7e12",
                "to": ["nobody@example.com"],
                "broadcast_id": "8b146471-e88e-4322-86af-016cd36fd216",
                "bounce": {"type": "Permanent", "subType": "General", "message": "The recipient's mail server sent a hard bounce message"},
            },
        },
        "events": [{"kind": "bounced", "bounce_class": "hard", "reason": "bounced", "campaign": "8b146471-e88e-4322-86af-016cd36fd216"}],
    },
]
