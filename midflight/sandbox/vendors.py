"""How each simulated vendor reports: batches, clock resolution, which events it has, how it tries again."""

from __future__ import annotations

from dataclasses import dataclass

_ALL = frozenset(("deferred", "hard", "soft", "block", "rejected", "complained", "unsubscribed", "autoresponded", "unknown"))


@dataclass(frozen=True)
class Vendor:
    """``starts`` is the event that says a message was taken (``""``: none); ``retry_s`` the waits after each refusal."""

    batch_max: int = 1
    resolution_us: int = 1000
    starts: str = "sent"
    lacks: frozenset[str] = frozenset()
    has_ids: bool = True  # where not, the content has to tell two events apart
    flags_apple: bool = False
    opens_have_agent: bool = True
    clicks_have_agent: bool = True
    retry_s: tuple[float, ...] = (60, 300, 900)
    content_type: str = "application/json"

    def has(self, what: str) -> bool:
        return what in _ALL and what not in self.lacks


VENDORS = {
    "sendgrid": Vendor(
        batch_max=200,
        resolution_us=1_000_000,
        starts="queued",
        lacks=frozenset(("soft", "autoresponded")),
        flags_apple=True,
        retry_s=(30, 60, 120, 300, 600, 1800, 3600),
    ),
    "ses": Vendor(lacks=frozenset(("autoresponded", "unknown")), retry_s=(20, 20, 20), content_type="text/plain; charset=UTF-8"),
    "postmark": Vendor(starts="", has_ids=False, lacks=frozenset(("unknown",)), retry_s=(60, 300, 600, 600, 600, 900, 1800, 3600)),
    "mailgun": Vendor(
        starts="queued", flags_apple=True, lacks=frozenset(("autoresponded", "unknown")), retry_s=(300, 600, 900, 3600, 7200, 14400)
    ),
    "resend": Vendor(lacks=frozenset(("autoresponded",)), opens_have_agent=False, retry_s=(5, 300, 1800, 7200, 18000, 36000)),
}
SITE = "segment"
SITE_VENDOR = Vendor(batch_max=100, retry_s=(1, 2, 4, 8, 16, 32))


def vendor(name: str) -> Vendor:
    return SITE_VENDOR if name == SITE else VENDORS[name]
