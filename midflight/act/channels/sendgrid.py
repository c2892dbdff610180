"""Channel `sendgrid`."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from . import channel
from .channel import EXAMPLE, Answer, Call, Channel, Message, Outcome, decoded, list_at, text_at, unsettled


class Settings(channel.Settings, kw_only=True):
    api_key: str  # of an API key with the permission "Mail Send"
    url: str = "https://api.sendgrid.com"  # https://api.eu.sendgrid.com for a subuser in the EU
    categories: list[str] = []  # up to ten names that SendGrid's own statistics are kept by


class SendGrid(Channel):
    """`POST /v3/mail/send` (https://www.twilio.com/docs/sendgrid/api-reference/mail-send/mail-send).

    One message a call: the personalizations of one call share the body, which here differs for each recipient. SendGrid has no
    idempotency key; what was accepted answers 202 with the message id in a header.
    """

    label: ClassVar[str] = "SendGrid"
    doc: ClassVar[str] = (
        "Campaign, variant, wave and intent travel as `custom_args`. Open and click tracking follow the account's settings."
    )
    source: ClassVar[str] = "sendgrid"
    Settings = Settings

    def call(self, messages: list[Message], now_us: int) -> Call:
        (message,) = messages
        settings: Settings = self.settings
        to = {"email": message.to, "name": message.to_name} if message.to_name else {"email": message.to}
        body = {
            "personalizations": [{"to": [to], "custom_args": message.custom()}],
            "from": {"email": message.from_address} | ({"name": message.from_name} if message.from_name else {}),
            "subject": message.subject,
            # Plain text first: SendGrid refuses the other order.
            "content": [{"type": "text/plain", "value": message.text}]
            + ([{"type": "text/html", "value": message.html}] if message.html else []),
        }
        if message.reply_to:
            body["reply_to"] = {"email": message.reply_to}
        if message.headers:
            body["headers"] = message.headers
        if settings.categories:
            body["categories"] = settings.categories
        headers = {"authorization": f"Bearer {settings.api_key}", "content-type": "application/json"}
        return Call(url=f"{settings.url}/v3/mail/send", headers=headers, body=msgspec.json.encode(body))

    def outcomes(self, messages: list[Message], answer: Answer) -> list[Outcome]:
        # 200 is the sandbox mode's answer: valid, and never sent.
        if answer.status == 202:
            return [Outcome(kind="sent", message_id=answer.headers.get("x-message-id", ""))] * len(messages)
        return unsettled(messages, answer, _errors(answer.body))

    EXAMPLES = (
        {
            "settings": {"api_key": "SG.x"},
            "messages": [EXAMPLE],
            "url": "https://api.sendgrid.com/v3/mail/send",
            "headers": {"authorization": "Bearer SG.x", "content-type": "application/json"},
            "json": {
                "personalizations": [{"to": [{"email": "ada@example.com", "name": "Ada Lovelace"}], "custom_args": EXAMPLE.custom()}],
                "from": {"email": "news@shop.example", "name": "The Shop"},
                "subject": "Two days left",
                "content": [{"type": "text/plain", "value": "Hello Ada"}, {"type": "text/html", "value": "<p>Hello Ada</p>"}],
                "reply_to": {"email": "help@shop.example"},
                "headers": EXAMPLE.headers,
            },
            "answers": [
                ({"status": 202, "headers": {"x-message-id": "abc.1"}}, [{"kind": "sent", "message_id": "abc.1"}]),
                (
                    {"status": 400, "body": '{"errors":[{"message":"Does not contain a valid address.","field":"personalizations.0.to"}]}'},
                    [{"kind": "refused", "code": "400", "detail": "Does not contain a valid address. (personalizations.0.to)"}],
                ),
                ({"status": 429, "headers": {"retry-after": "7"}}, [{"kind": "later", "code": "429", "retry_s": 7.0}]),
                ({"status": 500}, [{"kind": "unknown", "code": "500"}]),
                ({"status": 200}, [{"kind": "unknown", "code": "200"}]),
            ],
        },
    )


def _errors(body: bytes) -> str:
    """Return SendGrid's messages as one line, or nothing where the body is not what it sends."""
    found = list_at(decoded(body), "errors")
    return "; ".join(text_at(e, "message") + (f" ({text_at(e, 'field')})" if text_at(e, "field") else "") for e in found)


PLUGIN = SendGrid
