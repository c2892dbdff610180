"""Eleven vendors: who is let in, what their words become, and that nothing ugly gets through or stops the rest."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import string
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.events import AGENTS, BOUNCE_CLASSES, KINDS, REASONS, Event, recipient_key
from midflight.kit.errors import ConfigError, MidflightError
from midflight.sources import Refused, Request, Source, load
from midflight.sources.mailersend import MailerSend
from midflight.sources.resend import Resend
from midflight.sources.source import Malformed, with_headers

NOW_S = 1_764_000_001
NOW_US = NOW_S * 1_000_000
AT = "2025-11-24T16:00:00.250Z"
AT_US = 1_764_000_000_250_000


def rsa_pem() -> str:
    """Return a fresh private key, as the sandbox has one."""
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


PEMS = [rsa_pem(), rsa_pem(), rsa_pem()]
WHSEC = ["whsec_" + base64.b64encode(bytes([n]) * 24).decode() for n in (1, 2, 3)]
PLAIN = ["the newest secret", "the one before", "another's secret"]

# vendor -> its own settings, three secrets (newest, older, a stranger's), a body
SIGNED: dict[str, tuple[dict, list[str], bytes]] = {
    "resend": ({}, WHSEC, b'{"type":"email.sent","created_at":"2025-11-24T16:00:00Z","data":{"email_id":"m","to":["ada@example.com"]}}'),
    "mailersend": ({}, PLAIN, b'{"type":"activity.sent","data":{"id":"1","email":{"recipient":{"email":"ada@example.com"}}}}'),
    "postal": ({}, PEMS, b'{"event":"MessageSent","uuid":"u","payload":{"status":"Sent","message":{"id":1,"to":"ada@example.com"}}}'),
    "unisender_go": ({}, PLAIN, b'{"event_name":"transactional_email_status","status":"sent","email":"ada@example.com","auth":""}'),
    "mailtrap": ({}, PLAIN, b'{"events":[{"event":"delivery","event_id":"1","email":"ada@example.com"}]}'),
    "customerio": (
        {},
        PLAIN,
        b'{"event_id":"1","object_type":"email","metric":"sent","timestamp":1764000000,"data":{"recipient":"ada@example.com"}}',
    ),
    "klaviyo": ({}, PLAIN, b'{"data":[{"topic":"event:klaviyo.opened_email","external_id":"1","payload":{}}],"meta":{}}'),
    "generic": (
        {"fields": {"kind": "type", "recipient": "to"}, "signature": {"header": "X-Signature", "prefix": "sha256="}},
        PLAIN,
        b'{"type":"opened","to":"ada@example.com"}',
    ),
}

# what a vendor signs with, besides the body
SIGNATURE_HEADERS = {
    "resend": ("svix-id", "svix-timestamp", "svix-signature"),
    "mailersend": ("signature",),
    "postal": ("x-postal-signature-256",),
    "unisender_go": (),
    "mailtrap": ("mailtrap-signature",),
    "customerio": ("x-cio-timestamp", "x-cio-signature"),
    "klaviyo": ("klaviyo-timestamp", "klaviyo-signature"),
    "generic": ("x-signature",),
}


def signed_source(kind: str, *secrets: object) -> Source:
    """Return a source of that vendor with these secrets (by default its newest)."""
    extra, known, _ = SIGNED[kind]
    return load(kind, {"secrets": list(secrets) or [known[0]], **extra}, name="shop")


def request_of(body: object, url: str = "", **headers: str) -> Request:
    raw = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return Request(url=url, headers={k.replace("_", "-"): v for k, v in headers.items()}, body=raw, received_at_us=NOW_US)


def signed(kind: str, secret: str | None = None) -> Request:
    """Return an authentic request of that vendor."""
    _, known, body = SIGNED[kind]
    return signed_source(kind, secret or known[0]).sign(request_of(body))


def parse(kind: str, body: object, settings: dict | None = None, url: str = "", **headers: str) -> list[Event]:
    """Return the events of one unsigned request."""
    source = load(kind, {"unsigned": True, **(settings or {})}, name="shop")
    return source.parse(request_of(body, url, **headers))


def refused(source: Source, request: Request) -> bool:
    try:
        source.verify(request)
    except Refused:
        return True
    return False


# -- signatures: what all of them hold -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SIGNED)
def test_an_authentic_request_is_let_in(kind: str) -> None:
    """What a vendor signs with the newest secret is accepted as secret 0, and read."""
    request = signed(kind)
    assert signed_source(kind).verify(request) == 0
    (event,) = signed_source(kind).parse(request)
    assert event.source == "shop" and event.event_id and event.received_at_us == NOW_US


@pytest.mark.parametrize("kind", SIGNED)
def test_a_rotation_has_a_grace_period(kind: str) -> None:
    """An old secret is accepted until its end and told apart by its index, and refused from then on."""
    new, old, _ = SIGNED[kind][1]
    request = signed(kind, old)
    during = {"value": old, "until": datetime.fromtimestamp(NOW_S + 1, UTC).isoformat()}
    after = {"value": old, "until": datetime.fromtimestamp(NOW_S, UTC).isoformat()}
    assert signed_source(kind, new, during).verify(request) == 1
    assert signed_source(kind, new, after).verify(signed(kind, new)) == 0
    with pytest.raises(Refused, match="does not fit"):
        signed_source(kind, new, after).verify(request)


@pytest.mark.parametrize("kind", SIGNED)
def test_a_strangers_secret_is_refused(kind: str) -> None:
    """A request that another secret signed is refused, with a hint at what changes bodies on the way."""
    stranger = SIGNED[kind][1][2]
    with pytest.raises(Refused, match="rewrites the body"):
        signed_source(kind).verify(signed(kind, stranger))


def mutants(kind: str, request: Request) -> list[Request]:
    """Return the request with each byte of body and signature headers changed in one bit, and each bit of the first byte."""
    made = []
    for index in range(len(request.body)):
        bits = range(8) if index == 0 else (index % 7,)
        for bit in bits:
            body = bytearray(request.body)
            body[index] ^= 1 << bit
            made.append(Request(url=request.url, headers=request.headers, body=bytes(body), received_at_us=NOW_US))
    for header in SIGNATURE_HEADERS[kind]:
        value = request.headers[header]
        for index, char in enumerate(value):
            for other in {chr(ord(char) ^ 1), chr(ord(char) ^ 32), ""} - {char}:
                made.append(with_headers(request, {header: value[:index] + other + value[index + 1 :]}))
        made.append(with_headers(request, {header: value + value[-1]}))
    return made


def accepted(source: Source, requests: list[Request]) -> list[Request]:
    return [request for request in requests if not refused(source, request)]


@pytest.mark.parametrize("kind", SIGNED)
def test_no_changed_byte_is_let_in(kind: str) -> None:
    """Of a request changed in any one byte of its body or its signature headers, none is accepted."""
    request = signed(kind)
    changed = mutants(kind, request)
    assert len(changed) > 80
    assert accepted(signed_source(kind), changed) == []


def test_a_careless_comparison_is_caught() -> None:
    """The check above finds a vendor that compares half of the signature, and one that ignores the case of its letters."""

    class Half(MailerSend):
        def signature(self, request: Request) -> int:
            wanted = self.sign(request).header("signature")
            if wanted[:32] != request.header("signature")[:32]:
                raise Refused("no")
            return 0

    class AnyCase(MailerSend):
        def signature(self, request: Request) -> int:
            return super().signature(with_headers(request, {"signature": request.header("signature").lower()}))

    for careless in (Half, AnyCase):
        source = careless(careless.configure({"secrets": [PLAIN[0]]}, "shop"), name="shop")
        assert accepted(source, mutants("mailersend", signed("mailersend")))


BAD_SIGNATURES = ["", " ", "x" * 1_000_000, "v1," + "A" * 1_000_000, "not base64!", "v1,not base64!", "sha512=" + "0" * 128, "\u00e9\u20ac"]


@pytest.mark.parametrize("kind", [k for k in SIGNED if k != "unisender_go"])
def test_a_signature_that_is_none_is_refused(kind: str) -> None:
    """Missing, empty, a megabyte long, not base64, of another algorithm, sent twice: each is refused, none is an error of ours."""
    source, request = signed_source(kind), signed(kind)
    header = SIGNATURE_HEADERS[kind][-1]
    for bad in [*BAD_SIGNATURES, f"{request.headers[header]}, {request.headers[header]}"]:
        without_sha1 = {k: v for k, v in request.headers.items() if k != "x-postal-signature"}
        assert refused(source, Request(headers=without_sha1 | {header: bad}, body=request.body, received_at_us=NOW_US)), bad[:40]
    assert refused(source, request_of(request.body))


@pytest.mark.parametrize("kind", ["resend", "customerio", "klaviyo", "generic"])
def test_a_time_of_signing_that_is_none_is_refused(kind: str) -> None:
    """Missing, empty, a megabyte of digits, NaN, negative, text: each is refused, none is an error of ours."""
    extra = {"timestamp_header": "X-Time", "message": "{timestamp}.{body}"}
    settings_ = SIGNED[kind][0] | ({"signature": {"header": "X-Signature", **extra}} if kind == "generic" else {})
    source = load(kind, {"secrets": [SIGNED[kind][1][0]], **settings_})
    request = source.sign(request_of(SIGNED[kind][2]))
    header = "x-time" if kind == "generic" else SIGNATURE_HEADERS[kind][-2]
    assert source.verify(request) == 0
    for bad in ("", "0", "-1", "NaN", "inf", "1e400", "9" * 400, "9" * 5000, "9" * 1_000_000, "soon", "\u0663" * 10, f"{NOW_S}, {NOW_S}"):
        assert refused(source, with_headers(request, {header: bad})), bad[:40]


@pytest.mark.parametrize("kind", SIGNED)
def test_a_body_that_was_written_anew_is_refused(kind: str) -> None:
    """A proxy that decodes and encodes the JSON breaks the signature, though the content is the same."""
    request = signed(kind)
    anew = json.dumps(json.loads(request.body), indent=1).encode()
    assert refused(signed_source(kind), Request(headers=request.headers, body=anew, received_at_us=NOW_US))


@pytest.mark.parametrize("kind", SIGNED)
def test_a_replay_is_the_same_event(kind: str) -> None:
    """An authentic request that comes again within the window is accepted and carries the same event id."""
    request = signed(kind)
    later = Request(headers=request.headers, body=request.body, received_at_us=NOW_US + 60_000_000)
    source = signed_source(kind)
    source.verify(later)
    assert [e.event_id for e in source.parse(later)] == [e.event_id for e in source.parse(request)]


# -- Resend: Svix --------------------------------------------------------------------------------------------------------


def svix_request(signed_at: str, id_: str = "msg_1", family: str = "svix", body: bytes = b"{}") -> Request:
    """Return a request as Svix signs it, made here from the specification and not by the source."""
    key = base64.b64decode(WHSEC[0].removeprefix("whsec_"))
    mac = base64.b64encode(hmac.new(key, f"{id_}.{signed_at}.".encode() + body, hashlib.sha256).digest()).decode()
    return Request(
        headers={f"{family}-id": id_, f"{family}-timestamp": signed_at, f"{family}-signature": f"v1,{mac}"},
        body=body,
        received_at_us=NOW_US,
    )


def test_the_published_svix_example_fits() -> None:
    """The worked example that Svix prints in its documentation verifies."""
    source = load("resend", {"secrets": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]})
    request = Request(
        headers={
            "svix-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "svix-timestamp": "1614265330",
            "svix-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        },
        body=b'{"test": 2432232314}',
        received_at_us=1_614_265_331_000_000,
    )
    assert source.verify(request) == 0


def window_holds(source: Source) -> bool:
    """Whether exactly the requests signed at most five minutes before or after now are accepted."""
    inside = [s for s in (-300, -299, 0, 299, 300) if refused(source, svix_request(str(NOW_S + s)))]
    outside = [s for s in (-301, 301, -86_400, 86_400) if not refused(source, svix_request(str(NOW_S + s)))]
    return not inside and not outside


def test_svix_signatures_live_five_minutes() -> None:
    """A request signed 300 s ago or ahead is accepted, one second more is refused as skewed."""
    assert window_holds(signed_source("resend"))
    with pytest.raises(Refused, match="clock skew"):
        signed_source("resend").verify(svix_request(str(NOW_S - 301)))


def test_a_window_of_another_width_is_caught() -> None:
    """The check above fails for a source that allows a second more, and for one that allows a second less."""

    class Wide(Resend):
        def fresh(self, request: Request, signed_at_us: int, tolerance_s: int) -> None:
            super().fresh(request, signed_at_us, tolerance_s + 1)

    class Narrow(Resend):
        def fresh(self, request: Request, signed_at_us: int, tolerance_s: int) -> None:
            super().fresh(request, signed_at_us, tolerance_s - 1)

    for broken in (Wide, Narrow):
        assert not window_holds(broken(broken.configure({"secrets": [WHSEC[0]]}, "shop"), name="shop"))


@pytest.mark.parametrize("signed_at", ["", "NaN", "-1", "inf", "1764000001.5", " 1764000001", "1_764_000_001", "٣" * 10, "9" * 400, "true"])
def test_a_svix_time_that_is_no_number_is_refused(signed_at: str) -> None:
    """Only digits are a time, even where the signature over it is right."""
    assert refused(signed_source("resend"), svix_request(signed_at))


def test_both_families_of_header_names_work_and_do_not_mix() -> None:
    """`svix-*` and `webhook-*` are each accepted alone; the id and time of one never back the signature of the other."""
    source = signed_source("resend")
    assert source.verify(svix_request(str(NOW_S), family="webhook")) == 0
    assert source.parse(svix_request(str(NOW_S), id_="msg_7", family="webhook"))[0].event_id == "msg_7"
    mine = svix_request(str(NOW_S), id_="msg_mine", family="webhook")
    mixed = with_headers(mine, {"svix-id": "msg_other", "svix-timestamp": str(NOW_S), "svix-signature": "v1,AAAA"})
    assert refused(source, mixed)


def test_one_of_several_signatures_is_enough() -> None:
    """While a secret is rotated the header lists one signature of each; unknown versions among them are skipped."""
    request = svix_request(str(NOW_S))
    right = request.header("svix-signature")
    for listed in (f"v1,{'A' * 43}= {right}", f"{right} v1,zzz", f"v1a,ed25519 v2,x {right}"):
        assert not refused(signed_source("resend"), with_headers(request, {"svix-signature": listed})), listed
    for listed in (right.replace("v1,", "v2,"), right.removeprefix("v1,"), "v1,", f"v1, {right}", f"v1,{'A' * 43}="):
        assert refused(signed_source("resend"), with_headers(request, {"svix-signature": listed})), listed


def test_a_retry_is_signed_anew_but_the_same_event() -> None:
    """Svix signs each attempt with a fresh time; the id stays, so the event is known."""
    source = signed_source("resend")
    first, second = svix_request(str(NOW_S - 200)), svix_request(str(NOW_S))
    assert first.header("svix-signature") != second.header("svix-signature")
    assert source.parse(first)[0].event_id == source.parse(second)[0].event_id == "msg_1"


def test_an_id_that_is_set_is_signed() -> None:
    """`sign` keeps an id that stands in the request and makes one from the body else; the id is part of what is signed."""
    source = signed_source("resend")
    request = source.sign(request_of(b"{}", svix_id="e-17"))
    assert request.header("svix-id") == "e-17" and source.verify(request) == 0
    assert refused(source, with_headers(request, {"svix-id": "e-18"}))
    assert source.sign(request_of(b"{}")).header("svix-id") == source.sign(request_of(b"{}")).header("svix-id") != ""


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_not base64!", "whsec_abc"])
def test_a_resend_secret_that_is_none_stops_the_start(secret: str) -> None:
    """A signing secret that cannot be decoded is a configuration error, not a vendor who is refused for ever."""
    with pytest.raises(ConfigError, match="signing secret"):
        load("resend", {"secrets": [secret]})


def resend(type_: str, **data: object) -> dict:
    return {
        "type": type_,
        "created_at": AT,
        "data": {"email_id": "m-1", "to": ["ada@example.com"], "created_at": "2025-11-24T15:00:00Z", **data},
    }


@pytest.mark.parametrize(
    ("type_", "kind", "reason"),
    [
        ("email.scheduled", "queued", ""),
        ("email.sent", "sent", ""),
        ("email.delivered", "delivered", ""),
        ("email.delivery_delayed", "deferred", ""),
        ("email.complained", "complained", "spam"),
        ("email.opened", "opened", ""),
        ("email.clicked", "clicked", ""),
        ("email.failed", "failed", "other"),
        ("email.suppressed", "rejected", "blocked"),
        ("email.invented", "unknown", ""),
    ],
)
def test_resends_words(type_: str, kind: str, reason: str) -> None:
    """Each of Resend's event types becomes its kind, at the time of the event and not of the message."""
    (event,) = parse("resend", resend(type_), svix_id="msg_1")
    assert (event.kind, event.reason, event.occurred_at_us, event.message_id, event.name) == (kind, reason, AT_US, "m-1", type_)


