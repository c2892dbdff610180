"""The console in a real browser: the API's numbers, nobody else's scripts, and usable with a keyboard."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import apsw
import httpx
import pytest
from chromium import LoggedIn, has_focus
from playwright.sync_api import Browser, Page
from sample_store import PAYLOADS, PLANS_OF_CAMPAIGNS, Stopped, fill, sample_config, serving

from midflight.serve.api import create_app
from midflight.serve.auth import tries_max
from midflight.serve.console import pages, pictures, words

NOW_US = 1_790_000_000_000_000 // 60_000_000 * 60_000_000 + 31_000_000
SPRING = PLANS_OF_CAMPAIGNS[0].name
PASSWORD = "correct horse battery"


class Console(LoggedIn):
    """A served console with a user, and a browser to look at it."""

    def __init__(self, folder: Path, base: str, app, browser: Browser) -> None:
        super().__init__(base, app.state.site.access, browser)
        self.folder, self.app = folder, app
        self.token = self.access.make_token("test", ["read"])[1]

    def api(self, path: str, **params) -> dict:
        answer = httpx.get(self.base + path, params=params, headers={"authorization": f"Bearer {self.token}"}, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()


def console_over(folder: Path, browser: Browser, **filled) -> Iterator[Console]:
    config = sample_config(folder)
    if filled:
        fill(config, NOW_US, **filled)

    def timeline(recipient: str) -> list[dict]:
        event = {"source": "sendgrid", "recipient": recipient, "campaign": SPRING, "variant": "B", "message_id": "m1"}
        return [
            {**event, "kind": "delivered", "occurred_at": "2026-09-21T10:00:00.000Z"},
            {
                **event,
                "kind": "clicked",
                "agent": "human",
                "url": PAYLOADS[5],
                "occurred_at": "2026-09-21T10:05:00.000Z",
                "detail": PAYLOADS[0],
            },
            *(
                {**event, "kind": p, "campaign": p, "variant": p, "metadata": {p: p}, "occurred_at": "2026-09-20T10:05:00Z"}
                for p in PAYLOADS
            ),
        ]

    app = create_app(config, Stopped(NOW_US), timeline=timeline)
    app.state.site.access.set_user("ada", PASSWORD)
    with serving(app) as base:
        yield Console(folder, base, app, browser)


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Console]:
    yield from console_over(tmp_path_factory.mktemp("full"), browser, scale=0.06, hostile=True, old=60)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Console]:
    yield from console_over(tmp_path_factory.mktemp("empty"), browser)


def campaign_url(**choice) -> str:
    return "/campaign?" + str(httpx.QueryParams({"name": SPRING, **choice}))


def cells(page: Page, table: str) -> dict[str, dict[str, str]]:
    """Return a table's numbers: row name -> metric -> (exact value, text)."""
    return page.evaluate(
        """(selector) => Object.fromEntries([...document.querySelectorAll(selector + ' tbody tr')].map(row =>
        [row.querySelector('th').textContent.trim(), Object.fromEntries([...row.querySelectorAll('[data-metric]')].map(cell =>
        [cell.dataset.metric, [cell.dataset.value, cell.firstChild.textContent.trim()]]))]))""",
        table,
    )


