"""Every way out keeps the folder's promises: its examples hold, its answers are read without trust, its settings and fields are strict."""

from __future__ import annotations

import base64
import hashlib
import hmac

import msgspec
import pytest
from shown import NOW_US, UGLY, answer, examples, holds_answers, holds_call

from midflight.act.guarded import Guard
from midflight.act.ways import REGISTRY, LocalWay, Way, check_urls, way_of
from midflight.act.ways._audience import email_hash, phone_hash
from midflight.act.ways._then import texts_of
from midflight.act.ways.offer_code import alarms
from midflight.act.ways.sms_twilio import phone, status_is_signed, status_outcome
from midflight.act.ways.way import OUTCOMES, Action, Answer, fields_of
from midflight.act.ways.web_push import base64url, decoded64, decrypted, encrypted, point, private_key_of
from midflight.act.ways.webhook import example_secret, key_of, signed
from midflight.kit.errors import ConfigError, MidflightError

CALLING = [(name, n) for name, n in examples(REGISTRY) if not issubclass(REGISTRY.get(name), LocalWay)]


def example(name: str, number: int) -> tuple[Way, dict]:
    found = REGISTRY.get(name).EXAMPLES[number]
    way = way_of(REGISTRY.get(name), found["settings"], name)
    if way.token:
        way.token.granted(Answer(status=200, body=b'{"access_token": "t-1"}'), NOW_US)
    return way, found


@pytest.mark.parametrize("name", REGISTRY.names())
def test_every_way_has_examples_and_words(name: str) -> None:
    """A way says what it is, what a rule may say through it, and shows what it sends and reads."""
    kind = REGISTRY.get(name)
    assert kind.label and kind.doc and kind.EXAMPLES and kind.__doc__ and kind.batch_max >= 1
    assert kind.Fields.__struct_fields__ or issubclass(kind, LocalWay)
    assert kind.Settings.__struct_config__.forbid_unknown_fields and kind.Fields.__struct_config__.forbid_unknown_fields


@pytest.mark.parametrize("name", REGISTRY.names())
def test_every_text_says_what_it_is(name: str) -> None:
    """No text of a rule is without a kind and a bound: a template must not fill in what nobody has thought about."""
    kind = REGISTRY.get(name)
    texts = texts_of(kind.Fields)
    for field in msgspec.structs.fields(kind.Fields):
        if field.type is str or "str" in str(field.type) and "Literal" not in str(field.type):
            assert field.name in texts or field.name == "say", field.name


@pytest.mark.parametrize(("name", "number"), CALLING)
def test_an_action_becomes_the_call(name: str, number: int) -> None:
    """The call is the one that the example shows; no secret stands in its URL unless the URL is the secret."""
    way, found = example(name, number)
    for action in found["actions"]:
        way.said(action)
    call = way.calls(found["actions"], NOW_US)
    holds_call(found, call)
    for said in found.get("said", []):
        assert said in call.body.decode()
    for secret in ("token", "auth_token", "access_token", "client_secret", "refresh_token", "private_key"):
        value = getattr(way.settings, secret, "")
        assert not value or len(value) < 2 or value not in call.url
    assert way.target(found["actions"][0]).startswith("https://") and call.url.startswith(way.target(found["actions"][0]))
    for value in call.headers.values():
        assert value.isascii() and value.isprintable()


@pytest.mark.parametrize(("name", "number"), CALLING)
def test_an_answer_becomes_outcomes(name: str, number: int) -> None:
    """Each answer in the example means what the example says, for each action."""
    way, found = example(name, number)
    holds_answers(found, found["actions"], way.outcomes)


@pytest.mark.parametrize(("name", "number"), CALLING)
def test_no_answer_is_trusted(name: str, number: int) -> None:
    """Whatever comes back, there is one printable outcome for each action; an unreadable 5xx is neither yes nor no, 429 always waits."""
    way, found = example(name, number)
    for status in (200, 201, 202, 204, 302, 400, 401, 403, 404, 408, 409, 410, 413, 422, 429, 500, 502, 503):
        for body in UGLY:
            got = way.outcomes(found["actions"], Answer(status=status, body=body))
            assert [outcome.kind in OUTCOMES for outcome in got] == [True] * len(found["actions"])
            for outcome in got:
                assert all(len(text) <= 500 and text.isprintable() for text in (outcome.detail, outcome.code, outcome.message_id))
            if status >= 500 or status in (302, 408):
                assert {outcome.kind for outcome in got} == {"unknown"}, (status, body)
            if status == 429:
                assert {outcome.kind for outcome in got} == {"later"}


