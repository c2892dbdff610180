"""The sandbox's sending side: vendors answer as they do, each misbehaviour is what it says, the inbox holds what was accepted."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from email.message import EmailMessage
from typing import NamedTuple
from urllib.parse import urlencode

import httpx
import msgspec
import pytest
import trustme

from midflight.act.channels import REGISTRY, Answer, Outcome
from midflight.act.channels.channel import EXAMPLE, SECOND, Message, channel_of
from midflight.kit.clock import VirtualClock
from midflight.kit.errors import MidflightError, NotFound
from midflight.sandbox.api_vendors import KEYS, VENDORS, Asked, Letter, Reply, Vendor, json_reply, signing_key
from midflight.sandbox.apis import Apis
from midflight.sandbox.inbox import Accepted, Inbox, header_custom, mail_headers, propensity
from midflight.sandbox.mailbox import Mailbox
from midflight.sandbox.misbehave import ACCEPTS, HTTP, SMTP, TLS_ALERT, Plan
from midflight.sandbox.vendors import VENDORS as PLAYED

NOW_US = 1_764_000_000_000_000
# Long enough for a loaded machine to answer, and what a client that is never answered waits.
patience_s = 20.0
silence_s = 0.3


# -- a client that hides nothing ------------------------------------------------------------------------------------------


class Heard(NamedTuple):
    """What came back: ``end`` is ``kept``, ``closed`` (in order) or ``cut`` (reset), or ``silence`` where nothing came in time."""

    status: int
    headers: dict[str, str]
    body: bytes
    end: str
    pieces: int = 1


def raw_request(path: str, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: api.example", f"content-length: {len(body)}", *(f"{n}: {v}" for n, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def hear(sock: socket.socket, timeout_s: float) -> Heard:
    """Read one answer of HTTP, or what is there in its place."""
    got, end, pieces = b"", "kept", 0
    sock.settimeout(timeout_s)
    while not whole(got):
        try:
            piece = sock.recv(65536)
        except TimeoutError:
            end = "silence"
            break
        except ConnectionError:
            end = "cut"
            break
        if not piece:
            end = "closed"
            break
        got += piece
        pieces += 1
    head, _, body = got.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(first.split(" ")[1]) if first.startswith("HTTP/1.1 ") else 0
    return Heard(status, headers, body if status else got, end, pieces)


def whole(got: bytes) -> bool:
    head, there, body = got.partition(b"\r\n\r\n")
    if not there:
        return False
    length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    return len(body) >= length


def post(apis: Apis, path: str, headers: dict[str, str], body: bytes, timeout_s: float = patience_s) -> Heard:
    with socket.create_connection(("127.0.0.1", apis.port), patience_s) as sock:
        sock.sendall(raw_request(path, headers, body))
        return hear(sock, timeout_s)


# -- what each vendor is sent: written by hand, so that the channels' code is not the judge of itself -----------------------


def custom(message: Message) -> dict[str, str]:
    return message.custom()


def sendgrid(messages: list[Message], key: str = KEYS["sendgrid"]) -> tuple[str, dict, bytes]:
    (m,) = messages
    body = {
        "personalizations": [{"to": [{"email": m.to}], "custom_args": custom(m)}],
        "from": {"email": m.from_address},
        "subject": m.subject,
        "content": [{"type": "text/plain", "value": m.text}, {"type": "text/html", "value": m.html}],
    }
    return "/v3/mail/send", {"authorization": f"Bearer {key}", "content-type": "application/json"}, msgspec.json.encode(body)


def mailgun_fields(messages: list[Message]) -> list[tuple[str, str]]:
    m = messages[0]
    return [
        ("from", m.from_address),
        *(("to", f"Somebody <{one.to}>") for one in messages),
        ("subject", m.subject),
        ("text", "%recipient.text%"),
        *((f"v:{name}", f"%recipient.{name}%") for name in custom(m)),
        ("recipient-variables", msgspec.json.encode({one.to: custom(one) | {"text": one.text} for one in messages}).decode()),
    ]


def mailgun(messages: list[Message], key: str = KEYS["mailgun"]) -> tuple[str, dict, bytes]:
    basic = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"authorization": f"Basic {basic}", "content-type": "application/x-www-form-urlencoded"}
    return "/v3/mail.shop.example/messages", headers, urlencode(mailgun_fields(messages)).encode()


def mailgun_multipart(messages: list[Message], key: str = KEYS["mailgun"]) -> tuple[str, dict, bytes]:
    path, headers, _ = mailgun(messages, key)
    made = httpx.Request("POST", "http://x", files=[(name, (None, value)) for name, value in mailgun_fields(messages)])
    return path, headers | {"content-type": made.headers["content-type"]}, made.read()


def ses(messages: list[Message], key: str = KEYS["ses"], content: dict | None = None, **changes: object) -> tuple[str, dict, bytes]:
    (m,) = messages
    tags = custom(m) | {"propensity": custom(m)["propensity"].replace(".", "_")}
    body = {
        "FromEmailAddress": f"The Shop <{m.from_address}>",
        "Destination": {"ToAddresses": [m.to]},
        "Content": content or {"Simple": {"Subject": {"Data": m.subject}, "Body": {"Text": {"Data": m.text}}}},
        "EmailTags": [{"Name": name, "Value": value} for name, value in tags.items()],
    }
    encoded = msgspec.json.encode(body | changes)
    return "/v2/email/outbound-emails", aws_headers("/v2/email/outbound-emails", encoded, key), encoded


def aws_headers(path: str, body: bytes, key: str) -> dict[str, str]:
    """Sign as the steps of Amazon's documentation say."""
    access_key, secret = key.split(":")
    stamp, day = "20251124T160000Z", "20251124"
    listed = f"host:api.example\nx-amz-date:{stamp}\n"
    canonical = f"POST\n{path}\n\n{listed}\nhost;x-amz-date\n{hashlib.sha256(body).hexdigest()}"
    scope = f"{day}/eu-west-1/ses/aws4_request"
    signing = b"AWS4" + secret.encode()
    for part in scope.split("/"):
        signing = hmac.digest(signing, part.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = hmac.new(signing, text.encode(), "sha256").hexdigest()
    credential = f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders=host;x-amz-date, Signature={signature}"
    return {"x-amz-date": stamp, "authorization": credential, "content-type": "application/json"}


def postmark_message(m: Message) -> dict:
    return {"From": m.from_address, "To": m.to, "Subject": m.subject, "TextBody": m.text, "Metadata": custom(m)}


def postmark(messages: list[Message], key: str = KEYS["postmark"]) -> tuple[str, dict, bytes]:
    (m,) = messages
    return "/email", {"x-postmark-server-token": key, "content-type": "application/json"}, msgspec.json.encode(postmark_message(m))


def postmark_batch(messages: list[Message], key: str = KEYS["postmark"]) -> tuple[str, dict, bytes]:
    return "/email/batch", {"x-postmark-server-token": key}, msgspec.json.encode([postmark_message(m) for m in messages])


def resend_message(m: Message) -> dict:
    tags = custom(m) | {"propensity": custom(m)["propensity"].replace(".", "_")}
    tags = [{"name": name, "value": value} for name, value in tags.items()]
    return {"from": f"The Shop <{m.from_address}>", "to": [m.to], "subject": m.subject, "html": m.html, "tags": tags}


def resend(messages: list[Message], key: str = KEYS["resend"], idempotency_key: str = "") -> tuple[str, dict, bytes]:
    (m,) = messages
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    headers |= {"idempotency-key": idempotency_key} if idempotency_key else {}
    return "/emails", headers, msgspec.json.encode(resend_message(m))


def resend_batch(messages: list[Message], key: str = KEYS["resend"]) -> tuple[str, dict, bytes]:
    return "/emails/batch", {"authorization": f"Bearer {key}"}, msgspec.json.encode([resend_message(m) for m in messages])


ONE = {"sendgrid": sendgrid, "mailgun": mailgun, "ses": ses, "postmark": postmark, "resend": resend}
MANY = {"mailgun": mailgun, "mailgun multipart": mailgun_multipart, "postmark": postmark_batch, "resend": resend_batch}


@pytest.fixture
def inbox() -> Inbox:
    return Inbox(VirtualClock(NOW_US))


@pytest.fixture
def start(inbox: Inbox) -> Iterator[Callable[..., Apis]]:
    """Start servers that the test's end stops."""
    with ExitStack() as stack:
        yield lambda plan=None, **settings: stack.enter_context(Apis(inbox, plan, **settings))


def taken(message: Message, vendor: str, message_id: str) -> Accepted:
    return Accepted(
        message.intent, message.to, message.campaign, message.variant, message.wave, message.propensity, vendor, message_id, NOW_US
    )


# -- the normal path ------------------------------------------------------------------------------------------------------


def id_of(vendor: str, heard: Heard) -> str:
    if vendor == "sendgrid":
        return heard.headers["x-message-id"]
    return msgspec.json.decode(heard.body)[{"mailgun": "id", "ses": "MessageId", "postmark": "MessageID", "resend": "id"}[vendor]]


@pytest.mark.parametrize("vendor", ONE)
def test_a_message_is_accepted_and_answered_as_the_vendor_does(vendor: str, inbox: Inbox, start: Callable[..., Apis]) -> None:
    """One right request gets the vendor's success, and the inbox holds that message with all that was attached to it and that id."""
    heard = post(start(), *ONE[vendor]([EXAMPLE]))
    assert heard.status == (202 if vendor == "sendgrid" else 200) and heard.end == "kept"
    assert inbox.messages() == [taken(EXAMPLE, vendor, id_of(vendor, heard))]
    if vendor == "sendgrid":
        assert heard.body == b""
    if vendor == "mailgun":
        assert msgspec.json.decode(heard.body)["message"] == "Queued. Thank you."
        assert inbox.messages()[0].message_id.endswith("@mail.shop.example>")
    if vendor == "postmark":
        wanted = {"To": EXAMPLE.to, "SubmittedAt": "2025-11-24T16:00:00.0000000Z", "ErrorCode": 0, "Message": "OK"}
        assert msgspec.json.decode(heard.body) == wanted | {"MessageID": inbox.messages()[0].message_id}


@pytest.mark.parametrize("how", MANY)
def test_a_batch_is_accepted_one_by_one(how: str, inbox: Inbox, start: Callable[..., Apis]) -> None:
    """Where a vendor batches, each recipient has the intent that was meant for him, and the id that the answer gives for it."""
    heard = post(start(), *MANY[how]([EXAMPLE, SECOND]))
    assert heard.status == 200
    answer = msgspec.json.decode(heard.body)
    vendor = how.partition(" ")[0]
    ids = {
        "mailgun": lambda: [answer["id"]] * 2,
        "postmark": lambda: [one["MessageID"] for one in answer],
        "resend": lambda: [one["id"] for one in answer["data"]],
    }[vendor]()
    assert inbox.messages() == [taken(EXAMPLE, vendor, ids[0]), taken(SECOND, vendor, ids[1])]


SETTINGS = {
    "sendgrid": {"api_key": KEYS["sendgrid"]},
    "mailgun": {"api_key": KEYS["mailgun"], "domain": "mail.shop.example"},
    "ses": dict(zip(("access_key_id", "secret_access_key"), KEYS["ses"].split(":"), strict=True)) | {"region": "eu-central-1"},
    "postmark": {"server_token": KEYS["postmark"]},
    "resend": {"api_key": KEYS["resend"]},
}
CHANNELS = [name for name in REGISTRY.names() if name in SETTINGS]
ODD = msgspec.structs.replace(EXAMPLE, campaign="Frühling 2026", subject="ü" * 100, to_name='Ada "L", von', intent="in-odd")


def through(name: str, apis: Apis, messages: list[Message]) -> list[Outcome]:
    """Send through a channel and return what it makes of the answer, or of none."""
    channel = channel_of(REGISTRY.get(name), SETTINGS[name] | {"url": apis.url}, name)
    call = channel.call(messages, NOW_US)
    try:
        answer = httpx.request(call.method, call.url, headers=call.headers, content=call.body, timeout=patience_s)
    except httpx.HTTPError:
        return [Outcome(kind="unknown")] * len(messages)
    return channel.outcomes(messages, Answer(status=answer.status_code, headers=dict(answer.headers), body=answer.content))


@pytest.mark.parametrize("name", CHANNELS)
def test_a_channel_and_its_fake_understand_each_other(name: str, inbox: Inbox, start: Callable[..., Apis]) -> None:
    """What the channel writes the fake accepts, and what the fake answers the channel reads: sent, with the same id."""
    apis = start()
    for message in (EXAMPLE, SECOND, ODD):
        (outcome,) = through(name, apis, [message])
        assert outcome.kind == "sent" and inbox.messages()[-1] == taken(message, name, outcome.message_id)


@pytest.mark.parametrize("kind", [kind for kind in HTTP if kind != "accept_and_hang"])
@pytest.mark.parametrize("name", CHANNELS)
def test_no_channel_takes_a_misbehaviour_for_what_it_is_not(name: str, kind: str, inbox: Inbox, start: Callable[..., Apis]) -> None:
    """Whatever the fake does, a channel says `sent` only of what was accepted, and `refused` or `later` only of what was not."""
    (outcome,) = through(name, start(Plan({0: kind}, drip_s=0.001)), [EXAMPLE])
    assert {"sent": len(inbox) == 1, "unknown": True}.get(outcome.kind, len(inbox) == 0), outcome


def test_the_fakes_are_the_vendors_that_are_played() -> None:
    """Every vendor whose webhooks the sandbox sends can be sent through as well."""
    assert {vendor.name for vendor in VENDORS} == set(PLAYED) == set(ONE)


def test_ids_are_unique_over_vendors_and_runs(inbox: Inbox, start: Callable[..., Apis]) -> None:
    """Two servers, of which the second starts later, never give one id twice."""
    for _ in range(2):
        apis = start()
        for write in (*ONE.values(), *ONE.values()):
            post(apis, *write([EXAMPLE]))
        inbox.clock.sleep_s(1)
    ids = [message.message_id for message in inbox.messages()]
    assert len(ids) == len(set(ids)) == 20


def test_one_more_vendor_is_one_small_class(inbox: Inbox) -> None:
    """A vendor of a few lines is served beside nobody else, with credentials, errors and misbehaviours."""

    class Small(Vendor):
        name = "small"
        key = "k"
        paths = ("/send",)

        def take(self, asked: Asked) -> tuple[Reply, list[Letter]]:
            return json_reply(200, {"id": "m1"}), [Letter(asked.body.decode(), {"intent": "i1"}, "m1")]

        def error(self, status: int, said: str = "") -> Reply:
            return json_reply(status, {"error": said})

    with Apis(inbox, Plan({1: "500"}), vendors=(Small,)) as apis:
        asks = [("/send", {"authorization": "Bearer k"}, b"a@b.c")] * 2 + [("/send", {}, b"a@b.c"), ("/email", {}, b"")]
        assert [post(apis, *ask).status for ask in asks] == [200, 500, 401, 404]
    assert [(m.vendor, m.intent, m.recipient) for m in inbox.messages()] == [("small", "i1", "a@b.c")]


# -- what is wrong is refused as the vendor refuses -------------------------------------------------------------------------

WRONG_KEY = {
    "sendgrid": (
        401,
        b'{"errors":[{"message":"The provided authorization grant is invalid, expired, or revoked","field":null,"help":null}]}',
    ),
    "mailgun": (401, b"Forbidden"),
    "ses": (403, b'{"message":"The security token included in the request is invalid."}'),
    "postmark": (401, b'"ErrorCode":10'),
    "resend": (403, b'{"statusCode":403,"message":"API key is invalid","name":"invalid_api_key"}'),
}


@pytest.mark.parametrize("vendor", ONE)
def test_wrong_credentials_are_refused(vendor: str, inbox: Inbox, start: Callable[..., Apis]) -> None:
    """With another key, or none, nothing is accepted, and the error is the vendor's."""
    apis = start()
    heard = post(apis, *ONE[vendor]([EXAMPLE], "another:key"))
    assert heard.status == WRONG_KEY[vendor][0] and WRONG_KEY[vendor][1] in heard.body
    path, headers, body = ONE[vendor]([EXAMPLE])
    bare = {name: value for name, value in headers.items() if name not in ("authorization", "x-postmark-server-token")}
    assert post(apis, path, bare, body).status in (401, 403)
    assert len(inbox) == 0


def test_keys_can_be_set(inbox: Inbox, start: Callable[..., Apis]) -> None:
    """A server may have other credentials; then those of the defaults do not count."""
    apis = start(keys={"sendgrid": "SG.other"})
    assert post(apis, *sendgrid([EXAMPLE])).status == 401 and post(apis, *sendgrid([EXAMPLE], "SG.other")).status == 202


def changed(write: Callable, **changes: object) -> tuple[str, dict, bytes]:
    """Return a vendor's request with fields of its JSON changed, or left out where they are None."""
    path, headers, body = write([EXAMPLE])
    fields = msgspec.json.decode(body) | changes
    body = msgspec.json.encode({name: value for name, value in fields.items() if value is not None})
    return path, aws_headers(path, body, KEYS["ses"]) if write is ses else headers, body


def mailgun_form(**changes: str | None) -> tuple[str, dict, bytes]:
    path, headers, _ = mailgun([EXAMPLE])
    fields = dict(mailgun_fields([EXAMPLE])) | changes
    return path, headers, urlencode({name: value for name, value in fields.items() if value is not None}).encode()


TO_NOBODY = [{"to": [], "custom_args": {}}]
HTML_FIRST = [{"type": "text/html", "value": "x"}, {"type": "text/plain", "value": "x"}]
WRONG = [
    (changed(sendgrid, personalizations=[]), 400, '"field":"personalizations"'),
    (changed(sendgrid, personalizations=TO_NOBODY), 400, '"field":"personalizations.0.to"'),
    (changed(sendgrid, personalizations=[{"to": [{"email": "ada"}]}]), 400, "Does not contain a valid address."),
    (changed(sendgrid, personalizations=[{"to": [{"email": "a@b.c"}, {"email": "A@b.c"}]}]), 400, "should be unique"),
    (changed(sendgrid, personalizations=[{"to": [{"email": "a@b.c"}], "custom_args": {"n": 1}}]), 400, "Bad Request"),
    (changed(sendgrid, personalizations=TO_NOBODY * 1001), 400, "limited to 1000"),
    (changed(sendgrid, **{"from": None}), 400, '"field":"from.email"'),
    (changed(sendgrid, subject=None), 400, '"field":"subject"'),
    (changed(sendgrid, content=None), 400, '"field":"content"'),
    (changed(sendgrid, content=[{"type": "text/plain", "value": ""}]), 400, '"field":"content.0.value"'),
    (changed(sendgrid, content=HTML_FIRST), 400, "text/plain must be first"),
    ((*sendgrid([EXAMPLE])[:2], b'{"personalizations": ['), 400, "Bad Request"),
    (mailgun_form(to=None), 400, "'to' parameter is missing"),
    (mailgun_form(to="nobody"), 400, "'to' parameter is not a valid address. please check documentation"),
    (mailgun_form(**{"from": None}), 400, "'from' parameter is missing"),
    (mailgun_form(text=""), 400, "Need at least one of 'text' or 'html' parameters specified"),
    (mailgun_form(**{"recipient-variables": "{"}), 400, "'recipient-variables' parameter is not a valid JSON"),
    (mailgun_form(to=", ".join(f"a{n}@b.c" for n in range(1001))), 400, "at most 1000"),
    ((*mailgun([EXAMPLE])[:1], mailgun([EXAMPLE])[1] | {"content-type": "application/json"}, b"{}"), 400, "message"),
    (changed(ses, Destination={"ToAddresses": ["nobody"]}), 400, "Invalid email address."),
    (changed(ses, Destination={}), 400, "Missing required header 'To'."),
    (changed(ses, Destination={"ToAddresses": [f"a{n}@b.c" for n in range(51)]}), 400, "Recipient count exceeds 50."),
    (changed(ses, FromEmailAddress=None), 400, "FromEmailAddress"),
    (changed(ses, Content={}), 400, "Content"),
    (changed(ses, Content={"Simple": {"Subject": {"Data": "x"}}}), 400, "Body"),
    (changed(ses, Content={"Raw": {"Data": "?"}}), 400, "base64"),
    (changed(ses, EmailTags=[{"Name": "propensity", "Value": "0.25"}]), 400, "Invalid tag"),
    (changed(postmark, To="nobody"), 422, """"ErrorCode":300,"Message":"Invalid 'To' address: 'nobody'.\""""),
    (changed(postmark, To=None), 422, "Zero recipients specified"),
    (changed(postmark, To=",".join(f"a{n}@b.c" for n in range(51))), 422, "50 recipients"),
    (changed(postmark, From="nobody"), 422, "Invalid 'From' address"),
    (changed(postmark, TextBody=None), 422, "Provide either email TextBody or HtmlBody or both."),
    (changed(postmark, Metadata={"campaign": "c" * 81}), 422, "Invalid metadata content"),
    (changed(postmark, Metadata={"c" * 21: "c"}), 422, "Invalid metadata content"),
    (changed(postmark, Metadata={"n": 1}), 422, "Invalid metadata content"),
    ((*postmark([EXAMPLE])[:2], b"{"), 422, '"ErrorCode":402'),
    ((*postmark([EXAMPLE])[:2], b"[]"), 422, '"ErrorCode":403'),
    (postmark_batch([EXAMPLE] * 501), 422, '"ErrorCode":410'),
    (changed(resend, to=None), 422, '{"statusCode":422,"message":"Missing `to` field.","name":"missing_required_field"}'),
    (changed(resend, to=["nobody"]), 422, "Invalid `to` field."),
    (changed(resend, to=[f"a{n}@b.c" for n in range(51)]), 422, "at most 50"),
    (changed(resend, html=None), 422, "missing_required_field"),
    (changed(resend, tags=[{"name": "propensity", "value": "0.25"}]), 422, "Tags should only contain ASCII letters"),
    ((*resend([EXAMPLE])[:2], b"no"), 422, "validation_error"),
    (resend_batch([EXAMPLE] * 101), 422, "at most 100"),
    (resend([EXAMPLE], idempotency_key="k" * 257), 400, "invalid_idempotency_key"),
]  # fmt: skip


@pytest.mark.parametrize(("ask", "status", "said"), WRONG, ids=[f"{n}{ask[0]}" for n, (ask, *_) in enumerate(WRONG)])
def test_a_wrong_request_is_refused(ask: tuple, status: int, said: str, inbox: Inbox, start: Callable[..., Apis]) -> None:
    """What the vendor would not take is answered with its status and its words, and nothing of it is accepted."""
    heard = post(start(), *ask)
    assert heard.status == status and said in heard.body.decode()
    assert len(inbox) == 0


def test_ses_checks_the_whole_signature(inbox: Inbox, start: Callable[..., Apis]) -> None:
    """A body, a date or a secret other than the signed ones is refused; the derived key is the one of Amazon's own example."""
    apis = start()
    path, headers, body = ses([EXAMPLE])
    asks = [
        (path, headers, body + b" "),
        (path, headers | {"x-amz-date": "20251124T160001Z"}, body),
        (path, headers | {"authorization": headers["authorization"].replace("/eu-west-1/", "/us-east-1/")}, body),
        ses([EXAMPLE], KEYS["ses"].split(":")[0] + ":another"),
    ]
    for ask in asks:
        heard = post(apis, *ask)
        assert heard.status == 403 and heard.headers["x-amzn-errortype"] == "InvalidSignatureException"
    assert len(inbox) == 0 and post(apis, path, headers, body).status == 200
    example = signing_key("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "20150830", "us-east-1", "iam")
    assert example.hex() == "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"


def test_ses_reads_a_raw_message(inbox: Inbox, start: Callable[..., Apis]) -> None:
    """Of a raw message the recipients and what is attached are read from its headers, where the request does not say them."""
    raw = mail(SECOND).as_bytes(policy=EmailMessage().policy.clone(linesep="\r\n"))
    content = {"Raw": {"Data": base64.b64encode(raw).decode()}}
    heard = post(start(), *ses([EXAMPLE], content=content, EmailTags=[], Destination={}))
    assert heard.status == 200
    assert [(m.intent, m.recipient, m.campaign) for m in inbox.messages()] == [(SECOND.intent, SECOND.to, SECOND.campaign)]


def test_a_postmark_batch_is_refused_one_by_one(inbox: Inbox, start: Callable[..., Apis]) -> None:
    """A batch with one wrong message is a 200, accepts the others, and says in that message's place what is wrong."""
    path, headers, body = postmark_batch([EXAMPLE, SECOND])
    items = msgspec.json.decode(body)
    items[0]["To"] = "nobody"
    heard = post(start(), path, headers, msgspec.json.encode(items))
    assert heard.status == 200 and [one["ErrorCode"] for one in msgspec.json.decode(heard.body)] == [300, 0]
    assert [m.intent for m in inbox.messages()] == [SECOND.intent]


def test_resend_honours_the_idempotency_key(inbox: Inbox, start: Callable[..., Apis]) -> None:
    """The same key and body again is the same answer and no second message, whatever became of the first answer; another body is 409."""
    apis = start(Plan({0: "accept_and_500"}))
    first, again, third = (post(apis, *resend([EXAMPLE], idempotency_key="k1")) for _ in range(3))
    assert first.status == 500 and again.status == third.status == 200 and again.body == third.body
    assert [m.message_id for m in inbox.messages()] == [id_of("resend", again)] and inbox.twice() == {}
    other = post(apis, *resend([SECOND], idempotency_key="k1"))
    assert other.status == 409 and msgspec.json.decode(other.body)["name"] == "invalid_idempotent_request"


def test_without_the_key_a_repeat_is_a_second_message(inbox: Inbox, start: Callable[..., Apis]) -> None:
    """Control: the same retry without the key is found as sent twice."""
    apis = start(Plan({0: "accept_and_500"}))
    for _ in range(2):
        post(apis, *resend([EXAMPLE]))
    assert inbox.twice() == {EXAMPLE.intent: 2}


# -- each misbehaviour, seen by a client that hides nothing -----------------------------------------------------------------

SEEN: dict[str, Callable[[Heard], bool]] = {
    "answer": lambda h: (h.status, h.end) == (200, "kept"),
    "202": lambda h: (h.status, h.end) == (202, "kept"),
    "accept_and_cut": lambda h: h.status == 0 and h.body == b"" and h.end in ("cut", "closed"),
    "accept_and_hang": lambda h: h.body == b"" and h.end == "silence",
    "accept_and_500": lambda h: h.status == 500,
    "drip": lambda h: h.status == 200 and h.pieces > 20,
    "bad_json": lambda h: h.status == 200 and not is_json(h.body),
    "400": lambda h: h.status in (400, 422) and is_json(h.body),
    "401": lambda h: h.status in (401, 403),
    "409": lambda h: h.status == 409 and is_json(h.body),
    "429": lambda h: h.status == 429 and "retry-after" not in h.headers,
    "429_retry_after": lambda h: h.status == 429 and h.headers["retry-after"] == "7",
    "500": lambda h: h.status == 500,
    "redirect": lambda h: h.status == 307 and "/elsewhere/" in h.headers["location"],
    "tls_failure": lambda h: h.status == 0 and h.body == TLS_ALERT and h.end == "closed",
    "cut_before_body": lambda h: h.status == 0 and h.body == b"" and h.end in ("cut", "closed"),
    "cut_in_body": lambda h: h.status == 0 and h.body == b"" and h.end in ("cut", "closed"),
}


def is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body)
    except msgspec.DecodeError:
        return False
    return True


def test_every_misbehaviour_is_seen() -> None:
    """No misbehaviour is without a test, and what accepts is told apart from what does not."""
    assert set(SEEN) == set(HTTP) and set(SMTP_SEEN) == set(SMTP)
    assert {*ACCEPTS} <= {*HTTP, *SMTP} and "500" not in ACCEPTS and "accept_and_500" in ACCEPTS


@pytest.mark.parametrize("vendor", ONE)
@pytest.mark.parametrize("kind", HTTP)
def test_a_misbehaviour_is_what_it_says(kind: str, vendor: str, inbox: Inbox, start: Callable[..., Apis]) -> None:
    """The client sees what the name says, the message is accepted or not as the table says, and the next request is served."""
    apis = start(Plan({0: kind}, drip_s=0.001, retry_after_s=7))
    heard = post(apis, *ONE[vendor]([EXAMPLE]), timeout_s=silence_s if kind == "accept_and_hang" else patience_s)
    seen = heard._replace(status=200) if vendor == "sendgrid" and kind in ("answer", "drip") and heard.status == 202 else heard
    assert SEEN[kind](seen), heard
    assert inbox.wait(kind in ACCEPTS, patience_s)
    assert [m.intent for m in inbox.messages()] == [EXAMPLE.intent] * (kind in ACCEPTS)
    assert post(apis, *ONE[vendor]([SECOND])).status in (200, 202)
    assert inbox.messages()[-1].intent == SECOND.intent and apis.plan.happened == (
        {kind: 1, "answer": 1} if kind != "answer" else {"answer": 2}
    )


@pytest.mark.parametrize("kind", ["cut_before_body", "cut_in_body"])
def test_a_cut_comes_before_the_body_is_whole(kind: str, inbox: Inbox, start: Callable[..., Apis]) -> None:
    """The server hangs up although half of the body was never sent; where nothing misbehaves, it waits for the rest."""
    apis = start(Plan({0: kind}))
    raw = raw_request(*sendgrid([EXAMPLE]))
    upto = raw.index(b"\r\n\r\n") + 4 + (0 if kind == "cut_before_body" else (len(raw) - raw.index(b"\r\n\r\n")) * 2 // 3)
    for end in ("cut", "silence"):
        with socket.create_connection(("127.0.0.1", apis.port), patience_s) as sock:
            sock.sendall(raw[:upto])
            heard = hear(sock, silence_s if end == "silence" else patience_s)
            assert heard.end in (end, "closed" if end == "cut" else end)
    assert len(inbox) == 0


def test_who_follows_a_redirect_is_counted(inbox: Inbox, start: Callable[..., Apis]) -> None:
    """A client that goes where the 307 sends it is seen there, with its message in hand, and nothing is accepted."""
    apis = start(Plan({0: "redirect", 1: "redirect"}))
    path, headers, body = sendgrid([EXAMPLE])
    assert httpx.post(apis.url + path, headers=headers, content=body).status_code == 307 and apis.followed == 0
    assert httpx.post(apis.url + path, headers=headers, content=body, follow_redirects=True).status_code == 404
    assert apis.followed == 1 and len(inbox) == 0


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_over_tls_a_handshake_can_fail(authority: trustme.CA, inbox: Inbox, start: Callable[..., Apis]) -> None:
    """Over https all is the same, and the request that is to fail fails in its handshake, before anything of it is sent."""
    apis = start(Plan({1: "tls_failure"}), tls=server_tls(authority))
    path, headers, body = sendgrid([EXAMPLE])

    def send() -> int:
        with httpx.Client(verify=client_tls(authority)) as client:
            return client.post(apis.url + path, headers=headers, content=body).status_code

    assert send() == 202
    with pytest.raises(httpx.ConnectError):
        send()
    assert send() == 202 and len(inbox) == 2 and apis.requests == 2


# -- how it speaks HTTP -----------------------------------------------------------------------------------------------------


def test_a_connection_is_kept_and_answers_in_order(inbox: Inbox, start: Callable[..., Apis]) -> None:
    """Three requests sent at once over one connection are answered one after the other, the wrong one in the middle too."""
    apis = start()
    asks = [sendgrid([EXAMPLE]), changed(sendgrid, subject=None), sendgrid([SECOND])]
    with socket.create_connection(("127.0.0.1", apis.port), patience_s) as sock:
        sock.sendall(b"".join(raw_request(*ask) for ask in asks))
        sock.settimeout(patience_s)
        got = b""
        while got.count(b"HTTP/1.1 ") < 3:
            got += sock.recv(65536)
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"202", b"400", b"202"]
    assert [m.intent for m in inbox.messages()] == [EXAMPLE.intent, SECOND.intent]


def test_a_body_may_come_in_chunks_and_drops(inbox: Inbox, start: Callable[..., Apis]) -> None:
    """A chunked body, and one that comes byte by byte, are read like any other; curl's question before a long one is answered."""
    apis = start()
    path, headers, body = sendgrid([EXAMPLE])
    assert httpx.post(apis.url + path, headers=headers, content=iter([body[:10], body[10:]])).status_code == 202
    with socket.create_connection(("127.0.0.1", apis.port), patience_s) as sock:
        raw = raw_request(path, headers | {"expect": "100-continue"}, body)
        head = raw.index(b"\r\n\r\n") + 4
        sock.sendall(raw[:head])
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        for byte in raw[head:]:
            sock.sendall(bytes([byte]))
        assert hear(sock, patience_s).status == 202
    assert len(inbox) == 2


def test_what_is_no_request_of_a_vendor_is_refused(inbox: Inbox, start: Callable[..., Apis]) -> None:
    """Another path, another method and no HTTP at all get an answer, and count as no request."""
    apis = start(Plan({0: "500"}))
    assert httpx.post(apis.url + "/v3/elsewhere").status_code == 404 and httpx.get(apis.url + "/v3/mail/send").status_code == 404
    with socket.create_connection(("127.0.0.1", apis.port), patience_s) as sock:
        sock.sendall(b"EHLO me\r\n\r\n")
        assert hear(sock, patience_s).status == 400
    assert apis.requests == 0 and apis.plan.happened.total() == 0


def test_stopping_ends_all(inbox: Inbox) -> None:
    """A server that hangs, drips and waits for the rest of a body stops at once, and its port is free again."""
    before = threading.active_count()
    with Apis(inbox, Plan({0: "accept_and_hang", 1: "drip"}, drip_s=5)) as apis:
        socks = [socket.create_connection(("127.0.0.1", apis.port), patience_s) for _ in range(3)]
        raw = raw_request(*postmark([EXAMPLE]))
        for sock, sent in zip(socks, (raw, raw, raw[:-1]), strict=True):
            sock.sendall(sent)
        assert inbox.wait(2, patience_s)
        port = apis.port
    assert threading.active_count() == before
    for sock in socks:
        sock.close()
    with Apis(inbox, port=port) as again:
        assert again.port == port


# -- the plan ---------------------------------------------------------------------------------------------------------------


def test_a_plan_is_repeatable() -> None:
    """The same seed meets the same requests with the same, about as often as the chances say, and the script goes first."""

    def met(seed: int) -> list[str]:
        plan = Plan({5: "409"}, {"500": 0.2, "drip": 0.1}, seed=seed)
        return [plan.next() for _ in range(3000)]

    assert met(1) == met(1) and met(1) != met(2) and met(1)[5] == "409"
    assert 500 < met(1).count("500") < 700 and 220 < met(1).count("drip") < 380 and 1900 < met(1).count("answer") < 2300


def test_a_look_ahead_does_not_move_the_plan() -> None:
    """Asking whether the next one is to fail early counts only where it is."""
    plan = Plan({1: "tls_failure"})
    assert [plan.next_if("tls_failure"), plan.next(), plan.next_if("tls_failure"), plan.next()] == [False, "answer", True, "answer"]
    assert plan.happened == {"answer": 2, "tls_failure": 1}


def test_a_plan_that_cannot_be_is_refused(inbox: Inbox) -> None:
    """An unknown misbehaviour names the nearest one, one of the other protocol too, and chances add up to one at most."""
    with pytest.raises(NotFound, match="Did you mean `drip`"):
        Apis(inbox, Plan({0: "dripp"}))
    with pytest.raises(NotFound):
        Apis(inbox, Plan(chances={"mail_4xx": 0.1}))
    with pytest.raises(NotFound):
        Mailbox(inbox, Plan(chances={"bad_json": 0.1}))
    with pytest.raises(MidflightError, match="at most 1"):
        Plan(chances={"500": 0.7, "drip": 0.4})


# -- what the inbox says ----------------------------------------------------------------------------------------------------


def numbered(number: int) -> Message:
    return msgspec.structs.replace(EXAMPLE, intent=f"in-{number:04}", to=f"person.{number}@example.com")


BAD_DAY = {name: 0.05 for name in HTTP if name not in ("answer", "accept_and_hang", "tls_failure")}


def send_all(apis: Apis, count: int, retry: Callable[[Heard], bool], threads: int = 4) -> dict[str, str]:
    """Send numbered messages from several threads, again where ``retry`` says so, and return by intent what the client believes."""
    believed: dict[str, str] = {}

    def work(first: int) -> None:
        for number in range(first, count, threads):
            message = numbered(number)
            for _ in range(20):
                heard = post(apis, *sendgrid([message]))
                if not retry(heard):
                    break
            believed[message.intent] = "sent" if heard.status == 202 else "not sent" if 300 <= heard.status < 500 else "unknown"

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return believed


@pytest.mark.parametrize("seed", [1, 2])
def test_the_inbox_holds_exactly_what_was_accepted(seed: int, inbox: Inbox, start: Callable[..., Apis]) -> None:
    """On a bad day, from several threads: as many messages as requests that met what accepts, and no believed answer is a lie."""
    apis = start(Plan(chances=BAD_DAY, seed=seed, drip_s=0.001))
    believed = send_all(apis, 300, lambda heard: False)
    happened = apis.plan.happened
    assert happened.total() == 300 == len(believed) and set(happened) == {*BAD_DAY, "answer"}
    assert len(inbox) == sum(times for kind, times in happened.items() if kind in ACCEPTS)
    got = inbox.counts()
    assert inbox.twice() == {} and inbox.uncalled(believed) == set()
    assert inbox.lost(intent for intent, said in believed.items() if said == "sent") == set()
    assert not [intent for intent, said in believed.items() if said == "not sent" and got[intent]]
    assert {got[intent] for intent, said in believed.items() if said == "unknown"} == {0, 1}


def test_twice_catches_a_client_that_repeats_what_it_does_not_know(inbox: Inbox, start: Callable[..., Apis]) -> None:
    """Control: a client that sends again after every answer but 202 has sent some twice, and lost none."""
    apis = start(Plan(chances=BAD_DAY, seed=3, drip_s=0.001))
    believed = send_all(apis, 200, lambda heard: heard.status != 202)
    assert len(inbox.twice()) > 10 and inbox.lost(believed) == set()
    assert all(count > 1 for count in inbox.twice().values())


def test_lost_catches_a_client_that_gives_up(inbox: Inbox, start: Callable[..., Apis]) -> None:
    """Control: a client that never sends again has lost some, also of those it was told to try later, and has none twice."""
    apis = start(Plan(chances=BAD_DAY, seed=3, drip_s=0.001))
    believed = send_all(apis, 200, lambda heard: False)
    assert len(inbox.lost(believed)) > 20 and inbox.twice() == {}


def test_a_clean_day_has_nothing_to_complain_about(inbox: Inbox, start: Callable[..., Apis]) -> None:
    """Where nothing misbehaves, nothing is lost and nothing comes twice."""
    believed = send_all(start(), 100, lambda heard: False)
    assert inbox.twice() == {} and inbox.lost(believed) == set() and inbox.uncalled(believed) == set() and len(inbox) == 100
    assert inbox.lost([*believed, "in-never"]) == {"in-never"} and inbox.uncalled([]) == set(believed)


def test_waiting_for_messages(inbox: Inbox) -> None:
    """Who waits wakes up when enough are there, and is told where the time is up before."""
    assert not inbox.wait(1, 0.01)
    threading.Timer(0.05, inbox.put, ([taken(EXAMPLE, "smtp", "m1")],)).start()
    assert inbox.wait(1, patience_s) and inbox.messages(1) == []


def test_a_propensity_is_read_as_it_travelled() -> None:
    """With a dot, with what stands for it in tags, in exponents; and 0 for what is none."""
    assert [propensity(v) for v in ("0.25", "0_25", "0-25", "1", "1e-05", 0.5, "", None, "x")] == [0.25, 0.25, 0.25, 1, 1e-05, 0.5, 0, 0, 0]


# -- SMTP -------------------------------------------------------------------------------------------------------------------


def mail(m: Message, **headers: str) -> EmailMessage:
    """Return a message as the SMTP channel attaches what has to come back."""
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = m.from_address, m.to, m.subject
    attached = {"Intent": m.intent, "Campaign": m.campaign, "Variant": m.variant, "Wave": m.wave}
    for name, value in ({f"X-Midflight-{name}": value for name, value in attached.items()} | headers).items():
        made[name] = value
    made.set_content(m.text)
    return made


def smtp_taken(m: Message, message_id: str) -> Accepted:
    return Accepted(m.intent, m.to, m.campaign, m.variant, m.wave, 0.0, "smtp", message_id, NOW_US)


@pytest.fixture
def listen(inbox: Inbox) -> Iterator[Callable[..., Mailbox]]:
    with ExitStack() as stack:
        yield lambda plan=None, **settings: stack.enter_context(Mailbox(inbox, plan, **settings))


def test_a_mail_is_accepted(inbox: Inbox, listen: Callable[..., Mailbox]) -> None:
    """A usual client delivers; the inbox holds what the headers say, also behind encoded words, under the message's own id."""
    with smtplib.SMTP("127.0.0.1", listen().port, timeout=patience_s) as client:
        client.send_message(mail(EXAMPLE, **{"Message-ID": "<m1@shop.example>"}))
        client.send_message(
            mail(msgspec.structs.replace(SECOND, campaign="Frühling, mit einem sehr langen Namen " * 3), **{"Message-ID": "<m2@x>"})
        )
        assert {"pipelining", "8bitmime", "smtputf8", "size"} <= set(client.esmtp_features) and "starttls" not in client.esmtp_features
    first, second = inbox.messages()
    assert first == smtp_taken(EXAMPLE, "<m1@shop.example>")
    assert second.campaign.split() == ("Frühling, mit einem sehr langen Namen " * 3).split() and second.intent == SECOND.intent


class Line:
    """A client of SMTP that sends what it is told and reads one answer at a time."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), patience_s)
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_error: object) -> None:
        self.file.close()
        self.sock.close()

    def say(self, raw: bytes, answers: int = 1) -> list[int]:
        self.sock.sendall(raw)
        return [self.answer() for _ in range(answers)]

    def answer(self) -> int:
        """Return the code of the next answer; 0 where the connection ended."""
        try:
            while (line := self.file.readline())[3:4] == b"-":
                pass
        except ConnectionError:
            return 0
        return int(line[:3]) if line[:3].isdigit() else 0


ENVELOPE = b"MAIL FROM:<news@shop.example> BODY=8BITMIME SIZE=100\r\nRCPT TO:<ada@example.com>\r\nDATA\r\n"
MAIL = b"X-Midflight-Intent: %s\r\nX-Midflight-Wave:\r\n 3\r\nSubject: x\r\n\r\nhello\r\n..\r\n.hidden\r\n\r\n.\r\n"


def test_commands_may_come_all_at_once(inbox: Inbox, listen: Callable[..., Mailbox]) -> None:
    """A whole group in one packet, the next group behind the dot, is answered line by line (RFC 2920)."""
    with Line(listen().port) as line:
        assert line.answer() == 220
        assert line.say(b"EHLO me\r\n" + ENVELOPE, 4) == [250, 250, 250, 354]
        assert line.say(MAIL % b"one" + ENVELOPE, 4) == [250, 250, 250, 354]
        assert line.say(MAIL % b"two" + b"NOOP\r\nQUIT\r\n", 3) == [250, 250, 221] and line.answer() == 0
    assert [(m.intent, m.wave, m.recipient) for m in inbox.messages()] == [("one", "3", "ada@example.com"), ("two", "3", "ada@example.com")]


def test_a_mail_may_come_byte_by_byte(inbox: Inbox, listen: Callable[..., Mailbox]) -> None:
    """Wherever the packets end, also in the middle of the dot's line, the message is one and whole."""
    with Line(listen().port) as line:
        line.say(b"EHLO me\r\n", 2)
        line.say(ENVELOPE, 3)
        for byte in MAIL % b"one":
            line.sock.sendall(bytes([byte]))
        assert line.answer() == 250
        line.say(ENVELOPE, 3)
        assert line.say(b".\r\n") == [250], "an empty message is a message"
    assert [m.intent for m in inbox.messages()] == ["one", ""]


@pytest.mark.parametrize(
    ("said", "codes"),
    [
        (b"MAIL FROM:<a@b.c>\r\n", [503]),
        (b"EHLO me\r\nRCPT TO:<a@b.c>\r\nDATA\r\n", [250, 503, 503]),
        (b"EHLO me\r\nMAIL FROM:<a@b.c> SIZE=99999999\r\n", [250, 552]),
        (b"EHLO me\r\nMAIL FROM:<a@b.c> FOO=1\r\n", [250, 555]),
        (b"EHLO me\r\nMAIL FROM:a@b.c\r\nMAIL TO:<a@b.c>\r\n", [250, 501, 501]),
        (b"EHLO me\r\nMAIL FROM:<>\r\nRCPT TO:<>\r\nRCPT TO:<a@b.c>\r\n", [250, 250, 501, 250]),
        (b"EHLO me\r\nMAIL FROM:<>\r\nMAIL FROM:<>\r\nRSET\r\nMAIL FROM:<>\r\n", [250, 250, 503, 250, 250]),
        (b"EHLO me\r\nMAIL FROM:<a@b.c>\r\nDATA\r\n", [250, 250, 554]),
        (b"HELO me\r\nVRFY ada\r\nSTARTTLS\r\nAUTH PLAIN eA==\r\n", [250, 500, 502, 504]),
        (b"x" * 5000, [500, 0]),
    ],
)  # fmt: skip
def test_what_is_out_of_order_is_refused(said: bytes, codes: list[int], inbox: Inbox, listen: Callable[..., Mailbox]) -> None:
    """Commands in the wrong order, of the wrong form or unknown get the code that RFC 5321 has for them."""
    with Line(listen().port) as line:
        assert line.answer() == 220 and line.say(said, len(codes)) == codes
    assert len(inbox) == 0


def test_addresses_may_be_utf8(inbox: Inbox, listen: Callable[..., Mailbox]) -> None:
    """With SMTPUTF8 an address outside of ASCII arrives as it is, in the envelope and in the headers."""
    with Line(listen().port) as line:
        line.say(b"EHLO me\r\n", 2)
        line.say("MAIL FROM:<a@b.c> SMTPUTF8\r\nRCPT TO:<jürgen@grüße.example>\r\nDATA\r\n".encode(), 3)
        assert line.say("X-Midflight-Campaign: Frühling\r\n\r\nx\r\n.\r\n".encode()) == [250]
    assert [(m.recipient, m.campaign) for m in inbox.messages()] == [("jürgen@grüße.example", "Frühling")]


def test_several_recipients_are_several_messages(inbox: Inbox, listen: Callable[..., Mailbox]) -> None:
    """Each accepted recipient of a transaction is in the inbox; a message without an id has the one of the answer."""
    with Line(listen(vendor="relay").port) as line:
        line.say(b"EHLO me\r\n", 2)
        line.say(b"MAIL FROM:<a@b.c>\r\nRCPT TO:<one@b.c>\r\nRCPT TO:<two@b.c>\r\nDATA\r\n", 4)
        line.sock.sendall(b"x: y\r\n\r\n.\r\n")
        said = line.file.readline().decode()
    assert [(m.recipient, m.vendor) for m in inbox.messages()] == [("one@b.c", "relay"), ("two@b.c", "relay")]
    assert {m.message_id for m in inbox.messages()} == {said.split()[-1]}


SMTP_SEEN = {
    "answer": [250, 250, 354, 250],
    "greet_4xx": [],
    "mail_4xx": [451, 503, 503],
    "mail_5xx": [550, 503, 503],
    "rcpt_4xx": [250, 450, 554],
    "rcpt_5xx": [250, 550, 554],
    "data_4xx": [250, 250, 451],
    "data_5xx": [250, 250, 554],
    "dot_4xx": [250, 250, 354, 451],
    "dot_5xx": [250, 250, 354, 554],
    "accept_and_4xx": [250, 250, 354, 451],
    "cut_before_dot": [250, 250, 354, 0],
    "cut_after_dot": [250, 250, 354, 0],
    "accept_and_cut": [250, 250, 354, 0],
    "accept_and_hang": [250, 250, 354, -1],
    "drip": [250, 250, 354, 250],
    "garble": [250, 250, 354, 0],
    "tls_failure": [0],
}


def transact(port: int, intent: bytes, timeout_s: float = patience_s) -> list[int]:
    """Send one mail in a group and return all codes that come, -1 where nothing comes any more."""
    with Line(port) as line:
        if line.answer() != 220:
            return []
        line.say(b"EHLO me\r\n")
        codes = line.say(ENVELOPE, 1)
        while len(codes) < 3 and codes[-1]:
            codes.append(line.answer())
        if codes[-1] == 354:
            line.sock.settimeout(timeout_s)
            try:
                codes += line.say(MAIL % intent)
            except TimeoutError:
                codes.append(-1)
        return codes


@pytest.mark.parametrize("kind", SMTP)
def test_a_misbehaviour_over_smtp_is_what_it_says(kind: str, inbox: Inbox, listen: Callable[..., Mailbox]) -> None:
    """The codes are those of the name, the mail is accepted or not as the table says, and the next connection is served."""
    box = listen(Plan({0: kind}, drip_s=0.001))
    assert transact(box.port, b"one", silence_s if kind == "accept_and_hang" else patience_s) == SMTP_SEEN[kind]
    assert inbox.wait(kind in ACCEPTS, patience_s)
    assert [m.intent for m in inbox.messages()] == ["one"] * (kind in ACCEPTS)
    assert transact(box.port, b"two") == SMTP_SEEN["answer"] and inbox.messages()[-1].intent == "two"


def test_a_cut_before_the_dot_does_not_wait_for_it(inbox: Inbox, listen: Callable[..., Mailbox]) -> None:
    """The server hangs up in the middle of a message whose end was never sent; elsewhere it waits for the end."""
    box = listen(Plan({0: "cut_before_dot"}))
    for ends in (0, -1):
        with Line(box.port) as line:
            line.say(b"EHLO me\r\n", 2)
            line.say(ENVELOPE, 3)
            line.sock.settimeout(patience_s if ends == 0 else silence_s)
            try:
                assert line.say(b"Subject: x\r\n") == [0] and ends == 0
            except TimeoutError:
                assert ends == -1
    assert len(inbox) == 0


def test_several_connections_at_once_lose_nothing(inbox: Inbox, listen: Callable[..., Mailbox]) -> None:
    """From four connections at a time on a bad day, exactly the mails are accepted whose transactions met what accepts."""
    chances = {name: 0.05 for name in SMTP if name not in ("answer", "accept_and_hang", "tls_failure")}
    box = listen(Plan(chances=chances, seed=5, drip_s=0.001))
    codes: dict[str, list[int]] = {}

    def work(first: int) -> None:
        for number in range(first, 200, 4):
            codes[f"in-{number}"] = transact(box.port, f"in-{number}".encode())

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(inbox) == sum(times for kind, times in box.plan.happened.items() if kind in ACCEPTS) and inbox.twice() == {}
    assert inbox.lost(intent for intent, seen in codes.items() if seen[3:] == [250]) == set()
    refused = {intent for intent, seen in codes.items() if len(seen) < 4 or seen[3] == 554}
    assert refused and not refused & inbox.counts().keys()


def test_a_login_is_asked_for_where_there_is_one(inbox: Inbox, listen: Callable[..., Mailbox]) -> None:
    """Without it, or with another password, nothing is taken; both ways of logging in work."""
    box = listen(login="user:secret")
    for how, password in (("PLAIN", "secret"), ("LOGIN", "secret"), ("PLAIN", "wrong"), ("LOGIN", "wrong"), ("", "")):
        with smtplib.SMTP("127.0.0.1", box.port, timeout=patience_s) as client:
            client.ehlo()
            client.user, client.password = "user", password
            if how:
                known = client.auth_plain if how == "PLAIN" else client.auth_login
                if password == "wrong":
                    with pytest.raises(smtplib.SMTPAuthenticationError):
                        client.auth(how, known)
                else:
                    client.auth(how, known)
            if password == "secret":
                client.send_message(mail(EXAMPLE))
            else:
                with pytest.raises(smtplib.SMTPSenderRefused):
                    client.send_message(mail(EXAMPLE))
    assert len(inbox) == 2


@pytest.mark.parametrize("first", [False, True], ids=["STARTTLS", "TLS first"])
def test_mail_over_tls(first: bool, authority: trustme.CA, inbox: Inbox, listen: Callable[..., Mailbox]) -> None:
    """After STARTTLS, or from the first byte, mail is taken, and the handshake that is to fail fails."""
    box = listen(Plan({1: "tls_failure"}), tls=server_tls(authority), handshake_first=first)

    def send() -> None:
        context = client_tls(authority)
        if first:
            client = smtplib.SMTP_SSL("127.0.0.1", box.port, timeout=patience_s, context=context)
        else:
            client = smtplib.SMTP("127.0.0.1", box.port, timeout=patience_s)
        with client:
            if not first:
                client.starttls(context=context)
            client.send_message(mail(EXAMPLE))

    send()
    with pytest.raises((OSError, smtplib.SMTPServerDisconnected)):
        send()
    send()
    assert len(inbox) == 2 and box.plan.happened == {"answer": 2, "tls_failure": 1}


def test_nothing_from_before_the_handshake_counts_after_it(authority: trustme.CA, inbox: Inbox, listen: Callable[..., Mailbox]) -> None:
    """Commands that were put behind STARTTLS in plain text are forgotten."""
    box = listen(tls=server_tls(authority))
    with Line(box.port) as line:
        assert line.say(b"EHLO me\r\n", 2) == [220, 250]
        line.sock.sendall(b"STARTTLS\r\nEHLO me\r\nMAIL FROM:<evil@b.c>\r\nRCPT TO:<ada@example.com>\r\n")
        assert line.sock.recv(1000) == b"220 2.0.0 Ready to start TLS\r\n"
        with client_tls(authority).wrap_socket(line.sock, server_hostname="127.0.0.1") as secured:
            secured.sendall(b"RCPT TO:<ada@example.com>\r\n")
            assert secured.recv(100).startswith(b"503")
            line.sock = secured


def test_headers_are_read_as_they_are_folded() -> None:
    """Folded lines are one, names are of any case, a message without a body has headers too, and `X-Metadata` is JSON."""
    raw = b'X-MIDFLIGHT-Intent: one\r\nx-metadata: {"campaign":\r\n\t"spring",\r\n "intent": "other"}\r\nno colon\r\n\r\n'
    raw += b"X-Midflight-Wave: body"
    assert header_custom(mail_headers(raw)) == {"campaign": "spring", "intent": "one"}
    assert mail_headers(b"A: b") == {"a": "b"} and header_custom({"x-metadata": "{"}) == {} and mail_headers(b"") == {}
