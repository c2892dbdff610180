"""Way `web_push`."""

from __future__ import annotations

import base64
import binascii
import hashlib
from ipaddress import ip_network
from typing import Annotated, ClassVar, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ...events import clean
from ...kit.errors import ConfigError, MidflightError
from ..guarded import url_problem
from . import way
from .way import EXAMPLE, Action, Answer, Call, Outcome, Text, Way, origin, unsettled

payload_bytes_max = 3993  # what RFC 8291 section 4 leaves of the 4096 that every push service takes
ttl_s_max = 28 * 24 * 3600
token_s = 12 * 3600  # RFC 8292 allows 24 hours
tokens_max = 100  # kept, by push service
record_bytes = 4096
LOOPBACK = ip_network("127.0.0.0/8")


class Settings(way.Settings, kw_only=True):
    private_key: str  # the VAPID key: 32 bytes in base64url. The site subscribes browsers with its public key
    subject: str  # whom push services may write to: mailto:ops@example.com, or https://...

    def __post_init__(self) -> None:
        if not self.subject.startswith(("mailto:", "https://")):
            raise ConfigError("The contact for push services", expected="mailto:... or https://...", got=self.subject, where="subject")
        private_key_of(self.private_key)


class Fields(way.Fields, kw_only=True):
    endpoint: Annotated[str, Text("plain", 2000)]  # of the browser's subscription: `{{ push.endpoint }}`
    p256dh: Annotated[str, Text("line", 200)]  # its public key: `{{ push.p256dh }}`
    auth: Annotated[str, Text("line", 60)]  # its secret: `{{ push.auth }}`
    title: Annotated[str, Text("line", 120)]  # the notification's first line
    body: Annotated[str, Text("plain", 1000)] = ""  # and what stands below
    link: Annotated[str, Text("url", 1000)] = ""  # where a click leads
    urgency: Literal["very-low", "low", "normal", "high"] = "normal"  # on battery, a device is only woken for what is urgent
    ttl_s: Annotated[int, msgspec.Meta(ge=0, le=ttl_s_max)] = 24 * 3600  # how long the push service keeps it for a device that is off


class WebPush(Way):
    """An encrypted message to a browser (RFC 8030 the protocol, RFC 8291 and 8188 the encryption, RFC 8292 VAPID).

    404 and 410 say that the subscription is gone: the outcome's code is ``gone``, and whoever keeps subscriptions deletes this one. There
    is no idempotency key; ``Topic`` and the notification's ``tag``, both made of the action's id, let a second one replace the first where
    it is still to be seen, which is no promise: an unanswered call is unknown. The payload is ``{"id", "title", "body", "link", "tag"}``.
    """

    label: ClassVar[str] = "Web push"
    reaches_people: ClassVar[bool] = True
    doc: ClassVar[str] = "A notification in a browser that somebody has subscribed with. It cannot be taken back."
    Settings = Settings
    Fields = Fields

    def __init__(self, settings: Settings, *given: object) -> None:
        super().__init__(settings, *given)
        self._key = private_key_of(settings.private_key)
        self._tokens: dict[str, tuple[int, str]] = {}

    def target(self, action: Action) -> str:
        return origin(self.said(action).endpoint)

    def calls(self, actions: list[Action], now_us: int) -> Call:
        (action,) = actions
        fields: Fields = self.said(action)
        # Whether it may be connected to, and by what scheme, is the guard's to say: a browser's word is no better than anybody's.
        if problem := url_problem(fields.endpoint, http=True, ports=None, allow=(LOOPBACK,)):
            raise MidflightError("The endpoint of a push subscription", expected=problem, got=fields.endpoint[:100], where="endpoint")
        topic = base64url(hashlib.sha256(action.id.encode()).digest()[:24])
        payload = {"id": action.id, "title": fields.title, "body": fields.body, "link": fields.link, "tag": topic}
        body = encrypted(
            msgspec.json.encode(payload), decoded64(fields.p256dh, 65, "p256dh"), decoded64(fields.auth, 16, "auth"),
            sender=ec.derive_private_key(_scalar(self.entropy(40)), ec.SECP256R1()), salt=self.entropy(16),
        )  # fmt: skip
        left_s = (action.expires_us - now_us) // 1_000_000 if action.expires_us else ttl_s_max
        headers = {
            "content-encoding": "aes128gcm",
            "content-type": "application/octet-stream",
            "ttl": str(max(0, min(fields.ttl_s, left_s))),
            "urgency": fields.urgency,
            "topic": topic,
            "authorization": self._authorization(origin(fields.endpoint), now_us // 1_000_000),
        }
        return Call(url=fields.endpoint, headers=headers, body=body)

    def _authorization(self, audience: str, now_s: int) -> str:
        """Return VAPID's header. A token is used for half of its life, and only for the service that it names."""
        made_s, made = self._tokens.get(audience, (0, ""))
        if not made or not 0 <= now_s - made_s < token_s // 2:
            if len(self._tokens) >= tokens_max:
                del self._tokens[next(iter(self._tokens))]
            made = vapid(self._key, audience, now_s + token_s, self.settings.subject)
            self._tokens[audience] = (now_s, made)
        return made

    def forget_token(self) -> None:
        self._tokens.clear()

    def outcomes(self, actions: list[Action], answer: Answer) -> list[Outcome]:
        # 201 is what the standard says; a 200 that says something may be saying what is wrong.
        if answer.status in (201, 202) or (answer.status == 200 and ("location" in answer.headers or not answer.body)):
            return [Outcome(kind="sent", message_id=clean(answer.headers.get("location", ""))[:500])] * len(actions)
        if answer.status in (404, 410):
            return [Outcome(kind="refused", code="gone", detail="The browser's subscription is gone")] * len(actions)
        return unsettled(actions, answer)

    EXAMPLES = (
        {
            "settings": {"private_key": "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw", "subject": "mailto:ops@shop.example"},
            "actions": [
                msgspec.structs.replace(
                    EXAMPLE,
                    fields={
                        "endpoint": "https://push.example.net/push/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV",
                        "p256dh": "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",
                        "auth": "BTBZMqHH6r4Tts7J_aSIgg",
                        "title": "Two days left",
                    },
                )
            ],
            "url": "https://push.example.net/push/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV",
            "headers": {"content-encoding": "aes128gcm", "ttl": "86400", "urgency": "normal"},
            "answers": [
                ({"status": 201, "headers": {"location": "https://push.example.net/message/x"}}, [{"kind": "sent"}]),
                ({"status": 410}, [{"kind": "refused", "code": "gone"}]),
                ({"status": 404}, [{"kind": "refused", "code": "gone"}]),
                ({"status": 413}, [{"kind": "refused", "code": "413"}]),
                ({"status": 429, "headers": {"retry-after": "60"}}, [{"kind": "later", "retry_s": 60.0}]),
                ({"status": 500}, [{"kind": "unknown"}]),
            ],
        },
    )


# -- keys ---------------------------------------------------------------------------------------------------------------------------


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decoded64(text: str, size: int, where: str) -> bytes:
    """Return the bytes of base64url text. Raises MidflightError where they are not so many."""
    try:
        found = base64.urlsafe_b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4))
    except (binascii.Error, ValueError):
        found = b""
    if len(found) != size:
        raise MidflightError("A key of a push subscription", expected=f"{size} bytes in base64url", got=text[:20], where=where)
    return found


