"""Channel `ses`: Amazon SES, API version 2."""

from __future__ import annotations

from typing import Annotated, ClassVar
from urllib.parse import urlsplit

import msgspec

from . import channel
from ._mailbox import ascii_domain, encoded, mailbox
from ._named_tags import METADATA_HEADER, carried
from ._sigv4 import amz_date, authorization
from .channel import EXAMPLE, Answer, Call, Channel, Message, Outcome, decoded, retry_after_s, text_at, unsettled

PATH = "/v2/email/outbound-emails"

# Errors after which nothing went and the recipient is not to blame. Some of the credentials' come with 400.
THROTTLED = ("TooManyRequestsException", "LimitExceededException", "ThrottlingException", "Throttling")
ACCOUNT = ("SendingPausedException", "AccountSuspendedException", "MailFromDomainNotVerifiedException", "NotFoundException")
CREDENTIALS = (
    "AccessDeniedException", "ExpiredTokenException", "IncompleteSignature", "IncompleteSignatureException", "InvalidSignatureException",
    "MissingAuthenticationToken", "MissingAuthenticationTokenException", "NotAuthorized", "RequestExpired", "UnrecognizedClientException",
)  # fmt: skip


class Settings(channel.Settings, kw_only=True):
    access_key_id: str  # of a user or role that may `ses:SendEmail`
    secret_access_key: str
    session_token: str = ""  # with temporary credentials only
    region: Annotated[str, msgspec.Meta(pattern=r"^[a-z]{2}(-[a-z]+)+-\d+$")]  # eu-central-1
    configuration_set: str = ""  # whose event destination is the SNS topic of source `ses`; empty: the identity's default one
    url: str = ""  # empty: https://email.REGION.amazonaws.com; set it for FIPS or VPC endpoints
    per_second: Annotated[float, msgspec.Meta(gt=0)] = 14.0  # what a new account may send; the console shows an account's own rate


