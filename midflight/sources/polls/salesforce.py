"""Poll `salesforce`: contacts, leads and opportunities as they change."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote

import msgspec

from ...events import Bad, Event, recipient_key
from ...kit.errors import ConfigError, MidflightError
from ..generic import find
from ..source import Malformed, decode_json, iso_us, money_micros, text
from . import _window as window
from ._auth import OAuth, Token, checked_url
from ._mapping import MappedSettings, Mapping
from .poll import (
    Answer,
    Call,
    Cursor,
    Found,
    HttpPoll,
    NotAllowed,
    NotNow,
    Page,
    Past,
    Unreadable,
    decoded,
    iso_of,
    list_in,
    trouble_of,
)

OBJECTS = {"contacts": "Contact", "leads": "Lead", "opportunities": "Opportunity"}
ROLE_EMAIL = "OpportunityContactRoles.records.0.Contact.Email"
FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*){0,5}")
GONE = re.compile(r"No such column '([A-Za-z0-9_.]+)' on entity")
limits_wait_s = 900.0
gone_max = 50


class Settings(MappedSettings, kw_only=True, frozen=True):
    """``url`` is the org's own address (My Domain); ``oauth`` a connected app: with its client's credentials, or a refresh token."""

    url: str
    oauth: OAuth  # token_url defaults to the org's own where it is given as `salesforce`
    object: Literal["contacts", "leads", "opportunities"] = "contacts"
    version: Annotated[str, msgspec.Meta(pattern=r"^v\d{2,3}\.0$")] = "v62.0"
    at: str | list[str] = "SystemModstamp"
    key: str | list[str] = "Id"
    email: str | list[str] = ""  # empty: `Email`; of an opportunity that of its primary contact
    amount: str = "Amount"
    currency: str = ""  # a field (`CurrencyIsoCode`), or three letters for all
    usage_share_max: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.9  # of the org's daily API calls; above it this poll rests
    lag_s: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    overlap_s: Annotated[float, msgspec.Meta(ge=0)] = 600.0  # a transaction that took longer to commit may be overlooked


class Salesforce(HttpPoll):
    """SOQL by `GET /services/data/vXX.0/query`, then `nextRecordsUrl`
    (https://developer.salesforce.com/docs/atlas.en-us.api_rest.meta/api_rest/dome_query.htm).

    Records of a window of `SystemModstamp` in the order of it and of `Id`. A query locator ends after a while
    (INVALID_QUERY_LOCATOR); then the query is made anew behind the last record. A session may end before its time (401
    INVALID_SESSION_ID); then another one is fetched. `Sforce-Limit-Info` says how much of the day's calls the whole org has used.
    A field that is there no more (INVALID_FIELD) is left out and said; it is asked for again with the next look.

    An opportunity that is won is a conversion of its primary contact, with its amount; once, by its id. What becomes of it later is not
    heard of. Records in the recycle bin are not heard of either.
    """

    label: ClassVar[str] = "Salesforce"
    doc: ClassVar[str] = "Contacts or leads with their fields as traits, or opportunities, of which those that are won become conversions."
    docs_url: ClassVar[str] = "https://developer.salesforce.com/docs/atlas.en-us.api_rest.meta/api_rest/dome_query.htm"
    Settings = Settings

    def __init__(self, settings: Settings, *, name: str, source=None) -> None:
        self.won = settings.object == "opportunities"
        if not settings.email:
            settings = msgspec.structs.replace(settings, email=ROLE_EMAIL if self.won else "Email")
        super().__init__(settings, name=name, source=source)
        self.url = checked_url(settings.url, f"$.polls.{name}.url")
        oauth = settings.oauth
        if oauth.token_url == "salesforce":
            oauth = msgspec.structs.replace(oauth, token_url=f"{self.url}/services/oauth2/token")
        self.token = Token(oauth, "", self.label)
        self.mapping = Mapping(settings, name)
        self.fields = self._fields(name)

    def _fields(self, name: str) -> list[str]:
        """Return what to select. Raises ConfigError for what is no field: it would be part of a query."""
        paths = [path for paths in (*self.mapping.traits.values(), *self.mapping.paths.values()) for path in paths]
        currency = self.settings.currency if len(self.settings.currency) > 3 else ""
        paths += ["IsWon", "LastStageChangeDate", self.settings.amount, currency] if self.won else []
        paths = [path for path in paths if path and not path.startswith("=") and path != ROLE_EMAIL]
        wrong = next((path for path in paths if not FIELD.fullmatch(path)), None)
        if wrong:
            raise ConfigError(
                f"Poll `{name}`: not a field of Salesforce", expected="a name such as `Plan__c`", got=wrong, where=f"$.polls.{name}"
            )
        return sorted({*paths, "Id", "SystemModstamp"})

    def first_cursor(self, now_us: int) -> Cursor:
        return window.first(now_us - self.settings.since_days * 86_400_000_000) | fresh({})

    def range_cursor(self, from_us: int, to_us: int) -> Cursor:
        return window.first(from_us, to_us) | fresh({})

    def past(self, cursor: Cursor, now_us: int) -> Past | None:
        found = window.past(self.at_cursor(cursor, now_us))
        return found and found._replace(cursor=found.cursor | fresh(cursor["types"]))

    def at_cursor(self, cursor: Cursor, now_us: int) -> Cursor:
        return window.opened(cursor, now_us, int(self.settings.lag_s * 1e6), int(self.settings.overlap_s * 1e6))

    def request(self, cursor: Cursor, now_us: int) -> Call:
        headers = {"authorization": self.token.bearer, "accept": "application/json"}
        if cursor["next"]:
            return Call(url=f"{self.url}{cursor['next']}", headers=headers)
        return Call(url=f"{self.url}/services/data/{self.settings.version}/query?q={quote(self.soql(cursor))}", headers=headers)

    def soql(self, cursor: Cursor) -> str:
        fields = [field for field in self.fields if field not in cursor["gone"]]
        if self.won and ROLE_EMAIL in self.mapping.paths["email"]:
            fields.append("(SELECT Contact.Email FROM OpportunityContactRoles WHERE IsPrimary = true LIMIT 1)")
        # In whole seconds, as SystemModstamp is; the end is rounded up, because what is read again is no harm.
        where = f"SystemModstamp >= {iso_of(cursor['lo'], 0)} AND SystemModstamp < {iso_of(cursor['to'] + 999_999, 0)}"
        if cursor["id"]:
            where += f" AND (SystemModstamp > {cursor['at']} OR (SystemModstamp = {cursor['at']} AND Id > '{cursor['id']}'))"
        return f"SELECT {', '.join(fields)} FROM {OBJECTS[self.settings.object]} WHERE {where} ORDER BY SystemModstamp, Id"

    def trouble(self, answer: Answer) -> MidflightError | None:
        codes, said = error_of(answer)
        if "REQUEST_LIMIT_EXCEEDED" in codes:
            return NotNow(
                "Salesforce has no API calls left for today", got=said, retry_s=limits_wait_s, todo="`usage_share_max`, or more calls"
            )
        if "INVALID_QUERY_LOCATOR" in codes or ("INVALID_FIELD" in codes and GONE.search(said)):
            return None
        if codes & {"INVALID_FIELD", "INVALID_TYPE", "MALFORMED_QUERY", "API_DISABLED_FOR_ORG", "INSUFFICIENT_ACCESS"}:
            return NotAllowed(
                f"Salesforce does not take the query ({', '.join(sorted(codes))})", got=said, todo="Check fields and permissions"
            )
        return trouble_of(answer, self.label, said)

    def read(self, answer: Answer, cursor: Cursor, now_us: int) -> Page:
        if answer.status >= 300:
            return self._anew(answer, cursor)
        found = decoded(answer, self.label)
        records = [plain(one) for one in list_in(found, "records", self.label)]
        read = self._won(records) if self.won else self.mapping.read(records, cursor["types"], cursor["gone"])
        rest = self._rest(answer)
        types = cursor["types"] if self.won else read.types
        if not found.get("done", True):
            after = cursor | behind(records, cursor) | {"next": self._next(found), "types": types}
            return Page(read.found, after, True, read.bad, **rest)
        after, more = window.closed(cursor, now_us, int(self.settings.lag_s * 1e6))
        return Page(read.found, after | fresh(types), more, read.bad, known_us=cursor["to"], **rest)

    def _anew(self, answer: Answer, cursor: Cursor) -> Page:
        """Go on without what the answer says is not there: a query locator, or a field."""
        gone = GONE.search(error_of(answer)[1])
        if not gone:
            return Page([], cursor | {"next": ""}, True)
        field = gone[1]
        needed = {"Id", "SystemModstamp", *self.mapping.paths["email"]} | ({"IsWon"} if self.won else set())
        if field not in self.fields or field in needed or len(cursor["gone"]) >= gone_max:
            raise NotAllowed(f"Salesforce has no field `{field}`", todo="Change the configuration, or bring it back")
        said = f"Field `{field}` is there no more: the schema has changed. Its rows are read without it"
        bad = Bad(0, "schema", said, msgspec.json.encode({"field": field}))
        return Page([], cursor | {"next": "", "gone": [*cursor["gone"], field]}, True, [bad])

    def _next(self, found: dict) -> str:
        """Return the path of the next records. Raises Unreadable for one that leads elsewhere."""
        path = text(found.get("nextRecordsUrl"))
        if not re.fullmatch(r"/services/data/v\d{2,3}\.0/query/[A-Za-z0-9_-]{1,100}", path):
            raise Unreadable("Salesforce: no `nextRecordsUrl` that can be followed", got=path[:100])
        return path

    def _rest(self, answer: Answer) -> dict:
        used = re.search(r"api-usage=(\d{1,12})/(\d{1,12})", answer.headers.get("sforce-limit-info", ""))
        if used and int(used[2]) and int(used[1]) / int(used[2]) > self.settings.usage_share_max:
            return {"wait_s": limits_wait_s, "why": f"{used[1]} of the org's {used[2]} API calls of the day are used"}
        return {}

    def _won(self, records: list) -> _Won:
        out = _Won([], [])
        for index, record in enumerate(records):
            try:
                out.found += self._conversion(record)
            except MidflightError as error:
                out.bad.append(Bad(index, error.code, error.text()[:500], msgspec.json.encode(record)))
        return out

    def _conversion(self, record: dict) -> list[Found]:
        if "IsWon" not in record:
            raise Malformed("Field `IsWon` is not there: the schema has changed")
        if record["IsWon"] is not True:
            return []
        address = text(self.mapping._get(record, "email"))
        if not recipient_key(address):
            raise Malformed("A won opportunity without a primary contact's address", todo="Set its primary contact role, then backfill")
        given, amount = self.settings.currency, find(record, self.settings.amount)
        if amount is not None and (isinstance(amount, bool) or not isinstance(amount, int | float)):
            raise Malformed(f"Field `{self.settings.amount}` has changed its type", expected="number", got=type(amount).__name__)
        number = text(record.get("Id"))
        event = Event(
            kind="converted", event_id=f"{number}:won", order_id=number, recipient=address, name="opportunity won",
            occurred_at_us=iso_us(record.get("LastStageChangeDate")) or iso_us(record.get("SystemModstamp")),
            value_micros=money_micros(amount), currency=(text(find(record, given)) if len(given) > 3 else given).upper(),
        )  # fmt: skip
        return [Found(event, f"won:{number}")]

    def again(self, raw: bytes) -> list[Found]:
        record = msgspec.json.decode(raw)
        if record.keys() == {"field"}:
            # If it is still not there, that is said again.
            return []
        return self._conversion(record) if self.won else [self.mapping.one(record, dict(self.settings.types))]


class _Won(msgspec.Struct):
    found: list[Found]
    bad: list[Bad]


def fresh(types: dict) -> Cursor:
    """Return what a cursor has beside its window, at a window's beginning."""
    return {"at": "", "id": "", "next": "", "gone": [], "types": types}


def behind(records: list, cursor: Cursor) -> Cursor:
    """Return where the query goes on if its locator ends: behind the last record that is still in the window.

    One that has changed since the query began shows its new time, and would have all before it left out.
    """
    for record in reversed(records):
        at_us = iso_us(record.get("SystemModstamp")) if isinstance(record, dict) else 0
        number = text(record.get("Id")) if isinstance(record, dict) else ""
        if at_us and at_us < cursor["to"] and number.isalnum() and number.isascii():
            return {"at": iso_of(at_us, 3 if at_us % 1_000_000 else 0), "id": number}
    return {}


def plain(record: object) -> object:
    return {name: value for name, value in record.items() if name != "attributes"} if isinstance(record, dict) else record


def error_of(answer: Answer) -> tuple[set[str], str]:
    """Return the codes and the messages of Salesforce's errors, which are a list."""
    try:
        found = decode_json(answer.body)
    except MidflightError:
        return set(), ""
    errors = [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, dict)]
    return {text(one.get("errorCode")) for one in errors} - {""}, "; ".join(text(one.get("message")) for one in errors)[:300]


