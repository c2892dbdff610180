"""Follow-up emails over a real SMTP server and real APIs: one for an action, within what holds for campaigns, none once it must not go."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import msgspec
import pytest
from played_ways import Listed
from test_sender import Desk, api, smtp

from midflight.act import follow_up, kill_switch
from midflight.act.actions import Actions
from midflight.act.begun import Begun
from midflight.act.follow_up import EmailSays, FollowUps, intent_of
from midflight.act.gates import Gate
from midflight.act.intake import Firing
from midflight.act.ways import way_of
from midflight.act.ways.email import Email
from midflight.act.ways_out import WaysOut
from midflight.decide.limits import Radius
from midflight.kit.errors import ConfigError
from midflight.sandbox.apis import Apis
from midflight.sandbox.inbox import Inbox
from midflight.sandbox.mailbox import Mailbox
from midflight.sandbox.misbehave import Plan
from midflight.serve.acting import Acting, Breakers
from midflight.stream.providers import PROVIDERS

FIELDS = {
    "subject": "Hello {{ attributes.name | default: 'you' }}", "text": "Come back.", "channel": "out", "from_address": "a@shop.example",
}  # fmt: skip


class Following:
    """A desk whose rules follow up by email; people are named, and some must not be written to."""

    def __init__(self, desk: Desk, folder: Path) -> None:
        self.desk, self.folder = desk, folder
        self.actions = Actions(desk.outbox)
        self.source = Listed()
        follow_ups = FollowUps(desk.sender, desk.sender.links, desk.clock)
        self.ways = WaysOut({"email": way_of(Email, {}, "email")}, self.actions, follow_ups, desk.sender.links, desk.clock)
        desk.sender.followed = lambda who, since_us, without="": self.actions.reached_by(self.ways.mailing(), who, since_us, without)
        self.begun = Begun(folder / "actions.begun")
        self.acting = Acting(
            self.actions, self.source, self, self.ways, stops=desk.stops, switch=kill_switch.Switch(folder), begun=self.begun,
            clock=desk.clock, radius=Radius(people_per_hour=0, ceiling_per_hour=0, person_per_day=0),
        )  # fmt: skip
        self.acting.start()

    def suppressed(self, recipients: Iterable[str]) -> dict[str, str]:
        return {key: self.desk.suppressed[key] for key in recipients if key in self.desk.suppressed}

    def attributes(self, recipients: Iterable[str]) -> dict[str, dict]:
        return {key: {"name": key[:2].upper()} for key in recipients}

    def fire(self, *people: str, rule: str = "r", **fields: object) -> None:
        now_us = self.desk.clock.now_us()
        if self.actions.book.known(rule) is None:
            definition = {"action": {"way": "email", "fields": FIELDS | fields}, "limits": {"autonomy": "act"}}
            with self.actions.transaction():
                self.actions.book.put(rule, 1, definition, "ada", "", now_us)
        for who in people:
            id = f"f{len(self.source.firings)}"
            self.source.firings.append(Firing(number=0, id=id, rule=rule, version=1, recipient=who, fired_us=now_us, cause=b"{}"))

    def rows(self) -> dict[str, dict]:
        return {row["recipient"]: row for row in self.actions.listed(count_max=100)}

    def states(self) -> Counter[str]:
        return Counter(row["state"] for row in self.rows().values())

    async def until(self, true: Callable[[], object], seconds: float = 15.0) -> None:
        until_s = self.desk.clock.monotonic_s() + seconds
        while not true():
            assert self.desk.clock.monotonic_s() < until_s, self.rows()
            await self.acting.step()
            await asyncio.sleep(0.01)

    async def ended(self, count: int) -> None:
        await self.until(lambda: len(self.rows()) >= count and not {"waiting", "called"} & set(self.states()))


def run(folder: Path, channel: dict, act: Callable[[Following], Awaitable[None]], **given: object) -> None:
    async def whole() -> None:
        desk = Desk(folder, channel, 1, **given)
        following = Following(desk, folder)
        try:
            await act(following)
        finally:
            await asyncio.gather(following.acting.close(), desk.sender.close(5.0))
            await following.ways.close()
            following.begun.close()
            desk.outbox.close()

    asyncio.run(whole())


def test_a_follow_up_is_a_message_of_the_rules_own_campaign(tmp_path: Path) -> None:
    """It has the recipient's name, its links, its version as variant, and the intent by which webhooks name it."""
    with Mailbox(inbox := Inbox()) as box:

        async def act(following: Following) -> None:
            following.fire("ada@example.com", "bob@example.com")
            await following.ended(2)
            assert following.states() == {"sent": 2}

        run(tmp_path, smtp(box), act)
    got = {message.recipient: message for message in inbox.messages()}
    assert set(got) == {"ada@example.com", "bob@example.com"}
    assert {(message.campaign, message.variant, message.wave) for message in got.values()} == {("Follow-up: r", "v1", "1")}
    assert {message.intent for message in got.values()} == {intent_of("f0"), intent_of("f1")}


