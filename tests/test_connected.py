"""What the API and the console say of connected systems, and a range of time that is asked for again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from sample_store import Stopped, fill, sample_config, serving
from test_api import NOW_US, Site

from midflight.decide.reconciliation import Alarm, State
from midflight.serve.api import create_app
from midflight.serve.reconciling import place

DOMAIN = {"domain": "mail.shop.example", "api_key": "secret-of-mailgun"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A console with two polls and a way back, as a poller has left them."""
    folder = tmp_path_factory.mktemp("data")
    config = sample_config(folder)
    config.sources["esp"] = {"kind": "mailgun", "unsigned": True}
    config.polls = {"events": {"kind": "mailgun_events", **DOMAIN}, "drop": {"kind": "csv_folder", "folder": str(folder / "drop")}}
    config.ways_back = {"crm": {"kind": "hubspot", "token": "secret-of-hubspot"}}
    fill(config, NOW_US, scale=0.02)
    app = create_app(config, Stopped(NOW_US))
    with serving(app) as base:
        yield Site(folder, base, app)


def stands(folder: Path, at_us: int) -> None:
    """Write down what the poller would."""
    (folder / "polls").mkdir(exist_ok=True)
    (folder / "written_back").mkdir(exist_ok=True)
    error = {"code": "not_allowed", "what": "Mailgun <b>does not</b> accept the credentials (401)", "todo": "Check the key"}
    job = {"why": "backfill", "from_us": at_us - 3_600_000_000, "to_us": at_us, "tries": 0, "ended": ""}
    poll = {"kind": "Mailgun events", "source": "esp", "state": "not_allowed", "events": 1234, "error": error, "jobs": [job]}
    (folder / "polls" / "state.json").write_text(json.dumps({"at_us": at_us, "polls": {"events": poll}}))
    way = {"kind": "HubSpot", "state": "good", "written": 77, "waiting": 3, "refused": 2, "refused_why": "missing: no contact"}
    (folder / "written_back" / "state.json").write_text(json.dumps({"at_us": at_us, "ways": {"crm": way}}))


def test_how_connected_systems_stand_is_told(site: Site) -> None:
    """Each configured poll and way back has its row, with what somebody has to do; no secret is in any of them."""
    assert [row["state"] for row in site.get("/v1/polls")["polls"]] == ["waiting", "waiting"] and not site.get("/v1/polls")["runs"]
    stands(site.folder, NOW_US)
    told, ways = site.get("/v1/polls"), site.get("/v1/ways-back")
    assert told["runs"] and ways["runs"]
    events, drop = told["polls"]
    assert (events["poll"], events["state"], events["todo"], events["events"]) == ("events", "not_allowed", "Check the key", 1234)
    assert [again["why"] for again in events["again"]] == ["backfill"] and drop["state"] == "waiting"
    assert (ways["ways_back"][0]["written"], ways["ways_back"][0]["refused_why"]) == (77, "missing: no contact")
    assert "secret-of" not in json.dumps([told, ways])
    stands(site.folder, NOW_US - 60_000_000)
    assert not site.get("/v1/polls")["runs"], "a poller that says nothing for a minute does not run"


def test_a_range_of_time_is_asked_for_again(site: Site) -> None:
    """The poller finds what to read; unknown polls, times that are none, and kinds that know no ranges are refused with what to do."""
    with site.client("write") as client:
        done = client.post("/v1/polls/events/backfill", json={"since": "2026-09-20T10:00:00Z", "until": "2026-09-20T11:00:00Z"})
        assert done.status_code == 200 and done.json() == {"since": "2026-09-20T10:00:00Z", "until": "2026-09-20T11:00:00Z"}
        (asked,) = (site.folder / "polls").glob("ask-events.*.json")
        assert json.loads(asked.read_text()) == {"from_us": 1_789_898_400_000_000, "to_us": 1_789_902_000_000_000}
        for name, body, status in (
            ("event", {"since": "2026-09-20T10:00:00Z"}, 404),
            ("events", {"since": "yesterday"}, 400),
            ("events", {"since": "2026-09-20T10:00:00Z", "until": "2026-09-20T09:00:00Z"}, 400),
            ("events", {}, 400),
            ("drop", {"since": "2026-09-20T10:00:00Z"}, 400),
        ):
            refused = client.post(f"/v1/polls/{name}/backfill", json=body)
            assert refused.status_code == status and refused.json()["error"]["what"], (name, body, refused.text)
    assert len(list((site.folder / "polls").glob("ask-*"))) == 1


def test_the_page_says_what_does_not_come_and_what_to_do(site: Site) -> None:
    """An alarm stands on the page of sources and among what is unusual; what other systems say is text there; old alarms are not shown."""
    minute = NOW_US // 60_000_000 - 1
    alarm = Alarm(kind="silence", source="esp", since=minute - 6, at=minute, text="Source esp has been silent for 6 minutes.", why="Look.")

    def page(kept: State) -> str:
        place(site.folder).write_bytes(msgspec.json.encode(kept))
        with httpx.Client(base_url=site.base, trust_env=False, timeout=20) as client:
            client.cookies.set("midflight_session", site.app.state.site.access.open_session("ada"))
            answer = client.get("/sources")
        assert answer.status_code == 200, answer.text
        return answer.text

    stands(site.folder, NOW_US)
    shown = page(State(minute=minute, alarms=[alarm]))
    assert "Source esp has been silent for 6 minutes." in shown and "Check the key" in shown and "no contact" in shown
    assert "<b>does not</b>" not in shown and "secret-of" not in shown
    shown = page(State(minute=minute - 60, alarms=[alarm]))
    assert "has been silent" not in shown
