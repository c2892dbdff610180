"""Campaigns in a real browser: made in the form, looked at, started, taken over and stopped, by people and with a keyboard alone."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import msgspec
import pytest
from chromium import LoggedIn, has_focus
from door_client import post, running, talk
from played_conductor import Played, conducting
from playwright.sync_api import Browser, Page
from sample_store import PAYLOADS, fill, serving

from midflight.act.campaigns import Wave
from midflight.act.orders import Add, Pin
from midflight.act.standing import GroupStanding, OptionStanding, Said, SlotStanding
from midflight.config import config_from
from midflight.kit.clock import Clock
from midflight.kit.errors import MidflightError
from midflight.serve import ordering
from midflight.serve.api import create_app
from midflight.serve.console import experiments, wizard
from midflight.serve.console.experiments import figure, ground, link_of, shares_chart
from midflight.serve.console.multipart import parsed
from midflight.serve.shield import POLICY, content_bytes_max

CSV = "email,first_name,plan\n" + "".join(f"reader{n}@example.com,Reader {n},{'pro' if n % 3 else 'free'}\n" for n in range(200))
NEW = "/experiments/new"
BODY = "<style>h1 { color: rgb(1, 2, 3) }</style><h1>Hello {{ first_name }}</h1><p style='color: rgb(4, 5, 6)'>Come.</p>"


class Desk(LoggedIn):
    """A served console with a real door and a played conductor, and a browser to look at it."""

    def __init__(self, base: str, app, browser: Browser, conductor: Played) -> None:
        super().__init__(base, app.state.site.access, browser)
        self.app, self.conductor = app, conductor

    def started(self, name: str, variants: int = 2, **changes: object) -> str:
        """Put down a campaign and start it, past the form; return its page's address."""
        now, given = self.conductor.now_us, {"id": "x", "campaign": name, "who": "ada"}
        rows = [{"name": chr(65 + n), "subject": f"Subject {n}", "text": "x {{ unsubscribe_url }}"} for n in range(variants)]
        listed = self.app.state.site.lists.take(CSV.encode()).name
        raw = {"name": name, "channel": "main", "from_address": "a@shop.example", "audience": {"csv": listed}, "variants": rows} | changes
        with self.conductor.lock:
            self.conductor.do(Add(definition=raw, audience=listed, **given))
            self.conductor.campaigns.move(self.conductor.campaigns.named(name).id, "sending", "ada", "it is time", now)
        return link_of(name)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    config = config_from(
        {
            "data": str(folder), "door": {"port": 0}, "console": {"port": 8401}, "attributes": ["plan"],
            "channels": {"main": {"kind": "smtp"}, "second": {"kind": "sendgrid"}},
        }
    )  # fmt: skip
    now_us = Clock().now_us()
    fill(config, now_us, scale=0.01)
    with running(config) as door:
        config.door.port = door.port
        app = create_app(config, Clock())
        app.state.site.access.set_user("ada", "correct horse battery")
        with conducting(folder, now_us) as conductor, serving(app) as base:
            yield Desk(base, app, browser, conductor)


def press(page: Page, name: str) -> None:
    """Press a button and wait for the page that comes."""
    with page.expect_navigation():
        page.get_by_role("button", name=name, exact=True).click()


def filled(page: Page, name: str, **changes: str) -> None:
    """Fill in the form for two variants."""
    values = {
        "name": name, "from_address": "news@shop.example", "list_text": CSV, "v0_subject": "Two days left, {{ first_name }}",
        "v0_from_name": "The Shop", "v0_preheader": "only for {{ plan }}", "v0_body": BODY, "v1_subject": "Last chance",
        "v1_body": "<p>{{ first_name }}</p>",
    }  # fmt: skip
    for field, value in (values | changes).items():
        page.fill(f"#{field}", value)


def values_of(page: Page) -> dict[str, str]:
    """Return everything that stands in the form."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('.wizard input:not([type=file]), .wizard select, .wizard textarea')]
        .filter(e => e.name && !['csrf', 'list', 'why'].includes(e.name)).map(e => [e.name, e.value]))"""
    )


def error_at(page: Page, field: str) -> str:
    """Return what stands beside a field, as a screen reader is told it."""
    described = page.locator(f"#{field}").get_attribute("aria-describedby")
    assert page.locator(f"#{field}").get_attribute("aria-invalid") == "true", field
    return page.locator(f"#{described}").inner_text()


# -- from the form to the stop -------------------------------------------------------------------------------------------


