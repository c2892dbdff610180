"""What a program's token lets it do, asked of the console's file and remembered for half a second."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import apsw

from ..auth import GRANTS, hashed

kept_s = 0.5  # a token that was made or revoked is known as such after at most this
tokens_max = 1_000
_SCOPES = "SELECT scopes FROM tokens WHERE hash = ?"


class Tokens:
    """Reads ``access.db``, of which the console is the writer."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "access.db"
        self._known: dict[bytes, tuple[float, frozenset[str]]] = {}
        self._db: apsw.Connection | None = None
        self._identity: tuple[int, int] | None = None

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
        try:
            about = self.path.stat()
        except FileNotFoundError:
            return frozenset()  # nobody has made a token yet
        if self._db is None or self._identity != (about.st_dev, about.st_ino):
            self.close()
            self._db = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
            self._identity = about.st_dev, about.st_ino
        found = self._db.execute(_SCOPES, (digest,)).get
        return frozenset().union(*(GRANTS.get(scope, ()) for scope in found.split())) if found else frozenset()

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
