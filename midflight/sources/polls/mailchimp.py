"""Poll `mailchimp`: what Mailchimp knows of its campaigns."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar
from urllib.parse import urlencode

import msgspec

from ...events import Bad
from ...kit.errors import ConfigError
from ..source import Malformed, as_dict, encode_json, iso_us, sub, text
from . import poll
from ._auth import basic, checked_url
from ._campaigns import described
from .poll import Answer, Call, Cursor, Found, HttpPoll, Page, decoded, iso_of, list_in

count = 100
FIELDS = "campaigns.id,campaigns.type,campaigns.status,campaigns.create_time,campaigns.send_time,campaigns.emails_sent,campaigns.settings,"


class Settings(poll.Settings, kw_only=True, frozen=True):
    api_key: str  # ends with the data centre: `...-us6`
    url: str = ""  # empty: https://DATACENTRE.api.mailchimp.com
    every_s: Annotated[float, msgspec.Meta(ge=1)] = 900.0
    since_days: Annotated[int, msgspec.Meta(ge=0, le=36_500)] = 90  # campaigns made before that are not looked at any more


class Mailchimp(HttpPoll):
    """`GET /3.0/campaigns` (https://mailchimp.com/developer/marketing/api/campaigns/list-campaigns/,
    https://mailchimp.com/developer/guides/marketing-api-conventions/).

    Campaigns cannot be asked for by time of change, so all of the last ``since_days`` are read at each look, latest first, and those that
    have changed are said. One that is made meanwhile shifts others to a later page, where they are met twice; one that is deleted may
    hide another until the next look. Ten calls at a time are allowed; here there is one.
    """

    label: ClassVar[str] = "Mailchimp campaigns"
    doc: ClassVar[str] = "Title, subject, audience, status and times of campaigns, as events about the campaign."
    docs_url: ClassVar[str] = "https://mailchimp.com/developer/marketing/api/campaigns/list-campaigns/"
    Settings = Settings

    def __init__(self, settings: Settings, *, name: str, source=None) -> None:
        super().__init__(settings, name=name, source=source)
        centre = re.fullmatch(r"[A-Za-z0-9]+-([a-z]{2}\d{1,3})", settings.api_key)
        if not settings.url and not centre:
            raise ConfigError(f"Poll `{name}`: the key does not say its data centre", expected="`...-us6`", where=f"$.polls.{name}.api_key")
        self.url = checked_url(settings.url or f"https://{centre[1]}.api.mailchimp.com", f"$.polls.{name}.url")

    def first_cursor(self, now_us: int) -> Cursor:
        return {"offset": 0}

    def request(self, cursor: Cursor, now_us: int) -> Call:
        since_us = now_us // 86_400_000_000 * 86_400_000_000 - self.settings.since_days * 86_400_000_000
        params = {
            "count": count, "offset": cursor["offset"], "sort_field": "create_time", "sort_dir": "DESC",
            "since_create_time": iso_of(since_us, 0), "fields": FIELDS + "campaigns.recipients,campaigns.variate_settings,total_items",
        }  # fmt: skip
        headers = {"authorization": basic("midflight", self.settings.api_key)}
        return Call(url=f"{self.url}/3.0/campaigns?{urlencode(params)}", headers=headers)

    def read(self, answer: Answer, cursor: Cursor, now_us: int) -> Page:
        items = list_in(decoded(answer, self.label), "campaigns", self.label)
        found, bad = read_each(items, campaign_of)
        if len(items) >= count:
            return Page(found, {"offset": cursor["offset"] + count}, True, bad)
        return Page(found, {"offset": 0}, False, bad, known_us=now_us)

    def again(self, raw: bytes) -> list[Found]:
        return [campaign_of(msgspec.json.decode(raw))]


def read_each(items: list, read) -> tuple[list[Found], list[Bad]]:
    """Read items one by one; one that cannot be read is set aside and stops no other."""
    found, bad = [], []
    for index, item in enumerate(items):
        try:
            found.append(read(item))
        except Malformed as error:
            bad.append(Bad(index, error.code, error.text()[:500], encode_json(item)[:100_000]))
    return found, bad


def campaign_of(item: object) -> Found:
    item = as_dict(item)
    number, settings, recipients = text(item.get("id")), sub(item, "settings"), sub(item, "recipients")
    if not number:
        raise Malformed("A campaign without `id`: the schema may have changed", got=", ".join(sorted(item))[:100])
    about = {
        "id": number, "type": text(item.get("type")), "status": text(item.get("status")), "subject": text(settings.get("subject_line")),
        "preview": text(settings.get("preview_text")), "from_name": text(settings.get("from_name")),
        "reply_to": text(settings.get("reply_to")),
        "audience": text(recipients.get("list_name")), "recipients": recipients.get("recipient_count"),
        "created_at": text(item.get("create_time")), "sent_at": text(item.get("send_time")),
        "variants": sub(item, "variate_settings").get("subject_lines"),
    }  # fmt: skip
    at_us = iso_us(item.get("send_time")) or iso_us(item.get("create_time"))
    return described(text(settings.get("title")) or number, number, at_us, about)


EXAMPLES = Mailchimp.EXAMPLES = (
    {
        "title": "A campaign that was sent",
        "settings": {"api_key": "0123456789abcdef-us6"},
        "cursor": {"offset": 0},
        "now_us": 1_764_000_000_000_000,
        "url": "https://us6.api.mailchimp.com/3.0/campaigns?"
        + urlencode(
            {
                "count": 100, "offset": 0, "sort_field": "create_time", "sort_dir": "DESC", "since_create_time": "2025-08-26T00:00:00Z",
                "fields": FIELDS + "campaigns.recipients,campaigns.variate_settings,total_items",
            }
        ),
        "answer": {
            "campaigns": [
                {
                    "id": "42694e9e57", "type": "regular", "status": "sent", "create_time": "2025-11-23T10:00:00+00:00",
                    "send_time": "2025-11-24T16:00:00+00:00", "settings": {"title": "spring", "subject_line": "Two days left"},
                    "recipients": {"list_name": "Customers", "recipient_count": 1000},
                }
            ],
            "total_items": 1,
        },
        "events": [{"kind": "identified", "name": "campaign described", "campaign": "spring", "occurred_at_us": 1764000000000000}],
    },
)  # fmt: skip