def test_a_campaign_from_the_form_to_its_stop(desk: Desk) -> None:
    """Preview, draft, start, pin, give back, drop, pause, resume, stop: each is confirmed, done, seen on the page and in the ledger."""
    page = desk.page(NEW)
    filled(page, "Whole way")
    press(page, "Preview")
    assert page.locator(".mail").count() == 2
    assert page.locator(".mail .subject").first.inner_text() == "Two days left, Reader 0"
    press(page, "Save as draft")
    assert page.url == f"{desk.base}/experiments/Whole%20way"
    assert page.locator("[data-state]").get_attribute("data-state") == "draft"
    page.locator("summary", has_text="Start").click()
    said = page.locator("[data-key=sending] p").inner_text()
    assert said == "200 people get one of 2 variants each, over 8 h. What is sent cannot be taken back."
    page.locator("[data-key=sending] input[name=why]").fill("it is time")
    press(page, "Start")
    assert page.locator("[data-state]").get_attribute("data-state") == "sending"
    desk.conductor.wave("Whole way", [10, 10], [0.5, 0.5], (2, 2, 3, 4))
    desk.conductor.stand("Whole way")
    page.wait_for_selector("[data-taken='20']")
    for summary, key, state, shown in (
        ("Pin B", "pin 1", "sending", "pinned"),
        ("Give back to the policy", "back", "sending", None),
        ("Drop A", "drop 0", "sending", "dropped"),
        ("Pause", "paused", "paused", None),
        ("Resume", "sending", "sending", None),
        ("Stop", "stopped", "stopped", None),
    ):
        page.locator("summary", has_text=summary).click()
        sheet = page.locator(f"[data-key='{key}'] form")
        assert len(sheet.locator("p").inner_text()) > 30, "it says what happens"
        sheet.locator("input[name=why]").fill(f"because {key}")
        with page.expect_navigation():
            sheet.locator("button").click()
        assert page.locator("[data-state]").get_attribute("data-state") == state
        assert (page.locator("#variants .pill", has_text="pinned").count() == 1) == (shown == "pinned")
        assert page.locator("#ledger li").first.locator(".note").inner_text() == f"“because {key}”"
    assert page.locator("#take").count() == 0, "what is stopped is stopped"
    changes = desk.conductor.campaigns.changes(desk.conductor.campaigns.named("Whole way").id)
    assert [change["what"] for change in changes][1:] == [
        "sending", "pinned B", "gave the waves back to the policy", "dropped A", "paused", "sending", "stopped",
    ]  # fmt: skip
    assert {change["who"] for change in changes} == {"ada"}
    assert page.evaluate("window.bad") == []
    page.context.close()


def test_slots_are_made_in_the_form(desk: Desk) -> None:
    """A slot and its options are added, named and taken out by buttons; what is missing is said beside its field; the draft has them."""
    page = desk.page(NEW)
    filled(page, "Slots by hand", v1_body="<p>{{ slots.hero }} for {{ first_name }}</p>")
    page.locator("summary", has_text="Content by recipient group").click()
    for button in ("Add a slot", "Add a slot", "Remove slot 1", "Add an option"):
        press(page, button)
    has_focus(page, "s0o2_name")
    typed = {
        "s0_name": "hero", "s0_by": "plan", "s0o0_name": "coat", "s0o0_html": "Coat", "s0o1_name": "boots", "s0o1_html": "<b>Boots</b>",
        "s0o1_text": "Boots", "s0o2_name": "hat", "s0o2_html": "<b>Hat</b>",
    }  # fmt: skip
    for field, value in typed.items():
        page.fill(f"#{field}", value)
    press(page, "Remove option 1")
    assert page.input_value("#s0o0_name") == "boots" and page.input_value("#s0o1_html") == "<b>Hat</b>"
    for field, value, text in (
        ("s0_name", "Hero", "as in hero"),
        ("s0_name", "other", "Unknown slot"),
        ("s0_by", " , ", "Which columns"),
        ("s0_by", "paln", "Did you mean `plan`?"),
        ("s0o1_name", "boots", "a name of its own"),
        ("s0o1_html", " ", "What stands there?"),
    ):
        was = page.input_value(f"#{field}")
        page.fill(f"#{field}", value)
        press(page, "Preview")
        assert text in error_at(page, "v1_body" if text == "Unknown slot" else field), (field, value)
        assert page.locator("[role=alert]").inner_text().startswith("1 thing to mend")
        page.fill(f"#{field}", was)
    press(page, "Preview")
    assert "Boots" in page.frame_locator(".mail iframe >> nth=1").locator("b").inner_text()
    press(page, "Save as draft")
    slots = desk.conductor.campaigns.named("Slots by hand").definition.slots
    assert msgspec.to_builtins(slots) == {
        "hero": {"by": ["plan"], "options": [
            {"name": "boots", "html": "<b>Boots</b>", "text": "Boots"}, {"name": "hat", "html": "<b>Hat</b>", "text": ""},
        ]},
    }  # fmt: skip
    again = desk.page(f"{NEW}?like=Slots+by+hand")
    assert [again.input_value(f"#{field}") for field in ("s0_name", "s0_by", "s0o1_name")] == ["hero", "plan", "hat"]
    assert page.evaluate("window.bad") == []
    page.context.close()


def test_the_form_starts_what_is_confirmed(desk: Desk) -> None:
    """`Start` says how many people get how many variants over how many hours, and only the answer to that sends."""
    page = desk.page(NEW)
    filled(page, "Straight on", hours="12", holdout="10")
    before = len(desk.conductor.orders)
    press(page, "Start …")
    said = page.locator("#confirm-text").inner_text()
    assert said == (
        "About 180 people get one of 2 variants each, over 12 h, and 20 more get nothing, to measure what it is worth. "
        "What is sent cannot be taken back. The first wave goes at once."
    )
    has_focus(page, "why")
    assert len(desk.conductor.orders) == before, "nothing is ordered before the answer"
    page.fill("#why", "Friday")
    press(page, "Yes, start it")
    assert page.locator("[data-state]").get_attribute("data-state") == "sending"
    assert page.locator("#ledger .note").first.inner_text() == "“Friday”"
    page.context.close()


def test_a_start_in_the_future_is_scheduled(desk: Desk) -> None:
    """With a start that is still to come, the campaign waits for it, and the page says when."""
    page = desk.page(NEW)
    filled(page, "Later", start="2090-01-02T09:30")
    press(page, "Start …")
    assert "at 2090-01-02 09:30 UTC" in page.locator("#confirm-text").inner_text()
    press(page, "Yes, start it")
    assert page.locator("[data-state]").get_attribute("data-state") == "scheduled"
    page.context.close()


