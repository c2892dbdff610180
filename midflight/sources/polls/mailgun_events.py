"""Poll `mailgun_events`: events whose webhooks never came, from Mailgun's Events API."""

from __future__ import annotations

from typing import Annotated, ClassVar
from urllib.parse import quote, urlencode

import msgspec

from ...kit.errors import ConfigError
from ..source import text
from . import _window as window
from . import poll
from ._auth import basic, checked_url, same_place
from .poll import Answer, Call, Cursor, Found, HttpPoll, Page, Past, Unreadable, decoded, list_in

limit = 300


class Settings(poll.Settings, kw_only=True, frozen=True):
    api_key: str
    domain: str
    url: str = "https://api.mailgun.net"  # https://api.eu.mailgun.net for domains in the EU
    events: str = ""  # only these, joined with ` OR `; empty: all
    every_s: Annotated[float, msgspec.Meta(ge=1)] = 300.0
    since_days: Annotated[int, msgspec.Meta(ge=0, le=30)] = 3
    lag_s: Annotated[float, msgspec.Meta(ge=0)] = 1800.0


class MailgunEvents(HttpPoll):
    """`GET /v3/{domain}/events` (https://documentation.mailgun.com/docs/mailgun/user-manual/events, "Event Polling").

    Events reach Mailgun's storage out of order, so what is younger than half an hour is not asked for: they say that a page is complete
    only when its events are older than some threshold, half an hour being safe. A page leads to the next by `paging.next` until one is
    empty. An item is a webhook's `event-data`, with the same `id`: read by the same code, it is the same event under the same id.
    """

    label: ClassVar[str] = "Mailgun events"
    doc: ClassVar[str] = "All events of a domain, half an hour after they happened, under the ids of the webhooks."
    docs_url: ClassVar[str] = "https://documentation.mailgun.com/docs/mailgun/user-manual/events"
    vendor: ClassVar[str] = "mailgun"
    Settings = Settings

    def __init__(self, settings: Settings, *, name: str, source=None) -> None:
        super().__init__(settings, name=name, source=source)
        self.url = checked_url(settings.url, f"$.polls.{name}.url")
        if not settings.domain or "/" in settings.domain:
            raise ConfigError(f"Poll `{name}`: not a domain", got=settings.domain, where=f"$.polls.{name}.domain")

    def first_cursor(self, now_us: int) -> Cursor:
        return window.first(now_us - self.settings.since_days * 86_400_000_000) | {"next": ""}

    def range_cursor(self, from_us: int, to_us: int) -> Cursor:
        return window.first(from_us, to_us) | {"next": ""}

    def at_cursor(self, cursor: Cursor, now_us: int) -> Cursor:
        return window.opened(cursor, now_us, int(self.settings.lag_s * 1e6), 0)

    def past(self, cursor: Cursor, now_us: int) -> Past | None:
        found = window.past(self.at_cursor(cursor, now_us))
        return found and found._replace(cursor=found.cursor | {"next": ""})

    def request(self, cursor: Cursor, now_us: int) -> Call:
        headers = {"authorization": basic("api", self.settings.api_key)}
        if cursor["next"]:
            return Call(url=cursor["next"], headers=headers)
        params = {"begin": f"{cursor['lo'] / 1e6:.6f}", "end": f"{cursor['to'] / 1e6:.6f}", "ascending": "yes", "limit": str(limit)}
        if self.settings.events:
            params["event"] = self.settings.events
        return Call(url=f"{self.url}/v3/{quote(self.settings.domain)}/events?{urlencode(params)}", headers=headers)

    def read(self, answer: Answer, cursor: Cursor, now_us: int) -> Page:
        body = decoded(answer, self.label)
        items = list_in(body, "items", self.label)
        found, bad = self.read_items(items, now_us)
        if items:
            paging = body.get("paging")
            further = text(paging.get("next")) if isinstance(paging, dict) else ""
            if not same_place(further, self.url) or further == cursor["next"]:
                raise Unreadable(f"{self.label}: the next page is elsewhere, or this one", got=further[:200])
            return Page(found, cursor | {"next": further}, True, bad)
        after, more = window.closed(cursor, now_us, int(self.settings.lag_s * 1e6))
        return Page(found, after | {"next": ""}, more, bad, known_us=cursor["to"])

    def again(self, raw: bytes) -> list[Found]:
        return read_again(self, raw)


def read_again(poll: HttpPoll, raw: bytes) -> list[Found]:
    """Read a vendor's item that was set aside once more. Raises Unreadable."""
    found, bad = poll.read_items([msgspec.json.decode(raw)], 0)
    if bad:
        raise Unreadable(bad[0].detail)
    return found


EXAMPLES = MailgunEvents.EXAMPLES = (
    {
        "title": "A delivery; its webhook would have the same id",
        "settings": {"api_key": "key-x", "domain": "mail.shop.example"},
        "cursor": {"from": 1_764_000_000_000_000, "lo": 1_764_000_000_000_000, "to": 1_764_000_300_000_000, "end": 0, "slice": 1_000_000,
                   "next": ""},
        "url": "https://api.mailgun.net/v3/mail.shop.example/events?begin=1764000000.000000&end=1764000300.000000&ascending=yes&limit=300",
        "answer": {
            "items": [
                {
                    "event": "delivered", "id": "Ase7i2zsRYeDXztHGENqRA", "timestamp": 1764000000.25, "recipient": "ada@example.com",
                    "message": {"headers": {"message-id": "20251124.1@shop.example"}}, "user-variables": {"campaign": "spring"}, "tags": [],
                }
            ],
            "paging": {"next": "https://api.mailgun.net/v3/mail.shop.example/events/W3siYSI6"},
        },
        "events": [
            {
                "kind": "delivered", "recipient": "ada@example.com", "event_id": "2025-11-24:Ase7i2zsRYeDXztHGENqRA", "campaign": "spring",
                "message_id": "<20251124.1@shop.example>", "occurred_at_us": 1764000000250000,
            }
        ],
    },
)  # fmt: skip
