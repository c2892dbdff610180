"""Actions by the real ways out: at most one effect whatever a service does and wherever the process dies; order, bounds and undo."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import msgspec
import pytest
from played_ways import PLAYED, START_US, Deeds, Play, action, run, way_at

from midflight.act import actions as actions_module
from midflight.act import calls as calls_module
from midflight.act import guarded, kill_switch
from midflight.act.actions import Actions, Said
from midflight.act.calls import Calls, retry_after_s
from midflight.act.ways import REGISTRY, Action, way_of
from midflight.act.ways._audience import email_hash
from midflight.act.ways.way import Answer, Outcome
from midflight.act.ways_out import WaysOut
from midflight.kit import crash
from midflight.kit.clock import VirtualClock
from midflight.sandbox.misbehave import ANSWER, Plan
from midflight.sandbox.ways import Ways
from midflight.serve import acting as acting_module
from midflight.serve.acting import Acting

TOKENS = ("google_audience", "salesforce", "salesforce_keyed")  # whose first request asks for a token
KINDS = sorted(Ways.known)
HANGS = ("hang", "accept_and_hang")
hang_s = 1.0


def played(name: str, kind: str, at: int | None = None) -> tuple[dict, list, list, int]:
    """Let one rule act while the service misbehaves at its first request, until the action has an end; return what is known of it."""
    at = (1 if name in TOKENS else 0) if at is None else at

    async def playing() -> tuple:
        plan = Plan({at: kind}, drip_s=0.002)
        async with Play(name, plan, answer_s=hang_s if kind in HANGS else 60) as play:
            play.put([play.action(7)])
            await play.until_ended(["ac-7"])
            return play.row("ac-7"), play.ways.twice(), play.ways.did, play.ways.followed

    return run(playing())


# One of each sort: without a promise, with one, in batches with a token.
SOME = ("sms_twilio", "webhook", "google_audience")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SOME)
def test_at_most_one_effect_for_an_action(name: str, kind: str) -> None:
    """Whatever a service does, an action has one effect at most; what is called sent had one; what was refused had none."""
    check_one_effect(name, kind)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted({*PLAYED} - {*SOME}))
def test_at_most_one_effect_by_every_way(name: str, kind: str) -> None:
    """The same for all other ways."""
    check_one_effect(name, kind)


def check_one_effect(name: str, kind: str) -> None:
    row, twice, did, followed = played(name, kind)
    assert not twice and not followed
    assert row["state"] in ("sent", "refused", "unknown"), row
    if row["state"] == "sent":
        assert len(did) == 1, (row, did)
    if row["state"] == "refused":
        assert not did, (row, did)
    # Who was not reached, or was asked to come later, is not forgotten; a service that knows the key has it in the end.
    waits = ("429", "429_retry_after", "429_date", "401", "redirect", ANSWER, "503_retry_after")
    if kind in waits or (PLAYED[name].idempotent and kind not in ("400", "409", "error_in_200")):
        assert row["state"] == "sent", row
    # What was taken without a word of it is unknown, and is not tried again.
    if kind in ("accept_and_cut", "accept_and_hang", "accept_and_500") and not PLAYED[name].idempotent:
        assert row["state"] == "unknown" and len(did) == 1 and row["tries"] == 1


@pytest.mark.parametrize("name", ["google_audience"])
@pytest.mark.parametrize("kind", ["400", "401", "429_retry_after", "500", "accept_and_cut", "bad_json", "accept_and_odd", "cut_in_body"])
def test_a_token_that_cannot_be_had_stops_nothing_for_good(name: str, kind: str) -> None:
    """The token's endpoint misbehaves: the action waits, costs no try, and is sent once with the next token."""
    row, twice, did, _ = played(name, kind, at=0)
    assert row["state"] == "sent" and len(did) == 1 and not twice and row["tries"] == 1


@pytest.mark.parametrize("name", TOKENS)
def test_a_token_that_expired_is_fetched_anew(name: str) -> None:
    """The service forgets a token between two actions; the second is turned away once, and goes with a new one."""

    async def playing() -> None:
        async with Play(name) as play:
            play.put([play.action(1)])
            await play.until_ended(["ac-1"])
            play.service.expire()
            play.put([play.action(2)])
            await play.until_ended(["ac-2"])
            assert play.states() == {"sent": 2} and len(play.ways.did) == 2 and play.service.tokens.issued == 2

    run(playing())


