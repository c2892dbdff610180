"""The whole system out of the ordinary: drained, doubled, stopped, damaged, poisoned, full; afterwards every number is the truth."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import httpx
import msgspec
import pytest
from system import NAMES, Playing, System, pictured, position, unequal, wait_until, write_log

from midflight import supervise
from midflight.events import Event
from midflight.kit.clock import Clock
from midflight.kit.owned import own
from midflight.log import Reader
from midflight.sandbox.settings import sources_from
from midflight.sources import Request
from midflight.store import host_local
from midflight.store.host_local import Engine
from midflight.supervise import Supervisor

SEED = int(os.environ.get("MIDFLIGHT_SEED", "21"))


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """All processes, started once, each by itself."""
    with System(tmp_path_factory.mktemp("system") / "system", SEED) as made:
        made.start_all()
        yield made


# -- ending and starting -----------------------------------------------------------------------------------------------------


def test_each_process_drains_on_sigterm_under_load(system: System) -> None:
    """Asked to end in the middle of a game, each ends within ten seconds and says nothing is wrong; the next one goes on."""
    going = True
    with Playing(system, lambda: going) as playing:
        try:
            for name in NAMES:
                assert system.stop(name, host_local.snapshot_s_max + 10) == 0, system.output(name)[-2000:]
                system.start(name)
                system.ready(name)
        finally:
            going = False
    found = playing.differences()
    assert not found, playing.shown(found)


def test_a_second_engine_is_refused_in_one_line(system: System) -> None:
    """It ends with status 2 and says who has the folder; also while the first one is stopped, which then goes on as if nothing was."""
    first = system.processes["engine"]
    with Playing(system) as playing:
        for stopped in (False, True):
            if stopped:
                first.send_signal(signal.SIGSTOP)
            try:
                second = subprocess.run(system.command("engine"), env=system.environment(), capture_output=True, text=True, timeout=60)
            finally:
                first.send_signal(signal.SIGCONT)
            assert second.returncode == 2 and second.stderr.count("\n") == 1 and "Another engine runs" in second.stderr, second.stderr
    assert not (found := playing.differences()), playing.shown(found)


def test_rebuild_makes_the_same_store_from_the_log(system: System) -> None:
    """What was folded live, over crashes and restarts, is what `midflight rebuild` makes of the log; a snapshot is behind it."""
    with Playing(system) as playing:
        pass
    assert not playing.differences()
    system.caught_up()
    system.stop("door")
    system.caught_up()
    system.stop("engine")
    before = pictured(system.data / "store.db")
    subprocess.run(system.command("rebuild"), env=system.environment(), capture_output=True, check=True, timeout=60)
    assert unequal(pictured(system.data / "store.db"), before) == {}
    assert [int(path.stem) for path in (system.data / "snapshots").glob("*.snap")] == [position(system.data / "store.db")]
    system.start("door")
    system.start("engine")
    system.ready("door")
    assert not playing.differences()


def test_up_drains_within_ten_seconds_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """SIGTERM ends all four under load; killed instead, `up` takes them with it, and the next `up` finds ports and locks free."""
    with System(tmp_path / "system", SEED) as system:
        up = system.up()
        going = True
        with Playing(system, lambda: going) as playing:
            try:
                assert system.stop("up", 15) == 0, system.output("up")[-2000:]
                assert position(system.data / "store.db") == Reader(system.data / "log").head() > 0, "nothing is left to be folded"
                up = system.up()
                children = [system.child(name) for name in NAMES]
                assert all(children)
                system.kill("up")
                wait_until(lambda: not any(map(lives, children)), "the end of all that `up` ran")
                up = system.up()
            finally:
                going = False
        found = playing.differences()
        assert not found, playing.shown(found)
        assert up.poll() is None


ENDING = """
import signal, sys, time
name, folder = sys.argv[1:]
def end(*_):
    time.sleep(0.5 if name == "door" else 0)
    open(f"{folder}/ended", "a").write(f"{name} ")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
open(f"{folder}/{name}.ready", "w").close()
while True:
    time.sleep(0.05)
