"""Way `slack`."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from ...events import clean
from . import way
from .way import EXAMPLE, Action, Answer, Call, Outcome, Text, Way, json_call, unsettled


class Settings(way.Settings, kw_only=True):
    url: str  # of an incoming webhook of a Slack app: https://hooks.slack.com/services/... It is a secret
    per_second: Annotated[float, msgspec.Meta(gt=0)] = 1.0  # Slack takes one message a second
    connections: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1


class Fields(way.Fields, kw_only=True):
    text: Annotated[str, Text("plain", 3000)]  # the message; `*bold*` and `_italic_` work, mentions and markup of values do not
    link: Annotated[str, Text("url", 2000)] = ""  # where a button below the message leads
    link_text: Annotated[str, Text("line", 75)] = "Open"  # what the button says


_ESCAPED = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


class Slack(Way):
    """An incoming webhook (https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks).

    Slack has no idempotency key: a call whose answer never came is unknown. Its errors are words in the body
    (https://api.slack.com/changelog/2016-05-17-changes-to-errors-for-incoming-webhooks). ``<!channel>`` and links in values are inert
    because the three characters that make them are escaped (https://docs.slack.dev/messaging/formatting-message-text#escaping).
    """

    label: ClassVar[str] = "Slack"
    doc: ClassVar[str] = "A message in one channel of a workspace, by an incoming webhook. It cannot be taken back."
    Settings = Settings
    Fields = Fields

    def calls(self, actions: list[Action], now_us: int) -> Call:
        (action,) = actions
        fields: Fields = self.said(action)
        text = fields.text.translate(_ESCAPED)
        blocks: list[dict] = [{"type": "section", "text": {"type": "mrkdwn", "text": text}}]
        if fields.link:
            label = {"type": "plain_text", "text": fields.link_text or "Open"}
            blocks.append({"type": "actions", "elements": [{"type": "button", "text": label, "url": fields.link}]})
        return json_call(self.settings.url, {"text": text, "blocks": blocks})

    def outcomes(self, actions: list[Action], answer: Answer) -> list[Outcome]:
        said = clean(answer.body[:100].decode("utf-8", "replace")).strip()
        if answer.status == 200:
            return [Outcome(kind="sent") if said == "ok" else Outcome(kind="unknown", code="200", detail=said)] * len(actions)
        if answer.status == 403:
            # The workspace does not let this webhook write: waiting does not mend it.
            return [Outcome(kind="refused", code=said or "403", detail="The workspace forbids it")] * len(actions)
        return unsettled(actions, answer, said)

    EXAMPLES = (
        {
            "settings": {"url": "https://hooks.slack.com/services/T0/B0/x"},
            "actions": [msgspec.structs.replace(EXAMPLE, fields={"text": "Bounces at <gmail> & others", "link": "https://m.example/g"})],
            "url": "https://hooks.slack.com/services/T0/B0/x",
            "json": {
                "text": "Bounces at &lt;gmail&gt; &amp; others",
                "blocks": [
                    {"type": "section", "text": {"type": "mrkdwn", "text": "Bounces at &lt;gmail&gt; &amp; others"}},
                    {
                        "type": "actions",
                        "elements": [{"type": "button", "text": {"type": "plain_text", "text": "Open"}, "url": "https://m.example/g"}],
                    },
                ],
            },
            "answers": [
                ({"status": 200, "body": "ok"}, [{"kind": "sent"}]),
                ({"status": 200, "body": "<html>"}, [{"kind": "unknown", "code": "200"}]),
                ({"status": 404, "body": "channel_not_found"}, [{"kind": "refused", "code": "404", "detail": "channel_not_found"}]),
                ({"status": 403, "body": "action_prohibited"}, [{"kind": "refused", "code": "action_prohibited"}]),
                ({"status": 429, "headers": {"retry-after": "30"}}, [{"kind": "later", "code": "429", "retry_s": 30.0}]),
                ({"status": 500, "body": "rollup_error"}, [{"kind": "unknown", "code": "500"}]),
            ],
        },
    )


PLUGIN = Slack
