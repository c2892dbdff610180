"""The door's promises over real sockets: 200 means stored, whatever is killed or fails; and its other paths."""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from door_client import (
    AUTHORIZED,
    array,
    configuration,
    connect,
    door_process,
    event,
    post,
    records_in,
    replies,
    running,
    signed,
    sources,
    talk,
    until,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.kit.clock import Clock, VirtualClock
from midflight.log import Full, Record, Unwritable, Writer
from midflight.serve.door import door as door_module
from midflight.serve.door.door import Door
from midflight.sources import load

BODY = array(event(1))


class Valve:
    """A real writer whose appends wait while it is shut, and fail while ``failure`` is set."""

    def __init__(self, folder, clock: Clock) -> None:
        self.writer = Writer.open(folder, None, clock)
        self.open = threading.Event()
        self.open.set()
        self.failure: Exception | None = None

    def append(self, records: list[Record]) -> tuple[int, int]:
        self.open.wait()
        if self.failure is not None:
            raise self.failure
        return self.writer.append(records)

    def close(self) -> None:
        self.writer.close()


class Opener:
    """Opens a `Valve` and keeps it for the test."""

    valve: Valve

    def __call__(self, folder, clock: Clock) -> Valve:
        self.valve = Valve(folder, clock)
        return self.valve


def answered_within(found: socket.socket, seconds: float) -> bool:
    found.settimeout(seconds)
    try:
        return found.recv(1, socket.MSG_PEEK) != b""
    except TimeoutError:
        return False


# -- durable before acknowledged -------------------------------------------------------------------------------------------


def waits_for_the_disk(folder: Path) -> bool:
    """Whether a door over this folder keeps its answer back until the record is stored, and then gives it."""
    opener = Opener()
    with running(configuration(folder), opener=opener) as door, connect(door.port) as found:
        opener.valve.open.clear()
        found.sendall(post("/in/open", BODY))
        early = answered_within(found, 0.3)
        opener.valve.open.set()
        found.settimeout(10)
        assert [reply.status for reply in replies(found, 1)] == [200]
        until(lambda: len(door.records()) == 1)
        return not early


def test_200_waits_for_the_disk(tmp_path: Path) -> None:
    """No answer comes before the append has returned; then it is 200 and the record is in the log."""
    assert waits_for_the_disk(tmp_path)


def test_a_door_that_answers_first_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a door that tells the sender before the disk has it does not pass the test above."""
    monkeypatch.setattr(Door, "submit", EARLY)
    assert not waits_for_the_disk(tmp_path)


def EARLY(door: Door, records: list[Record], storing: Callable) -> None:  # noqa: N802 (a broken method, named as such)
    """Answer at once, store later: what a door must not do."""
    from midflight.log import Stored

    storing(Stored(0, len(records)))
    door.commit.submit(records, lambda _: None)


POINTS = ("body_read", "before_append", "after_append", "after_fsync", "before_200")


def acknowledged_until_death(port: int, prefix: str = "") -> list[str]:
    """Send events over several connections until the door is gone; return the ids that were acknowledged."""
    acknowledged: list[str] = []

    def sender(number: int) -> None:
        try:
            with connect(port) as found:
                for count in range(2000):
                    name = f"{prefix}{number}-{count}"
                    found.sendall(post("/in/open", array(event(sg_event_id=name))))
                    reply = replies(found, 1)
                    if not reply:
                        return
                    if reply[0].status == 200:
                        acknowledged.append(name)
        except OSError:
            pass  # the door has died

    threads = [threading.Thread(target=sender, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return acknowledged


def stored_ids(folder: Path) -> list[str]:
    """Recover the log as the next door would, and return the ids of the events in it."""
    Writer.open(folder / "data" / "log").close()
    return [event["sg_event_id"] for r in records_in(folder / "data") if r.kind == "webhook" for event in msgspec.json.decode(r.body)]


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_loses_nothing_acknowledged(tmp_path: Path, point: str) -> None:
    """Killed at any named point under load, every event that got its 200 is in the log."""
    with door_process(tmp_path, environment={"MIDFLIGHT_CRASH_AT": f"{point}:60"}) as (process, port):
        acknowledged = acknowledged_until_death(port)
        assert process.wait(20) == -signal.SIGKILL
    assert len(acknowledged) >= 8
    assert set(acknowledged) <= set(stored_ids(tmp_path))


@pytest.mark.long
@pytest.mark.parametrize("at", range(1, 200, 10))
@pytest.mark.parametrize("point", POINTS)
def test_many_kills_lose_nothing_acknowledged(tmp_path: Path, point: str, at: int) -> None:
    """100 kills, each at another pass of a named point, each followed by a second run and kill over the same log."""
    acknowledged: list[str] = []
    for run in range(2):
        with door_process(tmp_path, environment={"MIDFLIGHT_CRASH_AT": f"{point}:{at}"}) as (process, port):
            acknowledged += acknowledged_until_death(port, f"{run}-")
            assert process.wait(20) == -signal.SIGKILL
    assert set(acknowledged) <= set(stored_ids(tmp_path))


def test_a_kill_catches_a_door_that_answers_first(tmp_path: Path) -> None:
    """The control: killed in the same way, a door that answers before the append loses acknowledged events."""
    broken = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_door; test_door.run_broken()"
    with door_process(tmp_path, environment={"MIDFLIGHT_CRASH_AT": "before_append:60"}, code=broken) as (process, port):
        acknowledged = acknowledged_until_death(port)
        assert process.wait(20) == -signal.SIGKILL
    assert set(acknowledged) - set(stored_ids(tmp_path))


def run_broken() -> None:
    """Run a door that answers before the append; for the control above."""
    from midflight.config import load_config
    from midflight.serve.door import run_door

    Door.submit = EARLY
    run_door(load_config())


# -- a log that refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "code"), [(Full("No space"), "disk_full"), (Unwritable("EIO"), "log_unwritable"), (OSError(5, "EIO"), "log_unwritable")]
)
def test_a_log_that_refuses_gives_429_until_it_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, code: str
) -> None:
    """429 with Retry-After and /ready 503 while the log refuses; both end by themselves when it takes records again."""
    monkeypatch.setattr(door_module, "tick_s", 0.1)
    opener = Opener()
    with running(configuration(tmp_path), opener=opener) as door:
        opener.valve.failure = failure
        for _ in range(3):
            reply = door.post("/in/open", BODY)
            assert (reply.status, reply.code) == (429, code)
            assert 1 <= int(reply.headers["retry-after"]) <= 60
        assert talk(door.port, post("/ready", method="GET")).status == 503
        assert talk(door.port, post("/health", method="GET")).status == 200
        assert door.records() == []
        opener.valve.failure = None
        until(lambda: talk(door.port, post("/ready", method="GET")).status == 200)
        assert door.post("/in/open", BODY).status == 200
        assert len(door.records()) == 1


def test_a_slow_disk_sheds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one append takes too long, new requests get 429 at once; those that wait get their 200 in the end."""
    monkeypatch.setattr(door_module, "append_s_max", 0.2)
    opener = Opener()
    with running(configuration(tmp_path), opener=opener) as door, connect(door.port) as first:
        opener.valve.open.clear()
        first.sendall(post("/in/open", BODY))
        until(lambda: door.door.why_closed() == "disk_slow")
        assert (reply := door.post("/in/open", BODY)).status == 429 and reply.code == "disk_slow"
        opener.valve.open.set()
        assert [reply.status for reply in replies(first, 1)] == [200]
        assert door.post("/in/open", BODY).status == 200


def test_a_starting_door_says_429(tmp_path: Path) -> None:
    """Until the log is open, webhooks get 429 and /ready 503: no vendor takes that for a no."""
    go, listening = threading.Event(), []

    def opener(folder, clock: Clock) -> Writer:
        go.wait()
        return Writer.open(folder, None, clock)

    def ask() -> None:
        until(lambda: free_port_answers(port))
        listening.append(talk(port, post("/in/open", BODY)))
        listening.append(talk(port, post("/ready", method="GET")))
        go.set()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asking = threading.Thread(target=ask)
    asking.start()
    with running(configuration(tmp_path, port=port), opener=opener) as door:
        asking.join()
        assert [reply.status for reply in listening] == [429, 503]
        assert door.post("/in/open", BODY).status == 200


def test_a_disk_that_is_full_at_the_start_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A door that cannot open its log yet stays up with 429, and takes records as soon as there is space."""
    monkeypatch.setattr(door_module, "tick_s", 0.1)
    space = threading.Event()

    def opener(folder, clock: Clock) -> Writer:
        if not space.is_set():
            raise Full("No space left for the log")
        return Writer.open(folder, None, clock)

    with running(configuration(tmp_path), opener=opener) as door:
        assert (reply := door.post("/in/open", BODY)).status == 429 and reply.code == "disk_full"
        space.set()
        until(lambda: talk(door.port, post("/ready", method="GET")).status == 200)
        assert door.post("/in/open", BODY).status == 200


def free_port_answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_a_second_door_on_the_same_log_is_refused(tmp_path: Path) -> None:
    """The log has one writer: a second door does not start, and says so in one line."""
    with door_process(tmp_path) as (_, port):
        settings = msgspec.json.decode((tmp_path / "midflight.yaml").read_bytes())
        settings["door"]["port"] = 0
        second = tmp_path / "second.yaml"
        second.write_bytes(msgspec.json.encode(settings))
        done = subprocess.run(
            [sys.executable, "-m", "midflight", "door", "--config", str(second)], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 2 and done.stderr.count("midflight: ") == 1
        assert talk(port, post("/in/open", BODY)).status == 200


# -- HTTP as senders speak it ----------------------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    """Answers come in the order of the requests, slow ones and refused ones between fast ones too."""
    raw = [
        (post("/in/open", BODY), 200),
        (post("/in/nobody", BODY), 404),
        (post("/in/open", gzip.compress(BODY), {"Content-Encoding": "gzip"}), 200),
        (post("/in/open", method="GET"), 200),
        (post("/in/sendgrid", BODY), 401),
        (post("/in/open", b"{}"), 400),
        (post("/in/open", BODY, {"Content-Encoding": "br"}), 415),
        (post("/in/sendgrid", BODY, signed(BODY)), 200),
    ] * 5
    with running(configuration(tmp_path)) as door, connect(door.port) as found:
        found.sendall(b"".join(request for request, _ in raw))
        assert [reply.status for reply in replies(found, len(raw))] == [status for _, status in raw]
        assert len(door.records()) == 15


def test_too_many_pipelined_requests_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection cannot pile up requests without end: it gets 429 and is closed, after the answers before."""
    monkeypatch.setattr("midflight.serve.door.http.pipeline_max", 50)
    opener = Opener()
    with running(configuration(tmp_path), opener=opener) as door, connect(door.port) as found:
        opener.valve.open.clear()
        found.sendall(b"POST /in/open HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n[]" * 100)
        until(lambda: door.count("door_bytes_total") >= 2 * 50)
        opener.valve.open.set()
        statuses = [reply.status for reply in replies(found, 100)]
        assert statuses == [200] * 50 + [429]
        assert len(door.records()) == 50


def test_a_connection_is_kept(tmp_path: Path) -> None:
    """Requests one after the other use one connection; `Connection: close` ends it."""
    with running(configuration(tmp_path)) as door, connect(door.port) as found:
        for _ in range(5):
            found.sendall(post("/in/open", BODY))
            assert replies(found, 1)[0].status == 200
        found.sendall(post("/in/open", BODY, {"Connection": "close"}))
        reply = replies(found, 1, ends=True)[0]
        assert (reply.status, reply.headers.get("connection"), reply.closed) == (200, "close", True)


def test_an_idle_connection_is_closed_quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kept connection that is not used any more ends without a word."""
    monkeypatch.setattr("midflight.serve.door.http.idle_s_max", 0.5)
    with running(configuration(tmp_path)) as door, connect(door.port) as found:
        found.sendall(post("/in/open", BODY))
        assert replies(found, 1)[0].status == 200
        assert found.recv(100) == b""


def test_expect_continue_is_answered(tmp_path: Path) -> None:
    """A sender that asks first is told to go on, or at once why not."""
    with running(configuration(tmp_path)) as door:
        with connect(door.port) as found:
            head, _, body = post("/in/open", BODY, {"Expect": "100-continue"}).partition(b"\r\n\r\n")
            found.sendall(head + b"\r\n\r\n")
            assert found.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            found.sendall(body)
            assert replies(found, 1)[0].status == 200
        raw = post("/in/open", b"", {"Expect": "100-continue", "Content-Length": "99999999"})
        assert talk(door.port, raw, ends=True)[0::3] == (413, True)


def test_http_1_0_and_half_closed_and_upgrading_senders_get_their_answer(tmp_path: Path) -> None:
    """Old and odd but honest clients are served."""
    with running(configuration(tmp_path)) as door:
        old = b"POST /in/open HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
        assert talk(door.port, old, ends=True)[0::3] == (200, True)
        with connect(door.port) as half:
            half.sendall(post("/in/open", BODY))
            half.shutdown(socket.SHUT_WR)
            assert replies(half, 1, ends=True)[0][0::3] == (200, True)
        upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQCAAAAAAIAAAAA"}
        assert door.post("/in/open", BODY, upgrade, ends=True)[0::3] == (200, True)
        assert len(door.records()) == 3


def test_a_refused_small_body_leaves_the_connection_usable(tmp_path: Path) -> None:
    """After 404 or 401 the same connection takes the next request."""
    with running(configuration(tmp_path)) as door, connect(door.port) as found:
        for raw, status in [(post("/in/nobody", BODY), 404), (post("/in/sendgrid", BODY), 401), (post("/in/open", BODY), 200)]:
            found.sendall(raw)
            assert replies(found, 1)[0].status == status


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory):
    with running(configuration(tmp_path_factory.mktemp("lasting"))) as door:
        yield door


CONVERSATION = [
    (post("/in/open", BODY), 200),
    (b"POST /in/open HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n1;x=y\r\n]\r\n0\r\nX-T: 1\r\n\r\n", 200),
    (post("/in/sendgrid", BODY), 401),
    (post("/in/open?x=1", method="HEAD"), 200),
    (post("/in/open", BODY, {"Connection": "Upgrade", "Upgrade": "h2c"}), 200),
]


@given(st.lists(st.integers(1, sum(len(raw) for raw, _ in CONVERSATION) - 1), max_size=12))
@settings(max_examples=60)
def test_however_bytes_are_cut_the_answers_are_the_same(lasting, cuts: list[int]) -> None:
    """Requests in any pieces get the answers they get in one piece."""
    whole = b"".join(raw for raw, _ in CONVERSATION)
    with connect(lasting.port) as found:
        for start, end in pairwise([0, *sorted(set(cuts)), len(whole)]):
            found.sendall(whole[start:end])
            time.sleep(0.0005)
        assert [reply.status for reply in replies(found, len(CONVERSATION))] == [status for _, status in CONVERSATION]


PIECES = [b"", b"\r\n", b"\0", b"\xff", b" ", b":", b"[", b'"', b"Transfer-Encoding: chunked\r\n", b"Content-Length: 1\r\n"]


@given(st.data())
@settings(max_examples=200)
def test_no_bytes_make_the_door_fail(lasting, data: st.DataObject) -> None:
    """Whatever is changed in a request, the answer is 2xx or 4xx, or the end; never 5xx, and no fault of ours is counted."""
    raw = bytearray(data.draw(st.sampled_from([raw for raw, _ in CONVERSATION])))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        piece = data.draw(
            st.sampled_from([b"", b"\r\n", b"\0", b"\xff", b" ", b":", b"[", b'"', b"Transfer-Encoding: chunked\r\n"])
            | st.binary(max_size=8)
        )
        raw[at : at + data.draw(st.integers(0, 3))] = piece
    with connect(lasting.port) as found:
        found.sendall(raw)
        found.shutdown(socket.SHUT_WR)
        assert all(200 <= reply.status < 500 for reply in replies(found, 10, ends=True))
    assert lasting.count("door_faults_total") == 0
    assert lasting.post("/in/open", BODY).status == 200


# -- what vendors and browsers ask for -----------------------------------------------------------------------------------------


def test_only_a_source_with_basic_credentials_asks_for_them(tmp_path: Path) -> None:
    """SNS sends credentials only after it was asked; a signed source does not ask."""
    with running(configuration(tmp_path)) as door:
        assert door.post("/in/postmark", b"{}").headers["www-authenticate"] == 'Basic realm="midflight"'
        assert "www-authenticate" not in door.post("/in/sendgrid", BODY).headers
        assert door.post("/in/postmark", b'{"RecordType":"Open"}', AUTHORIZED).status == 200


def test_the_record_holds_what_parsing_needs_and_no_secret(tmp_path: Path) -> None:
    """Content type and the source's own headers are kept; credentials, signatures and the query are not."""
    with running(configuration(tmp_path)) as door:
        headers = AUTHORIZED | {"Content-Type": "application/json", "X-Other": "1"}
        assert door.post("/in/postmark?token=hush", b'{"RecordType":"Open"}', headers).status == 200
        (record,) = door.records()
        assert record.headers == {"content-type": "application/json"}
        assert "hush" not in record.url and record.source == "postmark" and record.kind == "webhook"


def test_a_subscription_is_confirmed_after_it_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vendor's URL is fetched in the background, once, when the record is in the log."""
    fetched: list[tuple[str, int]] = []
    topic = "arn:aws:sns:eu-west-1:1:t"
    configured = {"ses": {"kind": "ses", "topics": [topic]}}

    async def fetch(url: str) -> int:
        fetched.append((url, len(records_in(tmp_path))))
        return 200

    monkeypatch.setattr(door_module, "fetch_once", fetch)
    url = "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn=t&Token=x"
    said = {
        "Type": "SubscriptionConfirmation",
        "MessageId": "1",
        "TopicArn": topic,
        "SubscribeURL": url,
        "Token": "x",
        "Message": "m",
        "Timestamp": "t",
    }
    with running(configuration(tmp_path, given=configured)) as door:
        source = door.door.routes[b"/in/ses"].handlers[b"POST"].__self__.source
        monkeypatch.setattr(source, "verify", lambda request: 0)
        assert door.post("/in/ses", msgspec.json.encode(said), {"x-amz-sns-message-type": said["Type"]}).status == 200
        until(lambda: fetched)
        until(lambda: door.count("door_handshakes_total", "done") == 1)
    assert [(asked, count >= 1) for asked, count in fetched] == [(url, True)]


CALLS = ["track", "identify", "page", "screen", "group", "alias", "batch", "t", "i", "p"]


@pytest.mark.parametrize("call", CALLS)
def test_tracked_calls_are_stored(tmp_path: Path, call: str) -> None:
    """Segment's libraries are answered as they expect, from any origin; the record says which call it was."""
    import base64

    key = {"Authorization": "Basic " + base64.b64encode(b"write-key:").decode(), "Origin": "https://shop.example"}
    body = b'{"batch":[{"type":"track","event":"a"}]}' if call == "batch" else b'{"event":"a","userId":"u"}'
    with running(configuration(tmp_path)) as door:
        reply = door.post(f"/v1/{call}", body, key)
        assert (reply.status, msgspec.json.decode(reply.body)) == (200, {"success": True})
        assert reply.headers["access-control-allow-origin"] == "*"
        (record,) = door.records()
        assert (record.kind, record.source, record.url, record.body) == ("track", "site", f"/v1/{call}", body)


def test_a_browser_may_ask_first_and_carries_its_key_in_the_body(tmp_path: Path) -> None:
    """A preflight is allowed; a beacon has its write key in the body; a wrong key is 401 that the page can read."""
    with running(configuration(tmp_path)) as door:
        asked = talk(door.port, post("/v1/track", method="OPTIONS"))
        assert asked.status == 204 and "POST" in asked.headers["access-control-allow-methods"]
        beacon = b'{"writeKey":"write-key","event":"a","userId":"u"}'
        assert door.post("/v1/track", beacon, {"Content-Type": "text/plain"}).status == 200
        wrong = door.post("/v1/track", beacon.replace(b"write-key", b"other"))
        assert wrong.status == 401 and wrong.headers["access-control-allow-origin"] == "*"
        assert "www-authenticate" not in wrong.headers


def test_the_write_key_chooses_the_source(tmp_path: Path) -> None:
    """Two sites have a key each; compressed calls too reach the right one; a key of neither is 401."""
    configured = {"shop": {"kind": "segment", "basic_auth": ["one"]}, "blog": {"kind": "segment", "basic_auth": ["two"]}}
    with running(configuration(tmp_path, given=configured)) as door:
        for key, status in (("two", 200), ("one", 200), ("three", 401)):
            body = msgspec.json.encode({"writeKey": key, "event": "a", "userId": "u"})
            assert door.post("/v1/track", body).status == status
            assert door.post("/v1/t", gzip.compress(body), {"Content-Encoding": "gzip"}).status == status
        assert [record.source for record in door.records()] == ["blog", "blog", "shop", "shop"]


# -- our own processes -------------------------------------------------------------------------------------------------------


def test_own_processes_append_over_loopback(tmp_path: Path) -> None:
    """With the token records are appended and their positions answered; the time is the door's; the token is the owner's only."""
    with running(configuration(tmp_path)) as door:
        path = tmp_path / "internal.token"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        headers = {"Authorization": f"Bearer {path.read_text().strip()}"}
        records = [
            Record("definition", "console", 5, {}, b"{}"),
            Record("events", "import", 5, {}, b"[]"),
            Record("replay", "", 5, {}, b""),
        ]
        reply = door.post("/internal/append", msgspec.msgpack.encode(records), headers)
        assert reply.status == 200
        stored = door.records()
        assert msgspec.msgpack.decode(reply.body) == [record.position for record in stored]
        assert [record.kind for record in stored] == ["definition", "events", "replay"] and stored[0].at_us > 1_000_000


def test_strangers_cannot_append(tmp_path: Path) -> None:
    """Without the token it is 401; kinds that come from outside, nothing, and what is no record are 400."""
    with running(configuration(tmp_path)) as door:
        token = {"Authorization": f"Bearer {(tmp_path / 'internal.token').read_text().strip()}"}
        good = [Record("events", "import", 0, {}, b"[]")]
        cases = [(good, {}, 401), (good, {"Authorization": "Bearer wrong"}, 401), ([], token, 400), ([1], token, 400)]
        cases += [([Record(kind, "x", 0, {}, b"")], token, 400) for kind in ("webhook", "track", "tick", "other")]
        for records, headers, status in cases:
            assert door.post("/internal/append", msgspec.msgpack.encode(records), headers).status == status
        assert door.records() == []


def test_strangers_see_no_numbers_of_the_door(tmp_path: Path) -> None:
    """The door's metrics name the sources, and the name may be all that an unsigned one is protected by."""
    with running(configuration(tmp_path)) as door:
        door.post("/in/open", BODY)
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
            refused = talk(door.port, post("/metrics", headers=headers, method="GET"))
            assert refused.status == 401 and b"open" not in refused.body
        assert 'door_stored_total{source="open"} 1' in door.metrics().splitlines()


def test_own_processes_may_come_from_the_doors_own_address(tmp_path: Path) -> None:
    """A door that listens on one address of this machine is reached from that same address."""
    with running(configuration(tmp_path)) as door:
        internal = door.door.routes[b"/internal/append"].handlers[b"POST"].__self__
        token = {"authorization": internal.bearer}
        assert not internal.lets_in(SimpleNamespace(peer="10.0.0.5", headers=token))
        internal.host = "10.0.0.5"
        assert internal.lets_in(SimpleNamespace(peer="10.0.0.5", headers=token))
        assert not internal.lets_in(SimpleNamespace(peer="10.0.0.6", headers=token))
        assert not internal.lets_in(SimpleNamespace(peer="10.0.0.5", headers={}))


def test_an_empty_token_is_made_anew(tmp_path: Path) -> None:
    """What a power cut may leave of the token's file lets nobody in and keeps nobody out."""
    (tmp_path / "internal.token").write_text("")
    with running(configuration(tmp_path)):
        assert len((tmp_path / "internal.token").read_text().strip()) > 30


def test_only_loopback_is_our_own() -> None:
    """A token that leaked is worth nothing from another machine."""
    from midflight.serve.door.internal import is_loopback

    assert all(is_loopback(peer) for peer in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"))
    assert not any(is_loopback(peer) for peer in ("10.0.0.1", "::ffff:10.0.0.1", "fe80::1", "", "localhost"))


def test_a_quiet_second_has_a_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time goes on in the log when nothing arrives, and only then."""
    monkeypatch.setattr(door_module, "tick_s", 0.2)
    with running(configuration(tmp_path)):
        until(lambda: [record.kind for record in records_in(tmp_path)].count("tick") >= 2)


def test_metrics_say_what_happened(tmp_path: Path) -> None:
    """Counts by status, reason and source are there as Prometheus text."""
    with running(configuration(tmp_path)) as door:
        door.post("/in/open", BODY)
        door.post("/in/sendgrid", BODY)
        said = door.metrics()
        for line in (
            'door_requests_total{status="200"} 1', 'door_requests_total{status="401"} 1', 'door_refused_total{reason="unauthorized"} 1',
            'door_stored_total{source="open"} 1', "door_records_total 1", "door_ready 1", f"door_bytes_total {2 * len(BODY)}",
        ):  # fmt: skip
            assert line in said.splitlines()


def test_a_line_of_the_log_cannot_be_forged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a sender puts into a request, a refusal is one line without control characters."""
    with running(configuration(tmp_path)) as door, caplog.at_level(logging.WARNING, "midflight.door"):
        door.post("/in/%0d%0a\x1b[31m", BODY)
        door.post("/in/sendgrid", BODY, {"X-Twilio-Email-Event-Webhook-Signature": "a\x9bb", "X-Twilio-Email-Event-Webhook-Timestamp": "1"})
    assert len(caplog.messages) >= 2
    assert all(message.isprintable() for message in caplog.messages)


def test_a_mistake_of_ours_is_429_and_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in a source loses nothing: the sender comes again, and the log says that somebody has to look."""
    with running(configuration(tmp_path)) as door:
        source = door.door.routes[b"/in/open"].handlers[b"POST"].__self__.source
        monkeypatch.setattr(source, "verify", lambda request: 1 // 0)
        assert (reply := door.post("/in/open", BODY)).status == 429 and reply.code == "fault"
        assert door.post("/in/open", gzip.compress(BODY), {"Content-Encoding": "gzip"}).status == 429
        assert door.count("door_faults_total") == 2
    assert any(record.levelname == "ERROR" and record.exc_info for record in caplog.records)


# -- the process ---------------------------------------------------------------------------------------------------------


def test_sigterm_drains(tmp_path: Path) -> None:
    """Under load SIGTERM ends the door with status 0 in time; what was acknowledged is stored, and nothing was cut off unanswered."""
    with door_process(tmp_path) as (process, port):
        found: list[list[str]] = []
        load = threading.Thread(target=lambda: found.append(acknowledged_until_death(port)))
        load.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(12) == 0
        load.join()
    assert found[0] and set(found[0]) == set(stored_ids(tmp_path))


def test_sigterm_waits_for_a_request_under_way_and_a_second_one_does_not(tmp_path: Path) -> None:
    """A half-sent request gets its answer during the drain; a second SIGTERM ends everything at once."""
    raw = post("/in/open", BODY)
    with door_process(tmp_path) as (process, port), connect(port) as found:
        found.sendall(raw[:-5])
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        until(lambda: not free_port_answers(port))
        found.sendall(raw[-5:])
        assert replies(found, 1, ends=True)[0][0::3] == (200, True)
        assert process.wait(12) == 0
    with door_process(tmp_path) as (process, port), connect(port) as found:
        found.sendall(raw[:-5])
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        until(lambda: not free_port_answers(port))
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_without_descriptors_the_door_waits_and_does_not_spin(tmp_path: Path) -> None:
    """Out of descriptors, open connections are served and accepting pauses; it goes on when there is room again."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))  # noqa: E731
    with door_process(tmp_path, before=limit) as (process, port), connect(port) as kept:
        kept.sendall(post("/in/open", BODY))
        assert replies(kept, 1)[0].status == 200
        crowd = [connect(port) for _ in range(120)]
        time.sleep(0.3)
        before_s = cpu_s(process.pid)
        time.sleep(1.0)
        assert cpu_s(process.pid) - before_s < 0.5
        kept.sendall(post("/in/open", BODY))
        assert replies(kept, 1)[0].status == 200
        for one in crowd:
            one.close()
        assert talk(port, post("/in/open", BODY)).status == 200


def test_beyond_the_most_connections_idle_ones_make_room(tmp_path: Path) -> None:
    """A kept connection that does nothing is closed for a sender that has something to say."""
    with running(configuration(tmp_path, connections_max=5)) as door:
        idle = [connect(door.port) for _ in range(5)]
        for one in idle:
            one.sendall(post("/in/open", BODY))
            assert replies(one, 1)[0].status == 200
        assert door.post("/in/open", BODY).status == 200
        assert door.door.open_count <= 5
        for one in idle:
            one.close()


def test_old_records_go_when_nobody_needs_them(tmp_path: Path) -> None:
    """Segments older than `retention.log_days` are removed, but none that the engine or the history still has to read."""
    from midflight.store.history import folder_of

    clock = VirtualClock(1_764_000_000_000_000)

    def opener(folder, clock: Clock) -> Writer:
        return Writer.open(folder, None, clock, segment_bytes=128 * 1024, reserve_bytes=0)

    config = configuration(tmp_path)
    config.retention.log_days = 1
    with running(config, clock=clock, opener=opener) as door:

        def first_kept() -> int:
            asyncio.run_coroutine_threadsafe(door.door.retain(), door.door.loop).result(30)
            assert door.post("/in/open", BODY).status == 200
            until(lambda: door.door.appending.removal is None)
            return records_in(tmp_path)[0].position

        for _ in range(12):
            assert door.post("/in/open", array(event(note="x" * 60_000))).status == 200
        assert first_kept() == 0, "nothing is old"
        clock.at_us += 3 * 86_400_000_000
        assert first_kept() == 0, "old, but nobody has read it"
        (tmp_path / "snapshots").mkdir(exist_ok=True)
        (tmp_path / "snapshots" / f"{9:020d}.snap").touch()
        assert first_kept() == 0, "the history has not read it"
        folder_of(tmp_path).mkdir()
        (folder_of(tmp_path) / "position").write_text("6")
        assert 0 < first_kept() <= 6


def test_every_kind_of_source_has_a_door(tmp_path: Path) -> None:
    """Each configured vendor answers 200 to a look at its URL and 401, 400 or 429 to an empty post, never anything else."""
    configured = sources() | {"ses": {"kind": "ses", "topics": ["arn:aws:sns:eu-west-1:1:t"]}}
    with running(configuration(tmp_path, given=configured)) as door:
        for name, set_up in configured.items():
            if load(set_up["kind"], {k: v for k, v in set_up.items() if k != "kind"}).__class__.__name__ == "Segment":
                continue
            assert talk(door.port, post(f"/in/{name}", method="GET")).status == 200
            assert door.post(f"/in/{name}").status in (400, 401)
