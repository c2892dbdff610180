"""The door's log lines about refusals: one a second for each source and reason, however many there are, on one line each."""

from __future__ import annotations

import logging
from time import monotonic

from ...kit.counters import Counters

logger = logging.getLogger("midflight.door")

quiet_s = 1.0
notes_max = 256
skew_share_max = 0.05
skew_look_s = 60.0
requests_min = 20


class Notes:
    """Says what was refused, and raises an alarm when many requests are signed at another time than ours."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.last_s: dict[tuple, float] = {}
        self.unsaid: dict[tuple, int] = {}
        self.skewed_count = self.requests_before = 0
        self.skew_since_s = monotonic()

    @staticmethod
    def escaped(text: str | bytes) -> str:
        """Return text on one line without control characters, at most 300 long."""
        text = text.decode("latin-1") if isinstance(text, bytes) else text
        return text[:300].encode("unicode_escape").decode("ascii")

    def refused(self, lane: str, status: int, said: str, peer: str, target: bytes) -> None:
        key = (lane, status, said[:40])
        if self._quiet(key):
            return
        path = target.partition(b"?")[0]
        unsaid = self.unsaid.pop(key, 0)
        more = f" (and {unsaid} more)" if unsaid else ""
        logger.warning("refused %d %s from %s: %s%s", status, self.escaped(path), peer or "-", self.escaped(said), more)

    def say(self, key: str, text: str) -> None:
        if not self._quiet((key,)):
            logger.warning("%s", text)

    def _quiet(self, key: tuple) -> bool:
        now_s = monotonic()
        if now_s - self.last_s.get(key, -quiet_s) < quiet_s or len(self.last_s) >= notes_max:
            self.unsaid[key] = self.unsaid.get(key, 0) + 1 if len(self.unsaid) < notes_max else 0
            return True
        self.last_s[key] = now_s
        return False

    def skewed(self) -> None:
        self.skewed_count += 1

    def look(self, now_s: float) -> None:
        """Forget what was said long ago, and compare the share of skewed requests with what is normal."""
        if len(self.last_s) >= notes_max // 2:
            self.last_s = {key: at for key, at in self.last_s.items() if now_s - at < quiet_s}
        if now_s - self.skew_since_s < skew_look_s:
            return
        requests = sum(self.counters.snapshot().get("door_requests_total", {}).values())
        recent = requests - self.requests_before
        if recent >= requests_min and self.skewed_count > skew_share_max * recent:
            logger.error("%d of %d requests were signed at another time: check this machine's clock", self.skewed_count, recent)
        self.requests_before, self.skewed_count, self.skew_since_s = requests, 0, now_s
