"""Way back `salesforce`: segments and engagement as fields of contacts or leads."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote

import msgspec

from ...kit.errors import ConfigError
from ...sources.polls._auth import OAuth, Token, checked_url
from ...sources.polls.poll import Answer, Call, MidflightError, NotAllowed, NotNow, decoded, list_in
from ...sources.polls.salesforce import FIELD, OBJECTS, error_of, limits_wait_s
from ...sources.source import decode_json, text
from . import way_back
from ._asked import accepted, asked, refusal
from .way_back import WRITTEN, Ask, Item, Outcome, WayBack

records_max = 200  # of one update
per_address_max = 20  # records of one address that are written; more, and the address is nobody's


class Settings(way_back.Settings, kw_only=True, frozen=True):
    """``url`` is the org's own address (My Domain), ``oauth`` a connected app. ``values`` says which field takes which value."""

    url: str
    oauth: OAuth
    object: Literal["contacts", "leads"] = "contacts"
    version: Annotated[str, msgspec.Meta(pattern=r"^v\d{2,3}\.0$")] = "v62.0"
    segments_field: str = "Midflight_Segments__c"  # a long text: names with `;` between; empty: not written
    values: dict[str, str] = {}


class Salesforce(WayBack):
    """The ids of addresses by SOQL, then `PATCH /services/data/vXX.X/composite/sobjects`, up to 200 records at a time
    (https://developer.salesforce.com/docs/atlas.en-us.api_rest.meta/api_rest/resources_composite_sobjects_collections_update.htm).

    All records of an address get its state; each may be refused on its own (`allOrNone` is false).
    """

    label: ClassVar[str] = "Salesforce"
    doc: ClassVar[str] = "Segments as one text field, values as a field each, on all contacts or leads of an address."
    docs_url: ClassVar[str] = (
        "https://developer.salesforce.com/docs/atlas.en-us.api_rest.meta/api_rest/resources_composite_sobjects_collections_update.htm"
    )
    Settings = Settings
    batch_max = 100

    def __init__(self, settings: Settings, *, name: str) -> None:
        super().__init__(settings, name=name)
        self.url = checked_url(settings.url, f"$.ways_back.{name}.url")
        oauth = settings.oauth
        if oauth.token_url == "salesforce":
            oauth = msgspec.structs.replace(oauth, token_url=f"{self.url}/services/oauth2/token")
        self.token = Token(oauth, "", self.label)
        wrong = next((f for f in [settings.segments_field, *settings.values.values()] if f and not FIELD.fullmatch(f)), None)
        if wrong:
            raise ConfigError(f"Way back `{name}`: not a field of Salesforce", expected="a name such as `Plan__c`", got=wrong)

    def ids_call(self, items: list[Item]) -> Call:
        addresses = ", ".join(f"'{quoted(item.recipient)}'" for item in items)
        soql = f"SELECT Id, Email FROM {OBJECTS[self.settings.object]} WHERE Email IN ({addresses})"
        url = f"{self.url}/services/data/{self.settings.version}/query?q={quote(soql)}"
        return Call(url=url, headers={"authorization": self.token.bearer, "accept": "application/json"})

    def update_call(self, records: list[tuple[str, Item]]) -> Call:
        kind = OBJECTS[self.settings.object]
        body = {
            "allOrNone": False,
            "records": [{"attributes": {"type": kind}, "id": number, **self._fields(item)} for number, item in records],
        }
        headers = {"authorization": self.token.bearer, "content-type": "application/json"}
        url = f"{self.url}/services/data/{self.settings.version}/composite/sobjects"
        return Call(method="PATCH", url=url, headers=headers, body=msgspec.json.encode(body))

    def _fields(self, item: Item) -> dict[str, object]:
        fields = {theirs: item.values[ours] for ours, theirs in self.settings.values.items() if ours in item.values}
        if self.settings.segments_field:
            fields[self.settings.segments_field] = ";".join(name.replace(";", ",") for name in self.of_interest(item)) or None
        return fields

    def value_names(self) -> Collection[str]:
        return self.settings.values

    async def write(self, items: list[Item], ask: Ask, now_us: int) -> list[Outcome]:
        answer = await asked(self.token, lambda: self.ids_call(items), ask, now_us)
        self._check(answer)
        with accepted(self.label):
            ids = self._ids(answer)
        records = [(number, item) for item in items for number in ids.get(item.recipient, ())]
        said: dict[str, Outcome] = {}
        for start in range(0, len(records), records_max):
            part = records[start : start + records_max]
            answer = await asked(self.token, lambda part=part: self.update_call(part), ask, now_us)
            self._check(answer)
            said |= self._results(answer, part)
        missing = Outcome(kind="missing", why="no record has this address")
        return [said.get(item.recipient, WRITTEN) if ids.get(item.recipient) else missing for item in items]

    def _ids(self, answer: Answer) -> dict[str, list[str]]:
        ids: dict[str, list[str]] = {}
        for record in list_in(decoded(answer, self.label), "records", self.label):
            number, address = text(record.get("Id")), text(record.get("Email")).lower()
            if number and len(ids.setdefault(address, [])) < per_address_max:
                ids[address].append(number)
        return ids

    def _results(self, answer: Answer, records: list[tuple[str, Item]]) -> dict[str, Outcome]:
        """Return what was refused, by address."""
        try:
            results = decode_json(answer.body)
        except MidflightError:
            results = None
        if not isinstance(results, list) or len(results) != len(records):
            raise NotNow("Salesforce does not say what became of each record", got=type(results).__name__)
        said = {}
        for (_, item), result in zip(records, results, strict=True):
            errors = result.get("errors") if isinstance(result, dict) else None
            if not isinstance(result, dict) or result.get("success") is not True:
                codes = [text(one.get("statusCode")) for one in errors or () if isinstance(one, dict)]
                if {"UNABLE_TO_LOCK_ROW", "REQUEST_LIMIT_EXCEEDED"} & set(codes):
                    raise NotNow("Salesforce is busy with a record", got=", ".join(codes))
                said[item.recipient] = Outcome(kind="refused", why=", ".join(codes)[:200] or "refused")
        return said

    def _check(self, answer: Answer) -> None:
        if 200 <= answer.status < 300:
            return
        codes, said = error_of(answer)
        if "REQUEST_LIMIT_EXCEEDED" in codes:
            raise NotNow("Salesforce has no API calls left for today", got=said, retry_s=limits_wait_s)
        if codes & {"INVALID_FIELD", "INVALID_FIELD_FOR_INSERT_UPDATE", "INVALID_TYPE"}:
            raise NotAllowed(f"Salesforce does not have a field ({', '.join(sorted(codes))})", got=said, todo="Make it, or change `values`")
        raise refusal(answer, self.label, said)


def quoted(address: str) -> str:
    """Return an address as it may stand in a query's quotes
    (https://developer.salesforce.com/docs/atlas.en-us.soql_sosl.meta/soql_sosl/sforce_api_calls_soql_select_quotedstringescapes.htm)."""
    return address.replace("\\", "\\\\").replace("'", "\\'")
