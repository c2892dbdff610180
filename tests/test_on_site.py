"""Messages on the site: who a browser is cannot be made up, what it is told is what is due, and what it shows is text."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
import pytest
from door_client import until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from site_door import ADA, PUSH_KEY, orders, serving, visitor
from site_door import events as told

from midflight.act.ways._site_id import recipient_of, site_id
from midflight.act.ways._site_queue import Stream, due, frame, public
from midflight.act.ways.web_push import point, private_key_of
from midflight.serve.door import site_streams as door_site
from midflight.serve.door.site_view import Waiting

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SECRET, OTHER = "a secret of the site", "another secret of it"
NOW_US = 1_764_000_000_000_000
NOW_S = NOW_US // 1_000_000


# -- who it is -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipient", ["ada@example.com", "user-1", "zoë@exämple.com", "x" * 400])
def test_an_id_leads_back_to_its_recipient(recipient: str) -> None:
    """Until it expires, with the present secret and with the one before."""
    made = site_id(recipient, SECRET, NOW_S + 60)
    assert recipient_of(made, [SECRET], NOW_S) == recipient_of(made, [OTHER, SECRET], NOW_S) == recipient
    assert made == site_id(recipient, SECRET, NOW_S + 60) and len(made) < 700
    assert recipient_of(made, [SECRET], NOW_S + 60) == "" and recipient_of(made, [OTHER], NOW_S) == ""


def test_the_documentation_makes_the_same_id(project: Path) -> None:
    """What docs/on-site.md gives a site's own server to make ids with makes ours."""
    code = re.search("```python\n(.*?)```", (project / "docs/on-site.md").read_text(), re.DOTALL)[1]
    known: dict = {}
    exec(code, known)
    for recipient in ("ada@example.com", "zoë@exämple.com"):
        assert known["site_id"](recipient, SECRET, NOW_S) == site_id(recipient, SECRET, NOW_S)


def test_an_id_tells_nobody_who_it_is() -> None:
    """Neither the address nor its base64 stands in it, and two people's have nothing in common."""
    made = site_id("ada@example.com", SECRET, NOW_S)
    assert "ada" not in made and "YWRh" not in made
    assert made[:8] != site_id("ada@example.con", SECRET, NOW_S)[:8]


def test_a_changed_id_is_nobodys() -> None:
    """Every character changed, every end cut off, and what is no id at all."""
    made = site_id("ada@example.com", SECRET, NOW_S + 60)
    for at in range(len(made)):
        other = "A" if made[at] != "A" else "B"
        changed = made[:at] + other + made[at + 1 :]
        # The last character's unused bits decode to the same bytes: then it is the same id, and nobody else's.
        assert recipient_of(changed, [SECRET], NOW_S) in ("", "ada@example.com" if at == len(made) - 1 else "")
        assert recipient_of(made[:at], [SECRET], NOW_S) == ""
    for wrong in ("", "x", "=" * 40, "ü" * 40, "A" * 701, "A" * 60, "../..", "\x00" * 20):
        assert recipient_of(wrong, [SECRET], NOW_S) == ""


# -- what is due ---------------------------------------------------------------------------------------------------------------------


def message(seq: int, *, priority: int = 5, expires_us: int = 1 << 62, ended: str = "", **body: object) -> Waiting:
    return Waiting(seq, f"on-{seq}", {"title": f"Message {seq}", "priority": priority} | body, expires_us, ended)


def test_one_at_a_time_the_most_important_and_then_the_oldest() -> None:
    """Neither what ended nor what expired is among them."""
    waiting = [message(1), message(2, priority=9), message(3, priority=9, ended="closed"), message(4, priority=9, expires_us=NOW_US)]
    assert [found.seq for found in due(waiting, NOW_US)] == [2]
    assert [found.seq for found in due(waiting, NOW_US, shown_max=5)] == [2, 1]
    assert due([], NOW_US) == []


def events(raw: bytes) -> list[tuple[str, dict]]:
    """Read frames as a browser does: fields by line, events by empty line."""
    found = []
    for block in raw.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line and not line.startswith(":"))
        if "data" in fields:
            found.append((fields["event"], msgspec.json.decode(fields["data"])))
    return found


def test_a_stream_tells_what_changed_and_nothing_twice() -> None:
    """What may be there first, then what is new; what ended is taken away, and the next one comes."""
    stream = Stream()
    waiting = [message(1), message(2)]
    assert [name for name, _ in events(stream.told(waiting, NOW_US))] == ["only", "message"]
    assert stream.told(waiting, NOW_US) == b""
    told = events(stream.told([message(1, ended="withdrawn"), message(2)], NOW_US))
    assert [(name, data["id"]) for name, data in told] == [("gone", "on-1"), ("message", "on-2")]
    assert events(stream.told([message(2, expires_us=NOW_US)], NOW_US)) == [("gone", {"id": "on-2"})]


