"""What is said while everybody looks all the time is wrong in at most one experiment of twenty, whatever the trouble; and it is said."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import PCG64, Generator, SeedSequence

from midflight.decide import claims
from midflight.decide.claims import Claim, ClaimSettings, Labels, Pairs, _said, arms_max, bucket_min, compare, explain, judge, judge_all
from midflight.decide.delays import BUCKETS
from midflight.decide.evidence import Belief, Evidence, Prior, believe
from midflight.decide.policies import REGISTRY
from midflight.evaluate import campaign
from midflight.evaluate.troubles import TROUBLES
from midflight.stream.measures import DELAY_EDGES_S

HOUR = 3600.0
TOLD = ClaimSettings()


def random_of(*seed: int) -> Generator:
    return Generator(PCG64(SeedSequence(seed)))


def first_claim(rates: list[float], trouble: str, policy: str, recipients: int, *seed: int) -> campaign.Outcome:
    """Play one campaign, with a look for a claim at each of 121 moments until one is found."""
    return campaign.simulate(
        np.array(rates), recipients, 8.0, REGISTRY.get(policy)(), Prior(), TOLD, trouble, random_of(*seed)
    )  # fmt: skip


def sent_out(rates, sent, *, waves: int = 6, hours: float = 8.0, medians=3.0, seed: int = 1, live=None) -> Evidence:
    """Return what is known after some hours of equal waves of ``sent`` [K] recipients, with lognormal delays of ``medians`` hours."""
    random = random_of(30, seed)
    rates = np.asarray(rates, float)
    sent = np.broadcast_to(sent, rates.size)
    medians = np.broadcast_to(medians, rates.size) * HOUR
    at_s = np.arange(waves) * 1200.0
    responses = np.zeros((waves, rates.size, BUCKETS), np.int64)
    for w, k in np.ndindex(waves, rates.size):
        delay = medians[k] * np.exp(2.0 * random.standard_normal(random.binomial(sent[k], rates[k])))
        np.add.at(responses[w, k], np.searchsorted(DELAY_EDGES_S, delay[at_s[w] + delay <= hours * HOUR], side="right"), 1)
    return Evidence(
        now_s=hours * HOUR, end_s=max(8.0, hours) * HOUR, ahead=10, left=10_000, sent_at_s=at_s, sent=np.tile(sent, (waves, 1)),
        live=np.ones(rates.size, bool) if live is None else np.asarray(live, bool), responses=responses,
    )  # fmt: skip


def labels_of(evidence: Evidence, responses: np.ndarray | None = None) -> Labels:
    labels = Labels(evidence.arms)
    labels.update(evidence, evidence.responses if responses is None else responses)
    return labels


def said_of(evidence: Evidence) -> Claim:
    """Return the claim with what it waits for."""
    labels, belief = labels_of(evidence), believe(evidence, Prior())
    return explain(judge(labels, belief, evidence, TOLD), labels, belief, evidence, TOLD)


# -- how often a winner is a false one -----------------------------------------------------------------------------------

campaigns = 120


def equal_campaign(trouble: str, number: int) -> campaign.Outcome:
    """Play one of the campaigns whose arms are alike: two or three arms, adaptive or fixed shares."""
    policy = ("finite_list", "fixed_split", "top_two")[number // 2 % 3]
    return first_claim([0.03] * (2 + number % 2), trouble, policy, 16_000, 31, number)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_false_winners_are_rare(trouble: str) -> None:
    """Under equal rates, looked at all the while, at most one campaign of twenty ever names a winner, in every trouble."""
    wrong = sum(equal_campaign(trouble, number).claimed >= 0 for number in range(campaigns))
    assert wrong <= TOLD.alpha * campaigns


def test_without_speeds_false_winners_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: the same test that takes arms to mature alike names the faster arm of two equal ones far too often."""

    def alike(people: Labels, everybody: Labels, belief: Belief, evidence: Evidence, told: ClaimSettings) -> Claim:
        return claims._said(compare(people, belief.curve, told.alpha, speeds=False), np.flatnonzero(evidence.live), told.tolerance)

    monkeypatch.setattr(campaign, "judge_all", alike)
    found = [first_claim([0.03, 0.03], "delays", "fixed_split", 20_000, 32, number).claimed for number in range(60)]
    assert sum(arm >= 0 for arm in found) > 0.3 * len(found)
    # Arm 0 is the fast one.
    assert found.count(0) > 5 * found.count(1)


