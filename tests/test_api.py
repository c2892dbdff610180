"""The API answers the right numbers, to those who may ask, and says so where it cannot."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, urlsplit

import apsw
import httpx
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_store import PLANS_OF_CAMPAIGNS, Stopped, fill, sample_config, serving
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

from midflight.kit.clock import VirtualClock
from midflight.kit.counters import Counters
from midflight.kit.errors import MidflightError
from midflight.log.record import Record
from midflight.metrics import REGISTRY, Sums
from midflight.metrics.metric import quantile
from midflight.serve.api import create_app, openapi, raw_bytes_max, webhook_url
from midflight.serve.auth import VERSION as ACCESS_VERSION
from midflight.serve.auth import (
    Access,
    TooManyTries,
    Unkept,
    WrongCredentials,
    address_tries_max,
    demo_user,
    name_tries_max,
    name_try_again_s,
    setup_url,
    tries_max,
)
from midflight.serve.live import Crowded, Hub, readers_max, waiting_max
from midflight.store.read import Query, Store, Unknown, WrongQuery, window_of
from midflight.stream.measures import DELAY_EDGES_S, FRESHNESS_EDGES_MS, MEASURES

NOW_US = 1_790_000_000_000_000 // 60_000_000 * 60_000_000 + 31_000_000
MINUTE = NOW_US // 60_000_000
SPRING = PLANS_OF_CAMPAIGNS[0].name


class Site:
    """A served console with a filled store, and clients with each scope."""

    def __init__(self, folder: Path, base: str, app) -> None:
        self.folder, self.base, self.app = folder, base, app
        access = app.state.site.access
        self.secrets = {scope: access.make_token(scope, [scope])[1] for scope in ("read", "write", "send", "admin")}

    def client(self, scope: str | None = "read") -> httpx.Client:
        headers = {"authorization": f"Bearer {self.secrets[scope]}"} if scope else {}
        return httpx.Client(base_url=self.base, headers=headers, timeout=20, trust_env=False)

    def get(self, path: str, **params) -> dict:
        with self.client() as client:
            answer = client.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @cache  # noqa: B019
    def rows(self, table: str) -> list[tuple]:
        db = apsw.Connection(str(self.folder / "store.db"), flags=apsw.SQLITE_OPEN_READONLY)
        found = db.execute(f"SELECT * FROM {table}").fetchall()
        db.close()
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("data")
    config = sample_config(folder)
    fill(config, NOW_US, scale=0.04, old=120)
    app = create_app(
        config, Stopped(NOW_US), timeline=lambda recipient: [{"kind": "opened", "recipient": recipient, "at": "2026-09-21T10:00:00Z"}]
    )
    with serving(app) as base:
        yield Site(folder, base, app)


# -- numbers -------------------------------------------------------------------------------------------------------------

DIMENSIONS = ("campaign", "variant", "wave", "provider", "source", "plan", "age", "minute", "hour")


def keys_of(cell: tuple, names: dict) -> dict:
    """Return a cell's dimensions by name, worked out without the code under test."""
    campaign, minute, variant, wave, provider, source, segment = cell[:7]
    ids = {
        "campaign": ("campaign", campaign), "variant": ("variant", variant), "wave": ("wave", wave), "provider": ("provider", provider),
        "source": ("source", source), "plan": ("attribute:plan", segment % 256), "age": ("attribute:age", segment // 256 % 256),
    }  # fmt: skip
    stamp = time.strftime("%Y-%m-%dT%H:%M:00Z", time.gmtime(minute * 60))
    hour = time.strftime("%Y-%m-%dT%H:00:00Z", time.gmtime(minute * 60))
    return {key: names.get(id_, "") for key, id_ in ids.items()} | {"minute": stamp, "hour": hour}


@cache
def told(site: Site) -> list[tuple[int, dict, tuple]]:
    """Return every cell as its minute, its dimensions by name, and its measures."""
    names = {(kind, id_): name for kind, id_, name in site.rows("names")}
    return [(cell[1], keys_of(cell, names), cell[7:]) for cell in site.rows("cells")]


def expected(site: Site, by: tuple[str, ...], where: list[tuple[str, str]], first: int, last: int) -> dict:
    """Add up the cells one by one."""
    wanted: dict[str, set[str]] = {}
    for dimension, name in where:
        wanted.setdefault(dimension, set()).add(name)
    out: dict[tuple, list[int]] = {}
    for minute, keys, measures in told(site):
        if first <= minute <= last and all(keys[d] in names for d, names in wanted.items()):
            sums = out.setdefault(tuple(keys[d] for d in by), [0] * len(MEASURES))
            for i, n in enumerate(measures):
                sums[i] += n
    return out


WINDOWS = {"1m": 1, "5m": 5, "15m": 15, "1h": 60, "24h": 1440, "7d": 10080, "all": 10**8}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    by=st.lists(st.sampled_from(DIMENSIONS), unique=True, max_size=3).map(tuple),
    window=st.sampled_from(list(WINDOWS)),
    machines=st.sampled_from(["with", "without"]),
    where=st.sampled_from([[], [("variant", "B")], [("provider", "gmail"), ("provider", "yahoo")], [("plan", "pro"), ("age", "60+")]]),
    campaign=st.sampled_from([None, SPRING]),
)
def test_numbers_are_the_cells_added_up(site: Site, by, window, machines, where, campaign) -> None:
    """Any dimensions, window, conditions and machine switch: every measure and metric is that of a plain addition."""
    params = {"by": ",".join(by), "window": window, "machines": machines, "where": [f"{k}:{n}" for k, n in where], "limit": 10_000}
    answer = site.get("/v1/numbers", **params | ({"campaign": campaign} if campaign else {}))
    conditions = where + ([("campaign", campaign)] if campaign else [])
    wanted = expected(site, by, conditions, MINUTE - WINDOWS[window] + 1, MINUTE)
    got = {tuple(row[d] for d in by): row for row in answer["rows"]}
    assert len(got) == len(answer["rows"])
    assert set(got) - set(wanted) == set()
    for key, sums in wanted.items():
        measures = dict(zip(MEASURES, sums, strict=True))
        row = got[key]
        assert {m: row[m] for m in MEASURES} == measures
        for name, metric in REGISTRY.all().items():
            if not metric.delay:
                value = metric.compute(Sums(measures=measures, machines=machines == "with"))
                assert row[name] == pytest.approx(value.value), name
                assert row["intervals"].get(name) == (None if value.low is None else pytest.approx([value.low, value.high])), name
    assert sum(row["delivered"] for row in answer["rows"]) == answer["total"]["delivered"]
    assert answer["machine_share"] == pytest.approx(answer["total"]["machine_share"])


