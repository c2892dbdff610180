"""Amazon SES by way of SNS: a signed envelope whose `Message` is SES's event as JSON text, in either of SES's two formats.

With `topics` set, an envelope counts only if Amazon signed it and it comes from one of them: anybody can point a topic of his own at
this URL, and Amazon signs that too. The certificate is fetched from Amazon's host only after everything else has passed, and kept.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import parse_qs, urlsplit

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from ..events import Event
from ..kit.clock import Clock
from ..kit.errors import ConfigError, MidflightError
from ._certificates import Certificates, NotNow
from .source import (
    Malformed,
    Refused,
    Request,
    Response,
    Source,
    SourceConfig,
    as_dict,
    b64_bytes,
    content_id,
    decode_json,
    header_bytes_max,
    iso_us,
    same,
    sub,
    text,
    texts,
    with_headers,
)

certificate_bytes_max = 64 * 1024
fetch_s_max = 5.0

HOST = re.compile(r"sns\.[a-z0-9-]+\.amazonaws\.com(\.cn)?")
CERTIFICATE_PATH = re.compile(r"/SimpleNotificationService-[A-Za-z0-9_-]{1,128}\.pem")
ENVELOPES = {
    "Notification": ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    "SubscriptionConfirmation": ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
    "UnsubscribeConfirmation": ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
}
HASHES = {"1": hashes.SHA1, "2": hashes.SHA256}

# SES's word: our kind, and the object that says more (`Rendering Failure` has a blank, and another object).
KINDS = {
    "Send": ("sent", "send"),
    "Delivery": ("delivered", "delivery"),
    "DeliveryDelay": ("deferred", "deliveryDelay"),
    "Bounce": ("bounced", "bounce"),
    "Complaint": ("complained", "complaint"),
    "Reject": ("rejected", "reject"),
    "Open": ("opened", "open"),
    "Click": ("clicked", "click"),
    "Rendering Failure": ("failed", "failure"),
    "RenderingFailure": ("failed", "failure"),
    "Subscription": ("unsubscribed", "subscription"),
}
# Events of these objects name their recipients; all others only have the destinations of the mail.
RECIPIENTS = {
    "bounce": "bouncedRecipients",
    "complaint": "complainedRecipients",
    "deliveryDelay": "delayedRecipients",
    "delivery": "recipients",
}
# What somebody did, but SES does not know who of several.
AMBIGUOUS = ("opened", "clicked", "unsubscribed", "subscribed", "complained")
SUPPRESSED = ("Suppressed", "OnAccountSuppressionList")
BLOCKS = ("ContentRejected", "AttachmentRejected")
AUTOMATED = re.compile("auto|bot", re.IGNORECASE)


class SESConfig(SourceConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``topics`` are the ARNs whose messages count. ``cert_pem`` is used in place of Amazon's certificate and nothing is fetched.

    ``secrets`` do the same and can be several: PEM certificates or public keys, or a private key, with which the sandbox signs.
    """

    topics: list[str] = []
    cert_pem: str = ""


