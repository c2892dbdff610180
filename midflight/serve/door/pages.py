"""What the door tells about itself: alive, ready, and its counters as Prometheus text."""

from __future__ import annotations

from .answers import Answer, json_answer
from .http import Exchange
from .internal import Internal

TEXT = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"
# The label of each counter that has one.
LABELS = {
    "door_requests_total": "status",
    "door_refused_total": "reason",
    "door_stored_total": "source",
    "door_old_secret_total": "source",
    "door_clock_skew_total": "source",
    "door_handshakes_total": "outcome",
    "door_decisions_total": "answer",
}


class Pages:
    """`GET /health`, `/ready` and `/metrics`; the last one only for who may append, because it names the sources."""

    def __init__(self, door, internal: Internal) -> None:
        self.door = door
        self.internal = internal

    def health(self, _exchange) -> Answer:
        return json_answer(200, {"ok": True})

    def ready(self, _exchange) -> Answer:
        why = self.door.why_closed()
        if not why:
            return json_answer(200, {"ok": True})
        # No vendor asks here, so this may be the 503 that load balancers understand.
        return json_answer(503, {"ok": False, "error": {"code": why, "what": self.door.closed_what}, "status": 503})

    def metrics(self, exchange: Exchange) -> Answer:
        if not self.internal.lets_in(exchange):
            return self.internal.refusal
        return Answer(200, self.text().encode(), TEXT)

    def text(self) -> str:
        door = self.door
        lines: list[str] = []
        for name, counts in door.counters.snapshot().items():
            lines.append(f"# TYPE {name} counter")
            for label, count in counts.items():
                lines.append(f"{name}{labelled(LABELS.get(name, 'label'), label)} {count}")
        appending = door.appending
        for name, value in (
            ("door_commits_total", appending.commits if appending else 0),
            ("door_records_total", appending.records if appending else 0),
        ):
            lines += [f"# TYPE {name} counter", f"{name} {value}"]
        for name, value in (
            ("door_connections", len(door.connections)),
            ("door_queue_requests", door.queue.length),
            ("door_waiting_bytes", door.waiting.total),
            ("door_waiting_bytes_max", door.waiting.bytes_max),
            ("door_ready", 0 if door.why_closed() else 1),
        ):
            lines += [f"# TYPE {name} gauge", f"{name} {value}"]
        return "\n".join(lines) + "\n"


def labelled(name: str, value: str) -> str:
    if not value:
        return ""
    value = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{{{name}="{value}"}}'
