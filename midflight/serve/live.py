"""The live side of the console: one reading of the store a second, shared by everybody who looks."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections import deque

import apsw
import msgspec
from starlette.responses import Response

from ..decide.unusual import Unusual
from ..kit.clock import Clock
from ..kit.counters import Counters
from ..kit.errors import MidflightError
from ..metrics import Sums
from ..store.read import Store, View, all_metrics, iso, minute_us
from . import listening
from .watch import unusual_in

logger = logging.getLogger(__name__)

strip_max = 50  # campaigns of the live strip
active_minutes = 24 * 60  # a campaign with nothing newer than this is not live
spark_minutes = 60
reread_minutes = 3  # a tick reads these again; older ones once a minute, because late events land in their own minute
cache_ms = 400
waiting_max = 16  # messages a reader may be behind
readers_max = 200
beat_s = 1.0
send_s_max = 20.0
RATES = (
    "attempted",
    "delivered",
    "open_rate",
    "click_rate",
    "conversion_rate",
    "bounce_rate",
    "complaint_rate",
    "revenue_per_thousand",
    "machine_share",
)


class Pulse:
    """The state of all active campaigns, read at most every ``cache_ms``."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self._lock = threading.Lock()
        self._made: dict | None = None
        self._made_s = -1.0
        self._spark: dict[int, dict[int, int]] = {}
        self._spark_minute = 0
        self._unusual: list[Unusual] = []
        self._unusual_minute = 0
        self._rate = deque(maxlen=10)

    def now(self) -> dict:
        """Return the present state: campaigns with sums, metrics and sparkline; what is unusual; freshness; events/s."""
        with self._lock:
            now_s = self.clock.monotonic_s()
            if self._made is None or now_s - self._made_s > cache_ms / 1000 or now_s < self._made_s:
                with self.store.view() as view:
                    self._made = self._read(view, now_s)
                self._made_s = now_s
            return self._made

    def _read(self, view: View, now_s: float) -> dict:
        minute = view.now_us // minute_us
        rows = [row for row in view.campaigns(limit=strip_max, since_minute=minute - active_minutes) if row["name"] or mailed(row["sums"])]
        self._read_sparks(view, [row["id"] for row in rows], minute)
        self._judge(view, rows, minute)
        return {
            "at": iso(view.now_us),
            "present": view.present,
            "events_per_s": self._events_per_s(view, minute, now_s),
            "events_per_minute": events_per_minute(view, minute),
            "freshness": view.freshness(),
            "campaigns": [self._campaign(row, minute) for row in rows],
            "unusual": [msgspec.to_builtins(found) for found in self._unusual],
        }

    def _judge(self, view: View, rows: list[dict], minute: int) -> None:
        """Look for what is unusual, once a minute; except for the first time nobody waits for it."""
        if self._unusual_minute == minute:
            return
        first, self._unusual_minute = not self._unusual_minute, minute
        if first:
            self._unusual = unusual_in(view, rows, self.store.path.parent)
        else:
            threading.Thread(target=self._judge_later, args=(rows,), daemon=True).start()

    def _judge_later(self, rows: list[dict]) -> None:
        try:
            with self.store.view() as view:
                self._unusual = unusual_in(view, rows, self.store.path.parent)
        except (MidflightError, apsw.Error) as error:
            logger.warning("What is unusual could not be judged: %s", error)

    def _campaign(self, row: dict, minute: int) -> dict:
        spark = self._spark.get(row["id"], {})
        return {
            "campaign": row["name"],
            "first_at": iso(row["first"] * minute_us),
            "last_at": iso(row["last"] * minute_us),
            "measures": row["sums"],
            "metrics": key_rates(row["sums"], machines=False),
            "metrics_all": key_rates(row["sums"], machines=True),
            "spark": [spark.get(m, 0) for m in range(minute - spark_minutes + 1, minute + 1)],
        }

    def _read_sparks(self, view: View, campaigns: list[int], minute: int) -> None:
        first = minute - spark_minutes + 1
        if self._spark_minute != minute or set(campaigns) != set(self._spark):
            self._spark = view.activity(campaigns, first, minute)
            self._spark_minute = minute
            return
        for id_, counts in view.activity(campaigns, minute - reread_minutes + 1, minute).items():
            self._spark[id_].update(counts)

    def _events_per_s(self, view: View, minute: int, now_s: float) -> float:
        """Return events received a second: what the receipts grew by in the last seconds, else the last full minute's mean."""
        total = sum(view.received(source, minute - 1, minute)["events"] for source in view.source_names())
        before = [(at, n) for at, m, n in self._rate if m == minute and now_s - at >= 1]
        self._rate.append((now_s, minute, total))
        if before:
            at, n = before[0]
            return max(0.0, (total - n) / (now_s - at))
        return sum(view.received(source, minute - 1, minute - 1)["events"] for source in view.source_names()) / 60


def events_per_minute(view: View, minute: int) -> list[int]:
    """Return the events received in each of the last minutes, all sources together."""
    counts = [0] * spark_minutes
    first = minute - spark_minutes + 1
    for source in view.source_names():
        for at, _, events, _, _ in view.receipts(source, first, minute):
            counts[at - first] += events
    return counts


