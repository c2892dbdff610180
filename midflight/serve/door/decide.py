"""`POST /v1/decide`: which variant a recipient gets now and what it says, or why nothing is to be sent; durable before it is told."""

from __future__ import annotations

import asyncio
import logging
import re
from concurrent.futures import ThreadPoolExecutor

import apsw
import msgspec

from ...events import recipient_key
from ...kit.crash import crash_point
from ...kit.errors import MidflightError, nearest
from ...log import Record, Stored
from .advisor import Advisor, Asked, Chosen, Hold, Told
from .answers import Answer, json_answer, later, refusal, too_large
from .http import Exchange

logger = logging.getLogger("midflight.door")

PATH = b"/v1/decide"
LANE = "/v1/decide"  # no source can be called so
SCOPE = "decide"
body_bytes_max = 2 * 1024 * 1024
questions_max = 1_000
inline_max = 4  # more are answered step by step, so that others are not held up
step_questions = 20
content_bytes_max = 16 * 1024 * 1024  # of all messages of one answer

_ONE = msgspec.json.Decoder(Asked)
_MANY = msgspec.json.Decoder(list[Asked])
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")
_PLACE = re.compile(r" - at `([^`]*)`$")

NOT_KNOWN = refusal(
    401, "unauthorized", "The token is not known", expected="`Authorization: Bearer TOKEN`",
    todo=f"`midflight token make NAME --scope {SCOPE}` makes one",
)  # fmt: skip
NOT_ALLOWED = refusal(
    403, "forbidden", f"The token has no scope `{SCOPE}`", todo=f"`midflight token make NAME --scope {SCOPE}` makes one"
)  # fmt: skip
TOO_MUCH = too_large("The messages are too large for one answer", f"at most {content_bytes_max} bytes; ask for fewer recipients at once")


class BadQuestion(MidflightError):
    """A body that cannot be answered; nothing of it is."""

    code = "bad_request"


class Deciding:
    """The route. What is asked for is chosen, written, and told when it is durable."""

    def __init__(self, door, advisor: Advisor, tokens) -> None:
        self.door, self.advisor, self.tokens = door, advisor, tokens
        # Of its own: messages by the thousand must not keep webhooks from the door's threads.
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="advisor")
        self.closed = False

    def post(self, exchange: Exchange) -> Answer | None:
        """Return the answer, or None when it comes later."""
        if (refused := self.refused(exchange)) is not None:
            return refused
        try:
            questions, many = questions_of(exchange.body)
        except BadQuestion as error:
            return json_answer(error.status, error.as_dict(), reason=error.code)
        exchange.body = b""
        if len(questions) > inline_max:
            self.door.spawn(self.tell_carefully(exchange, questions, [], many))
            return None
        answers: list = [self.advisor.choose(asked, exchange.at_us) for asked in questions]
        chosen = chosen_of(answers)
        if any(one.campaign.is_slow(one.decided.variant) for one in chosen):
            self.door.spawn(self.tell_carefully(exchange, [], answers, many))
            return None
        return self.tell(exchange, answers, self.messages(chosen, exchange.at_us), many)

    def refused(self, exchange: Exchange) -> Answer | None:
        """Return why a request is not looked at; None where it is."""
        scheme, _, secret = exchange.headers.get("authorization", "").partition(" ")
        try:
            scopes = self.tokens.scopes(secret.strip()) if scheme.lower() == "bearer" else ()
        except (apsw.Error, OSError) as error:
            return later("no_tokens", "It cannot be told who asks")._replace(said=str(error))
        if SCOPE not in scopes:
            return NOT_ALLOWED if scopes else NOT_KNOWN
        if why := self.door.why_closed():
            return later(why, self.door.closed_what)
        return None

    def close(self) -> None:
        """End the thread soon, whatever it is at."""
        self.closed = True
        self.thread.shutdown(wait=False, cancel_futures=True)

    async def tell_carefully(self, exchange: Exchange, questions: list[Asked], answers: list, many: bool) -> None:
        """Choose with pauses for others, and make the messages in a thread. ``answers`` are those that were chosen already."""
        door, answer = self.door, None
        try:
            for number, asked in enumerate(questions, 1):
                answers.append(self.advisor.choose(asked, exchange.at_us))
                if number % step_questions == 0:
                    await asyncio.sleep(0)
            loop = asyncio.get_running_loop()
            messages = await loop.run_in_executor(self.thread, self.messages, chosen_of(answers), exchange.at_us)
            answer = self.tell(exchange, answers, messages, many)
        except Exception as error:
            self.advisor.let_go(chosen_of(answers))
            answer = door.fault(exchange, error)
        if answer is not None:
            door.answer(exchange, answer)

    def messages(self, chosen: list[Chosen], now_us: int) -> list[msgspec.Raw | Hold] | None:
        """Return the answer about each, encoded, or why it cannot be given; None where all together are too large."""
        found, size = [], 0
        for one in chosen:
            if self.closed:
                return None
            message = one.campaign.message(one, self.advisor.links, now_us)
            if isinstance(message, Told):
                message = msgspec.Raw(msgspec.json.encode(message))
                size += len(message)
                if size > content_bytes_max:
                    return None
            found.append(message)
        return found

    def tell(self, exchange: Exchange, answers: list, messages: list[msgspec.Raw | Hold] | None, many: bool) -> Answer | None:
        """Write what is new to the log and answer then; at once where nothing is new."""
        chosen = chosen_of(answers)
        if messages is None:
            self.advisor.let_go(chosen)
            return TOO_MUCH
        # What waits for the disk with a small question may be a large answer.
        if not self.door.hold(exchange, sum(len(message) for message in messages if isinstance(message, msgspec.Raw))):
            self.advisor.let_go(chosen)
            return later("overload", "Too many messages wait to be told")
        telling = Telling(self, exchange, answers, chosen, messages, many)
        new = {one.name: one.decided for one in chosen if one.decided.position < 0}
        if not new:
            return telling.answer()
        rows = [(*name, decided.wave, decided.variant, decided.propensity) for name, decided in new.items()]
        try:
            self.door.submit([Record("decision", "advice", exchange.at_us, {}, msgspec.json.encode(rows))], telling)
        except MidflightError as error:
            self.advisor.let_go(chosen)
            return later(error.code, error.what)
        return None


