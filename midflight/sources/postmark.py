"""Postmark's webhooks: one unsigned JSON object per event, told apart by `RecordType`."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from ..events import Event
from ..kit.errors import MidflightError
from .source import Malformed, Request, Source, as_dict, decode_json, iso_us, sub, text, texts

RECORDS = {
    "Delivery": "delivered",
    "Open": "opened",
    "Click": "clicked",
    "Bounce": "bounced",
    "SpamComplaint": "complained",
    "SubscriptionChange": "unsubscribed",
}
# `Type` of a bounce, and `SuppressionReason` of a subscription change: kind, bounce class, reason. `TypeCode` is not used:
# Postmark's own examples give one code to two types.
TYPES = {
    "HardBounce": ("bounced", "hard", "bounced"),
    "SoftBounce": ("bounced", "soft", "bounced"),
    "VirusNotification": ("bounced", "block", "other"),
    "Transient": ("deferred", "", ""),
    "DnsError": ("deferred", "", ""),
    "OpenRelayTest": ("deferred", "", ""),
    "Blocked": ("rejected", "", "blocked"),
    "DMARCPolicy": ("rejected", "", "blocked"),
    "ManuallyDeactivated": ("rejected", "", "blocked"),
    "Unconfirmed": ("rejected", "", ""),
    "BadEmailAddress": ("rejected", "", "invalid"),
    "AutoResponder": ("autoresponded", "", ""),
    "AddressChange": ("autoresponded", "", ""),
    "ChallengeVerification": ("autoresponded", "", ""),
    "SpamNotification": ("complained", "", "spam"),
    "SpamComplaint": ("complained", "", "spam"),
    "Unsubscribe": ("unsubscribed", "", "unsubscribed"),
    "ManualSuppression": ("unsubscribed", "", "unsubscribed"),
    "Subscribe": ("subscribed", "", ""),
    "SMTPApiError": ("failed", "", ""),
    "TemplateRenderingFailed": ("failed", "", ""),
    "InboundError": ("unknown", "", ""),  # about mail that came in, not about ours
    "Unknown": ("unknown", "", ""),
}
TIMES = ("DeliveredAt", "BouncedAt", "ReceivedAt", "ChangedAt")


class Postmark(Source):
    label = "Postmark"
    docs_url = "https://postmarkapp.com/developer/webhooks/webhooks-overview"
    shape = "object"
    # A message has exactly one tag, which most senders use as the campaign.
    where = {"campaign": ("metadata.campaign", "tag.campaign", "tags.0")}

    def items(self, request: Request) -> list:
        item = as_dict(decode_json(request.body))
        if item.get("RecordType") == "Inbound" or ("RecordType" not in item and "FromFull" in item):
            raise Malformed(
                "This is inbound mail, not an event",
                todo="In Postmark, set this URL on a transactional or broadcast stream; inbound streams belong elsewhere",
            )
        if not text(item.get("RecordType")):
            raise Malformed("Postmark sends an object with `RecordType`", got=", ".join(sorted(item))[:100])
        return [item]

    def events(self, item: object, request: Request) -> Event:
        item = as_dict(item)
        record, kind_of_bounce = text(item.get("RecordType")), text(item.get("Type"))
        kind, bounce_class, reason = RECORDS.get(record, "unknown"), "", ""
        if record == "Bounce":
            # A type that Postmark invents tomorrow is a bounce that condemns no address.
            kind, bounce_class, reason = TYPES.get(kind_of_bounce, ("bounced", "soft", ""))
        elif record == "SpamComplaint":
            kind, bounce_class, reason = TYPES.get(kind_of_bounce, TYPES["SpamComplaint"])
        elif record == "SubscriptionChange":
            kind, bounce_class, reason = changed(item)
        return Event(
            event_id=text(item.get("ID")),  # bounces and complaints only
            kind=kind,
            bounce_class=bounce_class,
            reason=reason,
            occurred_at_us=next((iso_us(item[name]) for name in TIMES if name in item), 0),
            recipient=text(item.get("Email")) or text(item.get("Recipient")),
            message_id=text(item.get("MessageID")),
            url=text(item.get("OriginalLink")),
            user_agent=text(item.get("UserAgent")),
            ip=text(sub(item, "Geo").get("IP")),
            detail=text(item.get("Details")) or text(item.get("Description")),
            name=kind_of_bounce or record,
            tags=texts(item.get("Tag")),
            metadata=sub(item, "Metadata"),
        )

    def write(self, events: list[Event]) -> bytes:
        """Return the body that Postmark would send for one event: for the sandbox and the tests."""
        (event,) = events
        record, kind_of_bounce = words(event)
        if record is None:
            raise MidflightError(f"{self.label} has no event for `{event.kind}`")
        # Seven digits, as Postmark writes them; strict parsers trip over them.
        at = f"{datetime.fromtimestamp(event.occurred_at_us // 1_000_000, UTC):%Y-%m-%dT%H:%M:%S}.{event.occurred_at_us % 1_000_000:06d}0Z"
        item = {
            "RecordType": record,
            "MessageID": event.message_id,
            "MessageStream": "broadcast",
            "ServerID": 1,
            "Tag": event.tags[0] if event.tags else "",
            "Metadata": event.metadata | {n: getattr(event, n) for n in ("campaign", "variant", "wave") if getattr(event, n)},
            "Email" if record in ("Bounce", "SpamComplaint") else "Recipient": event.recipient,
        }
        item[
            {"Delivery": "DeliveredAt", "SubscriptionChange": "ChangedAt", "Open": "ReceivedAt", "Click": "ReceivedAt"}.get(
                record, "BouncedAt"
            )
        ] = at
        if record in ("Bounce", "SpamComplaint"):
            item |= {"Type": kind_of_bounce, "Details": event.detail, "Description": "", "Name": kind_of_bounce}
            if event.event_id.isdigit():
                item["ID"] = int(event.event_id)
        elif record in ("Open", "Click"):
            item |= {"UserAgent": event.user_agent, "Geo": {"IP": event.ip} if event.ip else {}, "OriginalLink": event.url}
        elif record == "SubscriptionChange":
            item |= {"SuppressSending": event.kind == "unsubscribed", "SuppressionReason": kind_of_bounce, "Origin": "Recipient"}
        else:
            item["Details"] = event.detail
        return msgspec.json.encode(item)


def changed(item: dict) -> tuple[str, str, str]:
    """Read a subscription change: Postmark stops sending after bounces, complaints and unsubscribes alike, and says which."""
    if not item.get("SuppressSending", True):
        return TYPES["Subscribe"]
    return TYPES.get(text(item.get("SuppressionReason")), ("unsubscribed", "", ""))


def words(event: Event) -> tuple[str | None, str | None]:
    """Return Postmark's record type and type for an event of ours; None where it has none."""
    if event.kind == "bounced":
        return "Bounce", {"soft": "SoftBounce", "block": "VirusNotification"}.get(event.bounce_class, "HardBounce")
    if event.kind == "rejected":
        return "Bounce", "BadEmailAddress" if event.reason == "invalid" else "ManuallyDeactivated"
    simple = {
        "delivered": ("Delivery", None),
        "opened": ("Open", None),
        "clicked": ("Click", None),
        "deferred": ("Bounce", "Transient"),
        "autoresponded": ("Bounce", "AutoResponder"),
        "failed": ("Bounce", "SMTPApiError"),
        "complained": ("SpamComplaint", "SpamComplaint"),
        "unsubscribed": ("SubscriptionChange", "ManualSuppression"),
        "subscribed": ("SubscriptionChange", None),
    }
    return simple.get(event.kind, (None, None))