def test_a_plain_test_finds_false_winners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: the usual test of two rates at 5 %, looked at as often, names a winner in several times as many equal campaigns."""

    def plain(people: Labels, everybody: Labels, belief: Belief, evidence: Evidence, told: ClaimSettings) -> Claim:
        sent, came = evidence.sent.sum(0).clip(1), evidence.responses.sum((0, 2))
        rate = came.sum() / sent.sum()
        deviation = math.sqrt(max(rate * (1 - rate), 1e-12) * (1 / sent).sum())
        lead = float(np.ptp(came / sent)) / deviation
        return Claim(kind="winner", arms=(int((came / sent).argmax()),)) if came.sum() > 20 and lead > 1.96 else Claim(kind="not_yet")

    monkeypatch.setattr(campaign, "judge_all", plain)
    found = [first_claim([0.03, 0.03], "none", "fixed_split", 16_000, 33, number).claimed for number in range(80)]
    assert sum(arm >= 0 for arm in found) > 3 * TOLD.alpha * len(found)


def test_counting_machines_would_name_the_scanned_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where suspected machines count as people and their first two minutes too, the arm with a scanner wins falsely."""

    def trusting(people: Labels, everybody: Labels, belief: Belief, evidence: Evidence, told: ClaimSettings) -> Claim:
        return judge(everybody, belief, evidence, told)

    def from_the_first_second(self: Labels, evidence: Evidence, responses: np.ndarray) -> None:
        moved = responses.copy()
        moved[:, :, bucket_min] += moved[:, :, :bucket_min].sum(2)
        update(self, evidence, moved)

    update = Labels.update
    monkeypatch.setattr(campaign, "judge_all", trusting)
    monkeypatch.setattr(Labels, "update", from_the_first_second)
    found = [first_claim([0.03, 0.03], "machines", "fixed_split", 10_000, 34, number).claimed for number in range(20)]
    assert sum(arm >= 0 for arm in found) > 0.25 * len(found)


@pytest.mark.parametrize(("trouble", "least", "hours"), [("none", 0.95, 8), ("all", 0.5, 24)])
def test_a_large_difference_is_claimed(trouble: str, least: float, hours: float) -> None:
    """An arm twice as good as the others is named in nearly all campaigns in time, with all troubles in half of them in a day, and
    never another."""
    found = []
    for number in range(24):
        best = number % 3
        outcome = first_claim(np.where(np.arange(3) == best, 0.08, 0.04).tolist(), trouble, "top_two", 24_000, 35, number)
        found.append((outcome.claimed, best, outcome.claimed_at_s))
    right = [at for claimed, best, at in found if claimed == best]
    assert all(claimed in (best, -1) for claimed, best, _ in found)
    assert len(right) >= least * len(found) and np.median(right) <= hours * HOUR


# -- which claim is made when --------------------------------------------------------------------------------------------


def test_a_winner_is_named() -> None:
    """The better arm is the winner whichever it is, with evidence beyond what is needed."""
    for best in range(3):
        said = said_of(sent_out(np.where(np.arange(3) == best, 0.12, 0.05), 3000))
        assert (said.kind, said.arms, said.waits_for) == ("winner", (best,), "") and said.evidence >= 2 / TOLD.alpha


