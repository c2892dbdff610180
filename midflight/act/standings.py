"""Looks at a campaign: from its numbers to how it stands, what may be claimed, and what has to be stopped."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

from ..decide.claims import Claim, Labels, explain, judge_all
from ..decide.delays import AGES_S
from ..decide.evidence import Belief, Evidence, Prior, believe
from ..decide.guardrails import Trip
from ..decide.policies.policy import frequencies, sample_best
from ..decide.sample_ratio import Split, check
from ..metrics.metric import Z_95
from .campaigns import Running, Wave
from .conductor import planned_shares
from .standing import Arm, Projected, Said, Standing

past_responses_min, past_responses_max = 50, 500  # of one campaign
past_weight_max = 30.0  # in responses, of all past curves together
GOALS = {"click": "clicks", "open": "opens", "conversion": "conversions", "revenue": "conversions"}


def prior_of(past: list[Standing]) -> Prior:
    """Return what past campaigns with one goal say before a new one: their mean rate and their delays, beside what is published.

    Each campaign's curve counts as much as it has responses, up to ``past_responses_max``; all together say less than a new campaign
    soon says itself, because its people and its content are others.
    """
    usual = Prior()
    rates, weight, shares = [], usual.curve_weight, usual.curve * usual.curve_weight
    for standing in past:
        responses = sum(arm.responses for arm in standing.arms)
        sent = sum(arm.sent for arm in standing.arms)
        if responses < past_responses_min or len(standing.curve) != AGES_S.size - 1:
            continue
        rates.append(sum(arm.rate * arm.sent for arm in standing.arms) / sent)
        counts = min(responses, past_responses_max)
        shares = shares + counts * np.diff([share for _, share in standing.curve], append=1.0)
        weight += counts
    if not rates:
        return usual
    told = min(usual.curve_weight + 0.2 * (weight - usual.curve_weight), past_weight_max)
    return Prior(rate=float(np.mean(rates)), curve=shares / weight, curve_weight=told)


class Observed(msgspec.Struct, kw_only=True):
    """What a look rests on: the evidence, the same responses with those that machines may have made [W, K, J], the waves, and when the last
    message of each had gone, [W] in seconds since the start, infinity for a wave on its way."""

    evidence: Evidence
    everybody: np.ndarray
    given: list[Wave]
    gone_s: np.ndarray


class Watch:
    """Follows one campaign's evidence; what it knows can be made again from the numbers at any time."""

    def __init__(self, arms: int) -> None:
        self.arms = arms
        self.people, self.everybody = Labels(arms), Labels(arms)

    def look(self, now: Running, seen: Observed, prior: Prior, now_us: int) -> Standing:
        """Return how the campaign stands by what was observed."""
        evidence = seen.evidence
        # Labels are compared with what was planned: the shares of what has gone by now change while a wave is on its way.
        given = msgspec.structs.replace(evidence, sent=planned_counts(seen, self.arms))
        self.people.update(given, evidence.responses, seen.gone_s)
        self.everybody.update(given, seen.everybody, seen.gone_s)
        belief = believe(evidence, prior)
        settings = now.definition.claims
        said = judge_all(self.people, self.everybody, belief, evidence, settings)
        said = explain(said, self.people, belief, evidence, settings)
        split = check(evidence.sent, planned_shares(seen.given, self.arms))
        return Standing(
            at_us=now_us,
            goal=now.definition.goal,
            arms=arms_of(now, evidence, belief, seen.given),
            curve=[(float(age), float(share)) for age, share in zip(AGES_S[:-1], belief.curve[:-1], strict=True)],
            said=in_words(said, now, split),
            split_broken=split.broken,
            split_text=split_text(split, now.names),
            projected=projected(now, evidence, belief, seen.given),
        )


def planned_counts(seen: Observed, arms: int) -> np.ndarray:
    """Return what each wave was to give each variant, [W, K], in thousandths of people, so that small shares of small waves are not lost.

    A wave for which others ask has no size of its own: those who were told count.
    """
    told = seen.evidence.sent.sum(1)
    sizes = np.array([wave.recipients or count for wave, count in zip(seen.given, told.tolist(), strict=True)]).reshape(-1, 1)
    return np.rint(planned_shares(seen.given, arms) * sizes * 1000).astype(np.int64)


