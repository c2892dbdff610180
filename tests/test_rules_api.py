"""Segments, rules and what they did, through the API: over a real door, a real engine and the conductor's own turns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from rule_world import CLICKED_NOT_BOUGHT, World, until, whole
from sample_store import serving

from midflight.config import config_from
from midflight.kit.clock import Clock
from midflight.serve import models, ruling, trying
from midflight.serve.api import create_app
from midflight.store import asking

RULE = {"when": {"kind": "event", "did": "opened"}, "action": {"way": "chat", "fields": {"text": "hi {{ recipient.email }}"}}}


class Site:
    """The API of a whole Midflight, asked by programs of each scope."""

    def __init__(self, base: str, app, world: World) -> None:
        self.base, self.app, self.world = base, app, world
        self.secrets = {scope: app.state.site.access.make_token(scope, [scope])[1] for scope in ("read", "send")}

    def ask(self, method: str, path: str, status: int = 200, scope: str = "send", **how: object) -> dict:
        headers = {"authorization": f"Bearer {self.secrets[scope]}"}
        with httpx.Client(base_url=self.base, headers=headers, timeout=90, trust_env=False) as client:
            answer = client.request(method, path, **how)
        assert answer.status_code == status, answer.text
        return answer.json() if status < 400 else answer.json()["error"]

    def get(self, path: str, status: int = 200, **params: object) -> dict:
        return self.ask("GET", path, status, "read", params=params)

    def put_rule(self, name: str, status: int = 200, limits: dict | None = None, **changes: object) -> dict:
        definition = RULE | ({"limits": limits} if limits else {}) | changes
        return self.ask("PUT", f"/v1/rules/{quote(name, safe='')}", status, json={"definition": definition, "why": "because"})

    def rule_ends(self, name: str, **totals: int) -> None:
        until(lambda: self.get(f"/v1/rules/{name}")["totals"] == totals)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("rules")
    with whole(folder) as world:
        app = create_app(world.config, Clock())
        with serving(app) as base:
            yield Site(base, app, world)


def test_nothing_is_there_before_anything_happened(tmp_path: Path) -> None:
    """Without engine, conductor and door all lists are empty, pages say what to do, and what cannot be handed in says so."""
    app = create_app(config_from({"data": str(tmp_path), "console": {"port": 8401}}), Clock())
    app.state.site.access.set_user("ada", "correct horse battery")
    headers = {"authorization": f"Bearer {app.state.site.access.make_token('t', ['send'])[1]}"}
    with serving(app) as base:
        with httpx.Client(base_url=base, headers=headers, timeout=90, trust_env=False) as client:
            assert client.get("/v1/segments").json() == {"segments": [], "log_time": None}
            assert client.get("/v1/rules").json()["rules"] == [] == client.get("/v1/actions").json()["actions"]
            assert client.get("/v1/rules/ledger").json() == {"lines": [], "next": None}
            person = client.get("/v1/people/ada@x.example").json()
            assert "does not answer" in person["segments_note"] and person["actions"] == person["segments"] == []
            assert client.post("/v1/segments/preview", json={"where": {"did": "opened"}}).json()["error"]["code"] == "no_answer"
            put = client.put("/v1/segments/x", json={"where": {"did": "opened"}})
            assert (put.status_code, put.json()["error"]["code"]) == (503, "door_away")
            tried = client.post("/v1/rules/backtest", json={"rules": {"x": RULE}})
            assert "log is empty" in tried.json()["error"]["what"]
        session = {"midflight_session": app.state.site.access.open_session("ada")}
        with httpx.Client(base_url=base, cookies=session, timeout=90, trust_env=False) as page:
            for path, said in (("/segments", "No segment yet"), ("/rules", "No rule yet"), ("/inbox", "Nothing waits"),
                               ("/ledger/rules", "Nothing yet"), ("/segments/new", "New segment"), ("/rules/new", "New rule")):  # fmt: skip
                assert said in page.get(path).text, path
            assert page.get("/segment", params={"name": "x"}).status_code == page.get("/rule", params={"name": "x"}).status_code == 404


def test_a_segment_from_its_preview_to_its_end(site: Site) -> None:
    """Tried, made, filled from history, followed, edited only by who has seen the last version, and taken away when nothing needs it."""
    for who in ("ada@x.example", "bob@x.example"):
        site.world.hear("opened", who)
    site.world.folded()
    where = {"all": [{"did": "opened", "within": "1h"}, {"not": {"did": "clicked", "campaign": "spring"}}]}
    tried = site.ask("POST", "/v1/segments/preview", scope="read", json={"where": where})
    models.TriedSegment.model_validate(tried)
    assert (tried["people"], tried["members"], tried["exact"], tried["sample"]) == (2, 2, True, ["ada@x.example", "bob@x.example"])
    assert site.ask("PUT", "/v1/segments/Readers", json={"where": where}) == {"done": True, "note": None}
    site.world.hear("clicked", "bob@x.example")
    until(lambda: site.get("/v1/segments")["segments"][0]["members"] == 1)
    found = site.get("/v1/segments/Readers", sample=5)
    models.Segment.model_validate(found)
    assert found["sample"] == ["ada@x.example"] and found["note"] is None and found["version"] == 1
    assert [(move["recipient"], move["entered"]) for move in found["moves"]] == [("bob@x.example", False)]
    assert (found["history"][-1]["left"], found["history"][-1]["members"]) == (1, 1)
    assert found["words"] == "opened within 1 hour and never clicked in campaign `spring`"
    site.ask("PUT", "/v1/segments/Warm", json={"where": {"segment": "Readers"}})
    assert site.get("/v1/segments/Readers")["needed_by"] == ["segment `Warm`"]
    assert "is needed" in site.ask("DELETE", "/v1/segments/Readers", 400)["what"]
    stale = site.ask("PUT", "/v1/segments/Readers", 400, json={"where": where, "version": 1})
    assert "is at version 1" in stale["what"]
    for name in ("Warm", "Readers"):
        assert site.ask("DELETE", f"/v1/segments/{name}")["done"]
    assert site.get("/v1/segments")["segments"] == []
    assert "Unknown segment" in site.get("/v1/segments/Readers", 404)["what"]


@pytest.mark.parametrize(
    ("where", "at"),
    [
        ({"did": "clickd"}, "$.where.did"),
        ({"all": [{"did": "clicked"}, {"did": "opened", "wihtin": "1h"}]}, "$.where.all[1].wihtin"),
        ({"segment": "nobody"}, None),
        ({}, "$.where"),
    ],
)
def test_a_condition_that_is_wrong_is_told_with_its_place(site: Site, where: dict, at: str | None) -> None:
    """The same in the preview and when it is saved; nothing comes into the log."""
    for method, path in (("POST", "/v1/segments/preview"), ("PUT", "/v1/segments/x")):
        error = site.ask(method, path, 400, json={"where": where})
        assert error.get("where") == at and error["what"]


def test_a_rule_acts_within_its_limits_and_is_explained(site: Site) -> None:
    """It fires, acts, is capped; the person's page of the API says why, the ledger who put it down."""
    site.put_rule("Thanks", limits={"autonomy": "act", "per_recipient": [{"count": 1, "hours": 24}]})
    for _ in range(2):
        site.world.hear("opened", "cy@x.example", message_id="m1")
    site.rule_ends("Thanks", sent=1, dropped=1)
    found = site.get("/v1/rules/Thanks")
    models.Rule.model_validate(found)
    assert (found["when"], found["version"], found["autonomy"], found["taken_up"]) == ("somebody opened", 1, "act", True)
    person = site.get("/v1/people/cy@x.example")
    models.WholePerson.model_validate(person)
    dropped, sent = person["actions"]
    assert (sent["state"], sent["way"], sent["says"]) == ("sent", "chat", "within its limits")
    assert (dropped["state"], dropped["reason"], dropped["words"]) == ("dropped", "per_recipient", "1 within 24 hours")
    assert person["engagement"]["score"] > 0 and person["segments_note"] is None
    line = site.get("/v1/rules/ledger", rule="Thanks")["lines"][0]
    assert (line["who"], line["why"], line["text"]) == ("send", "because", "put version 1 into force")
    assert site.ask("DELETE", "/v1/rules/Thanks")["done"]
    assert "Unknown rule" in site.get("/v1/rules/Thanks", 404)["what"]