def mailed(sums: dict[str, int]) -> bool:
    """Whether any mail is behind these sums; who only visits a site or is identified makes no campaign."""
    return any(sums[name] for name in ("queued", "sent", "delivered", "opens", "clicks", "bounced_hard", "bounced_soft", "bounced_block"))


def key_rates(measures: dict[str, int], *, machines: bool) -> dict[str, float | None]:
    """Return the metrics that stand beside a campaign in lists."""
    sums = Sums(measures=measures, machines=machines)
    return {name: all_metrics()[name].compute(sums).value for name in RATES}


class Reader:
    """One open stream. ``campaign`` narrows it to one; ``lost`` is set when it was too slow."""

    def __init__(self, campaign: str | None) -> None:
        self.campaign = campaign
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue(waiting_max)
        self.lost = False
        self.started = False  # whether it has had the whole state


class Hub:
    """Reads the pulse once a second while somebody listens, and hands each reader what changed."""

    def __init__(self, pulse: Pulse, counters: Counters) -> None:
        self.pulse = pulse
        self.counters = counters
        self.readers: set[Reader] = set()
        self.closing = False
        self._task: asyncio.Task | None = None
        self._sent: dict[str, bytes] = {}

    def join(self, campaign: str | None) -> Reader:
        """Add a reader, who gets the whole state first. Raises MidflightError when there are too many."""
        if len(self.readers) >= readers_max:
            raise Crowded("Too many open streams", expected=f"at most {readers_max}", todo="Close some")
        reader = Reader(campaign)
        self.readers.add(reader)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        return reader

    def leave(self, reader: Reader) -> None:
        self.readers.discard(reader)

    def close_soon(self) -> None:
        """The same from a signal handler or another thread."""
        self.closing = True
        if self._task is not None:
            self._task.get_loop().call_soon_threadsafe(self.close)

    def close(self) -> None:
        """End every stream, so that the server can stop."""
        self.closing = True
        for reader in list(self.readers):
            self._drop(reader)

    async def _run(self) -> None:
        while self.readers and not self.closing:
            try:
                state = await asyncio.to_thread(self.pulse.now)
            except (MidflightError, apsw.Error) as error:
                logger.warning("The pulse could not be read: %s", error)
            else:
                self.tell(state)
            await asyncio.sleep(beat_s)

    def tell(self, state: dict) -> None:
        """Give every reader what changed since the last beat; one whose queue is full is dropped, never waited for."""
        rows = {row["campaign"]: msgspec.json.encode(row) for row in state["campaigns"]}
        changed = [row for row in state["campaigns"] if self._sent.get(row["campaign"]) != rows[row["campaign"]]]
        head = {k: v for k, v in state.items() if k != "campaigns"}
        everything = sse("pulse", {**head, "campaigns": state["campaigns"]})
        delta = sse("pulse", {**head, "campaigns": changed})
        for reader in list(self.readers):
            fresh, reader.started = not reader.started, True
            if reader.campaign is not None:
                own = [row for row in (state["campaigns"] if fresh else changed) if row["campaign"] == reader.campaign]
                message = sse("pulse", {**head, "campaigns": own})
            else:
                message = everything if fresh else delta
            try:
                reader.queue.put_nowait(message)
            except asyncio.QueueFull:
                self.counters.add("stream_readers_dropped_total")
                self._drop(reader)
        self._sent = rows

    def _drop(self, reader: Reader) -> None:
        reader.lost = True
        self.readers.discard(reader)
        while not reader.queue.empty():
            reader.queue.get_nowait()
        reader.queue.put_nowait(None)


class Crowded(MidflightError):
    """No room for another open stream."""

    status = 503
    code = "crowded"


def sse(event: str, data: object) -> bytes:
    """Return one server-sent event."""
    return b"event: " + event.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


class StreamResponse(Response):
    """Server-sent events to one reader until it goes, is too slow, or the server stops."""

    media_type = "text/event-stream"

    def __init__(self, hub: Hub, reader: Reader) -> None:
        super().__init__(media_type=self.media_type)
        self.hub = hub
        self.reader = reader

    async def __call__(self, scope, receive, send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        gone = asyncio.ensure_future(self._gone(receive))
        sending = asyncio.ensure_future(self._send(send, headers))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.hub.leave(self.reader)
            for task in (gone, sending):
                task.cancel()
            await asyncio.gather(gone, sending, return_exceptions=True)

    @staticmethod
    async def _gone(receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _send(self, send, headers) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"retry: 2000\n\n", "more_body": True})
        while (message := await self.reader.queue.get()) is not None:
            async with asyncio.timeout(send_s_max):
                await send({"type": "http.response.body", "body": message, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def listen(host: str, port: int) -> socket.socket:
    """Return the console's listening socket; connections are cut when the other side stops taking bytes. Raises CannotListen."""
    listener = listening.listen(host, port, "console")
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(send_s_max * 1000))
    return listener
