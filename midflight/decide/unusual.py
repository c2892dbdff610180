"""What is unusual right now, in plain language: each finding has a test with bounded false alarms behind it; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

# One false alarm in twenty days for each kind of finding, all comparisons of a campaign together, under the model below.
alarms_a_day = 0.05
looks_a_day = 24 * 60
prior_weight = 60.0  # how many messages of its own a group has to show before it outweighs the rest of the campaign
own_weight_max = 400.0  # days differ more than chance says: a long history counts for no more than this
counted_max = 20_000
bounce_points_min = 0.02  # smaller jumps than this are nobody's emergency
machine_points_min = 0.15
complaint_ceiling = 0.001  # what Gmail and Yahoo ask senders to stay below
complaint_limit = 0.003  # and never to reach
complaints_min = 3


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one group (a mailbox provider of a campaign): in the last minutes, and before them.

    ``answered`` is delivered plus bounced; ``actions`` are opens and clicks, ``machine`` those of machines.
    """

    name: str
    answered: int = 0
    bounced: int = 0
    answered_before: int = 0
    bounced_before: int = 0


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    """One campaign's counts, its providers beside it. Delivered and complained are since the start."""

    name: str
    minutes: int = 15
    providers: tuple[Group, ...] = ()
    actions: int = 0
    machine: int = 0
    actions_before: int = 0
    machine_before: int = 0
    delivered: int = 0
    complained: int = 0


class Unusual(msgspec.Struct, frozen=True, kw_only=True):
    """One finding. ``text`` says what, ``why`` says what it is compared with and how sure it is."""

    kind: str  # bounces, machines, complaints, or of a source: see reconciliation.py
    severity: str  # warning, serious
    campaign: str
    subject: str
    text: str
    why: str
    p: float


def find(campaigns: Iterable[Campaign], others: Iterable[Unusual] = ()) -> list[Unusual]:
    """Return everything unusual, with what others have found, the most serious first."""
    found = list(others)
    for campaign in campaigns:
        found += bounces(campaign)
        found += machines(campaign)
        found += complaints(campaign)
    return sorted(found, key=lambda f: (f.severity != "serious", f.p, f.campaign, f.subject))


def threshold(comparisons: int) -> float:
    """Return the p-value below which a finding is told (Bonferroni over comparisons and the day's looks).

    Each minute is one look, so the chance of any false alarm in a day is at most ``alarms_a_day``, however the looks hang together.
    """
    return alarms_a_day / looks_a_day / max(1, comparisons)


def bounces(campaign: Campaign) -> list[Unusual]:
    """Return the providers that bounce more than their own past and the rest of the campaign explain."""
    groups = [g for g in campaign.providers if g.answered > 0]
    limit = threshold(len(groups))
    total = sum(g.answered + g.answered_before for g in campaign.providers)
    bad = sum(g.bounced + g.bounced_before for g in campaign.providers)
    found = []
    for g in groups:
        # The rest: everything of the campaign except what is being judged.
        rest, rest_bad = total - g.answered, bad - g.bounced
        if rest < 50:
            continue
        a, b = expectation(rest_bad, rest, g.bounced_before, g.answered_before)
        usual, now = a / (a + b), g.bounced / g.answered
        if now - usual < bounce_points_min:
            continue
        p = tail(*counted(g.bounced, g.answered), a, b)
        if p > limit:
            continue
        found.append(
            Unusual(
                kind="bounces",
                severity="serious" if now >= 0.1 else "warning",
                campaign=campaign.name,
                subject=g.name,
                text=f"{g.name or 'An unknown provider'} bounces {percent(now)} of {titled(campaign)}, usually {percent(usual)}.",
                why=f"{g.bounced} of {g.answered} messages answered in the last {campaign.minutes} minutes bounced. "
                f"Expected from this provider's own past and the rest of the campaign: {percent(usual)}. {sure(p)}",
                p=p,
            )
        )
    return found


def machines(campaign: Campaign) -> list[Unusual]:
    """Return a jump of the share of opens and clicks that machines made."""
    if campaign.actions < 20 or campaign.actions_before < 50:
        return []
    a, b = expectation(campaign.machine_before, campaign.actions_before, 0, 0)
    usual, now = a / (a + b), campaign.machine / campaign.actions
    if now - usual < machine_points_min:
        return []
    p = tail(*counted(campaign.machine, campaign.actions), a, b)
    if p > threshold(1):
        return []
    return [
        Unusual(
            kind="machines",
            severity="warning",
            campaign=campaign.name,
            subject="",
            text=f"Machines make {percent(now)} of the opens and clicks of {titled(campaign)}, usually {percent(usual)}.",
            why=f"{campaign.machine} of {campaign.actions} opens and clicks in the last {campaign.minutes} minutes came from machines. "
            f"Numbers without machines are not affected. {sure(p)}",
            p=p,
        )
    ]