@pytest.mark.parametrize("name", REGISTRY.names())
def test_settings_and_fields_are_strict(name: str) -> None:
    """An unknown setting or field is refused with its name."""
    kind = REGISTRY.get(name)
    with pytest.raises(ConfigError, match="colour"):
        way_of(kind, kind.EXAMPLES[0]["settings"] | {"colour": "red"}, name)
    with pytest.raises(ConfigError, match="colour"):
        fields_of(kind, kind.EXAMPLES[0]["actions"][0].fields | {"colour": "red"}, "then")


@pytest.mark.parametrize(("name", "number"), CALLING)
def test_what_can_be_undone_says_how(name: str, number: int) -> None:
    """A way that undoes makes a call of it that may be made twice; the others say that they cannot."""
    way, found = example(name, number)
    call = way.undo(found["actions"][0], answer_of(way, found))
    assert (call is not None) == bool(way.undoes)
    if call is not None:
        assert call.idempotent and call.url.startswith(way.target(found["actions"][0]))


def answer_of(way: Way, found: dict):
    return way.outcomes(found["actions"], answer(found["answers"][0][0]))[0]


def test_an_action_has_an_id_that_can_stand_anywhere() -> None:
    """An id is a word: it stands in headers, URLs and lines."""
    for wrong in ("", "a b", "a\nb", "x" * 65, "ä", "a/b"):
        with pytest.raises(AssertionError):
            Action(id=wrong, way="x")


@pytest.mark.parametrize("url", ["https://127.0.0.1/x", "http://shop.example/x", "https://shop.example:22/", "https://169.254.169.254/"])
def test_a_url_inside_is_refused_when_it_is_saved(url: str) -> None:
    """Settings whose URL may not be called are refused at once; an allowed network and port are not."""
    settings = REGISTRY.get("webhook").EXAMPLES[0]["settings"]
    with pytest.raises(ConfigError, match="out.hook.url"):
        check_urls(way_of(REGISTRY.get("webhook"), settings | {"url": url}, "hook"), Guard(), "out.hook")
    check_urls(way_of(REGISTRY.get("webhook"), settings, "hook"), Guard(), "out.hook")
    own = way_of(REGISTRY.get("webhook"), settings | {"url": "http://10.1.2.3:8080/x"}, "hook")
    check_urls(own, Guard(allow=["10.1.2.0/24"], ports=frozenset({8080}), http=True), "out.hook")


# -- Slack and Teams ---------------------------------------------------------------------------------------------------------------


def test_values_make_no_mentions_in_slack() -> None:
    """What somebody is called cannot call a whole channel, nor show one link and lead to another."""
    way, found = example("slack", 0)
    sly = "<!channel> <https://evil.example|your bank> & <@U1>"
    call = way.calls([msgspec.structs.replace(found["actions"][0], fields={"text": sly})], NOW_US)
    said = msgspec.json.decode(call.body)
    assert "<" not in said["text"] and "<" not in said["blocks"][0]["text"]["text"] and "&lt;!channel&gt;" in said["text"]


def test_values_make_no_links_in_teams() -> None:
    """Text stands in parts of a card that know no markdown."""
    way, found = example("teams", 0)
    call = way.calls([msgspec.structs.replace(found["actions"][0], fields={"text": "[a](https://evil.example)", "title": "**b**"})], NOW_US)
    body = msgspec.json.decode(call.body)["attachments"][0]["content"]["body"]
    assert [part["type"] for part in body] == ["RichTextBlock"] * 2


