"""A person comes into a segment or leaves it, or has been in it, or out of it, for some time."""

from __future__ import annotations

from typing import Literal

from ...stream.conditions import Condition, duration_us, duration_words
from ...stream.program import Watch
from .trigger import AboutPeople, BadTrigger, length_us


class Segment(AboutPeople):
    """``entered`` or ``left`` a ``segment``; with ``stays``, only who is still in it, or out of it, after that time."""

    label = "Somebody comes into a segment or leaves it"
    doc = (
        "Fires within the second, also where time alone has changed a membership. Who is in a segment when it is made has not come into "
        "it. With `stays`, who goes back meanwhile is not meant."
    )
    EXAMPLES = (
        ({"kind": "segment", "entered": "good customers"}, "somebody comes into segment `good customers`"),
        ({"kind": "segment", "left": "engaged", "stays": "2d"}, "somebody leaves segment `engaged` and stays out for 2 days"),
    )

    entered: str = ""
    left: str = ""
    stays: str = ""

    @property
    def name(self) -> str:
        return self.entered or self.left

    @property
    def on(self) -> Literal["enter", "leave"]:
        return "enter" if self.entered else "leave"

    def segments(self) -> list[str]:
        return [self.name]

    def check(self) -> None:
        if bool(self.entered) == bool(self.left):
            raise BadTrigger("Comes into which segment, or leaves it?", expected="`entered` or `left`, one of them", where="$.when")
        if self.stays:
            duration_us(self.stays, "$.when.stays")

    def words(self) -> str:
        said = f"somebody {'comes into' if self.entered else 'leaves'} segment `{self.name}`"
        if self.stays:
            lasts = duration_words(duration_us(self.stays, "$.when.stays"))
            said += f" and stays {'in it' if self.entered else 'out'} for {lasts}"
        return said

    def watch(self, where: Condition | None) -> Watch:
        return Watch(on=self.on, segment=self.name, wait_us=length_us(self.stays, "$.when.stays"), where=where)
