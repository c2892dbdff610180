"""Postal's webhooks: one JSON object, signed with the server's RSA key over the raw body (SHA-256, and SHA-1 of old)."""

from __future__ import annotations

import base64
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from ..events import Event
from ..kit.errors import ConfigError
from .source import Refused, Request, Source, as_dict, b64_bytes, bare_address, header_bytes_max, number_us, sub, text, with_headers

# The stronger one first: where Postal sends it, it alone decides.
SIGNATURES = (("x-postal-signature-256", hashes.SHA256), ("x-postal-signature", hashes.SHA1))

STATUSES = {"Sent": "delivered", "SoftFail": "deferred", "HardFail": "bounced", "Held": "queued", "Bounced": "bounced"}
NAMES = {
    "MessageSent": "delivered",
    "MessageDelayed": "deferred",
    "MessageDeliveryFailed": "bounced",
    "MessageHeld": "queued",
    "MessageBounced": "bounced",
    "MessageLinkClicked": "clicked",
    "MessageLoaded": "opened",
}


class Postal(Source):
    """Secrets are the server's public signing key (PEM, or only its base64).

    Postal has one tag and no metadata, so the tag may carry several labels: ``campaign:spring,variant:B``; a tag without a
    colon is the campaign.
    """

    label = "Postal"
    docs_url = "https://docs.postalserver.io/developer/webhooks"
    shape = "object"
    signs = True

    @classmethod
    def configure(cls, settings: dict, name: str):
        config = super().configure(settings, name)
        for secret in config.secrets:
            try:
                load_key(secret if isinstance(secret, str) else secret.value)
            except (ValueError, TypeError):
                raise ConfigError(
                    f"Source `{name}`: a secret is not Postal's signing key",
                    expected="an RSA public key, base64 or PEM",
                    where=f"$.sources.{name}.secrets",
                    todo="`postal default-dkim-record` shows it as `p=...`",
                ) from None
        return config

    def signature(self, request: Request) -> int:
        header, digest = next(((h, d) for h, d in SIGNATURES if h in request.headers), SIGNATURES[0])
        given = request.header(header)
        if not given or len(given) > header_bytes_max:
            raise Refused(f"{self.label}: the signature is missing or too long")
        signature = b64_bytes(given)

        def fits(secret: str) -> bool:
            key = load_key(secret)
            key = key.public_key() if isinstance(key, rsa.RSAPrivateKey) else key
            try:
                key.verify(signature, request.body, padding.PKCS1v15(), digest())
            except InvalidSignature:
                return False
            return True

        return self.match("signature", self.active(request), fits)

    def sign(self, request: Request) -> Request:
        """Sign with the private key that stands in ``secrets`` (a real set-up holds only the server's public one)."""
        if not self.config.secrets:
            return super().sign(request)
        key = load_key(self.active(request)[0])
        made = {h: base64.b64encode(key.sign(request.body, padding.PKCS1v15(), d())).decode() for h, d in SIGNATURES}
        return with_headers(request, made)

    def events(self, item: object, request: Request) -> Event | None:
        item = as_dict(item)
        name = text(item.get("event"))
        payload = sub(item, "payload")
        message = sub(payload, "message") or sub(payload, "original_message")
        if not message and name and name not in NAMES:
            return None  # DomainDNSError, SendLimitApproaching, SendLimitExceeded: about the account
        if message.get("direction") == "incoming":
            return None  # Postal also reports on mail that it received; nobody got a message of ours
        # The payload says more than the name: a bounce arrives as MessageDelayed in Postal's own examples.
        kind = "bounced" if sub(payload, "bounce") else STATUSES.get(text(payload.get("status")), NAMES.get(name, "unknown"))
        to = text(message.get("to"))[:1000]
        tags = [tag.strip() for tag in text(message.get("tag")).split(",") if tag.strip()]
        return Event(
            event_id=text(item.get("uuid")),
            kind=kind,
            occurred_at_us=number_us(item.get("timestamp")),
            recipient=bare_address(to),
            message_id=text(message.get("id")),
            url=text(payload.get("url")),
            user_agent=text(payload.get("user_agent")),
            ip=text(payload.get("ip_address")),
            bounce_class="hard" if kind == "bounced" else "",
            reason="bounced" if kind == "bounced" else "",
            detail=text(payload.get("output")) or text(payload.get("details")),
            name=name,
            tags=tags,
            campaign=next((tag for tag in tags if ":" not in tag and "=" not in tag), ""),
        )


@lru_cache(maxsize=64)
def load_key(secret: str):
    """Return the key of a secret: PEM or bare base64 SPKI; a private key only in tests and the sandbox."""
    if "PRIVATE KEY" in secret:
        key = serialization.load_pem_private_key(secret.encode(), None)
    elif "BEGIN" in secret:
        key = serialization.load_pem_public_key(secret.encode())
    else:
        key = serialization.load_der_public_key(base64.b64decode(secret))
    if not isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        raise ValueError("Postal signs with RSA")
    return key


EXAMPLES = Postal.EXAMPLES = [
    {
        "title": "Delivered; the tag carries the labels",
        "body": {
            "event": "MessageSent",
            "timestamp": 1764000000.25,
            "uuid": "6d0f2a1c-3f6e-4d0a-9f1b-0c9d7a5e2b10",
            "payload": {
                "message": {
                    "id": 4711,
                    "token": "Zk3vQ9aLm2Xe",
                    "direction": "outgoing",
                    "message_id": "a7c1@rp.postal.example",
                    "to": "Ada <ada@example.com>",
                    "from": "shop@example.com",
                    "subject": "Spring",
                    "timestamp": 1763999990.5,
                    "tag": "campaign:spring,variant:B",
                },
                "status": "Sent",
                "details": "Message for ada@example.com accepted",
                "output": "250 2.0.0 OK",
                "time": 0.42,
            },
        },
        "events": [
            {
                "kind": "delivered",
                "recipient": "ada@example.com",
                "event_id": "6d0f2a1c-3f6e-4d0a-9f1b-0c9d7a5e2b10",
                "message_id": "4711",
                "occurred_at_us": 1764000000250000,
                "campaign": "spring",
                "variant": "B",
            }
        ],
    },
    {
        "title": "A click; a plain tag is the campaign",
        "body": {
            "event": "MessageLinkClicked",
            "timestamp": 1764000000.0,
            "uuid": "6d0f2a1c-3f6e-4d0a-9f1b-0c9d7a5e2b11",
            "payload": {
                "message": {"id": 4711, "direction": "outgoing", "to": "ada@example.com", "tag": "spring"},
                "url": "https://shop.example/spring",
                "token": "cl1ck",
                "ip_address": "203.0.113.9",
                "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
            },
        },
        "events": [{"kind": "clicked", "campaign": "spring", "url": "https://shop.example/spring", "ip": "203.0.113.9"}],
    },
]
