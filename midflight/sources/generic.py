"""Any sender of JSON, mapped by configuration: where each field of an event stands, which word means which kind, what is signed."""

from __future__ import annotations

import base64
import hmac
from datetime import UTC, datetime
from typing import Literal

import msgspec

from ..events import AGENTS, BOUNCE_CLASSES, KINDS, REASONS, Event
from ..kit.errors import ConfigError, nearest
from .source import (
    Malformed,
    Refused,
    Request,
    Source,
    SourceConfig,
    as_dict,
    bare_address,
    decode_json,
    header_bytes_max,
    iso_us,
    money_micros,
    number_us,
    same,
    text,
    texts,
    with_headers,
)

# Fields that are taken over as text; the others have a meaning of their own below.
TEXTS = (
    "event_id",
    "user_id",
    "message_id",
    "campaign",
    "variant",
    "wave",
    "url",
    "user_agent",
    "ip",
    "code",
    "detail",
    "name",
    "order_id",
)
FIELDS = ("kind", "occurred_at", "recipient", *TEXTS, "reason", "bounce_class", "agent", "value", "currency", "tags", "metadata", "traits")

IGNORE = "ignore"

# field -> path, or several of which the first that finds something counts
Fields = msgspec.defstruct(
    "Fields", [(name, str | list[str], "") for name in FIELDS], frozen=True, kw_only=True, forbid_unknown_fields=True, module=__name__
)


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An HMAC of the raw body in ``header``, after ``prefix``, as lower-case hex or base64.

    With ``timestamp_header`` the time stands in front of the body (``message: "{timestamp}.{body}"``), and requests signed more
    than ``tolerance_s`` before or after now are refused.
    """

    header: str
    algorithm: Literal["sha256", "sha512", "sha384", "sha1"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = ""
    timestamp_header: str = ""
    message: str = "{body}"
    tolerance_s: int = 300


class GenericConfig(SourceConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``items`` is the path of the list of events, empty where the body is the list or the one event.

    ``fields`` says where in one event each field stands: names and list positions with dots (``user.emails.0.address``), a key
    that has dots itself is found too, and ``=text`` is that text always. ``kinds`` translates the sender's words into kinds,
    with ``:`` and a bounce class or an agent where the word says it (``hard_bounce: bounced:hard``, ``prefetch:
    opened:machine``); ``ignore`` drops the event; a word that is a kind needs no line.
    ``time_format`` is ``auto`` (ISO 8601, or a unix time in s, ms or us by its size), ``s``, ``ms``, ``us`` or a strptime
    pattern; no zone means UTC. ``value_unit`` is that of ``value``. ``signature`` goes with ``secrets``.
    """

    items: str = ""
    fields: Fields
    kinds: dict[str, str] = {}
    time_format: str = "auto"
    value_unit: Literal["units", "cents", "micros"] = "units"
    signature: Signature | None = None


SCALES = {"s": 1_000_000, "ms": 1_000, "us": 1}
UNITS = {"units": 1.0, "cents": 0.01, "micros": 1e-6}