@pytest.mark.parametrize(
    ("bounce", "bounce_class", "reason"),
    [
        ({"type": "Permanent", "subType": "General", "message": "no such user"}, "hard", "bounced"),
        ({"type": "Transient", "subType": "MailboxFull", "message": "full"}, "soft", "bounced"),
        ({"type": "Undetermined", "message": "?"}, "soft", "bounced"),
        ({"type": "Permanent", "subType": "OnAccountSuppressionList", "message": "known"}, "block", "blocked"),
        ({"message": "Resend has suppressed sending to this address"}, "block", "blocked"),
        ({"message": "The recipient's email provider sent a hard bounce message"}, "hard", "bounced"),
        ({"message": "The recipient's email provider sent a general bounce message."}, "soft", "bounced"),
        ({"message": "something else"}, "hard", "other"),
    ],
)
def test_resends_bounces(bounce: dict, bounce_class: str, reason: str) -> None:
    """Hard, soft and held back by the suppression list are told apart, by type or, in older events, by the text."""
    (event,) = parse("resend", resend("email.bounced", bounce=bounce))
    assert (event.kind, event.bounce_class, event.reason, event.detail) == ("bounced", bounce_class, reason, bounce["message"])


def test_resends_labels() -> None:
    """Campaign and variant come from named tags in either form and from added headers, else the broadcast is the campaign."""
    (as_object,) = parse("resend", resend("email.sent", tags={"campaign": "spring", "variant": "B", "wave": "2"}, broadcast_id="b-1"))
    assert (as_object.campaign, as_object.variant, as_object.wave) == ("spring", "B", "2")
    (as_list,) = parse("resend", resend("email.sent", tags=[{"name": "campaign", "value": "spring"}, None]))
    assert as_list.campaign == "spring"
    (broadcast,) = parse("resend", resend("email.sent", tags=None, broadcast_id="b-1"))
    assert broadcast.campaign == "b-1"
    headers = [{"name": "X-Tags", "value": '["one", "two"]'}, {"name": "X-Metadata", "value": '{"user": 3}'}, {"name": "X-Tags"}, 7]
    (added,) = parse("resend", resend("email.sent", headers=headers[:2]))
    assert (added.tags, added.metadata) == (["one", "two"], {"user": 3})
    assert parse("resend", resend("email.sent", headers=headers))[0].metadata == {"user": 3}


def test_resend_does_not_say_which_of_several_recipients() -> None:
    """With several recipients there is one event for each, each with an id of its own and marked as ambiguous."""
    events = parse("resend", resend("email.opened", to=["Ada <ada@example.com>", "bob@example.com"]), svix_id="msg_1")
    assert [e.recipient for e in events] == ["ada@example.com", "bob@example.com"]
    assert len({e.event_id for e in events}) == 2 and [e.metadata for e in events] == [{"ambiguous_recipients": 2}] * 2
    (alone,) = parse("resend", resend("email.opened", to=["ada@example.com"]), svix_id="msg_1")
    assert alone.event_id == "msg_1" and "ambiguous_recipients" not in alone.metadata


def test_resends_contacts() -> None:
    """A contact who is unsubscribed is unsubscribed; one who is not was perhaps only renamed, which never resubscribes anybody."""
    gone = {"type": "contact.updated", "created_at": AT, "data": {"email": "ada@example.com", "unsubscribed": True}}
    (event,) = parse("resend", gone, svix_id="msg_1")
    assert (event.kind, event.recipient, event.occurred_at_us) == ("unsubscribed", "ada@example.com", AT_US)
    gone["data"]["unsubscribed"] = False
    assert parse("resend", gone)[0].kind == "unknown"
    assert parse("resend", {"type": "domain.created", "data": {}}) == []


