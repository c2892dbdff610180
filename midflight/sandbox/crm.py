"""Two CRMs, played: HubSpot's contacts and Salesforce's objects, as far as they are polled and written back to."""

from __future__ import annotations

import re
from typing import ClassVar

from ..kit.clock import Clock
from ..sources.polls.poll import iso_of
from ..sources.source import iso_us
from .api_vendors import Reply
from .systems import Question, Sessions, System, json_reply

results_max = 10_000
OPERATORS = {
    "EQ": lambda a, b: a == b,
    "NEQ": lambda a, b: a != b,
    "GT": lambda a, b: a > b,
    "GTE": lambda a, b: a >= b,
    "LT": lambda a, b: a < b,
    "LTE": lambda a, b: a <= b,
}


class HubSpotFake(System):
    """HubSpot's contacts: search with its limits and its lagging index, updates in batches.

    Shapes as on https://developers.hubspot.com/docs/api-reference/2026-03/crm/search-the-crm and
    https://developers.hubspot.com/docs/api-reference/legacy/crm/objects/contacts/batch/update-contacts.
    """

    name: ClassVar[str] = "hubspot"
    prefixes: ClassVar[tuple[str, ...]] = ("/crm/", "/oauth/v1/")
    key: ClassVar[str] = "pat-eu1-sandbox"
    client: ClassVar[tuple[str, str]] = ("hs-client", "hs-secret")
    refresh: ClassVar[str] = "hs-refresh"

    def __init__(self, clock: Clock, *, lag_s: float = 0.0, lifetime_s: float = 1800.0, page_max: int = 200) -> None:
        super().__init__(clock)
        self.lag_us, self.page_max = int(lag_s * 1e6), page_max
        self.sessions = Sessions(clock, self.client, self.refresh, lifetime_s)
        self.known = {"email", "plan", "age", "country", "lastmodifieddate", "hs_object_id", "midflight_segments", "midflight_engagement"}
        self.versions: dict[int, list[tuple[int, dict]]] = {}  # id -> what it was, from when on
        self.updates: list[dict] = []  # every input of every batch that was taken, in order

    # -- what people do there ----------------------------------------------------------------------------------------------

    def put(self, number: int, at_us: int | None = None, **properties: str | None) -> None:
        """Make or change a contact, now or as of a time."""
        at_us = self.clock.now_us() if at_us is None else at_us
        before = self.versions.get(number, [])
        values = (before[-1][1] if before else {}) | properties
        values |= {"hs_object_id": str(number), "lastmodifieddate": iso_of(at_us)}
        self.versions[number] = [*before, (at_us, values)]

    def now(self, number: int) -> dict:
        return self.versions[number][-1][1]

    def indexed(self) -> list[dict]:
        """Return contacts as the search index has them: a moment ago."""
        seen_us = self.clock.now_us() - self.lag_us
        found = []
        for versions in self.versions.values():
            seen = [values for at_us, values in versions if at_us <= seen_us]
            found += seen[-1:]
        return found

    # -- the API ------------------------------------------------------------------------------------------------------------

    def answer(self, asked: Question) -> Reply:
        if asked.path == "/oauth/v1/token":
            given = self.sessions.give(asked)
            return json_reply(200, given) if given else json_reply(400, {"status": "BAD_CLIENT_ID", "error": "invalid_client"})
        if asked.headers.get("authorization") != f"Bearer {self.key}" and not self.sessions.knows(asked):
            return self.error(401)
        if asked.path.endswith("/contacts/search") and asked.method == "POST":
            return self.search(asked.json())
        if asked.path.endswith("/contacts/batch/update") and asked.method == "POST":
            return self.update(asked.json())
        return self.error(404)

    def search(self, body: dict) -> Reply:
        limit, after = int(body.get("limit", 10)), int(body.get("after") or 0)
        if not 0 < limit <= self.page_max:
            return self.error(400, f"limit must be at most {self.page_max}")
        if after + limit > results_max:
            return self.error(400, "The search endpoints are limited to 10,000 total results")
        if len(body.get("sorts", [])) > 1:
            return self.error(400, "Only one sort is allowed")
        found = [
            one for one in self.indexed() if any(all(map(one_fits(one), g["filters"])) for g in body.get("filterGroups", [{"filters": []}]))
        ]
        for sort in body.get("sorts", []):
            found.sort(key=lambda one: comparable(one, sort["propertyName"]), reverse=sort.get("direction") == "DESCENDING")
        wanted = [name for name in body.get("properties", []) if name in self.known]
        page = [
            {"id": one["hs_object_id"], "properties": {name: one.get(name) for name in wanted}, "archived": False}
            for one in found[after : after + limit]
        ]
        more = {"paging": {"next": {"after": str(after + limit)}}} if after + limit < len(found) else {}
        return json_reply(200, {"total": len(found), "results": page} | more)

    def update(self, body: dict) -> Reply:
        inputs = body["inputs"]
        if len(inputs) > 100:
            return self.error(400, "Batch size must be at most 100")
        unknown = sorted({name for one in inputs for name in one["properties"]} - self.known)
        if unknown:
            return self.error(400, f'Property "{unknown[0]}" does not exist')
        by_email = {versions[-1][1].get("email"): number for number, versions in self.versions.items()}
        results, errors = [], []
        for one in inputs:
            number = by_email.get(one["id"]) if one.get("idProperty") == "email" else int(one["id"])
            if number in self.versions:
                self.put(number, **one["properties"])
                self.updates.append(one)
                results.append({"id": str(number), "properties": one["properties"]})
            else:
                errors.append(one["id"])
        if not errors:
            return json_reply(200, {"status": "COMPLETE", "results": results})
        said = {"status": "error", "category": "OBJECT_NOT_FOUND", "message": "Could not get some contacts", "context": {"ids": errors}}
        return json_reply(207, {"status": "COMPLETE", "results": results, "numErrors": len(errors), "errors": [said]})

    def error(self, status: int, said: str = "") -> Reply:
        words = {401: "INVALID_AUTHENTICATION", 429: "RATE_LIMITS", 400: "VALIDATION_ERROR"}
        body = {"status": "error", "message": said or "An error has occurred", "category": words.get(status, "INTERNAL_ERROR")}
        if status == 429:
            body |= {"errorType": "RATE_LIMIT", "policyName": "SECONDLY"}
        return json_reply(status, body)

    def expire(self) -> Reply:
        self.sessions.end()
        return self.error(401)


