"""Every vendor's file keeps the promises of a source: examples, signatures, rotation, and no input that makes it fail."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from urllib.parse import urlencode

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midflight.events import AGENTS, BOUNCE_CLASSES, KINDS, REASONS, Event
from midflight.kit.clock import VirtualClock
from midflight.kit.errors import ConfigError, MidflightError
from midflight.sources import REGISTRY, load
from midflight.sources._certificates import Certificates, NotNow, failure_s, failures_max, kept_max, waiting_max
from midflight.sources.ses import fetch_certificate
from midflight.sources.source import Malformed, Refused, Request, Response, Source, with_headers

VENDORS = REGISTRY.names()
SIGNING = [name for name in VENDORS if REGISTRY.get(name).signs]
EXAMPLES = [(name, i) for name in VENDORS for i in range(len(REGISTRY.get(name).EXAMPLES))]
NOW_US = 1_764_000_030_000_000
URL = "https://hooks.example/in/esp"


# -- what the tests need --------------------------------------------------------------------------------------------------


@cache
def key_pem(kind: str, number: int) -> str:
    key = ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else rsa.generate_private_key(65537, 2048)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


@cache
def certificate_pem(number: int) -> str:
    """Return a self-made certificate for the RSA key of that number, as Amazon would publish it."""
    key = serialization.load_pem_private_key(key_pem("rsa", number).encode(), None)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(number + 1)
    made = made.not_valid_before(datetime(2020, 1, 1, tzinfo=UTC)).not_valid_after(datetime(2050, 1, 1, tzinfo=UTC))
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def secret(vendor: str, number: int) -> str:
    """Return a secret in the vendor's form, from which the test can sign and verify."""
    if vendor == "sendgrid":
        return key_pem("ec", number)
    if vendor in ("ses", "postal"):
        return key_pem("rsa", number)
    plain = f"a-long-enough-signing-secret-{number}"
    return "whsec_" + base64.b64encode(plain.encode()).decode() if vendor == "resend" else plain


def example_of(vendor: str, index: int = 0) -> dict:
    return REGISTRY.get(vendor).EXAMPLES[index]


def make(vendor: str, example: dict | None = None, **extra: object) -> Source:
    """Return a source with the example's settings; with signing secret number 0, or basic credentials, where it names none."""
    given = dict((example or {}).get("settings", {})) | extra
    if not {"secrets", "basic_auth", "bearer", "headers", "topics"} & set(given):
        given |= {"secrets": [secret(vendor, 0)]} if REGISTRY.get(vendor).signs else {"basic_auth": ["user:password"]}
    return load(vendor, given)


def body_of(example: dict) -> bytes:
    body = example["body"]
    return body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else msgspec.json.encode(body)


def request_of(example: dict) -> Request:
    headers = {name.lower(): value for name, value in example.get("headers", {}).items()}
    return Request(url=example.get("url", URL), headers=headers, body=body_of(example), received_at_us=NOW_US)


def with_body(request: Request, body: bytes) -> Request:
    return msgspec.structs.replace(request, body=body)


def plain(events: list[Event]) -> list[dict]:
    return [msgspec.to_builtins(event) for event in events]


def accepts(source: Source, request: Request) -> bool:
    try:
        source.verify(request)
    except (Refused, Malformed):
        return False
    return True


# -- what a file says about itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_source_describes_itself(vendor: str) -> None:
    """Label, documentation, shape and examples are there for the page, the door and the reader."""
    source = REGISTRY.get(vendor)
    assert source.label and source.docs_url.startswith("https://")
    assert source.shape in ("array", "object", "either", "form", "lines")
    assert source.EXAMPLES
    assert all(name == name.lower() for name in source.headers_kept)
    assert not {"authorization", "cookie"} & set(source.headers_kept)


@pytest.mark.parametrize("vendor", VENDORS)
def test_settings_are_strict(vendor: str) -> None:
    """An unknown setting and a value of the wrong type stop the start and name the place."""
    with pytest.raises(ConfigError) as unknown:
        load(vendor, {"unsigned": True, "secretz": []})
    assert unknown.value.where == f"$.sources.{vendor}.secretz" and "secrets" in unknown.value.todo
    with pytest.raises(ConfigError):
        load(vendor, {"unsigned": True, "basic_auth": 7})


@pytest.mark.parametrize("vendor", VENDORS)
def test_without_a_secret_nobody_is_let_in(vendor: str) -> None:
    """A source without any secret does not start; Mandrill's, whose key comes later, accepts no event."""
    try:
        source = load(vendor, {})
    except ConfigError:
        return
    assert not accepts(source, request_of(example_of(vendor)))


@pytest.mark.parametrize(("vendor", "index"), EXAMPLES)
def test_an_example_reads_as_it_says(vendor: str, index: int) -> None:
    """Each example gives its events, with the fields that it names, before and after it is signed."""
    example = example_of(vendor, index)
    source = make(vendor, example)
    for request in (request_of(example), source.sign(request_of(example))):
        parsed = source.parse(request)
        assert parsed.bad == []
        assert len(parsed) == len(example["events"])
        for event, wanted in zip(parsed, example["events"], strict=True):
            assert {name: getattr(event, name) for name in wanted} == wanted
            assert event.source == vendor and event.received_at_us == NOW_US and event.event_id


# -- is it from the vendor? -----------------------------------------------------------------------------------------------

# Headers that `sign` sets and that no vendor signs.
UNSIGNED_HEADERS = {"content-type", "x-amz-sns-topic-arn"}
# Mailgun signs timestamp and token in the body and nothing else of it; reference: its documentation on securing webhooks.
UNSIGNED_BODIES = {"mailgun"}


def accepted_mutants(source: Source, request: Request, positions: Iterator[int]) -> list[int]:
    """Return where a flipped bit of the body is accepted and changes what the request says."""
    meant, found = plain(source.parse(request)), []
    for position in positions:
        body = bytearray(request.body)
        body[position] ^= 1
        mutant = with_body(request, bytes(body))
        if accepts(source, mutant):
            try:
                same_meaning = plain(source.parse(mutant)) == meant
            except Malformed:
                same_meaning = False
            if not same_meaning:
                found.append(position)
    return found


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_signed_request_is_accepted(vendor: str) -> None:
    """What `sign` makes, `verify` accepts, with the newest secret."""
    for example in REGISTRY.get(vendor).EXAMPLES:
        source = make(vendor, example)
        assert source.verify(source.sign(request_of(example))) == 0


@pytest.mark.parametrize("vendor", [name for name in SIGNING if name not in UNSIGNED_BODIES])
def test_no_byte_of_a_signed_body_can_be_changed(vendor: str) -> None:
    """A flipped bit anywhere in the body is refused, or changes nothing (a blank, the case of an escape)."""
    example = example_of(vendor)
    source = make(vendor, example)
    request = source.sign(request_of(example))
    assert accepted_mutants(source, request, range(0, len(request.body), 3)) == []