def test_a_received_mail_is_of_the_person_who_wrote() -> None:
    """An inbound mail's person is its sender, not our own address."""
    (event,) = parse("resend", resend("email.received", **{"from": "Ada <ada@example.com>", "to": ["shop@example.com"]}))
    assert (event.kind, event.recipient) == ("inbound", "ada@example.com")


# -- what a source writes, it reads --------------------------------------------------------------------------------------

words = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=20)
labels = st.one_of(st.just(""), words)
times_us = st.integers(1_500_000_000_000, 2_000_000_000_000).map(lambda ms: ms * 1000)
written_kinds = [
    "queued",
    "sent",
    "delivered",
    "deferred",
    "bounced",
    "rejected",
    "failed",
    "opened",
    "clicked",
    "complained",
    "unsubscribed",
]


@st.composite
def written(draw: st.DrawFn, kinds: list[str]) -> Event:
    kind = draw(st.sampled_from(kinds))
    return Event(
        event_id=draw(words),
        kind=kind,
        occurred_at_us=draw(times_us),
        recipient=f"{draw(words)}@example.com",
        user_id=draw(labels),
        message_id=draw(words),
        campaign=draw(labels),
        variant=draw(labels),
        wave=draw(labels),
        url=f"https://shop.example/{draw(words)}" if kind in ("clicked", "paged") else "",
        user_agent=draw(labels) if kind in ("opened", "clicked") else "",
        bounce_class=draw(st.sampled_from(["hard", "soft", "block"])) if kind == "bounced" else "",
        detail="550 no such user" if kind in ("bounced", "failed", "rejected") else "",
    )


@given(written(written_kinds))
@settings(max_examples=150)
def test_resend_reads_what_it_writes(event: Event) -> None:
    """An event that the sandbox writes and signs comes back as it was, through the signature."""
    source = signed_source("resend")
    request = source.sign(request_of(source.write([event]), svix_id=event.event_id))
    assert source.verify(request) == 0
    (read,) = source.parse(request)
    for field in ("event_id", "kind", "recipient", "message_id", "occurred_at_us", "campaign", "variant", "wave", "url", "bounce_class"):
        assert getattr(read, field) == getattr(event, field), field
    assert (read.detail, read.user_agent) == (event.detail, event.user_agent)


def test_resend_writes_one_event_at_a_time() -> None:
    """Resend has no batches, so neither has what imitates it."""
    with pytest.raises(ValueError, match="one event"):
        signed_source("resend").write([Event(), Event()])


@given(st.lists(written(["converted", "tracked", "paged", "identified"]), max_size=4), st.integers(0, 10**9), words)
@settings(max_examples=100)
def test_segment_reads_what_it_writes(events: list[Event], cents: int, order_id: str) -> None:
    """A batch that the sandbox writes comes back as it was, money and order included."""
    for event in events:
        if event.kind == "converted":
            event.value_micros, event.currency, event.order_id = cents * 10_000, "EUR" if cents else "", order_id
        if event.kind == "identified":
            event.traits = {"plan": "pro"}
        event.name = "Home" if event.kind == "paged" else ""
    source = load("segment", {"basic_auth": ["key:"]})
    read = source.parse(request_of(source.write(events), "https://in.example/v1/batch"))
    assert not read.bad and len(read) == len(events)
    fields = "event_id kind occurred_at_us recipient user_id campaign variant wave url value_micros currency order_id".split()
    for back, event in zip(read, events, strict=True):
        assert {f: getattr(back, f) for f in fields} == {f: getattr(event, f) for f in fields}
        assert back.traits.get("plan") == event.traits.get("plan")


# -- MailerSend ----------------------------------------------------------------------------------------------------------


def mailersend(word: str, morph: object = None, tags: object = None) -> dict:
    email = {"tags": tags, "status": "rejected", "message": {"id": "m-1"}, "recipient": {"email": "ada@example.com"}}
    data = {"id": "e-1", "type": word, "created_at": "2025-11-24T16:00:00.250000Z", "email": email, "morph": morph}
    return {"type": f"activity.{word}", "created_at": "2025-11-24T17:00:00Z", "data": data}


@pytest.mark.parametrize(
    ("word", "kind", "bounce_class", "reason"),
    [
        ("sent", "sent", "", ""),
        ("delivered", "delivered", "", ""),
        ("soft_bounced", "bounced", "soft", "bounced"),
        ("hard_bounced", "bounced", "hard", "bounced"),
        ("opened", "opened", "", ""),
        ("clicked", "clicked", "", ""),
        ("unsubscribed", "unsubscribed", "", "unsubscribed"),
        ("spam_complaint", "complained", "", "spam"),
        ("survey_opened", "unknown", "", ""),
    ],
)
def test_mailersends_words(word: str, kind: str, bounce_class: str, reason: str) -> None:
    """Each activity becomes its kind, at the activity's own time, whatever the unreliable status of the email says."""
    (event,) = parse("mailersend", mailersend(word, {"reason": "full", "readable_reason": "Mailbox full"}))
    assert (event.kind, event.bounce_class, event.reason, event.occurred_at_us) == (kind, bounce_class, reason, AT_US)
    assert (event.event_id, event.message_id, event.recipient, event.detail) == ("e-1", "m-1", "ada@example.com", "Mailbox full")


def test_a_first_open_counts_once() -> None:
    """The first open arrives as `opened` and as `opened_unique`, a first click likewise: one of each pair counts."""
    for plain, twin in (("opened", "opened_unique"), ("clicked", "clicked_unique")):
        events = [parse("mailersend", mailersend(word))[0] for word in (plain, twin)]
        assert [e.kind for e in events] == [plain, "unknown"]


def test_mailersends_labels_are_tags() -> None:
    """A tag with a prefix is that label; the first one without is the campaign; null is no tag."""
    assert parse("mailersend", mailersend("sent", tags=["variant:B", "spring"]))[0].campaign == "spring"
    (event,) = parse("mailersend", mailersend("sent", tags=["old", "campaign:spring", "variant=B", "wave:2"]))
    assert (event.campaign, event.variant, event.wave) == ("spring", "B", "2")
    assert parse("mailersend", mailersend("sent", tags=None))[0].tags == []


def test_mailersends_other_posts_are_no_events() -> None:
    """The test post and posts about the account or about received mail say nothing about a message of ours."""
    for type_ in ("webhook.test", "sender_identity.verified", "maintenance.start", "inbound.message", "inbound_forward.failed"):
        assert parse("mailersend", {"type": type_, "data": {"id": "1"}}) == []


# -- Postal --------------------------------------------------------------------------------------------------------------


def public_base64(pem: str) -> str:
    """Return the public key as Postal's DNS record shows it."""
    key = serialization.load_pem_private_key(pem.encode(), None).public_key()
    return base64.b64encode(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)).decode()


def test_postals_public_key_is_enough_in_any_form() -> None:
    """A set-up holds only the public key: bare, broken into lines, or as PEM."""
    request = signed("postal")
    bare = public_base64(PEMS[0])
    lines = "\n".join(bare[i : i + 64] for i in range(0, len(bare), 64))
    for form in (bare, lines, f"-----BEGIN PUBLIC KEY-----\n{lines}\n-----END PUBLIC KEY-----\n"):
        assert load("postal", {"secrets": [form]}).verify(request) == 0


def test_postals_old_signature_counts_only_alone() -> None:
    """A server that signs with SHA-1 only is accepted; where the SHA-256 header is there, it alone decides."""
    source, request = signed_source("postal"), signed("postal")
    assert refused(source, with_headers(request, {"x-postal-signature-256": ""}))
    old = {"x-postal-signature": request.header("x-postal-signature")}
    assert source.verify(Request(headers=old, body=request.body, received_at_us=NOW_US)) == 0
    assert refused(source, with_headers(request, {"x-postal-signature-256": "AAAA"}))
    assert refused(source, with_headers(request, {"x-postal-signature-256": old["x-postal-signature"]}))


