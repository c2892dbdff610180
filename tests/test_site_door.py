"""The door for a site's pages: who hears which message, what of a report gets into the log, and what no page and no reader can do."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode

import msgspec
import pytest
from door_client import Running, array, configuration, connect, post, running, talk, until
from site_door import ADA, SECRET, Conductor, events, orders, serving, visitor, with_ways
from test_door import Opener

from midflight.act.push_subscriptions import PushSubscriptions, browsers_max
from midflight.act.site_orders import EndShown, Subscribe, Unsubscribe, order_of
from midflight.act.ways._site_id import site_id
from midflight.act.ways.web_push import base64url, point, private_key_of
from midflight.kit.errors import ConfigError
from midflight.log import Full, Reader
from midflight.serve.door import site_streams as module
from midflight.serve.door.door import Door
from midflight.serve.door.site_reports import Reports, browser_reports_max
from midflight.serve.door.site_view import SiteView
from midflight.store.host_local import Engine

SHOP = "https://shop.example"
BOB = "bob@example.com"
ENDPOINT = "https://push.example.net/push/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV"
KEYS = {
    "p256dh": "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",
    "auth": "BTBZMqHH6r4Tts7J_aSIgg",
}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Running, Conductor]]:
    with serving(tmp_path, [SHOP]) as found:
        yield found


class Listening:
    """A browser's stream, read as it comes."""

    def __init__(self, door: Running, id: str, origin: str | None = SHOP) -> None:
        self.socket = connect(door.port)
        headers = {"Host": "door.example"} | ({"Origin": origin} if origin else {})
        lines = [f"GET /v1/site?{urlencode({'id': id})} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        self.raw, self.ended = b"", False

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *_error: object) -> None:
        self.socket.close()

    def read(self, seconds: float = 0.0) -> bytes:
        """Return all that has come, waiting so long for more."""
        end = time.monotonic() + seconds
        self.socket.settimeout(0.05)
        while not self.ended:
            try:
                part = self.socket.recv(65536)
            except TimeoutError:
                if time.monotonic() >= end:
                    break
                continue
            except ConnectionResetError:
                part = b""
            self.ended = not part
            self.raw += part
        return self.raw

    def events(self) -> list[tuple[str, object]]:
        """Return what a browser is told: the kind, and the message or the messages."""
        found = []
        for block in self.read().partition(b"\r\n\r\n")[2].decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line and not line.startswith(":"))
            if "data" in fields:
                data = msgspec.json.decode(fields["data"])
                found.append((fields["event"], data.get("id", data.get("ids"))))
        return found

    def hears(self, *expected: tuple[str, object]) -> None:
        until(lambda: self.events() == list(expected) or len(self.events()) > len(expected))
        assert self.events() == list(expected)


def report(door: Running, origin: str | None = SHOP, path: str = "/v1/site", **fields: str):
    headers = {"Content-Type": "application/x-www-form-urlencoded;charset=UTF-8"} | ({"Origin": origin} if origin else {})
    return door.post(path, urlencode(fields).encode(), headers)


def get(door: Running, path: str, origin: str | None = None):
    return talk(door.port, post(path, headers={"Origin": origin} if origin else {}, method="GET"))


# -- who hears what ----------------------------------------------------------------------------------------------------------------


def test_a_visitor_hears_what_waits_and_what_changes(site: tuple[Running, Conductor]) -> None:
    """The most important message first; withdrawn, it is taken away and the next one comes, each once, without being asked for again."""
    door, conductor = site
    conductor.show("on-1")
    conductor.show("on-2", priority=9)
    with Listening(door, visitor()) as browser:
        browser.hears(("only", ["on-2"]), ("message", "on-2"))
        conductor.withdraw("on-2")
        browser.hears(("only", ["on-2"]), ("message", "on-2"), ("gone", "on-2"), ("message", "on-1"))
        head = browser.read().partition(b"\r\n\r\n")[0]
        assert b"content-type: text/event-stream" in head and b"access-control-allow-origin: https://shop.example\r\n" in head
        assert b"vary: origin" in head and b"no-store" in head