class SES(Channel):
    """`SendEmail` of API v2 (https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_SendEmail.html), signed with Signature Version 4.

    One message a call. Message tags come back as `mail.tags` of SES's events, without a header that the recipient sees, but they may hold
    only ASCII letters, digits, `_` and `-`, at most 256. Other values travel in the header `X-Metadata` (see `_named_tags.py`). Header
    values may be printable ASCII only, so others become encoded words; SES makes `Message-ID` and `Date` itself. Addresses have to be
    ASCII, domains in punycode. SES has no idempotency key. An error's name stands in the header `x-amzn-ErrorType`.
    """

    label: ClassVar[str] = "Amazon SES"
    doc: ClassVar[str] = (
        "Campaign, variant, wave and intent travel as `EmailTags`, what these cannot hold in the header `X-Metadata`. Tags come back only "
        "in events that a configuration set publishes, not in feedback notifications; it also says what is tracked."
    )
    source: ClassVar[str] = "ses"
    Settings = Settings

    def call(self, messages: list[Message], now_us: int) -> Call:
        (message,) = messages
        settings: Settings = self.settings
        end = ".cn" if settings.region.startswith("cn-") else ""
        url = settings.url or f"https://email.{settings.region}.amazonaws.com{end}"
        body = msgspec.json.encode(_email(message, settings.configuration_set))
        headers = {"content-type": "application/json", "host": urlsplit(url).netloc, "x-amz-date": amz_date(now_us)}
        if settings.session_token:
            headers["x-amz-security-token"] = settings.session_token
        headers["authorization"] = authorization(
            "POST", PATH, headers, body, region=settings.region, service="ses", access_key_id=settings.access_key_id,
            secret_access_key=settings.secret_access_key,
        )  # fmt: skip
        return Call(url=f"{url}{PATH}", headers=headers, body=body)

    def outcomes(self, messages: list[Message], answer: Answer) -> list[Outcome]:
        found = decoded(answer.body)
        message_id = text_at(found, "MessageId")
        if answer.status == 200 and message_id:
            return [Outcome(kind="sent", message_id=message_id)] * len(messages)
        name, said = _error(found, answer)
        detail = (f"{name}: {said}" if name and said else name or said)[:500]
        # In the sandbox, and with a sender that is not verified, SES calls the message rejected; this says nothing about the message.
        ours = name == "MessageRejected" and "not verified" in said
        if 400 <= answer.status < 500 and (ours or name in THROTTLED + ACCOUNT + CREDENTIALS):
            return [Outcome(kind="later", code=str(answer.status), detail=detail, retry_s=retry_after_s(answer))] * len(messages)
        return unsettled(messages, answer, detail)

    EXAMPLES = (
        {
            "settings": {
                "access_key_id": "AKIDEXAMPLE", "secret_access_key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "region": "eu-central-1",
                "configuration_set": "campaigns",
            },
            "messages": [EXAMPLE],
            "url": "https://email.eu-central-1.amazonaws.com/v2/email/outbound-emails",
            "headers": {"content-type": "application/json", "host": "email.eu-central-1.amazonaws.com"},
            "json": {
                "FromEmailAddress": "The Shop <news@shop.example>",
                "Destination": {"ToAddresses": ["Ada Lovelace <ada@example.com>"]},
                "ReplyToAddresses": ["help@shop.example"],
                "Content": {
                    "Simple": {
                        "Subject": {"Data": "Two days left", "Charset": "UTF-8"},
                        "Body": {
                            "Text": {"Data": "Hello Ada", "Charset": "UTF-8"},
                            "Html": {"Data": "<p>Hello Ada</p>", "Charset": "UTF-8"},
                        },
                        "Headers": [
                            {"Name": "List-Unsubscribe", "Value": "<https://m.example/u/x>"},
                            {"Name": "List-Unsubscribe-Post", "Value": "List-Unsubscribe=One-Click"},
                            {"Name": "X-Metadata", "Value": '{"propensity":"0.25"}'},
                        ],
                    }
                },
                "EmailTags": [
                    {"Name": "campaign", "Value": "spring"},
                    {"Name": "variant", "Value": "B"},
                    {"Name": "wave", "Value": "3"},
                    {"Name": "intent", "Value": "in-01HZX4"},
                ],
                "ConfigurationSetName": "campaigns",
            },
            "answers": [
                (
                    {"status": 200, "body": '{"MessageId":"0107019abc-1-000000"}'},
                    [{"kind": "sent", "message_id": "0107019abc-1-000000"}],
                ),
                (
                    {
                        "status": 400,
                        "headers": {"x-amzn-errortype": "BadRequestException"},
                        "body": '{"message":"Domain contains illegal character"}',
                    },
                    [{"kind": "refused", "code": "400", "detail": "BadRequestException: Domain contains illegal character"}],
                ),
                (
                    {
                        "status": 400,
                        "headers": {"x-amzn-errortype": "MessageRejected:http://internal.amazon.com/coral/com.amazonaws.sesv2/"},
                        "body": '{"message":"Email address is not verified. The following identities failed the check in region '
                        'EU-CENTRAL-1: news@shop.example"}',
                    },
                    [{"kind": "later", "code": "400"}],
                ),
                (
                    {
                        "status": 429,
                        "headers": {"x-amzn-errortype": "TooManyRequestsException"},
                        "body": '{"message":"Maximum sending rate exceeded."}',
                    },
                    [{"kind": "later", "code": "429", "detail": "TooManyRequestsException: Maximum sending rate exceeded."}],
                ),
                (
                    {"status": 400, "headers": {"x-amzn-errortype": "SendingPausedException", "retry-after": "7"}, "body": "{}"},
                    [{"kind": "later", "code": "400", "detail": "SendingPausedException", "retry_s": 7.0}],
                ),
                (
                    {
                        "status": 400,
                        "body": '{"__type":"com.amazonaws.sesv2#LimitExceededException","message":"Daily message quota exceeded."}',
                    },
                    [{"kind": "later", "code": "400", "detail": "LimitExceededException: Daily message quota exceeded."}],
                ),
                (
                    {
                        "status": 403,
                        "headers": {"x-amzn-errortype": "UnrecognizedClientException"},
                        "body": '{"message":"The security token included in the request is invalid."}',
                    },
                    [{"kind": "later", "code": "403"}],
                ),
                ({"status": 500, "headers": {"x-amzn-errortype": "InternalFailure"}}, [{"kind": "unknown", "code": "500"}]),
                ({"status": 503, "headers": {"x-amzn-errortype": "ThrottlingException"}}, [{"kind": "unknown", "code": "503"}]),
                ({"status": 200, "body": "{}"}, [{"kind": "unknown", "code": "200"}]),
            ],
        },
    )  # fmt: skip


def _email(message: Message, configuration_set: str) -> dict:
    """Return the request's body."""
    tags, metadata = carried(message.custom())
    parts = {"Text": message.text} | ({"Html": message.html} if message.html else {})
    simple = {
        "Subject": {"Data": message.subject, "Charset": "UTF-8"},
        "Body": {name: {"Data": text, "Charset": "UTF-8"} for name, text in parts.items()},
    }
    # A header of this name from elsewhere would be read in place of the tags.
    headers = {name: value for name, value in message.headers.items() if name.lower() != METADATA_HEADER.lower()} | metadata
    if headers:
        simple["Headers"] = [{"Name": name, "Value": _printable(value)} for name, value in headers.items()]
    email = {
        "FromEmailAddress": mailbox(message.from_name, message.from_address),
        "Destination": {"ToAddresses": [mailbox(message.to_name, message.to)]},
        "Content": {"Simple": simple},
        "EmailTags": [{"Name": name, "Value": value} for name, value in tags.items()],
    }
    if message.reply_to:
        email["ReplyToAddresses"] = [ascii_domain(message.reply_to)]
    if configuration_set:
        email["ConfigurationSetName"] = configuration_set
    return email


def _printable(value: str) -> str:
    return value if value.isascii() and value.isprintable() else encoded(value)


def _error(found: object, answer: Answer) -> tuple[str, str]:
    """Return the error's name and message. In the header a URL may follow the name, in the body a namespace may precede it."""
    name = answer.headers.get("x-amzn-errortype", "") or text_at(found, "__type") or text_at(found, "code")
    return channel.clean(name.split(":")[0].rpartition("#")[2])[:100], text_at(found, "message") or text_at(found, "Message")


PLUGIN = SES
