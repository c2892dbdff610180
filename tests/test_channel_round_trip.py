"""What a channel sends along comes back through the source of the same vendor, without anything set in either."""

from __future__ import annotations

from urllib.parse import parse_qsl

import msgspec
import pytest

from midflight.act.channels import REGISTRY, Call, Message
from midflight.act.channels._mailbox import ascii_domain, mailbox
from midflight.act.channels.channel import EXAMPLE, Answer, channel_of
from midflight.events import Event
from midflight.sources import load
from midflight.sources.source import Request

NOW_US = 1_764_000_000_000_000
LONG = "spring-" + "x" * 300
MESSAGES = {
    "ordinary": EXAMPLE,
    "beyond ASCII": msgspec.structs.replace(EXAMPLE, campaign="Frühling 2026 – 日本", variant='B "2" & {{c}}', wave="3.1"),
    "no wave": msgspec.structs.replace(EXAMPLE, wave=""),
    "sure to get it": msgspec.structs.replace(EXAMPLE, propensity=1.0),
    "a long campaign": msgspec.structs.replace(EXAMPLE, campaign=LONG),
}
VENDORS = ("mailgun", "postmark", "resend", "ses", "sparkpost")


def call_of(vendor: str, message: Message) -> Call:
    kind = REGISTRY.get(vendor)
    return channel_of(kind, kind.EXAMPLES[0]["settings"], vendor).call([message], NOW_US)


def clicked(vendor: str, call: Call) -> Event:
    """Return the event that the vendor's source reads when somebody clicks in what was sent: the vendor copies, and adds nothing."""
    if vendor == "mailgun":
        variables = {name[2:]: value for name, value in parse_qsl(call.body.decode(), keep_blank_values=True) if name.startswith("v:")}
        said: object = {"event-data": {"event": "clicked", "timestamp": 1764000000.0, "user-variables": variables}}
    elif vendor == "postmark":
        (item,) = msgspec.json.decode(call.body)
        said = {"RecordType": "Click", "Tag": item["Tag"], "Metadata": item["Metadata"]}
    elif vendor == "sparkpost":
        body = msgspec.json.decode(call.body)
        event = {"type": "click", "event_id": "1", "rcpt_meta": body["recipients"][0]["metadata"], "campaign_id": body.get("campaign_id")}
        said = [{"msys": {"track_event": event}}]
    elif vendor == "resend":
        body = msgspec.json.decode(call.body)
        headers = [{"name": name, "value": value} for name, value in body.get("headers", {}).items()]
        data = {"to": body["to"], "tags": {tag["name"]: tag["value"] for tag in body["tags"]}, "headers": headers}
        said = {"type": "email.clicked", "created_at": "2025-11-24T16:00:00.000Z", "data": data}
    else:
        body = msgspec.json.decode(call.body)
        headers = [{"name": h["Name"], "value": h["Value"]} for h in body["Content"]["Simple"].get("Headers", [])]
        mail = {"destination": ["a@example.com"], "headers": headers, "tags": {t["Name"]: [t["Value"]] for t in body["EmailTags"]}}
        said = {"Type": "Notification", "MessageId": "1", "Message": msgspec.json.encode({"eventType": "Click", "mail": mail}).decode()}
    source = load(vendor, {"unsigned": True})
    (event,) = source.parse(Request(body=msgspec.json.encode(said), received_at_us=NOW_US))
    return event


@pytest.mark.parametrize("case", MESSAGES)
@pytest.mark.parametrize("vendor", VENDORS)
def test_campaign_variant_and_wave_come_back(vendor: str, case: str) -> None:
    """The source reads the very campaign, variant, wave, intent and propensity that the channel sent, whatever characters they have."""
    message = MESSAGES[case]
    event = clicked(vendor, call_of(vendor, message))
    assert event.kind == "clicked"
    assert (event.campaign, event.variant, event.wave) == (message.campaign, message.variant, message.wave)
    assert event.metadata["intent"] == message.intent
    assert float(event.metadata["propensity"]) == message.propensity


