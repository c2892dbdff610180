"""Klaviyo's system webhooks: a JSON object with up to a thousand events, signed with HMAC-SHA256 over raw body and time."""

from __future__ import annotations

import hmac

from ..events import Event
from .source import (
    Malformed,
    Refused,
    Request,
    Source,
    as_dict,
    decode_json,
    header_bytes_max,
    iso_us,
    number_us,
    same,
    sub,
    text,
    with_headers,
)

SIGNATURE = "klaviyo-signature"
TIMESTAMP = "klaviyo-timestamp"

TOPIC = "event:klaviyo."
# `received_email` is what every account has; `email_delivered` says the same where it exists. A message counts as delivered once.
KINDS = {
    "received_email": "delivered",
    "email_delivered": "delivered",
    "opened_email": "opened",
    "clicked_email": "clicked",
    "bounced_email": "bounced",
    "dropped_email": "rejected",
    "marked_email_as_spam": "complained",
    "subscribed_to_email_marketing": "subscribed",
    "unsubscribed_from_email_marketing": "unsubscribed",
    # Lifting a suppression by hand is no consent, so `manually_unsuppressed...` stays unknown.
    "manually_suppressed_from_email_marketing": "unsubscribed",
}
REASONS = {"bounced": "bounced", "rejected": "blocked", "complained": "spam", "unsubscribed": "unsubscribed"}

# Properties of an open or a click that say that no person did it; Klaviyo shows some under a label.
MACHINE_FLAGS = ("machine_open", "Machine Open", "Apple Privacy Open", "bot_click", "Bot Click", "is_bot")