def test_postals_algorithm_cannot_be_swapped() -> None:
    """A signature by another padding, or put under the other digest's header, does not fit."""
    key = serialization.load_pem_private_key(PEMS[0].encode(), None)
    body = SIGNED["postal"][2]
    pss = key.sign(body, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    for made in (pss, key.sign(body, padding.PKCS1v15(), hashes.SHA1()), b"", b"\0" * 256):
        headers = {"x-postal-signature-256": base64.b64encode(made).decode()}
        assert refused(signed_source("postal"), Request(headers=headers, body=body, received_at_us=NOW_US))


def test_a_postal_key_of_another_kind_stops_the_start() -> None:
    """An elliptic key, or no key at all, is a configuration error that says what is expected."""
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    elliptic = curve.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    for wrong in (elliptic, "nonsense", "", "AAAA"):
        with pytest.raises(ConfigError, match="signing key"):
            load("postal", {"secrets": [wrong]})


def postal(event: str, **payload: object) -> dict:
    message = {"id": 7, "direction": "outgoing", "to": "Bob <bob@example.com>", "tag": None}
    return {"event": event, "timestamp": 1764000000.25, "uuid": "u-1", "payload": {"message": message, **payload}}


@pytest.mark.parametrize(
    ("event", "payload", "kind", "bounce_class"),
    [
        ("MessageSent", {"status": "Sent", "output": "250 ok"}, "delivered", ""),
        ("MessageDelayed", {"status": "SoftFail"}, "deferred", ""),
        ("MessageDeliveryFailed", {"status": "HardFail"}, "bounced", "hard"),
        ("MessageHeld", {"status": "Held"}, "queued", ""),
        ("MessageBounced", {"bounce": {"id": 8, "direction": "incoming"}}, "bounced", "hard"),
        ("MessageLinkClicked", {"url": "https://shop.example/"}, "clicked", ""),
        ("MessageLoaded", {"user_agent": "Mozilla/5.0"}, "opened", ""),
        ("MessageInvented", {}, "unknown", ""),
    ],
)
def test_postals_words(event: str, payload: dict, kind: str, bounce_class: str) -> None:
    """Each of Postal's events becomes its kind; the recipient is without its display name, the time keeps its fraction."""
    (read,) = parse("postal", postal(event, **payload))
    assert (read.kind, read.bounce_class, read.recipient) == (kind, bounce_class, "bob@example.com")
    assert (read.event_id, read.message_id, read.occurred_at_us) == ("u-1", "7", AT_US)


def test_postal_reports_on_received_mail_and_accounts_too() -> None:
    """Events about mail that Postal received, about domains and about limits are left out; a bounce of ours is not."""
    assert parse("postal", postal("MessageSent", message={"id": 1, "direction": "incoming", "to": "x@example.com"})) == []
    assert parse("postal", {"event": "DomainDNSError", "timestamp": 1.5, "payload": {"domain": "example.com"}, "uuid": "u"}) == []
    assert parse("postal", {"event": "SendLimitExceeded", "payload": {"server": {}}, "uuid": "u"}) == []
    bounced = {
        "original_message": {"id": 5, "direction": "outgoing", "to": "ada@example.com"},
        "bounce": {"id": 6, "direction": "incoming"},
    }
    (event,) = parse("postal", {"event": "MessageBounced", "payload": bounced, "uuid": "u"})
    assert (event.message_id, event.recipient) == ("5", "ada@example.com")


def test_postals_one_tag_carries_three_labels() -> None:
    """A tag may list labels; one without a colon is the campaign."""
    message = {"id": 7, "direction": "outgoing", "to": "ada@example.com", "tag": "campaign:spring, variant:B,wave:2"}
    (event,) = parse("postal", postal("MessageSent", message=message))
    assert (event.campaign, event.variant, event.wave) == ("spring", "B", "2")
    (event,) = parse("postal", postal("MessageSent", message=message | {"tag": "welcome-email"}))
    assert (event.campaign, event.tags) == ("welcome-email", ["welcome-email"])


# -- Unisender Go --------------------------------------------------------------------------------------------------------


def unisender_body(key: str, template: str) -> bytes:
    """Return a body with its hash, made here from the description: MD5 of the text with the key in the hash's place."""
    return template.replace("@", hashlib.md5(template.replace("@", key).encode()).hexdigest()).encode()


@pytest.mark.parametrize(
    "template",
    [
        '{"auth":"@","events_by_user":[]}',
        '{"events_by_user": [],  "auth" :\n "@" }',
        '{"events_by_user":[],"note":"\\u041c\\"auth\\":\\"x\\"","auth":"@"}',
        '{"events_by_user":[],"note":"Метаданные","nested":{"auth":"12345678123456781234567812345678"},"auth":"@"}',
    ],
)
def test_unisenders_hash_is_of_the_bytes_as_they_came(template: str) -> None:
    """Spacing, order, escapes and other fields called `auth` do not matter; only the raw bytes do."""
    source = signed_source("unisender_go")
    assert source.verify(request_of(unisender_body(PLAIN[0], template))) == 0
    assert refused(source, request_of(unisender_body("another key", template)))


@pytest.mark.parametrize(
    "body",
    ["", "{}", "[]", "null", '{"auth":null}', '{"auth":17}', '{"auth":["x"]}', '{"auth":""}', '{"auth":":"}', '{"auth":"\\""}', "not json"]
    + ['{"auth":"' + "A" * 32 + '"}', '{"auth":"' + "0" * 32 + '","again":"' + "0" * 32 + '"}', '{"auth":"' + "0" * 33 + '"}', "\u20ac"],
)
def test_unisenders_hash_that_is_none_is_refused(body: str) -> None:
    """No hash, one of another type, one that stands twice: refused."""
    assert refused(signed_source("unisender_go"), request_of(body))


def unisender(status: str, **data: object) -> dict:
    data = {"job_id": "j-1", "email": "ada@example.com", "status": status, "event_time": "2025-11-24 16:00:00", **data}
    return {"events_by_user": [{"user_id": 1, "events": [{"event_name": "transactional_email_status", "event_data": data}]}]}


@pytest.mark.parametrize(
    ("status", "delivery_status", "kind", "bounce_class", "reason"),
    [
        ("sent", "", "sent", "", ""),
        ("delivered", "ok_delivered", "delivered", "", ""),
        ("opened", "ok_read", "opened", "", ""),
        ("clicked", "ok_link_visited", "clicked", "", ""),
        ("unsubscribed", "ok_unsubscribed", "unsubscribed", "", ""),
        ("subscribed", "", "subscribed", "", ""),
        ("spam", "ok_fbl", "complained", "", ""),
        ("soft_bounced", "err_mailbox_full", "deferred", "soft", "bounced"),
        ("soft_bounced", "err_will_retry", "deferred", "soft", ""),
        ("hard_bounced", "err_user_unknown", "bounced", "hard", "bounced"),
        ("hard_bounced", "err_spam_rejected", "bounced", "block", "spam"),
        ("hard_bounced", "err_blacklisted", "bounced", "block", "blocked"),
        ("hard_bounced", "err_new_word", "bounced", "hard", "other"),
        ("hard_bounced", "", "bounced", "hard", "bounced"),
        ("invented", "", "unknown", "", ""),
    ],
)
def test_unisenders_words(status: str, delivery_status: str, kind: str, bounce_class: str, reason: str) -> None:
    """Each status becomes its kind; why it failed stands in the delivery status; a time without a zone is UTC."""
    (event,) = parse("unisender_go", unisender(status, delivery_info={"delivery_status": delivery_status}))
    assert (event.kind, event.bounce_class, event.reason) == (kind, bounce_class, reason)
    assert event.occurred_at_us == 1_764_000_000_000_000 and event.message_id == "j-1" and event.event_id.startswith("h:")


def test_unisenders_events_have_an_id_by_content() -> None:
    """Without an id of the vendor's, the same event twice has one id and another event another."""
    body = unisender("opened")
    other = unisender("opened", email="bob@example.com")
    assert parse("unisender_go", body)[0].event_id == parse("unisender_go", body)[0].event_id != parse("unisender_go", other)[0].event_id


def test_unisenders_metadata() -> None:
    """Metadata carries campaign and variant; an id for each message, where a library added one, replaces the job's."""
    (event,) = parse("unisender_go", unisender("sent", metadata={"campaign": "spring", "variant": "B", "anymail_id": "m-1"}))
    assert (event.campaign, event.variant, event.message_id) == ("spring", "B", "m-1")
    assert event.metadata == {"campaign": "spring", "variant": "B"}
    assert parse("unisender_go", unisender("sent", metadata=[]))[0].metadata == {}


# -- Mailtrap ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "kind", "bounce_class", "reason"),
    [
        ("delivery", "delivered", "", ""),
        ("open", "opened", "", ""),
        ("click", "clicked", "", ""),
        ("bounce", "bounced", "hard", "bounced"),
        ("soft bounce", "deferred", "soft", "other"),
        ("suspension", "deferred", "", "other"),
        ("reject", "rejected", "", "blocked"),
        ("spam", "complained", "", "spam"),
        ("unsubscribe", "unsubscribed", "", "unsubscribed"),
        ("invented", "unknown", "", ""),
    ],
)
def test_mailtraps_words(word: str, kind: str, bounce_class: str, reason: str) -> None:
    """Each event, those with a space in their name included, becomes its kind."""
    item = {"event": word, "timestamp": 1764000000, "email": "ada@example.com", "event_id": "e", "message_id": "m", "response_code": 550}
    (event,) = parse("mailtrap", {"events": [item]})
    assert (event.kind, event.bounce_class, event.reason, event.code) == (kind, bounce_class, reason, "550")


def test_mailtraps_three_forms_say_the_same() -> None:
    """A list in an object, JSON Lines, and lines that end in CR LF with blank ones between give the same events."""
    items = [{"event": "open", "event_id": str(n), "email": "ada@example.com"} for n in range(3)]
    lines = [json.dumps(item) for item in items]
    forms = [json.dumps({"events": items}, indent=2), "\n".join(lines), "\r\n\r\n".join(lines) + "\r\n"]
    assert [[e.event_id for e in parse("mailtrap", form)] for form in forms] == [["0", "1", "2"]] * 3
    assert [e.event_id for e in parse("mailtrap", lines[0])] == ["0"]
    assert parse("mailtrap", "{}") == [] and parse("mailtrap", {"events": []}) == []


def test_a_broken_line_stops_no_other() -> None:
    """Of JSON Lines with one that is cut off, the others are events and that one is kept as it came."""
    source = load("mailtrap", {"unsigned": True})
    read = source.parse(request_of('{"event":"open","event_id":"1"}\n{"event":"op\n{"event":"click","event_id":"2"}'))
    assert [e.event_id for e in read] == ["1", "2"]
    assert [(b.index, b.reason, b.raw) for b in read.bad] == [(1, "malformed", b'"{\\"event\\":\\"op"')]
    with pytest.raises(Malformed):
        source.parse(request_of("not json\nat all"))


def test_mailtraps_labels() -> None:
    """Custom variables come first, then the category; what is not about a message is left out."""
    item = {"event": "open", "category": "news", "custom_variables": {"campaign": "spring", "variant": 2}}
    (event,) = parse("mailtrap", {"events": [item]})
    assert (event.campaign, event.variant, event.tags) == ("spring", "2", ["news"])
    (event,) = parse("mailtrap", {"events": [item | {"custom_variables": None}]})
    assert (event.campaign, event.metadata) == ("news", {})
    assert parse("mailtrap", {"events": [{"event": "activity_log.updated"}, {"event": "inbound.message_received"}]}) == []


# -- Customer.io ---------------------------------------------------------------------------------------------------------


def customerio(metric: str, object_type: str = "email", **data: object) -> dict:
    return {"event_id": "e", "object_type": object_type, "metric": metric, "timestamp": 1764000000, "data": data}


@pytest.mark.parametrize(
    ("object_type", "metric", "kind"),
    [
        ("email", "drafted", "unknown"),
        ("email", "attempted", "deferred"),
        ("email", "sent", "sent"),
        ("email", "delivered", "delivered"),
        ("email", "opened", "opened"),
        ("email", "clicked", "clicked"),
        ("email", "converted", "converted"),
        ("email", "unsubscribed", "unsubscribed"),
        ("email", "bounced", "bounced"),
        ("email", "dropped", "rejected"),
        ("email", "spammed", "complained"),
        ("email", "failed", "failed"),
        ("email", "undeliverable", "rejected"),
        ("customer", "subscribed", "subscribed"),
        ("customer", "unsubscribed", "unsubscribed"),
        ("customer", "cio_subscription_preferences_changed", "unknown"),
        ("push", "opened", "unknown"),
        ("sms", "clicked", "unknown"),
        ("in_app", "sent", "unknown"),
    ],
)
def test_customerios_words(object_type: str, metric: str, kind: str) -> None:
    """Each metric of an email or a person becomes its kind; other channels are no email and stay unknown."""
    (event,) = parse("customerio", customerio(metric, object_type, recipient="+491234", identifiers={"email": "ada@example.com"}))
    assert (event.kind, event.name) == (kind, f"{object_type}.{metric}")
    assert event.recipient == ("+491234" if object_type == "email" else "ada@example.com")