def test_who_must_not_be_written_to_gets_none(tmp_path: Path) -> None:
    """Suppressed before it is decided, and while it waits for a connection: in both cases nothing goes, and the reason is kept."""
    with Mailbox(inbox := Inbox(), Plan(chances={"drip": 1.0}, drip_s=0.004)) as box:

        async def act(following: Following) -> None:
            following.desk.suppressed["ada@example.com"] = "complained"
            following.fire("ada@example.com", *(f"p{n}@example.com" for n in range(6)))
            await following.until(lambda: following.states()["called"] > 3)
            following.desk.suppressed["p5@example.com"] = "unsubscribed"
            following.desk.sender.look_again()
            await following.ended(7)
            rows = following.rows()
            assert (rows["ada@example.com"]["state"], rows["ada@example.com"]["reason"]) == ("dropped", "suppressed")
            assert (rows["p5@example.com"]["state"], rows["p5@example.com"]["reason"]) == ("dropped", "suppressed")
            assert following.states()["sent"] == 5

        run(tmp_path, smtp(box, connections=1), act)
    assert {message.recipient for message in inbox.messages()} == {f"p{n}@example.com" for n in range(5)}


def sent_while_held(folder: Path) -> Counter[str]:
    """Follow up eight people, of whom one is at a domain and one at a provider that is held, and five at a provider that is tried with two
    messages. Return how many got theirs, by domain."""
    with Mailbox(inbox := Inbox()) as box:

        async def act(following: Following) -> None:
            gates = following.desk.sender.gates
            gates.providers[PROVIDERS.index("Gmail")] = Gate(("probing",), 2, None, 0.0)
            gates.domains["held.example"] = Gate(("held",), 0, None, 0.0)
            # As the conductor has it: what is held is asked about again when a call begins, and a probe is not.
            gates.providers[PROVIDERS.index("Yahoo")] = Gate(("held",), 0, None, 0.0)
            following.acting.breakers = lambda: Breakers(providers={PROVIDERS[number]: "held" for number in gates.held()})
            following.fire("bob@yahoo.com", *(f"p{n}@gmail.com" for n in range(5)), "eve@held.example", "ada@example.com")
            await following.until(lambda: len(following.rows()) == 8 and not following.states()["called"])
            assert following.states()["sent"] + following.states()["waiting"] == 8

        run(folder, smtp(box), act)
    return Counter(message.recipient[message.recipient.rfind("@") + 1 :] for message in inbox.messages())


def test_a_follow_up_goes_through_the_gates_of_what_bounces(tmp_path: Path) -> None:
    """To what is held none goes, of a probe of two there go two, and whoever is elsewhere gets his."""
    assert sent_while_held(tmp_path) == {"gmail.com": 2, "example.com": 1}


