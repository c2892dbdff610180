"""What rules would have done: the same firings as live, and the same limits, by the log's own time."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import msgspec
import pytest
import yaml
from test_definitions import CLICKED_NOT_BOUGHT, World, did, some_days
from test_watching import M

from midflight import commands
from midflight.commands import backtest
from midflight.decide.limits import held_out
from midflight.events import Event
from midflight.kit.errors import MidflightError
from midflight.log import Record
from midflight.serve import trying
from midflight.serve.trying import Asked, Ended, Found

OPENED = {"kind": "event", "did": "opened"}
HOUR = 60 * M


@pytest.fixture
def world(tmp_path: Path):
    found = World(tmp_path)
    yield found
    found.writer.close()


def rule(when: dict, **limits: object) -> dict:
    return {"when": when, "action": {"way": "slack"}, "limits": {"autonomy": "act", **limits}}


def tried(world: World, *, segments: dict | None = None, from_: str = "", to: str = "", **rules: dict) -> tuple[Found, list[Ended]]:
    ended: list[Ended] = []
    found = trying.run(world.config, Asked(rules=rules, segments=segments or {}, from_=from_, to=to), each=ended.append, firings_max=100)
    return found, sorted(ended, key=lambda one: (one.fired_us, one.id))


def open_at(world: World, *who: str, seconds: float = 1.0) -> None:
    for number, recipient in enumerate(who):
        world.hear(did("opened", world.clock.now_us() + number, world.clock.now_us(), recipient))
        world.clock.sleep_s(seconds)


def random_days(folder: Path, seed: int) -> tuple[World, dict[str, dict], int]:
    """Return a world in which rules were in force for some days, with them and the time from which they were."""
    rng = random.Random(seed)
    world = World(folder, 1 + seed % 3)
    whens = [CLICKED_NOT_BOUGHT, OPENED, {"kind": "segment", "entered": "s"}, {"kind": "segment", "left": "s"}]
    return world, *some_days(world, rng, whens)


def command_on(world: World, file: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    settings = file.with_name("midflight.yaml")
    settings.write_text(yaml.safe_dump({"data": str(world.config.folder), "shards": world.config.shards}))
    monkeypatch.setenv("MIDFLIGHT_CONFIG", str(settings))
    backtest.command(file, **({"from_": "", "to": "", "others": False, "as_json": False, "csv_path": None} | options))


@pytest.mark.parametrize("seed", range(4))
def test_the_command_fires_what_fired_live(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids, people and times are those of the store, whatever has become of it meanwhile; the file and the sums say the same."""
    world, rules, from_us = random_days(tmp_path, seed)
    live = {row[0]: row[1:] for row in world.table("id, rule, version, recipient, fired_us FROM firings")}
    (world.config.folder / "store.db").write_bytes(b"of another version, or damaged")
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"rules": rules}))
    command_on(world, file, monkeypatch, as_json=True, csv_path=tmp_path / "out.csv", from_=iso_us(from_us))
    *rows, sums = map(msgspec.json.decode, capsys.readouterr().out.splitlines())
    assert len(live) >= 3
    # The API tells times by the second.
    assert {row["id"]: (row["rule"], row["version"], row["recipient"], row["fired_at"][:19]) for row in rows} == {
        id: (name, version, who, iso_us(fired_us)[:19]) for id, (name, version, who, fired_us) in live.items()
    }
    with (tmp_path / "out.csv").open() as written:
        assert {row["id"] for row in csv.DictReader(written)} == live.keys()
    assert sum(one["fired"] for one in sums["rules"]) == len(live) and sum(sum(one["hours"].values()) for one in sums["rules"]) == len(live)
    assert sum(n for one in sums["rules"] for n in one["ends"].values()) == len(live)
    world.writer.close()


def iso_us(at_us: int) -> str:
    return f"{backtest.moment(at_us)[:19]}.{at_us % 1_000_000:06d}"


def test_definitions_that_hold_from_a_batch_on_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where the log's own definitions do not hold from their place on, the firings are not those of the store."""
    world, _, _ = random_days(tmp_path, 1)
    live = {id for (id,) in world.table("id FROM firings")}
    watched = {"none": rule({"kind": "event", "did": "complained", "campaign": "no such one"})}
    asked = Asked(rules=watched, others=True)
    ended: list[Ended] = []
    trying.run(world.config, asked, each=ended.append)
    assert {one.id for one in ended} == live
    ended.clear()
    monkeypatch.setattr(trying.Folded, "parts_of", lambda _, records: iter([records] if records else []))
    trying.run(world.config, asked, each=ended.append)
    assert {one.id for one in ended} != live
    world.writer.close()