# -- webhooks ----------------------------------------------------------------------------------------------------------------------


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The vector of the reference libraries (standard-webhooks/libraries): the same id, time and body give the same signature."""
    headers = signed([example_secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    two = signed([example_secret, "whsec_" + base64.b64encode(b"k" * 32).decode()], "msg_1", 1, b"x")["webhook-signature"].split()
    assert len(two) == 2 and all(one.startswith("v1,") for one in two)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!!!", "whsec_" + base64.b64encode(b"k" * 23).decode(), "whsec_" + "A" * 200])
def test_a_wrong_secret_is_refused(secret: str) -> None:
    """A secret that is short, long or no base64 signs nothing, and the error does not repeat it."""
    with pytest.raises(MidflightError) as raised:
        key_of(secret)
    assert not secret or secret not in str(raised.value) or secret == "whsec_"


def test_the_same_action_has_the_same_body_with_every_try() -> None:
    """Only the time of the try and its signature differ: the receiver may compare bodies by the id."""
    way, found = example("webhook", 0)
    first, second = (way.calls(found["actions"], NOW_US + late) for late in (0, 90_000_000))
    assert first.body == second.body and first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.headers["webhook-timestamp"] != second.headers["webhook-timestamp"] and first.headers != second.headers


# -- SMS ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "number"),
    [("+44 7700 900123", "+447700900123"), ("0044 (7700) 900-123", "+447700900123"), ("+49.170/1234567", "+491701234567")],
)  # fmt: skip
def test_phone_numbers_are_written_as_twilio_wants_them(given: str, number: str) -> None:
    """Spaces, brackets and dashes go, 00 is a plus."""
    assert phone(given) == number


@pytest.mark.parametrize(
    "given", ["", "07700 900123", "+0123456789", "+44", "+4477009001234567", "+44 x", "+44\n7700900123\r\nTo: 1", "٤٤"]
)
def test_what_is_no_phone_number_is_refused(given: str) -> None:
    """A number without its country, or what is none, is nobody's number: it is refused before a call."""
    with pytest.raises(MidflightError, match="phone number"):
        phone(given)


def test_status_callbacks_say_what_became_of_a_message() -> None:
    """Delivered and underway are sent, failed and undelivered are refused with the code, anything else says nothing."""
    assert status_outcome({"MessageStatus": "delivered", "MessageSid": "SM1"}).kind == "sent"
    failed = status_outcome({"MessageStatus": "undelivered", "MessageSid": "SM1", "ErrorCode": "30003"})
    assert (failed.kind, failed.code, failed.message_id) == ("refused", "30003", "SM1")
    assert status_outcome({"MessageStatus": "new word"}) is None and status_outcome({}) is None


def test_status_callbacks_are_verified() -> None:
    """The signature is over the URL as called and all fields; anything changed fails."""
    url, form = "https://m.example/in/twilio?action=ac-1", {"MessageSid": "SM1", "MessageStatus": "sent"}
    right = base64.b64encode(hmac.new(b"token", (url + "MessageSidSM1MessageStatussent").encode(), hashlib.sha1).digest()).decode()
    assert status_is_signed("token", url, form, right)
    for wrong in [("other", url, form), ("token", url + "x", form), ("token", url, form | {"MessageStatus": "failed"})]:
        assert not status_is_signed(*wrong, right)
    assert not status_is_signed("token", url, form, "") and not status_is_signed("token", url, form, "ü")


def test_twilios_credentials_and_sender_are_either_or() -> None:
    """Two senders or none, and two kinds of credentials or none, are refused when the settings are read."""
    good = REGISTRY.get("sms_twilio").EXAMPLES[0]["settings"]
    for wrong in (
        {"messaging_service_sid": "MG1"},
        {"from_number": ""},
        {"auth_token": ""},
        {"api_key_sid": "SK1", "api_key_secret": "x"},
        {"account_sid": "../x"},
    ):
        with pytest.raises(ConfigError):
            way_of(REGISTRY.get("sms_twilio"), good | wrong, "text")


# -- web push ----------------------------------------------------------------------------------------------------------------------

# RFC 8291 appendix A.
RFC_BODY = (
    "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf"
    "1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
)
RFC_PUBLIC = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
RFC_AUTH = "BTBZMqHH6r4Tts7J_aSIgg"


def test_the_encryption_is_that_of_the_standard() -> None:
    """The example of RFC 8291, byte for byte, and back."""
    made = encrypted(
        b"When I grow up, I want to be a watermelon",
        decoded64(RFC_PUBLIC, 65, "p256dh"),
        decoded64(RFC_AUTH, 16, "auth"),
        sender=private_key_of("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"),
        salt=decoded64("DGv6ra1nlYgDCS1FRnbzlw", 16, "salt"),
    )
    assert base64url(made) == RFC_BODY
    receiver = private_key_of("q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94")
    assert base64url(point(receiver.public_key())) == RFC_PUBLIC
    assert decrypted(made, receiver, decoded64(RFC_AUTH, 16, "auth")) == b"When I grow up, I want to be a watermelon"


