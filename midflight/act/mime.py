"""Makes the bytes of a message (RFC 5322, MIME) without the slow generator of ``email``: every line as it may go out."""

from __future__ import annotations

import json
import re
from binascii import b2a_base64, b2a_qp
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache

from ..events import clean
from ..kit.errors import MidflightError
from .channels.channel import Message

line_chars_max = 998  # RFC 5322 section 2.1.1, without the line break


class BadMessage(MidflightError):
    """What would become a broken header or a wrong command. Such a message is refused before anything is sent."""


CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
HEADER_NAME = re.compile(r"[!-9;-~]+")
TOKEN = re.compile(r"[A-Za-z0-9._+=-]+")
PLAIN_ADDRESS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9.-]+")
LOCAL_PART = re.compile(r'[^\s\x00-\x20\x7f-\x9f<>()\[\]:;@\\,"\ud800-\udfff]+')
PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]*")
TAG_VALUE = re.compile(r"[A-Za-z0-9_-]{1,256}")
address_chars_max = 320
# It cannot occur in quoted-printable or base64 (RFC 2045 section 6.7).
BOUNDARY = "=_midflight"
OURS = {
    "from", "to", "reply-to", "subject", "date", "message-id", "mime-version", "content-type", "content-transfer-encoding",
    "x-midflight-campaign", "x-midflight-variant", "x-midflight-wave", "x-midflight-propensity", "x-midflight-intent",
}  # fmt: skip


def _json(value: dict) -> str:
    """Return JSON for a header: ASCII, with blanks to break lines at, and nothing in it that looks like an encoded word."""
    return json.dumps(value).replace("=?", "\\u003d?")


# What a vendor's relay reads:
# https://www.twilio.com/docs/sendgrid/for-developers/sending-email/unique-arguments
# https://documentation.mailgun.com/docs/mailgun/user-manual/sending-messages/send-smtp
# https://postmarkapp.com/support/article/1125-custom-metadata-faq
# https://docs.aws.amazon.com/ses/latest/dg/event-publishing-send-email.html; tags take few characters, so the source reads `X-Metadata` too
# https://mailchimp.com/developer/transactional/docs/smtp-integration/
# https://developers.sparkpost.com/api/smtp/
METADATA = {
    "none": lambda custom: {},
    "sendgrid": lambda custom: {"X-SMTPAPI": _json({"unique_args": custom})},
    "mailgun": lambda custom: {"X-Mailgun-Variables": _json(custom)},
    "postmark": lambda custom: {f"X-PM-Metadata-{name}": value for name, value in custom.items()},
    "ses": lambda custom: {
        "X-SES-MESSAGE-TAGS": ", ".join(f"{name}={value}" for name, value in custom.items() if TAG_VALUE.fullmatch(value)),
        "X-Metadata": _json(custom),
    },
    "mandrill": lambda custom: {"X-MC-Metadata": _json(custom)},
    "sparkpost": lambda custom: {"X-MSYS-API": _json({"metadata": custom})},
}


def mime_of(message: Message, date_us: int, domain: str, metadata: str = "none") -> bytes:
    """Return the message with all its headers, every line ended by CRLF and, unless an address is not, all ASCII.

    In a subject, a name and the names of campaign, variant and wave a control character becomes a blank. Anywhere else it raises
    BadMessage, as does an address, an intent or a header that could not stand in a line of its own.
    """
    lines = [
        _person("From", message.from_name, message.from_address),
        _person("To", message.to_name, message.to),
        _text("Subject", message.subject),
        f"Date: {_date(date_us // 1_000_000)}",
        f"Message-ID: {message_id_of(message.intent, domain)}",
        "MIME-Version: 1.0",
        _text("X-Midflight-Campaign", message.campaign),
        _text("X-Midflight-Variant", message.variant),
        _text("X-Midflight-Wave", message.wave),
        f"X-Midflight-Propensity: {message.propensity:.6g}",
        f"X-Midflight-Intent: {message.intent}",
    ]
    if message.reply_to:
        lines.insert(2, _person("Reply-To", "", message.reply_to))
    lines += [_given(name, value) for name, value in message.headers.items()]
    lines += [_text(name, value, words=name.startswith("X-PM-")) for name, value in METADATA[metadata](message.custom()).items() if value]
    text_head, text = _part("plain", message.text)
    if not message.html:
        return "\r\n".join([*lines, *text_head]).encode() + b"\r\n\r\n" + text + b"\r\n"
    html_head, html = _part("html", message.html)
    lines.append(f'Content-Type: multipart/alternative; boundary="{BOUNDARY}"')
    pieces = ["\r\n".join(lines), "", f"--{BOUNDARY}", *text_head, "", ""]
    between = ["", f"--{BOUNDARY}", *html_head, "", ""]
    end = f"\r\n--{BOUNDARY}--\r\n"
    return b"".join(("\r\n".join(pieces).encode(), text, "\r\n".join(between).encode(), html, end.encode()))


def message_id_of(intent: str, domain: str) -> str:
    """Return the Message-ID, which is the same whenever the message is made. Raises BadMessage."""
    if not TOKEN.fullmatch(intent) or not TOKEN.fullmatch(domain):
        raise BadMessage("The intent and the domain make the Message-ID", expected="letters, digits and `._+=-`", got=f"{intent}@{domain}")
    return f"<{intent}@{domain}>"