@pytest.mark.parametrize(
    ("metric", "flags", "agent", "said"),
    [
        ("opened", {}, "", ""),
        ("opened", {"proxied": True, "prefetched": False}, "proxied", "vendor flag: proxied"),
        ("opened", {"proxied": True, "prefetched": True}, "machine", "vendor flag: prefetched"),
        ("opened", {"synthetic": True}, "human", "vendor flag: synthetic"),
        ("clicked", {"machine": True}, "machine", "vendor flag: machine"),
        ("clicked", {"machine": False}, "", ""),
        ("delivered", {"machine": True}, "", ""),
    ],
)
def test_customerio_says_who_opened(metric: str, flags: dict, agent: str, said: str) -> None:
    """Prefetched and machine are a machine's, proxied alone a person's behind a proxy, synthetic one who clicked."""
    (event,) = parse("customerio", customerio(metric, **flags))
    assert (event.agent, event.agent_reason) == (agent, said)


def test_customerios_campaigns_stay_apart() -> None:
    """Campaign 5, newsletter 5 and broadcast 5 are three; a variant is the content, or the action of a test."""
    sent = [parse("customerio", customerio("sent", **{key: 5}))[0].campaign for key in ("campaign_id", "newsletter_id", "broadcast_id")]
    assert sent == ["5", "newsletter:5", "broadcast:5"]
    assert parse("customerio", customerio("sent", newsletter_id=5, content_id=9))[0].variant == "9"
    assert parse("customerio", customerio("sent", campaign_id=5, action_id=3, parent_action_id=2))[0].variant == "3"
    assert parse("customerio", customerio("sent", campaign_id=5, action_id=3))[0].variant == ""


def test_customerios_older_form() -> None:
    """Webhooks of the older form name channel and metric in one word."""
    (event,) = parse("customerio", {"event_type": "email_opened", "event_id": "e", "timestamp": 1764000000, "data": {"customer_id": "42"}})
    assert (event.kind, event.user_id) == ("opened", "42")


def test_customerio_is_let_in_however_late() -> None:
    """It repeats for seven days and holds everything back meanwhile, so an old time of signing is no reason to refuse."""
    request = signed("customerio")
    late = Request(headers=request.headers, body=request.body, received_at_us=NOW_US + 7 * 86_400 * 1_000_000)
    assert signed_source("customerio").verify(late) == 0


# -- Iterable ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given_", ["tok", "Bearer tok", "OAuth2 tok"])
def test_iterables_tokens(given_: str) -> None:
    """Iterable sends the token bare, after the word OAuth2, or as a bearer; another token, or none, is refused."""
    source = load("iterable", {"bearer": ["new", "tok"]})
    assert source.verify(request_of("{}", authorization=given_)) == 1
    for wrong in (given_ + "x", given_.replace("tok", ""), "", "Basic tok", f"{given_}, {given_}", "x" * 1_000_000):
        assert refused(source, request_of("{}", authorization=wrong)), wrong[:40]


def iterable(name: str, **data: object) -> dict:
    return {
        "email": "ada@example.com",
        "eventName": name,
        "dataFields": {"messageId": "m", "createdAt": "2025-11-24 16:00:00 +00:00", **data},
    }


@pytest.mark.parametrize(
    ("name", "data", "kind", "bounce_class"),
    [
        ("emailSend", {}, "sent", ""),
        ("emailSendSkip", {"reason": "DuplicateMarketingMessage"}, "rejected", ""),
        ("emailOpen", {}, "opened", ""),
        ("emailClick", {"url": "https://shop.example/"}, "clicked", ""),
        ("emailBounce", {"recipientState": "HardBounce"}, "bounced", "hard"),
        ("emailBounce", {"recipientState": "SoftBounce"}, "bounced", "soft"),
        ("emailComplaint", {}, "complained", ""),
        ("emailSubscribe", {}, "subscribed", ""),
        ("emailUnSubscribe", {}, "unsubscribed", ""),
        ("hostedUnsubscribeClick", {}, "unsubscribed", ""),
        ("pushOpen", {}, "unknown", ""),
        ("smsClick", {}, "unknown", ""),
    ],
)
def test_iterables_words(name: str, data: dict, kind: str, bounce_class: str) -> None:
    """Each email event becomes its kind; the other channels stay unknown."""
    (event,) = parse("iterable", iterable(name, campaignId=1, contentId=2, **data))
    assert (event.kind, event.bounce_class, event.campaign, event.variant) == (kind, bounce_class, "1", "2")
    assert event.occurred_at_us == 1_764_000_000_000_000 and event.event_id.startswith("h:")


@pytest.mark.parametrize(
    ("data", "agent", "said"),
    [
        ({}, "", ""),
        ({"isBot": False, "proxySource": None}, "", ""),
        ({"proxySource": "Gmail"}, "proxied", "vendor flag: proxySource Gmail"),
        ({"proxySource": "Apple"}, "machine", "vendor flag: proxySource Apple"),
        ({"isBot": True, "proxySource": "Gmail"}, "machine", "vendor flag: isBot"),
    ],
)
def test_iterable_says_who_opened(data: dict, agent: str, said: str) -> None:
    """A bot is a machine, a proxy a person behind it, and Apple's fetches every mail."""
    (event,) = parse("iterable", iterable("emailOpen", **data))
    assert (event.agent, event.agent_reason) == (agent, said)


# -- Braze ---------------------------------------------------------------------------------------------------------------


def braze(type_: str, **properties: object) -> dict:
    user = {"user_id": "u-1", "external_user_id": "42"}
    return {
        "event_type": type_,
        "id": "e-1",
        "time": 1764000000,
        "user": user,
        "properties": {"email_address": "ada@example.com", **properties},
    }


@pytest.mark.parametrize(
    ("word", "properties", "kind", "bounce_class"),
    [
        ("Send", {}, "sent", ""),
        ("Delivery", {}, "delivered", ""),
        ("Open", {}, "opened", ""),
        ("Click", {}, "clicked", ""),
        ("Bounce", {"bounce_reason": "550"}, "bounced", "hard"),
        ("Bounce", {"is_drop": True}, "rejected", ""),
        ("SoftBounce", {}, "bounced", "soft"),
        ("MarkAsSpam", {}, "complained", ""),
        ("Unsubscribe", {}, "unsubscribed", ""),
        ("Deferral", {}, "deferred", ""),
        ("Retry", {}, "deferred", ""),
        ("Abort", {"abort_log": "no"}, "rejected", ""),
        ("Invented", {}, "unknown", ""),
    ],
)
def test_brazes_words(word: str, properties: dict, kind: str, bounce_class: str) -> None:
    """Each email event of Currents becomes its kind; new ones, which Braze announces, stay unknown."""
    (event,) = parse("braze", {"events": [braze(f"users.messages.email.{word}", **properties)]})
    assert (event.kind, event.bounce_class, event.event_id, event.user_id) == (kind, bounce_class, "e-1", "42")


@pytest.mark.parametrize(
    ("word", "properties", "agent"),
    [
        ("Open", {"machine_open": "true"}, "machine"),
        ("Open", {"machine_open": None}, ""),
        ("Open", {"machine_open": "false"}, ""),
        ("Click", {"is_suspected_bot_click": True, "suspected_bot_click_reason": ["user_agent"]}, "machine"),
        ("Click", {"is_suspected_bot_click": None, "suspected_bot_click_reason": ["user_agent"]}, ""),
        ("Click", {"machine_open": "true"}, ""),
    ],
)
def test_braze_says_who_opened(word: str, properties: dict, agent: str) -> None:
    """The text "true" is a machine's open; a click is suspected only where Braze's filter is on."""
    (event,) = parse("braze", {"events": [braze(f"users.messages.email.{word}", **properties)]})
    assert event.agent == agent and bool(event.agent_reason) == bool(agent)


def test_brazes_messages_and_subscriptions() -> None:
    """A dispatch to two people is two messages; a canvas stands in for a campaign; the global state of a person counts."""
    one = braze("users.messages.email.Send", dispatch_id="d", canvas_id="c", canvas_variation_id="v")
    two = one | {"user": {"user_id": "u-2"}, "id": "e-2"}
    events = parse("braze", {"events": [one, two]})
    assert [e.message_id for e in events] == ["d:u-1", "d:u-2"] and {(e.campaign, e.variant) for e in events} == {("c", "v")}
    states = [braze("users.behaviors.subscription.GlobalStateChange", subscription_status=s) for s in ("Subscribed", "Unsubscribed", "?")]
    assert [e.kind for e in parse("braze", {"events": states})] == ["subscribed", "unsubscribed", "unknown"]


def test_braze_tests_its_credentials_with_nothing() -> None:
    """A request without events is no error, but its token is checked all the same."""
    source = load("braze", {"bearer": ["0p3n=="]})
    for body in ("", "{}", '{"events":[]}', '{"events":null}'):
        assert source.verify(request_of(body, authorization="Bearer 0p3n==")) == 0
        assert source.parse(request_of(body)) == []
        assert refused(source, request_of(body)) and refused(source, request_of(body, authorization="Bearer x"))


# -- Klaviyo -------------------------------------------------------------------------------------------------------------


def klaviyo(topic: str, **properties: object) -> dict:
    attributes = {"timestamp": 1764000000, "datetime": "2025-11-24T16:00:00.25+00:00", "event_properties": properties}
    profile = {"type": "profile", "id": "p-1", "attributes": {"email": "ada@example.com"}}
    payload = {
        "data": {"attributes": attributes, "relationships": {"profile": {"data": {"id": "p-1"}}}},
        "included": [{"type": "metric"}, profile],
    }
    return {"data": [{"external_id": "e-1", "topic": topic, "payload": payload}], "meta": {}}


