"""The measurements measure what they say: the input, the job that engines are compared by, the results and the page made of them."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import __main__ as command
from bench import comparison, folding, growth, machine, page
from bench.__main__ import PAGE, RESULTS
from bench.feed import Feed, as_lines
from bench.freshness import quantile_of
from bench.peers import job
from midflight.config import config_from

PROJECT = Path(__file__).parent.parent


def events_of(feed: Feed) -> list[dict]:
    return [event for batch in feed for event in json.loads(batch.body)]


def test_the_feed_is_the_same_each_time_and_in_the_order_of_receipt() -> None:
    """Two feeds of one seed are equal byte for byte, another seed is another feed, and nothing is received before it happens."""
    first, again, other = (list(Feed(2_000, sends=2, seed=seed)) for seed in (1, 1, 2))
    assert first == again and first != other
    assert [batch.at_us for batch in first] == sorted(batch.at_us for batch in first)
    assert all(event["timestamp"] * 1_000_000 <= batch.at_us for batch in first for event in json.loads(batch.body))
    assert first[-1].at_us <= Feed(2_000, sends=2).end_us


def test_the_feed_says_how_many_events_are_new() -> None:
    """Events less those that came before are as many as there are ids, and there are repetitions, late ones and every kind."""
    batches = list(Feed(6_000))
    events = [event for batch in batches for event in json.loads(batch.body)]
    assert sum(batch.events for batch in batches) == len(events)
    assert len({event["sg_event_id"] for event in events}) == len(events) - sum(batch.repeated for batch in batches) < len(events)
    assert {event["event"] for event in events} == {*job.MEASURES} - {"first_open", "first_click"}
    assert 3.0 < len(events) / 6_000 < 3.8
    assert {len(json.loads(batch.body)) for batch in batches[:-1]} == {200}


def test_the_feed_reaches_everybody_once_with_each_mailing() -> None:
    """As many people as asked for, each with one message for each mailing."""
    events = events_of(Feed(1_000, sends=2))
    messages = {(event["email"], event["sg_message_id"]) for event in events}
    assert len({email for email, _ in messages}) == 1_000
    assert len(messages) == 2_000


def test_a_part_measured_first_is_kept_and_makes_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--only` writes its results, names what is still to be measured and is no failure; a page that is asked for and cannot be is one."""
    part = command.Measure("door", lambda say: {"door_requests_per_s": 1.0}, lambda say: {})
    monkeypatch.setattr(command, "MEASURES", (part, *command.MEASURES[1:]))
    monkeypatch.setattr(command, "PAGE", tmp_path / "performance.md")
    monkeypatch.setattr(folding, "load_code", lambda: None)
    results = tmp_path / "results.json"
    done = CliRunner().invoke(command.app, ["--only", "door", "--out", str(results)])
    assert done.exit_code == 0, done.output
    wanted = "no page yet: still to be measured: replay, end_to_end, freshness, decide, conductor, restart, growth, rules"
    assert wanted in done.output
    assert json.loads(results.read_bytes())["door_requests_per_s"] == 1.0
    asked = CliRunner().invoke(command.app, ["--page", "--out", str(results)])
    assert asked.exit_code == 1 and wanted in asked.output
    assert not (tmp_path / "performance.md").exists()


def test_lines_hold_the_same_events_as_arrays() -> None:
    """Engines that read one event a line get what the others get."""
    for batch in islice(Feed(2_000), 20):
        assert [json.loads(line) for line in as_lines(batch.body).splitlines()] == json.loads(batch.body)


# -- the comparison ------------------------------------------------------------------------------------------------------------------


def rows_of(path: Path, recipients: int) -> list[tuple]:
    events = [json.loads(line) for lines in job.batches(str(path)) for line in lines]
    names = ("sg_message_id", "sg_event_id", "event", "campaign", "variant", "timestamp")
    rows = [tuple(event[name] for name in names) for batch in events for event in batch]
    assert len(rows) > 3 * recipients
    return rows


def test_the_job_means_the_same_to_us_and_to_others(tmp_path: Path) -> None:
    """The table that other engines make is ours, cell for cell; without dropping repetitions, or with late firsts left, it is not."""
    given = comparison.make_input(tmp_path / "given", 3_000)
    rows = rows_of(given.path("arrays"), 3_000)
    folded = folding.fold(given.folder / "log", config_from(machine.settings(tmp_path / "data")))
    assert folded["events"] == given.events == len(rows) and folded["dead"] == 0
    comparison.save_ours(tmp_path / "data" / "store.db", tmp_path / "ours")

    def table(broken: str = "") -> bytes:
        cells: dict[job.Key, list[int]] = {}
        messages = job.Messages()
        for number, row in enumerate(rows):
            if broken == "repetitions":
                row = (row[0], f"{row[1]} {number}", *row[2:])
            if broken == "firsts" and row[0] in messages.firsts and row[2] == "open":
                messages.firsts[row[0]][0] = 0
            messages.fold([row], cells)
        job.save(str(tmp_path / "theirs"), cells)
        return (tmp_path / "theirs").read_bytes()

    assert table() == (tmp_path / "ours").read_bytes()
    assert table("repetitions") != (tmp_path / "ours").read_bytes()
    assert table("firsts") != (tmp_path / "ours").read_bytes()


