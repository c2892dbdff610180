"""What becomes of a firing, check by check; and the hours of a person's own day, held against every minute of them."""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random
from zoneinfo import ZoneInfo

import msgspec
import pytest

from midflight.decide import hours as hours_module
from midflight.decide.hours import DAYS, Hours, closed, opens_us, zone_for, zone_of
from midflight.decide.limits import (
    AUTONOMY,
    CHECKS,
    KINDS,
    REASONS,
    Cap,
    Case,
    Facts,
    Fired,
    Limits,
    Radius,
    expires_us,
    held_out,
    judge,
)  # fmt: skip

MINUTE, HOUR, DAY = 60_000_000, 3_600_000_000, 86_400_000_000
NOW = 1_764_000_000_000_000


def at(text: str, zone: str = "UTC", fold: int = 0) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()) * 1_000_000


# -- hours ---------------------------------------------------------------------------------------------------------------

# Clocks that change by an hour, by half an hour, at midnight, across the date line, with odd offsets, and not at all.
CHANGES = (
    ("Europe/Berlin", "2025-03-30T00:00"), ("Europe/Berlin", "2025-10-26T00:00"), ("America/New_York", "2025-11-02T00:00"),
    ("Australia/Lord_Howe", "2025-10-05T00:00"), ("Australia/Lord_Howe", "2025-04-06T00:00"), ("America/Santiago", "2025-09-06T12:00"),
    ("Pacific/Apia", "2011-12-29T12:00"), ("Pacific/Chatham", "2025-09-28T00:00"), ("Asia/Kathmandu", "2025-06-01T00:00"),
    ("Africa/Casablanca", "2025-02-23T00:00"), ("UTC", "2025-06-01T00:00"),
)  # fmt: skip


def random_hours(random: Random) -> Hours | None:
    """Return some hours, or None where no hour of the week would be left."""
    # Clocks are changed in the first hours of the day.
    times = [f"{random.choice((random.randrange(24), random.randrange(4))):02}:{random.choice((0, 0, 30, 59)):02}" for _ in range(4)]
    said: dict = {}
    if random.random() < 0.7:
        said |= {"quiet_from": times[0], "quiet_until": times[1]}
    if random.random() < 0.5:
        said |= {"send_from": min(times[2:]), "send_until": max(times[2:])}
    if random.random() < 0.4:
        said["send_days"] = random.sample(DAYS, random.randint(1, 6))
    try:
        return msgspec.convert(said, Hours)
    except msgspec.ValidationError:
        return None


def open_by_the_wall(hours: Hours, zone: str, now_us: int) -> bool:
    """Tell the same by the words on a clock, with no arithmetic."""
    local = datetime.fromtimestamp(now_us // 1_000_000, ZoneInfo(zone))
    text, first, second = f"{local:%H:%M}", hours.quiet_from, hours.quiet_until
    quiet = bool(first) and (first <= text < second if first < second else text >= first or text < second)
    day = not hours.send_days or DAYS[local.weekday()] in hours.send_days
    return not quiet and day and (not hours.send_from or hours.send_from <= text < hours.send_until)


def wrong_hours(count: int) -> list[str]:
    """Return where the moment of opening is not the first minute that is open by the wall, over random hours near changes of clocks."""
    wrong = []
    for seed in range(count):
        random = Random(seed)
        hours = random_hours(random)
        if hours is None:
            continue
        zone, around = random.choice(CHANGES)
        now_us = at(around, zone) + random.randrange(-24 * 60, 36 * 60) * MINUTE + random.choice((0, 0, 17_500_000))
        expected = now_us
        if not open_by_the_wall(hours, zone, now_us):
            expected = now_us // MINUTE * MINUTE + MINUTE
            while not open_by_the_wall(hours, zone, expected):
                expected += MINUTE
        found = opens_us(hours, zone_of(zone), now_us)
        if found != expected:
            wrong.append(f"{seed} {zone} {hours}: {found - expected} us off")
    return wrong


def test_hours_open_at_the_first_minute_that_is_open_by_the_wall() -> None:
    """For random hours near changes of the clocks, the moment is that which looking at the wall every minute finds."""
    assert not wrong_hours(200)


def test_hours_that_forget_changes_of_the_clocks_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without the moments at which clocks change, the end of a quiet time in a gap is missed."""
    monkeypatch.setattr(hours_module, "_offset_s", lambda zone, at_s: 0.0)
    with pytest.raises(AssertionError):
        test_a_night_with_a_gap_and_a_night_with_a_fold()


def test_a_night_with_a_gap_and_a_night_with_a_fold() -> None:
    """Quiet until 02:30: where that does not exist it ends when clocks go forward; where it comes twice, the second time is quiet again."""
    hours = Hours(quiet_from="22:00", quiet_until="02:30")
    berlin = zone_of("Europe/Berlin")
    assert opens_us(hours, berlin, at("2025-03-29T23:00", "Europe/Berlin")) == at("2025-03-30T03:00", "Europe/Berlin")
    first, second = at("2025-10-26T02:30", "Europe/Berlin", 0), at("2025-10-26T02:30", "Europe/Berlin", 1)
    assert opens_us(hours, berlin, at("2025-10-25T23:00", "Europe/Berlin")) == first and second - first == HOUR
    assert closed(hours, berlin, at("2025-10-26T02:10", "Europe/Berlin", 1)) == "quiet_hours"
    assert opens_us(hours, berlin, at("2025-10-26T02:10", "Europe/Berlin", 1)) == second


def test_the_recipients_own_zone_counts_and_anybodys_text_is_no_harm() -> None:
    """What an attribute says is a zone or is not; then the rule's own is taken."""
    hours = Hours(zone="America/New_York")
    assert zone_for(hours, "Europe/Berlin").key == "Europe/Berlin" and zone_for(hours, " UTC ") is UTC
    for said in ("", "Nowhere/None", "../../etc/passwd", "America", "a" * 500, "\0", 7, None, ["x"], "Europe/Berlin\n/x", "localtime/../x"):
        assert zone_for(hours, said).key == "America/New_York"


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"quiet_from": "21:00"}, "come together"), ({"quiet_from": "9:00", "quiet_until": "10:00"}, "matching regex"),
        ({"quiet_from": "09:00", "quiet_until": "09:00"}, "the same"), ({"send_from": "18:00", "send_until": "09:00"}, "before"),
        ({"zone": "Europe/Berln"}, "expected a time zone"), ({"send_days": ["monday"]}, "Invalid enum value"),
        ({"quiet_from": "08:00", "quiet_until": "20:00", "send_from": "09:00", "send_until": "17:00"}, "no hour of the week"),
        ({"quiet": "21:00"}, "unknown field"),
    ],
)  # fmt: skip
def test_hours_that_cannot_be_meant_are_refused_with_their_place(said: dict, error: str) -> None:
    """A rule that could never act is an error when it is put down, not a silence afterwards."""
    with pytest.raises(msgspec.ValidationError, match=error) as raised:
        msgspec.convert({"hours": said}, Limits)
    assert "$.hours" in str(raised.value)


