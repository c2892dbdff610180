"""The outbox and the calls: at most one effect for each intent, whatever the vendor does and wherever the process dies."""

from __future__ import annotations

import asyncio
import math
import os
import ssl
import subprocess
import sys
from pathlib import Path
from random import Random

import apsw
import msgspec
import pytest
import trustme

from midflight.act.channels import REGISTRY
from midflight.act.channels.channel import EXAMPLE, Channel, Message, channel_of
from midflight.act.delivery import Delivery, patience_s
from midflight.act.outbox import PLANNED, REFUSED, SENT, SKIPPED, UNKNOWN, VERSION, Outbox, Planned, Result
from midflight.kit.clock import Clock
from midflight.kit.errors import ConfigError
from midflight.sandbox.api_vendors import KEYS
from midflight.sandbox.apis import Apis
from midflight.sandbox.inbox import Inbox
from midflight.sandbox.misbehave import ACCEPTS, ANSWER, HTTP, TLS_FAILURE, Plan

NOW_US = 1_764_000_000_000_000
CAMPAIGN = 7


def settings_of(name: str, url: str) -> dict:
    """Return settings of a channel that point at the sandbox."""
    key = KEYS[name]
    if name == "ses":
        access, secret = key.split(":")
        return {"region": "eu-west-1", "access_key_id": access, "secret_access_key": secret, "url": url}
    return {
        "sendgrid": {"api_key": key, "url": url},
        "mailgun": {"api_key": key, "domain": "m.example", "url": url},
        "postmark": {"server_token": key, "url": url},
        "resend": {"api_key": key, "url": url},
    }[name]


def planned(count: int, first: int = 0, wave: int = 1) -> list[Planned]:
    return [
        Planned(recipient=f"p{n}@example.com", wave=wave, variant=n % 2, propensity=0.5, intent=f"in-{n}")
        for n in range(first, first + count)
    ]  # fmt: skip


def message(item: Planned) -> Message:
    variant = "AB"[item.variant]
    return msgspec.structs.replace(EXAMPLE, intent=item.intent, to=item.recipient, variant=variant, wave=str(item.wave))


async def send_waiting(outbox: Outbox, delivery: Delivery, now_us: int) -> None:
    """Send everything that waits once: the intent, the call, the outcome."""
    waiting = outbox.waiting(CAMPAIGN, now_us, 1000)
    size = min(delivery.channel.batch_max, 2)
    for start in range(0, len(waiting), size):
        part = waiting[start : start + size]
        messages = [message(item) for item in part]
        call = delivery.makes(messages)
        allowed = outbox.call([m.intent for m in messages], now_us, idempotent=call.idempotent)
        assert len(allowed) == len(messages)
        outbox.settle(await delivery.deliver(messages, call, part[0].tries), now_us)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    made = Outbox(tmp_path / "outbox.db")
    yield made
    made.close()


# -- the outbox --------------------------------------------------------------------------------------------------------------


def test_nobody_is_planned_twice(outbox: Outbox) -> None:
    """A recipient who is in the audience twice, or in two waves, gets one message of a campaign."""
    assert outbox.put(CAMPAIGN, planned(3), NOW_US) == 3
    again = [msgspec.structs.replace(item, intent=item.intent + "x", wave=2) for item in planned(5)]
    assert outbox.put(CAMPAIGN, again, NOW_US) == 2
    assert outbox.put(CAMPAIGN + 1, [msgspec.structs.replace(item, intent="other-" + item.intent) for item in planned(3)], NOW_US) == 3
    assert outbox.counts(CAMPAIGN)["planned"] == 5


def test_only_what_is_planned_is_called(outbox: Outbox) -> None:
    """An intent is called once; a second caller, and one for a message that was taken out, is told no."""
    outbox.put(CAMPAIGN, planned(3), NOW_US)
    assert outbox.skip(CAMPAIGN, {"p2@example.com": ("unsubscribed", "")}, NOW_US) == 1
    assert outbox.call(["in-0", "in-1", "in-2", "in-9"], NOW_US) == {"in-0", "in-1"}
    assert outbox.call(["in-0", "in-1", "in-2"], NOW_US) == set()
    # What is under way cannot be taken out any more.
    assert outbox.skip(CAMPAIGN, {"p0@example.com": ("unsubscribed", "")}, NOW_US) == 0


