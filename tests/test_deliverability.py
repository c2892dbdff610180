"""Deliverability by API, command and page: what is held, who blocks, who is not written to; lists in and out."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from chromium import LoggedIn
from door_client import running
from playwright.sync_api import Browser
from sample_store import PAYLOADS, serving
from test_suspecting import BLOCKED, Life, day_us
from typer.testing import CliRunner

from midflight.act.campaigns import Campaigns
from midflight.act.links import Links
from midflight.act.orders import Guard, order_of
from midflight.act.outbox import Outbox
from midflight.act.sender import Sender
from midflight.act.stop_list import StopList
from midflight.kit.clock import Clock
from midflight.serve import delivering, ordering
from midflight.serve.api import create_app
from midflight.serve.delivering import addresses_in, line_of
from midflight.serve.protecting import Protecting
from midflight.store.experiment import Numbers
from midflight.store.read import WrongQuery

UNSAFE = "=HYPERLINK(1)@example.com"


class Place:
    """A data folder of two weeks, its door, its console, and guards that can be told to look."""

    def __init__(self, folder: Path, life: Life) -> None:
        self.folder, self.life, self.config = folder, life, life.config
        self.outbox = Outbox(folder / "outbox.db")
        self.numbers = Numbers(self.config, life.clock)
        sender = Sender(
            Campaigns(self.outbox), {}, StopList(), Links(bytes(range(64)), "https://m.example"), life.clock, begun=lambda intents: None,
            suppressed=lambda keys: {},
        )  # fmt: skip
        self.protecting = Protecting(self.outbox, self.numbers, sender, life.clock)
        self.done = 0

    def follow(self) -> None:
        """Fold what the log has, and do what was ordered, as engine and conductor would."""
        self.life.folded()
        for position, _, body in self.numbers.orders(self.done):
            order, self.done = order_of(body), position
            if isinstance(order, Guard):
                self.protecting.by_hand(order, self.life.clock.now_us())
                Campaigns(self.outbox).order_done(order.id, "", self.life.clock.now_us())

    def close(self) -> None:
        self.numbers.close()
        self.outbox.close()
        self.life.end()


def lived(life: Life) -> None:
    """Two weeks in which Gmail and Yahoo bounce a little, one address is dead, one asked for no more, and at the end Gmail blocks."""
    random = np.random.default_rng(3)
    now_us = Clock().now_us()
    life.clock.sleep_s((now_us - 12 * day_us - life.clock.now_us()) / 1e6)
    for day in range(12):
        for provider in ("gmail.com", "yahoo.com"):
            people = [f"p{n}@{provider}" for n in range(400)]
            gone = random.random(400) < 0.015
            life.tell("delivered", [p for p, is_gone in zip(people, gone, strict=True) if not is_gone])
            life.tell(
                "bounced", [p for p, is_gone in zip(people, gone, strict=True) if is_gone], bounce_class="soft", code="450", detail="later"
            )
        if day in (3, 6):
            life.gone(["gone@corp.example"])
        if day == 4:
            life.tell("unsubscribed", ["left@example.com"])
            life.gone([f"{n}{payload}@evil.example" for n, payload in enumerate(PAYLOADS)], detail=PAYLOADS[0])
        life.clock.sleep_s(86_400)
    life.folded()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    life = Life(folder)
    lived(life)
    made = Place(folder, life)
    made.protecting.look()
    life.clock.sleep_s(60)
    life.tell("delivered", [f"q{n}@yahoo.com" for n in range(300)])
    life.tell("bounced", [f"q{n}@gmail.com" for n in range(120)], bounce_class="block", code="550 5.7.1", detail=BLOCKED)
    made.life.folded()
    made.protecting.look()
    # The log is the door's from here on.
    life.end()
    life.close()
    yield made
    made.close()


@pytest.fixture(scope="module")
def served(place: Place) -> Iterator[tuple[str, object]]:
    with running(place.config) as door:
        place.config.door.port = door.port
        app = create_app(place.config, Clock())
        with serving(app) as base:
            yield base, app


def client(served, *scopes: str) -> httpx.Client:
    base, app = served
    _, secret = app.state.site.access.make_token("test", list(scopes))
    return httpx.Client(base_url=base, headers={"authorization": f"Bearer {secret}"}, timeout=30)


def test_the_api_says_what_is_held_and_who_blocks(place: Place, served) -> None:
    """Gmail is held, since when and for what; Spamhaus is named with advice; rates by hour and week are there."""
    with client(served, "read") as api:
        found = api.get("/v1/deliverability").json()
    (breaker,) = [one for one in found["breakers"] if one["stage"] != "normal"]
    assert (breaker["kind"], breaker["name"], breaker["stage"]) == ("provider", "Gmail", "held") and breaker["since"] and breaker["until"]
    assert "120 of" in breaker["text"] and breaker["waits"].startswith("Time")
    (sign,) = found["signs"]
    assert (sign["who"], sign["provider"], sign["count"]) == ("Spamhaus", "Gmail", 120) and "check.spamhaus.org" in sign["advice"]
    assert {row["provider"] for row in found["by_hour"]} >= {"Gmail", "Yahoo"} and {row["provider"] for row in found["by_week"]} >= {
        "Gmail"
    }
    assert sum(row["bounced"] for row in found["by_hour"] if row["provider"] == "Gmail") >= 120
    assert found["suppressed"]["dead"] == 1 and found["suppressed"]["unsubscribed"] == 1


def test_suppressions_are_listed_found_and_explained(served) -> None:
    """By beginning of address or domain, by reason, page by page; one says why, since when, and what ends it."""
    with client(served, "read") as api:
        everybody = api.get("/v1/suppressions").json()
        assert [row["recipient"] for row in everybody["suppressions"] if row["reason"] in ("dead", "unsubscribed")] == [
            "gone@corp.example", "left@example.com",
        ]  # fmt: skip
        assert [row["recipient"] for row in api.get("/v1/suppressions?search=corp.ex").json()["suppressions"]] == ["gone@corp.example"]
        assert [row["recipient"] for row in api.get("/v1/suppressions?reason=unsubscribed").json()["suppressions"]] == ["left@example.com"]
        first = api.get("/v1/suppressions?limit=1").json()
        second = api.get("/v1/suppressions", params={"limit": 1, "after": first["next"]}).json()
        assert first["suppressions"] + second["suppressions"] == everybody["suppressions"][:2]
        told = api.get("/v1/suppressions/gone@corp.example").json()
        assert told["written_to"] is False and told["reasons"][0]["reason"] == "dead" and len(told["reasons"][0]["answers"]) == 2
        assert "3 days apart" in told["reasons"][0]["evidence"] and told["reasons"][0]["ends"]
        assert api.get("/v1/suppressions/somebody@example.com").json() == {
            "recipient": "somebody@example.com", "written_to": True, "reasons": [],
        }  # fmt: skip


def test_a_list_goes_in_and_out(place: Place, served) -> None:
    """What is posted is on the list, what is no address is said; the export is taken again; a release needs the right scope."""
    with client(served, "read") as api:
        assert api.post("/v1/suppressions", json={"addresses": ["x@y.example"]}).status_code == 403
    with client(served, "read", "write") as api:
        taken = api.post("/v1/suppressions", json={"addresses": ["X@y.example", "none", UNSAFE], "why": "old list"}).json()
        assert taken == {"taken": 2, "left_out": 1, "examples": ["none"]}
        place.follow()
        text = api.get("/v1/suppressions.csv").text
        rows = list(csv.reader(text.splitlines()))
        assert rows[0][0] == "email" and {"x@y.example", "gone@corp.example", "left@example.com"} < {row[0] for row in rows}
        assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row)
        assert UNSAFE.lower() in addresses_in(text.encode()) and len(addresses_in(text.encode())) == len(rows) - 1
        api.post("/v1/suppressions/release", json={"addresses": ["x@y.example", UNSAFE, "left@example.com"]})
        place.follow()
        left = {row["recipient"] for row in api.get("/v1/suppressions").json()["suppressions"]}
    assert "left@example.com" in left and "x@y.example" not in left


def test_an_export_without_care_would_be_a_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without the mark a cell begins with a sign that spreadsheets run."""
    assert line_of([UNSAFE]).startswith("'=")
    monkeypatch.setattr(delivering, "RISKY", ("\0",))
    assert line_of([UNSAFE]).startswith("=")


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"email,name\na@b.example,Ada\n'+c@d.example,\n", ["a@b.example", "+c@d.example"]),
        (b"\xef\xbb\xbfName;x\n", "No column of addresses"),
        (b"a@b.example\n\nc@d.example\n", ["a@b.example", "c@d.example"]),
        (b"\xff\xfe", "not UTF-8"),
        (b"", "No column of addresses"),
    ],
)
def test_files_of_addresses_are_read_or_refused(raw: bytes, found: list[str] | str) -> None:
    """CSV with a column of addresses or an address a line; anything else is refused with what is expected."""
    if isinstance(found, list):
        assert addresses_in(raw) == found
        return
    with pytest.raises(WrongQuery, match=found):
        addresses_in(raw)