class Blind(Calls):
    """Control: calls that say of whatever had no answer that it may be made again."""

    async def deliver(self, action: Action, begins) -> Outcome:
        outcome = await super().deliver(action, begins)
        return msgspec.structs.replace(outcome, kind="later") if outcome.kind == "unknown" else outcome


@pytest.mark.parametrize("name", [name for name in sorted(PLAYED) if not PLAYED[name].idempotent])
def test_calls_that_are_made_again_blindly_are_caught(name: str) -> None:
    """Control: for each way without a promise, the fake shows the second effect."""

    async def playing() -> list:
        async with Play(name, Plan({1 if name in TOKENS else 0: "accept_and_cut"})) as play:
            blind = Blind(name, play.way, play.calls._client, play.clock)
            play.does.ways_out.calls[name] = blind
            play.put([play.action(7)])
            await play.until_ended(["ac-7"])
            return play.ways.twice()

    assert run(playing())


def test_a_service_that_does_not_keep_its_promise_is_caught() -> None:
    """Control: a receiver that is said to know an id that comes again, and does not, shows it."""

    async def playing() -> list:
        async with Play("webhook", Plan({0: "accept_and_cut"})) as play:
            play.service.dedups = False
            play.put([play.action(7)])
            await play.until_ended(["ac-7"])
            return play.ways.twice()

    assert run(playing())


# -- bounds ------------------------------------------------------------------------------------------------------------------------


def test_what_is_given_up_is_kept_and_can_be_tried_again_by_hand() -> None:
    """A service that is never well: a bounded number of calls, a reason, and no effect; tried again by hand it goes."""

    async def playing() -> None:
        async with Play("slack", Plan(chances={"401": 1.0})) as play:
            play.put([play.action(7)])
            await play.until_ended(["ac-7"])
            row = play.row("ac-7")
            assert (row["state"], row["reason"], row["tries"]) == ("refused", "gave_up", 8) and not play.ways.did
            assert [one["id"] for one in play.actions.listed("given_up")] == ["ac-7"]
            play.ways.plan.chances = {}
            play.clock.at_us += 3_600_000_000
            play.actions.try_again("ac-7", play.clock.now_us())
            await play.until_ended(["ac-7"])
            assert play.states() == {"sent": 1} and len(play.ways.did) == 1

    run(playing())


NOW_US = 1_764_000_000_000_000


@pytest.mark.parametrize(
    ("said", "wait_s"),
    [
        ("7", 7.0), ("0", 0.0), ("1.5", 1.5), ("1000000000", 6 * 3600.0), ("-5", 0.0), ("soon", 0.0), ("", 0.0), ("1e9", 0.0), ("NaN", 0.0),
        (formatdate(NOW_US / 1e6 + 90, usegmt=True), 90.0), (formatdate(NOW_US / 1e6 - 90, usegmt=True), 0.0), ("9" * 400, 6 * 3600.0),
        (formatdate(NOW_US / 1e6 + 1e7, usegmt=True), 6 * 3600.0), ("Mon, 24 Nov 2025 16:01:30", 90.0), ("٧", 0.0),
        ("Mon, 99 Xxx 2025", 0.0),
    ],
)  # fmt: skip
def test_retry_after_is_read_in_seconds_and_as_a_date(said: str, wait_s: float) -> None:
    """Both forms, none from the past, nothing beyond six hours, nonsense as nothing."""
    assert retry_after_s(Answer(status=429, headers={"retry-after": said}), NOW_US) == pytest.approx(wait_s, abs=1.0)


@pytest.mark.parametrize("kind", ["429_retry_after", "429_date", "503_retry_after"])
def test_nothing_comes_before_the_time_a_service_asked_for(kind: str) -> None:
    """Neither the action that was put off nor another one to the same service goes before that; then both go, once."""

    async def playing() -> None:
        async with Play("slack", Plan({0: kind}, retry_after_s=100)) as play:
            play.put([play.action(1)])
            await play.step()
            play.put([play.action(2)])
            for _ in range(9):
                play.clock.at_us += 10_000_000
                await play.step()
            assert len(play.ways.asked) == 1 and not play.ways.did
            await play.until_ended(["ac-1", "ac-2"])
            assert play.states() == {"sent": 2} and len(play.ways.did) == 2
            assert play.clock.now_us() >= START_US + 100_000_000

    run(playing())


