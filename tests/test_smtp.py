"""SMTP: at every point where a connection can break the outcome is right, and what is made is what a mail program reads."""

from __future__ import annotations

import asyncio
import base64
import email
import json
import re
import ssl
from email.message import EmailMessage
from email.policy import SMTP, default
from pathlib import Path

import msgspec
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from smtp_server import Manners, SmtpServer

from midflight.act.channels.channel import EXAMPLE, Message, Outcome
from midflight.act.mime import BadMessage, address_of, mime_of
from midflight.act.smtp import Letter, SmtpConnection, SmtpSettings
from midflight.kit.clock import VirtualClock
from midflight.kit.errors import ConfigError

NOW_US = 1_764_000_000_000_000
LARGE = msgspec.structs.replace(EXAMPLE, html="<p>" + "a line of text that goes on and on\n" * 20_000 + "</p>")


def settings(server: SmtpServer, **more: object) -> SmtpSettings:
    return msgspec.convert(
        {"host": "127.0.0.1", "port": server.port, "tls": "none", "timeout_s": 5.0, "end_timeout_s": 5.0} | more, SmtpSettings
    )


def connection(server: SmtpServer, kind: type[SmtpConnection] = SmtpConnection, **more: object) -> SmtpConnection:
    return kind(settings(server, **more), VirtualClock(NOW_US))


def message(number: int = 0, **changed: object) -> Message:
    return msgspec.structs.replace(EXAMPLE, intent=f"in-{number}", **changed)


def sent(manners: Manners, *messages: Message, mime: bytes | None = None, **more: object) -> tuple[list[Outcome], SmtpServer]:
    """Send messages over one connection and return the outcomes and the server."""

    async def scene() -> tuple[list[Outcome], SmtpServer]:
        async with SmtpServer(manners) as server, connection(server, **more) as client:
            return [await client.send(one, mime) for one in messages or (EXAMPLE,)], server

    return asyncio.run(scene())


def read(content: bytes) -> EmailMessage:
    return email.message_from_bytes(content, policy=default)


# -- whether a message may be tried again --------------------------------------------------------------------------------------------

PIPELINED = pytest.mark.parametrize("offers", [("PIPELINING", "8BITMIME", "SMTPUTF8"), ()], ids=["pipelined", "one by one"])
BEFORE = ["connect", "ehlo", "mail", "rcpt", "data", "body"]


@PIPELINED
@pytest.mark.parametrize("ending", ["cut_at", "hang_at"])
@pytest.mark.parametrize("stage", BEFORE)
def test_before_the_dot_nothing_was_accepted(stage: str, ending: str, offers: tuple[str, ...]) -> None:
    """A connection that ends or falls silent before the dot leaves the message to be sent later, and then it arrives exactly once."""
    manners = Manners(offers=offers, times=1, **{ending: stage})
    # Only a content that does not fit into the buffers between can be cut before its dot has been sent.
    large = msgspec.structs.replace(LARGE, html=LARGE.html * 20)
    one = large if stage == "body" else EXAMPLE
    (first, second), server = sent(manners, one, one, timeout_s=(3.0 if stage == "body" else 0.5) if ending == "hang_at" else 20.0)
    assert (first.kind, second.kind) == ("later", "sent"), (first, second)
    assert first.code == "connection"
    assert len(server.delivered) == 1


@PIPELINED
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("ending", ["cut_at", "hang_at"])
def test_after_the_dot_nobody_can_tell(ending: str, keeps: bool, offers: tuple[str, ...]) -> None:
    """A connection that ends or falls silent after the dot leaves the message unknown, whether or not the server has taken it."""
    manners = Manners(offers=offers, keeps=keeps, times=1, **{ending: "dot"})
    (first,), server = sent(manners, end_timeout_s=0.2 if ending == "hang_at" else 5.0)
    assert first.kind == "unknown"
    assert first.message_id == "<in-01HZX4@shop.example>"
    assert len(server.delivered) == (1 if keeps else 0)


