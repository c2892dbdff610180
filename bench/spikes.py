"""How soon a spike of bounces is found, and how often there is none: ``python -m bench.spikes``.

Traffic: messages share their rate with the others of their lump, and the rate of a lump is Beta distributed around the usual 1.5 % with
correlation rho; from the spike on around 6 %. A detector sees no lumps: it counts in buckets of its own, which begin anywhere in them,
and it is given every message as it is answered. False alarms: streams of 100,000 messages without a spike, from the very first message
on, with nothing known before. Delay: messages from the beginning of the spike to the alarm, after 20,000 messages of usual traffic.

ours                  `midflight.decide.spikes` as it is: what is usual is estimated from the stream itself.
known CUSUM           The beta-binomial CUSUM that is told the rate, the correlation and the lumps, looked at when a lump ends. Its
                      threshold is set so that 10 % of the streams have a false alarm. It is what 315 messages were measured for.
no overdispersion     Ours without correlation and drift: every message on its own. Its false alarms have to break the bound.
last 200 above 5 %    The rule of thumb.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import typer
from numpy.random import PCG64, Generator, SeedSequence
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from midflight.decide import spikes
from midflight.decide.spikes import Settings, Spikes, log_ratio, usual

usual_rate, spike_rate = 0.015, 0.06
stream_messages, warm_messages, spike_messages = 100_000, 20_000, 5_000
message_us = 1_000_000
ONE_KIND = Settings(kinds=("provider",))
nobody = -1


class Traffic(NamedTuple):
    """Lumps of so many messages, and the correlation within one."""

    lump: int
    rho: float


MODELS = (Traffic(100, 0.001), Traffic(100, 0.002), Traffic(50, 0.003), Traffic(100, 0.003), Traffic(50, 0.005))


def random_of(*seed: int) -> Generator:
    return Generator(PCG64(SeedSequence(seed)))


def messages(traffic: Traffic, rate: float, count: int, random: Generator, first: int) -> np.ndarray:
    """Return whether each of ``count`` messages bounces; the first lump has ``first`` messages."""
    sizes = np.full((count - first) // traffic.lump + 2, traffic.lump)
    sizes[0] = first
    weight = 1 / traffic.rho - 1
    rates = random.beta(rate * weight, (1 - rate) * weight, sizes.size)
    return random.random(count) < np.repeat(rates, sizes)[:count]


def told(detector: Spikes, bounced: np.ndarray, at: int) -> int:
    """Give a detector every message and return after how many the alarm came, or `nobody`.

    Evidence only grows with a bounce, so messages between two bounces may be given together; buckets close on the hundreds as they would.
    """
    sums = np.concatenate(((0,), np.cumsum(bounced)))
    hundreds = np.arange(spikes.bucket_messages - at % spikes.bucket_messages, bounced.size + 1, spikes.bucket_messages)
    last = 0
    for end in np.union1d(np.union1d(np.flatnonzero(bounced) + 1, hundreds), (bounced.size,)).tolist():
        answered, bad = end - last, int(sums[end] - sums[last])
        if detector.add("provider", "p", answered=answered, bounced=bad, at_us=(at + end) * message_us):
            return end
        last = end
    return nobody


def false_alarm(traffic: Traffic, seed: int) -> bool:
    random = random_of(1, seed)
    first = int(random.integers(1, traffic.lump + 1))
    return told(Spikes(ONE_KIND), messages(traffic, usual_rate, stream_messages, random, first), 0) != nobody


def delay(traffic: Traffic, seed: int) -> int | None:
    """Return the messages from the spike to the alarm, or None where there was an alarm before."""
    random = random_of(2, seed)
    first = int(random.integers(1, traffic.lump + 1))
    detector = Spikes(ONE_KIND)
    if told(detector, messages(traffic, usual_rate, warm_messages, random, first), 0) != nobody:
        return None
    found = told(detector, messages(traffic, spike_rate, spike_messages, random, first), warm_messages)
    return spike_messages if found == nobody else found


@contextmanager
def without_overdispersion() -> Iterator[None]:
    """The broken detector: messages taken as independent of each other."""
    kept = spikes.usual

    def independent(buckets: spikes.Moments, blocks: spikes.Moments, whole: spikes.Moments) -> spikes.Usual:
        now = usual(buckets, blocks, whole)
        now.correlation, now.drift = 1e-7, 1.0
        return now

    spikes.usual = independent
    try:
        yield
    finally:
        spikes.usual = kept


def known_cusum(traffic: Traffic, streams: int) -> tuple[float, float, float]:
    """Return the mean delay of the CUSUM that knows everything at 10 % false alarms, its standard error, and its threshold."""
    random = random_of(3, traffic.lump, round(traffic.rho * 1e6))
    weight = 1 / traffic.rho - 1
    model = (usual_rate, spike_rate, weight, 1.0, 0.0)
    gains = np.array([log_ratio(x, traffic.lump, model) for x in range(traffic.lump + 1)])

    def bounces(rate: float, lumps: int) -> np.ndarray:
        rates = random.beta(rate * weight, (1 - rate) * weight, (streams, lumps))
        return gains[random.binomial(traffic.lump, rates)]

    def path(steps: np.ndarray, start: np.ndarray) -> Iterator[np.ndarray]:
        height = start
        for column in steps.T:
            height = np.maximum(0.0, height + column)
            yield height

    quiet = bounces(usual_rate, stream_messages // traffic.lump)
    most = np.zeros(streams)
    for height in path(quiet, np.zeros(streams)):
        most = np.maximum(most, height)
    threshold = float(np.quantile(most, 0.9))
    start = np.zeros(streams)
    for height in path(bounces(usual_rate, warm_messages // traffic.lump), start):
        start = height
    found = np.full(streams, spike_messages)
    for n, height in enumerate(path(bounces(spike_rate, spike_messages // traffic.lump), np.minimum(start, threshold)), 1):
        found = np.where((height >= threshold) & (found == spike_messages), n * traffic.lump, found)
    return float(found.mean()), float(found.std() / math.sqrt(streams)), threshold


def rule_of_thumb(traffic: Traffic, streams: int) -> float:
    """Return the share of quiet streams in which more than 5 % of the last 200 messages bounced at some time."""
    alarms = 0
    for seed in range(streams):
        random = random_of(1, seed)
        first = int(random.integers(1, traffic.lump + 1))
        sums = np.concatenate(((0,), np.cumsum(messages(traffic, usual_rate, stream_messages, random, first))))
        alarms += bool((sums[200:] - sums[:-200] > 10).any())
    return alarms / streams


def interval(count: int, of: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    share, z = count / of, 1.96
    middle, half = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return (middle - half) / (1 + z * z / of), (middle + half) / (1 + z * z / of)


def main(
    streams: int = typer.Option(400, help="Streams without a spike for each model, and twice as many with one."),
    only: int = typer.Option(-1, help="Measure one model alone, by its place in the table."),
) -> None:
    """Print delays and false alarms with 95 % intervals."""
    table = Table("lump", "rho", "false alarms in 100k", "delay, messages", "known CUSUM", "no overdispersion", "last 200 above 5 %")
    chosen = MODELS if only < 0 else (MODELS[only],)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("streams", total=len(chosen) * (3 * streams + streams // 4))
        for traffic in chosen:
            table.add_row(*measured(traffic, streams, lambda: progress.advance(task)))
    Console().print(table)


def measured(traffic: Traffic, streams: int, advance) -> list[str]:
    alarms, late = 0, []
    for seed in range(streams):
        alarms += false_alarm(traffic, seed)
        advance()
    for seed in range(2 * streams):
        if (found := delay(traffic, seed)) is not None:
            late.append(found)
        advance()
    broken = 0
    with without_overdispersion():
        for seed in range(streams // 4):
            broken += false_alarm(traffic, seed)
            advance()
    low, high = interval(alarms, streams)
    error = 1.96 * float(np.std(late)) / math.sqrt(len(late))
    cusum, cusum_error, _ = known_cusum(traffic, 2000)
    return [
        str(traffic.lump),
        f"{traffic.rho}",
        f"{100 * alarms / streams:.1f} % ({100 * low:.1f} to {100 * high:.1f})",
        f"{np.mean(late):.0f} (+- {error:.0f})",
        f"{cusum:.0f} (+- {1.96 * cusum_error:.0f})",
        f"{100 * broken / (streams // 4):.0f} %",
        f"{100 * rule_of_thumb(traffic, streams // 4):.0f} %",
    ]


if __name__ == "__main__":
    typer.run(main)