def test_an_unchecked_body_would_be_noticed() -> None:
    """Control: a source that only has credentials accepts changed bodies, and the test above would say where."""
    source = load("postmark", {"basic_auth": ["user:password"]})
    request = source.sign(request_of(example_of("postmark")))
    assert accepted_mutants(source, request, range(0, len(request.body), 3))


def test_mailgun_binds_its_signature_to_time_and_token() -> None:
    """No bit of the signed three fields can be changed, which is all that Mailgun offers."""
    source = make("mailgun")
    for index in (0, -1):
        request = source.sign(request_of(example_of("mailgun", index)))
        block = request.body.rindex(b"&token=") if index else request.body.index(b'"signature"')
        for position in range(block, len(request.body)):
            body = bytearray(request.body)
            body[position] ^= 1
            if bytes(body[position : position + 1]).isalnum():
                assert not accepts(source, with_body(request, bytes(body))), position


@pytest.mark.parametrize("vendor", VENDORS)
def test_no_byte_of_a_signing_header_can_be_changed(vendor: str) -> None:
    """A flipped bit in any header that `sign` sets is refused, and so is its absence."""
    example = example_of(vendor)
    source = make(vendor, example)
    request = source.sign(request_of(example))
    if vendor == "postal":  # where both are sent the stronger one counts; without it the other one would
        request = msgspec.structs.replace(request, headers={k: v for k, v in request.headers.items() if k != "x-postal-signature"})
    for name in sorted(set(request.headers) - UNSIGNED_HEADERS - set(example.get("headers", {}))):
        value = request.headers[name]
        gone = {k: v for k, v in request.headers.items() if k != name}
        for changed in ("", value + ", " + value, "x" * 1_000_000, *(flip(value, i) for i in range(len(value)))):
            if changed.lower() != value.lower() or "signature" in name:  # the scheme `Basic` has no case
                assert not accepts(source, with_headers(request, {name: changed})), (name, changed[:100])
        assert not accepts(source, msgspec.structs.replace(request, headers=gone)), name


def flip(value: str, position: int) -> str:
    return value[:position] + chr(ord(value[position]) ^ 1) + value[position + 1 :]


@pytest.mark.parametrize("vendor", SIGNING)
def test_a_wrong_secret_and_none_are_refused(vendor: str) -> None:
    """Somebody else's signature and an unsigned request are Refused, not merely unreadable."""
    example = example_of(vendor)
    stranger, source = make(vendor, example, secrets=[secret(vendor, 1)]), make(vendor, example, secrets=[secret(vendor, 0)])
    with pytest.raises(Refused):
        source.verify(stranger.sign(request_of(example)))
    with pytest.raises(Refused):
        source.verify(request_of(example))


@pytest.mark.parametrize("vendor", SIGNING)
def test_a_secret_can_be_rotated(vendor: str) -> None:
    """The old secret is accepted beside the new one until its time is over, and no longer."""
    example = example_of(vendor)
    old = make(vendor, example, secrets=[secret(vendor, 1)]).sign(request_of(example))
    assert make(vendor, example, secrets=[secret(vendor, 0), secret(vendor, 1)]).verify(old) == 1
    for until, allowed in (("2025-11-24T16:00:31Z", True), ("2025-11-24T16:00:30Z", False)):
        source = make(vendor, example, secrets=[secret(vendor, 0), {"value": secret(vendor, 1), "until": until}])
        assert accepts(source, old) is allowed
        assert secret(vendor, 1) not in repr(source.config.secrets[1])


def test_basic_and_bearer_rotate_too() -> None:
    """Credentials that are no signature have the same grace period."""
    for name in ("basic_auth", "bearer"):
        old = load("brevo", {name: ["user:old"]}).sign(Request(received_at_us=NOW_US))
        both = load("brevo", {name: ["user:new", {"value": "user:old", "until": "2025-11-24T16:00:31Z"}]})
        assert both.verify(old) == 1
        assert not accepts(both, msgspec.structs.replace(old, received_at_us=NOW_US + 1_000_000))


# -- no input makes it fail -----------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
scalars |= st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["9" * 4400, "2025-13-40T99:99:99Z", "1e999", "0", "[]", "{}"]
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6
)


