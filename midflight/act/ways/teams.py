"""Way `teams`."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from ...events import clean
from . import way
from .way import EXAMPLE, Action, Answer, Call, Outcome, Text, Way, json_call, unsettled


class Settings(way.Settings, kw_only=True):
    url: str  # of a workflow "When a Teams webhook request is received", or of an older incoming webhook. It is a secret
    per_second: Annotated[float, msgspec.Meta(gt=0)] = 1.0  # Teams throttles beyond a few a second
    connections: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1


class Fields(way.Fields, kw_only=True):
    text: Annotated[str, Text("plain", 8000)]  # the message; Teams takes 28 kB
    title: Annotated[str, Text("line", 200)] = ""  # a line in bold above it
    link: Annotated[str, Text("url", 2000)] = ""  # where a button below the message leads
    link_text: Annotated[str, Text("line", 75)] = "Open"  # what the button says


class Teams(Way):
    """An adaptive card to a workflow of Teams
    (https://learn.microsoft.com/en-us/microsoftteams/platform/webhooks-and-connectors/how-to/add-incoming-webhook).

    A workflow answers 202 and posts later; the older connector answers 200 with ``1``, or 200 with the error of what stands behind it.
    Neither has an idempotency key. Text stands in ``TextRun``s, which know no markdown, so that a value makes no link
    (https://adaptivecards.io/explorer/TextRun.html).
    """

    label: ClassVar[str] = "Microsoft Teams"
    doc: ClassVar[str] = "A card in a channel or chat, by a workflow of Teams. It cannot be taken back."
    Settings = Settings
    Fields = Fields

    def calls(self, actions: list[Action], now_us: int) -> Call:
        (action,) = actions
        fields: Fields = self.said(action)
        body = [_lines(fields.title, weight="Bolder")] if fields.title else []
        body.append(_lines(fields.text))
        card = {"$schema": "http://adaptivecards.io/schemas/adaptive-card.json", "type": "AdaptiveCard", "version": "1.4", "body": body}
        if fields.link:
            card["actions"] = [{"type": "Action.OpenUrl", "title": fields.link_text or "Open", "url": fields.link}]
        attached = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
        return json_call(self.settings.url, {"type": "message", "attachments": [attached]})

    def outcomes(self, actions: list[Action], answer: Answer) -> list[Outcome]:
        said = clean(answer.body[:300].decode("utf-8", "replace")).strip()
        if answer.status == 202 or (answer.status == 200 and said in ("", "1")):
            return [Outcome(kind="sent", code=str(answer.status))] * len(actions)
        if answer.status == 200 and "429" in said:
            # The connector passes on that Teams throttles, under a status that says otherwise.
            return [Outcome(kind="later", code="429", detail=said)] * len(actions)
        if answer.status in (400, 404, 410):
            # A workflow that was deleted or turned off.
            return [Outcome(kind="refused", code=str(answer.status), detail=said)] * len(actions)
        return unsettled(actions, answer, said)

    EXAMPLES = (
        {
            "settings": {"url": "https://prod-1.westeurope.logic.azure.com/workflows/x?sig=y"},
            "actions": [msgspec.structs.replace(EXAMPLE, fields={"text": "One [link](https://evil.example)\nTwo"})],
            "url": "https://prod-1.westeurope.logic.azure.com/workflows/x?sig=y",
            "json": {
                "type": "message",
                "attachments": [
                    {
                        "contentType": "application/vnd.microsoft.card.adaptive",
                        "contentUrl": None,
                        "content": {
                            "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                            "type": "AdaptiveCard",
                            "version": "1.4",
                            "body": [
                                {
                                    "type": "RichTextBlock",
                                    "inlines": [{"type": "TextRun", "text": "One [link](https://evil.example)\nTwo", "weight": "Default"}],
                                }
                            ],
                        },
                    }
                ],
            },
            "answers": [
                ({"status": 202}, [{"kind": "sent"}]),
                ({"status": 200, "body": "1"}, [{"kind": "sent"}]),
                (
                    {"status": 200, "body": "Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error 429"},
                    [{"kind": "later", "code": "429"}],
                ),
                ({"status": 200, "body": "Webhook message delivery failed"}, [{"kind": "unknown"}]),
                ({"status": 404, "body": "WorkflowNotFound"}, [{"kind": "refused", "code": "404"}]),
                ({"status": 429, "headers": {"retry-after": "5"}}, [{"kind": "later", "retry_s": 5.0}]),
                ({"status": 502}, [{"kind": "unknown", "code": "502"}]),
            ],
        },
    )


def _lines(text: str, weight: str = "Default") -> dict:
    return {"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": text, "weight": weight}]}


PLUGIN = Teams
