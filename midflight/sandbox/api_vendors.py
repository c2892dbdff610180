"""The vendors whose APIs for sending are played: what each asks as credentials, takes out of a body, and says when something is wrong.

One vendor is one class. What it says was looked up on the page that its class names; where only others' recordings of answers were found,
the class says so.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from email.utils import getaddresses
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import ClassVar, NamedTuple
from urllib.parse import parse_qsl, unquote

import msgspec

from ..sources.source import bare_address
from .inbox import header_custom, mail_headers

idempotency_keys_max = 1_000_000
ADDRESS = re.compile(r"[^@\s<>,;\"]+@[A-Za-z0-9\u0080-\uffff](?:[A-Za-z0-9.\u0080-\uffff-]*[A-Za-z0-9\u0080-\uffff])?")
TAG = re.compile(r"[A-Za-z0-9_-]{1,256}")


class Asked(NamedTuple):
    """One complete request; header names are lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


class Reply(NamedTuple):
    """What a vendor answers."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class Letter(NamedTuple):
    """One message to one recipient, as a vendor understood it."""

    recipient: str
    custom: dict[str, object]
    message_id: str


class Refusal(Exception):
    """A request that a vendor does not take; it carries the answer."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply


class Vendor:
    """One vendor's API. ``key`` is the credential that it accepts; ``number`` gives numbers for message ids, ``tag`` sets runs apart."""

    name: ClassVar[str] = ""
    key: ClassVar[str] = ""
    paths: ClassVar[tuple[str, ...]] = ()
    wrong: ClassVar[int] = 400  # the status of a request that is wrong
    denied: ClassVar[int] = 401  # and of one without the right credentials

    def __init__(self, key: str, number: Callable[[], int], tag: str, now_us: Callable[[], int]) -> None:
        self.secret = key
        self.number = number
        self.tag = tag
        self.now_us = now_us

    def owns(self, path: str) -> bool:
        return path in self.paths

    def allow(self, asked: Asked) -> None:
        """Raise Refusal for a request whose credentials are missing or wrong."""
        given = asked.headers.get("authorization", "")
        if not same(given, f"Bearer {self.secret}"):
            raise Refusal(self.error(self.denied))

    def take(self, asked: Asked) -> tuple[Reply, list[Letter]]:
        """Return the answer to a right request and the messages that it sends. Raises Refusal."""
        raise NotImplementedError

    def error(self, status: int, said: str = "") -> Reply:
        """Return an error in the vendor's shape; without ``said`` in the words that it has for the status."""
        raise NotImplementedError

    def refuse(self, said: str) -> Refusal:
        return Refusal(self.error(self.wrong, said))

    def uuid(self) -> str:
        return f"{self.tag:0>8.8}-0000-4000-8000-{self.number():012x}"


# -- the vendors ----------------------------------------------------------------------------------------------------------


