"""Makes the calls of one way out: at its pace, over its connections, target by target, and says what each answer or silence means.

It keeps nothing that has to outlive the process: whoever asks for a call has its intent on the disk, and notes the outcome. Of an outcome
there is one kind more than a channel knows: ``again``, where a call may have had its effect and may be made again, because the service
promises that twice is once.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx
import msgspec

from ..events import clean
from ..kit.clock import Clock
from ..kit.crash import crash_point
from ..kit.errors import MidflightError
from .breaker import CLOSED, HALF_OPEN, Breakers, Limits
from .delivery import Withheld
from .guarded import AddressRefused, connect_s
from .pace import Pace
from .ways.way import Action, Answer, Call, Outcome, Way, origin

logger = logging.getLogger("midflight.conductor")

answer_bytes_max = 1 << 20
answer_s = 30.0
told_s_max = 6 * 3600.0  # of what a vendor may tell us to wait
untold_s = 2.0  # a service that is busy and does not say how long is left alone so long
probe_look_s = 2.0  # how soon what waits for another's probe is looked at again
splits_max = 64  # calls into which one refused batch may be taken apart
gather_s = 0.05  # what comes within it goes in one call, where a way takes several
turn_s_max = 20.0  # so long a call waits for its pace and a connection
TOGETHER = (400, 413, 422)  # refusals of a call as a whole
UNWELL = frozenset((401, 403, 408, 429))

# The request had not been written when these came: nothing happened at the other end.
_NOT_LEFT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError, httpx.InvalidURL)

Begins = Callable[[int], bool]


class _Item:
    """An action on its way. ``begins`` is asked right before its last bytes leave."""

    def __init__(self, action: Action, begins: Begins) -> None:
        self.action, self.begins = action, begins
        self.end: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.barred = False

    def ends(self, outcome: Outcome) -> None:
        if not self.end.done():
            self.end.set_result(outcome)


class Calls:
    """One way's calls. ``name`` is the way's configured name; ``client`` comes from ``guarded.client``."""

    def __init__(
        self, name: str, way: Way, client: httpx.AsyncClient, clock: Clock, *, limits: Limits | None = None, answer_s: float = answer_s
    ) -> None:  # fmt: skip
        self.name, self.way, self.clock = name, way, clock
        self.breakers = Breakers(limits)
        self._client, self._answer_s = client, answer_s
        self._pace = Pace(way.settings.per_second, clock.monotonic_s())
        self._lines = asyncio.Semaphore(way.settings.connections)
        self._granting = asyncio.Lock()
        self._waiting: dict[tuple[str, str], list[_Item]] = {}
        self._batches: set[asyncio.Task] = set()

    @property
    def promise_us(self) -> int:
        return self.way.promise_us

    async def close(self) -> None:
        for task in self._batches:
            task.cancel()
        await asyncio.gather(*self._batches, return_exceptions=True)
        await self._client.aclose()

    # -- actions -------------------------------------------------------------------------------------------------------------

    async def deliver(self, action: Action, begins: Begins) -> Outcome:
        """Make an action's call once, alone or with others, and return what became of it."""
        try:
            self.way.said(action)
            target, group = self.way.target(action), self.way.group(action)
        except (msgspec.ValidationError, MidflightError) as error:
            return refused(error)
        item = _Item(action, begins)
        if self.way.batch_max == 1:
            await self._in_turn(target, [item])
        else:
            self._gather((target, group), item)
        return await item.end

    def _gather(self, key: tuple[str, str], item: _Item) -> None:
        if key not in self._waiting:
            self._waiting[key] = []
            task = asyncio.create_task(self._together(key))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)
        self._waiting[key].append(item)

    async def _together(self, key: tuple[str, str]) -> None:
        """Send what comes within a moment for one target and group, in as few calls as the way takes."""
        await asyncio.sleep(gather_s)
        items = self._waiting.pop(key)
        size = self.way.batch_max
        await asyncio.gather(*(self._in_turn(key[0], items[at : at + size]) for at in range(0, len(items), size)))

    async def _in_turn(self, target: str, items: list[_Item]) -> None:
        """Send when pace and connections allow, if that is soon; whatever goes wrong, all have an end."""
        try:
            if why := self._resting(target):
                return _all(items, why)
            if not await self._line():
                return _all(items, Outcome(kind="later", code="busy", detail="all connections are busy", retry_s=1.0))
            try:
                await self._send(target, [item for item in items if not item.end.done()], [splits_max])
            finally:
                self._lines.release()
        except asyncio.CancelledError:
            for item in items:
                item.end.cancel()
            raise
        except Exception as error:
            # A mistake over one odd action must not leave the others without an end; what had begun is then unknown.
            logger.exception("calls of `%s` failed", self.name)
            for item in items:
                if not item.end.done():
                    item.end.set_exception(RuntimeError(_said(error)))

    async def _line(self) -> bool:
        """Wait for a connection and for the pace, and return whether both came soon enough."""
        try:
            async with asyncio.timeout(turn_s_max):
                await self._lines.acquire()
        except TimeoutError:
            return False
        try:
            async with asyncio.timeout(turn_s_max):
                while not self._pace.ready(self.clock.monotonic_s(), 1):  # noqa: ASYNC110
                    await asyncio.sleep(min(1.0, 0.5 / self.way.settings.per_second))
        except BaseException as error:
            self._lines.release()
            if isinstance(error, TimeoutError):
                return False
            raise
        self._pace.took(1)
        return True

    def _resting(self, target: str) -> Outcome | None:
        """Return what keeps calls from a target, or None."""
        now_us, breaker = self.clock.now_us(), self.breakers.of(target)
        if not breaker.waits_us(now_us):
            return None
        until_us = breaker.held_us if breaker.state == HALF_OPEN else breaker.waits_us(now_us)
        wait_s = max((until_us - now_us) / 1e6, probe_look_s)
        return Outcome(kind="later", code="target_down", detail=f"`{target}` is left alone", retry_s=wait_s)

    # -- one call --------------------------------------------------------------------------------------------------------------

    async def _send(self, target: str, items: list[_Item], splits: list[int]) -> None:
        """Make one call and give each of its actions an end; take a batch apart that is refused as a whole."""
        if why := await self._token():
            return _all(items, why)
        if why := self._resting(target):
            return _all(items, why)
        now_us = self.clock.now_us()
        call, items = self._made(items, now_us)
        if call is None:
            return
        breaker = self.breakers.of(target)
        self.breakers.put(target, breaker.asked(now_us, self.breakers.limits))
        try:
            outcomes, answer = await self._outcomes(items, call)
        except Withheld:
            self.breakers.put(target, breaker)
            _all([item for item in items if item.barred], Outcome(kind="later", code="withheld", retry_s=1.0))
            rest = [item for item in items if not item.barred]
            return await self._send(target, rest, splits) if rest else None
        self._learn(target, outcomes, answer)
        whole = answer is not None and answer.status in TOGETHER and all(outcome.kind == "refused" for outcome in outcomes)
        if whole and len(items) > 1 and splits[0] > 0:
            splits[0] -= 2
            half = len(items) // 2
            await self._send(target, items[:half], splits)
            return await self._send(target, items[half:], splits)
        for item, outcome in zip(items, outcomes, strict=True):
            item.ends(outcome)

    def _made(self, items: list[_Item], now_us: int) -> tuple[Call | None, list[_Item]]:
        """Return the call for a batch, without those that cannot be said; they are refused."""
        try:
            return self.way.calls([item.action for item in items], now_us), items
        except (msgspec.ValidationError, MidflightError) as error:
            if len(items) == 1:
                items[0].ends(refused(error))
                return None, []
        good = []
        for item in items:
            try:
                self.way.calls([item.action], now_us)
                good.append(item)
            except (msgspec.ValidationError, MidflightError) as error:
                item.ends(refused(error))
        return (self.way.calls([item.action for item in good], now_us), good) if good else (None, [])

    async def _token(self) -> Outcome | None:
        """Fetch a token where one is needed; return what is in the way, or None."""
        async with self._granting:
            now_us = self.clock.now_us()
            call = self.way.token.call(now_us) if self.way.token else None
            if call is None:
                return None
            target = origin(call.url)
            if until_us := self.breakers.of(target).waits_us(now_us):
                return Outcome(kind="later", code="token", detail="no token is to be had", retry_s=(until_us - now_us) / 1e6)
            self.breakers.put(target, self.breakers.of(target).asked(now_us, self.breakers.limits))
            answer = await self._asked(call, lambda: None)
            if isinstance(answer, Answer) and 200 <= answer.status < 300 and not self.way.token.granted(answer, now_us):
                self.breakers.put(target, self.breakers.of(target).succeeded())
                return None
            breaker = self.breakers.of(target).failed(self.clock.now_us(), self.breakers.limits)
            said = retry_after_s(answer, now_us) if isinstance(answer, Answer) else 0.0
            self.breakers.put(target, breaker.throttled(now_us + int(said * 1e6)) if said else breaker)
            detail = f"{answer.status} of the token's service" if isinstance(answer, Answer) else answer.detail
            return Outcome(kind="later", code="token", detail=detail, retry_s=max(said, untold_s))

    async def _outcomes(self, items: list[_Item], call: Call) -> tuple[list[Outcome], Answer | None]:
        promise_us = self.way.promise_us if call.idempotent else 0

        def begin() -> None:
            for item in items:
                item.barred = item.end.done() or not item.begins(promise_us)
            if any(item.barred for item in items):
                raise Withheld

        answer = await self._asked(call, begin)
        if isinstance(answer, Outcome):
            return [answer] * len(items), None
        crash_point("after_answer")
        outcomes = self._read([item.action for item in items], answer)
        if answer.status in (307, 308):
            # "The same request, elsewhere": nothing was done here, nothing is followed, and somebody has to look at the address.
            return [msgspec.structs.replace(o, kind="later", detail="it answers with a redirect") for o in outcomes], answer
        if told := retry_after_s(answer, self.clock.now_us()):
            outcomes = [msgspec.structs.replace(o, retry_s=told) if o.kind == "later" else o for o in outcomes]
        if call.idempotent:
            # An answer that does not say that nothing was done leaves it open.
            open_ended = answer.status >= 500 or answer.status < 300 or answer.status == 408
            kinds = ("unknown", "later") if open_ended else ("unknown",)
            outcomes = [msgspec.structs.replace(o, kind="again") if o.kind in kinds else o for o in outcomes]
        return outcomes, answer

    def _read(self, actions: list[Action], answer: Answer) -> list[Outcome]:
        """Return what the way reads in an answer. A mistake of ours over an odd one must not stop the others: its end is unknown."""
        try:
            outcomes = self.way.outcomes(actions, answer)
            assert len(outcomes) == len(actions)
        except Exception:
            logger.exception("An answer of `%s` with status %s could not be read", self.name, answer.status)
            return [Outcome(kind="unknown", code=str(answer.status), detail="the answer could not be read")] * len(actions)
        return outcomes

    async def _asked(self, call: Call, begin: Callable[[], None]) -> Answer | Outcome:
        """Make a call; return the answer, or what it means that there is none. ``begin`` hears when its last part is about to leave, and
        raises Withheld where it must not."""
        left = False

        def leaves() -> None:
            nonlocal left
            begin()
            left = True

        try:
            # The client's own limits are for each read; a server that drips bytes would keep it for ever.
            async with asyncio.timeout(connect_s + self._answer_s):
                return await self._answer(call, leaves)
        except AddressRefused as error:
            return Outcome(kind="refused", code="address", detail=_said(error))
        except _NOT_LEFT as error:
            return Outcome(kind="later", code="unreachable", detail=_said(error))
        except (httpx.HTTPError, ssl.SSLError, TimeoutError) as error:
            if not left:
                return Outcome(kind="later", code="unreachable", detail=_said(error))
            # It may have arrived. Only where twice is once may it be tried again.
            return Outcome(kind="again" if call.idempotent else "unknown", code="no_answer", detail=_said(error))

    async def _answer(self, call: Call, leaves: Callable[[], None]) -> Answer:
        # Until its body has left, a request is none; one without a body is complete with its headers.
        last = ".send_request_body.started" if call.body else ".send_request_headers.started"

        async def trace(event: str, _info: dict) -> None:
            if event.endswith(last):
                leaves()

        crash_point("before_call")
        # What is compressed could become any size: nothing is inflated, and what is sent compressed all the same says nothing.
        headers = {"accept-encoding": "identity"} | call.headers
        async with self._client.stream(call.method, call.url, headers=headers, content=call.body, extensions={"trace": trace}) as response:
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > answer_bytes_max:
                    # No vendor says so much; what it has said by now is all that is read.
                    break
            plain = response.headers.get("content-encoding", "identity") == "identity"
            found = {k.lower(): v for k, v in response.headers.items()}
            return Answer(status=response.status_code, headers=found, body=bytes(body[:answer_bytes_max]) if plain else b"")

    def _learn(self, target: str, outcomes: list[Outcome], answer: Answer | None) -> None:
        """Tell the target's breaker how a call went."""
        now_us, breaker = self.clock.now_us(), self.breakers.of(target)
        if answer is None and outcomes[0].code == "address":
            return self.breakers.put(target, breaker.succeeded() if breaker.state != CLOSED else breaker)
        if answer is not None and answer.status == 401:
            self.way.forget_token()
        told = retry_after_s(answer, now_us) if answer is not None else 0.0
        if answer is not None and (answer.status == 429 or told) and any(o.kind in ("later", "again") for o in outcomes):
            return self.breakers.put(target, breaker.throttled(now_us + int((told or untold_s) * 1e6)))
        unwell = answer is None or answer.status >= 500 or answer.status in UNWELL or 300 <= answer.status < 400
        self.breakers.put(target, breaker.failed(now_us, self.breakers.limits) if unwell else breaker.succeeded())

    # -- taking it back ----------------------------------------------------------------------------------------------------------

    def can_undo(self) -> bool:
        return bool(self.way.undoes)

    async def undo(self, action: Action, made: Outcome) -> Outcome:
        """Take back what an action did: ``sent`` once it is, ``later`` where it may be asked again, ``refused`` where it cannot be."""
        try:
            call, target = self.way.undo(action, made), self.way.target(action)
        except (msgspec.ValidationError, MidflightError) as error:
            return refused(error)
        if call is None:
            return Outcome(kind="refused", code="cannot_undo", detail=f"What went out by {self.way.label} cannot be taken back")
        if why := self._resting(target):
            return why
        if not await self._line():
            return Outcome(kind="later", code="busy", retry_s=1.0)
        try:
            return await self._undone(action, made, target)
        finally:
            self._lines.release()

    async def _undone(self, action: Action, made: Outcome, target: str) -> Outcome:
        if why := await self._token() or self._resting(target):
            return why
        now_us = self.clock.now_us()
        # Made anew: the token may be another one by now.
        call = self.way.undo(action, made)
        self.breakers.put(target, self.breakers.of(target).asked(now_us, self.breakers.limits))
        answer = await self._asked(msgspec.structs.replace(call, idempotent=True), lambda: None)
        outcome = answer if isinstance(answer, Outcome) else self.way.undone(answer)
        self._learn(target, [outcome], answer if isinstance(answer, Answer) else None)
        if isinstance(answer, Answer) and (told := retry_after_s(answer, now_us)):
            outcome = msgspec.structs.replace(outcome, retry_s=told)
        # An undo made twice does what once does: what nobody knows the end of is made again.
        return msgspec.structs.replace(outcome, kind="later") if outcome.kind in ("unknown", "again") else outcome


def _all(items: list[_Item], outcome: Outcome) -> None:
    for item in items:
        item.ends(outcome)


def refused(error: Exception) -> Outcome:
    """Return what it means that something cannot be said."""
    said = error.text() if isinstance(error, MidflightError) else str(error)
    return Outcome(kind="refused", code="fields", detail=clean(said)[:500])


def retry_after_s(answer: Answer, now_us: int) -> float:
    """Return how long ``Retry-After`` asks to wait, in seconds or as a date (RFC 9110 section 10.2.3), at most six hours; 0 where it says
    nothing that can be read."""
    said = answer.headers.get("retry-after", "").strip()[:64]
    if said.isascii() and said.replace(".", "", 1).isdigit():
        return min(float(said), told_s_max)
    try:
        at = parsedate_to_datetime(said)
        # A date without a zone is none of HTTP's; it is taken as UTC.
        at_s = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError, LookupError):
        return 0.0
    return min(max(at_s - now_us / 1e6, 0.0), told_s_max)


def _said(error: BaseException) -> str:
    return clean(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