EXAMPLES = Salesforce.EXAMPLES = (
    {
        "title": "A contact",
        "settings": {
            "url": "https://shop.my.salesforce.com",
            "oauth": {"token_url": "salesforce", "client_id": "x", "client_secret": "y"},
            "traits": {"plan": "Plan__c", "city": "MailingCity"},
        },
        "cursor": {"from": 1_763_999_000_000_000, "lo": 1_763_998_400_000_000, "to": 1_764_000_100_000_000, "end": 0, "slice": 1_000_000,
                   "at": "", "id": "", "next": "", "gone": [], "types": {}},
        "url": "https://shop.my.salesforce.com/services/data/v62.0/query?q="
        + quote(
            "SELECT Email, Id, MailingCity, Plan__c, SystemModstamp FROM Contact WHERE SystemModstamp >= 2025-11-24T15:33:20Z AND "
            "SystemModstamp < 2025-11-24T16:01:40Z ORDER BY SystemModstamp, Id"
        ),
        "answer": {
            "totalSize": 1,
            "done": True,
            "records": [
                {
                    "attributes": {"type": "Contact", "url": "/services/data/v62.0/sobjects/Contact/003xx000004TmiQAAS"},
                    "Id": "003xx000004TmiQAAS",
                    "Email": "ada@example.com",
                    "Plan__c": "pro",
                    "MailingCity": None,
                    "SystemModstamp": "2025-11-24T16:00:00.000+0000",
                }
            ],
        },
        "events": [
            {"kind": "identified", "recipient": "ada@example.com", "occurred_at_us": 1764000000000000,
             "traits": {"plan": "pro", "city": None}}
        ],
    },
    {
        "title": "An opportunity that is won",
        "settings": {
            "url": "https://shop.my.salesforce.com",
            "oauth": {"token_url": "salesforce", "client_id": "x", "client_secret": "y"},
            "object": "opportunities",
            "currency": "EUR",
        },
        "cursor": {"from": 1_763_999_000_000_000, "lo": 1_763_998_400_000_000, "to": 1_764_000_100_000_000, "end": 0, "slice": 1_000_000,
                   "at": "", "id": "", "next": "", "gone": [], "types": {}},
        "url": "https://shop.my.salesforce.com/services/data/v62.0/query?q="
        + quote(
            "SELECT Amount, Id, IsWon, LastStageChangeDate, SystemModstamp, (SELECT Contact.Email FROM OpportunityContactRoles "
            "WHERE IsPrimary = true LIMIT 1) FROM Opportunity WHERE SystemModstamp >= 2025-11-24T15:33:20Z AND "
            "SystemModstamp < 2025-11-24T16:01:40Z ORDER BY SystemModstamp, Id"
        ),
        "answer": {
            "totalSize": 2,
            "done": True,
            "records": [
                {
                    "Id": "006xx0000001AAA", "Amount": 499.5, "IsWon": True, "LastStageChangeDate": "2025-11-24T16:00:00.000+0000",
                    "SystemModstamp": "2025-11-24T16:00:05.000+0000",
                    "OpportunityContactRoles": {"totalSize": 1, "done": True, "records": [{"Contact": {"Email": "ada@example.com"}}]},
                },
                {"Id": "006xx0000001AAB", "Amount": 10, "IsWon": False, "SystemModstamp": "2025-11-24T16:00:06.000+0000",
                 "OpportunityContactRoles": None},
            ],
        },
        "events": [
            {
                "kind": "converted", "recipient": "ada@example.com", "event_id": "006xx0000001AAA:won", "order_id": "006xx0000001AAA",
                "value_micros": 499_500_000, "currency": "EUR", "occurred_at_us": 1764000000000000,
            }
        ],
    },
)  # fmt: skip
