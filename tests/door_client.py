"""Runs a real door for a test and speaks to it over raw sockets, as careless and hostile senders do."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import uvloop
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from midflight.config import Config, config_from
from midflight.log import Reader, Record
from midflight.serve.door import Door, start_door

CREDENTIALS = "Basic " + base64.b64encode(b"user:password").decode()
AUTHORIZED = {"Authorization": CREDENTIALS}
KEY = ec.generate_private_key(ec.SECP256R1())
OLD_KEY = ec.generate_private_key(ec.SECP256R1())


def public(key: ec.EllipticCurvePrivateKey) -> str:
    return base64.b64encode(
        key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ).decode()


def sources() -> dict:
    """One source of each shape, with the credentials above; `open` is an unsigned SendGrid."""
    signed = {"basic_auth": ["user:password"]}
    return {
        "sendgrid": {"kind": "sendgrid", "secrets": [public(KEY)]},
        "open": {"kind": "sendgrid", "unsigned": True},
        "postmark": {"kind": "postmark", **signed},
        "mandrill": {"kind": "mandrill", **signed},
        "mailtrap": {"kind": "mailtrap", **signed},
        "site": {"kind": "segment", "basic_auth": ["write-key"]},
    }


def configuration(folder: Path, *, given: dict | None = None, **door: object) -> Config:
    return config_from({"data": str(folder), "door": {"port": 0, **door}, "sources": sources() if given is None else given})


class Running:
    """A door in a thread of this process."""

    def __init__(self, config: Config, door: Door) -> None:
        self.config, self.door, self.port = config, door, door.port

    def records(self, kind: str | None = None) -> list[Record]:
        """Return what is durable in the log, without ticks."""
        return [r for r in records_in(self.config.folder) if r.kind != "tick" and kind in (None, r.kind)]

    def post(self, path: str, body: bytes = b"", headers: dict[str, str] | None = None, **how) -> Reply:
        return talk(self.port, post(path, body, headers), **how)

    def metrics(self) -> str:
        """Return the door's own numbers, which need the token of our own processes."""
        return metrics(self.port, self.config.folder)

    def count(self, name: str, label: str = "") -> int:
        return self.door.counters.get(name, label)


def metrics(port: int, data: Path) -> str:
    token = (data / "internal.token").read_text().strip()
    return talk(port, post("/metrics", headers={"Authorization": f"Bearer {token}"}, method="GET")).body.decode()


def records_in(folder: Path) -> list[Record]:
    found: list[Record] = []
    with Reader(folder / "log") as reader:
        position = reader.first()
        while read := reader.read(position):
            found += read
            position = read[-1].position + 1
    return found


@contextmanager
def running(config: Config, **given: object) -> Iterator[Running]:
    """Run a door in a thread with a loop of its own until the block ends."""
    started: list[Running | BaseException] = []
    ready, done = threading.Event(), threading.Event()

    async def main() -> None:
        try:
            async with start_door(config, **given) as door:
                started.append(Running(config, door))
                ready.set()
                while not done.is_set():  # noqa: ASYNC110 (set by another thread)
                    await asyncio.sleep(0.02)
        except BaseException as error:
            started.append(error)
            raise
        finally:
            ready.set()

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        if isinstance(started[0], BaseException):
            raise started[0]
        yield started[0]
    finally:
        done.set()
        thread.join()


class Reply(NamedTuple):
    """One answer: status, headers in lower case, body, and whether the door then closed the connection."""

    status: int
    headers: dict[str, str]
    body: bytes
    closed: bool

    @property
    def code(self) -> str:
        """The reason in the error's JSON."""
        return msgspec.json.decode(self.body)["error"]["code"]


def post(path: str, body: bytes = b"", headers: dict[str, str] | None = None, *, method: str = "POST") -> bytes:
    """Return a request's bytes; a header that is None is left out."""
    given = {"Host": "door.example", "Content-Length": str(len(body)), **(headers or {})}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value is not None)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def connect(port: int, timeout_s: float = 20.0) -> socket.socket:
    found = socket.create_connection(("127.0.0.1", port), timeout_s)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