def test_a_follow_up_without_gates_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where follow-ups know of no gate, all go."""
    monkeypatch.setattr(FollowUps, "_gates", lambda *arguments: [])
    assert sent_while_held(tmp_path) == {"gmail.com": 5, "example.com": 1, "held.example": 1}


def held_while_it_connects(following: Following) -> Callable[[], None]:
    """Have the switch turned after the intent and before the content; what is returned has the carrier carry as before."""
    carrier = following.desk.sender.lanes["out"].carrier
    carry = carrier.carry

    async def holding(*given: object) -> object:
        kill_switch.hold(following.folder, "ada", "odd", 1)
        return await carry(*given)

    carrier.carry = holding
    return lambda: setattr(carrier, "carry", carry)


@pytest.mark.parametrize("kind", ["smtp", "api"])
def test_what_is_held_while_it_connects_does_not_leave(kind: str, tmp_path: Path) -> None:
    """The switch is turned after the intent and before the content: nothing arrives; released it goes once."""
    inbox = Inbox()
    with Mailbox(inbox) as box, Apis(inbox) as apis:

        async def act(following: Following) -> None:
            as_before = held_while_it_connects(following)
            following.fire("ada@example.com")
            await following.until(lambda: kill_switch.read(tmp_path).held)
            await following.until(lambda: following.states() == {"waiting": 1})
            assert following.rows()["ada@example.com"]["tries"] == 0
            as_before()
            kill_switch.release(tmp_path, "ada", "", 1, kill_switch.read(tmp_path).number)
            await following.ended(1)
            assert following.states() == {"sent": 1}

        run(tmp_path, smtp(box) if kind == "smtp" else api("postmark", apis), act)
    assert [message.recipient for message in inbox.messages()] == ["ada@example.com"]


class AsksEarly(FollowUps):
    """Control: whether a call may begin is asked when it is handed over, and not when its last bytes leave."""

    async def deliver(self, action, begins, says, way):
        may = begins(0)
        return await super().deliver(action, lambda promise_us: may, says, way)


def test_a_build_that_asks_early_is_caught(tmp_path: Path) -> None:
    """Control: what is held while it connects leaves all the same."""
    with Mailbox(inbox := Inbox()) as box:

        async def act(following: Following) -> None:
            ways = following.ways
            ways.follow_ups = AsksEarly(following.desk.sender, ways.links, following.desk.clock)
            held_while_it_connects(following)
            following.fire("ada@example.com")
            await following.ended(1)

        run(tmp_path, smtp(box), act)
    assert inbox.messages()


def held_gate(left: int | None) -> Gate:
    return Gate(("held",), left, None, 0.0)


@pytest.mark.parametrize("held", ["provider", "domain", "campaign"])
def test_what_is_held_because_it_bounces_gets_no_follow_up(held: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a breaker holds, follow-ups wait and are no try; of a probe they take their share, and the rest goes after it."""
    monkeypatch.setattr(follow_up, "held_s", 0.1)
    with Mailbox(inbox := Inbox()) as box:

        async def act(following: Following) -> None:
            gates, where = following.desk.sender.gates, {"provider": "gmail.com", "domain": "a.example", "campaign": "gmail.com"}[held]
            gate = held_gate(0)
            (closed,) = {"provider": [gates.providers], "domain": [gates.domains], "campaign": [gates.campaigns]}[held]
            closed[{"provider": PROVIDERS.index("Gmail"), "domain": where, "campaign": "Follow-up: r"}[held]] = gate
            following.fire(f"ada@{where}", f"bob@{where}")
            following.fire("cleo@icloud.com", rule="other")
            await following.until(lambda: len(following.rows()) == 3 and not following.acting.calls and not following.acting.ended)
            rows = following.rows()
            assert rows["cleo@icloud.com"]["state"] == "sent"
            assert {(rows[f"{who}@{where}"]["state"], rows[f"{who}@{where}"]["tries"]) for who in ("ada", "bob")} == {("waiting", 0)}
            gate.left = 1
            await following.until(lambda: following.states()["sent"] == 2 and not following.acting.calls)
            assert gate.sent == 1 and following.states() == {"sent": 2, "waiting": 1}
            closed.clear()
            await following.ended(3)

        run(tmp_path, smtp(box), act)
    assert max(Counter(message.recipient for message in inbox.messages()).values()) == 1 and len(inbox) == 3