def test_a_changed_message_is_not_read() -> None:
    """Control: one flipped bit anywhere behind the header, or another browser's secret, and nothing is read."""
    receiver = private_key_of("q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94")
    body = bytearray(base64.urlsafe_b64decode(RFC_BODY + "=" * (-len(RFC_BODY) % 4)))
    for at in (0, 90, len(body) - 1):
        changed = bytearray(body)
        changed[at] ^= 1
        with pytest.raises(ValueError):
            decrypted(bytes(changed), receiver, decoded64(RFC_AUTH, 16, "auth"))
    with pytest.raises(ValueError):
        decrypted(bytes(body), receiver, b"0" * 16)


def test_each_message_has_its_own_key_and_salt() -> None:
    """Two calls for the same action share nothing but what is meant to be told."""
    way, found = example("web_push", 0)
    first, second = (way.calls(found["actions"], NOW_US) for _ in range(2))
    assert first.body[:16] != second.body[:16] and first.body[21:86] != second.body[21:86]
    assert first.headers["topic"] == second.headers["topic"] and len(first.headers["topic"]) == 32


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint": "file:///etc/passwd"},
        {"endpoint": "https://user@push.example/x"},
        {"endpoint": "https://10.0.0.1/x"},
        {"p256dh": "AAAA"},
        {"p256dh": "B" * 87},
        {"auth": "x"},
        {"body": "x" * 1000 + "ü" * 2000},
    ],
)
def test_a_wrong_subscription_is_refused(change: dict) -> None:
    """An endpoint that may not be called, keys that are none and a text that does not fit are refused before a call."""
    way, found = example("web_push", 0)
    action = found["actions"][0]
    with pytest.raises(MidflightError):
        way.calls([msgspec.structs.replace(action, fields=action.fields | change)], NOW_US)


def test_a_push_expires_with_its_action() -> None:
    """The push service is told to keep it no longer than it is worth telling."""
    way, found = example("web_push", 0)
    action = msgspec.structs.replace(found["actions"][0], expires_us=NOW_US + 90_000_000)
    assert way.calls([action], NOW_US).headers["ttl"] == "90"


# -- audiences ---------------------------------------------------------------------------------------------------------------------


def test_addresses_are_normalised_and_hashed() -> None:
    """The hash of Google's own example (send-audience-members), whatever case and white space it comes in."""
    for given in ("dana@example.com", " DANA@Example.COM ", "da na@example.com"):
        assert email_hash(given) == "07e2f1394b0ea80e2adca010ea8318df697001a005ba7452720edda4b0ce57b3"
    for wrong in ("", "nobody", "@", "a@"):
        with pytest.raises(MidflightError):
            email_hash(wrong)
    assert phone_hash("+44 7700 900123", plus=True) == hashlib.sha256(b"+447700900123").hexdigest()
    assert phone_hash("+44 7700 900123", plus=False) == hashlib.sha256(b"447700900123").hexdigest() and phone_hash("", plus=True) == ""


@pytest.mark.parametrize("name", ["meta_audience", "google_audience"])
def test_nothing_but_hashes_leaves(name: str) -> None:
    """Neither an address nor a number stands in the call."""
    way, found = example(name, 0)
    actions = [msgspec.structs.replace(a, fields=a.fields | {"phone": "+44 7700 900123"}) for a in found["actions"]]
    body = way.calls(actions, NOW_US).body
    assert not any(known in body for known in (b"example.com", b"%40", b"@", b"7700900123"))


def test_an_audience_that_is_no_number_is_refused() -> None:
    """The id stands in a URL: only digits do."""
    way, found = example("meta_audience", 0)
    with pytest.raises(msgspec.ValidationError):
        way.calls([msgspec.structs.replace(found["actions"][0], fields={"audience": "1/../2"})], NOW_US)


# -- codes -------------------------------------------------------------------------------------------------------------------------


def test_pools_that_run_low_are_told_of() -> None:
    """Below the bound, and empty, in words."""

    class Pools:
        def pool(self, pool: str) -> dict[str, int]:
            return {"free": {"full": 500, "low": 3, "empty": 0}[pool]}

    found = alarms(Pools(), ["full", "low", "empty"], 100)
    assert [(alarm.kind, alarm.pool) for alarm in found] == [("low", "low"), ("empty", "empty")]
    assert "3" in found[0].text() and "No code" in found[1].text()
