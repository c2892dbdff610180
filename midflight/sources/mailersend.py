"""MailerSend's webhooks: one JSON object, signed with HMAC-SHA256 over the raw body."""

from __future__ import annotations

from ..events import Event
from .source import BodyHmacSource, Request, as_dict, iso_us, sub, text, texts

# `opened_unique` and `clicked_unique` are missing on purpose: MailerSend posts them as twins of the first `opened` and
# `clicked` of a message, with ids of their own, so counting both would count every first open twice. They stay `unknown`;
# which open is the first is found out from the plain events.
KINDS = {
    "sent": "sent",
    "delivered": "delivered",
    "soft_bounced": "bounced",
    "hard_bounced": "bounced",
    "opened": "opened",
    "clicked": "clicked",
    "unsubscribed": "unsubscribed",
    "spam_complaint": "complained",
}
BOUNCE_CLASSES = {"soft_bounced": "soft", "hard_bounced": "hard"}
REASONS = {"bounced": "bounced", "complained": "spam", "unsubscribed": "unsubscribed"}


class MailerSend(BodyHmacSource):
    """Tags are the only labels: ``campaign:spring``, or the first tag without a colon is the campaign."""

    label = "MailerSend"
    docs_url = "https://developers.mailersend.com/api/v1/webhooks.html"
    shape = "object"
    signature_header = "signature"

    def events(self, item: object, request: Request) -> Event | None:
        item = as_dict(item)
        data = sub(item, "data")
        name = text(item.get("type")) or text(data.get("type"))
        if "." in name and not name.startswith("activity."):
            return None  # webhook.test, sender_identity.*, maintenance.*, inbound.*: nothing about a sent message
        word = name.removeprefix("activity.")
        kind = KINDS.get(word, "unknown")
        email, morph = sub(data, "email"), sub(data, "morph")  # either may be null
        tags = texts(email.get("tags"))
        return Event(
            event_id=text(data.get("id")),
            kind=kind,
            occurred_at_us=iso_us(data.get("created_at")),  # the outer created_at is when the webhook was posted
            recipient=text(sub(email, "recipient").get("email")),
            message_id=text(sub(email, "message").get("id")),
            url=text(morph.get("url")),
            ip=text(morph.get("ip")),
            bounce_class=BOUNCE_CLASSES.get(word, ""),
            reason=REASONS.get(kind, ""),
            detail=text(morph.get("readable_reason")) or text(morph.get("reason")),
            name=name,
            tags=tags,
            campaign=next((tag for tag in tags if ":" not in tag and "=" not in tag), ""),
        )


EXAMPLES = MailerSend.EXAMPLES = [
    {
        "title": "A click; tags say campaign and variant",
        "body": {
            "type": "activity.clicked",
            "created_at": "2025-11-24T16:00:02.101000Z",
            "data": {
                "object": "activity",
                "id": "69247f00a1b2c3d4e5f60001",
                "type": "clicked",
                "created_at": "2025-11-24T16:00:00.250000Z",
                "email": {
                    "tags": ["campaign:spring", "variant:B"],
                    "message": {"id": "69247e00a1b2c3d4e5f60002"},
                    "recipient": {"email": "ada@example.com"},
                },
                "morph": {"object": "click", "ip": "203.0.113.9", "url": "https://shop.example/spring"},
            },
        },
        "events": [
            {
                "kind": "clicked",
                "recipient": "ada@example.com",
                "event_id": "69247f00a1b2c3d4e5f60001",
                "message_id": "69247e00a1b2c3d4e5f60002",
                "occurred_at_us": 1764000000250000,
                "campaign": "spring",
                "variant": "B",
                "url": "https://shop.example/spring",
                "ip": "203.0.113.9",
            }
        ],
    },
    {
        "title": "The twin of a first open does not count as an open",
        "body": {
            "type": "activity.opened_unique",
            "data": {
                "id": "69247f00a1b2c3d4e5f60003",
                "type": "opened_unique",
                "created_at": "2025-11-24T16:00:00.000000Z",
                "email": {"tags": None, "message": {"id": "69247e00a1b2c3d4e5f60002"}, "recipient": {"email": "ada@example.com"}},
                "morph": None,
            },
        },
        "events": [{"kind": "unknown", "name": "activity.opened_unique", "recipient": "ada@example.com"}],
    },
]