@lru_cache(maxsize=1024)
def address_of(address: str) -> str:
    """Return an address as it may stand between angle brackets, its domain in ASCII. Raises BadMessage."""
    if len(address) <= address_chars_max:
        if PLAIN_ADDRESS.fullmatch(address):
            return address
        local, _, domain = address.rpartition("@")
        if LOCAL_PART.fullmatch(local):
            try:
                found = f"{local}@{domain.encode('idna').decode()}"
            except UnicodeError:
                found = ""
            if PLAIN_ADDRESS.fullmatch(found.replace(local, "x", 1)):
                return found
    raise BadMessage("This is no address that mail can go to", got=clean(address))


@lru_cache(maxsize=16)
def _date(second: int) -> str:
    return format_datetime(datetime.fromtimestamp(second, UTC))


@lru_cache(maxsize=1024)
def _text(name: str, text: str, words: bool = True) -> str:
    """Return a header of free text; ``words`` says whether what cannot stand there as it is becomes encoded words (RFC 2047)."""
    text = CONTROLS.sub(" ", text).strip()
    if text.isascii() and not (words and ("=?" in text or "  " in text or (len(text) > 60 and max(map(len, text.split(" "))) > 60))):
        return _folded(f"{name}: {text}")
    return f"{name}: {_encoded(text, len(name) + 2)}"


def _given(name: str, value: str) -> str:
    """Return a header that came with the message. Its value was meant as it is, so nothing in it is repaired."""
    if not HEADER_NAME.fullmatch(name) or CONTROLS.search(value):
        raise BadMessage("A header needs a name without blanks and a value without line breaks", got=clean(f"{name}: {value}"))
    if name.lower() in OURS:
        raise BadMessage(f"The header `{name}` is made from the message's own fields", todo="Leave it out of `headers`")
    return _folded(f"{name}: {value}") if value.isascii() else f"{name}: {_encoded(value, len(name) + 2)}"


def _person(name: str, person: str, address: str) -> str:
    """Return an address header with the person's name, if there is one."""
    address = address_of(address)
    person = CONTROLS.sub(" ", person).strip() if person else ""
    if not person:
        return f"{name}: {address}"
    if not person.isascii() or "=?" in person or len(person) > 60:
        return f"{name}: {_encoded(person, len(name) + 2)}\r\n <{address}>"
    if not PHRASE.fullmatch(person):
        person = '"' + person.replace("\\", "\\\\").replace('"', '\\"') + '"'
    blank = " " if len(name) + len(person) + len(address) < 70 else "\r\n "
    return f"{name}: {person}{blank}<{address}>"


def _encoded(text: str, indent: int) -> str:
    """Return a text as encoded words, none of them cutting a character, in lines of at most 76 (RFC 2047 section 2)."""
    raw, start, words = text.encode("utf-8", "replace"), 0, []
    room = max((76 - indent - 12) // 4 * 3, 6)  # bytes in the first line, after the header's name
    while start < len(raw):
        end = start + room
        while end < len(raw) and raw[end] & 0xC0 == 0x80:
            end -= 1
        words.append(f"=?utf-8?b?{b2a_base64(raw[start:end], newline=False).decode()}?=")
        start, room = end, 45
    return "\r\n ".join(words)


def _folded(line: str) -> str:
    """Return a header in lines of 78 where it has blanks to break at. Raises BadMessage where a line would be longer than is allowed."""
    if len(line) <= 78:
        return line
    pieces = []
    while len(line) > 78:
        at = line.rfind(" ", 1, 78)
        at = at if at > 0 and line[:at].strip() else line.find(" ", 78)
        if at < 0:
            break
        pieces.append(line[:at])
        line = line[at:]
    pieces.append(line)
    if any(len(piece) > line_chars_max or not piece.strip() for piece in pieces):
        raise BadMessage("A header is too long for a line and cannot be broken", expected=f"at most {line_chars_max}", got=pieces[0][:60])
    return "\r\n".join(pieces)


def _part(kind: str, text: str) -> tuple[list[str], bytes]:
    """Return the headers and the encoded bytes of one text: base64 where more than a sixth is not ASCII, else quoted-printable."""
    raw = text.encode("utf-8", "replace")
    if b"\r" in raw:
        raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    head = f"Content-Type: text/{kind}; charset=utf-8"
    if (len(raw) - len(text)) * 6 > len(raw):
        flat = b2a_base64(raw.replace(b"\n", b"\r\n"), newline=False)
        return [head, "Content-Transfer-Encoding: base64"], b"\r\n".join([flat[at : at + 76] for at in range(0, len(flat), 76)])
    return [head, "Content-Transfer-Encoding: quoted-printable"], b2a_qp(raw, istext=True).replace(b"\n", b"\r\n")


def checked(mime: bytes) -> bytes:
    """Return a given message with CRLF at the end of every line, a lone CR or LF included: servers disagree on what those end."""
    breaks = mime.count(b"\r\n")
    if mime.count(b"\n") != breaks or mime.count(b"\r") != breaks:
        mime = re.sub(rb"\r\n|\r|\n", b"\r\n", mime)
    if not mime.endswith(b"\r\n"):
        mime += b"\r\n"
    if max(map(len, mime.split(b"\r\n"))) > line_chars_max:
        raise BadMessage("The message has a line that is too long for SMTP", expected=f"at most {line_chars_max} bytes")
    return mime
