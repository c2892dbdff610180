"""Channel `postmark`."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from . import channel
from ._mailbox import ascii_domain, mailbox
from .channel import EXAMPLE, SECOND, Answer, Call, Channel, Message, Outcome, at, decoded, retry_after_s, text_at, unsettled

metadata_chars_max = 80  # of a value; a longer one makes Postmark refuse the message
tag_chars_max = 1000

# Postmark's `ErrorCode`s that a message or its recipient earns itself: not a valid request, inactive recipient, no such attachment.
REFUSED = (300, 402, 403, 406, 409, 410, 411)


class Settings(channel.Settings, kw_only=True):
    server_token: str  # of the Postmark server, not of the account
    message_stream: str = "broadcast"  # the id of a stream; campaigns belong into one of the type "broadcasts"
    url: str = "https://api.postmarkapp.com"


class Postmark(Channel):
    """`POST /email/batch` (https://postmarkapp.com/developer/api/email-api#send-batch-emails).

    Each message of a batch is complete in itself, and the answer is a list in the same order with an `ErrorCode` for each
    (https://postmarkapp.com/developer/api/overview#error-codes). 0 is a yes, and so is an answer with a message id and no code, which
    Postmark gives while delivery may be delayed. Codes of the request and the recipient are a no for ever (406: Postmark has the address
    as inactive). Every other code (token, credits, sender signature, account under review, maintenance) is a no that may pass.
    Postmark would take 500 messages and 50 MB. A lost answer leaves all of a call unknown, so it gets fewer. It has no idempotency key.
    """

    label: ClassVar[str] = "Postmark"
    doc: ClassVar[str] = (
        "Campaign, variant, wave and intent travel as `Metadata`, the campaign also as `Tag`. Open and link tracking follow the server's "
        "settings. A metadata value longer than 80 characters is left out."
    )
    source: ClassVar[str] = "postmark"
    batch_max: ClassVar[int] = 100
    Settings = Settings

    def call(self, messages: list[Message], now_us: int) -> Call:
        settings: Settings = self.settings
        headers = {
            "accept": "application/json",
            "content-type": "application/json",
            "x-postmark-server-token": settings.server_token,
        }
        body = msgspec.json.encode([_item(message, settings.message_stream) for message in messages])
        return Call(url=f"{settings.url}/email/batch", headers=headers, body=body)

    def outcomes(self, messages: list[Message], answer: Answer) -> list[Outcome]:
        found = decoded(answer.body)
        if answer.status == 200 and isinstance(found, list) and len(found) == len(messages):
            return [_outcome(item, answer) for item in found]
        # One code for the whole call: nothing of it was taken.
        if answer.status == 422 and text_at(found, "ErrorCode"):
            return [_error(found, answer)] * len(messages)
        return unsettled(messages, answer, text_at(found, "Message"))

    EXAMPLES = (
        {
            "settings": {"server_token": "pm-x"},
            "messages": [EXAMPLE, SECOND],
            "url": "https://api.postmarkapp.com/email/batch",
            "headers": {"x-postmark-server-token": "pm-x", "content-type": "application/json", "accept": "application/json"},
            "json": [
                {
                    "From": "The Shop <news@shop.example>",
                    "To": "Ada Lovelace <ada@example.com>",
                    "ReplyTo": "help@shop.example",
                    "Subject": "Two days left",
                    "TextBody": "Hello Ada",
                    "HtmlBody": "<p>Hello Ada</p>",
                    "Headers": [
                        {"Name": "List-Unsubscribe", "Value": "<https://m.example/u/x>"},
                        {"Name": "List-Unsubscribe-Post", "Value": "List-Unsubscribe=One-Click"},
                    ],
                    "Tag": "spring",
                    "Metadata": EXAMPLE.custom(),
                    "MessageStream": "broadcast",
                },
                {
                    "From": "The Shop <news@shop.example>",
                    "To": "bob@example.com",
                    "ReplyTo": "help@shop.example",
                    "Subject": "Two days left",
                    "TextBody": "Hello Bob",
                    "HtmlBody": "<p>Hello Bob</p>",
                    "Headers": [
                        {"Name": "List-Unsubscribe", "Value": "<https://m.example/u/x>"},
                        {"Name": "List-Unsubscribe-Post", "Value": "List-Unsubscribe=One-Click"},
                    ],
                    "Tag": "spring",
                    "Metadata": SECOND.custom(),
                    "MessageStream": "broadcast",
                },
            ],
            "answers": [
                (
                    {
                        "status": 200,
                        "body": '[{"ErrorCode":0,"Message":"OK","MessageID":"b7bc2f4a-e38e-4336-af7d-e6c392c2f817",'
                        '"SubmittedAt":"2025-11-24T16:00:00.1234567Z","To":"ada@example.com"},'
                        '{"ErrorCode":406,"Message":"You tried to send to recipient(s) that have been marked as inactive. Found inactive '
                        "addresses: bob@example.com. Inactive recipients are ones that have generated a hard bounce, a spam complaint, or "
                        'a manual suppression."}]',
                    },
                    [{"kind": "sent", "message_id": "b7bc2f4a-e38e-4336-af7d-e6c392c2f817"}, {"kind": "refused", "code": "406"}],
                ),
                (
                    {
                        "status": 200,
                        "body": '[{"ErrorCode":300,"Message":"Invalid \'To\' address: \'ada@\'."},'
                        '{"ErrorCode":405,"Message":"Your account has run out of credits."}]',
                    },
                    [
                        {"kind": "refused", "code": "300", "detail": "Invalid 'To' address: 'ada@'."},
                        {"kind": "later", "code": "405", "detail": "Your account has run out of credits."},
                    ],
                ),
                (
                    {"status": 200, "body": '[{"Message":"Message accepted, but delivery may be delayed.","MessageID":"1-2"},{"To":"b"}]'},
                    [{"kind": "sent", "message_id": "1-2"}, {"kind": "unknown"}],
                ),
                ({"status": 200, "body": '[{"ErrorCode":0,"MessageID":"1-2"}]'}, [{"kind": "unknown"}] * 2),
                (
                    {"status": 422, "body": '{"ErrorCode":403,"Message":"Invalid request field(s): $[0].Metadata"}'},
                    [{"kind": "refused", "code": "403", "detail": "Invalid request field(s): $[0].Metadata"}] * 2,
                ),
                (
                    {"status": 401, "body": '{"ErrorCode":10,"Message":"The Server Token you provided in the header was invalid."}'},
                    [{"kind": "later", "code": "401", "detail": "The Server Token you provided in the header was invalid."}] * 2,
                ),
                ({"status": 429, "headers": {"retry-after": "7"}}, [{"kind": "later", "code": "429", "retry_s": 7.0}] * 2),
                ({"status": 500}, [{"kind": "unknown", "code": "500"}] * 2),
            ],
        },
    )


def _item(message: Message, stream: str) -> dict:
    """Return one message of a batch."""
    item = {
        "From": mailbox(message.from_name, message.from_address),
        "To": mailbox(message.to_name, message.to),
        "Subject": message.subject,
        "TextBody": message.text,
        "Tag": message.campaign[:tag_chars_max],
        "Metadata": {name: value for name, value in message.custom().items() if len(value) <= metadata_chars_max},
        "MessageStream": stream,
    }
    if message.html:
        item["HtmlBody"] = message.html
    if message.reply_to:
        item["ReplyTo"] = ascii_domain(message.reply_to)
    if message.headers:
        item["Headers"] = [{"Name": name, "Value": value} for name, value in message.headers.items()]
    return item


def _outcome(item: object, answer: Answer) -> Outcome:
    """Return what Postmark says of one message."""
    code, message_id = at(item, "ErrorCode"), text_at(item, "MessageID")
    if message_id and (code is None or text_at(item, "ErrorCode") == "0"):
        return Outcome(kind="sent", message_id=message_id)
    return _error(item, answer)


def _error(found: object, answer: Answer) -> Outcome:
    """Return what an `ErrorCode` that is no 0 means; `unknown` where there is none, or one of Postmark's own failures (500 to 599)."""
    code, said = at(found, "ErrorCode"), text_at(found, "Message")
    if type(code) is not int or code <= 0 or 500 <= code < 600:
        return Outcome(kind="unknown", code=text_at(found, "ErrorCode") or str(answer.status), detail=said)
    if code in REFUSED:
        return Outcome(kind="refused", code=str(code), detail=said)
    return Outcome(kind="later", code=str(code), detail=said, retry_s=retry_after_s(answer))


PLUGIN = Postmark