def test_a_test_goes_to_oneself(desk: Desk) -> None:
    """`Send a test` saves the draft and orders each variant to the address, filled in as for one of the list; also from the page."""
    page = desk.page(NEW)
    filled(page, "Tried", test_to="me@shop.example", preview_for="reader7@example.com")
    press(page, "Send a test")
    assert page.locator("[data-state]").get_attribute("data-state") == "draft"
    assert [(t.to, t.variant, t.recipient) for t in desk.conductor.tests[-2:]] == [
        ("me@shop.example", "A", "reader7@example.com"), ("me@shop.example", "B", "reader7@example.com"),
    ]  # fmt: skip
    page.locator("summary", has_text="Send a test").click()
    page.locator("[data-key=test] input[name=address]").fill("you@shop.example")
    press(page, "Send the test")
    assert desk.conductor.tests[-1].to == "you@shop.example"
    page.context.close()


def test_another_is_made_like_one(desk: Desk) -> None:
    """The form comes filled in as a campaign was, with its list and without its name."""
    desk.started("Model", variants=3, goal="open", holdout=0.05, waves={"hours": 3, "warm_up": [10, 20]})
    page = desk.page(f"{NEW}?like=Model")
    values = values_of(page)
    assert (values["name"], values["goal"], values["holdout"], values["hours"], values["warm_up"]) == ("", "open", "5", "3", "10, 20")
    assert (values["v2_name"], values["v2_body_as"], values["v2_body"]) == ("C", "text", "x {{ unsubscribe_url }}")
    assert "200 people" in page.locator(".listed").inner_text()
    page.fill("#name", "Model two")
    press(page, "Save as draft")
    assert page.locator("[data-state]").get_attribute("data-state") == "draft"
    page.context.close()


# -- the form ------------------------------------------------------------------------------------------------------------


def test_errors_stand_beside_their_fields(desk: Desk) -> None:
    """Each mistake is told at its field, the first has the focus, nothing is ordered, and nothing that was typed is lost."""
    page = desk.page(NEW)
    press(page, "Save as draft")
    for field in ("name", "from_address", "v0_subject", "v0_body", "v1_subject", "v1_body"):
        assert error_at(page, field)
    assert "Choose a file" in page.locator("#list-error").inner_text()
    has_focus(page, "name")
    filled(page, "Mistakes")
    desk.started("Taken name")
    cases = [
        ("name", "Taken name", "already"),
        ("name", "x" * 101, "1 to 100"),
        ("from_address", "The Shop <news@shop.example>", "name@domain alone"),
        ("reply_to", "nobody", "No address"),
        ("hours", "many", "number"),
        ("hours", "0", "a number > 0"),
        ("every_minutes", "0.1", ""),
        ("per_minute", "1.5", "whole number"),
        ("warm_up", "10, x", "not `x`"),
        ("guard_bounce", "200", "At most 100"),
        ("holdout", "95", "At most 90"),
        ("seed", "-1", "whole number"),
        ("providers", "Gmial: 5", "Gmail"),
        ("providers", "Gmail", "As in Gmail: 2000"),
        ("v1_name", "A", "Two variants"),
        ("v0_subject", "{{ frist_name }}", "Did you mean `first_name`?"),
        ("v1_body", "<p>one</p>\n<p>{{ nmae }}</p>", "line 2"),
        ("v1_body", "{% if %}", ""),
        ("v0_preheader", "{{ x ", ""),
        ("preview_for", "nobody@example.com", "Nobody of that address"),
    ]
    before = len(desk.conductor.orders)
    good = values_of(page)
    for field, value, text in cases:
        page.evaluate("([field, value]) => document.getElementById(field).value = value", [field, value])
        typed = values_of(page)
        press(page, "Preview")
        assert text in error_at(page, field), (field, value)
        assert page.locator(".error").count() == 1, (field, page.locator(".error").all_inner_texts())
        has_focus(page, field)
        shown = values_of(page)
        assert shown | {"list_text": ""} == typed | {"list_text": ""}, field
        page.evaluate("([field, value]) => document.getElementById(field).value = value", [field, good[field]])
    assert len(desk.conductor.orders) == before
    press(page, "Preview")
    assert page.locator(".error").count() == 0, "the control: as it was, it is right"
    page.context.close()


def test_lists_are_told_row_by_row(desk: Desk, tmp_path: Path) -> None:
    """A file or pasted rows: how many are taken, what is left out with lines and reasons; a bad list leaves the good one in place."""
    page = desk.page(NEW)
    (tmp_path / "people.csv").write_text("email;plan\nada@example.com;pro\nnobody;pro\nADA@example.com;pro\nbea@example.com;x\n")
    page.set_input_files("#list_file", str(tmp_path / "people.csv"))
    press(page, "Take the list")
    told = page.locator(".listed").text_content()
    assert (
        "2 people from 4 rows" in " ".join(told.split()) and "line 3 (no address)" in told and "line 4 (the address stands twice)" in told
    )
    page.fill("#list_text", "email,<script>alert(1)</script>\nada@example.com,x,y\ncay,1\nbea@example.com,2\n")
    press(page, "Take the list")
    assert "more rows are broken" in page.locator("#list-error").inner_text()
    page.set_input_files("#list_file", str(tmp_path / "people.csv"))
    press(page, "Take the list")
    assert "not both" in page.locator("#list-error").inner_text()
    assert "2 people" in page.locator(".listed").inner_text(), "the list before is still there"
    assert "ada@example.com,x,y" in values_of(page)["list_text"]
    page.context.close()