@pytest.mark.parametrize("vendor", ("resend", "ses"))
def test_what_fits_nowhere_is_left_out_and_the_intent_stays(vendor: str) -> None:
    """A value too long for a tag and for the header is left out; no tag has a character or a length that the vendor would refuse."""
    endless = "ü" * 900
    call = call_of(vendor, msgspec.structs.replace(EXAMPLE, campaign=endless, variant="B 2"))
    event = clicked(vendor, call)
    assert (event.campaign, event.variant, event.wave, event.metadata["intent"]) == ("", "B 2", "3", EXAMPLE.intent)
    body = msgspec.json.decode(call.body)
    tags = [(t["Name"], t["Value"]) for t in body["EmailTags"]] if vendor == "ses" else [(t["name"], t["value"]) for t in body["tags"]]
    for pair in tags:
        assert all(0 < len(text) <= 256 and text.isascii() and text.replace("-", "").replace("_", "").isalnum() for text in pair)


@pytest.mark.parametrize("vendor", ("resend", "ses"))
def test_a_header_of_the_message_cannot_speak_for_the_tags(vendor: str) -> None:
    """A message that brings a header `X-Metadata` of its own does not change what comes back."""
    odd = msgspec.structs.replace(EXAMPLE, headers={"x-metadata": '{"campaign":"another","intent":"another"}'})
    event = clicked(vendor, call_of(vendor, odd))
    assert (event.campaign, event.metadata["intent"]) == (EXAMPLE.campaign, EXAMPLE.intent)


def test_ses_header_values_are_printable_ascii() -> None:
    """A header in another script becomes encoded words, as SES allows nothing else; the names and addresses are ASCII as well."""
    odd = msgspec.structs.replace(
        EXAMPLE, campaign="Frühling", to_name="Zoë", from_name="Ταυ", to="zoë@bücher.example", reply_to="x@bücher.example",
        headers={"X-Note": "Grüße aus 日本"},
    )  # fmt: skip
    body = msgspec.json.decode(call_of("ses", odd).body)
    assert all(h["Value"].isascii() and h["Value"].isprintable() for h in body["Content"]["Simple"]["Headers"])
    assert body["FromEmailAddress"].isascii() and body["ReplyToAddresses"] == ["x@xn--bcher-kva.example"]
    assert body["Destination"]["ToAddresses"][0].endswith("<zoë@xn--bcher-kva.example>")  # SES refuses the local part; that is its to say


def rendered(text: str, data: dict[str, str]) -> str:
    """Render SparkPost's template language as far as these texts need it: expressions are variables, read once."""
    out, rest = "", text
    while "{{" in rest:
        before, _, rest = rest.partition("{{")
        name, closed, rest = rest.partition("}}")
        assert closed, "an expression is not closed"
        out += before + data.get(name.strip(), "")
    return out + rest


BRACES = ("{{ name }}", "{{{raw}}}", "a{b{}}c", "{}{}", "}}{{", "{", "}", "@media x{.a{color:red}}", "{{{{", "}}}}}")


@pytest.mark.parametrize("text", BRACES)
def test_sparkpost_reads_no_template_into_a_message(text: str) -> None:
    """Braces in subject, text, HTML, sender and headers arrive as they are: SparkPost's template language finds only what gives a brace."""
    odd = msgspec.structs.replace(EXAMPLE, subject=text, html=text, text=text, from_name=text, headers={"X-Note": text})
    body = msgspec.json.decode(call_of("sparkpost", odd).body)
    content, data = body["content"], body["substitution_data"]
    for got in (content["subject"], content["html"], content["text"], content["from"]["name"], content["headers"]["X-Note"]):
        assert rendered(got, data) == text


def test_braces_need_that() -> None:
    """Control: sent as it is, such a text would lose what stands between the braces."""
    assert rendered("{{ name }}", {}) == ""


NAMES = {
    ("", "a@b.example"): "a@b.example",
    ("  ", "a@b.example"): "a@b.example",
    ("The Shop", "a@b.example"): "The Shop <a@b.example>",
    ("Shop, Inc.", "a@b.example"): "=?utf-8?q?Shop=2C_Inc=2E?= <a@b.example>",
    ('Zoë "Z" <z>', "a@b.example"): "=?utf-8?b?Wm/DqyAiWiIgPHo+?= <a@b.example>",
    ("A\r\nBcc: x@y.example", "a@b.example"): "=?utf-8?q?A__Bcc=3A_x=40y=2Eexample?= <a@b.example>",
    ("Ü", "ü@bücher.example"): "=?utf-8?b?w5w=?= <ü@xn--bcher-kva.example>",
}