def test_extreme_ratios_are_claimed() -> None:
    """Ratios far beyond what is compared, huge counts and an arm without any response still give the right winner, and finite numbers."""
    for rates, sent in (([0.5, 0.001], 3000), ([0.3, 0.0], 2000), ([0.10, 0.13], 2_000_000)):
        evidence = sent_out(rates, sent, waves=2)
        said = said_of(evidence)
        assert said.kind == "winner" and said.arms == (int(np.argmax(rates)),) and math.isfinite(said.evidence)
        pairs = compare(labels_of(evidence), believe(evidence, Prior()).curve, TOLD.alpha)
        assert all(not np.isnan(field).any() for field in (pairs.low, pairs.high, pairs.best, pairs.ahead))


def test_no_difference_is_said_of_equals() -> None:
    """With very many responses, arms that are alike are said to be within the tolerance of each other, all of them."""
    said = said_of(sent_out([0.10, 0.10, 0.10], 60_000, hours=48))
    assert (said.kind, said.arms) == ("no_difference", (0, 1, 2))


def test_two_near_the_best_are_within() -> None:
    """Where two of three are alike and the third is far behind, those two are within the tolerance of the best and nobody is the winner."""
    said = said_of(sent_out([0.10, 0.10, 0.05], 60_000, hours=48))
    assert (said.kind, said.arms) == ("within", (0, 1))


def test_a_stopped_arm_is_not_spoken_of() -> None:
    """Claims are about live arms: a stopped arm neither wins nor holds the others back, and one alone waits for arms."""
    rates = [0.05, 0.20, 0.12]
    assert said_of(sent_out(rates, 3000)).arms == (1,)
    assert said_of(sent_out(rates, 3000, live=[True, False, True])).arms == (2,)
    for live in ([False, False, True], [False, False, False]):
        assert said_of(sent_out(rates, 3000, live=live)) == Claim(kind="not_yet", waits_for="arms")


def test_it_waits_for_responses() -> None:
    """Before there is enough, and before there is anything, nothing is said but that responses are missing."""
    for evidence in (sent_out([0.03, 0.04], 100), sent_out([0.0, 0.0], 100), sent_out([0.03, 0.04], 0), sent_out([0.03] * 2, 5, waves=0)):
        said = said_of(evidence)
        assert (said.kind, said.arms, said.waits_for) == ("not_yet", (), "responses")


def test_it_waits_for_speeds() -> None:
    """Where one of two equal arms is answered much sooner, it is not the winner; what is missing is how fast people are."""
    evidence = sent_out([0.06, 0.06], 4000, hours=2.0, medians=[1.5, 6.0])
    assert claims._said(compare(labels_of(evidence), believe(evidence, Prior()).curve, 0.05, speeds=False), np.arange(2), 0.1).arms == (0,)
    said = said_of(evidence)
    assert (said.kind, said.waits_for) == ("not_yet", "speeds")


def test_it_waits_for_machines() -> None:
    """A winner that would be another, or none, with suspected machines counted is held; one that stays the same is said."""
    people = sent_out([0.05, 0.12], 3000)
    belief, labels = believe(people, Prior()), labels_of(people)
    assert judge(labels, belief, people, TOLD).arms == (1,)
    for scanned, kind in ((1, "winner"), (0, "not_yet")):
        with_machines = people.responses.copy()
        with_machines[:, scanned] *= 4
        said = judge_all(labels, labels_of(people, with_machines), belief, people, TOLD)
        assert said.kind == kind and said.waits_for == ("machines" if kind == "not_yet" else "")
    flipped = people.responses[:, ::-1]
    assert judge_all(labels, labels_of(people, flipped), belief, people, TOLD).waits_for == "machines"
    said = judge_all(labels, labels_of(people, np.zeros_like(flipped)), belief, people, TOLD)
    assert said.waits_for == "machines" and explain(said, labels, belief, people, TOLD) == said


def test_the_first_minutes_say_nothing() -> None:
    """Responses within two minutes, which are mostly machines', change no claim."""
    evidence = sent_out([0.05, 0.05], 3000)
    scanned = evidence.responses.copy()
    scanned[:, 1, :bucket_min] += 500
    assert (labels_of(evidence).table() == labels_of(evidence, scanned).table()).all()


