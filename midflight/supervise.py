"""Starts the processes of `midflight up`, starts again what dies, and ends them all together."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

drain_s_max = 10.0
# Of these ten seconds, so long may the first to end take, and so long from the start may the wait for the engine last.
first_s_max = 3.0
catch_up_s_max = 5.0
backoff_s_max = 10.0
steady_s = 30.0  # a process that lived this long is started again at once
refused_status = 2  # an operator's mistake, said in the process's own line
refusals_max = 3
SUPERVISED = "MIDFLIGHT_SUPERVISED"  # holds the supervisor's process id
_PR_SET_PDEATHSIG = 1


class Child:
    """One process and the history of its deaths."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: subprocess.Popen | None = None
        self.started_at = 0.0
        self.start_again_at = 0.0
        self.quick_deaths = 0
        self.refusals = 0

    def start(self, now: float) -> None:
        # In a session of its own, so that Ctrl-C reaches only the supervisor, which then ends all of them in order.
        # -P: a json.py in the working folder must not become ours.
        environment = os.environ | {SUPERVISED: str(os.getpid())}
        self.process = subprocess.Popen([sys.executable, "-P", "-m", "midflight", self.name], start_new_session=True, env=environment)
        self.started_at = now

    def lives(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def died(self, now: float) -> int | None:
        """Return the exit status if the process has just ended, and set when it may start again."""
        if self.process is None or self.process.poll() is None:
            return None
        status = self.process.returncode
        self.process = None
        self.quick_deaths = 0 if now - self.started_at > steady_s else self.quick_deaths + 1
        self.refusals = self.refusals + 1 if status == refused_status else 0
        self.start_again_at = now + min(0.2 * 2**self.quick_deaths if self.quick_deaths else 0.0, backoff_s_max)
        return status


class Supervisor:
    """Keeps the named processes running until told to stop.

    Those in ``first`` take requests from outside and are ended before the others, which go on until ``caught_up()`` says that
    nothing is left of what was taken.
    """

    def __init__(
        self,
        names: list[str],
        say: Callable[[str], None],
        *,
        first: tuple[str, ...] = (),
        caught_up: Callable[[], bool] = lambda: True,
    ) -> None:
        self.children = [Child(name) for name in names]
        self.say = say
        self.first = first
        self.caught_up = caught_up
        self.stopping = False
        self.status = 0

    def run(self, while_running: Callable[[], bool] | None = None) -> int:
        """Run until SIGTERM, SIGINT or until ``while_running()`` is false; return an exit status. A second signal ends at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        while not self.stopping and (while_running is None or while_running()):
            self._tend(time.monotonic())
            time.sleep(0.1)
        return self._end()

    def _tend(self, now: float) -> None:
        for child in self.children:
            status = child.died(now)
            if status is not None:
                # Trying yet again cannot help.
                if child.refusals >= refusals_max:
                    self.say(f"{child.name} cannot start; its own line above says why")
                    self.stopping, self.status = True, refused_status
                    return
                self.say(f"{child.name} ended ({reason(status)}) and is started again")
            if child.process is None and now >= child.start_again_at:
                child.start(now)

    def _signalled(self, number: int, _frame) -> None:
        if self.stopping:
            self._kill()
            os._exit(128 + number)
        self.stopping = True

    def _end(self) -> int:
        """End those that take requests, wait until the others have caught up, end these, and kill what has not ended in ten seconds."""
        began = time.monotonic()
        running = [child for child in self.children if child.process is not None]
        first = [child for child in running if child.name in self.first]
        rest = [child for child in running if child not in first]
        for child in first:
            child.process.terminate()
        late_first = wait_for(first, began + first_s_max)
        # Only the living get further, and not for longer than this; what is left then is in the log.
        after = [child for child in self.children if child.name not in self.first]
        while time.monotonic() < began + catch_up_s_max and all(child.lives() for child in after) and not self.caught_up():
            time.sleep(0.05)
        for child in rest:
            child.process.terminate()
        late = wait_for([*late_first, *rest], began + drain_s_max)
        self._kill()
        if late:
            self.say(f"killed after {drain_s_max:.0f} s: {', '.join(child.name for child in late)}")
        return self.status or (1 if late else 0)

    def _kill(self) -> None:
        for child in self.children:
            if child.lives():
                child.process.kill()
                child.process.wait()


def wait_for(children: list[Child], deadline: float) -> list[Child]:
    """Wait until processes have ended; return those that have not by the deadline."""
    late = []
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            late.append(child)
    return late


def reason(status: int) -> str:
    """Return how a process ended, in words."""
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def end_with_supervisor() -> None:
    """Have the kernel end this process when its supervisor is gone: the next supervisor finds ports and locks free."""
    supervisor = os.environ.get(SUPERVISED, "")
    if supervisor:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(supervisor):
            os.kill(os.getpid(), signal.SIGTERM)
