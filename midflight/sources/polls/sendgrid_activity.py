"""Poll `sendgrid_activity`: events whose webhooks never came, from SendGrid's Email Activity API."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar
from urllib.parse import quote, urlencode

import msgspec

from ..sendgrid import FEED_WORDS, OWN_KEYS
from ..source import iso_us, text
from . import _window as window
from . import poll
from ._auth import checked_url
from .mailgun_events import read_again
from .poll import Answer, Call, Cursor, Found, HttpPoll, Page, Past, Unreadable, decoded, iso_of, list_in

limit = 1000
reach_s = 3 * 86_400.0
MESSAGE = re.compile(r"[A-Za-z0-9._+=-]{1,200}")


class Settings(poll.Settings, kw_only=True, frozen=True):
    api_key: str  # with the permission "Email Activity"; the account needs the add-on for more history
    url: str = "https://api.sendgrid.com"
    every_s: Annotated[float, msgspec.Meta(ge=1)] = 3600.0
    since_days: Annotated[int, msgspec.Meta(ge=0, le=30)] = 3
    per_second: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 0.1  # SendGrid allows few calls of this API
    settle_s: Annotated[float, msgspec.Meta(ge=0)] = 26 * 3600.0  # until no webhook can come any more


class SendGridActivity(HttpPoll):
    """`GET /v3/messages` by time of the last event, then `GET /v3/messages/{msg_id}` for each
    (https://docs.sendgrid.com/for-developers/sending-email/getting-started-email-activity-api,
    https://docs.sendgrid.com/api-reference/email-activity/filter-all-messages).

    The API gives no `sg_event_id`, which is the webhook's id, so an event of the API can only be known by what it says: message, kind,
    recipient, second and link. Therefore it is read when no webhook can come any more (SendGrid tries for 24 hours), and what came by
    webhook, as the log has it, is left out. What is left gets the hash of what it says as its id, so that a repetition is one.

    A list has at most 1,000 messages and no second page: a window with more is halved. What happens to a message later moves it to a later
    window with all its events, so those of the days before the window are said as well (``reach_s``).
    """

    label: ClassVar[str] = "SendGrid activity"
    doc: ClassVar[str] = "Events that no webhook brought, a day after they happened."
    docs_url: ClassVar[str] = "https://docs.sendgrid.com/for-developers/sending-email/getting-started-email-activity-api"
    vendor: ClassVar[str] = "sendgrid"
    unknown_ids: ClassVar[bool] = True
    Settings = Settings

    def __init__(self, settings: Settings, *, name: str, source=None) -> None:
        super().__init__(settings, name=name, source=source)
        self.url = checked_url(settings.url, f"$.polls.{name}.url")

    def first_cursor(self, now_us: int) -> Cursor:
        return window.first(now_us - int(self.settings.settle_s * 1e6) - self.settings.since_days * 86_400_000_000) | {"queue": []}

    def range_cursor(self, from_us: int, to_us: int) -> Cursor:
        return window.first(from_us, to_us) | {"queue": []}

    def at_cursor(self, cursor: Cursor, now_us: int) -> Cursor:
        return window.opened(cursor, now_us, int(self.settings.settle_s * 1e6), 0)

    def past(self, cursor: Cursor, now_us: int) -> Past | None:
        opened = self.at_cursor(cursor, now_us)
        if opened["queue"]:
            return Past(opened | {"queue": opened["queue"][1:]}, opened["from"], opened["to"])
        found = window.past(opened)
        return found and found._replace(cursor=found.cursor | {"queue": []})

    def request(self, cursor: Cursor, now_us: int) -> Call:
        headers = {"authorization": f"Bearer {self.settings.api_key}"}
        if cursor["queue"]:
            return Call(url=f"{self.url}/v3/messages/{quote(cursor['queue'][0], safe='')}", headers=headers)
        begin, end = iso_of(cursor["lo"], 0), iso_of(cursor["to"] + 999_999, 0)
        query = f'last_event_time BETWEEN TIMESTAMP "{begin}" AND TIMESTAMP "{end}"'
        return Call(url=f"{self.url}/v3/messages?{urlencode({'query': query, 'limit': limit})}", headers=headers)

    def read(self, answer: Answer, cursor: Cursor, now_us: int) -> Page:
        body = decoded(answer, self.label)
        if cursor["queue"]:
            items = self._events(body, cursor, now_us)
            found, bad = self.read_items(items, now_us)
            return self._turned(found, bad, cursor | {"queue": cursor["queue"][1:]}, now_us)
        messages = list_in(body, "messages", self.label)
        if len(messages) >= limit:
            # There is no second page.
            half = window.past(cursor)
            if not half.to_us:
                return Page([], half.cursor | {"queue": []}, True)
        queue = [text(one.get("msg_id")) for one in messages if isinstance(one, dict)]
        return self._turned([], [], cursor | {"queue": [one for one in queue if MESSAGE.fullmatch(one)]}, now_us)

    def _turned(self, found: list[Found], bad: list, after: Cursor, now_us: int) -> Page:
        if after["queue"]:
            return Page(found, after, True, bad)
        closed, more = window.closed(after, now_us, int(self.settings.settle_s * 1e6))
        return Page(found, closed | {"queue": []}, more, bad, known_us=after["to"])

    def _events(self, body: dict, cursor: Cursor, now_us: int) -> list:
        """Return a message's events as the webhook says them. Raises Unreadable."""
        if text(body.get("msg_id")) != cursor["queue"][0]:
            raise Unreadable(f"{self.label}: another message than the one asked for", got=text(body.get("msg_id"))[:100])
        custom = body.get("unique_args")
        custom = {k: v for k, v in custom.items() if k not in OWN_KEYS} if isinstance(custom, dict) else {}
        about = custom | {"email": body.get("to_email"), "sg_message_id": body.get("msg_id"), "category": body.get("categories")}
        settled_us = now_us - int(self.settings.settle_s * 1e6)
        items = []
        for event in list_in(body, "events", self.label):
            at_us = iso_us(event.get("processed")) if isinstance(event, dict) else 0
            if at_us and not cursor["lo"] - int(reach_s * 1e6) <= at_us <= settled_us:
                continue
            items.append(about | as_webhook(event) if isinstance(event, dict) else event)
        return items

    def again(self, raw: bytes) -> list[Found]:
        return read_again(self, raw)


def as_webhook(event: dict) -> dict:
    said = text(event.get("event_name")).lower()
    out = {
        "timestamp": iso_us(event.get("processed")) // 1_000_000,
        "event": FEED_WORDS.get(said, said),
        "url": event.get("url"),
        "reason": event.get("reason"),
        "useragent": event.get("http_user_agent"),
        "type": {"soft": "blocked", "hard": "bounce"}.get(text(event.get("bounce_type")), ""),
    }
    return {name: value for name, value in out.items() if value}


PLUGIN = SendGridActivity
EXAMPLES = SendGridActivity.EXAMPLES = (
    {
        "title": "A message's events",
        "settings": {"api_key": "SG.x"},
        "cursor": {"from": 1_763_999_900_000_000, "lo": 1_763_999_900_000_000, "to": 1_764_000_300_000_000, "end": 0, "slice": 1_000_000,
                   "queue": ["14c5d75ce93.filter0001"]},
        "url": "https://api.sendgrid.com/v3/messages/14c5d75ce93.filter0001",
        "now_us": 1_764_100_000_000_000,
        "answer": {
            "msg_id": "14c5d75ce93.filter0001", "to_email": "ada@example.com", "categories": ["news"],
            "unique_args": {"campaign": "spring"},
            "events": [{"event_name": "click", "processed": "2025-11-24T16:00:00Z", "url": "https://shop.example/"}],
        },
        "events": [
            {
                "kind": "clicked", "recipient": "ada@example.com", "message_id": "14c5d75ce93", "campaign": "spring",
                "url": "https://shop.example/", "occurred_at_us": 1764000000000000,
            }
        ],
    },
)  # fmt: skip
