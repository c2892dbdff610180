"""What ESPs keep of events and campaigns, played: the APIs that are polled for what no webhook brought, and for campaigns.

Each keeps the vendor's own items, latest or earliest first as the vendor has them, and gives them page by page within the vendor's limits.
"""

from __future__ import annotations

import base64
import re
from typing import ClassVar

from ..kit.clock import Clock
from ..sources.polls._auth import basic
from ..sources.source import iso_us
from .api_vendors import Reply
from .systems import Question, System, json_reply

reach_max = 10_000


class MailgunRecords(System):
    """`GET /v3/DOMAIN/events` (https://documentation.mailgun.com/docs/mailgun/user-manual/events): items in the order of
    time, and late ones.

    ``put`` says when an event reaches the storage; one that is late there shows up among older ones.
    """

    name: ClassVar[str] = "mailgun"
    prefixes: ClassVar[tuple[str, ...]] = ("/v3/mail.shop.example/",)
    key: ClassVar[str] = "key-records"

    def __init__(self, clock: Clock, *, page: int = 300) -> None:
        super().__init__(clock)
        self.items: list[tuple[int, dict]] = []  # from when on it is to be seen, the item
        self.page = page

    def put(self, item: dict, seen_us: int | None = None) -> None:
        self.items.append((self.clock.now_us() if seen_us is None else seen_us, item))

    def answer(self, asked: Question) -> Reply:
        if asked.headers.get("authorization") != basic("api", self.key):
            return Reply(401, b"Forbidden", (("content-type", "text/plain"),))
        token = re.fullmatch(r"/v3/[^/]+/events(?:/W(\d+)-(\d+)-(\d+))?", asked.path)
        if not token:
            return self.error(404)
        if token[1]:
            begin, end, done = (int(part) for part in token.groups())
        else:
            begin, end, done = int(float(asked.query["begin"]) * 1e6), int(float(asked.query["end"]) * 1e6), 0
        now_us = self.clock.now_us()
        found = [one for seen_us, one in self.items if seen_us <= now_us and begin <= round(one["timestamp"] * 1e6) < end]
        found.sort(key=lambda one: (one["timestamp"], one["id"]))
        page = found[done : done + min(self.page, int(asked.query.get("limit", 300)))]
        # There is always a next page, be it empty.
        further = f"{self.url}/v3/mail.shop.example/events/W{begin}-{end}-{done + len(page)}"
        return json_reply(200, {"items": page, "paging": {"next": further, "previous": further, "first": further, "last": further}})


class PostmarkRecords(System):
    """`/bounces`, `/messages/outbound/opens`, `.../clicks`, `/messages/outbound` and details: latest first, to 10,000
    (https://postmarkapp.com/developer/user-guide/tracking-opens/message-opens-api, https://postmarkapp.com/developer/api/messages-api).
    """

    name: ClassVar[str] = "postmark"
    prefixes: ClassVar[tuple[str, ...]] = ("/bounces", "/messages/")
    wrong: ClassVar[int] = 422
    key: ClassVar[str] = "postmark-records"

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.lists: dict[str, list[dict]] = {"Bounces": [], "Opens": [], "Clicks": [], "Messages": []}
        self.details: dict[str, dict] = {}

    def answer(self, asked: Question) -> Reply:
        if asked.headers.get("x-postmark-server-token") != self.key:
            return json_reply(401, {"ErrorCode": 10, "Message": "No Account or Server API tokens were supplied"})
        details = re.fullmatch(r"/messages/outbound/([0-9a-f-]{36})/details", asked.path)
        if details:
            found = self.details.get(details[1])
            return json_reply(200, found) if found else json_reply(422, {"ErrorCode": 701, "Message": "This message was not found."})
        names = {
            "/bounces": "Bounces",
            "/messages/outbound/opens": "Opens",
            "/messages/outbound/clicks": "Clicks",
            "/messages/outbound": "Messages",
        }
        if asked.path not in names:
            return json_reply(404, {"ErrorCode": 0, "Message": "Not found"})
        count, offset = int(asked.query["count"]), int(asked.query["offset"])
        if not 0 < count <= 500 or count + offset > reach_max:
            return json_reply(422, {"ErrorCode": 600, "Message": "count + offset must be at most 10000"})
        name = names[asked.path]
        items = sorted(self.lists[name], key=lambda one: iso_us(one.get("BouncedAt") or one["ReceivedAt"]), reverse=True)
        return json_reply(200, {"TotalCount": len(items), name: items[offset : offset + count]})

    def error(self, status: int, said: str = "") -> Reply:
        return json_reply(status, {"ErrorCode": 100 if status >= 500 else 429, "Message": said or "Maintenance"})


