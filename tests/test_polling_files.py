"""Drop folders, here and by SFTP from a real server: only whole files, each once by its content, whatever breaks in between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from polling_world import NOW_US, Died, World, dies_at

from midflight.sandbox.file_server import FileServer
from midflight.sources.polls import _files

TRAITS = ["plan", "age"]


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "page_rows", 20)


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    folder = tmp_path / "drop"
    folder.mkdir()
    return folder


class Place:
    """A drop folder and how it is polled; ``move`` wakes the poll up as another day would."""

    def __init__(self, here: World, drop: Path, server: FileServer | None) -> None:
        self.here, self.drop, self.server = here, drop, server


@pytest.fixture(params=["csv_folder", "sftp"])
def place(request: pytest.FixtureRequest, tmp_path: Path, drop: Path) -> Iterator[Place]:
    """The same promises for both."""
    with contextlib.ExitStack() as stack:
        server = None
        told: dict = {"kind": "csv_folder", "folder": str(drop)}
        if request.param == "sftp":
            server = stack.enter_context(FileServer(drop))
            told = {
                "kind": "sftp", "host": "127.0.0.1", "port": server.port, "user": "shop", "password": "let-me-in",
                "host_key": server.host_key, "folder": ".",
            }  # fmt: skip
        told |= {"traits": TRAITS, "key": "id", "settle_s": 10, "per_second": 1000}
        yield Place(World(tmp_path / "data", {"files": told}), drop, server)


def rows(first: int, end: int, plan: str = "free") -> str:
    return "id,email,plan,age\n" + "".join(f"{n},p{n}@example.com,{plan},30\n" for n in range(first, end))


def put(folder: Path, name: str, text: str, at_us: int = NOW_US) -> None:
    (folder / name).write_text(text)
    os.utime(folder / name, (at_us / 1e6, at_us / 1e6))


def people(first: int, end: int, plan: str = "free") -> dict:
    return {f"p{n}@example.com": {"plan": plan, "age": "30"} for n in range(first, end)}


def settle(place: Place, times: int = 2) -> None:
    """Look, wait as long as a file has to lie still, and look again."""
    for _ in range(times):
        place.here.turn("files")
        place.here.clock.ahead(30)


def life(place: Place, *steps) -> None:
    """Look in one life, doing something before each look."""

    async def looks(polling) -> None:
        for step in steps:
            step()
            await polling.turn("files")
            place.here.clock.ahead(30)

    place.here.lives(looks)


def test_a_file_is_read_once_and_moved(place: Place) -> None:
    """All rows come, the file goes to `done`; the same content under another name says nothing and goes there too."""
    life(place, lambda: put(place.drop, "a.csv", rows(0, 45)), lambda: None)
    assert place.here.log.people() == people(0, 45) and os.listdir(place.drop) == ["done"]
    life(place, lambda: put(place.drop, "b.csv", rows(0, 45)), lambda: None)
    assert len(place.here.log.events()) == 45 and sorted(os.listdir(place.drop / "done")) == ["a.csv", "b.csv"]
    later = NOW_US + 3600 * 1_000_000
    place.here.clock.at_us = later
    life(place, lambda: put(place.drop, "a.csv", rows(0, 44) + "44,p44@example.com,pro,30\n", later), lambda: None)
    assert place.here.log.events()[45:][0].traits == {"plan": "pro"} and len(place.here.log.events()) == 46


def test_a_file_that_is_still_written_is_left_alone(place: Place) -> None:
    """One that grows, or has an unfinished name, is not taken before it lies still."""
    text = rows(0, 45)

    def write(part: str, at: int):
        return lambda: put(place.drop, "a.csv", part, place.here.clock.now_us())

    life(place, write(text[:200], 0), write(text[:400], 1), write(text[:900], 2))
    assert place.here.log.events() == []
    life(place, write(text, 3), lambda: put(place.drop, "b.csv.part", rows(90, 95)), lambda: None)
    assert place.here.log.people() == people(0, 45) and "b.csv.part" in os.listdir(place.drop)


@pytest.mark.parametrize("where", ["poll_appended", "poll_saved"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_death_in_the_middle_of_a_file_loses_nothing(place: Place, monkeypatch: pytest.MonkeyPatch, where: str, count: int) -> None:
    """The next life goes on in the file behind the last row whose page is durable, and says nothing under another id."""
    put(place.drop, "a.csv", rows(0, 45), NOW_US - 3600 * 1_000_000)
    with monkeypatch.context() as patched:
        dies_at(patched, where, count)
        with pytest.raises(Died):
            settle(place)
    settle(place)
    assert place.here.log.people() == people(0, 45) and len(place.here.log.unique()) == 45
    assert os.listdir(place.drop / "done") == ["a.csv"]


def test_bad_rows_and_bad_files_stop_no_other(place: Place) -> None:
    """Rows that cannot be read are set aside with their line, a file that is no table goes to `failed`, the others are read."""
    put(place.drop, "a.csv", "id,email,plan,age\n1,a@example.com,x\n2,nobody,x,1\n3,c@example.com,pro,4\n", NOW_US - 9 * 10**9)
    (place.drop / "b.csv").write_bytes(b"PK\x03\x04 a workbook")
    os.utime(place.drop / "b.csv", (NOW_US / 1e6 - 8000, NOW_US / 1e6 - 8000))
    put(place.drop, "c.csv", rows(5, 6), NOW_US - 7 * 10**9)
    settle(place)
    assert set(place.here.log.people()) == {"c@example.com", "p5@example.com"}
    assert os.listdir(place.drop / "failed") == ["b.csv"] and sorted(os.listdir(place.drop / "done")) == ["a.csv", "c.csv"]
    assert place.here.state["polls"]["files"]["set_aside"] == 3 and place.here.state["polls"]["files"]["state"] == "good"


def test_a_file_that_grows_while_it_is_read_is_read_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody adds at the last moment is not lost with the file."""
    from midflight.serve.polling import Polling

    put(place.drop, "a.csv", rows(0, 45), NOW_US - 3600 * 1_000_000)
    keep, grown = Polling._keep, []

    async def keeping(self, name, page, job):
        if not grown:
            grown.append(1)
            put(place.drop, "a.csv", rows(0, 50), NOW_US - 1800 * 1_000_000)
        return await keep(self, name, page, job)

    monkeypatch.setattr(Polling, "_keep", keeping)
    settle(place, 3)
    assert place.here.log.people() == people(0, 50) and len(place.here.log.unique()) == 50


