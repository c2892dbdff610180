"""Real and documented vendor requests with the events that an independent reader made of them; present only beside the source tree."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from midflight.events import Event
from midflight.sources import REGISTRY, load
from midflight.sources.source import Malformed, Refused, Request, Source

FILE = Path(__file__).parent.parent.parent / "shared" / "data" / "esp_webhook_cases.jsonl"
CASES = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
pytestmark = pytest.mark.skipif(not CASES, reason="the file of cases is not beside this source tree")

NAMES = {"Amazon SES": "ses", "Unisender Go": "unisender_go"}


def names(case: dict) -> str:
    return f"{case['esp']}: {case['name'].split('.')[-1]}"


def vendor(case: dict) -> str:
    return NAMES.get(case["esp"], case["esp"].lower())


def request_of(case: dict) -> Request:
    return Request(
        method=case["method"],
        url=case["url"],
        headers={name.lower(): value for name, value in case["headers"].items()},
        body=case["body"].encode(case.get("body_encoding") or "utf-8"),
        received_at_us=round(datetime.fromisoformat(case["now_iso"]).timestamp() * 1e6),
    )


def without_credentials(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def source_of(case: dict) -> Source:
    """Configure a source as the case's receiver was: its credentials, its key, and SNS's certificate where the fetch would be."""
    auth = case["auth"]
    settings: dict = {"basic_auth": auth.get("basic_auth") or []}
    if auth.get("key"):
        settings["secrets"] = [auth["key"]]
    if vendor(case) == "mandrill" and without_credentials(auth["signed_url"]) != case["url"]:
        settings["url"] = auth["signed_url"]  # a proxy stands between
    if auth.get("cert_pem"):
        settings["topics"] = [json.loads(case["body"]).get("TopicArn", "")]
    if not any(settings.values()):
        settings["unsigned"] = True
    source = load(vendor(case), settings)
    if auth.get("cert_pem"):
        source.fetch = lambda url: auth["cert_pem"].encode()
    return source


# -- the differences from the oracle --------------------------------------------------------------------------------------

# (vendor, field): what may differ, and why. The condition gets the oracle's and our value, the oracle's event and ours.
Condition = Callable[[object, object, dict, Event], bool]
DIFFERENCES: dict[tuple[str, str], tuple[Condition, str]] = {
    ("sendgrid", "metadata"): (
        lambda theirs, ours, expect, event: theirs == {name: value for name, value in ours.items() if name != "anymail_id"},
        "The oracle takes the custom argument that its own sender adds out of the metadata.",
    ),
    ("postal", "at"): (
        lambda theirs, ours, expect, event: theirs == ours // 1_000_000 * 1_000_000,
        "We keep the fraction of the second; the oracle drops it.",
    ),
    ("postal", "reason"): (
        lambda theirs, ours, expect, event: not theirs and event.kind == "bounced",
        "A bounce is told as one; the oracle calls it failed or gives no reason.",
    ),
    ("sendgrid", "message_id"): (
        lambda theirs, ours, expect, event: True,
        "We take the head of `sg_message_id`, which the send call answered; the oracle takes `smtp-id` (section 22).",
    ),
    ("mailgun", "event_id"): (
        lambda theirs, ours, expect, event: True,
        "We take day and `event-data.id`, which a repeat keeps; the oracle takes the token, a nonce (section 22).",
    ),
    ("mailgun", "kind"): (
        lambda theirs, ours, expect, event: (theirs, ours) == ("bounced", "rejected"),
        "A message to a suppressed address never left Mailgun (section 2b).",
    ),
    ("mailgun", "reason"): (
        lambda theirs, ours, expect, event: theirs == "other" and ours in ("timed_out", "spam", "unsubscribed"),
        "`old` and the suppressions by unsubscribe and complaint say why; the oracle calls them `other`.",
    ),
    ("ses", "at"): (
        lambda theirs, ours, expect, event: ours != 0,
        "We take the event's own time; the oracle takes the time at which SNS sent it (section 22).",
    ),
    ("ses", "event_id"): (
        lambda theirs, ours, expect, event: ours == f"{theirs}:{event.recipient}",
        "One SNS id is for all recipients of an event; each needs its own (section 0).",
    ),
    ("ses", "kind"): (
        lambda theirs, ours, expect, event: (
            (theirs == "unknown" and ours in ("deferred", "subscribed", "unsubscribed"))
            or (theirs, ours) in (("bounced", "rejected"), ("complained", "rejected"), ("complained", "unknown"))
        ),
        "DeliveryDelay and Subscription are known to us (section 22); suppressed is rejected and not-spam no complaint (section 4b).",
    ),
    ("ses", "reason"): (
        lambda theirs, ours, expect, event: theirs == "spam" and event.detail == "not-spam",
        "Not-spam is no complaint (section 4b).",
    ),
    ("ses", "metadata"): (
        lambda theirs, ours, expect, event: theirs.items() <= ours.items(),
        "Message tags and `X-` headers are metadata for us; the oracle reads only its own header.",
    ),
    ("sparkpost", "message_id"): (
        lambda theirs, ours, expect, event: True,
        "A transmission goes to many, so we take `message_id`; the oracle takes `transmission_id` (section 22).",
    ),
    ("sparkpost", "event_id"): (
        lambda theirs, ours, expect, event: event.name.endswith("initial_open"),
        "Initial opens of a message share one id, so that the message is not counted as opened again by each.",
    ),
    ("sparkpost", "kind"): (
        lambda theirs, ours, expect, event: theirs == "unknown" and event.name in ("initial_open", "amp_initial_open"),
        "The first pixel is an open too (section 22: unknown by default in the oracle).",
    ),
    ("sparkpost", "at"): (
        lambda theirs, ours, expect, event: theirs == 0,
        "We also read ISO times; the oracle gives up.",
    ),
    ("mandrill", "kind"): (
        lambda theirs, ours, expect, event: (theirs, ours) == ("unknown", "delivered"),
        "Mandrill has told deliveries since the oracle was written (section 22).",
    ),
    ("brevo", "at"): (
        lambda theirs, ours, expect, event: theirs == 0 or theirs < 10**14,
        "We read `s_epoch` and seconds as well (section 8h); the oracle has no time, or one in 1970.",
    ),
    ("brevo", "tags"): (
        lambda theirs, ours, expect, event: theirs == [ours],
        "`tag` may be a list (section 8c); the oracle puts the list into a list.",
    ),
    ("resend", "kind"): (
        lambda theirs, ours, expect, event: theirs == "unknown" and ours in ("failed", "rejected", "queued"),
        "Failed, suppressed and scheduled are known to us (section 22).",
    ),
    ("postal", "kind"): (
        lambda theirs, ours, expect, event: (theirs, ours) in (("unknown", "opened"), ("failed", "bounced")),
        "MessageLoaded is an open, a hard failure a bounce (section 22).",
    ),
    ("mailersend", "kind"): (
        lambda theirs, ours, expect, event: theirs == "unknown" and ours in ("opened", "clicked"),
        "The unique ones are known to us (section 22).",
    ),
    ("mailtrap", "kind"): (
        lambda theirs, ours, expect, event: (theirs, ours) == ("deferred", "bounced") and event.bounce_class == "soft",
        "A soft bounce is a bounce (section 22).",
    ),
    ("unisender_go", "kind"): (
        lambda theirs, ours, expect, event: (theirs, ours) == ("deferred", "bounced") and event.bounce_class == "soft",
        "A soft bounce is a bounce (section 22).",
    ),
}
# The oracle's `inbound_failed` is about mail that came in; we have no kind for it.
KINDS = {"inbound_failed": "unknown"}


def oracle(expect: dict) -> dict:
    """Return an event of the oracle in our fields: no value is empty, not None, and times are microseconds."""
    at = expect["timestamp_iso"]
    tags = expect["tags"] if isinstance(expect["tags"], list) else [expect["tags"]]
    return {
        "kind": KINDS.get(expect["type"], expect["type"]),
        "at": round(datetime.fromisoformat(at).timestamp() * 1e6) if at else 0,
        "recipient": expect["recipient"] or "",
        "message_id": expect["message_id"] or "",
        "event_id": expect["event_id"] or "",
        "url": expect["click_url"] or "",
        "user_agent": expect["user_agent"] or "",
        "reason": expect["reject_reason"] or "",
        "tags": [tag for tag in tags if tag],
        "metadata": expect["metadata"] or {},
    }


def differences(case: dict, expect: dict, event: Event) -> list[str]:
    """Return what is neither equal to the oracle nor a difference that is listed above."""
    found = []
    ours_all = {"at": event.occurred_at_us, **{name: getattr(event, name) for name in event.__struct_fields__}}
    for field, theirs in oracle(expect).items():
        ours = ours_all[field]
        if ours == theirs or (field == "event_id" and not theirs):
            continue  # where the vendor has no id, ours is a hash
        allowed = DIFFERENCES.get((vendor(case), field))
        if not allowed or not allowed[0](theirs, ours, expect, event):
            found.append(f"{field}: the oracle says {theirs!r}, we say {ours!r}")
    said = [text.strip() for text in (expect["mta_response"], expect["description"]) if text]
    if said and event.detail not in said:
        found.append(f"detail: the oracle says {said!r}, we say {event.detail!r}")
    return found


def accepted_events(source: Source, request: Request) -> list[Event]:
    """Return what a request comes to; nothing where it is refused or can never be the vendor's. Anything else is an error."""
    try:
        source.verify(request)
        return list(source.parse(request))
    except (Refused, Malformed):
        return []


