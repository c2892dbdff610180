"""The bad inputs that reach a door: each numbered one gets exactly the answer it should over a real socket, and is stored or not."""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import NamedTuple
from urllib.parse import quote

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from door_client import (
    AUTHORIZED,
    OLD_KEY,
    Reply,
    Running,
    array,
    configuration,
    connect,
    event,
    post,
    public,
    replies,
    running,
    signed,
    sources,
    talk,
    until,
)

from midflight.kit.clock import VirtualClock
from midflight.serve.door import inflate as inflating
from midflight.serve.door import webhooks
from midflight.sources import Refused, Request, load

MIB = 1024 * 1024
NOW_US = 1_764_000_000_000_000
TOPIC = "arn:aws:sns:eu-west-1:123456789012:events"


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    newest = public(ec.generate_private_key(ec.SECP256R1()))

    def rotated(until: str) -> dict:
        return {"kind": "sendgrid", "secrets": [newest, {"value": public(OLD_KEY), "until": until}]}

    given = sources() | {
        "rotated": rotated("2025-12-01T00:00:00Z"),
        "expired": rotated("2025-01-01T00:00:00Z"),
        "resend": {"kind": "resend", "secrets": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]},
        "ses": {"kind": "ses", "topics": [TOPIC]},
    }
    with running(configuration(tmp_path_factory.mktemp("door"), given=given, slow_client_s=1.0), clock=VirtualClock(NOW_US)) as found:
        yield found


class Case(NamedTuple):
    """One input with its number in the list, its request and the answer it has to get. ``stored`` is whether the log holds it."""

    item: int
    name: str
    raw: Callable[[], bytes] | bytes
    status: int
    code: str = ""
    stored: bool = False
    closes: bool = False

    @property
    def title(self) -> str:
        return f"{self.item:02d}-{self.name}"


def to_open(body: bytes, headers: dict[str, str] | None = None) -> bytes:
    return post("/in/open", body, headers)


def to_postmark(body: bytes, headers: dict[str, str] | None = None) -> bytes:
    return post("/in/postmark", body, AUTHORIZED | (headers or {}))


def zipped(body: bytes, encoding: str = "gzip") -> bytes:
    return to_open(body, {"Content-Encoding": encoding})


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n", headers: str = "") -> bytes:
    head = f"POST /in/open HTTP/1.1\r\nHost: door.example\r\nTransfer-Encoding: chunked\r\n{headers}\r\n"
    return head.encode() + b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks) + end


def with_header(lines: bytes, body: bytes = b"[]") -> bytes:
    return b"POST /in/open HTTP/1.1\r\nHost: door.example\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), lines, body)


def nested(levels: int, inside: bytes = b"1") -> bytes:
    """Return an array of one event, nested so deeply in all."""
    return b'[{"a":' + b"[" * (levels - 2) + inside + b"]" * (levels - 2) + b"}]"


def with_keys(count: int) -> bytes:
    """Return an object of so many keys."""
    return b"{" + b",".join(b'"k%d":1' % n for n in range(count)) + b"}"


def events(count: int) -> bytes:
    return array(*[{"event": "open"}] * count)


def to_mailtrap(body: bytes) -> bytes:
    return post("/in/mailtrap", body, AUTHORIZED)


def to_mandrill(body: bytes) -> bytes:
    return post("/in/mandrill", body, AUTHORIZED)


def form(count: int) -> bytes:
    return b"&".join([b"a=1"] * count)


def bomb(mebibytes: int) -> bytes:
    return gzip.compress(b"[" + b" " * (mebibytes * MIB) + b"]")


def truncated(cut: int) -> bytes:
    return gzip.compress(array())[:-cut]


def bad_crc() -> bytes:
    whole = bytearray(gzip.compress(array()))
    whole[-6] ^= 1
    return bytes(whole)


