"""Who is not written to any more because of bounces, in the engine: dead addresses, blocks, lists, and the storm of 14 December 2020."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from midflight.config import config_from
from midflight.decide import dead_addresses
from midflight.decide.bounces import Verdict
from midflight.events import Event
from midflight.kit.clock import VirtualClock
from midflight.log import Reader, Record, Writer
from midflight.store import suspecting
from midflight.store.experiment import Numbers
from midflight.store.host_local import Engine

START = 1_607_000_000_000_000  # 3 December 2020
hour_us, day_us = 3_600_000_000, 86_400_000_000
GONE = "550-5.1.1 The email account that you tried to reach does not exist. Please try double-checking the address"
BLOCKED = "550 5.7.1 Service unavailable, client host [192.0.2.1] blocked using zen.spamhaus.org"


class Life:
    """A log that a test writes, and the engine that folds it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = VirtualClock(START)
        self.writer = Writer.open(folder / "log", None, self.clock)
        self.config = config_from({"data": str(folder)})
        self.number = 0
        self.campaign = "c"
        self.folding: tuple[Reader, Engine] | None = None

    def at(self, at_us: int) -> None:
        self.clock.sleep_s(max(0, at_us - self.clock.now_us()) / 1e6)

    def tell(self, kind: str, people: list[str], **more: str) -> None:
        """Append one event about each of these people, now."""
        events = []
        for person in people:
            self.number += 1
            events.append(
                Event(
                    source="esp", event_id=f"e{self.number}", kind=kind, recipient=person, message_id=f"m{self.number}",
                    campaign=self.campaign,
                    occurred_at_us=self.clock.now_us(), **more,
                )
            )  # fmt: skip
        self.writer.append([Record("events", "esp", 0, {}, msgspec.json.encode(events))])

    def gone(self, people: list[str], detail: str = GONE, **more: str) -> None:
        self.tell("bounced", people, bounce_class="hard", code="550 5.1.1", detail=detail, **more)

    def ask(self, do: str, recipients: list[str]) -> None:
        body = msgspec.json.encode({"do": do, "recipients": recipients, "who": "ada", "why": "they asked"})
        self.writer.append([Record("definition", suspecting.SOURCE, 0, {}, body)])

    @contextmanager
    def engine(self, **settings: object) -> Iterator[Engine]:
        with Reader(self.folder / "log") as reader:
            engine = Engine(config_from({"data": str(self.folder)} | settings), reader)
            try:
                yield engine
            finally:
                engine.close()

    def fold(self, bytes_max: int = 8 << 20, **settings: object) -> dict[str, tuple[str, str]]:
        """Fold what the log has; return status and reason by address."""
        with self.engine(**settings) as engine:
            while engine.step(bytes_max):
                pass
            engine.commit()
            found = engine.store.db.execute("SELECT recipient, status, reason FROM addresses ORDER BY recipient")
            return {recipient: (status, reason) for recipient, status, reason in found}

    def folded(self) -> None:
        """Fold what is new by an engine that stays open until `end`."""
        if self.folding is None:
            reader = Reader(self.folder / "log")
            self.folding = (reader, Engine(self.config, reader))
        self.folding[1].catch_up()
        self.folding[1].commit()

    def end(self) -> None:
        if self.folding is not None:
            reader, engine = self.folding
            self.folding = None
            engine.close()
            reader.close()

    def suppressed(self, people: list[str]) -> dict[str, str]:
        numbers = Numbers(self.config, self.clock)
        try:
            return numbers.suppressed(people)
        finally:
            numbers.close()

    def close(self) -> None:
        self.writer.close()


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    made = Life(tmp_path)
    yield made
    made.close()


LIVING = [f"p{n}@gmail.com" for n in range(600)]
OTHERS = [f"p{n}@yahoo.com" for n in range(600)]
DEAD_AT_YAHOO = [f"gone{n}@yahoo.com" for n in range(12)]


def storm(life: Life) -> None:
    """Eleven days of usual life; then Gmail calls most of the living dead for two days, and knows them again."""
    for day in range(11):
        life.at(START + day * day_us)
        life.tell("delivered", LIVING + OTHERS)
        life.tell("clicked", LIVING[: 300 if day < 2 else 20])
        if day in (4, 6):
            life.gone(DEAD_AT_YAHOO)
    life.gone(["quick@yahoo.com"])
    life.at(START + 10 * day_us + hour_us)
    life.tell("clicked", ["quick@yahoo.com"])
    for hour in range(0, 48, 4):
        life.at(START + 11 * day_us + hour * hour_us)
        life.tell("delivered", OTHERS[hour::8] + LIVING[hour::8])
        life.gone(LIVING[hour % 8 + 1 :: 4])
    for day in range(13, 18):
        life.at(START + day * day_us)
        life.tell("delivered", LIVING[::4] + OTHERS)


