"""Poll `rest`: any API that gives JSON over HTTP, by configuration."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

import msgspec

from ...kit.errors import ConfigError, MidflightError
from ..generic import find
from ..source import decode_json, text
from . import _window as window
from ._auth import OAuth, Token, basic, checked_url, same_place
from ._mapping import MappedSettings, Mapping, time_us
from .poll import Answer, Call, Cursor, Found, HttpPoll, Page, Past, Unreadable, iso_of

pages_max = 100_000  # of one window; more, and the API leads in a circle
NEXT = re.compile(r'<([^<>]{1,4000})>\s*;[^,<]*?\brel\s*=\s*"?next"?', re.IGNORECASE)


class Auth(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One of them: a bearer token, ``basic`` as `user:password`, headers as they are, OAuth 2."""

    bearer: str = ""
    basic: str = ""
    headers: dict[str, str] = {}
    oauth: OAuth | None = None


class Paging(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How one gets from page to page.

    ``none``: there is one page. ``page`` and ``offset``: by a number in ``param``, until a page has fewer than ``size`` items. ``cursor``:
    what stands at ``path`` of the answer goes into ``param``. ``next``: a URL stands at ``path``. ``link``: a `Link` header (RFC 8288).
    ``size_param`` tells the API how many items a page has.
    """

    kind: Literal["none", "page", "offset", "cursor", "next", "link"] = "none"
    param: str = ""
    path: str = ""
    start: int = -1  # the first page's number; 1 of pages and 0 of offsets where none is given
    size: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    size_param: str = ""


class Changed(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How the API is asked only for what has changed: ``since`` and, where it knows one, ``until`` are query parameters.

    ``format``: `iso` (ISO 8601, UTC), `s` or `ms` (unix time). Without ``since`` everything is read at each look, and what is said
    already is not said again.
    """

    since: str = ""
    until: str = ""
    format: Literal["iso", "s", "ms"] = "iso"
    lag_s: Annotated[float, msgspec.Meta(ge=0)] = 5.0
    overlap_s: Annotated[float, msgspec.Meta(ge=0)] = 300.0


class Settings(MappedSettings, kw_only=True, frozen=True):
    """``items`` is the path of the list in the answer, empty where the answer is the list. ``ascending``: the API gives what changed
    first before what changed later, by the time at ``at``; then pages by number cannot miss what others are shifted over."""

    url: str
    method: Literal["GET", "POST"] = "GET"
    params: dict[str, str] = {}
    body: str = ""  # of a POST, as it is; query parameters stay in the URL
    auth: Auth = msgspec.field(default_factory=Auth)
    items: str = ""
    paging: Paging = msgspec.field(default_factory=Paging)
    changed: Changed = msgspec.field(default_factory=Changed)
    ascending: bool = False
    strict: bool = False  # a field that is missing is a change of schema; else it is empty


class Rest(HttpPoll):
    """Any API of lists: what was changed since a time, page by page.

    Pages by number have a trap: what changes or goes while one reads shifts others over the border of a page, where nobody sees them.
    With ``ascending`` such a window is read by its time: each page is asked for from the last item's time on, and numbers are only used
    among items of one time. Links (`next`, `Link`) are followed to the API's own address only.
    """

    label: ClassVar[str] = "REST API"
    doc: ClassVar[str] = "Lists of JSON objects: people with fields as traits, or events."
    docs_url: ClassVar[str] = "https://www.rfc-editor.org/rfc/rfc8288"
    Settings = Settings

    def __init__(self, settings: Settings, *, name: str, source=None) -> None:
        super().__init__(settings, name=name, source=source)
        where = f"$.polls.{name}"
        checked_url(settings.url, f"{where}.url")
        auth = settings.auth
        if sum(map(bool, (auth.bearer, auth.basic, auth.headers, auth.oauth))) > 1:
            raise ConfigError(f"Poll `{name}` shows who it is in two ways", expected="one of them", where=f"{where}.auth")
        if auth.oauth:
            checked_url(auth.oauth.token_url, f"{where}.auth.oauth.token_url")
        paging = settings.paging
        wanting = {"page": "param", "offset": "param", "cursor": "path", "next": "path"}.get(paging.kind)
        if wanting and not getattr(paging, wanting) or (paging.kind == "cursor" and not paging.param):
            raise ConfigError(f"Poll `{name}`: paging by {paging.kind} needs `{wanting}`", where=f"{where}.paging")
        if settings.ascending and not (settings.changed.since and settings.at):
            raise ConfigError(f"Poll `{name}`: `ascending` needs `changed.since` and `at`", where=f"{where}.ascending")
        self.token = Token(auth.oauth, auth.bearer, self.label) if auth.oauth or auth.bearer else None
        self.mapping = Mapping(settings, name, strict=settings.strict)
        self.repeats_s = settings.changed.overlap_s * 2 + 3600 if settings.events and settings.changed.since else 0.0
        self.first_page = paging.start if paging.start >= 0 else 1 if paging.kind == "page" else 0

    # -- where one is ----------------------------------------------------------------------------------------------------

    def first_cursor(self, now_us: int) -> Cursor:
        return window.first(now_us - self.settings.since_days * 86_400_000_000) | self._begin({})

    def range_cursor(self, from_us: int, to_us: int) -> Cursor:
        if not self.settings.changed.since:
            return super().range_cursor(from_us, to_us)
        return window.first(from_us, to_us) | self._begin({})

    def _begin(self, types: dict) -> Cursor:
        return {"number": self.first_page, "next": "", "walked": 0, "pages": 0, "types": types}

    def at_cursor(self, cursor: Cursor, now_us: int) -> Cursor:
        changed = self.settings.changed
        return window.opened(cursor, now_us, int(changed.lag_s * 1e6), int(changed.overlap_s * 1e6))

    def past(self, cursor: Cursor, now_us: int) -> Past | None:
        """Return the next page by number, or a smaller window where the API can be told its end."""
        if self.settings.changed.since and self.settings.changed.until:
            found = window.past(self.at_cursor(cursor, now_us))
            return found and found._replace(cursor=found.cursor | self._begin(cursor["types"]))
        if self.settings.paging.kind in ("page", "offset") and not self.settings.ascending:
            opened = self.at_cursor(cursor, now_us)
            return Past(opened | {"number": opened["number"] + self._step(), "pages": opened["pages"] + 1}, opened["from"], opened["to"])
        return None

    def _step(self) -> int:
        return self.settings.paging.size if self.settings.paging.kind == "offset" else 1

    # -- the two steps ---------------------------------------------------------------------------------------------------

    def request(self, cursor: Cursor, now_us: int) -> Call:
        settings = self.settings
        url = cursor["next"] if settings.paging.kind in ("next", "link") and cursor["next"] else self._url(cursor)
        headers = {"accept": "application/json"} | {name.lower(): value for name, value in settings.auth.headers.items()}
        if self.token:
            headers["authorization"] = self.token.bearer
        elif settings.auth.basic:
            headers["authorization"] = basic(*settings.auth.basic.partition(":")[::2])
        if settings.method == "POST":
            headers.setdefault("content-type", "application/json")
        return Call(method=settings.method, url=url, headers=headers, body=settings.body.encode() if settings.method == "POST" else b"")

    def _url(self, cursor: Cursor) -> str:
        paging, changed = self.settings.paging, self.settings.changed
        params = dict(self.settings.params)
        if paging.size_param:
            params[paging.size_param] = str(paging.size)
        if changed.since:
            params[changed.since] = self._time(cursor["walked"] or cursor["lo"])
        if changed.until:
            params[changed.until] = self._time(cursor["to"], up=True)
        if paging.kind in ("page", "offset"):
            params[paging.param] = str(cursor["number"])
        elif paging.kind == "cursor" and cursor["next"]:
            params[paging.param] = cursor["next"]
        parts = urlsplit(self.settings.url)
        query = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in params]
        return urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode([*query, *params.items()]), ""))

    def _time(self, us: int, *, up: bool = False) -> str:
        unit = {"iso": 1_000, "ms": 1_000, "s": 1_000_000}[self.settings.changed.format]
        whole = -(-us // unit) if up else us // unit
        return iso_of(whole * unit) if self.settings.changed.format == "iso" else str(whole)

    def read(self, answer: Answer, cursor: Cursor, now_us: int) -> Page:
        body = self._decoded(answer)
        items = find(body, self.settings.items) if self.settings.items else body
        if not isinstance(items, list):
            raise Unreadable(f"{self.label}: no list at `{self.settings.items or '$'}`", got=type(items).__name__)
        read = self.mapping.read(items, cursor["types"])
        after = cursor | {"types": read.types, "pages": cursor["pages"] + 1}
        if after["pages"] > pages_max:
            raise Unreadable(f"{self.label}: the pages do not end", expected=f"at most {pages_max}")
        further = self._further(answer, body, items, after)
        if further:
            return Page(read.found, after | further, True, read.bad)
        changed = self.settings.changed
        if not changed.since:
            # Everything is read at each look.
            return Page(read.found, window.first(cursor["from"]) | self._begin(read.types), False, read.bad, known_us=now_us)
        behind, more = window.closed(cursor, now_us, int(changed.lag_s * 1e6))
        return Page(read.found, behind | self._begin(read.types), more and bool(changed.until), read.bad, known_us=cursor["to"])

    def _decoded(self, answer: Answer) -> object:
        try:
            return decode_json(answer.body)
        except MidflightError as error:
            raise Unreadable(f"{self.label}: {error.what}") from None

    def _further(self, answer: Answer, body: object, items: list, cursor: Cursor) -> Cursor:
        """Return what changes in the cursor for the next page; nothing where this was the last."""
        paging = self.settings.paging
        if paging.kind in ("page", "offset"):
            if len(items) < paging.size:
                return {}
            return (self.settings.ascending and self._walk(items, cursor)) or {"number": cursor["number"] + self._step()}
        if paging.kind == "cursor":
            given = text(find(body, paging.path))
        elif paging.kind in ("next", "link"):
            found = NEXT.search(answer.headers.get("link", "")) if paging.kind == "link" else None
            given = found[1] if found else text(find(body, paging.path)) if paging.kind == "next" else ""
            given = urljoin(self.settings.url, given) if given else ""
            if given and not same_place(given, self.settings.url):
                raise Unreadable(f"{self.label}: the next page is elsewhere", expected=urlsplit(self.settings.url).netloc, got=given[:200])
        else:
            return {}
        if given and given == cursor["next"]:
            raise Unreadable(f"{self.label}: the next page is this one", got=given[:200])
        return {"next": given} if given else {}

    def _walk(self, items: list, cursor: Cursor) -> Cursor:
        """Go on from the last item's time on, with the numbers at their beginning, unless that is where this page began."""
        times = [time_us(self.mapping._get(item, "at")) for item in items if isinstance(item, dict)]
        unit = {"iso": 1_000, "ms": 1_000, "s": 1_000_000}[self.settings.changed.format]
        last = max(times, default=0) // unit * unit
        return {"walked": last, "number": self.first_page} if last > (cursor["walked"] or cursor["lo"]) // unit * unit else {}

    def again(self, raw: bytes) -> list[Found]:
        return [self.mapping.one(msgspec.json.decode(raw), dict(self.settings.types))]


EXAMPLES = Rest.EXAMPLES = (
    {
        "title": "Members by time of change, pages by number",
        "settings": {
            "url": "https://api.shop.example/members?active=1",
            "auth": {"bearer": "a-token"},
            "items": "data",
            "at": "updated",
            "key": "id",
            "traits": {"level": "profile.level"},
            "paging": {"kind": "page", "param": "page", "size_param": "per_page", "size": 2},
            "changed": {"since": "updated_since"},
            "ascending": True,
        },
        "cursor": {"from": 1_763_999_000_000_000, "lo": 1_763_998_700_000_000, "to": 1_764_000_100_000_000, "end": 0, "slice": 1_000_000,
                   "number": 1, "next": "", "walked": 0, "pages": 0, "types": {}},
        "url": "https://api.shop.example/members?active=1&per_page=2&updated_since=2025-11-24T15%3A38%3A20.000Z&page=1",
        "answer": {"data": [{"id": 1, "email": "ada@example.com", "updated": "2025-11-24T16:00:00Z", "profile": {"level": 3}}]},
        "events": [{"kind": "identified", "recipient": "ada@example.com", "occurred_at_us": 1764000000000000, "traits": {"level": 3}}],
    },
)  # fmt: skip
