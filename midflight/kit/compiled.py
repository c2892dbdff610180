"""How hot loops are compiled, and where compiled code is kept between runs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numba

# Compiled code gets its arrays from outside and makes none. Told so, Numba leaves out counting references to them, which it otherwise does
# with atomic operations at each call: a third of the scanner's time.
entry = numba.njit(cache=True, _nrt=False)
# Functions that only compiled code calls need no entry from Python, which is half of what there is to compile.
inner = numba.njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True, _nrt=False)

# The same for larger ones: a call costs little beside what they do, and each stands in the code once.
step = numba.njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False)


def keep_compiled(*packages: str) -> None:
    """Keep the compiled functions of packages in a folder named after their sources.

    Numba itself notices only changes of the file in which a function stands, not of those that it calls or whose constants it uses, and
    keeps its files beside the source, where an installed package may not write.
    """
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    digest = hashlib.sha256(numba.__version__.encode())
    sources = (path for package in packages for path in sorted(Path(package).rglob("*.py")))
    for path in (Path(__file__), *sources):
        digest.update(path.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(home) / "midflight" / f"compiled-{digest.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        # Nowhere to keep it: numba's own places are tried.
        return
    numba.config.CACHE_DIR = str(folder)
