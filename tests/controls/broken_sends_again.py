"""A conductor that plans every call again that a former one left open: whoever's message was on its way gets two."""

from __future__ import annotations


def apply() -> None:
    from midflight.act.outbox import Outbox

    recover = Outbox.recover

    def all_again(self: Outbox, now_us: int, begun: set[str] | None = None) -> tuple[int, int]:
        self.db.execute("UPDATE messages SET idempotent = 1 WHERE state = 1")
        return recover(self, now_us, begun)

    Outbox.recover = all_again