def test_a_target_that_is_down_is_left_alone_and_comes_back() -> None:
    """After failures in a row nothing is called; one probe at a time looks; when it is well again all that waited goes, once each."""

    async def playing() -> None:
        async with Play("hubspot_keyed", Plan(chances={"500": 1.0}), connections=1) as play:
            play.put([play.action(n) for n in range(30)])
            for _ in range(100):
                play.clock.at_us += 1_000_000
                await play.step()
            # Without the breaker it would be 30 actions times 6 or 7 tries.
            assert 5 <= len(play.ways.asked) <= 16, len(play.ways.asked)
            assert play.calls.breakers.open()
            play.ways.plan.chances = {}
            for _ in range(200):
                play.clock.at_us += 5_000_000
                await play.step()
            assert play.states() == {"sent": 30} and len(play.ways.did) == 30 and not play.ways.twice()
            assert not play.calls.breakers.open()

    run(playing())


def test_one_target_that_is_down_does_not_hold_others() -> None:
    """Web push has a target for each push service: the one that answers gets all of its own at once."""

    async def playing() -> None:
        async with Play("web_push") as play:
            down = [msgspec.structs.replace(play.action(n), id=f"down-{n}") for n in range(20)]
            down = [msgspec.structs.replace(a, fields=a.fields | {"endpoint": "http://127.0.0.1:1/push/1"}) for a in down]
            play.put([*down, *(play.action(n) for n in range(20))])
            for _ in range(4):
                await play.step()
                play.clock.at_us += 1_000_000
            assert play.states().get("sent") == 20 and len(play.calls.breakers.open()) == 1

    run(playing())


def test_what_is_too_late_is_not_sent() -> None:
    """An action that expires while it waits is not sent; of one that may have arrived by then nobody says that it was not."""

    async def playing() -> None:
        async with Play("webhook", Plan({0: "accept_and_500", 1: "429_retry_after"}, retry_after_s=600), connections=1) as play:
            play.put([play.action(1, expires_us=START_US + 60_000_000)])
            await play.step()
            play.put([play.action(2, expires_us=play.clock.now_us() + 30_000_000)])
            play.clock.at_us += 10_000_000
            for _ in range(3):
                await play.step()
                play.clock.at_us += 40_000_000
            assert play.row("ac-1")["state"] == "unknown" and play.row("ac-2")["state"] == "expired" and len(play.ways.did) == 1

    run(playing())


def test_a_promise_that_is_too_old_is_not_asked_for() -> None:
    """After a day a service may have forgotten the key: what may have arrived then is unknown, and not sent again."""

    async def playing() -> None:
        async with Play("hubspot_keyed", Plan({0: "accept_and_500"})) as play:
            play.put([play.action(7)])
            await play.step()
            assert play.row("ac-7")["maybe_us"] == START_US
            play.clock.at_us += 25 * 3600 * 1_000_000
            await play.step()
            row = play.row("ac-7")
            assert (row["state"], row["reason"]) == ("unknown", "no_answer") and len(play.ways.asked) == 1

    run(playing())


class Trusting(Acting):
    """Control: a promise is believed for ever."""

    def _judged(self, row, *rest):
        return super()._judged(msgspec.structs.replace(row, maybe_us=0), *rest)


def test_a_promise_that_is_believed_for_ever_is_caught() -> None:
    """Control: a build that asks again after a day shows it by a second request."""

    class Deeds2(Deeds):
        acting = Trusting

    class Play2(Play):
        deeds = Deeds2

    async def playing() -> int:
        async with Play2("hubspot_keyed", Plan({0: "accept_and_500"})) as play:
            play.put([play.action(7)])
            await play.step()
            play.clock.at_us += 25 * 3600 * 1_000_000
            await play.step()
            return len(play.ways.asked)

    assert run(playing()) > 1


def test_what_may_have_arrived_counts_until_it_is_known() -> None:
    """While an unanswered call waits to be made again, its touch stands; an edit of the rule ends it as unknown, not as dropped."""

    async def playing() -> None:
        async with Play("hubspot_keyed", Plan({0: "accept_and_500"})) as play:
            play.put([play.action(7)])
            await play.step()
            assert play.row("ac-7")["state"] == "waiting"
            assert play.actions.touches.rule("r-ac-7", play.clock.now_us()) == (1, 1)
            with play.actions.transaction():
                play.actions.book.remove("r-ac-7")
                play.actions.drop_before("r-ac-7", 2, "removed", play.clock.now_us())
            play.clock.at_us += 60_000_000
            await play.step()
            row = play.row("ac-7")
            assert (row["state"], row["reason"]) == ("unknown", "removed") and len(play.ways.asked) == 1
            assert play.actions.touches.rule("r-ac-7", play.clock.now_us()) == (1, 1)

    run(playing())