class SendGrid(Vendor):
    """`POST /v3/mail/send`. https://www.twilio.com/docs/sendgrid/api-reference/mail-send/mail-send has the body,
    https://www.twilio.com/docs/sendgrid/api-reference/mail-send/errors the words of its errors, all of which are 400.
    """

    name = "sendgrid"
    key = "SG.sandbox"
    paths = ("/v3/mail/send",)
    recipients_max = 1000
    HELP = "http://sendgrid.com/docs/API_Reference/Web_API_v3/Mail/errors.html#message."
    SAID: ClassVar[dict[int, str]] = {
        400: "Bad Request",
        401: "The provided authorization grant is invalid, expired, or revoked",
        409: "Conflict",
        429: "too many requests",
        500: "Internal Server Error",
    }

    def error(self, status: int, said: str = "", field: str = "") -> Reply:
        error = {"message": said or self.SAID[status], "field": field or None, "help": self.HELP + field if field else None}
        return json_reply(status, {"errors": [error]})

    def no(self, said: str, field: str) -> Refusal:
        return Refusal(self.error(400, said, field))

    def take(self, asked: Asked) -> tuple[Reply, list[Letter]]:
        body = json_object(asked.body)
        if body is None:
            raise self.refuse("")
        sendings = body.get("personalizations")
        if not isinstance(sendings, list) or not sendings:
            raise self.no("The personalizations field is required and must have at least one personalization.", "personalizations")
        if len(sendings) > self.recipients_max:
            said = f"The personalization block is limited to 1000 personalizations per API request. You have provided {len(sendings)}"
            raise self.no(f"{said} personalizations. Please consider splitting this into multiple requests.", "personalizations")
        if not valid(at(body, "from", "email")):
            said = "The from object must be provided for every email send. It is an object that requires the email parameter, but may also"
            raise self.no(f"{said} contain a name parameter.", "from.email")
        if not body.get("template_id"):
            self.check_content(body)
        message_id = f"{self.tag}{self.number():010x}"
        letters = [letter for n, sending in enumerate(sendings) for letter in self.letters(body, n, sending, message_id)]
        if at(body, "mail_settings", "sandbox_mode", "enable") is True:
            return Reply(200), []
        return Reply(202, b"", (("x-message-id", message_id),)), letters

    def check_content(self, body: dict) -> None:
        content = body.get("content")
        if not body.get("subject") and not all(at(p, "subject") for p in body["personalizations"]):
            said = "The subject is required. You can get around this requirement if you use a template with a subject defined or if every"
            raise self.no(f"{said} personalization has a subject defined.", "subject")
        if not isinstance(content, list) or not content:
            said = "Unless a valid template_id is provided, the content parameter is required. There must be at least one defined content"
            raise self.no(f"{said} block. We typically suggest both text/plain and text/html blocks are included.", "content")
        for n, part in enumerate(content):
            if not at(part, "value") or not isinstance(at(part, "value"), str):
                raise self.no("The content value must be a string at least one character in length.", f"content.{n}.value")
        order = [{"text/plain": 0, "text/html": 1}.get(str(at(part, "type")), 2) for part in content]
        if order != sorted(order):
            raise self.no("If present, text/plain must be first, followed by text/html, followed by any other content.", "content")

    def letters(self, body: dict, n: int, sending: object, message_id: str) -> list[Letter]:
        to = at(sending, "to")
        if not isinstance(to, list) or not to:
            said = "The to array is required for all personalization objects, and must have at least one email object with a valid email"
            raise self.no(f"{said} address.", f"personalizations.{n}.to")
        addresses = [at(who, "email") for who in to]
        for m, address in enumerate(addresses):
            if not valid(address):
                raise self.no("Does not contain a valid address.", f"personalizations.{n}.to.{m}.email")
        if len(addresses) > 1 and len({a.lower() for a in addresses}) < len(addresses):
            said = "Each email address in the personalization block should be unique between to, cc, and bcc."
            raise self.no(said, f"personalizations.{n}")
        custom = as_object(body.get("custom_args")) | as_object(at(sending, "custom_args"))
        if not all(isinstance(value, str) for value in custom.values()):
            raise self.refuse("")
        return [Letter(address, custom, message_id) for address in addresses]


