"""What the ways into advertisers' audiences share: who is meant, normalised and hashed, and that order matters."""

from __future__ import annotations

import hashlib
from typing import Annotated, ClassVar, Literal

import msgspec

from ...events import recipient_key
from ...kit.errors import MidflightError
from . import way
from .sms_twilio import phone
from .way import EXAMPLE, FOREVER_US, SECOND, Action, Call, Outcome, Text, Way


class Fields(way.Fields, kw_only=True):
    audience: Annotated[str, Text("fixed", 40)]  # the audience's id at the vendor
    do: Literal["add", "remove"] = "add"  # put somebody into it, or take him out
    email: Annotated[str, Text("line", 320)] = ""  # whom; empty: the recipient
    phone: Annotated[str, Text("line", 40)] = ""  # and by which number, with its country: `{{ phone }}`


class Audience(Way):
    """Membership is a set: adding twice is adding once, whenever. But adding and removing have their order, so that actions on one person
    in one audience go one after the other, and an undo gives back what was in force before.
    """

    Fields = Fields
    batch_max: ClassVar[int] = 2_000  # Meta and Google take 10,000
    promise_us: ClassVar[int] = FOREVER_US
    undoes: ClassVar[str] = "who was added is removed again, and the other way round, unless it was so before"

    def group(self, action: Action) -> str:
        fields = self.said(action)
        return f"{fields.audience} {fields.do}"

    def subject(self, action: Action) -> str:
        fields = self.said(action)
        return f"{fields.audience} {email_hash(fields.email or action.recipient)}"

    def undo(self, action: Action, outcome: Outcome) -> Call | None:
        fields = msgspec.structs.replace(self.said(action), do="remove" if self.said(action).do == "add" else "add")
        return self.calls([msgspec.structs.replace(action, fields=msgspec.to_builtins(fields))], 0)


def email_hash(address: str) -> str:
    """Return SHA-256 in hexadecimal of an address without white space and in lower case, as Meta and Google want it
    (https://developers.facebook.com/docs/marketing-api/audiences/guides/custom-audiences#hash,
    https://developers.google.com/data-manager/api/devguides/audiences/send-audience-members). Raises MidflightError for what is none.
    """
    address = "".join(address.split()).lower()
    if not recipient_key(address):
        raise MidflightError("An address for an audience", expected="NAME@DOMAIN", got=address[:100], where="email")
    return hashlib.sha256(address.encode()).hexdigest()


def phone_hash(number: str, *, plus: bool) -> str:
    """Return SHA-256 in hexadecimal of a number with its country; Google keeps the ``+``, Meta does not. ``""`` of no number."""
    if not number.strip():
        return ""
    number = phone(number)
    return hashlib.sha256((number if plus else number[1:]).encode()).hexdigest()


ADD = [msgspec.structs.replace(action, fields={"audience": "1234", "do": "add"}) for action in (EXAMPLE, SECOND)]