# -- the tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=names)
def test_the_case(case: dict) -> None:
    """A request of a vendor gives the oracle's events, or the oracle's refusal."""
    source, request = source_of(case), request_of(case)
    category = case["category"]
    if category == "auth_reject":
        with pytest.raises((Refused, Malformed)):
            source.verify(request)
            source.parse(request)
        return
    if category == "misroute_or_error":
        assert accepted_events(source, request) == []
        return
    if request.method == "HEAD":
        return  # the door answers it; there is nothing to verify
    source.verify(request)
    if category == "auth_accept":  # only acceptance matters: the bodies are stubs
        accepted_events(source, request)
        return
    parsed = source.parse(request)
    assert parsed.bad == []
    if category in ("handshake", "empty"):
        source.handshake(request)
        assert list(parsed) == []
        return
    assert len(parsed) == len(case["expect"])
    assert [differences(case, expect, event) for expect, event in zip(case["expect"], parsed, strict=True)] == [[]] * len(parsed)


def test_every_vendor_of_the_cases_is_in_the_registry() -> None:
    """No case is passed over because its vendor has no file."""
    assert {vendor(case) for case in CASES} <= set(REGISTRY.names())


def test_a_wrong_event_is_noticed() -> None:
    """Control: each compared field, spoilt, is a difference."""
    case = next(case for case in CASES if case["esp"] == "Postmark" and case["category"] == "event")
    (event,) = source_of(case).parse(request_of(case))
    (expect,) = case["expect"]
    assert differences(case, expect, event) == []
    spoilt = {
        "kind": "sent",
        "occurred_at_us": 1,
        "recipient": "x",
        "message_id": "x",
        "url": "x",
        "reason": "spam",
        "tags": ["x"],
        "metadata": {"x": 1},
    }
    for field, value in spoilt.items():
        kept = getattr(event, field)
        setattr(event, field, value)
        assert differences(case, expect, event), field
        setattr(event, field, kept)


def test_a_tampered_envelope_of_sns_is_refused() -> None:
    """Control: the signed SNS cases pass because of their signature, not because nobody looks."""
    signed = [case for case in CASES if case["auth"].get("cert_pem")]
    assert signed
    for case in signed:
        tampered = case | {"body": case["body"].replace("2018-03-26", "2018-03-27").replace("2012-04-26", "2012-04-27")}
        with pytest.raises(Refused):
            source_of(case).verify(request_of(tampered))
