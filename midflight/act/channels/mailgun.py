"""Channel `mailgun`."""

from __future__ import annotations

import base64
from typing import Annotated, ClassVar
from urllib.parse import urlencode

import msgspec

from . import channel
from ._mailbox import ascii_domain, mailbox
from .channel import EXAMPLE, Answer, Call, Channel, Message, Outcome, decoded, retry_after_s, text_at, unsettled


class Settings(channel.Settings, kw_only=True):
    api_key: str  # a sending key of the domain is enough
    # The sending domain at Mailgun, which need not be the one in the From address. A slash in it would lead to another endpoint.
    domain: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.-]+$")]
    url: str = "https://api.mailgun.net"  # https://api.eu.mailgun.net for a domain in the EU region
    tags: Annotated[list[str], msgspec.Meta(max_length=3)] = []  # names that Mailgun's own statistics are kept by


class Mailgun(Channel):
    """`POST /v3/{domain}/messages` (https://documentation.mailgun.com/docs/mailgun/api-reference/send/mailgun/messages).

    A form: `h:` before a header, `v:` before a variable that comes back in webhooks, `o:` before an option. One message a call: Mailgun's
    batch sending shares one body among the recipients and answers with one id for all. Mailgun has no idempotency key. Its only yes is
    200 with an id and "Queued. Thank you."; a URL that is none of its API answers 200 as well. 420 is an account's limit of recipients.
    """

    label: ClassVar[str] = "Mailgun"
    doc: ClassVar[str] = (
        "Campaign, variant, wave and intent travel as `v:` variables. Open and click tracking follow the domain's settings."
    )
    source: ClassVar[str] = "mailgun"
    Settings = Settings

    def call(self, messages: list[Message], now_us: int) -> Call:
        (message,) = messages
        settings: Settings = self.settings
        fields = [
            ("from", mailbox(message.from_name, message.from_address)),
            ("to", mailbox(message.to_name, message.to)),
            ("subject", message.subject),
            ("text", message.text),
        ]
        if message.html:
            fields.append(("html", message.html))
        if message.reply_to:
            fields.append(("h:Reply-To", ascii_domain(message.reply_to)))
        fields += [(f"h:{name}", value) for name, value in message.headers.items()]
        fields += [(f"v:{name}", value) for name, value in message.custom().items()]
        fields += [("o:tag", tag) for tag in settings.tags]
        token = base64.b64encode(f"api:{settings.api_key}".encode()).decode()
        headers = {"authorization": f"Basic {token}", "content-type": "application/x-www-form-urlencoded"}
        return Call(url=f"{settings.url}/v3/{settings.domain}/messages", headers=headers, body=urlencode(fields).encode())

    def outcomes(self, messages: list[Message], answer: Answer) -> list[Outcome]:
        found = decoded(answer.body)
        said, message_id = text_at(found, "message"), text_at(found, "id")
        if answer.status == 200 and message_id and said.startswith("Queued"):
            return [Outcome(kind="sent", message_id=message_id)] * len(messages)
        # The account's or the domain's trouble, not the recipient's: a limit, a domain not verified, not active or in another region.
        if answer.status in (404, 420) or (answer.status == 400 and "is not allowed to send" in said):
            return [Outcome(kind="later", code=str(answer.status), detail=said, retry_s=retry_after_s(answer))] * len(messages)
        return unsettled(messages, answer, said)

    EXAMPLES = (
        {
            "settings": {"api_key": "key-x", "domain": "mg.shop.example", "tags": ["newsletter"]},
            "messages": [EXAMPLE],
            "url": "https://api.mailgun.net/v3/mg.shop.example/messages",
            "headers": {"authorization": "Basic YXBpOmtleS14", "content-type": "application/x-www-form-urlencoded"},
            "form": [
                ("from", "The Shop <news@shop.example>"),
                ("to", "Ada Lovelace <ada@example.com>"),
                ("subject", "Two days left"),
                ("text", "Hello Ada"),
                ("html", "<p>Hello Ada</p>"),
                ("h:Reply-To", "help@shop.example"),
                ("h:List-Unsubscribe", "<https://m.example/u/x>"),
                ("h:List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
                ("v:campaign", "spring"),
                ("v:variant", "B"),
                ("v:wave", "3"),
                ("v:propensity", "0.25"),
                ("v:intent", "in-01HZX4"),
                ("o:tag", "newsletter"),
            ],
            "answers": [
                (
                    {"status": 200, "body": '{"id":"<20251124160000.1.A7@mg.shop.example>","message":"Queued. Thank you."}'},
                    [{"kind": "sent", "message_id": "<20251124160000.1.A7@mg.shop.example>"}],
                ),
                ({"status": 200, "body": "Mailgun Magnificent API"}, [{"kind": "unknown", "code": "200"}]),
                (
                    {"status": 400, "body": '{"message":"to parameter is not a valid address. please check documentation"}'},
                    [{"kind": "refused", "code": "400", "detail": "to parameter is not a valid address. please check documentation"}],
                ),
                ({"status": 401, "body": "Forbidden"}, [{"kind": "later", "code": "401", "detail": "Forbidden"}]),
                (
                    {"status": 404, "body": '{"message":"Domain not found: mg.shop.example"}'},
                    [{"kind": "later", "code": "404", "detail": "Domain not found: mg.shop.example"}],
                ),
                (
                    {
                        "status": 420,
                        "body": '{"message":"Domain mg.shop.example is not allowed to send: recipient limit exceeded, '
                        'try again after Mon, 24 Nov 2025 17:00:31 UTC"}\n',
                    },
                    [{"kind": "later", "code": "420"}],
                ),
                ({"status": 429, "headers": {"retry-after": "7"}}, [{"kind": "later", "code": "429", "retry_s": 7.0}]),
                ({"status": 500}, [{"kind": "unknown", "code": "500"}]),
            ],
        },
    )


PLUGIN = Mailgun
