"""A person does something: it fires at once."""

from __future__ import annotations

from ...stream.conditions import NAMED, Condition, Did, condition_of, words
from ...stream.program import Watch
from .trigger import AboutPeople


class Event(AboutPeople):
    """``did`` is the kind of event; ``campaign``, or ``name`` of a tracked one, narrows it. Opens and clicks of machines are none."""

    label = "Somebody does something"
    doc = (
        "Fires with the event, once for each. A click within ten minutes after delivery waits three seconds, until it shows whether a "
        "scanner clicked all links."
    )
    EXAMPLES = (
        ({"kind": "event", "did": "clicked", "campaign": "spring"}, "somebody clicked in campaign `spring`"),
        ({"kind": "event", "did": "tracked", "name": "added to cart"}, "somebody tracked `added to cart`"),
    )

    did: str
    campaign: str = ""
    name: str = ""

    def _did(self) -> Did:
        asked = {"did": self.did} | ({"campaign": self.campaign} if self.campaign else {}) | ({"name": self.name} if self.name else {})
        return condition_of(asked, "$.when")

    def check(self) -> None:
        self._did()

    def words(self) -> str:
        return f"somebody {words(self._did())}"

    def watch(self, where: Condition | None) -> Watch:
        return Watch(on="event", kind=self.did, campaign=self.campaign, name=self.name if self.did in NAMED else "", where=where)
