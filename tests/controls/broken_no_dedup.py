"""A build that takes every event for a new one."""

from __future__ import annotations


def apply() -> None:
    """Call nothing a repetition."""
    from midflight.stream import seen

    seen_before = seen.seen_before

    def forgetful(*arguments) -> None:
        seen_before(*arguments)
        arguments[-1][:] = seen.FOLDED

    seen.seen_before = forgetful
