"""The advisor's promises over real sockets: the same answer for ever, as likely as it says, durable before it is told, and never to who
must not be written to."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import sqrt
from pathlib import Path

import msgspec
import pytest
from door_client import Reply, Running, configuration, connect, door_process, post, records_in, replies, running, talk, until
from test_door import BODY, Opener, answered_within

from midflight.act.advice import NAME, Advice, BadAdvice, read, write
from midflight.act.audience import held_out
from midflight.act.links import Links
from midflight.config import Config, config_from
from midflight.kit.errors import NotFound
from midflight.log import Full, Reader, Writer
from midflight.serve.auth import Access
from midflight.serve.door import advisor as advisor_module
from midflight.serve.door import decide as decide_module
from midflight.serve.door.advisor import Advisor
from midflight.serve.door.door import Door
from midflight.store.host_local import Engine

PUBLIC = "https://mail.example"
SOURCES = {"open": {"kind": "sendgrid", "unsigned": True}}
DEFINITION = {
    "variants": [
        {"name": "A", "subject": "Hello {{ name | default: 'you' }}", "from_name": "The Shop", "text": "A for {{ recipient.email }}"},
        {"name": "B", "subject": "Spring, {{ name | default: 'friend' }}", "html": "<p>B {{ name | default: 'friend' }}</p>"},
        {"name": "C", "subject": "Third", "text": "C"},
    ],
    "footer": "Unsubscribe",
}


def advice(**changed: object) -> Advice:
    given = dict(campaign="spring", state="sending", seed=7, wave=1, variants=["A", "B", "C"], shares=[0.5, 0.25, 0.25])
    return Advice(**{**given, "definition": DEFINITION, **changed})


class Life:
    """A data folder with a token, an engine that is moved by hand, and a door that may be ended and started."""

    def __init__(self, folder: Path, **door: object) -> None:
        self.config: Config = configuration(folder, given=SOURCES, public_url=PUBLIC, **door)
        access = Access(self.config)
        self.token = access.make_token("sender", ["decide"])[1]
        self.reader_token = access.make_token("reader", ["read"])[1]
        access.close()
        self.engine: Engine | None = None
        self.door: Running | None = None

    @contextmanager
    def up(self, *, folded: bool = True, **given: object) -> Iterator[Running]:
        """Run the door; with ``folded`` until it has been seen that the engine is where the log is."""
        with running(self.config, **given) as self.door:
            if folded:
                # The first record is what an engine knows the time by.
                assert self.door.post("/in/open", BODY).status == 200
                until(lambda: self.door.door.advisor.head_at_start >= 0)
                self.fold()  # on a new machine it compiles first
                until(self.ready)
            yield self.door

    def ready(self) -> bool:
        self.fold()
        advisor = self.door.door.advisor
        heard = advisor.campaigns is not None or not (self.config.folder / NAME).exists()
        return (
            heard and self.engine.store.meta("log_time_us", 0) > 0 and advisor.folded.position >= max(advisor.head_at_start, advisor.needed)
        )

    def fold(self) -> None:
        if self.engine is None:
            self.engine = Engine(self.config, Reader(self.config.folder / "log"))
        self.engine.catch_up()
        self.engine.commit()

    def tells(self, *advices: Advice) -> None:
        """Let the conductor write, and wait until the door has read it."""
        write(self.config.folder, list(advices))
        if self.door is not None:
            advisor = self.door.door.advisor
            until(
                lambda: (
                    advisor.campaigns is not None
                    and {n: k.advice for n, k in advisor.campaigns.items()} == {a.campaign: a for a in advices}
                )
            )

    def raw(self, body: bytes, token: str | None = None) -> Reply:
        token = self.token if token is None else token
        return self.door.post("/v1/decide", body, {"Authorization": f"Bearer {token}"} if token else {})

    def ask(self, recipient: str = "ada@example.com", campaign: str = "spring", **attributes: object) -> dict:
        reply = self.raw(msgspec.json.encode({"campaign": campaign, "recipient": recipient, "attributes": attributes}))
        assert reply.status == 200, reply
        return msgspec.json.decode(reply.body)

    def ask_many(self, recipients: list[str], campaign: str = "spring") -> list[dict]:
        reply = self.raw(msgspec.json.encode([{"campaign": campaign, "recipient": recipient} for recipient in recipients]))
        assert reply.status == 200, reply
        return msgspec.json.decode(reply.body)

    def rows(self) -> list[list]:
        """Return what the log holds of decisions."""
        return rows_in(self.config.folder)

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()


def rows_in(folder: Path) -> list[list]:
    return [row for record in records_in(folder) if record.kind == "decision" for row in msgspec.json.decode(record.body)]


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    found = Life(tmp_path)
    write(tmp_path, [advice()])
    yield found
    found.close()


def people(count: int, start: int = 0) -> list[str]:
    return [f"reader{number}@example.com" for number in range(start, start + count)]


# -- what an answer holds ----------------------------------------------------------------------------------------------------


def test_an_answer_is_a_whole_message(life: Life) -> None:
    """Variant, wave, propensity, the rendered content, what to attach, and a link that unsubscribes this recipient."""
    with life.up() as door:
        told = life.ask("Ada <Ada@Example.com>".removeprefix("Ada ").strip("<>"), name="Ada & Co")
        variant = told["variant"]
        assert told["propensity"] == {"A": 0.5, "B": 0.25, "C": 0.25}[variant] and told["wave"] == "1"
        assert set(told) == {"variant", "wave", "propensity", "content", "custom", "unsubscribe_url"}
        assert set(told["content"]) == {"subject", "from_name", "html", "text"}
        assert told["custom"] == {"campaign": "spring", "variant": variant, "wave": "1", "propensity": str(told["propensity"])}
        url = told["unsubscribe_url"]
        assert url.startswith(f"{PUBLIC}/u/") and url in told["content"]["text"]
        link = door.door.links.read(url.rpartition("/")[2])
        assert link == ("ada@example.com", "spring", variant, "1")
        assert life.rows() == [["spring", "ada@example.com", 1, variant, told["propensity"]]]
        assert talk(door.port, post(url.removeprefix(PUBLIC), b"List-Unsubscribe=One-Click")).status == 200
        assert life.ask()["hold"] == "unsubscribed"


def test_attributes_fill_the_templates(life: Life) -> None:
    """Each recipient's attributes stand in the content, escaped in HTML; the same variant with others says others."""
    with life.up():
        life.tells(advice(shares=[0, 1, 0]))
        told = life.ask(name="<b>Ada</b>")
        assert told["variant"] == "B" and "&lt;b&gt;Ada" in told["content"]["html"] and told["content"]["subject"] == "Spring, <b>Ada</b>"
        assert life.ask()["content"]["subject"] == "Spring, friend"


