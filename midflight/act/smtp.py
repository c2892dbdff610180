"""Sends messages to a relay by SMTP over kept connections, and knows of each whether it may be tried again.

The one moment that matters is the dot that ends DATA: before it has been sent nothing was accepted, after it nobody but the server knows
(RFC 5321 section 4.2.5 and RFC 1047). aiosmtplib does not tell the two apart: its ``execute_data_command`` raises the same error for an
answer to DATA and for one to the dot, and the same one for a connection lost before and after; and since it keeps one waiter for one
answer it cannot pipeline. Hence a small client of our own.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from base64 import b64encode
from collections.abc import Callable
from types import TracebackType
from typing import Annotated, Literal, NamedTuple, Self

import msgspec

from ..events import clean
from ..kit.clock import Clock
from ..kit.errors import ConfigError
from .channels import channel
from .channels.channel import Message, Outcome
from .delivery import Withheld
from .mime import BadMessage, address_of, checked, message_id_of, mime_of

reply_bytes_max = 65_536
together_bytes_max = 32_768  # a message up to this size goes out in one write with its dot
quit_s_max = 2.0
# The server wants other credentials, or has no time to check them: nothing that a recipient could help.
CREDENTIALS = (454, 530, 534, 535, 538)
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class SmtpSettings(channel.Settings, kw_only=True):
    """Where the relay is and how it is spoken to."""

    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 587
    user: str = ""
    password: str = ""
    tls: Literal["starttls", "tls", "none"] = "starttls"  # `tls` from the first byte, as on port 465
    ca_file: str = ""  # certificates to trust instead of the system's
    helo: str = ""  # the name that we say we are; else our address
    source: str = ""  # the configured source that reports what becomes of the messages
    # Headers by which a vendor's relay takes what has to come back with its events, see METADATA.
    metadata: Literal["none", "sendgrid", "mailgun", "postmark", "ses", "mandrill", "sparkpost"] = "none"
    messages_per_connection: Annotated[int, msgspec.Meta(ge=1)] = 1000
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 30.0  # for one answer
    # For the answer to the dot, which RFC 5321 section 4.5.3.2.6 gives ten minutes: who gives up earlier does not know what became of it.
    end_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._:-]+", self.host):
            raise ValueError("`host` has to be a name or an address, without blanks")
        if not re.fullmatch(r"[A-Za-z0-9.:\[\]-]*", self.helo):
            raise ValueError("`helo` has to be a host's name or an address in brackets")
        if bool(self.user) != bool(self.password):
            raise ValueError("`user` and `password` go together")
        if self.user and self.tls == "none" and self.host not in LOOPBACK:
            raise ValueError("`password` would be sent unencrypted: set `tls` to `starttls` or `tls`")


# -- the connection ------------------------------------------------------------------------------------------------------------------


class Reply(NamedTuple):
    """One answer of the server: its code and its lines without the code."""

    code: int
    lines: list[str]

    def text(self) -> str:
        return clean(" ".join(self.lines))[:400]

    def words(self) -> str:
        """Return the code with the enhanced one (RFC 3463) where there is one: ``550 5.1.1``."""
        found = re.match(r"[245]\.\d{1,3}\.\d{1,3}(?= |$)", self.lines[-1])
        return f"{self.code} {found.group()}" if found else str(self.code)


class TurnedAway(Exception):
    """The server took the connection and would not let us send on it."""

    def __init__(self, stage: str, code: str, text: str) -> None:
        super().__init__(f"{stage}: {text}")
        self.code = code


REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)


class Wire(asyncio.Protocol):
    """The bytes of one connection. ``lost`` says why it is over; ``buffer`` holds what the server said and nobody has read."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.buffer = bytearray()
        self.lost = ""
        self.paused = False
        self.closed = asyncio.get_running_loop().create_future()
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if len(self.buffer) > reply_bytes_max:
            self.buffer.clear()
            self.lost = "The server's answer has no end"
            self.transport.abort()
        self._wake()

    def eof_received(self) -> None:
        self.lost = self.lost or "The server closed the connection"
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = self.lost or (f"The connection was lost: {error}" if error else "The connection was closed")
        if not self.closed.done():
            self.closed.set_result(None)
        self._wake()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def write(self, data: bytes) -> None:
        if self.lost:
            raise ConnectionResetError(self.lost)
        self.transport.write(data)

    async def written(self, timeout_s: float) -> None:
        """Wait until what was written has nearly gone, or the server speaks, or the connection is over."""
        if self.paused:
            async with asyncio.timeout(timeout_s):
                while self.paused and not self.lost and not self.buffer:
                    await self._news()

    async def reply(self, timeout_s: float) -> Reply:
        """Return the next answer. Raises OSError: lost, too late, or no SMTP."""
        found = self._next()
        if found is None:
            async with asyncio.timeout(timeout_s):
                while (found := self._next()) is None:
                    if self.lost:
                        raise ConnectionResetError(self.lost)
                    await self._news()
        return found

    def _next(self) -> Reply | None:
        """Take one whole answer from the buffer."""
        lines, start, code = [], 0, b""
        while (end := self.buffer.find(b"\n", start)) >= 0:
            line = REPLY_LINE.fullmatch(bytes(self.buffer[start:end]).rstrip(b"\r"))
            if line is None or line.group(1) != (code or line.group(1)):
                raise ConnectionError("The server's answer is not SMTP")
            code = line.group(1)
            lines.append((line.group(3) or b"").decode("utf-8", "replace"))
            start = end + 1
            if line.group(2) != b"-":
                del self.buffer[:start]
                return Reply(int(code), lines)
        return None


