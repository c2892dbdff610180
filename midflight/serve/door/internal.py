"""How our own processes write: imports and the console append records over loopback, because the door alone owns the log."""

from __future__ import annotations

import ipaddress
import os
import secrets
from pathlib import Path

import msgspec

from ...log import Record, Stored
from ...sources.source import same
from .answers import Answer, bad_request, later, refusal
from .http import Exchange
from .webhooks import Storing

KINDS = ("events", "definition", "replay")
records_max = 10_000
body_bytes_max = 32 * 1024 * 1024
MSGPACK = b"content-type: application/msgpack\r\n"
_decoder = msgspec.msgpack.Decoder(list[Record])


def token_at(folder: Path) -> str:
    """Return the token of `{folder}/internal.token`, made now when there is none; only the owner can read it."""
    path = folder / "internal.token"
    # A power cut may leave an empty file behind: nobody could present that token.
    if path.exists() and (token := path.read_text().strip()):
        return token
    token = secrets.token_urlsafe(32)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(token + "\n")
    os.replace(fresh, path)
    return token


class AppendingMany(Storing):
    """Records of our own on their way to the log; the answer is the positions they got."""

    __slots__ = ()

    def __call__(self, outcome: Stored | Exception) -> None:
        if isinstance(outcome, Stored):
            self.answer = Answer(200, msgspec.msgpack.encode(list(range(outcome.first, outcome.end))), MSGPACK)
        super().__call__(outcome)


class Internal:
    """`POST /internal/append`: a msgpack list of records, answered with the list of their positions once they are durable."""

    def __init__(self, door, token: str, host: str) -> None:
        self.door = door
        self.host = host
        self.bearer = f"Bearer {token}"
        self.refusal = refusal(401, "unauthorized", "This is for Midflight's own processes", todo="The token is in internal.token")

    def lets_in(self, exchange: Exchange) -> bool:
        """Whether this comes from this machine and carries the token. Who connects to the door's own address comes from there."""
        near = is_loopback(exchange.peer) or exchange.peer == self.host
        return near and same(exchange.headers.get("authorization", ""), self.bearer)

    def post(self, exchange: Exchange) -> Answer | None:
        if not self.lets_in(exchange):
            return self.refusal
        try:
            records = _decoder.decode(exchange.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return bad_request(f"The body is not a list of records: {error}")
        if not records or len(records) > records_max:
            return bad_request(f"Between 1 and {records_max} records are taken at a time")
        wrong = next((record.kind for record in records if record.kind not in KINDS), None)
        if wrong is not None:
            return bad_request(f"Records of this kind come from outside only; here: {', '.join(KINDS)}")
        if self.door.why_closed():
            return later(self.door.why_closed(), self.door.closed_what)
        stamped = [Record(r.kind, r.source, exchange.at_us, r.headers, r.body, r.url) for r in records]
        self.door.submit(stamped, AppendingMany(self.door, exchange, self.refusal))
        return None


def is_loopback(peer: str) -> bool:
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