def places(item: object, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every value in JSON."""
    yield path
    inner = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def replaced(item: object, path: tuple, value: object) -> object:
    if not path:
        return value
    copy = dict(item) if isinstance(item, dict) else list(item)
    copy[path[0]] = replaced(item[path[0]], path[1:], value)
    return copy


def inside(vendor: str, example: dict) -> object:
    """Return what the example says as JSON, without the form or the envelope around it."""
    if vendor == "ses":
        return json.loads(example["body"]["Message"])
    if vendor == "mandrill":
        (source,) = [make(vendor)]
        return source.items(request_of(example))
    return example["body"] if not isinstance(example["body"], str) else None


def outside(vendor: str, said: object) -> bytes:
    """Put JSON back into the vendor's form or envelope."""
    if vendor == "ses":
        return msgspec.json.encode({"Type": "Notification", "MessageId": "1", "Message": msgspec.json.encode(said).decode()})
    return (
        urlencode({"mandrill_events": msgspec.json.encode(said).decode()}).encode() if vendor == "mandrill" else msgspec.json.encode(said)
    )


def holds(source: Source, request: Request) -> list[Event]:
    """Check that a request, whatever it says, is read, refused or malformed, and that its events are what they claim to be."""
    accepts(source, request)
    try:
        source.handshake(request)
        parsed = source.parse(request)
    except (Malformed, Refused):
        return []
    for event in parsed:
        assert msgspec.json.decode(msgspec.json.encode(event), type=Event).event_id == event.event_id != ""
        assert event.kind in KINDS and event.agent in AGENTS and event.bounce_class in BOUNCE_CLASSES and event.reason in REASONS
        assert (event.kind == "bounced") or not event.bounce_class
        assert 0 <= event.occurred_at_us < 2**63
    for bad in parsed.bad:
        assert bad.reason and isinstance(bad.raw, bytes)
    return parsed


@pytest.mark.parametrize("vendor", VENDORS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_example_with_anything_in_any_place_is_read_or_malformed(vendor: str, data: st.DataObject) -> None:
    """Real shapes with wrong values are where parsers break."""
    index = data.draw(st.integers(0, len(REGISTRY.get(vendor).EXAMPLES) - 1))
    example = example_of(vendor, index)
    said = inside(vendor, example)
    if said is None:
        said = data.draw(anything)
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            said = replaced(said, data.draw(st.sampled_from(list(places(said)))), data.draw(anything))
    holds(make(vendor, example), with_body(request_of(example), outside(vendor, said)))


@pytest.mark.parametrize("vendor", VENDORS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(said=anything, junk=st.binary(max_size=60), wrapped=st.booleans())
def test_anything_at_all_is_read_or_malformed(vendor: str, said: object, junk: bytes, wrapped: bool) -> None:
    """Any JSON, and bytes that are none, with and without the vendor's envelope."""
    source, request = make(vendor, example_of(vendor)), request_of(example_of(vendor))
    holds(source, with_body(request, outside(vendor, said) if wrapped else msgspec.json.encode(said)))
    holds(source, with_body(request, junk))
    holds(source, with_headers(with_body(request, junk), {"content-type": "multipart/form-data; boundary=x", "authorization": "Basic =="}))


NEVER = [
    b"",
    b"{}",
    b"null",
    b'"x"',
    b"17",
    b"[1]",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"NaN",
    b'{"a": 1e999}',
    b"\xef\xbb\xbf{}",
]


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_can_never_be_the_vendors_says_nothing(vendor: str) -> None:
    """Empty, scalar, deep, differently encoded: nothing that would count for a message or a person, and no other exception."""
    for body in NEVER:
        for event in holds(make(vendor, example_of(vendor)), with_body(request_of(example_of(vendor)), body)):
            assert event.kind in ("unknown", "tracked") and not event.recipient and not event.message_id


# -- what happened? -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", VENDORS)
def test_ids_are_stable_and_tell_events_apart(vendor: str) -> None:
    """The same bytes give the same ids, and other events other ids."""
    seen: dict[str, tuple] = {}
    for index, example in enumerate(REGISTRY.get(vendor).EXAMPLES):
        source, request = make(vendor, example), request_of(example)
        events = source.parse(request)
        assert [e.event_id for e in events] == [e.event_id for e in source.parse(request)]
        later = msgspec.structs.replace(request, received_at_us=NOW_US + 60_000_000)
        assert [e.event_id for e in events] == [e.event_id for e in source.parse(later)]  # a retry
        for place, event in enumerate(events):
            if event.event_id.startswith("h:"):
                assert seen.setdefault(event.event_id, (index, place)) == (index, place)
                other = with_body(request, request.body.replace(event.recipient.encode(), b"eve@example.org"))
                assert event.recipient.encode() not in request.body or event.event_id not in [e.event_id for e in source.parse(other)]
        assert len({e.event_id for e in events}) == len(events)


# Where the words that say what happened stand in the first example.
WORDS = {
    "braze": "users.messages.email.Click",
    "brevo": "click",
    "customerio": "clicked",
    "generic": "link_click",
    "iterable": "emailClick",
    "klaviyo": "event:klaviyo.clicked_email",
    "mailersend": "activity.clicked",
    "mailgun": "clicked",
    "mailjet": "click",
    "mailtrap": "click",
    "mandrill": "click",
    "postal": "MessageSent",
    "postmark": "Click",
    "resend": "email.clicked",
    "sendgrid": "click",
    "ses": "Click",
    "sparkpost": "click",
    "unisender_go": "clicked",
}
SAYING = {"Sent": "Sprouted", "clicked": "sprouted"}  # a second field that says the same


@pytest.mark.parametrize("vendor", sorted(set(VENDORS) - {"segment"}))
def test_a_word_that_a_vendor_invents_tomorrow_is_kept_as_unknown(vendor: str) -> None:
    """An unknown kind is an event like any other, never an error and never dropped."""
    example = example_of(vendor)
    said = inside(vendor, example)
    for path in list(places(said)):
        value = value_at(said, path)
        if value == WORDS[vendor]:
            said = replaced(said, path, f"{value}_of_tomorrow")
        elif vendor in ("postal", "mailersend") and isinstance(value, str) and value in SAYING:
            said = replaced(said, path, SAYING[value])
    event = make(vendor, example).parse(with_body(request_of(example), outside(vendor, said)))[0]
    assert event.kind == "unknown"
    assert "_of_tomorrow" in event.name


def value_at(item: object, path: tuple) -> object:
    for key in path:
        item = item[key]
    return item


# -- and back -------------------------------------------------------------------------------------------------------------

WRITERS = ["sendgrid", "ses", "postmark", "mailgun"]
FATES = [
    *[
        {"kind": kind}
        for kind in ("queued", "sent", "delivered", "deferred", "rejected", "failed", "autoresponded", "complained", "subscribed")
    ],
    {"kind": "rejected", "reason": "bounced"},
    {"kind": "rejected", "reason": "invalid"},
    {"kind": "unsubscribed"},
    {"kind": "bounced", "bounce_class": "hard", "code": "5.1.1", "detail": "smtp;550 5.1.1 no such user"},
    {"kind": "bounced", "bounce_class": "soft", "detail": "mailbox full"},
    {"kind": "bounced", "bounce_class": "block", "detail": "refused"},
    {"kind": "opened", "user_agent": "Mozilla/5.0", "ip": "203.0.113.9"},
    {"kind": "opened", "agent": "machine", "agent_reason": "apple"},
    {"kind": "clicked", "url": "https://shop.example/ä?a=1&b=%20", "user_agent": "Mozilla/5.0"},
]
FIELDS = ("kind", "recipient", "message_id", "occurred_at_us", "campaign", "variant", "wave", "url", "agent", "bounce_class")
# What a vendor cannot say at all, so that its format loses it.
LACKS = {
    "sendgrid": {"sent", "soft", "failed", "autoresponded"},
    "ses": {"queued", "autoresponded"},
    "postmark": {"queued", "sent", "machine"},
    "mailgun": {"sent", "failed", "autoresponded", "subscribed"},
}


@pytest.mark.parametrize("vendor", WRITERS)
def test_what_is_written_reads_the_same(vendor: str) -> None:
    """The sandbox's events survive the vendor's format, the signature and the parser."""
    source = make(vendor)
    told = 0
    for number, fate in enumerate(FATES):
        if LACKS[vendor] & set(fate.values()):
            continue
        message = f"<m{number}@shop.example>" if vendor == "mailgun" else f"m{number}"
        at_us = 1_764_000_000_000_000 + (0 if vendor == "sendgrid" else 123_000 + number)
        common = {"event_id": f"e{number}", "recipient": "ada@example.com", "message_id": message, "occurred_at_us": at_us}
        event = Event(**common, campaign="spring", variant="B", wave="2", metadata={"plan": "pro"}, **fate)
        request = source.sign(Request(url=URL, body=source.write([event]), received_at_us=NOW_US))
        source.verify(request)
        parsed = source.parse(request)
        assert parsed.bad == [] and len(parsed) == 1
        assert {name: getattr(parsed[0], name) for name in FIELDS} == {name: getattr(event, name) for name in FIELDS}
        assert parsed[0].metadata["plan"] == "pro"
        told += 1
    assert told >= 11


@pytest.mark.parametrize("vendor", ["ses", "postmark", "mailgun"])
def test_what_a_vendor_cannot_say_is_not_written(vendor: str) -> None:
    """An event that the vendor has no word for is an error, not another event."""
    with pytest.raises(MidflightError):
        make(vendor).write([Event(kind="converted")])


# -- Amazon ---------------------------------------------------------------------------------------------------------------

TOPIC = "arn:aws:sns:us-east-1:123456789012:ses-events"
CERTIFICATE = "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-0123456789abcdef.pem"
SUBSCRIBE = "https://sns.us-east-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn=arn:aws:sns:us-east-1:1:t&Token=t"


class Amazon:
    """Stands in for the host of certificates: counts what is fetched from it."""

    def __init__(self, answer: bytes | Exception) -> None:
        self.answer = answer
        self.fetched: list[str] = []

    def __call__(self, url: str) -> bytes:
        self.fetched.append(url)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def sns(amazon: Amazon, **extra: object) -> Source:
    source = load("ses", {"topics": [TOPIC]} | extra)
    source.fetch = amazon
    return source


def signed_envelope(key: int = 0, version: str = "2", **fields: str) -> Request:
    """Return an envelope signed with the key of that number; fields are set before signing."""
    body = example_of("ses")["body"] | {"SigningCertURL": CERTIFICATE} | fields
    if version == "2":
        return load("ses", {"secrets": [key_pem("rsa", key)]}).sign(Request(body=msgspec.json.encode(body), received_at_us=NOW_US))
    from cryptography.hazmat.primitives.asymmetric import padding

    from midflight.sources.ses import signed_text

    private = serialization.load_pem_private_key(key_pem("rsa", key).encode(), None)
    body |= {
        "SignatureVersion": "1",
        "Signature": base64.b64encode(private.sign(signed_text(body), padding.PKCS1v15(), hashes.SHA1())).decode(),
    }
    headers = {"x-amz-sns-message-type": body["Type"], "x-amz-sns-message-id": body["MessageId"]}
    return Request(headers=headers, body=msgspec.json.encode(body), received_at_us=NOW_US)


def confirmation(**fields: str) -> Request:
    return signed_envelope(
        **{"Type": "SubscriptionConfirmation", "Token": "t", "SubscribeURL": SUBSCRIBE, "Message": "You have chosen"} | fields
    )


@pytest.mark.parametrize("version", ["1", "2"])
def test_amazons_certificate_is_fetched_once(version: str) -> None:
    """Both versions of SNS's signature verify with the certificate, which is then kept."""
    amazon = Amazon(certificate_pem(0).encode())
    source = sns(amazon)
    for _ in range(3):
        assert source.verify(signed_envelope(version=version)) == 0
    assert amazon.fetched == [CERTIFICATE]
    with pytest.raises(Refused):
        source.verify(signed_envelope(key=1, version=version))


@pytest.mark.parametrize(
    "url",
    [
        "https://s3.amazonaws.com/bucket/SimpleNotificationService-0.pem",
        "https://sns.us-east-1.amazonaws.com.evil.example/SimpleNotificationService-0.pem",
        "https://sns.us-east-1.amazonaws.com@evil.example/SimpleNotificationService-0.pem",
        "https://user@sns.us-east-1.amazonaws.com/SimpleNotificationService-0.pem",
        "https://evil.example#sns.us-east-1.amazonaws.com/SimpleNotificationService-0.pem",
        "https://evil.example\\sns.us-east-1.amazonaws.com/SimpleNotificationService-0.pem",
        "https://sns.us-east-1.amazonaws.com:443/SimpleNotificationService-0.pem",
        "https://sns.us-east-1.amazonaws.com:8443/SimpleNotificationService-0.pem",
        "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-0.pem?x=1",
        "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-0.pem#x",
        "https://sns.us-east-1.amazonaws.com/../SimpleNotificationService-0.pem",
        "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-../../0.pem",
        "https://sns.us-east-1.amazonaws.com/other.pem",
        "https://sns.us.east.amazonaws.com/SimpleNotificationService-0.pem",
        "http://sns.us-east-1.amazonaws.com/SimpleNotificationService-0.pem",
        "HTTPS://SNS.US-EAST-1.AMAZONAWS.COM/SimpleNotificationService-0.pem",
        "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-0.pem\n",
        "file:///SimpleNotificationService-0.pem",
        "",
    ],
)
def test_a_certificate_from_elsewhere_is_never_fetched(url: str) -> None:
    """Whatever the URL looks like: only Amazon's SNS hosts, and only the path of certificates."""
    amazon = Amazon(certificate_pem(0).encode())
    with pytest.raises(Refused):
        sns(amazon).verify(signed_envelope(SigningCertURL=url))
    assert amazon.fetched == []


def test_amazon_in_china_is_amazon() -> None:
    """The Chinese regions have a host of their own."""
    amazon = Amazon(certificate_pem(0).encode())
    sns(amazon).verify(signed_envelope(SigningCertURL=CERTIFICATE.replace("us-east-1.amazonaws.com", "cn-north-1.amazonaws.com.cn")))
    assert len(amazon.fetched) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"TopicArn": "arn:aws:sns:us-east-1:999999999999:stranger"},
        {"Type": "SubscriptionConfirmation", "Token": "t", "SubscribeURL": "http://169.254.169.254/?Action=ConfirmSubscription"},
        {"Type": "SubscriptionConfirmation", "Token": "t", "SubscribeURL": "https://evil.example/?Action=ConfirmSubscription"},
        {"Type": "SubscriptionConfirmation", "Token": "t", "SubscribeURL": SUBSCRIBE.replace("ConfirmSubscription", "DeleteTopic")},
        {"Type": "SubscriptionConfirmation", "Token": "t", "SubscribeURL": SUBSCRIBE + "&Action=DeleteTopic"},
        {"Type": "SubscriptionConfirmation", "Token": "t", "SubscribeURL": SUBSCRIBE.replace(".com/", ".com:444/")},
    ],
)
def test_what_is_wrong_without_cryptography_costs_no_fetch(change: dict) -> None:
    """A stranger's topic and a confirmation that leads elsewhere are refused before the certificate is looked at."""
    amazon = Amazon(certificate_pem(0).encode())
    with pytest.raises(Refused):
        sns(amazon).verify(signed_envelope(**change))
    assert amazon.fetched == []


