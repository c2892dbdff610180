"""Any CSV or JSON: columns that are called what they are, or a mapping as for the source `generic`."""

from __future__ import annotations

from ..events import recipient_key
from ..sources.source import Malformed
from .export import Export, plain_name

# Names that say what a column holds, the surest first.
NAMES = {
    "kind": ("kind", "event", "eventtype", "type", "action", "status", "activity"),
    "occurred_at": ("occurredat", "timestamp", "time", "date", "datetime", "eventtime", "createdat", "happenedat", "@timestamp"),
    "recipient": ("recipient", "email", "emailaddress", "to", "address", "mail"),
    "event_id": ("eventid", "id", "uuid"),
    "user_id": ("userid", "customerid", "contactid", "externalid"),
    "message_id": ("messageid", "emailid", "msgid"),
    "campaign": ("campaign", "campaignname", "campaignid", "newsletter"),
    "variant": ("variant", "version", "abvariant", "split"),
    "wave": ("wave", "batch"),
    "url": ("url", "link", "clickedurl"),
    "user_agent": ("useragent", "agent"),
    "ip": ("ip", "ipaddress"),
    "code": ("code", "smtpcode", "statuscode"),
    "reason": ("reason", "bouncereason", "error"),
    "bounce_class": ("bounceclass", "bouncetype"),
    "order_id": ("orderid", "order"),
    "value": ("value", "revenue", "amount", "total", "price"),
    "currency": ("currency",),
    "tags": ("tags", "tag", "category"),
}
KINDS = {
    "send": "sent",
    "delivery": "delivered",
    "open": "opened",
    "click": "clicked",
    "bounce": "bounced",
    "hard_bounce": "bounced:hard",
    "hardbounce": "bounced:hard",
    "hard bounce": "bounced:hard",
    "soft_bounce": "bounced:soft",
    "softbounce": "bounced:soft",
    "soft bounce": "bounced:soft",
    "blocked": "bounced:block",
    "deferral": "deferred",
    "dropped": "rejected",
    "reject": "rejected",
    "complaint": "complained",
    "spam": "complained",
    "spam_report": "complained",
    "unsubscribe": "unsubscribed",
    "unsub": "unsubscribed",
    "subscribe": "subscribed",
    "conversion": "converted",
    "purchase": "converted",
    "order": "converted",
}


class Generic(Export):
    label = "CSV or JSON"
    source = "generic"

    @classmethod
    def fits_columns(cls, columns: set[str]) -> bool:
        return all(columns & set(NAMES[field]) for field in ("kind", "occurred_at", "recipient"))

    @classmethod
    def fits_object(cls, item: dict) -> bool:
        return cls.fits_columns({plain_name(name) for name in item})

    @classmethod
    def settings(cls, mapping: dict, columns: list[str]) -> dict:
        fields = {field: list(names) for field, names in NAMES.items()}
        if columns:
            # A table has the same columns in every row: look for their names once.
            known = {plain_name(column): column for column in reversed(columns)}
            fields = {field: [known[name] for name in names if name in known] for field, names in NAMES.items()}
        return {"unsigned": True, "kinds": KINDS, "fields": fields, **mapping}

    def object(self, item: dict) -> list:
        # A mapping names fields as they are, the names above are plain ones: an object answers to both.
        return self.row({plain_name(name): value for name, value in item.items()} | item)

    def row(self, row: dict[str, str]) -> list:
        event = self.reads.events(row, None)
        if event is None:
            return []
        if not recipient_key(event.recipient) and not event.user_id:
            raise Malformed("Nobody to whom it happened", expected="an email address or a user id", got=event.recipient[:60] or "nothing")
        if not event.occurred_at_us:
            raise Malformed("No time that can be read", expected="ISO 8601, unix seconds, or `time_format` in the mapping")
        return [event]


EXAMPLES = Generic.EXAMPLES = [
    {
        "title": "A CSV whose columns say what they are",
        "file": "Email;Event;Date;Campaign;Link\nada@example.com;click;2025-11-24 16:00:00;spring;https://shop.example/\n",
        "events": [{"kind": "clicked", "recipient": "ada@example.com", "campaign": "spring", "occurred_at_us": 1764000000000000}],
    },
    {
        "title": "A CSV with a mapping",
        "mapping": {
            "fields": {"kind": "Was", "occurred_at": "Wann", "recipient": "Wer", "campaign": "=autumn"},
            "kinds": {"geklickt": "clicked"},
            "time_format": "%d.%m.%Y %H:%M",
        },
        "file": "Wer;Was;Wann\nada@example.com;geklickt;24.11.2025 16:00\n",
        "events": [{"kind": "clicked", "recipient": "ada@example.com", "campaign": "autumn", "occurred_at_us": 1764000000000000}],
    },
]
