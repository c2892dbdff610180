"""Mailgun's webhooks: one event as JSON beside its signature, and the form posts it sent until 2023."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from hashlib import blake2b, sha256
from urllib.parse import urlencode

import msgspec

from ..events import Event
from ..kit.errors import MidflightError
from ._form import first, form_pairs, last
from .source import Malformed, Refused, Request, Source, as_dict, bare_address, decode_json, number_us, same, sub, text, texts, with_headers

KINDS = {
    "accepted": "queued",
    "rejected": "rejected",
    "delivered": "delivered",
    "failed": "bounced",  # unless `severity` or `reason` say otherwise
    "opened": "opened",
    "clicked": "clicked",
    "unsubscribed": "unsubscribed",
    "complained": "complained",
    "stored": "inbound",
}
LEGACY_KINDS = {
    "delivered": "delivered",
    "dropped": "rejected",
    "bounced": "bounced",
    "complained": "complained",
    "unsubscribed": "unsubscribed",
    "opened": "opened",
    "clicked": "clicked",
}
REASONS = {
    "bounce": "bounced",
    "suppress-bounce": "bounced",
    "suppress-unsubscribe": "unsubscribed",
    "suppress-complaint": "spam",
    "old": "timed_out",  # Mailgun tried until the message was too old
}
# Mailgun's own codes beside SMTP's: the address is on its suppression list, or no server could be reached.
CODE_REASONS = {"499": "timed_out", "605": "bounced", "606": "unsubscribed", "607": "spam"}
SUPPRESSED_CODES = ("605", "606", "607")
BOTS = {
    "apple": "Apple's mail privacy protection",
    "gmail": "Gmail's prefetch",
    "generic": "a scanner",
}

# Form posts merge custom variables into Mailgun's own fields; only for these events, which carry no headers, are they told apart.
LEGACY_MERGED = ("clicked", "opened", "unsubscribed")
LEGACY_FIELDS = frozenset(
    "event recipient domain ip country region city user-agent device-type client-type client-name client-os campaign-id "
    "campaign-name tag mailing-list url timestamp token signature body-plain h message-id Message-Id".split()
)
SIGNED_FIELDS = ("timestamp", "token", "signature")


class Mailgun(Source):
    label = "Mailgun"
    docs_url = "https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/webhooks"
    shape = "object"
    signs = True
    headers_kept = ("content-type",)

    # -- is it from Mailgun? ------------------------------------------------------------------------------------------

    def signature(self, request: Request) -> int:
        """Check the HMAC over timestamp and token. Mailgun does not sign the event itself: TLS has to."""
        if is_json(request.body):
            body = decode_json(request.body)
            body = body if isinstance(body, dict) else {}
            # A subaccount's post carries a second block that the parent account's key signs.
            signed = [tuple(text(sub(body, block).get(name)) for name in SIGNED_FIELDS) for block in ("signature", "parent-signature")]
        else:
            pairs = form_pairs(request)
            signed = [tuple(last(pairs, name) for name in SIGNED_FIELDS)]
        signed = [block for block in signed if all(block)]
        if not signed:
            raise Refused(f"{self.label}: the signature is missing")

        def fits(secret: str) -> bool:
            hits = [same(given, hexdigest(secret, timestamp, token)) for timestamp, token, given in signed]
            return any(hits)

        return self.match("signature", self.active(request), fits)

    def sign(self, request: Request) -> Request:
        """Put the signature into the body, where Mailgun has it; the token follows from the body, so that a repeat is a repeat."""
        request = super().sign(request)
        if not self.config.secrets:
            return request
        token = blake2b(request.body, digest_size=25).hexdigest()
        if not is_json(request.body):
            return self.sign_form(request, token)
        timestamp = str(request.received_at_us // 1_000_000)
        given = hexdigest(self.active(request)[0], timestamp, token)
        body = as_dict(decode_json(request.body)) | {"signature": {"timestamp": timestamp, "token": token, "signature": given}}
        return msgspec.structs.replace(request, body=msgspec.json.encode(body))

    def sign_form(self, request: Request, token: str) -> Request:
        """Sign a form, whose `timestamp` is the event's too."""
        pairs = form_pairs(request)
        if not last(pairs, "timestamp"):
            pairs.append(("timestamp", str(request.received_at_us // 1_000_000)))
        pairs += [("token", token), ("signature", hexdigest(self.active(request)[0], last(pairs, "timestamp"), token))]
        request = with_headers(request, {"content-type": "application/x-www-form-urlencoded"})
        return msgspec.structs.replace(request, body=urlencode(pairs).encode())

    # -- what happened? -----------------------------------------------------------------------------------------------

    def items(self, request: Request) -> list:
        if not is_json(request.body):
            pairs = form_pairs(request)
            if not last(pairs, "timestamp"):
                raise Malformed("The body is neither Mailgun's JSON nor one of its forms")
            return [pairs]
        body = as_dict(decode_json(request.body))
        if not isinstance(body.get("event-data"), dict):
            raise Malformed("Mailgun sends an object with `event-data`", got=", ".join(sorted(body))[:100])
        return [body["event-data"]]

    def events(self, item: object, request: Request) -> Event:
        return legacy_to_event(item) if isinstance(item, list) else data_to_event(as_dict(item))

    # -- and back -----------------------------------------------------------------------------------------------------

    def write(self, events: list[Event]) -> bytes:
        """Return the body that Mailgun would send for one event, still unsigned: for the sandbox and the tests."""
        (event,) = events
        word = WORDS.get(event.kind)
        if word is None:
            raise MidflightError(f"{self.label} has no event for `{event.kind}`")
        data = {
            "event": word,
            "id": event.event_id,
            "timestamp": event.occurred_at_us / 1e6,
            "recipient": event.recipient,
            "message": {"headers": {"message-id": event.message_id.strip("<>"), "to": event.recipient}},
            "tags": event.tags,
            "user-variables": event.metadata | {n: getattr(event, n) for n in ("campaign", "variant", "wave") if getattr(event, n)},
            "log-level": "info",
        }
        data |= {name: value for name, value in {"url": event.url, "ip": event.ip}.items() if value}
        if event.kind in ("opened", "clicked"):
            bot = next((bot for bot in BOTS if bot in event.agent_reason), "generic") if event.agent == "machine" else ""
            data["client-info"] = {"user-agent": event.user_agent, "bot": bot}
        if event.kind in ("bounced", "deferred", "failed"):
            classes = {"soft": "old", "block": "espblock"}
            data["severity"] = "temporary" if event.kind == "deferred" else "permanent"
            data["reason"] = "generic" if event.kind == "deferred" else classes.get(event.bounce_class, "bounce")
        if event.kind == "rejected":
            data["reject"] = {"reason": event.detail}
        elif event.code or event.detail:
            data["delivery-status"] = {"code": event.code, "message": event.detail, "description": ""}
        return msgspec.json.encode({"event-data": data})


# What `write` can say, kind to Mailgun's word.
WORDS = {
    "queued": "accepted",
    "rejected": "rejected",
    "delivered": "delivered",
    "deferred": "failed",
    "bounced": "failed",
    "opened": "opened",
    "clicked": "clicked",
    "unsubscribed": "unsubscribed",
    "complained": "complained",
}


def is_json(body: bytes) -> bool:
    return body.lstrip()[:1] in (b"{", b"[")


def hexdigest(secret: str, timestamp: str, token: str) -> str:
    return hmac.new(secret.encode(), f"{timestamp}{token}".encode("utf-8", "replace"), sha256).hexdigest()


def message_id_of(given: str) -> str:
    """Return a Message-ID with its angle brackets, as Mailgun's send call answers it; events have it without."""
    return given if not given or given.startswith("<") else f"<{given}>"


def data_to_event(data: dict) -> Event:
    name = text(data.get("event"))
    if not name:
        raise Malformed("An event of Mailgun says what happened in `event`")
    headers, status, client = sub(sub(data, "message"), "headers"), sub(data, "delivery-status"), sub(data, "client-info")
    code = text(status.get("code"))
    event = Event(
        kind=KINDS.get(name, "unknown"),
        occurred_at_us=number_us(data.get("timestamp")),
        recipient=text(data.get("recipient")),
        message_id=message_id_of(text(headers.get("message-id"))),
        url=text(data.get("url")),
        user_agent=text(client.get("user-agent")),
        ip=text(data.get("ip")),
        code=text(status.get("enhanced-code")) or code,
        detail=text(status.get("message")) or text(status.get("description")) or text(sub(data, "reject").get("reason")),
        name=name,
        tags=texts(data.get("tags")),
        metadata=sub(data, "user-variables"),
        campaign=native_campaign(data),
    )
    # Mailgun's `id` is unique within a day only.
    if data.get("id") and event.occurred_at_us:
        event.event_id = f"{datetime.fromtimestamp(event.occurred_at_us / 1e6, UTC):%Y-%m-%d}:{text(data.get('id'))}"
    why = text(data.get("reason"))
    if why:
        event.reason = REASONS.get(why, "other")
    if name == "failed":
        failed(event, why, code, temporary=data.get("severity") == "temporary")
    elif event.kind == "rejected":
        event.reason = event.reason or "other"
        event.recipient = event.recipient or bare_address(text(headers.get("to")))
    elif event.kind in ("opened", "clicked"):
        bot = text(client.get("bot"))
        if bot:
            event.agent, event.agent_reason = "machine", f"vendor flag: client-info.bot={bot}" + (f" ({BOTS[bot]})" if bot in BOTS else "")
    return event


def failed(event: Event, why: str, code: str, *, temporary: bool) -> None:
    """Tell apart what `failed` lumps together: will be tried again, never left Mailgun, or bounced."""
    if temporary:
        event.kind = "deferred"
    elif why.startswith("suppress-") or code in SUPPRESSED_CODES:
        event.kind = "rejected"
        event.reason = event.reason if why.startswith("suppress-") and event.reason != "other" else CODE_REASONS.get(code, "other")
    else:
        # `old` ran out of time and `espblock` was refused by policy: neither says that the address is dead.
        event.bounce_class = {"old": "soft", "espblock": "block"}.get(why, "hard")


def native_campaign(data: dict) -> str:
    campaigns = data.get("campaigns")
    if isinstance(campaigns, list) and campaigns and isinstance(campaigns[0], dict):
        return text(campaigns[0].get("name")) or text(campaigns[0].get("id"))
    return ""


def legacy_to_event(pairs: list[tuple[str, str]]) -> Event:
    """Read a form post: of a repeated field the first value is Mailgun's, of the signed three the last."""
    name = first(pairs, "event")
    if not name and first(pairs, "sender"):
        raise Malformed(
            "This is inbound mail, not an event",
            todo="In Mailgun, point the receiving route elsewhere; this URL is for tracking webhooks",
        )
    event = Event(
        kind=LEGACY_KINDS.get(name, "unknown"),
        occurred_at_us=number_us(last(pairs, "timestamp")),
        recipient=first(pairs, "recipient"),
        message_id=message_id_of(first(pairs, "Message-Id") or first(pairs, "message-id")),
        url=first(pairs, "url"),
        user_agent=first(pairs, "user-agent"),
        ip=first(pairs, "ip"),
        code=first(pairs, "code"),
        detail=first(pairs, "error") or first(pairs, "notification") or first(pairs, "description"),
        name=name,
        tags=[value for key, value in pairs if key == "tag"] or [value for key, value in pairs if key == "X-Mailgun-Tag"],
        metadata=legacy_metadata(name, pairs),
        campaign=first(pairs, "campaign-name") or first(pairs, "campaign-id"),
    )
    if event.kind in ("bounced", "rejected") and event.code:
        smtp = event.code[:1] in ("4", "5")
        event.reason = CODE_REASONS.get(event.code) or ("bounced" if smtp else "other")
    if event.kind == "bounced":
        event.bounce_class = "hard"
    return event


def legacy_metadata(name: str, pairs: list[tuple[str, str]]) -> dict:
    """Return the custom variables, from the message's headers where the post has them, else from the fields that are left."""
    headers = last(pairs, "message-headers")
    if headers:
        merged: dict = {}
        for header in decode_json(headers):
            if isinstance(header, list) and len(header) > 1 and text(header[0]).lower() == "x-mailgun-variables":
                merged |= as_dict(decode_json(text(header[1])))
        return merged
    if name not in LEGACY_MERGED:
        return {}
    metadata: dict = {}
    for key in dict.fromkeys(key for key, _ in pairs):
        values = [value for other, value in pairs if other == key]
        if key not in LEGACY_FIELDS or (key == "url" and name != "clicked"):
            metadata[key] = values[-1]
        elif len(values) > 1 and key != "tag":
            # The other one of two is a custom variable of the same name.
            metadata[key] = values[0] if key in SIGNED_FIELDS else values[-1]
    return metadata


PLUGIN = Mailgun
EXAMPLES = Mailgun.EXAMPLES = [
    {
        "title": "A click of a person",
        "body": {
            "event-data": {
                "event": "clicked",
                "id": "Ase7i2zsRYeDXztHGENqRA",
                "timestamp": 1764000000.25,
                "recipient": "ada@example.com",
                "url": "https://shop.example/spring",
                "ip": "203.0.113.9",
                "client-info": {"user-agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0", "bot": ""},
                "message": {"headers": {"message-id": "20251124.1.A7@shop.example"}},
                "tags": ["newsletter"],
                "user-variables": {"campaign": "spring", "variant": "B"},
            }
        },
        "events": [
            {
                "kind": "clicked",
                "event_id": "2025-11-24:Ase7i2zsRYeDXztHGENqRA",
                "occurred_at_us": 1764000000250000,
                "recipient": "ada@example.com",
                "message_id": "<20251124.1.A7@shop.example>",
                "url": "https://shop.example/spring",
                "campaign": "spring",
                "variant": "B",
                "tags": ["newsletter"],
                "agent": "",
            }
        ],
    },
    {
        "title": "An open by Apple's mail privacy protection",
        "body": {
            "event-data": {
                "event": "opened",
                "id": "b3Blbg",
                "timestamp": 1764000000,
                "recipient": "ada@example.com",
                "client-info": {"user-agent": "Mozilla/5.0", "bot": "apple"},
                "user-variables": [],
            }
        },
        "events": [
            {"kind": "opened", "agent": "machine", "agent_reason": "vendor flag: client-info.bot=apple (Apple's mail privacy protection)"}
        ],
    },
    {
        "title": "A message to an address on the suppression list is rejected, not bounced",
        "body": {
            "event-data": {
                "event": "failed",
                "severity": "permanent",
                "reason": "suppress-bounce",
                "id": "c3VwcHJlc3M",
                "timestamp": 1764000000,
                "recipient": "gone@example.com",
                "delivery-status": {"code": 605, "message": "", "description": "Not delivering to previously bounced address"},
            }
        },
        "events": [{"kind": "rejected", "reason": "bounced", "code": "605", "detail": "Not delivering to previously bounced address"}],
    },
    {
        "title": "The form that Mailgun posted until 2023",
        "headers": {"content-type": "application/x-www-form-urlencoded"},
        "body": "event=opened&recipient=ada%40example.com&timestamp=1764000000&tag=newsletter&campaign=spring",
        "events": [
            {
                "kind": "opened",
                "recipient": "ada@example.com",
                "occurred_at_us": 1764000000000000,
                "tags": ["newsletter"],
                "campaign": "spring",
            }
        ],
    },
]