def test_a_known_end_never_changes(outbox: Outbox) -> None:
    """Only an open call has an end: a late or repeated outcome changes nothing."""
    outbox.put(CAMPAIGN, planned(2), NOW_US)
    assert outbox.settle([Result(intent="in-0", state=SENT)], NOW_US) == 0
    outbox.call(["in-0"], NOW_US)
    assert outbox.settle([Result(intent="in-0", state=REFUSED, code="400", detail="x" * 9999)], NOW_US) == 1
    assert outbox.settle([Result(intent="in-0", state=SENT)], NOW_US) == 0
    row = outbox.of("in-0")
    assert row["state"] == "refused" and len(row["detail"]) == 500


def test_an_unknown_end_is_settled_by_the_webhook(outbox: Outbox) -> None:
    """An unknown message is never tried again, and becomes sent when an event names its intent; others are left alone."""
    outbox.put(CAMPAIGN, planned(2), NOW_US)
    outbox.call(["in-0"], NOW_US)
    outbox.settle([Result(intent="in-0", state=UNKNOWN, code="no_answer")], NOW_US)
    assert [item.intent for item in outbox.waiting(CAMPAIGN, NOW_US, 9)] == ["in-1"]
    assert outbox.heard_of(["in-0", "in-1", "in-77"], NOW_US) == 1
    assert outbox.of("in-0")["state"] == "sent" and outbox.of("in-1")["state"] == "planned"


def test_another_versions_outbox_is_refused(tmp_path: Path) -> None:
    """A file that a later version made is neither written nor read; it says where it is and what was expected."""
    Outbox(tmp_path / "outbox.db").close()
    with apsw.Connection(str(tmp_path / "outbox.db")) as db:
        db.execute("UPDATE meta SET value = 99 WHERE key = 'version'")
    for reading in (False, True):
        with pytest.raises(ConfigError, match=f"another version: expected {VERSION}, got 99"):
            Outbox(tmp_path / "outbox.db", reading=reading)


def test_totals_are_those_of_the_messages(outbox: Outbox) -> None:
    """Whatever happens to messages, the sums beside them are what counting says."""
    random = Random(5)
    outbox.put(CAMPAIGN, planned(200), NOW_US)
    outbox.put(CAMPAIGN, planned(210), NOW_US)
    for _ in range(300):
        intents = [f"in-{n}" for n in random.sample(range(210), 7)]
        random.choice(
            [
                lambda i: outbox.call(i, NOW_US),
                lambda i: outbox.settle([Result(intent=x, state=random.choice([PLANNED, SENT, REFUSED, UNKNOWN])) for x in i], NOW_US),
                lambda i: outbox.give_back(i, NOW_US),
                lambda i: outbox.heard_of(i, NOW_US),
                lambda i: outbox.skip(CAMPAIGN, {f"p{x[3:]}@example.com": ("unsubscribed", "") for x in i[:1]}, NOW_US),
            ]
        )(intents)
        counted = "SELECT campaign, wave, variant, state, count(*) FROM messages GROUP BY 1, 2, 3, 4"
        assert set(outbox.db.execute("SELECT campaign, wave, variant, state, n FROM totals WHERE n > 0")) == set(outbox.db.execute(counted))
    assert sum(outbox.counts(CAMPAIGN).values()) == 210 and min(outbox.counts(CAMPAIGN).values()) > 0


