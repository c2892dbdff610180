"""How other systems are asked over HTTP: within their limits, with a bound on what they answer, and no further than their own address."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from hashlib import blake2b

import httpx

from ..kit.clock import Clock
from ..sources.polls import Answer, Call
from ..sources.polls.poll import NotAllowed, NotNow, Unreadable, answer_bytes_max

connect_s = 10.0
answer_s = 60.0
day_us = 86_400_000_000


class Limits:
    """So many calls a second and a day. ``turn`` returns when one may be made, right before it is. Calls are evenly spread, because a
    vendor that counts by the second refuses a burst also where the mean is right."""

    def __init__(self, per_second: float, per_day: int, clock: Clock, count: Callable[[int], int], called: Callable[[int], None]) -> None:
        self._apart_s, self._free_s = 1.0 / per_second, clock.monotonic_s()
        self._per_day, self._clock, self._count, self._called = per_day, clock, count, called

    async def turn(self) -> None:
        """Wait for one's turn and take it. Raises NotNow where the day's calls are used up."""
        day, rest_us = divmod(self._clock.now_us(), day_us)
        if self._per_day and self._count(day) >= self._per_day:
            raise NotNow(
                "The calls of this day are used up", expected=f"at most {self._per_day}", retry_s=(day_us - rest_us) / 1e6,
                todo="They begin anew at midnight UTC; `per_day` is the bound",
            )  # fmt: skip
        now_s = self._clock.monotonic_s()
        wait_s = self._free_s - now_s
        self._free_s = max(now_s, self._free_s) + self._apart_s
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        if self._per_day:
            self._called(day)


class Asker:
    """Makes calls over kept connections. Redirects are not followed, proxies of the environment not used."""

    def __init__(self, *, verify: bool | ssl.SSLContext = True, answer_s: float = answer_s) -> None:
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(answer_s, connect=connect_s), verify=verify, follow_redirects=False, trust_env=False,
            limits=httpx.Limits(max_connections=50, max_keepalive_connections=20, keepalive_expiry=15.0),
        )  # fmt: skip
        self._answer_s = answer_s

    async def close(self) -> None:
        await self._client.aclose()

    async def ask(self, call: Call) -> Answer:
        """Make a call once. Raises NotNow where no whole answer comes, Unreadable where it is too long, NotAllowed for a certificate
        that is not to be trusted."""
        try:
            # The client's own limits are for each read; a server that drips bytes would keep it for ever.
            async with asyncio.timeout(connect_s + self._answer_s):
                return await self._answer(call)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise NotAllowed(f"Not an address: {error}"[:200], todo="Check `url`") from None
        except (httpx.HTTPError, ssl.SSLError, TimeoutError, OSError, UnicodeError) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            if "CERTIFICATE" in said.upper():
                raise NotAllowed("The other side's certificate is not to be trusted", got=said) from None
            raise NotNow("No answer", got=said, todo="It is asked again") from None

    async def _answer(self, call: Call) -> Answer:
        async with self._client.stream(call.method, call.url, headers=call.headers, content=call.body or None) as response:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > answer_bytes_max:
                    raise Unreadable("The answer is too long", expected=f"at most {answer_bytes_max} bytes")
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(status=response.status_code, headers=headers, body=bytes(body))


def patience_s(tries: int, first_s: float, max_s: float, salt: str) -> float:
    """Return how long to wait after so many tries: twice as long each time, spread by a third so that not all come back at once."""
    luck = int.from_bytes(blake2b(f"{salt} {tries}".encode(), digest_size=4).digest()) / 2**32
    return min(max_s, first_s * 2.0 ** min(tries, 30)) * (1.0 - luck / 3)