def test_a_build_that_follows_up_through_a_hold_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without a look at gates it arrives all the same."""
    monkeypatch.setattr(FollowUps, "_gates", lambda *_: [])
    with Mailbox(inbox := Inbox()) as box:

        async def act(following: Following) -> None:
            following.desk.sender.gates.providers[PROVIDERS.index("Gmail")] = held_gate(0)
            following.fire("ada@gmail.com")
            await following.ended(1)

        run(tmp_path, smtp(box), act)
    assert len(inbox) == 1


def test_campaigns_and_follow_ups_share_the_cap(tmp_path: Path) -> None:
    """Who has got what anybody may in a day gets no follow-up now, and who got a follow-up no campaign's message."""
    with Mailbox(inbox := Inbox()) as box:

        async def act(following: Following) -> None:
            desk = following.desk
            following.fire("new@example.com")
            await following.ended(1)
            assert desk.sender.often(["new@example.com", "p0@example.com"], desk.clock.now_us()) == {"new@example.com"}
            assert await desk.send_until(desk.over)
            following.fire("p0@example.com", "new@example.com")
            await following.until(lambda: len(following.actions.listed(count_max=9)) == 3 and not following.acting.calls)
            row = following.rows()["p0@example.com"]
            assert (row["state"], row["code"], row["tries"]) == ("waiting", "cap", 0)

        run(tmp_path, smtp(box), act, recipient_per_day=1)
    assert Counter(message.recipient.lower() for message in inbox.messages()) == {"new@example.com": 1, "p0@example.com": 1}


@pytest.mark.parametrize(("kind", "state"), [("postmark", "unknown"), ("resend", "sent")])
def test_a_call_without_an_answer_is_made_again_only_where_twice_is_once(kind: str, state: str, tmp_path: Path) -> None:
    """Taken and not answered: with a vendor that knows the key it goes again and is sent; with another it is unknown. One arrives."""
    inbox = Inbox()
    with Apis(inbox, Plan({0: "accept_and_cut"})) as apis:

        async def act(following: Following) -> None:
            following.fire("ada@example.com")
            await following.ended(1)
            assert following.states() == {state: 1}
            if state == "unknown":
                # A webhook that names it settles it.
                ((id, _),) = following.actions.unsettled(following.ways.mailing())
                assert following.actions.heard_of([id], 1) == 1 and following.states() == {"sent": 1}

        run(tmp_path, api(kind, apis), act)
    assert [message.recipient for message in inbox.messages()] == ["ada@example.com"]


def test_a_channel_that_is_gone_or_no_safe_link_makes_it_wait(tmp_path: Path) -> None:
    """Nothing is lost by a wrong configuration: it waits, says why, and is no try."""
    with Mailbox(inbox := Inbox()) as box:

        async def act(following: Following) -> None:
            following.fire("ada@example.com", rule="gone", channel="gone")
            following.fire("user-17", rule="no address")
            await following.until(lambda: len(following.rows()) == 2 and not following.acting.calls)
            row = following.rows()["ada@example.com"]
            assert (row["state"], row["code"], row["tries"]) == ("waiting", "no_channel", 0) and "gone" in row["detail"]
            assert following.rows()["user-17"]["code"] == "no_address"
            following.ways.follow_ups.unsafe = "people could not unsubscribe safely"
            following.fire("bob@example.com")
            await following.until(lambda: len(following.rows()) == 3 and not following.acting.calls)
            assert "unsubscribe" in following.rows()["bob@example.com"]["detail"]

        run(tmp_path, smtp(box), act)
    assert not inbox.messages()


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"channel": ""}, "channel"), ({"from_address": "shop"}, "from_address"), ({"reply_to": "a\n@b.example"}, "reply_to"),
        ({"subjct": "x"}, "subjct"), ({"subject": 3}, "subject"),
    ],
)  # fmt: skip
def test_an_email_that_cannot_be_sent_is_refused_with_its_place(change: dict, place: str) -> None:
    """When the rule is put, and not when it fires."""
    with pytest.raises(ConfigError, match=place):
        EmailSays(way_of(Email, {}, "email"), FIELDS | change, "$.action.fields")


def test_the_same_action_is_the_same_message() -> None:
    """What is said again is what was said: it is made of what was known then."""
    says = EmailSays(way_of(Email, {}, "email"), FIELDS, "$.action.fields")
    known = says.render({"name": "Ada", "plan": "x"}, {"now": 5})
    assert known == {"values": {"name": "Ada"}, "now_us": 5} and msgspec.json.decode(msgspec.json.encode(known)) == known