def test_an_engine_with_another_table_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer's run whose table differs from ours in one figure ends the comparison."""
    given = comparison.Input(tmp_path, 1)
    (tmp_path / "table").write_text('[["spring", "A", 1, 2]]')

    def run(_module: str, _path: Path, result: Path, *_: object, **__: object) -> dict:
        result.write_text(said)
        return {"wall_s": 1.0}

    monkeypatch.setattr(machine, "run", run)
    said = '[["spring", "A", 1, 2]]'
    assert comparison.run_peer(comparison.ENGINES[0], "python", given, 1, None) == {"wall_s": 1.0}
    said = '[["spring", "A", 1, 3]]'
    with pytest.raises(RuntimeError, match="differ"):
        comparison.run_peer(comparison.ENGINES[0], "python", given, 1, None)


def test_rates_are_taken_from_the_difference_of_two_inputs() -> None:
    """What an engine needs before its first event does not count, and ours is held against their better way."""
    run = lambda seconds: {"wall_s": seconds, "cpu_s": seconds, "rss_bytes": 1}  # noqa: E731
    runs = {"ours": [(run(1.0), run(2.0))], "one_core": [(run(10.0), run(20.0))], "all_cores": [(run(10.0), run(15.0))]}
    found = comparison.summary(runs, 1_000, 2_000)
    assert (found["per_s_ours"], found["per_s_one_core"], found["per_s_all_cores"]) == (1_000, 100, 200)
    assert (found["best"], found["ratio"]) == ("all_cores", 5.0)
    # A difference that drowns in the start says nothing: then the start counts too.
    runs["all_cores"] = [(run(30.0), run(25.0))]
    assert comparison.summary(runs, 1_000, 2_000)["per_s_all_cores"] == 80


def test_locks_name_no_index_and_pin_by_hash() -> None:
    """The peers' requirements are exact, each with its hashes, and say nothing of where they come from."""
    for name in {engine.lock for engine in comparison.ENGINES}:
        lines = (PROJECT / "bench" / name).read_text().replace("\\\n", " ").splitlines()
        pins = [line for line in lines if line and not line.lstrip().startswith("#")]
        assert pins and all("==" in pin and "--hash=sha256:" in pin for pin in pins)
        assert not [line for line in lines if "index-url" in line or "://" in line]


# -- figures -------------------------------------------------------------------------------------------------------------------------


def test_growth_counts_the_steady_part_alone(tmp_path: Path) -> None:
    """Parts before the second mailing and after it are not timed; memory grows with recipients and with messages."""
    feed = Feed(3_000, sends=2)
    points = growth.fold_ahead(feed, tmp_path)
    counted = growth.steady(points, feed)
    assert 0 < len(counted) < len(points)
    assert points[-1].recipients == 3_000 and points[-1].messages == 6_000
    assert sum(point.events for point in points) == sum(batch.events for batch in feed)
    found = growth.summary(points, feed)
    assert found["bytes_per_recipient"] > 20 and found["bytes_per_message"] > 20
    assert len(growth.fold_ahead(feed, tmp_path / "expected", 6_000)) == len(points)
    assert growth.slope([1, 2, 3], [10, 20, 30]) == pytest.approx(10.0)


def test_quantiles_lie_within_their_bucket() -> None:
    """Half of what waited between 5 and 10 ms waited up to 7.5 ms."""
    counts = [0, 100] + [0] * 20
    assert quantile_of(counts, 0.5) == pytest.approx(7.5)
    assert quantile_of([50, 50] + [0] * 20, 0.99) == pytest.approx(9.9)


def test_a_quick_replay_runs(tmp_path: Path) -> None:
    """`python -m bench --quick --only replay` measures, writes its results, and leaves the page alone."""
    page_before = PAGE.read_bytes() if PAGE.exists() else None
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "bench", "--quick", "--only", "replay", "--out", str(out)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, timeout=280)
    found = json.loads(out.read_bytes())
    assert found["quick"] is True and found["replay_events"] > 20_000 and found["replay_dead"] == 0
    assert found["replay_events_per_s_core"] > 0 and found["replay_events_per_s_core_mixed"] > 0
    assert found["measured"]["replay"]["keys"] and found["machine"]["cores"] >= 1
    assert (PAGE.read_bytes() if PAGE.exists() else None) == page_before