PLUGIN = Postmark
EXAMPLES = Postmark.EXAMPLES = [
    {
        "title": "A click, with metadata",
        "body": {
            "RecordType": "Click",
            "MessageID": "00000000-0000-4000-8000-000000000001",
            "MessageStream": "broadcast",
            "Recipient": "ada@example.com",
            "ReceivedAt": "2025-11-24T16:00:00.1234567Z",
            "OriginalLink": "https://shop.example/spring",
            "ClickLocation": "HTML",
            "UserAgent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0",
            "Geo": {"IP": "203.0.113.9"},
            "Tag": "spring",
            "Metadata": {"variant": "B"},
        },
        "events": [
            {
                "kind": "clicked",
                "recipient": "ada@example.com",
                "message_id": "00000000-0000-4000-8000-000000000001",
                "occurred_at_us": 1764000000123456,
                "url": "https://shop.example/spring",
                "ip": "203.0.113.9",
                "campaign": "spring",
                "variant": "B",
                "tags": ["spring"],
            }
        ],
    },
    {
        "title": "A hard bounce has an id of its own",
        "body": {
            "RecordType": "Bounce",
            "ID": 4323372036854775807,
            "Type": "HardBounce",
            "TypeCode": 1,
            "MessageID": "00000000-0000-4000-8000-000000000002",
            "Email": "gone@example.com",
            "BouncedAt": "2025-11-24T12:00:00-04:00",
            "Details": "smtp;550 5.1.1 no such user",
            "Tag": None,
        },
        "events": [
            {
                "kind": "bounced",
                "bounce_class": "hard",
                "reason": "bounced",
                "event_id": "4323372036854775807",
                "occurred_at_us": 1764000000000000,
                "detail": "smtp;550 5.1.1 no such user",
            }
        ],
    },
    {
        "title": "A recipient unsubscribes",
        "body": {
            "RecordType": "SubscriptionChange",
            "MessageID": "00000000-0000-4000-8000-000000000003",
            "Recipient": "ada@example.com",
            "ChangedAt": "2025-11-24T16:00:00Z",
            "Origin": "Recipient",
            "SuppressSending": True,
            "SuppressionReason": "ManualSuppression",
        },
        "events": [{"kind": "unsubscribed", "reason": "unsubscribed", "recipient": "ada@example.com"}],
    },
]
