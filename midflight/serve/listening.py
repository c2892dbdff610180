"""The sockets that door and console listen on; a port that cannot be had is said in one line."""

from __future__ import annotations

import socket

from ..kit.errors import MidflightError

backlog = 1024


class CannotListen(MidflightError):
    """The address is taken, not this machine's, or not for us."""

    code = "cannot_listen"
    # `up` has tried the ports before it starts anything: later on somebody is in the way, and the other processes go on.
    exit_status = 3


def listen(host: str, port: int, name: str) -> socket.socket:
    """Return a listening socket for the process ``name``, which is also its part of the settings. Raises CannotListen."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(backlog)
    except OSError as error:
        found.close()
        why = error.strerror or str(error)
        todo = f"Set `{name}.host` and `{name}.port`, or end what listens there"
        raise CannotListen(f"The {name} cannot listen: {why}", where=f"{host}:{port}", todo=todo) from None
    return found