def test_variants_come_and_go(desk: Desk) -> None:
    """Variants are added and removed without losing what stands in the others; Enter in a field previews and never sends."""
    page = desk.page(NEW)
    filled(page, "Come and go")
    press(page, "Add a variant")
    has_focus(page, "v2_name")
    assert values_of(page)["v2_name"] == "C"
    page.fill("#v2_subject", "Third")
    page.select_option("#v2_body_as", "text")
    page.fill("#v2_body", "Plain {{ first_name }}")
    press(page, "Remove A")
    values = values_of(page)
    assert (values["v0_name"], values["v1_name"], values["v1_subject"], values["v1_body_as"]) == ("B", "C", "Third", "text")
    assert "v2_name" not in values
    before = len(desk.conductor.orders)
    page.locator("#name").focus()
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.locator(".mail").count() == 2 and len(desk.conductor.orders) == before
    assert page.locator(".mail").nth(1).locator("iframe").count() == 0
    assert "Plain Reader 0" in page.locator(".mail").nth(1).locator("pre").inner_text()
    page.context.close()


def test_opens_are_warned_of(desk: Desk) -> None:
    """Who wants opens is told what they are worth, in the form and before the start."""
    page = desk.page(NEW)
    filled(page, "Opens", why_opens="a subject test")
    page.select_option("#goal", "open")
    press(page, "Preview")
    assert "may be no better by clicks" in page.locator(".warned").first.inner_text()
    assert "a subject test" in page.locator(".warned").first.inner_text()
    page.context.close()


def test_the_form_works_without_script(desk: Desk) -> None:
    """With scripts turned off: list, variant, preview, confirmation, start, and a stop on the page."""
    page = desk.page(NEW, java_script_enabled=False)
    filled(page, "No script")
    for button in ("Take the list", "Add a variant", "Remove C", "Preview", "Start …", "Yes, start it"):
        press(page, button)
    assert page.locator("h1").inner_text() == "No script"
    page.locator("summary", has_text="Stop").click()
    press(page, "Stop")
    assert page.locator("[data-state]").get_attribute("data-state") == "stopped"
    page.context.close()


# -- nobody else's scripts -----------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """Another site: its address, and the paths that it is asked for."""
    asked: list[str] = []

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def hostile_mail(site: str) -> str:
    return BODY + (
        f"<script>parent.document.title = 'x'; alert(1)</script><img src='{site}/a.png' onerror='alert(1)'>"
        f"<link rel=stylesheet href='{site}/a.css'><iframe src='{site}/i'></iframe><form action='{site}/f'><button>x</button></form>"
        f"<object data='{site}/o'></object><video src='{site}/v' autoplay></video><p style=\"background: url('{site}/b')\">x</p>"
        f"<style>@import '{site}/c'; p {{ background: url('{site}/d') }}</style><meta http-equiv=refresh content='0;url={site}/r'>"
        '</html>"><script>alert(2)</script>'
    )


def test_a_mail_in_the_preview_runs_and_loads_nothing(desk: Desk, elsewhere: tuple[str, list[str]]) -> None:
    """Scripts, handlers, pictures, frames, forms and refreshes of a mail do nothing; its styles apply; it cannot reach the page."""
    site, asked = elsewhere
    page = desk.page(NEW)
    filled(page, "Hostile mail", v0_body=hostile_mail(site))
    press(page, "Preview")
    frame = page.frames[1]
    frame.wait_for_selector("h1")
    frame.locator("button").click()
    page.wait_for_timeout(700)
    assert page.title().startswith("New experiment")
    assert page.evaluate("window.bad") == [] and frame.locator("h1").inner_text() == "Hello Reader 0"
    assert frame.locator("h1").evaluate("e => getComputedStyle(e).color") == "rgb(1, 2, 3)", "the mail's own style applies"
    assert frame.locator("p").first.evaluate("e => getComputedStyle(e).color") == "rgb(4, 5, 6)"
    assert page.locator("iframe").first.get_attribute("sandbox") == ""
    assert asked == []
    page.context.close()


def test_the_other_site_hears_of_what_is_not_framed(desk: Desk, elsewhere: tuple[str, list[str]]) -> None:
    """The control of the test above: the same mail in a page without the frame's bounds asks the other site for all kinds of things."""
    site, asked = elsewhere
    context = desk.browser.new_context()
    page = context.new_page()
    page.set_content(hostile_mail(site), wait_until="commit")
    page.wait_for_timeout(700)
    assert {"/a.png", "/a.css", "/i"} <= set(asked)
    context.close()


def test_only_the_preview_allows_styles(desk: Desk) -> None:
    """The page with mails allows inline styles and nothing else more; every other page is as strict as ever."""
    page = desk.page(NEW)
    filled(page, "Policies")
    with page.expect_response(lambda answer: answer.request.method == "POST") as found:
        page.get_by_role("button", name="Preview", exact=True).click()
    assert found.value.headers["content-security-policy"] == POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
    with page.expect_response(lambda answer: answer.request.method == "POST") as found:
        page.get_by_role("button", name="Add a variant").click()
    assert found.value.headers["content-security-policy"] == POLICY
    page.context.close()