class Generic(Source):
    label = "Any JSON"
    docs_url = "https://www.standardwebhooks.com"
    shape = "either"
    signs = True
    Config = GenericConfig

    def __init__(self, config: GenericConfig, *, name: str) -> None:
        super().__init__(config, name=name)
        self._where = {field: paths_of(getattr(config.fields, field)) for field in FIELDS}
        if config.signature and config.signature.timestamp_header:
            before, after = config.signature.message.split("{body}")
            self._around = before, after
        else:
            self._around = "", ""

    @classmethod
    def configure(cls, settings: dict, name: str) -> GenericConfig:
        here = f"$.sources.{name}"
        unknown = set(settings.get("fields") or ()) - set(FIELDS) if isinstance(settings.get("fields"), dict) else ()
        for field in sorted(unknown):
            raise ConfigError(f"Source `{name}`: unknown field `{field}`", where=f"{here}.fields.{field}", todo=nearest(field, FIELDS))
        config = super().configure(settings, name)
        if not paths_of(config.fields.kind):
            raise ConfigError(f"Source `{name}` does not say what happened", expected="`kind`", where=f"{here}.fields.kind")
        for word, target in config.kinds.items():
            check_kind(name, word, target)
        check_time_format(name, config.time_format)
        check_signature(name, config)
        return config

    def signature(self, request: Request) -> int:
        how = self.config.signature
        given = request.header(how.header.lower())
        if not given or len(given) > header_bytes_max or not given.startswith(how.prefix):
            raise Refused(f"{self.label}: the signature is missing, too long or without its prefix")
        given = given[len(how.prefix) :]
        signed_at = request.header(how.timestamp_header.lower()) if how.timestamp_header else ""
        if how.timestamp_header:
            at_us = 0 if len(signed_at) > 64 else number_us(signed_at) or iso_us(signed_at)
            if not at_us:
                raise Refused(f"{self.label}: the time of signing is missing or no time")
            self.fresh(request, at_us, how.tolerance_s)
        return self.match("signature", self.active(request), lambda secret: same(given, self._hmac(secret, signed_at, request.body)))

    def sign(self, request: Request) -> Request:
        how = self.config.signature
        if not how or not self.config.secrets:
            return super().sign(request)
        signed_at = str(request.received_at_us // 1_000_000) if how.timestamp_header else ""
        headers = {how.header.lower(): how.prefix + self._hmac(self.active(request)[0], signed_at, request.body)}
        if how.timestamp_header:
            headers[how.timestamp_header.lower()] = signed_at
        return with_headers(request, headers)

    def _hmac(self, secret: str, signed_at: str, body: bytes) -> str:
        before, after = (part.replace("{timestamp}", signed_at).encode("utf-8", "replace") for part in self._around)
        made = hmac.digest(secret.encode(), before + body + after, self.config.signature.algorithm)
        return made.hex() if self.config.signature.encoding == "hex" else base64.b64encode(made).decode()

    def items(self, request: Request) -> list:
        body = decode_json(request.body)
        found = find(body, self.config.items) if self.config.items else body
        if isinstance(found, list):
            return found
        if isinstance(found, dict):
            return [found]
        raise Malformed("No events in the body", expected=f"a list or an object at `{self.config.items or '$'}`", got=type(found).__name__)

    def events(self, item: object, request: Request) -> Event | None:
        item = as_dict(item)
        word = text(self._get(item, "kind"))
        target = self.config.kinds.get(word) or self.config.kinds.get(word.lower())
        if target == IGNORE:
            return None
        # Only the table says bounce class and agent; a word that stands in no table can at most be a kind.
        kind, _, detail = target.partition(":") if target else (word.lower(), "", "")
        recipient = text(self._get(item, "recipient"))
        event = Event(
            kind=kind if kind in KINDS else "unknown",
            occurred_at_us=self._time(self._get(item, "occurred_at")),
            recipient=bare_address(recipient) if "<" in recipient else recipient,
            value_micros=money_micros(scaled(self._get(item, "value"), self.config.value_unit)),
            currency=text(self._get(item, "currency")).upper(),
            tags=texts(self._get(item, "tags")),
            metadata=as_object(self._get(item, "metadata")),
            traits=as_object(self._get(item, "traits")),
            **{field: text(self._get(item, field)) for field in TEXTS},
        )
        event.name = event.name or word
        self._explain(event, item, detail)
        return event

    def _explain(self, event: Event, item: dict, detail: str) -> None:
        """Set bounce class, reason and agent, from the word of the kind or from fields of their own."""
        bounce_class = text(self._get(item, "bounce_class")).lower()
        agent = self._get(item, "agent")
        if event.kind in ("bounced", "deferred"):
            event.bounce_class = detail or (bounce_class if bounce_class in BOUNCE_CLASSES else "")
        if event.kind == "bounced" and not event.bounce_class:
            event.bounce_class = "hard"
        reason = text(self._get(item, "reason")).lower()
        if reason in REASONS:
            event.reason = reason or {"bounced": "bounced", "complained": "spam", "unsubscribed": "unsubscribed"}.get(event.kind, "")
        else:  # the sender's own words
            event.reason, event.detail = "other", event.detail or text(self._get(item, "reason"))
        if event.kind in ("opened", "clicked"):
            if detail:
                event.agent, event.agent_reason = detail, f"vendor flag: {text(self._get(item, 'kind'))}"
            elif agent in (True, "true"):
                event.agent, event.agent_reason = "machine", f"vendor flag: {self._where['agent'][0]}"
            elif isinstance(agent, str) and agent.lower() in AGENTS and agent:
                event.agent, event.agent_reason = agent.lower(), f"vendor flag: {self._where['agent'][0]}"

    def _get(self, item: dict, field: str) -> object:
        for path in self._where[field]:
            found = path[1:] if path.startswith("=") else find(item, path)
            if found is not None and found != "":
                return found
        return None

    def _time(self, value: object) -> int:
        pattern = self.config.time_format
        if pattern == "auto":
            return iso_us(value) or number_us(value)
        try:
            if pattern in SCALES:
                us = round(float(text(value)) * SCALES[pattern]) if "." in text(value) else int(text(value)) * SCALES[pattern]
            else:
                at = datetime.strptime(text(value), pattern)
                us = round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1e6)
        except (ValueError, OverflowError):
            return 0
        return us if 0 < us < 2**63 else 0


def paths_of(value: str | list[str]) -> tuple[str, ...]:
    return tuple(p for p in ([value] if isinstance(value, str) else value) if p)


def find(value: object, path: str) -> object:
    """Return what stands at a path of keys and list positions, or None. A key that contains dots is found as it is written."""
    while path:
        if isinstance(value, dict) and path in value:
            return value[path]
        head, _, path = path.partition(".")
        if isinstance(value, dict):
            value = value.get(head)
        elif isinstance(value, list) and head.isascii() and head.isdigit():
            value = value[int(head)] if int(head) < len(value) else None
        else:
            return None
    return value