@pytest.mark.parametrize(
    ("topic", "kind"),
    [
        ("event:klaviyo.received_email", "delivered"),
        ("event:klaviyo.opened_email", "opened"),
        ("event:klaviyo.clicked_email", "clicked"),
        ("event:klaviyo.bounced_email", "bounced"),
        ("event:klaviyo.dropped_email", "rejected"),
        ("event:klaviyo.marked_email_as_spam", "complained"),
        ("event:klaviyo.subscribed_to_email_marketing", "subscribed"),
        ("event:klaviyo.unsubscribed_from_email_marketing", "unsubscribed"),
        ("event:klaviyo.manually_suppressed_from_email_marketing", "unsubscribed"),
        ("event:klaviyo.manually_unsuppressed_from_email_marketing", "unknown"),
        ("event:klaviyo.received_sms", "unknown"),
        ("event:shopify.opened_email", "unknown"),
    ],
)
def test_klaviyos_words(topic: str, kind: str) -> None:
    """Each topic of an email becomes its kind, with the profile's address; no other's words are taken for Klaviyo's."""
    (event,) = parse("klaviyo", klaviyo(topic, **{"$message": "m", "$variation": "v", "Campaign Name": "Spring"}))
    assert (event.kind, event.event_id, event.recipient, event.occurred_at_us) == (kind, "e-1", "ada@example.com", AT_US)
    assert (event.message_id, event.campaign, event.variant) == ("m:p-1", "m", "v")


def test_klaviyo_says_more_in_properties() -> None:
    """Soft bounces, flows, machine opens, and names as campaign where that is configured."""
    assert parse("klaviyo", klaviyo("event:klaviyo.bounced_email", **{"Bounce Type": "Soft"}))[0].bounce_class == "soft"
    assert parse("klaviyo", klaviyo("event:klaviyo.received_email", **{"$flow": "f", "$message": "m"}))[0].campaign == "f"
    assert parse("klaviyo", klaviyo("event:klaviyo.opened_email", machine_open=True))[0].agent == "machine"
    assert parse("klaviyo", klaviyo("event:klaviyo.opened_email", **{"Apple Privacy Open": False}))[0].agent == ""
    named = parse("klaviyo", klaviyo("event:klaviyo.opened_email", **{"Campaign Name": "Spring"}), {"campaign": ["metadata.Campaign Name"]})
    assert named[0].campaign == "Spring"


def test_nothing_of_a_klaviyo_body_passes_for_its_time() -> None:
    """Body and time are signed without a mark between them, so only a time may stand in the header."""
    request = signed("klaviyo")
    moved = with_headers(request, {"klaviyo-timestamp": "}" + request.header("klaviyo-timestamp")})
    shorter = Request(headers=moved.headers, body=request.body[:-1], received_at_us=NOW_US)
    with pytest.raises(Refused, match="no time"):
        signed_source("klaviyo").verify(shorter)


# -- any JSON ------------------------------------------------------------------------------------------------------------


def generic(body: object, fields: dict, **more: object) -> list[Event]:
    return parse("generic", body, {"fields": {"kind": "type", **fields}, **more})


def test_every_field_of_an_event_can_be_mapped() -> None:
    """Nested names, list positions, several paths, keys with dots and fixed texts reach every field."""
    body = {
        "type": "bounced",
        "when": "2025-11-24T16:00:00.250Z",
        "to": ["", "ada@example.com"],
        "id": 17,
        "user": {"id": "42"},
        "mail.id": "m-1",
        "c": {"name": "spring", "version": "B", "wave": 2},
        "link": "https://shop.example/",
        "ua": "Mozilla/5.0",
        "from_ip": "203.0.113.9",
        "class": "SOFT",
        "smtp": {"code": 452, "text": "mailbox full"},
        "why": "blocked",
        "order": "o-1",
        "sum": "49.99",
        "in": "eur",
        "labels": ["x", "y"],
        "extra": {"a": 1},
        "person": {"plan": "pro"},
    }
    fields = {
        "occurred_at": "when",
        "recipient": ["email", "to.0", "to.1"],
        "event_id": "id",
        "user_id": "user.id",
        "message_id": "mail.id",
        "campaign": "c.name",
        "variant": "c.version",
        "wave": "c.wave",
        "url": "link",
        "user_agent": "ua",
        "ip": "from_ip",
        "bounce_class": "class",
        "code": "smtp.code",
        "detail": "smtp.text",
        "reason": "why",
        "order_id": "order",
        "value": "sum",
        "currency": "in",
        "tags": "labels",
        "metadata": "extra",
        "traits": "person",
        "name": "=their word",
    }
    (event,) = generic(body, fields)
    expected = Event(
        source="shop",
        event_id="17",
        kind="bounced",
        occurred_at_us=AT_US,
        received_at_us=NOW_US,
        recipient="ada@example.com",
        user_id="42",
        message_id="m-1",
        campaign="spring",
        variant="B",
        wave="2",
        url="https://shop.example/",
        user_agent="Mozilla/5.0",
        ip="203.0.113.9",
        bounce_class="soft",
        code="452",
        reason="blocked",
        detail="mailbox full",
        name="their word",
        value_micros=49_990_000,
        currency="EUR",
        order_id="o-1",
        tags=["x", "y"],
        metadata={"a": 1},
        traits={"plan": "pro"},
    )
    assert {f: getattr(event, f) for f in Event.__struct_fields__} == {f: getattr(expected, f) for f in Event.__struct_fields__}


@pytest.mark.parametrize(
    ("word", "kind", "bounce_class", "agent"),
    [
        ("Link_Click", "clicked", "", ""),
        ("hard", "bounced", "hard", ""),
        ("greylisted", "deferred", "soft", ""),
        ("prefetch", "opened", "", "machine"),
        ("opened", "opened", "", ""),
        ("OPENED", "opened", "", ""),
        ("opened:machine", "unknown", "", ""),
        ("never heard of", "unknown", "", ""),
        ("bounced", "bounced", "hard", ""),
    ],
)
def test_the_senders_words_are_translated(word: str, kind: str, bounce_class: str, agent: str) -> None:
    """The table says kind, class and agent; what stands in no table can at most be a kind."""
    kinds = {"link_click": "clicked", "hard": "bounced:hard", "greylisted": "deferred:soft", "prefetch": "opened:machine", "ping": "ignore"}
    (event,) = generic({"type": word}, {}, kinds=kinds)
    assert (event.kind, event.bounce_class, event.agent, event.name) == (kind, bounce_class, agent, word)
    assert generic({"type": "ping"}, {}, kinds=kinds) == []
    assert generic({"type": "ignore"}, {}, kinds=kinds)[0].kind == "unknown"


@pytest.mark.parametrize(
    ("value", "time_format", "expected"),
    [
        (AT, "auto", AT_US),
        (1764000000.25, "auto", AT_US),
        (1764000000250, "auto", AT_US),
        ("1764000000250000", "auto", AT_US),
        (1764000000.25, "s", AT_US),
        ("1764000000250", "ms", AT_US),
        (1764000000250000, "us", AT_US),
        ("24.11.2025 17:00 +0100", "%d.%m.%Y %H:%M %z", AT_US - 250_000),
        ("Mon, 24 Nov 2025 16:00:00", "%a, %d %b %Y %H:%M:%S", AT_US - 250_000),
        ("yesterday", "s", 0),
        ("yesterday", "%d.%m.%Y", 0),
        (None, "ms", 0),
        (-5, "s", 0),
        (10**30, "s", 0),
    ],
)
def test_time_formats(value: object, time_format: str, expected: int) -> None:
    """A time is read as configured, in UTC where it names no zone; what is none is 0 and no error."""
    (event,) = generic({"type": "opened", "at": value}, {"occurred_at": "at"}, time_format=time_format)
    assert event.occurred_at_us == expected


@pytest.mark.parametrize(
    ("unit", "value", "micros"), [("units", 4.99, 4_990_000), ("cents", 499, 4_990_000), ("micros", "4990000", 4_990_000)]
)
def test_money_units(unit: str, value: object, micros: int) -> None:
    """Amounts come in units, cents or millionths."""
    assert generic({"type": "converted", "v": value}, {"value": "v"}, value_unit=unit)[0].value_micros == micros
    assert generic({"type": "converted", "v": "much"}, {"value": "v"}, value_unit=unit)[0].value_micros == 0


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("encoding", ["hex", "base64"])
@pytest.mark.parametrize(("prefix", "message"), [("", "{body}"), ("sha=", "{timestamp}.{body}"), ("v0=", "v0:{timestamp}:{body}!")])
def test_signatures_as_configured(algorithm: str, encoding: str, prefix: str, message: str) -> None:
    """Algorithm, encoding, prefix and signed message are the configured ones: a signature made independently fits, no other does."""
    timed = "{timestamp}" in message
    how = {"header": "X-Sig", "algorithm": algorithm, "encoding": encoding, "prefix": prefix, "message": message}
    source = load(
        "generic", {"secrets": ["k"], "fields": {"kind": "t"}, "signature": how | ({"timestamp_header": "X-Time"} if timed else {})}
    )
    body = b'{"t":"{timestamp}"}'
    whole = message.replace("{timestamp}", str(NOW_S)).encode().replace(b"{body}", body)
    made = hmac.new(b"k", whole, algorithm)
    value = prefix + (made.hexdigest() if encoding == "hex" else base64.b64encode(made.digest()).decode())
    request = request_of(body, x_sig=value, x_time=str(NOW_S))
    assert source.verify(request) == 0 and source.sign(request).header("x-sig") == value
    assert refused(source, with_headers(request, {"x-sig": value[:-1]})) and refused(source, with_headers(request, {"x-sig": "x" + value}))
    for skew, late in ((300, False), (301, True), (-301, True)):
        moved = Request(headers=request.headers, body=body, received_at_us=NOW_US + skew * 1_000_000)
        assert refused(source, moved) == (late and timed)


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"fields": {"kind": "t", "recipent": "to"}}, "$.sources.shop.fields.recipent"),
        ({"fields": {}}, "$.sources.shop.fields.kind"),
        ({}, "fields"),
        ({"fields": {"kind": "t"}, "kinds": {"open": "open"}}, "$.sources.shop.kinds.open"),
        ({"fields": {"kind": "t"}, "kinds": {"open": "opened:hard"}}, "$.sources.shop.kinds.open"),
        ({"fields": {"kind": "t"}, "kinds": {"send": "sent:hard"}}, "$.sources.shop.kinds.send"),
        ({"fields": {"kind": "t"}, "time_format": "seconds"}, "$.sources.shop.time_format"),
        ({"fields": {"kind": "t"}, "value_unit": "pence"}, "value_unit"),
        ({"fields": {"kind": "t"}, "secrets": ["k"]}, "$.sources.shop.secrets"),
        ({"fields": {"kind": "t"}, "signature": {"header": "X"}}, "$.sources.shop.signature"),
        ({"fields": {"kind": "t"}, "secrets": ["k"], "signature": {"header": "X", "algorithm": "md5"}}, "algorithm"),
        ({"fields": {"kind": "t"}, "secrets": ["k"], "signature": {"header": "X", "message": "x"}}, "$.sources.shop.signature.message"),
        (
            {"fields": {"kind": "t"}, "secrets": ["k"], "signature": {"header": "X", "timestamp_header": "T"}},
            "$.sources.shop.signature.message",
        ),
        ({"fields": {"kind": "t"}, "secrets": ["k"], "signature": {"header": ""}}, "$.sources.shop.signature"),
    ],
)
def test_a_wrong_mapping_stops_the_start(wrong: dict, where: str) -> None:
    """Each mistake in a mapping is named with its place."""
    with pytest.raises(ConfigError) as error:
        load("generic", {"unsigned": True, **wrong}, name="shop")
    assert where in error.value.text()


