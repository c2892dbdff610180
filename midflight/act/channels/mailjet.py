"""Channel `mailjet`."""

from __future__ import annotations

from base64 import b64encode
from typing import ClassVar

import msgspec

from . import channel
from .channel import EXAMPLE, SECOND, Answer, Call, Channel, Message, Outcome, at, decoded, list_at, text_at, unsettled

TOO_LARGE = "mj-0011"


class Settings(channel.Settings, kw_only=True):
    api_key: str
    secret_key: str
    url: str = "https://api.mailjet.com"  # https://api.us.mailjet.com for an account in the US


class Mailjet(Channel):
    """`POST /v3.1/send` (https://dev.mailjet.com/email/reference/send-emails/#v3_1_post_send).

    Up to 50 messages a call, each with its own status, in the order of the call: those without errors go although others do not
    (https://dev.mailjet.com/email/guides/send-api-v31/#send-in-bulk), and HTTP then says 400 all the same. There is no idempotency key.
    """

    label: ClassVar[str] = "Mailjet"
    doc: ClassVar[str] = (
        "The intent travels as `CustomID`, and with campaign, variant and wave as JSON in `EventPayload`. "
        "Open and click tracking follow the account's settings."
    )
    source: ClassVar[str] = "mailjet"
    batch_max: ClassVar[int] = 50
    Settings = Settings

    def call(self, messages: list[Message], now_us: int) -> Call:
        settings: Settings = self.settings
        token = b64encode(f"{settings.api_key}:{settings.secret_key}".encode()).decode()
        headers = {"authorization": f"Basic {token}", "content-type": "application/json"}
        body = msgspec.json.encode({"Messages": [_message(message) for message in messages]})
        return Call(url=f"{settings.url}/v3.1/send", headers=headers, body=body)

    def outcomes(self, messages: list[Message], answer: Answer) -> list[Outcome]:
        found = decoded(answer.body)
        results = list_at(found, "Messages")
        if answer.status in (200, 201) or (400 <= answer.status < 500 and answer.status != 408 and results):
            if len(results) != len(messages):
                return [Outcome(kind="unknown", code=str(answer.status), detail="Not one result for each message")] * len(messages)
            return [_outcome(message, result) for message, result in zip(messages, results, strict=True)]
        code, detail = text_at(found, "ErrorCode"), text_at(found, "ErrorMessage")
        if len(messages) > 1 and 400 <= answer.status < 500 and (code == TOO_LARGE or answer.status == 413):
            # They were too large together, which says nothing about each of them.
            return [Outcome(kind="later", code=code or "413", detail=detail)] * len(messages)
        return unsettled(messages, answer, f"{detail} ({code})" if code else detail)

    EXAMPLES = (
        {
            "settings": {"api_key": "k", "secret_key": "s"},
            "messages": [EXAMPLE, SECOND],
            "url": "https://api.mailjet.com/v3.1/send",
            "headers": {"authorization": "Basic azpz", "content-type": "application/json"},
            "json": {
                "Messages": [
                    {
                        "From": {"Email": "news@shop.example", "Name": "The Shop"},
                        "To": [{"Email": "ada@example.com", "Name": "Ada Lovelace"}],
                        "ReplyTo": {"Email": "help@shop.example"},
                        "Subject": "Two days left",
                        "TextPart": "Hello Ada",
                        "HTMLPart": "<p>Hello Ada</p>",
                        "CustomID": "in-01HZX4",
                        "EventPayload": '{"campaign":"spring","variant":"B","wave":"3","propensity":"0.25","intent":"in-01HZX4"}',
                        "Headers": EXAMPLE.headers,
                    },
                    {
                        "From": {"Email": "news@shop.example", "Name": "The Shop"},
                        "To": [{"Email": "bob@example.com"}],
                        "ReplyTo": {"Email": "help@shop.example"},
                        "Subject": "Two days left",
                        "TextPart": "Hello Bob",
                        "HTMLPart": "<p>Hello Bob</p>",
                        "CustomID": "in-01HZX5",
                        "EventPayload": '{"campaign":"spring","variant":"B","wave":"3","propensity":"0.25","intent":"in-01HZX5"}',
                        "Headers": SECOND.headers,
                    },
                ]
            },
            "answers": [
                (
                    {
                        "status": 200,
                        "body": '{"Messages":[{"Status":"success","CustomID":"in-01HZX4","To":[{"Email":"ada@example.com","MessageUUID":'
                        '"u1","MessageID":1152921504606846977}],"Cc":[],"Bcc":[]},{"Status":"success","CustomID":"in-01HZX5","To":[{"Email":'
                        '"bob@example.com","MessageUUID":"u2","MessageID":1152921504606846978}],"Cc":[],"Bcc":[]}]}',
                    },
                    [{"kind": "sent", "message_id": "1152921504606846977"}, {"kind": "sent", "message_id": "1152921504606846978"}],
                ),
                (
                    {
                        "status": 400,
                        "body": '{"Messages":[{"Errors":[{"ErrorIdentifier":"2978b962","ErrorCode":"mj-0013","StatusCode":400,'
                        '"ErrorMessage":"\\"ada\\" is an invalid email address.","ErrorRelatedTo":["To[0].Email"]}],"Status":"error"},'
                        '{"Status":"success","CustomID":"in-01HZX5","To":[{"Email":"bob@example.com","MessageUUID":"u2","MessageID":7}],"Cc":[],"Bcc":[]}]}',
                    },
                    [
                        {"kind": "refused", "code": "mj-0013", "detail": '"ada" is an invalid email address. (To[0].Email)'},
                        {"kind": "sent", "message_id": "7"},
                    ],
                ),
                (
                    {
                        "status": 403,
                        "body": '{"Messages":[{"Status":"error","Errors":[{"ErrorCode":"send-0008","StatusCode":403,"ErrorMessage":"The '
                        'sender is not authorized.","ErrorRelatedTo":["From"]}]},{"Status":"error","Errors":[{"ErrorCode":"x",'
                        '"StatusCode":500}]}]}',
                    },
                    [{"kind": "later", "code": "send-0008"}, {"kind": "unknown", "code": "x"}],
                ),
                (
                    {"status": 200, "body": '{"Messages":[{"Status":"success","CustomID":"in-01HZX4","To":[{"MessageID":1}]}]}'},
                    [{"kind": "unknown"}, {"kind": "unknown"}],
                ),
                (
                    {
                        "status": 400,
                        "body": '{"ErrorIdentifier":"06df1144","ErrorCode":"mj-0002","ErrorMessage":"Malformed JSON","StatusCode":400}',
                    },
                    [{"kind": "refused", "detail": "Malformed JSON (mj-0002)"}] * 2,
                ),
                (
                    {"status": 400, "body": '{"ErrorCode":"mj-0011","ErrorMessage":"Too large","StatusCode":400}'},
                    [{"kind": "later", "code": "mj-0011"}] * 2,
                ),
                (
                    {"status": 401, "body": '{"ErrorMessage":"API key authentication/authorization failure.","StatusCode":401}'},
                    [{"kind": "later", "code": "401", "detail": "API key authentication/authorization failure."}] * 2,
                ),
                ({"status": 429, "headers": {"retry-after": "7"}}, [{"kind": "later", "code": "429", "retry_s": 7.0}] * 2),
                ({"status": 500, "body": '{"ErrorIdentifier":"D4DF574C"}'}, [{"kind": "unknown", "code": "500"}] * 2),
            ],
        },
    )


