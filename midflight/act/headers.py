"""What of a message becomes a header: one line, bounded, and the two headers that let a mailbox unsubscribe."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import urlsplit

from ..kit.errors import MidflightError

subject_chars_max = 255
from_name_chars_max = 100
url_chars_max = 900  # a header line has at most 998 characters, RFC 5322 section 2.1.1

_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# Embeddings, overrides and isolates reorder what stands after them too. Marks, and joiners of emoji, stay.
_REORDER = re.compile(r"[\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufdd0-\ufdef]+")
_NAME_MARKS = str.maketrans("", "", '<>"\\')


def one_line(text: str, chars_max: int) -> str:
    """Return text as one line without control characters, single spaces between words, cut at whole characters with ``…``."""
    if not text.isprintable():
        text = _REORDER.sub("", _BREAKS.sub(" ", text))
    # What begins like an encoded word (RFC 2047) would be decoded, and could hold line breaks.
    text = " ".join(text.replace("=?", "= ?").split())
    return text if len(text) <= chars_max else _cut(text, chars_max)


def display_name(text: str) -> str:
    """Return text as the name beside an address: none of the characters by which the address could be made another."""
    return one_line(text.translate(_NAME_MARKS), from_name_chars_max)


def _cut(text: str, chars_max: int) -> str:
    end = chars_max - 1
    while end and _joined(text, end):
        end -= 1
    return text[:end].rstrip() + "…"


def _joined(text: str, at: int) -> bool:
    """Whether the character at a place belongs to the one before it: accents, joined emoji, skin tones, halves of a flag."""
    here, before = text[at], text[at - 1]
    flags = "\U0001f1e6" <= here <= "\U0001f1ff" and "\U0001f1e6" <= before <= "\U0001f1ff"
    return flags or "\u200d" in (here, before) or "\U0001f3fb" <= here <= "\U0001f3ff" or unicodedata.category(here) in ("Mn", "Me", "Mc")


_URL = re.compile(r"[!#-;=?-~]+")
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9.-]+")


def headers_of(unsubscribe_url: str, mailto: str = "") -> dict[str, str]:
    """Return List-Unsubscribe and List-Unsubscribe-Post (RFC 2369, RFC 8058) for one recipient.

    ``unsubscribe_url`` unsubscribes this recipient when it is posted to. RFC 8058 wants HTTPS, and a DKIM signature over both headers,
    which the vendor makes. ``mailto`` is an address that takes an empty email for the same.
    """
    parts = urlsplit(unsubscribe_url) if _URL.fullmatch(unsubscribe_url) and len(unsubscribe_url) <= url_chars_max else None
    if parts is None or parts.scheme != "https" or not parts.netloc:
        raise MidflightError(
            "The URL that unsubscribes",
            expected=f"https://, ASCII, no spaces, at most {url_chars_max} characters",
            got=unsubscribe_url[:100],
            where="List-Unsubscribe",
            todo="Set the public address of the door to one that mailboxes reach by HTTPS",
        )
    listed = f"<{unsubscribe_url}>"
    if mailto:
        if not _ADDRESS.fullmatch(mailto) or len(mailto) > 254:
            raise MidflightError("The address that unsubscribes", expected="NAME@DOMAIN", got=mailto[:100], where="List-Unsubscribe")
        listed += f", <mailto:{mailto.replace('%', '%25').replace('?', '%3F').replace('&', '%26')}?subject=unsubscribe>"
    return {"List-Unsubscribe": listed, "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}
