"""Way `meta_audience`."""

from __future__ import annotations

import hashlib
from typing import Annotated, ClassVar
from urllib.parse import urlencode

import msgspec

from . import way
from ._audience import ADD, Audience, Fields, email_hash, phone_hash
from .way import Action, Answer, Call, Outcome, at, decoded, text_at, unsettled


class Settings(way.Settings, kw_only=True):
    access_token: str  # of a system user with `ads_management`
    version: Annotated[str, msgspec.Meta(pattern=r"^v\d+\.\d+$")] = "v25.0"  # of the Graph API
    url: str = "https://graph.facebook.com"


class MetaAudience(Audience):
    """`POST` and `DELETE /{audience}/users` (https://developers.facebook.com/docs/marketing-api/reference/custom-audience/users).

    Meta answers most errors with 400 and a code: 190 is a token that has expired, 4, 17, 32, 613 and 80000 to 80014 are its limits, 1 and 2
    pass (https://developers.facebook.com/docs/marketing-api/error-reference). It says how many entries were wrong and not always which.
    """

    label: ClassVar[str] = "Meta custom audience"
    doc: ClassVar[str] = "Puts people into a custom audience of Facebook and Instagram, or takes them out; only hashes leave."
    Settings = Settings
    Fields = Fields

    def calls(self, actions: list[Action], now_us: int) -> Call:
        said = [self.said(action) for action in actions]
        data = [
            [email_hash(fields.email or action.recipient), phone_hash(fields.phone, plus=False)]
            for action, fields in zip(actions, said, strict=True)
        ]
        session = int.from_bytes(hashlib.sha256(actions[0].id.encode()).digest()[:7])
        form = {
            "payload": msgspec.json.encode({"schema": ["EMAIL", "PHONE"], "data": data}).decode(),
            "session": msgspec.json.encode(
                {"session_id": session, "batch_seq": 1, "last_batch_flag": True, "estimated_num_total": len(data)}
            ).decode(),
            "access_token": self.settings.access_token,
        }
        audience = said[0].audience
        if not audience.isdigit():
            raise msgspec.ValidationError(f"an audience's id at Meta is a number, got {audience[:40]!r}")
        method = "POST" if said[0].do == "add" else "DELETE"
        url = f"{self.settings.url}/{self.settings.version}/{audience}/users"
        headers = {"content-type": "application/x-www-form-urlencoded"}
        return Call(method=method, url=url, headers=headers, body=urlencode(form).encode(), idempotent=True)

    def outcomes(self, actions: list[Action], answer: Answer) -> list[Outcome]:
        body = decoded(answer.body)
        code = text_at(body, "error", "code")
        if code:
            # An error comes under 400 as a rule, and under 200 as well.
            detail = text_at(body, "error", "error_user_msg") or text_at(body, "error", "message")
            return [Outcome(kind=_meaning(code), code=code, detail=detail)] * len(actions)
        received = at(body, "num_received")
        if answer.status == 200 and received == len(actions):
            wrong = at(body, "num_invalid_entries")
            detail = f"{wrong} of {received} could not be read" if isinstance(wrong, int) and wrong else ""
            return [Outcome(kind="sent", message_id=text_at(body, "session_id"), detail=detail)] * len(actions)
        return unsettled(actions, answer)

    def undone(self, answer: Answer) -> Outcome:
        (outcome,) = self.outcomes([ADD[0]], answer)
        return outcome

    EXAMPLES = (
        {
            "settings": {"access_token": "EAAB"},
            "actions": ADD,
            "url": "https://graph.facebook.com/v25.0/1234/users",
            "headers": {"content-type": "application/x-www-form-urlencoded"},
            "said": [email_hash("ada@example.com"), email_hash("bob@example.com")],
            "answers": [
                (
                    {"status": 200, "body": '{"audience_id":"1234","session_id":"9","num_received":2,"num_invalid_entries":0}'},
                    [{"kind": "sent", "message_id": "9"}] * 2,
                ),
                ({"status": 200, "body": '{"num_received":2,"num_invalid_entries":1}'}, [{"kind": "sent"}] * 2),
                ({"status": 200, "body": '{"error":{"code":80003,"message":"slow"}}'}, [{"kind": "later", "code": "80003"}] * 2),
                ({"status": 400, "body": '{"error":{"code":190,"message":"expired"}}'}, [{"kind": "later", "code": "190"}] * 2),
                ({"status": 400, "body": '{"error":{"code":100,"message":"Invalid parameter"}}'}, [{"kind": "refused", "code": "100"}] * 2),
                ({"status": 200, "body": "{"}, [{"kind": "unknown"}] * 2),
                ({"status": 500}, [{"kind": "unknown", "code": "500"}] * 2),
            ],
        },
    )


_LATER = {"1", "2", "4", "17", "32", "102", "190", "613"} | {str(code) for code in range(80000, 80015)}


def _meaning(code: str) -> str:
    return "later" if code in _LATER else "refused"


PLUGIN = MetaAudience
