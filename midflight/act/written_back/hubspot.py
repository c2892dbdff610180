"""Way back `hubspot`: segments and engagement as properties of contacts."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import msgspec

from ...kit.errors import ConfigError
from ...sources.polls._auth import OAuth, Token, checked_url
from ...sources.polls.poll import Answer, Call, NotAllowed, decoded, trouble_of
from ...sources.source import sub, text
from . import way_back
from ._asked import accepted, asked, refusal
from .way_back import WRITTEN, Ask, Item, Outcome, WayBack


class Settings(way_back.Settings, kw_only=True, frozen=True):
    """``token`` is a private app's with the scope `crm.objects.contacts.write`, or ``oauth`` of a public app. ``values`` says which
    property takes which value: `engagement: midflight_engagement`."""

    token: str = ""
    oauth: OAuth | None = None
    segments_property: str = "midflight_segments"  # a single-line text: names with `;` between, in their order; empty: not written
    values: dict[str, str] = {}
    url: str = "https://api.hubapi.com"


class HubSpot(WayBack):
    """`POST /crm/v3/objects/contacts/batch/update` by address, 100 at a time
    (https://developers.hubspot.com/docs/api-reference/legacy/crm/objects/contacts/batch/update-contacts).

    An answer of 207 names those who are not there; nobody is made. A property that does not exist has the whole batch refused.
    """

    label: ClassVar[str] = "HubSpot"
    doc: ClassVar[str] = "Segments as one text property, values as a property each; contacts that HubSpot does not have are left alone."
    docs_url: ClassVar[str] = "https://developers.hubspot.com/docs/api-reference/legacy/crm/objects/contacts/batch/update-contacts"
    Settings = Settings
    batch_max = 100

    def __init__(self, settings: Settings, *, name: str) -> None:
        super().__init__(settings, name=name)
        if bool(settings.token) == bool(settings.oauth):
            where = f"$.ways_back.{name}.token"
            raise ConfigError(f"Way back `{name}` has no way to show who it is", expected="`token` or `oauth`", where=where)
        self.url = checked_url(settings.url, f"$.ways_back.{name}.url")
        oauth = settings.oauth
        if oauth and oauth.token_url == "hubspot":
            oauth = msgspec.structs.replace(oauth, token_url=f"{self.url}/oauth/v1/token")
        self.token = Token(oauth, settings.token, self.label)

    def call(self, items: list[Item]) -> Call:
        inputs = [{"idProperty": "email", "id": item.recipient, "properties": self._properties(item)} for item in items]
        headers = {"authorization": self.token.bearer, "content-type": "application/json"}
        body = msgspec.json.encode({"inputs": inputs})
        return Call(method="POST", url=f"{self.url}/crm/v3/objects/contacts/batch/update", headers=headers, body=body)

    def _properties(self, item: Item) -> dict[str, str]:
        properties = {theirs: as_text(item.values.get(ours)) for ours, theirs in self.settings.values.items() if ours in item.values}
        if self.settings.segments_property:
            properties[self.settings.segments_property] = ";".join(name.replace(";", ",") for name in self.of_interest(item))
        return properties

    def outcomes(self, items: list[Item], answer: Answer) -> list[Outcome]:
        found = decoded(answer, self.label)
        missing: set[str] = set()
        for error in found.get("errors") or () if isinstance(found.get("errors"), list | None) else ():
            ids = sub(error, "context").get("ids") if isinstance(error, dict) else None
            missing |= {text(one).lower() for one in ids} if isinstance(ids, list) else set()
        return [Outcome(kind="missing", why="no contact has this address") if item.recipient in missing else WRITTEN for item in items]

    def value_names(self) -> Collection[str]:
        return self.settings.values

    async def write(self, items: list[Item], ask: Ask, now_us: int) -> list[Outcome]:
        answer = await asked(self.token, lambda: self.call(items), ask, now_us)
        if not 200 <= answer.status < 300:
            if answer.status == 400 and b"does not exist" in answer.body:
                problem = trouble_of(answer, self.label)
                raise NotAllowed(
                    "HubSpot does not have a property", got=problem.got, todo="Make it, or change `values` and `segments_property`"
                )
            raise refusal(answer, self.label)
        with accepted(self.label):
            return self.outcomes(items, answer)


def as_text(value: object) -> str:
    """Return a value as HubSpot takes it; nothing clears the property."""
    if value is None:
        return ""
    return ("true" if value else "false") if isinstance(value, bool) else text(value) or msgspec.json.encode(value).decode()


PLUGIN = HubSpot