class SES(Source):
    label = "Amazon SES"
    docs_url = "https://docs.aws.amazon.com/ses/latest/dg/event-publishing-retrieving-sns-contents.html"
    shape = "object"
    signs = True
    headers_kept = ("x-amz-sns-message-id",)  # the event's id where raw message delivery leaves the envelope away
    Config = SESConfig

    def __init__(self, config: SESConfig, *, name: str, fetch: Callable[[str], bytes] | None = None) -> None:
        super().__init__(config, name=name)
        self.fetch = fetch or fetch_certificate
        self.certificates = Certificates(self.fetched)

    @classmethod
    def configure(cls, settings: dict, name: str) -> SESConfig:
        # Topics are enough: Amazon's certificate is the secret then.
        pinned = bool(settings.get("topics") or settings.get("cert_pem"))
        config = super().configure(settings | {"unsigned": True} if pinned else settings, name)
        for pem in [*(s if isinstance(s, str) else s.value for s in config.secrets), *([config.cert_pem] if config.cert_pem else [])]:
            try:
                load_key(pem)
            except (ValueError, TypeError):
                raise ConfigError(
                    f"Source `{name}`: a key cannot be read", expected="a PEM certificate or RSA key", where=f"$.sources.{name}"
                ) from None
        return msgspec.structs.replace(config, unsigned=bool(settings.get("unsigned")))

    # -- is it from Amazon? -------------------------------------------------------------------------------------------

    def verify(self, request: Request) -> int:
        used = super().verify(request)
        config = self.config
        signed = config.topics or config.cert_pem or config.secrets
        if "x-amz-sns-rawdelivery" in request.headers:
            if signed:
                raise Refused(f"{self.label}: raw message delivery is not signed", todo="Turn raw message delivery off in the subscription")
            return used
        envelope = envelope_of(request)
        if signed and not config.secrets:
            self.signature(request)
        elif not signed:
            self.plausible(envelope, request)
        if envelope["Type"] == "SubscriptionConfirmation" and not (signed or config.basic_auth or config.bearer or config.headers):
            raise Refused(f"{self.label}: nothing says that this topic is ours", todo=f"Set `topics` of source `{self.name}`")
        return used

    def plausible(self, envelope: dict, request: Request) -> None:
        """Raise Refused for what Amazon would never send; costs no cryptography and no network."""
        for header, field in (("x-amz-sns-message-type", "Type"), ("x-amz-sns-message-id", "MessageId")):
            if not same(request.header(header), text(envelope.get(field))):
                raise Refused(f"{self.label}: the header `{header}` does not fit the body")
        topics = self.config.topics
        if topics and text(envelope.get("TopicArn")) not in topics:
            raise Refused(
                f"{self.label}: the topic is not one of source `{self.name}`",
                got=text(envelope.get("TopicArn")),
                todo="Add it to `topics` if it is yours",
            )
        if envelope["Type"] == "SubscriptionConfirmation" and not subscribe_url(text(envelope.get("SubscribeURL"))):
            raise Refused(f"{self.label}: SubscribeURL does not lead to Amazon SNS")

    def signature(self, request: Request) -> int:
        """Check the RSA signature over the envelope's fields; the certificate comes last, and from Amazon only."""
        envelope = envelope_of(request)
        self.plausible(envelope, request)
        given, url = text(envelope.get("Signature")), text(envelope.get("SigningCertURL"))
        algorithm = HASHES.get(text(envelope.get("SignatureVersion")))
        if not given or len(given) > header_bytes_max or algorithm is None:
            raise Refused(f"{self.label}: the signature is missing or of an unknown version")
        if not certificate_url(url):
            raise Refused(f"{self.label}: SigningCertURL does not lead to Amazon SNS")
        signature, message = b64_bytes(given), signed_text(envelope)
        keys = self.active(request) if self.config.secrets else [self.config.cert_pem or self.certificates.get(url)]

        def fits(pem: str) -> bool:
            key = load_key(pem)
            key = key.public_key() if isinstance(key, rsa.RSAPrivateKey) else key
            try:
                key.verify(signature, message, padding.PKCS1v15(), algorithm())
            except InvalidSignature:
                return False
            return True

        return self.match("signature", keys, fits)

    def fetched(self, url: str) -> str:
        """Return the certificate behind a URL that has been checked. Raises NotNow, Refused."""
        try:
            pem = self.fetch(url).decode("ascii")
            load_key(pem)
        except OSError as error:
            raise NotNow(f"{self.label}: Amazon's certificate cannot be fetched: {error}", todo="Try again soon") from None
        except (ValueError, TypeError):
            raise Refused(f"{self.label}: what stands at SigningCertURL is no certificate") from None
        return pem

    def handshake(self, request: Request) -> Response | None:
        """Return the URL to fetch for a subscription to a topic of ours; `verify` has checked signature, topic and URL."""
        if "x-amz-sns-rawdelivery" in request.headers:
            return None
        envelope = envelope_of(request)
        if envelope["Type"] != "SubscriptionConfirmation" or text(envelope.get("TopicArn")) not in self.config.topics:
            return None
        return Response(fetch=text(envelope.get("SubscribeURL")))

    def sign(self, request: Request) -> Request:
        """Sign the envelope in the body with the private key that stands in ``secrets``, and set SNS's headers."""
        request = super().sign(request)
        envelope = as_dict(decode_json(request.body))
        if self.config.secrets:
            key = load_key(self.active(request)[0])
            if not isinstance(key, rsa.RSAPrivateKey):
                raise ConfigError(f"Source `{self.name}` holds no private key to sign with")
            url = "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-00000000000000000000000000000000.pem"
            envelope = {"SigningCertURL": url} | envelope | {"SignatureVersion": "2"}
            envelope["Signature"] = base64.b64encode(key.sign(signed_text(envelope), padding.PKCS1v15(), hashes.SHA256())).decode()
        headers = {"content-type": "text/plain; charset=UTF-8"}
        for header, field in (("type", "Type"), ("id", "MessageId")):
            headers[f"x-amz-sns-message-{header}"] = text(envelope.get(field))
        headers["x-amz-sns-topic-arn"] = text(envelope.get("TopicArn"))
        return with_headers(msgspec.structs.replace(request, body=msgspec.json.encode(envelope)), headers)

    # -- what happened? -----------------------------------------------------------------------------------------------

    def items(self, request: Request) -> list:
        body = as_dict(decode_json(request.body))
        if "eventType" in body or "notificationType" in body:  # raw message delivery: no envelope
            return [(body, {"MessageId": request.header("x-amz-sns-message-id")})]
        if body.get("Type") not in ENVELOPES:
            raise Malformed("The body is no SNS envelope", got=text(body.get("Type")) or ", ".join(sorted(body))[:100])
        if body["Type"] != "Notification":
            return []
        said = text(body.get("Message"))
        if said.startswith("Successfully validated SNS topic"):  # sent once, after the subscription
            return []
        return [(as_dict(decode_json(said)), body)]

    def events(self, item: object, request: Request) -> list[Event] | None:
        said, envelope = item
        word = text(said.get("eventType")) or text(said.get("notificationType"))
        if word == "Received":
            raise Malformed(
                "This is inbound mail, not an event",
                todo="In SES, publish receipt rules to another topic; this URL is for event publishing and feedback notifications",
            )
        if word == "AmazonSnsSubscriptionSucceeded" or not (word or "mail" in said):
            return None
        kind, name = KINDS.get(word, ("unknown", ""))
        mail, about = sub(said, "mail"), sub(said, name)
        event = Event(
            kind=kind,
            event_id=text(envelope.get("MessageId")),
            occurred_at_us=iso_us(about.get("timestamp")) or iso_us(envelope.get("Timestamp")) or iso_us(mail.get("timestamp")),
            message_id=text(mail.get("messageId")),
            name=word,
            metadata=metadata_of(mail),
            tags=[text(value) for key, value in headers_of(mail) if key.lower() == "x-tag"],
            user_agent=text(about.get("userAgent")),
            ip=text(about.get("ipAddress")),
            url=text(about.get("link")),
        )
        describe(event, name, about)
        return per_recipient(event, name, about, mail)

    # -- and back -----------------------------------------------------------------------------------------------------

    def write(self, events: list[Event]) -> bytes:
        """Return the SNS envelope that Amazon would send for one event, still unsigned: for the sandbox and the tests."""
        (event,) = events
        at = f"{datetime.fromtimestamp(event.occurred_at_us // 1_000_000, UTC):%Y-%m-%dT%H:%M:%S}.{event.occurred_at_us % 1_000_000:06d}Z"
        word, name, about = written(event)
        if word not in ("Send", "Reject", "Rendering Failure"):  # these three have no time of their own
            about["timestamp"] = at
        headers = [{"name": "X-Tag", "value": tag} for tag in event.tags]
        if event.metadata:
            headers.append({"name": "X-Metadata", "value": msgspec.json.encode(event.metadata).decode()})
        mail = {
            "timestamp": at,
            "messageId": event.message_id,
            "destination": [event.recipient],
            "headersTruncated": False,
            "headers": headers,
            "tags": {n: [getattr(event, n)] for n in ("campaign", "variant", "wave") if getattr(event, n)},
        }
        envelope = {
            "Type": "Notification",
            "MessageId": event.event_id or content_id(event)[2:],
            "TopicArn": self.config.topics[0] if self.config.topics else "arn:aws:sns:us-east-1:000000000000:ses-events",
            "Subject": "Amazon SES Email Event Notification",
            "Message": msgspec.json.encode({"eventType": word, "mail": mail, name: about}).decode() + "\n",
            "Timestamp": at,
        }
        return msgspec.json.encode(envelope)


