"""Channel `brevo`."""

from __future__ import annotations

import json
import re
from typing import ClassVar

import msgspec

from . import channel
from .channel import EXAMPLE, Answer, Call, Channel, Message, Outcome, decoded, retry_after_s, text_at, unsettled

name_chars_max = 70  # a longer name of a recipient is refused
# What Brevo says of the account, not of the message: once that is mended the message can go.
ACCOUNT = ("unauthorized", "permission_denied", "not_enough_credits", "account_under_validation")
# Something was made of this call before, whatever became of it.
TWICE = ("duplicate_parameter", "duplicate_request")
SPECIALS = re.compile(r'[()<>\[\]:;@\\,."]+')


class Settings(channel.Settings, kw_only=True):
    api_key: str
    url: str = "https://api.brevo.com"
    tags: list[str] = []  # for Brevo's own statistics


class Brevo(Channel):
    """`POST /v3/smtp/email` (https://developers.brevo.com/reference/send-transac-email).

    One message a call: `messageVersions` carry up to 1,000 different messages, but one that Brevo does not like refuses them all
    (https://developers.brevo.com/docs/batch-send-transactional-emails). Brevo has an idempotency key among the message's headers
    (https://developers.brevo.com/docs/heterogenous-versions-batch-emails), remembered for 30 minutes (its changelog says 15). A call that
    is made again after a restart may come later than that, so the calls are not marked as idempotent, and no key is sent.
    """

    label: ClassVar[str] = "Brevo"
    doc: ClassVar[str] = (
        "Campaign, variant, wave and intent travel as JSON in the header `X-Mailin-custom`, which the recipient can see. "
        "Brevo cannot take a name beyond ASCII that has punctuation; such names lose it."
    )
    source: ClassVar[str] = "brevo"
    Settings = Settings

    def call(self, messages: list[Message], now_us: int) -> Call:
        (message,) = messages
        settings: Settings = self.settings
        body = {
            "sender": _person(message.from_address, message.from_name),
            "to": [_person(message.to, message.to_name)],
            "subject": message.subject,
            "textContent": message.text,
            # Brevo sends this header as it gets it, so it has to be ASCII: `json` escapes what is not.
            "headers": message.headers | {"X-Mailin-custom": json.dumps(message.custom())},
        }
        if message.html:
            body["htmlContent"] = message.html
        if message.reply_to:
            body["replyTo"] = {"email": message.reply_to}
        if settings.tags:
            body["tags"] = settings.tags
        headers = {"api-key": settings.api_key, "content-type": "application/json", "accept": "application/json"}
        return Call(url=f"{settings.url}/v3/smtp/email", headers=headers, body=msgspec.json.encode(body))

    def outcomes(self, messages: list[Message], answer: Answer) -> list[Outcome]:
        found = decoded(answer.body)
        message_id = text_at(found, "messageId")
        if answer.status in (201, 202) and message_id:
            return [Outcome(kind="sent", message_id=message_id)]
        code, detail = text_at(found, "code"), text_at(found, "message")
        if 400 <= answer.status < 500 and code in ACCOUNT:
            return [Outcome(kind="later", code=code, detail=detail, retry_s=retry_after_s(answer))]
        if code in TWICE:
            return [Outcome(kind="unknown", code=code, detail=detail)]
        reset = answer.headers.get("x-sib-ratelimit-reset")
        if answer.status == 429 and reset and "retry-after" not in answer.headers:
            answer = msgspec.structs.replace(answer, headers=answer.headers | {"retry-after": reset})
        return unsettled(messages, answer, f"{detail} ({code})" if code else "")

    EXAMPLES = (
        {
            "settings": {"api_key": "xkeysib-x", "tags": ["newsletter"]},
            "messages": [EXAMPLE],
            "url": "https://api.brevo.com/v3/smtp/email",
            "headers": {"api-key": "xkeysib-x", "content-type": "application/json"},
            "json": {
                "sender": {"email": "news@shop.example", "name": "The Shop"},
                "to": [{"email": "ada@example.com", "name": "Ada Lovelace"}],
                "subject": "Two days left",
                "textContent": "Hello Ada",
                "htmlContent": "<p>Hello Ada</p>",
                "replyTo": {"email": "help@shop.example"},
                "headers": EXAMPLE.headers
                | {"X-Mailin-custom": '{"campaign": "spring", "variant": "B", "wave": "3", "propensity": "0.25", "intent": "in-01HZX4"}'},
                "tags": ["newsletter"],
            },
            "answers": [
                (
                    {"status": 201, "body": '{"messageId":"<202511241600.1@smtp-relay.mailin.fr>"}'},
                    [{"kind": "sent", "message_id": "<202511241600.1@smtp-relay.mailin.fr>"}],
                ),
                (
                    {"status": 400, "body": '{"code":"invalid_parameter","message":"email is not valid in to"}'},
                    [{"kind": "refused", "code": "400", "detail": "email is not valid in to (invalid_parameter)"}],
                ),
                (
                    {"status": 402, "body": '{"code":"not_enough_credits","message":"You do not have enough credits"}'},
                    [{"kind": "later", "code": "not_enough_credits"}],
                ),
                ({"status": 401, "body": '{"code":"unauthorized","message":"Key not found"}'}, [{"kind": "later", "code": "unauthorized"}]),
                ({"status": 400, "body": '{"code":"duplicate_parameter","message":"x"}'}, [{"kind": "unknown"}]),
                ({"status": 429, "headers": {"x-sib-ratelimit-reset": "45"}}, [{"kind": "later", "code": "429", "retry_s": 45.0}]),
                ({"status": 500}, [{"kind": "unknown", "code": "500"}]),
                ({"status": 201}, [{"kind": "unknown", "code": "201"}]),
            ],
        },
    )


def _person(email: str, name: str) -> dict[str, str]:
    """Return an address with its name as Brevo takes it; it silently drops names beyond ASCII that have a comma or the like."""
    name = (name if name.isascii() else SPECIALS.sub(" ", name)).strip()[:name_chars_max]
    return {"email": email, "name": name} if name else {"email": email}


PLUGIN = Brevo
