"""What the engine has folded of what the door needs to know: who must not be written to, and who was told what; from ``store.db``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import apsw

from ...kit.renewed import Renewed

logger = logging.getLogger("midflight.door")

# One statement, so that all of it is of one commit.
_FIND = """
SELECT (SELECT value FROM meta WHERE key = 'position'), (SELECT value FROM meta WHERE key = 'log_time_us'),
    coalesce((SELECT why FROM suppressions WHERE recipient = ?2), (SELECT reason FROM addresses WHERE recipient = ?2 AND status <> 'fine'
        AND until_us > (SELECT value FROM meta WHERE key = 'log_time_us')), ''), a.wave, a.variant, a.propensity
FROM (SELECT 1) LEFT JOIN advised a ON a.campaign = ?1 AND a.recipient = ?2
"""


class Found(NamedTuple):
    """What is known of a recipient at a log position. ``wave`` is None for who was told nothing in the campaign."""

    position: int
    log_time_us: int
    why: str
    wave: int | None
    variant: str | None
    propensity: float | None


NOTHING = Found(-1, 0, "", None, None, None)  # before the engine's first commit, and while its file cannot be read


class Folded:
    """A connection to the engine's file, opened again when that is another one. All of it is for one thread."""

    def __init__(self, folder: Path) -> None:
        self.position = -1  # as of the last `look`
        self._file = Renewed(folder / "store.db")
        self._db: apsw.Connection | None = None
        self._said = ""

    def find(self, campaign: str, recipient: str) -> Found:
        if self._db is None:
            return NOTHING
        try:
            found = Found(*self._db.execute(_FIND, (campaign, recipient)).get)
        except apsw.Error as error:
            # A file of another version, or a damaged one. One that is being made is as none, which is usual at the first start.
            if self._made():
                self._trouble(error)
            return NOTHING
        return found if found.position is not None else NOTHING

    def _made(self) -> bool:
        """Whether the engine has made its tables: it does so one by one, and says last which version they are of."""
        try:
            return self._db.execute("SELECT 1 FROM meta WHERE key = 'version'").get is not None
        except apsw.SQLError:
            return False
        except apsw.Error:
            return True

    def look(self) -> None:
        """Open the file if it is new, and see how far the engine is. Called a few times a second."""
        try:
            self._db = self._file.get()
        except (OSError, apsw.Error) as error:
            self._trouble(error)
            self.close()
        self.position = self.find("", "").position

    def _trouble(self, error: Exception) -> None:
        if str(error) != self._said:
            self._said = str(error)
            logger.warning("the engine's numbers cannot be read: %s", error)

    def close(self) -> None:
        self._file.close()
        self._db = None
