"""Braze Currents over custom HTTP: a JSON object with up to a hundred events; authentic by a bearer token, not signed."""

from __future__ import annotations

from ..events import Event
from .source import Malformed, Request, Source, as_dict, decode_json, number_us, sub, text

EMAIL = "users.messages.email."
KINDS = {
    EMAIL + "Send": "sent",
    EMAIL + "Delivery": "delivered",
    EMAIL + "Open": "opened",
    EMAIL + "Click": "clicked",
    EMAIL + "Bounce": "bounced",
    EMAIL + "SoftBounce": "bounced",
    EMAIL + "MarkAsSpam": "complained",
    EMAIL + "Unsubscribe": "unsubscribed",
    EMAIL + "Deferral": "deferred",
    EMAIL + "Retry": "deferred",
    EMAIL + "Abort": "rejected",
}
SUBSCRIPTION = "users.behaviors.subscription.GlobalStateChange"
STATES = {"subscribed": "subscribed", "optedin": "subscribed", "opted_in": "subscribed", "unsubscribed": "unsubscribed"}

REASONS = {"bounced": "bounced", "complained": "spam", "unsubscribed": "unsubscribed", "rejected": "blocked"}

OWN_KEYS = frozenset({"email_address", "url", "user_agent", "bounce_reason", "deferral_reason", "machine_open", "is_suspected_bot_click"})


class Braze(Source):
    """Campaign and variant are Braze's ids; names are in the metadata: ``campaign: [metadata.campaign_name]``."""

    label = "Braze Currents"
    docs_url = "https://www.braze.com/docs/user_guide/data/distribution/braze_currents/setting_up_currents/custom_http_connector/"
    shape = "object"

    def items(self, request: Request) -> list:
        if not request.body:
            return []  # Braze tests the credentials with an empty body
        events = as_dict(decode_json(request.body)).get("events") or []
        if not isinstance(events, list):
            raise Malformed("`events` has to be a list", got=type(events).__name__)
        return events

    def events(self, item: object, request: Request) -> Event | None:
        item = as_dict(item)
        user, data = sub(item, "user"), sub(item, "properties")
        name = text(item.get("event_type"))
        kind = KINDS.get(name, "unknown")
        if name == SUBSCRIPTION:
            kind = STATES.get(text(data.get("subscription_status")).lower(), "unknown")
        elif kind == "bounced" and data.get("is_drop") in (True, "true"):
            kind = "rejected"  # the ESP below Braze knew the address as bad and did not try
        # A dispatch is one transmission to many people; one message is the dispatch to one of them.
        dispatch, person = text(data.get("dispatch_id")), text(user.get("user_id"))
        event = Event(
            event_id=text(item.get("id")),
            kind=kind,
            occurred_at_us=number_us(item.get("time")),
            recipient=text(data.get("email_address")),
            user_id=text(user.get("external_user_id")) or person,
            message_id=f"{dispatch}:{person}" if dispatch and person else dispatch,
            url=text(data.get("url")),
            user_agent=text(data.get("user_agent")),
            reason=REASONS.get(kind, ""),
            detail=text(data.get("bounce_reason")) or text(data.get("deferral_reason")) or text(data.get("abort_log")),
            name=name,
            metadata={key: value for key, value in data.items() if key not in OWN_KEYS and value is not None},
            campaign=text(data.get("campaign_id")) or text(data.get("canvas_id")),
            variant=text(data.get("message_variation_id")) or text(data.get("canvas_variation_id")),
        )
        if kind == "bounced":
            event.bounce_class = "soft" if name.endswith("SoftBounce") else "hard"
        elif kind == "opened" and data.get("machine_open") in (True, "true"):  # the text "true", not a boolean
            event.agent, event.agent_reason = "machine", "vendor flag: machine_open"
        elif kind == "clicked" and data.get("is_suspected_bot_click") in (True, "true"):
            event.agent, event.agent_reason = "machine", "vendor flag: is_suspected_bot_click"
        return event


EXAMPLES = Braze.EXAMPLES = [
    {
        "title": "A click and a machine's open in one request",
        "body": {
            "events": [
                {
                    "event_type": "users.messages.email.Click",
                    "id": "a1234567-89ab-4def-8123-456789abcdef",
                    "time": 1764000000,
                    "user": {"user_id": "5f0123456789abcdef012345", "external_user_id": "42", "timezone": "Europe/London"},
                    "properties": {
                        "campaign_id": "11ae9c3a-33a1-4c3d-9f1f-2a5a9d0c1b22",
                        "campaign_name": "Spring",
                        "message_variation_id": "c6a9b0de-11d1-4a2f-8d8d-6a6b7c8d9e0f",
                        "dispatch_id": "e9a1b2c3d4e5f60718293a4b5c6d7e8f",
                        "email_address": "ada@example.com",
                        "url": "https://shop.example/spring",
                        "user_agent": "Mozilla/5.0 (X11; Linux x86_64)",
                        "is_suspected_bot_click": False,
                        "suspected_bot_click_reason": [],
                    },
                },
                {
                    "event_type": "users.messages.email.Open",
                    "id": "b1234567-89ab-4def-8123-456789abcdef",
                    "time": 1764000000,
                    "user": {"user_id": "5f0123456789abcdef012346"},
                    "properties": {
                        "canvas_id": "22ae9c3a-33a1-4c3d-9f1f-2a5a9d0c1b22",
                        "canvas_variation_id": "d6a9b0de-11d1-4a2f-8d8d-6a6b7c8d9e0f",
                        "dispatch_id": "e9a1b2c3d4e5f60718293a4b5c6d7e90",
                        "email_address": "bob@example.com",
                        "machine_open": "true",
                    },
                },
            ]
        },
        "events": [
            {
                "kind": "clicked",
                "recipient": "ada@example.com",
                "user_id": "42",
                "event_id": "a1234567-89ab-4def-8123-456789abcdef",
                "message_id": "e9a1b2c3d4e5f60718293a4b5c6d7e8f:5f0123456789abcdef012345",
                "occurred_at_us": 1764000000000000,
                "campaign": "11ae9c3a-33a1-4c3d-9f1f-2a5a9d0c1b22",
                "variant": "c6a9b0de-11d1-4a2f-8d8d-6a6b7c8d9e0f",
                "agent": "",
            },
            {
                "kind": "opened",
                "agent": "machine",
                "agent_reason": "vendor flag: machine_open",
                "campaign": "22ae9c3a-33a1-4c3d-9f1f-2a5a9d0c1b22",
            },
        ],
    },
    {
        "title": "A soft bounce",
        "body": {
            "events": [
                {
                    "event_type": "users.messages.email.SoftBounce",
                    "id": "c1234567-89ab-4def-8123-456789abcdef",
                    "time": 1764000000,
                    "user": {"user_id": "5f0123456789abcdef012345"},
                    "properties": {
                        "email_address": "ada@example.com",
                        "bounce_reason": "452 4.2.2 mailbox full",
                        "sending_ip": "198.51.100.7",
                    },
                }
            ]
        },
        "events": [{"kind": "bounced", "bounce_class": "soft", "detail": "452 4.2.2 mailbox full", "ip": ""}],
    },
]
