"""Way `webhook`."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Annotated, ClassVar

import msgspec

from ...kit.errors import MidflightError
from . import way
from .way import EXAMPLE, Action, Answer, Call, Outcome, Text, Way, json_call, unsettled

secret_bytes_min, secret_bytes_max = 24, 64
example_secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Settings(way.Settings, kw_only=True):
    url: str  # where to: https, and on the internet unless the address is allowed
    secrets: Annotated[list[str], msgspec.Meta(min_length=1, max_length=3)]  # `whsec_...`; several while one takes another's place
    # Whether the receiver knows a `webhook-id` that comes again, as Standard Webhooks asks. Without it no unanswered call is repeated
    receiver_dedups: bool = True


class Fields(way.Fields, kw_only=True):
    type: Annotated[str, Text("fixed", 100)]  # what happened, in words with points between: `rule.fired`
    data: dict[str, Annotated[str, Text("plain", 10_000)]] = {}  # what is told of it, by name
    occurred_at: Annotated[str, Text("line", 40)] = ""  # when it happened, ISO 8601


class Webhook(Way):
    """A signed request as in Standard Webhooks (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md).

    ``webhook-id`` is the action's id and the same with every try; the signature is over ``id.timestamp.body``. A receiver that answers 410
    wants nothing more; everything but 2xx is a failure and tried again.
    """

    label: ClassVar[str] = "Webhook"
    doc: ClassVar[str] = "A signed request to a service of your own, as in Standard Webhooks. It cannot be taken back."
    Settings = Settings
    Fields = Fields

    def calls(self, actions: list[Action], now_us: int) -> Call:
        (action,) = actions
        fields: Fields = self.said(action)
        body = {"type": fields.type} | ({"timestamp": fields.occurred_at} if fields.occurred_at else {})
        body["data"] = fields.data | {"rule": action.rule, "rule_version": action.version, "recipient": action.recipient}
        call = json_call(self.settings.url, body, idempotent=self.settings.receiver_dedups)
        headers = call.headers | signed(self.settings.secrets, action.id, now_us // 1_000_000, call.body)
        return msgspec.structs.replace(call, headers=headers)

    def outcomes(self, actions: list[Action], answer: Answer) -> list[Outcome]:
        if 200 <= answer.status < 300:
            return [Outcome(kind="sent", code=str(answer.status))] * len(actions)
        if answer.status == 410:
            return [Outcome(kind="refused", code="410", detail="The receiver wants nothing more")] * len(actions)
        (outcome,) = unsettled([None], answer)
        # A receiver that says no may be one that is being mended: what it said no to did not happen, and may come again.
        kind = "later" if outcome.kind == "refused" else outcome.kind
        return [msgspec.structs.replace(outcome, kind=kind)] * len(actions)

    EXAMPLES = (
        {
            "settings": {"url": "https://shop.example/hooks", "secrets": [example_secret]},
            "actions": [msgspec.structs.replace(EXAMPLE, fields={"type": "rule.fired", "data": {"product": "Tea"}})],
            "url": "https://shop.example/hooks",
            "headers": {"webhook-id": EXAMPLE.id, "content-type": "application/json"},
            "json": {
                "type": "rule.fired",
                "data": {"product": "Tea", "rule": "clicked_not_bought", "rule_version": 3, "recipient": "ada@example.com"},
            },
            "answers": [
                ({"status": 200}, [{"kind": "sent"}]),
                ({"status": 204}, [{"kind": "sent"}]),
                ({"status": 410}, [{"kind": "refused", "code": "410"}]),
                ({"status": 400}, [{"kind": "later", "code": "400"}]),
                ({"status": 429, "headers": {"retry-after": "9"}}, [{"kind": "later", "retry_s": 9.0}]),
                ({"status": 500}, [{"kind": "unknown", "code": "500"}]),
            ],
        },
    )


def signed(secrets: list[str], webhook_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """Return the three headers of Standard Webhooks, with one signature for each secret. Raises MidflightError for a wrong secret."""
    content = b"%s.%d.%s" % (webhook_id.encode(), at_s, body)
    made = [base64.b64encode(hmac.new(key_of(secret), content, hashlib.sha256).digest()).decode() for secret in secrets]
    return {"webhook-id": webhook_id, "webhook-timestamp": str(at_s), "webhook-signature": " ".join(f"v1,{one}" for one in made)}


def key_of(secret: str) -> bytes:
    """Return the bytes of a secret: base64 of 24 to 64 bytes behind ``whsec_``."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret_bytes_min <= len(key) <= secret_bytes_max:
        raise MidflightError(
            "A secret of a webhook", expected=f"`whsec_` and base64 of {secret_bytes_min} to {secret_bytes_max} bytes", where="secrets"
        )
    return key


PLUGIN = Webhook
