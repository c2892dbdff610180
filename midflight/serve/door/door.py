"""The door: webhooks and tracked calls come in over HTTP, are verified and checked, and are answered once they are in the log."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from time import monotonic

from ...act.links import PREFIX, Links, public_key
from ...config import Config
from ...kit.clock import Clock
from ...kit.counters import Counters
from ...kit.errors import MidflightError
from ...log import GroupCommit, Record, TooLarge, Unwritable
from ...sources import load
from ..listening import listen
from .accept import Acceptor
from .advisor import Advisor
from .answers import NOT_FOUND, OK, UNSUPPORTED, Answer, date_line, later, refusal, wire
from .decide import LANE as DECIDE_LANE
from .decide import PATH as DECIDE
from .decide import Deciding
from .decide import body_bytes_max as decide_bytes_max
from .http import Connection, Exchange
from .inflate import ENCODINGS
from .internal import Internal, body_bytes_max, token_at
from .limits import FairQueue, Waiting, request_bytes
from .notes import Notes
from .pages import Pages
from .retention import day_us, needed_from, oldest_us
from .site import Site, site_of
from .site_reports import LANE as SITE_LANE
from .site_reports import body_bytes_max as site_bytes_max
from .stopping import Stopping
from .storing import Appending, is_final, open_writer, why_unwritable
from .tokens import Tokens
from .unsubscribe import LANE, Unsubscribing
from .unsubscribe import body_bytes_max as unsubscribe_bytes_max
from .webhooks import Tracked, Tracking, Webhook, fetch_once

logger = logging.getLogger("midflight.door")

read_bytes = 64 * 1024  # one read; also bounds how long the requests of one read can hold up others
slice_s = 0.004  # so long the queue is worked on before the sockets are looked at again
queue_s_max = 1.0  # a request that waited longer for its turn is refused: its sender may have given up
append_s_max = 2.0  # while one append takes longer, new requests are refused
shed_s = (0.5, 1.0)  # a refusal for overload is held back so long: a sender that repeats at once is slowed down, not served faster
threads_max = 8
tasks_max = 256
stop_s_max = 9.0
tick_s = 1.0
retain_s = 3600.0
look_s = 0.25


LINKS = PREFIX.encode()

Handler = Callable[[Exchange], Answer | None]


class Route:
    """What answers under one path: handlers by method, and the lane in which its requests wait."""

    __slots__ = ("body_bytes_max", "handlers", "lane", "not_allowed", "reads", "reads_anything")

    def __init__(self, lane: str, handlers: dict[bytes, Handler], bytes_max: int = 0, *, reads: bool = False) -> None:
        self.lane = lane
        self.handlers = handlers
        self.body_bytes_max = bytes_max
        self.reads = reads  # whether bodies may be compressed
        self.reads_anything = False  # or come in any encoding, because hardly anything in them counts
        allowed = b"allow: %s\r\n" % b", ".join(sorted(handlers))
        self.not_allowed = refusal(405, "method", "The method is not allowed here", headers=allowed)


class Door:
    """One door over one log. Everything but the log's thread runs in one event loop."""

    ok = OK

    def __init__(
        self, config: Config, *, clock: Clock | None = None, opener: Callable = open_writer, loaded: Callable[[], object] = lambda: None
    ) -> None:
        """``loaded`` is called whenever many objects have been made that stay."""
        self.config = config
        self.clock = clock or Clock()
        self.opener = opener
        self.loaded = loaded
        self.counters = Counters()
        self.notes = Notes(self.counters)
        self.connections: dict[Connection, None] = {}
        self.open_count = 0
        self.buffer = memoryview(bytearray(read_bytes))
        self.queue = FairQueue()
        self.waiting = Waiting(config.door.waiting_bytes_max)
        self.under_way = 0  # requests that have arrived and are not answered
        self.threads = ThreadPoolExecutor(threads_max, thread_name_prefix="door")
        self.tasks: set[asyncio.Task] = set()
        self.appending: Appending | None = None
        self.commit: GroupCommit | None = None
        self.closed = "starting"  # why nothing can be stored now; "" when all is well
        self.closed_what = "The door is starting"
        self.stopping = self.draining = self.ticking = False
        self.failed: Exception | None = None
        self.finished: asyncio.Event | None = None
        self.nowhere = Route("", {b"GET": lambda _: NOT_FOUND})
        self.stopper = Stopping(config.folder, self.spawn, self.call_later)
        self.links = self._links()
        self.advisor = Advisor(config.folder, config.door.public_url, self.links)
        self.advised = False  # whether somebody reads what the advisor needs at this moment
        self.tokens = Tokens(config.folder)
        self.deciding = Deciding(self, self.advisor, self.tokens)
        self.site: Site | None = site_of(self, getattr(config, "ways", {}))
        self.routes = self._routes()
        self.links_route = self._links_route()
        self.refresh_date()

    def _routes(self) -> dict[bytes, Route]:
        settings, routes = self.config.door, {}
        tracked = []
        for name, given in self.config.sources.items():
            given = dict(given)
            source = load(given.pop("kind"), given, name=name)
            if source.__class__.__module__.endswith(".segment"):
                tracked.append(source)
                continue
            hello = {b"GET": lambda _: OK, b"HEAD": lambda _: OK}
            handlers = {b"POST": Webhook(self, source).post, **hello}
            routes[b"/in/" + name.encode()] = Route(name, handlers, settings.body_bytes_max, reads=True)
        if tracked:
            handlers = {b"POST": Tracked(self, tracked).post, b"OPTIONS": lambda _: Tracking.PREFLIGHT}
            for call in Tracking.CALLS:
                routes[b"/v1/" + call.encode()] = Route("v1", handlers, settings.body_bytes_max, reads=True)
        internal = Internal(self, token_at(self.config.make_folder()), settings.host)
        routes[b"/internal/append"] = Route("internal", {b"POST": internal.post}, body_bytes_max)
        routes[DECIDE] = Route(DECIDE_LANE, {b"POST": self.deciding.post}, decide_bytes_max)
        if site := self.site:
            for path in site.files:
                routes[path] = Route("pages", {b"GET": site.file, b"HEAD": site.file})
            routes[b"/v1/site"] = Route(SITE_LANE, {b"GET": site.streams.get, b"POST": site.reports.message}, site_bytes_max)
            routes[b"/v1/push"] = Route(SITE_LANE, {b"GET": site.reports.key, b"POST": site.reports.browser}, site_bytes_max)
        pages = Pages(self, internal)
        for name in ("health", "ready", "metrics"):
            page = getattr(pages, name)
            routes[b"/" + name.encode()] = Route("pages", {b"GET": page, b"HEAD": page})
        return routes

    def _links(self) -> Links | None:
        """Return what makes and reads links; None where the key cannot be read: webhooks are taken all the same."""
        folder = self.config.make_folder()
        try:
            return Links(public_key(folder), self.config.door.base_url)
        except (MidflightError, OSError) as error:
            logger.error("links to unsubscribe do not work: %s", error)
            return None

    def _links_route(self) -> Route:
        """Return what answers under every path that begins with `/u/`."""
        page = Unsubscribing(self, self.links, self.stopper)
        route = Route(LANE, {b"GET": page.get, b"HEAD": page.get, b"POST": page.post}, unsubscribe_bytes_max)
        route.reads_anything = True
        return route

    def call_later(self, delay_s: float, what: Callable, *arguments: object) -> asyncio.TimerHandle:
        return self.loop.call_later(delay_s, what, *arguments)

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, then open the log: until it is open requests get 429. Raises CannotListen."""
        loop = self.loop = asyncio.get_running_loop()
        self.finished = asyncio.Event()
        settings = self.config.door
        if settings.waiting_bytes_max < 2 * (settings.body_bytes_max + settings.inflated_bytes_max):
            logger.warning("door.waiting_bytes_max has no room for two of the largest bodies: such a body will always get 429")
        listener = listen(settings.host, settings.port, "door")
        self.port = listener.getsockname()[1]
        self.acceptor = Acceptor(loop, listener, self.has_room, self.take, self.refused_connection)
        self.looking = loop.call_later(look_s, self.look)
        self.last_tick_s = monotonic()
        self.retain_at_s = monotonic() + retain_s / 60
        try:
            await self.open_log()
        except Unwritable:
            self.spawn(self.open_log_later())
        except BaseException:
            self.acceptor.close()
            self.looking.cancel()
            raise

    async def open_log(self) -> None:
        """Open the log and begin to take records. Raises Unwritable (later perhaps), Locked or Damaged (never)."""
        try:
            writer = await self.loop.run_in_executor(self.threads, self.opener, self.config.folder / "log", self.clock)
        except Unwritable as error:
            self.log_refused(error)
            raise
        self.appending = Appending(writer)
        self.commit = GroupCommit(self.appending, self.deliver, waiting_bytes_max=4 * self.waiting.bytes_max)
        self.closed = self.closed_what = ""

    async def open_log_later(self) -> None:
        """Try until the disk lets us: meanwhile senders get 429."""
        while not self.stopping:
            await asyncio.sleep(tick_s)
            try:
                await self.open_log()
                return
            except Unwritable:
                continue
            except Exception as error:
                self.failed = error
                return

    async def stop(self) -> None:
        """Accept no more, answer what has arrived, make it durable, close the log: within `stop_s_max`."""
        if self.stopping:
            await self.finished.wait()
            return
        self.stopping = True
        self.acceptor.close()
        if self.site:
            self.site.close()
        until = monotonic() + stop_s_max
        for connection in list(self.connections):
            if connection.idle:
                connection.transport.close()
        # What has to end is counted in three places, and this happens once: looking is simplest.
        while (self.connections or self.under_way or self.tasks) and monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await self.loop.run_in_executor(None, self._close_log)
        self.looking.cancel()
        self.stopper.close()
        self.advisor.folded.close()
        self.tokens.close()
        self.deciding.close()
        for task in self.tasks:
            task.cancel()
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.finished.set()

    def _close_log(self) -> None:
        if self.commit is not None:
            self.commit.close()
            self.appending.close()

    # -- connections ---------------------------------------------------------------------------------------------------

    def has_room(self) -> bool:
        return self.open_count < self.config.door.connections_max or self.idle_connection() is not None

    def idle_connection(self) -> Connection | None:
        return next((connection for connection in self.connections if connection.kept), None)

    def take(self, client: socket.socket, peer: str) -> None:
        # Somebody who only keeps a connection for later makes room for somebody who has something to say.
        if self.open_count >= self.config.door.connections_max and (idle := self.idle_connection()) is not None:
            idle.end_after_queue()
        self.open_count += 1
        self.spawn(self._connect(client, peer))

    async def _connect(self, client: socket.socket, peer: str) -> None:
        try:
            await self.loop.connect_accepted_socket(lambda: Connection(self, peer), client)
        except OSError:
            client.close()
            self.one_less()

    def disconnected(self, connection: Connection) -> None:
        if self.connections.pop(connection, True) is None:
            self.one_less()

    def one_less(self) -> None:
        self.open_count -= 1
        self.acceptor.resume()

    def refused_connection(self, why: str) -> None:
        self.counters.add("door_accept_paused_total")
        self.notes.say("accept", f"accepting pauses: no {why} left")

    def refresh_date(self) -> None:
        self.date = date_line(self.clock.now_us())
        self.ok_wire = wire(OK, self.date, close=False)

    def look(self) -> None:
        """Several times a second: ends what takes too long, keeps the date, lets time pass in the log."""
        now_s = monotonic()
        self.looking = self.loop.call_later(look_s, self.look)
        self.refresh_date()
        slow_client_s = self.config.door.slow_client_s
        for connection in list(self.connections):
            connection.look_at_time(now_s, slow_client_s)
        if not self.stopping and self.has_room():
            self.acceptor.resume()
        self.notes.look(now_s)
        self.look_for_advice()
        if self.site and not self.stopping:
            self.site.streams.look(now_s)
        if now_s - self.last_tick_s >= tick_s:
            self.last_tick_s = now_s
            self.tick(now_s)

    def look_for_advice(self) -> None:
        """Let the advisor see how far the engine is and what the conductor has written."""
        advisor = self.advisor
        advisor.look()
        if self.advised or self.stopping or self.commit is None:
            return
        if advisor.changed() or advisor.head_at_start < 0:
            self.advised = True
            self.spawn(self.advise())

    async def advise(self) -> None:
        """Read for the advisor what takes a while."""
        advisor = self.advisor
        try:
            if advisor.head_at_start < 0:
                advisor.starts_at(await self.loop.run_in_executor(self.threads, advisor.read_head))
            found = await self.loop.run_in_executor(self.threads, advisor.read_advice) if advisor.seen else None
            if found is not None:
                if found is not advisor.campaigns and any(known.is_new for known in found.values()):
                    self.loaded()
                advisor.campaigns = found
        except MidflightError as error:
            logger.error("the log's end cannot be told: %s", error.text())
        finally:
            self.advised = False

    def tick(self, now_s: float) -> None:
        """Append a tick when nothing else was appended; while the log refuses, it is also what finds out that it works again."""
        if self.commit is None or self.ticking or self.stopping:
            return
        if now_s >= self.retain_at_s:
            self.retain_at_s = now_s + retain_s
            self.spawn(self.retain())
        if self.closed or now_s - self.appending.last_s >= tick_s:
            self.ticking = True
            self.commit.submit([Record("tick", "", self.clock.now_us(), {}, b"")], self.ticked)

    def ticked(self, outcome) -> None:
        self.ticking = False
        if isinstance(outcome, Exception):
            self.log_refused(outcome)
        elif self.closed:
            logger.warning("the log takes records again")
            self.closed = self.closed_what = ""

    async def retain(self) -> None:
        """Have records removed that are older than `retention.log_days` and that nobody has to read any more."""
        older_than_us = self.clock.now_us() - self.config.retention.log_days * day_us
        try:
            oldest = await self.loop.run_in_executor(self.threads, oldest_us, self.config.folder / "log")
        except MidflightError as error:
            logger.error("the age of the log cannot be told: %s", error.text())
            return
        if oldest is not None and oldest < older_than_us:
            self.appending.removal = (older_than_us, await needed_from(self.config.folder))

    # -- requests ------------------------------------------------------------------------------------------------------

    def why_closed(self) -> str:
        """Return in one word why nothing can be stored now, or nothing when all is well."""
        if self.closed:
            return self.closed
        if self.stopping:
            self.closed_what = "The door is stopping"
            return "stopping"
        since_s = self.appending.since_s
        if since_s and monotonic() - since_s > append_s_max:
            self.closed_what = "The disk is slow"
            return "disk_slow"
        return ""

    def before_body(self, exchange: Exchange) -> Answer | None:
        """Route a request whose headers are there; return its answer if it needs no body for that."""
        route = self.routes.get(exchange.target) or self.routes.get(exchange.target.partition(b"?")[0])
        if route is None and exchange.target.startswith(LINKS):
            route = self.links_route
        if route is None:
            exchange.route = self.nowhere
            return NOT_FOUND
        exchange.route = route
        if exchange.method not in route.handlers:
            return route.not_allowed
        if exchange.method != b"POST":
            return None
        encoding = exchange.headers.get("content-encoding")
        if encoding is not None and not route.reads_anything and (encoding.lower() not in ENCODINGS or not route.reads):
            return UNSUPPORTED
        why = self.why_closed()
        if why and not self.stopping:
            least_s, most_s = (5, 60) if why in ("disk_full", "log_unwritable") else (1, 10)
            return later(why, self.closed_what, least_s=least_s, most_s=most_s)
        return None

    def hold(self, exchange: Exchange, count: int) -> bool:
        """Count bytes of a request as waiting; False when there is no room for them."""
        if not self.waiting.take(exchange.route.lane, count):
            return False
        exchange.held += count
        return True

    def release(self, exchange: Exchange) -> None:
        if exchange.held:
            self.waiting.give_back(exchange.route.lane, exchange.held)
            exchange.held = 0

    def arrived(self, exchange: Exchange) -> None:
        """Take a complete request: what is not to be stored is answered, the rest waits for its turn."""
        self.under_way += 1
        exchange.at_us = self.clock.now_us()
        if exchange.method != b"POST":
            self.release(exchange)
            self.handle(exchange)
        elif not self.hold(exchange, request_bytes) or len(self.tasks) > tasks_max + self.open_count:
            self.release(exchange)
            exchange.body = b""
            self.hold_back(exchange, later("overload", "Too much is waiting to be stored"))
        else:
            self.counters.add("door_bytes_total", "", len(exchange.body))
            self.queue.push(exchange.route.lane, exchange, len(exchange.body))
            if not self.draining:
                self.draining = True
                self.loop.call_soon(self.drain)

    def refused(self, exchange: Exchange) -> None:
        """Answer a complete request that was refused before its body had come."""
        answer, exchange.answer = exchange.answer, None
        self.under_way += 1
        self.hold_back(exchange, answer) if answer.reason == "overload" else self.answer(exchange, answer)

    def hold_back(self, exchange: Exchange, answer: Answer) -> None:
        self.loop.call_later(random.uniform(*shed_s), self.answer, exchange, answer)

    def drain(self) -> None:
        """Work on the queue for a while, each lane in turn, then let the sockets have a turn."""
        queue = self.queue
        now_s = monotonic()
        until = now_s + slice_s
        while queue.length:
            exchange = queue.pop()
            if exchange.connection.transport is None:
                # The sender has gone; it will ask again.
                self.release(exchange)
                self.under_way -= 1
                continue
            if now_s - exchange.at_s > queue_s_max:
                self.release(exchange)
                self.answer(exchange, later("overload", "The request waited too long for its turn"))
                continue
            self.handle(exchange)
            now_s = monotonic()
            if now_s > until:
                break
        self.draining = queue.length > 0
        if self.draining:
            self.loop.call_soon(self.drain)

    def handle(self, exchange: Exchange) -> None:
        try:
            answer = exchange.route.handlers[exchange.method](exchange)
        except Exception as error:
            answer = self.fault(exchange, error)
        if answer is not None:
            self.answer(exchange, answer)

    def fault(self, exchange: Exchange, error: Exception) -> Answer:
        """Our own mistake: the sender shall try again, and somebody has to look."""
        self.counters.add("door_faults_total")
        logger.error("a request to %s could not be handled", Notes.escaped(exchange.target), exc_info=error)
        return later("fault", "The request could not be handled", least_s=30, most_s=60)

    def submit(self, records: list[Record], storing: Callable) -> None:
        """Hand records to the log's thread; ``storing`` is called in the loop with what became of them."""
        self.commit.submit(records, storing)

    def deliver(self, results: list) -> None:
        """Called in the log's thread with all results of one commit."""
        self.loop.call_soon_threadsafe(self.settle, results)

    @staticmethod
    def settle(results: list) -> None:
        for storing, outcome in results:
            storing(outcome)

    def answer(self, exchange: Exchange, answer: Answer) -> None:
        """Answer a request that has arrived."""
        self.under_way -= 1
        self.release(exchange)
        exchange.connection.answer(exchange, answer)

    def log_refused(self, error: Exception) -> Answer:
        """Close the door for records until a tick goes through, and return the answer for those that did not."""
        if isinstance(error, TooLarge):
            # One record that no frame can hold fails those beside it too; they shall come again without it.
            return later("too_large_beside", "The records could not be stored together")
        why = why_unwritable(error)
        said = error.text() if isinstance(error, MidflightError) else f"{type(error).__name__}: {error}"
        if not self.closed:
            logger.error("records are refused with 429: %s", said)
        self.closed, self.closed_what = why, "The log cannot take records"
        self.counters.add("door_log_refused_total")
        if is_final(error) and self.failed is None:
            self.failed = error
        return later(why, self.closed_what, least_s=5, most_s=60)

    def count(self, exchange: Exchange, answer: Answer) -> None:
        self.counters.add("door_requests_total", str(answer.status))
        if answer.reason:
            self.counters.add("door_refused_total", answer.reason)
            lane = exchange.route.lane if exchange.route else ""
            # A link is a right to unsubscribe somebody: it has no place among our own lines.
            target = LINKS if exchange.route is self.links_route else exchange.target
            self.notes.refused(lane, answer.status, answer.said or answer.reason, exchange.peer, target)

    def unsubscribed(self, recipient: str, position: int) -> None:
        """Note an unsubscribe that is in the log."""
        self.advisor.note_unsubscribed(recipient, position)

    def skewed(self, source: str) -> None:
        self.counters.add("door_clock_skew_total", source)
        self.notes.skewed()

    def spawn(self, coroutine) -> None:
        task = self.loop.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def fetch(self, source: str, url: str) -> None:
        """Complete a handshake by fetching the vendor's URL in the background."""
        self.spawn(self._fetch(source, url))

    async def _fetch(self, source: str, url: str) -> None:
        try:
            status = await fetch_once(url)
        except (OSError, TimeoutError) as error:
            self.counters.add("door_handshakes_total", "failed")
            logger.error("source %s: the vendor's confirmation could not be fetched: %s", source, Notes.escaped(str(error)))
            return
        self.counters.add("door_handshakes_total", "done" if status == 200 else "refused")
        logger.info("source %s: the vendor's confirmation answered %d", source, status)


@asynccontextmanager
async def start_door(config: Config, *, clock: Clock | None = None, opener: Callable = open_writer) -> AsyncIterator[Door]:
    """Run a door in this event loop: ``async with start_door(config) as door: door.port``."""
    door = Door(config, clock=clock, opener=opener)
    await door.start()
    try:
        yield door
    finally:
        await door.stop()