def test_a_server_that_drips_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes byte by byte for longer than the limit is no answer."""
    monkeypatch.setattr(calls_module, "connect_s", 0.5)

    async def playing() -> None:
        async with Play("slack", Plan({0: "drip"}, drip_s=0.5), answer_s=2.0) as play:
            play.put([play.action(7)])
            await play.until_ended(["ac-7"])
            assert play.states() == {"unknown": 1}

    run(playing())


def test_one_that_cannot_be_said_does_not_stop_the_others() -> None:
    """Wrong fields and a number that is none are set aside with their reasons; the rest goes."""

    async def playing() -> None:
        async with Play("sms_twilio") as play:
            bad = [
                msgspec.structs.replace(play.action(1), id="bad-1", fields={"to": "nobody", "body": "x"}),
                msgspec.structs.replace(play.action(1), id="bad-2", fields={"to": 3}),
                msgspec.structs.replace(play.action(1), id="bad-3", fields={"to": "+447700900123", "body": "{% if %}"}),
                msgspec.structs.replace(play.action(1), id="bad-4", way="nowhere"),
            ]
            play.put([*bad, play.action(7)])
            await play.until_ended(["ac-7", *(f"bad-{n}" for n in range(1, 5))])
            assert play.states() == {"sent": 1, "refused": 4}
            assert all(play.row(f"bad-{n}")["words"] or play.row(f"bad-{n}")["detail"] for n in range(1, 5))
            assert play.row("bad-4")["reason"] == "no_way"

    run(playing())


def test_one_bad_entry_of_a_batch_is_refused_alone() -> None:
    """A batch that is refused as a whole is taken apart: all others are in the audience, the bad one is not, in few calls."""

    async def playing() -> None:
        async with Play("meta_audience") as play:
            play.service.poison = {email_hash("p13@example.com")}
            play.put([play.action(n) for n in range(60)])
            await play.until_ended([f"ac-{n}" for n in range(60)])
            assert play.states() == {"sent": 59, "refused": 1} and play.row("ac-13")["state"] == "refused"
            assert play.service.members.changes == 59 and len(play.ways.asked) <= 2 * 8

    run(playing())


def test_a_big_audience_goes_in_batches() -> None:
    """Control of batching: so many people are a few calls."""

    async def playing() -> None:
        async with Play("google_audience") as play:
            play.put([play.action(n) for n in range(200)])
            await play.until_ended([f"ac-{n}" for n in range(200)])
            assert play.states() == {"sent": 200} and len(play.ways.asked) <= 5

    run(playing())


def test_an_answer_that_breaks_the_way_that_reads_it_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A mistake of ours over one answer leaves one action unknown, says so, and the next goes."""

    async def playing() -> None:
        async with Play("slack") as play:
            read = play.way.outcomes
            play.way.outcomes = lambda actions, answer: 1 / 0 if actions[0].id == "ac-1" else read(actions, answer)
            play.put([play.action(1), play.action(2)])
            await play.until_ended(["ac-1", "ac-2"])
            assert play.row("ac-1")["state"] == "unknown" and play.row("ac-2")["state"] == "sent"

    run(playing())
    assert "could not be read" in caplog.text


def test_an_address_inside_is_refused_at_once() -> None:
    """A way whose address leads inside makes no call, and is not tried again and again."""

    async def playing() -> None:
        async with Play("slack") as play:
            play.calls._client = guarded.client(guarded.Guard(ports=None, http=True), connections=1, answer_s=5)
            play.put([play.action(7)])
            await play.step()
            row = play.row("ac-7")
            assert (row["state"], row["code"], row["tries"]) == ("refused", "address", 1) and not play.ways.opened_total

    run(playing())


def test_the_pace_is_kept() -> None:
    """A way that takes one call a second gets one a second, whatever waits."""

    async def playing() -> None:
        async with Play("slack", per_second=1.0) as play:
            play.put([play.action(n) for n in range(10)])
            for _ in range(20):
                await play.does.does.step()
                await asyncio.sleep(0.01)
            for second in range(1, 6):
                play.clock.at_us += 1_000_000
                for _ in range(60):
                    await asyncio.sleep(0.01)
                assert len(play.ways.did) <= second + 1
            assert len(play.ways.did) >= 5
            for task in play.does.does.under_way.tasks:
                task.cancel()

    run(playing())


