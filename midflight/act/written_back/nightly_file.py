"""Way back `nightly_file`: one CSV file a night, for systems that take files only."""

from __future__ import annotations

import asyncio
import csv
import io
import os
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec

from ...kit.errors import ConfigError
from ...sources.polls.poll import NotNow
from ...sources.polls.sftp import connected, imported, trouble
from ...sources.source import text
from . import way_back
from .way_back import WRITTEN, Ask, Item, Outcome, WayBack

hour_us = 3_600_000_000
day_us = 24 * hour_us
upload_s_max = 600.0


class Upload(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Where the file goes by SFTP; ``host_key`` is the server's public key, no other is believed."""

    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 22
    user: str
    host_key: str
    password: str = ""
    private_key: str = ""
    passphrase: str = ""
    folder: str = "."


class Settings(way_back.Settings, kw_only=True, frozen=True):
    """The file is written to ``folder`` after ``hour`` (UTC), with whoever has changed since the last one; ``upload`` also sends it."""

    folder: str
    hour: Annotated[int, msgspec.Meta(ge=0, le=23)] = 2
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,60}$")] = "midflight-people"
    columns: list[str] = msgspec.field(
        default_factory=lambda: ["engagement"]
    )  # values that have a column each, behind email, segments and changed_at
    upload: Upload | None = None


class NightlyFile(WayBack):
    """`NAME-YYYY-MM-DD.csv` (https://www.rfc-editor.org/rfc/rfc4180), whole or not at all: written beside and renamed.

    After a death it is written again under the same name, with all who wait. A cell that a spreadsheet would take for a formula begins
    with an apostrophe (OWASP ASVS 5.0, 1.2.10).
    """

    label: ClassVar[str] = "Nightly CSV file"
    doc: ClassVar[str] = "A file each night with the people that have changed: email, segments, values."
    docs_url: ClassVar[str] = "https://www.rfc-editor.org/rfc/rfc4180"
    Settings = Settings
    batch_max = 1_000_000  # a night's file is one batch
    rests = True

    def __init__(self, settings: Settings, *, name: str) -> None:
        super().__init__(settings, name=name)
        upload = settings.upload
        if upload and not (upload.password or upload.private_key):
            raise ConfigError(f"Way back `{name}` has no way to show who it is", where=f"$.ways_back.{name}.upload")

    def due_us(self, now_us: int, last_us: int) -> int:
        """Return the next night's hour, or now where tonight's file is not written."""
        tonight = now_us // day_us * day_us + self.settings.hour * hour_us
        if now_us >= tonight:
            return now_us if last_us < tonight else tonight + day_us
        return tonight if last_us >= tonight - day_us else now_us

    def value_names(self) -> Collection[str]:
        return self.settings.columns

    def content(self, items: list[Item]) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\r\n")
        writer.writerow(["email", "segments", "changed_at", *self.settings.columns])
        for item in sorted(items, key=lambda one: one.recipient):
            at = datetime.fromtimestamp(item.changed_us / 1e6, UTC).isoformat(timespec="seconds")
            values = [value_text(item.values.get(name)) for name in self.settings.columns]
            writer.writerow([safe(cell) for cell in (item.recipient, ";".join(self.of_interest(item)), at, *values)])
        return out.getvalue()

    async def write(self, items: list[Item], ask: Ask, now_us: int) -> list[Outcome]:
        name = f"{self.settings.name}-{datetime.fromtimestamp(now_us / 1e6, UTC):%Y-%m-%d}.csv"
        path = await asyncio.to_thread(self._put, name, self.content(items))
        if self.settings.upload:
            await self._upload(path, name)
        return [WRITTEN] * len(items)

    def _put(self, name: str, content: str) -> Path:
        """Write the file so that nobody ever sees a part of it. Raises NotNow."""
        folder = Path(self.settings.folder)
        fresh = folder / f".{name}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(fresh, "w", encoding="utf-8", newline="") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, folder / name)
        except OSError as error:
            raise NotNow("The file cannot be written", got=f"{folder}: {error.strerror}", todo="It is tried again") from None
        return folder / name

    async def _upload(self, path: Path, name: str) -> None:
        """Send the file under another name and rename it there: who takes files takes whole ones."""
        ssh, upload = imported(), self.settings.upload
        try:
            async with asyncio.timeout(upload_s_max), connected(ssh, upload) as connection, connection.start_sftp_client() as client:
                part, whole = f"{upload.folder}/.{name}.part", f"{upload.folder}/{name}"
                await client.put(str(path), part)
                await client.posix_rename(part, whole)
        except (ssh.Error, ssh.KeyImportError, ssh.KeyEncryptionError, OSError, TimeoutError) as error:
            raise trouble(ssh, error) from None


def value_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return text(value) if not isinstance(value, list | dict) else msgspec.json.encode(value).decode()


def safe(cell: str) -> str:
    cell = cell.replace("\x00", "")
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
