"""Whether each source brings what it should: what was sent against what was heard of it, and what usually comes against what comes; pure.

It is looked at once a minute of log time. Alarms are about webhooks that do not come, not about mail that does not arrive:

- ``silence``: nothing at all comes from a source that would have said so much by now; or nothing for a day from one that speaks every day;
- ``thin``: opens and clicks of people have nearly stopped while other events still come;
- ``unanswered``: messages are sent and hardly anything more is heard of them;
- ``unsent``: messages are delivered that were never sent, from a source that reports sending;
- ``undelivered``: messages are opened or clicked that were never delivered, from a source that reports deliveries.

What has come once is never less: the last three compare sums of a campaign of some minutes ago with sums of now, so that no order of
arrival makes an alarm. What was amiss when a campaign was first seen is not held against its source.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from .dropping import Stream, day_minutes, minutes_min
from .unusual import Unusual, binomial_tail, titled

VERSION = 1
late_minutes = 2  # so much later than what it follows from may an event come
window_minutes = 16
sent_min = 50
answered_share_min = 0.02  # big lists go out slowly: less than one in fifty, minutes after sending, is no queue
answered_usual_min = 0.8  # of what is sent
missing_min = 20
missing_share = 0.05  # of a campaign: what a vendor may lose
chance = 1e-6
reports_min, reports_share = 200.0, 0.9  # from when on, and how surely, a source reports something
calm_looks = 3
speaks_days = 7
gap_minutes_max = 2
half_life_days = 14.0
campaigns_max = 1_000
sources_max = 1_000


class Campaign(NamedTuple):
    """Sums of a campaign by now, each message once but for ``engaged`` (opens and clicks of people); from which sources they are.

    ``sent`` is what the source says, ``handed`` what was handed over to it, by that or by our own outbox.
    """

    name: str
    sources: tuple[str, ...] = ()
    sent: int = 0
    answered: int = 0  # anything heard of it after sending: delivered, bounced, deferred, rejected
    delivered: int = 0
    opened: int = 0  # opened or clicked
    engaged: int = 0
    handed: int = 0


class Sums(NamedTuple):
    sent: int = 0
    answered: int = 0
    delivered: int = 0
    opened: int = 0
    engaged: int = 0
    handed: int = 0


class Seen(msgspec.Struct, kw_only=True):
    """A campaign's sums of the last minutes, and what was amiss when it was first seen."""

    at: int = 0
    sums: list[Sums] = []
    unsent_first: int = 0
    undelivered_first: int = 0


class Known(msgspec.Struct, kw_only=True):
    """What is remembered of a source: its streams, what it reports, the days on which it spoke, its last minutes' sums."""

    received: Stream = msgspec.field(default_factory=lambda: Stream(silence=True))
    engaged: Stream = msgspec.field(default_factory=Stream)
    sent: float = 0.0
    handed: float = 0.0
    answered: float = 0.0
    delivered: float = 0.0
    opened: float = 0.0
    days: list[int] = []
    last: int = 0  # the last minute with events


class Alarm(msgspec.Struct, kw_only=True):
    """Something that does not come. Times are minutes since 1970; ``calm``: for how many looks it has been over."""

    kind: str
    source: str
    campaign: str = ""
    since: int = 0
    at: int = 0
    text: str = ""
    why: str = ""
    calm: int = 0


class State(msgspec.Struct, kw_only=True):
    """A snapshot: plain data."""

    version: int = VERSION
    minute: int = 0
    faded: int = 0
    sources: dict[str, Known] = {}
    campaigns: dict[str, Seen] = {}
    alarms: list[Alarm] = []


