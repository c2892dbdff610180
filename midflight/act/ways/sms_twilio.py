"""Way `sms_twilio`."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Annotated, ClassVar
from urllib.parse import urlencode

import msgspec

from ...kit.errors import ConfigError, MidflightError
from . import way
from .way import EXAMPLE, Action, Answer, Call, Outcome, Text, Way, decoded, text_at, unsettled

validity_s_max = 36_000


class Settings(way.Settings, kw_only=True):
    account_sid: str  # of the account, AC...
    auth_token: str = ""  # of the account; or an API key below
    api_key_sid: str = ""  # of an API key, SK..., in place of the auth token
    api_key_secret: str = ""
    from_number: str = ""  # one of the account's numbers, +44...; or the service below
    messaging_service_sid: str = ""  # of a messaging service, MG..., in place of a number
    status_url: str = ""  # where Twilio reports delivery: the door's public address, e.g. https://m.example/in/twilio
    url: str = "https://api.twilio.com"  # https://api.ie1.twilio.com for the region in Ireland

    def __post_init__(self) -> None:
        if not re.fullmatch(r"AC[0-9a-fA-F]{32}", self.account_sid):
            raise ConfigError("`account_sid`", expected="AC and 32 hexadecimal digits", got=self.account_sid, where="account_sid")
        if bool(self.auth_token) == bool(self.api_key_sid and self.api_key_secret):
            raise ConfigError("Credentials", expected="either `auth_token`, or `api_key_sid` and `api_key_secret`", where="auth_token")
        if bool(self.from_number) == bool(self.messaging_service_sid):
            raise ConfigError("The sender", expected="either `from_number` or `messaging_service_sid`", where="from_number")


class Fields(way.Fields, kw_only=True):
    to: Annotated[str, Text("line", 40)]  # the phone number with its country, `{{ phone }}`
    body: Annotated[str, Text("plain", 1600)]  # the message; more than 160 letters are charged as several


class SmsTwilio(Way):
    """`POST /2010-04-01/Accounts/{sid}/Messages.json` (https://www.twilio.com/docs/messaging/api/message-resource).

    Twilio has no idempotency key for messages. The action's id travels in the status callback's URL, so that a report settles what is
    unknown (https://www.twilio.com/docs/messaging/guides/outbound-message-status-in-status-callbacks). A message that expires is given up
    by Twilio too (``ValidityPeriod``).
    """

    label: ClassVar[str] = "SMS by Twilio"
    reaches_people: ClassVar[bool] = True
    doc: ClassVar[str] = "A text message. Twilio's report of its delivery settles what became of it. It cannot be taken back."
    Settings = Settings
    Fields = Fields

    def calls(self, actions: list[Action], now_us: int) -> Call:
        (action,) = actions
        fields: Fields = self.said(action)
        settings: Settings = self.settings
        if not fields.body.strip():
            raise MidflightError("A text message without text", where="body")
        form = {"To": phone(fields.to), "Body": fields.body}
        form |= {"From": settings.from_number} if settings.from_number else {"MessagingServiceSid": settings.messaging_service_sid}
        if settings.status_url:
            joint = "&" if "?" in settings.status_url else "?"
            form["StatusCallback"] = settings.status_url + joint + urlencode({"action": action.id})
        if action.expires_us:
            form["ValidityPeriod"] = str(min(max((action.expires_us - now_us) // 1_000_000, 1), validity_s_max))
        user, password = (
            (settings.api_key_sid, settings.api_key_secret) if settings.api_key_sid else (settings.account_sid, settings.auth_token)
        )
        basic = base64.b64encode(f"{user}:{password}".encode()).decode()
        headers = {"authorization": f"Basic {basic}", "content-type": "application/x-www-form-urlencoded"}
        url = f"{settings.url}/2010-04-01/Accounts/{settings.account_sid}/Messages.json"
        return Call(url=url, headers=headers, body=urlencode(form).encode())

    def outcomes(self, actions: list[Action], answer: Answer) -> list[Outcome]:
        body = decoded(answer.body)
        if answer.status in (200, 201) and (sid := text_at(body, "sid")):
            if text_at(body, "status") in FAILED:
                return [Outcome(kind="refused", message_id=sid, code=text_at(body, "error_code"), detail=text_at(body, "error_message"))]
            return [Outcome(kind="sent", message_id=sid)]
        code, said = text_at(body, "code"), text_at(body, "message")
        (outcome,) = unsettled(actions, answer, said)
        return [msgspec.structs.replace(outcome, code=code or outcome.code)]

    EXAMPLES = (
        {
            "settings": {
                "account_sid": "AC" + "0" * 32, "auth_token": "x", "from_number": "+15005550006", "status_url": "https://m.example/in/twilio",
            },
            "actions": [msgspec.structs.replace(EXAMPLE, fields={"to": "+44 7700 900123", "body": "Two days left, Ada"})],
            "url": "https://api.twilio.com/2010-04-01/Accounts/" + "AC" + "0" * 32 + "/Messages.json",
            "headers": {"content-type": "application/x-www-form-urlencoded"},
            "form": [
                ("To", "+447700900123"), ("Body", "Two days left, Ada"), ("From", "+15005550006"),
                ("StatusCallback", "https://m.example/in/twilio?action=ac-01HZX4"),
            ],
            "answers": [
                ({"status": 201, "body": '{"sid":"SM1","status":"queued"}'}, [{"kind": "sent", "message_id": "SM1"}]),
                ({"status": 201, "body": '{"sid":"SM1","status":"failed","error_code":30007}'}, [{"kind": "refused", "code": "30007"}]),
                (
                    {"status": 400, "body": '{"code":21610,"message":"Attempt to send to unsubscribed recipient"}'},
                    [{"kind": "refused", "code": "21610", "detail": "Attempt to send to unsubscribed recipient"}],
                ),
                ({"status": 401, "body": '{"code":20003,"message":"Authenticate"}'}, [{"kind": "later", "code": "20003"}]),
                ({"status": 429, "body": '{"code":20429,"message":"Too Many Requests"}'}, [{"kind": "later", "code": "20429"}]),
                ({"status": 201, "body": "{"}, [{"kind": "unknown", "code": "201"}]),
                ({"status": 500}, [{"kind": "unknown", "code": "500"}]),
            ],
        },
    )  # fmt: skip


FAILED = ("failed", "undelivered", "canceled")
_GONE = ("queued", "accepted", "sending", "sent", "delivered", "read", "partially_delivered")


def status_outcome(form: Mapping[str, str]) -> Outcome | None:
    """Return what a status callback's form says of a message, or None where it says nothing new."""
    status, sid = form.get("MessageStatus", ""), form.get("MessageSid", "")
    if status in _GONE:
        return Outcome(kind="sent", message_id=sid, code=status)
    if status in FAILED:
        return Outcome(kind="refused", message_id=sid, code=form.get("ErrorCode", "") or status, detail=status)
    return None


def status_is_signed(auth_token: str, url: str, form: Mapping[str, str], given: str) -> bool:
    """Tell whether a callback is Twilio's: HMAC-SHA1 over the URL as called and the sorted fields
    (https://www.twilio.com/docs/usage/webhooks/webhooks-security)."""
    content = url + "".join(f"{name}{form[name]}" for name in sorted(form))
    wanted = base64.b64encode(hmac.new(auth_token.encode(), content.encode(), hashlib.sha1).digest())
    return hmac.compare_digest(wanted, given.encode("utf-8", "replace"))


_PHONE = re.compile(r"\+[1-9][0-9]{6,14}")
_BETWEEN = re.compile(r"[\s().\u2010-\u2015/-]")


def phone(text: str) -> str:
    """Return a phone number as E.164 writes it. Raises MidflightError for one without its country."""
    number = _BETWEEN.sub("", text)
    number = "+" + number[2:] if number.startswith("00") else number
    if not _PHONE.fullmatch(number):
        raise MidflightError("A phone number", expected="the country and the number: +44 7700 900123", got=text[:40], where="to")
    return number


PLUGIN = SmsTwilio
