"""The contract of a way out: actions become calls, and an answer becomes one outcome for each action.

A way does no input or output of its own. ``act/calls.py`` makes the calls and decides what an unanswered one means, in the same way for
all of them. What a rule says through a way are its ``Fields``; ``_then.py`` fills their templates in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Annotated, ClassVar, NamedTuple
from urllib.parse import urlsplit

import msgspec

from ...kit.errors import ConfigError
from ..channels.channel import OUTCOMES, Answer, Call, Outcome, at, decoded, list_at, text_at, unsettled
from ..guarded import Guard, checked_url
from ._tokens import Token

__all__ = [
    "NOT_TRIED", "OUTCOMES", "Answer", "Call", "Outcome", "Action", "Fields", "LocalWay", "Settings", "Text", "Way", "at", "check_urls",
    "decoded", "fields_of", "list_at", "text_at", "unsettled", "way_of",
]  # fmt: skip

FOREVER_US = 1 << 61
# Why nothing was asked of the other end: no try was made.
NOT_TRIED = frozenset(("target_down", "token", "busy", "withheld", "after_another", "cap", "no_channel"))
promise_us = 23 * 3600 * 1_000_000  # vendors forget after a day what they promised to do once
id_chars_max = 64
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Action(msgspec.Struct, kw_only=True, frozen=True):
    """One thing that a rule wants to happen. ``id`` names it for ever: it was durable before the call, and is the idempotency key.

    ``way`` is the configured name of the way out, ``fields`` are what is said, already rendered, and ``expires_us`` is when it is too late
    to say it (0: never). ``chain`` are the rules behind it, the last one its own, to go into whatever it causes; ``subject`` is what the
    order of actions matters for.
    """

    id: str
    rule: str = ""
    version: int = 0
    recipient: str = ""
    way: str
    fields: dict[str, object] = {}
    expires_us: int = 0
    chain: tuple[str, ...] = ()
    subject: str = ""

    def __post_init__(self) -> None:
        # An id stands in headers, URLs and file lines.
        assert _ID.fullmatch(self.id), f"an action's id has 1 to {id_chars_max} of A-Z a-z 0-9 _ . : -, got {self.id!r}"


class Text(NamedTuple):
    """What a text of ``Fields`` is. ``kind`` is ``line`` (one line, cut), ``plain`` (any text), ``url`` (its host is fixed, what is filled
    in is percent-encoded) or ``fixed`` (no template: names, ids and keys that must not come from outside).
    """

    kind: str
    chars_max: int


class Settings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What every way can be told."""

    per_second: Annotated[float, msgspec.Meta(gt=0)] = 50.0  # calls, over all connections
    connections: Annotated[int, msgspec.Meta(ge=1, le=100)] = 4


class Fields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a rule's `then` may say through a way."""


class Way:
    """A way out. A subclass has ``Settings``, ``Fields``, ``batch_max``, ``calls`` and ``outcomes``.

    ``entropy`` gives random bytes where a protocol wants some.
    """

    label: ClassVar[str] = ""
    doc: ClassVar[str] = ""
    # For the contract test and the documentation: settings, actions, the call they become, answers and what each means. See slack.py.
    EXAMPLES: ClassVar[tuple[dict, ...]] = ()
    batch_max: ClassVar[int] = 1  # actions in one call
    promise_us: ClassVar[int] = promise_us  # how long a call whose answer never came may be made again, where calls are idempotent
    reaches_people: ClassVar[bool] = False  # whether the recipient reads it: then it goes to nobody who has unsubscribed
    undoes: ClassVar[str] = ""  # what undoing does, in words; "" where nothing can be taken back
    Settings: ClassVar[type[Settings]] = Settings
    Fields: ClassVar[type[Fields]] = Fields

    def __init__(self, settings: Settings, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self.settings = settings
        self.entropy = entropy

    def said(self, action: Action) -> Fields:
        """Return an action's fields, checked. Raises msgspec.ValidationError."""
        return msgspec.convert(action.fields, self.Fields)

    def calls(self, actions: list[Action], now_us: int) -> Call:
        """Return the request for these actions, at most ``batch_max``, all of one ``group``.

        Raises MidflightError or msgspec.ValidationError for what cannot be said.
        """
        raise NotImplementedError

    def outcomes(self, actions: list[Action], answer: Answer) -> list[Outcome]:
        """Return one outcome for each action, in order. An answer that says neither yes nor no is ``unknown`` for all."""
        raise NotImplementedError

    def target(self, action: Action) -> str:
        """Return what fails and recovers together: where a circuit breaker stands. The host of the settings, unless a way knows better."""
        return origin(self.settings.url)

    def group(self, action: Action) -> str:
        """Return what may share a call; different groups never do."""
        return ""

    def subject(self, action: Action) -> str:
        """Return what the order of actions matters for: a later one with the same subject waits for the earlier. ``""``: it does not."""
        return ""

    # -- taking it back --------------------------------------------------------------------------------------------------

    def undo(self, action: Action, outcome: Outcome) -> Call | None:
        """Return the call that takes an action back, or None where that cannot be done. Making it twice does what once does."""
        return None

    def undone(self, answer: Answer) -> Outcome:
        """Return what the answer to an undo means: ``sent`` where it is undone, also because there is nothing left to undo."""
        if 200 <= answer.status < 300 or answer.status in (404, 410):
            return Outcome(kind="sent", code=str(answer.status))
        return unsettled([None], answer)[0]

    # -- credentials that expire -----------------------------------------------------------------------------------------

    token: Token | None = None  # of a way whose tokens have to be fetched

    def forget_token(self) -> None:
        """Forget the token: a call with it was turned away."""
        if self.token:
            self.token.forget()


class LocalWay(Way):
    """A way that makes no call of its own: what it does is a change of our own tables, or goes on by another way."""


def way_of(kind: type[Way], settings: dict, where: str, entropy: Callable[[int], bytes] = os.urandom) -> Way:
    """Return a way with its settings checked. Raises ConfigError."""
    try:
        return kind(msgspec.convert(settings, kind.Settings), entropy)
    except msgspec.ValidationError as error:
        raise ConfigError(f"Settings of a way out: {error}", where=where) from None


def check_urls(way: Way, guard: Guard, where: str) -> None:
    """Refuse settings whose URLs may not be called, when they are saved. What their names lead to is checked with every connection.

    Raises ConfigError.
    """
    for name in ("url", "token_url"):
        if url := getattr(way.settings, name, ""):
            checked_url(url, f"{where}.{name}", http=guard.http, ports=guard.ports, allow=guard.allow)


def fields_of(kind: type[Way], fields: dict, where: str) -> Fields:
    """Return a rule's fields checked for names and types. Raises ConfigError."""
    try:
        return msgspec.convert(fields, kind.Fields)
    except msgspec.ValidationError as error:
        raise ConfigError(f"What the rule says: {error}", expected=", ".join(kind.Fields.__struct_fields__), where=where) from None


def origin(url: str) -> str:
    """Return scheme, host and port of a URL: what a breaker stands for."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def json_call(url: str, body: object, *, method: str = "POST", headers: dict[str, str] | None = None, idempotent: bool = False) -> Call:
    """Return a call with a JSON body."""
    headers = {"content-type": "application/json"} | (headers or {})
    return Call(method=method, url=url, headers=headers, body=msgspec.json.encode(body), idempotent=idempotent)


EXAMPLE = Action(id="ac-01HZX4", rule="clicked_not_bought", version=3, recipient="ada@example.com", way="out", fields={})
SECOND = msgspec.structs.replace(EXAMPLE, id="ac-01HZX5", recipient="bob@example.com")