# -- numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", ["15m", "1h", "all"])
@pytest.mark.parametrize("machines", ["without", "with"])
def test_the_campaign_page_shows_the_apis_numbers(console: Console, window: str, machines: str) -> None:
    """Funnel, variants, breakdown, delays and who waits are the API's, digit by digit, in every window, with machines and without."""
    page = console.page(campaign_url(window=window, machines=machines))
    asked = {"campaign": SPRING, "window": window, "machines": machines}
    answer = console.api("/v1/numbers", by="variant", **asked)
    suffix = "" if machines == "with" else "_human"
    total = answer["total"]
    funnel = page.eval_on_selector_all("[data-measure]", "all => all.map(e => [e.dataset.measure, Number(e.dataset.value), e.textContent])")
    wanted = [
        ("attempted", total["attempted"]),
        ("delivered", total["delivered"]),
        ("opened", total[f"opened{suffix}"]),
        ("clicked", total[f"clicked{suffix}"]),
        ("converted", total["converted"]),
    ]
    assert funnel == [[name, n, words.count(n)] for name, n in wanted]
    for selector, by in (("#variants", "variant"), ("#breakdown", "provider")):
        rows = {row[by] or "none": row for row in console.api("/v1/numbers", by=by, **asked)["rows"]}
        shown = cells(page, selector)
        assert set(shown) == (set(rows) or {"Nothing in this window."})
        for name, metrics in shown.items():
            for metric, (value, text) in metrics.items():
                exact = rows[name][metric]
                assert value == ("" if exact is None else str(exact)), (name, metric)
                if metric.endswith("rate"):
                    assert text == words.percent(exact)
    share = page.locator("#machine-share b").get_attribute("data-value")
    assert share == ("" if answer["machine_share"] is None else str(answer["machine_share"]))
    assert page.locator("[data-waiting]").get_attribute("data-waiting") == str(console.api("/v1/waiting", campaign=SPRING)["count"])
    delays = {row["variant"]: str(row["p50_s"]) for row in console.api("/v1/delays", by="variant", campaign=SPRING, window=window)["rows"]}
    found = page.eval_on_selector_all(
        "#delays tbody tr", "rows => rows.map(r => [r.dataset.key, r.querySelector('[data-metric]').dataset.value])"
    )
    assert dict(found) == delays
    page.context.close()


def test_the_comparison_tells_people_from_machines(console: Console) -> None:
    """The control of the test above: the numbers with machines are not those without, so a page that mixed them up would fail."""
    people = cells(console.page(campaign_url(machines="without")), "#variants")
    everybody = cells(console.page(campaign_url(machines="with")), "#variants")
    assert people.keys() == everybody.keys()
    assert all(people[name]["open_rate"] != everybody[name]["open_rate"] for name in people)
    assert all(people[name]["delivered"] == everybody[name]["delivered"] for name in people)


def test_pulse_shows_the_apis_numbers(console: Console) -> None:
    """Every active campaign stands on the strip with the API's rates and the freshness of the last minute."""
    page = console.page()
    rows = {row["campaign"]: row for row in console.api("/v1/campaigns", limit=12)["campaigns"]}
    shown = page.evaluate(
        """() => [...document.querySelectorAll('.strip tbody tr')].map(row => [row.dataset.key,
        Object.fromEntries([...row.querySelectorAll('[data-value]')].map(cell => [cell.dataset.metric, cell.dataset.value]))])"""
    )
    assert len(shown) >= len(PAYLOADS) + 2
    for name, metrics in shown:
        api = {**rows[name]["metrics"], "delivered": rows[name]["measures"]["delivered"]}
        assert metrics == {key: "" if api[key] is None else str(api[key]) for key in metrics}
    fresh = console.api("/v1/numbers", window="1m")["freshness"]
    for key in ("p50_ms", "p99_ms"):
        assert page.locator(f"[data-fresh={key}]").get_attribute("data-value") == str(fresh[key])
    page.context.close()