def _message(message: Message) -> dict:
    made = {
        "From": _person(message.from_address, message.from_name),
        "To": [_person(message.to, message.to_name)],
        "Subject": message.subject,
        "TextPart": message.text,
        "CustomID": message.intent,
        "EventPayload": msgspec.json.encode(message.custom()).decode(),
    }
    if message.reply_to:
        made["ReplyTo"] = {"Email": message.reply_to}
    if message.html:
        made["HTMLPart"] = message.html
    if message.headers:
        made["Headers"] = message.headers
    return made


def _person(email: str, name: str) -> dict[str, str]:
    return {"Email": email, "Name": name} if name else {"Email": email}


def _outcome(message: Message, result: object) -> Outcome:
    """Return what one entry of `Messages` says. Mailjet gives our id back, so that one for another message is noticed."""
    if text_at(result, "CustomID") not in ("", message.intent):
        return Outcome(kind="unknown", detail="The result is another message's")
    message_id = text_at(result, "To", 0, "MessageID") or text_at(result, "To", 0, "MessageUUID")
    if text_at(result, "Status") == "success" and message_id:
        return Outcome(kind="sent", message_id=message_id)
    errors = list_at(result, "Errors")
    code, detail = text_at(errors, 0, "ErrorCode"), "; ".join(map(_error, errors))[:500]
    statuses = [at(error, "StatusCode") for error in errors]
    if text_at(result, "Status") != "error" or not statuses or not all(type(s) is int and 400 <= s < 500 and s != 408 for s in statuses):
        return Outcome(kind="unknown", code=code, detail=detail)
    # A sender that is not allowed, or an account that is stopped, can be mended.
    return Outcome(kind="later" if {401, 403, 429}.intersection(statuses) else "refused", code=code, detail=detail)


def _error(error: object) -> str:
    about = ", ".join(part for part in (text_at(part) for part in list_at(error, "ErrorRelatedTo")) if part)
    return text_at(error, "ErrorMessage") + (f" ({about})" if about else "")


PLUGIN = Mailjet
