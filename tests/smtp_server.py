"""A small SMTP server on loopback that behaves as badly as it is told to, and remembers what it has taken."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

# Where it can be made to misbehave, in the order in which a message gets there. "body" is in the middle of the content, "dot" after its
# end and before the answer.
STAGES = ("connect", "ehlo", "mail", "rcpt", "data", "body", "dot")


class Manners(msgspec.Struct, kw_only=True):
    """What the server offers and what it does wrong. ``times`` says how often it misbehaves before it behaves."""

    offers: tuple[str, ...] = ("PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE 10000000")
    login: tuple[str, str] | None = None
    mechanisms: str = "PLAIN LOGIN"
    answers: dict[str, str] = {}  # stage -> what it says there instead
    cut_at: str = ""  # it closes the connection there, without a word
    hang_at: str = ""  # it says nothing there for ever
    keeps: bool = True  # whether what was cut or hung after the dot has been taken
    drip: bool = False  # it says everything one byte at a time
    ends_after: int = 0  # it closes the connection after so many messages, with 421
    takes_all: bool = False  # it says 354 although no recipient was accepted
    starttls_rest: str = ""  # what somebody puts behind the answer to STARTTLS
    hello: bool = True  # it knows EHLO
    times: int = 1_000_000


class Delivered(NamedTuple):
    """One message that the server has taken."""

    mail: str
    rcpt: str
    content: bytes


class Cut(Exception):
    """The server hangs up."""


class SmtpServer:
    """Serves until the `async with` block is left. ``delivered`` holds what it took, ``commands`` how often it got which."""

    def __init__(self, manners: Manners | None = None, tls: ssl.SSLContext | None = None, direct: bool = False) -> None:
        self.manners = manners or Manners()
        self.delivered: list[Delivered] = []
        self.took = asyncio.Event()  # the first one
        self.commands: Counter[str] = Counter()
        self.lines: list[str] = []
        self.chunks: list[bytes] = []  # what arrived in one read, to see what was pipelined
        self.connections = 0
        self.port = 0
        self._tls, self._direct = tls, direct
        self._tasks: set[asyncio.Task] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls if self._direct else None, limit=2**20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        self.connections += 1
        try:
            await Talk(self, reader, writer).run()
        except (Cut, asyncio.CancelledError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
        finally:
            writer.close()

    def bad(self, stage: str) -> bool:
        """Whether to misbehave at this stage now."""
        manners = self.manners
        if stage not in (manners.cut_at, manners.hang_at, *manners.answers) or manners.times <= 0:
            return False
        manners.times -= 1
        return True


class Talk:
    """One connection."""

    def __init__(self, server: SmtpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.reader, self.writer = server, reader, writer
        self.secure = server._direct
        self.logged_in = server.manners.login is None
        self.taken = 0
        self.mail, self.rcpt = "", ""

    async def say(self, text: str) -> None:
        data = text.encode() + b"\r\n"
        if not self.server.manners.drip:
            self.writer.write(data)
        else:
            for byte in data:
                self.writer.write(bytes([byte]))
                await asyncio.sleep(0)
        await self.writer.drain()

    async def stage(self, stage: str, text: str) -> bool:
        """Say what belongs to a stage, or misbehave. Return whether it went well."""
        manners = self.server.manners
        if not self.server.bad(stage):
            await self.say(text)
            return True
        if stage == manners.cut_at:
            raise Cut
        if stage == manners.hang_at:
            await asyncio.Event().wait()
        await self.say(manners.answers[stage])
        if manners.answers[stage].startswith("421"):
            raise Cut
        return False

    async def line(self) -> str:
        raw = await self.reader.readuntil(b"\r\n")
        text = raw[:-2].decode("utf-8", "surrogateescape")
        self.server.lines.append(text)
        return text

    async def run(self) -> None:
        await self.stage("connect", "220 sink ESMTP")
        while True:
            line = await self.line()
            word = line.split(" ")[0].split(":")[0].upper()
            self.server.commands[word] += 1
            handler = getattr(self, f"on_{word.lower()}", None)
            if handler is None:
                await self.say("500 5.5.2 Unknown")
            elif await handler(line) is False:
                return

    async def on_ehlo(self, line: str) -> None:
        manners = self.server.manners
        if not manners.hello:
            await self.say("502 5.5.1 Not known")
            return
        offers = [*manners.offers]
        if self.server._tls and not self.secure:
            offers.append("STARTTLS")
        if manners.login and (self.secure or not self.server._tls):
            offers.append(f"AUTH {manners.mechanisms}")
        lines = ["sink greets you", *offers]
        await self.stage("ehlo", "\r\n".join(f"250{' ' if n == len(lines) - 1 else '-'}{text}" for n, text in enumerate(lines)))

    async def on_helo(self, line: str) -> None:
        await self.say("250 sink")

    async def on_starttls(self, line: str) -> None:
        rest = self.server.manners.starttls_rest
        await self.say("220 2.0.0 Go" + (f"\r\n{rest}" if rest else ""))
        await self.writer.start_tls(self.server._tls)
        self.secure = True

    async def on_auth(self, line: str) -> None:
        from base64 import b64decode

        _, mechanism, *initial = line.split(" ")
        if mechanism == "PLAIN":
            _, user, password = b64decode(initial[0]).decode().split("\0")
        else:
            await self.say("334 VXNlcm5hbWU6")
            user = b64decode(await self.line()).decode()
            await self.say("334 UGFzc3dvcmQ6")
            password = b64decode(await self.line()).decode()
        self.logged_in = (user, password) == self.server.manners.login
        await self.say("235 2.7.0 Welcome" if self.logged_in else "535 5.7.8 Wrong")

    async def on_mail(self, line: str) -> None:
        if self.mail:
            await self.say("503 5.5.1 Nested MAIL")
        elif not self.logged_in:
            await self.say("530 5.7.0 Authentication required")
        elif await self.stage("mail", "250 2.1.0 Ok"):
            self.mail = line

    async def on_rcpt(self, line: str) -> None:
        if not self.mail:
            await self.say("503 5.5.1 No MAIL")
        elif await self.stage("rcpt", "250 2.1.5 Ok"):
            self.rcpt = line

    async def on_rset(self, line: str) -> None:
        self.mail, self.rcpt = "", ""
        await self.stage("rset", "250 2.0.0 Ok")

    async def on_data(self, line: str) -> bool | None:
        manners = self.server.manners
        if not self.rcpt and not manners.takes_all:
            await self.say("554 5.5.1 No valid recipients")
            return None
        if not await self.stage("data", "354 End with a dot"):
            return None
        content = await self.content()
        if content is None:
            return False
        mail, rcpt, self.mail, self.rcpt = self.mail, self.rcpt, "", ""
        bad = self.server.bad("dot")
        if not rcpt:
            await self.say("554 5.5.1 No valid recipients")
            return None
        if not bad or ("dot" not in manners.answers and manners.keeps):
            self.server.delivered.append(Delivered(mail, rcpt, content))
            self.server.took.set()
        if bad and manners.cut_at == "dot":
            raise Cut
        if bad and manners.hang_at == "dot":
            await asyncio.Event().wait()
        await self.say(manners.answers["dot"] if bad else f"250 2.0.0 Ok: queued as Q{len(self.server.delivered)}")
        self.taken += 1
        if manners.ends_after and self.taken >= manners.ends_after:
            await self.say("421 4.4.2 Enough")
            return False
        return None

    async def content(self) -> bytes | None:
        """Read until the dot, and undo the doubled ones."""
        content = bytearray()
        if self.server.bad("body"):
            manners = self.server.manners
            await self.reader.readexactly(40)
            if "body" in manners.answers:
                await self.say(manners.answers["body"])
                await self.reader.read(2**30)  # until it hangs up
                return None
            if manners.hang_at == "body":
                await asyncio.Event().wait()
            raise Cut
        while (line := await self.reader.readuntil(b"\r\n")) != b".\r\n":
            content += line.removeprefix(b".")
        return bytes(content)

    async def on_quit(self, line: str) -> bool:
        await self.say("221 2.0.0 Bye")
        return False
