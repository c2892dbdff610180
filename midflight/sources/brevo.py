"""Brevo's (Sendinblue's) webhooks: one unsigned object per event, or a batch of them; transactional and marketing."""

from __future__ import annotations

from ..events import Event
from .source import Malformed, Request, Source, as_dict, decode_items, decode_json, number_us, text, texts

# Brevo's words without blanks, dashes and underscores, in lower case: it spells `hard_bounce`, `hardBounce` and `Hard Bounced`.
# Kind, bounce class, reason.
KINDS = {
    "request": ("queued", "", ""),  # also comes for what is then blocked
    "sent": ("sent", "", ""),
    "delivered": ("delivered", "", ""),
    "deferred": ("deferred", "", ""),
    "softbounce": ("bounced", "soft", "bounced"),
    "softbounced": ("bounced", "soft", "bounced"),
    "hardbounce": ("bounced", "hard", "bounced"),
    "hardbounced": ("bounced", "hard", "bounced"),
    "invalidemail": ("bounced", "hard", "invalid"),
    "invalid": ("bounced", "hard", "invalid"),
    "blocked": ("rejected", "", "blocked"),
    "error": ("failed", "", ""),
    "opened": ("opened", "", ""),  # the second time and later
    "uniqueopened": ("opened", "", ""),  # the first time
    "proxyopen": ("opened", "", ""),
    "uniqueproxyopen": ("opened", "", ""),
    "click": ("clicked", "", ""),
    "clicked": ("clicked", "", ""),
    "spam": ("complained", "", "spam"),
    "complaint": ("complained", "", "spam"),
    "unsubscribe": ("unsubscribed", "", ""),
    "unsubscribed": ("unsubscribed", "", ""),
    "listaddition": ("subscribed", "", ""),
}
PROXIES = ("proxyopen", "uniqueproxyopen")


class Brevo(Source):
    label = "Brevo"
    docs_url = "https://developers.brevo.com/docs/transactional-webhooks"
    shape = "either"

    def items(self, request: Request) -> list:
        body = decode_items(request.body)
        if isinstance(body, dict):
            # The shape of a batch is not documented in full: a list, or one under either of these names.
            batch = body.get("events") if isinstance(body.get("events"), list) else body.get("items")
            body = batch if isinstance(batch, list) and "event" not in body else [body]
        if not isinstance(body, list):
            raise Malformed("Brevo sends an object or an array of them", got=type(body).__name__)
        if body and not any(isinstance(item, dict) and "event" in item for item in body):
            inbound = isinstance(body[0], dict) and bool({"Uuid", "MessageId", "RawTextBody"} & set(body[0]))
            raise Malformed(
                "This is inbound mail, not an event" if inbound else "Brevo's events say what happened in `event`",
                todo="In Brevo, point the inbound webhook elsewhere; this URL is for email events" if inbound else None,
            )
        return body

    def events(self, item: object, request: Request) -> list[Event]:
        item = as_dict(item)
        name = text(item.get("event"))
        if not name:
            raise Malformed("An event of Brevo says what happened in `event`")
        word = name.lower().replace("_", "").replace(" ", "").replace("-", "")
        kind, bounce_class, reason = KINDS.get(word, ("unknown", "", ""))
        addresses = texts(item.get("email")) or [""]  # changes of contacts name several
        return [
            Event(
                kind=kind,
                bounce_class=bounce_class,
                reason=reason,
                occurred_at_us=time_of(item),
                recipient=address,
                message_id=text(item.get("message-id")) or text(item.get("messageId")),
                url=text(item.get("link")) or text(item.get("URL")) or text(item.get("url")),
                agent="machine" if word in PROXIES else "",
                agent_reason=f"vendor flag: event={name}" if word in PROXIES else "",
                user_agent=text(item.get("user_agent")),
                ip=text(item.get("ip")),
                detail=text(item.get("reason")),
                name=name,
                tags=tags_of(item),
                metadata=custom(item),
                campaign=text(item.get("campaign name")).strip() or text(item.get("camp_id")),
            )
            for address in addresses
        ]


def time_of(item: dict) -> int:
    """Return when it happened. `id` is the webhook's, and `ts`, `date` are in the account's time zone.

    `ts_epoch` (once documented as `s_epoch`) is UTC. Marketing events, which have a campaign, have only `ts_event`, there in UTC too.
    """
    epoch = number_us(item.get("ts_epoch")) or number_us(item.get("s_epoch"))
    return epoch or (number_us(item.get("ts_event")) if "camp_id" in item else 0)


def tags_of(item: dict) -> list[str]:
    """Return the tags, which may be a list, one text, or a list written as text."""
    if isinstance(item.get("tags"), list):
        return texts(item["tags"])
    tag = item.get("tag")
    if isinstance(tag, str) and tag.startswith("["):
        try:
            return texts(decode_json(tag))
        except Malformed:
            pass  # a tag may begin with a bracket
    return texts(tag)


def custom(item: dict) -> dict:
    """Return `X-Mailin-custom` as JSON, or as the `name:value|name:value` that Brevo's own examples have."""
    given = item.get("X-Mailin-custom")
    if isinstance(given, dict):
        return given
    if not isinstance(given, str):
        return {}
    try:
        found = decode_json(given)
        return found if isinstance(found, dict) else {}
    except Malformed:
        return {name.strip(): value.strip() for name, colon, value in (part.partition(":") for part in given.split("|")) if colon}


PLUGIN = Brevo
EXAMPLES = Brevo.EXAMPLES = [
    {
        "title": "A click, with custom data",
        "body": {
            "event": "click",
            "email": "ada@example.com",
            "id": 1,
            "ts_epoch": 1764000000123,
            "message-id": "<202511241600.1@smtp-relay.mailin.fr>",
            "link": "https://shop.example/spring",
            "tags": ["newsletter"],
            "X-Mailin-custom": '{"campaign": "spring", "variant": "B"}',
        },
        "events": [
            {
                "kind": "clicked",
                "recipient": "ada@example.com",
                "message_id": "<202511241600.1@smtp-relay.mailin.fr>",
                "occurred_at_us": 1764000000123000,
                "url": "https://shop.example/spring",
                "campaign": "spring",
                "variant": "B",
                "tags": ["newsletter"],
            }
        ],
    },
    {
        "title": "A batch: a proxy loaded the images, and a marketing campaign bounced",
        "body": [
            {
                "event": "unique_proxy_open",
                "email": "ada@example.com",
                "ts_epoch": 1764000000000,
                "message-id": "<m1@example>",
                "tag": "newsletter",
            },
            {"event": "hard_bounce", "email": "gone@example.com", "camp_id": 7, "campaign name": "Spring", "ts_event": 1764000000},
        ],
        "events": [
            {"kind": "opened", "agent": "machine", "agent_reason": "vendor flag: event=unique_proxy_open", "tags": ["newsletter"]},
            {"kind": "bounced", "bounce_class": "hard", "campaign": "Spring", "occurred_at_us": 1764000000000000},
        ],
    },
]