def test_the_false_storm_of_2020_costs_nobody(life: Life) -> None:
    """Gmail calls hundreds of living people dead, twice a day apart: nobody is suppressed for it; who is dead elsewhere is."""
    storm(life)
    found = life.fold()
    assert {name: said for name, said in found.items() if said[0] == "suppressed"} == dict.fromkeys(DEAD_AT_YAHOO, ("suppressed", "dead"))
    assert life.suppressed([*LIVING, *OTHERS, *DEAD_AT_YAHOO]) == dict.fromkeys(DEAD_AT_YAHOO, "dead")


def test_who_is_called_dead_in_a_storm_is_left_alone_until_it_is_over(life: Life) -> None:
    """While Gmail storms, whom it calls dead is not written to, however long it lasts."""
    storm_only = [f"p{n}@gmail.com" for n in range(600)]
    for day in range(3):
        life.at(START + day * day_us)
        life.tell("delivered", storm_only)
    life.at(START + 4 * day_us)
    life.gone(storm_only[:300])
    life.at(START + 20 * day_us)
    life.tell("delivered", OTHERS)
    life.fold()
    assert set(life.suppressed(storm_only).values()) == {"storm"}


def test_who_believes_the_first_answers_loses_hundreds(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where no storm is ever seen, two answers a day apart cost living people their mail."""
    monkeypatch.setattr(dead_addresses.Providers, "add", lambda self, provider, **counts: None)
    storm(life)
    lost = [name for name, said in life.fold().items() if said == ("suppressed", "dead") and name in LIVING]
    assert len(lost) > 50


def addresses(engine: Engine) -> list:
    rows = engine.store.db.execute("SELECT * FROM addresses ORDER BY recipient").fetchall()
    return [rows, engine.store.meta(suspecting.META)]


@pytest.mark.parametrize(("bytes_max", "shards"), [(1, 1), (20_000, 3), (300_000, 1)])
def test_any_batch_size_and_number_of_shards_give_the_same_addresses(tmp_path: Path, bytes_max: int, shards: int) -> None:
    """Batch by batch, with restarts between, or at once: the same rows and the same memory of providers."""
    found = []
    for name, size, number in (("one", 8 << 20, 1), ("other", bytes_max, shards)):
        life = Life(tmp_path / name)
        storm(life)
        for steps in (5, 10_000):
            with life.engine(shards=number) as engine:
                while steps and engine.step(size):
                    steps -= 1
                engine.commit()
                end = addresses(engine)
        found.append(end)
        life.close()
    assert found[0] == found[1] and len(found[0][0]) > 100


def test_a_block_speaks_against_nobody(life: Life) -> None:
    """A blocklist's refusal, whatever the vendor calls it, is about the sender: the address stays as it is."""
    for day in (0, 2, 4):
        life.at(START + day * day_us)
        life.gone(["ada@example.com"], detail=BLOCKED)
    assert life.fold() == {} and life.suppressed(["ada@example.com"]) == {}


def test_every_bounce_called_dead_would_be_found(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where each hard bounce is taken for a dead address, the test above fails."""
    dead = Verdict(
        reason="unknown_mailbox", bounce_class="hard", fault="address", dead=True, confidence=0.9, permanent=True, by="code", because="hard"
    )  # fmt: skip
    monkeypatch.setattr(suspecting, "verdict_of", lambda event: dead)
    test_two = ["ada@example.com"]
    for day in (0, 2, 4):
        life.at(START + day * day_us)
        life.gone(test_two, detail=BLOCKED)
    assert life.fold() == {"ada@example.com": ("suppressed", "dead")}


def test_a_suspect_who_clicks_is_well_again(life: Life) -> None:
    """After the first answer an address rests; a click of its owner takes that back."""
    life.gone(["ada@example.com", "bob@example.com"])
    assert life.fold() == dict.fromkeys(("ada@example.com", "bob@example.com"), ("probation", "suspected"))
    life.at(START + hour_us)
    life.tell("clicked", ["ada@example.com"])
    assert set(life.fold()) == {"bob@example.com"} and life.suppressed(["ada@example.com"]) == {}


def test_a_probation_ends_by_itself(life: Life) -> None:
    """After three days the address is tried again."""
    life.gone(["ada@example.com"])
    life.fold()
    assert life.suppressed(["ada@example.com"]) == {"ada@example.com": "suspected"}
    life.at(START + 4 * day_us)
    life.tell("delivered", ["bob@example.com"])
    life.fold()
    assert life.suppressed(["ada@example.com"]) == {}


def test_a_list_is_taken_in_and_given_back(life: Life) -> None:
    """Addresses from a list are not written to until somebody takes them off; what is no address is left out, and no click lifts it."""
    life.ask("suppress", ["Ada@Example.com", "bob@example.com", "no address", ""])
    life.tell("clicked", ["ada@example.com"])
    life.fold()
    assert life.suppressed(["ada@example.com", "bob@example.com"]) == dict.fromkeys(("ada@example.com", "bob@example.com"), "imported")
    life.ask("release", ["ada@example.com"])
    life.writer.append([Record("definition", suspecting.SOURCE, 0, {}, b"{no list")])
    assert set(life.fold()) == {"bob@example.com"}


def test_an_unsubscribe_outlives_a_release(life: Life) -> None:
    """Taking an address off the list of the dead gives nobody mail that he does not want."""
    life.tell("unsubscribed", ["ada@example.com"])
    life.ask("release", ["ada@example.com"])
    life.fold()
    assert life.suppressed(["ada@example.com"]) == {"ada@example.com": "unsubscribed"}


def test_what_is_kept_of_addresses_is_bounded_in_time(life: Life) -> None:
    """An address of which nothing was said for more than a year is forgotten."""
    life.gone(["ada@example.com"])
    life.fold()
    life.at(START + 402 * day_us)
    life.tell("delivered", ["bob@example.com"])
    assert life.fold() == {}


def test_words_of_a_vendors_own_batch_are_read(life: Life) -> None:
    """Bounces that compiled code scanned have their words too: a full box is none that is dead, whatever the vendor's class says."""
    config = config_from({"data": str(life.folder), "sources": {"esp": {"kind": "sendgrid", "unsigned": True}}})
    for n, reason in enumerate(("552 5.2.2 The email account that you tried to reach is over quota", GONE)):
        for day in (0, 2):
            item = {
                "email": f"p{n}@example.com", "timestamp": START // 1_000_000 + day * 86_400, "event": "bounce", "type": "bounce",
                "sg_event_id": f"e{n}{day}", "sg_message_id": f"m{n}{day}.f", "reason": reason, "status": "5.0.0", "campaign": "c",
            }  # fmt: skip
            life.at(START + day * day_us)
            life.writer.append([Record("webhook", "esp", 0, {}, msgspec.json.encode([item]))])
    with Reader(life.folder / "log") as reader:
        engine = Engine(config, reader)
        engine.catch_up()
        engine.commit()
        found = dict(engine.store.db.execute("SELECT recipient, reason FROM addresses WHERE status = 'suppressed'"))
        engine.close()
    assert found == {"p1@example.com": "dead"}


def test_answers_are_counted_by_provider_domain_address_and_campaign(life: Life) -> None:
    """A domain of its own and a sending IP are told apart from their first bounce on; who blocks us is named with the words."""
    life.gone(["a@corp.example"], ip="192.0.2.1")
    life.fold()
    life.tell("delivered", ["b@corp.example", "c@corp.example", "p1@gmail.com", "d@other.example"], ip="192.0.2.1")
    life.tell("bounced", ["e@corp.example", "p2@gmail.com"], bounce_class="block", code="550", detail=BLOCKED, ip="192.0.2.1")
    life.fold()
    with life.engine() as engine:
        sums = {row[:2]: row[2:] for row in engine.store.db.execute("SELECT kind, name, answered, bounced, blocked FROM answers")}
        named = engine.store.db.execute("SELECT sign, provider, n, said FROM signs ORDER BY provider").fetchall()
    assert sums == {
        ("pair", "1/2"): (2, 1, 1), ("pair", "1/1"): (5, 2, 1), ("domain", "corp.example"): (3, 1, 1), ("ip", "192.0.2.1"): (6, 2, 2),
    }  # fmt: skip
    assert named == [("spamhaus", "Gmail", 1, BLOCKED), ("spamhaus", "corp.example", 1, BLOCKED)]
