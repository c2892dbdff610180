"""Segments and rules in a real browser: made, tried, approved, undone, held and released, over a real door and a real engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chromium import LoggedIn
from playwright.sync_api import Browser, Page
from rule_world import World, whole
from sample_store import PAYLOADS, serving

from midflight.act import kill_switch
from midflight.kit.clock import Clock
from midflight.serve.api import create_app
from midflight.serve.console import holding


class Desk(LoggedIn):
    """The console of a whole Midflight, and a browser to look at it."""

    def __init__(self, base: str, app, browser: Browser, world: World) -> None:
        super().__init__(base, app.state.site.access, browser)
        self.app, self.world = app, world


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("rules")
    with whole(folder) as world:
        app = create_app(world.config, Clock())
        app.state.site.access.set_user("ada", "correct horse battery")
        with serving(app) as base:
            yield Desk(base, app, browser, world)


def press(page: Page, name: str) -> None:
    """Press a button and wait for the page that comes: a backtest takes its time on a busy machine."""
    with page.expect_navigation(timeout=70_000):
        page.get_by_role("button", name=name, exact=True).click(no_wait_after=True)


def opened(page: Page, summary: str) -> None:
    page.locator("summary", has_text=summary).first.click()


def rule(page: Page, name: str, autonomy: str, way: str = "site", field: str = "title") -> None:
    """Fill in a rule that says something to who opens."""
    page.fill("#name", name)
    page.select_option("#kind", "event")
    page.select_option("#w_event_did", "opened")
    page.select_option("#way", way)
    page.fill(f"#a_{way}_{field}", "Hello {{ recipient.email }}")
    page.select_option("#autonomy", autonomy)


def test_a_segment_is_made_by_its_form(desk: Desk) -> None:
    """Nested conditions by buttons, a count before saving, live members, who came; a mistake is told at its field; it is taken away."""
    desk.world.hear("opened", "eve@x.example")
    desk.world.folded()
    page = desk.page("/segments")
    page.get_by_role("link", name="New segment").click()
    page.fill("#name", "Warm <b>readers</b>")
    page.select_option("#c-0_event", "opened")
    page.fill("#c-0_within", "30 days")
    press(page, "How many would be in it?")
    assert "Not a length of time" in page.locator(".error").inner_text()
    page.fill("#c-0_within", "30d")
    press(page, "Add a group")
    page.select_option("#c-1_join", "none")
    page.select_option("#c-1-0_event", "converted")
    page.select_option("#c-1-1_kind", "attribute")
    page.fill("#c-1-1_attribute", "plan")
    page.fill("#c-1-1_value", "pro")
    press(page, "How many would be in it?")
    members = int(page.locator("[data-members]").get_attribute("data-members"))
    assert members >= 1 and "eve@x.example" in page.locator("#preview").inner_text()
    press(page, "Save the segment")
    assert page.locator("h1").inner_text() == "Warm <b>readers</b>"
    page.wait_for_selector(f"[data-members='{members}']")
    desk.world.hear("opened", "dan@x.example")
    page.wait_for_selector(f"[data-members='{members + 1}']")
    assert "dan@x.example" in page.locator("#moves li").first.inner_text()
    page.get_by_role("link", name="Change").click()
    assert (page.input_value("#c-1_join"), page.input_value("#c-1-1_value"), page.input_value("#c-0_within")) == ("none", "pro", "30d")
    person = desk.page("/people?address=dan@x.example")
    assert (
        "Warm <b>readers</b>" in person.locator("#segments").inner_text()
        and "opened within 30 days" in person.locator("#segments").inner_text()
    )
    page.goto(desk.base + "/segment?name=Warm+%3Cb%3Ereaders%3C/b%3E")
    opened(page, "Take the segment away")
    press(page, "Take it away")
    assert page.url == f"{desk.base}/segments" and "No segment yet" in page.locator("main").inner_text()
    assert page.evaluate("window.bad") == person.evaluate("window.bad") == []
    page.context.close()
    person.context.close()


def test_a_rule_is_tried_saved_approved_and_undone(desk: Desk) -> None:
    """A backtest beside the form, then the rule asks, somebody approves, it acts, it is undone; the person's page says why."""
    desk.world.hear("opened", "fay@x.example")
    desk.world.folded()
    page = desk.page("/rules/new")
    rule(page, "Greet", "suggest")
    page.fill("#caps", "often")
    press(page, "Try it on the log")
    assert "As in 1 in 24h" in page.locator("#caps-error").inner_text()
    page.fill("#caps", "5 in 24h")
    page.select_option("#window", "1d")
    press(page, "Try it on the log")
    fired = int(page.locator("[data-fired]").get_attribute("data-fired"))
    assert fired >= 1 and page.locator("[data-end=suggested]").inner_text() == str(fired)
    assert page.input_value("#a_site_title") == "Hello {{ recipient.email }}" and page.input_value("#w_event_did") == "opened"
    press(page, "Save the rule")
    assert page.locator("[data-autonomy]").first.get_attribute("data-autonomy") == "suggest"
    desk.world.hear("opened", "gus@x.example")
    page.wait_for_selector("[data-fired='1']")
    page.goto(desk.base + "/inbox")
    row = page.locator("tr", has_text="gus@x.example")
    row.locator("input[name=id]").check()
    press(page, "Approve the chosen")
    page.goto(desk.base + "/ledger/rules")
    page.wait_for_selector("[data-state=sent]")
    assert "approved 1 action" in page.locator("#people").inner_text()
    with page.expect_navigation():
        page.locator("tr", has_text="gus@x.example").get_by_role("button", name="Undo").click()
    page.wait_for_selector("[data-state=undone]")
    page.goto(desk.base + "/people?address=gus@x.example")
    assert "Greet" in page.locator("#actions").inner_text() and "undone" in page.locator("#actions").inner_text()
    page.goto(desk.base + "/rules/new?name=Greet")
    assert page.input_value("#caps") == "5 in 24h"
    page.fill("#holdout", "10")
    press(page, "Save the rule")
    assert "version 2" in page.locator(".state").inner_text() and page.locator("#versions li").count() == 2
    opened(page, "Remove the rule")
    press(page, "Remove Greet")
    assert page.url == f"{desk.base}/rules"
    assert page.evaluate("window.bad") == []
    page.context.close()