def test_the_addition_tells_a_window_that_is_one_minute_off(site: Site) -> None:
    """The control of the test above: a window that ends a minute early gives other sums."""
    right = expected(site, (), [], MINUTE - 14, MINUTE)
    wrong = expected(site, (), [], MINUTE - 15, MINUTE - 1)
    assert right != wrong
    assert site.get("/v1/numbers", window="15m")["total"]["delivered"] == right[()][MEASURES.index("delivered")]


def test_every_answer_says_how_fresh_it_is(site: Site) -> None:
    """Freshness of the last minute with data, the log's place and the machine share come with every kind of number."""
    buckets = {bucket: n for minute, bucket, n in site.rows("freshness") if minute == MINUTE}
    assert sum(buckets.values()) == 400
    for path in ("/v1/numbers", "/v1/series", "/v1/delays"):
        answer = site.get(path, campaign=SPRING, window="1h")
        assert answer["freshness"]["log_position"] == 184_203
        assert answer["freshness"]["p50_ms"] < answer["freshness"]["p99_ms"] < 1000
        assert 0 < answer["machine_share"] < 1
        assert answer["window"]["name"] == "1h"
    whole = [buckets.get(i, 0) for i in range(len(FRESHNESS_EDGES_MS) + 1)]
    assert answer["freshness"]["p99_ms"] == quantile(whole, 0.99, FRESHNESS_EDGES_MS)


def test_machines_change_every_number_they_touch(site: Site) -> None:
    """The switch changes opens and clicks and leaves deliveries and money."""
    people = site.get("/v1/numbers", campaign=SPRING)["total"]
    everybody = site.get("/v1/numbers", campaign=SPRING, machines="with")["total"]
    for name in ("open_rate", "click_rate", "click_to_open"):
        assert people[name] != everybody[name], name
    for name in ("delivered", "bounce_rate", "revenue_per_thousand", "machine_share", "conversion_rate"):
        assert people[name] == everybody[name], name


def test_a_series_adds_up_to_its_number(site: Site) -> None:
    """Every minute of the window has a point, and the points of a count sum to the count."""
    series = site.get("/v1/series", campaign=SPRING, window="1h", by="variant", measures="opened_human", metrics="open_rate")
    rows = site.get("/v1/numbers", campaign=SPRING, window="1h", by="variant")["rows"]
    assert len(series["times"]) == 60
    assert series["step_minutes"] == 1
    sums = {line["variant"]: sum(line["values"]["opened_human"]) for line in series["series"]}
    assert sums == {row["variant"]: row["opened_human"] for row in rows}
    assert all(len(line["values"]["open_rate"]) == 60 for line in series["series"])
    assert site.get("/v1/series", campaign=SPRING, window="24h")["step_minutes"] == 60


def test_delays_are_the_buckets_added_up(site: Site) -> None:
    """The curve and quantiles of each variant are those of its buckets; click_to_conversion within a time uses the same."""
    names = {id_: name for kind, id_, name in site.rows("names") if kind == "variant"}
    spring = next(id_ for kind, id_, name in site.rows("names") if (kind, name) == ("campaign", SPRING))
    wanted: dict[str, list[int]] = {}
    for row in site.rows("delays"):
        if row[0] == spring and row[7] == 2:
            wanted.setdefault(names[row[2]], [0] * (len(DELAY_EDGES_S) + 1))[row[8]] += row[9]
    answer = site.get("/v1/delays", campaign=SPRING, by="variant", kind="conversion")
    assert {row["variant"]: row["n"] for row in answer["rows"]} == {name: sum(b) for name, b in wanted.items()}
    for row in answer["rows"]:
        assert row["p50_s"] == quantile(wanted[row["variant"]], 0.5)
        assert row["curve"][-1][1] == pytest.approx(1 - wanted[row["variant"]][-1] / row["n"])
    whole = site.get("/v1/numbers", campaign=SPRING, by="variant", metrics="click_to_conversion")["rows"]
    short = site.get("/v1/numbers", campaign=SPRING, by="variant", metrics="click_to_conversion", within=20)
    assert short["within_minutes"] == 20
    half = {row["variant"]: row for row in short["rows"]}
    for row in whole:
        buckets = wanted.get(row["variant"], [0] * (len(DELAY_EDGES_S) + 1))
        assert row["click_to_conversion"] == pytest.approx(sum(buckets) / row["clicked_human"])
        assert half[row["variant"]]["click_to_conversion"] == pytest.approx(
            sum(buckets[: DELAY_EDGES_S.index(1200) + 1]) / row["clicked_human"]
        )


def test_who_waits_is_told_page_by_page(site: Site) -> None:
    """Everybody who clicked long enough ago without converting is told once, the latest first, whatever the page size."""
    spring = next(id_ for kind, id_, name in site.rows("names") if (kind, name) == ("campaign", SPRING))
    until = NOW_US - 30 * 60_000_000
    wanted = sorted(row[2] for row in site.rows("clickers") if row[0] == spring and row[6] == 0 and row[5] <= until)
    got, after = [], None
    while True:
        page = site.get("/v1/waiting", campaign=SPRING, minutes=30, limit=7, **({"after": after} if after else {}))
        assert page["count"] == len(wanted)
        got += page["rows"]
        after = page["next"]
        if after is None:
            break
    assert sorted(row["recipient"] for row in got) == wanted
    assert [row["clicked_at"] for row in got] == sorted((row["clicked_at"] for row in got), reverse=True)
    assert len(wanted) > 14, "too few to prove paging"


