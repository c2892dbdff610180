"""Unisender Go's webhooks: one event or a list of them in a JSON object, signed by an MD5 that stands inside the body."""

from __future__ import annotations

import re
from hashlib import md5

import msgspec

from ..events import Event
from .source import Malformed, Refused, Request, Source, as_dict, decode_json, iso_us, same, sub, text

events_per_request_max = 10_000

KINDS = {
    "sent": "sent",
    "delivered": "delivered",
    "opened": "opened",
    "clicked": "clicked",
    "unsubscribed": "unsubscribed",
    "subscribed": "subscribed",
    "spam": "complained",
    "soft_bounced": "deferred",  # Unisender goes on trying
    "hard_bounced": "bounced",
}

# `delivery_status` says why; what is not listed and starts with err_ is `other`.
REASONS = {
    "err_user_unknown": "bounced",
    "err_user_inactive": "bounced",
    "err_will_retry": "",
    "err_mailbox_discarded": "bounced",
    "err_mailbox_full": "bounced",
    "err_spam_rejected": "spam",
    "err_spam_skipped": "spam",
    "err_blacklisted": "blocked",
    "err_too_large": "bounced",
    "err_unsubscribed": "unsubscribed",
    "err_unreachable": "bounced",
    "err_skip_letter": "bounced",
    "err_domain_inactive": "bounced",
    "err_destination_misconfigured": "bounced",
}
BLOCKS = {"err_spam_rejected", "err_spam_skipped", "err_blacklisted", "err_too_large", "err_unsubscribed", "err_skip_letter"}

_MD5 = re.compile(r"[0-9a-f]{32}", re.ASCII)


class UnisenderGo(Source):
    """Secrets are API keys: Unisender has no signing secret of its own. A gzipped body arrives here inflated."""

    label = "Unisender Go"
    docs_url = "https://godocs.unisender.ru/web-api-ref#callback-format"
    shape = "object"
    signs = True

    def signature(self, request: Request) -> int:
        try:
            given = as_dict(decode_json(request.body)).get("auth")
        except Malformed:
            raise Refused(f"{self.label}: the body is not JSON, so it holds no signature") from None
        if not isinstance(given, str) or not _MD5.fullmatch(given):
            raise Refused(f"{self.label}: `auth` is missing or no MD5")
        # The hash was made while the API key stood in its place, so only these bytes may be replaced, once.
        before, _, after = request.body.partition(f'"{given}"'.encode())
        if f'"{given}"'.encode() in after:
            raise Refused(f"{self.label}: `auth` stands twice in the body")
        return self.match("signature", self.active(request), lambda key: same(given, body_md5(before, key, after)))

    def sign(self, request: Request) -> Request:
        """Return the request with ``auth`` set inside the body, which is written anew, compact."""
        try:
            body = decode_json(request.body)
        except Malformed:
            return request
        if not self.config.secrets or not isinstance(body, dict):
            return super().sign(request)
        place = "0" * 32
        before, _, after = msgspec.json.encode(body | {"auth": place}).rpartition(f'"{place}"'.encode())
        auth = body_md5(before, self.active(request)[0], after)
        return msgspec.structs.replace(request, body=before + f'"{auth}"'.encode() + after)

    def items(self, request: Request) -> list:
        body = as_dict(decode_json(request.body))
        if "events_by_user" not in body:
            return [body] if "event_name" in body else []  # the setting "single event" sends one, flat
        users = as_list(body["events_by_user"], "events_by_user")
        events = [event for user in users for event in as_list(as_dict(user).get("events") or [], "events")]
        if len(events) > events_per_request_max:
            raise Malformed("Too many events", expected=f"at most {events_per_request_max}", got=len(events))
        return events

    def events(self, item: object, request: Request) -> Event | None:
        item = as_dict(item)
        if item.get("event_name") == "transactional_spam_block":
            return None  # about one of the sender's addresses, not about a message
        data = sub(item, "event_data") or item
        info, metadata = sub(data, "delivery_info"), dict(sub(data, "metadata"))
        name, status = text(data.get("status")), text(info.get("delivery_status"))
        kind = KINDS.get(name, "unknown")
        # The job id is that of one send call, the same for all its recipients; django-anymail adds one for each message.
        message_id = text(metadata.pop("anymail_id", None)) or text(data.get("job_id"))
        event = Event(
            kind=kind,
            occurred_at_us=iso_us(data.get("event_time")),  # without a zone: UTC
            recipient=text(data.get("email")),
            message_id=message_id,
            url=text(data.get("url")),
            user_agent=text(info.get("user_agent")),
            ip=text(info.get("ip")),
            reason=REASONS.get(status, "other") if status.startswith("err_") else "",
            code=status,
            detail=text(info.get("destination_response")) or text(data.get("comment")),
            name=name,
            metadata=metadata,
        )
        if name == "hard_bounced":
            event.bounce_class = "block" if status in BLOCKS else "hard"
            event.reason = event.reason or "bounced"
        elif name == "soft_bounced":
            event.bounce_class = "soft"
        return event


def as_list(value: object, name: str) -> list:
    if not isinstance(value, list):
        raise Malformed(f"`{name}` has to be a list", got=type(value).__name__)
    return value


def body_md5(before: bytes, key: str, after: bytes) -> str:
    return md5(before + b'"' + key.encode() + b'"' + after, usedforsecurity=False).hexdigest()


PLUGIN = UnisenderGo
EXAMPLES = UnisenderGo.EXAMPLES = [
    {
        "title": "Several events in one request",
        "body": {
            "auth": "00000000000000000000000000000000",
            "events_by_user": [
                {
                    "user_id": 456,
                    "project_id": "6432890213745872",
                    "events": [
                        {
                            "event_name": "transactional_email_status",
                            "event_data": {
                                "job_id": "1vNY2p-0003Ab-7Q",
                                "email": "ada@example.com",
                                "status": "clicked",
                                "event_time": "2025-11-24 16:00:00",
                                "url": "https://shop.example/spring",
                                "metadata": {"campaign": "spring", "variant": "B"},
                                "delivery_info": {"user_agent": "Mozilla/5.0 (X11; Linux x86_64)", "ip": "203.0.113.9"},
                            },
                        },
                        {"event_name": "transactional_spam_block", "event_data": {"block_type": "one_smtp", "domain": "example.com"}},
                    ],
                }
            ],
        },
        "events": [
            {
                "kind": "clicked",
                "recipient": "ada@example.com",
                "message_id": "1vNY2p-0003Ab-7Q",
                "occurred_at_us": 1764000000000000,
                "campaign": "spring",
                "variant": "B",
                "url": "https://shop.example/spring",
            }
        ],
    },
    {
        "title": "One event, flat: a hard bounce",
        "body": {
            "auth": "00000000000000000000000000000000",
            "event_name": "transactional_email_status",
            "job_id": "1vNY2p-0003Ab-7Q",
            "email": "nobody@example.com",
            "status": "hard_bounced",
            "event_time": "2025-11-24 16:00:00",
            "delivery_info": {"delivery_status": "err_user_unknown", "destination_response": "550 5.1.1 no such user"},
        },
        "events": [{"kind": "bounced", "bounce_class": "hard", "reason": "bounced", "detail": "550 5.1.1 no such user"}],
    },
]
