"""Poll `postmark_events`: events whose webhooks never came, from Postmark's APIs for bounces, opens, clicks and messages."""

from __future__ import annotations

from typing import Annotated, ClassVar
from urllib.parse import quote, urlencode

import msgspec

from ...events import Bad
from ..source import iso_us, sub, text
from . import _window as window
from . import poll
from ._auth import checked_url
from .mailgun_events import read_again
from .poll import Answer, Call, Cursor, Found, HttpPoll, Page, Past, decoded, list_in

count = 500
reach_max = 10_000  # `count` and `offset` together
LISTS = {  # what is asked for, where, the list's name, an item's time, the webhook's record type
    "bounces": ("/bounces", "Bounces", "BouncedAt", "Bounce"),
    "opens": ("/messages/outbound/opens", "Opens", "ReceivedAt", "Open"),
    "clicks": ("/messages/outbound/clicks", "Clicks", "ReceivedAt", "Click"),
    "messages": ("/messages/outbound", "Messages", "ReceivedAt", ""),
}


class Settings(poll.Settings, kw_only=True, frozen=True):
    """``deliveries`` asks for each message's details, one call a message: the only way to hear of deliveries."""

    server_token: str
    stream: str = ""  # one message stream; empty: all
    deliveries: bool = False
    settle_days: Annotated[int, msgspec.Meta(ge=0, le=45)] = 2  # so long a message is asked for its delivery
    url: str = "https://api.postmarkapp.com"
    every_s: Annotated[float, msgspec.Meta(ge=1)] = 300.0
    since_days: Annotated[int, msgspec.Meta(ge=0, le=365)] = 3
    lag_s: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    overlap_s: Annotated[float, msgspec.Meta(ge=0)] = 600.0


