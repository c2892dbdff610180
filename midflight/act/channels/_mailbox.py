"""How a name and an address are written as one text, for vendors that take no two fields."""

from __future__ import annotations

import re
from email.header import Header

from ...events import clean

# A display name that needs neither quotes nor encoding (RFC 5322, section 3.2.3: atoms and the spaces between them).
_PLAIN = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+( [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")


def mailbox(name: str, address: str) -> str:
    """Return ``Name <address>``, or the address alone where there is no name; ASCII, but for a local part that is not.

    A name that is more than plain words becomes encoded words (RFC 2047), also where quotes would do: every vendor reads encoded words,
    and Resend reads no quotes.
    """
    name, address = clean(name).strip(), ascii_domain(address)
    return f"{name if _PLAIN.fullmatch(name) else encoded(name)} <{address}>" if name else address


def encoded(text: str) -> str:
    """Return text as encoded words of at most 75 characters each, on one line."""
    return Header(text, "utf-8", maxlinelen=75).encode(linesep="")


def ascii_domain(address: str) -> str:
    """Return an address with its domain in punycode; as it is where the domain has no such form, for the vendor to refuse."""
    local, at, domain = address.rpartition("@")
    try:
        return address if domain.isascii() else f"{local}{at}{domain.encode('idna').decode('ascii')}"
    except UnicodeError:
        return address
