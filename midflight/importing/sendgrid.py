"""SendGrid: the CSV of the Email Activity Feed, answers of its API, and kept bodies of the Event Webhook."""

from __future__ import annotations

from ..sources.sendgrid import FEED_WORDS, OWN_KEYS
from ..sources.source import Malformed, as_dict, decode_json, text
from .export import Export, address, named, plain, seconds

WORDS = FEED_WORDS | {"spam report": "spamreport"}


class SendGrid(Export):
    label = "SendGrid"
    source = "sendgrid"

    @classmethod
    def fits_columns(cls, columns: set[str]) -> bool:
        return {"processed", "messageid", "event", "email"} <= columns

    @classmethod
    def fits_object(cls, item: dict) -> bool:
        feed = "msg_id" in item and "to_email" in item
        return feed or ("event" in item and "email" in item and bool({"sg_event_id", "sg_message_id", "smtp-id"} & item.keys()))

    def row(self, row: dict[str, str]) -> list:
        """Read a row of the feed. It has no event id, so it is the same as the webhook's only by its content."""
        row = plain(row)
        item = {
            "email": address(named(row, "email")),
            "timestamp": seconds(named(row, "processed")),
            "event": word(named(row, "event")),
            "sg_message_id": named(row, "messageid", "recvmessageid"),
            "url": named(row, "url"),
            "useragent": named(row, "useragent"),
            "reason": named(row, "reason"),
            "type": named(row, "type", "bouncetype"),
            "category": names(named(row, "categories")),
            "asm_group_id": named(row, "asmgroupid"),
            "marketing_campaign_name": named(row, "marketingcampaignname"),
            "marketing_campaign_version": named(row, "marketingcampaignversion"),
        }
        custom = named(row, "uniqueargs")
        return [arguments(custom) | {name: value for name, value in item.items() if value}]

    def object(self, item: dict) -> list:
        if "msg_id" not in item:
            return [item]
        events = item.get("events")
        if not isinstance(events, list):
            raise Malformed("A summary of a message, without its events", todo="The API gives them for each message: /v3/messages/{msg_id}")
        about = {"email": item.get("to_email"), "sg_message_id": item.get("msg_id"), "category": item.get("categories")}
        custom = item.get("unique_args")
        custom = arguments(custom) if isinstance(custom, str) else custom if isinstance(custom, dict) else {}
        return [custom | about | feed_event(as_dict(event)) for event in events]


def feed_event(event: dict) -> dict:
    out = {
        "timestamp": seconds(text(event.get("processed"))),
        "event": word(text(event.get("event_name"))),
        "url": event.get("url"),
        "reason": event.get("reason"),
        "useragent": event.get("http_user_agent"),
        "type": {"soft": "blocked", "hard": "bounce"}.get(text(event.get("bounce_type")), ""),
    }
    return {name: value for name, value in out.items() if value}


def word(said: str) -> str:
    if not said:
        raise Malformed("The row does not say what happened", expected="a word in `event`")
    return WORDS.get(said.lower(), said.lower())


def names(cell: str) -> list[str]:
    """Return categories from a cell: a JSON list, or names with commas between."""
    if cell.startswith("["):
        found = decode_json(cell)
        return [text(name) for name in found] if isinstance(found, list) else []
    return [name.strip() for name in cell.split(",") if name.strip()]


def arguments(cell: str) -> dict:
    """Return custom arguments, which never hide SendGrid's own fields."""
    found = decode_json(cell) if cell.startswith("{") else {}
    return {name: value for name, value in as_dict(found).items() if name not in OWN_KEYS}


PLUGIN = SendGrid
EXAMPLES = SendGrid.EXAMPLES = [
    {
        "title": "The Email Activity Feed's CSV",
        "file": (
            "processed,message_id,event,api_key_id,recv_message_id,credential_id,subject,from,email,asm_group_id,template_id,originating_ip,"
            "reason,outbound_ip,outbound_ip_type,mx,url,attempt,user_agent,type,is_unique,username,categories,marketing_campaign_id,"
            "marketing_campaign_name,marketing_campaign_split_id,marketing_campaign_version,unique_args\n"
            "2025-11-24 16:00:00,14c5d75ce93.filter0001,click,,,,Hello,shop@example.com,ada@example.com,,,,,,,,https://shop.example/,,"
            'Mozilla/5.0,,true,,"[""news""]",,,,,"{""campaign"":""spring"",""variant"":""B""}"\n'
        ),
        "events": [
            {
                "kind": "clicked",
                "recipient": "ada@example.com",
                "message_id": "14c5d75ce93",
                "occurred_at_us": 1764000000000000,
                "campaign": "spring",
                "variant": "B",
                "tags": ["news"],
            }
        ],
    },
    {
        "title": "Kept bodies of the Event Webhook, one a line",
        "file": '[{"email":"ada@example.com","timestamp":1764000000,"event":"open","sg_event_id":"b3Blbg","sg_message_id":"14c.f"}]\n',
        "events": [{"kind": "opened", "event_id": "b3Blbg", "message_id": "14c", "occurred_at_us": 1764000000000000}],
    },
]