def test_commands_list_explain_export_and_import(place: Place, served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same from the command line, with the data folder of the settings."""
    settings = tmp_path / "midflight.yaml"
    settings.write_bytes(msgspec.yaml.encode({"data": str(place.folder), "door": {"port": place.config.door.port}}))
    monkeypatch.setenv("MIDFLIGHT_CONFIG", str(settings))

    def said(*words: str) -> str:
        found = CliRunner(env={"COLUMNS": "200"}).invoke(command_group(), list(words), catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return found.output

    assert "gone@corp.example" in said("list", "--reason", "dead") and "unsubscribed: 1" in said("list")
    told = said("explain", "gone@corp.example")
    assert "3 days apart" in told and "What ends it" in told
    assert "nothing speaks against it" in said("explain", "new@example.com")
    file = tmp_path / "out.csv"
    assert "addresses are in" in said("export", str(file)) and "gone@corp.example" in file.read_text()
    (tmp_path / "in.csv").write_text("email\nimported@example.com\n")
    assert "1 addresses are taken" in said("import", str(tmp_path / "in.csv"), "--why", "old")
    place.follow()
    assert "imported" in said("explain", "imported@example.com")
    said("release", "imported@example.com")
    place.follow()
    assert "nothing speaks against it" in said("explain", "imported@example.com")


def command_group():
    from midflight.commands.suppressions import app

    return app


def test_the_page_shows_and_takes_over(place: Place, served, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breakers, heat map, signs and suppressions are on the page; an address is explained; a hold by hand and a list are taken."""
    monkeypatch.setattr(ordering, "wait_s", 0.2)
    base, app = served
    app.state.site.access.set_user("ada", "correct horse battery")
    looked = LoggedIn(base, app.state.site.access, browser)
    page = looked.page("/deliverability", viewport={"width": 1320, "height": 2400})
    assert page.locator("[data-stage=held]").count() == 1 and "Gmail" in page.locator(".breaker h2").inner_text()
    assert page.locator(".heat tbody tr").count() >= 2 and page.locator(".heat td.h7").count() >= 1
    assert "Spamhaus" in page.locator(".finding .badge").all_inner_texts()
    page.screenshot(path=str(place.folder / "deliverability.png"))
    page.fill("input[name=search]", "gone@corp.example")
    with page.expect_navigation():
        page.get_by_role("button", name="Show", exact=True).click()
    assert "3 days apart" in page.locator("#explained").inner_text()
    page.get_by_text("Hold something by hand").click()
    page.fill(".byhand input[name=name]", "Yahoo")
    page.fill(".byhand input[name=why]", "they asked us to wait")
    with page.expect_navigation():
        page.get_by_role("button", name="Hold", exact=True).click()
    assert "when the conductor runs" in page.locator(".notice").inner_text()
    place.follow()
    page.goto(base + "/deliverability")
    assert page.locator(".breaker").count() == 2 and "they asked us to wait" in page.locator("main").inner_text()
    page.get_by_text("Add addresses").click()
    page.fill("textarea[name=addresses]", "typed@example.com")
    with page.expect_navigation():
        page.get_by_role("button", name="Do not write to them").click()
    place.follow()
    page.goto(base + "/deliverability?search=typed@example.com")
    assert "Not written to" in page.locator("#explained").inner_text()
    assert page.evaluate("window.bad") == []


def test_the_page_says_what_is_wrong_with_a_form(served, browser: Browser) -> None:
    """An empty list is refused on the page with what is expected; a form from elsewhere is refused."""
    base, app = served
    app.state.site.access.set_user("ada", "correct horse battery")
    page = LoggedIn(base, app.state.site.access, browser).page("/deliverability")
    page.get_by_text("Add addresses").click()
    page.fill("textarea[name=addresses]", "not an address")
    with page.expect_navigation():
        page.get_by_role("button", name="Do not write to them").click()
    assert "Expected name@domain" in page.locator(".wrong").inner_text()
    answer = page.request.post(base + "/deliverability/list", form={"csrf": "x", "addresses": "a@b.example"})
    assert answer.status == 403
