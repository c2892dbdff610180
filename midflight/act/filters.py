"""The filters of the template language where they differ from Liquid's own: dates without the machine's clock, no way around escaping."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from datetime import UTC, date, datetime

from liquid import Environment, Markup, escape
from liquid.exceptions import FilterArgumentError

# Values are escaped where they are written, and nothing can say that they need not be.
REMOVED = ("safe", "escapejs")
# What leaves markup whole; every other filter gets its text, so that no filter can take a tag apart or put one together.
LEAVES_MARKUP = ("default", "strip", "lstrip", "rstrip")


# Put behind what stands in an attribute, by us: markup is only text there.
TEXT = "as_text"


def put_into(env: Environment, kind: str) -> None:
    """Change an environment's filters to those of a kind of template, as ``language.environment`` names them."""
    for name in REMOVED:
        del env.filters[name]
    env.filters["date"] = date_
    for name in ("url_decode", "base64_decode", "base64_url_safe_decode"):
        env.filters[name] = _cleaned(env.filters[name])
    if kind == "html":
        # Escaping is done once, at the end.
        env.filters |= {"escape": _as_it_is, "escape_once": _unescaped, "newline_to_br": _broken, TEXT: _same}
    if kind == "plain_from_html":
        env.filters |= {"escape": _as_it_is, "escape_once": _unescaped, "newline_to_br": _as_it_is}


# -- what comes out of a filter is no more trusted than what went in --------------------------------------------------------------------

_UNWANTED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """Return a value's text without what no email may hold: control characters, NUL, half surrogates; lines end in a line feed."""
    if text.isascii() and text.isprintable():
        return text
    text = _SURROGATE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _UNWANTED.sub("", text)


def unwanted_in(text: str) -> int:
    """Return the place, counted from 1, of the first character that no template may hold, or 0."""
    found = None if text.isascii() and text.isprintable() else (_UNWANTED.search(text) or _SURROGATE.search(text))
    return found.start() + 1 if found else 0


def _cleaned(decode: Callable) -> Callable:
    """Return a decoding filter whose result is cleaned as every value is on its way in."""

    def decoded(value: object) -> str:
        return clean_text(str(decode(value)))

    return decoded


def _same(value: object) -> object:
    return value


def _as_it_is(value: object) -> str:
    return "" if value is None else str(value)


def _unescaped(value: object) -> str:
    return clean_text(html.unescape(_as_it_is(value)))


def _broken(value: object) -> Markup:
    return Markup(re.sub(r"\r?\n", "<br />\n", escape(_as_it_is(value))))


# -- dates -------------------------------------------------------------------------------------------------------------------------------

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_PARTS: dict[str, Callable[[datetime], str]] = {
    "Y": lambda d: f"{d.year:04}", "y": lambda d: f"{d.year % 100:02}", "m": lambda d: f"{d.month:02}", "d": lambda d: f"{d.day:02}",
    "e": lambda d: f"{d.day:2}", "j": lambda d: f"{d.timetuple().tm_yday:03}", "H": lambda d: f"{d.hour:02}",
    "I": lambda d: f"{(d.hour + 11) % 12 + 1:02}", "l": lambda d: f"{(d.hour + 11) % 12 + 1:2}", "M": lambda d: f"{d.minute:02}",
    "S": lambda d: f"{d.second:02}", "p": lambda d: "AM" if d.hour < 12 else "PM", "P": lambda d: "am" if d.hour < 12 else "pm",
    "B": lambda d: _MONTHS[d.month - 1], "b": lambda d: _MONTHS[d.month - 1][:3], "A": lambda d: _DAYS[d.weekday()],
    "a": lambda d: _DAYS[d.weekday()][:3], "u": lambda d: str(d.isoweekday()), "w": lambda d: str(d.isoweekday() % 7),
    "F": lambda d: d.strftime("%Y-%m-%d"), "T": lambda d: d.strftime("%H:%M:%S"), "R": lambda d: d.strftime("%H:%M"),
    "D": lambda d: d.strftime("%m/%d/%y"), "s": lambda d: str(int(d.timestamp())), "Z": lambda d: "UTC", "z": lambda d: "+0000",
    "%": lambda d: "%",
}  # fmt: skip
_DIRECTIVE = re.compile(r"%(-?)(.)", re.DOTALL)
_SECONDS = re.compile(r"-?\d{1,11}(\.\d+)?")


def date_(value: object, form: object = "%Y-%m-%d") -> str:
    """Return a date in the form that is asked for, in UTC and with English names: the same on every machine.

    A value is ISO 8601 text or seconds since 1970; anything else comes back as it is. ``"now"`` is the time that the message is made.
    """
    text = "" if value is None else str(value)
    at = _time_of(text)
    if at is None:
        return text

    def part(found: re.Match) -> str:
        if found[2] not in _PARTS:
            raise FilterArgumentError(f"date: unknown directive `{found[0]}`", token=None)
        shown = _PARTS[found[2]](at)
        return (shown.lstrip("0 ") or "0") if found[1] else shown

    return _DIRECTIVE.sub(part, str(form))


def _time_of(text: str) -> datetime | None:
    """Return the time that a text says, in UTC, or None where it says none."""
    text = text.strip()[:40]
    try:
        if _SECONDS.fullmatch(text):
            return datetime.fromtimestamp(float(text), UTC)
        if "-" not in text:
            return None
        if len(text) == 10:
            return datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
        at = datetime.fromisoformat(text)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None
