"""The accept loop: takes connections while there is room for them, and waits without turning when there is none."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

# Out of descriptors or memory: accepting again at once would fail again at once.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
accepts_max = 64  # a turn; then others run
pause_s = 0.1


class Acceptor:
    """Accepts while ``has_room()``; ``take(socket, peer)`` gets each connection. `resume` is called when room is there again."""

    def __init__(self, loop, listener: socket.socket, has_room: Callable[[], bool], take: Callable, refused: Callable[[str], None]) -> None:
        self.loop, self.listener = loop, listener
        listener.setblocking(False)
        self.has_room, self.take, self.refused = has_room, take, refused
        self.accepting = self.closed = False
        self._timer = None
        self.resume()

    def resume(self) -> None:
        if not self.accepting and not self.closed and self._timer is None:
            self.accepting = True
            self.loop.add_reader(self.listener, self._ready)

    def pause(self) -> None:
        if self.accepting:
            self.accepting = False
            self.loop.remove_reader(self.listener)

    def _ready(self) -> None:
        for _ in range(accepts_max):
            if not self.has_room():
                self.refused("connections")
                self.pause()
                return
            try:
                client, peer = self.listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self.refused("descriptors")
                    self.pause()
                    self._timer = self.loop.call_later(pause_s, self._again)
                    return
                continue  # the client was gone before it was accepted
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.take(client, peer[0])

    def _again(self) -> None:
        self._timer = None
        self.resume()

    def close(self) -> None:
        """Accept no more, and let the port go."""
        if self.closed:
            return
        self.pause()
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self.listener.close()