def test_what_is_held_between_connecting_and_the_last_byte_does_not_leave() -> None:
    """The switch is turned after the intent: the request's body never leaves, and what waits goes once it is released."""

    async def playing() -> None:
        async with Play("meta_audience") as play:
            made = play.way.calls

            def holding(actions, now_us):
                kill_switch.hold(play.does.folder, "ada", "odd", now_us)
                return made(actions, now_us)

            play.way.calls = holding
            play.put([play.action(n) for n in range(5)])
            await play.step()
            assert not play.ways.did and play.states() == {"waiting": 5}
            play.way.calls = made
            kill_switch.release(play.does.folder, "ada", "", play.clock.now_us(), kill_switch.read(play.does.folder).number)
            play.clock.at_us += 5_000_000
            await play.until_ended([f"ac-{n}" for n in range(5)])
            assert play.states() == {"sent": 5} and play.service.members.changes == 5

    run(playing())


def test_one_of_a_batch_that_may_not_begin_is_not_in_the_call() -> None:
    """Between deciding and calling one rule is removed: the call does not say its action, and says the others."""

    async def playing() -> None:
        async with Play("meta_audience") as play:
            made, once = play.way.calls, []

            def removing(actions, now_us):
                if not once:
                    once.append(1)
                    with play.actions.transaction():
                        play.actions.book.remove("r-ac-3")
                return made(actions, now_us)

            play.way.calls = removing
            play.put([play.action(n) for n in range(5)])
            await play.until_ended([f"ac-{n}" for n in range(5)])
            assert play.states() == {"sent": 4, "dropped": 1} and play.service.members.changes == 4
            assert play.row("ac-3")["reason"] == "removed"

    run(playing())


# -- order -------------------------------------------------------------------------------------------------------------------------


def taken_out(play: Play) -> Action:
    return msgspec.structs.replace(play.action(7), id="out", fields={"audience": "1234", "do": "remove"})


def test_adding_and_removing_somebody_keep_their_order() -> None:
    """A removal waits for an addition that has no end yet: the first was taken without an answer, and is made again before it."""

    async def playing() -> None:
        async with Play("meta_audience", Plan({0: "accept_and_500"})) as play:
            play.put([play.action(7), taken_out(play)])
            await play.step()
            assert play.row("out")["tries"] == 0
            await play.until_ended(["ac-7", "out"])
            assert play.states() == {"sent": 2} and not play.service.members.audiences["1234"]

    run(playing())