def test_a_near_miss_is_offered() -> None:
    """An unknown field or kind offers the one that was probably meant."""
    with pytest.raises(ConfigError, match="`recipient`"):
        load("generic", {"unsigned": True, "fields": {"kind": "t", "recipent": "to"}})
    with pytest.raises(ConfigError, match="`opened`"):
        load("generic", {"unsigned": True, "fields": {"kind": "t"}, "kinds": {"x": "openned"}})


def test_items_can_stand_anywhere() -> None:
    """The list of events is the body, or at a path, or a single event; where it is missing, the request is malformed."""
    assert len(generic([{"type": "opened"}] * 3, {})) == 3
    assert len(generic({"a": [{"b": [{"type": "opened"}] * 2}]}, {}, items="a.0.b")) == 2
    assert len(generic({"event": {"type": "opened"}}, {}, items="event")) == 1
    for body in ({"other": []}, {"event": "x"}, []):
        with pytest.raises(Malformed):
            generic(body, {}, items="event")


# -- Segment -------------------------------------------------------------------------------------------------------------


def segment(body: dict, call: str = "track", **more: object) -> Event:
    (event,) = parse("segment", body, more, f"https://in.example/v1/{call}")
    return event


def test_segments_write_key_is_user_name_or_in_the_body() -> None:
    """Libraries send the key as user name, beacons in the body; it may be configured with or without its colon."""
    basic = {"authorization": "Basic " + base64.b64encode(b"old-key:").decode()}
    source = load("segment", {"basic_auth": ["key", {"value": "old-key", "until": "2100-01-01T00:00:00Z"}]})
    assert source.verify(request_of("{}", **basic)) == 1
    assert source.verify(request_of({"writeKey": "key", "type": "page"})) == 0
    assert source.verify(request_of({"batch": [], "writeKey": "old-key"})) == 1
    assert source.verify(source.sign(request_of("{}"))) == 0
    wrong = [{}, {"writeKey": "other"}, {"writeKey": ""}, {"writeKey": ["key"]}, {"writeKey": None}, {"batch": [{"writeKey": "key"}]}, []]
    for body in wrong:
        assert refused(source, request_of(body)), body
    assert refused(source, request_of({"writeKey": "key"}, authorization="Basic " + base64.b64encode(b"other:").decode()))
    assert refused(source, request_of("not json")) and refused(source, request_of(b"\xff"))


@pytest.mark.parametrize(
    ("call", "body", "kind", "name"),
    [
        ("track", {"event": "Product Viewed"}, "tracked", "Product Viewed"),
        ("track", {"event": "Order Completed"}, "converted", "Order Completed"),
        ("t", {"event": "order completed"}, "converted", "order completed"),
        ("identify", {}, "identified", "identify"),
        ("page", {"name": "Home"}, "paged", "Home"),
        ("screen", {"name": "Cart"}, "paged", "Cart"),
        ("group", {"groupId": "g"}, "unknown", "group"),
        ("alias", {"previousId": "p"}, "unknown", "alias"),
        ("p", {}, "paged", "page"),
        ("page", {"type": "track", "event": "Purchase"}, "converted", "Purchase"),
        ("track", {}, "unknown", ""),
        ("import", {}, "unknown", ""),
    ],
)
def test_segments_calls(call: str, body: dict, kind: str, name: str) -> None:
    """The type in the body says which call it is, else the URL; groups and aliases are kept but count as nothing."""
    event = segment(body | {"messageId": "m"}, call)
    assert (event.kind, event.name, event.event_id) == (kind, name, "m")


@pytest.mark.parametrize(
    ("properties", "micros"),
    [
        ({"revenue": 10, "total": 12, "value": 3}, 10_000_000),
        ({"total": "12.50", "value": 3}, 12_500_000),
        ({"value": 3}, 3_000_000),
        ({"revenue": None, "total": 12}, 12_000_000),
        ({"revenue": "free"}, 0),
        ({"revenue": True}, 0),
        ({}, 0),
    ],
)
def test_what_a_conversion_is_worth(properties: dict, micros: int) -> None:
    """Revenue comes before total before value, as number or text."""
    event = segment({"event": "Order Completed", "properties": {"currency": "usd", "order_id": 1001, **properties}})
    assert (event.value_micros, event.currency, event.order_id) == (micros, "USD", "1001")


def test_which_events_convert_is_configured() -> None:
    """A configured list replaces the usual one."""
    assert segment({"event": "Signed Up"}, conversions=["signed up"]).kind == "converted"
    assert segment({"event": "Order Completed"}, conversions=["signed up"]).kind == "tracked"


@pytest.mark.parametrize(
    ("body", "recipient"),
    [
        ({"traits": {"email": "a@x.org"}, "userId": "u@x.org"}, "a@x.org"),
        ({"context": {"traits": {"email": "b@x.org"}}, "properties": {"email": "c@x.org"}}, "b@x.org"),
        ({"properties": {"email": "Cyd <c@x.org>"}}, "c@x.org"),
        ({"userId": "U@x.org"}, "U@x.org"),
        ({"traits": {"email": "none"}, "userId": "u@x.org"}, "u@x.org"),
        ({"userId": "42"}, ""),
        ({"traits": [], "context": None, "properties": "x", "userId": 42}, ""),
    ],
)
def test_whom_segment_means(body: dict, recipient: str) -> None:
    """The first usual place that holds an address says who it was."""
    event = segment({"event": "x", **body})
    assert (event.recipient, event.user_id) == (recipient, str(body.get("userId", "")))


def test_a_link_says_campaign_and_variant() -> None:
    """What a link carried as utm parameters is campaign and variant of what is done on the site."""
    campaign = {"name": "spring", "content": "B", "source": "newsletter", "medium": "email"}
    event = segment({"event": "x", "context": {"campaign": campaign}, "properties": {"campaign": "other"}, "anonymousId": "a-1"})
    assert (event.campaign, event.variant) == ("spring", "B")
    assert event.metadata["utm_source"] == "newsletter" and event.metadata["anonymous_id"] == "a-1"
    assert segment({"event": "x", "properties": {"campaign": "other"}}).campaign == "other"


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"timestamp": AT}, AT_US),
        ({"originalTimestamp": AT}, AT_US),
        ({}, 0),
        # An hour behind: it was sent just now, a quarter of an hour after it happened.
        ({"timestamp": "2025-11-24T14:45:01Z", "sentAt": "2025-11-24T15:00:01Z"}, NOW_US - 900_000_000),
        # Years ahead, likewise.
        ({"originalTimestamp": "2031-01-01T00:00:00Z", "sentAt": "2031-01-01T00:15:00Z"}, NOW_US - 900_000_000),
        # Forwarded by Segment: `timestamp` is corrected already.
        ({"timestamp": AT, "originalTimestamp": "2031-01-01T00:00:00Z", "sentAt": "2031-01-01T00:15:00Z"}, AT_US),
        ({"timestamp": AT, "sentAt": "soon"}, AT_US),
        ({"timestamp": "soon", "sentAt": AT}, 0),
    ],
)
def test_a_wrong_clock_is_corrected(times: dict, expected: int) -> None:
    """When it happened is receipt less what passed between happening and sending, both by the sender's clock."""
    assert segment({"event": "x", "messageId": "m", **times}).occurred_at_us == expected


def test_a_call_without_an_id_is_known_by_what_it_says() -> None:
    """The same call sent again later has the same id, though its time of sending and its receipt differ; another one has not."""
    source = load("segment", {"basic_auth": ["key:"]})

    def id_of(at_us: int, **more: object) -> str:
        call = {"type": "track", "event": "x", "timestamp": AT, "userId": "42", **more}
        return source.parse(Request(body=json.dumps(call).encode(), received_at_us=at_us))[0].event_id

    first = id_of(NOW_US, sentAt="2025-11-24T16:00:01Z")
    assert first == id_of(NOW_US + 77_000_000, sentAt="2025-11-24T16:01:18Z")
    assert first != id_of(NOW_US, sentAt="2025-11-24T16:00:01Z", event="y")


def test_a_batch_shares_context_and_time_of_sending() -> None:
    """What stands once for a batch holds for each call, unless the call says otherwise."""
    calls = [
        {"type": "track", "event": "x", "timestamp": "2025-11-24T15:00:00Z"},
        {"type": "page", "context": {"ip": "198.51.100.1"}},
        "junk",
    ]
    body = {"batch": calls, "sentAt": "2025-11-24T15:00:00Z", "context": {"ip": "203.0.113.9", "userAgent": "lib"}}
    read = load("segment", {"unsigned": True}).parse(request_of(body, "https://in.example/v1/batch"))
    assert [(e.kind, e.ip, e.user_agent) for e in read] == [("tracked", "203.0.113.9", "lib"), ("paged", "198.51.100.1", "lib")]
    assert read[0].occurred_at_us == NOW_US and [b.index for b in read.bad] == [2]


# -- ugly input ----------------------------------------------------------------------------------------------------------

ALL = ["resend", "mailersend", "postal", "unisender_go", "mailtrap", "customerio", "iterable", "braze", "klaviyo", "generic", "segment"]
MAPPED = {
    "fields": {"kind": "type", "occurred_at": "at", "recipient": "to", "event_id": "id", "tags": "tags", "metadata": "m", "reason": "why"}
}


def lenient(kind: str) -> Source:
    return load(kind, {"unsigned": True, **(MAPPED if kind == "generic" else {})}, name="shop")


