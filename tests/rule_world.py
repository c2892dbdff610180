"""A whole Midflight for tests of segments and rules: a real door, engine and conductor, and a server that ways out lead to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
from door_client import Running, running

from midflight.config import Config, config_from
from midflight.decide.definitions import SOURCE, DropSegment, PutSegment
from midflight.events import Event
from midflight.kit.clock import Clock
from midflight.log import Reader, Record
from midflight.serve import doorlink
from midflight.serve.conduct import conduct
from midflight.store.experiment import Numbers
from midflight.store.host_local import Engine

CLICKED_NOT_BOUGHT = {"kind": "absence", "after": {"did": "clicked"}, "no": {"did": "converted"}, "within": "30m"}
WAYS = ("chat", "lost", "off")


class Chat(ThreadingHTTPServer):
    """Takes messages as Slack does: `chat` says yes, `off` says no, `lost` hangs up when it has read all. ``went`` is what was read."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.went: list[tuple[str, str]] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class _Answers(BaseHTTPRequestHandler):
    server: Chat

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        way = self.path.strip("/")
        self.server.went.append((way, body))
        if way == "lost":
            self.close_connection = True
            return
        answer = b"ok" if way == "chat" else b"it is <b>off</b>"
        self.send_response(200 if way == "chat" else 403)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None: ...


class World:
    """What runs over one data folder. ``hear`` brings in events as a source of one's own would."""

    def __init__(self, config: Config, door: Running, chat: Chat) -> None:
        self.config, self.door, self.chat, self.clock = config, door, chat, Clock()
        self.numbered = 0

    def went(self, who: str) -> list[str]:
        """Return by which ways something about somebody has gone."""
        return [way for way, body in self.chat.went if who in body]

    def hear(self, kind: str, who: str, **more: object) -> None:
        self.numbered += 1
        given = {"occurred_at_us": self.clock.now_us(), "message_id": f"m {who}", "campaign": "spring"} | more
        event = Event(source="own", event_id=f"e{self.numbered}", kind=kind, recipient=who, **given)
        doorlink.append(self.config, [Record("events", "own", 0, {}, msgspec.json.encode([event]))])

    def warm(self) -> None:
        """Wait until all that runs has run once: code is loaded when it is first needed."""
        until(lambda: (self.config.folder / "outbox.db").exists() and (self.config.folder / "store.db").exists())
        for order in (
            PutSegment(id="w1", name="warm", version=1, where={"did": "opened", "within": "1h"}, who="nobody"),
            DropSegment(id="w2", name="warm", who="nobody"),
        ):
            doorlink.append(self.config, [Record("definition", SOURCE, 0, {}, msgspec.json.encode(order))])
            self.hear("opened", "ada@x.example")
            self.folded()

    def folded(self) -> bool:
        """Wait until the engine has read all of the log."""
        numbers = Numbers(self.config)
        try:
            with Reader(self.config.folder / "log") as log:
                end = log.head()
            return until(lambda: numbers.position()[0] >= end, 120)
        finally:
            numbers.close()


def until(what: Callable[[], object], seconds: float = 30.0) -> bool:
    """Wait for something to become true; fails when it does not."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
    return True


@contextmanager
def whole(folder: Path) -> Iterator[World]:
    """Run all of it until the block ends."""
    chat = Chat()
    port = chat.server_address[1]
    ways = {name: {"kind": "slack", "url": f"http://127.0.0.1:{port}/{name}", "per_second": 500} for name in WAYS}
    config = config_from(
        {
            "data": str(folder), "door": {"port": 0}, "console": {"port": 8401}, "ways": ways | {"site": {"kind": "on_site"}},
            "automation": {"allow_networks": ["127.0.0.0/8"], "allow_ports": [port], "allow_http": True, "person_per_day": 0},
        }
    )  # fmt: skip
    with running(config) as door:
        config.door.port = door.port
        world, over = World(config, door, chat), threading.Event()
        threads = [threading.Thread(target=run, args=(world, over)) for run in (_engine, _conductor)]
        for thread in threads:
            thread.start()
        try:
            world.warm()
            yield world
        finally:
            over.set()
            for thread in threads:
                thread.join(60)
            chat.shutdown()
            chat.server_close()


def _engine(world: World, over: threading.Event) -> None:
    Engine(world.config, Reader(world.config.folder / "log")).run(over.is_set)


def _conductor(world: World, over: threading.Event) -> None:
    asyncio.run(conduct(world.config, over.is_set))