def test_headers_that_contradict_the_envelope_are_refused() -> None:
    """SNS repeats type and id in headers; a forger often does not."""
    amazon = Amazon(certificate_pem(0).encode())
    for name in ("x-amz-sns-message-type", "x-amz-sns-message-id"):
        with pytest.raises(Refused):
            sns(amazon).verify(with_headers(signed_envelope(), {name: "other"}))
    assert amazon.fetched == []


def test_amazon_out_of_reach_is_not_a_forgery() -> None:
    """SNS never repeats after a 401, so trouble with the certificate is answered with 429, and the next try succeeds."""
    amazon = Amazon(OSError("no route"))
    source, clock = sns(amazon), VirtualClock()
    source.certificates.clock = clock
    for answer, wrong in ((OSError("no route"), NotNow), (b"<html>not found</html>", Refused)):
        amazon.answer = answer
        with pytest.raises(wrong) as error:
            source.verify(signed_envelope())
        assert wrong is not NotNow or error.value.status == 429
        clock.sleep_s(20)
    amazon.answer = certificate_pem(0).encode()
    assert source.verify(signed_envelope()) == 0


def url_of(number: int) -> str:
    return CERTIFICATE.replace("0123456789abcdef", f"{number:032x}")


def test_forged_certificate_urls_give_no_flood_of_fetches() -> None:
    """The same wrong URL is asked for once in a while, many different ones no more than a few; a known certificate goes on working."""
    amazon, clock = Amazon(certificate_pem(0).encode()), VirtualClock()
    source = sns(amazon)
    source.certificates.clock = clock
    source.verify(signed_envelope())
    amazon.answer = ValueError("answered 404")
    amazon.fetched.clear()
    for _ in range(50):
        with pytest.raises(Refused):
            source.verify(signed_envelope(SigningCertURL=url_of(1)))
    assert amazon.fetched == [url_of(1)]
    for number in range(1, 200):
        with pytest.raises((Refused, NotNow)):
            source.certificates.get(url_of(number))
    assert len(amazon.fetched) == failures_max
    assert source.verify(signed_envelope()) == 0
    amazon.answer = certificate_pem(0).encode()
    with pytest.raises(NotNow):
        source.verify(signed_envelope(SigningCertURL=url_of(500)))
    clock.sleep_s(failure_s + 1)
    assert source.verify(signed_envelope(SigningCertURL=url_of(500))) == 0
    assert len(amazon.fetched) == failures_max + 1