def test_payloads_stay_text(desk: Desk) -> None:
    """Hostile names, subjects, reasons, vendors' answers, claims and grounds are text on every page, and can be read there."""
    context = desk.context()
    page = context.new_page()
    for n, payload in enumerate(PAYLOADS):
        variants = [{"name": f"{payload} {k}", "subject": payload.replace("{{7*7}}", "{7*7}"), "text": "x"} for k in "AB"]
        url = link_of(payload)
        listed = desk.app.state.site.lists.take(CSV.encode()).name
        raw = {"name": payload, "channel": "main", "from_address": "a@shop.example", "audience": {"csv": listed}, "variants": variants}
        with desk.conductor.lock:
            desk.conductor.do(Add(id="x", campaign=payload, who=payload, definition=raw, audience=listed))
            id_ = desk.conductor.campaigns.named(payload).id
            desk.conductor.campaigns.move(id_, "sending", payload, payload, desk.conductor.now_us)
            desk.conductor.wave(payload, [3, 3], [0.5, 0.5], (2, 3, 4))
            desk.conductor.do(Pin(id="x", campaign=payload, who=payload, why=payload, variant=f"{payload} A"))
            desk.conductor.campaigns.decided(
                id_, 1, "guard", "guard", payload, payload, {payload: payload, "list": [payload], "d": {payload: 1}}
            )
            desk.conductor.stand(payload, said=Said(text=payload, waits_for=payload), held=payload, split_broken=True, split_text=payload)
        for path in (
            url,
            "/experiments",
            f"/ledger?{httpx.QueryParams({'campaign': payload})}",
            f"{NEW}?{httpx.QueryParams({'like': payload})}",
        ):
            assert page.goto(desk.base + path).status == 200, path
            page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
            for chart in page.locator(".chart").all():
                chart.focus()
                page.keyboard.press("ArrowLeft")
            assert page.evaluate("window.bad") == [], (n, path)
            assert (
                page.evaluate("document.querySelectorAll('main script, main iframe, main img, main [onload], main [onerror]').length") == 0
            )
            if NEW not in path:
                assert payload in page.locator("body").inner_text(), path
    context.close()


def test_forms_of_other_sites_do_nothing(desk: Desk) -> None:
    """Both kinds of form need our origin and the session's secret; without them 403, and no order."""
    desk.started("Not theirs")
    secret = desk.access.open_session("ada")
    csrf = desk.access.session(secret).csrf
    ours = {"origin": desk.base, "sec-fetch-site": "same-origin"}
    theirs = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    before = len(desk.conductor.orders)
    with httpx.Client(base_url=desk.base, trust_env=False) as client:
        client.cookies.set("midflight_session", secret)
        for headers, given in ((theirs, csrf), ({}, csrf), (ours, ""), (ours, "x" + csrf[1:])):
            stop = {"csrf": given, "do": "move", "to": "stopped"}
            assert client.post("/experiments/Not%20theirs", data=stop, headers=headers).status_code == 403
            assert client.post(NEW, files={"csrf": (None, given), "do": (None, "draft")}, headers=headers).status_code == 403
        assert client.post("/experiments/Not%20theirs", data={"csrf": csrf, "do": "else"}, headers=ours).status_code == 400
        assert client.post("/experiments/nobody", data={"csrf": csrf, "do": "pin"}, headers=ours).status_code == 404
        assert len(desk.conductor.orders) == before
        assert client.post("/experiments/Not%20theirs", data={"csrf": csrf, "do": "move", "to": "stopped"}, headers=ours).status_code == 303


def test_nobody_unknown_gets_a_long_form_read(desk: Desk) -> None:
    """Without a session the answer comes before a body that is as long as a list may be."""
    headers = {"Content-Length": str(content_bytes_max), "Content-Type": "multipart/form-data; boundary=x"}
    assert talk(int(desk.base.rsplit(":", 1)[1]), post(NEW, b"", headers), timeout_s=5).status == 303


# -- the page of one -----------------------------------------------------------------------------------------------------


def test_the_page_moves_and_keeps_what_is_typed(desk: Desk) -> None:
    """New waves and states come in by themselves; an open sheet, its words and the focus stay."""
    url = desk.started("Moving")
    page = desk.page(url)
    page.wait_for_selector("main.live")
    page.locator("summary", has_text="Stop").click()
    page.locator("[data-key=stopped] input[name=why]").fill("half a senten")
    desk.conductor.wave("Moving", [20, 10], [0.6, 0.4])
    desk.conductor.stand("Moving")
    page.wait_for_selector("[data-taken='30']")
    page.wait_for_selector("#variants [data-sent='20']")
    page.wait_for_selector("#shares .area")
    assert page.locator("[data-key=stopped] input[name=why]").input_value() == "half a senten"
    assert page.evaluate("document.activeElement.name") == "why"
    page.keyboard.type("ce")
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-state=stopped]")
    assert page.locator("#ledger .note").first.inner_text() == "“half a sentence”"
    page.context.close()