class Mailgun(Vendor):
    """`POST /v3/{domain}/messages`, a form. https://documentation.mailgun.com/docs/mailgun/api-reference/send/mailgun/messages has the
    fields; the words of its errors come from recorded answers in the tests of client libraries. ``recipient-variables`` make of many
    recipients one message each, and ``%recipient.NAME%`` stands for the recipient's value in the ``v:`` fields too.
    """

    name = "mailgun"
    key = "key-sandbox"
    recipients_max = 1000
    PATH = re.compile(r"/v3/([^/]+)/messages")
    VARIABLE = re.compile(r"%recipient\.([^%]+)%")
    SAID: ClassVar[dict[int, str]] = {
        400: "Bad request",
        409: "Conflict",
        429: "Too many requests",
        500: "Internal Server Error",
    }

    def owns(self, path: str) -> bool:
        return self.PATH.fullmatch(path) is not None

    def allow(self, asked: Asked) -> None:
        wanted = base64.b64encode(f"api:{self.secret}".encode()).decode()
        if not same(asked.headers.get("authorization", ""), f"Basic {wanted}"):
            raise Refusal(self.error(401))

    def error(self, status: int, said: str = "") -> Reply:
        if status == 401:
            return Reply(401, b"Forbidden", (("content-type", "text/plain; charset=utf-8"),))
        return json_reply(status, {"message": said or self.SAID[status]})

    def take(self, asked: Asked) -> tuple[Reply, list[Letter]]:
        fields = form(asked)
        if fields is None:
            raise self.refuse("")
        first = {name: values[0] for name, values in fields.items()}
        for name in ("from", "to"):
            if not first.get(name):
                raise self.refuse(f"'{name}' parameter is missing")
        to = [address for given in fields["to"] for address in addresses_of(given)]
        for name, found in (("from", addresses_of(first["from"])), ("to", to)):
            if not found or not all(map(valid, found)):
                raise self.refuse(f"'{name}' parameter is not a valid address. please check documentation")
        if len(to) > self.recipients_max:
            raise self.refuse(f"'to' parameter holds {len(to)} addresses, at most {self.recipients_max} are allowed")
        if not any(first.get(name) for name in ("text", "html", "amp-html", "template")):
            raise self.refuse("Need at least one of 'text' or 'html' parameters specified")
        variables = json_object(first.get("recipient-variables", "{}").encode())
        if variables is None:
            raise self.refuse("'recipient-variables' parameter is not a valid JSON")
        domain = unquote(self.PATH.fullmatch(asked.path)[1])
        message_id = f"<{self.tag}{self.number():010x}@{domain}>"
        headers = {name[2:].lower(): value for name, value in first.items() if name.startswith("h:")}
        custom = header_custom(headers) | (json_object(headers.get("x-mailgun-variables", "{}").encode()) or {})
        custom |= {name[2:]: value for name, value in first.items() if name.startswith("v:")}
        letters = [Letter(address, self.filled(custom, as_object(variables.get(address))), message_id) for address in to]
        return json_reply(200, {"id": message_id, "message": "Queued. Thank you."}), letters

    def filled(self, custom: dict, values: dict) -> dict:
        if not values:
            return custom
        return {
            name: self.VARIABLE.sub(lambda found: str(values.get(found[1], found[0])), text) if isinstance(text, str) else text
            for name, text in custom.items()
        }