# -- sticky --------------------------------------------------------------------------------------------------------------------


def test_the_answer_stays_over_everything(life: Life) -> None:
    """Shares, waves, a dropped state, restarts of the door, a fold in between and a store made anew change nothing that was told."""
    asked = people(60)
    with life.up():
        first = {person: life.ask(person)["variant"] for person in asked[:30]}
        life.tells(advice(wave=2, shares=[0, 0, 1]))
        first |= {person: life.ask(person)["variant"] for person in asked[30:]}
        assert {first[person] for person in asked[30:]} == {"C"} and len({first[person] for person in asked[:30]}) == 3
        assert [told["variant"] for told in life.ask_many(asked)] == list(first.values())
        life.fold()
        until(lambda: not life.door.door.advisor.decided, 20)
        assert [told["variant"] for told in life.ask_many(asked)] == list(first.values()), "from the store"
    for shares in ([1, 0, 0], [0, 1, 0]):
        with life.up():
            life.tells(advice(wave=3, shares=shares))
            told = life.ask_many([*asked, "new@example.com"])
            assert [one["variant"] for one in told[:-1]] == list(first.values())
            assert [one["wave"] for one in told] == ["1"] * 30 + ["2"] * 30 + ["3"] * 1
            life.tells(advice(wave=3, shares=shares, state="done"))
            assert [one["variant"] for one in life.ask_many(asked)] == list(first.values())
    assert len(life.rows()) == 61


