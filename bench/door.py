"""Measure the door: durable single-event requests a second and signed batches a second, with the load from this same machine.

``python -m bench.door`` starts a door of its own over a fresh folder on the disk and prints what it measured. The clients are raw
sockets in one process, each with one request under way; a request counts when its 200 has come, so when it is durable.
"""

from __future__ import annotations

import base64
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

connections = 256
batch_connections = 16
batch_events = 200
seconds = 8.0
warm_s = 1.5


class Measured(NamedTuple):
    """What one load run saw: answers a second, milliseconds to answer, and how many answers had which status."""

    per_s: float
    p50_ms: float
    p99_ms: float
    statuses: dict[int, int]


class Client:
    """One connection with one request under way."""

    __slots__ = ("answer", "due_s", "rest", "sent_s", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = memoryview(b"")
        self.answer = b""
        self.sent_s = self.due_s = 0.0

    def send(self, request: bytes) -> bool:
        """Start or go on sending; whether all is out."""
        if request:
            self.rest = memoryview(request)
            self.answer = b""
        try:
            self.rest = self.rest[self.socket.send(self.rest) :]
        except BlockingIOError:
            return False
        return not self.rest

    def take(self) -> int:
        """Read; return the status once an answer without body is whole, else 0."""
        self.answer += self.socket.recv(65536)
        if not self.answer.endswith(b"\r\n\r\n") and b"\r\n\r\n" not in self.answer:
            if not self.answer:
                raise ConnectionError("the door closed the connection")
            return 0
        head, _, body = self.answer.partition(b"\r\n\r\n")
        at = head.find(b"content-length: ") + 16
        if len(body) < int(head[at:].partition(b"\r")[0]):
            return 0
        return int(head[9:12])


def load(port: int, requests: Iterator[bytes], *, clients: int, seconds: float, warm_s: float = 0.0, per_s: float = 0.0) -> Measured:
    """Send requests for a while from some connections; with ``per_s`` at that rate at most, else as fast as answers come."""
    poll = select.epoll()
    by_fd: dict[int, Client] = {}
    for _ in range(clients):
        client = Client(port)
        by_fd[client.socket.fileno()] = client
        poll.register(client.socket, select.EPOLLIN)
    start_s = time.perf_counter()
    begin_s, end_s = start_s + warm_s, start_s + warm_s + seconds
    waits: list[float] = []
    statuses: dict[int, int] = {}
    resting: list[Client] = list(by_fd.values())
    sent = 0
    now_s = start_s
    while now_s < end_s:
        while resting and (not per_s or sent < (now_s - start_s) * per_s):
            client = resting.pop()
            client.sent_s = now_s
            sent += 1
            if not client.send(next(requests)):
                poll.modify(client.socket, select.EPOLLIN | select.EPOLLOUT)
        for fd, events in poll.poll(0.001 if per_s else 0.1):
            client = by_fd[fd]
            if events & select.EPOLLOUT and client.send(b""):
                poll.modify(client.socket, select.EPOLLIN)
            if events & select.EPOLLIN and (status := client.take()):
                now_s = time.perf_counter()
                if now_s >= begin_s:
                    waits.append(now_s - client.sent_s)
                    statuses[status] = statuses.get(status, 0) + 1
                resting.append(client)
        now_s = time.perf_counter()
    for client in by_fd.values():
        client.socket.close()
    poll.close()
    waits.sort()
    place = lambda share: waits[min(len(waits) - 1, int(len(waits) * share))] * 1000 if waits else 0.0  # noqa: E731
    return Measured(len(waits) / seconds, place(0.5), place(0.99), statuses)


def post(path: str, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def singles() -> Iterator[bytes]:
    """Postmark's open events, each with an id of its own."""
    event = {
        "RecordType": "Open",
        "MessageStream": "broadcast",
        "MessageID": "@" * 36,
        "Recipient": "ada.lovelace@example.com",
        "ReceivedAt": "2025-11-24T11:00:00Z",
        "FirstOpen": True,
        "Client": {"Name": "Chrome 130", "Company": "Google", "Family": "Chrome"},
        "UserAgent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0 Safari/537.36",
        "Geo": {"CountryISOCode": "NL", "IP": "203.0.113.9"},
        "Tag": "spring",
        "Metadata": {"campaign": "spring", "variant": "B"},
    }
    credentials = base64.b64encode(b"door:bench").decode()
    headers = {"Content-Type": "application/json", "User-Agent": "Postmark", "Authorization": f"Basic {credentials}"}
    before, after = post("/in/postmark", headers, msgspec.json.encode(event)).split(b"@" * 36)
    return (b"%s%036x%s" % (before, n, after) for n in count())


def batches(key: ec.EllipticCurvePrivateKey, kinds: int = 50) -> Iterator[bytes]:
    """SendGrid's batches, signed over timestamp and body; a few dozen different ones in turn."""
    made = []
    for n in range(kinds):
        events = [
            {
                "email": f"reader{n * batch_events + i}@example.com",
                "timestamp": 1764000000 + i,
                "event": "click" if i % 7 == 0 else "open",
                "sg_event_id": base64.b64encode(os.urandom(16)).decode(),
                "sg_message_id": f"14c5d75ce93.dfd.{n:06d}{i:03d}.filter0001.16648.5515E0B88.0",
                "useragent": "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_0) AppleWebKit/605.1.15",
                "ip": "203.0.113.9",
                "url": "https://shop.example/spring",
                "category": ["spring"],
                "campaign": "spring",
                "variant": "B",
            }
            for i in range(batch_events)
        ]
        body = msgspec.json.encode(events)
        signed_at = "1764000000"
        signature = base64.b64encode(key.sign(signed_at.encode() + body, ec.ECDSA(hashes.SHA256()))).decode()
        name = "X-Twilio-Email-Event-Webhook"
        headers = {"Content-Type": "application/json", f"{name}-Signature": signature, f"{name}-Timestamp": signed_at}
        made.append(post("/in/sendgrid", headers, body))
    return (made[n % kinds] for n in count())


def configuration(folder: Path, port: int, key: ec.EllipticCurvePrivateKey) -> Path:
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    settings = {
        "data": str(folder / "data"),
        "door": {"port": port},
        "sources": {
            "postmark": {"kind": "postmark", "basic_auth": ["door:bench"]},
            "sendgrid": {"kind": "sendgrid", "secrets": [base64.b64encode(public).decode()]},
        },
    }
    path = folder / "midflight.yaml"
    path.write_bytes(msgspec.json.encode(settings))
    return path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def running_door(folder: Path, key: ec.EllipticCurvePrivateKey) -> Iterator[tuple[int, subprocess.Popen]]:
    """Run `midflight door` over a fresh folder; yields its port once it is ready, and its process."""
    port = free_port()
    command = [sys.executable, "-m", "midflight", "door", "--config", str(configuration(folder, port, key))]
    with (folder / "door.log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            wait_ready(port, process)
            yield port, process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def wait_ready(port: int, process: subprocess.Popen) -> None:
    for _ in range(400):
        if process.poll() is not None:
            raise RuntimeError("the door has ended; its log says why")
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as found:
                found.sendall(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                if b" 200 " in found.recv(4096):
                    return
        except OSError:
            pass  # not listening yet
        time.sleep(0.05)
    raise RuntimeError("the door did not get ready")


def cpu_s(process: subprocess.Popen) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(folder: Path | None = None, say: Callable[[str], None] = lambda _: None) -> dict[str, float]:
    """Run all and return the figures. ``folder`` is on the disk to measure; it is made there and removed."""
    build = folder or Path(__file__).parent.parent / "build"
    build.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="bench-door-", dir=build))
    key = ec.generate_private_key(ec.SECP256R1())
    found: dict[str, float] = {}
    runs = {
        "door": (singles(), dict(clients=connections)),
        "door_batch": (batches(key), dict(clients=batch_connections)),
        "door_batch_rated": (batches(key), dict(clients=batch_connections, per_s=500.0)),
    }
    try:
        with running_door(made, key) as (port, process):
            for name, (requests, how) in runs.items():
                before_s = cpu_s(process)
                seen = load(port, requests, seconds=seconds, warm_s=warm_s, **how)
                wrong = {status: n for status, n in seen.statuses.items() if status != 200}
                if wrong:
                    raise RuntimeError(f"{name}: not every request got 200: {wrong}")
                cores = (cpu_s(process) - before_s) / (seconds + warm_s)
                found[f"{name}_requests_per_s"] = round(seen.per_s)
                found[f"{name}_p50_ms"], found[f"{name}_p99_ms"] = round(seen.p50_ms, 2), round(seen.p99_ms, 2)
                if name != "door":
                    found[f"{name}_events_per_s"] = round(seen.per_s * batch_events)
                times = f"p50 {seen.p50_ms:.1f} ms, p99 {seen.p99_ms:.1f} ms"
                say(f"{name}: {seen.per_s:,.0f} requests/s, {times}, the door used {cores:.2f} cores")
    finally:
        shutil.rmtree(made)
    return found


def main() -> None:
    for name, value in measure(say=print).items():
        print(f"{name} {value:,}")


if __name__ == "__main__":
    main()
