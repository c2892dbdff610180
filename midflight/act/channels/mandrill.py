"""Channel `mandrill`."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from . import channel
from .channel import EXAMPLE, Answer, Call, Channel, Message, Outcome, at, decoded, list_at, text_at, unsettled

# Mandrill's errors under which nothing was accepted. `GeneralError` ("an unexpected error occurred") is none of them.
REFUSALS = ("ValidationError",)
ACCOUNT = ("Invalid_Key", "PaymentRequired", "Unknown_Subaccount", "PoorReputation")  # not the recipient's fault, and can be mended
TAKEN = ("sent", "queued", "scheduled")
# Reasons for a rejection that are the sender's: the domain has no DKIM, the address may not send, the account is still being tried out.
SENDERS = ("unsigned", "invalid-sender", "test-mode-limit")


class Settings(channel.Settings, kw_only=True):
    api_key: str
    url: str = "https://mandrillapp.com"
    subaccount: str = ""
    ip_pool: str = ""
    tags: list[str] = []  # for Mandrill's own statistics


class Mandrill(Channel):
    """`POST /api/1.0/messages/send` (https://mailchimp.com/developer/transactional/api/messages/send-new-message/).

    One message a call: several recipients of one call share subject, bodies and headers. The answer is a list with the status of each
    recipient. Errors are said in the body, in most cases with HTTP 500, also where nothing but the call was wrong. There is no
    idempotency key.
    """

    label: ClassVar[str] = "Mandrill (Mailchimp Transactional)"
    doc: ClassVar[str] = "Campaign, variant, wave and intent travel as `metadata`. Open and click tracking follow the account's settings."
    source: ClassVar[str] = "mandrill"
    Settings = Settings

    def call(self, messages: list[Message], now_us: int) -> Call:
        (message,) = messages
        settings: Settings = self.settings
        to = {"email": message.to, "type": "to"} | ({"name": message.to_name} if message.to_name else {})
        made = {
            "from_email": message.from_address,
            "to": [to],
            "subject": message.subject,
            "text": message.text,
            "headers": message.headers | ({"Reply-To": message.reply_to} if message.reply_to else {}),
            "metadata": message.custom(),
            "merge": False,  # merge tags in a text are text
        }
        if message.from_name:
            made["from_name"] = message.from_name
        if message.html:
            made["html"] = message.html
        if settings.subaccount:
            made["subaccount"] = settings.subaccount
        if settings.tags:
            made["tags"] = settings.tags
        body = {"key": settings.api_key, "message": made} | ({"ip_pool": settings.ip_pool} if settings.ip_pool else {})
        headers = {"content-type": "application/json"}
        return Call(url=f"{settings.url}/api/1.0/messages/send", headers=headers, body=msgspec.json.encode(body))

    def outcomes(self, messages: list[Message], answer: Answer) -> list[Outcome]:
        found = decoded(answer.body)
        if answer.status == 200:
            return [_outcome(found)]
        name, detail = text_at(found, "name"), text_at(found, "message")
        if answer.status >= 400 and text_at(found, "status") == "error" and name in REFUSALS + ACCOUNT:
            return [Outcome(kind="refused" if name in REFUSALS else "later", code=name, detail=detail)]
        return unsettled(messages, answer, f"{detail} ({name})" if name else "")

    EXAMPLES = (
        {
            "settings": {"api_key": "md-x"},
            "messages": [EXAMPLE],
            "url": "https://mandrillapp.com/api/1.0/messages/send",
            "headers": {"content-type": "application/json"},
            "json": {
                "key": "md-x",
                "message": {
                    "from_email": "news@shop.example",
                    "from_name": "The Shop",
                    "to": [{"email": "ada@example.com", "name": "Ada Lovelace", "type": "to"}],
                    "subject": "Two days left",
                    "text": "Hello Ada",
                    "html": "<p>Hello Ada</p>",
                    "headers": EXAMPLE.headers | {"Reply-To": "help@shop.example"},
                    "metadata": EXAMPLE.custom(),
                    "merge": False,
                },
            },
            "answers": [
                (
                    {"status": 200, "body": '[{"email":"ada@example.com","status":"sent","_id":"abc123abc123","reject_reason":null}]'},
                    [{"kind": "sent", "message_id": "abc123abc123"}],
                ),
                (
                    {"status": 200, "body": '[{"email":"ada@example.com","status":"queued","_id":"abc2","queued_reason":"attachments"}]'},
                    [{"kind": "sent", "message_id": "abc2"}],
                ),
                (
                    {"status": 200, "body": '[{"email":"ada@example.com","status":"rejected","_id":"abc3","reject_reason":"hard-bounce"}]'},
                    [{"kind": "refused", "message_id": "abc3", "code": "rejected", "detail": "hard-bounce"}],
                ),
                (
                    {"status": 200, "body": '[{"email":"ada@example.com","status":"rejected","_id":"abc4","reject_reason":"unsigned"}]'},
                    [{"kind": "later", "code": "rejected", "detail": "unsigned"}],
                ),
                (
                    {"status": 200, "body": '[{"email":"ada@@example.com","status":"invalid","_id":"abc5","reject_reason":null}]'},
                    [{"kind": "refused", "code": "invalid"}],
                ),
                (
                    {
                        "status": 500,
                        "body": '{"status":"error","code":-2,"name":"ValidationError","message":"You must specify a message value"}',
                    },
                    [{"kind": "refused", "code": "ValidationError", "detail": "You must specify a message value"}],
                ),
                (
                    {"status": 500, "body": '{"status":"error","code":-1,"name":"Invalid_Key","message":"Invalid API key"}'},
                    [{"kind": "later", "code": "Invalid_Key", "detail": "Invalid API key"}],
                ),
                (
                    {"status": 500, "body": '{"status":"error","code":12,"name":"Unknown_Subaccount","message":"No subaccount exists"}'},
                    [{"kind": "later", "code": "Unknown_Subaccount"}],
                ),
                (
                    {"status": 500, "body": '{"status":"error","code":-99,"name":"GeneralError","message":"An unexpected error occurred"}'},
                    [{"kind": "unknown", "code": "500", "detail": "An unexpected error occurred (GeneralError)"}],
                ),
                ({"status": 429, "headers": {"retry-after": "7"}}, [{"kind": "later", "code": "429", "retry_s": 7.0}]),
                ({"status": 502, "body": "<html>"}, [{"kind": "unknown", "code": "502"}]),
                ({"status": 200, "body": "[]"}, [{"kind": "unknown", "code": "200"}]),
            ],
        },
        {
            "settings": {"api_key": "md-x", "subaccount": "shop", "ip_pool": "Main Pool", "tags": ["newsletter"]},
            "messages": [msgspec.structs.replace(EXAMPLE, html="", from_name="", to_name="", reply_to="", headers={})],
            "url": "https://mandrillapp.com/api/1.0/messages/send",
            "json": {
                "key": "md-x",
                "message": {
                    "from_email": "news@shop.example",
                    "to": [{"email": "ada@example.com", "type": "to"}],
                    "subject": "Two days left",
                    "text": "Hello Ada",
                    "headers": {},
                    "metadata": EXAMPLE.custom(),
                    "merge": False,
                    "subaccount": "shop",
                    "tags": ["newsletter"],
                },
                "ip_pool": "Main Pool",
            },
            "answers": [
                (
                    {"status": 200, "body": '[{"email":"ada@example.com","status":"scheduled","_id":"abc6"}]'},
                    [{"kind": "sent", "message_id": "abc6"}],
                ),
                (
                    {"status": 500, "body": '{"status":"error","code":10,"name":"PaymentRequired","message":"x"}'},
                    [{"kind": "later", "code": "PaymentRequired"}],
                ),
                ({"status": 404}, [{"kind": "refused", "code": "404"}]),
                ({"status": 500, "body": '{"name":"ValidationError"}'}, [{"kind": "unknown", "code": "500"}]),
            ],
        },
    )


def _outcome(found: object) -> Outcome:
    """Return what the list of results says, which has to be about one recipient."""
    result = at(found, 0) if len(list_at(found)) == 1 else None
    status, reason, message_id = text_at(result, "status"), text_at(result, "reject_reason"), text_at(result, "_id")
    if status in TAKEN:
        return Outcome(kind="sent", message_id=message_id)
    if status in ("rejected", "invalid"):
        kind = "later" if reason in SENDERS else "refused"
        return Outcome(kind=kind, message_id=message_id, code=status, detail=reason)
    return Outcome(kind="unknown", code="200", detail=status)


PLUGIN = Mandrill