def test_the_certificate_asked_for_longest_ago_is_forgotten() -> None:
    """So many are kept and no more, however many come; one in use stays."""
    asked: list[str] = []
    certificates = Certificates(lambda url: asked.append(url) or url, VirtualClock())
    for number in range(3 * kept_max):
        assert certificates.get(url_of(number)) == url_of(number)
        certificates.get(url_of(0))
    assert len(certificates) == kept_max
    assert asked.count(url_of(0)) == 1
    assert certificates.get(url_of(1)) and asked.count(url_of(1)) == 2


def test_a_slow_certificate_holds_up_only_those_who_need_it() -> None:
    """While one URL hangs, others are fetched; who asks for the same one gets the one answer; and not every thread may wait."""
    arrived, answer, asked = threading.Event(), threading.Event(), []

    def fetch(url: str) -> str:
        asked.append(url)
        if url == url_of(0):
            arrived.set()
            assert answer.wait(30)
        return f"certificate of {url}"

    certificates = Certificates(fetch, VirtualClock())
    with ThreadPoolExecutor(8) as pool:
        slow = [pool.submit(certificates.get, url_of(0))]
        assert arrived.wait(30)
        try:
            assert pool.submit(certificates.get, url_of(1)).result(30) == f"certificate of {url_of(1)}"
            slow += [pool.submit(certificates.get, url_of(0)) for _ in range(5)]
            # Those beyond `waiting_max` are sent away while the others wait.
            sent_away = islice(as_completed(slow, timeout=30), len(slow) - waiting_max)
            assert all(isinstance(task.exception(), NotNow) for task in sent_away)
            assert pool.submit(certificates.get, url_of(1)).result(30), "what is known needs no waiting"
        finally:
            answer.set()
    assert asked == [url_of(0), url_of(1)]
    assert [task.exception() is None for task in slow].count(True) == waiting_max


def test_a_subscription_is_confirmed_for_our_topics_only() -> None:
    """The URL to fetch is given after verification, for a topic in `topics`; nothing else ever is."""
    source = sns(Amazon(certificate_pem(0).encode()))
    request = confirmation()
    source.verify(request)
    assert source.handshake(request) == Response(fetch=SUBSCRIBE)
    assert list(source.parse(request)) == []
    leaving = confirmation(Type="UnsubscribeConfirmation")
    source.verify(leaving)
    assert source.handshake(leaving) is None and list(source.parse(leaving)) == []
    assert source.handshake(signed_envelope()) is None
    by_password = load("ses", {"basic_auth": ["user:password"]})
    assert by_password.handshake(confirmation()) is None
    with pytest.raises(Refused):
        load("ses", {"unsigned": True}).verify(confirmation())


def test_raw_message_delivery_works_only_without_signatures() -> None:
    """Without the envelope nothing is signed; with credentials alone it is read, its id from the header."""
    body = example_of("ses")["body"]["Message"].encode()
    raw = Request(headers={"x-amz-sns-rawdelivery": "true", "x-amz-sns-message-id": "raw-1"}, body=body, received_at_us=NOW_US)
    with pytest.raises(Refused):
        sns(Amazon(b"")).verify(raw)
    source = load("ses", {"basic_auth": ["user:password"]})
    raw = with_headers(raw, {"authorization": "Basic " + base64.b64encode(b"user:password").decode()})
    source.verify(raw)
    (event,) = source.parse(raw)
    assert (event.kind, event.event_id) == ("clicked", "raw-1")


class Host(http.server.BaseHTTPRequestHandler):
    """A web server that misbehaves by path."""

    def do_GET(self) -> None:
        status = int(self.path[1:4]) if self.path[1:4].isdigit() else 200
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/good")
        body = certificate_pem(0).encode() if self.path == "/good" else b"x" * 100_000
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Stay quiet."""


def test_the_fetch_is_short_small_and_straight() -> None:
    """Over real HTTP: redirects are not followed, long answers cut, absence and trouble told apart."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    base = f"http://127.0.0.1:{server.server_port}"
    try:
        assert fetch_certificate(f"{base}/good") == certificate_pem(0).encode()
        for path, error in (("302", ValueError), ("404", ValueError), ("long", ValueError), ("500", OSError)):
            with pytest.raises(error):
                fetch_certificate(f"{base}/{path}")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    with pytest.raises(OSError):
        fetch_certificate(base)


def ses_events(said: dict, **mail: object) -> list[Event]:
    mail = {"messageId": "m", "destination": ["ada@example.com"]} | mail
    body = msgspec.json.encode({"Type": "Notification", "MessageId": "1", "Message": json.dumps({"mail": mail} | said)})
    return load("ses", {"basic_auth": ["u:p"]}).parse(Request(body=body))


