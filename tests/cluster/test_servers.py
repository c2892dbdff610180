"""The servers of the cluster's tests: they start, stop, die, hang and come back on their data, and their files are the ones named."""

from __future__ import annotations

import os
import time
from pathlib import Path

import kafka_jars
import psycopg
import pytest
from broker import Broker
from loopback import children, running
from postgres import Postgres

pytestmark = pytest.mark.cluster


def test_a_broker_keeps_its_topics_when_it_is_killed_and_when_it_is_stopped(broker: Broker) -> None:
    """A topic that was made is there after a kill and after a stop, at the same address, and the broker answers again."""
    broker.make_topic("kept", 3)
    for end in (broker.kill, broker.stop):
        end()
        assert not broker.alive and not broker.ready()
        broker.start()
        assert len(broker.admin().list_topics().topics["kept"].partitions) == 3


def test_a_broker_that_hangs_answers_again_when_its_time_goes_on(broker: Broker) -> None:
    """While it is paused it is alive and does not answer, afterwards it does."""
    broker.pause()
    assert broker.alive and not broker.ready()
    broker.resume()
    broker.wait_ready()


def test_a_broker_that_cannot_start_says_why(server_folder: Path) -> None:
    """Settings that no broker accepts end the start with the broker's own words, and nothing is left running."""
    broker = Broker(server_folder / "misled", {"process.roles": "conductor"})
    with pytest.raises(AssertionError, match="process.roles"):
        broker.start()
    assert not broker.alive


def test_a_broker_writes_into_its_own_folder_alone(broker: Broker) -> None:
    """Every file that it has open for writing stands in its folder."""
    open_files = [path.resolve() for path in Path(f"/proc/{broker.process.pid}/fd").iterdir()]
    written = [path for path in open_files if path.is_file() and path.suffix != ".jar" and "/lib/jvm/" not in str(path)]
    assert written and all(path.is_relative_to(broker.folder) for path in written), written


def insert(postgres: Postgres, number: int) -> None:
    with postgres.connect() as connection:
        connection.execute("create table if not exists kept (number int)")
        connection.execute("insert into kept values (%s)", [number])


def kept(postgres: Postgres) -> list[int]:
    with postgres.connect() as connection:
        return [number for (number,) in connection.execute("select number from kept order by number")]


def test_a_database_keeps_what_was_committed_when_it_is_killed_and_when_it_is_stopped(postgres: Postgres) -> None:
    """What a transaction committed is there after a kill and after a stop; what one had not committed when it died is not."""
    insert(postgres, 1)
    undone = postgres.connect()
    undone.execute("insert into kept values (2)")
    inside = children(postgres.process.pid)
    postgres.kill()
    assert inside and not any(running(pid) for pid in inside)
    with pytest.raises(psycopg.OperationalError):
        undone.commit()
    undone.close()
    postgres.start()
    insert(postgres, 3)
    postgres.stop()
    postgres.start()
    assert kept(postgres) == [1, 3]


def test_a_database_that_hangs_keeps_its_connections(postgres: Postgres) -> None:
    """A question asked while it is paused is answered when its time goes on, and nobody else comes in meanwhile."""
    with postgres.connect() as connection:
        postgres.pause()
        began = time.monotonic()
        assert not postgres.ready()
        assert time.monotonic() - began > 1
        postgres.resume()
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_database_lets_nobody_in_without_its_password(postgres: Postgres) -> None:
    """A connection with another password is refused."""
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(postgres.dsn.replace(postgres.password, "guessed")).close()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A lock that names one jar, which the machine has already."""
    if "KAFKA_HOME" in os.environ:
        pytest.skip("Kafka is not fetched where KAFKA_HOME names one")
    jar = next(one for one in kafka_jars.locked() if one.file.startswith("slf4j-api"))
    path = tmp_path / "one.lock"
    path.write_text("  ".join(jar) + "\n")
    return path


def test_a_jar_that_is_not_what_the_lock_says_is_not_installed(lock: Path, tmp_path: Path) -> None:
    """The jar of the lock is fetched; with another checksum in the lock nothing is, and the error names file, expected and got."""
    cache = tmp_path / "jars"
    assert [path.name for path in kafka_jars.fetch(cache, lock).iterdir()] == [kafka_jars.locked(lock)[0].file]
    right = kafka_jars.locked(lock)[0].sha256
    lock.write_text(lock.read_text().replace(right, "0" * 64))
    with pytest.raises(SystemExit, match=f"slf4j-api.*expected sha256 {'0' * 64}, got {right}"):
        kafka_jars.fetch(tmp_path / "others", lock)
    assert not (tmp_path / "others").exists()


def test_a_changed_jar_is_fetched_again(lock: Path, tmp_path: Path) -> None:
    """A jar whose bytes changed on the disk is found, and replaced by the right one."""
    jar = kafka_jars.fetch(tmp_path / "jars", lock) / kafka_jars.locked(lock)[0].file
    jar.write_bytes(jar.read_bytes() + b"more")
    assert kafka_jars.wrong(jar.parent, kafka_jars.locked(lock))
    kafka_jars.fetch(tmp_path / "jars", lock)
    assert not kafka_jars.wrong(jar.parent, kafka_jars.locked(lock))