class SES(Vendor):
    """`POST /v2/email/outbound-emails`. https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_SendEmail.html has body and errors,
    https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html the signature (version 4), which is checked in full but
    for its age: the sandbox's clock may be another. ``key`` is ``ACCESS_KEY_ID:SECRET``.
    """

    name = "ses"
    key = "AKIASANDBOX:sandbox-secret"
    paths = ("/v2/email/outbound-emails",)
    denied = 403
    recipients_max = 50
    CREDENTIALS = re.compile(
        r"AWS4-HMAC-SHA256 Credential=([^/,]+)/(\d{8})/([^/,]+)/([^/,]+)/aws4_request, *SignedHeaders=([^,]+), *Signature=(\w+)"
    )
    SAID: ClassVar[dict[int, tuple[str, str]]] = {
        400: ("BadRequestException", "Bad request"),
        403: ("UnrecognizedClientException", "The security token included in the request is invalid."),
        409: ("ConflictException", "Conflict"),
        429: ("TooManyRequestsException", "Maximum sending rate exceeded."),
        500: ("InternalServiceErrorException", "Internal service error"),
    }

    def error(self, status: int, said: str = "", kind: str = "") -> Reply:
        reply = json_reply(status, {"message": said or self.SAID[status][1]})
        about = ("x-amzn-errortype", kind or self.SAID[status][0]), ("x-amzn-requestid", self.uuid())
        return reply._replace(headers=reply.headers + about)

    def allow(self, asked: Asked) -> None:
        given = self.CREDENTIALS.fullmatch(asked.headers.get("authorization", ""))
        if not given:
            raise Refusal(self.error(403, "Missing Authentication Token", "MissingAuthenticationTokenException"))
        access_key, date, region, service, signed, signature = given.groups()
        known, _, secret = self.secret.partition(":")
        if access_key != known:
            raise Refusal(self.error(403))
        names = signed.split(";")
        lines = "".join(f"{name}:{' '.join(asked.headers.get(name, '').split())}\n" for name in names)
        text = f"POST\n{asked.path}\n{asked.query}\n{lines}\n{signed}\n{sha256(asked.body).hexdigest()}"
        signed_at = asked.headers.get("x-amz-date", "")
        to_sign = f"AWS4-HMAC-SHA256\n{signed_at}\n{date}/{region}/{service}/aws4_request\n{sha256(text.encode()).hexdigest()}"
        wanted = hmac.new(signing_key(secret, date, region, service), to_sign.encode(), sha256).hexdigest()
        if "host" not in names or not signed_at.startswith(date) or not same(signature, wanted):
            said = "The request signature we calculated does not match the signature you provided."
            raise Refusal(self.error(403, said, "InvalidSignatureException"))

    def take(self, asked: Asked) -> tuple[Reply, list[Letter]]:
        body = json_object(asked.body)
        if body is None:
            raise Refusal(self.error(400, "Unable to parse the request", "SerializationException"))
        content = as_object(body.get("Content"))
        raw = at(content, "Raw", "Data")
        head: dict[str, str] = {}
        if raw is not None:
            head = self.raw_headers(raw)
        elif isinstance(content.get("Simple"), dict):
            head = self.simple_headers(content["Simple"])
        elif not isinstance(content.get("Template"), dict):
            raise self.refuse("Content is required: one of Simple, Raw and Template.")
        sender = body.get("FromEmailAddress") or (head.get("from") if raw is not None else "")
        if not sender or not all(map(valid, addresses_of(str(sender)))):
            raise self.refuse("Missing or invalid FromEmailAddress.")
        to = [bare_address(str(a)) for kind in ("To", "Cc", "Bcc") for a in as_list(at(body, "Destination", f"{kind}Addresses"))]
        to = to or (addresses_of(head.get("to", "")) if raw is not None else [])
        if not to:
            raise self.refuse("Missing required header 'To'.")
        if len(to) > self.recipients_max:
            raise self.refuse(f"Recipient count exceeds {self.recipients_max}.")
        if not all(map(valid, to)):
            raise self.refuse("Invalid email address.")
        tags = {str(at(tag, "Name")): str(at(tag, "Value")) for tag in as_list(body.get("EmailTags"))}
        for text in (*tags, *tags.values()):
            if not TAG.fullmatch(text):
                raise self.refuse(f"Invalid tag name or value <{text}>, only alphanumeric ASCII characters, '_' and '-' are allowed.")
        message_id = f"010f{self.tag:0>12.12}-{self.uuid()}-000000"
        return json_reply(200, {"MessageId": message_id}), [Letter(a, header_custom(head) | tags, message_id) for a in to]

    def raw_headers(self, raw: object) -> dict[str, str]:
        try:
            return mail_headers(base64.b64decode(str(raw), validate=True))
        except (binascii.Error, ValueError):
            raise self.refuse("Content.Raw.Data is no base64.") from None

    def simple_headers(self, simple: dict) -> dict[str, str]:
        if not at(simple, "Subject", "Data"):
            raise self.refuse("Content.Simple.Subject is required.")
        if not at(simple, "Body", "Text", "Data") and not at(simple, "Body", "Html", "Data"):
            raise self.refuse("Content.Simple.Body is required: one of Text and Html.")
        return {str(at(h, "Name")).lower(): str(at(h, "Value")) for h in as_list(simple.get("Headers"))}


