"""Who asks: whether a page may, by its origin, and whose page it is, by the signed id that the site has put into it."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import parse_qsl

from ...act.ways._site_id import recipient_of
from ...act.ways.on_site import Settings
from ...events import recipient_key
from ...kit.clock import Clock
from .answers import refusal
from .http import Exchange

fields_max = 8
BAD_ID = refusal(401, "bad_id", "The id is none, or has expired", todo="Give the page a fresh id of the visitor")
BAD_ORIGIN = refusal(403, "bad_origin", "This site may not show messages", todo="List its origin with the way `on_site`")


class Visitors:
    """The visitors of the configured sites. Their id is their whole right (act/ways/_site_id.py)."""

    def __init__(self, settings: Iterable[Settings], clock: Clock) -> None:
        settings = list(settings)
        self.clock = clock
        self.secrets = [secret for one in settings for secret in one.secrets]
        self.origins = {origin.encode() for one in settings for origin in one.origins}

    def allowed(self, exchange: Exchange) -> bytes | None:
        """Return the header that lets the page read the answer, None where a page of that origin may not. A page of the door's own origin
        names none when it asks for something."""
        origin = exchange.headers.get("origin", "").encode("latin-1")
        if not origin:
            return b""
        return b"access-control-allow-origin: %s\r\nvary: origin\r\n" % origin if origin in self.origins else None

    def recipient(self, given: str) -> str:
        """Return whom an id belongs to, ``""`` where it is none or has expired."""
        found = recipient_of(given, self.secrets, self.clock.now_us() // 1_000_000)
        return recipient_key(found) or found


def fields_of(raw: bytes) -> dict[str, str]:
    """Return the fields of a query or a form; none of what is neither."""
    try:
        return dict(parse_qsl(raw.decode("ascii"), max_num_fields=fields_max))
    except ValueError:
        return {}
