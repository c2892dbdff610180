"""Mailtrap's webhooks: a JSON object with a list of events, or JSON Lines; signed with HMAC-SHA256 over the raw body."""

from __future__ import annotations

from ..events import Event
from .source import (
    BodyHmacSource,
    Malformed,
    Request,
    as_dict,
    decode_json,
    number_us,
    sub,
    text,
    texts,
)

KINDS = {
    "delivery": "delivered",
    "open": "opened",
    "click": "clicked",
    "bounce": "bounced",
    "soft bounce": "deferred",  # with a space; Mailtrap goes on trying
    "suspension": "deferred",
    "reject": "rejected",
    "spam": "complained",
    "unsubscribe": "unsubscribed",
}
REASONS = {
    "bounce": "bounced",
    "soft bounce": "other",
    "suspension": "other",
    "reject": "blocked",
    "spam": "spam",
    "unsubscribe": "unsubscribed",
}
BOUNCE_CLASSES = {"bounce": "hard", "soft bounce": "soft"}


class Mailtrap(BodyHmacSource):
    """Custom variables carry campaign, variant and wave; without them the category is the campaign."""

    label = "Mailtrap"
    docs_url = "https://docs.mailtrap.io/email-api-smtp/advanced/webhooks"
    shape = "lines"
    signature_header = "mailtrap-signature"

    def items(self, request: Request) -> list:
        lines = request.body.split(b"\n")
        try:
            body = decode_json(request.body)
        except Malformed:
            if len(lines) < 2:
                raise
            return json_lines(lines)
        if not isinstance(body, dict):
            raise Malformed("Mailtrap sends an object or JSON Lines", got=type(body).__name__)
        if "event" in body:
            return [body]
        events = body.get("events") or []
        if not isinstance(events, list):
            raise Malformed("`events` has to be a list", got=type(events).__name__)
        return events

    def events(self, item: object, request: Request) -> Event | None:
        item = as_dict(decode_json(item) if isinstance(item, str) else item)
        name = text(item.get("event"))
        if name.startswith(("activity_log", "inbound")):
            return None  # not about a sent message
        kind = KINDS.get(name, "unknown")
        category = text(item.get("category"))
        return Event(
            event_id=text(item.get("event_id")),
            kind=kind,
            occurred_at_us=number_us(item.get("timestamp")),
            recipient=text(item.get("email")),
            message_id=text(item.get("message_id")),
            url=text(item.get("url")),
            user_agent=text(item.get("user_agent")),
            ip=text(item.get("ip")),
            bounce_class=BOUNCE_CLASSES.get(name, ""),
            code=text(item.get("response_code")),
            reason=REASONS.get(name, ""),
            detail=text(item.get("response")) or text(item.get("reason")) or text(item.get("bounce_category")),
            name=name,
            tags=texts(category),
            metadata=dict(sub(item, "custom_variables")),
            campaign=category,
        )


def json_lines(lines: list[bytes]) -> list:
    """Return the lines decoded; a line that is no JSON stays text, so that it alone becomes a dead letter."""
    items: list = []
    for line in lines:
        if line.strip():
            try:
                items.append(decode_json(line))
            except Malformed:
                items.append(line.decode("utf-8", "replace"))
    if not any(isinstance(item, dict) for item in items):
        raise Malformed("No line of the body is a JSON object")
    return items


EXAMPLES = Mailtrap.EXAMPLES = [
    {
        "title": "A click, in the list form",
        "body": {
            "events": [
                {
                    "event": "click",
                    "timestamp": 1764000000,
                    "sending_stream": "bulk",
                    "category": "newsletter",
                    "custom_variables": {"campaign": "spring", "variant": "B"},
                    "message_id": "5b1c1f0e-77d2-11f0-8000-0242ac120002",
                    "email": "ada@example.com",
                    "event_id": "5b1c1f0e-77d2-11f0-8000-0242ac120003",
                    "ip": "203.0.113.9",
                    "user_agent": "Mozilla/5.0 (X11; Linux x86_64)",
                    "url": "https://shop.example/spring",
                }
            ]
        },
        "events": [
            {
                "kind": "clicked",
                "recipient": "ada@example.com",
                "event_id": "5b1c1f0e-77d2-11f0-8000-0242ac120003",
                "message_id": "5b1c1f0e-77d2-11f0-8000-0242ac120002",
                "occurred_at_us": 1764000000000000,
                "campaign": "spring",
                "variant": "B",
                "tags": ["newsletter"],
            }
        ],
    },
    {
        "title": "JSON Lines; without custom variables the category is the campaign",
        "body": '{"event":"soft bounce","timestamp":1764000000,"email":"ada@example.com","event_id":"e1","message_id":"m1",'
        '"category":"spring","response":"452 4.2.2 mailbox full","response_code":452}\n'
        '{"event":"delivery","timestamp":1764000060,"email":"ada@example.com","event_id":"e2","message_id":"m1"}\n',
        "events": [
            {"kind": "deferred", "bounce_class": "soft", "code": "452", "detail": "452 4.2.2 mailbox full", "campaign": "spring"},
            {"kind": "delivered", "occurred_at_us": 1764000060000000},
        ],
    },
]