def test_an_order_that_is_not_kept_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without the subject that they share, the repeated addition comes last and the person is in the audience again."""
    said = WaysOut.said
    monkeypatch.setattr(WaysOut, "said", lambda *rest: Said(fields=said(*rest).fields))

    async def playing() -> set:
        async with Play("meta_audience", Plan({0: "accept_and_500"})) as play:
            play.put([play.action(7)])
            await play.step()
            play.put([taken_out(play)])
            await play.step()
            await play.until_ended(["ac-7", "out"])
            return play.service.members.audiences["1234"]

    assert run(playing())


def test_what_a_later_one_has_decided_is_not_done_any_more() -> None:
    """An addition that waited while a removal of the same person went is out of date, and is not made."""

    async def playing() -> None:
        async with Play("meta_audience", Plan({0: "429_retry_after"}, retry_after_s=60)) as play:
            play.put([play.action(7)])
            await play.step()
            play.calls.breakers.put(play.way.target(play.action(7)), calls_module.Breakers().of(""))
            play.put([taken_out(play)])
            await play.step()
            await play.until_ended(["ac-7", "out"])
            assert play.row("ac-7")["code"] == "superseded" and play.row("out")["state"] == "sent"
            assert not play.service.members.audiences["1234"]

    run(playing())


# -- undo --------------------------------------------------------------------------------------------------------------------------

UNDONE_BY = ["hubspot", "hubspot_keyed", "salesforce", "salesforce_keyed", "meta_audience", "google_audience"]


def there(play: Play) -> int:
    """Return how much of what was done is still there at the service."""
    service = play.service
    return len(service.tasks) if hasattr(service, "tasks") else sum(map(len, service.members.audiences.values()))


TROUBLES = (ANSWER, "accept_and_cut", "cut_in_body", "429_retry_after", "500", "401", "accept_and_500")


@pytest.mark.parametrize("name", ["hubspot", "google_audience"])
@pytest.mark.parametrize("kind", TROUBLES)
def test_what_was_done_is_undone_and_not_before(name: str, kind: str) -> None:
    """Undoing takes it away at the service, whatever that does first; until it is away nobody says that it is undone."""
    check_undone(name, kind)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted({*UNDONE_BY} - {"hubspot", "google_audience"}))
@pytest.mark.parametrize("kind", TROUBLES)
def test_what_was_done_is_undone_by_every_way(name: str, kind: str) -> None:
    """The same for all other ways that can undo."""
    check_undone(name, kind)


def check_undone(name: str, kind: str) -> None:
    async def playing() -> None:
        async with Play(name) as play:
            play.put([play.action(7)])
            await play.until_ended(["ac-7"])
            assert there(play) == 1
            play.ways.plan.script = {play.ways.plan._count: kind}
            assert not play.undo("ac-7")
            for _ in range(20):
                assert play.row("ac-7")["state"] != "undone" or there(play) == 0
                if play.row("ac-7")["state"] == "undone":
                    break
                await play.step()
                play.clock.at_us += 60_000_000
            assert play.states() == {"undone": 1} and there(play) == 0

    run(playing())


def test_an_undo_that_fails_for_good_is_not_called_undone() -> None:
    """The service refuses: it stays sent, with the reason."""

    async def playing() -> None:
        async with Play("hubspot") as play:
            play.put([play.action(7)])
            await play.until_ended(["ac-7"])
            play.ways.plan.script = {play.ways.plan._count: "400"}
            assert not play.undo("ac-7")
            await play.step()
            row = play.row("ac-7")
            assert row["state"] == "sent" and row["detail"].startswith("could not be undone") and there(play) == 1

    run(playing())


@pytest.mark.parametrize("name", ["slack", "teams", "sms_twilio", "web_push", "webhook"])
def test_what_cannot_be_undone_is_said_so(name: str) -> None:
    """A message that has gone cannot be taken back; one that waits can."""

    async def playing() -> None:
        async with Play(name, Plan({0: "429_retry_after"}, retry_after_s=60), connections=1) as play:
            play.put([play.action(1), play.action(2)])
            await play.step()
            assert not play.undo("ac-1") and play.row("ac-1")["state"] == "dropped"
            await play.until_ended(["ac-2"])
            assert "cannot be taken back" in play.undo("ac-2")
            assert play.states() == {"sent": 1, "dropped": 1} and len(play.ways.did) == 1

    run(playing())


def test_an_undo_gives_back_what_was_in_force_before() -> None:
    """Undoing a second addition leaves in who was in; undoing what a later action decided is refused."""

    async def playing() -> None:
        async with Play("meta_audience") as play:

            async def undone(id: str) -> tuple[str, str]:
                assert not play.undo(id)
                await play.until_ended([id])
                return play.row(id)["state"], play.row(id)["detail"]

            for one in (*(msgspec.structs.replace(play.action(7), id=f"in-{n}") for n in (1, 2)), taken_out(play)):
                play.put([one])
                await play.until_ended([one.id])
            assert there(play) == 0
            state, detail = await undone("in-2")
            assert state == "sent" and "later action" in detail
            assert (await undone("out"))[0] == "undone" and there(play) == 1
            state, detail = await undone("in-2")
            assert state == "undone" and "so already" in detail and there(play) == 1
            assert (await undone("in-1"))[0] == "undone" and there(play) == 0

    run(playing())


def test_a_subscription_that_is_gone_is_told() -> None:
    """404 and 410 of a push service end as refused with the word for it."""

    async def playing() -> None:
        async with Play("web_push") as play:
            play.service.gone = {1}
            play.put([play.action(1), play.action(2)])
            await play.until_ended(["ac-1", "ac-2"])
            assert play.row("ac-1")["code"] == "gone" and play.row("ac-2")["state"] == "sent"

    run(playing())


# -- ways that need no call of their own -------------------------------------------------------------------------------------------


class Offering(Play):
    """Codes that are told by Slack, and messages for the site."""

    async def __aenter__(self) -> Offering:
        await super().__aenter__()
        await self.does.close()
        ways = {"slack": self.way} | {name: way_of(REGISTRY.get(name), {}, name) for name in ("offer_code", "on_site")}
        self.does = Deeds(Path(self._folder.name), ways, self.clock, outbox=":memory:")
        self.actions, self.put, self.step = self.does.actions, self.does.put, self.does.step
        self.row, self.states, self.until_ended = self.does.row, self.does.states, self.does.until_ended
        self.codes, self.messages = self.does.ways_out.codes, self.does.ways_out.messages
        return self

    def offer(self, n: int, **more: object) -> Action:
        fields = {"pool": "spring", "way": "slack", "say": {"text": "Your code: {{ code }}"}}
        return Action(id=f"of-{n}", way="offer_code", recipient=f"p{n}@example.com", fields=fields, **more)

    def told(self) -> list[str]:
        return sorted(effect.content for effect in self.ways.did)


def test_a_code_is_told_by_another_way_once_and_to_one() -> None:
    """Each action gets a code of its own and tells that one, also where the service takes it without an answer or wants it later."""

    async def playing() -> None:
        async with Offering("slack", Plan({0: "429", 1: "401"})) as play:
            play.codes.add("spring", ["AAA", "BBB", "CCC"], START_US)
            for _ in range(2):
                play.put([play.offer(1), play.offer(2)])
            await play.until_ended(["of-1", "of-2"])
            assert play.states() == {"sent": 2} and len(play.told()) == 2
            assert "AAA" in play.told()[0] and "BBB" in play.told()[1] and play.codes.pool("spring")["free"] == 1

    run(playing())


def test_an_empty_pool_makes_actions_wait_until_it_is_filled_or_they_expire() -> None:
    """However often it is looked at, that is no try; new codes let them go, in order; what expires gets none."""

    async def playing() -> None:
        async with Offering("slack") as play:
            play.put([play.offer(1), play.offer(2, expires_us=START_US + 1_000_000_000)])
            for _ in range(15):
                await play.step()
                play.clock.at_us += 100_000_000
            assert (play.row("of-1")["state"], play.row("of-1")["reason"], play.row("of-1")["tries"]) == ("waiting", "no_code", 0)
            assert play.row("of-2")["state"] == "expired"
            play.codes.add("spring", ["AAA"], play.clock.now_us())
            await play.until_ended(["of-1"])
            assert "AAA" in play.told()[0] and play.states() == {"sent": 1, "expired": 1}

    run(playing())


def test_a_code_that_was_not_used_is_revoked() -> None:
    """Undoing revokes it for good; a code that was used cannot be taken back, and says so."""

    async def playing() -> None:
        async with Offering("slack") as play:
            play.codes.add("spring", ["AAA", "BBB"], START_US)
            play.put([play.offer(1), play.offer(2)])
            await play.until_ended(["of-1", "of-2"])
            assert play.codes.use("BBB", START_US) == "of-2"
            assert not play.undo("of-1") and not play.undo("of-2")
            await play.until_ended(["of-1", "of-2"])
            assert play.row("of-1")["state"] == "undone" and play.row("of-2")["state"] == "sent"
            assert "used" in play.row("of-2")["detail"]
            assert play.codes.pool("spring") == {"free": 0, "handed": 0, "revoked": 1, "used": 1}
            assert play.codes.listed("spring", 2) == ["AAA"]
            # It never comes back, also by an import.
            assert play.codes.add("other", ["AAA", "not a code"], START_US)[:2] == (0, 1)

    run(playing())


def test_what_does_not_tell_its_code_takes_none() -> None:
    """An offer whose text has no place for the code is refused, and no code is lost to it."""

    async def playing() -> None:
        async with Offering("slack") as play:
            play.codes.add("spring", ["AAA"], START_US)
            fields = {"pool": "spring", "way": "slack", "say": {"text": "no code here"}}
            play.put([msgspec.structs.replace(play.offer(1), fields=fields)])
            await play.until_ended(["of-1"])
            assert play.row("of-1")["state"] == "refused" and play.codes.pool("spring")["free"] == 1

    run(playing())


def test_a_message_for_the_site_waits_is_withdrawn_and_seen_once() -> None:
    """It is kept for its recipient; undoing withdraws it; one that was closed stays closed."""

    async def playing() -> None:
        async with Offering("slack") as play:
            message = Action(id="on-1", way="on_site", recipient="ada@example.com", fields={"title": "Message"})
            others = (msgspec.structs.replace(message, id="on-2"), msgspec.structs.replace(message, id="on-3", recipient=""))
            play.put([message, *others])
            await play.until_ended(["on-1", "on-2", "on-3"])
            assert [shown.id for shown in play.messages.shown("ada@example.com", START_US)] == ["on-1", "on-2"]
            assert play.row("on-3")["state"] == "refused"
            assert play.messages.end_shown("on-2", "closed", START_US) == play.messages.end_shown("on-2", "clicked", START_US) == "closed"
            assert not play.undo("on-1") and not play.undo("on-2")
            await play.until_ended(["on-1", "on-2"])
            assert play.row("on-1")["state"] == "undone" and play.row("on-2")["state"] == "sent"
            ended = [(shown.id, shown.ended) for shown in play.messages.shown("ada@example.com", START_US)]
            assert ended == [("on-1", "withdrawn"), ("on-2", "closed")]

    run(playing())


# -- deaths at each point ----------------------------------------------------------------------------------------------------------

POINTS = (
    "before_action_intent", "after_action_intent", "before_call", "before_action_begins", "before_action_call", "after_answer",
    "after_action_call", "before_action_outcome", "after_action_outcome",
)  # fmt: skip
count = 6


def in_child(work: Callable[[str], None]) -> Callable[[str], int]:
    """Fork a process that waits for an address and then works; return what starts it and returns how it ended.

    It is forked before the service has its thread, so that the child is a whole process and costs no start of Python.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(write)
            url = os.read(read, 1000).decode()
            if url:
                work(url)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(read)

    def start(url: str) -> int:
        os.write(write, url.encode())
        os.close(write)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return start


