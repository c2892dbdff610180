"""A door and an API of a few lines over real HTTP, for tests of the sandbox: it verifies, counts by the model, and misbehaves."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import msgspec

from midflight.events import Event, recipient_key
from midflight.kit.clock import Clock
from midflight.sandbox.audience import DIMENSION_NAMES, age_band
from midflight.sandbox.settings import sources_from
from midflight.sandbox.truth import rows, truth
from midflight.sandbox.vendors import SITE
from midflight.sandbox.verify import _iso_minute
from midflight.sources import Refused, Request
from midflight.stream.measures import MEASURES


class SmallDoor:
    """``moods`` maps the number of a request (from 0) to what happens to it: a status, or ``cut`` before or ``gone`` after storing."""

    def __init__(self, config: dict, moods: dict[int, object] | None = None) -> None:
        self.sources = sources_from(config)
        self.moods = moods or {}
        self.requests: list[str] = []
        self.events: list[Event] = []
        self.bad = 0
        self.wrong: tuple[str, int] | None = None  # a measure shown with this much too much
        self._lock = threading.Lock()
        self._counted: tuple[int, dict] = (-1, {})
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # one packet an answer, or delayed acknowledgements cost 40 ms each

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                door.take(self, body)

            def do_GET(self) -> None:
                self.answer(200, msgspec.json.encode(door.numbers(parse_qs(urlsplit(self.path).query, keep_blank_values=True))))

            def answer(self, status: int, body: bytes = b"", retry_after: str = "") -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                if retry_after:
                    self.send_header("retry-after", retry_after)
                self.end_headers()
                self.wfile.write(body)

            def hang_up(self) -> None:
                self.close_connection = True
                self.connection.close()

            def log_message(self, *_args) -> None:
                """Quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_args) -> None:
                """Senders hang up here on purpose."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> SmallDoor:
        self._thread.start()
        return self

    def __exit__(self, *_error) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    def take(self, handler, body: bytes) -> None:
        name = SITE if handler.path.startswith("/v1/") else handler.path.removeprefix("/in/")
        with self._lock:
            number = len(self.requests)
            mood = self.moods.get(number)
            self.requests.append(handler.path)
        if mood == "cut":
            return handler.hang_up()
        if isinstance(mood, int):
            return handler.answer(mood, retry_after="1" if mood == 429 else "")
        request = Request(
            url=handler.path, headers={k.lower(): v for k, v in handler.headers.items()}, body=body, received_at_us=Clock().now_us()
        )
        source = self.sources[name]
        try:
            source.verify(request)
        except Refused:
            return handler.answer(401)
        parsed = source.parse(request)
        with self._lock:
            self.events += parsed
            self.bad += len(parsed.bad)
        return handler.hang_up() if mood == "gone" else handler.answer(200)

    def numbers(self, query: dict[str, list[str]]) -> dict:
        """Answer as `GET /v1/numbers` does, by the model and its rules over everything that was taken."""
        with self._lock:
            events = list(self.events)
        cells = self.cells(events)
        by = tuple(name for name in query["by"][0].split(",") if name)
        found = rows(cells, by, dimensions=DIMENSION_NAMES, campaign=query["campaign"][0])
        out = []
        for key, counts in found.items():
            named = {n: _iso_minute(v) if n == "minute" else v for n, v in zip(by, key, strict=True)}
            shown = dict.fromkeys(MEASURES, 0) | dict(counts)
            if self.wrong and self.wrong[0] in counts and query["campaign"][0]:
                shown[self.wrong[0]] += self.wrong[1]
            out.append(named | shown)
        return {"rows": out, "left_off": 0}

    def cells(self, events: list[Event]) -> dict:
        """Return the model's cells, kept until more events come."""
        if self._counted[0] != len(events):
            people = {
                recipient_key(e.recipient): (age_band(e.traits["age"]), e.traits["region"], e.traits["device"])
                for e in events
                if e.kind == "identified"
            }
            self._counted = (len(events), truth(events, people))
        return self._counted[1]
