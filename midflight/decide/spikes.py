"""Whether a stream of sends (a mailbox provider, a domain, a sending IP, a campaign) suddenly bounces more than is usual for it; pure.

Bounces come in lumps: the messages of a moment share their rate, and rates differ from moment to moment by more than chance. So messages
are taken in buckets of about a hundred, and a bucket's bounces are beta-binomial, with mean p0 (usual) or p1 (a spike) and correlation rho.
Evidence for "a spike began at some message" is the Shiryaev-Roberts sum, in steps as small as the caller's:

    R(i) = (R + i) * BB(x; i, p1, rho) / BB(x; i, p0, rho)      after i messages of the open bucket, x of which bounced

While nothing has changed, R minus the number of messages is a martingale, so that R reaches A within N messages with probability at most
N / A (Doob). A is chosen by that: no more than ``false_alarms`` in ``per_messages`` messages, whatever the number of streams they are
spread over, for every message counts once in each of the ``kinds`` of streams. The bound is exact for known p0 and rho; both are
estimated here, and ``python -m bench.spikes`` measures what becomes of it (e-detectors: Shin, Ramdas and Rinaldo 2022,
arxiv.org/abs/2203.03532; rates in lumps: the beta-binomial of Skellam 1948).

p0 and rho come from the moments of closed buckets, which are sums and so can be merged; they fade with time. Buckets that look like a spike
wait before they count, and are thrown away if it is one. Where rates drift slowly, neighbouring buckets are alike and the sum of their
evidence is too sure; then sums of ten buckets vary by a factor more than buckets say, and evidence is brought down by that factor.
"""

from __future__ import annotations

import math

import msgspec

VERSION = 1
bucket_messages = 100
block_buckets = 10
half_life_us = 14 * 86_400_000_000
streams_max = 10_000
rise_times = 4.0
rise_points_min = 0.03
rise_points_max = 0.15
rate_min, rate_max = 0.0005, 0.5
rate_usual = 0.015  # of a sender of whom nothing is known yet
rate_messages = 200.0  # how many messages of its own a stream has to show before it outweighs the others of its kind
correlation_usual = 0.003
correlation_buckets = 100.0  # and how many buckets, before its own correlation outweighs that
correlation_times = 1.2  # what is estimated may be too low, and too low means false alarms
learnt_times = 1.15  # the bound is for known rates: more evidence makes up for learning them, as bench/spikes.py measures it
unknown_times = 2.0  # a rate that is not well known is one more reason for buckets to differ from it
correlation_min, correlation_max = 0.0005, 0.3
drift_errors = 2.0  # only what is surely more counts as drift, in standard errors
drift_max = 20.0
# Buckets wait to become usual while the evidence is above this share of what an alarm needs; of a stream that is hardly known, with the
# larger one: there it is more often that what is usual is not known than that anything has happened.
waits_from, waits_from_unknown = 0.001, 0.02
known_messages = 3000.0
log_evidence_min, log_evidence_max = -1e6, 600.0  # finite, so that a snapshot may be JSON
KINDS = ("provider", "domain", "ip", "campaign")


