"""Links to unsubscribe: who may make one, what a request to one does, and that no call follows an acknowledged unsubscribe."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import multiprocessing
import random
import re
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from door_client import Running, configuration, connect, door_process, post, replies, running, talk, until
from test_door import BODY, Opener, answered_within

from midflight.act.links import Link, Links, key_bytes, public_key
from midflight.act.stop_list import SOCKET, StopList
from midflight.events import Event
from midflight.kit.errors import Damaged
from midflight.log import Full, Reader, Stored
from midflight.serve.door import stopping as stopping_module
from midflight.serve.door.answers import Answer
from midflight.serve.door.door import Door
from midflight.serve.door.http import Exchange
from midflight.serve.door.stopping import Line, Stopping
from midflight.serve.door.unsubscribe import LANE, STYLE, Unsubscribing, record_of
from midflight.store.host_local import Engine

KEY = bytes(range(64))
LINKS = Links(KEY, "https://mail.example")
ONE_CLICK = b"List-Unsubscribe=One-Click"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
HTML = "text/html; charset=utf-8"


def path(recipient: str = "ada@example.com", campaign: str = "spring", variant: str = "B", wave: str = "3", links: Links = LINKS) -> str:
    return links.url(recipient, campaign, variant, wave).removeprefix("https://mail.example")


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Running]:
    (tmp_path / "public.key").write_bytes(KEY)
    with running(configuration(tmp_path)) as found:
        yield found


def said(door: Running) -> list[Event]:
    """Return the events that the log holds."""
    return [event for record in door.records("events") for event in msgspec.json.decode(record.body, type=list[Event])]


# -- links -----------------------------------------------------------------------------------------------------------------


def test_a_link_says_what_it_was_made_of_and_always_the_same() -> None:
    """A link is read back as it was made, is the same each time, and shows nothing of what is in it."""
    link = Link("zoë@bücher.example", 'spring "é"', "B", "3")
    url = LINKS.url(*link)
    token = url.removeprefix("https://mail.example/u/")
    assert re.fullmatch(r"[\w-]+", token, re.ASCII) and LINKS.read(token) == link and LINKS.url(*link) == url
    for part in ("spring", "example", "zo"):
        assert part.encode() not in base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    assert len({LINKS.url(*link._replace(**{name: "x"})) for name in Link._fields} | {url}) == 5


def test_a_token_that_was_changed_or_cut_is_none() -> None:
    """Every other spelling of a token, every cut and every changed character is refused, and so is another key's."""
    token = path().removeprefix("/u/")
    assert LINKS.read(token) is not None
    others = [token[:n] for n in range(len(token))] + [token + extra for extra in ("=", "==", "A", " ", "\n", "/", "\u00e9")]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    others += [token[:n] + letter + token[n + 1 :] for n in range(len(token)) for letter in letters if letter != token[n]]
    others += ["", "A" * 10_000, "../../etc/passwd", Links(bytes(64), "https://mail.example").url("a@b.c", "", "", "").rpartition("/")[2]]
    others.append(base64.urlsafe_b64encode(LINKS._cipher.encrypt(b"\x93\x01", [b"midflight link"])).decode())
    others.append(
        base64.urlsafe_b64encode(LINKS._cipher.encrypt(msgspec.msgpack.encode((2, "a@b.c", "", "", "")), [b"midflight link"])).decode()
    )
    assert [other for other in others if LINKS.read(other) is not None] == []


def _key_of(folder: str, ready, out) -> None:
    ready.wait()
    out.put(public_key(Path(folder)))


def test_processes_that_start_at_once_have_one_key(tmp_path: Path) -> None:
    """Whoever makes the key first makes it for all; only the owner can read it, and no half-made file is left."""
    context = multiprocessing.get_context("fork")
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        ready, out = context.Barrier(4), context.Queue()
        processes = [context.Process(target=_key_of, args=(str(folder), ready, out)) for _ in range(4)]
        for process in processes:
            process.start()
        found = {out.get(timeout=20) for _ in processes}
        for process in processes:
            process.join()
        assert found == {public_key(folder)} and len(found.pop()) == key_bytes
        assert [entry.name for entry in folder.iterdir()] == ["public.key"]
        assert stat.S_IMODE((folder / "public.key").stat().st_mode) == 0o600


