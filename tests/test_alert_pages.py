"""Alerts by API and page: what was told to whom and whether it arrived, and how to have somebody told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from chromium import LoggedIn
from playwright.sync_api import Browser
from sample_store import PAYLOADS, Stopped, serving

from midflight.act.alerts import Alerts, Telling
from midflight.act.outbox import Outbox
from midflight.act.ways.way import Outcome
from midflight.config import Config, config_from
from midflight.decide.alerting import BEGUN, LASTS, MORE, OVER, SERIOUS, WARNING, Condition, Notice, State, hour_us
from midflight.serve.api import create_app
from midflight.serve.console import alerts as alerts_page

NOW_US = 1_764_000_000_000_000
CHAT, OPS = "way:slack-ops", "mail:ops@shop.example"


def settings(folder: Path, **alerts: object) -> Config:
    raw = {
        "data": str(folder), "console": {"port": 8401}, "ways": {"slack-ops": {"kind": "slack", "url": "https://hooks.slack.example/x"}},
        "channels": {"relay": {"kind": "smtp", "host": "127.0.0.1"}},
    }  # fmt: skip
    return config_from(raw | ({"alerts": alerts} if alerts else {}))


TOLD = {"ways": ["slack-ops"], "email": {"channel": "relay", "from_address": "m@shop.example", "to": ["ops@shop.example"]}}


def condition(text: str, level: int = SERIOUS, why: str = "It is.", page: str = "/deliverability") -> Condition:
    return Condition(key=text, origin="o", level=level, text=text, why=why, page=page)


class Told:
    """The outbox of a conductor that tells alerts as a test says."""

    def __init__(self, folder: Path) -> None:
        self.outbox = Outbox(folder / "outbox.db")
        self.alerts = Alerts(self.outbox)

    def tell(self, *notices: Notice, targets: tuple[str, ...] = (CHAT, OPS)) -> None:
        self.alerts.remember(State(), notices, targets, NOW_US)

    def ends(self, target: str, outcome: Outcome) -> None:
        (telling,) = self.alerts.due([target], NOW_US)
        assert isinstance(telling, Telling) and self.alerts.begin(telling, 0, NOW_US)
        self.alerts.settle(telling, outcome, NOW_US)

    def write_unreadable(self) -> None:
        self.outbox.db.execute("INSERT INTO alerts SELECT max(number) + 1, 'odd', ?, '', 'odd' FROM alerts", (NOW_US,))


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    made = Told(tmp_path)
    yield made
    made.outbox.close()


def three(told: Told) -> None:
    """Tell of a provider that is held (the chat heard it, the relay said no), that it is over, and of three things together."""
    held = condition("What goes to provider `Gmail` is held.")
    parts = tuple(Notice(what=BEGUN, about=condition(text, WARNING, page="/inbox")) for text in ("One waits.", "Two wait."))
    told.tell(Notice(what=LASTS, about=held, lasted_us=12 * hour_us))
    told.ends(CHAT, Outcome(kind="sent", code="200"))
    told.ends(OPS, Outcome(kind="refused", code="550", detail="no such user"))
    told.tell(Notice(what=OVER, about=held, lasted_us=13 * hour_us), Notice(what=MORE, count=3, parts=parts))


def asked(app, base: str, path: str) -> httpx.Response:
    _, secret = app.state.site.access.make_token("test", ["read"])
    return httpx.get(base + path, headers={"authorization": f"Bearer {secret}"}, timeout=30, trust_env=False)


def test_the_api_says_what_was_told_and_whether_it_arrived(told: Told, tmp_path: Path) -> None:
    """The newest first, in pages; each with its words, its page and what became of it by target; an odd one stands in nobody's way."""
    three(told)
    told.write_unreadable()
    app = create_app(settings(tmp_path, **TOLD), Stopped(NOW_US))
    with serving(app) as base:
        found = asked(app, base, "/v1/alerts").json()
        pages, path = [], "/v1/alerts?limit=1"
        while path:
            page = asked(app, base, path).json()
            pages += page["alerts"]
            path = page["next"] and f"/v1/alerts?limit=1&before={page['next']}"
        assert asked(app, base, "/v1/alerts?limit=501").status_code == asked(app, base, "/v1/alerts?after=1").status_code == 400
    assert found["targets"] == [CHAT, OPS] and found["next"] is None and pages == found["alerts"]
    odd, more, over, held = found["alerts"]
    assert [one["number"] for one in found["alerts"]] == [4, 3, 2, 1]
    assert (odd["what"], odd["level"], odd["page"], odd["told"]) == ("unreadable", "unknown", "", [])
    assert (more["what"], more["level"], more["page"]) == ("more", "warning", "") and more["text"].startswith("3 more alerts")
    assert [(part["text"], part["page"]) for part in more["parts"]] == [("One waits.", "/inbox"), ("Two wait.", "/inbox")]
    assert (over["text"], over["why"]) == ("Over, after 13 hours: What goes to provider `Gmail` is held.", "")
    assert (held["what"], held["level"], held["why"], held["page"]) == ("lasts", "serious", "It is.", "/deliverability")
    assert held["text"].startswith("Still, for 12 hours: ") and held["at"] == "2025-11-24T16:00:00Z" and held["id"].startswith("alert-")
    by_target = {call["target"]: call for call in held["told"]}
    assert (by_target[CHAT]["state"], by_target[CHAT]["tries"]) == ("sent", 1)
    assert (by_target[OPS]["state"], by_target[OPS]["detail"]) == ("refused", "550 no such user")
    assert [call["state"] for call in over["told"]] == ["waiting", "waiting"]


