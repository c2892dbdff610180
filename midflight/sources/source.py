"""The contract of a source: verify a request over its raw bytes, then read it into events; no server needed."""

from __future__ import annotations

import base64
import binascii
import hmac
import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parseaddr
from hashlib import blake2b
from operator import attrgetter
from typing import ClassVar, NamedTuple

import msgspec

from ..events import Bad, Event, Parsed, clean
from ..kit.errors import ConfigError, MidflightError, nearest
from ..kit.pieces import NoPieces, pieces

depth_max = 32  # nesting of a JSON body
header_bytes_max = 8192  # a longer signature header is refused unread
int_max = 2**63 - 1


class Refused(MidflightError):
    """The request is not from the vendor, or too old to be believed."""

    status = 401
    code = "refused"


class Malformed(MidflightError):
    """The bytes can never be a request of this vendor (the door answers 400), or one event of it cannot be read."""

    code = "malformed"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the sender sent. Header names are lower case; a header sent twice is joined by ``", "``.

    ``url`` is the public URL as the vendor was given it (Mandrill signs it). ``body`` is after content decoding.
    """

    method: str = "POST"
    url: str = ""
    headers: dict[str, str] = {}
    body: bytes = b""
    received_at_us: int = 0

    def header(self, name: str) -> str:
        return self.headers.get(name, "")


class Response(msgspec.Struct, frozen=True):
    """An answer other than the empty 200, for handshakes only."""

    status: int = 200
    body: bytes = b""
    fetch: str = ""  # a URL that completes the handshake, already checked to be the vendor's


class Credential(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A secret that stops being accepted at ``until`` (ISO 8601), so that a rotation has a grace period."""

    value: str
    until: datetime | None = None

    def __repr__(self) -> str:
        return "Credential(***)"


class SourceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings that every vendor has.

    ``secrets`` are signing secrets or public keys, newest first; ``basic_auth`` are ``user:password``; ``bearer`` are tokens
    for ``Authorization: Bearer``; ``headers`` are custom headers that have to be present with that value. At least one of
    them is needed unless ``unsigned`` says that the URL alone is trusted. ``campaign``, ``variant``, ``wave`` say where these
    travel: a list of ``metadata.NAME``, ``tag.PREFIX`` (a tag ``PREFIX:value`` or ``PREFIX=value``) or ``tags.N``; first hit wins.
    """

    secrets: list[str | Credential] = []
    basic_auth: list[str | Credential] = []
    bearer: list[str | Credential] = []
    headers: dict[str, str] = {}
    unsigned: bool = False
    campaign: list[str] = []
    variant: list[str] = []
    wave: list[str] = []


class Flat(NamedTuple):
    """A vendor's batches, where they are arrays of flat objects: enough for compiled code to read the ordinary ones.

    ``keys`` gives the vendor's key for a role: event_id, recipient, at_s (whole unix seconds), kind, message_id, url, user_agent, ip,
    bounce, machine, tags; campaign, variant and wave, each with its second choices campaign2, campaign3, variant2, wave2.
    """

    keys: dict[str, str]
    kinds: dict[str, str]  # the vendor's word -> our kind
    blocked: str  # the word, as kind or bounce, that makes a bounce a block; any other bounce is hard
    message_id_ends: str = ""  # the character before which the message id ends


class Source:
    """One vendor. A subclass sets the class variables and writes ``items``, ``events`` and, if it signs, ``signature``."""

    label: ClassVar[str] = ""
    docs_url: ClassVar[str] = ""
    # What a body of this vendor looks like; the door refuses anything else: array, object, either, form, lines.
    shape: ClassVar[str] = "object"
    # True where the vendor signs and `signature` is written; False where only credentials exist.
    signs: ClassVar[bool] = False
    # Request headers that parsing needs later; they are stored with the body. Credentials never are.
    headers_kept: ClassVar[tuple[str, ...]] = ()
    where: ClassVar[dict[str, tuple[str, ...]]] = {}
    EXAMPLES: ClassVar[list[dict]] = []
    Config: ClassVar[type[SourceConfig]] = SourceConfig

    def __init__(self, config: SourceConfig, *, name: str) -> None:
        self.config = config
        self.name = name
        self._paths = {
            field: tuple(getattr(config, field)) or self.where.get(field) or (f"metadata.{field}", f"tag.{field}")
            for field in ("campaign", "variant", "wave")
        }

    @classmethod
    def configure(cls, settings: dict, name: str) -> SourceConfig:
        """Check settings strictly and return them typed. Raises ConfigError with the path of what is wrong."""
        unknown = set(settings) - set(cls.Config.__struct_fields__)
        if unknown:
            wrong = sorted(unknown)[0]
            raise ConfigError(
                f"Source `{name}`: unknown setting `{wrong}`",
                where=f"$.sources.{name}.{wrong}",
                todo=nearest(wrong, cls.Config.__struct_fields__),
            )
        try:
            config = msgspec.convert(settings, cls.Config)
        except msgspec.ValidationError as error:
            raise ConfigError(f"Source `{name}`: {error}", where=f"$.sources.{name}") from None
        if config.secrets and not cls.signs:
            raise ConfigError(
                f"Source `{name}`: {cls.label} signs nothing, so `secrets` would protect nothing",
                where=f"$.sources.{name}.secrets",
                todo="Set `basic_auth`, `bearer` or `headers` as the vendor lets you",
            )
        if not (config.secrets or config.basic_auth or config.bearer or config.headers or config.unsigned):
            raise ConfigError(
                f"Source `{name}` would accept anybody's requests",
                expected="`secrets`, `basic_auth`, `bearer` or `headers`",
                where=f"$.sources.{name}",
                todo="Set one of them, or `unsigned: true` if the network in front of Midflight keeps strangers out",
            )
        return config

    # -- is it from the vendor? --------------------------------------------------------------------------------------

    def verify(self, request: Request) -> int:
        """Raise Refused unless the request is authentic; return which secret fitted (0 = the newest)."""
        used = 0
        config = self.config
        if config.basic_auth or config.bearer:
            used = max(used, self._credentials(request))
        for header, wanted in config.headers.items():
            if not same(request.header(header.lower()), wanted):
                raise Refused(f"{self.label}: header `{header}` is missing or wrong")
        if config.secrets and self.signs:
            used = max(used, self.signature(request))
        return used

    def signature(self, request: Request) -> int:
        """Raise Refused unless one of the secrets signed the raw body; return its index."""
        raise NotImplementedError

    def _credentials(self, request: Request) -> int:
        given = request.header("authorization")
        scheme, _, rest = given.partition(" ")
        if len(given) > header_bytes_max:
            raise Refused(f"{self.label}: the Authorization header is too long")
        if scheme.lower() == "basic" and self.config.basic_auth:
            try:
                given = base64.b64decode(rest.strip(), validate=True).decode("utf-8")
            except (binascii.Error, UnicodeDecodeError):
                raise Refused(f"{self.label}: the basic credentials are not base64") from None
            return self.match("basic credentials", self.active(request, self.config.basic_auth), lambda want: same(given, want))
        if scheme.lower() == "bearer" and self.config.bearer:
            token = rest.strip()
            return self.match("bearer token", self.active(request, self.config.bearer), lambda want: same(token, want))
        raise Refused(f"{self.label}: credentials are missing", todo="Send the basic or bearer credentials of this source")

    def active(self, request: Request, credentials: Iterable[str | Credential] | None = None) -> list[str]:
        """Return the values accepted at the request's time; an outdated one keeps its place as ``""``, which never matches."""
        values = []
        for credential in self.config.secrets if credentials is None else credentials:
            if isinstance(credential, str):
                values.append(credential)
            elif credential.until is None or request.received_at_us < credential.until.timestamp() * 1e6:
                values.append(credential.value)
            else:
                values.append("")
        return values

    def match(self, what: str, values: list[str], fits) -> int:
        """Return the index of the first value that fits; all are tried so that time tells nothing. Raises Refused."""
        found = -1
        for index in range(len(values) - 1, -1, -1):
            if values[index] and fits(values[index]):
                found = index
        if found < 0:
            signed = "; a proxy that rewrites the body breaks signatures too" if what == "signature" else ""
            raise Refused(
                f"{self.label}: the {what} does not fit any secret of source `{self.name}`",
                todo=f"Compare it with the vendor's{signed}",
            )
        return found

    def fresh(self, request: Request, signed_at_us: int, tolerance_s: int) -> None:
        """Raise Refused when the signed time is more than the tolerance away from the request's time."""
        if abs(request.received_at_us - signed_at_us) > tolerance_s * 1_000_000:
            raise Refused(
                f"{self.label}: signed at another time (clock skew)",
                expected=f"within {tolerance_s} s of now",
                todo="If the vendor's requests are refused steadily, check this machine's clock",
            )

    def handshake(self, request: Request) -> Response | None:
        """Return the answer to a request that only tests or confirms the URL, or None for an ordinary one.

        Called after `verify`; HEAD and GET, which carry no events, are answered by the door before.
        """
        return None

    def sign(self, request: Request) -> Request:
        """Return the request as the vendor would send it, with the newest secret: for tests and the sandbox."""
        if self.config.basic_auth:
            token = base64.b64encode(self.active(request, self.config.basic_auth)[0].encode()).decode()
            return with_headers(request, {"authorization": f"Basic {token}"})
        if self.config.bearer:
            return with_headers(request, {"authorization": f"Bearer {self.active(request, self.config.bearer)[0]}"})
        return with_headers(request, {k.lower(): v for k, v in self.config.headers.items()})

    # -- what happened? ----------------------------------------------------------------------------------------------

    def items(self, request: Request) -> Iterable[object]:
        """Return the vendor's events of one request, still in the vendor's words. Raises Malformed for the whole."""
        return [decode_json(request.body)]

    def events(self, item: object, request: Request) -> Event | list[Event] | None:
        """Turn one vendor event into ours; None for what says nothing about a message or person."""
        raise NotImplementedError

    def parse(self, request: Request) -> Parsed:
        """Return the request's events in order, and in ``.bad`` those that could not be read. Raises Malformed."""
        return self.read(self.items(request), request)

    def read(self, items: Iterable[object], request: Request) -> Parsed:
        """Turn vendor events into ours; one that cannot be read is set aside and stops no other."""
        parsed = Parsed()
        for index, item in enumerate(items):
            if isinstance(item, Broken):
                parsed.bad.append(Bad(index, "malformed", item.detail, item.raw))
                continue
            try:
                made = self.events(item, request)
            except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError) as error:
                parsed.bad.append(Bad(index, "unreadable", f"{type(error).__name__}: {error}"[:300], encode_json(item)))
                continue
            except MidflightError as error:
                parsed.bad.append(Bad(index, error.code, error.text()[:300], encode_json(item)))
                continue
            for event in [made] if isinstance(made, Event) else made or ():
                parsed.append(self.finish(event, request))
        return parsed

    def flat(self) -> Flat | None:
        """Return how compiled code reads this vendor's ordinary batches; None where only `parse` can. Both have to say the same."""
        return None

    def finish(self, event: Event, request: Request) -> Event:
        """Complete an event: source, receipt, where campaign, variant and wave travel, clean text, a content id."""
        event.source = self.name
        event.received_at_us = request.received_at_us
        for field, paths in self._paths.items():
            for path in paths:
                found = at_path(event, path)
                if found:
                    setattr(event, field, found)
                    break
        # Nearly always all of them are clean, which one look tells.
        if not "".join(_texts_of(event)).isprintable():
            for field in _TEXTS:
                setattr(event, field, clean(getattr(event, field)))
        if not event.event_id:
            event.event_id = content_id(event)
        return event


