"""What only the engine's memory knows, asked over a socket of the data folder: one person with the reasons of every membership, some
members of a segment or all of them page by page, how engaged some people are, what they bought, and how many a condition would hold of that
is not in force.

The engine answers between two batches. Whoever asks waits for at most ``answer_s``, and goes on without an answer where no engine is.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from contextlib import closing
from math import gcd
from pathlib import Path

import apsw
import msgspec
import numpy as np

from ..kit.clock import Clock
from ..kit.errors import MidflightError
from ..stream.conditions import condition_of
from ..stream.explained import Explaining, Happened, Reason, person_at, person_of, shown_max
from ..stream.hashing import hash_text
from ..stream.program import whole
from ..stream.tables import RECIPIENTS
from .folding import Folding, shards_max

logger = logging.getLogger("midflight.engine")

SOCKET = "engine.sock"
answer_s = 5.0
line_bytes_max = 256 * 1024
answer_bytes_max = 8 << 20
members_max = 500
tried_max = 4_000  # people whom a condition is tried on
tried_s_max = 1.5
people_max = 500  # of one question about what they bought
tried_at_once = 20  # people between two batches: whoever folds waits no longer than for these
scores_max = 200
page_max = 1_000
backlog = 16


class Question(msgspec.Struct, kw_only=True, omit_defaults=True):
    """About a ``person`` by the key of an address, about the ``scores`` of several, about members of a ``segment``: some of them, or those
    ``after`` a number; about those of whom the condition ``where`` would hold, or about what ``people`` bought, by their keys."""

    person: str = ""
    scores: list[str] = []
    segment: str = ""
    where: dict = {}
    people: list[str] = []
    count: int = 20
    after: int | None = None


class Membership(msgspec.Struct, kw_only=True):
    """Whether a person is in a segment, and why, or why not."""

    segment: str
    member: bool
    why: Reason


class Known(msgspec.Struct, kw_only=True):
    """What is known of a person. ``score`` is of engagement, with its parts."""

    known: bool
    happened: list[Happened] = []
    campaigns: dict[int, str] = {}
    segments: list[Membership] = []
    score: int = 0
    reasons: list[tuple[int, str]] = []
    log_time_us: int = 0


class Members(msgspec.Struct, kw_only=True):
    """Some of the people in a segment, from all over it; or one page of them, and after which number the next one begins, -1 for none."""

    recipients: list[str]
    after: int = -1
    log_time_us: int = 0


class Scores(msgspec.Struct, kw_only=True):
    """How engaged people are; who is not known has no score."""

    scores: dict[str, int]
    log_time_us: int = 0


class Tried(msgspec.Struct, kw_only=True):
    """Of how many people a condition would hold now: of ``people`` in all, ``tried`` were looked at, evenly over all of them, and of
    ``members`` of these it holds; ``recipients`` are some of them."""

    people: int
    tried: int
    members: int
    recipients: list[str] = []


class Bought(msgspec.Struct, kw_only=True):
    """The conversions of people, in the order in which they were asked about: when and for how much, in millionths."""

    orders: list[list[tuple[int, int]]]


class NoAnswer(MidflightError):
    """The engine does not answer: it is not there, or has too much to do."""

    status = 503
    code = "no_answer"


# -- the engine's side -----------------------------------------------------------------------------------------------------------------


class Answering:
    """Answers in a thread of its own. ``folding`` is looked at while ``lock`` is held, which whoever folds holds meanwhile."""

    def __init__(self, folder: Path, folding: Folding, lock: threading.Lock) -> None:
        self.folder, self.folding, self.lock, self.clock = folder, folding, lock, Clock()
        (folder / SOCKET).unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        _at(folder, self._listener.bind)
        (folder / SOCKET).chmod(0o600)
        self._listener.listen(backlog)
        self._thread = threading.Thread(target=self._serve, name="answering", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        (self.folder / SOCKET).unlink(missing_ok=True)
        # Closing alone does not wake who waits in `accept`.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(answer_s)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.settimeout(answer_s)
                    question = msgspec.json.decode(_line(connection, line_bytes_max), type=Question)
                    connection.sendall(msgspec.json.encode(self.answer(question)) + b"\n")
                except (OSError, msgspec.DecodeError, UnicodeDecodeError):
                    continue  # whoever asked has gone, or asks nonsense
                except Exception:
                    # A question is nobody's need: a mistake in an answer must not end the engine.
                    logger.exception("a question could not be answered")

    def answer(self, question: Question) -> Known | Members | Scores | Tried | Bought:
        """Return what a question asks for."""
        if question.where:
            return self._try(question.where, question.count)
        if question.people:
            return self._bought(question.people[:people_max])
        with self.lock:
            if question.person:
                return self._person(question.person)
            if question.scores:
                return self._scores(question.scores[:scores_max])
            if question.after is not None:
                return self._page(question.segment, question.after)
            return self._members(question.segment, question.count)

    def _explaining(self, recipient: str) -> Explaining | None:
        folding, key = self.folding, hash_text(recipient)[0]
        for shard in folding.shards:
            if (person := person_of(shard, key)) is not None:
                return Explaining(person, shard.log_time_us, lambda kind, name: folding.names.ids[kind].get(name, 0))
        return None

    def _scores(self, recipients: list[str]) -> Scores:
        found = {recipient: self._explaining(recipient) for recipient in recipients}
        return Scores(
            scores={recipient: one.score()[0] for recipient, one in found.items() if one}, log_time_us=self._log_time_us()
        )  # fmt: skip

    def _log_time_us(self) -> int:
        return max(shard.log_time_us for shard in self.folding.shards)

    def _person(self, recipient: str) -> Known:
        folding, explaining = self.folding, self._explaining(recipient)
        if explaining is None:
            return Known(known=False)
        person, ids = explaining.person, folding.names.ids
        score, reasons = explaining.score()
        happened = person.happened[-shown_max:]
        wanted = {one.campaign for one in happened if one.campaign}
        return Known(
            known=True, happened=happened, score=score, reasons=reasons, log_time_us=explaining.now_us,
            campaigns={number: name for name, number in ids["campaign"].items() if number in wanted},
            segments=[
                Membership(segment=name, member=bool(person.member[place]), why=explaining.explain(self._whole(name)))
                for place, (name, _) in enumerate(folding.asked.segments)
            ],
        )  # fmt: skip

    def _whole(self, name: str):
        conditions = self._conditions()
        return whole(conditions, conditions[name], (name,))

    def _conditions(self) -> dict:
        return {one: condition_of(kept.body) for one, kept in self.folding.definitions.segments.items()}

    def _try(self, where: dict, count: int) -> Tried:
        """Try a condition on people from all over, a few between two batches, for as long as that may take."""
        with self.lock:
            condition = whole(self._conditions(), condition_of(where), ())
            sizes = [int(shard.state.used[RECIPIENTS]) for shard in self.folding.shards]
        people = sum(sizes)
        # An odd step through the numbers, so that who stopped early has still seen people from all over.
        step = _coprime(people, 0.618)
        wanted, found, tried, end_s = min(people, tried_max), [], 0, self.clock.monotonic_s() + tried_s_max
        while tried < wanted and self.clock.monotonic_s() < end_s:
            with self.lock:
                for n in range(tried, min(wanted, tried + tried_at_once)):
                    shard, row = _place(sizes, n * step % people)
                    if self._holds(condition, shard, row):
                        found.append(row * shards_max + shard)
            tried = min(wanted, tried + tried_at_once)
        some = found[: min(max(count, 0), members_max)]
        return Tried(people=people, tried=tried, members=len(found), recipients=sorted(self._recipients(some)))

    def _bought(self, recipients: list[str]) -> Bought:
        """Return what people bought, a few looked at between two batches."""
        orders: list[list[tuple[int, int]]] = []
        for start in range(0, len(recipients), tried_at_once):
            with self.lock:
                for recipient in recipients[start : start + tried_at_once]:
                    key = hash_text(recipient)[0]
                    found = [person_of(shard, key) for shard in self.folding.shards]
                    happened = [one for person in found if person for one in person.happened if one.kind == "converted"]
                    orders.append([(one.at_us, one.value_micros) for one in happened])
        return Bought(orders=orders)

    def _holds(self, condition, number: int, row: int) -> bool:
        shard, ids = self.folding.shards[number], self.folding.names.ids
        person = person_at(shard, row)
        return Explaining(person, shard.log_time_us, lambda kind, name: ids[kind].get(name, 0)).explain(condition).true

    def _members(self, segment: str, count: int) -> Members:
        names = [name for name, _ in self.folding.asked.segments]
        if segment not in names:
            return Members(recipients=[])
        place, count = names.index(segment), min(max(count, 0), members_max)
        numbers = []
        for number, shard in enumerate(self.folding.shards):
            rows = shard.members(place)
            every = max(1, rows.size // max(1, count))
            numbers += (rows[::every][:count].astype(np.int64) * shards_max + number).tolist()
        return Members(recipients=sorted(self._recipients(numbers[:count])))

    def _page(self, segment: str, after: int) -> Members:
        """Return members shard by shard in the order of their rows. Whoever comes in or goes meanwhile is in the moves."""
        names = [name for name, _ in self.folding.asked.segments]
        log_time_us = self._log_time_us()
        if segment not in names:
            return Members(recipients=[], log_time_us=log_time_us)
        place = names.index(segment)
        first, row = (after % shards_max, after // shards_max + 1) if after >= 0 else (0, 0)
        for number in range(first, len(self.folding.shards)):
            rows = self.folding.shards[number].members(place).astype(np.int64)
            rows = rows[np.searchsorted(rows, row) :][:page_max]
            if rows.size:
                numbers = (rows * shards_max + number).tolist()
                return Members(recipients=self._recipients(numbers), after=numbers[-1], log_time_us=log_time_us)
            row = 0
        return Members(recipients=[], log_time_us=log_time_us)

    def _recipients(self, numbers: list[int]) -> list[str]:
        with closing(apsw.Connection(str(self.folder / "store.db"), flags=apsw.SQLITE_OPEN_READONLY)) as db:
            found = [db.execute("SELECT recipient FROM people WHERE number = ?", (number,)).fetchone() for number in numbers]
        return [row[0] for row in found if row]


def _place(sizes: list[int], n: int) -> tuple[int, int]:
    """Return the shard and the row of the n-th of all people."""
    for shard, size in enumerate(sizes):
        if n < size:
            return shard, n
        n -= size
    raise AssertionError(n)


def _coprime(people: int, share: float) -> int:
    """Return a step that reaches everybody once, about this share of all."""
    step = max(1, int(people * share))
    while people and gcd(step, people) != 1:
        step += 1
    return step


# -- who asks --------------------------------------------------------------------------------------------------------------------------


def person(folder: Path, recipient: str) -> Known:
    """Return what the engine knows of a person. Raises NoAnswer."""
    return msgspec.json.decode(_ask(folder, Question(person=recipient)), type=Known)


def members(folder: Path, segment: str, count: int = 20) -> list[str]:
    """Return some members of a segment. Raises NoAnswer."""
    return msgspec.json.decode(_ask(folder, Question(segment=segment, count=count)), type=Members).recipients


def tried(folder: Path, where: dict, count: int = 20) -> Tried:
    """Return of how many people a condition would hold. It has to be one that can be understood. Raises NoAnswer."""
    return msgspec.json.decode(_ask(folder, Question(where=where, count=count)), type=Tried)


def page(folder: Path, segment: str, after: int = -1) -> Members:
    """Return some members of a segment, those behind a number; the last page has none. Raises NoAnswer."""
    return msgspec.json.decode(_ask(folder, Question(segment=segment, after=after)), type=Members)


def scores(folder: Path, recipients: list[str]) -> Scores:
    """Return how engaged some people are, at most ``scores_max`` of them. Raises NoAnswer."""
    return msgspec.json.decode(_ask(folder, Question(scores=recipients)), type=Scores)


def bought(folder: Path, recipients: list[str]) -> dict[str, list[tuple[int, float]]]:
    """Return the conversions of people: when, and for how much. Raises NoAnswer."""
    found = {}
    for start in range(0, len(recipients), people_max):
        part = recipients[start : start + people_max]
        answer = msgspec.json.decode(_ask(folder, Question(people=part)), type=Bought)
        found |= {who: [(at_us, micros / 1e6) for at_us, micros in orders] for who, orders in zip(part, answer.orders, strict=True)}
    return found


def _ask(folder: Path, question: Question) -> bytes:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(answer_s)
            _at(folder, connection.connect)
            connection.sendall(msgspec.json.encode(question) + b"\n")
            return _line(connection, answer_bytes_max)
    except OSError as error:
        raise NoAnswer("The engine does not answer", got=error.strerror or type(error).__name__, todo="Try again in a moment") from None


def _line(connection: socket.socket, bytes_max: int) -> bytes:
    """Return one line. Raises OSError where it does not come, or is too long."""
    found = bytearray()
    while not found.endswith(b"\n"):
        part = connection.recv(65_536)
        if not part or len(found) + len(part) > bytes_max:
            raise OSError("no whole line")
        found += part
    return bytes(found)


def _at(folder: Path, do) -> None:
    """Call ``do`` with the socket's address. The folder's own path may be longer than a socket's may be."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        do(f"/proc/self/fd/{fd}/{SOCKET}")
    finally:
        os.close(fd)
