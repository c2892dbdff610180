"""A build that never sets a record aside: the one that ends the engine blocks all behind it."""

from __future__ import annotations


def apply() -> None:
    """Try the marked record for ever."""
    import broken_ends_on_mark

    from midflight.store.host_local import Careful

    broken_ends_on_mark.apply()
    Careful.is_poison = lambda self, position: False