# -- the envelope ---------------------------------------------------------------------------------------------------------


def envelope_of(request: Request) -> dict:
    """Return the SNS envelope of a body. Raises Refused: without one nothing can be verified."""
    try:
        body = decode_json(request.body)
    except Malformed:
        body = None
    if not isinstance(body, dict) or body.get("Type") not in ENVELOPES:
        raise Refused("Amazon SES: the body is no SNS envelope")
    return body


def signed_text(envelope: dict) -> bytes:
    """Return the lines that SNS signs: name and value of each field in byte order, `Subject` only if there is one."""
    lines = []
    for field in ENVELOPES[envelope["Type"]]:
        value = envelope.get(field)
        if value is None and field == "Subject":
            continue
        if not isinstance(value, str):
            raise Refused(f"Amazon SES: the envelope has no `{field}`")
        lines.append(f"{field}\n{value}\n")
    return "".join(lines).encode("utf-8", "replace")


def amazon_url(url: str) -> bool:
    """Tell whether a URL is https on an SNS host and carries no port, credentials or fragment, however it is spelt."""
    if not re.fullmatch(r"https://[a-z0-9.-]+/[!-~]*", url) or any(sign in url for sign in "@#\\"):
        return False
    parts = urlsplit(url)
    return parts.scheme == "https" and HOST.fullmatch(parts.netloc) is not None