@pytest.mark.parametrize(
    ("kind", "subtype", "status", "wanted"),
    [
        ("Permanent", "General", "5.1.1", ("bounced", "hard")),
        ("Permanent", "NoEmail", "5.1.1", ("bounced", "hard")),
        ("Permanent", "Suppressed", "5.1.1", ("rejected", "")),
        ("Permanent", "OnAccountSuppressionList", "", ("rejected", "")),
        ("Transient", "General", "4.2.2", ("bounced", "soft")),
        ("Transient", "MailboxFull", "5.2.2", ("bounced", "soft")),
        ("Transient", "General", "5.4.4", ("bounced", "hard")),
        ("Transient", "ContentRejected", "5.6.0", ("bounced", "block")),
        ("Undetermined", "Undetermined", "", ("bounced", "soft")),
    ],
)
def test_bounces_of_ses(kind: str, subtype: str, status: str, wanted: tuple) -> None:
    """Both formats name the same types; what never left SES is rejected, what the content caused is a block."""
    bounce = {"bounceType": kind, "bounceSubType": subtype, "bouncedRecipients": [{"emailAddress": "a@b.example", "status": status}]}
    for name in ("eventType", "notificationType"):
        (event,) = ses_events({name: "Bounce", "bounce": bounce})
        assert (event.kind, event.bounce_class) == wanted and event.recipient == "a@b.example"


@pytest.mark.parametrize(
    ("new", "old", "wanted"),
    [
        ({"unsubscribeAll": True}, {"unsubscribeAll": False}, "unsubscribed"),
        ({"unsubscribeAll": False}, {"unsubscribeAll": True}, "subscribed"),
        ({"topics": {"a": "OptOut", "b": "OptIn"}}, {"topics": {"a": "OptIn", "b": "OptOut"}}, "unsubscribed"),
        ({"topics": {"a": "OptIn"}}, {"topics": {"a": "OptOut"}}, "subscribed"),
        ({"topics": {"a": "OptOut"}}, {}, "unsubscribed"),
    ],
)
def test_preferences_of_ses(new: dict, old: dict, wanted: str) -> None:
    """A change of preferences is an unsubscribe when anything was left, else a subscription."""

    def preferences(given: dict) -> dict:
        rows = [{"topicName": name, "subscriptionStatus": status} for name, status in given.get("topics", {}).items()]
        return {"unsubscribeAll": given.get("unsubscribeAll", False), "topicSubscriptionStatus": rows}

    said = {"newTopicPreferences": preferences(new), "oldTopicPreferences": preferences(old)}
    (event,) = ses_events({"eventType": "Subscription", "subscription": said})
    assert event.kind == wanted


def test_an_open_of_several_destinations_is_everybodys_and_marked() -> None:
    """SES does not say who of several opened: each gets the event, its own id, and the mark."""
    opened = ses_events({"eventType": "Open", "open": {"isAutomated": True}}, destination=["a@x.example", "b@x.example"])
    assert [(e.recipient, e.event_id, e.metadata["ambiguous_recipients"]) for e in opened] == [
        ("a@x.example", "1:a@x.example", 2),
        ("b@x.example", "1:b@x.example", 2),
    ]
    assert all((e.agent, e.agent_reason) == ("machine", "vendor flag: isAutomated") for e in opened)
    sent = ses_events({"eventType": "Send", "send": {}}, destination=["a@x.example", "b@x.example"])
    assert [e.metadata for e in sent] == [{}, {}]  # it was sent to both
    (event,) = ses_events({"eventType": "Click", "click": {"isBot": "false", "link": "x"}})
    assert (event.agent, event.metadata) == ("", {})


def test_other_events_of_ses() -> None:
    """Complaints by the suppression list, rendering failures with a blank, delays, headers and tags, and the notes of SNS itself."""
    (event,) = ses_events({"eventType": "Complaint", "complaint": {"complaintSubType": "OnAccountSuppressionList"}})
    assert (event.kind, event.reason) == ("rejected", "spam")
    (event,) = ses_events({"eventType": "Rendering Failure", "failure": {"errorMessage": "no `name`"}})
    assert (event.kind, event.detail) == ("failed", "no `name`")
    delayed = [{"emailAddress": "c@x.example", "status": "4.4.1", "diagnosticCode": "smtp; 421 busy"}]
    (event,) = ses_events({"eventType": "DeliveryDelay", "deliveryDelay": {"delayType": "General", "delayedRecipients": delayed}})
    assert (event.kind, event.recipient, event.code, event.detail) == ("deferred", "c@x.example", "4.4.1", "smtp; 421 busy")
    headers = [{"name": "X-Tag", "value": "t"}, {"name": "X-Metadata", "value": '{"wave": 2}'}, {"name": "X-Cohort", "value": "c"}]
    (event,) = ses_events({"eventType": "Send"}, headers=headers, tags={"campaign": ["spring"], "ses:source-ip": ["192.0.2.1"]})
    assert (event.tags, event.campaign, event.wave, event.metadata["X-Cohort"]) == (["t"], "spring", "2", "c")
    assert list(ses_events({"notificationType": "AmazonSnsSubscriptionSucceeded"})) == []
    note = {"Type": "Notification", "MessageId": "1", "Message": "Successfully validated SNS topic for Amazon SES event publishing."}
    assert list(load("ses", {"basic_auth": ["u:p"]}).parse(Request(body=msgspec.json.encode(note)))) == []
    inbound = load("ses", {"basic_auth": ["u:p"]}).parse(Request(body=outside("ses", {"notificationType": "Received"})))
    assert list(inbound) == [] and "receipt rules" in inbound.bad[0].detail


# -- Mandrill -------------------------------------------------------------------------------------------------------------


def mandrill_post(key: str, events: list, url: str = URL) -> Request:
    form = {"content-type": "application/x-www-form-urlencoded"}
    request = Request(url=url, headers=form, body=outside("mandrill", events), received_at_us=NOW_US)
    return load("mandrill", {"secrets": [key]}).sign(request)


def test_mandrill_signs_the_url_as_it_was_registered() -> None:
    """Query and credentials belong to the URL; the configured one wins over what the request came to."""
    events = [{"event": "send", "msg": {"email": "ada@example.com"}}]
    signed = mandrill_post("key", events, "https://user:p%40ss@hooks.example/in/esp?a=1")
    inner = msgspec.structs.replace(signed, url="http://10.0.0.1:8400/in/esp?a=1")
    configured = load("mandrill", {"secrets": ["key"], "url": "https://user:p%40ss@hooks.example/in/esp?a=1"})
    assert configured.verify(inner) == 0
    for url in (
        "https://user:p%40ss@hooks.example/in/esp",
        "https://hooks.example/in/esp?a=1",
        "https://user:p%40ss@hooks.example/in/esp?a=2",
    ):
        assert not accepts(load("mandrill", {"secrets": ["key"], "url": url}), inner)
    signed = mandrill_post("key", events, "https://user:word@hooks.example/in/esp")
    header = {"authorization": "Basic " + base64.b64encode(b"user:word").decode()}
    assert load("mandrill", {"secrets": ["key"]}).verify(with_headers(msgspec.structs.replace(signed, url=URL), header)) == 0