def test_the_end_has_a_time_of_its_own() -> None:
    """The answer to the dot may take longer than any other."""
    (first,), _ = sent(Manners(hang_at="dot", times=1), timeout_s=0.05, end_timeout_s=0.3)
    assert first.kind == "unknown"
    assert first.detail == "after the content: No answer in time"


ANSWERS = [
    ("connect", "421 4.3.2 Not now", "later", "421 4.3.2"),
    ("connect", "554 5.7.1 Not you", "later", "554 5.7.1"),
    ("mail", "451 4.3.0 Later", "later", "451 4.3.0"),
    ("mail", "421 Closing", "later", "421"),
    ("mail", "550 5.1.8 Sender unknown", "refused", "550 5.1.8"),
    ("mail", "530 5.7.0 Log in first", "later", "530 5.7.0"),
    ("rcpt", "450 4.2.1 Busy", "later", "450 4.2.1"),
    ("rcpt", "421 4.4.5 Closing", "later", "421 4.4.5"),
    ("rcpt", "550 5.1.1 No such user", "refused", "550 5.1.1"),
    ("rcpt", "550-5.1.1 No such\r\n550 5.1.1 user", "refused", "550 5.1.1"),
    ("rcpt", "553 no", "refused", "553"),
    ("data", "452 4.3.1 Full", "later", "452 4.3.1"),
    ("data", "554 5.6.0 No", "refused", "554 5.6.0"),
    ("data", "250 What?", "later", "250"),
    ("dot", "451 4.7.1 Greylisted", "later", "451 4.7.1"),
    ("dot", "421 4.3.2 Going down", "later", "421 4.3.2"),
    ("dot", "552 5.3.4 Too large", "refused", "552 5.3.4"),
    ("dot", "554 5.7.1 Spam", "refused", "554 5.7.1"),
    ("dot", "354 What?", "unknown", "354"),
]


@PIPELINED
@pytest.mark.parametrize(("stage", "answer", "kind", "code"), ANSWERS)
def test_an_answer_is_an_outcome(stage: str, answer: str, kind: str, code: str, offers: tuple[str, ...]) -> None:
    """What the server says at a stage becomes the outcome with its codes, and the next message goes as if nothing had been."""
    (first, second), server = sent(Manners(offers=offers, answers={stage: answer}, times=1), message(1), message(2))
    assert (first.kind, first.code, second.kind) == (kind, code, "sent"), first
    assert [read(one.content)["X-Midflight-Intent"] for one in server.delivered] == ["in-2"]


@PIPELINED
def test_a_server_that_takes_a_content_for_nobody_gets_none(offers: tuple[str, ...]) -> None:
    """Where the recipient was refused and the server still asks for the content, it hears nothing more."""
    manners = Manners(offers=offers, answers={"rcpt": "550 5.1.1 No"}, takes_all=True, times=1)
    (first, second), server = sent(manners, message(1), message(2))
    assert (first.kind, second.kind) == ("refused", "sent")
    assert len(server.delivered) == 1 and server.connections == (2 if offers else 1)


def test_a_word_in_the_middle_stops_a_large_message() -> None:
    """A server that refuses while a large content is still going out never sees its end."""
    large = msgspec.structs.replace(LARGE, html=LARGE.html * 20)
    (first, second), server = sent(Manners(answers={"body": "552 5.3.4 Too large"}, times=1), large, EXAMPLE)
    assert (first.kind, first.code, second.kind) == ("refused", "552 5.3.4", "sent")
    assert len(server.delivered) == 1


def test_an_answer_before_the_content_is_no_yes() -> None:
    """A yes that came before the content was sent is not taken for a yes to it."""
    (first,), server = sent(Manners(answers={"data": "354 Go\r\n250 2.0.0 Ok: queued as X"}, times=1), timeout_s=0.5, end_timeout_s=0.5)
    assert first.kind == "later"
    assert not server.delivered


