"""Way `on_site`."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

import msgspec

from ...kit.errors import ConfigError, MidflightError
from ..guarded import url_problem
from . import way
from ._site_id import secret_chars_min
from .way import EXAMPLE, Action, LocalWay, Text

_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")


class Settings(way.Settings, kw_only=True):
    secrets: tuple[str, ...] = ()  # sign the ids of visitors, the newest first; without one the door serves nothing to pages
    origins: tuple[str, ...] = ()  # the sites that may show messages: https://shop.example

    def __post_init__(self) -> None:
        for secret in self.secrets:
            if len(secret) < secret_chars_min:
                raise ConfigError("A secret of the site", expected=f"at least {secret_chars_min} characters", where="secrets")
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError("An origin", expected="https://HOST, in lower case, without a path", got=origin[:100], where="origins")


class Fields(way.Fields, kw_only=True):
    title: Annotated[str, Text("line", 120)]  # the first line
    body: Annotated[str, Text("plain", 1000)] = ""  # and what stands below
    link: Annotated[str, Text("url", 1000)] = ""  # where its button leads
    link_text: Annotated[str, Text("line", 60)] = ""  # what the button says
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 5  # of several that wait the higher is shown first


class OnSite(LocalWay):
    """A message that waits here for a recipient's next visit: ``_site_queue.py`` says what a browser is shown, ``_site_id.py`` who it is,
    and ``_on_site.js`` shows it. It expires with its action; a withdrawn one disappears from pages that are open.
    """

    label: ClassVar[str] = "On-site message"
    reaches_people: ClassVar[bool] = True
    doc: ClassVar[str] = "A message on the site's own pages, shown while a recipient is there or when he comes next."
    undoes: ClassVar[str] = "the message is withdrawn, also from pages that are open; closed or clicked, it has been seen"
    Settings = Settings
    Fields = Fields

    def body(self, action: Action) -> dict[str, object]:
        """Return what is kept of a message. Raises MidflightError."""
        fields: Fields = self.said(action)
        if not action.recipient:
            raise MidflightError("A message for nobody", expected="a recipient", where="recipient")
        # The script that shows it opens nothing but the web.
        if fields.link and (problem := url_problem(fields.link, http=True, ports=None)):
            raise MidflightError("A link", expected=problem, got=fields.link[:100], where="link")
        return msgspec.to_builtins(fields)

    SETTINGS: ClassVar = {"secrets": ["a secret that only the site knows"], "origins": ["https://shop.example"]}
    EXAMPLES = ({"settings": SETTINGS, "actions": [msgspec.structs.replace(EXAMPLE, fields={"title": "Two days left"})], "answers": []},)


PLUGIN = OnSite
