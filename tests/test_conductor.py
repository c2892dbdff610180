"""The conductor: everybody exactly once, in waves that the policy asked for, whatever is paused, dropped, pinned or killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from midflight.act.audience import Recipient, held_out
from midflight.act.campaigns import Campaigns, NotNow
from midflight.act.conductor import give_out_due, moments_us
from midflight.act.definition import campaign_of
from midflight.act.outbox import Outbox, Result
from midflight.act.standing import Arm, Standing
from midflight.act.standings import prior_of
from midflight.decide.delays import AGES_S, BUCKETS
from midflight.decide.evidence import Prior
from midflight.kit.errors import NotFound

START_US = 1_764_000_000_000_000
MINUTE_US = 60_000_000
VARIANTS = [{"name": name, "subject": "s", "text": "t {{ unsubscribe_url }}"} for name in "ABC"]


def definition(**changes: object):
    raw = {"name": "spring", "channel": "main", "from_address": "a@shop.example", "audience": {"csv": "x"}, "variants": VARIANTS}
    return campaign_of(raw | changes, {"main"})


def people(count: int) -> list[Recipient]:
    return [Recipient(key=f"p{n}@example.com", address=f"P{n}@example.com", attributes={"n": str(n)}) for n in range(count)]


class Desk:
    """A campaign with its outbox; messages are taken as sent at once, the numbers answer what a test wants."""

    def __init__(self, folder: Path, count: int = 1000, favourite: int = -1, **changes: object) -> None:
        self.ready = definition(**changes)
        self.outbox = Outbox(folder / "outbox.db")
        self.campaigns = Campaigns(self.outbox)
        self.favourite = favourite
        known = self.outbox.db.execute("SELECT id FROM campaigns").fetchone()
        self.id = known[0] if known else self.campaigns.add(self.ready.campaign, people(count), "ada", START_US)
        if not known:
            self.campaigns.move(self.id, "sending", "ada", "", START_US)

    def responses(self, campaign: str, variants: list[str], waves: list[str]) -> np.ndarray:
        """One in twenty responds after five minutes to the favourite, one in a hundred to others."""
        found = np.zeros((len(waves), len(variants), BUCKETS), np.int64)
        sent = self.outbox.sent(self.id, len(waves), len(variants))
        found[:, :, 13] = sent // 100
        if self.favourite >= 0:
            found[:, self.favourite, 13] = sent[:, self.favourite] // 20
        return found

    def tick(self, now_us: int) -> int:
        wave = give_out_due(self.campaigns, self.campaigns.get(self.id), self.ready, Prior(), self.responses, now_us)
        waiting = self.outbox.waiting(self.id, now_us, 1 << 30)
        self.outbox.call([item.intent for item in waiting], now_us)
        self.outbox.settle([Result(intent=item.intent, state=2) for item in waiting], now_us)
        return wave

    def run(self, minutes: int, step: int = 1, start: int = 0) -> None:
        for minute in range(start, minutes + 1, step):
            self.tick(START_US + minute * MINUTE_US)

    def assigned(self) -> list[tuple]:
        return self.outbox.db.execute("SELECT recipient, wave, variant, propensity FROM messages ORDER BY recipient").fetchall()


def test_everybody_gets_one_message(tmp_path: Path) -> None:
    """By the end of the hours each person has exactly one message; the better variant has most of them, with its chances noted."""
    desk = Desk(tmp_path, favourite=1)
    desk.run(8 * 60)
    assigned = desk.assigned()
    assert len({row[0] for row in assigned}) == len(assigned) == 1000
    assert desk.campaigns.get(desk.id).left == 0
    counts = Counter(row[2] for row in assigned)
    assert counts[1] > 500
    for wave in desk.campaigns.waves(desk.id):
        mine = [row for row in assigned if row[1] == wave.wave]
        assert len(mine) == wave.recipients
        for variant in range(3):
            # Chances are kept to one person: shares are rounded so that each fits.
            assert abs(sum(row[2] == variant for row in mine) - wave.shares[variant] * wave.recipients) <= 1
        assert all(abs(row[3] - wave.shares[row[2]]) < 1e-12 for row in mine)


def test_who_gets_what_does_not_follow_the_list(tmp_path: Path) -> None:
    """Within a wave the variants are spread over its people at random: none takes the first places."""
    desk = Desk(tmp_path, count=3000, policy={"kind": "fixed_split"}, waves={"hours": 1, "every_minutes": 60})
    desk.tick(START_US)
    places = {key: place for place, key in desk.campaigns.next_people(desk.campaigns.get(desk.id), 0)} or {
        key: place for place, key in desk.outbox.db.execute("SELECT place, recipient FROM people")
    }
    first = [row[2] for row in sorted(desk.assigned(), key=lambda row: places[row[0]])[:500]]
    assert all(120 < first.count(variant) < 215 for variant in range(3))


def test_the_held_out_get_nothing(tmp_path: Path) -> None:
    """A holdout's people are in no wave."""
    desk = Desk(tmp_path, holdout=0.2)
    desk.run(8 * 60, 5)
    held = desk.campaigns.get(desk.id).held
    assert 140 < held < 260 and len({row[0] for row in desk.assigned()}) == 1000 - held
    assert not any(held_out(desk.ready.campaign.seed, "spring", row[0], 0.2) for row in desk.assigned())


