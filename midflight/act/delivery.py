"""Makes a channel's calls and decides what each end means: an answer, no answer, or a call that never left this machine."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

import httpx
import msgspec

from ..kit.clock import Clock
from ..kit.crash import crash_point
from .channels.channel import Answer, Call, Channel, Message, Outcome
from .outbox import PLANNED, REFUSED, SENT, UNKNOWN, Result

answer_bytes_max = 1 << 20
connect_s = 10.0
answer_s = 30.0
retry_s_first = 2.0
retry_s_max = 300.0
idle_s = 4.0  # kept connections are dropped before vendors close them: a request into a closing one has no known end

TOGETHER = (400, 413, 422)  # refusals of a call as a whole
ALONE = "alone"  # what the outbox notes of messages that have to go one by one
Begins = Callable[[], None]

_STATE = {"sent": SENT, "refused": REFUSED, "later": PLANNED, "unknown": UNKNOWN}
# The request had not been written when these came: nothing happened at the other end.
_NOT_LEFT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError)


class Withheld(Exception):
    """A call may not begin after all: its last part must not leave."""


class Delivery:
    """One channel's calls over kept connections. ``deliver`` is all there is."""

    def __init__(self, channel: Channel, clock: Clock, *, verify: bool | ssl.SSLContext = True, answer_s: float = answer_s) -> None:
        self.channel = channel
        self.clock = clock
        limits = httpx.Limits(
            max_connections=channel.settings.connections, max_keepalive_connections=channel.settings.connections, keepalive_expiry=idle_s
        )
        self._client = httpx.AsyncClient(
            limits=limits, timeout=httpx.Timeout(answer_s, connect=connect_s), verify=verify, follow_redirects=False, trust_env=False
        )
        self._answer_s = answer_s

    async def close(self) -> None:
        await self._client.aclose()

    def makes(self, messages: list[Message]) -> Call:
        """Return the call for some messages, so that its idempotency is known before the intent is written."""
        return self.channel.call(messages, self.clock.now_us())

    async def deliver(self, messages: list[Message], call: Call, tries: int, begun: Begins = lambda: None) -> list[Result]:
        """Make the call once and return what became of each message. ``begun`` hears when its last part is about to leave."""
        outcomes = await self._outcomes(messages, call, begun)
        now_us = self.clock.now_us()
        return [result_of(message, outcome, tries, now_us) for message, outcome in zip(messages, outcomes, strict=True)]

    async def _outcomes(self, messages: list[Message], call: Call, begun: Begins) -> list[Outcome]:
        try:
            # The client's own limits are for each read; a server that drips bytes would keep it for ever.
            async with asyncio.timeout(connect_s + self._answer_s):
                answer = await self._answer(call, begun)
        except Withheld:
            return [Outcome(kind="later", code="withheld")] * len(messages)
        except _NOT_LEFT as error:
            return [Outcome(kind="later", code="unreachable", detail=_said(error))] * len(messages)
        except (httpx.HTTPError, ssl.SSLError, TimeoutError) as error:
            # It may have arrived. Only where the vendor promises that twice is once may it be tried again.
            kind = "later" if call.idempotent else "unknown"
            return [Outcome(kind=kind, code="no_answer", detail=_said(error))] * len(messages)
        crash_point("after_answer")
        outcomes = self.channel.outcomes(messages, answer)
        assert len(outcomes) == len(messages)
        if answer.status in (307, 308):
            # "The same request, elsewhere": nothing was done here, and somebody has to look at the address.
            return [msgspec.structs.replace(outcome, kind="later") for outcome in outcomes]
        if answer.status in TOGETHER and len(messages) > 1 and all(outcome.kind == "refused" for outcome in outcomes):
            # One bad message, or too many of them, is no reason to refuse all: nothing was accepted, and each goes alone.
            return [msgspec.structs.replace(outcome, kind="later", code=ALONE, retry_s=0.001) for outcome in outcomes]
        if call.idempotent:
            return [msgspec.structs.replace(o, kind="later") if o.kind == "unknown" and answer.status >= 500 else o for o in outcomes]
        return outcomes

    async def _answer(self, call: Call, begun: Begins) -> Answer:
        async def trace(event: str, _info: dict) -> None:
            # Until its body has left, a request is none.
            if event.endswith(".send_request_body.started"):
                begun()

        crash_point("before_call")
        async with self._client.stream(
            call.method, call.url, headers=call.headers, content=call.body, extensions={"trace": trace}
        ) as response:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > answer_bytes_max:
                    # No vendor says so much; what it has said by now is all that is read.
                    break
            return Answer(status=response.status_code, headers={k.lower(): v for k, v in response.headers.items()}, body=bytes(body))


def result_of(message: Message, outcome: Outcome, tries: int, now_us: int) -> Result:
    """Return what the outbox notes of a message's outcome, with the time of its next try where there may be one."""
    return Result(
        intent=message.intent,
        state=_STATE[outcome.kind],
        message_id=outcome.message_id,
        code=outcome.code,
        detail=outcome.detail,
        not_before_us=now_us + int(1e6 * (outcome.retry_s or patience_s(tries))) if outcome.kind == "later" else 0,
    )


def patience_s(tries: int) -> float:
    """Return how long a message that was put off waits before its next try, where the vendor did not say."""
    return min(retry_s_max, retry_s_first * 2.0 ** min(tries, 20))


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
