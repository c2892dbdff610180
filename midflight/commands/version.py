"""Print the versions of Midflight, Python and the parts that matter when something is reported."""

from __future__ import annotations

import platform
from importlib.metadata import version

import apsw

from .. import __version__

PARTS = ("msgspec", "numpy", "numba", "duckdb", "fastapi", "uvicorn", "cryptography")


def command() -> None:
    """Print the versions of Midflight, Python and the parts that matter when something is reported."""
    print(f"midflight {__version__}")
    print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"sqlite {apsw.sqlite_lib_version()}")
    for part in PARTS:
        print(f"{part} {version(part)}")
