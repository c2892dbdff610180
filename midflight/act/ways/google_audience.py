"""Way `google_audience`."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from . import way
from ._audience import ADD, Audience, Fields, email_hash, phone_hash
from ._tokens import Token
from .way import Action, Answer, Call, Outcome, decoded, json_call, text_at, unsettled


class Settings(way.Settings, kw_only=True):
    account_id: Annotated[str, msgspec.Meta(pattern=r"^\d{1,20}$")]  # of the Google Ads account, without hyphens
    login_account_id: Annotated[str, msgspec.Meta(pattern=r"^\d{0,20}$")] = ""  # of the manager account that the credentials are for
    client_id: str  # of an OAuth client with the scope https://www.googleapis.com/auth/datamanager
    client_secret: str
    refresh_token: str  # of a user who may write to the account
    consent: bool = False  # whether people in these audiences have agreed to it: Google asks, and drops those who have not
    url: str = "https://datamanager.googleapis.com"
    token_url: str = "https://oauth2.googleapis.com/token"


class GoogleAudience(Audience):
    """`POST /v1/audienceMembers:ingest` and `:remove` of the Data Manager API
    (https://developers.google.com/data-manager/api/devguides/audiences/send-audience-members).

    A request is accepted with a ``requestId`` and worked on later; sent means accepted. Tokens live for an hour.
    """

    label: ClassVar[str] = "Google customer match"
    doc: ClassVar[str] = "Puts people into a customer match audience of Google Ads, or takes them out; only hashes leave."
    Settings = Settings
    Fields = Fields

    def __init__(self, settings: Settings, *given: object) -> None:
        super().__init__(settings, *given)
        form = {"grant_type": "refresh_token", "refresh_token": settings.refresh_token}
        self.token = Token(settings.token_url, form | {"client_id": settings.client_id, "client_secret": settings.client_secret})

    def calls(self, actions: list[Action], now_us: int) -> Call:
        said = [self.said(action) for action in actions]
        settings: Settings = self.settings
        if not said[0].audience.isdigit():
            raise msgspec.ValidationError(f"an audience's id at Google is a number, got {said[0].audience[:40]!r}")
        to = {"operatingAccount": _account(settings.account_id), "productDestinationId": said[0].audience}
        if settings.login_account_id:
            to["loginAccount"] = _account(settings.login_account_id)
        members = [
            {"userData": {"userIdentifiers": _identifiers(fields, action)}} for action, fields in zip(actions, said, strict=True)
        ]  # fmt: skip
        body = {"destinations": [to], "audienceMembers": members, "encoding": "HEX"}
        if said[0].do == "add":
            if settings.consent:
                body["consent"] = {"adUserData": "CONSENT_GRANTED", "adPersonalization": "CONSENT_GRANTED"}
            body["termsOfService"] = {"customerMatchTermsOfServiceStatus": "ACCEPTED"}
        verb = "ingest" if said[0].do == "add" else "remove"
        headers = {"authorization": f"Bearer {self.token.value}"}
        return json_call(f"{settings.url}/v1/audienceMembers:{verb}", body, headers=headers, idempotent=True)

    def outcomes(self, actions: list[Action], answer: Answer) -> list[Outcome]:
        body = decoded(answer.body)
        request = text_at(body, "requestId")
        if answer.status == 200 and request:
            return [Outcome(kind="sent", message_id=request)] * len(actions)
        return unsettled(actions, answer, text_at(body, "error", "message"))

    def undone(self, answer: Answer) -> Outcome:
        (outcome,) = self.outcomes([ADD[0]], answer)
        return outcome

    EXAMPLES = (
        {
            "settings": {"account_id": "1112223333", "client_id": "c", "client_secret": "s", "refresh_token": "r", "consent": True},
            "actions": ADD,
            "url": "https://datamanager.googleapis.com/v1/audienceMembers:ingest",
            "json": {
                "destinations": [
                    {"operatingAccount": {"accountType": "GOOGLE_ADS", "accountId": "1112223333"}, "productDestinationId": "1234"}
                ],
                "audienceMembers": [
                    {"userData": {"userIdentifiers": [{"emailAddress": email_hash(address)}]}}
                    for address in ("ada@example.com", "bob@example.com")
                ],
                "encoding": "HEX",
                "consent": {"adUserData": "CONSENT_GRANTED", "adPersonalization": "CONSENT_GRANTED"},
                "termsOfService": {"customerMatchTermsOfServiceStatus": "ACCEPTED"},
            },
            "answers": [
                ({"status": 200, "body": '{"requestId":"q1"}'}, [{"kind": "sent", "message_id": "q1"}] * 2),
                (
                    {"status": 400, "body": '{"error":{"code":400,"message":"bad","status":"INVALID_ARGUMENT"}}'},
                    [{"kind": "refused", "code": "400", "detail": "bad"}] * 2,
                ),
                ({"status": 401, "body": '{"error":{"code":401,"message":"expired"}}'}, [{"kind": "later", "code": "401"}] * 2),
                ({"status": 429}, [{"kind": "later"}] * 2),
                ({"status": 200, "body": "{}"}, [{"kind": "unknown"}] * 2),
                ({"status": 503}, [{"kind": "unknown"}] * 2),
            ],
        },
    )


def _account(account_id: str) -> dict:
    return {"accountType": "GOOGLE_ADS", "accountId": account_id}


def _identifiers(fields: Fields, action: Action) -> list[dict]:
    found = [{"emailAddress": email_hash(fields.email or action.recipient)}]
    number = phone_hash(fields.phone, plus=True)
    return found + ([{"phoneNumber": number}] if number else [])


PLUGIN = GoogleAudience
