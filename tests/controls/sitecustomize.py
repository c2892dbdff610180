"""Makes a process one of the deliberately broken builds of this folder, by name; the tests have to notice each."""

from __future__ import annotations

import importlib
import os

build = os.environ.get("MIDFLIGHT_BUILD", "")
if build:
    importlib.import_module(f"broken_{build}").apply()