# -- limits, by the log's time ---------------------------------------------------------------------------------------------


def test_one_person_is_not_written_to_again_and_again(world: World) -> None:
    """A cap on each person and a cooldown drop what is beyond them; nobody else is touched by that."""
    open_at(world, "ada@x.example", "ada@x.example", "bob@x.example")
    world.wait(25 * 60)
    open_at(world, "ada@x.example")
    found, ended = tried(world, r=rule(OPENED, per_recipient=[{"count": 1, "hours": 24}]))
    assert [(one.recipient[:3], one.end, one.reason) for one in ended] == [
        ("ada", "sent", "within_limits"), ("ada", "dropped", "per_recipient"), ("bob", "sent", "within_limits"),
        ("ada", "sent", "within_limits"),
    ]  # fmt: skip
    (one,) = found.rules
    assert (one.fired, one.people, one.ends, one.reasons) == (4, 2, {"sent": 3, "dropped": 1}, {"per_recipient": 1})


def test_a_cap_of_the_rule_makes_wait_and_what_waits_too_long_expires(world: World) -> None:
    """Two an hour: the third goes when an hour is over, by the log's time, and no sooner; where that is too late it never goes."""
    open_at(world, *(f"p{n}@x.example" for n in range(5)))
    world.wait(3 * 60)
    _, ended = tried(world, r=rule(OPENED, per_hour=2))
    waited = [(one.acted_us - one.fired_us) / M for one in ended]
    assert [one.end for one in ended] == ["sent"] * 5
    assert max(waited[:2]) < 0.1 and all(60 <= minutes <= 62 for minutes in waited[2:4]) and 120 <= waited[4] <= 124
    _, ended = tried(world, r=rule(OPENED, per_hour=2, expires_minutes=90))
    assert [one.end for one in ended] == ["sent"] * 4 + ["expired"]


def test_quiet_hours_are_those_of_the_person(world: World) -> None:
    """The zone that somebody gave counts, and waits end when his night does."""
    world.hear(Event(source="esp", event_id="z", kind="identified", recipient="ada@x.example", traits={"timezone": "Asia/Tokyo"}))
    world.wait(1)
    open_at(world, "ada@x.example", "bob@x.example")
    world.wait(30 * 60)
    at = {"ada@x.example": 9 * HOUR, "bob@x.example": 0}
    _, ended = tried(world, r=rule(OPENED, hours={"quiet_from": "21:00", "quiet_until": "08:00"}))
    for one in ended:
        local = (one.acted_us + at[one.recipient]) // HOUR % 24
        assert one.end == "sent" and 8 <= local < 21
    assert ended[0].acted_us != ended[1].acted_us


def test_who_has_left_is_not_written_to_from_then_on(world: World) -> None:
    """An unsubscribe counts from its own time: what fired before would have gone."""
    open_at(world, "ada@x.example")
    world.wait(5)
    world.hear(did("unsubscribed", 1, world.clock.now_us()))
    world.wait(5)
    open_at(world, "ada@x.example")
    _, ended = tried(world, r=rule(OPENED))
    assert [(one.end, one.reason, one.words) for one in ended] == [("sent", "within_limits", ""), ("dropped", "suppressed", "unsubscribed")]


def test_an_address_that_is_dead_is_not_written_to(world: World) -> None:
    """What bounces say of an address counts in a backtest as it does live, and so does a list that somebody put in."""
    gone = {"bounce_class": "hard", "code": "5.1.1", "detail": "550 5.1.1 The email account that you tried to reach does not exist"}
    for day in range(4):
        world.hear(msgspec.structs.replace(did("bounced", day, world.clock.now_us(), "ada@x.example", **gone), message_id=f"m{day}"))
        world.wait(2 * 24 * 60)
    listed = {"do": "suppress", "recipients": ["eve@x.example"], "who": "ada"}
    world.writer.append([Record("definition", "suppressions", 0, {}, msgspec.json.encode(listed))])
    for number, who in enumerate(("ada", "eve", "bob")):
        sent = did("sent", 10 + number, world.clock.now_us(), f"{who}@x.example")
        world.hear(msgspec.structs.replace(sent, message_id=f"s{number}"))
    _, ended = tried(world, r=rule({"kind": "event", "did": "sent"}))
    assert {one.recipient[:3]: one.reason for one in ended} == {"ada": "suppressed", "eve": "suppressed", "bob": "within_limits"}