class Careless(SmtpConnection):
    """A client that takes everything that was not answered for not accepted."""

    async def send(self, message: Message, mime: bytes | None = None) -> Outcome:
        outcome = await super().send(message, mime)
        return msgspec.structs.replace(outcome, kind="later") if outcome.kind == "unknown" else outcome


def copies(kind: type[SmtpConnection], stage: str, **changed: object) -> tuple[str, int]:
    """Send a message until it is not ``later`` any more over a connection that is cut once, and count what arrived."""

    async def scene() -> tuple[str, int]:
        async with SmtpServer(Manners(cut_at=stage, times=1)) as server, connection(server, kind) as client:
            for _ in range(5):
                outcome = await client.send(msgspec.structs.replace(EXAMPLE, **changed))
                if outcome.kind != "later":
                    break
            return outcome.kind, len(server.delivered)

    return asyncio.run(scene())


@pytest.mark.parametrize("stage", ["connect", "ehlo", "mail", "rcpt", "data", "dot"])
def test_no_message_goes_twice(stage: str) -> None:
    """Wherever it is cut, a message that is sent as long as it is ``later`` arrives once."""
    assert copies(SmtpConnection, stage) == ("unknown" if stage == "dot" else "sent", 1)


def test_a_client_that_says_later_after_the_dot_is_caught() -> None:
    """Control: such a client sends the message twice, which the test above would see."""
    assert copies(Careless, "dot") == ("sent", 2)


def test_a_cancelled_message_leaves_no_answer_behind() -> None:
    """After a cancelled send the next message does not get its answer."""

    async def scene() -> tuple[Outcome, int]:
        async with SmtpServer(Manners(hang_at="dot", times=1)) as server, connection(server) as client:
            task = asyncio.create_task(client.send(message(1)))
            await server.took.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return await client.send(message(2)), server.connections

    outcome, connections = asyncio.run(scene())
    assert outcome.kind == "sent" and outcome.message_id == "Q2" and connections == 2


def test_nobody_listens() -> None:
    """A relay that is not there, or has no such name, leaves messages for later."""

    async def scene() -> list[Outcome]:
        async with SmtpServer() as server:
            port = server.port
        gone = SmtpConnection(SmtpSettings(host="127.0.0.1", port=port, tls="none"))
        return [await gone.send(EXAMPLE), await SmtpConnection(SmtpSettings(host="relay.invalid", tls="none")).send(EXAMPLE)]

    assert [(outcome.kind, outcome.code) for outcome in asyncio.run(scene())] == [("later", "connection")] * 2


# -- the connection ------------------------------------------------------------------------------------------------------------------


def test_one_connection_takes_many_messages() -> None:
    """Messages go over one connection until it is old, and over a new one after that."""
    outcomes, server = sent(Manners(), *map(message, range(10)), messages_per_connection=4)
    assert [outcome.kind for outcome in outcomes] == ["sent"] * 10
    assert outcomes[2].message_id == "Q3" and outcomes[2].code == "250 2.0.0"
    assert server.connections == 3 and server.commands["QUIT"] == 3 and len(server.delivered) == 10


def test_a_server_that_hangs_up_between_messages_costs_none() -> None:
    """A connection that the server ended after a message is made anew for the next."""

    async def scene() -> tuple[list[str], SmtpServer]:
        async with SmtpServer(Manners(ends_after=1)) as server, connection(server) as client:
            kinds = []
            for number in range(3):
                kinds.append((await client.send(message(number))).kind)
                await asyncio.sleep(0.05)
            return kinds, server

    kinds, server = asyncio.run(scene())
    assert kinds == ["sent"] * 3 and server.connections == 3


@PIPELINED
def test_slow_letters_are_read(offers: tuple[str, ...]) -> None:
    """Answers that come one byte at a time are read like others."""
    outcomes, _ = sent(Manners(offers=offers, drip=True), message(1), message(2))
    assert [outcome.kind for outcome in outcomes] == ["sent", "sent"]


