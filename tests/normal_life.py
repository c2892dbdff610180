"""Days of a source in normal life, by the minute: nights, quiet weekends, bursts of campaigns, and counts in lumps at every scale.

What people do comes hours after the mail, less at night; rates wander by the hour and jump by the minute (gamma), so that a minute's count
varies several times more than chance alone says.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from midflight.decide.reconciliation import Campaign

day_minutes = 24 * 60


class World(NamedTuple):
    """Mails a minute at noon without a campaign, campaigns on a working day, how much less there is on weekends; are opens tracked?"""

    base: float = 5.0
    campaigns: float = 2.0
    weekend: float = 0.15
    opens: bool = True


WORLDS = {
    "shop": World(),
    "big": World(base=50.0),
    "small": World(base=0.3),
    "newsletter": World(base=0.02),
    "newsletter without tracking": World(base=0.02, opens=False),
    "transactional": World(base=20.0, campaigns=0.3),
    "business": World(base=300.0, campaigns=1.0, weekend=0.02),
}


class Sums(NamedTuple):
    """One campaign's cumulative sums by minute, [minutes, 5]: sent, answered, delivered, opened, engaged."""

    name: str
    first: int
    sums: np.ndarray


class Life(NamedTuple):
    """``received`` by minute, [minutes], and the campaigns; mail without one is the campaign without a name."""

    received: np.ndarray
    campaigns: list[Sums]
    first_minute: int

    def at(self, minute: int) -> list[Campaign]:
        """Return the sums of what is going on, as the store would have them at the end of a minute."""
        found = []
        for one in self.campaigns:
            if not one.name or one.first <= minute < one.first + 3 * day_minutes:
                found.append(Campaign(one.name, ("esp",), *(int(n) for n in one.sums[minute])))
        return found


def lived(seed: int, days: int, world: World, first_day: int = 0) -> Life:
    """Live some days; ``first_day`` 0 is a Monday."""
    rng = np.random.default_rng(seed)
    minutes = days * day_minutes
    t = np.arange(minutes)
    now = daylight(t) * weekends(t, first_day, world.weekend) * wandering(rng, minutes)
    plain = rng.poisson(world.base * now * rng.gamma(4, 1 / 4, minutes))
    campaigns = [summed("", 0, plain, rng.binomial(plain, 0.99), rng.poisson(0.35 * world.base * now * rng.gamma(6, 1 / 6, minutes)))]
    received = 2 * plain + (campaigns[0].sums[:, 4] - np.concatenate([[0], campaigns[0].sums[:-1, 4]]) if world.opens else 0)
    if not world.opens:
        campaigns[0].sums[:, 3:] = 0
    for day in range(days):
        quiet = (day + first_day) % 7 >= 5
        for number in range(rng.poisson(world.campaigns * (0.15 if quiet else 1.0))):
            one, heard = campaign(rng, f"c{day}.{number}", day * day_minutes + int(rng.uniform(7 * 60, 18 * 60)), minutes, world.opens)
            campaigns.append(one)
            received = received + heard
    return Life(received, campaigns, 29_400_480 + first_day * day_minutes)


def campaign(rng: np.random.Generator, name: str, start: int, minutes: int, opens: bool) -> tuple[Sums, np.ndarray]:
    """Return a campaign's sums, and what is received of it by minute."""
    size, lasts = int(np.exp(rng.normal(9.5, 1.2))), int(rng.choice([5, 15, 60, 240]))
    end = min(start + lasts, minutes)
    sent, delivered, engaged, machine = (np.zeros(minutes, np.int64) for _ in range(4))
    sent[start:end] = rng.poisson(size / lasts * rng.gamma(3, 1 / 3, end - start))
    # Providers take a little time, and put some off.
    for late, share in ((0, 0.7), (1, 0.2), (4, 0.07), (40, 0.02)):
        delivered[late:] += rng.binomial(sent[: minutes - late], share)
    if opens:
        machine[:] = rng.binomial(delivered, 0.3)
        when = np.repeat(np.arange(minutes), rng.binomial(delivered, rng.beta(8, 28)))
        when = when + np.exp(rng.normal(np.log(90), 1.6, when.size)).astype(np.int64)
        asleep = rng.random(when.size) > np.clip(daylight(when) * 1.5, 0.05, 1)
        when[asleep] += rng.integers(0, 600, asleep.sum())
        np.add.at(engaged, when[when < minutes], 1)
    return summed(name, start, sent, delivered, engaged), sent + delivered + engaged + machine


def summed(name: str, first: int, sent: np.ndarray, delivered: np.ndarray, engaged: np.ndarray) -> Sums:
    return Sums(name, first, np.cumsum(np.stack([sent, delivered, delivered, engaged * 4 // 5, engaged], axis=1), axis=0))


def daylight(minute: np.ndarray) -> np.ndarray:
    """Return how much goes on, by time of day: a twenty-fifth at night."""
    return 0.04 + 0.96 * np.exp(-((((minute / 60) % 24 - 14) / 5) ** 2))


def weekends(minute: np.ndarray, first_day: int, share: float) -> np.ndarray:
    """Return the weekends' share, come to within some hours."""
    day = np.log(np.where((minute // day_minutes + first_day) % 7 >= 5, share, 1.0))
    padded = np.concatenate([np.full(180, day[0]), day, np.full(180, day[-1])])
    return np.exp(np.convolve(padded, np.full(361, 1 / 361), "valid"))


def wandering(rng: np.random.Generator, minutes: int) -> np.ndarray:
    """Return a rate that wanders by the hour, with a spread of 40 %."""
    kept = np.exp(-1 / 60)
    steps = rng.normal(0, 0.4 * np.sqrt(1 - kept**2), minutes)
    found, now = np.empty(minutes), 0.0
    for n in range(minutes):
        now = kept * now + steps[n]
        found[n] = now
    return np.exp(found - 0.08)