def complaints(campaign: Campaign) -> list[Unusual]:
    """Return a complaint rate that is surely above what mailbox providers put up with."""
    # More complaints than deliveries: the deliveries were not reported, so there is no rate.
    if campaign.complained < complaints_min or campaign.delivered < campaign.complained:
        return []
    for ceiling, severity in ((complaint_limit, "serious"), (complaint_ceiling, "warning")):
        p = binomial_tail(campaign.complained, campaign.delivered, ceiling)
        if p <= threshold(2):
            now = campaign.complained / campaign.delivered
            return [
                Unusual(
                    kind="complaints",
                    severity=severity,
                    campaign=campaign.name,
                    subject="",
                    text=f"{percent(now)} of the people who got {titled(campaign)} report it as spam; the ceiling is {percent(ceiling)}.",
                    why=f"{campaign.complained} complaints for {campaign.delivered} delivered messages. "
                    f"Gmail and Yahoo ask senders to stay below 0.1% and never to reach 0.3%. {sure(p)}",
                    p=p,
                )
            ]
    return []


def expectation(bad_rest: int, rest: int, bad_own: int, own: int) -> tuple[float, float]:
    """Return the Beta distribution of a group's rate: the campaign's rest as the start, its own past as evidence."""
    rate = (bad_rest + 0.5) / (rest + 1.0)
    weight = min(prior_weight, float(rest))
    a, b = weight * rate, weight * (1 - rate)
    if own > 0:
        shrink = min(1.0, own_weight_max / own)
        a, b = a + bad_own * shrink, b + (own - bad_own) * shrink
    return a, b


def counted(x: int, n: int) -> tuple[int, int]:
    """Return counts cut down in proportion: more messages than this make nothing surer, as days differ more than chance says."""
    return (x, n) if n <= counted_max else (x * counted_max // n, counted_max)


def tail(x: int, n: int, a: float, b: float) -> float:
    """Return P(X >= x) for X beta-binomial(n, a, b), by summing the shorter side of the exact probabilities."""
    assert x <= n
    if x <= 0:
        return 1.0
    if x > n / 2:
        return min(1.0, sum_terms(x, n, n, a, b))
    return max(0.0, 1.0 - sum_terms(0, x - 1, n, a, b)) if _likely(x, n, a, b) else min(1.0, sum_terms(x, n, n, a, b))


def _likely(x: int, n: int, a: float, b: float) -> bool:
    """Whether x is below the mean: then the lower side is the small one and 1 minus it loses no digits that matter."""
    return x <= n * a / (a + b)


def sum_terms(first: int, last: int, n: int, a: float, b: float) -> float:
    """Return the sum of beta-binomial probabilities from first to last; stops where the rest no longer counts."""
    log_p = (
        math.lgamma(n + 1) - math.lgamma(first + 1) - math.lgamma(n - first + 1)
        + math.lgamma(first + a) + math.lgamma(n - first + b) - math.lgamma(n + a + b)
        + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    )  # fmt: skip
    p = math.exp(log_p)
    total = 0.0
    for k in range(first, last + 1):
        total += p
        if k == last:
            break
        step = (n - k) / (k + 1) * (k + a) / (n - k - 1 + b)
        p *= step
        if step < 1 and p < total * 1e-9:
            break
    return total


def binomial_tail(x: int, n: int, p: float) -> float:
    """Return P(X >= x) for X binomial(n, p)."""
    assert 0 <= x <= n
    if x <= 0:
        return 1.0
    if x <= n * p:
        return 1.0  # not above the ceiling: nothing to tell
    log_p = math.lgamma(n + 1) - math.lgamma(x + 1) - math.lgamma(n - x + 1) + x * math.log(p) + (n - x) * math.log1p(-p)
    term, total = math.exp(log_p), 0.0
    for k in range(x, n + 1):
        total += term
        term *= (n - k) / (k + 1) * p / (1 - p)
        if term < total * 1e-12:
            break
    return min(1.0, total)


def titled(campaign: Campaign) -> str:
    """Return a campaign's name, or words for mail that belongs to none."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{campaign.name}\N{RIGHT DOUBLE QUOTATION MARK}" if campaign.name else "mail without a campaign"


def percent(share: float) -> str:
    """Return a share as people say it."""
    return f"{share * 100:.2f}%" if share < 0.01 else f"{share * 100:.1f}%"


def sure(p: float) -> str:
    """Return how often chance alone would do this."""
    if p <= 0 or p < 1e-9:
        return "By chance this would happen less than once in a billion looks."
    return f"By chance this would happen once in {round(1 / p):,} looks.".replace(",", " ")