@pytest.mark.parametrize(("name", "address"), NAMES)
def test_a_mailbox_needs_no_quotes(name: str, address: str) -> None:
    """A name is plain words or encoded words, so that nothing in it can end the name or start another header."""
    from email.header import decode_header, make_header

    got = mailbox(name, address)
    assert got == NAMES[name, address] and "\n" not in got and '"' not in got
    shown = str(make_header(decode_header(got.rpartition(" <")[0]))) if " <" in got else ""
    assert shown == name.strip().replace("\r\n", "  ")


@pytest.mark.parametrize("name", ("ü" * 200, "日本語 " * 60 + "x"))
def test_a_long_name_becomes_several_encoded_words(name: str) -> None:
    """No encoded word is longer than RFC 2047 allows, and together they are the name."""
    from email.header import decode_header, make_header

    words = mailbox(name, "a@b.example").rpartition(" <")[0].split(" ")
    assert len(words) > 1 and max(map(len, words)) <= 75
    assert str(make_header(decode_header(" ".join(words)))) == name


@pytest.mark.parametrize("address", ("", "@", "no-at", "a@", "a@" + "ü" * 80 + ".example", "a@ü..example"))
def test_an_address_that_is_none_is_left_to_the_vendor(address: str) -> None:
    """Whatever stands in an address, it is passed on, and no error is raised."""
    assert ascii_domain(address) == address


def test_a_name_in_resends_from_is_neither_quoted_nor_encoded() -> None:
    """Resend's `from` takes letters of any script and no quotes, so punctuation becomes a blank; a name of nothing else is left out."""
    for name, wanted in {
        "Søren & Co., Ltd.": "Søren & Co. Ltd. <news@shop.example>",
        'The "Shop" <x@y>': "The Shop x y <news@shop.example>",
        '"<>"': "news@shop.example",
    }.items():
        body = msgspec.json.decode(call_of("resend", msgspec.structs.replace(EXAMPLE, from_name=name)).body)
        assert body["from"] == wanted


def test_a_call_of_resend_made_again_is_the_same_call() -> None:
    """Resend answers a key it knows with the first id if the body is the same, so the call depends on the message alone."""
    channel = channel_of(REGISTRY.get("resend"), {"api_key": "re_x"}, "resend")
    first, again = channel.call([EXAMPLE], NOW_US), channel.call([EXAMPLE], NOW_US + 60_000_000)
    assert first == again and first.idempotent and first.headers["idempotency-key"] == EXAMPLE.intent


@pytest.mark.parametrize("vendor", [vendor for vendor in VENDORS if vendor != "resend"])
def test_no_other_vendor_has_an_idempotency_key(vendor: str) -> None:
    """A call that could send twice does not claim that it cannot."""
    assert not call_of(vendor, EXAMPLE).idempotent


POSTMARK = {
    "refused": (300, 402, 403, 406, 409, 410, 411),
    "later": (10, 100, 400, 401, 405, 412, 413, 429, 1235),
    "unknown": (500, 599, -1),
}


@pytest.mark.parametrize(("kind", "code"), [(kind, code) for kind, codes in POSTMARK.items() for code in codes])
def test_postmark_codes(kind: str, code: int) -> None:
    """A code of Postmark means the same for one message of a batch and for a whole call; no code of a whole call is a yes."""
    channel = channel_of(REGISTRY.get("postmark"), {"server_token": "x"}, "postmark")
    one = msgspec.json.encode([{"ErrorCode": code, "Message": "m", "MessageID": "1"}])
    whole = msgspec.json.encode({"ErrorCode": code, "Message": "m", "MessageID": "1"})
    assert [outcome.kind for outcome in channel.outcomes([EXAMPLE], Answer(status=200, body=one))] == [kind]
    assert [outcome.kind for outcome in channel.outcomes([EXAMPLE] * 3, Answer(status=422, body=whole))] == [kind] * 3
    accepted = Answer(status=422, body=b'{"ErrorCode":0,"Message":"OK","MessageID":"1"}')
    assert [outcome.kind for outcome in channel.outcomes([EXAMPLE], accepted)] == ["unknown"]


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("status", (401, 403))
def test_a_key_that_is_not_good_loses_no_recipient(vendor: str, status: int) -> None:
    """A wrong or rotated key is nobody's refusal: the messages go later."""
    kind = REGISTRY.get(vendor)
    channel = channel_of(kind, kind.EXAMPLES[0]["settings"], vendor)
    assert {outcome.kind for outcome in channel.outcomes([EXAMPLE], Answer(status=status, body=b"no"))} == {"later"}