@pytest.mark.parametrize("count", [0, 1, 2])
def test_tiny_audiences_are_sane(tmp_path: Path, count: int) -> None:
    """Nobody gets nothing; one person gets one message."""
    desk = Desk(tmp_path, count=count)
    desk.run(8 * 60, 5)
    assert len(desk.assigned()) == count


def test_a_pause_holds_and_nothing_is_forgotten(tmp_path: Path) -> None:
    """While it is paused no wave is given out; after it, also after the hours are over, the rest goes."""
    desk = Desk(tmp_path)
    desk.run(60)
    desk.campaigns.move(desk.id, "paused", "bob", "looks wrong", START_US)
    before = len(desk.assigned())
    desk.run(9 * 60, 1, 61)
    assert len(desk.assigned()) == before < 1000
    desk.campaigns.move(desk.id, "sending", "bob", "was fine", START_US)
    desk.tick(START_US + 541 * MINUTE_US)
    assert len(desk.assigned()) == 1000
    assert [(c["who"], c["what"]) for c in desk.campaigns.changes(desk.id)] == [
        ("ada", "added"), ("ada", "sending"), ("bob", "paused"), ("bob", "sending"),
    ]  # fmt: skip


def test_dropped_and_pinned_arms_are_kept_to(tmp_path: Path) -> None:
    """A dropped variant gets nobody any more, a pinned one everybody; the last one cannot be dropped."""
    desk = Desk(tmp_path)
    desk.run(30)
    waves = len(desk.campaigns.waves(desk.id))
    desk.campaigns.drop(desk.id, 0, "ada", "typo", START_US)
    desk.run(60, 1, 31)
    assert not [row for row in desk.assigned() if row[1] > waves and row[2] == 0]
    waves = len(desk.campaigns.waves(desk.id))
    desk.campaigns.pin(desk.id, 2, "ada", "the boss likes it", START_US)
    desk.run(8 * 60, 1, 61)
    assert {row[2] for row in desk.assigned() if row[1] > waves} == {2}
    with pytest.raises(NotNow):
        desk.campaigns.pin(desk.id, 0, "ada", "", START_US)
    desk.campaigns.drop(desk.id, 1, "ada", "", START_US)
    with pytest.raises(NotNow):
        desk.campaigns.drop(desk.id, 2, "ada", "", START_US)
    with pytest.raises(NotFound):
        desk.campaigns.drop(desk.id, 9, "ada", "", START_US)


def test_states_move_only_where_there_is_a_way(tmp_path: Path) -> None:
    """A stopped campaign stays stopped and what waited is taken out; a name is used once."""
    desk = Desk(tmp_path)
    give_out_due(desk.campaigns, desk.campaigns.get(desk.id), desk.ready, Prior(), desk.responses, START_US)
    waiting = desk.outbox.counts(desk.id)["planned"]
    assert waiting > 0
    desk.campaigns.move(desk.id, "stopped", "ada", "enough", START_US)
    assert desk.outbox.counts(desk.id)["skipped"] == waiting
    for state in ("sending", "paused", "draft", "done"):
        with pytest.raises(NotNow):
            desk.campaigns.move(desk.id, state, "ada", "", START_US)
    with pytest.raises(NotNow, match="already"):
        desk.campaigns.add(desk.ready.campaign, people(3), "ada", START_US)
    with pytest.raises(NotFound, match="spring"):
        desk.campaigns.named("sprnig")