def test_the_page_tells_everything(desk: Desk) -> None:
    """Progress, claim, what it waits for, checks, intervals, projection, unknown and refused with reasons, and what was held up."""
    url = desk.started("Told")
    desk.conductor.wave("Told", [20, 20], [0.5, 0.5], (2, 2, 3, 4))
    desk.conductor.stand("Told", held="The numbers are too old.")
    page = desk.page(url)
    text = " ".join(page.locator("main").inner_text().split())
    for part in (
        "40 of 200 people", "It is not known yet which variant is best.",
        "412 as it goes; 371 with an equal split (+41)", "No wave goes out. The numbers are too old.", "550: no such box <b>x</b>",
        "the process ended during the call", "stops when surely above 5.0%", "4.0% 3.0–5.5%", "People arrive in the shares",
    ):  # fmt: skip
        assert part in text, part
    assert page.locator("#variants .whisker").count() == 2
    messages = page.eval_on_selector_all("#messages [data-message]", "all => all.map(e => Number(e.dataset.message))")
    assert messages == [0, 0, 20, 10, 10, 0]
    for chart in ("#shares", "#curve"):
        page.locator(f"{chart} .chart").focus()
        page.keyboard.press("Home")
        assert page.locator(f"{chart} .tip").count() == 1
    page.locator("#shares .chart").focus()
    page.keyboard.press("ArrowLeft")
    assert "A 50.0%, B 50.0%" in page.locator("#said").inner_text()
    desk.conductor.stand("Told", split_broken=True, split_text="B arrives too rarely.", said=Said(kind="winner", text="B is the winner."))
    page.wait_for_selector("text=The split is broken")
    assert page.locator(".claimed").inner_text() == "B is the winner."
    with desk.conductor.lock:
        number = desk.conductor.campaigns.named("Told").id
        desk.conductor.campaigns.decided(number, desk.conductor.now_us, "guard", "guard", "dropped A: too many complaints")
    page.wait_for_selector("text=A guard acted")
    page.context.close()


def test_slots_are_shown_group_by_group(desk: Desk) -> None:
    """Each group has its values, what each option did and what the next wave gives; markup in values and options stays text."""
    bad = "<img src=x onerror=alert(1)>"
    option = OptionStanding(sent=400, responses=20, rate=0.05, low=0.03, high=0.08, share=0.75)
    slot = SlotStanding(
        name="hero", by=["region", "age"], options=["coat", bad], left_out=3,
        groups=[
            GroupStanding(group=["north", ""], options=[option, OptionStanding(share=0.25)]),
            GroupStanding(group=[bad, "<40"], options=[option, option]),
        ],
    )  # fmt: skip
    url = desk.started("Slotted")
    desk.conductor.stand("Slotted", slots=[slot])
    page = desk.page(url)
    text = " ".join(page.locator("#slot1").inner_text().split())
    for part in (
        "Who gets which hero",
        "by region, age",
        f"Group coat {bad}",
        "north, – 75.0% 5.0% 3.0–8.0% 25.0% none yet",
        f"{bad}, <40",
        "3 smaller groups",
    ):
        assert part in text, (part, text)
    page.context.close()


def test_a_refused_order_is_told(desk: Desk) -> None:
    """What the conductor refuses is said on the page that comes, beside the state as it is."""
    url = desk.started("Refusing")
    page = desk.context().new_page()
    # The page must not see by itself what has happened meanwhile.
    page.route("**/v1/stream*", lambda route: route.abort())
    page.goto(desk.base + url)
    page.locator("summary", has_text="Pause").click()
    page.locator("[data-key=paused] input[name=why]").fill("my reason")
    with desk.conductor.lock:
        now = desk.conductor.campaigns.named("Refusing")
        desk.conductor.campaigns.move(now.id, "paused", "somebody", "first", desk.conductor.now_us)
        desk.conductor.campaigns.move(now.id, "stopped", "somebody", "first", desk.conductor.now_us)
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.locator("[data-state]").get_attribute("data-state") == "stopped"
    assert "Campaign `Refusing` is stopped" in page.locator("main").inner_text()
    page.context.close()


