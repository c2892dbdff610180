"""Way `crm_task`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote

import msgspec

from ...kit.errors import ConfigError, MidflightError
from . import way
from ._tokens import Token
from .way import EXAMPLE, Action, Answer, Call, Outcome, Text, Way, at, decoded, json_call, origin, text_at, unsettled

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,79}")
task_to_contact = 204  # HubSpot's own association, developers.hubspot.com/docs/guides/api/crm/associations/associations-v4


class Settings(way.Settings, kw_only=True):
    crm: Literal["hubspot", "salesforce"]  # whose tasks
    token: str = ""  # HubSpot: of a private app that may write contacts
    client_id: str = ""  # Salesforce: the consumer key of an app with the client credentials flow
    client_secret: str = ""
    url: str = ""  # Salesforce: https://MYDOMAIN.my.salesforce.com; HubSpot: empty
    version: str = ""  # of the API: empty for `2026-03` at HubSpot and `v61.0` at Salesforce
    id_property: str = ""  # a property of tasks with unique values (Salesforce: an external id) for our id: never two tasks

    def __post_init__(self) -> None:
        if self.crm == "hubspot" and not self.token:
            raise ConfigError("HubSpot's `token`", expected="that of a private app", where="token")
        if self.crm == "salesforce" and not (self.client_id and self.client_secret and self.url):
            raise ConfigError("Salesforce", expected="`url`, `client_id` and `client_secret`", where="client_id")
        if self.id_property and not _NAME.fullmatch(self.id_property):
            raise ConfigError("`id_property`", expected="the name of a property", got=self.id_property, where="id_property")


class Fields(way.Fields, kw_only=True):
    subject: Annotated[str, Text("line", 255)]  # what is to be done
    notes: Annotated[str, Text("plain", 8000)] = ""  # what whoever does it has to know
    owner: Annotated[str, Text("line", 40)] = ""  # whose task: the owner's id in the CRM; empty: nobody's, or the app's user
    contact: Annotated[str, Text("line", 40)] = ""  # whom it is about: the contact's id in the CRM, `{{ hubspot_id }}`
    priority: Literal["low", "normal", "high"] = "normal"
    due_hours: Annotated[int, msgspec.Meta(ge=0, le=24 * 365)] = 24  # from now


class CrmTask(Way):
    """A task in HubSpot (https://developers.hubspot.com/docs/api-reference/latest/crm/activities/tasks/guide) or Salesforce
    (https://developer.salesforce.com/docs/atlas.en-us.api_rest.meta/api_rest/resources_sobject_basic_info.htm).

    Neither has idempotency keys. With ``id_property`` our id is unique at theirs: HubSpot answers 409 to a second task with it, and
    Salesforce is asked to upsert by it, so that an unanswered call may be made again. Without it, it is unknown. Undoing deletes the task.
    """

    label: ClassVar[str] = "CRM task"
    doc: ClassVar[str] = "A task for somebody in sales, in HubSpot or Salesforce. Undoing deletes it."
    undoes: ClassVar[str] = "the task is deleted"
    Settings = Settings
    Fields = Fields

    def __init__(self, settings: Settings, *given: object) -> None:
        super().__init__(settings, *given)
        hubspot = settings.crm == "hubspot"
        self._crm = HubSpot(settings) if hubspot else Salesforce(settings)
        if not hubspot:
            form = {"grant_type": "client_credentials", "client_id": settings.client_id, "client_secret": settings.client_secret}
            self.token = Token(f"{settings.url}/services/oauth2/token", form)

    def target(self, action: Action) -> str:
        return origin(self._crm.url)

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token.value if self.token else self.settings.token}"}

    def calls(self, actions: list[Action], now_us: int) -> Call:
        (action,) = actions
        return self._crm.create(action, self.said(action), now_us, self._headers())

    def outcomes(self, actions: list[Action], answer: Answer) -> list[Outcome]:
        return [self._crm.created(answer)]

    def undo(self, action: Action, outcome: Outcome) -> Call | None:
        url = self._crm.task_url(action, outcome.message_id)
        return Call(method="DELETE", url=url, headers=self._headers(), idempotent=True) if url else None

    EXAMPLES = (
        {
            "settings": {"crm": "hubspot", "token": "pat-x", "id_property": "midflight_id"},
            "actions": [
                msgspec.structs.replace(EXAMPLE, fields={"subject": "Call Ada", "contact": "901", "priority": "high", "due_hours": 1})
            ],
            "url": "https://api.hubapi.com/crm/objects/2026-03/tasks",
            "headers": {"authorization": "Bearer pat-x"},
            "json": {
                "properties": {
                    "hs_timestamp": "2025-11-24T17:00:00Z",
                    "hs_task_subject": "Call Ada",
                    "hs_task_body": "",
                    "hs_task_status": "NOT_STARTED",
                    "hs_task_type": "TODO",
                    "hs_task_priority": "HIGH",
                    "midflight_id": "ac-01HZX4",
                },
                "associations": [
                    {"to": {"id": "901"}, "types": [{"associationCategory": "HUBSPOT_DEFINED", "associationTypeId": 204}]}
                ],
            },
            "answers": [
                ({"status": 201, "body": '{"id":"512"}'}, [{"kind": "sent", "message_id": "512"}]),
                (
                    {"status": 409, "body": '{"message":"A task with midflight_id already exists. Existing ID: 512"}'},
                    [{"kind": "sent", "message_id": "512"}],
                ),
                ({"status": 400, "body": '{"message":"Property values were not valid"}'}, [{"kind": "refused", "code": "400"}]),
                ({"status": 401, "body": '{"category":"EXPIRED_AUTHENTICATION"}'}, [{"kind": "later", "code": "401"}]),
                ({"status": 429}, [{"kind": "later", "code": "429"}]),
                ({"status": 201, "body": "{}"}, [{"kind": "unknown"}]),
                ({"status": 500}, [{"kind": "unknown"}]),
            ],
        },
        {
            "settings": {
                "crm": "salesforce", "url": "https://shop.my.salesforce.com", "client_id": "c", "client_secret": "s",
                "id_property": "Midflight_Id__c",
            },
            "actions": [msgspec.structs.replace(EXAMPLE, fields={"subject": "Call Ada", "contact": "003A", "owner": "005B"})],
            "url": "https://shop.my.salesforce.com/services/data/v61.0/sobjects/Task/Midflight_Id__c/ac-01HZX4",
            "method": "PATCH",
            "json": {
                "Subject": "Call Ada", "Description": "", "Status": "Not Started", "Priority": "Normal", "ActivityDate": "2025-11-25",
                "WhoId": "003A", "OwnerId": "005B",
            },
            "answers": [
                ({"status": 201, "body": '{"id":"00T1","success":true,"errors":[]}'}, [{"kind": "sent", "message_id": "00T1"}]),
                ({"status": 200, "body": '{"id":"00T1","success":true,"created":false}'}, [{"kind": "sent", "message_id": "00T1"}]),
                ({"status": 200, "body": '{"id":"00T1","success":false,"errors":[]}'}, [{"kind": "refused"}]),
                ({"status": 204}, [{"kind": "sent"}]),
                (
                    {"status": 400, "body": '[{"errorCode":"REQUIRED_FIELD_MISSING","message":"no"}]'},
                    [{"kind": "refused", "code": "REQUIRED_FIELD_MISSING", "detail": "no"}],
                ),
                ({"status": 401, "body": '[{"errorCode":"INVALID_SESSION_ID"}]'}, [{"kind": "later", "code": "INVALID_SESSION_ID"}]),
                ({"status": 403, "body": '[{"errorCode":"REQUEST_LIMIT_EXCEEDED"}]'}, [{"kind": "later"}]),
                ({"status": 503}, [{"kind": "unknown"}]),
            ],
        },
    )  # fmt: skip


def _due(fields: Fields, now_us: int) -> datetime:
    return datetime.fromtimestamp(now_us // 1_000_000, UTC) + timedelta(hours=fields.due_hours)


def _id(text: str, where: str) -> str:
    """Return an id of the CRM's, checked: it comes from an attribute and stands in bodies and URLs."""
    if not re.fullmatch(r"[A-Za-z0-9]{0,40}", text):
        raise MidflightError("An id of the CRM", expected="letters and digits", got=text[:40], where=where)
    return text


class HubSpot:
    """HubSpot's words for it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url = f"{settings.url or 'https://api.hubapi.com'}/crm/objects/{settings.version or '2026-03'}/tasks"

    def create(self, action: Action, fields: Fields, now_us: int, headers: dict[str, str]) -> Call:
        properties = {
            "hs_timestamp": f"{_due(fields, now_us):%Y-%m-%dT%H:%M:%SZ}",
            "hs_task_subject": fields.subject,
            "hs_task_body": _html(fields.notes),
            "hs_task_status": "NOT_STARTED",
            "hs_task_type": "TODO",
            "hs_task_priority": {"low": "LOW", "normal": "MEDIUM", "high": "HIGH"}[fields.priority],
        }
        if fields.owner:
            properties["hubspot_owner_id"] = _id(fields.owner, "owner")
        if self.settings.id_property:
            properties[self.settings.id_property] = action.id
        body: dict = {"properties": properties}
        if fields.contact:
            kinds = [{"associationCategory": "HUBSPOT_DEFINED", "associationTypeId": task_to_contact}]
            body["associations"] = [{"to": {"id": _id(fields.contact, "contact")}, "types": kinds}]
        return json_call(self.url, body, headers=headers, idempotent=bool(self.settings.id_property))

    def created(self, answer: Answer) -> Outcome:
        body = decoded(answer.body)
        said = text_at(body, "message")
        if answer.status in (200, 201) and (task := text_at(body, "id")):
            return Outcome(kind="sent", message_id=task)
        if answer.status == 409 and self.settings.id_property and "already" in said:
            # Our own first call had its effect.
            found = re.search(r"Existing ID: (\d+)", said)
            return Outcome(kind="sent", message_id=found[1] if found else "", code="409", detail=said)
        return unsettled([None], answer, said)[0]

    def task_url(self, action: Action, task: str) -> str:
        if task:
            return f"{self.url}/{quote(task, safe='')}"
        name = self.settings.id_property
        return f"{self.url}/{quote(action.id, safe='')}?idProperty={name}" if name else ""


class Salesforce:
    """Salesforce's words for it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url = f"{settings.url}/services/data/{settings.version or 'v61.0'}/sobjects/Task"

    def create(self, action: Action, fields: Fields, now_us: int, headers: dict[str, str]) -> Call:
        body = {
            "Subject": fields.subject,
            "Description": fields.notes,
            "Status": "Not Started",
            "Priority": fields.priority.capitalize(),
            "ActivityDate": f"{_due(fields, now_us):%Y-%m-%d}",
        }
        for name, value, where in (("WhoId", fields.contact, "contact"), ("OwnerId", fields.owner, "owner")):
            if value:
                body[name] = _id(value, where)
        if self.settings.id_property:
            return json_call(self.task_url(action, ""), body, method="PATCH", headers=headers, idempotent=True)
        return json_call(self.url, body, headers=headers)

    def created(self, answer: Answer) -> Outcome:
        body = decoded(answer.body)
        # Errors come as a list, also inside of what succeeded by its status.
        code, said = text_at(body, 0, "errorCode"), text_at(body, 0, "message")
        if answer.status in (200, 201) and at(body, "success") is False:
            return Outcome(kind="refused", code=text_at(body, "errors", 0, "statusCode") or str(answer.status), detail="it was not created")
        if answer.status in (200, 201) and (task := text_at(body, "id")):
            return Outcome(kind="sent", message_id=task)
        if answer.status == 204 and self.settings.id_property:
            return Outcome(kind="sent", code="204")  # an upsert that changed what was there
        outcome = unsettled([None], answer, said)[0]
        return msgspec.structs.replace(outcome, code=code or outcome.code)

    def task_url(self, action: Action, task: str) -> str:
        if task:
            return f"{self.url}/{quote(task, safe='')}"
        name = self.settings.id_property
        return f"{self.url}/{name}/{quote(action.id, safe='')}" if name else ""


def _html(text: str) -> str:
    """Return text as HubSpot's rich text, in which nothing of it is markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", "<br>")


PLUGIN = CrmTask
