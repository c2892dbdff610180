"""Customer.io's reporting webhooks: one JSON object, signed with HMAC-SHA256 over version, time and raw body."""

from __future__ import annotations

import hmac

from ..events import Event
from .source import Refused, Request, Source, as_dict, header_bytes_max, number_us, same, sub, text, with_headers

SIGNATURE = "x-cio-signature"
TIMESTAMP = "x-cio-timestamp"

KINDS = {
    ("email", "attempted"): "deferred",
    ("email", "sent"): "sent",
    ("email", "delivered"): "delivered",
    ("email", "opened"): "opened",
    ("email", "clicked"): "clicked",
    ("email", "converted"): "converted",
    ("email", "unsubscribed"): "unsubscribed",
    ("email", "bounced"): "bounced",
    ("email", "dropped"): "rejected",
    ("email", "undeliverable"): "rejected",  # held back by a message limit
    ("email", "spammed"): "complained",
    ("email", "failed"): "failed",
    ("customer", "subscribed"): "subscribed",
    ("customer", "unsubscribed"): "unsubscribed",
}
REASONS = {
    "bounced": "bounced",
    "dropped": "blocked",
    "undeliverable": "other",
    "failed": "other",
    "spammed": "spam",
    "unsubscribed": "unsubscribed",
}

# Each kind of sending has ids of its own, so that campaign 5 and newsletter 5 have to stay apart.
SENDINGS = {"campaign_id": "", "broadcast_id": "broadcast:", "newsletter_id": "newsletter:", "transactional_message_id": "transactional:"}

# What an open or a click was caused by: the flag, and who that means. The first that is set wins.
AGENTS = (("machine", "machine"), ("prefetched", "machine"), ("proxied", "proxied"), ("synthetic", "human"))


class Customerio(Source):
    """Push, SMS and the other channels stay `unknown`: their opens are no opens of an email."""

    label = "Customer.io"
    docs_url = "https://docs.customer.io/integrations/data-out/connections/webhooks/"
    shape = "object"
    signs = True

    def signature(self, request: Request) -> int:
        # No window of time: Customer.io repeats for seven days, holds everything else back meanwhile, and does not say that
        # it signs a repetition anew. A replay has the same event id and is dropped as a duplicate.
        signed_at, given = request.header(TIMESTAMP), request.header(SIGNATURE)
        if not signed_at or not given or len(signed_at) + len(given) > header_bytes_max:
            raise Refused(f"{self.label}: the signature or its timestamp is missing or too long")
        if not (signed_at.isascii() and signed_at.isdigit()):
            raise Refused(f"{self.label}: the timestamp is no number")
        message = f"v0:{signed_at}:".encode() + request.body
        return self.match(
            "signature", self.active(request), lambda secret: same(given, hmac.digest(secret.encode(), message, "sha256").hex())
        )

    def sign(self, request: Request) -> Request:
        if not self.config.secrets:
            return super().sign(request)
        signed_at = str(request.received_at_us // 1_000_000)
        message = f"v0:{signed_at}:".encode() + request.body
        signature = hmac.digest(self.active(request)[0].encode(), message, "sha256").hex()
        return with_headers(request, {TIMESTAMP: signed_at, SIGNATURE: signature})

    def events(self, item: object, request: Request) -> Event | None:
        item = as_dict(item)
        data = sub(item, "data")
        channel, metric = text(item.get("object_type")), text(item.get("metric"))
        if not metric:  # older webhooks: "event_type": "email_opened"
            channel, _, metric = text(item.get("event_type")).partition("_")
        kind = KINDS.get((channel, metric), "unknown")
        who = sub(data, "identifiers")
        event = Event(
            event_id=text(item.get("event_id")),
            kind=kind,
            occurred_at_us=number_us(item.get("timestamp")),
            recipient=text(data.get("recipient")) if channel == "email" else "",
            user_id=text(who.get("id")) or text(data.get("customer_id")),
            message_id=text(data.get("delivery_id")),
            url=text(data.get("href")),
            bounce_class="hard" if kind == "bounced" else "",
            reason=REASONS.get(metric, "") if kind != "unknown" else "",
            detail=text(data.get("failure_message")),
            name=f"{channel}.{metric}".strip("."),
            metadata={
                key: value for key, value in data.items() if key not in ("identifiers", "recipient", "href", "failure_message", "body")
            },
            campaign=sending(data),
            # `parent_action_id` is there only where the action is one arm of an A/B test.
            variant=text(data.get("content_id")) or (text(data.get("action_id")) if data.get("parent_action_id") else ""),
        )
        event.recipient = event.recipient or text(who.get("email")) or text(data.get("email_address"))
        if kind in ("opened", "clicked"):
            for flag, agent in AGENTS:
                if data.get(flag) in (True, "true"):
                    event.agent, event.agent_reason = agent, f"vendor flag: {flag}"
                    break
        return event


def sending(data: dict) -> str:
    return next((prefix + found for key, prefix in SENDINGS.items() if (found := text(data.get(key)))), "")


EXAMPLES = Customerio.EXAMPLES = [
    {
        "title": "A click in a newsletter with an A/B test",
        "body": {
            "event_id": "01KATX8Q2Y0C3M5V7N9P1R3T5W",
            "object_type": "email",
            "metric": "clicked",
            "timestamp": 1764000000,
            "data": {
                "customer_id": "42",
                "delivery_id": "RPILAgUBcRhIBqSfeiIwdIYJKxTY",
                "newsletter_id": 5,
                "content_id": 17,
                "recipient": "ada@example.com",
                "subject": "Spring",
                "href": "https://shop.example/spring",
                "link_id": 1,
                "identifiers": {"id": "42", "email": "ada@example.com", "cio_id": "d9c106000001"},
            },
        },
        "events": [
            {
                "kind": "clicked",
                "recipient": "ada@example.com",
                "user_id": "42",
                "event_id": "01KATX8Q2Y0C3M5V7N9P1R3T5W",
                "message_id": "RPILAgUBcRhIBqSfeiIwdIYJKxTY",
                "occurred_at_us": 1764000000000000,
                "campaign": "newsletter:5",
                "variant": "17",
                "url": "https://shop.example/spring",
                "agent": "",
            }
        ],
    },
    {
        "title": "An open that a mail program fetched ahead is a machine's",
        "body": {
            "event_id": "01KATX8Q2Y0C3M5V7N9P1R3T5X",
            "object_type": "email",
            "metric": "opened",
            "timestamp": 1764000000,
            "data": {
                "campaign_id": 9,
                "action_id": 96,
                "parent_action_id": 95,
                "delivery_id": "RPILAgUBcRhIBqSfeiIwdIYJKxTZ",
                "recipient": "ada@example.com",
                "proxied": True,
                "prefetched": True,
                "identifiers": {"id": "42"},
            },
        },
        "events": [
            {"kind": "opened", "agent": "machine", "agent_reason": "vendor flag: prefetched", "campaign": "9", "variant": "96"},
        ],
    },
]
