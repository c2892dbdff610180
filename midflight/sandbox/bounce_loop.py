"""A campaign in the middle of which a mailbox provider turns mail away for a while: with guards, or without to compare."""

from __future__ import annotations

from contextlib import closing

import apsw
import msgspec

from ..decide.breaker import HELD, NORMAL, RETURNING
from ..events import recipient_key
from ..kit.errors import NotFound, nearest
from ..serve.protecting import logged
from .fortunes import TURNED_AWAY, Trouble
from .life import hour_s
from .loop import Loop, Told

begins_share = 0.25
trouble_hours = 1.5
# A conductor that holds nothing, however much of it bounces: for this comparison alone, so nothing in a configuration can make one.
UNGUARDED = """
from midflight.cli import main
from midflight.serve.protecting import Protecting

Protecting.look = lambda self: None
main(["conductor"])
"""


class Turn(msgspec.Struct, kw_only=True):
    """A breaker's turn. ``after`` messages went to the provider since the trouble began, ``bounced`` of them came back."""

    hours: float  # since the trouble began
    kind: str
    name: str
    stage: str
    text: str
    after: int
    bounced: int


class ToldBounces(msgspec.Struct, kw_only=True):
    """What a run came to. ``bounced`` messages to the provider came back since the trouble began, ``arrived`` in all reached people."""

    told: Told
    provider: str
    turns: list[Turn]
    bounced: int
    arrived: int

    @property
    def own(self) -> list[Turn]:
        """Return the turns of the provider's own breaker since the trouble began."""
        return [turn for turn in self.turns if (turn.kind, turn.name) == ("provider", self.provider) and turn.hours >= 0]

    @property
    def released(self) -> bool:
        """Whether it was held and came back: all the way, or as far as there were messages left to try it with."""
        return len(self.own) > 1 and self.own[0].stage == HELD and self.own[-1].stage in (RETURNING, NORMAL)

    def said(self, stage: str) -> str:
        """Say when the provider came to a stage."""
        found = [f"after {turn.hours:.2f} h and {turn.after:,} messages" for turn in self.own if turn.stage == stage]
        return ", ".join(found) or "never"


class BounceLoop(Loop):
    """One run; without ``guards`` nothing is held."""

    def __init__(self, *arguments: object, provider: str, guards: bool = True) -> None:
        if provider not in TURNED_AWAY:
            raise NotFound(f"No mailbox provider `{provider[:60]}` bounces here", todo=nearest(provider, TURNED_AWAY))
        super().__init__(*arguments)
        self.provider, self.guards, self.from_us = provider, guards, 0

    def _what(self, name: str) -> list[str]:
        return super()._what(name) if self.guards or name != "conductor" else ["-c", UNGUARDED]

    def _look(self) -> None:
        """Let the trouble begin once a quarter of the people have been written to, however fast that went."""
        if not self.from_us and len(self.inbox) >= self.play.recipients * begins_share:
            self.from_us = self.clock.now_us()
            until_us = self.from_us + int(trouble_hours * hour_s * 1e6 / self.play.speed)
            self.react.trouble = Trouble(provider=self.provider, from_us=self.from_us, until_us=until_us)

    def bounces(self) -> ToldBounces:
        """Play it, and return what it came to."""
        told = self.run()
        back = [at_us for at_us, provider in self.react.bounced if provider == self.provider]
        providers = dict(zip(self.people.keys, self.people.providers, strict=True))
        sent = [message.at_us for message in self.inbox.messages() if providers.get(recipient_key(message.recipient)) == self.provider]
        with closing(apsw.Connection(str(self.config.folder / "outbox.db"), flags=apsw.SQLITE_OPEN_READONLY)) as db:
            turns = [self._turn(line, sent, back) for line in reversed(logged(db))]
        return ToldBounces(
            told=told, provider=self.provider, turns=turns,
            bounced=sum(at_us >= self.from_us for at_us in back), arrived=len(self.inbox) - len(self.react.bounced),
        )  # fmt: skip

    def _turn(self, line: dict, sent: list[int], back: list[int]) -> Turn:
        between = range(self.from_us, line["at_us"])
        return Turn(
            hours=(line["at_us"] - self.from_us) / 1e6 * self.play.speed / hour_s, kind=line["kind"], name=line["name"],
            stage=line["stage"], text=line["text"], after=sum(at_us in between for at_us in sent),
            bounced=sum(at_us in between for at_us in back),
        )  # fmt: skip
