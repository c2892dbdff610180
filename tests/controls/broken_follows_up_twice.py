"""A conductor that gives a follow-up to its channel twice: whoever is followed up gets two."""

from __future__ import annotations


def apply() -> None:
    from midflight.act.follow_up import FollowUps

    deliver = FollowUps.deliver

    async def twice(self, action, begins, says, way):
        await deliver(self, action, begins, says, way)
        return await deliver(self, action, begins, says, way)

    FollowUps.deliver = twice
