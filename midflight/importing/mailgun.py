"""Mailgun: answers of its Events and Logs APIs, kept webhook bodies, and CSV with the same fields as columns."""

from __future__ import annotations

from ..sources.source import Malformed, decode_json, sub, text
from .export import Export, address, named, plain, seconds

WORDS = {"temporary fail": "failed", "permanent fail": "failed", "temporaryfail": "failed", "permanentfail": "failed"}
TIMES = ("timestamp", "@timestamp", "date", "time")
OWN = {
    "recipientdomain",
    "recipientprovider",
    "deliverystatus.code",
    "loglevel",
    "message.headers.messageid",
    "envelope.sender",
    "severity",
    "id",
}


class Mailgun(Export):
    label = "Mailgun"
    source = "mailgun"

    @classmethod
    def fits_columns(cls, columns: set[str]) -> bool:
        return {"event", "recipient"} <= columns and bool(columns & set(TIMES)) and bool(columns & OWN)

    @classmethod
    def fits_object(cls, item: dict) -> bool:
        return "event-data" in item or ("event" in item and "id" in item and bool({"timestamp", "@timestamp"} & item.keys()))

    def object(self, item: dict) -> list:
        data = item.get("event-data", item)
        if not isinstance(data, dict) or "event" not in data:
            raise Malformed("No event of Mailgun's", expected="`event`")
        data = dict(data)
        if "timestamp" not in data:
            # The Logs API writes its times in another field and as text.
            data["timestamp"] = seconds(text(data.get("@timestamp")))
        variables = data.get("user-variables")
        if isinstance(variables, str):
            data["user-variables"] = decode_json(variables) if variables.startswith("{") else {}
        return [data]

    def row(self, row: dict[str, str]) -> list:
        row = plain(row)
        said = named(row, "event").lower()
        data = {
            "event": WORDS.get(said, said),
            "id": named(row, "id", "eventid"),
            "timestamp": seconds(named(row, *TIMES)),
            "recipient": address(named(row, "recipient")),
            "severity": named(row, "severity") or ("temporary" if said.startswith("temporary") else ""),
            "reason": named(row, "reason"),
            "url": named(row, "url"),
            "ip": named(row, "ip"),
            "tags": [tag.strip(' "[]') for tag in named(row, "tags").split(",") if tag.strip(' "[]')],
            "message": {"headers": {"message-id": named(row, "message.headers.messageid", "messageid").strip("<>")}},
            "delivery-status": {
                "code": named(row, "deliverystatus.code", "code"),
                "message": named(row, "deliverystatus.message", "deliverystatus.description", "message"),
            },
            "client-info": {"user-agent": named(row, "clientinfo.useragent", "useragent"), "bot": named(row, "clientinfo.bot")},
            "user-variables": variables(row),
        }
        if not said:
            raise Malformed("The row does not say what happened", expected="a word in `event`")
        return [{name: value for name, value in data.items() if value}]


def variables(row: dict[str, str]) -> dict:
    """Return user variables: a cell of JSON, or a column for each."""
    cell = named(row, "uservariables")
    found = decode_json(cell) if cell.startswith("{") else {}
    columns = {name.removeprefix("uservariables."): value for name, value in row.items() if name.startswith("uservariables.") and value}
    return sub({"found": found}, "found") | columns


EXAMPLES = Mailgun.EXAMPLES = [
    {
        "title": "A page of the Events API",
        "file": (
            '{"items": [{"event": "delivered", "id": "Ase7i2zsRYeDXztHGENqRA", "timestamp": 1764000000.25, "recipient": "ada@example.com",'
            ' "message": {"headers": {"message-id": "20251124.1@shop.example"}}, "user-variables": {"campaign": "spring"}}],'
            ' "paging": {"next": "https://api.mailgun.net/v3/shop.example/events/W3"}}\n'
        ),
        "events": [
            {"kind": "delivered", "event_id": "2025-11-24:Ase7i2zsRYeDXztHGENqRA", "campaign": "spring", "occurred_at_us": 1764000000250000}
        ],
    },
    {
        "title": "A CSV with the events' fields as columns",
        "file": (
            "@timestamp,event,id,recipient,severity,delivery-status.code,delivery-status.message,message.headers.message-id\n"
            "2025-11-24T16:00:00.250Z,failed,x1,ada@example.com,permanent,550,No such user,20251124.1@shop.example\n"
        ),
        "events": [{"kind": "bounced", "bounce_class": "hard", "event_id": "2025-11-24:x1", "code": "550", "detail": "No such user"}],
    },
]