class Reconciliation:
    """All sources. ``look`` takes one minute after the other and says what has begun; `state.alarms` are those that stand."""

    def __init__(self, state: State | None = None) -> None:
        # What a state of another version means is not known: it is learnt anew.
        self.state = state if state is not None and state.version == VERSION else State()
        self._campaigns: dict[str, Campaign] = {}  # of the last look

    def look(self, minute: int, received: dict[str, int], campaigns: Iterable[Campaign]) -> list[Alarm]:
        """Take in a minute: how many events each source brought in it, and the campaigns' sums after it. Return alarms that begin.

        Where minutes are left out nobody was there to hear anything, or the numbers were behind: nothing is held against a source then.
        """
        state = self.state
        if minute <= state.minute:
            return []
        gap = bool(state.minute) and minute - state.minute > gap_minutes_max
        state.minute = minute
        self._fade(minute)
        engaged = self._grown(minute, campaigns, gap)
        found: list[Alarm] = []
        for name in [*state.sources, *(name for name in received if name not in state.sources)][:sources_max]:
            state.sources.setdefault(name, Known())
            found += self._source(minute, name, received.get(name, 0), engaged.get(name, 0.0), gap)
        found += self._sums(minute)
        return self._settle(minute, found)

    # -- what a source usually says ------------------------------------------------------------------------------------------------

    def _source(self, minute: int, name: str, received: int, engaged: float, gap: bool) -> list[Alarm]:
        known = self.state.sources[name]
        if gap:
            known.received.skip()
            known.engaged.skip()
        silent, thin = known.received.count(minute, received), known.engaged.count(minute, engaged)
        if received:
            known.last = minute
            if not known.days or known.days[-1] != minute // day_minutes:
                known.days = [*known.days, minute // day_minutes][-speaks_days - 1 :]
        quiet = minute - known.last
        if silent or thin:
            # One outage is one alarm: what it began as it stays.
            began = next((one.kind for one in self.state.alarms if one.source == name and one.kind in ("silence", "thin")), "")
            is_silence = began == "silence" if began and thin else silent or quiet >= minutes_min - 1
            return [silence(name, known, minute) if is_silence else thinness(name, known)]
        if day_minutes <= quiet < speaks_days * day_minutes and speaks_daily(known):
            return [silent_day(name, known, minute)]
        return []

    # -- what a campaign's sums say ----------------------------------------------------------------------------------------------

    def _grown(self, minute: int, campaigns: Iterable[Campaign], gap: bool) -> dict[str, float]:
        """Note the sums, and return how many opens and clicks of people came since the last look, by source."""
        engaged: dict[str, float] = {}
        first = not self.state.campaigns
        self._campaigns = {}
        for now in campaigns:
            if not now.sources:
                continue
            seen = self.state.campaigns.get(now.name)
            if seen is None:
                seen = self._first_seen(now, first)
            before, sums = seen.sums[-1] if seen.sums else Sums(), sums_of(now)
            seen.sums, seen.at = [*([] if gap else seen.sums), sums][-window_minutes:], minute
            self._campaigns[now.name] = now
            grown = Sums(*(0 if gap else max(0, a - b) for a, b in zip(sums, before, strict=True)))
            self._reported(now.sources, grown)
            for source in now.sources:
                engaged[source] = engaged.get(source, 0.0) + grown.engaged / len(now.sources)
        return engaged

    def _first_seen(self, now: Campaign, first: bool) -> Seen:
        """Remember a campaign; when the first look finds it under way, all of it counts for what its source reports."""
        campaigns = self.state.campaigns
        if len(campaigns) >= campaigns_max:
            for name in sorted(campaigns, key=lambda name: campaigns[name].at)[: campaigns_max // 10]:
                del campaigns[name]
        sums = sums_of(now)
        seen = campaigns[now.name] = Seen(
            unsent_first=max(0, now.delivered - now.sent), undelivered_first=max(0, now.opened - now.delivered)
        )  # fmt: skip
        if not first:
            # It is new since the last look: what it has came in this minute.
            seen.unsent_first = seen.undelivered_first = 0
            return seen
        seen.sums = [sums]
        self._reported(now.sources, sums)
        return seen

    def _reported(self, sources: tuple[str, ...], sums: Sums) -> None:
        """Note what sources report. Of a campaign through several each has its part; an even one is near enough."""
        for source in sources:
            known = self.state.sources.setdefault(source, Known())
            for field in REPORTED:
                setattr(known, field, getattr(known, field) + getattr(sums, field) / len(sources))

    def _sums(self, minute: int) -> list[Alarm]:
        found = []
        for name, now in self._campaigns.items():
            seen = self.state.campaigns[name]
            if len(seen.sums) <= late_minutes:
                continue
            found += self._unanswered(minute, now, seen)
            if not name:
                # Of mail without a campaign the sums are those of years: what is missing today does not show.
                continue
            then, last = seen.sums[-late_minutes - 1], seen.sums[-1]
            known = self._known(now)
            for kind, happened, missing in (
                ("unsent", then.delivered, then.delivered - last.sent - seen.unsent_first),
                ("undelivered", then.opened, then.opened - last.delivered - seen.undelivered_first),
            ):
                reports = reports_sent if kind == "unsent" else reports_delivered
                if missing >= missing_min and all(map(reports, known)) and binomial_tail(missing, happened, missing_share) <= chance:
                    found.append(missed(kind, now, minute, happened, missing))
        return found

    def _unanswered(self, minute: int, now: Campaign, seen: Seen) -> list[Alarm]:
        if not all(known.handed >= reports_min and known.answered >= answered_usual_min * known.handed for known in self._known(now)):
            return []
        until, last = seen.sums[-late_minutes - 1], seen.sums[-1]
        for place, first in enumerate(seen.sums[: -late_minutes - 2]):
            sent, answered = until.handed - first.handed, last.answered - first.answered
            if sent >= sent_min and answered <= answered_share_min * sent:
                return [unanswered(now, minute - len(seen.sums) + place + 2, sent, answered)]
        return []

    def _known(self, now: Campaign) -> list[Known]:
        return [self.state.sources[source] for source in now.sources]

    # -- from one look to the next ---------------------------------------------------------------------------------------------------

    def _fade(self, minute: int) -> None:
        """Let what a source reports fade, once a day."""
        state = self.state
        if minute - state.faded < day_minutes:
            return
        share = 0.5 ** (1 / half_life_days) if state.faded else 1.0
        for known in state.sources.values():
            for field in REPORTED:
                setattr(known, field, getattr(known, field) * share)
        state.faded = minute
        state.campaigns = {name: seen for name, seen in state.campaigns.items() if minute - seen.at < 40 * day_minutes}

    def _settle(self, minute: int, found: list[Alarm]) -> list[Alarm]:
        """Keep alarms that stand, end those that have been over for some looks, and return those that begin."""
        standing = {(one.kind, one.source, one.campaign): one for one in self.state.alarms}
        begun = []
        for one in found:
            before = standing.get((one.kind, one.source, one.campaign))
            if before is None:
                one.at = minute
                begun.append(one)
                standing[one.kind, one.source, one.campaign] = one
            else:
                before.calm, before.text, before.why = 0, one.text, one.why
        keys = {(one.kind, one.source, one.campaign) for one in found}
        for key, one in standing.items():
            if key not in keys:
                one.calm += 1
        self.state.alarms = [one for one in standing.values() if one.calm < calm_looks]
        return begun


REPORTED = ("sent", "handed", "answered", "delivered", "opened")


def sums_of(now: Campaign) -> Sums:
    return Sums(now.sent, now.answered, now.delivered, now.opened, now.engaged, max(now.sent, now.handed))


def reports_sent(known: Known) -> bool:
    return known.delivered >= reports_min and known.sent >= reports_share * known.delivered


def reports_delivered(known: Known) -> bool:
    return known.delivered >= reports_min and known.delivered >= reports_share * known.opened


def speaks_daily(known: Known) -> bool:
    """Whether a source has spoken on each of its last days."""
    days = known.days
    return len(days) > speaks_days and days[-1] - days[0] == len(days) - 1


# -- in words ---------------------------------------------------------------------------------------------------------------------------

NEXT = (
    "Look at the vendor's webhook settings and at what the door refuses; a poll of its events, or an import of its export, brings what is "
    "missing."
)


def silence(name: str, known: Known, minute: int) -> Alarm:
    quiet = max(1, minute - known.last)
    missed = max(known.received.missed, known.engaged.missed)
    return Alarm(
        kind="silence", source=name, since=known.last + 1, text=f"Source {name} has been silent for {quiet} minutes.",
        why=f"By what came before, about {missed:.0f} events should have come since. {NEXT}",
    )  # fmt: skip


def silent_day(name: str, known: Known, minute: int) -> Alarm:
    hours = (minute - known.last) // 60
    return Alarm(
        kind="silence", source=name, since=known.last + 1, text=f"Source {name} has been silent for {hours} hours.",
        why=f"It had events on each of the {len(known.days)} days before. {NEXT}",
    )  # fmt: skip


def thinness(name: str, known: Known) -> Alarm:
    return Alarm(
        kind="thin", source=name, since=known.engaged.began, text=f"Opens and clicks from source {name} have nearly stopped.",
        why=f"By what came before, about {known.engaged.missed:.0f} more should have come since, while other events go on. {NEXT}",
    )  # fmt: skip


def unanswered(now: Campaign, since: int, sent: int, answered: int) -> Alarm:
    return Alarm(
        kind="unanswered", source=", ".join(now.sources), campaign=now.name, since=since,
        text=f"{sent} messages of {titled(now)} went out, and hardly any is heard of.",
        why=f"Something was heard of {answered} of them within minutes; usually it is of nearly all. Either deliveries, bounces and "
        f"deferrals are not reported any more, or nothing is delivered. {NEXT}",
    )  # fmt: skip


def missed(kind: str, now: Campaign, minute: int, happened: int, missing: int) -> Alarm:
    campaign = titled(now)
    words = (
        f"{missing} of {happened} delivered messages of {campaign} were never sent, by what the source says."
        if kind == "unsent"
        else f"{missing} of {happened} opened messages of {campaign} were never delivered, by what the source says."
    )
    what = "sending" if kind == "unsent" else "deliveries"
    return Alarm(
        kind=kind, source=", ".join(now.sources), campaign=now.name, since=minute - late_minutes, text=words,
        why=f"The source reports {what} otherwise, and nothing can follow from what did not happen: events of {what} are missing. {NEXT}",
    )  # fmt: skip


def as_unusual(alarm: Alarm) -> Unusual:
    """Return an alarm as it is shown among what is unusual."""
    return Unusual(
        kind=alarm.kind, severity="serious" if alarm.kind in ("silence", "unanswered") else "warning", campaign=alarm.campaign,
        subject=alarm.source, text=alarm.text, why=alarm.why, p=chance,
    )  # fmt: skip
