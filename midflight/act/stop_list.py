"""The conductor's half of "no send after an acknowledged unsubscribe": the door names a recipient, and the answer says that no call can
reach it any more.

The door writes the unsubscribe into the log first and sends ``{"stop": "RECIPIENT"}`` over ``conductor.sock`` then; ``{"stopped":
"RECIPIENT"}`` comes back once the recipient is on this list and no call to it is under way. Where nobody listens, the door takes it that
nothing can be sent. So a conductor has to start in this order: its lock, `StopList.start`, the log's head, wait until the engine has folded
everything before that head, only then the first call. And it has to end its calls before `close`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

logger = logging.getLogger("midflight.conductor")

SOCKET = "conductor.sock"
line_bytes_max = 64 * 1024
backlog = 16
_decoder = msgspec.json.Decoder(dict[str, str])


class StopList:
    """Recipients to whom no call may begin. All of it runs in one thread, that of the event loop.

    ``stopped`` are those for whom the door has asked and who have not been forgotten.
    """

    def __init__(self) -> None:
        self.stopped: set[str] = set()
        self._under_way: Counter[str] = Counter()
        self._waiting: dict[str, list[Callable[[str], None]]] = {}
        self._server: asyncio.Server | None = None
        self._speakers: set[Speaker] = set()
        self._socket: Path | None = None

    # -- calls ---------------------------------------------------------------------------------------------------------------

    def begin(self, recipients: Iterable[str]) -> set[str]:
        """Note that a call to these is about to be made; return those who may not be in it. To be called right before the call.

        Whoever is not returned is under way until `end`.
        """
        refused = set()
        for recipient in recipients:
            if recipient in self.stopped:
                refused.add(recipient)
            else:
                self._under_way[recipient] += 1
        return refused

    def end(self, recipients: Iterable[str]) -> None:
        """Note that the call to these has ended, however it did; those whom `begin` refused are not among them."""
        for recipient in recipients:
            self._under_way[recipient] -= 1
            assert self._under_way[recipient] >= 0, "a call ended that had not begun"
            if not self._under_way[recipient]:
                del self._under_way[recipient]
                for answer in self._waiting.pop(recipient, ()):
                    answer(recipient)

    def forget(self, recipients: Iterable[str]) -> None:
        """Take recipients off the list, because what the next batch is chosen by keeps them out.

        Only for those who were among the suppressions when the oldest batch was chosen that has not been begun: a batch from before still
        holds them.
        """
        self.stopped.difference_update(recipients)

    # -- the door ------------------------------------------------------------------------------------------------------------

    def stop(self, recipient: str, answer: Callable[[str], None]) -> None:
        """Put a recipient on the list; ``answer`` is called with it as soon as no call to it is under way, perhaps at once."""
        self.stopped.add(recipient)
        if recipient in self._under_way:
            self._waiting.setdefault(recipient, []).append(answer)
        else:
            answer(recipient)

    async def start(self, folder: Path) -> None:
        """Listen in a data folder. Only for who holds the lock of its outbox: what an earlier process left there is removed."""
        self._socket = folder / SOCKET
        self._socket.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The folder's own path may be longer than a socket's may be.
            fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
            try:
                listener.bind(f"/proc/self/fd/{fd}/{SOCKET}")
            finally:
                os.close(fd)
            self._socket.chmod(0o600)
            self._server = await asyncio.get_running_loop().create_unix_server(self.speaker, sock=listener, backlog=backlog)
        except BaseException:
            listener.close()
            raise

    def speaker(self) -> Speaker:
        """Return what serves one connection of a door."""
        return Speaker(self)

    async def close(self) -> None:
        """Listen no more. The door then takes it that nothing can be sent, so every call has to have ended before."""
        assert not self._under_way, "a call is under way"
        if self._server is not None:
            self._socket.unlink(missing_ok=True)
            self._server.close()
            for speaker in list(self._speakers):
                speaker.transport.close()
            self._server = None


class Speaker(asyncio.Protocol):
    """One connection of a door: a line for each request, a line for each answer, in whatever order they come."""

    def __init__(self, stops: StopList) -> None:
        self.stops = stops
        self.transport: asyncio.Transport | None = None
        self.rest = b""
        self.skipping = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.stops._speakers.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self.stops._speakers.discard(self)

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            if not self.skipping:
                self.take(line)
            self.skipping = False
        if len(self.rest) > line_bytes_max:
            self.rest, self.skipping = b"", True

    def take(self, line: bytes) -> None:
        """Do what a line says. One that says nothing known is left unanswered: closing would tell the door that nobody sends."""
        try:
            recipient = _decoder.decode(line)["stop"]
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
            logger.error("the door said something that this version does not know")
            return
        self.stops.stop(recipient, self.answer)

    def answer(self, recipient: str) -> None:
        if not self.transport.is_closing():
            self.transport.write(msgspec.json.encode({"stopped": recipient}) + b"\n")