def public_point(p256dh: str, auth: str) -> ec.EllipticCurvePublicKey:
    """Return a browser's key, with both keys of its subscription checked. Raises MidflightError."""
    decoded64(auth, 16, "auth")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), decoded64(p256dh, 65, "p256dh"))
    except ValueError:
        raise MidflightError("A key of a push subscription", expected="a point of P-256", where="p256dh") from None


def private_key_of(text: str) -> ec.EllipticCurvePrivateKey:
    """Return the VAPID key. Raises ConfigError."""
    try:
        return ec.derive_private_key(int.from_bytes(decoded64(text, 32, "private_key")), ec.SECP256R1())
    except (MidflightError, ValueError):
        raise ConfigError("The VAPID key", expected="32 bytes in base64url, of the curve P-256", where="private_key") from None


def _scalar(random: bytes) -> int:
    """Return a private key of P-256 from random bytes: more than are needed, so that none is likelier than another."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    return 1 + int.from_bytes(random) % (order - 1)


def point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


def vapid(key: ec.EllipticCurvePrivateKey, audience: str, expires_s: int, subject: str) -> str:
    """Return the ``Authorization`` of RFC 8292: a token signed with ES256, and the public key."""
    parts = {"typ": "JWT", "alg": "ES256"}, {"aud": audience, "exp": expires_s, "sub": subject}
    signed = ".".join(base64url(msgspec.json.encode(part)) for part in parts)
    r, s = utils.decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"vapid t={signed}.{base64url(r.to_bytes(32) + s.to_bytes(32))}, k={base64url(point(key.public_key()))}"


# -- RFC 8291 over RFC 8188 -----------------------------------------------------------------------------------------------------------


def _derived(salt: bytes, secret: bytes, info: bytes, size: int) -> bytes:
    return HKDF(hashes.SHA256(), size, salt, info).derive(secret)


def _keys(shared: bytes, auth: bytes, receiver: bytes, sender: bytes, salt: bytes) -> tuple[bytes, bytes]:
    """Return the key and the nonce of the only record (RFC 8291 section 3.4)."""
    secret = _derived(auth, shared, b"WebPush: info\x00" + receiver + sender, 32)
    return _derived(salt, secret, b"Content-Encoding: aes128gcm\x00", 16), _derived(salt, secret, b"Content-Encoding: nonce\x00", 12)


def encrypted(payload: bytes, p256dh: bytes, auth: bytes, *, sender: ec.EllipticCurvePrivateKey, salt: bytes) -> bytes:
    """Return a payload as only the browser with these keys can read it. ``sender`` and ``salt`` are new for each message.

    Raises MidflightError for a payload that is too long, and a key that is no point of the curve.
    """
    if len(payload) > payload_bytes_max:
        raise MidflightError("A notification is too long", expected=f"at most {payload_bytes_max} bytes", got=len(payload), where="body")
    try:
        receiver = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), p256dh)
    except ValueError:
        raise MidflightError("A key of a push subscription", expected="a point of P-256", where="p256dh") from None
    own = point(sender.public_key())
    key, nonce = _keys(sender.exchange(ec.ECDH(), receiver), auth, p256dh, own, salt)
    # One record, so its delimiter is 2 (RFC 8188 section 2).
    return salt + record_bytes.to_bytes(4) + bytes([len(own)]) + own + AESGCM(key).encrypt(nonce, payload + b"\x02", None)


def decrypted(body: bytes, receiver: ec.EllipticCurvePrivateKey, auth: bytes) -> bytes:
    """Return what a browser reads. Raises ValueError where it was changed or meant for another."""
    salt, size = body[:16], body[20]
    own, sealed = body[21 : 21 + size], body[21 + size :]
    shared = receiver.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), own))
    key, nonce = _keys(shared, auth, point(receiver.public_key()), own, salt)
    try:
        padded = AESGCM(key).decrypt(nonce, sealed, None).rstrip(b"\x00")
    except InvalidTag:
        raise ValueError("the message was changed, or is for another browser") from None
    if not padded.endswith(b"\x02"):
        raise ValueError("the message has no end")
    return padded[:-1]


PLUGIN = WebPush
