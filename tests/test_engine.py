"""The engine by itself over a log on disk: the same log gives the same store, whatever crashes, fails, flips or restarts between."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import apsw
import msgspec
import pytest
from system import CONTROLS, PROJECT, T0, pictured, sandbox_config, state_hash, unequal, write_log

from midflight.config import Config, config_from
from midflight.events import Event
from midflight.kit.clock import VirtualClock
from midflight.kit.errors import Damaged, Locked
from midflight.kit.owned import own
from midflight.log import Reader, Record, Writer
from midflight.store import host_local, snapshots, write
from midflight.store.experiment import Numbers
from midflight.store.host_local import Careful, Engine
from midflight.store.read import TooSlow
from midflight.store.snapshots import Snapshots
from midflight.store.write import Changes
from midflight.stream import seen as seeing
from midflight.stream.ordered import new_table

SEED = 3


class Folding:
    """A log, and any number of data folders in which an engine folds it."""

    def __init__(self, folder: Path, **game: object) -> None:
        self.folder, self.log = folder, folder / "log"
        self.records = write_log(self.log, SEED, **game)
        self.made = 0

    def config(self, data: Path, **settings: object) -> Config:
        config, _ = sandbox_config({}, SEED, str(data))
        return config_from(config | settings)

    def place(self) -> Path:
        """Return a new data folder."""
        self.made += 1
        return self.folder / f"data-{self.made}"

    @contextlib.contextmanager
    def engine(self, data: Path, **settings: object) -> Iterator[Engine]:
        with Reader(self.log) as reader:
            engine = Engine(self.config(data, **settings), reader)
            try:
                yield engine
            finally:
                engine.close()

    def picture(self, data: Path) -> dict[str, list]:
        return pictured(data / "store.db")

    def folded(self, bytes_max: int = 8 << 20, **settings: object) -> dict[str, list]:
        """Fold the whole log in a new folder, at most so many bytes at a time."""
        data = self.place()
        with self.engine(data, **settings) as engine:
            while engine.step(bytes_max):
                pass
        return self.picture(data)

    def continued(self, data: Path, bytes_max: int = 8 << 20, **settings: object) -> dict[str, list]:
        """Go on in a folder to the end of the log."""
        with self.engine(data, **settings) as engine:
            while engine.step(bytes_max):
                pass
        return self.picture(data)


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> Folding:
    """A log of a few hundred requests by five vendors and a site, with repetitions, spoiled events and bad order."""
    return Folding(tmp_path_factory.mktemp("game"))


@pytest.fixture(scope="module")
def reference(game: Folding) -> dict[str, list]:
    """What the log comes to when it is folded once, in one go."""
    return game.folded()


def without_dedup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break the fold: no event is a repetition."""
    seen_before = seeing.seen_before

    def forgetful(*arguments) -> None:
        seen_before(*arguments)
        arguments[-1][:] = seeing.FOLDED

    monkeypatch.setattr(seeing, "seen_before", forgetful)


# -- the same log, the same store ------------------------------------------------------------------------------------------


def test_the_reference_has_something_in_every_table(reference: dict[str, list]) -> None:
    """The comparisons below are about cells, delays, people who clicked, dead letters, repetitions and marks."""
    assert {name for name, rows in reference.items() if rows} >= {
        "meta", "names", "cells", "delays", "campaigns", "clickers", "dead", "receipts", "duplicates", "marks",
    }  # fmt: skip


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("bytes_max", [1, 5_000, 100_000, 8 << 20])
def test_any_batch_size_and_number_of_shards_give_the_same_store(game: Folding, reference, shards: int, bytes_max: int) -> None:
    """One record at a time or all at once, one shard or four: the same SHA-256."""
    found = game.folded(bytes_max, shards=shards)
    assert unequal(found, reference) == {} and state_hash(found) == state_hash(reference)