def test_time_alone_takes_a_message_away(site: tuple[Running, Conductor]) -> None:
    """A message that expires while a page is open disappears from it, though nothing was written."""
    door, conductor = site
    conductor.show("on-1", expires_us=int((time.time() + 1.5) * 1e6))
    with Listening(door, visitor()) as browser:
        browser.hears(("only", ["on-1"]), ("message", "on-1"))
        browser.hears(("only", ["on-1"]), ("message", "on-1"), ("gone", "on-1"))


def hears_only_its_own(folder: Path) -> None:
    with serving(folder, [SHOP]) as (door, conductor):
        with Listening(door, visitor(ADA)) as ada, Listening(door, visitor(BOB)) as bob:
            ada.hears(("only", []))
            bob.hears(("only", []))
            conductor.show("on-1", BOB)
            bob.hears(("only", []), ("message", "on-1"))
            ada.read(0.6)
            ada.hears(("only", []))


def test_nobody_hears_what_is_another_ones(tmp_path: Path) -> None:
    """Each stream tells its own recipient's messages."""
    hears_only_its_own(tmp_path)


def test_a_view_that_forgets_whose_messages_they_are_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: read for whoever asks, they reach the wrong page, and the test above sees it."""
    own = SiteView.open_messages
    monkeypatch.setattr(SiteView, "open_messages", lambda self, recipient, now_us: own(self, BOB, now_us))
    with pytest.raises(AssertionError):
        hears_only_its_own(tmp_path)


NO_IDS = {
    "none": "", "short": "x", "made up": "A" * 60, "signed by another": site_id(ADA, "another secret of it", 1 << 40),
    "expired": visitor(expires_s=1_700_000_000), "cut": visitor()[:-2], "long": "a" * 5000, "bytes": "\xff\x00",
}  # fmt: skip


def test_without_a_good_id_nothing_is_told(site: tuple[Running, Conductor]) -> None:
    """Streams and reports alike: 401, no record, and no word of whether there is anybody."""
    door, conductor = site
    conductor.show("on-1")
    for what, id in NO_IDS.items():
        assert get(door, "/v1/site?" + urlencode({"id": id})).status == 401, what
        assert report(door, id=id, message="on-1", how="closed").status == 401, what
        assert report(door, path="/v1/push", id=id, endpoint=ENDPOINT, **KEYS).status == 401, what
    assert not orders(door) and not events(door)


def test_pages_of_other_origins_get_nothing(site: tuple[Running, Conductor]) -> None:
    """A page of a site that is not listed may neither listen nor report, even with a good id: 403, without a word that lets it read."""
    door, conductor = site
    conductor.show("on-1")
    for origin in ("https://evil.example", "http://shop.example", SHOP + ".evil.example", "null", SHOP + ":444", f"{SHOP}, {SHOP}"):
        for reply in (
            get(door, "/v1/site?" + urlencode({"id": visitor()}), origin),
            get(door, "/v1/push", origin),
            report(door, origin, id=visitor(), message="on-1", how="closed"),
            report(door, origin, "/v1/push", id=visitor(), endpoint=ENDPOINT, **KEYS),
        ):
            assert reply.status == 403 and "access-control-allow-origin" not in reply.headers, origin
    assert not orders(door) and not events(door)


def test_a_message_that_cannot_be_read_stops_no_other(site: tuple[Running, Conductor]) -> None:
    """One row that is no message is shown as an empty one at most; the visitor's other messages and other visitors' come."""
    door, conductor = site
    conductor.show("on-1")
    conductor.spoil("on-1")
    conductor.show("on-2", priority=9)
    conductor.show("on-3", BOB)
    with Listening(door, visitor()) as ada, Listening(door, visitor(BOB)) as bob:
        ada.hears(("only", ["on-2"]), ("message", "on-2"))
        bob.hears(("only", ["on-3"]), ("message", "on-3"))


def test_a_stream_may_be_there_before_the_conductor(tmp_path: Path) -> None:
    """Without the conductor's file a stream waits; once it is there its messages come, and a file put in its place is read as well."""
    with running(with_ways(tmp_path, [SHOP])) as door, Listening(door, visitor()) as browser:
        browser.hears(("only", []))
        with closing(Conductor(tmp_path)) as conductor:
            conductor.show("on-1")
            browser.hears(("only", []), ("message", "on-1"))
        for old in tmp_path.glob("outbox.db*"):
            old.unlink()
        with closing(Conductor(tmp_path)) as conductor:
            conductor.show("on-2")
            browser.hears(("only", []), ("message", "on-1"), ("gone", "on-1"), ("message", "on-2"))