def test_a_smaller_alpha_asks_for_more() -> None:
    """The surer a claim has to be, the wider the intervals; more arms ask for more as well."""
    evidence = sent_out([0.05, 0.08], 1500)
    labels, curve = labels_of(evidence), believe(evidence, Prior()).curve
    wide, narrow = compare(labels, curve, 0.001), compare(labels, curve, 0.2)
    assert wide.low[1, 0] < narrow.low[1, 0] < narrow.high[1, 0] < wide.high[1, 0]
    assert wide.needed > narrow.needed
    many = sent_out([0.05] * 5, 1500)
    assert compare(labels_of(many), curve, 0.05).needed > compare(labels, curve, 0.05).needed


def test_intervals_hold_the_truth() -> None:
    """The interval of a ratio holds the true one in at least 95 of 100 campaigns, with different rates and speeds."""
    missed = 0
    for n in range(100):
        evidence = sent_out([0.05, 0.07], 2000, medians=[2.0, 4.0], hours=4.0, seed=100 + n)
        pairs = compare(labels_of(evidence), believe(evidence, Prior()).curve, TOLD.alpha)
        missed += not pairs.low[1, 0] < math.log(0.07 / 0.05) < pairs.high[1, 0]
        assert pairs.low[0, 1] == -pairs.high[1, 0] and pairs.high[0, 1] == -pairs.low[1, 0]
    assert missed <= 5


# -- how many more -------------------------------------------------------------------------------------------------------


def test_more_sends_shrink() -> None:
    """The estimate of how many more sends a winner needs is finite once an arm leads, and falls as evidence grows, until it is claimed."""
    leads, claimed = [], []
    for sent in (600, 1200, 2400, 4800, 9600):
        found = [said_of(sent_out([0.04, 0.055], sent, waves=3, seed=200 + n)) for n in range(15)]
        waiting = [said.more_sends if said.kind != "winner" else 0.0 for said in found]
        leads.append(float(np.median(waiting)))
        claimed.append(sum(said.kind == "winner" for said in found))
    assert math.isfinite(leads[1]) and leads[1] > 0
    assert leads[1:] == sorted(leads[1:], reverse=True) and claimed == sorted(claimed) and claimed[-1] == 15


def test_more_sends_are_about_right() -> None:
    """After as many more sends as were estimated, most campaigns have their winner, and with a tenth of them most have not."""
    early = [said_of(sent_out([0.04, 0.055], 2400, waves=3, seed=200 + n)) for n in range(15)]
    more = float(np.median([said.more_sends for said in early if said.kind != "winner"]))
    total = 3 * 2 * 2400
    for times, least, most in ((1.0, 0.5, 1.0), (0.1, 0.0, 0.5)):
        sent = int((total + times * more) / 6)
        share = np.mean([said_of(sent_out([0.04, 0.055], sent, waves=3, seed=300 + n)).kind == "winner" for n in range(15)])
        assert least <= share <= most


def test_more_sends_are_infinite_where_nobody_leads() -> None:
    """Without a lead nobody can say how many more it takes."""
    assert said_of(sent_out([0.0, 0.0], 1000)).more_sends == math.inf
    level = sent_out([0.0, 0.0], 1000)
    level.responses[:, :, 20] = 30
    assert said_of(level).more_sends == math.inf


# -- what came is what counts, not how it came ---------------------------------------------------------------------------


@given(st.integers(0, 1 << 30), st.integers(2, 4))
@settings(max_examples=20)
def test_the_order_of_updates_does_not_matter(seed: int, arms: int) -> None:
    """One look at the end and many looks on the way, in whatever order responses became known, give the same likelihoods."""
    random = random_of(seed)
    evidence = sent_out(random.uniform(0.02, 0.1, arms), 500, waves=3, seed=seed)
    together = labels_of(evidence)
    apart, known = Labels(arms), np.zeros_like(evidence.responses)
    while (known < evidence.responses).any():
        known = np.minimum(evidence.responses, known + random.integers(0, 15, known.shape))
        apart.update(evidence, known)
    assert np.allclose(together.table(), apart.table(), rtol=0, atol=1e-8) and (together.counted[:3] == apart.counted[:3]).all()