def deliver(name: str, folder: Path, url: str, crash_at: str = "", *, blind: bool = False) -> None:
    """Recover, let the same rules fire, and act until all have an end; die at a point, if asked to."""
    if crash_at:
        actions_module.crash_point = acting_module.crash_point = calls_module.crash_point = crash.armed(crash_at)

    async def delivering() -> None:
        clock = VirtualClock(START_US)
        does = (Forgetful if blind else Deeds)(folder, {name: way_at(name, url, connections=1)}, clock)
        does.put([action(name, n, url) for n in range(count)])
        await does.until_ended([f"ac-{n}" for n in range(count)])
        await does.close()

    asyncio.run(delivering())


class Forgets(Actions):
    """Control: what stood open after a death goes again, whatever had begun."""

    def recover(self, now_us: int, begun: set[str] | None) -> tuple[int, int]:
        return super().recover(now_us, set())


class Forgetful(Deeds):
    def __init__(self, *given: object, **named: object) -> None:
        super().__init__(*given, **named)
        self.actions.db.execute("UPDATE actions SET state = 0, ready = 1 WHERE state IN (3, 5)")
        self.actions.__init__(self.outbox)


def died_and_went_on(name: str, point: str, folder: Path, plan: Plan, *, blind: bool = False) -> tuple[Ways, list[dict]]:
    """Act in a process that dies at a point, then in another one to the end; return the service and the rows."""
    # What goes in one call dies in its first.
    nth = 1 if REGISTRY.get(PLAYED[name].kind).batch_max > 1 or "intent" in point or "outcome" in point else 2
    first = in_child(lambda url: deliver(name, folder, url, f"{point}:{nth}"))
    second = in_child(lambda url: deliver(name, folder, url, blind=blind))
    clock = VirtualClock(START_US)
    with Ways([PLAYED[name].service(clock)], plan, now_s=lambda: clock.now_us() / 1e6) as ways:
        assert first(ways.url) == -9
        assert second(ways.url) == 0
    does = Deeds(folder, {}, clock)
    rows = does.actions.listed(count_max=100)
    run(does.close())
    return ways, rows


