"""Where compiled code is kept between runs, so that a change in any file of it compiles all of it again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numba


def keep_compiled(package: str) -> None:
    """Keep the compiled functions of a package in a folder named after its source.

    Numba itself notices only changes of the file in which a function stands, not of those that it calls or whose constants it uses, and
    keeps its files beside the source, where an installed package may not write.
    """
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(package).glob("*.py")):
        digest.update(path.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(home) / "midflight" / f"compiled-{digest.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        # Nowhere to keep it: numba's own places are tried.
        return
    numba.config.CACHE_DIR = str(folder)
