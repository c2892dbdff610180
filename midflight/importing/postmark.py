"""Postmark: the activity as CSV, answers of the Messages, Opens, Clicks and Bounces APIs, and kept webhook bodies."""

from __future__ import annotations

import re

from ..events import Event
from ..sources.source import Malformed, as_dict, sub, text
from .export import Export, address, named, plain, time_us

# What the activity page and the Messages API call it: the webhook's record type, and the name of its time.
WORDS = {
    "delivered": ("Delivery", "DeliveredAt"),
    "delivery": ("Delivery", "DeliveredAt"),
    "opened": ("Open", "ReceivedAt"),
    "open": ("Open", "ReceivedAt"),
    "linkclicked": ("Click", "ReceivedAt"),
    "clicked": ("Click", "ReceivedAt"),
    "click": ("Click", "ReceivedAt"),
    "bounced": ("Bounce", "BouncedAt"),
    "bounce": ("Bounce", "BouncedAt"),
    "transient": ("Bounce", "BouncedAt"),
    "hardbounce": ("Bounce", "BouncedAt"),
    "softbounce": ("Bounce", "BouncedAt"),
    "spamcomplaint": ("SpamComplaint", "BouncedAt"),
    "subscriptionchanged": ("SubscriptionChange", "ChangedAt"),
    "subscriptionchange": ("SubscriptionChange", "ChangedAt"),
    "unsubscribed": ("SubscriptionChange", "ChangedAt"),
}
SENT = ("sent", "processed", "queued")
BOUNCES = {"transient": "Transient", "hardbounce": "HardBounce", "softbounce": "SoftBounce", "spamcomplaint": "SpamComplaint"}
TIMES = ("receivedat", "date", "time", "timestamp", "deliveredat", "bouncedat", "changedat", "occurredat")
RECIPIENTS = ("recipient", "email", "to")
KINDS = ("recordtype", "event", "eventtype", "type", "status")


class Postmark(Export):
    label = "Postmark"
    source = "postmark"

    @classmethod
    def fits_columns(cls, columns: set[str]) -> bool:
        return "messageid" in columns and all(columns & set(names) for names in (TIMES, RECIPIENTS, KINDS))

    @classmethod
    def fits_object(cls, item: dict) -> bool:
        return "RecordType" in item or ("MessageID" in item and bool({"MessageEvents", "ReceivedAt", "BouncedAt"} & item.keys()))

    def row(self, row: dict[str, str]) -> list:
        row = plain(row)
        said = next((value for value in (named(row, name) for name in KINDS) if value), "")
        kind = re.sub("[^a-z]", "", said.lower())
        about = {
            "Recipient": address(named(row, *RECIPIENTS)),
            "MessageID": named(row, "messageid"),
            "Tag": named(row, "tag"),
            "Metadata": {name.removeprefix("metadata."): value for name, value in row.items() if name.startswith("metadata.") and value},
        }
        at = named(row, *TIMES)
        more = {
            "ID": named(row, "bounceid", "id"),
            "Details": named(row, "details", "description"),
            "OriginalLink": named(row, "originallink", "link", "url"),
            "UserAgent": named(row, "useragent"),
            "Type": named(row, "bouncetype") or (named(row, "type") if kind == "bounce" else ""),
        }
        return [event_of(kind, said, at, about, {name: value for name, value in more.items() if value})]

    def object(self, item: dict) -> list:
        if "RecordType" in item:
            return [item]
        about = {name: item[name] for name in ("MessageID", "Tag", "Metadata", "Recipient") if name in item}
        if isinstance(item.get("MessageEvents"), list):
            events = [as_dict(event) for event in item["MessageEvents"]]
            return [*sent(item), *(message_event(event, about) for event in events)]
        if "BouncedAt" in item:
            return [item | {"RecordType": "Bounce"}]
        if "OriginalLink" in item:
            return [item | {"RecordType": "Click"}]
        if "FirstOpen" in item or "ReadSeconds" in item:
            return [item | {"RecordType": "Open"}]
        return sent(item)


def message_event(event: dict, about: dict) -> dict | Event:
    """Read one entry of a message's `MessageEvents`."""
    said, details = text(event.get("Type")), sub(event, "Details")
    more = {
        "ID": text(details.get("BounceID")),
        "Details": text(details.get("DeliveryMessage")) or text(details.get("Summary")),
        "OriginalLink": text(details.get("Link")),
        "SuppressSending": text(details.get("SuppressSending")).lower() != "false",
    }
    about = about | {"Recipient": text(event.get("Recipient"))}
    return event_of(re.sub("[^a-z]", "", said.lower()), said, text(event.get("ReceivedAt")), about, {k: v for k, v in more.items() if v})


def event_of(kind: str, said: str, at: str, about: dict, more: dict) -> dict | Event:
    """Return what the webhook would have said. Raises Malformed."""
    at_us = time_us(at)
    if kind in SENT:
        tags = [about["Tag"]] if about.get("Tag") else []
        metadata = sub(about, "Metadata")
        recipient, message_id = text(about.get("Recipient")), text(about.get("MessageID"))
        return Event(kind="sent", name=said, occurred_at_us=at_us, recipient=recipient, message_id=message_id, tags=tags, metadata=metadata)
    if kind not in WORDS:
        raise Malformed("Unknown kind of event", expected="Delivered, Opened, Clicked, Bounced, Spam complaint, Sent ...", got=said[:60])
    record, time_name = WORDS[kind]
    if kind in BOUNCES:
        more = {"Type": BOUNCES[kind], **more}
    return about | more | {"RecordType": record, time_name: at}


def sent(item: dict) -> list[Event]:
    """Read a message of the Messages API: it was sent to each of its recipients."""
    at_us = time_us(text(item.get("ReceivedAt")))
    people = item.get("Recipients") or [to.get("Email") for to in item.get("To") or () if isinstance(to, dict)]
    if not isinstance(people, list) or not people:
        raise Malformed("A message without recipients", expected="`Recipients` or `To`")
    tags = [text(item["Tag"])] if item.get("Tag") else []
    message_id, metadata = text(item.get("MessageID")), sub(item, "Metadata")
    return [
        Event(kind="sent", name="Sent", occurred_at_us=at_us, recipient=text(who), message_id=message_id, tags=tags, metadata=metadata)
        for who in people
    ]


EXAMPLES = Postmark.EXAMPLES = [
    {
        "title": "The activity as CSV",
        "file": (
            "Message ID,Recipient,Type,Received At,Tag,Details\n"
            "00000000-0000-0000-0000-000000000001,ada@example.com,Delivered,2025-11-24T16:00:00.1234567Z,spring,smtp;250 OK\n"
        ),
        "events": [{"kind": "delivered", "recipient": "ada@example.com", "campaign": "spring", "occurred_at_us": 1764000000123456}],
    },
    {
        "title": "A message's details",
        "file": (
            '{"MessageID": "m-1", "Tag": "spring", "To": [{"Email": "ada@example.com"}], "ReceivedAt": "2025-11-24T11:00:00.0000000-05:00",'
            ' "MessageEvents": [{"Recipient": "ada@example.com", "Type": "Bounced", "ReceivedAt": "2025-11-24T11:00:01.0000000-05:00",'
            ' "Details": {"Summary": "smtp;550 no such user", "BounceID": "374814878"}}]}\n'
        ),
        "events": [
            {"kind": "sent", "campaign": "spring", "occurred_at_us": 1764000000000000},
            {"kind": "bounced", "event_id": "374814878", "occurred_at_us": 1764000001000000},
        ],
    },
]
