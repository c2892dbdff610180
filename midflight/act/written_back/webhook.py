"""Way back `webhook`: the state of people as signed requests to any address."""

from __future__ import annotations

import base64
import binascii
import hmac
from hashlib import blake2b
from typing import Annotated, ClassVar

import msgspec

from ...kit.errors import ConfigError
from ...sources.polls._auth import checked_url
from ...sources.polls.poll import Call, iso_of
from . import way_back
from ._asked import refusal
from .way_back import WRITTEN, Ask, Item, Outcome, WayBack


class Settings(way_back.Settings, kw_only=True, frozen=True):
    url: str
    secret: str  # `whsec_` and base64 of 24 to 64 bytes
    batch: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


class Webhook(WayBack):
    """One POST for some people, signed as Standard Webhooks has it
    (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md): `webhook-id`, `webhook-timestamp`, and
    `webhook-signature: v1,` with HMAC-SHA256 over id, time and body. The id follows from who is written in which version, so that a
    request that is made again after a lost answer has the same one.
    """

    label: ClassVar[str] = "Signed webhook"
    doc: ClassVar[str] = "`people.updated` with each person's segments and values, as they are now."
    docs_url: ClassVar[str] = "https://www.standardwebhooks.com"
    Settings = Settings

    def __init__(self, settings: Settings, *, name: str) -> None:
        super().__init__(settings, name=name)
        checked_url(settings.url, f"$.ways_back.{name}.url")
        self.batch_max = settings.batch
        self._secret = secret_of(settings.secret, f"$.ways_back.{name}.secret")

    def call(self, items: list[Item], now_us: int) -> Call:
        people = [
            {"email": item.recipient, "segments": self.of_interest(item), **item.values, "changed_at": iso_of(item.changed_us)}
            for item in items
        ]
        body = msgspec.json.encode({"type": "people.updated", "timestamp": iso_of(max(item.changed_us for item in items)), "data": people})
        number = (
            "msg_"
            + blake2b(msgspec.json.encode([self.name, [[item.recipient, item.version] for item in items]]), digest_size=16).hexdigest()
        )
        at = str(now_us // 1_000_000)
        signature = base64.b64encode(hmac.digest(self._secret, f"{number}.{at}.".encode() + body, "sha256")).decode()
        headers = {
            "content-type": "application/json",
            "webhook-id": number,
            "webhook-timestamp": at,
            "webhook-signature": f"v1,{signature}",
        }
        return Call(method="POST", url=self.settings.url, headers=headers, body=body)

    async def write(self, items: list[Item], ask: Ask, now_us: int) -> list[Outcome]:
        answer = await ask(self.call(items, now_us))
        if not 200 <= answer.status < 300:
            raise refusal(answer, self.label)
        return [WRITTEN] * len(items)


def secret_of(given: str, where: str) -> bytes:
    """Return the key. Raises ConfigError without showing it."""
    try:
        key = base64.b64decode(given.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not 24 <= len(key) <= 64:
        raise ConfigError("Not a secret of a webhook", expected="`whsec_` and base64 of 24 to 64 bytes", where=where)
    return key