@lru_cache(maxsize=64)
def signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), sha256).digest()
    return key


class Postmark(Vendor):
    """`POST /email` and `POST /email/batch`. https://postmarkapp.com/developer/api/email-api has the bodies,
    https://postmarkapp.com/developer/api/overview#error-codes the codes. A batch is answered with 200, and each of its messages with a
    result of its own. The limits of metadata are those of https://postmarkapp.com/support/article/1125-custom-metadata-faq.
    """

    name = "postmark"
    key = "postmark-sandbox"
    paths = ("/email", "/email/batch")
    wrong = 422
    batch_max = 500
    recipients_max = 50
    metadata_max, name_chars_max, value_chars_max = 10, 20, 80
    INVALID, INVALID_JSON, INCOMPATIBLE, TOO_MANY = 300, 402, 403, 410
    SAID: ClassVar[dict[int, tuple[int, str]]] = {
        401: (10, "The Server Token you provided in the X-Postmark-Server-Token request header was invalid."),
        409: (409, "Conflict"),
        422: (INVALID, "Invalid email request"),
        429: (429, "Rate Limit Exceeded"),
        500: (500, "Internal Server Error"),
    }

    def error(self, status: int, said: str = "", code: int = 0) -> Reply:
        return json_reply(status, {"ErrorCode": code or self.SAID[status][0], "Message": said or self.SAID[status][1]})

    def allow(self, asked: Asked) -> None:
        given = asked.headers.get("x-postmark-server-token", "")
        if not given:
            raise Refusal(self.error(401, "No Account or Server API tokens were supplied in the HTTP headers."))
        if not same(given.lower(), self.secret.lower()):
            raise Refusal(self.error(401))

    def take(self, asked: Asked) -> tuple[Reply, list[Letter]]:
        found = json_of(asked.body)
        if found is None:
            raise Refusal(self.error(422, "Invalid JSON", self.INVALID_JSON))
        batch = asked.path.endswith("/batch")
        messages = found if batch else [found]
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise Refusal(self.error(422, "Incompatible JSON", self.INCOMPATIBLE))
        if len(messages) > self.batch_max:
            raise Refusal(self.error(422, "Too many batch messages", self.TOO_MANY))
        results, letters = [], []
        now = datetime.fromtimestamp(self.now_us() / 1e6, UTC)
        at_text = f"{now:%Y-%m-%dT%H:%M:%S.%f}0Z"
        for message in messages:
            said = self.wrong_with(message)
            if said:
                results.append({"ErrorCode": self.INVALID, "Message": said})
                continue
            message_id = self.uuid()
            result = {"To": message["To"], "SubmittedAt": at_text, "MessageID": message_id, "ErrorCode": 0, "Message": "OK"}
            results.append(result)
            custom = as_object(message.get("Metadata"))
            if "intent" not in custom and message.get("Headers"):
                custom = header_custom({str(at(h, "Name")).lower(): str(at(h, "Value")) for h in as_list(message["Headers"])}) | custom
            letters += [Letter(address, custom, message_id) for address in addresses_of(message["To"])]
        if batch:
            return json_reply(200, results), letters
        return json_reply(200 if letters else 422, results[0]), letters

    def wrong_with(self, message: dict) -> str:
        """Return what is wrong with a message, or nothing."""
        sender, to = message.get("From"), message.get("To")
        if not isinstance(sender, str) or not all(map(valid, addresses_of(sender) or [""])):
            return f"Invalid 'From' address: '{sender or ''}'."
        if not isinstance(to, str) or not to:
            return "Zero recipients specified"
        addresses = addresses_of(to)
        if not addresses or not all(map(valid, addresses)):
            return f"Invalid 'To' address: '{to}'."
        if len(addresses) > self.recipients_max:
            return f"A maximum of {self.recipients_max} recipients is allowed."
        if not message.get("TextBody") and not message.get("HtmlBody"):
            return "Provide either email TextBody or HtmlBody or both."
        metadata = message.get("Metadata") or {}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            return "Invalid metadata content. Values have to be text."
        if len(metadata) > self.metadata_max or any(
            len(name) > self.name_chars_max or len(value) > self.value_chars_max for name, value in metadata.items()
        ):
            return "Invalid metadata content. Field names are limited to 20 characters, values to 80, and there may be 10 fields."
        return ""