# -- SFTP alone ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def remote(tmp_path: Path, drop: Path) -> Iterator[Place]:
    with FileServer(drop) as server:
        told = {
            "kind": "sftp", "host": "127.0.0.1", "port": server.port, "user": "shop", "password": "let-me-in", "host_key": server.host_key,
            "folder": ".", "traits": TRAITS, "key": "id", "settle_s": 0, "per_second": 1000,
        }  # fmt: skip
        yield Place(World(tmp_path / "data", {"files": told}), drop, server)


def test_another_host_key_is_not_believed(remote: Place) -> None:
    """A server that shows another key gets no password, and the poll says why it waits."""
    from asyncssh import generate_private_key

    other = generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    remote.here.raw["files"]["host_key"] = other
    put(remote.drop, "a.csv", rows(0, 3))
    remote.here.turn("files")
    assert "another key" in remote.here.state["polls"]["files"]["error"]["what"] and remote.server.logins == 0


def test_a_wrong_password_and_a_missing_folder_are_said(remote: Place) -> None:
    """Both need somebody, and neither the password nor anything else secret is in what is said."""
    remote.here.raw["files"]["password"] = "canary-55"
    remote.here.turn("files")
    assert remote.here.state["polls"]["files"]["state"] == "not_allowed"
    assert "canary" not in (remote.here.folder / "polls" / "state.json").read_text()
    remote.here.raw["files"] |= {"password": "let-me-in", "folder": "nowhere"}
    remote.here.turn("files")
    assert "no such folder" in remote.here.state["polls"]["files"]["error"]["what"]


def test_a_connection_that_breaks_in_the_middle_loses_nothing(remote: Place) -> None:
    """Cut while a file is fetched, again and again, the poll comes back and has all of it in the end."""
    put(remote.drop, "a.csv", rows(0, 45), NOW_US - 10**10)
    remote.server.cuts = 2
    assert remote.here.turns_until_good("files") >= 1
    remote.here.turn("files")
    assert remote.here.log.people() == people(0, 45) and len(remote.here.log.unique()) == 45


def test_a_server_that_lets_nobody_rename_costs_nothing_but_time(remote: Place) -> None:
    """The file stays where it is, is known by its content and said once."""
    put(remote.drop, "a.csv", rows(0, 45), NOW_US - 10**10)
    remote.server.read_only = True
    remote.here.turn("files", 3)
    assert len(remote.here.log.events()) == 45 and os.listdir(remote.drop) == ["a.csv"]


def test_the_servers_thread_ends(remote: Place) -> None:
    """The fake is a real server in a thread of its own that stops when it is told to."""
    assert any(thread.name == "file-server" for thread in threading.enumerate())
    assert asyncio.iscoroutinefunction(FileServer._serve)