def certificate_url(url: str) -> bool:
    return amazon_url(url) and CERTIFICATE_PATH.fullmatch(url.removeprefix(f"https://{urlsplit(url).netloc}")) is not None


def subscribe_url(url: str) -> bool:
    """Tell whether a URL confirms a subscription at Amazon and does nothing else."""
    if not amazon_url(url):
        return False
    parts = urlsplit(url)
    return parts.path == "/" and parse_qs(parts.query).get("Action") == ["ConfirmSubscription"]


def fetch_certificate(url: str) -> bytes:
    """Fetch a certificate: no redirects, little, soon. Raises OSError, ValueError."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import HTTPRedirectHandler, build_opener

    class NoRedirects(HTTPRedirectHandler):
        def redirect_request(self, *_args):
            return None

    clock = Clock()
    until = clock.monotonic_s() + fetch_s_max
    got = b""
    try:
        with build_opener(NoRedirects).open(url, timeout=fetch_s_max / 2) as answer:
            while chunk := answer.read1(16 * 1024):
                got += chunk
                if len(got) > certificate_bytes_max:
                    raise ValueError("the certificate is too long")
                if clock.monotonic_s() > until:
                    raise TimeoutError("the certificate came too slowly")
    except HTTPError as error:
        error.close()
        if error.code < 500:  # Amazon is there and has no such certificate
            raise ValueError(f"answered {error.code}") from None
        raise
    except HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from None
    return got


@lru_cache(maxsize=64)
def load_key(pem: str):
    """Return the RSA key of a PEM certificate, public key or private key. Raises ValueError."""
    data = pem.encode("ascii", "strict")
    if "PRIVATE KEY" in pem:
        key = serialization.load_pem_private_key(data, None)
    elif "CERTIFICATE" in pem:
        key = x509.load_pem_x509_certificate(data).public_key()
    else:
        key = serialization.load_pem_public_key(data)
    if not isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        raise ValueError("SNS signs with RSA")
    return key


# -- the event ------------------------------------------------------------------------------------------------------------


def describe(event: Event, name: str, about: dict) -> None:
    """Add what each kind says beyond the common fields; may change the kind."""
    if name == "bounce":
        bounce, subtype = text(about.get("bounceType")), text(about.get("bounceSubType"))
        event.detail, event.reason = f"{bounce}: {subtype}", "bounced"
        if subtype in SUPPRESSED:  # it never left SES
            event.kind = "rejected"
        else:
            event.bounce_class = "block" if subtype in BLOCKS else "hard" if bounce == "Permanent" else "soft"
    elif name == "complaint":
        feedback, subtype = text(about.get("complaintFeedbackType")), text(about.get("complaintSubType"))
        event.detail, event.reason = feedback or subtype, "spam"
        if feedback == "not-spam":  # somebody took it out of the spam folder
            event.kind, event.reason = "unknown", ""
        elif subtype in SUPPRESSED:
            event.kind = "rejected"
    elif name == "delivery":
        event.detail = text(about.get("smtpResponse"))
    elif name == "deliveryDelay":
        event.detail = text(about.get("delayType"))
    elif name == "reject":
        event.detail, event.reason = text(about.get("reason")), "blocked"
    elif name == "failure":
        event.detail = text(about.get("errorMessage"))
    elif name == "subscription":
        event.kind, event.detail = subscription(about), text(about.get("contactList"))
    elif name in ("open", "click"):
        # Since August 2026 SES marks opens and clicks that no person made; the name of the mark is not known for sure.
        flag = next((key for key, value in about.items() if AUTOMATED.search(key) and value not in (None, False, "", "false", "False")), "")
        if flag:
            event.agent, event.agent_reason = "machine", f"vendor flag: {flag}"


def subscription(about: dict) -> str:
    """Return what a change of preferences comes to: leaving anything counts as leaving, because an unsubscribe always wins."""
    new, old = sub(about, "newTopicPreferences"), sub(about, "oldTopicPreferences")
    if new.get("unsubscribeAll") is True:
        return "unsubscribed"
    before, after = statuses(old), statuses(new)
    if any(status == "OptOut" and before.get(topic) == "OptIn" for topic, status in after.items()):
        return "unsubscribed"
    if old.get("unsubscribeAll") is True or any(status == "OptIn" and before.get(topic) != "OptIn" for topic, status in after.items()):
        return "subscribed"
    return "unsubscribed" if "OptOut" in after.values() else "subscribed"


def statuses(preferences: dict) -> dict[str, str]:
    found = preferences.get("topicSubscriptionStatus")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    return {text(row.get("topicName")): text(row.get("subscriptionStatus")) for row in rows}


def per_recipient(event: Event, name: str, about: dict, mail: dict) -> list[Event]:
    """Return one event per recipient the event names, else per destination of the mail.

    With several destinations SES does not say who opened, clicked or complained. All of them get the event, with their
    number in ``metadata.ambiguous_recipients``. Ids get the recipient appended, because one SNS id is for them all.
    """
    named = about.get(RECIPIENTS.get(name, ""))
    rows = [row if isinstance(row, dict) else {"emailAddress": row} for row in named] if isinstance(named, list) else []
    rows = rows or [{"emailAddress": address} for address in texts(mail.get("destination"))] or [{}]
    events = []
    for row in rows:
        copy = msgspec.structs.replace(event, recipient=text(row.get("emailAddress")), metadata=dict(event.metadata))
        copy.code = text(row.get("status"))
        copy.detail = text(row.get("diagnosticCode")) or event.detail
        if copy.bounce_class == "soft" and copy.code == "5.4.4":  # there is no such domain, although SES calls it transient
            copy.bounce_class = "hard"
        if len(rows) > 1:
            copy.event_id = f"{event.event_id}:{copy.recipient}" if event.event_id else ""
            if event.kind in AMBIGUOUS:
                copy.metadata["ambiguous_recipients"] = len(rows)
        events.append(copy)
    return events


def headers_of(mail: dict) -> list[tuple[str, str]]:
    found = mail.get("headers")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    return [(text(row.get("name")), text(row.get("value"))) for row in rows]


def metadata_of(mail: dict) -> dict:
    """Return the message tags (SES's own `ses:` ones too), custom `X-` headers, and what JSON `X-Metadata` holds."""
    metadata: dict = {}
    for key, values in sub(mail, "tags").items():
        values = texts(values)
        metadata[key] = values[0] if len(values) == 1 else values
    for key, value in headers_of(mail):
        if key.lower() == "x-metadata":
            try:
                metadata |= as_dict(decode_json(value))
            except Malformed:
                metadata[key] = value
        elif key.lower().startswith("x-") and key.lower() != "x-tag":
            metadata[key] = value
    return metadata


def written(event: Event) -> tuple[str, str, dict]:
    """Return SES's word for an event of ours, the name of the object that goes with it, and the object."""
    address = {"emailAddress": event.recipient}
    told = {key: value for key, value in (("status", event.code), ("diagnosticCode", event.detail)) if value}
    reader = {key: value for key, value in (("ipAddress", event.ip), ("userAgent", event.user_agent)) if value}
    if event.agent == "machine":
        reader["automated"] = True
    out = {"topicSubscriptionStatus": [], "unsubscribeAll": event.kind == "unsubscribed"}
    back = {"topicSubscriptionStatus": [], "unsubscribeAll": event.kind == "subscribed"}
    bounces = {"soft": ("Transient", "General"), "block": ("Transient", "ContentRejected")}
    bounce, subtype = bounces.get(event.bounce_class, ("Permanent", "General"))
    if event.kind == "rejected" and event.reason == "bounced":
        return (
            "Bounce",
            "bounce",
            {"bounceType": "Permanent", "bounceSubType": "OnAccountSuppressionList", "bouncedRecipients": [address | told]},
        )
    kinds = {
        "sent": ("Send", "send", {}),
        "delivered": ("Delivery", "delivery", {"recipients": [event.recipient], "smtpResponse": event.detail}),
        "deferred": ("DeliveryDelay", "deliveryDelay", {"delayType": "General", "delayedRecipients": [address | told]}),
        "bounced": ("Bounce", "bounce", {"bounceType": bounce, "bounceSubType": subtype, "bouncedRecipients": [address | told]}),
        "complained": ("Complaint", "complaint", {"complaintFeedbackType": "abuse", "complainedRecipients": [address]}),
        "rejected": ("Reject", "reject", {"reason": event.detail or "Bad content"}),
        "opened": ("Open", "open", reader),
        "clicked": ("Click", "click", reader | {"link": event.url}),
        "failed": ("Rendering Failure", "failure", {"errorMessage": event.detail}),
        "unsubscribed": ("Subscription", "subscription", {"newTopicPreferences": out, "oldTopicPreferences": back}),
        "subscribed": ("Subscription", "subscription", {"newTopicPreferences": out, "oldTopicPreferences": back}),
    }
    if event.kind not in kinds:
        raise MidflightError(f"Amazon SES has no event for `{event.kind}`")
    return kinds[event.kind]


PLUGIN = SES


def example(said: dict, at: str = "2025-11-24T16:00:02.000Z") -> dict:
    """Return an envelope as SNS sends it, for the examples below."""
    return {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": "arn:aws:sns:us-east-1:123456789012:ses-events",
        "Message": msgspec.json.encode(said).decode() + "\n",
        "Timestamp": at,
    }


MAIL = {
    "timestamp": "2025-11-24T15:59:00.000Z",
    "messageId": "0100019ab-example-000000",
    "destination": ["ada@example.com"],
    "tags": {"campaign": ["spring"], "variant": ["B"]},
}
EXAMPLES = SES.EXAMPLES = [
    {
        "title": "A click, by event publishing",
        "body": example(
            {
                "eventType": "Click",
                "mail": MAIL,
                "click": {
                    "timestamp": "2025-11-24T16:00:00.250Z",
                    "ipAddress": "203.0.113.9",
                    "userAgent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0",
                    "link": "https://shop.example/spring",
                },
            }
        ),
        "events": [
            {
                "kind": "clicked",
                "event_id": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
                "recipient": "ada@example.com",
                "message_id": "0100019ab-example-000000",
                "occurred_at_us": 1764000000250000,
                "url": "https://shop.example/spring",
                "campaign": "spring",
                "variant": "B",
                "ip": "203.0.113.9",
            }
        ],
    },
    {
        "title": "One bounce of two recipients, in the format of feedback notifications",
        "body": example(
            {
                "notificationType": "Bounce",
                "mail": {"messageId": "0100019ab-example-000001", "destination": ["ada@example.com", "bob@example.com"]},
                "bounce": {
                    "bounceType": "Permanent",
                    "bounceSubType": "General",
                    "timestamp": "2025-11-24T16:00:00.000Z",
                    "bouncedRecipients": [
                        {"emailAddress": "ada@example.com", "status": "5.1.1", "diagnosticCode": "smtp; 550 5.1.1 user unknown"},
                        {"emailAddress": "bob@example.com", "status": "5.1.1"},
                    ],
                },
            }
        ),
        "events": [
            {
                "kind": "bounced",
                "bounce_class": "hard",
                "recipient": "ada@example.com",
                "code": "5.1.1",
                "detail": "smtp; 550 5.1.1 user unknown",
                "event_id": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324:ada@example.com",
            },
            {"kind": "bounced", "bounce_class": "hard", "recipient": "bob@example.com", "detail": "Permanent: General"},
        ],
    },
    {
        "title": "Somebody who takes a message out of the spam folder does not complain",
        "body": example(
            {
                "eventType": "Complaint",
                "mail": MAIL,
                "complaint": {"complaintFeedbackType": "not-spam", "complainedRecipients": [{"emailAddress": "ada@example.com"}]},
            }
        ),
        "events": [{"kind": "unknown", "detail": "not-spam", "occurred_at_us": 1764000002000000}],
    },
]