GOOD = array(event(1), event(2))
RAW_DEFLATE = zlib.compressobj(wbits=-15)
RAW_DEFLATED = RAW_DEFLATE.compress(GOOD) + RAW_DEFLATE.flush()
NAN = b'[{"event":"open","value":NaN},{"event":"open","email":"a@b.example"}]'
SURROGATE = b'[{"event":"open","email":"\\ud800@b.example"}]'
STRANGE = array(event(email='"a b"@EXÄMPLE.org'), event(email="a+tag@b.example"), event(email="x" * 400 + "@b.example"))
BARE = b"POST /in/open HTTP/1.1\nHost: a\nContent-Length: 2\n\n[]"
RANGES = "bytes=" + ",".join(f"{n}-{n}" for n in range(10_000))
FLOOD = b"".join(b"X-%d: 1\r\n" % n for n in range(1000))

CASES = [
    Case(1, "body over 5 MiB by length", lambda: to_open(b"", {"Content-Length": str(5 * MIB + 1)}), 413, "too_large", closes=True),
    Case(1, "body of 5 MiB is read", lambda: to_open(b"[" + b" " * (5 * MIB - 2) + b"]"), 200, stored=True),
    Case(1, "chunks beyond 5 MiB are cut", lambda: chunked(*[b" " * MIB] * 6), 413, "too_large", closes=True),
    Case(2, "gzip bomb of 100 MiB", lambda: zipped(bomb(100)), 413, "too_large"),
    Case(2, "gzip of 19 MiB is inflated", lambda: zipped(bomb(19)), 200, stored=True),
    Case(3, "50000 empty gzip members", lambda: zipped(gzip.compress(b"") * 50_000), 400, "malformed"),
    Case(3, "16 gzip members are read", lambda: zipped(gzip.compress(GOOD) + gzip.compress(b"") * 15), 200, stored=True),
    Case(4, "unknown encoding", zipped(GOOD, "snappy"), 415, "content_encoding"),
    Case(4, "br", zipped(GOOD, "br"), 415, "content_encoding"),
    Case(4, "zstd", zipped(GOOD, "zstd"), 415, "content_encoding"),
    Case(4, "double gzip", zipped(gzip.compress(gzip.compress(GOOD)), "gzip, gzip"), 415, "content_encoding"),
    Case(4, "double header", with_header(b"Content-Encoding: gzip\r\nContent-Encoding: gzip\r\n", GOOD), 415, "content_encoding"),
    Case(4, "gzip", zipped(gzip.compress(GOOD)), 200, stored=True),
    Case(4, "deflate with zlib's header", zipped(zlib.compress(GOOD), "deflate"), 200, stored=True),
    Case(4, "deflate without it", zipped(RAW_DEFLATED, "Deflate"), 200, stored=True),
    Case(4, "identity", zipped(GOOD, "identity"), 200, stored=True),
    Case(5, "gzip cut in its trailer", zipped(truncated(3)), 400, "malformed"),
    Case(5, "gzip cut in its data", zipped(truncated(20)), 400, "malformed"),
    Case(5, "gzip with a bad checksum", zipped(bad_crc()), 400, "malformed"),
    Case(5, "gzip that is none", zipped(GOOD), 400, "malformed"),
    Case(5, "empty gzip", zipped(b""), 400, "malformed"),
    Case(6, "depth 33", to_open(nested(33)), 400, "malformed"),
    Case(6, "depth 32", to_open(nested(32)), 200, stored=True),
    Case(6, "depth 1000", to_open(nested(1000)), 400, "malformed"),
    Case(6, "depth 100000", to_open(nested(100_000)), 400, "malformed"),
    Case(6, "depth 1000000", to_open(nested(1_000_000)), 400, "malformed"),
    Case(6, "depth 1000000 never closed", to_open(b"[" * 1_000_000), 400, "malformed"),
    Case(6, "objects to depth 33", to_postmark(b'{"a":' * 33 + b"1" + b"}" * 33), 400, "malformed"),
    Case(6, "brackets in text are no depth", to_open(array(event(note="[{" * 500 + '\\"[['))), 200, stored=True),
    Case(7, "NaN in one event of a batch", to_open(NAN), 200, stored=True),
    Case(7, "Infinity in one event of a batch", to_open(NAN.replace(b"NaN", b"-Infinity")), 200, stored=True),
    Case(7, "1e999 in one event of a batch", to_open(NAN.replace(b"NaN", b"1e999")), 200, stored=True),
    Case(7, "NaN in a body that is one event", to_postmark(b'{"RecordType":"Open","value":NaN}'), 200, stored=True),
    Case(8, "integer 2^63", to_open(array(event(big=2**63))), 200, stored=True),
    Case(8, "integer 2^64", to_open(b'[{"event":"open","big":%d}]' % 2**64), 200, stored=True),
    Case(8, "integer of 4301 digits", to_open(b'[{"event":"open","big":%s}]' % (b"9" * 4301)), 200, stored=True),
    Case(9, "a key twice", to_open(b'[{"event":"open","event":"click"}]'), 200, stored=True),
    Case(10, "lone surrogate", to_open(SURROGATE), 200, stored=True),
    Case(10, "bytes that are not UTF-8", to_open(b'[{"event":"open","email":"\xff\xfe@b.example"}]'), 200, stored=True),
    Case(10, "UTF-16", to_open(GOOD.decode().encode("utf-16")), 400, "malformed"),
    Case(10, "UTF-16 without a mark", to_open(GOOD.decode().encode("utf-16-le")), 400, "malformed"),
    Case(10, "byte order mark", to_open(b"\xef\xbb\xbf" + GOOD), 400, "malformed"),
    Case(11, "NUL and controls, escaped", to_open(array(event(subject="a\x00b\x01", url="http://x/\x00"))), 200, stored=True),
    Case(11, "a raw control character in one event", to_open(b'[{"event":"op\x00en"},' + array(event())[1:]), 200, stored=True),
    Case(12, "an object of 300000 keys", lambda: to_open(b"[%s]" % with_keys(300_000)), 413, "too_large"),
    Case(12, "an object of 1000000 keys", lambda: to_open(b"[%s]" % with_keys(1_000_000)), 413, "too_large", closes=True),
    Case(12, "an event of 257 KiB", to_open(array(event(note="x" * 257 * 1024))), 413, "too_large"),
    Case(12, "an event of 255 KiB", to_open(array(event(note="x" * 255 * 1024))), 200, stored=True),
    Case(12, "an object of 300000 keys as one event", lambda: to_postmark(with_keys(300_000)), 413, "too_large"),
    Case(13, "empty signed list", post("/in/sendgrid", b"[]", signed(b"[]")), 200, stored=True),
    Case(13, "empty body", to_open(b""), 400, "malformed"),
    Case(13, "empty object", to_open(b"{}"), 400, "malformed"),
    Case(13, "empty object as an event", to_postmark(b"{}"), 400, "malformed"),
    Case(13, "null", to_open(b"null"), 400, "malformed"),
    Case(13, "text", to_open(b'"x"'), 400, "malformed"),
    Case(13, "number", to_open(b"12"), 400, "malformed"),
    Case(13, "blanks", to_open(b" \r\n"), 400, "malformed"),
    Case(13, "cut short", to_open(GOOD[:-9]), 400, "malformed"),
    Case(13, "an array of numbers", to_open(b"[1,2]"), 400, "malformed"),
    Case(13, "empty form", to_mandrill(b""), 400, "malformed"),
    Case(13, "empty list in a form", to_mandrill(b"mandrill_events=%5B%5D"), 200, stored=True),
    Case(14, "1 bad of 1000", to_open(array(*[event(n) for n in range(999)], "no event")), 200, stored=True),
    Case(14, "1 of 1000 is no JSON", to_open(array(*[event(n) for n in range(999)])[:-1] + b',{"event":open}]'), 200, stored=True),
    Case(14, "all bad", to_open(b'[{"event":open},{"event":click}]'), 400, "malformed"),
    Case(15, "10001 events", lambda: to_open(events(10_001)), 413, "too_large"),
    Case(15, "10000 events", lambda: to_open(events(10_000)), 200, stored=True),
    Case(15, "10001 events in a wrapper", lambda: to_mailtrap(b'{"events":%s}' % events(10_001)), 413, "too_large"),
    Case(15, "10001 lines", lambda: to_mailtrap(b'{"event":"open"}\n' * 10_001), 413, "too_large"),
    Case(16, "the same event twice in a batch", to_open(array(event(1), event(1))), 200, stored=True),
    Case(17, "the same id with another body", to_open(array(event(1), event(1, email="b@c.example"))), 200, stored=True),
    Case(18, "an unknown message and campaign", to_open(array(event(sg_message_id="never-sent", campaign="none"))), 200, stored=True),
    Case(19, "unknown type and new field", to_open(array(event(event="teleported", field={"new": 1}))), 200, stored=True),
    Case(20, "no id", to_open(array({"event": "open", "email": "a@b.example"})), 200, stored=True),
    Case(21, "delivered after opened after clicked", to_open(array(event(event="click"), event(2, event="delivered"))), 200, stored=True),
    Case(22, "30 days late", to_open(array(event(timestamp=1764000000 - 30 * 86400))), 200, stored=True),
    *[
        Case(23, f"time {said!r}", to_open(array(event(timestamp=said))), 200, stored=True)
        for said in (1764007200, 2079360000, 0, -1, 1764000000000, "1764000000", True, None)
    ],
    Case(28, "a body that was written again", post("/in/sendgrid", array(event(1)) + b" ", signed(array(event(1)))), 401, "unauthorized"),
    Case(31, "strange addresses", to_open(STRANGE), 200, stored=True),
    Case(32, "a header in a custom argument", to_open(array(event(campaign="a\r\nSet-Cookie: x=1"))), 200, stored=True),
    Case(33, "a script in a reason", to_open(array(event(reason="<script>alert(1)</script>"))), 200, stored=True),
    Case(34, "length and chunks", chunked(GOOD, headers=f"Content-Length: {len(GOOD)}\r\n"), 400, "bad_request", closes=True),
    Case(34, "two equal lengths", with_header(b"Content-Length: 2\r\n"), 400, "bad_request", closes=True),
    Case(34, "two different lengths", with_header(b"Content-Length: 3\r\n"), 400, "bad_request", closes=True),
    Case(34, "a list of lengths", to_open(b"[]", {"Content-Length": "2, 2"}), 400, "bad_request", closes=True),
    Case(34, "a signed length", to_open(b"[]", {"Content-Length": "+2"}), 400, "bad_request", closes=True),
    Case(34, "a length of 25 digits", to_open(b"[]", {"Content-Length": "9" * 25}), 400, "bad_request", closes=True),
    Case(34, "bad chunk size", chunked(end=b"zz\r\n[]\r\n0\r\n\r\n"), 400, "bad_request", closes=True),
    Case(34, "bad chunk end", chunked(end=b"2\r\n[]X\r\n0\r\n\r\n"), 400, "bad_request", closes=True),
    Case(34, "chunk ended by a bare line feed", chunked(end=b"2\n[]\n0\n\n"), 400, "bad_request", closes=True),
    Case(34, "gzip as transfer encoding", chunked(headers="").replace(b": chunked", b": gzip, chunked"), 400, "bad_request", closes=True),
    Case(34, "two transfer encodings", chunked(headers="Transfer-Encoding: chunked\r\n"), 400, "bad_request", closes=True),
    Case(34, "folded header", with_header(b"X-Long: a\r\n b\r\n"), 400, "bad_request", closes=True),
    Case(34, "header folded by a tab", with_header(b"X-Long: a\r\n\tb\r\n"), 400, "bad_request", closes=True),
    Case(34, "64 KiB header", with_header(b"X-Long: %s\r\n" % (b"a" * 65536)), 400, "header_limit", closes=True),
    Case(34, "64 KiB of target", b"POST /in/open?%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"a" * 65536), 400, "header_limit", closes=True),
    Case(34, "a header that never ends", b"POST /in/open HTTP/1.1\r\nX: " + b"a" * 300_000, 400, "header_limit", closes=True),
    Case(34, "1000 headers", with_header(FLOOD), 400, "header_limit", closes=True),
    Case(34, "1000 trailers", chunked(GOOD, end=b"0\r\n" + FLOOD + b"\r\n"), 400, "header_limit", closes=True),
    Case(34, "90 headers are read", with_header(b"".join(b"X-%d: 1\r\n" % n for n in range(90))), 200, stored=True),
    Case(34, "blank before the colon", with_header(b"X-Y : 1\r\n"), 400, "bad_request", closes=True),
    Case(34, "header without colon", with_header(b"nonsense\r\n"), 400, "bad_request", closes=True),
    Case(34, "NUL in a header", with_header(b"X-Y: a\x00b\r\n"), 400, "bad_request", closes=True),
    Case(34, "lines ended by a bare line feed", BARE, 400, "bad_request", closes=True),
    Case(34, "no host", to_open(b"[]", {"Host": None}), 400, "bad_request", closes=True),
    Case(34, "two hosts", with_header(b"Host: other.example\r\n"), 400, "bad_request", closes=True),
    Case(34, "no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_request", closes=True),
    Case(34, "HTTP/2 by prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad_request", closes=True),
    Case(34, "well-formed chunks", chunked(GOOD[:5], GOOD[5:]), 200, stored=True),
    Case(39, "wrong method", post("/in/open", b"[]", method="PUT"), 405, "method"),
    Case(39, "DELETE", post("/in/open", method="DELETE"), 405, "method"),
    Case(39, "unknown path", post("/elsewhere", b"[]"), 404, "not_found"),
    Case(39, "unknown source", post("/in/nobody", b"[]"), 404, "not_found"),
    Case(39, "trailing slash", post("/in/open/", b"[]"), 404, "not_found"),
    Case(39, "upper case", post("/IN/open", b"[]"), 404, "not_found"),
    Case(39, "climbing path", post("/in/../in/open", b"[]"), 404, "not_found"),
    Case(39, "GET of the URL", post("/in/open", method="GET"), 200),
    Case(39, "HEAD of the URL", post("/in/mandrill", method="HEAD"), 200),
    Case(40, "10000 ranges", to_open(GOOD, {"Range": RANGES}), 400, "header_limit", closes=True),
    Case(40, "a few ranges are ignored", to_open(GOOD, {"Range": "bytes=0-1,2-3"}), 200, stored=True),
    Case(40, "a form of 1000000 fields", lambda: to_mandrill(form(1_000_000)), 400, "malformed"),
    Case(40, "a form of 1001 fields", to_mandrill(form(1_001)), 400, "malformed"),
    Case(40, "a form of 1000 fields", to_mandrill(form(1_000)), 200, stored=True),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_a_bad_input_gets_its_answer(case: Case, door: Running) -> None:
    """Status, reason, whether the connection ends and whether the log holds the body are as the list says."""
    before = len(door.records())
    raw = case.raw() if callable(case.raw) else case.raw
    reply = talk(door.port, raw, ends=case.closes)
    assert (reply.status, reply.closed) == (case.status, case.closes)
    if case.code:
        assert reply.code == case.code
        assert "location" not in reply.headers
    elif case.status == 200:
        assert reply.body == b""
    records = door.records()
    assert len(records) - before == case.stored
    if case.stored and b"Content-Encoding" not in raw and b"chunked" not in raw:
        assert records[-1].body == raw.partition(b"\r\n\r\n")[2], "the log holds the sender's bytes"


def test_every_ingress_item_has_a_test() -> None:
    """The numbers 1 to 40 are all covered here or in the tests of overload."""
    here = {case.item for case in CASES} | {24, 25, 26, 27, 29, 30, 35, 36}
    overload = {37, 38}
    assert here | overload == set(range(1, 41))


@pytest.mark.parametrize("body", [gzip.compress(GOOD), zlib.compress(GOOD)])
def test_04_what_is_stored_is_inflated(door: Running, body: bytes) -> None:
    """The log holds a compressed body as the vendor wrote it before compressing."""
    encoding = "gzip" if body[:2] == b"\x1f\x8b" else "deflate"
    assert door.post("/in/open", body, {"Content-Encoding": encoding}).status == 200
    assert door.records()[-1].body == GOOD


# -- signatures and time -------------------------------------------------------------------------------------------------


def svix(body: bytes, at_s: int, message: str = "msg_1") -> dict[str, str]:
    import base64
    import hmac

    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    code = base64.b64encode(hmac.digest(key, f"{message}.{at_s}.".encode() + body, "sha256")).decode()
    return {"svix-id": message, "svix-timestamp": str(at_s), "svix-signature": f"v1,{code}"}


OPENED = msgspec.json.encode(
    {"type": "email.opened", "created_at": "2025-11-24T16:00:00Z", "data": {"email_id": "1", "to": ["a@b.example"]}}
)


def test_24_a_signature_from_another_time_is_refused_and_counted(door: Running) -> None:
    """Beyond the tolerance it is 401, and the count of skewed clocks goes up; within it is 200."""
    now_s = NOW_US // 1_000_000
    before = door.count("door_clock_skew_total", "resend")
    assert door.post("/in/resend", OPENED, svix(OPENED, now_s + 301)).status == 401
    assert door.post("/in/resend", OPENED, svix(OPENED, now_s - 301)).status == 401
    assert door.count("door_clock_skew_total", "resend") - before == 2
    assert door.post("/in/resend", OPENED, svix(OPENED, now_s + 299)).status == 200
    assert 'door_clock_skew_total{source="resend"}' in door.metrics()


def test_25_a_repetition_inside_the_tolerance_is_stored_again(door: Running) -> None:
    """The same valid request twice is 200 twice, for the stream to recognise; later than the tolerance it is 401."""
    now_s = NOW_US // 1_000_000
    headers = svix(OPENED, now_s - 100)
    before = len(door.records())
    assert [door.post("/in/resend", OPENED, headers).status for _ in range(2)] == [200, 200]
    assert len(door.records()) == before + 2
    assert door.post("/in/resend", OPENED, svix(OPENED, now_s - 400)).status == 401


NAME = "X-Twilio-Email-Event-Webhook"
RIGHT = signed(GOOD)
WRONG = {
    "missing": {},
    "empty": RIGHT | {f"{NAME}-Signature": ""},
    "20 KB long": RIGHT | {f"{NAME}-Signature": "A" * 20_000},
    "not base64": RIGHT | {f"{NAME}-Signature": "%%%"},
    "of zeros": RIGHT | {f"{NAME}-Signature": "MAYCAQACAQA="},
    "of another body": signed(GOOD + b" "),
    "of another key": signed(GOOD, key=OLD_KEY),
    "other algorithm": {"Authorization": "Bearer x", "svix-signature": "v1,abc"},
    "without its time": {f"{NAME}-Signature": RIGHT[f"{NAME}-Signature"]},
}


@pytest.mark.parametrize("name", WRONG)
def test_26_a_wrong_signature_is_401(door: Running, name: str) -> None:
    """Whatever is wrong with a signature, the answer is the same 401 and nothing is stored."""
    before = len(door.records())
    reply = door.post("/in/sendgrid", GOOD, WRONG[name])
    assert (reply.status, reply.code) == (401, "unauthorized")
    assert reply.body == door.post("/in/sendgrid", GOOD).body
    assert len(door.records()) == before


def test_26_the_advice_fits_how_the_vendor_proves_itself(door: Running) -> None:
    """What to compare, and what a proxy can have spoilt, is another thing for signatures than for credentials."""
    rewritten, dropped = "a proxy must not rewrite it", "a proxy must pass on `Authorization`"
    for path, said, unsaid in (
        ("/in/sendgrid", rewritten, dropped),
        ("/in/postmark", dropped, rewritten),
        ("/in/ses", "`topics`", dropped),
    ):
        reply = door.post(path, GOOD)
        assert reply.status == 401
        todo = msgspec.json.decode(reply.body)["error"]["todo"]
        assert said in todo and unsaid not in todo, path
    advice = webhooks.advice
    both = advice(load("sendgrid", {"secrets": [public(OLD_KEY)], "basic_auth": ["u:p"], "headers": {"x-key": "k"}}))
    assert rewritten in both and dropped in both and "`headers`" in both
    with pytest.raises(Refused) as refused:
        load("postmark", {"basic_auth": ["u:p"]}).verify(Request(headers={"authorization": "Basic dTp4"}))
    assert "rewrites" not in refused.value.text(), "what is noted for the operator fits too"
    assert "token" in advice(load("braze", {"bearer": ["t"]})) and "user" not in advice(load("braze", {"bearer": ["t"]}))


def test_26_a_signature_twice_is_401(door: Running) -> None:
    """Two signature headers are no signature, even if each is right."""
    raw = post("/in/sendgrid", GOOD, RIGHT)
    line = f"{NAME}-Signature: {RIGHT[f'{NAME}-Signature']}\r\n".encode()
    assert talk(door.port, raw.replace(line, line + line)).status == 401
    assert talk(door.port, raw).status == 200


def test_26_a_signature_of_1_mb_is_refused(door: Running) -> None:
    """A signature longer than all headers may be is refused before anybody looks at it."""
    assert door.post("/in/sendgrid", GOOD, RIGHT | {f"{NAME}-Signature": "A" * 1_000_000}).status == 400


def test_27_an_old_secret_counts_until_its_end(door: Running) -> None:
    """A secret in its grace is accepted and counted; after that it is 401."""
    before = door.count("door_old_secret_total", "rotated")
    assert door.post("/in/rotated", GOOD, signed(GOOD, key=OLD_KEY)).status == 200
    assert door.count("door_old_secret_total", "rotated") == before + 1
    assert door.post("/in/expired", GOOD, signed(GOOD, key=OLD_KEY)).status == 401


def test_28_the_refusal_names_a_changed_body(door: Running) -> None:
    """Who sees a 401 for a re-written body reads where to look."""
    assert b"the body changed in transit" in door.post("/in/sendgrid", GOOD + b" ", RIGHT).body


def envelope(**more: str) -> bytes:
    said = {
        "Type": "Notification",
        "MessageId": "1",
        "TopicArn": TOPIC,
        "Message": "{}",
        "Timestamp": "2025-11-24T16:00:00.000Z",
        "SignatureVersion": "1",
        "Signature": "c2lnbmVk",
        "SigningCertURL": "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem",
    }
    return msgspec.json.encode(said | more)


def to_ses(door: Running, **more: str) -> Reply:
    body = envelope(**more)
    headers = {"x-amz-sns-message-type": msgspec.json.decode(body)["Type"], "x-amz-sns-message-id": "1", "Content-Type": "text/plain"}
    return door.post("/in/ses", body, headers)


@pytest.fixture
def fetched(door: Running, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every URL that the door or its SES source asks the network for; none answers."""
    asked: list[str] = []

    def certificate(url: str) -> bytes:
        asked.append(url)
        raise OSError("no network in tests")

    async def confirmation(url: str) -> int:
        asked.append(url)
        raise OSError("no network in tests")

    handler = door.door.routes[b"/in/ses"].handlers[b"POST"]
    monkeypatch.setattr(handler.__self__.source, "fetch", certificate)
    monkeypatch.setattr("midflight.serve.door.door.fetch_once", confirmation)
    return asked


@pytest.mark.parametrize(
    "url",
    [
        "https://s3.amazonaws.com/bucket/SimpleNotificationService-1.pem",
        "https://sns.eu-west-1.amazonaws.com@evil.example/SimpleNotificationService-1.pem",
        "https://evil.example/#sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem",
        "https://sns.eu-west-1.amazonaws.com:8443/SimpleNotificationService-1.pem",
        "http://sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem",
        "https://sns.eu-west-1.amazonaws.com.evil.example/SimpleNotificationService-1.pem",
    ],
)
def test_29_a_certificate_from_elsewhere_is_401(door: Running, fetched: list[str], url: str) -> None:
    """A certificate URL that is not Amazon's is refused without asking the network."""
    assert to_ses(door, SigningCertURL=url).status == 401
    assert fetched == []


def test_29_a_certificate_that_cannot_be_had_is_429(door: Running, fetched: list[str]) -> None:
    """Amazon's own URL is asked for, and while it does not answer the sender shall come back: SNS drops what gets 401."""
    reply = to_ses(door)
    assert reply.status == 429 and 1 <= int(reply.headers["retry-after"]) <= 60
    assert len(fetched) == 1


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest/meta-data", "https://169.254.169.254/", "https://evil.example/confirm"])
def test_30_a_subscription_to_elsewhere_is_401(door: Running, fetched: list[str], url: str) -> None:
    """A confirmation URL that is not Amazon's is refused without asking the network."""
    assert to_ses(door, Type="SubscriptionConfirmation", SubscribeURL=url, Token="t").status == 401
    assert fetched == []


# -- slow and impatient clients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["header", "body"])
def test_35_a_slow_client_is_cut(door: Running, stage: str) -> None:
    """A byte now and then is not enough: 408 at `slow_client_s`, and the connection ends; others are served meanwhile."""
    raw = post("/in/open", GOOD)
    start = 5 if stage == "header" else len(raw) - len(GOOD) + 1
    with connect(door.port) as slow:
        slow.sendall(raw[:start])
        began_s = time.monotonic()

        def drip() -> None:
            try:
                for byte in raw[start : start + 20]:
                    slow.sendall(bytes([byte]))
                    time.sleep(0.2)
            except OSError:
                pass  # cut off, as it should be

        thread = Thread(target=drip)
        thread.start()
        assert door.post("/in/open", GOOD).status == 200
        reply = replies(slow, 1, ends=True)[0]
        assert (reply.status, reply.code, reply.closed) == (408, "slow_client", True)
        assert time.monotonic() - began_s >= door.config.door.slow_client_s * 0.9
        thread.join()


def test_35_a_silent_connection_is_closed_quietly(door: Running) -> None:
    """Who connects and says nothing gets no answer, just the end."""
    with connect(door.port) as silent:
        assert silent.recv(100) == b""


def test_36_a_client_that_leaves_before_its_answer_does_no_harm(door: Running) -> None:
    """The event may be stored; the next sender is served, and nothing stays counted as waiting."""
    before = len(door.records())
    for _ in range(20):
        with connect(door.port) as hasty:
            hasty.sendall(post("/in/open", GOOD))
    assert door.post("/in/open", GOOD).status == 200
    until(lambda: door.door.waiting.total == 0 and door.door.under_way == 0)
    assert before + 1 <= len(door.records()) <= before + 21


def test_36_a_client_that_leaves_in_the_middle_leaves_nothing(door: Running) -> None:
    """Half a request is not stored and takes no room."""
    before = len(door.records())
    with connect(door.port) as hasty:
        hasty.sendall(post("/in/open", b"[" + b" " * 100_000)[:50_000])
    until(lambda: door.door.waiting.total == 0 and len(door.door.connections) == 0)
    assert len(door.records()) == before


# -- controls: what these tests would say of a door without its limits -------------------------------------------------------


def test_a_door_without_limits_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the checks taken out, inputs that have to be refused get other answers: so the tests above do see the checks."""
    monkeypatch.setattr(webhooks, "check", lambda *_, **__: iter(()))
    monkeypatch.setattr(inflating, "members_max", 10**9)
    numbers = {"chunks beyond 5 MiB are cut", "gzip bomb of 100 MiB", "50000 empty gzip members", "depth 33", "an object of 300000 keys"}
    numbers |= {"empty body", "10001 events", "a form of 1001 fields"}
    caught = set()
    with running(configuration(tmp_path, body_bytes_max=10 * MIB, inflated_bytes_max=200 * MIB, waiting_bytes_max=1024 * MIB)) as door:
        for case in CASES:
            if case.name in numbers and talk(door.port, case.raw() if callable(case.raw) else case.raw).status != case.status:
                caught.add(case.name)
    assert caught == numbers


def test_mailgun_forms_are_read_where_json_is_usual(tmp_path: Path) -> None:
    """A source that reads forms too takes one; any other refuses it."""
    given = {"mailgun": {"kind": "mailgun", "unsigned": True}, "resend": {"kind": "resend", "unsigned": True}}
    sent = f"event=opened&recipient={quote('a@b.example')}&timestamp=1764000000".encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    with running(configuration(tmp_path, given=given)) as door:
        assert door.post("/in/mailgun", sent, headers).status == 200
        assert door.records()[-1].headers == {"content-type": "application/x-www-form-urlencoded"}
        assert door.post("/in/resend", sent, headers).status == 400
