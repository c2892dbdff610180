"""The door's half of "no send after an acknowledged unsubscribe": asks the conductor to stop a recipient, and waits for its word.

See `act/stop_list.py` for what is spoken. Where nobody listens nothing can be sent now, and a conductor that starts later reads the log
first, where the unsubscribe is by then.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path

import msgspec

from ...act.stop_list import SOCKET, line_bytes_max

logger = logging.getLogger("midflight.door")

answer_s_max = 20.0
again_s = 0.1  # until the next try where the conductor is there and cannot be reached just now
unread_bytes_max = 8 * 1024 * 1024  # requests that the conductor has not read; beyond this no more are sent to it
_decoder = msgspec.json.Decoder(dict[str, str])

# What has become of a request: True where no call to the recipient can be made or is under way, False where that is not known.
Done = Callable[[bool], None]


class Asked:
    """One recipient, and who waits for the conductor's word about it."""

    __slots__ = ("done", "recipient", "timer")

    def __init__(self, recipient: str, done: Done) -> None:
        self.recipient, self.done = recipient, done
        self.timer = None


class Stopping:
    """One kept connection to the conductor, made when it is first needed and again when it broke.

    ``spawn`` runs a coroutine, ``call_later`` is the loop's.
    """

    def __init__(self, folder: Path, spawn: Callable[[Coroutine], None], call_later: Callable) -> None:
        self.folder, self.spawn, self.call_later = folder, spawn, call_later
        self.line: Line | None = None
        self.connecting = False
        self.waiting: dict[str, list[Asked]] = {}

    def stop(self, recipient: str, done: Done) -> None:
        """Ask for a recipient to be stopped; ``done`` is called once, at the latest after `answer_s_max`."""
        line = self.line
        if line is not None and line.transport.get_write_buffer_size() > unread_bytes_max:
            done(False)
            return
        asked = Asked(recipient, done)
        asked.timer = self.call_later(answer_s_max, self._late, asked)
        known = self.waiting.setdefault(recipient, [])
        known.append(asked)
        if line is None:
            self._connect()
        elif len(known) == 1:
            # The answer to a request that is out says of the recipient what every further one asks.
            line.ask((recipient,))

    def _late(self, asked: Asked) -> None:
        self._take_out(asked)
        asked.done(False)

    def _take_out(self, asked: Asked) -> None:
        waiting = self.waiting[asked.recipient]
        waiting.remove(asked)
        if not waiting:
            del self.waiting[asked.recipient]

    def _settle(self, recipient: str, *, stopped: bool) -> None:
        for asked in self.waiting.pop(recipient, ()):
            asked.timer.cancel()
            asked.done(stopped)

    # -- the connection ------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if not self.connecting:
            self.connecting = True
            self.spawn(self.open())

    async def open(self) -> None:
        """Connect. Whoever is not there cannot send; whoever cannot be reached just now is tried again while somebody waits."""
        try:
            fd = os.open(self.folder, os.O_PATH | os.O_DIRECTORY)
            try:
                # The folder's own path may be longer than a socket's may be.
                await asyncio.get_running_loop().create_unix_connection(lambda: Line(self), f"/proc/self/fd/{fd}/{SOCKET}")
            finally:
                os.close(fd)
        except (FileNotFoundError, ConnectionRefusedError):
            self.absent()
        except OSError as error:
            logger.warning("the conductor cannot be reached: %s", error)
            self.call_later(again_s, self.again)

    def again(self) -> None:
        """Try to connect once more, if anybody still waits."""
        self.connecting = False
        if self.waiting and self.line is None:
            self._connect()

    def absent(self) -> None:
        """Nobody listens."""
        self.connecting = False
        for recipient in list(self.waiting):
            self._settle(recipient, stopped=True)

    def connected(self, line: Line) -> None:
        """The conductor is there: ask it for all who are waited for."""
        self.line, self.connecting = line, False
        if self.waiting:
            line.ask(self.waiting)

    def said(self, recipient: str) -> None:
        """The conductor has stopped a recipient."""
        self._settle(recipient, stopped=True)

    def lost(self, line: Line) -> None:
        """The connection has ended: the conductor with it, or a new one listens that has not been asked."""
        if self.line is line:
            self.line = None
            if self.waiting:
                self._connect()

    def close(self) -> None:
        """Let the connection go, for good; who still waits gets no word."""
        self.connecting = True
        if self.line is not None:
            self.line.transport.abort()


class Line(asyncio.Protocol):
    """The connection's bytes: lines of JSON."""

    def __init__(self, stopping: Stopping) -> None:
        self.stopping = stopping
        self.transport: asyncio.Transport | None = None
        self.rest = b""

    def ask(self, recipients) -> None:
        self.transport.write(b"".join(msgspec.json.encode({"stop": recipient}) + b"\n" for recipient in recipients))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.stopping.connected(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self.stopping.lost(self)

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            try:
                recipient = _decoder.decode(line)["stopped"]
            except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
                logger.error("the conductor said something that this version does not know")
                continue
            self.stopping.said(recipient)
        self.rest = self.rest[:line_bytes_max]
