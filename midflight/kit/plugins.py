"""A folder is a registry: every file in it that defines the class named after it is a plugin.

``mail_gun.py`` has to define ``MailGun``; a file that does not is an error, not silently left out. A class may state
another spelling of its own name in the file's ``PLUGIN`` variable (``ses.py`` with ``PLUGIN = SES``).
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from .errors import NotFound, nearest


class Registry:
    """The plugins of one package folder, by file name. ``contract`` is the contract's own module and no plugin."""

    def __init__(self, package: str, contract: str) -> None:
        self.package = package
        self.contract = contract

    def names(self) -> list[str]:
        """Return the plugin names, sorted, read from the files that are there."""
        folder = importlib.import_module(self.package)
        found = pkgutil.iter_modules(folder.__path__)
        # A folder in the folder is a registry of its own, or none.
        return sorted(m.name for m in found if m.name != self.contract and not m.name.startswith("_") and not m.ispkg)

    def module(self, name: str) -> ModuleType:
        if name not in self.names():
            kind = self.package.rsplit(".", 1)[-1]
            raise NotFound(f"Unknown name in {kind}: `{name}`", todo=nearest(name, self.names()))
        return importlib.import_module(f"{self.package}.{name}")

    def get(self, name: str) -> type:
        """Return the plugin class of that file name. Raises NotFound with the nearest known name."""
        module = self.module(name)
        wanted = name.replace("_", "").lower()
        for candidate in (getattr(module, "PLUGIN", None), *vars(module).values()):
            if isinstance(candidate, type) and candidate.__module__ == module.__name__:
                if candidate is getattr(module, "PLUGIN", None) or candidate.__name__.lower() == wanted:
                    return candidate
        raise AssertionError(f"{module.__name__} defines no class named like its file")

    def all(self) -> dict[str, type]:
        return {name: self.get(name) for name in self.names()}
