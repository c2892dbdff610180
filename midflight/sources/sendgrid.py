"""SendGrid's Event Webhook: a JSON array, signed with ECDSA P-256 over timestamp and raw body."""

from __future__ import annotations

import base64
from functools import lru_cache

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ..events import Event
from ..kit.errors import ConfigError
from .source import (
    Flat,
    Malformed,
    Refused,
    Request,
    Source,
    as_dict,
    b64_bytes,
    decode_items,
    header_bytes_max,
    number_us,
    text,
    texts,
    with_headers,
)

SIGNATURE = "x-twilio-email-event-webhook-signature"
TIMESTAMP = "x-twilio-email-event-webhook-timestamp"

KINDS = {
    "processed": "queued",
    "delivered": "delivered",
    "deferred": "deferred",
    "dropped": "rejected",
    "bounce": "bounced",
    "blocked": "bounced",
    "open": "opened",
    "click": "clicked",
    "spamreport": "complained",
    "spam report": "complained",  # the spelling of older documentation
    "unsubscribe": "unsubscribed",
    "group_unsubscribe": "unsubscribed",
    "group unsubscribe": "unsubscribed",
    "group_resubscribe": "subscribed",
    "group resubscribe": "subscribed",
}

# `dropped` says why in `reason`; unlisted reasons are blocks.
DROP_REASONS = {
    "unsubscribed address": "unsubscribed",
    "spam reporting address": "spam",
    "spam content": "spam",
    "bounced address": "bounced",
    "invalid": "invalid",
}

# The words of the email activity feed, in its CSV and in its API, for those of the webhook.
FEED_WORDS = {
    "bounced": "bounce",
    "opened": "open",
    "opens": "open",
    "clicked": "click",
    "clicks": "click",
    "spam_report": "spamreport",
    "drop": "dropped",
}

# Custom arguments are flattened into the top level, so whatever is not one of SendGrid's own keys is one of them.
OWN_KEYS = frozenset(
    "asm_group_id attempt bounce_classification category cert_err curlyquotes email event ip marketing_campaign_id "
    "marketing_campaign_name marketing_campaign_split_id marketing_campaign_version mc_auto_id mc_auto_name mc_pod_id "
    "mc_stats newsletter nlvx_campaign_id nlvx_campaign_split_id nlvx_user_id phase_id pool post_type reason response send_at "
    "sg_content_type sg_event_id sg_machine_open sg_message_id sg_template_id sg_template_name sg_user_id singlesend_id "
    "singlesend_name smtp-id status template_hash template_id template_name template_version_id timestamp tls type url "
    "url_offset useragent".split()
)