def talk(port: int, raw: bytes, *, timeout_s: float = 20.0, ends: bool = False) -> Reply:
    """Send bytes on a connection of their own and return the answer; ``ends`` waits to see whether the door closes."""
    with connect(port, timeout_s) as found:
        sender = threading.Thread(target=send_quietly, args=(found, raw))
        sender.start()
        reply = replies(found, 1, ends=ends)[0]
        sender.join()
        return reply


def send_quietly(found: socket.socket, raw: bytes) -> None:
    try:
        found.sendall(raw)
    except OSError:
        pass  # the door may close while we are still sending: that is what is being tested


_LENGTH = re.compile(rb"content-length: (\d+)\r\n")


def replies(found: socket.socket, number: int, *, ends: bool = False) -> list[Reply]:
    """Read answers from a connection; fewer come only when the door closes it."""
    made: list[Reply] = []
    data, closed = b"", False
    while not closed and (len(made) < number or ends):
        try:
            part = found.recv(65536)
        except ConnectionResetError:
            part = b""
        except TimeoutError:
            if len(made) < number:
                raise
            break
        closed = not part
        data += part
        while (split := split_reply(data)) is not None and split[1] is not None:
            made.append(split[0])
            data = split[1]
        if ends and len(made) >= number:
            found.settimeout(1.0)
    return [reply._replace(closed=closed) for reply in made]


def split_reply(data: bytes) -> tuple[Reply, bytes] | None:
    head, blank, rest = data.partition(b"\r\n\r\n")
    if not blank:
        return None
    first, *lines = head.split(b"\r\n")
    headers = {name.decode(): value.decode() for name, _, value in (line.partition(b": ") for line in lines)}
    length = int(headers.get("content-length", 0))
    if len(rest) < length:
        return None
    return Reply(int(first[9:12]), headers, rest[:length], False), rest[length:]


def signed(body: bytes, *, key: ec.EllipticCurvePrivateKey = KEY, at: str = "1764000000") -> dict[str, str]:
    """Return SendGrid's signature headers for a body."""
    signature = base64.b64encode(key.sign(at.encode() + body, ec.ECDSA(hashes.SHA256()))).decode()
    name = "X-Twilio-Email-Event-Webhook"
    return {f"{name}-Signature": signature, f"{name}-Timestamp": at}


def event(number: int = 1, **more: object) -> dict:
    return {"email": f"reader{number}@example.com", "event": "open", "timestamp": 1764000000, "sg_event_id": f"id-{number}", **more}


def array(*events: object) -> bytes:
    return msgspec.json.encode(list(events) or [event()])


def until(what, seconds: float = 10.0) -> None:
    """Wait for something to become true; fails when it does not."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def door_process(
    folder: Path,
    *,
    given: dict | None = None,
    environment: dict[str, str] | None = None,
    code: str = "",
    before: Callable[[], None] | None = None,
    **door: object,
) -> Iterator[tuple[subprocess.Popen, int]]:
    """Run `midflight door` (or ``code``) as a process of its own; yields it with its port as soon as it is ready.

    ``before`` is called in the new process first.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"data": str(folder / "data"), "door": {"port": port, **door}, "sources": sources() if given is None else given}
    path = folder / "midflight.yaml"
    path.write_bytes(msgspec.json.encode(settings))
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "midflight", "door"]
    environment = {**os.environ, "MIDFLIGHT_CONFIG": str(path), **(environment or {})}
    with (folder / "door.log").open("ab") as log:
        process = subprocess.Popen(command, stderr=log, env=environment, preexec_fn=before)
    try:
        wait_ready(port, process)
        yield process, port
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_ready(port: int, process: subprocess.Popen) -> None:
    for _ in range(1000):
        if process.poll() is not None:
            return
        try:
            if talk(port, post("/ready", method="GET"), timeout_s=2).status == 200:
                return
        except (OSError, IndexError):
            pass  # not listening yet, or just ending
        time.sleep(0.02)
    raise AssertionError("the door did not get ready")


def door_on(folder: Path, port: int) -> subprocess.Popen:
    """Start a door as a process of its own, with the settings in ``folder``, and return it when it listens."""
    environment = os.environ | {"MIDFLIGHT_CONFIG": str(folder / "midflight.yaml")}
    process = subprocess.Popen([sys.executable, "-m", "midflight", "door"], env=environment, stdout=subprocess.DEVNULL)
    for _ in range(1200):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return process
        threading.Event().wait(0.05)
    process.kill()
    raise AssertionError("the door does not listen")
