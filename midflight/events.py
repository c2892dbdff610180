"""The canonical event: what every vendor's bytes become, and what the stream folds."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import msgspec

# Kinds in past tense. The order is stored in the log and in snapshots: append, never reorder.
KINDS = (
    "unknown",
    "queued",
    "sent",
    "delivered",
    "deferred",
    "bounced",
    "rejected",
    "failed",
    "opened",
    "clicked",
    "complained",
    "unsubscribed",
    "subscribed",
    "autoresponded",
    "converted",
    "identified",
    "paged",
    "tracked",
    "inbound",
)
AGENTS = ("", "human", "proxied", "machine")
BOUNCE_CLASSES = ("", "hard", "soft", "block")
# Why a message was bounced, rejected or not sent, in one word; the vendor's own text goes to `detail`.
REASONS = ("", "invalid", "bounced", "timed_out", "blocked", "spam", "unsubscribed", "other")


class Event(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One thing that happened to a message or a person.

    ``reason`` is one of REASONS, ``detail`` what the vendor or the receiving server said, ``code`` its SMTP or DSN code, ``name`` the
    vendor's own word for the event (or the name of a tracked one).

    Times are microseconds since 1970 UTC; ``occurred_at_us`` is 0 where the vendor gave no usable time (the fold then
    uses ``received_at_us``). ``value_micros`` is money in millionths of ``currency``. ``event_id`` is the vendor's own id
    or, where it has none, ``"h:"`` and a content hash. Everything that is text came from outside and is untrusted.
    """

    source: str = ""
    event_id: str = ""
    kind: str = "unknown"
    occurred_at_us: int = 0
    received_at_us: int = 0
    recipient: str = ""
    user_id: str = ""
    message_id: str = ""
    campaign: str = ""
    variant: str = ""
    wave: str = ""
    url: str = ""
    agent: str = ""
    agent_reason: str = ""
    user_agent: str = ""
    ip: str = ""
    bounce_class: str = ""
    code: str = ""
    reason: str = ""
    detail: str = ""
    name: str = ""
    value_micros: int = 0
    currency: str = ""
    order_id: str = ""
    tags: list[str] = []
    metadata: dict[str, object] = {}
    traits: dict[str, object] = {}

    @property
    def occurred_at(self) -> datetime | None:
        """Return the vendor's time as an aware UTC datetime, or None where it gave none."""
        return datetime.fromtimestamp(self.occurred_at_us / 1e6, UTC) if self.occurred_at_us else None

    @property
    def received_at(self) -> datetime | None:
        return datetime.fromtimestamp(self.received_at_us / 1e6, UTC) if self.received_at_us else None

    @property
    def value(self) -> float:
        return self.value_micros / 1e6


class Bad(msgspec.Struct):
    """One vendor event that could not become an event. It goes to the dead letters with its reason."""

    index: int
    reason: str
    detail: str
    raw: bytes


class Parsed(list[Event]):
    """The events of one request, in the vendor's order, and in ``bad`` those that could not be read."""

    def __init__(self, events: list[Event] | None = None, bad: list[Bad] | None = None) -> None:
        super().__init__(events or ())
        self.bad: list[Bad] = bad or []


_DISPLAY = re.compile(r"<([^<>]*)>\s*$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
address_chars_max = 320


def clean(text: object) -> str:
    """Return text as one printable line: no control characters, no lone surrogates. The door has bounded its length."""
    if text is None:
        return ""
    if not isinstance(text, str):
        text = str(text)
    if not text.isprintable():
        text = _CONTROL.sub(" ", text.encode("utf-8", "replace").decode("utf-8")).strip()
    return text


def recipient_key(address: str) -> str:
    """Return the key under which an address is one recipient; ``""`` where it is no address.

    A display name is dropped, the domain lower-cased and punycoded, the local part compared folded; plus-tags and dots
    stay, because only the provider knows whether they mean the same box. Longer than 320 characters is no address
    (RFC 5321 section 4.5.3.1 with the display form removed).
    """
    if address.isascii():
        key = address.strip().lower()
        if "<" not in key:
            at = key.rfind("@")
            return key if 0 < at < len(key) - 1 and len(key) <= address_chars_max and " " not in key[at:] else ""
    text = address.strip()
    found = _DISPLAY.search(text)
    if found:
        text = found.group(1).strip()
    local, at, domain = text.rpartition("@")
    if not at or not local or not domain or len(text) > address_chars_max or " " in domain:
        return ""
    if not domain.isascii():
        try:
            domain = domain.encode("idna").decode("ascii")
        except UnicodeError:
            return ""
    return f"{local.casefold()}@{domain.lower()}"
