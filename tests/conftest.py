"""What every test shares: settings that leave nothing to the machine's mood."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Deadlines are stopwatches; a failure prints what reproduces it instead of keeping a database of examples.
hypothesis.settings.register_profile("midflight", deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("midflight")


@pytest.fixture(scope="session")
def project() -> Path:
    """The top of the source tree."""
    return Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def no_configuration_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees no configuration that the person who runs it happens to have."""
    monkeypatch.delenv("MIDFLIGHT_CONFIG", raising=False)


@pytest.fixture(autouse=True, scope="module")
def nothing_left_open() -> Iterator[None]:
    """What a file's tests leave open is found at their end, and not in the middle of another file's."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for one file's tests."""
    # Only these tests need it installed.
    from chromium import launched

    yield from launched()