def arms_of(now: Running, evidence: Evidence, belief: Belief, given: list[Wave]) -> list[Arm]:
    """Return what is known of each variant."""
    random = Generator(PCG64(SeedSequence([now.definition.seed, len(given), 1])))
    live = evidence.live
    best = frequencies(sample_best(belief, live, random)[:, 0], live.size) if live.any() else np.zeros(live.size)
    low, high = (gamma_quantile(belief.shape, z) / belief.rate for z in (-Z_95, Z_95))
    sent, came = evidence.sent.sum(0), evidence.responses.sum((0, 2))
    shares = planned_shares(given[-1:], live.size).sum(0)
    return [
        Arm(
            name=name, live=bool(live[k]), pinned=now.pinned == k, sent=int(sent[k]), responses=int(came[k]),
            coming=float(max(0.0, sent[k] * belief.mean[k] - came[k])), rate=float(belief.mean[k]), low=float(low[k]), high=float(high[k]),
            best=float(best[k]), share=float(shares[k]),
        )
        for k, name in enumerate(now.names)
    ]  # fmt: skip


def gamma_quantile(shape: np.ndarray, z: float) -> np.ndarray:
    """Return quantiles of gamma variables [K] at a normal one (Wilson and Hilferty 1931); within 1 % from a shape of 2 on."""
    return shape * (1 - 1 / (9 * shape) + z / (3 * np.sqrt(shape))).clip(0) ** 3


def projected(now: Running, evidence: Evidence, belief: Belief, given: list[Wave]) -> Projected:
    """Return the responses of the whole list in the end, if the rest is sent as the last wave was."""
    live = evidence.live
    shares = planned_shares(given[-1:], live.size).sum(0) if given else live / max(1, live.sum())
    total = evidence.total
    return Projected(
        ends_us=now.ends_us,
        responses=float(evidence.sent.sum(0) @ belief.mean + evidence.left * (shares @ belief.mean)),
        responses_equal=float(total * belief.mean.mean()),
    )


def in_words(claim: Claim, now: Running, split: Split) -> Said:
    """Return a claim as people read it. Where waves did not go as planned nothing is claimed."""
    names = [now.names[k] for k in claim.arms]
    settings, what = now.definition.claims, GOALS[now.definition.goal]
    within = f"{settings.tolerance:.0%}"
    more = float(claim.more_sends) if math.isfinite(claim.more_sends) else None
    if split.broken and claim.kind != "not_yet":
        text = "Nothing can be claimed: the waves did not reach the variants in the planned shares, so they are not comparable."
        return Said(kind="not_yet", waits_for="split", evidence=float(claim.evidence), text=text)
    if claim.kind == "winner":
        text = f"{names[0]} is the winner by {what}: it beats every other. The chance that this is wrong is at most {settings.alpha:.0%}."
    elif claim.kind == "within":
        listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
        text = f"{listed} {'is' if len(names) == 1 else 'are'} within {within} of the best by {what}."
    elif claim.kind == "no_difference":
        text = f"No variant is more than {within} better than another by {what}."
    else:
        text = f"Not yet known which is best by {what}. {_WAITS.get(claim.waits_for, _WAITS['responses'])}"
        if more and now.left:
            text += f" About {_round(more):,} more sends would tell, if the difference is what it seems."
        elif not now.left and claim.waits_for == "responses":
            text += f" Everybody has been sent to; {what} that still come may tell."
    if now.definition.goal == "revenue" and claim.kind in ("winner", "within"):
        text += " This is about how many buy; how much each spends is not tested."
    return Said(
        kind=claim.kind, arms=names, waits_for=claim.waits_for, more_sends=more, evidence=float(min(claim.evidence, 1e12)), text=text
    )


_WAITS = {
    "arms": "There is only one variant left.",
    "speeds": "One leads, but its people may only be quicker; a later look will tell.",
    "machines": "One leads, but with clicks that machines may have made it would be another.",
    "responses": "There are too few responses so far.",
}


def _round(count: float) -> int:
    """Return a number to two digits: nothing beyond is known."""
    digits = max(0, int(math.log10(max(count, 1))) - 1)
    return int(round(count, -digits))


def split_text(split: Split, names: list[str]) -> str:
    if not split.broken:
        return "Every wave reached its variants in the planned shares."
    return f"Wave {split.wave + 1} reached {names[split.arm]} in another share than planned: look for messages refused or left out there."


def trip_text(trip: Trip, now: Running) -> str:
    """Return in words why a guard stops an arm or the campaign."""
    who = "the campaign" if trip.arm < 0 else f"variant {now.names[trip.arm]}"
    rate = trip.happened / max(1, trip.of)
    return (
        f"{trip.what.capitalize()} rate of {who} is surely above its ceiling of {trip.ceiling:.2%}: {trip.happened:,} of {trip.of:,} "
        f"({rate:.2%})"
    )
