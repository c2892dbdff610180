"""One call with an access token that is renewed when it has ended, in its time or before, and what its answer means for what is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...kit.errors import MidflightError
from ...sources.polls._auth import Token
from ...sources.polls.poll import Answer, Call, NotAllowed, NotNow, Unreadable, trouble_of
from .way_back import Ask


async def asked(token: Token, call: Callable[[], Call], ask: Ask, now_us: int) -> Answer:
    """Return the answer; what it means is for the caller. Raises NotNow and NotAllowed where there is no token to be had."""
    for again in (False, True):
        if fetch := token.call(now_us):
            token.take(await ask(fetch), now_us)
        answer = await ask(call())
        if answer.status != 401 or not token.renews or again:
            break
        token.forget()
    return answer


def refusal(answer: Answer, label: str, said: str = "") -> MidflightError:
    """Return what is wrong with an answer that is not 2xx. Only what is wrong with the states themselves is Unreadable."""
    if answer.status in (404, 405, 410):
        return NotAllowed(f"{label} is not there ({answer.status})", got=said or None, todo="Check the address")
    return trouble_of(answer, label, said)


@contextmanager
def accepted(label: str) -> Iterator[None]:
    """Read an answer that said yes: where it cannot be read, nobody knows of whom, and it is written again."""
    try:
        yield
    except Unreadable as error:
        raise NotNow(f"{label} says yes, and not to whom", got=error.what) from None
