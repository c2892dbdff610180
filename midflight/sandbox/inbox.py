"""What the sandbox's vendors have accepted: every message once for each time that it was taken, to be compared with what was meant."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from email.errors import HeaderParseError
from email.header import decode_header, make_header

import msgspec

from ..kit.clock import Clock

# What a sender attaches to a message, under the names that `Message.custom` of the channels gives them.
CUSTOM = ("intent", "campaign", "variant", "wave", "propensity")
HEADER = "x-midflight-"


class Accepted(msgspec.Struct, gc=False, frozen=True):
    """One message to one recipient that a vendor has taken. ``message_id`` is the one that it answered and will report by."""

    intent: str
    recipient: str
    campaign: str
    variant: str
    wave: str
    propensity: float
    vendor: str
    message_id: str
    at_us: int


def accepted(vendor: str, recipient: str, custom: Mapping[str, object], message_id: str, at_us: int) -> Accepted:
    """Return a taken message from what the sender attached to it; what is missing there is empty."""
    intent, campaign, variant, wave = (str(custom.get(name, "")) for name in CUSTOM[:4])
    return Accepted(intent, recipient, campaign, variant, wave, propensity(custom.get("propensity")), vendor, message_id, at_us)


_FOLD = re.compile(rb"\r?\n[ \t]+")


def mail_headers(raw: bytes) -> dict[str, str]:
    """Return the headers of a message in MIME form by lower-case name; of a repeated one the last. Encoded words are left as they are."""
    end = raw.find(b"\r\n\r\n")
    head = raw[:end] if end >= 0 else raw
    if b"\n " in head or b"\n\t" in head:
        head = _FOLD.sub(b" ", head)
    lines = head.decode("utf-8", "replace").split("\n")
    return {name.strip().lower(): value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


def header_custom(headers: Mapping[str, str]) -> dict[str, object]:
    """Return what is attached as headers: `X-Midflight-Intent` and its like, and the JSON of `X-Metadata`. Names are lower case."""
    custom: dict[str, object] = {}
    if "x-metadata" in headers:
        try:
            found = msgspec.json.decode(headers["x-metadata"])
        except msgspec.DecodeError:
            found = None
        custom = found if isinstance(found, dict) else {}
    for name in CUSTOM:
        value = headers.get(HEADER + name)
        if value is not None:
            custom[name] = decoded(value) if "=?" in value else value
    return custom


def decoded(value: str) -> str:
    """Return a header's text behind its encoded words (RFC 2047)."""
    try:
        return str(make_header(decode_header(value)))
    except (HeaderParseError, LookupError, UnicodeDecodeError):
        return value


def propensity(value: object) -> float:
    """Return a share as it was attached: ``0.25``, or ``0_25`` and ``0-25`` where a vendor's tags can hold no dot; 0 where it is none."""
    text = str(value or "")
    try:
        return float(text if "." in text or "e" in text else text.replace("_", ".").replace("-", "."))
    except ValueError:
        return 0.0


class Inbox:
    """Accepted messages of all vendors, in the order they were taken. Any thread may put and ask."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self._taken: list[Accepted] = []
        self._more = threading.Condition()

    def put(self, messages: Iterable[Accepted]) -> None:
        with self._more:
            self._taken.extend(messages)
            self._more.notify_all()

    def __len__(self) -> int:
        return len(self._taken)

    def messages(self, start: int = 0, end: int | None = None) -> list[Accepted]:
        """Return the messages from the ``start``-th on, up to the ``end``-th."""
        with self._more:
            return self._taken[start:end]

    def wait(self, count: int, timeout_s: float) -> bool:
        """Wait until ``count`` messages are there; return False where the time is up before."""
        with self._more:
            return self._more.wait_for(lambda: len(self._taken) >= count, timeout_s)

    def counts(self) -> Counter[str]:
        """Return how often each intent was taken."""
        return Counter(message.intent for message in self.messages())

    def twice(self) -> dict[str, int]:
        """Return the intents that were taken more than once, and how often: what somebody got twice."""
        return {intent: count for intent, count in self.counts().items() if count > 1}

    def lost(self, expected: Iterable[str]) -> set[str]:
        """Return the intents that should have been taken and never were."""
        return set(expected) - self.counts().keys()

    def uncalled(self, expected: Iterable[str]) -> set[str]:
        """Return the intents that were taken and that nobody expected."""
        return self.counts().keys() - set(expected)