class Settings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The budget of false alarms: this many, in the mean, in so many messages, all streams of all kinds together."""

    false_alarms: float = 0.1
    per_messages: int = 100_000
    kinds: tuple[str, ...] = KINDS

    @property
    def needed(self) -> float:
        """Return the evidence at which an alarm is given."""
        return learnt_times * len(self.kinds) * self.per_messages / self.false_alarms


class Moments(msgspec.Struct, kw_only=True):
    """Sums over buckets with n messages and x bounces each: enough for the mean and the correlation; added, they merge."""

    n: float = 0.0
    x: float = 0.0
    xx: float = 0.0
    nx: float = 0.0
    nn: float = 0.0

    def add(self, x: float, n: float) -> None:
        self.n += n
        self.x += x
        self.xx += x * x
        self.nx += n * x
        self.nn += n * n

    def merge(self, other: Moments) -> None:
        for name in Moments.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def fade(self, share: float) -> None:
        for name in Moments.__struct_fields__:
            setattr(self, name, getattr(self, name) * share)

    def excess(self, p: float) -> tuple[float, float]:
        """Return the variance beyond the binomial one, and what it would be at a correlation of 1."""
        within = self.n * p * (1 - p)
        return self.xx - 2 * p * self.nx + p * p * self.nn - within, max(0.0, (self.nn - self.n) * p * (1 - p))


class Usual(msgspec.Struct, kw_only=True):
    """What is usual for a stream: the mean rate, the correlation within a bucket, and by how much evidence is brought down for drift."""

    rate: float
    correlation: float
    drift: float
    messages: float


class Stream(msgspec.Struct, kw_only=True):
    """What is remembered of one stream: some forty numbers."""

    at_us: int = 0
    faded_at_us: int = 0
    answered: int = 0  # of the open bucket
    bounced: int = 0
    block_answered: int = 0  # of the open block, closed buckets alone
    block_bounced: int = 0
    log_evidence: float = log_evidence_min  # log R at the end of the last closed bucket
    buckets: Moments = msgspec.field(default_factory=Moments)
    blocks: Moments = msgspec.field(default_factory=Moments)
    waiting: Moments = msgspec.field(default_factory=Moments)
    waiting_blocks: Moments = msgspec.field(default_factory=Moments)
    model: tuple[float, float, float, float, float] | None = None  # p0, p1, sum of both Beta parameters, drift, log of the needed evidence
    rise: float = 0.0  # evidence since the rate last looked usual, and what came since then
    rise_at_us: int = 0
    rise_answered: int = 0
    rise_bounced: int = 0
    alarmed_at_us: int = 0


class State(msgspec.Struct, kw_only=True):
    """A snapshot. ``whole`` sums up all streams of a kind; a stream that is new begins with it."""

    version: int = VERSION
    streams: dict[str, dict[str, Stream]] = {}
    whole: dict[str, Moments] = {}
    whole_faded_at_us: dict[str, int] = {}
    forgotten_total: int = 0


class Spike(msgspec.Struct, kw_only=True):
    """An alarm: what bounced since when, what is usual, and the evidence against what it needed."""

    kind: str
    name: str
    at_us: int
    since_us: int
    answered: int
    bounced: int
    rate: float
    rate_usual: float
    correlation: float
    evidence: float
    needed: float
    text: str


class Spikes:
    """All streams of a sender. Give it counts as they come, in log time; it says when one of them bounces in a way that is not usual."""

    def __init__(self, settings: Settings | None = None, state: State | None = None) -> None:
        self.settings = settings or Settings()
        fits = state is not None and state.version == VERSION
        # What a state of another version means is not known: it is learnt anew from the log.
        self.state = state if fits else State()
        for kind in self.settings.kinds:
            self.state.streams.setdefault(kind, {})
            self.state.whole.setdefault(kind, Moments())

    def add(self, kind: str, name: str, *, answered: int, bounced: int, at_us: int) -> Spike | None:
        """Count messages that were delivered or bounced (``answered``) and how many bounced; return an alarm where one begins.

        The finer the steps, the earlier the alarm. A stream that has given its alarm counts nothing until ``calm`` is called.
        """
        if kind not in self.state.streams:
            raise ValueError(f"kind of stream: expected one of {', '.join(self.settings.kinds)}, got {kind!r}")
        if answered <= 0:
            return None
        bounced = min(max(0, bounced), answered)
        stream = self._stream(kind, name, at_us)
        if stream.alarmed_at_us:
            return None
        return self._count(kind, name, stream, answered, bounced)

    def calm(self, kind: str, name: str, *, accept: bool = False) -> None:
        """Begin anew after an alarm. ``accept``: what raised it is usual from now on."""
        stream = self.state.streams.get(kind, {}).get(name)
        if stream is None:
            return
        if accept:
            stream.waiting.add(stream.bounced, stream.answered)
            # Only what was seen since counts: the old rate is no longer usual.
            stream.buckets, stream.blocks = stream.waiting, stream.waiting_blocks
        stream.waiting, stream.waiting_blocks = Moments(), Moments()
        stream.answered = stream.bounced = stream.block_answered = stream.block_bounced = 0
        stream.log_evidence, stream.rise, stream.model, stream.alarmed_at_us = log_evidence_min, 0.0, None, 0
        stream.rise_answered = stream.rise_bounced = 0

    def alarmed(self, kind: str, name: str) -> bool:
        """Whether a stream has given an alarm and was not calmed since."""
        stream = self.state.streams.get(kind, {}).get(name)
        return stream is not None and stream.alarmed_at_us > 0

    def usual(self, kind: str, name: str) -> Usual:
        """Return what is usual for a stream by now; for one never seen, what is usual for its kind."""
        stream = self.state.streams.get(kind, {}).get(name) or Stream()
        return usual(stream.buckets, stream.blocks, self.state.whole.get(kind) or Moments())

    def _stream(self, kind: str, name: str, at_us: int) -> Stream:
        streams = self.state.streams[kind]
        stream = streams.get(name)
        if stream is None:
            if len(streams) >= streams_max:
                self._forget(streams)
            stream = streams[name] = Stream(at_us=at_us, faded_at_us=at_us)
        stream.at_us = max(stream.at_us, at_us)
        return stream

    def _forget(self, streams: dict[str, Stream]) -> None:
        """Make room by what was quiet for longest, a tenth at once; what has given an alarm stays while anything else can go."""
        order = sorted(streams, key=lambda name: (streams[name].alarmed_at_us > 0, streams[name].at_us, name))
        for name in order[: max(1, streams_max // 10)]:
            del streams[name]
            self.state.forgotten_total += 1

    def _count(self, kind: str, name: str, stream: Stream, answered: int, bounced: int) -> Spike | None:
        if stream.model is None:
            stream.model = self._model(kind, stream)
        if stream.rise_answered == 0:
            stream.rise_at_us = stream.at_us
        stream.answered += answered
        stream.bounced += bounced
        stream.rise_answered += answered
        stream.rise_bounced += bounced
        gain = log_ratio(stream.bounced, stream.answered, stream.model)
        log_evidence = _log_sum(stream.log_evidence, math.log(stream.answered)) + gain
        if log_evidence >= stream.model[4]:
            stream.alarmed_at_us = stream.at_us
            return self._spike(kind, name, stream, log_evidence)
        if stream.answered >= bucket_messages:
            self._close(kind, stream, log_evidence, gain)
        return None

    def _model(self, kind: str, stream: Stream) -> tuple[float, float, float, float, float]:
        """Return the model of the next bucket: it is fixed before the bucket begins, or the evidence would be worth nothing."""
        self._fade(kind, stream)
        now = usual(stream.buckets, stream.blocks, self.state.whole[kind])
        return now.rate, spiked(now.rate), 1 / now.correlation - 1, now.drift, math.log(self.settings.needed)

    def _close(self, kind: str, stream: Stream, log_evidence: float, gain: float) -> None:
        stream.log_evidence = min(log_evidence, log_evidence_max)
        stream.rise = max(0.0, stream.rise + gain)
        if stream.rise == 0.0:
            stream.rise_answered = stream.rise_bounced = 0
        stream.waiting.add(stream.bounced, stream.answered)
        stream.block_answered += stream.answered
        stream.block_bounced += stream.bounced
        if stream.block_answered >= bucket_messages * block_buckets:
            stream.waiting_blocks.add(stream.block_bounced, stream.block_answered)
            stream.block_answered = stream.block_bounced = 0
        waits = waits_from if stream.buckets.n >= known_messages else waits_from_unknown
        if log_evidence < math.log(self.settings.needed * waits):
            self.state.whole[kind].merge(stream.waiting)
            stream.buckets.merge(stream.waiting)
            stream.blocks.merge(stream.waiting_blocks)
            stream.waiting, stream.waiting_blocks = Moments(), Moments()
        stream.answered = stream.bounced = 0
        stream.model = None

    def _fade(self, kind: str, stream: Stream) -> None:
        """Let what is usual fade with log time, of the stream and of its kind."""
        passed = stream.at_us - stream.faded_at_us
        if passed >= half_life_us // 100:
            stream.buckets.fade(0.5 ** (passed / half_life_us))
            stream.blocks.fade(0.5 ** (passed / half_life_us))
            stream.faded_at_us = stream.at_us
        passed = stream.at_us - self.state.whole_faded_at_us.setdefault(kind, stream.at_us)
        if passed >= half_life_us // 100:
            self.state.whole[kind].fade(0.5 ** (passed / half_life_us))
            self.state.whole_faded_at_us[kind] = stream.at_us

    def _spike(self, kind: str, name: str, stream: Stream, log_evidence: float) -> Spike:
        assert stream.model is not None
        usual_rate, rate = stream.model[0], stream.rise_bounced / stream.rise_answered
        # Where the whole rise lies within buckets that looked usual, the open bucket is what tells.
        answered, bounced = stream.rise_answered, stream.rise_bounced
        text = (
            f"{bounced} of {answered} messages bounced ({100 * rate:.1f}%); usual are {100 * usual_rate:.1f}%. "
            f"At most {self.settings.false_alarms:g} such alarms in {self.settings.per_messages} messages are by chance."
        )
        return Spike(
            kind=kind, name=name, at_us=stream.at_us, since_us=stream.rise_at_us, answered=answered, bounced=bounced, rate=rate,
            rate_usual=usual_rate, correlation=1 / (stream.model[2] + 1), evidence=math.exp(min(log_evidence, log_evidence_max)),
            needed=self.settings.needed, text=text,
        )  # fmt: skip


def merged(states: list[State]) -> State:
    """Return one state with what is usual according to all: for shards that each saw a part. Alarms stay; open buckets are left out."""
    result = State()
    for state in states:
        if state.version != VERSION:
            continue
        for kind, streams in state.streams.items():
            into = result.streams.setdefault(kind, {})
            for name, stream in streams.items():
                own = into.setdefault(name, Stream(faded_at_us=stream.faded_at_us))
                own.at_us = max(own.at_us, stream.at_us)
                own.faded_at_us = max(own.faded_at_us, stream.faded_at_us)
                own.alarmed_at_us = max(own.alarmed_at_us, stream.alarmed_at_us)
                own.buckets.merge(stream.buckets)
                own.blocks.merge(stream.blocks)
            result.whole.setdefault(kind, Moments()).merge(state.whole.get(kind) or Moments())
            faded = state.whole_faded_at_us.get(kind, 0)
            result.whole_faded_at_us[kind] = max(result.whole_faded_at_us.get(kind, 0), faded)
        result.forgotten_total += state.forgotten_total
    return result


def spiked(rate: float) -> float:
    """Return the rate of a spike where ``rate`` is usual: four times it, at least 3 and at most 15 points more (1.5 % to 6 %)."""
    return max(rate + rise_points_min, min(rise_times * rate, rate + rise_points_max))


def usual(buckets: Moments, blocks: Moments, whole: Moments) -> Usual:
    """Return what is usual, by a stream's own past, with the other streams of its kind as the start."""
    shared = (whole.x + rate_messages * rate_usual) / (whole.n + rate_messages)
    rate = (buckets.x + rate_messages * shared) / (buckets.n + rate_messages)
    rate = min(max(rate, rate_min), rate_max)
    excess, most = buckets.excess(rate)
    prior = correlation_buckets * bucket_messages * (bucket_messages - 1) * rate * (1 - rate)
    correlation = max(0.0, excess + correlation_usual * prior) / (most + prior)
    drift = _drift(buckets, blocks, rate, correlation)
    correlation = correlation_times * correlation + unknown_times / (buckets.n + rate_messages)
    correlation = min(max(correlation, correlation_min), correlation_max)
    return Usual(rate=rate, correlation=correlation, drift=drift, messages=buckets.n)


