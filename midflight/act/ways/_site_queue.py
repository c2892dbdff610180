"""What a browser is told on the live stream: one message at a time, none that expired or ended, and which ones to take away. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.resources import files
from typing import Protocol

import msgspec

shown_max = 1  # at once
sent_max = 100  # that one connection remembers having shown


class Message(Protocol):
    """One message as the store has it."""

    seq: int
    id: str
    body: dict
    expires_us: int
    ended: str


def due(messages: Iterable[Message], now_us: int, shown_max: int = shown_max) -> list[Message]:
    """Return what is to be seen now: the higher priority first, of equal ones the older; none that ended or expired."""
    open_ones = [message for message in messages if not message.ended and message.expires_us > now_us]
    open_ones.sort(key=lambda message: (-_priority(message), message.seq))
    return open_ones[:shown_max]


def _priority(message: Message) -> int:
    found = message.body.get("priority", 5)
    return found if isinstance(found, int) else 5


class Stream:
    """What one connection has been told, and what it has to be told next. ``told`` is asked whenever something changed, or time passed.

    A browser that connects again may still show what ended meanwhile: the first frame says what alone may be there.
    """

    def __init__(self) -> None:
        self._shown: dict[str, None] = {}
        self._began = False

    def told(self, messages: list[Message], now_us: int) -> bytes:
        """Return the frames for a browser that has seen what this returned before: what to take away, then what to show."""
        wanted = {message.id: message for message in due(messages, now_us)}
        frames = [] if self._began else [frame("only", {"ids": list(wanted)})]
        self._began = True
        for shown in [shown for shown in self._shown if shown not in wanted]:
            del self._shown[shown]
            frames.append(frame("gone", {"id": shown}))
        for message in wanted.values():
            if message.id not in self._shown and len(self._shown) < sent_max:
                self._shown[message.id] = None
                frames.append(frame("message", public(message), message.seq))
        return b"".join(frames)


_PUBLIC = ("title", "body", "link", "link_text")


def public(message: Message) -> dict[str, str]:
    """Return what a browser may know of a message."""
    return {"id": message.id} | {name: str(message.body.get(name, "")) for name in _PUBLIC}


def frame(event: str, data: dict, seq: int = 0) -> bytes:
    """Return one server-sent event (https://html.spec.whatwg.org/multipage/server-sent-events.html). JSON has no raw line breaks, so that
    nothing in it can begin another field."""
    assert re.fullmatch("[a-z]+", event)
    head = f"id: {seq}\n" if seq else ""
    return f"{head}event: {event}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"


KEEP_ALIVE = b": \n\n"


def script() -> bytes:
    """Return the script for the site's pages."""
    return files(__package__).joinpath("_on_site.js").read_bytes()