def test_a_throttle_starts_the_end_early_enough(tmp_path: Path) -> None:
    """With a bound on messages a minute no wave is larger than it allows, and the list still ends with the hours."""
    desk = Desk(tmp_path, count=2000, waves={"hours": 8, "every_minutes": 5, "per_minute": 6})
    desk.run(8 * 60, 5)
    assert max(wave.recipients for wave in desk.campaigns.waves(desk.id)) <= 30
    assert len(desk.assigned()) == 2000


def test_the_last_moment_is_the_end_of_the_hours(tmp_path: Path) -> None:
    """Hours that the cadence does not divide end with a moment of their own."""
    desk = Desk(tmp_path, waves={"hours": 1, "every_minutes": 25})
    assert [(moment - START_US) // MINUTE_US for moment in moments_us(desk.campaigns.get(desk.id))] == [0, 25, 50, 60]


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_conductor import Desk
Desk(Path({folder!r}), count=300, favourite=1).run(8 * 60, 5)
"""


@pytest.mark.parametrize("point", ["before_wave:3", "after_wave:3", "after_intent:4", "before_outcome:4", "after_move:1"])
def test_a_death_changes_nothing_of_who_gets_what(point: str, tmp_path: Path) -> None:
    """Killed at any point and started again, the same people get the same variants in the same waves, each once."""
    for folder, crash_at in ((tmp_path / "whole", ""), (tmp_path / "killed", point)):
        folder.mkdir()
        code = CHILD.format(tests=str(Path(__file__).parent), folder=str(folder))
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "MIDFLIGHT_CRASH_AT": crash_at}
        died = subprocess.run([sys.executable, "-c", code], env=env, timeout=120, check=False).returncode
        assert died == (-9 if crash_at else 0)
    killed = Outbox(tmp_path / "killed" / "outbox.db")
    killed.recover(START_US)
    killed.close()
    desk = Desk(tmp_path / "killed", count=300, favourite=1)
    if desk.campaigns.get(desk.id).state == "draft":
        desk.campaigns.move(desk.id, "sending", "ada", "", START_US)
    desk.run(8 * 60, 5)
    whole = Desk(tmp_path / "whole", count=300, favourite=1)
    assert len(desk.assigned()) == 300
    if not point.startswith(("after_intent", "before_outcome")):
        assert desk.assigned() == whole.assigned()


def test_past_campaigns_are_a_prior() -> None:
    """Their mean rate and their pace are what a new campaign starts with; few responses say nothing, and many never say too much."""
    slow = np.interp(np.log1p(AGES_S[:-1]), [0, np.log1p(6 * 3600), np.log1p(AGES_S[-2])], [0, 0.3, 0.98])
    curve = list(zip(AGES_S[:-1].tolist(), slow.tolist(), strict=True))

    def past(sent: int, responses: int) -> Standing:
        return Standing(at_us=1, arms=[Arm(name="A", sent=sent, responses=responses, rate=responses / sent)], curve=curve)

    usual = Prior()
    assert prior_of([]).rate == usual.rate and prior_of([past(1000, 5)]).curve_weight == usual.curve_weight
    found = prior_of([past(10_000, 500), past(10_000, 700)])
    assert found.rate == pytest.approx(0.06) and usual.curve_weight < found.curve_weight <= 30
    assert found.curve.sum() == pytest.approx(1.0) and found.curve[:20].sum() < usual.curve[:20].sum()
    assert prior_of([past(10_000, 9_000)] * 50).curve_weight == 30


def test_a_long_wave_goes_out_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wave of more people than are written at a time is given out over the next looks, and then waves wait for their time again."""
    monkeypatch.setattr("midflight.act.conductor.part_people", 40)
    desk = Desk(tmp_path, count=300, policy={"kind": "fixed_split"}, waves={"hours": 2, "every_minutes": 60})
    sizes = []
    for second in range(12):
        desk.tick(START_US + second * 1_000_000)
        sizes.append(sum(wave.recipients for wave in desk.campaigns.waves(desk.id)))
    assert sizes[:3] == [40, 80, 100] and sizes[3:] == [100] * 9
    desk.run(125, start=60)
    assert len(desk.assigned()) == 300 and max(wave.recipients for wave in desk.campaigns.waves(desk.id)) == 40