def test_mandrill_creates_a_webhook_before_it_gives_the_key() -> None:
    """Without a key only the empty first post passes; with one, that has to be signed too."""
    first = Request(
        url=URL, headers={"content-type": "application/x-www-form-urlencoded"}, body=b"mandrill_events=%5B%5D", received_at_us=NOW_US
    )
    fresh = load("mandrill", {})
    fresh.verify(first)
    assert fresh.handshake(first) == Response() and list(fresh.parse(first)) == []
    assert not accepts(fresh, mandrill_post("any", [{"event": "send", "msg": {"email": "ada@example.com"}}]))
    assert not accepts(load("mandrill", {"secrets": ["key"]}), first)
    odd = with_headers(msgspec.structs.replace(first, url="//[in/esp"), {"authorization": "Basic dTpw", "x-mandrill-signature": "x"})
    assert not accepts(load("mandrill", {"secrets": ["key"]}), odd)


def test_mandrills_public_test_key_opens_nothing() -> None:
    """What everybody can sign is answered if it is about Mandrill's own examples, and never becomes an event."""
    source = load("mandrill", {"secrets": ["key"]})
    pressed = mandrill_post("test-webhook", [{"event": "open", "msg": {"email": "example.webhook@mandrillapp.com"}}])
    source.verify(pressed)
    assert source.handshake(pressed) == Response()
    assert list(source.parse(pressed)) == []  # it may well be in the log
    for email in ("ada@example.com", "example.webhook@mandrillapp.com.example", None):
        assert not accepts(source, mandrill_post("test-webhook", [{"event": "open", "msg": {"email": email}}]))
    assert not accepts(source, mandrill_post("test-webhook", [{"event": "open"}]))
    double = {"event": "open", "msg": {"email": "example.webhook@mandrillapp.com"}, "reject": {"email": "example.webhook@mandrillapp.com"}}
    assert not accepts(source, mandrill_post("test-webhook", [double, {"event": "open", "_id": "m1"}]))
    real = mandrill_post("key", [{"event": "open", "msg": {"email": "ada@example.com"}}])
    source.verify(real)
    assert source.handshake(real) is None


# -- the others' particulars ----------------------------------------------------------------------------------------------


def one(vendor: str, said: object, **extra: object) -> Event:
    (event,) = make(vendor, None, **extra).parse(Request(body=outside(vendor, said), received_at_us=NOW_US))
    return event


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ({"event": "accepted"}, ("queued", "", "", "")),
        ({"event": "failed", "severity": "temporary", "reason": "greylisted"}, ("deferred", "", "other", "")),
        ({"event": "failed", "severity": "permanent", "reason": "bounce"}, ("bounced", "hard", "bounced", "")),
        ({"event": "failed", "severity": "permanent", "reason": "old"}, ("bounced", "soft", "timed_out", "")),
        ({"event": "failed", "severity": "permanent", "reason": "espblock"}, ("bounced", "block", "other", "")),
        ({"event": "failed", "reason": "suppress-complaint"}, ("rejected", "", "spam", "")),
        ({"event": "failed", "reason": "suppress-unsubscribe"}, ("rejected", "", "unsubscribed", "")),
        ({"event": "failed", "reason": "generic", "delivery-status": {"code": 607}}, ("rejected", "", "spam", "")),
        ({"event": "failed", "delivery-status": None}, ("bounced", "hard", "", "")),
        ({"event": "rejected", "reject": {"reason": "Sandbox"}}, ("rejected", "", "other", "")),
        ({"event": "opened", "client-info": {"bot": "gmail"}}, ("opened", "", "", "machine")),
        ({"event": "clicked", "client-info": {"bot": "generic"}}, ("clicked", "", "", "machine")),
        ({"event": "clicked", "client-info": {"bot": ""}}, ("clicked", "", "", "")),
    ],
)
def test_mailgun_in_particular(data: dict, wanted: tuple) -> None:
    """Severity, reason, code and bot flag each change what an event is."""
    event = one(
        "mailgun", {"event-data": {"timestamp": 1764000000.5, "id": "x", "message": {"headers": {"to": "Ada <ada@example.com>"}}} | data}
    )
    assert (event.kind, event.bounce_class, event.reason, event.agent) == wanted
    assert event.event_id == "2025-11-24:x"
    assert event.recipient == ("ada@example.com" if data["event"] == "rejected" else "")


