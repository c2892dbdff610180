"""Starting where it cannot work: one line that says why, and no traceback."""

from __future__ import annotations

import os
import resource
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import apsw
import httpx
import msgspec
import pytest

from midflight.config import config_from
from midflight.serve.auth import Access, NoRoom
from midflight.serve.listening import CannotListen, listen


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which somebody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        found.listen()
        yield found.getsockname()[1]


def start(folder: Path, command: str, **settings: object) -> subprocess.CompletedProcess:
    path = folder / "midflight.yaml"
    path.write_bytes(msgspec.json.encode({"data": str(folder / "data"), "door": {"port": 0}, **settings}))
    environment = os.environ | {"MIDFLIGHT_CONFIG": str(path)}
    return subprocess.run(
        [sys.executable, "-m", "midflight", command], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(("command", "name"), [("up", "door"), ("up", "console"), ("console", "console"), ("door", "door")])
def test_a_taken_port_is_one_line(command: str, name: str, taken: int, tmp_path: Path) -> None:
    """Whoever wants the port says which it is and which setting to change; `up` starts nothing then."""
    done = start(tmp_path, command, **{name: {"port": taken}})
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert f"The {name} cannot listen: Address already in use - at `127.0.0.1:{taken}`" in line and f"`{name}.port`" in line


def test_a_free_port_is_had(taken: int) -> None:
    """The control: the same call listens where nobody does, and lets go of what it could not have."""
    with listen("127.0.0.1", 0, "door") as found:
        port = found.getsockname()[1]
        with pytest.raises(CannotListen, match=str(port)):
            listen("127.0.0.1", port, "door")
    listen("127.0.0.1", port, "door").close()
    with pytest.raises(CannotListen, match="door"):
        listen("256.1.1.1", taken, "door")


@pytest.mark.parametrize("command", ["up", "console", "door"])
def test_a_data_folder_that_cannot_be_is_one_line(command: str, tmp_path: Path) -> None:
    """A file in the place of the folder stops the start."""
    (tmp_path / "file").write_text("")
    done = start(tmp_path, command, data=str(tmp_path / "file" / "data"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "The data folder cannot be made: Not a directory" in line and "`$.data`" in line


def test_the_data_folder_is_its_owners(tmp_path: Path) -> None:
    """Numbers, addresses and histories in it are nobody else's; a folder that is there already keeps its mode."""
    Access(config_from({"data": str(tmp_path / "new")})).close()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    (tmp_path / "old").mkdir()
    (tmp_path / "old").chmod(0o750)
    Access(config_from({"data": str(tmp_path / "old")})).close()
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o750


def test_a_damaged_file_of_users_is_one_line(tmp_path: Path) -> None:
    """What is no database is named."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "access.db").write_bytes(b"x" * 5000)
    done = start(tmp_path, "up")
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "Users and tokens cannot be read" in line and "access.db" in line


def test_the_console_starts_on_a_full_disk(tmp_path: Path) -> None:
    """SQLite has no room for the files it needs to read: the console starts, every page says so with 503, and works once there is room."""
    Access(config_from({"data": str(tmp_path / "data")})).close()
    store = apsw.Connection(str(tmp_path / "data" / "store.db"))
    store.execute("PRAGMA journal_mode=WAL; CREATE TABLE meta (key, value)")
    store.close()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    path = tmp_path / "midflight.yaml"
    path.write_bytes(msgspec.json.encode({"data": str(tmp_path / "data"), "console": {"port": port}}))
    unlimited = resource.RLIM_INFINITY
    with (tmp_path / "said").open("wb") as said:
        console = subprocess.Popen(
            [sys.executable, "-m", "midflight", "console"],
            env=os.environ | {"MIDFLIGHT_CONFIG": str(path), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=said,
            stderr=said,
            # No file may grow beyond this, as on a full disk; a soft limit, which is lifted below.
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8 * 1024, unlimited)),
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, headers={"accept": "text/html"}) as client:
            until = time.monotonic() + 60
            while True:
                assert console.poll() is None and time.monotonic() < until, (tmp_path / "said").read_text()
                with suppress(httpx.ConnectError):
                    assert client.get("/health").status_code == 200
                    break
                time.sleep(0.1)
            for path_ in ("/login", "/v1/campaigns"):
                refused = client.get(path_, headers={"authorization": "Bearer t", "cookie": "midflight_session=s"})
                assert refused.status_code == 503 and "retry-after" in refused.headers
                assert "Users and tokens cannot be read or written" in refused.text and "is it full?" in refused.text
                assert str(tmp_path) not in refused.text, "where the file is concerns the operator alone"
            refused = client.get("/ready")
            assert refused.status_code == 503 and "The numbers cannot be read" in refused.text and "is it full?" in refused.text
            assert "Users and tokens cannot be read or written" in (tmp_path / "said").read_text()
            resource.prlimit(console.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
            assert client.get("/login").status_code == client.get("/ready").status_code == 200
            assert client.get("/v1/campaigns", headers={"authorization": "Bearer t"}).status_code == 401
    finally:
        console.terminate()
        assert console.wait(30) == 0


def test_commands_about_users_stop_on_a_full_disk(tmp_path: Path) -> None:
    """Control: whoever is not patient is told at once."""
    config = config_from({"data": str(tmp_path / "data")})
    Access(config).close()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * 1024, hard))
    try:
        with pytest.raises(NoRoom, match="access.db"):
            Access(config)
        patient = Access(config, patient=True)
        with pytest.raises(NoRoom):
            patient.users()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert patient.users() == []
    patient.close()