def test_waves_may_join_one_by_one() -> None:
    """Labels that have grown with the waves are those that saw all of them at once."""
    evidence = sent_out([0.05, 0.08, 0.03], 800, waves=9)
    grown = Labels(3)
    for waves in (0, 1, 2, 5, 9):
        grown.update(evidence, evidence.responses[:waves])
    assert np.allclose(grown.table(), labels_of(evidence).table(), rtol=0, atol=1e-9)


@given(st.integers(0, 1 << 30))
@settings(max_examples=20)
def test_a_verdict_taken_back_leaves_nothing(seed: int) -> None:
    """Responses that turn out to be machines' and go down again leave the likelihoods as if they had never been counted."""
    random = random_of(seed)
    evidence = sent_out([0.05, 0.08, 0.03], 500, waves=3, seed=seed)
    labels = Labels(3)
    labels.update(evidence, evidence.responses + random.integers(0, 20, evidence.responses.shape))
    labels.update(evidence, evidence.responses)
    assert np.allclose(labels.table(), labels_of(evidence).table(), rtol=0, atol=1e-8)
    labels.update(evidence, np.zeros_like(evidence.responses))
    assert np.allclose(labels.table(), 0.0, rtol=0, atol=1e-8)


def test_looking_again_changes_nothing() -> None:
    """An update with nothing new leaves every likelihood as it was, to the last digit."""
    evidence = sent_out([0.05, 0.08], 500)
    labels = labels_of(evidence)
    before = labels.table().copy()
    labels.update(evidence, evidence.responses)
    assert (labels.table() == before).all()


def test_arms_are_treated_alike() -> None:
    """Exchanging two arms exchanges what is said of them."""
    evidence = sent_out([0.05, 0.12, 0.05], 3000)
    turned = sent_out([0.05, 0.12, 0.05], 3000)
    turned.responses[:] = evidence.responses[:, [1, 0, 2]]
    assert said_of(evidence).arms == (1,) and said_of(turned).arms == (0,)
    assert said_of(evidence).evidence == pytest.approx(said_of(turned).evidence, rel=1e-6)


def test_the_hour_of_a_wave_is_no_evidence() -> None:
    """An arm that got more of a wave to which everybody answers more is no better for it; comparing the sums would say so."""
    evidence = sent_out([0.0, 0.0], 100, waves=2)
    evidence.sent_at_s[:] = [0.0, 3600.0]
    evidence.sent[:] = [[9000, 1000], [1000, 9000]]
    evidence.responses[0, :, 20] = [900, 100]
    evidence.responses[1, :, 20] = [20, 180]
    assert evidence.responses.sum((0, 2))[0] > 3 * evidence.responses.sum((0, 2))[1]
    assert said_of(evidence).kind != "winner"


# -- waves that are compared with each other -----------------------------------------------------------------------------


def in_turn(rates, order: list[int], level=lambda part: 1.0, seed: int = 1) -> Evidence:
    """Return what is known after 24 hours of waves over the first eight, each sent to one arm alone, at a level by part of the hours."""
    random = random_of(36, seed)
    evidence = sent_out(np.zeros(len(rates)), 500, waves=len(order), hours=24.0)
    evidence.sent[:] = 0
    evidence.sent_at_s[:] = np.linspace(0.0, 8.0, len(order)) * HOUR
    for wave, arm in enumerate(order):
        evidence.sent[wave, arm] = 500
        delay = 3 * HOUR * np.exp(2.0 * random.standard_normal(random.binomial(500, rates[arm] * level(wave / len(order)))))
        delay = delay[evidence.sent_at_s[wave] + delay <= evidence.now_s]
        np.add.at(evidence.responses[wave, arm], np.searchsorted(DELAY_EDGES_S, delay, side="right"), 1)
    return evidence