class Resend(Vendor):
    """`POST /emails` and `POST /emails/batch`. https://resend.com/docs/api-reference/emails/send-email has the body,
    https://resend.com/docs/api-reference/errors names and statuses, https://resend.com/docs/dashboard/emails/idempotency-keys what a
    repeated Idempotency-Key means: the first answer again for the same body, 409 for another one. A batch is accepted as a whole or not.
    """

    name = "resend"
    key = "re_sandbox"
    paths = ("/emails", "/emails/batch")
    wrong = 422
    denied = 403
    batch_max = 100
    recipients_max = 50
    key_chars_max = 256
    SAID: ClassVar[dict[int, tuple[str, str]]] = {
        400: ("validation_error", "We found an error with one or more fields in the request."),
        401: ("missing_api_key", "Missing API Key"),
        403: ("invalid_api_key", "API key is invalid"),
        409: ("concurrent_idempotent_requests", "Same idempotency key used while original request is still in progress."),
        422: ("validation_error", "We found an error with one or more fields in the request."),
        429: ("rate_limit_exceeded", "Too many requests. Please limit the number of requests per second."),
        500: ("application_error", "An unexpected error occurred."),
    }

    def __init__(self, key: str, number: Callable[[], int], tag: str, now_us: Callable[[], int]) -> None:
        super().__init__(key, number, tag, now_us)
        self._answered: dict[str, tuple[bytes, Reply]] = {}

    def error(self, status: int, said: str = "", name: str = "") -> Reply:
        return json_reply(status, {"statusCode": status, "message": said or self.SAID[status][1], "name": name or self.SAID[status][0]})

    def allow(self, asked: Asked) -> None:
        if not asked.headers.get("authorization"):
            raise Refusal(self.error(401))
        super().allow(asked)

    def take(self, asked: Asked) -> tuple[Reply, list[Letter]]:
        key = asked.headers.get("idempotency-key", "")
        if len(key) > self.key_chars_max:
            raise Refusal(self.error(400, "The key must be between 1-256 chars.", "invalid_idempotency_key"))
        mark = blake2b(asked.path.encode() + asked.body, digest_size=16).digest() if key else b""
        if key in self._answered:
            before, reply = self._answered[key]
            if before == mark:
                return reply, []
            raise Refusal(self.error(409, "Same idempotency key used with a different request payload.", "invalid_idempotent_request"))
        reply, letters = self.read(asked)
        if key:
            if len(self._answered) >= idempotency_keys_max:
                del self._answered[next(iter(self._answered))]
            self._answered[key] = (mark, reply)
        return reply, letters

    def read(self, asked: Asked) -> tuple[Reply, list[Letter]]:
        found = json_of(asked.body)
        batch = asked.path.endswith("/batch")
        messages = found if batch else [found]
        if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
            raise self.refuse("The request body has the wrong shape.")
        if len(messages) > self.batch_max:
            raise self.refuse(f"A batch holds at most {self.batch_max} emails.")
        ids, letters = [], []
        for message in messages:
            to = self.checked(message, batch)
            message_id = self.uuid()
            ids.append({"id": message_id})
            custom = {str(at(tag, "name")): at(tag, "value") for tag in as_list(message.get("tags"))}
            headers = {str(name).lower(): str(value) for name, value in as_object(message.get("headers")).items()}
            letters += [Letter(address, header_custom(headers) | custom, message_id) for address in to]
        return json_reply(200, {"data": ids} if batch else ids[0]), letters

    def checked(self, message: dict, batch: bool) -> list[str]:
        """Return the bare recipients of a message that is right. Raises Refusal."""
        for name in ("from", "to", "subject"):
            if not message.get(name):
                raise Refusal(self.error(422, f"Missing `{name}` field.", "missing_required_field"))
        if not message.get("html") and not message.get("text") and not message.get("template"):
            raise Refusal(self.error(422, "Missing `html` or `text` field.", "missing_required_field"))
        to = message["to"] if isinstance(message["to"], list) else [message["to"]]
        addresses = [bare_address(str(address)) for address in to]
        for name, found in (("from", [bare_address(str(message["from"]))]), ("to", addresses)):
            if not all(map(valid, found)):
                said = "The email address needs to follow the `email@example.com` or `Name <email@example.com>` format."
                raise self.refuse(f"Invalid `{name}` field. {said}")
        if len(addresses) > self.recipients_max:
            raise self.refuse(f"The `to` field holds at most {self.recipients_max} addresses.")
        for tag in as_list(message.get("tags")):
            if not all(isinstance(at(tag, part), str) and TAG.fullmatch(at(tag, part)) for part in ("name", "value")):
                raise self.refuse("Tags should only contain ASCII letters, numbers, underscores, or dashes.")
        if batch and ("attachments" in message or "scheduled_at" in message):
            raise self.refuse("A batch supports neither `attachments` nor `scheduled_at`.")
        return addresses


