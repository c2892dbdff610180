"""The contract of a channel: messages become calls of a vendor's API, and the vendor's answer becomes one outcome for each message.

A channel does no input or output of its own. ``act/delivery.py`` makes the calls and decides what an unanswered one means, in the same way
for all of them.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from ...events import clean
from ...kit.errors import ConfigError

OUTCOMES = ("sent", "refused", "later", "unknown")


class Message(msgspec.Struct, kw_only=True):
    """One email to one recipient, ready to go. ``intent`` names it for ever: it is the idempotency key and comes back in webhooks.

    Everything in ``headers`` has been checked: no line breaks, no header that the fields below make.
    """

    intent: str
    campaign: str
    variant: str
    wave: str
    propensity: float
    to: str
    to_name: str = ""
    from_address: str
    from_name: str = ""
    reply_to: str = ""
    subject: str
    html: str = ""
    text: str
    headers: dict[str, str] = {}

    def custom(self) -> dict[str, str]:
        """Return what has to come back with the vendor's events, under the names that the sources read by default."""
        return {
            "campaign": self.campaign, "variant": self.variant, "wave": self.wave, "propensity": f"{self.propensity:.6g}",
            "intent": self.intent,
        }  # fmt: skip


class Outcome(msgspec.Struct, kw_only=True, frozen=True):
    """What became of one message. ``sent``: the vendor has it. ``refused``: it never will go, and why. ``later``: it did not go and may be
    tried again, after ``retry_s`` where the vendor said so. ``unknown``: nobody can tell; a webhook settles it, and it is never sent again.
    """

    kind: str
    message_id: str = ""
    code: str = ""
    detail: str = ""
    retry_s: float = 0.0


class Call(msgspec.Struct, kw_only=True, frozen=True):
    """One HTTP request. ``idempotent`` where the vendor promises that the same call made twice has one effect."""

    method: str = "POST"
    url: str
    headers: dict[str, str] = {}
    body: bytes = b""
    idempotent: bool = False


class Answer(msgspec.Struct, kw_only=True, frozen=True):
    """The vendor's complete answer; header names are lower-case."""

    status: int
    headers: dict[str, str] = {}
    body: bytes = b""


class Settings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What every channel can be told."""

    per_second: Annotated[float, msgspec.Meta(gt=0)] = 100.0  # messages, over all connections
    connections: Annotated[int, msgspec.Meta(ge=1, le=200)] = 8


class Channel:
    """A vendor's API for sending. A subclass has ``Settings``, ``batch_max`` and the two methods."""

    label: ClassVar[str] = ""
    doc: ClassVar[str] = ""
    source: ClassVar[str] = ""  # the kind of source that its webhooks come through
    # For the contract test and the documentation: settings, messages, the call they become, answers and what each means. See sendgrid.py.
    EXAMPLES: ClassVar[tuple[dict, ...]] = ()
    batch_max: ClassVar[int] = 1  # messages in one call
    Settings: ClassVar[type[Settings]] = Settings

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def call(self, messages: list[Message], now_us: int) -> Call:
        """Return the request that sends these messages, at most ``batch_max``. ``now_us`` is for signatures that carry a time."""
        raise NotImplementedError

    def outcomes(self, messages: list[Message], answer: Answer) -> list[Outcome]:
        """Return one outcome for each message, in order. An answer that says neither yes nor no is ``unknown`` for all."""
        raise NotImplementedError


EXAMPLE = Message(
    intent="in-01HZX4", campaign="spring", variant="B", wave="3", propensity=0.25, to="ada@example.com", to_name="Ada Lovelace",
    from_address="news@shop.example", from_name="The Shop", reply_to="help@shop.example", subject="Two days left",
    html="<p>Hello Ada</p>", text="Hello Ada",
    headers={"List-Unsubscribe": "<https://m.example/u/x>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"},
)  # fmt: skip
SECOND = msgspec.structs.replace(EXAMPLE, intent="in-01HZX5", to="bob@example.com", to_name="", text="Hello Bob", html="<p>Hello Bob</p>")


def channel_of(kind: type[Channel], settings: dict, where: str) -> Channel:
    """Return a channel with its settings checked. Raises ConfigError."""
    try:
        return kind(msgspec.convert(settings, kind.Settings))
    except msgspec.ValidationError as error:
        raise ConfigError(f"Channel settings: {error}", where=where) from None


# -- what an answer means, in the same words for all vendors -------------------------------------------------------------------------


def refused_all(messages: list[Message], answer: Answer, detail: str) -> list[Outcome]:
    return [Outcome(kind="refused", code=str(answer.status), detail=detail[:500])] * len(messages)


def unsettled(messages: list[Message], answer: Answer, detail: str = "") -> list[Outcome]:
    """Return what an answer means that accepts nothing: throttled ones did not go, errors of the vendor's may have, others were refused.

    A wrong or rotated key is not the recipient's fault, so what it turns away may be tried again.
    """
    detail = detail or clean(answer.body[:300].decode("utf-8", "replace"))
    if answer.status in (401, 403, 429) or (answer.status == 503 and "retry-after" in answer.headers):
        return [Outcome(kind="later", code=str(answer.status), detail=detail, retry_s=retry_after_s(answer))] * len(messages)
    if 400 <= answer.status < 500 and answer.status != 408:
        return refused_all(messages, answer, detail)
    return [Outcome(kind="unknown", code=str(answer.status), detail=detail)] * len(messages)


def decoded(body: bytes) -> object:
    """Return an answer's JSON, or None where it is none: what is asked of it next then finds nothing."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def at(found: object, *path: str | int) -> object:
    """Return what stands at a path of an answer's JSON, or None where the answer has another shape."""
    for step in path:
        fits = isinstance(found, dict) if isinstance(step, str) else isinstance(found, list) and -len(found) <= step < len(found)
        if not fits:
            return None
        found = found.get(step) if isinstance(step, str) else found[step]
    return found


def text_at(found: object, *path: str | int) -> str:
    """Return the text or number that stands at a path, as one printable line; ``""`` where there is none."""
    value = at(found, *path)
    return clean(str(value))[:500] if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def list_at(found: object, *path: str | int) -> list:
    value = at(found, *path)
    return value if isinstance(value, list) else []


retry_s_max = 3600.0


def retry_after_s(answer: Answer) -> float:
    """Return the seconds in ``Retry-After``, at most an hour; 0 where it says nothing that can be read (a date counts as nothing)."""
    try:
        return min(max(float(answer.headers.get("retry-after", "")), 0.0), retry_s_max)
    except ValueError:
        return 0.0
