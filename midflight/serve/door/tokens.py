"""What a program's token lets it do, asked of the console's file and remembered for half a second."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from ...kit.renewed import Renewed
from ..auth import GRANTS, hashed

kept_s = 0.5  # a token that was made or revoked is known as such after at most this
tokens_max = 1_000
_SCOPES = "SELECT scopes FROM tokens WHERE hash = ?"


class Tokens:
    """Reads ``access.db``, of which the console is the writer."""

    def __init__(self, folder: Path) -> None:
        self._file = Renewed(folder / "access.db")
        self._known: dict[bytes, tuple[float, frozenset[str]]] = {}

    def scopes(self, secret: str) -> frozenset[str]:
        """Return what a token may do; nothing where it is unknown. Raises apsw.Error and OSError where that cannot be told."""
        if not secret or len(secret) > 200:
            return frozenset()
        digest, now_s = hashed(secret), monotonic()
        known = self._known.get(digest)
        if known is not None and now_s - known[0] < kept_s:
            return known[1]
        found = self._asked(digest)
        if len(self._known) >= tokens_max:
            self._known.clear()
        self._known[digest] = now_s, found
        return found

    def _asked(self, digest: bytes) -> frozenset[str]:
        db = self._file.get()
        # Without the file nobody has made a token yet.
        found = db.execute(_SCOPES, (digest,)).get if db else None
        return frozenset().union(*(GRANTS.get(scope, ()) for scope in found.split())) if found else frozenset()

    def close(self) -> None:
        self._file.close()