def test_a_broken_key_is_not_replaced_and_stops_no_webhook(tmp_path: Path) -> None:
    """A key that is not whole is an error that says what to do; links get 429 meanwhile and webhooks their 200."""
    (tmp_path / "public.key").write_bytes(b"short")
    with pytest.raises(Damaged, match="backup"):
        public_key(tmp_path)
    with running(configuration(tmp_path)) as door:
        assert door.post("/in/open", BODY).status == 200
        assert door.post(path(), ONE_CLICK).status == 429
        assert talk(door.port, post(path(), method="GET")).status == 429
    assert (tmp_path / "public.key").read_bytes() == b"short"


# -- looking changes nothing -------------------------------------------------------------------------------------------------

PREFETCH = (
    {"Purpose": "prefetch"}, {"Sec-Purpose": "prefetch;prerender"}, {"X-Moz": "prefetch"}, {"User-Agent": "Mozilla/5.0 BarracudaCentral"},
    {"Content-Type": "application/x-www-form-urlencoded", "Cookie": "a=b"}, {"X-HTTP-Method-Override": "POST"},
)  # fmt: skip


def looks_change_nothing(door: Running, count: int) -> bool:
    """Look at links in the ways of scanners and prefetchers, and return whether nothing was written."""
    raw = []
    for number in range(count):
        query = ("", "?List-Unsubscribe=One-Click", "?choice=unsubscribe", "?_method=POST")[number % 4]
        body = ONE_CLICK if number % 5 == 0 else b""
        raw.append(post(path(wave=str(number)) + query, body, PREFETCH[number % 6], method="HEAD" if number % 3 == 0 else "GET"))
    with connect(door.port) as found:
        for start in range(0, count, 10):
            # An answer to HEAD tells the length of what it leaves out, so those are asked on connections of their own below.
            part = [request for request in raw[start : start + 10] if request.startswith(b"GET")]
            found.sendall(b"".join(part))
            assert {reply.status for reply in replies(found, len(part))} == {200}
    for request in (request for request in raw if request.startswith(b"HEAD")):
        with connect(door.port) as found:
            found.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            head = b""
            while part := found.recv(65536):
                head += part
            assert head.startswith(b"HTTP/1.1 200 ") and head.endswith(b"\r\n\r\n")
    # When this is in the log, so is everything from before.
    assert door.post("/in/open", BODY).status == 200
    return not door.records("events")


def test_a_thousand_looks_change_nothing(door: Running) -> None:
    """GET and HEAD show the page and write nothing, whatever stands in query, headers or body, as scanners and prefetchers send it."""
    assert looks_change_nothing(door, 1000)


@pytest.mark.parametrize("broken", [b"GET", b"HEAD"])
def test_a_page_that_unsubscribes_on_a_look_is_caught(door: Running, broken: bytes) -> None:
    """The control: a page that takes a GET or a HEAD for an unsubscribe does not pass the test above."""
    handlers = door.door.links_route.handlers
    show = handlers[broken]

    def look(exchange: Exchange) -> Answer:
        page = handlers[b"POST"].__self__
        door.door.submit([record_of(page.link(exchange), "unsubscribed", "page", exchange)], lambda _: None)
        return show(exchange)

    handlers[broken] = look
    assert not looks_change_nothing(door, 20)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND"])
def test_odd_methods_change_nothing(door: Running, method: str) -> None:
    """Other methods are refused with what is allowed."""
    reply = talk(door.port, post(path(), ONE_CLICK, method=method))
    assert reply.status == 405 and reply.headers["allow"] == "GET, HEAD, POST"
    assert door.records() == []


def test_the_page_holds_what_browsers_need_and_nothing_else(door: Running) -> None:
    """The page masks the address, posts to itself, has no script, and its headers let nothing be loaded, framed, kept or passed on."""
    reply = talk(door.port, post(path(), method="GET"))
    text = reply.body.decode()
    assert reply.status == 200 and "a***@example.com" in text and "ada@" not in text
    assert text.count('<form method="post"') == 2 and "action" not in text and "<script" not in text and "http" not in text
    policy = reply.headers["content-security-policy"]
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    assert f"<style>{STYLE}</style>" in text
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )  # fmt: skip
    expected = {
        "content-type": HTML, "referrer-policy": "no-referrer", "cache-control": "no-store", "x-robots-tag": "noindex",
        "x-content-type-options": "nosniff",
    }  # fmt: skip
    assert {name: reply.headers[name] for name in expected} == expected
    assert "set-cookie" not in reply.headers and "location" not in reply.headers