# -- the checks ----------------------------------------------------------------------------------------------------------

QUIET = Hours(quiet_from="00:00", quiet_until="23:59")
# Everything speaks against it; each step takes away what the check before has answered to.
STEPS = (
    ("loop", {"chain": ()}),
    ("expired", {"cause_us": NOW}),
    ("suppressed", {"suppressed": ""}),
    ("holdout", {"holdout": 0.0}),
    ("per_recipient", {"per_recipient": ()}),
    ("cooldown", {"cooldown_hours": 0.0}),
    ("person_cap", {"person": 0}),
    ("asks", {"autonomy": "act_within_caps"}),
    ("held", {"held": ""}),
    ("breaker", {"breaker": "", "provider": "blocked"}),
    ("breaker", {"provider": ""}),
    ("quiet_hours", {"hours": Hours(send_days=("sun",))}),
    ("send_window", {"hours": Hours()}),
    ("rule_cap", {"rule_hour": 0}),
    ("rule_cap", {"rule_day": 0}),
    ("blast_radius", {"people": 0}),
    ("blast_radius", {"people_way": 0}),
    ("within_limits", {}),
)
WORST = {
    "chain": ("cart",), "cause_us": NOW - 2 * DAY, "suppressed": "complained", "holdout": 0.9, "per_recipient": (Cap(count=1, hours=2),),
    "cooldown_hours": 2.0, "person": 3, "autonomy": "suggest", "held": "odd", "breaker": "bounces", "hours": QUIET, "rule_hour": 9,
    "rule_day": 9, "people_way": 5, "people": 10, "times_us": (NOW - HOUR,), "per_hour": 1, "per_day": 1,
}  # fmt: skip
WHO = next(f"p{n}" for n in range(100) if held_out(0, "cart", f"p{n}", 0.9))


def case_of(said: dict) -> Case:
    def of(kind: type, **more: object):
        return kind(**{name: said[name] for name in kind.__struct_fields__ if name in said} | more)

    fired = of(Fired, id="f", rule="cart", version=1, recipient=said.get("recipient", WHO))
    return Case(
        fired=fired, limits=of(Limits), way="mail", to_person=said.get("to_person", True), autonomy=said.get("autonomy", "act"),
        radius=Radius(people_per_hour=10, per_way={"mail": 5}, ceiling_per_hour=50), facts=of(Facts, now_us=NOW),
    )  # fmt: skip


def test_checks_answer_in_their_order() -> None:
    """With everything against it the first check answers; each that is answered to gives way to the next."""
    said = dict(WORST)
    for reason, taken_away in STEPS:
        found = judge(case_of(said))
        assert found.reason == reason and found.kind in KINDS and reason in REASONS
        assert judge(case_of(said)) == found
        said |= taken_away
    assert len(CHECKS) == 10


def test_who_is_compared_is_decided_once_holding_out_is() -> None:
    """Those whom a loop, lateness or a suppression keeps out are on no side; those whom a limit keeps out are."""
    said = dict(WORST)
    for reason, taken_away in STEPS:
        found = judge(case_of(said))
        assert found.eligible == (reason not in ("loop", "expired", "suppressed"))
        said |= taken_away


