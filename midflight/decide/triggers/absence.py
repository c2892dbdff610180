"""A person does something, and then for some time not something else: clicked, and no conversion in 30 minutes."""

from __future__ import annotations

import msgspec

from ...stream.conditions import Condition, Did, condition_of, duration_us, duration_words, words
from ...stream.program import Watch
from .trigger import AboutPeople, BadTrigger


class After(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """An event: its kind as ``did``, and its ``campaign`` or its ``name``."""

    did: str
    campaign: str = ""
    name: str = ""

    def condition(self, where: str) -> Did:
        raw = {"did": self.did} | ({"campaign": self.campaign} if self.campaign else {}) | ({"name": self.name} if self.name else {})
        return condition_of(raw, where)


class Absence(AboutPeople):
    """``after`` one event, for the time ``within``, no ``no`` happens."""

    label = "Somebody does something, and then not something else"
    doc = (
        "Counted from the time at which the first event was received, so that what is on its way in a backlog can still come. Of several "
        "first events in one message the earliest counts, and it fires once for them. Whatever has called it off, a later first event "
        "begins anew."
    )
    EXAMPLES = (
        (
            {"kind": "absence", "after": {"did": "clicked", "campaign": "spring"}, "no": {"did": "converted"}, "within": "30m"},
            "somebody clicked in campaign `spring` and for 30 minutes not converted",
        ),
    )

    after: After
    no: After
    within: str

    def check(self) -> None:
        self.after.condition("$.when.after")
        self.no.condition("$.when.no")
        duration_us(self.within, "$.when.within")
        if self.after == self.no:
            raise BadTrigger("After something it cannot fail to happen", where="$.when.no", todo="Say another event")

    def words(self) -> str:
        after, no = self.after.condition("$.when.after"), self.no.condition("$.when.no")
        return f"somebody {words(after)} and for {duration_words(duration_us(self.within, '$.when.within'))} not {words(no)}"

    def watch(self, where: Condition | None) -> Watch:
        wait_us = duration_us(self.within, "$.when.within")
        unless = self.no.condition("$.when.no")
        after = self.after
        return Watch(on="event", kind=after.did, campaign=after.campaign, name=after.name, wait_us=wait_us, unless=unless, where=where)