def _drift(buckets: Moments, blocks: Moments, rate: float, correlation: float) -> float:
    """Return how many times more blocks of buckets vary than independent buckets would; 1 where too few were seen."""
    if blocks.n <= 0:
        return 1.0
    excess, _ = blocks.excess(rate)
    binomial = blocks.n * rate * (1 - rate)
    size = buckets.nn / buckets.n if buckets.n > 0 else float(bucket_messages)
    times = (excess + binomial) / (binomial * (1 + (size - 1) * correlation))
    error = math.sqrt(2.5 * blocks.nn) / blocks.n  # of a variance of that many blocks, with a tail a little longer than normal
    return min(drift_max, max(1.0, times - drift_errors * error * times))


def log_ratio(x: int, n: int, model: tuple[float, float, float, float, float]) -> float:
    """Return the log of the beta-binomial likelihood ratio of spike to usual for x bounces of n, brought down for drift."""
    p0, p1, m, drift, _ = model
    return (_log_beta(x, n, p1 * m, m) - _log_beta(x, n, p0 * m, m)) / drift


def _log_beta(x: int, n: int, a: float, m: float) -> float:
    """Return log B(a + x, m - a + n - x) - log B(a, m - a), without the part that only depends on m and n."""
    return math.lgamma(a + x) - math.lgamma(a) + math.lgamma(m - a + n - x) - math.lgamma(m - a)


def _log_sum(a: float, b: float) -> float:
    most, least = (a, b) if a > b else (b, a)
    return most + math.log1p(math.exp(least - most))
