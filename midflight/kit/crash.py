"""Named places at which a test can have the process killed, as a power cut would; nothing happens unless it asks.

``MIDFLIGHT_CRASH_AT=after_fsync:3`` kills the process, without any clean-up, when it passes ``after_fsync`` for the third time.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "MIDFLIGHT_CRASH_AT"


def armed(setting: str):
    """Return the function that counts the passes of one named place and kills the process at the wanted one."""
    wanted, _, count = setting.partition(":")
    left = int(count or 1)

    def crash_point(name: str) -> None:
        nonlocal left
        if name == wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return crash_point


def crash_point(name: str) -> None:
    """Do nothing: no test has asked for a crash."""


asked = os.environ.get(VARIABLE, "")
if asked:
    crash_point = armed(asked)  # noqa: F811
