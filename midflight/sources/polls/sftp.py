"""Poll `sftp`: files that somebody puts into a folder of another machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar

import msgspec

from ...kit.errors import ConfigError, MidflightError
from . import _files as files
from ._files import FileSettings, Reading, Seen
from ._mapping import Mapping
from .poll import At, Cursor, Found, NotAllowed, NotNow, Page, Poll

connect_s = 15.0
fetch_s_max = 3600.0


class Settings(FileSettings, kw_only=True, frozen=True):
    """``host_key`` is the server's public key as `ssh-keyscan` prints it (`ssh-ed25519 AAAA...`): no other is believed."""

    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 22
    user: str
    host_key: str
    password: str = ""
    private_key: str = ""  # in OpenSSH's or PEM form; `file:PATH` reads it
    passphrase: str = ""
    folder: str = "."


class Sftp(Poll):
    """The same as a CSV folder, by SFTP (https://asyncssh.readthedocs.io/en/stable/api.html#asyncssh.SFTPClient). A file is fetched whole
    into a folder of Midflight's and read there; if it has changed meanwhile, it was not complete and is fetched again. The server has to
    let Midflight rename, or else it meets each file again at each look, knows its content and leaves it: only time is lost.
    """

    label: ClassVar[str] = "SFTP folder"
    doc: ClassVar[str] = "Tables that somebody drops on an SFTP server: people with columns as traits, or events."
    docs_url: ClassVar[str] = "https://asyncssh.readthedocs.io/en/stable/api.html#asyncssh.SFTPClient"
    Settings = Settings

    def __init__(self, settings: Settings, *, name: str, source=None) -> None:
        super().__init__(settings, name=name, source=source)
        where = f"$.polls.{name}"
        if not settings.password and not settings.private_key:
            raise ConfigError(f"Poll `{name}` has no way to show who it is", expected="`password` or `private_key`", where=where)
        if len(settings.host_key.split()) < 2:
            raise ConfigError(f"Poll `{name}` does not pin the server's key", expected="`ssh-ed25519 AAAA...`", where=f"{where}.host_key")
        for field in ("done", "failed"):
            if not getattr(settings, field) or "/" in getattr(settings, field):
                raise ConfigError(f"Poll `{name}`: not a folder's name", got=getattr(settings, field), where=f"{where}.{field}")
        self.mapping = Mapping(settings, name)
        self._before: dict[str, tuple[Seen, int]] = {}

    def first_cursor(self, now_us: int) -> Cursor:
        return files.nothing_known()

    async def pages(self, cursor: Cursor, at: At) -> AsyncIterator[Page]:
        ssh = imported()
        await at.turn()
        try:
            async with connected(ssh, self.settings) as connection, connection.start_sftp_client() as client:
                async for page in self._pages(client, cursor, at):
                    yield page
        except (ssh.Error, ssh.KeyImportError, ssh.KeyEncryptionError, OSError, TimeoutError) as error:
            raise trouble(ssh, error) from None

    async def _pages(self, client, cursor: Cursor, at: At) -> AsyncIterator[Page]:
        for one in files.complete(await self._there(client), self._before, self.settings, at.now_us()):
            path = await self._fetched(client, one, at.folder)
            if path is None:
                continue
            content = await asyncio.to_thread(files.content_of, path)
            if content not in cursor["known"]:
                bad = []
                try:
                    async for page in Reading(self.mapping, path, one, content).pages(cursor, at):
                        yield page
                        cursor = page.cursor
                except (NotNow, NotAllowed):
                    raise
                except MidflightError as error:
                    bad = [files.not_a_table(one, error)]
                cursor = files.known(cursor, content)
                yield Page([], cursor, True, bad)
            else:
                bad = []
            path.unlink(missing_ok=True)
            await self._move(client, one, self.settings.failed if bad else self.settings.done)
        yield Page([], cursor, False, known_us=at.now_us() - int(self.settings.settle_s * 1e6))

    async def _there(self, client) -> list[Seen]:
        found = []
        async for entry in client.scandir(self.settings.folder):
            about = entry.attrs
            name = entry.filename if isinstance(entry.filename, str) else entry.filename.decode("utf-8", "replace")
            # A name from another machine is a name, and no path.
            if stat.S_ISREG(about.permissions or 0) and "/" not in name and name not in (".", ".."):
                found.append(Seen(name, about.size or 0, int(about.mtime or 0) * 1_000_000))
        return found

    async def _fetched(self, client, one: Seen, folder: Path) -> Path | None:
        """Fetch a file; None where it changed meanwhile, and then it is not complete."""
        if one.size > files.file_bytes_max:
            raise NotAllowed(f"{one.name} is too large", expected=f"at most {files.file_bytes_max} bytes", got=one.size, todo="Split it")
        remote, path = self._remote(one.name), folder / "fetched"
        async with asyncio.timeout(fetch_s_max):
            async with client.open(remote, "rb") as source:
                with open(path, "wb") as target:  # noqa: ASYNC230 (pieces of a quarter megabyte)
                    while chunk := await source.read(256 * 1024):
                        target.write(chunk)
                        if target.tell() > one.size:
                            break
            about = await client.stat(remote)
        same = path.stat().st_size == one.size == about.size and int(about.mtime or 0) * 1_000_000 == one.changed_us
        if not same:
            self._before.pop(one.name, None)
            path.unlink(missing_ok=True)
        return path if same else None

    async def _move(self, client, one: Seen, folder: str) -> None:
        """Move a file on the server. Where that is not allowed it stays, which is no harm."""
        ssh = imported()
        place = PurePosixPath(self.settings.folder) / folder
        with contextlib.suppress(ssh.SFTPFileAlreadyExists, ssh.SFTPFailure, ssh.SFTPPermissionDenied):
            await client.mkdir(str(place))
        for name in (one.name, f"{one.changed_us}-{one.name}"):
            try:
                about = await client.stat(self._remote(one.name))
                if (about.size, int(about.mtime or 0) * 1_000_000) != (one.size, one.changed_us):
                    return  # somebody wrote to it at the last moment: it is not what was read
                await client.rename(self._remote(one.name), str(place / name))
                return
            except (ssh.SFTPNoSuchFile, ssh.SFTPPermissionDenied):
                return  # somebody took it away, or nobody may
            except (ssh.SFTPFailure, ssh.SFTPFileAlreadyExists):
                continue

    def _remote(self, name: str) -> str:
        return str(PurePosixPath(self.settings.folder) / name)

    def again(self, raw: bytes) -> list[Found]:
        return files.again(self.mapping, raw, self.settings)


