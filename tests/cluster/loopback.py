"""A server of somebody else's as a process of its own on loopback: started, stopped, killed, paused and started again on its data."""

from __future__ import annotations

import atexit
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

# Below the ports that systems hand to outgoing connections: a client that calls a dead server there could be connected to itself,
# and the port would be taken when the server comes back.
PORTS = range(15_000, 30_000)
start_s_max = 90.0
stop_s_max = 30.0
tries_max = 100


def free_port() -> int:
    """Return a port of loopback that nobody listens on, and that is not handed out again soon."""
    for _ in range(tries_max):
        port = random.choice(PORTS)
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError(f"no free port among {PORTS}")


def wait_until(true: Callable[[], object], what: str, timeout_s: float = 60.0) -> float:
    """Wait until something holds, and return how many seconds that took. Raises AssertionError that says what did not hold."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < timeout_s, f"after {timeout_s:.0f} s still not: {what}"
        time.sleep(0.05)
    return time.monotonic() - began


def children(pid: int) -> list[int]:
    """Return the processes that a process started and that still run."""
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def running(pid: int) -> bool:
    """Whether a process is there and is not merely waiting for its parent to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Server:
    """One server over one folder, which holds its data and what it says. What it is and when it is ready, a subclass says."""

    # What ends it in good order.
    ending = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / "output"
        self.process: subprocess.Popen[bytes] | None = None
        # As whom it runs, where that is somebody else.
        self.user: str | None = None
        # Nothing of it outlives the program that started it, whatever ends that in its own words.
        atexit.register(self.kill)

    def command(self) -> list[str]:
        """Return what starts it."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Make its data, once."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it answers."""
        raise NotImplementedError

    def run_once(self, command: list[str]) -> None:
        """Run a tool of the server's to its end. Raises AssertionError with what the tool said."""
        done = subprocess.run(command, cwd=self.folder, user=self.user, capture_output=True, text=True, check=False, timeout=start_s_max)
        assert done.returncode == 0, f"`{command[0]}` ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"

    def start(self, wait: bool = True) -> float:
        """Start it, on the data that it has or on new ones, and return after how many seconds it answered."""
        assert not self.alive, f"{type(self).__name__} runs already"
        self.prepare()
        began = time.monotonic()
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                user=self.user,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C ends those who use it first.
                start_new_session=True,
            )
        if wait:
            self.wait_ready()
        return time.monotonic() - began

    def wait_ready(self) -> None:
        """Wait until it answers. Raises AssertionError with its last words where it ended or does not answer in time."""

        def answers() -> bool:
            assert self.alive, f"{type(self).__name__} ended with {self.process.poll()}:\n{self.last_words()}"
            return self.ready()

        try:
            wait_until(answers, f"{type(self).__name__} answers", start_s_max)
        except BaseException:
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def last_words(self) -> str:
        """Return the end of what it said."""
        return self.output.read_text(errors="replace")[-4000:]

    def signal(self, number: signal.Signals) -> list[int]:
        """Send a signal to it and to what it started, itself first, and return whom it went to."""
        assert self.process is not None
        pids = [self.process.pid, *children(self.process.pid)]
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass  # it ended by itself meanwhile
        return pids

    def stop(self) -> None:
        """End it in good order; nothing happens where it does not run. Raises AssertionError if it does not end."""
        if not self.alive:
            return
        self.process.send_signal(self.ending)
        try:
            self.process.wait(stop_s_max)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{type(self).__name__} did not stop within {stop_s_max:.0f} s:\n{self.last_words()}") from None

    def kill(self) -> None:
        """End it as a crash does, with all that it started, and wait until nothing of it is left."""
        if not self.alive:
            return
        pids = self.signal(signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not any(running(pid) for pid in pids), "all its processes are gone")

    def pause(self) -> None:
        """Stop its time, as a machine does that hangs: connections stay open, nothing answers."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let its time go on."""
        self.signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.alive:
            self.resume()
        self.stop()