def test_a_store_that_is_made_anew_is_waited_for(life: Life) -> None:
    """While the engine makes its store once more nobody is told anything, and then what was told before."""
    with life.up():
        before = life.ask()["variant"]
        life.fold()
        until(lambda: not life.door.door.advisor.decided)
        life.tells(advice(wave=2, shares=[float(name != before) for name in "ABC"]))
        life.engine.store.empty(life.engine.signature)
        assert life.ask()["hold"] in ("starting", "behind")
        life.close()
        life.engine = None
        life.fold()
        until(life.ready)
        assert life.ask()["variant"] == before


def test_two_that_ask_at_once_are_told_the_same(life: Life) -> None:
    """While the first answer waits for the disk and the shares change, a second call gets the same and waits too."""
    opener = Opener()
    with life.up(opener=opener) as door, connect(door.port) as one, connect(door.port) as other:
        raw = post(
            "/v1/decide", b'{"campaign":"spring","recipient":"new@example.com"}', {"Authorization": f"Bearer {life.token}"}
        )  # fmt: skip
        opener.valve.open.clear()
        one.sendall(raw)
        assert not answered_within(one, 0.2)
        first = door.door.advisor.decided["spring", "new@example.com"].variant
        life.tells(advice(wave=2, shares=[float(name != first) for name in "ABC"]))
        other.sendall(raw)
        assert not answered_within(other, 0.3)
        opener.valve.open.set()
        answers = [msgspec.json.decode(replies(found, 1)[0].body) for found in (one, other)]
        assert [answer["variant"] for answer in answers] == [first, first] and [answer["wave"] for answer in answers] == ["1", "1"]
        life.fold()
        assert life.engine.store.db.execute("SELECT variant FROM advised").fetchall() == [(first,)]


def test_what_could_not_be_stored_was_told_to_nobody(life: Life) -> None:
    """A log that refuses gives 429 and leaves no trace; the next call is decided by what holds then."""
    opener = Opener()
    with life.up(opener=opener) as door:
        opener.valve.failure = Full("No space")
        assert life.raw(b'{"campaign":"spring","recipient":"new@example.com"}').status == 429
        assert door.door.advisor.decided == {}
        opener.valve.failure = None
        until(lambda: not door.door.why_closed())
        life.tells(advice(wave=2, shares=[0, 0, 1]))
        assert (life.ask("new@example.com")["variant"], len(life.rows())) == ("C", 1)


# -- how likely ------------------------------------------------------------------------------------------------------------------


def chi_square(counts: Counter, shares: dict[str, float]) -> float:
    total = sum(counts.values())
    return sum((counts[name] - total * share) ** 2 / (total * share) for name, share in shares.items() if share)


def test_propensities_are_the_frequencies() -> None:
    """Over 60,000 recipients each variant is chosen as often as it says, in each wave, whatever the unit of the shares; 0 never."""
    for wave, shares in ((1, [0.5, 0.25, 0.25]), (2, [6, 3, 0]), (3, [0, 0, 2]), (4, [0.01, 0.0, 0.99])):
        found = advice(wave=wave, shares=shares)
        chosen = [found.choose(person) for person in people(60_000)]
        counts, said = Counter(name for name, _ in chosen), dict(chosen)
        for name, share in zip("ABC", shares, strict=True):
            assert (name in said) == (share > 0) and (not share or said[name] == pytest.approx(share / sum(shares)))
        # 13.8 is exceeded once in a thousand times with two degrees of freedom; the seed is fixed.
        assert chi_square(counts, said) < 13.8
    first, second = ([advice(wave=wave).choose(person)[0] for person in people(20_000)] for wave in (1, 2))
    same = sum(one == other for one, other in zip(first, second, strict=True)) / 20_000
    assert abs(same - 0.375) < 4 * sqrt(0.375 * 0.625 / 20_000), "a wave's choice says nothing of the next wave's"


def test_a_biased_choice_is_caught() -> None:
    """The control: a choice whose frequencies are two percent beside what it says does not pass."""
    counts = Counter(advice(shares=[0.52, 0.24, 0.24]).choose(person)[0] for person in people(60_000))
    assert chi_square(counts, {"A": 0.5, "B": 0.25, "C": 0.25}) > 13.8


