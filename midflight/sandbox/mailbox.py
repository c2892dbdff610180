"""An SMTP server on loopback that takes every message into the inbox, as fast as it can, and misbehaves by plan.

It speaks what a relay of an email service speaks (RFC 5321 with PIPELINING, 8BITMIME, SMTPUTF8, SIZE, ENHANCEDSTATUSCODES, STARTTLS and
AUTH PLAIN and LOGIN where they are asked for), and of a message it reads the headers only.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import re
import ssl
from hashlib import blake2b
from itertools import count

from .inbox import Accepted, Inbox, accepted, header_custom, mail_headers
from .misbehave import ACCEPTS, SMTP, TLS_ALERT, TLS_FAILURE, Listener, Plan

message_bytes_max = 35 << 20
line_bytes_max = 2048  # RFC 5321 asks for 512, and SMTPUTF8 and AUTH need more
recipients_max = 1000
HOST = "mx.sandbox.example"
PATH = re.compile(rb"(?:FROM|TO): ?<([^<>]*)>((?: [!-~\x80-\xff]+)*) *", re.IGNORECASE)
END = b"\r\n.\r\n"

OK = b"250 2.0.0 OK\r\n"
SENDER_OK = b"250 2.1.0 Sender OK\r\n"
RECIPIENT_OK = b"250 2.1.5 Recipient OK\r\n"
GO_AHEAD = b"354 End data with <CR><LF>.<CR><LF>\r\n"
BAD_ORDER = b"503 5.5.1 Bad sequence of commands\r\n"
SYNTAX = b"501 5.5.4 Syntax error in parameters\r\n"
TOO_BIG = b"552 5.3.4 Message size exceeds fixed limit\r\n"
# What stands in place of the answer, by misbehaviour.
SAID = {
    "greet_4xx": b"421 4.3.2 Service not available, try again later\r\n",
    "mail_4xx": b"451 4.3.0 Requested action aborted, try again later\r\n",
    "mail_5xx": b"550 5.7.1 Sender refused\r\n",
    "rcpt_4xx": b"450 4.2.1 Mailbox temporarily unavailable\r\n",
    "rcpt_5xx": b"550 5.1.1 No such user here\r\n",
    "data_4xx": b"451 4.3.0 Requested action aborted, try again later\r\n",
    "data_5xx": b"554 5.7.1 Transaction failed\r\n",
    "dot_4xx": b"451 4.7.1 Try again later\r\n",
    "dot_5xx": b"554 5.7.1 Message refused\r\n",
    "accept_and_4xx": b"451 4.3.0 Requested action aborted, try again later\r\n",
    "garble": b"\x00\xff queued, more or less\r\n",
}


class Mailbox(Listener):
    """The server. ``vendor`` is the name its messages have in the inbox; ``login`` is ``user:password``, then AUTH is needed.

    With ``tls`` it offers STARTTLS, and with ``handshake_first`` it begins with TLS, as on port 465.
    """

    known = SMTP

    def __init__(
        self,
        inbox: Inbox,
        plan: Plan | None = None,
        *,
        vendor: str = "smtp",
        login: str = "",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        handshake_first: bool = False,
    ) -> None:
        self.handshake_first = handshake_first
        super().__init__(plan, port=port, tls=tls)
        self.inbox = inbox
        self.vendor = vendor
        self.login = login
        self.connections = 0
        self.tag = blake2b(str(inbox.clock.now_us()).encode(), digest_size=4).hexdigest()
        self.numbers = count(1)

    def connection(self) -> asyncio.Protocol:
        return _Session(self)

    def letters(self, raw: bytes, recipients: list[str], queue_id: str) -> list[Accepted]:
        """Return what is accepted of a message. Its id is its Message-ID, or where it has none, the one the server answers."""
        headers = mail_headers(raw)
        custom = header_custom(headers)
        message_id = headers.get("message-id") or queue_id
        now_us = self.inbox.clock.now_us()
        return [accepted(self.vendor, to, custom, message_id, now_us) for to in recipients]


class _Session(asyncio.Protocol):
    """One connection: commands in, one write for all the answers that are ready."""

    def __init__(self, box: Mailbox) -> None:
        self.box = box
        self.buffer = bytearray()
        self.dead = False
        self.leaving = False
        self.upgrading = False
        self.secure = bool(box.tls and box.handshake_first)
        self.greeted = False
        self.login_step: list[bytes] | None = None
        self.logged_in = not box.login
        self.forget()

    def forget(self) -> None:
        """Begin a new transaction."""
        self.sender: bytes | None = None
        self.recipients: list[str] = []
        self.kind = "answer"
        self.in_data = False
        self.searched = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.box.opened(transport)
        self.box.connections += 1
        if self.box.plan.next_if("greet_4xx"):
            transport.write(SAID["greet_4xx"])
            return self.close()
        transport.write(f"220 {HOST} ESMTP\r\n".encode())

    def connection_lost(self, error: Exception | None) -> None:
        self.dead = True
        self.box.closed(self.transport)

    def data_received(self, data: bytes) -> None:
        if self.dead:
            return
        self.buffer += data
        out: list[bytes] = []
        drip = False
        while not self.dead:
            answer = self.message() if self.in_data else self.line()
            if answer is None:
                break
            drip = drip or (self.kind == "drip" and answer[:3] == b"250" and self.sender is None)
            out.append(answer)
        if self.transport.is_closing():
            return
        if drip:
            # What comes meanwhile waits, or its answers would come in between.
            self.transport.pause_reading()
            self.box.drip(self.transport, b"".join(out), self.transport.resume_reading)
        elif out:
            self.transport.write(b"".join(out))
        if self.leaving:
            self.transport.close()
        elif self.upgrading:
            self.transport.pause_reading()
            self._upgrade = self.box.loop.create_task(self.upgrade())

    # -- commands --------------------------------------------------------------------------------------------------------

    def line(self) -> bytes | None:
        """Take one line out of the buffer and return what it is answered; None where there is none yet."""
        end = self.buffer.find(b"\n")
        if end < 0:
            if len(self.buffer) <= line_bytes_max:
                return None
            return self.leave(b"500 5.5.2 Line too long\r\n")
        line = bytes(self.buffer[:end]).rstrip(b"\r")
        del self.buffer[: end + 1]
        if self.login_step is not None:
            return self.login_line(line)
        verb, _, rest = line.partition(b" ")
        command = COMMANDS.get(verb.upper())
        return command(self, rest) if command else b"500 5.5.2 Command unrecognized\r\n"

    def helo(self, rest: bytes) -> bytes:
        self.forget()
        self.greeted = True
        return f"250 {HOST}\r\n".encode()

    def ehlo(self, rest: bytes) -> bytes:
        self.forget()
        self.greeted = True
        offers = [HOST, "PIPELINING", f"SIZE {message_bytes_max}", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"]
        if self.box.tls and not self.secure:
            offers.append("STARTTLS")
        if self.box.login:
            offers.append("AUTH PLAIN LOGIN")
        return "".join(f"250{' ' if offer is offers[-1] else '-'}{offer}\r\n" for offer in offers).encode()

    def mail(self, rest: bytes) -> bytes:
        if not self.greeted or self.sender is not None:
            return BAD_ORDER
        if not self.logged_in:
            return b"530 5.7.0 Authentication required\r\n"
        found = PATH.fullmatch(rest)
        if not found or rest[:1].upper() != b"F":
            return SYNTAX
        for parameter in found[2].split():
            name, _, value = parameter.upper().partition(b"=")
            if name == b"SIZE" and value.isdigit() and int(value) > message_bytes_max:
                return TOO_BIG
            if name not in (b"SIZE", b"BODY", b"SMTPUTF8", b"AUTH", b"RET", b"ENVID"):
                return b"555 5.5.4 Parameter not recognized\r\n"
        self.kind = self.box.plan.next()
        if self.kind in ("mail_4xx", "mail_5xx", "greet_4xx"):
            return SAID[self.kind]
        if self.kind == TLS_FAILURE:
            self.dead = True
            self.transport.write(TLS_ALERT)
            self.transport.close()
            return b""
        self.sender = found[1]
        return SENDER_OK

    def rcpt(self, rest: bytes) -> bytes:
        if self.sender is None:
            return BAD_ORDER
        found = PATH.fullmatch(rest)
        if not found or rest[:1].upper() != b"T" or b"@" not in found[1]:
            return SYNTAX
        if len(self.recipients) >= recipients_max:
            return b"452 4.5.3 Too many recipients\r\n"
        if self.kind in ("rcpt_4xx", "rcpt_5xx"):
            return SAID[self.kind]
        self.recipients.append(found[1].decode("utf-8", "replace"))
        return RECIPIENT_OK

    def data(self, rest: bytes) -> bytes:
        if self.sender is None:
            return BAD_ORDER
        if not self.recipients:
            return b"554 5.5.1 No valid recipients\r\n"
        if self.kind in ("data_4xx", "data_5xx"):
            return self.ended(SAID[self.kind])
        self.in_data = True
        return GO_AHEAD

    def rset(self, rest: bytes) -> bytes:
        self.forget()
        return OK

    def noop(self, rest: bytes) -> bytes:
        return OK

    def quit(self, rest: bytes) -> bytes:
        return self.leave(b"221 2.0.0 Bye\r\n")

    def starttls(self, rest: bytes) -> bytes:
        if not self.box.tls or self.secure:
            return b"502 5.5.1 STARTTLS is not offered\r\n"
        # What was sent before the handshake must not count as sent under TLS.
        self.buffer.clear()
        self.upgrading = True
        return b"220 2.0.0 Ready to start TLS\r\n"

    async def upgrade(self) -> None:
        plain = self.transport
        try:
            secured = await self.box.loop.start_tls(plain, self, self.box.tls, server_side=True)
        except (OSError, ssl.SSLError):
            # The client is gone, or the plan wanted it to fail.
            self.dead = True
            plain.abort()
            self.box.closed(plain)
            return
        self.box.closed(plain)
        self.secure, self.greeted, self.upgrading = True, False, False
        self.transport = secured
        self.box.opened(secured)
        self.forget()

    # -- who is it? ------------------------------------------------------------------------------------------------------

    def auth(self, rest: bytes) -> bytes:
        how, _, given = rest.partition(b" ")
        if not self.box.login or how.upper() not in (b"PLAIN", b"LOGIN"):
            return b"504 5.5.4 Mechanism not recognized\r\n"
        self.login_step = [how.upper()]
        if given:
            return self.login_line(given)
        return b"334 \r\n" if how.upper() == b"PLAIN" else b"334 VXNlcm5hbWU6\r\n"

    def login_line(self, line: bytes) -> bytes:
        how, *given = self.login_step
        try:
            given.append(base64.b64decode(line, validate=True))
        except (binascii.Error, ValueError):
            self.login_step = None
            return b"501 5.5.2 Cannot decode\r\n"
        if how == b"LOGIN" and len(given) == 1:
            self.login_step = [how, *given]
            return b"334 UGFzc3dvcmQ6\r\n"
        self.login_step = None
        said = b":".join(given[0].split(b"\0")[1:3] if how == b"PLAIN" else given)
        self.logged_in = hmac.compare_digest(said, self.box.login.encode())
        return b"235 2.7.0 Authentication successful\r\n" if self.logged_in else b"535 5.7.8 Authentication credentials invalid\r\n"

    # -- the message -----------------------------------------------------------------------------------------------------

    def message(self) -> bytes | None:
        """Take a whole message out of the buffer and return what it is answered; None while it is not whole."""
        buffer = self.buffer
        if self.kind == "cut_before_dot" and buffer:
            return self.cut()
        if buffer.startswith(b".\r\n"):
            end, after = 0, 3
        else:
            end = buffer.find(END, max(0, self.searched - len(END)))
            if end < 0:
                self.searched = len(buffer)
                if len(buffer) > message_bytes_max:
                    return self.leave(TOO_BIG)
                return None
            after = end + len(END)
        raw = bytes(buffer[:end])
        del buffer[:after]
        return self.taken(raw)

    def taken(self, raw: bytes) -> bytes:
        queue_id = f"{self.box.tag}{next(self.box.numbers):010x}"
        kind = self.kind
        if kind in ACCEPTS:
            self.box.inbox.put(self.box.letters(raw, self.recipients, queue_id))
        if kind in ("cut_after_dot", "accept_and_cut"):
            return self.cut()
        if kind == "accept_and_hang":
            self.dead = True
            return b""
        return self.ended(SAID.get(kind) or f"250 2.0.0 OK queued as {queue_id}\r\n".encode())

    def ended(self, answer: bytes) -> bytes:
        """End a transaction; how it misbehaves lasts until its answer is written."""
        kind = self.kind
        self.forget()
        self.kind = kind
        return answer

    # -- the end ---------------------------------------------------------------------------------------------------------

    def leave(self, answer: bytes) -> bytes:
        """Close the connection as soon as this is written."""
        self.dead = self.leaving = True
        return answer

    def close(self) -> None:
        self.dead = True
        self.transport.close()

    def cut(self) -> bytes:
        self.dead = True
        self.transport.abort()
        return b""


COMMANDS = {
    b"EHLO": _Session.ehlo,
    b"HELO": _Session.helo,
    b"MAIL": _Session.mail,
    b"RCPT": _Session.rcpt,
    b"DATA": _Session.data,
    b"RSET": _Session.rset,
    b"NOOP": _Session.noop,
    b"QUIT": _Session.quit,
    b"STARTTLS": _Session.starttls,
    b"AUTH": _Session.auth,
}