class SmtpConnection:
    """One connection, made when the first message comes and made anew when it is lost or old. It sends one message after another."""

    def __init__(self, settings: SmtpSettings, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or Clock()
        self.connections_total = 0
        self._tls = None if settings.tls == "none" else _tls_context(settings.ca_file)
        self._wire: Wire | None = None
        self._offers: dict[str, str] = {}
        self._sent = 0
        self._begun = False  # a transaction that was given up and has to be reset
        self._busy = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def send(self, message: Message, mime: bytes | None = None, begun: Callable[[], None] = lambda: None) -> Outcome:
        """Send a message, made here or given as ``mime``, and say what became of it. It raises nothing of the network's.

        ``begun`` hears when the server wants the content: from then on it may have the message, and not before.
        Only one at a time. Who cancels it has to take the message for ``unknown``; the connection is closed then.
        """
        assert not self._busy, "a connection sends one message at a time"
        self._busy, whole = True, False
        try:
            outcome = await self._send(message, mime, begun)
            whole = True
            return outcome
        finally:
            self._busy = False
            if not whole:
                self._drop()  # what the server says next would be taken for the answer to the next message

    async def _send(self, message: Message, mime: bytes | None, begun: Callable[[], None]) -> Outcome:
        try:
            letter = self._letter(message, mime)
        except BadMessage as error:
            return Outcome(kind="refused", code="message", detail=error.text()[:500])
        try:
            wire = await self._ready()
            refused = self._impossible(letter) or await self._offer(wire, letter)
            if not refused:
                begun()
                refused = await self._content(wire, letter)
        except TurnedAway as error:
            self._drop()
            return Outcome(kind="later", code=error.code, detail=str(error))
        except Withheld:
            # The server waits for content that must not come.
            self._drop()
            return Outcome(kind="later", code="withheld")
        except OSError as error:
            # No dot has been sent, so nothing was accepted.
            self._drop()
            return Outcome(kind="later", code="connection", detail=_words(error))
        return refused or await self._end(wire, letter)

    async def close(self) -> None:
        """Say goodbye and close. Every message has been answered before, so nothing depends on it."""
        wire, self._wire = self._wire, None
        if wire is None:
            return
        try:
            wire.write(b"QUIT\r\n")
            await wire.reply(min(quit_s_max, self.settings.timeout_s))
            wire.transport.close()
            async with asyncio.timeout(quit_s_max):
                await wire.closed
        except OSError:
            # It went without an answer, which is as good.
            wire.transport.abort()

    def _drop(self) -> None:
        if self._wire is not None:
            self._wire.transport.abort()
            self._wire = None

    # -- until a message can be sent ---------------------------------------------------------------------------------------------

    async def _ready(self) -> Wire:
        """Return a connection on which a message can begin. Raises OSError and TurnedAway."""
        wire = self._wire
        if wire is not None and (wire.lost or wire.buffer or self._sent >= self.settings.messages_per_connection):
            await self.close()  # also where the server spoke unasked, as it does before it hangs up
        if self._wire is None:
            await self._connect()
        return self._wire

    async def _connect(self) -> None:
        settings, loop = self.settings, asyncio.get_running_loop()
        direct = {"ssl": self._tls, "server_hostname": settings.host} if settings.tls == "tls" else {}
        async with asyncio.timeout(settings.timeout_s):
            _, wire = await loop.create_connection(Wire, settings.host, settings.port, **direct)
        self._wire, self._sent, self._begun = wire, 0, False
        self.connections_total += 1
        greeting = await wire.reply(settings.timeout_s)
        if greeting.code != 220:
            raise TurnedAway("greeting", greeting.words(), greeting.text())
        await self._hello(wire)
        if settings.tls == "starttls":
            await self._starttls(wire)
            await self._hello(wire)
        if settings.user:
            await self._login(wire)

    async def _hello(self, wire: Wire) -> None:
        address = str(wire.transport.get_extra_info("sockname")[0])
        name = (self.settings.helo or (f"[IPv6:{address}]" if ":" in address else f"[{address}]")).encode()
        reply = await self._ask(wire, b"EHLO " + name)
        self._offers = {}
        if reply.code == 250:
            for line in reply.lines[1:]:
                word, _, rest = line.partition(" ")
                self._offers[word.upper()] = rest
            return
        reply = await self._ask(wire, b"HELO " + name)
        if reply.code != 250:
            raise TurnedAway("HELO", reply.words(), reply.text())

    async def _starttls(self, wire: Wire) -> None:
        if "STARTTLS" not in self._offers:
            raise TurnedAway("STARTTLS", "tls", "The server does not offer it, and without it nothing is sent")
        reply = await self._ask(wire, b"STARTTLS")
        if reply.code != 220:
            raise TurnedAway("STARTTLS", reply.words(), reply.text())
        if wire.buffer:
            # Somebody on the way put unencrypted answers behind the server's, which would be read as if they had come encrypted.
            raise TurnedAway("STARTTLS", "tls", "There was more after the answer")
        settings = self.settings
        wire.transport = await asyncio.get_running_loop().start_tls(
            wire.transport, wire, self._tls, server_hostname=settings.host, ssl_handshake_timeout=settings.timeout_s
        )

    async def _login(self, wire: Wire) -> None:
        mechanisms = self._offers.get("AUTH", "").upper().split()
        user, password = self.settings.user.encode(), self.settings.password.encode()
        if "PLAIN" in mechanisms:
            reply = await self._ask(wire, b"AUTH PLAIN " + b64encode(b"\0" + user + b"\0" + password))
        elif "LOGIN" in mechanisms:
            reply = await self._ask(wire, b"AUTH LOGIN")
            for secret in (user, password):
                if reply.code == 334:
                    reply = await self._ask(wire, b64encode(secret))
        else:
            raise TurnedAway("AUTH", "auth", "The server offers neither PLAIN nor LOGIN")
        if reply.code != 235:
            raise TurnedAway("AUTH", reply.words(), reply.text())

    async def _ask(self, wire: Wire, command: bytes) -> Reply:
        wire.write(command + b"\r\n")
        return await wire.reply(self.settings.timeout_s)

    # -- one message -------------------------------------------------------------------------------------------------------------

    def _letter(self, message: Message, mime: bytes | None) -> Letter:
        sender, recipient = address_of(message.from_address), address_of(message.to)
        if mime is None:
            domain = sender.rpartition("@")[2]
            content = mime_of(message, self.clock.now_us(), domain, self.settings.metadata)
            return Letter(sender, recipient, content, message_id_of(message.intent, domain))
        content = checked(mime)
        found = re.search(rb"^message-id:\s*(<[^<>\r\n]+>)", content.partition(b"\r\n\r\n")[0], re.IGNORECASE | re.MULTILINE)
        return Letter(sender, recipient, content, clean(found.group(1).decode("utf-8", "replace")) if found else "")

    def _impossible(self, letter: Letter) -> Outcome | None:
        """Return a refusal where the server has no way to take what the message needs."""
        if letter.utf8 and "SMTPUTF8" not in self._offers:
            return Outcome(kind="refused", code="5.6.7", detail="An address or header is not ASCII, and the server does not offer SMTPUTF8")
        if letter.eight_bit and "8BITMIME" not in self._offers:
            return Outcome(kind="refused", code="5.6.3", detail="The content is not ASCII, and the server does not offer 8BITMIME")
        return None

    async def _offer(self, wire: Wire, letter: Letter) -> Outcome | None:
        """Ask for the message to be taken. Return None where its content is wanted now, and else what became of it."""
        stages = [("MAIL", letter.mail(self._offers)), ("RCPT", f"RCPT TO:<{letter.recipient}>\r\n".encode()), ("DATA", b"DATA\r\n")]
        if self._begun:
            stages.insert(0, ("RSET", b"RSET\r\n"))
        self._begun = True
        pipelined = "PIPELINING" in self._offers
        if pipelined:
            wire.write(b"".join([command for _, command in stages]))
        failed: tuple[str, Reply] | None = None
        for stage, command in stages:
            if not pipelined:
                if failed:
                    break
                wire.write(command)
            try:
                reply = await wire.reply(self.settings.timeout_s)
            except OSError:
                if failed is None:
                    raise
                self._drop()  # it said why and hung up
                break
            if failed is None and not (reply.code == 354 if stage == "DATA" else 200 <= reply.code < 300):
                failed = (stage, reply)
            if failed and (reply.code in (354, 421) or failed[0] == "RSET" or not 400 <= failed[1].code < 600):
                self._drop()  # it waits for a content that must not come, or hangs up, or has lost the thread
                break
        return _outcome(*failed) if failed else None

    async def _content(self, wire: Wire, letter: Letter) -> Outcome | None:
        """Send the content; a large one goes without its dot, which then goes only if the connection has held until there."""
        stuffed = letter.stuffed()
        if not wire.buffer and len(stuffed) <= together_bytes_max:
            wire.write(stuffed + b".\r\n")
            return None
        if not wire.buffer:
            wire.write(stuffed)
            await wire.written(self.settings.timeout_s)
        if wire.buffer:
            reply = await wire.reply(self.settings.timeout_s)
            self._drop()  # it has had enough before the end, and never sees one
            return _outcome("DATA", reply)
        wire.write(b".\r\n")
        return None

    async def _end(self, wire: Wire, letter: Letter) -> Outcome:
        """Return what the server says to the dot. Without an answer nobody can tell."""
        try:
            reply = await wire.reply(self.settings.end_timeout_s)
        except OSError as error:
            self._drop()
            return Outcome(kind="unknown", message_id=letter.message_id, code="connection", detail=f"after the content: {_words(error)}")
        self._sent += 1
        self._begun = False
        if 200 <= reply.code < 300:
            return Outcome(kind="sent", message_id=_queue_id(reply) or letter.message_id, code=reply.words(), detail=reply.text())
        if reply.code == 421 or reply.code < 400:
            self._drop()
        if reply.code < 400:
            return Outcome(kind="unknown", message_id=letter.message_id, code=reply.words(), detail=reply.text())
        return _outcome("end of DATA", reply)


class Letter(NamedTuple):
    """A message as it goes over the wire: envelope, and content with CRLF at the end of every line."""

    sender: str
    recipient: str
    content: bytes
    message_id: str

    @property
    def eight_bit(self) -> bool:
        return not self.content.isascii()

    @property
    def utf8(self) -> bool:
        if self.sender.isascii() and self.recipient.isascii() and self.content.isascii():
            return False
        return not (self.sender.isascii() and self.recipient.isascii() and self.content.partition(b"\r\n\r\n")[0].isascii())

    def mail(self, offers: dict[str, str]) -> bytes:
        """Return the command MAIL with the parameters that the message needs and the server knows."""
        line = f"MAIL FROM:<{self.sender}>"
        if "SIZE" in offers:
            line += f" SIZE={len(self.content)}"
        if self.eight_bit:
            line += " BODY=8BITMIME"
        if self.utf8:
            line += " SMTPUTF8"
        return f"{line}\r\n".encode()

    def stuffed(self) -> bytes:
        """Return the content with every dot at the start of a line doubled (RFC 5321 section 4.5.2)."""
        content = self.content.replace(b"\r\n.", b"\r\n..") if b"\r\n." in self.content else self.content
        return b"." + content if content.startswith(b".") else content


def _outcome(stage: str, reply: Reply) -> Outcome:
    """Return what an answer other than yes means for a message that was not accepted."""
    final = 500 <= reply.code < 600 and reply.code not in CREDENTIALS and stage != "RSET"
    kind = "refused" if final else "later"
    return Outcome(kind=kind, code=reply.words(), detail=f"{stage}: {reply.text()}")


QUEUED = (
    re.compile(r"queued as ([!-~]+)", re.IGNORECASE),
    re.compile(r"(?:[245]\.\d+\.\d+ )?ok:? (?!queued)(?:id=)?([!-~]{6,})", re.IGNORECASE),
)


def _queue_id(reply: Reply) -> str:
    """Return the id in ``2.0.0 Ok: queued as 4bX``, as Postfix says it, or in ``Ok 0102018``, as Amazon does; servers have many ways."""
    found = QUEUED[0].search(reply.lines[-1]) or QUEUED[1].fullmatch(reply.lines[-1])
    return found.group(1).rstrip(".") if found else ""


def _words(error: OSError) -> str:
    return clean(str(error) or ("No answer in time" if isinstance(error, TimeoutError) else type(error).__name__))[:400]


def _tls_context(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise ConfigError(f"`ca_file` cannot be read: {error}", got=ca_file, todo="Name a file of certificates in PEM") from None