XSS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title><svg onload=alert(1)>",
    "{{7*7}}",
    "a\r\nset-cookie: x=1",
    "\u202e",
)


@pytest.mark.parametrize("text", XSS)
def test_what_a_link_holds_is_only_text(door: Running, text: str) -> None:
    """Markup in an address or in the name of a campaign, a variant or a wave stays text on every page."""
    address = f"{text}@example.com"
    for link in (path(campaign=text, variant=text, wave=text), path(recipient=address), path(recipient=f"a@{text}.example")):
        for reply in (talk(door.port, post(link, method="GET")), door.post(link, ONE_CLICK), door.post(link, b"choice=subscribe", FORM)):
            body = reply.body.decode()
            assert reply.status == 200 and "set-cookie" not in reply.headers
            tags = set(re.findall(r"<(\w+)", body))
            assert tags <= {"html", "meta", "title", "style", "h1", "p", "b", "form", "button"} and "<!doctype" in body
            assert text not in body or html.escape(text) == text


# -- unsubscribing -------------------------------------------------------------------------------------------------------------

MULTIPART = (
    b'--b0\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click\r\n--b0--\r\n',
    {"Content-Type": "multipart/form-data; boundary=b0"},
)
BODIES = {
    "one_click": (ONE_CLICK, FORM, "one-click"),
    "one_click_multipart": (*MULTIPART, "one-click"),
    "one_click_without_type": (ONE_CLICK, {}, "one-click"),
    "one_click_escaped": (b"list-unsubscribe=One%2DClick", FORM, "one-click"),
    "button": (b"choice=unsubscribe", FORM, "page"),
    "empty": (b"", {}, "page"),
    "json": (b'{"choice": "subscribe"}', {"Content-Type": "application/json"}, "page"),
    "both": (b"choice=subscribe&" + ONE_CLICK, FORM, "one-click"),
    "both_choices": (b"choice=subscribe&choice=unsubscribe", FORM, "page"),
    "subscribe_as_multipart": (
        b'--b0\r\nContent-Disposition: form-data; name="choice"\r\n\r\nsubscribe\r\n--b0--\r\n', MULTIPART[1], "page",
    ),
    "subscribe_packed": (b"choice=subscribe", FORM | {"Content-Encoding": "gzip"}, "page"),
    "unknown_packing": (b"\x00\xff", FORM | {"Content-Encoding": "br"}, "page"),
    "bytes": (b"\xff\x00" * 1000, FORM, "page"),
    "many_fields": (b"a=1&" * 900, FORM, "page"),
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES)
def test_any_post_unsubscribes(door: Running, body: str) -> None:
    """RFC 8058's body in both forms, the button, nothing and anything else are an unsubscribe, answered 200 once it is in the log."""
    sent, headers, reason = BODIES[body]
    reply = door.post(path(), sent, headers)
    assert reply.status == 200 and reply.headers["content-type"] == HTML and b"You are unsubscribed" in reply.body
    (event,) = said(door)
    assert (event.kind, event.recipient, event.campaign, event.variant, event.wave, event.reason, event.source) == (
        "unsubscribed", "ada@example.com", "spring", "B", "3", reason, "midflight",
    )  # fmt: skip
    assert event.occurred_at_us > 1_700_000_000_000_000


def test_who_unsubscribed_by_mistake_can_subscribe_again(door: Running) -> None:
    """The page's own form subscribes; the engine then has nobody among the suppressions, and before it had."""
    door.post(path(), ONE_CLICK)
    reply = door.post(path(), b"choice=subscribe", FORM)
    assert reply.status == 200 and b"subscribed again" in reply.body
    assert [(event.kind, event.reason) for event in said(door)] == [("unsubscribed", "one-click"), ("subscribed", "page")]