def as_object(value: object) -> dict:
    return dict(value) if isinstance(value, dict) else {}


def scaled(value: object, unit: str) -> object:
    if unit == "units" or isinstance(value, bool):
        return value
    try:
        return float(value) * UNITS[unit]
    except (TypeError, ValueError):
        return None


def check_kind(name: str, word: str, target: str) -> None:
    kind, _, detail = target.partition(":")
    where = f"$.sources.{name}.kinds.{word}"
    if kind not in KINDS and target != IGNORE:
        raise ConfigError(f"Source `{name}`: unknown kind `{kind}`", where=where, todo=nearest(kind, (*KINDS, IGNORE)))
    known = {"bounced": BOUNCE_CLASSES, "deferred": BOUNCE_CLASSES, "opened": AGENTS, "clicked": AGENTS}.get(kind, ("",))
    if detail not in known:
        raise ConfigError(
            f"Source `{name}`: `{detail}` says nothing about `{kind}`",
            expected=" or ".join(k for k in known if k) or "no colon",
            where=where,
        )


def check_time_format(name: str, pattern: str) -> None:
    if pattern != "auto" and pattern not in SCALES and "%" not in pattern:
        raise ConfigError(
            f"Source `{name}`: unknown time format `{pattern}`",
            expected="auto, s, ms, us or a strptime pattern such as %d/%m/%Y %H:%M:%S",
            where=f"$.sources.{name}.time_format",
        )


def check_signature(name: str, config: GenericConfig) -> None:
    here, how = f"$.sources.{name}", config.signature
    if bool(config.secrets) != bool(how):
        raise ConfigError(
            f"Source `{name}`: `secrets` and `signature` go together",
            expected="both or neither",
            where=here + (".secrets" if config.secrets else ".signature"),
            todo="`signature: {header: X-Signature}` says which header holds the HMAC",
        )
    if not how:
        return
    if how.message.count("{body}") != 1 or ("{timestamp}" in how.message) != bool(how.timestamp_header):
        raise ConfigError(
            f"Source `{name}`: the signed message has to hold the body once, and the time exactly where a header brings it",
            expected='"{body}", or "{timestamp}.{body}" with `timestamp_header`',
            got=how.message,
            where=f"{here}.signature.message",
        )
    if not how.header or how.tolerance_s <= 0:
        raise ConfigError(f"Source `{name}`: `header` is empty or `tolerance_s` is not above 0", where=f"{here}.signature")


EXAMPLES = Generic.EXAMPLES = [
    {
        "title": "A list of events with nested fields, HMAC in a header",
        "settings": {
            "secrets": ["a-shared-secret"],
            "signature": {"header": "X-Hub-Signature-256", "prefix": "sha256="},
            "items": "data.events",
            "fields": {
                "kind": "type",
                "occurred_at": "at",
                "recipient": ["contact.email", "to.0"],
                "event_id": "id",
                "message_id": "mail.id",
                "campaign": "mail.campaign",
                "variant": "mail.version",
                "url": "link",
            },
            "kinds": {"link_click": "clicked", "hard_bounce": "bounced:hard", "heartbeat": "ignore"},
        },
        "body": {
            "data": {
                "events": [
                    {
                        "id": "ev-1",
                        "type": "link_click",
                        "at": "2025-11-24T16:00:00.250Z",
                        "contact": {"email": "Ada <ada@example.com>"},
                        "mail": {"id": "m-1", "campaign": "spring", "version": "B"},
                        "link": "https://shop.example/spring",
                    },
                    {"id": "ev-2", "type": "hard_bounce", "at": 1764000000, "to": ["nobody@example.com"], "mail": {"id": "m-2"}},
                    {"type": "heartbeat"},
                ]
            }
        },
        "events": [
            {
                "kind": "clicked",
                "recipient": "ada@example.com",
                "event_id": "ev-1",
                "message_id": "m-1",
                "occurred_at_us": 1764000000250000,
                "campaign": "spring",
                "variant": "B",
                "url": "https://shop.example/spring",
            },
            {"kind": "bounced", "bounce_class": "hard", "recipient": "nobody@example.com", "occurred_at_us": 1764000000000000},
        ],
    },
    {
        "title": "A shop's orders become conversions",
        "settings": {
            "bearer": ["a-token"],
            "fields": {
                "kind": "=converted",
                "occurred_at": "created",
                "recipient": "customer.email",
                "event_id": "number",
                "order_id": "number",
                "value": "total_cents",
                "currency": "currency",
            },
            "time_format": "%d/%m/%Y %H:%M:%S",
            "value_unit": "cents",
        },
        "body": {
            "number": 1001,
            "created": "24/11/2025 16:00:00",
            "customer": {"email": "ada@example.com"},
            "total_cents": 4999,
            "currency": "eur",
        },
        "events": [
            {
                "kind": "converted",
                "recipient": "ada@example.com",
                "event_id": "1001",
                "order_id": "1001",
                "value_micros": 49990000,
                "currency": "EUR",
                "occurred_at_us": 1764000000000000,
            }
        ],
    },
]
