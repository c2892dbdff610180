"""The structural check of a body: is it what this vendor sends, within the limits, without reading its events.

What is answered 400 or 413 here can never become events. What may hold at least one good event is stored, and the bad events in it
go to the dead letters when it is read:

- one event of several that is not JSON (its bounds are found by its brackets and strings), as long as another one is;
- ``NaN`` and ``Infinity``, which careless senders write for numbers, also in a body that is a single event;
- numbers of any size, repeated names, lone surrogates and bytes that are not UTF-8 inside of strings.

A byte order mark, UTF-16, a body cut short and nesting deeper than `depth_max` are refused as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator

import msgspec

from ...kit.pieces import BLANK, NoPieces, TooManyPieces, blanked, pieces_stepwise
from ...sources.source import Malformed, depth_max

fields_max = 1000  # of a form; senders have a few dozen
step_events = 256  # after so many events (or `step_bytes`) the check lets others run
step_bytes = 256 * 1024

_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_VALUE = msgspec.json.Decoder(msgspec.Raw)
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# What careless senders write for a number, outside of strings.
_CARELESS = re.compile(rb'"[^"]*"|-?\b(?:NaN|Infinity)\b')
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class TooLarge(Malformed):
    """More or larger than the limits allow: 413."""

    status = 413
    code = "too_large"


class Limits(msgspec.Struct, frozen=True):
    """The limits of one body after inflation."""

    events_max: int = 10_000
    event_bytes_max: int = 256 * 1024


class Wrapper(msgspec.Struct):
    """The names under which vendors put their events into one object. Other names are skipped without being kept."""

    events: msgspec.Raw = msgspec.Raw()
    batch: msgspec.Raw = msgspec.Raw()
    data: msgspec.Raw = msgspec.Raw()
    items: msgspec.Raw = msgspec.Raw()
    events_by_user: msgspec.Raw = msgspec.Raw()


_WRAPPER = msgspec.json.Decoder(Wrapper)

# A check gives way after each step, so that a body of many megabytes does not stop the others.
Steps = Iterator[None]


def check(body: bytes, shape: str, limits: Limits, *, form: bool = False) -> Steps:
    """Check a body step by step: a generator that rests where other requests may run. Raises Malformed, TooLarge.

    ``shape`` is the source's; ``form`` says that the content type is a form's and the source reads forms too.
    """
    start = body[:64].lstrip(BLANK)[:1]
    if not start:
        raise Malformed("The body is empty")
    if shape == "form" or (form and start not in (b"{", b"[")):
        check_form(body)
    elif shape == "lines":
        yield from check_lines(body, limits)
    elif start == b"[" and shape == "object":
        if body.strip(BLANK)[1:-1].strip(BLANK):
            raise Malformed("The body is not what this source sends", expected="a JSON object", got="an array")
        yield from check_array(body, limits)
    elif start == b"[":
        yield from check_array(body, limits)
    elif start == b"{" and shape != "array":
        yield from check_object(body, limits)
    else:
        raise Malformed("The body is not what this source sends", expected=f"a JSON {'array' if shape == 'array' else 'object'}")


def check_form(body: bytes) -> None:
    """Count the fields of a form before anything splits it."""
    if body.count(b"&") >= fields_max or body.count(b"\n--") + body.startswith(b"--") > fields_max + 1:
        raise Malformed("The form has too many fields", expected=f"at most {fields_max}")
    if b"=" not in body:
        raise Malformed("The body is no form")


def check_array(body: bytes, limits: Limits) -> Steps:
    """Check an array of events, of which some may be no JSON."""
    try:
        events = _ARRAY.decode(body)
    except RecursionError:
        raise too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        yield from check_pieces((yield from split(body, limits.events_max)), limits)
        return
    if events and not any(bytes(event)[:1] == b"{" for event in events):
        raise Malformed("The array holds no event", expected="objects")
    yield from check_events(events, limits)


def check_pieces(pieces: list[bytes], limits: Limits, *, levels: int = 1) -> Steps:
    """Check events of which some are no JSON; one at least has to be."""
    yield from check_events(pieces, limits, levels=levels)
    size = 0
    for piece in pieces:
        if readable(piece):
            return
        size += len(piece)
        if size > step_bytes:
            size = 0
            yield
    raise Malformed("The body is not JSON")


def check_object(body: bytes, limits: Limits) -> Steps:
    """Check an object: one event, or a wrapper around arrays of events."""
    if len(body) > limits.event_bytes_max:
        yield from check_wrapper(body, limits)
        return
    try:
        members = _OBJECT.decode(body)
    except RecursionError:
        raise too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        yield from check_careless_object(body, limits)
        return
    if not members:
        raise Malformed("The body is an empty object")
    check_depth(body, depth_max)
    for value in members.values():
        if len(value) > limits.events_max and bytes(value)[:1] == b"[":
            yield from check_events(_ARRAY.decode(value), limits, levels=2)


def check_wrapper(body: bytes, limits: Limits) -> Steps:
    """Check an object too large for one event: its arrays count as events, and what is left of it as one more."""
    try:
        wrapper = _WRAPPER.decode(body)
        arrays = [value for name in Wrapper.__struct_fields__ if bytes(value := getattr(wrapper, name))[:1] == b"["]
        if len(body) - sum(map(len, arrays)) > limits.event_bytes_max:
            arrays = [outer_array(body, limits)]
        for array in arrays:
            yield from check_events(_ARRAY.decode(array), limits, levels=2)
    except RecursionError:
        raise too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        yield from check_pieces((yield from split(outer_array(body, limits), limits.events_max)), limits, levels=2)


def outer_array(body: bytes, limits: Limits) -> bytes:
    """Return what stands between the first `[` and the last `]`. Raises TooLarge when there is too much around it."""
    start, end = body.find(b"["), body.rfind(b"]") + 1
    if start < 0 or end <= start or len(body) - (end - start) > limits.event_bytes_max:
        raise too_big(len(body), limits)
    return body[start:end]


def check_careless_object(body: bytes, limits: Limits) -> Steps:
    """Check a small object that is not JSON as it stands: it passes if only its numbers or text are careless, or one of its events."""
    check_depth(body, depth_max)
    if readable(body):
        return
    pieces: list[bytes] = []
    for member in (yield from split(body, limits.events_max, b"{}")):
        start = member.find(b"[")
        if start >= 0 and member.rstrip(BLANK).endswith(b"]"):
            pieces += yield from split(member[start:], limits.events_max)
    yield from check_pieces(pieces, limits, levels=2)


def check_lines(body: bytes, limits: Limits) -> Steps:
    """Check JSON Lines; a single document over one or several lines counts too."""
    start = body[:64].lstrip(BLANK)[:1]
    try:
        value = _VALUE.decode(body)
    except RecursionError:
        raise too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        value = None
    if value is None:
        lines = [line for line in body.split(b"\n", limits.events_max * 2) if line.strip(BLANK)]
        yield from check_pieces(lines, limits, levels=0)
    elif start not in (b"{", b"["):
        raise Malformed("The body is not what this source sends", expected="JSON objects, one a line")
    else:
        yield from check_array(body, limits) if start == b"[" else check_object(body, limits)


def check_events(events: list, limits: Limits, *, levels: int = 1) -> Steps:
    """Check number, size and depth; ``levels`` are the brackets around an event."""
    if len(events) > limits.events_max:
        raise too_many(limits.events_max)
    if events and (largest := max(map(len, events))) > limits.event_bytes_max:
        raise too_big(largest, limits)
    size = 0
    for index, event in enumerate(events):
        event = bytes(event)
        check_depth(event, depth_max - levels)
        size += len(event)
        if size > step_bytes or index % step_events == step_events - 1:
            size = 0
            yield


def check_depth(piece: bytes, levels_max: int) -> None:
    """Raise Malformed when a piece of JSON is nested deeper than ``levels_max``.

    Most pieces have fewer brackets than that. For others strings are taken out and then, level by level, the innermost pairs.
    """
    if piece.count(b"{") + piece.count(b"[") <= levels_max:
        return
    outside = b"".join(blanked(piece).split(b'"')[::2])
    skeleton = outside.translate(_BRACKETS, _NOT_BRACKETS)
    for _ in range(levels_max):
        skeleton = skeleton.replace(b"[]", b"")
        if not skeleton:
            return
    # What is left is too deep, or its brackets do not pair (of an event that is not JSON).
    if b"[]" in skeleton or len(skeleton) > 2 * levels_max:
        raise too_deep()


def split(body: bytes, pieces_max: int, brackets: bytes = b"[]") -> Generator[None, None, list[bytes]]:
    """Return the elements between the outer brackets, JSON or not. Raises Malformed, TooLarge."""
    try:
        return (yield from pieces_stepwise(body, pieces_max, brackets))
    except TooManyPieces as error:
        raise TooLarge(str(error)) from None
    except NoPieces as error:
        raise Malformed(str(error)) from None


def readable(piece: bytes) -> bool:
    """Tell whether a piece is a JSON object, or would be if its numbers and its text were spelt right."""
    if piece.lstrip(BLANK)[:1] != b"{":
        return False
    try:
        _VALUE.decode(piece)
        return True
    except RecursionError:
        return False
    except (msgspec.DecodeError, UnicodeDecodeError):
        careful = _CARELESS.sub(lambda found: found[0] if found[0][:1] == b'"' else b"0", blanked(piece))
    try:
        _VALUE.decode(_SURROGATE.sub(rb"\\u00", careful))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def too_deep() -> Malformed:
    return Malformed("The body is nested too deeply", expected=f"at most {depth_max} levels")


def too_many(events_max: int) -> TooLarge:
    return TooLarge("Too many events in one request", expected=f"at most {events_max}")


def too_big(size: int, limits: Limits) -> TooLarge:
    return TooLarge("An event is too large", expected=f"at most {limits.event_bytes_max} bytes", got=size)
