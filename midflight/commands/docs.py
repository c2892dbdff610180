"""Write the generated pages of docs/ again: API, commands, configuration, and one for each kind of plugin."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import typer

from ..kit.errors import MidflightError
from . import _pages


def command(
    folder: Path = typer.Option(Path("docs"), "--to", help="The folder of the pages."),
    check: bool = typer.Option(False, "--check", help="Write nothing; fail where a page is not as it would be written."),
) -> None:
    """Write the generated pages of docs/ again: API, commands, configuration, and one for each kind of plugin."""
    if not folder.is_dir():
        raise MidflightError(f"No folder {folder}", todo="Run it at the top of the source tree, or name the folder with --to")
    stale = []
    for name, text in pages().items():
        path = folder / name
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text)
            print(f"wrote {path}")
    if check and stale:
        print(f"{', '.join(stale)}: not as the code says; `midflight docs` writes them again")
        raise typer.Exit(1)


def pages() -> dict[str, str]:
    """Return ``{file name: text}`` of every generated page."""
    names = sorted(module.name for module in pkgutil.iter_modules(_pages.__path__))
    return {f"{name}.md": importlib.import_module(f"{_pages.__name__}.{name}").page() for name in names}