def test_suggestions_are_approved_declined_undone_and_settled(site: Site) -> None:
    """Nothing goes before somebody approves; what has gone is taken back; what nobody knows is settled; what was refused is listed."""
    site.put_rule("Asks")
    for who in ("d1", "d2"):
        site.world.hear("opened", f"{who}@x.example")
    site.rule_ends("Asks", suggested=2)
    two, one = site.get("/v1/actions", state="suggested", rule="Asks")["actions"]
    assert site.ask("POST", "/v1/actions/approve", json={"actions": [one["id"]], "why": "yes"})["done"]
    assert site.ask("POST", "/v1/actions/decline", json={"rule": "Asks", "up_to": two["number"]})["done"]
    site.rule_ends("Asks", sent=1, dropped=1)
    assert (site.world.went(one["recipient"]), site.world.went(two["recipient"])) == (["chat"], [])
    assert "is dropped" in site.ask("POST", "/v1/actions/approve", 409, json={"actions": [two["id"]]})["what"]
    undo = site.ask("POST", "/v1/actions/undo", 409, json={"actions": [one["id"]]})
    assert "cannot be taken back" in undo["what"]
    site.put_rule("Shown", limits={"autonomy": "act"}, action={"way": "site", "fields": {"title": "Hello"}})
    site.world.hear("opened", "d4@x.example")
    site.rule_ends("Shown", sent=1)
    (shown,) = site.get("/v1/actions", rule="Shown")["actions"]
    assert site.ask("POST", "/v1/actions/undo", json={"actions": [shown["id"]]})["done"]
    site.rule_ends("Shown", undone=1)
    site.put_rule("Lost", limits={"autonomy": "act"}, action={"way": "lost", "fields": {"text": "x"}})
    site.put_rule("Off", limits={"autonomy": "act"}, action={"way": "off", "fields": {"text": "x"}})
    site.world.hear("opened", "d3@x.example")
    site.rule_ends("Lost", unknown=1)
    site.rule_ends("Off", refused=1)
    (unknown,) = site.get("/v1/actions", state="unknown")["actions"]
    assert site.ask("POST", "/v1/actions/settle", json={"actions": [unknown["id"]], "went": True})["done"]
    site.rule_ends("Lost", sent=1)
    (refused,) = site.get("/v1/actions", state="refused")["actions"]
    assert refused["detail"] == "The workspace forbids it"
    assert "given up" in site.ask("POST", "/v1/actions/retry", 409, json={"actions": [refused["id"]]})["what"]
    for name in ("Asks", "Shown", "Lost", "Off"):
        site.ask("DELETE", f"/v1/rules/{name}")


