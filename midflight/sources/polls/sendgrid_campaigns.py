"""Poll `sendgrid_campaigns`: what SendGrid knows of its Single Sends."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from ..source import Malformed, as_dict, iso_us, sub, text, texts
from . import poll
from ._auth import checked_url, same_place
from ._campaigns import described
from .mailchimp import read_each
from .poll import Answer, Call, Cursor, Found, HttpPoll, Page, Unreadable, decoded, list_in

page_size = 100


class Settings(poll.Settings, kw_only=True, frozen=True):
    api_key: str  # with the permission to read Marketing
    url: str = "https://api.sendgrid.com"  # https://api.eu.sendgrid.com for a subuser in the EU
    every_s: Annotated[float, msgspec.Meta(ge=1)] = 900.0


class SendGridCampaigns(HttpPoll):
    """`GET /v3/marketing/singlesends` (https://www.twilio.com/docs/sendgrid/api-reference/single-sends/get-all-single-sends).

    All are read at each look, page by page (`_metadata.next`), and those that have changed are said. A Single Send is the campaign of the
    webhook's `singlesend_name`, so what is known here belongs to what is counted there.
    """

    label: ClassVar[str] = "SendGrid campaigns"
    doc: ClassVar[str] = "Name, status, categories and times of Single Sends, as events about the campaign."
    docs_url: ClassVar[str] = "https://www.twilio.com/docs/sendgrid/api-reference/single-sends/get-all-single-sends"
    Settings = Settings

    def __init__(self, settings: Settings, *, name: str, source=None) -> None:
        super().__init__(settings, name=name, source=source)
        self.url = checked_url(settings.url, f"$.polls.{name}.url")

    def first_cursor(self, now_us: int) -> Cursor:
        return {"next": ""}

    def request(self, cursor: Cursor, now_us: int) -> Call:
        url = cursor["next"] or f"{self.url}/v3/marketing/singlesends?page_size={page_size}"
        return Call(url=url, headers={"authorization": f"Bearer {self.settings.api_key}"})

    def read(self, answer: Answer, cursor: Cursor, now_us: int) -> Page:
        body = decoded(answer, self.label)
        found, bad = read_each(list_in(body, "result", self.label), send_of)
        further = text(sub(body, "_metadata").get("next"))
        if further and (not same_place(further, self.url) or further == cursor["next"]):
            raise Unreadable(f"{self.label}: the next page is elsewhere, or this one", got=further[:200])
        return Page(found, {"next": further}, bool(further), bad, known_us=0 if further else now_us)

    def again(self, raw: bytes) -> list[Found]:
        return [send_of(msgspec.json.decode(raw))]


def send_of(item: object) -> Found:
    item = as_dict(item)
    number = text(item.get("id"))
    if not number:
        raise Malformed("A Single Send without `id`: the schema may have changed", got=", ".join(sorted(item))[:100])
    about = {
        "id": number, "status": text(item.get("status")), "categories": texts(item.get("categories")), "sent_at": text(item.get("send_at")),
        "created_at": text(item.get("created_at")), "updated_at": text(item.get("updated_at")), "ab_test": item.get("is_abtest") is True,
    }  # fmt: skip
    return described(text(item.get("name")) or number, number, iso_us(item.get("updated_at")), about)


PLUGIN = SendGridCampaigns
EXAMPLES = SendGridCampaigns.EXAMPLES = (
    {
        "title": "A Single Send",
        "settings": {"api_key": "SG.x"},
        "cursor": {"next": ""},
        "url": "https://api.sendgrid.com/v3/marketing/singlesends?page_size=100",
        "answer": {
            "result": [
                {
                    "id": "27c21bbf-a12c-440b-b8bf-c526975328ca", "name": "spring", "status": "scheduled", "categories": ["news"],
                    "send_at": "2025-11-25T08:00:00Z", "is_abtest": False, "created_at": "2025-11-20T10:00:00Z",
                    "updated_at": "2025-11-24T16:00:00Z",
                }
            ],
            "_metadata": {"self": "https://api.sendgrid.com/v3/marketing/singlesends?page_token=1", "count": 1},
        },
        "events": [{"kind": "identified", "name": "campaign described", "campaign": "spring", "occurred_at_us": 1764000000000000}],
    },
)  # fmt: skip