def test_holdout_shadow_and_asking_are_told(world: World) -> None:
    """Who is held out is who would be live; a rule that observes says what it would do; one that asks is answered by nobody."""
    who = [f"p{n}@x.example" for n in range(20)]
    open_at(world, *who)
    found, ended = tried(world, h=rule(OPENED, holdout=0.5, seed=7), o=rule(OPENED, autonomy="observe"), s=rule(OPENED, autonomy="suggest"))
    out = {one.recipient for one in ended if one.rule == "h" and one.end == "held_out"}
    assert out == {one for one in who if held_out(7, "h", one, 0.5)} and 0 < len(out) < 20
    assert [one.ends for one in found.rules[1:]] == [{"observed": 20}, {"suggested": 20}]


def test_only_the_time_asked_for_is_told(world: World) -> None:
    """`from` and `to` bound what fires; what was before still makes segments what they are."""
    open_at(world, "ada@x.example")
    world.wait(120)
    open_at(world, "ada@x.example", "bob@x.example")
    world.wait(120)
    open_at(world, "ada@x.example")
    fans, into = {"did": "opened", "at_least": 2}, {"kind": "segment", "entered": "fans"}
    found, ended = tried(world, segments={"fans": fans}, from_="3h", to="1h", r=rule(OPENED), f=rule(into))
    assert sorted((one.rule, one.recipient[:3]) for one in ended) == [("f", "ada"), ("r", "ada"), ("r", "bob")]
    assert found.people == 2


# -- what people type ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: [", "neither YAML nor JSON"),
        ("- a", "Not a file of rules"),
        ("rule: {}", "Did you mean `rules`?"),
        ("rules: {}", "No rule is tried"),
        ("rules: {a: 1}", "a mapping of mappings"),
        ("rules: {a: {when: {kind: event, did: opened}, action: {way: x}}, a: {}}", "stands twice"),
        ("rules: {a: {when: {kind: event, did: opend}, action: {way: x}}}", "Did you mean `opened`?"),
        ("rules: {a: {when: {kind: segment, entered: nobody}, action: {way: x}}}", "Unknown segment `nobody`"),
        ("segments: {s: {did: flew}}\nrules: {a: {when: {kind: event, did: opened}}}", "Nobody does that"),
    ],
)
def test_a_file_that_is_wrong_says_so(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    """One line with what is wrong; nothing is written."""
    open_at(world, "ada@x.example")
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    with pytest.raises(MidflightError) as wrong:
        command_on(world, file, monkeypatch)
    assert said in wrong.value.text() and "\n" not in wrong.value.text()


def test_what_cannot_be_read_is_told(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, an empty log, no time, and an end before its beginning."""
    file = tmp_path / "rules.json"
    file.write_bytes(msgspec.json.encode({"rules": {"a": rule(OPENED)}}))
    cases = (({}, "log is empty"), ({"from_": "yesterday"}, "Not a time"), ({"from_": "1h", "to": "2h"}, "Nothing lies between"))
    for options, said in cases:
        with pytest.raises(MidflightError, match=said):
            command_on(world, file, monkeypatch, **options)
        if not options:
            open_at(world, "ada@x.example")
    with pytest.raises(MidflightError, match="Cannot write"):
        command_on(world, file, monkeypatch, csv_path=tmp_path)
    with pytest.raises(MidflightError, match="Cannot read"):
        command_on(world, tmp_path / "none.yaml", monkeypatch)
    assert commands.summary("backtest").startswith("Say what rules would have done")


def test_yaml_may_say_no(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The trigger's word `no` is a name, although YAML takes it for false."""
    world.hear(did("clicked", 1, world.clock.now_us()))
    world.wait(31)
    file = tmp_path / "rules.yaml"
    file.write_text("rules: {r: {when: {kind: absence, after: {did: clicked}, no: {did: converted}, within: 30m}, action: {way: x}}}")
    command_on(world, file, monkeypatch, as_json=True)
    row, sums = map(msgspec.json.decode, capsys.readouterr().out.splitlines())
    assert (row["recipient"], row["end"], sums["rules"][0]["fired"]) == ("ada@x.example", "suggested", 1)


def test_people_are_shown_tables_and_bars(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sums, why not, the first firings and a bar an hour; a name that would steer the terminal does not."""
    open_at(world, "ada@x.example", "ada@x.example")
    world.wait(90)
    open_at(world, "bob@x.example")
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"rules": {"thanks": rule(OPENED, per_recipient=[{"count": 1, "hours": 24}])}}))
    command_on(world, file, monkeypatch)
    out = capsys.readouterr().out
    assert "ada@x.example" in out and "the rule has acted on this recipient" in " ".join(out.split()) and "events/s" in out
    assert backtest.printable("\x1b[31mred") == " [31mred"
    bars = [line for line in out.splitlines() if "█" in line]
    assert [line.split()[-1] for line in bars] == ["2", "1"]