def test_what_a_rule_earns_is_told_by_who_is_held_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """People are counted on their side once their time is over, with what they bought; without a holdout nothing is said."""
    site.put_rule("Worth", limits={"autonomy": "act", "holdout": 0.5}, action={"way": "site", "fields": {"title": "Hello"}})
    people = [f"w{n}@x.example" for n in range(16)]
    for who in people:
        site.world.hear("opened", who)
        site.world.hear("converted", who, value_micros=5_000_000, order_id=f"o {who}")
    until(lambda: sum(site.get("/v1/rules/Worth")["totals"].values()) == 16)
    found = site.get("/v1/rules/Worth")
    models.Rule.model_validate(found)
    out = found["totals"]["held_out"]
    assert found["earned"]["says"] == "not_yet" and found["earned"]["acted"] == 0 and "3 days" in found["earned"]["note"]
    monkeypatch.setattr("midflight.serve.ruling.earned_window_us", 0)
    with ruling.acted(site.world.config) as actions:
        since = dict(actions.db.execute("SELECT recipient, held_out FROM trial WHERE rule = 'Worth'"))
    counted = site.get("/v1/rules/Worth")["earned"]
    assert (counted["acted"], counted["held_out"]) == (16 - out, out) and sum(since.values()) == out
    bought = asking.bought(site.world.config.folder, [*people, "nobody@x.example"])
    assert [len(orders) for orders in bought.values()] == [1] * 16 + [0] and bought[people[0]][0][1] == 5.0
    site.put_rule("Worth", action={"way": "site", "fields": {"title": "Hello"}})
    assert site.get("/v1/rules/Worth")["earned"] is None
    site.ask("DELETE", "/v1/rules/Worth")