def test_a_wave_has_gone_with_its_last_message(outbox: Outbox) -> None:
    """A wave of which a message waits is on its way; what is refused or left out keeps none back; of none that went there is no time."""
    outbox.put(CAMPAIGN, [*planned(2), *planned(2, first=2, wave=2)], NOW_US)
    outbox.call(["in-0", "in-1", "in-2", "in-3"], NOW_US)
    outbox.settle([Result(intent="in-0", state=UNKNOWN), Result(intent="in-2", state=REFUSED)], NOW_US + 1)
    assert outbox.gone_us(CAMPAIGN, 3).tolist() == [math.inf] * 3
    outbox.settle([Result(intent="in-1", state=PLANNED), Result(intent="in-3", state=REFUSED)], NOW_US + 2)
    assert outbox.gone_us(CAMPAIGN, 3).tolist() == [math.inf] * 3
    outbox.call(["in-1"], NOW_US + 3)
    outbox.settle([Result(intent="in-1", state=SENT)], NOW_US + 4)
    assert outbox.gone_us(CAMPAIGN, 3).tolist() == [NOW_US + 4, math.inf, math.inf]


def test_what_was_put_off_waits(outbox: Outbox) -> None:
    """A message that is to go later comes when its time has come, after those that have waited longer."""
    outbox.put(CAMPAIGN, planned(2), NOW_US)
    outbox.call(["in-0"], NOW_US)
    outbox.settle([Result(intent="in-0", state=PLANNED, not_before_us=NOW_US + 5)], NOW_US)
    assert [item.intent for item in outbox.waiting(CAMPAIGN, NOW_US + 4, 9)] == ["in-1"]
    assert [(item.intent, item.tries) for item in outbox.waiting(CAMPAIGN, NOW_US + 5, 9)] == [("in-1", 0), ("in-0", 1)]


def test_an_open_call_is_unknown_after_a_death(tmp_path: Path) -> None:
    """After a start, calls of the former process are unknown; those that may be made twice wait again under the same intent."""
    first = Outbox(tmp_path / "outbox.db")
    first.put(CAMPAIGN, planned(4), NOW_US)
    first.call(["in-0"], NOW_US)
    first.call(["in-1"], NOW_US, idempotent=True)
    first.call(["in-2"], NOW_US)
    first.settle([Result(intent="in-2", state=SENT)], NOW_US)
    first.close()
    second = Outbox(tmp_path / "outbox.db")
    assert second.recover(NOW_US) == (1, 1)
    assert second.recover(NOW_US) == (0, 0)
    assert second.counts(CAMPAIGN) == {"planned": 2, "called": 0, "sent": 1, "refused": 0, "unknown": 1, "skipped": 0}
    assert second.skip(CAMPAIGN, dict.fromkeys(["p0@example.com", "p1@example.com"], ("stopped", "")), NOW_US) == 1 and SKIPPED == 5
    second.close()


# -- every vendor, every misbehaviour ------------------------------------------------------------------------------------------


def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def channel_at(name: str, url: str) -> Channel:
    return channel_of(REGISTRY.get(name), settings_of(name, url), name)


def play(name: str, kind: str, outbox: Outbox, tries: int = 3) -> Inbox:
    """Send one message while the vendor misbehaves at the first request, then as often as it is put off, as time passes."""
    inbox = Inbox()
    authority = trustme.CA()
    server_tls = None
    if kind == TLS_FAILURE:
        server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(server_tls)

    async def sending(url: str) -> None:
        delivery = Delivery(channel_at(name, url), Clock(), verify=client_tls(authority), answer_s=1.5)
        now_us = NOW_US
        for _ in range(tries):
            await send_waiting(outbox, delivery, now_us)
            now_us = Clock().now_us() + 3_600_000_000
        await delivery.close()

    with Apis(inbox, Plan({0: kind}), tls=server_tls) as apis:
        outbox.put(CAMPAIGN, planned(1), NOW_US)
        asyncio.run(sending(apis.url))
        assert not apis.followed
    return inbox


