"""What a vendor's request goes through: decode, verify, check, store; then the 200."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from urllib.parse import urlsplit

from ...kit.crash import crash_point
from ...kit.errors import MidflightError
from ...log import Record, Stored
from ...sources.source import Refused, Request, Source
from .answers import OK, Answer, json_answer, later, refusal
from .check import Limits, check
from .http import Exchange
from .inflate import inflate

logger = logging.getLogger("midflight.door")

inline_bytes_max = 256 * 1024  # larger bodies are handled step by step, so that others are not held up
thread_bytes_max = 1024 * 1024  # still larger ones are hashed in a thread
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


class Storing:
    """One request on its way to the log; called with what became of it."""

    __slots__ = ("answer", "done", "door", "exchange")

    def __init__(self, door, exchange: Exchange, answer: Answer, done: Callable[[], None] | None = None) -> None:
        self.door, self.exchange, self.answer, self.done = door, exchange, answer, done

    def __call__(self, outcome: Stored | Exception) -> None:
        door, exchange = self.door, self.exchange
        door.release(exchange)
        if isinstance(outcome, Stored):
            crash_point("before_200")
            door.counters.add("door_stored_total", exchange.route.lane)
            door.answer(exchange, self.answer)
            if self.done is not None:
                self.done()
        else:
            door.answer(exchange, door.log_refused(outcome))


class Webhook:
    """One configured source behind its URL. ``post`` is called for each complete request."""

    kind = "webhook"
    ok = OK

    def __init__(self, door, source: Source) -> None:
        settings = door.config.door
        self.door, self.source = door, source
        self.limits = Limits(settings.events_max, settings.event_bytes_max)
        self.inflated_bytes_max = settings.inflated_bytes_max
        self.public_url = settings.public_url.rstrip("/").encode()
        # Such a source may ask the network for a certificate: not in the event loop.
        self.blocks = callable(getattr(source, "fetch", None))
        self.forms = "content-type" in source.headers_kept
        self.kept = tuple(dict.fromkeys(("content-type", *source.headers_kept)))
        challenge = b'www-authenticate: Basic realm="midflight"\r\n' if source.config.basic_auth else b""
        self.unauthorized = refusal(
            401,
            "unauthorized",
            "The request is not authentic",
            todo=advice(source),
            headers=challenge,
        )

    def post(self, exchange: Exchange) -> Answer | None:
        """Return the answer, or None when it comes later."""
        if self.blocks or len(exchange.body) > inline_bytes_max or "content-encoding" in exchange.headers:
            self.door.spawn(self.answer_carefully(exchange))
            return None
        try:
            request = self.request_of(exchange)
            used = self.source.verify(request)
            for _ in self.check(request):
                pass
            return self.store(exchange, request, used)
        except MidflightError as error:
            return self.refused(error)

    async def answer_carefully(self, exchange: Exchange) -> None:
        """Do what `post` does, step by step and with blocking parts in a thread."""
        try:
            await self.decode(exchange)
            request = self.request_of(exchange)
            if self.blocks or len(request.body) > thread_bytes_max:
                used = await asyncio.get_running_loop().run_in_executor(self.door.threads, self.source.verify, request)
            else:
                used = self.source.verify(request)
            for _ in self.check(request):
                await asyncio.sleep(0)
            answer = self.store(exchange, request, used)
        except MidflightError as error:
            answer = self.refused(error)
        except Exception as error:
            answer = self.door.fault(exchange, error)
        if answer is not None:
            self.door.answer(exchange, answer)

    async def decode(self, exchange: Exchange) -> None:
        """Inflate the body; what it grows by counts as waiting."""
        encoding = exchange.headers.get("content-encoding", "").lower()
        if encoding in ("", "identity"):
            return
        body = bytearray()
        for piece in inflate(exchange.body, encoding, self.inflated_bytes_max):
            if not self.door.hold(exchange, len(piece)):
                raise Overloaded("Too much is waiting to be stored")
            body += piece
            await asyncio.sleep(0)
        exchange.body = bytes(body)

    def request_of(self, exchange: Exchange) -> Request:
        return Request(
            method="POST",
            url=(self.public_url + exchange.target).decode("latin-1"),
            headers=exchange.headers,
            body=exchange.body,
            received_at_us=exchange.at_us,
        )

    def check(self, request: Request):
        form = self.forms and request.header("content-type").lower().startswith(FORMS)
        return check(request.body, self.source.shape, self.limits, form=form)

    def store(self, exchange: Exchange, request: Request, used: int) -> Answer | None:
        """Hand the record to the log; the answer follows when it is durable."""
        door, source = self.door, self.source
        response = source.handshake(request)
        answer, done = self.ok, None
        if used:
            door.counters.add("door_old_secret_total", source.name)
        if response is not None:
            if response.status != 200:
                return Answer(response.status, response.body, reason="handshake")
            if response.body:
                answer = Answer(200, response.body)
            if response.fetch:
                done = lambda: door.fetch(source.name, response.fetch)  # noqa: E731
        headers = {name: request.headers[name] for name in self.kept if name in request.headers}
        record = Record(self.kind, source.name, request.received_at_us, headers, request.body, self.record_url(exchange))
        door.submit([record], Storing(door, exchange, answer, done))
        return None

    def record_url(self, exchange: Exchange) -> str:
        """Return what parsing may need of the URL: nothing of a webhook's, whose query may hold a token."""
        return ""

    def refused(self, error: MidflightError) -> Answer:
        """Return the answer to a request that is not stored, and count why."""
        if isinstance(error, Refused) or error.status == 401:
            if "clock skew" in error.what:
                self.door.skewed(self.source.name)
            return self.unauthorized._replace(said=error.text())
        if error.status == 429:
            return later(error.code, error.what)._replace(said=error.text())
        error.status = 413 if error.status == 413 else 400
        return json_answer(error.status, error.as_dict(), reason=error.code)._replace(said=error.text())


