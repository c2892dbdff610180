"""Mailjet's event webhooks: an unsigned array, or one bare object where events are not grouped."""

from __future__ import annotations

from ..events import Event
from .source import Malformed, Request, Source, as_dict, decode_items, decode_json, number_us, text

KINDS = {
    "sent": "delivered",  # the recipient's server has taken it
    "open": "opened",
    "click": "clicked",
    "bounce": "bounced",
    "blocked": "rejected",
    "spam": "complained",
    "unsub": "unsubscribed",
}
REASONS = {
    "user unknown": "bounced",
    "mailbox inactive": "bounced",
    "quota exceeded": "bounced",
    "invalid domain": "bounced",
    "no mail host": "bounced",
    "relay/access denied": "bounced",
    "blacklisted": "blocked",
    "spam reporter": "spam",
    "typofix": "invalid",
    "sender blocked": "blocked",
    "content blocked": "blocked",
    "policy issue": "blocked",
    "preblocked": "blocked",  # on Mailjet's suppression list
}
BLOCKS = ("sender blocked", "content blocked", "policy issue")


class Mailjet(Source):
    label = "Mailjet"
    docs_url = "https://dev.mailjet.com/email/guides/webhooks/"
    shape = "either"

    def items(self, request: Request) -> list:
        body = decode_items(request.body)
        items = body if isinstance(body, list) else [as_dict(body)]
        if items and not any(isinstance(item, dict) and "event" in item for item in items):
            inbound = isinstance(items[0], dict) and "Sender" in items[0]
            raise Malformed(
                "This is inbound mail, not an event" if inbound else "Mailjet's events say what happened in `event`",
                todo="In Mailjet, point the Parse API elsewhere; this URL is for event tracking" if inbound else None,
            )
        return items

    def events(self, item: object, request: Request) -> Event:
        item = as_dict(item)
        name, error = text(item.get("event")), text(item.get("error"))
        if not name:
            raise Malformed("An event of Mailjet says what happened in `event`")
        kind, hard = KINDS.get(name, "unknown"), item.get("hard_bounce") is True
        if error == "greylisted" and not hard and kind in ("bounced", "rejected"):
            kind = "deferred"  # Mailjet tries again
        bounce_class = ""
        if kind == "bounced":
            bounce_class = "block" if error in BLOCKS else "hard" if hard else "soft"
        campaign = text(item.get("customcampaign"))
        number = text(item.get("mj_campaign_id"))
        return Event(
            kind=kind,
            bounce_class=bounce_class,
            reason=REASONS.get(error, "other") if "error" in item else "",
            occurred_at_us=number_us(item.get("time")),
            recipient=text(item.get("email")),
            message_id=text(item.get("MessageID")) or text(item.get("Message_GUID")),
            url=text(item.get("url")),
            user_agent=text(item.get("agent")),
            ip=text(item.get("ip")),
            detail=text(item.get("smtp_reply")) or text(item.get("comment")) or error or text(item.get("source")),
            name=name,
            tags=[campaign] if campaign else [],
            metadata=payload(item),
            campaign=campaign or ("" if number == "0" else number),
        )


def payload(item: dict) -> dict:
    """Return what the sender put into `Payload` as JSON; other text there is his own business."""
    try:
        found = decode_json(text(item.get("Payload")) or "{}")
    except Malformed:
        return {}
    return found if isinstance(found, dict) else {}


PLUGIN = Mailjet
EXAMPLES = Mailjet.EXAMPLES = [
    {
        "title": "A grouped click; the id is longer than a double can hold",
        "body": [
            {
                "event": "click",
                "time": 1764000000,
                "MessageID": 1152921504606846977,
                "email": "ada@example.com",
                "mj_campaign_id": 7,
                "customcampaign": "spring",
                "url": "https://shop.example/spring",
                "ip": "203.0.113.9",
                "agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0",
                "Payload": '{"variant": "B"}',
            }
        ],
        "events": [
            {
                "kind": "clicked",
                "message_id": "1152921504606846977",
                "recipient": "ada@example.com",
                "occurred_at_us": 1764000000000000,
                "campaign": "spring",
                "variant": "B",
                "url": "https://shop.example/spring",
                "tags": ["spring"],
            }
        ],
    },
    {
        "title": "Greylisting is a delay, sent as one bare object",
        "body": {
            "event": "blocked",
            "time": 1764000000,
            "MessageID": 5,
            "email": "ada@example.com",
            "error_related_to": "domain",
            "error": "greylisted",
        },
        "events": [{"kind": "deferred", "reason": "other", "detail": "greylisted", "message_id": "5"}],
    },
    {
        "title": "A soft bounce",
        "body": {
            "event": "bounce",
            "time": 1764000000,
            "MessageID": 6,
            "email": "full@example.com",
            "hard_bounce": False,
            "error": "quota exceeded",
        },
        "events": [{"kind": "bounced", "bounce_class": "soft", "reason": "bounced"}],
    },
]
