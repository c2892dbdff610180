"""Way `email`."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from . import way
from .way import EXAMPLE, LocalWay, Text


class Settings(way.Settings, kw_only=True):
    channel: str = ""  # the channel that sends it, where a rule names none
    from_address: str = ""  # who it is from, where a rule does not say
    from_name: str = ""
    reply_to: str = ""


class Fields(way.Fields, kw_only=True):
    subject: Annotated[str, Text("line", 1000)]
    html: Annotated[str, Text("plain", 500_000)] = ""  # the body: one of `html` and `mjml`, or `text` alone
    mjml: Annotated[str, Text("plain", 500_000)] = ""
    text: Annotated[str, Text("plain", 500_000)] = ""  # made of the HTML where it is left out
    preheader: Annotated[str, Text("line", 1000)] = ""  # what a list of messages shows behind the subject
    from_address: Annotated[str, Text("fixed", 320)] = ""
    from_name: Annotated[str, Text("line", 200)] = ""
    reply_to: Annotated[str, Text("fixed", 320)] = ""
    channel: Annotated[str, Text("fixed", 100)] = ""  # the configured channel that sends it
    campaign: Annotated[str, Text("fixed", 100)] = ""  # under which name it is counted: `Follow-up: RULE` where it is left out
    footer: Annotated[str, Text("fixed", 200)] = "Unsubscribe"  # text of the link below a body that has none


class Email(LocalWay):
    """A follow-up email, by a channel as campaigns go (act/follow_up.py): with its link to unsubscribe, to nobody who is suppressed, within
    `sending.recipient_per_day`, and counted as a campaign of the rule's own with its versions as variants.
    """

    label: ClassVar[str] = "Follow-up email"
    reaches_people: ClassVar[bool] = True
    doc: ClassVar[str] = (
        "An email by one of the channels, counted under a campaign of the rule's own. There is always a way `email`; it need not be "
        "configured. It cannot be taken back."
    )
    Settings = Settings
    Fields = Fields

    EXAMPLES = (
        {
            "settings": {"channel": "main", "from_address": "news@shop.example"},
            "actions": [
                msgspec.structs.replace(
                    EXAMPLE, fields={"subject": "Still thinking about it?", "text": "Hello {{ first_name | default: 'there' }}"}
                )
            ],
            "answers": [],
        },
    )


PLUGIN = Email