@pytest.mark.parametrize("kind", sorted(HTTP))
@pytest.mark.parametrize("name", ["sendgrid", "mailgun", "ses", "postmark", "resend"])
def test_at_most_one_effect_for_an_intent(name: str, kind: str, outbox: Outbox) -> None:
    """Whatever the vendor does, a message is accepted at most once; what is called sent was accepted; what was refused was not."""
    inbox = play(name, kind, outbox)
    state = outbox.of("in-0")["state"]
    assert not inbox.twice()
    if state == "sent":
        assert len(inbox) == 1
    if state in ("refused", "planned"):
        assert len(inbox) == 0
    if kind == ANSWER:
        assert state == "sent"
    # Who was not reached, or was asked to come later, is not forgotten.
    if kind in ("429", "429_retry_after", "401", "redirect", TLS_FAILURE):
        assert state == "sent", outbox.of("in-0")
    # Accepted without a word of it: unknown, until the webhook comes; where the vendor knows the key, the second call finds it.
    if kind in ACCEPTS and kind.startswith("accept_"):
        assert state == ("sent" if name == "resend" else "unknown")
        assert outbox.heard_of(["in-0"], NOW_US) == (name != "resend") and outbox.of("in-0")["state"] == "sent"


def test_a_delivery_that_tries_again_blindly_is_caught(outbox: Outbox) -> None:
    """Control: were an unanswered call tried again, the vendor would have the message twice."""
    inbox = Inbox()

    async def sending(url: str) -> None:
        delivery = Delivery(channel_at("sendgrid", url), Clock(), answer_s=1.5)
        item = message(planned(1)[0])
        for _ in range(2):
            await delivery.deliver([item], delivery.makes([item]), 0)
        await delivery.close()

    with Apis(inbox, Plan({0: "accept_and_cut"})) as apis:
        asyncio.run(sending(apis.url))
    assert inbox.twice()


def test_patience_grows_and_ends() -> None:
    """Waits double and are bounded."""
    assert [patience_s(n) for n in (0, 1, 2)] == [2.0, 4.0, 8.0] and patience_s(10_000) == 300.0


# -- deaths at each point ------------------------------------------------------------------------------------------------------

POINTS = ("before_intent", "after_intent", "before_call", "after_answer", "before_outcome", "after_outcome")
CHILD = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from midflight.act.delivery import Delivery
from midflight.act.outbox import Outbox
from midflight.kit.clock import Clock
from test_delivery import CAMPAIGN, channel_at, planned, send_waiting
async def run():
    outbox = Outbox(Path({folder!r}) / "outbox.db")
    outbox.recover(Clock().now_us())
    outbox.put(CAMPAIGN, planned({count}), Clock().now_us())
    delivery = Delivery(channel_at({name!r}, {url!r}), Clock(), answer_s=3)
    for _ in range(20):
        await send_waiting(outbox, delivery, Clock().now_us() + 3_600_000_000)
    await delivery.close()
    outbox.close()
asyncio.run(run())
"""


def run_child(folder: Path, name: str, url: str, count: int, crash_at: str = "") -> int:
    code = CHILD.format(tests=str(Path(__file__).parent), folder=str(folder), name=name, url=url, count=count)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    if crash_at:
        env["MIDFLIGHT_CRASH_AT"] = crash_at
    return subprocess.run([sys.executable, "-c", code], env=env, timeout=120, check=False).returncode


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", ["sendgrid", "postmark", "resend"])
def test_a_death_at_any_point_sends_nothing_twice_and_forgets_nobody(name: str, point: str, tmp_path: Path) -> None:
    """The process dies at a point of its second call while the vendor misbehaves too; started again it ends, and all are accounted for."""
    inbox = Inbox()
    count = 6
    chances = {"accept_and_cut": 0.2, "429": 0.2, "500": 0.1, "cut_in_body": 0.1}
    with Apis(inbox, Plan({0: ANSWER, 1: ANSWER}, chances, seed=3)) as apis:
        died = run_child(tmp_path, name, apis.url, count, f"{point}:2")
        assert died == -9, died
        assert run_child(tmp_path, name, apis.url, count) == 0
    outbox = Outbox(tmp_path / "outbox.db")
    counts = outbox.counts(CAMPAIGN)
    assert not inbox.twice()
    assert counts["planned"] == counts["called"] == counts["refused"] == 0 and counts["sent"] + counts["unknown"] == count
    accepted = {item.intent for item in inbox.messages()}
    for item in planned(count):
        if outbox.of(item.intent)["state"] == "sent":
            assert item.intent in accepted
    assert outbox.heard_of(accepted, NOW_US) == counts["unknown"] - len(inbox.lost(item.intent for item in planned(count)))
    outbox.close()