class PostmarkEvents(HttpPoll):
    """`GET /bounces`, `/messages/outbound/opens`, `/messages/outbound/clicks` and, for deliveries, `/messages/outbound` with each message's
    details (https://postmarkapp.com/developer/user-guide/tracking-opens/message-opens-api,
    https://postmarkapp.com/developer/api/messages-api, https://postmarkapp.com/developer/api/bounce-api).

    The lists are sorted by time, latest first, and opens and clicks cannot be asked for by time. So each is read from its beginning until
    an item is older than what was read before; what comes meanwhile shifts items to later pages, where they are met twice and not missed.
    No list goes beyond 10,000 items: what lies behind them is said as missing; poll more often, or let the webhooks come.

    A bounce has the webhook's `ID`. Opens, clicks and deliveries have no id in either way, so both take the hash of what they say:
    kind, message, recipient, time and link. Postmark shows one time in both.
    """

    label: ClassVar[str] = "Postmark events"
    doc: ClassVar[str] = "Bounces, complaints, opens, clicks and, if wanted, deliveries, under the ids of the webhooks."
    docs_url: ClassVar[str] = "https://postmarkapp.com/developer/api/messages-api"
    vendor: ClassVar[str] = "postmark"
    Settings = Settings

    def __init__(self, settings: Settings, *, name: str, source=None) -> None:
        super().__init__(settings, name=name, source=source)
        self.url = checked_url(settings.url, f"$.polls.{name}.url")
        self.lists = ["bounces", "opens", "clicks"] + (["messages"] if settings.deliveries else [])

    def first_cursor(self, now_us: int) -> Cursor:
        return window.first(now_us - self.settings.since_days * 86_400_000_000) | self._begin()

    def range_cursor(self, from_us: int, to_us: int) -> Cursor:
        return window.first(from_us, to_us) | self._begin()

    def _begin(self) -> Cursor:
        return {"list": 0, "offset": 0, "queue": []}

    def at_cursor(self, cursor: Cursor, now_us: int) -> Cursor:
        return window.opened(cursor, now_us, int(self.settings.lag_s * 1e6), int(self.settings.overlap_s * 1e6))

    def past(self, cursor: Cursor, now_us: int) -> Past | None:
        """Return the next message, page or list: each is asked for on its own, and what is gone past is asked for again later."""
        opened = self.at_cursor(cursor, now_us)
        if opened["queue"]:
            further = opened | {"queue": opened["queue"][1:]}
        elif opened["offset"] + 2 * count <= reach_max:
            further = opened | {"offset": opened["offset"] + count}
        elif opened["list"] + 1 < len(self.lists):
            further = opened | {"list": opened["list"] + 1, "offset": 0}
        else:
            further = window.closed(opened, now_us, 0)[0] | self._begin()
        return Past(further, opened["from"], opened["to"])

    def request(self, cursor: Cursor, now_us: int) -> Call:
        headers = {"x-postmark-server-token": self.settings.server_token, "accept": "application/json"}
        if cursor["queue"]:
            return Call(url=f"{self.url}/messages/outbound/{quote(cursor['queue'][0], safe='')}/details", headers=headers)
        params = {"count": str(count), "offset": str(cursor["offset"])}
        if self.settings.stream:
            params["messagestream"] = self.settings.stream
        return Call(url=f"{self.url}{LISTS[self.lists[cursor['list']]][0]}?{urlencode(params)}", headers=headers)

    def read(self, answer: Answer, cursor: Cursor, now_us: int) -> Page:
        body = decoded(answer, self.label)
        if cursor["queue"]:
            return self._details(body, cursor, now_us)
        what = self.lists[cursor["list"]]
        _, name, time_name, record = LISTS[what]
        items = list_in(body, name, self.label)
        oldest_us = min((iso_us(item.get(time_name)) for item in items if isinstance(item, dict)), default=0)
        from_us = cursor["lo"] - (self.settings.settle_days * 86_400_000_000 if what == "messages" else 0)
        wanted = [item for item in items if not isinstance(item, dict) or from_us <= iso_us(item.get(time_name)) < cursor["to"]]
        found, bad, queue = [], [], []
        if what == "messages":
            queue = [text(item.get("MessageID")) for item in wanted if isinstance(item, dict) and text(item.get("MessageID"))]
        else:
            found, bad = self.read_items([self._said(item, record) for item in wanted], now_us)
        ended = len(items) < count or oldest_us < from_us
        beyond = cursor["offset"] + 2 * count > reach_max
        if not ended and beyond:
            said = f"Postmark shows no more than {reach_max} {what}: those before the last of them are missing. Poll more often"
            bad.append(Bad(0, "out_of_reach", said, msgspec.json.encode({"list": what, "from_us": from_us, "to_us": oldest_us})))
        after = (
            cursor
            | {"queue": queue}
            | ({"list": cursor["list"] + 1, "offset": 0} if ended or beyond else {"offset": cursor["offset"] + count})
        )
        return self._turned(found, bad, after, now_us)

    def _turned(self, found: list[Found], bad: list[Bad], after: Cursor, now_us: int) -> Page:
        if after["queue"] or after["list"] < len(self.lists):
            return Page(found, after, True, bad)
        closed, more = window.closed(after, now_us, int(self.settings.lag_s * 1e6))
        return Page(found, closed | self._begin(), more, bad, known_us=after["to"])

    def _said(self, item: object, record: str) -> object:
        """Return an item as the webhook would have said it."""
        if not isinstance(item, dict):
            return item
        complaint = record == "Bounce" and item.get("Type") == "SpamComplaint"
        return {**item, "RecordType": "SpamComplaint" if complaint else record}

    def _details(self, body: dict, cursor: Cursor, now_us: int) -> Page:
        """Read a message's deliveries; the rest of its life is in the other lists."""
        items = []
        for event in list_in(body, "MessageEvents", self.label):
            if (
                isinstance(event, dict)
                and event.get("Type") == "Delivered"
                and cursor["lo"] <= iso_us(event.get("ReceivedAt")) < cursor["to"]
            ):
                about = {name: body[name] for name in ("MessageID", "Tag", "Metadata", "MessageStream") if name in body}
                said = {"Recipient": event.get("Recipient"), "DeliveredAt": event.get("ReceivedAt")}
                items.append({"RecordType": "Delivery", **about, **said, "Details": text(sub(event, "Details").get("DeliveryMessage"))})
        found, bad = self.read_items(items, now_us)
        return self._turned(found, bad, cursor | {"queue": cursor["queue"][1:]}, now_us)

    def again(self, raw: bytes) -> list[Found]:
        return read_again(self, raw)


EXAMPLES = PostmarkEvents.EXAMPLES = (
    {
        "title": "Opens",
        "settings": {"server_token": "t"},
        "cursor": {"from": 1_763_999_900_000_000, "lo": 1_763_999_900_000_000, "to": 1_764_000_300_000_000, "end": 0, "slice": 1_000_000,
                   "list": 1, "offset": 0, "queue": []},
        "url": "https://api.postmarkapp.com/messages/outbound/opens?count=500&offset=0",
        "answer": {
            "TotalCount": 1,
            "Opens": [
                {
                    "RecordType": "Open", "FirstOpen": True, "UserAgent": "Mozilla/5.0 (X11; Linux x86_64)", "Tag": "spring",
                    "MessageID": "00000000-0000-4000-8000-000000000001", "MessageStream": "broadcast", "Metadata": {"variant": "B"},
                    "ReceivedAt": "2025-11-24T16:00:00.1234567Z", "Recipient": "ada@example.com", "Geo": {"IP": "203.0.113.9"},
                }
            ],
        },
        "events": [
            {
                "kind": "opened", "recipient": "ada@example.com", "message_id": "00000000-0000-4000-8000-000000000001",
                "campaign": "spring", "variant": "B", "occurred_at_us": 1764000000123456,
            }
        ],
    },
)  # fmt: skip