def test_without_a_secret_the_door_has_nothing_for_pages(tmp_path: Path) -> None:
    """Where no way `on_site` is configured, or one without a secret, every path of this is as unknown as any other."""
    with running(configuration(tmp_path)) as door:
        for path in ("/site.js", "/push.js", "/push-worker.js", "/v1/site?id=x", "/v1/push"):
            assert get(door, path).status == 404
        assert report(door, id=visitor(), message="on-1", how="closed").status == 404


@pytest.mark.parametrize(
    "wrong", [{"secrets": ["short"]}, {"origins": ["shop.example"]}, {"origins": ["https://shop.example/"]}, {"origin": "x"}]
)
def test_wrong_settings_stop_the_start(tmp_path: Path, wrong: dict) -> None:
    """A short secret, an origin with a path or without a scheme, and a setting that is none, are said with their place."""
    config = with_ways(tmp_path, [SHOP])
    config.ways["site"] |= wrong
    with pytest.raises(ConfigError, match=r"secrets|origins|ways\.site"):
        Door(config)


def test_scripts_are_served_to_any_page(site: tuple[Running, Conductor]) -> None:
    """Three scripts, as scripts and nothing else; HEAD says the same without the body."""
    door, _ = site
    for path, word in (("/site.js", b"EventSource"), ("/push.js?v=1", b"pushManager"), ("/push-worker.js", b"showNotification")):
        reply = get(door, path)
        assert reply.status == 200 and word in reply.body and reply.headers["content-type"].startswith("text/javascript")
        assert reply.headers["x-content-type-options"] == "nosniff"
    assert talk(door.port, post("/v1/site", method="PUT")).status == 405


# -- bounds ------------------------------------------------------------------------------------------------------------------------


def test_streams_leave_room_for_webhooks(tmp_path: Path) -> None:
    """At most half of the connections are streams. A further browser is told to come later, in words that it obeys; webhooks are taken."""
    with serving(tmp_path, [SHOP], connections_max=4) as (door, _):
        open_ones = [Listening(door, visitor(f"p{n}@example.com")) for n in range(2)]
        for browser in open_ones:
            browser.hears(("only", []))
        refused = get(door, "/v1/site?" + urlencode({"id": visitor()}), SHOP)
        assert refused.status == 200 and refused.body.startswith(b"retry: ") and refused.headers["content-type"] == "text/event-stream"
        assert int(refused.body.split()[1]) >= 30_000 and door.count("door_streams_full_total") == 1
        assert door.post("/in/open", array()).status == 200
        open_ones.pop().socket.close()
        until(lambda: get_stream(door))
        open_ones.pop().socket.close()


def get_stream(door: Running) -> bool:
    with Listening(door, visitor()) as browser:
        return b"event: only" in browser.read(0.3)


