"""Stops a variant, or a campaign, whose people leave, complain or bounce too often; a person who lets it go on has seen the numbers."""

from __future__ import annotations

import msgspec

from ..act.campaigns import Campaigns, Running
from ..act.sender import Sender
from ..act.standings import trip_text
from ..decide.guardrails import Counts, trips
from ..store.experiment import Numbers


class Guarding:
    """The guards of all campaigns."""

    def __init__(self, campaigns: Campaigns, numbers: Numbers, sender: Sender) -> None:
        self.campaigns, self.numbers, self.sender = campaigns, numbers, sender

    def look(self, now: Running, now_us: int) -> None:
        """Stop what a guard has to stop now."""
        for trip in trips(self._since(now), now.definition.guardrails):
            text = trip_text(trip, now)
            grounds = {name: getattr(trip, name) for name in ("what", "happened", "of", "ceiling", "evidence")}
            grounds["evidence"] = float(min(grounds["evidence"], 1e12))
            live = self.campaigns.get(now.id).live
            one = trip.arm >= 0 and live.sum() > 1
            if one and not live[trip.arm]:
                continue
            with self.campaigns.db:
                self.campaigns.decided(now.id, now_us, "guard", "guard", text, "", grounds)
                if one:
                    self.campaigns.drop(now.id, trip.arm, "guard", text, now_us)
                    continue
                self.sender.withdraw(now.id)
                self.campaigns.move(now.id, "paused", "guard", text, now_us)
            return

    def look_past(self, now: Running) -> None:
        """Somebody lets a campaign go on that a guard may have paused: what has happened by now is known and accepted."""
        self.campaigns.guard_from(now.id, self._happened(now))

    def _since(self, now: Running) -> list[Counts]:
        """Return what has happened, less what somebody has accepted; a variant that came later has nothing of that."""
        base = self.campaigns.guard_base(now.id)
        return [less(count, base[k]) if k < len(base) else count for k, count in enumerate(self._happened(now))]

    def _happened(self, now: Running) -> list[Counts]:
        """Return what guards look at. A plain relay reports no delivery: there what was sent stands for what was delivered."""
        names = now.names
        counts = self.numbers.counts(now.name, names)
        if any(count.delivered for count in counts):
            return counts
        sent = self.campaigns.outbox.sent(now.id, len(self.campaigns.waves(now.id)), len(names)).sum(0)
        return [
            msgspec.structs.replace(count, delivered=max(0, int(n) - count.bounced)) for count, n in zip(counts, sent, strict=True)
        ]  # fmt: skip


def less(counts: Counts, before: Counts) -> Counts:
    return Counts(**{name: max(0, getattr(counts, name) - getattr(before, name)) for name in Counts.__struct_fields__})
