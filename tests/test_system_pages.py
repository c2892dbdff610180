"""From signed webhooks over HTTP to a real browser: the page shows the sandbox's truth, and hostile text of every vendor stays text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from chromium import LoggedIn
from playwright.sync_api import Browser, Page
from system import System

from midflight.sandbox.verify import Truth
from midflight.serve.auth import Access

FUNNEL = {"delivered": "delivered", "opened": "opened_human", "clicked": "clicked_human", "converted": "converted"}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[System, Truth]]:
    """The whole system after five vendors' campaigns with markup in every text."""
    folder: Path = tmp_path_factory.mktemp("pages")
    with System(folder, seed=5) as system:
        system.start_all("door", "engine", "console")
        game = system.scenario(recipients=250, campaigns=5)
        told = system.play(replace(game, manners=game.manners.with_xss(True)))
        assert system.differences(told) == []
        yield system, told


def opened(system: System, browser: Browser, path: str) -> Page:
    access = Access(system.config)
    access.set_user("ada", "correct horse battery")
    page = LoggedIn(system.api, access, browser).page(path)
    access.close()
    return page


def shown(page: Page) -> dict[str, int]:
    """Return the funnel that the page shows."""
    found = page.eval_on_selector_all("[data-measure]", "all => all.map(e => [e.dataset.measure, Number(e.dataset.value)])")
    return {name: n for name, n in found if name in FUNNEL}


def true_numbers(told: Truth, campaign: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for cell, measures in told.cells:
        if cell.campaign == campaign:
            counts.update(measures)
    return {name: counts[measure] for name, measure in FUNNEL.items()}


def test_every_campaigns_page_shows_the_sandboxes_truth(played, browser: Browser) -> None:
    """Delivered, opened, clicked and converted people of each vendor's campaign, as the sandbox knows them to be."""
    system, told = played
    campaigns = [name for name in told.campaigns() if name]
    assert len(campaigns) == 5
    for campaign in campaigns:
        page = opened(system, browser, "/campaign?" + str(httpx.QueryParams({"name": campaign, "window": "all"})))
        wanted = true_numbers(told, campaign)
        assert shown(page) == wanted
        assert wanted["delivered"] > 50
        page.context.close()


def test_the_comparison_notices_another_campaigns_numbers(played, browser: Browser) -> None:
    """Control: the truth of one campaign is not what another one's page shows."""
    system, told = played
    first, second, *_ = [name for name in told.campaigns() if name]
    page = opened(system, browser, "/campaign?" + str(httpx.QueryParams({"name": first, "window": "all"})))
    assert shown(page) != true_numbers(told, second)
    page.context.close()


def test_markup_in_every_vendors_texts_stays_text(played, browser: Browser) -> None:
    """Every page after five vendors sent markup in campaigns, variants, links, reasons and user agents: no script, no dialog."""
    system, told = played
    campaigns = [name for name in told.campaigns() if name]
    assert any("<" in name for name in campaigns)
    with system.client() as client:
        rows = client.get("/v1/waiting", params={"campaign": campaigns[0], "minutes": 1}).json()["rows"]
    people = [row["recipient"] for row in rows[:2]]
    paths = ["/", "/campaigns", "/sources", *("/people?" + str(httpx.QueryParams({"address": who})) for who in people)]
    paths += ["/campaign?" + str(httpx.QueryParams({"name": name, "window": "all", "by": "source"})) for name in campaigns]
    for path in paths:
        page = opened(system, browser, path)
        page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        page.wait_for_timeout(300)
        assert page.evaluate("window.bad") == [], path
        hostile = "main script, main iframe, main img, main [onload], main [onerror], main svg[onload]"
        assert page.evaluate(f"document.querySelectorAll('{hostile}').length") == 0, path
        page.context.close()