def test_lists_tell_no_rate_of_a_few_messages(tmp_path: Path, browser: Browser) -> None:
    """Rates over fewer than ten messages, and those of no campaign, are dashes in lists; the control is a campaign with ten."""
    for console in console_over(tmp_path, browser, scale=0.001):
        writer = apsw.Connection(str(tmp_path / "store.db"))
        writer.set_busy_timeout(5000)
        add = "INSERT OR REPLACE INTO campaigns (campaign, first_minute, last_minute, delivered, opened_human, revenue_micros) VALUES "
        writer.execute(
            add + "(0, ?1, ?1, 500, 40, 900000000), (1, ?1, ?1, 10, 3, 900000), (2, ?1, ?1, 9, 3, 900000)", (NOW_US // 60_000_000,)
        )
        names = [writer.execute("SELECT name FROM names WHERE kind = 'campaign' AND id = ?", (n,)).get for n in (1, 2)]
        writer.close()
        for path in ("/", "/campaigns"):
            page = console.page(path)
            rows = page.evaluate(
                """() => Object.fromEntries([...document.querySelectorAll('.strip tbody tr')].map(row =>
                [row.querySelector('a').textContent, Object.fromEntries(
                [...row.querySelectorAll('[data-label]')].map(cell => [cell.dataset.label, cell.textContent]))]))"""
            )
            assert (rows[names[0]]["Delivered"], rows[names[0]]["Open"]) == ("10", "30.0%")
            assert (rows[names[1]]["Delivered"], rows[names[1]]["Open"]) == ("9", words.NONE)
            assert (rows["No campaign"]["Delivered"], rows["No campaign"]["Open"]) == ("500", words.NONE)
            if path == "/":
                assert [rows[name]["Revenue / 1,000"] for name in (*names, "No campaign")] == ["90.00", words.NONE, words.NONE]
            page.context.close()


def test_a_young_line_starts_with_its_data() -> None:
    """Zeros before the first event are not drawn, and three points always are; a line that was never zero stays whole."""

    def heights(values: list[int]) -> list[float]:
        return [float(point.split(",")[1]) for point in pictures.spark(values)["line"].split()]

    assert len(heights([0] * 50 + [3, 5, 0, 4, 9, 1])) == 5, "the running minute is left out too"
    assert len(heights([0] * 59 + [3])) == 3
    assert len(heights([0] * 58 + [3, 1])) == 3
    assert len(heights([1] * 60)) == 59
    assert len(heights([0] * 60)) == 60
    assert heights([0, 0, 0, 2, 4, 2, 0]) == [12.5, 2.0, 12.5]


def test_crowded_charts_are_drawn_from_hours(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chart over very many cells has a point each hour; what it draws adds up to the same."""

    def chart() -> dict:
        page = console.page(campaign_url(window="24h", show="delivered"))
        found = page.evaluate("JSON.parse(document.querySelector('#time [data-chart]').dataset.chart)")
        page.context.close()
        return found

    fine = chart()
    monkeypatch.setattr(pages, "chart_cells_max", 10)
    console.app.state.kept._kept.clear()
    coarse = chart()
    console.app.state.kept._kept.clear()
    assert (fine["step"] < 3600, coarse["step"]) == (True, 3600)
    assert [sum(line["values"]) for line in coarse["lines"]] == [sum(line["values"]) for line in fine["lines"]]
    assert coarse["start"] <= fine["start"]


def test_numbers_move_without_reloading(tmp_path: Path, browser: Browser) -> None:
    """A change in the store is on the open page within seconds; focus, open details and place stay; nothing jumps."""
    for console in console_over(tmp_path, browser, scale=0.02):
        page = console.page(campaign_url(), viewport={"width": 1280, "height": 700})
        page.wait_for_selector("main.live")
        page.evaluate("window.same = document.querySelector('[data-measure=delivered]')")
        page.locator(".pop summary").click()
        page.locator("input[name=from]").focus()
        before = page.evaluate("[...document.querySelectorAll('section')].map(s => s.getBoundingClientRect().top)")
        writer = apsw.Connection(str(tmp_path / "store.db"))
        writer.set_busy_timeout(5000)
        writer.execute(ADD_SEVEN)
        writer.close()
        now = console.api("/v1/numbers", campaign=SPRING)["total"]["delivered"]
        page.wait_for_selector(f"[data-measure=delivered][data-value='{now}']", timeout=15_000)
        assert page.evaluate("window.same === document.querySelector('[data-measure=delivered]')"), "the element itself was kept"
        assert page.evaluate("document.activeElement.name") == "from"
        assert page.locator(".pop").get_attribute("open") is not None
        assert page.evaluate("[...document.querySelectorAll('section')].map(s => s.getBoundingClientRect().top)") == before
        assert page.evaluate("window.bad") == []
        page.context.close()


ADD_SEVEN = """
UPDATE cells SET delivered = delivered + 7 WHERE campaign = 1 AND minute = (SELECT max(minute) FROM cells WHERE campaign = 1) AND segment =
    (SELECT segment FROM cells WHERE campaign = 1 ORDER BY minute DESC LIMIT 1);
UPDATE campaigns SET delivered = (SELECT sum(delivered) FROM cells WHERE cells.campaign = 1) WHERE campaign = 1;
UPDATE hours AS h SET delivered = (SELECT sum(delivered) FROM cells c WHERE c.campaign = 1 AND c.minute BETWEEN h.hour AND h.hour + 59 AND
    (c.variant, c.wave, c.provider, c.source, c.segment) = (h.variant, h.wave, h.provider, h.source, h.segment))
    WHERE campaign = 1 AND hour = (SELECT max(hour) FROM hours WHERE campaign = 1)
"""


def test_the_machine_switch_is_one_key(console: Console) -> None:
    """`m` switches every number on the page, and back."""
    page = console.page(campaign_url())
    before = cells(page, "#variants")
    with page.expect_navigation():
        page.keyboard.press("m")
    assert cells(page, "#variants") != before
    with page.expect_navigation():
        page.keyboard.press("m")
    assert cells(page, "#variants") == before
    page.context.close()


def test_choices_stand_in_the_address(console: Console) -> None:
    """A filter, a dimension and a window are links; the filtered numbers are the API's."""
    page = console.page(campaign_url())
    page.locator("#breakdown a", has_text="gmail").first.click()
    page.wait_for_url("**where=provider*")
    page.get_by_role("group", name="Dimension").get_by_text("Plan").click()
    page.wait_for_url("**by=plan*")
    page.get_by_role("group", name="Window").get_by_text("1h").click()
    page.wait_for_url("**window=1h*")
    rows = console.api("/v1/numbers", campaign=SPRING, window="1h", by="plan", where="provider:gmail")["rows"]
    assert {name: int(found["delivered"][0]) for name, found in cells(page, "#breakdown").items()} == {
        r["plan"]: r["delivered"] for r in rows
    }
    page.get_by_label("Remove the filter provider:gmail").click()
    page.wait_for_function("!location.search.includes('where')")
    page.context.close()


# -- nobody else's scripts -----------------------------------------------------------------------------------------------

HOSTILE = [
    "/",
    "/campaigns",
    "/sources",
    "/people?address=ada@example.com",
    "/campaigns?search=%3Cscript%3Ealert(1)%3C/script%3E",
    "/words",
]


def hostile_pages() -> list[str]:
    pages = list(HOSTILE)
    for payload in PAYLOADS:
        parts = {"name": payload, "where": f"variant:{payload}", "by": "source"}
        pages += ["/campaign?" + str(httpx.QueryParams(parts)), "/people?" + str(httpx.QueryParams({"address": payload}))]
        pages.append("/sources?" + str(httpx.QueryParams({"source": payload})))
    return pages


def test_what_vendors_send_stays_text(console: Console) -> None:
    """Payloads in campaigns, variants, sources, dead letters and people: no dialog, no violation, no element, and they are readable."""
    context = console.context()
    page = context.new_page()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    seen = ""
    for path in hostile_pages():
        answer = page.goto(console.base + path)
        assert answer.status in (200, 400, 404), path
        page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        if page.locator(".chart").count():
            page.locator(".chart").first.focus()
            page.keyboard.press("ArrowLeft")
        seen += page.locator("body").inner_text()
        assert page.evaluate("window.bad") == [], path
        assert (
            page.evaluate("document.querySelectorAll('main script, main iframe, main img, main [onload], main [onerror]').length") == 0
        ), path
        assert page.evaluate("[...document.querySelectorAll('a[href]')].every(a => /^https?:$/.test(a.protocol))"), path
    assert dialogs == []
    for payload in PAYLOADS:
        assert payload in seen, f"{payload} is nowhere to be read"
    context.close()


def test_the_watch_sees_what_it_watches_for(console: Console) -> None:
    """The control of the test above: a script put into a page by hand is stopped by the policy, and the watch tells."""
    page = console.page()
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=alert(1)>')")
    page.wait_for_function("window.bad.length > 0")
    assert any(text.startswith("policy: script-src") for text in page.evaluate("window.bad"))
    assert not any(text.startswith("dialog") for text in page.evaluate("window.bad"))
    page.context.close()


def test_a_live_update_keeps_payloads_as_text(console: Console) -> None:
    """The nodes that a refresh brings in are text too."""
    page = console.page("/sources")
    page.evaluate("document.querySelectorAll('.letter').forEach(n => n.remove())")
    page.wait_for_selector(".letter", state="attached", timeout=15_000)
    assert page.evaluate("window.bad") == []
    assert page.locator(".letter", has_text=PAYLOADS[0]).count() >= 1
    page.context.close()


# -- coming in -----------------------------------------------------------------------------------------------------------


def test_login_leads_to_the_page_that_was_asked_for(console: Console) -> None:
    """Without a session every page leads to the login and back; the cookie is for HTTP only, and logging out ends it."""
    context = console.browser.new_context()
    page = context.new_page()
    page.goto(console.base + campaign_url())
    assert "/login" in page.url
    page.fill("input[name=name]", "ada")
    page.fill("input[name=password]", "wrong wrong wrong")
    page.keyboard.press("Enter")
    assert page.get_by_role("alert").inner_text() == "The name or the password is wrong."
    page.fill("input[name=password]", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/campaign?name=*")
    cookie = next(c for c in context.cookies() if c["name"] == "midflight_session")
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    assert console.access.session(cookie["value"]) is None
    page.goto(console.base + "/")
    assert "/login" in page.url
    context.close()


def form_of(client: httpx.Client, path: str = "/login") -> dict[str, str]:
    page = client.get(path).text
    return {"mark": re.search(r'name="mark" value="([^"]+)"', page)[1], "to": "/"}


def test_logins_answer_alike_and_are_limited(console: Console) -> None:
    """Known and unknown names get the same answer; after some tries the answer is 429 with a time to wait; sessions rotate."""
    for tries in (console.access.tries, console.access.address_tries, console.access.name_tries):
        tries._left.clear()
    with httpx.Client(base_url=console.base, headers={"origin": console.base, "sec-fetch-site": "same-origin"}, trust_env=False) as client:
        answers = []
        for name in ("ada", "zoe"):
            form = form_of(client)
            found = client.post("/login", data={**form, "name": name, "password": "wrong wrong"})
            answers.append((found.status_code, re.sub(r'name="mark" value="[^"]+"', "", found.text).replace(name, "NAME")))
        assert answers[0] == answers[1]
        assert answers[0][0] == 401
        first = client.post("/login", data={**form_of(client), "name": "ada", "password": PASSWORD}).cookies["midflight_session"]
        client.cookies.clear()
        mark = form_of(client)
        client.cookies.set("midflight_session", first)
        second = client.post("/login", data={**mark, "name": "ada", "password": PASSWORD}).cookies["midflight_session"]
        assert first != second
        assert console.access.session(first) is None, "the session before is over"
        client.cookies.clear()
        statuses = []
        for _ in range(tries_max + 1):
            found = client.post("/login", data={**form_of(client), "name": "ada", "password": "wrong wrong"})
            statuses.append(found.status_code)
        assert statuses[-1] == 429
        assert int(found.headers["retry-after"]) >= 1
    for tries in (console.access.tries, console.access.address_tries, console.access.name_tries):
        tries._left.clear()


def test_forms_of_other_sites_are_refused(console: Console) -> None:
    """Every form needs our origin and its own secret: another site's post, a missing secret and a stolen form are 403 and do nothing."""
    secret = console.access.open_session("ada")
    csrf = console.access.session(secret).csrf
    ours = {"origin": console.base, "sec-fetch-site": "same-origin"}
    cases = [
        ({"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, {"csrf": csrf}, 403),
        ({"origin": "null"}, {"csrf": csrf}, 403),
        ({}, {"csrf": csrf}, 403),
        (ours, {}, 403),
        (ours, {"csrf": ("x" if csrf[0] != "x" else "y") + csrf[1:]}, 403),
    ]
    with httpx.Client(base_url=console.base, trust_env=False) as client:
        client.cookies.set("midflight_session", secret)
        for path in ("/logout", "/sources/replay"):
            for headers, form, status in cases:
                assert client.post(path, data={**form, "source": "sendgrid"}, headers=headers).status_code == status, (path, headers)
        assert console.access.session(secret) is not None
        assert client.post("/login", data={"name": "ada", "password": PASSWORD}, headers=ours).status_code == 403
        assert client.get("/logout").status_code == 405
        assert client.post("/logout", data={"csrf": csrf}, headers=ours).status_code == 303
        assert console.access.session(secret) is None


def test_after_the_login_nobody_is_sent_elsewhere(console: Console) -> None:
    """`to` leads to pages of ours only."""
    with httpx.Client(base_url=console.base, trust_env=False) as client:
        client.cookies.set("midflight_session", console.access.open_session("ada"))
        for to in (
            "//evil.example",
            "https://evil.example",
            "/\\evil.example",
            "/login",
            "javascript:alert(1)",
            "/a\r\nx: y",
            "/\t/evil.example",
        ):
            assert client.get("/login", params={"to": to}).headers["location"] == "/", to
        assert client.get("/login", params={"to": "/sources?source=x"}).headers["location"] == "/sources?source=x"


def test_the_first_user_is_made_in_the_browser(tmp_path: Path, browser: Browser) -> None:
    """The link makes one user, logs in, and works no second time."""
    app = create_app(sample_config(tmp_path), Stopped(NOW_US))
    access = app.state.site.access
    key = access.setup_secret()
    with serving(app) as base:
        page = browser.new_page()
        page.goto(f"{base}/login")
        assert page.get_by_text("There is no user yet").count() == 1
        page.goto(f"{base}/setup?key={key}")
        page.fill("input[name=name]", "grace")
        page.fill("input[name=password]", PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(base + "/")
        assert access.users()[0][0] == "grace"
        answer = page.goto(f"{base}/setup?key={key}")
        assert answer.status == 403
        page.close()


# -- hands and eyes ------------------------------------------------------------------------------------------------------


def test_the_keyboard_reaches_everything(console: Console) -> None:
    """Skip link, two-key jumps, search, help and charts work without a mouse, and the focus can be seen."""
    page = console.page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    page.keyboard.press("Enter")
    has_focus(page, "main")
    for keys, path in (("gc", "/campaigns"), ("gs", "/sources"), ("ge", "/people"), ("gp", "/")):
        with page.expect_navigation():
            for key in keys:
                page.keyboard.press(key)
        assert page.evaluate("location.pathname") == path
        if path == "/people":
            page.wait_for_function("document.activeElement.name === 'address'")
            page.keyboard.press("Escape")
            assert page.evaluate("document.activeElement === document.body")
    page.keyboard.press("?")
    assert page.locator("#help").get_attribute("open") is not None
    page.keyboard.press("Escape")
    assert page.locator("#help").get_attribute("open") is None
    page.keyboard.press("/")
    page.keyboard.type("spring")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.locator(".strip tbody tr").count() == 1
    page.goto(console.base + campaign_url())
    page.locator("#time .chart").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#time .tip").count() == 1
    assert "UTC" in page.locator("#said").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#time .tip").count() == 0
    page.context.close()


def test_a_search_with_an_address_finds_the_person(console: Console) -> None:
    """The one search box tells addresses from names; the timeline has the newest first."""
    page = console.page()
    page.fill("#find", "ada@example.com")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    kinds = page.eval_on_selector_all(".timeline li b", "all => all.map(e => e.textContent)")
    assert kinds[:2] == ["Clicked", "Delivered"]
    page.context.close()


def test_the_theme_is_kept_and_follows_the_system(console: Console) -> None:
    """Dark follows the system, the button overrides it, and the next page comes in it at once."""
    page = console.page(color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.get_by_role("button", name="Theme: auto").click()
    light = page.evaluate(colour)
    assert light != dark
    page.goto(console.base + "/sources")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert page.evaluate(colour) == light
    page.context.close()


def test_the_empty_console_says_what_to_do(empty: Console) -> None:
    """With no store at all: the webhooks' addresses and a line to copy, and no page that breaks."""
    page = empty.page()
    text = page.locator("main").inner_text()
    assert "Waiting for the first event" in text
    assert "https://hooks.example.com/in/sendgrid" in text
    assert "curl -i https://hooks.example.com/in/sendgrid" in text
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("Copy the line").click()
    page.wait_for_function("document.getElementById('said').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == "curl -i https://hooks.example.com/in/sendgrid"
    for path in ("/campaigns", "/sources", "/people", "/people?address=a@b.example", "/words"):
        assert page.goto(empty.base + path).status == 200
        assert page.evaluate("window.bad") == []
    assert page.goto(empty.base + campaign_url()).status == 404
    page.context.close()


def test_pages_are_small_and_fit_a_phone(console: Console) -> None:
    """Every page with its script and style is below 150 KB and no wider than a phone."""
    context = console.context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    for path in ("/", "/campaigns", campaign_url(), "/sources", "/people?address=ada@example.com"):
        page.goto(console.base + path, wait_until="networkidle" if path.startswith("/people") else "load")
        page.evaluate("for (const d of document.querySelectorAll('main details:not(.pop)')) d.open = true")
        assert page.evaluate("document.documentElement.scrollWidth <= 390"), path
        size = page.evaluate(
            """() => [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
            .filter(e => !e.name.includes('/v1/stream')).reduce((sum, e) => sum + e.decodedBodySize, 0)"""
        )
        assert 0 < size < 150_000, (path, size)
    context.close()


BRIGHTEST = """async ([png, from, to]) => {
    const image = await createImageBitmap(new Blob([Uint8Array.from(atob(png), c => c.charCodeAt(0))]))
    const canvas = new OffscreenCanvas(image.width, image.height), context = canvas.getContext('2d')
    context.drawImage(image, 0, 0)
    const data = context.getImageData(from < 0 ? image.width + from : from, 4, to - from, image.height - 8).data
    let most = 0
    for (let i = 0; i < data.length; i += 4) most = Math.max(most, data[i] + data[i + 1] + data[i + 2])
    return most
}"""


def test_a_wide_table_shows_on_a_phone_that_there_is_more(console: Console) -> None:
    """An edge beyond which the table goes on is shaded down to its last pixel, an edge where it ends is not; without any script."""
    context = console.context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.goto(console.base + campaign_url())
    table = page.locator(".scroll:has(.rates)").first
    assert table.evaluate("e => e.scrollWidth > e.clientWidth + 50"), "the table is wider than the phone"

    def shaded() -> tuple[bool, bool]:
        png = base64.b64encode(table.screenshot()).decode()
        left, right = (page.evaluate(BRIGHTEST, [png, *edge]) for edge in ((2, 4), (-4, -2)))
        return left < 3 * 250, right < 3 * 250

    assert shaded() == (False, True)
    table.evaluate("e => e.scrollLeft = 60")
    assert shaded() == (True, True)
    table.evaluate("e => e.scrollLeft = e.scrollWidth")
    assert shaded() == (True, False)
    context.close()


def test_everything_has_a_name_for_a_screen_reader(console: Console) -> None:
    """Buttons, links, fields and pictures have an accessible name; there is one main heading and one main region."""
    page = console.page()
    for path in ("/", campaign_url(), "/sources", "/campaigns", "/people"):
        page.goto(console.base + path)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('button, a[href], input:not([type=hidden]), [role=img], [role=region], [role=group]')]
            .filter(e => !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.textContent.trim() || e.labels?.length))
            .map(e => e.outerHTML)"""
        )
        assert nameless == [], path
        assert page.locator("h1").count() == 1
        assert page.locator("main").count() == 1
        assert page.evaluate("document.title").endswith("Midflight")
    page.context.close()


def test_replay_buttons_answer_when_the_door_is_away(console: Console) -> None:
    """Without a door the button leads to words, not to a stack trace; nothing is lost."""
    page = console.page("/sources?source=sendgrid")
    with page.expect_navigation():
        page.get_by_role("button", name="Read all again").click()
    assert page.locator("h1").inner_text() == "The door has not been started yet"
    page.context.close()
