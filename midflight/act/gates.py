"""What breakers let through to mailbox providers, to domains and of campaigns: nothing, a few messages, or a share of the usual rate.

A message that a gate does not let through stays planned in the outbox: it waits, and is not lost.
"""

from __future__ import annotations

from .pace import Pace

usual_per_s_min = 1 / 30  # where hardly anything is known of how much is usual, a share of it is at least this


class Gate:
    """One breaker's. ``key`` tells one stage from the next; ``left`` of None has no bound, ``per_s`` of None no rate."""

    def __init__(self, key: tuple, left: int | None, per_s: float | None, now_s: float, sent: int = 0) -> None:
        self.key, self.sent, self.left = key, sent, left
        self._pace = None if per_s is None else Pace(max(usual_per_s_min, per_s), now_s)

    def ready(self, now_s: float, wanted: int) -> int:
        """Return how many of ``wanted`` may go now; none of them is taken."""
        if self.left is not None:
            wanted = min(wanted, self.left - self.sent)
        if self._pace is not None:
            wanted = self._pace.ready(now_s, wanted)
        return max(0, wanted)

    def took(self, count: int) -> None:
        self.sent += count
        if self._pace is not None:
            self._pace.took(count)


class Gates:
    """The gates that are not wide open."""

    def __init__(self) -> None:
        self.providers: dict[int, Gate] = {}
        self.domains: dict[str, Gate] = {}
        self.campaigns: dict[str, Gate] = {}

    def of(self, campaign: str, provider: int, recipient: str) -> list[Gate]:
        """Return the gates that a message goes through."""
        found = (
            self.campaigns.get(campaign), self.providers.get(provider),
            self.domains.get(domain_of(recipient)) if self.domains else None,
        )  # fmt: skip
        return [gate for gate in found if gate is not None]

    def held(self) -> list[int]:
        """Return the providers that nothing at all goes to; where a few messages try one, whoever sends has to ask its gate."""
        return [provider for provider, gate in self.providers.items() if gate.left == 0]

    def barred(self, recipients: list[str], now_s: float) -> set[str]:
        """Return those whose domain may not be written to now."""
        asked: dict[str, int] = {}
        barred = set()
        for recipient in recipients if self.domains else ():
            domain = domain_of(recipient)
            gate = self.domains.get(domain)
            if gate is None:
                continue
            before = asked.get(domain, 0)
            if gate.ready(now_s, before + 1) <= before:
                barred.add(recipient)
            else:
                asked[domain] = before + 1
        return barred


def domain_of(recipient: str) -> str:
    return recipient[recipient.rfind("@") + 1 :]