class Klaviyo(Source):
    """Campaign and variant are Klaviyo's ids of message (or flow) and variation; names are in the metadata:
    ``campaign: [metadata.Campaign Name]``. A flow's own "webhook" action is free-form: use the source `generic` for it.
    """

    label = "Klaviyo"
    docs_url = "https://developers.klaviyo.com/en/docs/working_with_system_webhooks"
    shape = "object"
    signs = True

    def signature(self, request: Request) -> int:
        # No window of time: Klaviyo states none and does not say whether a repetition is signed anew. A replay is a duplicate.
        signed_at, given = request.header(TIMESTAMP), request.header(SIGNATURE)
        if not signed_at or not given or len(signed_at) + len(given) > header_bytes_max:
            raise Refused(f"{self.label}: the signature or its timestamp is missing or too long")
        if len(signed_at) > 64 or not (iso_us(signed_at) or number_us(signed_at)):
            # Body and time are signed without anything between them; only what is a time may be the second part.
            raise Refused(f"{self.label}: the timestamp is no time")
        message = request.body + signed_at.encode("utf-8", "replace")
        return self.match(
            "signature", self.active(request), lambda secret: same(given, hmac.digest(secret.encode(), message, "sha256").hex())
        )

    def sign(self, request: Request) -> Request:
        if not self.config.secrets:
            return super().sign(request)
        signed_at = str(request.received_at_us // 1_000_000)
        signature = hmac.digest(self.active(request)[0].encode(), request.body + signed_at.encode(), "sha256").hex()
        return with_headers(request, {TIMESTAMP: signed_at, SIGNATURE: signature})

    def items(self, request: Request) -> list:
        events = as_dict(decode_json(request.body)).get("data")
        if not isinstance(events, list):
            raise Malformed("Klaviyo sends its events as a list in `data`", got=type(events).__name__)
        return events

    def events(self, item: object, request: Request) -> Event | None:
        item = as_dict(item)
        name = text(item.get("topic"))
        kind = KINDS.get(name.removeprefix(TOPIC), "unknown") if name.startswith(TOPIC) else "unknown"
        payload = sub(item, "payload")
        attributes = sub(sub(payload, "data") or payload, "attributes")
        said = sub(attributes, "event_properties")
        profile_id, profile = who(payload)
        message = text(said.get("$_cohort$message_send_cohort")) or text(said.get("$message"))
        at = attributes.get("datetime")
        event = Event(
            event_id=text(item.get("external_id")),
            kind=kind,
            occurred_at_us=iso_us(at) or number_us(attributes.get("timestamp")),
            recipient=text(said.get("Recipient Email Address")) or text(profile.get("email")) or text(said.get("email")),
            user_id=text(profile.get("external_id")) or profile_id,
            # `$message` is the same for all recipients; one message is it and one profile.
            message_id=f"{message}:{profile_id}" if message and profile_id else message,
            url=text(said.get("URL")),
            ip=text(said.get("Client IP")),
            reason=REASONS.get(kind, ""),
            detail=text(said.get("Bounce Reason")) or text(said.get("Reason")),
            name=name,
            metadata=dict(said),
            campaign=text(said.get("$flow")) or text(said.get("$message")),
            variant=text(said.get("$variation")),
        )
        if kind == "bounced":
            event.bounce_class = "soft" if text(said.get("Bounce Type")).lower() == "soft" else "hard"
        elif kind in ("opened", "clicked"):
            flag = next((f for f in MACHINE_FLAGS if said.get(f) in (True, "true", "True")), "")
            if flag:
                event.agent, event.agent_reason = "machine", f"vendor flag: {flag}"
        return event


def who(payload: dict) -> tuple[str, dict]:
    """Return the profile's id and, where the payload includes it, its attributes (JSON:API: relationships and included)."""
    related = sub(sub(sub(sub(payload, "data") or payload, "relationships"), "profile"), "data")
    profile_id = text(related.get("id"))
    included = payload.get("included")
    for found in included if isinstance(included, list) else ():
        if isinstance(found, dict) and found.get("type") == "profile" and text(found.get("id")) in (profile_id, ""):
            return profile_id, sub(found, "attributes")
    return profile_id, {}


def _example(topic: str, external_id: str, properties: dict) -> dict:
    return {
        "external_id": external_id,
        "topic": topic,
        "payload": {
            "data": {
                "type": "event",
                "id": "4zTestEvent",
                "attributes": {"timestamp": 1764000000, "datetime": "2025-11-24T16:00:00+00:00", "event_properties": properties},
                "relationships": {"profile": {"data": {"type": "profile", "id": "01GDDKASAP8TKDDA2GRZDSVP4H"}}},
            },
            "included": [
                {"type": "profile", "id": "01GDDKASAP8TKDDA2GRZDSVP4H", "attributes": {"email": "ada@example.com", "external_id": "42"}}
            ],
        },
    }


EXAMPLES = Klaviyo.EXAMPLES = [
    {
        "title": "A click in a campaign",
        "body": {
            "data": [
                _example(
                    "event:klaviyo.clicked_email",
                    "6TestClick",
                    {
                        "$message": "01HCAMPAIGN",
                        "$variation": "01HVARIATION",
                        "Campaign Name": "Spring",
                        "URL": "https://shop.example/spring",
                    },
                )
            ],
            "meta": {"klaviyo_webhook_id": "01HWEBHOOK", "timestamp": "2025-11-24T16:00:01+00:00", "version": "2025-07-15"},
        },
        "events": [
            {
                "kind": "clicked",
                "recipient": "ada@example.com",
                "user_id": "42",
                "event_id": "6TestClick",
                "message_id": "01HCAMPAIGN:01GDDKASAP8TKDDA2GRZDSVP4H",
                "occurred_at_us": 1764000000000000,
                "campaign": "01HCAMPAIGN",
                "variant": "01HVARIATION",
                "url": "https://shop.example/spring",
                "agent": "",
            }
        ],
    },
    {
        "title": "Apple's privacy protection opens for everybody",
        "body": {
            "data": [_example("event:klaviyo.opened_email", "6TestOpen", {"$message": "01HCAMPAIGN", "Apple Privacy Open": True})],
            "meta": {},
        },
        "events": [{"kind": "opened", "agent": "machine", "agent_reason": "vendor flag: Apple Privacy Open"}],
    },
]