def test_one_visitor_cannot_take_all_streams(site: tuple[Running, Conductor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of tabs a visitor's further ones wait, and others listen."""
    door, _ = site
    monkeypatch.setattr(module, "streams_per_visitor_max", 2)
    tabs = [Listening(door, visitor()) for _ in range(3)]
    until(lambda: tabs[2].read(0.1) and tabs[2].ended)
    assert b"retry: " in tabs[2].raw and b"event" not in tabs[2].raw.partition(b"\r\n\r\n")[2]
    with Listening(door, visitor(BOB)) as bob:
        bob.hears(("only", []))
    for tab in tabs:
        tab.socket.close()


def test_a_browser_that_does_not_read_is_dropped(site: tuple[Running, Conductor]) -> None:
    """What it has not read is bounded; it is dropped, and another one beside it hears what is new."""
    door, conductor = site
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", door.port))
    slow.sendall(f"GET /v1/site?id={visitor()} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    with slow, Listening(door, visitor(BOB)) as bob:
        bob.hears(("only", []))
        until(lambda: ADA in door.door.site.streams.of)

        def flood() -> None:
            for reader in list(door.door.site.streams.of.get(ADA, {}).values()):
                door.door.site.streams._write(reader, b": " + b"x" * (4 << 20) + b"\n\n")

        for _ in range(4):
            door.door.loop.call_soon_threadsafe(flood)
        until(lambda: ADA not in door.door.site.streams.of and not door.door.site.streams.waiting)
        assert door.count("door_streams_dropped_total") == 1
        conductor.show("on-1", BOB)
        bob.hears(("only", []), ("message", "on-1"))


def test_a_stream_ends_in_time_and_with_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time a browser has to come anew; a door that stops ends the streams first and does not wait for their readers."""
    monkeypatch.setattr(module, "stream_s", (0.5, 0.5))
    monkeypatch.setattr(module, "keep_alive_s", 0.2)
    with serving(tmp_path, [SHOP]) as (door, _):
        with Listening(door, visitor()) as first:
            until(lambda: first.read(0.1) and first.ended)
        assert not door.door.site.streams.readers and not door.door.site.streams.of
        monkeypatch.setattr(module, "stream_s", (60.0, 60.0))
        second = Listening(door, visitor())
        second.hears(("only", []))
        until(lambda: b"\n: \n\n" in second.read())
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 4
    with second:
        second.read(1.0)
        assert second.ended


def test_a_stream_is_asked_for_on_a_connection_of_its_own(site: tuple[Running, Conductor]) -> None:
    """Behind a request that is not answered yet it is refused, and the answer that is owed comes."""
    door, _ = site
    webhook = post("/in/open", array())
    with connect(door.port) as found:
        found.sendall(webhook + post(f"/v1/site?id={visitor()}", method="GET"))
        data = b""
        while part := found.recv(65536):
            data += part
    assert data.startswith(b"HTTP/1.1 200 ") and b"HTTP/1.1 400 " in data and b"event-stream" not in data


# -- reports -----------------------------------------------------------------------------------------------------------------------


def test_what_became_of_a_message_is_in_the_log_once(site: tuple[Running, Conductor]) -> None:
    """Shown and closed, told three times each: one event each, and one order that the conductor obeys; then the message has ended."""
    door, conductor = site
    conductor.show("on-1")
    for how in ("shown", "closed"):
        for _ in range(3):
            reply = report(door, id=visitor(), message="on-1", how=how)
            assert reply.status == 204 and reply.headers["access-control-allow-origin"] == SHOP
    assert events(door) == [("message shown", ADA, "on-1"), ("message closed", ADA, "on-1")]
    assert orders(door) == [EndShown(id="site:on-1", recipient=ADA, message="on-1", how="closed")]
    conductor.obey(door)
    assert conductor.ends() == {"on-1": "closed"}
    # After a restart the door remembers nothing; the conductor's file says that there is nothing to note.
    door.door.site.reports.heard.clear()
    assert report(door, id=visitor(), message="on-1", how="clicked").status == 204
    assert len(orders(door)) == 1 and len(events(door)) == 2


def closed_stays_closed(folder: Path) -> None:
    with serving(folder, [SHOP]) as (door, conductor):
        conductor.show("on-1")
        conductor.show("on-2")
        with Listening(door, visitor()) as other_tab:
            other_tab.hears(("only", ["on-1"]), ("message", "on-1"))
            assert report(door, id=visitor(), message="on-1", how="closed").status == 204
            other_tab.hears(("only", ["on-1"]), ("message", "on-1"), ("gone", "on-1"), ("message", "on-2"))
        with Listening(door, visitor()) as reloaded:
            reloaded.hears(("only", ["on-2"]), ("message", "on-2"))


def test_what_was_closed_is_gone_from_every_page_at_once(tmp_path: Path) -> None:
    """Also before the conductor has read of it: from other tabs, and from pages that load again; the next message comes."""
    closed_stays_closed(tmp_path)


def test_a_door_that_waits_for_the_conductor_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without its own memory of what was closed, the door shows it again."""
    monkeypatch.setattr(Reports, "ended", lambda self, message: False)
    monkeypatch.setattr("door_client.until.__defaults__", (1.0,))
    with pytest.raises(AssertionError):
        closed_stays_closed(tmp_path)


def test_no_report_ends_what_is_not_the_visitors(site: tuple[Running, Conductor]) -> None:
    """Another recipient's message, one that is none, and an end that only we may say: refused, and nothing is noted."""
    door, conductor = site
    conductor.show("on-1", ADA)
    conductor.show("on-2", BOB)
    for fields, status in (
        ({"message": "on-2", "how": "closed"}, 404),
        ({"message": "nobody's", "how": "clicked"}, 404),
        ({"message": "on-1", "how": "withdrawn"}, 400),
        ({"message": "on-1"}, 400),
        ({"how": "closed"}, 404),
    ):
        assert report(door, id=visitor(), **fields).status == status, fields
    assert not orders(door) and not events(door)


def test_no_body_makes_trouble(site: tuple[Running, Conductor]) -> None:
    """What is no form, too long, or has too many fields, gets an answer below 500 and leaves the door well."""
    door, _ = site
    many = b"&".join([b"a=b"] * 2000)
    for body in (b"", b"\xff\xfe", b"id=" * 5000, many, many * 2, b"{}", b"id=%00&message=%00&how=closed"):
        for path in ("/v1/site", "/v1/push"):
            assert door.post(path, body).status in (401, 413), body[:20]
    assert door.count("door_faults_total") == 0


def test_a_report_that_cannot_be_stored_is_not_taken_for_heard(tmp_path: Path) -> None:
    """While the disk is full a report gets 429; told again later it is noted."""
    opener = Opener()
    with closing(Conductor(tmp_path)) as conductor, running(with_ways(tmp_path, [SHOP]), opener=opener) as door:
        conductor.show("on-1")
        opener.valve.failure = Full("The disk is full")
        assert report(door, id=visitor(), message="on-1", how="closed").status == 429
        assert not door.door.site.reports.heard
        opener.valve.failure = None
        until(lambda: report(door, id=visitor(), message="on-1", how="closed").status == 204)
        assert len(orders(door)) == 1


def test_the_engine_keeps_reports_for_the_conductor(site: tuple[Running, Conductor]) -> None:
    """What a page reports stands among the store's orders, where the conductor reads it, and counts as something done on a site."""
    door, conductor = site
    conductor.show("on-1")
    assert report(door, id=visitor(), message="on-1", how="clicked").status == 204
    engine = Engine(door.config, Reader(door.config.folder / "log"))
    engine.catch_up()
    bodies = [body for (body,) in engine.store.db.execute("SELECT body FROM orders")]
    dead = engine.store.db.execute("SELECT count(*) FROM dead").get
    engine.close()
    assert [order_of(body) for body in bodies] == orders(door) and dead == 0


# -- browsers that take notifications ------------------------------------------------------------------------------------------------


def test_a_browser_subscribes_and_leaves(site: tuple[Running, Conductor]) -> None:
    """Its keys become an order that the conductor keeps; told again nothing is noted; gone, it is forgotten, and can come back."""
    door, conductor = site
    assert report(door, path="/v1/push", id=visitor(), endpoint=ENDPOINT, **KEYS, how="on").status == 204
    (found,) = orders(door)
    assert isinstance(found, Subscribe) and (found.recipient, found.endpoint, found.p256dh) == (ADA, ENDPOINT, KEYS["p256dh"])
    conductor.obey(door)
    assert conductor.browsers.of(ADA) == [(ENDPOINT, KEYS["p256dh"], KEYS["auth"])]
    assert report(door, path="/v1/push", id=visitor(), endpoint=ENDPOINT, **KEYS, how="on").status == 204
    assert len(orders(door)) == 1
    assert report(door, path="/v1/push", id=visitor(), endpoint=ENDPOINT, how="gone").status == 204
    assert isinstance(orders(door)[1], Unsubscribe)
    conductor.obey(door)
    assert conductor.browsers.of(ADA) == []
    assert report(door, path="/v1/push", id=visitor(), endpoint=ENDPOINT, **KEYS).status == 204
    conductor.obey(door)
    assert len({order.id for order in orders(door)}) == 3


WRONG = [
    {"endpoint": "http://push.example.net/x"}, {"endpoint": "https://127.0.0.1/x"}, {"endpoint": "https://169.254.169.254/x"},
    {"endpoint": "https://user@push.example.net/"}, {"endpoint": ""}, {"p256dh": "B" * 87}, {"p256dh": ""}, {"auth": "x"},
]  # fmt: skip


def test_a_subscription_that_cannot_be_one_is_refused(site: tuple[Running, Conductor]) -> None:
    """An endpoint inside, without TLS or with a user, and keys that are none: 400 that says what was expected, and nothing is noted."""
    door, _ = site
    for wrong in WRONG:
        reply = report(door, path="/v1/push", **{"id": visitor(), "endpoint": ENDPOINT, **KEYS, **wrong})
        assert reply.status == 400 and b"expected" in reply.body, wrong
    assert not orders(door)


def test_one_visitor_cannot_fill_the_log(site: tuple[Running, Conductor]) -> None:
    """Ever new browsers of one visitor are noted so often in an hour; another visitor's are all the same."""
    door, _ = site
    found = [report(door, path="/v1/push", id=visitor(), endpoint=f"{ENDPOINT}{n}", **KEYS).status for n in range(browser_reports_max + 3)]
    assert found == [204] * browser_reports_max + [429] * 3 and len(orders(door)) == browser_reports_max
    assert report(door, path="/v1/push", id=visitor(BOB), endpoint=ENDPOINT, **KEYS).status == 204


def test_the_key_for_subscribing_is_the_public_one(site: tuple[Running, Conductor]) -> None:
    """Pages get the public half of the VAPID key, and never the private one."""
    door, _ = site
    reply = get(door, "/v1/push", SHOP)
    key = base64url(point(private_key_of("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw").public_key()))
    assert msgspec.json.decode(reply.body) == {"key": key} and reply.headers["access-control-allow-origin"] == SHOP


def test_browsers_of_one_recipient_are_bounded(tmp_path: Path) -> None:
    """The oldest makes room; a browser that changes hands is its new user's alone, and nobody removes another's."""
    with closing(Conductor(tmp_path)) as conductor:
        browsers: PushSubscriptions = conductor.browsers
        for n in range(browsers_max + 2):
            browsers.put(ADA, f"https://push.example/{n}", "k", "a", n)
        assert [found.endpoint[-1] for found in browsers.of(ADA)] == ["6", "5", "4", "3", "2"]
        browsers.put(BOB, "https://push.example/6", "k2", "a", 100)
        assert len(browsers.of(ADA)) == browsers_max - 1 and browsers.of(BOB)[0].p256dh == "k2"
        assert not browsers.remove("https://push.example/6", ADA) and browsers.remove("https://push.example/6")
        assert not browsers.of(BOB)


def test_the_secret_and_ids_stand_in_no_line_of_ours(site: tuple[Running, Conductor], caplog: pytest.LogCaptureFixture) -> None:
    """Refusals are told with their path alone: an id is a right."""
    door, _ = site
    get(door, "/v1/site?" + urlencode({"id": visitor()}), "https://evil.example")
    until(lambda: "403" in caplog.text)
    assert visitor() not in caplog.text and SECRET not in caplog.text and "/v1/site" in caplog.text