def comparable(one: dict, name: str) -> object:
    value = one.get(name)
    if name == "lastmodifieddate":
        return iso_us(value) // 1000
    if name == "hs_object_id":
        return int(value)
    return value or ""


def one_fits(one: dict):
    def fits(wanted: dict) -> bool:
        own = comparable(one, wanted["propertyName"])
        value = int(wanted["value"]) if isinstance(own, int) else wanted["value"]
        return OPERATORS[wanted["operator"]](own, value)

    return fits


CONDITION = re.compile(r"(\w[\w.]*) (=|>=|<=|>|<|IN) ('(?:[^'\\]|\\.)*'|\((?:'(?:[^'\\]|\\.)*'(?:, ?)?)*\)|[\w:.+-]+)")
QUERY = re.compile(r"SELECT (?P<fields>.+?) FROM (?P<object>\w+) WHERE (?P<where>.+?)(?: ORDER BY (?P<order>[\w, ]+))?$")
SUBQUERY = re.compile(r"\(SELECT [^()]+\)")


class SalesforceFake(System):
    """Salesforce's REST API: sessions, SOQL of the forms that are used here, query locators, limits, updates of many records.

    Shapes as on https://developer.salesforce.com/docs/atlas.en-us.api_rest.meta/api_rest/dome_query.htm and
    https://developer.salesforce.com/docs/atlas.en-us.api_rest.meta/api_rest/resources_composite_sobjects_collections_update.htm.
    """

    name: ClassVar[str] = "salesforce"
    prefixes: ClassVar[tuple[str, ...]] = ("/services/",)
    client: ClassVar[tuple[str, str]] = ("sf-client", "sf-secret")

    def __init__(self, clock: Clock, *, lifetime_s: float = 7200.0, page: int = 2000, calls_max: int = 100_000) -> None:
        super().__init__(clock)
        self.sessions = Sessions(clock, self.client, "sf-refresh", lifetime_s)
        self.page, self.calls, self.calls_max = page, 0, calls_max
        self.fields = {
            "Contact": {
                "Id",
                "Email",
                "Plan__c",
                "Age__c",
                "Country__c",
                "SystemModstamp",
                "Midflight_Segments__c",
                "Midflight_Engagement__c",
            },
            "Opportunity": {"Id", "Amount", "IsWon", "LastStageChangeDate", "SystemModstamp"},
        }
        self.records: dict[str, dict[str, dict]] = {"Contact": {}, "Opportunity": {}}
        self.locators: dict[str, tuple[list[str], str, list[str]]] = {}  # name -> ids that are left, object, fields
        self.updates: list[dict] = []

    def put(self, kind: str, number: str, at_us: int | None = None, **fields: object) -> None:
        at_us = self.clock.now_us() if at_us is None else at_us
        record = self.records[kind].setdefault(number, dict.fromkeys(self.fields[kind]))
        record.update(fields, Id=number, SystemModstamp=iso_of(at_us // 1_000_000 * 1_000_000).replace("Z", "+0000"))

    def answer(self, asked: Question) -> Reply:
        if asked.path == "/services/oauth2/token":
            given = self.sessions.give(asked)
            if not given:
                return json_reply(400, {"error": "invalid_grant", "error_description": "authentication failure"})
            # Salesforce does not say how long a session lasts.
            return json_reply(200, {"access_token": given["access_token"], "instance_url": self.url, "token_type": "Bearer"})
        if not self.sessions.knows(asked):
            return self.error(401)
        self.calls += 1
        if self.calls > self.calls_max:
            return json_reply(403, [{"message": "TotalRequests Limit exceeded.", "errorCode": "REQUEST_LIMIT_EXCEEDED"}])
        reply = self.served(asked)
        return reply._replace(headers=(*reply.headers, ("sforce-limit-info", f"api-usage={self.calls}/{self.calls_max}")))

    def served(self, asked: Question) -> Reply:
        if asked.path.endswith("/query") and asked.method == "GET":
            return self.query(asked.query.get("q", ""))
        if "/query/" in asked.path:
            return self.more(asked.path.rpartition("/")[2])
        if asked.path.endswith("/composite/sobjects") and asked.method == "PATCH":
            return self.update(asked.json())
        return json_reply(404, [{"message": "The requested resource does not exist", "errorCode": "NOT_FOUND"}])

    def query(self, soql: str) -> Reply:
        parts = QUERY.fullmatch(SUBQUERY.sub("Roles__", soql))
        if not parts or parts["object"] not in self.records:
            return json_reply(400, [{"message": f"unexpected token: {soql[:40]}", "errorCode": "MALFORMED_QUERY"}])
        kind, fields = parts["object"], parts["fields"].split(", ")
        gone = next((f for f in fields if f not in self.fields[kind] | {"Roles__"}), None)
        if gone:
            said = f"ERROR at Row:1:Column:8 No such column '{gone}' on entity '{kind}'."
            return json_reply(400, [{"message": said, "errorCode": "INVALID_FIELD"}])
        found = [number for number, one in self.records[kind].items() if self.fits(one, parts["where"])]
        found.sort(key=lambda number: (self.records[kind][number]["SystemModstamp"], number))
        return self.paged(found, kind, fields)

    def fits(self, one: dict, where: str) -> bool:
        """Evaluate a condition: comparisons joined by AND, OR and brackets, and by nothing else."""

        def compared(found: re.Match) -> str:
            name, operator, value = found.groups()
            own = one[name]
            if name == "SystemModstamp":
                own, value = iso_us(own), iso_us(value)
            elif operator == "IN":
                given = re.findall(r"'((?:[^'\\]|\\.)*)'", value)
                return str(own in [re.sub(r"\\(.)", r"\1", one) for one in given])
            else:
                value = value.strip("'")
            return str(OPERATORS[{"=": "EQ", ">": "GT", ">=": "GTE", "<": "LT", "<=": "LTE"}[operator]](own, value))

        logic = CONDITION.sub(compared, where).replace("AND", "and").replace("OR", "or")
        assert re.fullmatch(r"(True|False|and|or|[() ])+", logic), logic
        return bool(eval(logic))

    def paged(self, numbers: list[str], kind: str, fields: list[str]) -> Reply:
        page, rest = numbers[: self.page], numbers[self.page :]
        records = [self.shown(kind, number, fields) for number in page if number in self.records[kind]]
        body: dict = {"totalSize": len(numbers), "done": not rest, "records": records}
        if rest:
            name = f"01gxx{len(self.locators):09d}AAQ-{self.page}"
            self.locators[name] = (rest, kind, fields)
            body["nextRecordsUrl"] = f"/services/data/v62.0/query/{name}"
        return json_reply(200, body)

    def shown(self, kind: str, number: str, fields: list[str]) -> dict:
        """Return a record as it is now, also where the query that found it is older."""
        record = self.records[kind][number]
        out = {"attributes": {"type": kind}} | {
            name: record.get(name) for name in fields if name != "Roles__" and name in self.fields[kind]
        }
        if "Roles__" in fields:
            email = record.get("email")
            roles = {"totalSize": 1, "done": True, "records": [{"Contact": {"Email": email}}]}
            out["OpportunityContactRoles"] = roles if email else None
        return out

    def more(self, name: str) -> Reply:
        if name not in self.locators:
            return json_reply(400, [{"message": "invalid query locator", "errorCode": "INVALID_QUERY_LOCATOR"}])
        return self.paged(*self.locators[name])

    def update(self, body: dict) -> Reply:
        if len(body["records"]) > 200:
            return json_reply(400, [{"message": "at most 200 records", "errorCode": "EXCEEDED_ID_LIMIT"}])
        results = []
        for one in body["records"]:
            kind, number = one["attributes"]["type"], one["id"]
            values = {name: value for name, value in one.items() if name not in ("attributes", "id")}
            if number not in self.records[kind]:
                errors = [{"statusCode": "ENTITY_IS_DELETED", "message": "entity is deleted", "fields": []}]
                results.append({"success": False, "errors": errors})
                continue
            self.put(kind, number, **values)
            self.updates.append({"id": number} | values)
            results.append({"id": number, "success": True, "errors": []})
        return json_reply(200, results)

    def error(self, status: int, said: str = "") -> Reply:
        code = {401: "INVALID_SESSION_ID", 429: "REQUEST_LIMIT_EXCEEDED", 503: "SERVER_UNAVAILABLE"}.get(status, "UNKNOWN_EXCEPTION")
        words = {401: "Session expired or invalid"}
        return json_reply(status, [{"message": said or words.get(status, "An error"), "errorCode": code}])

    def expire(self) -> Reply:
        self.sessions.end()
        return self.error(401)