def test_whole_waves_are_compared_with_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where arms take turns and share no wave, a plainly better one is named; the control, labels within waves alone, never can."""
    evidence = in_turn([0.05, 0.10], [0, 1] * 32)
    assert (said_of(evidence).kind, said_of(evidence).arms) == ("winner", (1,))
    monkeypatch.setattr(claims, "_add_across", lambda *taken: None)
    assert said_of(evidence).kind == "not_yet"


def test_of_many_arms_the_leader_is_compared_with_its_neighbours() -> None:
    """Of more than three arms that take turns the best is named as well; of equal ones none is."""
    evidence = in_turn([0.05, 0.05, 0.12, 0.05, 0.05], [0, 1, 2, 3, 4] * 16)
    assert (said_of(evidence).kind, said_of(evidence).arms) == ("winner", (2,))
    assert said_of(in_turn([0.06] * 5, [0, 1, 2, 3, 4] * 16)).kind != "winner"


def test_what_two_pairs_say_of_a_third_holds() -> None:
    """Two arms that were never compared are alike where both are like the leader; where one may be far from it, they are not."""
    low = np.array([[0.0, -0.04, -0.04], [-0.04, 0.0, -math.inf], [-0.04, -math.inf, 0.0]])
    pairs = Pairs(
        low=low, high=-low.T, best=np.zeros((3, 3)), ahead=np.zeros((3, 3)), log_gain=np.zeros((3, 3)), needed=math.log(40),
        enough=math.log(20),
    )  # fmt: skip
    said = _said(pairs, np.arange(3), 0.1)
    assert (said.kind, said.arms) == ("no_difference", (0, 1, 2))
    far = low.copy()
    far[0, 2] = -0.2
    assert (_said(msgspec.structs.replace(pairs, low=far), np.arange(3), 0.1)).kind != "no_difference"


def swung(seed: int) -> Evidence:
    """Return equal arms of which one had the morning and one the evening, with levels that swing by half."""
    return in_turn([0.05, 0.05], [0] * 24 + [0, 1] * 8 + [1] * 24, lambda part: 1 + 0.5 * math.sin(2 * math.pi * part), seed)


def test_better_hours_make_no_winner(monkeypatch: pytest.MonkeyPatch) -> None:
    """An arm sent in better hours is no better for it; the control, where levels are taken to stay, says that it is."""
    assert sum(said_of(swung(n)).kind == "winner" for n in range(20)) <= 1
    monkeypatch.setattr(claims, "LEVELS", claims.levels(np.array([[1.0, 0.01, 0.01]])))
    assert sum(said_of(swung(n)).kind == "winner" for n in range(20)) >= 15


def test_waves_on_their_way_are_not_compared() -> None:
    """A wave of which most is still to go has few responses for what was planned; it is compared with others when it has gone."""
    evidence = in_turn([0.10, 0.10], [0, 1] * 32)
    evidence.responses[-1] //= 10
    gone_s = evidence.sent_at_s.copy()
    evidence.sent[-1] *= 10
    assert said_of(evidence).arms == (0,)
    gone_s[-1] = math.inf
    labels, belief = Labels(2), believe(evidence, Prior())
    labels.update(evidence, evidence.responses, gone_s)
    assert judge(labels, belief, evidence, TOLD).kind != "winner"


def test_days_are_compared_within_themselves() -> None:
    """A campaign of a week is compared block by block, an arm that had the better days is no better, and the better of each day is."""
    found = []
    for rates in ([0.05, 0.05], [0.05, 0.10]):
        evidence = in_turn(rates, [0, 1] * 32)
        evidence.sent_at_s[:] = np.arange(64) * 2.5 * HOUR
        found.append(said_of(msgspec.structs.replace(evidence, now_s=400 * HOUR, end_s=160 * HOUR)).arms)
    assert found == [(), (1,)]


def test_as_many_arms_as_there_may_be() -> None:
    """A hundred arms are compared, and a winner among them is found."""
    rates = np.full(arms_max, 0.02)
    rates[42] = 0.2
    said = said_of(sent_out(rates, 400, waves=1, hours=48))
    assert (said.kind, said.arms) == ("winner", (42,))