"""


def ended(folder: Path, caught_up: Callable[[], bool], first: tuple[str, ...]) -> list[str]:
    """End real processes that note when they do; return the order, with `caught up` where that was asked and so."""
    folder.mkdir()

    def asked() -> bool:
        found = caught_up()
        with (folder / "ended").open("a") as file:
            file.write("caught-up " if found else "")
        return found

    supervisor = Supervisor(["engine", "door", "history"], lambda line: None, first=first, caught_up=asked)
    for child in supervisor.children:
        child.process = subprocess.Popen([sys.executable, "-c", ENDING, child.name, str(folder)])
    wait_until(lambda: len(list(folder.glob("*.ready"))) == 3, "three processes")
    assert supervisor._end() == 0
    return (folder / "ended").read_text().split()


def test_the_door_ends_first_then_the_engine_has_caught_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are asked to end only after the door has ended and nothing is left to do; one that never catches up holds nothing up."""
    looks = iter([False] * 5 + [True])
    order = ended(tmp_path / "a", lambda: next(looks), ("door",))
    assert order[:2] == ["door", "caught-up"] and sorted(order[2:]) == ["engine", "history"]
    monkeypatch.setattr(supervise, "catch_up_s_max", 1.0)
    order = ended(tmp_path / "b", lambda: False, ("door",))
    assert order[0] == "door" and sorted(order[1:]) == ["engine", "history"]
    # Control: with all of them asked at once, the door, which takes its time, is the last.
    assert ended(tmp_path / "c", lambda: True, ())[-1] == "door"


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_up_ends_where_a_process_can_never_start(tmp_path: Path) -> None:
    """A process that refuses to start three times, in its own words, ends the supervisor with status 2."""
    with System(tmp_path / "system", SEED) as system:
        system.data.mkdir()
        lock = own(system.data / "engine.lock", "a test's engine")
        system.start("up")
        assert system.died("up") == 2
        said = system.output("up")
        assert said.count("Another engine runs") == 3 and "engine cannot start" in said, said
        lock.close()


# -- damage ------------------------------------------------------------------------------------------------------------------


def test_a_damaged_store_is_made_anew_by_the_next_start(system: System) -> None:
    """A bit flips in store.db; the engine that starts next says so, sets it aside and shows true numbers."""
    with Playing(system) as playing:
        pass
    system.caught_up()
    system.stop("engine")
    path = system.data / "store.db"
    with apsw.Connection(str(path)) as db:
        # The console has the store open, so what is in SQLite's own log stays there and would hide the flip.
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 16]))
    system.start("engine")
    wait_until(lambda: "store.db is damaged" in system.output("engine"), "a damaged store found")
    assert not (found := playing.differences()), playing.shown(found)
    assert (system.data / "store.db.damaged-1").exists()


# -- dead letters --------------------------------------------------------------------------------------------------------------


def post(system: System, source: str, events: list[Event]) -> None:
    """Send events as a vendor would."""
    signing = sources_from(system.keys)[source]
    request = Request(url=f"/in/{source}", headers={}, body=signing.write(events), received_at_us=Clock().now_us())
    request = signing.sign(request)
    answer = httpx.post(system.door + request.url, content=request.body, headers=dict(request.headers), trust_env=False)
    assert answer.status_code == 200, answer.text


def sent(system: System, name: str, number: int) -> list[Event]:
    now = Clock().now_us()
    given = {"source": "postmark", "campaign": name, "recipient": f"p{number}@example.com", "message_id": f"{name}-{number}"}
    return [Event(kind="delivered", event_id=f"{name}-{number}", occurred_at_us=now, received_at_us=now, **given)]


def delivered(system: System, campaign: str) -> int:
    with system.client() as client:
        answer = client.get("/v1/numbers", params={"campaign": campaign, "window": "all", "metrics": "", "machines": "with"})
    return answer.json()["rows"][0]["delivered"] if answer.status_code == 200 and answer.json()["rows"] else 0


def letters(system: System, source: str) -> list[dict]:
    with system.client() as client:
        return client.get("/v1/dead", params={"source": source}).json()["letters"]


def replayed(system: System, **wanted: object) -> int:
    with system.client() as client:
        answer = client.post("/v1/dead/replay", json=wanted)
    assert answer.status_code == 200, answer.text
    return answer.json()["replayed"]


