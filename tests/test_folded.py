"""What the door reads of the engine's file: quiet while there is none yet, and heard of where it cannot be read."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from midflight.serve.door.folded import NOTHING, Folded
from midflight.store.schema import SCHEMA
from midflight.store.write import StoreWriter


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def statements(sql: str) -> Iterator[str]:
    """Yield the parts of a script that SQLite takes one by one."""
    part = ""
    for line in sql.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            yield part
            part = ""


def test_a_store_that_is_being_made_is_nothing_to_speak_of(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    """Before the first start of the engine, after each table that it makes, and before it has said anything: nothing is known, no line."""
    folded = Folded(tmp_path)
    folded.look()
    with apsw.Connection(str(tmp_path / "store.db")) as db:
        folded.look()
        tables = list(statements(SCHEMA))
        assert len(tables) > 10
        for statement in tables:
            db.execute(statement)
            folded.look()
            assert folded.find("spring", "ada@example.com") == NOTHING
    assert heard.text == "" and folded.position == -1
    writer = StoreWriter(tmp_path / "store.db")
    writer.start("a fold")
    folded.look()
    assert folded.position == 0 and heard.text == ""
    writer.db.close()
    folded.close()


def test_a_store_that_cannot_be_read_is_told_once(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    """One that was made and has lost a table, and what is no store at all: a line for each, not one for each look."""
    writer = StoreWriter(tmp_path / "store.db")
    writer.start("a fold")
    writer.db.execute("DROP TABLE advised")
    folded = Folded(tmp_path)
    for _ in range(3):
        folded.look()
    assert heard.text.count("cannot be read: no such table: advised") == 1
    writer.db.close()
    folded.close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "store.db").write_bytes(b"this is no database, whatever its name says" * 100)
    folded = Folded(tmp_path / "other")
    for _ in range(3):
        folded.look()
    assert heard.text.count("cannot be read") == 2 and folded.position == -1
    folded.close()