def test_a_refused_message_is_reset() -> None:
    """After a refused recipient the next message begins with RSET, and a RSET that fails refuses nobody."""
    (first, second), server = sent(Manners(answers={"rcpt": "550 no"}, times=1), message(1), message(2))
    assert (first.kind, second.kind) == ("refused", "sent") and server.commands["RSET"] == 1 and server.connections == 1
    (_, second, third), _ = sent(Manners(answers={"rcpt": "550 no", "rset": "502 no"}, times=2), message(1), message(2), message(3))
    assert (second.kind, third.kind) == ("later", "sent")


def test_a_server_of_old_is_greeted_with_helo() -> None:
    """A server that does not know EHLO gets messages too."""
    (first,), server = sent(Manners(hello=False))
    assert first.kind == "sent" and server.commands["HELO"] == 1


def test_what_is_no_smtp_is_no_answer() -> None:
    """An answer that is not SMTP before the dot means later, after it unknown, and one without end is not kept."""
    for bad in ("HTTP/1.1 400 Bad Request", "250-5.1.1 Yes\r\n550 No", "250-" + "x" * 70_000, ("250-" + "x" * 900 + "\r\n") * 100):
        (before,), _ = sent(Manners(answers={"rcpt": bad}, times=1))
        (after,), _ = sent(Manners(answers={"dot": bad}, times=1), end_timeout_s=1.0)
        assert (before.kind, after.kind) == ("later", "unknown"), bad[:20]


# -- who may read it, and who may send -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    """A certificate authority and the file of its certificate."""
    made = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    made.cert_pem.write_to_path(str(path))
    return made, path


def served(authority: trustme.CA, name: str = "localhost") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


def encrypted(manners: Manners, context: ssl.SSLContext, direct: bool, **more: object) -> tuple[Outcome, SmtpServer]:
    async def scene() -> tuple[Outcome, SmtpServer]:
        async with SmtpServer(manners, context, direct) as server:
            client = connection(server, host="localhost", tls="tls" if direct else "starttls", **more)
            try:
                return await client.send(EXAMPLE), server
            finally:
                await client.close()

    return asyncio.run(scene())


@pytest.mark.parametrize("mechanisms", ["PLAIN LOGIN", "LOGIN"])
@pytest.mark.parametrize("direct", [True, False])
def test_over_tls_with_a_password(authority: tuple[trustme.CA, Path], direct: bool, mechanisms: str) -> None:
    """A message goes over TLS from the start or after STARTTLS, with a password in any script, by PLAIN or LOGIN."""
    manners = Manners(login=("ada", "pass wörd"), mechanisms=mechanisms)
    more = {"ca_file": str(authority[1]), "user": "ada", "password": "pass wörd"}
    outcome, server = encrypted(manners, served(authority[0]), direct, **more)
    assert outcome.kind == "sent", outcome
    assert server.commands["AUTH"] == 1 and server.commands["EHLO"] == (1 if direct else 2)


def test_a_wrong_password_loses_nobody(authority: tuple[trustme.CA, Path]) -> None:
    """A password that the server does not take, or has no way to take, leaves the message for later."""
    more = {"ca_file": str(authority[1]), "user": "ada", "password": "wrong"}
    for mechanisms, code in (("PLAIN", "535 5.7.8"), ("LOGIN", "535 5.7.8"), ("CRAM-MD5", "auth")):
        outcome, server = encrypted(Manners(login=("ada", "right"), mechanisms=mechanisms), served(authority[0]), False, **more)
        assert (outcome.kind, outcome.code) == ("later", code)
        assert not server.delivered


@pytest.mark.parametrize("direct", [True, False])
def test_a_stranger_gets_nothing(authority: tuple[trustme.CA, Path], direct: bool) -> None:
    """Neither a certificate of nobody's nor one for another name gets the message or the password."""
    more = {"user": "ada", "password": "secret"}
    for context, ca in ((served(trustme.CA()), authority[1]), (served(authority[0], "other.example"), authority[1])):
        outcome, server = encrypted(Manners(), context, direct, ca_file=str(ca), **more)
        assert (outcome.kind, outcome.code) == ("later", "connection") and "certificate" in outcome.detail
        assert server.commands["AUTH"] == server.commands["MAIL"] == 0


