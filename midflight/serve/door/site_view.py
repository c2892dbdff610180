"""What the door reads of messages for the site, from the conductor's ``outbox.db``: it writes nothing there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import apsw
import msgspec

from ...kit.errors import MidflightError
from ...kit.renewed import Renewed

logger = logging.getLogger("midflight.door")

messages_max = 100  # of one recipient
_OPEN = "SELECT seq, id, body, expires_us FROM on_site WHERE recipient = ? AND ended = '' AND expires_us > ? ORDER BY seq LIMIT ?"
_ONE = "SELECT ended FROM on_site WHERE id = ? AND recipient = ?"
_PUSH = "SELECT 1 FROM push_subscriptions WHERE endpoint = ? AND recipient = ? AND p256dh = ? AND auth = ?"


class Waiting(NamedTuple):
    """One message that waits for a recipient: see `_site_queue.Message`."""

    seq: int
    id: str
    body: dict
    expires_us: int
    ended: str = ""


class Unread(MidflightError):
    """The conductor's file cannot be read now."""

    status = 429
    code = "unread"


class SiteView:
    """A connection to the conductor's file, opened again when that is another one. All of it is for one thread."""

    def __init__(self, folder: Path) -> None:
        self._file = Renewed(folder / "outbox.db")
        self._seen: tuple[object, int] = (None, 0)
        self._said = ""

    def changed(self) -> bool:
        """Tell whether anything was committed since the last time. Raises Unread."""
        db = self._db()
        if db is None:
            return False
        seen = db, self._find("PRAGMA data_version", ())[0][0]
        self._seen, before = seen, self._seen
        return seen[0] is not before[0] or seen[1] != before[1]

    def open_messages(self, recipient: str, now_us: int) -> list[Waiting]:
        """Return what waits for a recipient, the oldest first; nothing where nobody has made the file yet. Raises Unread."""
        found = self._find(_OPEN, (recipient, now_us, messages_max))
        return [Waiting(seq, i, _decoded(body), expires_us) for seq, i, body, expires_us in found]

    def ended(self, message: str, recipient: str) -> str | None:
        """Return how a recipient's message ended, ``""`` for one that did not, None where it is no message of that recipient's.

        Raises Unread.
        """
        found = self._find(_ONE, (message, recipient))
        return found[0][0] if found else None

    def has_browser(self, recipient: str, endpoint: str, p256dh: str, auth: str) -> bool:
        """Tell whether a browser is known just so. Raises Unread."""
        return bool(self._find(_PUSH, (endpoint, recipient, p256dh, auth)))

    def _db(self) -> apsw.Connection | None:
        try:
            return self._file.get()
        except (OSError, apsw.Error) as error:
            raise self._trouble(error) from None

    def _find(self, sql: str, bound: tuple) -> list[tuple]:
        db = self._db()
        try:
            return db.execute(sql, bound).fetchall() if db else []
        except apsw.SQLError as error:
            if "no such table" in str(error):
                return []  # nobody has put anything down yet
            raise self._trouble(error) from None
        except apsw.Error as error:
            raise self._trouble(error) from None

    def _trouble(self, error: Exception) -> Unread:
        if str(error) != self._said:
            self._said = str(error)
            logger.warning("the messages for the site cannot be read: %s", error)
        return Unread("Messages for the site cannot be read now")

    def close(self) -> None:
        self._file.close()


def _decoded(body: bytes) -> dict:
    """Return what a message says; one that cannot be read says nothing, and stops no other."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
