"""One event of a batch that is no JSON, or no event, stops no other."""

from __future__ import annotations

import json

import pytest

from midflight.sources import Request, load
from midflight.sources.source import Malformed, number_us

GOOD = {"email": "a@b.example", "timestamp": 1764000000, "event": "open", "sg_message_id": "m"}


def batch(bad: bytes, count: int = 1000) -> bytes:
    events = [json.dumps(GOOD | {"sg_event_id": str(n)}).encode() for n in range(count)]
    events[count // 2] = bad
    return b"[" + b",".join(events) + b"]"


BAD = [b'{"email": NaN}', b'{"email": "\\ud800"}', b'{"email" "x"}', b'"\xff"', b"7"]


@pytest.mark.parametrize("bad", BAD)
def test_the_other_999_events_are_read(bad):
    """The bad one is set aside with its bytes and its place."""
    parsed = load("sendgrid", {"unsigned": True}).parse(Request(body=batch(bad), received_at_us=1))
    assert len(parsed) == 999
    assert [(found.index, found.raw.strip()) for found in parsed.bad] == [(500, bad)]


def test_a_body_of_nothing_but_broken_events_is_refused_whole():
    """Where nothing can be read, the record itself is the dead letter."""
    with pytest.raises(Malformed):
        load("sendgrid", {"unsigned": True}).parse(Request(body=b'[{"a": NaN}, {"b": NaN}]'))


def test_a_number_of_hundreds_of_digits_is_no_time():
    """Neither an exception nor a year nobody lives in."""
    assert number_us("9" * 400) == 0
    assert number_us("9" * 5000) == 0
    assert number_us(10**400) == 0