# -- results and page ------------------------------------------------------------------------------------------------------------------


def sample() -> dict:
    """Return results as a full run leaves them."""
    peer = {
        "stream": True, "version": "1.0", "events": 1_000_000, "ratio": 4.2, "ratio_by_cpu": 4.0, "best": "one_core", "runs_s": {},
        **{f"{what}_{way}": 100_000 for what in ("per_s", "per_cpu_s", "rss_bytes") for way in ("ours", "one_core", "all_cores")},
    }  # fmt: skip
    point = {
        "recipients": 100_000,
        "messages": 200_000,
        "steady_events": 300_000,
        "events_per_s_core": 400_000,
        "events_per_s_wall": 300_000,
    }
    figures = (
        "door_requests_per_s door_p50_ms door_p99_ms door_batch_events_per_s e2e_events_per_s e2e_keeps_up_events_per_s e2e_events "
        "e2e_lag_s replay_events replay_events_per_s_core replay_events_per_s_wall replay_events_mixed replay_events_per_s_core_mixed "
        "replay_events_per_s_wall_mixed freshness_p50_ms freshness_p99_ms freshness_probe_p50_ms freshness_probe_p99_ms "
        "freshness_probe_api_p50_ms freshness_probe_api_p99_ms freshness_requests freshness_probes freshness_events_per_s "
        "freshness_seconds conductor_smtp_per_s conductor_api_per_s decide_per_s decide_p99_ms growth_ratio_10m_to_100k "
        "bytes_per_recipient bytes_per_message bytes_per_recipient_rss bytes_per_message_rss "
        "growth_ratio_an_hour_late growth_ratio_unexpected "
        "restart_s restart_door_s restart_events restart_events_after_snapshot restart_snapshot_bytes "
        "rules_segments rules_rules rules_moves_per_event rules_firings_per_event replay_with_rules_events_per_s_core "
        "replay_without_rules_events_per_s_core replay_with_rules_ratio segment_recipients segment_bytes_per_recipient "
        "backtest_events_per_s action_events_per_s action_p50_ms action_p99_ms action_probes action_lost action_twice action_calls_per_s"
    ).split()
    return dict.fromkeys(figures, 123.4) | {
        "quick": False,
        "machine": {
            "processor": "a processor", "cores": 2, "memory_gib": 8.0, "system": "Linux", "python": "3.11", "durable_write_ms": 0.5,
            "load_before": 0.1, "versions": {"numpy": "2.0"}, "date": "2025-11-24",
        },
        "measured": {"replay": {"date": "2025-11-24", "seconds": 1.0, "load_before": 0.1, "keys": []}},
        "e2e_rates": [{"asked_per_s": 1000, "per_s": 1000, "lag_s": 0.1}], "e2e_runs_per_s": [1000], "e2e_cpu_s": {"door": 1.0},
        "freshness_cores": {"door": 0.1}, "action_cores": {"door": 0.1},
        "growth": [point | {"state_bytes": 1e8, "rss_bytes": 1e8}], "restart_runs_s": [3.0],
        "peer_ratios": {"bytewax": 4.2}, "peers": {"bytewax": peer, "flink": {"left_out": "needs Java, which this machine does not have"}},
    }  # fmt: skip


def test_the_page_says_what_the_results_say() -> None:
    """Every figure of the short table comes from the results, and a page of other results is another page."""
    text = page.page(sample())
    assert "| Times the speed of Bytewax at the same job | 4.2 |" in text and "needs Java" in text
    for key, kind in page.REQUIRED.items():
        if kind is float:
            assert page.page(sample() | {key: 987.6}) != text, f"`{key}` is nowhere on the page"


@pytest.mark.parametrize("key", page.REQUIRED)
def test_results_with_something_missing_make_no_page(key: str) -> None:
    """A key that is missing or of another type is told by name, and so are results of a quick run."""
    for results in ({k: v for k, v in sample().items() if k != key}, sample() | {key: None}):
        with pytest.raises(ValueError, match=key):
            page.page(results)
    with pytest.raises(ValueError, match="quick"):
        page.page(sample() | {"quick": True})


def test_the_published_page_is_that_of_the_published_results() -> None:
    """Where bench/results.json is a whole run, docs/performance.md is made of it; without results, or with a part of them, is no page."""
    whole = RESULTS.exists() and not command.still_to_measure(json.loads(RESULTS.read_bytes()))
    assert whole == PAGE.exists(), "`python -m bench --page` writes the page"
    if whole:
        results = json.loads(RESULTS.read_bytes())
        assert page.wrong(results) == []
        assert PAGE.read_text() == page.page(results), "`python -m bench --page` writes it again"
    else:
        assert len(page.wrong({})) == len(page.REQUIRED)
