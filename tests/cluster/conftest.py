"""What the tests of the cluster share: one broker and one database for each file's tests."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from broker import Broker
    from postgres import Postgres

# `make test` has nothing of this installed, and does not run it; `make test-cluster` fails where it finds no test.
collect_ignore_glob = [] if importlib.util.find_spec("confluent_kafka") else ["test_*.py"]


@pytest.fixture(scope="module")
def server_folder() -> Iterator[Path]:
    """A folder that everybody may enter, as a server needs it that runs as another user. pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="midflight-cluster-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def broker(server_folder: Path) -> Iterator[Broker]:
    """A real Kafka."""
    from broker import Broker

    with Broker(server_folder / "kafka") as one:
        yield one


@pytest.fixture(scope="module")
def postgres(server_folder: Path) -> Iterator[Postgres]:
    """A real Postgres."""
    from postgres import Postgres

    with Postgres(server_folder / "postgres") as one:
        yield one