def test_campaigns_come_last_active_first_page_by_page(site: Site) -> None:
    """All campaigns, old ones too, each once; the newest activity first; a part of the name finds them."""
    got, after = [], None
    while True:
        page = site.get("/v1/campaigns", limit=50, **({"after": after} if after else {}))
        got += page["campaigns"]
        after = page["next"]
        if after is None:
            break
    assert len(got) == len(PLANS_OF_CAMPAIGNS) + 120 == len({row["campaign"] for row in got})
    assert [row["last_at"] for row in got] == sorted((row["last_at"] for row in got), reverse=True)
    assert [row["campaign"] for row in site.get("/v1/campaigns", search="spring")["campaigns"]] == [SPRING]
    assert site.get("/v1/campaigns", search="100%_")["campaigns"] == []
    one = site.get(f"/v1/campaigns/{quote(SPRING, safe='')}")
    numbers = site.get("/v1/numbers", campaign=SPRING)["total"]
    assert one["measures"] == {m: numbers[m] for m in MEASURES}
    assert {k: v for k, v in one["metrics"].items() if v is not None} == {k: numbers[k] for k, v in one["metrics"].items() if v is not None}
    assert set(one["dimensions"]["variant"]) >= {"A", "B", "C"}


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/v1/numbers?campaing=x", 400, "Did you mean `campaign`?"),
        ("/v1/numbers?by=varient", 400, "Did you mean `variant`?"),
        ("/v1/numbers?metrics=open_rat", 400, "Did you mean `open_rate`?"),
        ("/v1/numbers?measures=delivred", 400, "Did you mean `delivered`?"),
        ("/v1/numbers?campaign=Spring", 404, f"Did you mean `{SPRING}`?"),
        ("/v1/numbers?where=variant:plan", 400, "Did you mean `plain`?"),
        ("/v1/numbers?where=variant", 400, "dimension:name"),
        ("/v1/numbers?window=3x", 400, "`1m` to `366d`"),
        ("/v1/numbers?window=0m", 400, "`1m` to `366d`"),
        ("/v1/numbers?from=2026-01-02&to=2026-01-01", 400, "before it starts"),
        ("/v1/numbers?from=yesterday", 400, "ISO 8601"),
        ("/v1/numbers?machines=some", 400, "with"),
        ("/v1/numbers?limit=x", 400, "limit"),
        ("/v1/numbers?by=variant,variant", 400, "one twice"),
        ("/v1/delays?kind=opens", 400, "Did you mean `open`?"),
        ("/v1/waiting", 400, "campaign"),
        ("/v1/waiting?campaign=nobody", 404, "Unknown campaign"),
        ("/v1/campaigns?after=x", 400, "`next`"),
        ("/v1/campaigns/Sprin", 404, "Did you mean"),
        ("/v1/nothing", 404, "openapi.json"),
        ("/health?x=1", 400, "Unknown parameter"),
    ],
)
def test_a_wrong_question_is_told_what_is_wrong(site: Site, path: str, status: int, says: str) -> None:
    """Every error has the one shape, the right status, and words that help."""
    with site.client() as client:
        answer = client.get(path)
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["ok"] is False
    assert body["status"] == status
    assert says in json.dumps(body["error"], ensure_ascii=False)


