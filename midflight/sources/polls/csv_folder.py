"""Poll `csv_folder`: files that somebody puts into a folder."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

from ...kit.errors import ConfigError, MidflightError
from . import _files as files
from ._files import FileSettings, Reading, Seen
from ._mapping import Mapping
from .poll import At, Cursor, Found, NotAllowed, NotNow, Page, Poll


class Settings(FileSettings, kw_only=True, frozen=True):
    folder: str  # the drop folder; subfolders are not looked into


class CsvFolder(Poll):
    """Tables in a folder of this machine (https://www.rfc-editor.org/rfc/rfc4180, and what programs make of it: other separators, UTF-16,
    gzip). A file is taken when it is complete, read once by its content, and moved. Where rows have no time of their own they are of
    when the file was written; of a person that was said already only what changed is said, so a full export each night is right.
    """

    label: ClassVar[str] = "CSV folder"
    doc: ClassVar[str] = "Tables that somebody drops: people with columns as traits, or events."
    docs_url: ClassVar[str] = "https://www.rfc-editor.org/rfc/rfc4180"
    Settings = Settings

    def __init__(self, settings: Settings, *, name: str, source=None) -> None:
        super().__init__(settings, name=name, source=source)
        self.folder = Path(settings.folder)
        for field in ("done", "failed"):
            folder = getattr(settings, field)
            if not folder or "/" in folder or folder.startswith("."):
                raise ConfigError(
                    f"Poll `{name}`: not a folder's name", expected="such as `done`", got=folder, where=f"$.polls.{name}.{field}"
                )
        self.mapping = Mapping(settings, name)
        self._before: dict[str, tuple[Seen, int]] = {}

    def first_cursor(self, now_us: int) -> Cursor:
        return files.nothing_known()

    async def pages(self, cursor: Cursor, at: At) -> AsyncIterator[Page]:
        for one in files.complete(self._there(), self._before, self.settings, at.now_us()):
            path = self.folder / one.name
            content = await asyncio.to_thread(files.content_of, path)
            if content in cursor["known"]:
                self._move(one, self.settings.done)
                continue
            bad = []
            try:
                async for page in Reading(self.mapping, path, one, content).pages(cursor, at):
                    yield page
                    cursor = page.cursor
            except (NotNow, NotAllowed):
                raise
            except MidflightError as error:
                bad = [files.not_a_table(one, error)]
            if self._seen(path) != one or await asyncio.to_thread(files.content_of, path) != content:
                # It was not complete after all; what it becomes is another content.
                cursor = cursor | {"file": None}
                yield Page([], cursor, True, bad)
                continue
            cursor = files.known(cursor, content)
            yield Page([], cursor, True, bad)
            # Only what is known for good leaves the folder: after a death before this it is met again, known, and moved then.
            self._move(one, self.settings.failed if bad else self.settings.done)
        yield Page([], cursor, False, known_us=at.now_us() - int(self.settings.settle_s * 1e6))

    def _there(self) -> list[Seen]:
        try:
            found = [self._seen(Path(entry.path)) for entry in os.scandir(self.folder) if entry.is_file(follow_symlinks=False)]
        except OSError as error:
            raise NotNow(
                "The drop folder cannot be read", got=f"{self.folder}: {error.strerror}", todo="Make it, or change `folder`"
            ) from None
        return [one for one in found if one]

    def _seen(self, path: Path) -> Seen | None:
        try:
            about = path.stat()
        except FileNotFoundError:
            return None
        return Seen(path.name, about.st_size, about.st_mtime_ns // 1000)

    def _move(self, one: Seen, folder: str) -> None:
        """Move a file; a name that is taken there gets the time beside it. Raises NotNow."""
        place = self.folder / folder
        try:
            place.mkdir(exist_ok=True)
            target = place / one.name
            if target.exists():
                target = place / f"{one.changed_us}-{one.name}"
            os.replace(self.folder / one.name, target)
            now = self._seen(target)
            if now and (now.size, now.changed_us) != (one.size, one.changed_us):
                # Somebody wrote to it at the last moment: it is not what was read.
                os.replace(target, self.folder / one.name)
        except FileNotFoundError:
            return  # somebody took it away
        except OSError as error:
            raise NotNow(f"{one.name} cannot be moved to {place}", got=error.strerror, todo="Let Midflight write there") from None

    def again(self, raw: bytes) -> list[Found]:
        return files.again(self.mapping, raw, self.settings)


EXAMPLES = CsvFolder.EXAMPLES = (
    {
        "title": "Customers, as a shop exports them each night",
        "settings": {"folder": "/srv/drop", "key": "Customer ID", "email": "E-mail", "traits": {"country": "Country", "age": "Age"}},
        "file": "Customer ID;E-mail;Country;Age\nc-1;ada@example.com;NO;36\n",
        "events": [{"kind": "identified", "recipient": "ada@example.com", "traits": {"country": "NO", "age": "36"}}],
    },
)