def test_a_browser_that_connects_again_hears_what_alone_may_be_there() -> None:
    """What was withdrawn while it was away is taken away by the first frame."""
    first = events(Stream().told([message(1, ended="withdrawn"), message(2)], NOW_US))[0]
    assert first == ("only", {"ids": ["on-2"]})


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(), st.text(), st.integers(1, 1 << 40))
def test_no_text_breaks_out_of_its_frame(title: str, body: str, seq: int) -> None:
    """Whatever a message says, a browser reads one event with just that."""
    made = frame("message", public(message(seq, title=title, body=body)), seq)
    assert made.count(b"\n") == 4 and made.endswith(b"\n\n") and b"\r" not in made
    ((name, data),) = events(made)
    assert name == "message" and data["title"] == title and data["body"] == body


def test_a_browser_is_told_no_more_than_it_shows() -> None:
    """Priority, rule and recipient stay here."""
    assert set(public(message(1))) == {"id", "title", "body", "link", "link_text"}


# -- in a browser ----------------------------------------------------------------------------------------------------------------------

XSS = '<img src=x onerror="window.broken=1"><script>window.broken=1</script>'


class Shop:
    """A site of somebody's own, on another origin than the door: one page with the script, and a page that a link leads to."""

    def __init__(self) -> None:
        self.page = self.worker = ""
        shop = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_said: object) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                kind, body = {"/": ("html", shop.page), "/worker.js": ("javascript", shop.worker)}.get(path, ("html", "there"))
                body = body.encode()
                self.send_response(200)
                self.send_header("content-type", f"text/{kind}; charset=utf-8")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def shows(self, port: int, id: str) -> None:
        """Put the script of a door into the page, for the visitor with that id."""
        self.page = f'<!doctype html><title>Shop</title><body><script src="http://127.0.0.1:{port}/site.js" data-id="{id}" async></script>'


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    made = browser.new_page()
    made.set_default_timeout(15_000)
    yield made
    made.close()


def test_a_message_is_shown_as_text_and_closed(shop: Shop, page: Page, tmp_path: Path) -> None:
    """Markup of a message is shown and not run, a link that runs something is none; shown and closed are told, and it stays closed when
    the page is loaded again, whether the conductor has read of it yet or not."""
    with serving(tmp_path, [shop.url]) as (door, conductor):
        shop.shows(door.port, visitor())
        conductor.show("on-1", title=XSS, body="One\nTwo " + XSS, link="javascript:window.broken=1", link_text="Go")
        page.goto(shop.url)
        box = page.get_by_role("status")
        box.wait_for()
        assert XSS in box.inner_text() and page.evaluate("window.broken") is None
        assert box.locator("a").count() == 0 and box.locator("img").count() == 0
        box.get_by_role("button", name="Close").click()
        until(lambda: told(door) == [("message shown", ADA, "on-1"), ("message closed", ADA, "on-1")])
        for _ in range(2):
            page.goto(shop.url)
            conductor.show("on-2")
            page.get_by_text("Message on-2").wait_for()
            assert page.get_by_role("status").count() == 1
            conductor.obey(door)
            assert conductor.ends() == {"on-1": "closed"}


def test_a_withdrawn_message_disappears_and_the_next_one_comes(shop: Shop, page: Page, tmp_path: Path) -> None:
    """Also from a page that is open; a link leads where the author said, and a click is told although the page leaves."""
    with serving(tmp_path, [shop.url]) as (door, conductor):
        shop.shows(door.port, visitor())
        conductor.show("on-1")
        conductor.show("on-2", link=f"{shop.url}/offer", link_text="Look")
        page.goto(shop.url)
        page.get_by_text("Message on-1").wait_for()
        conductor.withdraw("on-1")
        page.get_by_text("Message on-2").wait_for()
        assert page.get_by_role("status").count() == 1
        page.get_by_role("link", name="Look").click()
        page.wait_for_url(f"{shop.url}/offer")
        until(lambda: [order.how for order in orders(door)] == ["clicked"])
        conductor.obey(door)
        assert conductor.ends() == {"on-1": "withdrawn", "on-2": "clicked"}