def test_windows_are_calendar_minutes_with_the_running_one() -> None:
    """`5m` at 10:07:31 is 10:03 to 10:07; from and to are half open; `all` has no bounds."""
    at = 1_700_000_000 // 60 * 60
    now_us = (at + 31) * 1_000_000
    assert (window_of("5m", now_us).first, window_of("5m", now_us).last) == (at // 60 - 4, at // 60)
    assert window_of("2h", now_us).first == at // 60 - 119
    between = window_of(None, now_us, "2023-11-14T20:00", "2023-11-14T21:00:00Z")
    assert (between.last - between.first, between.first * 60) == (59, 1_699_992_000)
    assert not window_of("all", now_us).bounded
    with pytest.raises(WrongQuery):
        window_of("5m", now_us, "2023-11-14", None)


def test_now_is_never_before_the_log(tmp_path: Path) -> None:
    """Where this machine's clock is behind the log's, windows end where the log is."""
    config = sample_config(tmp_path)
    fill(config, NOW_US, scale=0.01)
    store = Store(config, Stopped(NOW_US - 7 * 86_400 * 1_000_000))
    with store.view() as view:
        assert view.now_us == NOW_US
        assert view.numbers(Query(window=window_of("15m", view.now_us)))["total"]["opens"] > 0
    store.close()


def test_a_view_sees_one_moment(tmp_path: Path) -> None:
    """What the engine commits while an answer is made is not in that answer, and is in the next."""
    config = sample_config(tmp_path)
    fill(config, NOW_US, scale=0.01)
    store = Store(config, Stopped(NOW_US))
    writer = apsw.Connection(str(tmp_path / "store.db"))
    query = Query(window=window_of("all", NOW_US), measures=("delivered",), metrics=())
    with store.view() as view:
        before = view.numbers(query)["total"]["delivered"]
        writer.execute("UPDATE campaigns SET delivered = delivered + 1000; UPDATE meta SET value = 9 WHERE key = 'position'")
        assert view.numbers(query)["total"]["delivered"] == before
    with store.view() as view:
        assert view.numbers(query)["total"]["delivered"] >= before + 1000
        assert view.position == 9
    writer.close()
    store.close()


def test_an_absent_empty_or_replaced_store_is_no_error(tmp_path: Path) -> None:
    """Without a file, with an empty one and with another one in its place the same reader answers what is there."""
    config = sample_config(tmp_path / "data")
    store = Store(config, Stopped(NOW_US))
    query = Query(window=window_of("1h", NOW_US))

    def delivered() -> int:
        with store.view() as view:
            return view.numbers(query)["total"]["delivered"]

    assert delivered() == 0
    config.folder.mkdir()
    (config.folder / "store.db").touch()
    assert delivered() == 0
    (config.folder / "store.db").unlink()
    fill(config, NOW_US, scale=0.01)
    small = delivered()
    assert small > 0
    for file in config.folder.glob("store.db*"):
        file.unlink()
    fill(config, NOW_US, scale=0.03)
    assert delivered() > small
    store.close()


def test_an_attribute_may_be_called_like_a_column(tmp_path: Path) -> None:
    """An attribute named `minute` or `opened` is `attribute:NAME` in queries and answers; nothing is shadowed."""
    config = sample_config(tmp_path)
    fill(config, NOW_US, scale=0.01)
    config.attributes = ["plan", "opened"]
    db = apsw.Connection(str(tmp_path / "store.db"))
    db.execute("UPDATE names SET kind = 'attribute:opened' WHERE kind = 'attribute:age'")
    db.close()
    store = Store(config, Stopped(NOW_US))
    with store.view() as view:
        rows = view.numbers(Query(window=window_of("all", NOW_US), by=("attribute:opened",)))["rows"]
        assert {row["attribute:opened"] for row in rows} >= {"<25", "60+"}
        assert all(isinstance(row["opened"], int) for row in rows)
        with pytest.raises(Unknown):
            view.numbers(Query(window=window_of("all", NOW_US), by=("opened",)))
    store.close()


# -- sources, dead letters, people ---------------------------------------------------------------------------------------


def test_sources_tell_their_state_and_no_secret(site: Site) -> None:
    """Whether a secret is set, how many, until when; never a secret, in no answer of the API."""
    rows = {row["source"]: row for row in site.get("/v1/sources")["sources"]}
    assert rows["sendgrid"]["secrets"] == {
        "state": "set",
        "signing": 2,
        "basic_auth": 0,
        "bearer": 0,
        "headers": 0,
        "expires": ["2031-01-01T00:00:00Z"],
    }
    assert rows["staging"]["secrets"]["state"] == "unsigned"
    assert rows["sendgrid"]["webhook_url"] == "https://hooks.example.com/in/sendgrid"
    assert rows["transactional"]["dead"] == 1
    assert rows["sendgrid"]["last_day"]["events"] == sum(row[3] for row in site.rows("receipts") if row[0] == "sendgrid")
    assert "not-shown" in json.dumps(site.app.state.site.config.sources), "the control: the secrets are there to be leaked"
    with site.client("admin") as client:
        for path in [p for p, ops in openapi()["paths"].items() if "get" in ops and "{" not in p and p != "/v1/stream"]:
            assert "not-shown" not in client.get(path, params={"campaign": SPRING} if path == "/v1/waiting" else {}).text, path


def test_the_address_to_copy_is_one_the_door_answers(tmp_path: Path) -> None:
    """A vendor's address is `/in/NAME`; calls in Segment's format go to `/v1/track`; without a public URL it is this machine's."""
    config = sample_config(tmp_path)
    config.sources["site"] = {"kind": "segment"}
    assert webhook_url(config, "site") == "https://hooks.example.com/v1/track"
    assert webhook_url(config, "staging") == "https://hooks.example.com/in/staging"
    config.door.public_url = ""
    assert webhook_url(config, "staging") == "http://127.0.0.1:8400/in/staging"


def test_dead_letters_are_told_with_reason_and_bytes(site: Site) -> None:
    """The newest first, page by page, by source and state."""
    everything = site.get("/v1/dead")["letters"]
    assert [letter["position"] for letter in everything] == sorted((letter["position"] for letter in everything), reverse=True)
    first = site.get("/v1/dead", limit=1)
    second = site.get("/v1/dead", limit=1, after=first["next"])
    assert [first["letters"][0], second["letters"][0]] == everything[:2]
    assert {letter["source"] for letter in site.get("/v1/dead", source="sendgrid")["letters"]} == {"sendgrid"}
    assert site.get("/v1/dead", state="replayed")["letters"] == []
    assert everything[0]["raw"].startswith('[{"event":"open"')


class FakeDoor:
    """A door that takes records over real HTTP and remembers them."""

    def __init__(self, taken: list | None = None) -> None:
        taken, tokens = self.taken, self.tokens = [] if taken is None else taken, []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                tokens.append((self.path, self.headers["authorization"]))
                taken.extend(msgspec.msgpack.decode(body, type=list[Record]))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Be quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_a_replay_goes_to_the_door_once_for_each_letter(site: Site) -> None:
    """A writer's replay reaches the door as records with the letter's place and bytes; readers may not; an absent door is 503."""
    config = site.app.state.site.config
    letter = site.get("/v1/dead")["letters"][0]
    wanted = {"letters": [{"position": letter["position"], "item": letter["item"]}]}
    with site.client("write") as writer, site.client("read") as reader:
        assert writer.post("/v1/dead/replay", json=wanted).status_code == 503
        door = FakeDoor()
        try:
            config.door.port = door.server.server_address[1]
            (site.folder / "internal.token").write_text("the-token\n")
            assert reader.post("/v1/dead/replay", json=wanted).status_code == 403
            assert door.taken == []
            assert writer.post("/v1/dead/replay", json=wanted).json() == {"replayed": 1}
            assert door.tokens == [("/internal/append", "Bearer the-token")]
            record = door.taken[0]
            assert (record.kind, record.source, record.body.decode()) == ("replay", letter["source"], letter["raw"])
            assert record.headers["midflight-position"] == str(letter["position"])
            assert record.headers["midflight-item"] == str(letter["item"])
            assert int(record.headers["midflight-at-us"]) // 60_000_000 == MINUTE - 14
            tried = apsw.Connection(str(site.folder / "store.db"))
            tried.execute("UPDATE dead SET state = 2 WHERE position = (SELECT max(position) FROM dead WHERE source = 'sendgrid')")
            assert writer.post("/v1/dead/replay", json={"source": "sendgrid"}).json() == {"replayed": 2}, "what stayed bad is tried again"
            tried.execute("UPDATE dead SET state = 0")
            tried.close()
            assert writer.post("/v1/dead/replay", json={"letters": [{"position": 1, "item": 0}]}).status_code == 404
            misspelt = writer.post("/v1/dead/replay", json={"source": "sendgird"})
            assert misspelt.status_code == 404 and "`sendgrid`" in misspelt.json()["error"]["todo"]
            for wrong, todo in (({"sources": "x"}, "`source`"), ({"letters": [{"position": 1, "items": 0}]}, "`item`")):
                refused = writer.post("/v1/dead/replay", json=wrong)
                assert refused.status_code == 400 and todo in refused.json()["error"]["todo"]
            untyped = writer.post("/v1/dead/replay", content=b'{"source": "sendgrid"}')
            assert untyped.status_code == 400 and "application/json" in untyped.json()["error"]["expected"]
            assert len(door.taken) == 3
        finally:
            door.close()
            (site.folder / "internal.token").unlink()


class Sizes(list):
    """Keeps of records only how long their bodies are."""

    def extend(self, records: list[Record]) -> None:
        super().extend(len(record.body) for record in records)


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most memory that Python objects took while something was done."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_large_dead_letters_are_never_held_all_at_once(tmp_path: Path) -> None:
    """A page of them, and the replay of them all, takes the memory of a few, although every byte reaches the door."""
    config = sample_config(tmp_path)
    fill(config, NOW_US, scale=0.01, old=1)
    count, size = 48, 1024 * 1024
    with apsw.Connection(str(tmp_path / "store.db")) as db:
        db.execute("DELETE FROM dead")
        for position in range(count):
            db.execute("INSERT INTO dead VALUES (?, -1, 'sendgrid', 'big', '', randomblob(?), 1, 0)", (position, size + position))
    app = create_app(config, Stopped(NOW_US))
    site, door = app.state.site, FakeDoor(Sizes())
    config.door.port = door.server.server_address[1]
    (tmp_path / "internal.token").write_text("the-token\n")
    try:
        with serving(app) as base:
            headers = {"authorization": f"Bearer {site.access.make_token('all', ['read', 'write'])[1]}"}
            with httpx.Client(base_url=base, headers=headers, timeout=30, trust_env=False) as client:
                page: list[dict] = []
                assert peak_bytes(lambda: page.extend(client.get("/v1/dead", params={"limit": 100}).json()["letters"])) < count * size / 3
                assert [letter["bytes"] for letter in page] == [size + position for position in reversed(range(count))]
                assert all(letter["cut"] and 0 < len(letter["raw"]) <= raw_bytes_max for letter in page)
                wanted = {"source": "sendgrid"}
                assert peak_bytes(lambda: client.post("/v1/dead/replay", json=wanted).raise_for_status()) < count * size / 3
                assert sorted(door.taken) == [size + position for position in range(count)]
    finally:
        door.close()
    with site.store.view() as view:
        letters = [(position, -1) for position in range(count)]
        assert peak_bytes(lambda: [view.letter(*place) for place in letters]) > count * size, "the control: held at once, they show"


def test_a_person_is_asked_of_the_history(site: Site) -> None:
    """The timeline comes from the callable the application was made with, asked with the normalised address."""
    answer = site.get("/v1/people/Ada%20%3CAda@Example.COM%3E")
    assert answer["recipient"] == "ada@example.com"
    assert answer["events"][0]["recipient"] == "ada@example.com"


# -- who may ----------------------------------------------------------------------------------------------------------

OPEN = {"/health", "/ready", "/v1/openapi.json", "/login", "/setup", "/static/{mark}/{name}", "/favicon.ico"}
WRITES = {"/v1/dead/replay", "/v1/polls/{name}/backfill", "/v1/suppressions", "/v1/suppressions/release"}
SENDS = {"/v1/lists", "/v1/experiments", "/v1/preview", "/v1/guards"} | {
    f"/v1/experiments/{{name:path}}/{what}" for what in ("state", "pin", "drop", "variants", "test")
}
SENDS |= {"/v1/segments/{name:path}", "/v1/rules/{name:path}", "/v1/rules/{name:path}/autonomy", "/v1/hold", "/v1/release"}
SENDS |= {f"/v1/actions/{what}" for what in ("approve", "decline", "undo", "retry", "settle")}
TRIES = {"/v1/segments/preview", "/v1/rules/backtest"}  # what asks with a body and changes nothing
NAMED = {"/v1/experiments/{name:path}", "/v1/segments/{name:path}", "/v1/rules/{name:path}"}


def every_route(app) -> list[tuple[str, str]]:
    found = []
    for route in app.routes:
        # A router that was included is one entry in newer versions of FastAPI, and its routes in older ones.
        router = getattr(route, "original_router", None)
        for inner in router.routes if router else [route]:
            found += [(method, inner.path) for method in sorted((inner.methods or set()) - {"HEAD", "OPTIONS"})]
    return found


def test_the_matrix_of_routes_and_tokens(site: Site) -> None:
    """Every route of the application: without a token nothing but the open ones, readers read, only writers write, only senders send."""
    routes = every_route(site.app)
    assert {path for _, path in routes} >= OPEN | WRITES | SENDS | {"/v1/numbers", "/metrics", "/", "/campaign", "/sources/replay"}
    for method, path in routes:
        if path == "/v1/stream":
            continue  # endless; its refusal is tested below
        url = (
            path.replace("{name:path}", quote(SPRING, safe=""))
            .replace("{address}", "a@b.example")
            .replace("{mark}", "x")
            .replace("{name}", "app.css")
        )
        url += f"?campaign={quote(SPRING)}" if path == "/v1/waiting" else ""
        got = {}
        for scope in (None, "read", "write", "send", "admin"):
            with site.client(scope) as client:
                got[scope] = client.request(method, url, json={} if method in ("POST", "PUT") else None, follow_redirects=False).status_code
        console = not path.startswith("/v1/") and path not in ("/health", "/ready", "/metrics")
        if path in OPEN:
            assert got[None] == got["read"] != 401, (path, got)
        elif console:
            assert set(got.values()) == {303}, f"{path}: pages are for sessions, not for tokens: {got}"
        elif path in WRITES and method == "POST":
            assert (got[None], got["read"]) == (401, 403), (path, got)
            assert got["send"] == 403 and got["write"] == got["admin"] != 403, (path, got)
        elif path in SENDS and method != "GET":
            assert (got[None], got["read"], got["write"]) == (401, 403, 403), (path, got)
            done = 200 if path == "/v1/hold" else 404 if path.endswith("/pin") or method == "DELETE" else 400
            assert got["send"] == got["admin"] == done, (path, got)
        else:
            assert got[None] == 401, (path, got)
            there = 404 if path in NAMED else 400 if path in TRIES else 200
            assert {got[scope] for scope in ("read", "write", "send", "admin")} == {there}, (path, got)


def test_a_stream_needs_a_token_too(site: Site) -> None:
    """Server-sent events are numbers as well; wrong schemes and unknown tokens are refused with a challenge."""
    with site.client(None) as client:
        for header in ({}, {"authorization": "Bearer nope"}, {"authorization": "Basic YTpi"}, {"authorization": "Bearer"}):
            answer = client.get("/v1/stream", headers=header)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"


def test_a_session_reads_from_our_own_pages_only(site: Site) -> None:
    """A console session reads the API where the browser says the request is ours, and never writes."""
    secret = site.app.state.site.access.open_session("somebody")
    with site.client(None) as client:
        client.cookies.set("midflight_session", secret)
        assert client.get("/v1/campaigns").status_code == 200
        assert client.get("/v1/campaigns", headers={"sec-fetch-site": "same-origin"}).status_code == 200
        assert client.get("/v1/campaigns", headers={"sec-fetch-site": "cross-site"}).status_code == 401
        assert client.get("/v1/campaigns", headers={"origin": "https://evil.example"}).status_code == 401
        assert client.post("/v1/dead/replay", json={}).status_code == 401


def test_a_revoked_token_is_out_at_once(site: Site) -> None:
    """Revoking takes effect with the next request, and the file never holds the secret."""
    access = site.app.state.site.access
    token, secret = access.make_token("short lived", ["read"])
    with httpx.Client(base_url=site.base, headers={"authorization": f"Bearer {secret}"}) as client:
        assert client.get("/v1/metrics").status_code == 200
        access.revoke_token(token.id)
        assert client.get("/v1/metrics").status_code == 401
    assert secret.encode() not in b"".join(file.read_bytes() for file in site.folder.glob("access.db*"))


def test_passwords_are_kept_as_hashes_and_tries_are_bounded(tmp_path: Path) -> None:
    """A right password opens a session; wrong ones and unknown names are refused alike; the eleventh try waits."""
    clock = VirtualClock()
    access = Access(sample_config(tmp_path), clock)
    access.set_user("ada", "correct horse")
    assert b"correct horse" not in b"".join(file.read_bytes() for file in tmp_path.glob("access.db*"))
    secret = access.login("ada", "correct horse", "10.0.0.1")
    assert access.session(secret).user == "ada"
    said = []
    for name in ("ada", "nobody"):
        with pytest.raises(WrongCredentials) as refused:
            access.login(name, "wrong", "10.0.0.1")
        said.append(refused.value.text())
    assert said[0] == said[1]
    with pytest.raises(TooManyTries):
        for _ in range(20):
            with pytest.raises(WrongCredentials):
                access.login("eve", "wrong", "10.0.0.2")
    clock.sleep_s(31)
    with pytest.raises(WrongCredentials):
        access.login("eve", "wrong", "10.0.0.2")
    access.close()


def test_nobody_is_locked_out_by_somebody_elses_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's wrong passwords hold up the stranger; guessing from many addresses holds up all but where the user logged in before."""
    clock = VirtualClock()
    access = Access(sample_config(tmp_path), clock)
    access.set_user("ada", "correct horse")
    # The slow hash is not what this is about.
    monkeypatch.setattr(Access, "_scrypt", lambda self, password, salt: hashlib.sha256(password.encode() + salt).digest())
    access.set_user("ada", "correct horse")

    def guess(address: str) -> type[Exception]:
        with pytest.raises((WrongCredentials, TooManyTries)) as refused:
            access.login("ada", "wrong", address)
        return refused.type

    assert [guess("203.0.113.1") for _ in range(tries_max + 1)] == [WrongCredentials] * tries_max + [TooManyTries]
    assert access.session(access.login("ada", "correct horse", "10.0.0.1")), "from elsewhere the name is not locked"
    guesses = [guess(f"198.51.100.{number}") for number in range(name_tries_max)]
    assert guesses.count(WrongCredentials) == name_tries_max - tries_max - 1 and guesses[-1] is TooManyTries
    assert guess("198.51.100.250") is TooManyTries, "many addresses together get only so many tries"
    assert access.session(access.login("ada", "correct horse", "10.0.0.1")), "the place of before is let in all the while"
    clock.sleep_s(name_try_again_s + 1)
    assert guess("198.51.100.251") is WrongCredentials
    # The place is still known after a start, and its own tries are bounded as anybody's.
    access.close()
    access = Access(sample_config(tmp_path), clock)
    access.name_tries._left["ada"] = (0.0, clock.monotonic_s())
    assert guess("198.51.100.1") is TooManyTries
    assert access.session(access.login("ada", "correct horse", "10.0.0.1"))
    assert [guess("10.0.0.1") for _ in range(tries_max + 1)][-1] is TooManyTries
    with pytest.raises(TooManyTries):
        for number in range(address_tries_max):
            with pytest.raises(WrongCredentials):
                access.login(f"name {number}", "wrong", "10.0.0.1")
    access.close()


def test_unknown_names_cost_as_much_as_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow hash is computed for a name that does not exist too, so time tells nothing."""
    access = Access(sample_config(tmp_path), VirtualClock())
    access.set_user("ada", "correct horse")
    calls = []
    real = hashlib.scrypt
    monkeypatch.setattr(hashlib, "scrypt", lambda *a, **k: calls.append(k["n"]) or real(*a, **k))
    for name in ("ada", "nobody"):
        with pytest.raises(WrongCredentials):
            access.login(name, "wrong", "10.0.0.1")
    assert len(calls) == 2
    assert calls[0] == calls[1] >= 2**15
    access.close()


def test_sessions_end(tmp_path: Path) -> None:
    """A session ends by logout, by 12 idle hours, after seven days, and with a new password."""
    clock = VirtualClock()
    access = Access(sample_config(tmp_path), clock)
    access.set_user("ada", "correct horse")
    first = access.open_session("ada")
    access.close_session(first)
    assert access.session(first) is None
    idle = access.open_session("ada")
    clock.sleep_s(12 * 3600 + 1)
    assert access.session(idle) is None
    used = access.open_session("ada")
    for _ in range(7 * 24 // 8):
        clock.sleep_s(8 * 3600 - 60)
        assert access.session(used) is not None
    clock.sleep_s(8 * 3600)
    assert access.session(used) is None
    other = access.open_session("ada")
    access.set_user("ada", "another horse")
    assert access.session(other) is None
    access.close()


def test_a_full_disk_keeps_nobody_from_looking(tmp_path: Path) -> None:
    """Where nothing can be written, who is in stays in until the session is too old; who is not gets 503 in our words."""
    clock = VirtualClock()
    access = Access(sample_config(tmp_path), clock)
    access.set_user("ada", "correct horse")
    secret = access.open_session("ada")
    access._db.execute("PRAGMA query_only = ON")
    clock.sleep_s(3600)
    assert access.session(secret).user == "ada"
    for change in (lambda: access.open_session("ada"), lambda: access.make_token("x", ["read"]), lambda: access.set_user("b", "b" * 10)):
        with pytest.raises(Unkept, match="cannot be read or written") as refused:
            change()
        assert refused.value.status == 503
    clock.sleep_s(12 * 3600)
    assert access.session(secret) is None
    access._db.execute("PRAGMA query_only = OFF")
    assert access.session(access.open_session("ada")).user == "ada"
    access.close()


def test_a_file_of_users_from_a_newer_version_is_refused(tmp_path: Path) -> None:
    """Its meaning is not known here: the start stops and says so, and the file stays as it is. One from before versions is taken on."""
    config = sample_config(tmp_path)
    path = tmp_path / "access.db"
    access = Access(config)
    access.set_user("ada", "correct horse")
    access.close()

    def set_version(version: int) -> None:
        with apsw.Connection(str(path)) as db:
            db.pragma("user_version", version)
        db.close()

    set_version(ACCESS_VERSION + 1)
    before = path.read_bytes()
    with pytest.raises(MidflightError, match=f"made by a newer Midflight: expected version {ACCESS_VERSION} or older, got") as refused:
        Access(config)
    assert refused.value.exit_status == 2 and str(path) in refused.value.text()
    assert path.read_bytes() == before
    set_version(0)
    access = Access(config)
    assert [name for name, _ in access.users()] == ["ada"]
    access.close()
    assert apsw.Connection(str(path)).pragma("user_version") == ACCESS_VERSION


def test_the_first_user_is_made_by_a_link_that_works_once(tmp_path: Path) -> None:
    """`setup_url` gives a link while there is no user; a demo user gets a password to show."""
    config = sample_config(tmp_path)
    url = setup_url(config)
    assert url.startswith("http://127.0.0.1:8401/setup?key=")
    assert setup_url(config) != url, "a newer link replaces the older one"
    assert demo_user(config)[0] == "demo"
    assert setup_url(config) is None


# -- live ----------------------------------------------------------------------------------------------------------------


def events_of(lines: Iterator[str]) -> Iterator[dict]:
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line[6:])


def test_the_stream_tells_the_whole_then_what_changed(tmp_path: Path) -> None:
    """The first event has every campaign, the next ones only those whose sums changed."""
    config = sample_config(tmp_path)
    fill(config, NOW_US, scale=0.01)
    app = create_app(config, Stopped(NOW_US))
    secret = app.state.site.access.make_token("t", ["read"])[1]
    with serving(app) as base, httpx.Client(base_url=base, headers={"authorization": f"Bearer {secret}"}, timeout=20) as client:
        with client.stream("GET", "/v1/stream") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            events = events_of(answer.iter_lines())
            first = next(events)
            assert len(first["campaigns"]) == 3, "those of the last 24 hours"
            assert next(events)["campaigns"] == []
            writer = apsw.Connection(str(tmp_path / "store.db"))
            writer.execute("UPDATE campaigns SET delivered = delivered + 5 WHERE campaign = 1")
            writer.close()
            changed = next(event["campaigns"] for event in events if event["campaigns"])
            assert [row["campaign"] for row in changed] == [SPRING]
            before = next(row for row in first["campaigns"] if row["campaign"] == SPRING)
            assert changed[0]["measures"]["delivered"] == before["measures"]["delivered"] + 5
        with client.stream("GET", "/v1/stream", params={"campaign": SPRING}) as answer:
            assert [row["campaign"] for row in next(events_of(answer.iter_lines()))["campaigns"]] == [SPRING]
        assert client.get("/v1/stream", params={"campaign": "nobody"}).status_code == 404


def test_a_slow_reader_is_dropped_and_nobody_waits_for_it() -> None:
    """A full queue ends its stream; the others get every beat; the number of readers is bounded."""
    import asyncio

    async def play() -> None:
        hub = Hub(pulse=None, counters=Counters())
        hub._run = lambda: asyncio.sleep(0)  # beats come by hand
        slow, quick = hub.join(None), hub.join(None)
        state = {"at": "now", "campaigns": []}
        got = 0
        for _ in range(waiting_max + 3):
            hub.tell(state)
            assert quick.queue.get_nowait() is not None
            got += 1
        assert got == waiting_max + 3
        assert slow.lost
        assert slow.queue.qsize() == 1
        assert slow.queue.get_nowait() is None, "its stream ends"
        assert hub.readers == {quick}
        assert hub.counters.get("stream_readers_dropped_total") == 1
        for _ in range(readers_max - 1):
            hub.join(None)
        with pytest.raises(Crowded):
            hub.join(None)
        await asyncio.sleep(0)

    asyncio.run(play())


def tell_everything(hub: Hub, state: dict) -> None:
    hub._sent = {}
    hub.tell(state)


def test_a_reader_that_never_reads_costs_the_server_nothing(tmp_path: Path) -> None:
    """A client that takes no bytes is forgotten by the hub while others are served."""
    config = sample_config(tmp_path)
    fill(config, NOW_US, scale=0.01, hostile=True)
    app = create_app(config, Stopped(NOW_US))
    site = app.state.site
    secret = site.access.make_token("t", ["read"])[1]
    with serving(app) as base:
        deaf = socket.create_connection((urlsplit(base).hostname, urlsplit(base).port))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        deaf.sendall(f"GET /v1/stream HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\n\r\n".encode())
        deadline = time.monotonic() + 20
        while not site.hub.readers and time.monotonic() < deadline:
            time.sleep(0.02)
        reader = next(iter(site.hub.readers))
        state = site.pulse.now()
        while not reader.lost and time.monotonic() < deadline:
            # Everything changed, again and again: more than any buffer between us holds.
            site.hub._task.get_loop().call_soon_threadsafe(tell_everything, site.hub, state)
            time.sleep(0.005)
        assert reader.lost
        assert httpx.get(f"{base}/health").status_code == 200
        deaf.close()


def test_sigterm_ends_the_process_with_streams_open(tmp_path: Path, project: Path) -> None:
    """`midflight console` stops by itself within the drain time although somebody listens; it prints the setup link first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "midflight.yaml").write_text(f"data: {tmp_path}/data\nconsole: {{port: {port}}}\n")
    access = Access(sample_config(tmp_path / "data"))
    secret = access.make_token("t", ["read"])[1]
    access.close()
    process = subprocess.Popen(
        [sys.executable, "-m", "midflight", "console"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(project)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert f"127.0.0.1:{port}" in process.stdout.readline()
        assert "/setup?key=" in process.stdout.readline()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        with httpx.stream("GET", f"http://127.0.0.1:{port}/v1/stream", headers={"authorization": f"Bearer {secret}"}, timeout=20) as answer:
            lines = answer.iter_lines()
            assert next(lines)
            process.send_signal(signal.SIGTERM)
            for _ in lines:
                pass  # the stream is ended by the server
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()


# -- the edges -----------------------------------------------------------------------------------------------------------


def test_every_answer_has_the_security_headers(site: Site) -> None:
    """Pages, numbers, files and errors carry the policy; nothing but files may be stored."""
    with site.client() as client:
        for path in ("/v1/metrics", "/login", "/v1/nothing", "/static/x/app.css", "/", "/health"):
            headers = client.get(path).headers
            assert "default-src 'none'" in headers["content-security-policy"], path
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store", path
        page = client.get("/login").text
        style = page.split('rel="stylesheet" href="')[1].split('"')[0]
        assert "immutable" in client.get(style).headers["cache-control"]


def test_a_huge_body_is_refused(site: Site) -> None:
    """A body above the bound is 413 by its length, and cut off where it does not say one."""
    with site.client("write") as client:
        assert client.post("/v1/dead/replay", content=b"x" * 300_000).status_code == 413
        chunks = (b"x" * 10_000 for _ in range(100))
        assert client.post("/v1/dead/replay", content=chunks).status_code in (400, 413)
        assert client.get("/health").status_code == 200


def test_prometheus_can_read_about_ourselves(site: Site) -> None:
    """The text has the log's place, the sources and open readers, one value a line."""
    with site.client() as client:
        text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values["midflight_log_position"] == "184203"
    assert int(values['midflight_source_events_last_day{source="sendgrid"}']) > 0
    assert values['midflight_dead_letters{source="sendgrid"}'] == "2"


def test_the_description_is_complete() -> None:
    """Every operation has words, a typed answer and our error shape; none mentions another."""
    description = openapi()
    text = json.dumps(description)
    assert "HTTPValidationError" not in text
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], path
            content = operation["responses"]["200"]["content"]
            assert "application/json" not in content or content["application/json"]["schema"], (path, method)
            errors = [code for code in operation["responses"] if code >= "400"]
            assert "400" in errors
            for code in errors:
                assert operation["responses"][code]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")


def test_no_question_breaks_the_api(site: Site) -> None:
    """About 200 drawn questions: each answer is one that the description names, in its shape, and none is a 5xx of ours."""
    asked, door = 0, FakeDoor()
    site.app.state.site.config.door.port = door.server.server_address[1]
    (site.folder / "internal.token").write_text("the-token")
    headers = {"Authorization": f"Bearer {site.secrets['admin']}"}
    # Tokens are tested by the matrix above; here every question carries one. And a name of the right shape need not exist.
    without = [ignored_auth, positive_data_acceptance]
    description = schemathesis.openapi.from_url(f"{site.base}/v1/openapi.json").exclude(path="/v1/stream")
    paths = openapi()["paths"]
    for found in description.get_all_operations():
        operation = found.ok()
        takes = {"parameters", "requestBody"} & paths[operation.path][operation.method].keys()
        # A question without any part cannot be put wrongly.
        for mode in list(schemathesis.GenerationMode) if takes else [schemathesis.GenerationMode.POSITIVE]:

            @settings(max_examples=6, derandomize=True, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case) -> None:
                nonlocal asked
                asked += 1
                case.call_and_validate(headers=headers, excluded_checks=without)

            ask()
    door.close()
    (site.folder / "internal.token").unlink()
    assert asked >= 150


def test_a_random_walk_through_pages_of_a_list_is_exact(site: Site) -> None:
    """Whatever page sizes are used, the pages of campaigns join without gap or repetition."""
    rng = random.Random(3)
    whole = [row["campaign"] for row in site.get("/v1/campaigns", limit=500)["campaigns"]]
    got, after = [], None
    while True:
        page = site.get("/v1/campaigns", limit=rng.randrange(1, 40), **({"after": after} if after else {}))
        got += [row["campaign"] for row in page["campaigns"]]
        after = page["next"]
        if after is None:
            break
    assert got == whole