def imported():
    """Return AsyncSSH. Raises NotAllowed with how to get it."""
    try:
        import asyncssh
    except ImportError:
        raise NotAllowed("SFTP is spoken by AsyncSSH, which is not installed", todo="pip install 'midflight[sftp]'") from None
    return asyncssh


def connected(ssh, settings):
    """Return a connection to come, to a server whose key is pinned; ``settings`` say host, port, user and what shows who we are."""
    key = ssh.import_public_key(settings.host_key)
    keys = [ssh.import_private_key(settings.private_key, settings.passphrase or None)] if settings.private_key else None
    return ssh.connect(
        settings.host, settings.port, username=settings.user, password=settings.password or None, client_keys=keys,
        known_hosts=([key], [], []), agent_path=None, config=None, connect_timeout=connect_s, login_timeout=connect_s,
        preferred_auth="publickey,password", keepalive_interval=30,
    )  # fmt: skip


def trouble(ssh, error: Exception) -> NotNow | NotAllowed:
    said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if isinstance(error, ssh.HostKeyNotVerifiable):
        return NotAllowed("The server shows another key than `host_key`", got=said, todo="Find out why before you change it")
    if isinstance(error, ssh.PermissionDenied | ssh.KeyImportError | ssh.KeyEncryptionError | ssh.SFTPPermissionDenied):
        return NotAllowed("The server does not let us in, or not to the folder", got=said, todo="Check user, key and `folder`")
    if isinstance(error, ssh.SFTPNoSuchFile | ssh.SFTPNoSuchPath):
        return NotAllowed("There is no such folder on the server", got=said, todo="Check `folder`")
    if isinstance(error, OSError) and error.errno == 28:
        return NotNow("There is no room to fetch files to", got=os.strerror(28))
    return NotNow("The server cannot be reached, or the connection broke", got=said)


EXAMPLES = Sftp.EXAMPLES = (
    {
        "title": "Customers, fetched each hour",
        "settings": {
            "host": "files.shop.example", "user": "midflight", "host_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample", "password": "x",
            "folder": "export", "email": "email", "traits": ["country"], "every_s": 3600,
        },
        "file": "email,country\nada@example.com,NO\n",
        "events": [{"kind": "identified", "recipient": "ada@example.com", "traits": {"country": "NO"}}],
    },
)  # fmt: skip