# vendor -> a body that holds one good event, with a time and an address
SHAPES: dict[str, Callable[[object, object], object]] = {
    "resend": lambda at, to: {"type": "email.opened", "created_at": at, "data": {"email_id": "m", "to": [to]}},
    "mailersend": lambda at, to: {
        "type": "activity.opened",
        "data": {"id": "e", "created_at": at, "email": {"recipient": {"email": to}, "message": {"id": "m"}}},
    },
    "postal": lambda at, to: {"event": "MessageLoaded", "timestamp": at, "uuid": "u", "payload": {"message": {"id": 1, "to": to}}},
    "unisender_go": lambda at, to: unisender("opened", event_time=at, email=to),
    "mailtrap": lambda at, to: {"events": [{"event": "open", "timestamp": at, "email": to, "event_id": "e"}]},
    "customerio": lambda at, to: customerio("opened", recipient=to) | {"timestamp": at},
    "iterable": lambda at, to: iterable("emailOpen", createdAt=at) | {"email": to},
    "braze": lambda at, to: {"events": [braze("users.messages.email.Open", email_address=to) | {"time": at}]},
    "klaviyo": lambda at, to: {
        "data": [
            {
                "topic": "event:klaviyo.opened_email",
                "external_id": "e",
                "payload": {"data": {"attributes": {"datetime": at, "event_properties": {"Recipient Email Address": to}}}},
            }
        ]
    },
    "generic": lambda at, to: {"type": "opened", "at": at, "to": to},
    "segment": lambda at, to: {"type": "track", "event": "x", "timestamp": at, "traits": {"email": to}},
}

BODIES = [
    b"",
    b" ",
    b"{",
    b"null",
    b"true",
    b'"x"',
    b"17",
    b"[]",
    b"[[]]",
    b"[null]",
    b"{}",
    b'{"data":null}',
    b'{"events":{}}',
    b'{"events":[null,1,"x",[]]}',
    b'{"data":[null,1,"x",[],{}]}',
    b'{"batch":[null,1,"x",[],{}]}',
    b'{"events_by_user":[null]}',
    b'{"events_by_user":[{"events":"x"}]}',
    b'{"events_by_user":{}}',
    b'{"batch":{}}',
    b'{"payload":[],"event":{}}',
    b'{"type":17,"data":{"to":{"a":1},"tags":7,"headers":7}}',
    b'{"type":"email.sent","data":{"to":[null,17,{"email":"x"}],"tags":{"campaign":{"x":1}}}}',
    b"\xef\xbb\xbf{}",
    '{"a":1}'.encode("utf-16"),
    b'{"type":"\xff"}',
    b'{"type":"\\ud800"}',
    b'{"a":NaN}',
    b'{"a":1e999}',
    b'{"id":18446744073709551616}',
    b'{"id":' + b"9" * 5000 + b"}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"a":1,"a":2}',
    b"a=1&b=2",
    b"<xml/>",
]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:24]))
def test_an_ugly_body_is_never_an_error_of_ours(kind: str, body: bytes) -> None:
    """Whatever the bytes are, they are events, set aside one by one, or malformed as a whole."""
    try:
        read = lenient(kind).parse(request_of(body))
    except MidflightError as error:
        assert error.status == 400
        return
    well_formed(read)
    assert all(bad.reason in ("malformed", "unreadable") and bad.raw for bad in read.bad)


def well_formed(events: list[Event]) -> None:
    """Assert what the stream relies on: closed sets, clean text, times in range."""
    for event in events:
        assert event.kind in KINDS and event.agent in AGENTS and event.bounce_class in BOUNCE_CLASSES and event.reason in REASONS
        assert event.event_id and event.source == "shop" and bool(event.agent) == bool(event.agent_reason)
        assert 0 <= event.occurred_at_us < 2**63 and abs(event.value_micros) < 2**63
        for field in (
            "event_id",
            "recipient",
            "message_id",
            "campaign",
            "variant",
            "wave",
            "url",
            "user_agent",
            "detail",
            "name",
            "user_id",
            "code",
        ):
            value = getattr(event, field)
            assert isinstance(value, str) and len(value) <= 4096 and not any(ord(c) < 32 or ord(c) == 127 for c in value)
        assert all(isinstance(tag, str) for tag in event.tags) and isinstance(event.metadata, dict) and isinstance(event.traits, dict)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=12)
)
junk = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)), max_leaves=6
)


def damaged(value: object, draw: Callable[[st.SearchStrategy], object]) -> object:
    """Return the value with some of its parts replaced by anything."""
    if draw(st.integers(0, 5)) == 0:
        return draw(junk)
    if isinstance(value, dict):
        return {key: damaged(inner, draw) for key, inner in value.items()}
    return [damaged(inner, draw) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", ALL)
@given(data=st.data())
@settings(max_examples=60)
def test_a_damaged_event_is_never_an_error_of_ours(kind: str, data: st.DataObject) -> None:
    """Real shapes with any of their parts exchanged for anything are read, set aside, or malformed."""
    examples = [example["body"] for example in type(lenient(kind)).EXAMPLES if isinstance(example["body"], dict)]
    body = damaged(data.draw(st.sampled_from([*examples, SHAPES[kind](AT, "ada@example.com")])), data.draw)
    try:
        read = lenient(kind).parse(request_of(json.dumps(body)))
    except Malformed:
        return
    well_formed(read)


TIMES = [
    (0, 0),
    (-1, 0),
    (True, 0),
    (None, 0),
    ("", 0),
    ("soon", 0),
    ([], 0),
    ({}, 0),
    ("0000-00-00 00:00:00", 0),
    (2**63, 0),
    (1e300, 0),
    ("2025-02-30T00:00:00Z", 0),
    ("1969-12-31T23:59:59Z", 0),
    ("NaN", 0),
]
GOOD_TIMES = {
    "iso": [
        ("2025-11-24T16:00:00.250Z", AT_US),
        ("2025-11-24T17:00:00.2500000+01:00", AT_US),
        ("2025-11-24 16:00:00.25", AT_US),
        ("2035-11-24T16:00:00Z", 2_079_532_800_000_000),
        ("2025-11-24T18:00:00Z", 1_764_007_200_000_000),
    ],
    "number": [(1764000000.25, AT_US), (1764000000250, AT_US), ("1764000000", 1_764_000_000_000_000), (2079532800, 2_079_532_800_000_000)],
}
TIME_FORMS = {
    "resend": "iso",
    "mailersend": "iso",
    "unisender_go": "iso",
    "klaviyo": "iso",
    "iterable": "both",
    "generic": "both",
    "segment": "both",
    "postal": "number",
    "mailtrap": "number",
    "customerio": "number",
    "braze": "number",
}


@pytest.mark.parametrize("kind", ALL)
def test_a_time_is_right_or_none(kind: str) -> None:
    """Seconds, milliseconds, fractions, offsets, hours ahead and years ahead are read; what is no time is 0, never now."""
    for value, expected in TIMES:
        (event,) = lenient(kind).parse(request_of(SHAPES[kind](value, "ada@example.com")))
        assert event.occurred_at_us == expected, value
    for form in ("iso", "number"):
        for value, expected in GOOD_TIMES[form] if TIME_FORMS[kind] in (form, "both") else ():
            (event,) = lenient(kind).parse(request_of(SHAPES[kind](value, "ada@example.com")))
            assert event.occurred_at_us == expected, value


ADDRESSES = [
    ("ada+news@example.com", "ada+news@example.com"),
    ("Ada@EXAMPLE.com", "ada@example.com"),
    ("ada@bücher.example", "ada@xn--bcher-kva.example"),
    ('"ada lovelace"@example.com', '"ada lovelace"@example.com'),
    ("a" * 400 + "@example.com", ""),
    ("no address", ""),
    ("", ""),
    ("ädä@example.com", "ädä@example.com"),
    ("\u0430da@example.com", "\u0430da@example.com"),
]


@pytest.mark.parametrize("kind", ALL)
def test_an_address_is_one_recipient(kind: str) -> None:
    """Plus-tags, case, IDN, quoted and overlong local parts and look-alikes keep their canonical key through every vendor."""
    for given_, key in ADDRESSES:
        (event,) = lenient(kind).parse(request_of(SHAPES[kind](AT, given_)))
        assert recipient_key(event.recipient) == key, given_


@pytest.mark.parametrize("kind", ["resend", "postal", "generic", "segment"])
def test_a_display_name_is_no_address(kind: str) -> None:
    """The vendors that send `Bob <b@x>` give the address alone, whatever the name holds."""
    for given_ in ("Bob <bob@example.com>", '"Smith, Bob" <bob@example.com>', "<bob@example.com>", "Bób <bob@example.com>"):
        (event,) = lenient(kind).parse(request_of(SHAPES[kind](AT, given_)))
        assert event.recipient == "bob@example.com", given_


@pytest.mark.parametrize("kind", ["unisender_go", "mailtrap", "braze", "klaviyo", "generic", "segment"])
def test_one_bad_event_spoils_no_other(kind: str) -> None:
    """Of a thousand events with a bad one among them, 999 are read in order and that one is set aside."""
    good = SHAPES[kind](AT, "ada@example.com")
    body: object
    if kind == "unisender_go":
        event = good["events_by_user"][0]["events"][0]
        body = {"events_by_user": [{"events": [event] * 500 + [17] + [event] * 499}]}
    elif kind in ("generic", "segment"):
        body = [good] * 500 + [17] + [good] * 499
        body = body if kind == "generic" else {"batch": body}
    else:
        name = "data" if kind == "klaviyo" else "events"
        body = {name: good[name] * 500 + [17] + good[name] * 499}
    read = lenient(kind).parse(request_of(body))
    assert len(read) == 999 and [(bad.index, bad.raw) for bad in read.bad] == [(500, b"17")]
    well_formed(read)


@pytest.mark.parametrize("kind", ALL)
def test_an_event_without_an_id_has_one_by_content(kind: str) -> None:
    """Without an id of the vendor's, a repetition has the same id and another recipient another."""
    one, again, other = (lenient(kind).parse(request_of(strip_ids(SHAPES[kind](AT, to))))[0] for to in ("a@x.org", "a@x.org", "b@x.org"))
    assert one.event_id.startswith("h:") and one.event_id == again.event_id != other.event_id


def strip_ids(value: object) -> object:
    ids = ("id", "event_id", "uuid", "external_id", "messageId")
    if isinstance(value, dict):
        return {key: strip_ids(inner) for key, inner in value.items() if key not in ids}
    return [strip_ids(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", ["iterable", "braze", "segment"])
def test_a_source_that_anybody_could_use_stops_the_start(kind: str) -> None:
    """A vendor that does not sign needs credentials, or a word that the network keeps strangers out."""
    with pytest.raises(ConfigError, match="anybody"):
        load(kind, {})
    assert load(kind, {"unsigned": True}).verify(request_of("{}")) == 0
