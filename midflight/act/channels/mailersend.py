"""Channel `mailersend`."""

from __future__ import annotations

import re
from typing import ClassVar

import msgspec

from . import channel
from .channel import EXAMPLE, Answer, Call, Channel, Message, Outcome, at, decoded, list_at, retry_after_s, text_at, unsettled

MAINTENANCE = 421  # "Service isn't available, try again later"
UNWANTED = re.compile(r"[;,]+")


class Settings(channel.Settings, kw_only=True):
    api_token: str
    url: str = "https://api.mailersend.com"
    headers: bool = True  # plans below Professional refuse every message that has headers; without them there is no List-Unsubscribe


class MailerSend(Channel):
    """`POST /v1/email` (https://developers.mailersend.com/api/v1/email.html#send-an-email).

    One message a call: the bulk endpoint only says that it is going to look at its messages. What was taken answers 202 with the id in a
    header; 202 is also said to a recipient on a suppression list, with a warning and without an id. `x-send-paused: true` comes where
    the domain is paused: MailerSend has the message, and does not say whether it will go later. There is no idempotency key. MailerSend
    reads `{{name}}` in subject and bodies as its own placeholder.
    """

    label: ClassVar[str] = "MailerSend"
    doc: ClassVar[str] = (
        "Campaign, variant, wave, propensity and intent travel as the five tags that MailerSend allows, so there is no room for others. "
        "Headers, List-Unsubscribe among them, need a plan from Professional upwards; else set `headers: false`."
    )
    source: ClassVar[str] = "mailersend"
    Settings = Settings

    def call(self, messages: list[Message], now_us: int) -> Call:
        (message,) = messages
        settings: Settings = self.settings
        body = {
            "from": _person(message.from_address, message.from_name),
            "to": [_person(message.to, message.to_name)],
            "subject": message.subject,
            "text": message.text,
            "tags": [f"{name}:{value}" for name, value in message.custom().items()],
        }
        if message.html:
            body["html"] = message.html
        if message.reply_to:
            body["reply_to"] = {"email": message.reply_to}
        if message.headers and settings.headers:
            body["headers"] = [{"name": name, "value": value} for name, value in message.headers.items()]
        headers = {"authorization": f"Bearer {settings.api_token}", "content-type": "application/json", "accept": "application/json"}
        return Call(url=f"{settings.url}/v1/email", headers=headers, body=msgspec.json.encode(body))

    def outcomes(self, messages: list[Message], answer: Answer) -> list[Outcome]:
        (message,) = messages
        found = decoded(answer.body)
        if answer.status == MAINTENANCE:
            return [Outcome(kind="later", code="421", detail=text_at(found, "message"), retry_s=retry_after_s(answer))]
        if answer.status != 202:
            return unsettled(messages, answer, _errors(found))
        message_id = answer.headers.get("x-message-id", "")
        suppressed = _suppressed(found, message.to)
        if suppressed is not None:
            return [Outcome(kind="refused", message_id=message_id, code="suppressed", detail=suppressed)]
        if not message_id:
            return unsettled(messages, answer, text_at(found, "message"))
        if answer.headers.get("x-send-paused", "").lower() not in ("", "false"):
            return [Outcome(kind="unknown", message_id=message_id, code="paused", detail="Sending is paused for the domain")]
        return [Outcome(kind="sent", message_id=message_id)]

    EXAMPLES = (
        {
            "settings": {"api_token": "mlsn.x"},
            "messages": [EXAMPLE],
            "url": "https://api.mailersend.com/v1/email",
            "headers": {"authorization": "Bearer mlsn.x", "content-type": "application/json"},
            "json": {
                "from": {"email": "news@shop.example", "name": "The Shop"},
                "to": [{"email": "ada@example.com", "name": "Ada Lovelace"}],
                "subject": "Two days left",
                "text": "Hello Ada",
                "html": "<p>Hello Ada</p>",
                "reply_to": {"email": "help@shop.example"},
                "tags": ["campaign:spring", "variant:B", "wave:3", "propensity:0.25", "intent:in-01HZX4"],
                "headers": [
                    {"name": "List-Unsubscribe", "value": "<https://m.example/u/x>"},
                    {"name": "List-Unsubscribe-Post", "value": "List-Unsubscribe=One-Click"},
                ],
            },
            "answers": [
                (
                    {"status": 202, "headers": {"x-message-id": "5e42957d51f1d94a1070a733"}},
                    [{"kind": "sent", "message_id": "5e42957d51f1d94a1070a733"}],
                ),
                (
                    {"status": 202, "headers": {"x-message-id": "5e42957d51f1d94a1070a733", "x-send-paused": "true"}},
                    [{"kind": "unknown", "code": "paused", "message_id": "5e42957d51f1d94a1070a733"}],
                ),
                (
                    {
                        "status": 202,
                        "body": '{"message":"There are some warnings for your request.","warnings":[{"type":"ALL_SUPPRESSED","message":'
                        '"All of the recipients provided have been suppressed.","recipients":[{"email":"ada@example.com","name":null,'
                        '"reasons":["hard_bounced"]}]}]}',
                    },
                    [{"kind": "refused", "code": "suppressed", "detail": "hard_bounced"}],
                ),
                ({"status": 202}, [{"kind": "unknown", "code": "202"}]),
                (
                    {
                        "status": 422,
                        "headers": {"content-type": "application/json"},
                        "body": '{"message":"The given data was invalid.","errors":{"from.email":["The from.email domain must be verified '
                        'in your account to send emails. #MS42207"]}}',
                    },
                    [
                        {
                            "kind": "refused",
                            "code": "422",
                            "detail": "from.email: The from.email domain must be verified in your account to send emails. #MS42207",
                        }
                    ],
                ),
                (
                    {"status": 401, "body": '{"message":"Unauthenticated."}'},
                    [{"kind": "later", "code": "401", "detail": "Unauthenticated."}],
                ),
                ({"status": 421, "headers": {"retry-after": "60"}}, [{"kind": "later", "code": "421", "retry_s": 60.0}]),
                (
                    {"status": 429, "headers": {"retry-after": "13"}, "body": '{"message":"Too Many Attempts."}'},
                    [{"kind": "later", "code": "429", "detail": "Too Many Attempts.", "retry_s": 13.0}],
                ),
                ({"status": 500}, [{"kind": "unknown", "code": "500"}]),
            ],
        },
    )


def _person(email: str, name: str) -> dict[str, str]:
    """Return an address with its name, in which MailerSend allows neither comma nor semicolon."""
    name = UNWANTED.sub(" ", name).strip()
    return {"email": email, "name": name} if name else {"email": email}


def _suppressed(found: object, address: str) -> str | None:
    """Return why the recipient is on a suppression list, or None where no warning says so."""
    for warning in list_at(found, "warnings"):
        named = [one for one in list_at(warning, "recipients") if text_at(one, "email").casefold() == address.casefold()]
        if text_at(warning, "type") == "ALL_SUPPRESSED" or (named and text_at(warning, "type") == "SOME_SUPPRESSED"):
            reasons = [text_at(reason) for one in named for reason in list_at(one, "reasons")]
            return ", ".join(filter(None, reasons))[:500] or text_at(warning, "message")
    return None


def _errors(found: object) -> str:
    """Return MailerSend's messages as one line, each with the field that it is about."""
    errors = at(found, "errors")
    lines = [f"{field}: {text_at(said)}" for field, each in errors.items() for said in list_at(each)] if isinstance(errors, dict) else []
    return "; ".join(channel.clean(line) for line in lines)[:500] or text_at(found, "message")


PLUGIN = MailerSend