def test_a_page_that_loses_its_stream_comes_back_to_what_holds_now(
    shop: Shop, page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The door is started again; what was withdrawn meanwhile is gone when the page has connected anew, without being loaded again."""
    monkeypatch.setattr(door_site, "retry_s", (1, 1))
    # The first door ends before it has looked for what changed.
    with monkeypatch.context() as before, serving(tmp_path, [shop.url]) as (door, conductor):
        before.setattr(door_site.Streams, "look", lambda self, now_s: None)
        port = door.port
        shop.shows(port, visitor())
        conductor.show("on-1")
        page.goto(shop.url)
        page.get_by_text("Message on-1").wait_for()
        conductor.withdraw("on-1")
        page.wait_for_timeout(600)
        assert page.get_by_text("Message on-1").count() == 1
    with serving(tmp_path, [shop.url], port=port) as (door, conductor):
        page.get_by_text("Message on-1").wait_for(state="detached")
        conductor.show("on-2")
        page.get_by_text("Message on-2").wait_for()


def test_a_page_that_comes_back_as_it_was_left_listens_again(shop: Shop, page: Page, tmp_path: Path) -> None:
    """A browser keeps a page that was left, without its stream; shown again it hears what holds by then, over one stream."""
    with serving(tmp_path, [shop.url]) as (door, conductor):
        shop.shows(door.port, visitor())
        conductor.show("on-1")
        page.goto(shop.url)
        page.get_by_text("Message on-1").wait_for()
        page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")
        until(lambda: not door.door.site.streams.readers)
        conductor.withdraw("on-1")
        page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")
        page.get_by_text("Message on-1").wait_for(state="detached")
        page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")
        until(lambda: door.count("door_requests_total", "200") == 4)  # the script and three streams
        until(lambda: len(door.door.site.streams.readers) == 1)


def test_a_page_that_is_refused_asks_again(shop: Shop, page: Page, tmp_path: Path) -> None:
    """A browser gives up on a stream that was refused, as an expired id's is; the script asks again, later each time, and is let in when it
    may be."""
    with serving(tmp_path, [shop.url]) as (door, conductor):
        shop.shows(door.port, visitor())
        conductor.show("on-1")
        secrets, door.door.site.visitors.secrets = door.door.site.visitors.secrets, []
        page.goto(shop.url)
        until(lambda: door.count("door_refused_total", "bad_id") >= 1)
        assert page.get_by_role("status").count() == 0
        door.door.site.visitors.secrets = secrets
        page.get_by_text("Message on-1").wait_for()


def test_a_page_of_another_site_is_not_let_in(shop: Shop, page: Page, tmp_path: Path) -> None:
    """A site that is not listed puts the script into its page, with a visitor's good id: it shows nothing."""
    with serving(tmp_path, ["https://shop.example"]) as (door, conductor):
        shop.shows(door.port, visitor())
        conductor.show("on-1")
        page.goto(shop.url)
        until(lambda: door.count("door_refused_total", "bad_origin") >= 1)
        page.wait_for_timeout(300)
        assert page.get_by_role("status").count() == 0 and not told(door)


# A browser's own push service is not to be reached from a test; what it would answer is what a browser's subscription says.
SUBSCRIBED = """
const found = {endpoint: 'https://push.example.net/push/x', toJSON: () => ({keys: {p256dh: '%s', auth: '%s'}}), unsubscribe: async () => {
    window.subscribed = null; return true; }};
PushManager.prototype.subscribe = async options => { window.key = options.applicationServerKey; return window.subscribed = found; };
PushManager.prototype.getSubscription = async () => window.subscribed || null;
"""
BROWSER_KEY = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"


def test_a_browser_subscribes_and_shows_what_is_pushed(shop: Shop, browser: Browser, tmp_path: Path) -> None:
    """The page's script subscribes with our public key and tells the door; the site's worker shows a message, and the same one once; the
    browser leaves as it came."""
    with serving(tmp_path, [shop.url]) as (door, conductor):
        at = f"http://127.0.0.1:{door.port}"
        shop.worker = f'importScripts("{at}/push-worker.js");'
        shop.page = f'<!doctype html><body><script src="{at}/push.js" data-id="{visitor()}" data-worker="/worker.js"></script>'
        context = browser.new_context()
        context.grant_permissions(["notifications"], origin=shop.url)
        context.add_init_script(SUBSCRIBED % (BROWSER_KEY, "BTBZMqHH6r4Tts7J_aSIgg"))
        page = context.new_page()
        registrations: list[dict] = []
        cdp = context.new_cdp_session(page)
        cdp.on("ServiceWorker.workerRegistrationUpdated", lambda event: registrations.extend(event["registrations"]))
        cdp.send("ServiceWorker.enable")
        page.goto(shop.url)
        assert page.evaluate("midflightPush.subscribe()") is True
        public = point(private_key_of(PUSH_KEY).public_key())
        assert bytes(page.evaluate("Array.from(window.key)")) == public
        conductor.obey(door)
        assert conductor.browsers.of(ADA) == [("https://push.example.net/push/x", BROWSER_KEY, "BTBZMqHH6r4Tts7J_aSIgg")]
        said = msgspec.json.encode({"id": "ac-1", "title": XSS, "body": "Two", "link": "https://shop.example/x", "tag": "t-1"}).decode()
        for data in (said, said, "no message of ours"):
            pushed = {"origin": shop.url, "registrationId": registrations[-1]["registrationId"], "data": data}
            cdp.send("ServiceWorker.deliverPushMessage", pushed)
        shown = "navigator.serviceWorker.ready.then(r => r.getNotifications()).then(all => all.map(n => [n.title, n.body, n.data.link]))"
        until(lambda: len(page.evaluate(shown)) >= 2)
        assert sorted(page.evaluate(shown)) == [["", "", ""], [XSS, "Two", "https://shop.example/x"]]
        assert page.evaluate("midflightPush.unsubscribe()") is True
        conductor.obey(door)
        assert conductor.browsers.of(ADA) == []
        context.close()
