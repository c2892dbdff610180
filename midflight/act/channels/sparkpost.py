"""Channel `sparkpost`."""

from __future__ import annotations

import re
from typing import ClassVar

import msgspec

from . import channel
from .channel import EXAMPLE, Answer, Call, Channel, Message, Outcome, decoded, list_at, retry_after_s, text_at, unsettled

campaign_id_bytes_max = 64

# Codes of refusals that are the account's trouble or pass by themselves: no resources now, tracking domain, sending domain.
LATER = ("1502", "2009", "2010", "2011", "2012", "7000", "7001")
BRACES = {"{": "brace_open", "}": "brace_close"}


class Settings(channel.Settings, kw_only=True):
    api_key: str  # with the permission "Transmissions: Read/Write"
    url: str = "https://api.sparkpost.com"  # https://api.eu.sparkpost.com for an account in the EU
    subaccount: str = ""  # the number of a subaccount that sends


class SparkPost(Channel):
    """`POST /api/v1/transmissions` (https://developers.sparkpost.com/api/transmissions/), to one recipient.

    Transmissions to several share one content and answer with totals. To one recipient SparkPost makes the message before it answers, so
    that a suppressed address is refused at once: 400 with code 1902, beside a `total_accepted_recipients` of 1 that means nothing.
    SparkPost's template language works in everything that is sent (https://developers.sparkpost.com/api/template-language/). Two braces
    that stand together would open or close an expression; each of them is written as an expression that gives a brace. The answer has the
    id of the transmission, and events have another one for the message: the intent in `rcpt_meta` joins them. There is no idempotency key.
    """

    label: ClassVar[str] = "SparkPost"
    doc: ClassVar[str] = (
        "Campaign, variant, wave and intent travel as the recipient's `metadata`, the campaign also as `campaign_id` where it has at most "
        "64 bytes. Open and click tracking follow the account's settings."
    )
    source: ClassVar[str] = "sparkpost"
    Settings = Settings

    def call(self, messages: list[Message], now_us: int) -> Call:
        (message,) = messages
        settings: Settings = self.settings
        sender = {"email": message.from_address} | ({"name": _literal(message.from_name)} if message.from_name else {})
        content = {"from": sender, "subject": _literal(message.subject), "text": _literal(message.text)}
        if message.html:
            content["html"] = _literal(message.html)
        if message.reply_to:
            content["reply_to"] = message.reply_to
        if message.headers:
            content["headers"] = {name: _literal(value) for name, value in message.headers.items()}
        to = {"email": message.to} | ({"name": message.to_name} if message.to_name else {})
        body = {
            "recipients": [{"address": to, "metadata": message.custom()}],
            "content": content,
            "substitution_data": {name: brace for brace, name in BRACES.items()},
        }
        if 0 < len(message.campaign.encode()) <= campaign_id_bytes_max:
            body["campaign_id"] = message.campaign
        headers = {"authorization": settings.api_key, "content-type": "application/json"}
        if settings.subaccount:
            headers["x-msys-subaccount"] = settings.subaccount
        return Call(url=f"{settings.url}/api/v1/transmissions", headers=headers, body=msgspec.json.encode(body))

    def outcomes(self, messages: list[Message], answer: Answer) -> list[Outcome]:
        found = decoded(answer.body)
        errors = list_at(found, "errors")
        code = text_at(errors, 0, "code")
        detail = "; ".join(filter(None, (_error(error) for error in errors)))
        totals = tuple(text_at(found, "results", f"total_{word}_recipients") for word in ("accepted", "rejected"))
        if answer.status == 200 and not errors and totals == ("1", "0"):
            return [Outcome(kind="sent", message_id=text_at(found, "results", "id"))] * len(messages)
        # 420 is SparkPost's own: the account's or the sandbox domain's sending limit.
        if answer.status == 420 or (answer.status == 400 and code in LATER):
            return [Outcome(kind="later", code=code or "420", detail=detail[:500], retry_s=retry_after_s(answer))] * len(messages)
        return unsettled(messages, answer, detail[:500])

    EXAMPLES = (
        {
            "settings": {"api_key": "sp-x", "subaccount": "7"},
            "messages": [EXAMPLE],
            "url": "https://api.sparkpost.com/api/v1/transmissions",
            "headers": {"authorization": "sp-x", "content-type": "application/json", "x-msys-subaccount": "7"},
            "json": {
                "recipients": [{"address": {"email": "ada@example.com", "name": "Ada Lovelace"}, "metadata": EXAMPLE.custom()}],
                "content": {
                    "from": {"email": "news@shop.example", "name": "The Shop"},
                    "subject": "Two days left",
                    "text": "Hello Ada",
                    "html": "<p>Hello Ada</p>",
                    "reply_to": "help@shop.example",
                    "headers": EXAMPLE.headers,
                },
                "substitution_data": {"brace_open": "{", "brace_close": "}"},
                "campaign_id": "spring",
            },
            "answers": [
                (
                    {
                        "status": 200,
                        "body": '{"results":{"total_rejected_recipients":0,"total_accepted_recipients":1,"id":"11668787484950529"}}',
                    },
                    [{"kind": "sent", "message_id": "11668787484950529"}],
                ),
                (
                    {
                        "status": 400,
                        "body": '{"errors":[{"code":"1902","message":"Message generation rejected","description":"recipient address was '
                        'suppressed due to customer policy"}],'
                        '"results":{"total_rejected_recipients":0,"id":"102593777022651116","total_accepted_recipients":1}}',
                    },
                    [
                        {
                            "kind": "refused",
                            "code": "400",
                            "detail": "1902 Message generation rejected: recipient address was suppressed due to customer policy",
                        }
                    ],
                ),
                (
                    {"status": 200, "body": '{"results":{"total_rejected_recipients":1,"total_accepted_recipients":0,"id":"1"}}'},
                    [{"kind": "unknown", "code": "200"}],
                ),
                (
                    {"status": 400, "body": '{"errors":[{"message":"Invalid domain","description":"Unconfigured","code":"7001"}]}'},
                    [{"kind": "later", "code": "7001", "detail": "7001 Invalid domain: Unconfigured"}],
                ),
                (
                    {"status": 420, "body": '{"errors":[{"message":"Exceed Sending Limit (hourly)","code":"2101"}]}'},
                    [{"kind": "later", "code": "2101", "detail": "2101 Exceed Sending Limit (hourly)"}],
                ),
                ({"status": 403, "body": '{"errors":[{"message":"Forbidden."}]}'}, [{"kind": "later", "detail": "Forbidden."}]),
                ({"status": 429, "headers": {"retry-after": "7"}}, [{"kind": "later", "code": "429", "retry_s": 7.0}]),
                ({"status": 500}, [{"kind": "unknown", "code": "500"}]),
            ],
        },
    )


def _literal(text: str) -> str:
    """Return text that SparkPost's template language leaves as it is."""
    return re.sub(r"[{}]{2,}", lambda run: "".join(f"{{{{{BRACES[brace]}}}}}" for brace in run[0]), text)


def _error(error: object) -> str:
    """Return one of SparkPost's errors as a line."""
    code, message, more = (text_at(error, name) for name in ("code", "message", "description"))
    return f"{code} {message}".strip() + (f": {more}" if more else "")


PLUGIN = SparkPost
