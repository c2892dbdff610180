"""A build that never sets a record aside: the one that ends the engine blocks all behind it."""

from __future__ import annotations


def apply() -> None:
    """Try the marked record for ever."""
    import broken_ends_on_mark

    from midflight.store import host_local

    broken_ends_on_mark.apply()
    host_local.tries_max = 1
    host_local.Careful.is_poison = lambda self, position: False