def suppressions(door: Running) -> dict[str, str]:
    """Fold the log as the engine does and return who must not be written to."""
    engine = Engine(door.config, Reader(door.config.folder / "log"))
    engine.catch_up()
    found = dict(engine.store.db.execute("SELECT recipient, why FROM suppressions"))
    engine.close()
    return found


def test_the_engine_reads_what_the_page_writes(door: Running) -> None:
    """The recipient is among the suppressions after the unsubscribe and not after subscribing again, and repeats in a minute count once."""
    for _ in range(5):
        assert door.post(path(), ONE_CLICK).status == 200
    assert suppressions(door) == {"ada@example.com": "unsubscribed"}
    events = said(door)
    minutes = {event.occurred_at_us // 60_000_000 for event in events}
    assert len(events) == 5 and len({event.event_id for event in events}) == len(minutes)
    door.post(path(), b"choice=subscribe", FORM)
    assert suppressions(door) == {}


def test_whoever_changes_his_mind_within_a_minute_has_the_last_word(door: Running) -> None:
    """Each choice on the page counts as the page says, also where the same was chosen a moment before."""
    for _ in range(3):
        door.post(path(), ONE_CLICK)
        assert suppressions(door) == {"ada@example.com": "unsubscribed"}
        door.post(path(), b"choice=subscribe", FORM)
        assert suppressions(door) == {}
    door.post(path(), ONE_CLICK)
    assert suppressions(door) == {"ada@example.com": "unsubscribed"}


def test_forged_links_do_nothing(door: Running) -> None:
    """A token that is not ours gets a page that says what to do, by GET and by POST, and nothing is written."""
    token = path().removeprefix("/u/")
    for link in ("/u/", "/u/x", f"/u/{token[:-1]}", f"/u/{token}x", f"/u/{token}/", f"/u/%2e%2e/{token}", f"/u/{token.swapcase()}"):
        for reply in (talk(door.port, post(link, method="GET")), door.post(link, ONE_CLICK)):
            assert reply.status == 404 and b"copy all of it" in reply.body and reply.headers["content-type"] == HTML
    assert talk(door.port, post("/unsubscribe", method="GET")).status == 404
    assert door.records() == []


def test_a_body_of_more_than_4_kb_is_refused(door: Running) -> None:
    """413 for a longer body, by its length or by its chunks."""
    assert door.post(path(), b"x" * 4096).status == 200
    assert door.post(path(), b"x" * 4097).status == 413
    chunked = post(path(), b"", {"Transfer-Encoding": "chunked", "Content-Length": None}) + b"1002\r\n" + b"x" * 4098 + b"\r\n0\r\n\r\n"
    assert talk(door.port, chunked).status == 413
    assert len(said(door)) == 1


def test_no_link_in_our_own_lines(door: Running, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal of a link is told without the link, which would let whoever reads it unsubscribe somebody."""
    assert door.post(path(), b"x" * 5000).status == 413
    assert talk(door.port, post(path(), method="PUT")).status == 405
    assert len(caplog.messages) >= 2 and "/u/" in caplog.text and path()[:12] not in caplog.text


def test_a_log_that_refuses_gives_429(tmp_path: Path) -> None:
    """While nothing can be stored an unsubscribe gets 429 with Retry-After, and 200 when it is posted again later."""
    (tmp_path / "public.key").write_bytes(KEY)
    opener = Opener()
    with running(configuration(tmp_path), opener=opener) as door:
        opener.valve.failure = Full("No space")
        for _ in range(2):
            reply = door.post(path(), ONE_CLICK)
            assert reply.status == 429 and int(reply.headers["retry-after"]) >= 1
        opener.valve.failure = None
        until(lambda: not door.door.why_closed())
        assert door.post(path(), ONE_CLICK).status == 200 and len(said(door)) == 1


def test_200_waits_for_the_disk(tmp_path: Path) -> None:
    """No answer comes before the unsubscribe is in the log."""
    (tmp_path / "public.key").write_bytes(KEY)
    opener = Opener()
    with running(configuration(tmp_path), opener=opener) as door, connect(door.port) as found:
        opener.valve.open.clear()
        found.sendall(post(path(), ONE_CLICK))
        assert not answered_within(found, 0.3)
        opener.valve.open.set()
        assert replies(found, 1)[0].status == 200 and len(said(door)) == 1


def test_a_flood_of_unsubscribes_leaves_webhooks_their_turn(door: Running) -> None:
    """Links wait in a lane of their own, beside each source's."""
    flood = post(path(), ONE_CLICK)
    with connect(door.port) as many, connect(door.port) as one:
        for _ in range(20):
            many.sendall(flood * 100)
            one.sendall(post("/in/open", BODY))
            assert replies(one, 1)[0].status == 200
            assert {reply.status for reply in replies(many, 100)} == {200}
    assert door.count("door_stored_total", LANE) == 2000 and door.count("door_stored_total", "open") == 20


# -- with the conductor ---------------------------------------------------------------------------------------------------------


@contextmanager
def listening(folder: Path) -> Iterator[SimpleNamespace]:
    """Run a real stop list in a thread with a loop of its own; ``do(f)`` calls a function there."""
    ready, done = threading.Event(), threading.Event()
    found = SimpleNamespace(stops=StopList(), loop=None)

    async def main() -> None:
        found.loop = asyncio.get_running_loop()
        await found.stops.start(folder)
        ready.set()
        while not done.is_set():  # noqa: ASYNC110 (set by another thread)
            await asyncio.sleep(0.01)
        found.stops._under_way.clear()
        await found.stops.close()
        await asyncio.sleep(0.01)

    def do(what: Callable, *arguments: object) -> object:
        async def run() -> object:
            return what(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), found.loop).result(10)

    found.do = do
    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    ready.wait()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def test_200_waits_for_the_call_under_way(door: Running) -> None:
    """While a call to the recipient is under way the answer waits; it comes when the call has ended, and no other call may begin."""
    with listening(door.config.folder) as conductor, connect(door.port) as found:
        assert conductor.do(conductor.stops.begin, ["ada@example.com", "bob@example.com"]) == set()
        found.sendall(post(path(), ONE_CLICK))
        assert not answered_within(found, 0.3) and len(said(door)) == 1
        assert door.post(path("eve@example.com"), ONE_CLICK).status == 200, "who is not in a call waits for nobody"
        assert conductor.do(conductor.stops.begin, ["ada@example.com", "bob@example.com"]) == {"ada@example.com"}
        conductor.do(conductor.stops.end, ["ada@example.com", "bob@example.com"])
        assert replies(found, 1)[0].status == 200
        assert conductor.stops.stopped == {"ada@example.com", "eve@example.com"}
        conductor.do(conductor.stops.forget, ["ada@example.com"])
        assert conductor.do(conductor.stops.begin, ["ada@example.com"]) == set()


def test_a_conductor_that_does_not_answer_gives_429(door: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """429 with Retry-After 30 when the call takes too long; the unsubscribe is in the log all the same, and the next post gets its 200."""
    monkeypatch.setattr(stopping_module, "answer_s_max", 0.3)
    with listening(door.config.folder) as conductor:
        conductor.do(conductor.stops.begin, ["ada@example.com"])
        reply = door.post(path(), ONE_CLICK)
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (429, "stop_late", "30")
        assert len(said(door)) == 1 and door.count("door_stops_late_total") == 1
        conductor.do(conductor.stops.end, ["ada@example.com"])
        assert door.post(path(), ONE_CLICK).status == 200


def test_a_conductor_that_reads_nothing_is_not_sent_more_and_more(door: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a bound on what it has not read, the door says 429 at once and asks it no more."""
    with listening(door.config.folder) as conductor:
        assert door.post(path(), ONE_CLICK).status == 200
        monkeypatch.setattr(stopping_module, "unread_bytes_max", -1)
        assert door.post(path("bob@example.com"), ONE_CLICK).status == 429
        assert conductor.stops.stopped == {"ada@example.com"} and len(said(door)) == 2


def test_the_door_follows_the_conductor_through_its_lives(door: Running) -> None:
    """Without a conductor, with a socket that a dead one left, with one that hangs up and with its successor: the answer is 200."""
    folder = door.config.folder
    assert door.post(path(), ONE_CLICK).status == 200
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(folder / SOCKET))
    dead.close()
    assert door.post(path(), ONE_CLICK).status == 200
    for number in range(3):
        with listening(folder) as conductor:
            assert door.post(path(f"r{number}@example.com"), ONE_CLICK).status == 200
            assert conductor.stops.stopped == {f"r{number}@example.com"}
            conductor.do(conductor.stops.begin, ["held@example.com"])
            with connect(door.port) as waiting:
                waiting.sendall(post(path("held@example.com"), ONE_CLICK))
                until(lambda conductor=conductor: "held@example.com" in conductor.stops.stopped)
                ended = conductor.loop
                ended.call_soon_threadsafe(lambda conductor=conductor: [s.transport.abort() for s in list(conductor.stops._speakers)])
                # The door asks again whoever listens now, and that is the same one, with the call still under way.
                assert not answered_within(waiting, 0.2)
                conductor.do(conductor.stops.end, ["held@example.com"])
                assert replies(waiting, 1)[0].status == 200
    assert not (folder / SOCKET).exists()
    assert door.post(path(), ONE_CLICK).status == 200


def test_many_at_once_share_one_connection(door: Running) -> None:
    """Hundreds of unsubscribes at once, some of them of the same recipient, are all stopped over one connection."""
    with listening(door.config.folder) as conductor, connect(door.port) as found:
        for start in range(0, 500, 100):
            found.sendall(b"".join(post(path(f"r{n % 40}@example.com"), ONE_CLICK) for n in range(start, start + 100)))
            assert {reply.status for reply in replies(found, 100)} == {200}
        assert len(conductor.stops.stopped) == 40 and len(conductor.stops._speakers) == 1


def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    """The socket works in a folder whose path is longer than a socket's may be."""
    folder = tmp_path / ("d" * 200)
    folder.mkdir()
    (folder / "public.key").write_bytes(KEY)
    with running(configuration(folder)) as door, listening(folder) as conductor:
        assert door.post(path(), ONE_CLICK).status == 200
        assert conductor.stops.stopped == {"ada@example.com"}
        assert stat.S_IMODE((folder / SOCKET).stat().st_mode) == 0o600


def test_nonsense_on_the_socket_stops_nobody_and_ends_nothing(tmp_path: Path) -> None:
    """Lines that say nothing known, bytes without an end and half lines are passed over; what is well said is answered."""
    with listening(tmp_path) as conductor, socket.socket(socket.AF_UNIX) as found:
        found.connect(str(tmp_path / SOCKET))
        found.settimeout(10)
        found.sendall(b'nonsense\n{"start":"a"}\n[]\n{"stop":1}\n\xff\n' + b"x" * 200_000 + b'\n{"stop":"a@b')
        time.sleep(0.05)
        found.sendall(b'.example"}\n{"stop":"c@d.example"}\n')
        answers = b""
        while answers.count(b"\n") < 2:
            answers += found.recv(4096)
        assert answers == b'{"stopped":"a@b.example"}\n{"stopped":"c@d.example"}\n'
        assert conductor.stops.stopped == {"a@b.example", "c@d.example"}


@pytest.mark.parametrize("kind", ["unsubscribed", "subscribed"])
def test_a_kill_after_the_answer_loses_nothing(tmp_path: Path, kind: str) -> None:
    """What was answered 200 is in the log when the door is killed right after."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "public.key").write_bytes(KEY)
    body = ONE_CLICK if kind == "unsubscribed" else b"choice=subscribe"
    with door_process(tmp_path) as (process, port):
        assert talk(port, post(path(), body, FORM)).status == 200
        process.kill()
        process.wait()
    found = SimpleNamespace(records=Running.records, config=configuration(data))
    assert [event.kind for r in Running.records(found, "events") for event in msgspec.json.decode(r.body, type=list[Event])] == [kind]


# -- every order of things -----------------------------------------------------------------------------------------------------

PEOPLE = ("a@x.example", "b@x.example", "c@x.example")


class Violation(AssertionError):
    """A call began or was under way after the 200."""


class End:
    """One end of a connection in memory: what is written waits until the scheduler delivers it, in pieces."""

    def __init__(self, protocol: Line) -> None:
        self.protocol = protocol
        self.out = b""
        self.closed = False
        self.other: End | None = None

    def write(self, data: bytes) -> None:
        if not self.closed:
            self.out += data

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return len(self.out)

    def abort(self) -> None:
        self.closed = True


class Conductor:
    """A sender over a real stop list: listens, reads the log's head, waits for the engine, and then sends batches."""

    def __init__(self, world: World) -> None:
        self.world, self.stops, self.head = world, StopList(), -1
        self.batch: list[str] = []
        self.calls: list[list[str]] = []

    @property
    def sends(self) -> bool:
        return 0 <= self.head <= self.world.folded or self.world.no_barrier

    def choose(self) -> None:
        barred = self.world.suppressed | (self.stops.stopped if self.world.checks_early else set())
        self.batch = [person for person in PEOPLE if person not in barred and self.world.random.random() < 0.7]

    def call(self) -> None:
        refused = self.stops.begin(self.batch)
        if self.world.checks_early:
            # The broken sender: it looks when it chooses, and not again.
            for person in refused:
                self.stops._under_way[person] += 1
            refused = set()
        going = [person for person in self.batch if person not in refused]
        self.batch = []
        if going:
            self.calls.append(going)
            for person in going:
                if person in self.world.acknowledged:
                    raise Violation(f"a call to {person} began after the 200")

    def end(self) -> None:
        call = self.calls.pop(self.world.random.randrange(len(self.calls)))
        self.stops.end(call)


class World:
    """The door's handler, its connection, the log, the engine and conductors, one step at a time in an order that the seed decides."""

    def __init__(self, seed: int, *, early: bool = False, checks_early: bool = False, no_barrier: bool = False) -> None:
        self.random = random.Random(seed)
        self.early, self.checks_early, self.no_barrier = early, checks_early, no_barrier
        self.log: list[str] = []
        self.folded = 0
        self.acknowledged: set[str] = set()
        self.answers: list[int] = []
        self.submitted: list[tuple] = []
        self.timers: list[SimpleNamespace] = []
        self.dials = 0
        self.lines: list[tuple[End, End]] = []
        self.conductor: Conductor | None = None
        self.posts_left, self.deaths_left = 5, 2
        self.waited = 0
        self.closed_what = ""
        self.counters = SimpleNamespace(add=lambda *_: None)
        self.stopping = Stopping(Path("/nowhere"), self.dial, self.call_later)
        if early:
            self.stopping.stop = lambda recipient, done: done(True)
        self.page = Unsubscribing(self, LINKS, self.stopping)

    @property
    def suppressed(self) -> set[str]:
        return set(self.log[: self.folded])

    # What the handler and the connection ask of a door.

    def why_closed(self) -> str:
        return ""

    def release(self, exchange: Exchange) -> None:
        """Nothing waits by bytes here."""

    def unsubscribed(self, recipient: str, position: int) -> None:
        assert self.log[position] == recipient, "told before it is in the log"

    def log_refused(self, _error: Exception) -> Answer:
        return Answer(429)

    def submit(self, records: list, storing: Callable) -> None:
        self.submitted.append((storing.recipient, storing))

    def answer(self, exchange: Exchange, answer: Answer) -> None:
        self.answers.append(answer.status)
        if answer.status != 200:
            return
        person = exchange.headers["of"]
        assert person in self.log, "answered before it is in the log"
        self.acknowledged.add(person)
        if self.conductor is not None and any(person in call for call in self.conductor.calls):
            raise Violation(f"a call to {person} is under way at the 200")

    def dial(self, coroutine) -> None:
        coroutine.close()
        self.dials += 1

    def call_later(self, _delay_s: float, what: Callable, *arguments: object) -> SimpleNamespace:
        timer = SimpleNamespace(run=lambda: what(*arguments))
        timer.cancel = lambda: self.timers.remove(timer)
        self.timers.append(timer)
        return timer

    # The steps: what can happen now, each with how often it is chosen.

    def steps(self) -> Iterator[tuple[int, Callable[[], None]]]:
        conductor = self.conductor
        if self.posts_left:
            yield 3, self.post
        if self.submitted:
            yield 4, self.commit
        if self.dials:
            yield 4, self.connect
        for pair in self.lines:
            yield 4, lambda pair=pair: self.deliver(*pair)
            yield 4, lambda pair=pair: self.deliver(*reversed(pair))
        if self.timers:
            yield 1, self.pass_time
        if self.folded < len(self.log):
            yield 2, self.fold
        if conductor is None:
            yield 3, self.begin
            return
        if self.deaths_left:
            yield 1, self.die
        if conductor.head < 0:
            yield 3, lambda: setattr(conductor, "head", len(self.log))
        if conductor.sends:
            yield 3, conductor.choose
            if conductor.batch:
                yield 5, conductor.call
            elif conductor.stops.stopped & self.suppressed:
                yield 1, lambda: conductor.stops.forget(self.suppressed)
        if conductor.calls:
            yield 3, conductor.end

    def post(self) -> None:
        self.posts_left -= 1
        person = self.random.choice(PEOPLE)
        exchange = Exchange(None, b"POST", path(person).encode())
        exchange.headers, exchange.body = {"of": person}, ONE_CLICK
        assert self.page.post(exchange) is None

    def commit(self) -> None:
        part, self.submitted = self.submitted, []
        results = []
        fails = self.random.random() < 0.1
        for person, storing in part:
            results.append((storing, Full("No space") if fails else Stored(len(self.log), len(self.log) + 1)))
            if not fails:
                self.log.append(person)
        Door.settle(results)

    def connect(self) -> None:
        self.dials -= 1
        if self.conductor is None:
            self.stopping.absent()
        elif self.random.random() < 0.1:
            self.call_later(0.1, self.stopping.again)
        else:
            near, far = End(Line(self.stopping)), End(self.conductor.stops.speaker())
            near.other, far.other = far, near
            self.lines.append((near, far))
            far.protocol.connection_made(far)
            near.protocol.connection_made(near)

    def deliver(self, source: End, goal: End) -> None:
        if source.out:
            count = self.random.randint(1, len(source.out))
            data, source.out = source.out[:count], source.out[count:]
            if not goal.closed:
                goal.protocol.data_received(data)
        elif source.closed and not goal.closed:
            goal.closed = True
            self.lines = [pair for pair in self.lines if goal not in pair]
            goal.protocol.connection_lost(None)

    def pass_time(self) -> None:
        timer = self.random.choice(self.timers)
        self.timers.remove(timer)
        timer.run()

    def fold(self) -> None:
        self.folded += 1

    def begin(self) -> None:
        self.conductor = Conductor(self)

    def die(self) -> None:
        # What it had said is still read; what it has not read is gone, and so are its calls.
        self.deaths_left -= 1
        for near, far in self.lines:
            far.closed, near.out = True, b""
        self.conductor = None

    def run(self, steps: int = 90) -> World:
        for _ in range(steps):
            weights, choices = zip(*self.steps(), strict=True)
            self.random.choices(choices, weights)[0]()
            conductor = self.conductor
            self.waited += conductor is not None and bool(conductor.stops._waiting)
        return self


def test_no_call_follows_an_acknowledged_unsubscribe() -> None:
    """In 10,000 orders of posts, commits, lines, answers, calls, deaths, starts and time, no call begins or is under way after the 200."""
    answers: dict[int, int] = {}
    waited = deaths = 0
    for seed in range(10_000):
        try:
            world = World(seed).run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        waited += world.waited > 0
        deaths += world.deaths_left < 2
        for status in world.answers:
            answers[status] = answers.get(status, 0) + 1
    # The orders that matter were among them.
    assert answers[200] > 10_000 and answers[429] > 1_000 and waited > 500 and deaths > 5_000


@pytest.mark.parametrize("broken", ["early", "checks_early", "no_barrier"])
def test_each_broken_handshake_is_caught(broken: str) -> None:
    """The controls: a door that answers before it has asked, a sender that looks only when it chooses, a start that does not wait."""
    with pytest.raises(Violation):
        for seed in range(10_000):
            World(seed, **{broken: True}).run()


def test_every_post_is_answered_in_the_end() -> None:
    """When calls end, lines are delivered and time passes, each post has one answer: nothing waits for ever."""
    for seed in range(500):
        world = World(seed).run(60)
        while world.submitted or world.stopping.waiting or (world.conductor is not None and world.conductor.calls):
            if world.conductor is not None and world.conductor.calls:
                world.conductor.end()
            steps = [step for weight, step in world.steps() if weight == 4 and step != world.post]
            steps[world.random.randrange(len(steps))]() if world.random.random() < 0.9 and steps else world.timers and world.pass_time()
        assert len(world.answers) == 5 - world.posts_left