def test_mailguns_old_form() -> None:
    """Custom variables with the names of Mailgun's own fields come second, and before the signed three."""
    pairs = [("event", "clicked"), ("recipient", "ada@example.com"), ("url", "https://a.example"), ("timestamp", "17"), ("token", "mine")]
    pairs += [("timestamp", "1764000030"), ("recipient", "mine"), ("plan", "pro"), ("tag", "a"), ("tag", "b"), ("message-id", "1@x")]
    source = make("mailgun")
    request = source.sign(Request(body=urlencode(pairs).encode(), received_at_us=NOW_US))
    source.verify(request)
    (event,) = source.parse(request)
    assert (event.recipient, event.occurred_at_us, event.tags, event.message_id) == (
        "ada@example.com",
        1764000030000000,
        ["a", "b"],
        "<1@x>",
    )
    assert event.metadata == {"recipient": "mine", "timestamp": "17", "token": "mine", "plan": "pro"}
    for code, reason in (
        ("499", "timed_out"),
        ("605", "bounced"),
        ("607", "spam"),
        ("550", "bounced"),
        ("5.1.1", "bounced"),
        ("200", "other"),
    ):
        (event,) = source.parse(Request(body=f"event=dropped&timestamp=1764000000&code={code}".encode()))
        assert (event.kind, event.reason) == ("rejected", reason)
    headers = urlencode({"message-headers": json.dumps([["X-Mailgun-Variables", '{"a": 1}'], ["X-Mailgun-Variables", '{"b": 2}']])})
    (event,) = source.parse(Request(body=f"event=bounced&timestamp=1764000000&x=1&{headers}".encode()))
    assert (event.kind, event.bounce_class, event.metadata) == ("bounced", "hard", {"a": 1, "b": 2})
    with pytest.raises(Malformed):
        source.parse(Request(body=b"a=1&" * 2000))
    assert source.parse(Request(body=b"sender=a%40b.example&timestamp=1")).bad[0].reason == "malformed"


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"RecordType": "Bounce", "Type": "SoftBounce"}, ("bounced", "soft", "bounced")),
        ({"RecordType": "Bounce", "Type": "VirusNotification"}, ("bounced", "block", "other")),
        ({"RecordType": "Bounce", "Type": "DnsError"}, ("deferred", "", "")),
        ({"RecordType": "Bounce", "Type": "Blocked"}, ("rejected", "", "blocked")),
        ({"RecordType": "Bounce", "Type": "BadEmailAddress"}, ("rejected", "", "invalid")),
        ({"RecordType": "Bounce", "Type": "AutoResponder"}, ("autoresponded", "", "")),
        ({"RecordType": "Bounce", "Type": "TemplateRenderingFailed"}, ("failed", "", "")),
        ({"RecordType": "Bounce", "Type": "InventedTomorrow"}, ("bounced", "soft", "")),
        ({"RecordType": "SpamComplaint"}, ("complained", "", "spam")),
        ({"RecordType": "SubscriptionChange", "SuppressSending": False}, ("subscribed", "", "")),
        ({"RecordType": "SubscriptionChange", "SuppressionReason": "SpamComplaint"}, ("complained", "", "spam")),
        ({"RecordType": "SubscriptionChange", "SuppressSending": True}, ("unsubscribed", "", "")),
    ],
)
def test_postmark_in_particular(said: dict, wanted: tuple) -> None:
    """A bounce is what its type says, a subscription change what it was made for."""
    event = one("postmark", said | {"ChangedAt": "2025-11-24T16:00:00Z"})
    assert (event.kind, event.bounce_class, event.reason) == wanted


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"type": "bounce", "bounce_class": "30"}, ("bounced", "hard", "bounced")),
        ({"type": "out_of_band", "bounce_class": 24}, ("bounced", "soft", "timed_out")),
        ({"type": "bounce", "bounce_class": "25"}, ("bounced", "block", "blocked")),
        ({"type": "bounce", "bounce_class": "60"}, ("autoresponded", "", "other")),
        ({"type": "bounce", "bounce_class": "90"}, ("unsubscribed", "", "unsubscribed")),
        ({"type": "bounce", "bounce_class": ""}, ("bounced", "soft", "")),
        ({"type": "delay", "bounce_class": "21"}, ("deferred", "", "bounced")),
        ({"type": "policy_rejection", "bounce_class": "25"}, ("rejected", "", "blocked")),
        ({"type": "injection", "rcpt_meta": None}, ("queued", "", "")),
    ],
)
def test_sparkpost_in_particular(said: dict, wanted: tuple) -> None:
    """The bounce class decides, and some bounces are answers."""
    event = one("sparkpost", [{"msys": {"message_event": said}}])
    assert (event.kind, event.bounce_class, event.reason) == wanted


def test_sparkposts_two_pixels_do_not_open_a_message_twice() -> None:
    """All initial opens of a message are one event; the setting leaves one pixel out; lists' tags name the variant."""
    pixels = [
        {"type": name, "message_id": "m", "event_id": str(n), "rcpt_tags": ["variant:B"]}
        for n, name in enumerate(["initial_open", "open"] * 2)
    ]
    request = Request(body=msgspec.json.encode([{"msys": {"track_event": pixel}} for pixel in pixels]))
    by = {which: make("sparkpost", None, opens=which).parse(request) for which in ("both", "open", "initial_open")}
    assert [e.kind for e in by["both"]] == ["opened"] * 4 and len({e.event_id for e in by["both"]}) == 3
    assert [e.event_id for e in by["open"]] == ["1", "3"] and [e.event_id for e in by["initial_open"]] == ["0", "2"]
    assert all(e.variant == "B" and e.tags == [] for e in by["both"])


def test_sparkpost_events_of_two_classes_or_none() -> None:
    """A ping is nothing, an event of two classes is set aside, and the rest is read."""
    good = {"msys": {"track_event": {"type": "click"}}}
    body = [{"msys": {}}, {"msys": {"track_event": {}, "gen_event": {}}}, good, {"msys": {"ab_test_event": {"type": "ab_test_completed"}}}]
    parsed = make("sparkpost").parse(Request(body=msgspec.json.encode(body)))
    assert [e.kind for e in parsed] == ["clicked"] and [bad.index for bad in parsed.bad] == [1]
    relay = make("sparkpost").parse(Request(body=msgspec.json.encode([{"msys": {"relay_message": {"rcpt_to": "a@b.example"}}}])))
    assert list(relay) == [] and "relay webhook" in relay.bad[0].detail


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"event": "bounce", "hard_bounce": True, "error": "user unknown"}, ("bounced", "hard", "bounced")),
        ({"event": "bounce", "hard_bounce": False, "error": "greylisted"}, ("deferred", "", "other")),
        ({"event": "bounce", "hard_bounce": False, "error": "content blocked"}, ("bounced", "block", "blocked")),
        ({"event": "blocked", "error": "preblocked"}, ("rejected", "", "blocked")),
        ({"event": "blocked", "error": "duplicate in campaign"}, ("rejected", "", "other")),
        ({"event": "sent", "MessageID": ""}, ("delivered", "", "")),
        ({"event": "spam", "source": "greylisted"}, ("complained", "", "")),
        ({"event": "unsub"}, ("unsubscribed", "", "")),
    ],
)
def test_mailjet_in_particular(said: dict, wanted: tuple) -> None:
    """The error decides what a bounce is, as a bare object and in a list."""
    for body in (said, [said]):
        event = one("mailjet", body)
        assert (event.kind, event.bounce_class, event.reason) == wanted


def test_brevo_in_particular() -> None:
    """Batches in three shapes, tags in three, custom data in two, and inbound mail that only looks like a batch."""
    click = {"event": "click", "email": "ada@example.com", "ts_epoch": 1764000000000}
    for body in ([click], {"events": [click]}, {"items": [click]}, click):
        assert one("brevo", body).occurred_at_us == 1764000000000000
    for tags in ({"tag": "a"}, {"tag": ["a"]}, {"tag": '["a"]'}, {"tags": ["a"], "tag": "b"}):
        assert one("brevo", click | tags).tags == ["a"]
    assert one("brevo", click | {"tag": "[draft"}).tags == ["[draft"]
    assert one("brevo", click | {"X-Mailin-custom": "campaign:spring|variant:B"}).variant == "B"
    assert one("brevo", {"event": "Hard Bounced", "email": "x@y.example"}).bounce_class == "hard"
    assert one("brevo", click | {"ts_epoch": None, "ts_event": 1764000000}).occurred_at_us == 0  # the account's time zone
    added = make("brevo").parse(Request(body=msgspec.json.encode({"event": "list_addition", "email": ["a@x.example", "b@x.example"]})))
    assert [(e.kind, e.recipient) for e in added] == [("subscribed", "a@x.example"), ("subscribed", "b@x.example")]
    with pytest.raises(Malformed, match="inbound"):
        make("brevo").parse(Request(body=b'{"items": [{"Uuid": ["1"], "MessageId": "<1@x>"}]}'))