def test_without_starttls_nothing_is_sent() -> None:
    """Where the server does not offer STARTTLS (or somebody took the offer out) the message is not sent in the clear."""
    (first,), server = sent(Manners(), tls="starttls")
    assert (first.kind, first.code) == ("later", "tls") and server.commands["MAIL"] == 0


def test_answers_put_behind_starttls_are_not_believed(authority: tuple[trustme.CA, Path]) -> None:
    """What came unencrypted behind the answer to STARTTLS ends the connection."""
    outcome, server = encrypted(Manners(starttls_rest="250 AUTH PLAIN"), served(authority[0]), False, ca_file=str(authority[1]))
    assert (outcome.kind, outcome.detail) == ("later", "STARTTLS: There was more after the answer")
    assert not server.delivered


@pytest.mark.parametrize(
    ("wrong", "about"),
    [
        ({"host": "a b"}, "host"),
        ({"host": "relay\r\nQUIT"}, "host"),
        ({"helo": "me\r\nQUIT"}, "helo"),
        ({"user": "ada"}, "password"),
        ({"user": "ada", "password": "x", "tls": "none"}, "unencrypted"),
        ({"metadata": "else"}, "metadata"),
        ({"colour": "red"}, "colour"),
        ({"port": 0}, "port"),
    ],
)
def test_wrong_settings_are_said(wrong: dict, about: str) -> None:
    """Settings that cannot be right are refused, and the error names them."""
    with pytest.raises(msgspec.ValidationError, match=about):
        msgspec.convert({"host": "relay.example"} | wrong, SmtpSettings)
    with pytest.raises(ConfigError, match="ca_file"):
        SmtpConnection(SmtpSettings(host="relay.example", ca_file="/nowhere.pem"))


# -- what goes over the wire ---------------------------------------------------------------------------------------------------------


def test_commands_go_together_where_the_server_allows_it() -> None:
    """With PIPELINING the three commands arrive before the first is answered, without it one by one."""

    async def scene(offers: tuple[str, ...]) -> list[bytes]:
        got: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 hi\r\n")
            await reader.readline()
            writer.write("\r\n".join([*(f"250-{offer}" for offer in ("x", *offers)), "250 x\r\n"]).encode())
            got.append(await reader.read(65_536))
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        await SmtpConnection(SmtpSettings(host="127.0.0.1", port=port, tls="none")).send(EXAMPLE)
        server.close()
        return got

    together = b"MAIL FROM:<news@shop.example>\r\nRCPT TO:<ada@example.com>\r\nDATA\r\n"
    assert asyncio.run(scene(("PIPELINING",))) == [together]
    assert asyncio.run(scene(())) == [b"MAIL FROM:<news@shop.example>\r\n"]
    assert asyncio.run(scene(("SIZE 1000",)))[0].startswith(b"MAIL FROM:<news@shop.example> SIZE=")


ODD_LINES = ".\n..\n.hidden\n\nFrom here\n. \n.\r.\r\nend\n."


def test_dots_and_line_ends_survive() -> None:
    """Lines that begin with dots arrive as they were, whatever ends them."""
    (first,), server = sent(Manners(), message(1, text=ODD_LINES, html=""))
    assert first.kind == "sent"
    assert (
        read(server.delivered[0].content).get_content().replace("\r\n", "\n") == ODD_LINES.replace("\r\n", "\n").replace("\r", "\n") + "\n"
    )


class Undoubled(Letter):
    """A message whose dots go as they are."""

    def stuffed(self) -> bytes:
        return self.content