class SendGrid(Source):
    label = "SendGrid"
    docs_url = "https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event"
    shape = "array"
    signs = True

    @classmethod
    def configure(cls, settings: dict, name: str):
        config = super().configure(settings, name)
        for secret in config.secrets:
            value = secret if isinstance(secret, str) else secret.value
            try:
                load_key(value)
            except (ValueError, TypeError):
                raise ConfigError(
                    f"Source `{name}`: a secret is not a SendGrid verification key",
                    expected="the public key that SendGrid shows, base64 or PEM",
                    where=f"$.sources.{name}.secrets",
                ) from None
        return config

    def signature(self, request: Request) -> int:
        signed_at, given = request.header(TIMESTAMP), request.header(SIGNATURE)
        if not signed_at or not given or len(signed_at) + len(given) > header_bytes_max:
            raise Refused(f"{self.label}: the signature or its timestamp is missing")
        signature = b64_bytes(given)
        message = signed_at.encode("utf-8", "replace") + request.body

        def fits(secret: str) -> bool:
            key = load_key(secret)
            key = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key
            try:
                key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            except InvalidSignature:
                return False
            return True

        return self.match("signature", self.active(request), fits)

    def sign(self, request: Request) -> Request:
        """Sign with the private key that stands in ``secrets`` (a real set-up holds only SendGrid's public one)."""
        if not self.config.secrets:
            return super().sign(request)
        signed_at = str(request.received_at_us // 1_000_000)
        key = load_key(self.active(request)[0])
        signature = key.sign(signed_at.encode() + request.body, ec.ECDSA(hashes.SHA256()))
        return with_headers(request, {TIMESTAMP: signed_at, SIGNATURE: base64.b64encode(signature).decode()})

    def items(self, request: Request) -> list:
        items = decode_items(request.body)
        if not isinstance(items, list):
            raise Malformed("SendGrid sends an array of events", got=type(items).__name__)
        return items

    def events(self, item: object, request: Request) -> Event | None:
        item = as_dict(item)
        name = text(item.get("event"))
        kind = KINDS.get(name, "unknown")
        event = Event(
            event_id=text(item.get("sg_event_id")),
            kind=kind,
            occurred_at_us=number_us(item.get("timestamp")),
            recipient=text(item.get("email")),
            # `sg_message_id` is `ID.filter...`; its head is what the send call answered as X-Message-Id.
            message_id=text(item.get("sg_message_id")).partition(".")[0] or text(item.get("smtp-id")).strip("<>"),
            url=text(item.get("url")),
            user_agent=text(item.get("useragent")),
            ip=text(item.get("ip")),
            code=text(item.get("status")),
            detail=text(item.get("response")) or text(item.get("reason")),
            name=name,
            tags=texts(item.get("category")),
            metadata={key: value for key, value in item.items() if key not in OWN_KEYS},
            campaign=text(item.get("singlesend_name")) or text(item.get("marketing_campaign_name")),
            variant=text(item.get("marketing_campaign_version")),
        )
        if kind == "bounced":
            blocked = name == "blocked" or item.get("type") == "blocked"
            event.bounce_class, event.reason = ("block", "blocked") if blocked else ("hard", "bounced")
        elif kind == "rejected":
            said = text(item.get("reason")) or text(item.get("type"))
            event.reason, event.detail = DROP_REASONS.get(said.lower(), "blocked"), said
        elif kind == "opened" and item.get("sg_machine_open") is True:
            event.agent, event.agent_reason = "machine", "vendor flag: sg_machine_open"
        return event

    def flat(self) -> Flat | None:
        keys = {
            "event_id": "sg_event_id",
            "recipient": "email",
            "at_s": "timestamp",
            "kind": "event",
            "message_id": "sg_message_id",
            "url": "url",
            "user_agent": "useragent",
            "ip": "ip",
            "bounce": "type",
            "machine": "sg_machine_open",
            "tags": "category",
            "campaign2": "singlesend_name",
            "campaign3": "marketing_campaign_name",
            "variant2": "marketing_campaign_version",
        }
        for field in ("campaign", "variant", "wave"):
            # One custom argument each, and tags at most after it: else the way to the name is too long for the fast reader.
            first, *rest = self._paths[field]
            if not first.startswith("metadata.") or first[9:] in OWN_KEYS or any(not path.startswith("tag") for path in rest):
                return None
            keys[field] = first[9:]
        return Flat(keys, KINDS, "blocked", ".") if len(set(keys.values())) == len(keys) else None

    def write(self, events: list[Event]) -> bytes:
        """Return the body that SendGrid would send for these events: for the sandbox and the tests."""
        names = {"queued": "processed", "rejected": "dropped", "bounced": "bounce", "opened": "open", "clicked": "click"}
        names |= {"complained": "spamreport", "unsubscribed": "unsubscribe", "subscribed": "group_resubscribe"}
        items = []
        for event in events:
            item = {
                "email": event.recipient,
                "timestamp": event.occurred_at_us // 1_000_000,
                "event": names.get(event.kind, event.kind),
                "sg_event_id": event.event_id,
                "sg_message_id": f"{event.message_id}.filter0001.1.0",
            }
            optional = {"url": event.url, "useragent": event.user_agent, "ip": event.ip, "status": event.code, "reason": event.detail}
            item |= {name: value for name, value in optional.items() if value}
            if event.bounce_class:
                item["type"] = "blocked" if event.bounce_class == "block" else "bounce"
            if event.agent == "machine" and event.kind == "opened":
                item["sg_machine_open"] = True
            for name in ("campaign", "variant", "wave"):
                if getattr(event, name):
                    item[name] = getattr(event, name)
            items.append(item | event.metadata)
        return msgspec.json.encode(items)


@lru_cache(maxsize=64)
def load_key(secret: str):
    """Return the key of a secret: PEM or bare base64 SPKI; a private key only in tests and the sandbox."""
    if "PRIVATE KEY" in secret:
        key = serialization.load_pem_private_key(secret.encode(), None)
        curve = key.curve if isinstance(key, ec.EllipticCurvePrivateKey) else None
    else:
        if "BEGIN" in secret:
            key = serialization.load_pem_public_key(secret.encode())
        else:
            key = serialization.load_der_public_key(base64.b64decode(secret))
        curve = key.curve if isinstance(key, ec.EllipticCurvePublicKey) else None
    if not isinstance(curve, ec.SECP256R1):
        raise ValueError("SendGrid signs with ECDSA on P-256")
    return key


PLUGIN = SendGrid
EXAMPLES = SendGrid.EXAMPLES = [
    {
        "title": "A click with custom arguments",
        "body": [
            {
                "email": "ada@example.com",
                "timestamp": 1764000000,
                "event": "click",
                "sg_event_id": "c2Vjb25kLWV4YW1wbGU",
                "sg_message_id": "14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.0",
                "useragent": "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_0) AppleWebKit/605.1.15 Version/17.0 Safari/605.1.15",
                "ip": "203.0.113.9",
                "url": "https://shop.example/spring",
                "campaign": "spring",
                "variant": "B",
            }
        ],
        "events": [
            {
                "kind": "clicked",
                "recipient": "ada@example.com",
                "event_id": "c2Vjb25kLWV4YW1wbGU",
                "message_id": "14c5d75ce93",
                "occurred_at_us": 1764000000000000,
                "campaign": "spring",
                "variant": "B",
                "url": "https://shop.example/spring",
            }
        ],
    },
    {
        "title": "A block is a bounce that says nothing against the address",
        "body": [
            {
                "email": "ada@example.com",
                "timestamp": 1764000000,
                "event": "bounce",
                "type": "blocked",
                "sg_event_id": "YmxvY2tlZA",
                "sg_message_id": "14c5d75ce93.filter",
                "reason": "550 5.7.1 blocked",
                "status": "5.7.1",
            }
        ],
        "events": [{"kind": "bounced", "bounce_class": "block", "reason": "blocked", "code": "5.7.1"}],
    },
]