def test_the_door_tells_what_the_advice_says(life: Life) -> None:
    """Frequencies over HTTP, a thousand at a time, are those of the shares, and the log holds each recipient once."""
    with life.up():
        told = [one for start in range(0, 6_000, 1_000) for one in life.ask_many(people(1_000, start))]
        counts = Counter(one["variant"] for one in told)
        assert chi_square(counts, {"A": 0.5, "B": 0.25, "C": 0.25}) < 13.8
        assert Counter(row[1] for row in life.rows()) == Counter(people(6_000))
        assert [one["variant"] for one in told] == [advice().choose(person)[0] for person in people(6_000)]


# -- holds -------------------------------------------------------------------------------------------------------------------------


def holds(life: Life, **how: str) -> str:
    return life.ask(**how).get("hold", "")


def test_each_state_has_its_hold(life: Life) -> None:
    """Campaigns that do not send say why; an unknown one offers the nearest; who was told before a pause is held during it."""
    with life.up():
        before = life.ask("known@example.com")["variant"]
        for state, hold in (
            ("paused", "paused"), ("stopped", "stopped"), ("draft", "not_started"), ("scheduled", "not_started"), ("done", "done"),
        ):  # fmt: skip
            life.tells(advice(state=state))
            assert holds(life) == hold
            assert life.ask("known@example.com").get("hold", before) == (before if state == "done" else hold)
        life.tells(advice(wave=0, shares=[0, 0, 0]))
        assert holds(life) == "not_started"
        life.tells()
        assert "None is defined" in life.ask()["what"]
        life.tells(advice())
        said = life.ask(campaign="sprong")
        assert said["hold"] == "unknown_campaign" and "`spring`" in said["what"]
        assert life.ask("known@example.com")["variant"] == before and len(life.rows()) == 1


EVENTS = {
    "unsubscribed": {"event": "unsubscribe"},
    "complained": {"event": "spamreport"},
    "suspected": {"event": "bounce", "type": "bounce", "status": "5.1.1"},
}


@pytest.mark.parametrize("why", EVENTS)
def test_who_must_not_be_written_to_is_held(life: Life, why: str) -> None:
    """Whoever a webhook says unsubscribed, complained or may have no mailbox is held once the engine knows, also if told before."""
    with life.up() as door:
        assert "variant" in life.ask()
        event = {"email": "Ada@example.com", "timestamp": int(time.time()), "sg_event_id": why, **EVENTS[why]}
        assert door.post("/in/open", msgspec.json.encode([event])).status == 200
        life.fold()
        assert holds(life) == why and why in life.ask()["what"]
        assert "variant" in life.ask("bob@example.com")


def test_an_unsubscribe_holds_before_the_engine_knows(life: Life) -> None:
    """After the 200 of the page the advisor holds at once, for every campaign, also for who is just being answered."""
    opener = Opener()
    life.tells(advice(), advice(campaign="summer"))
    with life.up(opener=opener) as door:
        url = Links((life.config.folder / "public.key").read_bytes(), "").url("ada@example.com", "spring", "A", "1")
        with connect(door.port) as asking:
            # The choice is made and waits for the disk; the unsubscribe comes in before the answer goes out.
            opener.valve.open.clear()
            asking.sendall(
                post("/v1/decide", b'{"campaign":"spring","recipient":"ada@example.com"}', {"Authorization": f"Bearer {life.token}"})
            )
            assert not answered_within(asking, 0.2)
            door.door.advisor.note_unsubscribed("ada@example.com", 10**9)
            opener.valve.open.set()
            assert msgspec.json.decode(replies(asking, 1)[0].body)["hold"] == "unsubscribed"
        door.door.advisor.unsubscribed.clear()
        assert "variant" in life.ask() and "variant" in life.ask(campaign="summer")
        assert talk(door.port, post(url)).status == 200
        assert holds(life) == holds(life, campaign="summer") == "unsubscribed"
        life.fold()
        assert holds(life) == "unsubscribed"
    with life.up(folded=False) as door:
        until(lambda: door.door.advisor.campaigns and door.door.advisor.head_at_start >= 0)
        life.fold()
        until(lambda: holds(life) != "starting")
        assert holds(life) == "unsubscribed"


