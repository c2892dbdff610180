"""Campaigns through the API: drafts, lists, previews and every way to take over, over a real door and the real files."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import msgspec
import pytest
from door_client import post, running, talk
from played_conductor import Played, conducting
from sample_store import PAYLOADS, Stopped, serving

from midflight.act.audience import shown_max
from midflight.act.outbox import Outbox
from midflight.act.standing import Said
from midflight.config import config_from
from midflight.serve import models, ordering
from midflight.serve.api import create_app
from midflight.serve.shield import body_bytes_max, content_bytes_max, list_bytes_max

NOW_US = 1_790_000_031_000_000
CSV = "email,first_name,plan\n" + "".join(f"reader{n}@example.com,Reader {n},{'pro' if n % 3 else 'free'}\n" for n in range(100))
VARIANTS = [
    {"name": "A", "subject": "Two days left", "html": "<p>Hello {{ first_name }}</p>", "preheader": "for {{ plan }}", "from_name": "Shop"},
    {"name": "B", "subject": "Last chance, {{ first_name }}", "text": "Hello. {{ unsubscribe_url }}"},
]
DEFINITION = {"name": "spring", "channel": "main", "from_address": "news@shop.example", "variants": VARIANTS}


class Site:
    """A served console over a real door, with a conductor that is played."""

    def __init__(self, base: str, app, door, conductor: Played) -> None:
        self.base, self.app, self.door, self.conductor = base, app, door, conductor
        access = app.state.site.access
        self.secrets = {scope: access.make_token(scope, [scope])[1] for scope in ("read", "write", "send", "admin")}
        self.folder = app.state.site.config.folder

    def client(self, scope: str = "send") -> httpx.Client:
        headers = {"authorization": f"Bearer {self.secrets[scope]}"}
        return httpx.Client(base_url=self.base, headers=headers, timeout=30, trust_env=False)

    def get(self, path: str, status: int = 200, **params: object) -> dict:
        with self.client("read") as client:
            answer = client.get(path, params=params)
        assert answer.status_code == status, answer.text
        return answer.json()

    def post(self, path: str, body: object, status: int = 200) -> dict:
        with self.client() as client:
            answer = client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json() if status < 400 else answer.json()["error"]

    def upload(self, text: str | bytes = CSV, status: int = 200) -> dict:
        with self.client() as client:
            answer = client.post("/v1/lists", content=text, headers={"content-type": "text/csv"})
        assert answer.status_code == status, answer.text
        return answer.json() if status < 400 else answer.json()["error"]

    def draft(self, name: str, **changes: object) -> str:
        self.post("/v1/experiments", {"definition": definition(name=name, **changes), "list": self.upload()["list"]})
        return f"/v1/experiments/{quote(name, safe='')}"


def definition(**changes: object) -> dict:
    return copy.deepcopy(DEFINITION) | changes


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("sending")
    config = config_from(
        {
            "data": str(folder), "door": {"port": 0, "public_url": "https://hooks.example.com"}, "console": {"port": 8401},
            "channels": {"main": {"kind": "smtp"}, "second": {"kind": "smtp"}},
        }
    )  # fmt: skip
    with running(config) as door:
        config.door.port = door.port
        app = create_app(config, Stopped(NOW_US))
        with conducting(folder, NOW_US) as conductor, serving(app) as base:
            yield Site(base, app, door, conductor)


def test_nothing_is_there_before_anything_was_sent(tmp_path: Path) -> None:
    """Without the conductor's file, and with one that it has only begun, lists are empty and names unknown."""
    app = create_app(config_from({"data": str(tmp_path)}), Stopped(NOW_US))
    headers = {"authorization": f"Bearer {app.state.site.access.make_token('t', ['read'])[1]}"}
    with serving(app) as base, httpx.Client(base_url=base, headers=headers, trust_env=False) as client:
        for _ in range(2):
            assert client.get("/v1/experiments").json() == {"experiments": [], "next": None}
            assert client.get("/v1/ledger").json() == {"lines": [], "next": None}
            assert client.get("/v1/experiments/spring").status_code == 404
            assert client.get("/v1/ledger", params={"campaign": "spring"}).status_code == 404
            Outbox(tmp_path / "outbox.db").close()


# -- lists ---------------------------------------------------------------------------------------------------------------


