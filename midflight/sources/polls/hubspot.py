"""Poll `hubspot`: contacts as they change."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from ...events import Bad
from ...kit.errors import ConfigError
from . import _window as window
from ._auth import OAuth, Token, checked_url
from ._mapping import MappedSettings, Mapping
from .poll import Answer, Call, Cursor, Found, HttpPoll, Page, Past, decoded, list_in

limit = 200  # results of one page, HubSpot's most
own = ("email", "lastmodifieddate", "hs_object_id")


class Settings(MappedSettings, kw_only=True, frozen=True):
    """``token`` is a private app's access token with the scope `crm.objects.contacts.read`; or ``oauth`` of a public app."""

    token: str = ""
    oauth: OAuth | None = None  # token_url defaults to HubSpot's own where it is given as `hubspot`
    url: str = "https://api.hubapi.com"
    at: str | list[str] = "lastmodifieddate"
    key: str | list[str] = "hs_object_id"
    lag_s: Annotated[float, msgspec.Meta(ge=0)] = 60.0  # until a change is surely in HubSpot's search index
    overlap_s: Annotated[float, msgspec.Meta(ge=0)] = 300.0  # what showed up later than that is still read


class HubSpot(HttpPoll):
    """`POST /crm/v3/objects/contacts/search` (https://developers.hubspot.com/docs/api-reference/2026-03/crm/search-the-crm).

    A search gives at most 10,000 results, however it is paged, and has one sort order. So contacts of a window of `lastmodifieddate` are
    read in the order of `hs_object_id`, each page asking for ids above the last one's: no search ever goes beyond its first page (the way
    is HubSpot's community's: https://community.hubspot.com/t5/APIs-Integrations/CRM-Record-ID-Sequencing-and-the-Search-API/td-p/927832).
    A contact that changes meanwhile leaves the window and is in the next one. The index lags behind: some tens of seconds after an update
    (https://help.okta.com/wf/en-us/content/Topics/Workflows/connector-reference/hubspotcrm/actions/searchcontacts.htm says 60 s).
    Search is limited to five calls a second for an account.
    """

    label: ClassVar[str] = "HubSpot contacts"
    doc: ClassVar[str] = "Contacts by their date of last change, each property in `traits` as a trait; a deleted contact is not heard of."
    docs_url: ClassVar[str] = "https://developers.hubspot.com/docs/api-reference/2026-03/crm/search-the-crm"
    Settings = Settings

    def __init__(self, settings: Settings, *, name: str, source=None) -> None:
        super().__init__(settings, name=name, source=source)
        if bool(settings.token) == bool(settings.oauth):
            raise ConfigError(f"Poll `{name}` has no way to show who it is", expected="`token` or `oauth`", where=f"$.polls.{name}.token")
        self.url = checked_url(settings.url, f"$.polls.{name}.url")
        oauth = settings.oauth
        if oauth and oauth.token_url == "hubspot":
            oauth = msgspec.structs.replace(oauth, token_url=f"{self.url}/oauth/v1/token")
        self.token = Token(oauth, settings.token, self.label)
        self.mapping = Mapping(settings, name)
        wanted = [path.split(".")[0] for paths in (*self.mapping.traits.values(), *self.mapping.paths.values()) for path in paths]
        self.properties = sorted({path for path in wanted if not path.startswith("=")} | set(own))

    def first_cursor(self, now_us: int) -> Cursor:
        return window.first(now_us - self.settings.since_days * 86_400_000_000) | {"last": 0, "types": {}}

    def range_cursor(self, from_us: int, to_us: int) -> Cursor:
        return window.first(from_us, to_us) | {"last": 0, "types": {}}

    def past(self, cursor: Cursor, now_us: int) -> Past | None:
        found = window.past(self.at_cursor(cursor, now_us))
        return found and found._replace(cursor=found.cursor | {"last": 0, "types": cursor["types"]})

    def at_cursor(self, cursor: Cursor, now_us: int) -> Cursor:
        return window.opened(cursor, now_us, int(self.settings.lag_s * 1e6), int(self.settings.overlap_s * 1e6))

    def request(self, cursor: Cursor, now_us: int) -> Call:
        filters = [
            # In milliseconds; the end is rounded up, because what the next window reads again is no harm.
            {"propertyName": "lastmodifieddate", "operator": "GTE", "value": str(cursor["lo"] // 1000)},
            {"propertyName": "lastmodifieddate", "operator": "LT", "value": str(-(-cursor["to"] // 1000))},
            {"propertyName": "hs_object_id", "operator": "GT", "value": str(cursor["last"])},
        ]
        body = {
            "filterGroups": [{"filters": filters}],
            "sorts": [{"propertyName": "hs_object_id", "direction": "ASCENDING"}],
            "properties": self.properties,
            "limit": limit,
        }
        headers = {"authorization": self.token.bearer, "content-type": "application/json"}
        return Call(method="POST", url=f"{self.url}/crm/v3/objects/contacts/search", headers=headers, body=msgspec.json.encode(body))

    def read(self, answer: Answer, cursor: Cursor, now_us: int) -> Page:
        results = list_in(decoded(answer, self.label), "results", self.label)
        rows = [one.get("properties") if isinstance(one, dict) else one for one in results]
        read = self.mapping.read(rows, cursor["types"])
        bad = [one for one in read.bad if not nameless(one, rows)]
        ids = [int(one["id"]) for one in results if isinstance(one, dict) and str(one.get("id", "")).isdigit()]
        if len(results) >= limit and ids and max(ids) > cursor["last"]:
            return Page(read.found, cursor | {"last": max(ids), "types": read.types}, True, bad)
        after, more = window.closed(cursor, now_us, int(self.settings.lag_s * 1e6))
        return Page(read.found, after | {"last": 0, "types": read.types}, more, bad, known_us=cursor["to"])

    def again(self, raw: bytes) -> list[Found]:
        return [self.mapping.one(msgspec.json.decode(raw), dict(self.settings.types))]


def nameless(bad: Bad, rows: list) -> bool:
    """Whether a row was set aside only because HubSpot has a contact without an address, of which there are many and nothing to learn."""
    row = rows[bad.index]
    return isinstance(row, dict) and "email" in row and not row["email"]


PLUGIN = HubSpot
EXAMPLES = HubSpot.EXAMPLES = (
    {
        "title": "A contact that has changed",
        "settings": {"token": "pat-eu1-x", "traits": {"plan": "plan_name", "country": "country"}},
        "cursor": {"from": 1_763_999_000_000_000, "lo": 1_763_998_700_000_000, "to": 1_764_000_100_000_000, "end": 0, "slice": 1_000_000,
                   "last": 0, "types": {}},
        "url": "https://api.hubapi.com/crm/v3/objects/contacts/search",
        "json": {
            "filterGroups": [
                {
                    "filters": [
                        {"propertyName": "lastmodifieddate", "operator": "GTE", "value": "1763998700000"},
                        {"propertyName": "lastmodifieddate", "operator": "LT", "value": "1764000100000"},
                        {"propertyName": "hs_object_id", "operator": "GT", "value": "0"},
                    ]
                }
            ],
            "sorts": [{"propertyName": "hs_object_id", "direction": "ASCENDING"}],
            "properties": ["country", "email", "hs_object_id", "lastmodifieddate", "plan_name"],
            "limit": 200,
        },
        "answer": {
            "total": 2,
            "results": [
                {
                    "id": "512",
                    "properties": {"email": "ada@example.com", "plan_name": "pro", "country": None, "hs_object_id": "512",
                                   "lastmodifieddate": "2025-11-24T16:00:00.250Z"},
                },
                {"id": "513", "properties": {"email": None, "hs_object_id": "513", "lastmodifieddate": "2025-11-24T16:00:00.250Z"}},
            ],
        },
        "events": [
            {
                "kind": "identified",
                "recipient": "ada@example.com",
                "occurred_at_us": 1764000000250000,
                "traits": {"plan": "pro", "country": None},
            }
        ],
    },
)  # fmt: skip