def test_the_kill_switch_holds_at_once_and_is_released_by_its_number(site: Site) -> None:
    """Held over the API, nothing goes; a release of an older turn is refused; the control: after the right one it goes."""
    site.put_rule("Held", limits={"autonomy": "act"})
    held = site.ask("POST", "/v1/hold", json={"why": "too many"})
    assert held["held"] and held["why"] == "too many" and site.get("/v1/rules")["held"] == held
    site.world.hear("opened", "e@x.example")
    site.rule_ends("Held", waiting=1)
    assert site.world.went("e@x.example") == []
    assert "turned again" in site.ask("POST", "/v1/release", 409, json={"number": held["number"] - 1})["what"]
    assert not site.ask("POST", "/v1/release", json={"number": held["number"]})["held"]
    site.rule_ends("Held", sent=1)
    site.ask("DELETE", "/v1/rules/Held")


def test_shadow_mode_does_nothing(site: Site) -> None:
    """A rule that observes says what it would have done; let act, it does, without a new version."""
    site.put_rule("Shadow", limits={"autonomy": "observe"})
    site.world.hear("opened", "f@x.example")
    site.rule_ends("Shadow", observed=1)
    assert site.world.went("f@x.example") == []
    assert site.ask("POST", "/v1/rules/Shadow/autonomy", json={"autonomy": "act"})["done"]
    site.world.hear("opened", "g@x.example")
    site.rule_ends("Shadow", observed=1, sent=1)
    assert site.get("/v1/rules/Shadow")["version"] == 1
    site.ask("DELETE", "/v1/rules/Shadow")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"when": {"kind": "evnt"}}, "evnt"),
        ({"action": {"way": "caht", "fields": {"text": "x"}}}, "Unknown way out"),
        ({"action": {"way": "chat", "fields": {"txet": "x"}}}, "txet"),
        ({"where": {"segment": "nobody"}}, "Unknown segment"),
        ({"limits": {"holdout": 2}}, "holdout"),
        ({"limit": {}}, "Unknown word `limit`"),
    ],
)
def test_a_rule_that_is_wrong_is_refused_before_the_log(site: Site, changes: dict, text: str) -> None:
    """What is wrong is said, and the next version is still the first."""
    status = 404 if "Unknown segment" in text or text == "evnt" else 400
    assert text in str(site.put_rule("Wrong", status, **changes))
    assert "Unknown rule" in site.get("/v1/rules/Wrong", 404)["what"]


def test_programs_that_may_only_read_change_nothing(site: Site) -> None:
    """Every way to change something needs the scope to send."""
    for method, path, body in (
        ("PUT", "/v1/segments/x", {"where": {"did": "clicked"}}),
        ("PUT", "/v1/rules/x", {"definition": RULE}),
        ("POST", "/v1/hold", {}),
        ("POST", "/v1/actions/approve", {"actions": ["x"]}),
        ("POST", "/v1/actions/undo", {"actions": ["x"]}),
    ):
        assert "scope" in site.ask(method, path, 403, "read", json=body)["what"]
    assert not site.get("/v1/hold")["held"]


def test_a_backtest_says_what_would_have_been(site: Site) -> None:
    """Beside the running system: firings, ends, hours; a wrong rule is told; two at once are not run."""
    site.world.hear("opened", "h@x.example")
    site.world.folded()
    body = {"rules": {"Tried": RULE | {"limits": {"autonomy": "act"}}, "Quiet": RULE | {"when": CLICKED_NOT_BOUGHT}}, "from": "1h"}
    found = site.ask("POST", "/v1/rules/backtest", scope="read", json=body)
    models.TriedRules.model_validate(found)
    quiet, tried = found["rules"]
    assert quiet["fired"] == 0 and tried["fired"] >= 1 and sum(tried["ends"].values()) == tried["fired"]
    assert "h@x.example" in {firing["recipient"] for firing in found["firings"]} and found["events"] > 0
    wrong = {"rules": {"Tried": RULE | {"when": {"kind": "event", "did": "flew"}}}}
    assert "Nobody does that" in site.ask("POST", "/v1/rules/backtest", 400, json=wrong)["what"]
    assert "Not a time" in site.ask("POST", "/v1/rules/backtest", 400, json=body | {"from": "yesterday"})["what"]
    with trying._one:
        assert site.ask("POST", "/v1/rules/backtest", 503, json=body)["code"] == "busy"
