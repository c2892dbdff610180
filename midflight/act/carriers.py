"""The configured ways out in operation: each takes messages and says what became of every one, by HTTP or by SMTP in the same way."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Protocol

import msgspec

from ..kit.clock import Clock
from ..kit.errors import ConfigError, nearest
from .channels import REGISTRY
from .channels.channel import Call, Message, Outcome, Settings, channel_of
from .delivery import Delivery, result_of
from .outbox import Result
from .smtp import SmtpConnection, SmtpSettings

SMTP = "smtp"
Begun = Callable[[list[str]], None]


class Carrier(Protocol):
    """One way out. ``batch_max`` messages go in one call; so many calls at a time as it has connections."""

    settings: Settings
    batch_max: int

    def call_of(self, messages: list[Message]) -> Call | None:
        """Return the call for some messages as it is going to be made; None where there is nothing to prepare."""

    async def carry(self, line: int, messages: list[Message], call: Call | None, tries: int, begun: Begun) -> list[Result]:
        """Send messages over one of its connections, numbered from 0, and return what became of each.

        ``begun`` hears of intents right before the bytes leave after which they may have had their effect.
        """

    async def close(self) -> None: ...


class HttpCarrier:
    """A vendor's API."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self.settings = delivery.channel.settings
        self.batch_max = delivery.channel.batch_max

    def call_of(self, messages: list[Message]) -> Call:
        return self._delivery.makes(messages)

    async def carry(self, line: int, messages: list[Message], call: Call | None, tries: int, begun: Begun) -> list[Result]:
        assert call is not None
        return await self._delivery.deliver(messages, call, tries, lambda: begun([message.intent for message in messages]))

    async def close(self) -> None:
        await self._delivery.close()


class SmtpCarrier:
    """A relay, one message at a time on each connection."""

    batch_max = 1

    def __init__(self, settings: SmtpSettings, clock: Clock) -> None:
        self.settings = settings
        self._clock = clock
        self._lines = [SmtpConnection(settings, clock) for _ in range(settings.connections)]

    def call_of(self, messages: list[Message]) -> None:
        return None

    async def carry(self, line: int, messages: list[Message], call: Call | None, tries: int, begun: Begun) -> list[Result]:
        found: list[Result] = []
        for message in messages:
            outcome: Outcome = await self._lines[line].send(message, begun=lambda intent=message.intent: begun([intent]))
            found.append(result_of(message, outcome, tries, self._clock.now_us()))
        return found

    async def close(self) -> None:
        for line in self._lines:
            await line.close()


def carriers_of(channels: dict[str, dict], clock: Clock, *, verify: bool | ssl.SSLContext = True) -> dict[str, Carrier]:
    """Return the ways out that a configuration names. Raises ConfigError for one that is wrong."""
    found: dict[str, Carrier] = {}
    for name, settings in channels.items():
        rest = {key: value for key, value in settings.items() if key != "kind"}
        kind, where = settings["kind"], f"$.channels.{name}"
        if kind == SMTP:
            found[name] = SmtpCarrier(smtp_settings(rest, where), clock)
        elif kind in REGISTRY.names():
            found[name] = HttpCarrier(Delivery(channel_of(REGISTRY.get(kind), rest, where), clock, verify=verify))
        else:
            raise ConfigError(f"Unknown channel kind `{kind}`", where=f"{where}.kind", todo=nearest(str(kind), [SMTP, *REGISTRY.names()]))
    return found


def smtp_settings(settings: dict, where: str) -> SmtpSettings:
    """Return a relay's settings, checked. Raises ConfigError."""
    try:
        return msgspec.convert(settings, SmtpSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"Channel settings: {error}", where=where) from None