def test_a_fold_without_dedup_has_another_hash(game: Folding, reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: the comparison above sees a fold that counts repetitions."""
    without_dedup(monkeypatch)
    assert {"cells", "duplicates"} <= set(unequal(game.folded(), reference))


def in_a_process(game: Folding, build: str = "", **environment: str) -> str:
    """Fold the log in a process with another environment; return the hash."""
    data = game.place()
    path = game.folder / f"{data.name}.json"
    path.write_bytes(msgspec.json.encode({"data": str(data), "log": str(game.log), "seed": SEED}))
    paths = os.pathsep.join([*([str(CONTROLS)] if build else []), str(PROJECT), str(PROJECT / "tests")])
    variables = os.environ | {"PYTHONPATH": paths, "MIDFLIGHT_BUILD": build} | environment
    command = [sys.executable, "-c", "import test_engine; test_engine.fold_as_told()", str(path)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.strip()


def fold_as_told() -> None:
    """Be the process that `in_a_process` starts."""
    told = msgspec.json.decode(Path(sys.argv[1]).read_bytes())
    config, _ = sandbox_config({}, told["seed"], told["data"])
    with Reader(told["log"]) as reader:
        engine = Engine(config_from(config), reader)
        engine.catch_up()
        engine.close()
    print(state_hash(pictured(Path(told["data"]) / "store.db")))


PLACES = ({"PYTHONHASHSEED": "0", "TZ": "UTC"}, {"PYTHONHASHSEED": "1", "TZ": "Asia/Kathmandu", "LC_ALL": "tr_TR.UTF-8"})


def test_hash_seed_time_zone_and_locale_do_not_matter(game: Folding, reference) -> None:
    """A process with another hash seed, time zone and locale makes the same store."""
    places = (*PLACES, {"PYTHONHASHSEED": "random", "TZ": "America/St_Johns", "LC_ALL": "C"})
    assert {in_a_process(game, **place) for place in places} == {state_hash(reference)}


def test_a_fold_that_uses_pythons_hash_is_caught(game: Folding) -> None:
    """Control: a build that names people by Python's own hash gives another store under another seed."""
    assert len({in_a_process(game, "python_hash", **place) for place in PLACES}) == 2


# -- snapshots -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_snapshot_and_replay_give_what_a_fresh_fold_gives(game: Folding, reference, seed: int) -> None:
    """Stopped at a random place with a snapshot from a random place before it, the engine ends where a fresh fold ends."""
    rng = random.Random(seed)
    data, shards = game.place(), rng.choice([1, 4])
    for _ in range(rng.randint(1, 3)):
        with game.engine(data, shards=shards) as engine:
            for part in range(2):
                for _ in range(rng.randint(0, 25)):
                    engine.step(rng.choice([1, 3_000, 20_000]))
                if part == 0 and engine.position >= engine.committed:
                    engine.snapshot()
    found = game.continued(data, rng.choice([1, 30_000, 8 << 20]), shards=shards)
    assert unequal(found, reference) == {}, f"seed {seed}"


def test_a_snapshot_that_forgets_what_was_seen_is_caught(game: Folding, reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: after a snapshot that leaves out the known events, repetitions pass for new ones."""
    data = game.place()
    with game.engine(data) as engine:
        half_way(engine)
        monkeypatch.setattr(engine.shards[0], "state", engine.shards[0].state._replace(seen=new_table(seeing.words)))
        engine.snapshot()
    assert {"duplicates", "marks"} <= set(unequal(game.continued(data), reference))


def half_way(engine: Engine, share: float = 0.5) -> None:
    """Fold a part of the log in small steps."""
    end = int(engine.reader.head() * share)
    while engine.position < end:
        engine.step(10_000)


def test_another_number_of_shards_starts_from_the_log(game: Folding, reference) -> None:
    """A snapshot of one shard is not taken for one of four; the store stays, and goes on."""
    data = game.place()
    with game.engine(data) as engine:
        half_way(engine)
        engine.snapshot()
    with game.engine(data, shards=4) as engine:
        assert engine.position == 0 < engine.committed
    assert unequal(game.continued(data, shards=4), reference) == {}


def older_store(game: Folding) -> tuple[Path, int]:
    """Return a folder whose store was replaced by an older copy while its snapshot was not, and the position of that copy."""
    data = game.place()
    with game.engine(data) as engine:
        half_way(engine, 0.3)
        older = engine.committed
    shutil.copy(data / "store.db", data / "copy.db")
    with game.engine(data) as engine:
        half_way(engine, 0.7)
        engine.snapshot()
    (data / "copy.db").rename(data / "store.db")
    return data, older


def test_a_snapshot_newer_than_the_store_is_not_used(game: Folding, reference) -> None:
    """With the store replaced by an older copy the engine starts at or before the copy's position, and ends where it should."""
    data, older = older_store(game)
    with game.engine(data) as engine:
        assert engine.committed == older and engine.position <= older
        # Cut otherwise this time: new names get other numbers than those in the snapshot that is left behind.
        while engine.step():
            pass
    assert unequal(game.continued(data), reference) == {}
    assert not list((data / "snapshots").glob("*.snap"))


def test_using_a_newer_snapshot_is_caught(game: Folding, reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: an engine that takes the newest snapshot whatever the store says counts what lies between not at all."""
    data, _ = older_store(game)
    load = Snapshots.load
    monkeypatch.setattr(Snapshots, "load", lambda self, signature, position_max, make: load(self, signature, 1 << 60, make))
    monkeypatch.setattr(Snapshots, "clear", lambda self, after=-1: None)
    with game.engine(data) as engine:
        engine.committed = engine.position
        while engine.step():
            pass
    assert "cells" in unequal(game.picture(data), reference)


def with_two_snapshots(game: Folding) -> Path:
    data = game.place()
    with game.engine(data) as engine:
        for share in (0.3, 0.7):
            half_way(engine, share)
            engine.snapshot()
        half_way(engine, 0.8)
    return data


def flipped(raw: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Return bytes with one bit turned over, or a run of them gone, and in words what was done."""
    damaged, at = bytearray(raw), rng.randrange(len(raw))
    if rng.random() < 0.1:
        return bytes(damaged[:at]), f"cut at {at}"
    damaged[at] ^= 1 << rng.randrange(8)
    return bytes(damaged), f"bit of byte {at} flipped"


def test_a_snapshot_with_any_bit_flipped_is_set_aside(game: Folding, caplog: pytest.LogCaptureFixture) -> None:
    """200 random flips and cuts: never used, always named, and the older snapshot stands in."""
    caplog.set_level(logging.WARNING)
    data = with_two_snapshots(game)
    with game.engine(data) as engine:
        fold, make, committed = engine._fold_is, engine.new_shard, engine.committed
    older, newer = sorted((data / "snapshots").glob("*.snap"))
    raw, rng = newer.read_bytes(), random.Random(SEED)
    for number in range(200):
        damaged, what = flipped(raw, rng)
        newer.write_bytes(damaged)
        caplog.clear()
        header, _ = Snapshots(data / "snapshots").load(fold, committed, make)
        assert header.position == int(older.stem), f"seed {SEED}, flip {number}: {what}"
        assert not newer.exists() and newer.with_suffix(".damaged").name in caplog.text, f"seed {SEED}, flip {number}: {what}"


def test_believing_a_damaged_snapshot_is_caught(game: Folding, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without the checksum most flips would be served."""
    data = with_two_snapshots(game)
    with game.engine(data) as engine:
        fold, make, committed = engine._fold_is, engine.new_shard, engine.committed
    newer = max((data / "snapshots").glob("*.snap"))
    raw, rng = newer.read_bytes(), random.Random(SEED)
    monkeypatch.setattr(snapshots, "_prove", lambda path: None)
    served = 0
    for _ in range(20):
        damaged = bytearray(raw)
        # Only where a flip cannot make a table huge: this build would try to fill it.
        damaged[rng.randrange(len(raw) // 2, len(raw) - 16)] ^= 1
        newer.write_bytes(damaged)
        header, _ = Snapshots(data / "snapshots").load(fold, committed, make)
        served += header.position == int(newer.stem)
        newer.write_bytes(raw)
    assert served > 10


@pytest.mark.parametrize("seed", range(4))
def test_an_engine_with_damaged_snapshots_ends_where_it_should(game: Folding, reference, seed: int) -> None:
    """With the newer or both snapshots damaged, the older one or the log alone give the same store."""
    rng, data = random.Random(seed), with_two_snapshots(game)
    for path in sorted((data / "snapshots").glob("*.snap"))[-rng.randint(1, 2) :]:
        path.write_bytes(flipped(path.read_bytes(), rng)[0])
    assert unequal(game.continued(data), reference) == {}, f"seed {seed}"


def test_a_snapshot_of_another_making_is_not_used(game: Folding, reference) -> None:
    """The numbers of names differ from one making of a store to the next: with a new store old snapshots are gone."""
    data = with_two_snapshots(game)
    for path in data.glob("store.db*"):
        path.unlink()
    with game.engine(data) as engine:
        assert engine.position == engine.committed == 0
        while engine.step(3_000):
            pass
    assert unequal(game.continued(data), reference) == {}


def test_a_snapshot_in_the_making_holds_no_lock(game: Folding, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child that writes a snapshot keeps no successor out when the engine is killed, and ends with an engine that ends."""
    data = game.place()
    monkeypatch.setattr(host_local, "snapshot_every_s", 0.0)
    monkeypatch.setattr(host_local, "snapshot_records_min", 1)
    monkeypatch.setattr(host_local, "snapshot_s_max", 0.1)
    monkeypatch.setattr(Snapshots, "save", lambda self, header, shards: os.read(stuck, 1))
    stuck, other_end = os.pipe()
    with game.engine(data) as engine:
        half_way(engine, 0.1)
        child = engine._child
        assert child and os.waitpid(child, os.WNOHANG) == (0, 0)
        engine._lock.close()  # as when the engine is killed
        own(data / "engine.lock", "").close()
    assert not Path(f"/proc/{child}").exists()
    os.close(stuck)
    os.close(other_end)


# -- a damaged store -------------------------------------------------------------------------------------------------------


def damaged_stores(game: Folding, flips: int) -> Counter[str]:
    """Flip bits of a store, one at a time; count what a start makes of it: found, or equal all the same, or wrong."""
    data = game.place()
    game.continued(data)
    path, rng, found = data / "store.db", random.Random(SEED), Counter()
    whole, raw = game.picture(data), (data / "store.db").read_bytes()
    for _ in range(flips):
        damaged = bytearray(raw)
        damaged[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        found[what_a_start_finds(path, whole)] += 1
    return found


def what_a_start_finds(path: Path, whole: dict[str, list]) -> str:
    try:
        store = write.StoreWriter(path)
    except write.DAMAGE:
        return "found"
    try:
        if store.damage():
            return "found"
    except write.DAMAGE:
        return "found"
    finally:
        store.close()
    try:
        return "equal" if pictured(path) == whole else "wrong"
    except (apsw.Error, KeyError, TypeError):
        return "wrong"


def test_a_flipped_bit_in_the_store_is_found_at_the_start(game: Folding) -> None:
    """400 random flips anywhere in store.db: all found, or the store says the same as before."""
    found = damaged_stores(game, 400)
    assert found["wrong"] == 0 and found["found"] > 300, f"seed {SEED}: {found}"


def test_a_store_without_checksums_is_caught(game: Folding, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: SQLite's own look at its structure lets flipped numbers pass."""
    monkeypatch.setattr(write, "checking_vfs", lambda: None)
    assert damaged_stores(game, 100)["wrong"] > 3


@pytest.mark.parametrize("harm", ["a number", "the first page", "the end", "no database at all"])
def test_a_damaged_store_is_set_aside_and_made_anew(game: Folding, reference, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is wrong with store.db, it is kept under a name that is said, and the log gives all numbers again."""
    data = game.place()
    with game.engine(data) as engine:
        half_way(engine)
        engine.snapshot()
    path = data / "store.db"
    raw = bytearray(path.read_bytes())
    if harm == "no database at all":
        raw = bytearray(b"not a database" * 1000)
    else:
        raw[{"a number": len(raw) // 2, "the first page": 40, "the end": len(raw) - 3}[harm]] ^= 4
    path.write_bytes(raw)
    assert unequal(game.continued(data), reference) == {}
    aside = data / "store.db.damaged-1"
    assert aside.read_bytes() == raw and aside.name in caplog.text


def folder_left_by_a_killed_engine(game: Folding) -> Path:
    """Return a copy of a folder as a kill leaves it: with what was not yet moved from the log of SQLite's own into the store."""
    data, copy = game.place(), game.place()
    with game.engine(data) as engine:
        half_way(engine)
        engine.snapshot()
        half_way(engine, 0.8)
        shutil.copytree(data, copy)
    assert (copy / "store.db-wal").stat().st_size > 0
    return copy


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_in_the_stores_own_log_costs_only_time(game: Folding, reference, seed: int) -> None:
    """SQLite goes back to the last commit before the flip; the engine goes on from there."""
    data, rng = folder_left_by_a_killed_engine(game), random.Random(seed)
    wal = data / "store.db-wal"
    wal.write_bytes(flipped(wal.read_bytes(), rng)[0])
    assert unequal(game.continued(data, 20_000), reference) == {}, f"seed {seed}"


# -- dead letters and changed settings -----------------------------------------------------------------------------------------


SHOP = {
    "kind": "generic",
    "unsigned": True,
    "items": "events",
    "fields": {"kind": "=delivered", "recipient": "to", "campaign": "campaign", "event_id": "id", "message_id": "id"},
}


def counted_after_a_restart(folder: Path, end) -> int:
    """Fold a record that cannot be read, end the engine, mend the settings, replay; return how often its event counts."""
    body = msgspec.json.encode({"events": [{"to": "a@example.com", "campaign": "c", "id": "1"}]})
    place = {"midflight-position": "0", "midflight-item": "-1", "midflight-at-us": str(T0)}
    with Writer.open(folder / "log", None, VirtualClock(T0), reserve_bytes=4096) as writer, Reader(folder / "log") as reader:
        writer.append([Record("webhook", "shop", 0, {}, body)])
        engine = Engine(config_from({"data": str(folder), "sources": {"shop": SHOP | {"items": "wrong"}}}), reader)
        engine.catch_up()
        end(engine)
        writer.append([Record("replay", "shop", 0, place, body)] * 2)
        engine = Engine(config_from({"data": str(folder), "sources": {"shop": SHOP}}), reader)
        engine.catch_up()
        engine.close()
    with apsw.Connection(str(folder / "store.db")) as db:
        return db.execute("SELECT coalesce(sum(delivered), 0) FROM cells").fetchone()[0]


@pytest.mark.parametrize("end", [Engine.close, lambda engine: engine.run(lambda: True)], ids=["killed", "stopped"])
def test_a_letter_that_is_readable_after_a_restart_counts_when_it_is_replayed(tmp_path: Path, end) -> None:
    """The shards, made again with the mended settings, must not take the replay for a repetition of what never counted."""
    assert counted_after_a_restart(tmp_path, end) == 1


def test_showing_the_shards_what_never_counted_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: with the dead letters read in the replay of the log, the event is lost."""
    monkeypatch.setattr(write.StoreWriter, "dead_between", lambda self, first, last: set())
    assert counted_after_a_restart(tmp_path, Engine.close) == 0


# -- a log that is another one -----------------------------------------------------------------------------------------------


def test_another_log_under_an_old_store_is_refused(game: Folding, tmp_path: Path) -> None:
    """With the log replaced, new records at known positions are not taken for known ones: the engine says so and stops."""
    data = game.place()
    game.continued(data)
    clock = VirtualClock(T0 + 10**12)
    with Writer.open(tmp_path / "log", None, clock, reserve_bytes=4096) as writer:
        writer.append([Record("webhook", "sendgrid", 0, {}, b"[]")] * 5)
    with Reader(tmp_path / "log") as reader:
        engine = Engine(game.config(data), reader, clock)
        with pytest.raises(Damaged, match="not the one that store.db was made from"):
            engine.catch_up()
        # With a snapshot at the end there is nothing to compare: the log's end tells.
        engine.position = engine.committed
        engine._look_for_the_end()
        clock.sleep_s(host_local.behind_s_max + 1)
        with pytest.raises(Damaged, match="ends before"):
            engine._look_for_the_end()
        engine.close()


# -- one engine --------------------------------------------------------------------------------------------------------------


def test_a_second_engine_is_refused(game: Folding) -> None:
    """While one engine has the folder, another cannot open it."""
    data = game.place()
    with game.engine(data), pytest.raises(Locked, match="Another engine runs"), game.engine(data):
        pass


# -- failing calls -----------------------------------------------------------------------------------------------------------


class Faults(apsw.VFS):
    """A disk whose N-th write, sync, truncation or deletion fails: once, or it and all after it."""

    def __init__(self, base: str) -> None:
        super().__init__("faults", base)
        self.count, self.fail_at, self.forever = 0, 0, False

    def arm(self, fail_at: int, forever: bool) -> None:
        self.count, self.fail_at, self.forever = 0, fail_at, forever

    def call(self) -> None:
        self.count += 1
        if self.fail_at and (self.count == self.fail_at or (self.forever and self.count > self.fail_at)):
            raise apsw.exception_for(apsw.SQLITE_FULL if self.fail_at % 2 else apsw.SQLITE_IOERR_WRITE)

    def xOpen(self, name, flags):
        return FaultyFile(self, name, flags)

    def xDelete(self, name, sync):
        self.call()
        super().xDelete(name, sync)


class FaultyFile(apsw.VFSFile):
    def __init__(self, faults: Faults, name, flags) -> None:
        super().__init__("cksmvfs", name, flags)
        self.faults = faults

    def xWrite(self, data, offset):
        self.faults.call()
        super().xWrite(data, offset)

    def xSync(self, flags):
        self.faults.call()
        super().xSync(flags)

    def xTruncate(self, size):
        self.faults.call()
        super().xTruncate(size)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """The store's file system, with faults on demand. A file of APSW has no shared memory, so the store is opened exclusively."""
    made = Faults(write.checking_vfs())
    monkeypatch.setattr(write, "checking_vfs", lambda: "faults")
    monkeypatch.setattr(apsw, "connection_hooks", [lambda db: db.execute("PRAGMA locking_mode = EXCLUSIVE")])
    yield made
    made.unregister()


def until_it_fails(game: Folding, data: Path, faults: Faults) -> bool:
    """Fold until a call fails, then end as a process that dies does: nothing more is written. Returns whether one failed."""
    with Reader(game.log) as reader:
        engine = None
        try:
            engine = Engine(game.config(data), reader)
            while engine.step(100_000):
                pass
            engine.close()
            return False
        except (apsw.Error, OSError):
            faults.arm(1, True)
            if engine is not None:
                with contextlib.suppress(apsw.Error):
                    engine.store.db.close(True)
                engine._lock.close()
            return True


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Folding:
    """A log that is folded in a moment."""
    return Folding(tmp_path_factory.mktemp("small"), recipients=25, campaigns=1)


# SQLite cannot pass some failures on, such as that of a deletion while it closes; APSW then tells Python of them.
UNHEARD = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@UNHEARD
@pytest.mark.parametrize("forever", [False, True], ids=["once", "forever"])
def test_every_write_and_sync_may_fail(small: Folding, faults: Faults, forever: bool) -> None:
    """Each call of the store's that changes the disk fails in its turn: after a new start every number is as if none had."""
    whole = small.folded()
    failed, number = 0, 0
    while True:
        number += 1
        data = small.place()
        faults.arm(number, forever)
        died = until_it_fails(small, data, faults)
        reached = faults.count >= number or died
        faults.arm(0, False)
        assert unequal(small.continued(data), whole) == {}, f"call {number} failing {'forever' if forever else 'once'}"
        shutil.rmtree(data)
        if not reached:
            break
        failed += died
    assert failed > 20


@UNHEARD
def test_going_on_in_memory_after_a_failed_commit_is_caught(small: Folding, faults: Faults) -> None:
    """Control: an engine that lets go of what a failed commit held, and goes on with the next batch, has lost it."""
    whole, wrong = small.folded(), 0
    for number in range(25, 45):
        data = small.place()
        with small.engine(data) as engine:
            faults.arm(number, False)
            while True:
                try:
                    if not engine.step(20_000):
                        break
                except apsw.Error:
                    engine.changes = Changes()
            faults.arm(0, False)
        wrong += unequal(small.picture(data), whole) != {}
    assert wrong


# -- records that end the process ----------------------------------------------------------------------------------------------


def starts(path: Path, position: int, deaths: int, trying: int | None = None) -> Careful:
    """Start so often without a commit; each time try a record, where one is named."""
    for _ in range(deaths):
        careful = Careful(path, position)
        if careful.active and trying is not None:
            careful.trying(trying)
    return Careful(path, position)


def test_a_record_is_poison_after_three_tries_of_its_own(tmp_path: Path) -> None:
    """Three deaths at one place make the engine careful, three more with one record make it poison, and a commit forgives."""
    path = tmp_path / "engine.trying"
    assert not starts(path, 7, 2).active
    assert starts(path, 7, 0).active
    careful = starts(path, 7, 2, trying=9)
    # The commits up to the record have moved the place: it is still known that one is under suspicion.
    later = Careful(path, 9)
    assert careful.active and later.active and not later.is_poison(9)
    later.trying(9)
    assert Careful(path, 9).is_poison(9)
    later.went_well()
    assert not Careful(path, 9).is_poison(9)


@UNHEARD
def test_a_full_disk_makes_no_record_poison(small: Folding, faults: Faults) -> None:
    """However often the engine ends because nothing can be written, no record is set aside for it."""
    data = small.place()
    small.continued(data)
    shutil.rmtree(data / "snapshots")
    whole = small.picture(data)
    data = small.place()
    with small.engine(data) as engine:
        half_way(engine)
    for _ in range(9):
        faults.arm(3, True)
        assert until_it_fails(small, data, faults)
    faults.arm(0, False)
    assert unequal(small.continued(data), whole) == {}


def test_expected_messages_have_their_memory_from_the_start(small: Folding, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """Alone, in shards and over a snapshot the numbers are the same; memory that is not there is left alone, and that is said."""
    whole = small.folded()
    for shards in (1, 3):
        data = small.place()
        with small.engine(data, shards=shards, expected_messages=30_000) as engine:
            assert all(shard.state.seen.slots >= 30_000 * 6 / shards for shard in engine.shards)
            half_way(engine)
            engine.snapshot()
        assert unequal(small.continued(data, shards=shards, expected_messages=60_000), whole) == {}
    assert not caplog.records
    monkeypatch.setattr(host_local, "available_bytes", lambda: 1_000_000)
    with small.engine(small.place(), expected_messages=30_000) as engine:
        assert engine.shards[0].state.seen.slots == 1024
    assert "0.0 GB are left: it is taken when it is needed" in caplog.text


def test_a_record_that_ends_the_process_is_found_in_a_few_deaths(game: Folding, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the backlog around it: small batches first, then single records, and all others count."""

    class Died(BaseException):
        pass

    poison = game.records * 2 // 3
    prepare = host_local.Edge.prepare

    def deadly(self, records: list[Record]):
        if any(record.position == poison for record in records):
            raise Died
        if len(records) == 1 and records[0].position < poison:
            single.add(records[0].position)
        return prepare(self, records)

    monkeypatch.setattr(host_local.Edge, "prepare", deadly)
    monkeypatch.setattr(host_local, "wary_bytes_max", 20_000)
    data, deaths, single = game.place(), 0, set()
    while deaths < 20:
        engine = Engine(game.config(data), Reader(game.log))
        try:
            engine.catch_up()
            break
        except Died:
            # What the system does for a process that has ended.
            deaths += 1
            engine.store.close()
            engine._lock.close()
    engine.close()
    assert host_local.tries_max < deaths <= 2 * host_local.tries_max + 3
    assert len(single) < game.records / 4
    picture = game.picture(data)
    assert [(row[0], row[3]) for row in picture["dead"] if row[3] == "ended_the_engine"] == [(poison, "ended_the_engine")]
    assert dict(picture["meta"])["position"] == game.records


def test_a_buried_record_is_not_read_again(small: Folding, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart without a snapshot the log is read again from its start, past the record that was set aside."""
    data, buried = small.place(), 10
    with small.engine(data) as engine:
        while engine.position < buried:
            engine.careful.active = engine.careful.wary = True
            engine.step()
        engine.careful.tries = {f"record {buried}": host_local.tries_max}
        engine.careful.active = engine.careful.wary = True
        assert engine.step() == 1 and engine.position == buried + 1
        half_way(engine)
    read: list[int] = []
    prepare = host_local.Edge.prepare
    monkeypatch.setattr(
        host_local.Edge, "prepare", lambda self, records: read.extend(r.position for r in records) or prepare(self, records)
    )
    picture = small.continued(data)
    assert 0 in read and buried not in read and max(read) == small.records - 1
    assert [(row[0], row[3]) for row in picture["dead"] if row[3] == "ended_the_engine"] == [(buried, "ended_the_engine")]


# -- what outlives the log -------------------------------------------------------------------------------------------------


class Aged:
    """A log that began with an unsubscribe and an advice, and has lost both since: only the store knows of them."""

    def __init__(self, folder: Path) -> None:
        self.log, self.data = folder / "log", folder / "data"
        clock = VirtualClock(T0)
        with Writer.open(self.log, None, clock, segment_bytes=2048, reserve_bytes=4096) as writer:
            self.write(writer, "gone@x.example", "unsubscribed")
            told = msgspec.json.encode([("c", "told@x.example", 1, "b", 0.5)])
            writer.append([Record("decision", "advice", 0, {}, told)])
            for n in range(100):
                clock.sleep_s(60)
                self.write(writer, f"p{n}@x.example", "clicked")
            self.open().close()
            assert self.known() == NOT_FORGOTTEN
            assert writer.retain(older_than_us=T0 + 3_000_000_000, keep_from=60) > 10

    def write(self, writer: Writer, who: str, kind: str) -> None:
        event = Event(source="esp", event_id=who, kind=kind, recipient=who, message_id=who, campaign="c", occurred_at_us=T0)
        writer.append([Record("events", "esp", 0, {}, msgspec.json.encode([event]))])

    def open(self, **more: bool) -> Engine:
        with Reader(self.log) as reader:
            engine = Engine(config_from({"data": str(self.data)}), reader, **more)
            engine.catch_up()
            engine.commit()
            return engine

    def known(self) -> tuple[list, list]:
        db = apsw.Connection(str(self.data / "store.db"), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            asked = ("recipient FROM suppressions", "recipient, variant FROM advised")
            return tuple(db.execute(f"SELECT {what}").fetchall() for what in asked)
        finally:
            db.close()

    def damage(self, text: bytes) -> None:
        """Overwrite a text in the page of the store where it stands last."""
        path = self.data / "store.db"
        raw = bytearray(path.read_bytes())
        at = raw.rindex(text)
        raw[at : at + 4] = b"ruin"
        path.write_bytes(raw)


NOT_FORGOTTEN = ([("gone@x.example",)], [("told@x.example", "b")])


def test_a_rebuild_forgets_nobody_who_left(tmp_path: Path) -> None:
    """Where the log has lost the record, who unsubscribed and who was told what is known after a rebuild too."""
    aged = Aged(tmp_path)
    aged.open(rebuild=True).close()
    assert aged.known() == NOT_FORGOTTEN


def test_a_damaged_store_forgets_nobody_who_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What can be read of a damaged store is taken over, where the log has lost the record."""
    aged = Aged(tmp_path)
    aged.damage(b"p50@x.example")
    aged.open().close()
    assert list(aged.data.glob("store.db.damaged-*")) and aged.known() == NOT_FORGOTTEN
    assert "2 rows of what must not be forgotten" in caplog.text


def test_a_store_that_is_no_more_than_a_file_says_what_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing can be read of it, nothing is taken over, and the log says so."""
    aged = Aged(tmp_path)
    (aged.data / "store.db").write_bytes(os.urandom(100_000))
    aged.open().close()
    assert aged.known() == ([], [])
    assert "0 rows of what must not be forgotten" in caplog.text


def test_a_bad_page_is_not_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A page that is not as it was written is left out, and the log says of which table; the rest is taken over."""
    aged = Aged(tmp_path)
    aged.damage(b"gone@x.exampleunsubscribed")  # the row of the suppressions: the name stands among the people too
    aged.open().close()
    assert aged.known() == ([], NOT_FORGOTTEN[1]) and "not all of `suppressions` can be read" in caplog.text


def test_who_is_killed_while_he_takes_over_takes_over_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store counts as made only when all was taken over: after a death in the middle, or a full disk, the next start does it."""
    aged = Aged(tmp_path)
    aged.damage(b"p50@x.example")
    for died in (KeyboardInterrupt, apsw.FullError):
        with monkeypatch.context() as patch, pytest.raises(died):
            patch.setattr(write.StoreWriter, "_meta", lambda *_, died=died: (_ for _ in ()).throw(died))
            aged.open()
    aged.open().close()
    assert aged.known() == NOT_FORGOTTEN and len(list(aged.data.glob("store.db.damaged-?"))) == 1


def test_a_rebuild_that_begins_with_nothing_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where everything derived is dropped, somebody who unsubscribed is forgotten."""
    aged = Aged(tmp_path)
    monkeypatch.setattr(write, "NEVER_LOST", ())
    aged.open(rebuild=True).close()
    assert aged.known() == ([], [])


# -- who must not be written to --------------------------------------------------------------------------------------------


class Subscriber:
    """What one person said, in the order in which it is heard, and what follows."""

    def __init__(self, folder: Path) -> None:
        self.config = config_from({"data": str(folder)})
        self.writer = Writer.open(folder / "log", None, VirtualClock(T0 + 3_600_000_000))

    def hear(self, *said: tuple[str, int, str]) -> None:
        """Let events come in one record: a kind, minutes after the beginning (0: no time is told), and an id."""
        times = [T0 + minutes * 60_000_000 if minutes else 0 for _, minutes, _ in said]
        found = [
            Event(source="esp", event_id=id, kind=kind, recipient="ada@x.example", occurred_at_us=at_us)
            for (kind, _, id), at_us in zip(said, times, strict=True)
        ]
        self.writer.append([Record("events", "esp", 0, {}, msgspec.json.encode(found))])

    def why(self, **more: bool) -> str:
        """Return why nobody may write to this person, or nothing, as the engine has it after all that was heard."""
        with Reader(self.config.folder / "log") as reader:
            engine = Engine(self.config, reader, **more)
            try:
                engine.catch_up()
                engine.commit()
            finally:
                engine.close()
        numbers = Numbers(self.config)
        try:
            return numbers.suppressed(["ada@x.example"]).get("ada@x.example", "")
        finally:
            numbers.close()


@pytest.fixture
def subscriber(tmp_path: Path) -> Iterator[Subscriber]:
    found = Subscriber(tmp_path)
    yield found
    found.writer.close()


ON, OFF, SPAM = ("subscribed", 1, "on"), ("unsubscribed", 10, "off"), ("complained", 10, "spam")
SOME_TIME = ("subscribed", 0, "some time")


@pytest.mark.parametrize("together", [True, False], ids=["in one record", "one by one"])
@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([ON, OFF], "unsubscribed"),
        ([ON, OFF, ON], "unsubscribed"),  # a webhook that is delivered again
        ([SOME_TIME, OFF, SOME_TIME], "unsubscribed"),  # also one without a time
        ([OFF, ON], "unsubscribed"),  # and one that comes late
        ([OFF, ("subscribed", 10, "at once")], "unsubscribed"),
        ([OFF, ("subscribed", 20, "again")], ""),
        ([OFF, ("subscribed", 20, "again"), OFF], "unsubscribed"),  # who leaves is heard, also by an id that is known
        ([OFF, ("subscribed", 20, "again"), ("unsubscribed", 30, "off")], "unsubscribed"),
        ([OFF, ("subscribed", 20, "again"), ("unsubscribed", 30, "off again"), ("subscribed", 20, "again")], "unsubscribed"),
        ([("unsubscribed", 30, "off again"), OFF, ("subscribed", 20, "again")], "unsubscribed"),
        ([OFF, ("subscribed", 20, "off")], "unsubscribed"),  # one id, two contents
        ([SPAM, ("subscribed", 20, "again")], "complained"),
    ],
)
def test_only_who_subscribes_later_may_be_written_to_again(
    subscriber: Subscriber, said: list[tuple[str, int, str]], why: str, together: bool
) -> None:
    """A subscription takes back an unsubscribe that it came after, by the time of both; one that is repeated or late takes back nothing."""
    for part in [said] if together else [[one] for one in said]:
        subscriber.hear(*part)
        subscriber.why()
    assert subscriber.why() == subscriber.why(rebuild=True) == why


def test_a_store_that_believes_repetitions_is_caught(subscriber: Subscriber, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where a webhook that is delivered again counts anew, somebody who left is written to."""
    believing = Changes.suppress
    monkeypatch.setattr(Changes, "suppress", lambda changes, prepared, effects: believing(changes, prepared, []))
    for one in (SOME_TIME, OFF, SOME_TIME):
        subscriber.hear(one)
    assert subscriber.why() == ""


def test_while_the_store_is_made_anew_nobody_is_said_to_be_reachable(tmp_path: Path) -> None:
    """Who has unsubscribed is not known by a store that was emptied and has not caught up: who asks is told so, and not that nobody has."""
    subscriber = Subscriber(tmp_path)
    subscriber.hear(OFF)
    assert subscriber.why() == "unsubscribed"
    numbers = Numbers(subscriber.config)
    assert numbers.suppressed(["ada@x.example"]) and numbers.position()[0] == 1
    with Reader(subscriber.config.folder / "log") as reader:
        engine = Engine(subscriber.config, reader, rebuild=True)
        assert numbers.position() == (0, 0)
        with pytest.raises(TooSlow):
            numbers.suppressed(["ada@x.example"])
        engine.catch_up()
        engine.commit()
        engine.close()
    assert numbers.suppressed(["ada@x.example"]) == {"ada@x.example": "unsubscribed"}
    numbers.close()
    subscriber.writer.close()
