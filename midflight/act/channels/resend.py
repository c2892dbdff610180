"""Channel `resend`."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

import msgspec

from . import channel
from ._mailbox import ascii_domain, mailbox
from ._named_tags import METADATA_HEADER, carried
from .channel import EXAMPLE, Answer, Call, Channel, Message, Outcome, decoded, retry_after_s, text_at, unsettled


class Settings(channel.Settings, kw_only=True):
    api_key: str  # with "Sending access"
    url: str = "https://api.resend.com"
    # Resend counts requests of a whole team (https://resend.com/docs/api-reference/rate-limit); it raises the limit on request.
    per_second: Annotated[float, msgspec.Meta(gt=0)] = 2.0


class Resend(Channel):
    """`POST /emails` (https://resend.com/docs/api-reference/emails/send-email) with the intent as `Idempotency-Key`.

    Resend keeps a key for 24 hours and answers the same call again with the first id
    (https://resend.com/docs/dashboard/emails/idempotency-keys). 409 says that the key was used before, by a call that is still
    under way or had another body: what that one did is unknown. One message a call: a batch has one key for all of it, so after a
    crash only the very same batch would be safe, and without its permissive mode it fails as a whole.
    A display name in `from` must be neither quoted nor encoded, so its punctuation becomes blanks.
    """

    label: ClassVar[str] = "Resend"
    doc: ClassVar[str] = (
        "Campaign, variant, wave and intent travel as `tags`, what these cannot hold in the header `X-Metadata`. Open and click tracking "
        "follow the domain's settings."
    )
    source: ClassVar[str] = "resend"
    Settings = Settings

    def call(self, messages: list[Message], now_us: int) -> Call:
        (message,) = messages
        settings: Settings = self.settings
        tags, metadata = carried(message.custom())
        body = {
            "from": _sender(message.from_name, ascii_domain(message.from_address)),
            "to": [mailbox(message.to_name, message.to)],
            "subject": message.subject,
            "text": message.text,
            "tags": [{"name": name, "value": value} for name, value in tags.items()],
        }
        if message.html:
            body["html"] = message.html
        if message.reply_to:
            body["reply_to"] = [ascii_domain(message.reply_to)]
        headers = {name: value for name, value in message.headers.items() if name.lower() != METADATA_HEADER.lower()} | metadata
        if headers:
            body["headers"] = headers
        return Call(
            url=f"{settings.url}/emails",
            headers={
                "authorization": f"Bearer {settings.api_key}", "content-type": "application/json", "idempotency-key": message.intent,
            },
            body=msgspec.json.encode(body),
            idempotent=True,
        )  # fmt: skip

    def outcomes(self, messages: list[Message], answer: Answer) -> list[Outcome]:
        found = decoded(answer.body)
        name, said = text_at(found, "name"), text_at(found, "message")
        detail = (f"{name}: {said}" if name and said else name or said)[:500]
        if answer.status == 200 and text_at(found, "id"):
            return [Outcome(kind="sent", message_id=text_at(found, "id"))] * len(messages)
        if answer.status == 409:
            return [Outcome(kind="unknown", code="409", detail=detail)] * len(messages)
        # A key that is not even of a key's form is answered with 400 in place of 401.
        if answer.status == 400 and said == "API key is invalid":
            return [Outcome(kind="later", code="400", detail=detail, retry_s=retry_after_s(answer))] * len(messages)
        return unsettled(messages, answer, detail)

    EXAMPLES = (
        {
            "settings": {"api_key": "re_x"},
            "messages": [EXAMPLE],
            "url": "https://api.resend.com/emails",
            "headers": {"authorization": "Bearer re_x", "content-type": "application/json", "idempotency-key": "in-01HZX4"},
            "json": {
                "from": "The Shop <news@shop.example>",
                "to": ["Ada Lovelace <ada@example.com>"],
                "subject": "Two days left",
                "text": "Hello Ada",
                "html": "<p>Hello Ada</p>",
                "reply_to": ["help@shop.example"],
                "headers": EXAMPLE.headers | {"X-Metadata": '{"propensity":"0.25"}'},
                "tags": [
                    {"name": "campaign", "value": "spring"},
                    {"name": "variant", "value": "B"},
                    {"name": "wave", "value": "3"},
                    {"name": "intent", "value": "in-01HZX4"},
                ],
            },
            "answers": [
                (
                    {"status": 200, "body": '{"id":"49a3999c-0ce1-4ea6-ab68-afcd6dc2e794"}'},
                    [{"kind": "sent", "message_id": "49a3999c-0ce1-4ea6-ab68-afcd6dc2e794"}],
                ),
                (
                    {
                        "status": 422,
                        "body": '{"statusCode":422,"name":"validation_error","message":"Invalid `to` field. The email address needs to '
                        'follow the `email@example.com` or `Name <email@example.com>` format."}',
                    },
                    [{"kind": "refused", "code": "422"}],
                ),
                (
                    {
                        "status": 409,
                        "body": '{"statusCode":409,"name":"concurrent_idempotent_requests","message":"Same idempotency key used while '
                        'original request is still in progress."}',
                    },
                    [{"kind": "unknown", "code": "409"}],
                ),
                (
                    {"status": 403, "body": '{"statusCode":403,"name":"invalid_api_key","message":"API key is invalid"}'},
                    [{"kind": "later", "code": "403", "detail": "invalid_api_key: API key is invalid"}],
                ),
                (
                    {"status": 400, "body": '{"statusCode":400,"name":"validation_error","message":"API key is invalid"}'},
                    [{"kind": "later", "code": "400"}],
                ),
                (
                    {
                        "status": 429,
                        "headers": {"retry-after": "7"},
                        "body": '{"statusCode":429,"name":"rate_limit_exceeded","message":"Too many requests."}',
                    },
                    [{"kind": "later", "code": "429", "detail": "rate_limit_exceeded: Too many requests.", "retry_s": 7.0}],
                ),
                (
                    {"status": 500, "body": '{"statusCode":500,"name":"application_error","message":"An unexpected error occurred."}'},
                    [{"kind": "unknown", "code": "500"}],
                ),
                ({"status": 200, "body": "{}"}, [{"kind": "unknown", "code": "200"}]),
            ],
        },
    )


def _sender(name: str, address: str) -> str:
    """Return the sender in Resend's own form: name and angle brackets, nothing quoted, nothing encoded."""
    words = " ".join(re.sub(r'[<>"\\,;:@()\[\]]', " ", name).split())
    return f"{words} <{address}>" if words else address


PLUGIN = Resend
