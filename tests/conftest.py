"""What every test shares: settings that leave nothing to the machine's mood."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

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