def test_a_record_that_ends_the_engine_is_set_aside_and_the_rest_goes_on(system: System) -> None:
    """After three tries of its own it is a dead letter with its name; a mended engine reads it when told to, and counts it once."""
    system.stop("engine")
    poison = sent(system, "ends-the-engine", 1)
    post(system, "postmark", sent(system, "good-one", 1))
    post(system, "postmark", poison)
    post(system, "postmark", sent(system, "good-one", 2))
    deaths = until_it_lives(system, "ends_on_mark", 20, lambda: delivered(system, "good-one") == 2)
    assert deaths == 2 * host_local.tries_max
    letter = letters(system, "postmark")[0]
    assert (letter["reason"], letter["item"], letter["state"]) == ("ended_the_engine", -1, "waiting")
    assert "ended the engine 3 times and is set aside" in system.output("engine")
    system.stop("engine")
    system.start("engine")
    assert replayed(system, letters=[{"position": letter["position"], "item": -1}]) == 1
    wait_until(lambda: letters(system, "postmark")[0]["state"] == "replayed", "the letter read")
    assert delivered(system, "ends-the-engine") == 1


def until_it_lives(system: System, build: str, deaths_max: int, true) -> int:
    """Start an engine again and again until it stays and something is true; return how often it died."""
    for deaths in range(deaths_max):
        process = system.start("engine", build=build)
        wait_until(
            lambda process=process: process.poll() is not None or true(), f"death or life of {build}\n{system.output('engine')[-2000:]}"
        )
        if process.poll() is None:
            return deaths
    return deaths_max


def test_an_engine_that_never_sets_aside_is_caught(tmp_path: Path) -> None:
    """Control: without the count of tries the record behind the poisonous one is never counted."""
    with System(tmp_path / "system", SEED) as system:
        system.start_all("door", "console")
        post(system, "postmark", sent(system, "ends-the-engine", 1))
        post(system, "postmark", sent(system, "good-one", 1))
        # This build has one try instead of three: a sound one would be through after two deaths.
        assert until_it_lives(system, "never_buries", 5, lambda: delivered(system, "good-one") == 1) == 5


SHOP = {
    "kind": "generic",
    "basic_auth": ["shop:secret"],
    "items": "wrong",
    "fields": {
        "kind": "=delivered",
        "recipient": "to",
        "campaign": "campaign",
        "message_id": "id",
        "event_id": "id",
        "occurred_at": "when",
    },
}


def test_a_dead_letter_becomes_readable_and_counts_once(tmp_path: Path) -> None:
    """A mapping is wrong and is mended: replayed once or twice, the letter's events count once, as of their first receipt."""
    sources = {"shop": SHOP}
    with System(tmp_path / "system", SEED, sources=sources) as system:
        system.start_all("door", "engine", "console")
        body = {"events": [{"to": "a@example.com", "campaign": "shop", "id": "1", "when": "2025-11-20T10:00:00Z"}]}
        answer = httpx.post(f"{system.door}/in/shop", json=body, auth=("shop", "secret"), trust_env=False)
        assert answer.status_code == 200
        wait_until(lambda: letters(system, "shop"), "a dead letter")
        assert replayed(system, source="shop") == 1
        wait_until(lambda: letters(system, "shop")[0]["state"] == "still bad", "a letter tried in vain")
        settings = msgspec.yaml.decode(system.path.read_bytes())
        settings["sources"]["shop"]["items"] = "events"
        system.path.write_bytes(msgspec.yaml.encode(settings))
        for name in ("door", "engine", "console"):
            system.stop(name)
        system.start_all("door", "engine", "console")
        letter = {"position": letters(system, "shop")[0]["position"], "item": -1}
        assert replayed(system, letters=[letter]) == 1
        assert replayed(system, letters=[letter]) <= 1  # the engine may have read it by now
        wait_until(lambda: letters(system, "shop")[0]["state"] == "replayed", "a letter read")
        assert replayed(system, letters=[letter]) == 0
        system.caught_up()
        assert delivered(system, "shop") == 1
        assert_asked_with_the_first_headers(system)


def assert_asked_with_the_first_headers(system: System) -> None:
    """Every replay in the log carries what its first receipt carried, and where that was."""
    with Reader(system.data / "log") as log:
        records = log.read(0)
    first = next(record for record in records if record.kind == "webhook")
    asked = [record for record in records if record.kind == "replay"]
    place = {"midflight-position": str(first.position), "midflight-item": "-1", "midflight-at-us": str(first.at_us)}
    assert first.headers and asked
    assert all((r.headers, r.url, r.body) == (first.headers | place, first.url, first.body) for r in asked)


# -- a disk without room -------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(system: System, bytes_max: int) -> Iterator[None]:
    """Put the system's data on a file system of its own with so much room. Needs root."""
    system.data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={bytes_max}", "tmpfs", str(system.data)], check=True)
    try:
        yield
    finally:
        system.end()
        subprocess.run(["umount", "--lazy", str(system.data)], check=True)