def test_where_nobody_was_ever_told_the_api_says_so(tmp_path: Path) -> None:
    """Without a conductor, and with the file of one that knew no alerts, the list is empty; a token is needed."""
    app = create_app(settings(tmp_path), Stopped(NOW_US))
    with serving(app) as base:
        nobody = {"alerts": [], "next": None, "targets": []}
        assert asked(app, base, "/v1/alerts").json() == nobody
        Outbox(tmp_path / "outbox.db").close()
        assert asked(app, base, "/v1/alerts").json() == nobody
        assert httpx.get(f"{base}/v1/alerts", trust_env=False).status_code == 401


def looked(app, base: str, browser: Browser) -> LoggedIn:
    app.state.site.access.set_user("ada", "correct horse battery")
    return LoggedIn(base, app.state.site.access, browser)


def test_the_page_shows_what_was_told_and_leads_to_what_shows_it(
    told: Told, tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tab of the ledger: who has heard it, who has not and why, in pages; a new one comes by itself; no phone has to scroll aside."""
    three(told)
    app = create_app(settings(tmp_path, **TOLD), Stopped(NOW_US))
    monkeypatch.setattr(alerts_page, "rows_shown", 2)
    with serving(app) as base:
        page = looked(app, base, browser).page("/inbox")
        page.get_by_role("link", name="Alerts", exact=True).click()
        assert page.url == f"{base}/ledger/alerts" and page.locator("nav [aria-current]").inner_text() == "Ledger"
        assert "Told now: slack-ops, ops@shop.example" in page.locator(".head").inner_text()
        assert page.locator("#nobody").count() == 0 and page.locator(".alerts > li").count() == 2
        assert page.locator(".alerts > li").first.get_by_role("link", name="Show me").count() == 2
        page.get_by_role("link", name="Older alerts").click()
        row = page.locator(".alerts > li")
        assert row.count() == 1 and "Still, for 12 hours" in row.inner_text() and "550 no such user" in row.inner_text()
        assert row.locator("[data-state]").evaluate_all("all => all.map(e => e.dataset.state)") == ["refused", "sent"]
        row.get_by_role("link", name="Show me").click()
        assert page.url == f"{base}/deliverability"
        page.goto(base + "/ledger/alerts")
        told.tell(Notice(what=BEGUN, about=condition("Something new.")))
        page.wait_for_selector("[data-key='4']")
        assert page.evaluate("window.bad") == []
        for theme in ("light", "dark"):
            phone = looked(app, base, browser).page("/ledger/alerts", viewport={"width": 390, "height": 800}, color_scheme=theme)
            assert phone.evaluate("document.documentElement.scrollWidth") <= 390
            phone.context.close()
        page.context.close()


def test_the_page_says_how_to_have_somebody_told(tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody is named, the page has settings that are right as they stand; where somebody is, that nothing needed anybody."""
    app = create_app(settings(tmp_path), Stopped(NOW_US))
    with serving(app) as base:
        page = looked(app, base, browser).page("/ledger/alerts", viewport={"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator("#nobody h2").inner_text() == "Nobody is told yet"
        shown = page.locator("#nobody pre").inner_text()
        page.context.close()
    monkeypatch.setenv("SLACK_OPS_URL", "https://hooks.slack.example/x")
    config = config_from(msgspec.yaml.decode(shown) | {"data": str(tmp_path)})
    assert config.alerts.ways == ["slack-ops"] and config.alerts.console_url == base
    app = create_app(config, Stopped(NOW_US))
    with serving(app) as base:
        page = looked(app, base, browser).page("/ledger/alerts")
        assert page.locator("#nobody").count() == 0 and "Nothing has needed anybody yet" in page.locator("main").inner_text()
        page.context.close()


def test_nothing_of_strangers_runs_in_what_was_told(told: Told, tmp_path: Path, browser: Browser) -> None:
    """Texts, answers of the other end and names of targets that are scripts are text; a page elsewhere is no link."""
    for payload in PAYLOADS:
        target = f"way:{payload}"
        notice = Notice(what=BEGUN, about=condition(payload, why=payload, page=payload))
        told.tell(notice, Notice(what=MORE, count=1, parts=(notice,)), targets=(target,))
        told.ends(target, Outcome(kind="refused", code="400", detail=payload))
    for page in ("//evil.example", "/\\evil.example", "https://evil.example"):
        told.tell(Notice(what=BEGUN, about=condition(page, page=page)))
    app = create_app(settings(tmp_path, **TOLD), Stopped(NOW_US))
    with serving(app) as base:
        page = looked(app, base, browser).page("/ledger/alerts")
        text = page.locator(".alerts").inner_text()
        assert all(payload in text for payload in PAYLOADS) and page.locator(".alerts a").count() == 0
        assert page.evaluate("document.querySelectorAll('main script, main iframe, main img, main [onload]').length") == 0
        assert page.evaluate("window.bad") == []
        page.context.close()