def test_a_client_that_does_not_double_dots_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without doubled dots the message ends early, which the tests around this one would see."""
    monkeypatch.setattr("midflight.act.smtp.Letter", Undoubled)
    _, server = sent(Manners(), mime=b"A: b\n\na\n.\nMAIL FROM:<x@y.z>\n")
    assert server.delivered[0].content.endswith(b"\r\na\r\n") and "MAIL FROM:<x@y.z>" in server.lines


def test_a_given_message_goes_as_it_is() -> None:
    """A message made elsewhere is sent with its lines ended rightly, and no line of it can end the message early."""

    async def scene(given: bytes, offers: tuple[str, ...] = ("8BITMIME", "SMTPUTF8")) -> tuple[Outcome, SmtpServer]:
        async with SmtpServer(Manners(offers=offers)) as server, connection(server) as client:
            return await client.send(EXAMPLE, given), server

    outcome, server = asyncio.run(scene(b"Subject: x\nMessage-ID: <a@b>\n\nHello\n.\r\rMAIL FROM:<x@y>\n.\n"))
    assert outcome.kind == "sent"
    assert server.delivered[0].content == b"Subject: x\r\nMessage-ID: <a@b>\r\n\r\nHello\r\n.\r\n\r\nMAIL FROM:<x@y>\r\n.\r\n"
    assert "BODY" not in server.delivered[0].mail
    outcome, server = asyncio.run(scene("Subject: x\n\nGrüße".encode()))
    assert outcome.kind == "sent" and server.delivered[0].mail.endswith("BODY=8BITMIME")
    outcome, server = asyncio.run(scene("Subject: x\n\nGrüße".encode(), ()))
    assert (outcome.kind, outcome.code, server.commands["MAIL"]) == ("refused", "5.6.3", 0)
    outcome, server = asyncio.run(scene(b"Subject: x\n\n" + b"x" * 999))
    assert (outcome.kind, outcome.code) == ("refused", "message")


def test_addresses_in_any_script() -> None:
    """A domain in any script becomes ASCII; a name before the at sign that is not ASCII needs a server that says SMTPUTF8."""
    (first,), server = sent(Manners(), message(1, to="ada@bücher.example"))
    assert first.kind == "sent" and server.delivered[0].rcpt == "RCPT TO:<ada@xn--bcher-kva.example>"
    (first,), server = sent(Manners(), message(1, to="zoë@example.com", to_name="Zoë"))
    assert first.kind == "sent" and server.delivered[0].mail.endswith("BODY=8BITMIME SMTPUTF8")
    assert server.delivered[0].rcpt == "RCPT TO:<zoë@example.com>"
    assert "\r\nTo: =?utf-8?b?Wm/Dqw==?=\r\n <zoë@example.com>\r\n".encode() in server.delivered[0].content
    (first,), server = sent(Manners(offers=("PIPELINING",)), message(1, to="zoë@example.com"))
    assert (first.kind, first.code, server.commands["MAIL"]) == ("refused", "5.6.7", 0)


@pytest.mark.parametrize(
    "address",
    ["", "ada", "@", "a@", "@b.c", "a b@c.d", "a@b c.d", "a@b.c>\r\nRCPT TO:<x@y.z", "a\n@b.c", "a@b.c\x00", "<a@b.c>", "a" * 320 + "@b.c",
     "ü ü@b.c", "a@" + "ü" * 64 + ".c"],
)  # fmt: skip
def test_an_address_that_could_be_a_command_is_refused(address: str) -> None:
    """What is no address never gets to the server, and costs nobody else anything."""
    with pytest.raises(BadMessage):
        address_of(address)
    (first, second), server = sent(Manners(), message(1, to=address), message(2))
    assert (first.kind, first.code, second.kind) == ("refused", "message", "sent")
    assert not any("x@y.z" in line for line in server.lines)


# -- the message ---------------------------------------------------------------------------------------------------------------------


def test_a_message_reads_as_it_was_meant() -> None:
    """Everything in a message is found in what is made of it, by Python's own reader."""
    made = read(mime_of(EXAMPLE, NOW_US, "shop.example"))
    assert not made.defects
    assert made["From"].addresses[0].display_name == "The Shop" and made["From"].addresses[0].addr_spec == "news@shop.example"
    assert made["To"].addresses[0].display_name == "Ada Lovelace" and made["Reply-To"] == "help@shop.example"
    assert made["Subject"] == "Two days left" and made["Date"] == "Mon, 24 Nov 2025 16:00:00 +0000"
    assert made["Message-ID"] == "<in-01HZX4@shop.example>"
    assert [made[f"X-Midflight-{name}"] for name in ("Campaign", "Variant", "Wave", "Intent")] == ["spring", "B", "3", "in-01HZX4"]
    assert made["List-Unsubscribe"] == "<https://m.example/u/x>" and made["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert [part.get_content_type() for part in made.iter_parts()] == ["text/plain", "text/html"]
    assert [part.get_content() for part in made.iter_parts()] == ["Hello Ada", "<p>Hello Ada</p>"]


ANY = st.text(st.characters(exclude_categories=("Cs",)), max_size=200)
BODY = st.one_of(ANY, st.text(alphabet="ab=. \t\r\n-_Ωß漢", max_size=400), st.text(alphabet="漢字 \n", max_size=300))


@given(text=BODY, html=BODY, subject=ANY, to_name=ANY, campaign=ANY)
def test_any_text_survives(text: str, html: str, subject: str, to_name: str, campaign: str) -> None:
    """Whatever the texts are, the lines are short and ASCII, and the same texts come out."""
    raw = mime_of(message(1, text=text, html=html, subject=subject, to_name=to_name, campaign=campaign), NOW_US, "shop.example")
    assert raw.isascii() and raw.endswith(b"\r\n") and raw.count(b"\r") == raw.count(b"\n") == raw.count(b"\r\n")
    head = raw.partition(b"\r\n\r\n")[0]
    assert max(map(len, head.split(b"\r\n"))) <= 78 and max(map(len, raw.split(b"\r\n"))) <= 78
    made = read(raw)
    assert not made.defects
    parts = list(made.iter_parts()) if html else [made]
    for part, wanted in zip(parts, [text, html] if html else [text], strict=True):
        got = part.get_content().replace("\r\n", "\n")
        assert got.rstrip("\n") == wanted.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
    assert plain(made["Subject"]) == plain(subject) and plain(made["X-Midflight-Campaign"]) == plain(campaign)
    assert made["To"].addresses[0].addr_spec == "ada@example.com" and len(made["To"].addresses) == 1
    # Between two encoded words of a name Python's reader leaves a blank that RFC 2047 section 6.2 says is none.
    assert "".join(plain(made["To"].addresses[0].display_name)) == "".join(plain(to_name))


@given(ANY.filter(lambda text: text.strip()), st.sampled_from(["subject", "to_name", "campaign"]))
def test_an_encoded_word_is_whole(text: str, field: str) -> None:
    """Every encoded word can be read alone, so that no reader shows half a character, and no line that has one is longer than 76."""
    raw = mime_of(message(1, **{field: f"ü {text}"}), NOW_US, "shop.example").partition(b"Content-Type")[0]
    words = re.findall(rb"=\?utf-8\?b\?([^?]*)\?=", raw)
    assert plain("".join(base64.b64decode(word, validate=True).decode() for word in words)) == plain(f"ü {text}")
    assert all(len(line) <= 76 for line in raw.split(b"\r\n") if b"=?" in line)


def test_what_looks_encoded_is_not() -> None:
    """A text that looks like an encoded word arrives as it is written."""
    text = "=?utf-8?q?Win?= now"
    made = read(mime_of(message(1, subject=text, to_name=text, campaign=text), NOW_US, "shop.example", "mailgun"))
    assert made["Subject"] == made["X-Midflight-Campaign"] == made["To"].addresses[0].display_name == text
    assert json.loads(made["X-Mailgun-Variables"])["campaign"] == text


def plain(text: str) -> list[str]:
    """Return a text's words: a control character is a blank, and so are several of them."""
    return "".join(" " if ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u2028\u2029" else c for c in text).split()


@pytest.mark.parametrize("kind", ["sendgrid", "mailgun", "postmark", "ses", "mandrill", "sparkpost", "none"])
@pytest.mark.parametrize("campaign", ["spring", "Frühling – 春 =?x?=", "a campaign with a long name " * 12])
def test_a_relay_gets_what_has_to_come_back(kind: str, campaign: str) -> None:
    """Each vendor's header holds campaign, variant, wave and intent exactly, in the form in which its relay reads it."""
    one = message(1, campaign=campaign.strip())
    made = read(mime_of(one, NOW_US, "shop.example", kind))
    assert not made.defects
    json_of = {
        "sendgrid": "X-SMTPAPI",
        "mailgun": "X-Mailgun-Variables",
        "mandrill": "X-MC-Metadata",
        "sparkpost": "X-MSYS-API",
        "ses": "X-Metadata",
    }
    inside = {"sendgrid": "unique_args", "sparkpost": "metadata"}
    for vendor, header in json_of.items():
        assert (header in made) == (vendor == kind)
    if kind in json_of:
        assert raw_header(made, json_of[kind]).isascii()
        found = json.loads(raw_header(made, json_of[kind]))
        assert (found[inside[kind]] if kind in inside else found) == one.custom()
    if kind == "postmark":
        assert {name: made[f"X-PM-Metadata-{name}"] for name in one.custom()} == one.custom()
    if kind == "ses":
        tags = dict(tag.split("=") for tag in made["X-SES-MESSAGE-TAGS"].split(", "))
        assert tags["variant"] == "B" and ("campaign" in tags) == (campaign == "spring")


def raw_header(made: EmailMessage, name: str) -> str:
    """Return a header unfolded and not decoded, as a vendor's relay reads it."""
    raw = made.as_bytes(policy=SMTP.clone(max_line_length=None))
    line = next(line for line in raw.replace(b"\r\n ", b" ").split(b"\r\n") if line.lower().startswith(name.lower().encode() + b":"))
    return line.partition(b":")[2].decode().strip()


@pytest.mark.parametrize(
    "headers",
    [{"X-A": "b\r\nBcc: x@y.z"}, {"X-A": "b\n c"}, {"X-A": "b\x00"}, {"X A": "b"}, {"X-A:": "b"}, {"": "b"}, {"X-A\r\nBcc": "b"},
     {"Subject": "b"}, {"message-id": "<b@c>"}, {"X-A": "x" * 999}, {"X-Midflight-Intent": "b"}],
)  # fmt: skip
def test_no_header_can_bring_another(headers: dict[str, str]) -> None:
    """A header that would break its line, or stand beside one that is made anyway, refuses the message."""
    with pytest.raises(BadMessage):
        mime_of(message(1, headers=headers), NOW_US, "shop.example")
    (first,), server = sent(Manners(), message(1, headers=headers))
    assert (first.kind, first.code, server.connections) == ("refused", "message", 0)


@pytest.mark.parametrize("field", ["subject", "to_name", "from_name", "campaign", "variant", "wave"])
def test_no_text_can_bring_a_header(field: str) -> None:
    """A line break in a text becomes a blank."""
    raw = mime_of(message(1, **{field: "a\r\nBcc: x@y.z\r\n\r\nbody"}), NOW_US, "shop.example")
    assert "Bcc" not in read(raw) and len(read(raw)["To"].addresses) == 1


@pytest.mark.parametrize("intent", ["", "a b", "a>b", "a\r\nb", "ü", "a@b"])
def test_an_intent_makes_a_message_id_or_none(intent: str) -> None:
    """An intent that could not stand in a Message-ID refuses the message."""
    with pytest.raises(BadMessage):
        mime_of(msgspec.structs.replace(EXAMPLE, intent=intent), NOW_US, "shop.example")


def test_the_same_message_is_made_the_same_way() -> None:
    """Made twice at the same time, a message has the same bytes, its id included."""
    assert mime_of(LARGE, NOW_US, "shop.example") == mime_of(LARGE, NOW_US, "shop.example")