def chosen_of(answers: list[Chosen | Hold]) -> list[Chosen]:
    return [one for one in answers if isinstance(one, Chosen)]


class Telling:
    """The answer to one request on its way; called with what became of its record."""

    __slots__ = ("answers", "chosen", "deciding", "exchange", "many", "messages")

    def __init__(
        self, deciding: Deciding, exchange: Exchange, answers: list, chosen: list[Chosen], messages: list[msgspec.Raw | Hold], many: bool
    ) -> None:
        self.deciding, self.exchange, self.answers = deciding, exchange, answers
        self.chosen, self.messages, self.many = chosen, messages, many

    def __call__(self, outcome: Stored | Exception) -> None:
        deciding, exchange = self.deciding, self.exchange
        door = deciding.door
        door.release(exchange)
        if isinstance(outcome, Stored):
            deciding.advisor.in_log(self.chosen, outcome.first)
            crash_point("before_200")
            door.counters.add("door_stored_total", LANE)
            door.answer(exchange, self.answer())
        else:
            deciding.advisor.let_go(self.chosen)
            door.answer(exchange, door.log_refused(outcome))

    def answer(self) -> Answer:
        """Return the whole answer. Who has unsubscribed since is told to be held."""
        advisor, count = self.deciding.advisor, self.deciding.door.counters.add
        messages = iter(self.messages)
        found = []
        for one in self.answers:
            if isinstance(one, Chosen):
                message = next(messages)
                one = advisor.barred_since(one) or message
            count("door_decisions_total", one.hold if isinstance(one, Hold) else "told")
            found.append(one)
        advisor.let_go(self.chosen)
        return json_answer(200, found if self.many else found[0])


def questions_of(body: bytes) -> tuple[list[Asked], bool]:
    """Return the questions of a body, and whether they came as a list. Raises BadQuestion."""
    many = body.lstrip(b" \t\r\n")[:1] == b"["
    try:
        questions = _MANY.decode(body) if many else [_ONE.decode(body)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_question(str(error)) from None
    if not 1 <= len(questions) <= questions_max:
        raise BadQuestion("Questions at a time", expected=f"1 to {questions_max}", got=len(questions))
    for number, asked in enumerate(questions):
        if not recipient_key(asked.recipient):
            where = f"$[{number}].recipient" if many else "$.recipient"
            raise BadQuestion("No address", expected="name@domain", got=repr(asked.recipient[:100]), where=where)
    return questions, many


def bad_question(said: str) -> BadQuestion:
    """Return the error for what the decoder said, with the nearest name to one that it does not know."""
    place = _PLACE.search(said)
    unknown = _UNKNOWN.search(said)
    return BadQuestion(
        f"The body is no question: {_PLACE.sub('', said)[:200]}",
        expected='`{"campaign": "...", "recipient": "...", "attributes": {...}}`, or a list of those',
        where=place[1][:100] if place else None,
        todo=nearest(unknown[1][:100], Asked.__struct_fields__) if unknown else None,
    )
