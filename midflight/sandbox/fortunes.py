"""What else is true of a played world: what follow-ups bring, and when a mailbox provider turns mail away; each person's luck is his own.

Both are drawn from the seed and the address alone. So it is known of everybody what a follow-up brings him, whether he gets one or not,
and two runs with the same seed meet the same trouble.
"""

from __future__ import annotations

from hashlib import blake2b
from random import Random

import msgspec

# What providers say when they turn a sender away, 4xx where a vendor has tried for as long as it does, and 5xx.
TURNED_AWAY = {
    "Gmail": (
        "421 4.7.28 Our system has detected an unusual rate of unsolicited mail originating from your IP address 198.51.100.9.",
        "550 5.7.1 Our system has detected that this message is likely unsolicited mail. To reduce the amount of spam sent to Gmail, "
        "this message has been blocked.",
    ),
    "Microsoft": (
        "451 4.7.650 The mail server [198.51.100.9] has been temporarily rate limited due to IP reputation.",
        "550 5.7.1 Unfortunately, messages from [198.51.100.9] weren't sent. Please contact your Internet service provider since part of "
        "their network is on our block list (S3140).",
    ),
    "Yahoo": (
        "421 4.7.0 [TSS04] Messages from 198.51.100.9 temporarily deferred due to unexpected volume or user complaints",
        "553 5.7.1 [BL21] Connections will not be accepted from 198.51.100.9, because the ip is in Spamhaus's list",
    ),
    "Apple": ("450 4.7.1 Too many messages from your network, try again later", "550 5.7.1 [CS01] Message rejected due to local policy."),
    "GMX / WEB.DE": (
        "421 4.7.0 Requested action aborted: too many connections, IP reputation",
        "554 5.7.1 Transaction failed. Reject due to policy restrictions, bad reputation of the sender's IP",
    ),
}  # fmt: skip


class FollowUp(msgspec.Struct, frozen=True, kw_only=True):
    """What messages of one campaign bring: with ``chance`` whoever gets one looks and buys, ``within_s`` virtual seconds later."""

    campaign: str
    chance: float = 0.3
    within_s: float = 1800.0
    price: float = 59.0


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """A mailbox provider turns away this share of what is sent to it from ``from_us`` to ``until_us``."""

    provider: str
    from_us: int
    until_us: int
    share: float = 0.8

    def said(self, seed: int, key: str, at_us: int) -> str:
        """Return the text with which a message to somebody is turned away, nothing where it is not."""
        if not self.from_us <= at_us < self.until_us:
            return ""
        luck = own_luck(seed, "trouble", key)
        return luck.choice(TURNED_AWAY[self.provider]) if luck.random() < self.share else ""


def own_luck(seed: int, what: str, key: str) -> Random:
    """Return the luck that somebody has in one thing."""
    return Random(blake2b(f"{seed} {what} {key}".encode(), digest_size=16).digest())