def folded_in_one_go(system: System, log: Path, data: Path) -> dict[str, list]:
    """Return what an undisturbed engine makes of a log."""
    config = msgspec.structs.replace(system.config, data=str(data))
    with Reader(log) as reader:
        engine = Engine(config, reader)
        engine.catch_up()
        engine.close()
    return pictured(data / "store.db")


def test_an_engine_that_may_not_write_ends_and_resumes(tmp_path: Path) -> None:
    """Its files must not grow beyond a limit: it ends with a line and status 74 each time, and with the limit gone it goes on."""
    with System(tmp_path / "system", SEED) as system:
        records = write_log(system.data / "log", SEED)
        whole = folded_in_one_go(system, system.data / "log", tmp_path / "whole")
        for _ in range(host_local.tries_max + 2):
            system.start("engine", before=("prlimit", "--fsize=60000"))
            assert system.died("engine") == host_local.failed_status, system.output("engine")
        assert system.output("engine").count("the engine ends and starts again from its last commit") == host_local.tries_max + 2
        system.start("engine")
        wait_until(lambda: position(system.data / "store.db") == records, "all records folded")
        system.stop("engine")
        assert unequal(pictured(system.data / "store.db"), whole) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small file system; the test above stands in")
def test_an_engine_on_a_full_disk_resumes_when_there_is_room(tmp_path: Path) -> None:
    """Half-way the disk is full: the engine ends, again and again, loses nothing, and goes on by itself when there is room."""
    with System(tmp_path / "system", SEED) as system, small_disk(system, 1 << 20):
        records = write_log(tmp_path / "log", SEED)
        (system.data / "log").symlink_to(tmp_path / "log")
        whole = folded_in_one_go(system, tmp_path / "log", tmp_path / "whole")
        (system.data / "filler").write_bytes(bytes(shutil.disk_usage(system.data).free - 90_000))
        for _ in range(host_local.tries_max + 2):
            system.start("engine")
            assert system.died("engine") == host_local.failed_status, system.output("engine")
        (system.data / "filler").unlink()
        system.start("engine")
        wait_until(lambda: position(system.data / "store.db") == records, "all records folded")
        system.stop("engine")
        assert unequal(pictured(system.data / "store.db"), whole) == {}


# -- failing calls, with a tracer ------------------------------------------------------------------------------------------------

CALLS = "pwrite64,write,fsync,fdatasync,ftruncate,rename,unlink"


@pytest.mark.long
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed; tests/test_engine.py fails the same calls from inside")
@pytest.mark.parametrize("forever", [False, True], ids=["once", "forever"])
def test_every_call_of_the_engine_may_fail(tmp_path: Path, forever: bool) -> None:
    """The N-th writing call of the process fails, once or for ever: after a new start the store is as if none had."""
    points = int(os.environ.get("MIDFLIGHT_FAULTS", "40"))
    with System(tmp_path / "system", SEED) as system:
        records = write_log(tmp_path / "log", SEED, recipients=25, campaigns=1)
        whole = folded_in_one_go(system, tmp_path / "log", tmp_path / "whole")
        died = 0
        for number in range(1, points + 1):
            shutil.rmtree(system.data, ignore_errors=True)
            system.data.mkdir()
            (system.data / "log").symlink_to(tmp_path / "log")
            inject = f"{CALLS}:error={('EIO', 'ENOSPC')[number % 2]}:when={number}{'+' if forever else ''}"
            tracer = (
                "strace",
                "-f",
                "-qq",
                "--seccomp-bpf",
                "-o",
                str(tmp_path / "trace"),
                "-e",
                f"trace={CALLS}",
                "-e",
                f"inject={inject}",
            )
            process = system.start("engine", before=tracer, PYTHONDONTWRITEBYTECODE="1")
            wait_until(lambda: process.poll() is not None or folded(system) == records, f"the end or the head with {inject}")  # noqa: B023
            died += process.poll() is not None
            system.kill("engine")
            system.start("engine")
            wait_until(lambda: folded(system) == records, f"all records after {inject}")
            system.stop("engine")
            assert unequal(pictured(system.data / "store.db"), whole) == {}, inject
        assert died


def folded(system: System) -> int:
    """Return how far the store is; 0 while nobody can say."""
    try:
        return position(system.data / "store.db")
    except Exception:  # Whatever SQLite says of a store in the making: the next look tells more.
        return 0