class BodyHmacSource(Source):
    """A vendor that signs the raw body with HMAC-SHA256, as hex in one header."""

    signs = True
    signature_header: ClassVar[str] = ""

    def signature(self, request: Request) -> int:
        given = request.header(self.signature_header)
        if not given or len(given) > header_bytes_max:
            raise Refused(f"{self.label}: the signature is missing or too long")
        return self.match("signature", self.active(request), lambda secret: same(given, body_hmac(secret, request.body)))

    def sign(self, request: Request) -> Request:
        if not self.config.secrets:
            return super().sign(request)
        return with_headers(request, {self.signature_header: body_hmac(self.active(request)[0], request.body)})


def body_hmac(secret: str, body: bytes) -> str:
    return hmac.digest(secret.encode(), body, "sha256").hex()


_TEXTS = (
    "event_id", "recipient", "user_id", "message_id", "campaign", "variant", "wave", "url", "user_agent", "ip", "code", "reason", "detail",
    "name", "order_id",
)  # fmt: skip
_texts_of = attrgetter(*_TEXTS)


def at_path(event: Event, path: str) -> str:
    """Return what stands at ``metadata.NAME``, ``tag.PREFIX`` or ``tags.N`` of an event, as text; ``""`` where nothing does."""
    kind, _, name = path.partition(".")
    if kind == "metadata":
        found = event.metadata.get(name)
        if type(found) is str and found.isprintable():
            return found
        return "" if found is None or isinstance(found, dict | list) else clean(found)
    if kind == "tag":
        for tag in event.tags:
            if tag[len(name) : len(name) + 1] in (":", "=") and tag.startswith(name):
                return clean(tag[len(name) + 1 :])
        return ""
    index = int(name)
    return clean(event.tags[index]) if index < len(event.tags) else ""


def content_id(event: Event) -> str:
    """Return a content hash for an event whose vendor gives no id (reference: event, message, recipient, raw time, url)."""
    parts = (
        event.kind,
        event.bounce_class,
        event.agent,
        event.message_id,
        event.recipient.lower(),
        str(event.occurred_at_us),
        event.url,
        event.order_id,
        event.name,
    )
    return "h:" + blake2b("\x1f".join(parts).encode("utf-8", "replace"), digest_size=16).hexdigest()


# -- small tools that the vendors' files share ---------------------------------------------------------------------------


def same(given: str | bytes, wanted: str | bytes) -> bool:
    """Compare in constant time."""
    given = given.encode("utf-8", "replace") if isinstance(given, str) else given
    wanted = wanted.encode("utf-8", "replace") if isinstance(wanted, str) else wanted
    return hmac.compare_digest(given, wanted)