def test_the_kill_switch_is_on_every_page(desk: Desk) -> None:
    """Confirmed, it holds within a second and every page says so; what fires waits; released, it goes on, on the page that was open."""
    page = desk.page("/rules/new")
    rule(page, "Held", "act", "chat", "text")
    press(page, "Save the rule")
    page.goto(desk.base + "/rule?name=Held")
    opened(page, "Hold everything")
    page.locator("[data-key=hold] input[name=why]").fill("too many complaints")
    press(page, "Hold everything now")
    assert page.url == f"{desk.base}/rule?name=Held"
    desk.world.hear("opened", "hal@x.example")
    desk.world.folded()
    for path in pages_of(desk):
        page.goto(desk.base + path)
        assert "too many complaints" in page.locator(".held").inner_text() and page.locator("#switch button").count() == 0, path
    page.goto(desk.base + "/rules")
    page.wait_for_selector("[data-waiting='1']")
    assert desk.world.went("hal@x.example") == []
    opened(page, "Release")
    press(page, "Let it go on")
    assert page.locator(".held").count() == 0
    page.wait_for_selector("[data-sent='1']")
    assert desk.world.went("hal@x.example") == ["chat"]
    for path in pages_of(desk):
        page.goto(desk.base + path)
        page.locator("#switch summary").click()
        assert page.get_by_role("button", name="Hold everything now").is_visible() and page.locator(".held").count() == 0, path
    assert page.evaluate("window.bad") == []
    page.context.close()


def pages_of(desk: Desk) -> list[str]:
    """Return the addresses of all pages, one of one that is not there among them. A page that is added has to be on this list."""
    more = {"/campaign": "name=spring", "/rule": "name=Held", "/segment": "name=nothing", "/people": "address=hal@x.example"}
    return [f"{path}?{more[path]}" if path in more else path for path in sorted(holding.PLACES)] + ["/nothing"]


def test_no_page_is_without_the_switch(desk: Desk) -> None:
    """Every page that can be asked for is one that the switch leads back to, and so among those of the test above."""
    outside = {"/find", "/favicon.ico", "/static/{mark}/{name}", "/login", "/setup", "/v1/openapi.json"}
    routes = [inner for route in desk.app.routes for inner in getattr(getattr(route, "original_router", None), "routes", [route])]
    shown = {route.path for route in routes if "GET" in (route.methods or ()) and not route.include_in_schema}
    assert shown - outside == holding.PLACES | {holding.EXPERIMENTS + "{name:path}"}


def test_the_switch_beside_a_form_loses_nothing_that_was_typed(desk: Desk) -> None:
    """On the forms everything is held and released in place: what is not saved yet stays."""
    for path, field in (("/rules/new", "#name"), ("/segments/new", "#name"), ("/experiments/new", "#name")):
        page = desk.page(path)
        page.fill(field, "Half a name")
        opened(page, "Hold everything")
        page.locator("[data-key=hold] input[name=why]").fill("wait")
        page.get_by_role("button", name="Hold everything now").click()
        page.wait_for_selector(".held")
        assert kill_switch.read(desk.world.config.folder).why == "wait" and page.locator("#switch summary").count() == 0
        opened(page, "Release")
        page.get_by_role("button", name="Let it go on").click()
        page.wait_for_selector(".held", state="detached")
        page.wait_for_selector("#switch summary")
        assert not kill_switch.read(desk.world.config.folder).held and page.input_value(field) == "Half a name"
        assert page.evaluate("window.bad") == []
        page.context.close()


@pytest.mark.parametrize(
    ("given", "to"),
    [("/rule?name=a%26b", "/rule?name=a%26b"), ("/inbox", "/inbox"), ("/experiments/a%3Fb", "/experiments/a%3Fb"),
     ("//evil.example", "/"), ("https://evil.example/rule", "/"),
     ("/rule/../x", "/"), ("", "/"), ("/hold", "/")],
)  # fmt: skip
def test_the_switch_leads_back_to_pages_alone(given: str, to: str) -> None:
    """To the page it was turned on, with what was chosen there, and never elsewhere."""
    assert holding.back({"back": given}) == to


def test_nothing_of_strangers_runs_on_these_pages(desk: Desk) -> None:
    """Names and reasons that are scripts are text, in the list, on the page of one, in the form and in the ledger."""
    page = desk.page("/segments/new")
    page.fill("#name", PAYLOADS[0])
    press(page, "Save the segment")
    page.goto(desk.base + "/rules/new")
    rule(page, PAYLOADS[1], "observe")
    page.fill("#why", PAYLOADS[0])
    press(page, "Save the rule")
    for path in ("/segments", "/rules", "/ledger/rules", "/inbox"):
        page.goto(desk.base + path)
        assert page.evaluate("window.bad") == [] and page.locator("img[src=x]").count() == 0
    assert page.locator("main", has_text="wait").count() == 1
    page.context.close()