def test_without_a_conductor_orders_are_taken(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody carries orders out, the page says that it is taken, and moves on by itself once somebody does."""
    monkeypatch.setattr(ordering, "wait_s", 0.2)
    url = desk.started("Waiting")
    page = desk.page(NEW)
    filled(page, "Not yet there")
    desk.conductor.away.set()
    try:
        press(page, "Save as draft")
        assert "will be done when the conductor runs" in page.locator("[role=status]").first.inner_text()
        other = desk.page(url)
        other.locator("summary", has_text="Pause").click()
        press(other, "Pause")
        assert "will be done when the conductor runs" in other.locator("main [role=status]").inner_text()
    finally:
        desk.conductor.away.clear()
    other.wait_for_selector("[data-state=paused]")
    other.wait_for_selector("[data-key=note]", state="detached")
    page.wait_for_selector("[data-state=draft]")
    page.context.close()
    other.context.close()


def test_without_a_door_the_form_is_kept(desk: Desk) -> None:
    """Where the log cannot be reached, the form and the sheet say so, and everything in them stays."""
    config = desk.app.state.site.config
    page = desk.page(NEW)
    filled(page, "Doorless")
    typed = values_of(page)
    port, config.door.port = config.door.port, 9
    try:
        press(page, "Save as draft")
    finally:
        config.door.port = port
    assert "The door cannot be reached" in page.get_by_role("alert").inner_text()
    assert values_of(page) | {"list_text": CSV.rstrip("\n")} == typed | {"list_text": CSV.rstrip("\n")}
    page.goto(desk.base + desk.started("Doorless sheet"))
    page.locator("summary", has_text="Pause").click()
    page.locator("[data-key=paused] input[name=why]").fill("my reason")
    config.door.port = 9
    try:
        press(page, "Pause")
    finally:
        config.door.port = port
    assert "The door cannot be reached" in page.locator("[data-key=paused] [role=alert]").inner_text()
    assert page.locator("[data-key=paused] input[name=why]").input_value() == "my reason"
    page.context.close()


def test_names_that_are_places_in_a_path_have_pages(desk: Desk) -> None:
    """A campaign may be called `new`, `..` or `a/b`; its page is reached, and takes orders."""
    for name in ("new", "..", "a/b", "50% off?", "état"):
        page = desk.page(desk.started(name))
        assert page.locator("h1").inner_text() == name
        page.locator("summary", has_text="Pause").click()
        press(page, "Pause")
        assert page.locator("[data-state]").get_attribute("data-state") == "paused"
        page.context.close()


# -- the ledger, and around ----------------------------------------------------------------------------------------------


def test_the_ledger_comes_in_pages(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """All decisions, the newest first, page by page; one campaign's by its name; numbers open beneath; unknown names are said."""
    monkeypatch.setattr(experiments, "ledger_rows", 3)
    desk.started("In the ledger")
    desk.conductor.wave("In the ledger", [5, 5], [0.5, 0.5])
    page = desk.page("/ledger?campaign=In+the+ledger")
    assert page.locator(".ledger li").count() == 3
    page.locator(".ledger summary").first.click()
    assert "sent A 1 · B 2" in " ".join(page.locator(".ledger .rest").first.inner_text().split())
    seen: list[str] = []
    page.goto(f"{desk.base}/ledger")
    for _ in range(4):
        seen += page.eval_on_selector_all(".ledger li", "all => all.map(e => e.dataset.key)")
        with page.expect_navigation():
            page.get_by_role("link", name="Older decisions").click()
    assert len(set(seen)) == 12 and seen == sorted(seen, key=int, reverse=True)
    page.goto(f"{desk.base}/ledger?campaign=In+the+legder")
    assert "Did you mean `In the ledger`?" in page.locator("main").inner_text()
    page.context.close()


def test_campaigns_and_experiments_lead_to_each_other(desk: Desk) -> None:
    """A campaign that Midflight sends has a link to its experiment, in the list and on its page, and back; others have none."""
    campaigns = httpx.get(
        f"{desk.base}/v1/campaigns", headers={"authorization": f"Bearer {desk.access.make_token('t', ['read'])[1]}"}, trust_env=False
    ).json()["campaigns"]
    names = [row["campaign"] for row in campaigns if row["campaign"]]
    desk.started(names[0])
    page = desk.page("/campaigns")
    assert page.locator("main a", has_text="experiment").count() == 1
    page.locator("main a", has_text="experiment").click()
    page.get_by_role("link", name="Numbers").click()
    page.get_by_role("main").get_by_role("link", name="Experiment", exact=True).click()
    assert page.locator("h1").inner_text() == names[0]
    page.goto(desk.base + "/campaign?" + str(httpx.QueryParams({"name": names[1]})))
    assert page.get_by_role("main").get_by_role("link", name="Experiment", exact=True).count() == 0
    page.context.close()


def test_the_keyboard_is_enough(desk: Desk) -> None:
    """Jumps to both pages, the form in order of its fields, a sheet opened and sent, without a mouse."""
    url = desk.started("By keys")
    page = desk.page("/")
    for keys, path in (("gl", "/ledger"), ("gx", "/experiments")):
        with page.expect_navigation():
            for key in keys:
                page.keyboard.press(key)
        assert page.evaluate("location.pathname") == path
    page.goto(desk.base + NEW)
    page.locator("#name").focus()
    order = []
    for _ in range(5):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
    assert order == ["channel", "from_address", "reply_to", "goal", "why_opens"]
    page.goto(desk.base + url)
    page.locator("summary", has_text="Pause").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("by keys")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.locator("[data-state]").get_attribute("data-state") == "paused"
    page.context.close()


NAMELESS = """() => [...document.querySelectorAll(
    'button, a[href], input:not([type=hidden]), select, textarea, [role=img], [role=region]')]
    .filter(e => !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.textContent.trim() || e.labels?.length))
    .map(e => e.outerHTML)"""


def test_pages_fit_a_phone_and_have_names(desk: Desk) -> None:
    """At 360 px nothing is wider than the screen, pages stay small, and everything has a name for a screen reader."""
    desk.started("On a phone with a name that is much longer than any phone is wide and-has-a-word-without-any-break", variants=8)
    name = "On a phone with a name that is much longer than any phone is wide and-has-a-word-without-any-break"
    desk.conductor.wave(name, [2] * 8, [0.125] * 8, (2, 3))
    desk.conductor.stand(name)
    for width in (360, 768, 1600):
        page = desk.page("/experiments", viewport={"width": width, "height": 800})
        for path in ("/experiments", link_of(name), "/ledger", NEW, f"{NEW}?{httpx.QueryParams({'like': name})}"):
            page.goto(desk.base + path)
            page.evaluate("for (const d of document.querySelectorAll('main details')) d.open = true")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            nameless = page.evaluate(NAMELESS)
            assert nameless == [], path
            assert page.locator("h1").count() == 1
            size = page.evaluate(
                """() => [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
                .filter(e => !e.name.includes('/v1/stream')).reduce((sum, e) => sum + e.decodedBodySize, 0)"""
            )
            assert 0 < size < 150_000, (path, size)
        page.context.close()


def test_a_page_of_very_many_waves_stays_small(desk: Desk) -> None:
    """Two thousand waves are drawn as a few hundred steps, whose shares still add up to one and whose people are all of them."""
    desk.started("Many waves")
    now = desk.conductor.campaigns.named("Many waves")
    waves = [Wave(wave=n, at_us=n * 1_000_000, recipients=n % 7, shares=[0.25, 0.75], grounds={}) for n in range(1, 2001)]
    chart = shares_chart(now, waves)
    assert len(chart["waves"]) <= experiments.drawn_max and sum(chart["people"]) == sum(wave.recipients for wave in waves)
    assert chart["waves"][0] == "1–9" and {line["values"][3] for line in chart["lines"]} == {0.25, 0.75}


def test_who_is_asked_about_is_no_list(desk: Desk) -> None:
    """A campaign whose people are asked about through the API says so, in place of nought people."""
    raw = {"name": "Advice", "channel": "main", "from_address": "a@shop.example", "audience": {"api": True}}
    raw["variants"] = [{"name": name, "subject": "s", "text": "t"} for name in "AB"]
    with desk.conductor.lock:
        desk.conductor.do(Add(id="x", campaign="Advice", who="ada", definition=raw))
    page = desk.page("/experiments/Advice")
    page.locator("summary", has_text="Start").click()
    assert "Whoever is asked about through the API gets one of 2 variants, over 8 h." in page.locator("[data-key=sending] p").inner_text()
    assert "asked about through the API" in page.locator("#progress").inner_text()
    page.context.close()


def test_a_broken_file_of_campaigns_stops_only_its_own_pages(tmp_path: Path) -> None:
    """Where the conductor's file cannot be read, its pages say so with 503, and the pages of numbers are there as before."""
    config = config_from({"data": str(tmp_path), "console": {"port": 8401}})
    fill(config, Clock().now_us(), scale=0.001)
    (tmp_path / "outbox.db").write_bytes(b"no database at all" * 100)
    app = create_app(config, Clock())
    session = app.state.site.access.open_session("ada")
    with serving(app) as base, httpx.Client(base_url=base, trust_env=False, headers={"accept": "text/html"}) as client:
        client.cookies.set("midflight_session", session)
        assert [client.get(path).status_code for path in ("/campaigns", "/", "/experiments/new")] == [200, 200, 200]
        assert [client.get(path).status_code for path in ("/experiments", "/experiments/x", "/ledger")] == [503, 503, 503]


# -- small parts ---------------------------------------------------------------------------------------------------------


def test_a_form_with_files_is_read() -> None:
    """Fields, files, line ends, empty files and text in any language; what is cut off or no such form is refused."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nline 1\r\nline 2 \xc3\xa4\r\n--x\r\n'
        b'Content-Disposition: form-data; name="f"; filename="p.csv"\r\nContent-Type: text/csv\r\n\r\nemail\r\n\xff\r\n\r\n--x\r\n'
        b'Content-Disposition: form-data; name="none"; filename=""\r\n\r\n\r\n--x--\r\n'
    )
    assert parsed("multipart/form-data; boundary=x", body) == ({"a": "line 1\nline 2 ä"}, {"f": b"email\r\n\xff\r\n"})
    assert parsed('multipart/form-data; charset=utf-8; boundary="x"', body)[0]["a"]
    wrong = [("text/plain", body), ("multipart/form-data", body), ("multipart/form-data; boundary=y", body)]
    wrong += [("multipart/form-data; boundary=x", body[:n]) for n in (0, 5, 30, 60, 100, 200, len(body) - 6)]
    wrong.append(("multipart/form-data; boundary=x", body[:-6] + b'\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n--x' * 600))
    for kind, content in wrong:
        with pytest.raises(MidflightError):
            parsed(kind, content)


def test_numbers_of_the_ledger_are_written_out() -> None:
    """Lists with a number a variant have its name; whole numbers their thousands apart; anything else is text."""
    assert ground([1200, 3], ["A", "B"]) == [("A", "1,200"), ("B", "3")]
    assert ground([0.123456], ["A", "B"]) == [("A", "0.1235")]
    assert ground([1, 2, 3], ["A", "B"]) == [("", "[1,2,3]")]
    assert [figure(value) for value in (True, None, 1e6, "x", {"a": 1})] == ["yes", "–", "1e+06", "x", '{"a":1}']


def test_every_field_of_the_form_can_have_an_error(desk: Desk) -> None:
    """Each place that a definition's errors name is a field that is on the page."""
    page = desk.page(NEW)
    ids = set(page.eval_on_selector_all("[id]", "all => all.map(e => e.id)"))
    form = wizard.empty()
    places = [
        "$.name", "$.channel", "$.from_address", "$.reply_to", "$.goal", "$.variants", "$.variants[1].name", "$.waves.start",
        "$.waves.hours", "$.waves.every_minutes", "$.waves.per_minute", "$.waves.warm_up[0]", "$.waves", "$.guardrails.bounce",
        "$.holdout", "$.seed", "list", "$.audience", "recipient", "variant A", "variant A.subject:1", "variant B.html:3:1",
        "variant B.mjml:2", "variant A.preheader:1", "variant A.text:1", "variant A.from_name:1",
    ]  # fmt: skip
    for place in places:
        field = wizard.field_of(form, MidflightError("x", where=place))
        assert field in ids, (place, field)
    assert wizard.field_of(form, MidflightError("The campaign's definition: Expected `float` > 0.0 - at `$.waves.hours`")) == "hours"
    assert wizard.field_of(form, MidflightError("x", where="elsewhere")) == ""
    assert re.fullmatch("v[01]_body", wizard.field_of(form, MidflightError("x", where="variant B.html:1")))
    page.context.close()
