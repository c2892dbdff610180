"""SendGrid's Event Webhook: a JSON array, signed with ECDSA P-256 over timestamp and raw body."""

from __future__ import annotations

import base64
from functools import lru_cache

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ..events import AGENTS, BOUNCE_CLASSES, Event
from ..events import KINDS as ALL_KINDS
from ..kit.errors import ConfigError
from .source import (
    Columns,
    Malformed,
    Refused,
    Request,
    Source,
    as_dict,
    b64_bytes,
    decode_json,
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

# Custom arguments are flattened into the top level, so whatever is not one of SendGrid's own keys is one of them.
OWN_KEYS = frozenset(
    "asm_group_id attempt bounce_classification category cert_err curlyquotes email event ip marketing_campaign_id "
    "marketing_campaign_name marketing_campaign_split_id marketing_campaign_version mc_auto_id mc_auto_name mc_pod_id "
    "mc_stats newsletter nlvx_campaign_id nlvx_campaign_split_id nlvx_user_id phase_id pool post_type reason response send_at "
    "sg_content_type sg_event_id sg_machine_open sg_message_id sg_template_id sg_template_name sg_user_id singlesend_id "
    "singlesend_name smtp-id status template_hash template_id template_name template_version_id timestamp tls type url "
    "url_offset useragent".split()
)


_KIND_CODES = {name: ALL_KINDS.index(kind) for name, kind in KINDS.items()}
_TEXT_COLUMNS = ("event_id", "recipient", "message_id", "campaign", "variant", "wave", "url", "user_agent", "ip")
_MACHINE = AGENTS.index("machine")
_HARD, _BLOCK = BOUNCE_CLASSES.index("hard"), BOUNCE_CLASSES.index("block")
_BOUNCED, _OPENED = ALL_KINDS.index("bounced"), ALL_KINDS.index("opened")


class _Row(msgspec.Struct, gc=False):
    """The fields that the stream needs, as they usually are; anything else makes the typed decoder give up."""

    email: str = ""
    timestamp: int = 0
    event: str = ""
    sg_event_id: str = ""
    sg_message_id: str = ""
    url: str = ""
    useragent: str = ""
    ip: str = ""
    type: str = ""
    sg_machine_open: bool = False
    singlesend_name: str = ""
    marketing_campaign_name: str = ""
    marketing_campaign_version: str = ""


class SendGrid(Source):
    label = "SendGrid"
    docs_url = "https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event"
    shape = "array"
    signs = True
    _decoder: msgspec.json.Decoder | bool | None = None

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
        items = decode_json(request.body)
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

    def columns(self, request: Request) -> Columns | None:
        """Read a batch without an object per field. Whatever is out of the ordinary is left to `parse`."""
        if self._decoder is None:
            self._decoder = self._typed_decoder()
        if self._decoder is False:
            return None
        try:
            rows = self._decoder.decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if not rows:
            return None
        kinds = [_KIND_CODES.get(row.event, 0) for row in rows]
        at_us = [row.timestamp for row in rows]
        if min(at_us) > 0 and max(at_us) < 100_000_000_000:
            at_us = [seconds * 1_000_000 for seconds in at_us]
        else:
            at_us = [number_us(value) for value in at_us]
        columns = Columns(
            event_id=[row.sg_event_id for row in rows],
            kind=kinds,
            at_us=at_us,
            recipient=[row.email for row in rows],
            message_id=[row.sg_message_id.partition(".")[0] for row in rows],
            campaign=[row.campaign or row.singlesend_name or row.marketing_campaign_name for row in rows],
            variant=[row.variant or row.marketing_campaign_version for row in rows],
            wave=[row.wave if row.wave.__class__ is str else str(row.wave) for row in rows],
            url=[row.url for row in rows],
            user_agent=[row.useragent for row in rows],
            ip=[row.ip for row in rows],
            agent=[(i, _MACHINE) for i, row in enumerate(rows) if row.sg_machine_open and kinds[i] == _OPENED],
            bounce=[],
        )
        if _BOUNCED in kinds:
            columns.bounce.extend(
                (i, _BLOCK if rows[i].event == "blocked" or rows[i].type == "blocked" else _HARD)
                for i, kind in enumerate(kinds)
                if kind == _BOUNCED
            )
        return columns if self._ordinary(columns, request.body) else None

    def _typed_decoder(self):
        """Return a decoder for just the fields that the stream needs, or False where these travel in tags."""
        names = {}
        for field in ("campaign", "variant", "wave"):
            path = self._paths[field][0]
            if not path.startswith("metadata.") or path[9:] in OWN_KEYS:
                return False
            names[field] = path[9:]
        if len(set(names.values())) < 3:
            return False
        fields = [("campaign", str, ""), ("variant", str, ""), ("wave", str | int, "")]
        row = msgspec.defstruct("Row", fields, bases=(_Row,), rename=names, gc=False)
        return msgspec.json.Decoder(list[row])

    def _ordinary(self, columns: Columns, body: bytes) -> bool:
        """Whether no text needs cleaning, no event lacks an id, and no name has to be looked for in second places."""
        if not (all(columns.event_id) and all(columns.message_id) and all(columns.campaign) and all(columns.variant) and all(columns.wave)):
            return False
        # JSON forbids raw control characters in strings, so plain ASCII without escapes is printable but for DEL.
        if body.isascii() and b"\\" not in body and b"\x7f" not in body:
            return True
        return all("".join(getattr(columns, name)).isprintable() for name in _TEXT_COLUMNS)

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
