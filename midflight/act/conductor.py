"""Gives out a campaign's waves: at each moment it asks the policy, with what is known by then, how many go and who gets what."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

from ..decide.delays import BUCKETS
from ..decide.evidence import Evidence, Prior, believe
from ..decide.policies.policy import Plan, all_to, divide, steady
from .campaigns import Campaigns, Running, Wave, part_people
from .contents import fill
from .definition import DEFAULT_POLICY, Ready

# campaign, variants, waves -> people's responses, [W, K, J]: what the numbers say by wave, variant and age.
Responded = Callable[[str], list[str]]
Responses = Callable[[str, list[str], list[str]], np.ndarray]


def nobody(campaign: str) -> list[str]:
    return []


def moments_us(now: Running) -> list[int]:
    """Return when waves can go, the first and the last included."""
    waves = now.definition.waves
    found = [now.after_us(n * waves.every_minutes / 60) for n in range(waves.moments())]
    return found if found[-1] == now.ends_us else [*found, now.ends_us]


def due(now: Running, now_us: int) -> bool:
    """Tell whether a moment for a wave has come since one was last decided."""
    return any(now.looked_us < moment <= now_us for moment in moments_us(now))


def evidence_of(now: Running, given: list[Wave], responses: np.ndarray, sent: np.ndarray, now_us: int) -> Evidence:
    """Return what the policy may know. ``sent`` [W, K] are messages that went, ``responses`` [W, K, J] what came of them."""
    moments = moments_us(now)
    waves = now.definition.waves
    per_us = now.speed / 1e6
    now_s = (now_us - now.started_us) * per_us
    return Evidence(
        now_s=now_s,
        end_s=max((moments[-1] - now.started_us) * per_us, now_s, 1.0),
        ahead=sum(moment > now_us for moment in moments),
        left=now.left,
        live=now.live,
        sent_at_s=np.array([(wave.at_us - now.started_us) * per_us for wave in given]),
        sent=sent,
        responses=responses,
        wave_max=int(waves.per_minute * waves.every_minutes) if waves.per_minute else 1 << 40,
    )


def give_out_due(
    campaigns: Campaigns, now: Running, ready: Ready, prior: Prior, responses: Responses, now_us: int, responded: Responded = nobody
) -> int:
    """Give out the wave that is due, if one is; return its number, or 0. ``responded`` says who reached the goal, for slots.

    The wave's draws follow from the campaign's seed and the wave's number, so that a wave that was decided and not written is decided again
    in the same way.
    """
    if now.state != "sending" or not now.left or not (now.owed or due(now, now_us)):
        return 0
    given, names = campaigns.waves(now.id), now.names
    sent = campaigns.outbox.sent(now.id, len(given), len(names))
    came = responses(now.name, names, [str(wave.wave) for wave in given]) if given else np.zeros((0, len(names), BUCKETS), np.int64)
    evidence = evidence_of(now, given, came, sent, now_us)
    random = Generator(PCG64(SeedSequence([now.definition.seed, len(given)])))
    plan = planned(now, ready, evidence, prior, random)
    # A long wave goes out in parts: writing it takes time, in which others wait.
    wanted = min(now.owed or plan.recipients, now.left)
    recipients = min(wanted, part_people)
    counts = divide(recipients, plan.shares, random)
    order = random.permutation(recipients)
    filled = None
    if now.definition.slots and recipients:
        filled = fill(campaigns, now, recipients, responded(now.name), shares_by_now(evidence, given, prior), random)
    return campaigns.give_out(now, counts, plan.shares, order, grounds_of(now, evidence), now_us, filled, wanted - recipients)


def shares_by_now(evidence: Evidence, given: list[Wave], prior: Prior) -> dict[int, float]:
    """Return by wave which share of its responses can have come by now."""
    belief = believe(evidence, prior)
    return {wave.wave: belief.curve_share(age_s) for wave, age_s in zip(given, evidence.age_s().tolist(), strict=True)}


def planned(now: Running, ready: Ready, evidence: Evidence, prior: Prior, random: Generator) -> Plan:
    """Return the next wave: the policy's, or everything to the variant that a person has chosen."""
    if now.pinned >= 0:
        return Plan(recipients=steady(evidence), shares=all_to(now.pinned, now.live.size))
    return ready.policy.plan(evidence, prior, random)


def grounds_of(now: Running, evidence: Evidence) -> dict:
    """Return the numbers that a wave rests on, for the ledger."""
    return {
        "sent": evidence.sent.sum(0).tolist(), "responses": evidence.responses.sum((0, 2)).tolist(), "left": evidence.left,
        "ahead": evidence.ahead, "policy": "pinned" if now.pinned >= 0 else now.definition.policy.get("kind", DEFAULT_POLICY),
    }  # fmt: skip


def planned_shares(given: list[Wave], arms: int) -> np.ndarray:
    """Return the planned shares of waves, [W, K]; a variant that came later had none before."""
    found = np.zeros((len(given), arms))
    for row, wave in zip(found, given, strict=True):
        row[: len(wave.shares)] = wave.shares
    return found