BETWEEN = re.compile(r'last_event_time BETWEEN TIMESTAMP "([^"]+)" AND TIMESTAMP "([^"]+)"')


class SendGridRecords(System):
    """`/v3/messages` and `/v3/marketing/singlesends` (https://docs.sendgrid.com/api-reference/email-activity/filter-all-messages,
    https://www.twilio.com/docs/sendgrid/api-reference/single-sends/get-all-single-sends)."""

    name: ClassVar[str] = "sendgrid"
    prefixes: ClassVar[tuple[str, ...]] = ("/v3/messages", "/v3/marketing/")
    key: ClassVar[str] = "SG.records"

    def __init__(self, clock: Clock, *, page: int = 1000) -> None:
        super().__init__(clock)
        self.messages: dict[str, dict] = {}
        self.sends: list[dict] = []
        self.page = page

    def event(self, message: str, to: str, name: str, at: str, **more: object) -> None:
        kept = self.messages.setdefault(message, {"msg_id": message, "to_email": to, "categories": [], "unique_args": {}, "events": []})
        kept["events"].append({"event_name": name, "processed": at, **more})

    def answer(self, asked: Question) -> Reply:
        if asked.headers.get("authorization") != f"Bearer {self.key}":
            return json_reply(401, {"errors": [{"message": "authorization required"}]})
        if asked.path == "/v3/marketing/singlesends":
            return self.singlesends(asked)
        if asked.path == "/v3/messages":
            return self.listed(asked)
        found = self.messages.get(asked.path.removeprefix("/v3/messages/"))
        return json_reply(200, found) if found else json_reply(404, {"errors": [{"message": "message not found"}]})

    def listed(self, asked: Question) -> Reply:
        between = BETWEEN.fullmatch(asked.query.get("query", ""))
        limit = int(asked.query.get("limit", 10))
        if not between or not 0 < limit <= 1000:
            return json_reply(400, {"errors": [{"message": "invalid query"}]})
        begin, end = (iso_us(time) for time in between.groups())
        found = []
        for one in self.messages.values():
            last = max(iso_us(event["processed"]) for event in one["events"])
            if begin <= last <= end:
                found.append({"msg_id": one["msg_id"], "to_email": one["to_email"], "last_event_time": last})
        found.sort(key=lambda one: -one["last_event_time"])
        return json_reply(200, {"messages": found[: min(limit, self.page)]})

    def singlesends(self, asked: Question) -> Reply:
        size, token = int(asked.query.get("page_size", 50)), int(asked.query.get("page_token", 0))
        page = self.sends[token : token + size]
        about = {"self": f"{self.url}{asked.path}", "count": len(self.sends)}
        if token + size < len(self.sends):
            about["next"] = f"{self.url}{asked.path}?page_size={size}&page_token={token + size}"
        return json_reply(200, {"result": page, "_metadata": about})

    def error(self, status: int, said: str = "") -> Reply:
        return json_reply(status, {"errors": [{"message": said or "error", "field": None}]}, ("x-ratelimit-remaining", "0"))


class MailchimpRecords(System):
    """`GET /3.0/campaigns` (https://mailchimp.com/developer/marketing/api/campaigns/list-campaigns/)."""

    name: ClassVar[str] = "mailchimp"
    prefixes: ClassVar[tuple[str, ...]] = ("/3.0/",)
    key: ClassVar[str] = "0123456789abcdef0123456789abcdef-us6"

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.campaigns: list[dict] = []

    def answer(self, asked: Question) -> Reply:
        given = asked.headers.get("authorization", "").removeprefix("Basic ")
        if base64.b64decode(given or "OmE=").decode().partition(":")[2] != self.key:
            return self.error(401)
        count, offset = int(asked.query.get("count", 10)), int(asked.query.get("offset", 0))
        if asked.path != "/3.0/campaigns" or not 0 < count <= 1000:
            return self.error(400 if count > 1000 else 404)
        since_us = iso_us(asked.query.get("since_create_time", "1970-01-01T00:00:00Z"))
        found = [one for one in self.campaigns if iso_us(one["create_time"]) > since_us]
        if asked.query.get("sort_field") == "create_time":
            found.sort(key=lambda one: iso_us(one["create_time"]), reverse=asked.query.get("sort_dir") == "DESC")
        return json_reply(200, {"campaigns": found[offset : offset + count], "total_items": len(found)})

    def error(self, status: int, said: str = "") -> Reply:
        titles = {401: "API Key Invalid", 429: "Too Many Requests", 404: "Resource Not Found"}
        return json_reply(status, {"type": "about:blank", "title": titles.get(status, "Error"), "status": status, "detail": said})