def check_death(name: str, point: str, folder: Path) -> None:
    plan = Plan({0: "answer"}, {"accept_and_cut": 0.15, "429": 0.1, "cut_in_body": 0.1}, seed=POINTS.index(point))
    ways, rows = died_and_went_on(name, point, folder, plan)
    states = [row["state"] for row in rows]
    assert not ways.twice(), (rows, ways.did)
    assert len(rows) == count and set(states) <= {"sent", "unknown"}, states
    assert states.count("sent") <= len(ways.did) <= count
    if PLAYED[name].idempotent:
        assert set(states) == {"sent"} and len(ways.did) == count


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", ["sms_twilio", "meta_audience"])
def test_a_death_at_any_point_does_nothing_twice_and_forgets_nothing(name: str, point: str, tmp_path: Path) -> None:
    """The process dies in its second call while the service misbehaves too; started again it ends, and all are accounted for."""
    check_death(name, point, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", sorted({*PLAYED} - {"sms_twilio", "meta_audience", "web_push"}))
def test_a_death_at_any_point_for_every_way(name: str, point: str, tmp_path: Path) -> None:
    """The same for all other ways."""
    check_death(name, point, tmp_path)


@pytest.mark.parametrize("point", ["after_answer", "before_action_outcome"])
def test_a_recovery_that_sends_again_is_caught(point: str, tmp_path: Path) -> None:
    """Control: were what stood open after a death sent again, the service would show it twice."""
    ways, _ = died_and_went_on("sms_twilio", point, tmp_path, Plan(), blind=True)
    assert ways.twice()
