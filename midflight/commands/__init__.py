"""The command line's registry: each file here is one command or one group of commands, imported only when it is run.

A file holds ``command``, a function, or ``app``, a typer group. Its name is the command's name; a trailing underscore, for words that
Python keeps to itself (``import_.py``), is dropped. The first sentence of its docstring is its line in ``midflight --help``.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import typer

from ..kit.errors import NotFound, nearest

FOLDER = Path(__file__).parent


def names() -> dict[str, str]:
    """Return ``{command name: module name}``, sorted, read from the files that are there."""
    modules = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    return {module.rstrip("_").replace("_", "-"): module for module in modules}


def summary(name: str) -> str:
    """Return the first sentence of a command's module docstring, without importing it."""
    source = (FOLDER / f"{names()[name]}.py").read_text()
    docstring = ast.get_docstring(ast.parse(source)) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def load(name: str) -> typer.core.TyperGroup | typer.core.TyperCommand:
    """Import a command and return it ready to run. Raises NotFound with the nearest known name."""
    known = names()
    if name not in known:
        raise NotFound(f"Unknown command `{name}`", todo=nearest(name, known))
    module = importlib.import_module(f"{__name__}.{known[name]}")
    group = getattr(module, "app", None)
    if group is not None:
        found = typer.main.get_group(group)
    else:
        single = typer.Typer(add_completion=False)
        single.command()(module.command)
        found = typer.main.get_command(single)
    found.name = name
    found.help = found.help or " ".join((module.__doc__ or "").split())
    return found