def test_a_list_says_what_became_of_its_rows(site: Site) -> None:
    """Rows taken and left out are counted, with lines and reasons; the same list has the same name, and the file is what was sent."""
    text = "email;first_name\nada@example.com;Ada\nADA@Example.com;Again\nno address;X\nbea@example.com\ncay@example.com;Cay\n"
    found = site.upload(text)
    assert (found["rows"], found["taken"], found["columns"]) == (5, 2, ["first_name"])
    assert found["left_out"] == {"the address stands twice": 1, "no address": 1, "1 cells in place of 2": 1}
    assert {"line": 3, "reason": "the address stands twice"} in found["examples"]
    assert site.upload(text)["list"] == found["list"]
    assert (site.folder / "audiences" / found["list"]).read_text() == text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no column of addresses"),
        ("name,first\nx,y\n", "no column of addresses"),
        ("email\n", "nobody in it"),
        ("email\nx\ny\nada@example.com\n", "more rows are broken"),
        (b"email\n\xff\xfe@x.example\n", "not UTF-8"),
        ("email,a,a\nx@y.example,1,2\n", "no name of its own"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(site: Site, text: str | bytes, what: str) -> None:
    """What is wrong is said of the list, not of a file of ours, and nothing is kept."""
    site.upload()
    before = len(list((site.folder / "audiences").iterdir()))
    error = site.upload(text, status=400)
    assert what in error["what"] and error["what"].startswith("The list")
    assert len(list((site.folder / "audiences").iterdir())) == before


def test_a_list_of_many_faults_is_told_in_short(site: Site) -> None:
    """However many rows are left out, so many examples come back and no more."""
    text = "email\n" + "".join(f"p{n}@example.com\nx\n" for n in range(500)) + "last@example.com\n"
    found = site.upload(text)
    assert (found["left_out"]["no address"], len(found["examples"])) == (500, shown_max)


def test_only_lists_and_contents_may_be_long(site: Site) -> None:
    """A list longer than any other body is taken; other bodies of that length are 413; nobody without a token gets it read."""
    long = "email,note\n" + "".join(f"p{n}@example.com,{'x' * 100}\n" for n in range(body_bytes_max // 100))
    assert site.upload(long)["taken"] == body_bytes_max // 100
    with site.client() as client:
        assert client.post("/v1/dead/replay", content=long).status_code == 413
        assert client.post("/v1/experiments/x/pin", content=long).status_code == 413
    # Only the head is sent: who is refused has the answer before the body.
    port = int(site.base.rsplit(":", 1)[1])

    def answer(path: str, length: int, token: str = "") -> int:
        headers = {"Content-Length": str(length), "Content-Type": "application/json", "Authorization": token and f"Bearer {token}" or None}
        return talk(port, post(path, b"", headers), timeout_s=2).status

    assert answer("/v1/preview", content_bytes_max + 1, site.secrets["send"]) == 413
    assert answer("/v1/lists", list_bytes_max + 1, site.secrets["send"]) == 413
    for path in ("/v1/lists", "/v1/experiments", "/v1/preview", "/v1/experiments/x/variants"):
        assert answer(path, content_bytes_max) == 401, path
        assert answer(path, content_bytes_max, site.secrets["read"]) == 403, path
    with pytest.raises(TimeoutError):
        answer("/v1/preview", content_bytes_max, site.secrets["send"])


# -- drafts --------------------------------------------------------------------------------------------------------------


def test_a_draft_is_put_down_with_its_people(site: Site) -> None:
    """The definition, the list and who wanted it arrive; the answer comes when it is done. It can be changed while it is a draft."""
    listed = site.upload()["list"]
    wanted = {"definition": definition(name="draft one", holdout=0.2), "list": listed}
    answer = site.post("/v1/experiments", wanted)
    assert (answer["done"], answer["note"], answer["warnings"]) == (True, None, [])
    found = site.get("/v1/experiments/draft%20one")
    assert (found["state"], found["channel"], found["goal"]) == ("draft", "main", "click")
    assert found["people"] + found["held"] == 100 and found["held"] > 5
    assert found["definition"]["variants"][1]["subject"] == "Last chance, {{ first_name }}"
    assert found["definition"]["audience"]["csv"] == listed
    assert [change["who"] for change in found["changes"]] == ["send"]
    site.post("/v1/experiments", {"definition": definition(name="draft one", holdout=0.0), "list": listed})
    found = site.get("/v1/experiments/draft%20one")
    assert (found["people"], found["held"], len(found["changes"])) == (100, 0, 2)
    site.post("/v1/experiments/draft%20one/state", {"to": "stopped", "why": "enough"})
    error = site.post("/v1/experiments", wanted, 409)
    assert error["code"] == "not_now" and "already" in error["what"]


BAD = [
    ({"definition": definition(channel="mian")}, 400, "Did you mean `main`?", "$.channel"),
    ({"definition": definition(colour="red")}, 400, "colour", "$.colour"),
    ({"definition": definition(waves={"hours": -1})}, 400, "$.waves.hours", None),
    ({"definition": definition(variants=[{**VARIANTS[0], "subject": "{{ frist_name }}"}])}, 400, "first_name", "variant A.subject:1"),
    ({"definition": definition(variants=[{**VARIANTS[0], "html": "{{ x "}])}, 400, "", "variant A.html"),
    ({"definition": definition(audience={"api": True})}, 400, "audience", "$.audience"),
    ({"definition": definition(policy={"kind": ["x"]})}, 400, "policy", "$.policy.kind"),
    ({"definition": definition(), "list": "0" * 64 + ".csv"}, 404, "no such list", None),
    ({"definition": definition(), "list": "../access.db"}, 404, "no such list", None),
    ({"definition": definition(audience={"csv": "x"}), "list": ""}, 400, "list is missing", "list"),
    ({"definition": []}, 400, "object", "definition"),
    ({"definitoin": {}}, 400, "Did you mean `definition`", "definitoin"),
    ([], 400, "", "body"),
]


@pytest.mark.parametrize(("body", "status", "text", "where"), BAD)
def test_what_is_wrong_is_said_with_its_place(site: Site, body: object, status: int, text: str, where: str | None) -> None:
    """A draft that cannot be sent as it is, is refused before any order; the error has the place and the nearest name."""
    if isinstance(body, dict) and "list" not in body and "definition" in body:
        body = {**body, "list": site.upload()["list"]}
    before = len(site.conductor.orders)
    error = site.post("/v1/experiments", body, status)
    assert text in str(error)
    if where:
        assert error["where"].startswith(where), error
    assert len(site.conductor.orders) == before


def test_a_body_that_is_no_json_is_refused(site: Site) -> None:
    """Broken, deep and wrongly labelled bodies are 400 in the one shape."""
    with site.client() as client:
        for content, kind in ((b"{", "application/json"), (b'{"definition":' + b"[" * 100_000, "application/json"), (b"{}", "text/plain")):
            answer = client.post("/v1/experiments", content=content, headers={"content-type": kind})
            assert (answer.status_code, answer.json()["ok"]) == (400, False)
        assert client.post("/v1/lists", content=CSV, headers={"content-type": "text/plain"}).status_code == 400


def test_an_opens_goal_is_warned_of(site: Site) -> None:
    """The warnings of a definition come with the answer."""
    body = {"definition": definition(name="by opens", goal="open"), "list": site.upload()["list"]}
    assert "better by clicks" in site.post("/v1/experiments", body)["warnings"][0]
    assert "better by clicks" in site.post("/v1/preview", body)["warnings"][0]


# -- previews ------------------------------------------------------------------------------------------------------------


def test_a_preview_is_what_one_recipient_gets(site: Site) -> None:
    """Each variant is filled in for the list's first or for the one asked for; the preheader stands beside the HTML."""
    body = {"definition": definition(), "list": site.upload()["list"]}
    found = site.post("/v1/preview", body)
    assert found["recipient"] == "reader0@example.com"
    first, second = found["variants"]
    assert (first["subject"], first["from_name"], first["preheader"]) == ("Two days left", "Shop", "for free")
    assert "<p>Hello Reader 0</p>" in first["html"] and "for free" not in first["html"]
    assert "https://hooks.example.com/u/preview" in first["html"] and "Hello Reader 0" in first["text"]
    assert (second["subject"], second["html"], second["preheader"]) == ("Last chance, Reader 0", "", "")
    assert first["variables"] == ["first_name", "plan"]
    later = site.post("/v1/preview", body | {"recipient": "READER77@example.com"})
    assert later["variants"][1]["subject"] == "Last chance, Reader 77", "somebody behind the people that are kept in memory"
    assert site.post("/v1/preview", body | {"recipient": "nobody@example.com"}, 404)["where"] == "recipient"


def test_a_preview_escapes_and_reports(site: Site) -> None:
    """Values are escaped in HTML; a subject that is empty for somebody is an error with its place."""
    text = f'email,first_name,plan\nada@example.com,"{PAYLOADS[0]}",\n'
    body = {"definition": definition(), "list": site.upload(text)["list"]}
    assert "&lt;script&gt;" in site.post("/v1/preview", body)["variants"][0]["html"]
    empty = definition(variants=[{**VARIANTS[0], "subject": "{% if plan == 'x' %}{{ plan }}{% endif %}"}])
    error = site.post("/v1/preview", body | {"definition": empty}, 400)
    assert error["where"].startswith("variant A")


# -- taking over ---------------------------------------------------------------------------------------------------------


def test_a_campaign_is_taken_over(site: Site) -> None:
    """Start, pin, drop, another variant, a test, pause, resume, stop: each is done in order, with who and why, and is in the ledger."""
    url = site.draft("take over")
    site.post(f"{url}/state", {"to": "sending", "why": "it is time"})
    site.conductor.wave("take over", [10, 10], [0.5, 0.5], (2, 2, 3, 4))
    site.conductor.stand("take over", said=Said(kind="winner", text="A is the winner.", arms=["A"]))
    site.post(f"{url}/pin", {"variant": "B", "why": "because"})
    assert [v["pinned"] for v in site.get(url)["variants"]] == [False, True]
    site.post(f"{url}/pin", {})
    third = {"name": "C", "subject": "Third, {{ first_name }}", "text": "x {{ unsubscribe_url }}"}
    site.post(f"{url}/variants", {"variant": third})
    site.post(f"{url}/drop", {"variant": "A"})
    assert [v["live"] for v in site.get(url)["variants"]] == [False, True, True]
    site.post(f"{url}/test", {"to": "me@shop.example", "variant": "C", "recipient": "reader1@example.com"})
    assert site.conductor.tests[-1].to == "me@shop.example"
    for state in ("paused", "sending", "stopped"):
        site.post(f"{url}/state", {"to": state})
    found = site.get(url)
    assert (found["state"], found["taken"], found["left"], found["claim"]) == ("stopped", 20, 80, "A is the winner.")
    assert found["messages"] == {"planned": 0, "called": 0, "sent": 10, "refused": 5, "unknown": 5, "skipped": 0}
    assert {(r["state"], r["code"], r["count"]) for r in found["reasons"]} == {("refused", "550", 5), ("unknown", "", 5)}
    assert (found["waves"][0]["recipients"], found["waves"][0]["shares"]) == (20, [0.5, 0.5])
    assert found["waves"][0]["at"] == "2026-09-21T14:13:51Z" and found["standing"]["projected"]["ends_at"]
    what = [change["what"] for change in found["changes"]]
    assert what == [
        "added", "sending", "pinned B", "gave the waves back to the policy", "added C", "dropped A", "paused", "sending", "stopped",
    ]  # fmt: skip
    assert found["changes"][1]["why"] == "it is time"
    error = site.post(f"{url}/state", {"to": "sending"}, 409)
    assert error["code"] == "not_now" and "stopped" in error["what"]
    lines = site.get("/v1/ledger", campaign="take over")["lines"]
    assert [line["kind"] for line in lines].count("wave") == 1
    assert next(line for line in lines if line["kind"] == "wave")["grounds"]["policy"] == "finite_list"


def test_unknown_names_offer_the_nearest(site: Site) -> None:
    """Campaigns and variants that nobody knows are 404 with the nearest name, before any order."""
    url = site.draft("nearest")
    before = len(site.conductor.orders)
    for path, body in (
        ("state", {"to": "paused"}),
        ("pin", {}),
        ("drop", {"variant": "A"}),
        ("test", {"to": "a@b.example", "variant": "A"}),
    ):
        assert "`nearest`" in site.post(f"/v1/experiments/nearset/{path}", body, 404)["todo"]
    assert "`nearest`" in site.get("/v1/experiments/nearset", 404)["error"]["todo"]
    for path in ("pin", "drop"):
        assert "Known: `A`, `B`" in site.post(f"{url}/{path}", {"variant": "Zebra"}, 404)["todo"]
    assert site.post(f"{url}/state", {"to": "done"}, 400)["where"] == "to"
    bad = {"name": "C", "subject": "{{ nmae }}", "text": "x"}
    assert site.post(f"{url}/variants", {"variant": bad}, 400)["where"].startswith("variant C.subject")
    assert len(site.conductor.orders) == before


@pytest.mark.parametrize("name", ["a/b", "new", "what? 100%", "état/état", "x/state", *PAYLOADS[:2]])
def test_names_of_any_kind_are_reached(site: Site, name: str) -> None:
    """Slashes, percent signs, markup and the words of our own paths are names like others."""
    url = site.draft(name)
    site.post(f"{url}/state", {"to": "scheduled"})
    found = site.get(url)
    assert (found["name"], found["state"]) == (name, "scheduled")
    assert site.get("/v1/ledger", campaign=name)["lines"][0]["campaign"] == name


def test_orders_wait_for_a_conductor_that_is_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a conductor the answer is 202; the order is in the log and is done once there is one again."""
    monkeypatch.setattr(ordering, "wait_s", 0.3)
    url = site.draft("away")
    site.conductor.away.set()
    try:
        answer = site.post(f"{url}/state", {"to": "sending"}, 202)
        assert (answer["done"], "when the conductor runs" in answer["note"]) == (False, True)
        assert site.get(url)["state"] == "draft"
    finally:
        site.conductor.away.clear()
    site.conductor.look()
    assert site.get(url)["state"] == "sending"


def test_without_a_door_nothing_is_taken(site: Site) -> None:
    """Where the log cannot be written the answer is 503, and nothing is said to be done."""
    url = site.draft("no door")
    config = site.app.state.site.config
    port, config.door.port = config.door.port, 9
    try:
        assert site.post(f"{url}/state", {"to": "sending"}, 503)["code"] == "door_away"
    finally:
        config.door.port = port


def test_lists_come_in_pages(site: Site) -> None:
    """Pages of campaigns and of the ledger join without gap or repetition."""
    for n in range(3):
        site.draft(f"page {n}")
    for path, key, mark in (("/v1/experiments", "experiments", "name"), ("/v1/ledger", "lines", "number")):
        whole = [row[mark] for row in site.get(path, limit=200)[key]]
        got, before = [], 2**62
        while before:
            page = site.get(path, limit=2, before=before)
            got += [row[mark] for row in page[key]]
            before = page["next"]
        assert got == whole and len(set(got)) == len(got) >= 3


def test_only_senders_send(site: Site) -> None:
    """Readers and writers look and change nothing; a console session changes nothing through the API; senders do."""
    url = site.draft("scopes")
    secret = site.app.state.site.access.open_session("ada")
    for scope in ("read", "write"):
        with site.client(scope) as client:
            assert client.get(url).status_code == 200
            assert client.post(f"{url}/state", json={"to": "sending"}).status_code == 403
            assert client.post("/v1/lists", content=CSV, headers={"content-type": "text/csv"}).status_code == 403
    session = {"cookie": f"midflight_session={secret}", "sec-fetch-site": "same-origin", "origin": site.base}
    assert httpx.post(f"{site.base}{url}/state", json={"to": "sending"}, headers=session, trust_env=False).status_code == 401
    assert site.get(url)["state"] == "draft"
    with site.client("admin") as client:
        assert client.post(f"{url}/state", json={"to": "sending"}).status_code == 200
    assert site.get(url)["changes"][-1]["who"] == "admin"


def test_answers_have_the_shape_that_is_described(site: Site) -> None:
    """What is answered about a campaign in full fits the models of the description, which allow nothing else."""
    url = site.draft("shape", holdout=0.1)
    site.post(f"{url}/state", {"to": "sending"})
    site.conductor.wave("shape", [5, 5], [0.5, 0.5], (2, 3))
    site.conductor.stand("shape")
    models.Experiment.model_validate_json(msgspec.json.encode(site.get(url)))
    models.Experiments.model_validate_json(msgspec.json.encode(site.get("/v1/experiments")))
    models.Ledger.model_validate_json(msgspec.json.encode(site.get("/v1/ledger")))