def test_after_a_start_nobody_is_told_before_the_engine_has_caught_up(life: Life) -> None:
    """`starting` until the engine has folded what the log held at the start; an unsubscribe and a decision from before then count."""
    with life.up() as door:
        before = life.ask("known@example.com")["variant"]
        url = Links((life.config.folder / "public.key").read_bytes(), "").url("ada@example.com", "spring", "A", "1")
        assert talk(door.port, post(url)).status == 200
    with life.up(folded=False) as door:
        life.tells(advice(wave=2, shares=[float(name != before) for name in "ABC"]))
        until(lambda: door.door.advisor.head_at_start >= 0)
        time.sleep(0.3)
        assert holds(life) == holds(life, recipient="known@example.com") == "starting"
        life.fold()
        until(lambda: holds(life) != "starting")
        assert holds(life) == "unsubscribed" and life.ask("known@example.com")["variant"] == before


def test_a_door_that_does_not_wait_is_caught(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: an advisor that answers before the engine has caught up tells somebody something else than before."""
    monkeypatch.setattr(Advisor, "_not_now", lambda *_: None)
    with life.up():
        before = life.ask("known@example.com")["variant"]
    with life.up(folded=False):
        life.tells(advice(wave=2, shares=[float(name != before) for name in "ABC"]))
        assert life.ask("known@example.com")["variant"] != before


def test_without_engine_or_conductor_nobody_is_told(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """No store and no advice are `starting`; an engine that is far behind and a conductor that has fallen silent are `behind`."""
    (life.config.folder / NAME).unlink()
    with life.up(folded=False) as door:
        until(lambda: door.door.advisor.head_at_start >= 0)
        assert holds(life) == "starting"
        life.tells(advice())
        assert holds(life) == "starting"
        until(lambda: life.fold() or "variant" in life.ask())
        monkeypatch.setattr(advisor_module, "behind_s_max", 2.5)
        until(lambda: holds(life) == "behind")
        monkeypatch.setattr(advisor_module, "behind_s_max", 60.0)
        write(life.config.folder, [advice()])
        until(lambda: life.fold() or "variant" in life.ask())
        write(life.config.folder, [advice()])
        monkeypatch.setattr(advisor_module, "unfolded_max", 0)
        assert holds(life, recipient="more@example.com") == "behind"


def test_holdout_is_its_share_and_stays(life: Life) -> None:
    """The held-out share gets nothing, always the same people, and nothing is written about them."""
    with life.up():
        life.tells(advice(holdout=0.3))
        told = dict(zip(people(1_000), life.ask_many(people(1_000)), strict=True))
        held = {person for person, one in told.items() if one.get("hold") == "holdout"}
        assert held == {person for person in told if held_out(7, "spring", person, 0.3)}
        assert abs(len(held) - 300) < 4 * sqrt(1_000 * 0.3 * 0.7)
        assert not held & {row[1] for row in life.rows()}
        life.tells(advice(holdout=0.3, wave=2))
        assert {person for person in held if holds(life, recipient=person) == "holdout"} == held


def test_content_that_cannot_be_made_is_a_hold(life: Life) -> None:
    """A broken template, one that fails for a recipient and a variant that is gone hold with the place; the choice is kept for later."""
    broken = {"variants": [{"name": "A", "subject": "{{ name", "text": "x"}, {"name": "B", "subject": "{{ name }}b", "text": "x"}]}
    with life.up():
        life.tells(advice(variants=["A"], shares=[1], definition=broken))
        said = life.ask("a@example.com")
        assert said["hold"] == "content" and "variant A.subject" in said["what"]
        deep = {
            "variants": [
                {"name": "A", "subject": "x", "text": "{% for n in (1..9999) %}{% for m in (1..9999) %}{{n}}{% endfor %}{% endfor %}"}
            ]
        }
        life.tells(advice(variants=["A"], shares=[1], definition=deep))
        assert life.ask("a@example.com")["hold"] == "content"
        life.tells(advice(variants=["A"], shares=[1], definition={"variants": "nonsense"}))
        assert life.ask("a@example.com")["hold"] == "content"
        life.tells(advice(variants=["B"], shares=[1]))
        assert life.ask("a@example.com")["variant"] == "A" and life.ask("b@example.com")["variant"] == "B"


def test_without_a_public_address_there_is_no_message(tmp_path: Path) -> None:
    """A message without a link that works outside is not made."""
    life = Life(tmp_path)
    life.config = config_from({"data": str(tmp_path), "door": {"port": 0}, "sources": SOURCES})
    write(tmp_path, [advice()])
    with life.up():
        said = life.ask()
        assert said["hold"] == "content" and "door.public_url" in said["what"] and life.rows() == []
    life.close()


# -- requests ------------------------------------------------------------------------------------------------------------------------


def test_a_batch_is_answered_in_order(life: Life) -> None:
    """A list of up to a thousand is answered as a list of the same order, each as if it had been asked alone; repeats agree."""
    with life.up() as door:
        asked = [*people(300), "reader5@example.com", "READER6@Example.com"]
        told = life.ask_many(asked)
        assert told[300] == told[5] and told[301]["variant"] == told[6]["variant"] and len(life.rows()) == 300
        alone = [life.ask(person) for person in asked[:20]]
        assert [one["variant"] for one in alone] == [one["variant"] for one in told[:20]]
        mixed = life.raw(
            msgspec.json.encode([{"campaign": "spring", "recipient": "a@b.example"}, {"campaign": "none", "recipient": "a@b.example"}])
        )
        assert ["variant" in one for one in msgspec.json.decode(mixed.body)] == [True, False]
        assert door.count("door_decisions_total", "unknown_campaign") == 1 and door.count("door_decisions_total", "told") == 323


def test_a_large_answer_is_refused_and_leaves_no_trace(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """413 where all messages together are too large; nobody was told anything."""
    monkeypatch.setattr(decide_module, "content_bytes_max", 2_000)
    with life.up() as door:
        assert life.raw(msgspec.json.encode([{"campaign": "spring", "recipient": person} for person in people(100)])).status == 413
        assert life.rows() == [] and door.door.advisor.decided == {}


def test_answers_that_wait_are_bounded(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made and waits for the disk counts as waiting: beyond the bound 429, nobody is told, and nothing stays counted."""
    with life.up() as door:
        waiting = door.door.waiting
        monkeypatch.setattr(waiting, "bytes_max", 60_000)
        asked = msgspec.json.encode([{"campaign": "spring", "recipient": person} for person in people(300)])
        reply = life.raw(asked)
        assert (reply.status, reply.code) == (429, "overload")
        assert life.rows() == [] and door.door.advisor.decided == {} and waiting.total == 0
        monkeypatch.setattr(waiting, "bytes_max", 64_000_000)
        assert life.raw(asked).status == 200 and waiting.total == 0


UGLY = {
    "empty": b"",
    "no_json": b"campaign=spring",
    "half": b'{"campaign":"spring"',
    "number": b"5",
    "null": b"null",
    "text": b'"spring"',
    "no_recipient": b'{"campaign":"spring"}',
    "no_address": b'{"campaign":"spring","recipient":"ada"}',
    "empty_address": b'{"campaign":"spring","recipient":""}',
    "list_recipient": b'{"campaign":"spring","recipient":["ada@example.com"]}',
    "text_attributes": b'{"campaign":"spring","recipient":"ada@example.com","attributes":"x"}',
    "unknown_field": b'{"campaign":"spring","recipient":"ada@example.com","atributes":{}}',
    "empty_list": b"[]",
    "list_of_numbers": b"[1]",
    "list_in_list": b'[[{"campaign":"spring","recipient":"ada@example.com"}]]',
    "one_bad_of_two": b'[{"campaign":"spring","recipient":"ada@example.com"},{"campaign":"spring","recipient":"x"}]',
    "too_many": msgspec.json.encode([{"campaign": "spring", "recipient": "ada@example.com"}] * 1001),
    "bytes": b"\xff\xfe",
    "surrogate": b'{"campaign":"spring","recipient":"\\ud800@example.com"}',
    "deep": b'{"campaign":"spring","recipient":"ada@example.com","attributes":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    "long_address": b'{"campaign":"spring","recipient":"' + b"a" * 400 + b'@example.com"}',
}


@pytest.mark.parametrize("body", UGLY)
def test_ugly_bodies_get_400(life: Life, body: str) -> None:
    """What is no question gets 400 in the one error shape and changes nothing; a misspelt name offers the nearest."""
    with life.up(folded=False):
        reply = life.raw(UGLY[body])
        error = msgspec.json.decode(reply.body)
        assert (reply.status, error["ok"], error["status"], error["error"]["code"]) == (400, False, 400, "bad_request")
        if body == "unknown_field":
            assert "`attributes`" in error["error"]["todo"]
        if body == "one_bad_of_two":
            assert error["error"]["where"] == "$[1].recipient"
        assert life.rows() == []


ODD = ("spring\0", "a" * 100_000, "\u202e", "'; DROP TABLE advised; --", "%s%n", "../advice", "{{ 7 * 7 }}")


def test_odd_names_and_values_are_only_text(life: Life) -> None:
    """Whatever stands in campaign, address or attributes: an answer, no fault, and what is shown of a name is short."""
    with life.up() as door:
        for text in ODD:
            said = life.ask(campaign=text)
            assert said["hold"] == "unknown_campaign" and len(said["what"]) < 400
            assert "content" in life.ask(f"{text[:50]}x@example.com", name=text, other={"a": [text, None, 10**30, 1e308]})
        assert door.count("door_faults_total") == 0
        assert talk(door.port, post("/v1/decide", method="GET")).status == 405
        assert life.door.post("/v1/decide", b"x" * 3_000_000, {"Authorization": f"Bearer {life.token}"}).status == 413


def test_only_tokens_with_the_scope_may_ask(life: Life) -> None:
    """401 without a known token, 403 without the scope; a new token works and a revoked one ends within a second."""
    body = b'{"campaign":"spring","recipient":"ada@example.com"}'
    with life.up() as door:
        for token in ("", "x", "x" * 1000, life.token[:-1], (life.config.folder / "internal.token").read_text().strip()):
            reply = life.raw(body, token)
            assert (reply.status, reply.code) == (401, "unauthorized")
        assert door.post("/v1/decide", body, {"Authorization": f"Basic {life.token}"}).status == 401
        reply = life.raw(body, life.reader_token)
        assert (reply.status, reply.code) == (403, "forbidden") and b"--scope decide" in reply.body
        access = Access(life.config)
        token, secret = access.make_token("second", ["admin"])
        until(lambda: life.raw(body, secret).status == 200, 1.0)
        access.revoke_token(token.id)
        until(lambda: life.raw(body, secret).status == 401, 1.0)
        with pytest.raises(NotFound):
            access.revoke_token(token.id)
        access.close()
        assert life.raw(body).status == 200


def test_a_slow_template_holds_nobody_up(life: Life) -> None:
    """A message that takes long is made in a thread: webhooks get their answers meanwhile."""
    slow = {"variants": [{"name": "A", "subject": "x", "text": "{% for n in (1..9000) %}{{ n | times: 3 | plus: 1 }}{% endfor %}"}]}
    with life.up() as door:
        life.tells(advice(variants=["A"], shares=[1], definition=slow))
        assert "variant" in life.ask()
        assert door.door.advisor.campaigns["spring"].is_slow("A")
        results: list[dict] = []
        asking = threading.Thread(target=lambda: results.extend(life.ask(person) for person in people(10)))
        asking.start()
        while asking.is_alive():
            assert door.post("/in/open", b'[{"email":"a@b.example","event":"open","timestamp":1764000000}]').status == 200
        asking.join()
        assert len(results) == 10 and all("variant" in one for one in results)


# -- durable before told ---------------------------------------------------------------------------------------------------------------


def waits_for_the_disk(life: Life) -> bool:
    opener = Opener()
    with life.up(opener=opener) as door, connect(door.port) as found:
        opener.valve.open.clear()
        body = b'{"campaign":"spring","recipient":"ada@example.com"}'
        found.sendall(post("/v1/decide", body, {"Authorization": f"Bearer {life.token}"}))
        early = answered_within(found, 0.3)
        opener.valve.open.set()
        assert replies(found, 1)[0].status == 200
        return not early


def test_an_answer_waits_for_the_disk(life: Life) -> None:
    """Nobody is told before the decision is in the log."""
    assert waits_for_the_disk(life)


def test_an_advisor_that_tells_first_is_caught(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a door that answers before the append does not pass the test above."""
    from test_door import EARLY

    monkeypatch.setattr(Door, "submit", EARLY)
    assert not waits_for_the_disk(life)


class Process:
    """The door and the engine over one folder, the door as a process of its own that is killed; ``code`` runs another door."""

    def __init__(self, folder: Path, code: str = "") -> None:
        self.folder, self.code = folder, code
        self.life = Life(folder / "data")
        write(folder / "data", [advice()])

    def told_until_death(self, count: int) -> dict[str, str]:
        """Ask until the door dies at the given pass of a named place; return what was told."""
        told: dict[str, str] = {}
        environment = {"MIDFLIGHT_CRASH_AT": f"{POINT}:{count}"}
        with door_process(
            self.folder, given=SOURCES, environment=environment, code=self.code, public_url=PUBLIC
        ) as (process, port):  # fmt: skip
            ended, engine = threading.Event(), threading.Thread(target=self._fold_until, args=(process,))
            engine.start()
            with connect(port) as found:
                numbers = iter(range(10_000))
                number = next(numbers)
                while process.poll() is None:
                    person = f"{random.Random(number).random()}@example.com"
                    body = msgspec.json.encode({"campaign": "spring", "recipient": person})
                    try:
                        found.sendall(post("/v1/decide", body, {"Authorization": f"Bearer {self.life.token}"}))
                        (reply,) = replies(found, 1)
                    except (OSError, ValueError):
                        break
                    said = msgspec.json.decode(reply.body)
                    if "variant" in said:
                        told[person] = said["variant"]
                        number = next(numbers)
                    else:
                        time.sleep(0.05)
            ended.set()
            process.wait(20)
            engine.join()
        return told

    def _fold_until(self, process) -> None:
        while process.poll() is None:
            self.life.fold()
            time.sleep(0.05)


POINT = "before_200"


def test_a_kill_loses_nothing_that_was_told(tmp_path: Path) -> None:
    """Killed under load, what was told is in the log; a door that starts again, with other shares, tells the same."""
    process = Process(tmp_path)
    told = process.told_until_death(40)
    assert len(told) >= 20
    Writer.open(tmp_path / "data" / "log").close()
    rows = {row[1]: row[3] for row in rows_in(tmp_path / "data")}
    assert told.items() <= rows.items()
    life = process.life
    write(tmp_path / "data", [advice(wave=2, shares=[0, 0, 1])])
    with life.up():
        assert [one["variant"] for one in life.ask_many(list(told))] == list(told.values())
    life.close()


# -- the file ----------------------------------------------------------------------------------------------------------------------------


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Advice comes back as it was given; nothing is read where nothing was written; anything else is an error that names the file."""
    assert read(tmp_path) == []
    given = [advice(), advice(campaign='sum"mer é', holdout=0.1, shares=[0, 0, 0])]
    write(tmp_path, given)
    assert read(tmp_path) == given and [entry.name for entry in tmp_path.iterdir()] == [NAME]
    for raw in (b"", b"{}", b"[{}]", b'[{"campaign":"a","state":"sending","variants":["A"],"shares":[]}]', b"[" * 100_000):
        (tmp_path / NAME).write_bytes(raw)
        with pytest.raises(BadAdvice, match="advice.json"):
            read(tmp_path)
    for shares in ([-1, 1, 1], [float("nan")] * 3, [float("inf"), 0, 0], [1]):
        with pytest.raises(ValueError, match="share"):
            advice(shares=shares)


def test_a_spoiled_file_leaves_what_was_known(life: Life) -> None:
    """A file that cannot be read changes nothing until the next one."""
    with life.up():
        before = life.ask()["variant"]
        (life.config.folder / NAME).write_bytes(b"[{")
        time.sleep(0.6)
        assert life.ask()["variant"] == before
        life.tells(advice(wave=2, shares=[0, 0, 1]))
        assert life.ask("new@example.com")["variant"] == "C"
