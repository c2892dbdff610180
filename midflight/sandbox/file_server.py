"""A real SFTP server over one folder, on loopback, for the poll `sftp` and the nightly files: it may cut, refuse, or let nobody write."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import asyncssh


class FileServer:
    """``with FileServer(folder) as server``. ``cuts``: so many times a connection is cut in the middle of a file."""

    user, password = "shop", "let-me-in"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.logins = 0
        self.cuts = 0
        self.read_only = False
        key = asyncssh.generate_private_key("ssh-ed25519")
        self._key = key
        self.host_key = key.export_public_key().decode().strip()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="file-server", daemon=True)

    def __enter__(self) -> FileServer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self.loop).result(20)
        return self

    def __exit__(self, *_error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(20)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _serve(self) -> None:
        self._server = await asyncssh.create_server(
            lambda: _Login(self), "127.0.0.1", 0, server_host_keys=[self._key], sftp_factory=lambda channel: _Files(self, channel)
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._server.close()
        await self._server.wait_closed()
        await asyncio.sleep(0.05)


class _Login(asyncssh.SSHServer):
    def __init__(self, server: FileServer) -> None:
        self._server = server

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        good = (username, password) == (self._server.user, self._server.password)
        self._server.logins += good
        return good


class _Files(asyncssh.SFTPServer):
    """The folder as its root; everything else is not there."""

    def __init__(self, server: FileServer, channel: asyncssh.SSHServerChannel) -> None:
        self._files = server
        super().__init__(channel, chroot=os.fsencode(server.folder))

    def read(self, file_obj: object, offset: int, size: int) -> bytes:
        if self._files.cuts > 0:
            self._files.cuts -= 1
            self.channel.get_connection().abort()
            raise asyncssh.SFTPConnectionLost("cut")
        return super().read(file_obj, offset, size)

    def rename(self, oldpath: bytes, newpath: bytes) -> None:
        self._refuse()
        super().rename(oldpath, newpath)

    def mkdir(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        self._refuse()
        super().mkdir(path, attrs)

    def _refuse(self) -> None:
        if self._files.read_only:
            raise asyncssh.SFTPPermissionDenied("read-only")