def with_headers(request: Request, headers: dict[str, str]) -> Request:
    return msgspec.structs.replace(request, headers={**request.headers, **headers})


def b64_bytes(text: str) -> bytes:
    """Decode strict base64, of which a signature has one spelling only. Raises Refused: only signatures are read with it."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused("The signature is not base64") from None
    if base64.b64encode(decoded).decode() != text:
        raise Refused("The signature is not plain base64")
    return decoded


def decode_json(body: bytes | str) -> object:
    """Decode strictly: no NaN, no lone surrogates, no other encodings. Raises Malformed."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"The body is not JSON: {error or type(error).__name__}"[:200]) from None


class Broken(NamedTuple):
    """One element of an array that is not JSON, among others that are."""

    raw: bytes
    detail: str


def decode_items(body: bytes) -> object:
    """Decode like `decode_json`; in an array of which some elements are no JSON, these are Broken and the others are read."""
    try:
        return decode_json(body)
    except Malformed as whole:
        try:
            found = [_piece(piece) for piece in pieces(body)]
        except NoPieces:
            raise whole from None
        if all(isinstance(item, Broken) for item in found):
            raise
        return found


def _piece(piece: bytes) -> object:
    try:
        return decode_json(piece)
    except Malformed as error:
        return Broken(piece, error.text()[:300])


def encode_json(item: object) -> bytes:
    try:
        return msgspec.json.encode(item)
    except (TypeError, ValueError, RecursionError, OverflowError):
        return repr(item).encode("utf-8", "replace")


def as_dict(item: object) -> dict:
    """Return the item if it is an object. Raises Malformed."""
    if not isinstance(item, dict):
        raise Malformed("An event has to be an object", got=type(item).__name__)
    return item


def sub(item: dict, name: str) -> dict:
    """Return the object at ``name``, or an empty one where it is missing, null or ``[]`` (PHP senders)."""
    found = item.get(name)
    return found if isinstance(found, dict) else {}


def text(value: object) -> str:
    """Return a scalar as text; None, objects and lists become ``""``."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, dict | list | bool):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return str(value)


def bare_address(address: str) -> str:
    """Return an address without its display name; as it is where it is none."""
    address = address[:1000]
    return address if _PLAIN.fullmatch(address) else parseaddr(address)[1] or address


# What has nothing in it that could be a display name, a comment, a group or a quotation.
_PLAIN = re.compile(r"[\w.+=/-]+@[\w.-]+", re.ASCII)


def texts(value: object) -> list[str]:
    """Return a tag list given as string, list or null."""
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, list):
        return [text(v) for v in value if text(v)]
    return []


def number_us(value: object) -> int:
    """Return microseconds for unix time in seconds, milliseconds or microseconds, as number or digits; 0 where unusable.

    Above 1e11 it is milliseconds (SendGrid's own Single Send example), above 1e14 microseconds: seconds reach 1e11 in 5138.
    """
    if isinstance(value, str):
        try:
            value = float(value) if "." in value or len(value) > 20 else int(value)
        except ValueError:
            return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= int_max:
        # Also what is infinite, and what is not a number at all.
        return 0
    scale = 1 if value > 1e14 else 1000 if value > 1e11 else 1_000_000
    us = value * scale if isinstance(value, int) else round(value * scale)
    return us if us <= int_max else 0


_ISO = re.compile(
    r"^(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9})\d*)?)?\s*(Z|z|UTC|[+-]\d\d:?\d\d)?$",
    re.ASCII,
)


def iso_us(value: object) -> int:
    """Return microseconds for ISO 8601 as vendors write it (7 digits, no seconds, space for T, no zone = UTC); 0 where unusable."""
    found = _ISO.match(value.strip()) if isinstance(value, str) else None
    if not found:
        return 0
    year, month, day, hour, minute, second, fraction, zone = found.groups()
    try:
        at = datetime(int(year), int(month), int(day), int(hour), int(minute), min(int(second or 0), 59), tzinfo=UTC)
    except ValueError:
        return 0
    us = int(at.timestamp()) * 1_000_000 + int((fraction or "0")[:6].ljust(6, "0"))
    if zone and zone[0] in "+-":
        offset_s = int(zone[1:3]) * 3600 + int(zone[-2:]) * 60
        us -= (offset_s if zone[0] == "+" else -offset_s) * 1_000_000
    return max(us, 0)


def money_micros(value: object) -> int:
    """Return millionths for an amount given as number or text; 0 where it is none."""
    if isinstance(value, bool) or value is None:
        return 0
    try:
        amount = float(value)
    except (TypeError, ValueError):
        return 0
    return round(amount * 1e6) if math.isfinite(amount) and abs(amount) < 1e12 else 0
