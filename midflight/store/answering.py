"""How providers, domains, sending IPs and campaigns answer for messages, and who says that he blocks us: running sums for the guards.

A domain or an IP is told apart from its first bounce on, so these sums depend on how the log was cut into batches: they are outside of what
a replay has to reproduce.
"""

from __future__ import annotations

from collections import defaultdict

import apsw
import numpy as np

from ..decide import signs
from ..decide.bounces import Verdict
from ..events import BOUNCE_CLASSES, KINDS, Event
from ..stream.edge import Prepared
from ..stream.hashing import hash_texts
from ..stream.providers import OTHER, PROVIDERS

names_max = 20_000  # domains, and as many IPs; more are not told apart
late_us = 3_600_000_000  # what is heard of later than this says nothing about how a stream bounces now
said_chars_max = 500
kept_us = 60 * 86_400_000_000  # of signs, and of names that nothing was heard of; by log time
trimmed_max = 1_000  # rows at a time
hour_us = 3_600_000_000
_BOUNCED, _BLOCK = KINDS.index("bounced"), BOUNCE_CLASSES.index("block")


class Answers:
    """Sums that wait for the next commit, and the domains and IPs that bounced before."""

    def __init__(self, db: apsw.Connection) -> None:
        self.db = db
        self.known: dict[str, dict[int, str]] = {"domain": {}, "ip": {}}  # kind -> hash -> name
        for kind, name in db.execute("SELECT kind, name FROM answers WHERE kind IN ('domain', 'ip')"):
            self.known[kind][int(hash_texts([name])[0, 0])] = name
        self.sums: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        self.signs: dict[tuple[int, str, str], list] = {}
        self._trimmed_us = 0

    def hear(self, prepared: Prepared, answered: np.ndarray) -> None:
        """Count the rows of a batch that are new deliveries and bounces, of now: a backlog or an import says how it was."""
        batch = prepared.batch
        answered = answered[prepared.received[answered] - batch.at_us[answered] <= late_us]
        if not answered.size:
            return
        provider, campaign = batch.provider[answered], batch.campaign[answered]
        bounced = batch.kind[answered] == _BOUNCED
        blocked = bounced & (batch.bounce[answered] == _BLOCK)
        for pair, counts in _sums(campaign.astype(np.uint64) << np.uint64(16) | provider, bounced, blocked):
            self._add("pair", f"{pair >> 16}/{pair & 0xFFFF}", counts)
        for kind, hashes, which in (("domain", prepared.domain[answered], provider == OTHER), ("ip", prepared.ip[answered], None)):
            known = self.known[kind]
            if not known:
                continue
            here = np.isin(hashes, np.fromiter(known, np.uint64, len(known)))
            here = here & which if which is not None else here
            for number, counts in _sums(hashes[here], bounced[here], blocked[here]):
                self._add(kind, known[number], counts)

    def bounced(self, event: Event, recipient: str, provider: str, verdict: Verdict, at_us: int) -> None:
        """Take in what one bounce says, by log time: from now on its domain and its IP are told apart, and who blocks us is noted."""
        if provider not in PROVIDERS:
            self._know("domain", provider)
        if event.ip:
            self._know("ip", event.ip[:64])
        if verdict.fault != "sender":
            return
        for found in signs.named(event.detail[: signs.text_chars_max]):
            key = (at_us // hour_us, found.sign.id, provider)
            before = self.signs.setdefault(key, [0, 0, ""])
            before[0] += 1
            before[1:] = max(before[1], at_us), event.detail[:said_chars_max]

    def _know(self, kind: str, name: str) -> None:
        """Tell a domain or an IP apart from now on."""
        key = int(hash_texts([name])[0, 0])
        if key not in self.known[kind] and len(self.known[kind]) < names_max:
            self.known[kind][key] = name
            self._add(kind, name, (0, 0, 0))

    def _add(self, kind: str, name: str, counts: tuple[int, int, int]) -> None:
        sums = self.sums[kind, name]
        for place, count in enumerate(counts):
            sums[place] += count

    def write(self, log_time_us: int) -> None:
        """Write what was counted; within the caller's transaction."""
        self.db.executemany(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (kind, name) DO UPDATE SET answered = answered + excluded.answered, "
            "bounced = bounced + excluded.bounced, blocked = blocked + excluded.blocked, last_us = excluded.last_us",
            [(*key, *counts, log_time_us) for key, counts in self.sums.items()],
        )
        self.db.executemany(
            "INSERT INTO signs VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (hour, sign, provider) DO UPDATE SET n = n + excluded.n, "
            "last_us = max(last_us, excluded.last_us), said = excluded.said",
            [(*key, *counts) for key, counts in self.signs.items()],
        )
        if log_time_us >= self._trimmed_us + hour_us:
            self._trimmed_us = log_time_us
            old_us = log_time_us - kept_us
            self.db.execute(
                "DELETE FROM signs WHERE (hour, sign, provider) IN (SELECT hour, sign, provider FROM signs WHERE hour < ? LIMIT ?)",
                (old_us // hour_us, trimmed_max),
            )
            gone = self.db.execute(
                "DELETE FROM answers WHERE (kind, name) IN (SELECT kind, name FROM answers WHERE last_us < ? LIMIT ?) RETURNING kind, name",
                (old_us, trimmed_max),
            ).fetchall()
            for kind, name in gone:
                self.known.get(kind, {}).pop(int(hash_texts([name])[0, 0]), None)
        self.sums.clear()
        self.signs.clear()


def _sums(keys: np.ndarray, bounced: np.ndarray, blocked: np.ndarray) -> list[tuple[int, tuple[int, int, int]]]:
    """Return each key with how many rows have it, and how many of them bounced and were blocked."""
    found, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
    sums = (np.bincount(place, weights, found.size).astype(np.int64).tolist() for weights in (bounced, blocked))
    return list(zip(found.tolist(), zip(counts.tolist(), *sums, strict=True), strict=True))
