"""What the door says: every answer as status, headers and body, and their bytes on the wire."""

from __future__ import annotations

import random
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple

import msgspec

from ...kit.errors import MidflightError

retry_after_s_max = 60


class Answer(NamedTuple):
    """One answer. ``reason`` is what a refusal is counted under, "" for what is none; ``said`` is more about it, for our eyes only.

    ``close`` ends the connection.
    """

    status: int
    body: bytes = b""
    headers: bytes = b""
    reason: str = ""
    close: bool = False
    said: str = ""


OK = Answer(200)
NO_CONTENT = Answer(204)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_LINES = {status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus}


def wire(answer: Answer, date: bytes, *, close: bool, head: bool = False) -> bytes:
    """Return an answer's bytes; ``date`` is a whole header line."""
    length = b"" if answer.status == 204 else b"content-length: %d\r\n" % len(answer.body)
    end = b"connection: close\r\n\r\n" if close else b"\r\n"
    return b"".join((_LINES[answer.status], date, answer.headers, length, end, b"" if head else answer.body))


def date_line(now_us: int) -> bytes:
    return b"date: %s\r\n" % formatdate(now_us / 1e6, usegmt=True).encode()


def json_answer(status: int, value: object, *, headers: bytes = b"", reason: str = "", close: bool = False) -> Answer:
    return Answer(status, msgspec.json.encode(value), headers + b"content-type: application/json\r\n", reason, close)


def refusal(
    status: int, reason: str, what: str, *, expected: str | None = None, todo: str | None = None, headers: bytes = b"", close: bool = False
) -> Answer:
    """Return a refusal in the one error shape; ``reason`` is its code."""
    error = MidflightError(what, expected=expected, todo=todo)
    error.status, error.code = status, reason
    return json_answer(status, error.as_dict(), headers=headers, reason=reason, close=close)


def bad_request(what: str, *, reason: str = "bad_request", close: bool = False) -> Answer:
    return refusal(400, reason, what, close=close)


def too_large(what: str, expected: str, *, close: bool = False) -> Answer:
    return refusal(413, "too_large", what, expected=expected, close=close)


def later(reason: str, what: str, *, least_s: int = 1, most_s: int = 10, close: bool = False) -> Answer:
    """Return 429 with a jittered Retry-After, so that senders do not all come back in the same second."""
    wait_s = random.randint(least_s, min(most_s, retry_after_s_max))
    return refusal(429, reason, what, todo=f"Try again in {wait_s} s", headers=b"retry-after: %d\r\n" % wait_s, close=close)


TIMEOUT = refusal(408, "slow_client", "The request did not arrive in time", close=True)
NOT_FOUND = refusal(404, "not_found", "Nothing is here")
UNSUPPORTED = refusal(415, "content_encoding", "The content encoding is not supported", expected="identity, gzip or deflate")