def advice(source: Source) -> str:
    """Return what to compare where a request is refused: each way in which this source asks for proof."""
    config, advices = source.config, []
    if source.signs and config.secrets:
        advices.append("Compare the secret with the vendor's. If it is right, the body changed in transit: a proxy must not rewrite it")
    elif getattr(config, "topics", ()):
        advices.append("Compare `topics` with the topic's ARN. If it is there, the body changed in transit: a proxy must not rewrite it")
    if config.basic_auth:
        advices.append("Compare user and password with those that the vendor sends; a proxy must pass on `Authorization`")
    if config.bearer:
        advices.append("Compare the token with the one that the vendor sends; a proxy must pass on `Authorization`")
    if config.headers:
        advices.append("Compare the source's `headers` with those that the vendor sends; a proxy must pass them on")
    return ". ".join(advices) or "Compare the source's settings with the vendor's"


class Overloaded(MidflightError):
    """No room is left for what this body inflates to."""

    status = 429
    code = "overload"


class Tracking(Webhook):
    """Calls in Segment's format, for the source of that kind whose write key they carry; browsers of any origin may call."""

    kind = "track"
    CORS = b"access-control-allow-origin: *\r\n"
    PREFLIGHT = Answer(
        204,
        headers=CORS
        + b"access-control-allow-methods: POST, OPTIONS\r\naccess-control-allow-headers: authorization, content-type\r\n"
        + b"access-control-max-age: 86400\r\n",
    )
    CALLS = ("track", "identify", "page", "batch", "screen", "group", "alias", "t", "i", "p", "b", "s", "g", "a")
    ok = json_answer(200, {"success": True}, headers=CORS)

    def __init__(self, door, source: Source) -> None:
        super().__init__(door, source)
        # No challenge: a browser would ask its user for a password.
        self.unauthorized = refusal(401, "unauthorized", "The write key is not known")

    def refused(self, error: MidflightError) -> Answer:
        answer = super().refused(error)
        return answer._replace(headers=answer.headers + self.CORS)

    def record_url(self, exchange: Exchange) -> str:
        # The last part of the path says what kind of call it is.
        return exchange.target.partition(b"?")[0].decode("latin-1")


class Tracked:
    """The `/v1/track` family: tries the sources of kind `segment` until one knows the write key."""

    def __init__(self, door, sources: list[Source]) -> None:
        self.door = door
        self.sources = [Tracking(door, source) for source in sources]

    def post(self, exchange: Exchange) -> Answer | None:
        if len(self.sources) == 1:
            return self.sources[0].post(exchange)
        if "content-encoding" in exchange.headers:
            self.door.spawn(self.post_decoded(exchange))
            return None
        return self.chosen(exchange).post(exchange)

    async def post_decoded(self, exchange: Exchange) -> None:
        first = self.sources[0]
        try:
            await first.decode(exchange)
            del exchange.headers["content-encoding"]
            answer = self.chosen(exchange).post(exchange)
        except MidflightError as error:
            answer = first.refused(error)
        except Exception as error:
            answer = self.door.fault(exchange, error)
        if answer is not None:
            self.door.answer(exchange, answer)

    def chosen(self, exchange: Exchange) -> Tracking:
        """Return the source whose key the request carries; the first, which then refuses it, where none fits."""
        for tracking in self.sources:
            try:
                tracking.source.verify(tracking.request_of(exchange))
            except MidflightError:
                continue
            return tracking
        return self.sources[0]


async def fetch_once(url: str, *, seconds_max: float = 10.0, bytes_max: int = 64 * 1024) -> int:
    """Fetch a URL that completes a handshake and return the status. https only, no redirects, little, soon. Raises OSError."""
    import httpx

    if urlsplit(url).scheme != "https":
        raise ConnectionError("only https is fetched")
    try:
        async with asyncio.timeout(seconds_max):
            async with httpx.AsyncClient(follow_redirects=False, trust_env=False) as client, client.stream("GET", url) as answer:
                size = 0
                async for piece in answer.aiter_raw():
                    size += len(piece)
                    if size > bytes_max:
                        break
                return answer.status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConnectionError(f"{type(error).__name__}: {error}"[:200]) from None