@pytest.mark.parametrize("autonomy", AUTONOMY)
def test_how_far_a_rule_goes_on_its_own(autonomy: str) -> None:
    """Observe does nothing, suggest asks, within caps asks beyond them, and what may act asks only from the ceiling on."""
    within = judge(case_of({"autonomy": autonomy, "cause_us": NOW}))
    beyond = judge(case_of({"autonomy": autonomy, "cause_us": NOW, "people": 10}))
    far = judge(case_of({"autonomy": autonomy, "cause_us": NOW, "people": 50}))
    expected = {"observe": ("observed",) * 3, "suggest": ("suggest",) * 3, "act_within_caps": ("act", "suggest", "suggest")}
    assert (within.kind, beyond.kind, far.kind) == expected.get(autonomy, ("act", "act", "suggest"))
    approved = judge(case_of({"autonomy": autonomy, "cause_us": NOW, "people": 99, "approved": True}))
    assert approved.kind == ("observed" if autonomy == "observe" else "act")
    if autonomy == "observe":
        assert (within.would, beyond.would) == ("act", "suggest")


def test_what_reaches_nobody_has_no_person_to_ask_about() -> None:
    """A firing about nobody is never held out and touches no radius; a way out to one's own team goes past suppressions."""
    nobody = judge(case_of({"recipient": "", "cause_us": NOW, "people": 99, "holdout": 0.9, "autonomy": "act_within_caps"}))
    assert nobody.kind == "act"
    team = {"cause_us": NOW, "suppressed": "complained", "person": 99, "to_person": False}
    assert judge(case_of(team)).kind == "act" and judge(case_of(team | {"to_person": True})).reason == "suppressed"


def test_bounds_are_exact_to_the_microsecond() -> None:
    """The last moment before it is too late is not too late; a window's own length ago is out of it; a clock that ran ahead counts."""
    limits = {"expires_minutes": 5, "per_recipient": (Cap(count=1, hours=1),)}
    assert judge(case_of(limits | {"cause_us": NOW - 5 * MINUTE})).kind == "act"
    assert judge(case_of(limits | {"cause_us": NOW - 5 * MINUTE - 1})).reason == "expired"
    for times_us, kind in (((NOW - HOUR,), "act"), ((NOW - HOUR + 1,), "drop"), ((NOW + HOUR - 1,), "drop"), ((NOW + HOUR,), "act")):
        assert judge(case_of(limits | {"cause_us": NOW, "times_us": times_us})).kind == kind
    assert expires_us(NOW, Limits(expires_minutes=5)) == NOW + 5 * MINUTE


def test_a_wait_says_until_when() -> None:
    """Quiet hours name their end in the recipient's zone; what waits for its rule is looked at again within a second."""
    hours = Hours(quiet_from="21:00", quiet_until="08:00", zone="UTC")
    now_us = at("2025-11-24T20:30")
    case = case_of({"cause_us": NOW, "hours": hours, "zone": "Europe/Berlin", "expires_minutes": 6000})
    found = judge(msgspec.structs.replace(case, facts=msgspec.structs.replace(case.facts, now_us=now_us)))
    assert found.until_us == at("2025-11-25T08:00", "Europe/Berlin") and "Tue 08:00 Europe/Berlin" in found.words and not found.wide
    wide = judge(case_of({"cause_us": NOW, "held": "odd"}))
    assert wide.wide and NOW < wide.until_us <= NOW + 1_000_000


def test_holding_out_takes_the_share_and_everybody_of_a_smaller_one() -> None:
    """The share is what was asked for; more of it adds people; rules do not hold out the same people."""
    people = [f"p{n}@x.example" for n in range(4000)]
    sides = {share: {p for p in people if held_out(3, "cart", p, share)} for share in (0.05, 0.1, 0.5)}
    assert sides[0.05] < sides[0.1] < sides[0.5]
    for share, side in sides.items():
        assert abs(len(side) - 4000 * share) < 4.5 * (4000 * share * (1 - share)) ** 0.5
    other = {p for p in people if held_out(3, "other", p, 0.5)}
    assert abs(len(other & sides[0.5]) - 1000) < 130
    assert not held_out(3, "cart", "", 0.9) and not held_out(3, "cart", "x", 0.0) and held_out(0, "a", "\ud800", 0.9) in (True, False)


def test_limits_are_strict() -> None:
    """A bound that is out of range or has no name is refused with its place."""
    for raw, where in (
        ({"per_recipient": [{"count": 0, "hours": 1}]}, "$.per_recipient[...].count"), ({"holdout": 1.0}, "$.holdout"),
        ({"expires_minutes": 20_000}, "$.expires_minutes"), ({"autonomy": "yes"}, "$.autonomy"), ({"per_minute": 3}, "per_minute"),
    ):  # fmt: skip
        with pytest.raises(msgspec.ValidationError) as raised:
            msgspec.convert(raw, Limits)
        assert where.split("[")[0] in str(raised.value)