VENDORS: tuple[type[Vendor], ...] = (SendGrid, Mailgun, SES, Postmark, Resend)
KEYS = {vendor.name: vendor.key for vendor in VENDORS}


# -- what bodies hold -----------------------------------------------------------------------------------------------------


def same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def json_reply(status: int, body: object) -> Reply:
    return Reply(status, msgspec.json.encode(body), (("content-type", "application/json; charset=utf-8"),))


def json_of(body: bytes) -> object:
    """Return a body's JSON, or None where it is none."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def json_object(body: bytes) -> dict | None:
    found = json_of(body)
    return found if isinstance(found, dict) else None


def at(found: object, *path: str) -> object:
    """Return what stands at a path of objects, or None."""
    for step in path:
        found = found.get(step) if isinstance(found, dict) else None
    return found


def as_object(found: object) -> dict:
    return found if isinstance(found, dict) else {}


def as_list(found: object) -> list:
    return found if isinstance(found, list) else []


def valid(address: object) -> bool:
    """Tell whether an address has what every vendor asks of one."""
    return isinstance(address, str) and ADDRESS.fullmatch(address) is not None


def addresses_of(text: str) -> list[str]:
    """Return the bare addresses of a list with commas, display names left out; what is no address is returned as it is."""
    if text.count("@") < 2 and "," not in text:
        return [bare_address(text.strip())] if text.strip() else []
    return [address or name for name, address in getaddresses([text]) if address or name]


def form(asked: Asked) -> dict[str, list[str]] | None:
    """Return the fields of a form, urlencoded or multipart, or None where the body is neither."""
    kind = asked.headers.get("content-type", "")
    fields: dict[str, list[str]] = {}
    if kind.startswith("application/x-www-form-urlencoded"):
        pairs: Iterable[tuple[str, str]] = parse_qsl(asked.body.decode("utf-8", "replace"), keep_blank_values=True)
    elif kind.startswith("multipart/form-data") and (found := re.search(r'boundary="?([^";]+)"?', kind)):
        pairs = parts(asked.body, found[1].encode("latin-1", "replace"))
    else:
        return None
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


NAME = re.compile(rb'name="((?:[^"\\]|\\.)*)"')


def parts(body: bytes, boundary: bytes) -> list[tuple[str, str]]:
    """Return (name, value) of a multipart form's fields; files are among them, their bytes as text."""
    found = []
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary)[1:]:
        head, _, value = part.partition(b"\r\n\r\n")
        named = NAME.search(head)
        if named:
            found.append((named[1].decode("utf-8", "replace"), value.decode("utf-8", "replace")))
    return found
